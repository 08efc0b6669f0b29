//! What is going on, as one value: nodes, their own event times, the shoppers' counts. The page and the state file are pictures of it.

use crate::clock::wall_ms;
use crate::demo::book::Step;
use crate::demo::sentence::{Said as Sentence, Scene, tell};
use crate::demo::story::{Answer, Story, Ticket};
use crate::demo::tally::Tally;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};

/// Log lines that are kept.
const LOG_MAX: usize = 200;
/// Words of nodes that are kept.
const WORDS_MAX: usize = 2000;
/// Visitors of the page whose stories are kept.
const STORIES_MAX: usize = 32;
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
    /// Ended by a signal.
    Killed,
    /// Ended by itself, and not in order.
    Failed,
}

impl State {
    pub(crate) fn is_gone(self) -> bool {
        matches!(self, State::Stopped | State::Killed | State::Failed)
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
    /// When it was told to end, last.
    #[serde(skip)]
    pub(crate) struck: Option<u64>,
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
    Session {
        t: u64,
        key: String,
        what: Happening,
        with: Vec<String>,
        /// Where the state came from that moved.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<From>,
    },
}

/// Where the state came from that a new owner goes on with, as [`outlive::Source`] says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum From {
    Copy,
    Node(String),
    Store,
    Several,
    Nothing,
}

/// What is being done to all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Doing {
    #[default]
    Nothing,
    /// Each in turn is drained and starts anew.
    Deploying,
    /// All are ended in order and start with another setting.
    Changing,
    /// Those that do not run are started.
    Starting,
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
    /// It was not used for too long.
    Expired,
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
    /// Only for pages of this visitor.
    pub(crate) visitor: Option<String>,
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
    doing: Doing,
    armed: bool,
    shoppers: usize,
    dirty_age_ms: u64,
    stories: HashMap<String, Told>,
    words: VecDeque<String>,
}

/// A visitor's story, and what their pages were told last.
#[derive(Default)]
struct Told {
    story: Story,
    text: Value,
    used: u64,
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
            struck: None,
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
            doing: Doing::Nothing,
            armed: false,
            shoppers: 0,
            dirty_age_ms: 0,
            stories: HashMap::new(),
            words: VecDeque::new(),
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
        {
            let mut inner = self.inner.lock();
            let Some(node) = inner.nodes.iter_mut().find(|node| node.name == name) else { return };
            let before = (node.state, node.life);
            change(node);
            let node = node.clone();
            inner.dirty_age_ms = inner.dirty_age_ms.max(node.stats.dirty_age_ms);
            self.send(None, &json!({ "e": "node", "node": &node }));
            if before != (node.state, node.life) {
                let (doing, now) = (inner.doing, wall_ms());
                inner.stories.values_mut().for_each(|told| told.story.node(&node, doing, now));
            }
            self.retell(&mut inner);
        }
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
        let mut inner = self.inner.lock();
        durability.clone_into(&mut inner.durability);
        self.send(None, &json!({ "e": "keep", "durability": durability }));
        self.retell(&mut inner);
    }

    /// Notes that something is being done to all nodes; false if something is already.
    pub(crate) fn begin(&self, doing: Doing) -> bool {
        let mut inner = self.inner.lock();
        let free = inner.doing == Doing::Nothing;
        if free {
            self.set_doing(&mut inner, doing);
        }
        free
    }

    pub(crate) fn end(&self) {
        self.set_doing(&mut self.inner.lock(), Doing::Nothing);
    }

    fn set_doing(&self, inner: &mut Inner, doing: Doing) {
        inner.doing = doing;
        self.send(None, &json!({ "e": "doing", "doing": doing }));
        self.retell(inner);
    }

    /// Arms the kill that follows the next change in the shop, or disarms it; whether it was armed.
    pub(crate) fn set_armed(&self, armed: bool) -> bool {
        let mut inner = self.inner.lock();
        let before = std::mem::replace(&mut inner.armed, armed);
        if before != armed {
            self.send(None, &json!({ "e": "armed", "armed": armed }));
            self.retell(&mut inner);
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

    // ---- what the page's visitors are told ------------------------------------------------------------------------------------------

    /// Keeps what a node said, word for word, for whoever doubts the page.
    pub(crate) fn heard(&self, node: &str, line: &str) {
        let mut inner = self.inner.lock();
        if inner.words.len() == WORDS_MAX {
            inner.words.pop_front();
        }
        inner.words.push_back(format!("{node} {line}\n"));
    }

    /// What nodes said, in the order in which it was heard: the node's name, and its line of JSON.
    pub(crate) fn words(&self) -> String {
        self.inner.lock().words.iter().map(String::as_str).collect()
    }

    /// Something happened to one session: it becomes part of the story of whoever has it.
    pub(crate) fn session(&self, node: &str, t: u64, key: &str, what: Happening, with: &[String], from: Option<&From>) {
        let text = match what {
            Happening::Moved => "owns your session".to_owned(),
            Happening::Replicated => format!("your session has its copy on {}", with.join(", ")),
            Happening::Backed => "has a copy of your session".to_owned(),
            Happening::Lost => "gave up changes of your session as lost".to_owned(),
            Happening::Expired => "lets your session expire".to_owned(),
            Happening::Left | Happening::Ended => String::new(),
        };
        let mut inner = self.inner.lock();
        let life = inner.nodes.iter().find(|other| other.name == node).map_or(0, |node| node.life);
        for (visitor, told) in inner.stories.iter_mut().filter(|(_, told)| told.story.key == key) {
            told.story.happened(node, life, t, what, with, from);
            if !text.is_empty() {
                let line = json!({ "t": t, "node": node, "text": &text, "yours": true });
                self.send(Some(visitor.clone()), &json!({ "e": "log", "line": line }));
            }
        }
        self.retell(&mut inner);
    }

    /// A visitor's request arrived, or another try of it.
    pub(crate) fn asked(&self, visitor: &str, path: &str, step: Option<Step>) -> Ticket {
        self.with(visitor, |story, now| story.asked(path, step, now))
    }

    pub(crate) fn refused(&self, visitor: &str, ticket: &Ticket, by: Option<String>, why: &str) {
        self.with(visitor, |story, _| story.refused(ticket, by, why));
    }

    pub(crate) fn settled(&self, visitor: &str, ticket: &Ticket) {
        self.with(visitor, |story, _| story.settled(ticket));
    }

    pub(crate) fn answered(&self, visitor: &str, ticket: &Ticket, mut answer: Answer) {
        let life = |name: &str| self.node(name).map_or(0, |node| node.life);
        (answer.life, answer.owner_life) = (life(&answer.node), life(&answer.owner));
        let took = ticket.start.elapsed();
        self.with(visitor, |story, now| story.answered(ticket, answer, took, now));
    }

    /// Forgets what went wrong, for a visitor who begins anew.
    pub(crate) fn forget(&self, visitor: &str) {
        self.with(visitor, |story, _| *story = story.anew());
    }

    fn with<T>(&self, visitor: &str, act: impl FnOnce(&mut Story, u64) -> T) -> T {
        let (mut inner, now) = (self.inner.lock(), wall_ms());
        if !inner.stories.contains_key(visitor)
            && inner.stories.len() == STORIES_MAX
            && let Some(oldest) = inner.stories.iter().min_by_key(|(_, told)| told.used).map(|(visitor, _)| visitor.clone())
        {
            inner.stories.remove(&oldest);
        }
        let Inner { nodes, stories, doing, .. } = &mut *inner;
        let told = stories.entry(visitor.to_owned()).or_default();
        told.used = now;
        let done = act(&mut told.story, now);
        // An answer may be heard after the end of the node that gave it.
        if let Some(node) = nodes.iter().find(|node| Some(&node.name) == told.story.owner.as_ref()) {
            told.story.node(node, *doing, now);
        }
        self.retell(&mut inner);
        done
    }

    /// Tells each visitor's pages what is to be said now, if that is something else than before.
    fn retell(&self, inner: &mut Inner) {
        let now = wall_ms();
        let Inner { nodes, durability, store, doing, armed, stories, .. } = inner;
        for (visitor, told) in stories {
            let (store, story) = (store != "none", &told.story);
            let said = tell(&Scene { now, nodes, durability, store, doing: *doing, armed: *armed, story });
            let text = told_of(story, nodes, &said);
            if text != told.text {
                self.send(Some(visitor.clone()), &text);
                told.text = text;
            }
        }
    }

    /// What this visitor's page is told first.
    pub(crate) fn story(&self, visitor: &str) -> Bytes {
        self.with(visitor, |_, _| {});
        let inner = self.inner.lock();
        let text = inner.stories.get(visitor).map(|told| told.text.clone()).unwrap_or_default();
        Bytes::from(format!("data: {text}\n\n"))
    }

    // ---- what all pages are told ----------------------------------------------------------------------------------------------------

    /// Sends what the shoppers saw since the last time; and time has passed for what visitors are told.
    pub(crate) fn send_dots(&self) {
        self.retell(&mut self.inner.lock());
        let text = {
            let mut tally = self.tally.lock();
            let dots = std::mem::take(&mut tally.fresh);
            json!({ "e": "dots", "now": wall_ms(), "dots": dots, "totals": &tally.totals, "named": &tally.named })
        };
        self.send(None, &text);
    }

    fn send(&self, visitor: Option<String>, text: &Value) {
        // Nobody may be listening.
        let _ = self.messages.send(Message { visitor, text: Bytes::from(format!("data: {text}\n\n")) });
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
                "durability": &inner.durability, "doing": inner.doing, "store": &inner.store,
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

/// What a page draws, and says.
fn told_of(story: &Story, nodes: &[Node], said: &Sentence) -> Value {
    let owner = story.owner.as_ref().filter(|owner| nodes.iter().any(|node| node.name == **owner && node.life == story.owner_life));
    let incident = story.incident.as_ref().map(|incident| json!({ "node": incident.node, "killed": incident.is_crash() }));
    json!({
        "e": "story", "sentence": said.sentence, "hint": said.hint, "owner": owner, "copies": story.copies,
        "version": story.book.version, "incident": incident,
    })
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
        let said =
            Said::Session { t: 5, key: "k".into(), what: Happening::Moved, with: vec!["A".into()], from: Some(From::Node("B".into())) };
        let text = serde_json::to_string(&said).unwrap();
        assert_eq!(text, r#"{"e":"session","t":5,"key":"k","what":"moved","with":["A"],"from":{"node":"B"}}"#);
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
        world.asked("me", "/shop/api/cart", None);
        let message = messages.recv().await.unwrap();
        assert_eq!(message.visitor.as_deref(), Some("me"));
    }

    #[test]
    fn a_visitor_too_many_makes_the_one_forgotten_who_was_away_longest() {
        let world = World::new(vec!["A".into()], "memory".into(), "owner".into(), None);
        for n in 0..2 * STORIES_MAX {
            world.asked(&n.to_string(), "/shop/api/cart", None);
        }
        assert_eq!(world.inner.lock().stories.len(), STORIES_MAX);
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
