//! The engine of Outlive.
#![doc = ""]

pub mod id;
pub mod stamp;
pub mod time;
