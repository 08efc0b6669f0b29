//! How a cluster is, asked of each of its nodes by one that only looks.

use crate::ask::{AskError, addresses, ask};
use crate::config::NodeConfig;
use crate::handshake::{Standing, StoreId};
use crate::node::Inner;
use crate::start::shared_secret;
use outlive_core::config::{Durability, Level};
use outlive_core::id::Secret;
use outlive_core::member::State;
use outlive_core::output::Live;
use outlive_core::wire::PROTOCOL;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Members that one node tells of.
const MEMBERS_MAX: usize = 64;
/// Bytes of a readiness's text that are told.
const TEXT_MAX: usize = 1024;

/// How one node is, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Where other nodes connect to it.
    pub addr: String,
    /// Where its HTTP is served; may be empty.
    pub http: String,
    /// The cluster's name.
    pub cluster: String,
    /// It holds no sessions: a gateway.
    pub observer: bool,
    /// Outlive's release.
    pub release: String,
    /// The protocol that it speaks.
    pub protocol: u16,
    /// How it is, as its readiness says it.
    pub readiness: String,
    /// Whether requests should be sent to it.
    pub fit: bool,
    /// Whether there is nothing to say against it.
    pub healthy: bool,
    /// `owner`, `backup(2)` or `store`.
    pub durability: String,
    /// How many copies on other nodes it wants.
    pub backups: u8,
    /// With fewer of them it refuses changes.
    pub min_backups: u8,
    /// Milliseconds without use after which a session that begins here expires.
    pub idle_timeout_ms: u64,
    /// Milliseconds after which it expires at all.
    pub lifetime_ms: u64,
    /// Which store it has; the same number, the same store.
    pub store: Option<StoreId>,
    /// Sessions that it owns.
    pub owned: u64,
    /// Copies that it holds for other owners.
    pub copies: u64,
    /// Owned sessions whose copies are not where they should be yet.
    pub under_replicated: u64,
    /// Sessions that wait to be written to the store.
    pub dirty: u64,
    /// Milliseconds for which the oldest of them has waited.
    pub dirty_age_ms: u64,
    /// Every copy is where this membership wants it, as far as it knows.
    pub settled: bool,
    /// The members that live, itself included; 64 at most.
    pub members: Vec<MemberStatus>,
}

/// A member as another node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemberStatus {
    /// Its name.
    pub name: String,
    /// Where other nodes connect to it.
    pub addr: String,
    /// It holds no sessions: a gateway.
    pub observer: bool,
    /// It is silent, or this node's way to it is closed.
    pub suspect: bool,
    /// It drains.
    pub leaving: bool,
}

/// How a cluster is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterStatus {
    /// Its name.
    pub cluster: String,
    /// Each member by its name, observers left out: what it says itself, or why it said nothing.
    pub nodes: BTreeMap<String, Result<NodeStatus, String>>,
    /// Observers, such as gateways, by name.
    pub observers: Vec<String>,
}

impl ClusterStatus {
    /// Whether every member said that it is well, knows all others, and that all copies are where they should be.
    pub fn is_healthy(&self) -> bool {
        let names: Vec<&String> = self.nodes.keys().collect();
        self.nodes.values().all(|node| {
            node.as_ref().is_ok_and(|node| {
                let known = node.members.iter().filter(|m| !m.observer);
                node.healthy && node.settled && node.under_replicated == 0 && known.map(|m| &m.name).eq(names.iter().copied())
            })
        })
    }
}

impl<L: Live> Inner<L> {
    pub(crate) fn status(self: &Arc<Self>) -> NodeStatus {
        let (me, config, stats) = (self.engine.me(), self.engine.config(), self.engine.stats(self.clock.now()));
        let readiness = self.readiness();
        let members = self.engine.members();
        let mut members: Vec<MemberStatus> = members
            .iter()
            .filter(|m| m.state != State::Dead)
            .map(|m| MemberStatus {
                name: m.node.name.to_string(),
                addr: m.node.addr.to_string(),
                observer: m.node.observer,
                suspect: m.state != State::Alive,
                leaving: m.leaving,
            })
            .collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        members.truncate(MEMBERS_MAX);
        let ms = |d: core::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        NodeStatus {
            name: me.name.to_string(),
            addr: me.addr.to_string(),
            http: me.http.to_string(),
            cluster: self.cluster.to_string(),
            observer: me.observer,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            fit: readiness.is_fit(),
            healthy: readiness == crate::Readiness::Ready,
            readiness: readiness.to_string().chars().take(TEXT_MAX / 4).collect(),
            durability: match config.durability {
                Durability::Owner => Level::Owner,
                Durability::Backup => Level::Backup(config.backups),
                Durability::Store => Level::Store,
            }
            .to_string(),
            backups: config.backups,
            min_backups: config.min_backups,
            idle_timeout_ms: ms(config.limits.idle),
            lifetime_ms: ms(config.limits.lifetime),
            store: self.store_id,
            owned: stats.owned,
            copies: stats.backed,
            under_replicated: stats.under_replicated,
            dirty: stats.dirty,
            dirty_age_ms: ms(stats.dirty_age),
            settled: stats.settled,
            members,
        }
    }
}

/// How a cluster is: one node at the addresses of `config.join` or in `config.store` is asked who there is, and then each of those how it
/// is. Nothing is joined, and no session is touched. A few round trips; a node that is silent costs some seconds, all of them at once.
///
/// `config` says whom to ask and what proves that one may: its secret, its store, or its cluster's name.
///
/// # Errors
/// [`AskError`]: the caller's settings, the store, or nobody there.
pub async fn status_of(config: &NodeConfig) -> Result<ClusterStatus, AskError> {
    let secret = shared_secret(config).await?.map(|(secret, _)| secret);
    let danger = config.danger_plain_peers;
    let mut tried = Vec::new();
    for addr in addresses(config).await? {
        let first = match status_at(&addr, danger, secret.clone()).await {
            // An observer knows no more than its name, and may be alone.
            Ok(first) if first.observer => continue,
            Ok(first) => first,
            Err(why) => {
                tried.push((addr, why));
                continue;
            }
        };
        let mut asked = JoinSet::new();
        let (mut nodes, mut observers) = (BTreeMap::new(), Vec::new());
        for member in first.members.clone() {
            if member.observer {
                observers.push(member.name);
            } else if member.name != first.name {
                let secret = secret.clone();
                asked.spawn(async move { (member.name, status_at(&member.addr, danger, secret).await) });
            }
        }
        let cluster = first.cluster.clone();
        nodes.insert(first.name.clone(), Ok(first));
        while let Some(Ok((name, status))) = asked.join_next().await {
            nodes.insert(name, status);
        }
        return Ok(ClusterStatus { cluster, nodes, observers });
    }
    Err(AskError::Nobody(tried))
}

async fn status_at(addr: &str, danger: bool, secret: Option<Secret>) -> Result<NodeStatus, String> {
    let key = |name: &str| secret.as_ref().map_or_else(|| Secret::from_cluster_name(name).peer_key(), Secret::peer_key);
    let (_, status) = ask(addr, danger, Standing::Asks, key).await?;
    status.ok_or_else(|| "it does not say how it is".to_owned())
}
