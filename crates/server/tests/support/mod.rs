//! Processes that end with their test, and just enough HTTP to talk to them.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

pub(crate) mod browser;
pub(crate) mod page;

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// A process, killed when it is dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    input: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    complaints: Option<BufReader<ChildStderr>>,
}

impl Process {
    pub(crate) fn start(mut command: Command) -> Process {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, lines) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Process { child, input, lines, complaints: None }
    }

    /// One whose standard error is read, too, by `complaint_with`.
    pub(crate) fn start_loud(mut command: Command) -> Process {
        let mut process = Process::start({
            command.stderr(Stdio::piped());
            command
        });
        process.complaints = process.child.stderr.take().map(BufReader::new);
        process
    }

    /// The first line of its standard error that contains `text`.
    #[track_caller]
    pub(crate) fn complaint_with(&mut self, text: &str) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            let length = self.complaints.as_mut().unwrap().read_line(&mut line).unwrap();
            assert!(length > 0, "it ended without complaining of {text:?}; it said\n{all}");
            if line.contains(text) {
                return line;
            }
            all += &line;
        }
    }

    /// `outlive` with these arguments.
    pub(crate) fn outlive(args: &[&str]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outlive"));
        command.args(args);
        Process::start(command)
    }

    /// The rest of the first line that contains `text`, behind it.
    #[track_caller]
    pub(crate) fn line_with(&mut self, text: &str) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            let length = self.lines.read_line(&mut line).unwrap();
            assert!(length > 0, "it ended without saying {text:?}; it said\n{all}");
            if let Some((_, rest)) = line.split_once(text) {
                return rest.trim_end().to_owned();
            }
            all += &line;
        }
    }

    /// Its next line; empty if it ended instead.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Closes its standard input, as the end of its parent does.
    pub(crate) fn orphan(&mut self) {
        drop(self.input.take());
    }

    /// Its exit status, and all that it said meanwhile.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.input.take());
        if matches!(self.child.try_wait(), Ok(None)) {
            // In order, so that it tidies up after itself.
            self.terminate();
            let ended = (0..400).any(|_| {
                std::thread::park_timeout(Duration::from_millis(50));
                matches!(self.child.try_wait(), Ok(Some(_)))
            });
            if !ended {
                let _ = self.child.kill();
            }
        }
        let _ = self.child.wait();
    }
}

/// A store's file, removed with the test: make it before those who use it.
pub(crate) struct StoreFile(pub(crate) String);

impl StoreFile {
    pub(crate) fn new(name: &str) -> StoreFile {
        StoreFile(std::env::temp_dir().join(format!("outlive-store-{}-{name}.db", std::process::id())).display().to_string())
    }

    pub(crate) fn url(&self) -> String {
        format!("sqlite:{}", self.0)
    }
}

impl Drop for StoreFile {
    fn drop(&mut self) {
        let path = std::path::Path::new(&self.0);
        let name = path.file_name().unwrap().to_str().unwrap();
        for part in [name.to_owned(), format!("{name}-wal"), format!("{name}-shm"), format!(".{name}-lock")] {
            let _ = std::fs::remove_file(path.with_file_name(part));
        }
    }
}

/// A node that keeps copies, the address of its readiness, and where others connect to it.
pub(crate) struct Node {
    pub(crate) process: Process,
    pub(crate) ready: String,
    pub(crate) peer: String,
}

pub(crate) fn node(args: &[&str]) -> Node {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outlive"));
    command.args([&["node"], args].concat());
    let mut process = Process::start_loud(command);
    let ready = process.line_with("ready http://");
    let peer = process.line_with("peer ");
    Node { process, ready, peer }
}

/// What `outlive status` printed, and how it ended.
pub(crate) fn status(args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_outlive")).args([&["status"], args].concat()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), said)
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find(|line| line.split(':').next().is_some_and(|n| n.eq_ignore_ascii_case(name)))?;
        line.split_once(':').map(|(_, value)| value.trim())
    }
}

/// One request on a connection of its own.
pub(crate) fn ask(addr: &str, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
        .unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "an answer without an end: {head}");
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = Answer { status, head, body: String::new() };
    // Some servers keep the connection open whatever they are asked.
    let mut bytes = Vec::new();
    if answer.header("transfer-encoding").is_some() {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).unwrap();
            if size == 0 {
                break;
            }
            bytes.extend_from_slice(&chunk[..size]);
        }
    } else {
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        bytes.resize(length, 0);
        reader.read_exact(&mut bytes).unwrap();
    }
    answer.body = String::from_utf8(bytes).unwrap();
    answer
}

pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Waits until `look` finds something. The bound is for a test that is broken, not for one that is slow.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..2400 {
        if let Some(found) = look() {
            return found;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    panic!("it never came: {what}");
}
