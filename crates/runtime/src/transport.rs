//! How bytes travel between nodes: plain TCP.
//!
//! TLS between nodes is not built yet. This module is where it goes: what dials, accepts and splits a connection is here, and the rest
//! sees a reader and a writer. Until then [`plain_allowed`] keeps plain TCP on loopback addresses.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use outlive_core::address::Address;
use std::io;
use std::net::Shutdown;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

pub(crate) type Reader = OwnedReadHalf;

/// The writing side. It is written to without waiting, by whoever has bytes to send.
pub(crate) type Writer = OwnedWriteHalf;

/// No more will be written: the peer reads to the end.
pub(crate) fn finish(writer: &Writer) -> io::Result<()> {
    socket2::SockRef::from(writer.as_ref()).shutdown(Shutdown::Write)
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
pub(crate) async fn dial(addr: SocketAddr, danger: bool) -> io::Result<TcpStream> {
    if !plain_allowed(addr.ip(), danger) {
        let why = "plain TCP goes to loopback addresses only, unless danger_plain_peers is set";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    match tokio::time::timeout(CONNECT, TcpStream::connect(addr)).await {
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
        // A free port that connects to itself is nobody.
        Ok(Ok(stream)) if stream.local_addr().ok() == stream.peer_addr().ok() => Err(io::ErrorKind::ConnectionRefused.into()),
        Ok(connected) => connected,
    }
}

pub(crate) fn split(stream: TcpStream) -> io::Result<(Reader, Writer)> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(stream.into_split())
}
