//! Several nodes in one process, over loopback: what a visitor notices when requests go from one to another.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use core::time::Duration;
use outlive::testing::{self, Client};
use outlive::{
    CommitError, Committed, Durability, EndReason, Ended, EventKind, Level, NotNow, OpenError, Outlive, RunError, Session, Source,
    StartError,
};
use std::sync::Arc;
use support::{LAST, VISITS, Wired, app, browser, builder, cluster, heard, in_time, insist, met, routes, until};
use tokio::sync::Notify;

/// The same browser, at another node.
fn at(client: &Client<Router>, outlive: &Outlive) -> Client<Router> {
    support::at(client, app(outlive))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_outlives_the_node_that_answered_and_its_cookie_names_the_new_one() {
    let mut nodes = cluster("outlives", 3, &[]).await;
    let client = testing::client(app(&nodes[0]));
    let first = client.get("/").await;
    assert_eq!(first.extensions.get::<Committed>().map(|c| c.level), Some(Level::Backup(1)));
    assert!(client.cookies().iter().any(|(n, v)| n == "OUTLIVESID" && v.ends_with(".a")));
    assert!(client.cookies().iter().any(|(n, _)| n == "OUTLIVESID-V"));
    nodes.remove(0).shutdown_now();
    let client = at(&client, &nodes[0]);
    let answer = client.get("/").await;
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, "2"));
    // The id's own cookie is set once: what a response sets late must not be an id.
    assert!(client.cookies().iter().any(|(n, v)| n == "OUTLIVESID" && v.ends_with(".a")));
    assert!(client.cookies().iter().any(|(n, v)| n == "OUTLIVESID-R" && v == ".b"));
    assert!(client.get("/info").await.text.starts_with("b "));
}

#[tokio::test]
async fn nodes_of_different_settings_serve_one_session_and_a_logout_ends_it_on_both() {
    let a = builder("a", "settings", &["durability=backup(1)", "session.idle_timeout=10m"]).start().await.unwrap();
    let other = ["durability=backup(2)", "session.idle_timeout=60m", "min_backups=1", "on_lost=serve"];
    let b = builder("b", "settings", &other).join([a.peer_addr()]).start().await.unwrap();
    let nodes = [a, b];
    met(&nodes).await;
    let mut client = testing::client(app(&nodes[0]));
    // One cookie, at a, b, a, b: it counts on.
    for n in 0..8 {
        client = at(&client, &nodes[n % 2]);
        assert_eq!(insist(&client, "/").await, (n + 1).to_string());
    }
    let kept = nodes.each_ref().map(|node| at(&client, node));
    assert_eq!(client.get("/logout").await.text, "Everywhere");
    for client in kept {
        assert_eq!(client.get("/").await.text, "1", "whoever kept the cookie begins anew");
    }
}

#[tokio::test]
async fn a_node_with_the_longest_name_serves_and_its_cookie_names_it() {
    let name = "pod-".to_owned() + &"n".repeat(59);
    assert_eq!(name.len(), 63);
    let node = builder(&name, "longest", &[]).start().await.unwrap();
    let client = testing::client(app(&node));
    assert_eq!(client.get("/").await.text, "1");
    assert!(client.cookies().iter().any(|(n, v)| n == "OUTLIVESID" && v.ends_with(&format!(".{name}"))));
    assert_eq!(client.get("/").await.text, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_without_stickiness_loses_nothing_and_logs_nobody_out() {
    let nodes = cluster("round-robin", 3, &[]).await;
    let mut client = testing::client(app(&nodes[0]));
    for n in 0..12 {
        client = at(&client, &nodes[n % 3]);
        let want = (n + 1).to_string();
        in_time(async {
            loop {
                let answer = client.get("/").await;
                if answer.status == StatusCode::OK {
                    break assert_eq!(answer.text, want);
                }
                assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
                // "Unknown" says that it may be there: whoever tries again looks first.
                let unknown = matches!(answer.extensions.get(), Some(CommitError::Unknown));
                if unknown && insist(&client, "/read").await == want {
                    break;
                }
            }
        })
        .await;
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
    let nodes = cluster("drain", 3, &[]).await;
    let client = testing::client(app(&nodes[0]));
    client.get("/").await;
    assert_eq!(nodes[0].drain().await.unwrap().abandoned, 0);
    assert_eq!(client.get("/").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(at(&client, &nodes[1]).get("/").await.text, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_cannot_hand_over_in_time_says_how_many_sessions_it_abandoned() {
    let wired = Wired::start("abandon", 2, &["drain_timeout=200ms", "durability=owner"]).await;
    wired.cut();
    let client = browser(app(&wired.nodes[0]));
    assert_eq!(client.get("/").await.text, "1");
    let error = wired.nodes[0].drain().await.unwrap_err();
    assert!(matches!(error, RunError::Abandoned(1)), "{error}");
    assert_eq!(error.to_string(), "1 sessions were abandoned: it is not known whether another node or the store has them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_name_the_session_and_say_that_it_moved_and_who_has_a_copy() {
    let mut nodes = cluster("events", 3, &[]).await;
    let client = testing::client(app(&nodes[0]));
    let (mut here, mut there) = (nodes[0].events(), nodes[1].events());
    client.get("/").await;
    let created = here.next().await.unwrap();
    assert_eq!((created.kind, created.key.len()), (EventKind::Created, 32));
    nodes.remove(0).shutdown_now();
    let client = at(&client, &nodes[0]);
    in_time(async { while client.get("/").await.text != "2" {} }).await;
    // What happens at one moment may be told in either order.
    let (mut moved, mut copied) = (None, false);
    while moved.is_none() || !copied {
        let event = in_time(there.next()).await.unwrap();
        assert_eq!(event.key, created.key);
        match event.kind {
            EventKind::Moved { from, source } => moved = Some((from, source)),
            EventKind::Replicated { on } => copied |= on == ["c"],
            _ => {}
        }
    }
    // It came from the copy here, or from the node that was just leaving; or c had the copy, and has inherited the session meanwhile.
    let (from, source) = moved.unwrap();
    assert!(from.as_deref().is_none_or(|from| from == "a" || from == "c"), "{from:?}");
    assert!(matches!(source, Source::Copy | Source::Node(_)), "{source:?}");
}

#[tokio::test]
async fn a_store_whose_feature_is_off_says_which_one() {
    let builder = Outlive::builder().store("postgres://me:hunter2@db/x");
    let Err(error @ StartError::Store { .. }) = builder.start().await else { panic!("it started") };
    assert!(error.to_string().contains("postgres") && !error.to_string().contains("hunter2"), "{error}");
    // What one reads without the feature; a build of all our programs has it.
    let off = outlive_store::OpenError::Feature { scheme: "sqlite" };
    assert_eq!(off.to_string(), "`sqlite:` needs the feature `sqlite` of outlive");
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

/// An application in which `/slow` opens the session, says so, waits, and then does what `f` says.
fn with_slow(outlive: &Outlive, f: fn(&Session)) -> (Router, Arc<Notify>, Arc<Notify>) {
    let (reached, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (r, g) = (reached.clone(), go.clone());
    let slow = move |session: Session| async move {
        let before = session.get(VISITS).unwrap_or_default();
        r.notify_one();
        g.notified().await;
        f(&session);
        before.to_string()
    };
    (routes().route("/slow", get(slow)).layer(outlive.layer()), reached, go)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_runs_while_its_session_moves_commits_there_or_is_told_of_the_conflict() {
    let writes: [(fn(&Session), _); 2] =
        [(|s| s.set(LAST, "slow".to_owned()), StatusCode::OK), (|s| s.set(VISITS, 77), StatusCode::SERVICE_UNAVAILABLE)];
    for (n, (write, want)) in writes.into_iter().enumerate() {
        let nodes = cluster(&format!("moves-{n}"), 2, &[]).await;
        let (slow_app, reached, go) = with_slow(&nodes[0], write);
        let client = browser(slow_app);
        client.get("/").await;
        let slow = client.copy();
        let slow = tokio::spawn(async move { slow.get("/slow").await });
        reached.notified().await;
        let there = at(&client, &nodes[1]);
        in_time(async { while there.get("/").await.text != "2" {} }).await;
        go.notify_one();
        let answer = slow.await.unwrap();
        assert_eq!(answer.status, want, "{:?}", answer.extensions.get::<CommitError>());
        if want != StatusCode::OK {
            assert!(matches!(answer.extensions.get(), Some(CommitError::Conflict)));
            assert_eq!(answer.headers[header::RETRY_AFTER], "0");
        }
        assert_eq!(there.get("/read").await.text, "2", "and what the other request wrote stays");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_has_begun_goes_on_when_its_request_is_dropped() {
    let pair = Wired::start("dropped", 2, &[]).await;
    let client = browser(app(&pair.nodes[0]));
    assert_eq!(client.get("/").await.extensions.get::<Committed>().map(|c| c.level), Some(Level::Backup(1)));
    pair.cut();
    let mut waits = Box::pin(client.get("/"));
    // The handler has run and its commit is on the way when the future says that it is not ready.
    tokio::select! {
        biased;
        _ = &mut waits => panic!("it left without its copy"),
        () = core::future::ready(()) => {}
    }
    drop(waits);
    pair.mend();
    assert_eq!(client.get("/read").await.text, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_commit_of_which_nobody_knows_is_answered_503_and_leaves_no_cookie_and_no_session() {
    let pair = Wired::start("first", 2, &["commit_bound=100ms"]).await;
    let client = browser(app(&pair.nodes[0]));
    pair.cut();
    let answer = client.get("/").await;
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::SERVICE_UNAVAILABLE, ""));
    let error = answer.extensions.get::<CommitError>().unwrap();
    assert!(matches!(error, CommitError::Unavailable { why: NotNow::Silent, .. }), "{error}");
    assert_eq!(answer.headers[header::RETRY_AFTER], "1");
    assert!(client.cookies().is_empty());
    until("nothing is left of it", || pair.nodes[0].stats().engine.owned == 0).await;
    pair.mend();
    until("it can commit again", || pair.nodes[0].stats().engine.members == 2).await;
    in_time(async { while client.get("/").await.text != "1" {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_which_nobody_knows_is_kept_and_sent_again() {
    let pair = Wired::start("unknown", 2, &["commit_bound=100ms"]).await;
    let client = browser(app(&pair.nodes[0]));
    client.get("/").await;
    pair.cut();
    let answer = client.get("/").await;
    assert!(matches!(answer.extensions.get(), Some(CommitError::Unknown)), "{}", answer.status);
    pair.mend();
    // Whoever reads it waits until it is durable: it is there, once.
    assert_eq!(insist(&client, "/read").await, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_min_backups_nothing_is_acknowledged_with_fewer_copies_and_reading_goes_on() {
    let wired = Wired::start("min-backups", 2, &["min_backups=1"]).await;
    let client = browser(app(&wired.nodes[0]));
    assert_eq!(client.get("/").await.extensions.get::<Committed>().map(|c| c.level), Some(Level::Backup(1)));
    wired.cut();
    // It sets out for the backup, which is then found dead.
    let answer = client.get("/").await;
    assert!(matches!(answer.extensions.get(), Some(CommitError::Unknown)), "{}", answer.status);
    assert_eq!(wired.nodes[0].members(), 1);
    // With no backup there is nothing to set out for.
    let answer = client.get("/").await;
    assert_eq!((answer.status, &answer.headers[header::RETRY_AFTER]), (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap()));
    assert!(matches!(answer.extensions.get(), Some(CommitError::UnderReplicated)));
    assert_eq!(client.get("/read").await.text, "2", "what was unknown is kept");
    wired.mend();
    until("it is back", || wired.nodes[0].members() == 2).await;
    assert_eq!(insist(&client, "/").await, "3");
    assert_eq!(client.get("/").await.extensions.get::<Committed>().map(|c| c.level), Some(Level::Backup(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_says_whether_every_node_has_heard_of_it() {
    let pair = Wired::start("pending", 2, &[]).await;
    let client = browser(app(&pair.nodes[0]));
    client.get("/").await;
    pair.cut();
    let thief = client.copy();
    assert_eq!(client.get("/logout").await.text, "Pending");
    assert_eq!(thief.get("/read").await.text, "0", "it is in force here");
    pair.mend();
    let there = at(&thief, &pair.nodes[1]);
    // Told again until it has heard.
    assert_eq!(insist(&there, "/read").await, "0");
    client.get("/").await;
    assert_eq!(client.get("/logout").await.text, "Everywhere");
}

/// Two nodes, a visitor at the first, and that one's handle on the session.
async fn pair_with_a_handle(name: &str) -> (Vec<Outlive>, Client<Router>, Session) {
    let nodes = cluster(name, 2, &[]).await;
    let kept = Arc::new(std::sync::Mutex::new(None));
    let keep = Arc::clone(&kept);
    let app = routes().route("/keep", get(move |session: Session| async move { *keep.lock().unwrap() = Some(session) }));
    let client = browser(app.layer(nodes[0].layer()));
    client.get("/").await;
    client.get("/keep").await;
    let handle = kept.lock().unwrap().take().unwrap();
    (nodes, client, handle)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_ends_the_session_whichever_nodes_gave_it_how_many_new_ids_meanwhile() {
    for logins in [&[1][..], &[1, 0], &[0, 1], &[0, 1, 1], &[0, 1, 0, 1]] {
        let (nodes, client, handle) = pair_with_a_handle(&format!("chain-{logins:?}")).await;
        let mut jars = vec![client.copy()];
        for node in logins {
            let there = at(jars.last().unwrap(), &nodes[*node]);
            insist(&there, "/login").await;
            jars.push(there);
        }
        assert_eq!(handle.invalidate().await.unwrap(), Ended::Everywhere, "{logins:?}");
        for (n, jar) in jars.iter().enumerate() {
            assert_eq!(insist(jar, "/read").await, "0", "after logins at {logins:?} it is logged out under id {n}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_hears_of_the_logout_of_a_session_that_another_node_gave_new_ids() {
    for logins in [&[][..], &[1], &[0, 1], &[1, 0, 1]] {
        let (nodes, mut client, handle) = pair_with_a_handle(&format!("stream-{logins:?}")).await;
        let ended = tokio::spawn(handle.ended());
        for node in logins {
            client = at(&client, &nodes[*node]);
            insist(&client, "/login").await;
        }
        assert_eq!(insist(&at(&client, &nodes[0]), "/read").await, "1");
        assert!(!ended.is_finished(), "it goes on after logins at {logins:?}");
        insist(&at(&client, &nodes[1]), "/logout").await;
        assert_eq!(in_time(ended).await.unwrap(), EndReason::Invalidated, "after logins at {logins:?}");
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_learns_from_the_store_which_id_a_node_that_is_gone_gave_to_the_session() {
    let folder = std::env::temp_dir().join(format!("outlive-marker-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let store = format!("store=sqlite:{}/s.db", folder.display());
    let pair = Wired::start("marker", 2, &["durability=owner", &store]).await;
    let kept = Arc::new(std::sync::Mutex::new(None));
    let keep = {
        let kept = Arc::clone(&kept);
        move |session: Session| {
            let visits = session.get(VISITS).unwrap_or_default();
            kept.lock().unwrap().replace(session);
            async move { visits.to_string() }
        }
    };
    let client = browser(app(&pair.nodes[0]));
    client.get("/").await;
    // Some task at the other node has a handle from before the session came back here.
    let there = support::at(&client, routes().route("/keep", get(keep)).layer(pair.nodes[1].layer()));
    assert_eq!(insist(&there, "/keep").await, "1");
    assert_eq!(insist(&client, "/").await, "2");
    pair.cut();
    let before = client.copy();
    assert_eq!(client.get("/login").await.status, StatusCode::OK);
    let id = |client: &Client<Router>| client.cookies().into_iter().find(|(name, _)| name == "OUTLIVESID");
    assert_ne!(id(&client), id(&before), "it has a new id");
    until("all is written", || pair.nodes[0].stats().engine.dirty == 0).await;
    pair.nodes[0].shutdown_now();
    let handle: Session = kept.lock().unwrap().take().unwrap();
    let _ = handle.invalidate().await.unwrap();
    for jar in [&client, &before] {
        assert_eq!(insist(&at(jar, &pair.nodes[1]), "/read").await, "0", "it is logged out under both");
    }
    drop((handle, pair));
    let _ = std::fs::remove_dir_all(folder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_is_told_once_and_the_old_state_is_never_served_as_if_it_were_current() {
    for (on_lost, left) in [("new", 0), ("serve", 1)] {
        let settings = ["durability=backup(1)", "lost_after=0s", &format!("on_lost={on_lost}")];
        let mut pair = Wired::start(&format!("loss-{on_lost}"), 2, &settings).await;
        let mut events = pair.nodes[1].events();
        let client = browser(app(&pair.nodes[0]));
        assert_eq!(client.get("/").await.extensions.get::<Committed>().map(|c| c.level), Some(Level::Backup(1)));
        // The other node is thought dead and has an old copy; then the only one that knows better dies.
        pair.cut();
        until("it is thought dead", || pair.nodes[0].members() == 1).await;
        let alone = client.get("/").await;
        assert_eq!((alone.text.as_str(), alone.extensions.get::<Committed>().map(|c| c.level)), ("2", Some(Level::Owner)));
        pair.nodes.remove(0).shutdown_now();
        let there = at(&client, &pair.nodes[0]);
        // 503 or the truth, and never the old state.
        assert_eq!(insist(&there, "/loss").await, format!("lost=true visits={left}"));
        heard(&mut events, EventKind::Lost).await;
        assert_eq!(there.get("/loss").await.text, format!("lost=false visits={left}"), "once");
        assert_eq!(pair.nodes[0].stats().lost, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_cannot_be_had_is_an_error_and_not_a_visitor_without_one() {
    async fn own(session: Result<Session, OpenError>) -> String {
        session.map_or_else(|error| format!("{:?} {:?}", error, error.fault()), |_| "here".to_owned())
    }
    let pair = Wired::start("unavailable", 2, &["lost_after=1h"]).await;
    let mut nodes = pair.nodes;
    let (a, b) = (nodes.remove(0), nodes.remove(0));
    let client = browser(app(&a));
    client.get("/").await;
    b.shutdown_now();
    until("it is alone", || a.members() == 1).await;
    client.get("/").await;
    a.shutdown_now();
    // A node that starts now knows nothing of the session, and who may hold it is silent.
    let c = builder("c", "unavailable", &["lost_after=1h"]).start().await.unwrap();
    let there = support::at(&client, routes().route("/own", get(own)).layer(c.layer()));
    let optional = there.get("/info").await;
    assert_eq!(optional.status, StatusCode::SERVICE_UNAVAILABLE, "Option<Session>: {}", optional.text);
    assert!(optional.headers.contains_key(header::RETRY_AFTER));
    assert_eq!(there.get("/").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let own = there.get("/own").await.text;
    assert!(own.starts_with("Stale") && own.ends_with("Peer"), "{own}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moved_session_names_its_new_node_in_a_cookie_of_its_own_and_never_sets_the_id_again() {
    let nodes = cluster("route", 2, &[]).await;
    let client = browser(app(&nodes[0]));
    client.get("/").await;
    let set = |headers: &axum::http::HeaderMap| {
        let lines = headers.get_all(header::SET_COOKIE).into_iter().map(|v| v.to_str().unwrap().to_owned());
        lines.filter(|line| !line.starts_with("OUTLIVESID-V=")).collect::<Vec<_>>()
    };
    let late = client.copy();
    let there = at(&client, &nodes[1]);
    let moved = set(&there.get("/read").await.headers);
    assert!(moved.len() == 1 && moved[0].starts_with("OUTLIVESID-R=.b; "), "{moved:?}");
    assert!(set(&there.get("/read").await.headers).is_empty(), "it is known");
    // At the other node meanwhile: whatever comes of it, it is a hint.
    assert_eq!(client.get("/login").await.status, StatusCode::OK);
    let late = at(&late, &nodes[1]).get("/read").await;
    assert!(set(&late.headers).is_empty(), "an id that was rotated causes no cookie");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_exclusive_a_request_that_waits_follows_its_session_to_another_node() {
    let nodes = cluster("exclusive", 2, &[]).await;
    let (reached, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (r, g) = (reached.clone(), go.clone());
    let hold = move |session: Session| async move {
        session.update(VISITS, |n| *n += 1);
        r.notify_one();
        g.notified().await;
    };
    let exclusive = |outlive: &Outlive| routes().route("/hold", get(hold.clone())).layer(outlive.layer().exclusive());
    let client = browser(exclusive(&nodes[0]));
    client.get("/").await;
    let holder = client.clone();
    let holding = tokio::spawn(async move { holder.get("/hold").await.status });
    reached.notified().await;
    let waiting: Vec<_> = [&nodes[0], &nodes[1], &nodes[0], &nodes[1]]
        .map(|node| support::at(&client, exclusive(node)))
        .into_iter()
        .map(|client| {
            tokio::spawn(async move {
                in_time(async {
                    loop {
                        let answer = client.get("/").await;
                        if answer.status == StatusCode::OK {
                            break answer.text.parse::<u64>().unwrap();
                        }
                    }
                })
                .await
            })
        })
        .collect();
    go.notify_one();
    assert_eq!(holding.await.unwrap(), StatusCode::OK);
    let mut seen = Vec::new();
    for waits in waiting {
        seen.push(waits.await.unwrap());
    }
    seen.sort_unstable();
    assert_eq!(seen, [3, 4, 5, 6], "each saw what the one before had committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_exclusive_what_a_handler_did_while_its_session_moved_away_is_refused() {
    let nodes = cluster("exclusive-moves", 2, &[]).await;
    let (reached, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (r, g) = (reached.clone(), go.clone());
    let hold = move |session: Session| async move {
        session.set(LAST, "half".to_owned());
        r.notify_one();
        g.notified().await;
    };
    let last = |session: Session| async move { session.get(LAST).unwrap_or_default().to_string() };
    let app = |outlive: &Outlive| routes().route("/hold", get(hold.clone())).route("/last", get(last)).layer(outlive.layer().exclusive());
    let client = browser(app(&nodes[0]));
    client.get("/").await;
    let holder = client.clone();
    let holding = tokio::spawn(async move { holder.get("/hold").await });
    reached.notified().await;
    let there = support::at(&client, app(&nodes[1]));
    assert_eq!(insist(&there, "/").await, "2");
    go.notify_one();
    // Another attribute than the one that was changed there: without `exclusive` it would be merged.
    let answer = holding.await.unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(matches!(answer.extensions.get(), Some(CommitError::Conflict)));
    assert_eq!((insist(&there, "/read").await.as_str(), insist(&there, "/last").await.as_str()), ("2", ""));
}

#[tokio::test]
async fn an_error_and_its_causes_say_nothing_twice() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let busy = Outlive::builder().peer(taken.local_addr().unwrap());
    let no_feature = Outlive::builder().store("postgres://db/x");
    let mut errors = Vec::new();
    for builder in [
        busy,
        no_feature,
        #[cfg(feature = "sqlite")]
        Outlive::builder().store("sqlite:/no/such/folder/x.db"),
    ] {
        errors.push(Box::new(builder.start().await.unwrap_err()) as Box<dyn core::error::Error>);
    }
    let outlive = Outlive::in_memory();
    errors.push(Box::new(outlive.run(|_| async { Err::<(), _>(std::io::Error::other("no port")) }).await.unwrap_err()));
    for error in errors {
        let mut said = vec![error.to_string()];
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            assert!(!said.iter().any(|before| before.contains(&text)), "{said:?}, caused by {text:?}");
            said.push(text);
            cause = error.source();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_stays_until_a_response_that_asked_for_it_has_left_wherever_the_session_goes() {
    async fn fails(session: Session) -> StatusCode {
        assert!(session.loss().is_some());
        StatusCode::INTERNAL_SERVER_ERROR
    }
    let routes = || support::routes().route("/fails", get(fails));
    let settings = ["durability=owner", "backups=0", "lost_after=0s"];
    let mut nodes = cluster("loss-stays", 3, &settings).await;
    let client = browser(app(&nodes[0]));
    for _ in 0..3 {
        client.get("/").await;
    }
    nodes.remove(0).shutdown_now();
    let here = support::at(&client, routes().layer(nodes[0].layer()));
    // Neither who does not ask uses it up, nor who asks and fails, nor who is dropped.
    assert_eq!(insist(&here, "/read").await, "0");
    assert_eq!(here.get("/").await.text, "1");
    assert_eq!(here.get("/fails").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    // Nor does it stay behind when the session moves, twice.
    let mut moved = at(&here, &nodes[1]);
    assert_eq!(insist(&moved, "/read").await, "1");
    assert_eq!(nodes[1].drain().await.unwrap().abandoned, 0);
    moved = at(&moved, &nodes[0]);
    assert_eq!(insist(&moved, "/loss").await, "lost=true visits=1");
    assert_eq!(moved.get("/loss").await.text, "lost=false visits=1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_requests_after_a_loss_all_succeed_and_one_of_them_at_least_tells_it() {
    let mut nodes = cluster("loss-parallel", 2, &["durability=owner", "backups=0", "lost_after=0s"]).await;
    let client = browser(app(&nodes[0]));
    client.get("/").await;
    nodes.remove(0).shutdown_now();
    let here = at(&client, &nodes[0]);
    assert_eq!(insist(&here, "/read").await, "0");
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let here = here.clone();
        requests.spawn(async move { here.get("/loss").await });
    }
    let answers = requests.join_all().await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK));
    assert!(answers.iter().any(|answer| answer.text.starts_with("lost=true")));
    assert_eq!(here.get("/loss").await.text, "lost=false visits=0");
}
