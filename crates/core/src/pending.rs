//! What is under way for a session on this node, beside what the table has of it.

use crate::id::SessionKey;
use crate::lineage::Lineage;
use crate::output::{Brought, Failure, LinkId, Outcome, Source, Ticket};
use crate::record::{Base, Change, Record};
use crate::stamp::{Claim, Life, Stamp};
use crate::time::Mono;
use crate::view::Lives;
use crate::wire::{EndKind, Why, one_next};
use core::time::Duration;
use smallvec::SmallVec;

/// How far a round is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waiting before it starts or tries again.
    BackOff,
    /// The last known owner alone is asked: were the backups asked as well, they would refuse its commits meanwhile.
    Owner,
    /// The placement list is asked.
    List,
    /// Everyone is asked, and the store.
    Wide,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Due { asked: Mono, due: Mono },
    Answered,
    Silent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreReply {
    NotAsked,
    Waiting,
    Answered,
    Failed,
}

/// A copy that came in an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) life: Life,
    pub(crate) tip: Stamp,
    pub(crate) accepted: Claim,
    /// `None`: the same as here.
    pub(crate) record: Option<Record>,
}

/// A claim round that runs.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) claim: Claim,
    pub(crate) why: Why,
    pub(crate) phase: Phase,
    pub(crate) due: Mono,
    pub(crate) tickets: Vec<Ticket>,
    pub(crate) tokens: SmallVec<[Stamp; 1]>,
    /// No token says that the session should still be alive.
    pub(crate) expired: bool,
    /// If nobody has it, it begins here.
    pub(crate) creates: bool,
    pub(crate) asked: SmallVec<[(Life, Reply); 4]>,
    /// Which commit each of them was told that this node has.
    pub(crate) haves: SmallVec<[(Life, Stamp); 4]>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) branches: Vec<Record>,
    /// Commits that nodes without a copy know to have been made.
    pub(crate) told: SmallVec<[Stamp; 2]>,
    /// What owners had included with whom the session has expired.
    pub(crate) outlived: SmallVec<[(Claim, Lineage); 1]>,
    pub(crate) row: Option<Record>,
    pub(crate) store: StoreReply,
    /// The row was read again before anything is called lost.
    pub(crate) reread: bool,
    pub(crate) stored: Option<Stamp>,
    /// The owner stays, and this is what it has.
    pub(crate) stay: Option<(Claim, Record)>,
    pub(crate) ended: Option<(EndKind, Option<SessionKey>)>,
    pub(crate) heard: Claim,
    /// The last ownership that an answer knows of; promises may come to nothing.
    pub(crate) accepted: Claim,
    pub(crate) tries: u8,
    /// Moves of late, as the owner counted them.
    pub(crate) moves: u8,
    /// What was promised before the promise to oneself.
    pub(crate) before: Claim,
    /// The doubt that this round answers.
    pub(crate) doubt: u32,
    /// This node's copy as it was when the round began: for a planted bug alone.
    pub(crate) snapshot: Option<Box<Record>>,
}

impl Round {
    /// One that has not begun.
    pub(crate) fn new(why: Why, now: Mono, doubt: u32) -> Round {
        Round {
            claim: Claim::NONE,
            why,
            phase: Phase::BackOff,
            due: now,
            tickets: Vec::new(),
            tokens: SmallVec::new(),
            expired: true,
            creates: false,
            asked: SmallVec::new(),
            haves: SmallVec::new(),
            answers: Vec::new(),
            branches: Vec::new(),
            told: SmallVec::new(),
            outlived: SmallVec::new(),
            row: None,
            store: StoreReply::NotAsked,
            reread: false,
            stored: None,
            stay: None,
            ended: None,
            heard: Claim::NONE,
            accepted: Claim::NONE,
            tries: 0,
            moves: 0,
            before: Claim::NONE,
            doubt,
            snapshot: None,
        }
    }

    /// The token of a request that waits for this.
    pub(crate) fn note_token(&mut self, token: Option<Brought>) {
        self.expired &= token.is_none_or(|t| t.expired);
        self.tokens.extend(token.map(|t| t.stamp).filter(|s| !self.tokens.contains(s)));
    }

    /// Somebody knows that the session has ended. Of several who do, the one who knows of a logout is believed.
    pub(crate) fn note_end(&mut self, kind: EndKind, next: Option<SessionKey>) {
        let (known, before) = self.ended.unwrap_or((kind, None));
        self.ended = Some((if kind.overrides(known) { kind } else { known }, one_next(before, next)));
    }

    /// Where the state with this tip came from, at a node whose own copy ends with `mine`.
    pub(crate) fn source(&self, mine: Stamp, tip: Stamp, merged: bool) -> Source {
        if merged {
            Source::Several
        } else if tip.version == 0 {
            Source::Nothing
        } else if mine == tip {
            Source::Copy
        } else if let Some(answer) = self.answers.iter().find(|answer| answer.tip == tip) {
            Source::Node(answer.life)
        } else if self.row.as_ref().is_some_and(|row| row.tip == tip) {
            Source::Store
        } else {
            // A branch beside an answer, or one that was offered meanwhile.
            Source::Several
        }
    }
}

/// A late commit that waits for its owner.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) ticket: Ticket,
    /// The last commit of what the request had read.
    pub(crate) read: Option<Stamp>,
    pub(crate) changes: Vec<Change>,
    /// Instead of changes: the session is to end and to go on under this id, if `read` is still its last commit.
    pub(crate) next: Option<SessionKey>,
    pub(crate) due: Mono,
    /// The owner that has it, and the link over which it went: what a link that breaks took with it, nobody knows.
    pub(crate) sent: Option<(Life, LinkId)>,
    /// It was sent before, and may have been committed.
    pub(crate) resent: bool,
    /// Who was taken for the owner and says that it is not.
    pub(crate) denied: Option<Life>,
}

impl Parked {
    /// It must not be tried twice: it looks at nothing, so nothing would stand in the way of a second time, after what others did meanwhile.
    pub(crate) fn is_once(&self) -> bool {
        self.changes.iter().any(|change| change.base == Base::Any)
    }

    /// What is said of one that is given up: an owner that had it may have committed it, and otherwise nothing was kept.
    pub(crate) fn given_up(&self, kept_nowhere: Failure) -> Outcome {
        Outcome::LateFailed(if self.resent || self.sent.is_some() { Failure::Unknown } else { kept_nowhere })
    }
}

/// An end that not everybody has confirmed.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) keep: Duration,
    /// Who has not confirmed.
    pub(crate) waiting: Lives,
    /// Who has: others may not have heard that.
    pub(crate) confirmed: Lives,
    /// The store has not confirmed.
    pub(crate) store: bool,
    /// It is on its way to the store.
    pub(crate) writing: bool,
    /// Not everybody knows of the end of the id that it went on under.
    pub(crate) follows: bool,
    pub(crate) ticket: Option<(Ticket, Mono)>,
}

/// An id that ends because the one that it followed was logged out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Following {
    pub(crate) key: SessionKey,
    pub(crate) next: SessionKey,
    /// Who hears that `key` has ended once all know that `next` has.
    pub(crate) asker: Option<Life>,
}

/// A put whose outcome is not known yet, or that waits for its next try. It outlives the ownership that sent it: its answer names the
/// session alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writing {
    pub(crate) stamp: Stamp,
    /// The last use that its record tells.
    pub(crate) used: Mono,
    pub(crate) stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It is on its way.
    Put,
    /// It was answered, and the row is read to see what is there.
    Read,
    /// It failed, and is tried again after a while.
    Again,
}

/// What is under way for a session. Most of the time that is nothing. It may outlive an ownership, and the copy.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    /// The claim round that runs.
    pub(crate) round: Option<Box<Round>>,
    /// Late commits that wait for their owner.
    pub(crate) parked: Vec<Parked>,
    /// What is on its way to the store.
    pub(crate) writing: Option<Writing>,
    /// A touch is on its way, and tells this use.
    pub(crate) touching: Option<Mono>,
    /// The row is being read, and whether somebody has asked for it since that began.
    pub(crate) loading: Option<bool>,
}

impl UnderWay {
    pub(crate) fn is_nothing(&self) -> bool {
        let Self { round, parked, writing, touching, loading } = self;
        round.is_none() && parked.is_empty() && writing.is_none() && touching.is_none() && loading.is_none()
    }
}
