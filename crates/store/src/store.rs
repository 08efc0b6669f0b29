//! [`Store`]: the trait, its rows and its law.

use crate::error::{LoadError, PutError};
use bytes::Bytes;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::time::Duration;
use outlive_core::id::SessionKey;
use outlive_core::stamp::{Life, Stamp};
use std::collections::HashSet;

/// Rows in one call, at most.
pub const MAX_ROWS: usize = 4096;
/// Bytes of one record, at most.
pub const MAX_RECORD: usize = 16 << 20;
/// Bytes of a name or an address, at most.
pub const MAX_TEXT: usize = 1024;

/// A store's answer, to be awaited. Nothing happens before the first poll.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// From where the same store can be used, and so who may find whom in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// From this process alone.
    Process,
    /// From the processes of this machine.
    Machine,
    /// From other machines too.
    Network,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reach::Process => "this process",
            Reach::Machine => "this machine",
            Reach::Network => "other machines",
        })
    }
}

/// Where sessions outlive their nodes.
///
/// # The law
///
/// - **A write is compared for equality.** A put names the stamp that the caller last knew there, or that there is no row. Nothing is ever
///   decided by which stamp is *greater*: a greater stamp may lie on another branch, and would destroy an acknowledged write.
/// - **An end absorbs.** After [`end`](Store::end) no put and no touch changes the key until the marker's time is over.
/// - **Rows do not affect each other.** A call carries many rows to save round trips; each has its own result, in the order of the call,
///   and is written entirely or not at all. Calls of different nodes may run at once; each row's comparison and write is one atomic step.
/// - **What is not known is said.** [`PutError::Failed`] means that nothing happened; whoever cannot be sure says
///   [`PutError::Unknown`]. A put that is repeated after it had been applied finds its own stamp: `Mismatch(Some(its stamp))`.
/// - **An answered write is seen by every load that starts afterwards, at every node.** A load that may miss one is
///   [`LoadError::Unavailable`], not `Missing`.
/// - **Time is the store's.** Callers give durations and get ages, so that no two clocks are ever compared. Durations count from the moment
///   of writing, are kept to the millisecond, and may be as long as the type allows. A clock that was set, or that differs from everybody
///   else's, must not make anything older than it is: where the store cannot tell, it is as if no time had passed.
/// - **A store that is gone says so.** What is not the store that was opened (moved, deleted, replaced by another) is
///   [`PutError::Gone`] and [`LoadError::Gone`], never an empty store.
/// - **Until its expiry a row stays; after it, it may go at any moment**, and goes with [`sweep`](Store::sweep). A row past its expiry is
///   still loaded while it is there: whether the session is over is its owner's decision, by the record. The same holds for markers.
/// - **A store waits as long as the database does.** It sets no timeout and starts nothing in the background; the caller may drop the
///   future, and then a write is unknown. Concurrent calls beyond a store's queue wait for their turn, and calls that wait for each other
///   in the database (a deadlock) are the store's to sort out.
/// - At most [`MAX_ROWS`] rows a call, [`MAX_RECORD`] bytes a record and [`MAX_TEXT`] bytes a text, and no session twice in one call;
///   otherwise the call is refused before anything happens. No rows is no work and succeeds.
///
/// [`conformance`](crate::conformance) asks every edge of this.
pub trait Store: Send + Sync + 'static {
    /// How far it reaches, by what kind of store it is: a database server reaches other machines, also where it happens to be on this one.
    /// It does not change.
    fn reach(&self) -> Reach;

    /// How many batches of writes one node should have under way here at once, by what the store has to write them with: connections, say.
    /// It does not change.
    ///
    /// A batch is a [`put`](Store::put), an [`end`](Store::end) and a [`touch`](Store::touch), one after the other. Batches of one node that
    /// overlap have no session in common; those of several nodes may have. Reads, and what a node writes for itself, are not counted and come
    /// at any time.
    fn batches(&self) -> usize {
        1
    }

    /// What is known of these sessions, in the same order. A key may occur twice. One round trip.
    fn load(&self, keys: Vec<SessionKey>) -> Answer<'_, Result<Vec<Loaded>, LoadError>>;

    /// Writes each row whose key holds what the caller expects there. A written row replaces the old one entirely, expiry and user
    /// included, and its ages start at zero. One round trip.
    fn put(&self, rows: Vec<Put>) -> Answer<'_, Result<Vec<RowResult>, PutError>>;

    /// Leaves a marker for each key, whatever is there, a row or nothing; the record's bytes are removed. Ending again keeps the later of
    /// the two times and makes [one marker of two](Marker::and). What each marker says from now on, in the order of the call. One round
    /// trip.
    fn end(&self, ends: Vec<End>) -> Answer<'_, Result<Vec<Marker>, PutError>>;

    /// Notes that sessions were used: moves the expiry, and [`Row::touched`] to the use, if the row has exactly this stamp. A use from
    /// before what the row tells already does not set it back. The record, the stamp and [`Row::age`] stay. One round trip.
    fn touch(&self, touches: Vec<Touch>) -> Answer<'_, Result<Vec<RowResult>, PutError>>;

    /// Looks at up to `limit` (at most [`MAX_ROWS`]) rows and markers that may be over, the oldest first, and removes those that are. A row that is written or touched
    /// meanwhile stays: it is removed only with the stamp and the expiry with which it was found. For one node at a time, by
    /// [`lease`](Store::lease); two at once do no harm.
    fn sweep(&self, limit: usize) -> Answer<'_, Result<Swept, PutError>>;

    /// Takes or renews the lease called `name` for `ttl`: its fence if `holder` has it now, `None` if another life does.
    ///
    /// The fence grows with every change of hands and every lapse, and stays while one holder renews in time. A `ttl` of zero gives the
    /// lease back at once. Fences of different names are not related.
    fn lease(&self, name: String, holder: Life, ttl: Duration) -> Answer<'_, Result<Option<u64>, PutError>>;

    /// Writes this node's row, for `lease` from now, and returns the [`beat`](Node::beat) that stood in the row of this life before,
    /// `None` if there was none. A node that counts its beats learns from a smaller one than it wrote, or from `None` where it had written
    /// within the day, that the store forgot. Rows whose lease has been over for a day are removed.
    fn announce(&self, node: Node, lease: Duration) -> Answer<'_, Result<Option<u64>, PutError>>;

    /// The nodes whose lease is not over, or has been for less than `lapsed` (up to a day is remembered) and that were not withdrawn,
    /// ordered by life. Whoever could not write for a while is among the lapsed ones, and so is whoever was killed.
    fn nodes(&self, lapsed: Duration) -> Answer<'_, Result<Vec<Node>, LoadError>>;

    /// Removes the row of this life, if there is one.
    fn withdraw(&self, life: Life) -> Answer<'_, Result<(), PutError>>;

    /// The cluster's secret: `proposal` if there was none before. All that ever ask get the same 32 bytes. They are never logged. Once it is
    /// there, asking for it writes nothing, so that it works where writing does not.
    fn secret(&self, proposal: [u8; 32]) -> Answer<'_, Result<[u8; 32], PutError>>;

    /// Which store this is: 16 random bytes, made with it and the same for ever and for all. Nodes compare them to find out that they do not
    /// share one. Not secret.
    fn identity(&self) -> Answer<'_, Result<[u8; 16], LoadError>>;

    /// Whether the store answers, at the least cost that tells.
    fn probe(&self) -> Answer<'_, Result<(), LoadError>>;
}

/// What a store knows of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// Neither a row nor a marker. It may have expired.
    Missing,
    /// Ended.
    Ended(Marker),
    /// The row.
    Here(Row),
}

/// One session as a store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The commit that was written.
    pub stamp: Stamp,
    /// What was written, byte for byte.
    pub record: Bytes,
    /// How long ago it was written, by the store's clock.
    pub age: Duration,
    /// How long ago it was written or, by what a touch has told, used, by the store's clock; never more than `age`.
    pub touched: Duration,
}

/// A row to write.
#[derive(Clone, Debug)]
pub struct Put {
    /// The session.
    pub key: SessionKey,
    /// What has to be there.
    pub expect: Expect,
    /// The commit that `record` is.
    pub stamp: Stamp,
    /// Opaque bytes, up to [`MAX_RECORD`].
    pub record: Bytes,
    /// How long the row is to stay unless it is written or touched again.
    pub expires_in: Duration,
    /// The user's hash, kept beside the row as an index.
    pub user: Option<[u8; 16]>,
}

/// What a put expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// No row.
    Absent,
    /// A row with exactly this stamp.
    Exactly(Stamp),
}

/// An end to mark.
#[derive(Clone, Debug)]
pub struct End {
    /// The session.
    pub key: SessionKey,
    /// How it ended.
    pub marker: Marker,
    /// How long the marker is to stay.
    pub keep: Duration,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Why; the caller's numbering, in which a lesser one takes the place of a greater one.
    pub kind: u8,
    /// The session that it goes on as, if that is known. A key opens nothing; the id is not here.
    pub next: Option<SessionKey>,
}

impl Marker {
    /// What two ends of one session make, whichever came first: the lesser kind, and of the sessions that they name the lesser.
    #[must_use]
    pub fn and(self, other: Marker) -> Marker {
        Marker { kind: self.kind.min(other.kind), next: self.next.into_iter().chain(other.next).min() }
    }
}

/// A use to note.
#[derive(Clone, Debug)]
pub struct Touch {
    /// The session.
    pub key: SessionKey,
    /// What has to be there.
    pub stamp: Stamp,
    /// How long ago it was used.
    pub ago: Duration,
    /// How long the row is to stay from now; it may be shorter than before.
    pub expires_in: Duration,
}

/// What became of one row of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowResult {
    /// Written.
    Applied,
    /// Not written: the key holds this stamp, or no row.
    Mismatch(Option<Stamp>),
    /// Not written: the session ended.
    Ended(Marker),
}

/// What a sweep removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// The rows, with the stamps they had.
    pub sessions: Vec<(SessionKey, Stamp)>,
    /// How many markers.
    pub markers: usize,
    /// Whether another sweep now may find more. Not whether this one removed anything: it may have spent `limit` on rows that stay.
    pub more: bool,
}

/// A node as others find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, up to [`MAX_TEXT`] bytes.
    pub name: String,
    /// Its life; rows are kept by it, so a restarted node has a new row.
    pub life: Life,
    /// Where peers reach it, up to [`MAX_TEXT`] bytes.
    pub peer: String,
    /// Where HTTP requests reach it, up to [`MAX_TEXT`] bytes; empty if nowhere.
    pub http: String,
    /// How often this life has announced itself; the node counts.
    pub beat: u64,
}

impl Node {
    /// Refuses texts over [`MAX_TEXT`]; for those who write a store.
    pub fn check(&self) -> Result<(), PutError> {
        check_text("bytes of a node's name", &self.name)?;
        check_text("bytes of a peer address", &self.peer)?;
        check_text("bytes of an HTTP address", &self.http)
    }
}

/// Refuses what [`Store::put`] has to refuse; for those who write a store.
pub fn check_puts(rows: &[Put]) -> Result<(), PutError> {
    for row in rows {
        if row.record.len() > MAX_RECORD {
            return Err(PutError::TooLarge { what: "bytes of a record", got: row.record.len(), limit: MAX_RECORD });
        }
    }
    check_keys(rows.iter().map(|row| row.key))
}

/// Refuses more than [`MAX_ROWS`] keys, and a key that occurs twice; for those who write a store.
pub fn check_keys(keys: impl ExactSizeIterator<Item = SessionKey>) -> Result<(), PutError> {
    if keys.len() > MAX_ROWS {
        return Err(PutError::TooLarge { what: "rows of a call", got: keys.len(), limit: MAX_ROWS });
    }
    let mut seen = HashSet::with_capacity(keys.len());
    for key in keys {
        if !seen.insert(key) {
            return Err(PutError::Twice(key));
        }
    }
    Ok(())
}

/// Refuses a text over [`MAX_TEXT`]; for those who write a store.
pub fn check_text(what: &'static str, text: &str) -> Result<(), PutError> {
    if text.len() > MAX_TEXT {
        return Err(PutError::TooLarge { what, got: text.len(), limit: MAX_TEXT });
    }
    Ok(())
}
