//! The file: whose it is, which version, and how to get from one to the next.

use super::Synchronous;
use super::worker::{Pause, is_busy};
use crate::open::OpenError;
use core::time::Duration;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::path::Path;

/// "Outl" in the file's header, so that no other program's database is taken for ours.
const APPLICATION: i32 = 0x4f75_746c;

/// One step per schema version; a step that was released is never changed. Times are milliseconds of the store's clock.
///
/// Sessions and markers share a table, so that "an end absorbs" is one look-up. Rows lie in the order of their creation, not of their keys,
/// because a key is a hash: sessions that are used together then share pages.
///
/// INVARIANT: `due` <= `expires`. It is when the sweep looks at the row next. A write or a touch that moves `expires` ahead leaves `due` and
/// its index alone, and the sweep moves it on once per timeout instead.
///
/// `store` has one row: which store it is, and its clock as it was written last, by whom and what the wall clock was then.
const STEPS: [&str; 3] = [
    "
CREATE TABLE session (
    key BLOB NOT NULL PRIMARY KEY CHECK (length(key) = 16),
    stamp BLOB CHECK (length(stamp) = 16),
    ended INTEGER CHECK (ended BETWEEN 0 AND 255),
    expires INTEGER NOT NULL,
    due INTEGER NOT NULL,
    written INTEGER NOT NULL,
    touched INTEGER NOT NULL,
    user BLOB CHECK (length(user) = 16),
    record BLOB,
    CHECK ((stamp IS NULL) <> (ended IS NULL) AND (stamp IS NULL) = (record IS NULL)),
    CHECK (due <= expires)
) STRICT;
CREATE INDEX session_due ON session (due);
CREATE INDEX session_user ON session (user) WHERE user IS NOT NULL;
CREATE TABLE node (
    life BLOB NOT NULL PRIMARY KEY CHECK (length(life) = 8),
    name TEXT NOT NULL,
    peer TEXT NOT NULL,
    http TEXT NOT NULL,
    beat INTEGER NOT NULL,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE lease (
    name TEXT NOT NULL PRIMARY KEY,
    holder BLOB NOT NULL CHECK (length(holder) = 8),
    fence INTEGER NOT NULL,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE cluster (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    secret BLOB NOT NULL CHECK (length(secret) = 32)
) STRICT;
",
    "
CREATE TABLE store (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    identity BLOB NOT NULL CHECK (length(identity) = 16),
    now INTEGER NOT NULL,
    wall INTEGER NOT NULL,
    clock BLOB NOT NULL CHECK (length(clock) = 8)
) STRICT;
INSERT INTO store
    SELECT 1, randomblob(16), wall, wall, zeroblob(8) FROM (SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) AS wall);
",
    "
ALTER TABLE session ADD COLUMN next BLOB CHECK (next IS NULL OR (length(next) = 16 AND ended IS NOT NULL));
",
];

/// The newest version.
const KNOWN: i32 = STEPS.len() as i32;

/// How long a file may be locked by others until it counts as one that cannot be opened.
const LOCKED: Duration = Duration::from_secs(10);

/// A connection to the file at `path`, whose schema is the newest when this returns. Waits for other processes while it is `wanted`, ten
/// seconds at most. A file whose identity (`None`: it has none yet) is not `ours` is refused untouched.
pub(super) fn open(
    path: &Path,
    synchronous: Synchronous,
    wanted: &dyn Fn() -> bool,
    ours: impl Fn(Option<[u8; 16]>) -> bool,
) -> Result<Connection, OpenError> {
    let name = path.display().to_string();
    let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::Foreign(format!("`{name}` is not a SQLite database")),
        _ => OpenError::Failed { what: name.clone(), source: source.into() },
    };
    // Without SQLITE_OPEN_URI, so that a path is a path whatever it begins with.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags).map_err(failed)?;
    // SQLite's own waiting sleeps in ever longer steps, and starves one process among several.
    db.busy_timeout(Duration::ZERO).map_err(failed)?;
    db.set_prepared_statement_cache_capacity(32);
    let (owner, identity) = insist(wanted, || owner(&mut db)).map_err(failed)?;
    match owner {
        Owner::Ours(version) if version > KNOWN => {
            let text = format!("`{name}` has schema version {version}, this build knows {KNOWN}: use a newer release, or another file");
            return Err(OpenError::Foreign(text));
        }
        Owner::Other => return Err(OpenError::Foreign(format!("`{name}` is a SQLite database of another program"))),
        Owner::Ours(_) | Owner::Nobody if !ours(identity) => return Err(OpenError::Foreign(format!("`{name}` is another store"))),
        Owner::Ours(_) | Owner::Nobody => {}
    }
    insist(wanted, || settings(&db, synchronous)).map_err(failed)?;
    if !matches!(owner, Owner::Ours(version) if version == KNOWN) {
        insist(wanted, || migrate(&mut db)).map_err(failed)?;
    }
    writable(&db).map_err(failed)?;
    Ok(db)
}

enum Owner {
    Ours(i32),
    Nobody,
    Other,
}

/// Whose it is, and its identity if it has one already.
fn owner(db: &mut Connection) -> rusqlite::Result<(Owner, Option<[u8; 16]>)> {
    // One transaction: another process may be making the tables right now.
    let db = db.transaction()?;
    let number = |sql| db.query_row(sql, [], |row| row.get::<_, i32>(0));
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    Ok(match (number("PRAGMA application_id")?, number("PRAGMA user_version")?) {
        (APPLICATION, version @ 2..=KNOWN) => (Owner::Ours(version), Some(identity(&db)?)),
        (APPLICATION, version) => (Owner::Ours(version), None),
        (0, 0) if tables == 0 => (Owner::Nobody, None),
        _ => (Owner::Other, None),
    })
}

/// Which store it is.
pub(super) fn identity(db: &Connection) -> rusqlite::Result<[u8; 16]> {
    db.query_row("SELECT identity FROM store", [], |row| row.get(0))
}

/// SQLite opens what it may not write for reading alone, and says so at the first statement that writes (not at `BEGIN IMMEDIATE`): that is
/// now, though it changes nothing. A lock says nothing.
fn writable(db: &Connection) -> rusqlite::Result<()> {
    match db.execute_batch("BEGIN IMMEDIATE; UPDATE store SET one = one WHERE one = 0; ROLLBACK") {
        Err(error) if is_busy(&error) => Ok(()),
        done => done,
    }
}

fn settings(db: &Connection, synchronous: Synchronous) -> rusqlite::Result<()> {
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        let text = format!("the file's journal mode is `{mode}` and cannot be `wal` here");
        return Err(rusqlite::Error::ToSqlConversionFailure(text.into()));
    }
    let level = match synchronous {
        Synchronous::Full => "FULL",
        Synchronous::Normal => "NORMAL",
    };
    // The log is folded into the file every 16 MiB and cut back to 64 MiB after a burst. No schema of ours needs trust.
    db.execute_batch(&format!(
        "PRAGMA synchronous = {level};
         PRAGMA cache_size = -16384;
         PRAGMA wal_autocheckpoint = 4096;
         PRAGMA journal_size_limit = 67108864;
         PRAGMA trusted_schema = OFF;"
    ))
}

fn migrate(db: &mut Connection) -> rusqlite::Result<()> {
    let db = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    // Read again under the lock: another process may have been faster.
    let version: i32 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let done = usize::try_from(version).unwrap_or(0);
    for step in STEPS.iter().skip(done) {
        db.execute_batch(step)?;
    }
    if done < STEPS.len() {
        db.execute_batch(&format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {};", STEPS.len()))?;
    }
    db.commit()
}

fn insist<T>(wanted: &dyn Fn() -> bool, mut attempt: impl FnMut() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    let mut pause = Pause::new();
    loop {
        match attempt() {
            Err(error) if is_busy(&error) && wanted() && pause.waited() < LOCKED => pause.wait(),
            done => return done,
        }
    }
}
