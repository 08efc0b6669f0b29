//! What the application does to a session, seen from the node that it asks: open, commit, close.

use crate::config::{Checked, Level};
use crate::copy::{Copy, Facade};
use crate::cx::Cx;
use crate::limits::{NOT_FOUND_KEEP, ROTATION_BOUND, WAITING_MAX};
use crate::link::Sent;
use crate::output::{Brought, Commit, Event, Info, Live, Open, Opened, Outcome, Unavailable, Want};
use crate::owner::{Owner, forget_late, level_of, sync};
use crate::peers::Given;
use crate::plant::Bug;
use crate::record::{Change, Clock, Record};
use crate::session::{Session, State};
use crate::stamp::{Claim, Life, Stamp};
use crate::wire::{LateResult, Message, Why};
use core::sync::atomic::Ordering;
use core::time::Duration;
use std::sync::Arc;

/// Holders are told of a use at least so often, for a session that has a long idle timeout.
const TOUCH_AT_MOST: Duration = Duration::from_secs(30);

impl<L: Live> Session<L> {
    /// A session that did not exist: no round, because nobody else can have its id.
    pub(crate) fn create(&mut self, cx: &mut Cx<'_>) -> Result<Opened<L>, Unavailable> {
        let live = Arc::new(L::of(&Record::new(cx.now, cx.config.limits)));
        self.create_with(cx, live)
    }

    pub(crate) fn create_with(&mut self, cx: &mut Cx<'_>, live: Arc<L>) -> Result<Opened<L>, Unavailable> {
        if cx.view.refused {
            return Err(Unavailable::Forming);
        }
        if cx.shared.owned.load(Ordering::Relaxed) >= cx.config.sessions_max || !matches!(self.state, State::Nothing) {
            return Err(cx.busy());
        }
        self.adopt_live(cx, Record::new(cx.now, cx.config.limits), 0, live).ok_or(Unavailable::Busy)
    }

    /// Owns a record that began here. `version` is 1 if it has content already (the first commit of a rotated session).
    fn adopt_live(&mut self, cx: &mut Cx<'_>, record: Record, version: u32, live: Arc<L>) -> Option<Opened<L>> {
        let view = cx.view;
        let claim = Claim { epoch: 1, life: view.me };
        let mut own = Owner::new(claim, cx.tenure(), live, view.doubt, cx.now);
        own.version = version;
        own.durable = if version == 0 { Some(0) } else { None };
        let mut copy = Copy::new(record, claim, view.leaving);
        own.place(view, cx.key, &mut copy.peers, Given::Nothing);
        self.hold(cx, copy, Some(own));
        cx.out.event(cx.key, Event::Created);
        if version > 0 {
            self.mark_dirty(cx);
            self.advance(cx);
        }
        self.invite(cx);
        self.opened(cx, true)
    }

    /// Counts a request in and describes what it opened.
    fn opened(&mut self, cx: &Cx<'_>, uses: bool) -> Option<Opened<L>> {
        let (own, Copy { record, .. }) = self.owned()?;
        let (deadline, step) = record.deadline();
        own.running += 1;
        Some(Opened {
            key: cx.key,
            tenure: own.tenure,
            tip: record.tip,
            external: own.external,
            live: own.live.clone(),
            uses,
            deadline,
            step,
        })
    }

    /// With `uses` that counts as a use of the session.
    pub(crate) fn open(&mut self, cx: &mut Cx<'_>, token: Option<Brought>, want: Want) -> Open<L> {
        let uses = want != Want::Look;
        if let Some(opened) = self.open_at_once(cx, token, uses) {
            return Open::Here(opened);
        }
        if cx.view.refused {
            return Open::Unavailable(Unavailable::Forming, Duration::from_secs(1));
        }
        let asks = self.round().is_some();
        let doubted = match &mut self.state {
            State::Ended(e) => return Open::Ended(e.kind, e.ago(cx.now)),
            State::Owned(copy, own) => {
                if let Some(token) = token.filter(|_| !cx.config.planted(Bug::IgnoreToken)) {
                    copy.tell(token.stamp);
                }
                if own.has_ended(&copy.record, cx.now) {
                    self.expire(cx);
                    return if want == Want::Create { self.open_later(cx, token, want, false) } else { Open::NotFound };
                }
                let told = !copy.told.is_empty();
                if own.closing.is_some() {
                    if own.waiting.len() >= WAITING_MAX {
                        return Open::Unavailable(cx.busy(), Duration::from_secs(1));
                    }
                    let ticket = cx.ticket();
                    own.waiting.push(ticket);
                    return Open::Wait(ticket);
                }
                if !told && !asks && !self.doubts(cx) {
                    if uses {
                        self.note_use(cx);
                    }
                    return self.opened(cx, uses).map_or(Open::NotFound, Open::Here);
                }
                true
            }
            State::Nothing | State::Facade(_) | State::Held(_) => false,
        };
        // A token says that there was a session: if nobody has it, that is a loss, and to be said as one.
        let sought = || cx.queues.not_found.get(cx.key).is_some_and(|(_, at)| cx.now.since(*at) < NOT_FOUND_KEEP);
        if want != Want::Create && token.is_none_or(|t| t.expired) && sought() {
            return Open::NotFound;
        }
        self.open_later(cx, token, want, doubted)
    }

    fn open_later(&mut self, cx: &mut Cx<'_>, token: Option<Brought>, want: Want, doubted: bool) -> Open<L> {
        let ticket = cx.ticket();
        let why = if doubted { Why::Doubt } else { Why::Open };
        match self.request_session(cx, why, token, Some(ticket), want == Want::Create) {
            Ok(()) => Open::Wait(ticket),
            Err(why) => Open::Unavailable(why, Duration::from_secs(1)),
        }
    }

    /// The usual case: owned here, and nothing speaks against it.
    fn open_at_once(&mut self, cx: &mut Cx<'_>, token: Option<Brought>, uses: bool) -> Option<Opened<L>> {
        let asks = self.round().is_some();
        let State::Owned(Copy { record, told, .. }, own) = &mut self.state else { return None };
        let clock = record.clock();
        let step = clock.step();
        let plain = own.closing.is_none() && told.is_empty() && own.confirmed >= cx.view.doubt;
        let fresh = cx.now <= clock.expires(record.used)
            && !record.is_first()
            && !own.inherited
            && cx.now.since(own.touched) < step.min(TOUCH_AT_MOST);
        let included = token.is_none_or(|t| record.satisfies(t.stamp));
        if !plain || !fresh || !included || asks {
            return None;
        }
        if uses {
            record.note_use(cx.now);
        }
        own.running += 1;
        let (tenure, tip, external) = (own.tenure, record.tip, own.external);
        let deadline = (record.used + clock.idle + step).min(clock.end);
        Some(Opened { key: cx.key, tenure, tip, external, live: own.live.clone(), uses, deadline, step })
    }

    /// Whether the owner must ask before it serves: its loop stalled, or the link to a holder broke since the last round.
    pub(crate) fn doubts(&mut self, cx: &Cx<'_>) -> bool {
        let view = cx.view;
        let Some((own, copy)) = self.owned() else { return true };
        if own.confirmed >= view.doubt || cx.planted(Bug::NoSelfDoubt) {
            return false;
        }
        let doubt = |life: Life| view.peer(life).map_or(0, |p| p.doubt);
        let marked = own.confirmed < doubt(view.me) || copy.peers.holders().any(|p| own.confirmed < doubt(p.life));
        if !marked {
            own.confirmed = view.doubt;
        }
        marked
    }

    /// Notes a use, and tells the holders and the store once per step.
    pub(crate) fn note_use(&mut self, cx: &mut Cx<'_>) {
        let view = cx.view;
        let Some((own, Copy { record, peers, .. })) = self.owned() else { return };
        let first = record.is_first();
        record.note_use(cx.now);
        let clock = record.clock();
        // That a cookie came back, and that a session is in use at its new owner, is told at once: else each move could add a step to what
        // others have not heard.
        let news = first || core::mem::take(&mut own.inherited);
        if !news && cx.now.since(own.touched) < touch_step(&clock) || own.version == 0 && own.adopted.version == 0 {
            return;
        }
        own.touched = cx.now;
        for peer in peers.holders() {
            if let Some(link) = view.link(peer.life) {
                link.send(&Message::Touch { key: cx.key, claim: own.claim, idle_ms: 0 }, Some(Sent::note(cx.key)), cx.out);
            }
        }
        self.touch_row(cx, first);
    }

    /// A request lets go of the session.
    pub(crate) fn close(&mut self, cx: &mut Cx<'_>, at: &Opened<L>) {
        let Some((own, Copy { record, .. })) = self.owned() else { return };
        if own.tenure != at.tenure {
            return;
        }
        own.running = own.running.saturating_sub(1);
        if at.uses && !record.is_first() {
            // It was in use all the time.
            record.note_use(cx.now);
        }
        if own.closing.is_some() {
            self.try_close(cx);
        } else if own.version == 0 && own.adopted.version == 0 && own.running == 0 && record.lineage.listed().is_empty() {
            // Nothing was put in: a session that was never committed leaves no trace.
            self.release(cx);
        }
    }

    pub(crate) fn commit(&mut self, cx: &mut Cx<'_>, at: &Opened<L>, changes: &[Change]) -> Commit {
        match &self.state {
            State::Ended(_) => Commit::Ended,
            State::Owned(_, own) if own.tenure == at.tenure => self.commit_here(cx, changes),
            State::Nothing | State::Facade(_) | State::Held(_) | State::Owned(..) => {
                // The copy that this node still has includes all that the request can have read here, unless it is a later one of what
                // was left after a loss.
                let copy = self.copy().filter(|c| c.record.lineage.includes(at.tip)).map(|c| c.record.tip);
                let read = copy.or(Some(at.tip));
                Commit::Late(self.park(cx, read, changes, None))
            }
        }
    }

    /// Commits as the owner.
    pub(crate) fn commit_here(&mut self, cx: &mut Cx<'_>, changes: &[Change]) -> Commit {
        let Some((own, copy)) = self.owned() else { return Commit::Ended };
        if own.generation != cx.view.generation {
            own.replace_list(cx.view, cx.key, &mut copy.peers);
        }
        if !copy.record.bases_hold(changes) {
            return Commit::Conflict;
        }
        if let Err(excess) = copy.record.fits_with(changes, cx.config.record_max) {
            return Commit::TooLarge(excess);
        }
        if own.list.len() < usize::from(cx.config.min_backups) || own.version == u32::MAX {
            return Commit::UnderReplicated;
        }
        own.version += 1;
        own.copied = None;
        let stamp = own.claim.at(own.version);
        copy.record.commit(stamp, changes);
        copy.record.note_commit(cx.now);
        own.touched = cx.now;
        sync(cx, own, copy, Some(changes));
        self.mark_dirty(cx);
        self.advance(cx);
        self.leave_when_durable(cx, Some(stamp))
    }

    /// The end of a request that changed nothing: what it read must be durable.
    pub(crate) fn finish_read(&mut self, cx: &mut Cx<'_>, at: &Opened<L>) -> Commit {
        let Some(copy) = self.copy() else { return Commit::Done { tip: None, level: Level::Owner, stamp: None } };
        match (self.owner(), copy.orphans.last()) {
            (Some((own, _)), _) if own.tenure == at.tenure => self.leave_when_durable(cx, None),
            // The session moved while the request ran, and left commits behind that the request may have read.
            (_, Some(o)) => Commit::Wait { claim: o.claim, version: o.version, stamp: None },
            _ => Commit::Done { tip: None, level: Level::Owner, stamp: None },
        }
    }

    fn leave_when_durable(&mut self, cx: &mut Cx<'_>, stamp: Option<Stamp>) -> Commit {
        let (own, copy) = match &mut self.state {
            State::Owned(copy, own) => (own, copy),
            State::Held(copy) => {
                // The commit came when a claimant had waited long enough, and went to it with the session.
                return match (stamp, copy.orphans.last()) {
                    (Some(Stamp { claim, version }), Some(o)) if o.claim == claim => Commit::Wait { claim, version, stamp },
                    _ => Commit::Done { tip: stamp, level: Level::Owner, stamp },
                };
            }
            State::Nothing | State::Facade(_) | State::Ended(_) => return Commit::Ended,
        };
        let early = cx.planted(Bug::AckBeforeBackup) || stamp.is_none() && cx.planted(Bug::ServeUncommitted);
        if own.all_durable() || early {
            let tip = if early { copy.record.tip } else { own.durable_tip() };
            Commit::Done { tip: (tip.version > 0).then_some(tip), level: level_of(cx.config, own, &copy.peers), stamp }
        } else {
            own.awaited = true;
            Commit::Wait { claim: own.claim, version: own.version, stamp }
        }
    }

    /// The first commit of another id with the content of this one. The live session goes with it.
    pub(crate) fn fork_from(&mut self, cx: &Cx<'_>, at: &Opened<L>) -> Option<(Record, Arc<L>)> {
        let (own, copy) = self.owned().filter(|(own, _)| own.tenure == at.tenure)?;
        own.copied = Some((copy.record.tip, cx.now + ROTATION_BOUND));
        Some((copy.record.clone(), own.live.clone()))
    }

    /// See [`fork_from`](Session::fork_from).
    pub(crate) fn fork_to(&mut self, cx: &mut Cx<'_>, from: (Record, Arc<L>)) -> Option<Opened<L>> {
        if !matches!(self.state, State::Nothing) {
            return None;
        }
        let claim = Claim { epoch: 1, life: cx.view.me };
        let record = from.0.fork(claim.at(1), cx.now);
        self.adopt_live(cx, record, 1, from.1)
    }

    /// Whether a rotation copies the session just now: another node's change would not go along.
    pub(crate) fn is_rotating(&self, cx: &Cx<'_>) -> bool {
        let copied = self.owner().and_then(|(own, _)| own.copied);
        copied.is_some_and(|(_, until)| cx.now < until) && !cx.planted(Bug::ChangedWhileRotating)
    }

    /// The session has outlived its limits here: it goes without a marker, because every copy knows its own age.
    pub(crate) fn expire(&mut self, cx: &mut Cx<'_>) {
        let Some((copy, own)) = self.release(cx) else { return };
        forget_late(cx, &copy, own.as_deref(), LateResult::NotOwner);
        let Copy { record, peers, .. } = copy;
        if let Some(own) = own {
            for peer in peers.holders() {
                if let Some(link) = cx.view.link(peer.life) {
                    let lineage = (&record.lineage).into();
                    link.send(&Message::Drop { key: cx.key, claim: own.claim, tip: record.tip, lineage }, None, cx.out);
                }
            }
            if record.tip.version > 0 {
                // Who asks for it, with whatever token, hears that it expired, not that it is lost.
                let (tip, expires) = (record.tip, record.expires());
                let over = Some(Box::new(record.lineage));
                self.state = State::Facade(Facade { claim: own.claim, tip, expires, over });
            }
            for ticket in own.waiting {
                cx.settle(ticket, Outcome::Again);
            }
        }
        cx.out.event(cx.key, Event::Expired);
    }
}

impl Facade {
    pub(crate) fn info(&self) -> Info {
        Info {
            owner: Some(self.claim.life),
            claim: self.claim,
            tip: self.tip,
            owned: false,
            held: false,
            backups: Vec::new(),
            level: None,
            bytes: 0,
        }
    }
}

impl Copy {
    pub(crate) fn info<L>(&self, own: Option<&Owner<L>>, config: &Checked) -> Info {
        let backups = |own: &Owner<L>| {
            // Nothing may be durable yet: then whoever has acknowledged anything is one.
            let acked = |life: Life| self.peers.acked(life).filter(|acked| Some(*acked) >= own.durable).is_some();
            own.list.iter().copied().filter(|l| acked(*l) || config.planted(Bug::ListIsBackups)).collect()
        };
        Info {
            owner: Some(own.map_or(self.heard, |o| o.claim).life),
            claim: own.map_or(self.accepted, |o| o.claim),
            tip: self.record.tip,
            owned: own.is_some(),
            held: true,
            backups: own.map_or(Vec::new(), backups),
            level: own.map(|o| level_of(config, o, &self.peers)),
            bytes: self.record.bytes(),
        }
    }
}

/// How often the holders are told of a use.
fn touch_step(clock: &Clock) -> Duration {
    clock.step().min(TOUCH_AT_MOST)
}
