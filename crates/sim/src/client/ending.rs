//! Logouts and rotations, as the library does them, and what both promise: a logout that was answered is in force for the session under
//! all its ids, and a new id has all that was answered under the old one.

use super::{Answer, Kind, Stage};
use crate::marks::Mark;
use crate::options::Fault;
use crate::oracle::excuse::Excuse;
use crate::world::{Phase, World};
use outlive_core::config::Level;
use outlive_core::output::{Failure, Open, Ticket};
use outlive_core::record::{Attribute, Base, Change};
use outlive_core::stamp::{Life, Stamp};
use outlive_core::wire::EndKind;
use std::collections::{BTreeMap, BTreeSet};

/// Rotations and logouts whose clients have heard of them.
#[derive(Debug, Default)]
pub(crate) struct Endings {
    /// By the session that it made.
    rotations: BTreeMap<usize, Rotation>,
    /// When each was answered, and whether every node there was had confirmed it.
    logouts: BTreeMap<usize, (i64, bool, u64)>,
    /// Those that somebody has asked for.
    asked: BTreeSet<usize>,
    /// Processes that have ended: what they alone knew is gone.
    pub(crate) stops: u64,
}

#[derive(Clone, Copy, Debug)]
struct Rotation {
    old: usize,
    by: Life,
    stops: u64,
}

impl World {
    pub(super) fn logout(&mut self, id: u64) {
        let Some(r) = self.reqs.get(&id) else { return };
        let (node, session, opened, tries, generation) = (r.node, r.session, r.opened.clone(), r.tries, r.generation);
        let key = self.sessions[session].key;
        self.log(node, || format!("{key:?} request {id} logs out"));
        self.sessions[session].end_asked += 1;
        self.endings.asked.insert(session);
        let ticket = self.call(node, |e, now, out| e.end(now, key, None, out));
        if let Some(opened) = opened {
            self.call(node, |e, now, out| e.close(now, &opened, out));
        }
        self.wait_for_end(id, ticket, tries, generation);
    }

    fn wait_for_end(&mut self, id: u64, ticket: Option<Ticket>, tries: u32, generation: u32) {
        if let (Some(ticket), Some(r)) = (ticket, self.reqs.get_mut(&id)) {
            r.stage = Stage::Ending;
            let node = r.node;
            self.tickets.insert((node, generation, ticket), id);
            self.unanswered_later(id, tries);
        }
    }

    /// An end that a request waits for is known to all who are to know, or has waited long enough.
    pub(super) fn end_answered(&mut self, id: u64, done: bool) {
        let Some(r) = self.reqs.get(&id) else { return };
        let (node, session, kind, gone) = (r.node, r.session, r.kind, r.gone);
        if kind == Kind::Rotate {
            return self.rotation_done(id);
        }
        self.mark(if done { Mark::EndConfirmed } else { Mark::EndPending });
        if self.ended_as(node, session) == Some(EndKind::Rotated) {
            // It is refused: the client asks again with the new cookie.
            self.mark(Mark::LogoutOfRotated);
            return self.answer(id, Answer::Failed("rotated meanwhile"));
        }
        if !gone {
            let (now, runs, stops) = (self.now, self.running().len() as u64, self.endings.stops);
            // Who is cut off takes those for dead whom it cannot hear, and they hear of the end when they are back.
            let sees_all = self.nodes[node].proc.as_ref().is_some_and(|p| p.engine.stats(self.clock(node)).members == runs);
            self.endings.logouts.entry(session).or_insert((now, done && sees_all, stops));
        }
        self.answer(id, Answer::Ended(EndKind::Invalidated));
    }

    fn ended_as(&mut self, node: usize, session: usize) -> Option<EndKind> {
        let key = self.sessions[session].key;
        match self.call(node, |e, now, out| e.open(now, key, None, out))? {
            Open::Ended(kind, _) => Some(kind),
            _ => None,
        }
    }

    pub(super) fn rotate(&mut self, id: u64) {
        let Some(r) = self.reqs.get(&id) else { return };
        let (node, session, client, opened) = (r.node, r.session, r.client, r.opened.clone());
        let Some(opened) = opened else { return self.rotate_copy(id) };
        let next = self.rotated_session(session);
        let key = self.sessions[next].key;
        let Some(Some(new)) = self.call(node, |e, now, out| e.rotate(now, &opened, key, out)) else {
            self.sessions[next].abandoned = true;
            self.call(node, |e, now, out| e.close(now, &opened, out));
            return self.answer(id, Answer::Failed("moved away"));
        };
        self.log(node, || format!("{:?} request {id} rotates to {key:?}", opened.key));
        if let Some(r) = self.reqs.get_mut(&id) {
            r.next = Some(next);
        }
        self.forked(next, node, &new);
        self.logout_elsewhere(client, session, node);
        let commit = self.call(node, |e, now, out| e.finish_read(now, &new, out));
        self.call(node, |e, now, out| e.close(now, &new, out));
        self.call(node, |e, now, out| e.close(now, &opened, out));
        self.committed(id, key, commit);
    }

    /// The same at a node that serves a copy: a new session begins with all of that, and the owner ends the old one for it.
    fn rotate_copy(&mut self, id: u64) {
        let Some(r) = self.reqs.get_mut(&id) else { return };
        let (node, session, client) = (r.node, r.session, r.client);
        // The new session's time would begin anew.
        let Some(record) = r.copied.clone().filter(|_| self.opts.clocks.is_none()) else {
            return self.answer(id, Answer::Failed("a guest cannot rotate"));
        };
        let next = self.rotated_session(session);
        let key = self.sessions[next].key;
        let Some(Ok(new)) = self.call(node, |e, now, out| e.create(now, key, out)) else {
            self.sessions[next].abandoned = true;
            return self.answer(id, Answer::Failed("cannot create"));
        };
        let copy = |a: &Attribute| Change { name: a.name.clone(), base: Base::Absent, value: Some(a.value.clone()) };
        let all: Vec<Change> = record.attributes().iter().map(copy).collect();
        let commit = self.call(node, |e, now, out| e.commit(now, &new, &all, out));
        let old = self.sessions[session].key;
        self.log(node, || format!("{old:?} request {id} copies it to {key:?}: {commit:?}"));
        if let Some(r) = self.reqs.get_mut(&id) {
            r.next = Some(next);
        }
        self.forked(next, node, &new);
        self.logout_elsewhere(client, session, node);
        self.call(node, |e, now, out| e.close(now, &new, out));
        self.committed(id, key, commit);
    }

    /// The copy is durable under its new id.
    fn end_copied(&mut self, id: u64, tip: Option<Stamp>, level: Option<Level>) {
        let Some(r) = self.reqs.get_mut(&id) else { return };
        let (Some(next), Some(read)) = (r.next, r.read) else { return };
        let (node, session) = (r.node, r.session);
        r.made = Some(tip);
        let (key, new) = (self.sessions[session].key, self.sessions[next].key);
        let all = self.sessions[next].all();
        self.acknowledge(node, next, &all, level);
        self.sessions[session].end_asked += 1;
        if let Some(ticket) = self.call(node, |e, now, out| e.end_copied(now, key, read, new, out)) {
            self.late(id, ticket);
        }
    }

    /// Whether a request waits for the owner of what it copied to end that.
    pub(super) fn ends_copied(&self, id: u64) -> bool {
        self.reqs.get(&id).is_some_and(|r| r.stage == Stage::Late && r.next.is_some())
    }

    pub(super) fn copied_ended(&mut self, id: u64) {
        let Some(r) = self.reqs.get(&id) else { return };
        let (node, session, tries, generation) = (r.node, r.session, r.tries, r.generation);
        let Some(next) = r.next else { return };
        let (key, new) = (self.sessions[session].key, self.sessions[next].key);
        let ticket = self.call(node, |e, now, out| e.end(now, key, Some(new), out));
        self.wait_for_end(id, ticket, tries, generation);
    }

    pub(super) fn copied_not_ended(&mut self, id: u64, failure: Failure) {
        let Some(r) = self.reqs.get(&id) else { return };
        let session = r.session;
        self.mark(Mark::RotationRefused);
        if failure != Failure::Unknown {
            self.sessions[session].end_asked -= 1;
        }
        self.answer(id, Answer::Failed("changed meanwhile"));
    }

    /// Now and then the other half of the pair, whose request began at another node long ago, logs out at the same moment.
    fn logout_elsewhere(&mut self, client: usize, session: usize, not: usize) {
        let partner = client ^ 1;
        let free = self.clients.get(partner).is_some_and(|p| !p.busy && p.session == Some(session));
        if self.scripted || !free || !self.opts.has(Fault::Logout) || !self.clocks.chance(300) {
            return;
        }
        let others: Vec<usize> = self.running().into_iter().filter(|n| *n != not).collect();
        let Some(node) = self.clocks.pick(&others).copied() else { return };
        let flight = self.opts.delay.0 + self.opts.delay.1;
        let after = self.clocks.range(0, 4 * flight);
        self.logout_unopened(partner, node, after);
    }

    /// A logout whose request has opened nothing at this node, or did so long ago.
    pub(crate) fn logout_unopened(&mut self, client: usize, node: usize, after: i64) -> Option<u64> {
        let id = self.new_request(client, node, Kind::Logout)?;
        if let Some(r) = self.reqs.get_mut(&id) {
            (r.stage, r.guest) = (Stage::Running, true);
        }
        self.step_later(id, after);
        Some(id)
    }

    /// The new id is durable: the old one ends.
    pub(super) fn rotated(&mut self, id: u64, tip: Option<Stamp>, level: Option<Level>) {
        let Some(r) = self.reqs.get_mut(&id) else { return };
        let (node, session, tries, generation) = (r.node, r.session, r.tries, r.generation);
        let Some(next) = r.next else { return };
        let Some(opened) = r.opened.clone() else { return self.end_copied(id, tip, level) };
        let new = self.sessions[next].key;
        let Some(Some(ticket)) = self.call(node, |e, now, out| e.end_rotated(now, &opened, new, out)) else {
            self.mark(Mark::RotationRefused);
            return self.answer(id, Answer::Failed("changed meanwhile"));
        };
        if let Some(r) = self.reqs.get_mut(&id) {
            r.made = Some(tip);
        }
        // The level that the answer tells is the one of this moment, although it leaves later.
        let all = self.sessions[next].all();
        self.acknowledge(node, next, &all, level);
        self.sessions[session].end_asked += 1;
        self.wait_for_end(id, Some(ticket), tries, generation);
    }

    /// The old id has ended: the answer leaves.
    fn rotation_done(&mut self, id: u64) {
        let Some(r) = self.reqs.get(&id) else { return };
        let (node, session, client, gone, came) = (r.node, r.session, r.client, r.gone, r.came);
        let copied = r.copied.is_some();
        let (Some(next), Some(tip)) = (r.next, r.made) else { return };
        if self.ended_as(node, session) == Some(EndKind::Invalidated) {
            self.mark(Mark::RotationOfEnded);
            return self.answer(id, Answer::Failed("logged out meanwhile"));
        }
        if let Some(r) = self.reqs.get_mut(&id) {
            r.next = None;
        }
        let new = self.sessions[next].key;
        self.mark(if copied { Mark::RotatedCopy } else { Mark::Rotated });
        if gone {
            self.sessions[next].abandoned = true;
        } else {
            self.sessions[next].created = true;
            // Whoever ended it first has agreed to that, unless somebody logged out.
            let agreed = copied && !self.endings.asked.contains(&session);
            let owner = self.sessions[session].ended_first().filter(|_| agreed);
            self.note_rotation(session, next, node, owner);
            let now =
                self.nodes[node].proc.as_ref().and_then(|p| p.engine.peek(new, |r, _| (r.clock().deadline(r.used), r.clock().step())));
            let deadline = now.map_or(i64::MAX, |until| self.deadline(node, until.0));
            self.used(next, came);
            let c = &mut self.clients[client];
            (c.session, c.token, c.deadline) = (Some(next), tip, deadline);
            c.seen = self.sessions[next].all();
        }
        self.answer(id, Answer::Failed("rotated"));
    }

    // ---- what is promised -----------------------------------------------------------------------------------------------

    fn note_rotation(&mut self, old: usize, next: usize, node: usize, owner: Option<(usize, u32)>) {
        let here = self.nodes[node].proc.as_ref().map(|p| p.engine.life());
        let owner = owner.and_then(|(node, generation)| self.proc_mut(node, generation)).map(|p| p.engine.life());
        let Some(by) = owner.or(here) else { return };
        let stops = self.endings.stops;
        self.endings.rotations.insert(next, Rotation { old, by, stops });
        if let Some((answered, everywhere, _)) = self.endings.logouts.get(&old).copied()
            && let known = self.knew_end(old, answered + 1)
            && !self.excuses.any(&[(Excuse::EndPending, !everywhere), (Excuse::MarkerDied, !known)])
        {
            let (key, new) = (self.sessions[old].key, self.sessions[next].key);
            self.violate(format!("I6 n{node} gives {key:?} the id {new:?}, and it was logged out everywhere"));
        }
        self.all_under_new_id(old);
    }

    /// What one owner has answered under an old id is under the new one that this owner gave.
    pub(crate) fn all_under_new_id(&mut self, old: usize) {
        let made = self.endings.rotations.iter().filter(|(_, r)| r.old == old).map(|(next, r)| (*next, r.by)).next();
        let Some((next, by)) = made else { return };
        if self.endings.asked.contains(&old) {
            // Whoever ended it need not have heard of the new id: what was logged out is nowhere.
            return;
        }
        let World { sessions, excuses, .. } = self;
        let missing = |(value, why): &(u32, [_; 2])| !sessions[next].has(*value) && excuses.cover(1, why).is_none();
        let missing = sessions[old].answered_by(by).find(missing);
        if let Some((value, _)) = missing {
            let (key, new) = (self.sessions[old].key, self.sessions[next].key);
            self.violate(format!("I6 e{value} of {key:?} was answered, and is missing under its new id {new:?}"));
        }
    }

    /// Whether somebody has asked for a session's end under an id from before.
    pub(crate) fn was_logged_out_before(&self, session: usize) -> bool {
        let before = |at: &usize| self.endings.rotations.get(at).map(|r| r.old);
        core::iter::successors(Some(session), before).any(|at| self.endings.asked.contains(&at))
    }

    /// A session that was logged out under an id from before is served to a request that came at this time.
    pub(crate) fn check_logged_out(&mut self, node: usize, session: usize, came: i64) {
        let (mut at, mut gone) = (session, false);
        while let Some(r) = self.endings.rotations.get(&at).copied() {
            // Who knew that the one id follows the other must not have gone before it heard of the logout, nor who knew of that.
            gone |= r.stops != self.endings.stops;
            at = r.old;
            let Some((answered, everywhere, stops)) = self.endings.logouts.get(&at).copied() else { continue };
            let gone = gone || stops != self.endings.stops;
            let pending = !everywhere && self.phase != Phase::Reading;
            if answered < came && !self.excuses.any(&[(Excuse::WhoKnewIsGone, gone), (Excuse::EndPending, pending)]) {
                let (key, new) = (self.sessions[at].key, self.sessions[session].key);
                return self.violate(format!("I5 n{node} serves {new:?}, and {key:?}, which it was, was logged out"));
            }
        }
    }
}
