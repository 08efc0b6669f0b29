//! What is known of what was done: the values that clients committed, what they were told of them, who has learnt what. Each invariant is a
//! file of its own and opens with what it promises; what may be otherwise is in [`excuse`], and nowhere else.

mod absence;
mod agreement;
mod claims;
mod conflicts;
mod ends;
pub(crate) mod excuse;
mod exits;
pub(crate) mod expiry;
mod foreign;
mod holders;
mod inclusion;
mod info;
mod liveness;
mod size;
mod stamps;
mod survival;

use crate::client::{list_of, own_of};
use crate::marks::Mark;
use crate::options::S;
use crate::world::World;
use excuse::{ALL_OF_IT, Excuse};
use expiry::Span;
use outlive_core::config::{Level, OnLost};
use outlive_core::id::SessionKey;
use outlive_core::lineage::Lineage;
use outlive_core::output::{Event, Opened};
use outlive_core::record::Record;
use outlive_core::stamp::{Claim, Life, Stamp};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What a client was told of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Running,
    Ok,
    Failed,
    Unknown,
}

/// One committed number.
#[derive(Clone, Debug)]
struct Value {
    client: usize,
    in_list: bool,
    fate: Fate,
    /// The commit that it is, as its answer said or its attribute does.
    stamp: Option<Stamp>,
    /// It was sent to an owner.
    late: bool,
    /// Answered at this level to somebody: it must survive as that says.
    acked: Option<Level>,
    /// Why it need not be anywhere any more.
    lost: Option<Excuse>,
    /// A conflict was reported, and the list has gone on without it.
    overruled: bool,
    /// Why it need not be in a record whose lineage includes it.
    removed: Option<Excuse>,
    exits: Exits,
    /// The fewest copies that an owner made since: as many as the greatest of those that it held to be living wants.
    wanted: u32,
}

/// What became of a value's holders since enough of them were seen.
#[derive(Clone, Debug, Default)]
struct Exits {
    crashed: u32,
    given_up: u32,
    handed_over: u32,
    /// Those that left in order, since it was seen to be held as its level says.
    left: u32,
    /// When holders crashed, and when they left in order, whether or not enough were seen since.
    crashed_at: Vec<i64>,
    left_at: Vec<i64>,
}

impl Value {
    fn new(client: usize, in_list: bool) -> Value {
        let exits = Exits::default();
        let (late, overruled, lost, removed, wanted) = (false, false, None, None, u32::MAX);
        Value { client, in_list, fate: Fate::Running, stamp: None, late, acked: None, overruled, lost, removed, exits, wanted }
    }

    /// It need be nowhere.
    fn released(&self) -> [(Excuse, u32); 2] {
        let all = |why: Option<Excuse>| why.map_or((Excuse::Outlived, 0), |excuse| (excuse, ALL_OF_IT));
        [all(self.removed), all(self.lost)]
    }

    fn is_owed(&self) -> bool {
        self.acked.is_some() && self.lost.is_none() && self.removed.is_none()
    }
}

/// One session id.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) key: SessionKey,
    /// The same for all ids of a rotated session.
    pub(crate) family: u32,
    values: BTreeMap<u32, Value>,
    /// A client has its cookie.
    pub(crate) created: bool,
    /// Nobody has its id.
    pub(crate) abandoned: bool,
    /// How many have asked for its end, without those to whom its owner said no.
    pub(crate) end_asked: u32,
    /// Which processes know that it ended.
    ended_at: BTreeMap<(usize, u32), i64>,
    contents: HashMap<Stamp, (u64, Lineage)>,
    /// Counts what the oracle has learnt about this session.
    learnt: u64,
    /// The last commit that each process had, and what was known then: nothing new, nothing to check.
    looked: HashMap<(usize, u32), (Stamp, u64)>,
    /// The last version of each claim that its owner said to be durable.
    durable: HashMap<Claim, u32>,
    /// The greatest claim that anybody was seen to own it under.
    owned: Claim,
    pub(crate) span: Span,
    /// It may have expired: nobody owes anything.
    pub(crate) outlived: bool,
    outlived_at: i64,
    /// An owner has said that it expired, in time, and nobody has changed it since. Who brings it back within the allowance, not having
    /// heard of that, may find it gone at the next node.
    expired: bool,
}

impl Session {
    fn new(key: SessionKey, family: u32) -> Session {
        Session {
            key,
            family,
            values: BTreeMap::new(),
            created: false,
            abandoned: false,
            end_asked: 0,
            ended_at: BTreeMap::new(),
            contents: HashMap::new(),
            learnt: 0,
            durable: HashMap::new(),
            owned: Claim::NONE,
            looked: HashMap::new(),
            span: Span::none(),
            outlived: false,
            outlived_at: -60 * S,
            expired: false,
        }
    }

    pub(crate) fn allocate(&mut self, value: u32, client: usize, in_list: bool) {
        self.expired = false;
        self.learnt += 1;
        self.values.insert(value, Value::new(client, in_list));
    }

    pub(crate) fn late(&mut self, value: u32) {
        self.learnt += 1;
        if let Some(v) = self.values.get_mut(&value) {
            v.late = true;
        }
    }

    pub(crate) fn decide(&mut self, value: u32, fate: Fate) {
        self.learnt += 1;
        if let Some(v) = self.values.get_mut(&value) {
            v.fate = fate;
        }
    }

    pub(crate) fn all(&self) -> BTreeSet<u32> {
        self.values.keys().copied().collect()
    }

    pub(crate) fn has(&self, value: u32) -> bool {
        self.values.contains_key(&value)
    }

    fn has_ended(&self) -> bool {
        self.end_asked > 0 || self.abandoned || !self.ended_at.is_empty()
    }

    /// It has ended, or has expired by every clock or as its owner has said in time: nothing of it is owed.
    fn is_over(&self, now: i64) -> bool {
        !self.ended_at.is_empty() || self.outlived && (self.expired || self.span.is_over(now))
    }

    /// The process that was the first to know of its end.
    pub(crate) fn ended_first(&self) -> Option<(usize, u32)> {
        self.ended_at.iter().min_by_key(|(_, at)| **at).map(|(process, _)| *process)
    }

    /// Why nobody need have anything of it.
    fn over(&self) -> [(Excuse, u32); 5] {
        let all = |excuse, applies: bool| (excuse, if applies { ALL_OF_IT } else { 0 });
        [
            all(Excuse::Ended, !self.ended_at.is_empty()),
            all(Excuse::SaidExpired, self.expired && !self.outlived),
            all(Excuse::EndAsked, self.end_asked > 0),
            all(Excuse::NobodyHasIt, self.abandoned),
            all(Excuse::Outlived, self.outlived),
        ]
    }

    /// What an owner has answered, and why that need not be anywhere any more.
    pub(crate) fn answered_by(&self, owner: Life) -> impl Iterator<Item = (u32, [(Excuse, u32); 2])> + '_ {
        self.answered().filter(move |(_, v)| v.stamp.is_some_and(|s| s.claim.life == owner)).map(|(n, v)| (n, v.released()))
    }

    /// What was answered.
    fn answered(&self) -> impl Iterator<Item = (u32, &Value)> {
        self.values.iter().filter(|(_, v)| v.acked.is_some()).map(|(n, v)| (*n, v))
    }

    /// What must be there.
    fn owed(&self) -> impl Iterator<Item = (u32, &Value)> {
        self.answered().filter(|(_, v)| v.is_owed())
    }

    fn lose(&mut self, why: Excuse) {
        for v in self.values.values_mut() {
            v.lost.get_or_insert(why);
        }
    }
}

/// A record that is looked at.
struct Seen<'a> {
    record: &'a Record,
    /// The numbers in its list, and those that have an attribute of their own.
    list: Vec<u32>,
    own: BTreeSet<u32>,
}

impl World {
    pub(crate) fn new_session(&mut self) -> usize {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.rng.next().to_be_bytes());
        bytes[8..].copy_from_slice(&self.rng.next().to_be_bytes());
        let key = SessionKey::from_bytes(bytes);
        let at = self.sessions.len();
        self.by_key.insert(key, at);
        self.sessions.push(Session::new(key, at as u32));
        at
    }

    /// The id that a rotation makes.
    pub(crate) fn rotated_session(&mut self, from: usize) -> usize {
        let at = self.new_session();
        let family = self.sessions[from].family;
        let values = self.sessions[from].values.clone();
        let span = self.sessions[from].span;
        let s = &mut self.sessions[at];
        (s.family, s.span, s.values) = (family, span, values);
        for v in s.values.values_mut() {
            (v.stamp, v.acked, v.lost) = (None, None, None);
            (v.exits.crashed, v.exits.given_up, v.exits.handed_over, v.exits.left) = (0, 0, 0, 0);
        }
        at
    }

    /// A rotation has copied these values.
    pub(crate) fn forked(&mut self, session: usize, node: usize, new: &Opened<()>) {
        let record = self.nodes[node].proc.as_ref().and_then(|p| p.engine.read(new, |r, _| r.clone()));
        let Some(record) = record else { return self.violate(format!("n{node} rotated and cannot read {:?}", new.key)) };
        // A merge that had no room may have left a value's own attribute out, and not the list.
        let mut there = own_of(&record);
        there.extend(list_of(&record).1);
        self.sessions[session].values.retain(|n, _| there.contains(n));
        self.see(node, session, &record, "rotated");
    }

    /// Checks a record that a node holds or serves.
    pub(crate) fn see(&mut self, node: usize, session: usize, record: &Record, how: &str) {
        let seen = Seen { record, list: list_of(record).1, own: own_of(record) };
        let World { sessions, excuses, opts, .. } = self;
        let s = &mut sessions[session];
        let wrong = size::wrong(&seen, opts.record_max)
            .or_else(|| foreign::wrong(&seen, s))
            .or_else(|| stamps::wrong(&seen, s, excuses))
            .or_else(|| inclusion::wrong(&seen, s, excuses))
            .or_else(|| conflicts::wrong(&seen, s, excuses));
        if let Some(wrong) = wrong {
            let key = s.key;
            self.violate(format!("{wrong}; {key:?} at n{node}, {how}, tip {:?}", record.tip));
        }
    }

    /// A handler gets this record.
    pub(crate) fn served(&mut self, id: u64, record: &Record) {
        let Some(r) = self.reqs.get(&id) else { return };
        let (node, generation, session, token) = (r.node, r.generation, r.session, r.token);
        let came = r.came;
        self.served_late(id);
        self.check_logged_out(node, session, came);
        self.see(node, session, record, "served");
        if self.served_ended(node, generation, session) {
            return;
        }
        if let Some(token) = token {
            self.mark(Mark::TokenServed);
            self.served_older(id, record, token);
        }
    }

    /// Looks at every copy there is.
    pub(crate) fn look_at_all(&mut self) {
        for session in 0..self.sessions.len() {
            let mut owners: BTreeMap<Claim, usize> = BTreeMap::new();
            for node in 0..self.nodes.len() {
                self.look_at(session, node, &mut owners);
            }
            let holders = self.holders(session);
            self.check_info(session, &holders);
            self.find_everything(session, &holders);
        }
    }

    /// Looks at a node's copy of a session.
    fn look_at(&mut self, session: usize, node: usize, owners: &mut BTreeMap<Claim, usize>) {
        let Some(p) = self.nodes[node].proc.as_ref() else { return };
        let (generation, key) = (p.generation, self.sessions[session].key);
        let looked = self.sessions[session].looked.get(&(node, generation)).copied();
        let learnt = self.sessions[session].learnt;
        let known = |tip: Stamp, branch: bool| !branch && looked == Some((tip, learnt));
        let copy = p.engine.peek(key, |r, b| (r.tip, (!known(r.tip, b.is_some())).then(|| (r.clone(), b.cloned()))));
        let Some((tip, fresh)) = copy else { return };
        let info = p.engine.info(key);
        self.holds_ended(node, generation, session);
        if let Some(info) = info.filter(|i| i.owned) {
            self.owns(node, session, info.claim, owners);
        }
        let Some((record, branch)) = fresh else { return };
        self.see(node, session, &record, "held");
        if let Some(branch) = branch {
            self.see(node, session, &branch, "kept as a branch");
        }
        let learnt = self.sessions[session].learnt;
        self.sessions[session].looked.insert((node, generation), (tip, learnt));
    }

    pub(crate) fn note_event(&mut self, node: usize, generation: u32, key: SessionKey, event: &Event) {
        let Some(session) = self.by_key.get(&key).copied() else { return };
        match event {
            Event::Conflict { discarded } => self.note_conflict(node, session, discarded),
            Event::Moved { claim, .. } => {
                let s = &mut self.sessions[session];
                s.owned = s.owned.max(*claim);
            }
            Event::Ended(_) => {
                let now = self.now;
                self.sessions[session].ended_at.entry((node, generation)).or_insert(now);
            }
            Event::Expired => {
                let s = &mut self.sessions[session];
                s.expired |= s.outlived;
            }
            Event::Lost { stamps, .. } => {
                self.begins_anew(session, node);
                for stamp in stamps {
                    self.check_loss(node, session, *stamp);
                }
                if self.opts.on_lost == OnLost::New {
                    for v in self.sessions[session].values.values_mut() {
                        v.removed.get_or_insert(Excuse::LossReported);
                    }
                }
            }
            _ => {}
        }
    }
}
