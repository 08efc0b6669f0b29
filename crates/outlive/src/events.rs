//! What happens to sessions, told on the node where it happens: [`Outlive::events`].

use crate::outlive::Outlive;
use core::fmt;
use outlive_core::id::SessionKey;
use outlive_core::output::{Event as Told, Source as ToldSource};
use outlive_core::wire::EndKind;
use std::sync::Arc;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Something that happened to a session. What happens to one session at nearly one moment may be told in another order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// The session's name everywhere but at its client, as in [`SessionInfo::key`](crate::SessionInfo::key).
    pub key: String,
    /// What happened.
    pub kind: EventKind,
}

/// Where the state of a session came from that moved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The copy that its new owner held.
    Copy,
    /// Another node, by name: the owner before, or one that held a copy.
    Node(String),
    /// The store.
    Store,
    /// Several branches, merged.
    Several,
    /// No node and no store had anything of it: [`Lost`](EventKind::Lost) follows.
    Nothing,
}

/// What can happen to a session. Nodes are named.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// It began here.
    Created,
    /// This node owns it now.
    Moved {
        /// The owner before, if one was known and it was another node.
        from: Option<String>,
        /// Where the state came from that this node continues with.
        source: Source,
    },
    /// Another node owns it now.
    Left,
    /// It expired here.
    Expired,
    /// It was signed out or ended otherwise.
    Invalidated,
    /// It continues under another id.
    Rotated,
    /// Changes that its client had seen acknowledged are given up as lost.
    Lost,
    /// Changes that had been given up came back.
    FoundAgain,
    /// Two branches were merged.
    Conflict {
        /// The attributes of which one branch had another value, and those for which the session had no room.
        attributes: Vec<Arc<str>>,
    },
    /// An attribute's bytes did not decode, and its first write put them aside: another release wrote them.
    Quarantined {
        /// Its name.
        attribute: Arc<str>,
    },
    /// This node made a copy for another.
    Backed {
        /// The owner.
        owner: String,
    },
    /// All of its copies are where they should be again.
    Replicated {
        /// The nodes that hold them.
        on: Vec<String>,
    },
}

/// Why there is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MissedEvents {
    /// The reader was too slow and this many events were dropped. Later events follow.
    #[error("{0} events were dropped because they were not read in time")]
    Dropped(u64),
    /// The node has ended; there will be no more.
    #[error("the node has ended")]
    Ended,
}

/// See [`Outlive::events`].
pub struct Events {
    receiver: broadcast::Receiver<(SessionKey, Told)>,
    outlive: Outlive,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events(..)")
    }
}

impl Events {
    /// The next event. Cancel safe.
    ///
    /// # Errors
    /// [`MissedEvents`]: some were dropped, or the node has ended.
    pub async fn next(&mut self) -> Result<Event, MissedEvents> {
        loop {
            let (key, told) = self.receiver.recv().await.map_err(|error| match error {
                RecvError::Lagged(count) => MissedEvents::Dropped(count),
                RecvError::Closed => MissedEvents::Ended,
            })?;
            if let Some(kind) = self.kind(told) {
                return Ok(Event { key: crate::node::key_text(key), kind });
            }
        }
    }

    fn kind(&self, told: Told) -> Option<EventKind> {
        let name = |life| self.outlive.node.name_of(life);
        Some(match told {
            Told::Created => EventKind::Created,
            Told::Moved { from, source, .. } => EventKind::Moved {
                from: from.map(name),
                source: match source {
                    ToldSource::Copy => Source::Copy,
                    ToldSource::Node(life) => Source::Node(name(life)),
                    ToldSource::Store => Source::Store,
                    ToldSource::Nothing => Source::Nothing,
                    _ => Source::Several,
                },
            },
            Told::Left { .. } => EventKind::Left,
            Told::Expired => EventKind::Expired,
            Told::Ended(EndKind::Rotated) => EventKind::Rotated,
            Told::Ended(_) => EventKind::Invalidated,
            Told::Lost { .. } => EventKind::Lost,
            Told::FoundAgain { .. } => EventKind::FoundAgain,
            Told::Conflict { discarded } => EventKind::Conflict { attributes: discarded },
            Told::Quarantined { attribute } => EventKind::Quarantined { attribute },
            Told::Backed { owner } => EventKind::Backed { owner: name(owner) },
            Told::Replicated { on } => EventKind::Replicated { on: on.into_iter().map(name).collect() },
            _ => return None,
        })
    }
}

impl Outlive {
    /// What happens to sessions on this node from now on. A few thousand are kept for a slow reader; then the oldest are dropped, and
    /// the reader is told how many.
    pub fn events(&self) -> Events {
        Events { receiver: self.node.runtime.subscribe_events(), outlive: self.clone() }
    }
}
