//! Nodes over real sockets: copies, deaths, restarts, drains.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use common::*;
use core::time::Duration;
use outlive_core::config::Level;
use outlive_core::id::SessionKey;
use outlive_core::output::Event;
use outlive_core::wire::EndKind;
use outlive_runtime::{DrainReport, Node, NodeConfig, Open, Readiness, StartError};

async fn created(node: &N, key: SessionKey, value: &[u8]) -> outlive_runtime::Committed {
    let at = node.create(key).unwrap();
    append(node, &at, value).await.unwrap()
}

#[tokio::test]
async fn a_commit_leaves_when_the_backup_has_it_and_another_node_reads_it_after_a_kill() {
    let nodes = cluster(2).await;
    let done = created(&nodes[0], key(1), b"a").await;
    assert_eq!(done.level, Level::Backup(1));
    assert_eq!(done.tip, done.stamp);
    assert!(nodes[1].info(key(1)).unwrap().held);
    nodes[0].shutdown_now();
    assert_eq!(nodes[0].readiness(), Readiness::Dead);
    assert!(open(&nodes[0], key(1), None).await.is_err());
    assert_eq!(read(&nodes[1], key(1), done.tip).await, b"a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_commits_of_one_session_are_all_there() {
    let nodes = cluster(3).await;
    created(&nodes[0], key(2), b"").await;
    let mut tasks = Vec::new();
    for i in 0..50_u8 {
        let node = nodes[0].clone();
        tasks.push(tokio::spawn(async move {
            loop {
                let Open::Here(at) = insist(&node, key(2), None).await else { panic!("its owner does not have it") };
                if append(&node, &at, &[i]).await.is_ok() {
                    return;
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let mut log = read(&nodes[0], key(2), None).await;
    log.sort_unstable();
    assert_eq!(log, (0..50).collect::<Vec<u8>>());
}

#[tokio::test]
async fn a_node_that_starts_again_under_its_name_gets_its_sessions_back() {
    let mut nodes = cluster(2).await;
    let done = created(&nodes[0], key(3), b"x").await;
    nodes[0].shutdown_now();
    let join = [addr(&nodes[1])];
    nodes[0] = Node::start(config("n0", &join)).await.unwrap();
    met(&nodes).await;
    assert_eq!(read(&nodes[0], key(3), done.tip).await, b"x");
    until("the other one holds a copy", || nodes[1].info(key(3)).is_some_and(|i| i.held)).await;
}

/// Begins the session if nobody has it, and appends to its `log`, until that is done.
async fn begin_and_append(node: &N, key: SessionKey, value: u8) {
    let deadline = tokio::time::Instant::now() + LONG;
    loop {
        if let Ok(Open::Here(at)) = node.open_or_create(key, None).answer().await
            && append(node, &at, &[value]).await.is_ok()
        {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "it does not begin in {LONG:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_nodes_that_begin_a_name_at_once_each_finds_what_the_others_did() {
    let nodes = cluster(3).await;
    for n in 0..20 {
        let all = [0, 1, 2].map(|at| begin_and_append(&nodes[at], key(n), at as u8));
        let [a, b, c] = all;
        tokio::join!(a, b, c);
        let mut log = read(&nodes[usize::from(n % 3)], key(n), None).await;
        log.sort_unstable();
        assert_eq!(log, [0, 1, 2], "none was in a session of its own");
    }
}

#[tokio::test]
async fn a_drain_moves_everything_and_abandons_nothing() {
    let nodes = cluster(3).await;
    for n in 0..20 {
        created(&nodes[0], key(n), &[n]).await;
    }
    assert_eq!(nodes[0].drain(LONG).await, DrainReport { abandoned: 0 });
    assert_eq!(nodes[0].readiness(), Readiness::Dead);
    until("the others know", || alive(&nodes[1]) == 2 && alive(&nodes[2]) == 2).await;
    for n in 0..20 {
        assert_eq!(read(&nodes[1 + usize::from(n % 2)], key(n), None).await, [n]);
    }
}

#[tokio::test]
async fn a_drain_of_the_only_node_says_what_it_abandons() {
    let node = Node::<()>::start(config("n0", &[])).await.unwrap();
    assert_eq!(created(&node, key(1), b"a").await.level, Level::Owner);
    assert_eq!(node.drain(LONG).await, DrainReport { abandoned: 1 });
}

#[tokio::test]
async fn a_logout_is_known_everywhere_when_it_says_so() {
    let nodes = cluster(3).await;
    created(&nodes[0], key(4), b"a").await;
    assert!(nodes[1].end(key(4), None).await);
    assert!(matches!(open(&nodes[0], key(4), None).await, Ok(Open::Ended(EndKind::Invalidated, _))));
}

#[tokio::test]
async fn a_rotated_session_goes_on_under_its_new_id_alone() {
    let nodes = cluster(2).await;
    created(&nodes[0], key(5), b"a").await;
    let Ok(Open::Here(at)) = open(&nodes[0], key(5), None).await else { panic!("not here") };
    let rotated = nodes[0].rotate(&at, key(6)).await.unwrap();
    nodes[0].close(&at);
    assert_eq!(log(&nodes[0], &rotated.opened).unwrap(), b"a");
    assert_eq!(rotated.committed.level, Level::Backup(1));
    nodes[0].close(&rotated.opened);
    for node in &nodes {
        assert!(matches!(open(node, key(5), None).await, Ok(Open::Ended(EndKind::Rotated, _))));
    }
    nodes[0].shutdown_now();
    assert_eq!(read(&nodes[1], key(6), rotated.committed.tip).await, b"a");
}

#[tokio::test]
async fn events_tell_what_happens_to_sessions() {
    let nodes = cluster(2).await;
    let mut events = nodes[1].subscribe_events();
    let done = created(&nodes[0], key(7), b"a").await;
    assert_eq!(read(&nodes[1], key(7), done.tip).await, b"a");
    let moved = async {
        loop {
            if let (_, Event::Moved { from, .. }) = events.recv().await.unwrap() {
                return from;
            }
        }
    };
    assert_eq!(tokio::time::timeout(LONG, moved).await.unwrap(), Some(nodes[0].me().life));
    assert_eq!(nodes[1].name_of(nodes[0].me().life).as_deref(), Some("n0"));
    assert_eq!(nodes[1].stats().moved, 1);
}

#[tokio::test]
async fn a_node_of_its_own_needs_nobody() {
    let node = Node::<()>::alone(NodeConfig::default()).unwrap();
    assert_eq!(created(&node, key(1), b"a").await.level, Level::Owner);
    assert_eq!(read(&node, key(1), None).await, b"a");
    assert!(matches!(open(&node, key(2), None).await, Ok(Open::NotFound)));
    assert_eq!(node.readiness(), Readiness::Ready);
}

#[test]
fn a_node_of_its_own_can_be_made_outside_of_a_runtime() {
    let node = Node::<()>::alone(NodeConfig::default()).unwrap();
    let at = node.create(key(1)).unwrap();
    node.close(&at);
    assert!(node.info(key(1)).is_none());
}

#[tokio::test]
async fn plain_peers_on_a_network_are_refused() {
    let mut open_to_all = config("n0", &[]);
    open_to_all.listen = Some("0.0.0.0:0".parse().unwrap());
    let error = Node::<()>::start(open_to_all.clone()).await.unwrap_err();
    assert!(matches!(error, StartError::PlainPeers(_)), "{error}");
    open_to_all.danger_plain_peers = true;
    assert!(matches!(Node::<()>::start(open_to_all.clone()).await.unwrap_err(), StartError::Advertise(_)));
    open_to_all.advertise = Some("127.0.0.1:1".parse().unwrap());
    assert!(matches!(Node::<()>::start(open_to_all.clone()).await.unwrap_err(), StartError::NoSecret));
    open_to_all.secret = Some([1; 32]);
    assert!(Node::<()>::start(open_to_all).await.is_ok());
}

#[tokio::test]
async fn an_observer_may_be_set_differently_and_who_finds_nobody_but_one_is_the_first() {
    let first = Node::<()>::start(config("n0", &[])).await.unwrap();
    let mut observer = config("gateway", &[addr(&first)]);
    observer.engine.backups = 2;
    observer.observer = true;
    let observer = Node::<()>::start(observer).await.unwrap();
    until("the gateway is seen", || alive(&first) == 2 && alive(&observer) == 2).await;
    assert_eq!(first.stats().engine.members, 1);
    assert_eq!(created(&first, key(1), b"a").await.level, Level::Owner);
    first.shutdown_now();
    let mut next = config("n1", &[addr(&observer)]);
    // It hears of the dead one, which might come back with the session. How long it waits for that is no matter of this test.
    next.engine.lost_after = core::time::Duration::from_millis(10);
    let next = Node::<()>::start(next).await.unwrap();
    until("it serves", || next.readiness().is_fit()).await;
    assert!(matches!(insist(&next, key(9), None).await, Open::NotFound));
}

/// A live session that cannot be made.
struct Bomb;

impl outlive_core::output::Live for Bomb {
    fn of(_: &outlive_core::record::Record) -> Bomb {
        panic!("a panic under a lock of the engine, as the test wants it")
    }
}

#[tokio::test]
async fn a_node_whose_engine_panicked_serves_nobody_any_more_and_the_others_go_on() {
    let other = Node::<()>::start(config("n0", &[])).await.unwrap();
    let node = Node::<Bomb>::start(config("n1", &[addr(&other)])).await.unwrap();
    until("they know each other", || other.stats().engine.members == 2).await;
    assert!(node.create(key(1)).is_err());
    assert_eq!(node.readiness(), Readiness::Dead);
    assert!(node.open(key(2), None).answer().await.is_err());
    assert!(!node.end(key(2), None).await);
    until("the other one sees that it is gone", || other.stats().engine.members == 1).await;
    assert_eq!(created(&other, key(1), b"a").await.level, Level::Owner);
}

#[tokio::test]
async fn nodes_that_name_each_other_and_themselves_make_one_cluster() {
    let first = Node::<()>::start(config("n0", &[])).await.unwrap();
    // The address of a node that is not there yet, and this node's own, are among those to join.
    let own = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut second = config("n1", &[own.to_string(), addr(&first)]);
    second.listen = Some(own.into());
    let second = Node::<()>::start(second).await.unwrap();
    met(&[first.clone(), second.clone()]).await;
    assert_eq!(second.readiness(), Readiness::Ready);
    assert!(!*second.draining().borrow());
}
