//! Many requests at once, and one at a time, where other processes have a say: a backup, or Redis.

use crate::children::{AppNode, Redis};
use crate::cluster;
use crate::measure::{Rounds, Table, cpu_of, micros, now, process_cpu};
use crate::subjects::app;
use crate::visitors::Visitor;
use axum::Router;
use core::time::Duration;
use outlive::{Committed, Level, Outlive};
use tower_service::Service as _;

/// Requests of one measurement.
const REQUESTS: usize = 8_000;
const IN_FLIGHT: [usize; 2] = [1, 64];

struct Contender {
    name: &'static str,
    router: Router,
    /// The other process that takes part.
    other: Option<u32>,
    visitors: Vec<Visitor>,
}

/// What one measurement gave.
#[derive(Default)]
struct Figures {
    per_second: Rounds,
    cpu: Rounds,
    median: Rounds,
    p99: Rounds,
}

async fn call(router: &mut Router, visitor: &mut Visitor, path: &'static str) -> axum::response::Response {
    let answer = router.call(visitor.request(path)).await.expect("axum answers");
    visitor.take(&answer);
    answer
}

impl Contender {
    async fn new(name: &'static str, mut router: Router, other: Option<u32>) -> Contender {
        let mut visitors = vec![Visitor::default(); IN_FLIGHT[1]];
        for visitor in &mut visitors {
            call(&mut router, visitor, "/begin").await;
        }
        Contender { name, router, other, visitors }
    }

    async fn run(&mut self, path: &'static str, in_flight: usize, figures: &mut Figures) -> anyhow::Result<()> {
        let cpu = || process_cpu() + self.other.map_or(Duration::ZERO, cpu_of);
        let each = REQUESTS / in_flight;
        let (cpu_before, start) = (cpu(), now());
        let mut running = Vec::new();
        for mut visitor in self.visitors.drain(..in_flight) {
            let mut router = self.router.clone();
            running.push(tokio::spawn(async move {
                let mut times = Vec::with_capacity(each);
                for _ in 0..each {
                    let start = now();
                    call(&mut router, &mut visitor, path).await;
                    times.push(micros(start.elapsed()));
                }
                (visitor, times)
            }));
        }
        let (mut times, mut visitors) = (Rounds::default(), Vec::new());
        for task in running {
            let (visitor, taken) = task.await?;
            visitors.push(visitor);
            times.extend(taken);
        }
        let (wall, cpu) = (start.elapsed(), cpu() - cpu_before);
        self.visitors.append(&mut visitors);
        let requests = (each * in_flight) as f64;
        figures.per_second.push(requests / wall.as_secs_f64());
        figures.cpu.push(micros(cpu) / requests);
        figures.median.push(times.median());
        figures.p99.push(times.quantile(0.99));
        Ok(())
    }
}

/// A node whose commits wait for one other process.
async fn backed() -> anyhow::Result<(Outlive, AppNode)> {
    let outlive = cluster::node("bench", "backup(1)", "none", &[]).await?;
    let backup = AppNode::start("backup", "backup(1)", &[outlive.peer_addr()])?;
    cluster::know_each_other(&outlive, 2).await?;
    let until = now() + Duration::from_secs(30);
    let mut router = app(&outlive);
    loop {
        let answer = call(&mut router, &mut Visitor::default(), "/begin").await;
        if answer.extensions().get::<Committed>().is_some_and(|c| c.level == Level::Backup(1)) {
            return Ok((outlive, backup));
        }
        anyhow::ensure!(now() < until, "commits do not reach the backup");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The table.
pub(crate) fn measure(rounds: usize, redis: &Redis) -> anyhow::Result<()> {
    let runtime = crate::threads()?;
    runtime.block_on(async {
        let alone = cluster::node("alone", "owner", "none", &[]).await?;
        let (outlive, backup) = backed().await?;
        #[cfg_attr(not(feature = "rivals"), expect(clippy::useless_vec, reason = "rivals are added"))]
        let mut contenders = vec![
            Contender::new("Outlive, `owner`", app(&alone), None).await,
            Contender::new("Outlive, `backup(1)` in another process", app(&outlive), Some(backup.process.pid())).await,
        ];
        #[cfg(feature = "rivals")]
        {
            contenders.push(Contender::new("tower-sessions, in memory", crate::rivals::in_memory(), None).await);
            let store = crate::rivals::in_redis(redis.port).await?;
            contenders.push(Contender::new("tower-sessions, Redis", store, Some(redis.process.pid())).await);
        }
        println!("### Requests through axum, other processes on the same cores\n");
        let mut bare = Rounds::default();
        let mut table =
            Table::new(&["handler, contender", "in flight", "requests/s", "spread", "of Redis", "CPU µs", "median µs", "p99 µs"]);
        for (path, what) in [("/update", "get, update"), ("/read", "get")] {
            for in_flight in IN_FLIGHT {
                let mut figures: Vec<Figures> = contenders.iter().map(|_| Figures::default()).collect();
                for round in 0..=rounds {
                    for place in 0..contenders.len() {
                        let at = (place + round) % contenders.len();
                        let mut warm_up = Figures::default();
                        let into = if round == 0 { &mut warm_up } else { &mut figures[at] };
                        contenders[at].run(path, in_flight, into).await?;
                    }
                    bare.push(micros(redis.round_trip()?));
                }
                let last = figures.len() - 1;
                for (contender, f) in contenders.iter().zip(&figures) {
                    let ratio = f.per_second.with(&figures[last].per_second, |ours, theirs| ours / theirs);
                    let ratio = if cfg!(feature = "rivals") { format!("{:.2}", ratio.median()) } else { String::new() };
                    let cells = [
                        in_flight.to_string(),
                        format!("{:.0}", f.per_second.median()),
                        format!("{:.0} %", f.per_second.spread()),
                        ratio,
                        format!("{:.1}", f.cpu.median()),
                        format!("{:.1}", f.median.median()),
                        format!("{:.0}", f.p99.median()),
                    ];
                    table.row(format!("{what}: {}", contender.name), &cells);
                }
            }
        }
        table.print();
        println!("CPU: this process and the other one. A bare exchange with another process over loopback took {:.1} µs.\n", bare.median());
        Ok(())
    })
}
