//! What nodes of a cluster are asked by one that does not join them: the cluster's name, and how they are.

use crate::clock::{EntropyError, entropy, wall_micros};
use crate::config::{NodeConfig, StartError};
use crate::handshake::{self, HandshakeError, Hello, Standing};
use crate::start::{NO_ADDRESS, shared_secret};
use crate::status::NodeStatus;
use crate::transport;
use core::net::SocketAddr;
use core::time::Duration;
use outlive_core::address::Address;
use outlive_core::id::Secret;
use outlive_core::member::Node;
use outlive_core::stamp::Life;

/// How long the store may take to say which nodes there are.
const STORE: Duration = Duration::from_secs(5);
/// Nodes that are asked.
const NODES_MAX: usize = 64;

/// Why the name of a cluster was not found out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// It cannot be, with these settings or now; trying again is of no use unless the error says so.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Nobody proved to be a node of a cluster with the same secret. Try again later.
    #[error("no node of the cluster was reached: {}", Reasons(.0))]
    Nobody(Vec<(String, String)>),
}

impl From<EntropyError> for AskError {
    fn from(error: EntropyError) -> AskError {
        AskError::Start(error.into())
    }
}

/// Each address with what came of it.
struct Reasons<'a>(&'a [(String, String)]);

impl core::fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("the store knows none");
        }
        for (n, (addr, why)) in self.0.iter().enumerate() {
            write!(f, "{}{addr} ({why})", if n > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// The name of the cluster whose nodes are at the addresses of `config.join` or in `config.store`, as told by the first of them that proves
/// to know the secret: for an observer that is set to no name. One round of attempts, at most 6 s for each address that is silent.
///
/// Without a secret and a store, and on loopback addresses only, the secret is the one that is computed from the name that is told: whoever
/// is on this machine could tell it.
///
/// # Errors
/// [`AskError`]: the caller's settings, the store, or nobody there.
pub async fn cluster_of(config: &NodeConfig) -> Result<String, AskError> {
    let secret = shared_secret(config).await?.map(|(secret, _)| secret);
    let key = |name: &str| secret.as_ref().map_or_else(|| Secret::from_cluster_name(name).peer_key(), Secret::peer_key);
    let mut tried = Vec::new();
    for addr in addresses(config).await? {
        match ask(&addr, config.danger_plain_peers, Standing::New, key).await {
            Ok((name, _)) => return Ok(name),
            Err(why) => tried.push((addr, why)),
        }
    }
    Err(AskError::Nobody(tried))
}

/// Those of `config.join`, and those in the store.
pub(crate) async fn addresses(config: &NodeConfig) -> Result<Vec<String>, AskError> {
    let mut addrs: Vec<String> = config.join.iter().map(Address::to_string).collect();
    if let Some(store) = &config.store {
        match tokio::time::timeout(STORE, store.nodes(Duration::ZERO)).await {
            Ok(nodes) => addrs.extend(nodes.map_err(StartError::StoreIdentity)?.into_iter().map(|node| node.peer)),
            Err(_) => return Err(StartError::StoreSilent(STORE).into()),
        }
    }
    addrs.truncate(NODES_MAX);
    Ok(addrs)
}

/// What a node tells.
pub(crate) type Told = (String, Option<NodeStatus>);

/// Asks at each of the addresses that `addr` stands for.
pub(crate) async fn ask(addr: &str, danger: bool, standing: Standing, key: impl Fn(&str) -> [u8; 32]) -> Result<Told, String> {
    let addr = addr.parse::<Address>().map_err(|error| error.to_string())?;
    let mut why = "the name has no address".to_owned();
    for at in transport::resolve(&addr).await.map_err(|error| error.to_string())? {
        match ask_at(at, danger, standing, &key).await {
            Ok(told) => return Ok(told),
            Err(error) => why = error,
        }
    }
    Err(why)
}

async fn ask_at(at: SocketAddr, danger: bool, standing: Standing, key: impl Fn(&str) -> [u8; 32]) -> Result<Told, String> {
    let (mut reader, mut writer) = transport::dial(at, danger).await.map_err(|error| error.to_string())?;
    let me = stranger(standing).map_err(|error| error.to_string())?;
    handshake::ask((&mut reader, &mut writer), &me, key).await.map_err(|error| match error {
        HandshakeError::Broken(error) => error.to_string(),
        error => error.to_string(),
    })
}

/// Somebody who will go away.
fn stranger(standing: Standing) -> Result<Hello, EntropyError> {
    let node = Node {
        name: "observer".into(),
        addr: NO_ADDRESS.into(),
        boot: wall_micros(),
        life: Life::new(u64::from_ne_bytes(entropy()?)),
        zone: 0,
        observer: true,
        http: "".into(),
        backups: 0,
        stores: false,
    };
    Ok(Hello::new("", None, standing, &node, entropy()?))
}
