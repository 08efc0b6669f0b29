//! Appends from several clients at several nodes while nodes are killed and started again: no acknowledged one is missing.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use common::*;
use outlive_core::id::SessionKey;
use outlive_core::stamp::Stamp;
use outlive_runtime::{CommitFailure, Node, Open};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SESSIONS: u8 = 6;
const CLIENTS: usize = 2;

/// What all clients of the test share.
struct World {
    nodes: Mutex<Vec<N>>,
    drawn: AtomicU32,
    stop: AtomicBool,
    acked: AtomicU32,
    unknown: AtomicU32,
}

impl World {
    fn node(&self, n: u32) -> N {
        let nodes = self.nodes.lock().unwrap();
        nodes[n as usize % nodes.len()].clone()
    }

    fn draw(&self) -> u32 {
        self.drawn.fetch_add(1, Ordering::Relaxed)
    }
}

/// One append at one node; the newest commit that the client has seen.
async fn append_at(node: &N, key: SessionKey, token: Option<Stamp>, value: u32) -> Option<Result<Option<Stamp>, CommitFailure>> {
    match open(node, key, token).await {
        Ok(Open::Here(at)) => Some(append(node, &at, &value.to_be_bytes()).await.map(|c| c.tip)),
        Ok(Open::NotFound | Open::Ended(..)) => panic!("session {key:?} is gone at {}", node.me().name),
        Err(_) => None,
    }
}

/// Appends one value after the other, each at another node, and returns those that were acknowledged.
async fn client(world: Arc<World>, key: SessionKey, mut token: Option<Stamp>, seed: u32) -> (Vec<u32>, Vec<u32>) {
    let (mut acked, mut unknown) = (Vec::new(), Vec::new());
    let mut turn = seed;
    while !world.stop.load(Ordering::Relaxed) {
        let value = world.draw();
        // Three requests at one node, then at the next: sessions move.
        turn += 1;
        match append_at(&world.node(turn / 3), key, token, value).await {
            Some(Ok(tip)) => {
                acked.push(value);
                world.acked.fetch_add(1, Ordering::Relaxed);
                token = tip.or(token);
            }
            Some(Err(CommitFailure::Unknown)) => {
                unknown.push(value);
                world.unknown.fetch_add(1, Ordering::Relaxed);
            }
            // Nothing was kept of it; what is there all the same is found to be strange.
            Some(Err(CommitFailure::Conflict | CommitFailure::Dead)) => {}
            Some(Err(other)) => panic!("{other}"),
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    (acked, unknown)
}

/// All sessions have an owner with a copy elsewhere.
async fn replicated(world: &World) {
    let nodes = world.nodes.lock().unwrap().clone();
    met(&nodes).await;
    until("every session has an owner and a copy", || {
        (0..SESSIONS).all(|s| nodes.iter().any(|n| n.info(key(s)).is_some_and(|i| i.owned && !i.backups.is_empty())))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_append_is_missing_after_kills() {
    let nodes = cluster(3).await;
    let mut tokens = Vec::new();
    for s in 0..SESSIONS {
        let at = nodes[usize::from(s) % 3].create(key(s)).unwrap();
        tokens.push(append(&nodes[usize::from(s) % 3], &at, &u32::MAX.to_be_bytes()).await.unwrap().tip);
    }
    let world = Arc::new(World {
        nodes: Mutex::new(nodes),
        drawn: AtomicU32::new(0),
        stop: AtomicBool::new(false),
        acked: AtomicU32::new(0),
        unknown: AtomicU32::new(0),
    });
    let mut clients = Vec::new();
    for s in 0..SESSIONS {
        for c in 0..CLIENTS {
            clients.push((s, tokio::spawn(client(world.clone(), key(s), tokens[usize::from(s)], (usize::from(s) + c) as u32))));
        }
    }
    for round in 0..6_usize {
        replicated(&world).await;
        let before = world.acked.load(Ordering::Relaxed);
        until("clients get on", || world.acked.load(Ordering::Relaxed) > before + 100).await;
        let victim = (round * 7) % 3;
        let (name, join) = {
            let nodes = world.nodes.lock().unwrap();
            nodes[victim].shutdown_now();
            (format!("n{victim}"), nodes.iter().map(addr).collect::<Vec<_>>())
        };
        let before = world.acked.load(Ordering::Relaxed);
        until("clients get on without it", || world.acked.load(Ordering::Relaxed) > before + 100).await;
        let reborn = Node::start(config(&name, &join)).await.unwrap();
        world.nodes.lock().unwrap()[victim] = reborn;
    }
    replicated(&world).await;
    world.stop.store(true, Ordering::Relaxed);
    let mut acked = vec![BTreeSet::from([u32::MAX]); usize::from(SESSIONS)];
    let mut unknown = vec![BTreeSet::new(); usize::from(SESSIONS)];
    for (s, client) in clients {
        let (a, u) = client.await.unwrap();
        acked[usize::from(s)].extend(a);
        unknown[usize::from(s)].extend(u);
    }
    println!("{} acknowledged, {} unknown", world.acked.load(Ordering::Relaxed), world.unknown.load(Ordering::Relaxed));
    let nodes = world.nodes.lock().unwrap().clone();
    for s in 0..SESSIONS {
        for node in &nodes {
            let log = read(node, key(s), None).await;
            let there: Vec<u32> = log.chunks(4).map(|v| u32::from_be_bytes(v.try_into().unwrap())).collect();
            let set: BTreeSet<u32> = there.iter().copied().collect();
            assert_eq!(set.len(), there.len(), "session {s}: a value twice");
            let (acked, unknown) = (&acked[usize::from(s)], &unknown[usize::from(s)]);
            let missing: Vec<_> = acked.difference(&set).collect();
            assert!(missing.is_empty(), "session {s} at {}: {missing:?} of {} are missing", node.me().name, acked.len());
            let strange: Vec<_> = set.iter().filter(|v| !acked.contains(v) && !unknown.contains(v)).collect();
            assert!(strange.is_empty(), "session {s}: {strange:?} were refused and are there");
        }
    }
}
