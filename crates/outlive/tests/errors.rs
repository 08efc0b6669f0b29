//! What a handler is told, by what happens to its session while it runs, and after: two tables, and each cell is tried. The same tables,
//! with what to do, are in `docs/errors.md`.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use outlive::testing::Client;
use outlive::{CommitError, EndReason, Key, LoginError, NotNow, OpenError, Outlive, Retry, Session};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{LAST, VISITS, Wired, browser, cluster, in_time, insist, routes, until};
use tokio::sync::{mpsc, watch};

/// What a handler may do, in the order of the table's columns.
const CALLS: [&str; 8] = ["get", "commit", "flush", "refresh", "rotate", "login", "touch", "invalidate"];

/// What has happened when the call comes, and what it and the response then say.
const TABLE: &[(&str, [&str; 8])] = &[
    ("nothing, and there is no session", ["ok", "ok", "ok", "ok", "ok", "ok", "ok", "Everywhere"]),
    ("nothing", ["ok", "ok", "ok", "ok", "ok", "ok", "ok", "Everywhere"]),
    ("a logout", ["ok", "Ended", "Ended", "Ended", "Ended", "Ended", "ok", "Everywhere"]),
    ("a login in another request", ["ok", "ok", "ok", "ok", "Ended", "Ended", "ok", "Everywhere"]),
    ("it moves to another node", ["ok", "ok", "ok", "ok", "Conflict", "Conflict", "ok", "Everywhere"]),
    ("it moves, and is changed there", ["ok", "Conflict", "Conflict", "ok", "Conflict", "Conflict", "ok", "Everywhere"]),
    ("it moves, and its new node dies", ["ok", "Silent", "Silent", "Stale", "Conflict", "Conflict", "ok", "Everywhere"]),
    ("it is lost, and begins anew", ["ok", "Conflict", "Conflict", "ok", "Conflict", "Conflict", "ok", "Everywhere"]),
    ("it is lost, and what is left is served", ["ok", "ok", "ok", "ok", "Conflict", "Conflict", "ok", "Everywhere"]),
    ("it is lost, and nobody has it", ["ok", "Conflict", "Conflict", "ok", "Conflict", "Conflict", "ok", "Everywhere"]),
    ("this node leaves in order", ["ok", "Gone", "Gone", "Gone", "Gone", "Gone", "ok", "Pending"]),
    ("this node dies to its cluster", ["ok", "Gone", "Gone", "Gone", "Gone", "Gone", "ok", "Pending"]),
    (
        "too few nodes are left",
        ["ok", "UnderReplicated", "UnderReplicated", "ok", "UnderReplicated", "UnderReplicated", "ok", "Everywhere"],
    ),
    #[cfg(feature = "sqlite")]
    ("the store is down, at `backup(1)`", ["ok", "ok", "ok", "ok", "ok", "ok", "ok", "Pending"]),
    #[cfg(feature = "sqlite")]
    ("the store is down, at `store`", ["ok", "Unknown", "Unknown", "ok", "Silent", "Silent", "ok", "Pending"]),
    #[cfg(feature = "sqlite")]
    ("the store is down, at `store`, and there is no session", ["ok", "Silent", "Silent", "ok", "ok", "Silent", "ok", "Everywhere"]),
    ("it has set more than fits", ["TooLarge", "TooLarge", "TooLarge", "TooLarge", "TooLarge", "TooLarge", "TooLarge", "Everywhere"]),
    ("it has set what has no bytes", ["Encode", "Encode", "Encode", "Encode", "Encode", "Encode", "Encode", "Everywhere"]),
];

/// The same for a handle that outlives its request. `rotate` and `login` are followed by `flush`.
const LATER: &[(&str, [&str; 7])] = &[
    ("nothing", ["ok", "ok", "ok", "ok", "ok", "ok", "Everywhere"]),
    ("the response has left without a cookie", ["ok", "NoCookie", "ok", "ok", "NoCookie", "ok", "Everywhere"]),
    ("a logout", ["ok", "Ended", "Ended", "Ended", "Ended", "ok", "Everywhere"]),
    ("it expires", ["ok", "Ended", "Ended", "Ended", "Ended", "ok", "Everywhere"]),
    ("it moves, and is changed there", ["ok", "Conflict", "ok", "Conflict", "Conflict", "ok", "Everywhere"]),
    ("this node leaves in order", ["ok", "Gone", "Gone", "Gone", "Gone", "ok", "Pending"]),
];
const LATER_CALLS: [&str; 7] = ["get", "flush", "refresh", "rotate", "login", "touch", "invalidate"];

fn commit_error(error: &CommitError) -> &'static str {
    match error {
        CommitError::Unknown => "Unknown",
        CommitError::UnderReplicated => "UnderReplicated",
        CommitError::TooLarge { .. } => "TooLarge",
        CommitError::Encode { .. } => "Encode",
        CommitError::Undecodable { .. } => "Undecodable",
        CommitError::Ended => "Ended",
        CommitError::NoCookie => "NoCookie",
        CommitError::Conflict => "Conflict",
        CommitError::Unavailable { why: NotNow::Ended, .. } => "Gone",
        CommitError::Unavailable { why: NotNow::Silent, .. } => "Silent",
        _ => "another error",
    }
}

fn open_error(error: &OpenError) -> &'static str {
    match error {
        OpenError::Ended => "Ended",
        OpenError::Uncommitted(error) => commit_error(error),
        OpenError::Unavailable { why: NotNow::Ended, .. } => "Gone",
        OpenError::Unavailable { why: NotNow::Starting, .. } => "Starting",
        OpenError::Stale { .. } => "Stale",
        _ => "another error",
    }
}

async fn call(session: &Session, call: &str) -> String {
    let text = match call {
        "get" => {
            let _ = session.get(VISITS);
            "ok"
        }
        "commit" => {
            session.update(VISITS, |n| *n += 100);
            "ok"
        }
        "flush" => {
            session.update(VISITS, |n| *n += 100);
            session.flush().await.as_ref().map_or_else(commit_error, |_| "ok")
        }
        "refresh" => session.refresh().await.as_ref().map_or_else(open_error, |()| "ok"),
        "rotate" => {
            session.rotate();
            "ok"
        }
        "login" => match session.login("ada").await {
            Ok(()) => "ok",
            Err(_) => "refused",
        },
        "touch" => {
            session.touch();
            "ok"
        }
        _ => return session.invalidate().await.map_or_else(|e| commit_error(&e).to_owned(), |ended| format!("{ended:?}")),
    };
    text.to_owned()
}

/// `/calls/WHAT` opens its session, waits until `go`, and then calls; `/later/WHAT` does that after its response.
struct Shop {
    reached: Arc<AtomicUsize>,
    go: watch::Sender<bool>,
    /// What a handler has done when it waits.
    first: fn(&Session),
    said: mpsc::Sender<(String, String)>,
}

impl Shop {
    fn new() -> Shop {
        Shop { reached: Arc::default(), go: watch::Sender::new(false), first: |_| {}, said: mpsc::channel(8).0 }
    }

    fn app(&self, outlive: &Outlive) -> Router {
        let (reached, go, first, said) = (self.reached.clone(), self.go.subscribe(), self.first, self.said.clone());
        let (mut waits, tells) = (go.clone(), said);
        let calls = move |Path(what): Path<String>, session: Session| async move {
            first(&session);
            reached.fetch_add(1, Ordering::Relaxed);
            waits.wait_for(|go| *go).await.unwrap();
            call(&session, &what).await
        };
        let later = move |Path(what): Path<String>, session: Session| async move {
            let mut go = go;
            tokio::spawn(async move {
                go.wait_for(|go| *go).await.unwrap();
                let mut said = call(&session, &what).await;
                if what == "rotate" || what == "login" {
                    said = session.flush().await.as_ref().map_or_else(commit_error, |_| "ok").to_owned();
                }
                tells.try_send((what, said)).unwrap();
            });
        };
        routes().route("/calls/{what}", get(calls)).route("/later/{what}", get(later)).layer(outlive.layer())
    }
}

/// What cannot be encoded.
#[derive(Clone, Default, serde::Deserialize)]
struct NoBytes;

impl serde::Serialize for NoBytes {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("it has no bytes"))
    }
}

const NO_BYTES: Key<NoBytes> = Key::new("no-bytes");

/// The nodes of a row, and what else it needs.
struct Play {
    wired: Wired,
    /// Where its store is.
    folder: Option<Folder>,
}

/// A folder of its own, removed at the end.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // A file that stays behind does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
        let _ = std::fs::remove_dir_all(self.0.with_extension("away"));
    }
}

impl Play {
    async fn of(what: &str, name: &str) -> Play {
        let folder = what.starts_with("the store").then(|| {
            let path = std::env::temp_dir().join(format!("outlive-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Folder(path)
        });
        let store = folder.as_ref().map(|folder| format!("store=sqlite:{}/s.db", folder.0.display()));
        let mut settings: Vec<&str> = match what {
            "too few nodes are left" => vec!["min_backups=1"],
            "it expires" => vec!["session.idle_timeout=1s"],
            "it moves, and its new node dies" => vec!["durability=owner", "backups=0"],
            "it is lost, and nobody has it" => vec!["durability=owner", "backups=0", "lost_after=0s"],
            "it is lost, and begins anew" => vec!["lost_after=0s"],
            "it is lost, and what is left is served" => vec!["lost_after=0s", "on_lost=serve"],
            _ if what.starts_with("the store is down, at `store`") => vec!["durability=store", "commit_bound=500ms"],
            _ => vec![],
        };
        settings.extend(store.as_deref());
        Play { wired: Wired::start(name, 2, &settings).await, folder }
    }

    fn here(&self) -> &Outlive {
        &self.wired.nodes[0]
    }

    /// What happens to the sessions of all these visitors, at the first node of two.
    async fn happens(&mut self, what: &str, visitors: &[Client<Router>]) {
        let nodes = &self.wired.nodes;
        let there = |visitor: &Client<Router>| support::at(visitor, support::app(&nodes[1]));
        match what {
            "a logout" => {
                for visitor in visitors {
                    assert_eq!(visitor.copy().get("/logout").await.text, "Everywhere");
                }
            }
            "a login in another request" => {
                for visitor in visitors {
                    assert!(visitor.copy().get("/login").await.status.is_success());
                }
            }
            "it moves to another node" => {
                for visitor in visitors {
                    moves(&there(visitor)).await;
                }
            }
            "it moves, and is changed there" => {
                for visitor in visitors {
                    in_time(async { while there(visitor).get("/").await.text != "2" {} }).await;
                }
            }
            "it moves, and its new node dies" | "it is lost, and nobody has it" => {
                for visitor in visitors {
                    moves(&there(visitor)).await;
                }
                self.dies().await;
            }
            "it is lost, and begins anew" | "it is lost, and what is left is served" => {
                let mut moved = Vec::new();
                for visitor in visitors {
                    let there = there(visitor);
                    moves(&there).await;
                    moved.push(there);
                }
                // What is acknowledged there alone goes with that node.
                self.wired.cut();
                until("they are apart", || self.wired.nodes.iter().all(|node| node.members() == 1)).await;
                for moved in &moved {
                    assert_eq!(insist(moved, "/").await, "2");
                }
                self.dies().await;
                for moved in &moved {
                    let left = if what.ends_with("anew") { 0 } else { 1 };
                    let here = support::at(moved, support::app(self.here()));
                    assert_eq!(insist(&here, "/loss").await, format!("lost=true visits={left}"));
                }
            }
            "this node leaves in order" => drop(nodes[0].drain().await.unwrap()),
            "this node dies to its cluster" => nodes[0].shutdown_now(),
            "too few nodes are left" => self.dies().await,
            "it expires" => until("all are over", || nodes[0].stats().expired == visitors.len() as u64).await,
            _ => {}
        }
        if let Some(folder) = &self.folder {
            std::fs::rename(&folder.0, folder.0.with_extension("away")).unwrap();
            until("it is noticed", || self.here().readiness().answer().1.contains("the store")).await;
        }
    }

    /// The other node is killed.
    async fn dies(&mut self) {
        self.wired.nodes.remove(1).shutdown_now();
        until("it is alone", || self.here().members() == 1).await;
    }
}

/// The session goes to this node.
async fn moves(there: &Client<Router>) {
    in_time(async { while insist(there, "/info").await.split(' ').next() != Some("b") {} }).await;
}

#[test]
fn the_page_of_errors_has_the_tables() {
    let page = include_str!("../../../docs/errors.md");
    let rows = TABLE.iter().map(|(what, cells)| (what, &cells[..])).chain(LATER.iter().map(|(what, cells)| (what, &cells[..])));
    for (what, cells) in rows {
        let row = format!("| {what} | {} |", cells.join(" | "));
        assert!(page.lines().any(|line| line == row), "{row}");
    }
    assert!(page.contains(&format!("| meanwhile | {} |", CALLS.join(" | "))));
    assert!(page.contains(&format!("| since | {} |", LATER_CALLS.join(" | "))));
}

/// Visitors of the shop, one for each call.
async fn visitors(what: &str, shop: &Shop, play: &Play, calls: &[&str]) -> Vec<Client<Router>> {
    let visitors: Vec<_> = calls.iter().map(|_| browser(shop.app(play.here()))).collect();
    if !what.ends_with("there is no session") && !what.ends_with("without a cookie") {
        for visitor in &visitors {
            assert_eq!(insist(visitor, "/").await, "1");
            insist(visitor, "/read").await;
        }
    }
    visitors
}

/// Plays one row of the first table; what is wrong.
async fn row(what: &str, want: &[&str; 8], name: String) -> Vec<String> {
    let mut play = Play::of(what, &name).await;
    let mut shop = Shop::new();
    match what {
        "it has set more than fits" => shop.first = |session| session.set(LAST, "x".repeat(2 << 20)),
        "it has set what has no bytes" => shop.first = |session| session.set(NO_BYTES, NoBytes),
        _ => {}
    }
    let visitors = visitors(what, &shop, &play, &CALLS).await;
    let mut running = Vec::new();
    for (visitor, call) in visitors.iter().zip(CALLS) {
        let visitor = visitor.copy();
        running.push(tokio::spawn(async move { visitor.get(&format!("/calls/{call}")).await }));
    }
    until("all are open", || shop.reached.load(Ordering::Relaxed) == CALLS.len()).await;
    play.happens(what, &visitors).await;
    shop.go.send_replace(true);
    let mut wrong = Vec::new();
    for ((call, want), answer) in CALLS.iter().zip(want).zip(running) {
        let answer = in_time(answer).await.unwrap();
        let said = match answer.extensions.get() {
            Some(error) => commit_error(error),
            None => &answer.text,
        };
        if said != *want {
            wrong.push(format!("{what}, {call}: {said} instead of {want}"));
        }
    }
    wrong
}

/// Plays one row of the second table.
async fn later_row(what: &str, want: &[&str; 7], name: String) -> Vec<String> {
    let mut play = Play::of(what, &name).await;
    let (said, mut hear) = mpsc::channel(8);
    let shop = Shop { said, ..Shop::new() };
    let visitors = visitors(what, &shop, &play, &LATER_CALLS).await;
    for (visitor, call) in visitors.iter().zip(LATER_CALLS) {
        assert!(visitor.get(&format!("/later/{call}")).await.status.is_success());
    }
    play.happens(what, &visitors).await;
    shop.go.send_replace(true);
    let mut wrong = Vec::new();
    for _ in LATER_CALLS {
        let (call, said) = in_time(hear.recv()).await.unwrap();
        let want = want[LATER_CALLS.iter().position(|c| *c == call).unwrap()];
        if said != want {
            wrong.push(format!("{what}, {call}: {said} instead of {want}"));
        }
    }
    wrong
}

/// Most of a row is waiting, so they are played together.
async fn all_right(rows: impl Iterator<Item = impl Future<Output = Vec<String>> + Send + 'static>) {
    let rows: tokio::task::JoinSet<Vec<String>> = rows.collect();
    let wrong = rows.join_all().await.concat();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_a_session_each_call_says_what_is_true_of_it() {
    all_right(TABLE.iter().enumerate().map(|(n, (what, want))| row(what, want, format!("errors-{n}")))).await;
}

/// A session does not expire under a request that runs; a handle that outlives its request may see the end of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_a_session_after_its_request_each_call_says_what_is_true_of_it() {
    all_right(LATER.iter().enumerate().map(|(n, (what, want))| later_row(what, want, format!("errors-later-{n}")))).await;
}

/// What is asked after the event has passed makes no event any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_the_end_of_a_session_that_is_over_hears_how_it_ended() {
    for (what, want) in [("it expires", EndReason::Expired), ("a logout", EndReason::Invalidated)] {
        let mut play = Play::of(what, &format!("errors-ended-{}", what.len())).await;
        let (keep, mut kept) = mpsc::channel(8);
        let keeps = move |session: Session| async move { keep.try_send(session).unwrap() };
        let client = browser(routes().route("/keeps", get(keeps)).layer(play.here().layer()));
        client.get("/").await;
        client.get("/keeps").await;
        let session: Session = kept.recv().await.unwrap();
        play.happens(what, core::slice::from_ref(&client)).await;
        assert_eq!(in_time(session.ended()).await, want);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_owner_elsewhere_refuses_is_called_by_its_own_name() {
    let nodes = cluster("errors-late", 2, &[]).await;
    let shop = Shop::new();
    // Together they are too large: half of it is set here, after the session has gone where the other half is.
    let half = || "x".repeat(700 << 10);
    let (there, here) = (
        move |session: Session| async move { session.set(LAST, half()) },
        move |session: Session| async move { session.set(LAST.of("other"), half()) },
    );
    let (reached, go) = (shop.reached.clone(), shop.go.subscribe());
    let here = move |session: Session| async move {
        reached.fetch_add(1, Ordering::Relaxed);
        go.clone().wait_for(|go| *go).await.unwrap();
        here(session).await;
    };
    let app = |outlive: &Outlive| routes().route("/there", get(there)).route("/here", get(here.clone())).layer(outlive.layer());
    let client = browser(app(&nodes[0]));
    client.get("/").await;
    let slow = client.copy();
    let slow = tokio::spawn(async move { slow.get("/here").await });
    until("it is open", || shop.reached.load(Ordering::Relaxed) == 1).await;
    let moved = support::at(&client, app(&nodes[1]));
    insist(&moved, "/there").await;
    shop.go.send_replace(true);
    let answer = in_time(slow).await.unwrap();
    let error = answer.extensions.get::<CommitError>().unwrap();
    assert!(matches!(error, CommitError::TooLarge { got, .. } if *got > 1 << 20), "{error}");
    assert_eq!(insist(&moved, "/read").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_ended_says_so_and_sends_its_visitors_elsewhere() {
    async fn own(session: Result<Session, OpenError>) -> String {
        session.map_or_else(|error| format!("{error}; {:?}", error.retry()), |_| "here".to_owned())
    }
    let nodes = cluster("errors-ended", 1, &[]).await;
    let client = browser(routes().route("/own", get(own)).layer(nodes[0].layer()));
    client.get("/").await;
    nodes[0].shutdown_now();
    assert_eq!(client.get("/own").await.text, "the session cannot be had on this node for now: it has left its cluster; OtherNode");
    client.forget();
    let answer = client.get("/").await;
    let error = answer.extensions.get::<CommitError>().unwrap();
    assert_eq!((commit_error(error), error.retry()), ("Gone", Retry::OtherNode));
}

#[tokio::test]
async fn a_user_without_a_name_is_refused_and_the_session_stays_as_it_was() {
    let session = outlive::testing::session();
    session.set(VISITS, 1);
    let id = session.id();
    for name in [String::new(), "x".repeat(256)] {
        let error = session.login(&name).await.unwrap_err();
        assert!(matches!(error, LoginError::BadUser { got, limit: 255 } if got == name.len()), "{error}");
    }
    session.flush().await.unwrap();
    assert!(session.user().is_none() && session.id() == id);
    session.login(&"x".repeat(255)).await.unwrap();
    session.flush().await.unwrap();
    assert!(session.id() != id);
}
