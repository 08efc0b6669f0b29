//! What every operation on a session gets: the time, the settings, and where effects go.

use crate::config::Checked;
use crate::id::SessionKey;
use crate::maps::{Recent, Set};
use crate::output::{Outcome, Output, Outputs, Ticket, Unavailable};
use crate::pending::Following;
use crate::plant::Bug;
use crate::stamp::Claim;
use crate::time::Mono;
use crate::view::View;
use core::sync::atomic::{AtomicU64, Ordering};
use rand::Rng;
use rand_pcg::Pcg32;
use std::collections::{BTreeSet, VecDeque};

/// What a call of the engine brings along.
pub(crate) struct Call<'a> {
    pub(crate) now: Mono,
    pub(crate) config: &'a Checked,
    pub(crate) out: &'a mut Outputs,
    pub(crate) shared: &'a Shared,
}

/// What every operation on a session gets.
pub(crate) struct Cx<'a> {
    pub(crate) now: Mono,
    pub(crate) config: &'a Checked,
    pub(crate) out: &'a mut Outputs,
    pub(crate) shared: &'a Shared,
    /// Which session it is.
    pub(crate) key: SessionKey,
    pub(crate) view: &'a View,
    /// The view under which the last walk was finished.
    pub(crate) walked: &'a View,
    pub(crate) queues: &'a mut Queues,
}

/// Numbers that all shards draw from.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) tickets: AtomicU64,
    pub(crate) owned: AtomicU64,
    pub(crate) held: AtomicU64,
    /// Requests that were refused because a bound was reached.
    pub(crate) busy: AtomicU64,
    /// Promises and markers of ends that were forgotten before their time, because a bound was reached.
    pub(crate) forgotten: AtomicU64,
}

/// What the sessions of one shard have in common: who of them comes next, and which of them something is under way for. What that is
/// stands in the session.
#[derive(Debug)]
pub(crate) struct Queues {
    pub(crate) timers: BTreeSet<(Mono, SessionKey, Timer)>,
    /// Sessions whose newest commit the store lacks; those that a response waits for are in front.
    pub(crate) dirty: VecDeque<SessionKey>,
    /// Sessions whose last use the store is to hear of.
    pub(crate) touches: VecDeque<SessionKey>,
    /// Sessions of which a put or a marker is on its way to the store.
    pub(crate) writing: Set<SessionKey>,
    /// Sessions for which a claim round runs.
    pub(crate) rounds: BTreeSet<SessionKey>,
    /// Owned sessions whose list does not hold the newest version since the membership changed, and ended ones whose list has not heard
    /// of the end.
    pub(crate) repairing: Set<SessionKey>,
    /// Owned sessions that others are to be invited to claim, and those that somebody has been invited to: few at a time.
    pub(crate) inviting: VecDeque<SessionKey>,
    pub(crate) invited: Set<SessionKey>,
    /// Ids that follow those that have ended: they end too.
    pub(crate) following: Vec<Following>,
    /// How many markers of ends the table has, or more, and whether that is too many.
    pub(crate) marked: usize,
    pub(crate) crowded: bool,
    /// Promises for sessions that are not held here: a session that is would be ten times as large.
    pub(crate) promises: Recent<Promise>,
    /// Sessions that nobody has.
    pub(crate) not_found: Recent<()>,
    pub(crate) tenures: u32,
    pub(crate) rng: Pcg32,
}

/// What this node promised for a session without holding it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Promise {
    pub(crate) claim: Claim,
    /// The highest ever promised, whether it still binds or not.
    pub(crate) highest: Claim,
}

impl Queues {
    pub(crate) fn new(rng: Pcg32) -> Queues {
        Queues {
            timers: BTreeSet::new(),
            dirty: VecDeque::new(),
            touches: VecDeque::new(),
            writing: Set::default(),
            rounds: BTreeSet::new(),
            repairing: Set::default(),
            inviting: VecDeque::new(),
            invited: Set::default(),
            following: Vec::new(),
            marked: 0,
            crowded: false,
            promises: Recent::default(),
            not_found: Recent::default(),
            tenures: 0,
            rng,
        }
    }
}

impl Cx<'_> {
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket(self.shared.tickets.fetch_add(1, Ordering::Relaxed))
    }

    /// A bound was reached.
    pub(crate) fn busy(&self) -> Unavailable {
        self.shared.busy.fetch_add(1, Ordering::Relaxed);
        Unavailable::Busy
    }

    pub(crate) fn settle(&mut self, ticket: Ticket, outcome: Outcome) {
        self.out.push(Output::Settled(ticket, outcome));
    }

    pub(crate) fn planted(&self, bug: Bug) -> bool {
        self.config.planted(bug)
    }

    pub(crate) fn random(&mut self) -> u64 {
        self.queues.rng.next_u64()
    }

    /// Wakes the session then.
    pub(crate) fn set_timer(&mut self, due: Mono, timer: Timer) {
        self.queues.timers.insert((due, self.key, timer));
    }

    /// The number of a new uninterrupted ownership.
    pub(crate) fn tenure(&mut self) -> u32 {
        self.queues.tenures += 1;
        self.queues.tenures
    }
}

/// What a timer is for. Timers are never cancelled: whoever is woken looks whether it is still due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    Round,
    Close,
    Heir,
    Ending,
    Parked,
    Invite,
    Store,
    Touch,
}
