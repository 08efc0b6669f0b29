//! Starting a node.

use crate::clock::{Clock, entropy, wall_micros};
use crate::config::{NodeConfig, StartError};
use crate::dial::{self, Dials};
use crate::node::{Inner, Node, Parts, Tasks};
use crate::storing::{self, StoreSide};
use crate::transport;
use core::time::Duration;
use outlive_core::address::Address;
use outlive_core::config::Config;
use outlive_core::engine::Engine;
use outlive_core::id::Secret;
use outlive_core::member::{self, NodeError};
use outlive_core::output::Live;
use outlive_core::placement::name_hash;
use outlive_core::stamp::Life;
use std::sync::Arc;

/// The address of a node without a peer port.
pub(crate) const NO_ADDRESS: &str = "none";
/// How long a start waits for the first answers of others, so that the first request does not meet a node that knows nobody.
const MEET: Duration = Duration::from_secs(1);
/// How long the store may take to give the secret.
const SECRET: Duration = Duration::from_secs(10);

impl<L: Live> Node<L> {
    /// Starts a node: listens, and waits up to a second until it has met another one or knows that there is none. Needs a tokio runtime
    /// with I/O and time.
    pub async fn start(config: NodeConfig) -> Result<Node<L>, StartError> {
        check_names(&config)?;
        let engine_config = checked(&config)?;
        let (listener, peer) = match &config.listen {
            Some(addr) => {
                let (listener, peer) = listen(&config, addr).await?;
                (Some(listener), Some(peer))
            }
            None => (None, None),
        };
        let secret = secret(&config).await?;
        let node = Node::new(config, engine_config, peer.as_ref(), secret)?;
        let inner = &node.inner;
        if let Some(listener) = listener {
            inner.tasks.spawn(dial::listen(inner.clone(), listener));
        }
        inner.tasks.spawn(crate::timer::run(inner.clone()));
        if inner.store.is_some() {
            storing::start(inner);
        }
        inner.tasks.spawn(dial::seek(inner.clone()));
        let mut formed = inner.formed.subscribe();
        let _ = tokio::time::timeout(MEET, formed.wait_for(|formed| *formed)).await;
        if !*inner.formed.borrow()
            && let Some((addr, why)) = inner.dials.rejected()
        {
            return Err(StartError::Rejected { addr, why });
        }
        Ok(node)
    }

    /// A node without a port, peers or a store, for one process: `listen`, `join` and `store` are ignored. Does not wait. Within a
    /// tokio runtime it expires sessions by itself, else when they are opened.
    pub fn alone(config: NodeConfig) -> Result<Node<L>, StartError> {
        let config = NodeConfig { listen: None, join: Vec::new(), store: None, ..config };
        check_names(&config)?;
        let engine_config = checked(&config)?;
        let secret = match config.secret {
            Some(bytes) => bytes,
            None => entropy()?,
        };
        let node = Node::new(config, engine_config, None, Secret::new(secret))?;
        let inner = &node.inner;
        inner.call(|e, now, out| e.handle_nobody(now, out));
        inner.formed.send_replace(true);
        inner.tasks.spawn(crate::timer::run(inner.clone()));
        Ok(node)
    }

    /// `peer` is where others connect.
    fn new(
        config: NodeConfig,
        engine_config: outlive_core::config::Checked,
        peer: Option<&Address>,
        secret: Secret,
    ) -> Result<Node<L>, StartError> {
        let addr = peer.map_or_else(|| NO_ADDRESS.to_owned(), Address::to_string);
        let http = match (config.http, peer) {
            (None, _) => None,
            (Some(http), Some(peer)) => Some(http.told_beside(peer)),
            (Some(http), None) => Some(http.reachable()),
        };
        let http = http.transpose().map_err(|source| StartError::Address { what: "http", source })?;
        let mut join = Vec::new();
        for addr in config.join {
            join.push(addr.reachable().map_err(|source| StartError::Address { what: "join", source })?.to_string());
        }
        let [life, seed, jitter] = [u64::from_ne_bytes(entropy()?), u64::from_ne_bytes(entropy()?), u64::from_ne_bytes(entropy()?)];
        let name = match config.name {
            Some(name) => name,
            None => derived_name()?,
        };
        let node = member::Node {
            name: name.into(),
            addr: addr.as_str().into(),
            boot: wall_micros(),
            life: Life::new(life),
            zone: config.zone.as_deref().map_or(0, name_hash),
            observer: config.observer,
            http: http.map(|http| http.to_string()).unwrap_or_default().into(),
        };
        let clock = Clock::start(jitter);
        let engine = Engine::new(engine_config, node, seed, clock.now())
            .map_err(|source| StartError::Name { what: "the node's name or addresses", source })?;
        let parts = Parts {
            engine,
            clock,
            secret,
            dials: Dials::new(&addr, &join, config.store.is_some(), config.danger_plain_peers),
            cluster: config.cluster.into(),
            store: config.store.map(StoreSide::new),
            bounds: (config.commit_bound, config.open_bound),
            tasks: Tasks(tokio::runtime::Handle::try_current().ok()),
        };
        Ok(Node::of(Arc::new(Inner::new(parts))))
    }
}

fn check_names(config: &NodeConfig) -> Result<(), StartError> {
    let what = "the cluster's name";
    match config.cluster.len() {
        0 => Err(StartError::Name { what, source: NodeError::Empty }),
        1..=255 => Ok(()),
        len => Err(StartError::Name { what, source: NodeError::TooLong { len } }),
    }
}

fn checked(config: &NodeConfig) -> Result<outlive_core::config::Checked, StartError> {
    Config { store: config.store.is_some(), ..config.engine.clone() }.check().map_err(StartError::Config)
}

/// Listens, and says where others connect.
async fn listen(config: &NodeConfig, addr: &Address) -> Result<(tokio::net::TcpListener, Address), StartError> {
    let failed = |source| StartError::Listen { addr: addr.clone(), source };
    let at = transport::resolve(addr).await.map_err(failed)?;
    if !at.iter().all(|at| transport::plain_allowed(at.ip(), config.danger_plain_peers)) {
        return Err(StartError::PlainPeers(addr.clone()));
    }
    let told = match &config.advertise {
        Some(told) => Some(told.clone().reachable().map_err(|source| StartError::Address { what: "advertise", source })?),
        None if addr.is_any() => return Err(StartError::Advertise(addr.clone())),
        None => None,
    };
    let listener = tokio::net::TcpListener::bind(&*at).await.map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    Ok((listener, told.unwrap_or_else(|| addr.with_port(port))))
}

/// The cluster's secret: given, else the store's, else computed from the cluster's name for a cluster that nobody else can reach.
async fn secret(config: &NodeConfig) -> Result<Secret, StartError> {
    if let Some(bytes) = config.secret {
        return Ok(Secret::new(bytes));
    }
    if let Some(store) = &config.store {
        let answer = tokio::time::timeout(SECRET, store.secret(entropy()?)).await;
        return Ok(Secret::new(answer.map_err(|_| StartError::StoreSilent(SECRET))?.map_err(StartError::Store)?));
    }
    if config.listen.as_ref().is_none_or(Address::is_loopback) {
        tracing::warn!(cluster = config.cluster, "the secret is computed from the cluster's name: whoever is on this machine knows it");
        return Ok(Secret::from_cluster_name(&config.cluster));
    }
    Err(StartError::NoSecret)
}

/// A name that no other node has.
fn derived_name() -> Result<String, StartError> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(48).collect();
    let host = if host.is_empty() { "node".to_owned() } else { host.to_ascii_lowercase() };
    Ok(format!("{host}-{:08x}", u32::from_ne_bytes(entropy()?)))
}
