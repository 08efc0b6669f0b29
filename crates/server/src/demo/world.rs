//! What is going on, as one value: nodes, their own event times, the shoppers' counts. The page and the state file are pictures of it.

use crate::clock::wall_ms;
use crate::demo::tally::Tally;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};

/// Log lines that are kept.
const LOG_MAX: usize = 200;
/// Messages that a page may be behind; then it gets a fresh snapshot.
const BEHIND_MAX: usize = 1024;

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Starting,
    Up,
    Draining,
    /// Ended in order.
    Stopped,
    /// Ended otherwise.
    Killed,
}

impl State {
    pub(crate) fn is_gone(self) -> bool {
        matches!(self, State::Stopped | State::Killed)
    }
}

/// One node as seen from outside.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) pid: Option<u32>,
    pub(crate) state: State,
    /// Which start of it this is.
    pub(crate) life: u64,
    /// Sessions that it owns, copies that it holds for others, sessions that should have a copy and do not: as it says itself.
    pub(crate) stats: NodeStats,
    /// When it said so, by its own clock.
    #[serde(skip)]
    pub(crate) stats_at: u64,
}

/// A node's own numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeStats {
    /// Members that it believes alive, itself among them.
    pub(crate) members: u64,
    pub(crate) owned: u64,
    pub(crate) held: u64,
    pub(crate) under_replicated: u64,
    pub(crate) dirty_age_ms: u64,
}

/// What a node's process says on its standard output, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "e", rename_all = "lowercase")]
pub(crate) enum Said {
    /// Its HTTP address; it serves.
    Ready { t: u64, http: SocketAddr, peer: Option<SocketAddr> },
    Stats {
        t: u64,
        #[serde(flatten)]
        stats: NodeStats,
    },
    /// It saw a member come or go, and sees so many now, itself among them.
    Member { t: u64, count: u64, fewer: bool },
    /// It began to leave.
    Leaving { t: u64 },
    /// Something happened to a session, in ms since 1970.
    Session { t: u64, key: String, what: Happening, with: Vec<String> },
}

/// What happens to sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Happening {
    /// The node owns it now; `with` is the owner before.
    Moved,
    /// Another node owns it now.
    Left,
    /// The node made a copy for the owner, `with`.
    Backed,
    /// All copies are where they should be, on `with`.
    Replicated,
    /// Commits were given up as lost.
    Lost,
    Ended,
}

/// One line of the log.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) t: u64,
    pub(crate) node: String,
    pub(crate) text: String,
}

/// What a page is told.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// Only for pages of this session.
    pub(crate) session: Option<String>,
    pub(crate) text: Bytes,
}

/// See the module.
pub(crate) struct World {
    inner: Mutex<Inner>,
    pub(crate) tally: Arc<Mutex<Tally>>,
    pub(crate) names: Arc<[String]>,
    messages: broadcast::Sender<Message>,
    changed: watch::Sender<u64>,
    state_file: Option<PathBuf>,
}

struct Inner {
    nodes: Vec<Node>,
    log: VecDeque<Line>,
    gateway: Option<SocketAddr>,
    store: String,
    durability: String,
    deploying: bool,
    armed: bool,
    shoppers: usize,
    dirty_age_ms: u64,
}

impl World {
    pub(crate) fn new(names: Vec<String>, store: String, durability: String, state_file: Option<PathBuf>) -> World {
        let node = |name: &String| Node {
            name: name.clone(),
            http: None,
            peer: None,
            pid: None,
            state: State::Stopped,
            life: 0,
            stats: NodeStats::default(),
            stats_at: 0,
        };
        let nodes = names.iter().map(node).collect();
        let inner = Inner {
            nodes,
            log: VecDeque::new(),
            gateway: None,
            store,
            durability,
            deploying: false,
            armed: false,
            shoppers: 0,
            dirty_age_ms: 0,
        };
        World {
            inner: Mutex::new(inner),
            tally: Arc::default(),
            names: names.into(),
            messages: broadcast::Sender::new(BEHIND_MAX),
            changed: watch::Sender::new(0),
            state_file,
        }
    }

    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.inner.lock().nodes.clone()
    }

    pub(crate) fn node(&self, name: &str) -> Option<Node> {
        self.inner.lock().nodes.iter().find(|node| node.name == name).cloned()
    }

    pub(crate) fn durability(&self) -> String {
        self.inner.lock().durability.clone()
    }

    /// How long the oldest change, ever, waited for the store, as the nodes said.
    pub(crate) fn dirty_age_ms(&self) -> u64 {
        self.inner.lock().dirty_age_ms
    }

    /// Changes one node; pages, the state file and whoever waits are told.
    pub(crate) fn update(&self, name: &str, change: impl FnOnce(&mut Node)) {
        let text = {
            let mut inner = self.inner.lock();
            let Some(node) = inner.nodes.iter_mut().find(|node| node.name == name) else { return };
            change(node);
            let dirty = node.stats.dirty_age_ms;
            let text = json!({ "e": "node", "node": &*node });
            inner.dirty_age_ms = inner.dirty_age_ms.max(dirty);
            text
        };
        self.send(None, &text);
        self.changed.send_modify(|n| *n += 1);
        self.write_state();
    }

    /// Takes a node's numbers; pages are told if they are others than before.
    pub(crate) fn stats(&self, name: &str, t: u64, stats: NodeStats) {
        if self.node(name).is_some_and(|node| node.stats == stats) {
            let mut inner = self.inner.lock();
            if let Some(node) = inner.nodes.iter_mut().find(|node| node.name == name) {
                node.stats_at = t;
            }
            drop(inner);
            self.changed.send_modify(|n| *n += 1);
        } else {
            self.update(name, |node| (node.stats, node.stats_at) = (stats, t));
        }
    }

    pub(crate) fn set_gateway(&self, gateway: SocketAddr) {
        self.inner.lock().gateway = Some(gateway);
        self.write_state();
    }

    pub(crate) fn set_durability(&self, durability: &str) {
        durability.clone_into(&mut self.inner.lock().durability);
        self.send(None, &json!({ "e": "keep", "durability": durability }));
    }

    /// Notes that a deployment begins or ends; false if it had begun already.
    pub(crate) fn set_deploying(&self, deploying: bool) -> bool {
        let before = std::mem::replace(&mut self.inner.lock().deploying, deploying);
        self.send(None, &json!({ "e": "deploying", "deploying": deploying }));
        before != deploying
    }

    /// Arms the kill that follows the next change in the shop, or disarms it; whether it was armed.
    pub(crate) fn set_armed(&self, armed: bool) -> bool {
        let before = std::mem::replace(&mut self.inner.lock().armed, armed);
        if before != armed {
            self.send(None, &json!({ "e": "armed", "armed": armed }));
        }
        before
    }

    pub(crate) fn set_shoppers(&self, shoppers: usize) {
        self.inner.lock().shoppers = shoppers;
    }

    /// Adds a line to the log, with the time that its node gave it.
    pub(crate) fn log(&self, t: u64, node: &str, text: impl Into<String>) {
        let line = Line { t, node: node.to_owned(), text: text.into() };
        let message = json!({ "e": "log", "line": &line });
        {
            let mut inner = self.inner.lock();
            if inner.log.len() == LOG_MAX {
                inner.log.pop_front();
            }
            inner.log.push_back(line);
        }
        self.send(None, &message);
    }

    /// Something happened to one session: told to the pages that show it.
    pub(crate) fn session(&self, node: &str, t: u64, key: &str, what: Happening, with: &[String]) {
        self.send(Some(key.to_owned()), &json!({ "e": "session", "node": node, "t": t, "key": key, "what": what, "with": with }));
    }

    /// Sends what the shoppers saw since the last time.
    pub(crate) fn send_dots(&self) {
        let text = {
            let mut tally = self.tally.lock();
            let dots = std::mem::take(&mut tally.fresh);
            json!({ "e": "dots", "now": wall_ms(), "dots": dots, "totals": &tally.totals, "named": &tally.named })
        };
        self.send(None, &text);
    }

    fn send(&self, session: Option<String>, text: &Value) {
        // Nobody may be listening.
        let _ = self.messages.send(Message { session, text: Bytes::from(format!("data: {text}\n\n")) });
    }

    /// Everything there is to see now, and what comes after it.
    pub(crate) fn subscribe(&self) -> (Bytes, broadcast::Receiver<Message>) {
        let receiver = self.messages.subscribe();
        (self.snapshot(), receiver)
    }

    pub(crate) fn snapshot(&self) -> Bytes {
        let mut text = {
            let inner = self.inner.lock();
            json!({
                "e": "snapshot", "now": wall_ms(), "nodes": &inner.nodes, "log": &inner.log,
                "durability": &inner.durability, "deploying": inner.deploying, "store": &inner.store,
                "armed": inner.armed, "shoppers": inner.shoppers,
            })
        };
        let tally = self.tally.lock();
        text["dots"] = json!(&tally.dots);
        text["totals"] = json!(&tally.totals);
        text["named"] = json!(&tally.named);
        Bytes::from(format!("data: {text}\n\n"))
    }

    /// Waits until the nodes are as wanted; false if that takes longer than `bound`.
    pub(crate) async fn wait(&self, bound: Duration, wanted: impl Fn(&[Node]) -> bool) -> bool {
        let mut changed = self.changed.subscribe();
        let reached = async {
            loop {
                changed.borrow_and_update();
                if wanted(&self.inner.lock().nodes) {
                    return true;
                }
                if changed.changed().await.is_err() {
                    return false;
                }
            }
        };
        tokio::time::timeout(bound, reached).await.unwrap_or(false)
    }

    fn write_state(&self) {
        let Some(path) = &self.state_file else { return };
        let inner = self.inner.lock();
        let nodes: Vec<Value> = inner.nodes.iter().map(state_of).collect();
        let gateway = inner.gateway.map(|addr| format!("http://{addr}"));
        let state = json!({ "gateway": gateway, "store": &inner.store, "nodes": nodes });
        // Under the lock, so that an older state never replaces a newer one; it is a few hundred bytes.
        if let Err(error) = replace(path, &format!("{state:#}\n")) {
            tracing::warn!(path = %path.display(), %error, "cannot write the state file");
        }
    }
}

fn state_of(node: &Node) -> Value {
    let http = node.http.map(|addr| format!("http://{addr}"));
    json!({ "name": node.name, "http": http, "pid": node.pid, "state": node.state })
}

/// Whoever reads the file sees the old text or the new one.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_comes_back() {
        let said = Said::Session { t: 5, key: "k".into(), what: Happening::Moved, with: vec!["A".into()] };
        let text = serde_json::to_string(&said).unwrap();
        assert_eq!(text, r#"{"e":"session","t":5,"key":"k","what":"moved","with":["A"]}"#);
        assert_eq!(serde_json::from_str::<Said>(&text).unwrap(), said);
        let stats = Said::Stats { t: 6, stats: NodeStats { owned: 3, ..NodeStats::default() } };
        assert_eq!(serde_json::from_str::<Said>(&serde_json::to_string(&stats).unwrap()).unwrap(), stats);
    }

    #[tokio::test]
    async fn a_page_first_gets_everything_and_then_what_changes() {
        let world = World::new(vec!["A".into()], "memory".into(), "owner".into(), None);
        world.log(1, "A", "before");
        let (snapshot, mut messages) = world.subscribe();
        assert!(std::str::from_utf8(&snapshot).unwrap().contains("before"));
        world.session("A", 2, "k", Happening::Moved, &[]);
        let message = messages.recv().await.unwrap();
        assert_eq!(message.session.as_deref(), Some("k"));
    }

    #[test]
    fn the_state_file_says_what_is_where() {
        let path = std::env::temp_dir().join(format!("outlive-state-{}.json", std::process::id()));
        let world = World::new(vec!["A".into()], "memory".into(), "owner".into(), Some(path.clone()));
        world.update("A", |node| (node.pid, node.state) = (Some(7), State::Up));
        let state: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(state["nodes"][0], json!({ "name": "A", "http": null, "pid": 7, "state": "up" }));
    }
}
