//! The ten holes of the published pattern, a test for each, by its name: each does what the pattern gets wrong and shows that it does
//! not happen here.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use axum::http::StatusCode;
use axum::routing::get;
use bytes::Bytes;
use core::time::Duration;
use outlive::testing::Client;
use outlive::{Committed, EventKind, Key, Level, Session};
use outlive_core::config::Config as EngineConfig;
use outlive_core::id::SessionKey;
use outlive_core::record::Change;
use outlive_core::stamp::{Life, Stamp};
use outlive_runtime::{CommitFailure, Node, NodeConfig, Open, OpenFailure, Readiness};
use outlive_store::{Answer, End, LoadError, Loaded, Marker, MemoryStore, Put, PutError, Reach, RowResult, Store, Swept, Touch};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{LAST, LONG, VISITS, Wired, app, at, browser, cluster, heard, insist, routes, until};
use tokio::sync::watch;

const BLOB: Key<String> = Key::new("blob");
const BLOB_LEN: u64 = 200_000;

/// The version that an answer's session has.
fn version(answer: &outlive::testing::Answer) -> u32 {
    answer.extensions.get::<Committed>().unwrap().version
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_a_full_write_reads_and_static_files_included() {
    let wired = Wired::start("hole-1", 3, &[]).await;
    let fill = |session: Session| async move { session.set(BLOB, "x".repeat(BLOB_LEN as usize)) };
    let client = browser(routes().route("/fill", get(fill)).layer(wired.nodes[0].layer()));
    client.get("/").await;
    let before = wired.carried();
    client.get("/fill").await;
    assert!(wired.carried() - before >= BLOB_LEN, "what is written is sent, once");
    let written = version(&client.get("/read").await);
    let (before, writes) = (wired.carried(), wired.nodes[0].stats().store_writes);
    for _ in 0..100 {
        assert_eq!(version(&client.get("/read").await), written);
        assert!(client.get("/static").await.extensions.get::<Committed>().is_none());
    }
    client.get("/").await;
    let sent = wired.carried() - before;
    assert!(sent < BLOB_LEN / 2, "100 reads, 100 files and one small change sent {sent} bytes between the nodes");
    assert_eq!(wired.nodes[0].stats().store_writes, writes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_is_a_wall_clock_compared_only_for_equality_skew_and_two_writes_in_one_millisecond_are_invisible() {
    let nodes = cluster("hole-2", 2, &[]).await;
    let client = browser(app(&nodes[0]));
    let mut tokens = std::collections::BTreeSet::new();
    let token = |client: &Client<_>| client.cookies().into_iter().find(|(name, _)| name == "OUTLIVESID-V").unwrap().1;
    client.get("/").await;
    let early = client.copy();
    // As fast as they can be written; a clock that ticks in milliseconds would give many of them the same version.
    for n in 2..=200 {
        assert_eq!(version(&client.get("/").await), n);
        tokens.insert(token(&client));
    }
    assert_eq!(tokens.len(), 199);
    // A client that has seen version 1 is served version 200, because that includes it: equality would have refused or reloaded it.
    assert_eq!(at(&early, app(&nodes[0])).get("/read").await.text, "200");
    // And another owner counts on under a claim of its own, whatever the time there is.
    nodes[0].shutdown_now();
    let there = at(&client, app(&nodes[1]));
    assert_eq!(insist(&there, "/").await, "201");
    assert_eq!(insist(&at(&early, app(&nodes[1])), "/read").await, "201");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_before_the_asynchronous_write_has_landed_loads_the_older_document_and_later_overwrites_the_newer_one() {
    let wired = Wired::start("hole-3", 2, &["durability=owner"]).await;
    let client = browser(app(&wired.nodes[0]));
    client.get("/").await;
    until("the other node has a copy", || wired.nodes[1].stats().engine.backed == 1).await;
    wired.cut();
    let newer = client.get("/").await;
    assert_eq!((newer.text.as_str(), newer.extensions.get::<Committed>().unwrap().level), ("2", Level::Owner));
    // The copy there is the older document, and the write has not landed.
    let there = at(&client, app(&wired.nodes[1]));
    for _ in 0..3 {
        assert_eq!(there.get("/read").await.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(there.get("/").await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    wired.mend();
    assert_eq!(insist(&there, "/read").await, "2");
    assert_eq!(insist(&there, "/").await, "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_found_is_treated_as_empty_session_and_persisted_over_whatever_arrives_late() {
    let wired = Wired::start("hole-4", 3, &["durability=owner"]).await;
    wired.cut();
    // Nobody but its owner has heard of this one.
    let client = browser(app(&wired.nodes[0]));
    client.get("/").await;
    for node in &wired.nodes[1..] {
        let there = at(&client, app(node));
        let (before, answer) = (there.cookies(), there.get("/").await);
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "not known here is not the same as not there");
        assert_eq!(there.cookies(), before);
    }
    wired.mend();
    let there = at(&client, app(&wired.nodes[1]));
    assert_eq!(insist(&there, "/").await, "2");
    // When all say that there is none, what begins has a new id: the old one stays free of it, whatever arrives late.
    let old = there.copy();
    assert_eq!(there.get("/logout").await.text, "Everywhere");
    let again = at(&old, app(&wired.nodes[2]));
    let id = |client: &Client<_>| client.cookies().into_iter().find(|(name, _)| name == "OUTLIVESID").unwrap().1;
    assert_eq!(insist(&again, "/").await, "1");
    assert_ne!(id(&again)[..43], id(&old)[..43]);
}

/// A store whose writes or reads can be held back, between a node and the store that it shares with others.
struct Held {
    store: MemoryStore,
    /// Puts wait for this.
    puts: watch::Sender<bool>,
    /// Reads of this session wait.
    slow: watch::Sender<Option<SessionKey>>,
    /// A put has arrived here.
    arrived: AtomicBool,
}

impl Held {
    fn before(store: &MemoryStore) -> Arc<Held> {
        let (puts, slow) = (watch::Sender::new(true), watch::Sender::new(None));
        Arc::new(Held { store: store.clone(), puts, slow, arrived: AtomicBool::new(false) })
    }
}

impl Store for Held {
    fn reach(&self) -> Reach {
        self.store.reach()
    }

    fn load(&self, keys: Vec<SessionKey>) -> Answer<'_, Result<Vec<Loaded>, LoadError>> {
        Box::pin(async move {
            let mut slow = self.slow.subscribe();
            drop(slow.wait_for(|slow| slow.is_none_or(|slow| !keys.contains(&slow))).await.unwrap());
            self.store.load(keys).await
        })
    }

    fn put(&self, rows: Vec<Put>) -> Answer<'_, Result<Vec<RowResult>, PutError>> {
        Box::pin(async move {
            let mut go = self.puts.subscribe();
            self.arrived.store(true, Ordering::Release);
            go.wait_for(|go| *go).await.unwrap();
            self.store.put(rows).await
        })
    }

    fn end(&self, ends: Vec<End>) -> Answer<'_, Result<Vec<Marker>, PutError>> {
        self.store.end(ends)
    }

    fn touch(&self, touches: Vec<Touch>) -> Answer<'_, Result<Vec<RowResult>, PutError>> {
        self.store.touch(touches)
    }

    fn sweep(&self, limit: usize) -> Answer<'_, Result<Swept, PutError>> {
        self.store.sweep(limit)
    }

    fn lease(&self, name: String, holder: Life, ttl: Duration) -> Answer<'_, Result<Option<u64>, PutError>> {
        self.store.lease(name, holder, ttl)
    }

    fn announce(&self, node: outlive_store::Node, lease: Duration) -> Answer<'_, Result<Option<u64>, PutError>> {
        self.store.announce(node, lease)
    }

    fn nodes(&self, lapsed: Duration) -> Answer<'_, Result<Vec<outlive_store::Node>, LoadError>> {
        self.store.nodes(lapsed)
    }

    fn withdraw(&self, life: Life) -> Answer<'_, Result<(), PutError>> {
        self.store.withdraw(life)
    }

    fn secret(&self, proposal: [u8; 32]) -> Answer<'_, Result<[u8; 32], PutError>> {
        self.store.secret(proposal)
    }

    fn identity(&self) -> Answer<'_, Result<[u8; 16], LoadError>> {
        self.store.identity()
    }

    fn probe(&self) -> Answer<'_, Result<(), LoadError>> {
        self.store.probe()
    }
}

/// A node beside the library: sessions are keys, values are bytes.
async fn node(name: &str, store: Arc<dyn Store>) -> Node<()> {
    let mut config = NodeConfig::default();
    config.name = Some(name.to_owned());
    config.store = Some(store);
    config.engine = EngineConfig { shards: 4, backups: 0, lost_after: Duration::ZERO, ..EngineConfig::default() };
    Node::start(config).await.unwrap()
}

fn key(n: u8) -> SessionKey {
    SessionKey::from_bytes([n; 16])
}

async fn open(node: &Node<()>, key: SessionKey) -> Result<Open<()>, OpenFailure> {
    let deadline = tokio::time::Instant::now() + LONG;
    loop {
        match node.open(key, None).answer().await {
            Err(failure) if tokio::time::Instant::now() < deadline => tokio::time::sleep(failure.retry_after.min(LONG / 1000)).await,
            other => return other,
        }
    }
}

/// Sets the attribute `n` of a session, which is created if `new`.
async fn set(node: &Node<()>, key: SessionKey, new: bool, value: u8) -> Result<Stamp, CommitFailure> {
    let at = if new {
        node.create(key).unwrap()
    } else {
        let Ok(Open::Here(at)) = open(node, key).await else { panic!("it is not to be had") };
        at
    };
    let base = node.read(&at, |record, _| record.get("n").map(|a| a.dot)).unwrap();
    let commit = node.commit(&at, &[Change { name: "n".into(), base: base.into(), value: Some(Bytes::from(vec![value])) }]);
    node.close(&at);
    commit.done().await.map(|done| done.stamp.unwrap())
}

async fn value(node: &Node<()>, key: SessionKey) -> Option<u8> {
    let Ok(Open::Here(at)) = open(node, key).await else { return None };
    let value = node.read(&at, |record, _| record.get("n").map(|a| a.value[0])).unwrap();
    node.close(&at);
    value
}

async fn stored(store: &MemoryStore, key: SessionKey) -> Option<Stamp> {
    match store.load(vec![key]).await.unwrap().remove(0) {
        Loaded::Here(row) => Some(row.stamp),
        _ => None,
    }
}

async fn until_stored(store: &MemoryStore, key: SessionKey, stamp: Stamp) {
    let deadline = tokio::time::Instant::now() + LONG;
    while stored(store, key).await != Some(stamp) {
        assert!(tokio::time::Instant::now() < deadline, "it is never written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_write_is_unconditional_so_order_between_nodes_is_arrival_order() {
    let store = MemoryStore::new();
    let slow = Held::before(&store);
    let a = node("a", slow.clone()).await;
    let first = set(&a, key(1), true, 1).await.unwrap();
    until_stored(&store, key(1), first).await;
    // The write of version 2 sets out, and is held on its way to the store …
    slow.puts.send_replace(false);
    slow.arrived.store(false, Ordering::Release);
    set(&a, key(1), false, 2).await.unwrap();
    until("the write is on its way", || slow.arrived.load(Ordering::Acquire)).await;
    // … while its node dies, and another one goes on from what the store has.
    let b = node("b", Arc::new(store.clone())).await;
    a.shutdown_now();
    let newer = set(&b, key(1), false, 3).await.unwrap();
    until_stored(&store, key(1), newer).await;
    // The dead node's write arrives last, as a write of its own would: the comparison refuses it.
    let late = Put {
        key: key(1),
        expect: outlive_store::Expect::Exactly(first),
        stamp: first.claim.at(2),
        record: Bytes::from_static(b"late"),
        expires_in: LONG,
        user: None,
    };
    slow.puts.send_replace(true);
    assert_eq!(slow.put(vec![late]).await.unwrap(), [RowResult::Mismatch(Some(newer))]);
    assert_eq!((stored(&store, key(1)).await, value(&b, key(1)).await), (Some(newer), Some(3)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_failures_are_neither_seen_nor_retried_the_queue_is_unbounded_and_dies_with_the_process() {
    let store = MemoryStore::new();
    let a = node("a", Arc::new(store.clone())).await;
    until("it serves", || a.readiness() == Readiness::Ready).await;
    let first = set(&a, key(1), true, 0).await.unwrap();
    until_stored(&store, key(1), first).await;
    let written = a.stats().store_writes;
    store.set_health(outlive_store::Health::Down);
    let mut last = first;
    // Many changes of few sessions: the queue holds sessions, not changes.
    for n in 1..=200 {
        last = set(&a, key(1), false, n).await.unwrap();
        assert!(a.stats().engine.dirty <= 2);
    }
    set(&a, key(2), true, 7).await.unwrap();
    // Seen …
    until("the store counts as down", || matches!(a.readiness(), Readiness::Degraded { .. })).await;
    assert!(a.stats().store_failures > 0);
    until("both sessions wait", || a.stats().engine.dirty == 2).await;
    assert_eq!(value(&a, key(1)).await, Some(200), "sessions are served all the same");
    // … and done again when it can be, each session once.
    store.set_health(outlive_store::Health::Up);
    until_stored(&store, key(1), last).await;
    until("nothing waits", || a.stats().engine.dirty == 0).await;
    assert!(a.stats().store_writes - written <= 4, "{} rows for 201 changes of two sessions", a.stats().store_writes - written);
    // An orderly end leaves nothing in the queue.
    let newest = set(&a, key(2), false, 8).await.unwrap();
    assert_eq!(a.drain(LONG).await.abandoned, 0);
    assert_eq!(stored(&store, key(2)).await, Some(newest));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_slow_store_call_stalls_every_session_of_the_node() {
    let store = MemoryStore::new();
    let before = node("a", Arc::new(store.clone())).await;
    for n in 1..=3 {
        let stamp = set(&before, key(n), true, n).await.unwrap();
        until_stored(&store, key(n), stamp).await;
    }
    before.shutdown_now();
    let slow = Held::before(&store);
    let b = node("a", slow.clone()).await;
    assert_eq!(value(&b, key(1)).await, Some(1));
    slow.slow.send_replace(Some(key(2)));
    slow.puts.send_replace(false);
    // One read and one write of the store hang …
    let hangs = tokio::spawn({
        let b = b.clone();
        async move { value(&b, key(2)).await }
    });
    set(&b, key(1), false, 10).await.unwrap();
    until("the write hangs", || slow.arrived.load(Ordering::Acquire)).await;
    // … and others are read, written, created and loaded meanwhile.
    for n in 0..50 {
        set(&b, key(100 + n), true, n).await.unwrap();
        set(&b, key(1), false, n).await.unwrap();
    }
    assert_eq!((value(&b, key(3)).await, value(&b, key(149)).await, value(&b, key(1)).await), (Some(3), Some(49), Some(49)));
    slow.slow.send_replace(None);
    slow.puts.send_replace(true);
    assert_eq!(hangs.await.unwrap(), Some(2));
}

/// Set in the second half of the test below: the release that reads differs from the one that wrote.
static NEXT_RELEASE: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Default, serde::Serialize)]
struct Cart(Vec<String>);

impl<'de> serde::Deserialize<'de> for Cart {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Cart, D::Error> {
        if NEXT_RELEASE.load(Ordering::Relaxed) {
            return Err(serde::de::Error::custom("this release has other carts"));
        }
        Vec::deserialize(from).map(Cart)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_expiry_no_delete_on_logout_no_index_unrestricted_deserialisation() {
    // Expiry, in memory and on another node's copy.
    let nodes = cluster("hole-8", 2, &["session.idle_timeout=1s"]).await;
    let client = browser(app(&nodes[0]));
    let level = client.get("/").await.extensions.get::<Committed>().unwrap().level;
    assert_eq!(level, Level::Backup(1), "the other node holds a copy");
    until("it has expired where it was owned", || nodes[0].stats().expired == 1).await;
    until("no node holds it", || nodes.iter().all(|node| node.stats().engine.owned + node.stats().engine.backed == 0)).await;
    for node in &nodes {
        assert_eq!(at(&client, app(node)).get("/read").await.text, "0");
    }
    // Expiry and logout, in the store; whoever sweeps finds what is over.
    let store = MemoryStore::new();
    let a = node("a", Arc::new(store.clone())).await;
    for n in [1, 2] {
        let stamp = set(&a, key(n), true, n).await.unwrap();
        until_stored(&store, key(n), stamp).await;
    }
    assert!(a.end(key(1), None).await, "everywhere, the store included");
    assert!(matches!(store.load(vec![key(1)]).await.unwrap()[..], [Loaded::Ended(_)]), "the record is gone, a marker stays");
    assert!(store.sweep(10).await.unwrap().sessions.is_empty());
    store.advance(Duration::from_secs(2 * 24 * 3600));
    assert_eq!(store.sweep(10).await.unwrap().sessions.len(), 1);
    // Bytes become a value of the type that the key names, or nothing at all: no type is taken from the data.
    const CART: Key<Cart> = Key::new("hole-8-cart");
    let nodes = cluster("hole-8-release", 2, &[]).await;
    let shop = |outlive: &outlive::Outlive| {
        let fill = |session: Session| async move { session.set(CART, Cart(vec!["bell".to_owned()])) };
        let look = |session: Session| async move { format!("{:?}", session.get(CART).map(|cart| cart.0.len())) };
        routes().route("/fill", get(fill)).route("/look", get(look)).layer(outlive.layer())
    };
    let client = browser(shop(&nodes[0]));
    client.get("/fill").await;
    assert_eq!(client.get("/look").await.text, "Some(1)");
    NEXT_RELEASE.store(true, Ordering::Relaxed);
    let there = at(&client, shop(&nodes[1]));
    let mut events = nodes[1].events();
    assert_eq!(insist(&there, "/look").await, "None");
    insist(&there, "/fill").await;
    heard(&mut events, EventKind::Quarantined { attribute: "hole-8-cart".into() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_facade_travels_to_all_nodes_on_every_request_asynchronously_and_can_be_lost_or_reordered() {
    let wired = Wired::start("hole-9", 3, &["durability=owner"]).await;
    let client = browser(app(&wired.nodes[0]));
    client.get("/").await;
    until("a copy is made", || wired.nodes[1..].iter().any(|node| node.stats().engine.backed == 1)).await;
    client.get("/read").await;
    // Requests that change nothing tell nobody: what travels meanwhile is the nodes' own talk.
    let before = wired.carried();
    for _ in 0..2000 {
        client.get("/read").await;
    }
    let sent = wired.carried() - before;
    assert!(sent < 2000 * 24, "2000 reads sent {sent} bytes, and a facade has more than 24");
    // The facade of the next change does not arrive anywhere. Each node that knows only the one before looks further, or says 503.
    wired.cut();
    assert_eq!(client.get("/").await.text, "2");
    for node in &wired.nodes[1..] {
        assert_eq!(at(&client, app(node)).get("/read").await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    wired.mend();
    for node in &wired.nodes[1..] {
        assert_eq!(insist(&at(&client, app(node)), "/read").await, "2");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_of_one_session_share_one_mutable_model_with_neither_lock_nor_merge() {
    let wired = Wired::start("hole-10", 2, &["session.idle_timeout=30m"]).await;
    let note = |session: Session| async move { session.set(LAST, "other side".to_owned()) };
    let both =
        |session: Session| async move { format!("{} {}", session.get(VISITS).unwrap_or_default(), session.get(LAST).unwrap_or_default()) };
    let shop = |outlive: &outlive::Outlive| routes().route("/note", get(note)).route("/both", get(both)).layer(outlive.layer());
    let client = browser(shop(&wired.nodes[0]));
    client.get("/").await;
    let tasks: Vec<_> = (0..50).map(|_| client.clone()).map(|c| tokio::spawn(async move { c.get("/").await.status })).collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), StatusCode::OK);
    }
    assert_eq!(client.get("/read").await.text, "51", "a lock: no change is lost");
    // Both sides of a partition go on; what they changed is merged attribute by attribute.
    let there = at(&client, shop(&wired.nodes[1]));
    wired.cut();
    until("each thinks that it is alone", || wired.nodes.iter().all(|node| node.members() == 1)).await;
    insist(&client, "/").await;
    insist(&there, "/note").await;
    wired.mend();
    until("they have met again", || wired.nodes.iter().all(|node| node.members() == 2)).await;
    let deadline = tokio::time::Instant::now() + LONG;
    while insist(&client, "/both").await != "52 other side" {
        assert!(tokio::time::Instant::now() < deadline, "{}", insist(&client, "/both").await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
