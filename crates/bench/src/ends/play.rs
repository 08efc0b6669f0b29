//! Both ends of an exchange, each a list of steps.

use anyhow::Context as _;
use core::time::Duration;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

/// What an end of a connection does next.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Writes these bytes.
    Say(Vec<u8>),
    /// Writes so many bytes beside what follows: a client that reads while it sends.
    Pour(usize),
    /// Reads a request's head.
    Head,
    /// Reads so many bytes.
    Bytes(usize),
    /// Reads to the end.
    Rest,
    /// Reads a response.
    Response,
    /// Closes its sending side.
    Fin,
    /// Resets the connection.
    Reset,
    /// Waits for the other end's `Tell`.
    Await,
    /// Lets the other end's `Await` go on.
    Tell,
}

/// How a connection ended as one end saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Closed,
    Reset,
    /// Not within the time allowed.
    Silent,
}

/// What the server saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Head(String),
    Bytes(usize),
    End(End),
}

/// A response as the client saw it.
#[derive(Clone, Debug, Default)]
pub(super) struct Got {
    /// Informational ones before it.
    pub(super) interim: Vec<u16>,
    /// 0: there was none.
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// Its framing says that it is all there.
    pub(super) whole: bool,
    /// How the connection ended, if that came first.
    pub(super) end: Option<End>,
}

#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) got: Vec<Got>,
    pub(super) seen: Vec<Seen>,
}

type Log = Arc<watch::Sender<Vec<Seen>>>;

/// The server, which plays its steps on each connection.
pub(super) struct Stage {
    pub(super) addr: SocketAddr,
    log: Log,
    server_told: Arc<Semaphore>,
    client_told: Arc<Semaphore>,
    /// Requests since the round began: a script that was cut short by a spare connection does not count.
    connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Stage {
    pub(super) async fn new(steps: &[Step]) -> anyhow::Result<Stage> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (addr, log) = (listener.local_addr()?, Log::default());
        let (server_told, client_told) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let connections = Arc::new(AtomicUsize::new(0));
        let steps: Arc<[Step]> = steps.into();
        let (seen, counted, signals) = (log.clone(), connections.clone(), (server_told.clone(), client_told.clone()));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let (steps, seen, (awaits, tells)) = (steps.clone(), seen.clone(), signals.clone());
                tokio::spawn(async move {
                    let mut player = Player::new(stream, awaits, tells, Duration::from_secs(60));
                    player.log = Some(seen);
                    player.play(&steps).await;
                });
            }
        });
        Ok(Stage { addr, log, server_told, client_told, connections, accepting })
    }

    /// Plays the client's steps against `addr` once. With `awaits`, waits afterwards until the server has seen the end.
    pub(super) async fn play(&self, steps: &[Step], addr: SocketAddr, awaits: bool, patience: Duration) -> anyhow::Result<Outcome> {
        self.log.send_replace(Vec::new());
        for told in [&self.server_told, &self.client_told] {
            told.forget_permits(usize::MAX >> 4);
        }
        self.connections.store(0, Ordering::Relaxed);
        let stream = TcpStream::connect(addr).await.context("nobody listens in front")?;
        let mut player = Player::new(stream, self.client_told.clone(), self.server_told.clone(), patience);
        player.play(steps).await;
        let got = core::mem::take(&mut player.got);
        if awaits {
            let mut log = self.log.subscribe();
            let ended = |seen: &Vec<Seen>| seen.iter().any(|seen| matches!(seen, Seen::End(_)));
            // That it did not come in time shows in the outcome.
            let _ = tokio::time::timeout(patience, log.wait_for(ended)).await;
        }
        drop(player);
        Ok(Outcome { got, seen: self.log.borrow().clone() })
    }
}

/// One end of a connection.
struct Player {
    stream: Option<TcpStream>,
    awaits: Arc<Semaphore>,
    tells: Arc<Semaphore>,
    patience: Duration,
    pouring: Option<JoinHandle<()>>,
    /// Read and not yet used.
    ahead: Vec<u8>,
    got: Vec<Got>,
    log: Option<Log>,
}

impl Player {
    fn new(stream: TcpStream, awaits: Arc<Semaphore>, tells: Arc<Semaphore>, patience: Duration) -> Player {
        let _ = stream.set_nodelay(true);
        Player { stream: Some(stream), awaits, tells, patience, pouring: None, ahead: Vec::new(), got: Vec::new(), log: None }
    }

    fn note(&self, seen: Seen) {
        if let Some(log) = &self.log {
            log.send_modify(|log| log.push(seen));
        }
    }

    /// Stops early where the connection has ended.
    async fn play(&mut self, steps: &[Step]) {
        for step in steps {
            if let Err(end) = self.step(step).await {
                self.note(Seen::End(end));
                break;
            }
        }
        if let Some(pouring) = self.pouring.take() {
            pouring.abort();
        }
    }

    async fn step(&mut self, step: &Step) -> Result<(), End> {
        match step {
            Step::Say(bytes) => {
                // Whoever cannot write any more may still read.
                if let Some(stream) = &mut self.stream {
                    let _ = tokio::time::timeout(self.patience, stream.write_all(bytes)).await;
                }
            }
            Step::Pour(amount) => self.pour(*amount),
            Step::Head => {
                let head = self.until(|bytes| find(bytes, b"\r\n\r\n").map(|at| at + 4)).await?;
                self.note(Seen::Head(String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned()));
            }
            Step::Bytes(amount) => {
                let came = self.until(|bytes| (bytes.len() >= *amount).then_some(*amount)).await;
                let bytes = came.as_ref().map_or(self.ahead.len(), Vec::len);
                self.note(Seen::Bytes(bytes));
                came?;
            }
            Step::Rest => {
                let end = loop {
                    if let Err(end) = self.more().await {
                        break end;
                    }
                };
                self.note(Seen::Bytes(self.ahead.len()));
                return Err(end);
            }
            Step::Response => {
                let got = self.response().await;
                let end = got.end;
                self.got.push(got);
                end.map_or(Ok(()), Err)?;
            }
            Step::Fin => {
                if let Some(stream) = &mut self.stream {
                    let _ = stream.shutdown().await;
                }
            }
            Step::Reset => {
                if let Some(stream) = self.stream.take() {
                    let _ = stream.set_zero_linger();
                }
            }
            Step::Await => match tokio::time::timeout(self.patience, self.awaits.acquire()).await {
                Ok(Ok(permit)) => permit.forget(),
                _ => return Err(End::Silent),
            },
            Step::Tell => self.tells.add_permits(1),
        }
        Ok(())
    }

    /// Another handle of the socket writes, so that this one can be read, closed and reset meanwhile.
    fn pour(&mut self, amount: usize) {
        let Some(stream) = self.stream.take() else { return };
        let both = stream.into_std().and_then(|stream| Ok((stream.try_clone()?, stream)));
        let Ok((other, stream)) = both else { return };
        let (Ok(mut other), Ok(stream)) = (TcpStream::from_std(other), TcpStream::from_std(stream)) else { return };
        self.stream = Some(stream);
        self.pouring = Some(tokio::spawn(async move {
            let _ = other.write_all(&vec![b'u'; amount]).await;
        }));
    }

    async fn more(&mut self) -> Result<(), End> {
        let Some(stream) = &mut self.stream else { return Err(End::Closed) };
        let mut bytes = vec![0; 64 << 10];
        match tokio::time::timeout(self.patience, stream.read(&mut bytes)).await {
            Ok(Ok(0)) => Err(End::Closed),
            Ok(Ok(n)) => {
                self.ahead.extend_from_slice(bytes.get(..n).unwrap_or_default());
                Ok(())
            }
            Ok(Err(_)) => Err(End::Reset),
            Err(_) => Err(End::Silent),
        }
    }

    /// Takes as many bytes as `complete` says, once it does.
    async fn until(&mut self, complete: impl Fn(&[u8]) -> Option<usize>) -> Result<Vec<u8>, End> {
        loop {
            if let Some(length) = complete(&self.ahead) {
                return Ok(self.ahead.drain(..length).collect());
            }
            self.more().await?;
        }
    }

    async fn response(&mut self) -> Got {
        let mut got = Got::default();
        let head = loop {
            let head = match self.until(|bytes| find(bytes, b"\r\n\r\n").map(|at| at + 4)).await {
                Ok(head) => String::from_utf8_lossy(&head).to_ascii_lowercase(),
                Err(end) => return Got { end: Some(end), ..got },
            };
            let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
            if status >= 200 {
                got.status = status;
                break head;
            }
            got.interim.push(status);
        };
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let Some(length) = field("content-length:").and_then(|length| length.parse::<usize>().ok()) {
            let came = self.until(|bytes| (bytes.len() >= length).then_some(length)).await;
            got.whole = came.is_ok();
            got.end = came.as_ref().err().copied();
            got.body = came.unwrap_or_else(|_| core::mem::take(&mut self.ahead));
        } else if field("transfer-encoding:") == Some("chunked") {
            got.end = self.chunks(&mut got.body).await.err();
            got.whole = got.end.is_none();
        } else {
            let end = loop {
                if let Err(end) = self.more().await {
                    break end;
                }
            };
            got.body = core::mem::take(&mut self.ahead);
            got.whole = end == End::Closed;
            got.end = Some(end);
        }
        got
    }

    async fn chunks(&mut self, body: &mut Vec<u8>) -> Result<(), End> {
        loop {
            let line = self.until(|bytes| find(bytes, b"\r\n").map(|at| at + 2)).await?;
            let size = core::str::from_utf8(&line).ok().and_then(|line| usize::from_str_radix(line.trim(), 16).ok()).ok_or(End::Closed)?;
            match self.until(|bytes| (bytes.len() >= size + 2).then_some(size + 2)).await {
                Ok(mut chunk) => {
                    chunk.truncate(size);
                    body.extend(chunk);
                }
                Err(end) => {
                    body.append(&mut self.ahead);
                    return Err(end);
                }
            }
            if size == 0 {
                return Ok(());
            }
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
