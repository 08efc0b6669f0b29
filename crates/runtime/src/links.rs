//! Open links: a reader and a writer task each.
//!
//! What is sent while nothing waits for an acknowledgement is written at once, by the task that sends it: waking another one costs more
//! than the write. Once something is under way the writer task gathers what comes and writes it together.

use crate::node::Inner;
use crate::stats::Counters;
use crate::transport::{Reader, Writer};
use bytes::{Buf, BytesMut};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use outlive_core::engine::{Engine, LinkEvent};
use outlive_core::member::Node;
use outlive_core::output::{LinkId, Live};
use outlive_core::stamp::Life;
use outlive_core::wire::FrameError;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::sync::{Notify, watch};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;
/// A buffer that has grown beyond this is given back when it is empty.
const BUFFER_KEEP: usize = 1 << 20;

/// One open link.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) life: Life,
    /// Where the peer says that it listens.
    pub(crate) addr: Box<str>,
    observer: bool,
    writer: Writer,
    /// What was taken and not written yet. Whoever writes holds it, so that bytes leave in the order in which they were taken.
    pending: Mutex<Pending>,
    flush: Notify,
    closing: watch::Sender<bool>,
    /// Write what is there, then close.
    last: AtomicBool,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    written: usize,
}

/// What a write came to.
enum Written {
    /// There was nothing to write.
    Nothing,
    /// What was there then.
    All,
    /// The socket takes no more for now.
    Part,
    Failed,
}

/// The open links.
#[derive(Debug, Default)]
pub(crate) struct Links {
    drawn: AtomicU64,
    open: RwLock<HashMap<LinkId, Arc<Line>>>,
}

impl Links {
    pub(crate) fn flush<L: Live>(&self, id: LinkId, engine: &Engine<L>, counters: &Counters) {
        let open = self.open.read();
        let Some(line) = open.get(&id) else { return };
        let done = !engine.is_busy(id)
            && line.pending.try_lock().is_some_and(|mut pending| {
                // What comes meanwhile is another's: that task finds this one writing, and leaves it to the writer.
                matches!(line.write(&mut pending, id, engine, counters), Written::Nothing | Written::All)
            });
        if !done {
            // Also if it failed: the writer finds that out as well.
            line.flush.notify_one();
        }
    }

    pub(crate) fn close(&self, id: LinkId) {
        if let Some(line) = self.open.read().get(&id) {
            line.closing.send_replace(true);
        }
    }

    pub(crate) fn close_all(&self) {
        for line in self.open.read().values() {
            line.closing.send_replace(true);
        }
    }

    /// Lets every link write what it has, then closes them.
    pub(crate) fn finish(&self) {
        for line in self.open.read().values() {
            line.last.store(true, Ordering::Release);
            line.flush.notify_one();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.read().is_empty()
    }

    /// Whether a link to this life is open.
    pub(crate) fn reaches(&self, life: Life) -> bool {
        self.open.read().values().any(|line| line.life == life)
    }

    /// Whether a link to this life is open, and it is an observer.
    pub(crate) fn observes(&self, life: Life) -> bool {
        self.open.read().values().any(|line| line.life == life && line.observer)
    }

    /// Whether a link to anybody but observers is open.
    pub(crate) fn meets_anyone(&self) -> bool {
        self.open.read().values().any(|line| !line.observer)
    }

    /// Whether a link is open to whoever listens there.
    pub(crate) fn reaches_addr(&self, addr: &str) -> bool {
        self.open.read().values().any(|line| &*line.addr == addr)
    }
}

impl Line {
    /// Writes once, without waiting.
    fn write<L: Live>(&self, pending: &mut Pending, id: LinkId, engine: &Engine<L>, counters: &Counters) -> Written {
        if pending.written == pending.bytes.len() {
            pending.written = 0;
            pending.bytes.clear();
            if pending.bytes.capacity() > BUFFER_KEEP {
                pending.bytes = Vec::new();
            }
            engine.take_bytes(id, &mut pending.bytes);
        }
        let rest = pending.bytes.get(pending.written..).unwrap_or_default();
        let done = if rest.is_empty() { Written::Nothing } else { Written::All };
        if !rest.is_empty() {
            match self.writer.try_write(rest) {
                Ok(n) if n > 0 => {
                    pending.written += n;
                    counters.sent_bytes.add_many(n as u64);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Written::Part,
                _ => return Written::Failed,
            }
        }
        match self.writer.flush() {
            Ok(true) if pending.written == pending.bytes.len() => done,
            Ok(_) => Written::Part,
            Err(_) => Written::Failed,
        }
    }
}

/// Runs a link until it closes.
pub(crate) async fn run<L: Live>(inner: Arc<Inner<L>>, (reader, writer): (Reader, Writer), node: Node, initiated: bool) {
    let id = LinkId(inner.links.drawn.fetch_add(1, Ordering::Relaxed));
    let (closing, closed) = watch::channel(false);
    let (flush, last) = (Notify::new(), AtomicBool::new(false));
    let (life, addr, observer) = (node.life, node.addr.clone(), node.observer);
    let line = Arc::new(Line { life, addr, observer, writer, pending: Mutex::default(), flush, closing, last });
    inner.links.open.write().insert(id, line.clone());
    if inner.is_dead() {
        // Whoever closed all links may have missed this one.
        inner.links.open.write().remove(&id);
        return;
    }
    tracing::debug!(name = %node.name, life = ?node.life, initiated, "link up");
    inner.call_timed(|e, now, out| e.handle_link(now, id, LinkEvent::Up { node, initiated }, out));
    if !line.observer {
        inner.formed.send_replace(true);
    }
    let writing = tokio::spawn(write(inner.clone(), id, line.clone()));
    read(&inner, id, reader, closed).await;
    writing.abort();
    inner.links.open.write().remove(&id);
    inner.call_timed(|e, now, out| e.handle_link(now, id, LinkEvent::Closed, out));
    tracing::debug!(life = ?line.life, "link closed");
}

async fn read<L: Live>(inner: &Arc<Inner<L>>, id: LinkId, mut reader: Reader, mut closed: watch::Receiver<bool>) {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    loop {
        buffer.reserve(CHUNK / 4);
        let read = tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => return,
            read = reader.read_buf(&mut buffer) => read,
        };
        match read {
            Ok(n) if n > 0 => inner.counters.received_bytes.add_many(n as u64),
            _ => return,
        }
        // The buffer holds less than one frame and one chunk: the engine refuses longer frames by their first bytes.
        match inner.call_timed(|e, now, out| e.handle_bytes(now, id, &buffer, out)) {
            Some(Ok(done)) => buffer.advance(done),
            // Another connection to this peer has taken its place, and this one is closed in a moment.
            Some(Err(FrameError::NoLink)) => return,
            Some(Err(error)) => {
                inner.counters.bad_frames.add();
                tracing::warn!(%error, "a peer sent what it should not; the link is closed");
                return;
            }
            None => return,
        }
        if buffer.is_empty() && buffer.capacity() > BUFFER_KEEP {
            buffer = BytesMut::with_capacity(CHUNK);
        }
    }
}

async fn write<L: Live>(inner: Arc<Inner<L>>, id: LinkId, line: Arc<Line>) {
    loop {
        line.flush.notified().await;
        // What other tasks are about to send goes along in the same write.
        tokio::task::yield_now().await;
        let last = line.last.load(Ordering::Acquire);
        loop {
            let written = line.write(&mut line.pending.lock(), id, &inner.engine, &inner.counters);
            match written {
                Written::Nothing => break,
                Written::All => {}
                Written::Part if line.writer.writable().await.is_ok() => {}
                Written::Part | Written::Failed => {
                    line.closing.send_replace(true);
                    return;
                }
            }
        }
        if last {
            let _ = line.writer.finish();
            // The peer closes in answer; one that does not is not waited for.
            tokio::time::sleep(Duration::from_secs(1)).await;
            line.closing.send_replace(true);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;
    use crate::handshake::{self, Hello, Standing};
    use crate::transport;
    use bytes::Bytes;
    use outlive_core::config::Config;
    use outlive_core::id::SessionKey;
    use outlive_core::limits::OUTBOX_MAX;
    use outlive_core::record::{Base, Change};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;

    async fn node() -> crate::Node<()> {
        let config = NodeConfig {
            commit_bound: Duration::from_millis(20),
            engine: Config { shards: 2, ..Config::default() },
            ..NodeConfig::default()
        };
        crate::Node::start(config).await.unwrap()
    }

    async fn connect(node: &crate::Node<()>) -> TcpStream {
        TcpStream::connect(node.me().addr.to_string()).await.unwrap()
    }

    /// A peer that knows the secret and then does what the test wants.
    async fn peer(node: &crate::Node<()>) -> (Reader, Writer) {
        let (mut reader, mut writer) = transport::accept(connect(node).await).unwrap();
        let me = Node {
            name: "peer".into(),
            addr: "127.0.0.1:1".into(),
            boot: 1,
            life: Life::new(77),
            zone: 0,
            observer: false,
            http: "".into(),
            backups: 1,
            stores: false,
        };
        let hello = Hello::new("default", None, Standing::New, &me, [3; 32]);
        handshake::dial((&mut reader, &mut writer), &hello, &node.inner.secret.peer_key(), |_| None).await.unwrap();
        until(|| node.inner.links.reaches(Life::new(77))).await;
        (reader, writer)
    }

    async fn until(mut holds: impl FnMut() -> bool) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
    }

    async fn closed(reader: &mut (impl tokio::io::AsyncRead + Unpin)) {
        let mut bytes = vec![0; 1 << 16];
        let wait = async { while matches!(reader.read(&mut bytes).await, Ok(n) if n > 0) {} };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
    }

    #[tokio::test]
    async fn garbage_before_the_handshake_closes_the_connection() {
        let node = node().await;
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0, 5, 0, 1, 2, 3, 4], &[0, 3, 9, 9, 9], &[0xff; 5000]] {
            let mut stream = connect(&node).await;
            stream.write_all(garbage).await.unwrap();
            closed(&mut stream).await;
        }
        until(|| node.stats().refused_connections == 5).await;
        assert_eq!(node.members().len(), 1);
    }

    #[tokio::test]
    async fn garbage_after_the_handshake_closes_the_link() {
        let node = node().await;
        // A frame number that is not due, a length beyond the limit, a message that is none.
        let garbage = [&[1, 0, 0, 9, 0][..], &[0xff, 0xff, 0xff, 0, 1], &[3, 0, 0, 0, 250, 250], &[0, 0, 0, 0]];
        for (garbage, bad) in garbage.into_iter().zip(1..) {
            let (mut reader, mut writer) = peer(&node).await;
            writer.write_all(garbage).await.unwrap();
            closed(&mut reader).await;
            until(|| node.stats().bad_frames == bad && !node.inner.links.reaches(Life::new(77))).await;
        }
        assert!(node.create(SessionKey::from_bytes([1; 16])).is_ok());
    }

    /// Of two connections to one peer one goes: what comes on it before its reader has heard of that is no bad frame.
    #[tokio::test]
    async fn bytes_on_a_link_that_this_node_has_given_up_are_nobodys_fault() {
        let node = node().await;
        let (mut reader, mut writer) = peer(&node).await;
        let id = *node.inner.links.open.read().keys().next().unwrap();
        node.inner.call_timed(|e, now, out| e.handle_link(now, id, LinkEvent::Closed, out));
        writer.write_all(&[0, 0, 0, 0]).await.unwrap();
        closed(&mut reader).await;
        until(|| node.inner.links.is_empty()).await;
        assert_eq!(node.stats().bad_frames, 0);
    }

    #[tokio::test]
    async fn silent_connections_of_one_source_are_bounded() {
        let node = node().await;
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(connect(&node).await);
        }
        // Those before may still be on their way to being counted.
        let refused = async {
            loop {
                let mut more = connect(&node).await;
                if let Ok(Ok(0)) = tokio::time::timeout(Duration::from_millis(200), more.read(&mut [0; 1])).await {
                    return;
                }
                held.push(more);
            }
        };
        tokio::time::timeout(Duration::from_secs(60), refused).await.unwrap();
        drop(held);
        // They count no more when they are gone.
        until(|| node.inner.dials.half_open() == 0).await;
        peer(&node).await;
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_dropped_before_it_fills_the_memory() {
        let node = node().await;
        let (mut reader, _writer) = peer(&node).await;
        until(|| node.stats().engine.members == 2).await;
        let big = Bytes::from(vec![1; 400 << 10]);
        let mut sent = 0;
        for n in 0_u32.. {
            if !node.inner.links.reaches(Life::new(77)) {
                return closed(&mut reader).await;
            }
            if node.stats().engine.members < 2 {
                // A machine so busy that the silent peer was dead before its outbox was full: it gets nothing more either.
                return;
            }
            let key = SessionKey::from_bytes(*blake3::hash(&n.to_be_bytes()).as_bytes().first_chunk().unwrap());
            let at = node.create(key).unwrap();
            let change = Change { name: "big".into(), base: Base::Absent, value: Some(big.clone()) };
            // A silent peer is a dead one before long, so the answers are not waited for.
            drop(node.commit(&at, &[change]));
            node.close(&at);
            tokio::task::yield_now().await;
            sent += big.len();
            // One outbox is being written, another filled behind it; what sockets hold is little beside them.
            assert!(sent < OUTBOX_MAX * 3, "the link is still open after {sent} bytes");
        }
    }

    #[tokio::test]
    async fn what_is_sent_alone_is_written_at_once_and_what_follows_is_gathered() {
        let node = node().await;
        let (reader, _writer) = peer(&node).await;
        until(|| node.stats().engine.members == 2).await;
        let (socket, mut seen) = (socket2::SockRef::from(reader.socket()), Vec::new());
        // What lies in the socket, without giving another task its turn.
        let mut arrived = |name: &str| {
            let mut bytes = [0; 1 << 16];
            let n = std::io::Read::read(&mut &*socket, &mut bytes).unwrap_or(0);
            seen.extend_from_slice(&bytes[..n]);
            seen.windows(name.len()).any(|part| part == name.as_bytes())
        };
        let at = node.create(SessionKey::from_bytes([1; 16])).unwrap();
        let change = |name: &str| Change { name: name.into(), base: Base::Absent, value: Some(Bytes::from_static(b"1")) };
        drop(node.commit(&at, &[change("first")]));
        assert!(arrived("first"));
        // Its acknowledgement is due.
        drop(node.commit(&at, &[change("second")]));
        assert!(!arrived("second"));
        until(|| arrived("second")).await;
    }

    #[tokio::test]
    async fn who_commits_under_a_lock_has_nothing_written_there() {
        let node = node().await;
        let (mut reader, _writer) = peer(&node).await;
        until(|| node.stats().engine.members == 2).await;
        let at = node.create(SessionKey::from_bytes([1; 16])).unwrap();
        let sent = || node.stats().sent_bytes;
        let before = sent();
        let mut unsent = node.unsent();
        let change = Change { name: "n".into(), base: Base::Absent, value: Some(Bytes::from_static(b"1")) };
        let commit = node.commit_unsent(&at, &[change], &mut unsent);
        assert!(matches!(commit, crate::Commit::Applied(Some(_), _)));
        assert_eq!(sent(), before);
        drop(unsent);
        assert!(sent() > before);
        assert!(reader.read(&mut [0; 1 << 10]).await.unwrap() > 0);
    }
}
