//! One application process of the demo: the shop on a node of its own. It says on its standard output what happens to it.

use crate::clock::wall_ms;
use crate::demo::shop;
use crate::demo::world::{From, Happening, NodeStats, Said};
use anyhow::Context as _;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use outlive::{Config, Cookie, Event, EventKind, MissedEvents, Outlive, Session, Source};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

/// How often it looks at its numbers.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often it says them: every so many looks, and when it sees a member come or go.
const SAY_EVERY: u32 = 10;

/// What the parent process tells it.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) http: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) name: String,
    pub(crate) cluster: String,
    pub(crate) store: String,
    pub(crate) durability: String,
    pub(crate) join: Vec<String>,
}

/// Says one thing to the parent. A parent that is gone cannot be told anything.
fn say(said: &Said) {
    use std::io::Write as _;
    if let Ok(text) = serde_json::to_string(said) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}

/// Runs until a signal, or until the parent is gone.
pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    tokio::spawn(end_with_parent());
    let listener = TcpListener::bind(options.http).await.with_context(|| format!("cannot listen on {}", options.http))?;
    let http = listener.local_addr()?;
    let outlive = start(&options, http).await?;
    let name: Arc<str> = options.name.into();
    let app =
        shop::routes().layer(from_fn(move |session, request, next| facts(name.clone(), session, request, next))).layer(outlive.layer());
    tokio::spawn(tell_events(outlive.clone()));
    tokio::spawn(tell_numbers(outlive.clone()));
    let leaving = outlive.draining();
    tokio::spawn(async move {
        leaving.await;
        say(&Said::Leaving { t: wall_ms() });
    });
    say(&Said::Ready { t: wall_ms(), http, peer: outlive.peer_addr().parse().ok() });
    outlive.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained).into_future()).await?;
    Ok(ExitCode::SUCCESS)
}

async fn start(options: &Options, http: SocketAddr) -> anyhow::Result<Outlive> {
    let mut config = Config::default();
    let mut settings = vec![
        ("cluster", options.cluster.as_str()),
        ("store", &options.store),
        ("durability", &options.durability),
        // The page shows what is left, and says what is not.
        ("on_lost", "serve"),
        // The gateway hears of it from the node itself.
        ("drain_notice", "0s"),
    ];
    let http = http.to_string();
    settings.push(("http", &http));
    if options.durability == "owner" {
        // "No copy" is to mean it.
        settings.push(("backups", "0"));
        // Nobody wants to watch half a minute for a node that will not come back.
        settings.push(("lost_after", "5s"));
    }
    for (path, value) in settings {
        config.set(path, value).map_err(anyhow::Error::msg)?;
    }
    let cookie = Cookie::new().name("OUTLIVESID").danger_plain_http();
    let builder = Outlive::builder().config(config).node(&options.name).peer(options.peer).join(&options.join).cookie(cookie);
    Ok(builder.start().await?)
}

/// The parent holds the other end of standard input and never writes: its end is the parent's end.
async fn end_with_parent() {
    let mut nothing = [0; 64];
    while tokio::io::stdin().read(&mut nothing).await.is_ok_and(|n| n > 0) {}
    std::process::exit(0);
}

async fn tell_events(outlive: Outlive) {
    let mut events = outlive.events();
    loop {
        let Event { key, kind, .. } = match events.next().await {
            Ok(event) => event,
            Err(MissedEvents::Dropped(_)) => continue,
            Err(_) => return,
        };
        let mut from = None;
        let (what, with) = match kind {
            EventKind::Moved { from: before, source } => {
                from = Some(told(source));
                (Happening::Moved, before.into_iter().collect())
            }
            EventKind::Left => (Happening::Left, Vec::new()),
            EventKind::Backed { owner } => (Happening::Backed, vec![owner]),
            EventKind::Replicated { on } => (Happening::Replicated, on),
            EventKind::Lost => (Happening::Lost, Vec::new()),
            EventKind::Expired => (Happening::Expired, Vec::new()),
            EventKind::Invalidated | EventKind::Rotated => (Happening::Ended, Vec::new()),
            _ => continue,
        };
        say(&Said::Session { t: wall_ms(), key, what, with, from });
    }
}

fn told(source: Source) -> From {
    match source {
        Source::Copy => From::Copy,
        Source::Node(name) => From::Node(name),
        Source::Store => From::Store,
        Source::Nothing => From::Nothing,
        _ => From::Several,
    }
}

async fn tell_numbers(outlive: Outlive) {
    let (mut members, mut oldest) = (0, Duration::ZERO);
    for look in 0u32.. {
        let engine = outlive.stats().engine;
        let seen = engine.members;
        oldest = oldest.max(engine.dirty_age);
        if seen != members && members > 0 {
            say(&Said::Member { t: wall_ms(), count: seen, fewer: seen < members });
        }
        if look % SAY_EVERY == 0 || seen != members {
            let dirty_age_ms = u64::try_from(std::mem::take(&mut oldest).as_millis()).unwrap_or(u64::MAX);
            let (owned, held, under_replicated) = (engine.owned, engine.backed, engine.under_replicated);
            say(&Said::Stats { t: wall_ms(), stats: NodeStats { members: seen, owned, held, under_replicated, dirty_age_ms } });
        }
        members = seen;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Tells in headers what the page shows: which node answered, and how safe the session is. Applications need nothing of this.
async fn facts(node: Arc<str>, session: Session, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let failed = response.status().is_server_error();
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    };
    set("x-demo-node", &node);
    if failed {
        return response;
    }
    let info = match session.flush().await {
        Ok(committed) => {
            set("x-demo-level", &committed.level.to_string());
            session.info()
        }
        Err(error) => return error.into_response(),
    };
    set("x-demo-session", &info.key);
    set("x-demo-owner", info.owner.as_deref().unwrap_or_default());
    let copies: Vec<&str> = info.backups.iter().map(String::as_str).filter(|name| Some(*name) != info.owner.as_deref()).collect();
    set("x-demo-copies", &copies.join(","));
    response
}
