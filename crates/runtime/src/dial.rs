//! Whom to connect to, until somebody there is linked; and what is known of those who are not.

use crate::clock::entropy;
use crate::handshake::{self, HandshakeError, Hello, Refusal, Standing};
use crate::links;
use crate::node::Inner;
use crate::transport;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use outlive_core::address::Address;
use outlive_core::member::State;
use outlive_core::output::Live;
use outlive_core::stamp::Life;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Pauses between attempts at one address.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Pauses after which a connection that broke in the handshake is tried again: a dying process accepts for a moment.
const BROKEN: [Duration; 4] = [Duration::from_millis(2), Duration::from_millis(10), Duration::from_millis(40), Duration::from_millis(80)];
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;
/// How long the first round of attempts may take before it is said who was not reached, and how often that is said again.
const SAY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Peers whose refusal is remembered, so that it is not said each time.
const SAID_MAX: usize = 64;

/// Connections that are not links yet, and addresses that others might listen on.
#[derive(Debug)]
pub(crate) struct Dials {
    danger: bool,
    me: Box<str>,
    /// Addresses that are being connected to.
    busy: Mutex<HashSet<Box<str>>>,
    pub(crate) half_open: Mutex<HashMap<IpAddr, u32>>,
    seeds: Mutex<Seeds>,
    wake: Notify,
    said: Mutex<HashMap<String, Instant>>,
}

/// Addresses to try until somebody there is linked.
#[derive(Debug)]
struct Seeds {
    list: BTreeMap<Box<str>, Seed>,
    /// All of them are known: the store, where there is one, has been asked.
    complete: bool,
    /// Where a node was met that has this node's name, runs, and was there before.
    namesake: Option<String>,
}

#[derive(Clone, Debug, Default)]
struct Seed {
    configured: bool,
    /// Who answered there, if not under the name of its address.
    life: Option<Life>,
    /// What came of the last attempt.
    last: Option<Found>,
    tries: u32,
    due: Option<Instant>,
}

/// What came of an attempt.
#[derive(Clone, Debug)]
enum Found {
    Linked(Life),
    /// This node itself.
    Myself,
    /// The connection was refused.
    Nobody,
    /// Nothing that says whether somebody is there.
    Silent(Box<str>),
    /// A node, which does not take this one.
    Refused(Refusal),
}

impl Found {
    fn is_nobody(&self) -> bool {
        matches!(self, Found::Myself | Found::Nobody)
    }

    /// Of several addresses of one name, the greatest counts.
    fn weight(&self) -> u8 {
        match self {
            Found::Myself => 0,
            Found::Nobody => 1,
            Found::Silent(_) => 2,
            Found::Refused(_) => 3,
            Found::Linked(_) => 4,
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Linked(_) => f.write_str("linked"),
            Found::Myself => f.write_str("it is this node itself"),
            Found::Nobody => f.write_str("nobody listens there"),
            Found::Silent(why) => f.write_str(why),
            Found::Refused(refusal) => write!(f, "it does not take this node: {refusal}"),
        }
    }
}

/// Who has this node's name, and runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Namesake {
    /// It said so itself.
    Sure(String),
    /// Another node says so, which may not have heard yet that it is gone.
    Hearsay(String),
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
            seeds: Mutex::new(Seeds { list, complete: !discovers, namesake: None }),
            wake: Notify::new(),
            said: Mutex::default(),
        }
    }

    /// The addresses that the store knows now; `complete`: whoever comes from now on finds this node there.
    pub(crate) fn discovered(&self, addrs: impl Iterator<Item = Box<str>>, complete: bool) {
        let mut seeds = self.seeds.lock();
        let addrs: HashSet<Box<str>> = addrs.filter(|addr| *addr != self.me).collect();
        seeds.list.retain(|addr, seed| seed.configured || addrs.contains(addr));
        for addr in addrs {
            seeds.list.entry(addr).or_default();
        }
        seeds.complete |= complete;
        self.wake.notify_one();
    }

    #[cfg(test)]
    pub(crate) fn half_open(&self) -> u32 {
        self.half_open.lock().values().sum()
    }

    /// Whether a node of the cluster was met that does not take this one.
    fn is_refused(&self) -> bool {
        let seeds = self.seeds.lock();
        seeds.namesake.is_some() || seeds.list.values().any(|seed| matches!(&seed.last, Some(Found::Refused(r)) if r.keeps_out()))
    }

    /// Who keeps this node out by having its name.
    pub(crate) fn namesake(&self) -> Option<Namesake> {
        let seeds = self.seeds.lock();
        if let Some(addr) = &seeds.namesake {
            return Some(Namesake::Sure(addr.clone()));
        }
        let mut hearsay = None;
        for (addr, seed) in &seeds.list {
            match &seed.last {
                Some(Found::Refused(Refusal::Namesake)) => return Some(Namesake::Sure(addr.to_string())),
                Some(Found::Refused(Refusal::NameTaken(there))) => hearsay = Some(Namesake::Hearsay(there.clone())),
                _ => {}
            }
        }
        hearsay
    }

    /// Whether something may be said of this: not within the last minute.
    pub(crate) fn may_say(&self, of: &str) -> bool {
        let mut said = self.said.lock();
        let now = Instant::now();
        said.retain(|_, at| now.duration_since(*at) < SAY.1);
        if said.contains_key(of) || said.len() >= SAID_MAX {
            return false;
        }
        said.insert(of.to_owned(), now);
        true
    }
}

impl<L: Live> Inner<L> {
    pub(crate) fn hello(&self) -> Result<Hello, HandshakeError> {
        let nonce = entropy().map_err(|error| HandshakeError::Broken(io::Error::other(error)))?;
        let standing = match *self.formed.borrow() {
            true => Standing::Member,
            false if self.dials.is_refused() => Standing::Refused,
            false => Standing::New,
        };
        Ok(Hello::new(&self.cluster, self.store_id, standing, &self.engine.me(), nonce))
    }

    /// Why this node does not take another one that knows the secret and is set as it is.
    pub(crate) fn judge(&self, other: &Hello) -> Option<Refusal> {
        let me = self.engine.me();
        let member = *self.formed.borrow();
        if *other.name == *me.name {
            // Both run. Whoever is in stays, else whoever started first; two that are in do not meet.
            let theirs = other.standing == Standing::Member;
            if member || !theirs && (me.boot, me.life) < (other.boot, other.life) {
                return Some(Refusal::Namesake);
            }
            // The other one should know of it.
            self.dials.seeds.lock().namesake = Some(other.addr.clone());
            return Some(Refusal::Namesake);
        }
        if !member && other.standing != Standing::Member && (other.standing == Standing::Refused || self.dials.is_refused()) {
            // Two that are not in make no cluster beside the one that does not take them.
            return Some(Refusal::Busy);
        }
        let members = self.engine.members();
        let runs = members.iter().find(|m| {
            let lives = m.state == State::Alive || m.state == State::Suspect && m.linked;
            lives && *m.node.name == *other.name && m.node.life != other.life
        });
        runs.map(|m| Refusal::NameTaken(m.node.addr.to_string()))
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
                Some(found) if found.is_nobody() => drop(inner.call_timed(|e, now, out| e.handle_refused(now, life, out))),
                _ => {}
            }
        });
    }

    /// One attempt at an address; `None` if one is under way.
    async fn attempt(self: &Arc<Self>, addr: &str) -> Option<Found> {
        if !self.dials.busy.lock().insert(addr.into()) {
            return None;
        }
        let found = self.try_all(addr).await;
        self.dials.busy.lock().remove(addr);
        Some(found)
    }

    /// Tries every address of a name until somebody is linked. It may have this node's own among them.
    async fn try_all(self: &Arc<Self>, addr: &str) -> Found {
        let named = addr.parse::<Address>().and_then(Address::reachable);
        let resolved = match &named {
            Ok(named) => transport::resolve(named).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let addrs = match resolved {
            Ok(addrs) => addrs,
            Err(why) => return Found::Silent(why.into()),
        };
        let mut best = Found::Myself;
        for at in addrs.into_iter().take(ADDRESSES_MAX) {
            let mut found = self.try_once(at).await;
            for pause in BROKEN {
                if found.is_ok() {
                    break;
                }
                tokio::time::sleep(pause).await;
                found = self.try_once(at).await;
            }
            let found = found.unwrap_or_else(|why| Found::Silent(why.to_string().into()));
            if found.weight() >= best.weight() {
                best = found;
            }
            if matches!(best, Found::Linked(_)) {
                break;
            }
        }
        best
    }

    /// `Err`: it broke on the way, and may be clearer in a moment.
    async fn try_once(self: &Arc<Self>, at: SocketAddr) -> io::Result<Found> {
        let halves = match transport::dial(at, self.dials.danger).await {
            Ok(halves) => halves,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(Found::Nobody),
            Err(error) => return Ok(Found::Silent(error.to_string().into())),
        };
        let (mut reader, mut writer) = halves;
        let me = match self.hello() {
            Ok(me) => me,
            Err(error) => return Ok(Found::Silent(error.to_string().into())),
        };
        let mut there = None;
        let judge = |other: &Hello| {
            there = self.links.reaches(other.life).then_some(other.life);
            if there.is_some() { Some(Refusal::Busy) } else { self.judge(other) }
        };
        let other = handshake::dial((&mut reader, &mut writer), &me, &self.secret.peer_key(), judge).await;
        Ok(match other {
            Ok(other) => {
                let life = other.life;
                self.tasks.spawn(links::run(self.clone(), (reader, writer), other.node(), true));
                Found::Linked(life)
            }
            Err(HandshakeError::Broken(error)) => return Err(error),
            Err(_) if there.is_some() => there.map_or(Found::Myself, Found::Linked),
            Err(HandshakeError::Refused(Refusal::Myself) | HandshakeError::Refuses(Refusal::Myself)) => Found::Myself,
            // Who has to go because of its name is of no account here.
            Err(error @ HandshakeError::Refuses(Refusal::Namesake | Refusal::NameTaken(_))) => {
                if *self.formed.borrow() && self.dials.may_say(&format!("{at}{error}")) {
                    crate::listen::refused("", at, &error, "");
                }
                Found::Silent("it has the name of a node that runs".into())
            }
            Err(HandshakeError::Refused(refusal) | HandshakeError::Refuses(refusal)) => {
                self.counters.refused_connections.add();
                Found::Refused(refusal)
            }
            Err(error @ (HandshakeError::Malformed | HandshakeError::Slow | HandshakeError::Asked)) => {
                Found::Silent(error.to_string().into())
            }
        })
    }

    /// Notes what came of an attempt at a seed.
    fn note(self: &Arc<Self>, addr: &str, found: Found) {
        let member = *self.formed.borrow();
        let mut seeds = self.dials.seeds.lock();
        if let Found::Refused(Refusal::NameTaken(there)) = &found
            && !member
        {
            // Whoever has the name is asked itself: it may be gone, and should hear of it if it is not.
            seeds.list.entry(there.as_str().into()).or_default();
        }
        let Some(seed) = seeds.list.get_mut(addr) else { return };
        let again = matches!((&seed.last, &found), (Some(Found::Refused(a)), Found::Refused(b)) if a == b);
        match found {
            Found::Linked(life) => *seed = Seed { configured: seed.configured, life: Some(life), ..Seed::default() },
            // It still stands: who is silent for a while has not changed its mind.
            Found::Silent(_) if matches!(&seed.last, Some(Found::Refused(r)) if r.keeps_out()) => {}
            found => seed.last = Some(found),
        }
        seed.tries = seed.tries.saturating_add(1);
        let longest = if again { RETRY.1 * 5 } else { RETRY.1 };
        let pause = (RETRY.0 * 2_u32.saturating_pow(seed.tries.min(10))).min(longest);
        seed.due = Some(Instant::now() + self.clock.jittered(pause));
        drop(seeds);
        if !member {
            let refused = self.dials.is_refused();
            self.call_timed(|e, now, out| e.handle_refusal(now, refused, out));
        }
    }

    /// Seeds whose time has come, and when the next one's does.
    fn due_seeds(&self) -> (Vec<Box<str>>, Instant) {
        let now = Instant::now();
        let mut next = now + RETRY.1;
        let mut due = Vec::new();
        for (addr, seed) in &mut self.dials.seeds.lock().list {
            let linked = seed.life.is_some_and(|life| self.links.reaches(life)) || self.links.reaches_addr(addr);
            match seed.due {
                _ if linked => seed.last = None,
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
            let nobody =
                |seed: &Seed| seed.last.as_ref().is_some_and(Found::is_nobody) || seed.life.is_some_and(|life| self.links.observes(life));
            seeds.complete && seeds.namesake.is_none() && seeds.list.values().all(nobody)
        };
        if nobody && !*self.formed.borrow() {
            self.call_timed(|e, now, out| e.handle_nobody(now, out));
            self.formed.send_replace(true);
        }
    }

    /// Whether nobody is reached whom it was given.
    pub(crate) fn is_alone(&self) -> bool {
        let missing =
            |seed: &Seed| seed.configured && seed.last.as_ref().is_some_and(|found| !matches!(found, Found::Myself | Found::Linked(_)));
        !self.links.meets_anyone() && self.dials.seeds.lock().list.values().any(missing)
    }

    /// What keeps this node apart from others, in a sentence: who refuses it, or that nobody is reached whom it was given.
    pub(crate) fn apart(&self) -> Option<String> {
        let seeds = self.dials.seeds.lock();
        let out = |seed: &Seed| matches!(&seed.last, Some(Found::Refused(r)) if r.keeps_out());
        let alone = !self.links.meets_anyone();
        let told = |which: &dyn Fn(&Seed) -> bool| -> Vec<String> {
            let seeds = seeds.list.iter().filter(|(_, seed)| which(seed));
            seeds.filter_map(|(addr, seed)| Some(format!("{addr}: {}", seed.last.as_ref()?))).collect()
        };
        let mut whom = told(&out);
        whom.extend(seeds.namesake.iter().map(|addr| format!("{addr}: it has this node's name, and runs")));
        if !*self.formed.borrow() {
            if !whom.is_empty() {
                return Some(format!("not in its cluster, and serves nobody; {}", whom.join("; ")));
            }
        } else if !alone {
            return (!whom.is_empty()).then(|| format!("apart from some of its cluster; {}", whom.join("; ")));
        }
        let missing = |seed: &Seed| seed.configured && seed.last.as_ref().is_some_and(|found| !matches!(found, Found::Myself));
        let whom = told(&|seed| out(seed) || missing(seed));
        (alone && !whom.is_empty()).then(|| format!("alone; {}", whom.join("; ")))
    }

    /// Addresses that it was given where it has met nobody yet: in a cluster that it found otherwise, a typo would be seen by nobody.
    pub(crate) fn unmet(&self) -> Vec<String> {
        let seeds = self.dials.seeds.lock();
        let unmet = |seed: &Seed| match &seed.last {
            Some(Found::Nobody | Found::Silent(_)) => seed.configured && seed.life.is_none(),
            Some(Found::Myself | Found::Linked(_) | Found::Refused(_)) | None => false,
        };
        let unmet = seeds.list.iter().filter(|(_, seed)| unmet(seed));
        unmet.filter_map(|(addr, seed)| Some(format!("{addr}: {}", seed.last.as_ref()?))).collect()
    }

    /// Says what keeps this node apart: a moment after the start, and every minute.
    fn say_apart(&self) {
        let unmet = self.unmet();
        if let Some(why) = self.apart() {
            tracing::warn!("this node is {why}");
        } else if !unmet.is_empty() {
            tracing::warn!("`join` names addresses where this node has never met anybody; {}", unmet.join("; "));
        }
    }
}

/// Connects to seeds as long as nobody there is linked.
pub(crate) async fn seek<L: Live>(inner: Arc<Inner<L>>) {
    let mut stop = inner.stop.subscribe();
    let mut attempts = JoinSet::new();
    let mut say = Instant::now() + SAY.0;
    while !*stop.borrow() {
        inner.first_of_all();
        if Instant::now() >= say {
            inner.say_apart();
            say = Instant::now() + SAY.1;
        }
        let (due, next) = inner.due_seeds();
        for addr in due {
            let inner = inner.clone();
            attempts.spawn(async move {
                if let Some(found) = inner.attempt(&addr).await {
                    inner.note(&addr, found);
                }
            });
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            Some(_) = attempts.join_next() => {}
            () = inner.dials.wake.notified() => {}
            () = tokio::time::sleep_until(next.min(say)) => {}
        }
    }
}
