//! Handlers with tests: called directly with a session, or through the whole application by a client with a cookie jar. The feature
//! `testing` of outlive, for `[dev-dependencies]`.

use anyhow::Context;
use axum::{Router, http::StatusCode, routing::get, routing::post};
use outlive::{Key, Outlive, Session};
use std::io::IsTerminal;
use tokio::net::TcpListener;

const VOTES: Key<u32> = Key::new("votes");

async fn vote(session: Session) -> Result<String, StatusCode> {
    let votes = session.try_update(VOTES, |n| {
        *n += 1;
        if *n > 2 { Err(StatusCode::FORBIDDEN) } else { Ok(*n) }
    })?;
    Ok(format!("vote {votes}\n"))
}

async fn count(session: Session) -> String {
    session.get_or_default(VOTES).to_string()
}

fn app(outlive: &Outlive) -> Router {
    Router::new().route("/", get(count)).route("/vote", post(vote)).layer(outlive.layer())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    let outlive = Outlive::builder().store("sqlite:sessions.db").start().await?;
    let listener = TcpListener::bind(("127.0.0.1", std::env::var("PORT").map_or(Ok(3000), |p| p.parse()).context("a bad PORT")?)).await?;
    println!("http://{}", listener.local_addr()?);
    let app = app(&outlive);
    Ok(outlive.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use outlive::testing;

    #[tokio::test]
    async fn a_handler_is_a_function_of_a_session() {
        let session = testing::session();
        assert_eq!(vote(session.clone()).await.unwrap(), "vote 1\n");
        assert_eq!(vote(session.clone()).await.unwrap(), "vote 2\n");
        assert_eq!(vote(session.clone()).await.unwrap_err(), StatusCode::FORBIDDEN);
        assert_eq!(session.get(VOTES).as_deref(), Some(&2), "the third vote was not kept");
    }

    #[tokio::test]
    async fn a_client_keeps_its_cookies_as_a_browser_does() {
        let app = app(&Outlive::in_memory());
        let (ada, bob) = (testing::client(app.clone()), testing::client(app));
        ada.post("/vote", "").await;
        ada.post("/vote", "").await;
        assert_eq!(ada.post("/vote", "").await.status, StatusCode::FORBIDDEN);
        assert_eq!((ada.get("/").await.text, bob.get("/").await.text), ("2".into(), "0".into()));
        assert!(bob.cookies().is_empty(), "who has only looked has no session");
    }
}
