//! Sessions under names that clients choose: begun by whoever asks for them first, and by nobody else.

use super::*;

const S: Duration = Duration::from_secs(1);

impl Net {
    /// Asks for the session, which begins if nobody has it. The answer, or the ticket under which it comes.
    fn begin(&mut self, at: usize) -> Open<()> {
        self.call(at, |e, now, out| e.open_or_create(now, KEY, None, out))
    }

    /// Asks for it until it is here, or at another node that stays its owner.
    fn begun(&mut self, at: usize) -> Option<Opened<()>> {
        for _ in 0..20 {
            match self.begin(at) {
                Open::Here(opened) => return Some(opened),
                Open::Wait(ticket) => {
                    for _ in 0..200 {
                        if self.settled.contains_key(&ticket) {
                            break;
                        }
                        self.run(Duration::from_millis(10));
                    }
                    if !matches!(self.settled.remove(&ticket), Some(Outcome::Again)) {
                        return None;
                    }
                }
                _ => return None,
            }
        }
        None
    }

    fn blind(&mut self, at: usize, opened: &Opened<()>, name: &str, value: u8) -> Commit {
        let change = Change { name: name.into(), base: Base::Any, value: Some(Bytes::copy_from_slice(&[value])) };
        self.call(at, |e, now, out| e.commit(now, opened, &[change], out))
    }

    fn value(&self, at: usize, name: &str) -> Option<u8> {
        self.nodes[at].engine.peek(KEY, |r, _| r.get(name).map(|a| a.value[0])).flatten()
    }

    fn owners(&self) -> usize {
        self.nodes.iter().filter(|n| n.alive && n.engine.info(KEY).is_some_and(|info| info.owned)).count()
    }
}

#[test]
fn a_name_that_nobody_has_begins_where_it_is_asked_for() {
    for nodes in [1, 3] {
        let mut net = Net::new(nodes, Config::default());
        // One that is alone must be sure of that first.
        net.run(S * 30);
        let opened = net.begun(0).expect("it begins");
        assert!(matches!(net.call(0, |e, now, out| e.finish_read(now, &opened, out)), Commit::Done { .. }), "an empty one can be read");
        net.blind(0, &opened, "a", 1);
        net.call(0, |e, now, out| e.close(now, &opened, out));
        net.run(S * 2);
        assert_eq!((net.owners(), net.value(0, "a")), (1, Some(1)));
        assert!(net.nodes[0].engine.stats(net.now).settled);
        let last = nodes - 1;
        let opened = net.begun(last).expect("it is found");
        assert_eq!(net.value(last, "a"), Some(1));
        net.call(last, |e, now, out| e.close(now, &opened, out));
    }
}

#[test]
fn one_that_was_begun_and_not_written_leaves_no_trace() {
    let mut net = Net::new(3, Config::default());
    let opened = net.begun(0).unwrap();
    net.call(0, |e, now, out| e.close(now, &opened, out));
    net.run(S);
    assert_eq!(net.nodes.iter().map(|n| n.engine.stats(net.now).owned).sum::<u64>(), 0);
    assert!(net.nodes.iter().all(|n| n.engine.stats(net.now).settled));
    assert!(matches!(net.open(1, None), Err(Outcome::NotFound)), "whoever does not begin it does not find it");
}

#[test]
fn of_nodes_that_begin_a_name_at_once_one_does() {
    for delay in [0, 3, 40] {
        let mut net = Net::new(3, Config::default());
        net.delay = Duration::from_millis(delay);
        let mut tickets: Vec<(usize, Ticket)> = Vec::new();
        for at in 0..3 {
            match net.begin(at) {
                Open::Wait(ticket) => tickets.push((at, ticket)),
                _ => panic!("others have to be asked"),
            }
        }
        net.run(S * 2);
        assert!(net.owners() <= 1);
        for at in 0..3 {
            let Some(opened) = net.begun(at) else { continue };
            net.blind(at, &opened, ["a", "b", "c"][at], at as u8);
            net.call(at, |e, now, out| e.close(now, &opened, out));
        }
        net.run(S * 5);
        assert_eq!(net.owners(), 1, "with messages that take {delay} ms");
        let owner = (0..3).find(|at| net.nodes[*at].engine.info(KEY).is_some_and(|info| info.owned)).unwrap();
        let written = ["a", "b", "c"].iter().filter(|name| net.value(owner, name).is_some()).count();
        assert!(written >= 1);
        assert!(!net.events.iter().any(|(_, e)| matches!(e, crate::output::Event::Conflict { .. } | crate::output::Event::Lost { .. })));
    }
}

#[test]
fn what_a_name_was_before_it_expired_does_not_come_back_into_it() {
    let idle = S * 10;
    let limits = Limits { idle, lifetime: Limits::default().lifetime };
    let mut net = Net::new(3, Config { limits, ..Config::default() });
    let opened = net.begun(0).unwrap();
    net.blind(0, &opened, "old", 1);
    net.call(0, |e, now, out| e.close(now, &opened, out));
    net.run(S);
    // Such a copy may be at a node that sleeps, or is cut off, while it expires everywhere else.
    let holder = (1..3).find(|at| net.value(*at, "old").is_some()).expect("a backup has it");
    let record = net.nodes[holder].engine.peek(KEY, |r, _| r.clone()).unwrap();
    net.run(idle * 2);
    assert!((0..3).all(|at| net.value(at, "old").is_none()), "it has expired");
    let opened = net.begun(0).expect("it begins anew");
    assert!(net.value(0, "old").is_none());
    net.blind(0, &opened, "new", 2);
    net.call(0, |e, now, out| e.close(now, &opened, out));
    net.run(S);
    assert!(net.nodes[0].engine.peek(KEY, |r, _| r.lineage.covers(&record.lineage)).unwrap(), "such a copy would be told to drop it");
    assert_eq!((net.value(0, "new"), net.value(0, "old")), (Some(2), None));
}

#[test]
fn a_blind_change_never_conflicts_and_one_that_wants_nothing_there_does() {
    let mut net = Net::new(1, Config::default());
    let opened = net.create(0);
    for n in 1..4 {
        assert!(matches!(net.blind(0, &opened, "a", n), Commit::Done { .. }));
    }
    assert_eq!(net.value(0, "a"), Some(3));
    let absent = Change { name: "a".into(), base: Base::Absent, value: Some(Bytes::from_static(&[9])) };
    assert!(matches!(net.call(0, |e, now, out| e.commit(now, &opened, &[absent], out)), Commit::Conflict));
    assert_eq!(net.value(0, "a"), Some(3));
}

#[test]
fn a_blind_change_on_a_connection_that_broke_is_not_sent_again() {
    for (base, again) in [(Base::Any, false), (Base::Absent, true)] {
        let mut net = Net::new(2, Config::default());
        let opened = net.create(0);
        net.append(0, &opened, 1);
        net.run(S);
        let change = Change { name: "a".into(), base, value: Some(Bytes::from_static(&[5])) };
        let ticket = net.call(1, |e, now, out| e.commit_late(now, KEY, None, &[change], out));
        // It was sent, and the connection breaks before it arrives.
        net.wires.clear();
        net.disconnect(0, 1);
        net.connect(0, 1);
        net.run(S * 8);
        let outcome = net.settled.remove(&ticket).expect("it is answered");
        match again {
            true => assert!(matches!(outcome, Outcome::Late { .. }), "{outcome:?}"),
            false => assert!(matches!(outcome, Outcome::LateFailed(Failure::Unknown)), "{outcome:?}"),
        }
        assert_eq!((0..2).any(|at| net.value(at, "a").is_some()), again);
    }
}
