//! One connection from a client: what it is doing, since when, and the bytes of the head that is coming in.

use crate::forwarded::Forwarded;
use crate::gateway::{Limits, Shared};
use crate::proxy::Tunnel;
use crate::socket::poll_write_all_of;
use crate::table::Copy;
use parking_lot::Mutex;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// One worker thread's own things.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    /// Milliseconds since the worker started, as of the last tick: deadlines of seconds need no better clock, and reading one
    /// for each request would cost more than all they do.
    clock: AtomicU64,
    random: AtomicU64,
    pub(crate) table: Mutex<Copy>,
}

impl Worker {
    pub(crate) fn new(index: usize, shared: Arc<Shared>, seed: u64) -> Worker {
        Worker { index, shared, clock: AtomicU64::new(0), random: AtomicU64::new(seed), table: Mutex::default() }
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub(crate) fn tick(&self, now: u64) {
        self.clock.store(now, Ordering::Relaxed);
    }

    /// SplitMix64: spreads load and jitter, guards nothing.
    pub(crate) fn random(&self) -> u64 {
        let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What a connection is doing; each has its own limit in [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Between requests.
    Idle,
    /// Part of a request's head has come.
    Head,
    /// A member is to answer.
    Waiting,
    /// The answer's body is on its way.
    Body,
    /// The protocol was switched; bytes go both ways.
    Tunnel,
}

impl Phase {
    fn from_u8(value: u8) -> Phase {
        [Phase::Idle, Phase::Head, Phase::Waiting, Phase::Body].into_iter().find(|phase| *phase as u8 == value).unwrap_or(Phase::Tunnel)
    }

    fn limit_ms(self, limits: &Limits) -> u64 {
        let limit = match self {
            Phase::Idle => limits.idle_timeout,
            Phase::Head => limits.head_timeout,
            Phase::Waiting => limits.response_timeout,
            Phase::Body => limits.stall_timeout,
            Phase::Tunnel => limits.tunnel_timeout,
        };
        u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Shared by the connection's task, its socket and the body that it is being sent.
pub(crate) struct Client {
    pub(crate) worker: Arc<Worker>,
    pub(crate) forwarded: Forwarded,
    phase: AtomicU8,
    since: AtomicU64,
    expired: AtomicBool,
    tape: Mutex<Vec<u8>>,
    waker: Mutex<Option<Waker>>,
    tunnel: Mutex<Option<Tunnel>>,
}

impl Client {
    pub(crate) fn new(worker: Arc<Worker>, forwarded: Forwarded) -> Client {
        let since = AtomicU64::new(worker.now());
        Client {
            worker,
            forwarded,
            phase: AtomicU8::new(Phase::Idle as u8),
            since,
            expired: AtomicBool::new(false),
            tape: Mutex::default(),
            waker: Mutex::default(),
            tunnel: Mutex::default(),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::from_u8(self.phase.load(Ordering::Relaxed))
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.expired.store(false, Ordering::Relaxed);
        self.progress();
    }

    /// The connection goes on as `tunnel` once HTTP has ended on it.
    pub(crate) fn becomes(&self, tunnel: Tunnel) {
        *self.tunnel.lock() = Some(tunnel);
    }

    pub(crate) fn take_tunnel(&self) -> Option<Tunnel> {
        self.tunnel.lock().take()
    }

    fn progress(&self) {
        self.since.store(self.worker.now(), Ordering::Relaxed);
    }

    /// Remembers whom [`check`](Client::check) and [`wake`](Client::wake) are to wake.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.lock();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    pub(crate) fn wake(&self) {
        if let Some(waker) = self.waker.lock().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Wakes the connection's task if its phase has lasted too long.
    pub(crate) fn check(&self, now: u64) {
        let limit = self.phase().limit_ms(&self.worker.shared.limits);
        if now.saturating_sub(self.since.load(Ordering::Relaxed)) > limit {
            self.expired.store(true, Ordering::Relaxed);
            self.wake();
        }
    }

    /// Whether the phase has lasted too long.
    pub(crate) fn expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    /// The same, and forgets it: the caller does something about it and the connection goes on.
    pub(crate) fn take_expired(&self) -> bool {
        self.expired() && self.expired.swap(false, Ordering::Relaxed)
    }

    /// The bytes that came in since the last answer ended: the head that has just been parsed, if it was not sent ahead of that.
    pub(crate) fn take_tape(&self) -> Vec<u8> {
        std::mem::take(&mut self.tape.lock())
    }

    /// Gives the bytes back, for their room.
    pub(crate) fn recycle(&self, mut tape: Vec<u8>) {
        tape.clear();
        let mut mine = self.tape.lock();
        if mine.is_empty() {
            *mine = tape;
        }
    }

    fn came_in(&self, bytes: &[u8]) {
        let phase = self.phase();
        match phase {
            Phase::Idle => self.enter(Phase::Head),
            // The time for a head counts from its first byte, however slowly the others follow.
            Phase::Head => {}
            _ => self.progress(),
        }
        if matches!(phase, Phase::Idle | Phase::Head) {
            let mut tape = self.tape.lock();
            // A head beyond this is refused for its size.
            let room = self.worker.shared.limits.max_head.saturating_sub(tape.len());
            tape.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    fn went_out(&self) {
        if matches!(self.phase(), Phase::Body | Phase::Tunnel) {
            self.progress();
        }
    }
}

/// The client's socket, which tells its [`Client`] what passes.
pub(crate) struct Tap {
    pub(crate) stream: TcpStream,
    pub(crate) client: Arc<Client>,
}

impl AsyncRead for Tap {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(bytes @ [_, ..]) = buf.filled().get(before..) {
            self.client.came_in(bytes);
        }
        polled
    }
}

impl AsyncWrite for Tap {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if polled.is_ready() {
            self.client.went_out();
        }
        polled
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = poll_write_all_of(Pin::new(&mut self.stream), cx, bufs);
        if polled.is_ready() {
            self.client.went_out();
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
