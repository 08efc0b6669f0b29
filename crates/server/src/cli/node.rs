//! `outlive node`: keeps copies for applications on other nodes.

use crate::config::NodeConfig;
use anyhow::Context as _;
use axum::Router;
use axum::routing::get;
use http::StatusCode;
use outlive_runtime::{Node, Readiness};
use std::process::ExitCode;
use tokio::net::TcpListener;

/// Runs until a signal; then what it holds moves to others. A second signal waits for nothing but the store.
pub(super) async fn run(config: NodeConfig) -> anyhow::Result<ExitCode> {
    let ready = config.ready();
    let listener = TcpListener::bind((ready.host(), ready.port())).await.with_context(|| format!("cannot listen on {ready}"))?;
    let ready = listener.local_addr()?;
    let ended = super::interrupted();
    let node: Node<()> = Node::start(config.config.node().await?).await?;
    let asked = node.clone();
    let app = Router::new().route("/ready", get(move || std::future::ready(answer(asked.readiness()))));
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    println!("ready http://{ready}");
    println!("peer {}", node.me().addr);
    ended.await;
    let mut drain = std::pin::pin!(node.drain(config.config.drain_limit()));
    let report = tokio::select! {
        report = &mut drain => report,
        () = super::interrupted() => {
            node.drain_faster();
            drain.await
        }
    };
    server.abort();
    anyhow::ensure!(report.abandoned == 0, "{} sessions are not known to be safe elsewhere", report.abandoned);
    Ok(ExitCode::SUCCESS)
}

fn answer(readiness: Readiness) -> (StatusCode, String) {
    let status = if readiness.is_fit() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, readiness.to_string())
}
