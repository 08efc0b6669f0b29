//! What requests cost the network and the store, by the runtime's counters.

use crate::children::Redis;
use crate::cluster;
use crate::measure::Table;
use crate::subjects::{HEAVY, app};
use crate::visitors::Visitor;
use axum::Router;
use core::time::Duration;
use outlive::{Outlive, Stats};
use std::path::PathBuf;
use tower_service::Service as _;

const REQUESTS: usize = 4_000;
/// How long a node is watched that does nothing.
const IDLE: Duration = Duration::from_secs(2);

async fn drive(router: &Router, visitors: &mut [Visitor], path: &'static str, requests: usize) -> anyhow::Result<()> {
    let each = requests / visitors.len();
    let mut running = Vec::new();
    for visitor in visitors.iter_mut() {
        let (mut router, mut visitor) = (router.clone(), core::mem::take(visitor));
        running.push(tokio::spawn(async move {
            for _ in 0..each {
                let answer = router.call(visitor.request(path)).await.expect("axum answers");
                visitor.take(&answer);
            }
            visitor
        }));
    }
    for (task, visitor) in running.into_iter().zip(visitors) {
        *visitor = task.await?;
    }
    Ok(())
}

/// Nodes that know each other; the first of them serves.
async fn nodes(count: usize, store: &str) -> anyhow::Result<Vec<Outlive>> {
    let mut nodes: Vec<Outlive> = Vec::new();
    for n in 0..count {
        let join: Vec<String> = nodes.iter().map(Outlive::peer_addr).collect();
        nodes.push(cluster::node(&format!("n{n}"), "backup(1)", store, &join).await?);
    }
    for node in &nodes {
        cluster::know_each_other(node, count).await?;
    }
    Ok(nodes)
}

/// A folder of our own; it goes when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> std::io::Result<Scratch> {
        let folder = std::env::temp_dir().join(format!("outlive-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Scratch(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that stays in the temporary one does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Counted {
    sent: f64,
    received: f64,
    store: u64,
}

/// What the first node counted while `work` ran.
async fn counted(node: &Outlive, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<Counted> {
    let before = node.stats();
    work.await?;
    // What is still on its way to the links belongs to it.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let after = node.stats();
    let store = |s: &Stats| s.store_reads + s.store_writes;
    Ok(Counted {
        sent: (after.sent_bytes - before.sent_bytes) as f64,
        received: (after.received_bytes - before.received_bytes) as f64,
        store: store(&after) - store(&before),
    })
}

async fn commits(table: &mut Table, count: usize) -> anyhow::Result<()> {
    let nodes = nodes(count, "none").await?;
    let router = app(&nodes[0]);
    for (heavy, in_flight) in [(false, 1), (false, 64), (true, 1)] {
        let mut visitors = vec![Visitor::default(); in_flight];
        drive(&router, &mut visitors, "/begin", in_flight).await?;
        if heavy {
            drive(&router, &mut visitors, "/heavy", in_flight).await?;
        }
        // Every update of the measured ones sends the same: `n` as three bytes behind its codec.
        drive(&router, &mut visitors, "/update", 256 * in_flight).await?;
        let c = counted(&nodes[0], drive(&router, &mut visitors, "/update", REQUESTS)).await?;
        let size = if heavy { format!("{} KB", HEAVY / 1000) } else { "100 B".to_owned() };
        let cells =
            [size, in_flight.to_string(), format!("{:.1}", c.sent / REQUESTS as f64), format!("{:.1}", c.received / REQUESTS as f64)];
        table.row(format!("Outlive, {count} nodes: update"), &cells);
    }
    Ok(())
}

async fn reads() -> anyhow::Result<()> {
    let file = Scratch::new()?;
    let nodes = nodes(2, &format!("sqlite:{}", file.0.join("sessions.db").display())).await?;
    let router = app(&nodes[0]);
    let mut visitors = vec![Visitor::default(); 16];
    drive(&router, &mut visitors, "/begin", 16).await?;
    // The first commits reach the store a moment later.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = counted(&nodes[0], async {
        tokio::time::sleep(IDLE).await;
        Ok(())
    });
    let idle = idle.await?.sent / IDLE.as_secs_f64();
    let requests = 200_000;
    let start = crate::measure::now();
    let c = counted(&nodes[0], drive(&router, &mut visitors, "/read", requests)).await?;
    let seconds = start.elapsed().as_secs_f64();
    println!("### Requests that only read, at the session's owner\n");
    println!(
        "{requests} requests in {seconds:.2} s, two nodes and a store: {} store calls; {:.0} bytes to the other node, {:.0} more than the {:.0} bytes/s \
         that it sends when idle.\n",
        c.store,
        c.sent,
        c.sent - idle * seconds,
        idle
    );
    Ok(())
}

#[cfg(feature = "rivals")]
async fn redis_lines(table: &mut Table, redis: &Redis) -> anyhow::Result<()> {
    let router = crate::rivals::in_redis(redis.port).await?;
    for (path, what) in [("/update", "update"), ("/read", "get")] {
        for heavy in [false, true] {
            let mut visitors = vec![Visitor::default(); 1];
            drive(&router, &mut visitors, "/begin", 1).await?;
            if heavy {
                drive(&router, &mut visitors, "/heavy", 1).await?;
            }
            let before = redis.counted()?;
            drive(&router, &mut visitors, path, REQUESTS).await?;
            let after = redis.counted()?;
            let per = |at: usize| (after[at] - before[at]) as f64 / REQUESTS as f64;
            let size = if heavy { format!("{} KB", HEAVY / 1000) } else { "100 B".to_owned() };
            let cells = [size, "1".to_owned(), format!("{:.1}", per(1)), format!("{:.1}", per(2))];
            table.row(format!("tower-sessions, Redis: {what}, {:.2} commands", per(0)), &cells);
        }
    }
    Ok(())
}

/// The tables.
pub(crate) fn measure(redis: &Redis) -> anyhow::Result<()> {
    let runtime = crate::threads()?;
    runtime.block_on(async {
        let mut table = Table::new(&["bytes per request on the wire, without what TCP adds", "session", "in flight", "sent", "received"]);
        commits(&mut table, 2).await?;
        commits(&mut table, 3).await?;
        #[cfg(feature = "rivals")]
        redis_lines(&mut table, redis).await?;
        #[cfg(not(feature = "rivals"))]
        let _ = redis;
        println!("### Bytes per commit\n");
        table.print();
        println!("The change itself is 5 bytes: the name `n`, the codec, a number of three bytes.\n");
        reads().await
    })
}
