//! I7: a session lives as long as its idle timeout and its lifetime say, for whoever can be reached, and not much longer.

use super::Session;
use super::excuse::Excuse;
use crate::marks::Mark;
use crate::options::{MS, S};
use crate::world::World;
use core::time::Duration;
use outlive_core::limits::ENDED_KEEP;

const NEVER: i64 = i64::MAX / 4;
/// Clocks drift, and timers fire a little late.
const SLACK: i64 = 200 * MS;

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

    /// Until when a request may still be served, if the last use was then: a client's token that `says_alive` can make a session live as
    /// long as the clock that judges it is behind, and counts whole seconds.
    fn allowed(&self, used: i64, says_alive: bool, skew: i64) -> i64 {
        let two_steps = self.step() * 2;
        let more = if says_alive { (self.step() + 3 * S + skew * 2).max(two_steps) } else { two_steps };
        (used + self.idle.0 + more).min(self.anew + self.lifetime)
    }

    /// It has begun anew after a loss when the marker of that end had to be kept no longer: as long as the session could have lived.
    pub(super) fn outlasts_marker(&self, ended: i64) -> bool {
        self.anew + SLACK >= ended + self.lifetime.min(ENDED_KEEP.as_micros() as i64)
    }

    /// Nobody who allows for what was not heard of keeps it any longer.
    pub(super) fn is_over(&self, now: i64) -> bool {
        now > (self.maybe + self.idle.0 + 2 * self.step()).min(self.anew + self.lifetime) + SLACK
    }

    /// The session has an idle timeout of its own; its lifetime.
    pub(crate) fn limit_to(&mut self, idle: i64) -> i64 {
        self.idle = (idle, idle);
        self.lifetime
    }
}

impl Session {
    /// It may have expired. Whatever of it comes back, nothing has to.
    fn outlive(&mut self, now: i64) {
        (self.outlived, self.outlived_at) = (true, now);
        self.learnt += 1;
        self.lose(Excuse::Outlived);
    }
}

impl World {
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

    /// A request is served: had its session not expired long before it came, on every clock that may be asked?
    pub(crate) fn served_late(&mut self, id: u64) {
        let Some((skew, quiet)) = self.opts.clocks.as_ref().map(|c| (c.skew, c.quiet)) else { return };
        let Some(r) = self.reqs.get(&id) else { return };
        let (session, came, before, alive) = (r.session, r.came, r.before, r.says_alive());
        let (span, now) = (self.sessions[session].span, self.now);
        self.sessions[session].span.served = now;
        if span.served < came && came > before + span.idle.0 {
            self.mark(Mark::ServedInAllowance);
        }
        let until = span.allowed(before, alive, skew);
        if !quiet || came <= until + SLACK + S {
            return;
        }
        let by_token = span.allowed(before, true, skew) + SLACK + S;
        let by = [
            (Excuse::BroughtBack, span.served >= came),
            (Excuse::BegunAnew, span.anew > came),
            (Excuse::VouchedFor, self.brings_token(id, by_token)),
        ];
        if !self.excuses.any(&by) {
            let (key, late) = (self.sessions[session].key, (came - until) / MS);
            self.violate(format!("I7 {key:?} is served {late} ms after it was over"));
        }
    }

    /// Whether another request that waits for the session at the same node had come by then with a token that has not run out.
    fn brings_token(&self, id: u64, until: i64) -> bool {
        let Some(mine) = self.reqs.get(&id) else { return false };
        self.reqs.iter().any(|(other, r)| {
            *other != id
                && (r.session, r.node, r.generation) == (mine.session, mine.node, mine.generation)
                && r.waits_to_open()
                && r.says_alive()
                && r.came <= until
        })
    }

    /// The store has let go of its row.
    pub(crate) fn check_swept(&mut self, session: usize) {
        let s = &self.sessions[session];
        if !self.is_quiet() || s.is_over(self.now) {
            return;
        }
        let (key, over) = (s.key, s.over());
        // Its row was over, and a token brought it back a moment ago: its owner writes it again when it hears that the row is gone.
        let back = self.now - s.span.served < S;
        let more = [(Excuse::NobodyHasIt, u32::from(!s.created)), (Excuse::BroughtBack, u32::from(back))];
        let by: Vec<_> = over.into_iter().chain(more).collect();
        if self.excuses.cover(1, &by).is_none() {
            self.violate(format!("I7 the store lets go of {key:?}, which is alive"));
        }
    }

    /// What a loss left begins anew, at this node.
    pub(crate) fn begins_anew(&mut self, session: usize, node: usize) {
        let idle = self.limits_of(node).idle.as_micros() as i64;
        let span = &mut self.sessions[session].span;
        span.anew = self.now;
        span.idle = (span.idle.0.max(idle), span.idle.1.min(idle));
    }

    /// A process crashed: of a use just before that nobody else need have heard (rule 28).
    pub(crate) fn forget_uses(&mut self) {
        let now = self.now;
        for s in self.sessions.iter_mut().filter(|s| now - s.span.answered < 2 * S) {
            s.span.sure = s.span.settled;
        }
    }
}
