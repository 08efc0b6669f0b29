//! What every operation on a session gets: the time, the settings, and where effects go.

use crate::config::Checked;
use crate::output::{Outcome, Output, Outputs, Ticket, Unavailable};
use crate::plant::Bug;
use crate::time::Mono;
use core::sync::atomic::{AtomicU64, Ordering};
use hashbrown::{HashMap, HashSet};

/// Maps with a fixed hasher: keys are hashes already, and one seed must replay to the same bytes.
pub(crate) type Map<K, V> = HashMap<K, V, foldhash::fast::FixedState>;
pub(crate) type Set<K> = HashSet<K, foldhash::fast::FixedState>;

/// What every operation gets: the time, the settings, and where effects go.
pub(crate) struct Cx<'a> {
    pub(crate) now: Mono,
    pub(crate) config: &'a Checked,
    pub(crate) out: &'a mut Outputs,
    pub(crate) shared: &'a Shared,
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
