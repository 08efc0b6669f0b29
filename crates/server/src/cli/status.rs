//! `outlive status`: how a cluster is, for people and for scripts.

use crate::config::StatusConfig;
use crate::members;
use outlive::settings::Spelling as _;
use outlive_runtime::{ClusterStatus, NodeConfig, NodeStatus, status_of};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// Ends with this if nobody tells.
const UNREACHABLE: u8 = 2;

/// Asks, prints, and says by its exit status how it is.
pub(super) async fn run(config: StatusConfig) -> anyhow::Result<ExitCode> {
    let json = config.json();
    match ask(config).await {
        Ok(cluster) => {
            println!("{}", if json { format!("{:#}", as_json(&cluster)) } else { as_table(&cluster) });
            Ok(if cluster.is_healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(error) => {
            if json {
                println!("{:#}", json!({ "health": "unreachable", "error": format!("{error:#}") }));
            }
            eprintln!("outlive: {error:#}");
            Ok(ExitCode::from(UNREACHABLE))
        }
    }
}

async fn ask(config: StatusConfig) -> anyhow::Result<ClusterStatus> {
    let mut node = NodeConfig::default();
    node.join = config.join();
    node.secret = config.secret.map(|secret| secret.0);
    node.danger_plain_peers = config.danger_plain_peers();
    node.store = members::store(config.store.as_ref()).await?;
    Ok(status_of(&node).await?)
}

fn health(cluster: &ClusterStatus) -> &'static str {
    if cluster.is_healthy() { "healthy" } else { "degraded" }
}

fn hex(id: &[u8; 16]) -> String {
    id.iter().take(4).map(|b| format!("{b:02x}")).collect()
}

// ---- for scripts --------------------------------------------------------------------------------------------------------------------

fn as_json(cluster: &ClusterStatus) -> Value {
    let nodes: Vec<Value> = cluster
        .nodes
        .iter()
        .map(|(name, status)| match status {
            Ok(status) => node_json(status),
            Err(why) => json!({ "name": name, "reached": false, "why": why }),
        })
        .collect();
    json!({ "cluster": cluster.cluster, "health": health(cluster), "nodes": nodes, "observers": cluster.observers })
}

fn node_json(s: &NodeStatus) -> Value {
    let members: Vec<Value> = s
        .members
        .iter()
        .map(|m| json!({ "name": m.name, "peer": m.addr, "observer": m.observer, "suspect": m.suspect, "leaving": m.leaving }))
        .collect();
    json!({
        "name": s.name, "reached": true, "peer": s.addr, "http": s.http, "release": s.release, "protocol": s.protocol,
        "readiness": s.readiness, "fit": s.fit, "durability": s.durability, "backups": s.backups, "min_backups": s.min_backups,
        "idle_timeout_ms": s.idle_timeout_ms, "lifetime_ms": s.lifetime_ms, "store": s.store.as_ref().map(hex),
        "owned": s.owned, "copies": s.copies, "under_replicated": s.under_replicated, "dirty": s.dirty, "dirty_age_ms": s.dirty_age_ms,
        "settled": s.settled, "members": members,
    })
}

// ---- for people ---------------------------------------------------------------------------------------------------------------------

fn as_table(cluster: &ClusterStatus) -> String {
    let head = ["node", "state", "release", "durability", "copies", "idle", "owned", "held", "missing", "unwritten", "peer", "http"];
    let mut rows: Vec<Vec<String>> = vec![head.map(str::to_owned).to_vec()];
    let mut notes = Vec::new();
    for (name, status) in &cluster.nodes {
        match status {
            Ok(s) => {
                rows.push(row(s));
                if let Some((_, why)) = s.readiness.split_once(": ") {
                    notes.push(format!("{name}: {why}"));
                }
            }
            Err(why) => {
                rows.push(vec![name.clone(), "unreachable".to_owned()]);
                notes.push(format!("{name}: {why}"));
            }
        }
    }
    let known = |s: &NodeStatus| s.members.iter().filter(|m| !m.observer).count();
    for (name, s) in cluster.nodes.iter().filter_map(|(name, s)| Some((name, s.as_ref().ok()?))) {
        if known(s) != cluster.nodes.len() {
            notes.push(format!("{name}: it knows {} nodes, and there are {}", known(s), cluster.nodes.len()));
        }
        if !s.settled {
            notes.push(format!("{name}: copies are still being placed anew after the last change of the members"));
        }
    }
    let count = cluster.nodes.len();
    let mut text = format!("cluster {}: {}, {count} node{}\n\n", cluster.cluster, health(cluster), if count == 1 { "" } else { "s" });
    text += &columns(&rows);
    if !cluster.observers.is_empty() {
        text += &format!("\nobservers: {}\n", cluster.observers.join(", "));
    }
    for note in notes {
        text += &format!("\n{note}");
    }
    text.trim_end().to_owned()
}

fn row(s: &NodeStatus) -> Vec<String> {
    let state = s.readiness.split(':').next().unwrap_or_default().to_owned();
    let unwritten = match (&s.store, s.dirty) {
        (None, _) => "no store".to_owned(),
        (Some(_), 0) => "0".to_owned(),
        (Some(_), dirty) => format!("{dirty} ({} ms)", s.dirty_age_ms),
    };
    let idle = Duration::from_millis(s.idle_timeout_ms).write();
    let http = if s.http.is_empty() { "-" } else { &s.http };
    [
        s.name.clone(),
        state,
        s.release.clone(),
        s.durability.clone(),
        s.backups.to_string(),
        idle,
        s.owned.to_string(),
        s.copies.to_string(),
        s.under_replicated.to_string(),
        unwritten,
        s.addr.clone(),
        http.to_owned(),
    ]
    .to_vec()
}

/// Aligns them.
fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
