//! The settings of an application's node, from code, a file and the environment.
//!
//! One table names every setting: its path (`session.idle_timeout`), which is its name in a file and, in capitals with `OUTLIVE_`
//! before it, in the environment; what it may be; and where it goes. Later sources win: defaults, code, file, environment.

#[cfg(feature = "toml")]
pub(crate) mod file;

use crate::cookie::Cookie;
use core::fmt;
use core::time::Duration;
use outlive_core::address::Address;
use outlive_core::config::OnLost;
use outlive_core::limits::RECORD_MAX;
use outlive_core::name::{NameError, check_namespace, check_node};
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

/// Settings. What is not set keeps its default; [`PATHS`](Config::PATHS) lists them all.
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
#[derive(Clone, Default)]
pub struct Config {
    pub(crate) store: Option<String>,
    pub(crate) durability: Option<Durability>,
    pub(crate) consistency: Option<Consistency>,
    pub(crate) backups: Option<u8>,
    pub(crate) min_backups: Option<u8>,
    pub(crate) on_lost: Option<OnLost>,
    pub(crate) on_undecodable: Option<OnUndecodable>,
    pub(crate) lost_after: Option<Duration>,
    pub(crate) namespace: Option<String>,
    pub(crate) cluster: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) zone: Option<String>,
    pub(crate) peer: Option<Address>,
    pub(crate) advertise: Option<Address>,
    pub(crate) http: Option<Address>,
    pub(crate) join: Option<Vec<Address>>,
    pub(crate) secret: Option<[u8; 32]>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) lifetime: Option<Duration>,
    pub(crate) max_size: Option<usize>,
    pub(crate) cookie: Option<Cookie>,
    pub(crate) drain_notice: Option<Duration>,
    pub(crate) drain_timeout: Option<Duration>,
    pub(crate) shutdown_grace: Option<Duration>,
    pub(crate) commit_bound: Option<Duration>,
    pub(crate) open_bound: Option<Duration>,
    pub(crate) danger_plain_peers: Option<bool>,
}

/// It shows which settings there are, not the secret and not the store's URL, which may hold a password.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("durability", &self.durability)
            .field("namespace", &self.namespace)
            .field("node", &self.node)
            .field("peer", &self.peer)
            .field("join", &self.join)
            .field("idle_timeout", &self.idle_timeout)
            .field("lifetime", &self.lifetime)
            .field("cookie", &self.cookie)
            .finish_non_exhaustive()
    }
}

type Set = fn(&mut Config, &str) -> Result<(), &'static str>;

macro_rules! settings {
    ($($path:literal $what:literal $set:expr;)*) => {
        const SETTINGS: &[(&str, Set)] = &[$(($path, $set)),*];

        impl Config {
            /// Every setting's path and what it may be, in the order of the documentation.
            pub const PATHS: &[(&str, &str)] = &[$(($path, $what)),*];
        }
    };
}

settings! {
    "store" "a URL: `sqlite:sessions.db`, `memory`, `none`; default `none`"
        |c, t| some(&mut c.store, Some(t.to_owned()), "a URL");
    "durability" "`owner`, `backup(1)` to `backup(5)`, `store`; default `backup(1)`"
        |c, t| some(&mut c.durability, durability(t), "`owner`, `backup(1)` to `backup(5)` or `store`");
    "consistency" "`available`; `strict` is not built yet"
        |c, t| some(&mut c.consistency, (t == "available").then_some(Consistency::Available), "`available`; `strict` is not built yet");
    "backups" "copies that the response does not wait for, at durability `owner` or `store`: 0 to 5; default 1"
        |c, t| some(&mut c.backups, t.parse().ok(), "a number");
    "min_backups" "with fewer copies a commit is refused: 0 to the number of backups; default 0"
        |c, t| some(&mut c.min_backups, t.parse().ok(), "a number");
    "on_lost" "after a loss: `new` session or `serve` what is left; default `new`"
        |c, t| some(&mut c.on_lost, on_lost(t), "`new` or `serve`");
    "on_undecodable" "an attribute whose bytes its type does not read: `absent`, or `fail` the request; default `absent`"
        |c, t| some(&mut c.on_undecodable, on_undecodable(t), "`absent` or `fail`");
    "lost_after" "how long a dead node has to come back with what no other node has, before that counts as lost; default `30s`"
        |c, t| some(&mut c.lost_after, duration(t), "a duration like `30s`");
    "namespace" "applications of one cluster: 1 to 32 letters, digits, `-`, `_`; default `session`"
        |c, t| some(&mut c.namespace, Some(t.to_owned()), "text");
    "cluster" "the cluster's name: 1 to 255 bytes; default `default`"
        |c, t| some(&mut c.cluster, Some(t.to_owned()), "text");
    "node" "this node's name, unique in the cluster: 1 to 63 letters, digits, `-`, `_`; default: host name and random digits"
        |c, t| some(&mut c.node, Some(t.to_owned()), "text");
    "zone" "where this node stands, so that copies are kept in different places; default: nowhere in particular"
        |c, t| some(&mut c.zone, Some(t.to_owned()), "text");
    "peer" "where other nodes connect, `HOST:PORT`, or `:PORT` for every address of this machine (then `advertise` says which one they \
            reach); default: a free port on loopback, which is enough where all nodes are on one machine"
        |c, t| some(&mut c.peer, t.parse().ok(), "an address like `10.0.0.7:7400`, `app1:7400` or `:7400`");
    "advertise" "the address that other nodes are told, `HOST:PORT`; default: that of `peer`"
        |c, t| some(&mut c.advertise, reachable(t), "the address by which other nodes reach this one, like `10.0.0.7:7400` or `app1:7400`");
    "http" "where this node's HTTP is served, for gateways and the console, `HOST:PORT`, or `:PORT` on the host where other nodes \
            connect; default: not told"
        |c, t| some(&mut c.http, t.parse().ok().filter(|a: &Address| a.port() != 0), "an address like `10.0.0.7:8080`, `app1:8080` or `:8080`");
    "join" "addresses of other nodes, `HOST:PORT`, separated by commas; names are resolved at each try; default: those in the store"
        |c, t| some(&mut c.join, t.split(',').map(str::trim).filter(|t| !t.is_empty()).map(reachable).collect(), "addresses of other nodes like `10.0.0.8:7400, app2:7400`");
    "secret" "64 hex digits, the same on all nodes; default: from the store"
        |c, t| some(&mut c.secret, secret(t), "64 hex digits");
    "session.idle_timeout" "how long a session lives without use, like `30m`; default `30m`"
        |c, t| some(&mut c.idle_timeout, duration(t), "a duration like `30m`, `12h`, `90s`, `500ms`");
    "session.lifetime" "how long a session lives at all, like `24h`; default `24h`"
        |c, t| some(&mut c.lifetime, duration(t), "a duration like `30m`, `12h`, `90s`, `500ms`");
    "session.max_size" "bytes of one session, like `64KiB`; at most and by default `1MiB`"
        |c, t| some(&mut c.max_size, size(t), "a size like `64KiB`, `1MiB`, `4096`");
    "cookie.name" "1 to 48 letters, digits, `-`, `_`, `.`; default `__Host-` and the namespace, `__Secure-` with a domain or a path"
        |c, t| some_cookie(c, Some(t.to_owned()), |cookie, name| cookie.name(name), "text");
    "cookie.secure" "`auto` or `danger_plain_http`; default `auto`"
        |c, t| some_cookie(c, secure(t), |cookie, plain| if plain { cookie.danger_plain_http() } else { cookie.auto() }, "`auto` or `danger_plain_http`");
    "cookie.same_site" "`lax`, `strict`, or `none` for a front end on another site; default `lax`"
        |c, t| some_cookie(c, same_site(t), |cookie, with| with(cookie), "`lax`, `strict` or `none`");
    "cookie.domain" "a domain like `example.com`, whose hosts then share the cookie; default: this host alone"
        |c, t| some_cookie(c, Some(t.to_owned()), |cookie, domain| cookie.domain(domain), "text");
    "cookie.path" "requests below this path alone bring the cookie; default `/`"
        |c, t| some_cookie(c, Some(t.to_owned()), |cookie, path| cookie.path(path), "text");
    "cookie.header" "a header that carries the session beside the cookie, for clients that are not browsers; default: none"
        |c, t| some_cookie(c, Some(t.to_owned()), |cookie, name| cookie.or_header(name), "text");
    "drain_notice" "how long a node keeps accepting requests after SIGTERM at least, while its readiness says `draining`, so that balancers see it; \
                    not after Ctrl-C, nor where no other node lives; default `5s`"
        |c, t| some(&mut c.drain_notice, duration(t), "a duration like `5s`");
    "drain_timeout" "how long sessions may be handed over at the end, like `20s`; default `20s`"
        |c, t| some(&mut c.drain_timeout, duration(t), "a duration like `20s`");
    "shutdown_grace" "how long requests in flight may take at the end, like `10s`; default `10s`"
        |c, t| some(&mut c.shutdown_grace, duration(t), "a duration like `10s`");
    "commit_bound" "how long a commit may wait for its copies before its outcome is called unknown; below the 3 s after which a silent \
                    node counts as dead, each such death fails the commits that wait for it; default `5s`"
        |c, t| some(&mut c.commit_bound, duration(t), "a duration like `5s`");
    "open_bound" "how long a request may wait for its session; default `5s`"
        |c, t| some(&mut c.open_bound, duration(t), "a duration like `5s`");
    "danger_plain_peers" "`true` lets nodes speak unencrypted over a network; default `false`"
        |c, t| some(&mut c.danger_plain_peers, t.parse().ok(), "`true` or `false`");
}

fn some<T>(to: &mut Option<T>, value: Option<T>, want: &'static str) -> Result<(), &'static str> {
    *to = Some(value.ok_or(want)?);
    Ok(())
}

fn some_cookie<T>(c: &mut Config, value: Option<T>, set: fn(Cookie, T) -> Cookie, want: &'static str) -> Result<(), &'static str> {
    let value = value.ok_or(want)?;
    c.cookie = Some(set(c.cookie.take().unwrap_or_default(), value));
    Ok(())
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

    /// Sets one setting from its text, by its path.
    ///
    /// # Errors
    /// A sentence with the path, what was given and what it may be. A secret is not repeated.
    pub fn set(&mut self, path: &str, text: &str) -> Result<(), String> {
        let Some((_, set)) = SETTINGS.iter().find(|(p, _)| *p == path) else {
            return Err(format!("there is no setting `{path}`"));
        };
        set(self, text.trim()).map_err(|want| match path {
            "secret" => format!("{path} must be {want}"),
            _ => format!("{path} is {text:?}, and must be {want}"),
        })
    }

    /// Sets all that the environment says: `OUTLIVE_SESSION_IDLE_TIMEOUT=30m`. Returns every error, an unknown `OUTLIVE_` variable
    /// among them.
    pub(crate) fn read_env(&mut self, vars: impl Iterator<Item = (String, String)>) -> Vec<String> {
        let mut errors = Vec::new();
        for (name, text) in vars {
            let Some(rest) = name.strip_prefix("OUTLIVE_") else { continue };
            let path = SETTINGS.iter().map(|(path, _)| *path).find(|path| path.replace('.', "_").eq_ignore_ascii_case(rest));
            match path.map(|path| self.set(path, &text)) {
                None if is_elsewhere(&name) => {}
                None => errors.push(format!("{name} is no setting")),
                Some(Err(error)) => errors.push(format!("{name}: {error}")),
                Some(Ok(())) => {}
            }
        }
        errors.sort();
        errors
    }

    /// Takes over what `later` sets.
    pub(crate) fn merge(&mut self, later: Config) {
        macro_rules! take { ($($field:ident)*) => { $(if later.$field.is_some() { self.$field = later.$field; })* } }
        take!(store durability consistency backups min_backups on_lost on_undecodable lost_after namespace cluster node zone peer advertise http join secret idle_timeout);
        take!(lifetime max_size drain_notice drain_timeout shutdown_grace commit_bound open_bound danger_plain_peers);
        if let Some(later) = later.cookie {
            self.cookie = Some(self.cookie.take().unwrap_or_default().merged(later));
        }
    }

    /// What is wrong with the settings that the library itself uses; the engine checks its own.
    pub(crate) fn check(&self) -> Vec<String> {
        let mut errors = Vec::new();
        let mut name = |path: &str, text: &Option<String>, check: fn(&str) -> Result<(), NameError>| {
            if let Some(text) = text
                && let Err(why) = check(text)
            {
                errors.push(format!("{path} is {text:?}, and {why}"));
            }
        };
        name("namespace", &self.namespace, check_namespace);
        name("node", &self.node, check_node);
        if let Some(size) = self.max_size.filter(|s| !(1024..=RECORD_MAX).contains(s)) {
            errors.push(format!("session.max_size is {size} B, and must be 1 KiB to {} KiB", RECORD_MAX / 1024));
        }
        for (path, bound) in [("commit_bound", self.commit_bound), ("open_bound", self.open_bound)] {
            if let Some(bound) = bound.filter(|b| !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(b)) {
                errors.push(format!("{path} is {} ms, and must be 10 ms to 60 s", bound.as_millis()));
            }
        }
        if let (None | Some(Durability::Backup(_)), Some(backups)) = (self.durability, self.backups) {
            errors.push(format!("backups is {backups}, and durability says how many there are: `backup(n)`"));
        }
        if matches!(self.durability, Some(Durability::Backup(n)) if n == 0 || n > 5) {
            errors.push("durability must be `owner`, `backup(1)` to `backup(5)` or `store`".to_owned());
        }
        let far = self.join.iter().flatten().find(|addr| !addr.is_loopback());
        if let (None, Some(far)) = (&self.peer, far) {
            errors.push(format!("join names {far}, and peer is not set: nodes of other machines cannot connect to a loopback port"));
        }
        if let Err(error) = self.cookie.clone().unwrap_or_default().resolve(self.namespace()) {
            errors.push(error);
        }
        errors
    }

    pub(crate) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("session")
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
    /// All settings in here, with their paths.
    fn settings(self, path: &str, to: &mut Vec<(String, String)>) {
        match self {
            Said::Section(values) => {
                for (name, value) in values {
                    let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                    value.settings(&path, to);
                }
            }
            Said::List(values) => {
                let mut texts = Vec::new();
                values.into_iter().for_each(|value| value.settings("", &mut texts));
                let texts: Vec<String> = texts.into_iter().map(|(_, text)| text).collect();
                to.push((path.to_owned(), texts.join(",")));
            }
            Said::Truth(truth) => to.push((path.to_owned(), truth.to_string())),
            Said::Number(number) => to.push((path.to_owned(), number.to_string())),
            Said::Text(text) => to.push((path.to_owned(), text)),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Config {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Config, D::Error> {
        let (mut config, mut settings) = (Config::default(), Vec::new());
        Said::Section(serde::Deserialize::deserialize(deserializer)?).settings("", &mut settings);
        let errors: Vec<String> = settings.iter().filter_map(|(path, text)| config.set(path, text).err()).collect();
        if errors.is_empty() { Ok(config) } else { Err(serde::de::Error::custom(errors.join("\n"))) }
    }
}

fn is_elsewhere(name: &str) -> bool {
    Config::ENV_ELSEWHERE.iter().any(|known| *known == name || known.ends_with('_') && name.starts_with(known))
}

fn durability(text: &str) -> Option<Durability> {
    match text {
        "owner" => Some(Durability::Owner),
        "store" => Some(Durability::Store),
        _ => text.strip_prefix("backup(")?.strip_suffix(')')?.parse().ok().filter(|n| (1..=5).contains(n)).map(Durability::Backup),
    }
}

fn on_undecodable(text: &str) -> Option<OnUndecodable> {
    match text {
        "absent" => Some(OnUndecodable::Absent),
        "fail" => Some(OnUndecodable::Fail),
        _ => None,
    }
}

fn on_lost(text: &str) -> Option<OnLost> {
    match text {
        "new" => Some(OnLost::New),
        "serve" => Some(OnLost::Serve),
        _ => None,
    }
}

fn secure(text: &str) -> Option<bool> {
    match text {
        "auto" => Some(false),
        "danger_plain_http" => Some(true),
        _ => None,
    }
}

fn same_site(text: &str) -> Option<fn(Cookie) -> Cookie> {
    match text {
        "lax" => Some(Cookie::lax),
        "strict" => Some(Cookie::strict),
        "none" => Some(Cookie::cross_site),
        _ => None,
    }
}

fn reachable(text: &str) -> Option<Address> {
    text.parse::<Address>().ok()?.reachable().ok()
}

fn secret(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    for (to, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |b: u8| char::from(b).to_digit(16);
        *to = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(bytes)
}

/// A number and its unit.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

fn duration(text: &str) -> Option<Duration> {
    let (n, unit) = number(text)?;
    let seconds = |each: u64| n.checked_mul(each).map(Duration::from_secs);
    match unit {
        "ms" => Some(Duration::from_millis(n)),
        "s" => seconds(1),
        "m" | "min" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(24 * 3600),
        _ => None,
    }
}

fn size(text: &str) -> Option<usize> {
    let (n, unit) = number(text)?;
    let each = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "kB" => 1000,
        "MB" => 1_000_000,
        _ => return None,
    };
    n.checked_mul(each)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> (Config, Vec<String>) {
        let mut config = Config::default();
        let errors = config.read_env(vars.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())));
        (config, errors)
    }

    #[test]
    fn the_environment_sets_what_a_file_sets_with_units() {
        let (config, errors) = env(&[
            ("OUTLIVE_STORE", "sqlite:s.db"),
            ("OUTLIVE_DURABILITY", "backup(2)"),
            ("OUTLIVE_SESSION_IDLE_TIMEOUT", "90 s"),
            ("OUTLIVE_SESSION_LIFETIME", "7d"),
            ("OUTLIVE_SESSION_MAX_SIZE", "64KiB"),
            ("OUTLIVE_COOKIE_SECURE", "danger_plain_http"),
            ("OUTLIVE_COOKIE_NAME", "OUTLIVESID"),
            ("OUTLIVE_JOIN", "a:1, b:2"),
            ("PATH", "/bin"),
        ]);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!((config.durability, config.max_size), (Some(Durability::Backup(2)), Some(65536)));
        assert_eq!((config.idle_timeout, config.lifetime), (Some(Duration::from_secs(90)), Some(Duration::from_secs(604_800))));
        assert_eq!(config.cookie, Some(Cookie::new().danger_plain_http().name("OUTLIVESID")));
        assert_eq!(config.join, Some(vec!["a:1".parse().unwrap(), "b:2".parse().unwrap()]));
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
        assert_eq!(errors.len(), 4);
        assert_eq!(errors[1], "OUTLIVE_DURABILTY is no setting");
        assert!(errors[0].contains("not built yet") && errors[3].contains("\"30\"") && errors[3].contains("like `30m`"));
        assert!(!errors[2].contains("hunter2"), "a secret is repeated");
        assert!(config.check()[0].starts_with("node is \"a.b\""));
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
            ("peer", "7400", "`:7400`"),
            ("advertise", "0.0.0.0:7400", "`app1:7400`"),
            ("advertise", ":7400", "`app1:7400`"),
            ("http", "127.0.0.1:0", "`:8080`"),
            ("http", "https://app1", "`app1:8080`"),
            ("join", "a:1, b", "`10.0.0.8:7400, app2:7400`"),
            ("join", ":7400", "`10.0.0.8:7400, app2:7400`"),
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
    fn a_file_sets_what_the_environment_sets_and_all_its_errors_are_reported_at_once() {
        let text = "node = 'a'\nbackups = 2\ndanger_plain_peers = true\njoin = ['a:1', 'b:2']\n[session]\nidle_timeout = '90s'";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!((config.node.as_deref(), config.backups, config.danger_plain_peers), (Some("a"), Some(2), Some(true)));
        assert_eq!(config.join.as_deref().map(<[_]>::len), Some(2));
        assert_eq!(config.idle_timeout, Some(Duration::from_secs(90)));
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
        let record = include_str!("../../core/src/record.rs");
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
            ("an idle timeout, at least", private(record, "IDLE_MIN: Duration = Duration::from_secs(1);", 1)),
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
            ("a cookie's name", private(include_str!("cookie.rs"), "name.len() > 48", 48)),
            ("`session.max_size`, at least", private(include_str!("config.rs"), "!(1024..=RECORD_MAX)", 1024)),
            ("`commit_bound` and `open_bound`", private(include_str!("config.rs"), "from_millis(10)..=Duration::from_secs(60)", 10)),
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
        assert_eq!((code.node.as_deref(), code.namespace()), (Some("b"), "shop"));
        // A cookie has several settings, too.
        let mut code = Config { cookie: Some(Cookie::new().strict().danger_plain_http().path("/shop")), ..Config::default() };
        code.merge(env(&[("OUTLIVE_COOKIE_NAME", "SHOP"), ("OUTLIVE_COOKIE_SAME_SITE", "lax"), ("OUTLIVE_COOKIE_SECURE", "auto")]).0);
        assert_eq!(code.cookie, Some(Cookie::new().name("SHOP").lax().auto().path("/shop")));
    }

    #[test]
    fn the_longest_node_name_fits_into_the_cookie() {
        let node = "n".repeat(outlive_core::name::NODE_MAX);
        assert!(Config { node: Some(node.clone()), ..Config::default() }.check().is_empty());
        assert!(!Config { node: Some(node + "n"), ..Config::default() }.check().is_empty());
    }

    #[test]
    fn durations_and_sizes_that_do_not_fit_are_refused() {
        assert_eq!(duration("18446744073709551615d"), None);
        assert_eq!((duration(""), duration("s"), duration("-1s"), duration("1 week")), (None, None, None, None));
        assert_eq!((size("18446744073709551615MiB"), size("1 TiB")), (None, None));
    }
}
