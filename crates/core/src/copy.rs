//! What a node may have of a session: facade, ended marker, copy, ownership.

use crate::config::Checked;
use crate::id::SessionKey;
use crate::limits::{FORMER_MAX, MOVES_MAX, MOVES_WINDOW};
use crate::lineage::Lineage;
use crate::output::{LinkId, Live, Ticket};
use crate::pending::Ending;
use crate::plant::Bug;
use crate::record::Record;
use crate::stamp::{Claim, Life, Stamp};
use crate::time::Mono;
use crate::view::View;
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
    /// What is not durable of an ownership that ends.
    pub(crate) fn of<L>(own: &mut Own<L>, record: &Record) -> Option<Orphan> {
        if own.all_durable() {
            return None;
        }
        let durable = own.durable.unwrap_or(0);
        let unacked = record.attributes().iter().filter(|a| a.dot.claim == own.claim && a.dot.version > durable);
        let dots = unacked.map(|a| (a.name.clone(), a.dot)).collect();
        let (claim, version) = (own.claim, own.version);
        let stamp = if version > 0 { claim.at(version) } else { own.adopted };
        Some(Orphan { claim, version, stamp, dots, late: core::mem::take(&mut own.late) })
    }

    /// Whether this record carries all that they had set.
    pub(crate) fn is_kept(&self, record: &Record) -> bool {
        self.dots.iter().all(|(name, dot)| record.get(name).is_some_and(|a| a.dot == *dot))
    }
}

/// A copy of a session.
#[derive(Debug)]
pub(crate) struct Copy<L> {
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
    /// Who may have copies from the time when this node owned the session: they learn who owns it now when this node does.
    pub(crate) former: SmallVec<[Life; 2]>,
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
    pub(crate) own: Option<Box<Own<L>>>,
}

/// The ownership of a session.
#[derive(Debug)]
pub(crate) struct Own<L> {
    pub(crate) tenure: u32,
    pub(crate) claim: Claim,
    pub(crate) version: u32,
    /// The highest durable version; `None`: not even the adopted state.
    pub(crate) durable: Option<u32>,
    /// The commit that version 0 names.
    pub(crate) adopted: Stamp,
    /// The view under which `list` was computed.
    pub(crate) generation: u32,
    /// Who is to hold a copy.
    pub(crate) list: SmallVec<[Life; 2]>,
    /// Who may hold a copy.
    pub(crate) holders: SmallVec<[Holder; 2]>,
    /// How many holders there have been.
    pub(crate) born: u32,
    /// The doubt that the last round answered.
    pub(crate) confirmed: u32,
    /// Who had the session before this node, and was no member then.
    pub(crate) stranger: Option<Life>,
    /// A holder has promised a greater claim: a new round must end that.
    pub(crate) refused: bool,
    /// Requests that have it open.
    pub(crate) running: u32,
    pub(crate) external: u32,
    /// A rotation has copied this commit: until then no other node's changes are taken.
    pub(crate) copied: Option<(Stamp, Mono)>,
    /// A claimant that waits for running requests and acknowledgements.
    pub(crate) closing: Option<Closing>,
    /// Requests that wait for the end of `closing`.
    pub(crate) waiting: Vec<Ticket>,
    /// A node that had more than enough sessions offered this one, and whoever comes through it or another is to learn where it is now.
    pub(crate) offered: bool,
    /// Peers that get a durable copy while this node stays the owner.
    pub(crate) stay: SmallVec<[(Life, Claim); 1]>,
    /// Peers that get the lineage once all is durable: they offered a branch.
    pub(crate) owed: SmallVec<[Life; 1]>,
    pub(crate) late: Vec<Late>,
    /// The last use that the holders were told.
    pub(crate) touched: Mono,
    /// The last use that the store's row is known to tell.
    pub(crate) told_store: Mono,
    /// In the queue of touches.
    pub(crate) touch_queued: bool,
    /// Nobody has used it here yet: its last use may be later than this node has heard.
    pub(crate) inherited: bool,
    /// A response waits for durability: somebody wants to hear of it.
    pub(crate) awaited: bool,
    /// In the queue of writes.
    pub(crate) queued: bool,
    /// Since when the store lacks something; never, if it has all.
    pub(crate) dirty_since: Mono,
    /// The last facade named this.
    pub(crate) shown: Stamp,
    pub(crate) live: Arc<L>,
}

/// A node that may hold a copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder {
    pub(crate) life: Life,
    /// The version that a delta may build on.
    pub(crate) sent: Option<u32>,
    pub(crate) acked: Option<u32>,
    pub(crate) attempt: u32,
    pub(crate) dropping: bool,
}

/// A claimant that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closing {
    pub(crate) claim: Claim,
    pub(crate) have: Option<Stamp>,
    pub(crate) due: Mono,
    pub(crate) busy_told: bool,
}

impl<L: Live> Copy<L> {
    pub(crate) fn new(record: Record, accepted: Claim, newcomer: bool) -> Copy<L> {
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
            former: SmallVec::new(),
            orphans: Vec::new(),
            reported: None,
            disowned: false,
            reports: 0,
            newcomer,
            own: None,
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
            self.note_former([before.life]);
        }
        self.accepted = self.accepted.max(claim);
        (self.reports, self.disowned) = (0, false);
    }

    /// Remembers whom to tell who owns the session. Beyond the limit the oldest is forgotten: such a copy looks for its owner itself.
    pub(crate) fn note_former(&mut self, lives: impl IntoIterator<Item = Life>) {
        for life in lives {
            if !self.former.contains(&life) {
                self.former.push(life);
            }
            if self.former.len() > FORMER_MAX {
                self.former.remove(0);
            }
        }
    }

    /// When the session is over as far as this node can tell.
    pub(crate) fn ends(&self) -> Mono {
        match &self.own {
            Some(own) if !own.inherited => self.record.expires(),
            _ => self.record.over(),
        }
    }

    /// Whether the session is over here. A request that runs keeps it from being idle, and lengthens no lifetime.
    pub(crate) fn has_ended(&self, now: Mono) -> bool {
        let runs = self.own.as_ref().is_some_and(|own| own.running > 0);
        now > if runs { self.record.clock().end } else { self.ends() }
    }

    /// Forgets what it was told, and the branch, if the record has come to include it.
    pub(crate) fn settle_told(&mut self) {
        let record = &self.record;
        self.branch.take_if(|b| record.lineage.covers(&b.lineage));
        self.told.retain(|s| !record.satisfies(*s));
    }

    /// Late commits that are answered when they are durable, of this ownership and of those before it.
    pub(crate) fn late(&self) -> impl Iterator<Item = &Late> {
        self.own.iter().flat_map(|own| &own.late).chain(self.orphans.iter().flat_map(|o| &o.late))
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

impl<L> Own<L> {
    pub(crate) fn new(claim: Claim, tenure: u32, live: Arc<L>, confirmed: u32, now: Mono) -> Own<L> {
        Own {
            tenure,
            claim,
            version: 0,
            durable: None,
            adopted: Stamp::default(),
            generation: 0,
            list: SmallVec::new(),
            holders: SmallVec::new(),
            born: 0,
            confirmed,
            stranger: None,
            refused: false,
            running: 0,
            external: 0,
            copied: None,
            closing: None,
            waiting: Vec::new(),
            offered: false,
            stay: SmallVec::new(),
            owed: SmallVec::new(),
            late: Vec::new(),
            touched: now,
            told_store: Mono::NONE,
            touch_queued: false,
            inherited: false,
            awaited: false,
            queued: false,
            dirty_since: Mono::NEVER,
            shown: Stamp::default(),
            live,
        }
    }

    /// Who is to hold a copy under this view.
    pub(crate) fn place(&mut self, view: &View, key: SessionKey) {
        self.generation = view.generation;
        self.list = view.holders(key, view.me).into_iter().collect();
        for at in 0..self.list.len() {
            let life = self.list[at];
            self.holder_or_new(life);
        }
    }

    /// The membership changed: who is to hold a copy now?
    pub(crate) fn replace_list(&mut self, view: &View, key: SessionKey) {
        // The memory of a life that was replaced is gone; one that is only thought dead may come back with its copy. A link that is
        // closed carries nothing on.
        self.holders.retain(|h| view.may_return(h.life));
        for h in &mut self.holders {
            if view.link(h.life).is_none() {
                h.sent = None;
            }
        }
        self.place(view, key);
        for h in &mut self.holders {
            h.dropping &= !self.list.contains(&h.life);
        }
        self.shown = Stamp::default();
    }

    /// A link closed: what was sent on it may not have arrived.
    pub(crate) fn forget_sent(&mut self, life: Life, config: &Checked) {
        if self.holder(life).is_some() && config.planted(Bug::ReuseVersion) && !self.all_durable() {
            self.version = self.durable.unwrap_or(0);
        }
        if let Some(h) = self.holder(life) {
            (h.sent, h.attempt) = (None, h.attempt.wrapping_add(1));
            h.dropping = false;
        }
    }

    pub(crate) fn holder(&mut self, life: Life) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|h| h.life == life)
    }

    pub(crate) fn holder_or_new(&mut self, life: Life) -> &mut Holder {
        let at = self.holders.iter().position(|h| h.life == life).unwrap_or_else(|| {
            // A holder that was given up and comes back starts where no frame to its former self has been.
            self.born += 1;
            self.holders.push(Holder { life, sent: None, acked: None, attempt: self.born << 16, dropping: false });
            self.holders.len() - 1
        });
        &mut self.holders[at]
    }

    /// The highest version that all of the list have acknowledged.
    pub(crate) fn by_list(&self) -> Option<u32> {
        self.by_first(self.list.len())
    }

    /// The highest version that the first `n` of the list have acknowledged: those whom everybody asks who makes no more copies.
    pub(crate) fn by_first(&self, n: usize) -> Option<u32> {
        let acked = |l: &Life| self.holders.iter().find(|h| h.life == *l).and_then(|h| h.acked);
        self.list.iter().take(n).map(acked).min().unwrap_or(Some(self.version))
    }

    /// Whether the first `n` of the list have the state that this ownership began with: who committed it has it without saying so, or
    /// knows whom it gave it to. A reader need not wait until a silent owner of before is dead.
    pub(crate) fn adopted_by_first(&self, n: usize) -> bool {
        let acked = |l: Life| self.holders.iter().any(|h| h.life == l && h.acked.is_some());
        self.list.iter().take(n).all(|l| acked(*l) || *l == self.adopted.claim.life)
    }

    /// The newest durable commit.
    pub(crate) fn durable_tip(&self) -> Stamp {
        match self.durable {
            None => Stamp::default(),
            Some(0) => self.adopted,
            Some(version) => self.claim.at(version),
        }
    }

    /// The version that the store has, if that is one of this ownership, or what it began with.
    pub(crate) fn in_store(&self, stored: Option<Stamp>) -> Option<u32> {
        match stored {
            Some(stamp) if stamp.claim == self.claim => Some(stamp.version),
            Some(stamp) if stamp == self.adopted => Some(0),
            _ => None,
        }
    }

    pub(crate) fn all_durable(&self) -> bool {
        self.durable == Some(self.version)
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
