//! The engine of Outlive: who owns a session, which copy is newer, when a response may leave, when a copy may be dropped.
//!
//! It does no I/O. It never waits, reads a clock, draws randomness, spawns or logs: time comes in as [`time::Mono`], randomness
//! as a seed, messages as bytes, and effects go out as [`output::Output`] values. The same code runs under tokio and under a
//! simulator that plays thousands of nodes in one thread.
//!
//! ```
//! use outlive_core::{Engine, config::Config, id::SessionKey, member::Node, output::Outputs, stamp::Life, time::Mono};
//!
//! let node = Node { name: "a".into(), addr: "127.0.0.1:1".into(), boot: 1, life: Life::new(7), zone: 0, observer: false, http: "".into(), backups: 1, stores: false };
//! let engine: Engine<()> = Engine::new(Config::default().check().unwrap(), node, 42, Mono::ZERO).unwrap();
//! let mut out = Outputs::new();
//! let session = engine.create(Mono::ZERO, SessionKey::from_bytes([1; 16]), &mut out).unwrap();
//! engine.close(Mono::ZERO, &session, &mut out);
//! ```
//!
//! Where a line belongs; imports run one way, and a test holds that:
//!
//! | module | what it knows |
//! |---|---|
//! | [`address`], [`name`] | where to listen, whom to dial, what others are told; what nodes may be called |
//! | [`id`], [`stamp`], [`token`] | names: of sessions, of ownerships and commits, and the one that travels with the client |
//! | [`lineage`], [`record`], [`merge`] | content: which commits a copy includes, attributes, how two branches become one |
//! | [`wire`], `link` | messages, frames, acknowledgements |
//! | [`member`], [`placement`], `view` | who is alive, who is to hold a copy, and the snapshot of both that shards decide by |
//! | `maps`, `cx` | maps; what every operation on a session gets: time, settings, the view, where effects go, what the sessions of a shard have in common |
//! | `copy`, `peers`, `pending` | what a node has of one session, what it keeps in mind about each peer and what that peer gets next, and what is under way |
//! | `session`, `shard` | both as one value, and the table that finds it: one look-up, whatever comes in |
//! | `serve` | what the application does to a session: open, commit, close |
//! | `round`, `handover` | the claim round: the asking side, and the asked side with handing over, staying, inviting |
//! | `owner` | an ownership: who is to hold a copy, the one place that sends what peers get next, when a commit is durable |
//! | `backup` | records, gaps, divergence, drops: what an owner sends, and what a holder accepts |
//! | `parked`, `late` | commits of requests whose session moved away while they ran, and what those hear |
//! | `rebalance` | what a node that owns far less than others is offered |
//! | `ending`, `storing`, `walk` | ended markers; the way to the store; the walk that repairs, heirs and expiry |
//! | [`engine`] | all of it behind one face of plain calls |
//! | [`config`], [`limits`] | numbers that a deployment chooses, and those that are fixed |
//!
#![doc = include_str!("glossary.md")]
// A state that is new must be looked at in every place that tells states apart.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::wildcard_enum_match_arm))]

pub mod address;
mod backup;
pub mod config;
mod copy;
mod cx;
mod ending;
pub mod engine;
mod handover;
pub mod id;
mod late;
pub mod limits;
pub mod lineage;
mod link;
mod maps;
pub mod member;
pub mod merge;
pub mod name;
pub mod output;
mod owner;
mod parked;
mod peers;
mod pending;
pub mod placement;
#[doc(hidden)]
pub mod plant;
mod rebalance;
pub mod record;
mod round;
mod serve;
mod session;
mod shard;

pub mod stamp;
mod storing;
pub mod time;
pub mod token;
mod view;
mod walk;
pub mod wire;

pub use engine::Engine;
pub use output::{Brought, Loaded, Touch, Write, Written};
