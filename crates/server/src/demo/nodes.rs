//! The nodes as processes: started, killed, drained and deployed; what they say is read and passed on.

use crate::clock::wall_ms;
use crate::demo::world::{Node, Said, State, World};
use anyhow::Context as _;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;

/// How long a node may take to start, or to end in order.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// All node processes of this demo. They end when this process ends, however it ends: each reads its standard input, which closes then.
pub(crate) struct Nodes {
    world: Arc<World>,
    cluster: String,
    /// The way to signal each running process; its task alone knows whether the process id is still its own.
    orders: Mutex<HashMap<String, mpsc::Sender<Signal>>>,
}

impl Nodes {
    pub(crate) fn new(world: Arc<World>, cluster: String) -> Arc<Nodes> {
        Arc::new(Nodes { world, cluster, orders: Mutex::default() })
    }

    /// Starts a node that is not running; it is there when this returns.
    pub(crate) async fn start(self: &Arc<Self>, name: &str, store: &str) -> anyhow::Result<()> {
        let nodes = self.world.nodes();
        let node = nodes.iter().find(|node| node.name == name).with_context(|| format!("there is no node {name}"))?;
        anyhow::ensure!(node.state.is_gone(), "node {name} runs already");
        let life = node.life + 1;
        let mut command = Command::new(std::env::current_exe().context("where this program is")?);
        command.args(["demo-node", "--http", "127.0.0.1:0", "--peer", "127.0.0.1:0"]);
        command.args(["--name", name, "--cluster", &self.cluster, "--store", store, "--durability", &self.world.durability()]);
        for peer in nodes.iter().filter(|other| !other.state.is_gone()).filter_map(|other| other.peer) {
            command.arg("--join").arg(peer.to_string());
        }
        // A terminal interrupts all processes of its foreground: nodes are told by this process alone, once.
        command.process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().context("cannot start a node")?;
        let lines = BufReader::new(child.stdout.take().context("a node without output")?).lines();
        let (orders, incoming) = mpsc::channel(4);
        self.orders.lock().insert(name.to_owned(), orders);
        self.world.update(name, |node| {
            node.state = State::Starting;
            (node.life, node.pid, node.http, node.peer, node.struck) = (life, child.id(), None, None, None);
        });
        tokio::spawn(self.clone().watch(name.to_owned(), child, lines, incoming));
        let started = self.world.wait(PATIENCE, |nodes| find(nodes, name).is_some_and(|node| node.state != State::Starting)).await;
        anyhow::ensure!(
            started && self.world.node(name).is_some_and(|node| node.state == State::Up),
            "node {name} did not start within {} s; its errors are above",
            PATIENCE.as_secs()
        );
        Ok(())
    }

    /// Ends a node at once, as a crash does.
    pub(crate) fn kill(&self, name: &str) {
        if let Some(index) = self.world.names.iter().position(|node| node == name) {
            self.world.tally.lock().killed(i8::try_from(index).unwrap_or(-1));
        }
        self.world.log(wall_ms(), name, "killed (SIGKILL)");
        self.order(name, Signal::KILL);
    }

    /// Asks a node to leave in order; does not wait for it.
    pub(crate) fn drain(&self, name: &str) {
        self.world.log(wall_ms(), name, "asked to leave (SIGTERM)");
        self.order(name, Signal::TERM);
    }

    fn order(&self, name: &str, signal: Signal) {
        self.world.update(name, |node| node.struck = Some(wall_ms()));
        if let Some(orders) = self.orders.lock().get(name) {
            // Full means that it has been told four times already.
            let _ = orders.try_send(signal);
        }
    }

    /// Waits until a node has ended.
    pub(crate) async fn ended(&self, name: &str) -> anyhow::Result<()> {
        let ended = self.world.wait(PATIENCE, |nodes| find(nodes, name).is_some_and(|node| node.state.is_gone())).await;
        anyhow::ensure!(ended, "node {name} did not end within {} s", PATIENCE.as_secs());
        Ok(())
    }

    /// Waits until every running node, as of now, sees all of them and no other, and says that each of its sessions has the copies that
    /// it should have. `false`: it took too long.
    pub(crate) async fn settled(&self) -> bool {
        let now = wall_ms();
        let safe = |nodes: &[Node]| {
            let running = || nodes.iter().filter(|node| !node.state.is_gone());
            let count = running().count() as u64;
            let safe = |node: &Node| node.stats_at > now && node.stats.members == count && node.stats.under_replicated == 0;
            running().all(|node| node.state == State::Up && safe(node))
        };
        self.world.wait(PATIENCE, safe).await
    }

    /// Drains a node and starts it again, as a deployment does with each.
    pub(crate) async fn restart(self: &Arc<Self>, name: &str, store: &str) -> anyhow::Result<()> {
        if self.world.node(name).is_some_and(|node| !node.state.is_gone()) {
            self.drain(name);
            self.ended(name).await?;
        }
        self.start(name, store).await
    }

    /// Reads what one process says, passes signals on and notes its end.
    async fn watch(
        self: Arc<Self>,
        name: String,
        mut child: Child,
        mut lines: Lines<BufReader<ChildStdout>>,
        mut orders: mpsc::Receiver<Signal>,
    ) {
        let status = loop {
            tokio::select! {
                line = lines.next_line() => match line {
                    Ok(Some(line)) => self.said(&name, &line),
                    Ok(None) | Err(_) => break child.wait().await,
                },
                Some(signal) = orders.recv() => signal_child(&child, signal),
            }
        };
        self.orders.lock().remove(&name);
        let state = match &status {
            Ok(status) if status.success() => State::Stopped,
            Ok(status) if status.signal().is_some() => State::Killed,
            _ => State::Failed,
        };
        self.world.update(&name, |node| {
            node.state = state;
            (node.pid, node.stats) = (None, Default::default());
        });
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        match state {
            State::Stopped => self.world.log(wall_ms(), &name, "has left; its process ended"),
            State::Failed => self.world.log(wall_ms(), &name, format!("failed: its process ended with {how}")),
            _ => {}
        }
    }

    fn said(&self, name: &str, line: &str) {
        let said = serde_json::from_str(line);
        if !matches!(said, Ok(Said::Stats { .. })) {
            self.world.heard(name, line);
        }
        match said {
            Ok(Said::Ready { t, http, peer }) => {
                self.world.update(name, |node| (node.state, node.http, node.peer) = (State::Up, Some(http), peer));
                self.world.log(t, name, "serves");
            }
            Ok(Said::Stats { t, stats }) => self.world.stats(name, t, stats),
            Ok(Said::Leaving { t }) => {
                self.world.update(name, |node| node.state = State::Draining);
                self.world.log(t, name, "leaves: takes no new visitors, hands its sessions over");
            }
            Ok(Said::Member { t, count, fewer }) => {
                let what = if fewer { "notices that a node is gone" } else { "meets another node" };
                self.world.log(t, name, format!("{what}: {count} now"));
            }
            Ok(Said::Session { t, key, what, with, from }) => self.world.session(name, t, &key, what, &with, from.as_ref()),
            // `ready http://ADDR` and whatever else is for people.
            Err(_) => tracing::debug!(node = name, line, "said"),
        }
    }

    /// Ends all processes, in order if they do so in time.
    pub(crate) async fn stop_all(&self, patience: Duration) {
        for node in self.running() {
            self.drain(&node);
        }
        let all_gone = |nodes: &[Node]| nodes.iter().all(|node| node.state.is_gone());
        if !self.world.wait(patience, all_gone).await {
            for node in self.running() {
                self.kill(&node);
            }
            self.world.wait(PATIENCE, all_gone).await;
        }
    }

    fn running(&self) -> Vec<String> {
        self.world.nodes().into_iter().filter(|node| !node.state.is_gone()).map(|node| node.name).collect()
    }
}

fn find<'a>(nodes: &'a [Node], name: &str) -> Option<&'a Node> {
    nodes.iter().find(|node| node.name == name)
}

/// A process that was waited for has no id here any more, so that no foreign process is ever hit.
fn signal_child(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::warn!(%error, "cannot signal a node");
    }
}
