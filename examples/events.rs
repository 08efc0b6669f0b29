//! Server-sent events: a page that shows what other pages of the visitor change. The stream is open for hours; the session must not live
//! longer for it, and it must end with the session and with the server.

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::{get, post};
use futures_util::stream::{Stream, unfold};
use outlive::{Key, Outlive, Session};
use std::convert::Infallible;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::net::TcpListener;

const ITEMS: Key<u64> = Key::new("items");

async fn add(session: Session) -> String {
    session.update(ITEMS, |n| *n += 1);
    format!("{} items\n", session.get_or_default(ITEMS))
}

async fn events(State(outlive): State<Outlive>, session: Session) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    // Both borrow nothing, so they may be kept in the stream.
    let (ended, draining) = (Box::pin(session.ended()), Box::pin(outlive.draining()));
    let stream = unfold((session, ended, draining, None), |(session, mut ended, mut draining, last)| async move {
        loop {
            tokio::select! {
                // Signed out, or expired: `refresh` alone would notice, a moment later.
                _ = &mut ended => return None,
                // This server leaves: the browser connects again, at another one.
                () = &mut draining => return None,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
            // The newest state, here or on another node. It is a look and no use: an open page does not keep a session alive.
            if session.refresh().await.is_err() {
                return None;
            }
            let items = session.get_or_default(ITEMS);
            if last.as_ref() != Some(&items) {
                let event = Event::default().data(items.to_string());
                return Some((Ok(event), (session, ended, draining, Some(items))));
            }
        }
    });
    Sse::new(stream).keep_alive(KeepAlive::default())
}

async fn logout(session: Session) -> Result<String, outlive::CommitError> {
    session.invalidate().await.map(|ended| format!("signed out: {ended:?}\n"))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    let outlive = Outlive::builder().store("sqlite:sessions.db").env().start().await?;
    let app = Router::new().route("/add", post(add)).route("/events", get(events)).route("/logout", post(logout));
    let app = app.layer(outlive.layer()).with_state(outlive.clone());
    let listener = TcpListener::bind(("127.0.0.1", std::env::var("PORT").map_or(Ok(3000), |p| p.parse()).context("a bad PORT")?)).await?;
    println!("http://{}", listener.local_addr()?);
    Ok(outlive.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained)).await?)
}
