//! A few engines on a virtual network.

use super::*;
use crate::config::{Config, Durability, Level, Limits};
use crate::output::{Failure, Outcome};
use crate::record::{Base, LOST};
use crate::stamp::{Claim, Stamp};
use crate::wire::EndKind;
use bytes::Bytes;
use std::collections::VecDeque;

mod bounds;
mod clocks;
mod ends;
mod names;
mod sizes;
mod slow;
mod values;

const KEY: SessionKey = SessionKey::from_bytes([7; 16]);

struct Machine {
    engine: Engine<()>,
    links: BTreeMap<usize, LinkId>,
    alive: bool,
}

/// Engines, links, and a clock that is moved by hand.
struct Net {
    now: Mono,
    nodes: Vec<Machine>,
    links: BTreeMap<LinkId, (usize, usize, LinkId)>,
    wires: VecDeque<(Mono, usize, LinkId, Vec<u8>)>,
    /// From one node to another.
    delay: Duration,
    next_link: u64,
    next_life: u64,
    settled: BTreeMap<Ticket, Outcome>,
    durable: Vec<(usize, SessionKey, Claim, u32, Level)>,
    events: Vec<(usize, crate::output::Event)>,
    cut: Vec<(usize, usize)>,
    /// Who asked the store, and whether it owned the session already.
    loads: Vec<(usize, bool)>,
    config: Config,
    rows: BTreeMap<SessionKey, Row>,
    /// What the store knows of ends.
    markers: BTreeMap<SessionKey, (EndKind, Option<SessionKey>)>,
}

/// A row of a store whose clock is the net's.
struct Row {
    stamp: Stamp,
    record: Bytes,
    written: Mono,
    touched: Mono,
    expires: Mono,
}

impl Net {
    fn new(n: usize, config: Config) -> Net {
        let mut net = Net {
            now: Mono::from_micros(1_000_000),
            nodes: Vec::new(),
            links: BTreeMap::new(),
            wires: VecDeque::new(),
            delay: Duration::ZERO,
            next_link: 0,
            next_life: 0,
            settled: BTreeMap::new(),
            durable: Vec::new(),
            events: Vec::new(),
            cut: Vec::new(),
            loads: Vec::new(),
            config,
            rows: BTreeMap::new(),
            markers: BTreeMap::new(),
        };
        for i in 0..n {
            net.start(i);
        }
        net.run(Duration::from_secs(2));
        net
    }

    fn start(&mut self, at: usize) {
        self.next_life += 1;
        let node = Node {
            name: format!("n{at}").into(),
            addr: format!("a{at}").into(),
            boot: self.next_life,
            life: Life::new(self.next_life << 48 | 1),
            zone: 0,
            observer: false,
            http: "".into(),
            backups: 1,
            stores: false,
        };
        let shards = if self.config.shards == Config::default().shards { 2 } else { self.config.shards };
        let config = Config { shards, ..self.config.clone() }.check().unwrap();
        let engine = Engine::new(config, node, self.next_life, self.now).unwrap();
        let machine = Machine { engine, links: BTreeMap::new(), alive: true };
        if at < self.nodes.len() {
            self.nodes[at] = machine
        } else {
            self.nodes.push(machine)
        }
        for other in 0..self.nodes.len() {
            if other != at && self.nodes[other].alive {
                self.connect(at, other);
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        if self.nodes[a].links.contains_key(&b) || self.cut.contains(&(a.min(b), a.max(b))) || !self.nodes[b].alive || !self.nodes[a].alive
        {
            return;
        }
        let (x, y) = (LinkId(self.next_link), LinkId(self.next_link + 1));
        self.next_link += 2;
        self.links.insert(x, (a, b, y));
        self.links.insert(y, (b, a, x));
        self.nodes[a].links.insert(b, x);
        self.nodes[b].links.insert(a, y);
        let (na, nb) = (self.nodes[a].engine.me(), self.nodes[b].engine.me());
        self.call(a, |e, now, out| e.handle_link(now, x, LinkEvent::Up { node: nb, initiated: true }, out));
        self.call(b, |e, now, out| e.handle_link(now, y, LinkEvent::Up { node: na, initiated: false }, out));
    }

    fn disconnect(&mut self, a: usize, b: usize) {
        let Some(x) = self.nodes[a].links.remove(&b) else { return };
        let y = self.nodes[b].links.remove(&a).unwrap();
        self.links.remove(&x);
        self.links.remove(&y);
        if self.nodes[a].alive {
            self.call(a, |e, now, out| e.handle_link(now, x, LinkEvent::Closed, out));
        }
        if self.nodes[b].alive {
            self.call(b, |e, now, out| e.handle_link(now, y, LinkEvent::Closed, out));
        }
    }

    fn kill(&mut self, at: usize) {
        self.nodes[at].alive = false;
        self.wires.retain(|(_, n, ..)| *n != at);
        for other in 0..self.nodes.len() {
            self.disconnect(at, other);
        }
    }

    fn call<R>(&mut self, at: usize, f: impl FnOnce(&Engine<()>, Mono, &mut Outputs) -> R) -> R {
        let mut out = Outputs::new();
        let result = f(&self.nodes[at].engine, self.now, &mut out);
        self.carry_out(at, out.drain().collect());
        result
    }

    fn carry_out(&mut self, at: usize, effects: Vec<Output>) {
        for effect in effects {
            match effect {
                Output::Flush(id) => {
                    let mut bytes = Vec::new();
                    self.nodes[at].engine.take_bytes(id, &mut bytes);
                    if let Some((_, to, theirs)) = self.links.get(&id) {
                        self.wires.push_back((self.now + self.delay, *to, *theirs, bytes));
                    }
                }
                Output::Connect { life, .. } => {
                    let other = (0..self.nodes.len()).find(|i| self.nodes[*i].alive && self.nodes[*i].engine.life() == life);
                    match other {
                        Some(other) => self.connect(at, other),
                        None => {
                            let mut out = Outputs::new();
                            self.nodes[at].engine.handle_refused(self.now, life, &mut out);
                            self.carry_out(at, out.drain().collect());
                        }
                    }
                }
                Output::Settled(ticket, outcome) => {
                    self.settled.insert(ticket, outcome);
                }
                Output::Load(key) => {
                    self.loads.push((at, self.nodes[at].engine.info(key).is_some_and(|i| i.owned)));
                    let loaded = match self.rows.get(&key) {
                        None => Loaded::Missing,
                        Some(row) => {
                            let (age, touched) = (self.now.since(row.written), self.now.since(row.touched));
                            Loaded::Here { record: row.record.clone(), age, touched }
                        }
                    };
                    self.call(at, |e, now, out| e.handle_loaded(now, key, &loaded, out));
                }
                Output::StoreReady => self.store(at),
                Output::Durable { key, claim, version, level, .. } => self.durable.push((at, key, claim, version, level)),
                Output::Event(_, event) => self.events.push((at, event)),
                Output::Close(id) => {
                    if let Some((_, other, _)) = self.links.get(&id) {
                        self.disconnect(at, *other);
                    }
                }
                _ => {}
            }
        }
    }

    /// The store takes what waits for it.
    fn store(&mut self, at: usize) {
        for write in self.call(at, |e, now, out| e.take_writes(now, 1000, out)) {
            let Write::Put { key, expect, stamp, record, expires_in } = write else {
                self.mark(at, write);
                continue;
            };
            let applies = self.rows.get(&key).map(|row| row.stamp) == expect;
            if applies {
                let row = Row { stamp, record, written: self.now, touched: self.now, expires: self.now + expires_in };
                self.rows.insert(key, row);
            }
            let written = if applies { Written::Applied } else { Written::Mismatch };
            self.call(at, |e, now, out| e.handle_written(now, key, written, out));
        }
        for Touch { key, stamp, ago, expires_in } in self.call(at, |e, now, out| e.take_touches(now, 1000, out)) {
            let now = self.now;
            let written = match self.rows.get_mut(&key).filter(|row| row.stamp == stamp) {
                Some(row) => {
                    (row.touched, row.expires) = (row.touched.max(now - ago), now + expires_in);
                    Written::Applied
                }
                None => Written::Mismatch,
            };
            self.call(at, |e, now, out| e.handle_touched(now, key, written, out));
        }
    }

    /// The store leaves a marker, and says what it is.
    fn mark(&mut self, at: usize, write: Write) {
        let Write::End { key, mut kind, mut next, .. } = write else { return };
        if let Some((before, named)) = self.markers.get(&key) {
            kind = if kind.overrides(*before) { kind } else { *before };
            next = next.into_iter().chain(*named).min();
        }
        self.markers.insert(key, (kind, next));
        self.call(at, |e, now, out| e.handle_written(now, key, Written::Ended(kind, next), out));
    }

    fn sweep_store(&mut self) {
        let now = self.now;
        self.rows.retain(|_, row| row.expires > now);
    }

    fn deliver(&mut self) {
        while self.wires.front().is_some_and(|(due, ..)| *due <= self.now)
            && let Some((_, to, link, bytes)) = self.wires.pop_front()
        {
            if self.nodes[to].alive && self.links.contains_key(&link) {
                let done = self.call(to, |e, now, out| e.handle_bytes(now, link, &bytes, out)).unwrap();
                assert_eq!(done, bytes.len());
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        self.deliver();
        while self.now < until {
            self.now = self.now + Duration::from_millis(10);
            for at in 0..self.nodes.len() {
                if self.nodes[at].alive {
                    self.call(at, |e, now, out| e.handle_timer(now, out));
                    self.call(at, |e, now, out| e.handle_tick(now, 1000, out));
                }
            }
            self.deliver();
        }
    }

    fn open(&mut self, at: usize, token: Option<Stamp>) -> Result<Opened<()>, Outcome> {
        for _ in 0..20 {
            let token = token.map(|stamp| Brought { stamp, expired: false });
            match self.call(at, |e, now, out| e.open(now, KEY, token, out)) {
                Open::Here(opened) => return Ok(opened),
                Open::Wait(ticket) => {
                    // Tickets are numbered per node; a test waits for one at a time.
                    for _ in 0..1000 {
                        self.deliver();
                        if self.settled.contains_key(&ticket) {
                            break;
                        }
                        self.run(Duration::from_millis(10));
                    }
                    match self.settled.remove(&ticket).expect("the ticket is settled") {
                        Outcome::Again => {}
                        other => return Err(other),
                    }
                }
                Open::NotFound => return Err(Outcome::NotFound),
                Open::Ended(kind, ago) => return Err(Outcome::Ended(kind, ago)),
                Open::Unavailable(why, after) => return Err(Outcome::Unavailable(why, after)),
            }
        }
        panic!("the session keeps moving");
    }

    /// Appends to the list `log`, and closes.
    fn append(&mut self, at: usize, opened: &Opened<()>, value: u8) -> Commit {
        let change = self.nodes[at]
            .engine
            .read(opened, |r, _| {
                let old = r.get("log");
                let mut bytes = old.map(|a| a.value.to_vec()).unwrap_or_default();
                bytes.push(value);
                Change { name: "log".into(), base: old.map(|a| a.dot).into(), value: Some(Bytes::from(bytes)) }
            })
            .unwrap();
        let commit = self.call(at, |e, now, out| e.commit(now, opened, &[change], out));
        self.call(at, |e, now, out| e.close(now, opened, out));
        self.deliver();
        commit
    }

    fn log(&mut self, at: usize, opened: &Opened<()>) -> Vec<u8> {
        self.nodes[at].engine.read(opened, |r, _| r.get("log").map(|a| a.value.to_vec()).unwrap_or_default()).unwrap()
    }

    fn create(&mut self, at: usize) -> Opened<()> {
        self.call(at, |e, now, out| e.create(now, KEY, out)).unwrap()
    }

    fn read(&mut self, at: usize, token: Option<Stamp>) -> Result<Vec<u8>, Outcome> {
        let opened = self.open(at, token)?;
        let log = self.log(at, &opened);
        self.call(at, |e, now, out| e.close(now, &opened, out));
        Ok(log)
    }

    /// A session of its own with one commit, and a visitor.
    fn put(&mut self, at: usize, key: SessionKey) {
        let opened = self.call(at, |e, now, out| e.create(now, key, out)).unwrap();
        waited(self.append(at, &opened, 1));
        // Its cookie comes back.
        let opened = self.open_now(at, key);
        self.call(at, |e, now, out| e.close(now, &opened, out));
    }

    fn open_now(&mut self, at: usize, key: SessionKey) -> Opened<()> {
        match self.call(at, |e, now, out| e.open(now, key, None, out)) {
            Open::Here(opened) => opened,
            other => panic!("{other:?}"),
        }
    }

    fn owned(&self, at: usize) -> u64 {
        self.nodes[at].engine.stats(self.now).owned
    }

    fn holders(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|i| self.nodes[*i].alive && self.nodes[*i].engine.info(KEY).is_some_and(|i| i.held)).collect()
    }
}

fn waited(commit: Commit) -> Stamp {
    match commit {
        Commit::Wait { stamp, .. } | Commit::Done { stamp, .. } => stamp.unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_alone_commits_at_owner_without_a_message() {
    let mut net = Net::new(1, Config::default());
    let opened = net.create(0);
    let commit = net.append(0, &opened, 1);
    assert!(matches!(commit, Commit::Done { level: Level::Owner, .. }), "{commit:?}");
    assert_eq!(net.read(0, None).unwrap(), [1]);
}

#[test]
fn a_commit_is_durable_when_the_backup_has_it_and_survives_the_owner() {
    let mut net = Net::new(3, Config::default());
    assert!((0..3).all(|i| net.nodes[i].engine.stats(net.now).members == 3));
    let opened = net.create(0);
    let stamp = waited(net.append(0, &opened, 1));
    assert!(net.durable.iter().any(|d| d.2.at(d.3) == stamp && d.4 == Level::Backup(1)), "{:?}", net.durable);
    for v in 2..=5 {
        let opened = net.open(0, None).unwrap();
        waited(net.append(0, &opened, v));
    }
    let token = net.nodes[0].engine.info(KEY).unwrap().tip;
    net.kill(0);
    let next = 1;
    assert_eq!(net.read(next, Some(token)).unwrap(), [1, 2, 3, 4, 5]);
    net.run(Duration::from_secs(2));
    assert_eq!(net.holders(), [1, 2]);
}

#[test]
fn a_dead_owners_session_finds_an_heir_and_a_new_backup() {
    let mut net = Net::new(4, Config::default());
    let opened = net.create(0);
    waited(net.append(0, &opened, 9));
    net.run(Duration::from_secs(1));
    assert_eq!(net.holders().len(), 2);
    net.kill(0);
    net.run(Duration::from_secs(3));
    assert_eq!(net.holders().len(), 2);
    let owner = (1..4).find(|i| net.nodes[*i].engine.info(KEY).is_some_and(|i| i.owned)).expect("an heir");
    assert_eq!(net.read(owner, None).unwrap(), [9]);
}

#[test]
fn a_session_moves_between_live_nodes_and_then_stays() {
    let mut net = Net::new(3, Config::default());
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    let mut guests = 0;
    for round in 0..6 {
        match net.read(round % 3, None) {
            Ok(log) => assert_eq!(log, [1]),
            Err(Outcome::Guest(guest)) => {
                guests += 1;
                assert_eq!(guest.record.get("log").unwrap().value.as_ref(), [1]);
            }
            Err(other) => panic!("{other:?}"),
        }
        net.run(Duration::from_millis(50));
    }
    assert!(guests > 0);
}

#[test]
fn a_logout_reaches_every_holder_and_nothing_comes_back() {
    let mut net = Net::new(3, Config::default());
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    let ticket = net.call(0, |e, now, out| e.end(now, KEY, None, out));
    net.deliver();
    assert!(matches!(net.settled.remove(&ticket), Some(Outcome::End(true))));
    for at in 0..3 {
        assert!(matches!(net.read(at, None), Err(Outcome::Ended(EndKind::Invalidated, _))), "node {at}");
    }
}

#[test]
fn branches_of_a_partition_merge_when_it_heals() {
    let mut net = Net::new(2, Config::default());
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    net.cut.push((0, 1));
    net.disconnect(0, 1);
    net.run(Duration::from_secs(5));
    let put = |net: &mut Net, at: usize, name: &str| {
        let opened = net.open(at, None).unwrap();
        let change = Change { name: name.into(), base: Base::Absent, value: Some(Bytes::from_static(b"x")) };
        let commit = net.call(at, |e, now, out| e.commit(now, &opened, &[change], out));
        net.call(at, |e, now, out| e.close(now, &opened, out));
        assert!(matches!(commit, Commit::Done { .. }), "{commit:?}");
    };
    put(&mut net, 0, "a");
    put(&mut net, 1, "b");
    net.cut.clear();
    net.connect(0, 1);
    net.run(Duration::from_secs(3));
    let opened = net.open(0, None).unwrap();
    let names = net.nodes[0].engine.read(&opened, |r, _| r.attributes().iter().map(|a| a.name.to_string()).collect::<Vec<_>>()).unwrap();
    assert_eq!(names, ["a", "b", "log"]);
}

#[test]
fn a_drained_node_keeps_nothing_that_others_lack() {
    let mut net = Net::new(3, Config::default());
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    net.call(0, |e, now, out| e.drain(now, out));
    net.run(Duration::from_secs(2));
    assert_eq!(net.nodes[0].engine.drained(), Drained { left: 0, newcomers: 0, alone: false, untold: 0 });
    assert_eq!(net.holders(), [1, 2]);
    net.call(0, |e, now, out| e.stop(now, out));
    net.kill(0);
    assert_eq!(net.read(1, None).unwrap(), [1]);
}

#[test]
fn a_session_that_begins_on_a_leaving_node_is_handed_over() {
    let mut net = Net::new(3, Config::default());
    net.call(0, |e, now, out| e.drain(now, out));
    net.deliver();
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    assert_eq!(net.nodes[0].engine.drained(), Drained { left: 1, newcomers: 1, alone: false, untold: 0 });
    net.run(Duration::from_secs(1));
    assert_eq!(net.nodes[0].engine.drained(), Drained { left: 0, newcomers: 0, alone: false, untold: 0 });
    assert_eq!(net.holders(), [1, 2]);
}

#[test]
fn a_drain_invites_to_few_sessions_at_a_time_and_comes_to_its_end() {
    let mut net = Net::new(3, Config::default());
    let keys: Vec<SessionKey> = (0..2000_u128).map(|n| SessionKey::from_bytes((n << 64 | n).to_be_bytes())).collect();
    for key in &keys {
        net.put(0, *key);
    }
    net.call(0, |e, now, out| e.drain(now, out));
    net.run(Duration::from_secs(5));
    assert_eq!(net.nodes[0].engine.drained(), Drained { left: 0, newcomers: 0, alone: false, untold: 0 });
    assert_eq!(net.owned(1) + net.owned(2), 2000);
}

#[test]
fn a_node_that_joins_gets_a_share_of_the_sessions_that_nobody_uses() {
    let mut net = Net::new(3, Config { uneven: 0, ..Config::default() });
    net.kill(2);
    net.run(Duration::from_secs(5));
    let keys: Vec<SessionKey> = (0..600_u128).map(|n| SessionKey::from_bytes((n << 64 | n).to_be_bytes())).collect();
    for (n, key) in keys.iter().enumerate() {
        net.put(n % 2, *key);
    }
    let busy: Vec<_> = keys[..100].iter().enumerate().map(|(n, key)| (n % 2, net.open_now(n % 2, *key))).collect();
    net.start(2);
    net.run(Duration::from_secs(5));
    assert_eq!([0, 1, 2].map(|at| net.owned(at)), [300, 300, 0], "what was used a moment ago stays");
    net.run(Duration::from_secs(15));
    let owned = [0, 1, 2].map(|at| net.owned(at));
    assert_eq!(owned.iter().sum::<u64>(), 600, "{owned:?}");
    assert!((150..=220).contains(&owned[2]), "{owned:?}");
    assert!(
        busy.iter().all(|(at, opened)| net.nodes[*at].engine.info(opened.key).is_some_and(|i| i.owned)),
        "one that is in use has moved"
    );
    // Where sessions are even nothing moves.
    net.run(Duration::from_secs(15));
    assert!([0, 1, 2].map(|at| net.owned(at)).iter().zip(owned).all(|(now, then)| now.abs_diff(then) < 20));

    // The browser still comes to the node that it knows: that one answers from its copy, and the session stays where it is.
    let moved = |net: &Net, at: usize, key: &SessionKey| net.nodes[at].engine.info(*key).is_some_and(|i| i.owned);
    let key = *keys.iter().enumerate().find(|(n, key)| *n % 2 == 0 && moved(&net, 2, key)).expect("one that moved").1;
    for _ in 0..3 {
        let ticket = match net.call(0, |e, now, out| e.open(now, key, None, out)) {
            Open::Wait(ticket) => ticket,
            other => panic!("{other:?}"),
        };
        net.run(Duration::from_millis(100));
        assert!(matches!(net.settled.remove(&ticket), Some(Outcome::Guest(_))));
        assert!(moved(&net, 2, &key));
    }
    // A browser that comes there for good gets its session back, and it is not offered again.
    net.run(Duration::from_secs(15));
    net.call(0, |e, now, out| e.open(now, key, None, out));
    net.run(Duration::from_secs(15));
    assert!(moved(&net, 0, &key));
}

#[test]
fn an_end_outlives_the_nodes_that_heard_of_it() {
    let mut net = Net::new(3, Config::default());
    let opened = net.create(0);
    let stamp = waited(net.append(0, &opened, 1));
    net.call(0, |e, now, out| e.end(now, KEY, None, out));
    for at in 0..3 {
        net.run(Duration::from_secs(1));
        net.kill(at);
        net.run(Duration::from_secs(1));
        net.start(at);
    }
    net.run(Duration::from_secs(1));
    for at in 0..3 {
        let read = net.read(at, Some(stamp));
        assert!(matches!(read, Err(Outcome::Ended(EndKind::Invalidated, _))), "node {at}: {read:?}");
    }
}

#[test]
fn an_end_that_somebody_on_the_list_has_not_heard_counts_as_a_missing_copy() {
    let mut net = Net::new(3, Config::default());
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    net.call(0, |e, now, out| e.end(now, KEY, None, out));
    net.run(Duration::from_secs(1));
    let first = net.nodes[0].engine.placed(KEY)[0];
    let gone = (0..3).find(|at| net.nodes[*at].engine.life() == first).unwrap();
    let others: Vec<usize> = (0..3).filter(|at| *at != gone).collect();
    net.kill(gone);
    net.run(Duration::from_secs(1));
    net.start(gone);
    for at in &others {
        // It is back in its place, and nothing has come to it yet.
        net.call(*at, |e, now, out| e.handle_tick(now, 1000, out));
        let stats = net.nodes[*at].engine.stats(net.now);
        assert_eq!((stats.under_replicated, stats.settled), (1, false), "node {at}");
    }
    net.run(Duration::from_secs(1));
    let all: Vec<_> = (0..3).map(|at| net.nodes[at].engine.stats(net.now)).collect();
    for stats in &all {
        assert_eq!((stats.under_replicated, stats.settled, stats.membership), (0, true, all[0].membership));
    }
}

#[test]
fn a_change_that_a_broken_link_took_along_goes_again_and_is_done_once() {
    for lost in [true, false] {
        let mut net = Net::new(2, Config::default());
        let opened = net.create(0);
        waited(net.append(0, &opened, 1));
        let (guest, served) = (0..10).find_map(|turn| Some((turn % 2, net.read(turn % 2, None).err()?))).expect("a guest");
        let Outcome::Guest(served) = served else { panic!("{served:?}") };
        let log = served.record.get("log").unwrap();
        let change = Change { name: "log".into(), base: Base::At(log.dot), value: Some(Bytes::from_static(&[1, 2])) };
        let ticket = net.call(guest, |e, now, out| e.commit_late(now, KEY, Some(log.dot), &[change], out));
        if lost {
            net.wires.clear();
        } else {
            // The owner gets it, and its answer is lost.
            let (_, to, link, bytes) = net.wires.pop_front().unwrap();
            net.call(to, |e, now, out| e.handle_bytes(now, link, &bytes, out)).unwrap();
            net.wires.clear();
        }
        net.disconnect(0, 1);
        net.connect(0, 1);
        // It goes again before the owner can know that the first one is durable.
        net.now = net.now + Duration::from_millis(60);
        net.call(guest, |e, now, out| e.handle_timer(now, out));
        net.run(Duration::from_secs(1));
        let outcome = net.settled.remove(&ticket);
        assert!(matches!(outcome, Some(Outcome::Late { .. })), "{outcome:?}");
        assert_eq!(net.read(1 - guest, None).unwrap(), [1, 2]);
    }
}

/// A request that runs at node 0 while its session moves to node 1, which takes it along when it dies.
fn taken_along(net: &mut Net, known: bool) -> (Opened<()>, Change) {
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    let running = net.open(0, None).unwrap();
    let change = Change { name: "other".into(), base: Base::Absent, value: Some(Bytes::from_static(&[2])) };
    assert_eq!(net.read(1, None).unwrap(), [1]);
    assert_eq!((net.owned(0), net.owned(1)), (0, 1));
    if known {
        net.kill(1);
        net.run(Duration::from_secs(1));
    }
    (running, change)
}

fn lonely(lost_after: Duration) -> Config {
    Config { durability: Durability::Owner, backups: 0, lost_after, ..Config::default() }
}

#[test]
fn a_late_commit_of_a_session_that_went_with_its_node_is_not_called_one_of_a_session_that_ended() {
    // With a third node that has to be asked, and with nobody.
    for nodes in [3, 2] {
        let mut net = Net::new(nodes, lonely(Duration::ZERO));
        let (running, change) = taken_along(&mut net, true);
        let Commit::Late(ticket) = net.call(0, |e, now, out| e.commit(now, &running, &[change], out)) else { panic!("it is here") };
        net.run(Duration::from_secs(1));
        // It went nowhere, and what it started from is gone.
        let outcome = net.settled.remove(&ticket);
        assert!(matches!(outcome, Some(Outcome::LateFailed(Failure::Conflict))), "{nodes} nodes: {outcome:?}");
    }
}

#[test]
fn a_late_commit_that_its_owner_took_along_is_unknown() {
    let mut net = Net::new(3, lonely(Duration::ZERO));
    let (running, change) = taken_along(&mut net, false);
    let Commit::Late(ticket) = net.call(0, |e, now, out| e.commit(now, &running, &[change], out)) else { panic!("it is here") };
    // It is on its way, or there, when the owner dies.
    net.kill(1);
    net.run(Duration::from_secs(1));
    let outcome = net.settled.remove(&ticket);
    assert!(matches!(outcome, Some(Outcome::LateFailed(Failure::Unknown))), "{outcome:?}");
}

#[test]
fn a_late_commit_that_reached_nobody_is_not_unknown() {
    let mut net = Net::new(3, lonely(Duration::from_secs(30)));
    let (running, change) = taken_along(&mut net, true);
    let Commit::Late(ticket) = net.call(0, |e, now, out| e.commit(now, &running, &[change], out)) else { panic!("it is here") };
    net.run(Duration::from_secs(6));
    let outcome = net.settled.remove(&ticket);
    assert!(matches!(outcome, Some(Outcome::LateFailed(Failure::Unreached))), "{outcome:?}");
}

#[test]
fn a_late_commit_of_a_session_that_has_expired_is_called_one_of_a_session_that_ended() {
    let mut net = Net::new(3, Config { limits: Limits { idle: Duration::from_secs(2), ..Limits::default() }, ..lonely(Duration::ZERO) });
    let (running, change) = taken_along(&mut net, false);
    net.run(Duration::from_secs(10));
    let Commit::Late(ticket) = net.call(0, |e, now, out| e.commit(now, &running, &[change], out)) else { panic!("it is here") };
    net.run(Duration::from_secs(1));
    let outcome = net.settled.remove(&ticket);
    assert!(matches!(outcome, Some(Outcome::LateFailed(Failure::Ended))), "{outcome:?}");
}

#[test]
fn nobody_has_it_only_when_everybody_said_so() {
    let mut net = Net::new(3, Config::default());
    assert!(matches!(net.read(2, None), Err(Outcome::NotFound)));
    let mut net = Net::new(3, Config::default());
    net.kill(1);
    assert!(matches!(net.read(2, None), Err(Outcome::Unavailable(..))));
    net.run(Duration::from_secs(40));
    assert!(matches!(net.read(2, None), Err(Outcome::NotFound)));
}

#[test]
fn a_slow_network_is_waited_for_once_it_is_known_to_be_slow() {
    let mut net = Net::new(3, Config::default());
    net.delay = Config::default().lookup_bound * 7 / 10;
    assert!(matches!(net.read(2, None), Err(Outcome::Unavailable(..))));
    net.run(Duration::from_secs(1));
    assert!(matches!(net.read(2, None), Err(Outcome::NotFound)));
    // Answers in time renew what is known.
    for _ in 0..3 {
        net.run(crate::limits::SLOW_KEEP * 2 / 3);
        assert!(matches!(net.read(2, None), Err(Outcome::NotFound)));
    }
    // After a while without slow answers a silent node is given up as soon as ever.
    net.delay = Duration::ZERO;
    net.run(crate::limits::SLOW_KEEP);
    net.delay = Duration::from_secs(3600);
    let before = net.now;
    assert!(matches!(net.read(2, None), Err(Outcome::Unavailable(..))));
    assert!(net.now.since(before) <= Config::default().lookup_bound * 5 / 2);
}

#[test]
fn a_network_slower_than_any_bound_stays_unavailable() {
    let mut net = Net::new(3, Config::default());
    net.delay = crate::limits::LOOKUP_BOUND_SLOW * 6 / 10;
    for _ in 0..5 {
        assert!(matches!(net.read(2, None), Err(Outcome::Unavailable(..))));
        net.run(Duration::from_secs(3));
    }
}

#[test]
fn a_commit_that_was_lost_is_said_to_be_lost_once() {
    let config = Config { durability: Durability::Owner, backups: 0, ..Config::default() };
    let mut net = Net::new(2, config);
    let opened = net.create(0);
    let stamp = waited(net.append(0, &opened, 1));
    net.kill(0);
    net.run(Duration::from_secs(1));
    assert!(matches!(net.read(1, Some(stamp)), Err(Outcome::Unavailable(..))));
    net.run(Duration::from_secs(40));
    let opened = net.open(1, Some(stamp)).unwrap();
    let stays = |net: &Net, at: usize, opened| net.nodes[at].engine.read(opened, |r, _| r.get(LOST).map(|a| a.value.clone())).unwrap();
    assert_eq!(stays(&net, 1, &opened).as_deref(), Some(&1u32.to_be_bytes()[..]));
    net.call(1, |e, now, out| e.close(now, &opened, out));
    let opened = net.open(1, Some(stamp)).unwrap();
    assert!(stays(&net, 1, &opened).is_some(), "until whoever tells the client removes it");
    let losses = net.events.iter().filter(|(_, e)| matches!(e, crate::output::Event::Lost { commits: 1, .. }));
    assert_eq!(losses.count(), 1);
}

/// Two nodes, of which the first leaves and has made a commit that it has handed to nobody yet.
fn leaving_with_a_commit() -> (Net, Stamp) {
    let mut net = Net::new(2, Config { durability: Durability::Owner, backups: 0, ..Config::default() });
    net.call(0, |e, now, out| e.drain(now, out));
    net.deliver();
    let opened = net.create(0);
    let stamp = waited(net.append(0, &opened, 1));
    assert_eq!(net.nodes[0].engine.drained().left, 1);
    (net, stamp)
}

#[test]
fn a_node_that_is_killed_while_it_leaves_has_handed_over_nothing_by_that() {
    let (mut net, stamp) = leaving_with_a_commit();
    net.kill(0);
    net.run(Duration::from_secs(1));
    assert!(net.nodes[1].engine.members().iter().any(|m| m.leaving && m.state == State::Dead));
    // It is only thought dead.
    assert!(matches!(net.read(1, Some(stamp)), Err(Outcome::Unavailable(..))));
    net.run(Duration::from_secs(40));
    net.open(1, Some(stamp)).unwrap();
    assert!(net.events.iter().any(|(_, e)| matches!(e, crate::output::Event::Lost { .. })));
}

#[test]
fn a_node_that_gives_its_drain_up_has_not_handed_over_what_is_left() {
    let (mut net, stamp) = leaving_with_a_commit();
    net.call(0, |e, now, out| e.stop(now, out));
    net.deliver();
    net.kill(0);
    net.run(Duration::from_secs(1));
    assert!(matches!(net.read(1, Some(stamp)), Err(Outcome::Unavailable(..))));
}

#[test]
fn nobody_waits_for_a_node_that_has_handed_over_all_that_it_held() {
    let (mut net, stamp) = leaving_with_a_commit();
    net.run(Duration::from_secs(1));
    assert_eq!(net.nodes[0].engine.drained().left, 0);
    net.call(0, |e, now, out| e.stop(now, out));
    net.deliver();
    net.kill(0);
    net.run(Duration::from_secs(1));
    assert_eq!(net.read(1, Some(stamp)).unwrap(), [1]);
    // What is missing is missed at once.
    let never = Stamp { version: stamp.version + 1, ..stamp };
    net.open(1, Some(never)).unwrap();
    assert!(net.events.iter().any(|(_, e)| matches!(e, crate::output::Event::Lost { .. })));
}

#[test]
fn where_nodes_differ_everybody_makes_as_many_copies_as_the_greatest_wants_and_waits_for_its_own_number() {
    let mut net = Net::new(4, Config::default());
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    net.run(Duration::from_secs(1));
    assert_eq!(net.holders().len(), 2);
    // One more, restarted with another setting: nobody else was told to make more.
    net.config.backups = 2;
    net.kill(3);
    net.run(Duration::from_secs(1));
    net.start(3);
    net.run(Duration::from_secs(3));
    assert_eq!(net.holders().len(), 3, "owner and two copies");
    assert!((0..4).all(|i| net.nodes[i].engine.stats(net.now).settled));
    let owner = (0..4).find(|i| net.nodes[*i].engine.info(KEY).is_some_and(|i| i.owned)).unwrap();
    // A node whose own number is 1 waits for one copy only.
    net.durable.clear();
    let opened = net.open(owner, None).unwrap();
    let stamp = waited(net.append(owner, &opened, 2));
    assert_eq!(net.durable.iter().find(|d| d.2.at(d.3) == stamp).map(|d| d.4), Some(Level::Backup(1)));
    // The node whose own number is 2 waits for both, wherever the session was before.
    let opened = net.open(3, None).unwrap();
    net.durable.clear();
    let stamp = waited(net.append(3, &opened, 3));
    assert_eq!(net.durable.iter().find(|d| d.2.at(d.3) == stamp).map(|d| d.4), Some(Level::Backup(2)));
    // Both who had it die at once but one: what was acknowledged by two copies is there.
    let victims: Vec<usize> = net.holders().into_iter().filter(|i| *i != 3).take(1).chain([3]).collect();
    for victim in victims {
        net.kill(victim);
    }
    let left = net.holders();
    assert_eq!(left.len(), 1);
    let reader = (0..4).find(|i| net.nodes[*i].alive && !left.contains(i)).unwrap();
    assert_eq!(net.read(reader, Some(stamp)).unwrap(), [1, 2, 3]);
    // Nobody wants two any more.
    net.run(Duration::from_secs(4));
    assert_eq!(net.holders().len(), 2);
}

#[test]
fn a_commit_that_is_in_the_store_alone_is_looked_for_there_by_nodes_of_another_level() {
    let mut net = Net::new(2, Config { store: true, durability: Durability::Store, ..Config::default() });
    net.config.durability = Durability::Backup;
    net.kill(1);
    net.start(1);
    net.run(Duration::from_secs(2));
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    assert!(net.loads.is_empty());
    net.kill(0);
    net.run(Duration::from_secs(4));
    assert_eq!(net.loads.first(), Some(&(1, false)), "the heir has a copy, and its owner called commits done that only the store had");
    let mut net = Net::new(2, Config { store: true, ..Config::default() });
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    net.kill(0);
    assert_eq!(net.read(1, None).unwrap(), [1]);
    assert!(net.loads.iter().all(|(_, owned)| *owned), "nobody did; who owns it asks what it may overwrite");
}

#[test]
fn a_look_is_no_use_and_an_opening_is_one() {
    let mut limits = Config::default().limits;
    limits.idle = Duration::from_secs(60);
    let mut net = Net::new(2, Config { limits, ..Config::default() });
    let opened = net.create(0);
    let stamp = waited(net.append(0, &opened, 1));
    net.call(0, |e, now, out| e.close(now, &opened, out));
    for _ in 0..3 {
        net.run(Duration::from_secs(45));
        assert!(net.read(0, Some(stamp)).is_ok());
    }
    let looked = |net: &mut Net| match net.call(0, |e, now, out| e.look(now, KEY, None, out)) {
        Open::Here(opened) => {
            net.call(0, |e, now, out| e.close(now, &opened, out));
            true
        }
        _ => false,
    };
    let mut looks = 0;
    while looked(&mut net) {
        looks += 1;
        assert!(looks < 10, "looks keep it alive");
        net.run(Duration::from_secs(20));
    }
    assert_eq!(looks, 4, "at 0, 20, 40 and 60 s");
}

#[test]
fn a_shard_does_not_go_back_to_a_membership_that_was_overtaken() {
    let net = &mut Net::new(2, Config::default());
    let old = net.nodes[0].engine.shards[0].lock().view.clone();
    net.cut.push((0, 1));
    net.disconnect(0, 1);
    let new = net.nodes[0].engine.shards[0].lock().view.clone();
    assert!(new.order > old.order && new.links.is_empty());
    net.call(0, |e, now, out| e.with(now, 0, out, |s, cx| s.set_view(cx, old.clone())));
    assert_eq!(net.nodes[0].engine.shards[0].lock().view.order, new.order);
}

#[test]
fn nobody_waits_for_the_membership_while_the_sessions_hear_of_its_change() {
    let net = &mut Net::new(2, Config::default());
    let engine = &net.nodes[0].engine;
    let link = net.nodes[0].links[&1];
    // A request of one part of the table takes its time.
    let shard = engine.shards[0].lock();
    std::thread::scope(|scope| {
        let now = net.now;
        let change = scope.spawn(move || engine.handle_link(now, link, LinkEvent::Closed, &mut Outputs::new()));
        // The change has come as far as that part: its links are gone, and its lock is free.
        while engine.world.try_lock().is_none_or(|world| world.links.contains_key(&Life::new(2 << 48 | 1))) {
            std::thread::yield_now();
        }
        assert!(!change.is_finished());
        assert_eq!(engine.members().len(), 2);
        drop(shard);
    });
    assert!(net.nodes[0].engine.shards[1].lock().view.links.is_empty());
}

/// A session whose owner stays at node 0 and which node 2 serves a copy of; the copy's last commit.
fn served_as_a_guest() -> (Net, Stamp) {
    let mut net = Net::new(3, Config::default());
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    for at in [1, 0] {
        net.read(at, None).unwrap();
    }
    let Err(Outcome::Guest(guest)) = net.open(2, None) else { panic!("the owner stays") };
    assert_eq!(guest.owner, net.nodes[0].engine.life());
    (net, guest.record.tip)
}

#[test]
fn what_an_owner_acknowledges_goes_along_to_the_id_that_another_node_gives() {
    let (mut net, tip) = served_as_a_guest();
    let next = SessionKey::from_bytes([8; 16]);
    let opened = net.open(0, None).unwrap();
    let ticket = net.call(2, |e, now, out| e.end_copied(now, KEY, tip, next, out));
    net.deliver();
    assert!(matches!(net.settled.remove(&ticket), Some(Outcome::Late { .. })));
    let change = Change { name: "log".into(), base: Base::Absent, value: Some(Bytes::from_static(&[2])) };
    assert!(matches!(net.call(0, |e, now, out| e.commit(now, &opened, &[change], out)), Commit::Ended));
    assert!(matches!(net.read(1, None), Err(Outcome::Ended(EndKind::Rotated, _))));
}

#[test]
fn a_session_that_has_changed_since_it_was_copied_keeps_its_id() {
    let (mut net, tip) = served_as_a_guest();
    let opened = net.open(0, None).unwrap();
    waited(net.append(0, &opened, 2));
    let ticket = net.call(2, |e, now, out| e.end_copied(now, KEY, tip, SessionKey::from_bytes([8; 16]), out));
    net.deliver();
    assert!(matches!(net.settled.remove(&ticket), Some(Outcome::LateFailed(Failure::Conflict))));
    assert_eq!(net.read(0, None).unwrap(), [1, 2]);
}

#[test]
fn an_answer_to_a_rotation_that_is_lost_is_found_in_what_the_owner_tells_of_the_end() {
    let (mut net, tip) = served_as_a_guest();
    let next = SessionKey::from_bytes([8; 16]);
    let ticket = net.call(2, |e, now, out| e.end_copied(now, KEY, tip, next, out));
    let (_, to, link, bytes) = net.wires.pop_front().unwrap();
    net.call(to, |e, now, out| e.handle_bytes(now, link, &bytes, out)).unwrap();
    net.disconnect(0, 2);
    net.run(Duration::from_secs(1));
    assert!(matches!(net.settled.remove(&ticket), Some(Outcome::Late { .. })));
}
