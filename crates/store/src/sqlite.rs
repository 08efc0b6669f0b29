//! [`SqliteStore`]: one file, shared by the processes of one machine.

mod schema;
mod statements;
mod worker;

use crate::error::{LoadError, PutError};
use crate::open::OpenError;
use crate::store::{Answer, End, Loaded, MAX_ROWS, Node, Put, RowResult, Store, Swept, Touch, check_keys, check_puts, check_text};
use core::fmt;
use core::time::Duration;
use outlive_core::id::SessionKey;
use outlive_core::stamp::Life;
use rusqlite::Connection;
use std::path::Path;
use tokio::sync::oneshot;
use worker::{Broke, Worker};

/// A store in a SQLite file (write-ahead log), shared by the processes of one machine; not by machines, over no network file system.
///
/// Each open store has two threads, one that writes and one that reads, and a connection for each. Calls that wait for the writer are
/// committed together, up to [`MAX_ROWS`] rows. While another process writes, it tries again after a few jittered
/// milliseconds, as long as somebody waits for the answer. The file is readable by its owner alone: it holds the cluster's secret.
///
/// The store's clock is the machine's wall clock, read by SQLite once per transaction: a step of it moves every age and every expiry by as
/// much.
///
/// When the last handle is dropped the threads finish what was queued, and end.
#[derive(Clone)]
pub struct SqliteStore {
    writer: Worker,
    reader: Worker,
}

/// What an answered write of a [`SqliteStore`] survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// The crash of the process and of the machine: each commit waits for the disk.
    #[default]
    Full,
    /// The crash of the process, not of the machine: a power failure may take the last writes back, whole transactions in order, and the
    /// store then has forgotten what it acknowledged. The file stays sound.
    Normal,
}

impl SqliteStore {
    /// Opens the file at `path`; it is made if it is not there, its directory is not.
    ///
    /// Waits while another process makes or migrates it. A file with a newer schema, or one that is not ours, is refused untouched.
    pub async fn open(path: impl AsRef<Path>, synchronous: Synchronous) -> Result<SqliteStore, OpenError> {
        let path = path.as_ref().to_owned();
        let text = path.to_string_lossy();
        if text.is_empty() {
            return Err(OpenError::Refused("`sqlite:` needs the path of a file".into()));
        }
        if text.starts_with(":memory:") || text.starts_with("file:") {
            let why = format!("`{text}` is no file that nodes can share and that outlives them: use `sqlite:PATH`, or `memory`");
            return Err(OpenError::Refused(why));
        }
        let failed = {
            let what = text.clone().into_owned();
            move |source: std::io::Error| OpenError::Failed { what, source: source.into() }
        };
        // Opening may wait for locks and the disk, which no task of a runtime should.
        let (reply, opened) = oneshot::channel();
        let open = move || {
            let store = SqliteStore::open_here(&path, synchronous, &|| !reply.is_closed());
            // Nobody waits: the handle is dropped, and the threads end.
            drop(reply.send(store));
        };
        match std::thread::Builder::new().name("outlive-open".into()).spawn(open) {
            Ok(_) => opened.await.unwrap_or_else(|_| Err(failed(std::io::Error::other("the opening thread is gone")))),
            Err(error) => Err(failed(error)),
        }
    }

    fn open_here(path: &Path, synchronous: Synchronous, wanted: &dyn Fn() -> bool) -> Result<SqliteStore, OpenError> {
        let writer = schema::open(path, synchronous, wanted)?;
        let reader = schema::open(path, synchronous, wanted)?;
        let failed = |source: std::io::Error| OpenError::Failed { what: path.display().to_string(), source: source.into() };
        Ok(SqliteStore {
            writer: Worker::start("outlive-write", writer, worker::Kind::Write).map_err(failed)?,
            reader: Worker::start("outlive-read", reader, worker::Kind::Read).map_err(failed)?,
        })
    }

    async fn write<T: Send + 'static>(
        &self,
        rows: usize,
        work: impl Fn(&Connection, i64) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, PutError> {
        self.writer.call(rows, work).await.map_err(|broke| match broke {
            Broke::Nothing(cause) => PutError::Failed(cause),
            Broke::Damaged(cause) => PutError::Failed(cause),
            Broke::Unknown(cause) => PutError::Unknown(cause),
        })
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl Fn(&Connection, i64) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, LoadError> {
        self.reader.call(1, work).await.map_err(|broke| match broke {
            Broke::Nothing(cause) | Broke::Unknown(cause) => LoadError::Unavailable(cause),
            Broke::Damaged(cause) => LoadError::Damaged(cause),
        })
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqliteStore(..)")
    }
}

impl Store for SqliteStore {
    fn load(&self, keys: Vec<SessionKey>) -> Answer<'_, Result<Vec<Loaded>, LoadError>> {
        Box::pin(async move {
            if keys.len() > MAX_ROWS {
                return Err(LoadError::TooLarge { what: "keys of a call", got: keys.len(), limit: MAX_ROWS });
            }
            self.read(move |db, now| statements::load(db, now, &keys)).await
        })
    }

    fn put(&self, rows: Vec<Put>) -> Answer<'_, Result<Vec<RowResult>, PutError>> {
        Box::pin(async move {
            check_puts(&rows)?;
            self.write(rows.len(), move |db, now| statements::put(db, now, &rows)).await
        })
    }

    fn end(&self, ends: Vec<End>) -> Answer<'_, Result<(), PutError>> {
        Box::pin(async move {
            check_keys(ends.iter().map(|end| end.key))?;
            self.write(ends.len(), move |db, now| statements::end(db, now, &ends)).await
        })
    }

    fn touch(&self, touches: Vec<Touch>) -> Answer<'_, Result<Vec<RowResult>, PutError>> {
        Box::pin(async move {
            check_keys(touches.iter().map(|touch| touch.key))?;
            self.write(touches.len(), move |db, now| statements::touch(db, now, &touches)).await
        })
    }

    fn sweep(&self, limit: usize) -> Answer<'_, Result<Swept, PutError>> {
        let limit = limit.min(MAX_ROWS);
        Box::pin(async move { self.write(limit, move |db, now| statements::sweep(db, now, limit)).await })
    }

    fn lease(&self, name: String, holder: Life, ttl: Duration) -> Answer<'_, Result<Option<u64>, PutError>> {
        Box::pin(async move {
            check_text("bytes of a lease's name", &name)?;
            self.write(1, move |db, now| statements::lease(db, now, &name, holder, ttl)).await
        })
    }

    fn announce(&self, node: Node, lease: Duration) -> Answer<'_, Result<Option<u64>, PutError>> {
        Box::pin(async move {
            node.check()?;
            self.write(1, move |db, now| statements::announce(db, now, &node, lease)).await
        })
    }

    fn nodes(&self) -> Answer<'_, Result<Vec<Node>, LoadError>> {
        Box::pin(self.read(statements::nodes))
    }

    fn withdraw(&self, life: Life) -> Answer<'_, Result<(), PutError>> {
        Box::pin(self.write(1, move |db, _| statements::withdraw(db, life)))
    }

    fn secret(&self, proposal: [u8; 32]) -> Answer<'_, Result<[u8; 32], PutError>> {
        Box::pin(self.write(1, move |db, _| statements::secret(db, &proposal)))
    }

    fn probe(&self) -> Answer<'_, Result<(), LoadError>> {
        Box::pin(self.read(|db, _| statements::probe(db)))
    }
}
