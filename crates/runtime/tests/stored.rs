//! Nodes with a store: they find each other through it, and sessions outlive all of them.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use common::*;
use outlive_core::config::{Config, Durability, Level};
use outlive_core::id::SessionKey;
use outlive_core::output::{Event, Source};
use outlive_core::wire::EndKind;
use outlive_runtime::{DrainReport, Node, NodeConfig, Open, Readiness};
use outlive_store::{Health, MemoryStore, Store};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

fn stored(name: &str, store: Arc<dyn Store>) -> NodeConfig {
    let mut config = config(name, &[]);
    config.store = Some(store);
    config
}

/// A directory that is removed with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("outlive-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    async fn open(&self) -> Arc<dyn Store> {
        outlive_store::open(&format!("sqlite:{}", self.0.join("s.db").display())).await.unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn nodes_that_share_a_store_find_each_other_and_their_sessions_outlive_them_all() {
    let scratch = Scratch::new("restart");
    let mut tips = Vec::new();
    {
        let first = Node::<()>::start(stored("n0", scratch.open().await)).await.unwrap();
        let second = Node::<()>::start(stored("n1", scratch.open().await)).await.unwrap();
        let nodes = [first, second];
        met(&nodes).await;
        for n in 0..10 {
            let at = nodes[usize::from(n) % 2].create(key(n)).unwrap();
            tips.push(append(&nodes[usize::from(n) % 2], &at, &[n]).await.unwrap().tip);
        }
        until("all is written", || {
            nodes.iter().all(|n| n.stats().engine.dirty == 0) && nodes[0].stats().store_writes + nodes[1].stats().store_writes >= 10
        })
        .await;
        for node in nodes {
            node.shutdown_now();
        }
    }
    let again = Node::<()>::start(stored("n0", scratch.open().await)).await.unwrap();
    for n in 0..10 {
        assert_eq!(read(&again, key(n), tips[usize::from(n)]).await, [n]);
    }
    assert!(again.end(key(3), None).await);
    assert_eq!(again.drain(LONG).await, DrainReport { abandoned: 0 });
    let last = Node::<()>::start(stored("n2", scratch.open().await)).await.unwrap();
    assert!(matches!(insist(&last, key(3), None).await, Open::Ended(EndKind::Invalidated, _)));
    assert_eq!(read(&last, key(4), tips[4]).await, [4]);
}

#[tokio::test]
async fn who_takes_a_session_over_says_where_its_state_came_from() {
    let store = MemoryStore::new();
    let start = async |name: &str| Node::<()>::start(stored(name, Arc::new(store.clone()))).await.unwrap();
    let nodes = [start("n0").await, start("n1").await, start("n2").await];
    met(&nodes).await;
    let source = async |node: &N, key, tip| {
        let mut events = node.subscribe_events();
        read(node, key, tip).await;
        loop {
            if let (moved, Event::Moved { source, .. }) = tokio::time::timeout(LONG, events.recv()).await.unwrap().unwrap()
                && moved == key
            {
                return source;
            }
        }
    };
    let keys: Vec<_> = (0..40).map(key).collect();
    let mut tips = Vec::new();
    for key in &keys {
        let at = nodes[0].create(*key).unwrap();
        tips.push(append(&nodes[0], &at, b"a").await.unwrap().tip);
        nodes[0].close(&at);
    }
    let held = |node: &N, key| nodes[0].info(key).unwrap().backups.contains(&node.me().life);
    let with = keys.iter().position(|key| held(&nodes[1], *key)).unwrap();
    let without = keys.iter().position(|key| !held(&nodes[1], *key)).unwrap();
    assert_eq!(source(&nodes[1], keys[with], tips[with]).await, Source::Copy);
    assert_eq!(source(&nodes[1], keys[without], tips[without]).await, Source::Node(nodes[0].me().life));
    until("all is written", || nodes.iter().all(|node| node.stats().engine.dirty == 0)).await;
    for node in &nodes {
        node.shutdown_now();
    }
    let last = start("n3").await;
    assert_eq!(source(&last, keys[with], tips[with]).await, Source::Store);
}

#[tokio::test]
async fn a_commit_at_the_store_is_there_when_it_is_answered() {
    let store = MemoryStore::new();
    let mut config = stored("n0", Arc::new(store.clone()));
    config.engine = Config { durability: Durability::Store, ..config.engine };
    let node = Node::<()>::start(config).await.unwrap();
    let at = node.create(key(1)).unwrap();
    let done = append(&node, &at, b"a").await.unwrap();
    assert_eq!(done.level, Level::Store);
    let rows = store.load(vec![key(1)]).await.unwrap();
    assert!(matches!(&rows[0], outlive_store::Loaded::Here(row) if Some(row.stamp) == done.stamp), "{rows:?}");
}

#[tokio::test]
async fn a_node_whose_store_is_away_is_fit_for_requests_unless_each_change_needs_the_store() {
    for durability in [Durability::Backup, Durability::Store] {
        let store = MemoryStore::new();
        let mut config = stored("n0", Arc::new(store.clone()));
        config.engine = Config { durability, ..config.engine };
        let node = Node::<()>::start(config).await.unwrap();
        assert_eq!((node.readiness().to_string().as_str(), node.readiness().is_fit()), ("ready", true));
        store.set_health(Health::Down);
        let mut n = 0;
        until("the node sees that the store is down", || {
            n += 1;
            let at = node.create(key(n % 200)).unwrap_or_else(|_| match node.open(key(n % 200), None) {
                outlive_runtime::Step::Ready(Ok(Open::Here(at))) => at,
                other => panic!("{other:?}"),
            });
            drop(append_now(&node, &at));
            node.readiness() != Readiness::Ready
        })
        .await;
        let (text, fit) = (node.readiness().to_string(), node.readiness().is_fit());
        let word = if durability == Durability::Store { "unavailable: " } else { "degraded: " };
        assert!(text.starts_with(word) && text.contains("the store cannot be written"), "{text}");
        assert_eq!(fit, durability == Durability::Backup, "{text}");
        node.shutdown_now();
    }
}

#[tokio::test]
async fn sessions_are_served_while_the_store_is_down_and_written_when_it_comes_back() {
    let store = MemoryStore::new();
    let node = Node::<()>::start(stored("n0", Arc::new(store.clone()))).await.unwrap();
    let mut tip = None;
    for health in [Health::Down, Health::Mute, Health::Broken] {
        store.set_health(health);
        // Each failed write counts; five in a row, and it is left alone.
        let mut n = 0;
        until("the node sees that the store is down", || {
            n += 1;
            let at = node.create(key(n % 200)).or_else(|_| match node.open(key(n % 200), None) {
                outlive_runtime::Step::Ready(Ok(Open::Here(at))) => Ok(at),
                _ => Err(()),
            });
            let Ok(at) = at else { return false };
            drop(append_now(&node, &at));
            matches!(node.readiness(), Readiness::Degraded { .. })
        })
        .await;
        let at = match open(&node, key(1), None).await {
            Ok(Open::Here(at)) => at,
            other => panic!("{other:?}"),
        };
        tip = append(&node, &at, b"x").await.unwrap().tip;
        store.set_health(Health::Up);
        until("the store is used again", || node.readiness() == Readiness::Ready && node.stats().engine.dirty == 0).await;
    }
    let written = || async {
        let rows = store.load(vec![key(1)]).await.unwrap();
        matches!(&rows[0], outlive_store::Loaded::Here(row) if Some(row.stamp) == tip)
    };
    let deadline = tokio::time::Instant::now() + LONG;
    while !written().await {
        assert!(tokio::time::Instant::now() < deadline, "{tip:?} is not in the store");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(node.drain(LONG).await, DrainReport { abandoned: 0 });
}

/// Appends without waiting for the answer.
fn append_now(node: &N, at: &outlive_runtime::Opened<()>) -> outlive_runtime::Commit {
    let change = node.read(at, |record, _| {
        let old = record.get("log");
        let mut bytes = old.map(|a| a.value.to_vec()).unwrap_or_default();
        bytes.push(b'x');
        outlive_core::record::Change { name: "log".into(), base: old.map(|a| a.dot).into(), value: Some(bytes.into()) }
    });
    let commit = node.commit(at, &[change.unwrap()]);
    node.close(at);
    commit
}

/// Ends all nodes and starts one again, after a visitor who changed something twice and then only read for longer than the timeout.
async fn who_only_reads(in_order: bool) {
    let scratch = Scratch::new(if in_order { "reads-drained" } else { "reads-killed" });
    let idle = Duration::from_secs(3);
    let start = async |name| {
        let mut config = stored(name, scratch.open().await);
        config.engine.limits.idle = idle;
        Node::<()>::start(config).await.unwrap()
    };
    let nodes = [start("n0").await, start("n1").await];
    met(&nodes).await;
    let at = nodes[0].create(key(1)).unwrap();
    append(&nodes[0], &at, b"a").await.unwrap();
    let Open::Here(at) = insist(&nodes[0], key(1), None).await else { panic!("it is here") };
    let tip = append(&nodes[0], &at, b"b").await.unwrap().tip;
    let begun = tokio::time::Instant::now();
    until("it was read for twice the timeout", || {
        if let outlive_runtime::Step::Ready(Ok(Open::Here(at))) = nodes[0].open(key(1), None) {
            nodes[0].close(&at);
        }
        begun.elapsed() > idle * 2
    })
    .await;
    for node in nodes {
        if in_order {
            assert_eq!(node.drain(LONG).await, DrainReport { abandoned: 0 });
        } else {
            node.shutdown_now();
        }
    }
    let rows = scratch.open().await.load(vec![key(1)]).await.unwrap();
    assert!(matches!(&rows[0], outlive_store::Loaded::Here(row) if row.touched + idle < row.age), "the store knows of the reads: {rows:?}");
    // On a slow machine the restart takes longer than the timeout: the client's token says that the session is alive.
    let again = start("n0").await;
    assert_eq!(read(&again, key(1), tip).await, b"ab");
}

#[tokio::test]
async fn who_only_reads_survives_the_kill_of_all_nodes() {
    who_only_reads(false).await;
}

#[tokio::test]
async fn who_only_reads_survives_an_orderly_end_of_all_nodes() {
    who_only_reads(true).await;
}

#[tokio::test]
async fn nodes_with_other_idle_timeouts_agree_on_each_session() {
    let store = MemoryStore::new();
    let start = async |name, seconds| {
        let mut config = stored(name, Arc::new(store.clone()));
        config.engine.limits.idle = Duration::from_secs(seconds);
        Node::<()>::start(config).await
    };
    let short = start("n0", 1).await.unwrap();
    let at = short.create(key(1)).unwrap();
    let tip = append(&short, &at, b"a").await.unwrap().tip;
    let Open::Here(at) = insist(&short, key(1), tip).await else { panic!("it is here") };
    let step = at.deadline().1;
    short.close(&at);
    assert_eq!(short.drain(LONG).await, DrainReport { abandoned: 0 });
    let long = start("n1", 1800).await.unwrap();
    let Open::Here(at) = insist(&long, key(1), tip).await else { panic!("it is here") };
    assert_eq!(at.deadline().1, step, "it lives as long as where it was born");
    long.close(&at);
}

#[tokio::test]
async fn rows_of_visitors_who_never_came_back_are_over_after_6_minutes() {
    const BOTS: usize = 80_000;
    let store = MemoryStore::new();
    let node = Node::<()>::start(stored("n0", Arc::new(store.clone()))).await.unwrap();
    for n in 0..BOTS {
        let key = SessionKey::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes().first_chunk().unwrap());
        let at = node.create(key).unwrap();
        drop(append_now(&node, &at));
    }
    until("all are written", || node.stats().engine.dirty == 0 && node.stats().store_writes >= BOTS as u64).await;
    let rows = async || {
        let mut swept = 0;
        loop {
            let step = store.sweep(4096).await.unwrap();
            swept += step.sessions.len();
            if !step.more {
                return swept;
            }
        }
    };
    store.advance(Duration::from_secs(300));
    assert_eq!(rows().await, 0, "they may still come back");
    store.advance(Duration::from_secs(61));
    let swept = rows().await;
    assert_eq!(swept, BOTS, "nobody came back");
}
