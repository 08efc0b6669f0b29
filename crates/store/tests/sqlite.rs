//! SQLite: the law on a real file, several processes on one file, crashes, and files that are not ours.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, reason = "the lint knows test functions, not their helpers")]

use outlive_core::id::SessionKey;
use outlive_core::stamp::{Claim, Life, Stamp};
use outlive_store::conformance::{self, Pair};
use outlive_store::{End, Expect, LoadError, Loaded, Marker, OpenError, Put, RowResult, SqliteStore, Store, Swept, Synchronous, open};
use rusqlite::Connection;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("outlive-store-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = Dir(std::env::temp_dir().join(name));
        std::fs::create_dir(&dir.0).unwrap();
        dir
    }

    fn file(&self) -> PathBuf {
        self.0.join("sessions.db")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

async fn store(path: &Path) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(path, Synchronous::Full).await.unwrap())
}

/// Two stores as two processes have them: each with connections and threads of its own.
async fn pair(path: &Path) -> Pair {
    [store(path).await, store(path).await]
}

#[tokio::test]
async fn keeps_the_law() {
    let dir = Dir::new();
    let count = AtomicU32::new(0);
    conformance::all(async || {
        let path = dir.0.join(format!("{}.db", count.fetch_add(1, Ordering::Relaxed)));
        pair(&path).await
    })
    .await;
}

#[tokio::test]
async fn says_what_it_does_not_know() {
    let dir = Dir::new();
    let pair = pair(&dir.file()).await;
    let other = Connection::open(dir.file()).unwrap();
    let break_it = |broken| {
        let (from, to) = if broken { ("session", "elsewhere") } else { ("elsewhere", "session") };
        other.execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}")).unwrap();
    };
    conformance::failures_tell_the_truth(&pair, break_it).await;
}

#[tokio::test]
async fn what_is_written_outlives_the_store_and_ages_by_its_clock() {
    let dir = Dir::new();
    let put = conformance::row(1, Expect::Absent, 1, b"kept");
    store(&dir.file()).await.put(vec![put.clone()]).await.unwrap();
    // An hour passes for the file, half of one since it was touched.
    let file = Connection::open(dir.file()).unwrap();
    file.execute_batch("UPDATE session SET written = written - 3600000, touched = touched - 1800000").unwrap();
    let Loaded::Here(row) = store(&dir.file()).await.load(vec![put.key]).await.unwrap().remove(0) else { panic!("the row is there") };
    assert_eq!((row.stamp, row.record), (put.stamp, put.record));
    assert!(row.age >= Duration::from_secs(3600) && row.touched >= Duration::from_secs(1800) && row.touched < row.age);
    file.execute_batch("UPDATE session SET written = written + 36000000, touched = touched + 36000000").unwrap();
    let Loaded::Here(row) = store(&dir.file()).await.load(vec![put.key]).await.unwrap().remove(0) else { panic!("the row is there") };
    assert_eq!(row.age, Duration::ZERO, "a clock that stepped back makes no negative age");
}

#[tokio::test]
async fn what_is_over_at_one_is_over_at_all_though_their_clocks_differ() {
    let dir = Dir::new();
    let [a, b] = pair(&dir.file()).await;
    // Both have their time; then `a` is five seconds ahead, as one that was held up while it asked for it.
    for store in [&a, &b] {
        store.probe().await.unwrap();
    }
    let ahead = |by: i64| Connection::open(dir.file()).unwrap().execute("UPDATE store SET now = now + ?1", [by]).unwrap();
    ahead(5_000);
    a.probe().await.unwrap();
    ahead(-5_000);
    let minute = Duration::from_secs(60);
    assert_eq!(a.lease("job".into(), Life::new(1), minute).await.unwrap(), Some(1));
    assert_eq!(a.lease("job".into(), Life::new(1), Duration::ZERO).await.unwrap(), Some(1));
    assert_eq!(b.lease("job".into(), Life::new(2), minute).await.unwrap(), Some(2), "given back");
    a.put(vec![Put { expires_in: Duration::ZERO, ..conformance::row(1, Expect::Absent, 1, b"x") }]).await.unwrap();
    assert_eq!(b.sweep(4).await.unwrap().sessions.len(), 1, "it is over");
}

#[tokio::test]
async fn the_user_of_a_row_is_the_last_one_written_and_goes_with_its_end() {
    let dir = Dir::new();
    let store = store(&dir.file()).await;
    let file = Connection::open(dir.file()).unwrap();
    let user = || file.query_row("SELECT user FROM session", [], |row| row.get::<_, Option<[u8; 16]>>(0)).unwrap();
    let row = |version, user| {
        let expect = if version == 1 { Expect::Absent } else { Expect::Exactly(stamp(version - 1)) };
        Put { user, ..put(1, expect, stamp(version), b"x".to_vec()) }
    };
    for (version, written) in [(1, None), (2, Some([1; 16])), (3, Some([2; 16])), (4, Some([2; 16])), (5, None), (6, Some([3; 16]))] {
        assert_eq!(store.put(vec![row(version, written)]).await.unwrap(), [RowResult::Applied]);
        assert_eq!(user(), written, "version {version}");
    }
    store.end(vec![End { key: key(1), marker: Marker { kind: 1, next: None }, keep: Duration::from_secs(60) }]).await.unwrap();
    assert_eq!(user(), None);
}

#[tokio::test]
async fn a_sweep_passes_over_rows_that_writes_kept_alive() {
    let dir = Dir::new();
    let store = store(&dir.file()).await;
    let rows = || (0..10).map(|n| put(n, Expect::Absent, stamp(1), b"x".to_vec()));
    store.put(rows().collect()).await.unwrap();
    // Their first expiry has come, and they were used meanwhile: `due` lags behind, as it does by design.
    Connection::open(dir.file()).unwrap().execute_batch("UPDATE session SET due = 1 + rowid").unwrap();
    store.put(vec![Put { expires_in: Duration::ZERO, ..put(77, Expect::Absent, stamp(1), b"x".to_vec()) }]).await.unwrap();
    let mut swept = Swept { more: true, ..Swept::default() };
    let mut rounds = 0;
    while swept.more {
        let part = store.sweep(4).await.unwrap();
        swept.sessions.extend(part.sessions);
        swept.more = part.more;
        rounds += 1;
    }
    assert_eq!((swept.sessions, rounds), (vec![(key(77), stamp(1))], 3), "ten to pass over and one to take, four at a time");
    let keys = rows().map(|row| row.key).collect();
    assert!(store.load(keys).await.unwrap().iter().all(|loaded| matches!(loaded, Loaded::Here(_))));
    assert_eq!(store.sweep(4).await.unwrap(), Swept::default(), "and now they are not due");
}

#[tokio::test]
async fn a_write_waits_as_long_as_another_process_holds_the_lock() {
    let dir = Dir::new();
    let store = store(&dir.file()).await;
    let other = Connection::open(dir.file()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let put = conformance::row(1, Expect::Absent, 1, b"x");
    // Polled once, so it is in the queue; then nobody wants it any more.
    let mut given_up = store.put(vec![conformance::row(2, Expect::Absent, 1, b"x")]);
    std::future::poll_fn(|cx| {
        assert!(given_up.as_mut().poll(cx).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    drop(given_up);
    let waiting = tokio::spawn({
        let (store, put) = (Arc::clone(&store), put.clone());
        async move { store.put(vec![put]).await }
    });
    // Reads go on meanwhile.
    assert_eq!(store.load(vec![put.key]).await.unwrap(), vec![Loaded::Missing]);
    assert!(!waiting.is_finished());
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), vec![RowResult::Applied]);
}

/// The test binary again, as another process that runs `test`.
fn process(test: &str, path: &Path, number: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env("STORE_TEST_FILE", path)
        .env("STORE_TEST_NUMBER", number.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn told() -> Option<(PathBuf, usize)> {
    let number = std::env::var("STORE_TEST_NUMBER").ok()?.parse().ok()?;
    Some((std::env::var_os("STORE_TEST_FILE")?.into(), number))
}

const PROCESSES: usize = 3;
const WRITES: u32 = 300;

#[tokio::test]
async fn three_processes_on_one_file_lose_nothing() {
    let dir = Dir::new();
    // No file yet: they race to make it, too.
    let children: Vec<Child> = (0..PROCESSES as u32).map(|n| process("one_of_three", &dir.file(), n)).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let store = store(&dir.file()).await;
    let shared = key(u32::MAX);
    let Loaded::Here(row) = store.load(vec![shared]).await.unwrap().remove(0) else { panic!("the row is there") };
    assert_eq!(counts(&row.record), [WRITES; PROCESSES], "the union of all lineages");
    let own: Vec<SessionKey> = (0..PROCESSES as u32 * WRITES).map(key).collect();
    assert!(store.load(own).await.unwrap().iter().all(|loaded| matches!(loaded, Loaded::Here(_))), "everybody's own rows");
    assert_eq!(integrity(&dir.file()), "ok");
}

#[tokio::test]
#[ignore = "a process of `three_processes_on_one_file_lose_nothing`"]
async fn one_of_three() {
    let Some((path, me)) = told() else { return };
    let store = store(&path).await;
    assert!(store.secret([me as u8; 32]).await.unwrap().iter().all(|byte| usize::from(*byte) < PROCESSES));
    let (mut known, mut seen) = (None, [0; PROCESSES]);
    while seen[me] < WRITES {
        let mut next = seen;
        next[me] += 1;
        // Later processes have the greater stamps throughout, and must not win by that.
        let stamp = Claim { epoch: me as u32, life: Life::new(me as u64) }.at(next.iter().sum());
        let record: Vec<u8> = next.iter().flat_map(|n| n.to_be_bytes()).collect();
        let shared = put(u32::MAX, known.map_or(Expect::Absent, Expect::Exactly), stamp, record);
        let own = put(me as u32 * WRITES + seen[me], Expect::Absent, stamp, b"own".to_vec());
        let results = store.put(vec![shared, own]).await.unwrap();
        match results[0] {
            RowResult::Applied => (known, seen) = (Some(stamp), next),
            RowResult::Mismatch(_) => {
                let Loaded::Here(row) = store.load(vec![key(u32::MAX)]).await.unwrap().remove(0) else { panic!("the row is there") };
                let found = counts(&row.record);
                assert!(found[me] == seen[me] && found.iter().zip(&seen).all(|(found, seen)| found >= seen), "{found:?} {seen:?}");
                (known, seen) = (Some(row.stamp), found);
            }
            RowResult::Ended(_) => panic!("nobody ended it"),
        }
    }
}

const BATCH: u32 = 64;

#[tokio::test]
async fn a_kill_in_the_middle_of_a_batch_leaves_whole_batches() {
    let dir = Dir::new();
    let mut acked = 0;
    for round in 0..6 {
        let mut child = process("writes_until_killed", &dir.file(), acked);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("acked ").and_then(|n| n.parse::<u32>().ok()));
        // A few more each round, so that the kill meets different states of the log.
        acked = said.take(5 + round * 40).last().expect("it wrote");
        child.kill().unwrap();
        child.wait().unwrap();

        let loaded = store(&dir.file()).await.load((0..BATCH).map(key).collect()).await.unwrap();
        let rows: Vec<_> = loaded.into_iter().map(|l| if let Loaded::Here(row) = l { row } else { panic!("{l:?}") }).collect();
        let version = rows[0].stamp.version;
        assert!(version >= acked, "acknowledged {acked}, found {version}");
        for row in rows {
            assert_eq!(row.stamp.version, version, "a batch is one transaction");
            assert_eq!(&row.record[..], record(version), "a record belongs to its stamp");
        }
        assert_eq!(integrity(&dir.file()), "ok");
        acked = version;
    }
}

#[tokio::test]
#[ignore = "the process of `a_kill_in_the_middle_of_a_batch_leaves_whole_batches`"]
async fn writes_until_killed() {
    let Some((path, from)) = told() else { return };
    let store = store(&path).await;
    for version in from as u32 + 1.. {
        let expect = if version == 1 { Expect::Absent } else { Expect::Exactly(stamp(version - 1)) };
        let rows = (0..BATCH).map(|n| put(n, expect, stamp(version), record(version))).collect();
        assert_eq!(store.put(rows).await.unwrap(), [RowResult::Applied; BATCH as usize]);
        println!("acked {version}");
    }
}

#[tokio::test]
async fn a_newer_file_is_refused_untouched() {
    let dir = Dir::new();
    drop(store(&dir.file()).await);
    Connection::open(dir.file()).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = SqliteStore::open(dir.file(), Synchronous::Full).await.unwrap_err();
    let expected = format!("`{}` has schema version 99, this build knows 3: use a newer release, or another file", dir.file().display());
    assert!(matches!(error, OpenError::Foreign(_)));
    assert_eq!(error.to_string(), expected);
    let version = Connection::open(dir.file()).unwrap().query_row("PRAGMA user_version", [], |row| row.get::<_, i32>(0)).unwrap();
    assert_eq!(version, 99);
}

#[tokio::test]
async fn a_file_of_an_older_schema_is_migrated_with_all_that_is_in_it() {
    let older = ["ALTER TABLE session DROP COLUMN next", "DROP TABLE store"];
    for version in [2, 1] {
        let dir = Dir::new();
        let before = store(&dir.file()).await;
        let (minute, marker) = (Duration::from_secs(60), Marker { kind: 1, next: None });
        before.put(vec![put(1, Expect::Absent, stamp(1), b"x".to_vec())]).await.unwrap();
        before.end(vec![End { key: key(2), marker, keep: minute }]).await.unwrap();
        drop(before);
        let file = Connection::open(dir.file()).unwrap();
        for step in &older[..3 - version] {
            file.execute_batch(step).unwrap();
        }
        file.pragma_update(None, "user_version", version as u32).unwrap();
        drop(file);
        let after = store(&dir.file()).await;
        let loaded = after.load(vec![key(1), key(2)]).await.unwrap();
        assert!(matches!(&loaded[..], [Loaded::Here(row), Loaded::Ended(kept)] if row.record == "x" && *kept == marker), "{loaded:?}");
        let named = Marker { kind: 1, next: Some(key(3)) };
        assert_eq!(after.end(vec![End { key: key(2), marker: named, keep: minute }]).await.unwrap(), [named]);
        assert_eq!(after.put(vec![put(1, Expect::Exactly(stamp(1)), stamp(2), b"y".to_vec())]).await.unwrap(), [RowResult::Applied]);
        assert_eq!(integrity(&dir.file()), "ok");
    }
}

#[tokio::test]
async fn a_file_of_another_program_is_refused_untouched() {
    let dir = Dir::new();
    Connection::open(dir.file()).unwrap().execute_batch("CREATE TABLE session (theirs)").unwrap();
    let before = std::fs::read(dir.file()).unwrap();
    let error = SqliteStore::open(dir.file(), Synchronous::Full).await.unwrap_err();
    assert!(error.to_string().ends_with("is a SQLite database of another program"), "{error}");
    assert_eq!(std::fs::read(dir.file()).unwrap(), before);

    let text = dir.0.join("letter.txt");
    std::fs::write(&text, "Dear reader, this is a letter and no database at all.".repeat(40)).unwrap();
    let error = SqliteStore::open(&text, Synchronous::Full).await.unwrap_err();
    assert!(error.to_string().ends_with("is not a SQLite database"), "{error}");
}

#[tokio::test]
async fn a_damaged_row_is_an_error_and_no_answer() {
    let dir = Dir::new();
    let store = store(&dir.file()).await;
    let (bad, good) = (conformance::row(1, Expect::Absent, 1, b"bad"), conformance::row(2, Expect::Absent, 1, b"good"));
    store.put(vec![bad.clone(), good.clone()]).await.unwrap();
    let other = Connection::open(dir.file()).unwrap();
    other.execute_batch("PRAGMA ignore_check_constraints = ON").unwrap();
    other.execute("UPDATE session SET stamp = x'00' WHERE key = ?1", [bad.key.bytes()]).unwrap();
    assert!(matches!(store.load(vec![bad.key]).await, Err(LoadError::Damaged(_))));
    assert!(matches!(store.load(vec![good.key]).await.unwrap()[..], [Loaded::Here(_)]), "the other rows are well");
}

#[tokio::test]
async fn urls_open_what_they_say() {
    let dir = Dir::new();
    let url = format!("{}", dir.file().display());
    let put = conformance::row(1, Expect::Absent, 1, b"x");
    store(&dir.file()).await.put(vec![put.clone()]).await.unwrap();
    for good in ["sqlite:", "SQLITE:", "sqlite://"] {
        for option in ["", "?", "?synchronous=full", "?synchronous=normal"] {
            let loaded = open(&format!("{good}{url}{option}")).await.unwrap().load(vec![put.key]).await.unwrap();
            assert!(matches!(loaded[..], [Loaded::Here(_)]), "{good}{url}{option} is another file");
        }
    }
    std::fs::create_dir(dir.0.join("folder")).unwrap();
    let (folder, missing) = (dir.0.join("folder"), dir.0.join("nowhere/at/all.db"));
    for (wrong, part) in [
        ("sqlite::memory:".to_owned(), "no file that nodes can share".to_owned()),
        ("sqlite:x.db?mode=ro".to_owned(), "`mode=ro` is no option".to_owned()),
        (format!("sqlite:{}", folder.display()), format!("is a directory: write `sqlite:{}/sessions.db`", folder.display())),
        (format!("sqlite:{url}-wal"), format!("is a part of the store `{url}`")),
        ("sqlite:/dev/null".to_owned(), "is not a file".to_owned()),
        (format!("sqlite:{}", missing.display()), format!("cannot open {}", missing.display())),
    ] {
        let error = open(&wrong).await.err().unwrap().to_string();
        assert!(error.contains(&part), "{wrong}: {error}");
    }
    let error = open(&format!("sqlite:{}", missing.display())).await.err().unwrap();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, format!("there is no folder `{}`: make it", dir.0.join("nowhere/at").display()));
}

fn integrity(path: &Path) -> String {
    Connection::open(path).unwrap().query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

fn key(n: u32) -> SessionKey {
    SessionKey::from_bytes((u128::from(n.wrapping_mul(0x9E37_79B1)) << 96 | u128::from(n)).to_be_bytes())
}

fn stamp(version: u32) -> Stamp {
    Claim { epoch: 1, life: Life::new(1) }.at(version)
}

fn record(version: u32) -> Vec<u8> {
    vec![version as u8; 1024 + version as usize % 7]
}

fn put(n: u32, expect: Expect, stamp: Stamp, record: Vec<u8>) -> Put {
    Put { key: key(n), expect, stamp, record: record.into(), expires_in: Duration::from_secs(3600), user: None }
}

fn counts(record: &[u8]) -> [u32; PROCESSES] {
    std::array::from_fn(|i| u32::from_be_bytes(record[i * 4..][..4].try_into().unwrap()))
}
