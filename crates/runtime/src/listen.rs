//! Who connects here.

use crate::handshake::{self, HandshakeError, Hello, Refusal};
use crate::links;
use crate::node::Inner;
use crate::transport;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use outlive_core::output::Live;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};

/// Connections from one address that have not proved themselves.
const HALF_OPEN_MAX: u32 = 100;

/// Counts a connection that has not proved itself, as long as it lives.
struct HalfOpen<L: Live>(Arc<Inner<L>>, IpAddr);

impl<L: Live> HalfOpen<L> {
    fn new(inner: &Arc<Inner<L>>, ip: IpAddr) -> Option<HalfOpen<L>> {
        let mut half_open = inner.dials.half_open.lock();
        let count = half_open.entry(ip).or_default();
        if *count >= HALF_OPEN_MAX {
            return None;
        }
        *count += 1;
        Some(HalfOpen(inner.clone(), ip))
    }
}

impl<L: Live> Drop for HalfOpen<L> {
    fn drop(&mut self) {
        let mut half_open = self.0.dials.half_open.lock();
        if let Some(count) = half_open.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                half_open.remove(&self.1);
            }
        }
    }
}

/// Takes connections.
pub(crate) async fn listen<L: Live>(inner: Arc<Inner<L>>, listener: TcpListener) {
    let mut stop = inner.stop.subscribe();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => match HalfOpen::new(&inner, from.ip().to_canonical()) {
                Some(half_open) => inner.tasks.spawn(greet(half_open, stream, from)),
                // Closed without a word: whoever opens so many does not read.
                None => inner.counters.refused_connections.add(),
            },
            // Out of file descriptors, as a rule: others must close first.
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn greet<L: Live>(half_open: HalfOpen<L>, stream: TcpStream, from: SocketAddr) {
    let inner = half_open.0.clone();
    let mut stop = inner.stop.subscribe();
    let Ok((mut reader, mut writer)) = transport::accept(stream) else { return };
    let Ok(me) = inner.hello() else { return };
    let key = inner.secret.peer_key();
    let judge = |other: &Hello| inner.judge(other);
    let (other, met) = tokio::select! {
        _ = stop.wait_for(|stop| *stop) => return,
        met = handshake::accept((&mut reader, &mut writer), &me, &key, judge, || inner.status()) => met,
    };
    match (other, met) {
        (Some(other), Ok(())) => {
            drop(half_open);
            links::run(inner, (reader, writer), other.node(), false).await;
        }
        // A dialler that finds itself linked already goes away; so does one that has lost its way to itself.
        (_, Ok(()) | Err(HandshakeError::Broken(_) | HandshakeError::Asked)) => {}
        (_, Err(HandshakeError::Refuses(Refusal::Myself | Refusal::Busy) | HandshakeError::Refused(Refusal::Busy))) => {}
        (other, Err(error)) => {
            inner.counters.refused_connections.add();
            let (name, why) = (other.map(|other| other.name).unwrap_or_default(), error.to_string());
            if inner.dials.may_say(&format!("{}{name}{why}", from.ip())) {
                refused(&name, from, &error, &why);
            }
        }
    }
}

/// Says it; of two ends the one that refuses knows best what to do.
pub(crate) fn refused(name: &str, from: SocketAddr, error: &HandshakeError, why: &str) {
    match error {
        HandshakeError::Refuses(Refusal::Namesake) | HandshakeError::Refused(Refusal::Namesake) => {
            tracing::warn!(?name, %from, "another process runs under this node's name and was not let in: give it a name of its own");
        }
        HandshakeError::Refuses(Refusal::NameTaken(_)) => {
            tracing::warn!(?name, %from, "a node was not let in: its name is that of a member that runs; give it a name of its own");
        }
        HandshakeError::Refused(_) => tracing::warn!(?name, %from, "a node that connected refuses this one: {why}"),
        _ => tracing::warn!(?name, %from, "a connection was refused: {why}"),
    }
}
