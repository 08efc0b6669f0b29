//! The shortest traces that break the promise without one of its rules, played step by step. Each ends with a heal, and with the
//! oracle's last look at everything.

use crate::client::{Answer, Client, Kind};
use crate::clocks::Clocks;
use crate::options::{Fault, MS, Options, S};
use crate::rows::Row;
use crate::world::{Phase, World};
use outlive_core::config::{Durability, Level, OnLost, Reach};
use outlive_core::plant::Bug;
use std::collections::BTreeSet;

/// A scenario.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    play: fn(&mut Script),
}

/// A world whose steps a scenario decides.
pub(crate) struct Script {
    pub(crate) w: World,
}

macro_rules! scenarios {
    ($($name:ident,)*) => {
        /// All of them.
        pub(crate) const ALL: &[Scenario] = &[$(Scenario { name: stringify!($name), play: $name },)*];

        #[cfg(test)]
        mod tests {
            $(
                #[test]
                fn $name() {
                    let found = super::play(stringify!($name), None, false).expect("the scenario exists");
                    assert_eq!(found.0, None);
                }
            )*
        }
    };
}

scenarios! {
    lost_writes_are_said_to_be_lost,
    a_branch_with_a_lesser_epoch_survives,
    lookup_snapshot_races_commit,
    delta_on_hole,
    replacement_loses_copy,
    acks_of_nodes_that_nobody_asks,
    the_owner_is_asked_wherever_it_is,
    not_found_is_not_fresh,
    version_reuse,
    read_of_undurable,
    backup_alone_says_owner,
    drain_loses_nothing,
    drained_backup_keeps_its_copies,
    two_drains_in_a_row,
    drained_owner_claims_nothing_for_others,
    successor_dies_while_the_owner_drains,
    a_node_that_is_silent_while_it_leaves_may_come_back,
    store_cas_is_equality,
    paused_owner,
    paused_owner_asks_before_it_serves,
    silent_owner_is_no_wait_for_a_reader,
    past_lists_are_asked,
    logout_across_partition,
    logout_of_a_paused_holder,
    logout_on_links_that_break,
    what_was_removed_stays_away,
    refused_owner_shops,
    lost_token_recovers,
    restart_same_name,
    heal_without_traffic,
    late_commit_after_handover,
    late_commit_of_an_owner_that_hands_over,
    read_of_an_owner_that_hands_over,
    balancer_without_stickiness,
    rotation_with_parallel_requests,
    a_logout_and_a_rotation_at_one_moment,
    a_logout_that_was_cut_off_ends_the_new_id,
    a_logout_waits_for_the_owner_that_was_cut_off,
    a_logout_at_a_third_node_waits_for_the_owner_that_was_cut_off,
    a_logout_after_another_move_waits_for_the_owner_that_was_cut_off,
    what_is_answered_goes_along_to_the_new_id,
    a_rotation_of_which_the_store_alone_has_heard,
    a_logout_hears_from_the_store_of_a_rotation,
    a_rotation_hears_from_the_store_of_a_logout,
    both_sides_go_on,
    branches_that_are_too_large_together,
    crash_of_any_one_node,
    who_only_reads_survives_a_restart_of_all_nodes,
    a_session_lives_as_long_as_it_was_born_to,
}

/// Plays one, and says what it violated; `None` if there is no such scenario.
pub(crate) fn play(name: &str, plant: Option<Bug>, trace: bool) -> Option<(Option<String>, Vec<String>)> {
    let scenario = ALL.iter().find(|s| s.name == name)?;
    let mut script = Script::new(trace);
    script.w.opts.plant = plant;
    (scenario.play)(&mut script);
    Some((script.w.violation.take(), script.w.trace.take().unwrap_or_default()))
}

impl Script {
    fn new(trace: bool) -> Script {
        let mut opts = Options::of(1);
        opts.durability = Durability::Backup;
        (opts.backups, opts.store, opts.reach, opts.on_lost) = (1, false, Reach::Auto, OnLost::Serve);
        (opts.sessions, opts.faults, opts.delay, opts.tcp_timeout) = (0, Vec::new(), (300, 200), 60 * S);
        opts.differ = false;
        let mut w = World::new(opts, trace);
        w.scripted = true;
        Script { w }
    }

    /// Starts so many nodes, and waits until they know each other.
    fn nodes(&mut self, count: usize) {
        self.w.opts.nodes = count;
        for node in 0..count {
            self.w.start(node);
        }
        self.run(4000);
    }

    /// Lets time pass.
    fn run(&mut self, ms: i64) {
        self.w.run_until(self.w.now + ms * MS);
    }

    /// A client; without a token it is one whose version cookie was lost.
    fn client(&mut self, tokens: bool) -> usize {
        self.w.clients.push(Client::new(tokens));
        self.w.clients.len() - 1
    }

    /// Begins a request, whose handler takes so long.
    fn begin(&mut self, client: usize, node: usize, kind: Kind, handler_ms: i64) -> u64 {
        self.w.handler = handler_ms * MS;
        self.w.clients[client].last = None;
        let id = self.w.request(client, node, kind).unwrap_or(0);
        self.w.run_until(self.w.now + 300);
        id
    }

    /// Waits until a request is answered, and forgets nothing of it.
    fn wait(&mut self, id: u64) {
        let until = self.w.now + 30 * S;
        while self.w.reqs.contains_key(&id) && self.w.now < until && self.w.violation.is_none() && self.w.step() {}
    }

    fn ask(&mut self, client: usize, node: usize, kind: Kind) -> (Answer, BTreeSet<u32>) {
        let id = self.begin(client, node, kind, 1);
        self.wait(id);
        self.w.clients[client].last.clone().unwrap_or((Answer::Failed("no answer"), BTreeSet::new()))
    }

    /// The request must be answered well.
    fn ok(&mut self, client: usize, node: usize, kind: Kind) -> (Option<Level>, BTreeSet<u32>) {
        for _ in 0..60 {
            match self.ask(client, node, kind) {
                (Answer::Ok { level, .. }, seen) => return (level, seen),
                (Answer::Failed(_), _) => self.run(1000),
                (other, _) => {
                    self.w.violate(format!("{kind:?} at n{node} of client {client} is answered {other:?}"));
                    break;
                }
            }
        }
        self.check(false, "it is answered at last");
        (None, BTreeSet::new())
    }

    /// A session owned by the first of these nodes, whose list begins with them; client 0 has a token, client 1 has none.
    fn session(&mut self, list: &[usize]) -> (usize, usize) {
        self.session_at(list[0], list)
    }

    /// The same, owned by that node, which need not be on its list.
    fn session_at(&mut self, owner: usize, list: &[usize]) -> (usize, usize) {
        let (with, without) = (self.client(true), self.client(false));
        let session = loop {
            let session = self.w.new_session();
            let key = self.w.sessions[session].key;
            let placed: Vec<usize> = self.placed(owner, key);
            if placed.starts_with(list) || placed.len() < list.len() {
                break session;
            }
            self.w.sessions[session].abandoned = true;
        };
        self.w.clients[with].session = Some(session);
        self.ok(with, owner, Kind::Create);
        self.w.clients[without].session = Some(session);
        self.run(50);
        (with, without)
    }

    fn placed(&self, at: usize, key: outlive_core::id::SessionKey) -> Vec<usize> {
        let Some(p) = self.w.nodes[at].proc.as_ref() else { return Vec::new() };
        let node = |life| self.w.nodes.iter().position(|s| s.proc.as_ref().is_some_and(|p| p.engine.life() == life));
        p.engine.placed(key).into_iter().filter_map(node).collect()
    }

    fn owner(&self, client: usize) -> Option<usize> {
        let key = self.w.sessions[self.w.clients[client].session?].key;
        self.w.running().into_iter().find(|n| self.w.nodes[*n].proc.as_ref().is_some_and(|p| p.engine.info(key).is_some_and(|i| i.owned)))
    }

    fn cut(&mut self, a: usize, b: usize) {
        self.w.cut_pairs(vec![(a, b), (b, a)], 3600 * S);
    }

    /// What `a` sends to `b` is held back.
    fn hold(&mut self, a: usize, b: usize) {
        self.w.cut_pairs(vec![(a, b)], 3600 * S);
    }

    fn isolate(&mut self, node: usize) {
        for other in 0..self.w.opts.nodes {
            if other != node {
                self.cut(node, other);
            }
        }
    }

    fn mend(&mut self) {
        self.w.mend();
    }

    fn crash(&mut self, node: usize) {
        self.w.stop_process(node, true);
    }

    fn check(&mut self, holds: bool, what: &str) {
        if !holds {
            self.w.violate(format!("expected: {what}"));
        }
    }

    /// No more faults: all nodes must agree, and every client must read what it was promised.
    fn end(&mut self) {
        for slot in &mut self.w.nodes {
            slot.retired |= slot.proc.is_none();
        }
        self.w.heal();
        self.w.start_polling();
        let until = self.w.now + 300 * S;
        while self.w.phase != Phase::Done && self.w.violation.is_none() && self.w.now < until && self.w.step() {}
        let done = self.w.phase == Phase::Done;
        self.check(done, "all agree and every client is answered");
    }
}

// ---- A and C of the protocol's page, item by item ---------------------------------------------------------------------------

fn lost_writes_are_said_to_be_lost(s: &mut Script) {
    (s.w.opts.durability, s.w.opts.backups) = (Durability::Owner, 0);
    s.nodes(3);
    let (with, without) = s.session(&[0]);
    s.ok(with, 0, Kind::Append);
    s.crash(0);
    s.run(500);
    let (stranger, _) = s.ask(without, 1, Kind::Read);
    s.check(!matches!(stranger, Answer::Ok { .. }), "nobody is served while the dead owner may return");
    s.ok(with, 1, Kind::Read);
    let lost = s.w.marks[crate::marks::Mark::Lost as usize];
    s.check(lost == 1, "one loss is reported");
    s.end();
}

fn a_branch_with_a_lesser_epoch_survives(s: &mut Script) {
    s.nodes(4);
    let (with, without) = s.session(&[0, 1]);
    // 0 and 3 on one side, 1 and 2 on the other.
    for (a, b) in [(0, 1), (0, 2), (3, 1), (3, 2)] {
        s.cut(a, b);
    }
    s.run(6000);
    s.ok(with, 0, Kind::Set);
    s.ok(without, 1, Kind::Set);
    s.ok(without, 1, Kind::Set);
    s.mend();
    s.end();
}

fn lookup_snapshot_races_commit(s: &mut Script) {
    s.nodes(3);
    let (with, without) = s.session(&[0, 1]);
    // 1 begins to look while the owner's next commit is on its way to it; then the owner dies.
    s.hold(1, 0);
    s.hold(1, 2);
    let look = s.begin(without, 1, Kind::Read, 1);
    let write = s.begin(with, 0, Kind::Append, 1);
    s.run(100);
    s.mend();
    s.run(3);
    s.crash(0);
    s.wait(write);
    s.wait(look);
    s.end();
}

fn delta_on_hole(s: &mut Script) {
    s.nodes(3);
    let (with, without) = s.session(&[0, 1]);
    s.hold(0, 1);
    let first = s.begin(with, 0, Kind::Append, 1);
    s.run(5);
    // The link breaks with the first delta in it; the second goes out on the next link.
    s.w.break_between(0, 1);
    s.run(300);
    let second = s.begin(without, 0, Kind::Set, 1);
    s.mend();
    s.wait(first);
    s.wait(second);
    s.run(2000);
    s.crash(0);
    s.ok(with, 1, Kind::Read);
    s.end();
}

fn replacement_loses_copy(s: &mut Script) {
    s.nodes(2);
    let sessions: Vec<(usize, usize)> = (0..6).map(|_| s.session(&[0])).collect();
    for (with, _) in &sessions {
        s.ok(*with, 0, Kind::Append);
    }
    // Joining nodes take places over; the owner dies before their copies have arrived.
    s.w.opts.nodes = 4;
    s.w.start(2);
    s.w.start(3);
    for ms in [20, 5, 5] {
        s.run(ms);
    }
    s.crash(0);
    for (with, _) in &sessions {
        s.ok(*with, 1, Kind::Read);
    }
    s.end();
}

fn acks_of_nodes_that_nobody_asks(s: &mut Script) {
    s.nodes(4);
    let (with, without) = s.session(&[0, 1]);
    // 1 takes it over from 0, which keeps a copy; what 1 commits then must be with its own backup before it is answered.
    s.ok(without, 1, Kind::Read);
    s.ok(with, 1, Kind::Append);
    s.crash(1);
    s.ok(with, 2, Kind::Read);
    s.end();
}

fn the_owner_is_asked_wherever_it_is(s: &mut Script) {
    (s.w.opts.durability, s.w.opts.reach) = (Durability::Owner, Reach::Placement);
    s.nodes(4);
    let (with, without) = s.session_at(2, &[0, 1]);
    s.hold(2, 0);
    s.hold(2, 1);
    let (_, wrote) = s.ok(with, 2, Kind::Append);
    // The holders lack the commit; their answers name the owner, and that has it.
    let (_, read) = s.ok(without, 3, Kind::Read);
    s.check(wrote.is_subset(&read), "a stranger reads what the owner has answered");
    s.mend();
    s.end();
}

fn not_found_is_not_fresh(s: &mut Script) {
    s.w.opts.reach = Reach::Placement;
    s.nodes(4);
    let (with, without) = s.session(&[1, 0]);
    s.ok(with, 1, Kind::Append);
    s.crash(0);
    // 2 and 3 know nothing, the backup is gone, the owner lives.
    let (level, seen) = s.ok(without, 2, Kind::Read);
    s.check(level.is_some() || !seen.is_empty(), "the session is served");
    s.run(3000);
    s.isolate(2);
    s.run(100);
    let (cut_off, _) = s.ask(without, 3, Kind::Read);
    s.check(!matches!(cut_off, Answer::NotFound), "a silent member is no answer");
    s.mend();
    s.end();
}

fn version_reuse(s: &mut Script) {
    s.nodes(3);
    let (with, without) = s.session(&[0, 1]);
    s.hold(1, 0);
    // It arrives and is applied, its acknowledgement does not come back.
    let (answer, _) = s.ask(with, 0, Kind::Append);
    s.check(!matches!(answer, Answer::Failed(_)), "what was sent is not said to have failed");
    s.mend();
    s.ok(without, 0, Kind::Append);
    s.crash(0);
    s.ok(without, 1, Kind::Read);
    s.end();
}

fn read_of_undurable(s: &mut Script) {
    s.nodes(3);
    let (with, without) = s.session(&[0, 1]);
    s.hold(0, 1);
    let write = s.begin(with, 0, Kind::Append, 1);
    s.run(20);
    let read = s.begin(without, 0, Kind::Read, 1);
    s.run(200);
    let waits = s.w.reqs.contains_key(&read);
    s.check(waits, "a read of what is not durable waits");
    s.crash(0);
    s.mend();
    s.wait(write);
    s.wait(read);
    s.ok(without, 1, Kind::Read);
    s.end();
}

fn backup_alone_says_owner(s: &mut Script) {
    s.nodes(3);
    let (with, without) = s.session(&[0, 1]);
    s.isolate(0);
    s.run(6000);
    let (level, _) = s.ok(with, 0, Kind::Append);
    s.check(level == Some(Level::Owner), "alone it reaches the level `owner`, and says so");
    s.mend();
    s.run(4000);
    let (level, _) = s.ok(without, 0, Kind::Append);
    s.check(level == Some(Level::Backup(1)), "with its peers back it reaches a backup");
    s.end();
}

fn drain_loses_nothing(s: &mut Script) {
    s.nodes(3);
    let (with, _) = s.session(&[0, 1]);
    s.ok(with, 0, Kind::Append);
    s.w.drain(0);
    s.run(5000);
    let gone = s.owner(with);
    s.check(gone.is_some(), "somebody has taken it over");
    s.crash(1);
    s.ok(with, 2, Kind::Read);
    s.end();
}

fn drained_backup_keeps_its_copies(s: &mut Script) {
    s.nodes(3);
    let (with, _) = s.session(&[0, 1]);
    s.ok(with, 0, Kind::Append);
    s.crash(0);
    s.w.drain(1);
    s.run(8000);
    s.ok(with, 2, Kind::Read);
    s.end();
}

fn two_drains_in_a_row(s: &mut Script) {
    s.nodes(4);
    let (with, _) = s.session(&[0, 1]);
    s.ok(with, 0, Kind::Append);
    s.w.drain(0);
    s.run(150);
    s.w.drain(1);
    s.run(8000);
    s.ok(with, 2, Kind::Read);
    s.end();
}

fn drained_owner_claims_nothing_for_others(s: &mut Script) {
    s.nodes(3);
    let (with, without) = s.session(&[0, 1]);
    // The invitation is held back while its guest claims by itself and commits.
    s.hold(0, 1);
    s.w.drain(0);
    s.run(100);
    let take = s.begin(without, 2, Kind::Append, 1);
    s.run(100);
    s.mend();
    s.wait(take);
    s.ok(with, 2, Kind::Append);
    s.end();
}

fn successor_dies_while_the_owner_drains(s: &mut Script) {
    s.nodes(4);
    let (with, _) = s.session(&[0, 1]);
    s.ok(with, 0, Kind::Append);
    s.w.drain(0);
    s.run(2);
    s.crash(1);
    s.run(8000);
    s.ok(with, 2, Kind::Read);
    s.end();
}

fn a_node_that_is_silent_while_it_leaves_may_come_back(s: &mut Script) {
    s.w.opts.durability = Durability::Owner;
    s.nodes(3);
    let (with, _) = s.session(&[0, 1]);
    let append = s.begin(with, 0, Kind::Append, 300);
    s.run(10);
    s.w.drain(0);
    s.run(100);
    s.hold(0, 1);
    s.hold(0, 2);
    s.wait(append);
    let wrote = s.w.clients[with].seen.clone();
    s.w.pause(0, 7 * S);
    s.run(5000);
    let (answer, _) = s.ask(with, 1, Kind::Read);
    s.check(matches!(answer, Answer::Failed(_)), "what it alone has is neither lost nor served without");
    s.mend();
    s.run(4000);
    let (_, seen) = s.ok(with, 1, Kind::Read);
    s.check(wrote.is_subset(&seen), "it comes back with what it alone had");
    s.end();
}

fn store_cas_is_equality(s: &mut Script) {
    (s.w.opts.durability, s.w.opts.store) = (Durability::Store, true);
    s.nodes(3);
    let (with, without) = s.session(&[0, 1]);
    s.isolate(0);
    s.run(6000);
    s.ok(with, 0, Kind::Set);
    s.ok(without, 1, Kind::Set);
    s.ok(with, 0, Kind::Set);
    s.mend();
    s.end();
}

fn paused_owner(s: &mut Script) {
    s.nodes(3);
    let (with, without) = s.session(&[0, 1]);
    s.w.pause(0, 10 * S);
    s.run(5000);
    s.ok(with, 1, Kind::Append);
    s.run(6000);
    // It goes on, and doubts what it owned before it answers.
    let (_, seen) = s.ok(without, 0, Kind::Read);
    s.check(seen.len() == 2, "the old owner asks before it serves");
    s.end();
}

fn paused_owner_asks_before_it_serves(s: &mut Script) {
    (s.w.opts.durability, s.w.opts.reach) = (Durability::Owner, Reach::Placement);
    s.nodes(3);
    let (with, without) = s.session(&[0, 1]);
    s.w.pause(0, 2 * S);
    // Nobody can tell it what it missed before it is asked.
    s.hold(1, 0);
    s.hold(2, 0);
    let (_, wrote) = s.ok(with, 1, Kind::Append);
    s.run(1850);
    let read = s.begin(without, 0, Kind::Read, 1);
    s.run(5);
    s.mend();
    s.wait(read);
    let seen = s.w.clients[without].last.clone().map(|(_, seen)| seen).unwrap_or_default();
    s.check(wrote.is_subset(&seen), "the old owner asks before it serves");
    s.end();
}

fn silent_owner_is_no_wait_for_a_reader(s: &mut Script) {
    s.nodes(3);
    let (with, _) = s.session(&[0, 1]);
    s.w.pause(0, 3600 * S);
    s.run(50);
    // Long before it counts as dead, and its place on the list goes to another.
    let from = s.w.now;
    s.ok(with, 1, Kind::Read);
    s.check(s.w.now - from < S, "what the silent owner has committed itself, it has");
    s.end();
}

fn past_lists_are_asked(s: &mut Script) {
    s.w.opts.reach = Reach::Placement;
    s.nodes(4);
    let (with, without) = s.session(&[0, 1]);
    let key = s.w.sessions[s.w.clients[with].session.unwrap_or(0)].key;
    // The backup stands still until it counts as dead; what is written then is with the next of the list.
    s.w.pause(1, 3600 * S);
    s.run(8000);
    let (_, wrote) = s.ok(with, 0, Kind::Append);
    let stranger = if s.placed(0, key).contains(&2) { 3 } else { 2 };
    // It comes back with its old copy, and the owner stands still before it has brought that up to date.
    s.w.break_between(0, 1);
    s.hold(0, 1);
    let generation = s.w.nodes[1].proc.as_ref().map_or(0, |p| p.generation);
    s.w.resume(1, generation);
    s.run(2500);
    s.w.pause(0, 3600 * S);
    let (_, seen) = s.ok(without, stranger, Kind::Read);
    s.check(wrote.is_subset(&seen), "whoever was on the list a moment ago is asked as well");
    s.end();
}

fn logout_across_partition(s: &mut Script) {
    s.nodes(4);
    let (with, without) = s.session(&[0, 1]);
    for (a, b) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
        s.cut(a, b);
    }
    s.run(6000);
    s.ask(with, 0, Kind::Logout);
    s.mend();
    s.run(6000);
    let (answer, _) = s.ask(without, 2, Kind::Read);
    s.check(!matches!(answer, Answer::Ok { .. }), "it has ended everywhere");
    s.end();
}

fn logout_of_a_paused_holder(s: &mut Script) {
    s.nodes(3);
    let (with, without) = s.session(&[0, 1]);
    s.w.pause(0, 12 * S);
    s.run(5000);
    s.ask(with, 2, Kind::Logout);
    s.run(9000);
    let (answer, _) = s.ask(without, 0, Kind::Append);
    s.check(!matches!(answer, Answer::Ok { .. }), "the paused owner has heard of the end");
    s.end();
}

fn logout_on_links_that_break(s: &mut Script) {
    s.nodes(3);
    let (with, without) = s.session(&[0, 1]);
    // It has moved so often that it stays where it is: 2 is a guest, whom no holder reports to.
    s.ok(with, 1, Kind::Read);
    s.ok(with, 0, Kind::Read);
    s.begin(with, 2, Kind::Logout, 50);
    // The ends are lost, and break the links; nobody is away for long enough to count as dead.
    s.run(45);
    s.w.garble_kinds = vec![Fault::Loss];
    s.w.garbling = (1000, s.w.now + 10 * MS);
    s.run(4000);
    let (answer, _) = s.ask(without, 0, Kind::Append);
    s.check(!matches!(answer, Answer::Ok { .. }), "an end is sent until it is confirmed");
    s.end();
}

fn what_was_removed_stays_away(s: &mut Script) {
    s.nodes(4);
    let (with, without) = s.session(&[0, 1]);
    s.ok(with, 0, Kind::Flag(true));
    for (a, b) in [(0, 1), (0, 2), (3, 1), (3, 2)] {
        s.cut(a, b);
    }
    s.run(6000);
    s.ok(with, 0, Kind::Flag(false));
    s.ok(without, 1, Kind::Set);
    s.mend();
    s.end();
    let key = s.w.sessions[s.w.clients[with].session.unwrap_or(0)].key;
    let flag = |e: &outlive_core::engine::Engine<()>| e.peek(key, |r, _| r.get(crate::client::FLAG).is_some());
    let there = s.w.nodes.iter().filter_map(|n| flag(&n.proc.as_ref()?.engine)).any(|there| there);
    s.check(!there, "a merge leaves out what one side has removed");
}

fn refused_owner_shops(s: &mut Script) {
    s.nodes(4);
    let (with, without) = s.session(&[0, 1]);
    let held = s.begin(without, 0, Kind::Append, 6000);
    s.run(20);
    s.w.pause(0, 5 * S);
    s.run(4000);
    s.ok(with, 1, Kind::Append);
    s.run(2000);
    s.wait(held);
    s.end();
}

fn lost_token_recovers(s: &mut Script) {
    s.nodes(2);
    let (with, without) = s.session(&[0, 1]);
    s.crash(1);
    s.run(500);
    s.ok(with, 0, Kind::Append);
    s.crash(0);
    s.w.start(1);
    s.run(1000);
    let (early, _) = s.ask(with, 1, Kind::Read);
    s.check(!matches!(early, Answer::Ok { .. }), "not served while the owner may return");
    s.run(60_000);
    let (answer, _) = s.ask(without, 1, Kind::Read);
    s.check(matches!(answer, Answer::NotFound), "to a stranger it is not there");
    s.ok(with, 1, Kind::Append);
    s.end();
}

fn restart_same_name(s: &mut Script) {
    s.nodes(3);
    let (with, _) = s.session(&[0, 1]);
    s.ok(with, 0, Kind::Append);
    s.hold(0, 1);
    let write = s.begin(with, 0, Kind::Append, 1);
    s.run(5);
    s.crash(0);
    s.w.start(0);
    s.mend();
    s.wait(write);
    s.ok(with, 0, Kind::Append);
    s.end();
}

fn heal_without_traffic(s: &mut Script) {
    s.nodes(4);
    let sessions: Vec<(usize, usize)> = (0..4).map(|_| s.session(&[0])).collect();
    for (a, b) in [(0, 1), (0, 2), (0, 3)] {
        s.cut(a, b);
    }
    s.run(6000);
    for (with, without) in &sessions {
        s.ok(*with, 0, Kind::Set);
        let (answer, _) = s.ask(*without, 1, Kind::Set);
        s.check(!matches!(answer, Answer::Ended(_)), "the other side goes on or says that it cannot");
    }
    s.mend();
    s.end();
}

fn late_commit_after_handover(s: &mut Script) {
    s.nodes(3);
    let (with, without) = s.session(&[0, 1]);
    let slow = s.begin(without, 0, Kind::Set, 8000);
    s.run(50);
    s.w.drain(0);
    s.run(2500);
    s.ok(with, 1, Kind::Set);
    s.wait(slow);
    let late = s.w.marks[crate::marks::Mark::LateCommitDone as usize];
    s.check(late == 1, "the slow request commits at the new owner");
    s.end();
}

fn late_commit_of_an_owner_that_hands_over(s: &mut Script) {
    s.nodes(4);
    let (with, without) = s.session_at(0, &[1, 2]);
    let slow = s.begin(without, 0, Kind::Set, 3000);
    s.ok(with, 2, Kind::Read);
    // The late commit is made at 2, and before its backup can say that it has it, 3 takes the session over.
    s.hold(1, 2);
    s.run(2500);
    s.ok(with, 3, Kind::Read);
    s.wait(slow);
    let (done, unknown) =
        (s.w.marks[crate::marks::Mark::LateCommitDone as usize], s.w.marks[crate::marks::Mark::LateCommitUnknown as usize]);
    s.check((done, unknown) == (1, 0), "the slow request hears that its commit went with the session");
    s.mend();
    s.end();
}

fn read_of_an_owner_that_hands_over(s: &mut Script) {
    s.nodes(4);
    let (with, without) = s.session_at(0, &[1, 2]);
    // 2 claims, and what it has adopted is not durable yet when 3 takes the session over.
    s.hold(1, 2);
    let read = s.begin(without, 2, Kind::Read, 1);
    s.run(500);
    let waits = s.w.reqs.contains_key(&read);
    s.check(waits, "what was read is not durable yet");
    s.ok(with, 3, Kind::Read);
    s.wait(read);
    let answered = matches!(s.w.clients[without].last, Some((Answer::Ok { .. }, _)));
    s.check(answered, "the read hears that what it read went with the session");
    s.mend();
    s.end();
}

fn balancer_without_stickiness(s: &mut Script) {
    s.nodes(3);
    let (with, _) = s.session(&[0, 1]);
    for round in 0..12 {
        s.ok(with, round % 3, if round % 2 == 0 { Kind::Append } else { Kind::Set });
    }
    let guests = s.w.marks[crate::marks::Mark::Guest as usize];
    s.check(guests > 0, "the owner stays and the others forward");
    s.end();
}

fn rotation_with_parallel_requests(s: &mut Script) {
    s.nodes(3);
    let (with, without) = s.session(&[0, 1]);
    let slow = s.begin(without, 0, Kind::Append, 500);
    s.run(20);
    s.ask(with, 0, Kind::Rotate);
    s.wait(slow);
    let (answer, _) = s.ask(without, 1, Kind::Read);
    s.check(matches!(answer, Answer::Ended(_)), "the old id answers nothing");
    s.ok(with, 1, Kind::Append);
    s.end();
}

impl Script {
    /// A session of which 1 logs out and to which 0 gives another id, while neither hears the other; who has which cookie, and both requests.
    fn ends_twice(&mut self) -> ([usize; 2], [u64; 2]) {
        self.w.opts.durability = Durability::Owner;
        self.nodes(3);
        let (with, without) = self.session(&[0, 1]);
        // It began before the session moved to 0.
        let logout = self.begin(without, 1, Kind::Logout, 3000);
        self.run(10);
        let rotation = self.begin(with, 0, Kind::Rotate, 1900);
        self.run(2700);
        for (a, b) in [(0, 1), (2, 1)] {
            self.cut(a, b);
        }
        self.run(600);
        let both = [logout, rotation].iter().all(|id| self.w.reqs.contains_key(id));
        self.check(both, "each waits for the other's node");
        ([with, without], [logout, rotation])
    }
}

fn a_logout_and_a_rotation_at_one_moment(s: &mut Script) {
    let ([with, without], [logout, rotation]) = s.ends_twice();
    s.mend();
    s.wait(logout);
    s.wait(rotation);
    let ended = matches!(s.w.clients[without].last, Some((Answer::Ended(_), _)));
    s.check(ended, "the logout is answered");
    let (answer, _) = s.ask(with, 0, Kind::Read);
    s.check(matches!(answer, Answer::Ended(_)), "no id of it is served");
    s.end();
}

fn a_logout_that_was_cut_off_ends_the_new_id(s: &mut Script) {
    let ([with, _], [logout, rotation]) = s.ends_twice();
    s.wait(logout);
    s.wait(rotation);
    // Both were told that a node is cut off. The new id is in use, at another node by now.
    s.ok(with, 0, Kind::Append);
    s.ok(with, 2, Kind::Append);
    s.mend();
    s.run(3000);
    let (answer, _) = s.ask(with, 2, Kind::Read);
    s.check(matches!(answer, Answer::Ended(_)), "it ends as well once the logout has come through");
    s.end();
}

impl Script {
    /// An owner that is not on the list is cut off just when it is to give the session another id, and 2 takes the session over, which
    /// nobody has told the owner; who has which cookie, and the rotation.
    fn claimed_from_a_silent_owner(&mut self) -> ([usize; 2], u64) {
        self.w.opts.durability = Durability::Owner;
        self.nodes(5);
        let (with, without) = self.session_at(3, &[0, 1]);
        let rotation = self.begin(with, 3, Kind::Rotate, 2000);
        self.run(10);
        self.isolate(3);
        self.ok(without, 2, Kind::Read);
        let moved = self.owner(without) == Some(2);
        self.check(moved, "who asks takes over from a silent owner");
        ([with, without], rotation)
    }

    /// The rotation comes to its end behind the cut. No answer may have said that the logout was known everywhere.
    fn heard_at_last(&mut self, with: usize, rotation: u64) {
        self.wait(rotation);
        self.mend();
        self.run(3000);
        let (answer, _) = self.ask(with, 4, Kind::Read);
        self.check(matches!(answer, Answer::Ended(_)), "the new id ends once the logout has come through");
        self.end();
    }
}

fn a_logout_waits_for_the_owner_that_was_cut_off(s: &mut Script) {
    let ([with, without], rotation) = s.claimed_from_a_silent_owner();
    s.ask(without, 2, Kind::Logout);
    s.heard_at_last(with, rotation);
}

fn a_logout_at_a_third_node_waits_for_the_owner_that_was_cut_off(s: &mut Script) {
    let ([with, without], rotation) = s.claimed_from_a_silent_owner();
    if let Some(id) = s.w.logout_unopened(without, 4, 0) {
        s.wait(id);
    }
    s.heard_at_last(with, rotation);
}

fn a_logout_after_another_move_waits_for_the_owner_that_was_cut_off(s: &mut Script) {
    let ([with, without], rotation) = s.claimed_from_a_silent_owner();
    s.ok(without, 4, Kind::Append);
    s.run(50);
    s.ask(without, 4, Kind::Logout);
    s.heard_at_last(with, rotation);
}

fn what_is_answered_goes_along_to_the_new_id(s: &mut Script) {
    s.nodes(4);
    let mut waited = false;
    for _ in 0..12 {
        let (with, without) = s.session_at(2, &[0, 1]);
        // After two moves the owner stays, and 2 serves a copy.
        s.ok(without, 1, Kind::Read);
        s.ok(without, 0, Kind::Read);
        let guest = s.begin(without, 2, Kind::Append, 300);
        s.run(20);
        // If the new id is to have its copy at 3, it is not durable before the guest's change has come.
        s.hold(3, 0);
        let rotation = s.begin(with, 0, Kind::Rotate, 1);
        s.wait(guest);
        waited |= s.w.reqs.contains_key(&rotation);
        s.mend();
        s.wait(rotation);
    }
    s.check(waited, "a change comes while a rotation waits");
    s.end();
}

fn a_rotation_of_which_the_store_alone_has_heard(s: &mut Script) {
    (s.w.opts.store, s.w.opts.durability) = (true, Durability::Store);
    s.nodes(4);
    let (with, without) = s.session_at(0, &[0, 1]);
    // After two moves the owner stays, and 2 serves a copy.
    s.ok(without, 1, Kind::Read);
    s.ok(without, 0, Kind::Read);
    let old = s.w.clients[with].session;
    let rotation = s.begin(with, 2, Kind::Rotate, 300);
    s.run(50);
    // Its owner agrees, and dies before anybody has heard so.
    (1..4).for_each(|node| s.hold(0, node));
    while !s.ended_in_store(without) && s.w.reqs.contains_key(&rotation) && s.w.step() {}
    s.crash(0);
    s.mend();
    let (answer, _) = s.ask(without, 1, Kind::Read);
    s.check(matches!(answer, Answer::Ended(_)), "the old id has ended");
    s.wait(rotation);
    s.check(s.w.clients[with].session != old, "the session goes on under its new id");
    s.ok(with, 3, Kind::Append);
    s.end();
}

impl Script {
    fn ended_in_store(&self, client: usize) -> bool {
        let key = self.w.clients[client].session.map(|session| self.w.sessions[session].key);
        key.is_some_and(|key| matches!(self.w.rows.get(&key), Some(Row::Ended(..))))
    }

    /// Two nodes that use one store and do not hear each other; who has which cookie, and a rotation at 0 that takes so long.
    fn apart_at_a_store(&mut self, ms: i64) -> ([usize; 2], u64) {
        (self.w.opts.store, self.w.opts.durability) = (true, Durability::Owner);
        self.nodes(2);
        let (with, without) = self.session(&[0, 1]);
        let rotation = self.begin(with, 0, Kind::Rotate, ms);
        self.cut(0, 1);
        ([with, without], rotation)
    }

    /// 0, which knows of the new id, is gone. The session was logged out under the old one.
    fn ended_under_both(&mut self, client: usize) {
        self.crash(0);
        let (answer, _) = self.ask(client, 1, Kind::Read);
        self.check(matches!(answer, Answer::Ended(_)), "no id of it is served");
        self.end();
    }
}

fn a_logout_hears_from_the_store_of_a_rotation(s: &mut Script) {
    let ([with, without], rotation) = s.apart_at_a_store(10);
    let old = s.w.clients[with].session;
    s.wait(rotation);
    s.check(s.w.clients[with].session != old, "the session goes on under its new id");
    if let Some(id) = s.w.logout_unopened(without, 1, 0) {
        s.wait(id);
    }
    s.ended_under_both(with);
}

fn a_rotation_hears_from_the_store_of_a_logout(s: &mut Script) {
    let ([with, without], rotation) = s.apart_at_a_store(500);
    if let Some(id) = s.w.logout_unopened(without, 1, 0) {
        s.wait(id);
    }
    s.wait(rotation);
    s.ended_under_both(with);
}

fn both_sides_go_on(s: &mut Script) {
    s.nodes(2);
    let (with, without) = s.session(&[0, 1]);
    s.cut(0, 1);
    s.run(6000);
    for _ in 0..3 {
        s.ok(with, 0, Kind::Append);
        s.ok(without, 1, Kind::Append);
    }
    s.mend();
    s.end();
}

fn branches_that_are_too_large_together(s: &mut Script) {
    s.w.opts.record_max = 1024;
    s.nodes(2);
    let (with, without) = s.session(&[0, 1]);
    s.cut(0, 1);
    s.run(6000);
    for _ in 0..7 {
        s.ok(with, 0, Kind::Set);
        s.ok(without, 1, Kind::Set);
    }
    s.mend();
    s.end();
}

fn crash_of_any_one_node(s: &mut Script) {
    s.nodes(3);
    let (with, _) = s.session(&[0, 1]);
    for victim in [0, 1, 2] {
        s.ok(with, (victim + 1) % 3, Kind::Append);
        s.crash(victim);
        s.ok(with, (victim + 1) % 3, Kind::Append);
        s.w.start(victim);
        s.run(5000);
    }
    s.end();
}

// ---- how long a session lives -----------------------------------------------------------------------------------------------

impl Script {
    /// Nodes whose sessions live so many seconds without use, and a store.
    fn clocks(&mut self, idle: &[i64]) {
        self.w.opts.store = true;
        let idle = idle.iter().map(|seconds| seconds * S).collect();
        self.w.opts.clocks = Some(Clocks { idle, lifetime: 86_400 * S, own: 0, readers: 0, skew: 0, quiet: true });
        self.nodes(2);
    }
}

fn who_only_reads_survives_a_restart_of_all_nodes(s: &mut Script) {
    s.clocks(&[30]);
    let (with, without) = s.session(&[0]);
    s.ok(with, 0, Kind::Append);
    for _ in 0..20 {
        s.run(3000);
        s.ok(with, 0, Kind::Read);
    }
    s.crash(0);
    s.crash(1);
    s.w.start(0);
    s.w.start(1);
    s.run(4000);
    s.ok(without, 1, Kind::Read);
    s.end();
}

fn a_session_lives_as_long_as_it_was_born_to(s: &mut Script) {
    s.clocks(&[60, 5]);
    let (with, without) = s.session(&[0]);
    s.run(1000);
    s.ok(with, 0, Kind::Read);
    s.crash(0);
    // The node that is left would have it end after 5 s.
    s.run(50_000);
    s.ok(without, 1, Kind::Read);
    s.run(61_000);
    let (answer, _) = s.ask(without, 1, Kind::Read);
    s.check(!matches!(answer, Answer::Ok { .. }), "60 s without use end it");
    s.end();
}
