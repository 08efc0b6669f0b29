//! Open links: a reader and a writer task each.

use crate::node::Inner;
use crate::transport::{Reader, Writer};
use bytes::{Buf, BytesMut};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use outlive_core::engine::LinkEvent;
use outlive_core::member::Node;
use outlive_core::output::{LinkId, Live};
use outlive_core::stamp::Life;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
    flush: Notify,
    closing: watch::Sender<bool>,
    /// Write what is there, then close.
    last: AtomicBool,
}

/// The open links.
#[derive(Debug, Default)]
pub(crate) struct Links {
    drawn: AtomicU64,
    open: RwLock<HashMap<LinkId, Arc<Line>>>,
}

impl Links {
    pub(crate) fn flush(&self, id: LinkId) {
        if let Some(line) = self.open.read().get(&id) {
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

    /// Whether a link is open to whoever listens there.
    pub(crate) fn reaches_addr(&self, addr: &str) -> bool {
        self.open.read().values().any(|line| &*line.addr == addr)
    }
}

/// Runs a link until it closes.
pub(crate) async fn run<L: Live>(inner: Arc<Inner<L>>, (reader, writer): (Reader, Writer), node: Node, initiated: bool) {
    let id = LinkId(inner.links.drawn.fetch_add(1, Ordering::Relaxed));
    let (closing, closed) = watch::channel(false);
    let (flush, last) = (Notify::new(), AtomicBool::new(false));
    let line = Arc::new(Line { life: node.life, addr: node.addr.clone(), flush, closing, last });
    inner.links.open.write().insert(id, line.clone());
    if inner.is_dead() {
        // Whoever closed all links may have missed this one.
        inner.links.open.write().remove(&id);
        return;
    }
    tracing::info!(name = %node.name, life = ?node.life, initiated, "link up");
    inner.call_timed(|e, now, out| e.handle_link(now, id, LinkEvent::Up { node, initiated }, out));
    inner.formed.send_replace(true);
    let writing = tokio::spawn(write(inner.clone(), id, line.clone(), writer));
    read(&inner, id, reader, closed).await;
    writing.abort();
    inner.links.open.write().remove(&id);
    inner.call_timed(|e, now, out| e.handle_link(now, id, LinkEvent::Closed, out));
    tracing::info!(life = ?line.life, "link closed");
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
        if !matches!(read, Ok(n) if n > 0) {
            return;
        }
        // The buffer holds less than one frame and one chunk: the engine refuses longer frames by their first bytes.
        match inner.call_timed(|e, now, out| e.handle_bytes(now, id, &buffer, out)) {
            Some(Ok(done)) => buffer.advance(done),
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

async fn write<L: Live>(inner: Arc<Inner<L>>, id: LinkId, line: Arc<Line>, mut writer: Writer) {
    let mut bytes = Vec::new();
    loop {
        line.flush.notified().await;
        // What other tasks are about to send goes along in the same write.
        tokio::task::yield_now().await;
        let last = line.last.load(Ordering::Acquire);
        loop {
            inner.engine.take_bytes(id, &mut bytes);
            if bytes.is_empty() {
                break;
            }
            if writer.write_all(&bytes).await.is_err() {
                line.closing.send_replace(true);
                return;
            }
            bytes.clear();
            if bytes.capacity() > BUFFER_KEEP {
                bytes = Vec::new();
            }
        }
        if last {
            let _ = writer.shutdown().await;
            // The peer closes in answer; one that does not is not waited for.
            tokio::time::sleep(Duration::from_secs(1)).await;
            line.closing.send_replace(true);
            return;
        }
    }
}
