//! The asked side of a claim round: promising, answering, handing over, staying, inviting.

use crate::cx::{Cx, Timer};
use crate::id::SessionKey;
use crate::limits::MOVES_MAX;
use crate::link::{Sent, What};
use crate::output::Live;
use crate::shard::Shard;
use crate::slot::{Closing, Copy, Facade, Slot};
use crate::stamp::{Claim, Life, Stamp};
use crate::time::ms;
use crate::wire::{Held, Message, Why};
use core::time::Duration;

/// Sessions of one shard that others are invited to claim at once.
const INVITED_MAX: usize = 128;
/// How often an invitation is repeated.
const INVITE_AGAIN: Duration = Duration::from_secs(1);
/// When a session that began on a leaving node is looked at again if it has no commit yet.
const FIRST_COMMIT: Duration = Duration::from_millis(50);

impl<L: Live> Shard<L> {
    pub(crate) fn handle_ask(&mut self, cx: &mut Cx<'_>, from: Life, key: SessionKey, claim: Claim, why: Why, have: Option<Stamp>) {
        let view = self.view.clone();
        let Some(link) = view.link(from).cloned() else { return };
        if let Some(ended) = self.ended(key) {
            let held = Held::Ended(ended.kind, ended.next);
            return link.send(&Message::Answer { key, claim, accepted: Claim::NONE, moves: 0, held }, None, cx.out);
        }
        if self.own(key).is_some_and(|(copy, _)| copy.has_ended(cx.now)) {
            self.expire(cx, key);
        }
        let mut promised = self.promised(key);
        if let Some(Slot::Facade(f)) = self.table.get(&key) {
            // An older claim would own what it has not heard of: its questions were answered before this owner's first commit.
            promised = promised.max(f.claim);
        }
        let repeated = claim == promised && claim.life == from;
        if claim <= promised && !repeated && !cx.planted(crate::plant::Bug::NoPromise) {
            link.send(&Message::Refused { key, claim, promised }, None, cx.out);
            if why == Why::Heir {
                self.track(cx, key, from);
            }
            return;
        }
        match self.table.get_mut(&key) {
            Some(Slot::Held(copy)) if copy.own.is_some() => {
                if why == Why::Heir {
                    // The owner lives; what the heir has is compared instead.
                    let owner = copy.own.as_ref().map_or(promised, |own| own.claim);
                    link.send(&Message::Refused { key, claim, promised: owner }, None, cx.out);
                    return self.track(cx, key, from);
                }
                if why == Why::Open && copy.own.as_mut().is_some_and(|own| core::mem::take(&mut own.offered)) {
                    // Its client comes here with the next request. If it still does not after a while, its balancer does not care, and
                    // the session goes where the requests are.
                    (copy.moves, copy.moved) = (MOVES_MAX, cx.now);
                }
                let guest = why == Why::Open && !view.leaving && (copy.bounces(cx.now) || view.peer(from).is_some_and(|p| p.leaving));
                if guest { self.stay(cx, key, from, claim) } else { self.start_closing(cx, key, claim, why, have) }
            }
            Some(Slot::Held(_)) => {
                self.promise(cx, key, claim);
                self.answer(cx, key, from, claim, have, false);
            }
            _ => {
                let (accepted, held) = match self.table.get(&key) {
                    Some(Slot::Facade(Facade { claim, over: Some(lineage), .. })) => (*claim, Held::Expired((&**lineage).into())),
                    Some(Slot::Facade(f)) if f.tip.version > 0 && cx.now <= f.expires => (f.claim, Held::Told(f.tip)),
                    Some(Slot::Facade(f)) => (f.claim, Held::Nothing),
                    _ => (Claim::NONE, Held::Nothing),
                };
                // Only who may come to hold a copy must refuse older claims.
                if view.list(key).contains(&view.me) || self.has_promise(key) {
                    self.promise(cx, key, claim);
                }
                link.send(&Message::Answer { key, claim, accepted, moves: 0, held }, None, cx.out);
            }
        }
    }

    /// Answers with the copy that is here.
    pub(crate) fn answer(&mut self, cx: &mut Cx<'_>, key: SessionKey, to: Life, claim: Claim, have: Option<Stamp>, owned: bool) {
        let view = self.view.clone();
        let (Some(copy), Some(link)) = (self.copy(key), view.link(to)) else { return };
        let accepted = copy.accepted;
        let moves = if owned { copy.moves } else { 0 };
        let held = if have == Some(copy.record.tip) && copy.branch.is_none() {
            Held::Same
        } else if copy.record.tip.version == 0 {
            Held::Nothing
        } else {
            let branch = copy.branch.as_ref().map(|b| b.to_wire(cx.now));
            Held::Copy { record: copy.record.to_wire(cx.now), branch, stored: copy.stored }
        };
        link.send(&Message::Answer { key, claim, accepted, moves, held }, None, cx.out);
    }

    /// The owner keeps the session: the asker gets a copy to serve as a guest, once all of it is durable.
    fn stay(&mut self, cx: &mut Cx<'_>, key: SessionKey, to: Life, claim: Claim) {
        let bound = cx.config.handover_bound;
        // A guest's request is a use like any other.
        self.note_use(cx, key);
        let Some((copy, view)) = self.own(key) else { return };
        let Copy { own: Some(own), record, .. } = copy else { return };
        let Some(link) = view.link(to) else { return };
        if own.all_durable() {
            link.send(&Message::Stay { key, claim, owner: own.claim, record: record.to_wire(cx.now) }, None, cx.out);
        } else {
            own.stay.retain(|(life, _)| *life != to);
            own.stay.push((to, claim));
            link.send(&Message::Busy { key, claim, ms: ms(bound) }, None, cx.out);
        }
    }

    /// A claimant is promised the session: what runs here may finish within the bound.
    fn start_closing(&mut self, cx: &mut Cx<'_>, key: SessionKey, claim: Claim, why: Why, have: Option<Stamp>) {
        let due = cx.now + cx.config.handover_bound;
        let now = cx.now;
        let view = self.view.clone();
        let Some((copy, _)) = self.own(key) else { return };
        copy.promise(claim, now);
        if why == Why::Open && !view.leaving {
            copy.moves = copy.moves.saturating_add(1);
        }
        let Some(own) = copy.own.as_mut() else { return };
        let before = own.closing.replace(Closing { claim, have, due, busy_told: false });
        if let Some(before) = before.filter(|b| b.claim.life != claim.life)
            && let Some(link) = view.link(before.claim.life)
        {
            link.send(&Message::Refused { key, claim: before.claim, promised: claim }, None, cx.out);
        }
        self.set_timer(due, key, Timer::Close);
        self.try_close(cx, key);
        let me = view.me;
        let Some((copy, _)) = self.own(key) else { return };
        let Some(closing) = copy.own.as_mut().and_then(|own| own.closing.as_mut()) else { return };
        if !closing.busy_told && closing.claim.life != me {
            closing.busy_told = true;
            if let Some(link) = view.link(claim.life) {
                link.send(&Message::Busy { key, claim, ms: ms(cx.config.handover_bound) }, None, cx.out);
            }
        }
    }

    /// Hands over if nothing runs and nothing is unacknowledged, or if the bound has passed.
    pub(crate) fn try_close(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let Some((copy, _)) = self.own(key) else { return };
        let Some(own) = copy.own.as_ref() else { return };
        let Some(closing) = own.closing else { return };
        if own.running == 0 && own.all_durable() || cx.now >= closing.due {
            self.tell_use(cx, key, closing.claim.life);
            self.step_down(cx, key, closing.claim);
            self.answer(cx, key, closing.claim.life, closing.claim, closing.have, true);
        }
    }

    /// Who has the same state need not have heard of the last use.
    fn tell_use(&mut self, cx: &mut Cx<'_>, key: SessionKey, to: Life) {
        let Some((copy, view)) = self.own(key) else { return };
        let (Some(own), Some(link)) = (&copy.own, view.link(to)) else { return };
        if copy.record.used > own.touched {
            let note = Sent { key, claim: own.claim, version: 0, attempt: 0, what: What::Note };
            link.send(&Message::Touch { key, claim: own.claim, idle_ms: ms(cx.now.since(copy.record.used)) }, Some(note), cx.out);
        }
    }

    // ---- drain ----------------------------------------------------------------------------------------------------------

    /// If this node leaves: somebody is to be invited to claim this session, in its turn.
    pub(crate) fn invite(&mut self, key: SessionKey) {
        if self.view.leaving && self.own(key).is_some() && !self.invited.contains(&key) {
            self.inviting.push_back(key);
        }
    }

    /// Invites for what is next, while few invitations are out: a session that is not taken at once is invited to again and again, and
    /// with all of them at once that would be most of the work.
    pub(crate) fn invite_more(&mut self, cx: &mut Cx<'_>) {
        while self.invited.len() < INVITED_MAX
            && let Some(key) = self.inviting.pop_front()
        {
            if !self.invited.contains(&key) {
                self.send_invite(cx, key);
            }
        }
    }

    /// Invites the first of the list.
    pub(crate) fn send_invite(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let Some((copy, view)) = self.own(key) else { return };
        let Some(own) = copy.own.as_ref().filter(|own| view.leaving && own.closing.is_none()) else { return };
        if copy.record.tip.version == 0 {
            // Its first commit comes soon, or never.
            return self.set_timer(cx.now + FIRST_COMMIT, key, Timer::Invite);
        }
        let Some(first) = own.list.first().copied().or_else(|| view.list(key).first().copied()) else { return };
        if let Some(link) = view.link(first) {
            link.send(&Message::Invite { key }, None, cx.out);
        }
        self.invited.insert(key);
        self.set_timer(cx.now + INVITE_AGAIN, key, Timer::Invite);
    }

    /// Invites for all that is owned here.
    pub(crate) fn invite_all(&mut self, cx: &mut Cx<'_>) {
        let owned = |slot: &Slot<L>| matches!(slot, Slot::Held(copy) if copy.own.is_some());
        let mut keys: Vec<SessionKey> = self.table.iter().filter(|(_, slot)| owned(slot)).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        self.invited.clear();
        self.inviting = keys.into();
        self.invite_more(cx);
    }

    pub(crate) fn handle_invite(&mut self, cx: &mut Cx<'_>, from: Life, key: SessionKey) {
        if let Some(ended) = self.ended(key) {
            return self.send_end(cx, key, &ended, from);
        }
        if self.own(key).is_some() {
            // The one who leaves has not heard of that.
            return self.inform(cx, key, from);
        }
        if self.view.leaving {
            return;
        }
        if self.copy(key).is_none() {
            // So that the round asks the inviting owner first.
            let claim = Claim { epoch: 1, life: from };
            self.note_owner(cx, key, claim, Stamp::default(), cx.now);
        }
        let _ = self.request_round(cx, key, Why::Invited, None, None);
    }
}
