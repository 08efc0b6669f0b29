//! `run` to its orderly end. A process of its own, because it gets a signal.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use axum::Router;
use axum::routing::get;
use outlive::{Key, Outlive, Session};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Notify};

const VISITS: Key<u64> = Key::new("visits");

async fn request(addr: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let text = format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n");
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
    let in_flight = tokio::spawn(request(addr, "/slow"));
    begun.notified().await;
    sigterm();
    draining.await;
    assert_eq!(outlive.readiness().answer().1, "draining");
    go.notify_one();
    let answer = in_flight.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("__Host-session=") && answer.ends_with("late but kept"), "{answer}");
    running.await.unwrap().unwrap();
    assert_eq!(outlive.readiness().answer().1, "dead");
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
    assert_eq!((error.to_string().as_str(), error.fault()), ("the server: no port", outlive::Fault::Caller));
    assert_eq!(outlive.readiness().answer().1, "dead");
}
