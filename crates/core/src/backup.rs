//! Copies: what an owner hears from those that have one, and what a backup accepts.

use crate::config::{Level, Reach};
use crate::copy::{Copy, Facade, Fit};
use crate::cx::{Cx, Timer};
use crate::limits::{HEIR_STEP, LOOKUP_BOUND_SLOW, NAME_MAX};
use crate::lineage::Lineage;
use crate::link::{Sent, What};
use crate::merge::combine;
use crate::output::{Event, Live};
use crate::owner::{orphan, settle, settle_durable, show, sync};
use crate::peers::{Given, Learns};
use crate::plant::Bug;
use crate::record::{Base, Change, Record, WireRecord};
use crate::session::{Session, State};
use crate::stamp::{Claim, Life, Stamp};
use crate::time::{Mono, ms};
use crate::wire::{Message, Set, Why, WireLineage};
use bytes::Bytes;
use core::sync::atomic::Ordering;
use core::time::Duration;

/// Notes how long ago its owner says that it was used, if it says so.
fn note_idle(record: &mut Record, now: Mono, idle_ms: u32) {
    if idle_ms < u32::MAX {
        record.note_use(now - Duration::from_millis(u64::from(idle_ms)));
    }
}

impl<L: Live> Session<L> {
    // ---- the owner's side -----------------------------------------------------------------------------------------------

    /// Sees to it that this peer learns who owns the session, however often the link breaks.
    pub(crate) fn inform(&mut self, cx: &mut Cx<'_>, to: Life) {
        let owns = self.owns();
        let Some(copy) = self.copy_mut().filter(|_| to != cx.view.me && to != Claim::NONE.life) else { return };
        if cx.view.may_return(to) {
            copy.peers.row(to).learns = Learns::Owner;
        } else if owns {
            // It may become a member yet: a record of the store can be from a node that this one has never met.
            copy.peers.row(to).learns = Learns::Stranger;
        }
        if let Some((own, copy)) = self.owned() {
            sync(cx, own, copy, None);
        }
    }

    /// A frame was acknowledged.
    pub(crate) fn handle_ack(&mut self, cx: &mut Cx<'_>, from: Life, sent: &Sent) {
        if sent.what == What::Note {
            return;
        }
        let of_now = self.owner().is_none_or(|(own, _)| own.claim == sent.claim);
        let peer = self.copy_mut().and_then(|copy| copy.peers.get_mut(from));
        if sent.what == What::Inform {
            if let Some(peer) = peer.filter(|p| of_now && p.learns == Learns::Told) {
                peer.learns = Learns::Nothing;
                self.advance(cx);
            }
            return;
        }
        if !peer.is_some_and(|p| p.holds) {
            // It may have taken what a former ownership sent it, and nobody else knows.
            return self.handle_holder(cx, from);
        }
        let former_counts = cx.planted(Bug::FormerAckCounts);
        let Some((_, copy)) = self.owned().filter(|(own, _)| own.claim == sent.claim) else { return };
        if let Some(peer) = copy.peers.get_mut(from).filter(|p| p.attempt == sent.attempt || former_counts) {
            peer.acked = peer.acked.max(Some(sent.version));
            self.advance(cx);
        }
    }

    /// Looks what has become durable, does what waited for it, and sends what is due.
    pub(crate) fn advance(&mut self, cx: &mut Cx<'_>) {
        let Some((own, copy)) = self.owned() else { return };
        if settle_durable(cx, own, copy) && cx.view.peers.len() > 1 {
            show(cx, own, &copy.record);
        }
        let closing = own.closing.is_some();
        if !cx.queues.repairing.is_empty() && own.all_durable() && own.by_list(&copy.peers) == Some(own.version) {
            let repaired = cx.queues.repairing.remove(&cx.key);
            if repaired && !own.list.is_empty() {
                cx.out.event(cx.key, Event::Replicated { on: own.list.to_vec() });
            }
        }
        sync(cx, own, copy, None);
        if closing {
            self.try_close(cx);
        }
    }

    pub(crate) fn handle_gap(&mut self, cx: &mut Cx<'_>, from: Life, claim: Claim) {
        let Some((_, copy)) = self.owned().filter(|(own, _)| own.claim == claim) else { return };
        let Some(peer) = copy.peers.holder_mut(from) else { return };
        // What was sent before the gap will be counted by the link, but it was not applied. If it is to hold a copy it gets the record; if
        // not, what it holds is old, and it will be told to drop it.
        peer.start_afresh(Given::Nothing);
        self.advance(cx);
    }

    /// A peer promised a greater claim: this ownership is over.
    pub(crate) fn handle_refused(&mut self, cx: &mut Cx<'_>, from: Life, claim: Claim, promised: Claim) {
        if self.round_refused(cx, claim, promised) {
            return;
        }
        let me = cx.view.me;
        let Some((own, copy)) = self.owned() else { return };
        copy.heard = copy.heard.max(promised);
        if own.claim != claim && promised > own.claim && promised.life != me {
            // It refuses a claim from before, and names one that this ownership has not heard of.
            let _ = self.request_round(cx, Why::Doubt, None, None);
            return;
        }
        // A lesser promise refuses a question (an heir's, of a living owner), not a frame.
        if own.claim != claim || promised <= claim {
            return;
        }
        if let Some(peer) = copy.peers.holder_mut(from) {
            // The link will count the refused frame; it was not applied.
            peer.start_afresh(Given::Unknown);
        }
        own.refused = true;
        if promised.life == me {
            // A claim of this node that came to nothing is in the way of the one that holds: a greater one ends that.
            let _ = self.request_round(cx, Why::Doubt, None, None);
            return;
        }
        if cx.planted(Bug::RetryRefusedElsewhere) {
            own.list.retain(|l| *l != from);
            copy.peers.row(from).holds = false;
            let other = cx.view.others().map(|p| p.life).find(|l| *l != from);
            if let Some(other) = other {
                own.list = core::iter::once(other).collect();
                copy.peers.holder(other, Given::Nothing);
            }
            return self.advance(cx);
        }
        let pending = own.running > 0 || !own.all_durable();
        let asked = own.closing.filter(|closing| closing.claim == promised);
        copy.promise(promised, cx.now);
        self.step_down(cx, promised);
        if let Some(closing) = asked {
            // The claimant waits for this very answer, and all that waits for its outcome is in it.
            self.answer(cx, promised.life, promised, closing.have, true);
        } else if pending {
            // Requests wait for the outcome of their commits: the branch is in this copy, and a round brings it in.
            let _ = self.request_round(cx, Why::Doubt, None, None);
        }
    }

    /// A holder has something that the owner's record does not include.
    pub(crate) fn handle_diverged(&mut self, cx: &mut Cx<'_>, from: Life, claim: Option<Claim>, wire: &WireRecord<'_>) -> Option<()> {
        let record = Record::from_wire(wire, cx.now).ok()?;
        if let Some((_, copy)) = self.owned() {
            let peer = copy.peers.row(from);
            peer.start_afresh(Given::Unknown);
            peer.proof = true;
            if !copy.record.lineage.covers(&record.lineage) {
                self.merge_in(cx, &record);
            }
            self.advance(cx);
            return Some(());
        }
        // The round will combine it; or an owner that no longer is one hears of it, and the holder keeps its copy.
        let Some(record) = self.round_offered(record).filter(|_| claim.is_none()) else { return Some(()) };
        if let Some(copy) = self.copy_mut().filter(|c| !c.record.lineage.covers(&record.lineage)) {
            let known = copy.branch.as_ref().is_some_and(|b| b.tip == record.tip);
            copy.branch = Some(Box::new(record));
            if !known {
                self.report(cx);
            }
        }
        Some(())
    }

    /// The branch beside this copy, if its owner's state still lacks it: only the owner can merge it.
    pub(crate) fn offer_branch(&self, cx: &mut Cx<'_>, owner: Life) {
        if let (Some(Copy { branch: Some(branch), .. }), Some(link)) = (self.copy(), cx.view.link(owner)) {
            link.send(&Message::Kept { key: cx.key, record: branch.to_wire(cx.now) }, None, cx.out);
        }
    }

    /// What this node has, for an owner whose state lacks it.
    pub(crate) fn offer_copy(&self, cx: &mut Cx<'_>, owner: Life) {
        if let (Some(copy), Some(link)) = (self.copy(), cx.view.link(owner)) {
            link.send(&Message::Kept { key: cx.key, record: copy.record.to_wire(cx.now) }, None, cx.out);
        }
    }

    /// Merges a branch into the session this node owns: a commit of its own.
    pub(crate) fn merge_in(&mut self, cx: &mut Cx<'_>, branch: &Record) {
        let Some((own, copy)) = self.owned() else { return };
        let merged = match cx.planted(Bug::CompareEpochFirst) {
            true => combine(&[if branch.tip > copy.record.tip { branch } else { &copy.record }], cx.config),
            false => combine(&[&copy.record, branch], cx.config),
        };
        let Some((record, discarded)) = merged else { return };
        copy.record = record;
        own.version += 1;
        own.external += 1;
        copy.peers.holders_lack();
        copy.record.commit(own.claim.at(own.version), &[]);
        copy.settle_told();
        cx.out.event(cx.key, Event::Conflict { discarded });
        cx.queues.repairing.insert(cx.key);
        self.mark_dirty(cx);
        // Whoever made the branch may not know that it is none any more.
        self.inform(cx, branch.tip.claim.life);
    }

    pub(crate) fn handle_dropped(&mut self, cx: &mut Cx<'_>, from: Life, unheard: &[Life]) {
        if !cx.planted(Bug::FormerOwnerNotTold) {
            unheard.iter().for_each(|life| self.inform(cx, *life));
        }
        let Some((own, copy)) = self.owned() else { return };
        if let Some(peer) = copy.peers.get_mut(from) {
            // It may be to hold one again by now.
            peer.holds = own.list.contains(&from);
            peer.start_afresh(Given::Nothing);
            copy.peers.tidy();
        }
        self.advance(cx);
    }

    // ---- the holder's side ----------------------------------------------------------------------------------------------

    /// Whether an owner's message counts here. A greater claim ends an ownership here; a promise refuses older claims.
    fn admits(&mut self, cx: &mut Cx<'_>, from: Life, claim: Claim) -> bool {
        if self.ended().is_some() && cx.planted(Bug::TombstoneYields) {
            self.state = State::Nothing;
            return true;
        }
        if self.send_end(cx, from) {
            return false;
        }
        let link = cx.view.link(from).map(|l| l.id);
        if let Some(copy) = self.copy_mut() {
            copy.reported = link;
        }
        let promised = self.promised(cx);
        // What an owner commits while this node waits for its answer goes into this node's claim: the round combines the copy as it
        // is then, and nobody but this node has promised. Refused, the owner could not finish what the answer waits for.
        if claim < promised && !self.asks_owner_alone(promised, from) && !cx.planted(Bug::NoPromise) {
            if let Some(link) = cx.view.link(from) {
                link.send(&Message::Refused { key: cx.key, claim, promised }, None, cx.out);
            }
            return false;
        }
        if let Some((_, copy)) = self.owned() {
            // Somebody owned it while this node was silent to them.
            copy.promise(claim, cx.now);
            self.step_down(cx, claim);
        }
        if cx.view.is_away(from) && self.copy().is_none_or(|c| c.accepted < claim) {
            // What a dead owner had sent arrives after its death was noticed: nobody will come for this copy.
            cx.set_timer(cx.now + HEIR_STEP * 10, Timer::Heir);
        }
        true
    }

    pub(crate) fn handle_delta(
        &mut self,
        cx: &mut Cx<'_>,
        from: Life,
        claim: Claim,
        base: Option<Stamp>,
        version: u32,
        sets: &[Set<'_>],
    ) -> Option<()> {
        if !self.admits(cx, from, claim) {
            return Some(());
        }
        let mut base = base.unwrap_or(claim.at(version.checked_sub(1)?));
        let mut changes = Vec::with_capacity(sets.len());
        for set in sets {
            if set.name.is_empty() || set.name.len() > NAME_MAX {
                return None;
            }
            changes.push(Change { name: set.name.into(), base: Base::Absent, value: set.value.map(|v| Bytes::copy_from_slice(v)) });
        }
        let fit = match self.copy_mut() {
            Some(copy) => {
                if cx.planted(Bug::ApplyWithoutBase) {
                    base = copy.record.tip;
                }
                // No owner commits what does not fit.
                copy.take_delta(base, claim.at(version), &changes, cx.now).ok()?
            }
            None => Fit::Gap,
        };
        self.answer_owner(cx, from, claim, fit);
        Some(())
    }

    /// Says to the owner what has become of what it sent. Whoever waited for an owner goes on, and others hear of it.
    fn answer_owner(&mut self, cx: &mut Cx<'_>, from: Life, claim: Claim, fit: Fit) {
        match (fit, self.copy(), cx.view.link(from)) {
            (Fit::Gap, copy, link) => {
                if copy.is_none() {
                    self.promise(cx, claim);
                }
                if let Some(link) = link {
                    link.send(&Message::Gap { key: cx.key, claim }, None, cx.out);
                }
            }
            (Fit::Diverged, Some(copy), Some(link)) => {
                link.send(&Message::Diverged { key: cx.key, claim, record: copy.record.to_wire(cx.now) }, None, cx.out);
            }
            (Fit::Diverged | Fit::Taken, ..) => {}
        }
        self.pass_on(cx, claim);
        self.kick(cx);
    }

    pub(crate) fn handle_full(
        &mut self,
        cx: &mut Cx<'_>,
        from: Life,
        claim: Claim,
        stored: Option<Stamp>,
        wire: &WireRecord<'_>,
    ) -> Option<()> {
        let record = Record::from_wire(wire, cx.now).ok()?;
        if !self.admits(cx, from, claim) {
            return Some(());
        }
        let fit = match self.copy_mut() {
            Some(copy) => copy.take_full(claim, record, stored, cx.now),
            None => {
                let mut copy = Copy::new(record, claim, cx.view.leaving);
                copy.stored = stored;
                copy.promise(claim, cx.now);
                self.hold(cx, copy, None);
                if let Some(copy) = self.copy_mut() {
                    copy.accept(claim, cx.now);
                    copy.settle_told();
                }
                cx.out.event(cx.key, Event::Backed { owner: from });
                Fit::Taken
            }
        };
        if fit == Fit::Taken {
            self.settle_orphans(cx);
            self.offer_branch(cx, from);
        }
        self.answer_owner(cx, from, claim, fit);
        Some(())
    }

    pub(crate) fn handle_have(&mut self, cx: &mut Cx<'_>, from: Life, claim: Claim, tip: Stamp, idle_ms: u32, lineage: &WireLineage) {
        let lineage = Lineage::from(lineage);
        if !self.admits(cx, from, claim) {
            return;
        }
        let fit = self.copy_mut().map_or(Fit::Gap, |copy| copy.compare(claim, tip, &lineage, cx.now));
        if let Some(copy) = self.copy_mut().filter(|_| fit == Fit::Taken) {
            // A use that was noted here under a lesser claim, or at a guest, may not have come to this owner.
            let (used, step) = (copy.record.used, copy.record.clock().step());
            let unheard = cx.now - Duration::from_millis(u64::from(idle_ms)) + step < used && !copy.record.is_first();
            note_idle(&mut copy.record, cx.now, idle_ms);
            if let Some(link) = cx.view.link(from).filter(|_| unheard) {
                link.send(&Message::Touch { key: cx.key, claim, idle_ms: ms(cx.now.since(used)) }, Some(Sent::note(cx.key)), cx.out);
            }
            self.settle_orphans(cx);
            self.offer_branch(cx, from);
        }
        self.answer_owner(cx, from, claim, fit);
    }

    /// A holder says that it has a copy, and who is the last owner that it knows.
    pub(crate) fn handle_report(&mut self, cx: &mut Cx<'_>, from: Life, claim: Claim, idle_ms: u32) {
        // A use that was noted there under a lesser claim may not have come here. The way here took its time: who tells back what it was told
        // must not make it a later use each time.
        let told = cx.now - Duration::from_millis(u64::from(idle_ms));
        if self.copy().is_some_and(|copy| told > copy.record.used + LOOKUP_BOUND_SLOW) {
            self.handle_touch(cx, claim, idle_ms);
        }
        self.handle_holder(cx, from);
    }

    /// This node is thought to own the session by one that has a copy.
    fn handle_holder(&mut self, cx: &mut Cx<'_>, from: Life) {
        // Who owns it now is something the holder should hear.
        let (owner, tip) = match &mut self.state {
            State::Ended(ended) => return ended.send(cx, from),
            State::Owned(..) => return self.track(cx, from),
            // Not known yet: it will be told when this node is.
            State::Held(c) if c.heard.life == cx.view.me => return c.peers.note_former(from),
            State::Held(c) => (c.heard, c.record.tip),
            State::Facade(f) => (f.claim, f.tip),
            State::Nothing => {
                if let Some(link) = cx.view.link(from) {
                    link.send(&Message::Unowned { key: cx.key }, None, cx.out);
                }
                return;
            }
        };
        if let Some(link) = cx.view.link(from).filter(|_| owner.life != from) {
            link.send(&Message::Owned { key: cx.key, claim: owner, tip }, None, cx.out);
        }
    }

    /// A node that has a copy without being told to: it gets what it should have, or is told to drop it once all is durable; it
    /// objects if its copy has more.
    pub(crate) fn track(&mut self, cx: &mut Cx<'_>, life: Life) {
        let Some((own, copy)) = self.owned() else { return };
        let given = if own.list.contains(&life) { Given::Unknown } else { Given::Nothing };
        copy.peers.holder(life, given).given = given;
        self.advance(cx);
    }

    pub(crate) fn handle_drop(&mut self, cx: &mut Cx<'_>, from: Life, claim: Claim, owner_tip: Stamp, lineage: &WireLineage) {
        if !self.admits(cx, from, claim) {
            return;
        }
        let lineage = Lineage::from(lineage);
        let Some(link) = cx.view.link(from) else { return };
        self.pass_on(cx, claim);
        if let Some(copy) = self.copy_mut() {
            copy.promise(claim, cx.now);
        }
        if let Some(other) = self.copy().and_then(|copy| copy.beyond(&lineage)) {
            link.send(&Message::Diverged { key: cx.key, claim, record: other.to_wire(cx.now) }, None, cx.out);
            return self.kick(cx);
        }
        let mut unheard = Vec::new();
        if let Some((Copy { record, orphans, peers, .. }, _)) = self.release(cx) {
            unheard = peers.unheard().collect();
            let (tip, expires) = (record.tip, record.expires());
            // A round that runs may have told others that this copy is here, and "the same" is all that they answer.
            self.round_offered(record);
            for o in &orphans {
                // The owner includes the commits, but this node cannot see whether a merge kept their values.
                settle(cx, o, (tip == owner_tip).then_some((tip, Level::Owner)));
            }
            self.note_facade(cx, claim, tip, expires);
        }
        link.send(&Message::Dropped { key: cx.key, unheard }, None, cx.out);
        self.kick(cx);
    }

    /// Commits of a former ownership that a later owner's state includes are settled.
    fn settle_orphans(&mut self, cx: &mut Cx<'_>) {
        let Some(Copy { orphans, record, .. }) = self.copy_mut() else { return };
        orphans.retain(|o| {
            let included = record.lineage.includes(o.stamp);
            if included {
                // The owner has it; whether this copy is to stay is the owner's to know.
                settle(cx, o, o.is_kept(record).then_some((record.tip, Level::Owner)));
            }
            !included
        });
    }

    pub(crate) fn handle_touch(&mut self, cx: &mut Cx<'_>, claim: Claim, idle_ms: u32) {
        let now = cx.now;
        let owned = self.owner().map(|(own, _)| own.claim);
        if let Some(copy) = self.copy_mut()
            && owned.is_none_or(|own| own == claim)
            && claim >= copy.accepted
        {
            note_idle(&mut copy.record, now, idle_ms);
        }
    }

    /// Tells the holders of a former ownership who owns the session now: the owner may not know of their copies.
    pub(crate) fn pass_on(&mut self, cx: &mut Cx<'_>, claim: Claim) {
        let view = cx.view;
        // An owner from before this node's own time is no news: they would take it for theirs and stay where they are.
        let Some(copy) = self.backed().filter(|c| claim >= c.heard) else {
            return;
        };
        let tip = copy.record.tip;
        for life in copy.peers.take_former() {
            let Some(link) = view.link(life) else {
                if view.may_return(life) {
                    // It cannot be told now, may come back with its copy, and is told then.
                    copy.peers.note_former(life);
                }
                continue;
            };
            if life != claim.life && life != view.me {
                link.send(&Message::Owned { key: cx.key, claim, tip }, None, cx.out);
            }
        }
    }

    /// Who was taken for the owner is none, and knows of nobody.
    pub(crate) fn handle_unowned(&mut self, cx: &mut Cx<'_>, from: Life) {
        if self.send_end(cx, from) {
            return;
        }
        // Who owned it last, or whoever was promised it since: that promise may have come to nothing.
        let named = |c: &Copy| [c.heard, c.accepted].iter().any(|claim| claim.life == from);
        if let Some(copy) = self.backed().filter(|c| named(c)) {
            copy.disowned = true;
            cx.set_timer(cx.now + HEIR_STEP * 5, Timer::Heir);
        }
    }

    /// What this node is told of a session it need not hold, by its owner or by another that knows.
    pub(crate) fn handle_facade(
        &mut self,
        cx: &mut Cx<'_>,
        from: Life,
        claim: Claim,
        tip: Stamp,
        expires_ms: u32,
        lineage: Option<&WireLineage>,
    ) {
        if self.send_end(cx, from) {
            return;
        }
        let now = cx.now;
        let lineage = lineage.map(Lineage::from);
        let owns = self.owner().map(|(own, _)| own.claim);
        if let Some(copy) = self.copy_mut() {
            copy.heard = copy.heard.max(claim);
            let covered = lineage.as_ref().is_some_and(|l| l.covers(&copy.record.lineage));
            if owns.is_some_and(|mine| claim < mine) {
                // Two owners: the one with the lesser claim steps down when it hears of the other.
                self.inform(cx, claim.life);
            } else if owns.is_some_and(|mine| claim > mine) {
                copy.promise(claim, now);
                self.step_down(cx, claim);
                if !covered {
                    self.offer_copy(cx, claim.life);
                }
            } else if owns.is_none() && claim.life == from && !covered && lineage.is_some() {
                // The owner's state lacks what this copy has.
                self.offer_copy(cx, from);
            }
            if covered && claim.life == from && self.backed().is_some_and(|c| c.record.tip == tip) {
                // The owner has this very state: whoever waits for it need not wait for a copy to say so.
                self.settle_orphans(cx);
            }
            let owns = self.owns();
            if let Some(copy) = self.copy_mut() {
                copy.tell(tip);
                let forgotten = !owns && claim == copy.heard && (claim.life != from && claim > copy.accepted || covered);
                let astray = !owns && copy.heard > copy.accepted;
                if claim.life == from {
                    self.pass_on(cx, claim);
                }
                if forgotten && !cx.view.is_away(claim.life) && !cx.view.holders(cx.key, claim.life).contains(&cx.view.me) {
                    // An owner that was not answered in time does not know of this copy. Of one that is away others would only say the same
                    // again.
                    self.report(cx);
                }
                if astray {
                    // If no owner speaks of it soon, this looks for one.
                    cx.set_timer(now + HEIR_STEP * 10, Timer::Heir);
                }
            }
        } else {
            let expires = now + Duration::from_millis(u64::from(expires_ms));
            if cx.view.list(cx.key).contains(&cx.view.me) {
                self.match_owners(cx, Facade { claim, tip, expires, over: None });
            }
            self.note_facade(cx, claim, tip, expires);
        }
        self.kick(cx);
    }

    /// A node of the list hears of two owners: the lesser one learns of the other.
    fn match_owners(&mut self, cx: &mut Cx<'_>, new: Facade) {
        let known = match &self.state {
            State::Facade(f) if f.claim.life != new.claim.life => f,
            // Whatever the reach: the list knows.
            State::Nothing => return self.state = State::Facade(new),
            State::Facade(_) | State::Ended(_) | State::Held(_) | State::Owned(..) => return,
        };
        let (lesser, greater) = if known.claim < new.claim { (known, &new) } else { (&new, known) };
        if let Some(link) = cx.view.link(lesser.claim.life) {
            link.send(&Message::Owned { key: cx.key, claim: greater.claim, tip: greater.tip }, None, cx.out);
        }
    }

    fn note_facade(&mut self, cx: &mut Cx<'_>, claim: Claim, tip: Stamp, expires: Mono) {
        let reach = match cx.config.reach {
            Reach::Everyone => true,
            Reach::Placement => false,
            Reach::Auto => cx.view.peers.len() <= 8,
        };
        match &mut self.state {
            // What expired here goes on only under a later claim.
            State::Facade(f) if claim > f.claim || claim == f.claim && f.over.is_none() => {
                // Within a claim versions grow; of two claims the greater is the later owner, and its state is asked for.
                let newer = claim > f.claim || tip.version >= f.tip.version || tip.claim != f.tip.claim;
                *f = Facade { claim, tip: if newer { tip } else { f.tip }, expires, over: None };
            }
            State::Nothing if reach => self.state = State::Facade(Facade { claim, tip, expires, over: None }),
            State::Nothing | State::Facade(_) | State::Ended(_) | State::Held(_) | State::Owned(..) => {}
        }
    }

    /// Who owns the session, from somebody who knows. Whoever has asked remembers it, whatever the reach: a guest's commit goes there.
    pub(crate) fn note_owner(&mut self, cx: &mut Cx<'_>, owner: Claim, tip: Stamp, expires: Mono) {
        if let Some(copy) = self.copy_mut() {
            copy.heard = copy.heard.max(owner);
            return;
        }
        self.note_facade(cx, owner, tip, expires);
        if matches!(self.state, State::Nothing) {
            self.state = State::Facade(Facade { claim: owner, tip, expires, over: None });
        }
    }

    /// This node no longer owns the session; its copy stays until somebody who owns it says that it can go.
    pub(crate) fn step_down(&mut self, cx: &mut Cx<'_>, to: Claim) {
        let view = cx.view;
        let (mut copy, mut own) = match core::mem::replace(&mut self.state, State::Nothing) {
            State::Owned(copy, own) => (copy, own),
            other @ (State::Nothing | State::Facade(_) | State::Ended(_) | State::Held(_)) => return self.state = other,
        };
        cx.out.gone(own.live.clone());
        orphan(cx, &mut copy.orphans, &mut own, &copy.record);
        cx.shared.owned.fetch_sub(1, Ordering::Relaxed);
        // Whoever waits for an answer of this ownership should not wait for its bound.
        let closing = own.closing.filter(|closing| closing.claim != to).map(|closing| (closing.claim.life, closing.claim));
        let guests = copy.peers.iter().filter_map(|p| Some((p.life, Claim { epoch: p.guest?, life: p.life })));
        for (life, claim) in guests.chain(closing) {
            if let Some(link) = view.link(life) {
                link.send(&Message::Refused { key: cx.key, claim, promised: to }, None, cx.out);
            }
        }
        copy.peers.end_ownership();
        // The claimant may have a copy, too: its claim may come to nothing.
        copy.peers.note_former(to.life);
        self.state = State::Held(copy);
        let due = cx.now + cx.config.lookup_bound * 2;
        cx.set_timer(due, Timer::Heir);
        cx.set_timer(cx.now + cx.config.lookup_bound * 2 + HEIR_STEP * 10, Timer::Heir);
        cx.queues.invited.remove(&cx.key);
        cx.queues.repairing.remove(&cx.key);
        cx.out.event(cx.key, Event::Left { to });
        for ticket in own.waiting {
            cx.settle(ticket, crate::output::Outcome::Again);
        }
        if self.copy().is_some_and(|c| c.record.tip.version == 0) {
            self.release(cx);
        }
    }
}
