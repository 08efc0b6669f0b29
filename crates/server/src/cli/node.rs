//! `outlive node`: keeps copies for applications on other nodes.

use crate::config::{Durability, NodeConfig};
use crate::members;
use anyhow::Context as _;
use axum::Router;
use axum::routing::get;
use http::StatusCode;
use outlive_core::config::Durability as EngineDurability;
use outlive_runtime::{Node, Readiness};
use std::process::ExitCode;
use tokio::net::TcpListener;

/// Runs until a signal; then what it holds moves to others. A second signal waits for nothing but the store.
pub(super) async fn run(config: NodeConfig) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind((config.ready.host(), config.ready.port()))
        .await
        .with_context(|| format!("cannot listen on {}", config.ready))?;
    let ready = listener.local_addr()?;
    let drain_timeout = config.drain_timeout;
    let ended = super::interrupted();
    let node: Node<()> = Node::start(settings(config).await?).await?;
    let asked = node.clone();
    let app = Router::new().route("/ready", get(move || std::future::ready(answer(asked.readiness()))));
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    println!("ready http://{ready}");
    println!("peer {}", node.me().addr);
    ended.await;
    let mut drain = std::pin::pin!(node.drain(drain_timeout));
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

async fn settings(config: NodeConfig) -> anyhow::Result<outlive_runtime::NodeConfig> {
    let mut node = outlive_runtime::NodeConfig::default();
    node.store = members::store(config.store.as_deref()).await?;
    node.name = config.name;
    node.zone = config.zone;
    node.cluster = config.cluster;
    node.listen = Some(config.peer);
    node.advertise = config.advertise;
    node.join = config.join;
    node.secret = config.secret.map(|secret| secret.0);
    node.danger_plain_peers = config.danger_plain_peers;
    (node.engine.durability, node.engine.backups) = match config.durability {
        Durability::Owner => (EngineDurability::Owner, node.engine.backups),
        Durability::Backup(copies) => (EngineDurability::Backup, copies),
        Durability::Store => (EngineDurability::Store, node.engine.backups),
    };
    node.engine.on_lost = config.on_lost;
    node.engine.limits = config.limits;
    Ok(node)
}

fn answer(readiness: Readiness) -> (StatusCode, String) {
    let status = if readiness.is_fit() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, readiness.to_string())
}
