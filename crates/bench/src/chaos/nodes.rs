//! The processes of the cluster: started, killed, asked to leave, started again with the same command line.

use super::browser::{Connections, connections, look};
use super::{Args, Via};
use anyhow::Context as _;
use core::time::Duration;
use rand::RngExt as _;
use rand_pcg::Pcg32;
use rustix::process::{Pid, Signal, kill_process};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

/// A process must serve by then.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// A command line and the process that runs it. The process is killed by its id with this value.
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) program: std::path::PathBuf,
    pub(crate) args: Vec<String>,
    /// Where its standard error goes; otherwise to that of this program.
    pub(crate) log: Option<std::path::PathBuf>,
    pub(crate) child: Option<Child>,
}

impl Process {
    pub(crate) fn new(name: String, program: std::path::PathBuf, args: Vec<String>) -> Process {
        Process { name, program, args, log: None, child: None }
    }

    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        // The trace of an error takes seconds to write in an optimised build.
        command.args(&self.args).env("RUST_BACKTRACE", "0").stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        if let Some(log) = &self.log {
            command.stderr(std::fs::File::options().create(true).append(true).open(log)?);
        }
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let mut lines = BufReader::new(child.stdout.take().context("a process without output")?).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                if line.starts_with("ready ") {
                    return Ok(());
                }
            }
            anyhow::bail!("{} ended before it served", self.name)
        };
        timeout(STARTS_WITHIN, ready).await.with_context(|| format!("{} does not serve", self.name))??;
        // Whatever it says later must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.child = Some(child);
        Ok(())
    }

    pub(crate) fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// SIGKILL; when it was gone.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<Instant> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(Instant::now())
    }

    /// SIGTERM. `None`: it did not end in time.
    pub(crate) async fn terminate(&mut self, within: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let child = self.child.as_mut().context("it does not run")?;
        // A process that was waited for has no id here any more, so that no foreign process is ever hit.
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw).context("it has ended by itself")?;
        kill_process(pid, Signal::TERM)?;
        match timeout(within, child.wait()).await {
            Ok(status) => {
                self.child = None;
                Ok(Some(status?))
            }
            Err(_) => Ok(None),
        }
    }
}

/// All processes.
pub(super) struct Nodes {
    nodes: Vec<Process>,
    web: Vec<SocketAddr>,
    gateway: Option<(Process, SocketAddr)>,
    connections: Connections,
}

impl Nodes {
    pub(super) async fn start(args: &Args, rng: &mut Pcg32) -> anyhow::Result<Nodes> {
        let count = usize::from(args.nodes);
        let ports = free_ports(2 * count + 1, rng)?;
        let (web, rest) = ports.split_at(count);
        let (peers, gateway) = rest.split_at(count);
        let this = std::env::current_exe().context("where this program is")?;
        let mut nodes = Vec::new();
        for (index, (http, peer)) in web.iter().zip(peers).enumerate() {
            let name = char::from(b'a' + index as u8).to_string();
            let mut line: Vec<String> = ["app", "--name", &name, "--durability", &args.durability].map(String::from).into();
            line.extend(["--http".to_owned(), http.to_string(), "--peer".to_owned(), peer.to_string()]);
            line.extend(peers.iter().filter(|other| *other != peer).flat_map(|other| ["--join".to_owned(), other.to_string()]));
            nodes.push(Process::new(name, this.clone(), line));
        }
        for node in &mut nodes {
            node.start().await?;
        }
        let mut all = Nodes { nodes, web: web.to_vec(), gateway: None, connections: connections() };
        if args.via == Via::Gateway {
            let program = args.outlive.clone().unwrap_or_else(|| this.with_file_name("outlive"));
            let listen = *gateway.first().context("a port for the gateway")?;
            let mut line: Vec<String> = ["gateway", "--cluster", "outlive-bench", "--retry", "false"].map(String::from).into();
            line.extend(["--listen".to_owned(), listen.to_string()]);
            line.extend(peers.iter().flat_map(|peer| ["--join".to_owned(), peer.to_string()]));
            let mut process = Process::new("gateway".into(), program, line);
            process.start().await?;
            all.gateway = Some((process, listen));
        }
        Ok(all)
    }

    /// Where clients connect.
    pub(super) fn doors(&self, via: Via) -> Vec<SocketAddr> {
        match (&self.gateway, via) {
            (Some((_, addr)), Via::Gateway) => vec![*addr],
            _ => self.web.clone(),
        }
    }

    pub(super) fn name(&self, index: usize) -> String {
        self.nodes.get(index).map(|node| node.name.clone()).unwrap_or_default()
    }

    fn node(&mut self, index: usize) -> anyhow::Result<&mut Process> {
        self.nodes.get_mut(index).context("there is no such node")
    }

    pub(super) async fn kill(&mut self, index: usize) -> anyhow::Result<Instant> {
        self.node(index)?.kill().await
    }

    pub(super) async fn terminate(&mut self, index: usize, within: Duration) -> anyhow::Result<Option<ExitStatus>> {
        self.node(index)?.terminate(within).await
    }

    pub(super) async fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        self.node(index)?.start().await
    }

    /// See [`settled`].
    pub(super) async fn settled(&self) -> Option<String> {
        settled(&self.connections, &self.web).await
    }

    /// Ends all processes.
    pub(super) async fn end(&mut self) {
        for process in self.gateway.iter_mut().map(|(gateway, _)| gateway).chain(&mut self.nodes) {
            if let Err(error) = process.kill().await {
                eprintln!("{}: {error:#}", process.name);
            }
        }
    }
}

/// The membership in which all nodes agree, when every copy and every marker of an ended session is where that asks for it.
pub(crate) async fn settled(connections: &Connections, web: &[SocketAddr]) -> Option<String> {
    let mut all = None;
    for addr in web {
        let answer = look(connections, *addr, "/heap").await?;
        let membership = answer.value("membership")?.to_owned();
        if answer.value("settled") != Some("true") || all.as_ref().is_some_and(|other| *other != membership) {
            return None;
        }
        all = Some(membership);
    }
    all
}

/// Ports that are free now and that the system gives to nobody by itself: a node that is away must find its own again.
pub(crate) fn free_ports(count: usize, rng: &mut Pcg32) -> anyhow::Result<Vec<SocketAddr>> {
    const TRIES: usize = 1000;
    let mut held = Vec::new();
    for _ in 0..TRIES {
        if held.len() == count {
            break;
        }
        held.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, rng.random_range(10_000..32_000_u16))));
    }
    anyhow::ensure!(held.len() == count, "no free ports");
    held.iter().map(|listener| Ok(listener.local_addr()?)).collect()
}
