//! Whom to connect to, and who connects here.

use crate::clock::entropy;
use crate::handshake::{self, HandshakeError, Hello, Refusal};
use crate::links;
use crate::node::Inner;
use crate::transport;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use outlive_core::output::Live;
use outlive_core::stamp::Life;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Connections from one address that have not proved themselves.
const HALF_OPEN_MAX: u32 = 100;
/// Pauses between attempts at one address.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Pauses after which a connection that broke in the handshake is tried again: a dying process accepts for a moment.
const BROKEN: [Duration; 4] = [Duration::from_millis(2), Duration::from_millis(10), Duration::from_millis(40), Duration::from_millis(80)];

/// Connections that are not links yet, and addresses that others might listen on.
#[derive(Debug)]
pub(crate) struct Dials {
    danger: bool,
    me: Box<str>,
    /// Addresses that are being connected to.
    busy: Mutex<HashSet<Box<str>>>,
    half_open: Mutex<HashMap<IpAddr, u32>>,
    seeds: Mutex<Seeds>,
    wake: Notify,
}

/// Addresses to try until somebody there is linked.
#[derive(Debug)]
struct Seeds {
    list: BTreeMap<Box<str>, Seed>,
    /// All of them are known: the store, where there is one, has been asked.
    complete: bool,
    rejected: Option<(Box<str>, Refusal)>,
}

#[derive(Clone, Debug, Default)]
struct Seed {
    configured: bool,
    /// Who answered there, if not under the name of its address.
    life: Option<Life>,
    /// Nobody is there, or only this node.
    nobody: bool,
    tries: u32,
    due: Option<tokio::time::Instant>,
}

/// What came of an attempt.
#[derive(Debug)]
enum Found {
    Linked(Life),
    /// This node itself, or nobody.
    Nobody,
    Rejected(Refusal),
    Silent,
}

impl Dials {
    pub(crate) fn new(me: &str, join: &[String], discovers: bool, danger: bool) -> Dials {
        let list = join.iter().filter(|addr| **addr != me);
        let list = list.map(|addr| (addr.as_str().into(), Seed { configured: true, ..Seed::default() })).collect();
        Dials {
            danger,
            me: me.into(),
            busy: Mutex::default(),
            half_open: Mutex::default(),
            seeds: Mutex::new(Seeds { list, complete: !discovers, rejected: None }),
            wake: Notify::new(),
        }
    }

    /// The addresses that the store knows now.
    pub(crate) fn discovered(&self, addrs: impl Iterator<Item = Box<str>>) {
        let mut seeds = self.seeds.lock();
        let addrs: HashSet<Box<str>> = addrs.filter(|addr| *addr != self.me).collect();
        seeds.list.retain(|addr, seed| seed.configured || addrs.contains(addr));
        for addr in addrs {
            seeds.list.entry(addr).or_default();
        }
        seeds.complete = true;
        self.wake.notify_one();
    }

    #[cfg(test)]
    pub(crate) fn half_open(&self) -> u32 {
        self.half_open.lock().values().sum()
    }

    /// A node that was configured refuses this one for good: its address and why.
    pub(crate) fn rejected(&self) -> Option<(String, String)> {
        self.seeds.lock().rejected.as_ref().map(|(addr, why)| (addr.to_string(), why.to_string()))
    }
}

impl<L: Live> Inner<L> {
    pub(crate) fn hello(&self) -> Result<Hello, HandshakeError> {
        let nonce = entropy().map_err(|error| HandshakeError::Broken(io::Error::other(error)))?;
        let c = self.engine.config();
        let settings = format!(
            "durability {:?}, backups {}, store {}, reach {:?}, on_lost {:?}, idle_timeout {} s, lifetime {} s, digest {:016x}",
            c.durability,
            c.backups,
            c.store,
            c.reach,
            c.on_lost,
            c.limits.idle.as_secs(),
            c.limits.lifetime.as_secs(),
            c.digest()
        );
        Ok(Hello::new(&self.cluster, settings, &self.engine.me(), nonce))
    }

    /// The engine wants a link to this member.
    pub(crate) fn connect(self: &Arc<Self>, life: Life, addr: Box<str>) {
        if self.links.reaches(life) || self.is_dead() {
            return;
        }
        let inner = self.clone();
        self.tasks.spawn(async move {
            match inner.attempt(&addr).await {
                Some(Found::Linked(other)) if other != life => {
                    // Another process has its address, so nobody listens there under that life.
                    inner.call_timed(|e, now, out| e.handle_refused(now, life, out));
                }
                Some(Found::Nobody) => drop(inner.call_timed(|e, now, out| e.handle_refused(now, life, out))),
                _ => {}
            }
        });
    }

    /// One attempt at an address; `None` if one is under way.
    async fn attempt(self: &Arc<Self>, addr: &str) -> Option<Found> {
        if !self.dials.busy.lock().insert(addr.into()) {
            return None;
        }
        let mut found = self.try_once(addr).await;
        for pause in BROKEN {
            if found.is_some() {
                break;
            }
            tokio::time::sleep(pause).await;
            found = self.try_once(addr).await;
        }
        self.dials.busy.lock().remove(addr);
        Some(found.unwrap_or(Found::Silent))
    }

    /// `None`: it broke on the way, and may be clearer in a moment.
    async fn try_once(self: &Arc<Self>, addr: &str) -> Option<Found> {
        let halves = match transport::dial(addr, self.dials.danger).await.and_then(transport::split) {
            Ok(halves) => halves,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Some(Found::Nobody),
            Err(error) => {
                tracing::debug!(addr, %error, "cannot connect");
                return Some(Found::Silent);
            }
        };
        let (mut reader, mut writer) = halves;
        let me = self.hello().ok()?;
        let mut there = None;
        let unless_linked = |other: &Hello| {
            there = self.links.reaches(other.life).then_some(other.life);
            there.is_none()
        };
        let other = handshake::dial((&mut reader, &mut writer), &me, &self.secret.peer_key(), unless_linked).await;
        match other {
            Ok(other) => {
                let life = other.life;
                self.tasks.spawn(links::run(self.clone(), (reader, writer), other.node(), true));
                Some(Found::Linked(life))
            }
            Err(_) if there.is_some() => there.map(Found::Linked),
            Err(HandshakeError::Refused(Refusal::Myself)) => Some(Found::Nobody),
            Err(HandshakeError::Refused(refusal)) => {
                self.counters.refused_connections.add();
                tracing::warn!(addr, %refusal, "a node refuses this one, or this one refuses it");
                Some(Found::Rejected(refusal))
            }
            Err(HandshakeError::Broken(error)) => {
                tracing::debug!(addr, %error, "the handshake broke");
                None
            }
            Err(error @ (HandshakeError::Malformed | HandshakeError::Slow)) => {
                tracing::warn!(addr, %error, "no node there");
                Some(Found::Silent)
            }
        }
    }

    /// Notes what came of an attempt at a seed.
    fn note(&self, addr: &str, found: &Found) {
        let mut seeds = self.dials.seeds.lock();
        let Some(seed) = seeds.list.get_mut(addr) else { return };
        seed.tries = seed.tries.saturating_add(1);
        let pause = (RETRY.0 * 2_u32.saturating_pow(seed.tries.min(10))).min(RETRY.1);
        seed.due = Some(tokio::time::Instant::now() + self.clock.jittered(pause));
        match found {
            Found::Linked(life) => *seed = Seed { configured: seed.configured, life: Some(*life), ..Seed::default() },
            Found::Nobody => seed.nobody = true,
            Found::Silent => seed.nobody = false,
            Found::Rejected(refusal) => {
                seed.nobody = false;
                if seed.configured && refusal.is_final() {
                    seeds.rejected = Some((addr.into(), refusal.clone()));
                }
            }
        }
    }

    /// Seeds whose time has come, and when the next one's does.
    fn due_seeds(&self) -> (Vec<Box<str>>, tokio::time::Instant) {
        let now = tokio::time::Instant::now();
        let mut next = now + RETRY.1;
        let mut due = Vec::new();
        for (addr, seed) in &mut self.dials.seeds.lock().list {
            let linked = seed.life.is_some_and(|life| self.links.reaches(life)) || self.links.reaches_addr(addr);
            match seed.due {
                _ if linked => {}
                Some(at) if at > now => next = next.min(at),
                _ => {
                    // Until it is noted what came of it.
                    seed.due = Some(now + handshake::BOUND * 2);
                    due.push(addr.clone());
                }
            }
        }
        (due, next)
    }

    /// There is nobody but observers at any address that this node could have: it is the first.
    fn first_of_all(self: &Arc<Self>) {
        let nobody = {
            let seeds = self.dials.seeds.lock();
            seeds.complete && seeds.list.values().all(|seed| seed.nobody || seed.life.is_some_and(|life| self.links.observes(life)))
        };
        if nobody && !*self.formed.borrow() {
            self.call_timed(|e, now, out| e.handle_nobody(now, out));
            self.formed.send_replace(true);
        }
    }
}

/// Connects to seeds as long as nobody there is linked.
pub(crate) async fn seek<L: Live>(inner: Arc<Inner<L>>) {
    let mut stop = inner.stop.subscribe();
    let mut attempts = JoinSet::new();
    while !*stop.borrow() {
        inner.first_of_all();
        let (due, next) = inner.due_seeds();
        for addr in due {
            let inner = inner.clone();
            attempts.spawn(async move {
                let found = inner.attempt(&addr).await.unwrap_or(Found::Silent);
                inner.note(&addr, &found);
            });
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            Some(_) = attempts.join_next() => {}
            () = inner.dials.wake.notified() => {}
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

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
    let Ok((mut reader, mut writer)) = transport::split(stream) else { return };
    let Ok(me) = inner.hello() else { return };
    let key = inner.secret.peer_key();
    let other = tokio::select! {
        _ = stop.wait_for(|stop| *stop) => return,
        other = handshake::accept((&mut reader, &mut writer), &me, &key) => other,
    };
    match other {
        Ok(other) => {
            drop(half_open);
            links::run(inner, (reader, writer), other.node(), false).await;
        }
        Err(HandshakeError::Refused(Refusal::Myself)) => {}
        // A dialler that finds itself linked already goes away without a word.
        Err(HandshakeError::Broken(_)) => {}
        Err(error) => {
            inner.counters.refused_connections.add();
            tracing::warn!(%from, %error, "a connection was refused");
        }
    }
}
