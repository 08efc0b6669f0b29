//! Clients and their requests: each request is what a handler of a web application does, call by call.

use crate::marks::Mark;
use crate::options::{Fault, MS, S};
use crate::oracle::Fate;
use crate::world::{Ev, Phase, World};
use bytes::Bytes;
use core::time::Duration;
use outlive_core::Brought;
use outlive_core::config::Level;
use outlive_core::id::SessionKey;
use outlive_core::output::{Commit, Failure, Open, Opened, Outcome, Ticket};
use outlive_core::record::{Base, Change, LOST, Record};
use outlive_core::stamp::{Claim, Stamp};
use outlive_core::time::Mono;
use outlive_core::wire::EndKind;
use std::collections::BTreeSet;
use std::sync::Arc;

pub(crate) mod ending;

/// One browser.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) tokens: bool,
    /// The session whose cookie it has.
    pub(crate) session: Option<usize>,
    pub(crate) token: Option<Stamp>,
    /// Until when the token says that the session may be alive, in seconds of the node that made it.
    deadline: i64,
    /// It only reads.
    reader: bool,
    /// What its token's response included.
    pub(crate) seen: BTreeSet<u32>,
    node: Option<usize>,
    busy: bool,
    /// Its last read after the faults was answered.
    pub(crate) done: bool,
    /// That read lacked what the store alone had when it was opened: it reads again.
    pub(crate) looked: bool,
    /// Attempts on a session that has ended.
    ended_tries: u32,
    /// The last answer, and what it showed.
    pub(crate) last: Option<(Answer, BTreeSet<u32>)>,
}

impl Client {
    pub(crate) fn new(tokens: bool) -> Client {
        Client {
            tokens,
            session: None,
            token: None,
            deadline: 0,
            reader: false,
            seen: BTreeSet::new(),
            node: None,
            busy: false,
            done: false,
            looked: false,
            ended_tries: 0,
            last: None,
        }
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Create,
    Read,
    /// Appends to the list, and sets an attribute of its own.
    Append,
    /// Sets an attribute of its own.
    Set,
    /// The same, and sets or removes an attribute that others have in common.
    Flag(bool),
    Logout,
    Rotate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opening,
    Running,
    Commit { claim: Claim, version: u32, key: SessionKey },
    Late,
    Ending,
}

/// One request at one node.
#[derive(Debug)]
pub(crate) struct Req {
    pub(crate) client: usize,
    pub(crate) session: usize,
    pub(crate) node: usize,
    pub(crate) generation: u32,
    pub(crate) kind: Kind,
    pub(crate) token: Option<Stamp>,
    /// Its node thinks that the token has run out.
    pub(crate) expired: bool,
    /// When it came, and when the session may have been used before.
    pub(crate) came: i64,
    pub(crate) before: i64,
    /// When what was read expires, and the step of its uses.
    until: Option<(Mono, Duration)>,
    /// What the client's token included when the request left.
    pub(crate) must: BTreeSet<u32>,
    stage: Stage,
    tries: u32,
    opened: Option<Opened<()>>,
    guest: bool,
    /// What a guest was served.
    copied: Option<Record>,
    /// The list and its commit as read at first.
    list: (Option<Stamp>, Vec<u32>),
    seen: BTreeSet<u32>,
    value: Option<u32>,
    stamp: Option<Stamp>,
    /// The session that a rotation makes, and what its token is to name once it is durable.
    next: Option<usize>,
    made: Option<Option<Stamp>>,
    gone: bool,
    /// The last commit of what was read.
    read: Option<Stamp>,
}

impl Req {
    /// It brings a token that has not run out, as its node thinks.
    pub(crate) fn says_alive(&self) -> bool {
        self.token.is_some() && !self.expired
    }

    /// Its node has been asked for the session and has not got it yet.
    pub(crate) fn waits_to_open(&self) -> bool {
        self.tries > 0 && self.stage == Stage::Opening
    }

    /// It waits for an answer to this try.
    pub(crate) fn waits(&self, tries: u32) -> bool {
        self.tries == tries && matches!(self.stage, Stage::Opening | Stage::Late | Stage::Ending)
    }
}

/// What the client gets.
#[expect(dead_code, reason = "the trace prints it whole")]
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Ok { tip: Option<Stamp>, level: Option<Level> },
    Failed(&'static str),
    Unknown(&'static str),
    NotFound,
    Ended(EndKind),
}

const LIST: &str = "log";
/// The attribute that scenarios set and remove.
pub(crate) const FLAG: &str = "flag";

fn own_name(value: u32) -> Arc<str> {
    format!("e{value}").into()
}

impl World {
    pub(crate) fn make_clients(&mut self) {
        for _ in 0..self.opts.sessions {
            for first in [true, false] {
                let mut client = Client::new(first || self.opts.both_tokens);
                client.reader = self.opts.clocks.as_ref().is_some_and(|c| self.clocks.chance(c.readers));
                self.clients.push(client);
            }
        }
    }

    fn think(&mut self, client: usize) {
        if self.scripted && self.phase == Phase::Chaos {
            return;
        }
        let mut after = self.rng.around(self.opts.think);
        if let Some(clocks) = &self.opts.clocks
            && self.phase == Phase::Chaos
            && self.clocks.chance(60)
        {
            // Now and then somebody has lunch.
            after = self.clocks.pick(&clocks.idle).copied().unwrap_or(S).min(60 * S) * self.clocks.range(60, 150) / 100;
        }
        self.at(after, Ev::Client(client));
    }

    /// A client sends its next request.
    pub(crate) fn client_turn(&mut self, client: usize) {
        match self.phase {
            Phase::Chaos => {}
            Phase::Healing if self.now - self.healed < 2 * S && self.opts.seed.is_multiple_of(2) => {}
            Phase::Reading => return self.read_once_more(client),
            Phase::Healing | Phase::Done => return,
        }
        if self.clients[client].busy {
            return;
        }
        let first = client.is_multiple_of(2);
        let partner = client ^ 1;
        if self.clients[client].session.is_none() && !first {
            // It gets the cookie from its other half.
            match self.clients.get(partner).and_then(|p| p.session) {
                Some(session) => {
                    let c = &mut self.clients[client];
                    (c.session, c.token, c.ended_tries) = (Some(session), None, 0);
                    c.seen.clear();
                }
                None => return self.think(client),
            }
        }
        let kind = match self.clients[client].session {
            None => Kind::Create,
            Some(_) => match self.rng.below(100) {
                0 if self.opts.has(Fault::Logout) => Kind::Logout,
                1 if self.opts.has(Fault::Rotate) => Kind::Rotate,
                0..35 => Kind::Read,
                35..70 => Kind::Append,
                _ => Kind::Set,
            },
        };
        let kind = match kind {
            Kind::Append | Kind::Set if self.clients[client].reader => {
                self.mark(Mark::Reader);
                Kind::Read
            }
            kind => kind,
        };
        let node = self.choose_node(client);
        self.request(client, node, kind);
    }

    fn choose_node(&mut self, client: usize) -> usize {
        let sticky = self.clients[client].node.filter(|_| !(self.opts.has(Fault::Wander) && self.rng.chance(300)));
        let avoid = |w: &World, n: usize| w.nodes[n].proc.as_ref().is_none_or(|p| p.draining.is_some());
        if let Some(node) = sticky.filter(|n| !avoid(self, *n)) {
            return node;
        }
        let good: Vec<usize> = self.running().into_iter().filter(|n| !avoid(self, *n)).collect();
        let any = self.running();
        // A balancer that has not noticed yet sends requests to whoever drains.
        let of = if good.is_empty() || self.rng.chance(50) { &any } else { &good };
        let node = self.rng.pick(of).copied().unwrap_or(0);
        self.clients[client].node = Some(node);
        node
    }

    /// Sends a request; its number.
    pub(crate) fn request(&mut self, client: usize, node: usize, kind: Kind) -> Option<u64> {
        let id = self.new_request(client, node, kind)?;
        self.at(200, Ev::Arrive(id));
        Some(id)
    }

    fn new_request(&mut self, client: usize, node: usize, kind: Kind) -> Option<u64> {
        let Some(p) = self.nodes[node].proc.as_ref() else {
            self.clients[client].node = None;
            self.think(client);
            return None;
        };
        let generation = p.generation;
        let session = match (kind, self.clients[client].session) {
            (Kind::Create, Some(session)) if self.scripted => session,
            (Kind::Create, _) | (_, None) => self.new_session(),
            (_, Some(session)) => session,
        };
        let came = self.now;
        if kind == Kind::Create {
            self.born(session, node);
        }
        // A request that runs is a use as long as it runs.
        let busy = self.reqs.values().any(|r| r.session == session);
        let before = if busy { came } else { self.sessions[session].span.maybe };
        let deadline = self.clients[client].deadline;
        let expired = self.token_expired(node, deadline);
        let c = &mut self.clients[client];
        c.busy = true;
        let req = Req {
            expired,
            came,
            before,
            until: None,
            client,
            session,
            node,
            generation,
            kind,
            token: c.token.filter(|_| c.tokens),
            must: c.seen.clone(),
            stage: Stage::Opening,
            tries: 0,
            opened: None,
            guest: false,
            copied: None,
            list: (None, Vec::new()),
            seen: BTreeSet::new(),
            value: None,
            stamp: None,
            next: None,
            made: None,
            gone: false,
            read: None,
        };
        let id = self.next_req;
        self.next_req += 1;
        self.reqs.insert(id, req);
        self.at(20 * S, Ev::Deadline(id));
        Some(id)
    }

    fn step_later(&mut self, id: u64, after: i64) {
        self.at(after, Ev::Step(id));
    }

    fn unanswered_later(&mut self, id: u64, tries: u32) {
        self.at(60 * S, Ev::Unanswered(id, tries));
    }

    fn key(&self, id: u64) -> Option<SessionKey> {
        self.reqs.get(&id).and_then(|r| self.sessions.get(r.session)).map(|s| s.key)
    }

    /// The request is at its node.
    pub(crate) fn open(&mut self, id: u64) {
        let Some(key) = self.key(id) else { return };
        let Some(r) = self.reqs.get_mut(&id) else { return };
        let (node, kind, client) = (r.node, r.kind, r.client);
        let token = r.token.map(|stamp| Brought { stamp, expired: r.expired });
        let session = r.session;
        r.tries += 1;
        let tries = r.tries;
        if tries > 20 {
            return self.answer(id, Answer::Failed("moves on and on"));
        }
        self.maybe_used(session);
        self.log(node, || format!("{key:?} request {id} of client {client}: {kind:?}, token {:?}, try {tries}", token.map(|t| t.stamp)));
        if kind == Kind::Create {
            match self.call(node, |e, now, out| e.create(now, key, out)) {
                Some(Ok(opened)) => self.opened(id, opened),
                _ => self.answer(id, Answer::Failed("cannot create")),
            }
            return;
        }
        match self.call(node, |e, now, out| e.open(now, key, token, out)) {
            Some(Open::Here(opened)) => self.opened(id, opened),
            Some(Open::Wait(ticket)) => {
                let generation = self.reqs.get(&id).map_or(0, |r| r.generation);
                self.tickets.insert((node, generation, ticket), id);
                self.at(60 * S, Ev::Unanswered(id, tries));
            }
            Some(Open::NotFound) => self.answer(id, Answer::NotFound),
            Some(Open::Ended(kind, _)) => self.answer(id, Answer::Ended(kind)),
            Some(Open::Unavailable(why, _)) => self.unavailable(id, why),
            _ => self.answer(id, Answer::Failed("no process")),
        }
    }

    fn unavailable(&mut self, id: u64, why: outlive_core::output::Unavailable) {
        use outlive_core::output::Unavailable as U;
        self.mark(match why {
            U::Contended => Mark::Contended,
            U::Forming => Mark::Forming,
            _ => Mark::Unavailable,
        });
        let why = match why {
            U::Stale => "unavailable: stale",
            U::Contended => "unavailable: contended",
            U::Busy => "unavailable: busy",
            _ => "unavailable",
        };
        self.answer(id, Answer::Failed(why));
    }

    fn opened(&mut self, id: u64, opened: Opened<()>) {
        let Some(r) = self.reqs.get_mut(&id) else { return };
        let node = r.node;
        r.stage = Stage::Running;
        r.opened = Some(opened.clone());
        let record = self.nodes[node].proc.as_ref().and_then(|p| p.engine.read(&opened, |r, _| r.clone()));
        let Some(record) = record else {
            return self.violate(format!("n{node} opened {:?} and cannot read it", opened.key));
        };
        if self.reqs.get(&id).is_some_and(|r| r.tries > 1) && self.is_from_row(&record) {
            self.mark(Mark::ReadFromRow);
        }
        if record.get(LOST).is_some() {
            self.log(node, || format!("{:?} request {id} finds that something was lost", opened.key));
        }
        self.handler_starts(id, &record);
    }

    /// Whether no process that made a commit of it lives.
    fn is_from_row(&self, record: &Record) -> bool {
        self.opts.clocks.is_some()
            && record.lineage.listed().iter().all(|s| self.nodes.iter().flat_map(|n| &n.proc).all(|p| p.engine.life() != s.claim.life))
    }

    fn handler_starts(&mut self, id: u64, record: &Record) {
        self.served(id, record);
        let pause = match self.rng.below(100) {
            _ if self.scripted => self.handler,
            0..70 => self.rng.below(3 * MS as u64) as i64,
            70..93 => self.rng.below(60 * MS as u64) as i64,
            93..98 => self.rng.below(S as u64) as i64,
            _ if self.opts.has(Fault::SlowHandlers) => self.rng.below(12 * S as u64) as i64,
            _ => 0,
        };
        let Some(r) = self.reqs.get_mut(&id) else { return };
        r.list = list_of(record);
        r.seen = own_of(record);
        r.read = Some(record.tip);
        r.until = Some((record.clock().deadline(record.used), record.clock().step()));
        let session = r.session;
        self.maybe_used(session);
        self.at(pause, Ev::Step(id));
    }

    /// The handler has done its work: commit.
    pub(crate) fn handler_done(&mut self, id: u64) {
        let Some(r) = self.reqs.get(&id) else { return };
        if r.stage != Stage::Running {
            return;
        }
        let (kind, session) = (r.kind, r.session);
        self.maybe_used(session);
        match kind {
            Kind::Read => self.finish_read(id),
            Kind::Create | Kind::Append | Kind::Set | Kind::Flag(_) => self.commit(id),
            Kind::Logout => self.logout(id),
            Kind::Rotate => self.rotate(id),
        }
    }

    fn finish_read(&mut self, id: u64) {
        let Some(r) = self.reqs.get(&id) else { return };
        let node = r.node;
        let Some(opened) = r.opened.clone() else {
            // A guest's copy is durable as it is.
            return self.answer(id, Answer::Ok { tip: None, level: None });
        };
        let commit = self.call(node, |e, now, out| e.finish_read(now, &opened, out));
        self.call(node, |e, now, out| e.close(now, &opened, out));
        if matches!(commit, Some(Commit::Wait { .. })) {
            self.mark(Mark::ReadWaited);
        }
        self.committed(id, opened.key, commit);
    }

    fn commit(&mut self, id: u64) {
        let Some(r) = self.reqs.get(&id) else { return };
        let (node, kind, session, client, opened) = (r.node, r.kind, r.session, r.client, r.opened.clone());
        // What is committed builds on what is there now, as `update` does; a session that has moved is as it was read.
        let fresh = opened.as_ref().and_then(|o| {
            let engine = &self.nodes[node].proc.as_ref()?.engine;
            engine.read(o, |r, _| (list_of(r), own_of(r)))
        });
        if let Some((list, seen)) = fresh
            && let Some(r) = self.reqs.get_mut(&id)
        {
            r.list = list;
            r.seen.extend(seen);
        }
        let value = self.next_value;
        self.next_value += 1;
        let in_list = matches!(kind, Kind::Create | Kind::Append);
        let Some(r) = self.reqs.get_mut(&id) else { return };
        r.value = Some(value);
        let (base, mut list) = r.list.clone();
        let read = r.read;
        list.push(value);
        let family = self.sessions[session].family;
        self.sessions[session].allocate(value, client, in_list);
        let mut changes = vec![Change { name: own_name(value), base: Base::Absent, value: Some(encode(family, &[value])) }];
        if in_list {
            changes.push(Change { name: LIST.into(), base: base.into(), value: Some(encode(family, &list)) });
        }
        if let Kind::Flag(up) = kind {
            let engine = self.nodes[node].proc.as_ref().map(|p| p.engine.clone());
            let base = engine.zip(opened.as_ref()).and_then(|(e, o)| e.read(o, |r, _| r.get(FLAG).map(|a| a.dot))).flatten();
            changes.push(Change { name: FLAG.into(), base: base.into(), value: up.then(|| encode(family, &[])) });
        }
        if kind == Kind::Create {
            changes.extend(self.own_limits(session));
        }
        let key = self.sessions[session].key;
        let Some(opened) = opened else {
            let Some(ticket) = self.call(node, |e, now, out| e.commit_late(now, key, read, &changes, out)) else { return };
            self.log(node, || format!("{key:?} request {id} commits e{value} as a guest"));
            return self.late(id, ticket);
        };
        let commit = self.call(node, |e, now, out| e.commit(now, &opened, &changes, out));
        self.log(node, || format!("{key:?} request {id} commits e{value}{}: {commit:?}", if in_list { " and the list" } else { "" }));
        self.call(node, |e, now, out| e.close(now, &opened, out));
        self.committed(id, key, commit);
    }

    fn late(&mut self, id: u64, ticket: Ticket) {
        let Some(r) = self.reqs.get_mut(&id) else { return };
        r.stage = Stage::Late;
        if let Some(value) = r.value {
            self.sessions[r.session].late(value);
        }
        let at = (r.node, r.generation, ticket);
        let tries = r.tries;
        self.tickets.insert(at, id);
        self.at(60 * S, Ev::Unanswered(id, tries));
    }

    fn committed(&mut self, id: u64, key: SessionKey, commit: Option<Commit>) {
        let Some(commit) = commit else { return };
        if let Commit::Done { stamp: Some(stamp), .. } | Commit::Wait { stamp: Some(stamp), .. } = commit {
            self.note_stamp(id, stamp);
        }
        if let Commit::Done { stamp: Some(stamp), .. } = commit {
            self.note_durable(key, stamp.claim, stamp.version);
        }
        match commit {
            Commit::Done { tip, level, .. } => self.answer(id, Answer::Ok { tip, level: tip.map(|_| level) }),
            Commit::Wait { claim, version, .. } => {
                self.mark(Mark::CommitWaited);
                if let Some(r) = self.reqs.get_mut(&id) {
                    r.stage = Stage::Commit { claim, version, key };
                }
                self.at(5 * S, Ev::CommitBound(id));
            }
            Commit::Late(ticket) => self.late(id, ticket),
            Commit::Conflict => {
                self.mark(Mark::CommitConflict);
                self.answer(id, Answer::Failed("conflict"));
            }
            Commit::Ended => self.answer(id, Answer::Ended(EndKind::Invalidated)),
            Commit::TooLarge(_) => {
                self.mark(Mark::TooLarge);
                self.answer(id, Answer::Failed("too large"));
            }
            _ => self.answer(id, Answer::Failed("refused")),
        }
    }

    // ---- answers of engines ---------------------------------------------------------------------------------------------

    pub(crate) fn settled(&mut self, node: usize, generation: u32, ticket: Ticket, outcome: Outcome) {
        let Some(id) = self.tickets.remove(&(node, generation, ticket)) else { return };
        let name = match &outcome {
            Outcome::Guest(g) => format!("guest of {:?}", g.owner),
            other => format!("{other:?}"),
        };
        self.log(node, || format!("request {id}: {name}"));
        match outcome {
            Outcome::Again => self.open(id),
            Outcome::NotFound => self.answer(id, Answer::NotFound),
            Outcome::Ended(kind, _) => self.answer(id, Answer::Ended(kind)),
            Outcome::Unavailable(why, _) => self.unavailable(id, why),
            Outcome::Guest(guest) => {
                let Some(r) = self.reqs.get_mut(&id) else { return };
                r.guest = true;
                r.stage = Stage::Running;
                r.copied = Some(guest.record.clone());
                self.mark(Mark::Guest);
                self.handler_starts(id, &guest.record);
            }
            Outcome::Late { .. } if self.ends_copied(id) => self.copied_ended(id),
            Outcome::LateFailed(failure) if self.ends_copied(id) => self.copied_not_ended(id, failure),
            Outcome::Late { stamp, level } => {
                self.mark(Mark::LateCommitDone);
                self.note_stamp(id, stamp);
                self.answer(id, Answer::Ok { tip: Some(stamp), level: Some(level) });
            }
            Outcome::LateFailed(Failure::Unknown) => {
                self.mark(Mark::LateCommitUnknown);
                self.answer(id, Answer::Unknown("late commit"));
            }
            // It has expired.
            Outcome::LateFailed(Failure::Ended) if self.reqs.get(&id).is_some_and(|r| self.sessions[r.session].end_asked == 0) => {
                self.mark(Mark::LateCommitNowhere);
                self.answer(id, Answer::Unknown("late, and it has expired"));
            }
            Outcome::LateFailed(Failure::Ended) => self.answer(id, Answer::Ended(EndKind::Invalidated)),
            Outcome::LateFailed(Failure::TooLarge(_)) => {
                self.mark(Mark::TooLarge);
                self.answer(id, Answer::Failed("late, and too large"));
            }
            Outcome::LateFailed(_) => {
                self.mark(Mark::LateCommitConflict);
                self.answer(id, Answer::Failed("late conflict"));
            }
            Outcome::End(done) => self.end_answered(id, done),
            _ => {}
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one output")]
    pub(crate) fn durable(&mut self, node: usize, generation: u32, key: SessionKey, claim: Claim, version: u32, tip: Stamp, level: Level) {
        for id in self.waiting(node, generation, key, claim, version) {
            self.answer(id, Answer::Ok { tip: (tip.version > 0).then_some(tip), level: Some(level) });
        }
        if self.info_claim(node, key).is_some_and(|c| c != claim) {
            self.mark(Mark::DurableAfterMove);
        }
    }

    fn info_claim(&self, node: usize, key: SessionKey) -> Option<Claim> {
        self.nodes[node].proc.as_ref().and_then(|p| p.engine.info(key)).map(|i| i.claim)
    }

    pub(crate) fn commit_failed(&mut self, node: usize, generation: u32, key: SessionKey, claim: Claim, version: u32, failure: Failure) {
        for id in self.waiting(node, generation, key, claim, version) {
            self.answer(
                id,
                match failure {
                    Failure::Ended => Answer::Ended(EndKind::Invalidated),
                    // It was committed, and a merge preferred another value; its other attribute may well be there.
                    _ => Answer::Unknown("commit"),
                },
            );
        }
        if failure == Failure::Unknown {
            self.mark(Mark::CommitFailedUnknown);
        }
    }

    fn waiting(&self, node: usize, generation: u32, key: SessionKey, claim: Claim, version: u32) -> Vec<u64> {
        let waits = |r: &Req| matches!(r.stage, Stage::Commit { claim: c, version: v, key: k } if c == claim && v <= version && k == key);
        self.reqs.iter().filter(|(_, r)| r.node == node && r.generation == generation && waits(r)).map(|(id, _)| *id).collect()
    }

    pub(crate) fn commit_bound(&mut self, id: u64) {
        if matches!(self.reqs.get(&id).map(|r| r.stage), Some(Stage::Commit { .. })) {
            self.answer(id, Answer::Unknown("no answer within 5 s"));
        }
    }

    // ---- answers to clients ---------------------------------------------------------------------------------------------

    /// The process died with the request in it.
    pub(crate) fn connection_lost(&mut self, id: u64) {
        let Some(r) = self.reqs.get(&id) else { return };
        let began = r.value.is_some() || matches!(r.stage, Stage::Ending) || r.next.is_some();
        self.answer(id, if began { Answer::Unknown("process died") } else { Answer::Failed("process died") });
    }

    /// Nobody listens there any more.
    pub(crate) fn refused(&mut self, id: u64) {
        self.answer(id, Answer::Failed("connection refused"));
    }

    /// The client waits no longer; the request goes on.
    pub(crate) fn client_gives_up(&mut self, id: u64) {
        let Some(r) = self.reqs.get_mut(&id) else { return };
        if r.gone {
            return;
        }
        r.gone = true;
        let (client, session) = (r.client, r.session);
        self.clients[client].busy = false;
        self.clients[client].node = None;
        if self.sessions[session].created || self.phase == Phase::Reading {
            self.think(client);
        } else {
            self.sessions[session].abandoned = true;
            self.think(client);
        }
    }

    fn answer(&mut self, id: u64, answer: Answer) {
        if let (Answer::Ok { tip, level }, Some(r)) = (&answer, self.reqs.get(&id))
            && r.next.is_some()
            && r.made.is_none()
        {
            return self.rotated(id, *tip, *level);
        }
        let Some(r) = self.reqs.remove(&id) else { return };
        let (node, client, session) = (r.node, r.client, r.session);
        let key = self.sessions[session].key;
        self.maybe_used(session);
        if matches!(answer, Answer::Ok { .. }) {
            self.used(session, r.came);
        }
        let late = if r.gone { ", too late" } else { "" };
        self.log(node, || format!("{key:?} request {id} of client {client}: {answer:?}{late}"));
        if let Some(next) = r.next {
            // The old id stays in use; nobody has the new one.
            self.sessions[next].abandoned = true;
            let key = self.sessions[next].key;
            self.call(node, |e, now, out| e.end(now, key, None, out));
        }
        if r.opened.is_some()
            && r.stage == Stage::Running
            && let Some(opened) = &r.opened
        {
            self.call(node, |e, now, out| e.close(now, opened, out));
        }
        if let Some(value) = r.value {
            let fate = match &answer {
                Answer::Ok { .. } if !r.gone => Fate::Ok,
                Answer::Failed(_) => Fate::Failed,
                _ => Fate::Unknown,
            };
            self.sessions[session].decide(value, fate);
        }
        if r.kind == Kind::Create {
            self.created(&r, &answer);
        }
        if r.gone {
            self.mark(Mark::LateResponse);
            return;
        }
        self.clients[client].busy = false;
        let mut shown = r.seen.clone();
        shown.extend(r.value);
        self.clients[client].last = Some((answer.clone(), shown));
        match &answer {
            Answer::Ok { tip, level } => {
                let mut seen = r.seen.clone();
                seen.extend(r.value);
                if tip.is_some() {
                    self.acknowledge(node, session, &seen, *level);
                }
                let now =
                    self.nodes[node].proc.as_ref().and_then(|p| p.engine.peek(key, |r, _| (r.clock().deadline(r.used), r.clock().step())));
                let until = now.or(r.until).map(|until| (self.deadline(node, until.0), until.1.as_secs().max(1) as i64));
                let c = &mut self.clients[client];
                if c.session == Some(session) && tip.is_some() {
                    if let Some((deadline, _)) = until.filter(|(d, step)| c.token != *tip || c.deadline + step <= *d) {
                        c.deadline = deadline;
                    }
                    c.token = *tip;
                    c.seen = seen;
                }
                if self.phase == Phase::Reading {
                    self.read_at_the_end(client, session, r.came, &r.seen);
                }
            }
            Answer::NotFound => {
                self.mark(Mark::NotFound);
                self.not_found(&r);
                if self.sessions[session].outlived {
                    // It begins anew; the other half of the pair follows.
                    let c = &mut self.clients[client];
                    if client.is_multiple_of(2) && self.phase == Phase::Chaos {
                        (c.session, c.token) = (None, None);
                        c.seen.clear();
                    } else if client % 2 == 1 && self.clients[client ^ 1].session != Some(session) {
                        let partner = self.clients[client ^ 1].session;
                        let c = &mut self.clients[client];
                        (c.session, c.token) = (partner, None);
                        c.seen.clear();
                    }
                }
            }
            Answer::Ended(_) => {
                self.mark(Mark::EndedServed);
                self.end_seen(&r);
                let c = &mut self.clients[client];
                c.ended_tries += 1;
                if c.ended_tries > 3 && client.is_multiple_of(2) {
                    // It logs in again.
                    (c.session, c.token, c.ended_tries) = (None, None, 0);
                    c.seen.clear();
                } else if c.ended_tries > 3 {
                    let partner = self.clients[client ^ 1].session;
                    let c = &mut self.clients[client];
                    if partner != c.session {
                        (c.session, c.token, c.ended_tries) = (partner, None, 0);
                        c.seen.clear();
                    }
                }
                if self.phase == Phase::Reading {
                    self.clients[client].done = true;
                }
            }
            Answer::Failed(_) | Answer::Unknown(_) => {
                if self.rng.chance(300) {
                    self.clients[client].node = None;
                }
            }
        }
        self.think(client);
    }

    fn created(&mut self, r: &Req, answer: &Answer) {
        if let (Answer::Ok { .. }, false) = (answer, r.gone) {
            self.sessions[r.session].created = true;
            let c = &mut self.clients[r.client];
            c.session = Some(r.session);
        } else {
            // Nobody has its id: the library ends it.
            self.sessions[r.session].abandoned = true;
            self.sessions[r.session].end_asked += 1;
            let key = self.sessions[r.session].key;
            if self.proc_mut(r.node, r.generation).is_some() {
                self.call(r.node, |e, now, out| e.end(now, key, None, out));
            }
        }
    }

    fn note_stamp(&mut self, id: u64, stamp: Stamp) {
        let Some(r) = self.reqs.get_mut(&id) else { return };
        r.stamp = Some(stamp);
        let (Some(value), session) = (r.value, r.session) else { return };
        self.stamped(session, value, stamp);
    }

    // ---- after the faults -----------------------------------------------------------------------------------------------

    pub(crate) fn start_reading(&mut self) {
        self.healed = self.now;
        for client in 0..self.clients.len() {
            self.clients[client].busy = false;
            self.clients[client].done = self.clients[client].session.is_none();
            let after = self.rng.below(200 * MS as u64) as i64;
            self.at(after, Ev::Client(client));
        }
    }

    fn read_once_more(&mut self, client: usize) {
        if self.clients[client].done || self.clients[client].busy {
            return;
        }
        let running = self.running();
        let node = self.rng.pick(&running).copied().unwrap_or(0);
        self.request(client, node, Kind::Read);
    }
}

fn encode(family: u32, values: &[u32]) -> Bytes {
    core::iter::once(&family).chain(values).flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>().into()
}

/// The session that the bytes name, and the values.
pub(crate) fn decode(bytes: &[u8]) -> (Option<u32>, Vec<u32>) {
    let mut all = bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
    (all.next(), all.collect())
}

/// The list and the commit that set it.
pub(crate) fn list_of(record: &Record) -> (Option<Stamp>, Vec<u32>) {
    match record.get(LIST) {
        Some(a) => (Some(a.dot), decode(&a.value).1),
        None => (None, Vec::new()),
    }
}

/// The values that have an attribute of their own.
pub(crate) fn own_of(record: &Record) -> BTreeSet<u32> {
    record.attributes().iter().filter_map(|a| a.name.strip_prefix('e')?.parse().ok()).collect()
}
