//! Writing to sockets the way that costs the kernel least.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Up to this much is copied together: one plain `send` of a small answer costs less than a `writev` of its head and its body.
const SMALL: usize = 2048;

/// Writes what `bufs` hold, or the first part of it.
pub(crate) fn poll_write_all_of(stream: Pin<&mut TcpStream>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
    if let [buf] = bufs {
        return stream.poll_write(cx, buf);
    }
    let mut together = [0; SMALL];
    let mut len = 0;
    for buf in bufs {
        match together.get_mut(len..len + buf.len()) {
            Some(room) => room.copy_from_slice(buf),
            None => return stream.poll_write_vectored(cx, bufs),
        }
        len += buf.len();
    }
    stream.poll_write(cx, &together[..len])
}

/// A socket to a member.
///
/// A member may answer before it has read a request, and close: then writing fails, while its response waits to be read. So what cannot
/// be written is dropped here without a word, and reading goes on until it says that the connection has ended.
pub(crate) struct Socket {
    pub(crate) stream: TcpStream,
    /// The member takes no more bytes.
    deaf: Arc<AtomicBool>,
}

impl Socket {
    /// The socket, and what says whether the member still takes bytes.
    pub(crate) fn new(stream: TcpStream) -> (Socket, Arc<AtomicBool>) {
        let deaf = Arc::<AtomicBool>::default();
        (Socket { stream, deaf: deaf.clone() }, deaf)
    }

    /// What comes of writing `all` bytes.
    fn written(&self, polled: Poll<io::Result<usize>>, all: usize) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Ready(Err(_)) => {
                self.deaf.store(true, Ordering::Relaxed);
                Poll::Ready(Ok(all))
            }
            other => other,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.deaf.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(buf.len()));
        }
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(polled, buf.len())
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if self.deaf.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(all));
        }
        let polled = poll_write_all_of(Pin::new(&mut self.stream), cx, bufs);
        self.written(polled, all)
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
