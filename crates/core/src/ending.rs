//! Ended sessions: absorbing markers, and telling everybody who may hold a copy.

use crate::copy::Ended;
use crate::cx::{Call, Cx, Timer};
use crate::id::SessionKey;
use crate::limits::{END_BOUND, ENDED_KEEP, ENDED_MAX};
use crate::link::Sent;
use crate::output::{Event, Failure, Live, Opened, Outcome, Output, Ticket, Written};
use crate::owner::forget_late;
use crate::pending::{Ending, Following};
use crate::plant::Bug;
use crate::session::{Seen, Session, State};
use crate::shard::Shard;
use crate::stamp::Life;
use crate::time::Mono;
use crate::view::{Lives, View};
use crate::wire::{EndKind, LateResult, Message, one_next};
use core::time::Duration;

/// How often an unanswered end is sent again.
const AGAIN: Duration = Duration::from_millis(500);

/// How long before its death was declared a member may have heard nothing.
const SILENT: Duration = Duration::from_secs(60);

impl Ended {
    /// Says it at once, or when it is said again: thousands of ends are told at a time, and nobody waits for most of them.
    fn send_later(&self, cx: &mut Cx<'_>, to: Life) {
        if !cx.view.link(to).is_some_and(|link| link.is_behind()) {
            self.send(cx, to);
        }
    }

    /// Says how the session has ended.
    pub(crate) fn send(&self, cx: &mut Cx<'_>, to: Life) {
        if let Some(link) = cx.view.link(to) {
            link.send(&Message::End { key: cx.key, kind: self.kind, next: self.next }, Some(Sent::note(cx.key)), cx.out);
        }
    }
}

impl<L: Live> Session<L> {
    /// Ends a session on this node, and tells everybody who may hold a copy. Needs no ownership.
    pub(crate) fn end(&mut self, cx: &mut Cx<'_>, next: Option<SessionKey>) -> Ticket {
        let ticket = cx.ticket();
        if self.ended().is_none() {
            let kind = if next.is_some() { EndKind::Rotated } else { EndKind::Invalidated };
            self.mark_ended(cx, kind, next, None, Some(ticket));
            return ticket;
        }
        self.note_next(cx, next);
        match self.telling() {
            Some(pending) if pending.ticket.is_none() => pending.ticket = Some((ticket, cx.now + END_BOUND)),
            Some(_) => cx.settle(ticket, Outcome::End(false)),
            None => cx.settle(ticket, Outcome::End(true)),
        }
        ticket
    }

    /// Ends a session that goes on as `next`, if that has all there is of it.
    pub(crate) fn end_rotated(&mut self, cx: &mut Cx<'_>, at: &Opened<L>, next: SessionKey) -> Option<Ticket> {
        if !cx.planted(Bug::ChangedWhileRotating) {
            let doubted = self.doubts(cx);
            let (own, copy) = self.owner().filter(|(own, _)| own.tenure == at.tenure && !doubted)?;
            own.copied.filter(|(tip, _)| *tip == copy.record.tip)?;
        }
        Some(self.end(cx, Some(next)))
    }

    /// This node hears of an end, from a peer or the store. A logout is one whatever was heard before.
    pub(crate) fn learn_end(&mut self, cx: &mut Cx<'_>, kind: EndKind, next: Option<SessionKey>, from: Option<Life>) {
        match self.ended() {
            None => self.mark_ended(cx, kind, next, from, None),
            Some(_) if cx.planted(Bug::FirstEndStays) => {}
            Some(known) => {
                let overrides = kind.overrides(known.kind);
                self.note_next(cx, next);
                if overrides {
                    self.override_end(cx, kind, from);
                }
            }
        }
    }

    /// All who may have heard of the lesser end hear of this one.
    fn override_end(&mut self, cx: &mut Cx<'_>, kind: EndKind, from: Option<Life>) {
        let Some(ended) = self.ended_mut() else { return };
        ended.kind = kind;
        let keep = ended.until.since(cx.now);
        let mut waiting = whom_to_tell(cx);
        let before = ended.telling.take();
        let (ticket, writing) = before.as_ref().map_or((None, false), |e| (e.ticket, e.writing));
        waiting.extend(before.into_iter().flat_map(|e| e.waiting.into_iter().chain(e.confirmed)));
        cx.out.event(cx.key, Event::Ended(kind));
        let ending = Ending { keep, waiting, confirmed: Lives::new(), store: cx.config.store, writing, follows: false, ticket };
        self.begin_telling(cx, ending, from);
    }

    /// This node hears of the id that an ended one went on under.
    fn note_next(&mut self, cx: &mut Cx<'_>, next: Option<SessionKey>) {
        let Some(ended) = self.ended_mut() else { return };
        let before = ended.next;
        ended.next = one_next(before, next);
        if ended.next != before && ended.follow(cx) {
            if ended.telling.is_none() {
                ended.tell(cx, Lives::new(), false);
            }
            ended.telling.iter_mut().for_each(|e| e.follows = true);
        }
    }

    /// All know of the end of the id that this one went on under.
    pub(crate) fn followed(&mut self, cx: &mut Cx<'_>, next: SessionKey, asker: Option<Life>) {
        if let Some(e) = self.ended_mut().filter(|ended| ended.next == Some(next)).and_then(|ended| ended.telling.as_mut()) {
            e.follows = false;
            self.settle_end(cx);
        }
        if let Some(asker) = asker {
            self.confirm_end(cx, asker);
        }
    }

    /// The id before this one was logged out. Whether everybody knows of its end.
    pub(crate) fn end_next(&mut self, cx: &mut Cx<'_>) -> bool {
        self.learn_end(cx, EndKind::Invalidated, None, None);
        self.telling().is_none()
    }

    fn mark_ended(&mut self, cx: &mut Cx<'_>, kind: EndKind, next: Option<SessionKey>, from: Option<Life>, ticket: Option<Ticket>) {
        let mut keep = ENDED_KEEP;
        // Whoever may hold a copy. One who hears it tells those that it knows.
        let mut waiting = whom_to_tell(cx);
        if let State::Facade(f) = &self.state {
            waiting.push(f.claim.life);
        }
        waiting.push(self.promised(cx).life);
        if let Some((copy, own)) = self.release(cx) {
            forget_late(cx, &copy, own.as_deref(), LateResult::NotOwner);
            keep = keep.min(copy.record.limits().lifetime);
            waiting.extend([copy.accepted.life, copy.heard.life]);
            waiting.extend(copy.peers.iter().filter(|p| p.holds || !cx.planted(Bug::FormerOwnerNotTold)).map(|p| p.life));
            if let Some(own) = own {
                for ticket in own.waiting {
                    cx.settle(ticket, Outcome::Ended(kind, Duration::ZERO));
                }
                let (claim, version) = (own.claim, u32::MAX);
                cx.out.push(Output::Failed { key: cx.key, claim, version, failure: Failure::Ended });
            }
        }
        self.round_ended(cx, kind);
        self.state = State::Ended(Ended { kind, next, since: cx.now, until: cx.now + keep, telling: None });
        cx.queues.marked += 1;
        cx.queues.crowded |= cx.queues.marked > cx.config.of_shard(ENDED_MAX);
        cx.out.event(cx.key, Event::Ended(kind));
        self.drive_parked(cx, false);
        let ticket = ticket.map(|t| (t, cx.now + END_BOUND));
        let ending = Ending { keep, waiting, confirmed: Lives::new(), store: cx.config.store, writing: false, follows: false, ticket };
        self.begin_telling(cx, ending, from);
    }

    /// Who has not confirmed the end, if anybody has not.
    pub(crate) fn telling(&mut self) -> Option<&mut Ending> {
        self.ended_mut()?.telling.as_deref_mut()
    }

    fn begin_telling(&mut self, cx: &mut Cx<'_>, mut ending: Ending, from: Option<Life>) {
        let view = cx.view;
        let Some(ended) = self.ended_mut() else { return };
        ending.waiting.sort_unstable();
        ending.waiting.dedup();
        ending.waiting.retain(|l| *l != view.me && Some(*l) != from && view.peer(*l).is_some());
        ending.confirmed.extend(from);
        if ending.store {
            cx.queues.dirty.push_front(cx.key);
            cx.out.store();
        }
        for life in &ending.waiting {
            ended.send(cx, *life);
        }
        ending.follows = ended.follow(cx);
        ended.telling = Some(Box::new(ending));
        cx.set_timer(cx.now + AGAIN, Timer::Ending);
        self.settle_end(cx);
    }

    /// Who has come to be on the session's list hears of its end: otherwise the marker would go with the nodes that were there. Until
    /// it is confirmed the session counts as one that lacks a copy, and whoever asks for it asks where it was before, too.
    pub(crate) fn spread_end(&mut self, cx: &mut Cx<'_>) {
        if cx.planted(Bug::EndNotSpread) {
            return;
        }
        let had = cx.walked.list(cx.key);
        for life in cx.view.list(cx.key) {
            let unheard = !cx.planted(Bug::EndSentOnce) && self.telling().is_some_and(|e| e.waiting.contains(&life));
            if life != cx.view.me && (unheard || !had.contains(&life)) {
                cx.queues.repairing.insert(cx.key);
                self.tell_end(cx, life);
            }
        }
    }

    fn tell_end(&mut self, cx: &mut Cx<'_>, life: Life) {
        let Some(ended) = self.ended_mut() else { return };
        match &mut ended.telling {
            Some(pending) if !pending.waiting.contains(&life) => pending.waiting.push(life),
            Some(_) => {}
            None => {
                ended.tell(cx, Lives::from_slice(&[life]), false);
            }
        }
        ended.send_later(cx, life);
    }

    /// Answers whoever speaks of a session that has ended; whether it has.
    pub(crate) fn send_end(&self, cx: &mut Cx<'_>, to: Life) -> bool {
        let ended = self.ended();
        if let Some(ended) = ended {
            ended.send(cx, to);
        }
        ended.is_some()
    }

    pub(crate) fn handle_end(&mut self, cx: &mut Cx<'_>, from: Life, kind: EndKind, next: Option<SessionKey>) {
        self.learn_end(cx, kind, next, Some(from));
        let next = self.ended().and_then(|ended| ended.next);
        match next.filter(|_| kind == EndKind::Invalidated && !cx.planted(Bug::FirstEndStays)) {
            // Whoever logs out hears "everywhere" when that is so for every id. Until then it asks again.
            Some(next) => cx.queues.following.push(Following { key: cx.key, next, asker: Some(from) }),
            None => self.confirm_end(cx, from),
        }
    }

    /// Says how the session has ended here, and who of those that the asker need not know of has not heard of it.
    pub(crate) fn confirm_end(&mut self, cx: &mut Cx<'_>, to: Life) {
        let kind = self.ended().map_or(EndKind::Invalidated, |ended| ended.kind);
        let list = cx.view.list(cx.key);
        let waiting = self.telling().into_iter().flat_map(|e| &e.waiting);
        let unheard = waiting.filter(|l| **l != to && !list.contains(l)).copied().collect();
        if let Some(link) = cx.view.link(to) {
            link.send(&Message::EndSeen { key: cx.key, kind, unheard }, None, cx.out);
        }
    }

    pub(crate) fn handle_end_seen(&mut self, cx: &mut Cx<'_>, from: Life, kind: EndKind, unheard: &[Life]) {
        if self.ended().is_some() {
            self.learn_end(cx, kind, None, Some(from));
        }
        // One that speaks of a lesser end has not heard of this one yet.
        let Some(ended) = self.ended_mut().filter(|e| !e.kind.overrides(kind) || cx.planted(Bug::FirstEndStays)) else { return };
        let Some(e) = &mut ended.telling else { return };
        e.waiting.retain(|l| *l != from);
        if !e.confirmed.contains(&from) {
            e.confirmed.push(from);
        }
        let known = |life: Life| life == cx.view.me || e.confirmed.contains(&life) || e.waiting.contains(&life);
        let more: Lives = match cx.planted(Bug::FormerOwnerNotTold) {
            true => Lives::new(),
            false => unheard.iter().copied().filter(|life| !known(*life) && cx.view.peer(*life).is_some()).collect(),
        };
        for life in more {
            self.tell_end(cx, life);
        }
        self.settle_end(cx);
    }

    /// What became of the marker on its way to the store. There it may have met one that says more.
    pub(crate) fn end_stored(&mut self, cx: &mut Cx<'_>, written: Written) {
        let Some(e) = self.telling().filter(|e| e.writing) else { return };
        e.writing = false;
        self.note_writing(cx);
        let Written::Ended(kind, next) = written else { return };
        self.learn_end(cx, kind, next, None);
        let Some(ended) = self.ended_mut() else { return };
        let same = (ended.kind, ended.next) == (kind, next);
        if let Some(e) = &mut ended.telling {
            e.store &= !same;
            self.settle_end(cx);
        }
    }

    /// The store may have forgotten the marker: it is written again.
    pub(crate) fn end_again(&mut self, cx: &mut Cx<'_>) {
        let Some(ended) = self.ended_mut() else { return };
        match &mut ended.telling {
            Some(pending) => pending.store = true,
            None => ended.tell(cx, Lives::new(), true),
        }
        cx.queues.dirty.push_back(cx.key);
        cx.out.store();
    }

    /// Everybody has confirmed: answer, and forget who had to.
    fn settle_end(&mut self, cx: &mut Cx<'_>) {
        let view = cx.view;
        let Some(ended) = self.ended_mut() else { return };
        let Some(e) = &mut ended.telling else { return };
        // A dead life's memory is gone; one that was only cut off walks all it holds when it comes back, and hears of the end.
        e.waiting.retain(|l| view.peer(*l).is_some());
        if cx.queues.repairing.contains(&cx.key) && !view.list(cx.key).iter().any(|l| e.waiting.contains(l)) {
            cx.queues.repairing.remove(&cx.key);
        }
        if e.waiting.is_empty() && !e.store && !e.follows {
            if let Some((ticket, _)) = e.ticket {
                cx.settle(ticket, Outcome::End(true));
            }
            ended.telling = None;
        }
    }

    pub(crate) fn ending_due(&mut self, cx: &mut Cx<'_>) {
        self.settle_end(cx);
        let Some(ended) = self.ended_mut() else { return };
        let Some(e) = &mut ended.telling else { return };
        if let Some((ticket, _)) = e.ticket.take_if(|(_, due)| cx.now >= *due) {
            cx.settle(ticket, Outcome::End(false));
        }
        let (store, follows) = (e.store && !e.writing, e.follows);
        if let Some(e) = ended.telling.as_ref().filter(|_| !cx.planted(Bug::EndSentOnce)) {
            for life in &e.waiting {
                ended.send_later(cx, *life);
            }
        }
        if follows {
            ended.follow(cx);
        }
        if store {
            cx.queues.dirty.push_back(cx.key);
            cx.out.store();
        }
        cx.set_timer(cx.now + AGAIN, Timer::Ending);
    }
}

impl Ended {
    /// If this was a logout it ends the id that the session went on under, too. Whether there is one.
    fn follow(&self, cx: &mut Cx<'_>) -> bool {
        let next = self.next.filter(|_| self.kind == EndKind::Invalidated && !cx.planted(Bug::FirstEndStays));
        cx.queues.following.extend(next.map(|next| Following { key: cx.key, next, asker: None }));
        next.is_some()
    }

    /// Begins to tell those who are to know.
    fn tell(&mut self, cx: &mut Cx<'_>, waiting: Lives, store: bool) {
        let keep = self.until.since(cx.now);
        self.telling =
            Some(Box::new(Ending { keep, waiting, confirmed: Lives::new(), store, writing: false, follows: false, ticket: None }));
        cx.set_timer(cx.now + AGAIN, Timer::Ending);
    }
}

/// The list, the holders and the owner that this node knows of. While forks may not have met, anybody may own it.
fn whom_to_tell(cx: &Cx<'_>) -> Lives {
    let view = cx.view;
    if view.is_settled() { view.asked(cx.key) } else { view.others().map(|p| p.life).collect() }
}

impl<L: Live> Shard<L> {
    /// Lives that this view has and the one before had not: one that was dead comes back with all that it held, and a new one may
    /// have got copies from members that were cut off. They hear of the ends that may not have come to them.
    pub(crate) fn tell_newcomers(&mut self, call: &mut Call<'_>, before: &View) {
        let missing = |view: &View| view.dead.iter().filter(|(.., over)| !over).map(|(_, died, _)| *died).min();
        if before.is_settled() && missing(before).is_none() {
            self.cut_since = None;
        }
        let new: Lives = self.view.others().map(|p| p.life).filter(|life| before.peer(*life).is_none()).collect();
        for life in new {
            let died = before.dead.iter().find(|(l, ..)| *l == life).map(|(_, died, _)| *died - SILENT);
            if let Some(since) = died.or(self.cut_since) {
                self.tell_ends(call, life, since);
            }
        }
        self.cut_since = self.cut_since.or(missing(&self.view).map(|died| died - SILENT));
    }

    fn tell_ends(&mut self, call: &mut Call<'_>, life: Life, since: Mono) {
        let missed = self.table.iter().filter(|(_, slot)| matches!(slot.seen(), Seen::Ended(e) if e.since >= since));
        let mut keys: Vec<SessionKey> = missed.map(|(key, _)| *key).collect();
        keys.sort_unstable();
        for key in keys {
            self.with(call, key, |session, cx| session.tell_end(cx, life));
        }
    }
}
