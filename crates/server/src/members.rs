//! How a gateway learns who there is: as a node of the cluster that never holds a session.

use outlive::settings::StoreUrl;
use outlive_core::address::Address;
use outlive_core::id::{IdKeys, SessionId};
use outlive_core::member::{Member, State as Health};
use outlive_gateway::{Directory, MemberInfo, Placement, State};
use outlive_runtime::{AskError, Node, NodeConfig, StartError};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// An observer of the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Observer(Node<()>);

impl Observer {
    /// Starts it. `config` says whom to join and what the cluster's secret is.
    pub(crate) async fn start(mut config: NodeConfig) -> Result<Observer, StartError> {
        config.observer = true;
        Node::start(config).await.map(Observer)
    }

    /// Starts it, in the cluster whose nodes prove to know the secret if `config` names none: that takes until one is there.
    pub(crate) async fn meet(mut config: NodeConfig) -> Result<Observer, StartError> {
        let mut said = Saying::new();
        while config.cluster.is_empty() {
            match outlive_runtime::cluster_of(&config).await {
                Ok(name) => config.cluster = name,
                Err(AskError::Start(error)) => return Err(error),
                Err(error) => {
                    if said.is_due() {
                        tracing::warn!("{error}; the gateway has nobody to send requests to, and goes on asking");
                    }
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
        Observer::start(config).await
    }

    /// Which members hold a copy of a session, by its cookie.
    pub(crate) fn holders(&self, namespace: &str) -> impl Placement + use<> {
        let (node, keys): (Node<()>, IdKeys) = (self.0.clone(), self.0.keys(namespace));
        move |cookie: &[u8]| {
            let text = std::str::from_utf8(cookie).unwrap_or_default();
            let id = text.rsplit_once('.').map_or(text, |(id, _)| id);
            // An id that the cluster did not issue is in nobody's hands.
            let Some((_, key)) = SessionId::parse(&keys, id.as_bytes()) else { return Vec::new() };
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
        list(&self.0.members())
    }

    /// Waits until a gateway knows so many nodes that are up, for a while at most. Before that it would answer that nobody is there.
    pub(crate) async fn wait_for(&self, nodes: usize, directory: &Directory) {
        let mut changes = self.changes();
        let met = async {
            loop {
                changes.borrow_and_update();
                if self.live().len() >= nodes || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(MEET, met).await;
        directory.update(self.list());
    }

    /// Keeps a gateway's list of members true, for ever.
    pub(crate) async fn keep(self, directory: Directory, mut changed: impl FnMut(&Observer) + Send + 'static) {
        let (mut changes, mut said) = (self.changes(), Saying::new());
        let mut silent = HashSet::new();
        loop {
            changes.borrow_and_update();
            directory.update(self.list());
            let now: HashSet<String> = self.without_http().collect();
            for member in now.difference(&silent) {
                tracing::info!(member, "a member tells no HTTP address: it gets no requests, as one that only keeps copies");
            }
            silent = now;
            changed(&self);
            tokio::select! {
                change = changes.changed() => if change.is_err() {
                    return;
                },
                () = tokio::time::sleep_until(said.due) => {}
            }
            if said.is_due()
                && let Some(why) = self.nobody()
            {
                tracing::warn!("the gateway has nobody to send requests to: {why}");
            }
        }
    }

    /// Names of the live members that tell no HTTP address.
    fn without_http(&self) -> impl Iterator<Item = String> + use<> {
        let live = self.0.members().into_iter().filter(|m| m.state <= Health::Suspect && !m.node.observer);
        live.filter(|m| m.node.http.parse::<Address>().is_err()).map(|m| m.node.name.to_string())
    }

    /// Why requests cannot be sent to anybody, if so.
    fn nobody(&self) -> Option<String> {
        if !self.live().is_empty() {
            return None;
        }
        let names: Vec<String> = self.without_http().map(|name| format!("`{name}`")).collect();
        Some(match names.len() {
            0 => "no node of the cluster is linked".to_owned(),
            1 => format!("{} tells no HTTP address; set `http` there, unless it only keeps copies", names.concat()),
            _ => format!("{} tell no HTTP address; set `http` there, unless they only keep copies", names.join(", ")),
        })
    }

    /// Says goodbye to the others.
    pub(crate) async fn leave(&self) {
        let _holds_nothing = self.0.drain(Duration::from_secs(1)).await;
    }
}

/// One row for each name: its last life, for those before are known for a day.
fn list(members: &[Member]) -> Vec<MemberInfo> {
    let mut last: BTreeMap<&str, &Member> = BTreeMap::new();
    for m in members {
        let order = |m: &Member| (m.state != Health::Dead, m.node.boot);
        let row = last.entry(&m.node.name).or_insert(m);
        if order(m) > order(row) {
            *row = m;
        }
    }
    let info = |m: &Member| {
        let mut info = MemberInfo::fixed(m.node.name.to_string(), m.node.http.parse::<Address>().ok()?);
        info.life = m.node.boot;
        info.state = match m.state {
            Health::Alive | Health::Suspect if m.leaving => State::Draining,
            Health::Alive | Health::Suspect => State::Up,
            Health::Gone | Health::Dead => State::Down,
        };
        Some(info)
    };
    last.into_values().filter_map(info).collect()
}

/// How long those that have just started are waited for.
const MEET: Duration = Duration::from_secs(10);
/// How long nobody is asked again after none was reached.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long it is not said that there is nobody, and how often it is said after that.
const SAY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// When something that lasts is said again.
struct Saying {
    due: Instant,
}

impl Saying {
    fn new() -> Saying {
        Saying { due: Instant::now() + SAY.0 }
    }

    /// Whether it is time, which puts it off to the next time.
    fn is_due(&mut self) -> bool {
        let due = Instant::now() >= self.due;
        if due {
            self.due = Instant::now() + SAY.1;
        }
        due
    }
}

/// A store for an observer, which reads the cluster's secret and the members' addresses there.
pub(crate) async fn store(url: Option<&StoreUrl>) -> anyhow::Result<Option<Arc<dyn outlive_store::Store>>> {
    match url.and_then(StoreUrl::some) {
        None => Ok(None),
        Some(url) => Ok(Some(outlive_store::open(url).await?)),
    }
}
