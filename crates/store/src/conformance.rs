//! The suite: one function for each edge of the [`Store`] law, [`all`] of them for a store of your own.
//!
//! ```
//! use outlive_store::{MemoryStore, conformance};
//! use std::sync::Arc;
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! conformance::all(async || {
//!     let store = MemoryStore::new();
//!     let pair: conformance::Pair = [Arc::new(store.clone()), Arc::new(store)];
//!     pair
//! })
//! .await;
//! # });
//! ```
//!
//! Every function panics at the first broken edge, with the edge in words. None of them sleeps or asks how long something took: what has to
//! be over gets a duration of zero. They run on any executor.

use crate::error::PutError;
use crate::store::{End, Expect, Loaded, MAX_RECORD, MAX_ROWS, MAX_TEXT, Marker, Node, Put, Row, RowResult, Store, Swept, Touch};
use bytes::Bytes;
use core::fmt::Debug;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::Poll;
use core::time::Duration;
use outlive_core::id::SessionKey;
use outlive_core::stamp::{Claim, Life, Stamp};
use std::sync::Arc;

/// Two handles on one store, as two nodes would open it.
pub type Pair = [Arc<dyn Store>; 2];

const LONG: Duration = Duration::from_secs(3600);

/// Runs every edge that needs nothing but the store; `make` opens an empty one each time.
/// [`failures_tell_the_truth`] needs somebody who breaks it, and is yours to call.
pub async fn all(make: impl AsyncFn() -> Pair) {
    what_was_put_is_loaded(&make().await).await;
    a_put_compares_for_equality(&make().await).await;
    a_put_replaces_the_whole_row(&make().await).await;
    rows_of_a_call_do_not_affect_each_other(&make().await).await;
    limits_are_refused_before_anything_happens(&make().await).await;
    nothing_resurrects_what_ended(&make().await).await;
    an_unknown_session_can_end(&make().await).await;
    ending_twice_keeps_the_lesser_kind_and_the_later_time(&make().await).await;
    a_marker_names_the_session_that_goes_on(&make().await).await;
    of_two_ends_the_later_one_hears_of_both(&make().await).await;
    a_touch_moves_the_expiry_only_on_its_stamp(&make().await).await;
    a_touch_tells_when_a_session_was_used(&make().await).await;
    a_sweep_takes_what_is_over_and_no_more(&make().await).await;
    durations_may_be_as_long_as_the_type_allows(&make().await).await;
    two_lineages_race(&make().await, 250).await;
    many_race_to_create(&make().await).await;
    a_put_and_an_end_race(&make().await).await;
    as_many_batches_at_once_as_it_takes(&make().await).await;
    a_lease_has_one_holder(&make().await).await;
    nodes_are_found_while_their_lease_runs(&make().await).await;
    all_get_one_secret(&make().await).await;
    a_store_is_one_store_and_no_other(&make().await, &make().await).await;
    the_store_answers_a_probe(&make().await).await;
}

/// Records come back byte for byte, in the order asked, at every node; unknown keys are missing.
pub async fn what_was_put_is_loaded([a, b]: &Pair) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let large = vec![0xA5; 300_000];
    let rows = vec![
        row(1, Expect::Absent, 1, b""),
        row(2, Expect::Absent, 1, &every_byte),
        row(3, Expect::Absent, 1, &large),
        Put { user: Some([9; 16]), ..row(4, Expect::Absent, 1, b"four") },
    ];
    // The extremes of a stamp come back too, above what a signed number holds.
    let extreme = Claim { epoch: u32::MAX, life: Life::new(u64::MAX) }.at(u32::MAX);
    let rows: Vec<Put> = rows.into_iter().chain([Put { stamp: extreme, ..row(5, Expect::Absent, 1, b"five") }]).collect();
    assert_eq!(ok(a.put(rows.clone()).await), vec![RowResult::Applied; 5]);
    for node in [a, b] {
        let loaded = ok(node.load(vec![key(5), key(0), key(3), key(2), key(1), key(4), key(3)]).await);
        assert_eq!(loaded.len(), 7, "an answer for each key, in order");
        assert_eq!(loaded[1], Loaded::Missing);
        for (i, n) in [(0, 5), (2, 3), (3, 2), (4, 1), (5, 4), (6, 3)] {
            let found = here(loaded[i].clone());
            assert_eq!((found.stamp, &found.record), (rows[n - 1].stamp, &rows[n - 1].record), "row {n}");
            assert!(found.touched <= found.age, "touched at or after it was written");
        }
    }
    assert_eq!(ok(a.load(vec![]).await), vec![]);
    assert_eq!(ok(a.put(vec![]).await), vec![]);
    assert_eq!(ok(a.end(vec![]).await), vec![]);
    assert_eq!(ok(a.touch(vec![]).await), vec![]);
}

/// Equality with the stamp that is there decides, never order: a greater stamp does not win, a smaller one does not lose.
pub async fn a_put_compares_for_equality([a, b]: &Pair) {
    let key = key(1);
    assert_eq!(put(a, row(1, Expect::Exactly(stamp(1, 1)), 2, b"")).await, RowResult::Mismatch(None), "no row, but one expected");
    assert_eq!(ok(a.load(vec![key]).await), vec![Loaded::Missing], "a mismatch writes nothing");
    assert_eq!(put(a, row(1, Expect::Absent, 5, b"5")).await, RowResult::Applied);
    assert_eq!(put(b, row(1, Expect::Absent, 9, b"9")).await, RowResult::Mismatch(Some(stamp(1, 5))), "a row, but none expected");
    for wrong in [stamp(1, 4), stamp(1, 6), stamp(0, 5), stamp(2, 5)] {
        let greater = Put { stamp: stamp(7, 7), ..row(1, Expect::Exactly(wrong), 7, b"7") };
        assert_eq!(put(b, greater).await, RowResult::Mismatch(Some(stamp(1, 5))), "a greater stamp on another branch must not win");
    }
    assert_eq!(&here(one(a, key).await).record[..], b"5", "a mismatch writes nothing");
    assert_eq!(put(b, row(1, Expect::Exactly(stamp(1, 5)), 2, b"2")).await, RowResult::Applied, "a smaller stamp on the right base wins");
    let again = put(b, row(1, Expect::Exactly(stamp(1, 5)), 2, b"2")).await;
    assert_eq!(again, RowResult::Mismatch(Some(stamp(1, 2))), "a repeated put finds its own stamp");
    assert_eq!(&here(one(a, key).await).record[..], b"2");
}

/// A written row keeps nothing of the one before.
pub async fn a_put_replaces_the_whole_row([a, _]: &Pair) {
    put(a, Put { expires_in: Duration::ZERO, user: Some([1; 16]), ..row(1, Expect::Absent, 1, b"a long record") }).await;
    assert_eq!(put(a, row(1, Expect::Exactly(stamp(1, 1)), 2, b"b")).await, RowResult::Applied, "put over what expired");
    assert_eq!(ok(a.sweep(10).await), Swept::default(), "the new expiry counts");
    assert_eq!(&here(one(a, key(1)).await).record[..], b"b");
    let shorter = Put { expires_in: Duration::ZERO, ..row(1, Expect::Exactly(stamp(1, 2)), 3, b"c") };
    assert_eq!(put(a, shorter).await, RowResult::Applied);
    ok(a.sweep(10).await);
    assert_eq!(one(a, key(1)).await, Loaded::Missing, "the new expiry counts, though it is earlier");
}

/// Each row of a call has its own result, right whatever stands beside it, and the others are written.
pub async fn rows_of_a_call_do_not_affect_each_other([a, b]: &Pair) {
    ok(a.put((1..=3).map(|n| row(n, Expect::Absent, 1, b"old")).collect()).await);
    ok(a.end(vec![end(4, 7)]).await);
    let mixed = vec![
        row(4, Expect::Absent, 2, b"new"),
        row(1, Expect::Exactly(stamp(1, 1)), 2, b"new"),
        row(2, Expect::Exactly(stamp(9, 9)), 2, b"new"),
        row(5, Expect::Absent, 2, b"new"),
        row(3, Expect::Absent, 2, b"new"),
        row(6, Expect::Exactly(stamp(1, 1)), 2, b"new"),
    ];
    let expected = vec![
        RowResult::Ended(as_ended(7)),
        RowResult::Applied,
        RowResult::Mismatch(Some(stamp(1, 1))),
        RowResult::Applied,
        RowResult::Mismatch(Some(stamp(1, 1))),
        RowResult::Mismatch(None),
    ];
    assert_eq!(ok(b.put(mixed).await), expected);
    let loaded = ok(a.load((1..=6).map(key).collect()).await);
    let records = loaded.iter().map(|l| if let Loaded::Here(row) = l { &row.record[..] } else { b"-" });
    assert_eq!(records.collect::<Vec<_>>(), [&b"new"[..], b"old", b"old", b"-", b"new", b"-"]);
    assert_eq!(loaded[3], Loaded::Ended(as_ended(7)));

    let touches = vec![touch(2, stamp(1, 1), LONG), touch(4, stamp(1, 1), LONG), touch(6, stamp(1, 1), LONG), touch(1, stamp(1, 1), LONG)];
    let expected =
        vec![RowResult::Applied, RowResult::Ended(as_ended(7)), RowResult::Mismatch(None), RowResult::Mismatch(Some(stamp(1, 2)))];
    assert_eq!(ok(a.touch(touches).await), expected);

    // The largest call that there may be.
    let rows: Vec<Put> = (0..MAX_ROWS as u32).map(|n| row(100 + n, Expect::Absent, 1, &n.to_be_bytes())).collect();
    let keys = rows.iter().map(|row| row.key).collect();
    assert_eq!(ok(a.put(rows).await), vec![RowResult::Applied; MAX_ROWS]);
    for (n, loaded) in ok(b.load(keys).await).into_iter().enumerate() {
        assert_eq!(&here(loaded).record[..], &(n as u32).to_be_bytes()[..]);
    }
}

/// A call that is too large, or names a session twice, is refused whole.
pub async fn limits_are_refused_before_anything_happens([a, b]: &Pair) {
    let fine = || row(1, Expect::Absent, 1, b"fine");
    let too_large = Put { record: Bytes::from(vec![0; MAX_RECORD + 1]), ..row(2, Expect::Absent, 1, b"") };
    assert!(matches!(a.put(vec![fine(), too_large]).await, Err(PutError::TooLarge { .. })), "a record over its limit");
    let many = (1..).take(MAX_ROWS + 1).map(|n| row(n, Expect::Absent, 1, b"")).collect();
    assert!(matches!(a.put(many).await, Err(PutError::TooLarge { .. })), "too many rows");
    assert!(a.load(vec![key(1); MAX_ROWS + 1]).await.is_err(), "too many keys");
    assert!(matches!(a.put(vec![fine(), fine()]).await, Err(PutError::Twice(_))), "a session put twice in a call");
    assert!(matches!(a.end(vec![end(1, 0), end(1, 1)]).await, Err(PutError::Twice(_))), "a session ended twice in a call");
    let twice = vec![touch(1, stamp(1, 1), LONG), touch(1, stamp(1, 1), LONG)];
    assert!(matches!(a.touch(twice).await, Err(PutError::Twice(_))), "a session touched twice in a call");
    let long = "x".repeat(MAX_TEXT + 1);
    assert!(matches!(a.lease(long.clone(), Life::new(1), LONG).await, Err(PutError::TooLarge { .. })), "a long name of a lease");
    assert!(matches!(a.announce(Node { peer: long, ..node(1) }, LONG).await, Err(PutError::TooLarge { .. })), "a long address");
    assert_eq!(one(b, key(1)).await, Loaded::Missing, "a refused call writes nothing");
    assert_eq!(ok(b.nodes(Duration::ZERO).await), vec![], "a refused call writes nothing");
    assert_eq!(put(a, Put { record: Bytes::from(vec![1; MAX_RECORD]), ..fine() }).await, RowResult::Applied, "the largest record");
}

/// No put and no touch, whatever it expects, changes an ended session; the record is gone.
pub async fn nothing_resurrects_what_ended([a, b]: &Pair) {
    put(a, row(1, Expect::Absent, 1, b"alive")).await;
    ok(b.end(vec![end(1, 3)]).await);
    for node in [a, b] {
        assert_eq!(one(node, key(1)).await, Loaded::Ended(as_ended(3)));
        for expect in [Expect::Absent, Expect::Exactly(stamp(1, 1)), Expect::Exactly(stamp(9, 9))] {
            assert_eq!(put(node, row(1, expect, 9, b"late")).await, RowResult::Ended(as_ended(3)), "a put must not resurrect: {expect:?}");
        }
        assert_eq!(ok(node.touch(vec![touch(1, stamp(1, 1), LONG)]).await), vec![RowResult::Ended(as_ended(3))]);
    }
    assert_eq!(one(a, key(1)).await, Loaded::Ended(as_ended(3)));
}

/// An end needs no row, and keeps out the puts that come after it.
pub async fn an_unknown_session_can_end([a, b]: &Pair) {
    ok(a.end(vec![end(1, 255)]).await);
    assert_eq!(one(b, key(1)).await, Loaded::Ended(as_ended(255)));
    assert_eq!(put(b, row(1, Expect::Absent, 1, b"late")).await, RowResult::Ended(as_ended(255)));
    assert_eq!(one(a, key(1)).await, Loaded::Ended(as_ended(255)));
}

/// An end is absorbing towards other ends too.
pub async fn ending_twice_keeps_the_lesser_kind_and_the_later_time([a, b]: &Pair) {
    let first = ok(a.end(vec![end(1, 1), End { keep: Duration::ZERO, ..end(2, 1) }, end(3, 1)]).await);
    assert_eq!(first, vec![as_ended(1); 3], "what each marker says, in order");
    let second = ok(b.end(vec![End { keep: Duration::ZERO, ..end(1, 2) }, end(2, 2), end(3, 0)]).await);
    assert_eq!([second[0], second[2]], [as_ended(1), as_ended(0)], "what each marker says now");
    ok(a.sweep(10).await);
    assert_eq!(one(a, key(1)).await, Loaded::Ended(as_ended(1)), "a shorter time does not shorten");
    assert_eq!(one(a, key(3)).await, Loaded::Ended(as_ended(0)), "a lesser kind is what stays");
    // A store whose database forgets by itself may have forgotten the first marker of 2 already.
    assert!([1, 2].map(|kind| Loaded::Ended(as_ended(kind))).contains(&one(a, key(2)).await), "a longer time lengthens");
}

/// Which session goes on comes back wherever an end does; a row has none.
pub async fn a_marker_names_the_session_that_goes_on([a, b]: &Pair) {
    put(a, row(1, Expect::Absent, 1, b"x")).await;
    let ends = vec![rotated(1, 101), end(2, 0), rotated(3, 103)];
    let markers: Vec<Marker> = ends.iter().map(|end| end.marker).collect();
    assert_eq!(ok(a.end(ends).await), markers);
    for node in [a, b] {
        let loaded = ok(node.load((1..=4).map(key).collect()).await);
        let expected = markers.iter().map(|marker| Loaded::Ended(*marker)).chain([Loaded::Missing]);
        assert_eq!(loaded, expected.collect::<Vec<_>>());
        assert_eq!(put(node, row(1, Expect::Exactly(stamp(1, 1)), 2, b"late")).await, RowResult::Ended(markers[0]));
        assert_eq!(ok(node.touch(vec![touch(3, stamp(1, 1), LONG)]).await), vec![RowResult::Ended(markers[2])]);
    }
}

/// In whichever order two ends come, the one that comes later is told of both, and the marker is the same.
pub async fn of_two_ends_the_later_one_hears_of_both([a, b]: &Pair) {
    let ends = |n| [end(n, 0), end(n, 1), rotated(n, 101), rotated(n, 102), rotated(n, 103), end(n, 2)];
    let mut n = 0;
    for (i, j) in (0..6).flat_map(|i| (0..6).map(move |j| (i, j))) {
        n += 1;
        let (first, second) = (ends(n)[i].clone(), ends(n)[j].clone());
        let both = first.marker.and(second.marker);
        assert_eq!(both, second.marker.and(first.marker));
        assert_eq!(ok(a.end(vec![first.clone()]).await), vec![first.marker]);
        assert_eq!(ok(b.end(vec![second]).await), vec![both], "of {i} and then {j}");
        assert_eq!(one(a, key(n)).await, Loaded::Ended(both), "of {i} and then {j}");
        assert_eq!(ok(a.end(vec![first]).await), vec![both], "nothing is taken back");
    }
    for n in 201..217 {
        let mark = |node: Arc<dyn Store>, end: End| async move { ok(node.end(vec![end]).await)[0] };
        let heard = together(vec![
            Box::pin(mark(Arc::clone(a), end(n, 0))) as Pin<Box<dyn Future<Output = Marker>>>,
            Box::pin(mark(Arc::clone(b), rotated(n, 101))),
        ])
        .await;
        let both = Marker { kind: 0, next: Some(key(101)) };
        assert!(heard.contains(&both), "one of two that end it at once hears of the other: {heard:?}");
        assert_eq!(one(a, key(n)).await, Loaded::Ended(both));
    }
}

/// A touch needs the stamp, moves the expiry both ways, and changes nothing else.
pub async fn a_touch_moves_the_expiry_only_on_its_stamp([a, b]: &Pair) {
    put(a, row(1, Expect::Absent, 1, b"x")).await;
    let wrong = ok(b.touch(vec![touch(1, stamp(1, 2), Duration::ZERO)]).await);
    assert_eq!(wrong, vec![RowResult::Mismatch(Some(stamp(1, 1)))]);
    assert_eq!(ok(a.sweep(10).await), Swept::default(), "a mismatched touch moves nothing");
    let found = here(one(a, key(1)).await);
    assert_eq!((found.stamp, &found.record[..]), (stamp(1, 1), &b"x"[..]));
    assert_eq!(ok(b.touch(vec![touch(1, stamp(1, 1), Duration::ZERO)]).await), vec![RowResult::Applied]);
    ok(a.sweep(10).await);
    assert_eq!(one(a, key(1)).await, Loaded::Missing, "a touch may shorten");
    assert_eq!(ok(b.touch(vec![touch(1, stamp(1, 1), LONG)]).await), vec![RowResult::Mismatch(None)], "a touch creates nothing");
    assert_eq!(one(a, key(1)).await, Loaded::Missing);
}

/// A use is noted as of when it was, not as of when the store heard of it; one from before the row was written says nothing new.
pub async fn a_touch_tells_when_a_session_was_used([a, b]: &Pair) {
    put(a, row(1, Expect::Absent, 1, b"x")).await;
    let aged = async |by: Duration| loop {
        let found = here(one(a, key(1)).await);
        if found.age >= by {
            return found;
        }
    };
    let found = aged(Duration::from_millis(40)).await;
    assert_eq!(found.touched, found.age, "nobody has touched it");
    assert_eq!(ok(b.touch(vec![Touch { ago: LONG, ..touch(1, stamp(1, 1), LONG) }]).await), vec![RowResult::Applied]);
    let found = aged(Duration::ZERO).await;
    assert_eq!(found.touched, found.age, "a use from before it was written");
    let ago = Duration::from_millis(20);
    assert_eq!(ok(b.touch(vec![Touch { ago, ..touch(1, stamp(1, 1), LONG) }]).await), vec![RowResult::Applied]);
    let used = aged(Duration::ZERO).await;
    assert!(used.touched >= ago && used.touched < used.age, "{used:?}");
    assert_eq!(ok(a.touch(vec![Touch { ago: used.age, ..touch(1, stamp(1, 1), LONG) }]).await), vec![RowResult::Applied]);
    let again = aged(Duration::ZERO).await;
    assert!(again.touched < again.age, "an older use does not set a newer one back: {again:?}");
}

/// A sweep removes rows and markers past their time, at most `limit`, and names the rows.
pub async fn a_sweep_takes_what_is_over_and_no_more([a, b]: &Pair) {
    let over = |n| Put { expires_in: Duration::ZERO, ..row(n, Expect::Absent, 1, b"x") };
    ok(a.put(vec![over(1), over(2), row(3, Expect::Absent, 1, b"x"), over(4), over(5)]).await);
    ok(a.end(vec![End { keep: Duration::ZERO, ..end(6, 1) }, end(7, 1)]).await);
    // Found in use after all: touched, and written anew. A database that forgets by itself may have been faster.
    let touched = ok(b.touch(vec![touch(4, stamp(1, 1), LONG)]).await)[0];
    let written = put(b, row(5, Expect::Exactly(stamp(1, 1)), 2, b"y")).await;
    assert_eq!(ok(a.sweep(0).await), Swept::default());
    let mut swept = Swept { more: true, ..Swept::default() };
    for _ in 0..20 {
        let part = ok(b.sweep(2).await);
        assert!(part.sessions.len() + part.markers <= 2, "no more than asked");
        assert!(swept.more || part == Swept::default(), "there was to be no more");
        swept.sessions.extend(part.sessions);
        swept.markers += part.markers;
        swept.more = part.more;
    }
    assert!(!swept.more, "a sweep comes to an end");
    for (k, s) in &swept.sessions {
        assert!([key(1), key(2)].contains(k) && *s == stamp(1, 1), "only what is over, with its stamp: {k:?} {s:?}");
    }
    assert!(swept.sessions.len() <= 2 && swept.markers <= 1);
    let loaded = ok(a.load((1..=7).map(key).collect()).await);
    assert_eq!(loaded[0], Loaded::Missing);
    assert_eq!(loaded[1], Loaded::Missing);
    here(loaded[2].clone());
    assert_eq!(matches!(loaded[3], Loaded::Here(_)), touched == RowResult::Applied, "what was touched stays");
    assert_eq!(matches!(loaded[4], Loaded::Here(_)), written == RowResult::Applied, "what was written stays");
    assert_eq!(loaded[5], Loaded::Missing, "a marker past its time goes");
    assert_eq!(loaded[6], Loaded::Ended(as_ended(1)), "a marker within its time stays");
    assert_eq!(put(a, row(6, Expect::Absent, 1, b"new")).await, RowResult::Applied, "and the key is free again");
}

/// The longest duration is no overflow and no past.
pub async fn durations_may_be_as_long_as_the_type_allows([a, b]: &Pair) {
    ok(a.put(vec![Put { expires_in: Duration::MAX, ..row(1, Expect::Absent, 1, b"x") }]).await);
    ok(a.end(vec![End { keep: Duration::MAX, ..end(2, 1) }]).await);
    ok(a.touch(vec![touch(1, stamp(1, 1), Duration::MAX)]).await);
    assert!(ok(a.lease("job".into(), Life::new(1), Duration::MAX).await).is_some());
    ok(a.announce(node(1), Duration::MAX).await);
    ok(b.sweep(10).await);
    here(one(b, key(1)).await);
    assert_eq!(one(b, key(2)).await, Loaded::Ended(as_ended(1)));
    assert_eq!(ok(b.lease("job".into(), Life::new(2), LONG).await), None);
    assert_eq!(ok(b.nodes(Duration::ZERO).await), vec![node(1)]);
}

/// Two claims write one session `writes` times each; on a mismatch they read, include what is there, and try again. The union survives,
/// and nobody ever finds a row without what they were told is written.
pub async fn two_lineages_race(pair: &Pair, writes: u32) {
    let lineage = |me: usize| {
        let store = &pair[me];
        async move {
            let (mut known, mut mine, mut other) = (None, 0u32, 0u32);
            while mine < writes {
                let mut record = [[0; 4]; 2];
                record[me] = (mine + 1).to_be_bytes();
                record[1 - me] = other.to_be_bytes();
                let expect = known.map_or(Expect::Absent, Expect::Exactly);
                let mut next = row(1, expect, 0, record.as_flattened());
                // Lineage 1 has the greater claim throughout, so a store that lets the greater win loses lineage 0.
                next.stamp = stamp(me as u32, mine + 1 + other * 2);
                let written = next.stamp;
                match put(store, next).await {
                    RowResult::Applied => (known, mine) = (Some(written), mine + 1),
                    RowResult::Mismatch(_) => {
                        let found = here(one(store, key(1)).await);
                        let counts = counts(&found.record);
                        assert_eq!(counts[me], mine, "an applied write was destroyed");
                        assert!(counts[1 - me] >= other, "a write that was read was destroyed");
                        (known, other) = (Some(found.stamp), counts[1 - me]);
                    }
                    RowResult::Ended(_) => panic!("nobody ended it"),
                }
                yield_once().await;
            }
        }
    };
    together(vec![Box::pin(lineage(0)), Box::pin(lineage(1))]).await;
    let last = here(one(&pair[0], key(1)).await);
    assert_eq!(counts(&last.record), [writes, writes], "the union must survive");
}

/// Of many that expect no row exactly one creates it, and the others are told by whom.
pub async fn many_race_to_create(pair: &Pair) {
    let create = |n: u32| put(&pair[n as usize % 2], row(1, Expect::Absent, n, &n.to_be_bytes()));
    let results = together((1..=32).map(|n| Box::pin(create(n)) as Pin<Box<dyn Future<Output = RowResult> + '_>>).collect()).await;
    let winners: Vec<u32> = (1..).zip(&results).filter(|(_, r)| **r == RowResult::Applied).map(|(n, _)| n).collect();
    assert_eq!(winners.len(), 1, "one creates it: {results:?}");
    let theirs = stamp(1, winners[0]);
    assert_eq!(results.iter().filter(|r| **r == RowResult::Mismatch(Some(theirs))).count(), 31, "{results:?}");
    assert_eq!(&here(one(&pair[1], key(1)).await).record[..], winners[0].to_be_bytes());
}

/// However a put and an end meet, the session is ended afterwards.
pub async fn a_put_and_an_end_race([a, b]: &Pair) {
    for n in 0..16 {
        put(a, row(n, Expect::Absent, 1, b"x")).await;
        let write = async {
            put(a, row(n, Expect::Exactly(stamp(1, 1)), 2, b"y")).await;
        };
        let logout = async {
            ok(b.end(vec![end(n, 1)]).await);
        };
        together(vec![Box::pin(write), Box::pin(logout)]).await;
        assert_eq!(one(a, key(n)).await, Loaded::Ended(as_ended(1)), "an end always wins");
    }
}

/// As many batches at once from each of two nodes as the store says that it takes. Those of one node have no session in common, those of
/// the two have all of them, in opposite orders; each call is answered, and each row by itself.
pub async fn as_many_batches_at_once_as_it_takes(pair: &Pair) {
    const ROWS: u32 = 64;
    let [a, b] = pair;
    assert_eq!((a.reach(), a.batches()), (b.reach(), b.batches()), "what a store says of itself is the same for all");
    assert!(a.batches() > 0, "a store takes one batch at least");
    let batches = u32::try_from(a.batches()).unwrap_or(u32::MAX).min(32);
    let rows = |node: usize, batch: u32, expect: Expect, version: u32| {
        let mut rows: Vec<Put> = (batch * ROWS..(batch + 1) * ROWS).map(|n| row(n, expect, version, &n.to_be_bytes())).collect();
        if node == 1 {
            rows.reverse();
        }
        rows
    };
    let create = |node: usize, batch: u32| {
        let put = pair[node].put(rows(node, batch, Expect::Absent, node as u32 + 1));
        Box::pin(async move { ok(put.await) }) as Pin<Box<dyn Future<Output = Vec<RowResult>> + '_>>
    };
    let all: Vec<(usize, u32)> = (0..batches).flat_map(|batch| [(0, batch), (1, batch)]).collect();
    let mut results = together(all.iter().map(|(node, batch)| create(*node, *batch)).collect()).await;
    for both in results.chunks_exact_mut(2) {
        both[1].reverse();
        for (first, second) in both[0].iter().zip(&both[1]) {
            let theirs = |version| RowResult::Mismatch(Some(stamp(1, version)));
            let one = [(RowResult::Applied, theirs(1)), (theirs(2), RowResult::Applied)].contains(&(*first, *second));
            assert!(one, "one of two creates it, and the other is told by whom: {first:?}, {second:?}");
        }
    }
    let written = ok(a.load((0..batches * ROWS).map(key).collect()).await);
    let stamps: Vec<Stamp> = written.into_iter().map(|row| here(row).stamp).collect();
    // One node ends all of them while the other one writes and touches them.
    let change = |node: usize, batch: u32| {
        let (store, stamps) = (&pair[node], &stamps);
        let numbers = batch * ROWS..(batch + 1) * ROWS;
        let change = async move {
            if node == 0 {
                ok(store.end(numbers.map(|n| end(n, 1)).collect()).await);
                return;
            }
            let known = |n: u32| stamps[n as usize];
            let rows = numbers.clone().rev().map(|n| row(n, Expect::Exactly(known(n)), 3, b"later")).collect();
            let written = ok(store.put(rows).await);
            let touches = numbers.rev().map(|n| touch(n, stamp(1, 3), LONG)).collect();
            for (put, touched) in written.into_iter().zip(ok(store.touch(touches).await)) {
                let ended = RowResult::Ended(as_ended(1));
                assert!(put == RowResult::Applied || put == ended && touched == ended, "a row is written or ended: {put:?}, {touched:?}");
            }
        };
        Box::pin(change) as Pin<Box<dyn Future<Output = ()> + '_>>
    };
    together(all.iter().map(|(node, batch)| change(*node, *batch)).collect()).await;
    let loaded = ok(b.load((0..batches * ROWS).map(key).collect()).await);
    assert!(loaded.iter().all(|there| *there == Loaded::Ended(as_ended(1))), "an end always wins");
}

/// A lease has one holder; its fence grows with each change of hands and each lapse, and stays when it is renewed.
pub async fn a_lease_has_one_holder([a, b]: &Pair) {
    let lease = async |node: &Arc<dyn Store>, life, ttl| ok(node.lease("job".into(), Life::new(life), ttl).await);
    let first = lease(a, 1, LONG).await.expect("a free lease is given");
    assert_eq!(lease(b, 2, LONG).await, None, "held by another");
    assert_eq!(lease(b, 1, LONG).await, Some(first), "renewing keeps the fence");
    assert!(ok(b.lease("other".into(), Life::new(2), LONG).await).is_some(), "names are apart");
    assert_eq!(lease(a, 1, Duration::ZERO).await, Some(first), "given back");
    let second = lease(b, 2, LONG).await.expect("free again");
    assert!(second > first, "the fence grows with a change of hands");
    assert_eq!(lease(a, 1, LONG).await, None);
    lease(b, 2, Duration::ZERO).await;
    let third = lease(b, 2, LONG).await.expect("free again");
    assert!(third > second, "the fence grows with a lapse, though the holder is the same");

    let race = |n: u32| pair_lease(if n.is_multiple_of(2) { a } else { b }, u64::from(n));
    let won = together((1..=16).map(race).collect()).await;
    assert_eq!(won.iter().filter(|fence| fence.is_some()).count(), 1, "one of many gets it: {won:?}");
}

fn pair_lease(store: &Arc<dyn Store>, life: u64) -> Pin<Box<dyn Future<Output = Option<u64>> + '_>> {
    Box::pin(async move { ok(store.lease("raced".into(), Life::new(life), LONG).await) })
}

/// A node is found by all while its lease runs, and not afterwards; its row says how far it had counted.
pub async fn nodes_are_found_while_their_lease_runs([a, b]: &Pair) {
    assert_eq!(ok(a.nodes(Duration::ZERO).await), vec![]);
    assert_eq!(ok(a.announce(node(1), LONG).await), None);
    assert_eq!(ok(b.announce(Node { http: String::new(), ..node(2) }, LONG).await), None);
    assert_eq!(ok(b.nodes(Duration::ZERO).await), vec![node(1), Node { http: String::new(), ..node(2) }], "ordered by life");
    let moved = Node { peer: "[::1]:9".into(), beat: u64::MAX, ..node(1) };
    assert_eq!(ok(a.announce(moved.clone(), LONG).await), Some(7), "the beat that stood there");
    assert_eq!(ok(b.nodes(Duration::ZERO).await)[0], moved, "a row is replaced entirely");
    assert_eq!(ok(a.announce(moved, LONG).await), Some(u64::MAX), "a beat is 64 bits");
    ok(b.withdraw(Life::new(2)).await);
    ok(b.withdraw(Life::new(3)).await);
    assert_eq!(ok(a.nodes(Duration::ZERO).await).len(), 1, "withdrawn");
    let sign = Life::new(u64::MAX);
    ok(a.announce(Node { life: sign, ..node(3) }, LONG).await);
    assert_eq!(ok(b.nodes(Duration::ZERO).await)[1].life, sign, "lives are ordered without a sign");
    ok(a.announce(node(1), Duration::ZERO).await);
    assert_eq!(ok(b.nodes(Duration::ZERO).await).len(), 1, "its lease is over");
    assert_eq!(ok(b.nodes(LONG).await).len(), 2, "it lapsed a moment ago");
    assert_eq!(ok(b.nodes(Duration::MAX).await).len(), 2, "a withdrawn node is not remembered");
    assert_eq!(ok(a.announce(node(1), LONG).await), Some(7), "but its row is remembered");
}

/// Whoever proposes, all get the one that won, and later proposals too.
pub async fn all_get_one_secret(pair: &Pair) {
    let propose = |n: u8| {
        let store = &pair[usize::from(n) % 2];
        Box::pin(async move { ok(store.secret([n; 32]).await) }) as Pin<Box<dyn Future<Output = [u8; 32]> + '_>>
    };
    let got = together((1..=16).map(propose).collect()).await;
    assert!(got.iter().all(|secret| *secret == got[0]), "all get the same");
    assert!((1..=16).any(|n| got[0] == [n; 32]), "and it is one of those proposed");
    assert_eq!(ok(pair[1].secret([0xFF; 32]).await), got[0], "a later proposal changes nothing");
}

/// All see one identity, for ever, and another store has another.
pub async fn a_store_is_one_store_and_no_other([a, b]: &Pair, [other, _]: &Pair) {
    let identity = ok(a.identity().await);
    ok(a.secret([1; 32]).await);
    put(a, row(1, Expect::Absent, 1, b"x")).await;
    for store in [a, b] {
        assert_eq!(ok(store.identity().await), identity, "the same for all");
    }
    assert_ne!(ok(other.identity().await), identity, "two stores are two");
}

/// A store that works says so.
pub async fn the_store_answers_a_probe(pair: &Pair) {
    for store in pair {
        ok(store.probe().await);
    }
}

/// Calls made while the store is broken tell the truth: what `Failed` did not happen, what was applied is there, and `Unknown` is settled by
/// a read. `break_it(true)` breaks the store as it likes, and `break_it(false)` mends it; both handles may be concerned.
pub async fn failures_tell_the_truth([a, b]: &Pair, mut break_it: impl FnMut(bool)) {
    let mut failures = 0;
    for n in 0..8 {
        put(a, row(n, Expect::Absent, 1, b"old")).await;
        break_it(true);
        let result = a.put(vec![row(n, Expect::Exactly(stamp(1, 1)), 2, b"new")]).await;
        failures += u32::from(result.is_err());
        break_it(false);
        let found = here(one(b, key(n)).await);
        match result {
            Ok(results) => assert_eq!((results, found.stamp), (vec![RowResult::Applied], stamp(1, 2))),
            Err(PutError::Failed(_)) => assert_eq!(found.stamp, stamp(1, 1), "`Failed` is certain"),
            Err(PutError::Unknown(_)) => assert!([stamp(1, 1), stamp(1, 2)].contains(&found.stamp)),
            Err(other) => panic!("the call was within its limits: {other}"),
        }
        let whole = if found.stamp == stamp(1, 2) { b"new" } else { b"old" };
        assert_eq!(&found.record[..], whole, "a row is written entirely or not at all");
        let settled = put(b, row(n, Expect::Exactly(found.stamp), 3, b"settled")).await;
        assert_eq!(settled, RowResult::Applied, "after a read it goes on");
    }
    assert!(failures > 0, "`break_it` broke nothing");
}

/// A row of session `n` with the stamp `(1, version)` that stays an hour; for tests of your own.
pub fn row(n: u32, expect: Expect, version: u32, record: &[u8]) -> Put {
    let record = Bytes::copy_from_slice(record);
    Put { key: key(n), expect, stamp: stamp(1, version), record, expires_in: LONG, user: None }
}

fn key(n: u32) -> SessionKey {
    // Spread over all 16 bytes, the high bits set for some, so that a store that cuts or signs them is found.
    let mut bytes = [0; 16];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = (n.wrapping_mul(0x9E37_79B1).rotate_left(i as u32 * 7) >> 3) as u8;
    }
    bytes[..4].copy_from_slice(&n.wrapping_mul(0x9E37_79B1).to_be_bytes());
    SessionKey::from_bytes(bytes)
}

fn stamp(epoch: u32, version: u32) -> Stamp {
    Claim { epoch, life: Life::new(0xF00D) }.at(version)
}

fn end(n: u32, kind: u8) -> End {
    End { key: key(n), marker: as_ended(kind), keep: LONG }
}

fn as_ended(kind: u8) -> Marker {
    Marker { kind, next: None }
}

/// The end of session `n`, which goes on as session `next`.
fn rotated(n: u32, next: u32) -> End {
    End { marker: Marker { kind: 1, next: Some(key(next)) }, ..end(n, 1) }
}

fn touch(n: u32, stamp: Stamp, expires_in: Duration) -> Touch {
    Touch { key: key(n), stamp, ago: Duration::ZERO, expires_in }
}

fn node(n: u64) -> Node {
    Node { name: format!("n{n}"), life: Life::new(n), peer: format!("127.0.0.1:{n}"), http: "http://h/".into(), beat: 7 }
}

fn counts(record: &[u8]) -> [u32; 2] {
    let count = |i: usize| record[i * 4..][..4].iter().fold(0, |n, byte| n << 8 | u32::from(*byte));
    assert_eq!(record.len(), 8, "a record came back with another length");
    [count(0), count(1)]
}

async fn put(store: &Arc<dyn Store>, row: Put) -> RowResult {
    let results = ok(store.put(vec![row]).await);
    assert_eq!(results.len(), 1, "a result for each row");
    results[0]
}

async fn one(store: &Arc<dyn Store>, key: SessionKey) -> Loaded {
    let mut loaded = ok(store.load(vec![key]).await);
    assert_eq!(loaded.len(), 1, "an answer for each key");
    loaded.remove(0)
}

fn here(loaded: Loaded) -> Row {
    match loaded {
        Loaded::Here(row) => row,
        other => panic!("there should be a row, not {other:?}"),
    }
}

fn ok<T, E: Debug>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("the store failed: {error:?}"))
}

/// Lets the others of [`together`] go on, also over a store that never waits.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|cx| {
        if core::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Runs futures at once in one task, and returns what they returned, in order.
async fn together<T>(futures: Vec<Pin<Box<dyn Future<Output = T> + '_>>>) -> Vec<T> {
    let mut running: Vec<_> = futures.into_iter().map(Some).collect();
    let mut done: Vec<Option<T>> = running.iter().map(|_| None).collect();
    let all = poll_fn(|cx| {
        for (future, done) in running.iter_mut().zip(&mut done) {
            if let Some(running) = future
                && let Poll::Ready(value) = running.as_mut().poll(cx)
            {
                (*future, *done) = (None, Some(value));
            }
        }
        if running.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    });
    pin!(all).await;
    done.into_iter().flatten().collect()
}
