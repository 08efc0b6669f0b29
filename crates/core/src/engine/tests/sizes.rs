//! What is too large is refused or left out, at every door by one rule, and costs no link.

use super::*;
use crate::limits::{ATTRIBUTES_MAX, RECORD_MAX};
use crate::output::Event;
use crate::record::Excess;

/// Sets attributes whose values have so many bytes.
fn put(net: &mut Net, at: usize, sets: &[(&str, usize)]) -> Commit {
    let opened = net.open(at, None).unwrap();
    let value = |bytes: usize| Some(Bytes::from(vec![b'x'; bytes]));
    let changes: Vec<Change> =
        sets.iter().map(|(name, bytes)| Change { name: (*name).into(), base: Base::Absent, value: value(*bytes) }).collect();
    let commit = net.call(at, |e, now, out| e.commit(now, &opened, &changes, out));
    net.call(at, |e, now, out| e.close(now, &opened, out));
    net.deliver();
    commit
}

fn names(net: &Net, at: usize) -> Vec<String> {
    net.nodes[at].engine.peek(KEY, |r, _| r.attributes().iter().map(|a| a.name.to_string()).collect()).expect("it is held here")
}

/// The two sides of a partition commit these.
fn parted(mine: &[(&str, usize)], theirs: &[(&str, usize)]) -> Net {
    let mut net = Net::new(2, Config::default());
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    net.cut.push((0, 1));
    net.disconnect(0, 1);
    net.run(Duration::from_secs(5));
    for (at, sets) in [(0, mine), (1, theirs)] {
        let commit = put(&mut net, at, sets);
        assert!(matches!(commit, Commit::Done { .. }), "{commit:?}");
    }
    net.events.clear();
    net
}

fn heal(net: &mut Net) {
    net.cut.clear();
    net.connect(0, 1);
    net.run(Duration::from_secs(5));
}

#[test]
fn branches_that_together_are_too_large_merge_and_the_link_stays() {
    let mut net = parted(&[("a", 600 << 10), ("small", 10)], &[("b", 600 << 10)]);
    let links = net.next_link;
    heal(&mut net);
    assert_eq!(net.next_link, links + 2, "the new link stays");
    let left = names(&net, 0);
    assert_eq!(left.len(), 3, "one of the two large values is left, and all that fits: {left:?}");
    let out: Vec<String> = net
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Conflict { discarded } => Some(discarded.iter().map(|n| n.to_string())),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(out.len(), 1, "the event names what was left out: {out:?}");
    assert!(out[0] == "a" || out[0] == "b");
    assert!(!left.contains(&out[0]));
    assert_eq!(names(&net, 1), left, "the same everywhere");
    assert!(matches!(put(&mut net, 1, &[("after", 1)]), Commit::Wait { .. }));
}

#[test]
fn branches_with_too_many_attributes_merge_and_the_link_stays() {
    let names_of = |side: &str| (0..600).map(|n| format!("{side}{n}")).collect::<Vec<_>>();
    let (mine, theirs) = (names_of("a"), names_of("b"));
    let sets = |names: &'static [String]| names.iter().map(|n| (n.as_str(), 1)).collect::<Vec<_>>();
    let mut net = parted(&sets(mine.leak()), &sets(theirs.leak()));
    let links = net.next_link;
    heal(&mut net);
    assert_eq!(net.next_link, links + 2);
    assert_eq!(names(&net, 0).len(), ATTRIBUTES_MAX);
    assert_eq!(names(&net, 1), names(&net, 0));
}

#[test]
fn a_claimant_that_finds_branches_too_large_together_leaves_out_the_elder_and_owns_the_session() {
    let mut net = parted(&[("a", 600 << 10)], &[("b", 600 << 10)]);
    // A third node meets both before they meet each other.
    net.start(2);
    net.run(Duration::from_secs(1));
    let opened = net.open(2, None).map(|_| ()).map_err(|o| format!("{o:.0?}").chars().take(60).collect::<String>());
    assert_eq!(opened, Ok(()));
    heal(&mut net);
    let left = names(&net, 2);
    for at in net.holders() {
        assert_eq!(names(&net, at), left);
    }
    assert_eq!(left.iter().filter(|n| *n == "a" || *n == "b").count(), 1, "{left:?}");
}

#[test]
fn a_commit_is_refused_by_bytes_and_by_attributes_and_what_makes_it_smaller_is_taken() {
    let mut net = Net::new(2, Config::default());
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    match put(&mut net, 0, &[("a", RECORD_MAX)]) {
        Commit::TooLarge(Excess::Bytes { got, most }) => assert!(got > RECORD_MAX && most == RECORD_MAX),
        other => panic!("{other:?}"),
    }
    let names: Vec<String> = (0..ATTRIBUTES_MAX).map(|n| format!("n{n}")).collect();
    let sets: Vec<(&str, usize)> = names.iter().map(|n| (n.as_str(), 1)).collect();
    match put(&mut net, 0, &sets) {
        Commit::TooLarge(Excess::Attributes { got, most }) => assert_eq!((got, most), (ATTRIBUTES_MAX + 1, ATTRIBUTES_MAX)),
        other => panic!("{other:?}"),
    }
    waited(put(&mut net, 0, &[("a", 1)]));
}

#[test]
fn a_forwarded_commit_that_does_not_fit_is_refused_by_the_owner_with_the_numbers() {
    let config = Config { record_max: 4096, ..Config::default() };
    let mut net = Net::new(2, config);
    let opened = net.create(0);
    waited(net.append(0, &opened, 1));
    let at = net.open(0, None).unwrap();
    net.call(0, |e, now, out| e.close(now, &at, out));
    let tip = at.tip;
    let change = Change { name: "a".into(), base: Base::Absent, value: Some(Bytes::from(vec![0; 5000])) };
    let ticket = net.call(1, |e, now, out| e.commit_late(now, KEY, Some(tip), &[change], out));
    net.run(Duration::from_secs(1));
    match net.settled.remove(&ticket) {
        Some(Outcome::LateFailed(crate::output::Failure::TooLarge(Excess::Bytes { most, .. }))) => assert_eq!(most, 4096),
        other => panic!("{other:?}"),
    }
}
