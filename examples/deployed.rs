//! The program that [docs/deploy.md](../docs/deploy.md) puts on three machines: what the counter is, with what an operator needs. All
//! settings come from the environment, two routes are for those who look after it, and its log goes to standard error.

use axum::{Router, routing::get};
use outlive::{Key, Outlive, Session};
use std::io::IsTerminal;
use tokio::net::TcpListener;

const VISITS: Key<u32> = Key::new("visits");

async fn visits(session: Session) -> String {
    let n = session.update(VISITS, |n| {
        *n += 1;
        *n
    });
    format!("visit {n}, served by {}\n", std::env::var("OUTLIVE_NODE").unwrap_or_default())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Colours are for terminals: in a file they are noise.
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    let outlive = Outlive::from_env().await?;
    let app = Router::new().route("/", get(visits)).layer(outlive.layer());
    // Should requests be sent here? Is it of any use?
    let app = app.route("/ready", get(outlive.readiness())).route("/live", get(outlive.liveness()));
    let listener = TcpListener::bind(std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".to_owned())).await?;
    println!("http://{}", listener.local_addr()?);
    outlive.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained)).await?;
    Ok(())
}
