//! Sessions that outlive the server they live on.

#![expect(dead_code, reason = "the session handle comes next")]

mod caching;
mod codec;
mod cookie;
mod key;
mod live;

pub use cookie::Cookie;
pub use key::{AsKey, Key, KeyOf, Value};
