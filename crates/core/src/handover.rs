//! The asked side of a claim round: promising, answering, handing over, staying, inviting.

use crate::copy::{Copy, Facade};
use crate::cx::{Call, Cx, Timer};
use crate::id::SessionKey;
use crate::limits::MOVES_MAX;
use crate::link::Sent;
use crate::output::Live;
use crate::owner::Closing;
use crate::plant::Bug;
use crate::session::{Session, State};
use crate::shard::Shard;
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

impl<L: Live> Session<L> {
    pub(crate) fn handle_ask(&mut self, cx: &mut Cx<'_>, from: Life, claim: Claim, why: Why, have: Option<Stamp>) {
        let view = cx.view;
        let Some(link) = view.link(from) else { return };
        if let Some(ended) = self.ended() {
            let held = Held::Ended(ended.kind, ended.next);
            return link.send(&Message::Answer { key: cx.key, claim, accepted: Claim::NONE, moves: 0, held }, None, cx.out);
        }
        if self.owner().is_some_and(|(own, copy)| own.has_ended(&copy.record, cx.now)) {
            self.expire(cx);
        }
        let mut promised = self.promised(cx);
        if let State::Facade(f) = &self.state {
            // An older claim would own what it has not heard of: its questions were answered before this owner's first commit.
            promised = promised.max(f.claim);
        }
        let repeated = claim == promised && claim.life == from;
        if claim <= promised && !repeated && !cx.planted(Bug::NoPromise) {
            link.send(&Message::Refused { key: cx.key, claim, promised }, None, cx.out);
            if why == Why::Heir {
                self.track(cx, from);
            }
            return;
        }
        match &mut self.state {
            State::Owned(copy, own) => {
                if why == Why::Heir {
                    // The owner lives; what the heir has is compared instead.
                    link.send(&Message::Refused { key: cx.key, claim, promised: own.claim }, None, cx.out);
                    return self.track(cx, from);
                }
                if why == Why::Open && core::mem::take(&mut own.offered) {
                    // Its client comes here with the next request. If it still does not after a while, its balancer does not care, and
                    // the session goes where the requests are.
                    (copy.moves, copy.moved) = (MOVES_MAX, cx.now);
                }
                let guest = why == Why::Open && !view.leaving && (copy.bounces(cx.now) || view.peer(from).is_some_and(|p| p.leaving));
                if guest { self.stay(cx, from, claim) } else { self.start_closing(cx, claim, why, have) }
            }
            State::Held(_) => {
                self.promise(cx, claim);
                self.answer(cx, from, claim, have, false);
            }
            State::Nothing | State::Facade(_) | State::Ended(_) => {
                let (accepted, held) = match &self.state {
                    State::Facade(Facade { claim, over: Some(lineage), .. }) => (*claim, Held::Expired((&**lineage).into())),
                    State::Facade(f) if f.tip.version > 0 && cx.now <= f.expires => (f.claim, Held::Told(f.tip)),
                    State::Facade(f) => (f.claim, Held::Nothing),
                    State::Nothing | State::Ended(_) | State::Held(_) | State::Owned(..) => (Claim::NONE, Held::Nothing),
                };
                // Only who may come to hold a copy must refuse older claims.
                if view.list(cx.key).contains(&view.me) || cx.queues.promises.get(cx.key).is_some() {
                    self.promise(cx, claim);
                }
                link.send(&Message::Answer { key: cx.key, claim, accepted, moves: 0, held }, None, cx.out);
            }
        }
    }

    /// Answers with the copy that is here.
    pub(crate) fn answer(&self, cx: &mut Cx<'_>, to: Life, claim: Claim, have: Option<Stamp>, owned: bool) {
        let (Some(copy), Some(link)) = (self.copy(), cx.view.link(to)) else { return };
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
        link.send(&Message::Answer { key: cx.key, claim, accepted, moves, held }, None, cx.out);
    }

    /// The owner keeps the session: the asker gets a copy to serve as a guest, once all of it is durable.
    fn stay(&mut self, cx: &mut Cx<'_>, to: Life, claim: Claim) {
        let bound = cx.config.handover_bound;
        // A guest's request is a use like any other.
        self.note_use(cx);
        let view = cx.view;
        let Some((own, copy)) = self.owned() else { return };
        copy.peers.row(to).guest = Some(claim.epoch);
        if !own.all_durable()
            && let Some(link) = view.link(to)
        {
            link.send(&Message::Busy { key: cx.key, claim, ms: ms(bound) }, None, cx.out);
        }
        self.advance(cx);
    }

    /// A claimant is promised the session: what runs here may finish within the bound.
    fn start_closing(&mut self, cx: &mut Cx<'_>, claim: Claim, why: Why, have: Option<Stamp>) {
        let due = cx.now + cx.config.handover_bound;
        let now = cx.now;
        let view = cx.view;
        let Some((own, copy)) = self.owned() else { return };
        copy.promise(claim, now);
        if why == Why::Open && !view.leaving {
            copy.moves = copy.moves.saturating_add(1);
        }
        let before = own.closing.replace(Closing { claim, have, due, busy_told: false });
        if let Some(before) = before.filter(|b| b.claim.life != claim.life)
            && let Some(link) = view.link(before.claim.life)
        {
            link.send(&Message::Refused { key: cx.key, claim: before.claim, promised: claim }, None, cx.out);
        }
        cx.set_timer(due, Timer::Close);
        self.try_close(cx);
        let Some(closing) = self.owned().and_then(|(own, _)| own.closing.as_mut()) else { return };
        if !closing.busy_told && closing.claim.life != view.me {
            closing.busy_told = true;
            if let Some(link) = view.link(claim.life) {
                link.send(&Message::Busy { key: cx.key, claim, ms: ms(cx.config.handover_bound) }, None, cx.out);
            }
        }
    }

    /// Hands over if nothing runs and nothing is unacknowledged, or if the bound has passed.
    pub(crate) fn try_close(&mut self, cx: &mut Cx<'_>) {
        let Some((own, _)) = self.owner() else { return };
        let Some(closing) = own.closing else { return };
        if own.running == 0 && own.all_durable() || cx.now >= closing.due {
            self.tell_use(cx, closing.claim.life);
            self.step_down(cx, closing.claim);
            self.answer(cx, closing.claim.life, closing.claim, closing.have, true);
        }
    }

    /// Who has the same state need not have heard of the last use.
    fn tell_use(&self, cx: &mut Cx<'_>, to: Life) {
        let Some((own, Copy { record, .. })) = self.owner() else { return };
        let Some(link) = cx.view.link(to) else { return };
        if record.used > own.touched {
            link.send(
                &Message::Touch { key: cx.key, claim: own.claim, idle_ms: ms(cx.now.since(record.used)) },
                Some(Sent::note(cx.key)),
                cx.out,
            );
        }
    }

    // ---- drain ----------------------------------------------------------------------------------------------------------

    /// If this node leaves: somebody is to be invited to claim this session, in its turn.
    pub(crate) fn invite(&self, cx: &mut Cx<'_>) {
        if cx.view.leaving && self.owns() && !cx.queues.invited.contains(&cx.key) {
            cx.queues.inviting.push_back(cx.key);
        }
    }

    /// Invites the first of the list.
    pub(crate) fn send_invite(&self, cx: &mut Cx<'_>) {
        let view = cx.view;
        let Some((own, Copy { record, .. })) = self.owner() else { return };
        if !view.leaving || own.closing.is_some() {
            return;
        }
        if record.tip.version == 0 {
            // Its first commit comes soon, or never.
            return cx.set_timer(cx.now + FIRST_COMMIT, Timer::Invite);
        }
        let Some(first) = own.list.first().copied().or_else(|| view.list(cx.key).first().copied()) else { return };
        if let Some(link) = view.link(first) {
            link.send(&Message::Invite { key: cx.key }, None, cx.out);
        }
        cx.queues.invited.insert(cx.key);
        cx.set_timer(cx.now + INVITE_AGAIN, Timer::Invite);
    }

    pub(crate) fn handle_invite(&mut self, cx: &mut Cx<'_>, from: Life) {
        if self.send_end(cx, from) {
            return;
        }
        if self.owns() {
            // The one who leaves has not heard of that.
            return self.inform(cx, from);
        }
        if cx.view.leaving {
            return;
        }
        if self.copy().is_none() {
            // So that the round asks the inviting owner first.
            let claim = Claim { epoch: 1, life: from };
            self.note_owner(cx, claim, Stamp::default(), cx.now);
        }
        let _ = self.request_round(cx, Why::Invited, None, None);
    }
}

impl<L: Live> Shard<L> {
    /// Invites for what is next, while few invitations are out: a session that is not taken at once is invited to again and again, and
    /// with all of them at once that would be most of the work.
    pub(crate) fn invite_more(&mut self, call: &mut Call<'_>) {
        while self.queues.invited.len() < INVITED_MAX
            && let Some(key) = self.queues.inviting.pop_front()
        {
            if !self.queues.invited.contains(&key) {
                self.with(call, key, |session, cx| session.send_invite(cx));
            }
        }
    }

    /// Invites for all that is owned here.
    pub(crate) fn invite_all(&mut self, call: &mut Call<'_>) {
        let owned = self.table.iter().filter(|(_, slot)| slot.owner().is_some());
        let mut keys: Vec<SessionKey> = owned.map(|(key, _)| *key).collect();
        keys.sort_unstable();
        self.queues.invited.clear();
        self.queues.inviting = keys.into();
        self.invite_more(call);
    }
}
