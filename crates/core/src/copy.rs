//! What a node may have of a session that it need not own: facade, ended marker, copy.

use crate::id::SessionKey;
use crate::limits::{MOVES_MAX, MOVES_WINDOW};
use crate::lineage::Lineage;
use crate::output::LinkId;
use crate::peers::Peers;
use crate::pending::Ending;
use crate::record::Record;
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
