//! What a node may have of a session that it need not own: facade, ended marker, copy.

use crate::id::SessionKey;
use crate::limits::{MOVES_MAX, MOVES_WINDOW, RECORD_MAX};
use crate::lineage::Lineage;
use crate::output::LinkId;
use crate::peers::Peers;
use crate::pending::Ending;
use crate::record::{Change, Excess, Record};
use crate::stamp::{Claim, Life, Stamp};
use crate::time::Mono;
use crate::wire::EndKind;
use core::time::Duration;
use smallvec::SmallVec;
use std::sync::Arc;

/// What this node was told, and nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Facade {
    pub(crate) claim: Claim,
    pub(crate) tip: Stamp,
    pub(crate) expires: Mono,
    /// It was owned here and has expired, with all these commits: none of them is missing.
    pub(crate) over: Option<Box<Lineage>>,
}

/// An absorbing marker.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) kind: EndKind,
    /// The id that the session went on under, if that is known: it ends too if this was a logout after all.
    pub(crate) next: Option<SessionKey>,
    pub(crate) since: Mono,
    pub(crate) until: Mono,
    /// Not everybody has confirmed it.
    pub(crate) telling: Option<Box<Ending>>,
}

/// Stamps that this node was told and its copy does not include: a claimant treats them as tokens.
pub(crate) type Told = SmallVec<[Stamp; 1]>;

/// What was not acknowledged when its ownership ended: commits, or the state that it had adopted, which somebody has read.
#[derive(Clone, Debug)]
pub(crate) struct Orphan {
    pub(crate) claim: Claim,
    /// What waits for this version of the claim or a lesser one waits for this.
    pub(crate) version: u32,
    /// The last commit in it.
    pub(crate) stamp: Stamp,
    /// What they had set: if a merge preferred other values, they are not kept.
    pub(crate) dots: Vec<(Arc<str>, Stamp)>,
    /// Those of them that requests elsewhere wait for.
    pub(crate) late: Vec<Late>,
}

/// A late commit that waits for durability.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Late {
    pub(crate) version: u32,
    /// Whose request it was: a peer's, or one that this node could not commit when it ended.
    pub(crate) from: Life,
    /// The number that it goes by there.
    pub(crate) id: u64,
    /// When this node's own request gives up.
    pub(crate) due: Mono,
}

impl Orphan {
    /// Whether this record carries all that they had set.
    pub(crate) fn is_kept(&self, record: &Record) -> bool {
        self.dots.iter().all(|(name, dot)| record.get(name).is_some_and(|a| a.dot == *dot))
    }
}

/// What becomes of what an owner sends to a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// The copy is that now.
    Taken,
    /// The copy lacks what it builds on.
    Gap,
    /// The copy has what the owner lacks.
    Diverged,
}

/// A copy of a session.
#[derive(Debug)]
pub(crate) struct Copy {
    /// The highest claim promised: older ones are refused.
    pub(crate) promised: Claim,
    /// When it was promised.
    pub(crate) promised_at: Mono,
    /// The highest claim ever promised here, kept or given up: no epoch is drawn twice.
    pub(crate) highest: Claim,
    /// The last ownership whose state this is.
    pub(crate) accepted: Claim,
    /// The highest ownership heard of, promised ones included: never below `accepted`.
    pub(crate) heard: Claim,
    pub(crate) record: Record,
    pub(crate) told: Told,
    /// The last commit that the store is known to have; a guess is safe, because every write compares.
    pub(crate) stored: Option<Stamp>,
    /// A branch that neither covers nor is covered; the next owner merges it.
    pub(crate) branch: Option<Box<Record>>,
    /// Moves to other nodes since `moved`.
    pub(crate) moves: u8,
    pub(crate) moved: Mono,
    /// What is kept in mind about other nodes. Of a session that is not owned here: who may have copies from the time when it was, and
    /// learns who owns it now when this node does; and who may take itself for the owner.
    pub(crate) peers: Peers,
    /// What nobody acknowledged before ownership ended, oldest first: resolved by inclusion.
    pub(crate) orphans: Vec<Orphan>,
    /// The link to its owner on which either last spoke of it.
    pub(crate) reported: Option<LinkId>,
    /// The owner that this copy is from says that it is none, and knows no other.
    pub(crate) disowned: bool,
    /// How often it was reported to whoever may own the session, without an answer.
    pub(crate) reports: u8,
    /// It came when this node was leaving already.
    pub(crate) newcomer: bool,
}

impl Copy {
    pub(crate) fn new(record: Record, accepted: Claim, newcomer: bool) -> Copy {
        Copy {
            promised: accepted,
            promised_at: Mono::ZERO,
            highest: accepted,
            accepted,
            heard: accepted,
            record,
            told: Told::new(),
            stored: None,
            branch: None,
            moves: 0,
            moved: Mono::ZERO,
            peers: Peers::default(),
            orphans: Vec::new(),
            reported: None,
            disowned: false,
            reports: 0,
            newcomer,
        }
    }

    /// Promises `claim`.
    pub(crate) fn promise(&mut self, claim: Claim, now: Mono) {
        self.highest = self.highest.max(claim);
        if claim > self.promised {
            (self.promised, self.promised_at) = (claim, now);
        }
        self.heard = self.heard.max(claim);
    }

    /// The same of a claim that may be this node's own: that may come to nothing, and must not hide who owns the session.
    pub(crate) fn promise_as(&mut self, me: Life, claim: Claim, now: Mono) {
        let heard = self.heard;
        self.promise(claim, now);
        if claim.life == me {
            self.heard = heard;
        }
    }

    /// Accepts an owner's claim: its state is what this copy holds.
    pub(crate) fn accept(&mut self, claim: Claim, now: Mono) {
        self.promise(claim, now);
        let before = self.accepted;
        if claim > before && before.life != claim.life && before != Claim::NONE {
            // That owner may not have heard that it is none any more.
            self.peers.note_former(before.life);
        }
        self.accepted = self.accepted.max(claim);
        (self.reports, self.disowned) = (0, false);
    }

    /// A commit of its owner, made on top of `base`.
    pub(crate) fn take_delta(&mut self, base: Stamp, stamp: Stamp, changes: &[Change], now: Mono) -> Result<Fit, Excess> {
        if self.record.tip != base {
            self.promise(stamp.claim, now);
            return Ok(Fit::Gap);
        }
        self.record.fits_with(changes, RECORD_MAX)?;
        self.record.commit(stamp, changes);
        self.record.note_commit(now);
        self.accept(stamp.claim, now);
        self.settle_told();
        Ok(Fit::Taken)
    }

    /// Its owner's record. If it lacks something neither may overwrite the other: the owner gets this copy, and merges.
    pub(crate) fn take_full(&mut self, claim: Claim, record: Record, stored: Option<Stamp>, now: Mono) -> Fit {
        if !record.lineage.covers(&self.record.lineage) {
            self.promise(claim, now);
            self.branch = Some(Box::new(record));
            return Fit::Diverged;
        }
        let before = core::mem::replace(&mut self.record, record);
        self.record.note_use_of(&before);
        self.stored = stored.or(self.stored);
        self.accept(claim, now);
        self.settle_told();
        Fit::Taken
    }

    /// What its owner has: this copy is that, or lacks some of it, or has what the owner lacks.
    pub(crate) fn compare(&mut self, claim: Claim, tip: Stamp, lineage: &Lineage, now: Mono) -> Fit {
        if self.record.tip == tip {
            self.accept(claim, now);
            self.settle_told();
            return Fit::Taken;
        }
        self.promise(claim, now);
        if lineage.covers(&self.record.lineage) { Fit::Gap } else { Fit::Diverged }
    }

    /// What is here, in the copy or in the branch beside it, and not in a record with this lineage.
    pub(crate) fn beyond(&self, lineage: &Lineage) -> Option<&Record> {
        self.branch.as_deref().into_iter().chain([&self.record]).find(|r| !lineage.covers(&r.lineage))
    }

    /// Forgets what it was told, and the branch, if the record has come to include it.
    pub(crate) fn settle_told(&mut self) {
        let record = &self.record;
        self.branch.take_if(|b| record.lineage.covers(&b.lineage));
        self.told.retain(|s| !record.satisfies(*s));
    }

    /// Notes a commit that this copy may lack.
    pub(crate) fn tell(&mut self, stamp: Stamp) {
        if stamp.version > 0 && !self.record.satisfies(stamp) {
            self.told.retain(|s| s.claim != stamp.claim || s.version > stamp.version);
            if !self.told.iter().any(|s| s.claim == stamp.claim) && self.told.len() < 4 {
                self.told.push(stamp);
            }
        }
    }

    /// Whether the session has moved away so often of late that it stays now.
    pub(crate) fn bounces(&mut self, now: Mono) -> bool {
        if now.since(self.moved) > MOVES_WINDOW {
            (self.moves, self.moved) = (0, now);
        }
        self.moves >= MOVES_MAX
    }
}

/// Why a copy can be of no more use to a reader: the session's ended marker, as an age.
impl Ended {
    pub(crate) fn ago(&self, now: Mono) -> Duration {
        now.since(self.since)
    }
}

/// A claim round's or a look-up's place in back-off order.
pub(crate) fn jitter(random: u64, up_to: Duration) -> Duration {
    Duration::from_micros(random % (up_to.as_micros() as u64).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::record::Base;
    use bytes::Bytes;

    const A: Life = Life::new(1);
    const B: Life = Life::new(2);
    const NOW: Mono = Mono::from_micros(1_000_000);

    fn claim(epoch: u32, life: Life) -> Claim {
        Claim { epoch, life }
    }

    fn set(name: &str) -> [Change; 1] {
        [Change { name: name.into(), base: Base::Absent, value: Some(Bytes::from_static(b"1")) }]
    }

    fn record(stamps: &[Stamp]) -> Record {
        let mut record = Record::new(NOW, Limits::default());
        stamps.iter().for_each(|stamp| record.commit(*stamp, &set("x")));
        record
    }

    /// A copy with the first two commits of A.
    fn copy() -> Copy {
        let a = claim(1, A);
        Copy::new(record(&[a.at(1), a.at(2)]), a, false)
    }

    #[test]
    fn rule_7_a_delta_is_taken_on_its_base_and_on_nothing_else() {
        let a = claim(1, A);
        let mut copy = copy();
        for base in [a.at(1), a.at(3), claim(2, B).at(2)] {
            assert_eq!(copy.take_delta(base, a.at(9), &set("y"), NOW), Ok(Fit::Gap));
            assert_eq!((copy.record.tip, copy.record.get("y")), (a.at(2), None), "nothing has changed");
        }
        assert_eq!(copy.take_delta(a.at(2), a.at(3), &set("y"), NOW), Ok(Fit::Taken));
        assert_eq!((copy.record.tip, copy.record.get("y").map(|y| y.dot)), (a.at(3), Some(a.at(3))));
    }

    #[test]
    fn the_first_delta_of_a_later_owner_brings_its_claim_and_one_that_does_not_fit_brings_the_promise() {
        let (a, b) = (claim(1, A), claim(2, B));
        let mut taken = copy();
        assert_eq!(taken.take_delta(a.at(2), b.at(1), &set("y"), NOW), Ok(Fit::Taken));
        assert_eq!((taken.accepted, taken.promised, taken.heard), (b, b, b));
        assert_eq!(taken.peers.holders().map(|p| p.life).collect::<Vec<_>>(), [A], "who may not have heard that it is none any more");
        let mut gap = copy();
        assert_eq!(gap.take_delta(b.at(1), b.at(2), &set("y"), NOW), Ok(Fit::Gap));
        assert_eq!((gap.accepted, gap.promised), (a, b), "its state is still that of the owner before");
    }

    #[test]
    fn a_record_replaces_a_copy_that_it_includes_and_stands_beside_one_that_it_does_not() {
        let (a, b) = (claim(1, A), claim(2, B));
        let mut copy = copy();
        assert_eq!(copy.take_full(b, record(&[a.at(1), b.at(1)]), None, NOW), Fit::Diverged);
        assert_eq!((copy.record.tip, copy.branch.as_ref().map(|b| b.tip)), (a.at(2), Some(b.at(1))));
        assert_eq!((copy.accepted, copy.promised), (a, b));
        assert_eq!(copy.take_full(b, record(&[a.at(2), b.at(2)]), Some(a.at(1)), NOW), Fit::Taken);
        assert_eq!((copy.record.tip, copy.branch.is_none(), copy.stored), (b.at(2), true, Some(a.at(1))), "the branch is included");
        assert_eq!(copy.accepted, b);
    }

    #[test]
    fn a_holder_that_is_asked_whether_it_has_the_owners_state_says_yes_or_what_stands_between_them() {
        let (a, b) = (claim(1, A), claim(2, B));
        let lineage = |stamps: &[Stamp]| Lineage::new(0, stamps.iter().copied());
        let (mut same, mut behind, mut beyond) = (copy(), copy(), copy());
        assert_eq!(same.compare(b, a.at(2), &lineage(&[a.at(2)]), NOW), Fit::Taken);
        assert_eq!(behind.compare(b, b.at(1), &lineage(&[a.at(2), b.at(1)]), NOW), Fit::Gap);
        assert_eq!(beyond.compare(b, b.at(1), &lineage(&[a.at(1), b.at(1)]), NOW), Fit::Diverged);
        assert_eq!((same.accepted, behind.accepted, beyond.accepted), (b, a, a));
        assert!([same, behind, beyond].iter().all(|copy| copy.promised == b), "older claims are refused from now on");
    }

    #[test]
    fn a_copy_goes_only_if_all_of_it_is_included_the_branch_beside_it_too() {
        let (a, b) = (claim(1, A), claim(2, B));
        let mut copy = copy();
        let owners = Lineage::new(0, [a.at(2), b.at(4)]);
        assert!(copy.beyond(&owners).is_none());
        assert_eq!(copy.beyond(&Lineage::new(0, [a.at(1), b.at(4)])).map(|r| r.tip), Some(a.at(2)));
        copy.branch = Some(Box::new(record(&[b.at(5)])));
        assert_eq!(copy.beyond(&owners).map(|r| r.tip), Some(b.at(5)));
    }

    #[test]
    fn what_a_copy_was_told_and_lacks_is_remembered_until_it_has_it() {
        let a = claim(1, A);
        let mut copy = copy();
        copy.tell(a.at(2));
        assert!(copy.told.is_empty(), "it has that");
        copy.tell(a.at(3));
        copy.tell(a.at(5));
        copy.tell(a.at(4));
        assert_eq!(copy.told[..], [a.at(5)], "the newest of a claim");
        for version in 3..=5 {
            assert_eq!(copy.take_delta(a.at(version - 1), a.at(version), &set("x"), NOW), Ok(Fit::Taken));
        }
        assert!(copy.told.is_empty());
    }

    #[test]
    fn rule_1_a_claim_of_ones_own_that_may_come_to_nothing_hides_no_owner() {
        let (a, own) = (claim(1, A), claim(5, B));
        let mut copy = copy();
        copy.promise_as(B, own, NOW);
        assert_eq!((copy.promised, copy.highest, copy.heard), (own, own, a));
        copy.promise_as(B, claim(6, A), NOW);
        assert_eq!(copy.heard, claim(6, A));
    }
}
