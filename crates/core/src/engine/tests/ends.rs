//! Ends that meet in the store.

use super::*;

const NEXT: SessionKey = SessionKey::from_bytes([8; 16]);
const OTHER: SessionKey = SessionKey::from_bytes([9; 16]);

fn alone() -> Net {
    Net::new(1, Config { store: true, ..Config::default() })
}

fn ended(net: &mut Net, key: SessionKey) -> Option<EndKind> {
    match net.call(0, |e, now, out| e.open(now, key, None, out)) {
        Open::Ended(kind, _) => Some(kind),
        _ => None,
    }
}

#[test]
fn a_logout_that_meets_a_rotation_in_the_store_is_done_when_the_new_id_has_ended() {
    for (marked, asked) in [((EndKind::Rotated, Some(NEXT)), None), ((EndKind::Invalidated, None), Some(NEXT))] {
        let mut net = alone();
        net.markers.insert(KEY, marked);
        let ticket = net.call(0, |e, now, out| e.end(now, KEY, asked, out));
        assert_eq!(net.markers[&KEY], (EndKind::Invalidated, Some(NEXT)));
        assert_eq!(net.markers[&NEXT], (EndKind::Invalidated, None));
        assert_eq!((ended(&mut net, KEY), ended(&mut net, NEXT)), (Some(EndKind::Invalidated), Some(EndKind::Invalidated)));
        assert!(!net.settled.contains_key(&ticket), "not before all know of both");
        net.run(Duration::from_millis(600));
        assert!(matches!(net.settled[&ticket], Outcome::End(true)));
    }
}

#[test]
fn a_logout_ends_all_the_ids_that_a_session_went_on_under() {
    let mut net = alone();
    net.markers.insert(KEY, (EndKind::Rotated, Some(NEXT)));
    net.markers.insert(NEXT, (EndKind::Rotated, Some(OTHER)));
    let ticket = net.call(0, |e, now, out| e.end(now, KEY, None, out));
    net.run(Duration::from_secs(2));
    assert!(net.settled.contains_key(&ticket));
    assert!([KEY, NEXT, OTHER].into_iter().all(|key| ended(&mut net, key) == Some(EndKind::Invalidated)));
}

#[test]
fn of_two_ids_that_a_session_went_on_under_the_store_and_a_node_name_the_same() {
    for [here, there] in [[NEXT, OTHER], [OTHER, NEXT]] {
        let mut net = alone();
        net.markers.insert(KEY, (EndKind::Rotated, Some(there)));
        let ticket = net.call(0, |e, now, out| e.end(now, KEY, Some(here), out));
        assert_eq!(net.markers[&KEY], (EndKind::Rotated, Some(NEXT)));
        assert!(matches!(net.settled[&ticket], Outcome::End(true)), "nothing is left to write");
    }
}
