//! The one walk that repairs: after every change of the membership it visits each copy, places it anew, finds heirs, and lets
//! every fork meet. The sweep that expires sessions lives here too.

use crate::cx::{Cx, Timer};
use crate::id::SessionKey;
use crate::limits::HEIR_STEP;
use crate::link::{Sent, What};
use crate::output::Live;
use crate::plant::Bug;
use crate::shard::Shard;
use crate::slot::{Copy, Slot, jitter};
use crate::time::ms;
use crate::view::{Lives, View};
use crate::wire::{Message, Why};
use core::time::Duration;
use std::sync::Arc;

/// Reports of a copy without an answer before its holder claims the session.
const REPORTS: u8 = 3;
/// How long a hint at who owned a session stays after the session may have expired.
const FACADE_KEEP: Duration = Duration::from_secs(360);

impl<L: Live> Shard<L> {
    /// Takes a new view, and plans a visit to every copy: first those that a response waits for.
    pub(crate) fn set_view(&mut self, cx: &mut Cx<'_>, view: Arc<View>) {
        if view.order < self.view.order {
            return;
        }
        // A link that is gone may have taken along what was sent on it.
        for (life, link) in &self.view.clone().links {
            if view.link(*life).is_none_or(|new| new.id != link.id) {
                self.forget_sent(cx, *life);
            }
        }
        let same = self.view.places_like(&view);
        let before = core::mem::replace(&mut self.view, view);
        self.tell_newcomers(cx, &before);
        if same {
            return self.rounds_after_change(cx);
        }
        let mut waiting: Vec<SessionKey> = Vec::new();
        let mut others: Vec<SessionKey> = Vec::new();
        for (key, slot) in &self.table {
            match slot {
                Slot::Held(copy) if copy.own.as_ref().is_some_and(|own| !own.all_durable()) => waiting.push(*key),
                Slot::Held(_) | Slot::Ended(_) => others.push(*key),
                Slot::Facade(_) => {}
            }
        }
        // The order of a hash map is nobody's business; one seed must replay to the same bytes.
        waiting.sort_unstable();
        others.sort_unstable();
        self.walk = others.into();
        // What is owned here is visited, and comes again.
        self.inviting.clear();
        self.invited.clear();
        for key in waiting {
            self.visit(cx, key);
        }
        self.rounds_after_change(cx);
        let mut informs: Vec<_> = self.informs.iter().map(|(k, l)| (*k, l.clone())).collect();
        informs.sort_unstable_by_key(|(k, _)| *k);
        for (key, lives) in informs {
            for life in lives {
                match self.view.peer(life) {
                    Some(p) if p.link.is_some() => self.send_inform(cx, key, life),
                    Some(_) => {}
                    None if self.view.may_return(life) => {}
                    None => {
                        if let Some(list) = self.informs.get_mut(&key) {
                            list.retain(|l| *l != life);
                        }
                    }
                }
            }
        }
        self.informs.retain(|_, list| !list.is_empty());
    }

    /// Visits up to `budget` copies of the walk; what is left of the budget.
    pub(crate) fn walk(&mut self, cx: &mut Cx<'_>, mut budget: usize) -> usize {
        while budget > 0 {
            let Some(key) = self.walk.pop_front() else {
                self.walked = self.view.clone();
                return budget;
            };
            self.visit(cx, key);
            budget -= 1;
        }
        0
    }

    /// Whether everything has been visited and every owned session is where it should be.
    pub(crate) fn is_settled(&self) -> bool {
        self.walk.is_empty() && self.repairing.is_empty()
    }

    fn visit(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let view = self.view.clone();
        if self.ended(key).is_some() {
            return self.spread_end(cx, key);
        }
        let Some(copy) = self.copy(key) else { return };
        if copy.own.is_some() {
            return self.visit_owned(cx, key);
        }
        if cx.planted(Bug::NoRepair) {
            return;
        }
        let owner = copy.accepted;
        if !copy.former.is_empty() && owner.life != view.me {
            self.pass_on(cx, key, owner);
        }
        let Some(copy) = self.copy(key) else { return };
        if owner.life == view.me || view.is_away(owner.life) {
            // Whoever was promised the session a moment ago gets the time to own it.
            let promised = copy.promised_at + cx.config.lookup_bound * 2;
            let wait = if copy.promised > owner { promised.since(cx.now) } else { Duration::ZERO };
            self.set_timer(cx.now + wait + HEIR_STEP * view.my_rank(key), key, Timer::Heir);
        } else if view.link(owner.life).is_some_and(|link| copy.reported != Some(link.id)) {
            // The owner may not know of this copy, may want it dropped, or may have ended the session meanwhile.
            self.report(cx, key);
        }
    }

    fn visit_owned(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        if cx.planted(Bug::NoRepair) {
            return self.advance(cx, key);
        }
        self.replace_list(key);
        let view = self.view.clone();
        let Some((copy, _)) = self.own(key) else { return };
        let Copy { own: Some(own), .. } = copy else { return };
        if cx.config.planted(Bug::DropBeforeAck) {
            own.holders.retain(|h| own.list.contains(&h.life));
            let others: Vec<_> = view.others().filter(|p| !own.list.contains(&p.life)).filter_map(|p| p.link.clone()).collect();
            for link in others {
                let (claim, tip, lineage) = (own.claim, copy.record.tip, (&copy.record.lineage).into());
                link.send(&Message::Drop { key, claim, tip, lineage }, None, cx.out);
            }
        }
        let Some((Copy { own: Some(own), record, .. }, _)) = self.own(key) else { return };
        let repairs = record.tip.version > 0 && (own.by_list() != Some(own.version) || own.holders.len() > own.list.len());
        let listed: Lives = own.holders.iter().map(|h| h.life).collect();
        let stranger = own.stranger.take_if(|life| view.may_return(*life));
        let ask: Vec<_> = own.holders.iter().filter(|h| h.sent.is_none()).map(|h| h.life).collect();
        if repairs {
            self.repairing.insert(key);
        }
        for life in ask {
            self.push_have(cx, key, life);
        }
        // The first n + 1 of the list know the owner, copy or not: there two owners are found out who have no holder in common.
        for life in view.list(key).into_iter().filter(|life| !listed.contains(life)).chain(stranger) {
            self.inform(cx, key, life);
        }
        self.advance(cx, key);
        self.invite(key);
    }

    /// Tells the owner which copy this node has.
    pub(crate) fn report(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let view = self.view.clone();
        let Some(copy) = self.copy(key) else { return };
        // If the last that was heard of is away, the one whose state this is may know who came after.
        let unheard = copy.heard.life == view.me || view.is_away(copy.heard.life);
        let owner = if unheard { copy.accepted } else { copy.heard };
        let Some(link) = view.link(owner.life) else { return };
        copy.reported = Some(link.id);
        let idle_ms = ms(cx.now.since(copy.record.used));
        let note = Sent { key, claim: owner, version: 0, attempt: 0, what: What::Note };
        let lineage = (&copy.record.lineage).into();
        // A claim that is not the sender's says that this is a holder's report.
        link.send(&Message::Have { key, claim: owner, tip: copy.record.tip, idle_ms, lineage }, Some(note), cx.out);
        self.offer_branch(cx, key, owner.life);
    }

    /// A holder whose owner is dead inherits, after a pause by rank.
    pub(crate) fn heir_due(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let view = self.view.clone();
        let Some(copy) = self.copy(key) else { return };
        let owner = copy.accepted;
        let astray = copy.disowned || copy.heard > owner && copy.heard.life != view.me;
        if let Some(own) = &mut copy.own {
            // A round that was to end a refusal came to nothing.
            if own.refused && !self.rounds.contains_key(&key) {
                let _ = self.request_round(cx, key, Why::Doubt, None, None);
            }
            return;
        }
        if copy.own.is_some() || !(owner.life == view.me || view.is_away(owner.life) || astray) {
            return;
        }
        if cx.now > copy.ends() {
            return self.expire(cx, key);
        }
        let heard = copy.heard;
        if heard > owner && heard.life != view.me && !view.is_away(heard.life) && copy.reports < REPORTS {
            // Somebody was about to own it: they hear that there is a copy here.
            copy.reports += 1;
            self.report(cx, key);
            return self.set_timer(cx.now + HEIR_STEP * 5, key, Timer::Heir);
        }
        if !self.rounds.contains_key(&key) {
            let _ = self.request_round(cx, key, Why::Heir, None, None);
        }
        // If the round is refused, somebody else has it by then; if it fails, this tries again. Heirs that refuse each other must not
        // go on in step.
        let pause = HEIR_STEP * 10;
        let again = pause * (1 + view.my_rank(key)) + jitter(self.random(), pause);
        self.set_timer(cx.now + again, key, Timer::Heir);
    }

    /// Expires what has outlived its limits: owned sessions by their own clock, facades and markers when they are due.
    pub(crate) fn sweep(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        let mut due = Vec::new();
        self.marked = 0;
        self.table.retain(|key, slot| match slot {
            Slot::Facade(f) => now <= f.expires + FACADE_KEEP,
            Slot::Ended(e) => {
                let stays = now <= e.until;
                self.marked += usize::from(stays);
                stays
            }
            Slot::Held(copy) => {
                let old = match &copy.own {
                    Some(own) => own.running == 0 && now > copy.ends(),
                    // An owner tells its holders when a session expires; this is for a copy that everybody forgot.
                    None => now > copy.ends() + copy.record.limits().idle + Duration::from_secs(60),
                };
                if old {
                    due.push(*key);
                }
                true
            }
        });
        due.sort_unstable();
        for key in due {
            self.expire(cx, key);
        }
        self.rebalance(cx);
    }

    /// Wakes whatever is due.
    pub(crate) fn wake(&mut self, cx: &mut Cx<'_>) {
        while let Some(&(due, key, timer)) = self.timers.first() {
            if due > cx.now {
                return;
            }
            self.timers.pop_first();
            match timer {
                Timer::Round => self.round_due(cx, key),
                Timer::Close => self.try_close(cx, key),
                Timer::Heir => self.heir_due(cx, key),
                Timer::Ending => self.ending_due(cx, key),
                Timer::Parked => self.drive_parked(cx, key, true),
                Timer::Invite if self.invited.contains(&key) => self.send_invite(cx, key),
                Timer::Invite => self.invite(key),
                Timer::Store => self.store_due(cx, key),
                Timer::Touch => self.touch_row(cx, key, true),
            }
        }
    }
}
