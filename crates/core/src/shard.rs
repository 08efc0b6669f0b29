//! One part of the session table, and the operations of the application on it.

use crate::config::{Checked, Level};
use crate::cx::{Cx, Map, Set, Timer};
use crate::id::SessionKey;
use crate::limits::{NOT_FOUND_KEEP, PROMISE_KEEP, PROMISES_MAX, ROTATION_BOUND, WAITING_MAX};
use crate::link::{Sent, What};
use crate::output::{Brought, Commit, Event, Info, Live, Open, Opened, Outcome, Over, Unavailable};
use crate::owner::{level_of, send_delta};
use crate::pending::{Ending, Following, Parked, Round, Writing};
use crate::plant::Bug;
use crate::record::{Change, Clock, Record};
use crate::slot::{Copy, Ended, Facade, Keyed, Own, Promise, Slot};
use crate::stamp::{Claim, Life, Stamp};
use crate::time::Mono;
use crate::view::View;
use crate::wire::{LateResult, Message, Why};
use core::sync::atomic::Ordering;
use core::time::Duration;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg32;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Holders are told of a use at least so often, for a session that has a long idle timeout.
const TOUCH_AT_MOST: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Shard<L> {
    pub(crate) view: Arc<View>,
    pub(crate) table: Map<SessionKey, Slot<L>>,
    pub(crate) rounds: Map<SessionKey, Round>,
    /// Promises for sessions that are not held here, oldest first in `promise_order`.
    pub(crate) promises: Map<SessionKey, Promise>,
    promise_order: VecDeque<Keyed>,
    not_found: Map<SessionKey, Mono>,
    not_found_order: VecDeque<Keyed>,
    pub(crate) timers: BTreeSet<(Mono, SessionKey, Timer)>,
    /// Sessions whose newest commit the store lacks; those that a response waits for are in front.
    pub(crate) dirty: VecDeque<SessionKey>,
    /// Sessions whose last use the store is to hear of.
    pub(crate) touches: VecDeque<SessionKey>,
    /// Touches on their way to the store, with the use that they tell.
    pub(crate) touching: Map<SessionKey, Mono>,
    /// How many markers of ends the table has, or more.
    pub(crate) marked: usize,
    pub(crate) ends: Map<SessionKey, Ending>,
    /// Ids that follow those that have ended: they end too.
    pub(crate) following: Vec<Following>,
    /// Since when there may be copies that no end of a session reaches, because members are missing.
    pub(crate) cut_since: Option<Mono>,
    /// Peers that must learn who owns a session, until they acknowledged it. Whoever owns it no longer does not tell them any more; it
    /// still knows that they may take themselves for the owner, as long as it holds a copy.
    pub(crate) informs: Map<SessionKey, crate::view::Lives>,
    pub(crate) parked: Map<SessionKey, Vec<Parked>>,
    pub(crate) walk: VecDeque<SessionKey>,
    /// The view under which the last walk was finished.
    pub(crate) walked: Arc<View>,
    /// Owned sessions whose list does not hold the newest version since the membership changed, and ended ones whose list has not heard
    /// of the end.
    pub(crate) repairing: Set<SessionKey>,
    /// Puts on their way to the store.
    pub(crate) writing: Map<SessionKey, Writing>,
    /// Rows that are being read, and whether somebody has asked for one since its read began.
    pub(crate) loading: Map<SessionKey, bool>,
    /// Owned sessions that others are to be invited to claim, and those that somebody has been invited to: few at a time.
    pub(crate) inviting: VecDeque<SessionKey>,
    pub(crate) invited: Set<SessionKey>,
    pub(crate) rng: Pcg32,
    pub(crate) tenures: u32,
}

impl<L: Live> Shard<L> {
    pub(crate) fn new(view: Arc<View>, seed: u64) -> Shard<L> {
        Shard {
            walked: view.clone(),
            view,
            table: Map::default(),
            rounds: Map::default(),
            promises: Map::default(),
            promise_order: VecDeque::new(),
            not_found: Map::default(),
            not_found_order: VecDeque::new(),
            timers: BTreeSet::new(),
            dirty: VecDeque::new(),
            touches: VecDeque::new(),
            touching: Map::default(),
            marked: 0,
            ends: Map::default(),
            following: Vec::new(),
            cut_since: None,
            informs: Map::default(),
            parked: Map::default(),
            walk: VecDeque::new(),
            repairing: Set::default(),
            writing: Map::default(),
            loading: Map::default(),
            inviting: VecDeque::new(),
            invited: Set::default(),
            rng: Pcg32::seed_from_u64(seed),
            tenures: 0,
        }
    }

    pub(crate) fn copy(&mut self, key: SessionKey) -> Option<&mut Copy<L>> {
        match self.table.get_mut(&key) {
            Some(Slot::Held(copy)) => Some(copy),
            _ => None,
        }
    }

    /// The copy of an owned session, with the view.
    pub(crate) fn own(&mut self, key: SessionKey) -> Option<(&mut Copy<L>, &View)> {
        match self.table.get_mut(&key) {
            Some(Slot::Held(copy)) if copy.own.is_some() => Some((copy, &self.view)),
            _ => None,
        }
    }

    pub(crate) fn random(&mut self) -> u64 {
        self.rng.next_u64()
    }

    // ---- promises for sessions that are not held here -------------------------------------------------------------------

    pub(crate) fn promised(&mut self, key: SessionKey) -> Claim {
        match self.table.get_mut(&key) {
            Some(Slot::Held(copy)) => copy.promised,
            _ => self.promises.get(&key).map_or(Claim::NONE, |p| p.claim),
        }
    }

    /// The highest claim ever promised, whether it still binds or not.
    pub(crate) fn highest(&mut self, key: SessionKey) -> Claim {
        match self.table.get_mut(&key) {
            Some(Slot::Held(copy)) => copy.highest,
            _ => self.promises.get(&key).map_or(Claim::NONE, |p| p.highest),
        }
    }

    pub(crate) fn has_promise(&self, key: SessionKey) -> bool {
        self.promises.contains_key(&key)
    }

    /// Promises, in the copy or beside it.
    pub(crate) fn promise(&mut self, cx: &Cx<'_>, key: SessionKey, claim: Claim) {
        let now = cx.now;
        let me = self.view.me;
        if let Some(copy) = self.copy(key) {
            copy.promise_as(me, claim, now);
            return;
        }
        let entry = self.promises.entry(key).or_insert(Promise { claim, at: now, highest: claim });
        entry.claim = entry.claim.max(claim);
        entry.highest = entry.highest.max(claim);
        entry.at = now;
        self.promise_order.push_back((key, now));
        while let Some(&(oldest, at)) = self.promise_order.front() {
            let old = now.since(at) > PROMISE_KEEP;
            if !old && self.promise_order.len() <= cx.config.of_shard(PROMISES_MAX) {
                break;
            }
            self.promise_order.pop_front();
            if self.promises.get(&oldest).is_some_and(|p| p.at == at) {
                self.promises.remove(&oldest);
                cx.shared.forgotten.fetch_add(u64::from(!old), Ordering::Relaxed);
            }
        }
    }

    /// Takes back a promise to this node itself that nobody else was asked for.
    pub(crate) fn withdraw(&mut self, key: SessionKey, claim: Claim, before: Claim) {
        if let Some(copy) = self.copy(key) {
            if copy.promised == claim {
                // An owner's state may have been accepted meanwhile.
                copy.promised = before.max(copy.accepted);
            }
        } else if let Some(p) = self.promises.get_mut(&key).filter(|p| p.claim == claim) {
            p.claim = before;
        }
    }

    /// Puts a copy into the table, with what was promised for it.
    pub(crate) fn hold(&mut self, cx: &Cx<'_>, key: SessionKey, mut copy: Copy<L>) -> &mut Copy<L> {
        if let Some(promise) = self.promises.remove(&key) {
            copy.promise_as(self.view.me, promise.claim, promise.at);
            copy.highest = copy.highest.max(promise.highest);
        }
        if let Some(Slot::Facade(f)) = self.table.get(&key) {
            copy.heard = copy.heard.max(f.claim);
            if f.over.is_none() {
                let tip = f.tip;
                copy.tell(tip);
            }
        }
        cx.shared.held.fetch_add(1, Ordering::Relaxed);
        self.table.insert(key, Slot::Held(Box::new(copy)));
        #[expect(clippy::expect_used, reason = "inserted in the line before")]
        self.copy(key).expect("the copy is in the table")
    }

    /// Takes a copy out of the table; what it promised is remembered beside it.
    pub(crate) fn release(&mut self, cx: &mut Cx<'_>, key: SessionKey) -> Option<Box<Copy<L>>> {
        let Some(Slot::Held(_)) = self.table.get(&key) else { return None };
        let Some(Slot::Held(mut copy)) = self.table.remove(&key) else { return None };
        cx.shared.held.fetch_sub(1, Ordering::Relaxed);
        if copy.own.is_some() {
            cx.shared.owned.fetch_sub(1, Ordering::Relaxed);
        }
        self.invited.remove(&key);
        self.repairing.remove(&key);
        self.informs.remove(&key);
        if let Some(own) = &mut copy.own {
            (own.queued, own.touch_queued) = (false, false);
            cx.out.gone(own.live.clone());
        }
        if copy.record.tip.version > 0 {
            self.promise(cx, key, copy.promised);
            if let Some(p) = self.promises.get_mut(&key) {
                p.highest = p.highest.max(copy.highest);
            }
        }
        Some(copy)
    }

    // ---- the application ------------------------------------------------------------------------------------------------

    /// A session that did not exist: no round, because nobody else can have its id.
    pub(crate) fn create(&mut self, cx: &mut Cx<'_>, key: SessionKey) -> Result<Opened<L>, Unavailable> {
        let live = Arc::new(L::of(&Record::new(cx.now, cx.config.limits)));
        self.create_with(cx, key, live)
    }

    pub(crate) fn create_with(&mut self, cx: &mut Cx<'_>, key: SessionKey, live: Arc<L>) -> Result<Opened<L>, Unavailable> {
        if self.view.refused {
            return Err(Unavailable::Forming);
        }
        if cx.shared.owned.load(Ordering::Relaxed) >= cx.config.sessions_max || self.table.contains_key(&key) {
            return Err(cx.busy());
        }
        Ok(self.adopt_live(cx, key, Record::new(cx.now, cx.config.limits), 0, live))
    }

    /// Owns a record that began here. `version` is 1 if it has content already (the first commit of a rotated session).
    fn adopt_live(&mut self, cx: &mut Cx<'_>, key: SessionKey, record: Record, version: u32, live: Arc<L>) -> Opened<L> {
        let view = self.view.clone();
        let claim = Claim { epoch: 1, life: view.me };
        self.tenures += 1;
        let mut own = Own::new(claim, self.tenures, live, view.doubt, cx.now);
        own.version = version;
        own.durable = if version == 0 { Some(0) } else { None };
        own.list = view.holders(key, view.me).into_iter().collect();
        own.generation = view.generation;
        for life in own.list.clone() {
            own.holder_or_new(life);
        }
        let mut copy = Copy::new(record, claim, view.leaving);
        copy.own = Some(Box::new(own));
        cx.shared.owned.fetch_add(1, Ordering::Relaxed);
        self.hold(cx, key, copy);
        cx.out.event(key, Event::Created);
        if version > 0 {
            self.push_state(cx, key);
            self.mark_dirty(cx, key);
            self.advance(cx, key);
        }
        self.invite(key);
        self.opened(key)
    }

    /// Counts a request in and describes what it opened.
    fn opened(&mut self, key: SessionKey) -> Opened<L> {
        #[expect(clippy::expect_used, reason = "only called for a session that is owned here")]
        let copy = self.copy(key).expect("the session is held");
        let clock = copy.record.clock();
        #[expect(clippy::expect_used, reason = "only called for a session that is owned here")]
        let own = copy.own.as_mut().expect("the session is owned");
        own.running += 1;
        Opened {
            key,
            tenure: own.tenure,
            tip: copy.record.tip,
            external: own.external,
            live: own.live.clone(),
            uses: true,
            deadline: clock.deadline(copy.record.used),
            step: clock.step(),
        }
    }

    /// With `uses` that counts as a use of the session.
    pub(crate) fn open(&mut self, cx: &mut Cx<'_>, key: SessionKey, token: Option<Brought>, uses: bool) -> Open<L> {
        if let Some(opened) = self.open_at_once(cx, key, token, uses) {
            return Open::Here(opened);
        }
        if self.view.refused {
            return Open::Unavailable(Unavailable::Forming, Duration::from_secs(1));
        }
        let doubted = match self.table.get_mut(&key) {
            Some(Slot::Ended(e)) => return Open::Ended(e.kind, e.ago(cx.now)),
            Some(Slot::Held(copy)) if copy.own.is_some() => {
                if let Some(token) = token.filter(|_| !cx.config.planted(Bug::IgnoreToken)) {
                    copy.tell(token.stamp);
                }
                if copy.has_ended(cx.now) {
                    self.expire(cx, key);
                    return Open::NotFound;
                }
                let told = !copy.told.is_empty();
                let Some(own) = copy.own.as_mut() else { return Open::NotFound };
                if own.closing.is_some() {
                    if own.waiting.len() >= WAITING_MAX {
                        return Open::Unavailable(cx.busy(), Duration::from_secs(1));
                    }
                    let ticket = cx.ticket();
                    own.waiting.push(ticket);
                    return Open::Wait(ticket);
                }
                if !told && !self.rounds.contains_key(&key) && !self.doubts(cx, key) {
                    if uses {
                        self.note_use(cx, key);
                    }
                    return Open::Here(Opened { uses, ..self.opened(key) });
                }
                true
            }
            _ => false,
        };
        // A token says that there was a session: if nobody has it, that is a loss, and to be said as one.
        if token.is_none_or(|t| t.expired) && self.not_found.get(&key).is_some_and(|at| cx.now.since(*at) < NOT_FOUND_KEEP) {
            return Open::NotFound;
        }
        let ticket = cx.ticket();
        match self.request_round(cx, key, if doubted { Why::Doubt } else { Why::Open }, token, Some(ticket)) {
            Ok(()) => Open::Wait(ticket),
            Err(why) => Open::Unavailable(why, Duration::from_secs(1)),
        }
    }

    /// The usual case, in one look-up: owned here, and nothing speaks against it.
    fn open_at_once(&mut self, cx: &mut Cx<'_>, key: SessionKey, token: Option<Brought>, uses: bool) -> Option<Opened<L>> {
        let Some(Slot::Held(copy)) = self.table.get_mut(&key) else { return None };
        let Copy { own: Some(own), record, told, .. } = &mut **copy else { return None };
        let clock = record.clock();
        let step = clock.step();
        let plain = own.closing.is_none() && told.is_empty() && own.confirmed >= self.view.doubt;
        let fresh = cx.now <= clock.expires(record.used)
            && !record.is_first()
            && !own.inherited
            && cx.now.since(own.touched) < step.min(TOUCH_AT_MOST);
        let included = token.is_none_or(|t| record.satisfies(t.stamp));
        if !plain || !fresh || !included || !self.rounds.is_empty() && self.rounds.contains_key(&key) {
            return None;
        }
        if uses {
            record.note_use(cx.now);
        }
        own.running += 1;
        let (tenure, tip, external) = (own.tenure, record.tip, own.external);
        let deadline = (record.used + clock.idle + step).min(clock.end);
        Some(Opened { key, tenure, tip, external, live: own.live.clone(), uses, deadline, step })
    }

    /// Whether the owner must ask before it serves: its loop stalled, or the link to a holder broke since the last round.
    pub(crate) fn doubts(&mut self, cx: &Cx<'_>, key: SessionKey) -> bool {
        let Some((copy, view)) = self.own(key) else { return true };
        let Some(own) = copy.own.as_mut() else { return true };
        if own.confirmed >= view.doubt || cx.planted(Bug::NoSelfDoubt) {
            return false;
        }
        let doubt = |life: Life| view.peer(life).map_or(0, |p| p.doubt);
        let marked = own.confirmed < doubt(view.me) || own.holders.iter().any(|h| own.confirmed < doubt(h.life));
        if !marked {
            own.confirmed = view.doubt;
        }
        marked
    }

    /// Notes a use, and tells the holders and the store once per step.
    pub(crate) fn note_use(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let Some((copy, view)) = self.own(key) else { return };
        let first = copy.record.is_first();
        copy.record.note_use(cx.now);
        let clock = copy.record.clock();
        let Some(own) = copy.own.as_mut() else { return };
        // That a cookie came back, and that a session is in use at its new owner, is told at once: else each move could add a step to what
        // others have not heard.
        let news = first || core::mem::take(&mut own.inherited);
        if !news && cx.now.since(own.touched) < touch_step(&clock) || own.version == 0 && own.adopted.version == 0 {
            return;
        }
        own.touched = cx.now;
        for h in &own.holders {
            if let Some(link) = view.link(h.life) {
                let note = Sent { key, claim: own.claim, version: 0, attempt: 0, what: What::Note };
                link.send(&Message::Touch { key, claim: own.claim, idle_ms: 0 }, Some(note), cx.out);
            }
        }
        self.touch_row(cx, key, first);
    }

    /// A request lets go of the session.
    pub(crate) fn close(&mut self, cx: &mut Cx<'_>, at: &Opened<L>) {
        if let Some((copy, _)) = self.own(at.key)
            && let Some(own) = copy.own.as_mut()
            && own.tenure == at.tenure
        {
            own.running = own.running.saturating_sub(1);
            if at.uses && !copy.record.is_first() {
                // It was in use all the time.
                copy.record.note_use(cx.now);
            }
            if own.closing.is_some() {
                self.try_close(cx, at.key);
            } else if own.version == 0 && own.adopted.version == 0 && own.running == 0 && copy.record.lineage.listed().is_empty() {
                // Nothing was put in: a session that was never committed leaves no trace.
                self.release(cx, at.key);
            }
        }
    }

    pub(crate) fn commit(&mut self, cx: &mut Cx<'_>, at: &Opened<L>, changes: &[Change]) -> Commit {
        match self.table.get(&at.key) {
            Some(Slot::Ended(_)) => Commit::Ended,
            Some(Slot::Held(copy)) if copy.own.as_ref().is_some_and(|own| own.tenure == at.tenure) => self.commit_here(cx, at.key, changes),
            _ => {
                // The copy that this node still has includes all that the request can have read here, unless it is a later one of what
                // was left after a loss.
                let copy = self.copy(at.key).filter(|c| c.record.lineage.includes(at.tip)).map(|c| c.record.tip);
                let read = copy.or(Some(at.tip));
                Commit::Late(self.park(cx, at.key, read, changes, None))
            }
        }
    }

    /// Commits as the owner.
    pub(crate) fn commit_here(&mut self, cx: &mut Cx<'_>, key: SessionKey, changes: &[Change]) -> Commit {
        let generation = self.view.generation;
        if self.own(key).is_some_and(|(copy, _)| copy.own.as_ref().is_some_and(|own| own.generation != generation)) {
            self.replace_list(key);
        }
        let Some((copy, view)) = self.own(key) else { return Commit::Ended };
        if !copy.record.bases_hold(changes) {
            return Commit::Conflict;
        }
        if let Err(excess) = copy.record.fits_with(changes, cx.config.record_max) {
            return Commit::TooLarge(excess);
        }
        let Some(own) = copy.own.as_mut() else { return Commit::Ended };
        if own.list.len() < usize::from(cx.config.min_backups) || own.version == u32::MAX {
            return Commit::UnderReplicated;
        }
        own.version += 1;
        own.copied = None;
        let stamp = own.claim.at(own.version);
        copy.record.commit(stamp, changes);
        copy.record.note_commit(cx.now);
        send_delta(cx, key, copy, view, changes);
        self.mark_dirty(cx, key);
        self.advance(cx, key);
        self.leave_when_durable(cx, key, Some(stamp))
    }

    /// The end of a request that changed nothing: what it read must be durable.
    pub(crate) fn finish_read(&mut self, cx: &mut Cx<'_>, at: &Opened<L>) -> Commit {
        let Some(copy) = self.copy(at.key) else { return Commit::Done { tip: None, level: Level::Owner, stamp: None } };
        match (&copy.own, copy.orphans.last()) {
            (Some(own), _) if own.tenure == at.tenure => self.leave_when_durable(cx, at.key, None),
            // The session moved while the request ran, and left commits behind that the request may have read.
            (_, Some(o)) => Commit::Wait { claim: o.claim, version: o.version, stamp: None },
            _ => Commit::Done { tip: None, level: Level::Owner, stamp: None },
        }
    }

    fn leave_when_durable(&mut self, cx: &mut Cx<'_>, key: SessionKey, stamp: Option<Stamp>) -> Commit {
        let Some(copy) = self.copy(key) else { return Commit::Ended };
        let Some(own) = copy.own.as_mut() else {
            // The commit came when a claimant had waited long enough, and went to it with the session.
            return match (stamp, copy.orphans.last()) {
                (Some(Stamp { claim, version }), Some(o)) if o.claim == claim => Commit::Wait { claim, version, stamp },
                _ => Commit::Done { tip: stamp, level: Level::Owner, stamp },
            };
        };
        let early = cx.planted(Bug::AckBeforeBackup) || stamp.is_none() && cx.planted(Bug::ServeUncommitted);
        if own.all_durable() || early {
            let tip = if early { copy.record.tip } else { own.durable_tip() };
            Commit::Done { tip: (tip.version > 0).then_some(tip), level: level_of(cx.config, own), stamp }
        } else {
            own.awaited = true;
            Commit::Wait { claim: own.claim, version: own.version, stamp }
        }
    }

    /// The first commit of another id with the content of this one. The live session goes with it.
    pub(crate) fn fork_from(&mut self, cx: &Cx<'_>, at: &Opened<L>) -> Option<(Record, Arc<L>)> {
        let copy = self.copy(at.key)?;
        let own = copy.own.as_mut().filter(|own| own.tenure == at.tenure)?;
        own.copied = Some((copy.record.tip, cx.now + ROTATION_BOUND));
        Some((copy.record.clone(), own.live.clone()))
    }

    /// See [`fork_from`](Shard::fork_from).
    pub(crate) fn fork_to(&mut self, cx: &mut Cx<'_>, key: SessionKey, from: (Record, Arc<L>)) -> Option<Opened<L>> {
        if self.table.contains_key(&key) {
            return None;
        }
        let claim = Claim { epoch: 1, life: self.view.me };
        let record = from.0.fork(claim.at(1), cx.now);
        Some(self.adopt_live(cx, key, record, 1, from.1))
    }

    /// Whether a rotation copies the session just now: another node's change would not go along.
    pub(crate) fn is_rotating(&mut self, cx: &Cx<'_>, key: SessionKey) -> bool {
        let until = self.own(key).and_then(|(copy, _)| copy.own.as_ref()?.copied).map_or(Mono::ZERO, |(_, until)| until);
        cx.now < until && !cx.planted(Bug::ChangedWhileRotating)
    }

    pub(crate) fn note_not_found(&mut self, cx: &Cx<'_>, key: SessionKey) {
        self.not_found.insert(key, cx.now);
        self.not_found_order.push_back((key, cx.now));
        while let Some(&(oldest, at)) = self.not_found_order.front() {
            if cx.now.since(at) <= NOT_FOUND_KEEP && self.not_found_order.len() <= cx.config.of_shard(PROMISES_MAX) {
                break;
            }
            self.not_found_order.pop_front();
            if self.not_found.get(&oldest) == Some(&at) {
                self.not_found.remove(&oldest);
            }
        }
    }

    /// The session has outlived its limits here: it goes without a marker, because every copy knows its own age.
    pub(crate) fn expire(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let Some(copy) = self.release(cx, key) else { return };
        self.forget_late(cx, key, &copy, LateResult::NotOwner);
        if let Some(own) = copy.own {
            if copy.record.tip.version > 0 {
                // Who asks for it, with whatever token, hears that it expired, not that it is lost.
                let over = Some(Box::new(copy.record.lineage.clone()));
                let facade = Facade { claim: own.claim, tip: copy.record.tip, expires: copy.record.expires(), over };
                self.table.insert(key, Slot::Facade(facade));
            }
            for h in &own.holders {
                if let Some(link) = self.view.link(h.life) {
                    let lineage = (&copy.record.lineage).into();
                    link.send(&Message::Drop { key, claim: own.claim, tip: copy.record.tip, lineage }, None, cx.out);
                }
            }
            for ticket in own.waiting {
                cx.settle(ticket, Outcome::Again);
            }
        }
        cx.out.event(key, Event::Expired);
    }

    pub(crate) fn info(&mut self, key: SessionKey, config: &Checked) -> Option<Info> {
        match self.table.get(&key)? {
            Slot::Ended(_) => None,
            Slot::Facade(f) => Some(Info {
                owner: Some(f.claim.life),
                claim: f.claim,
                tip: f.tip,
                owned: false,
                held: false,
                backups: Vec::new(),
                level: None,
                bytes: 0,
            }),
            Slot::Held(c) => {
                let own = c.own.as_ref();
                let backups = |own: &Own<L>| {
                    // Nothing may be durable yet: then whoever has acknowledged anything is one.
                    let has = |l: &&Life| own.holders.iter().any(|h| h.life == **l && h.acked.is_some() && h.acked >= own.durable);
                    own.list.iter().filter(|l| has(l) || config.planted(Bug::ListIsBackups)).copied().collect()
                };
                Some(Info {
                    owner: Some(own.map_or(c.heard, |o| o.claim).life),
                    claim: own.map_or(c.accepted, |o| o.claim),
                    tip: c.record.tip,
                    owned: own.is_some(),
                    held: true,
                    backups: own.map_or(Vec::new(), |o| backups(o)),
                    level: own.map(|o| level_of(config, o)),
                    bytes: c.record.bytes(),
                })
            }
        }
    }

    /// How the session is over, if it is known here to be. It asks nobody.
    pub(crate) fn over(&self, key: SessionKey) -> Option<Over> {
        match self.table.get(&key)? {
            Slot::Ended(ended) => Some(Over::Ended(ended.kind)),
            Slot::Facade(facade) if facade.over.is_some() => Some(Over::Expired),
            Slot::Facade(_) | Slot::Held(_) => None,
        }
    }

    /// The record, for whoever must read it whole.
    pub(crate) fn record(&mut self, at: &Opened<L>) -> Option<&Record> {
        self.copy(at.key).filter(|c| c.own.as_ref().is_some_and(|o| o.tenure == at.tenure)).map(|c| &c.record)
    }

    pub(crate) fn set_timer(&mut self, due: Mono, key: SessionKey, timer: Timer) {
        self.timers.insert((due, key, timer));
    }

    pub(crate) fn ended(&self, key: SessionKey) -> Option<Ended> {
        match self.table.get(&key) {
            Some(Slot::Ended(e)) => Some(*e),
            _ => None,
        }
    }

    /// What is not known to be safe elsewhere: copies, and markers of ends that nobody who stays has confirmed. The second number counts
    /// those that came when this node was leaving already.
    pub(crate) fn left(&self, config: &Checked) -> (u64, u64) {
        let unsafe_copy = |c: &&Copy<L>| match config.planted(Bug::DrainOwnedOnly) {
            true => c.own.is_some(),
            false => c.record.tip.version > 0 && !(config.store && c.stored == Some(c.record.tip)),
        };
        let held = self.table.values().filter_map(|slot| match slot {
            Slot::Held(c) => Some(&**c),
            Slot::Facade(_) | Slot::Ended(_) => None,
        });
        let (copies, newcomers) = held.filter(unsafe_copy).fold((0, 0), |(n, new), c| (n + 1, new + u64::from(c.newcomer)));
        (copies + self.ends_left(), newcomers)
    }

    /// One message about a session; `None` if it cannot be one.
    pub(crate) fn handle(&mut self, cx: &mut Cx<'_>, from: Life, key: SessionKey, message: Message<'_>) -> Option<()> {
        if !self.not_found.is_empty() {
            // Somebody speaks of it: that nobody has it may be over, for after a loss a session goes on under its id.
            self.not_found.remove(&key);
        }
        match message {
            Message::Ask { claim, why, have, .. } => self.handle_ask(cx, from, key, claim, why, have),
            Message::Busy { claim, ms, .. } => self.handle_busy(cx, from, key, claim, ms),
            Message::Refused { claim, promised, .. } => self.handle_refused(cx, from, key, claim, promised),
            Message::Stay { claim, owner, record, .. } => self.handle_stay(cx, from, key, claim, owner, &record)?,
            Message::Answer { claim, accepted, moves, held, .. } => self.handle_answer(cx, from, key, claim, accepted, moves, &held)?,
            Message::Delta { claim, base, version, sets, .. } => self.handle_delta(cx, from, key, claim, base, version, &sets)?,
            Message::Full { claim, stored, record, .. } => self.handle_full(cx, from, key, claim, stored, &record)?,
            Message::Diverged { claim, record, .. } => self.handle_diverged(cx, from, key, Some(claim), &record)?,
            Message::Kept { record, .. } => self.handle_diverged(cx, from, key, None, &record)?,
            Message::Gap { claim, .. } => self.handle_gap(cx, from, key, claim),
            Message::Facade { claim, tip, expires_ms, lineage, .. } => {
                self.handle_facade(cx, from, key, claim, tip, expires_ms, lineage.as_ref());
            }
            Message::Have { claim, tip, idle_ms, lineage, .. } => self.handle_have(cx, from, key, claim, tip, idle_ms, &lineage)?,
            Message::Drop { claim, tip, lineage, .. } => self.handle_drop(cx, from, key, claim, tip, &lineage),
            Message::Dropped { unheard, .. } => self.handle_dropped(cx, from, key, &unheard),
            Message::End { kind, next, .. } => self.handle_end(cx, from, key, kind, next),
            Message::EndSeen { kind, unheard, .. } => self.handle_end_seen(cx, from, key, kind, &unheard),
            Message::Touch { claim, idle_ms, .. } => self.handle_touch(cx, key, claim, idle_ms),
            Message::Invite { .. } => self.handle_invite(cx, from, key),
            Message::Late { id, read, sets, next, .. } => self.handle_late(cx, from, key, id, read, &sets, next)?,
            Message::LateDone { id, result, .. } => self.handle_late_done(cx, from, key, id, result),
            Message::Gossip(_) | Message::Settled(_) | Message::Views(_) | Message::Ack(_) => return None,
        }
        Some(())
    }
}

/// How often the holders are told of a use.
fn touch_step(clock: &Clock) -> Duration {
    clock.step().min(TOUCH_AT_MOST)
}
