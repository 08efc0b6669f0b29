//! Sessions that outlive the server they live on.

#[cfg(feature = "axum")]
mod axum;
mod builder;
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
mod run;
mod session;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tower;

pub use builder::Builder;
pub use config::{Config, Consistency, Durability};
pub use cookie::Cookie;
pub use error::{CommitError, Errors, Fault, LoginError, OpenError, Retry, RunError, StartError};
pub use key::{AsKey, Key, KeyOf, Value};
pub use outlive::{Outlive, Readiness};
pub use outlive_core::config::Level;
pub use outlive_core::id::SessionId;
pub use outlive_runtime::Stats;
pub use request::Rollback;
pub use run::{Drain, Drained};
pub use session::{Committed, Ended, Loss, Session, SessionInfo};
pub use tower::SessionLayer;
