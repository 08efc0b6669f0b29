//! Time itself: idle timeouts, nodes that are configured differently, clocks that are wrong, a store that is shut for writers, and
//! restarts of all nodes. What it decides is drawn from a source of its own, so that seeds from before it play as they did.

use crate::marks::Mark;
use crate::options::{Fault, MS, Options, S};
use crate::rng::Rng;
use crate::world::World;
use bytes::Bytes;
use core::time::Duration;
use outlive_core::config::Limits;
use outlive_core::record::{Change, LIMITS};
use outlive_core::time::Mono;

/// Seeds below this one play none of it.
pub(crate) const FIRST: u64 = 2_000_000;
/// The faults that it adds.
const FAULTS: [Fault; 5] = [Fault::RestartAll, Fault::StoreRefuses, Fault::StoreLocked, Fault::WallJump, Fault::StoreJump];
/// What leaves all nodes in reach of each other and of the store: then a session must live to the second.
const QUIET: [Fault; 12] = [
    Fault::Crash,
    Fault::CrashForGood,
    Fault::CrashPair,
    Fault::QuickRestart,
    Fault::SlowHandlers,
    Fault::Drain,
    Fault::Join,
    Fault::Drift,
    Fault::Wander,
    Fault::Logout,
    Fault::Rotate,
    Fault::RestartAll,
];
const NEVER: i64 = i64::MAX / 4;
/// Clocks drift, and timers fire a little late.
pub(crate) const SLACK: i64 = 200 * MS;

/// What a seed plays of it.
#[derive(Clone, Debug)]
pub(crate) struct Clocks {
    /// The idle timeouts of nodes 0, 1, … in turn.
    pub(crate) idle: Vec<i64>,
    pub(crate) lifetime: i64,
    /// Of a thousand sessions so many have limits of their own.
    pub(crate) own: u32,
    /// Of a thousand clients so many only read.
    pub(crate) readers: u32,
    /// How far apart wall clocks are.
    pub(crate) skew: i64,
    /// Nothing comes between nodes and the store.
    pub(crate) quiet: bool,
}

impl Clocks {
    /// Draws what the seed plays, if anything.
    pub(crate) fn draw(opts: &mut Options) {
        let mut r = Rng::new(opts.seed.rotate_left(17) ^ 0xc10c_c10c);
        if opts.seed < FIRST || !r.chance(500) {
            return;
        }
        let quiet = r.chance(600);
        let mut idle = || if quiet { *r.pick(&[5, 8, 15, 30, 60]).unwrap_or(&30) * S } else { 300 * S };
        let mut idle = vec![idle(), idle(), idle()];
        idle.truncate(if r.chance(500) { 1 } else { 3 });
        let longest = idle.iter().copied().max().unwrap_or(S);
        let lifetime = if r.chance(150) { longest * 2 } else { 86_400 * S };
        let skew = *r.pick(&[0, 0, 2, 40, 172_800]).unwrap_or(&0) * S;
        if r.chance(850) {
            opts.store = true;
        }
        if quiet {
            opts.faults.retain(|f| QUIET.contains(f));
            opts.chaos = opts.chaos.max((longest * 3).min(90 * S));
        }
        for fault in FAULTS {
            let fits = match fault {
                Fault::RestartAll => opts.store || r.chance(200),
                Fault::StoreJump => !quiet && !opts.differ && opts.store && opts.durability != outlive_core::config::Durability::Store,
                Fault::WallJump => skew > 0,
                _ => !quiet && opts.store,
            };
            if fits && r.chance(600) {
                opts.faults.push(fault);
            }
        }
        opts.clocks = Some(Clocks { idle, lifetime, own: *r.pick(&[0, 300, 700]).unwrap_or(&0), readers: 600, skew, quiet });
    }

    pub(crate) fn line(&self) -> String {
        let idle: Vec<String> = self.idle.iter().map(|i| (i / S).to_string()).collect();
        let (idle, lifetime, skew) = (idle.join("/"), self.lifetime / S, self.skew / S);
        format!("idle_s={idle},lifetime_s={lifetime},own={},readers={},skew_s={skew},quiet={}", self.own, self.readers, self.quiet)
    }
}

/// What the oracle knows of a session's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// At most, and at least: what begins anew after a loss may have other limits.
    idle: (i64, i64),
    lifetime: i64,
    created: i64,
    /// When what a loss left of it may have begun anew.
    pub(crate) anew: i64,
    /// The last request that was answered had come then.
    sure: i64,
    /// When it was answered, and the one before that which nobody can have crashed too soon after.
    answered: i64,
    settled: i64,
    /// When somebody was served it.
    served: i64,
    /// The last thing that may have been a use.
    pub(crate) maybe: i64,
}

impl Span {
    pub(crate) const fn none() -> Span {
        Span { idle: (NEVER, NEVER), lifetime: NEVER, created: 0, anew: 0, sure: 0, answered: 0, settled: 0, served: 0, maybe: 0 }
    }

    fn until(&self) -> i64 {
        (self.sure + self.idle.1).min(self.created + self.lifetime)
    }

    fn step(&self) -> i64 {
        self.idle.0 / 10
    }
}

fn duration(us: i64) -> Duration {
    Duration::from_micros(us.max(0) as u64)
}

impl World {
    /// The limits with which sessions begin at this node.
    pub(crate) fn limits_of(&self, node: usize) -> Limits {
        match &self.opts.clocks {
            None => Limits::default(),
            Some(c) => Limits { idle: duration(c.idle[node % c.idle.len()]), lifetime: duration(c.lifetime) },
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.opts.clocks.as_ref().is_some_and(|c| c.quiet)
    }

    /// A session begins at this node.
    pub(crate) fn born(&mut self, session: usize, node: usize) {
        let (limits, now) = (self.limits_of(node), self.now);
        if self.opts.clocks.is_some() && limits != self.limits_of(node + 1) {
            self.mark(Mark::LimitsDiffer);
        }
        let micros = |d: Duration| d.as_micros() as i64;
        let idle = micros(limits.idle);
        self.sessions[session].span = Span {
            idle: (idle, idle),
            lifetime: micros(limits.lifetime),
            created: now,
            anew: now,
            sure: now,
            answered: now,
            settled: now,
            served: now,
            maybe: now,
        };
    }

    /// Limits of its own, for some sessions, with their first commit.
    pub(crate) fn own_limits(&mut self, session: usize) -> Option<Change> {
        let (own, quiet) = self.opts.clocks.as_ref().map(|c| (c.own, c.quiet))?;
        if !self.clocks.chance(own) {
            return None;
        }
        self.mark(Mark::OwnLimits);
        let idle = *self.clocks.pick(&[2, 6, 20, 90]).unwrap_or(&20) * S + if quiet { 0 } else { 300 * S };
        let span = &mut self.sessions[session].span;
        span.idle = (idle, idle);
        let limits = Limits { idle: duration(idle), lifetime: duration(span.lifetime) };
        Some(Change { name: LIMITS.into(), base: None, value: Some(Bytes::copy_from_slice(&limits.encode())) })
    }

    /// Something may be a use of it.
    pub(crate) fn maybe_used(&mut self, session: usize) {
        let now = self.now;
        self.sessions[session].span.maybe = now;
    }

    /// A request that had come then was answered.
    pub(crate) fn used(&mut self, session: usize, came: i64) {
        let now = self.now;
        let span = &mut self.sessions[session].span;
        if now - span.answered > 2 * S {
            span.settled = span.sure;
        }
        (span.sure, span.answered) = (span.sure.max(came), now);
        let until = span.until();
        if self.opts.clocks.is_some() && self.now <= until - SLACK {
            self.sessions[session].outlived = false;
        }
    }

    /// Sessions that may have expired by now owe nobody anything.
    pub(crate) fn age_sessions(&mut self) {
        if self.opts.clocks.is_none() {
            return;
        }
        let now = self.now;
        let mut marks = 0;
        for s in self.sessions.iter_mut().filter(|s| !s.outlived) {
            if now > s.span.until() - SLACK {
                s.outlive(now);
                marks += 1;
            }
        }
        for _ in 0..marks {
            self.mark(Mark::Outlived);
        }
    }

    /// A request that came then is served: had its session not expired long before, on every clock that may be asked?
    pub(crate) fn served_late(&mut self, session: usize, came: i64, before: i64, token: bool) {
        let Some((skew, quiet)) = self.opts.clocks.as_ref().map(|c| (c.skew, c.quiet)) else { return };
        let (span, now) = (self.sessions[session].span, self.now);
        self.sessions[session].span.served = now;
        if span.served >= came {
            // Another client's request, whose token said that it lives, has brought it back meanwhile.
            return;
        }
        if came > before + span.idle.0 {
            self.mark(Mark::ServedInAllowance);
        }
        // A client's token can make a session live as long as the clock that judges it is behind, and counts whole seconds.
        let more = if token { (span.step() + 3 * S + skew * 2).max(span.step() * 2) } else { span.step() * 2 };
        let until = (before + span.idle.0 + more).min(span.anew + span.lifetime);
        if quiet && span.anew <= came && came > until + SLACK + S {
            let (key, late) = (self.sessions[session].key, (came - until) / MS);
            self.violate(format!("I7 {key:?} is served {late} ms after it was over"));
        }
    }

    /// What a loss left begins anew, at this node.
    pub(crate) fn begins_anew(&mut self, session: usize, node: usize) {
        let idle = self.limits_of(node).idle.as_micros() as i64;
        let span = &mut self.sessions[session].span;
        span.anew = self.now;
        span.idle = (span.idle.0.max(idle), span.idle.1.min(idle));
    }

    /// A process crashed: of a use just before that nobody else need have heard.
    pub(crate) fn forget_uses(&mut self) {
        let now = self.now;
        for s in self.sessions.iter_mut().filter(|s| now - s.span.answered < 2 * S) {
            s.span.sure = s.span.settled;
        }
    }

    // ---- wall clocks ----------------------------------------------------------------------------------------------------

    /// Seconds of a node's wall clock.
    fn wall(&self, node: usize) -> i64 {
        (self.now + self.nodes[node].wall) / S
    }

    pub(crate) fn wall_offset(&mut self) -> i64 {
        let skew = self.opts.clocks.as_ref().map_or(0, |c| c.skew);
        self.clocks.range(-skew, skew)
    }

    /// Until when a token that this node makes says that the session may be alive.
    pub(crate) fn deadline(&self, node: usize, at: Mono) -> i64 {
        self.wall(node) + at.since(self.clock(node)).as_secs() as i64 + 2
    }

    /// Whether this node thinks that a token has run out.
    pub(crate) fn token_expired(&self, node: usize, deadline: i64) -> bool {
        self.opts.clocks.is_some() && deadline < self.wall(node)
    }

    // ---- faults ---------------------------------------------------------------------------------------------------------

    pub(crate) fn clock_fault(&mut self, fault: Fault, node: usize, length: i64) {
        match fault {
            Fault::RestartAll => self.restart_all(),
            Fault::StoreRefuses => {
                self.log(usize::MAX, || format!("the store refuses writes for {} ms", length / MS));
                self.store_refuses = self.now + length;
            }
            Fault::StoreLocked => {
                self.log(usize::MAX, || format!("the store is locked for {} ms", length / MS));
                self.store_locked = self.now + length;
            }
            Fault::WallJump => {
                self.mark(Mark::WallJump);
                self.nodes[node].wall = self.wall_offset();
            }
            Fault::StoreJump => {
                self.mark(Mark::StoreJump);
                let by = *self.clocks.pick(&[-S, S, -3600 * S, 3600 * S, 172_800 * S]).unwrap_or(&S);
                self.log(usize::MAX, || format!("the store's clock jumps by {} s", by / S));
                self.store_offset += by;
                self.store_jumped = true;
                for session in 0..self.sessions.len() {
                    self.forget_stored(session);
                }
            }
            _ => {}
        }
    }

    /// Every node ends, in order or not, and starts again.
    fn restart_all(&mut self) {
        self.mark(Mark::RestartAll);
        let in_order = self.clocks.chance(500);
        for node in self.running() {
            if in_order {
                self.drain(node);
            } else {
                let back = self.clocks.around(2 * S);
                self.crash(node, back);
            }
        }
    }

    /// The store lets go of rows whose time is over.
    pub(crate) fn sweep_store(&mut self) {
        if self.opts.clocks.is_none() || !self.clocks.chance(400) {
            return;
        }
        let now = self.store_now();
        let due: Vec<_> = self.rows.iter().filter(|(_, row)| row.expires() <= now).map(|(key, _)| *key).collect();
        for key in due {
            self.rows.remove(&key);
            self.mark(Mark::RowSwept);
            let Some(session) = self.by_key.get(&key).copied() else { continue };
            if self.is_quiet() && !self.sessions[session].over() && self.sessions[session].created {
                self.violate(format!("I7 the store lets go of {key:?}, which is alive"));
            }
        }
    }

    pub(crate) fn store_now(&self) -> i64 {
        self.now + self.store_offset
    }
}
