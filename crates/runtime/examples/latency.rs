//! What a commit costs: one at a time, and many at once, on nodes in this process over loopback.
//!
//! `cargo run --release -p outlive-runtime --example latency [NODES] [SECONDS]`

#![expect(clippy::unwrap_used, reason = "a measurement that fails says so")]

use bytes::Bytes;
use core::time::Duration;
use outlive_core::config::{Config, Durability};
use outlive_core::id::SessionKey;
use outlive_core::record::{Base, Change};
use outlive_runtime::{Node, NodeConfig, Open, Step};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

fn key(n: u64) -> SessionKey {
    SessionKey::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes().first_chunk().unwrap())
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// One request: open, read, change 8 bytes, commit, wait, close.
async fn request(node: &Node<()>, key: SessionKey, value: u64) {
    let Open::Here(at) = node.open(key, None).answer().await.unwrap() else { panic!("it moved") };
    let base = node.read(&at, |record, _| record.get("n").map(|a| a.dot)).unwrap();
    let change = Change { name: "n".into(), base: base.into(), value: Some(Bytes::copy_from_slice(&value.to_be_bytes())) };
    node.commit(&at, &[change]).done().await.unwrap();
    node.close(&at);
}

async fn nodes(count: usize, durability: Durability) -> Vec<Node<()>> {
    let mut nodes: Vec<Node<()>> = Vec::new();
    for i in 0..count {
        let mut config = NodeConfig::default();
        config.name = Some(format!("n{i}"));
        config.join = nodes.iter().map(|n| n.me().addr.parse().unwrap()).collect();
        config.engine = Config { durability, ..Config::default() };
        nodes.push(Node::start(config).await.unwrap());
    }
    while nodes.iter().any(|n| n.stats().engine.members != count as u64) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    nodes
}

async fn one_at_a_time(name: &str, node: &Node<()>) {
    let mut times = Vec::new();
    let at = node.create(key(0)).unwrap();
    node.close(&at);
    let at = node.create(key(0)).unwrap();
    let change = Change { name: "n".into(), base: Base::Absent, value: Some(Bytes::from_static(b"00000000")) };
    node.commit(&at, &[change]).done().await.unwrap();
    node.close(&at);
    for i in 0..20_000 {
        let start = now();
        request(node, key(0), i).await;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    println!("{name}: one at a time: median {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
}

async fn many(name: &str, node: &Node<()>, from: u64, tasks: u64, seconds: u64) {
    let count = Arc::new(AtomicU64::new(0));
    let until = now() + Duration::from_secs(seconds);
    let mut running = Vec::new();
    for t in 0..tasks {
        let (node, count) = (node.clone(), count.clone());
        running.push(tokio::spawn(async move {
            let at = node.create(key(from + t)).unwrap();
            let change = Change { name: "n".into(), base: Base::Absent, value: Some(Bytes::from_static(b"00000000")) };
            node.commit(&at, &[change]).done().await.unwrap();
            node.close(&at);
            let mut i = 0;
            while now() < until {
                request(&node, key(from + t), i).await;
                count.fetch_add(1, Ordering::Relaxed);
                i += 1;
            }
        }));
    }
    for task in running {
        task.await.unwrap();
    }
    println!("{name}: {tasks} tasks: {} commits/s", count.load(Ordering::Relaxed) / seconds);
}

async fn reads(name: &str, node: &Node<()>) {
    let count = 1_000_000;
    let start = now();
    for _ in 0..count {
        let Step::Ready(Ok(Open::Here(at))) = node.open(key(0), None) else { panic!("it moved") };
        node.finish_read(&at).done().await.unwrap();
        node.close(&at);
    }
    println!("{name}: a request that only reads: {:?}", start.elapsed() / count);
}

#[tokio::main(flavor = "multi_thread")]
async fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>().unwrap());
    let (count, seconds) = (args.next().unwrap_or(2) as usize, args.next().unwrap_or(3));
    let alone = Node::alone(NodeConfig::default()).unwrap();
    one_at_a_time("alone", &alone).await;
    reads("alone", &alone).await;
    many("alone", &alone, 1_000, 64, seconds).await;
    for durability in [Durability::Owner, Durability::Backup] {
        let nodes = nodes(count, durability).await;
        let name = format!("{count} nodes, {durability:?}");
        one_at_a_time(&name, &nodes[0]).await;
        reads(&name, &nodes[0]).await;
        for (from, tasks) in [(1_000, 8), (2_000, 64), (3_000, 512)] {
            many(&name, &nodes[0], from, tasks, seconds).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
