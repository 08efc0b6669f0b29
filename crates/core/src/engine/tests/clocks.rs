//! How long sessions live: on their owner, on its heirs, and in the store.

use super::*;
use crate::config::Limits;
use crate::record::LIMITS;
use crate::wire::Message;

const S: Duration = Duration::from_secs(1);

fn with_store(idle: Duration) -> Config {
    Config { store: true, limits: Limits { idle, ..Limits::default() }, ..Config::default() }
}

impl Net {
    /// Reads every so often.
    fn reads(&mut self, at: usize, every: Duration, times: u32) {
        for _ in 0..times {
            self.pass(every);
            let opened = self.open(at, None).unwrap();
            self.call(at, |e, now, out| e.close(now, &opened, out));
        }
    }

    /// Lets time pass, coarsely.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now = self.now + Duration::from_millis(190);
            self.run(Duration::from_millis(10));
        }
    }

    fn kill_all(&mut self) {
        for at in 0..self.nodes.len() {
            self.kill(at);
        }
        self.wires.clear();
    }

    fn restart(&mut self) {
        for at in 0..self.nodes.len() {
            self.start(at);
        }
        self.run(S * 2);
    }

    fn set_idle(&mut self, at: usize, idle: Duration) {
        let opened = self.open(at, None).unwrap();
        let limits = Limits { idle, lifetime: Limits::default().lifetime };
        let base = self.nodes[at].engine.read(&opened, |r, _| r.get(LIMITS).map(|a| a.dot)).unwrap().into();
        let change = Change { name: LIMITS.into(), base, value: Some(Bytes::copy_from_slice(&limits.encode())) };
        self.call(at, |e, now, out| e.commit(now, &opened, &[change], out));
        self.call(at, |e, now, out| e.close(now, &opened, out));
        self.deliver();
    }

    fn tip(&self, at: usize) -> Stamp {
        self.nodes[at].engine.info(KEY).unwrap().tip
    }
}

/// Two changes, then reads alone, for longer than the idle timeout.
fn read_for_long() -> (Net, Stamp) {
    let mut net = Net::new(2, with_store(S * 60));
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    net.run(S);
    let opened = net.open(0, None).unwrap();
    waited(net.append(0, &opened, 2));
    net.reads(0, S * 3, 37);
    let tip = net.tip(0);
    (net, tip)
}

#[test]
fn who_only_reads_survives_a_restart_of_all_nodes() {
    for token in [true, false] {
        let (mut net, tip) = read_for_long();
        net.kill_all();
        net.restart();
        assert_eq!(net.read(0, token.then_some(tip)).unwrap(), [1, 2], "token {token}");
    }
}

#[test]
fn who_only_reads_survives_an_orderly_end_of_all_nodes_to_the_second() {
    let (mut net, tip) = read_for_long();
    // Less than a step ago: the store has not heard of it.
    net.reads(0, S, 2);
    let used = net.now;
    for at in 0..2 {
        net.call(at, |e, now, out| e.drain(now, out));
    }
    for at in [1, 0] {
        let mut seconds = 0;
        loop {
            let drained = net.nodes[at].engine.drained();
            if drained.left == 0 && drained.untold == 0 {
                break;
            }
            assert!(seconds < 60, "{drained:?}");
            seconds += 1;
            net.call(at, |e, now, out| e.touch_rows(now, out));
            net.run(S);
        }
        net.call(at, |e, now, out| e.stop(now, out));
        net.kill(at);
    }
    assert_eq!(used.since(net.rows[&KEY].touched), Duration::ZERO, "the store has heard of the last use");
    net.restart();
    assert_eq!(net.read(0, Some(tip)).unwrap(), [1, 2]);
}

#[test]
fn a_row_that_a_valid_token_says_is_alive_is_not_expired() {
    let (mut net, tip) = read_for_long();
    // The store has missed all touches, and nobody has swept it.
    let row = net.rows.get_mut(&KEY).unwrap();
    row.touched = row.written;
    net.kill_all();
    net.restart();
    assert!(matches!(net.read(1, None), Err(Outcome::NotFound)), "nobody says that it is alive");
    net.run(S * 6);
    assert_eq!(net.read(1, Some(tip)).unwrap(), [1, 2]);
}

#[test]
fn a_token_speaks_for_all_who_wait_with_it_unless_it_has_run_out() {
    for expired in [false, true] {
        let (mut net, tip) = read_for_long();
        let row = net.rows.get_mut(&KEY).unwrap();
        row.touched = row.written;
        net.kill_all();
        net.restart();
        // Who comes first brings no token.
        let tokens = [None, Some(Brought { stamp: tip, expired })];
        let tickets = tokens.map(|token| match net.call(1, |e, now, out| e.open(now, KEY, token, out)) {
            Open::Wait(ticket) => ticket,
            other => panic!("{other:?}"),
        });
        net.run(S * 2);
        for ticket in tickets {
            let outcome = net.settled.remove(&ticket).expect("the ticket is settled");
            let found = matches!(outcome, Outcome::Again);
            assert_eq!(found, !expired, "{outcome:?}");
        }
    }
}

#[test]
fn no_token_makes_a_session_outlive_its_lifetime() {
    let limits = Limits { idle: S * 60, lifetime: S * 90 };
    let mut net = Net::new(2, Config { limits, ..with_store(S * 60) });
    let opened = net.create(0);
    let tip = waited(net.append(0, &opened, 1));
    net.reads(0, S * 3, 27);
    net.kill_all();
    net.pass(S * 10);
    net.restart();
    net.pass(S * 31);
    assert_eq!(net.read(0, Some(tip)).unwrap(), [], "it is lost, and begins anew");
    assert!(net.events.iter().any(|(_, e)| matches!(e, crate::output::Event::Lost { .. })));
}

#[test]
fn a_row_stays_as_long_as_its_session_may_live_and_two_steps() {
    let mut net = Net::new(2, with_store(S * 60));
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    net.reads(0, S * 3, 10);
    net.pass(S * 59);
    net.sweep_store();
    assert_eq!(net.rows.len(), 1, "it is alive");
    net.pass(S * 14);
    net.sweep_store();
    assert_eq!(net.rows.len(), 0, "72 s after the last use it is over for everybody");
    assert!(net.nodes.iter().all(|n| n.engine.info(KEY).is_none_or(|info| !info.held)));
}

#[test]
fn a_row_that_was_swept_too_early_is_written_again_by_the_next_use() {
    let mut net = Net::new(2, with_store(S * 60));
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    net.rows.clear();
    net.reads(0, S * 3, 4);
    assert_eq!(net.rows.len(), 1);
}

#[test]
fn a_session_with_a_short_timeout_of_its_own_survives_its_owner() {
    for seconds in [2, 5, 10, 40, 149, 151, 900] {
        let mut net = Net::new(2, Config::default());
        let opened = net.create(0);
        waited(net.append(0, &opened, 1));
        net.set_idle(0, S * seconds);
        let idle = Duration::from_secs(u64::from(seconds));
        net.reads(0, idle * 9 / 10, 4);
        net.kill(0);
        net.run(S / 2);
        assert_eq!(net.read(1, None).map_err(|e| (seconds, e)).unwrap(), [1], "{seconds} s, one click before the owner died");
        net.reads(1, idle * 9 / 10, 3);
        net.run(S / 10);
        net.pass(idle + S / 10);
        assert!(net.read(1, None).is_err(), "{seconds} s without use");
    }
}

#[test]
fn an_idle_timeout_may_be_set_to_any_length() {
    for idle in [Duration::ZERO, Duration::from_millis(1), S, S * 1800, S * 86_400 * 400, Duration::MAX] {
        let mut net = Net::new(2, with_store(S * 60));
        let opened = net.create(0);
        waited(net.append(0, &opened, 1));
        net.set_idle(0, idle);
        net.run(S / 2);
        assert_eq!(net.read(0, None).unwrap(), [1], "{idle:?}");
        net.pass(if idle > S { S * 100 } else { S * 3 });
        assert_eq!(net.read(0, None).is_ok(), idle > S, "{idle:?}: set by its own timeout, not by the configured one");
        net.now = net.now + S * 86_400;
        net.run(S);
        assert!(net.read(0, None).is_err(), "{idle:?}: its lifetime ends it");
    }
}

#[test]
fn nodes_with_other_settings_agree_on_each_session() {
    let mut net = Net::new(0, Config::default());
    for (at, idle) in [(0, 60), (1, 10), (2, 1800)] {
        net.config.limits.idle = S * idle;
        net.start(at);
    }
    net.run(S * 2);
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    net.reads(0, S * 3, 2);
    // Its owner dies: whoever inherits keeps it for as long as it was born to live.
    net.kill(0);
    net.pass(S * 20);
    let owner = (1..3).find(|at| net.nodes[*at].engine.info(KEY).is_some_and(|i| i.owned)).expect("there is an heir");
    assert_eq!(net.read(owner, None).unwrap(), [1], "20 s without use, and born to live 60");
    net.pass(S * 59);
    assert_eq!(net.read(3 - owner, None).unwrap(), [1], "whichever node is asked");
    net.pass(S * 61);
    for at in [1, 2] {
        assert!(matches!(net.read(at, None), Err(Outcome::NotFound)));
    }
}

fn bot(n: u64) -> SessionKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes[8..].copy_from_slice(&(!n).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_be_bytes());
    SessionKey::from_bytes(bytes)
}

#[test]
fn a_session_whose_cookie_never_came_back_is_over_after_5_minutes_for_everybody() {
    let (mut net, count) = (Net::new(2, with_store(S * 1800)), 3000);
    let change = Change { name: "n".into(), base: Base::Absent, value: Some(Bytes::from_static(b"1")) };
    for n in 0..count {
        let opened = net.call(0, |e, now, out| e.create(now, bot(n), out)).unwrap();
        net.now = net.now + Duration::from_micros(300);
        net.call(0, |e, now, out| e.commit(now, &opened, core::slice::from_ref(&change), out));
        net.call(0, |e, now, out| e.close(now, &opened, out));
        net.deliver();
    }
    // Every tenth is a visitor who clicks once, late.
    net.pass(S * 290);
    for n in (0..count).step_by(10) {
        let Open::Here(opened) = net.call(0, |e, now, out| e.open(now, bot(n), None, out)) else { panic!("{n} is alive") };
        net.call(0, |e, now, out| e.close(now, &opened, out));
        net.deliver();
    }
    net.pass(S * 100);
    net.sweep_store();
    let stats = |at: usize| net.nodes[at].engine.stats(net.now);
    assert_eq!((stats(0).owned, stats(1).backed, net.rows.len()), (300, 300, 300));
    // The others live as long as any session, if their owner dies too.
    net.kill(0);
    net.pass(S * 1000);
    assert_eq!(net.nodes[1].engine.stats(net.now).owned, 300);
}

#[test]
fn what_expired_is_not_said_to_be_lost() {
    let mut net = Net::new(3, Config { limits: Limits { idle: S * 60, ..Limits::default() }, ..Config::default() });
    let opened = net.create(0);
    let tip = waited(net.append(0, &opened, 1));
    net.reads(0, S * 3, 2);
    net.pass(S * 61);
    // Its token may say for a step more that it lives.
    for at in 0..3 {
        let read = net.read(at, Some(tip));
        assert!(matches!(read, Err(Outcome::NotFound)), "n{at} {read:?}");
    }
    assert!(!net.events.iter().any(|(_, e)| matches!(e, crate::output::Event::Lost { .. })));
}

#[test]
fn a_token_of_an_owner_before_the_last_one_is_no_loss_either() {
    let mut net = Net::new(2, Config::default());
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    let first = net.tip(0);
    // It moves, and gets a shorter life than that token tells of.
    net.set_idle(1, S * 5);
    assert!(net.tip(1).claim > first.claim);
    net.pass(S * 8);
    assert!(matches!(net.open(1, Some(first)), Err(Outcome::NotFound)));
    assert!(matches!(net.open(0, Some(first)), Err(Outcome::NotFound)));
}

#[test]
fn a_guests_reading_is_a_use() {
    let mut net = Net::new(3, Config { limits: Limits { idle: S * 20, ..Limits::default() }, ..Config::default() });
    let opened = net.create(0);
    let tip = waited(net.append(0, &opened, 1));
    // Two moves, and it stays where it is.
    for at in [1, 2] {
        net.run(S);
        net.read(at, Some(tip)).unwrap();
    }
    let mut guest = 0;
    for _ in 0..20 {
        net.run(S * 3);
        match net.open(1, Some(tip)) {
            Ok(opened) => net.call(1, |e, now, out| e.close(now, &opened, out)),
            Err(Outcome::Guest(_)) => guest += 1,
            Err(other) => panic!("{other:?}"),
        }
        net.read(2, Some(tip)).ok();
        // Another node's reader keeps it moving.
    }
    assert!(guest > 0);
}

#[test]
fn no_shard_waits_for_another_that_always_has_something_to_write() {
    let mut net = Net::new(1, with_store(S * 60));
    net.config.store = true;
    let keys: Vec<SessionKey> = (0..64).map(bot).collect();
    let change = |base: Option<Stamp>| Change { name: "n".into(), base: base.into(), value: Some(Bytes::from_static(b"1")) };
    let mut out = Outputs::new();
    let engine = &net.nodes[0].engine;
    for key in &keys {
        let opened = engine.create(net.now, *key, &mut out).unwrap();
        engine.commit(net.now, &opened, &[change(None)], &mut out);
    }
    let shard = |key: SessionKey| key.bits() & 1;
    let mut seen = [0, 0];
    for _ in 0..8 {
        for write in engine.take_writes(net.now, 1, &mut out) {
            seen[shard(write.key()) as usize] += 1;
        }
    }
    assert_eq!(seen, [4, 4]);
    let batch = engine.take_writes(net.now, 16, &mut out);
    assert_eq!(batch.iter().filter(|w| shard(w.key()) == 0).count(), 8);
}

#[test]
fn a_request_that_runs_lengthens_no_lifetime_for_other_nodes() {
    let limits = Limits { idle: S * 20, lifetime: S * 30 };
    let mut net = Net::new(3, Config { limits, ..Config::default() });
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    net.pass(S * 10);
    let slow = net.open(0, None).unwrap();
    net.pass(S * 21);
    for at in [1, 0, 2] {
        assert!(matches!(net.read(at, None), Err(Outcome::NotFound)), "n{at}");
    }
    net.call(0, |e, now, out| e.close(now, &slow, out));
}

#[test]
fn an_owner_takes_other_nodes_changes_before_the_origin_of_its_clock_too() {
    let mut net = Net::new(1, Config::default());
    net.now = Mono::from_micros(-1_000_000);
    let opened = net.create(0);
    net.append(0, &opened, 1);
    let change = Change { name: "other".into(), base: Base::Absent, value: Some(Bytes::from_static(b"1")) };
    let ticket = net.call(0, |e, now, out| e.commit_late(now, KEY, None, &[change], out));
    let settled = net.settled.get(&ticket);
    assert!(matches!(settled, Some(Outcome::Late { .. })), "it waits for a rotation that there is not: {settled:?}");
}

#[test]
fn an_owner_takes_over_a_use_that_a_holder_noted_under_a_lesser_claim() {
    let mut net = Net::new(2, Config::default());
    net.put(0, KEY);
    net.pass(S * 20);
    let (claim, from) = (net.nodes[0].engine.info(KEY).unwrap().claim, net.nodes[1].engine.life());
    let report = Message::Report { key: KEY, claim, idle_ms: 1000 };
    net.call(0, |e, now, out| e.session(now, KEY, out, |s, cx| s.handle(cx, from, report))).unwrap();
    assert_eq!(net.nodes[0].engine.peek(KEY, |r, _| r.used), Some(net.now - S));
}
