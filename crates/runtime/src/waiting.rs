//! Who waits for what: answers of the engine find their way to the tasks that asked.

use core::future::Future;
use core::pin::Pin;
use outlive_core::config::Level;
use outlive_core::id::SessionKey;
use outlive_core::output::{Failure, Outcome, Ticket};
use outlive_core::record::Excess;
use outlive_core::stamp::{Claim, Stamp};
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use tokio::sync::oneshot;

/// Parts of the tables, so that threads rarely meet.
const SHARDS: usize = 64;
/// Answers that may wait for one session to become durable.
const PER_SESSION: usize = 256;

/// An answer that has to be waited for. It may be dropped at any time; what was begun goes on.
pub type Waiting<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// An answer, now or later.
pub enum Step<T> {
    /// Now.
    Ready(T),
    /// Later: other nodes or the store have a say.
    Wait(Waiting<T>),
}

impl<T> Step<T> {
    /// The answer; without waiting if it is there.
    pub async fn answer(self) -> T {
        match self {
            Step::Ready(value) => value,
            Step::Wait(waiting) => waiting.await,
        }
    }
}

impl<T: core::fmt::Debug> core::fmt::Debug for Step<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Step::Ready(value) => f.debug_tuple("Ready").field(value).finish(),
            Step::Wait(_) => f.write_str("Wait"),
        }
    }
}

/// Answers to tickets. A ticket may be settled by another thread before the one that drew it has come to wait for it.
#[derive(Debug)]
pub(crate) struct Tickets(Box<[Mutex<HashMap<Ticket, Seat>>]>);

#[derive(Debug)]
enum Seat {
    Early(Outcome),
    Taken(oneshot::Sender<Outcome>),
}

impl Default for Tickets {
    fn default() -> Tickets {
        Tickets((0..SHARDS).map(|_| Mutex::default()).collect())
    }
}

impl Tickets {
    fn shard(&self, ticket: Ticket) -> MutexGuard<'_, HashMap<Ticket, Seat>> {
        self.0[ticket.0 as usize % SHARDS].lock()
    }

    /// INVARIANT: called exactly once for each ticket, right after the call that drew it; else an early answer stays for ever.
    pub(crate) fn wait(&self, ticket: Ticket) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        let mut seats = self.shard(ticket);
        match seats.remove(&ticket) {
            Some(Seat::Early(outcome)) => drop(sender.send(outcome)),
            _ => drop(seats.insert(ticket, Seat::Taken(sender))),
        }
        receiver
    }

    pub(crate) fn settle(&self, ticket: Ticket, outcome: Outcome) {
        let mut seats = self.shard(ticket);
        match seats.remove(&ticket) {
            // Whoever waited may have gone; that is nobody's fault.
            Some(Seat::Taken(sender)) => drop(sender.send(outcome)),
            _ => drop(seats.insert(ticket, Seat::Early(outcome))),
        }
    }

    /// Whoever waits learns that no answer will come.
    pub(crate) fn clear(&self) {
        for shard in &self.0 {
            shard.lock().clear();
        }
    }
}

/// What is durable when an answer may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// The newest durable commit: what a token names. `None` if the session has none.
    pub tip: Option<Stamp>,
    /// The level reached.
    pub level: Level,
}

/// Why a commit failed after it had been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommitFailure {
    /// It went out, and nobody knows whether it survives; it is sent on. The cluster's fault. The change may be there: read before
    /// doing it again.
    #[error("the outcome of the commit is unknown")]
    Unknown,
    /// An attribute had been changed elsewhere since the request read it. Nothing was kept. Do the request again.
    #[error("another request changed the same attribute")]
    Conflict,
    /// The session has ended. Nothing was kept.
    #[error("the session has ended")]
    Ended,
    /// Fewer copies could be made than `min_backups`. Nothing was kept. Try again later.
    #[error("fewer copies can be made than min_backups")]
    UnderReplicated,
    /// Who owns the session, or is to keep it, is silent. Nothing was kept. Try again later.
    #[error("who owns the session, or is to keep it, is silent")]
    Unreached,
    /// This node has ended. Nothing went out.
    #[error("this node has ended")]
    Dead,
    /// The session would be larger than the limit. Nothing was kept. The caller's fault.
    #[error("too large: {0}")]
    TooLarge(Excess),
}

impl From<Failure> for CommitFailure {
    fn from(failure: Failure) -> CommitFailure {
        match failure {
            Failure::Conflict => CommitFailure::Conflict,
            Failure::Ended => CommitFailure::Ended,
            Failure::Unreached => CommitFailure::Unreached,
            Failure::UnderReplicated => CommitFailure::UnderReplicated,
            Failure::TooLarge(excess) => CommitFailure::TooLarge(excess),
            _ => CommitFailure::Unknown,
        }
    }
}

#[derive(Debug)]
struct Waiter {
    claim: Claim,
    version: u32,
    reply: oneshot::Sender<Result<Durable, CommitFailure>>,
}

type Waiters = HashMap<SessionKey, Vec<Waiter>>;

/// Answers that may leave when a version is durable.
#[derive(Debug)]
pub(crate) struct Commits(Box<[Mutex<Waiters>]>);

impl Default for Commits {
    fn default() -> Commits {
        Commits((0..SHARDS).map(|_| Mutex::default()).collect())
    }
}

/// The waiters of a part of the sessions. Held across the call that commits: what another thread then hears of that commit it can
/// only pass on after the waiter has sat down.
pub(crate) struct Room<'a>(MutexGuard<'a, Waiters>);

impl Commits {
    pub(crate) fn room(&self, key: SessionKey) -> Room<'_> {
        Room(self.0[(key.bits() >> 32) as usize % SHARDS].lock())
    }

    /// Drops those who have gone.
    pub(crate) fn tidy(&self) {
        for shard in &self.0 {
            shard.lock().retain(|_, waiters| {
                waiters.retain(|w| !w.reply.is_closed());
                !waiters.is_empty()
            });
        }
    }

    /// Whoever waits learns that no answer will come.
    pub(crate) fn clear(&self) {
        for shard in &self.0 {
            shard.lock().clear();
        }
    }
}

impl Room<'_> {
    /// The answer when this version is durable. Too many who wait already: nobody will say.
    pub(crate) fn wait(&mut self, key: SessionKey, claim: Claim, version: u32) -> oneshot::Receiver<Result<Durable, CommitFailure>> {
        let (reply, receiver) = oneshot::channel();
        let waiters = self.0.entry(key).or_default();
        if waiters.len() >= PER_SESSION {
            waiters.retain(|w| !w.reply.is_closed());
        }
        if waiters.len() < PER_SESSION {
            waiters.push(Waiter { claim, version, reply });
        }
        receiver
    }

    /// Answers all that waited for this claim's commits up to `version`.
    pub(crate) fn settle(&mut self, key: SessionKey, claim: Claim, version: u32, result: Result<Durable, CommitFailure>) {
        let Some(waiters) = self.0.get_mut(&key) else { return };
        let (done, left) = core::mem::take(waiters).into_iter().partition(|w| w.claim == claim && w.version <= version);
        *waiters = left;
        if waiters.is_empty() {
            self.0.remove(&key);
        }
        for waiter in done as Vec<Waiter> {
            // Whoever waited may have gone.
            let _ = waiter.reply.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outlive_core::stamp::Life;

    const KEY: SessionKey = SessionKey::from_bytes([1; 16]);
    const CLAIM: Claim = Claim { epoch: 1, life: Life::new(7) };
    const DONE: Durable = Durable { tip: None, level: Level::Owner };

    #[test]
    fn a_ticket_settled_before_anybody_waits_is_not_lost() {
        let tickets = Tickets::default();
        tickets.settle(Ticket(3), Outcome::Again);
        assert!(matches!(tickets.wait(Ticket(3)).try_recv(), Ok(Outcome::Again)));
        let mut later = tickets.wait(Ticket(4));
        assert!(later.try_recv().is_err());
        tickets.settle(Ticket(4), Outcome::NotFound);
        assert!(matches!(later.try_recv(), Ok(Outcome::NotFound)));
    }

    #[test]
    fn a_durable_version_answers_those_up_to_it_and_no_other_claim() {
        let commits = Commits::default();
        let mut room = commits.room(KEY);
        let (mut a, mut b) = (room.wait(KEY, CLAIM, 1), room.wait(KEY, CLAIM, 3));
        let mut other = room.wait(KEY, Claim { epoch: 2, ..CLAIM }, 1);
        room.settle(KEY, CLAIM, 2, Ok(DONE));
        assert_eq!(a.try_recv().unwrap(), Ok(DONE));
        assert!(b.try_recv().is_err() && other.try_recv().is_err());
        room.settle(KEY, CLAIM, u32::MAX, Err(CommitFailure::Ended));
        assert_eq!(b.try_recv().unwrap(), Err(CommitFailure::Ended));
        assert!(other.try_recv().is_err());
    }

    #[test]
    fn one_session_keeps_a_bounded_number_waiting() {
        let commits = Commits::default();
        let held: Vec<_> = (0..PER_SESSION).map(|i| commits.room(KEY).wait(KEY, CLAIM, i as u32)).collect();
        let refused = commits.room(KEY).wait(KEY, CLAIM, 0);
        assert!(matches!({ refused }.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        drop(held);
        let mut seated = commits.room(KEY).wait(KEY, CLAIM, 0);
        assert!(matches!(seated.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
    }
}
