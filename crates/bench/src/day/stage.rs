//! What stands on the stage: three nodes on one store, HAProxy and the gateway before them, and a log of each.

use super::tale::{Said, member};
use super::{Args, Via};
use crate::chaos::browser::{Connections, ask, connections};
use crate::chaos::nodes::{Process, free_ports, settled};
use anyhow::Context as _;
use core::fmt::Write as _;
use core::time::Duration;
use rand_pcg::Pcg32;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// A node that is asked to leave must have left by then.
const LEAVES_WITHIN: Duration = Duration::from_secs(60);
/// After an event every copy must be where it should be by then.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// A line of the log may come a little later than what it tells.
pub(super) const LOG_WITHIN: Duration = Duration::from_secs(70);
/// What fits into the store's file system: little, so that it can be filled.
const DISK: &str = "64m";

/// What a node is started with; a deployment changes it.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) idle_timeout: &'static str,
    pub(super) durability: &'static str,
    pub(super) join: Vec<String>,
}

struct Node {
    process: Process,
    http: SocketAddr,
    peer: SocketAddr,
    settings: Settings,
}

/// See the module.
pub(super) struct Stage {
    dir: PathBuf,
    /// The store's folder is a file system of its own.
    mounted: bool,
    nodes: Vec<Node>,
    haproxy: Option<(Child, SocketAddr)>,
    gateway: Option<(Process, SocketAddr)>,
    connections: Connections,
}

impl Stage {
    pub(super) async fn start(args: &Args, rng: &mut Pcg32) -> anyhow::Result<Stage> {
        let dir = std::env::temp_dir().join(format!("outlive-day-{}", std::process::id()));
        let disk = dir.join("disk");
        std::fs::create_dir_all(&disk)?;
        let mounted = mount(&disk).await;
        let ports = free_ports(8, rng)?;
        let this = std::env::current_exe().context("where this program is")?;
        let settings = Settings { idle_timeout: "30m", durability: "backup(1)", join: Vec::new() };
        let node = |index: usize, name: &str| Node {
            process: Process { log: Some(dir.join(format!("{name}.log"))), ..Process::new(name.into(), this.clone(), Vec::new()) },
            http: ports[2 * index],
            peer: ports[2 * index + 1],
            settings: settings.clone(),
        };
        let nodes = vec![node(0, "a"), node(1, "b"), node(2, "c")];
        let mut stage = Stage { dir, mounted, nodes, haproxy: None, gateway: None, connections: connections() };
        for index in 0..stage.nodes.len() {
            stage.start_node(index).await?;
        }
        if args.via != Via::Gateway {
            stage.haproxy = Some((stage.start_haproxy(ports[6]).await?, ports[6]));
        }
        if args.via != Via::Haproxy {
            let program = args.outlive.clone().unwrap_or_else(|| this.with_file_name("outlive"));
            let mut line: Vec<String> = ["gateway", "--cluster", "outlive-bench", "--retry", "false"].map(String::from).into();
            line.extend(["--listen".to_owned(), ports[7].to_string(), "--store".to_owned(), stage.store()]);
            line.extend(stage.nodes.iter().flat_map(|node| ["--join".to_owned(), node.peer.to_string()]));
            let log = Some(stage.dir.join("gateway.log"));
            let mut process = Process { log, ..Process::new("gateway".into(), program, line) };
            process.start().await?;
            stage.gateway = Some((process, ports[7]));
        }
        anyhow::ensure!(stage.settles().await, "the nodes have not met");
        Ok(stage)
    }

    pub(super) fn describe(&self) -> String {
        let disk = if self.mounted { format!("the store on a disk of {DISK}") } else { "no disk can be mounted here".into() };
        format!("{disk}, all in {}", self.dir.display())
    }

    pub(super) fn store_file(&self) -> PathBuf {
        self.dir.join("disk/sessions.db")
    }

    fn store(&self) -> String {
        format!("sqlite:{}", self.store_file().display())
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder that is a file system of its own, if it is.
    pub(super) fn disk(&self) -> Option<PathBuf> {
        self.mounted.then(|| self.dir.join("disk"))
    }

    /// Where customers come in.
    pub(super) fn doors(&self) -> Vec<SocketAddr> {
        self.haproxy.iter().map(|(_, addr)| *addr).chain(self.gateway.iter().map(|(_, addr)| *addr)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn name(&self, index: usize) -> String {
        self.nodes[index].process.name.clone()
    }

    pub(super) fn settings(&mut self, index: usize) -> &mut Settings {
        &mut self.nodes[index].settings
    }

    pub(super) async fn start_node(&mut self, index: usize) -> anyhow::Result<()> {
        let store = self.store();
        let node = &mut self.nodes[index];
        let Settings { idle_timeout, durability, join } = &node.settings;
        let line = ["app", "--name", &node.process.name, "--http", &node.http.to_string(), "--peer", &node.peer.to_string()];
        let settings =
            ["--store", &store, "--durability", durability, "--idle-timeout", idle_timeout, "--drain-notice", "1s", "--log", "info"];
        node.process.args = line.iter().chain(&settings).map(|word| (*word).to_owned()).collect();
        node.process.args.extend(join.iter().flat_map(|addr| ["--join".to_owned(), addr.clone()]));
        node.process.start().await.with_context(|| format!("node {}", node.process.name))
    }

    /// Starts who does not run, after something failed.
    pub(super) async fn start_all(&mut self) -> anyhow::Result<()> {
        for index in 0..self.len() {
            if !self.nodes[index].process.runs() {
                self.nodes[index].process.kill().await?;
                self.start_node(index).await?;
            }
        }
        Ok(())
    }

    /// SIGKILL, and waits until all others have told of it.
    pub(super) async fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        let marks = self.marks();
        self.nodes[index].process.kill().await?;
        self.end_is_told(&marks, index, "dead: ").await
    }

    /// SIGTERM, and waits for the end and until all others have told of it.
    pub(super) async fn stop(&mut self, index: usize) -> anyhow::Result<()> {
        let marks = self.marks();
        let node = &mut self.nodes[index].process;
        let status = node.terminate(LEAVES_WITHIN).await?;
        let status = status.with_context(|| format!("node {} had not left after {} s", node.name, LEAVES_WITHIN.as_secs()))?;
        anyhow::ensure!(status.success(), "node {} was asked to leave and ended with {status}", node.name);
        self.end_is_told(&marks, index, "left: ").await
    }

    /// A node that is back before somebody noticed that it was gone was only restarted: another line of the log, and another event.
    async fn end_is_told(&mut self, from: &[u64], index: usize, word: &str) -> anyhow::Result<()> {
        let name = self.name(index);
        let (ended, gone) = (format!("{word}{name}"), format!("a member is gone {}", member(&name)));
        let nodes = self.nodes.iter_mut().filter_map(|node| node.process.runs().then(|| (node.process.name.clone(), &ended)));
        let gateway = self.gateway.iter().flat_map(|(gateway, _)| [&ended, &gone].map(|line| (gateway.name.clone(), line)));
        let told: Vec<_> = nodes.chain(gateway).collect();
        for (who, line) in told {
            anyhow::ensure!(self.says(from, &who, line, LOG_WITHIN).await, "{who} has not said within {LOG_WITHIN:?}: {line}");
        }
        Ok(())
    }

    /// Waits until all nodes agree who is there, and every copy is where it should be; whether that was in time.
    pub(super) async fn settles(&self) -> bool {
        let web: Vec<SocketAddr> = self.nodes.iter().map(|node| node.http).collect();
        let all = async {
            while settled(&self.connections, &web).await.is_none() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SETTLES_WITHIN, all).await.is_ok()
    }

    /// Each node in turn is asked to leave and started with other settings; and the next only when the copies are made.
    pub(super) async fn deploy(&mut self, change: impl Fn(&mut Settings)) -> anyhow::Result<()> {
        for index in 0..self.len() {
            self.stop(index).await?;
            change(self.settings(index));
            self.start_node(index).await?;
            anyhow::ensure!(self.settles().await, "the copies were not all made after {} came back", self.name(index));
        }
        Ok(())
    }

    /// As the documentation has it: by the route cookie, then by the suffix of the id, and a check that a node passes until it leaves.
    async fn start_haproxy(&self, addr: SocketAddr) -> anyhow::Result<Child> {
        let mut config = format!(
            "defaults\n  mode http\n  timeout connect 1s\n  timeout client 75s\n  timeout server 75s\n  timeout tunnel 1h\n  option redispatch 1\n  \
             retry-on conn-failure\nfrontend shop\n  bind {addr}\n  default_backend nodes\nbackend nodes\n  option httpchk GET /ready\n  \
             default-server check inter 200ms fall 1 rise 1\n"
        );
        for node in &self.nodes {
            let _ = writeln!(config, "  use-server {0} if {{ req.cook(OUTLIVESID-R) .{0} }}", node.process.name);
        }
        for node in &self.nodes {
            let _ = writeln!(config, "  use-server {0} if {{ req.cook(OUTLIVESID) -m end .{0} }}", node.process.name);
        }
        for node in &self.nodes {
            let _ = writeln!(config, "  server {} {}", node.process.name, node.http);
        }
        let (path, log) = (self.dir.join("haproxy.cfg"), std::fs::File::create(self.dir.join("haproxy.log"))?);
        std::fs::write(&path, config)?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&path).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn().context("cannot start haproxy")?;
        let until = Instant::now() + SETTLES_WITHIN;
        while tokio::net::TcpStream::connect(addr).await.is_err() {
            anyhow::ensure!(Instant::now() < until, "haproxy does not serve; see {}", self.dir.display());
            sleep(Duration::from_millis(20)).await;
        }
        Ok(child)
    }

    /// How long each log is.
    pub(super) fn marks(&self) -> Vec<u64> {
        self.logs().map(|(_, path)| std::fs::metadata(path).map_or(0, |m| m.len())).collect()
    }

    /// What was said between two marks.
    pub(super) fn written(&self, from: &[u64], to: &[u64]) -> Vec<Said> {
        let mut said = Vec::new();
        for (((who, path), from), to) in self.logs().zip(from).zip(to) {
            let text = std::fs::read(path).unwrap_or_default();
            let at = |mark: u64| usize::try_from(mark).unwrap_or(0).min(text.len());
            let text = String::from_utf8_lossy(text.get(at(*from)..at(*to)).unwrap_or_default());
            said.extend(text.lines().flat_map(|line| Said::parse(&who, line)));
        }
        said
    }

    /// Waits until somebody has said it; whether that was in time.
    pub(super) async fn says(&self, from: &[u64], who: &str, begins: &str, within: Duration) -> bool {
        let said = async {
            while !self.written(from, &self.marks()).iter().any(|said| said.who == who && said.text.starts_with(begins)) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(within, said).await.is_ok()
    }

    /// Who runs and has a log.
    pub(super) fn names(&self) -> Vec<String> {
        self.logs().map(|(name, _)| name).collect()
    }

    fn logs(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let names = self.nodes.iter().map(|node| &node.process.name).chain(self.gateway.iter().map(|(gateway, _)| &gateway.name));
        names.map(|name| (name.clone(), self.dir.join(format!("{name}.log"))))
    }

    /// What a node says of itself: whether it is fit for requests, and why not.
    pub(super) async fn readiness(&self, index: usize) -> String {
        let answer = ask(&self.connections, self.nodes[index].http, "/ready").await;
        answer.map_or_else(|| "no answer".to_owned(), |answer| answer.body)
    }

    /// Ends all processes; the folder if it stays.
    pub(super) async fn end(&mut self, keep: bool) -> Option<PathBuf> {
        for process in self.gateway.iter_mut().map(|(gateway, _)| gateway).chain(self.nodes.iter_mut().map(|node| &mut node.process)) {
            if let Err(error) = process.kill().await {
                eprintln!("{}: {error:#}", process.name);
            }
        }
        if let Some((haproxy, _)) = &mut self.haproxy {
            let _ = haproxy.kill().await;
        }
        if keep {
            let store = self.store_file();
            let _ = std::fs::copy(&store, self.dir.join("kept.db"));
        }
        if self.mounted {
            let _ = Command::new("umount").arg(self.dir.join("disk")).status().await;
            self.mounted = false;
        }
        if keep {
            return Some(self.dir.clone());
        }
        let _ = std::fs::remove_dir_all(&self.dir);
        None
    }
}

/// Whether a file system of its own could be had: that needs root.
async fn mount(disk: &Path) -> bool {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", &format!("size={DISK}"), "outlive-day"]).arg(disk);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    status.is_ok_and(|status| status.success())
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.mounted {
            // After an error on the way: the processes end with this value, and a disk without its name goes when they have.
            let _ = std::process::Command::new("umount").arg("-l").arg(self.dir.join("disk")).status();
        }
    }
}
