//! The layer for every tower service of `http` requests, the types it makes, and [`session`] for frameworks without an adapter here.

#[cfg(feature = "testing")]
pub(crate) mod client;
mod future;
mod layer;
pub(crate) mod messages;
mod service;

pub use future::ResponseFuture;
pub use layer::SessionLayer;
pub use service::SessionService;

use crate::error::OpenError;
use crate::session::Session;
use core::future::Future;
use http::Request;

/// The session of a request that went through the layer, for a framework without an adapter here. The future borrows nothing.
///
/// # Errors
/// [`OpenError`].
pub fn session<B>(request: &Request<B>) -> impl Future<Output = Result<Session, OpenError>> + Send + use<B> {
    messages::open(request.extensions(), request.method(), request.uri(), request.headers()).answer()
}
