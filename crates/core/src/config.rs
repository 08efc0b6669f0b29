//! What a deployment chooses about the engine.

use core::fmt;
use core::ops::Deref;
use core::time::Duration;

use crate::limits::{BACKUPS_MAX, FIRST_LIFETIME, RECORD_MAX};
use crate::plant::Bug;

/// The shortest idle timeout.
pub const IDLE_MIN: Duration = Duration::from_secs(1);
/// The least that a session's bytes can be limited to.
pub const RECORD_MAX_LEAST: usize = 1024;

/// When a response may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Durability {
    /// The owner holds it in memory. A crash loses at most what had not reached a backup or the store yet.
    Owner,
    /// The backups of the placement list hold a full copy in memory.
    #[default]
    Backup,
    /// The store has committed it.
    Store,
}

/// The durability that a commit really got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Only the owner holds it.
    Owner,
    /// So many other nodes hold a full copy in memory.
    Backup(u8),
    /// The store has it.
    Store,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Level::Owner => f.write_str("owner"),
            Level::Backup(n) => write!(f, "backup({n})"),
            Level::Store => f.write_str("store"),
        }
    }
}

/// Which nodes are told the stamp of every session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Reach {
    /// Every node up to 8 nodes, the placement list above.
    #[default]
    Auto,
    /// Every node: each refuses or looks further where its copy is old, even if the client brings no token.
    Everyone,
    /// The placement list alone: costs nothing that grows with the number of nodes.
    Placement,
}

/// What follows when a commit that a client has seen is nowhere to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OnLost {
    /// The application gets an empty session under the same id.
    #[default]
    New,
    /// The application gets the newest state that is left.
    Serve,
}

/// How long a session lives. A session keeps those of the node where it began, on every node: nodes need not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Without use. Default 30 minutes.
    pub idle: Duration,
    /// At all. Default 24 hours.
    pub lifetime: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { idle: Duration::from_secs(1800), lifetime: Duration::from_secs(24 * 3600) }
    }
}

impl Limits {
    /// The idle timeout; shorter while the session's cookie has not come back once.
    pub fn idle_of(&self, first: bool) -> Duration {
        if first { self.idle.min(FIRST_LIFETIME) } else { self.idle }
    }

    /// The value of the attribute [`LIMITS`](crate::record::LIMITS): two numbers of milliseconds, big endian.
    pub fn encode(&self) -> [u8; 16] {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        ((u128::from(ms(self.idle)) << 64) | u128::from(ms(self.lifetime))).to_be_bytes()
    }

    /// The limits of [`encode`](Limits::encode).
    pub fn decode(bytes: &[u8]) -> Option<Limits> {
        let both = u128::from_be_bytes(bytes.try_into().ok()?);
        Some(Limits { idle: Duration::from_millis((both >> 64) as u64), lifetime: Duration::from_millis(both as u64) })
    }
}

/// The engine's settings. Nodes of a cluster need not agree in any of them but whether there is a store, which is then the same one.
#[derive(Clone, Debug)]
pub struct Config {
    /// When a response may leave. Default [`Durability::Backup`].
    pub durability: Durability,
    /// How many other nodes hold a copy, 0 to 5; a response at [`Durability::Backup`] waits for so many. Where nodes differ, each makes as
    /// many copies as the greatest of them says, and waits for its own number. Default 1.
    pub backups: u8,
    /// With fewer copies than this a commit is refused instead of answered at a lower level. Default 0.
    pub min_backups: u8,
    /// Whether there is a durable store. Default no.
    pub store: bool,
    /// Default [`Reach::Auto`].
    pub reach: Reach,
    /// Default [`OnLost::New`].
    pub on_lost: OnLost,
    /// Default 30 minutes and 24 hours.
    pub limits: Limits,
    /// How long a silent peer is waited for in a claim round. 20 ms to 5 s, default 200 ms.
    pub lookup_bound: Duration,
    /// How long running requests may finish before ownership moves. Default 1 s.
    pub handover_bound: Duration,
    /// How long after a member's death its sessions may still come back with it. Default 30 s.
    pub lost_after: Duration,
    /// Bytes that a commit may leave a session with: names and values, and 64 for each attribute. Where nodes differ, that of its owner.
    /// 1 KiB to 1 MiB, default 1 MiB.
    pub record_max: usize,
    /// Sessions that one node owns at most; beyond it new ones are refused. Default 10 million.
    pub sessions_max: u64,
    /// By how many sessions, and a quarter, a node may own more than another before it offers it some that nobody uses. Default 1,000.
    pub uneven: u32,
    /// Parts of the session table, a power of two. Default 64.
    pub shards: u16,
    /// A rule that is switched off, to see whether the checkers notice.
    #[cfg(feature = "__plant")]
    pub plant: Option<Bug>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            durability: Durability::default(),
            backups: 1,
            min_backups: 0,
            store: false,
            reach: Reach::default(),
            on_lost: OnLost::default(),
            limits: Limits::default(),
            lookup_bound: Duration::from_millis(200),
            handover_bound: Duration::from_secs(1),
            lost_after: Duration::from_secs(30),
            record_max: RECORD_MAX,
            sessions_max: 10_000_000,
            uneven: 1000,
            shards: 64,
            #[cfg(feature = "__plant")]
            plant: None,
        }
    }
}

/// A setting that cannot be, with its value and the limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Durability `store` without a store.
    #[error("durability `store` needs a store; set one, or choose `backup(n)`")]
    NoStore,
    /// A number outside of its range.
    #[error("{name} is {got}, and must be {want}")]
    Range {
        /// The setting.
        name: &'static str,
        /// Its value.
        got: String,
        /// What it may be.
        want: &'static str,
    },
}

/// A [`Config`] whose parts fit together.
#[derive(Clone, Debug)]
pub struct Checked(Config);

impl Deref for Checked {
    type Target = Config;
    fn deref(&self) -> &Config {
        &self.0
    }
}

impl Checked {
    /// What one part of the session table may have of what a node may have.
    pub(crate) fn of_shard(&self, of_node: usize) -> usize {
        (of_node / usize::from(self.shards)).max(1)
    }
}

impl Checked {
    /// Whether this rule is switched off.
    #[cfg(feature = "__plant")]
    pub fn planted(&self, bug: Bug) -> bool {
        self.plant == Some(bug)
    }

    /// Whether this rule is switched off: never, in this build.
    #[cfg(not(feature = "__plant"))]
    pub const fn planted(&self, _: Bug) -> bool {
        false
    }
}

impl Config {
    /// Checks everything and reports every error.
    pub fn check(self) -> Result<Checked, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut range = |ok: bool, name, got: String, want| {
            if !ok {
                errors.push(ConfigError::Range { name, got, want });
            }
        };
        range(self.backups <= BACKUPS_MAX, "backups", self.backups.to_string(), "0 to 5");
        range(self.min_backups <= self.backups, "min_backups", self.min_backups.to_string(), "no more than backups");
        range(self.shards.is_power_of_two() && self.shards <= 4096, "shards", self.shards.to_string(), "a power of two up to 4096");
        let size = RECORD_MAX_LEAST..=RECORD_MAX;
        range(size.contains(&self.record_max), "record_max", format!("{} B", self.record_max), "1 KiB to 1 MiB");
        let ms = |d: Duration| format!("{} ms", d.as_millis());
        let bound = Duration::from_millis(20)..=Duration::from_secs(5);
        range(bound.contains(&self.lookup_bound), "lookup_bound", ms(self.lookup_bound), "20 ms to 5 s");
        range(self.limits.idle >= IDLE_MIN, "idle_timeout", ms(self.limits.idle), "at least 1 s");
        range(self.limits.lifetime >= self.limits.idle, "lifetime", ms(self.limits.lifetime), "no less than idle_timeout");
        if self.durability == Durability::Store && !self.store {
            errors.push(ConfigError::NoStore);
        }
        if errors.is_empty() { Ok(Checked(self)) } else { Err(errors) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_errors_are_reported_at_once() {
        let config = Config { durability: Durability::Store, backups: 9, shards: 3, ..Config::default() };
        let errors = config.check().unwrap_err();
        assert_eq!(errors.len(), 3);
        assert_eq!(errors[0].to_string(), "backups is 9, and must be 0 to 5");
    }

    #[test]
    fn limits_come_back_from_their_attribute() {
        let limits = Limits { idle: Duration::from_millis(1234), lifetime: Duration::from_secs(99) };
        assert_eq!(Limits::decode(&limits.encode()), Some(limits));
        assert_eq!(Limits::decode(&[0; 15]), None);
    }
}
