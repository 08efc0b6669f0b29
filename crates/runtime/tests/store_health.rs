//! What a node does while its store cannot be written, cannot be read, is not there, or has forgotten.
//!
//! A full disk made 45,000 log lines and 11 s of processor time in 10 s, a lock was seen by nobody, and a node that started meanwhile was
//! a "ready" cluster of its own: reads that worked cleared what writes had found, and a write whose result is unknown was repeated at once.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use common::*;
use outlive_runtime::{Node, NodeConfig, Open, Readiness, StoreHealth};
use outlive_store::{Health, Loaded, MemoryStore, Store};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn stored(name: &str, store: &MemoryStore) -> NodeConfig {
    let mut config = config(name, &[]);
    config.store = Some(Arc::new(store.clone()));
    config
}

async fn node(name: &str, store: &MemoryStore) -> N {
    Node::start(stored(name, store)).await.unwrap()
}

fn health(node: &N) -> StoreHealth {
    match node.readiness() {
        Readiness::Degraded { store, .. } | Readiness::NoStore(store) => store,
        _ => StoreHealth::Ok,
    }
}

async fn in_store(store: &MemoryStore, n: u8) -> Loaded {
    store.load(vec![key(n)]).await.unwrap().remove(0)
}

async fn written(store: &MemoryStore, node: &N, n: u8) {
    until("all is written", || node.stats().engine.dirty == 0).await;
    assert!(matches!(in_store(store, n).await, Loaded::Here(_)), "{n}");
}

#[expect(clippy::disallowed_methods, reason = "a test that measures how long something waited")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn a_full_disk_is_degraded_at_once_and_said_once_and_tried_ever_more_rarely() {
    let log = Log::default();
    let _log = tracing::subscriber::set_default(log.clone());
    let store = MemoryStore::new();
    let node = node("n0", &store).await;
    until("it serves", || node.readiness() == Readiness::Ready).await;
    store.set_health(Health::Full);
    let at = node.create(key(1)).unwrap();
    let begin = now();
    append(&node, &at, b"a").await.unwrap();
    until("the node sees it", || health(&node) == StoreHealth::CannotBeWritten).await;
    until("it has tried some more", || node.stats().store_failures >= 8).await;
    // The pauses alone; a slow machine makes it longer.
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(node.stats().engine.dirty > 0 && health(&node) == StoreHealth::CannotBeWritten, "reads do not clear it");
    assert_eq!(log.lines("the store cannot be written").len(), 1, "{:?}", log.lines(""));
    assert!(log.lines("the store cannot be written")[0].contains("told to be full"), "{:?}", log.lines(""));
    store.set_health(Health::Up);
    written(&store, &node, 1).await;
    until("it is well", || node.readiness() == Readiness::Ready).await;
    assert_eq!(log.lines("can be read and written again").len(), 1);
    assert_eq!(log.lines("ERROR").len(), 1, "{:?}", log.lines("ERROR"));
}

#[tokio::test]
async fn whoever_has_nothing_to_write_sees_a_full_disk_too() {
    let store = MemoryStore::new();
    let node = node("n0", &store).await;
    store.set_health(Health::Full);
    until("the node sees it", || health(&node) == StoreHealth::CannotBeWritten).await;
    store.set_health(Health::Up);
    until("it is well", || node.readiness() == Readiness::Ready).await;
}

#[tokio::test]
async fn a_lock_that_another_program_holds_is_seen_and_what_waits_is_counted() {
    let store = MemoryStore::new();
    let node = node("n0", &store).await;
    store.set_health(Health::Stuck);
    for n in 1..=3 {
        let at = node.create(key(n)).unwrap();
        append(&node, &at, b"a").await.unwrap();
    }
    assert_eq!(node.stats().engine.dirty, 3, "from the first moment on");
    until("the node sees it", || {
        assert_eq!(node.stats().engine.dirty, 3, "while writes are on their way, and between them");
        health(&node) == StoreHealth::CannotBeWritten
    })
    .await;
    assert!(node.stats().engine.dirty_age > Duration::from_secs(1), "{:?}", node.stats().engine.dirty_age);
    store.set_health(Health::Up);
    for n in 1..=3 {
        written(&store, &node, n).await;
    }
    until("it is well", || node.readiness() == Readiness::Ready).await;
}

#[tokio::test]
async fn whoever_cannot_announce_itself_begins_no_cluster() {
    let log = Log::default();
    let _log = tracing::subscriber::set_default(log.clone());
    for (n, ill) in [Health::Full, Health::Stuck].into_iter().enumerate() {
        let store = MemoryStore::new();
        store.secret([7; 32]).await.unwrap();
        store.set_health(ill);
        let node = node("n0", &store).await;
        assert_eq!(node.readiness(), Readiness::Forming(None), "{ill:?}");
        until("it says why", || log.lines("does not begin a cluster of its own").len() == n + 1).await;
        assert_eq!(node.readiness(), Readiness::Forming(None), "{ill:?}");
        store.set_health(Health::Up);
        until("it begins", || node.readiness() == Readiness::Ready).await;
    }
    assert_eq!(log.lines("does not begin a cluster of its own").len(), 2);
}

#[tokio::test]
async fn whoever_comes_while_nobody_can_write_finds_those_whose_rows_have_lapsed() {
    for (ill, lapsed) in [(Health::Full, 0), (Health::Full, 65), (Health::Stuck, 65), (Health::Up, 65)] {
        let store = MemoryStore::new();
        let first = node("n0", &store).await;
        until("it serves", || first.readiness() == Readiness::Ready).await;
        store.set_health(ill);
        store.advance(Duration::from_secs(lapsed));
        let second = node("n1", &store).await;
        met(&[first, second]).await;
    }
}

#[tokio::test]
async fn rows_of_the_dead_keep_nobody_from_beginning_anew() {
    let store = MemoryStore::new();
    let first = node("n0", &store).await;
    until("it serves", || first.readiness() == Readiness::Ready).await;
    first.shutdown_now();
    let again = node("n0", &store).await;
    until("it serves", || again.readiness() == Readiness::Ready).await;
}

#[tokio::test]
async fn a_store_that_was_gone_gets_all_that_it_lacks_when_it_is_back() {
    let log = Log::default();
    let _log = tracing::subscriber::set_default(log.clone());
    let store = MemoryStore::new();
    let nodes = [node("n0", &store).await, node("n1", &store).await];
    met(&nodes).await;
    for n in 1..=20 {
        let at = nodes[usize::from(n) % 2].create(key(n)).unwrap();
        append(&nodes[usize::from(n) % 2], &at, b"a").await.unwrap();
    }
    assert!(nodes[0].end(key(20), None).await);
    until("all is written", || nodes.iter().all(|n| n.stats().engine.dirty == 0)).await;
    store.set_health(Health::Gone);
    until("they see it", || nodes.iter().all(|n| health(n) == StoreHealth::Gone)).await;
    // Sessions go on, and wait in the queue.
    let mut tips = Vec::new();
    for n in 1..=19 {
        let node = &nodes[usize::from(n) % 2];
        let Ok(Open::Here(at)) = open(node, key(n), None).await else { panic!("it is owned here") };
        tips.push(append(node, &at, b"b").await.unwrap().tip);
    }
    // They have been tried, and are in the queue again while the writer pauses.
    until("it was tried", || nodes.iter().all(|n| n.stats().store_failures >= 12)).await;
    // What comes back is an older copy.
    store.forget();
    store.set_health(Health::Up);
    until("they see it", || nodes.iter().all(|n| n.readiness() == Readiness::Ready && n.stats().store_forgot > 0)).await;
    all_in_store(&store, &nodes).await;
    for (n, tip) in (1..=19).zip(tips) {
        let Loaded::Here(row) = in_store(&store, n).await else { panic!("it is there") };
        assert_eq!(Some(row.stamp), tip, "{n}: what was changed meanwhile is there, too");
    }
    let (gone, forgot) = (log.lines("ERROR"), log.lines("may have forgotten"));
    assert!(gone.len() == 2 && gone.iter().all(|line| line.contains("the store is not where it was")), "{gone:?}");
    assert!(forgot.len() >= 2, "{forgot:?}");
}

#[tokio::test]
async fn an_older_copy_of_the_store_that_was_restored_under_running_nodes_gets_all_that_it_lacks() {
    let store = MemoryStore::new();
    let nodes = [node("n0", &store).await, node("n1", &store).await];
    met(&nodes).await;
    for n in 1..=20 {
        let at = nodes[usize::from(n) % 2].create(key(n)).unwrap();
        append(&nodes[usize::from(n) % 2], &at, b"a").await.unwrap();
    }
    assert!(nodes[0].end(key(20), None).await);
    until("all is written", || nodes.iter().all(|n| n.stats().engine.dirty == 0)).await;
    // No call fails.
    store.forget();
    until("they see it", || nodes.iter().all(|n| n.stats().store_forgot > 0)).await;
    all_in_store(&store, &nodes).await;
    assert!(nodes.iter().all(|n| n.readiness() == Readiness::Ready));
}

/// Sessions 1 to 19 are there, and 20 is ended.
async fn all_in_store(store: &MemoryStore, nodes: &[N]) {
    let deadline = now() + LONG;
    loop {
        let loaded = store.load((1..=20).map(key).collect()).await.unwrap();
        let (ended, here) = loaded.split_last().unwrap();
        if here.iter().all(|l| matches!(l, Loaded::Here(_))) && matches!(ended, Loaded::Ended(_)) {
            break;
        }
        assert!(now() < deadline, "{loaded:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until("nothing waits", || nodes.iter().all(|n| n.stats().engine.dirty == 0)).await;
}
