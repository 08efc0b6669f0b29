//! The engine: shards of sessions, membership and links behind one face of plain calls.
//!
//! It never waits, reads a clock, draws randomness or touches a socket. Calls fall into four kinds: what the application does
//! (`create`, `open`, `commit`, `finish_read`, `end`, `rotate_*`, `close`); what the world tells it (`handle_*`); what the
//! driver fetches (`take_*`, `next_timer`); and what anybody may look at (`info`, `members`, `stats`). Each call appends its
//! effects to an [`Outputs`]; the driver carries them out after the call.
//!
//! Locks: one per shard, one for the membership, taken before a shard's if both are needed; never two shards at once.

use crate::config::{Checked, Durability};
use crate::cx::{Call, Cx, Shared};
use crate::id::SessionKey;
use crate::limits::VIEWS_MAX;
use crate::link::Link;
use crate::maps::Map;
use crate::member::{Member, MemberConfig, MemberOutput, Membership, Node, NodeError, State};
use crate::output::{
    Brought, Commit, Info, LinkId, Live, Loaded, Open, Opened, Output, Outputs, Over, Ticket, Touch, Unavailable, Want, Write, Written,
};
use crate::pending::Following;
use crate::placement::name_hash;
use crate::record::{Change, Record};
use crate::session::Session;
use crate::shard::Shard;
use crate::stamp::{Life, Stamp};
use crate::time::Mono;
use crate::view::{Health, Peer, View};
use crate::wire::{FrameError, Message, WireMember, WireView, decode, frame_len};
use core::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A loop gap beyond which this node doubts what it owns.
pub const STALL: Duration = Duration::from_secs(1);
/// How long a node waits for somebody to answer before it believes that it is the first of its cluster.
pub const FORMING: Duration = Duration::from_secs(30);
/// A second link to the same life within this time is the other end's simultaneous connect.
const SIMULTANEOUS: Duration = Duration::from_secs(1);
/// So long after a link has opened it is not asked for again: two ends must not chase each other, nor a link that keeps breaking be
/// opened without end. The lesser life, whose connection would stay, calls first.
const PACE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// What happened to a connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LinkEvent {
    /// A handshake succeeded.
    Up {
        /// The peer, as its handshake named it.
        node: Node,
        /// Whether this node opened the connection.
        initiated: bool,
    },
    /// It closed.
    Closed,
}

/// How a drain is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// What is held here and not known to be safe elsewhere.
    pub left: u64,
    /// So many of them came when the node was leaving already, from clients that did not care. They keep coming for as long as requests
    /// do.
    pub newcomers: u64,
    /// There is nobody who could take them.
    pub alone: bool,
    /// Sessions of which the store has all but their last use; counted while there is nobody else to tell.
    pub untold: u64,
}

/// Numbers for metrics, readiness and the demo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Sessions that this node owns.
    pub owned: u64,
    /// Copies it holds for other owners.
    pub backed: u64,
    /// Owned sessions whose copies are not where they should be yet, and ended ones whose markers are not.
    pub under_replicated: u64,
    /// Sessions that wait to be written to the store, those included whose write is on its way or failed and is to be tried again.
    pub dirty: u64,
    /// How long the oldest of them has waited.
    pub dirty_age: Duration,
    /// Claim rounds that run.
    pub rounds: u64,
    /// Requests that were refused because a bound was reached ([`limits`](crate::limits)): too many sessions, rounds, or requests that wait
    /// for one session. Counted since the start.
    pub refused: u64,
    /// Promises and markers of ends that were forgotten before their time, because there were too many. Counted since the start.
    pub forgotten: u64,
    /// Live members, this node included.
    pub members: u64,
    /// A hash of who they are: nodes that agree show the same, and no membership ever comes back once a node has been started again.
    pub membership: u64,
    /// All members have finished what this membership asked of them: every copy and every marker is where it should be.
    pub settled: bool,
}

/// See the [module](self).
pub struct Engine<L> {
    me: Life,
    config: Checked,
    shards: Box<[Mutex<Shard<L>>]>,
    shared: Shared,
    world: Mutex<World>,
    links: RwLock<Map<LinkId, Arc<Link>>>,
    /// The earliest timer of any shard, in microseconds; may be too early, never too late.
    earliest: AtomicI64,
    /// The membership's timer, in microseconds: whoever asks when to come next must not wait for a lock that a change of the membership
    /// holds.
    member_due: AtomicI64,
    swept: AtomicU64,
    /// Which shard's writes are taken first, and which one's touches.
    turns: [AtomicUsize; 2],
}

impl<L> core::fmt::Debug for Engine<L> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Engine").field("me", &self.me).finish_non_exhaustive()
    }
}

struct World {
    members: Membership,
    links: BTreeMap<Life, (Arc<Link>, Mono)>,
    /// When a link to that life was last opened: two ends that both connect at once must not chase each other.
    opened: BTreeMap<Life, Mono>,
    /// The membership whose walk each member has finished.
    settled: BTreeMap<Life, u64>,
    /// The membership whose walk this node has announced as finished.
    announced: Option<u64>,
    past: Vec<WireView>,
    /// The membership of the last view.
    before: WireView,
    past_lost: bool,
    doubt: u32,
    doubts: BTreeMap<Life, u32>,
    generation: u32,
    /// How many views there have been.
    order: u64,
    digest: u64,
    formed: bool,
    refused: bool,
    started: Mono,
    leaving: bool,
}

impl<L: Live> Engine<L> {
    /// An engine for one life of this node. `seed` must differ between lives; jitter and gossip draw from it.
    pub fn new(config: Checked, node: Node, seed: u64, now: Mono) -> Result<Engine<L>, NodeError> {
        let me = node.life;
        let node = Node { backups: config.backups, stores: config.durability == Durability::Store, ..node };
        let members = Membership::new(node, MemberConfig::default(), seed, now)?;
        let mut world = World {
            digest: members.digest(),
            members,
            links: BTreeMap::new(),
            opened: BTreeMap::new(),
            settled: BTreeMap::new(),
            announced: None,
            past: Vec::new(),
            before: WireView { backups: 0, stores: false, members: Vec::new() },
            past_lost: false,
            doubt: 0,
            doubts: BTreeMap::new(),
            generation: 0,
            order: 0,
            formed: false,
            refused: false,
            started: now,
            leaving: false,
        };
        let view = Arc::new(world.view(me));
        let shards =
            (0..config.shards).map(|i| Mutex::new(Shard::new(view.clone(), seed ^ u64::from(i).wrapping_mul(0x9e37_79b9)))).collect();
        let (links, earliest, swept) = (RwLock::default(), AtomicI64::new(i64::MAX), AtomicU64::new(0));
        let member_due = AtomicI64::new(micros(world.members.next_timer()));
        Ok(Engine {
            me,
            config,
            shards,
            shared: Shared::default(),
            world: Mutex::new(world),
            links,
            earliest,
            member_due,
            swept,
            turns: Default::default(),
        })
    }

    /// This life.
    pub fn life(&self) -> Life {
        self.me
    }

    /// The settings.
    pub fn config(&self) -> &Checked {
        &self.config
    }

    fn session<R>(&self, now: Mono, key: SessionKey, out: &mut Outputs, f: impl FnOnce(&mut Session<L>, &mut Cx<'_>) -> R) -> R {
        self.with(now, self.place(key), out, |s, call| s.with(call, key, f))
    }

    fn place(&self, key: SessionKey) -> usize {
        key.bits() as usize & (self.shards.len() - 1)
    }

    #[expect(clippy::indexing_slicing, reason = "a place is a key's, which is below their number, or one that was counted up to it")]
    fn shard(&self, place: usize) -> &Mutex<Shard<L>> {
        &self.shards[place]
    }

    fn with<R>(&self, now: Mono, at: usize, out: &mut Outputs, f: impl FnOnce(&mut Shard<L>, &mut Call<'_>) -> R) -> R {
        let mut following = Vec::new();
        let result = self.locked(now, at, out, &mut following, f);
        if !following.is_empty() {
            self.follow(now, following, out);
        }
        result
    }

    /// Another shard may have what follows, and two are never locked at once.
    #[cold]
    fn follow(&self, now: Mono, mut following: Vec<Following>, out: &mut Outputs) {
        while let Some(Following { key, next, asker }) = following.pop() {
            let known = self.locked(now, self.place(next), out, &mut following, |s, call| s.with(call, next, |s, cx| s.end_next(cx)));
            if known {
                self.locked(now, self.place(key), out, &mut following, |s, call| s.with(call, key, |s, cx| s.followed(cx, next, asker)));
            }
        }
    }

    fn locked<R>(
        &self,
        now: Mono,
        at: usize,
        out: &mut Outputs,
        following: &mut Vec<Following>,
        f: impl FnOnce(&mut Shard<L>, &mut Call<'_>) -> R,
    ) -> R {
        let mut shard = self.shard(at).lock();
        let mut call = Call { now, config: &self.config, out, shared: &self.shared };
        let result = f(&mut shard, &mut call);
        shard.settle(&mut call);
        let queues = &mut shard.queues;
        if let Some((due, _, _)) = queues.timers.first() {
            self.earliest.fetch_min(due.micros(), Ordering::Relaxed);
        }
        if !queues.following.is_empty() {
            following.append(&mut queues.following);
        }
        result
    }

    // ---- the application ------------------------------------------------------------------------------------------------

    /// A session under an id that was drawn just now. It costs nobody anything until its first commit.
    pub fn create(&self, now: Mono, key: SessionKey, out: &mut Outputs) -> Result<Opened<L>, Unavailable> {
        self.session(now, key, out, |s, cx| s.create(cx))
    }

    /// Like [`create`](Engine::create), around a live session that is there already.
    pub fn create_with(&self, now: Mono, key: SessionKey, live: Arc<L>, out: &mut Outputs) -> Result<Opened<L>, Unavailable> {
        self.session(now, key, out, |s, cx| s.create_with(cx, live))
    }

    /// Opens a session. If it is owned here and nothing speaks against it: no message, no store call.
    pub fn open(&self, now: Mono, key: SessionKey, token: Option<Brought>, out: &mut Outputs) -> Open<L> {
        self.session(now, key, out, |s, cx| s.open(cx, token, Want::Use))
    }

    /// Opens a session without using it: it does not live longer for it.
    pub fn look(&self, now: Mono, key: SessionKey, token: Option<Brought>, out: &mut Outputs) -> Open<L> {
        self.session(now, key, out, |s, cx| s.open(cx, token, Want::Look))
    }

    /// Opens a session under a name that is not drawn at random, and begins it if nobody has it. That is as certain as "not found" is: all
    /// live members have answered, and of several nodes that begin it at once one does, and the others open it there.
    ///
    /// What has been under that name and has expired does not come back into it. One that has ended stays ended until nobody could bring
    /// it back, a day at most; who wants to use a name again removes its attributes instead of ending it.
    pub fn open_or_create(&self, now: Mono, key: SessionKey, token: Option<Brought>, out: &mut Outputs) -> Open<L> {
        self.session(now, key, out, |s, cx| s.open(cx, token, Want::Create))
    }

    /// Gives an opened session back; every [`Open::Here`] and [`create`](Engine::create) is closed exactly once.
    pub fn close(&self, now: Mono, at: &Opened<L>, out: &mut Outputs) {
        self.session(now, at.key, out, |s, cx| s.close(cx, at));
    }

    /// Commits changes. All or nothing.
    pub fn commit(&self, now: Mono, at: &Opened<L>, changes: &[Change], out: &mut Outputs) -> Commit {
        self.session(now, at.key, out, |s, cx| s.commit(cx, at, changes))
    }

    /// Commits changes to a session that another node owns (see [`Guest`](crate::output::Guest)).
    ///
    /// `read` is the last commit of what the request was served: its answer must include that too, so an owner that lacks it
    /// answers "conflict".
    pub fn commit_late(&self, now: Mono, key: SessionKey, read: Option<Stamp>, changes: &[Change], out: &mut Outputs) -> Ticket {
        self.session(now, key, out, |s, cx| s.park(cx, read, changes, None))
    }

    /// The last step of a rotation at a node that serves a copy: the session's owner ends it, and lets it go on as `next`, if the copy's
    /// last commit, `read`, is still the session's. Answered like a late commit; if it fails, `next` is to end instead.
    pub fn end_copied(&self, now: Mono, key: SessionKey, read: Stamp, next: SessionKey, out: &mut Outputs) -> Ticket {
        self.session(now, key, out, |s, cx| s.park(cx, Some(read), &[], Some(next)))
    }

    /// Ends a request that changed nothing: says whether all that it read is durable.
    pub fn finish_read(&self, now: Mono, at: &Opened<L>, out: &mut Outputs) -> Commit {
        self.session(now, at.key, out, |s, cx| s.finish_read(cx, at))
    }

    /// Ends a session for good, on every node that hears of it; it may go on as `next`. Needs no ownership. One that is known to have
    /// gone on under another id stays what it is: whoever would end it is to ask for it by that.
    pub fn end(&self, now: Mono, key: SessionKey, next: Option<SessionKey>, out: &mut Outputs) -> Ticket {
        self.session(now, key, out, |s, cx| s.end(cx, next))
    }

    /// The last step of a rotation, see [`rotate`](Engine::rotate). `None` if the session has ended, is not owned here any more, or has
    /// changed since it was copied: then `next` is to end instead.
    pub fn end_rotated(&self, now: Mono, at: &Opened<L>, next: SessionKey, out: &mut Outputs) -> Option<Ticket> {
        self.session(now, at.key, out, |s, cx| s.end_rotated(cx, at, next))
    }

    /// The first step of a rotation: the session's committed content becomes the first commit of `key`, with the same live
    /// session. The caller waits until that is durable, then [ends the old one](Engine::end_rotated), then answers. `None` if the session is not owned here any more.
    pub fn rotate(&self, now: Mono, at: &Opened<L>, key: SessionKey, out: &mut Outputs) -> Option<Opened<L>> {
        let from = self.session(now, at.key, out, |s, cx| s.fork_from(cx, at))?;
        self.session(now, key, out, |s, cx| s.fork_to(cx, from))
    }

    /// Reads the record of an opened session. Called under a shard's lock: copy handles, lock nothing.
    pub fn read<R>(&self, at: &Opened<L>, f: impl FnOnce(&Record, u32) -> R) -> Option<R> {
        let shard = self.shard(self.place(at.key)).lock();
        let (own, copy) = shard.owner(at.key).filter(|(own, _)| own.tenure == at.tenure)?;
        Some(f(&copy.record, own.external))
    }

    /// For the simulator's oracle: looks at the copy that is here, whoever owns it, and at the branch kept beside it.
    #[doc(hidden)]
    pub fn peek<R>(&self, key: SessionKey, f: impl FnOnce(&Record, Option<&Record>) -> R) -> Option<R> {
        let shard = self.shard(self.place(key)).lock();
        shard.copy(key).map(|copy| f(&copy.record, copy.branch.as_deref()))
    }

    // ---- the world ------------------------------------------------------------------------------------------------------

    /// A connection's handshake succeeded, or it closed.
    pub fn handle_link(&self, now: Mono, id: LinkId, event: LinkEvent, out: &mut Outputs) {
        let mut world = self.world.lock();
        match event {
            LinkEvent::Up { node, initiated } => {
                let life = node.life;
                if let Some((old, since)) = world.links.get(&life).cloned() {
                    // Both ends connected at once: both keep the connection that the lesser life opened.
                    if now.since(since) < SIMULTANEOUS && initiated != (self.me < life) {
                        out.push(Output::Close(id));
                        return;
                    }
                    out.push(Output::Close(old.id));
                    self.unlink(&mut world, &old);
                }
                let link = Arc::new(Link::new(id, life));
                self.links.write().insert(id, link.clone());
                world.links.insert(life, (link.clone(), now));
                world.opened.insert(life, now);
                // An observer knows of no session: having met it alone, "not found" would be a guess.
                world.formed |= !node.observer;
                let mut past = world.past.clone();
                past.push(world.present());
                link.send(&Message::Views(past), None, out);
                if let Some(digest) = world.announced {
                    link.send(&Message::Settled(digest), None, out);
                }
                if world.members.handle_up(now, &node).is_err() {
                    out.push(Output::Close(id));
                }
            }
            LinkEvent::Closed => {
                let Some(link) = self.links.read().get(&id).cloned() else { return };
                self.unlink(&mut world, &link);
                if !world.links.contains_key(&link.life) {
                    world.members.handle_closed(now, link.life);
                }
            }
        }
        self.after_world(now, world, true, out);
    }

    /// Connecting to a member was refused: nobody listens there.
    pub fn handle_refused(&self, now: Mono, life: Life, out: &mut Outputs) {
        let mut world = self.world.lock();
        world.members.handle_refused(now, life);
        self.after_world(now, world, false, out);
    }

    /// All addresses that this node was given refused the connection: it is the first of its cluster.
    pub fn handle_nobody(&self, now: Mono, out: &mut Outputs) {
        let mut world = self.world.lock();
        if !world.formed {
            world.formed = true;
            self.after_world(now, world, true, out);
        }
    }

    /// Whether a member of its cluster refuses this node. As long as that is so and no other member has taken it, it serves no session
    /// and does not believe that it is the first, however long it waits.
    pub fn handle_refusal(&self, now: Mono, refused: bool, out: &mut Outputs) {
        let mut world = self.world.lock();
        if world.refused != refused {
            world.refused = refused;
            self.after_world(now, world, true, out);
        }
    }

    /// Whether this node has met its cluster, or is the first of it.
    pub fn is_formed(&self) -> bool {
        self.world.lock().formed
    }

    fn unlink(&self, world: &mut World, link: &Arc<Link>) {
        self.links.write().remove(&link.id);
        if world.links.get(&link.life).is_some_and(|(l, _)| l.id == link.id) {
            world.links.remove(&link.life);
            world.doubt += 1;
            world.doubts.insert(link.life, world.doubt);
        }
    }

    /// Bytes from a peer: handles every whole frame, acknowledges, and says how many bytes that was. An error closes the link.
    pub fn handle_bytes(&self, now: Mono, id: LinkId, bytes: &[u8], out: &mut Outputs) -> Result<usize, FrameError> {
        let link = self.links.read().get(&id).cloned().ok_or(FrameError::NoLink)?;
        let mut done = 0;
        while let Some(rest) = bytes.get(done..)
            && let Some(length) = frame_len(rest)?
            && let Some(frame) = rest.get(..length)
        {
            let (number, message) = decode(frame)?;
            link.arrived(number, &message)?;
            self.handle(now, &link, message, out)?;
            done += length;
        }
        if done > 0 {
            link.note_heard(now);
        }
        link.acknowledge(out);
        Ok(done)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are about a session, and have their arms where it handles them")]
    fn handle(&self, now: Mono, link: &Arc<Link>, message: Message<'_>, out: &mut Outputs) -> Result<(), FrameError> {
        let from = link.life;
        match message {
            Message::Gossip(packet) => {
                let mut world = self.world.lock();
                world.members.handle_packet(now, from, packet).map_err(|_| FrameError::Malformed)?;
                self.after_world(now, world, false, out);
            }
            Message::Settled(digest) => {
                let mut world = self.world.lock();
                world.settled.insert(from, digest);
                self.check_settled(now, &mut world, out);
            }
            Message::Views(views) => {
                let mut world = self.world.lock();
                world.remember(views);
                self.after_world(now, world, true, out);
            }
            Message::Ack(upto) => {
                for sent in link.acked(now, upto)? {
                    self.session(now, sent.key, out, |s, cx| s.handle_ack(cx, from, &sent));
                }
            }
            message => self.handle_session(now, from, message, out)?,
        }
        Ok(())
    }

    fn handle_session(&self, now: Mono, from: Life, message: Message<'_>, out: &mut Outputs) -> Result<(), FrameError> {
        let Some(key) = message.key() else { return Err(FrameError::Malformed) };
        self.session(now, key, out, |s, cx| s.handle(cx, from, message)).ok_or(FrameError::Malformed)
    }

    /// The store's answer to [`Output::Load`].
    pub fn handle_loaded(&self, now: Mono, key: SessionKey, loaded: &Loaded, out: &mut Outputs) {
        self.session(now, key, out, |s, cx| s.handle_loaded(cx, loaded));
    }

    /// Takes up to `most` writes for the store; each is answered with [`handle_written`](Engine::handle_written).
    pub fn take_writes(&self, now: Mono, most: usize, out: &mut Outputs) -> Vec<Write> {
        self.take(now, &self.turns[0], most, out, Shard::take_writes)
    }

    /// Takes up to `most` touches for the store; each is answered with [`handle_touched`](Engine::handle_touched). Beside the writes, so
    /// that neither keeps the other from a store that has too much to do.
    pub fn take_touches(&self, now: Mono, most: usize, out: &mut Outputs) -> Vec<Touch> {
        self.take(now, &self.turns[1], most, out, Shard::take_touches)
    }

    /// A fair share of every shard, then what is left of any, each time beginning where the last one ended.
    fn take<T>(
        &self,
        now: Mono,
        turn: &AtomicUsize,
        most: usize,
        out: &mut Outputs,
        take: impl Fn(&mut Shard<L>, &mut Call<'_>, usize, &mut Vec<T>),
    ) -> Vec<T> {
        let (mut taken, shards) = (Vec::new(), self.shards.len());
        for share in [most.div_ceil(shards), most] {
            let first = turn.load(Ordering::Relaxed);
            for at in first..first + shards {
                if taken.len() >= most {
                    turn.store(at % shards, Ordering::Relaxed);
                    return taken;
                }
                let upto = (taken.len() + share).min(most);
                self.with(now, at % shards, out, |s, call| take(s, call, upto, &mut taken));
            }
        }
        taken
    }

    /// What became of a touch.
    pub fn handle_touched(&self, now: Mono, key: SessionKey, written: Written, out: &mut Outputs) {
        self.session(now, key, out, |s, cx| s.handle_touched(cx, written));
    }

    /// The store is to hear of the last use of all that is owned here: before the last node ends.
    pub fn touch_rows(&self, now: Mono, out: &mut Outputs) {
        for at in 0..self.shards.len() {
            self.with(now, at, out, |s, call| s.touch_rows(call));
        }
    }

    /// What became of a write.
    pub fn handle_written(&self, now: Mono, key: SessionKey, written: Written, out: &mut Outputs) {
        self.session(now, key, out, |s, cx| s.handle_written(cx, written));
    }

    /// The store may have forgotten what it acknowledged, because an older copy of it was restored or it was gone for a while: what is
    /// owned here is compared with what is there, and what is missing is written again, markers of ends included.
    pub fn handle_store_forgot(&self, now: Mono, out: &mut Outputs) {
        for at in 0..self.shards.len() {
            self.with(now, at, out, |s, call| s.store_forgot(call));
        }
    }

    /// When [`handle_timer`](Engine::handle_timer) is due.
    pub fn next_timer(&self) -> Option<Mono> {
        let due = self.earliest.load(Ordering::Relaxed).min(self.member_due.load(Ordering::Relaxed));
        (due != i64::MAX).then(|| Mono::from_micros(due))
    }

    /// Wakes what is due.
    pub fn handle_timer(&self, now: Mono, out: &mut Outputs) {
        {
            let mut world = self.world.lock();
            for link in self.links.read().values() {
                let (heard, answered) = link.heard();
                world.members.note_frames(link.life, heard, answered);
            }
            world.members.handle_timer(now);
            if !world.formed && !world.refused && now.since(world.started) >= FORMING {
                world.formed = true;
                self.after_world(now, world, true, out);
            } else {
                self.after_world(now, world, false, out);
            }
        }
        if self.earliest.load(Ordering::Relaxed) <= now.micros() {
            // Whoever arms a timer from here on lowers it again.
            self.earliest.store(i64::MAX, Ordering::Relaxed);
            for at in 0..self.shards.len() {
                self.with(now, at, out, |s, call| s.wake(call));
            }
        }
    }

    /// Goes on with the walk and the sweep: call it every 10 to 100 ms. `budget` sessions are visited.
    pub fn handle_tick(&self, now: Mono, budget: usize, out: &mut Outputs) {
        let mut left = budget;
        for at in 0..self.shards.len() {
            if left == 0 {
                break;
            }
            left = self.with(now, at, out, |s, call| s.walk(call, left));
        }
        let next = self.swept.fetch_add(1, Ordering::Relaxed) as usize & (self.shards.len() - 1);
        self.with(now, next, out, |s, call| s.sweep(call));
        let mut world = self.world.lock();
        self.announce_settled(now, &mut world, out);
    }

    /// This node's own loop stood still so long: it doubts all it owns.
    pub fn handle_stall(&self, now: Mono, gap: Duration, out: &mut Outputs) {
        let mut world = self.world.lock();
        world.members.handle_stall(now, gap);
        world.doubt += 1;
        let (me, doubt) = (self.me, world.doubt);
        world.doubts.insert(me, doubt);
        self.after_world(now, world, true, out);
    }

    /// Begins to leave: successors are invited to claim what is owned here. Called again: once more, at once.
    pub fn drain(&self, now: Mono, out: &mut Outputs) {
        let mut world = self.world.lock();
        if world.leaving {
            drop(world);
            for at in 0..self.shards.len() {
                self.with(now, at, out, |s, call| s.invite_all(call));
            }
        } else {
            world.leaving = true;
            world.members.leave(now);
            self.after_world(now, world, true, out);
        }
    }

    /// How the drain is going. When `left` is 0 the process may exit.
    pub fn drained(&self) -> Drained {
        let (mut left, mut newcomers, mut alone, mut untold) = (0, 0, true, 0);
        for shard in &self.shards {
            let shard = shard.lock();
            alone &= !shard.view.others().any(|p| !p.leaving && p.health != Health::Gone);
            let (all, new) = shard.left(&self.config);
            (left, newcomers) = (left + all, newcomers + new);
            if alone && self.config.store {
                untold += shard.untold().count() as u64;
            }
        }
        Drained { left, newcomers, alone, untold: if alone { untold } else { 0 } }
    }

    /// The last word: peers hear that this life is down, and whether all that it held is elsewhere. If not, they count it as one that
    /// was killed.
    pub fn stop(&self, now: Mono, out: &mut Outputs) {
        let handed_over = self.drained().left == 0;
        let mut world = self.world.lock();
        let leaving = world.leaving;
        world.members.stop(now, leaving && handed_over);
        self.after_world(now, world, false, out);
    }

    /// Bytes to write to a link.
    pub fn take_bytes(&self, id: LinkId, into: &mut Vec<u8>) {
        if let Some(link) = self.links.read().get(&id) {
            link.take(into);
        }
    }

    /// Whether something that was written to a link waits for its acknowledgement: what comes next need not hurry, and goes with more
    /// in one write.
    pub fn is_busy(&self, id: LinkId) -> bool {
        self.links.read().get(&id).is_some_and(|link| link.is_busy())
    }

    /// Carries out what the membership wants, and tells the shards if it changed.
    fn after_world(&self, now: Mono, mut world: MutexGuard<'_, World>, mut changed: bool, out: &mut Outputs) {
        while let Some(output) = world.members.poll() {
            match output {
                MemberOutput::Packet { to, bytes } => {
                    if let Some((link, _)) = world.links.get(&to) {
                        link.send(&Message::Gossip(serde_bytes::Bytes::new(&bytes)), None, out);
                    }
                }
                MemberOutput::Connect { life, addr, .. } => {
                    // The membership asks again, a moment later.
                    let pace = if self.me < life { PACE.0 } else { PACE.1 };
                    if world.opened.get(&life).is_none_or(|at| now.since(*at) >= pace) {
                        out.push(Output::Connect { life, addr });
                    }
                }
                MemberOutput::Changed => changed = true,
                MemberOutput::Renewed => {
                    world.doubt += 1;
                    let doubt = world.doubt;
                    world.doubts.insert(self.me, doubt);
                    changed = true;
                }
                MemberOutput::Rebooted { boot } => out.push(Output::Rebooted(boot)),
                MemberOutput::Superseded { by } => out.push(Output::Superseded(by)),
            }
        }
        self.member_due.store(micros(world.members.next_timer()), Ordering::Relaxed);
        if !changed {
            return;
        }
        let digest = world.members.digest();
        if digest != world.digest {
            let before = world.before.clone();
            world.digest = digest;
            world.remember(vec![before]);
            world.announced = None;
        }
        world.before = world.present();
        world.generation += 1;
        let view = Arc::new(world.view(self.me));
        // A visit to all sessions is planned: nobody waits for the membership meanwhile. Whoever changes it again overtakes this, and a
        // shard does not go back.
        drop(world);
        for at in 0..self.shards.len() {
            self.with(now, at, out, |s, call| s.set_view(call, view.clone()));
        }
        out.push(Output::Members);
        self.announce_settled(now, &mut self.world.lock(), out);
    }

    /// Says that the walk under this membership is finished, once it is.
    fn announce_settled(&self, now: Mono, world: &mut World, out: &mut Outputs) {
        let generation = world.generation;
        let settled = |shard: &Mutex<Shard<L>>| {
            let shard = shard.lock();
            shard.view.generation == generation && shard.is_settled()
        };
        if world.announced == Some(world.digest) || !self.shards.iter().all(settled) {
            return;
        }
        world.announced = Some(world.digest);
        for (link, _) in world.links.values() {
            link.send(&Message::Settled(world.digest), None, out);
        }
        self.check_settled(now, world, out);
    }

    /// All live members have finished: the past need not be asked any more.
    fn check_settled(&self, now: Mono, world: &mut World, out: &mut Outputs) {
        let me = self.me;
        let digest = world.digest;
        let others: Vec<Life> = world.live().filter(|l| *l != me).collect();
        let all = world.announced == Some(digest) && others.iter().all(|l| world.settled.get(l) == Some(&digest));
        if all && (!world.past.is_empty() || world.past_lost) {
            world.past.clear();
            world.past_lost = false;
            let view = Arc::new(world.view(me));
            for at in 0..self.shards.len() {
                // No visit is due: only who is asked has changed.
                self.with(now, at, out, |s, call| match s.view.generation == view.generation {
                    true => s.view = view.clone(),
                    false => s.set_view(call, view.clone()),
                });
            }
        }
    }

    // ---- looking --------------------------------------------------------------------------------------------------------

    /// What this node knows of a session.
    pub fn info(&self, key: SessionKey) -> Option<Info> {
        self.shard(self.place(key)).lock().info(key, &self.config)
    }

    /// How a session is over, if that is known here.
    pub fn over(&self, key: SessionKey) -> Option<Over> {
        self.shard(self.place(key)).lock().over(key)
    }

    /// The members, this node included.
    pub fn members(&self) -> Vec<Member> {
        self.world.lock().members.members().cloned().collect()
    }

    /// This node as its handshakes name it.
    pub fn me(&self) -> Node {
        Node::clone(self.world.lock().members.me())
    }

    /// The name of the node that a life belonged to, if it is still remembered.
    pub fn name_of(&self, life: Life) -> Option<Box<str>> {
        self.world.lock().members.members().find(|m| m.node.life == life).map(|m| m.node.name.clone())
    }

    /// Which nodes would hold a session, in order: for a gateway that looks for a backup of a dead node's session.
    pub fn placed(&self, key: SessionKey) -> Vec<Life> {
        self.shard(self.place(key)).lock().view.list(key).to_vec()
    }

    /// Numbers.
    pub fn stats(&self, now: Mono) -> Stats {
        let (membership, settled) = {
            let world = self.world.lock();
            (world.digest, world.past.is_empty() && !world.past_lost)
        };
        let (mut dirty, mut rounds, mut under, mut oldest) = (0, 0, 0, now);
        let mut members = 0;
        for shard in &self.shards {
            let shard = shard.lock();
            let (waiting, since) = shard.unwritten();
            (dirty, oldest) = (dirty + waiting, oldest.min(since));
            rounds += shard.queues.rounds.len() as u64;
            under += shard.queues.repairing.len() as u64;
            members = shard.view.peers.iter().filter(|p| !p.observer && p.health != Health::Gone).count() as u64;
        }
        let (refused, forgotten) = (self.shared.busy.load(Ordering::Relaxed), self.shared.forgotten.load(Ordering::Relaxed));
        let owned = self.shared.owned.load(Ordering::Relaxed);
        let held = self.shared.held.load(Ordering::Relaxed);
        let (backed, dirty_age) = (held.saturating_sub(owned), now.since(oldest));
        Stats { owned, backed, under_replicated: under, dirty, dirty_age, rounds, refused, forgotten, members, membership, settled }
    }
}

/// A timer as a number: never is the greatest.
fn micros(timer: Option<Mono>) -> i64 {
    timer.map_or(i64::MAX, Mono::micros)
}

impl World {
    /// The members that are not dead and can hold sessions.
    fn live(&self) -> impl Iterator<Item = Life> + '_ {
        self.members.members().filter(|m| m.state != State::Dead && !m.node.observer).map(|m| m.node.life)
    }

    /// This membership in the form that is remembered and sent.
    fn present(&self) -> WireView {
        let live = self.members.members().filter(|m| m.state != State::Dead && !m.leaving && !m.node.observer);
        let mut members: Vec<WireMember> = live.map(|m| WireMember { name: name_hash(&m.node.name), zone: m.node.zone }).collect();
        members.sort_unstable_by_key(|m| m.name);
        WireView { backups: self.backups(), stores: self.stores(), members }
    }

    /// How many copies are made: as many as the greatest of the members wants, one that leaves included, for it still answers.
    fn backups(&self) -> u8 {
        let live = self.members.members().filter(|m| m.state != State::Dead && !m.node.observer);
        live.map(|m| m.node.backups).max().unwrap_or(0)
    }

    /// Whether somebody may have called a commit done that is in the store alone. The dead count as long as they are remembered: their
    /// heirs may come late.
    fn stores(&self) -> bool {
        self.members.members().any(|m| m.node.stores && !m.node.observer) || self.past.iter().any(|view| view.stores)
    }

    /// Keeps memberships that were not settled.
    fn remember(&mut self, views: Vec<WireView>) {
        for view in views {
            if view.members.is_empty() || self.past.contains(&view) {
                continue;
            }
            if self.past.len() >= VIEWS_MAX {
                self.past_lost = true;
                self.past.remove(0);
            }
            self.past.push(view);
        }
    }

    fn view(&mut self, me: Life) -> View {
        self.order += 1;
        let mut peers: Vec<Peer> = Vec::new();
        let mut dead = Vec::new();
        for m in self.members.members() {
            let reborn =
                || self.members.members().any(|o| o.node.name == m.node.name && o.node.life != m.node.life && o.state != State::Dead);
            let health = match m.state {
                State::Alive => Health::Alive,
                State::Suspect => Health::Suspect,
                State::Gone => Health::Gone,
                State::Dead => {
                    // One that said so had handed over what it held; the memory of one that was reborn is gone: both have answered.
                    dead.push((m.node.life, m.since, m.node.observer || m.handed_over || reborn()));
                    continue;
                }
            };
            peers.push(Peer {
                life: m.node.life,
                name: name_hash(&m.node.name),
                zone: m.node.zone,
                health,
                leaving: m.leaving,
                observer: m.node.observer,
                link: self.links.get(&m.node.life).map(|(l, _)| l.clone()),
                doubt: self.doubts.get(&m.node.life).copied().unwrap_or(0),
            });
        }
        peers.sort_unstable_by_key(|p| p.life);
        View {
            me,
            generation: self.generation,
            order: self.order,
            peers,
            links: self.links.iter().map(|(life, (link, _))| (*life, link.clone())).collect(),
            past: self.past.clone(),
            past_lost: self.past_lost,
            doubt: self.doubt,
            dead,
            started: self.started,
            formed: self.formed,
            refused: self.refused && !self.formed,
            leaving: self.leaving,
            backups: usize::from(self.backups()),
            stores: self.stores(),
        }
    }
}

#[cfg(test)]
mod tests;
