//! Commits of requests whose session moved away while they ran: sent to the owner, with the commits they started from.

use crate::config::Level;
use crate::id::SessionKey;
use crate::limits::NAME_MAX;
use crate::output::{Commit, Failure, Live, Outcome, Ticket};
use crate::record::Change;
use crate::shard::{Cx, Shard, Timer};
use crate::slot::Slot;
use crate::stamp::{Claim, Life, Stamp};
use crate::time::Mono;
use crate::wire::{LateResult, LateSet, Message, Why};
use bytes::Bytes;
use core::time::Duration;

/// How long a late commit is tried.
const BOUND: Duration = Duration::from_secs(5);
/// How long before it is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// A late commit that waits for its owner.
#[derive(Debug)]
pub(crate) struct Parked {
    ticket: Ticket,
    /// The last commit of what the request had read.
    read: Option<Stamp>,
    changes: Vec<Change>,
    due: Mono,
    /// The owner that has it.
    sent: Option<Life>,
    /// Another owner had it before, and may have committed it.
    resent: bool,
    /// Committed here, as this version of this claim.
    here: Option<Stamp>,
}

impl<L: Live> Shard<L> {
    /// Takes a commit for a session that another node owns.
    pub(crate) fn park(&mut self, cx: &mut Cx<'_>, key: SessionKey, read: Option<Stamp>, changes: &[Change]) -> Ticket {
        let ticket = cx.ticket();
        let due = cx.now + BOUND;
        self.parked.entry(key).or_default().push(Parked {
            ticket,
            read: read.filter(|s| s.version > 0),
            changes: changes.to_vec(),
            due,
            sent: None,
            resent: false,
            here: None,
        });
        self.set_timer(due, key, Timer::Parked);
        self.drive_parked(cx, key);
        ticket
    }

    /// Moves what is parked: into the session if it is owned here, to its owner, or to a round that finds one.
    pub(crate) fn drive_parked(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        let Some(mut list) = self.parked.remove(&key) else { return };
        if self.ended(key).is_some() {
            for p in list {
                cx.settle(p.ticket, Outcome::LateFailed(Failure::Ended));
            }
            return;
        }
        list.retain(|p| {
            let expired = cx.now >= p.due;
            if expired {
                cx.settle(p.ticket, Outcome::LateFailed(Failure::Unknown));
            }
            !expired
        });
        if list.is_empty() {
            return;
        }
        if self.own(key).is_some() {
            list.retain_mut(|p| !self.commit_parked(cx, key, p));
        } else {
            self.send_parked(cx, key, &mut list);
        }
        if !list.is_empty() {
            self.parked.entry(key).or_default().extend(list);
            self.set_timer(cx.now + AGAIN, key, Timer::Parked);
        }
    }

    /// Commits one as the owner; whether it is settled.
    fn commit_parked(&mut self, cx: &mut Cx<'_>, key: SessionKey, p: &mut Parked) -> bool {
        if let Some(stamp) = p.here {
            let done = self.copy(key).is_some_and(|c| {
                c.own.as_ref().is_some_and(|o| {
                    o.all_durable() && c.record.lineage.includes(stamp) || o.claim == stamp.claim && o.durable >= Some(stamp.version)
                })
            });
            if done {
                let level = self.info(key, cx.config).and_then(|i| i.level).unwrap_or(Level::Owner);
                cx.settle(p.ticket, Outcome::Late { stamp, level });
            }
            return done;
        }
        match self.commit_late_here(cx, key, p.read, &p.changes) {
            Commit::Done { stamp, level, .. } => {
                cx.settle(p.ticket, Outcome::Late { stamp: stamp.unwrap_or_default(), level });
                true
            }
            Commit::Wait { stamp, .. } => {
                p.here = stamp;
                false
            }
            Commit::Ended => {
                cx.settle(p.ticket, Outcome::LateFailed(Failure::Ended));
                true
            }
            Commit::Late(_) | Commit::Conflict | Commit::UnderReplicated | Commit::TooLarge { .. } => {
                // An owner that had it may have committed it: then it is its own first try that stands in the way.
                let failure = if p.resent || p.sent.is_some() { Failure::Unknown } else { Failure::Conflict };
                cx.settle(p.ticket, Outcome::LateFailed(failure));
                true
            }
        }
    }

    /// A commit that did not come through the live session: it must read the record again.
    fn commit_late_here(&mut self, cx: &mut Cx<'_>, key: SessionKey, read: Option<Stamp>, changes: &[Change]) -> Commit {
        // The request's answer includes what it has read: a state without that is no place for its commit.
        if read.is_some_and(|s| self.copy(key).is_some_and(|c| !c.record.satisfies(s))) {
            return Commit::Conflict;
        }
        let commit = self.commit_here(cx, key, changes);
        if matches!(commit, Commit::Done { .. } | Commit::Wait { .. })
            && let Some(own) = self.copy(key).and_then(|c| c.own.as_mut())
        {
            own.external += 1;
        }
        commit
    }

    fn send_parked(&mut self, cx: &mut Cx<'_>, key: SessionKey, list: &mut [Parked]) {
        let owner = match self.table.get(&key) {
            Some(Slot::Held(c)) => c.heard.max(c.accepted),
            Some(Slot::Facade(f)) => f.claim,
            _ => Claim::NONE,
        };
        // What was committed here went with the ownership: sent again it would conflict with itself.
        if list.iter().all(|p| p.here.is_some()) {
            return;
        }
        let link = self.view.link(owner.life).filter(|_| owner.life != self.view.me && !self.view.is_away(owner.life)).cloned();
        let Some(link) = link else {
            if !self.rounds.contains_key(&key) {
                let _ = self.request_round(cx, key, Why::Open, None, None);
            }
            return;
        };
        for p in list.iter_mut().filter(|p| p.here.is_none() && p.sent != Some(owner.life)) {
            let sets =
                p.changes.iter().map(|c| LateSet { name: &c.name, base: c.base, value: c.value.as_deref().map(serde_bytes::Bytes::new) });
            link.send(&Message::Late { key, id: p.ticket.0, read: p.read, sets: sets.collect() }, None, cx.out);
            p.resent |= p.sent.is_some();
            p.sent = Some(owner.life);
        }
    }

    /// A peer's late commit.
    pub(crate) fn handle_late(
        &mut self,
        cx: &mut Cx<'_>,
        from: Life,
        key: SessionKey,
        id: u64,
        read: Option<Stamp>,
        sets: &[LateSet<'_>],
    ) -> Option<()> {
        if sets.iter().any(|s| s.name.is_empty() || s.name.len() > NAME_MAX) {
            return None;
        }
        let changes: Vec<Change> =
            sets.iter().map(|s| Change { name: s.name.into(), base: s.base, value: s.value.map(|v| Bytes::copy_from_slice(v)) }).collect();
        let result = match self.own(key) {
            None => Some(LateResult::NotOwner),
            Some(_) => match self.commit_late_here(cx, key, read, &changes) {
                Commit::Done { stamp, level, .. } => Some(LateResult::Done(stamp.unwrap_or_default(), level_byte(level))),
                Commit::Wait { version, .. } => {
                    if let Some(own) = self.copy(key).and_then(|c| c.own.as_mut()) {
                        own.late.push((version, from, id));
                    }
                    None
                }
                Commit::Ended => Some(LateResult::NotOwner),
                Commit::Late(_) | Commit::Conflict | Commit::UnderReplicated | Commit::TooLarge { .. } => Some(LateResult::Conflict),
            },
        };
        if let (Some(result), Some(link)) = (result, self.view.link(from)) {
            link.send(&Message::LateDone { key, id, result }, None, cx.out);
        }
        Some(())
    }

    pub(crate) fn handle_late_done(&mut self, cx: &mut Cx<'_>, from: Life, key: SessionKey, id: u64, result: LateResult) {
        let Some(list) = self.parked.get_mut(&key) else { return };
        let Some(at) = list.iter().position(|p| p.ticket.0 == id && p.sent == Some(from)) else { return };
        if list.get(at).is_some_and(|p| p.here.is_some()) && !matches!(result, LateResult::Done(..)) {
            // It was committed here meanwhile: what the other owner says of its own try decides nothing.
            return;
        }
        let outcome = match result {
            LateResult::Done(stamp, level) => Outcome::Late { stamp, level: byte_level(level) },
            // It may be its own first try that stands in the way.
            LateResult::Conflict if list.get(at).is_some_and(|p| p.resent) => Outcome::LateFailed(Failure::Unknown),
            LateResult::Conflict => Outcome::LateFailed(Failure::Conflict),
            LateResult::Unknown => Outcome::LateFailed(Failure::Unknown),
            LateResult::NotOwner => {
                if let Some(p) = list.get_mut(at) {
                    p.sent = None;
                }
                return self.set_timer(cx.now + AGAIN, key, Timer::Parked);
            }
        };
        let ticket = list.remove(at).ticket;
        if list.is_empty() {
            self.parked.remove(&key);
        }
        cx.settle(ticket, outcome);
    }
}

fn level_byte(level: Level) -> u8 {
    match level {
        Level::Owner => 0,
        Level::Backup(n) => n,
        Level::Store => u8::MAX,
    }
}

fn byte_level(byte: u8) -> Level {
    match byte {
        0 => Level::Owner,
        u8::MAX => Level::Store,
        n => Level::Backup(n),
    }
}

/// The answer to a late commit that has become durable.
pub(crate) fn late_done(key: SessionKey, id: u64, stamp: Stamp, level: Level) -> Message<'static> {
    Message::LateDone { key, id, result: LateResult::Done(stamp, level_byte(level)) }
}
