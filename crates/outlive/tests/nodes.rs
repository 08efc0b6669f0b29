//! Several nodes in one process, over loopback: what a visitor notices when requests go from one to another.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use core::time::Duration;
use outlive::testing::{self, Client};
use outlive::{Builder, CommitError, Committed, Cookie, Durability, EventKind, Key, Level, Outlive, Session, StartError};

const VISITS: Key<u64> = Key::new("visits");

async fn visits(session: Session) -> String {
    session.update(VISITS, |n| {
        *n += 1;
        n.to_string()
    })
}

async fn read(session: Session) -> String {
    session.get(VISITS).unwrap_or_default().to_string()
}

async fn info(session: Option<Session>) -> String {
    let info = session.map(|s| s.info()).unwrap_or_default();
    format!("{} {}", info.owner.unwrap_or_default(), info.backups.join(","))
}

async fn who(session: Session) -> String {
    session.user().map_or_else(|| "nobody".to_owned(), |u| u.to_string())
}

async fn login(session: Session) -> Result<(), outlive::LoginError> {
    session.login("ada").await
}

async fn logout(session: Session) -> String {
    format!("{:?}", session.invalidate().await.unwrap())
}

fn app(outlive: &Outlive) -> Router {
    let app = Router::new().route("/", get(visits)).route("/read", get(read)).route("/info", get(info)).route("/who", get(who));
    app.route("/login", get(login)).route("/logout", get(logout)).layer(outlive.layer())
}

fn builder(name: &str, cluster: &str) -> Builder {
    let mut config = outlive::Config::default();
    config.set("cluster", cluster).unwrap();
    let cookie = Cookie::new().name("OUTLIVESID").danger_plain_http();
    Outlive::builder().config(config).node(name).cookie(cookie).peer(([127, 0, 0, 1], 0).into())
}

/// Nodes a, b, c of one cluster, each joined to the first.
async fn cluster(name: &str) -> Vec<Outlive> {
    let a = builder("a", name).start().await.unwrap();
    let first = a.peer_addr();
    let mut nodes = vec![a];
    for node in ["b", "c"] {
        nodes.push(builder(node, name).join([&first]).start().await.unwrap());
    }
    for node in &nodes {
        while node.members() < 3 {
            tokio::task::yield_now().await;
        }
    }
    nodes
}

/// The same browser, at another node.
fn at(client: &Client<Router>, outlive: &Outlive) -> Client<Router> {
    let there = testing::client(app(outlive));
    for (name, value) in client.cookies() {
        there.set_cookie(&name, &value);
    }
    there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_outlives_the_node_that_answered_and_its_cookie_names_the_new_one() {
    let mut nodes = cluster("outlives").await;
    let client = testing::client(app(&nodes[0]));
    let first = client.get("/").await;
    assert_eq!(first.extensions.get::<Committed>().map(|c| c.level), Some(Level::Backup(1)));
    assert!(client.cookies().iter().any(|(n, v)| n == "OUTLIVESID" && v.ends_with(".a")));
    assert!(client.cookies().iter().any(|(n, _)| n == "OUTLIVESID-V"));
    nodes.remove(0).shutdown_now();
    let client = at(&client, &nodes[0]);
    let answer = client.get("/").await;
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, "2"));
    assert!(client.cookies().iter().any(|(n, v)| n == "OUTLIVESID" && v.ends_with(".b")));
    assert!(client.get("/info").await.text.starts_with("b "));
}

/// What the session holds, as soon as it can be had.
async fn settled(client: &Client<Router>) -> String {
    loop {
        let answer = client.get("/read").await;
        if answer.status == StatusCode::OK {
            return answer.text;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_without_stickiness_loses_nothing_and_logs_nobody_out() {
    let nodes = cluster("round-robin").await;
    let mut client = testing::client(app(&nodes[0]));
    for n in 0..12 {
        client = at(&client, &nodes[n % 3]);
        let want = (n + 1).to_string();
        loop {
            let answer = client.get("/").await;
            if answer.status == StatusCode::OK {
                assert_eq!(answer.text, want);
                break;
            }
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
            // "Unknown" says that it may be there: whoever tries again looks first.
            let unknown = matches!(answer.extensions.get(), Some(CommitError::Unknown));
            if unknown && settled(&client).await == want {
                break;
            }
        }
    }
    // The owner is elsewhere for two of them: the login makes a session here and ends the old one.
    let thief = at(&client, &nodes[0]);
    for node in &nodes {
        client = at(&client, node);
        assert_eq!(client.get("/login").await.status, StatusCode::OK);
        assert_eq!((client.get("/who").await.text, client.get("/read").await.text), ("ada".into(), "12".into()));
    }
    assert_eq!(thief.get("/who").await.text, "nobody");
    assert_eq!(client.get("/logout").await.text, "Everywhere");
    for node in &nodes {
        assert_eq!(at(&client, node).get("/who").await.text, "nobody");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_hands_its_sessions_over() {
    let nodes = cluster("drain").await;
    let client = testing::client(app(&nodes[0]));
    client.get("/").await;
    assert_eq!(nodes[0].drain().await.unwrap().abandoned, 0);
    assert_eq!(client.get("/").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(at(&client, &nodes[1]).get("/").await.text, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_name_the_session_and_say_that_it_moved_and_who_has_a_copy() {
    let mut nodes = cluster("events").await;
    let client = testing::client(app(&nodes[0]));
    let (mut here, mut there) = (nodes[0].events(), nodes[1].events());
    client.get("/").await;
    let created = here.next().await.unwrap();
    assert_eq!((created.kind, created.key.len()), (EventKind::Created, 32));
    nodes.remove(0).shutdown_now();
    let client = at(&client, &nodes[0]);
    while client.get("/").await.text != "2" {}
    let mut moved = false;
    loop {
        let event = there.next().await.unwrap();
        assert_eq!(event.key, created.key);
        match event.kind {
            // It came from the copy here, or from the node that was just leaving.
            EventKind::Moved { from } => moved = from.is_none_or(|from| from == "a"),
            EventKind::Replicated { on } if on == ["c"] => break assert!(moved),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_store_whose_feature_is_off_says_which_one() {
    let builder = Outlive::builder().store("postgres://me:hunter2@db/x");
    let Err(error @ StartError::Store { .. }) = builder.start().await else { panic!("it started") };
    assert!(error.to_string().contains("postgres") && !error.to_string().contains("hunter2"), "{error}");
    #[cfg(not(feature = "sqlite"))]
    {
        let error = Outlive::builder().store("sqlite:x.db").start().await.unwrap_err().to_string();
        assert!(error.contains("`sqlite:` needs the feature `sqlite` of outlive"), "{error}");
    }
}

#[tokio::test]
async fn all_settings_that_are_wrong_are_named_at_once() {
    let builder = Outlive::builder().durability(Durability::Store).idle_timeout(Duration::from_millis(1)).namespace("a b");
    let Err(StartError::Config(errors)) = builder.start().await else { panic!("it started") };
    assert_eq!(errors.0.len(), 3, "{errors}");
}
