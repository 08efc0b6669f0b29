//! The world of one seed: nodes with real engines, one clock, one queue of events.

use crate::client::ending::Endings;
use crate::client::{Client, Req};
use crate::marks::Mark;
use crate::net::Conn;
use crate::options::{Fault, MS, Options, S};
use crate::oracle::Session;
use crate::oracle::excuse::Excuses;
use crate::rng::Rng;
use crate::rows::{Call, Reply, Row};
use core::time::Duration;
use outlive_core::config::{Config, Durability};
use outlive_core::engine::{Engine, STALL};
use outlive_core::id::SessionKey;
use outlive_core::member::Node;
use outlive_core::output::{Event, LinkId, Outcome, Output, Outputs, Ticket};
use outlive_core::stamp::{Claim, Life, Stamp};
use outlive_core::time::Mono;
use outlive_core::wire::{Message, decode, frame_len};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::rc::Rc;

/// What happens next.
#[derive(Clone, Debug)]
pub(crate) enum Ev {
    Up { conn: usize, side: usize },
    Deliver { conn: usize, side: usize },
    Closed { conn: usize, side: usize },
    Broken { conn: usize, side: usize },
    Connect { from: usize, generation: u32, to: usize, want: Option<Life> },
    ConnectTimeout { from: usize, generation: u32, to: usize },
    Discover { node: usize, generation: u32 },
    Timer { node: usize, generation: u32, due: i64 },
    Tick { node: usize, generation: u32 },
    StoreTake { node: usize, generation: u32 },
    StoreApply { node: usize, generation: u32, call: Call, half: i64 },
    StoreReply { node: usize, generation: u32, reply: Reply },
    Client(usize),
    Arrive(u64),
    Step(u64),
    Deadline(u64),
    Unanswered(u64, u32),
    CommitBound(u64),
    Fault,
    Resume { node: usize, generation: u32 },
    Start { node: usize },
    Uncut(u64),
    DrainCheck { node: usize, generation: u32 },
    DrainKilled { node: usize, generation: u32 },
    Poll,
    Heal,
}

/// An event and its turn: the earliest first, of one instant in the order in which they were planned.
#[derive(Debug)]
struct Due {
    when: i64,
    sequence: u64,
    ev: Ev,
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> Ordering {
        (other.when, other.sequence).cmp(&(self.when, self.sequence))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

/// What a call of an engine led to, to be done after the call.
#[derive(Debug)]
enum Todo {
    Settled(usize, u32, Ticket, Outcome),
    Durable { node: usize, generation: u32, key: SessionKey, claim: Claim, version: u32, tip: Stamp, level: outlive_core::config::Level },
    Failed { node: usize, generation: u32, key: SessionKey, claim: Claim, version: u32, failure: outlive_core::output::Failure },
    Superseded(usize, u32),
    Close(LinkId),
    Connect { from: usize, life: Life, addr: Box<str> },
}

/// A process did nothing for as long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stood {
    pub(crate) from: i64,
    pub(crate) until: i64,
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Proc {
    pub(crate) engine: Rc<Engine<()>>,
    pub(crate) generation: u32,
    pub(crate) links: BTreeMap<LinkId, usize>,
    pub(crate) connecting: BTreeSet<usize>,
    timer: i64,
    pub(crate) paused: Option<i64>,
    /// When it stood still the last time.
    pub(crate) stood: Option<Stood>,
    /// When a drain is given up.
    pub(crate) draining: Option<i64>,
    deferred: Vec<Ev>,
    pub(crate) asking: usize,
    pub(crate) refused: usize,
}

/// A place for a process: name, address and clock.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) proc: Option<Proc>,
    offset: i64,
    /// How far its wall clock is off.
    pub(crate) wall: i64,
    ppm: i64,
    boot: u64,
    pub(crate) retired: bool,
    generations: u32,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Chaos,
    /// Faults have stopped; waiting until all nodes agree.
    Healing,
    /// Every client reads once more.
    Reading,
    Done,
}

/// See the [module](self).
pub(crate) struct World {
    pub(crate) opts: Options,
    pub(crate) rng: Rng,
    pub(crate) now: i64,
    queue: BinaryHeap<Due>,
    sequence: u64,
    pub(crate) nodes: Vec<Slot>,
    pub(crate) conns: Vec<Conn>,
    pub(crate) cut: Vec<Vec<bool>>,
    cuts: BTreeMap<u64, Vec<(usize, usize)>>,
    pub(crate) slow_pair: Vec<Vec<i64>>,
    troubled: Vec<Vec<i64>>,
    pub(crate) garbling: (u32, i64),
    pub(crate) garble_kinds: Vec<Fault>,
    pub(crate) rows: BTreeMap<SessionKey, Row>,
    pub(crate) store_down: i64,
    pub(crate) store_slow: i64,
    pub(crate) store_unknown: u32,
    /// Until when writes fail and reads work; until when writes are not answered.
    pub(crate) store_refuses: i64,
    pub(crate) store_locked: i64,
    /// How far the store's clock is off.
    pub(crate) store_offset: i64,
    pub(crate) store_jumped: bool,
    /// The source of chance of whatever has to do with time.
    pub(crate) clocks: Rng,
    pub(crate) clients: Vec<Client>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) by_key: HashMap<SessionKey, usize>,
    pub(crate) reqs: BTreeMap<u64, Req>,
    pub(crate) next_req: u64,
    pub(crate) next_value: u32,
    pub(crate) tickets: BTreeMap<(usize, u32, Ticket), u64>,
    pub(crate) endings: Endings,
    todo: VecDeque<Todo>,
    out: Outputs,
    pub(crate) phase: Phase,
    pub(crate) healed: i64,
    calm_polls: u32,
    pub(crate) violation: Option<String>,
    pub(crate) marks: Vec<u64>,
    pub(crate) excuses: Excuses,
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) hash: u64,
    lives: u64,
    /// How few nodes there were to hold a session, in the eyes of any node, since the drains that go on began.
    pub(crate) fewest: u32,
    /// A script decides what happens; handlers take this long.
    pub(crate) scripted: bool,
    pub(crate) handler: i64,
}

const SLOTS: usize = 9;

impl World {
    pub(crate) fn new(opts: Options, trace: bool) -> World {
        let mut rng = Rng::new(opts.seed.wrapping_mul(0x1000_0001).wrapping_add(77));
        let drift = opts.has(Fault::Drift);
        let nodes = (0..SLOTS)
            .map(|_| Slot {
                proc: None,
                offset: rng.range(-1_000 * S, 1_000_000 * S),
                wall: 0,
                ppm: if drift { rng.range(-500, 500) } else { 0 },
                boot: 100,
                retired: false,
                generations: 0,
            })
            .collect();
        let garble_kinds = [Fault::Loss, Fault::Duplicate, Fault::Reorder, Fault::Corrupt].into_iter().filter(|f| opts.has(*f)).collect();
        World {
            rng,
            now: S,
            queue: BinaryHeap::new(),
            sequence: 0,
            nodes,
            conns: Vec::new(),
            cut: vec![vec![false; SLOTS]; SLOTS],
            cuts: BTreeMap::new(),
            slow_pair: vec![vec![1; SLOTS]; SLOTS],
            troubled: vec![vec![0; SLOTS]; SLOTS],
            garbling: (0, 0),
            garble_kinds,
            rows: BTreeMap::new(),
            store_down: 0,
            store_slow: 1,
            store_unknown: 0,
            store_refuses: 0,
            store_locked: 0,
            store_offset: 5_000_000 * S,
            store_jumped: false,
            clocks: Rng::new(opts.seed ^ 0x71c7_0c71),
            clients: Vec::new(),
            sessions: Vec::new(),
            by_key: HashMap::new(),
            reqs: BTreeMap::new(),
            next_req: 1,
            next_value: 1,
            tickets: BTreeMap::new(),
            endings: Endings::default(),
            todo: VecDeque::new(),
            out: Outputs::new(),
            phase: Phase::Chaos,
            healed: 0,
            calm_polls: 0,
            violation: None,
            marks: vec![0; Mark::ALL.len()],
            excuses: Excuses::new(),
            trace: trace.then(Vec::new),
            hash: 0xcbf2_9ce4_8422_2325,
            lives: 0,
            fewest: u32::MAX,
            scripted: false,
            handler: MS,
            opts,
        }
    }

    // ---- the queue ------------------------------------------------------------------------------------------------------

    pub(crate) fn at(&mut self, after: i64, ev: Ev) {
        self.sequence += 1;
        self.queue.push(Due { when: self.now + after.max(0), sequence: self.sequence, ev });
    }

    fn mix(&mut self, n: u64) {
        self.hash = (self.hash ^ n).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    /// Plays the whole seed.
    pub(crate) fn run(&mut self) {
        for node in 0..self.nodes.len() {
            self.nodes[node].wall = self.wall_offset();
        }
        for node in 0..self.opts.nodes {
            let after = self.rng.below(300 * MS as u64) as i64;
            self.at(after, Ev::Start { node });
        }
        self.make_clients();
        for client in 0..self.clients.len() {
            let after = 2 * S + self.rng.below(self.opts.think as u64 + 1) as i64;
            self.at(after, Ev::Client(client));
        }
        if !self.opts.faults.is_empty() {
            self.at(3 * S + self.opts.gap / 2, Ev::Fault);
        }
        self.at(S, Ev::Poll);
        self.at(self.opts.chaos, Ev::Heal);
        while self.phase != Phase::Done && self.violation.is_none() && self.step() {}
    }

    /// One event; `false` if there is none.
    pub(crate) fn step(&mut self) -> bool {
        let Some(Due { when, ev, .. }) = self.queue.pop() else { return false };
        self.now = self.now.max(when);
        self.age_sessions();
        self.mix(when as u64);
        self.handle(ev);
        self.work();
        true
    }

    /// Plays until then.
    pub(crate) fn run_until(&mut self, until: i64) {
        while self.violation.is_none() && self.queue.peek().is_some_and(|due| due.when <= until) && self.step() {}
        self.now = self.now.max(until);
    }

    fn handle(&mut self, ev: Ev) {
        // A process that is stopped does nothing; what is due waits for it.
        let node = match &ev {
            Ev::Up { conn, side } | Ev::Closed { conn, side } | Ev::Broken { conn, side } => Some(self.conns[*conn].ends[*side]),
            Ev::Connect { from, generation, .. } | Ev::ConnectTimeout { from, generation, .. } => Some((*from, *generation)),
            Ev::Discover { node, generation }
            | Ev::Timer { node, generation, .. }
            | Ev::Tick { node, generation }
            | Ev::StoreTake { node, generation }
            | Ev::StoreReply { node, generation, .. }
            | Ev::DrainCheck { node, generation } => Some((*node, *generation)),
            Ev::Arrive(id) | Ev::Step(id) | Ev::CommitBound(id) => match self.reqs.get(id) {
                Some(r) => Some((r.node, r.generation)),
                None => return,
            },
            _ => None,
        };
        if let Some((node, generation)) = node {
            let Some(p) = self.proc_mut(node, generation) else { return self.orphaned(ev) };
            if p.paused.is_some() {
                p.deferred.push(ev);
                return;
            }
            self.mix(node as u64);
        }
        match ev {
            Ev::Up { conn, side } => self.up(conn, side),
            Ev::Deliver { conn, side } => self.deliver(conn, side),
            Ev::Closed { conn, side } => self.closed(conn, side),
            Ev::Broken { conn, side } => self.close(conn, side),
            Ev::Connect { from, generation, to, want } => self.connected(from, generation, to, want),
            Ev::ConnectTimeout { from, to, .. } => {
                if let Some(p) = self.nodes[from].proc.as_mut() {
                    p.connecting.remove(&to);
                }
            }
            Ev::Discover { node, generation } => self.discover(node, generation),
            Ev::Timer { node, due, .. } => {
                let Some(p) = self.nodes[node].proc.as_mut().filter(|p| p.timer == due) else { return };
                p.timer = i64::MAX;
                self.call(node, |e, now, out| e.handle_timer(now, out));
                self.arm(node);
            }
            Ev::Tick { node, generation } => {
                self.call(node, |e, now, out| e.handle_tick(now, 1000, out));
                self.at(50 * MS, Ev::Tick { node, generation });
            }
            Ev::StoreTake { node, .. } => self.store_take(node),
            Ev::StoreApply { node, generation, call, half } => self.store_apply(node, generation, call, half),
            Ev::StoreReply { node, reply, .. } => self.store_reply(node, &reply),
            Ev::Client(client) => self.client_turn(client),
            Ev::Arrive(id) => self.open(id),
            Ev::Step(id) => self.handler_done(id),
            Ev::Deadline(id) => self.client_gives_up(id),
            Ev::Unanswered(id, tries) => self.check_answered(id, tries),
            Ev::CommitBound(id) => self.commit_bound(id),
            Ev::Fault => self.fault(),
            Ev::Resume { node, generation } => self.resume(node, generation),
            Ev::Start { node } => self.start(node),
            Ev::Uncut(id) => self.uncut(id),
            Ev::DrainCheck { node, generation } => self.drain_check(node, generation),
            Ev::DrainKilled { node, generation } => self.drain_killed(node, generation),
            Ev::Poll => self.poll(),
            Ev::Heal => self.heal(),
        }
    }

    /// Its process is gone.
    fn orphaned(&mut self, ev: Ev) {
        match ev {
            Ev::Arrive(id) => self.refused(id),
            Ev::Up { conn, side } | Ev::Closed { conn, side } | Ev::Broken { conn, side } => self.close(conn, side),
            _ => {}
        }
    }

    // ---- engines --------------------------------------------------------------------------------------------------------

    pub(crate) fn proc_mut(&mut self, node: usize, generation: u32) -> Option<&mut Proc> {
        self.nodes[node].proc.as_mut().filter(|p| p.generation == generation)
    }

    /// A node's own clock.
    pub(crate) fn clock(&self, node: usize) -> Mono {
        let s = &self.nodes[node];
        Mono::from_micros(s.offset + self.now + self.now / S * s.ppm)
    }

    pub(crate) fn call<R>(&mut self, node: usize, f: impl FnOnce(&Engine<()>, Mono, &mut Outputs) -> R) -> Option<R> {
        let p = self.nodes[node].proc.as_ref()?;
        let (engine, generation) = (p.engine.clone(), p.generation);
        let now = self.clock(node);
        let mut out = core::mem::take(&mut self.out);
        let result = f(&engine, now, &mut out);
        let list: Vec<Output> = out.drain().collect();
        self.out = out;
        for output in list {
            self.effect(node, generation, output);
        }
        self.arm(node);
        Some(result)
    }

    fn arm(&mut self, node: usize) {
        let now = self.clock(node);
        let Some(p) = self.nodes[node].proc.as_mut() else { return };
        let Some(due) = p.engine.next_timer() else { return };
        // Local time runs up to 500 ppm slower: a little later, and the timer is looked at again if that was too early.
        let wait = due.since(now).as_micros() as i64;
        let wait = wait + wait / 2000 + i64::from(wait > 0);
        let due = self.now + wait.max(1);
        if due < p.timer {
            p.timer = due;
            let generation = p.generation;
            self.at(wait.max(1), Ev::Timer { node, generation, due });
        }
    }

    fn effect(&mut self, node: usize, generation: u32, output: Output) {
        match output {
            Output::Flush(id) => self.flush(node, id),
            Output::Close(id) => self.todo.push_back(Todo::Close(id)),
            Output::Connect { life, addr } => self.todo.push_back(Todo::Connect { from: node, life, addr }),
            Output::Load(key) => {
                self.mark(Mark::LoadedForRound);
                self.store_call(node, Call::Load(key));
            }
            Output::StoreReady => {
                let after = self.rng.below(2 * MS as u64) as i64;
                self.at(after, Ev::StoreTake { node, generation });
            }
            Output::Settled(ticket, outcome) => self.todo.push_back(Todo::Settled(node, generation, ticket, outcome)),
            Output::Durable { key, claim, version, tip, level } => {
                self.log(node, || format!("{key:?} durable {:?} tip {tip:?} at {level}", claim.at(version)));
                self.note_durable(key, claim, version);
                self.todo.push_back(Todo::Durable { node, generation, key, claim, version, tip, level });
            }
            Output::Failed { key, claim, version, failure } => {
                self.log(node, || format!("{key:?} failed {:?} {failure:?}", claim.at(version)));
                self.todo.push_back(Todo::Failed { node, generation, key, claim, version, failure });
            }
            Output::Event(key, event) => self.event(node, generation, key, event),
            Output::Rebooted(boot) => {
                self.mark(Mark::Rebooted);
                self.nodes[node].boot = self.nodes[node].boot.max(boot);
            }
            Output::Superseded(_) => self.todo.push_back(Todo::Superseded(node, generation)),
            Output::Members => {
                self.note_fewest(node);
                (0..self.sessions.len()).for_each(|session| self.note_wanted(node, session));
            }
            _ => {}
        }
    }

    fn work(&mut self) {
        while let Some(todo) = self.todo.pop_front() {
            match todo {
                Todo::Settled(node, generation, ticket, outcome) => self.settled(node, generation, ticket, outcome),
                Todo::Durable { node, generation, key, claim, version, tip, level } => {
                    self.durable(node, generation, key, claim, version, tip, level);
                }
                Todo::Failed { node, generation, key, claim, version, failure } => {
                    self.commit_failed(node, generation, key, claim, version, failure);
                }
                Todo::Superseded(node, generation) => {
                    self.mark(Mark::Superseded);
                    if self.proc_mut(node, generation).is_some() {
                        self.log(node, || "superseded".into());
                        self.stop_process(node, true);
                    }
                }
                Todo::Close(id) => self.close(id.0 as usize / 2, id.0 as usize % 2),
                Todo::Connect { from, life, addr } => {
                    let to: usize = addr.trim_start_matches('a').parse().unwrap_or(0);
                    let linked = self.nodes[from].proc.as_ref().is_some_and(|p| p.links.values().any(|n| *n == to));
                    // A link to a former life of that name does not count.
                    let same = self.nodes[to].proc.as_ref().is_some_and(|p| p.engine.life() == life);
                    if !(linked && same) {
                        self.connect(from, to, Some(life));
                    }
                }
            }
        }
    }

    fn event(&mut self, node: usize, generation: u32, key: SessionKey, event: Event) {
        self.log(node, || format!("{key:?} event {event:?}"));
        let mark = match &event {
            Event::Created => Mark::Created,
            Event::Moved { from: Some(_), .. } => Mark::MovedFromOwner,
            Event::Moved { from: None, .. } => Mark::MovedFromCopy,
            Event::Left { .. } => Mark::Left,
            Event::Ended(_) => Mark::EndedEvent,
            Event::Lost { .. } => Mark::Lost,
            Event::FoundAgain { .. } => Mark::FoundAgain,
            Event::Conflict { discarded } if discarded.is_empty() => Mark::Merge,
            Event::Conflict { .. } => Mark::Discarded,
            Event::Backed { .. } => Mark::Backed,
            Event::Replicated { .. } => Mark::Replicated,
            Event::Expired => Mark::ExpiredEvent,
            _ => return,
        };
        self.mark(mark);
        if matches!(event, Event::Moved { .. })
            && let Some(session) = self.sessions.iter().position(|s| s.key == key)
        {
            self.note_wanted(node, session);
        }
        self.note_event(node, generation, key, &event);
    }

    // ---- processes ------------------------------------------------------------------------------------------------------

    fn config(&self, node: usize) -> Config {
        Config {
            limits: self.limits_of(node),
            durability: self.opts.durability,
            backups: self.opts.backups,
            store: self.opts.store,
            reach: self.opts.reach,
            on_lost: self.opts.on_lost,
            record_max: self.opts.record_max,
            shards: 2,
            uneven: 0,
            plant: self.opts.plant,
            ..Config::default()
        }
    }

    pub(crate) fn start(&mut self, node: usize) {
        if self.nodes[node].proc.is_some() || self.nodes[node].retired {
            return;
        }
        self.lives += 1;
        let life = Life::new(self.rng.next() & 0x00ff_ffff_ffff_ffff | (self.lives << 56));
        let lower = self.opts.has(Fault::LowerBoot) && self.rng.chance(300);
        let slot = &mut self.nodes[node];
        slot.boot = if lower { slot.boot.saturating_sub(50).max(1) } else { slot.boot + 10 };
        slot.generations += 1;
        let generation = slot.generations;
        let me = Node {
            name: format!("n{node}").into(),
            addr: format!("a{node}").into(),
            boot: slot.boot,
            life,
            zone: 0,
            observer: false,
            http: "".into(),
            backups: 1,
            stores: false,
        };
        let seed = self.rng.next();
        let mut config = self.config(node);
        if self.opts.differ {
            config.backups = self.rng.below(4) as u8;
            let levels = [Durability::Owner, Durability::Backup, Durability::Backup, Durability::Store];
            config.durability = *self.rng.pick(&levels[..if config.store { 4 } else { 3 }]).unwrap_or(&Durability::Backup);
        }
        let Ok(config) = config.check() else { return };
        let engine = match Engine::new(config, me, seed, self.clock(node)) {
            Ok(engine) => Rc::new(engine),
            Err(error) => return self.violate(format!("engine does not start: {error}")),
        };
        self.nodes[node].proc = Some(Proc {
            engine,
            generation,
            links: BTreeMap::new(),
            connecting: BTreeSet::new(),
            timer: i64::MAX,
            paused: None,
            stood: None,
            draining: None,
            deferred: Vec::new(),
            asking: 0,
            refused: 0,
        });
        let boot = self.nodes[node].boot;
        self.log(node, || format!("starts, life {life:?}, boot {boot}"));
        self.trouble_all(node);
        self.arm(node);
        self.at(MS, Ev::Discover { node, generation });
        self.at(50 * MS, Ev::Tick { node, generation });
    }

    /// Looks for nodes that are not linked yet.
    fn discover(&mut self, node: usize, generation: u32) {
        let known = self.opts.nodes.max(self.nodes.iter().rposition(|s| s.generations > 0).map_or(0, |n| n + 1));
        let Some(p) = self.proc_mut(node, generation) else { return };
        let linked: BTreeSet<usize> = p.links.values().copied().collect();
        let missing: Vec<usize> = (0..known).filter(|n| *n != node && !linked.contains(n)).collect();
        if p.links.is_empty() {
            (p.asking, p.refused) = (missing.len(), 0);
        }
        for to in missing {
            self.connect(node, to, None);
        }
        let after = self.rng.range(S, 3 * S);
        self.at(after, Ev::Discover { node, generation });
    }

    /// The process ends: `crash` loses its memory without a word.
    pub(crate) fn stop_process(&mut self, node: usize, crash: bool) {
        let Some(p) = self.nodes[node].proc.as_ref() else { return };
        let generation = p.generation;
        self.log(node, || if crash { "crashes".into() } else { "exits".into() });
        self.account_for_loss(node, crash);
        self.endings.stops += 1;
        self.nodes[node].proc = None;
        self.drop_conns(node, generation);
        self.trouble_all(node);
        let gone: Vec<u64> = self.reqs.iter().filter(|(_, r)| (r.node, r.generation) == (node, generation)).map(|(id, _)| *id).collect();
        for id in gone {
            self.connection_lost(id);
        }
        self.tickets.retain(|(n, g, _), _| (*n, *g) != (node, generation));
    }

    pub(crate) fn pause(&mut self, node: usize, length: i64) {
        let now = self.now;
        let Some(p) = self.nodes[node].proc.as_mut().filter(|p| p.paused.is_none()) else { return };
        p.paused = Some(now);
        let generation = p.generation;
        self.log(node, || format!("stands still for {} ms", length / MS));
        self.trouble_all(node);
        self.at(length, Ev::Resume { node, generation });
    }

    pub(crate) fn resume(&mut self, node: usize, generation: u32) {
        let now = self.now;
        let Some(p) = self.proc_mut(node, generation) else { return };
        let Some(since) = p.paused.take() else { return };
        p.stood = Some(Stood { from: since, until: now });
        let deferred = core::mem::take(&mut p.deferred);
        self.log(node, || "goes on".into());
        self.trouble_all(node);
        for conn in 0..self.conns.len() {
            for side in 0..2 {
                if self.conns[conn].ends[side] == (node, generation) {
                    self.deliver(conn, side);
                }
            }
        }
        let gap = Duration::from_micros((now - since) as u64);
        if gap >= STALL {
            self.call(node, |e, now, out| e.handle_stall(now, gap, out));
        }
        for ev in deferred {
            self.at(0, ev);
        }
    }

    /// Whoever drained it has lost patience.
    fn drain_killed(&mut self, node: usize, generation: u32) {
        if self.phase == Phase::Chaos && self.proc_mut(node, generation).is_some() {
            self.mark(Mark::DrainKilled);
            let back = *self.clocks.pick(&[20 * MS, S, 8 * S, 45 * S]).unwrap_or(&S);
            self.crash(node, back);
        }
    }

    fn drain_check(&mut self, node: usize, generation: u32) {
        let Some(p) = self.proc_mut(node, generation) else { return };
        let Some(deadline) = p.draining else { return };
        let drained = p.engine.drained();
        let busy = self.reqs.values().any(|r| (r.node, r.generation) == (node, generation));
        if drained.left == 0 && !busy && (drained.untold == 0 || self.opts.clocks.is_none()) {
            self.mark(Mark::DrainDone);
        } else if self.now < deadline && drained.alone && self.opts.clocks.is_some() && self.opts.store {
            // The last one: what the store lacks it hears.
            if drained.untold > 0 {
                self.mark(Mark::ToldAtTheEnd);
                self.call(node, |e, now, out| e.touch_rows(now, out));
            }
            self.at(100 * MS, Ev::DrainCheck { node, generation });
            return;
        } else if self.now >= deadline || drained.alone {
            self.mark(if drained.alone { Mark::DrainAlone } else { Mark::DrainAbandoned });
        } else {
            self.at(100 * MS, Ev::DrainCheck { node, generation });
            return;
        }
        self.log(node, || format!("drained: {} left, alone {}", drained.left, drained.alone));
        self.call(node, |e, now, out| e.stop(now, out));
        let abandons = drained.left > 0;
        if let Some(p) = self.proc_mut(node, generation).filter(|_| abandons) {
            p.draining = Some(i64::MIN);
        }
        self.stop_process(node, abandons);
        let after = self.rng.around(S);
        self.at(after, Ev::Start { node });
    }

    // ---- faults ---------------------------------------------------------------------------------------------------------

    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].proc.is_some()).collect()
    }

    pub(crate) fn trouble(&mut self, a: usize, b: usize) {
        self.troubled[a][b] = self.now;
        self.troubled[b][a] = self.now;
    }

    fn trouble_all(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            self.trouble(node, other);
        }
    }

    /// Nothing has come between two nodes for so long.
    pub(crate) fn calm(&self, a: usize, b: usize) -> i64 {
        if self.cut[a][b] || self.cut[b][a] || self.slow_pair[a][b] > 1 || self.slow_pair[b][a] > 1 {
            return 0;
        }
        self.now - self.troubled[a][b]
    }

    pub(crate) fn cut_pairs(&mut self, pairs: Vec<(usize, usize)>, length: i64) {
        for (a, b) in &pairs {
            self.cut[*a][*b] = true;
            self.trouble(*a, *b);
        }
        self.sequence += 1;
        let id = self.sequence;
        self.log(usize::MAX, || format!("cut {pairs:?} for {} ms", length / MS));
        self.cuts.insert(id, pairs);
        self.at(length, Ev::Uncut(id));
    }

    pub(crate) fn uncut(&mut self, id: u64) {
        let Some(pairs) = self.cuts.remove(&id) else { return };
        self.log(usize::MAX, || format!("healed {pairs:?}"));
        for (a, b) in &pairs {
            self.cut[*a][*b] = self.cuts.values().any(|c| c.contains(&(*a, *b)));
            self.trouble(*a, *b);
        }
    }

    /// All cuts end.
    pub(crate) fn mend(&mut self) {
        let cuts: Vec<u64> = self.cuts.keys().copied().collect();
        for id in cuts {
            self.uncut(id);
        }
    }

    /// The connections between two nodes break.
    pub(crate) fn break_between(&mut self, a: usize, b: usize) {
        for conn in self.open_conns() {
            let [(x, _), (y, _)] = self.conns[conn].ends;
            if (x, y) == (a, b) || (x, y) == (b, a) {
                self.break_conn(conn);
            }
        }
    }

    pub(crate) fn start_polling(&mut self) {
        self.at(S, Ev::Poll);
    }

    fn fault(&mut self) {
        if self.phase != Phase::Chaos {
            return;
        }
        let after = self.rng.around(self.opts.gap);
        self.at(after, Ev::Fault);
        let faults = self.opts.faults.clone();
        let Some(fault) = self.rng.pick(&faults).copied() else { return };
        let running = self.running();
        let Some(node) = self.rng.pick(&running).copied() else { return };
        let others: Vec<usize> = running.iter().copied().filter(|n| *n != node).collect();
        let length = *self.rng.pick(&[100 * MS, 500 * MS, 2 * S, 6 * S, 15 * S]).unwrap_or(&S);
        let length = self.rng.around(length);
        match fault {
            Fault::Crash | Fault::LowerBoot if running.len() > 1 => self.crash(node, length),
            Fault::QuickRestart => self.crash(node, 1 + self.rng.clone().below(20 * MS as u64) as i64),
            Fault::CrashForGood if running.len() > 2 => {
                self.stop_process(node, true);
                self.nodes[node].retired = true;
            }
            Fault::CrashPair if running.len() > 2 => {
                self.crash(node, length);
                if let Some(other) = self.rng.pick(&others).copied() {
                    self.crash(other, length);
                }
            }
            Fault::Pause => self.pause(node, length.min(5 * S)),
            Fault::LongPause => {
                let length = self.rng.range(S, 40 * S);
                self.pause(node, length);
            }
            Fault::Partition => {
                let left: Vec<bool> = (0..self.nodes.len()).map(|_| self.rng.chance(500)).collect();
                let pairs = self.pairs(|a, b| left[a] != left[b]);
                self.cut_pairs(pairs, length);
            }
            Fault::Isolate => {
                let pairs = self.pairs(|a, b| (a == node) != (b == node));
                self.cut_pairs(pairs, length);
            }
            Fault::OneWay => {
                let outward = self.rng.chance(500);
                let pairs = self.pairs(|a, b| if outward { a == node && b != node } else { b == node && a != node });
                self.cut_pairs(pairs, length);
            }
            Fault::Pair => {
                if let Some(other) = self.rng.pick(&others).copied() {
                    self.cut_pairs(vec![(node, other), (other, node)], length);
                }
            }
            Fault::Reset => {
                let open = self.open_conns();
                if let Some(conn) = self.rng.pick(&open).copied() {
                    self.log(usize::MAX, || format!("link {conn} resets"));
                    self.break_conn(conn);
                }
            }
            Fault::Loss | Fault::Duplicate | Fault::Reorder | Fault::Corrupt => {
                let rate = *self.rng.pick(&[1, 5, 20, 100]).unwrap_or(&1);
                self.garbling = (rate, self.now + length);
            }
            Fault::Slow => {
                if let Some(other) = self.rng.pick(&others).copied() {
                    let factor = self.rng.range(1, 60);
                    self.slow_pair[node][other] = factor;
                    if self.rng.chance(500) {
                        self.slow_pair[other][node] = factor;
                    }
                    self.trouble(node, other);
                }
            }
            Fault::Drain if others.iter().any(|n| self.nodes[*n].proc.as_ref().is_some_and(|p| p.draining.is_none())) => self.drain(node),
            Fault::Join => {
                let free = (0..self.nodes.len()).find(|n| self.nodes[*n].generations == 0);
                if let Some(node) = free {
                    self.start(node);
                }
            }
            Fault::StoreDown => self.store_down = self.now + length,
            Fault::StoreSlow => self.store_slow = self.rng.range(1, 200),
            Fault::RestartAll | Fault::StoreRefuses | Fault::StoreLocked | Fault::WallJump | Fault::StoreJump => {
                self.clock_fault(fault, node, length);
            }
            Fault::StoreUnknown => self.store_unknown = *self.rng.pick(&[0, 50, 300]).unwrap_or(&0),
            _ => {}
        }
    }

    fn pairs(&self, f: impl Fn(usize, usize) -> bool) -> Vec<(usize, usize)> {
        let n = self.nodes.len();
        (0..n).flat_map(|a| (0..n).map(move |b| (a, b))).filter(|(a, b)| a != b && f(*a, *b)).collect()
    }

    pub(crate) fn crash(&mut self, node: usize, back: i64) {
        self.stop_process(node, true);
        self.at(back, Ev::Start { node });
    }

    fn drains(&self) -> bool {
        self.nodes.iter().any(|s| s.proc.as_ref().is_some_and(|p| p.draining.is_some()))
    }

    /// While somebody leaves: how few nodes this one thinks there are to hold a session.
    fn note_fewest(&mut self, node: usize) {
        let places = self.nodes[node].proc.as_ref().map(|p| p.engine.placed(SessionKey::from_bytes([0; 16])).len() as u32);
        if let Some(places) = places.filter(|_| self.drains()) {
            self.fewest = self.fewest.min(places);
        }
    }

    pub(crate) fn drain(&mut self, node: usize) {
        let deadline = self.now + 25 * S;
        if !self.drains() {
            self.fewest = u32::MAX;
        }
        let Some(p) = self.nodes[node].proc.as_mut().filter(|p| p.draining.is_none()) else { return };
        p.draining = Some(deadline);
        let generation = p.generation;
        for node in 0..self.nodes.len() {
            self.note_fewest(node);
        }
        self.log(node, || "drains".into());
        self.call(node, |e, now, out| e.drain(now, out));
        self.at(100 * MS, Ev::DrainCheck { node, generation });
        if !self.scripted && self.opts.has(Fault::Crash) && self.clocks.chance(250) {
            let after = *self.clocks.pick(&[2 * MS, 10 * MS, 50 * MS, 400 * MS]).unwrap_or(&MS);
            self.at(after, Ev::DrainKilled { node, generation });
        }
    }

    /// No more faults.
    pub(crate) fn heal(&mut self) {
        self.phase = Phase::Healing;
        self.healed = self.now;
        self.log(usize::MAX, || "faults stop".into());
        self.mend();
        self.garbling = (0, 0);
        (self.store_down, self.store_slow, self.store_unknown) = (0, 1, 0);
        (self.store_refuses, self.store_locked) = (0, 0);
        self.slow_pair = vec![vec![1; SLOTS]; SLOTS];
        for node in 0..self.nodes.len() {
            if let Some(generation) = self.nodes[node].proc.as_ref().filter(|p| p.paused.is_some()).map(|p| p.generation) {
                self.resume(node, generation);
            }
            if self.nodes[node].proc.is_none() && self.nodes[node].generations > 0 && !self.nodes[node].retired {
                let after = self.rng.below(2 * S as u64) as i64;
                self.at(after, Ev::Start { node });
            }
        }
    }

    fn poll(&mut self) {
        self.at(S, Ev::Poll);
        self.sweep_store();
        self.look_at_all();
        match self.phase {
            Phase::Chaos | Phase::Done => {}
            Phase::Healing => {
                if self.now - self.healed < 4 * S {
                    return;
                }
                match self.disagreement() {
                    None => self.calm_polls += 1,
                    Some(what) if self.now - self.healed > 75 * S => self.violate(format!("I12 {what}, 75 s after faults stopped")),
                    Some(_) => self.calm_polls = 0,
                }
                if self.calm_polls >= 2 && self.reqs.is_empty() {
                    self.log(usize::MAX, || "all agree; every client reads once more".into());
                    self.phase = Phase::Reading;
                    self.start_reading();
                }
            }
            Phase::Reading => self.check_reading(),
        }
    }

    // ---- looking --------------------------------------------------------------------------------------------------------

    pub(crate) fn mark(&mut self, mark: Mark) {
        self.marks[mark as usize] += 1;
    }

    pub(crate) fn violate(&mut self, what: String) {
        if self.violation.is_none() {
            self.log(usize::MAX, || format!("VIOLATION {what}"));
            self.violation = Some(what);
        }
    }

    pub(crate) fn log(&mut self, node: usize, text: impl FnOnce() -> String) {
        if self.trace.is_none() {
            return;
        }
        let text = text();
        let at = if node == usize::MAX { "--".to_owned() } else { format!("n{node}") };
        let line = format!("{:>11.6} {at} {text}", (self.now - S) as f64 / S as f64);
        if let Some(trace) = self.trace.as_mut() {
            trace.push(line);
        }
    }

    /// Counts the kinds of frames that arrive, and writes them into the trace.
    pub(crate) fn trace_frames(&mut self, me: usize, from: usize, conn: usize, bytes: &[u8]) {
        let mut rest = bytes;
        while let Ok(Some(n)) = frame_len(rest)
            && let Some(frame) = rest.get(..n)
        {
            rest = &rest[n..];
            let kind = frame.get(4).copied().unwrap_or(0);
            self.mix(u64::from(kind) << 32 | n as u64);
            if let Some(mark) = Mark::of_frame(kind) {
                self.mark(mark);
            }
            if self.trace.is_some() && kind != 0 && kind != 3 {
                let text = match decode(frame) {
                    Ok((_, message)) => short(&message),
                    Err(error) => format!("{error}"),
                };
                self.log(me, || format!("<- n{from} [{conn}] {text}"));
            }
        }
    }
}

/// A message in one line.
fn short(message: &Message<'_>) -> String {
    let text = match message {
        Message::Views(v) => return format!("Views({} memberships)", v.len()),
        Message::Delta { key, claim, base, version, sets, .. } => {
            let names: Vec<&str> = sets.iter().map(|s| s.name).collect();
            return format!("Delta {key:?} {:?} base {base:?} sets {}", claim.at(*version), names.join(","));
        }
        other => format!("{other:?}"),
    };
    // Contents of records are of no interest; their lineage is.
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("attributes: [") {
        out.push_str(&rest[..at]);
        let tail = &rest[at..];
        let end = tail.find("] }").map_or(tail.len(), |e| find_end(tail).unwrap_or(e));
        let names: Vec<&str> = tail[..end].split("name: \"").skip(1).filter_map(|s| s.split('"').next()).collect();
        out.push_str(&names.join(","));
        rest = &tail[end..];
    }
    out.push_str(rest);
    out.replace("WireRecord ", "").replace("WireLineage ", "")
}

/// The end of the bracket that `attributes: [` opens.
fn find_end(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(i + 1);
                }
            }
            _ => {}
        }
    }
    None
}
