//! How bytes travel between nodes: plain TCP.
//!
//! TLS between nodes is not built yet. This module is where it goes: what dials and accepts a connection is here, and the rest sees a
//! [`Reader`] and a [`Writer`], of which neither says that bytes which were taken are on the wire already. Until then [`plain_allowed`]
//! keeps plain TCP on loopback addresses.

use core::net::{IpAddr, SocketAddr};
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use outlive_core::address::Address;
use std::io;
use std::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct Reader(OwnedReadHalf);

/// The writing side. An open link writes to it without waiting, from whichever task has bytes to send; a handshake waits.
#[derive(Debug)]
pub(crate) struct Writer(OwnedWriteHalf);

impl Writer {
    /// Takes as many bytes as there is room for; `WouldBlock` if there is none. They are on the wire when [`flush`](Writer::flush) says
    /// so.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    /// Hands on what was taken; whether that is all of it.
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "plain TCP keeps nothing back")]
    pub(crate) fn flush(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Waits until there is room.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.0.writable().await
    }

    /// No more will be written: the peer reads to the end.
    pub(crate) fn finish(&self) -> io::Result<()> {
        socket2::SockRef::from(self.0.as_ref()).shutdown(Shutdown::Write)
    }
}

#[cfg(test)]
impl Reader {
    pub(crate) fn socket(&self) -> &TcpStream {
        self.0.as_ref()
    }
}

impl AsyncRead for Reader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// How long a connection may take to be accepted.
const CONNECT: Duration = Duration::from_secs(1);
/// A peer's machine that acknowledges nothing for so long has lost the connection: after a long partition a new one is there sooner
/// than the old one's next retransmission.
const UNACKNOWLEDGED: Duration = Duration::from_secs(8);

/// Whether peers may speak plain TCP on this address.
pub(crate) fn plain_allowed(ip: IpAddr, danger: bool) -> bool {
    ip.to_canonical().is_loopback() || danger
}

/// All that an address stands for now, at least one.
pub(crate) async fn resolve(addr: &Address) -> io::Result<Vec<SocketAddr>> {
    let mut found: Vec<SocketAddr> = tokio::net::lookup_host((addr.host(), addr.port())).await?.collect();
    if addr.is_any() {
        // Where the machine has no IPv6, all of its addresses are these.
        found.push(SocketAddr::from(([0, 0, 0, 0], addr.port())));
    }
    if found.is_empty() { Err(no_address()) } else { Ok(found) }
}

fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the name has no address")
}

/// Connects, if plain TCP may go there.
pub(crate) async fn dial(addr: SocketAddr, danger: bool) -> io::Result<(Reader, Writer)> {
    if !plain_allowed(addr.ip(), danger) {
        let why = "plain TCP goes to loopback addresses only, unless danger_plain_peers is set";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    match tokio::time::timeout(CONNECT, TcpStream::connect(addr)).await {
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
        // A free port that connects to itself is nobody.
        Ok(Ok(stream)) if stream.local_addr().ok() == stream.peer_addr().ok() => Err(io::ErrorKind::ConnectionRefused.into()),
        Ok(connected) => halves(connected?),
    }
}

/// The two sides of a connection that somebody made to this node.
pub(crate) fn accept(stream: TcpStream) -> io::Result<(Reader, Writer)> {
    halves(stream)
}

fn halves(stream: TcpStream) -> io::Result<(Reader, Writer)> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    let (reader, writer) = stream.into_split();
    Ok((Reader(reader), Writer(writer)))
}
