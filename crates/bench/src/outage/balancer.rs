//! A real HAProxy, and how many servers it has.

use anyhow::Context as _;
use core::fmt::Write as _;
use core::time::Duration;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// The process ends with this value.
pub(super) struct Balancer {
    _child: Child,
    folder: PathBuf,
    pub(super) door: SocketAddr,
    stats: SocketAddr,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // A file in the temporary folder does no harm.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Balancer {
    /// Starts it; all servers are up when this returns.
    pub(super) async fn start(
        program: &str,
        door: SocketAddr,
        stats: SocketAddr,
        servers: &[(&str, SocketAddr)],
    ) -> anyhow::Result<Balancer> {
        let mut text = format!(
            "global\n  stats socket ipv4@{stats} level admin\n\
             defaults\n  mode http\n  timeout connect 1s\n  timeout client 60s\n  timeout server 60s\n  option redispatch 1\n  retries 3\n\
             frontend web\n  bind {door}\n  default_backend app\n\
             backend app\n  balance roundrobin\n  cookie OUTLIVESID-R\n  option httpchk GET /ready\n  http-check expect status 200\n  \
             default-server check inter 500ms fall 2 rise 1\n"
        );
        for (name, addr) in servers {
            writeln!(text, "  server {name} {addr} cookie .{name}")?;
        }
        let folder = std::env::temp_dir().join(format!("outlive-outage-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let file = folder.join("haproxy.cfg");
        std::fs::write(&file, text)?;
        let mut command = Command::new(program);
        command.args(["-db", "-f"]).arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("HAPROXY IS MISSING: `{program}` cannot be started"))?;
        let balancer = Balancer { _child: child, folder, door, stats };
        for _ in 0..600 {
            if up(stats).await.is_some_and(|n| n == servers.len() as u64) {
                return Ok(balancer);
            }
            sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!("HAProxy does not find its servers")
    }

    /// Counts servers from now on.
    pub(super) fn watch(&self) -> Watch {
        let (stop, mut stopped) = watch::channel(false);
        let stats = self.stats;
        let task = tokio::spawn(async move {
            let mut fewest = u64::MAX;
            while !*stopped.borrow() {
                fewest = fewest.min(up(stats).await.unwrap_or(fewest));
                let _ = tokio::time::timeout(Duration::from_millis(20), stopped.changed()).await;
            }
            fewest
        });
        Watch { stop, task }
    }
}

/// How few servers there were.
pub(super) struct Watch {
    stop: watch::Sender<bool>,
    task: JoinHandle<u64>,
}

impl Watch {
    pub(super) async fn fewest(self) -> u64 {
        self.stop.send_replace(true);
        self.task.await.unwrap_or(0)
    }
}

/// How many servers take requests, from the balancer's own table.
async fn up(stats: SocketAddr) -> Option<u64> {
    let mut stream = TcpStream::connect(stats).await.ok()?;
    stream.write_all(b"show stat\n").await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next()?.trim_start_matches("# ").split(',').collect();
    let column = |name| names.iter().position(|n| *n == name);
    let (service, status) = (column("svname")?, column("status")?);
    let up = |line: &&str| {
        let cells: Vec<&str> = line.split(',').collect();
        // Also while a check has failed once: `UP 1/2`.
        cells.get(service).is_some_and(|s| !["FRONTEND", "BACKEND"].contains(s)) && cells.get(status).is_some_and(|s| s.starts_with("UP"))
    };
    Some(lines.filter(up).count() as u64)
}
