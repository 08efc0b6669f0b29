//! The first request of a session on another node after its owner was killed, or fell silent.

use crate::children::AppNode;
use crate::measure::{Rounds, Table, micros, now};
use crate::visitors::Visitor;
use anyhow::{Context, bail};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use core::time::Duration;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Sessions whose owner fails, in each round.
const SESSIONS: usize = 64;

/// How long a cluster stands before its node fails: nodes that have just met still ask more of each other.
const STANDS: [Duration; 2] = [Duration::from_secs(6), Duration::ZERO];

/// What a request does: the application's paths.
const CHANGE: &str = "/inc";
const READ: &str = "/read";

/// A connection that is kept.
struct Connection(BufReader<TcpStream>);

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Connection {
    fn open(addr: SocketAddr) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Connection(BufReader::new(stream)))
    }

    fn get(&mut self, visitor: &mut Visitor, path: &str) -> anyhow::Result<Answer> {
        let cookies = visitor.cookies().map(|c| format!("cookie: {c}\r\n")).unwrap_or_default();
        self.0.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{cookies}\r\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).context("no status")?.parse()?;
        let (mut headers, mut length) = (HeaderMap::new(), 0);
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse()?;
            }
            headers.append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        visitor.keep(&headers);
        Ok(Answer { status, headers, text: String::from_utf8(body)? })
    }
}

/// A value of the application's line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split_whitespace().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// A session on the first node, and who holds its copy.
struct Case {
    visitor: Visitor,
    backup: String,
}

fn cluster() -> anyhow::Result<Vec<AppNode>> {
    let mut nodes: Vec<AppNode> = Vec::new();
    for name in ["n1", "n2", "n3"] {
        let join: Vec<String> = nodes.iter().map(|n| n.peer.to_string()).collect();
        nodes.push(AppNode::start(name, "backup(1)", &join)?);
    }
    Ok(nodes)
}

/// Sessions on the first node, each with a copy on another.
fn cases(node: &AppNode) -> anyhow::Result<Vec<Case>> {
    let mut connection = Connection::open(node.http)?;
    let until = now() + Duration::from_secs(30);
    let mut cases = Vec::new();
    while cases.len() < SESSIONS {
        anyhow::ensure!(now() < until, "sessions get no copies");
        let mut visitor = Visitor::default();
        connection.get(&mut visitor, "/inc")?;
        let info = connection.get(&mut visitor, "/info")?;
        match (field(&info.text, "level"), field(&info.text, "backups")) {
            (Some("backup(1)"), Some(backup)) if !backup.is_empty() => cases.push(Case { visitor, backup: backup.to_owned() }),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    Ok(cases)
}

/// What the sessions of one failure saw, in microseconds.
#[derive(Default)]
struct Seen {
    /// The first session that was asked for.
    very_first: Rounds,
    /// Every other, on the node with its copy and on the third node.
    at_backup: Rounds,
    elsewhere: Rounds,
    /// The same sessions again: what a request costs there anyway.
    again: Rounds,
    refused: u32,
}

/// One way to fail, and what is asked then.
struct Failure {
    silent: bool,
    stands: Duration,
    path: &'static str,
    what: &'static str,
}

fn fail(&Failure { silent, stands, path, .. }: &Failure, seen: &mut Seen) -> anyhow::Result<()> {
    let mut nodes = cluster()?;
    let mut cases = cases(&nodes[0])?;
    let mut connections = HashMap::new();
    for node in &nodes[1..] {
        let mut connection = Connection::open(node.http)?;
        connection.get(&mut Visitor::default(), "/plain")?;
        connections.insert(node.name.clone(), connection);
    }
    std::thread::sleep(stands);
    if silent {
        nodes[0].process.freeze()?;
    } else {
        nodes[0].process.kill();
    }
    for (at, case) in cases.iter_mut().enumerate() {
        let at_backup = at % 2 == 0;
        let name = if (case.backup == "n2") == at_backup { "n2" } else { "n3" };
        let connection = connections.get_mut(name).context("a backup that is no node")?;
        let start = now();
        let answer = loop {
            let answer = connection.get(&mut case.visitor, path)?;
            match answer.status {
                200 => break answer,
                503 => seen.refused += 1,
                status => bail!("an answer with status {status}"),
            }
            let pause = answer.headers.get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok()).unwrap_or(1);
            std::thread::sleep(Duration::from_secs(pause));
        };
        let took = micros(start.elapsed());
        let due = if path == CHANGE { "2" } else { "1" };
        anyhow::ensure!(field(&answer.text, "n") == Some(due), "an acknowledged change is missing: {}", answer.text);
        match at {
            0 => seen.very_first.push(took),
            _ if at_backup => seen.at_backup.push(took),
            _ => seen.elsewhere.push(took),
        }
        let start = now();
        connection.get(&mut case.visitor, path)?;
        seen.again.push(micros(start.elapsed()));
    }
    Ok(())
}

/// The table.
pub(crate) fn measure(rounds: usize) -> anyhow::Result<()> {
    println!("### The first request on another node after the owner failed\n");
    let mut table = Table::new(&["three processes, `backup(1)`, over HTTP", "median ms", "p99 ms", "largest ms"]);
    let failures = [
        Failure { silent: false, stands: STANDS[0], path: CHANGE, what: "killed, a change" },
        Failure { silent: true, stands: STANDS[0], path: CHANGE, what: "silent, a change" },
        Failure { silent: true, stands: STANDS[0], path: READ, what: "silent, a read" },
        Failure { silent: false, stands: STANDS[1], path: CHANGE, what: "killed in a cluster just started, a change" },
        Failure { silent: true, stands: STANDS[1], path: CHANGE, what: "silent in a cluster just started, a change" },
    ];
    for failure in failures {
        let (mut seen, what) = (Seen::default(), failure.what);
        for _ in 0..rounds {
            fail(&failure, &mut seen)?;
        }
        for (name, times) in [
            ("the very first session asked for", &seen.very_first),
            ("others, on the node with the copy", &seen.at_backup),
            ("others, on the third node", &seen.elsewhere),
            ("each of them once more", &seen.again),
        ] {
            let cells = [0.5, 0.99, 1.0].map(|q| format!("{:.2}", times.quantile(q) / 1000.0));
            table.row(format!("owner {what}: {name}"), &cells);
        }
        table.row(format!("owner {what}: answers of 503 before"), &[seen.refused.to_string(), String::new(), String::new()]);
    }
    table.print();
    println!("{rounds} failures of each kind, {SESSIONS} sessions each; no acknowledged change was missing.\n");
    Ok(())
}
