//! What must hold, checked against what the engines do: the records they hold, the answers they give, the crashes they survive.

use crate::client::{Req, decode, list_of, own_of};
use crate::clocks::Span;
use crate::marks::Mark;
use crate::options::S;
use crate::rows::Row;
use crate::world::World;
use core::time::Duration;
use outlive_core::config::{Level, OnLost};
use outlive_core::id::SessionKey;
use outlive_core::lineage::Lineage;
use outlive_core::member::State;
use outlive_core::output::{Event, Opened};
use outlive_core::record::{LIMITS, LOST, Record};
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
pub(crate) struct Value {
    client: usize,
    in_list: bool,
    fate: Fate,
    /// The commit that it is, as its answer said or its attribute does.
    stamp: Option<Stamp>,
    /// A late commit may be made by several owners, each time as another commit.
    late: bool,
    /// Answered at this level to somebody: it must survive as that says.
    acked: Option<Level>,
    /// Lost by more crashes than its level survives.
    lost: bool,
    /// A loss emptied the session: it may be gone.
    cleared: bool,
    /// Crashes of holders since enough of them lived.
    crashes: u32,
    /// When holders crashed.
    recent: Vec<i64>,
    /// Holders that left in order since it was seen to be held as its level says.
    left: usize,
    /// The fewest copies that an owner made since: as many as the greatest of those that it held to be living wants.
    wanted: u32,
    /// The client had given up before it was committed.
    zombie: bool,
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
    list_conflict: bool,
    contents: HashMap<Stamp, (u64, Lineage)>,
    /// Counts what the oracle has learnt about this session.
    learnt: u64,
    /// The last commit that each process had, and what was known then: nothing new, nothing to check.
    looked: HashMap<(usize, u32), (Stamp, u64)>,
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
    pub(crate) fn allocate(&mut self, value: u32, client: usize, in_list: bool, zombie: bool) {
        self.expired = false;
        self.learnt += 1;
        let v = Value {
            client,
            in_list,
            fate: Fate::Running,
            stamp: None,
            late: false,
            acked: None,
            lost: false,
            cleared: false,
            crashes: 0,
            wanted: u32::MAX,
            recent: Vec::new(),
            left: 0,
            zombie,
        };
        self.values.insert(value, v);
    }

    pub(crate) fn zombie(&mut self, value: u32) {
        self.learnt += 1;
        if let Some(v) = self.values.get_mut(&value) {
            v.zombie = true;
        }
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

    pub(crate) fn over(&self) -> bool {
        self.has_ended() || self.outlived
    }

    fn has_ended(&self) -> bool {
        self.end_asked > 0 || self.abandoned || !self.ended_at.is_empty()
    }

    /// It may have expired. Whatever of it comes back, nothing has to.
    pub(crate) fn outlive(&mut self, now: i64) {
        (self.outlived, self.outlived_at) = (true, now);
        self.learnt += 1;
        for v in self.values.values_mut() {
            v.lost = true;
        }
    }

    /// What an owner has answered, and nothing has taken away since.
    pub(crate) fn answered_by(&self, owner: Life) -> impl Iterator<Item = u32> + '_ {
        self.expected().filter(move |(_, v)| v.stamp.is_some_and(|s| s.claim.life == owner)).map(|(n, _)| n)
    }

    /// The process that was the first to know of its end.
    pub(crate) fn ended_first(&self) -> Option<(usize, u32)> {
        self.ended_at.iter().min_by_key(|(_, at)| **at).map(|(process, _)| *process)
    }

    pub(crate) fn has(&self, value: u32) -> bool {
        self.values.contains_key(&value)
    }

    /// What must be there.
    fn expected(&self) -> impl Iterator<Item = (u32, &Value)> {
        self.values.iter().filter(|(_, v)| v.acked.is_some() && !v.lost && !v.cleared).map(|(n, v)| (*n, v))
    }
}

fn fold(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn content(record: &Record) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for a in record.attributes() {
        hash = fold(fold(fold(hash, a.name.as_bytes()), &a.dot.to_bytes()), &a.value);
    }
    hash
}

impl World {
    pub(crate) fn new_session(&mut self) -> usize {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.rng.next().to_be_bytes());
        bytes[8..].copy_from_slice(&self.rng.next().to_be_bytes());
        let key = SessionKey::from_bytes(bytes);
        let at = self.sessions.len();
        self.by_key.insert(key, at);
        self.sessions.push(Session {
            key,
            family: at as u32,
            values: BTreeMap::new(),
            created: false,
            abandoned: false,
            end_asked: 0,
            ended_at: BTreeMap::new(),
            list_conflict: false,
            contents: HashMap::new(),
            learnt: 0,
            owned: Claim::NONE,
            looked: HashMap::new(),
            span: Span::none(),
            outlived: false,
            outlived_at: -60 * S,
            expired: false,
        });
        at
    }

    /// The id that a rotation makes.
    pub(crate) fn rotated_session(&mut self, from: usize) -> usize {
        let at = self.new_session();
        let (family, conflict) = (self.sessions[from].family, self.sessions[from].list_conflict);
        let values = self.sessions[from].values.clone();
        let span = self.sessions[from].span;
        let s = &mut self.sessions[at];
        (s.family, s.list_conflict) = (family, conflict);
        s.span = span;
        s.values = values;
        for v in s.values.values_mut() {
            (v.stamp, v.acked, v.lost, v.crashes, v.left) = (None, None, false, 0, 0);
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

    pub(crate) fn stamped(&mut self, session: usize, value: u32, stamp: Stamp) {
        self.sessions[session].learnt += 1;
        let Some(v) = self.sessions[session].values.get_mut(&value) else { return };
        match v.stamp {
            None => v.stamp = Some(stamp),
            Some(_) if v.late => v.stamp = Some(stamp),
            Some(known) if known != stamp => self.violate(format!("I4 e{value} was committed as {known:?} and as {stamp:?}")),
            Some(_) => {}
        }
    }

    /// A response that includes these values has left at that level.
    pub(crate) fn acknowledge(&mut self, node: usize, session: usize, values: &BTreeSet<u32>, level: Option<Level>) {
        let Some(level) = level else { return };
        self.mark(match level {
            Level::Owner => Mark::LevelOwner,
            Level::Backup(1) => Mark::LevelBackup1,
            Level::Backup(_) => Mark::LevelBackup2,
            Level::Store => Mark::LevelStore,
        });
        // A crash is noticed within 3 s, by who is awake. Who slept may say what it had heard before that.
        let now = self.now;
        let stood = self.nodes[node].proc.as_ref().and_then(|p| p.stood).filter(|s| now - s.until < 4 * S);
        let noticed = stood.map_or(now, |s| s.from) - 4 * S;
        let holders = self.holders(session);
        let (leaving, stay) = self.leaving(self.sessions[session].key, &holders);
        let mut missing = None;
        for n in values {
            let Some(v) = self.sessions[session].values.get_mut(n) else { continue };
            v.acked = v.acked.max(Some(level));
            v.crashes = v.crashes.max(v.recent.iter().filter(|at| **at > noticed).count() as u32);
            if let Some(stamp) = v.stamp
                && !v.cleared
                && !v.lost
            {
                let stored = holders.stored(*n, stamp);
                let nodes = holders.of(*n, stamp).count();
                // A holder may have crashed while its acknowledgement was on its way.
                let enough = match level {
                    Level::Owner => nodes + v.crashes as usize >= 1 || stored,
                    Level::Backup(k) => {
                        if nodes > usize::from(k) {
                            v.left = 0;
                        }
                        // So may one have left in order, while the owner that had its acknowledgement slept. And a later owner that
                        // held the sleeper to be dead may make fewer.
                        let leaving = if stay <= u32::from(k) { leaving as usize + v.left } else { 0 };
                        nodes + usize::from(stored) + v.crashes as usize + leaving > u32::from(k).min(v.wanted) as usize
                    }
                    Level::Store => stored,
                };
                if !enough {
                    missing = Some((*n, nodes));
                }
            }
        }
        self.all_under_new_id(session);
        if let Some((n, nodes)) = missing
            && !self.sessions[session].over()
        {
            let key = self.sessions[session].key;
            self.violate(format!("I1 {key:?} e{n} was answered at {level}, and {nodes} nodes hold it"));
        }
    }

    // ---- records --------------------------------------------------------------------------------------------------------

    /// Checks a record that a node holds or serves.
    pub(crate) fn see(&mut self, node: usize, session: usize, record: &Record, how: &str) {
        let s = &mut self.sessions[session];
        let key = s.key;
        let tip = record.tip;
        let mut wrong: Option<String> = record.size().fits(self.opts.record_max).err().map(|excess| format!("I15 {excess}"));
        // The engine's own words are nobody's values.
        for a in record.attributes().iter().filter(|a| &*a.name != LIMITS && &*a.name != LOST) {
            let (family, values) = decode(&a.value);
            if family != Some(s.family) {
                wrong = Some(format!("I13 {} holds bytes of another session", a.name));
            }
            for n in values {
                match s.values.get_mut(&n) {
                    None => wrong = Some(format!("I13 {} holds e{n}, which was never committed here", a.name)),
                    Some(v) if v.fate == Fate::Failed => wrong = Some(format!("e{n} failed, as its client was told, and is in {}", a.name)),
                    Some(v) if &*a.name != "log" => match v.stamp {
                        None => {
                            v.stamp = Some(a.dot);
                            s.learnt += 1;
                        }
                        Some(known) if known != a.dot && !v.late && a.dot.claim != Claim::NONE => {
                            wrong = Some(format!("I4 e{n} has the commit {:?} here and {known:?} elsewhere", a.dot));
                        }
                        Some(_) => {}
                    },
                    Some(_) => {}
                }
            }
        }
        let hash = content(record);
        match s.contents.get(&tip) {
            _ if tip.version == 0 => {}
            Some((known, lineage)) => {
                if *known != hash {
                    wrong = Some(format!("I4 two contents under one stamp {tip:?}"));
                } else if *lineage != record.lineage {
                    wrong = Some(format!("I4 two lineages under one stamp {tip:?}: {lineage:?} and {:?}", record.lineage));
                }
            }
            None => {
                s.contents.insert(tip, (hash, record.lineage.clone()));
            }
        }
        let (_, list) = list_of(record);
        let mut listed = list.clone();
        listed.sort_unstable();
        listed.dedup();
        if listed.len() != list.len() {
            wrong = Some(format!("a number is in the list twice: {list:?}"));
        }
        let there = own_of(record);
        for (n, v) in &s.values {
            let Some(stamp) = v.stamp else { continue };
            if v.cleared || !record.lineage.includes(stamp) {
                continue;
            }
            if !there.contains(n) {
                wrong = Some(format!("I1 the lineage {:?} includes {stamp:?}, and e{n} is missing", record.lineage));
            }
            if v.in_list && !s.list_conflict && listed.binary_search(n).is_err() {
                wrong =
                    Some(format!("I8 the lineage includes {stamp:?}, e{n} is missing in the list {list:?}, and no conflict was reported"));
            }
        }
        let mut last: BTreeMap<usize, u32> = BTreeMap::new();
        for n in &list {
            if let Some(v) = s.values.get(n)
                && v.fate == Fate::Ok
                && !v.zombie
                && last.insert(v.client, *n).is_some_and(|before| before > *n)
            {
                wrong = Some(format!("a client's numbers are out of order: {list:?}"));
            }
        }
        if let Some(wrong) = wrong {
            self.violate(format!("{wrong}; {key:?} at n{node}, {how}, tip {tip:?}"));
        }
    }

    /// A handler gets this record.
    pub(crate) fn served(&mut self, id: u64, record: &Record) {
        let Some(r) = self.reqs.get(&id) else { return };
        let (node, generation, session, token, must) = (r.node, r.generation, r.session, r.token, r.must.clone());
        let (client, came, before) = (r.client, r.came, r.before);
        self.served_late(session, came, before, token.is_some());
        self.check_logged_out(node, session, came);
        self.see(node, session, record, "served");
        let s = &self.sessions[session];
        let key = s.key;
        // What was decided in the same instant was decided before.
        if s.ended_at.get(&(node, generation)).is_some_and(|at| *at < self.now) {
            return self.violate(format!("I5 n{node} serves {key:?} after it learnt its end"));
        }
        let Some(token) = token else { return };
        self.mark(Mark::TokenServed);
        let s = &self.sessions[session];
        if !record.satisfies(token) {
            return self
                .violate(format!("I2 n{node} serves {key:?} at {:?} to client {client} who holds a token for {token:?}", record.tip));
        }
        if record.lineage.includes(token) {
            let there = own_of(record);
            let missing = must.iter().find(|n| !there.contains(n) && s.values.get(n).is_some_and(|v| !v.cleared));
            if let Some(n) = missing {
                self.violate(format!("I2 n{node} serves {key:?} at {:?} without e{n}, which client {client} has seen", record.tip));
            }
        }
    }

    /// The store's clock has jumped: what it alone has may have expired by that.
    pub(crate) fn forget_stored(&mut self, session: usize) {
        let holders = self.holders(session);
        for (n, v) in &mut self.sessions[session].values {
            v.lost |= v.stamp.is_some_and(|s| holders.of(*n, s).next().is_none());
        }
        self.sessions[session].learnt += 1;
    }

    // ---- holders and losses ---------------------------------------------------------------------------------------------

    fn holders(&self, session: usize) -> Holders {
        let key = self.sessions[session].key;
        let mut nodes = Vec::new();
        for (n, slot) in self.nodes.iter().enumerate() {
            let Some(p) = slot.proc.as_ref() else { continue };
            // A branch beside the record is held as well.
            nodes.extend(p.engine.peek(key, |r, branch| {
                let (mut lineage, mut own) = (r.lineage.clone(), own_of(r));
                if let Some(b) = branch {
                    lineage.union(&b.lineage);
                    own.extend(own_of(b));
                }
                (n, lineage, own)
            }));
        }
        let stored = match self.rows.get(&key) {
            Some(Row::Record { record, .. }) => {
                Record::from_bytes(record, outlive_core::time::Mono::from_micros(self.now), Duration::ZERO, Duration::ZERO)
                    .ok()
                    .map(|r| (r.lineage.clone(), own_of(&r)))
            }
            _ => None,
        };
        Holders { nodes, stored }
    }

    /// How many nodes drain, and how many stay to hold copies. Before a drain is over its copies may be gone already, and nobody
    /// keeps more of them than there are nodes that stay (rules 6 and 21).
    fn leaving(&self, key: SessionKey, holders: &Holders) -> (u32, u32) {
        let procs = || self.nodes.iter().filter_map(|s| s.proc.as_ref());
        let stay = holders.nodes.iter().filter_map(|(n, ..)| Some(self.nodes[*n].proc.as_ref()?.engine.placed(key).len())).min();
        // A copy that went when there were fewer does not come back with them at once.
        (procs().filter(|p| p.draining.is_some()).count() as u32, (stay.unwrap_or(0) as u32).min(self.fewest))
    }

    /// How many copies with all of these values the last owner sees to. Others are on their way out: they may be told to go at any
    /// time, and an owner before it that was paused by what its successor sent before that died.
    fn kept(&mut self, session: usize, holders: &Holders, needed: &BTreeSet<u32>) -> usize {
        let key = self.sessions[session].key;
        let has = |node: usize| holders.nodes.iter().any(|(n, _, own)| *n == node && needed.is_subset(own));
        let engine = |node: usize| self.nodes[node].proc.as_ref().map(|p| &p.engine);
        let owners = (0..self.nodes.len()).filter_map(|n| Some((n, engine(n)?.info(key).filter(|i| i.owned)?)));
        let Some((last, info)) = owners.max_by_key(|(_, i)| i.claim).filter(|(_, i)| i.claim >= self.sessions[session].owned) else {
            return 0;
        };
        let backed = |life: Life| (0..self.nodes.len()).any(|n| has(n) && engine(n).is_some_and(|e| e.life() == life));
        let copies = if has(last) { 1 + info.backups.iter().filter(|l| backed(**l)).count() } else { 0 };
        self.sessions[session].owned = info.claim;
        copies
    }

    /// A node owns this session, or sees other members than before: so many copies are made from now on.
    pub(crate) fn note_wanted(&mut self, node: usize, session: usize) {
        let Some(p) = self.nodes[node].proc.as_ref() else { return };
        if !p.engine.info(self.sessions[session].key).is_some_and(|i| i.owned) {
            return;
        }
        let living = p.engine.members().into_iter().filter(|m| m.state != State::Dead && !m.node.observer);
        let wanted = living.map(|m| u32::from(m.node.backups)).max().unwrap_or(0);
        for v in self.sessions[session].values.values_mut() {
            v.wanted = v.wanted.min(wanted);
        }
    }

    /// A process is about to end: which acknowledged commits end with it, and may they?
    pub(crate) fn account_for_loss(&mut self, node: usize, crash: bool) {
        let now = self.now;
        if crash {
            self.forget_uses();
        }
        let drains = self.nodes[node].proc.as_ref().is_some_and(|p| p.draining.is_some());
        let abandons = self.nodes[node].proc.as_ref().is_some_and(|p| p.draining == Some(i64::MIN));
        for session in 0..self.sessions.len() {
            if self.sessions[session].has_ended() {
                continue;
            }
            let key = self.sessions[session].key;
            // Commits that no answer has named yet are counted as well.
            if let Some(record) = self.nodes[node].proc.as_ref().and_then(|p| p.engine.peek(key, |r, _| r.clone())) {
                self.see(node, session, &record, "held");
            }
            let holders = self.holders(session);
            let needed: BTreeSet<u32> = self.sessions[session].expected().map(|(n, _)| n).collect();
            let (leaving, stay) = self.leaving(key, &holders);
            let fresh = self.kept(session, &holders, &needed);
            let mut wrong = None;
            let mut losses = 0;
            for (n, v) in &mut self.sessions[session].values {
                let (Some(stamp), false) = (v.stamp, v.lost || v.cleared) else { continue };
                let stored = holders.stored(*n, stamp);
                let all = holders.of(*n, stamp).count();
                let here = holders.of(*n, stamp).any(|at| at == node);
                let survives = match v.acked.unwrap_or(Level::Owner) {
                    Level::Owner => 0,
                    Level::Backup(k) => u32::from(k).min(v.wanted),
                    Level::Store => u32::MAX,
                };
                // Copies that are behind are caches: whoever has them may be told to drop them.
                if v.acked.is_some() && fresh as u32 > survives {
                    v.crashes = 0;
                }
                if here && crash {
                    // A drain that is given up says how many sessions it abandons: that is no surprise.
                    v.crashes += if abandons { 100 } else { 1 };
                    v.recent.push(now);
                }
                v.left += usize::from(here && !crash);
                if (!crash || drains && !here) && fresh as u32 <= survives {
                    // A drain is done when those who stay have it, and they may be fewer than the level says. The same for one that a
                    // crash cut short after this copy had gone.
                    v.crashes += 1;
                }
                let leaving = if stay <= survives { leaving } else { 0 };
                let left = all - usize::from(here);
                // By a clock that jumped the store may believe whatever it has to be over.
                v.lost |= left == 0 && self.store_jumped;
                if let Some(level) = v.acked
                    && left == 0
                    && !stored
                    && !self.store_jumped
                {
                    // Who leaves in order takes nothing with it; but its copy may have gone before, on the word of an owner that died.
                    if (crash || !here) && v.crashes + leaving > survives {
                        v.lost = true;
                        losses += 1;
                    } else {
                        wrong = Some(format!(
                            "I1 {key:?} e{n} ({stamp:?}), answered at {level}, is nowhere after {} crashes of its holders and an exit of n{node}",
                            v.crashes
                        ));
                    }
                }
            }
            if losses > 0 {
                self.mark(Mark::LegitLoss);
                self.log(node, || format!("{key:?} {losses} commits are beyond saving"));
            }
            if let Some(wrong) = wrong.filter(|_| !self.sessions[session].outlived) {
                self.violate(wrong);
            }
        }
    }

    /// Looks at every copy there is.
    pub(crate) fn look_at_all(&mut self) {
        for session in 0..self.sessions.len() {
            let key = self.sessions[session].key;
            let mut owners: BTreeMap<Claim, usize> = BTreeMap::new();
            for node in 0..self.nodes.len() {
                let Some(p) = self.nodes[node].proc.as_ref() else { continue };
                let generation = p.generation;
                let looked = self.sessions[session].looked.get(&(node, generation)).copied();
                let learnt = self.sessions[session].learnt;
                let seen = |tip: Stamp, branch: bool| !branch && looked == Some((tip, learnt));
                let copy = p.engine.peek(key, |r, b| (r.tip, (!seen(r.tip, b.is_some())).then(|| (r.clone(), b.cloned()))));
                let Some((tip, fresh)) = copy else { continue };
                let info = p.engine.info(key);
                if self.sessions[session].ended_at.contains_key(&(node, generation)) {
                    self.violate(format!("I5 n{node} holds {key:?} after it learnt its end"));
                }
                if let Some(info) = info.filter(|i| i.owned)
                    && let Some(other) = owners.insert(info.claim, node)
                {
                    self.violate(format!("I3 n{node} and n{other} own {key:?} under one claim {:?}", info.claim));
                }
                if let Some((record, branch)) = fresh {
                    self.see(node, session, &record, "held");
                    if let Some(branch) = branch {
                        self.see(node, session, &branch, "kept as a branch");
                    }
                    let learnt = self.sessions[session].learnt;
                    self.sessions[session].looked.insert((node, generation), (tip, learnt));
                }
            }
            if !self.sessions[session].over() {
                let holders = self.holders(session);
                // All of them at once: a copy may have been dropped on the word of an owner that died.
                let nowhere: Vec<_> = self.sessions[session]
                    .expected()
                    .filter(|(n, v)| v.stamp.is_some_and(|s| holders.of(*n, s).next().is_none() && !holders.stored(*n, s)))
                    .map(|(n, v)| (n, v.acked, v.stamp, v.crashes, v.wanted))
                    .collect();
                let (leaving, stay) = self.leaving(self.sessions[session].key, &holders);
                for (n, level, stamp, crashes, wanted) in nowhere {
                    let survives = match level {
                        Some(Level::Backup(k)) => u32::from(k).min(wanted),
                        Some(Level::Store) => u32::MAX,
                        _ => 0,
                    };
                    // The owner that stayed alone crashed, and had told who leaves to drop its copy.
                    let leaving = if stay <= survives { leaving } else { 0 };
                    if crashes + leaving > survives {
                        self.mark(Mark::LegitLoss);
                        if let Some(v) = self.sessions[session].values.get_mut(&n) {
                            v.lost = true;
                        }
                    } else {
                        self.violate(format!("I11 {key:?} e{n} ({stamp:?}), answered at {level:?}, is nowhere after {crashes} crashes"));
                    }
                }
            }
        }
    }

    // ---- events ---------------------------------------------------------------------------------------------------------

    pub(crate) fn note_event(&mut self, node: usize, generation: u32, key: SessionKey, event: &Event) {
        let Some(session) = self.by_key.get(&key).copied() else { return };
        match event {
            Event::Conflict { discarded } => {
                let s = &mut self.sessions[session];
                s.list_conflict |= discarded.iter().any(|n| &**n == "log");
                let left_out: Vec<u32> = discarded.iter().filter_map(|n| n.strip_prefix('e')?.parse().ok()).collect();
                for n in &left_out {
                    s.values.entry(*n).and_modify(|v| v.cleared = true);
                }
                if !left_out.is_empty() {
                    self.mark(Mark::LeftOut);
                }
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
                        v.cleared = true;
                    }
                }
            }
            _ => {}
        }
    }

    /// A node says that a commit is lost: is it, for all that it could know?
    fn check_loss(&mut self, node: usize, session: usize, stamp: Stamp) {
        if self.sessions[session].outlived {
            return;
        }
        if let Some(other) = self.reachable_holder(node, session, |l| l.includes(stamp)) {
            let key = self.sessions[session].key;
            self.violate(format!("n{node} says that {stamp:?} of {key:?} is lost, and n{other} has it, in reach for long"));
        }
        let stored = self.holders(session).stored.is_some_and(|(l, _)| l.includes(stamp));
        if stored && self.is_quiet() && !self.sessions[session].over() {
            let key = self.sessions[session].key;
            self.violate(format!("I7 n{node} says that {stamp:?} of {key:?} is lost, and the store has it, in time"));
        }
    }

    fn reachable_holder(&self, node: usize, session: usize, holds: impl Fn(&Lineage) -> bool) -> Option<usize> {
        let holders = self.holders(session);
        let reachable =
            |n: usize| n != node && self.calm(node, n) > 12 * S && self.nodes[n].proc.as_ref().is_some_and(|p| p.paused.is_none());
        holders.nodes.iter().find(|(n, l, _)| reachable(*n) && holds(l)).map(|(n, ..)| *n)
    }

    pub(crate) fn not_found(&mut self, r: &Req) {
        let session = r.session;
        let key = self.sessions[session].key;
        if self.sessions[session].over() {
            if self.phase == crate::world::Phase::Reading {
                self.clients[r.client].done = true;
            }
            return;
        }
        if self.sessions[session].expired {
            self.mark(Mark::ExpiredBesideIt);
            if self.phase == crate::world::Phase::Reading {
                self.clients[r.client].done = true;
            }
            return;
        }
        if r.token.is_some() && r.expired {
            self.mark(Mark::TokenRanOut);
        } else if r.token.is_some() {
            return self.violate(format!("I2 n{} answers `not found` for {key:?} to a client with a token", r.node));
        }
        let expected = self.sessions[session].expected().next().map(|(n, _)| n);
        if let Some(n) = expected {
            let stamp = self.sessions[session].values.get(&n).and_then(|v| v.stamp);
            // A node remembers for 5 s that it found nothing; a client's token may bring it back meanwhile.
            let remembers = self.now - self.sessions[session].outlived_at < 6 * S;
            if self.is_quiet() && !remembers && stamp.is_some_and(|s| self.holders(session).stored(n, s)) {
                return self.violate(format!("I7 n{} answers `not found` for {key:?}, and the store has e{n}, in time", r.node));
            }
            if let Some(other) = self.reachable_holder(r.node, session, |l| stamp.is_some_and(|s| l.includes(s))) {
                return self.violate(format!("I1 n{} answers `not found` for {key:?}, and n{other} holds it, in reach for long", r.node));
            }
        }
        if self.phase == crate::world::Phase::Reading {
            match expected {
                Some(n) => self.violate(format!("I1 {key:?} is not found after all has healed, and e{n} was answered")),
                None => self.clients[r.client].done = true,
            }
        }
    }

    pub(crate) fn end_seen(&mut self, r: &Req) {
        let s = &self.sessions[r.session];
        if s.end_asked == 0 && !self.was_logged_out_before(r.session) {
            let key = s.key;
            self.violate(format!("n{} says that {key:?} has ended, and nobody ended it", r.node));
        }
    }

    /// The last read of a client: all that was acknowledged must be there.
    pub(crate) fn read_at_the_end(&mut self, client: usize, session: usize, came: i64, seen: &BTreeSet<u32>) {
        if self.sessions[session].outlived {
            self.clients[client].done = true;
            return;
        }
        let s = &self.sessions[session];
        let key = s.key;
        if s.end_asked > 0 && self.knew_end(session, came) {
            return self.violate(format!("I5 {key:?} has ended, and is served after all has healed"));
        }
        if s.end_asked > 0 {
            // The marker died with all who knew it, and so did commits that only they had.
            self.clients[client].done = true;
            return;
        }
        // What only the store has left is found by whoever brings a token, and by the next write; without either, copies in memory
        // are asked first. At level `store` the store is always asked.
        let holders = self.holders(session);
        let stored_only = |n: u32, v: &Value| {
            v.acked < Some(Level::Store) && v.stamp.is_some_and(|s| holders.of(n, s).next().is_none() && holders.stored(n, s))
        };
        let s = &self.sessions[session];
        let skipped = s.expected().any(|(n, v)| !seen.contains(&n) && stored_only(n, v));
        let missing = s.expected().find(|(n, v)| !seen.contains(n) && !stored_only(*n, v)).map(|(n, v)| (n, v.acked, v.stamp));
        if skipped {
            self.mark(Mark::StoredOnly);
        }
        if let Some((n, level, stamp)) = missing {
            if !self.clients[client].looked && stamp.is_some_and(|s| holders.stored(n, s)) {
                // The store alone may have had it when this read was opened.
                self.clients[client].looked = true;
                return;
            }
            return self.violate(format!("I1 {key:?} lacks e{n} ({stamp:?}, answered at {level:?}) after all has healed"));
        }
        self.clients[client].done = true;
    }

    /// Whether some process that lives has the marker; with all of them dead the end is forgotten, as a record would be.
    fn marked(&self, s: &Session) -> bool {
        s.ended_at.keys().any(|(n, g)| self.nodes[*n].proc.as_ref().is_some_and(|p| p.generation == *g))
    }

    /// Whether a node is on the session's list and has not heard of its end.
    fn lacks_marker(&self, s: &Session, node: usize) -> bool {
        let Some(p) = self.nodes[node].proc.as_ref() else { return false };
        p.engine.placed(s.key).contains(&p.engine.life()) && !s.ended_at.contains_key(&(node, p.generation))
    }

    /// Whether some process that lives knew of the end by then. The store may have kept a marker that only a later touch or write finds.
    fn knew_end(&self, session: usize, by: i64) -> bool {
        let lives = |n: usize, g: u32| self.nodes[n].proc.as_ref().is_some_and(|p| p.generation == g);
        self.sessions[session].ended_at.iter().any(|((n, g), at)| *at < by && lives(*n, *g))
    }

    // ---- agreement ------------------------------------------------------------------------------------------------------

    /// What is not as it should be some time after the last fault.
    pub(crate) fn disagreement(&mut self) -> Option<String> {
        let running = self.running();
        if running.iter().any(|n| self.nodes[*n].proc.as_ref().is_some_and(|p| p.draining.is_some())) {
            return Some("a drain goes on".into());
        }
        for node in &running {
            let Some(p) = self.nodes[*node].proc.as_ref() else { continue };
            let stats = p.engine.stats(self.clock(*node));
            if stats.members != running.len() as u64 {
                return Some(format!("n{node} sees {} members of {}", stats.members, running.len()));
            }
            if stats.rounds > 0 || stats.under_replicated > 0 {
                return Some(format!("n{node} has {} rounds and {} under-replicated sessions", stats.rounds, stats.under_replicated));
            }
            if self.opts.store && stats.dirty > 0 {
                return Some(format!("n{node} has {} sessions to write", stats.dirty));
            }
        }
        for s in self.sessions.iter().filter(|s| !s.outlived) {
            let key = s.key;
            let mut tips = Vec::new();
            let mut owner = None;
            let mut holders = Vec::new();
            for node in &running {
                let Some(p) = self.nodes[*node].proc.as_ref() else { continue };
                let Some((tip, branch)) = p.engine.peek(key, |r, b| (r.tip, b.map(|b| b.tip))) else { continue };
                if let Some(branch) = branch {
                    return Some(format!("{key:?} n{node} keeps a branch {branch:?}"));
                }
                let Some(info) = p.engine.info(key) else { continue };
                if info.owned {
                    if let Some(other) = owner.replace(*node) {
                        return Some(format!("{key:?} is owned by n{other} and n{node}"));
                    }
                }
                holders.push(*node);
                tips.push(tip);
            }
            if s.end_asked > 0 && self.marked(s) {
                if let Some(node) = holders.first() {
                    return Some(format!("{key:?} has ended, and n{node} holds it"));
                }
                if let Some(node) = running.iter().find(|n| self.lacks_marker(s, **n)) {
                    return Some(format!("{key:?} has ended, and n{node}, which is to know, does not"));
                }
                continue;
            }
            if tips.iter().any(|t| t.version == 0) && tips.len() == 1 {
                continue;
            }
            if holders.is_empty() {
                continue;
            }
            if owner.is_none() {
                return Some(format!("{key:?} is held by {holders:?} and owned by nobody"));
            }
            if tips.windows(2).any(|w| w[0] != w[1]) {
                return Some(format!("{key:?} is held by {holders:?} as {tips:?}"));
            }
            let backups = running.iter().filter_map(|n| self.nodes[*n].proc.as_ref()).map(|p| p.engine.config().backups).max();
            let want = (usize::from(backups.unwrap_or(0)) + 1).min(running.len());
            if holders.len() != want {
                return Some(format!("{key:?} is held by {holders:?}, and should be by {want}"));
            }
        }
        None
    }
}

struct Holders {
    /// Node, what it includes, which values have their attribute there.
    nodes: Vec<(usize, Lineage, BTreeSet<u32>)>,
    stored: Option<(Lineage, BTreeSet<u32>)>,
}

impl Holders {
    /// The nodes that have this value. A late commit may be there as another commit than its answer names.
    fn of(&self, value: u32, stamp: Stamp) -> impl Iterator<Item = usize> + '_ {
        self.nodes.iter().filter(move |(_, l, own)| l.includes(stamp) || own.contains(&value)).map(|(n, ..)| *n)
    }

    fn stored(&self, value: u32, stamp: Stamp) -> bool {
        self.stored.as_ref().is_some_and(|(l, own)| l.includes(stamp) || own.contains(&value))
    }
}
