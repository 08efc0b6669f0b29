//! Numbers, and whether a node is fit for requests.

use crate::health::StoreHealth;
use crate::node::Inner;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use outlive_core::config::Durability;
use outlive_core::output::{Event, Live};
use std::sync::Arc;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    pub(crate) fn add_many(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What has been counted.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Count,)*
        }

        /// Numbers of one node. Those of `engine` are as of now, the others have been counted since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            /// The engine's own.
            pub engine: outlive_core::engine::Stats,
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            fn stats(&self, engine: outlive_core::engine::Stats) -> Stats {
                Stats { engine, $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Sessions created here.
    created,
    /// Sessions that this node came to own.
    moved,
    /// Sessions that another node came to own.
    left,
    /// Sessions that expired here.
    expired,
    /// Sessions that ended here.
    ended,
    /// Losses that were reported: commits that clients had seen and nobody has.
    lost,
    /// Commits that had been given up as lost and came back.
    found_again,
    /// Merges in which a value was discarded.
    conflicts,
    /// Copies made here for others.
    backed,
    /// Sessions whose copies came to be where they should be again.
    replicated,
    /// Commits whose outcome nobody knew in time.
    unknown,
    /// Links closed because of what the peer sent.
    bad_frames,
    /// Connections that did not become links.
    refused_connections,
    /// Bytes that were written to links with other nodes, without what TCP adds.
    sent_bytes,
    /// Bytes that were read from links with other nodes.
    received_bytes,
    /// Times that this node stood still for more than a second.
    stalls,
    /// Rows that were written to the store.
    store_writes,
    /// Rows that were read from the store.
    store_reads,
    /// Calls of the store that failed or were not answered in time.
    store_failures,
    /// Times that the store may have forgotten what it had acknowledged.
    store_forgot,
}

impl Counters {
    pub(crate) fn event(&self, event: &Event) {
        match event {
            Event::Created => self.created.add(),
            Event::Moved { .. } => self.moved.add(),
            Event::Left { .. } => self.left.add(),
            Event::Expired => self.expired.add(),
            Event::Ended(_) => self.ended.add(),
            Event::Lost { .. } => self.lost.add(),
            Event::FoundAgain { .. } => self.found_again.add(),
            Event::Conflict { .. } => self.conflicts.add(),
            Event::Backed { .. } => self.backed.add(),
            Event::Replicated { .. } => self.replicated.add(),
            _ => {}
        }
    }
}

/// Whether requests should be sent to a node. As text: one word, and behind a colon why, if that is not plain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Readiness {
    /// Yes.
    Ready,
    /// Yes, and it promises less than it is set to, or will soon. Every survivor of a failure is degraded for a while: whoever sent it
    /// no requests then would make an outage of one dead node.
    Degraded {
        /// How it is with the store. If not well, sessions are served from memory and copies, and wait to be written.
        store: StoreHealth,
        /// Sessions that should have copies and do not.
        under_replicated: u64,
        /// None of the nodes that it was to join is reached.
        alone: bool,
    },
    /// No: the store cannot be written, and at durability `store` no change is acknowledged without it.
    NoStore(StoreHealth),
    /// No: it is about to meet the others; or they do not take it, for this reason.
    Forming(Option<Box<str>>),
    /// No: it leaves. It serves what comes all the same.
    Draining,
    /// No, and never again: the process must be started anew.
    Dead,
}

impl Readiness {
    /// Whether requests should be sent here.
    pub fn is_fit(&self) -> bool {
        matches!(self, Readiness::Ready | Readiness::Degraded { .. })
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Readiness::Ready => f.write_str("ready"),
            Readiness::Degraded { store, under_replicated, alone } => {
                f.write_str("degraded: ")?;
                let store_ill = *store != StoreHealth::Ok;
                if store_ill {
                    write!(f, "{store}")?;
                }
                if store_ill && *under_replicated > 0 {
                    f.write_str("; ")?;
                }
                if *under_replicated > 0 {
                    write!(f, "{under_replicated} sessions have fewer copies than they should, and are being copied")?;
                }
                if *alone {
                    let and = if store_ill || *under_replicated > 0 { "; " } else { "" };
                    write!(f, "{and}none of the nodes to join is reached")?;
                }
                Ok(())
            }
            Readiness::NoStore(health) => write!(f, "unavailable: durability is `store`, and {health}"),
            Readiness::Forming(None) => f.write_str("starting"),
            Readiness::Forming(Some(why)) => write!(f, "starting: {why}"),
            Readiness::Draining => f.write_str("draining"),
            Readiness::Dead => f.write_str("dead"),
        }
    }
}

impl<L: Live> Inner<L> {
    pub(crate) fn stats(self: &Arc<Self>) -> Stats {
        self.counters.stats(self.engine.stats(self.clock.now()))
    }

    pub(crate) fn degraded(self: &Arc<Self>) -> Readiness {
        if !*self.formed.borrow() {
            return Readiness::Forming(self.apart().map(Into::into));
        }
        let store = self.store.as_ref().map(|store| store.health()).unwrap_or_default();
        let under_replicated = self.engine.stats(self.clock.now()).under_replicated;
        let ill = store != StoreHealth::Ok;
        if ill && self.engine.config().durability == Durability::Store {
            return Readiness::NoStore(store);
        }
        let alone = self.is_alone();
        if ill || under_replicated > 0 || alone { Readiness::Degraded { store, under_replicated, alone } } else { Readiness::Ready }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_dead_node_leaves_the_others_fit_for_requests_and_they_say_what_is_missing() {
        let degraded = |store, under_replicated| Readiness::Degraded { store, under_replicated, alone: false };
        let copying = degraded(StoreHealth::Ok, 40_000);
        let unread = StoreHealth::CannotBeRead;
        assert!(copying.is_fit() && degraded(unread, 0).is_fit());
        assert_eq!(copying.to_string(), "degraded: 40000 sessions have fewer copies than they should, and are being copied");
        assert!(degraded(unread, 1).to_string().contains("; 1 sessions"));
        for not in [Readiness::NoStore(unread), Readiness::Forming(None), Readiness::Draining, Readiness::Dead] {
            assert!(!not.is_fit(), "{not}");
        }
    }
}
