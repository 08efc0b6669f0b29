//! [`open`]: a store from its URL.

use crate::error::{Cause, Fault, Retry};
use crate::memory::MemoryStore;
use crate::store::Store;
use std::sync::Arc;

/// Opens the store that `url` names: `memory`, or `sqlite:PATH` or `sqlite:PATH?synchronous=normal` with the feature `sqlite`.
///
/// The file of `sqlite:PATH` is made if it is not there, its directory is not. Two `memory` stores share nothing.
pub async fn open(url: &str) -> Result<Arc<dyn Store>, OpenError> {
    match url.split_once(':') {
        None if url == "memory" => Ok(Arc::new(MemoryStore::new())),
        Some(("sqlite", rest)) => sqlite(rest).await,
        // A URL may hold a password, so no more than its scheme is repeated.
        Some((scheme, _)) => Err(OpenError::Scheme(scheme.chars().take(32).collect())),
        None => Err(OpenError::Scheme(url.chars().take(32).collect())),
    }
}

#[cfg(not(feature = "sqlite"))]
async fn sqlite(_: &str) -> Result<Arc<dyn Store>, OpenError> {
    Err(OpenError::Feature { scheme: "sqlite" })
}

#[cfg(feature = "sqlite")]
async fn sqlite(rest: &str) -> Result<Arc<dyn Store>, OpenError> {
    use crate::sqlite::{SqliteStore, Synchronous};
    let (path, synchronous) = match rest.rsplit_once('?') {
        None | Some((_, "")) => (rest, Synchronous::Full),
        Some((path, "synchronous=full")) => (path, Synchronous::Full),
        Some((path, "synchronous=normal")) => (path, Synchronous::Normal),
        Some((_, option)) => {
            let text = format!("`{option}` is no option of `sqlite:`: there are `synchronous=full` and `synchronous=normal`");
            return Err(OpenError::Refused(text));
        }
    };
    Ok(Arc::new(SqliteStore::open(path, synchronous).await?))
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No store is called that. The caller's fault; nothing changed; mend the URL.
    #[error("`{0}` is not a store: use `memory` or `sqlite:PATH`")]
    Scheme(String),
    /// The store was not compiled in. The caller's fault; nothing changed; add the feature.
    #[error("`{scheme}:` needs the feature `{scheme}` of outlive")]
    Feature {
        /// The scheme and the feature.
        scheme: &'static str,
    },
    /// The URL names a store that cannot do what a store is for. The caller's fault; nothing changed; mend the URL.
    #[error("{0}")]
    Refused(String),
    /// It holds another program's data, or was written by a newer Outlive. The caller's fault; nothing changed; upgrade, or use another.
    #[error("{0}")]
    Foreign(String),
    /// It could not be opened. The store's fault; at most empty tables were made; try again later.
    #[error("cannot open {what}")]
    Failed {
        /// The store, without secrets.
        what: String,
        /// Why.
        #[source]
        source: Cause,
    },
}

impl OpenError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            OpenError::Scheme(_) | OpenError::Feature { .. } | OpenError::Refused(_) | OpenError::Foreign(_) => Fault::Caller,
            OpenError::Failed { .. } => Fault::Store,
        }
    }

    /// What trying again is worth.
    pub fn retry(&self) -> Retry {
        match self {
            OpenError::Failed { .. } => Retry::After(core::time::Duration::from_secs(1)),
            _ => Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_without_a_store_says_what_to_write_and_keeps_its_password() {
        let error = open("postgres://me:hunter2@db/x").await.err().unwrap();
        assert_eq!(error.to_string(), "`postgres` is not a store: use `memory` or `sqlite:PATH`");
        assert_eq!((error.fault(), error.retry()), (Fault::Caller, Retry::Never));
        assert!(open("memory").await.is_ok());
        assert!(open("").await.is_err());
    }
}
