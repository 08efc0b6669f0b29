//! The engine of Outlive.

mod backup;
pub mod config;
mod ending;
pub mod engine;
mod handover;
pub mod id;
pub mod limits;
pub mod lineage;
mod link;
pub mod member;
pub mod merge;
pub mod output;
mod parked;
pub mod placement;
#[doc(hidden)]
pub mod plant;
pub mod record;
mod round;
mod shard;
mod slot;
pub mod stamp;
mod storing;
pub mod time;
pub mod token;
mod view;
mod walk;
pub mod wire;

pub use engine::Engine;
pub use shard::Brought;
pub use storing::{Loaded, Write, Written};
