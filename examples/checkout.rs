//! Three nodes, and what a handler does where others have a say: how many nodes know of a payment before the money moves, and what to
//! answer when nobody knows whether a change survived, or when somebody else was faster.
//!
//! Start it three times in one folder, each with another `PORT`, and kill one of them. It reads its environment: `OUTLIVE_NODE=a` names
//! a node, `OUTLIVE_MIN_BACKUPS=1` refuses a payment that no other node would know of.

use anyhow::Context;
use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::get};
use outlive::{CommitError, Key, Level, Outlive, Session};
use serde::Deserialize;
use std::io::IsTerminal;
use tokio::net::TcpListener;

/// By order: paying the same order twice is one payment, so that a client may try again whenever it does not know.
const PAID: Key<u32> = Key::new("paid");

#[derive(Deserialize)]
struct Order {
    order: String,
    amount: u32,
}

async fn pay(session: Session, Query(order): Query<Order>) -> Response {
    if let Some(amount) = session.get(PAID.of(&order.order)) {
        return format!("{amount} was paid already\n").into_response();
    }
    session.set(PAID.of(&order.order), order.amount);
    // Commits now instead of after the handler; what has been committed is no longer rolled back.
    match session.flush().await {
        Ok(committed) if committed.level == Level::Owner => {
            // It counts, and would be gone with this process. `min_backups` refuses instead.
            format!("{} is paid; no other node knows of it yet\n", order.amount).into_response()
        }
        Ok(committed) => format!("{} is paid; level reached: {}\n", order.amount, committed.level).into_response(),
        // It went out, it is kept, and it is sent again: look before doing it once more. Here the order's name makes that safe.
        Err(CommitError::Unknown) => {
            (StatusCode::SERVICE_UNAVAILABLE, "it is not known whether it was paid: send the same order again\n").into_response()
        }
        // While this handler ran the session moved, and there another request changed the same attribute. Nothing of this one was kept.
        Err(CommitError::Conflict) => (StatusCode::CONFLICT, "another page of yours was faster: nothing was paid here\n").into_response(),
        // 503 or 500, each with its sentence.
        Err(error) => error.into_response(),
    }
}

async fn place(session: Session) -> String {
    let info = session.info();
    let lost = if session.loss().is_some() { "; your last change could not be recovered" } else { "" };
    format!("owner {}, copies on {:?}{lost}\n", info.owner.unwrap_or_default(), info.backups)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    let outlive = Outlive::builder().store("sqlite:sessions.db").env().start().await?;
    let app = Router::new().route("/pay", get(pay)).route("/place", get(place)).layer(outlive.layer());
    // A balancer asks here whether to send requests: 503 as soon as this node begins to leave.
    let app = app.route("/ready", get(outlive.readiness()));
    let listener = TcpListener::bind(("127.0.0.1", std::env::var("PORT").map_or(Ok(3000), |p| p.parse()).context("a bad PORT")?)).await?;
    println!("http://{}", listener.local_addr()?);
    Ok(outlive.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained)).await?)
}
