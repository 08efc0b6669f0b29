//! A counter that outlives its server. Start it several times in one folder, each on its own `PORT`, then kill one.

use anyhow::Context;
use axum::{Router, routing::get};
use outlive::{Key, Outlive, Session};
use std::io::IsTerminal;
use tokio::net::TcpListener;

const VISITS: Key<u64> = Key::new("visits");

#[rustfmt::skip]
async fn visits(session: Session) -> String {
    format!("visit {}\n", session.update(VISITS, |n| { *n += 1; *n }))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    let outlive = Outlive::builder().store("sqlite:sessions.db").start().await?;
    let app = Router::new().route("/", get(visits)).layer(outlive.layer());
    let listener = TcpListener::bind(("127.0.0.1", std::env::var("PORT").map_or(Ok(3000), |p| p.parse()).context("a bad PORT")?)).await?;
    println!("http://{}", listener.local_addr()?);
    Ok(outlive.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained)).await?)
}
