//! One connection from a client: what it is doing, since when, and the bytes of the head that is coming in.

use crate::forwarded::Forwarded;
use crate::gateway::Shared;
use crate::headers;
use crate::proxy::Tunnel;
use crate::socket::poll_write_all_of;
use crate::table::Copy;
use crate::upstream::Upload;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
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
    /// The answer is out, and the client is still sending what it asked.
    Upload,
    /// The protocol was switched; bytes go both ways.
    Tunnel,
    /// The last answer is out, and what the client still sends is read and dropped.
    Linger,
}

impl Phase {
    const ALL: [Phase; 7] = [Phase::Idle, Phase::Head, Phase::Waiting, Phase::Body, Phase::Upload, Phase::Tunnel, Phase::Linger];

    fn from_u8(value: u8) -> Phase {
        Phase::ALL.get(usize::from(value)).copied().unwrap_or(Phase::Linger)
    }
}

/// How a connection is to end although its answer did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Closed: the client knows how long the answer would have been.
    Close,
    /// Reset: to this client, the end of the connection is the end of the answer.
    Reset,
}

/// Shared by the connection's task, its socket and the body that it is being sent.
pub(crate) struct Client {
    pub(crate) worker: Arc<Worker>,
    pub(crate) forwarded: Forwarded,
    phase: AtomicU8,
    since: AtomicU64,
    expired: AtomicBool,
    /// The client does not take what is ready for it.
    blocked: AtomicBool,
    /// The client has closed its side: it sends no more, and may or may not be there.
    closed: AtomicBool,
    /// The server has asked for more since the last request, and the client is closed.
    asked: AtomicBool,
    /// Of the request's body, if it has one.
    upload: Mutex<Option<Arc<Upload>>>,
    /// The last request's body may not have been read to its end.
    unread: AtomicBool,
    /// Informational responses that are to go out before anything else.
    interim: Mutex<Vec<u8>>,
    informed: AtomicBool,
    /// The server has nothing that it has not written.
    flushed: AtomicBool,
    cut: Mutex<Option<Cut>>,
    /// All that was to go out before the cut has.
    cut_off: AtomicBool,
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
            blocked: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            upload: Mutex::default(),
            unread: AtomicBool::new(false),
            interim: Mutex::default(),
            informed: AtomicBool::new(false),
            flushed: AtomicBool::new(true),
            cut: Mutex::default(),
            cut_off: AtomicBool::new(false),
            tape: Mutex::default(),
            waker: Mutex::default(),
            tunnel: Mutex::default(),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match Phase::from_u8(self.phase.load(Ordering::Relaxed)) {
            Phase::Upload if !self.is_uploading() => Phase::Idle,
            phase => phase,
        }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.expired.store(false, Ordering::Relaxed);
        self.progress();
        if phase == Phase::Idle && self.closed.load(Ordering::Relaxed) {
            // That was the last one: now the server is to hear of it.
            self.wake();
        }
    }

    /// A request has come, with a body or without.
    pub(crate) fn begins(&self, has_body: bool) {
        if self.unread.swap(has_body, Ordering::Relaxed) {
            *self.upload.lock() = None;
        }
        self.asked.store(false, Ordering::Relaxed);
        self.enter(Phase::Waiting);
    }

    /// How far the body of its request has come can be told from `upload`.
    pub(crate) fn uploads(&self, upload: &Arc<Upload>) {
        *self.upload.lock() = Some(upload.clone());
        if self.closed.load(Ordering::Relaxed) {
            upload.close();
        }
    }

    /// Whether the client is still to send a part of its request.
    pub(crate) fn is_uploading(&self) -> bool {
        self.unread.load(Ordering::Relaxed) && !self.upload.lock().as_ref().is_some_and(|upload| upload.ended())
    }

    /// Passes on an informational response, ahead of the one that is to come. It is a hint: while something else waits to be written, or
    /// if there are too many, it is left out.
    pub(crate) fn inform(&self, status: StatusCode, headers: &HeaderMap) {
        let mut interim = self.interim.lock();
        let before = interim.len();
        if self.flushed.load(Ordering::Relaxed) && self.phase() == Phase::Waiting {
            headers::write_interim(&mut interim, status, headers);
        }
        if interim.len() > self.worker.shared.limits.max_head {
            interim.truncate(before);
        }
        self.informed.store(!interim.is_empty(), Ordering::Relaxed);
    }

    /// Ends the connection once all that came of the answer so far has gone out.
    pub(crate) fn cut(&self, how: Cut) {
        *self.cut.lock() = Some(how);
    }

    /// Whether that is done.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
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
        let limit = u64::try_from(self.limit().as_millis()).unwrap_or(u64::MAX);
        if now.saturating_sub(self.since.load(Ordering::Relaxed)) > limit {
            self.expired.store(true, Ordering::Relaxed);
            self.wake();
        }
    }

    /// How long nothing may happen now: it depends on who is to do something.
    fn limit(&self) -> Duration {
        let limits = &self.worker.shared.limits;
        let member = |limit: Duration| if self.closed.load(Ordering::Relaxed) { limit.min(limits.leave_timeout) } else { limit };
        match self.phase() {
            Phase::Idle => limits.idle_timeout,
            Phase::Head => limits.head_timeout,
            Phase::Upload => limits.stall_timeout,
            Phase::Waiting if self.upload.lock().as_ref().is_some_and(|upload| upload.awaited()) => limits.stall_timeout,
            Phase::Waiting => member(limits.response_timeout),
            Phase::Body if self.blocked.load(Ordering::Relaxed) => limits.stall_timeout,
            Phase::Body => member(limits.stream_timeout),
            Phase::Tunnel => limits.tunnel_timeout,
            Phase::Linger => limits.linger_timeout,
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

    /// The client has closed its side. Whether the server is to hear so now.
    ///
    /// It would drop the request that it is answering; but whoever sends no more may still read. So it hears between requests only, and
    /// there when it asks again: the first time it may have just read a request that nobody has seen yet.
    fn poll_end(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed.swap(true, Ordering::Relaxed)
            && let Some(upload) = &*self.upload.lock()
        {
            upload.close();
        }
        match self.phase() {
            Phase::Waiting | Phase::Body | Phase::Upload => Poll::Pending,
            Phase::Idle | Phase::Head if !self.asked.swap(true, Ordering::Relaxed) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Phase::Idle | Phase::Head | Phase::Tunnel | Phase::Linger => Poll::Ready(Ok(())),
        }
    }

    fn went_out(&self, polled: &Poll<io::Result<usize>>) {
        self.blocked.store(polled.is_pending(), Ordering::Relaxed);
        if polled.is_ready() && matches!(self.phase(), Phase::Body | Phase::Tunnel) {
            self.progress();
        }
    }

    /// Whether the client has more to say than was read, so that closing would destroy what it has not read yet.
    fn interrupted(&self, stream: &TcpStream) -> bool {
        if self.phase() == Phase::Head || self.is_uploading() {
            return true;
        }
        matches!(stream.try_read(&mut [0; 1]), Ok(1..))
    }
}

/// The client's socket, which tells its [`Client`] what passes.
pub(crate) struct Tap {
    pub(crate) stream: TcpStream,
    pub(crate) client: Arc<Client>,
}

impl Tap {
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.client.informed.load(Ordering::Relaxed) {
            let mut interim = self.client.interim.lock();
            while !interim.is_empty() {
                let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &interim))?;
                interim.drain(..written);
            }
            self.client.informed.store(false, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }

    /// A connection that is closed while bytes come in is reset, and what the client has not read yet of the answer is lost to it. So
    /// they are read for a while.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut dropped = [MaybeUninit::uninit(); 4096];
        loop {
            let mut buf = ReadBuf::uninit(&mut dropped);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncRead for Tap {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.client.closed.load(Ordering::Relaxed) {
            return self.client.poll_end(cx);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        match buf.filled().get(before..) {
            Some(bytes @ [_, ..]) => {
                self.client.came_in(bytes);
                Poll::Ready(Ok(()))
            }
            _ => self.client.poll_end(cx),
        }
    }
}

impl AsyncWrite for Tap {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        self.client.flushed.store(false, Ordering::Relaxed);
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.client.went_out(&polled);
        polled
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        self.client.flushed.store(false, Ordering::Relaxed);
        let polled = poll_write_all_of(Pin::new(&mut self.stream), cx, bufs);
        self.client.went_out(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_interim(cx))?;
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.client.flushed.store(true, Ordering::Relaxed);
        // The server comes here when all that it was given has been written.
        if let Some(cut) = *self.client.cut.lock() {
            if cut == Cut::Reset {
                self.stream.set_zero_linger()?;
            }
            self.client.cut_off.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.client.phase() != Phase::Linger {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            let over = self.client.closed.load(Ordering::Relaxed) || self.client.phase() == Phase::Tunnel;
            if over || !self.client.interrupted(&self.stream) {
                return Poll::Ready(Ok(()));
            }
            self.client.enter(Phase::Linger);
        }
        self.poll_linger(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Limits;

    /// A client of a worker whose clock is moved by hand; each limit is one that no other has.
    fn client() -> Client {
        let mut limits = Limits::default();
        let all = [
            &mut limits.idle_timeout,
            &mut limits.head_timeout,
            &mut limits.response_timeout,
            &mut limits.stream_timeout,
            &mut limits.stall_timeout,
            &mut limits.linger_timeout,
            &mut limits.tunnel_timeout,
            &mut limits.leave_timeout,
        ];
        for (n, limit) in all.into_iter().enumerate() {
            *limit = Duration::from_secs(800 - 100 * n as u64);
        }
        let worker = Worker::new(0, Arc::new(Shared::with(limits)), 1);
        Client::new(Arc::new(worker), Forwarded::new([127, 0, 0, 1].into(), &[]))
    }

    /// After how many seconds without anything the client is given up.
    fn lasts(client: &Client) -> u64 {
        let start = client.worker.now();
        let expires = |seconds: &u64| {
            client.check(start + seconds * 1000 + 1);
            client.take_expired()
        };
        (1..=800).find(expires).unwrap()
    }

    #[test]
    fn each_limit_is_for_whoever_is_to_do_something() {
        let client = client();
        let uploads = || {
            client.begins(true);
            let upload = Arc::<Upload>::default();
            client.uploads(&upload);
            upload
        };
        assert_eq!(lasts(&client), 800, "idle");
        client.came_in(b"GET");
        assert_eq!(lasts(&client), 700, "in a head");
        client.begins(false);
        assert_eq!(lasts(&client), 600, "a member that does not answer");
        let upload = uploads();
        assert_eq!(lasts(&client), 600, "a member that does not read");
        upload.awaits(true);
        assert_eq!(lasts(&client), 400, "a client that does not send");
        client.enter(Phase::Body);
        assert_eq!(lasts(&client), 500, "a member that is silent within a response");
        client.went_out(&Poll::Pending);
        assert_eq!(lasts(&client), 400, "a client that does not read");
        client.went_out(&Poll::Ready(Ok(1)));
        assert_eq!(lasts(&client), 500, "and one that does again");
        client.enter(Phase::Upload);
        assert_eq!(lasts(&client), 400, "a client that does not send the rest of what was answered");
        client.enter(Phase::Linger);
        assert_eq!(lasts(&client), 300, "a client that does not take its last response");
        client.enter(Phase::Tunnel);
        assert_eq!(lasts(&client), 200, "both sides of a tunnel");
        client.begins(false);
        client.closed.store(true, Ordering::Relaxed);
        assert_eq!(lasts(&client), 100, "a member that does not answer one who may be gone");
        client.enter(Phase::Body);
        assert_eq!(lasts(&client), 100, "a member that is silent towards one who may be gone");
    }

    #[test]
    fn a_head_has_its_time_however_slowly_it_comes_and_a_body_as_long_as_it_comes() {
        let client = client();
        for second in 0..700 {
            client.worker.tick(second * 1000);
            client.came_in(b"x");
            client.check(second * 1000);
            assert!(!client.expired());
        }
        client.check(700_001);
        assert!(client.take_expired());
        client.begins(true);
        for second in 700..9000 {
            client.worker.tick(second * 1000);
            client.came_in(b"x");
            client.check(second * 1000);
            assert!(!client.expired());
        }
    }
}
