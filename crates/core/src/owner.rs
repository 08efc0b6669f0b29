//! [`Owner`]: the ownership of a session, and the owner's side of a commit: what goes out, and when it is durable.

use crate::config::{Checked, Durability, Level, Reach};
use crate::copy::{Copy, Late, Orphan};
use crate::cx::Cx;
use crate::id::SessionKey;
use crate::late::{answer_late, late_done};
use crate::limits::ORPHANS_MAX;
use crate::link::{Sent, What};
use crate::output::{Failure, Live, Output, Ticket};
use crate::peers::{Given, Next, Peers, Standing};
use crate::record::{Change, Record};
use crate::stamp::{Claim, Life, Stamp};
use crate::time::{Mono, ms};
use crate::view::{Lives, View};
use crate::wire::{LateResult, Message, Set, WireLineage};
use smallvec::SmallVec;
use std::sync::Arc;

/// The ownership of a session, beside its copy.
#[derive(Debug)]
pub(crate) struct Owner<L> {
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
    /// The doubt that the last round answered.
    pub(crate) confirmed: u32,
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

/// A claimant that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closing {
    pub(crate) claim: Claim,
    pub(crate) have: Option<Stamp>,
    pub(crate) due: Mono,
    pub(crate) busy_told: bool,
}

impl<L> Owner<L> {
    pub(crate) fn new(claim: Claim, tenure: u32, live: Arc<L>, confirmed: u32, now: Mono) -> Owner<L> {
        Owner {
            tenure,
            claim,
            version: 0,
            durable: None,
            adopted: Stamp::default(),
            generation: 0,
            list: SmallVec::new(),
            confirmed,
            refused: false,
            running: 0,
            external: 0,
            copied: None,
            closing: None,
            waiting: Vec::new(),
            offered: false,
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

    /// Who is to hold a copy under this view. Of those that were not known to hold one, this is what they have.
    pub(crate) fn place(&mut self, view: &View, key: SessionKey, peers: &mut Peers, given: Given) {
        self.generation = view.generation;
        self.list = view.holders(key, view.me).into_iter().collect();
        for life in &self.list {
            let peer = peers.holder(*life, given);
            if peer.given == Given::Drop {
                // It was to drop its copy, and is to hold one again.
                peer.given = Given::Unknown;
            }
        }
    }

    /// The membership changed: who is to hold a copy now?
    pub(crate) fn replace_list(&mut self, view: &View, key: SessionKey, peers: &mut Peers) {
        peers.note_members(|life| view.may_return(life));
        for peer in peers.iter_mut().filter(|p| view.link(p.life).is_none() && p.given != Given::Drop) {
            // A link that is closed carries nothing on.
            peer.given = Given::Unknown;
        }
        self.place(view, key, peers, Given::Unknown);
        self.shown = Stamp::default();
    }

    /// The highest version that all of the list have acknowledged.
    pub(crate) fn by_list(&self, peers: &Peers) -> Option<u32> {
        self.by_first(peers, self.list.len())
    }

    /// The highest version that the first `n` of the list have acknowledged: those whom everybody asks who makes no more copies.
    pub(crate) fn by_first(&self, peers: &Peers, n: usize) -> Option<u32> {
        self.list.iter().take(n).map(|life| peers.acked(*life)).min().unwrap_or(Some(self.version))
    }

    /// Whether the first `n` of the list have the state that this ownership began with: who committed it has it without saying so, or
    /// knows whom it gave it to. A reader need not wait until a silent owner of before is dead.
    pub(crate) fn adopted_by_first(&self, peers: &Peers, n: usize) -> bool {
        self.list.iter().take(n).all(|l| peers.acked(*l).is_some() || *l == self.adopted.claim.life)
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

    /// When the session is over as far as this node can tell.
    pub(crate) fn ends(&self, record: &Record) -> Mono {
        if self.inherited { record.over() } else { record.expires() }
    }

    /// Whether the session is over here. A request that runs keeps it from being idle, and lengthens no lifetime.
    pub(crate) fn has_ended(&self, record: &Record, now: Mono) -> bool {
        now > if self.running > 0 { record.clock().end } else { self.ends(record) }
    }

    /// What is not durable of an ownership that ends.
    fn orphan(&mut self, record: &Record) -> Option<Orphan> {
        if self.all_durable() {
            return None;
        }
        let durable = self.durable.unwrap_or(0);
        let unacked = record.attributes().iter().filter(|a| a.dot.claim == self.claim && a.dot.version > durable);
        let dots = unacked.map(|a| (a.name.clone(), a.dot)).collect();
        let (claim, version) = (self.claim, self.version);
        let stamp = if version > 0 { claim.at(version) } else { self.adopted };
        Some(Orphan { claim, version, stamp, dots, late: core::mem::take(&mut self.late) })
    }
}

/// Sends every peer what it is to get next. `commit`: the changes of the commit just made.
pub(crate) fn sync<L>(cx: &mut Cx<'_>, own: &Owner<L>, copy: &mut Copy, commit: Option<&[Change]>) {
    let view = cx.view;
    let Copy { record, peers, stored, .. } = copy;
    let (content, version, durable) = (record.tip.version > 0, own.version, own.all_durable());
    let extra = peers.holders().count() > own.list.len();
    // Until the list is of this membership, who is on none may be the one that has a copy: the visit that makes it new comes here again.
    let whole = extra && durable && own.by_list(peers) == Some(version) && own.list == view.holders(cx.key, view.me);
    let mut tidy = true;
    for peer in peers.iter_mut() {
        let (life, listed) = (peer.life, own.list.contains(&peer.life));
        // Who is only thought dead keeps its copy: it may be the other one that there is.
        let superfluous = whole && !listed && !view.is_away(life);
        let now = Standing { content, version, commits: commit.is_some(), durable, listed, superfluous };
        while let Some(next) = peer.next(now)
            && let Some(link) = view.link(life)
            // Should one that is thought dead come back, the walk brings it what it was spared now.
            && (view.peer(life).is_some() || !link.is_behind())
        {
            let (message, what) = own.message(next, life, record, *stored, commit.unwrap_or_default(), cx);
            let ack = what.map(|what| Sent { key: cx.key, claim: own.claim, version, attempt: peer.attempt, what });
            link.send(&message, ack, cx.out);
            peer.note_sent(next, now);
        }
        tidy &= peer.matters();
    }
    if !tidy {
        peers.tidy();
    }
}

/// Tells those who are to have the facade what is durable now.
pub(crate) fn show<L>(cx: &mut Cx<'_>, own: &mut Owner<L>, record: &Record) {
    let view = cx.view;
    let tip = own.durable_tip();
    if tip.version == 0 || tip == own.shown {
        return;
    }
    let everyone = match cx.config.reach {
        Reach::Everyone => true,
        Reach::Placement => false,
        Reach::Auto => view.peers.len() <= 8,
    };
    let first = own.shown.claim != own.claim;
    own.shown = tip;
    let list = if everyone { Lives::new() } else { view.list(cx.key) };
    let expires_ms = ms(record.expires().since(cx.now));
    for peer in view.others().filter(|p| everyone || list.contains(&p.life)) {
        if own.list.contains(&peer.life) {
            continue;
        }
        if let Some(link) = &peer.link {
            let lineage: Option<WireLineage> = first.then(|| (&record.lineage).into());
            link.send(&Message::Facade { key: cx.key, claim: own.claim, tip, expires_ms, lineage }, Some(Sent::note(cx.key)), cx.out);
        }
    }
}

impl<L> Owner<L> {
    /// What is sent, and what its acknowledgement means.
    fn message<'a>(
        &self,
        next: Next,
        to: Life,
        record: &'a Record,
        stored: Option<Stamp>,
        changes: &'a [Change],
        cx: &Cx<'_>,
    ) -> (Message<'a>, Option<What>) {
        let (key, claim, version, tip) = (cx.key, self.claim, self.version, record.tip);
        let lineage = || (&record.lineage).into();
        match next {
            Next::Stay(epoch) => {
                let record = record.to_wire(cx.now);
                (Message::Stay { key, claim: Claim { epoch, life: to }, owner: claim, record }, None)
            }
            Next::Owner => {
                let expires_ms = ms(record.expires().since(cx.now));
                (Message::Facade { key, claim, tip, expires_ms, lineage: Some(lineage()) }, Some(What::Inform))
            }
            Next::Have => (Message::Have { key, claim, tip, idle_ms: idle(record, cx.now), lineage: lineage() }, Some(What::Copy)),
            Next::Delta => {
                // The first commit of a claim builds on the state that the claim adopted.
                let base = if version == 1 { Some(self.adopted) } else { None };
                let set = |c: &'a Change| Set { name: &c.name, value: c.value.as_deref().map(serde_bytes::Bytes::new) };
                (Message::Delta { key, claim, base, version, sets: changes.iter().map(set).collect() }, Some(What::Copy))
            }
            Next::Full => (Message::Full { key, claim, stored, record: record.to_wire(cx.now) }, Some(What::Copy)),
            Next::Drop => (Message::Drop { key, claim, tip, lineage: lineage() }, None),
        }
    }
}

/// How long ago a session was used, for its holders. Of one whose cookie has not come back there is nothing to tell.
fn idle(record: &Record, now: Mono) -> u32 {
    if record.is_first() { u32::MAX } else { ms(now.since(record.used)) }
}

/// Raises what is durable to what the level asks for, and answers those who waited for it; whether it rose.
pub(crate) fn settle_durable<L>(cx: &mut Cx<'_>, own: &mut Owner<L>, copy: &mut Copy) -> bool {
    let Copy { record, orphans, stored, peers, .. } = copy;
    // Whoever makes more copies than this node asks for does not make its commits wait for them.
    let n = usize::from(cx.config.backups);
    let reached = match cx.config.durability {
        Durability::Owner => Some(own.version),
        Durability::Backup => own.by_first(peers, n).or_else(|| own.adopted_by_first(peers, n).then_some(0)),
        Durability::Store => own.in_store(*stored),
    };
    if reached <= own.durable {
        return false;
    }
    own.durable = reached;
    let level = level_of(cx.config, own, peers);
    let durable = reached.unwrap_or(0);
    let tip = own.durable_tip();
    // The list got shorter while commits waited for it. They stay, and more copies may come: but nobody may call them acknowledged.
    let short = cx.config.durability == Durability::Backup && own.list.len() < usize::from(cx.config.min_backups);
    if own.awaited {
        own.awaited = durable < own.version;
        cx.out.push(match short {
            false => Output::Durable { key: cx.key, claim: own.claim, version: durable, tip, level },
            true => Output::Failed { key: cx.key, claim: own.claim, version: durable, failure: Failure::Unknown },
        });
    }
    if durable == own.version {
        orphans.retain(|o| {
            let included = record.lineage.includes(o.stamp);
            if included {
                settle(cx, o, o.is_kept(record).then_some((tip, level)));
            }
            !included
        });
    }
    let claim = own.claim;
    own.late.retain(|late| {
        if late.version <= durable {
            let result = if short { LateResult::Unknown } else { late_done(claim.at(late.version), level) };
            answer_late(cx, late, result);
        }
        late.version > durable
    });
    true
}

/// Answers the commits of a former ownership: with the newest commit and the level at which they are in it, or that nobody can tell.
pub(crate) fn settle(cx: &mut Cx<'_>, o: &Orphan, kept: Option<(Stamp, Level)>) {
    let (claim, version) = (o.claim, o.version);
    cx.out.push(match kept {
        Some((tip, level)) => Output::Durable { key: cx.key, claim, version, tip, level },
        // Either a merge preferred other values or a later commit built on these and replaced them: dots do not tell which.
        None => Output::Failed { key: cx.key, claim, version, failure: Failure::Unknown },
    });
    for late in &o.late {
        let result = kept.map_or(LateResult::Unknown, |(_, level)| late_done(claim.at(late.version), level));
        answer_late(cx, late, result);
    }
}

/// Remembers the commits of an ownership that ends until it is known what becomes of them.
pub(crate) fn orphan(cx: &mut Cx<'_>, orphans: &mut Vec<Orphan>, own: &mut Owner<impl Live>, record: &Record) {
    orphans.extend(own.orphan(record));
    if orphans.len() > ORPHANS_MAX {
        settle(cx, &orphans.remove(0), None);
    }
}

/// The level of what is durable.
pub(crate) fn level_of<L>(config: &Checked, own: &Owner<L>, peers: &Peers) -> Level {
    match config.durability {
        Durability::Store => Level::Store,
        Durability::Owner => Level::Owner,
        Durability::Backup => {
            // The list may have grown since: only those who have it count.
            let has = |l: &&Life| peers.get(**l).is_some_and(|p| p.holds && p.acked >= own.durable);
            match own.list.iter().take(usize::from(config.backups)).filter(has).count() {
                0 => Level::Owner,
                n => Level::Backup(n as u8),
            }
        }
    }
}

/// Late commits that are answered when they are durable, of this ownership and of those before it.
pub(crate) fn late<'a, L>(copy: &'a Copy, own: Option<&'a Owner<L>>) -> impl Iterator<Item = &'a Late> {
    own.into_iter().flat_map(|own| &own.late).chain(copy.orphans.iter().flat_map(|o| &o.late))
}

/// The copy goes: nobody will hear what becomes of these.
pub(crate) fn forget_late<L>(cx: &mut Cx<'_>, copy: &Copy, own: Option<&Owner<L>>, result: LateResult) {
    for late in late(copy, own) {
        answer_late(cx, late, result);
    }
}
