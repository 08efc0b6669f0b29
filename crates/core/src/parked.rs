//! Commits of requests whose session moved away while they ran: sent to the owner, with the commits they started from.

use crate::config::Level;
use crate::copy::Late;
use crate::cx::{Cx, Timer};
use crate::id::SessionKey;
use crate::late::{answer_late, late_done, outcome};
use crate::limits::NAME_MAX;
use crate::output::{Commit, Failure, Live, Outcome, Ticket};
use crate::owner::late;
use crate::pending::{Parked, UnderWay};
use crate::plant::Bug;
use crate::record::Change;
use crate::session::{Session, State};
use crate::stamp::{Claim, Life, Stamp};
use crate::wire::{EndKind, LateResult, LateSet, Message, Why};
use bytes::Bytes;
use core::time::Duration;

/// How long a late commit is tried.
const BOUND: Duration = Duration::from_secs(5);
/// How long before it is tried again.
const AGAIN: Duration = Duration::from_millis(50);

impl<L: Live> Session<L> {
    /// Takes a commit for a session that another node owns.
    pub(crate) fn park(&mut self, cx: &mut Cx<'_>, read: Option<Stamp>, changes: &[Change], next: Option<SessionKey>) -> Ticket {
        let ticket = cx.ticket();
        let due = cx.now + BOUND;
        self.under_way().parked.push(Parked {
            ticket,
            read: read.filter(|s| s.version > 0),
            changes: changes.to_vec(),
            next,
            due,
            sent: None,
            resent: false,
            denied: None,
        });
        cx.set_timer(due, Timer::Parked);
        self.drive_parked(cx, true);
        ticket
    }

    /// Moves what is parked: into the session if it is owned here, to its owner, or, if it `may_ask`, to a round that finds one. Whoever
    /// calls this because a round has ended may not: the next one would begin at once, and so on.
    pub(crate) fn drive_parked(&mut self, cx: &mut Cx<'_>, may_ask: bool) {
        self.give_up_late(cx);
        let mut list = self.take_parked();
        if list.is_empty() {
            return;
        }
        if let Some(ended) = self.ended() {
            for p in list {
                // The owner did what it was asked for, and its answer is lost or on its way.
                let done = p.next.is_some() && p.next == ended.next && ended.kind == EndKind::Rotated;
                let (stamp, level) = (p.read.unwrap_or_default(), Level::Owner);
                cx.settle(p.ticket, if done { Outcome::Late { stamp, level } } else { Outcome::LateFailed(Failure::Ended) });
            }
            return;
        }
        let view = cx.view;
        list.retain(|p| {
            let cut_off = p.sent.is_some_and(|(life, link)| view.link(life).is_none_or(|now| now.id != link));
            let over = cx.now >= p.due || p.is_once() && cut_off;
            if over {
                cx.settle(p.ticket, p.given_up(Failure::Unreached));
            }
            !over
        });
        if list.is_empty() {
            return;
        }
        if self.is_rotating(cx) {
            // They come too late for the new id, unless nothing comes of that.
            self.under_way().parked = list;
            return cx.set_timer(cx.now + AGAIN, Timer::Parked);
        }
        if self.owns() {
            for p in list {
                self.commit_parked(cx, &p);
            }
            return;
        }
        let asks = !self.send_parked(cx, &mut list) && may_ask && self.round().is_none();
        if asks {
            list.iter_mut().for_each(|p| p.denied = None);
        }
        self.under_way().parked = list;
        cx.set_timer(cx.now + AGAIN, Timer::Parked);
        if asks {
            // With nobody to ask it ends at once, and answers them.
            let _ = self.request_round(cx, Why::Open, None, None);
        }
    }

    fn take_parked(&mut self) -> Vec<Parked> {
        self.under_way.as_mut().map(|u| core::mem::take(&mut u.parked)).unwrap_or_default()
    }

    /// Commits one as the owner. From then on it is a commit of this ownership like any other.
    fn commit_parked(&mut self, cx: &mut Cx<'_>, p: &Parked) {
        let late = Late { version: 0, from: cx.view.me, id: p.ticket.0, due: p.due };
        let result = match p.next {
            None if p.is_once() && p.sent.is_some() => Some(LateResult::Unknown),
            Some(next) => Some(self.end_copied(cx, p.read, next)),
            None => self.commit_late_here(cx, p.read, &p.changes, late),
        };
        match result {
            // An owner that had it may have committed it, and then this is not its failure.
            Some(result) if p.resent || p.sent.is_some() => answer_late(cx, &late, result.of_second_try()),
            Some(result) => answer_late(cx, &late, result),
            None => {}
        }
    }

    /// A commit that did not come through the live session: it must read the record again. `None`: it is answered when it is durable.
    fn commit_late_here(&mut self, cx: &mut Cx<'_>, read: Option<Stamp>, changes: &[Change], late: Late) -> Option<LateResult> {
        // The request's answer includes what it has read: a state without that, lost or not, is no place for its commit.
        if read.is_some_and(|s| self.copy().is_some_and(|c| !c.record.lineage.includes(s))) {
            return Some(LateResult::Conflict);
        }
        let commit = self.commit_here(cx, changes);
        if let (Commit::Done { .. } | Commit::Wait { .. }, Some((own, _))) = (&commit, self.owned()) {
            own.external += 1;
        }
        match commit {
            Commit::Done { stamp, level, .. } => Some(late_done(stamp.unwrap_or_default(), level)),
            Commit::Wait { version, .. } => {
                let list = match &mut self.state {
                    State::Owned(_, own) => Some(&mut own.late),
                    State::Held(copy) => copy.orphans.last_mut().map(|orphan| &mut orphan.late),
                    State::Nothing | State::Facade(_) | State::Ended(_) => None,
                };
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
    fn give_up_late(&mut self, cx: &mut Cx<'_>) {
        let me = cx.view.me;
        let (own, copy) = match &mut self.state {
            State::Owned(copy, own) => (Some(own), copy),
            State::Held(copy) => (None, copy),
            State::Nothing | State::Facade(_) | State::Ended(_) => return,
        };
        for list in own.map(|own| &mut own.late).into_iter().chain(copy.orphans.iter_mut().map(|o| &mut o.late)) {
            list.retain(|late| {
                let over = late.from == me && cx.now >= late.due;
                if over {
                    answer_late(cx, late, LateResult::Unknown);
                }
                !over
            });
        }
    }

    /// Nobody has the session any more. Unless it has `expired`, it went with those who had it, and nobody ended it.
    pub(crate) fn end_parked(&mut self, cx: &mut Cx<'_>, expired: bool) {
        for p in self.take_parked() {
            // What it started from is gone.
            let outcome = if expired { Outcome::LateFailed(Failure::Ended) } else { p.given_up(Failure::Conflict) };
            cx.settle(p.ticket, outcome);
        }
    }

    /// Sends them to the owner, if one is known and reached.
    fn send_parked(&self, cx: &mut Cx<'_>, list: &mut [Parked]) -> bool {
        let owner = match &self.state {
            State::Held(c) | State::Owned(c, _) => c.heard,
            State::Facade(f) => f.claim,
            State::Nothing | State::Ended(_) => Claim::NONE,
        };
        // Whoever denies it has not told yet who owns it, or nobody does.
        let denied = list.iter().any(|p| p.denied == Some(owner.life));
        let link = cx.view.link(owner.life).filter(|_| owner.life != cx.view.me && !cx.view.is_away(owner.life) && !denied);
        let Some(link) = link else { return false };
        let to = Some((owner.life, link.id));
        for p in list.iter_mut().filter(|p| p.sent != to) {
            let sets =
                p.changes.iter().map(|c| LateSet { name: &c.name, base: c.base, value: c.value.as_deref().map(serde_bytes::Bytes::new) });
            link.send(&Message::Late { key: cx.key, id: p.ticket.0, read: p.read, sets: sets.collect(), next: p.next }, None, cx.out);
            p.resent |= p.sent.is_some();
            p.sent = to;
        }
        true
    }

    /// A copy with this last commit goes on as `next`: if there is no later one the session ends here and now, so that there will be none.
    fn end_copied(&mut self, cx: &mut Cx<'_>, read: Option<Stamp>, next: SessionKey) -> LateResult {
        let doubted = self.doubts(cx);
        let Some((_, copy)) = self.owner() else { return LateResult::NotOwner };
        let tip = copy.record.tip;
        if (doubted || read != Some(tip)) && !cx.planted(Bug::ChangedWhileRotating) {
            return LateResult::Conflict;
        }
        self.learn_end(cx, EndKind::Rotated, Some(next), None);
        late_done(tip, Level::Owner)
    }

    /// A peer's late commit.
    pub(crate) fn handle_late(
        &mut self,
        cx: &mut Cx<'_>,
        from: Life,
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
        let commit = Late { version: 0, from, id, due: cx.now };
        if self.copy().is_some_and(|copy| late(copy, self.owner().map(|(own, _)| own)).any(|l| l.from == from && l.id == id)) {
            // It came over another link before, and is answered when it is durable.
            return Some(());
        }
        self.send_end(cx, from);
        let result = if !self.owns() || self.is_rotating(cx) {
            // It is sent again in a moment, and finds out what has become of the session.
            Some(LateResult::NotOwner)
        } else if let Some(next) = next {
            Some(self.end_copied(cx, read, next))
        } else {
            self.commit_late_here(cx, read, &changes, commit)
        };
        if let Some(result) = result {
            answer_late(cx, &commit, result);
        }
        Some(())
    }

    pub(crate) fn handle_late_done(&mut self, cx: &mut Cx<'_>, from: Life, id: u64, result: LateResult) {
        let Some(UnderWay { parked: list, .. }) = self.under_way.as_deref_mut() else { return };
        let Some(at) = list.iter().position(|p| p.ticket.0 == id && p.sent.is_some_and(|(life, _)| life == from)) else { return };
        let result = match result {
            LateResult::NotOwner => {
                if let Some(p) = list.get_mut(at) {
                    (p.sent, p.denied) = (None, Some(from));
                }
                return cx.set_timer(cx.now + AGAIN, Timer::Parked);
            }
            _ if list.get(at).is_some_and(|p| p.resent) => result.of_second_try(),
            LateResult::Done(..) | LateResult::Conflict | LateResult::Unknown => result,
            LateResult::UnderReplicated | LateResult::TooLarge(_) => result,
        };
        let ticket = list.remove(at).ticket;
        cx.settle(ticket, outcome(result));
    }
}
