//! Who is let into a cluster, who is not, and what becomes of whoever is not.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use common::*;
use outlive_core::config::{Durability, Level, Limits, OnLost, Reach};
use outlive_runtime::{Node, NodeConfig, Open, Readiness, StartError};
use outlive_store::{MemoryStore, Store};
use std::sync::Arc;
use std::time::Duration;

async fn start(config: NodeConfig) -> N {
    Node::start(config).await.unwrap()
}

fn why(node: &N) -> String {
    node.readiness().to_string()
}

/// Waits until it says that it is kept out, for this reason.
async fn kept_out(node: &N, reason: &str) {
    until("it says why it is not in", || why(node).starts_with("starting: not in its cluster") && why(node).contains(reason)).await;
}

#[tokio::test]
async fn nodes_that_differ_in_what_need_not_agree_are_one_cluster() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut nodes = Vec::new();
    for i in 0..4 {
        let mut config = config(&format!("n{i}"), &[]);
        config.store = Some(store.clone());
        let engine = &mut config.engine;
        engine.limits = Limits { idle: Duration::from_secs(60 * (i + 1)), lifetime: Duration::from_secs(3600 * (i + 1)) };
        engine.backups = (i % 3) as u8;
        engine.min_backups = engine.backups.min(1);
        engine.durability = [Durability::Owner, Durability::Backup, Durability::Backup, Durability::Store][i as usize];
        engine.reach = [Reach::Auto, Reach::Everyone, Reach::Placement, Reach::Auto][i as usize];
        engine.on_lost = if i == 1 { OnLost::Serve } else { OnLost::New };
        engine.lookup_bound = Duration::from_millis(100 * (i + 1));
        engine.handover_bound = Duration::from_millis(500 * (i + 1));
        engine.lost_after = Duration::from_secs(10 * (i + 1));
        engine.sessions_max = 1000 + i;
        nodes.push(start(config).await);
    }
    met(&nodes).await;
    // Each waits for its own level.
    let levels = [Level::Owner, Level::Backup(1), Level::Backup(2), Level::Store];
    for (i, (node, level)) in nodes.iter().zip(levels).enumerate() {
        let key = key(i as u8);
        let at = node.create(key).unwrap();
        assert_eq!(append(node, &at, b"a").await.unwrap().level, level);
        // And all make as many copies as the greatest wants.
        until("there are three copies", || nodes.iter().filter(|n| n.info(key).is_some_and(|i| i.held)).count() == 3).await;
        assert_eq!(read(&nodes[(i + 1) % 4], key, None).await, b"a");
    }
}

#[tokio::test]
async fn a_node_with_another_store_than_its_peers_is_not_let_in_forms_nothing_and_joins_when_it_fits() {
    let store = || -> Arc<dyn Store> { Arc::new(MemoryStore::new()) };
    let shared = store();
    let mut first = config("n0", &[]);
    (first.store, first.secret) = (Some(shared.clone()), Some([1; 32]));
    let first = start(first).await;
    let joins = |name, store: Option<Arc<dyn Store>>| {
        let mut config = config(name, &[addr(&first)]);
        (config.store, config.secret) = (store, Some([1; 32]));
        config
    };
    let other = start(joins("n1", Some(store()))).await;
    kept_out(&other, "nodes of a cluster share one, or have none").await;
    let none = start(joins("n2", None)).await;
    kept_out(&none, "and this node's none").await;
    for node in [&other, &none] {
        // It touches no session: not one of its own either.
        assert!(!node.readiness().is_fit());
        assert!(node.create(key(1)).is_err() && open(node, key(2), None).await.is_err());
    }
    assert_eq!((alive(&first), first.readiness()), (1, Readiness::Ready));
    let same = start(joins("n3", Some(shared))).await;
    met(&[first.clone(), same.clone()]).await;
    // Whoever kept it out is gone: it is the first of its own now.
    let _ = same.drain(LONG).await;
    let _ = first.drain(LONG).await;
    until("it serves", || none.readiness().is_fit()).await;
    assert!(matches!(insist(&none, key(2), None).await, Open::NotFound));
}

#[tokio::test]
async fn a_node_of_another_cluster_on_the_same_store_does_not_begin_one_beside_it() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let of = |name: &str, cluster: &str| {
        let mut config = config(name, &[]);
        (config.store, config.cluster) = (Some(store.clone()), cluster.to_owned());
        config
    };
    let first = start(of("n0", "shop")).await;
    let at = first.create(key(1)).unwrap();
    append(&first, &at, b"a").await.unwrap();
    until("it is stored", || first.stats().engine.dirty == 0).await;
    let second = start(of("n1", "default")).await;
    kept_out(&second, "its cluster is `shop`, and this node's `default`").await;
    assert!(open(&second, key(1), None).await.is_err(), "the row is there, and its owner is not asked");
    assert_eq!(read(&first, key(1), None).await, b"a");
}

#[tokio::test]
async fn a_secret_that_differs_is_an_error_where_there_is_a_store_and_keeps_out_where_there_is_none() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let with = |name: &str, secret| {
        let mut config = config(name, &[]);
        (config.store, config.secret) = (Some(store.clone()), secret);
        config
    };
    let first = start(with("n0", Some([1; 32]))).await;
    let second = start(with("n1", None)).await;
    met(&[first, second]).await;
    let error = Node::<()>::start(with("n2", Some([2; 32]))).await.unwrap_err();
    assert!(matches!(error, StartError::OtherSecret) && error.to_string().contains("not the one in the store"), "{error}");
    let first = start(config("m0", &[])).await;
    let mut second = config("m1", &[addr(&first)]);
    second.secret = Some([2; 32]);
    kept_out(&start(second).await, "its secret is another one").await;
}

#[tokio::test]
async fn of_two_nodes_of_one_name_the_one_that_runs_stays_and_the_newcomer_says_where_it_is() {
    let taken = |result: Result<N, StartError>| match result.map(drop).unwrap_err() {
        error @ StartError::NameTaken { .. } => error.to_string(),
        other => panic!("{other}"),
    };
    let elder = start(config("n0", &[])).await;
    let other = start(config("n1", &[addr(&elder)])).await;
    met(&[elder.clone(), other.clone()]).await;
    // It meets the elder itself; or another member, which knows it.
    for join in [addr(&elder), addr(&other)] {
        let said = taken(Node::start(config("n0", &[join])).await);
        assert!(said.contains("`n0` is taken") && said.contains(&addr(&elder)), "{said}");
    }
    // The elder heard nothing of it but a line in the log.
    assert_eq!((elder.readiness(), alive(&elder), alive(&other)), (Readiness::Ready, 2, 2));
    // When it is gone, its name is free at once.
    elder.shutdown_now();
    let again = start(config("n0", &[addr(&other)])).await;
    met(&[again.clone(), other]).await;
    assert_eq!(again.readiness(), Readiness::Ready);
}

#[tokio::test]
async fn two_nodes_of_one_name_find_each_other_through_the_store_and_a_restart_finds_nobody() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let of = |name: &str| {
        let mut config = config(name, &[]);
        config.store = Some(store.clone());
        config
    };
    let elder = start(of("n0")).await;
    let error = Node::<()>::start(of("n0")).await.map(drop).unwrap_err();
    assert!(matches!(error, StartError::NameTaken { .. }), "{error}");
    assert!(elder.readiness().is_fit());
    // A row that a killed process left behind names nobody who runs.
    elder.shutdown_now();
    let again = start(of("n0")).await;
    until("it serves", || again.readiness().is_fit()).await;
}

#[tokio::test]
async fn two_nodes_of_one_name_that_start_at_once_are_one_and_an_error() {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (a, b) = (free(), free());
    let of = |own: std::net::SocketAddr, other: std::net::SocketAddr| {
        let mut config = config("n0", &[other.to_string()]);
        config.listen = Some(own.into());
        config
    };
    let (one, two) = tokio::join!(Node::<()>::start(of(a, b)), Node::<()>::start(of(b, a)));
    let (up, down) = match (one, two) {
        (Ok(up), Err(down)) | (Err(down), Ok(up)) => (up, down),
        other => panic!("{other:?}"),
    };
    assert!(matches!(down, StartError::NameTaken { .. }), "{down}");
    until("the other one serves", || up.readiness().is_fit()).await;
}

#[tokio::test]
async fn a_typo_beside_addresses_that_are_right_is_told_as_long_as_nobody_is_there() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let first = start(config("n0", &[])).await;
    let second = start(config("n1", &[addr(&first), free.to_string()])).await;
    let both = [first, second.clone()];
    met(&both).await;
    assert_eq!(second.apart(), None, "it is not alone");
    let told = format!("{free}: nobody listens there");
    until("it names the address", || second.unmet() == [told.clone()]).await;
    let mut third = config("n2", &[]);
    third.listen = Some(free.into());
    let third = start(third).await;
    until("somebody is there", || alive(&second) == 3).await;
    until("and it has nothing to say any more", || second.unmet().is_empty()).await;
    drop((both, third));
}

#[tokio::test]
async fn a_node_that_reaches_nobody_says_whom_and_why() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut typo = config("n0", &[free.to_string()]);
    typo.join.push("no-such-host.invalid:7400".parse().unwrap());
    let node = start(typo).await;
    until("it says so", || {
        node.apart().is_some_and(|said| said.contains("nobody listens there") && said.contains("no-such-host.invalid:7400: "))
    })
    .await;
    // As soon as somebody is there it has nothing to say any more.
    let mut other = config("n1", &[]);
    other.listen = Some(free.into());
    let other = start(other).await;
    until("they meet", || alive(&node) == 2 && node.apart().is_none()).await;
    met(&[node, other]).await;
}
