//! `outlive-bench locks`: how long requests wait for the engine's locks while a member dies, on a node that has very many sessions. The
//! engines of three nodes in one process, and no sockets between them: nothing but locks makes a call wait.

use crate::measure::{Table, machine};
use anyhow::Context as _;
use bytes::Bytes;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use outlive_core::config::Config;
use outlive_core::engine::{Engine, LinkEvent};
use outlive_core::id::SessionKey;
use outlive_core::member::Node;
use outlive_core::output::{LinkId, Open, Output, Outputs};
use outlive_core::record::{Base, Change};
use outlive_core::stamp::Life;
use outlive_core::time::Mono;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn clock() -> Instant {
    Instant::now()
}

/// As the runtime does it.
const TICK: Duration = Duration::from_millis(50);
const BUDGET: usize = 2000;
/// Nodes know each other, and copies are made again, by then.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long requests are watched while nothing happens.
const CALM: Duration = Duration::from_secs(2);

/// Flags of `outlive-bench locks`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many sessions the first node owns. A million takes some 3 GB.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    sessions: u64,
}

/// Three engines, and what is on its way between them.
struct Net {
    began: Instant,
    engines: Vec<Arc<Engine<()>>>,
    dead: Option<usize>,
    /// Whose end each is, and the other end.
    links: BTreeMap<LinkId, (usize, LinkId)>,
    wires: VecDeque<(usize, LinkId, Vec<u8>)>,
    /// The longest call of each kind since it was asked for last.
    longest: BTreeMap<&'static str, Duration>,
}

impl Net {
    fn start() -> anyhow::Result<Net> {
        let mut net = Net {
            began: clock(),
            engines: Vec::new(),
            dead: None,
            links: BTreeMap::new(),
            wires: VecDeque::new(),
            longest: BTreeMap::new(),
        };
        for at in 0..3_usize {
            let config = Config { sessions_max: u64::MAX, ..Config::default() }.check().map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
            let node = Node {
                name: format!("n{at}").into(),
                addr: format!("a{at}").into(),
                boot: 1,
                life: Life::new((at as u64 + 1) << 48 | 1),
                zone: 0,
                observer: false,
                http: "".into(),
                backups: 1,
                stores: false,
            };
            net.engines.push(Arc::new(Engine::new(config, node, at as u64, net.now())?));
        }
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let (x, y) = (LinkId(net.links.len() as u64), LinkId(net.links.len() as u64 + 1));
            net.links.extend([(x, (a, y)), (y, (b, x))]);
            let (one, other) = (net.engines[a].me(), net.engines[b].me());
            net.call("link", a, |e, now, out| e.handle_link(now, x, LinkEvent::Up { node: other, initiated: true }, out));
            net.call("link", b, |e, now, out| e.handle_link(now, y, LinkEvent::Up { node: one, initiated: false }, out));
        }
        net.run_until(|net| net.engines.iter().all(|e| e.stats(net.now()).members == 3))?;
        Ok(net)
    }

    fn now(&self) -> Mono {
        Mono::from_micros(1_000_000 + self.began.elapsed().as_micros() as i64)
    }

    fn call<R>(&mut self, kind: &'static str, at: usize, f: impl FnOnce(&Engine<()>, Mono, &mut Outputs) -> R) -> R {
        let (mut out, now, engine) = (Outputs::new(), self.now(), self.engines[at].clone());
        let begun = clock();
        let result = f(&engine, now, &mut out);
        let longest = self.longest.entry(kind).or_default();
        *longest = begun.elapsed().max(*longest);
        for effect in out.drain() {
            if let Output::Flush(link) = effect {
                self.flush(at, link);
            }
        }
        result
    }

    fn flush(&mut self, at: usize, link: LinkId) {
        let mut bytes = Vec::new();
        self.engines[at].take_bytes(link, &mut bytes);
        if let Some((_, theirs)) = self.links.get(&link)
            && let Some((to, _)) = self.links.get(theirs)
        {
            self.wires.push_back((*to, *theirs, bytes));
        }
    }

    fn deliver(&mut self) -> anyhow::Result<()> {
        while let Some((to, link, bytes)) = self.wires.pop_front() {
            if self.dead != Some(to) && self.links.contains_key(&link) {
                self.call("frames", to, |e, now, out| e.handle_bytes(now, link, &bytes, out))?;
            }
        }
        Ok(())
    }

    fn alive(&self) -> impl Iterator<Item = usize> + use<> {
        let dead = self.dead;
        (0..self.engines.len()).filter(move |at| Some(*at) != dead)
    }

    /// Timers, ticks and frames, as in the runtime.
    fn run_until(&mut self, holds: impl Fn(&Net) -> bool) -> anyhow::Result<()> {
        let until = clock() + PATIENCE;
        let mut tick = clock();
        while !holds(self) {
            anyhow::ensure!(clock() < until, "the nodes have not settled within {} s", PATIENCE.as_secs());
            for at in self.alive() {
                if self.engines[at].next_timer().is_some_and(|due| due <= self.now()) {
                    self.call("timer", at, |e, now, out| e.handle_timer(now, out));
                }
                if clock() >= tick {
                    self.call("tick", at, |e, now, out| e.handle_tick(now, BUDGET, out));
                }
            }
            self.deliver()?;
            if clock() >= tick {
                tick = clock() + TICK;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// This one dies as a process that was killed does: its connections close, and nobody listens there.
    fn kill(&mut self, at: usize) {
        self.dead = Some(at);
        self.wires.retain(|(to, ..)| *to != at);
        let life = self.engines[at].life();
        let ends: Vec<(LinkId, usize)> =
            self.links.iter().filter(|(_, (whose, _))| *whose != at).map(|(id, (whose, _))| (*id, *whose)).collect();
        for (link, whose) in ends {
            let there = self.links.get(&link).and_then(|(_, theirs)| self.links.get(theirs)).map(|(whose, _)| *whose);
            if there == Some(at) {
                self.call("member dies", whose, |e, now, out| e.handle_link(now, link, LinkEvent::Closed, out));
                self.call("member dies", whose, |e, now, out| e.handle_refused(now, life, out));
            }
        }
    }
}

fn key(n: usize) -> SessionKey {
    let mut bytes = [0; 16];
    // Spread as drawn ones are.
    bytes[..8].copy_from_slice(&(n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes[8..].copy_from_slice(&(n as u64).to_be_bytes());
    SessionKey::from_bytes(bytes)
}

/// Opens and closes sessions of the first node, one after the other, and remembers what took longest.
struct Prober {
    stop: Arc<AtomicBool>,
    running: std::thread::JoinHandle<Vec<Duration>>,
}

impl Prober {
    fn start(engine: Arc<Engine<()>>, began: Instant, sessions: usize) -> Prober {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let running = std::thread::spawn(move || {
            let (mut took, mut drawn) = (Vec::new(), 0_usize);
            while !stopped.load(Ordering::Relaxed) {
                let at = drawn % sessions;
                drawn = drawn.wrapping_add(7919);
                let now = Mono::from_micros(1_000_000 + began.elapsed().as_micros() as i64);
                let (begun, mut out) = (clock(), Outputs::new());
                if let Open::Here(opened) = engine.open(now, key(at), None, &mut out) {
                    engine.close(now, &opened, &mut out);
                }
                // What a link's reader does after each batch of frames.
                std::hint::black_box(engine.next_timer());
                took.push(begun.elapsed());
                // Frames are another thread's to carry; those that follow from a look are few.
                drop(out);
                std::thread::sleep(Duration::from_micros(50));
            }
            took
        });
        Prober { stop, running }
    }

    fn end(self) -> anyhow::Result<Vec<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut took = self.running.join().map_err(|_| anyhow::anyhow!("the requests' thread panicked"))?;
        took.sort_unstable();
        Ok(took)
    }
}

/// Prints the table.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let sessions = usize::try_from(args.sessions)?;
    println!("Machine: {}.\n", machine());
    let mut net = Net::start()?;
    let change = [Change { name: "n".into(), base: Base::Absent, value: Some(Bytes::from_static(b"1")) }];
    for n in 0..sessions {
        let opened = net.call("create", 0, |e, now, out| e.create(now, key(n), out)).map_err(|why| anyhow::anyhow!("{why:?}"))?;
        net.call("create", 0, |e, now, out| e.commit(now, &opened, &change, out));
        net.call("create", 0, |e, now, out| e.close(now, &opened, out));
        if n % 256 == 255 {
            net.deliver()?;
        }
        if n % 100_000 == 99_999 {
            eprintln!("{} of {sessions} sessions", n + 1);
        }
    }
    let settled = |net: &Net| net.alive().all(|at| net.engines[at].stats(net.now()).under_replicated == 0);
    net.run_until(settled).context("after the sessions were made")?;
    let mut table = Table::new(&["requests at the first node, which owns all", "requests", "p50, us", "p99.9, ms", "longest, ms"]);
    let mut row = |name: &str, took: &[Duration]| {
        let at =
            |share: f64| took.get(((took.len() as f64 * share) as usize).min(took.len().saturating_sub(1))).copied().unwrap_or_default();
        let ms = |d: Duration| format!("{:.2}", d.as_secs_f64() * 1e3);
        table.row(name, &[took.len().to_string(), format!("{:.1}", at(0.5).as_secs_f64() * 1e6), ms(at(0.999)), ms(at(1.0))]);
    };
    let prober = Prober::start(net.engines[0].clone(), net.began, sessions);
    let calm = clock() + CALM;
    net.run_until(|_| clock() >= calm)?;
    row("nothing happens", &prober.end()?);
    net.longest.clear();
    let prober = Prober::start(net.engines[0].clone(), net.began, sessions);
    let killed = clock();
    net.kill(2);
    let told = killed.elapsed();
    net.run_until(|net| settled(net) && net.alive().all(|at| net.engines[at].stats(net.now()).members == 2))?;
    let repaired = killed.elapsed();
    row("a member dies, until its copies are made again", &prober.end()?);
    table.print();
    println!("{sessions} sessions; both were told of the death within {told:.2?}; all copies were made again after {repaired:.2?}.\n");
    let mut table = Table::new(&["longest call meanwhile, of both nodes", "ms"]);
    for (kind, longest) in &net.longest {
        table.row(*kind, &[format!("{:.2}", longest.as_secs_f64() * 1e3)]);
    }
    table.print();
    println!("Machine, at the end: {}.", machine());
    Ok(())
}
