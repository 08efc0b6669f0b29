//! A few nodes in one process, over loopback, with wires between them that can stop carrying without being closed.

#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

pub mod log;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use core::time::Duration;
use outlive::testing::{self, Client};
use outlive::{Builder, Config, Cookie, EventKind, Events, Key, LoginError, Outlive, Session, StartError};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub const VISITS: Key<u64> = Key::new("visits");
pub const LAST: Key<String> = Key::new("last");
/// Longer than anything here takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

pub async fn visits(session: Session) -> String {
    session.update(VISITS, |n| {
        *n += 1;
        n.to_string()
    })
}

pub async fn read(session: Session) -> String {
    session.get(VISITS).unwrap_or_default().to_string()
}

pub async fn info(session: Option<Session>) -> String {
    let info = session.map(|s| s.info()).unwrap_or_default();
    format!("{} {}", info.owner.unwrap_or_default(), info.backups.join(","))
}

pub async fn who(session: Session) -> String {
    session.user().map_or_else(|| "nobody".to_owned(), |u| u.to_string())
}

pub async fn login(session: Session) -> Result<(), LoginError> {
    session.login("ada").await
}

pub async fn logout(session: Session) -> String {
    format!("{:?}", session.invalidate().await.unwrap())
}

/// What was lost, and what is left.
pub async fn loss(session: Session) -> String {
    format!("lost={} visits={}", session.loss().is_some(), session.get(VISITS).unwrap_or_default())
}

pub fn routes() -> Router {
    let app = Router::new().route("/", get(visits)).route("/read", get(read)).route("/info", get(info)).route("/who", get(who));
    app.route("/login", get(login)).route("/logout", get(logout)).route("/loss", get(loss)).route("/static", get(|| async { "a file" }))
}

pub fn app(outlive: &Outlive) -> Router {
    routes().layer(outlive.layer())
}

/// A node's settings, `path=text` each.
pub fn builder(name: &str, cluster: &str, settings: &[&str]) -> Builder {
    let mut config = Config::default();
    config.set("cluster", cluster).unwrap();
    for setting in settings {
        let (path, text) = setting.split_once('=').unwrap();
        config.set(path, text).unwrap();
    }
    let cookie = Cookie::new().name("OUTLIVESID").danger_plain_http();
    Outlive::builder().config(config).node(name).cookie(cookie).peer("127.0.0.1:0")
}

/// Nodes a, b, c of one cluster, each joined to the first.
pub async fn cluster(name: &str, nodes: usize, settings: &[&str]) -> Vec<Outlive> {
    let mut started: Vec<Outlive> = Vec::new();
    for node in ["a", "b", "c", "d"].into_iter().take(nodes) {
        let join: Vec<String> = started.iter().map(Outlive::peer_addr).collect();
        started.push(builder(node, name, settings).join(join).start().await.unwrap());
    }
    met(&started).await;
    started
}

/// Waits until all of these know all.
pub async fn met(nodes: &[Outlive]) {
    until("all know all", || nodes.iter().all(|node| node.members() == nodes.len())).await;
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "in {LONG:?} it did not come about that {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What comes of it, within the time that a busy machine may take.
pub async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("it takes too long")
}

/// Asks until there is an answer other than 503.
pub async fn insist(client: &Client<Router>, path: &str) -> String {
    in_time(async {
        loop {
            let answer = client.get(path).await;
            if answer.status == StatusCode::OK {
                return answer.text;
            }
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// Waits for an event of this kind.
pub async fn heard(events: &mut Events, kind: EventKind) {
    in_time(async { while events.next().await.unwrap().kind != kind {} }).await;
}

/// A browser at this application.
pub fn browser(app: Router) -> Client<Router> {
    testing::client(app).host("shop.example")
}

/// The same browser, at another node's application.
pub fn at(client: &Client<Router>, app: Router) -> Client<Router> {
    let there = browser(app);
    for (name, value) in client.cookies() {
        there.set_cookie(&name, &value);
    }
    there
}

/// What stands between a node and those that connect to it.
struct Wire {
    addr: SocketAddr,
    carries: watch::Sender<bool>,
    carried: Arc<AtomicU64>,
}

impl Wire {
    /// Carries what comes to a free port to `target`.
    async fn to(target: SocketAddr) -> Wire {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let wire = Wire { addr: listener.local_addr().unwrap(), carries: watch::Sender::new(true), carried: Arc::default() };
        let (flow, carried) = (wire.carries.subscribe(), wire.carried.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (flow, carried) = (flow.clone(), carried.clone());
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                    tokio::join!(carry(near_read, far_write, flow.clone(), &carried), carry(far_read, near_write, flow, &carried));
                });
            }
        });
        wire
    }
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut flow: watch::Receiver<bool>,
    carried: &AtomicU64,
) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        carried.fetch_add(n as u64, Ordering::Relaxed);
        if flow.wait_for(|carries| *carries).await.is_err() || to.write_all(&bytes[..n]).await.is_err() {
            break;
        }
    }
    // The other end may have gone already.
    let _ = to.shutdown().await;
}

/// Nodes a, b, c of one cluster, and the wires between them.
pub struct Wired {
    pub nodes: Vec<Outlive>,
    wires: Vec<Wire>,
}

impl Wired {
    pub async fn start(cluster: &str, nodes: usize, settings: &[&str]) -> Wired {
        let mut wired = Wired { nodes: Vec::new(), wires: Vec::new() };
        for name in ["a", "b", "c"].into_iter().take(nodes) {
            let join: Vec<String> = wired.nodes.iter().map(Outlive::peer_addr).collect();
            let (node, wire) = loop {
                // Whoever connects has to know the port before there is a node; another program may take it first.
                let free = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
                let wire = Wire::to(free).await;
                let advertise = format!("advertise={}", wire.addr);
                let settings: Vec<&str> = settings.iter().copied().chain([advertise.as_str()]).collect();
                match builder(name, cluster, &settings).peer(free).join(&join).start().await {
                    Ok(node) => break (node, wire),
                    Err(StartError::Peer { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            };
            wired.nodes.push(node);
            wired.wires.push(wire);
        }
        met(&wired.nodes).await;
        wired
    }

    /// Nothing arrives any more, and nothing is closed.
    pub fn cut(&self) {
        for wire in &self.wires {
            wire.carries.send_replace(false);
        }
    }

    /// What was held back arrives, and all that follows.
    pub fn mend(&self) {
        for wire in &self.wires {
            wire.carries.send_replace(true);
        }
    }

    /// Bytes that nodes have sent each other.
    pub fn carried(&self) -> u64 {
        self.wires.iter().map(|wire| wire.carried.load(Ordering::Relaxed)).sum()
    }
}
