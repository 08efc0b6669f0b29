//! [`Worker`]: a thread with a connection, to which calls are sent.

use super::clock::Clock;
use super::place::{Gone, Seat};
use crate::error::Cause;
use core::hash::{BuildHasher, Hasher};
use core::time::Duration;
use rusqlite::{Connection, ErrorCode};
use std::collections::hash_map::RandomState;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Calls that wait in the queue; those beyond wait to get in.
const QUEUE: usize = 256;
/// Rows in one transaction, unless a single call brings more.
const TOGETHER: usize = 4096;

/// Why a call has no answer.
pub(super) enum Broke {
    /// Nothing happened.
    Nothing(Cause),
    /// Nothing happened, and the file is damaged.
    Damaged(Cause),
    /// Nothing happened: the path does not name what was opened.
    Gone(Cause),
    /// It may have happened.
    Unknown(Cause),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Calls share a transaction, because a commit costs more than a row.
    Write,
    /// One call, one transaction: calls share no failure.
    Read,
}

#[derive(Clone)]
pub(super) struct Worker(mpsc::Sender<Box<dyn Job>>);

impl Worker {
    /// Starts the thread; it ends when the last clone is dropped and the queue is empty.
    pub(super) fn start(name: &str, seat: Seat, clock: Arc<Clock>, kind: Kind) -> std::io::Result<Worker> {
        let (sender, queue) = mpsc::channel(QUEUE);
        std::thread::Builder::new().name(name.into()).spawn(move || serve(queue, seat, &clock, kind))?;
        Ok(Worker(sender))
    }

    /// Runs `work` on the thread in a transaction and returns when that is committed. `rows` is its weight.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        rows: usize,
        work: impl Fn(&Connection, i64) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Broke> {
        let (reply, answer) = oneshot::channel();
        let call = Call { rows, work, result: None, reply };
        if self.0.send(Box::new(call)).await.is_err() {
            return Err(Broke::Nothing("the store's thread is gone".into()));
        }
        answer.await.unwrap_or_else(|_| Err(Broke::Unknown("the store's thread ended during the call".into())))
    }
}

/// A call, whatever its answer is.
trait Job: Send {
    fn rows(&self) -> usize;
    fn wanted(&self) -> bool;
    fn run(&mut self, db: &Connection, now: i64) -> rusqlite::Result<()>;
    fn settle(self: Box<Self>, broke: Option<Broke>);
}

struct Call<F, T> {
    rows: usize,
    work: F,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, Broke>>,
}

impl<F, T> Job for Call<F, T>
where
    F: Fn(&Connection, i64) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn rows(&self) -> usize {
        self.rows
    }

    fn wanted(&self) -> bool {
        !self.reply.is_closed()
    }

    fn run(&mut self, db: &Connection, now: i64) -> rusqlite::Result<()> {
        self.result = Some((self.work)(db, now)?);
        Ok(())
    }

    fn settle(self: Box<Self>, broke: Option<Broke>) {
        let answer = match (broke, self.result) {
            (None, Some(result)) => Ok(result),
            (None, None) => Err(Broke::Nothing("the call was not run".into())),
            (Some(broke), _) => Err(broke),
        };
        // Nobody waits any more: to them it is unknown.
        drop(self.reply.send(answer));
    }
}

fn serve(mut queue: mpsc::Receiver<Box<dyn Job>>, mut seat: Seat, clock: &Clock, kind: Kind) {
    while let Some(first) = queue.blocking_recv() {
        let mut rows = first.rows();
        let mut jobs = vec![first];
        while kind == Kind::Write
            && rows < TOGETHER
            && let Ok(job) = queue.try_recv()
        {
            rows += job.rows();
            jobs.push(job);
        }
        let broke = transaction(&mut seat, clock, kind, &mut jobs);
        for job in jobs {
            job.settle(broke.as_ref().map(Shared::broke));
        }
    }
}

/// Runs the jobs in one transaction; those that nobody waits for any more are left out while it waits for a lock.
fn transaction(seat: &mut Seat, clock: &Clock, kind: Kind, jobs: &mut Vec<Box<dyn Job>>) -> Option<Shared> {
    let mut pause = Pause::new();
    loop {
        match attempt(seat, clock, kind, jobs) {
            Err(Shared::Nothing(error)) if is_busy(&error) => {
                jobs.retain(|job| job.wanted());
                if jobs.is_empty() {
                    return None;
                }
                pause.wait();
            }
            Ok(()) => return None,
            Err(broke) => return Some(broke),
        }
    }
}

/// Once. Whatever fails, no transaction is left open.
fn attempt(seat: &mut Seat, clock: &Clock, kind: Kind, jobs: &mut [Box<dyn Job>]) -> Result<(), Shared> {
    let db = seat.db(&|| jobs.iter().any(|job| job.wanted())).map_err(Shared::gone)?;
    let done = within(db, clock, kind, jobs);
    if done.is_err() && !db.is_autocommit() {
        // SQLite rolls back by itself after the gravest errors, and closing does it after all others.
        drop(db.execute_batch("ROLLBACK"));
    }
    match (done, seat.verify()) {
        (done, Ok(())) => done,
        (Err(broke @ Shared::Unknown(_)), Err(_)) => Err(broke),
        // It is in a file that nobody else may ever read.
        (Ok(()), Err(gone)) if kind == Kind::Write => Err(Shared::Unknown(Arc::new(gone))),
        (_, Err(gone)) => Err(Shared::gone(gone)),
    }
}

fn within(db: &Connection, clock: &Clock, kind: Kind, jobs: &mut [Box<dyn Job>]) -> Result<(), Shared> {
    let before = |error| Shared::Nothing(Arc::new(error));
    let begin = match kind {
        Kind::Write => "BEGIN IMMEDIATE",
        Kind::Read => "BEGIN",
    };
    db.prepare_cached(begin).and_then(|mut begin| begin.execute([])).map_err(before)?;
    let mut work = || {
        let (now, before) = (clock.now(db)?, db.total_changes());
        jobs.iter_mut().try_for_each(|job| job.run(db, now))?;
        // Whoever finds what is written here is as late as this, by whatever clock: what was over at once is over for all.
        if db.total_changes() == before { Ok(()) } else { clock.write(db, now) }
    };
    work().map_err(before)?;
    let commit = db.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([]));
    match commit {
        Ok(_) => Ok(()),
        // A commit that failed half-way may come back from the log after a crash. A lock is taken before anything is written.
        Err(error) if kind == Kind::Write && !is_busy(&error) => Err(Shared::Unknown(Arc::new(error))),
        Err(error) => Err(before(error)),
    }
}

/// An error that all calls of a transaction are told.
enum Shared {
    /// Nothing happened.
    Nothing(Arc<rusqlite::Error>),
    /// Nothing happened, and nothing will there.
    Gone(Arc<Gone>),
    /// It may have happened.
    Unknown(Arc<dyn std::error::Error + Send + Sync>),
}

impl Shared {
    fn gone(gone: Gone) -> Shared {
        Shared::Gone(Arc::new(gone))
    }

    fn broke(&self) -> Broke {
        match self {
            Shared::Nothing(error) if is_damage(error) => Broke::Damaged(Cause::from(Arc::clone(error))),
            Shared::Nothing(error) => Broke::Nothing(Cause::from(Arc::clone(error))),
            Shared::Gone(gone) => Broke::Gone(Cause::from(Arc::clone(gone))),
            Shared::Unknown(error) => Broke::Unknown(Cause::from(Arc::clone(error))),
        }
    }
}

/// Whether another connection holds a lock, which passes.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
    matches!(error, FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..))
        || matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Waits between attempts: 0.1 ms at first and 4 ms at most, each anywhere between a half and the whole, so that processes do not meet again.
pub(super) struct Pause {
    micros: u64,
    random: RandomState,
    count: u64,
    waited: Duration,
}

impl Pause {
    pub(super) fn new() -> Pause {
        Pause { micros: 100, random: RandomState::new(), count: 0, waited: Duration::ZERO }
    }

    /// For how long it has waited, at least.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }

    pub(super) fn wait(&mut self) {
        self.count += 1;
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.count);
        let half = self.micros / 2;
        let pause = Duration::from_micros(half + hasher.finish() % half);
        std::thread::sleep(pause);
        self.waited += pause;
        self.micros = (self.micros * 2).min(4000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::{Synchronous, place::Place};

    /// A worker on a file of its own, which goes with the test.
    fn worker(name: &str) -> (Worker, impl Drop) {
        struct Dir(std::path::PathBuf);
        impl Drop for Dir {
            fn drop(&mut self) {
                drop(std::fs::remove_dir_all(&self.0));
            }
        }
        let dir = Dir(std::env::temp_dir().join(format!("outlive-worker-{name}-{}", std::process::id())));
        std::fs::create_dir_all(&dir.0).unwrap();
        let place = Arc::new(Place::new(&dir.0.join("s.db"), Synchronous::Full).unwrap());
        let seat = place.sit(&|| true).unwrap();
        (Worker::start("test", seat, Arc::new(Clock::new()), Kind::Write).unwrap(), dir)
    }

    #[tokio::test]
    async fn a_commit_that_fails_is_unknown_and_leaves_no_transaction_open() {
        let (worker, _dir) = worker("commit");
        let schema = "CREATE TABLE parent (id INTEGER PRIMARY KEY);
             CREATE TABLE child (id INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
             PRAGMA defer_foreign_keys = ON;";
        assert!(worker.call(1, move |db, _| db.execute_batch(schema)).await.is_ok());
        // The constraint is looked at by COMMIT.
        let orphan = worker.call(1, |db, _| db.execute("INSERT INTO child VALUES (1)", [])).await;
        assert!(matches!(orphan, Err(Broke::Unknown(_))));
        let wrong = worker.call(1, |db, _| db.execute("INSERT INTO nowhere VALUES (1)", [])).await;
        assert!(matches!(wrong, Err(Broke::Nothing(_))));
        let count = |db: &Connection, _| db.query_row("SELECT count(*) FROM child", [], |row| row.get::<_, i64>(0));
        assert!(matches!(worker.call(1, count).await, Ok(0)));
    }

    #[tokio::test]
    async fn a_call_whose_thread_dies_is_unknown() {
        let (worker, _dir) = worker("dies");
        let died = worker.call(1, |_, _| -> rusqlite::Result<()> { panic!("on purpose") }).await;
        assert!(matches!(died, Err(Broke::Unknown(_))));
        // The queue is closed when the thread has unwound, which a second call may see or be part of.
        assert!(worker.call(1, |_, _| Ok(())).await.is_err());
    }
}
