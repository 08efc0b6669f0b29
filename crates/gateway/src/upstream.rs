//! Connections to members: opened, used by one request at a time, kept for the next.
//!
//! A connection is driven by the task whose request it carries, not by a task of its own. That spares two wake-ups a request,
//! and a client that goes away takes its connection, and so its request, with it.

use crate::client::Client;
use crate::socket::Socket;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use outlive_core::address::Address;
use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;

/// The body on its way to a member.
pub(crate) enum Outbound {
    Empty,
    Stream(Incoming, Arc<Upload>),
}

/// How far a client's body has come.
#[derive(Default)]
pub(crate) struct Upload {
    ended: AtomicBool,
    broken: AtomicBool,
    awaited: AtomicBool,
    closed: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Upload {
    /// The last of it has been taken.
    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// The client sent something that is no body, or less than it announced.
    pub(crate) fn broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// The member would take more than has come: it is the client who is slow.
    pub(crate) fn awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn awaits(&self, awaited: bool) {
        self.awaited.store(awaited, Ordering::Relaxed);
    }

    /// Nothing more will come in from the client.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(waiting) = self.waiting.lock().take() {
            waiting.wake();
        }
    }

    fn poll_next(&self, incoming: &mut Incoming, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut *incoming).poll_frame(cx);
        self.awaited.store(frame.is_pending(), Ordering::Relaxed);
        match frame {
            Poll::Ready(Some(Err(error))) => {
                self.broken.store(true, Ordering::Relaxed);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.ended.store(incoming.is_end_stream(), Ordering::Relaxed);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.ended.store(true, Ordering::Relaxed);
                Poll::Ready(None)
            }
            // The server asks the socket for more only when all that came before is in here, and it was told that there is no more.
            Poll::Pending if self.closed.load(Ordering::Relaxed) => {
                self.broken.store(true, Ordering::Relaxed);
                Poll::Ready(Some(Err(Box::new(io::Error::from(io::ErrorKind::UnexpectedEof)))))
            }
            Poll::Pending => {
                *self.waiting.lock() = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl Outbound {
    /// The body and, if there is any, how far it will have come.
    pub(crate) fn new(incoming: Incoming) -> (Outbound, Option<Arc<Upload>>) {
        if incoming.is_end_stream() {
            return (Outbound::Empty, None);
        }
        let upload = Arc::<Upload>::default();
        (Outbound::Stream(incoming, upload.clone()), Some(upload))
    }
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Outbound::Empty => Poll::Ready(None),
            Outbound::Stream(incoming, upload) => upload.poll_next(incoming, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outbound::Empty => true,
            Outbound::Stream(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outbound::Empty => SizeHint::with_exact(0),
            Outbound::Stream(incoming, _) => incoming.size_hint(),
        }
    }
}

/// One connection to a member.
pub(crate) struct Upstream {
    sender: SendRequest<Outbound>,
    conn: Option<Connection<TokioIo<Socket>, Outbound>>,
    ended: bool,
    deaf: Arc<AtomicBool>,
    bell: Arc<Bell>,
    waker: Waker,
}

/// Wakes whoever drives the connection now, but not while that one is handing something to it or taking something from it: the
/// two ends of each of hyper's channels are in one task here, and would wake it for what it is about to see anyway.
#[derive(Default)]
struct Bell {
    driver: Mutex<Option<Waker>>,
    muted: AtomicBool,
}

impl Bell {
    fn muted<T>(&self, body: impl FnOnce() -> T) -> T {
        self.muted.store(true, Ordering::Relaxed);
        let value = body();
        self.muted.store(false, Ordering::Relaxed);
        value
    }

    fn answers_to(&self, cx: &Context<'_>) {
        let mut driver = self.driver.lock();
        if !driver.as_ref().is_some_and(|driver| driver.will_wake(cx.waker())) {
            *driver = Some(cx.waker().clone());
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Bell>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Bell>) {
        if !self.muted.load(Ordering::Relaxed)
            && let Some(driver) = self.driver.lock().as_ref()
        {
            driver.wake_by_ref();
        }
    }
}

/// Why there is no answer.
pub(crate) enum Broken {
    /// Nothing of the request was sent; here it is.
    Unsent(Box<Request<Outbound>>),
    /// It was sent, or part of it, and the connection broke before an answer.
    Sent,
    /// The member answered something that is no response.
    Strange(String),
    /// The member took too long.
    TimedOut,
}

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// A connection to the first address of `addr` that accepts one. Each has `timeout`, and so does resolving a name.
pub(crate) async fn dial(addr: &Address, timeout: Duration) -> io::Result<TcpStream> {
    let timed_out = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    let within = async |addr| tokio::time::timeout(timeout, TcpStream::connect(addr)).await.unwrap_or_else(|_| Err(timed_out()));
    if let Some(ip) = addr.ip() {
        return within(SocketAddr::new(ip, addr.port())).await;
    }
    // Every time anew: what a name stands for changes while a gateway runs.
    let resolving = tokio::time::timeout(timeout, tokio::net::lookup_host((addr.host(), addr.port())));
    let addresses = resolving.await.map_err(|_| timed_out())?.map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in addresses.take(MAX_ADDRESSES) {
        match within(addr).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Upstream {
    pub(crate) async fn connect(addr: &Address, timeout: Duration, max_head: usize) -> io::Result<Box<Upstream>> {
        let stream = dial(addr, timeout).await?;
        stream.set_nodelay(true)?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(max_head).max_header_size(max_head);
        let (socket, deaf) = Socket::new(stream);
        let (sender, conn) = builder.handshake(TokioIo::new(socket)).await.map_err(io::Error::other)?;
        let bell = Arc::<Bell>::default();
        let waker = Waker::from(bell.clone());
        Ok(Box::new(Upstream { sender, conn: Some(conn), ended: false, deaf, bell, waker }))
    }

    /// Moves bytes in both directions as far as they go. Whoever was the last to pass its waker is woken to do it again.
    fn drive(&mut self) {
        if let Some(conn) = &mut self.conn
            && !self.ended
        {
            self.ended = Pin::new(conn).poll(&mut Context::from_waker(&self.waker)).is_ready();
        }
    }

    /// Sends `req` and waits for the head of the answer. The body of the answer comes as long as this is driven on.
    pub(crate) async fn exchange(&mut self, req: Request<Outbound>, client: &Client) -> Result<Response<Incoming>, Broken> {
        let bell = self.bell.clone();
        let mut answer = pin!(unconstrained(bell.muted(|| self.sender.try_send_request(req))));
        std::future::poll_fn(|cx| {
            if client.take_expired() {
                return Poll::Ready(Err(Broken::TimedOut));
            }
            self.bell.answers_to(cx);
            self.drive();
            // Only `drive`, just now, can have brought the answer, so there is nobody to wake for it.
            let mut nobody = Context::from_waker(Waker::noop());
            let mut polled = answer.as_mut().poll(&mut nobody);
            if polled.is_pending() && self.ended {
                self.conn = None;
                polled = answer.as_mut().poll(&mut nobody);
            }
            polled.map(|answer| {
                answer.map_err(|mut error| match error.take_message() {
                    Some(req) => Broken::Unsent(Box::new(req)),
                    None if error.error().is_parse() => Broken::Strange(error.error().to_string()),
                    None => Broken::Sent,
                })
            })
        })
        .await
    }

    /// The next frame of the answer's body.
    pub(crate) fn poll_body(&mut self, body: &mut Incoming, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut nobody = Context::from_waker(Waker::noop());
        let bell = self.bell.clone();
        let mut polled = bell.muted(|| Pin::new(&mut *body).poll_frame(&mut nobody));
        if polled.is_pending() {
            self.bell.answers_to(cx);
            self.drive();
            if self.ended {
                // Whatever was received is in the channel; a body that is not complete by now ends in an error.
                self.conn = None;
            }
            polled = bell.muted(|| Pin::new(&mut *body).poll_frame(&mut nobody));
        }
        polled
    }

    /// Whether another request may be sent, once nobody drives it any more.
    fn settle(&mut self) -> bool {
        *self.bell.driver.lock() = None;
        if !self.sender.is_ready() {
            self.drive();
        }
        !self.ended && self.conn.is_some() && self.sender.is_ready() && !self.deaf.load(Ordering::Relaxed)
    }

    /// Whether it is still good after it has been idle.
    fn alive(&mut self) -> bool {
        self.drive();
        !self.ended && self.sender.is_ready()
    }

    /// The raw connection after the member has switched protocols, and what it has already said in the new one.
    pub(crate) async fn into_raw(mut self: Box<Self>) -> Option<(TcpStream, Bytes)> {
        if !self.ended {
            self.conn.as_mut()?.await.ok()?;
        }
        let parts = self.conn?.into_parts();
        Some((parts.io.into_inner().stream, parts.read_buf))
    }

    /// Lets the connection go on by itself until the task is aborted or the connection ends.
    pub(crate) fn detach(mut self: Box<Self>) -> tokio::task::AbortHandle {
        tokio::spawn(async move {
            if let Some(conn) = self.conn.take().filter(|_| !self.ended) {
                let _ = conn.await;
            }
        })
        .abort_handle()
    }
}

/// Idle connections of one worker to one member, the last used on top.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<(u64, Box<Upstream>)>>);

/// Idle connections that one worker keeps to one member; more are closed after use.
const MAX_IDLE: usize = 256;

impl Pool {
    pub(crate) fn take(&self) -> Option<Box<Upstream>> {
        self.0.lock().pop().map(|(_, upstream)| upstream)
    }

    /// Keeps the connection if it can be used again.
    pub(crate) fn give(&self, now: u64, mut upstream: Box<Upstream>) {
        if upstream.settle() {
            let mut idle = self.0.lock();
            if idle.len() < MAX_IDLE {
                idle.push((now, upstream));
            }
        }
    }

    /// Closes what has been idle since before `since` and what the member has closed.
    pub(crate) fn sweep(&self, since: u64) {
        self.0.lock().retain_mut(|(used, upstream)| *used >= since && upstream.alive());
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({})", self.0.lock().len())
    }
}
