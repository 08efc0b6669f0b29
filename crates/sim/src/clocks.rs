//! Time itself: idle timeouts, nodes that are configured differently, clocks that are wrong, a store that is shut for writers, and
//! restarts of all nodes. What it decides is drawn from a source of its own, so that seeds from before it play as they did.

use crate::marks::Mark;
use crate::options::{Fault, MS, Options, S};
use crate::rng::Rng;
use crate::world::World;
use bytes::Bytes;
use core::time::Duration;
use outlive_core::config::Limits;
use outlive_core::record::{Base, Change, LIMITS};
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

    /// Limits of its own, for some sessions, with their first commit.
    pub(crate) fn own_limits(&mut self, session: usize) -> Option<Change> {
        let (own, quiet) = self.opts.clocks.as_ref().map(|c| (c.own, c.quiet))?;
        if !self.clocks.chance(own) {
            return None;
        }
        self.mark(Mark::OwnLimits);
        let idle = *self.clocks.pick(&[2, 6, 20, 90]).unwrap_or(&20) * S + if quiet { 0 } else { 300 * S };
        let lifetime = self.sessions[session].span.limit_to(idle);
        let limits = Limits { idle: duration(idle), lifetime: duration(lifetime) };
        Some(Change { name: LIMITS.into(), base: Base::Absent, value: Some(Bytes::copy_from_slice(&limits.encode())) })
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
            self.check_swept(session);
        }
    }

    pub(crate) fn store_now(&self) -> i64 {
        self.now + self.store_offset
    }
}
