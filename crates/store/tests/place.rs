//! What other programs, people and backups do to a store's file while it is in use.
//!
//! Two nodes on one file; somebody looked at it with another program; both nodes then wrote into a log that was deleted, and four of five
//! acknowledged changes were gone after a restart. Cause: the file was opened and closed beside SQLite, which drops a process's locks. And
//! nobody noticed, because nobody compared the path with what was open.
#![cfg(all(feature = "sqlite", unix))]
#![allow(clippy::unwrap_used, reason = "the lint knows test functions, not their helpers")]

use outlive_core::id::SessionKey;
use outlive_core::stamp::{Claim, Life, Stamp};
use outlive_store::{
    End, Expect, LoadError, Loaded, Marker, Node, OpenError, Put, PutError, RowResult, SqliteStore, Store, Swept, Synchronous, Touch,
};
use rusqlite::Connection;
use std::error::Error;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The test that runs itself again.
const POWERLESS: &str = "a_file_that_may_not_be_written_is_refused_with_whose_it_is";
const HOUR: Duration = Duration::from_secs(3600);

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("outlive-place-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = Dir(std::env::temp_dir().join(name));
        std::fs::create_dir(&dir.0).unwrap();
        dir
    }

    fn file(&self) -> PathBuf {
        self.at("s.db")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn inode(&self, name: &str) -> Option<u64> {
        std::fs::metadata(self.at(name)).ok().map(|found| found.ino())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

async fn store(path: &Path) -> SqliteStore {
    SqliteStore::open(path, Synchronous::Full).await.unwrap()
}

/// Another process, with SQL for the file; what it printed.
fn other(path: &Path, sql: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "another_program", "--ignored", "--nocapture", "--test-threads=1"])
        .env("STORE_TEST_FILE", path)
        .env("STORE_TEST_SQL", sql)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    text.lines().find_map(|line| line.split_once("it says ")).map(|(_, said)| said.to_owned()).unwrap_or_default()
}

#[test]
#[ignore = "the process of `other`"]
fn another_program() {
    let (Some(path), Ok(sql)) = (std::env::var_os("STORE_TEST_FILE"), std::env::var("STORE_TEST_SQL")) else { return };
    let db = Connection::open(path).unwrap();
    let mut said = Vec::new();
    for sql in sql.split(';').filter(|sql| !sql.trim().is_empty()) {
        let mut statement = db.prepare(sql).unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            said.push(format!("{:?}", row.get_ref(0).unwrap()));
        }
    }
    println!("it says {}", said.join(" "));
}

fn run(program: &str, args: &[&Path]) {
    assert!(Command::new(program).args(args).status().unwrap().success());
}

fn key(n: u32) -> SessionKey {
    SessionKey::from_bytes((u128::from(n.wrapping_mul(0x9E37_79B1)) << 96 | u128::from(n)).to_be_bytes())
}

fn stamp(version: u32) -> Stamp {
    Claim { epoch: 1, life: Life::new(1) }.at(version)
}

fn row(n: u32) -> Put {
    Put { key: key(n), expect: Expect::Absent, stamp: stamp(1), record: b"kept".to_vec().into(), expires_in: HOUR, user: None }
}

fn node(beat: u64) -> Node {
    Node { name: "a".into(), life: Life::new(1), peer: "127.0.0.1:1".into(), http: String::new(), beat }
}

async fn applied(store: &SqliteStore, n: u32) {
    assert_eq!(store.put(vec![row(n)]).await.unwrap(), [RowResult::Applied]);
}

async fn holds(store: &SqliteStore, n: u32) -> bool {
    match store.load(vec![key(n)]).await.unwrap().remove(0) {
        Loaded::Here(_) => true,
        Loaded::Missing => false,
        Loaded::Ended(_) => panic!("nobody ended it"),
    }
}

/// What a call that found the store gone says.
async fn gone(store: &SqliteStore) -> String {
    let put = store.put(vec![row(1_000_000)]).await.unwrap_err();
    let load = store.load(vec![key(1)]).await.unwrap_err();
    assert!(matches!((&put, &load), (PutError::Gone(_), LoadError::Gone(_))), "{put:?} {load:?}");
    assert!(matches!(store.probe().await, Err(LoadError::Gone(_))));
    assert!(matches!(
        store.end(vec![End { key: key(1), marker: Marker { kind: 0, next: None }, keep: HOUR }]).await,
        Err(PutError::Gone(_))
    ));
    put.source().unwrap().to_string()
}

/// As often as it takes until both of its connections have noticed.
async fn usable(store: &SqliteStore) {
    let until = now() + Duration::from_secs(60);
    while store.probe().await.is_err() | store.announce(node(1), HOUR).await.is_err() {
        assert!(now() < until, "{:?}", store.probe().await);
        tokio::task::yield_now().await;
    }
}

#[expect(clippy::disallowed_methods, reason = "a test that waits")]
fn now() -> Instant {
    Instant::now()
}

/// The lock by which other programs see that this process has the file open. Newer ones than SQLite 3.52 look at the log's index as well,
/// and older ones, as distributions have them, do not.
fn assert_locked(dir: &Dir) {
    let Ok(locks) = std::fs::read_to_string("/proc/locks") else { return };
    let (pid, inode) = (std::process::id().to_string(), format!(":{}", dir.inode("s.db").unwrap()));
    let ours = |line: &str| line.contains("POSIX") && line.split_whitespace().any(|word| word == pid) && line.contains(&inode);
    assert!(locks.lines().any(ours), "the file is not locked: {inode}\n{locks}");
}

#[tokio::test]
async fn a_look_at_the_file_with_another_program_takes_nothing() {
    let dir = Dir::new();
    // Two of one process, as a process with two namespaces has them, and one that goes before the others.
    let a = store(&dir.file()).await;
    assert_locked(&dir);
    let b = store(&dir.file()).await;
    assert_locked(&dir);
    applied(&a, 1).await;
    let log = dir.inode("s.db-wal");
    for (n, look) in [(2, "SELECT count(*) FROM session"), (3, "PRAGMA wal_checkpoint(TRUNCATE)"), (4, "PRAGMA integrity_check")] {
        other(&dir.file(), look);
        assert_locked(&dir);
        assert_eq!(dir.inode("s.db-wal"), log, "{look}");
        applied(if n % 2 == 0 { &b } else { &a }, n).await;
    }
    drop(b);
    let c = store(&dir.file()).await;
    assert_eq!(other(&dir.file(), "SELECT count(*) FROM session"), "Integer(4)");
    applied(&c, 5).await;
    drop(c);
    assert_locked(&dir);
    assert_eq!(other(&dir.file(), "SELECT count(*) FROM session"), "Integer(5)");
    assert_eq!(dir.inode("s.db-wal"), log);
    assert!(holds(&a, 5).await);
}

#[tokio::test]
async fn a_backup_and_a_vacuum_from_outside_disturb_nobody() {
    let dir = Dir::new();
    let store = store(&dir.file()).await;
    for n in 0..50 {
        applied(&store, n).await;
    }
    let into = format!("VACUUM INTO '{}'", dir.at("backup.db").display());
    for sql in [&into, "VACUUM", "REINDEX", "ANALYZE", "PRAGMA optimize"] {
        other(&dir.file(), sql);
        assert!(holds(&store, 7).await, "{sql}");
        store.touch(vec![Touch { key: key(7), stamp: stamp(1), ago: Duration::ZERO, expires_in: HOUR }]).await.unwrap();
    }
    applied(&store, 100).await;
    assert_eq!(other(&dir.at("backup.db"), "SELECT count(*) FROM session; PRAGMA integrity_check"), "Integer(50) Text([111, 107])");
    assert_eq!(store.sweep(100).await.unwrap(), Swept::default());
}

#[tokio::test]
async fn a_file_that_was_removed_is_gone_and_none_is_made_in_its_place() {
    let dir = Dir::new();
    let store = store(&dir.file()).await;
    applied(&store, 1).await;
    for name in PARTS {
        std::fs::rename(dir.at(name), dir.at(&format!("away-{name}"))).unwrap();
    }
    let why = gone(&store).await;
    assert!(why.contains("is not there any more: put it back, or end all nodes"), "{why}");
    assert!(gone(&store).await == why && dir.inode("s.db").is_none(), "nothing is made");
    for name in ["s.db-shm", "s.db-wal", "s.db"] {
        std::fs::rename(dir.at(&format!("away-{name}")), dir.at(name)).unwrap();
    }
    usable(&store).await;
    assert!(holds(&store, 1).await);
    applied(&store, 2).await;
    // The folder, too.
    let elsewhere = dir.0.with_extension("elsewhere");
    std::fs::rename(&dir.0, &elsewhere).unwrap();
    gone(&store).await;
    std::fs::rename(&elsewhere, &dir.0).unwrap();
    usable(&store).await;
    assert!(holds(&store, 2).await);
}

#[tokio::test]
async fn whoever_begins_anew_beside_a_log_in_use_is_told_so() {
    let dir = Dir::new();
    let store = store(&dir.file()).await;
    applied(&store, 1).await;
    std::fs::remove_file(dir.file()).unwrap();
    assert!(refused(&dir).await.contains("is not there any more, and who has it open still runs"));
    // A program that has it open without being one of them, or one of them that was killed, leaves the log.
    drop(store);
    until_refused(&dir, "is not there, but its log is: nodes may still be using").await;
    assert!(dir.inode("s.db").is_none());
}

const PARTS: [&str; 3] = ["s.db", "s.db-wal", "s.db-shm"];

/// Why nobody can open it.
async fn refused(dir: &Dir) -> String {
    let error = SqliteStore::open(dir.file(), Synchronous::Full).await.unwrap_err();
    assert!(matches!(error, OpenError::Refused(_)), "{error:?}");
    error.to_string()
}

/// A store's threads end when they come to it.
async fn until_refused(dir: &Dir, part: &str) {
    let until = now() + Duration::from_secs(60);
    loop {
        let why = refused(dir).await;
        if why.contains(part) {
            return;
        }
        assert!(now() < until, "{why}");
    }
}

#[tokio::test]
async fn whoever_comes_when_all_files_were_removed_makes_no_other_store_as_long_as_this_one_is_open() {
    let dir = Dir::new();
    let (a, b) = (store(&dir.file()).await, store(&dir.file()).await);
    let identity = a.identity().await.unwrap();
    for name in PARTS {
        std::fs::remove_file(dir.at(name)).unwrap();
    }
    // Before anybody has missed it, and afterwards.
    assert!(refused(&dir).await.contains("is not there any more, and who has it open still runs"));
    gone(&a).await;
    drop(a);
    assert!(refused(&dir).await.contains("is not there any more, and who has it open still runs"));
    assert!(PARTS.iter().all(|name| dir.inode(name).is_none()), "nothing is made");
    // What says so goes as well. It is put back by who misses the store.
    std::fs::remove_file(dir.at(".s.db-lock")).unwrap();
    gone(&b).await;
    assert!(refused(&dir).await.contains("is not there any more, and who has it open still runs"));
    drop(b);
    let until = now() + Duration::from_secs(60);
    let anew = loop {
        match SqliteStore::open(dir.file(), Synchronous::Full).await {
            Ok(anew) => break anew,
            Err(error) => assert!(now() < until, "{error}"),
        }
    };
    assert_ne!(anew.identity().await.unwrap(), identity);
    assert_eq!(dir.at(".s.db-lock").metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn many_who_come_at_once_where_nothing_is_have_one_store() {
    for _ in 0..20 {
        let dir = Dir::new();
        let opened: Vec<_> = (0..8).map(|_| tokio::spawn(SqliteStore::open(dir.file(), Synchronous::Full))).collect();
        let mut identities = Vec::new();
        for opened in opened {
            identities.push(opened.await.unwrap().unwrap().identity().await.unwrap());
        }
        identities.dedup();
        assert_eq!(identities.len(), 1);
    }
}

#[tokio::test]
async fn what_cannot_be_a_store_gets_no_lock_beside_it() {
    let dir = Dir::new();
    std::fs::write(dir.file(), "a text, and longer than the head of a database is, or else it would be taken for an empty one. ".repeat(9))
        .unwrap();
    assert!(matches!(SqliteStore::open(dir.file(), Synchronous::Full).await, Err(OpenError::Foreign(_))));
    assert!(dir.inode(".s.db-lock").is_none());
}

#[tokio::test]
async fn another_store_in_its_place_is_never_taken_for_it() {
    let dir = Dir::new();
    let first = store(&dir.file()).await;
    applied(&first, 1).await;
    let (identity, secret) = (first.identity().await.unwrap(), first.secret([1; 32]).await.unwrap());
    std::fs::create_dir(dir.at("away")).unwrap();
    let away = |name: &str| dir.at("away").join(name);
    for name in PARTS {
        std::fs::rename(dir.at(name), away(name)).unwrap();
    }
    // Somebody puts another one there.
    let second = store(&dir.at("second.db")).await;
    assert_ne!(second.identity().await.unwrap(), identity);
    applied(&second, 2).await;
    drop(second);
    closed(&dir, "second.db-wal");
    std::fs::rename(dir.at("second.db"), dir.file()).unwrap();
    let why = gone(&first).await;
    assert!(why.contains("is another store now: put the former one back, or end all nodes"), "{why}");
    assert!(
        refused(&dir).await.contains("is not the store that nodes and gateways have open here who still run"),
        "nor begins anybody with it"
    );
    let rows = "SELECT count(*) FROM session; SELECT count(*) FROM cluster";
    assert_eq!(other(&dir.file(), rows), "Integer(1) Integer(0)");
    for name in PARTS {
        drop(std::fs::remove_file(dir.at(name)));
    }
    for name in ["s.db-shm", "s.db-wal", "s.db"] {
        std::fs::rename(away(name), dir.at(name)).unwrap();
    }
    usable(&first).await;
    assert!(holds(&first, 1).await);
    assert_eq!((first.identity().await.unwrap(), first.secret([9; 32]).await.unwrap()), (identity, secret));
}

#[tokio::test]
async fn a_restored_copy_is_the_same_store_and_tells_what_it_forgot() {
    let dir = Dir::new();
    let (a, b) = (store(&dir.file()).await, store(&dir.file()).await);
    applied(&a, 1).await;
    a.announce(node(1), HOUR).await.unwrap();
    other(&dir.file(), &format!("VACUUM INTO '{}'", dir.at("copy.db").display()));
    applied(&a, 2).await;
    a.announce(node(2), HOUR).await.unwrap();
    // Over the file, but not over its log: the mixture would be neither.
    std::fs::rename(dir.at("copy.db"), dir.file()).unwrap();
    let why = gone(&a).await;
    assert!(why.contains("remove `") && why.contains("s.db-wal"), "{why}");
    for name in ["s.db-wal", "s.db-shm"] {
        std::fs::remove_file(dir.at(name)).unwrap();
    }
    let before = loop {
        match a.announce(node(3), HOUR).await {
            Ok(before) => break before,
            Err(error) => assert!(matches!(error, PutError::Gone(_)), "{error:?}"),
        }
    };
    assert_eq!(before, Some(1), "it had written 2");
    usable(&b).await;
    for store in [&a, &b] {
        usable(store).await;
        assert!(holds(store, 1).await && !holds(store, 2).await);
    }
    applied(&b, 2).await;
    assert!(holds(&a, 2).await);
    assert_eq!(dir.file().metadata().unwrap().permissions().mode() & 0o777, 0o600, "whoever may have made the copy");
}

#[tokio::test]
async fn what_was_in_a_log_that_somebody_removed_is_not_lost() {
    let dir = Dir::new();
    let (a, b) = (store(&dir.file()).await, store(&dir.file()).await);
    for (n, removed) in [(1, &["s.db-wal"][..]), (2, &["s.db-wal", "s.db-shm"]), (3, &["s.db-shm"])] {
        applied(&a, n).await;
        applied(&b, n + 100).await;
        for name in removed {
            std::fs::remove_file(dir.at(name)).unwrap();
        }
        assert!(matches!(a.put(vec![row(n + 200)]).await, Err(PutError::Gone(_))), "nothing is written where nobody looks");
        usable_both(&a, &b).await;
        assert!(holds(&b, n).await && holds(&a, n + 100).await && !holds(&a, n + 200).await, "{removed:?}");
    }
    assert_eq!(other(&dir.file(), "SELECT count(*) FROM session; PRAGMA integrity_check"), "Integer(6) Text([111, 107])");
}

/// A store's threads close the file when they come to it, and the last one of all deletes the log.
fn closed(dir: &Dir, log: &str) {
    let until = now() + Duration::from_secs(60);
    while dir.inode(log).is_some() {
        assert!(now() < until, "it is not closed");
        std::thread::yield_now();
    }
}

/// Each has to let go before one of them can open it again.
async fn usable_both(a: &SqliteStore, b: &SqliteStore) {
    let until = now() + Duration::from_secs(60);
    loop {
        let mut well = true;
        for store in [a, b] {
            well &= store.probe().await.is_ok() & store.announce(node(1), HOUR).await.is_ok();
        }
        if well {
            return;
        }
        assert!(now() < until, "{:?}", a.probe().await);
    }
}

#[tokio::test]
async fn a_lock_that_another_program_holds_keeps_nobody_from_starting() {
    let dir = Dir::new();
    let first = store(&dir.file()).await;
    let secret = first.secret([1; 32]).await.unwrap();
    let locker = Connection::open(dir.file()).unwrap();
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let second = store(&dir.file()).await;
    assert_eq!(second.secret([2; 32]).await.unwrap(), secret, "what is known is read");
    assert_eq!(second.nodes(HOUR).await.unwrap(), []);
}

#[tokio::test]
async fn a_file_that_others_could_read_is_private_once_it_is_opened() {
    for mode in [0o644, 0o666, 0o640, 0o660, 0o604] {
        let dir = Dir::new();
        let open = store(&dir.file()).await;
        applied(&open, 1).await;
        for name in PARTS {
            std::fs::set_permissions(dir.at(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        // Another of the same process: nothing of the first one's is let go.
        let log = dir.inode("s.db-wal");
        let again = store(&dir.file()).await;
        for name in PARTS {
            assert_eq!(dir.at(name).metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}, which was {mode:o}");
        }
        drop(open);
        other(&dir.file(), "SELECT 1");
        assert_eq!(dir.inode("s.db-wal"), log);
        assert!(holds(&again, 1).await);
    }
}

#[tokio::test]
async fn a_file_that_may_not_be_written_is_refused_with_whose_it_is() {
    let dir = Dir::new();
    // The superuser may write anything, so it plays this without its powers.
    let probe = dir.at("probe");
    std::fs::write(&probe, "").unwrap();
    std::fs::set_permissions(&probe, std::fs::Permissions::from_mode(0o400)).unwrap();
    if std::fs::OpenOptions::new().write(true).open(&probe).is_ok() {
        let powerless = ["--bounding-set=-all", "--inh-caps=-all"];
        let mut again = Command::new("setpriv");
        again
            .args(powerless)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", POWERLESS, "--nocapture"])
            .env("STORE_TEST_POWERLESS", "1");
        assert!(std::env::var_os("STORE_TEST_POWERLESS").is_none(), "setpriv leaves the power to write any file");
        let output = again.output().expect("setpriv IS MISSING");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    drop(store(&dir.file()).await);
    closed(&dir, "s.db-wal");
    std::fs::set_permissions(dir.file(), std::fs::Permissions::from_mode(0o400)).unwrap();
    let error = SqliteStore::open(dir.file(), Synchronous::Full).await.unwrap_err();
    let why = error.source().unwrap().to_string();
    assert!(matches!(error, OpenError::Failed { .. }) && why.contains("must be able to read and to write it"), "{why}");
    assert!(why.contains("with mode 400"), "{why}");
}

#[tokio::test]
async fn a_clock_that_is_two_days_ahead_of_living_nodes_sweeps_and_ages_nothing() {
    let dir = Dir::new();
    let alive = store(&dir.file()).await;
    applied(&alive, 1).await;
    alive.announce(node(1), Duration::from_secs(10)).await.unwrap();
    // For whoever opens it now the wall clock is two days on.
    other(&dir.file(), "UPDATE store SET wall = wall - 172800000");
    let ahead = store(&dir.file()).await;
    assert_eq!(ahead.sweep(100).await.unwrap(), Swept::default());
    let Loaded::Here(row) = ahead.load(vec![key(1)]).await.unwrap().remove(0) else { panic!("swept") };
    assert!(row.age < HOUR && row.touched < HOUR, "{row:?}");
    assert_eq!(ahead.nodes(Duration::ZERO).await.unwrap(), [node(1)], "and its leases are not over");
    // Nobody withdrew, and nobody says a word: a while later it is believed. But the other one does.
    other(&dir.file(), "UPDATE store SET now = now + 1, wall = wall - 1, clock = x'0102030405060708'");
    ahead.announce(Node { life: Life::new(2), ..node(1) }, HOUR).await.unwrap();
    let Loaded::Here(row) = ahead.load(vec![key(1)]).await.unwrap().remove(0) else { panic!("swept") };
    assert!(row.age < HOUR, "{row:?}");
    assert_eq!(ahead.sweep(100).await.unwrap(), Swept::default(), "it is clear now, and nothing is over");
}

#[tokio::test]
async fn the_time_in_which_no_node_was_there_counts() {
    let dir = Dir::new();
    let before = store(&dir.file()).await;
    applied(&before, 1).await;
    before.announce(node(1), Duration::from_secs(10)).await.unwrap();
    before.withdraw(Life::new(1)).await.unwrap();
    drop(before);
    other(&dir.file(), "UPDATE store SET wall = wall - 7200000");
    let after = store(&dir.file()).await;
    let Loaded::Here(row) = after.load(vec![key(1)]).await.unwrap().remove(0) else { panic!("it is there until it is swept") };
    assert!(row.age >= HOUR * 2, "{row:?}");
    assert_eq!(after.sweep(100).await.unwrap().sessions, [(key(1), stamp(1))]);
    // A wall clock that went back takes nothing back.
    drop(after);
    other(&dir.file(), "UPDATE store SET wall = wall + 864000000");
    let back = store(&dir.file()).await;
    applied(&back, 2).await;
    assert!(holds(&back, 2).await);
    assert_eq!(back.sweep(100).await.unwrap(), Swept::default());
}

#[tokio::test]
async fn a_copy_that_was_written_over_the_file_is_an_error_or_a_store_and_never_a_made_up_row() {
    let dir = Dir::new();
    let store = store(&dir.file()).await;
    for n in 0..200 {
        applied(&store, n).await;
    }
    other(&dir.file(), &format!("PRAGMA wal_checkpoint(TRUNCATE); VACUUM INTO '{}'", dir.at("copy.db").display()));
    for n in 200..400 {
        applied(&store, n).await;
    }
    run("cp", &[&dir.at("copy.db"), &dir.file()]);
    for n in 0..400 {
        match store.load(vec![key(n)]).await {
            Ok(loaded) => match &loaded[..] {
                [Loaded::Here(row)] => assert_eq!((row.stamp, &row.record[..]), (stamp(1), &b"kept"[..])),
                [Loaded::Missing] => {}
                other => panic!("{other:?}"),
            },
            Err(error) => assert!(matches!(error, LoadError::Damaged(_) | LoadError::Unavailable(_)), "{error:?}"),
        }
    }
}

#[tokio::test]
async fn a_hundred_thousand_touches_are_written_in_batches() {
    let dir = Dir::new();
    let store = store(&dir.file()).await;
    const ALL: u32 = 100_000;
    for from in (0..ALL).step_by(4096) {
        let rows = (from..ALL.min(from + 4096)).map(|n| Put { record: vec![7; 500].into(), ..row(n) });
        assert!(store.put(rows.collect()).await.unwrap().iter().all(|r| *r == RowResult::Applied));
    }
    let begin = now();
    for from in (0..ALL).step_by(4096) {
        // In an order that has nothing to do with that of the rows.
        let touches = (from..ALL.min(from + 4096)).map(|n| n.wrapping_mul(77_777) % ALL);
        let touches = touches.map(|n| Touch { key: key(n), stamp: stamp(1), ago: Duration::ZERO, expires_in: HOUR * 2 });
        assert!(store.touch(touches.collect()).await.unwrap().iter().all(|r| *r == RowResult::Applied));
    }
    println!("{ALL} touches in {:?}", begin.elapsed());
    other(&dir.file(), "UPDATE session SET due = 0, expires = 0");
    let (mut swept, mut more) = (0, true);
    while more {
        let part = store.sweep(4096).await.unwrap();
        swept += part.sessions.len();
        more = part.more;
    }
    assert_eq!(swept, ALL as usize);
}
