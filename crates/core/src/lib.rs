//! The engine of Outlive.

pub mod config;
pub mod id;
pub mod limits;
pub mod lineage;
pub mod member;
pub mod merge;
pub mod placement;
pub mod record;
pub mod stamp;
pub mod time;
