//! The layer for every tower service of `http` requests, and the types it makes.

mod future;
mod layer;
mod service;

pub use future::ResponseFuture;
pub use layer::SessionLayer;
pub use service::SessionService;
