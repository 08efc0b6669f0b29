//! Sessions that outlive the server they live on.

#![allow(dead_code, reason = "the stand-in for the engine does not give every answer")]

#[cfg(feature = "axum")]
mod axum;
mod caching;
mod codec;
mod config;
mod cookie;
mod error;
mod key;
mod live;
mod node;
mod outlive;
mod request;
mod session;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tower;

pub use config::{Config, Consistency, Durability};
pub use cookie::Cookie;
pub use error::{CommitError, Fault, LoginError, OpenError, Retry};
pub use key::{AsKey, Key, KeyOf, Value};
pub use outlive::Outlive;
pub use outlive_core::config::Level;
pub use outlive_core::id::SessionId;
pub use request::Rollback;
pub use session::{Committed, Ended, Loss, Session};
pub use tower::SessionLayer;
