//! What is bounded for a node is bounded for the node, however many parts its table has.

use super::*;
use crate::limits::{ENDED_MAX, PROMISES_MAX, ROUNDS_MAX, WAITING_MAX};
use crate::output::Unavailable;

fn key(n: usize) -> SessionKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes[8..].copy_from_slice(&(n as u64).to_be_bytes());
    SessionKey::from_bytes(bytes)
}

/// Two nodes, of which one says nothing more.
fn beside_a_silent_one() -> Net {
    let mut net = Net::new(2, Config::default());
    net.delay = Duration::from_secs(3600);
    net
}

#[test]
fn rounds_are_bounded_for_the_node() {
    let mut net = beside_a_silent_one();
    let (mut waiting, mut busy) = (0, 0);
    for n in 0..ROUNDS_MAX + ROUNDS_MAX / 8 {
        match net.call(0, |e, now, out| e.open(now, key(n), None, out)) {
            Open::Wait(_) => waiting += 1,
            Open::Unavailable(Unavailable::Busy, _) => busy += 1,
            other => panic!("{other:?}"),
        }
    }
    let stats = net.nodes[0].engine.stats(net.now);
    assert!(waiting <= ROUNDS_MAX && waiting > ROUNDS_MAX / 2, "{waiting}");
    assert_eq!((stats.rounds, stats.refused), (waiting as u64, busy));
}

#[test]
fn requests_that_wait_for_one_session_are_bounded() {
    let mut net = beside_a_silent_one();
    for n in 0..=WAITING_MAX {
        match net.call(0, |e, now, out| e.open(now, KEY, None, out)) {
            Open::Wait(_) => assert!(n < WAITING_MAX),
            Open::Unavailable(Unavailable::Busy, _) => assert_eq!(n, WAITING_MAX),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(net.nodes[0].engine.stats(net.now).refused, 1);
}

#[test]
fn promises_are_bounded_for_the_node_and_the_eldest_is_forgotten() {
    let mut net = beside_a_silent_one();
    for n in 0..PROMISES_MAX + PROMISES_MAX / 8 {
        // Asked by nobody but itself: a claimant promises to itself first, and the promise stays when the round is over.
        let _ = net.call(0, |e, now, out| e.open(now, key(n), None, out));
        // Rounds end, promises do not yet.
        if n % (ROUNDS_MAX / 4) == 0 {
            net.now = net.now + Duration::from_secs(2);
            net.call(0, |e, now, out| e.handle_timer(now, out));
        }
    }
    let stats = net.nodes[0].engine.stats(net.now);
    assert!(stats.forgotten > 0, "{stats:?}");
    let promises: usize = net.nodes[0].engine.shards.iter().map(|s| s.lock().queues.promises.len()).sum();
    assert!(promises <= PROMISES_MAX, "{promises}");
}

#[test]
fn markers_are_bounded_for_the_node_and_the_eldest_goes_that_all_have_confirmed() {
    let shards = 1024;
    let mut net = Net::new(1, Config { shards: shards as u16, ..Config::default() });
    let ended = |net: &mut Net, key| matches!(net.call(0, |e, now, out| e.open(now, key, None, out)), Open::Ended(..));
    // As many as the part of the table may have, and one more.
    let keys: Vec<SessionKey> = (0..).map(key).filter(|k| k.bits() % shards == 0).take(ENDED_MAX / shards as usize + 1).collect();
    for (n, key) in keys.iter().enumerate() {
        net.now = Mono::from_micros(3_000_000 + n as i64);
        net.call(0, |e, now, out| e.end(now, *key, None, out));
    }
    let stats = net.nodes[0].engine.stats(net.now);
    assert_eq!(stats.forgotten as usize, ENDED_MAX / shards as usize / 16);
    assert!(!ended(&mut net, keys[0]) && ended(&mut net, keys[keys.len() - 1]) && ended(&mut net, keys[keys.len() / 2]));
}
