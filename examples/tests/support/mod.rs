//! What tests with several processes share: a page's snippets, nodes of the deployed program, and a browser.

#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]
#![allow(clippy::disallowed_methods, reason = "who waits for a process has to give up one day")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(90);

/// The secret that the page uses.
pub const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Waits until there is something.
pub fn until<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(got) = get() {
            return got;
        }
        assert!(Instant::now() < deadline, "in {LONG:?} it did not come about that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A page of the documentation.
pub fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// The snippet of docs/deploy.md whose first line names this file.
pub fn snippet(file: &str) -> String {
    let page = page("deploy.md");
    let mut blocks = page.split("\n```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let (_, text) = blocks.find(|(_, text)| text.lines().next().is_some_and(|line| line == format!("# {file}"))).unwrap();
    format!("{text}\n")
}

/// The first snippet of docs/deploy.md below this heading.
pub fn snippet_below(heading: &str) -> String {
    let page = page("deploy.md");
    let (_, below) = page.split_once(&format!("\n## {heading}\n")).unwrap();
    let (_, block) = below.split_once("\n```").and_then(|(_, block)| block.split_once('\n')).unwrap();
    format!("{}\n", block.split_once("\n```").unwrap().0)
}

/// Ports that are free now and that the system gives to nobody by itself.
pub fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 10_000 + (std::process::id() % 200) as u16 * 100;
    let mut ports = Vec::new();
    while ports.len() < count {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed) % 2000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.push(port);
        }
    }
    ports
}

/// A folder of its own, removed at the end.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("outlive-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A file that stays behind does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that does not outlive the test.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Running {
        let program = command.get_program().to_string_lossy().to_uppercase();
        let child = command.stdin(Stdio::null()).process_group(0).spawn();
        Running(child.unwrap_or_else(|error| panic!("{program} IS MISSING: {error}")))
    }

    pub fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap().success());
    }

    pub fn ended(&mut self) -> ExitStatus {
        until("a process ends", || self.0.try_wait().unwrap())
    }

    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // With all processes that it began: Apache's and nginx's outlive their first one. It may have ended already.
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.0.id())]).stderr(Stdio::null()).status();
        let _ = self.0.wait();
    }
}

/// One node of the deployed program.
pub struct Node {
    pub name: &'static str,
    pub running: Running,
    pub http: SocketAddr,
}

/// Three machines on one: what the page says, at other addresses.
pub struct Machines {
    pub folder: Folder,
    http: Vec<u16>,
    peer: Vec<u16>,
    pub nodes: Vec<Node>,
    /// Settings beside those of the page.
    pub more: Vec<(String, String)>,
}

impl Machines {
    /// The names, ports and a folder; no process yet.
    pub fn new(test: &str) -> Machines {
        let ports = free_ports(6);
        let (http, peer) = ports.split_at(3);
        Machines { folder: Folder::new(test), http: http.to_vec(), peer: peer.to_vec(), nodes: Vec::new(), more: Vec::new() }
    }

    /// All three, as the page starts them.
    pub fn started(test: &str, more: &[(&str, &str)]) -> Machines {
        let mut machines = Machines::new(test);
        machines.more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        for at in 0..3 {
            machines.start(at);
        }
        for node in &machines.nodes {
            until("a node is ready", || (Browser::default().get(node.http, "/ready")?.status == 200).then_some(()));
        }
        machines
    }

    /// The page's addresses as they are here.
    pub fn here(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for at in 0..3 {
            text = text.replace(&format!("10.0.0.{}:8080", at + 1), &format!("127.0.0.1:{}", self.http[at]));
            text = text.replace(&format!("10.0.0.{}:7400", at + 1), &format!("127.0.0.1:{}", self.peer[at]));
        }
        text
    }

    /// What the page's environment files say for this machine.
    pub fn environment(&self, at: usize) -> BTreeMap<String, String> {
        let name = ["a", "b", "c"][at];
        let mine = |line: &str| match line {
            "OUTLIVE_NODE=a" => format!("OUTLIVE_NODE={name}"),
            _ if line.starts_with("OUTLIVE_JOIN=") => line.to_owned(),
            _ => line.replace("10.0.0.1:", &format!("10.0.0.{}:", at + 1)),
        };
        let files = [snippet("/etc/shop/shop.env"), snippet("/etc/shop/secret.env")].concat();
        let lines: Vec<String> = files.lines().filter(|line| !line.starts_with('#')).map(mine).collect();
        let pairs = lines.iter().map(|line| self.here(line)).collect::<Vec<_>>();
        pairs.iter().map(|line| line.split_once('=').unwrap()).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// A node d with another secret, which the others do not let in. Its log goes nowhere.
    pub fn stranger(&self) -> Running {
        let ports = free_ports(2);
        let mut command = Command::new(env!("CARGO_BIN_EXE_deployed"));
        command.current_dir(&self.folder.0).envs(self.environment(0)).env("OUTLIVE_NODE", "d");
        command.env("LISTEN", format!("127.0.0.1:{}", ports[0])).env("OUTLIVE_HTTP", format!("127.0.0.1:{}", ports[0]));
        command.env("OUTLIVE_PEER", format!("127.0.0.1:{}", ports[1])).env("OUTLIVE_SECRET", SECRET.replace('0', "f"));
        Running::start(command.stdout(Stdio::null()).stderr(Stdio::null()))
    }

    /// Starts a node, or starts it again; it answers when this returns. Its log goes to a file of its name.
    pub fn start(&mut self, at: usize) {
        let name = ["a", "b", "c"][at];
        let log = std::fs::File::options().create(true).append(true).open(self.folder.0.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_deployed"));
        command.current_dir(&self.folder.0).envs(self.environment(at)).envs(self.more.iter().cloned()).env("RUST_BACKTRACE", "0");
        command.stdout(Stdio::piped()).stderr(log);
        let mut running = Running::start(&mut command);
        let mut line = String::new();
        BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let http =
            line.trim().strip_prefix("http://").unwrap_or_else(|| panic!("it said {line:?} and {:?}", self.log(at))).parse().unwrap();
        let node = Node { name, running, http };
        match self.nodes.get_mut(at) {
            Some(old) => *old = node,
            None => self.nodes.push(node),
        }
    }

    pub fn log(&self, at: usize) -> String {
        std::fs::read_to_string(self.folder.0.join(format!("{}.log", ["a", "b", "c"][at]))).unwrap()
    }
}

pub struct Response {
    pub status: u16,
    pub text: String,
}

/// A browser: it keeps its cookies, at whichever port.
#[derive(Clone, Default)]
pub struct Browser(pub BTreeMap<String, String>);

impl Browser {
    /// `None`: there is no response.
    pub fn get(&mut self, addr: SocketAddr, path: &str) -> Option<Response> {
        let cookies: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let cookies = if cookies.is_empty() { String::new() } else { format!("Cookie: {}\r\n", cookies.join("; ")) };
        let mut stream = TcpStream::connect(addr).ok()?;
        stream.set_read_timeout(Some(LONG)).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n{cookies}Connection: close\r\n\r\n").as_bytes()).ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).ok()?;
        let (head, body) = response.split_once("\r\n\r\n")?;
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let text = if chunked { dechunked(body) } else { body.to_owned() };
        for line in head.lines() {
            let Some((name, value)) = line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie")) else { continue };
            let _ = name;
            let (name, value) = value.split(';').next()?.split_once('=')?;
            self.0.insert(name.to_owned(), value.to_owned());
        }
        Some(Response { status: head.split(' ').nth(1)?.parse().ok()?, text })
    }
}

fn dechunked(body: &str) -> String {
    let (mut rest, mut text) = (body, String::new());
    while let Some((length, more)) = rest.split_once("\r\n")
        && let Ok(length @ 1..) = usize::from_str_radix(length, 16)
        && let Some(chunk) = more.get(..length)
    {
        text.push_str(chunk);
        rest = more[length..].trim_start_matches("\r\n");
    }
    text
}

/// The program `outlive`: built with the other programs of this repository, or now.
pub fn outlive() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_deployed")).with_file_name("outlive");
    if !path.exists() {
        let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--locked", "-p", "outlive-server"]).status().unwrap();
        assert!(built.success() && path.exists(), "`outlive` cannot be built");
    }
    path
}
