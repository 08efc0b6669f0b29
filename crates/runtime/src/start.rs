//! Starting a node.

use crate::clock::{Clock, entropy, wall_micros};
use crate::config::{NodeConfig, StartError};
use crate::dial::{self, Dials, Namesake};
use crate::handshake::StoreId;
use crate::listen;
use crate::node::{Inner, Node, Parts, Tasks};
use crate::storing::{self, StoreSide};
use crate::transport;
use core::time::Duration;
use outlive_core::address::Address;
use outlive_core::config::Config;
use outlive_core::engine::Engine;
use outlive_core::id::Secret;
use outlive_core::member::{self, NodeError};
use outlive_core::name;
use outlive_core::output::Live;
use outlive_core::placement::name_hash;
use outlive_core::stamp::Life;
use outlive_store::Reach;
use std::sync::Arc;

/// The address of a node without a peer port.
pub(crate) const NO_ADDRESS: &str = "none";
/// How long a start waits for the first answers of others, so that the first request does not meet a node that knows nobody.
const MEET: Duration = Duration::from_secs(1);
/// How long a name counts as taken before the node gives up: longer than a member's silence takes to be noticed.
const NAME_PATIENCE: Duration = Duration::from_secs(6);
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
                let (listener, peer) = open_port(&config, addr).await?;
                (Some(listener), Some(peer))
            }
            None => (None, None),
        };
        if let Some(peer) = &peer {
            check_found(&config, peer)?;
        }
        let (secret, store_id) = secret(&config).await?;
        let name = config.name.clone();
        let node = Node::new(config, engine_config, peer.as_ref(), secret, store_id)?;
        let inner = &node.inner;
        if let Some(listener) = listener {
            inner.tasks.spawn(listen::listen(inner.clone(), listener));
        }
        inner.tasks.spawn(crate::timer::run(inner.clone()));
        if inner.store.is_some() {
            storing::start(inner);
        }
        inner.tasks.spawn(dial::seek(inner.clone()));
        let mut formed = inner.formed.subscribe();
        let _ = tokio::time::timeout(MEET, formed.wait_for(|formed| *formed)).await;
        if let Some(addr) = namesake(inner).await {
            if let Some(store) = &inner.store {
                store.withdraw(inner.engine.life()).await;
            }
            let name = name.unwrap_or_else(|| inner.engine.me().name.to_string());
            return Err(StartError::NameTaken { name, addr });
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
        let node = Node::new(config, engine_config, None, Secret::new(secret), None)?;
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
        store_id: Option<StoreId>,
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
            // The engine knows.
            backups: 0,
            stores: false,
        };
        let clock = Clock::start(jitter);
        let engine = Engine::new(engine_config, node, seed, clock.now()).map_err(|source| StartError::Name { what: "the node", source })?;
        let parts = Parts {
            engine,
            clock,
            secret,
            dials: Dials::new(&addr, &join, config.store.is_some(), config.danger_plain_peers),
            cluster: config.cluster.into(),
            store: config.store.map(StoreSide::new),
            store_id,
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

/// Whoever finds this node in the store must be able to connect to it. An observer is not looked for: it connects to the others.
///
/// A store of one machine says nothing about `peer`: containers of that machine have addresses of their own. Nodes of several machines with
/// such a store each have another one, and do not take each other (`handshake`).
fn check_found(config: &NodeConfig, peer: &Address) -> Result<(), StartError> {
    let reach = config.store.as_ref().map(|store| store.reach()).filter(|reach| *reach == Reach::Network);
    match reach.filter(|_| peer.is_loopback() && !config.observer) {
        None => Ok(()),
        Some(_) if config.one_machine => {
            tracing::warn!(
                "the peer address is set to {peer}, so all nodes that use this store must be on this machine: those of others could not connect"
            );
            Ok(())
        }
        Some(reach) => Err(StartError::Loopback { reach, addr: peer.clone() }),
    }
}

fn checked(config: &NodeConfig) -> Result<outlive_core::config::Checked, StartError> {
    Config { store: config.store.is_some(), ..config.engine.clone() }.check().map_err(StartError::Config)
}

/// Listens, and says where others connect.
async fn open_port(config: &NodeConfig, addr: &Address) -> Result<(tokio::net::TcpListener, Address), StartError> {
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

/// Waits until it is clear whether another node that runs has this one's name: its address, if so. A node that was killed may be taken
/// for alive for as long as its silence takes to be noticed.
async fn namesake<L: Live>(inner: &Arc<Inner<L>>) -> Option<String> {
    let patient = tokio::time::Instant::now() + NAME_PATIENCE;
    while !*inner.formed.borrow() {
        match inner.dials.namesake() {
            None => break,
            Some(Namesake::Sure(addr)) => return Some(addr),
            Some(Namesake::Hearsay(addr)) if tokio::time::Instant::now() >= patient => return Some(addr),
            Some(Namesake::Hearsay(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    None
}

/// The cluster's secret, or one computed from the cluster's name for a cluster that nobody else can reach. And which store it is.
async fn secret(config: &NodeConfig) -> Result<(Secret, Option<StoreId>), StartError> {
    if let Some(shared) = shared_secret(config).await? {
        return Ok(shared);
    }
    tracing::warn!(cluster = config.cluster, "the secret is computed from the cluster's name: whoever is on this machine knows it");
    Ok((Secret::from_cluster_name(&config.cluster), None))
}

/// The cluster's secret, and which store it is: the store's, which is the one that is given if it had none; without a store the given
/// one. `None` if there is none and need not be.
pub(crate) async fn shared_secret(config: &NodeConfig) -> Result<Option<(Secret, Option<StoreId>)>, StartError> {
    if let Some(store) = &config.store {
        let proposal = match config.secret {
            Some(bytes) => bytes,
            None => entropy()?,
        };
        let silent = |_| StartError::StoreSilent(SECRET);
        let bytes = tokio::time::timeout(SECRET, store.secret(proposal)).await.map_err(silent)?.map_err(StartError::Store)?;
        if config.secret.is_some_and(|given| given != bytes) {
            return Err(StartError::OtherSecret);
        }
        let id = tokio::time::timeout(SECRET, store.identity()).await.map_err(silent)?.map_err(StartError::StoreIdentity)?;
        return Ok(Some((Secret::new(bytes), Some(id))));
    }
    if let Some(bytes) = config.secret {
        return Ok(Some((Secret::new(bytes), None)));
    }
    if config.listen.as_ref().is_none_or(Address::is_loopback) { Ok(None) } else { Err(StartError::NoSecret) }
}

/// A name that no other node has.
fn derived_name() -> Result<String, StartError> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Ok(name::derive_node(host.trim(), u32::from_ne_bytes(entropy()?)))
}
