//! Nodes as processes of their own on one SQLite file, and what other programs and people do to that file.
//!
//! One change; `select count(*) from session` by another program; four more changes; both nodes killed, one started: the first change
//! was there and four acknowledged ones were not.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use common::*;
use outlive_core::Brought;
use outlive_runtime::{Node, Open};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("outlive-processes-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = Dir(std::env::temp_dir().join(name));
        std::fs::create_dir(&dir.0).unwrap();
        dir
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// This binary again, as a process that runs the ignored test `part`, after `before` in a shell.
fn command(part: &str, file: &Path, before: &str) -> Command {
    let mut command = Command::new("sh");
    let run = format!("{before} exec \"$0\" --exact {part} --ignored --nocapture --test-threads=1");
    command.args(["-c", &run]).arg(std::env::current_exe().unwrap());
    command.env("STORE_TEST_FILE", file).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// A process that answers each line with one.
struct Process {
    child: Child,
    ask: Option<ChildStdin>,
    answers: std::sync::mpsc::Receiver<String>,
}

impl Process {
    fn start(part: &str, file: &Path, before: &str) -> Process {
        let mut child = command(part, file, before).spawn().unwrap();
        let (ask, lines) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()).lines());
        let (say, answers) = std::sync::mpsc::sync_channel(64);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, answer)) = line.split_once("= ")
                    && say.send(answer.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        let process = Process { child, ask, answers };
        assert_eq!(process.answer(), "up");
        process
    }

    fn node(file: &Path) -> Process {
        Process::start("a_node", file, "")
    }

    fn answer(&self) -> String {
        self.answers.recv_timeout(LONG).unwrap()
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.ask.as_mut().unwrap(), "{question}").unwrap();
        self.answer()
    }

    /// Asks until the answer has this in it.
    fn until(&mut self, question: &str, part: &str) -> String {
        let deadline = tokio::time::Instant::now() + LONG;
        loop {
            let answer = self.ask(question);
            if answer.contains(part) {
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "{question}: {answer}, and not {part}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn file() -> Option<PathBuf> {
    std::env::var_os("STORE_TEST_FILE").map(PathBuf::from)
}

/// Questions, one a line, as they come.
async fn questions(mut answer: impl AsyncFnMut(&str, u8) -> String) {
    println!("= up");
    loop {
        let line = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map(|_| line)
        });
        let line = line.await.unwrap().unwrap();
        let Some(word) = line.split_whitespace().next() else { return };
        let n = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
        println!("= {}", answer(word, n).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process"]
async fn a_node() {
    let Some(file) = file() else { return };
    let mut config = config(&format!("n{}", std::process::id()), &[]);
    config.store = Some(outlive_store::open(&format!("sqlite:{}", file.display())).await.unwrap());
    let node = Node::<()>::start(config).await.unwrap();
    let mut tips = [None; 256];
    questions(async |word, n| {
        let stats = node.stats();
        match word {
            "readiness" => node.readiness().to_string(),
            "failures" => stats.store_failures.to_string(),
            "dirty" => stats.engine.dirty.to_string(),
            "members" => stats.engine.members.to_string(),
            "append" => {
                let token = tips[usize::from(n)];
                let at = match token {
                    None => node.create(key(n)).unwrap(),
                    Some(stamp) => match node.open(key(n), Some(Brought { stamp, expired: false })).answer().await {
                        Ok(Open::Here(at)) => at,
                        other => return format!("{other:?}"),
                    },
                };
                match append(&node, &at, &[n; 1000]).await {
                    Ok(done) => {
                        tips[usize::from(n)] = done.tip;
                        format!("{:?}", done.level)
                    }
                    Err(failure) => format!("{failure:?}"),
                }
            }
            "read" => match node.open(key(n), None).answer().await {
                Ok(Open::Here(at)) => {
                    let log = log(&node, &at).unwrap_or_default();
                    node.close(&at);
                    format!("{} appended", log.len() / 1000)
                }
                other => format!("{other:?}"),
            },
            other => panic!("{other}"),
        }
    })
    .await;
}

/// Looks at the file and goes; or does to it what it is told, and waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process"]
async fn another_program() {
    let Some(file) = file() else { return };
    let db = rusqlite::Connection::open(file).unwrap();
    let count = |_: &str| db.query_row("SELECT count(*) FROM session", [], |row| row.get::<_, i64>(0)).unwrap().to_string();
    questions(async |word, _| match word {
        "count" => count(word),
        "lock" => format!("{:?}", db.execute_batch("BEGIN IMMEDIATE")),
        "unlock" => format!("{:?}", db.execute_batch("COMMIT")),
        other => panic!("{other}"),
    })
    .await;
}

#[test]
fn a_look_at_the_store_between_two_changes_loses_nothing() {
    let dir = Dir::new();
    let file = dir.at("s.db");
    let (mut a, mut b) = (Process::node(&file), Process::node(&file));
    a.until("members", "2");
    b.until("members", "2");
    a.ask("append 1");
    a.until("dirty", "0");
    for _ in 0..4 {
        let mut look = Process::start("another_program", &file, "");
        assert_eq!(look.ask("count"), "1");
        // It closes the file, as a program does that ends in order.
        drop(look.ask.take());
        assert!(look.child.wait().unwrap().success());
        // An older SQLite trusts the file's locks alone. It may not be installed.
        drop(Command::new("sqlite3").arg(&file).arg("select count(*) from session").output());
        a.ask("append 1");
    }
    a.until("dirty", "0");
    drop((a, b));
    let mut again = Process::node(&file);
    again.until("read 1", "5 appended");
}

#[test]
fn a_write_lock_that_another_program_holds_is_seen_and_passes() {
    let dir = Dir::new();
    let file = dir.at("s.db");
    let mut node = Process::node(&file);
    node.until("readiness", "ready");
    let mut locker = Process::start("another_program", &file, "");
    assert_eq!(locker.ask("lock"), "Ok(())");
    node.ask("append 1");
    node.until("readiness", "the store cannot be written");
    assert_ne!(node.ask("dirty"), "0");
    // Whoever comes meanwhile finds the other one, and nobody is alone.
    let mut second = Process::node(&file);
    second.until("members", "2");
    assert_eq!(locker.ask("unlock"), "Ok(())");
    for process in [&mut node, &mut second] {
        process.until("dirty", "0");
        process.until("readiness", "ready");
    }
    assert_eq!(locker.ask("count"), "1");
}

#[test]
fn a_full_disk_is_seen_and_not_worked_at() {
    let dir = Dir::new();
    let file = dir.at("s.db");
    // No file may grow beyond a few hundred kilobytes, and trying to is an error and no signal.
    let mut full = Process::start("a_node", &file, "trap '' XFSZ; ulimit -f 600;");
    full.until("readiness", "ready");
    for n in 0..=255 {
        for _ in 0..4 {
            full.ask(&format!("append {n}"));
        }
    }
    full.until("readiness", "the store cannot be written");
    let (begin, before) = (tokio::time::Instant::now(), full.ask("failures").parse::<u64>().unwrap());
    // Three more tries.
    while full.ask("failures").parse::<u64>().unwrap() < before + 3 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(begin.elapsed() >= std::time::Duration::from_millis(200), "{:?}", begin.elapsed());
    assert_eq!(full.ask("read 7"), "4 appended", "it serves what it has");
    assert_ne!(full.ask("dirty"), "0");
    // Another process, whose disk has room, is found and finds it.
    let mut second = Process::node(&file);
    second.until("members", "2");
    full.until("members", "2");
}

#[test]
fn a_store_that_was_removed_or_replaced_under_running_nodes_is_missed_and_welcome_back() {
    let dir = Dir::new();
    let file = dir.at("s.db");
    let (mut a, mut b) = (Process::node(&file), Process::node(&file));
    a.until("members", "2");
    b.until("members", "2");
    a.ask("append 1");
    a.until("dirty", "0");
    let parts = ["s.db", "s.db-wal", "s.db-shm"];
    std::fs::create_dir(dir.at("away")).unwrap();
    for part in parts {
        std::fs::rename(dir.at(part), dir.at("away").join(part)).unwrap();
    }
    for node in [&mut a, &mut b] {
        node.until("readiness", "the store is not where it was");
    }
    assert!(!file.exists(), "nobody makes another");
    assert_eq!(a.ask("append 1"), "Backup(1)", "sessions go on");
    // Somebody who comes now finds those who are here, and makes no other either.
    let mut other = command("a_node", &file, "").spawn().unwrap();
    assert!(!other.wait().unwrap().success() && !file.exists());
    for part in parts {
        std::fs::rename(dir.at("away").join(part), dir.at(part)).unwrap();
    }
    for node in [&mut a, &mut b] {
        node.until("readiness", "ready");
        node.until("dirty", "0");
    }
    drop((a, b));
    let mut again = Process::node(&file);
    again.until("read 1", "2 appended");
}
