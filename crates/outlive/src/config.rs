//! The settings of an application's node, from code, a file and the environment.
//!
//! One [table](crate::settings) names every setting: its path (`session.idle_timeout`), which is its name in a file and, in capitals with
//! `OUTLIVE_` before it, in the environment; its type; its default, where it is not the business of another crate; and what it may be.
//! Later sources win: defaults, code, file, environment.

use crate::cookie::Cookie;
use crate::error::StartError;
pub use crate::settings::Setting;
use crate::settings::{
    Given, Secret, Settings, Size, Spelling, StoreUrl, at_least, give, not_empty, or_why, set, table, unknown, within, words,
};
use core::time::Duration;
use outlive_core::address::{Address, AddressError};
use outlive_core::config::{
    Config as EngineConfig, ConfigError, Durability as EngineDurability, IDLE_MIN, Limits, OnLost, RECORD_MAX_LEAST,
};
use outlive_core::limits::{BACKUPS_MAX, RECORD_MAX};
use outlive_core::name::{NAMESPACE, check_namespace, check_node};
use outlive_runtime::NodeConfig;
use std::collections::BTreeMap;

/// When a response may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Durability {
    /// The owner holds it in memory. A crash loses at most what had not reached a backup or the store yet.
    Owner,
    /// This number of other nodes hold a copy in memory: 1 to 5. With fewer nodes alive the commit says which level it reached.
    Backup(u8),
    /// The store has committed it.
    Store,
}

/// What happens when the nodes of a cluster cannot reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Consistency {
    /// Both sides continue, and their branches are merged afterwards, attribute by attribute.
    #[default]
    Available,
}

/// What a request sees of an attribute whose bytes its type does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnUndecodable {
    /// Nothing; its first write puts the bytes aside.
    Absent,
    /// Nothing, and the request fails whatever its handler returns: nothing is overwritten.
    Fail,
}

table! {
    /// Settings. What is not set keeps its default; [`settings`](Config::settings) lists them all.
    ///
    /// # From a file
    /// With the feature `toml`, [`Builder::file`](crate::Builder::file) reads one, and [`Config::from_file`] where it is wanted as a value. The
    /// paths of the settings are its names, in sections where they have two parts. Later sources win: defaults, code, file, environment. All
    /// errors of all of them are reported at once when the node starts, those of the file with its line, and an unknown name is one.
    ///
    /// ```
    /// # #[cfg(feature = "toml")] {
    /// let outlive_toml = r#"
    ///     durability = "backup(2)"
    ///     peer = ":7400"
    ///     join = ["10.0.0.7:7400", "10.0.0.8:7400"]
    ///     [session]
    ///     idle_timeout = "30m"
    ///     [cookie]
    ///     name = "SHOP"
    /// "#;
    /// # let path = std::env::temp_dir().join(format!("outlive-config-{}.toml", std::process::id()));
    /// # std::fs::write(&path, outlive_toml).unwrap();
    /// let builder = outlive::Outlive::builder().file(&path).env();            // "outlive.toml"
    /// # outlive::Config::from_file(&path).unwrap();
    /// # std::fs::remove_file(&path).unwrap();
    /// # drop(builder);
    /// # }
    /// ```
    ///
    /// It deserialises from any other format that serde knows, too, for [`Builder::config`](crate::Builder::config):
    ///
    /// ```
    /// let text = "session.idle_timeout = '30m'";                              // std::fs::read_to_string(...)?
    /// let config: outlive::Config = toml::from_str(text)?;
    /// let builder = outlive::Outlive::builder().config(config).env();
    /// # drop(builder);
    /// # Ok::<_, toml::de::Error>(())
    /// ```
    #[derive(Eq)]
    pub struct Config with cookie: Cookie {
        "store" store: StoreUrl = StoreUrl("none".to_owned()) => "`sqlite:sessions.db`, `memory` or `none`";
        "durability" durability: Durability = Durability::of(&EngineConfig::default()), if |d| or_why(Durability::read(&d.write()))
            => "When a response may leave: `owner`, `backup(1)` to `backup(5)`, `store`";
        "consistency" consistency: Consistency = Consistency::default() => "`available`; `strict` is not built yet";
        "backups" backups: u8 = EngineConfig::default().backups, if |n| within(n, 0..=BACKUPS_MAX)
            => "Copies that the response does not wait for, at durability `owner` or `store`: 0 to 5";
        "min_backups" min_backups: u8 = EngineConfig::default().min_backups, if |n| within(n, 0..=BACKUPS_MAX)
            => "With fewer copies a commit is refused: 0 to the number of backups";
        "on_lost" on_lost: OnLost = EngineConfig::default().on_lost => "After a loss: `new` session or `serve` what is left";
        "on_undecodable" on_undecodable: OnUndecodable = OnUndecodable::Absent
            => "An attribute whose bytes its type does not read: `absent`, or `fail` the request";
        "lost_after" lost_after: Duration = EngineConfig::default().lost_after
            => "How long a dead node has to come back with what no other node has, before that counts as lost";
        "namespace" namespace: String = NAMESPACE.to_owned(), if |name| or_why(check_namespace(name))
            => "Applications of one cluster: 1 to 32 letters, digits, `-`, `_`";
        "cluster" cluster: String = NodeConfig::default().cluster, if |name| not_empty(name) => "The cluster's name: 1 to 255 bytes";
        "node" node: String, if |name| or_why(check_node(name))
            => "This node's name, unique in the cluster: 1 to 63 letters, digits, `-`, `_`; otherwise the host's and random digits";
        "zone" zone: String => "Where this node stands, so that copies are kept in different places; otherwise nowhere in particular";
        "peer" peer: Address
            => "Where other nodes connect, or `:PORT` for every address of this machine (then `advertise` says which one they reach); \
                otherwise a free port on loopback, which is enough where all nodes are on one machine";
        "advertise" advertise: Address, if reachable => "The address that other nodes are told; otherwise that of `peer`";
        "http" http: Address, if has_port
            => "Where this node's HTTP is served, for gateways and the console, or `:PORT` on the host where other nodes connect; \
                otherwise it is not told";
        "join" join: Vec<Address>, if |nodes| nodes.iter().try_for_each(reachable)
            => "Addresses of other nodes, whose names are resolved at each try; otherwise those in the store";
        "secret" secret: Secret => "64 hex digits, the same on all nodes; otherwise from the store";
        "session.idle_timeout" idle_timeout: Duration = Limits::default().idle, if |idle| at_least(idle, IDLE_MIN)
            => "How long a session lives without use";
        "session.lifetime" lifetime: Duration = Limits::default().lifetime => "How long a session lives at all";
        "session.max_size" max_size: Size = Size(RECORD_MAX), if |size| within(size, Size(RECORD_MAX_LEAST)..=Size(RECORD_MAX))
            => "Bytes of one session";
        "drain_notice" drain_notice: Duration = Duration::from_secs(5)
            => "How long a node keeps accepting requests after SIGTERM at least, while its readiness says `draining`, so that balancers \
                see it; not after Ctrl-C, nor where no other node lives";
        "drain_timeout" drain_timeout: Duration = Duration::from_secs(20) => "How long sessions may be handed over at the end";
        "shutdown_grace" shutdown_grace: Duration = Duration::from_secs(10) => "How long requests in flight may take at the end";
        "commit_bound" commit_bound: Duration = NodeConfig::default().commit_bound, if bound
            => "How long a commit may wait for its copies before its outcome is called unknown; below the 3 s after which a silent node \
                counts as dead, each such death fails the commits that wait for it";
        "open_bound" open_bound: Duration = NodeConfig::default().open_bound, if bound => "How long a request may wait for its session";
        "danger_plain_peers" danger_plain_peers: bool = NodeConfig::default().danger_plain_peers
            => "Lets nodes speak unencrypted over a network";
    }
}

impl Spelling for Consistency {
    const UNIT: &'static str = "C";

    fn read(text: &str) -> Result<Consistency, String> {
        if text == "available" { Ok(Consistency::Available) } else { Err("must be `available`: `strict` is not built yet".to_owned()) }
    }

    fn write(&self) -> String {
        match self {
            Consistency::Available => "available".to_owned(),
        }
    }
}

words! {
    OnUndecodable: "absent" OnUndecodable::Absent, "fail" OnUndecodable::Fail;
}

/// What [`Config::commit_bound`] and [`Config::open_bound`] may be.
fn bound(bound: &Duration) -> Result<(), String> {
    within(bound, BOUNDS.0..=BOUNDS.1)
}

const BOUNDS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(60));

fn reachable(address: &Address) -> Result<(), String> {
    or_why(address.clone().reachable())
}

fn has_port(address: &Address) -> Result<(), String> {
    if address.port() == 0 { Err(AddressError::NoPort.to_string()) } else { Ok(()) }
}

impl Durability {
    fn of(engine: &EngineConfig) -> Durability {
        match engine.durability {
            EngineDurability::Owner => Durability::Owner,
            EngineDurability::Backup => Durability::Backup(engine.backups),
            EngineDurability::Store => Durability::Store,
        }
    }
}

impl Spelling for Durability {
    const UNIT: &'static str = "D";

    fn read(text: &str) -> Result<Durability, String> {
        let copies = || text.strip_prefix("backup(")?.strip_suffix(')')?.parse().ok().filter(|n| (1..=BACKUPS_MAX).contains(n));
        match text {
            "owner" => Ok(Durability::Owner),
            "store" => Ok(Durability::Store),
            _ => copies()
                .map(Durability::Backup)
                .ok_or_else(|| format!("must be `owner`, `backup(1)` to `backup({BACKUPS_MAX})` or `store`")),
        }
    }

    fn write(&self) -> String {
        match self {
            Durability::Owner => "owner".to_owned(),
            Durability::Backup(copies) => format!("backup({copies})"),
            Durability::Store => "store".to_owned(),
        }
    }
}

impl Config {
    /// Environment variables of other parts of Outlive, which a node leaves alone: names, or beginnings of names where they end in `_`.
    /// Any other `OUTLIVE_` variable that is no setting is an error, because it is probably a mistyped setting.
    pub const ENV_ELSEWHERE: &[&str] = &[
        "OUTLIVE_CONFIG",
        "OUTLIVE_CACHE",
        "OUTLIVE_SKIP",
        "OUTLIVE_WITHOUT_BROWSER",
        "OUTLIVE_BENCH_",
        "OUTLIVE_DEMO_",
        "OUTLIVE_GATEWAY_",
        "OUTLIVE_NODE_",
        "OUTLIVE_SIM_",
        "OUTLIVE_STATUS_",
    ];

    /// Every setting, in the order of the documentation.
    #[must_use]
    pub fn settings() -> Vec<Setting> {
        <Config as Settings>::settings()
    }

    /// Sets one setting from its text, by its path.
    ///
    /// # Errors
    /// A sentence with the path, what was given and what it may be. A secret is not repeated.
    pub fn set(&mut self, path: &str, text: &str) -> Result<(), String> {
        set(self, path, text)
    }

    /// Reads a TOML file. A file that is not there is an error, too.
    ///
    /// # Errors
    /// [`StartError::Config`], with all that is wrong, one a line: the file, the line in it, and what may stand there.
    /// [`Builder::file`](crate::Builder::file) says these together with what is wrong elsewhere.
    #[cfg(feature = "toml")]
    pub fn from_file(path: impl AsRef<std::path::Path>) -> Result<Config, StartError> {
        let mut config = Config::default();
        let errors = config.read_file(path.as_ref());
        if errors.is_empty() { Ok(config) } else { Err(StartError::Config(crate::error::Errors(errors))) }
    }

    /// Sets all that a file says. Returns every error.
    #[cfg(feature = "toml")]
    pub(crate) fn read_file(&mut self, path: &std::path::Path) -> Vec<String> {
        let name = path.display();
        match std::fs::read_to_string(path) {
            Ok(text) => self.read_toml(&name.to_string(), &text),
            Err(error) => vec![format!("the settings {name} cannot be read: {error}")],
        }
    }

    #[cfg(feature = "toml")]
    fn read_toml(&mut self, name: &str, text: &str) -> Vec<String> {
        let sections = Config::settings().iter().filter_map(|setting| Some(setting.path.split_once('.')?.0)).collect();
        crate::settings::read_toml(name, text, &sections, &mut |path, given| give(self, path, given))
    }

    /// Sets all that the environment says: `OUTLIVE_SESSION_IDLE_TIMEOUT=30m`. Returns every error, an unknown `OUTLIVE_` variable
    /// among them.
    pub(crate) fn read_env(&mut self, vars: impl Iterator<Item = (String, String)>) -> Vec<String> {
        let (mut errors, settings) = (Vec::new(), Config::settings());
        for (name, text) in vars.filter(|(name, _)| name.starts_with("OUTLIVE_")) {
            match settings.iter().find(|setting| setting.env().eq_ignore_ascii_case(&name)) {
                Some(setting) => errors.extend(self.set(setting.path, &text).err().map(|error| format!("{name}: {error}"))),
                None if is_elsewhere(&name) => {}
                None => errors.push(unknown("setting", &name, settings.iter().map(Setting::env))),
            }
        }
        errors.sort();
        errors
    }

    /// What is wrong with the settings, each of them and together.
    #[doc(hidden)]
    pub fn check(&self) -> Vec<String> {
        let mut errors = self.wrong();
        if let (None | Some(Durability::Backup(_)), Some(backups)) = (self.durability, self.backups) {
            errors.push(format!("backups is {backups}, and durability says how many there are: `backup(n)`"));
        }
        let far = self.join.iter().flatten().find(|addr| !addr.is_loopback());
        if let (None, Some(far)) = (&self.peer, far) {
            errors.push(format!("join names {far}, and peer is not set: nodes of other machines cannot connect to a loopback port"));
        }
        errors.extend(self.cookie.clash());
        // What it says of single values is said already.
        let said = |error: &&ConfigError| !matches!(error, ConfigError::Range { name: "backups" | "record_max" | "idle_timeout", .. });
        errors.extend(self.engine().check().err().iter().flatten().filter(said).map(ToString::to_string));
        errors
    }

    /// How long a drain may take.
    #[doc(hidden)]
    #[must_use]
    pub fn drain_limit(&self) -> Duration {
        self.drain_timeout()
    }

    /// What the engine makes of it.
    pub(crate) fn engine(&self) -> EngineConfig {
        let (durability, backups) = match self.durability() {
            Durability::Owner => (EngineDurability::Owner, self.backups()),
            Durability::Backup(n) => (EngineDurability::Backup, n),
            Durability::Store => (EngineDurability::Store, self.backups()),
        };
        EngineConfig {
            durability,
            backups,
            min_backups: self.min_backups(),
            on_lost: self.on_lost(),
            lost_after: self.lost_after(),
            store: self.store().some().is_some(),
            limits: Limits { idle: self.idle_timeout(), lifetime: self.lifetime() },
            record_max: self.max_size().0,
            ..EngineConfig::default()
        }
    }

    /// What the runtime makes of it; the store is opened.
    ///
    /// # Errors
    /// [`StartError`].
    #[doc(hidden)]
    pub async fn node(&self) -> Result<NodeConfig, StartError> {
        let mut node = self.node_without_store();
        if let Some(url) = self.store().some() {
            let store = outlive_store::open(url).await;
            node.store = Some(store.map_err(|source| StartError::Store { source: Box::new(source) })?);
        }
        Ok(node)
    }

    /// The same, before the store is opened.
    #[doc(hidden)]
    #[must_use]
    pub fn node_without_store(&self) -> NodeConfig {
        let mut node = NodeConfig::default();
        node.name = self.node.clone();
        node.zone = self.zone.clone();
        node.cluster = self.cluster();
        node.listen = self.peer.clone().or(node.listen);
        node.advertise = self.advertise.clone();
        // Whoever sets a loopback address means it; the default is nobody's word.
        node.one_machine = self.advertise.as_ref().or(self.peer.as_ref()).is_some_and(Address::is_loopback);
        node.http = self.http.clone();
        node.join = self.join.clone().unwrap_or_default();
        node.secret = self.secret.map(|secret| secret.0);
        node.engine = self.engine();
        node.commit_bound = self.commit_bound();
        node.open_bound = self.open_bound();
        node.danger_plain_peers = self.danger_plain_peers();
        node
    }
}

/// A value in a file: a section, or what the environment says as a text.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Said {
    Section(BTreeMap<String, Said>),
    List(Vec<Said>),
    Truth(bool),
    Number(u64),
    Text(String),
}

impl Said {
    /// Sets all settings in here.
    fn give(self, path: &str, to: &mut Config, errors: &mut Vec<String>) {
        let given = match self {
            Said::Section(values) => {
                for (name, value) in values {
                    let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                    value.give(&path, to, errors);
                }
                return;
            }
            Said::List(values) => {
                let texts: Vec<String> = values.into_iter().map(Said::text).collect();
                give(to, path, Given::List(&texts))
            }
            one => give(to, path, Given::One(&one.text())),
        };
        errors.extend(given.err());
    }

    fn text(self) -> String {
        match self {
            Said::Truth(truth) => truth.to_string(),
            Said::Number(number) => number.to_string(),
            Said::Text(text) => text,
            Said::List(_) => "a list in a list".to_owned(),
            Said::Section(_) => "a section in a list".to_owned(),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Config {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Config, D::Error> {
        let (mut config, mut errors) = (Config::default(), Vec::new());
        Said::Section(serde::Deserialize::deserialize(deserializer)?).give("", &mut config, &mut errors);
        if errors.is_empty() { Ok(config) } else { Err(serde::de::Error::custom(errors.join("\n"))) }
    }
}

fn is_elsewhere(name: &str) -> bool {
    Config::ENV_ELSEWHERE.iter().any(|known| *known == name || known.ends_with('_') && name.starts_with(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> (Config, Vec<String>) {
        let mut config = Config::default();
        let errors = config.read_env(vars.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())));
        (config, errors)
    }

    /// Of each setting a value that is not its default, as it is written.
    const VALUES: [(&str, &str); 32] = [
        ("store", "sqlite:s.db"),
        ("durability", "backup(2)"),
        ("consistency", "available"),
        ("backups", "3"),
        ("min_backups", "1"),
        ("on_lost", "serve"),
        ("on_undecodable", "fail"),
        ("lost_after", "45s"),
        ("namespace", "shop"),
        ("cluster", "blue"),
        ("node", "a"),
        ("zone", "z1"),
        ("peer", "app1:7400"),
        ("advertise", "app1:7401"),
        ("http", "app1:8080"),
        ("join", "a:1,[::1]:2"),
        ("secret", "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e"),
        ("session.idle_timeout", "90s"),
        ("session.lifetime", "7d"),
        ("session.max_size", "64KiB"),
        ("drain_notice", "1500ms"),
        ("drain_timeout", "1m"),
        ("shutdown_grace", "0s"),
        ("commit_bound", "10ms"),
        ("open_bound", "59s"),
        ("danger_plain_peers", "true"),
        ("cookie.name", "SHOP"),
        ("cookie.secure", "danger_plain_http"),
        ("cookie.same_site", "strict"),
        ("cookie.domain", "example.com"),
        ("cookie.path", "/shop"),
        ("cookie.header", "x-session"),
    ];

    #[test]
    fn every_setting_is_the_same_from_code_a_file_and_the_environment_and_comes_back_as_it_was_written() {
        assert_eq!(Config::settings().iter().map(|setting| setting.path).collect::<Vec<_>>(), VALUES.map(|(path, _)| path));
        for (path, text) in VALUES {
            let mut code = Config::default();
            code.set(path, text).unwrap();
            assert_ne!(code, Config::default(), "{path}");
            assert_eq!(code.text(path).as_deref(), Some(text));
            let setting = Config::settings().into_iter().find(|setting| setting.path == path).unwrap();
            let (from_env, errors) = env(&[(&setting.env(), text)]);
            assert!(errors.is_empty() && from_env == code, "{path}: {errors:?}");
            let line = match setting.kind {
                crate::settings::Kind::Many => format!("{path} = ['{}']", text.replace(',', "', '")),
                _ => format!("{path} = '{text}'"),
            };
            assert_eq!(toml::from_str::<Config>(&line).unwrap(), code, "{line}");
            #[cfg(feature = "toml")]
            assert_eq!(file(&line).unwrap(), code, "{line}");
            let mut merged = Config::default();
            merged.merge(code.clone());
            assert_eq!(merged, code, "{path}");
            merged.merge(Config::default());
            assert_eq!(merged, code, "{path}");
            // Its default is a value of it, and is what an engine has that is told nothing.
            if let Some(default) = setting.default {
                let mut told = Config::default();
                told.set(path, &default).unwrap();
                assert_eq!(format!("{:?}", told.node_without_store().engine), format!("{:?}", EngineConfig::default()), "{path}");
            }
        }
    }

    #[test]
    fn a_value_beyond_its_limit_is_refused_with_the_limit_wherever_it_comes_from() {
        for (path, text, want) in [
            ("backups", "6", "must be 0 to 5"),
            ("min_backups", "-1", "must be a whole number"),
            ("durability", "backup(6)", "must be `owner`, `backup(1)` to `backup(5)` or `store`"),
            ("session.idle_timeout", "999ms", "must be at least 1s"),
            ("session.max_size", "2MiB", "must be 1KiB to 1MiB"),
            ("session.max_size", "1023", "must be 1KiB to 1MiB"),
            ("commit_bound", "9ms", "must be 10ms to 1m"),
            ("open_bound", "61s", "must be 10ms to 1m"),
            ("namespace", "a.b", "must be 1 to 32 letters"),
            ("cluster", "", "must not be empty"),
            ("on_lost", "keep", "must be `new` or `serve`"),
            ("cookie.name", "a b", "must be 1 to 48 letters"),
            ("cookie.domain", "10.0.0.7", "an address has no hosts below it"),
            ("cookie.header", "a b", "is not a header's name"),
        ] {
            let error = Config::default().set(path, text).unwrap_err();
            assert_eq!(error.split(want).next(), Some(format!("{path} is {text:?}, and ").as_str()), "{error}");
        }
        let code = Config { idle_timeout: Some(Duration::ZERO), commit_bound: Some(Duration::MAX), ..Config::default() };
        let errors = code.check();
        assert_eq!(errors[0], "session.idle_timeout is \"0s\", and must be at least 1s");
        assert!(errors.len() == 2 && errors[1].ends_with("must be 10ms to 1m"), "{errors:?}");
        // What does not go together.
        for (settings, want) in [
            (&[("backups", "2")][..], "durability says how many"),
            (&[("durability", "store")], "needs a store"),
            (&[("min_backups", "2")], "no more than backups"),
            (&[("session.lifetime", "1m")], "no less than idle_timeout"),
            (&[("cookie.secure", "danger_plain_http"), ("cookie.same_site", "none")], "over HTTPS only"),
        ] {
            let mut config = Config::default();
            settings.iter().for_each(|(path, text)| config.set(path, text).unwrap());
            let errors = config.check();
            assert!(errors.len() == 1 && errors[0].contains(want), "{errors:?}");
        }
    }

    #[test]
    fn what_is_shown_of_settings_is_neither_the_secret_nor_the_stores_url() {
        let (config, _) = env(&[("OUTLIVE_SECRET", &"5e".repeat(32)), ("OUTLIVE_STORE", "postgres://u:hunter2@db")]);
        let shown = format!("{config:?}");
        assert!(!shown.contains("94, 94") && !shown.contains("5e5e") && !shown.contains("hunter2"), "{shown}");
    }

    #[cfg(feature = "toml")]
    fn file(text: &str) -> Result<Config, Vec<String>> {
        let mut config = Config::default();
        let errors = config.read_toml("shop.toml", text);
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }

    #[cfg(feature = "toml")]
    #[test]
    fn numbers_truths_and_lists_of_a_file_need_no_quotes() {
        let text = "backups = 0x2\ndanger_plain_peers = true\njoin = ['a:1', 'b:2']\n[session]\nmax_size = 65_536";
        let config = file(text).unwrap();
        assert_eq!((config.backups, config.danger_plain_peers, config.max_size), (Some(2), Some(true), Some(Size(65_536))));
        assert_eq!(config.join.as_deref().map(<[_]>::len), Some(2));
    }

    #[cfg(feature = "toml")]
    #[test]
    fn every_error_of_a_file_is_said_at_once_with_its_line_and_no_secret() {
        let text = "ndoe = 'a'\nsecret = 'hunter2'\n\n[session]\nidle_timeout = 30\nlifetme = '1d'\n[shop]\nname = 'x'\n\n[cookie]\nname = ['a', 'b']\n[cookies]";
        let errors = file(text).unwrap_err();
        assert_eq!(errors.len(), 7, "{errors:#?}");
        assert_eq!(errors[0], "shop.toml:1: there is no setting `ndoe`; did you mean `node`?");
        assert_eq!(errors[1], "shop.toml:2: secret must be 64 hex digits");
        assert!(errors[2].starts_with("shop.toml:5: session.idle_timeout is \"30\", and must be a duration like `30s`"), "{errors:#?}");
        assert_eq!(errors[3], "shop.toml:6: there is no setting `session.lifetme`; did you mean `session.lifetime`?");
        assert_eq!(errors[4], "shop.toml:7: there is no section `shop`");
        assert_eq!(errors[5], "shop.toml:11: cookie.name is a list, and takes one value");
        assert_eq!(errors[6], "shop.toml:12: there is no section `cookies`; did you mean `cookie`?");
        assert_eq!(file("session = 3").unwrap_err(), ["shop.toml:1: `session` is a section: write [session]"]);
    }

    #[cfg(feature = "toml")]
    #[test]
    fn what_is_no_toml_is_said_with_its_line_and_without_the_text() {
        for text in ["node = 'a'\nsecret = 'hunter2", "node = 'a'\nsecret = hunter2\n", "node = 'a'\nnode = 'hunter2'"] {
            let error = file(text).unwrap_err().concat();
            assert!(error.starts_with("shop.toml:2: it is no TOML: ") && !error.contains("hunter2"), "{error}");
        }
    }

    #[cfg(feature = "toml")]
    #[test]
    fn a_file_that_is_not_there_is_an_error_that_names_it() {
        let error = Config::from_file("no/such/shop.toml").unwrap_err().to_string();
        assert!(error.starts_with("the settings no/such/shop.toml cannot be read: "), "{error}");
    }

    #[test]
    fn all_errors_are_reported_at_once_and_an_unknown_setting_is_one() {
        let (config, errors) = env(&[
            ("OUTLIVE_SESSION_IDLE_TIMEOUT", "30"),
            ("OUTLIVE_DURABILTY", "store"),
            ("OUTLIVE_CONSISTENCY", "strict"),
            ("OUTLIVE_SECRET", "hunter2"),
            ("OUTLIVE_NODE", "a.b"),
        ]);
        assert!(config == Config::default() && errors.len() == 5, "{errors:#?}");
        assert!(errors[0].contains("not built yet") && errors[1].starts_with("OUTLIVE_NODE: node is \"a.b\", and must be"), "{errors:#?}");
        assert!(errors[3].starts_with("OUTLIVE_SESSION_IDLE_TIMEOUT: session.idle_timeout is \"30\""), "{errors:#?}");
        assert_eq!(errors[2], "OUTLIVE_SECRET: secret must be 64 hex digits");
        assert_eq!(errors[4], "there is no setting `OUTLIVE_DURABILTY`; did you mean `OUTLIVE_DURABILITY`?");
    }

    #[test]
    fn variables_of_other_parts_are_left_alone_and_a_mistyped_one_is_not() {
        let theirs = [("OUTLIVE_GATEWAY_LISTEN", "x"), ("OUTLIVE_DEMO_NODES", "3"), ("OUTLIVE_NODE_NAME", "n"), ("OUTLIVE_CONFIG", "f")];
        let (config, errors) = env(&theirs);
        assert!(errors.is_empty() && config.node.is_none(), "{errors:?}");
        let mistyped = ["OUTLIVE_GATEWAI_LISTEN", "OUTLIVE_NODES", "OUTLIVE_CONFIGS", "OUTLIVE_"];
        let (_, errors) = env(&mistyped.map(|name| (name, "x")));
        assert_eq!(errors.len(), mistyped.len(), "{errors:?}");
    }

    #[test]
    fn nodes_of_several_machines_need_a_peer_address_and_those_of_one_do_not() {
        let join = |list: &str, peer| {
            let mut config = Config { peer, ..Config::default() };
            config.set("join", list).unwrap();
            config.check()
        };
        assert!(join("127.0.0.1:7400, localhost:1, [::1]:2", None).is_empty());
        assert!(join("127.0.0.1:7400, 10.0.0.7:7400", None)[0].contains("10.0.0.7:7400, and peer is not set"));
        assert!(join("db.example:7400", "10.0.0.1:7400".parse().ok()).is_empty());
    }

    #[test]
    fn an_address_that_nobody_could_use_is_refused_and_the_sentence_says_what_can_be() {
        for (path, bad, good) in [
            ("peer", "7400", "such as app1:7400"),
            ("advertise", "0.0.0.0:7400", "such as app1:7400"),
            ("advertise", ":7400", "such as app1:7400"),
            ("http", "127.0.0.1:0", "as in app1:8080"),
            ("http", "https://app1", "write http://HOST:PORT"),
            ("join", "a:1, b", "such as app1:7400"),
            ("join", ":7400", "such as app1:7400"),
        ] {
            let error = Config::default().set(path, bad).unwrap_err();
            assert!(error.contains(good), "{path} {bad}: {error}");
        }
        for (path, good) in
            [("peer", "app1:7400"), ("peer", ":7400"), ("http", "http://127.0.0.1:8080"), ("http", "localhost:8080"), ("http", ":80")]
        {
            Config::default().set(path, good).unwrap();
        }
    }

    #[test]
    fn another_formats_errors_are_reported_at_once_too() {
        let wrong = "ndoe = 'a'\nsecret = 'hunter2'\n[session]\nidle_timeout = '30'\nlifetme = '1d'";
        let error = toml::from_str::<Config>(wrong).unwrap_err().to_string();
        for part in ["`ndoe`", "secret must be", "session.idle_timeout is \"30\"", "`session.lifetme`"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        assert!(!error.lines().any(|line| line.starts_with("secret must be") && line.contains("hunter2")));
    }

    #[test]
    fn the_page_of_limits_says_what_the_code_does() {
        use outlive_core::limits as core;
        use outlive_core::name::{NAMESPACE_MAX, NODE_MAX};
        let page = include_str!("../../../docs/limits.md");
        // What another crate keeps to itself is held against its text.
        let private = |text: &str, line: &str, value: u64| {
            assert!(text.contains(line), "{line}");
            value
        };
        let waiting = include_str!("../../runtime/src/waiting.rs");
        let parked = include_str!("../../core/src/parked.rs");
        let storing = include_str!("../../runtime/src/storing.rs");
        let carrier = include_str!("cookie/carrier.rs");
        let node = include_str!("../../runtime/src/node.rs");
        let rows = [
            ("a session, names and values and 64 bytes for each attribute", RECORD_MAX as u64),
            ("attributes of a session", core::ATTRIBUTES_MAX as u64),
            ("an attribute's name, with scope and item", core::NAME_MAX as u64),
            ("a key's name, and its scope", crate::key::NAME_MAX as u64),
            ("a user's name", crate::session::USER_MAX as u64),
            ("`remember`", crate::session::REMEMBER_MAX.as_secs()),
            ("an idle timeout, at least", IDLE_MIN.as_secs()),
            ("the first life of a session whose cookie has not come back", core::FIRST_LIFETIME.as_secs()),
            ("how long it is known of a session that it ended, unless it would not have lived that long", core::ENDED_KEEP.as_secs()),
            ("moves within 10 seconds", u64::from(core::MOVES_MAX)),
            ("losses that a session remembers", core::GAPS_MAX as u64),
            ("requests that wait for one session, under `exclusive`", crate::turn::WAITERS_MAX as u64),
            ("how long each of them waits", crate::turn::WAIT_MAX.as_secs()),
            ("ids of ours in one request's cookies", crate::request::IDS_MAX as u64),
            ("version tokens in one request's cookies", private(carrier, "TOKENS_MAX: usize = 8;", 8)),
            ("how long one thread waits for another's closure", crate::live::LOCK_MAX_S),
            ("requests that wait for one session's commits", private(waiting, "PER_SESSION: usize = 256;", 256)),
            ("how long a change goes after a session that has moved", private(parked, "BOUND: Duration = Duration::from_secs(5);", 5)),
            ("how long a logout waits for every node", core::END_BOUND.as_secs()),
            ("how long a rotation keeps others of its session away, if its node goes", crate::node::ROTATING_S.into()),
            ("events that a reader has not fetched", private(node, "events: broadcast::Sender::new(4096)", 4096)),
            ("sessions that it owns", outlive_core::config::Config::default().sessions_max),
            ("sessions that it asks for at once", core::ROUNDS_MAX as u64),
            ("requests that wait for one session while its owner changes", core::WAITING_MAX as u64),
            ("how long other nodes' changes of a session wait for its rotation", core::ROTATION_BOUND.as_secs()),
            ("ended sessions that it knows of", core::ENDED_MAX as u64),
            ("how long \"nobody has it\" is remembered", core::NOT_FOUND_KEEP.as_secs()),
            ("bytes that wait for a slow peer", core::OUTBOX_MAX as u64),
            ("changes that wait for a peer's acknowledgement", core::UNACKED_MAX as u64),
            ("a frame between nodes", core::FRAME_MAX as u64),
            ("rows that wait to be read from the store", private(storing, "QUEUE: usize = 65_536;", 65_536)),
            ("backups", u64::from(core::BACKUPS_MAX)),
            ("a node's name", NODE_MAX as u64),
            ("a namespace's name", NAMESPACE_MAX as u64),
            ("the cluster's name", private(include_str!("../../core/src/member/packet.rs"), "TEXT_MAX: usize = 255;", 255)),
            ("a cookie's name", crate::cookie::NAME_MAX as u64),
            ("`session.max_size`, at least", RECORD_MAX_LEAST as u64),
            ("`commit_bound` and `open_bound`", BOUNDS.0.as_millis() as u64),
        ];
        assert_eq!(page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what")).count(), rows.len());
        for (what, limit) in rows {
            let row = page.lines().find(|line| line.starts_with(&format!("| {what} |"))).unwrap_or_else(|| panic!("{what} is not there"));
            let cell = row.split('|').nth(2).unwrap().trim();
            assert_eq!(cell.split([' ', ',']).next(), Some(limit.to_string().as_str()), "{what}");
        }
    }

    #[test]
    fn a_fixed_number_of_the_protocol_is_on_the_page_of_limits_or_nobody_meets_it() {
        let on_the_page = [
            "FRAME_MAX",
            "RECORD_MAX",
            "ATTRIBUTES_MAX",
            "NAME_MAX",
            "GAPS_MAX",
            "BACKUPS_MAX",
            "ROUNDS_MAX",
            "WAITING_MAX",
            "NOT_FOUND_KEEP",
            "MOVES_MAX",
            "MOVES_WINDOW",
            "ENDED_KEEP",
            "END_BOUND",
            "ROTATION_BOUND",
            "ENDED_MAX",
            "FIRST_LIFETIME",
            "UNACKED_MAX",
            "OUTBOX_MAX",
        ];
        // How nodes agree; what a handler or an operator meets does not depend on them.
        let inside = [
            "LINEAGE_MAX",
            "MEMBERS_MAX",
            "VIEWS_MAX",
            "PROMISES_MAX",
            "PROMISE_KEEP",
            "ROUND_TRIES",
            "BACK_OFF",
            "ORPHANS_MAX",
            "FORMER_MAX",
            "HEIR_STEP",
            "LOOKUP_BOUND_SUSPECT",
            "LOOKUP_BOUND_SLOW",
            "SLOW_KEEP",
        ];
        let names = include_str!("../../core/src/limits.rs").lines().filter_map(|line| line.strip_prefix("pub const ")?.split(':').next());
        for name in names {
            assert!(on_the_page.contains(&name) != inside.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_later_source_wins_and_keeps_what_it_does_not_name() {
        let (mut code, _) = env(&[("OUTLIVE_NODE", "a"), ("OUTLIVE_NAMESPACE", "shop")]);
        code.merge(env(&[("OUTLIVE_NODE", "b")]).0);
        assert_eq!((code.node.as_deref(), code.namespace().as_str()), (Some("b"), "shop"));
        let (mut code, _) = env(&[]);
        code.cookie = Cookie::new().strict().danger_plain_http().path("/shop");
        code.merge(env(&[("OUTLIVE_COOKIE_NAME", "SHOP"), ("OUTLIVE_COOKIE_SAME_SITE", "none")]).0);
        assert_eq!(code.cookie, Cookie::new().name("SHOP").cross_site().danger_plain_http().path("/shop"));
    }

    #[test]
    fn the_longest_node_name_fits_into_the_cookie() {
        let node = "n".repeat(outlive_core::name::NODE_MAX);
        assert!(Config { node: Some(node.clone()), ..Config::default() }.check().is_empty());
        assert!(!Config { node: Some(node + "n"), ..Config::default() }.check().is_empty());
    }
}
