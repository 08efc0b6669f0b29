//! `outlive-bench outage`: what one node's end is for those behind a balancer, at size. A killed node and a drained one must each be no
//! more than that: the survivors copy tens of thousands of sessions, and are asked for requests and health all the while.

mod balancer;

use crate::chaos::browser::{Answer, Connections, Jar, NoAnswer, connections, exchange, look};
use crate::chaos::nodes::{Process, free_ports};
use anyhow::Context as _;
use balancer::Balancer;
use core::time::Duration;
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg32;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Which of them is killed, and which is asked to leave.
const KILLED: usize = 1;
const DRAINED: usize = 2;
/// Connections that make sessions, for each node.
const MAKERS: usize = 8;
/// One session of so many is used while nodes end.
const SAMPLE: usize = 20;
/// Whatever is waited for must have come by then.
const PATIENCE: Duration = Duration::from_secs(120);

/// Resting sessions must have been shared out by then.
const EVENS_OUT: Duration = Duration::from_secs(400);

/// Flags of `outlive-bench outage`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Sessions that begin on each of the three nodes.
    #[arg(long, default_value_t = 40_000)]
    sessions: usize,
    /// All of them begin on the node that is drained.
    #[arg(long)]
    lopsided: bool,
    /// Clients that use some of them meanwhile, one request after the other.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// The application's `drain_timeout`: handing over must not take longer.
    #[arg(long, default_value_t = 20)]
    drain_timeout: u64,
    /// The application's `drain_notice`, in seconds.
    #[arg(long, default_value_t = 5)]
    drain_notice: u64,
    /// The balancer's program.
    #[arg(long, default_value = "haproxy")]
    haproxy: String,
}

/// A session that is used, and how often it was.
struct Used {
    jar: Jar,
    count: u64,
}

#[derive(Default)]
struct Tally {
    served: AtomicU64,
    /// A connection that ended in the middle of a request, because its node was killed.
    cut: AtomicU64,
    /// Nodes said that the session cannot be had now: nothing changed, and the client is to come again.
    again: AtomicU64,
    /// A response other than 200 that no kill explains, and the first one's text.
    failed: AtomicU64,
    first: Mutex<Option<String>>,
    /// A count that is lower than what was acknowledged.
    wrong: AtomicU64,
    slowest_ms: AtomicU64,
    stop: AtomicBool,
}

impl Tally {
    fn failed(&self, text: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut first) = self.first.lock() {
            first.get_or_insert(text);
        }
    }
}

struct Play {
    args: Args,
    nodes: Vec<Process>,
    web: Vec<SocketAddr>,
    balancer: Balancer,
    connections: Connections,
    sample: Vec<Used>,
}

/// Plays a kill and a drain, and prints what came of each.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut play = Play::start(args).await?;
    let made = Instant::now();
    play.make_sessions().await?;
    println!("outage: 3 nodes x {} sessions behind HAProxy, made in {} s", play.args.sessions, made.elapsed().as_secs());
    play.settled().await?;
    play.tell_owners("at first").await?;
    let mut held = true;
    held &= play.killed(KILLED).await?;
    held &= play.drained(DRAINED).await?;
    held &= play.evens_out().await?;
    for node in &mut play.nodes {
        node.kill().await?;
    }
    println!("{}", if held { "held: always a server, nothing lost" } else { "NOT HELD" });
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Play {
    async fn start(args: Args) -> anyhow::Result<Play> {
        let mut rng = Pcg32::seed_from_u64(u64::from(std::process::id()));
        let ports = free_ports(8, &mut rng)?;
        let ([a, b, c, x, y, z, door, stats], this) = (ports.as_slice(), std::env::current_exe()?) else {
            anyhow::bail!("no free ports");
        };
        let (web, peers) = ([*a, *b, *c], [*x, *y, *z]);
        let mut nodes = Vec::new();
        for ((name, http), peer) in NAMES.iter().zip(web).zip(peers) {
            let mut line = vec!["app".to_owned(), "--name".to_owned(), (*name).to_owned()];
            line.extend(["--http".to_owned(), http.to_string(), "--peer".to_owned(), peer.to_string()]);
            line.extend(["--drain-notice".to_owned(), format!("{}s", args.drain_notice)]);
            line.extend(["--drain-timeout".to_owned(), format!("{}s", args.drain_timeout)]);
            line.extend(peers.iter().filter(|other| **other != peer).flat_map(|other| ["--join".to_owned(), other.to_string()]));
            let mut process = Process::new((*name).to_owned(), this.clone(), line);
            process.start().await?;
            nodes.push(process);
        }
        let servers: Vec<(&str, SocketAddr)> = NAMES.into_iter().zip(web).collect();
        let balancer = Balancer::start(&args.haproxy, *door, *stats, &servers).await?;
        Ok(Play { args, nodes, web: web.to_vec(), balancer, connections: connections(), sample: Vec::new() })
    }

    /// Begins sessions on each node, and keeps some.
    async fn make_sessions(&mut self) -> anyhow::Result<()> {
        let mut makers = JoinSet::new();
        for place in 0..self.web.len() {
            let addr = &self.web[if self.args.lopsided { DRAINED } else { place }];
            for maker in 0..MAKERS {
                let (connections, addr, many) = (self.connections.clone(), *addr, self.args.sessions);
                makers.spawn(async move {
                    let mut kept = Vec::new();
                    for number in (maker..many).step_by(MAKERS) {
                        let mut jar = Jar::default();
                        let answer = exchange(&connections, addr, "/inc", &jar).await.ok().filter(Answer::is_ok);
                        jar.take(&answer.context("a session could not begin")?.headers);
                        // Whose cookie never came back does not count as a visitor.
                        let back = exchange(&connections, addr, "/inc", &jar).await.ok().filter(Answer::is_ok);
                        jar.take(&back.context("a session could not be used")?.headers);
                        if number % SAMPLE == 0 {
                            kept.push(Used { jar, count: 2 });
                        }
                    }
                    Ok::<_, anyhow::Error>(kept)
                });
            }
        }
        while let Some(made) = makers.join_next().await {
            self.sample.extend(made??);
        }
        Ok(())
    }

    /// Waits until all nodes that run agree, and have every copy where it should be.
    async fn settled(&self) -> anyhow::Result<()> {
        let all = async {
            loop {
                let mut seen: Vec<(String, String)> = Vec::new();
                for addr in &self.web {
                    let Some(answer) = look(&self.connections, *addr, "/heap").await else { continue };
                    let value = |name| answer.value(name).unwrap_or_default().to_owned();
                    seen.push((value("membership"), value("settled")));
                }
                if seen.len() == NAMES.len() && seen.iter().all(|s| s.1 == "true" && s.0 == seen[0].0) {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, all).await.context("the nodes do not settle")
    }

    async fn owners(&self) -> anyhow::Result<Vec<u64>> {
        let mut owned = Vec::new();
        for addr in &self.web {
            let answer = look(&self.connections, *addr, "/heap").await.context("a node does not answer")?;
            owned.push(answer.value("sessions").and_then(|n| n.parse().ok()).context("a node that does not count")?);
        }
        Ok(owned)
    }

    async fn tell_owners(&self, when: &str) -> anyhow::Result<()> {
        println!("  sessions owned {when}: {:?}", self.owners().await?);
        Ok(())
    }

    /// Waits until whoever was restarted last has a share again, of the sessions that nobody uses; nobody uses any of them here.
    async fn evens_out(&self) -> anyhow::Result<bool> {
        let began = Instant::now();
        while began.elapsed() < EVENS_OUT {
            let owned = self.owners().await?;
            if let (Some(least), Some(most)) = (owned.iter().min(), owned.iter().max())
                && least * 3 >= *most
            {
                println!("rebalanced after {} s: {owned:?}", began.elapsed().as_secs());
                return Ok(true);
            }
            sleep(Duration::from_millis(500)).await;
        }
        println!("not rebalanced after {} s: {:?}", EVENS_OUT.as_secs(), self.owners().await?);
        Ok(false)
    }

    /// Uses sessions through the balancer while `what` happens; what came of it.
    fn clients(&mut self, tally: &Arc<Tally>) -> JoinSet<Vec<Used>> {
        let mut clients = JoinSet::new();
        let mut shares: Vec<Vec<Used>> = (0..self.args.clients).map(|_| Vec::new()).collect();
        for (at, used) in core::mem::take(&mut self.sample).into_iter().enumerate() {
            shares[at % self.args.clients].push(used);
        }
        for (seed, share) in shares.into_iter().enumerate() {
            let (door, connections, tally) = (self.balancer.door, connections(), tally.clone());
            clients.spawn(use_sessions(share, door, connections, tally, Pcg32::seed_from_u64(seed as u64)));
        }
        clients
    }

    async fn killed(&mut self, index: usize) -> anyhow::Result<bool> {
        let tally = Arc::new(Tally::default());
        let clients = self.clients(&tally);
        sleep(Duration::from_secs(1)).await;
        let watch = self.balancer.watch();
        self.nodes[index].kill().await?;
        let fewest = self.while_it_heals(index, watch).await?;
        self.report("killed", &tally, clients, fewest, None).await
    }

    async fn drained(&mut self, index: usize) -> anyhow::Result<bool> {
        let tally = Arc::new(Tally::default());
        let clients = self.clients(&tally);
        sleep(Duration::from_secs(1)).await;
        let watch = self.balancer.watch();
        let began = Instant::now();
        let status = self.nodes[index].terminate(PATIENCE).await?.context("a node does not leave")?;
        let took = began.elapsed();
        if !status.success() {
            tally.failed(format!("the drained node ended with {status}"));
        }
        let fewest = self.while_it_heals(index, watch).await?;
        self.report("drained", &tally, clients, fewest, Some(took)).await
    }

    /// Until the survivors have all copies, the node is back, and has settled; the fewest servers that the balancer had meanwhile.
    async fn while_it_heals(&mut self, index: usize, watch: balancer::Watch) -> anyhow::Result<u64> {
        let gone = Instant::now();
        let survivors: Vec<SocketAddr> = (0..self.web.len()).filter(|at| *at != index).map(|at| self.web[at]).collect();
        let copied = async {
            loop {
                let mut under = 0;
                for addr in &survivors {
                    let answer = look(&self.connections, *addr, "/heap").await;
                    under += answer.and_then(|a| a.value("under_replicated")?.parse::<u64>().ok()).unwrap_or(1);
                }
                // The death is noticed a moment after it.
                if under == 0 && gone.elapsed() > Duration::from_secs(6) {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(PATIENCE, copied).await.context("copies stay missing")?;
        println!("  copies whole again within {} s", gone.elapsed().as_secs());
        self.nodes[index].start().await?;
        self.settled().await?;
        self.tell_owners("afterwards").await?;
        Ok(watch.fewest().await)
    }

    async fn report(
        &mut self,
        what: &str,
        tally: &Tally,
        mut clients: JoinSet<Vec<Used>>,
        fewest: u64,
        drain: Option<Duration>,
    ) -> anyhow::Result<bool> {
        tally.stop.store(true, Ordering::Relaxed);
        while let Some(share) = clients.join_next().await {
            self.sample.extend(share?);
        }
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let (served, again) = (of(&tally.served), of(&tally.again));
        let (cut, failed, wrong) = (of(&tally.cut), of(&tally.failed), of(&tally.wrong));
        println!(
            "{what}: {served} responses, {again} to come again, {cut} cut, {failed} failed, {wrong} wrong, slowest {} ms, never fewer than {fewest} servers{}",
            of(&tally.slowest_ms),
            drain.map(|took| format!(", left after {} ms", took.as_millis())).unwrap_or_default()
        );
        if let Some(first) = tally.first.lock().ok().and_then(|first| first.clone()) {
            println!("  the first that failed: {first}");
        }
        let bound = Duration::from_secs(self.args.drain_notice.max(self.args.drain_timeout) + 2);
        // One request of each client may have been on its way to the node that was killed.
        let cut_at_most = if drain.is_some() { 0 } else { self.args.clients as u64 };
        Ok(fewest > 0 && again * 100 <= served && failed == 0 && wrong == 0 && cut <= cut_at_most && drain.is_none_or(|took| took <= bound))
    }
}

async fn use_sessions(mut share: Vec<Used>, door: SocketAddr, connections: Connections, tally: Arc<Tally>, mut rng: Pcg32) -> Vec<Used> {
    while !tally.stop.load(Ordering::Relaxed) && !share.is_empty() {
        let at = rng.random_range(0..share.len());
        let Some(used) = share.get_mut(at) else { continue };
        let asked = Instant::now();
        let answer = exchange(&connections, door, "/inc", &used.jar).await;
        tally.slowest_ms.fetch_max(asked.elapsed().as_millis() as u64, Ordering::Relaxed);
        match answer {
            Ok(answer) if answer.is_ok() => {
                used.jar.take(&answer.headers);
                let n = answer.value("n").and_then(|n| n.parse().ok()).unwrap_or(0);
                if n <= used.count || answer.value("lost").is_some() {
                    tally.wrong.fetch_add(1, Ordering::Relaxed);
                }
                used.count = n;
                tally.served.fetch_add(1, Ordering::Relaxed);
            }
            // What HAProxy says when a server ends before its response has begun.
            Ok(answer) if answer.status == http::StatusCode::BAD_GATEWAY => drop(tally.cut.fetch_add(1, Ordering::Relaxed)),
            Ok(answer) if answer.status == http::StatusCode::SERVICE_UNAVAILABLE && answer.header("retry-after").is_some() => {
                tally.again.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(100)).await;
            }
            Ok(answer) => tally.failed(format!("{} {}", answer.status, answer.body.trim())),
            // Or it says nothing, if the connection to that server had been used before.
            Err(NoAnswer::Broken) => drop(tally.cut.fetch_add(1, Ordering::Relaxed)),
            Err(NoAnswer::NoConnection) => tally.failed("the balancer takes no connection".to_owned()),
        }
    }
    share
}
