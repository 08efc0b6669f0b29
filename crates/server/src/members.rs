//! How a gateway learns who there is: as a node of the cluster that never holds a session.

use outlive_core::address::Address;
use outlive_core::id::{IdKeys, SessionId};
use outlive_core::member::State as Health;
use outlive_gateway::{Directory, MemberInfo, Placement, State};
use outlive_runtime::{Node, NodeConfig, StartError};
use std::sync::Arc;

/// An observer of the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Observer(Node<()>);

impl Observer {
    /// Starts it. `config` says whom to join and what the cluster's secret is.
    pub(crate) async fn start(mut config: NodeConfig) -> Result<Observer, StartError> {
        config.observer = true;
        Node::start(config).await.map(Observer)
    }

    /// Which members hold a copy of a session, by its cookie.
    pub(crate) fn holders(&self, namespace: &str) -> impl Placement + use<> {
        let (node, keys): (Node<()>, IdKeys) = (self.0.clone(), self.0.keys(namespace));
        move |cookie: &[u8]| {
            let text = std::str::from_utf8(cookie).unwrap_or_default();
            let id = text.rsplit_once('.').map_or(text, |(id, _)| id);
            // An id that the cluster did not issue is in nobody's hands.
            let Some((_, key)) = SessionId::parse(&keys, id) else { return Vec::new() };
            node.placed(key).into_iter().filter_map(|life| node.name_of(life)).map(String::from).collect()
        }
    }

    /// Names of the live members that serve HTTP.
    pub(crate) fn live(&self) -> Vec<String> {
        self.0.members().iter().filter(|m| m.state <= Health::Suspect && !m.node.http.is_empty()).map(|m| m.node.name.to_string()).collect()
    }

    /// Waits until the membership may have changed.
    pub(crate) fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.watch_members()
    }

    fn list(&self) -> Vec<MemberInfo> {
        let member = |m: &outlive_core::member::Member| {
            let mut info = MemberInfo::fixed(m.node.name.to_string(), m.node.http.parse::<Address>().ok()?);
            info.life = m.node.boot;
            info.state = match m.state {
                Health::Alive | Health::Suspect if m.leaving => State::Draining,
                Health::Alive | Health::Suspect => State::Up,
                Health::Gone | Health::Dead => State::Down,
            };
            Some(info)
        };
        self.0.members().iter().filter_map(member).collect()
    }

    /// Keeps a gateway's list of members true, for ever.
    pub(crate) async fn keep(self, directory: Directory, mut changed: impl FnMut(&Observer) + Send + 'static) {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            directory.update(self.list());
            changed(&self);
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Says goodbye to the others.
    pub(crate) async fn leave(&self) {
        let _holds_nothing = self.0.drain(std::time::Duration::from_secs(1)).await;
    }
}

/// A store for an observer, which reads the cluster's secret and the members' addresses there.
pub(crate) async fn store(url: Option<&str>) -> anyhow::Result<Option<Arc<dyn outlive_store::Store>>> {
    match url {
        None | Some("none") => Ok(None),
        Some(url) => Ok(Some(outlive_store::open(url).await?)),
    }
}
