//! Copies: what an owner sends to its backups beside its commits, and what a backup accepts.

use crate::config::{Level, Reach};
use crate::cx::{Cx, Timer};
use crate::id::SessionKey;
use crate::limits::{HEIR_STEP, NAME_MAX, RECORD_MAX};
use crate::lineage::Lineage;
use crate::link::{Sent, What};
use crate::merge::combine;
use crate::output::{Event, Live};
use crate::owner::{orphan, settle, settle_durable};
use crate::plant::Bug;
use crate::record::{Change, Record, WireRecord};
use crate::shard::Shard;
use crate::slot::{Copy, Facade, Holder, Slot};
use crate::stamp::{Claim, Life, Stamp};
use crate::time::{Mono, ms};
use crate::view::Lives;
use crate::wire::{Message, Set, Why, WireLineage};
use bytes::Bytes;
use core::sync::atomic::Ordering;
use core::time::Duration;

/// How long a hint at who owns a session is worth something, in milliseconds.
const HINT_MS: u32 = 60_000;

/// How long ago a session was used, for its holders. Of one whose cookie has not come back there is nothing to tell.
fn idle(record: &Record, now: Mono) -> u32 {
    if record.is_first() { u32::MAX } else { ms(now.since(record.used)) }
}

/// Notes what [`idle`] says.
fn note_idle(record: &mut Record, now: Mono, idle_ms: u32) {
    if idle_ms < u32::MAX {
        record.note_use(now - Duration::from_millis(u64::from(idle_ms)));
    }
}

impl<L: Live> Shard<L> {
    // ---- the owner's side -----------------------------------------------------------------------------------------------

    /// Sends the record to every listed holder that nothing was sent to yet.
    pub(crate) fn push_state(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let Some((copy, view)) = self.own(key) else { return };
        let Copy { own: Some(own), record, stored, .. } = copy else { return };
        if record.tip.version == 0 {
            return;
        }
        for h in own.holders.iter_mut().filter(|h| h.sent.is_none() && own.list.contains(&h.life)) {
            if let Some(link) = view.link(h.life) {
                let sent = Sent { key, claim: own.claim, version: own.version, attempt: h.attempt, what: What::Copy };
                let record = record.to_wire(cx.now);
                let message = Message::Full { key, claim: own.claim, stored: *stored, record };
                link.send(&message, Some(sent), cx.out);
                h.sent = Some(own.version);
            }
        }
    }

    /// Tells a node which state it should have: it acknowledges, or says what it needs.
    pub(crate) fn push_have(&mut self, cx: &mut Cx<'_>, key: SessionKey, to: Life) {
        let Some((copy, view)) = self.own(key) else { return };
        let Copy { own: Some(own), record, .. } = copy else { return };
        let Some(link) = view.link(to).filter(|_| record.tip.version > 0) else { return };
        let (claim, version) = (own.claim, own.version);
        let holder = own.holder_or_new(to);
        let sent = Sent { key, claim, version, attempt: holder.attempt, what: What::Copy };
        // If the peer has this state, the next delta fits; if not, its gap comes before anything else.
        holder.sent = Some(version);
        let (idle_ms, lineage) = (idle(record, cx.now), (&record.lineage).into());
        link.send(&Message::Have { key, claim, tip: record.tip, idle_ms, lineage }, Some(sent), cx.out);
    }

    /// Sees to it that this peer learns who owns the session, however often the link breaks.
    pub(crate) fn inform(&mut self, cx: &mut Cx<'_>, key: SessionKey, to: Life) {
        if to == self.view.me || to == Claim::NONE.life {
            return;
        }
        if !self.view.may_return(to) {
            // It may become a member yet: a record of the store can be from a node that this one has never met.
            if let Some(own) = self.copy(key).and_then(|c| c.own.as_mut()) {
                own.stranger = Some(to);
            }
            return;
        }
        if self.copy(key).is_none() {
            return;
        }
        let list = self.informs.entry(key).or_default();
        if !list.contains(&to) {
            list.push(to);
        }
        self.send_inform(cx, key, to);
    }

    pub(crate) fn send_inform(&mut self, cx: &mut Cx<'_>, key: SessionKey, to: Life) {
        let Some((Copy { own: Some(own), record, .. }, view)) = self.own(key) else { return };
        if let Some(link) = view.link(to) {
            let sent = Sent { key, claim: own.claim, version: own.version, attempt: 0, what: What::Inform };
            let expires_ms = ms(record.expires().since(cx.now));
            let lineage = Some((&record.lineage).into());
            link.send(&Message::Facade { key, claim: own.claim, tip: record.tip, expires_ms, lineage }, Some(sent), cx.out);
        }
    }

    /// The membership changed: who is to hold a copy now?
    pub(crate) fn replace_list(&mut self, key: SessionKey) {
        let Some((copy, view)) = self.own(key) else { return };
        let Some(own) = copy.own.as_mut() else { return };
        own.generation = view.generation;
        own.list = view.holders(key, view.me).into_iter().collect();
        // The memory of a life that was replaced is gone; one that is only thought dead may come back with its copy. A link that is
        // closed carries nothing on.
        own.holders.retain(|h| view.may_return(h.life));
        for h in &mut own.holders {
            if view.link(h.life).is_none() {
                h.sent = None;
            }
            h.dropping &= !own.list.contains(&h.life);
        }
        for life in own.list.clone() {
            own.holder_or_new(life);
        }
        own.shown = Stamp::default();
    }

    /// A link closed: what was sent on it may not have arrived.
    pub(crate) fn forget_sent(&mut self, cx: &mut Cx<'_>, life: Life) {
        for slot in self.table.values_mut() {
            if let Slot::Held(copy) = slot
                && let Some(own) = copy.own.as_mut()
                && own.holder(life).is_some()
            {
                if cx.planted(Bug::ReuseVersion) && !own.all_durable() {
                    own.version = own.durable.unwrap_or(0);
                }
                let Some(h) = own.holder(life) else { continue };
                (h.sent, h.attempt) = (None, h.attempt.wrapping_add(1));
                h.dropping = false;
            }
        }
    }

    /// A frame was acknowledged.
    pub(crate) fn handle_ack(&mut self, cx: &mut Cx<'_>, from: Life, sent: &Sent) {
        let key = sent.key;
        match sent.what {
            What::Note => return,
            What::Inform => {
                if let Some(list) = self.informs.get_mut(&key) {
                    list.retain(|l| *l != from);
                    if list.is_empty() {
                        self.informs.remove(&key);
                    }
                }
                return;
            }
            What::Copy => {}
        }
        let known = match self.copy(key) {
            Some(Copy { own: Some(own), .. }) => own.holder(from).is_some(),
            Some(copy) => copy.former.contains(&from),
            None => false,
        };
        if !known {
            // It may have taken what a former ownership sent it, and nobody else knows.
            return self.handle_holder(cx, from, key);
        }
        let Some((copy, _)) = self.own(key) else { return };
        let Some(own) = copy.own.as_mut().filter(|own| own.claim == sent.claim) else { return };
        if let Some(h) = own.holder(from).filter(|h| h.attempt == sent.attempt) {
            h.acked = h.acked.max(Some(sent.version));
            self.advance(cx, key);
        }
    }

    /// Looks what has become durable, and does what waited for it.
    pub(crate) fn advance(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let Some((copy, view)) = self.own(key) else { return };
        let risen = settle_durable(cx, key, copy, view);
        let Some(own) = &copy.own else { return };
        let (all, closing) = (own.all_durable(), own.closing.is_some());
        let owes = all && !(own.stay.is_empty() && own.owed.is_empty());
        let extra = own.holders.len() > own.list.len();
        let lone = view.peers.len() < 2;
        if risen && !lone {
            self.show(cx, key);
        }
        if owes {
            self.pay(cx, key);
        }
        if all && (extra || !self.repairing.is_empty()) {
            self.whole(cx, key);
        }
        if closing {
            self.try_close(cx, key);
        }
    }

    /// Everything is durable: whoever waits for a durable copy or for proof of inclusion gets it.
    fn pay(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let Some((copy, view)) = self.own(key) else { return };
        let Copy { own: Some(own), record, .. } = copy else { return };
        let (stay, owed) = (core::mem::take(&mut own.stay), core::mem::take(&mut own.owed));
        for (life, claim) in stay {
            if let Some(link) = view.link(life) {
                link.send(&Message::Stay { key, claim, owner: own.claim, record: record.to_wire(cx.now) }, None, cx.out);
            }
        }
        for life in owed {
            self.inform(cx, key, life);
        }
    }

    /// The whole list has the newest version: other copies can go.
    fn whole(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        if self.own(key).is_none_or(|(copy, _)| copy.own.as_ref().is_none_or(|own| own.by_list() != Some(own.version))) {
            return;
        }
        let repaired = self.repairing.remove(&key);
        let Some((copy, view)) = self.own(key) else { return };
        let Copy { own: Some(own), record, .. } = copy else { return };
        if repaired && !own.list.is_empty() {
            cx.out.event(key, Event::Replicated { on: own.list.to_vec() });
        }
        // Who is only thought dead keeps its copy: it may be the other one that there is. So does everybody while the list is of a
        // membership before this one, which can be this node alone: the visit that makes it new comes here again.
        if own.holders.len() > own.list.len() && own.list == view.holders(key, view.me) {
            for h in own.holders.iter_mut().filter(|h| !own.list.contains(&h.life) && !h.dropping && !view.is_away(h.life)) {
                if let Some(link) = view.link(h.life) {
                    // What it acknowledges from here on it had before it dropped it.
                    *h = Holder { sent: None, acked: None, attempt: h.attempt.wrapping_add(1), dropping: true, ..*h };
                    let lineage = (&record.lineage).into();
                    link.send(&Message::Drop { key, claim: own.claim, tip: record.tip, lineage }, None, cx.out);
                }
            }
        }
    }

    /// Tells those who are to have the facade what is durable now.
    fn show(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let Some((copy, view)) = self.own(key) else { return };
        let Copy { own: Some(own), record, .. } = copy else { return };
        let tip = own.durable_tip();
        if tip.version == 0 || tip == own.shown {
            return;
        }
        let everyone = match cx.config.reach {
            Reach::Everyone => true,
            Reach::Placement => false,
            Reach::Auto => view.peers.len() <= 8,
        };
        let first = own.shown.claim != own.claim;
        own.shown = tip;
        let list = if everyone { Lives::new() } else { view.list(key) };
        let expires_ms = ms(record.expires().since(cx.now));
        for peer in view.others().filter(|p| everyone || list.contains(&p.life)) {
            if own.list.contains(&peer.life) {
                continue;
            }
            if let Some(link) = &peer.link {
                let lineage: Option<WireLineage> = first.then(|| (&record.lineage).into());
                let note = Sent { key, claim: own.claim, version: 0, attempt: 0, what: What::Note };
                link.send(&Message::Facade { key, claim: own.claim, tip, expires_ms, lineage }, Some(note), cx.out);
            }
        }
    }

    pub(crate) fn handle_gap(&mut self, cx: &mut Cx<'_>, from: Life, key: SessionKey, claim: Claim) {
        let Some((copy, _)) = self.own(key) else { return };
        let Some(own) = copy.own.as_mut().filter(|own| own.claim == claim) else { return };
        let listed = own.list.contains(&from);
        let Some(h) = own.holder(from) else { return };
        // What was sent before the gap will be counted by the link, but it was not applied.
        *h = Holder { life: from, sent: None, acked: None, attempt: h.attempt.wrapping_add(1), dropping: false };
        if listed {
            self.push_state(cx, key);
        } else {
            // What it holds is old, and not wanted: it will be told to drop it.
            self.advance(cx, key);
        }
    }

    /// A peer promised a greater claim: this ownership is over.
    pub(crate) fn handle_refused(&mut self, cx: &mut Cx<'_>, from: Life, key: SessionKey, claim: Claim, promised: Claim) {
        if self.round_refused(cx, key, claim, promised) {
            return;
        }
        let me = self.view.me;
        let Some((copy, _)) = self.own(key) else { return };
        copy.heard = copy.heard.max(promised);
        if copy.own.as_ref().is_some_and(|own| own.claim != claim && promised > own.claim) && promised.life != me {
            // It refuses a claim from before, and names one that this ownership has not heard of.
            let _ = self.request_round(cx, key, Why::Doubt, None, None);
            return;
        }
        // A lesser promise refuses a question (an heir's, of a living owner), not a frame.
        let Some(own) = copy.own.as_mut().filter(|own| own.claim == claim && promised > claim) else { return };
        if let Some(h) = own.holder(from) {
            // The link will count the refused frame; it was not applied.
            (h.sent, h.acked, h.attempt, h.dropping) = (None, None, h.attempt.wrapping_add(1), false);
        }
        own.refused = true;
        if promised.life == me {
            // A claim of this node that came to nothing is in the way of the one that holds: a greater one ends that.
            let _ = self.request_round(cx, key, Why::Doubt, None, None);
            return;
        }
        if cx.planted(Bug::RetryRefusedElsewhere) {
            own.list.retain(|l| *l != from);
            own.holders.retain(|h| h.life != from);
            let view = self.view.clone();
            let other = view.others().map(|p| p.life).find(|l| *l != from);
            if let (Some((copy, _)), Some(other)) = (self.own(key), other)
                && let Some(own) = copy.own.as_mut()
            {
                own.list = core::iter::once(other).collect();
                own.holder_or_new(other);
            }
            self.push_state(cx, key);
            return self.advance(cx, key);
        }
        let pending = own.running > 0 || !own.all_durable();
        let asked = own.closing.filter(|closing| closing.claim == promised);
        copy.promise(promised, cx.now);
        self.step_down(cx, key, promised);
        if let Some(closing) = asked {
            // The claimant waits for this very answer, and all that waits for its outcome is in it.
            self.answer(cx, key, promised.life, promised, closing.have, true);
        } else if pending {
            // Requests wait for the outcome of their commits: the branch is in this copy, and a round brings it in.
            let _ = self.request_round(cx, key, Why::Doubt, None, None);
        }
    }

    /// A holder has something that the owner's record does not include.
    pub(crate) fn handle_diverged(
        &mut self,
        cx: &mut Cx<'_>,
        from: Life,
        key: SessionKey,
        claim: Option<Claim>,
        wire: &WireRecord<'_>,
    ) -> Option<()> {
        let record = Record::from_wire(wire, cx.now).ok()?;
        if let Some((copy, _)) = self.own(key) {
            let own = copy.own.as_mut()?;
            if let Some(h) = own.holder(from) {
                (h.sent, h.acked, h.attempt) = (None, None, h.attempt.wrapping_add(1));
                h.dropping = false;
            }
            if copy.record.lineage.covers(&record.lineage) {
                own.owed.push(from);
                if own.holder(from).is_some() {
                    self.push_have(cx, key, from);
                }
                self.advance(cx, key);
            } else {
                self.merge_in(cx, key, &record);
                if let Some(own) = self.copy(key).and_then(|c| c.own.as_mut()) {
                    own.owed.push(from);
                }
                self.advance(cx, key);
            }
        } else if self.round_offered(key, &record) || claim.is_some() {
            // The round will combine it; or an owner that no longer is one hears of it, and the holder keeps its copy.
        } else if let Some(copy) = self.copy(key).filter(|c| !c.record.lineage.covers(&record.lineage)) {
            let known = copy.branch.as_ref().is_some_and(|b| b.tip == record.tip);
            copy.branch = Some(Box::new(record));
            if !known {
                self.report(cx, key);
            }
        }
        Some(())
    }

    /// The branch beside this copy, if its owner's state still lacks it: only the owner can merge it.
    pub(crate) fn offer_branch(&mut self, cx: &mut Cx<'_>, key: SessionKey, owner: Life) {
        let view = self.view.clone();
        if let (Some(Copy { branch: Some(branch), .. }), Some(link)) = (self.copy(key), view.link(owner)) {
            link.send(&Message::Kept { key, record: branch.to_wire(cx.now) }, None, cx.out);
        }
    }

    /// Merges a branch into the session this node owns: a commit of its own.
    pub(crate) fn merge_in(&mut self, cx: &mut Cx<'_>, key: SessionKey, branch: &Record) {
        let Some((copy, _)) = self.own(key) else { return };
        let Some(own) = copy.own.as_mut() else { return };
        let merged = match cx.planted(Bug::CompareEpochFirst) {
            true => combine(&[if branch.tip > copy.record.tip { branch } else { &copy.record }], cx.config),
            false => combine(&[&copy.record, branch], cx.config),
        };
        let Some((record, discarded)) = merged else { return };
        copy.record = record;
        own.version += 1;
        own.external += 1;
        for h in &mut own.holders {
            h.sent = None;
        }
        copy.record.commit(own.claim.at(own.version), &[]);
        copy.settle_told();
        cx.out.event(key, Event::Conflict { discarded });
        self.repairing.insert(key);
        self.push_state(cx, key);
        self.mark_dirty(cx, key);
        // Whoever made the branch may not know that it is none any more.
        self.inform(cx, key, branch.tip.claim.life);
    }

    pub(crate) fn handle_dropped(&mut self, cx: &mut Cx<'_>, from: Life, key: SessionKey, unheard: &[Life]) {
        if !cx.planted(Bug::FormerOwnerNotTold) {
            unheard.iter().for_each(|life| self.inform(cx, key, *life));
        }
        let Some((copy, _)) = self.own(key) else { return };
        let Some(own) = copy.own.as_mut() else { return };
        if own.list.contains(&from) {
            // It is to hold one again by now.
            if let Some(h) = own.holder(from) {
                *h = Holder { life: from, sent: None, acked: None, attempt: h.attempt.wrapping_add(1), dropping: false };
            }
            self.push_state(cx, key);
        } else {
            own.holders.retain(|h| h.life != from);
        }
        self.advance(cx, key);
    }

    // ---- the holder's side ----------------------------------------------------------------------------------------------

    /// Whether an owner's message counts here. A greater claim ends an ownership here; a promise refuses older claims.
    fn admits(&mut self, cx: &mut Cx<'_>, from: Life, key: SessionKey, claim: Claim) -> bool {
        if let Some(ended) = self.ended(key) {
            if cx.planted(Bug::TombstoneYields) {
                self.table.remove(&key);
                return true;
            }
            self.send_end(cx, key, &ended, from);
            return false;
        }
        let link = self.view.link(from).map(|l| l.id);
        if let Some(copy) = self.copy(key) {
            copy.reported = link;
        }
        let promised = self.promised(key);
        // What an owner commits while this node waits for its answer goes into this node's claim: the round combines the copy as it
        // is then, and nobody but this node has promised. Refused, the owner could not finish what the answer waits for.
        if claim < promised && !self.asks_owner_alone(key, promised, from) && !cx.planted(Bug::NoPromise) {
            if let Some(link) = self.view.link(from) {
                link.send(&Message::Refused { key, claim, promised }, None, cx.out);
            }
            return false;
        }
        if self.own(key).is_some() {
            // Somebody owned it while this node was silent to them.
            if let Some(copy) = self.copy(key) {
                copy.promise(claim, cx.now);
            }
            self.step_down(cx, key, claim);
        }
        if self.view.is_away(from) && self.copy(key).is_none_or(|c| c.accepted < claim) {
            // What a dead owner had sent arrives after its death was noticed: nobody will come for this copy.
            self.set_timer(cx.now + HEIR_STEP * 10, key, Timer::Heir);
        }
        true
    }

    pub(crate) fn handle_delta(
        &mut self,
        cx: &mut Cx<'_>,
        from: Life,
        key: SessionKey,
        claim: Claim,
        base: Option<Stamp>,
        version: u32,
        sets: &[Set<'_>],
    ) -> Option<()> {
        if !self.admits(cx, from, key, claim) {
            return Some(());
        }
        let base = base.unwrap_or(claim.at(version.checked_sub(1)?));
        let fits = self.copy(key).is_some_and(|c| c.record.tip == base || cx.config.planted(Bug::ApplyWithoutBase));
        if !fits {
            self.promise(cx, key, claim);
            if let Some(link) = self.view.link(from) {
                link.send(&Message::Gap { key, claim }, None, cx.out);
            }
            return Some(());
        }
        let mut changes = Vec::with_capacity(sets.len());
        for set in sets {
            if set.name.is_empty() || set.name.len() > NAME_MAX {
                return None;
            }
            changes.push(Change { name: set.name.into(), base: None, value: set.value.map(|v| Bytes::copy_from_slice(v)) });
        }
        let now = cx.now;
        let copy = self.copy(key)?;
        // No owner commits what does not fit.
        copy.record.fits_with(&changes, RECORD_MAX).ok()?;
        copy.record.commit(claim.at(version), &changes);
        copy.record.note_commit(now);
        copy.accept(claim, now);
        copy.settle_told();
        self.pass_on(cx, key, claim);
        self.kick(cx, key);
        Some(())
    }

    pub(crate) fn handle_full(
        &mut self,
        cx: &mut Cx<'_>,
        from: Life,
        key: SessionKey,
        claim: Claim,
        stored: Option<Stamp>,
        wire: &WireRecord<'_>,
    ) -> Option<()> {
        let record = Record::from_wire(wire, cx.now).ok()?;
        if !self.admits(cx, from, key, claim) {
            return Some(());
        }
        let now = cx.now;
        match self.copy(key) {
            None => {
                let mut copy = Copy::new(record, claim, self.view.leaving);
                copy.stored = stored;
                copy.promise(claim, now);
                self.hold(cx, key, copy);
                if let Some(copy) = self.copy(key) {
                    copy.accept(claim, now);
                    copy.settle_told();
                }
                cx.out.event(key, Event::Backed { owner: from });
            }
            Some(copy) if record.lineage.covers(&copy.record.lineage) => {
                let before = core::mem::replace(&mut copy.record, record);
                copy.record.note_use_of(&before);
                copy.stored = stored.or(copy.stored);
                copy.accept(claim, now);
                copy.settle_told();
                self.settle_orphans(cx, key);
                self.offer_branch(cx, key, from);
            }
            Some(copy) => {
                // Neither may overwrite the other. The owner gets this copy and merges.
                copy.promise(claim, now);
                let mine = copy.record.clone();
                copy.branch = Some(Box::new(record));
                if let Some(link) = self.view.link(from) {
                    link.send(&Message::Diverged { key, claim, record: mine.to_wire(now) }, None, cx.out);
                }
            }
        }
        self.pass_on(cx, key, claim);
        self.kick(cx, key);
        Some(())
    }

    pub(crate) fn handle_have(
        &mut self,
        cx: &mut Cx<'_>,
        from: Life,
        key: SessionKey,
        claim: Claim,
        tip: Stamp,
        idle_ms: u32,
        lineage: &WireLineage,
    ) -> Option<()> {
        let lineage = Lineage::from(lineage);
        if claim.life != from {
            self.handle_holder(cx, from, key);
            return Some(());
        }
        if !self.admits(cx, from, key, claim) {
            return Some(());
        }
        let now = cx.now;
        let link = self.view.link(from).cloned();
        let needs = match self.copy(key) {
            None => true,
            Some(copy) if copy.record.tip == tip => {
                copy.accept(claim, now);
                // A use that was noted here under a lesser claim, or at a guest, may not have come to this owner.
                let (used, step) = (copy.record.used, copy.record.clock().step());
                let unheard = now - Duration::from_millis(u64::from(idle_ms)) + step < used;
                if let Some(link) = link.as_ref().filter(|_| unheard && !copy.record.is_first()) {
                    let note = Sent { key, claim, version: 0, attempt: 0, what: What::Note };
                    link.send(&Message::Touch { key, claim, idle_ms: ms(now.since(used)) }, Some(note), cx.out);
                }
                note_idle(&mut copy.record, now, idle_ms);
                copy.settle_told();
                self.settle_orphans(cx, key);
                self.offer_branch(cx, key, from);
                false
            }
            Some(copy) if lineage.covers(&copy.record.lineage) => {
                copy.promise(claim, now);
                true
            }
            Some(copy) => {
                copy.promise(claim, now);
                let mine = copy.record.clone();
                if let Some(link) = &link {
                    link.send(&Message::Diverged { key, claim, record: mine.to_wire(now) }, None, cx.out);
                }
                false
            }
        };
        self.pass_on(cx, key, claim);
        if needs {
            self.promise(cx, key, claim);
            if let Some(link) = link {
                link.send(&Message::Gap { key, claim }, None, cx.out);
            }
        }
        self.kick(cx, key);
        Some(())
    }

    /// A holder says what it has; this node is thought to own the session.
    fn handle_holder(&mut self, cx: &mut Cx<'_>, from: Life, key: SessionKey) {
        if let Some(ended) = self.ended(key) {
            return self.send_end(cx, key, &ended, from);
        }
        if self.own(key).is_none() {
            // Who owns it now is something the holder should hear.
            let me = self.view.me;
            let (owner, tip) = match self.table.get_mut(&key) {
                Some(Slot::Held(c)) if c.heard.life == me => {
                    // Not known yet: it will be told when this node is.
                    c.note_former([from]);
                    return;
                }
                Some(Slot::Held(c)) => (c.heard, c.record.tip),
                Some(Slot::Facade(f)) => (f.claim, f.tip),
                // No claim: this node is not the owner, and knows of none.
                _ => (Claim::NONE, Stamp::default()),
            };
            if let Some(link) = self.view.link(from).filter(|_| owner.life != from) {
                let note = Sent { key, claim: owner, version: 0, attempt: 0, what: What::Note };
                link.send(&Message::Facade { key, claim: owner, tip, expires_ms: HINT_MS, lineage: None }, Some(note), cx.out);
            }
            return;
        }
        self.track(cx, key, from);
    }

    /// A node that has a copy without being told to: it gets what it should have, or is told to drop it once all is durable; it
    /// objects if its copy has more.
    pub(crate) fn track(&mut self, cx: &mut Cx<'_>, key: SessionKey, life: Life) {
        let Some((Copy { own: Some(own), .. }, _)) = self.own(key) else { return };
        let holder = own.holder_or_new(life);
        holder.dropping = false;
        if own.list.contains(&life) {
            self.push_have(cx, key, life);
        }
        self.advance(cx, key);
    }

    pub(crate) fn handle_drop(
        &mut self,
        cx: &mut Cx<'_>,
        from: Life,
        key: SessionKey,
        claim: Claim,
        owner_tip: Stamp,
        lineage: &WireLineage,
    ) {
        if !self.admits(cx, from, key, claim) {
            return;
        }
        let lineage = Lineage::from(lineage);
        let Some(link) = self.view.link(from).cloned() else { return };
        let now = cx.now;
        self.pass_on(cx, key, claim);
        match self.copy(key) {
            Some(copy) if !lineage.covers(&copy.record.lineage) || copy.branch.as_ref().is_some_and(|b| !lineage.covers(&b.lineage)) => {
                copy.promise(claim, now);
                let other = copy.branch.as_deref().filter(|b| !lineage.covers(&b.lineage)).unwrap_or(&copy.record).clone();
                link.send(&Message::Diverged { key, claim, record: other.to_wire(now) }, None, cx.out);
            }
            Some(copy) => {
                copy.promise(claim, now);
                let (tip, expires) = (copy.record.tip, copy.record.expires());
                let unheard = self.informs.get(&key).map_or(Vec::new(), |lives| lives.to_vec());
                let released = self.release(cx, key);
                if let Some(copy) = &released {
                    // A round that runs may have told others that this copy is here, and "the same" is all that they answer.
                    self.round_offered(key, &copy.record);
                }
                for o in released.iter().flat_map(|copy| &copy.orphans) {
                    // The owner includes the commits, but this node cannot see whether a merge kept their values.
                    settle(cx, key, &self.view, o, (tip == owner_tip).then_some((tip, Level::Owner)));
                }
                self.note_facade(cx, key, claim, tip, expires);
                link.send(&Message::Dropped { key, unheard }, None, cx.out);
            }
            None => link.send(&Message::Dropped { key, unheard: Vec::new() }, None, cx.out),
        }
        self.kick(cx, key);
    }

    /// Commits of a former ownership that a later owner's state includes are settled.
    fn settle_orphans(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let view = self.view.clone();
        let Some(Copy { orphans, record, .. }) = self.copy(key) else { return };
        orphans.retain(|o| {
            let included = record.lineage.includes(o.stamp);
            if included {
                // The owner has it; whether this copy is to stay is the owner's to know.
                settle(cx, key, &view, o, o.is_kept(record).then_some((record.tip, Level::Owner)));
            }
            !included
        });
    }

    pub(crate) fn handle_touch(&mut self, cx: &mut Cx<'_>, key: SessionKey, claim: Claim, idle_ms: u32) {
        let now = cx.now;
        if let Some(copy) = self.copy(key)
            && copy.own.as_ref().is_none_or(|own| own.claim == claim)
            && claim >= copy.accepted
        {
            note_idle(&mut copy.record, now, idle_ms);
        }
    }

    /// Tells the holders of a former ownership who owns the session now: the owner may not know of their copies.
    pub(crate) fn pass_on(&mut self, cx: &mut Cx<'_>, key: SessionKey, claim: Claim) {
        let view = self.view.clone();
        // An owner from before this node's own time is no news: they would take it for theirs and stay where they are.
        let Some(copy) = self.copy(key).filter(|c| c.own.is_none() && !c.former.is_empty() && claim >= c.heard) else {
            return;
        };
        let tip = copy.record.tip;
        let former = core::mem::take(&mut copy.former);
        // Who cannot be told now and may come back with its copies is told then.
        copy.former = former.iter().copied().filter(|l| view.link(*l).is_none() && view.may_return(*l)).collect();
        for life in former {
            if let Some(link) = view.link(life).filter(|_| life != claim.life && life != view.me) {
                let note = Sent { key, claim, version: 0, attempt: 0, what: What::Note };
                link.send(&Message::Facade { key, claim, tip, expires_ms: HINT_MS, lineage: None }, Some(note), cx.out);
            }
        }
    }

    /// What this node is told of a session it need not hold.
    pub(crate) fn handle_facade(
        &mut self,
        cx: &mut Cx<'_>,
        from: Life,
        key: SessionKey,
        claim: Claim,
        tip: Stamp,
        expires_ms: u32,
        lineage: Option<&WireLineage>,
    ) {
        if let Some(ended) = self.ended(key) {
            return self.send_end(cx, key, &ended, from);
        }
        let now = cx.now;
        let lineage = lineage.map(Lineage::from);
        if claim == Claim::NONE {
            // Who owned it last, or whoever was promised it since: that promise may have come to nothing.
            let named = |c: &Copy<L>| [c.heard, c.accepted].iter().any(|claim| claim.life == from);
            if let Some(copy) = self.copy(key).filter(|c| c.own.is_none() && named(c)) {
                copy.disowned = true;
                self.set_timer(now + HEIR_STEP * 5, key, Timer::Heir);
            }
            return;
        }
        if let Some(copy) = self.copy(key) {
            copy.heard = copy.heard.max(claim);
            let covered = lineage.as_ref().is_some_and(|l| l.covers(&copy.record.lineage));
            let owns = copy.own.as_ref().map(|own| own.claim);
            if owns.is_some_and(|mine| claim < mine) {
                // Two owners: the one with the lesser claim steps down when it hears of the other.
                self.inform(cx, key, claim.life);
            } else if owns.is_some_and(|mine| claim > mine) {
                copy.promise(claim, now);
                self.step_down(cx, key, claim);
                if !covered && let (Some(copy), Some(link)) = (self.copy(key).map(|c| c.record.clone()), self.view.link(claim.life)) {
                    link.send(&Message::Kept { key, record: copy.to_wire(now) }, None, cx.out);
                }
            } else if owns.is_none() && claim.life == from && !covered && lineage.is_some() {
                // The owner's state lacks what this copy has.
                let mine = copy.record.clone();
                if let Some(link) = self.view.link(from) {
                    link.send(&Message::Kept { key, record: mine.to_wire(now) }, None, cx.out);
                }
            }
            if covered && claim.life == from && self.copy(key).is_some_and(|c| c.own.is_none() && c.record.tip == tip) {
                // The owner has this very state: whoever waits for it need not wait for a copy to say so.
                self.settle_orphans(cx, key);
            }
            if let Some(copy) = self.copy(key) {
                copy.tell(tip);
                let forgotten = copy.own.is_none() && claim == copy.heard && (claim.life != from && claim > copy.accepted || covered);
                let astray = copy.own.is_none() && copy.heard > copy.accepted;
                if claim.life == from {
                    self.pass_on(cx, key, claim);
                }
                if forgotten && !self.view.holders(key, claim.life).contains(&self.view.me) {
                    // An owner that was not answered in time does not know of this copy.
                    self.report(cx, key);
                }
                if astray {
                    // If no owner speaks of it soon, this looks for one.
                    self.set_timer(now + HEIR_STEP * 10, key, Timer::Heir);
                }
            }
        } else {
            let expires = now + Duration::from_millis(u64::from(expires_ms));
            if self.view.list(key).contains(&self.view.me) {
                self.match_owners(cx, key, Facade { claim, tip, expires, over: None });
            }
            self.note_facade(cx, key, claim, tip, expires);
        }
        self.kick(cx, key);
    }

    /// A node of the list hears of two owners: the lesser one learns of the other.
    fn match_owners(&mut self, cx: &mut Cx<'_>, key: SessionKey, new: Facade) {
        let known = match self.table.get(&key) {
            Some(Slot::Facade(f)) if f.claim.life != new.claim.life => f.clone(),
            Some(_) => return,
            None => {
                // Whatever the reach: the list knows.
                self.table.insert(key, Slot::Facade(new));
                return;
            }
        };
        let (lesser, greater) = if known.claim < new.claim { (known, new) } else { (new, known) };
        if let Some(link) = self.view.link(lesser.claim.life) {
            let note = Sent { key, claim: greater.claim, version: 0, attempt: 0, what: What::Note };
            let (claim, tip) = (greater.claim, greater.tip);
            link.send(&Message::Facade { key, claim, tip, expires_ms: HINT_MS, lineage: None }, Some(note), cx.out);
        }
    }

    fn note_facade(&mut self, cx: &mut Cx<'_>, key: SessionKey, claim: Claim, tip: Stamp, expires: Mono) {
        let reach = match cx.config.reach {
            Reach::Everyone => true,
            Reach::Placement => false,
            Reach::Auto => self.view.peers.len() <= 8,
        };
        match self.table.get_mut(&key) {
            // What expired here goes on only under a later claim.
            Some(Slot::Facade(f)) if claim > f.claim || claim == f.claim && f.over.is_none() => {
                // Within a claim versions grow; of two claims the greater is the later owner, and its state is asked for.
                let newer = claim > f.claim || tip.version >= f.tip.version || tip.claim != f.tip.claim;
                *f = Facade { claim, tip: if newer { tip } else { f.tip }, expires, over: None };
            }
            Some(_) => {}
            None if reach => {
                self.table.insert(key, Slot::Facade(Facade { claim, tip, expires, over: None }));
            }
            None => {}
        }
    }

    /// Who owns the session, from somebody who knows. Whoever has asked remembers it, whatever the reach: a guest's commit goes there.
    pub(crate) fn note_owner(&mut self, cx: &mut Cx<'_>, key: SessionKey, owner: Claim, tip: Stamp, expires: Mono) {
        if let Some(copy) = self.copy(key) {
            copy.heard = copy.heard.max(owner);
            return;
        }
        self.note_facade(cx, key, owner, tip, expires);
        self.table.entry(key).or_insert(Slot::Facade(Facade { claim: owner, tip, expires, over: None }));
    }

    /// This node no longer owns the session; its copy stays until somebody who owns it says that it can go.
    pub(crate) fn step_down(&mut self, cx: &mut Cx<'_>, key: SessionKey, to: Claim) {
        let Some((copy, view)) = self.own(key) else { return };
        let Some(mut own) = copy.own.take() else { return };
        cx.out.gone(own.live.clone());
        orphan(cx, key, view, &mut copy.orphans, &mut own, &copy.record);
        // The claimant too: its claim may come to nothing.
        copy.note_former(own.holders.iter().map(|h| h.life).chain([to.life]));
        cx.shared.owned.fetch_sub(1, Ordering::Relaxed);
        // Whoever waits for an answer of this ownership should not wait for its bound.
        let closing = own.closing.filter(|closing| closing.claim != to).map(|closing| (closing.claim.life, closing.claim));
        for (life, claim) in own.stay.iter().copied().chain(closing) {
            if let Some(link) = view.link(life) {
                link.send(&Message::Refused { key, claim, promised: to }, None, cx.out);
            }
        }
        let due = cx.now + cx.config.lookup_bound * 2;
        self.set_timer(due, key, Timer::Heir);
        self.set_timer(cx.now + cx.config.lookup_bound * 2 + HEIR_STEP * 10, key, Timer::Heir);
        self.invited.remove(&key);
        self.repairing.remove(&key);
        cx.out.event(key, Event::Left { to });
        for ticket in own.waiting {
            cx.settle(ticket, crate::output::Outcome::Again);
        }
        if self.copy(key).is_some_and(|c| c.record.tip.version == 0) {
            self.release(cx, key);
        }
    }
}
