//! The claim round: the one way to own a session that exists.
//!
//! A node that wants a session asks the last known owner, then the placement list, then, if that does not do, every member
//! and the store. Whoever promises the claim refuses older ones from then on. When all have answered, are gone, or let the
//! bound pass, the claimant combines the copies with its own *as of that moment* and owns the session.

use crate::copy::{Copy, Facade, jitter};
use crate::cx::{Cx, Timer};
use crate::id::SessionKey;
use crate::limits::{BACK_OFF, NOT_FOUND_KEEP, PROMISES_MAX, ROUND_TRIES, ROUNDS_MAX, WAITING_MAX};
use crate::lineage::Lineage;
use crate::merge::{combine, maximal};
use crate::output::{Brought, Event, Guest, Live, Loaded, Outcome, Ticket, Unavailable};
use crate::owner::{Owner, orphan};
use crate::peers::Given;
use crate::pending::{Answer, Phase, Reply, Round, StoreReply, UnderWay};
use crate::plant::Bug;
use crate::record::{Base, Change, LOST, Record, WireRecord};
use crate::session::{Session, State, promised};
use crate::stamp::{Claim, Life, Stamp};
use crate::time::Mono;
use crate::view::Lives;
use crate::wire::{EndKind, Held, Message, Why};
use bytes::Bytes;
use core::time::Duration;
use smallvec::SmallVec;
use std::sync::Arc;

impl<L: Live> Session<L> {
    /// Starts a round for this session, or joins the one that runs.
    pub(crate) fn request_round(
        &mut self,
        cx: &mut Cx<'_>,
        why: Why,
        token: Option<Brought>,
        ticket: Option<Ticket>,
    ) -> Result<(), Unavailable> {
        self.request_session(cx, why, token, ticket, false)
    }

    /// Like [`request_round`](Session::request_round); a session that nobody has begins here if somebody `creates` it.
    pub(crate) fn request_session(
        &mut self,
        cx: &mut Cx<'_>,
        why: Why,
        token: Option<Brought>,
        ticket: Option<Ticket>,
        creates: bool,
    ) -> Result<(), Unavailable> {
        let token = token.filter(|t| t.stamp.version > 0);
        if let Some(round) = self.round_mut() {
            if ticket.is_some() && round.tickets.len() >= WAITING_MAX {
                return Err(cx.busy());
            }
            round.tickets.extend(ticket);
            round.note_token(token);
            round.creates |= creates;
            return Ok(());
        }
        if cx.queues.rounds.len() >= cx.config.of_shard(ROUNDS_MAX) {
            return Err(cx.busy());
        }
        let mut round = Round::new(why, cx.now, cx.view.doubt);
        round.creates = creates;
        round.tickets.extend(ticket);
        round.note_token(token);
        let wait = self.promised_to_another(cx);
        self.begin_round(cx, round);
        match wait {
            Some(due) => self.back_off_until(cx, due),
            None => self.launch(cx),
        }
        Ok(())
    }

    /// If this node has just promised the session to somebody who is about to own it: until when to give them a chance.
    fn promised_to_another(&self, cx: &Cx<'_>) -> Option<Mono> {
        let (me, bound) = (cx.view.me, cx.config.lookup_bound);
        let State::Held(copy) = &self.state else { return None };
        let until = copy.promised_at + bound;
        let pending = copy.promised > copy.accepted && copy.promised.life != me && cx.now < until;
        (pending && !cx.view.is_away(copy.promised.life)).then_some(until)
    }

    /// Somebody's claim is known to hold: whoever waited for that goes on.
    pub(crate) fn kick(&mut self, cx: &mut Cx<'_>) {
        if self.round().is_some_and(|r| r.phase == Phase::BackOff && r.tries == 0) {
            self.launch(cx);
        }
    }

    fn back_off_until(&mut self, cx: &mut Cx<'_>, due: Mono) {
        if let Some(round) = self.round_mut() {
            (round.phase, round.due) = (Phase::BackOff, due);
            cx.set_timer(due, Timer::Round);
        }
    }

    /// Draws a claim, promises it to itself, and asks.
    fn launch(&mut self, cx: &mut Cx<'_>) {
        let view = cx.view;
        let promised = self.promised(cx);
        let (mut heard, mut tip) = (promised.max(self.highest(cx)), None);
        let mut owner = Claim::NONE;
        match &self.state {
            State::Held(copy) | State::Owned(copy, _) => {
                owner = copy.heard;
                tip = (copy.record.tip.version > 0).then_some(copy.record.tip);
            }
            State::Facade(f) => owner = f.claim,
            State::Nothing | State::Ended(_) => {}
        }
        let snapshot = cx.planted(Bug::SnapshotAtLookupStart).then(|| self.copy().map(|c| Box::new(c.record.clone()))).flatten();
        let Some(round) = self.round_mut() else { return };
        for token in &round.tokens {
            heard = heard.max(token.claim);
            if owner == Claim::NONE {
                owner = token.claim;
            }
        }
        owner = owner.max(round.heard);
        heard = heard.max(owner);
        round.claim = Claim { epoch: heard.epoch.saturating_add(1), life: view.me };
        round.before = promised;
        round.doubt = view.doubt;
        round.snapshot = snapshot;
        round.asked.clear();
        round.haves.clear();
        round.answers.clear();
        round.branches.clear();
        round.told.clear();
        round.outlived.clear();
        round.accepted = Claim::NONE;
        round.reread = false;
        (round.row, round.store, round.stay) = (None, StoreReply::NotAsked, None);
        let claim = round.claim;
        self.promise(cx, claim);
        let ask_owner = owner.life != view.me && view.link(owner.life).is_some() && !view.is_away(owner.life);
        if view.stores && cx.config.store {
            self.load_for_round(cx);
        }
        if ask_owner && !cx.planted(Bug::OwnerNotAsked) {
            self.enter(Phase::Owner);
            self.ask(cx, owner.life, tip);
        } else {
            self.enter(Phase::List);
            self.ask_list(cx);
        }
        self.progress(cx);
    }

    fn enter(&mut self, phase: Phase) {
        if let Some(round) = self.round_mut() {
            round.phase = phase;
        }
    }

    fn load_for_round(&mut self, cx: &mut Cx<'_>) {
        if let Some(round) = self.round_mut()
            && round.store == StoreReply::NotAsked
        {
            round.store = StoreReply::Waiting;
            self.load(cx);
        }
    }

    fn ask_list(&mut self, cx: &mut Cx<'_>) {
        let view = cx.view;
        let mut list = if cx.planted(Bug::PresentListOnly) { view.list(cx.key) } else { view.asked(cx.key) };
        list.retain(|l| *l != view.me);
        self.ask_all(cx, &list);
    }

    fn ask_all(&mut self, cx: &mut Cx<'_>, lives: &[Life]) {
        let tip = self.copy().map(|c| c.record.tip).filter(|t| t.version > 0);
        for life in lives {
            self.ask(cx, *life, tip);
        }
    }

    fn ask(&mut self, cx: &mut Cx<'_>, life: Life, have: Option<Stamp>) {
        let view = cx.view;
        let Some(round) = self.round_mut() else { return };
        if round.asked.iter().any(|(l, _)| *l == life) {
            return;
        }
        if view.is_away(life) {
            round.asked.push((life, Reply::Silent));
            return;
        }
        let due = cx.now + view.bound(life, cx.now, cx.config.lookup_bound);
        round.asked.push((life, Reply::Due { asked: cx.now, due }));
        round.haves.extend(have.map(|tip| (life, tip)));
        if let Some(link) = view.link(life) {
            link.send(&Message::Ask { key: cx.key, claim: round.claim, why: round.why, have }, None, cx.out);
        }
        cx.set_timer(due, Timer::Round);
    }

    /// A round's timer fired: silence counts as an answer, or the pause is over.
    pub(crate) fn round_due(&mut self, cx: &mut Cx<'_>) {
        let view = cx.view;
        let Some(round) = self.round_mut() else { return };
        if round.phase == Phase::BackOff {
            if cx.now >= round.due {
                self.launch(cx);
            }
            return;
        }
        for (life, reply) in &mut round.asked {
            if let Reply::Due { asked, due } = *reply
                && cx.now >= due
            {
                *reply = Reply::Silent;
                if let Some(link) = view.link(*life) {
                    link.missed(cx.key, round.claim, asked, due.since(asked), cx.config.lookup_bound);
                }
            }
        }
        self.progress(cx);
    }

    /// The membership changed: nobody waits for a member that is gone.
    pub(crate) fn round_after_change(&mut self, cx: &mut Cx<'_>) {
        let Some(round) = self.round_mut() else { return };
        for (life, reply) in &mut round.asked {
            if matches!(reply, Reply::Due { .. }) && cx.view.is_away(*life) {
                *reply = Reply::Silent;
            }
        }
        self.progress(cx);
    }

    /// Goes on as far as the answers allow.
    fn progress(&mut self, cx: &mut Cx<'_>) {
        loop {
            let Some(round) = self.round_mut() else { return };
            if round.stay.is_some() && round.store != StoreReply::Waiting {
                self.become_guest(cx);
                return;
            }
            let waits = round.asked.iter().any(|(_, r)| matches!(r, Reply::Due { .. })) || round.store == StoreReply::Waiting;
            if round.phase == Phase::BackOff || waits {
                return;
            }
            if round.phase == Phase::Owner {
                round.phase = Phase::List;
                self.ask_list(cx);
            } else if !self.ask_owners(cx) && !self.finish(cx) {
                return;
            }
        }
    }

    /// Asks the owners that answers name and that were not asked yet; whether there was one.
    fn ask_owners(&mut self, cx: &mut Cx<'_>) -> bool {
        let view = cx.view;
        let Some(round) = self.round() else { return false };
        if cx.planted(Bug::OwnerNotAsked) {
            return false;
        }
        let named = round.answers.iter().map(|a| a.accepted).chain([round.heard]).map(|c| c.life);
        let fresh: Lives =
            named.filter(|l| *l != view.me && !view.is_away(*l) && !round.asked.iter().any(|(asked, _)| asked == l)).collect();
        self.ask_all(cx, &fresh);
        !fresh.is_empty()
    }

    pub(crate) fn handle_busy(&mut self, cx: &mut Cx<'_>, from: Life, claim: Claim, ms: u32) {
        // From when the answer is to be expected.
        let asked = cx.now + Duration::from_millis(u64::from(ms.min(10_000)));
        let due = asked + cx.view.bound(from, asked, cx.config.lookup_bound);
        if let Some(round) = self.round_mut().filter(|r| r.claim == claim)
            && let Some((_, reply)) = round.asked.iter_mut().find(|(l, _)| *l == from)
            && matches!(reply, Reply::Due { .. })
        {
            *reply = Reply::Due { asked, due };
            cx.set_timer(due, Timer::Round);
        }
    }

    /// An answer came: over a slow link the next one is waited for longer.
    fn note_pace(&self, cx: &Cx<'_>, from: Life, claim: Claim) {
        let Some(link) = cx.view.link(from) else { return };
        let round = self.round().filter(|r| r.claim == claim);
        match round.and_then(|r| r.asked.iter().find(|(life, _)| *life == from)) {
            Some((_, Reply::Due { asked, .. })) => link.answered(*asked, cx.now, cx.config.lookup_bound),
            Some((_, Reply::Answered)) => {}
            _ => link.answered_late(cx.key, claim, cx.now),
        }
    }

    pub(crate) fn handle_answer(
        &mut self,
        cx: &mut Cx<'_>,
        from: Life,
        claim: Claim,
        accepted: Claim,
        moves: u8,
        held: &Held<'_>,
    ) -> Option<()> {
        let tip = self.copy().map(|c| c.record.tip);
        let now = cx.now;
        self.note_pace(cx, from, claim);
        let Some(round) = self.round_mut().filter(|r| r.claim == claim) else {
            return self.answered_late(cx, from, claim, accepted, held);
        };
        let (_, reply) = round.asked.iter_mut().find(|(l, _)| *l == from)?;
        *reply = Reply::Answered;
        (round.heard, round.accepted) = (round.heard.max(accepted), round.accepted.max(accepted));
        round.moves = round.moves.max(moves);
        match held {
            Held::Nothing => {}
            Held::Same => {
                // The same as when it was asked: this copy may have got further since.
                let have = round.haves.iter().rev().find(|(l, _)| *l == from).map(|(_, tip)| *tip).or(tip);
                round.answers.extend(have.map(|tip| Answer { life: from, tip, accepted, record: None }));
            }
            Held::Copy { record, branch, stored } => {
                let record = Record::from_wire(record, now).ok()?;
                if let Some(branch) = branch {
                    round.branches.push(Record::from_wire(branch, now).ok()?);
                }
                round.stored = round.stored.max(*stored);
                round.answers.push(Answer { life: from, tip: record.tip, accepted, record: Some(record) });
            }
            Held::Ended(kind, next) => round.note_end(*kind, *next),
            Held::Told(stamp) => round.told.push(*stamp),
            Held::Expired(lineage) => round.outlived.push((accepted, lineage.into())),
        }
        self.progress(cx);
        Some(())
    }

    /// An answer that came after the bound, when the claim held already: what it says about copies and owners still counts.
    fn answered_late(&mut self, cx: &mut Cx<'_>, from: Life, claim: Claim, accepted: Claim, held: &Held<'_>) -> Option<()> {
        let me = cx.view.me;
        if !self.owns_by(claim) {
            return Some(());
        }
        if accepted.life != me && accepted.life != from && accepted != Claim::NONE {
            self.inform(cx, accepted.life);
        }
        match held {
            Held::Nothing | Held::Told(_) | Held::Expired(_) => {}
            Held::Same => self.track(cx, from),
            Held::Copy { record, branch, .. } => {
                for wire in core::iter::once(record).chain(branch) {
                    let theirs = Record::from_wire(wire, cx.now).ok()?;
                    if self.copy().is_some_and(|c| !c.record.lineage.covers(&theirs.lineage)) {
                        self.handle_diverged(cx, from, Some(claim), wire)?;
                    }
                }
                self.track(cx, from);
            }
            Held::Ended(kind, next) => self.learn_end(cx, *kind, *next, Some(from)),
        }
        Some(())
    }

    /// The owner stays: whoever waits here becomes its guest.
    pub(crate) fn handle_stay(&mut self, cx: &mut Cx<'_>, from: Life, claim: Claim, owner: Claim, wire: &WireRecord<'_>) -> Option<()> {
        let record = Record::from_wire(wire, cx.now).ok().filter(|_| owner.life == from)?;
        self.note_pace(cx, from, claim);
        let told = self.state.copy().map_or(&[][..], |c| &c.told);
        let Some(round) = round_of(&mut self.under_way).filter(|r| r.claim == claim) else {
            if self.owns_by(claim) {
                // It was silent for too long, and no longer owns the session.
                self.inform(cx, from);
            }
            return Some(());
        };
        let included = round.tokens.iter().chain(told).all(|s| record.satisfies(*s));
        round.stay = Some((owner, record));
        if !included && cx.config.store {
            // Its owner may have missed a commit that reached nobody but the store.
            self.load_for_round(cx);
        }
        self.progress(cx);
        Some(())
    }

    /// Whoever waits for this round becomes a guest of the owner that stays.
    fn become_guest(&mut self, cx: &mut Cx<'_>) -> Option<()> {
        let round = *self.take_round(cx)?;
        let (owner, record) = round.stay?;
        if round.phase == Phase::Owner {
            self.withdraw(cx, round.claim, round.before);
        }
        self.note_owner(cx, owner, record.tip, record.expires());
        let told = self.copy().map_or(&[][..], |c| &c.told);
        let included = round.tokens.iter().chain(told).all(|s| record.satisfies(*s));
        for ticket in round.tickets {
            let outcome = match included {
                true => Outcome::Guest(Box::new(Guest { owner: owner.life, record: record.clone() })),
                false => Outcome::Unavailable(Unavailable::Stale, Duration::from_secs(1)),
            };
            cx.settle(ticket, outcome);
        }
        if !included && let Some(link) = cx.view.link(owner.life) {
            let mine = self.copy().map(|c| &c.record);
            for offered in mine.into_iter().chain(&round.row).filter(|r| !record.lineage.covers(&r.lineage)) {
                link.send(&Message::Kept { key: cx.key, record: offered.to_wire(cx.now) }, None, cx.out);
            }
        }
        self.drive_parked(cx, false);
        Some(())
    }

    /// Whether a round here with this claim has asked nobody but this owner.
    pub(crate) fn asks_owner_alone(&self, claim: Claim, owner: Life) -> bool {
        let round = self.round().filter(|r| r.claim == claim && r.phase == Phase::Owner);
        round.is_some_and(|r| r.asked.iter().any(|(life, _)| *life == owner))
    }

    /// A peer had promised a greater claim.
    pub(crate) fn round_refused(&mut self, cx: &mut Cx<'_>, claim: Claim, promised: Claim) -> bool {
        let Some(round) = self.round_mut().filter(|r| r.claim == claim) else { return false };
        round.heard = round.heard.max(promised);
        if let Some(copy) = self.copy_mut() {
            // The next round, if this one is given up, starts above it.
            copy.highest = copy.highest.max(promised);
        }
        self.again_later(cx);
        true
    }

    /// Pauses by rank and tries again, or gives up.
    fn again_later(&mut self, cx: &mut Cx<'_>) {
        let rank = cx.view.my_rank(cx.key);
        let random = cx.random();
        let Some(round) = self.round_mut() else { return };
        round.tries += 1;
        if round.tries > ROUND_TRIES || round.tickets.is_empty() && round.why != Why::Doubt {
            return self.give_up(cx, Unavailable::Contended, Duration::from_secs(1));
        }
        let step = BACK_OFF * (1 + rank) * (1 << round.tries.min(6));
        let due = cx.now + step + jitter(random, step);
        self.back_off_until(cx, due);
    }

    fn give_up(&mut self, cx: &mut Cx<'_>, why: Unavailable, after: Duration) {
        if let Some(round) = self.take_round(cx) {
            // A claim that is given up must not make this node refuse the owner.
            self.withdraw(cx, round.claim, round.before);
            if round.why == Why::Doubt {
                cx.set_timer(cx.now + Duration::from_secs(1), Timer::Heir);
            }
            for ticket in round.tickets {
                cx.settle(ticket, Outcome::Unavailable(why, after));
            }
            self.drive_parked(cx, false);
        }
    }

    /// The session has ended: whoever waits hears it.
    pub(crate) fn round_ended(&mut self, cx: &mut Cx<'_>, kind: EndKind) {
        if let Some(round) = self.take_round(cx) {
            for ticket in round.tickets {
                cx.settle(ticket, Outcome::Ended(kind, Duration::ZERO));
            }
        }
    }

    /// The store answered a round; whether there was one that had asked.
    pub(crate) fn round_loaded(&mut self, cx: &mut Cx<'_>, loaded: &Loaded) -> bool {
        let now = cx.now;
        let Some(round) = self.round_mut().filter(|r| r.store == StoreReply::Waiting) else { return false };
        round.store = StoreReply::Answered;
        match loaded {
            Loaded::Missing => {}
            Loaded::Ended(kind, next) => round.note_end(*kind, *next),
            Loaded::Here { record, age, touched } => match Record::from_bytes(record, now, *age, *touched) {
                Ok(record) => {
                    round.heard = round.heard.max(record.tip.claim);
                    round.stored = Some(record.tip);
                    round.row = Some(record);
                }
                Err(_) => round.store = StoreReply::Failed,
            },
            Loaded::Failed => round.store = StoreReply::Failed,
        }
        self.progress(cx);
        true
    }

    /// Everybody has answered who will. Whether the round goes on to ask more.
    fn finish(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some(round) = round_of(&mut self.under_way) else { return false };
        match judge(cx, &self.state, round) {
            Verdict::Ended(kind, next) => self.learn_end(cx, kind, next, None),
            Verdict::Later => self.again_later(cx),
            Verdict::Wide => {
                round.phase = Phase::Wide;
                if cx.config.store {
                    self.load_for_round(cx);
                }
                let all: Lives = cx.view.others().map(|p| p.life).collect();
                self.ask_all(cx, &all);
                return true;
            }
            Verdict::Reread => {
                (round.reread, round.row, round.store) = (true, None, StoreReply::NotAsked);
                self.load_for_round(cx);
                return true;
            }
            Verdict::Own(record, merged, lost) => self.install(cx, record, merged, lost),
            Verdict::Stale(record, merged) => self.install_stale(cx, record, merged),
            Verdict::Unknown => self.give_up(cx, Unavailable::Stale, Duration::from_secs(1)),
            Verdict::NotFound { .. } if round.creates => self.begin(cx),
            Verdict::NotFound { expired } => self.not_found(cx, expired),
        }
        false
    }

    /// Nobody has it: it has `expired`, or there never was one, or it went with those who had it.
    fn not_found(&mut self, cx: &mut Cx<'_>, expired: bool) {
        let Some(round) = self.take_round(cx) else { return };
        if self.copy().is_some() {
            self.expire(cx);
        }
        if !matches!(&self.state, State::Facade(f) if f.over.is_some()) {
            self.state = State::Nothing;
        }
        cx.queues.not_found.note(cx.key, cx.now, NOT_FOUND_KEEP, cx.config.of_shard(PROMISES_MAX), |()| {});
        for ticket in round.tickets {
            cx.settle(ticket, Outcome::NotFound);
        }
        self.end_parked(cx, expired);
    }

    /// Nobody has it, and everybody has promised this node's claim: it begins, here alone. Of one of that name that has expired nothing
    /// comes back, wherever there is a copy that nobody has dropped yet: all that it was is included.
    fn begin(&mut self, cx: &mut Cx<'_>) {
        if self.copy().is_some() {
            self.expire(cx);
        }
        let mut record = Record::new(cx.now, cx.config.limits);
        if let State::Facade(Facade { over: Some(lineage), .. }) = &self.state {
            record.lineage.union(lineage);
        }
        for (_, lineage) in self.round().iter().flat_map(|round| &round.outlived) {
            record.lineage.union(lineage);
        }
        cx.out.event(cx.key, Event::Created);
        self.install(cx, record, None, Vec::new());
    }

    /// An owner that doubted itself still owns the session, and cannot serve it to those who know of more. Given up, its promises
    /// to the new claim would stand against the old one.
    fn install_stale(&mut self, cx: &mut Cx<'_>, record: Record, merged: Option<Vec<Arc<str>>>) {
        let Some(round) = self.round_mut() else { return };
        for ticket in core::mem::take(&mut round.tickets) {
            cx.settle(ticket, Outcome::Unavailable(Unavailable::Stale, Duration::from_secs(1)));
        }
        self.install(cx, record, merged, Vec::new());
    }

    /// The claim holds: this node owns the session.
    fn install(&mut self, cx: &mut Cx<'_>, record: Record, merged: Option<Vec<Arc<str>>>, lost: Vec<Stamp>) {
        let view = cx.view;
        let Some(round) = self.take_round(cx) else { return };
        let round = *round;
        let claim = round.claim;
        let before = self.last_owner();
        let (mut copy, mut prior) = match self.release(cx) {
            Some(held) => held,
            None => (Copy::new(Record::new(cx.now, cx.config.limits), Claim::NONE, view.leaving), None),
        };
        let changed = copy.record.tip != record.tip || merged.is_some() || !lost.is_empty();
        let source = round.source(copy.record.tip, record.tip, merged.is_some());
        if let Some(own) = &mut prior {
            orphan(cx, &mut copy.orphans, own, &copy.record);
            if let Some((closing, link)) = own.closing.and_then(|c| Some((c.claim, view.link(c.claim.life)?))) {
                link.send(&Message::Refused { key: cx.key, claim: closing, promised: claim }, None, cx.out);
            }
        }
        copy.stored = copy.stored.max(round.stored);
        copy.record = record;
        copy.branch = None;
        if !copy.record.gaps.is_empty() {
            let found: Vec<Stamp> = copy.record.gaps.iter().copied().filter(|s| copy.record.lineage.includes(*s)).collect();
            for stamp in found {
                copy.record.gaps.retain(|g| *g != stamp);
                cx.out.event(cx.key, Event::FoundAgain { stamp });
            }
        }
        copy.accept(round.claim, cx.now);
        if round.moves > 0 {
            (copy.moves, copy.moved) = (round.moves, cx.now);
        }
        if !lost.is_empty() && cx.config.on_lost == crate::config::OnLost::New {
            // Before the live session is made of it, or the application would see what is left as if it were current.
            copy.record.replace(Vec::new());
        }
        let adopted = copy.record.tip;
        let commits = commits_of(&lost, &copy.record);
        if merged.is_some() || !lost.is_empty() {
            for stamp in &lost {
                copy.record.note_gap(*stamp);
            }
            // Before the live session is made of it, too, or it would not be in there.
            let told = Change { name: LOST.into(), base: Base::Absent, value: Some(Bytes::copy_from_slice(&commits.to_be_bytes())) };
            copy.record.commit(round.claim.at(1), if lost.is_empty() { &[] } else { core::slice::from_ref(&told) });
        }
        let mut own = match &mut prior {
            Some(p) => {
                let mut own = Owner::new(round.claim, p.tenure, p.live.clone(), round.doubt, cx.now);
                (own.running, own.external) = (p.running, p.external + u32::from(changed));
                own.offered = p.offered;
                own
            }
            None => Owner::new(round.claim, cx.tenure(), Arc::new(L::of(&copy.record)), round.doubt, cx.now),
        };
        own.told_store = match (&round.row, &prior) {
            (Some(row), _) if copy.stored == Some(row.tip) => row.used,
            (_, Some(p)) => p.told_store,
            _ => own.told_store,
        };
        own.inherited = true;
        if copy.record.tip.version == 0 {
            // There is nothing yet that anybody could have a copy of.
            own.durable = Some(0);
        }
        own.offered |= round.why == Why::Invited && before.and_then(|life| view.peer(life)).is_some_and(|p| !p.leaving);
        own.adopted = adopted;
        // What others wait for from a former ownership is owed by this one; of what they were sent nothing counts.
        copy.peers.begin_ownership(view.me);
        if merged.is_some() || !lost.is_empty() {
            own.version = 1;
        }
        for answer in &round.answers {
            // What answered with exactly this state has promised the claim as well: that is an acknowledgement of it.
            let same = answer.tip == adopted && own.version == 0;
            copy.peers.holder(answer.life, Given::Unknown).acked = same.then_some(0);
        }
        own.place(view, cx.key, &mut copy.peers, Given::Nothing);
        copy.settle_told();
        if prior.is_none() {
            cx.out.event(cx.key, Event::Moved { from: before.filter(|l| *l != view.me), source, claim: round.claim });
        }
        self.hold(cx, copy, Some(own));
        if let Some(copy) = self.copy_mut() {
            copy.settle_told();
        }
        if let Some(discarded) = merged {
            cx.out.event(cx.key, Event::Conflict { discarded });
        }
        if !lost.is_empty() {
            cx.out.event(cx.key, Event::Lost { stamps: lost, commits });
        }
        let silent = round.asked.iter().filter(|(_, r)| *r == Reply::Silent).map(|(l, _)| *l);
        // And whoever this node knows, or has promised, as an owner.
        let silent: Lives = silent.chain(before).chain([round.heard.life, round.before.life]).collect();
        self.after_install(cx, &round.answers.iter().map(|a| a.life).collect::<Lives>(), &silent);
        if !round.tickets.is_empty() {
            // Whoever waits for it uses it, at the last moment perhaps.
            self.note_use(cx);
        }
        for ticket in round.tickets.into_iter().chain(prior.into_iter().flat_map(|p| p.waiting)) {
            cx.settle(ticket, Outcome::Again);
        }
        self.drive_parked(cx, false);
    }

    /// Whoever may think otherwise learns who owns it.
    fn after_install(&mut self, cx: &mut Cx<'_>, answered: &[Life], silent: &[Life]) {
        if self.copy().is_some_and(|copy| copy.record.tip.version > 0) {
            cx.queues.repairing.insert(cx.key);
        }
        for life in silent {
            if !answered.contains(life) {
                self.inform(cx, *life);
            }
        }
        self.mark_dirty(cx);
        self.advance(cx);
        self.invite(cx);
    }

    fn last_owner(&self) -> Option<Life> {
        match &self.state {
            State::Held(c) | State::Owned(c, _) => Some(c.accepted.life).filter(|_| c.accepted != Claim::NONE),
            State::Facade(f) => Some(f.claim.life),
            State::Nothing | State::Ended(_) => None,
        }
    }

    /// A copy that somebody offers while a round runs counts like an answer. If none runs it comes back.
    pub(crate) fn round_offered(&mut self, record: Record) -> Option<Record> {
        match self.round_mut() {
            Some(round) => {
                round.branches.push(record);
                None
            }
            None => Some(record),
        }
    }
}

fn round_of(under_way: &mut Option<Box<UnderWay>>) -> Option<&mut Round> {
    under_way.as_mut()?.round.as_deref_mut()
}

/// What becomes of a round when everybody has answered who will.
enum Verdict {
    Ended(EndKind, Option<SessionKey>),
    /// Somebody else is about to own it: once more, after a pause.
    Later,
    /// What there is does not do: everybody is asked.
    Wide,
    /// Before anything is called lost, the row is read again.
    Reread,
    /// This is the session, with what a merge has discarded, if it is one, and without these commits.
    Own(Record, Option<Vec<Arc<str>>>, Vec<Stamp>),
    /// This is all that this node, which owned it, has; others know of more.
    Stale(Record, Option<Vec<Arc<str>>>),
    /// Who may have it, or more of it, is silent.
    Unknown,
    /// Nobody has it: it has `expired`, or not.
    NotFound {
        expired: bool,
    },
}

/// Combines what the answers say with what is here.
fn judge<L>(cx: &Cx<'_>, state: &State<L>, round: &Round) -> Verdict {
    let copy = state.copy();
    let (facade, expired) = match state {
        State::Facade(Facade { claim, over: Some(lineage), .. }) => (None, Some((*claim, &**lineage))),
        State::Facade(f) if f.tip.version > 0 && cx.now <= f.expires => (Some(f.tip), None),
        State::Nothing | State::Facade(_) | State::Ended(_) | State::Held(_) | State::Owned(..) => (None, None),
    };
    if let Some((kind, next)) = round.ended.filter(|_| !cx.planted(Bug::TombstoneYields)) {
        return Verdict::Ended(kind, next);
    }
    if promised(cx, copy) > round.claim && !cx.planted(Bug::NoPromise) {
        // Another claimant was promised meanwhile, by this node itself.
        return Verdict::Later;
    }
    // With its last owner it has expired: what is left of that is no more than a copy that nobody has dropped yet.
    let last = copy.map_or(round.accepted, |c| round.accepted.max(c.accepted));
    let outlived = round.outlived.iter().map(|(claim, lineage)| (*claim, lineage)).chain(expired).filter(|(claim, _)| *claim >= last);
    let outlived: SmallVec<[&Lineage; 1]> = outlived.map(|(_, lineage)| lineage).collect();
    let lives = |s: &Stamp| !outlived.iter().any(|o| o.includes(*s));
    let own_record = match &round.snapshot {
        Some(snapshot) => Some(&**snapshot),
        None => copy.map(|c| &c.record).filter(|r| r.tip.version > 0),
    };
    let answers = round.answers.iter().filter_map(|a| a.record.as_ref());
    let own_branch = copy.and_then(|c| c.branch.as_deref());
    let mut candidates: Vec<&Record> =
        own_record.into_iter().chain(own_branch).chain(answers).chain(&round.branches).chain(&round.row).collect();
    let found = candidates.len();
    // A client whose token has not run out was told that the session lives: then it is the copy that has not heard of its last use.
    candidates.retain(|r| lives(&r.tip) && cx.now <= if round.expired { r.over() } else { r.clock().end });
    let maximal = maximal(&candidates, cx.planted(Bug::CompareEpochFirst));
    let mut wanted: SmallVec<[Stamp; 4]> =
        round.tokens.iter().chain(&round.told).chain(copy.iter().flat_map(|c| &c.told)).copied().chain(facade).collect();
    wanted.retain(|s| lives(s));
    // What this node was told and still believes alive; a token says itself whether its session may have expired.
    let told = facade.is_some() || round.told.iter().any(lives) || copy.is_some_and(|c| c.told.iter().any(|s| !round.tokens.contains(s)));
    let mut combined = combine(&maximal, cx.config);
    if let Some((record, _)) = &mut combined {
        candidates.iter().for_each(|other| record.note_use_of(other));
        // What nodes have counted is trusted more than the store's clock, which may be wrong by days.
        let of_row = |r: &Record| round.row.as_ref().is_some_and(|row| core::ptr::eq(row, r));
        let first = record.is_first();
        record.created = candidates.iter().filter(|r| !of_row(r)).map(|r| r.created).min().unwrap_or(record.created);
        record.used = if first { record.created } else { record.used };
    }
    let satisfied = |r: &Record| wanted.iter().all(|s| r.satisfies(*s)) || cx.planted(Bug::IgnoreToken);
    let enough = combined.as_ref().is_some_and(|(r, _)| satisfied(r));
    let merged = |discarded| (maximal.len() > 1).then_some(discarded);
    if !enough && wanted.iter().any(|s| s.claim > round.claim) {
        // Told meanwhile of a commit under a later claim: whoever has it may have answered before.
        return Verdict::Later;
    }
    if !enough && round.phase != Phase::Wide {
        return Verdict::Wide;
    }
    match combined {
        Some((record, discarded)) if enough => Verdict::Own(record, merged(discarded), Vec::new()),
        combined if !answered_by_all(cx, round, &wanted) => {
            let owns = round.why == Why::Doubt && matches!(state, State::Owned(..));
            combined.filter(|_| owns).map_or(Verdict::Unknown, |(record, discarded)| Verdict::Stale(record, merged(discarded)))
        }
        None if round.tickets.is_empty() || round.expired && !told || !outlived.is_empty() && wanted.is_empty() => {
            let unheard = matches!(state, State::Facade(f) if f.tip.version > 0 && cx.now > f.expires);
            Verdict::NotFound { expired: found > 0 || !outlived.is_empty() || unheard }
        }
        // An owner that has left since may have written it after this round had read the row.
        _ if cx.config.store && !round.reread && !wanted.is_empty() => Verdict::Reread,
        combined => {
            let (record, merged) = match combined {
                Some((record, discarded)) => (record, merged(discarded)),
                None => (Record::new(cx.now, cx.config.limits), None),
            };
            let mut lost: Vec<Stamp> = wanted.to_vec();
            lost.retain(|s| !record.satisfies(*s));
            lost.sort_unstable();
            lost.dedup();
            Verdict::Own(record, merged, lost)
        }
    }
}

/// Whether "nobody has it" can be said: all live members and the store have answered, and nobody who may come back with it died a short
/// while ago.
fn answered_by_all(cx: &Cx<'_>, round: &Round, wanted: &[Stamp]) -> bool {
    if cx.planted(Bug::FreshOnTimeout) {
        return true;
    }
    let answered = |life: Life| round.asked.iter().any(|(l, r)| *l == life && *r == Reply::Answered);
    cx.view.formed
        && cx.view.others().all(|p| answered(p.life))
        && (!cx.config.store || round.store == StoreReply::Answered)
        && cx.view.nobody_may_return(wanted, cx.now, cx.config.lost_after)
}

/// How many commits these stand for, at least: of each claim the last one, and those before it that the record does not include either.
fn commits_of(lost: &[Stamp], record: &Record) -> u32 {
    let last = lost.iter().filter(|s| !lost.iter().any(|other| other.claim == s.claim && other.version > s.version));
    let each = |s: &Stamp| s.version.saturating_sub(record.lineage.of(s.claim).map_or(0, |mine| mine.version)).max(1);
    last.map(each).fold(0, u32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Limits};
    use crate::cx::{Call, Queues, Shared};
    use crate::output::Outputs;
    use crate::view::{Health, Peer, View};
    use rand::SeedableRng;
    use rand_pcg::Pcg32;

    const ME: Life = Life::new(1);
    const A: Life = Life::new(2);
    const B: Life = Life::new(3);
    /// Long after the start, when whoever died has been dead for long.
    const NOW: Mono = Mono::from_micros(3_600_000_000);
    const CLAIM: Claim = Claim { epoch: 9, life: ME };

    fn peer(life: Life) -> Peer {
        Peer { life, name: life.bits(), zone: 0, health: Health::Alive, leaving: false, observer: false, link: None, doubt: 0 }
    }

    fn record(names: &[(&str, Stamp)]) -> Record {
        let mut record = Record::new(NOW, Limits::default());
        for (name, stamp) in names {
            record.commit(*stamp, &[Change { name: (*name).into(), base: Base::Absent, value: Some(Bytes::from_static(b"1")) }]);
        }
        record
    }

    fn held(record: Record) -> State<()> {
        State::Held(Copy::new(record, Claim { epoch: 1, life: A }, false))
    }

    /// A round of this node, which A and B have answered, in its last phase.
    fn round(token: Option<Stamp>) -> Round {
        let mut round = Round::new(Why::Open, NOW, 0);
        (round.claim, round.phase) = (CLAIM, Phase::Wide);
        round.tickets.push(Ticket(1));
        round.note_token(token.map(|stamp| Brought { stamp, expired: false }));
        round.asked.extend([A, B].map(|life| (life, Reply::Answered)));
        round
    }

    fn answer(life: Life, record: Record) -> Answer {
        Answer { life, tip: record.tip, accepted: Claim { epoch: 1, life: A }, record: Some(record) }
    }

    /// What becomes of it among ME, A and B, with a store or without.
    fn verdict(state: &State<()>, round: &Round, store: bool) -> Verdict {
        let view = View { peers: [ME, A, B].map(peer).into(), ..View::alone(ME) };
        let config = Config { store, ..Config::default() }.check().unwrap();
        let (mut out, shared) = (Outputs::new(), Shared::default());
        let call = Call { now: NOW, config: &config, out: &mut out, shared: &shared };
        let mut queues = Queues::new(Pcg32::seed_from_u64(1));
        let key = SessionKey::from_bytes([7; 16]);
        let cx = Cx {
            now: call.now,
            config: call.config,
            out: call.out,
            shared: call.shared,
            key,
            view: &view,
            walked: &view,
            queues: &mut queues,
        };
        judge(&cx, state, round)
    }

    const A1: Stamp = Claim { epoch: 1, life: A }.at(1);
    const A2: Stamp = Claim { epoch: 1, life: A }.at(2);
    const B1: Stamp = Claim { epoch: 2, life: B }.at(1);

    #[test]
    fn the_copy_that_includes_the_others_is_the_session() {
        let mut round = round(Some(A2));
        round.answers.push(answer(B, record(&[("x", A1), ("y", A2)])));
        let Verdict::Own(record, None, lost) = verdict(&held(record(&[("x", A1)])), &round, false) else { panic!("it is there") };
        assert_eq!((record.tip, lost), (A2, vec![]));
    }

    #[test]
    fn rule_20_of_two_branches_neither_is_newer_and_both_are_kept() {
        let mut round = round(None);
        round.answers.push(answer(B, record(&[("x", A1), ("z", B1)])));
        let mine = record(&[("x", A1), ("y", A2)]);
        let Verdict::Own(record, Some(discarded), _) = verdict(&held(mine), &round, false) else { panic!("they are merged") };
        assert!(discarded.is_empty() && record.get("y").is_some() && record.get("z").is_some());
    }

    #[test]
    fn rule_1_a_claim_waits_if_another_was_promised_after_it() {
        let State::Held(mut copy) = held(record(&[("x", A1)])) else { panic!() };
        copy.promise(Claim { epoch: 10, life: B }, NOW);
        assert!(matches!(verdict(&State::Held(copy), &round(None), false), Verdict::Later));
    }

    #[test]
    fn rules_4_and_5_what_the_list_lacks_is_looked_for_everywhere_and_silence_is_no_answer() {
        let mut narrow = round(Some(A2));
        narrow.phase = Phase::List;
        assert!(matches!(verdict(&State::Nothing, &narrow, false), Verdict::Wide));
        let mut silent = round(Some(A2));
        silent.asked[1].1 = Reply::Silent;
        assert!(matches!(verdict(&State::Nothing, &silent, false), Verdict::Unknown));
    }

    #[test]
    fn rule_16_an_owner_that_doubts_itself_stays_the_owner_though_others_know_of_more() {
        let State::Held(copy) = held(record(&[("x", A1)])) else { panic!() };
        let own = Owner::new(Claim { epoch: 1, life: ME }, 1, Arc::new(()), 0, NOW);
        let mut doubt = round(Some(A2));
        doubt.why = Why::Doubt;
        doubt.asked[0].1 = Reply::Silent;
        let verdict = verdict(&State::Owned(copy, Box::new(own)), &doubt, false);
        assert!(matches!(verdict, Verdict::Stale(record, None) if record.tip == A1));
    }

    #[test]
    fn rule_5_what_a_token_names_and_nobody_has_is_lost_and_said_so_and_what_is_left_goes_on() {
        let mut round = round(Some(A2));
        round.answers.push(answer(A, record(&[("x", A1)])));
        let Verdict::Own(record, None, lost) = verdict(&State::Nothing, &round, false) else { panic!("it goes on") };
        assert_eq!((record.tip, lost), (A1, vec![A2]));
        let mut gap = record.clone();
        gap.note_gap(A2);
        round.answers = vec![answer(A, gap)];
        assert!(matches!(verdict(&State::Nothing, &round, false), Verdict::Own(_, None, lost) if lost.is_empty()), "once");
    }

    #[test]
    fn a_commit_under_a_claim_later_than_this_one_is_asked_for_again_and_not_called_lost() {
        let later = Claim { epoch: 10, life: B }.at(3);
        assert!(matches!(verdict(&State::Nothing, &round(Some(later)), false), Verdict::Later));
    }

    #[test]
    fn rule_5_before_anything_is_called_lost_the_row_is_read_again() {
        let mut round = round(Some(A2));
        round.store = StoreReply::Answered;
        assert!(matches!(verdict(&State::Nothing, &round, true), Verdict::Reread));
        round.reread = true;
        assert!(matches!(verdict(&State::Nothing, &round, true), Verdict::Own(_, None, lost) if lost == [A2]));
        round.store = StoreReply::Failed;
        assert!(matches!(verdict(&State::Nothing, &round, true), Verdict::Unknown), "a store that does not answer says nothing");
    }

    #[test]
    fn rule_18_an_end_that_anybody_knows_of_is_the_end() {
        let mut round = round(Some(A1));
        round.answers.push(answer(B, record(&[("x", A1)])));
        round.note_end(EndKind::Rotated, None);
        round.note_end(EndKind::Invalidated, None);
        assert!(matches!(verdict(&held(record(&[("x", A1)])), &round, false), Verdict::Ended(EndKind::Invalidated, None)));
    }

    #[test]
    fn rule_31_what_expired_with_its_last_owner_is_not_found_and_not_lost() {
        let over = record(&[("x", A1), ("y", A2)]);
        let mut round = round(Some(A2));
        round.outlived.push((Claim { epoch: 1, life: A }, over.lineage.clone()));
        round.answers.push(answer(B, record(&[("x", A1)])));
        assert!(matches!(verdict(&State::Nothing, &round, false), Verdict::NotFound { expired: true }));
    }

    #[test]
    fn a_session_that_nobody_knows_and_no_token_speaks_of_is_not_there() {
        assert!(matches!(verdict(&State::Nothing, &round(None), false), Verdict::NotFound { expired: false }));
    }
}
