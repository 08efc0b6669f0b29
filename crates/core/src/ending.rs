//! Ended sessions: absorbing markers, and telling everybody who may hold a copy.

use crate::cx::{Cx, Timer};
use crate::id::SessionKey;
use crate::limits::{END_BOUND, ENDED_KEEP, ENDED_MAX};
use crate::output::{Event, Failure, Live, Opened, Outcome, Output, Ticket};
use crate::pending::{Ending, Following};
use crate::plant::Bug;
use crate::shard::Shard;
use crate::slot::{Ended, Slot};
use crate::stamp::Life;
use crate::time::Mono;
use crate::view::{Lives, View};
use crate::wire::{EndKind, LateResult, Message};
use core::sync::atomic::Ordering;
use core::time::Duration;
use hashbrown::hash_map::Entry;

/// How often an unanswered end is sent again.
const AGAIN: Duration = Duration::from_millis(500);

/// How long before its death was declared a member may have heard nothing.
const SILENT: Duration = Duration::from_secs(60);

impl<L: Live> Shard<L> {
    /// Ends a session on this node, and tells everybody who may hold a copy. Needs no ownership.
    pub(crate) fn end(&mut self, cx: &mut Cx<'_>, key: SessionKey, next: Option<SessionKey>) -> Ticket {
        let ticket = cx.ticket();
        if self.ended(key).is_none() {
            let kind = if next.is_some() { EndKind::Rotated } else { EndKind::Invalidated };
            self.mark_ended(cx, key, kind, next, None, Some(ticket));
            return ticket;
        }
        self.note_next(cx, key, next);
        match self.ends.get_mut(&key) {
            Some(pending) if pending.ticket.is_none() => pending.ticket = Some((ticket, cx.now + END_BOUND)),
            Some(_) => cx.settle(ticket, Outcome::End(false)),
            None => cx.settle(ticket, Outcome::End(true)),
        }
        ticket
    }

    /// Ends a session that goes on as `next`, if that has all there is of it.
    pub(crate) fn end_rotated(&mut self, cx: &mut Cx<'_>, at: &Opened<L>, next: SessionKey) -> Option<Ticket> {
        if !cx.planted(Bug::ChangedWhileRotating) {
            let doubted = self.doubts(cx, at.key);
            let copy = self.copy(at.key)?;
            let own = copy.own.as_ref().filter(|own| own.tenure == at.tenure && !doubted)?;
            own.copied.filter(|(tip, _)| *tip == copy.record.tip)?;
        }
        Some(self.end(cx, at.key, Some(next)))
    }

    /// This node hears of an end, from a peer or the store. A logout is one whatever was heard before.
    pub(crate) fn learn_end(&mut self, cx: &mut Cx<'_>, key: SessionKey, kind: EndKind, next: Option<SessionKey>, from: Option<Life>) {
        match self.ended(key) {
            None => self.mark_ended(cx, key, kind, next, from, None),
            Some(_) if cx.planted(Bug::FirstEndStays) => {}
            Some(known) => {
                if kind.overrides(known.kind) {
                    self.override_end(cx, key, kind, from);
                }
                self.note_next(cx, key, next);
            }
        }
    }

    /// All who may have heard of the lesser end hear of this one.
    fn override_end(&mut self, cx: &mut Cx<'_>, key: SessionKey, kind: EndKind, from: Option<Life>) {
        let Some(Slot::Ended(ended)) = self.table.get_mut(&key) else { return };
        ended.kind = kind;
        let keep = ended.until.since(cx.now);
        let mut waiting = self.whom_to_tell(key);
        let before = self.ends.remove(&key);
        let (ticket, writing) = before.as_ref().map_or((None, None), |e| (e.ticket, e.writing));
        waiting.extend(before.into_iter().flat_map(|e| e.waiting.into_iter().chain(e.confirmed)));
        cx.out.event(key, Event::Ended(kind));
        let ending = Ending { kind, keep, waiting, confirmed: Lives::new(), store: cx.config.store, writing, ticket };
        self.begin_telling(cx, key, ending, from);
    }

    /// What is known here of the id that this one went on under. If this one was logged out, that one is.
    fn note_next(&mut self, cx: &Cx<'_>, key: SessionKey, next: Option<SessionKey>) {
        if let Some(Slot::Ended(ended)) = self.table.get_mut(&key) {
            ended.next = ended.next.or(next);
            if let Some(next) = ended.next.filter(|_| ended.kind == EndKind::Invalidated && !cx.planted(Bug::FirstEndStays)) {
                self.following.push(Following { key, next, asker: None });
            }
        }
    }

    /// The id before this one was logged out. Whether everybody knows of its end.
    pub(crate) fn end_next(&mut self, cx: &mut Cx<'_>, key: SessionKey) -> bool {
        self.learn_end(cx, key, EndKind::Invalidated, None, None);
        !self.ends.contains_key(&key)
    }

    /// The list, the holders and the owner that this node knows of. While forks may not have met, anybody may own it.
    fn whom_to_tell(&self, key: SessionKey) -> Lives {
        let view = &self.view;
        if view.is_settled() { view.asked(key) } else { view.others().map(|p| p.life).collect() }
    }

    fn mark_ended(
        &mut self,
        cx: &mut Cx<'_>,
        key: SessionKey,
        kind: EndKind,
        next: Option<SessionKey>,
        from: Option<Life>,
        ticket: Option<Ticket>,
    ) {
        let mut keep = ENDED_KEEP;
        // Whoever may hold a copy. One who hears it tells those that it knows.
        let mut waiting = self.whom_to_tell(key);
        if let Some(Slot::Facade(f)) = self.table.get(&key) {
            waiting.push(f.claim.life);
        }
        waiting.push(self.promised(key).life);
        if !cx.planted(Bug::FormerOwnerNotTold) {
            waiting.extend(self.informs.get(&key).into_iter().flatten().copied());
        }
        if let Some(copy) = self.release(cx, key) {
            self.forget_late(cx, key, &copy, LateResult::NotOwner);
            keep = keep.min(copy.record.limits().lifetime);
            waiting.extend([copy.accepted.life, copy.heard.life]);
            waiting.extend(copy.former.iter().copied());
            if let Some(own) = copy.own {
                waiting.extend(own.holders.iter().map(|h| h.life));
                for ticket in own.waiting {
                    cx.settle(ticket, Outcome::Ended(kind, Duration::ZERO));
                }
                let (claim, version) = (own.claim, u32::MAX);
                cx.out.push(Output::Failed { key, claim, version, failure: Failure::Ended });
            }
        }
        self.round_ended(cx, key, kind);
        self.make_room(cx);
        self.table.insert(key, Slot::Ended(Ended { kind, next, since: cx.now, until: cx.now + keep }));
        self.marked += 1;
        cx.out.event(key, Event::Ended(kind));
        self.drive_parked(cx, key, false);
        self.note_next(cx, key, next);
        let ticket = ticket.map(|t| (t, cx.now + END_BOUND));
        let ending = Ending { kind, keep, waiting, confirmed: Lives::new(), store: cx.config.store, writing: None, ticket };
        self.begin_telling(cx, key, ending, from);
    }

    /// Makes room for one more marker. Of those that all have confirmed the eldest go, some at a time, for it takes a look at all.
    fn make_room(&mut self, cx: &Cx<'_>) {
        let most = cx.config.of_shard(ENDED_MAX);
        if self.marked < most {
            return;
        }
        let confirmed = |(key, slot): (&SessionKey, &Slot<L>)| match slot {
            Slot::Ended(e) if !self.ends.contains_key(key) => Some((e.since, *key)),
            _ => None,
        };
        let mut eldest: Vec<(Mono, SessionKey)> = self.table.iter().filter_map(confirmed).collect();
        eldest.sort_unstable();
        eldest.truncate((most / 16).max(1));
        for (_, key) in &eldest {
            self.table.remove(key);
        }
        self.marked = self.marked.saturating_sub(eldest.len());
        cx.shared.forgotten.fetch_add(eldest.len() as u64, Ordering::Relaxed);
    }

    fn begin_telling(&mut self, cx: &mut Cx<'_>, key: SessionKey, mut ending: Ending, from: Option<Life>) {
        let view = self.view.clone();
        ending.waiting.sort_unstable();
        ending.waiting.dedup();
        ending.waiting.retain(|l| *l != view.me && Some(*l) != from && view.peer(*l).is_some());
        ending.confirmed.extend(from);
        let (waiting, store) = (ending.waiting.clone(), ending.store);
        self.ends.insert(key, ending);
        if store {
            self.dirty.push_front(key);
            cx.out.store();
        }
        for life in waiting {
            self.send_pending_end(cx, key, life);
        }
        self.set_timer(cx.now + AGAIN, key, Timer::Ending);
        self.settle_end(cx, key);
    }

    /// Lives that this view has and the one before had not: one that was dead comes back with all that it held, and a new one may
    /// have got copies from members that were cut off. They hear of the ends that may not have come to them.
    pub(crate) fn tell_newcomers(&mut self, cx: &mut Cx<'_>, before: &View) {
        let view = self.view.clone();
        let missing = |view: &View| view.dead.iter().filter(|(.., over)| !over).map(|(_, died, _)| *died).min();
        if before.is_settled() && missing(before).is_none() {
            self.cut_since = None;
        }
        for peer in view.others().filter(|p| before.peer(p.life).is_none()) {
            let died = before.dead.iter().find(|(l, ..)| *l == peer.life).map(|(_, died, _)| *died - SILENT);
            if let Some(since) = died.or(self.cut_since) {
                self.tell_ends(cx, peer.life, since);
            }
        }
        self.cut_since = self.cut_since.or(missing(&view).map(|died| died - SILENT));
    }

    fn tell_ends(&mut self, cx: &mut Cx<'_>, life: Life, since: Mono) {
        let missed = |slot: &Slot<L>| matches!(slot, Slot::Ended(e) if e.since >= since);
        let mut keys: Vec<SessionKey> = self.table.iter().filter(|(_, slot)| missed(slot)).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        for key in keys {
            self.tell_end(cx, key, life);
        }
    }

    /// Who has come to be on the session's list hears of its end: otherwise the marker would go with the nodes that were there. Until
    /// it is confirmed the session counts as one that lacks a copy, and whoever asks for it asks where it was before, too.
    pub(crate) fn spread_end(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        if cx.planted(Bug::EndNotSpread) {
            return;
        }
        let had = self.walked.list(key);
        for life in self.view.list(key) {
            let unheard = !cx.planted(Bug::EndSentOnce) && self.ends.get(&key).is_some_and(|e| e.waiting.contains(&life));
            if life != self.view.me && (unheard || !had.contains(&life)) {
                self.repairing.insert(key);
                self.tell_end(cx, key, life);
            }
        }
    }

    fn tell_end(&mut self, cx: &mut Cx<'_>, key: SessionKey, life: Life) {
        let Some(ended) = self.ended(key) else { return };
        let (kind, keep) = (ended.kind, ended.until.since(cx.now));
        match self.ends.entry(key) {
            Entry::Occupied(mut pending) if !pending.get().waiting.contains(&life) => pending.get_mut().waiting.push(life),
            Entry::Occupied(_) => {}
            Entry::Vacant(none) => {
                let waiting = Lives::from_slice(&[life]);
                none.insert(Ending { kind, keep, waiting, confirmed: Lives::new(), store: false, writing: None, ticket: None });
                self.set_timer(cx.now + AGAIN, key, Timer::Ending);
            }
        }
        self.send_pending_end(cx, key, life);
    }

    /// Ends of which nobody who is to know and stays has heard, as far as this node can say.
    pub(crate) fn ends_left(&self) -> u64 {
        let unheard = |(key, e): (&SessionKey, &Ending)| {
            let list = self.view.list(*key);
            !list.is_empty() && list.iter().all(|life| e.waiting.contains(life))
        };
        let unvisited = self.walk.iter().filter(|key| self.ended(**key).is_some()).count();
        self.ends.iter().filter(|e| unheard(*e)).count() as u64 + unvisited as u64
    }

    fn send_pending_end(&self, cx: &mut Cx<'_>, key: SessionKey, to: Life) {
        if let (Some(e), Some(link)) = (self.ends.get(&key), self.view.link(to)) {
            let next = self.ended(key).and_then(|ended| ended.next);
            link.send(&Message::End { key, kind: e.kind, next }, None, cx.out);
        }
    }

    /// Answers whoever speaks of a session that has ended.
    pub(crate) fn send_end(&self, cx: &mut Cx<'_>, key: SessionKey, ended: &Ended, to: Life) {
        if let Some(link) = self.view.link(to) {
            link.send(&Message::End { key, kind: ended.kind, next: ended.next }, None, cx.out);
        }
    }

    pub(crate) fn handle_end(&mut self, cx: &mut Cx<'_>, from: Life, key: SessionKey, kind: EndKind, next: Option<SessionKey>) {
        self.learn_end(cx, key, kind, next, Some(from));
        let next = self.ended(key).and_then(|ended| ended.next);
        match next.filter(|_| kind == EndKind::Invalidated && !cx.planted(Bug::FirstEndStays)) {
            // Whoever logs out hears "everywhere" when that is so for every id. Until then it asks again.
            Some(next) => self.following.push(Following { key, next, asker: Some(from) }),
            None => self.confirm_end(cx, key, from),
        }
    }

    /// Says how the session has ended here, and who of those that the asker need not know of has not heard of it.
    pub(crate) fn confirm_end(&mut self, cx: &mut Cx<'_>, key: SessionKey, to: Life) {
        let kind = self.ended(key).map_or(EndKind::Invalidated, |ended| ended.kind);
        let list = self.view.list(key);
        let unheard = self.ends.get(&key).into_iter().flat_map(|e| &e.waiting).filter(|l| **l != to && !list.contains(l)).copied();
        if let Some(link) = self.view.link(to) {
            link.send(&Message::EndSeen { key, kind, unheard: unheard.collect() }, None, cx.out);
        }
    }

    pub(crate) fn handle_end_seen(&mut self, cx: &mut Cx<'_>, from: Life, key: SessionKey, kind: EndKind, unheard: &[Life]) {
        if self.ended(key).is_some() {
            self.learn_end(cx, key, kind, None, Some(from));
        }
        // One that speaks of a lesser end has not heard of this one yet.
        let Some(e) = self.ends.get_mut(&key).filter(|e| !e.kind.overrides(kind) || cx.planted(Bug::FirstEndStays)) else { return };
        e.waiting.retain(|l| *l != from);
        if !e.confirmed.contains(&from) {
            e.confirmed.push(from);
        }
        let known = |life: Life| life == self.view.me || e.confirmed.contains(&life) || e.waiting.contains(&life);
        let more: Lives = match cx.planted(Bug::FormerOwnerNotTold) {
            true => Lives::new(),
            false => unheard.iter().copied().filter(|life| !known(*life) && self.view.peer(*life).is_some()).collect(),
        };
        for life in more {
            self.tell_end(cx, key, life);
        }
        self.settle_end(cx, key);
    }

    pub(crate) fn end_stored(&mut self, cx: &mut Cx<'_>, key: SessionKey, done: bool) {
        if let Some(e) = self.ends.get_mut(&key)
            && let Some(written) = e.writing.take()
        {
            e.store &= !done || written != e.kind;
            self.settle_end(cx, key);
        }
    }

    /// The store may have forgotten the marker: it is written again.
    pub(crate) fn end_again(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let Some(ended) = self.ended(key) else { return };
        match self.ends.entry(key) {
            Entry::Occupied(mut pending) => pending.get_mut().store = true,
            Entry::Vacant(none) => {
                let (kind, keep) = (ended.kind, ended.until.since(cx.now));
                let (waiting, confirmed) = (Lives::new(), Lives::new());
                none.insert(Ending { kind, keep, waiting, confirmed, store: true, writing: None, ticket: None });
                self.set_timer(cx.now + AGAIN, key, Timer::Ending);
            }
        }
        self.dirty.push_back(key);
        cx.out.store();
    }

    /// Everybody has confirmed: answer, and forget who had to.
    fn settle_end(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let view = self.view.clone();
        let Some(e) = self.ends.get_mut(&key) else { return };
        // A dead life's memory is gone; one that was only cut off walks all it holds when it comes back, and hears of the end.
        e.waiting.retain(|l| view.peer(*l).is_some());
        if self.repairing.contains(&key) && !view.list(key).iter().any(|l| e.waiting.contains(l)) {
            self.repairing.remove(&key);
        }
        if e.waiting.is_empty() && !e.store {
            if let Some((ticket, _)) = e.ticket {
                cx.settle(ticket, Outcome::End(true));
            }
            self.ends.remove(&key);
        }
    }

    pub(crate) fn ending_due(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        self.settle_end(cx, key);
        let Some(e) = self.ends.get_mut(&key) else { return };
        if let Some((ticket, due)) = e.ticket
            && cx.now >= due
        {
            e.ticket = None;
            cx.settle(ticket, Outcome::End(false));
        }
        let (waiting, store) = (e.waiting.clone(), e.store && e.writing.is_none());
        if !cx.planted(Bug::EndSentOnce) {
            for life in waiting {
                self.send_pending_end(cx, key, life);
            }
        }
        if store {
            self.dirty.push_back(key);
            cx.out.store();
        }
        self.set_timer(cx.now + AGAIN, key, Timer::Ending);
    }
}
