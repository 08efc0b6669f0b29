//! `run` to its orderly end. A process of its own, because it gets a signal.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use outlive::{Key, Outlive, Session};
use std::sync::Arc;
use support::{builder, cluster, met, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Notify};

const VISITS: Key<u64> = Key::new("visits");

async fn request(addr: std::net::SocketAddr, path: &str) -> String {
    request_with(addr, path, "").await
}

/// The cookies that a response sets, as a request brings them.
fn cookies(response: &str) -> String {
    let set = response.lines().filter_map(|line| line.strip_prefix("set-cookie: ")?.split(';').next());
    set.collect::<Vec<_>>().join("; ")
}

async fn request_with(addr: std::net::SocketAddr, path: &str, cookies: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let text = format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\nCookie: {cookies}\r\nConnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A signal reaches every server of this process, so there is one at a time.
static ONE: Mutex<()> = Mutex::const_new(());

fn sigterm() {
    let pid = std::process::id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
}

#[tokio::test]
async fn a_request_in_flight_at_sigterm_still_commits_and_then_the_server_ends() {
    let _one = ONE.lock().await;
    let outlive = Outlive::in_memory();
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (b, g) = (begun.clone(), go.clone());
    let slow = move |session: Session| async move {
        b.notify_one();
        g.notified().await;
        session.update(VISITS, |n| *n += 1);
        "late but kept"
    };
    let app = Router::new().route("/slow", get(slow)).route("/ready", get(outlive.readiness())).layer(outlive.layer());
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let draining = outlive.draining();
    let running = tokio::spawn({
        let outlive = outlive.clone();
        async move { outlive.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained)).await }
    });
    assert!(request(addr, "/ready").await.ends_with("ready"));
    assert_eq!(outlive.liveness().answer().1, "alive");
    let in_flight = tokio::spawn(request(addr, "/slow"));
    begun.notified().await;
    sigterm();
    draining.await;
    assert_eq!(outlive.readiness().answer(), (StatusCode::SERVICE_UNAVAILABLE, "draining".to_owned()));
    assert_eq!(outlive.liveness().answer(), (StatusCode::OK, "alive"), "a probe must not end what is leaving");
    go.notify_one();
    let answer = in_flight.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("__Host-session=") && answer.ends_with("late but kept"), "{answer}");
    running.await.unwrap().unwrap();
    assert_eq!(outlive.readiness().answer().1, "dead");
    assert_eq!(outlive.liveness().answer(), (StatusCode::SERVICE_UNAVAILABLE, "dead"));
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_goes_on_accepting_after_sigterm_for_as_long_as_balancers_need_to_see_it() {
    let _one = ONE.lock().await;
    let b = cluster("notice", 1, &[]).await.remove(0);
    let a = builder("x", "notice", &["drain_notice=1h"]).join([b.peer_addr()]).start().await.unwrap();
    let nodes = [a, b];
    met(&nodes).await;
    let app = support::routes().layer(nodes[0].layer()).route("/ready", get(nodes[0].readiness()));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (running, draining) = (nodes[0].clone(), nodes[0].draining());
    let running = tokio::spawn(async move { running.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained)).await });
    let first = request(addr, "/").await;
    assert!(first.starts_with("HTTP/1.1 200") && first.contains("OUTLIVESID-R=.x"), "{first}");
    sigterm();
    draining.await;
    until("its session is with the other", || nodes[0].stats().engine.owned == 0 && nodes[1].stats().engine.owned == 1).await;
    // Long after that is done, connections are accepted, the probe says why none should come, and a visitor who does not care is served.
    let ready = request(addr, "/ready").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.ends_with("draining"), "{ready}");
    let new = request(addr, "/").await;
    assert!(new.starts_with("HTTP/1.1 200") && new.contains("OUTLIVESID=") && new.ends_with('1'), "{new}");
    // One who comes because of its cookie is served as well, and learns where its session is.
    let again = request_with(addr, "/", &cookies(&first)).await;
    assert!(again.ends_with('2') && again.contains("OUTLIVESID-R=.a") && !again.contains("OUTLIVESID="), "{again}");
    until("that one is, too", || nodes[0].stats().engine.owned == 0 && nodes[1].stats().engine.owned == 2).await;
    // The second signal: nobody waits for balancers any more.
    sigterm();
    running.await.unwrap().unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_request_that_outlasts_the_grace_time_is_not_waited_for_and_can_no_longer_commit() {
    let _one = ONE.lock().await;
    let grace = std::time::Duration::from_millis(50);
    let outlive = Outlive::builder().shutdown_grace(grace).start().await.unwrap();
    let (begun, kept) = (Arc::new(Notify::new()), Arc::<std::sync::Mutex<Option<Session>>>::default());
    let (b, k) = (begun.clone(), kept.clone());
    let hang = move |session: Session| async move {
        session.update(VISITS, |n| *n += 1);
        *k.lock().unwrap() = Some(session);
        b.notify_one();
        std::future::pending::<()>().await
    };
    let app = Router::new().route("/hang", get(hang)).layer(outlive.layer());
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let running = outlive.clone();
    let running = tokio::spawn(async move { running.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained)).await });
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET /hang HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.unwrap();
    begun.notified().await;
    sigterm();
    running.await.unwrap().unwrap();
    assert_eq!(outlive.readiness().answer().1, "dead");
    // The handler is still there: a server's tasks are its own. What it writes can no longer be committed.
    let session = kept.lock().unwrap().take().unwrap();
    session.update(VISITS, |n| *n += 1);
    assert!(session.flush().await.is_err());
}

#[tokio::test]
async fn a_server_that_fails_ends_the_node_and_says_why() {
    let outlive = Outlive::in_memory();
    let error = outlive.run(|_| async { Err::<(), _>("no port") }).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.fault()), ("no port", outlive::Fault::Caller));
    assert_eq!(outlive.readiness().answer().1, "dead");
}

/// A server whose `/later` starts a task that holds the session after its request: it waits for `go`, and then for a node that leaves.
async fn with_late_task(
    outlive: &Outlive,
    flushes: bool,
    go: Arc<Notify>,
) -> (std::net::SocketAddr, tokio::task::JoinHandle<Result<(), outlive::RunError>>) {
    let node = outlive.clone();
    let later = move |session: Session| async move {
        session.update(VISITS, |n| *n += 1);
        tokio::spawn(async move {
            node.draining().await;
            go.notified().await;
            session.update(VISITS, |n| *n += 10);
            if flushes {
                session.flush().await.unwrap();
            }
        });
    };
    let app = support::routes().route("/later", get(later)).layer(outlive.layer());
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (addr, running) = (listener.local_addr().unwrap(), outlive.clone());
    (addr, tokio::spawn(async move { running.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained)).await }))
}

/// The cookies that a response sets, by name.
fn set_cookies(answer: &str) -> Vec<(String, String)> {
    let set = answer.lines().filter_map(|line| line.strip_prefix("set-cookie: "));
    set.filter_map(|cookie| cookie.split(';').next()?.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_task_writes_after_sigterm_is_waited_for_flushed_or_not_and_is_at_the_next_node() {
    let _one = ONE.lock().await;
    for (n, flushes) in [true, false].into_iter().enumerate() {
        let cluster_name = format!("late-{n}");
        let b = cluster(&cluster_name, 1, &[]).await.remove(0);
        let a = builder("x", &cluster_name, &["shutdown_grace=1h", "drain_notice=0s"]).join([b.peer_addr()]).start().await.unwrap();
        let nodes = [a, b];
        met(&nodes).await;
        let go = Arc::new(Notify::new());
        let (addr, running) = with_late_task(&nodes[0], flushes, go.clone()).await;
        let answer = request(addr, "/later").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        sigterm();
        // The session has left, and the server has stopped, long before the task goes on.
        until("the other has it", || nodes[1].stats().engine.owned == 1).await;
        support::in_time(async { while TcpStream::connect(addr).await.is_ok() {} }).await;
        assert!(!running.is_finished());
        go.notify_one();
        running.await.unwrap().unwrap();
        let client = support::browser(support::app(&nodes[1]));
        for (name, value) in set_cookies(&answer) {
            client.set_cookie(&name, &value);
        }
        assert_eq!(support::insist(&client, "/read").await, "11", "flushes: {flushes}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_holds_a_session_for_ever_is_not_waited_for_longer_than_the_grace_time() {
    let _one = ONE.lock().await;
    let outlive = Outlive::builder().shutdown_grace(std::time::Duration::from_millis(50)).start().await.unwrap();
    let (addr, running) = with_late_task(&outlive, true, Arc::default()).await;
    assert!(request(addr, "/later").await.starts_with("HTTP/1.1 200"));
    sigterm();
    support::in_time(running).await.unwrap().unwrap();
    assert_eq!(outlive.readiness().answer().1, "dead");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_leave_nothing_behind_leave_nothing_to_wait_for() {
    let _one = ONE.lock().await;
    let outlive = Outlive::builder().shutdown_grace(std::time::Duration::from_secs(3600)).start().await.unwrap();
    let (addr, running) = with_late_task(&outlive, true, Arc::default()).await;
    for path in ["/", "/read", "/login", "/logout", "/static"] {
        assert!(request(addr, path).await.starts_with("HTTP/1.1 200"), "{path}");
    }
    sigterm();
    support::in_time(running).await.unwrap().unwrap();
}
