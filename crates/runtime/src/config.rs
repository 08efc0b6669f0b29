//! What a node is started with, and why it does not start.

use crate::clock::EntropyError;
use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;
use outlive_core::address::{Address, AddressError};
use outlive_core::config::{Config, ConfigError};
use outlive_core::member::NodeError;
use outlive_store::{LoadError, PutError, Reach, Store};
use std::sync::Arc;

/// What a node is started with. The default is a node of its own on a free loopback port.
#[derive(Clone)]
#[non_exhaustive]
pub struct NodeConfig {
    /// Its name, unique in the cluster and best kept over restarts: it decides which sessions the node backs. 1 to 63 letters, digits,
    /// `-` and `_`. Default: the host's name, or as much of its end as fits, and eight random digits.
    pub name: Option<String>,
    /// Where it stands, so that copies are kept in different places. Default: nowhere in particular.
    pub zone: Option<String>,
    /// The cluster's name: nodes of another one are refused. 1 to 255 bytes. Default `default`.
    pub cluster: String,
    /// Where peers connect to. Default 127.0.0.1 and a free port. `None`: no port, no peers.
    pub listen: Option<Address>,
    /// The address that other nodes are told. Default: where it listens, which is then an address that they can connect to.
    pub advertise: Option<Address>,
    /// Where its HTTP is served, for gateways and the console. Every address of this machine (`:8080`) is told as that port of the host
    /// where peers connect. Default: not told.
    pub http: Option<Address>,
    /// Addresses of other nodes, this one's own may be among them. One that answers is enough. A name is resolved at each try, and
    /// each of its addresses is tried. Default: none.
    pub join: Vec<Address>,
    /// The durable store. Nodes that share one find each other through it.
    pub store: Option<Arc<dyn Store>>,
    /// All nodes of the cluster are on this machine, though the store reaches others: a loopback peer address is then meant as it is. Else
    /// a node with both does not start.
    pub one_machine: bool,
    /// What all nodes of the cluster share and nobody else knows. Default: from the store; without one, and on loopback addresses
    /// only, computed from the cluster's name. With a store it becomes the store's if that had none, and is refused if that has another.
    pub secret: Option<[u8; 32]>,
    /// Takes part without ever holding a session: a gateway.
    pub observer: bool,
    /// The engine's settings; `store` is set by whether there is one.
    pub engine: Config,
    /// How long a commit may wait for its durability before its outcome is called unknown. Default 5 s; below the 3 s that a silent
    /// node's death takes, each such death fails the commits that wait for it.
    pub commit_bound: Duration,
    /// How long an `open` may wait in all. Default 5 s.
    pub open_bound: Duration,
    /// Lets peers speak plain TCP on other than loopback addresses: whoever can read or change that traffic owns every session.
    pub danger_plain_peers: bool,
}

impl Default for NodeConfig {
    fn default() -> NodeConfig {
        NodeConfig {
            name: None,
            zone: None,
            cluster: "default".to_owned(),
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0)).into()),
            advertise: None,
            http: None,
            join: Vec::new(),
            store: None,
            one_machine: false,
            secret: None,
            observer: false,
            engine: Config::default(),
            commit_bound: Duration::from_secs(5),
            open_bound: Duration::from_secs(5),
            danger_plain_peers: false,
        }
    }
}

impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConfig")
            .field("name", &self.name)
            .field("cluster", &self.cluster)
            .field("listen", &self.listen)
            .field("join", &self.join)
            .field("store", &self.store.is_some())
            .finish_non_exhaustive()
    }
}

/// Why a node does not start. Nothing is left behind by a failed start, except the cluster's secret in the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Settings that cannot be. The caller's fault.
    #[error("{}", Lines(.0))]
    Config(Vec<ConfigError>),
    /// The node's or the cluster's name or addresses cannot be. The caller's fault.
    #[error("{what}: {source}")]
    Name {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: NodeError,
    },
    /// Peers would speak plain TCP over a network. The caller's fault.
    #[error(
        "peers would speak plain TCP on {0}, and TLS between nodes is not built yet: listen on a loopback address, \
         or set danger_plain_peers if that network is yours alone"
    )]
    PlainPeers(Address),
    /// It listens on all addresses, and nobody knows which one peers reach. The caller's fault.
    #[error("{0} is no address that peers can connect to: say which one they reach (advertise)")]
    Advertise(Address),
    /// Nodes of other machines would find this one in the store, with an address that leads to themselves. The caller's fault.
    #[error(
        "the store reaches {reach}, and this node's peer address is {addr}, a loopback address: nodes there would find it in the store and \
         could not connect to it. Set peer to an address of this machine that they reach; or, if all nodes are on this machine, to a \
         loopback address such as 127.0.0.1:0, and they find each other by that"
    )]
    Loopback {
        /// How far the store reaches.
        reach: Reach,
        /// Where peers connect to this node.
        addr: Address,
    },
    /// An address that others are told, or that is to be joined, cannot be used. The caller's fault.
    #[error("{what}: {source}")]
    Address {
        /// Which.
        what: &'static str,
        /// Why, and what can be used.
        #[source]
        source: AddressError,
    },
    /// Nodes that are not on one machine need a common secret. The caller's fault.
    #[error("no secret: set one, 32 random bytes, the same on all nodes; or a store, which keeps one; or use loopback addresses only")]
    NoSecret,
    /// The peer port could not be had.
    #[error("cannot listen for peers on {addr}")]
    Listen {
        /// Where.
        addr: Address,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store did not give the cluster's secret. Try again later.
    #[error("the store does not give the cluster's secret")]
    Store(#[source] PutError),
    /// The store did not answer in time. Try again later.
    #[error("the store did not give the cluster's secret within {} s", .0.as_secs())]
    StoreSilent(Duration),
    /// The store did not say which store it is. Try again later.
    #[error("the store does not say which one it is")]
    StoreIdentity(#[source] LoadError),
    /// Nodes that share a store share its secret. The caller's fault.
    #[error(
        "the secret that is set is not the one in the store: leave it out on nodes that have a store, or set the store's on all of them"
    )]
    OtherSecret,
    /// Another process of the cluster runs under this node's name. The caller's fault; a node that was restarted does not meet itself.
    #[error("the node name `{name}` is taken: the node at {addr} has it, and runs; give this one another name, or stop that one first")]
    NameTaken {
        /// The name.
        name: String,
        /// Where the other one is.
        addr: String,
    },
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

/// Every error on a line of its own.
struct Lines<'a>(&'a [ConfigError]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}
