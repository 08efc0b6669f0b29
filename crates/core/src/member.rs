//! Who is alive, leaving, gone or dead: SWIM gossip, carried by our own links.
//!
//! [`Membership`] wraps the `foca` crate and owns no socket and no clock. Its methods are of four kinds: getters
//! ([`members`](Membership::members), [`digest`](Membership::digest), …); `handle_*` take in what happened; [`leave`](Membership::leave)
//! and [`stop`](Membership::stop) are the node's own decisions; [`poll`](Membership::poll) gives out what is to be done. Poll until `None`
//! after every other call, and call [`handle_timer`](Membership::handle_timer) when [`next_timer`](Membership::next_timer) is due, *after* the
//! packets that have arrived by then.
//!
//! What is added to SWIM:
//! - *One bound for silence.* SWIM probes a random member per period, so the time until a silent one is noticed has a long tail.
//!   Each member is therefore also watched by three others (its neighbours in the order of name hashes), and everyone who hears of a
//!   suspicion ends it by itself. Silence is death within [`MemberConfig::dead_within`].
//! - *Hints.* A closed link is a suspicion, a refused reconnect is death at once.
//! - *Returning.* A node that was declared dead and lives renews itself and keeps its life; the dead are called again, at intervals of
//!   a quarter of the time that they have been dead (250 ms to 60 s), so that a healed partition heals here too.
//! - *Record lists.* When a link comes up both ends compare a sum of all they know and exchange everything if it differs; neighbours do
//!   so every two seconds.

mod packet;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use core::cmp::Ordering;
use core::num::{NonZeroU8, NonZeroUsize};
use core::time::Duration;
use foca::{Config as SwimConfig, Foca, NoCustomBroadcast, Notification, PeriodicParams, Runtime, State as Swim, Timer};
use rand::SeedableRng as _;
use rand_pcg::Pcg64;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use crate::placement::Place;
use crate::stamp::Life;
use crate::time::Mono;
use packet::{Identity, PACKET_MAX, Packet, Record, SWIM, Wire, write_records};
pub use packet::{NodeError, PacketError};

/// How often suspicions, watched neighbours and missing links are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two questions to a watched neighbour: often enough that one lost in a stall does not matter.
const ASK_TICKS: u32 = 2;
/// Ticks between two comparisons of all that is known.
const SUM_TICKS: u32 = 20;
/// Neighbours that a node watches.
const WATCHED: usize = 3;
/// What detection by a neighbour costs besides silence and suspicion: two ticks and the gossip.
const WATCH_SLACK: Duration = Duration::from_millis(500);
/// Shortest and longest pause before a missing link is asked for again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));
/// After this node declared a life dead for a refused link and it came back, another refusal within this time is only its own business.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);
/// Other lives of this node's name that are remembered, and how often one of them may be greater at all.
const RIVALS: (usize, u8) = (16, 4);
/// How long a dead life keeps its name, and how many do.
const DEAD_KEEP: (Duration, usize) = (Duration::from_secs(24 * 3600), 4096);
/// How often those who have been dead for longer are dropped.
const FORGET: Duration = Duration::from_secs(60);
/// Names that SWIM knows at most, dead ones included.
const NAMES_MAX: usize = 8192;

/// What a node is, told in the handshake and by gossip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, unique in the cluster: decides its place. See [`name`](crate::name).
    pub name: Box<str>,
    /// Where peers connect to, in the driver's notation. 1 to 255 bytes.
    pub addr: Box<str>,
    /// Its start time in any unit that grows: of two lives of a name the one with the greater boot counts.
    pub boot: u64,
    /// This start of it.
    pub life: Life,
    /// A hash of its zone's name; 0 = none.
    pub zone: u64,
    /// Takes part, but holds no sessions and is never asked for one: a gateway.
    pub observer: bool,
    /// Where its HTTP is served, for gateways and the console; may be empty. At most 255 bytes.
    pub http: Box<str>,
    /// How many copies of a session it wants on other nodes: everybody makes as many as the greatest of the members wants. The engine
    /// sets it from its settings.
    pub backups: u8,
    /// It may call a commit done that nobody has but the store. The engine sets it from its settings.
    pub stores: bool,
}

/// How a member is, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It answers somebody.
    Alive,
    /// It is silent or its link closed; it may still object.
    Suspect,
    /// The others take it for alive, but this node's link to it is closed and a reconnect was refused.
    Gone,
    /// Silent for too long, refused, stopped, or replaced by a younger life of its name. Only a renewal brings it back.
    Dead,
}

/// What this node has seen itself of a member's end, whoever was the first to call it dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing: it lives, or it is silent, or its end is seen in a moment.
    Unseen,
    /// A connection to it was refused: nobody listens there any more.
    Refused,
    /// It said goodbye.
    Goodbye,
}

/// One life of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it is; shared, so that a copy is cheap.
    pub node: Arc<Node>,
    /// [`name_hash`](crate::placement::name_hash) of its name.
    pub name_hash: u64,
    /// How it is.
    pub state: State,
    /// It drains: it answers, but nothing new is placed on it.
    pub leaving: bool,
    /// It said, when it stopped, that all that it held is elsewhere.
    pub handed_over: bool,
    /// Since when it is in this state, as far as this node knows.
    pub since: Mono,
    /// Whether this node has an open link to it.
    pub linked: bool,
    /// What this node has seen of its end. It may come after the news that it is dead, and is no [`Changed`](MemberOutput::Changed):
    /// nothing follows from it but what is said.
    pub end: End,
}

impl Member {
    /// Whether it may hold sessions: alive or suspect, not leaving, not an observer.
    pub fn placeable(&self) -> bool {
        self.state <= State::Suspect && !self.leaving && !self.node.observer
    }

    /// What placement needs to know of it.
    pub fn place(&self) -> Place {
        Place { name_hash: self.name_hash, life: self.node.life, zone: self.node.zone }
    }
}

/// Periods and bounds of detection. The same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberConfig {
    /// Each node probes one random member so often. At least 3 × `probe_wait`. Default 500 ms; longer costs less and finds one-sided
    /// faults later.
    pub probe_period: Duration,
    /// A probe waits so long for its answer before others are asked to try. Above the round trip time. Default 150 ms.
    pub probe_wait: Duration,
    /// How long a suspect may object. Default 1.5 s; below three round trips through a busy node live nodes are declared dead.
    pub suspect_for: Duration,
    /// A silent member is dead after so long at the latest. At least `suspect_for` + 1 s. Default 3 s.
    pub dead_within: Duration,
    /// News are passed on to three members so often. Default 100 ms.
    pub gossip_period: Duration,
}

impl Default for MemberConfig {
    fn default() -> MemberConfig {
        MemberConfig {
            probe_period: Duration::from_millis(500),
            probe_wait: Duration::from_millis(150),
            suspect_for: Duration::from_millis(1500),
            dead_within: Duration::from_secs(3),
            gossip_period: Duration::from_millis(100),
        }
    }
}

impl MemberConfig {
    /// How long a watched neighbour may be silent before it is suspect.
    fn patience(&self) -> Duration {
        self.dead_within.saturating_sub(self.suspect_for + WATCH_SLACK).max(Duration::from_millis(500))
    }

    fn swim(&self) -> SwimConfig {
        SwimConfig {
            probe_period: self.probe_period.max(Duration::from_millis(2)),
            probe_rtt: self.probe_wait.clamp(Duration::from_millis(1), self.probe_period.max(Duration::from_millis(2)) / 2),
            suspect_to_down_after: self.suspect_for,
            remove_down_after: Some(DEAD_KEEP.0),
            max_transmissions: NonZeroU8::MIN.saturating_add(9),
            max_packet_size: NonZeroUsize::MIN.saturating_add(PACKET_MAX - 2),
            notify_down_members: true,
            periodic_gossip: Some(PeriodicParams { frequency: self.gossip_period, num_members: THREE }),
            num_indirect_probes: THREE,
            // Record lists do the work of announcements.
            ..SwimConfig::simple()
        }
    }
}

const THREE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);

/// What the node is to do or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberOutput {
    /// Send these bytes over the open link to this life, in order and reliably. At most 16 KiB.
    Packet {
        /// The receiver.
        to: Life,
        /// For its [`Membership::handle_packet`].
        bytes: Bytes,
    },
    /// Connect to this address, unless an attempt is under way: a handshake → [`Membership::handle_up`], a refusal →
    /// [`Membership::handle_refused`] with this life, anything else → nothing. It is asked for again while it is wanted.
    Connect {
        /// The name of the node that should be there.
        name: Box<str>,
        /// Where.
        addr: Box<str>,
        /// The life that should be there; another one may answer.
        life: Life,
    },
    /// The members differ from what they were; take a new copy. Given once for any number of changes before it is polled.
    Changed,
    /// The others had declared this node dead, and it came back with the same life: doubt all that it owns.
    Renewed,
    /// This node's boot was not above that of an earlier life of its name; it is now this. Use it in handshakes.
    Rebooted {
        /// The new boot.
        boot: u64,
    },
    /// Another process runs under this node's name and came with a greater boot: this one is no member any more and must stop.
    Superseded {
        /// The other one's life.
        by: Life,
    },
}

/// The members of the cluster as one node knows them.
pub struct Membership {
    swim: Foca<Identity, Wire, Pcg64, NoCustomBroadcast>,
    world: World,
    config: MemberConfig,
    /// Lives of this node's name that were greater, and how often: a dead one is so once.
    rivals: VecDeque<(Life, u8)>,
    /// Stopped or superseded: deaf and mute.
    ended: bool,
    timers: BinaryHeap<Pending>,
    timer_count: u64,
    tick_at: Mono,
    ticks: u32,
    table: BTreeMap<Life, Entry>,
    forget_at: Mono,
    watched: Vec<Life>,
    outputs: VecDeque<MemberOutput>,
    changed: bool,
}

/// A life, its SWIM record and its link.
struct Entry {
    member: Member,
    identity: Identity,
    incarnation: u16,
    swim: Swim,
    /// SWIM's present record of its name is this life.
    current: bool,
    /// When it or the news about it last showed that it lives.
    heard: Mono,
    /// When it last acknowledged something that was sent to it.
    answered: Mono,
    patience: Duration,
    suspect_since: Option<Mono>,
    was_linked: bool,
    refused: bool,
    declared: Option<Mono>,
    unlinked_since: Mono,
    retry_at: Mono,
}

impl Entry {
    fn new(identity: Identity, config: &MemberConfig, now: Mono) -> Entry {
        let member = Member {
            node: identity.node.clone(),
            name_hash: identity.name_hash,
            // Not a member before SWIM says so.
            state: State::Dead,
            leaving: identity.leaving,
            handed_over: identity.handed_over,
            since: now,
            linked: false,
            end: End::Unseen,
        };
        Entry {
            member,
            identity,
            incarnation: 0,
            swim: Swim::Down,
            current: false,
            heard: now,
            answered: Mono::NONE,
            patience: config.patience(),
            suspect_since: None,
            was_linked: false,
            refused: false,
            declared: None,
            unlinked_since: now,
            retry_at: now,
        }
    }

    fn record(&self, state: Swim) -> Record {
        Record::new(self.identity.clone(), self.incarnation, state)
    }

    /// Takes over SWIM's record, and tells whether that changed what others see.
    fn take(&mut self, record: &Record, now: Mono) -> bool {
        let renewed = self.identity != *record.id();
        if renewed || record.incarnation() > self.incarnation {
            // Its own word that it lives, even if it came through others.
            self.heard = now;
        }
        if renewed {
            self.identity = record.id().clone();
            self.unlinked_since = now;
            self.retry_at = now;
        }
        self.incarnation = record.incarnation();
        self.swim = record.state();
        self.current = true;
        let (leaving, handed_over) = (self.identity.leaving, self.identity.handed_over);
        let differs = self.member.node != self.identity.node || (self.member.leaving, self.member.handed_over) != (leaving, handed_over);
        self.member.node = self.identity.node.clone();
        (self.member.leaving, self.member.handed_over) = (leaving, handed_over);
        differs
    }

    /// Draws the conclusion from record and link, and tells whether it is another one than before.
    fn conclude(&mut self, now: Mono) -> bool {
        let state = match self.swim {
            _ if !self.current => State::Dead,
            Swim::Down => State::Dead,
            Swim::Alive | Swim::Suspect if self.refused => State::Gone,
            Swim::Suspect => State::Suspect,
            Swim::Alive => State::Alive,
        };
        self.suspect_since = match self.swim {
            Swim::Suspect if self.current => self.suspect_since.or(Some(now)),
            Swim::Suspect | Swim::Alive | Swim::Down => None,
        };
        let differs = state != self.member.state;
        if differs {
            self.member.since = now;
            self.unlinked_since = now;
            self.member.state = state;
        }
        differs
    }
}

/// What foca wants of the world, kept until the call returns.
#[derive(Default)]
struct World {
    sends: Vec<(Identity, Bytes)>,
    timers: Vec<(Timer<Identity>, Duration)>,
    changed: bool,
    renewed: bool,
    /// This node's incarnation, which foca only shows on the wire.
    incarnation: u16,
}

impl Runtime<Identity> for World {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        match notification {
            Notification::Rejoin(_) => self.renewed = true,
            Notification::MemberUp(_) | Notification::MemberDown(_) | Notification::Rename(_, _) => self.changed = true,
            Notification::Active | Notification::Idle | Notification::Defunct => {}
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        if let Some(first) = data.first_chunk() {
            self.incarnation = u16::from_be_bytes(*first);
        }
        let mut bytes = Vec::with_capacity(data.len() + 1);
        bytes.push(SWIM);
        bytes.extend_from_slice(data);
        self.sends.push((to, bytes.into()));
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        // `Membership` ends suspicions by itself. foca 2.0 would also tell a member that had refuted its suspicion in time that it is
        // down, and make it renew itself for nothing.
        if !matches!(event, Timer::ChangeSuspectToDown { .. }) {
            self.timers.push((event, after));
        }
    }
}

/// A timer of foca's. They are never cancelled; foca ignores those whose token is stale.
struct Pending {
    due: Mono,
    timer: Timer<Identity>,
    number: u64,
}

impl Ord for Pending {
    // The heap's greatest is the earliest; within one instant foca wants its own order.
    fn cmp(&self, other: &Pending) -> Ordering {
        other.due.cmp(&self.due).then_with(|| other.timer.cmp(&self.timer)).then_with(|| other.number.cmp(&self.number))
    }
}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Pending) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pending {
    fn eq(&self, other: &Pending) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pending {}

impl Membership {
    /// A cluster of one: `me`. Others come by links ([`handle_up`](Membership::handle_up)). Everything random follows from `seed`.
    pub fn new(me: Node, config: MemberConfig, seed: u64, now: Mono) -> Result<Membership, NodeError> {
        me.check()?;
        let identity = Identity::new(me);
        let mut own = Entry::new(identity.clone(), &config, now);
        own.member.state = State::Alive;
        own.swim = Swim::Alive;
        own.current = true;
        Ok(Membership {
            table: BTreeMap::from([(identity.life(), own)]),
            swim: Foca::new(identity, config.swim(), Pcg64::seed_from_u64(seed), Wire),
            world: World::default(),
            config,
            rivals: VecDeque::new(),
            ended: false,
            timers: BinaryHeap::new(),
            timer_count: 0,
            tick_at: now + TICK,
            ticks: 0,
            forget_at: now + FORGET,
            watched: Vec::new(),
            outputs: VecDeque::new(),
            changed: false,
        })
    }

    /// This node, with its present boot.
    pub fn me(&self) -> &Arc<Node> {
        &self.swim.identity().node
    }

    /// Whether this node has begun to leave.
    pub fn leaving(&self) -> bool {
        self.swim.identity().leaving
    }

    /// Every life known, this one and the dead of the last 24 h (4096 at most) included, in the order of lives.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.table.values().map(|entry| &entry.member)
    }

    /// The member with this life.
    pub fn member(&self, life: Life) -> Option<&Member> {
        self.table.get(&life).map(|entry| &entry.member)
    }

    /// A hash of (name, life, leaving) of everyone who counts for placement and is not dead, observers excluded: equal on two nodes
    /// that know the same members. A member that only this node finds gone is still in it. O(N log N).
    pub fn digest(&self) -> u64 {
        let mut names: Vec<(&str, Life, bool)> = self
            .table
            .values()
            .filter(|entry| entry.member.state != State::Dead && !entry.member.node.observer)
            .map(|entry| (&*entry.member.node.name, entry.member.node.life, entry.member.leaving))
            .collect();
        names.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        for (name, life, leaving) in names {
            hasher.update(&(name.len() as u64).to_be_bytes()).update(name.as_bytes());
            hasher.update(&life.bits().to_be_bytes()).update(&[u8::from(leaving)]);
        }
        first_u64(&hasher.finalize())
    }

    /// The next thing to do, in order; poll until `None` after every other call.
    pub fn poll(&mut self) -> Option<MemberOutput> {
        let output = self.outputs.pop_front();
        if output == Some(MemberOutput::Changed) {
            self.changed = false;
        }
        output
    }

    /// When [`handle_timer`](Membership::handle_timer) is to be called at the latest; `None` after the end.
    pub fn next_timer(&self) -> Option<Mono> {
        let swim = self.timers.peek().map_or(Mono::NEVER, |pending| pending.due);
        (!self.ended).then_some(swim.min(self.tick_at))
    }

    /// Does what has fallen due.
    pub fn handle_timer(&mut self, now: Mono) {
        while !self.ended && self.timers.peek().is_some_and(|pending| pending.due <= now) {
            let Some(mut pending) = self.timers.pop() else { break };
            if let Timer::ChangeSuspectToDown { member_id, .. } = &pending.timer
                && let Some(entry) = self.table.get(&member_id.life())
                && entry.answered + self.config.suspect_for > now
            {
                pending.due = entry.answered + self.config.suspect_for;
                self.timers.push(pending);
                continue;
            }
            // Its errors are hints about late timers; foca has already recovered from them.
            let _ = self.swim.handle_timer(pending.timer, &mut self.world);
            self.settle(now);
        }
        if !self.ended && self.tick_at <= now {
            self.tick_at = now + TICK;
            self.tick(now);
        }
    }

    /// Frames of any kind came over the link to `life`, the last one at `heard`; at `answered` one acknowledged what was sent to it.
    ///
    /// Packets wait behind all else that is under way on a link. Whoever has too much to do for them to arrive in time is not silent, and
    /// is not dead while it gets on with that.
    pub fn note_frames(&mut self, life: Life, heard: Mono, answered: Mono) {
        if let Some(entry) = self.table.get_mut(&life) {
            if heard > entry.heard {
                (entry.heard, entry.patience) = (heard, self.config.patience());
            }
            entry.answered = entry.answered.max(answered);
        }
    }

    /// The node itself stood still for `gap` and goes on at `now`: what would have fallen due waits for as long again, so that the
    /// others are not declared dead for this node's own silence. Call it after the packets that waited and before the timers.
    pub fn handle_stall(&mut self, now: Mono, gap: Duration) {
        let mut timers = core::mem::take(&mut self.timers).into_vec();
        for pending in &mut timers {
            pending.due = pending.due + gap;
        }
        self.timers = timers.into();
        for entry in self.table.values_mut() {
            entry.heard = (entry.heard + gap).min(now);
            entry.suspect_since = entry.suspect_since.map(|since| (since + gap).min(now));
        }
    }

    /// A packet came over the link to `from`.
    pub fn handle_packet(&mut self, now: Mono, from: Life, packet: &[u8]) -> Result<(), PacketError> {
        let packet = Packet::parse(packet)?;
        if self.ended {
            return Ok(());
        }
        let (src, records) = match &packet {
            Packet::Swim { src, records, .. } => (Some(src), records),
            Packet::Records { records, .. } => (records.first().map(Record::id), records),
        };
        if src.map(Identity::life) != Some(from) {
            return Err(PacketError::ForeignSender);
        }
        if self.swim.iter_membership_state().len() > NAMES_MAX && !records.is_empty() {
            return Err(PacketError::TooManyMembers(NAMES_MAX));
        }
        let namesake = records.iter().map(|record| (record.id(), record.state())).chain(src.map(|src| (src, Swim::Alive)));
        if let Some((other, state)) = self.greater_namesake(namesake) {
            self.meet_namesake(now, &other, state);
        }
        if self.ended {
            return Ok(());
        }
        // A renewal is told as the end of what the life was before.
        let goodbye = records.iter().any(|record| Some(record.id()) == src && record.state() == Swim::Down);
        if let Some(entry) = self.table.get_mut(&from) {
            entry.heard = now;
            entry.patience = self.config.patience();
            if goodbye {
                entry.member.end = End::Goodbye;
            }
        }
        match packet {
            Packet::Swim { bytes, .. } => {
                // What is left to object to is a message out of its time, for example from an older process of this node's name.
                let _ = self.swim.handle_data(bytes, &mut self.world);
                self.settle(now);
            }
            Packet::Records { ask, records } => self.handle_records(now, from, ask, records),
        }
        Ok(())
    }

    /// A handshake with `node` succeeded, over a link that is now the way to its life. Call it for the first link to a life only.
    /// Everything that either end knows is exchanged.
    pub fn handle_up(&mut self, now: Mono, node: &Node) -> Result<(), NodeError> {
        node.check()?;
        if self.ended || node.life == self.me().life {
            return Ok(());
        }
        // A handshake does not tell renewals. This identity is at most the true one, which comes with the peer's first packet: a life's
        // renewals never fall, and one that leaves has some.
        let identity = Identity::new(node.clone());
        if let Some((other, state)) = self.greater_namesake([(&identity, Swim::Alive)].into_iter()) {
            self.meet_namesake(now, &other, state);
            if self.ended {
                return Ok(());
            }
        }
        let entry = self.table.entry(node.life).or_insert_with(|| Entry::new(identity.clone(), &self.config, now));
        entry.member.linked = true;
        entry.was_linked = true;
        entry.refused = false;
        entry.member.end = End::Unseen;
        entry.heard = now;
        entry.patience = self.config.patience();
        let known = self
            .table
            .values()
            .any(|entry| entry.current && entry.member.name_hash == identity.name_hash && entry.identity.order() > identity.order());
        if !known && self.table.get(&node.life).is_some_and(|entry| !entry.current) {
            self.apply(now, vec![Record::alive(identity)]);
        }
        self.refresh(now);
        self.mark_changed();
        self.send_records(node.life, Some(self.sum()), false);
        Ok(())
    }

    /// The last link to this life closed: it is suspect, and a reconnect is asked for.
    pub fn handle_closed(&mut self, now: Mono, life: Life) {
        let Some(entry) = self.table.get_mut(&life).filter(|entry| entry.member.linked) else { return };
        entry.member.linked = false;
        entry.unlinked_since = now;
        entry.retry_at = now;
        let suspect = (entry.current && entry.swim == Swim::Alive).then(|| entry.record(Swim::Suspect));
        self.mark_changed();
        if self.ended {
            return;
        }
        self.apply(now, suspect.into_iter().collect());
        self.reconnect(now);
    }

    /// A connection to this life was refused, so nobody listens there. If there had been a link the life is dead for everyone at once
    /// (should it live, it will renew itself); otherwise, or if that has just happened, it is gone for this node alone.
    pub fn handle_refused(&mut self, now: Mono, life: Life) {
        let Some(entry) = self.table.get_mut(&life) else { return };
        if self.ended || entry.member.linked || !entry.current || life == self.swim.identity().life() {
            return;
        }
        if entry.member.end == End::Unseen {
            entry.member.end = End::Refused;
        }
        if entry.swim == Swim::Down {
            return;
        }
        let again = entry.declared.is_some_and(|at| now.since(at) < REFUSED_AGAIN);
        entry.refused = true;
        if entry.was_linked && !again {
            entry.declared = Some(now);
            let down = entry.record(Swim::Down);
            self.apply(now, vec![down]);
        }
        self.refresh(now);
    }

    /// Begins to leave: everyone is told that nothing new is to be placed here, later joiners too. It cannot be taken back.
    pub fn leave(&mut self, now: Mono) {
        if self.ended || self.leaving() {
            return;
        }
        let me = self.swim.identity();
        // Other data under the same life is another renewal, so that it wins everywhere.
        let leaving = Identity { leaving: true, renewals: me.renewals.saturating_add(1), ..me.clone() };
        self.become_identity(now, leaving);
    }

    /// The last goodbye: everyone with a link is told that this life is over, and whether it has `handed_over` all that it held. Send what
    /// [`poll`](Membership::poll) gives, then close.
    pub fn stop(&mut self, now: Mono, handed_over: bool) {
        if self.ended {
            return;
        }
        if handed_over {
            let me = self.swim.identity();
            let done = Identity { handed_over, renewals: me.renewals.saturating_add(1), ..me.clone() };
            self.become_identity(now, done);
        }
        let me = Record::new(self.swim.identity().clone(), self.world.incarnation, Swim::Down);
        let _ = self.swim.leave_cluster(&mut self.world);
        self.settle(now);
        self.ended = true;
        for bytes in write_records(&me, &[], None) {
            self.send_all(&bytes.into());
        }
    }

    /// Routes what foca asked for since the last call.
    fn settle(&mut self, now: Mono) {
        for (timer, after) in self.world.timers.drain(..) {
            self.timer_count += 1;
            self.timers.push(Pending { due: now + after, timer, number: self.timer_count });
        }
        for (to, bytes) in self.world.sends.drain(..) {
            // Without a link it is lost, like a datagram; a link is being asked for, and when it comes everything is exchanged.
            if self.table.get(&to.life()).is_some_and(|entry| entry.member.linked) {
                self.outputs.push_back(MemberOutput::Packet { to: to.life(), bytes });
            }
        }
        if core::mem::take(&mut self.world.renewed) {
            self.outputs.push_back(MemberOutput::Renewed);
            self.world.incarnation = 0;
            self.announce(now);
        }
        if core::mem::take(&mut self.world.changed) {
            self.refresh(now);
        }
    }

    /// Brings what this node concluded itself into SWIM, and out to the others.
    fn apply(&mut self, now: Mono, records: Vec<Record>) {
        if records.is_empty() {
            return;
        }
        // Encoding cannot fail: every node was checked, and a record is far shorter than a packet.
        let _ = self.swim.apply_many(records.into_iter(), true, &mut self.world);
        let _ = self.swim.gossip(&mut self.world);
        self.settle(now);
        self.refresh(now);
    }

    /// Goes on under another identity of the same life and tells everyone who has a link.
    fn become_identity(&mut self, now: Mono, identity: Identity) {
        let _ = self.swim.change_identity(identity, &mut self.world);
        self.world.incarnation = 0;
        self.announce(now);
        self.settle(now);
    }

    /// After a change of this node's identity: foca starts anew, and everyone with a link hears of it at once.
    fn announce(&mut self, now: Mono) {
        let identity = self.swim.identity().clone();
        if let Some(own) = self.table.get_mut(&identity.life()) {
            own.member.node = identity.node.clone();
            (own.member.leaving, own.member.handed_over) = (identity.leaving, identity.handed_over);
            own.identity = identity.clone();
        }
        self.mark_changed();
        // foca notices its members again only when an update comes in; without this it would not probe until then.
        let _ = self.swim.apply_many(core::iter::empty(), true, &mut self.world);
        for bytes in write_records(&Record::alive(identity), &[], None) {
            self.send_all(&bytes.into());
        }
        self.settle(now);
    }

    fn send_all(&mut self, bytes: &Bytes) {
        let linked = self.table.values().filter(|entry| entry.member.linked);
        self.outputs.extend(linked.map(|entry| MemberOutput::Packet { to: entry.member.node.life, bytes: bytes.clone() }));
    }

    /// The greatest identity among these that has this node's name, another life and a higher order.
    fn greater_namesake<'a>(&self, ids: impl Iterator<Item = (&'a Identity, Swim)>) -> Option<(Identity, Swim)> {
        let me = self.swim.identity();
        ids.filter(|(id, _)| id.name_hash == me.name_hash && id.life() != me.life() && id.order() > me.order())
            .max_by_key(|(id, _)| id.order())
            .map(|(id, state)| (id.clone(), state))
    }

    /// A greater life of this node's name is a former one, if the clock ran backwards, so this node takes the next greater boot. Not on
    /// hearsay, but if the other one answers that with a still greater boot, it is a process that runs: then two would kill each other
    /// for ever, and the one that had the lower boot at first, which is this one, ends.
    fn meet_namesake(&mut self, now: Mono, other: &Identity, state: Swim) {
        let me = self.swim.identity();
        let answered = other.node.boot == me.node.boot.saturating_add(1);
        if state != Swim::Down {
            let before = self.rivals.iter_mut().find(|(life, _)| *life == other.life());
            match before {
                Some((_, times)) if answered || *times >= RIVALS.1 => {
                    self.outputs.push_back(MemberOutput::Superseded { by: other.life() });
                    self.ended = true;
                    return;
                }
                Some((_, times)) => *times += 1,
                None => {
                    self.rivals.truncate(RIVALS.0 - 1);
                    self.rivals.push_front((other.life(), 1));
                }
            }
        }
        let node = Node { boot: other.node.boot.saturating_add(1), ..(*me.node).clone() };
        let boot = node.boot;
        let identity = Identity { leaving: me.leaving, renewals: me.renewals, ..Identity::new(node) };
        self.outputs.push_back(MemberOutput::Rebooted { boot });
        self.become_identity(now, identity);
    }

    /// Takes in what a peer knows, and answers with what this node knows if that was asked and differs.
    fn handle_records(&mut self, now: Mono, from: Life, ask: Option<u64>, mut records: Vec<Record>) {
        let me = self.swim.identity().clone();
        // Dead names that nobody here knows stay unknown, or no cluster would ever forget one.
        records.retain(|record| {
            let known = || self.table.values().any(|entry| entry.current && entry.member.name_hash == record.id().name_hash);
            record.id().life() == me.life() && *record.id() == me
                || record.id().life() != me.life() && (record.state() != Swim::Down || record.id().name_hash == me.name_hash || known())
        });
        let _ = self.swim.apply_many(records.into_iter(), true, &mut self.world);
        self.settle(now);
        self.refresh(now);
        if let Some(sum) = ask {
            let differs = sum != 0 && sum != self.sum();
            self.send_records(from, None, differs);
        }
    }

    /// Tells `to` this node's record, and those that `to` has something to object to: its own and other lives of its name. Everything
    /// if `all`.
    fn send_records(&mut self, to: Life, ask: Option<u64>, all: bool) {
        let me = Record::new(self.swim.identity().clone(), self.world.incarnation, Swim::Alive);
        let name_hash = self.table.get(&to).map(|entry| entry.member.name_hash);
        let objectionable =
            |record: &&Record| Some(record.id().name_hash) == name_hash && (record.id().life() != to || record.state() != Swim::Alive);
        let records: Vec<Record> = self.swim.iter_membership_state().filter(|record| all || objectionable(record)).cloned().collect();
        let packets = write_records(&me, &records, ask);
        self.outputs.extend(packets.into_iter().map(|packet| MemberOutput::Packet { to, bytes: packet.into() }));
    }

    /// A sum over everyone who lives, this node included: equal when two nodes know the same. Never 0.
    fn sum(&self) -> u64 {
        let me = self.swim.identity();
        let others = self.swim.iter_members().map(foca::Member::id).filter(|id| id.name_hash != me.name_hash);
        let sum = others.chain([me]).fold(0_u64, |sum, id| {
            let mut bytes = [0; 28];
            let parts =
                [&id.name_hash.to_be_bytes()[..], &id.node.boot.to_be_bytes(), &id.renewals.to_be_bytes(), &id.life().bits().to_be_bytes()];
            for (to, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
                *to = *from;
            }
            sum.wrapping_add(first_u64(&blake3::hash(&bytes)))
        });
        sum.max(1)
    }

    fn mark_changed(&mut self) {
        if !self.changed {
            self.changed = true;
            self.outputs.push_back(MemberOutput::Changed);
        }
    }

    /// Compares the table with SWIM's records: foca tells of members that come and go, not of suspects. O(N log N).
    fn refresh(&mut self, now: Mono) {
        let me = self.swim.identity().life();
        let mut changed = false;
        let mut dead = 0;
        for entry in self.table.values_mut().filter(|entry| entry.member.node.life != me) {
            entry.current = false;
            dead += usize::from(entry.member.state == State::Dead && !entry.member.linked);
        }
        for record in self.swim.iter_membership_state().filter(|record| record.id().life() != me) {
            let life = record.id().life();
            if record.state() == Swim::Down && dead >= DEAD_KEEP.1 && !self.table.contains_key(&life) {
                continue;
            }
            let entry = self.table.entry(life).or_insert_with(|| {
                changed = true;
                Entry::new(record.id().clone(), &self.config, now)
            });
            changed |= entry.take(record, now);
        }
        let mut refuted = Vec::new();
        for (&life, entry) in self.table.iter_mut().filter(|(life, _)| **life != me) {
            if entry.conclude(now) {
                changed = true;
                // It should know what is said about it, in case it lives.
                if entry.member.linked && entry.current && entry.member.state != State::Alive {
                    refuted.push(life);
                }
            }
        }
        for life in refuted {
            self.send_records(life, None, false);
        }
        if dead > DEAD_KEEP.1 {
            self.forget(now);
        }
        if changed {
            self.choose_watched(now);
            self.mark_changed();
            self.reconnect(now);
        }
    }

    /// Drops lives that have been dead for a day, and the oldest of too many.
    fn forget(&mut self, now: Mono) {
        let mut dead: Vec<(Mono, Life)> = self
            .table
            .iter()
            .filter(|(_, entry)| entry.member.state == State::Dead && !entry.member.linked)
            .map(|(life, entry)| (entry.member.since, *life))
            .collect();
        dead.sort_unstable();
        let surplus = dead.len().saturating_sub(DEAD_KEEP.1);
        for (i, (since, life)) in dead.into_iter().enumerate() {
            let over = self.table.get(&life).is_some_and(|entry| !entry.current) && now.since(since) >= DEAD_KEEP.0;
            if i < surplus || over {
                self.table.remove(&life);
            }
        }
    }

    /// The next ones in the ring of those who live, by name hash.
    fn choose_watched(&mut self, now: Mono) {
        let me = self.swim.identity();
        let from = (me.name_hash, me.life());
        let mut ring: Vec<(u64, Life)> = self
            .table
            .values()
            .filter(|entry| entry.member.state != State::Dead && entry.member.node.life != from.1)
            .map(|entry| (entry.member.name_hash, entry.member.node.life))
            .collect();
        ring.sort_unstable();
        let start = ring.partition_point(|other| *other < from);
        ring.rotate_left(start);
        let watched: Vec<Life> = ring.into_iter().take(WATCHED).map(|(_, life)| life).collect();
        for life in watched.iter().filter(|life| !self.watched.contains(life)) {
            if let Some(entry) = self.table.get_mut(life) {
                // Nobody promised to talk to this node before it asked.
                entry.heard = now;
            }
        }
        self.watched = watched;
    }

    fn tick(&mut self, now: Mono) {
        self.ticks = self.ticks.wrapping_add(1);
        self.refresh(now);
        let mut verdicts = Vec::new();
        for entry in self.table.values() {
            if entry.suspect_since.is_some_and(|since| now.since(since.max(entry.answered)) >= self.config.suspect_for) {
                verdicts.push(entry.record(Swim::Down));
            }
        }
        for life in self.watched.clone() {
            let Some(entry) = self.table.get_mut(&life).filter(|entry| entry.member.linked && entry.current) else { continue };
            if entry.swim == Swim::Alive && now.since(entry.heard) >= entry.patience {
                // Should others hear it and this node not, it will be suspected less and less often.
                entry.patience = (entry.patience * 2).min(Duration::from_secs(30));
                verdicts.push(entry.record(Swim::Suspect));
            }
            if self.ticks.is_multiple_of(ASK_TICKS) {
                let sum = if self.ticks.is_multiple_of(SUM_TICKS) { self.sum() } else { 0 };
                self.send_records(life, Some(sum), false);
            }
        }
        self.apply(now, verdicts);
        self.reconnect(now);
        if now >= self.forget_at {
            self.forget_at = now + FORGET;
            self.forget(now);
        }
    }

    /// Asks for links that are missing, and calls the dead whose link is still open.
    fn reconnect(&mut self, now: Mono) {
        // Former lives of this node are not called: this node is what has become of them.
        let me = self.swim.identity().name_hash;
        let mut called = Vec::new();
        for (&life, entry) in self.table.iter_mut().filter(|(_, entry)| entry.member.name_hash != me) {
            let dead = entry.member.state == State::Dead;
            if !entry.current || entry.retry_at > now || (entry.member.linked && !dead) {
                continue;
            }
            entry.retry_at = now + (now.since(entry.unlinked_since) / 4).clamp(RETRY.0, RETRY.1);
            if entry.member.linked {
                called.push(life);
            } else {
                let (name, addr) = (entry.member.node.name.clone(), entry.member.node.addr.clone());
                self.outputs.push_back(MemberOutput::Connect { name, addr, life });
            }
        }
        for life in called {
            self.send_records(life, Some(0), false);
        }
    }
}

fn first_u64(hash: &blake3::Hash) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_be_bytes(first)
}
