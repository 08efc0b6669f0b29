//! The workload application: the same paths and answers as the rivals it is measured beside.

use anyhow::Context;
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use core::fmt::Write as _;
use core::time::Duration;
use outlive::{CommitError, Committed, Config, Cookie, Key, LoginError, Outlive, Session};
use serde::Deserialize;
use std::net::SocketAddr;
use tokio::net::TcpListener;

mod shop;

/// Flags of `outlive-bench app`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where HTTP is served; give it several times for several addresses.
    #[arg(long, required = true)]
    http: Vec<SocketAddr>,
    #[arg(long, help = what("node"))]
    name: String,
    #[arg(long, help = what("peer"))]
    peer: SocketAddr,
    #[arg(long, help = what("join"))]
    join: Vec<String>,
    #[arg(long, help = what("durability"))]
    durability: Option<String>,
    #[arg(long, help = what("consistency"))]
    consistency: Option<String>,
    #[arg(long, help = what("store"))]
    store: Option<String>,
    // There are no balancers in most measurements.
    #[arg(long, default_value = "0s", help = what("drain_notice"))]
    drain_notice: String,
    #[arg(long, help = what("drain_timeout"))]
    drain_timeout: Option<String>,
    #[arg(long, help = what("session.idle_timeout"))]
    idle_timeout: Option<String>,
    /// Writes the log to standard error, from this level on: `warn`, `info` or `debug`. Otherwise there is none.
    #[arg(long)]
    log: Option<tracing::Level>,
    /// Whether the session id travels in a cookie or in a header.
    #[arg(long, default_value = "cookie")]
    carrier: Carrier,
}

/// What a setting is, and its default.
fn what(path: &str) -> String {
    let setting = Config::settings().into_iter().find(|setting| setting.path == path);
    setting.map_or_else(String::new, |setting| match setting.default {
        Some(default) => format!("{} (the library's default: {default})", setting.what),
        None => setting.what.to_owned(),
    })
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Carrier {
    Cookie,
    Header,
}

const N: Key<u64> = Key::new("n");
const BLOB: Key<String> = Key::new("blob");
const LOG: Key<Vec<String>> = Key::new("log");
const LIST: Key<Vec<u64>> = Key::new("list");
const A: Key<String> = Key::new("a");
const B: Key<String> = Key::new("b");
const VALUE: Key<String> = Key::new("value");

#[derive(Clone)]
struct App {
    outlive: Outlive,
    name: std::sync::Arc<str>,
}

#[derive(Deserialize, Default)]
struct Params {
    n: Option<usize>,
    k: Option<String>,
    v: Option<String>,
    ms: Option<u64>,
    user: Option<String>,
    fail: Option<u8>,
    panic: Option<u8>,
}

/// Starts the node and serves until SIGTERM, which drains it.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    if let Some(level) = args.log {
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_max_level(level).init();
    }
    let mut config = Config::default();
    // For a gateway that learns its members.
    let http = args.http.iter().find(|addr| addr.port() != 0).map(SocketAddr::to_string);
    let settings = [
        ("store", args.store),
        ("durability", args.durability),
        ("consistency", args.consistency),
        ("on_lost", Some("serve".to_owned())),
        ("node", Some(args.name.clone())),
        ("cluster", Some("outlive-bench".to_owned())),
        ("drain_notice", Some(args.drain_notice)),
        ("drain_timeout", args.drain_timeout),
        ("session.idle_timeout", args.idle_timeout),
        ("http", http),
    ];
    let given = settings.iter().filter_map(|(path, text)| Some((path, text.as_ref()?)));
    let wrong: Vec<String> = given.filter_map(|(path, text)| config.set(path, text).err()).collect();
    anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    let cookie = match args.carrier {
        Carrier::Cookie => Cookie::new().name("OUTLIVESID").danger_plain_http(),
        Carrier::Header => Cookie::header("outlive-session"),
    };
    let outlive = Outlive::builder().config(config).cookie(cookie).peer(args.peer).join(&args.join).start().await?;
    let app = router(&outlive, &args.name);
    let mut listeners = Vec::new();
    for addr in &args.http {
        listeners.push(TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))?);
    }
    outlive
        .run(|drained| async move {
            // Here signals are listened to already: whoever reads this may ask the node to leave at once.
            for listener in &listeners {
                println!("ready http://{}", listener.local_addr()?);
            }
            let (stop, stopped) = tokio::sync::watch::channel(false);
            let mut servers = tokio::task::JoinSet::new();
            for listener in listeners {
                let (app, mut stopped) = (app.clone(), stopped.clone());
                servers.spawn(async move {
                    let end = async move {
                        let _ = stopped.wait_for(|stop| *stop).await;
                    };
                    axum::serve(listener, app).with_graceful_shutdown(end).await
                });
            }
            drained.await;
            stop.send_replace(true);
            while let Some(served) = servers.join_next().await {
                served.map_err(std::io::Error::other)??;
            }
            Ok::<_, std::io::Error>(())
        })
        .await?;
    Ok(())
}

fn router(outlive: &Outlive, name: &str) -> Router {
    let app = App { outlive: outlive.clone(), name: name.into() };
    Router::new()
        .route("/inc", get(inc))
        .route("/incblob", get(incblob))
        .route("/size", get(size))
        .route("/read", get(read))
        .route("/append", get(append))
        .route("/log", get(log))
        .route("/mut", get(mutate))
        .route("/put", get(put))
        .route("/who", get(who))
        .route("/login", get(login))
        .route("/invalidate", get(invalidate))
        .route("/info", get(info))
        .merge(shop::routes())
        .route_layer(from_fn(misbehave))
        .layer(outlive.layer())
        .layer(from_fn(tell))
        .route("/plain", get(plain))
        .route("/heap", get(heap))
        .route("/ready", get(outlive.readiness()))
        .route("/live", get(outlive.liveness()))
        .with_state(app)
}

/// `fail=1` turns the answer into a 500 after the handler's changes, `panic=1` panics there: neither change may be seen afterwards.
async fn misbehave(Query(q): Query<Params>, request: Request, next: Next) -> Response {
    let answer = next.run(request).await;
    #[expect(clippy::panic, reason = "this is what it was asked for")]
    if q.panic == Some(1) {
        panic!("as asked");
    }
    if q.fail == Some(1) { StatusCode::INTERNAL_SERVER_ERROR.into_response() } else { answer }
}

/// For a client that asks for it: the level that the commit reached, or whether it is unknown or refused. Only known when the session's
/// layer has ended the request.
async fn tell(request: Request, next: Next) -> Response {
    let wanted = request.headers().contains_key("tell");
    let mut answer = next.run(request).await;
    if wanted {
        let (done, failed) = (answer.extensions().get::<Committed>(), answer.extensions().get::<CommitError>());
        let outcome = match (done, failed) {
            (_, Some(CommitError::Unknown)) => Some("unknown".to_owned()),
            (_, Some(_)) => Some("refused".to_owned()),
            (Some(done), None) => Some(done.level.to_string()),
            (None, None) => None,
        };
        if let Some(outcome) = outcome.and_then(|text| text.parse().ok()) {
            answer.headers_mut().insert("outcome", outcome);
        }
    }
    answer
}

impl App {
    /// One line of an answer; `lost=1` once after a loss.
    fn line(&self, session: Option<&Session>, rest: core::fmt::Arguments<'_>) -> String {
        let mut line = format!("node={} {rest}", self.name);
        if session.is_some_and(|s| s.loss().is_some()) {
            line.push_str(" lost=1");
        }
        line.push('\n');
        line
    }
}

async fn plain(State(app): State<App>) -> String {
    app.line(None, format_args!("ok"))
}

async fn inc(State(app): State<App>, s: Session) -> String {
    let n = s.update(N, |n| {
        *n += 1;
        *n
    });
    app.line(Some(&s), format_args!("n={n}"))
}

async fn incblob(State(app): State<App>, s: Session, Query(q): Query<Params>) -> String {
    let n = s.update(N, |n| {
        *n += 1;
        *n
    });
    // Fresh bytes: a value that equals the last one would not be a change.
    s.set(BLOB, fill(q.n.unwrap_or(0), n));
    app.line(Some(&s), format_args!("n={n}"))
}

fn fill(length: usize, seed: u64) -> String {
    let letter = char::from(b'a' + (seed % 26) as u8);
    core::iter::repeat_n(letter, length).collect()
}

async fn size(State(app): State<App>, s: Session, Query(q): Query<Params>) -> String {
    s.set(BLOB, fill(q.n.unwrap_or(0), 23));
    let blob = s.get(BLOB).map_or(0, |b| b.len());
    app.line(Some(&s), format_args!("blob={blob}"))
}

async fn read(State(app): State<App>, s: Session) -> String {
    let n = s.get(N).map_or(0, |n| *n);
    app.line(Some(&s), format_args!("n={n}"))
}

async fn append(State(app): State<App>, s: Session, Query(q): Query<Params>) -> String {
    let seen = s.get(LOG).map_or(0, |l| l.len());
    wait(q.ms).await;
    let v = q.v.unwrap_or_default();
    let len = s.update(LOG, |log| {
        log.push(v);
        log.len()
    });
    app.line(Some(&s), format_args!("len={len} seen={seen}"))
}

async fn log(State(app): State<App>, s: Session) -> String {
    let log = s.get(LOG).unwrap_or_default();
    app.line(Some(&s), format_args!("len={} log={}", log.len(), log.join(",")))
}

async fn mutate(State(app): State<App>, s: Session) -> String {
    let len = s.update(LIST, |list| {
        list.push(list.len() as u64);
        list.len()
    });
    app.line(Some(&s), format_args!("list={len}"))
}

async fn put(State(app): State<App>, s: Session, Query(q): Query<Params>) -> String {
    // Loads the session before it waits, as a handler would.
    let _ = s.get(N);
    wait(q.ms).await;
    let v = q.v.unwrap_or_default();
    match q.k.as_deref() {
        Some("a") => s.set(A, v),
        Some("b") => s.set(B, v),
        other => s.set(VALUE.of(other.unwrap_or("")), v),
    }
    let text = |key| s.get(key).map_or_else(|| "null".to_owned(), |v: std::sync::Arc<String>| v.to_string());
    app.line(Some(&s), format_args!("a={} b={}", text(A), text(B)))
}

async fn wait(ms: Option<u64>) {
    if let Some(ms) = ms.filter(|ms| *ms > 0) {
        tokio::time::sleep(Duration::from_millis(ms.min(120_000))).await;
    }
}

async fn who(State(app): State<App>, s: Option<Session>) -> String {
    let Some(s) = s else { return app.line(None, format_args!("n=0 list=0 blob=0 a=null b=null")) };
    let text = |key| s.get(key).map_or_else(|| "null".to_owned(), |v: std::sync::Arc<String>| v.to_string());
    let (n, list, blob) = (s.get(N).map_or(0, |n| *n), s.get(LIST).map_or(0, |l| l.len()), s.get(BLOB).map_or(0, |b| b.len()));
    app.line(Some(&s), format_args!("n={n} list={list} blob={blob} a={} b={}", text(A), text(B)))
}

async fn login(State(app): State<App>, s: Session, Query(q): Query<Params>) -> Result<String, LoginError> {
    let user = q.user.unwrap_or_else(|| "nobody".to_owned());
    s.login(&user).await?;
    Ok(app.line(Some(&s), format_args!("user={user}")))
}

async fn invalidate(State(app): State<App>, s: Session) -> Result<String, CommitError> {
    let ended = s.invalidate().await?;
    Ok(app.line(None, format_args!("ended={ended:?}")))
}

async fn info(State(app): State<App>, s: Option<Session>) -> String {
    let i = s.as_ref().map(Session::info).unwrap_or_default();
    let level = i.level.map_or_else(|| "null".to_owned(), |l| l.to_string());
    let owner = i.owner.as_deref().unwrap_or("null");
    app.line(
        s.as_ref(),
        format_args!("owner={owner} epoch={} version={} level={level} backups={}", i.epoch, i.version, i.backups.join(",")),
    )
}

async fn heap(State(app): State<App>) -> String {
    let stats = app.outlive.stats().engine;
    // Resident pages of 4 KiB, as Linux counts them.
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    let mut line = String::new();
    let _ = write!(
        line,
        "heap={} sessions={} backed={} under_replicated={} membership={:016x} settled={}",
        pages * 4096,
        stats.owned,
        stats.backed,
        stats.under_replicated,
        stats.membership,
        stats.settled
    );
    app.line(None, format_args!("{line}"))
}
