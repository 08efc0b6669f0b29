//! Starting a node: [`Builder`].

use crate::config::{Config, Consistency, Durability, OnUndecodable};
use crate::cookie::Cookie;
use crate::error::StartError;
use crate::node::{Counters, Node};
use crate::outlive::Outlive;
use crate::settings::StoreUrl;
use core::fmt;
use core::time::Duration;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

/// A node that is to be started. Later sources win: defaults, what is said here, a file's [`config`](Builder::config), the
/// [`env`](Builder::env)ironment.
#[must_use = "a node starts with `.start().await`"]
#[derive(Clone, Debug)]
pub struct Builder {
    code: Config,
    /// Of what was said in code.
    errors: Vec<String>,
    file: Config,
    env: bool,
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder { code: Config::default(), errors: Vec::new(), file: Config::default(), env: false }
    }

    /// The durable store, by URL: `sqlite:sessions.db`. Nodes that share one find each other through it. Default: none.
    pub fn store(mut self, url: &str) -> Builder {
        self.code.store = Some(StoreUrl(url.to_owned()));
        self
    }

    /// When a response may leave. The setting `durability`.
    pub fn durability(mut self, durability: Durability) -> Builder {
        self.code.durability = Some(durability);
        self
    }

    /// What happens when nodes cannot reach each other.
    pub fn consistency(mut self, consistency: Consistency) -> Builder {
        self.code.consistency = Some(consistency);
        self
    }

    /// How long a session lives without use: the setting `session.idle_timeout`.
    pub fn idle_timeout(mut self, idle: Duration) -> Builder {
        self.code.idle_timeout = Some(idle);
        self
    }

    /// How long a session lives at all: the setting `session.lifetime`.
    pub fn lifetime(mut self, lifetime: Duration) -> Builder {
        self.code.lifetime = Some(lifetime);
        self
    }

    /// The application's part of the cluster: ids of one namespace are unknown in every other.
    ///
    /// A second namespace in one process is a second node beside this one, with a cookie of its own; a start with a cookie that another
    /// namespace of the process has is refused. Its layer may stand inside of this one's: it shadows it, and each commits its own.
    pub fn namespace(mut self, namespace: &str) -> Builder {
        self.code.namespace = Some(namespace.to_owned());
        self
    }

    /// This node's name, unique in the cluster and best kept over restarts. It stands in the cookie, behind the id, so that a balancer
    /// can be sticky by it. Default: the host's name and random digits.
    pub fn node(mut self, name: &str) -> Builder {
        self.code.node = Some(name.to_owned());
        self
    }

    /// Where other nodes connect, `HOST:PORT`. Default: a free port on loopback, which nodes on the same machine find through a shared
    /// store. With a store that reaches other machines it has to be set; to a loopback address, if all nodes are on this one.
    pub fn peer(self, addr: impl ToString) -> Builder {
        self.say("peer", &addr.to_string())
    }

    /// Addresses of other nodes, `HOST:PORT`; one that answers is enough, and this node's own may be among them. Names are resolved at
    /// each try.
    pub fn join<A: ToString>(self, nodes: impl IntoIterator<Item = A>) -> Builder {
        let nodes: Vec<String> = nodes.into_iter().map(|a| a.to_string()).collect();
        self.say("join", &nodes.join(","))
    }

    /// What is wrong is told when the node starts, with all the rest.
    fn say(mut self, path: &str, text: &str) -> Builder {
        self.errors.extend(self.code.set(path, text).err());
        self
    }

    /// How the session's id travels.
    pub fn cookie(mut self, cookie: Cookie) -> Builder {
        self.code.cookie = cookie;
        self
    }

    /// How long requests in flight may take when the node has left, in [`run`](Outlive::run): the setting `shutdown_grace`.
    pub fn shutdown_grace(mut self, grace: Duration) -> Builder {
        self.code.shutdown_grace = Some(grace);
        self
    }

    /// How long the server keeps accepting requests after SIGTERM at least, in [`run`](Outlive::run), so that balancers notice first that
    /// this node is leaving: the setting `drain_notice`.
    pub fn drain_notice(mut self, notice: Duration) -> Builder {
        self.code.drain_notice = Some(notice);
        self
    }

    /// How long sessions may be handed over before the server stops, in [`run`](Outlive::run): the setting `drain_timeout`.
    pub fn drain_timeout(mut self, timeout: Duration) -> Builder {
        self.code.drain_timeout = Some(timeout);
        self
    }

    /// Settings from a TOML file, as [`Config`] describes them; they win over those in code. What is wrong with it is told when the node
    /// starts, with all the rest, and so is that it is not there.
    #[cfg(feature = "toml")]
    pub fn file(mut self, path: impl AsRef<std::path::Path>) -> Builder {
        self.errors.extend(self.file.read_file(path.as_ref()));
        self
    }

    /// Settings that were read from somewhere; they win over those in code.
    pub fn config(mut self, config: Config) -> Builder {
        self.file.merge(config);
        self
    }

    /// Reads the environment, `OUTLIVE_STORE` and so on; it wins over everything else.
    pub fn env(mut self) -> Builder {
        self.env = true;
        self
    }

    /// Starts the node. It waits until it has met another node, or knows that there is none: a second at most.
    ///
    /// # Errors
    /// [`StartError`]. All settings that are wrong are named at once.
    pub async fn start(self) -> Result<Outlive, StartError> {
        let (config, names) = self.settings()?;
        let node = config.node().await?;
        let cluster = node.cluster.clone();
        let runtime = outlive_runtime::Node::start(node).await.map_err(start_error)?;
        let me = runtime.me();
        tracing::info!("this node is {} of the cluster {cluster}, and other nodes connect to {}", me.name, me.addr);
        Outlive::of(runtime, &config, names)
    }

    /// A node for one process, at once.
    pub(crate) fn alone(self) -> Result<Outlive, StartError> {
        let (config, names) = self.settings()?;
        let runtime = outlive_runtime::Node::alone(config.node_without_store()).map_err(start_error)?;
        Outlive::of(runtime, &config, names)
    }

    fn settings(self) -> Result<(Config, Names), StartError> {
        // What is not Unicode cannot be one of ours.
        let vars = std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
        self.settings_with(vars)
    }

    fn settings_with(self, vars: impl Iterator<Item = (String, String)>) -> Result<(Config, Names), StartError> {
        let Builder { code: mut config, mut errors, file, env } = self;
        config.merge(file);
        if env {
            errors.extend(config.read_env(vars));
        }
        errors.extend(config.check());
        let names = match config.cookie.resolve(&config.namespace()) {
            Ok(carrier) if errors.is_empty() => Names::reserve(carrier.all_names(), &config.namespace()),
            // It is among the errors already.
            _ => Err(None),
        };
        let names = names.map_err(|error| {
            errors.extend(error);
            StartError::Config(Errors(errors))
        })?;
        Ok((config, names))
    }
}

fn start_error(error: outlive_runtime::StartError) -> StartError {
    use outlive_runtime::StartError as E;
    match error {
        E::Config(errors) => StartError::Config(Errors(errors.iter().map(ToString::to_string).collect())),
        E::Loopback { .. } => StartError::Config(Errors(vec![error.to_string()])),
        E::Store(_) | E::StoreSilent(_) | E::StoreIdentity(_) => StartError::Store { source: Box::new(error) },
        error => StartError::Peer { source: Box::new(error) },
    }
}

/// The cookies of a namespace in this process, as long as its node lives.
#[derive(Debug)]
pub(crate) struct Names {
    _held: Arc<()>,
}

struct Reserved {
    names: Vec<String>,
    namespace: String,
    held: Weak<()>,
}

static RESERVED: Mutex<Vec<Reserved>> = Mutex::new(Vec::new());

impl Names {
    /// Two namespaces cannot share a cookie: each would take the other's ids for made-up ones, and overwrite them.
    fn reserve(names: Vec<String>, namespace: &str) -> Result<Names, Option<String>> {
        let mut all = RESERVED.lock();
        all.retain(|other| other.held.strong_count() > 0);
        for other in all.iter().filter(|other| other.namespace != namespace) {
            if let Some(name) = names.iter().find(|name| other.names.contains(name)) {
                let both = (namespace, &other.namespace);
                return Err(Some(format!(
                    "the namespaces `{}` and `{}` would share the cookie {name}: give one another cookie.name",
                    both.0, both.1
                )));
            }
        }
        let held = Arc::new(());
        all.push(Reserved { names, namespace: namespace.to_owned(), held: Arc::downgrade(&held) });
        Ok(Names { _held: held })
    }
}

impl Outlive {
    fn of(runtime: outlive_runtime::Node<crate::live::Live>, config: &Config, names: Names) -> Result<Outlive, StartError> {
        let carrier = config.cookie.resolve(&config.namespace());
        let engine = config.engine();
        Ok(Outlive {
            node: Arc::new(Node {
                keys: runtime.keys(&config.namespace()),
                route: runtime.me().name.into_string(),
                carrier: carrier.map_err(|error| StartError::Config(Errors(vec![error])))?,
                size_max: engine.record_max,
                limits: engine.limits,
                drain_notice: config.drain_notice(),
                drain_timeout: config.drain_timeout(),
                has_store: engine.store,
                shutdown_grace: config.shutdown_grace(),
                fail_undecodable: config.on_undecodable() == OnUndecodable::Fail,
                stats: Counters::default(),
                outliving: tokio::sync::watch::Sender::new(0),
                _names: names,
                runtime,
            }),
        })
    }
}

/// Every setting that is wrong; it prints one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub Vec<String>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(builder: Builder, vars: &[(&str, &str)]) -> Result<Config, StartError> {
        builder.settings_with(vars.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned()))).map(|(config, _)| config)
    }

    #[test]
    fn the_environment_is_read_only_where_that_was_asked_for() {
        let vars = [("OUTLIVE_NODE", "from-env"), ("OUTLIVE_NONSENSE", "1")];
        assert_eq!(settings(Outlive::builder().node("a"), &vars).unwrap().node.as_deref(), Some("a"));
        let error = settings(Outlive::builder().node("a").env(), &vars).unwrap_err().to_string();
        assert!(error.contains("there is no setting `OUTLIVE_NONSENSE`"), "{error}");
    }

    #[test]
    fn defaults_give_way_to_code_code_to_a_file_and_a_file_to_the_environment() {
        let mut file = Config::default();
        file.set("node", "file").unwrap();
        file.set("zone", "file").unwrap();
        let config = settings(Outlive::builder().config(file).node("code").namespace("code").env(), &[("OUTLIVE_ZONE", "env")]).unwrap();
        assert_eq!((config.node.as_deref(), config.zone.as_deref()), (Some("file"), Some("env")));
        assert_eq!((config.namespace().as_str(), config.cluster.as_deref()), ("code", None));
    }

    #[cfg(feature = "toml")]
    #[test]
    fn what_is_wrong_in_code_in_the_file_and_in_the_environment_is_said_at_once() {
        let path = std::env::temp_dir().join(format!("outlive-builder-{}.toml", std::process::id()));
        std::fs::write(&path, "zone = 'file'\n[session]\nidle_timeout = '30'\n").unwrap();
        let wrong = Outlive::builder().peer("nowhere").node("a.b").file(&path).file("no/such.toml").env();
        let error = settings(wrong, &[("OUTLIVE_BACKUPS", "many")]).unwrap_err().to_string();
        let line = format!("{}:3: session.idle_timeout is \"30\"", path.display());
        for part in ["peer is \"nowhere\"", "node is \"a.b\"", &line, "no/such.toml cannot be read", "OUTLIVE_BACKUPS: backups is \"many\""]
        {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        assert_eq!(error.lines().count(), 5, "{error}");
        std::fs::write(&path, "zone = 'file'\nnode = 'file'").unwrap();
        let right = settings(Outlive::builder().node("code").file(&path).env(), &[("OUTLIVE_ZONE", "env")]).unwrap();
        assert_eq!((right.node.as_deref(), right.zone.as_deref()), (Some("file"), Some("env")));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_loopback_address_is_meant_where_somebody_set_it_and_the_default_is_nobodys_word() {
        let one_machine = |settings: &[(&str, &str)]| {
            let mut config = Config::default();
            for (path, text) in settings {
                config.set(path, text).unwrap();
            }
            config.node_without_store().one_machine
        };
        assert!(!one_machine(&[]));
        assert!(one_machine(&[("peer", "127.0.0.1:0")]) && one_machine(&[("peer", "localhost:7400")]));
        assert!(one_machine(&[("peer", ":7400"), ("advertise", "127.0.0.1:7400")]));
        assert!(!one_machine(&[("peer", "10.0.0.7:7400")]));
        assert!(!one_machine(&[("peer", "127.0.0.1:7400"), ("advertise", "app1:7400")]));
    }

    #[test]
    fn an_address_where_nobody_can_connect_who_finds_it_in_the_store_is_a_wrong_setting() {
        let (reach, addr) = (outlive_store::Reach::Network, "127.0.0.1:7400".parse().unwrap());
        let error = start_error(outlive_runtime::StartError::Loopback { reach, addr });
        assert!(matches!(error, StartError::Config(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("other machines") && text.contains("127.0.0.1:7400") && text.contains("Set peer to"), "{text}");
    }

    #[test]
    fn two_namespaces_with_one_cookie_are_refused_at_the_start() {
        let builder = |namespace: &str, cookie: &'static str| Outlive::builder().namespace(namespace).cookie(Cookie::new().name(cookie));
        let first = builder("names-a", "names-tests").alone().unwrap();
        let error = builder("names-b", "names-tests").alone().unwrap_err();
        assert!(matches!(error, StartError::Config(_)));
        let text = error.to_string();
        assert!(text.contains("`names-b` and `names-a` would share the cookie names-tests"), "{text}");
        assert!(builder("names-b", "names-tests-v").alone().is_err(), "the first one's token has that name");
        assert!(builder("names-a", "names-tests").alone().is_ok(), "another node of the same namespace");
        drop(first);
        assert!(builder("names-b", "names-tests").alone().is_ok(), "the first one has ended");
    }
}
