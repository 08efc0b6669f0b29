//! One session on this node: all that is known of it and under way for it, as one value. The other modules add what is done to it, each a
//! part; nothing in here, or there, finds a session by its key.

use crate::copy::{Copy, Ended, Facade};
use crate::cx::{Cx, Promise, Timer};
use crate::limits::{PROMISE_KEEP, PROMISES_MAX};
use crate::output::Live;
use crate::owner::Owner;
use crate::pending::{Round, UnderWay, Writing};
use crate::stamp::{Claim, Life};
use crate::wire::Message;
use core::sync::atomic::Ordering;

/// How long a hint at who owns a session is worth something, in milliseconds.
const HINT_MS: u32 = 60_000;

/// A session's place in the table. Of most there is nothing more to say than a facade or a marker, and no box is needed.
#[derive(Debug)]
pub(crate) enum Slot<L> {
    Facade(Facade),
    Ended(Ended),
    Here(Box<Session<L>>),
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Session<L> {
    pub(crate) state: State<L>,
    pub(crate) under_way: Option<Box<UnderWay>>,
}

/// What a node has of a session.
#[derive(Debug)]
pub(crate) enum State<L> {
    Nothing,
    Facade(Facade),
    Ended(Ended),
    /// Another node owns it, or nobody.
    Held(Copy),
    Owned(Copy, Box<Owner<L>>),
}

/// The same of a session that is not to be changed.
#[derive(Debug)]
pub(crate) enum Seen<'a, L> {
    Nothing,
    Facade(&'a Facade),
    Ended(&'a Ended),
    Held(&'a Copy),
    Owned(&'a Copy, &'a Owner<L>),
}

impl<L> Slot<L> {
    pub(crate) fn seen(&self) -> Seen<'_, L> {
        match self {
            Slot::Facade(facade) => Seen::Facade(facade),
            Slot::Ended(ended) => Seen::Ended(ended),
            Slot::Here(session) => match &session.state {
                State::Nothing => Seen::Nothing,
                State::Facade(facade) => Seen::Facade(facade),
                State::Ended(ended) => Seen::Ended(ended),
                State::Held(copy) => Seen::Held(copy),
                State::Owned(copy, own) => Seen::Owned(copy, own),
            },
        }
    }

    pub(crate) fn copy(&self) -> Option<&Copy> {
        self.here()?.copy()
    }

    /// The ownership and the copy of a session that is owned here.
    pub(crate) fn owner(&self) -> Option<(&Owner<L>, &Copy)> {
        self.here()?.owner()
    }

    pub(crate) fn owned(&mut self) -> Option<(&mut Owner<L>, &mut Copy)> {
        match self {
            Slot::Here(session) => session.owned(),
            Slot::Facade(_) | Slot::Ended(_) => None,
        }
    }

    fn here(&self) -> Option<&Session<L>> {
        match self {
            Slot::Here(session) => Some(session),
            Slot::Facade(_) | Slot::Ended(_) => None,
        }
    }

    /// The session in this place, for a while.
    pub(crate) fn take(&mut self) -> Session<L> {
        Session::new(match self {
            Slot::Facade(f) => State::Facade(Facade { over: f.over.take(), ..*f }),
            Slot::Ended(e) => State::Ended(Ended { telling: e.telling.take(), ..*e }),
            Slot::Here(session) => return core::mem::replace(session, Session::new(State::Nothing)),
        })
    }
}

impl<L> State<L> {
    pub(crate) fn copy(&self) -> Option<&Copy> {
        match self {
            State::Held(copy) | State::Owned(copy, _) => Some(copy),
            State::Nothing | State::Facade(_) | State::Ended(_) => None,
        }
    }

    pub(crate) fn copy_mut(&mut self) -> Option<&mut Copy> {
        match self {
            State::Held(copy) | State::Owned(copy, _) => Some(copy),
            State::Nothing | State::Facade(_) | State::Ended(_) => None,
        }
    }

    /// The ownership and the copy of a session that is owned here.
    pub(crate) fn owner(&self) -> Option<(&Owner<L>, &Copy)> {
        match self {
            State::Owned(copy, own) => Some((own, copy)),
            State::Nothing | State::Facade(_) | State::Ended(_) | State::Held(_) => None,
        }
    }
}

impl<L> Session<L> {
    pub(crate) fn new(state: State<L>) -> Session<L> {
        Session { state, under_way: None }
    }

    /// Whether it needs a box, from here on.
    pub(crate) fn stays_here(&mut self) -> bool {
        if self.under_way.as_ref().is_some_and(|under_way| under_way.is_nothing()) {
            self.under_way = None;
        }
        self.under_way.is_some() || self.state.copy().is_some()
    }

    /// Its place in the table, if it needs one.
    pub(crate) fn into_slot(mut self) -> Option<Slot<L>> {
        if self.stays_here() {
            return Some(Slot::Here(Box::new(self)));
        }
        match self.state {
            State::Facade(facade) => Some(Slot::Facade(facade)),
            State::Ended(ended) => Some(Slot::Ended(ended)),
            State::Nothing | State::Held(_) | State::Owned(..) => None,
        }
    }

    pub(crate) fn copy(&self) -> Option<&Copy> {
        self.state.copy()
    }

    pub(crate) fn copy_mut(&mut self) -> Option<&mut Copy> {
        self.state.copy_mut()
    }

    pub(crate) fn owner(&self) -> Option<(&Owner<L>, &Copy)> {
        self.state.owner()
    }

    pub(crate) fn owned(&mut self) -> Option<(&mut Owner<L>, &mut Copy)> {
        match &mut self.state {
            State::Owned(copy, own) => Some((own, copy)),
            State::Nothing | State::Facade(_) | State::Ended(_) | State::Held(_) => None,
        }
    }

    /// The copy of a session that is not owned here.
    pub(crate) fn backed(&mut self) -> Option<&mut Copy> {
        match &mut self.state {
            State::Held(copy) => Some(copy),
            State::Nothing | State::Facade(_) | State::Ended(_) | State::Owned(..) => None,
        }
    }

    pub(crate) fn owns(&self) -> bool {
        matches!(self.state, State::Owned(..))
    }

    pub(crate) fn under_way(&mut self) -> &mut UnderWay {
        self.under_way.get_or_insert_default()
    }

    /// The claim round that runs.
    pub(crate) fn round(&self) -> Option<&Round> {
        self.under_way.as_ref()?.round.as_deref()
    }

    pub(crate) fn round_mut(&mut self) -> Option<&mut Round> {
        self.under_way.as_mut()?.round.as_deref_mut()
    }

    /// What is on its way to the store.
    pub(crate) fn writing(&self) -> Option<Writing> {
        self.under_way.as_ref()?.writing
    }

    /// Whether this node owns it, and by this claim.
    pub(crate) fn owns_by(&self, claim: Claim) -> bool {
        self.owner().is_some_and(|(own, _)| own.claim == claim)
    }

    pub(crate) fn ended(&self) -> Option<&Ended> {
        match &self.state {
            State::Ended(ended) => Some(ended),
            State::Nothing | State::Facade(_) | State::Held(_) | State::Owned(..) => None,
        }
    }

    pub(crate) fn ended_mut(&mut self) -> Option<&mut Ended> {
        match &mut self.state {
            State::Ended(ended) => Some(ended),
            State::Nothing | State::Facade(_) | State::Held(_) | State::Owned(..) => None,
        }
    }
}

impl<L: Live> Session<L> {
    // ---- promises -------------------------------------------------------------------------------------------------------

    pub(crate) fn promised(&self, cx: &Cx<'_>) -> Claim {
        promised(cx, self.copy())
    }

    /// The highest claim ever promised, whether it still binds or not.
    pub(crate) fn highest(&self, cx: &Cx<'_>) -> Claim {
        match self.copy() {
            Some(copy) => copy.highest,
            None => cx.queues.promises.get(cx.key).map_or(Claim::NONE, |(p, _)| p.highest),
        }
    }

    /// Promises, in the copy or beside it.
    pub(crate) fn promise(&mut self, cx: &mut Cx<'_>, claim: Claim) {
        if let Some(copy) = self.copy_mut() {
            return copy.promise_as(cx.view.me, claim, cx.now);
        }
        let note = |p: &mut Promise| (p.claim, p.highest) = (p.claim.max(claim), p.highest.max(claim));
        let forgotten = cx.queues.promises.note(cx.key, cx.now, PROMISE_KEEP, cx.config.of_shard(PROMISES_MAX), note);
        if forgotten > 0 {
            cx.shared.forgotten.fetch_add(forgotten, Ordering::Relaxed);
        }
    }

    /// Takes back a promise to this node itself that nobody else was asked for.
    pub(crate) fn withdraw(&mut self, cx: &mut Cx<'_>, claim: Claim, before: Claim) {
        if let Some(copy) = self.copy_mut() {
            if copy.promised == claim {
                // An owner's state may have been accepted meanwhile.
                copy.promised = before.max(copy.accepted);
            }
        } else if let Some(p) = cx.queues.promises.get_mut(cx.key).filter(|p| p.claim == claim) {
            p.claim = before;
        }
    }

    /// Comes to hold a copy, with what was promised for it, and to own the session if there is an ownership.
    pub(crate) fn hold(&mut self, cx: &mut Cx<'_>, mut copy: Copy, own: Option<Owner<L>>) {
        if let Some((promise, at)) = cx.queues.promises.remove(cx.key) {
            copy.promise_as(cx.view.me, promise.claim, at);
            copy.highest = copy.highest.max(promise.highest);
        }
        if let State::Facade(f) = &self.state {
            copy.heard = copy.heard.max(f.claim);
            if f.over.is_none() {
                copy.tell(f.tip);
            }
        }
        cx.shared.held.fetch_add(1, Ordering::Relaxed);
        self.state = match own {
            Some(own) => {
                cx.shared.owned.fetch_add(1, Ordering::Relaxed);
                State::Owned(copy, Box::new(own))
            }
            None => State::Held(copy),
        };
    }

    /// Lets go of its copy; what that promised is remembered.
    pub(crate) fn release(&mut self, cx: &mut Cx<'_>) -> Option<(Copy, Option<Box<Owner<L>>>)> {
        let (copy, mut own) = match core::mem::replace(&mut self.state, State::Nothing) {
            State::Held(copy) => (copy, None),
            State::Owned(copy, own) => (copy, Some(own)),
            other @ (State::Nothing | State::Facade(_) | State::Ended(_)) => {
                self.state = other;
                return None;
            }
        };
        cx.shared.held.fetch_sub(1, Ordering::Relaxed);
        cx.queues.invited.remove(&cx.key);
        cx.queues.repairing.remove(&cx.key);
        if let Some(own) = &mut own {
            cx.shared.owned.fetch_sub(1, Ordering::Relaxed);
            (own.queued, own.touch_queued) = (false, false);
            cx.out.gone(own.live.clone());
        }
        if copy.record.tip.version > 0 {
            self.promise(cx, copy.promised);
            if let Some(p) = cx.queues.promises.get_mut(cx.key) {
                p.highest = p.highest.max(copy.highest);
            }
        }
        Some((copy, own))
    }

    // ---- rounds ---------------------------------------------------------------------------------------------------------

    pub(crate) fn begin_round(&mut self, cx: &mut Cx<'_>, round: Round) {
        cx.queues.rounds.insert(cx.key);
        self.under_way().round = Some(Box::new(round));
    }

    pub(crate) fn take_round(&mut self, cx: &mut Cx<'_>) -> Option<Box<Round>> {
        let round = self.under_way.as_mut()?.round.take()?;
        cx.queues.rounds.remove(&cx.key);
        Some(round)
    }

    // ---- what comes in --------------------------------------------------------------------------------------------------

    /// One message about the session; `None` if it cannot be one.
    pub(crate) fn handle(&mut self, cx: &mut Cx<'_>, from: Life, message: Message<'_>) -> Option<()> {
        if !cx.queues.not_found.is_empty() {
            // Somebody speaks of it: that nobody has it may be over, for after a loss a session goes on under its id.
            cx.queues.not_found.remove(cx.key);
        }
        match message {
            Message::Ask { claim, why, have, .. } => self.handle_ask(cx, from, claim, why, have),
            Message::Busy { claim, ms, .. } => self.handle_busy(cx, from, claim, ms),
            Message::Refused { claim, promised, .. } => self.handle_refused(cx, from, claim, promised),
            Message::Stay { claim, owner, record, .. } => self.handle_stay(cx, from, claim, owner, &record)?,
            Message::Answer { claim, accepted, moves, held, .. } => self.handle_answer(cx, from, claim, accepted, moves, &held)?,
            Message::Delta { claim, base, version, sets, .. } => self.handle_delta(cx, from, claim, base, version, &sets)?,
            Message::Full { claim, stored, record, .. } => self.handle_full(cx, from, claim, stored, &record)?,
            Message::Diverged { claim, record, .. } => self.handle_diverged(cx, from, Some(claim), &record)?,
            Message::Kept { record, .. } => self.handle_diverged(cx, from, None, &record)?,
            Message::Gap { claim, .. } => self.handle_gap(cx, from, claim),
            Message::Facade { claim, tip, expires_ms, lineage, .. } if claim.life == from => {
                self.handle_facade(cx, from, claim, tip, expires_ms, lineage.as_ref());
            }
            Message::Owned { claim, tip, .. } => self.handle_facade(cx, from, claim, tip, HINT_MS, None),
            Message::Unowned { .. } => self.handle_unowned(cx, from),
            Message::Have { claim, tip, idle_ms, lineage, .. } if claim.life == from => {
                self.handle_have(cx, from, claim, tip, idle_ms, &lineage);
            }
            // Nobody but the owner says these.
            Message::Facade { .. } | Message::Have { .. } => return None,
            Message::Report { claim, idle_ms, .. } => self.handle_report(cx, from, claim, idle_ms),
            Message::Drop { claim, tip, lineage, .. } => self.handle_drop(cx, from, claim, tip, &lineage),
            Message::Dropped { unheard, .. } => self.handle_dropped(cx, from, &unheard),
            Message::End { kind, next, .. } => self.handle_end(cx, from, kind, next),
            Message::EndSeen { kind, unheard, .. } => self.handle_end_seen(cx, from, kind, &unheard),
            Message::Touch { claim, idle_ms, .. } => self.handle_touch(cx, claim, idle_ms),
            Message::Invite { .. } => self.handle_invite(cx, from),
            Message::Late { id, read, sets, next, .. } => self.handle_late(cx, from, id, read, &sets, next)?,
            Message::LateDone { id, result, .. } => self.handle_late_done(cx, from, id, result),
            Message::Gossip(_) | Message::Settled(_) | Message::Views(_) | Message::Ack(_) => return None,
        }
        Some(())
    }

    /// A timer is due.
    pub(crate) fn wake(&mut self, cx: &mut Cx<'_>, timer: Timer) {
        match timer {
            Timer::Round => self.round_due(cx),
            Timer::Close => self.try_close(cx),
            Timer::Heir => self.heir_due(cx),
            Timer::Ending => self.ending_due(cx),
            Timer::Parked => self.drive_parked(cx, true),
            Timer::Invite if cx.queues.invited.contains(&cx.key) => self.send_invite(cx),
            Timer::Invite => self.invite(cx),
            Timer::Store => self.store_due(cx),
            Timer::Touch => self.touch_row(cx, true),
        }
    }
}

/// The claim that is promised, in the copy or beside it.
pub(crate) fn promised(cx: &Cx<'_>, copy: Option<&Copy>) -> Claim {
    match copy {
        Some(copy) => copy.promised,
        None => cx.queues.promises.get(cx.key).map_or(Claim::NONE, |(p, _)| p.claim),
    }
}

// Most sessions of a node are facades; of the others most are copies at rest.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Slot<()>>() <= 56 && size_of::<Session<()>>() <= 384);
