use super::*;
use crate::Key;
use outlive_core::stamp::{Claim, Life};
use outlive_core::time::Mono;
use std::panic::{AssertUnwindSafe, catch_unwind};

const N: Key<u64> = Key::new("live-n");
const M: Key<u64> = Key::new("live-m");
const LIST: Key<Vec<u64>> = Key::new("live-list");
const LIMIT: usize = 1 << 20;

fn stamp(version: u32) -> Stamp {
    Claim { epoch: 1, life: Life::new(7) }.at(version)
}

/// A session and what the engine would hold of it.
struct World {
    live: Live,
    record: Record,
    version: u32,
    sent: Vec<Change>,
}

impl World {
    fn new() -> World {
        let mut world = World {
            live: Live::new(),
            record: Record::new(Mono::ZERO, outlive_core::config::Limits::default()),
            version: 0,
            sent: Vec::new(),
        };
        let r = world.live.begin();
        world.live.set(r, &N, 5);
        world.commit(r).unwrap();
        world
    }

    fn commit(&mut self, request: RequestNo) -> Result<Notes, CutError> {
        let World { live, record, version, sent } = self;
        sent.clear();
        let (_, notes) = live.commit(request, LIMIT, |changes| {
            *version += 1;
            record.commit(stamp(*version), changes);
            sent.extend(changes.iter().cloned());
            (Sent::Applied(stamp(*version)), ())
        })?;
        live.end(RequestNo(0));
        Ok(notes)
    }

    fn rollback(&mut self, request: RequestNo) -> Notes {
        let stayed = self.live.rollback(request);
        self.live.end(RequestNo(0));
        Notes { stayed, ..Notes::default() }
    }

    fn committed(&self) -> Option<u64> {
        self.record.get("live-n").and_then(|a| codec::decode(&a.value).unwrap())
    }
}

fn add(live: &Live, request: RequestNo, n: u64) -> u64 {
    live.change(request, &N, Some(u64::default), false, |x| {
        *x += n;
        (*x, true)
    })
    .unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Write {
    Set(u64),
    Add(u64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Commit,
    Panic,
}

/// What should be: a list of values in the order of writing, each with its fate.
#[derive(Default)]
struct Model {
    /// Request, value, whether it built upon an unfinished other, fate.
    writes: Vec<(usize, u64, Option<usize>, Option<End>)>,
}

impl Model {
    fn seen(&self) -> (u64, Option<usize>) {
        let last = self.writes.iter().rev().find(|w| w.3 != Some(End::Panic));
        last.map_or((5, None), |w| (w.1, w.3.is_none().then_some(w.0)))
    }

    fn committed(&self) -> u64 {
        self.writes.iter().rev().find(|w| w.3 == Some(End::Commit)).map_or(5, |w| w.1)
    }

    fn write(&mut self, request: usize, write: Write) {
        let (seen, of) = self.seen();
        self.writes.push(match write {
            Write::Set(n) => (request, n, None, None),
            Write::Add(n) => (request, seen + n, of, None),
        });
    }

    fn end(&mut self, request: usize, end: End) {
        self.writes.iter_mut().filter(|w| w.0 == request).for_each(|w| w.3 = Some(end));
    }

    /// Changes of failed requests upon which a successful one had built.
    fn stayed(&self) -> u32 {
        let fate = |r: usize| self.writes.iter().find(|w| w.0 == r).and_then(|w| w.3);
        self.writes.iter().filter(|w| w.3 == Some(End::Commit) && w.2.is_some_and(|r| fate(r) == Some(End::Panic))).count() as u32
    }
}

/// Rule 19 of the protocol: memory, backup and the model agree after each step of every order of two requests that write and end.
#[test]
fn in_every_order_of_two_requests_the_last_write_that_succeeded_stays() {
    let orders = [[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0]];
    let ends = [End::Commit, End::Panic];
    let (mut runs, mut stayed_in, mut updates_stayed) = (0, 0, 0);
    for order in orders {
        for (e0, e1) in ends.iter().flat_map(|a| ends.map(|b| (*a, b))) {
            for kinds in 0..4 {
                let kind = |r: usize, n| if kinds & (1 << r) == 0 { Write::Set(10 * n) } else { Write::Add(n) };
                let (writes, ends) = ([kind(0, 1), kind(1, 2)], [e0, e1]);
                let (mut world, mut model, mut stayed) = (World::new(), Model::default(), 0);
                let requests = [world.live.begin(), world.live.begin()];
                let mut wrote = [false; 2];
                for r in order {
                    if wrote[r] {
                        let notes = match ends[r] {
                            End::Commit => world.commit(requests[r]).unwrap(),
                            End::Panic => world.rollback(requests[r]),
                        };
                        stayed += notes.stayed;
                        model.end(r, ends[r]);
                    } else {
                        match writes[r] {
                            Write::Set(n) => world.live.set(requests[r], &N, n),
                            Write::Add(n) => drop(add(&world.live, requests[r], n)),
                        }
                        model.write(r, writes[r]);
                        wrote[r] = true;
                    }
                    let story = format!("{order:?} {writes:?} {ends:?}");
                    assert_eq!(world.live.get(RequestNo(0), &N).as_deref(), Some(&model.seen().0), "memory, {story}");
                    assert_eq!(world.committed(), Some(model.committed()), "backup, {story}");
                }
                assert_eq!(world.live.get(RequestNo(0), &N).as_deref().copied(), world.committed());
                assert_eq!(stayed, model.stayed(), "{order:?} {writes:?} {ends:?}");
                runs += 1;
                stayed_in += u32::from(stayed > 0);
                updates_stayed += u32::from(stayed > 0 && kinds == 3);
            }
        }
    }
    // Of the 24 orders of two updates, the four in which the one that builds upon the other succeeds and the other does not.
    assert_eq!((runs, updates_stayed), (96, 4));
    assert_eq!(stayed_in, 8);
}

#[test]
fn three_requests_are_settled_exactly() {
    let mut world = World::new();
    let [a, b, c] = [world.live.begin(), world.live.begin(), world.live.begin()];
    add(&world.live, a, 1);
    add(&world.live, b, 10);
    add(&world.live, c, 100);
    assert_eq!(world.commit(b).unwrap().stayed, 0);
    assert_eq!(world.committed(), Some(16));
    assert_eq!(world.rollback(a).stayed, 1);
    assert_eq!(world.commit(c).unwrap().stayed, 0);
    assert_eq!(world.committed(), Some(116));
}

#[test]
fn an_attribute_whose_bytes_equal_the_committed_ones_is_not_a_change() {
    let mut world = World::new();
    let r = world.live.begin();
    add(&world.live, r, 1);
    world.live.set(r, &N, 5);
    world.live.set(r, &M, 1);
    world.live.remove(r, &M);
    world.commit(r).unwrap();
    assert!(world.sent.is_empty() && world.version == 1);
    assert_eq!(world.live.get(RequestNo(0), &N).as_deref(), Some(&5));
}

#[test]
fn a_change_names_the_commit_it_started_from() {
    let mut world = World::new();
    let (r, q) = (world.live.begin(), world.live.begin());
    add(&world.live, r, 1);
    world.live.set(r, &M, 1);
    world.commit(r).unwrap();
    let bases: Vec<_> = world.sent.iter().map(|c| (&*c.name, c.base)).collect();
    assert_eq!(bases, [("live-m", Base::Absent), ("live-n", Base::At(stamp(1)))]);
    add(&world.live, q, 1);
    world.live.remove(q, &M);
    world.commit(q).unwrap();
    let bases: Vec<_> = world.sent.iter().map(|c| (&*c.name, c.base, c.value.is_some())).collect();
    assert_eq!(bases, [("live-m", Base::At(stamp(2)), false), ("live-n", Base::At(stamp(2)), true)]);
    assert!(world.live.get(RequestNo(0), &M).is_none() && world.record.get("live-m").is_none());
}

#[test]
fn inside_of_a_closure_other_attributes_can_be_used_and_the_same_one_panics_with_its_name() {
    let world = World::new();
    let (live, r) = (&world.live, world.live.begin());
    let sum = live.change(r, &LIST, Some(Vec::new), false, |list| {
        list.push(add(live, r, 1));
        live.set(r, &M, 40);
        (list[0] + *live.get(RequestNo(0), &M).unwrap(), true)
    });
    assert_eq!((sum, live.get(RequestNo(0), &LIST).unwrap().len()), (Some(46), 1));
    for nested in [
        |live: &Live, _| drop(live.get(RequestNo(0), &N)),
        |live: &Live, r| live.set(r, &N, 1),
        |live: &Live, r| assert_eq!(add(live, r, 1), 0),
    ] {
        let panic = catch_unwind(AssertUnwindSafe(|| {
            live.change(r, &N, None, false, |n| {
                *n = 99;
                nested(live, r);
                ((), true)
            })
        }));
        assert!(panic.unwrap_err().downcast_ref::<String>().unwrap().contains("`live-n`"));
        assert_eq!(live.get(RequestNo(0), &N).as_deref(), Some(&6));
    }
}

#[test]
fn a_panic_in_a_closure_puts_the_old_value_back() {
    let mut world = World::new();
    let r = world.live.begin();
    let explode = |world: &World, key: &Key<u64>| {
        catch_unwind(AssertUnwindSafe(|| {
            world.live.change(r, key, Some(u64::default), false, |n| -> ((), bool) {
                *n = 99;
                panic!("half way")
            })
        }))
        .unwrap_err()
    };
    explode(&world, &N);
    assert_eq!(world.live.get(RequestNo(0), &N).as_deref(), Some(&5));
    add(&world.live, r, 1);
    explode(&world, &N);
    assert_eq!(world.live.get(RequestNo(0), &N).as_deref(), Some(&6));
    explode(&world, &M);
    assert!(world.live.get(RequestNo(0), &M).is_none());
    world.commit(r).unwrap();
    assert_eq!((world.committed(), world.sent.len()), (Some(6), 1));
}

#[test]
fn a_snapshot_does_not_change_and_nothing_is_cloned_without_one() {
    thread_local!(static CLONES: core::cell::Cell<u32> = const { core::cell::Cell::new(0) });
    #[derive(serde::Serialize, serde::Deserialize, Default)]
    struct Counted(u64);
    impl Clone for Counted {
        fn clone(&self) -> Counted {
            CLONES.set(CLONES.get() + 1);
            Counted(self.0)
        }
    }
    const COUNTED: Key<Counted> = Key::new("live-counted");
    let mut world = World::new();
    let bump = |world: &mut World| {
        let r = world.live.begin();
        world.live.change(r, &COUNTED, Some(Counted::default), false, |c| {
            c.0 += 1;
            ((), true)
        });
        world.commit(r).unwrap();
    };
    bump(&mut world);
    bump(&mut world);
    assert_eq!(CLONES.get(), 0);
    let snapshot = world.live.get(RequestNo(0), &COUNTED).unwrap();
    bump(&mut world);
    assert_eq!((CLONES.get(), snapshot.0, world.live.get(RequestNo(0), &COUNTED).unwrap().0), (1, 2, 3));
}

#[test]
fn a_refused_try_keeps_nothing() {
    let world = World::new();
    let r = world.live.begin();
    let refused = world.live.change(r, &N, Some(u64::default), true, |n| {
        *n = 99;
        ("no", false)
    });
    assert_eq!((refused, world.live.get(RequestNo(0), &N).as_deref()), (Some("no"), Some(&5)));
    assert!(!world.live.has_writes(r));
}

#[test]
fn an_undecodable_value_reads_as_absent_and_its_bytes_are_kept_by_the_first_write() {
    const AS_TEXT: Key<String> = Key::new("live-quarantine");
    let old = Bytes::from_static(&[1, 42]);
    let mut world = World::new();
    world.record.commit(stamp(2), &[Change { name: "live-quarantine".into(), base: Base::Absent, value: Some(old.clone()) }]);
    world.version = 2;
    world.live.refresh(&world.record, 0);
    assert!(world.live.get(RequestNo(0), &AS_TEXT).is_none());
    // A request that does not touch it changes nothing.
    let r = world.live.begin();
    world.commit(r).unwrap();
    assert_eq!(world.record.get("live-quarantine").unwrap().value, old);
    let r = world.live.begin();
    world.live.set(r, &AS_TEXT, "new".to_owned());
    assert_eq!(&*world.commit(r).unwrap().quarantined[0], "live-quarantine");
    let r = world.live.begin();
    world.live.set(r, &AS_TEXT, "newer".to_owned());
    assert!(world.commit(r).unwrap().quarantined.is_empty());
    let kept = world.record.get("live-quarantine").unwrap().value.clone();
    assert_eq!(codec::split(&kept).0, Some(&old[..]));
    // Another process reads both; removing the value keeps what was put aside.
    let elsewhere = Live::from_record(&world.record);
    assert_eq!(elsewhere.get(RequestNo(0), &AS_TEXT).as_deref().map(String::as_str), Some("newer"));
    let r = world.live.begin();
    assert!(world.live.remove(r, &AS_TEXT).is_some());
    world.commit(r).unwrap();
    let kept = world.record.get("live-quarantine").unwrap().value.clone();
    assert_eq!(codec::split(&kept), (Some(&old[..]), &[][..]));
    assert!(Live::from_record(&world.record).get(RequestNo(0), &AS_TEXT).is_none());
}

#[test]
fn a_value_that_cannot_be_encoded_fails_the_request_and_nothing_of_it_is_kept() {
    #[derive(Clone, serde::Deserialize)]
    struct Never;
    impl serde::Serialize for Never {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("not today"))
        }
    }
    const NEVER: Key<Never> = Key::new("live-never");
    let mut world = World::new();
    let r = world.live.begin();
    add(&world.live, r, 1);
    world.live.set(r, &NEVER, Never);
    let Err(CutError::Encode { attribute, source }) = world.commit(r) else { panic!("it was encoded") };
    assert!(&*attribute == "live-never" && source.to_string().contains("not today"));
    assert!(world.live.get(RequestNo(0), &NEVER).is_none());
    assert_eq!((world.live.get(RequestNo(0), &N).as_deref(), world.version), (Some(&5), 1));
}

#[test]
fn a_session_over_its_limit_fails_the_request_that_did_it_and_names_the_attribute() {
    let mut world = World::new();
    let r = world.live.begin();
    world.live.set(r, &LIST, (0..LIMIT as u64).collect());
    let Err(CutError::TooLarge { attribute, got, limit, .. }) = world.commit(r) else { panic!("it was taken") };
    assert!(&*attribute == "live-list" && got > limit && limit == LIMIT);
    assert!(world.live.get(RequestNo(0), &LIST).is_none());
    let r = world.live.begin();
    let long = "x".repeat(NAME_MAX);
    world.live.set(r, &N.of(&long), 1);
    assert!(matches!(world.commit(r), Err(CutError::TooLarge { what: "bytes of name", .. })));
}

#[test]
fn what_others_committed_is_taken_over_beneath_unfinished_writes() {
    let mut world = World::new();
    let r = world.live.begin();
    world.live.set(r, &M, 1);
    add(&world.live, r, 1);
    let merged = |n: u64| {
        let mut bytes = Scratch::new();
        codec::encode::<u64>(&n, &mut bytes).unwrap();
        Some(codec::kept(&bytes))
    };
    let change = |name: &str, n| Change { name: name.into(), base: Base::Absent, value: merged(n) };
    world.record.commit(stamp(9), &[change("live-n", 50), change("live-other", 3)]);
    world.live.refresh(&world.record, 1);
    assert_eq!(world.live.external(), 1);
    assert_eq!(world.live.get(RequestNo(0), &N).as_deref(), Some(&6));
    assert_eq!(world.live.get(RequestNo(0), &Key::<u64>::new("live-other")).as_deref(), Some(&3));
    world.rollback(r);
    assert_eq!(world.live.get(RequestNo(0), &N).as_deref(), Some(&50));
    assert!(world.live.get(RequestNo(0), &M).is_none());
}

#[test]
fn a_refused_commit_leaves_what_was_committed() {
    let world = World::new();
    let r = world.live.begin();
    add(&world.live, r, 1);
    let sent = world.live.commit(r, LIMIT, |_| (Sent::Refused, ())).unwrap();
    assert!(sent.0.is_some());
    assert_eq!(world.live.get(RequestNo(0), &N).as_deref(), Some(&5));
}

#[test]
fn closures_of_two_sessions_that_wait_for_each_other_do_not_freeze_the_node() {
    use std::sync::Barrier;
    let (one, two, both) = (Live::new(), Live::new(), Barrier::new(2));
    let inside = |outer: &Live, inner: &Live| {
        let request = outer.begin();
        outer.change(request, &N, Some(u64::default), false, |n| {
            both.wait();
            *n += 1 + inner.get(RequestNo(0), &N).map_or(0, |n| *n);
            ((), true)
        });
    };
    let panics = std::thread::scope(|scope| {
        let threads = [scope.spawn(|| inside(&one, &two)), scope.spawn(|| inside(&two, &one))];
        threads.map(|thread| thread.join().err().map(|panic| *panic.downcast::<String>().unwrap()))
    });
    let text = panics.iter().flatten().next().unwrap();
    assert!(text.contains("a closure has had this session for"), "{text}");
    let ended = [one, two].iter().all(|live| live.get(RequestNo(0), &N).is_none_or(|n| *n == 1));
    assert!(ended, "and both can be used again");
}
