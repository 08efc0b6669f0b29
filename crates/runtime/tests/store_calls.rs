//! What a node makes of what a store says of itself: how far it reaches, and how many batches of writes it takes at once.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use common::*;
use outlive_core::id::SessionKey;
use outlive_core::stamp::Life;
use outlive_runtime::{Node, NodeConfig, Open, StartError, Step};
use outlive_store::{Answer, End, Health, LoadError, Loaded, Marker, MemoryStore, Put, PutError, Reach, RowResult, Store, Swept, Touch};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// A store that says of itself what a test wants, counts the calls of the writer that are under way, and lets them wait.
struct Said {
    store: MemoryStore,
    reach: Reach,
    batches: usize,
    inside: watch::Sender<Inside>,
    /// Calls of these kinds wait as long as there are fewer than so many under way.
    wait: Mutex<Vec<(Kind, usize)>>,
    /// Puts and ends are answered and lost, as by a store of which an older copy is restored before the answer comes.
    loses: Mutex<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Put,
    End,
    Touch,
}

#[derive(Default)]
struct Inside {
    calls: Vec<(Kind, Vec<SessionKey>)>,
    most: usize,
    /// Sessions that were in two calls at once.
    twice: HashSet<SessionKey>,
    /// Rises when calls that wait are to be looked at again.
    told: u64,
}

/// A call that is under way.
struct Call<'a>(&'a Said, Kind, Vec<SessionKey>);

impl Said {
    fn new(batches: usize) -> Arc<Said> {
        let (inside, wait, loses) = (watch::Sender::default(), Mutex::default(), Mutex::default());
        Arc::new(Said { store: MemoryStore::new(), reach: Reach::Process, batches, inside, wait, loses })
    }

    fn reaching(reach: Reach) -> Arc<Said> {
        Arc::new(Said { reach, ..Arc::into_inner(Said::new(1)).unwrap() })
    }

    /// From now on calls of this kind wait until `calls` are under way.
    fn wait_for(&self, kind: Kind, calls: usize) {
        self.wait.lock().unwrap().push((kind, calls));
    }

    /// Nobody waits any more.
    fn go(&self) {
        self.wait.lock().unwrap().clear();
        self.inside.send_modify(|inside| inside.told += 1);
    }

    fn is_inside(&self, kind: Kind) -> bool {
        self.inside.borrow().calls.iter().any(|(k, _)| *k == kind)
    }

    async fn enter(&self, kind: Kind, keys: Vec<SessionKey>) -> Call<'_> {
        self.inside.send_modify(|inside| {
            let both = inside.calls.iter().flat_map(|(_, there)| there).filter(|key| keys.contains(key));
            let both: Vec<SessionKey> = both.copied().collect();
            inside.twice.extend(both);
            inside.calls.push((kind, keys.clone()));
            inside.most = inside.most.max(inside.calls.len());
        });
        let call = Call(self, kind, keys);
        let may_go = |inside: &Inside| {
            let mut wait = self.wait.lock().unwrap();
            // Once enough were there, nobody waits any more.
            wait.retain(|(_, calls)| inside.calls.len() < *calls);
            wait.iter().all(|(k, _)| *k != kind)
        };
        self.inside.subscribe().wait_for(may_go).await.unwrap();
        call
    }

    fn loses(&self) -> bool {
        *self.loses.lock().unwrap()
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let Call(said, kind, keys) = self;
        said.inside.send_modify(|inside| {
            let at = inside.calls.iter().position(|(k, there)| k == kind && there == keys).unwrap();
            inside.calls.swap_remove(at);
        });
    }
}

impl Store for Said {
    fn reach(&self) -> Reach {
        self.reach
    }

    fn batches(&self) -> usize {
        self.batches
    }

    fn load(&self, keys: Vec<SessionKey>) -> Answer<'_, Result<Vec<Loaded>, LoadError>> {
        self.store.load(keys)
    }

    fn put(&self, rows: Vec<Put>) -> Answer<'_, Result<Vec<RowResult>, PutError>> {
        Box::pin(async move {
            let loses = self.loses();
            let _call = self.enter(Kind::Put, rows.iter().map(|row| row.key).collect()).await;
            if loses { Ok(vec![RowResult::Applied; rows.len()]) } else { self.store.put(rows).await }
        })
    }

    fn end(&self, ends: Vec<End>) -> Answer<'_, Result<Vec<Marker>, PutError>> {
        Box::pin(async move {
            let loses = self.loses();
            let _call = self.enter(Kind::End, ends.iter().map(|end| end.key).collect()).await;
            if loses { Ok(ends.iter().map(|end| end.marker).collect()) } else { self.store.end(ends).await }
        })
    }

    fn touch(&self, touches: Vec<Touch>) -> Answer<'_, Result<Vec<RowResult>, PutError>> {
        Box::pin(async move {
            let _call = self.enter(Kind::Touch, touches.iter().map(|touch| touch.key).collect()).await;
            self.store.touch(touches).await
        })
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

fn stored(name: &str, store: &Arc<Said>) -> NodeConfig {
    let mut config = config(name, &[]);
    config.store = Some(store.clone());
    config
}

async fn commit(node: &N, n: u8) {
    let at = match node.create(key(n)) {
        Ok(at) => at,
        Err(_) => match insist(node, key(n), None).await {
            Open::Here(at) => at,
            other => panic!("{other:?}"),
        },
    };
    append(node, &at, &[n]).await.unwrap();
}

async fn all_written(node: &N) {
    until("all is written", || node.stats().engine.dirty == 0).await;
}

async fn has_row(store: &MemoryStore, n: u8) -> bool {
    matches!(store.load(vec![key(n)]).await.unwrap()[0], Loaded::Here(_))
}

/// Waits until the store has this of a session.
async fn in_store(store: &MemoryStore, n: u8, is: impl Fn(&Loaded) -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    loop {
        let there = store.load(vec![key(n)]).await.unwrap().remove(0);
        if is(&there) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "the store has {there:?} of session {n}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// The writer has had its turn since the last commit: what waits for the reader of the store was asked for after that.
async fn turn(node: &N, n: u8) {
    assert!(matches!(insist(node, key(n), None).await, Open::NotFound), "nobody has made it");
}

#[tokio::test]
async fn a_store_that_takes_two_batches_gets_two_at_once_and_one_that_takes_two_never_gets_three() {
    let store = Said::new(2);
    let node = Node::start(stored("n0", &store)).await.unwrap();
    let (overlapped, failures) = (|| store.inside.borrow().most == 2, || node.stats().store_failures);
    let deadline = tokio::time::Instant::now() + LONG;
    while !overlapped() {
        assert!(tokio::time::Instant::now() < deadline, "never two");
        let before = failures();
        // Each waits for the other, unless this process stood still for so long that the node gave the first one up.
        store.wait_for(Kind::Put, 2);
        commit(&node, 1).await;
        until("the first is on its way", || store.is_inside(Kind::Put) || failures() > before).await;
        commit(&node, 2).await;
        until("both are", || overlapped() || failures() > before).await;
        store.go();
        all_written(&node).await;
    }
    let before = failures();
    store.wait_for(Kind::Put, usize::MAX);
    for n in 3..20 {
        commit(&node, n).await;
        turn(&node, 100 + n).await;
        let most = usize::from(n - 2).min(2);
        until("as many are on their way as may be", || store.inside.borrow().calls.len() == most || failures() > before).await;
    }
    store.go();
    all_written(&node).await;
    assert!(has_row(&store.store, 1).await && has_row(&store.store, 2).await && has_row(&store.store, 19).await);
    let inside = store.inside.borrow();
    assert_eq!((inside.most, inside.twice.len()), (2, 0));
}

#[tokio::test]
async fn a_store_that_says_nothing_of_batches_never_gets_two() {
    let store = Said::new(1);
    let node = Node::start(stored("n0", &store)).await.unwrap();
    store.wait_for(Kind::Put, usize::MAX);
    commit(&node, 1).await;
    until("the first is on its way", || store.is_inside(Kind::Put)).await;
    for n in 2..20 {
        commit(&node, n).await;
        turn(&node, 100 + n).await;
    }
    let ended = node.end(key(7), None);
    store.go();
    assert!(ended.await);
    all_written(&node).await;
    assert!(has_row(&store.store, 19).await);
    let inside = store.inside.borrow();
    assert_eq!((inside.most, inside.twice.len()), (1, 0));
}

#[tokio::test]
async fn after_a_failure_a_store_that_takes_many_batches_is_tried_with_one() {
    let store = Said::new(4);
    let node = Node::start(stored("n0", &store)).await.unwrap();
    store.store.set_health(Health::Full);
    commit(&node, 1).await;
    until("it has failed", || node.stats().store_failures > 0).await;
    store.wait_for(Kind::Put, usize::MAX);
    until("it is tried again", || store.is_inside(Kind::Put)).await;
    for n in 2..6 {
        commit(&node, n).await;
        turn(&node, 100 + n).await;
    }
    assert_eq!(store.inside.borrow().most, 1);
    store.store.set_health(Health::Up);
    store.go();
    all_written(&node).await;
    assert!(has_row(&store.store, 5).await);
}

#[tokio::test]
async fn batches_that_overlap_never_have_one_session_in_common() {
    let store = Said::new(4);
    let mut config = stored("n0", &store);
    // A use is told after a tenth of it.
    config.engine.limits.idle = Duration::from_secs(10);
    let node: N = Node::start(config).await.unwrap();
    commit(&node, 1).await;
    all_written(&node).await;
    store.wait_for(Kind::Touch, usize::MAX);
    until("its use is on its way", || {
        if let Step::Ready(Ok(Open::Here(at))) = node.open(key(1), None) {
            node.close(&at);
        }
        store.is_inside(Kind::Touch)
    })
    .await;
    // Its turn comes before the other one's, or with it.
    commit(&node, 1).await;
    commit(&node, 2).await;
    in_store(&store.store, 2, |there| matches!(there, Loaded::Here(_))).await;
    store.go();
    all_written(&node).await;
    assert_eq!(store.inside.borrow().twice, HashSet::new());
    let Open::Here(at) = insist(&node, key(1), None).await else { panic!("it is here") };
    let row = store.store.load(vec![key(1)]).await.unwrap().remove(0);
    let Loaded::Here(row) = row else { panic!("{row:?}") };
    assert_eq!(row.stamp, node.info(key(1)).unwrap().tip, "the last commit is written");
    node.close(&at);
}

#[tokio::test]
async fn what_was_written_before_the_store_forgot_and_is_answered_afterwards_is_written_again() {
    for (kind, batches) in [(Kind::Put, 1), (Kind::Put, 2), (Kind::End, 1), (Kind::End, 2)] {
        let store = Said::new(batches);
        let node = Node::start(stored("n0", &store)).await.unwrap();
        until("it serves", || node.readiness() == outlive_runtime::Readiness::Ready).await;
        if kind == Kind::End {
            commit(&node, 1).await;
            all_written(&node).await;
        }
        store.wait_for(kind, usize::MAX);
        *store.loses.lock().unwrap() = true;
        let ended = if kind == Kind::End { Some(node.end(key(1), None)) } else { None };
        if kind == Kind::Put {
            commit(&node, 1).await;
        }
        until("it is on its way", || store.is_inside(kind)).await;
        store.store.set_health(Health::Gone);
        assert!(open(&node, key(200), None).await.is_err(), "{kind:?}: nothing is known of it");
        *store.loses.lock().unwrap() = false;
        store.store.set_health(Health::Up);
        until("it is seen that the store forgot", || node.stats().store_forgot > 0).await;
        store.go();
        if let Some(ended) = ended {
            ended.await;
        }
        in_store(&store.store, 1, |there| match kind {
            Kind::End => matches!(there, Loaded::Ended(_)),
            _ => matches!(there, Loaded::Here(_)),
        })
        .await;
    }
}

#[tokio::test]
async fn a_store_of_other_machines_and_a_loopback_address_keep_a_node_from_starting_and_the_sentence_says_both() {
    let with = |listen: &str, advertise: Option<&str>| {
        let mut config = stored("n0", &Said::reaching(Reach::Network));
        config.listen = Some(listen.parse().unwrap());
        config.advertise = advertise.map(|text| text.parse().unwrap());
        config.danger_plain_peers = true;
        config
    };
    for (listen, advertise, told) in [
        ("127.0.0.1:0", None, "127.0.0.1:"),
        ("localhost:0", None, "localhost:"),
        ("[::ffff:127.0.0.1]:0", None, "127.0.0.1]:"),
        (":0", Some("127.0.0.1:7400"), "127.0.0.1:7400"),
    ] {
        let config = with(listen, advertise);
        let store = config.store.clone().unwrap();
        let error = N::start(config).await.map(drop).unwrap_err();
        assert!(matches!(error, StartError::Loopback { reach: Reach::Network, .. }), "{listen}: {error}");
        let text = error.to_string();
        for part in ["the store reaches other machines", told, "Set peer to", "all nodes are on this machine"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert_eq!(store.nodes(Duration::MAX).await.unwrap(), [], "nobody finds it");
        assert_eq!(store.secret([7; 32]).await.unwrap(), [7; 32], "it has left nothing behind");
    }
    drop(N::start(with("127.0.0.1:0", Some("app1:7400"))).await.unwrap());
    let mut gateway = with("127.0.0.1:0", None);
    gateway.observer = true;
    drop(N::start(gateway).await.unwrap());
    let mut alone = with("127.0.0.1:0", None);
    alone.listen = None;
    drop(N::start(alone).await.unwrap());
}

#[tokio::test]
async fn nodes_of_one_machine_share_a_store_of_others_if_that_is_said_and_the_log_says_so_once() {
    let log = Log::default();
    let _log = tracing::subscriber::set_default(log.clone());
    let store = Said::reaching(Reach::Network);
    let start = async |name| {
        let mut config = stored(name, &store);
        config.one_machine = true;
        N::start(config).await.unwrap()
    };
    let nodes = [start("n0").await, start("n1").await];
    met(&nodes).await;
    let lines = log.lines("must be on this machine");
    assert_eq!(lines.len(), nodes.len(), "{lines:?}");
    assert!(lines[0].starts_with("WARN") && lines[0].contains(&addr(&nodes[0])), "{lines:?}");
}

#[tokio::test]
async fn a_store_of_one_machine_says_nothing_about_the_address() {
    for reach in [Reach::Process, Reach::Machine] {
        let log = Log::default();
        let _log = tracing::subscriber::set_default(log.clone());
        let store = Said::reaching(reach);
        // Containers of one machine have addresses of their own, and share its files.
        let mut contained = stored("n0", &store);
        contained.advertise = Some("app1:7400".parse().unwrap());
        drop(N::start(contained).await.unwrap());
        drop(N::start(stored("n1", &store)).await.unwrap());
        assert_eq!(log.lines("must be on this machine"), [""; 0]);
    }
}
