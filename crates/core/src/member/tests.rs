//! A small network of memberships under one virtual clock: links, delays, crashes, pauses and partitions, all from a seed.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::LazyLock;

const MS: i64 = 1000;
const SECOND: i64 = 1000 * MS;

/// What arrives at a process.
#[derive(Clone, Debug)]
enum Event {
    Packet(Life, Bytes),
    Up(Node),
    Closed(Life),
    Refused(Life),
    /// A connection is asked for by this process at that address.
    Dial {
        addr: Box<str>,
        life: Life,
    },
}

struct Process {
    membership: Membership,
    paused_at: Option<i64>,
    inbox: Vec<Event>,
    seen: Vec<MemberOutput>,
}

/// Processes by life; `at` maps an address to the life that listens there.
struct Net {
    now: i64,
    seed: u64,
    random: u64,
    delay: (i64, i64),
    processes: BTreeMap<Life, Process>,
    at: BTreeMap<Box<str>, Life>,
    links: BTreeSet<(Life, Life)>,
    /// Addresses that cannot reach each other, as unordered pairs.
    cuts: BTreeSet<(Box<str>, Box<str>)>,
    /// Addresses that refuse connections though somebody lives there.
    deaf: BTreeSet<Box<str>>,
    queue: BTreeMap<(i64, u64), (Life, Event)>,
    sent: u64,
    last: BTreeMap<(Life, Life), i64>,
    /// What every process put out, if wanted.
    trace: Option<Vec<String>>,
    bytes: u64,
}

impl Net {
    fn new(seed: u64) -> Net {
        Net {
            now: 0,
            seed,
            random: seed,
            delay: (MS / 10, 2 * MS),
            processes: BTreeMap::new(),
            at: BTreeMap::new(),
            links: BTreeSet::new(),
            cuts: BTreeSet::new(),
            deaf: BTreeSet::new(),
            queue: BTreeMap::new(),
            sent: 0,
            last: BTreeMap::new(),
            trace: None,
            bytes: 0,
        }
    }

    /// `n` nodes, all joined through the first one.
    fn of(seed: u64, n: u64) -> Net {
        let mut net = Net::new(seed);
        for i in 0..n {
            net.start(i, 1, 1);
        }
        net.run(5 * SECOND);
        net.assert_all_know_each_other();
        net
    }

    fn draw(&mut self, below: i64) -> i64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.random >> 33) as i64) % below.max(1)
    }

    fn life(i: u64, start: u64) -> Life {
        Life::new(blake3::hash(&[i as u8, start as u8]).as_bytes()[..8].iter().fold(0, |bits, byte| (bits << 8) | u64::from(*byte)))
    }

    fn addr(i: u64) -> Box<str> {
        format!("10.0.0.{i}:7000").into()
    }

    /// Starts node `i` for the `start`th time; it dials the lowest other node that listens.
    fn start(&mut self, i: u64, start: u64, boot: u64) -> Life {
        let life = Net::life(i, start);
        let node = Node {
            name: format!("node-{i}").into(),
            addr: Net::addr(i),
            boot,
            life,
            zone: 0,
            observer: false,
            http: "".into(),
            backups: 1,
            stores: false,
        };
        self.start_node(node)
    }

    fn start_node(&mut self, node: Node) -> Life {
        let life = node.life;
        let addr = node.addr.clone();
        let membership = Membership::new(node, MemberConfig::default(), self.seed ^ life.bits(), Mono::from_micros(self.now)).unwrap();
        self.processes.insert(life, Process { membership, paused_at: None, inbox: Vec::new(), seen: Vec::new() });
        let seed_node = self.at.iter().map(|(addr, life)| (addr.clone(), *life)).find(|(other, _)| *other != addr);
        self.at.insert(addr, life);
        if let Some((addr, other)) = seed_node {
            self.queue_event(life, 0, Event::Dial { addr, life: other });
        }
        life
    }

    fn queue_event(&mut self, to: Life, after: i64, event: Event) {
        self.sent += 1;
        self.queue.insert((self.now + after, self.sent), (to, event));
    }

    fn cut(&self, a: Life, b: Life) -> bool {
        let addr = |life| self.processes.get(&life).map(|process| process.membership.me().addr.clone());
        match (addr(a), addr(b)) {
            (Some(a), Some(b)) => self.cuts.contains(&(a.clone(), b.clone())) || self.cuts.contains(&(b, a)),
            _ => false,
        }
    }

    /// The process ends; its sockets are closed by the kernel, or the whole machine is gone and nobody is told.
    fn kill(&mut self, life: Life, silently: bool) {
        let process = self.processes.remove(&life).unwrap();
        let addr = process.membership.me().addr.clone();
        let peers: Vec<Life> =
            self.links.iter().filter(|(a, b)| *a == life || *b == life).map(|(a, b)| if *a == life { *b } else { *a }).collect();
        self.links.retain(|(a, b)| *a != life && *b != life);
        if silently {
            self.at.insert(addr, Life::new(0));
            return;
        }
        self.at.remove(&addr);
        for peer in peers {
            let at = self.arrival(life, peer) - self.now;
            self.queue_event(peer, at, Event::Closed(life));
        }
    }

    fn pause(&mut self, life: Life) {
        self.processes.get_mut(&life).unwrap().paused_at = Some(self.now);
    }

    fn resume(&mut self, life: Life) {
        let now = Mono::from_micros(self.now);
        let process = self.processes.get_mut(&life).unwrap();
        let gap = Duration::from_micros((self.now - process.paused_at.take().unwrap()) as u64);
        // As a driver does it: the sockets first, then the stall, then the timers.
        for event in core::mem::take(&mut process.inbox) {
            self.deliver(life, event);
        }
        self.processes.get_mut(&life).unwrap().membership.handle_stall(now, gap);
        self.drain(life);
    }

    /// Nothing passes between the two groups; links between them are noticed as closed after `closes`.
    fn partition(&mut self, one: &[u64], two: &[u64], closes: i64) {
        for a in one {
            for b in two {
                self.cuts.insert((Net::addr(*a), Net::addr(*b)));
            }
        }
        let broken: Vec<(Life, Life)> = self.links.iter().filter(|(a, b)| self.cut(*a, *b)).copied().collect();
        for (a, b) in broken {
            self.links.remove(&(a, b));
            self.queue_event(a, closes, Event::Closed(b));
            self.queue_event(b, closes, Event::Closed(a));
        }
    }

    fn arrival(&mut self, from: Life, to: Life) -> i64 {
        let delay = self.delay.0 + self.draw(self.delay.1 - self.delay.0);
        let at = (self.now + delay).max(self.last.get(&(from, to)).copied().unwrap_or(0));
        self.last.insert((from, to), at);
        at
    }

    fn linked(&self, a: Life, b: Life) -> bool {
        self.links.contains(&(a.min(b), a.max(b)))
    }

    fn dial(&mut self, from: Life, addr: &str, life: Life) {
        let delay = self.delay.0 + self.draw(self.delay.1 - self.delay.0);
        match self.at.get(addr).copied() {
            None => self.queue_event(from, delay, Event::Refused(life)),
            Some(_) if self.deaf.contains(addr) => self.queue_event(from, delay, Event::Refused(life)),
            Some(other) => {
                let Some(process) = self.processes.get(&other) else { return };
                if other == from || self.cut(from, other) || process.paused_at.is_some() || self.linked(from, other) {
                    return;
                }
                let (me, you) = ((**self.processes[&from].membership.me()).clone(), (**process.membership.me()).clone());
                self.links.insert((from.min(other), from.max(other)));
                let (there, back) = (self.arrival(from, other) - self.now, self.arrival(other, from) - self.now);
                self.queue_event(other, there, Event::Up(me));
                self.queue_event(from, back, Event::Up(you));
            }
        }
    }

    fn deliver(&mut self, to: Life, event: Event) {
        let now = Mono::from_micros(self.now);
        let Some(process) = self.processes.get_mut(&to) else { return };
        if process.paused_at.is_some() {
            process.inbox.push(event);
            return;
        }
        match event {
            Event::Packet(from, bytes) => process.membership.handle_packet(now, from, &bytes).unwrap(),
            Event::Up(node) => process.membership.handle_up(now, &node).unwrap(),
            // The old link's end is noticed after there is a new one.
            Event::Closed(life) if self.links.contains(&(to.min(life), to.max(life))) => {}
            Event::Closed(life) => process.membership.handle_closed(now, life),
            Event::Refused(life) => process.membership.handle_refused(now, life),
            Event::Dial { addr, life } => self.dial(to, &addr, life),
        }
        self.drain(to);
    }

    fn drain(&mut self, life: Life) {
        while let Some(output) = self.processes.get_mut(&life).and_then(|process| process.membership.poll()) {
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{} {life:?} {output:?}", self.now));
            }
            match output.clone() {
                MemberOutput::Packet { to, bytes } if self.linked(life, to) => {
                    self.bytes += bytes.len() as u64;
                    let after = self.arrival(life, to) - self.now;
                    self.queue_event(to, after, Event::Packet(life, bytes));
                }
                // The link has closed and the process does not know it yet.
                MemberOutput::Packet { .. } => {}
                MemberOutput::Connect { addr, life: other, .. } => self.queue_event(life, 0, Event::Dial { addr, life: other }),
                other => self.processes.get_mut(&life).unwrap().seen.push(other),
            }
        }
    }

    /// Runs for `micros`.
    fn run(&mut self, micros: i64) {
        self.run_until(self.now + micros, |_| false);
    }

    /// Runs until `done` or `end`; tells whether it was done.
    fn run_until(&mut self, end: i64, mut done: impl FnMut(&Net) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            let event = self.queue.first_key_value().map(|((at, _), _)| *at).unwrap_or(i64::MAX);
            let timer = self
                .processes
                .iter()
                .filter(|(_, process)| process.paused_at.is_none())
                .filter_map(|(life, process)| Some((process.membership.next_timer()?.micros(), *life)))
                .min();
            let next = event.min(timer.map_or(i64::MAX, |(at, _)| at));
            if next > end {
                self.now = end;
                return false;
            }
            self.now = self.now.max(next);
            if event <= next {
                let (_, (to, event)) = self.queue.pop_first().unwrap();
                self.deliver(to, event);
            } else if let Some((_, life)) = timer {
                self.processes.get_mut(&life).unwrap().membership.handle_timer(Mono::from_micros(self.now));
                self.drain(life);
            }
        }
    }

    fn state(&self, at: Life, of: Life) -> Option<State> {
        self.processes[&at].membership.member(of).map(|member| member.state)
    }

    fn lives(&self) -> Vec<Life> {
        self.processes.keys().copied().collect()
    }

    /// Everyone else sees `of` in `state`.
    fn all_see(&self, of: Life, state: State) -> bool {
        self.processes.keys().all(|at| *at == of || self.state(*at, of) == Some(state))
    }

    fn all_know_each_other(&self) -> bool {
        let digests: BTreeSet<u64> = self.processes.values().map(|process| process.membership.digest()).collect();
        digests.len() == 1 && self.processes.keys().all(|life| self.all_see(*life, State::Alive))
    }

    #[track_caller]
    fn assert_all_know_each_other(&self) {
        for (at, process) in &self.processes {
            for of in self.processes.keys() {
                assert_eq!(self.state(*at, *of), Some(State::Alive), "{at:?} of {of:?}, seed {}", self.seed);
            }
            let alive = process.membership.members().filter(|member| member.state != State::Dead).count();
            assert_eq!(alive, self.processes.len(), "{at:?}, seed {}", self.seed);
        }
        assert!(self.all_know_each_other());
    }

    fn saw(&self, life: Life, output: &MemberOutput) -> usize {
        self.processes[&life].seen.iter().filter(|seen| *seen == output).count()
    }
}

/// How long after now everybody sees `of` in `state`, in microseconds.
fn time_until(net: &mut Net, of: Life, state: State, bound: i64) -> i64 {
    let start = net.now;
    assert!(net.run_until(start + bound, |net| net.all_see(of, state)), "not {state:?} after {bound} µs, seed {}", net.seed);
    net.now - start
}

fn max_and_median(mut times: Vec<i64>) -> (i64, i64) {
    times.sort_unstable();
    (*times.last().unwrap(), times[times.len() / 2])
}

#[test]
fn nodes_that_start_together_find_each_other_through_one() {
    for n in 1..=7 {
        for seed in 0..5 {
            let mut net = Net::new(seed);
            for i in 0..n {
                net.start(i, 1, 1);
            }
            assert!(net.run_until(2 * SECOND, Net::all_know_each_other), "{n} nodes, seed {seed}");
        }
    }
}

#[test]
fn a_joiner_knows_everyone_after_its_first_link() {
    for seed in 0..20 {
        let mut net = Net::of(seed, 5);
        let joiner = net.start(5, 1, 1);
        assert!(net.run_until(net.now + 100 * MS, |net| net.processes[&joiner].membership.members().count() == 6), "seed {seed}");
        assert!(net.run_until(net.now + SECOND, Net::all_know_each_other), "seed {seed}");
    }
}

#[test]
fn silence_is_death_within_three_seconds() {
    for n in [3, 5, 9] {
        let times = (0..50).map(|seed| {
            let mut net = Net::of(seed, n);
            let jitter = net.draw(SECOND);
            net.run(jitter);
            let victim = Net::life(seed % n, 1);
            net.kill(victim, true);
            time_until(&mut net, victim, State::Dead, 10 * SECOND)
        });
        let (max, median) = max_and_median(times.collect());
        println!("silence, {n} nodes: median {} ms, max {} ms", median / MS, max / MS);
        assert!(max <= 3 * SECOND, "{n} nodes: {max}");
    }
}

#[test]
fn a_silent_member_is_suspect_before_it_is_dead() {
    let mut net = Net::of(1, 3);
    let victim = Net::life(2, 1);
    net.kill(victim, true);
    let suspect = time_until(&mut net, victim, State::Suspect, 3 * SECOND);
    let dead = time_until(&mut net, victim, State::Dead, 3 * SECOND);
    assert!(suspect > 0 && dead > 0);
}

#[test]
fn a_refused_reconnect_is_seen_by_all_within_a_third_of_a_second() {
    for n in [2, 3, 5, 9] {
        let times = (0..50).map(|seed| {
            let mut net = Net::of(seed, n);
            let victim = Net::life(seed % n, 1);
            net.kill(victim, false);
            time_until(&mut net, victim, State::Dead, 10 * SECOND)
        });
        let (max, median) = max_and_median(times.collect());
        println!("refused, {n} nodes: median {} ms, max {} ms", median / MS, max / MS);
        assert!(max <= 300 * MS, "{n} nodes: {max}");
    }
}

#[test]
fn a_refusal_that_one_node_alone_sees_reaches_the_others_by_gossip() {
    let times = (0..50).map(|seed| {
        let mut net = Net::of(seed, 9);
        let (one, victim) = (Net::life(0, 1), Net::life(8, 1));
        net.kill(victim, true);
        net.at.remove(&Net::addr(8));
        net.queue_event(one, 0, Event::Closed(victim));
        time_until(&mut net, victim, State::Dead, 10 * SECOND)
    });
    let (max, median) = max_and_median(times.collect());
    println!("refused to one of 9: median {} ms, max {} ms", median / MS, max / MS);
    assert!(max <= 300 * MS, "{max}");
}

/// The others' word that a killed node is dead may overtake the end of this node's own link to it.
#[test]
fn whoever_hears_of_a_kill_before_its_own_link_closes_sees_soon_what_it_was() {
    for seed in 0..50 {
        for leaving in [false, true] {
            let mut net = Net::of(seed, 3);
            let (one, late, victim) = (Net::life(0, 1), Net::life(1, 1), Net::life(2, 1));
            if leaving {
                net.processes.get_mut(&victim).unwrap().membership.leave(Mono::from_micros(net.now));
                net.drain(victim);
                net.run(SECOND);
            }
            let end = |net: &Net, at: Life| net.processes[&at].membership.member(victim).map(|member| member.end);
            net.kill(victim, true);
            net.at.remove(&Net::addr(2));
            net.queue_event(one, 0, Event::Closed(victim));
            assert!(net.run_until(net.now + SECOND, |net| net.state(late, victim) == Some(State::Dead)), "seed {seed}");
            assert_eq!((end(&net, one), end(&net, late)), (Some(End::Refused), Some(End::Unseen)), "seed {seed}");
            net.queue_event(late, 0, Event::Closed(victim));
            assert!(net.run_until(net.now + 500 * MS, |net| end(net, late) == Some(End::Refused)), "seed {seed}");
        }
    }
}

#[test]
fn silence_shows_no_end_and_a_goodbye_is_one() {
    for seed in 0..20 {
        let mut net = Net::of(seed, 3);
        let (silent, gone) = (Net::life(1, 1), Net::life(2, 1));
        let ends = |net: &Net, of: Life| -> Vec<End> {
            let others = net.processes.iter().filter(|(at, _)| **at != of);
            others.map(|(_, process)| process.membership.member(of).unwrap().end).collect()
        };
        let stopping = &mut net.processes.get_mut(&gone).unwrap().membership;
        stopping.leave(Mono::from_micros(net.now));
        stopping.stop(Mono::from_micros(net.now), true);
        net.drain(gone);
        net.run(100 * MS);
        net.kill(gone, false);
        net.run(5 * SECOND);
        assert_eq!(ends(&net, gone), [End::Goodbye; 2], "seed {seed}");
        net.pause(silent);
        net.run(10 * SECOND);
        assert_eq!(net.state(Net::life(0, 1), silent), Some(State::Dead));
        assert_eq!(ends(&net, silent), [End::Unseen], "seed {seed}");
        net.resume(silent);
        net.run(5 * SECOND);
        assert_eq!(net.state(Net::life(0, 1), silent), Some(State::Alive));
    }
}

#[test]
fn nobody_dies_while_packets_flow() {
    for n in [2, 5, 9] {
        for seed in 0..5 {
            let mut net = Net::new(seed);
            net.delay = (0, 50 * MS);
            for i in 0..n {
                net.start(i, 1, 1);
            }
            net.run(3 * SECOND);
            net.assert_all_know_each_other();
            net.processes.values_mut().for_each(|process| process.seen.clear());
            net.run(60 * SECOND);
            // Not even a suspicion: that would be a change.
            assert!(net.processes.values().all(|process| process.seen.is_empty()), "{n} nodes, seed {seed}");
        }
    }
}

#[test]
fn a_restarted_node_replaces_its_former_life_at_once() {
    for seed in 0..20 {
        for silently in [false, true] {
            let mut net = Net::of(seed, 4);
            let old = Net::life(2, 1);
            net.kill(old, silently);
            net.run(20 * MS);
            let new = net.start(2, 2, 2);
            // The new life need not know its former one.
            let replaced = |net: &Net| net.lives().iter().all(|at| *at == new || net.state(*at, old) == Some(State::Dead));
            assert!(net.run_until(net.now + 500 * MS, |net| net.all_know_each_other() && replaced(net)), "seed {seed}");
            net.run(10 * SECOND);
            net.assert_all_know_each_other();
            assert!(replaced(&net));
        }
    }
}

#[test]
fn a_restarted_node_with_a_lower_boot_takes_the_next_greater_one() {
    for seed in 0..20 {
        for wait in [20 * MS, 20 * SECOND] {
            let mut net = Net::new(seed);
            for i in 0..4 {
                net.start(i, 1, 100);
            }
            net.run(5 * SECOND);
            let old = Net::life(2, 1);
            net.kill(old, wait < SECOND);
            net.run(wait);
            let new = net.start(2, 2, 7);
            assert!(net.run_until(net.now + SECOND, Net::all_know_each_other), "seed {seed}, wait {wait}");
            assert_eq!(net.processes[&new].membership.me().boot, 101);
            assert_eq!(net.saw(new, &MemberOutput::Rebooted { boot: 101 }), 1);
            net.run(10 * SECOND);
            net.assert_all_know_each_other();
            assert_eq!(net.saw(new, &MemberOutput::Renewed), 0, "seed {seed}, wait {wait}");
        }
    }
}

#[test]
fn of_two_processes_with_one_name_the_one_with_the_greater_boot_stays() {
    for seed in 0..20 {
        for boot in [200, 50] {
            let mut net = Net::new(seed);
            for i in 0..3 {
                net.start(i, 1, 100);
            }
            net.run(20 * SECOND);
            let (first, second) = (Net::life(2, 1), Net::life(9, 1));
            let node = Node { addr: Net::addr(9), life: second, boot, ..(**net.processes[&first].membership.me()).clone() };
            net.start_node(node);
            net.run(20 * SECOND);
            let (stays, ends) = if boot > 100 { (second, first) } else { (first, second) };
            assert_eq!(net.saw(ends, &MemberOutput::Superseded { by: stays }), 1, "boot {boot}, seed {seed}");
            assert_eq!(net.saw(stays, &MemberOutput::Superseded { by: ends }), 0, "boot {boot}, seed {seed}");
            assert_eq!(net.processes[&ends].membership.next_timer(), None);
            for at in [Net::life(0, 1), Net::life(1, 1)] {
                assert_eq!((net.state(at, ends), net.state(at, stays)), (Some(State::Dead), Some(State::Alive)));
            }
        }
    }
}

/// A node that stood still while the others restarted takes their former lives for alive. Its word must not end the new ones.
#[test]
fn an_old_view_does_not_supersede_a_restarted_node() {
    for seed in 0..20 {
        let mut net = Net::new(seed);
        for i in 0..3 {
            net.start(i, 1, 100);
        }
        net.run(5 * SECOND);
        let (stale, old) = (Net::life(0, 1), Net::life(2, 1));
        net.pause(stale);
        net.run(20 * MS);
        net.kill(old, false);
        net.kill(Net::life(1, 1), false);
        net.run(5 * SECOND);
        let (other, new) = (net.start(1, 2, 200), net.start(2, 2, 50));
        net.queue_event(new, 0, Event::Dial { addr: Net::addr(1), life: other });
        net.run(20 * SECOND);
        assert_eq!(net.processes[&new].membership.me().boot, 50);
        net.resume(stale);
        net.run(20 * SECOND);
        net.assert_all_know_each_other();
        assert_eq!(net.processes[&new].membership.me().boot, 101);
    }
}

#[test]
fn a_paused_node_comes_back_with_the_same_life() {
    for n in [2, 3, 5] {
        for seed in 0..10 {
            let mut net = Net::of(seed, n);
            let paused = Net::life(1, 1);
            net.pause(paused);
            net.run(10 * SECOND);
            assert!(net.all_see(paused, State::Dead), "{n} nodes, seed {seed}");
            net.resume(paused);
            let back = net.run_until(net.now + 3 * SECOND, Net::all_know_each_other);
            assert!(back, "{n} nodes, seed {seed}");
            assert!(net.saw(paused, &MemberOutput::Renewed) >= 1, "{n} nodes, seed {seed}");
            net.run(30 * SECOND);
            net.assert_all_know_each_other();
            let others = net.lives().into_iter().filter(|life| *life != paused);
            assert!(
                others.into_iter().all(|life| net.saw(life, &MemberOutput::Renewed) == 0),
                "{n} nodes, seed {seed}: it declared others dead"
            );
        }
    }
}

#[test]
fn a_short_pause_is_no_death() {
    for seed in 0..20 {
        let mut net = Net::of(seed, 5);
        let paused = Net::life(1, 1);
        net.pause(paused);
        net.run(1200 * MS);
        net.resume(paused);
        net.run(10 * SECOND);
        net.assert_all_know_each_other();
        assert!(net.lives().iter().all(|life| net.saw(*life, &MemberOutput::Renewed) == 0), "seed {seed}");
    }
}

#[test]
fn leaving_is_known_to_all_and_to_later_joiners() {
    for seed in 0..20 {
        let mut net = Net::of(seed, 5);
        let leaver = Net::life(3, 1);
        net.processes.get_mut(&leaver).unwrap().membership.leave(Mono::from_micros(net.now));
        net.drain(leaver);
        let known =
            |net: &Net| net.processes.values().all(|process| process.membership.member(leaver).is_some_and(|member| member.leaving));
        assert!(net.run_until(net.now + 50 * MS, known), "seed {seed}");
        assert!(net.all_know_each_other());
        net.start(6, 1, 1);
        assert!(net.run_until(net.now + SECOND, |net| net.all_know_each_other() && known(net)), "seed {seed}");
        assert!(net.processes.values().all(|process| process.membership.member(leaver).is_some_and(|member| !member.placeable())));
        net.run(20 * SECOND);
        net.assert_all_know_each_other();
        assert!(known(&net));
    }
}

#[test]
fn a_stopped_node_is_dead_at_once() {
    for seed in 0..20 {
        let mut net = Net::of(seed, 5);
        let (stopped, handed_over) = (Net::life(3, 1), seed % 2 == 0);
        net.processes.get_mut(&stopped).unwrap().membership.stop(Mono::from_micros(net.now), handed_over);
        net.drain(stopped);
        assert_eq!(net.processes[&stopped].membership.next_timer(), None);
        let took = time_until(&mut net, stopped, State::Dead, SECOND);
        assert!(took <= 10 * MS, "seed {seed}: {took}");
        net.kill(stopped, false);
        net.run(10 * SECOND);
        net.assert_all_know_each_other();
        let others = net.processes.iter().filter(|(life, _)| **life != stopped);
        let told = others.map(|(_, process)| process.membership.member(stopped).unwrap().handed_over);
        assert_eq!(told.collect::<Vec<bool>>(), [handed_over; 4], "seed {seed}");
    }
}

#[test]
fn both_sides_of_a_partition_find_each_other_again() {
    for seed in 0..5 {
        for closes in [10 * MS, 4 * SECOND, 40 * SECOND] {
            let mut net = Net::of(seed, 5);
            net.partition(&[0, 1], &[2, 3, 4], closes);
            net.run(60 * SECOND);
            for (a, b) in [(0, 2), (1, 4), (3, 0)] {
                assert_eq!(net.state(Net::life(a, 1), Net::life(b, 1)), Some(State::Dead), "seed {seed}");
            }
            assert_eq!(net.state(Net::life(3, 1), Net::life(4, 1)), Some(State::Alive));
            net.cuts.clear();
            let healed = net.now;
            assert!(net.run_until(healed + 20 * SECOND, Net::all_know_each_other), "seed {seed}, closes {closes}");
            net.run(10 * SECOND);
            net.assert_all_know_each_other();
            // A side that was dead to the other renews itself; at least one of two that met.
            assert!(net.lives().iter().filter(|life| net.saw(**life, &MemberOutput::Renewed) > 0).count() >= 2, "seed {seed}");
        }
    }
}

#[test]
fn a_broken_link_between_two_kills_neither() {
    for seed in 0..10 {
        let mut net = Net::of(seed, 5);
        net.partition(&[0], &[1], 10 * MS);
        for _ in 0..600 {
            net.run(100 * MS);
            let dead = net.lives().iter().any(|at| net.lives().iter().any(|of| net.state(*at, *of) == Some(State::Dead)));
            assert!(!dead, "seed {seed}");
        }
    }
}

#[test]
fn a_live_node_that_refuses_connections_is_gone_for_its_caller_only() {
    for seed in 0..10 {
        let mut net = Net::of(seed, 4);
        let (caller, deaf) = (Net::life(0, 1), Net::life(2, 1));
        net.deaf.insert(Net::addr(2));
        net.links.remove(&(caller.min(deaf), caller.max(deaf)));
        net.queue_event(caller, 0, Event::Closed(deaf));
        net.run(10 * SECOND);
        // Declared dead once, it renewed itself, and was not declared dead again.
        assert_eq!(net.saw(deaf, &MemberOutput::Renewed), 1, "seed {seed}");
        assert_eq!(net.state(caller, deaf), Some(State::Gone), "seed {seed}");
        for at in [Net::life(1, 1), Net::life(3, 1)] {
            assert_eq!(net.state(at, deaf), Some(State::Alive), "seed {seed}");
        }
        let digests: BTreeSet<u64> = net.processes.values().map(|process| process.membership.digest()).collect();
        assert_eq!(digests.len(), 1, "seed {seed}");
    }
}

#[test]
fn an_observer_is_a_member_but_never_placed() {
    let mut net = Net::of(1, 2);
    let digest = net.processes[&Net::life(0, 1)].membership.digest();
    let node = Node {
        name: "gateway".into(),
        addr: Net::addr(7),
        boot: 1,
        life: Net::life(7, 1),
        zone: 0,
        observer: true,
        http: "10.0.0.7:80".into(),
        backups: 5,
        stores: true,
    };
    let gateway = net.start_node(node.clone());
    net.run(2 * SECOND);
    net.assert_all_know_each_other();
    let seen = net.processes[&Net::life(0, 1)].membership.member(gateway).unwrap();
    assert!(!seen.placeable());
    assert_eq!(*seen.node, node);
    assert_eq!(net.processes[&Net::life(0, 1)].membership.digest(), digest);
}

#[test]
fn the_digest_depends_on_names_lives_and_leaving() {
    let mut net = Net::of(1, 3);
    let digest = |net: &Net| net.processes[&Net::life(0, 1)].membership.digest();
    let before = digest(&net);
    net.kill(Net::life(2, 1), false);
    net.run(SECOND);
    let without = digest(&net);
    net.start(2, 2, 2);
    net.run(SECOND);
    let reborn = digest(&net);
    net.processes.get_mut(&Net::life(1, 1)).unwrap().membership.leave(Mono::from_micros(net.now));
    net.drain(Net::life(1, 1));
    net.run(SECOND);
    assert_eq!(BTreeSet::from([before, without, reborn, digest(&net)]).len(), 4);
    net.assert_all_know_each_other();
}

#[test]
fn a_dead_life_keeps_its_name_for_a_day_and_only_the_youngest_are_kept() {
    let node = |name: &str, boot| Node {
        name: name.into(),
        addr: "a".into(),
        boot,
        life: Life::new(boot),
        zone: 0,
        observer: false,
        http: "".into(),
        backups: 1,
        stores: false,
    };
    let mut one = Membership::new(node("one", 0), MemberConfig::default(), 1, Mono::ZERO).unwrap();
    let restart = |one: &mut Membership, boot: u64| {
        let now = Mono::from_micros(boot as i64);
        one.handle_up(now, &node("other", boot)).unwrap();
        one.handle_closed(now, Life::new(boot));
        while one.poll().is_some() {}
    };
    let dead = |one: &Membership| -> Vec<u64> {
        one.members().filter(|member| member.state == State::Dead).map(|member| member.node.boot).collect()
    };
    (1..=10).for_each(|boot| restart(&mut one, boot));
    assert_eq!(dead(&one), (1..10).collect::<Vec<_>>());
    assert_eq!(&*one.member(Life::new(3)).unwrap().node.name, "other");
    for boot in 11..4200 {
        one.table.insert(Life::new(boot), Entry::new(Identity::new(node("other", boot)), &one.config, Mono::from_micros(boot as i64)));
    }
    restart(&mut one, 4200);
    restart(&mut one, 4201);
    // The tenth life was replaced only then.
    assert!(dead(&one) == [10].into_iter().chain(106..=4200).collect::<Vec<_>>());
    for hour in 0..=24 {
        one.handle_timer(Mono::from_micros(5000) + Duration::from_secs(3600 * hour));
        while one.poll().is_some() {}
    }
    assert!(one.member(Life::new(4200)).is_none());
}

/// Kills, restarts (with any boot), pauses, partitions, deaf listeners and leaving, at random for 40 s.
fn chaos(net: &mut Net, n: u64) {
    let mut starts = vec![1; n as usize];
    for _ in 0..20 {
        let pause = net.draw(4 * SECOND);
        net.run(pause);
        let i = net.draw(n as i64) as u64;
        let life = Net::life(i, starts[i as usize]);
        let paused = net.processes.get(&life).is_some_and(|process| process.paused_at.is_some());
        match net.draw(8) {
            0 | 1 if net.processes.contains_key(&life) => {
                let silently = net.draw(2) == 0;
                net.kill(life, silently);
            }
            0..=3 if !net.processes.contains_key(&life) => {
                starts[i as usize] += 1;
                let boot = 1 + net.draw(5) as u64;
                net.start(i, starts[i as usize], boot);
            }
            4 if paused => net.resume(life),
            4 if net.processes.contains_key(&life) => net.pause(life),
            5 => {
                let cut = 1 + net.draw(n as i64 - 1) as u64;
                let closes = net.draw(10 * SECOND);
                net.partition(&(0..cut).collect::<Vec<_>>(), &(cut..n).collect::<Vec<_>>(), closes);
            }
            6 => net.cuts.clear(),
            7 if net.draw(2) == 0 => {
                net.deaf.insert(Net::addr(i));
            }
            _ => {
                if let Some(process) = net.processes.get_mut(&life).filter(|process| process.paused_at.is_none()) {
                    process.membership.leave(Mono::from_micros(net.now));
                    net.drain(life);
                }
            }
        }
    }
}

/// The faults end, some of the missing nodes are started, and discovery shows every address to everyone once.
fn heal(net: &mut Net, n: u64) {
    net.cuts.clear();
    net.deaf.clear();
    for life in net.lives() {
        if net.processes[&life].paused_at.is_some() {
            net.resume(life);
        }
    }
    for i in 0..n {
        let here = net.at.get(&Net::addr(i)).is_some_and(|life| net.processes.contains_key(life));
        if !here && (i == 0 || net.draw(2) == 0) {
            net.start(i, 200, 1);
        }
    }
    let listening: Vec<(Box<str>, Life)> = net.at.iter().map(|(addr, life)| (addr.clone(), *life)).collect();
    for life in net.lives() {
        for (addr, other) in &listening {
            net.queue_event(life, 0, Event::Dial { addr: addr.clone(), life: *other });
        }
    }
}

#[test]
fn whatever_happened_the_survivors_agree_in_the_end() {
    let mut times = Vec::new();
    for seed in 0..40 {
        let mut net = Net::of(seed, 2 + seed % 5);
        net.delay.1 = 1 + net.draw(50 * MS);
        chaos(&mut net, 2 + seed % 5);
        heal(&mut net, 2 + seed % 5);
        let healed = net.now;
        assert!(net.run_until(healed + 60 * SECOND, Net::all_know_each_other), "seed {seed}");
        times.push(net.now - healed);
        net.run(5 * SECOND);
        net.assert_all_know_each_other();
        let quiet = Mono::from_micros(net.now);
        net.run(20 * SECOND);
        let mut members = net.processes.values().flat_map(|process| process.membership.members());
        assert!(members.all(|member| member.since <= quiet), "seed {seed}: no peace");
    }
    let (max, median) = max_and_median(times);
    println!("agreement after chaos: median {} ms, max {} ms", median / MS, max / MS);
}

#[test]
fn one_seed_has_one_history() {
    let history = |seed| {
        let mut net = Net::of(seed, 5);
        net.trace = Some(Vec::new());
        net.kill(Net::life(1, 1), true);
        net.run(2 * SECOND);
        net.start(1, 2, 2);
        net.partition(&[0, 1], &[2, 3, 4], SECOND);
        net.run(8 * SECOND);
        net.cuts.clear();
        net.pause(Net::life(4, 1));
        net.run(8 * SECOND);
        net.resume(Net::life(4, 1));
        net.run(20 * SECOND);
        net.trace.unwrap()
    };
    for seed in 0..5 {
        let (one, two) = (history(seed), history(seed));
        assert!(one.len() > 1000);
        assert!(one == two, "seed {seed}");
    }
    assert!(history(1) != history(2));
}

#[test]
fn an_idle_cluster_is_quiet() {
    for n in [3, 9] {
        let mut net = Net::of(1, n);
        let (bytes, events) = (net.bytes, net.sent);
        net.run(60 * SECOND);
        let per_node = (net.bytes - bytes) / 60 / n;
        println!("idle, {n} nodes: {per_node} B/s and {} packets/s per node", (net.sent - events) / 60 / n);
        assert!(per_node < 8192, "{per_node}");
    }
}

#[test]
fn a_packet_in_another_name_is_refused() {
    let net = Net::of(1, 2);
    let (a, b) = (Net::life(0, 1), Net::life(1, 1));
    let mut one = net.processes.into_iter().find(|(life, _)| *life == a).unwrap().1.membership;
    let mut other = Membership::new((**one.me()).clone(), MemberConfig::default(), 1, Mono::ZERO).unwrap();
    other.stop(Mono::ZERO, true);
    let me = Record::alive(Identity::new((**one.me()).clone()));
    let packet = write_records(&me, &[], None).remove(0);
    assert_eq!(one.handle_packet(Mono::ZERO, b, &packet), Err(PacketError::ForeignSender));
    assert_eq!(one.handle_packet(Mono::ZERO, b, &vec![1; PACKET_MAX + 1]), Err(PacketError::TooLong { len: PACKET_MAX + 1 }));
    assert_eq!(one.handle_packet(Mono::ZERO, b, &[]), Err(PacketError::Malformed { len: 0 }));
}

#[test]
fn records_that_do_not_fit_one_packet_are_split() {
    let node = |i: u64| Node {
        name: format!("node-{i}-{}", "x".repeat(50)).into(),
        addr: "a".repeat(255).into(),
        boot: i,
        life: Life::new(i),
        zone: i,
        observer: i.is_multiple_of(2),
        http: "h".repeat(255).into(),
        backups: (i % 6) as u8,
        stores: i.is_multiple_of(3),
    };
    let records: Vec<Record> = (1..100).map(|i| Record::new(Identity::new(node(i)), i as u16, Swim::Suspect)).collect();
    let me = Record::alive(Identity::new(node(0)));
    let mut found = Vec::new();
    for (i, packet) in write_records(&me, &records, Some(7)).iter().enumerate() {
        let Ok(Packet::Records { ask, records }) = Packet::parse(packet) else { panic!("packet {i}") };
        assert_eq!(ask, (i == 0).then_some(7));
        assert_eq!(records[0], me);
        found.extend(records.into_iter().skip(1));
    }
    assert_eq!(found, records);
    assert!(found.iter().zip(&records).all(|(a, b)| a.id().node == b.id().node));
}

/// Packets as they are really sent, for the fuzzing below.
static PACKETS: LazyLock<Vec<(Life, Life, Bytes)>> = LazyLock::new(|| {
    let mut net = Net::new(3);
    for i in 0..4 {
        net.start(i, 1, 1);
    }
    let mut packets = BTreeSet::new();
    net.run_until(3 * SECOND, |net| {
        for (to, event) in net.queue.values() {
            if let Event::Packet(from, bytes) = event {
                packets.insert((*from, *to, bytes.clone()));
            }
        }
        false
    });
    packets.into_iter().collect()
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn bytes_from_outside_never_panic(noise in prop::collection::vec(any::<u8>(), 0..300), kind in 0_u8..4) {
        let mut net = Net::of(1, 2);
        let (a, b) = (Net::life(0, 1), Net::life(1, 1));
        let one = &mut net.processes.get_mut(&a).unwrap().membership;
        let _ = one.handle_packet(Mono::from_micros(6 * SECOND), b, &noise);
        let mut kinded = vec![kind];
        kinded.extend(noise);
        let _ = one.handle_packet(Mono::from_micros(6 * SECOND), b, &kinded);
    }

    #[test]
    fn damaged_packets_never_panic_nor_stop_the_timers(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0_u8..4), 1..200)) {
        let packets = &*PACKETS;
        let mut net = Net::of(3, 4);
        let mut now = Mono::from_micros(net.now);
        for (which, at, byte, how) in damage {
            let (from, to, bytes) = &packets[which.index(packets.len())];
            let mut bytes = bytes.to_vec();
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.truncate(at),
                2 => bytes.insert(at, byte),
                _ => {}
            }
            let one = &mut net.processes.get_mut(to).unwrap().membership;
            let _ = one.handle_packet(now, *from, &bytes);
            now = now + Duration::from_millis(u64::from(byte));
            one.handle_timer(now);
            while one.poll().is_some() {}
            prop_assert!(one.next_timer() > Some(now) || one.next_timer().is_none());
        }
    }
}
