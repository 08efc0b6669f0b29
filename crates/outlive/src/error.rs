//! What can go wrong, one enum per operation. Each says whose fault it is and whether to try again.

pub use crate::builder::Errors;
use core::error::Error;
use core::time::Duration;
use std::sync::Arc;

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The application's own code: a value, a missing layer, a setting.
    Caller,
    /// Other nodes are silent, slow or gone.
    Peer,
    /// The store.
    Store,
    /// Outlive itself. Please report it.
    Bug,
}

/// Whether it makes sense to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Retry {
    /// It would fail again.
    Never,
    /// After this long, with the same request.
    After(Duration),
    /// At another node.
    OtherNode,
}

/// Why a node cannot have a session, or take a change, now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum NotNow {
    /// It has not met the other nodes yet, or a member of its cluster refuses it.
    #[error("it is in no cluster yet")]
    Starting,
    /// It has as many sessions, or as much to ask for, as it can bear.
    #[error("it has as much to do as it can")]
    Busy,
    /// Other nodes want the session at the same time, again and again.
    #[error("other nodes want the session at the same time")]
    Contended,
    /// The node or the store that has the session, or is to keep its change, is silent, and may still answer.
    #[error("who has the session, or is to keep its change, is silent")]
    Silent,
    /// It has left its cluster, or was shut out of it.
    #[error("it has left its cluster")]
    Ended,
}

/// Why a session could not be opened. Nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No session layer wraps this handler. The application's fault: axum layers wrap only the routes that are already there.
    #[error("no session layer wraps this handler: call `.layer(outlive.layer())` after the last `.route(...)`")]
    NoLayer,
    /// This node cannot have the session now.
    #[error("the session cannot be had on this node for now: {why}")]
    Unavailable {
        /// Why.
        why: NotNow,
        /// Try again then.
        after: Duration,
    },
    /// A node or the store that may hold the session, or a newer state of it than could be found, is silent.
    #[error("who may hold the session's newest state is silent, and may still answer")]
    Stale {
        /// Try again then.
        after: Duration,
    },
    /// The session is over: signed out, expired, or gone on under another id. Only [`refresh`](crate::Session::refresh) says so; a request
    /// that brings such an id is a visitor without a session.
    #[error("the session is over, or goes on under another id")]
    Ended,
    /// What had been changed could not be committed, so that the session was not opened again. Only
    /// [`refresh`](crate::Session::refresh) says so.
    #[error(transparent)]
    Uncommitted(CommitError),
    /// Other requests of this session took too long, under `exclusive`.
    #[error("too many requests of this session at once")]
    Busy {
        /// Try again then.
        after: Duration,
    },
}

impl OpenError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            OpenError::NoLayer | OpenError::Busy { .. } | OpenError::Ended => Fault::Caller,
            OpenError::Unavailable { .. } | OpenError::Stale { .. } => Fault::Peer,
            OpenError::Uncommitted(error) => error.fault(),
        }
    }

    /// Whether to try again.
    pub fn retry(&self) -> Retry {
        match self {
            OpenError::NoLayer => Retry::Never,
            OpenError::Uncommitted(error) => error.retry(),
            OpenError::Ended => Retry::After(Duration::ZERO),
            OpenError::Unavailable { why: NotNow::Ended, .. } => Retry::OtherNode,
            OpenError::Unavailable { after, .. } | OpenError::Stale { after } | OpenError::Busy { after } => Retry::After(*after),
        }
    }

    /// The status of a response that says it.
    pub(crate) fn code(&self) -> u16 {
        match self {
            OpenError::NoLayer => 500,
            OpenError::Uncommitted(error) => error.code(),
            OpenError::Busy { .. } => 429,
            OpenError::Unavailable { .. } | OpenError::Stale { .. } | OpenError::Ended => 503,
        }
    }
}

/// Why a request's changes were not acknowledged. The response is replaced; this is in its extensions.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The changes were sent, and it is not known whether they survive. They are kept and sent again; do not repeat what is not idempotent.
    #[error("the changes went out, and it is not known whether they survive")]
    Unknown,
    /// Fewer copies could be made than `min_backups`. Nothing was kept.
    #[error("fewer copies could be made than `min_backups` demands; nothing was kept")]
    UnderReplicated,
    /// The session would be too large. Nothing of the request was kept.
    #[error("setting the session attribute `{attribute}` makes {got} {what}, and the limit is {limit}")]
    TooLarge {
        /// The attribute that made it so: of those that the request changed, the largest.
        attribute: Arc<str>,
        /// What was counted.
        what: &'static str,
        /// How much of it there was.
        got: usize,
        /// How much there may be.
        limit: usize,
    },
    /// A value could not be encoded. Nothing of the request was kept.
    #[error("the session attribute `{attribute}` could not be encoded")]
    Encode {
        /// The attribute.
        attribute: Arc<str>,
        /// What its `Serialize` said.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// An attribute that the request used holds bytes that its type does not read, and `on_undecodable` says `fail`. Nothing of the request
    /// was kept, and the bytes are as they were. The log says what serde missed.
    #[error("the session attribute `{attribute}` holds bytes that its type does not read; nothing was kept, and nothing was overwritten")]
    Undecodable {
        /// The attribute.
        attribute: Arc<str>,
    },
    /// The session ended, or got another id, while the request ran. Nothing was kept.
    #[error("the session ended, or got another id, while the request ran; nothing was kept")]
    Ended,
    /// The response had already left without a cookie, so no request could ever find the session. Nothing was kept.
    #[error("the response has left without a cookie, so a new session can no longer begin; nothing was kept")]
    NoCookie,
    /// The session moved while the request ran, and there an attribute that it changes was changed meanwhile, or what it had read is gone.
    /// Nothing was kept.
    #[error("what the request started from was changed on another node meanwhile, or is gone; nothing was kept")]
    Conflict,
    /// This node takes no changes, or no new sessions, now. Nothing was kept.
    #[error("this node cannot take the change for now: {why}; nothing was kept")]
    Unavailable {
        /// Why.
        why: NotNow,
        /// Try again then.
        after: Duration,
    },
}

impl CommitError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            CommitError::Unknown | CommitError::UnderReplicated | CommitError::Conflict | CommitError::Unavailable { .. } => Fault::Peer,
            CommitError::TooLarge { .. } | CommitError::Encode { .. } | CommitError::Undecodable { .. } => Fault::Caller,
            CommitError::Ended | CommitError::NoCookie => Fault::Caller,
        }
    }

    /// Whether to try again.
    pub fn retry(&self) -> Retry {
        match self {
            CommitError::Unknown | CommitError::UnderReplicated => Retry::After(Duration::from_secs(1)),
            CommitError::Conflict | CommitError::Ended => Retry::After(Duration::ZERO),
            CommitError::Unavailable { why: NotNow::Ended, .. } => Retry::OtherNode,
            CommitError::Unavailable { after, .. } => Retry::After(*after),
            CommitError::TooLarge { .. } | CommitError::Encode { .. } | CommitError::Undecodable { .. } => Retry::Never,
            CommitError::NoCookie => Retry::Never,
        }
    }

    /// The status of a response that says it.
    pub(crate) fn code(&self) -> u16 {
        match self {
            CommitError::TooLarge { .. } | CommitError::Encode { .. } | CommitError::Undecodable { .. } => 500,
            CommitError::NoCookie => 500,
            _ => 503,
        }
    }
}

/// Why a login was refused. The session is as it was before.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoginError {
    /// The user has as many sessions as the cap allows.
    #[error("this user has {got} sessions, and the limit is {limit}")]
    TooManySessions {
        /// Sessions there are.
        got: usize,
        /// Sessions there may be.
        limit: usize,
    },
    /// The name cannot be a user's.
    #[error("the user's name has {got} bytes, and must have 1 to {limit}")]
    BadUser {
        /// Bytes it has.
        got: usize,
        /// Bytes it may have.
        limit: usize,
    },
    /// Who counts the user's sessions did not answer.
    #[error("the login could not be entered for now")]
    Unavailable {
        /// Try again then.
        after: Duration,
    },
}

impl LoginError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            LoginError::TooManySessions { .. } | LoginError::BadUser { .. } => Fault::Caller,
            LoginError::Unavailable { .. } => Fault::Store,
        }
    }

    /// Whether to try again.
    pub fn retry(&self) -> Retry {
        match self {
            LoginError::TooManySessions { .. } | LoginError::BadUser { .. } => Retry::Never,
            LoginError::Unavailable { after } => Retry::After(*after),
        }
    }

    /// The status of a response that says it.
    pub(crate) fn code(&self) -> u16 {
        match self {
            LoginError::TooManySessions { .. } => 403,
            LoginError::BadUser { .. } => 500,
            LoginError::Unavailable { .. } => 503,
        }
    }
}

/// Why a node did not start. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Settings that cannot be: all of them, one a line.
    #[error("{0}")]
    Config(Errors),
    /// The store could not be opened or did not answer.
    #[error(transparent)]
    Store {
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The address for other nodes could not be had, or they refused this one.
    #[error(transparent)]
    Peer {
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl StartError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            StartError::Config(_) => Fault::Caller,
            StartError::Store { .. } => Fault::Store,
            StartError::Peer { .. } => Fault::Peer,
        }
    }

    /// Whether to try again.
    pub fn retry(&self) -> Retry {
        match self {
            StartError::Config(_) => Retry::Never,
            StartError::Store { .. } | StartError::Peer { .. } => Retry::After(Duration::from_secs(1)),
        }
    }
}

/// How [`run`](crate::Outlive::run) ended other than well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The server failed.
    #[error(transparent)]
    Serve(Box<dyn Error + Send + Sync>),
    /// The number of sessions that were held here and are not known to be safe elsewhere.
    #[error("{0} sessions were abandoned: it is not known whether another node or the store has them")]
    Abandoned(u64),
}

impl RunError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            RunError::Serve(_) => Fault::Caller,
            RunError::Abandoned(_) => Fault::Peer,
        }
    }

    /// Whether to try again.
    pub fn retry(&self) -> Retry {
        Retry::Never
    }
}

/// The `Retry-After` of an error, in whole seconds.
pub(crate) fn retry_after(retry: Retry) -> Option<u64> {
    match retry {
        Retry::After(after) => Some(after.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)),
        Retry::Never | Retry::OtherNode => None,
    }
}
