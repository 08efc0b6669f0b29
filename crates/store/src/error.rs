//! Why a store has no answer, and what the caller may do.

use core::time::Duration;
use outlive_core::id::SessionKey;

/// What lay beneath an error, kept as it came.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Of the code or the configuration that called.
    Caller,
    /// Of another node.
    Peer,
    /// Of the store, or of the way to it.
    Store,
    /// Ours.
    Bug,
}

/// What trying the same again is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Nothing: as it is, it fails again or is not safe to repeat.
    Never,
    /// It may work after this long; add jitter.
    After(Duration),
    /// It may work at another node.
    OtherNode,
}

/// Long enough for a busy database to get on, short enough to be felt by nobody.
const SOON: Duration = Duration::from_millis(100);

/// Why a reading call has no answer. Nothing has changed, in any case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The store did not answer, and that says nothing about the rows. The store's fault; ask again later.
    #[error("the store cannot be read")]
    Unavailable(#[source] Cause),
    /// Where it was is nothing, or another store, and whether it comes back is for people to say. The store's fault; ask again later: when
    /// it is back, it may have forgotten.
    #[error("the store is not where it was")]
    Gone(#[source] Cause),
    /// The store answered what no `put` wrote. The store's fault; asking again does not help, a restored backup may.
    #[error("the store's data is damaged")]
    Damaged(#[source] Cause),
    /// More than a call may carry. The caller's fault; ask for less.
    #[error("{what}: {got}, the limit is {limit}")]
    TooLarge {
        /// What was counted, with its unit.
        what: &'static str,
        /// How many there were.
        got: usize,
        /// How many there may be.
        limit: usize,
    },
}

impl LoadError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            LoadError::Unavailable(_) | LoadError::Gone(_) | LoadError::Damaged(_) => Fault::Store,
            LoadError::TooLarge { .. } => Fault::Caller,
        }
    }

    /// What asking again is worth.
    pub fn retry(&self) -> Retry {
        match self {
            LoadError::Unavailable(_) | LoadError::Gone(_) => Retry::After(SOON),
            LoadError::Damaged(_) | LoadError::TooLarge { .. } => Retry::Never,
        }
    }
}

/// Why a writing call has no answer. It is about the whole call: what became of a single row is a value,
/// [`RowResult`](crate::RowResult).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// Nothing of the call happened, certainly. The store's fault; the same call may be made again.
    #[error("the store did not write")]
    Failed(#[source] Cause),
    /// Where it was is nothing, or another store; nothing of the call happened. The store's fault; the same call may be made again: when it is
    /// back, it may have forgotten what it had acknowledged before.
    #[error("the store is not where it was")]
    Gone(#[source] Cause),
    /// Each row of the call may or may not have been written. The store's fault; **load the rows before writing them again**.
    #[error("the store may have written")]
    Unknown(#[source] Cause),
    /// More than a call may carry; nothing happened. The caller's fault; make it smaller.
    #[error("{what}: {got}, the limit is {limit}")]
    TooLarge {
        /// What was counted, with its unit.
        what: &'static str,
        /// How many there were.
        got: usize,
        /// How many there may be.
        limit: usize,
    },
    /// One call named a session twice; nothing happened. The caller's fault: a session has one write in flight.
    #[error("session {0:?} twice in one call")]
    Twice(SessionKey),
}

impl PutError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            PutError::Failed(_) | PutError::Gone(_) | PutError::Unknown(_) => Fault::Store,
            PutError::TooLarge { .. } | PutError::Twice(_) => Fault::Caller,
        }
    }

    /// What making the same call again is worth. [`Unknown`](PutError::Unknown) is `Never`: it has to be read first.
    pub fn retry(&self) -> Retry {
        match self {
            PutError::Failed(_) | PutError::Gone(_) => Retry::After(SOON),
            PutError::Unknown(_) | PutError::TooLarge { .. } | PutError::Twice(_) => Retry::Never,
        }
    }
}
