//! [`open`]: a store from its URL.

use crate::error::{Cause, Fault, Retry};
use crate::memory::MemoryStore;
use crate::store::Store;
use std::sync::Arc;

/// Opens the store that `url` names: `memory`, or `sqlite:PATH` or `sqlite:PATH?synchronous=normal` with the feature `sqlite`.
///
/// PATH is taken as it is written, and relative to the working directory; `sqlite:///PATH` is the path `/PATH`. The file is made if it is
/// not there, its directory is not. What could mean two things is refused with the spelling that means one: a host (`sqlite://s.db`), `~`
/// and `$`, which a shell knows and a URL does not, escapes (`%20`), blanks at an end, a directory. Two `memory` stores share nothing.
///
/// How far a store [reaches](Store::reach) follows from its scheme: `memory` this process, `sqlite:` this machine.
pub async fn open(url: &str) -> Result<Arc<dyn Store>, OpenError> {
    let (scheme, rest) = url.split_once(':').unwrap_or((url, ""));
    // A scheme has no case.
    if url.eq_ignore_ascii_case("memory") || url.eq_ignore_ascii_case("memory:") {
        return Ok(Arc::new(MemoryStore::new()));
    }
    if scheme.eq_ignore_ascii_case("sqlite") && url.contains(':') {
        return sqlite(rest).await;
    }
    if scheme.eq_ignore_ascii_case("file") && url.contains(':') {
        return Err(OpenError::Refused("`file:` is not a store: write `sqlite:PATH`".to_owned()));
    }
    // A URL may hold a password, so no more than its scheme is repeated.
    Err(OpenError::Scheme(scheme.chars().take(32).collect()))
}

#[cfg(not(feature = "sqlite"))]
async fn sqlite(_: &str) -> Result<Arc<dyn Store>, OpenError> {
    Err(OpenError::Feature { scheme: "sqlite" })
}

#[cfg(feature = "sqlite")]
async fn sqlite(rest: &str) -> Result<Arc<dyn Store>, OpenError> {
    let (path, synchronous) = parsed(rest).map_err(OpenError::Refused)?;
    Ok(Arc::new(crate::sqlite::SqliteStore::open(path, synchronous).await?))
}

/// What follows `sqlite:`, or a sentence that says what to write instead.
#[cfg(feature = "sqlite")]
fn parsed(rest: &str) -> Result<(&str, crate::sqlite::Synchronous), String> {
    use crate::sqlite::Synchronous;
    let (path, options) = rest.split_once('?').unwrap_or((rest, ""));
    let mut synchronous = Synchronous::Full;
    for (i, option) in options.split('&').enumerate() {
        match option {
            "" if i == 0 && options.is_empty() => {}
            "synchronous=full" => synchronous = Synchronous::Full,
            "synchronous=normal" => synchronous = Synchronous::Normal,
            _ => {
                return Err(format!(
                    "`{option}` is no option of `sqlite:`: there are `synchronous=full` and `synchronous=normal`, and a path has no `?`"
                ));
            }
        }
    }
    if options.contains('&') {
        return Err("`sqlite:` has one option: `?synchronous=full` or `?synchronous=normal`".to_owned());
    }
    let path = match path.strip_prefix("//") {
        // Three slashes are an empty host and an absolute path.
        Some(absolute) if absolute.starts_with('/') => absolute,
        Some(other) => {
            let other = if other.is_empty() { "PATH" } else { other };
            return Err(format!("`sqlite://{other}` would be a host: write `sqlite:{other}`, or `sqlite:/{other}` for an absolute path"));
        }
        None => path,
    };
    let why = if path.is_empty() {
        "`sqlite:` needs the path of a file: `sqlite:sessions.db`, `sqlite:/var/lib/app/sessions.db`".to_owned()
    } else if path.starts_with(":memory:") {
        format!("`{path}` is no file that nodes can share and that outlives them: use `sqlite:PATH`, or `memory`")
    } else if path.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("file:")) {
        format!("`{path}` is a URL within a URL: write `sqlite:PATH`")
    } else if path.trim() != path || path.contains(|c: char| c.is_control()) {
        let path: String = path.trim().chars().filter(|c| !c.is_control()).collect();
        format!("the path has a blank or a line break at an end, or an invisible character in it: write `sqlite:{path}`")
    } else if path.starts_with('~') || path.starts_with('$') || path.contains("${") {
        format!("`{path}`: `~` and `$` are known to a shell, and this is none: write the path out")
    } else if let Some(plain) = unescaped(path) {
        format!("`{path}` has escapes, and a path has none: write `sqlite:{plain}`")
    } else if path.ends_with(['/', '\\']) {
        format!("`{path}` is a directory: write `sqlite:{path}sessions.db`")
    } else {
        return Ok((path, synchronous));
    };
    Err(why)
}

/// The path without its `%XX`, if it has any.
#[cfg(feature = "sqlite")]
fn unescaped(path: &str) -> Option<String> {
    let mut plain = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = if *first == b'%' { tail.first_chunk().and_then(|hex: &[u8; 2]| core::str::from_utf8(hex).ok()) } else { None };
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[2..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    (plain.len() < path.len()).then(|| String::from_utf8_lossy(&plain).into_owned())
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
    /// The URL or the path names what cannot be a store, or what others can read and this process cannot make private. The caller's fault;
    /// nothing changed; do as the sentence says.
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
    use crate::store::Reach;

    #[tokio::test]
    async fn a_url_without_a_store_says_what_to_write_and_keeps_its_password() {
        let error = open("postgres://me:hunter2@db/x").await.err().unwrap();
        assert_eq!(error.to_string(), "`postgres` is not a store: use `memory` or `sqlite:PATH`");
        assert_eq!((error.fault(), error.retry()), (Fault::Caller, Retry::Never));
        for good in ["memory", "MEMORY", "memory:"] {
            assert!(open(good).await.is_ok(), "{good}");
        }
        for (wrong, part) in [
            ("", "`` is not a store: use `memory` or `sqlite:PATH`"),
            ("sqlite", "`sqlite` is not a store: use"),
            ("s.db", "`s.db` is not a store: use"),
            ("sqlite3:s.db", "`sqlite3` is not a store: use"),
            ("mem:", "`mem` is not a store: use"),
            ("file:s.db", "write `sqlite:PATH`"),
            ("FILE:///s.db", "write `sqlite:PATH`"),
        ] {
            let error = open(wrong).await.err().unwrap().to_string();
            assert!(error.contains(part), "{wrong}: {error}");
        }
    }

    #[tokio::test]
    async fn how_far_a_store_reaches_follows_from_its_scheme() {
        assert_eq!(open("memory").await.unwrap().reach(), Reach::Process);
        #[cfg(feature = "sqlite")]
        {
            let path = std::env::temp_dir().join(format!("outlive-reach-{}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            let store = open(&format!("sqlite:{}", path.join("s.db").display())).await.unwrap();
            assert_eq!((store.reach(), store.batches()), (Reach::Machine, 1));
            drop(store);
            std::fs::remove_dir_all(&path).unwrap();
        }
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn every_spelling_of_a_path_means_what_it_says_or_is_refused_with_the_one_that_does() {
        use crate::sqlite::Synchronous::{Full, Normal};
        for (rest, meaning) in [
            ("s.db", ("s.db", Full)),
            ("./s.db", ("./s.db", Full)),
            ("../s.db", ("../s.db", Full)),
            ("data/s.db", ("data/s.db", Full)),
            ("/abs/s.db", ("/abs/s.db", Full)),
            ("///abs/s.db", ("/abs/s.db", Full)),
            ("////abs/s.db", ("//abs/s.db", Full)),
            ("s.db?", ("s.db", Full)),
            ("s.db?synchronous=full", ("s.db", Full)),
            ("s.db?synchronous=normal", ("s.db", Normal)),
            ("///abs/s.db?synchronous=normal", ("/abs/s.db", Normal)),
            ("with blanks/my store.db", ("with blanks/my store.db", Full)),
            ("100%.db", ("100%.db", Full)),
            ("a~b#c.db", ("a~b#c.db", Full)),
            ("näme.db", ("näme.db", Full)),
        ] {
            assert_eq!(parsed(rest), Ok(meaning), "sqlite:{rest}");
        }
        for (rest, instead) in [
            ("", "`sqlite:sessions.db`"),
            ("?synchronous=normal", "`sqlite:sessions.db`"),
            ("//", "write `sqlite:PATH`"),
            ("//s.db", "write `sqlite:s.db`, or `sqlite:/s.db` for an absolute path"),
            ("//localhost/s.db", "write `sqlite:localhost/s.db`"),
            (":memory:", "or `memory`"),
            (":memory:?cache=shared", "`cache=shared` is no option"),
            ("file:s.db", "write `sqlite:PATH`"),
            ("File:s.db?mode=ro", "`mode=ro` is no option"),
            ("s.db?mode=rwc", "`mode=rwc` is no option"),
            ("s.db?synchronous=FULL", "there are `synchronous=full` and `synchronous=normal`"),
            ("s.db?synchronous=off", "there are `synchronous=full` and `synchronous=normal`"),
            ("s.db?synchronous=full&synchronous=normal", "has one option"),
            ("s.db?synchronous=full&", "is no option"),
            ("what?.db", "a path has no `?`"),
            (" s.db", "write `sqlite:s.db`"),
            ("s.db ", "write `sqlite:s.db`"),
            ("s.db\n", "write `sqlite:s.db`"),
            ("s\0.db", "write `sqlite:s.db`"),
            ("~/s.db", "write the path out"),
            ("~me/s.db", "write the path out"),
            ("$HOME/s.db", "write the path out"),
            ("/data/${APP}/s.db", "write the path out"),
            ("my%20store.db", "write `sqlite:my store.db`"),
            ("%2Fabs%2fs.db", "write `sqlite:/abs/s.db`"),
            ("data/", "write `sqlite:data/sessions.db`"),
            ("/", "write `sqlite:/sessions.db`"),
        ] {
            let why = parsed(rest).unwrap_err();
            assert!(why.contains(instead), "sqlite:{rest}: {why}");
        }
    }
}
