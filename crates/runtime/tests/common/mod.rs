//! A few nodes in one process, over real sockets.

#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use bytes::Bytes;
use outlive_core::Brought;
use outlive_core::config::Config;
use outlive_core::id::SessionKey;
use outlive_core::member::State;
use outlive_core::record::Change;
use outlive_core::stamp::Stamp;
use outlive_runtime::{CommitFailure, Committed, Node, NodeConfig, Open, OpenFailure, Opened};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span;

pub type N = Node<()>;

/// Longer than anything here takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

/// The configuration of a test's node.
pub fn config(name: &str, join: &[String]) -> NodeConfig {
    let mut config = NodeConfig::default();
    config.name = Some(name.to_owned());
    config.join = join.iter().map(|addr| addr.parse().unwrap()).collect();
    config.engine = Config { shards: 4, ..Config::default() };
    config
}

pub fn addr(node: &N) -> String {
    node.me().addr.to_string()
}

/// Nodes `n0`, `n1`, … that know each other.
pub async fn cluster(n: usize) -> Vec<N> {
    let mut nodes: Vec<N> = Vec::new();
    for i in 0..n {
        let join: Vec<String> = nodes.iter().map(addr).collect();
        nodes.push(Node::start(config(&format!("n{i}"), &join)).await.unwrap());
    }
    met(&nodes).await;
    nodes
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "in {LONG:?} it did not come about that {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

pub fn alive(node: &N) -> usize {
    node.members().iter().filter(|m| m.state == State::Alive && (m.linked || m.node.life == node.me().life)).count()
}

/// Waits until each of these nodes has a link to each.
pub async fn met(nodes: &[N]) {
    until("all know all", || nodes.iter().all(|n| alive(n) == nodes.len() && n.stats().engine.members == nodes.len() as u64)).await;
}

pub fn key(n: u8) -> SessionKey {
    let mut bytes = *blake3::hash(&[n]).as_bytes();
    bytes[15] = n;
    SessionKey::from_bytes(*bytes.first_chunk().unwrap())
}

/// Opens until it is there or for good not there.
pub async fn open(node: &N, key: SessionKey, token: Option<Stamp>) -> Result<Open<()>, OpenFailure> {
    node.open(key, token.map(|stamp| Brought { stamp, expired: false })).answer().await
}

/// Opens, and comes again as often as that is asked for.
pub async fn insist(node: &N, key: SessionKey, token: Option<Stamp>) -> Open<()> {
    let deadline = tokio::time::Instant::now() + LONG;
    loop {
        match open(node, key, token).await {
            Ok(open) => return open,
            Err(failure) => {
                assert!(tokio::time::Instant::now() < deadline, "{failure:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// What the attribute `log` holds.
pub fn log(node: &N, at: &Opened<()>) -> Option<Vec<u8>> {
    node.read(at, |record, _| record.get("log").map(|a| a.value.to_vec()).unwrap_or_default())
}

/// Appends to the attribute `log`, and closes.
pub async fn append(node: &N, at: &Opened<()>, value: &[u8]) -> Result<Committed, CommitFailure> {
    let change = node.read(at, |record, _| {
        let old = record.get("log");
        let mut bytes = old.map(|a| a.value.to_vec()).unwrap_or_default();
        bytes.extend(value);
        Change { name: "log".into(), base: old.map(|a| a.dot).into(), value: Some(Bytes::from(bytes)) }
    });
    let Some(change) = change else {
        node.close(at);
        return Err(CommitFailure::Conflict);
    };
    let commit = node.commit(at, &[change]);
    node.close(at);
    commit.done().await
}

/// The `log` of a session, opened with this token.
pub async fn read(node: &N, key: SessionKey, token: Option<Stamp>) -> Vec<u8> {
    loop {
        match insist(node, key, token).await {
            Open::Here(at) => {
                let log = log(node, &at);
                node.close(&at);
                if let Some(log) = log {
                    return log;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The lines of a test's own thread.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub fn lines(&self, part: &str) -> Vec<String> {
        self.0.lock().unwrap().iter().filter(|line| line.contains(part)).cloned().collect()
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        span::Id::from_u64(COUNT.fetch_add(1, Ordering::Relaxed))
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn core::fmt::Debug) {
                self.0.push_str(&format!("{field}={value:?} "));
            }
        }
        let mut text = Text(format!("{} ", event.metadata().level()));
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
