//! The durable home of sessions.
//!
//! - [`Store`]: the trait and its law. A record is opaque bytes here; keys are hashes, times are ages by the store's own clock.
//! - [`MemoryStore`]: the reference, gone with the process.
//! - `SqliteStore` (feature `sqlite`): one file, shared by the processes of one machine.
//! - [`open`]: a store from a URL.
//! - [`conformance`]: the suite that every store passes, yours too.
//!
//! Adding a store is one file, one feature, one arm in [`open`], two tests: `docs/stores.md` in the repository says what the bytes are, why each
//! rule is there, and how to run the suite.

pub mod conformance;
mod error;
mod memory;
mod open;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;

pub use error::{Cause, Fault, LoadError, PutError, Retry};
pub use memory::{Health, MemoryStore};
pub use open::{OpenError, open};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteStore, Synchronous};
pub use store::{
    Answer, End, Expect, Loaded, MAX_RECORD, MAX_ROWS, MAX_TEXT, Marker, Node, Put, Reach, Row, RowResult, Store, Swept, Touch, check_keys,
    check_puts, check_text,
};
