//! What the engine wants done, and what it answers: plain values.

use crate::config::Level;
use crate::id::SessionKey;
use crate::record::{Excess, Record};
use crate::stamp::{Claim, Life, Stamp};
use crate::time::Mono;
use crate::wire::EndKind;
use bytes::Bytes;
use core::any::Any;
use core::time::Duration;
use smallvec::SmallVec;
use std::sync::Arc;

/// One connection to a peer; the driver numbers them and never uses a number twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// Something that was asked for and is answered by [`Output::Settled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Effects, in order. The driver empties it after every call.
#[derive(Debug, Default)]
pub struct Outputs {
    list: Vec<Output>,
    flush: SmallVec<[LinkId; 4]>,
    store: bool,
}

impl Outputs {
    /// An empty list.
    pub fn new() -> Outputs {
        Outputs::default()
    }

    pub(crate) fn push(&mut self, output: Output) {
        self.list.push(output);
    }

    pub(crate) fn event(&mut self, key: SessionKey, event: Event) {
        self.list.push(Output::Event(key, event));
    }

    pub(crate) fn flush(&mut self, link: LinkId) {
        if !self.flush.contains(&link) {
            self.flush.push(link);
        }
    }

    pub(crate) fn gone(&mut self, live: Arc<impl Live>) {
        self.list.push(Output::Gone(live));
    }

    pub(crate) fn store(&mut self) {
        self.store = true;
    }

    /// Takes everything out: first the effects in order, then one [`Output::StoreReady`] and one [`Output::Flush`] per link.
    pub fn drain(&mut self) -> impl Iterator<Item = Output> + '_ {
        let store = core::mem::take(&mut self.store).then_some(Output::StoreReady);
        self.list.drain(..).chain(store).chain(self.flush.drain(..).map(Output::Flush))
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.flush.is_empty() && !self.store
    }
}

/// One effect.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output {
    /// Bytes wait for this link: take them with [`Engine::take_bytes`](crate::engine::Engine::take_bytes) and write them.
    Flush(LinkId),
    /// Close this link; its end need not be reported.
    Close(LinkId),
    /// Connect to this member, unless a connection is open or on its way.
    Connect {
        /// The member.
        life: Life,
        /// Where it listens.
        addr: Box<str>,
    },
    /// Read this session's row; answer with [`Engine::handle_loaded`](crate::engine::Engine::handle_loaded).
    Load(SessionKey),
    /// Rows wait to be written: take them with [`Engine::take_writes`](crate::engine::Engine::take_writes).
    StoreReady,
    /// A ticket's answer.
    Settled(Ticket, Outcome),
    /// All commits of this claim up to `version` are durable.
    Durable {
        /// The session.
        key: SessionKey,
        /// The claim they were made under.
        claim: Claim,
        /// The highest of them; 0 is the state that the claim adopted.
        version: u32,
        /// The newest durable commit: what a token names.
        tip: Stamp,
        /// The level reached.
        level: Level,
    },
    /// These commits will not become durable as they are.
    Failed {
        /// The session.
        key: SessionKey,
        /// The claim they were made under.
        claim: Claim,
        /// All waiting commits up to this one.
        version: u32,
        /// Why.
        failure: Failure,
    },
    /// Something worth counting, logging or telling the application.
    Event(SessionKey, Event),
    /// An earlier life of this node's name had a greater boot; handshakes use this one from now on.
    Rebooted(u64),
    /// A younger process runs under this node's name: this one must stop.
    Superseded(Life),
    /// The membership changed; see [`Engine::members`](crate::engine::Engine::members).
    Members,
    /// What the application kept beside a session that went: dropping it may run its code, which must not happen under a lock of the
    /// engine.
    Gone(Arc<dyn Any + Send + Sync>),
}

/// Why a commit failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// It went out, and nobody knows whether it survives.
    Unknown,
    /// An attribute was changed since it was read, or what was read is gone. Nothing was kept.
    Conflict,
    /// The session ended.
    Ended,
    /// Fewer copies could be made than `min_backups` of its owner. Nothing was kept.
    UnderReplicated,
    /// It reached nobody: who owns the session is silent. Nothing was kept.
    Unreached,
    /// The session would be larger than the limit. Nothing was kept.
    TooLarge(Excess),
}

/// How a session is over, as far as a node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Over {
    /// Somebody ended it. It may go on under another id.
    Ended(EndKind, Option<SessionKey>),
    /// It was not used for too long, or lived too long.
    Expired,
}

/// The answer to a ticket.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// Open again: the session is here now, or somebody else's turn is over.
    Again,
    /// Nobody has it and nobody can: a request may begin a new session, under a new id.
    NotFound,
    /// It ended, so long ago.
    Ended(EndKind, Duration),
    /// It cannot be had within the promise. Try again after this.
    Unavailable(Unavailable, Duration),
    /// Its owner stays where it is. Serve this copy; commits go to the owner.
    Guest(Box<Guest>),
    /// A late commit is durable.
    Late {
        /// Its stamp.
        stamp: Stamp,
        /// The level reached.
        level: Level,
    },
    /// A late commit failed.
    LateFailed(Failure),
    /// An end is known to all live holders and the store (`true`), or not yet to all of them.
    End(bool),
}

/// Why a session cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unavailable {
    /// A holder that may have it, or may have it newer, is silent.
    Stale,
    /// Others kept claiming it.
    Contended,
    /// This node has too much to do.
    Busy,
    /// A member of its cluster refuses this node, which is in no other one.
    Forming,
    /// This node has ended; the engine itself never says so.
    Dead,
}

/// A session as its owner, who keeps it, knows it.
#[derive(Debug)]
pub struct Guest {
    /// The owner.
    pub owner: Life,
    /// The durable content.
    pub record: Record,
}

/// What the application keeps beside a session that this node owns: the decoded values.
pub trait Live: Send + Sync + Sized + 'static {
    /// The live session of a record. Called under a lock of the engine: copy handles, lock nothing. It is dropped under none.
    fn of(record: &Record) -> Self;
}

impl Live for () {
    fn of(_: &Record) {}
}

/// What somebody who opens a session wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// It: that is a use.
    Use,
    /// A look at it: it does not live longer for that.
    Look,
    /// It, and if nobody has it, that it begins here.
    Create,
}

/// The answer to `open`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Open<L> {
    /// It is here. Give it back with [`Engine::close`](crate::engine::Engine::close).
    Here(Opened<L>),
    /// The answer comes as [`Outcome`].
    Wait(Ticket),
    /// See [`Outcome::NotFound`].
    NotFound,
    /// See [`Outcome::Ended`].
    Ended(EndKind, Duration),
    /// See [`Outcome::Unavailable`].
    Unavailable(Unavailable, Duration),
}

/// A session in use by one request.
#[derive(Debug)]
pub struct Opened<L> {
    /// The session.
    pub key: SessionKey,
    /// Names this uninterrupted ownership on this node.
    pub tenure: u32,
    /// The last commit in what the request finds; version 0 if there is none.
    pub tip: Stamp,
    /// How often others' commits were merged into it during this tenure: if it rose, read the record again.
    pub external: u32,
    /// The decoded values.
    pub live: Arc<L>,
    /// It was not only looked at: it is in use until it is closed.
    pub uses: bool,
    /// Until when a token made now says that it lives: a step after it expires if it is not used again.
    pub deadline: Mono,
    /// Once the deadline has moved by so much a client needs another token: then no client's runs out before its session.
    pub step: Duration,
}

impl<L> Clone for Opened<L> {
    fn clone(&self) -> Opened<L> {
        Opened { live: self.live.clone(), ..*self }
    }
}

/// The answer to `commit` and `finish_read`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Commit {
    /// The response may leave.
    Done {
        /// The newest durable commit: what a token names. `None` if the session has none.
        tip: Option<Stamp>,
        /// The level reached.
        level: Level,
        /// This commit's stamp, if one was made.
        stamp: Option<Stamp>,
    },
    /// The response may leave when this version of this claim is durable.
    Wait {
        /// The claim.
        claim: Claim,
        /// The version.
        version: u32,
        /// This commit's stamp, if one was made.
        stamp: Option<Stamp>,
    },
    /// The session moved; the commit went to its owner. The answer comes as [`Outcome::Late`] or [`Outcome::LateFailed`].
    Late(Ticket),
    /// An attribute had been changed elsewhere since the request read it. Nothing was kept.
    Conflict,
    /// The session has ended. Nothing was kept.
    Ended,
    /// Fewer copies could be made than `min_backups`. Nothing was kept.
    UnderReplicated,
    /// The session would be larger than the limit. Nothing was kept.
    TooLarge(Excess),
}

/// Where the state came from that a new owner goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The copy that it held.
    Copy,
    /// Another node: the owner before, or one that held a copy.
    Node(Life),
    /// The store.
    Store,
    /// Several branches, merged.
    Several,
    /// Nobody had anything of it.
    Nothing,
}

/// Something that happened to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// It was created here.
    Created,
    /// This node owns it now.
    Moved {
        /// The owner before, if one was known and it was another node.
        from: Option<Life>,
        /// Where the state came from that it goes on with.
        source: Source,
        /// The claim.
        claim: Claim,
    },
    /// Another node owns it now.
    Left {
        /// The claim that asked for it.
        to: Claim,
    },
    /// It expired here.
    Expired,
    /// It ended.
    Ended(EndKind),
    /// Commits were given up as lost.
    Lost {
        /// A commit that clients have seen and nobody has.
        stamps: Vec<Stamp>,
        /// How many commits were lost at least.
        commits: u32,
    },
    /// Commits that had been given up came back.
    FoundAgain {
        /// One of them.
        stamp: Stamp,
    },
    /// Branches were merged; these attributes had another value on one of them, or there was no room for them.
    Conflict {
        /// Their names.
        discarded: Vec<Arc<str>>,
    },
    /// Bytes that the application could not read were put aside by its first write; the application's side says so.
    Quarantined {
        /// The attribute.
        attribute: Arc<str>,
    },
    /// A copy was made at this node for an owner elsewhere.
    Backed {
        /// The owner.
        owner: Life,
    },
    /// All of its copies are where they should be again.
    Replicated {
        /// The holders.
        on: Vec<Life>,
    },
}

/// What a node knows of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The owner's life, if one is known.
    pub owner: Option<Life>,
    /// The claim.
    pub claim: Claim,
    /// The newest commit known here.
    pub tip: Stamp,
    /// Whether this node owns it.
    pub owned: bool,
    /// Whether this node holds a copy.
    pub held: bool,
    /// The nodes that hold the newest durable state, if this node owns it.
    pub backups: Vec<Life>,
    /// The level of the newest durable state, if this node owns it.
    pub level: Option<Level>,
    /// Bytes of its content here.
    pub bytes: usize,
}

/// A token that a request brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brought {
    /// The commit it names.
    pub stamp: Stamp,
    /// Its deadline has passed: a session that nobody has is called expired, not lost.
    pub expired: bool,
}

/// A write for the store. Its comparison is equality with `expect`, never "greater".
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Write {
    /// Put this record if the row's stamp is exactly `expect` (`None`: if there is no row).
    Put {
        /// The session.
        key: SessionKey,
        /// The stamp that the row is thought to have.
        expect: Option<Stamp>,
        /// The record's stamp.
        stamp: Stamp,
        /// The record.
        record: Bytes,
        /// After this time the store may sweep the row, unless it is written or touched again.
        expires_in: Duration,
    },
    /// Leave an absorbing marker.
    End {
        /// The session.
        key: SessionKey,
        /// Why it ended.
        kind: EndKind,
        /// The id that it goes on under, if that is known.
        next: Option<SessionKey>,
        /// How long the marker stays.
        keep: Duration,
    },
}

impl Write {
    /// The session it is for.
    pub fn key(&self) -> SessionKey {
        match self {
            Write::Put { key, .. } | Write::End { key, .. } => *key,
        }
    }
}

/// A use that the store is to note, if the row's stamp is exactly `stamp`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Touch {
    /// The session.
    pub key: SessionKey,
    /// The stamp that the row is thought to have.
    pub stamp: Stamp,
    /// How long ago it was used.
    pub ago: Duration,
    /// After this time the store may sweep the row, unless it is written or touched again.
    pub expires_in: Duration,
}

/// What became of a [`Write`] or a [`Touch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Written {
    /// It is there.
    Applied,
    /// The row had another stamp, or there was none or one.
    Mismatch,
    /// The session has ended there, and goes on under this id, if that is known. To an end that is what its marker says from now on: the
    /// one that was there before counts, too.
    Ended(EndKind, Option<SessionKey>),
    /// Nothing happened.
    Failed,
    /// Nobody knows: the row must be read before it is written again.
    Unknown,
}

/// What the store has of a session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Loaded {
    /// No row.
    Missing,
    /// An ended marker, with the id that the session goes on under, if that is known.
    Ended(EndKind, Option<SessionKey>),
    /// A record.
    Here {
        /// Its bytes.
        record: Bytes,
        /// How long ago it was written, by the store's clock.
        age: Duration,
        /// How long ago it was written or touched, by the store's clock.
        touched: Duration,
    },
    /// The store could not be asked.
    Failed,
}
