//! [`Opened`]: a session in use by one request, wherever its owner is.

use core::fmt;
use core::time::Duration;
use outlive_core::id::SessionKey;
use outlive_core::output::{self, Guest, Live};
use outlive_core::stamp::{Life, Stamp};
use outlive_core::time::Mono;
use std::sync::Arc;

/// A session in use by one request: owned here, or a copy of one whose owner stays where it is. Commits go to the owner by themselves.
pub struct Opened<L> {
    /// The session.
    pub key: SessionKey,
    pub(crate) at: At<L>,
}

#[derive(Debug)]
pub(crate) enum At<L> {
    Owned(output::Opened<L>),
    Guest(Arc<Guest>, Arc<L>),
}

impl<L> Clone for At<L> {
    fn clone(&self) -> At<L> {
        match self {
            At::Owned(opened) => At::Owned(opened.clone()),
            At::Guest(guest, live) => At::Guest(guest.clone(), live.clone()),
        }
    }
}

impl<L> Clone for Opened<L> {
    fn clone(&self) -> Opened<L> {
        Opened { key: self.key, at: self.at.clone() }
    }
}

impl<L> fmt::Debug for Opened<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("tip", &self.tip()).field("guest_of", &self.guest_of()).finish_non_exhaustive()
    }
}

impl<L> From<output::Opened<L>> for Opened<L> {
    fn from(opened: output::Opened<L>) -> Opened<L> {
        Opened { key: opened.key, at: At::Owned(opened) }
    }
}

impl<L: Live> Opened<L> {
    pub(crate) fn guest(key: SessionKey, guest: Guest) -> Opened<L> {
        let live = Arc::new(L::of(&guest.record));
        Opened { key, at: At::Guest(Arc::new(guest), live) }
    }
}

impl<L> Opened<L> {
    /// The decoded values.
    pub fn live(&self) -> &Arc<L> {
        match &self.at {
            At::Owned(opened) => &opened.live,
            At::Guest(_, live) => live,
        }
    }

    /// The last commit in what the request finds; version 0 if there is none.
    pub fn tip(&self) -> Stamp {
        match &self.at {
            At::Owned(opened) => opened.tip,
            At::Guest(guest, _) => guest.record.tip,
        }
    }

    /// The owner, if that is another node and this is a copy.
    pub fn guest_of(&self) -> Option<Life> {
        match &self.at {
            At::Owned(_) => None,
            At::Guest(guest, _) => Some(guest.owner),
        }
    }

    /// How often others' commits were merged into it: if it rose, read the record again.
    pub fn external(&self) -> u32 {
        match &self.at {
            At::Owned(opened) => opened.external,
            At::Guest(..) => 0,
        }
    }

    /// Until when a token made now says that it lives, and by how much that has to move to be worth another token.
    pub fn deadline(&self) -> (Mono, Duration) {
        match &self.at {
            At::Owned(opened) => (opened.deadline, opened.step),
            At::Guest(guest, _) => guest.record.deadline(),
        }
    }
}
