//! Each example is started as a process, asked over HTTP, and ended.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]
#![allow(clippy::disallowed_methods, reason = "who waits for a process has to give up one day")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tungstenite::{ClientRequestBuilder, Message, WebSocket};

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(90);

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("outlive-examples-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A file that stays behind does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A program that runs; it does not outlive the test.
struct Program {
    child: Child,
    addr: String,
}

impl Program {
    fn start(program: &str, folder: &Folder) -> Program {
        Program::start_with(Command::new(Program::path(program)), folder)
    }

    fn path(program: &str) -> &'static str {
        match program {
            "counter" => env!("CARGO_BIN_EXE_counter"),
            "cart" => env!("CARGO_BIN_EXE_cart"),
            "login" => env!("CARGO_BIN_EXE_login"),
            "events" => env!("CARGO_BIN_EXE_events"),
            "socket" => env!("CARGO_BIN_EXE_socket"),
            "checkout" => env!("CARGO_BIN_EXE_checkout"),
            "deployed" => env!("CARGO_BIN_EXE_deployed"),
            "tested" => env!("CARGO_BIN_EXE_tested"),
            _ => panic!("there is no example {program}"),
        }
    }

    /// One of several in a folder.
    fn start_node(program: &str, name: &str, folder: &Folder) -> Program {
        let mut program = Command::new(Program::path(program));
        program.env("OUTLIVE_NODE", name).env("OUTLIVE_DRAIN_NOTICE", "0s");
        Program::start_with(program, folder)
    }

    fn start_with(mut program: Command, folder: &Folder) -> Program {
        let child = program.current_dir(&folder.0).env("PORT", "0").stdout(Stdio::piped()).spawn().unwrap();
        let (mut program, mut line) = (Program { child, addr: String::new() }, String::new());
        BufReader::new(program.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        program.addr = line.trim().strip_prefix("http://").unwrap_or_else(|| panic!("it said {line:?}")).to_owned();
        program
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// SIGTERM, and how it ended.
    fn terminate(mut self) -> ExitStatus {
        self.signal("-TERM");
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    text: String,
}

impl Answer {
    /// A test that goes on with the answer to a wrong question says nothing.
    fn ok(self) -> String {
        assert_eq!(self.status, 200, "{}", self.text);
        self.text
    }
}

/// A browser: it keeps its cookies, at whichever port.
#[derive(Clone, Default)]
struct Browser(BTreeMap<String, String>);

impl Browser {
    fn get(&mut self, program: &Program, path: &str) -> Answer {
        self.ask(program, "GET", path, "")
    }

    fn post(&mut self, program: &Program, path: &str, form: &str) -> Answer {
        self.ask(program, "POST", path, form)
    }

    fn cookies(&self) -> String {
        let cookies: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        cookies.join("; ")
    }

    /// Server-sent events, from now until the server ends them.
    fn events(&self, program: &Program, path: &str) -> impl Iterator<Item = String> + use<> {
        let mut stream = TcpStream::connect(&program.addr).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nCookie: {}\r\nConnection: close\r\n\r\n", program.addr, self.cookies()).unwrap();
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
    }

    /// A WebSocket.
    fn socket(&mut self, program: &Program, path: &str) -> WebSocket<TcpStream> {
        let stream = TcpStream::connect(&program.addr).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let request = ClientRequestBuilder::new(format!("ws://{}{path}", program.addr).parse().unwrap());
        let (socket, answer) = tungstenite::client(request.with_header("Cookie", self.cookies()), stream).unwrap();
        for cookie in answer.headers().get_all("set-cookie") {
            self.keep(cookie.to_str().unwrap());
        }
        socket
    }

    /// Keeps what a `Set-Cookie` sets.
    fn keep(&mut self, cookie: &str) {
        let Some((name, rest)) = cookie.split_once('=') else { return };
        let (value, attributes) = rest.split_once(';').unwrap_or((rest, ""));
        if attributes.contains("Max-Age=0") {
            self.0.remove(name)
        } else {
            self.0.insert(name.to_owned(), value.to_owned())
        };
    }

    fn ask(&mut self, program: &Program, method: &str, path: &str, form: &str) -> Answer {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nCookie: {}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            program.addr,
            self.cookies(),
            form.len()
        );
        let mut stream = TcpStream::connect(&program.addr).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(format!("{head}{form}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        for line in head.lines() {
            if let Some((_, cookie)) = line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie")) {
                self.keep(cookie);
            }
        }
        Answer { status: head.split(' ').nth(1).unwrap().parse().unwrap(), text: text.to_owned() }
    }
}

fn sources() -> impl Iterator<Item = PathBuf> {
    let folder = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    folder.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "rs"))
}

#[test]
fn the_counter_is_ten_lines_and_one_setting() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("counter.rs")).unwrap();
    let is_code = |line: &&str| {
        let line = line.trim();
        !(line.is_empty() || line.starts_with("//") || line.starts_with("use ") || line.starts_with('#') || line == "}")
    };
    let lines: Vec<&str> = text.lines().filter(is_code).collect();
    assert!(lines.len() <= 10, "{} lines: {lines:#?}", lines.len());
    let chain = text.split_once("Outlive::builder()").unwrap().1.split_once(".start()").unwrap().0;
    assert_eq!(chain, ".store(\"sqlite:sessions.db\")");
}

#[test]
fn every_example_is_started_by_a_test() {
    let tests = include_str!("programs.rs");
    for path in sources() {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            tests.contains(&format!("Program::start(\"{name}\"")) || tests.contains(&format!("Program::path(\"{name}\"")),
            "{name} is not"
        );
    }
}

#[test]
fn the_counter_goes_on_at_another_process_when_its_own_is_ended() {
    let folder = Folder::new("counter");
    let mut browser = Browser::default();
    let first = Program::start("counter", &folder);
    let second = Program::start("counter", &folder);
    assert_eq!(browser.get(&first, "/").text, "visit 1\n");
    assert_eq!(browser.get(&first, "/").text, "visit 2\n");
    assert!(first.terminate().success());
    assert_eq!(browser.get(&second, "/").text, "visit 3\n");
    // The last one has nobody to hand over to, and the store has it.
    assert!(second.terminate().success());
    let third = Program::start("counter", &folder);
    assert_eq!(browser.get(&third, "/").text, "visit 4\n");
}

#[test]
fn the_cart_keeps_nothing_of_what_it_refuses() {
    let folder = Folder::new("cart");
    let (program, mut browser) = (Program::start("cart", &folder), Browser::default());
    for _ in 0..3 {
        assert_eq!(browser.post(&program, "/add", "sku=bell").status, 303);
    }
    assert_eq!(browser.post(&program, "/add", "sku=bell").status, 409);
    browser.post(&program, "/add", "sku=saddle");
    assert_eq!(browser.get(&program, "/").text, "3 x bell\n1 x saddle\n");
    browser.post(&program, "/remove", "sku=saddle");
    assert_eq!(browser.get(&program, "/").text, "3 x bell\n");
    assert_eq!(browser.get(&program, "/draft?form=7&text=half").text, "half");
    assert_eq!((browser.get(&program, "/draft?form=7").text, browser.get(&program, "/draft?form=8").text), ("half".into(), String::new()));
    let mut stranger = Browser::default();
    stranger.post(&program, "/remove", "sku=bell");
    assert!(stranger.0.is_empty());
    assert!(program.terminate().success());
}

#[test]
fn the_login_changes_the_id_and_signing_out_ends_it() {
    let folder = Folder::new("login");
    let (program, mut browser) = (Program::start("login", &folder), Browser::default());
    assert_eq!(browser.get(&program, "/account").status, 401);
    assert_eq!(browser.get(&program, "/no-such-page").status, 404, "a path that does not exist asks for no login");
    assert_eq!(browser.post(&program, "/login", "user=ada&password=guess").status, 401);
    assert_eq!(browser.post(&program, "/login", "user=&password=open+sesame").status, 401, "nobody");
    assert_eq!(browser.post(&program, "/login", "user=ada&password=open+sesame").status, 303);
    assert_eq!(browser.get(&program, "/").text, "hello ada\n");
    let mut before = browser.clone();
    assert_eq!(browser.post(&program, "/admin", "").status, 303);
    assert_eq!(browser.get(&program, "/account").text, "user=ada admin=true\n");
    assert_eq!(before.get(&program, "/account").status, 401, "the id before is dead");
    let mut copied = browser.clone();
    assert_eq!(browser.post(&program, "/logout", "").status, 303);
    assert_eq!(browser.get(&program, "/").text, "hello stranger\n");
    assert_eq!(copied.get(&program, "/").text, "hello stranger\n", "whoever has the cookie");
    assert!(program.terminate().success());
}

#[test]
fn a_payment_that_another_node_knows_of_survives_a_kill() {
    let folder = Folder::new("checkout");
    let mut browser = Browser::default();
    let start = |name: &str| {
        let mut program = Command::new(Program::path("checkout"));
        // The gateway's settings may lie in the same environment.
        program.env("OUTLIVE_NODE", name).env("OUTLIVE_GATEWAY_LISTEN", "127.0.0.1:80");
        Program::start_with(program, &folder)
    };
    let nodes = ["a", "b", "c"].map(start);
    let deadline = Instant::now() + LONG;
    let known = (0..).find(|n| {
        assert!(Instant::now() < deadline, "no other node ever knows");
        let answer = browser.get(&nodes[0], &format!("/pay?order={n}&amount=12"));
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.text == "12 is paid; level reached: backup(1)\n"
    });
    let order = format!("/pay?order={}&amount=12", known.unwrap());
    // On a slow disk it may say for a while that the store does not take its writes.
    loop {
        let said = browser.get(&nodes[0], "/ready").text;
        if said == "ready" {
            break;
        }
        assert!(Instant::now() < deadline, "{said}");
    }
    nodes[0].signal("-KILL");
    loop {
        let answer = browser.get(&nodes[1], &order);
        if answer.status == 200 {
            break assert_eq!(answer.text, "12 was paid already\n");
        }
        assert!(answer.status == 503 && Instant::now() < deadline, "{} {}", answer.status, answer.text);
    }
    assert!(browser.get(&nodes[1], "/place").text.starts_with("owner b, "));
}

#[test]
fn an_environment_that_cannot_be_is_refused_with_all_that_is_wrong() {
    let folder = Folder::new("environment");
    let mut program = Command::new(Program::path("checkout"));
    program.env("OUTLIVE_DURABILITY", "disk").env("OUTLIVE_NDOE", "a").current_dir(&folder.0).env("PORT", "0");
    let output = program.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(
        said.contains("`OUTLIVE_NDOE`; did you mean `OUTLIVE_NODE`?") && said.contains("durability is \"disk\", and must be `owner`"),
        "{said}"
    );
}

#[test]
fn the_deployed_one_takes_everything_from_the_environment() {
    let folder = Folder::new("deployed");
    let mut program = Command::new(Program::path("deployed"));
    program.env("LISTEN", "127.0.0.1:0").env("OUTLIVE_NODE", "app1").env("OUTLIVE_STORE", "sqlite:sessions.db");
    let (program, mut browser) = (Program::start_with(program, &folder), Browser::default());
    assert_eq!(browser.get(&program, "/").ok(), "visit 1, served by app1\n");
    assert_eq!((browser.get(&program, "/ready").ok(), browser.get(&program, "/live").ok()), ("ready".into(), "alive".into()));
    assert!(program.terminate().success());
}

#[test]
fn the_tested_one_runs_as_well() {
    let folder = Folder::new("tested");
    let (program, mut browser) = (Program::start("tested", &folder), Browser::default());
    assert_eq!(browser.post(&program, "/vote", "").text, "vote 1\n");
    assert_eq!(browser.get(&program, "/").text, "1");
    assert!(program.terminate().success());
}

#[test]
fn events_show_what_other_pages_change_and_end_with_the_session() {
    let folder = Folder::new("events");
    let (program, mut browser) = (Program::start("events", &folder), Browser::default());
    assert_eq!(browser.post(&program, "/add", "").ok(), "1 items\n");
    let mut events = browser.events(&program, "/events");
    assert_eq!(events.next().as_deref(), Some("1"));
    browser.post(&program, "/add", "").ok();
    assert_eq!(events.next().as_deref(), Some("2"));
    assert_eq!(browser.post(&program, "/logout", "").ok(), "signed out: Everywhere\n");
    assert_eq!(events.next(), None);
    assert!(program.terminate().success());
}

#[test]
fn events_end_at_sigterm_and_go_on_at_the_next_server() {
    let folder = Folder::new("events-end");
    let (first, second) = (Program::start_node("events", "a", &folder), Program::start_node("events", "b", &folder));
    let mut browser = Browser::default();
    browser.post(&first, "/add", "").ok();
    let mut events = browser.events(&first, "/events");
    assert_eq!(events.next().as_deref(), Some("1"));
    first.signal("-TERM");
    assert_eq!(events.next(), None);
    assert_eq!(browser.events(&second, "/events").next().as_deref(), Some("1"));
    assert!(first.terminate().success() && second.terminate().success());
}

/// The next text, or why the socket was closed.
fn heard(socket: &mut WebSocket<TcpStream>) -> Result<String, String> {
    match socket.read().unwrap() {
        Message::Text(text) => Ok(text.to_string()),
        Message::Close(Some(frame)) => Err(frame.reason.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_socket_writes_into_the_session_for_as_long_as_it_is_open() {
    let folder = Folder::new("socket");
    let (program, mut browser) = (Program::start("socket", &folder), Browser::default());
    let mut socket = browser.socket(&program, "/socket");
    for (n, text) in ["hello", "world"].iter().enumerate() {
        socket.send(Message::text(*text)).unwrap();
        assert!(heard(&mut socket).unwrap().starts_with(&format!("{} said, ", n + 1)));
    }
    assert_eq!(browser.get(&program, "/said").ok(), "hello\nworld");
    assert_eq!(browser.post(&program, "/logout", "").ok(), "signed out: Everywhere\n");
    assert_eq!(heard(&mut socket).unwrap_err(), "the session is over");
    assert!(program.terminate().success());
}

#[test]
fn a_socket_is_closed_at_sigterm_and_all_that_it_was_told_is_at_the_next_server() {
    let folder = Folder::new("socket-end");
    let (first, second) = (Program::start_node("socket", "a", &folder), Program::start_node("socket", "b", &folder));
    let mut browser = Browser::default();
    let mut socket = browser.socket(&first, "/socket");
    let mut said = 0;
    // It speaks until it is told to stop; what was answered counts.
    let why = loop {
        // Once the other side has closed, nothing more can be sent.
        let _ = socket.send(Message::text(format!("line {said}")));
        match heard(&mut socket) {
            Ok(_) => said += 1,
            Err(why) => break why,
        }
        if said == 3 {
            first.signal("-TERM");
        }
    };
    assert_eq!(why, "connect again");
    assert!(first.terminate().success());
    let lines = browser.get(&second, "/said").ok();
    let lines = lines.lines().count();
    // What came while it closed may be there as well, or not: it was not answered.
    assert!(lines == said || lines == said + 1, "{said} answered, {lines} there");
    assert!(second.terminate().success());
}

#[test]
fn without_a_port_there_is_one_and_a_bad_one_is_a_sentence() {
    let folder = Folder::new("port");
    for port in ["eighty", "99999", ""] {
        let mut program = Command::new(Program::path("counter"));
        let output = program.current_dir(&folder.0).env("PORT", port).env("RUST_BACKTRACE", "0").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("Error: a bad PORT") && !said.contains("backtrace"), "{said}");
    }
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        let address = text.contains("map_or(Ok(3000)") || text.contains("\"127.0.0.1:8080\"");
        assert!(address && text.contains("tracing_subscriber::fmt()"), "{}", path.display());
    }
}
