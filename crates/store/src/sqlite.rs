//! [`SqliteStore`]: one file, shared by the processes of one machine.

mod clock;
mod hold;
mod place;
mod schema;
mod statements;
mod worker;

use crate::error::{LoadError, PutError};
use crate::open::OpenError;
use crate::store::{
    Answer, End, Loaded, MAX_ROWS, Marker, Node, Put, Reach, RowResult, Store, Swept, Touch, check_keys, check_puts, check_text,
};
use clock::Clock;
use core::fmt;
use core::time::Duration;
use outlive_core::id::SessionKey;
use outlive_core::stamp::Life;
use place::Place;
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;
use worker::{Broke, Worker};

/// A store in a SQLite file (write-ahead log), shared by the processes of one machine; not by machines, over no network file system.
///
/// Each open store has two threads, one that writes and one that reads, and a connection for each. Calls that wait for the writer are
/// committed together, up to [`MAX_ROWS`] rows. While another process writes, it tries again after a few jittered
/// milliseconds, as long as somebody waits for the answer. The file is readable by its owner alone, and is made so if it is not: it holds
/// the cluster's secret.
///
/// Other programs may look at the file, copy it with `.backup` or `VACUUM INTO`, and hold its locks: calls wait. A program of *this*
/// process may not open and close it beside SQLite, because that drops SQLite's locks (as a copy by `std::fs` does).
/// A file that was removed, renamed or replaced, and a log that was removed, is [`Gone`](PutError::Gone) until the path names the same
/// store again, which is then opened without a restart; another store in its place is never taken for it, and none is made, neither by
/// those who have it open nor by who comes while they run: a locked file beside it, `.NAME-lock`, tells of them. What a restored copy lacks
/// has been forgotten.
///
/// The store's clock is kept in the file and moves with the monotonic clocks of those who use it. The wall clock says only how long nobody
/// did: setting it moves no age and no expiry, and a process whose wall clock is ahead of the others' ages nothing. While the machine is
/// suspended no time passes.
///
/// When the last handle is dropped the threads finish what was queued, and end.
#[derive(Clone)]
pub struct SqliteStore {
    writer: Worker,
    reader: Worker,
    clock: Arc<Clock>,
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
    /// Waits while another process makes or migrates it, for ten seconds at most. A file with a newer schema, or one that is not ours, is
    /// refused untouched; and so is one that others can read, if this process cannot change that.
    pub async fn open(path: impl AsRef<Path>, synchronous: Synchronous) -> Result<SqliteStore, OpenError> {
        let place = Arc::new(Place::new(path.as_ref(), synchronous)?);
        let failed = {
            let what = path.as_ref().display().to_string();
            move |source: std::io::Error| OpenError::Failed { what, source: source.into() }
        };
        // Opening may wait for locks and the disk, which no task of a runtime should.
        let (reply, opened) = oneshot::channel();
        let open = move || {
            let store = SqliteStore::open_here(&place, &|| !reply.is_closed());
            // Nobody waits: the handle is dropped, and the threads end.
            drop(reply.send(store));
        };
        match std::thread::Builder::new().name("outlive-open".into()).spawn(open) {
            Ok(_) => opened.await.unwrap_or_else(|_| Err(failed(std::io::Error::other("the opening thread is gone")))),
            Err(error) => Err(failed(error)),
        }
    }

    fn open_here(place: &Arc<Place>, wanted: &dyn Fn() -> bool) -> Result<SqliteStore, OpenError> {
        let clock = Arc::new(Clock::new());
        let start = |name, kind| {
            let failed = |source: std::io::Error| OpenError::Failed { what: place.name(), source: source.into() };
            Worker::start(name, place.sit(wanted)?, Arc::clone(&clock), kind).map_err(failed)
        };
        let (writer, reader) = (start("outlive-write", worker::Kind::Write)?, start("outlive-read", worker::Kind::Read)?);
        Ok(SqliteStore { writer, reader, clock })
    }

    async fn write<T: Send + 'static>(
        &self,
        rows: usize,
        work: impl Fn(&Connection, i64) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, PutError> {
        self.writer.call(rows, work).await.map_err(|broke| match broke {
            Broke::Nothing(cause) | Broke::Damaged(cause) => PutError::Failed(cause),
            Broke::Gone(cause) => PutError::Gone(cause),
            Broke::Unknown(cause) => PutError::Unknown(cause),
        })
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl Fn(&Connection, i64) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, LoadError> {
        self.reader.call(1, work).await.map_err(|broke| match broke {
            Broke::Nothing(cause) | Broke::Unknown(cause) => LoadError::Unavailable(cause),
            Broke::Gone(cause) => LoadError::Gone(cause),
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
    fn reach(&self) -> Reach {
        Reach::Machine
    }

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

    fn end(&self, ends: Vec<End>) -> Answer<'_, Result<Vec<Marker>, PutError>> {
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
        Box::pin(async move {
            let clock = Arc::clone(&self.clock);
            let sweep = move |db: &Connection, now| match clock.is_clear() {
                true => statements::sweep(db, now, limit),
                false => Ok(Swept::default()),
            };
            self.write(limit, sweep).await
        })
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

    fn nodes(&self, lapsed: Duration) -> Answer<'_, Result<Vec<Node>, LoadError>> {
        Box::pin(self.read(move |db, now| statements::nodes(db, now, lapsed)))
    }

    fn withdraw(&self, life: Life) -> Answer<'_, Result<(), PutError>> {
        Box::pin(self.write(1, move |db, _| statements::withdraw(db, life)))
    }

    fn secret(&self, proposal: [u8; 32]) -> Answer<'_, Result<[u8; 32], PutError>> {
        Box::pin(async move {
            // Reading it is no write.
            if let Ok(Some(secret)) = self.read(|db, _| statements::known_secret(db)).await {
                return Ok(secret);
            }
            self.write(1, move |db, _| statements::secret(db, &proposal)).await
        })
    }

    fn identity(&self) -> Answer<'_, Result<[u8; 16], LoadError>> {
        Box::pin(self.read(|db, _| schema::identity(db)))
    }

    fn probe(&self) -> Answer<'_, Result<(), LoadError>> {
        Box::pin(self.read(|db, _| statements::probe(db)))
    }
}
