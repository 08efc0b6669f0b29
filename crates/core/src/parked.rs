//! Commits of requests whose session moved away while they ran: sent to the owner, with the commits they started from.

use crate::config::Level;
use crate::cx::{Cx, Timer};
use crate::id::SessionKey;
use crate::late::{answer_late, late_done, outcome};
use crate::limits::NAME_MAX;
use crate::output::{Commit, Failure, Live, Outcome, Ticket};
use crate::pending::Parked;
use crate::plant::Bug;
use crate::record::Change;
use crate::shard::Shard;
use crate::slot::{Copy, Late, Slot};
use crate::stamp::{Claim, Life, Stamp};
use crate::wire::{EndKind, LateResult, LateSet, Message, Why};
use bytes::Bytes;
use core::time::Duration;

/// How long a late commit is tried.
const BOUND: Duration = Duration::from_secs(5);
/// How long before it is tried again.
const AGAIN: Duration = Duration::from_millis(50);

impl<L: Live> Shard<L> {
    /// Takes a commit for a session that another node owns.
    pub(crate) fn park(
        &mut self,
        cx: &mut Cx<'_>,
        key: SessionKey,
        read: Option<Stamp>,
        changes: &[Change],
        next: Option<SessionKey>,
    ) -> Ticket {
        let ticket = cx.ticket();
        let due = cx.now + BOUND;
        self.parked.entry(key).or_default().push(Parked {
            ticket,
            read: read.filter(|s| s.version > 0),
            changes: changes.to_vec(),
            next,
            due,
            sent: None,
            resent: false,
            denied: None,
        });
        self.set_timer(due, key, Timer::Parked);
        self.drive_parked(cx, key, true);
        ticket
    }

    /// Moves what is parked: into the session if it is owned here, to its owner, or, if it `may_ask`, to a round that finds one. Whoever
    /// calls this because a round has ended may not: the next one would begin at once, and so on.
    pub(crate) fn drive_parked(&mut self, cx: &mut Cx<'_>, key: SessionKey, may_ask: bool) {
        self.give_up_late(cx, key);
        let Some(mut list) = self.parked.remove(&key) else { return };
        if let Some(ended) = self.ended(key) {
            for p in list {
                // The owner did what it was asked for, and its answer is lost or on its way.
                let done = p.next.is_some() && p.next == ended.next && ended.kind == EndKind::Rotated;
                let (stamp, level) = (p.read.unwrap_or_default(), Level::Owner);
                cx.settle(p.ticket, if done { Outcome::Late { stamp, level } } else { Outcome::LateFailed(Failure::Ended) });
            }
            return;
        }
        list.retain(|p| {
            let expired = cx.now >= p.due;
            if expired {
                cx.settle(p.ticket, p.given_up(Failure::Unreached));
            }
            !expired
        });
        if list.is_empty() {
            return;
        }
        if self.is_rotating(cx, key) {
            // They come too late for the new id, unless nothing comes of that.
            self.parked.entry(key).or_default().extend(list);
            self.set_timer(cx.now + AGAIN, key, Timer::Parked);
            return;
        }
        if self.own(key).is_some() {
            for p in list {
                self.commit_parked(cx, key, &p);
            }
            return;
        }
        let asks = !self.send_parked(cx, key, &mut list) && may_ask && !self.rounds.contains_key(&key);
        if asks {
            list.iter_mut().for_each(|p| p.denied = None);
        }
        self.parked.entry(key).or_default().extend(list);
        self.set_timer(cx.now + AGAIN, key, Timer::Parked);
        if asks {
            // With nobody to ask it ends at once, and answers them.
            let _ = self.request_round(cx, key, Why::Open, None, None);
        }
    }

    /// Commits one as the owner. From then on it is a commit of this ownership like any other.
    fn commit_parked(&mut self, cx: &mut Cx<'_>, key: SessionKey, p: &Parked) {
        let late = Late { version: 0, from: self.view.me, id: p.ticket.0, due: p.due };
        let result = match p.next {
            Some(next) => Some(self.end_copied(cx, key, p.read, next)),
            None => self.commit_late_here(cx, key, p.read, &p.changes, late),
        };
        match result {
            // An owner that had it may have committed it: then it is its own first try that stands in the way.
            Some(LateResult::Conflict) if p.resent || p.sent.is_some() => {
                answer_late(cx, key, &self.view, &late, LateResult::Unknown);
            }
            Some(result) => answer_late(cx, key, &self.view, &late, result),
            None => {}
        }
    }

    /// A commit that did not come through the live session: it must read the record again. `None`: it is answered when it is durable.
    fn commit_late_here(
        &mut self,
        cx: &mut Cx<'_>,
        key: SessionKey,
        read: Option<Stamp>,
        changes: &[Change],
        late: Late,
    ) -> Option<LateResult> {
        // The request's answer includes what it has read: a state without that, lost or not, is no place for its commit.
        if read.is_some_and(|s| self.copy(key).is_some_and(|c| !c.record.lineage.includes(s))) {
            return Some(LateResult::Conflict);
        }
        let commit = self.commit_here(cx, key, changes);
        let Some(Copy { own, orphans, .. }) = self.copy(key) else { return Some(LateResult::NotOwner) };
        if let (Commit::Done { .. } | Commit::Wait { .. }, Some(own)) = (&commit, own.as_mut()) {
            own.external += 1;
        }
        match commit {
            Commit::Done { stamp, level, .. } => Some(late_done(stamp.unwrap_or_default(), level)),
            Commit::Wait { version, .. } => {
                let list = own.as_mut().map(|own| &mut own.late).or(orphans.last_mut().map(|o| &mut o.late));
                list?.push(Late { version, ..late });
                None
            }
            Commit::Late(_) | Commit::Conflict => Some(LateResult::Conflict),
            Commit::UnderReplicated => Some(LateResult::UnderReplicated),
            Commit::TooLarge(excess) => Some(LateResult::TooLarge(excess)),
            Commit::Ended => Some(LateResult::NotOwner),
        }
    }

    /// This node's own late commits that nobody has acknowledged within the bound.
    fn give_up_late(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let view = self.view.clone();
        let Some(Copy { own, orphans, .. }) = self.copy(key) else { return };
        for list in own.iter_mut().map(|own| &mut own.late).chain(orphans.iter_mut().map(|o| &mut o.late)) {
            list.retain(|late| {
                let over = late.from == view.me && cx.now >= late.due;
                if over {
                    answer_late(cx, key, &view, late, LateResult::Unknown);
                }
                !over
            });
        }
    }

    /// Nobody has the session any more. Unless it has `expired`, it went with those who had it, and nobody ended it.
    pub(crate) fn end_parked(&mut self, cx: &mut Cx<'_>, key: SessionKey, expired: bool) {
        for p in self.parked.remove(&key).into_iter().flatten() {
            // What it started from is gone.
            let outcome = if expired { Outcome::LateFailed(Failure::Ended) } else { p.given_up(Failure::Conflict) };
            cx.settle(p.ticket, outcome);
        }
    }

    /// The copy goes: nobody will hear what becomes of these.
    pub(crate) fn forget_late(&self, cx: &mut Cx<'_>, key: SessionKey, copy: &Copy<L>, result: LateResult) {
        for late in copy.late() {
            answer_late(cx, key, &self.view, late, result);
        }
    }

    /// Sends them to the owner, if one is known and reached.
    fn send_parked(&mut self, cx: &mut Cx<'_>, key: SessionKey, list: &mut [Parked]) -> bool {
        let owner = match self.table.get(&key) {
            Some(Slot::Held(c)) => c.heard,
            Some(Slot::Facade(f)) => f.claim,
            _ => Claim::NONE,
        };
        // Whoever denies it has not told yet who owns it, or nobody does.
        let denied = list.iter().any(|p| p.denied == Some(owner.life));
        let link = self.view.link(owner.life).filter(|_| owner.life != self.view.me && !self.view.is_away(owner.life) && !denied).cloned();
        let Some(link) = link else { return false };
        let to = Some((owner.life, link.id));
        for p in list.iter_mut().filter(|p| p.sent != to) {
            let sets =
                p.changes.iter().map(|c| LateSet { name: &c.name, base: c.base, value: c.value.as_deref().map(serde_bytes::Bytes::new) });
            link.send(&Message::Late { key, id: p.ticket.0, read: p.read, sets: sets.collect(), next: p.next }, None, cx.out);
            p.resent |= p.sent.is_some();
            p.sent = to;
        }
        true
    }

    /// A copy with this last commit goes on as `next`: if there is no later one the session ends here and now, so that there will be none.
    fn end_copied(&mut self, cx: &mut Cx<'_>, key: SessionKey, read: Option<Stamp>, next: SessionKey) -> LateResult {
        let doubted = self.doubts(cx, key);
        let Some((copy, _)) = self.own(key) else { return LateResult::NotOwner };
        let tip = copy.record.tip;
        if (doubted || read != Some(tip)) && !cx.planted(Bug::ChangedWhileRotating) {
            return LateResult::Conflict;
        }
        self.learn_end(cx, key, EndKind::Rotated, Some(next), None);
        late_done(tip, Level::Owner)
    }

    /// A peer's late commit.
    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(crate) fn handle_late(
        &mut self,
        cx: &mut Cx<'_>,
        from: Life,
        key: SessionKey,
        id: u64,
        read: Option<Stamp>,
        sets: &[LateSet<'_>],
        next: Option<SessionKey>,
    ) -> Option<()> {
        if sets.iter().any(|s| s.name.is_empty() || s.name.len() > NAME_MAX) {
            return None;
        }
        let changes: Vec<Change> =
            sets.iter().map(|s| Change { name: s.name.into(), base: s.base, value: s.value.map(|v| Bytes::copy_from_slice(v)) }).collect();
        let late = Late { version: 0, from, id, due: cx.now };
        if self.copy(key).is_some_and(|c| c.late().any(|l| l.from == from && l.id == id)) {
            // It came over another link before, and is answered when it is durable.
            return Some(());
        }
        if let Some(ended) = self.ended(key) {
            self.send_end(cx, key, &ended, from);
        }
        let result = if self.own(key).is_none() || self.is_rotating(cx, key) {
            // It is sent again in a moment, and finds out what has become of the session.
            Some(LateResult::NotOwner)
        } else if let Some(next) = next {
            Some(self.end_copied(cx, key, read, next))
        } else {
            self.commit_late_here(cx, key, read, &changes, late)
        };
        if let Some(result) = result {
            answer_late(cx, key, &self.view, &late, result);
        }
        Some(())
    }

    pub(crate) fn handle_late_done(&mut self, cx: &mut Cx<'_>, from: Life, key: SessionKey, id: u64, result: LateResult) {
        let Some(list) = self.parked.get_mut(&key) else { return };
        let Some(at) = list.iter().position(|p| p.ticket.0 == id && p.sent.is_some_and(|(life, _)| life == from)) else { return };
        let result = match result {
            LateResult::NotOwner => {
                if let Some(p) = list.get_mut(at) {
                    (p.sent, p.denied) = (None, Some(from));
                }
                return self.set_timer(cx.now + AGAIN, key, Timer::Parked);
            }
            // It may be its own first try that stands in the way.
            LateResult::Conflict if list.get(at).is_some_and(|p| p.resent) => LateResult::Unknown,
            LateResult::Done(..) | LateResult::Conflict | LateResult::Unknown => result,
            LateResult::UnderReplicated | LateResult::TooLarge(_) => result,
        };
        let ticket = list.remove(at).ticket;
        if list.is_empty() {
            self.parked.remove(&key);
        }
        cx.settle(ticket, outcome(result));
    }
}
