//! The layer for every tower service of `http` requests, the types it makes, and [`session`] for frameworks without an adapter here.

mod future;
mod layer;
mod service;

pub use future::ResponseFuture;
pub use layer::SessionLayer;
pub use service::SessionService;

use crate::cookie::Head;
use crate::error::OpenError;
use crate::request;
use crate::session::Session;
use core::future::Future;
use http::Request;

/// The session of a request that went through the layer, for a framework without an adapter here. The future borrows nothing.
///
/// # Errors
/// [`OpenError`].
pub fn session<B>(request: &Request<B>) -> impl Future<Output = Result<Session, OpenError>> + Send + use<B> {
    let head = Head { method: request.method(), uri: request.uri(), headers: request.headers() };
    request::open(request.extensions(), head).answer()
}
