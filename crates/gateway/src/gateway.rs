//! The gateway as a whole: built, started, asked and stopped.

use crate::client::{Client, Phase, Tap, Worker};
use crate::forwarded::{Forwarded, Network};
use crate::proxy;
use crate::routing::{MemberInfo, Placement, Router};
use crate::table::{Directory, MemberStats};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outlive_core::address::Address;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Bounds on what one client may cost. Each time is without anything happening, unless it says otherwise.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// For each address of a member to accept a connection. Default 1 s; a refused connection needs no time at all.
    pub connect_timeout: Duration,
    /// From the request, or from the last byte of its body that came, to the head of a member's response; then 504. Default 60 s.
    pub response_timeout: Duration,
    /// A member's silence within a response; then the connection is closed. Default 1 h: event streams may be silent for long. What
    /// a client that has vanished costs is a connection for so long.
    pub stream_timeout: Duration,
    /// From the first byte of a request's head to its last; then the connection is closed. Default 10 s.
    pub head_timeout: Duration,
    /// A connection without a request; then it is closed. Default 75 s.
    pub idle_timeout: Duration,
    /// A client that takes nothing of a response that is ready for it, or sends nothing of a body that a member waits for; then the
    /// connection is closed, in the latter case with 408. Default 60 s.
    pub stall_timeout: Duration,
    /// A client that has closed its side of the connection, without a byte for it from a member; then it is taken to be gone. Default
    /// 5 s. Higher serves clients that send no more and read on, lower spares members the work for those that have left.
    pub leave_timeout: Duration,
    /// For a client to read the response to a request that was not read to its end, while the rest is read and dropped; in all.
    /// Default 30 s.
    pub linger_timeout: Duration,
    /// Either side of a connection that has become a WebSocket. Default 1 h.
    pub tunnel_timeout: Duration,
    /// How long a connection to a member is kept without use. Default 4 s, because common servers close theirs after 5 s, and a
    /// POST that meets a closing connection cannot be repeated.
    pub member_idle: Duration,
    /// Bytes of a request's head, and of a response's, and what is buffered in each direction; at least 8 KiB. More is answered
    /// 431, or 502 if a member sent it. Default 64 KiB.
    pub max_head: usize,
    /// Connections from clients; more are answered 503 and closed. Default 10,000.
    pub max_connections: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(60),
            stream_timeout: Duration::from_secs(3600),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(60),
            leave_timeout: Duration::from_secs(5),
            linger_timeout: Duration::from_secs(30),
            tunnel_timeout: Duration::from_secs(3600),
            member_idle: Duration::from_secs(4),
            max_head: 64 * 1024,
            max_connections: 10_000,
        }
    }
}

impl Limits {
    /// How often limits are looked at: often enough for the shortest, and no more.
    fn tick(&self) -> Duration {
        let all = [
            self.response_timeout,
            self.stream_timeout,
            self.head_timeout,
            self.idle_timeout,
            self.stall_timeout,
            self.leave_timeout,
            self.linger_timeout,
            self.tunnel_timeout,
            self.member_idle,
        ];
        let shortest = all.into_iter().min().unwrap_or_default();
        (shortest / 8).clamp(Duration::from_millis(5), Duration::from_millis(250))
    }
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The caller's configuration: no address to listen on. Nothing was started.
    #[error("no address to listen on")]
    NoListener,
    /// The caller's configuration: the address is taken, or not ours. Nothing was started.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address asked for.
        addr: Address,
        /// What the system said.
        source: io::Error,
    },
    /// The system: no thread or no randomness to be had. Nothing serves.
    #[error("cannot start a worker")]
    Worker {
        /// What the system said.
        source: io::Error,
    },
}

/// A gateway to be.
#[derive(Debug)]
pub struct Gateway(());

impl Gateway {
    /// Starts with defaults: sticky by any cookie that ends in a member's name, retries on, no proxy trusted, a worker thread
    /// for each processor.
    pub fn builder() -> Builder {
        Builder {
            listen: None,
            members: Vec::new(),
            cookies: Vec::new(),
            placement: None,
            trusted: Vec::new(),
            retry: true,
            workers: None,
            limits: Limits::default(),
        }
    }
}

/// How a gateway is to be; see [`Gateway::builder`].
pub struct Builder {
    listen: Option<Address>,
    members: Vec<MemberInfo>,
    cookies: Vec<String>,
    placement: Option<Box<dyn Placement>>,
    trusted: Vec<Network>,
    retry: bool,
    workers: Option<usize>,
    limits: Limits,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("listen", &self.listen).field("members", &self.members).finish_non_exhaustive()
    }
}

impl Builder {
    /// Where clients connect: with a name, at each of its addresses. Port 0 takes a free one; see [`Running::local_addr`].
    pub fn listen(mut self, addr: impl Into<Address>) -> Builder {
        self.listen = Some(addr.into());
        self
    }

    /// Adds a fixed member.
    pub fn member(mut self, name: impl Into<String>, addr: impl Into<Address>) -> Builder {
        self.members.push(MemberInfo::fixed(name, addr));
        self
    }

    /// A cookie that carries a route; several may be named. Default: none, which follows any cookie that ends in a member's name.
    pub fn cookie(mut self, name: impl Into<String>) -> Builder {
        self.cookies.push(name.into());
        self
    }

    /// Who knows which members hold a session. Needs [`cookie`](Builder::cookie) for routes that no member has.
    pub fn placement(mut self, placement: impl Placement + 'static) -> Builder {
        self.placement = Some(Box::new(placement));
        self
    }

    /// Proxies whose `X-Forwarded-*` and `Forwarded` headers stand. Default: none; all such headers are replaced.
    pub fn trust(mut self, network: Network) -> Builder {
        self.trusted.push(network);
        self
    }

    /// Whether a request that was sent, and whose answer did not begin, is sent to another member if its method is idempotent.
    /// Default: yes. A handler may then run twice for one request; off, such a request is answered 502. Requests that were not
    /// sent at all always go to another member.
    pub fn retry(mut self, retry: bool) -> Builder {
        self.retry = retry;
        self
    }

    /// Worker threads; at least 1. Default: one for each processor.
    pub fn workers(mut self, workers: usize) -> Builder {
        self.workers = Some(workers.max(1));
        self
    }

    /// Replaces all limits.
    pub fn limits(mut self, limits: Limits) -> Builder {
        self.limits = limits;
        self
    }

    /// Listens and serves. Needs a tokio runtime with I/O to accept connections; requests are answered on threads of its own.
    pub async fn start(self) -> Result<Running, StartError> {
        let addr = self.listen.ok_or(StartError::NoListener)?;
        let (listeners, local_addr) = listen(&addr).await.map_err(|source| StartError::Listen { addr, source })?;
        let workers = self.workers.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
        let directory = Directory::new(workers);
        directory.update(self.members);
        let (stop, stopping) = watch::channel(None);
        let mut limits = self.limits;
        limits.max_head = limits.max_head.max(8 * 1024);
        let shared = Arc::new(Shared {
            directory,
            router: Router::new(self.cookies, self.placement),
            trusted: self.trusted,
            retry: self.retry,
            limits,
            draining: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
        });
        let mut doors = Vec::new();
        let (done, all_done) = mpsc::channel(1);
        for index in 0..workers {
            doors
                .push(start_worker(index, shared.clone(), stopping.clone(), done.clone()).map_err(|source| StartError::Worker { source })?);
        }
        let doors: Arc<[Door]> = doors.into();
        let accept = |listener| tokio::spawn(accept(listener, shared.clone(), doors.clone())).abort_handle();
        let acceptors = listeners.into_iter().map(accept).collect();
        Ok(Running { local_addr, shared, stop, acceptors, all_done })
    }
}

/// Listens at each address of `addr` that this machine has, and says the first. A free port is the same at all of them.
async fn listen(addr: &Address) -> io::Result<(Vec<TcpListener>, SocketAddr)> {
    let mut bound: Vec<(TcpListener, SocketAddr)> = Vec::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for mut addr in tokio::net::lookup_host((addr.host(), addr.port())).await? {
        if let Some((_, first)) = bound.first() {
            addr.set_port(first.port());
        }
        match TcpListener::bind(addr).await.and_then(|listener| Ok((listener.local_addr()?, listener))) {
            Ok((local, listener)) => bound.push((listener, local)),
            // `localhost` stands for `::1` on machines without IPv6, too.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => last = error,
            Err(error) if bound.iter().any(|(_, local)| *local == addr) => last = error,
            Err(error) => return Err(error),
        }
    }
    let Some((_, first)) = bound.first() else { return Err(last) };
    let first = *first;
    Ok((bound.into_iter().map(|(listener, _)| listener).collect(), first))
}

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) directory: Directory,
    pub(crate) router: Router,
    pub(crate) trusted: Vec<Network>,
    pub(crate) retry: bool,
    pub(crate) limits: Limits,
    draining: AtomicBool,
    connections: AtomicUsize,
    accepted: AtomicU64,
    turned_away: AtomicU64,
}

#[cfg(test)]
impl Shared {
    /// Of a gateway that has nothing but limits.
    pub(crate) fn with(limits: Limits) -> Shared {
        Shared {
            directory: Directory::new(1),
            router: Router::default(),
            trusted: Vec::new(),
            retry: true,
            limits,
            draining: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
        }
    }
}

/// A gateway that serves. Dropped, it stops at once.
#[derive(Debug)]
pub struct Running {
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<Option<Duration>>,
    acceptors: Vec<AbortHandle>,
    all_done: mpsc::Receiver<usize>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("router", &self.router).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// What was counted since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Client connections now.
    pub connections: usize,
    /// Client connections accepted.
    pub accepted: u64,
    /// Client connections turned away because there were too many.
    pub turned_away: u64,
    /// Each member, ordered by name.
    pub members: Vec<MemberStats>,
}

/// How a stop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stopped {
    /// Connections that were cut because they had not ended in time. 0 means that every request was answered.
    pub cut: usize,
}

impl Running {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The way to tell it who the members are.
    pub fn directory(&self) -> Directory {
        self.shared.directory.clone()
    }

    /// What was counted so far.
    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.shared.connections.load(Ordering::Relaxed),
            accepted: self.shared.accepted.load(Ordering::Relaxed),
            turned_away: self.shared.turned_away.load(Ordering::Relaxed),
            members: self.shared.directory.stats(),
        }
    }

    /// Stops accepting, lets requests finish for up to `grace`, cuts the rest and ends.
    pub async fn shutdown(mut self, grace: Duration) -> Stopped {
        self.acceptors.iter().for_each(AbortHandle::abort);
        self.stop.send_replace(Some(grace));
        let mut cut = 0;
        while let Some(left) = self.all_done.recv().await {
            cut += left;
        }
        Stopped { cut }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.acceptors.iter().for_each(AbortHandle::abort);
    }
}

/// A connection on its way from the acceptor to a worker.
type Accepted = (std::net::TcpStream, SocketAddr);

/// Where a worker takes its connections, and how many it has.
struct Door {
    connections: mpsc::Sender<Accepted>,
    load: Arc<AtomicUsize>,
}

/// Accepts, and gives each connection to the worker that has the fewest.
async fn accept(listener: TcpListener, shared: Arc<Shared>, doors: Arc<[Door]>) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: others have to end before there is one.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if shared.connections.load(Ordering::Relaxed) >= shared.limits.max_connections {
            shared.turned_away.fetch_add(1, Ordering::Relaxed);
            turn_away(stream);
            continue;
        }
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let Some(door) = doors.iter().min_by_key(|door| door.load.load(Ordering::Relaxed)) else { return };
        let Ok(stream) = stream.set_nodelay(true).and_then(|()| stream.into_std()) else { continue };
        shared.connections.fetch_add(1, Ordering::Relaxed);
        door.load.fetch_add(1, Ordering::Relaxed);
        if door.connections.send((stream, peer)).await.is_err() {
            return;
        }
    }
}

const TURNED_AWAY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: text/plain\r\ncontent-length: 38\r\n\r\noutlive gateway: too many connections\n";

/// Says so if the socket takes it at once; waiting for such a client would cost what turning it away is to save.
fn turn_away(stream: TcpStream) {
    // The plain socket writes at once, while tokio's would first have to hear that it is writable.
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(TURNED_AWAY);
    }
}

fn start_worker(index: usize, shared: Arc<Shared>, stop: watch::Receiver<Option<Duration>>, done: mpsc::Sender<usize>) -> io::Result<Door> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (connections, door) = mpsc::channel(64);
    let load = Arc::new(AtomicUsize::new(0));
    #[expect(clippy::disallowed_methods, reason = "a gateway is a process of its own: it spreads load, and nothing replays it")]
    let seed = getrandom::u64().map_err(io::Error::other)?;
    let worker = Arc::new(Worker::new(index, shared, seed));
    let mine = load.clone();
    std::thread::Builder::new().name(format!("gateway-{index}")).spawn(move || {
        let cut = runtime.block_on(work(worker, door, stop, mine));
        drop(runtime);
        // The receiver counts; when it is gone, nobody asks.
        let _ = done.blocking_send(cut);
    })?;
    Ok(Door { connections, load })
}

/// A worker's open connections.
type Open = Arc<Mutex<HashMap<u64, Arc<Client>>>>;

/// One worker: takes connections, looks after their limits, and at the end waits for them. Returns how many it had to cut.
async fn work(
    worker: Arc<Worker>,
    mut door: mpsc::Receiver<Accepted>,
    mut stop: watch::Receiver<Option<Duration>>,
    load: Arc<AtomicUsize>,
) -> usize {
    let open = Open::default();
    let start = Instant::now();
    let mut ticks = tokio::time::interval(worker.shared.limits.tick());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut deadline: Option<Instant> = None;
    let mut accepting = true;
    let mut serial = 0;
    loop {
        tokio::select! {
            accepted = door.recv(), if accepting => match accepted {
                Some((stream, peer)) => {
                    serial += 1;
                    admit(&worker, stream, peer, Place { open: open.clone(), serial, load: load.clone(), worker: worker.clone() });
                }
                None => accepting = false,
            },
            stopped = stop.changed(), if deadline.is_none() => {
                // A gateway that was dropped, not shut down, ends at once.
                let grace = stopped.ok().and_then(|()| *stop.borrow()).unwrap_or_default();
                deadline = Some(Instant::now() + grace);
                worker.shared.draining.store(true, Ordering::Relaxed);
                open.lock().values().for_each(|client| client.wake());
            }
            _ = ticks.tick() => {
                let now = start.elapsed().as_millis() as u64;
                worker.tick(now);
                open.lock().values().for_each(|client| client.check(now));
                let since = now.saturating_sub(worker.shared.limits.member_idle.as_millis() as u64);
                for row in worker.shared.directory.members().rows() {
                    row.kept().pool(worker.index).sweep(since);
                }
            }
        }
        if let Some(deadline) = deadline {
            let left = load.load(Ordering::Relaxed);
            if (left == 0 && !accepting) || Instant::now() >= deadline {
                return left;
            }
        }
    }
}

/// A connection's place among the open ones, given back when its last part has ended.
struct Place {
    open: Open,
    serial: u64,
    load: Arc<AtomicUsize>,
    worker: Arc<Worker>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.lock().remove(&self.serial);
        self.load.fetch_sub(1, Ordering::Relaxed);
        self.worker.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn admit(worker: &Arc<Worker>, stream: std::net::TcpStream, peer: SocketAddr, place: Place) {
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let forwarded = Forwarded::new(peer.ip(), &worker.shared.trusted);
    let client = Arc::new(Client::new(worker.clone(), forwarded));
    place.open.lock().insert(place.serial, client.clone());
    tokio::spawn(serve(stream, client, place));
}

/// One client connection. What is specific to HTTP/1 is here; [`proxy::answer`] takes requests of any version.
async fn serve(stream: TcpStream, client: Arc<Client>, _place: Place) {
    let io = TokioIo::new(Tap { stream, client: client.clone() });
    let answering = client.clone();
    let service = service_fn(move |req| proxy::answer(answering.clone(), req));
    let mut builder = http1::Builder::new();
    // Limits in time are ours, for all connections of a worker at once: a timer for each head costs an allocation a request.
    let max_head = client.worker.shared.limits.max_head;
    builder.header_read_timeout(None).max_buf_size(max_head).max_header_size(max_head);
    let mut conn = pin!(builder.serve_connection(io, service).with_upgrades());
    let mut closing = false;
    std::future::poll_fn(|cx| {
        client.register(cx);
        if client.worker.shared.draining.load(Ordering::Relaxed) && !closing {
            closing = true;
            conn.as_mut().graceful_shutdown();
        }
        // Waiting for a member has an answer of its own.
        if client.expired() && client.phase() != Phase::Waiting {
            return Poll::Ready(());
        }
        match conn.as_mut().poll(cx) {
            Poll::Pending if !client.is_cut_off() => Poll::Pending,
            _ => Poll::Ready(()),
        }
    })
    .await;
    if let Some(tunnel) = client.take_tunnel() {
        tunnel.run(&client).await;
    }
}
