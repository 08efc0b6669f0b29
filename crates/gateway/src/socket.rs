//! Writing to sockets the way that costs the kernel least.

use std::io::{self, IoSlice};
use std::pin::Pin;
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
pub(crate) struct Socket(pub(crate) TcpStream);

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        poll_write_all_of(Pin::new(&mut self.0), cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
