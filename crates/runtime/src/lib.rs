//! Drives the engine of Outlive under tokio.
//!
//! - [`Node`]: one node of a cluster; the sessions' calls go through it.
//! - [`NodeConfig`], [`StartError`]: what it is started with, and why it does not start.
//! - [`cluster_of`], [`status_of`]: the cluster that an observer with no name set is to watch, and how each of a cluster's nodes is.
//! - [`Step`], [`Waiting`]: answers that are there at once or later.
//! - [`Open`], [`Commit`], [`Committed`], [`Durable`], [`Rotated`] and their failures [`OpenFailure`], [`CommitFailure`].
//! - [`Stats`], [`Readiness`], [`StoreHealth`], [`DrainReport`]: how it is.
//!
//! Inside: `node` dispatches what the engine wants done; `links` read and write; `dial` finds peers and `listen` takes them, after the
//! `handshake`; `storing` goes to the store; `timer` keeps the time; `changes` tells the log who came and went;
//! `drain` leaves. Only `clock` asks the system for the time and
//! for randomness.
//!
//! Between nodes there is plain TCP for now, on loopback addresses unless `danger_plain_peers` is set: TLS is not built yet.

mod ask;
mod changes;
mod clock;
mod config;
mod dial;
mod drain;
mod handshake;
mod health;
mod links;
mod listen;
mod node;
mod opened;
mod start;
mod stats;
mod status;
mod storing;
mod timer;
mod transport;
mod waiting;

pub use ask::{AskError, cluster_of};
pub use clock::EntropyError;
pub use config::{NodeConfig, StartError};
pub use drain::DrainReport;
pub use health::StoreHealth;
pub use node::{Commit, Committed, Node, Open, OpenFailure, Rotated, Unsent};
pub use opened::Opened;
pub use stats::{Readiness, Stats};
pub use status::{ClusterStatus, MemberStatus, NodeStatus, status_of};
pub use waiting::{CommitFailure, Durable, Step, Waiting};
