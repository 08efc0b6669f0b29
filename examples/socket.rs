//! A WebSocket that writes into its visitor's session for as long as it is open, and ends with the session and with the server.

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use axum::routing::{get, post};
use outlive::{Key, Outlive, Session};
use std::io::IsTerminal;
use std::pin::pin;
use tokio::net::TcpListener;

const SAID: Key<Vec<String>> = Key::new("said");
const VISITED: Key<bool> = Key::new("visited");

async fn upgrade(State(outlive): State<Outlive>, session: Session, upgrade: WebSocketUpgrade) -> Response {
    // The session has to begin with this response: what comes through the socket later can set no cookie any more.
    session.set(VISITED, true);
    upgrade.on_upgrade(move |socket| talk(socket, session, outlive))
}

async fn talk(mut socket: WebSocket, session: Session, outlive: Outlive) {
    let (mut ended, mut draining) = (pin!(session.ended()), pin!(outlive.draining()));
    let close = loop {
        let message = tokio::select! {
            message = socket.recv() => message,
            // Signed out elsewhere, or expired: the socket does not outlive the login.
            _ = &mut ended => break Some((close_code::POLICY, "the session is over")),
            // This server leaves: the browser connects again, at another one. `run` waits until this function has returned.
            () = &mut draining => break Some((close_code::RESTART, "connect again")),
        };
        let Some(Ok(message)) = message else { break None };
        let Message::Text(text) = message else { continue };
        // The user did something. Without this an open socket would not keep the session alive.
        session.touch();
        let said = session.update(SAID, |said| {
            said.push(text.to_string());
            said.len()
        });
        // Other requests, and other nodes, know of it when this returns. What was not flushed is committed when `session` is dropped.
        let Ok(committed) = session.flush().await else { break Some((close_code::AGAIN, "try again")) };
        if socket.send(format!("{said} said, level reached: {}", committed.level).into()).await.is_err() {
            break None;
        }
    };
    if let Some((code, reason)) = close {
        // The other side may be gone.
        let _ = socket.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await;
    }
}

async fn said(session: Session) -> String {
    session.get_or_default(SAID).join("\n")
}

async fn logout(session: Session) -> Result<String, outlive::CommitError> {
    session.invalidate().await.map(|ended| format!("signed out: {ended:?}\n"))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    let outlive = Outlive::builder().store("sqlite:sessions.db").env().start().await?;
    let app = Router::new().route("/socket", get(upgrade)).route("/said", get(said)).route("/logout", post(logout));
    let app = app.layer(outlive.layer()).with_state(outlive.clone());
    let listener = TcpListener::bind(("127.0.0.1", std::env::var("PORT").map_or(Ok(3000), |p| p.parse()).context("a bad PORT")?)).await?;
    println!("http://{}", listener.local_addr()?);
    Ok(outlive.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained)).await?)
}
