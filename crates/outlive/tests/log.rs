//! What an application's mistake, or a node's death, writes into the log of a node. A process of its own, because a log is a process's.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use axum::http::StatusCode;
use axum::routing::get;
use outlive::{CommitError, Session};
use std::sync::Arc;
use support::log::Log;
use support::{LAST, VISITS, app, at, browser, cluster, in_time, insist, routes, until};
use tokio::sync::Notify;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_is_one_line_that_says_whose_and_how_much_and_names_no_session() {
    let log = Log::of_the_process();
    let mut nodes = cluster("loss-log", 2, &["durability=owner", "backups=0", "lost_after=0s"]).await;
    let visitors: Vec<_> = (0..5).map(|_| browser(app(&nodes[0]))).collect();
    for visitor in &visitors {
        visitor.get("/").await;
        visitor.get("/").await;
    }
    nodes.remove(0).shutdown_now();
    for visitor in &visitors {
        insist(&at(visitor, app(&nodes[0])), "/read").await;
    }
    let said = || log.lines("acknowledged changes are lost");
    let count = |line: &str, field: &str| {
        let text = line.split_once(&format!("{field}=")).unwrap().1;
        text.split(' ').next().unwrap().parse::<u32>().unwrap()
    };
    let all = |field: &str| said().iter().map(|line| count(line, field)).sum::<u32>();
    until("all are counted", || all("sessions") == 5).await;
    assert_eq!(all("versions"), 10);
    assert!(
        said().len() <= 5 && said().iter().all(|line| line.contains("ERROR") && line.contains("owner=\"a\" level=owner")),
        "{:?}",
        said()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_its_client_is_told_to_repeat_is_no_line_and_one_that_the_application_must_mend_is_an_error() {
    let log = Log::of_the_process();
    let nodes = cluster("said", 2, &[]).await;
    let (reached, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (r, g) = (reached.clone(), go.clone());
    let slow = move |session: Session| async move {
        let _ = session.get(VISITS);
        r.notify_one();
        g.notified().await;
        session.set(VISITS, 77);
    };
    let large = |session: Session| async move { session.set(LAST, "x".repeat(64 << 20)) };
    let app = routes().route("/slow", get(slow)).route("/large", get(large)).layer(nodes[0].layer());
    for meanwhile in ["/", "/logout"] {
        let client = browser(app.clone());
        assert_eq!(client.get("/").await.text, "1");
        let asking = client.copy();
        let slow = tokio::spawn(async move { asking.get("/slow").await });
        reached.notified().await;
        let there = at(&client, support::app(&nodes[1]));
        in_time(async { while there.get(meanwhile).await.status != StatusCode::OK {} }).await;
        go.notify_one();
        let answer = slow.await.unwrap();
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(matches!(answer.extensions.get(), Some(CommitError::Conflict | CommitError::Ended)), "{meanwhile}");
    }
    assert_eq!(browser(app).get("/large").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let said = log.lines("a session could not be committed");
    assert!(matches!(&said[..], [one] if one.contains("ERROR") && one.contains("setting the session attribute `last` makes")), "{said:?}");
}
