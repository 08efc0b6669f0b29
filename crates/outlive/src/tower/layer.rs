use crate::node::Node;
use crate::request::Rollback;
use crate::tower::SessionService;
use std::sync::Arc;
use tower_layer::Layer;

/// Gives requests a session. Made by [`Outlive::layer`](crate::Outlive::layer).
///
/// In axum it goes **after** the last `.route(...)`: a layer wraps only the routes that are there already. Twice the same layer is one:
/// the inner one joins the outer. A layer of another namespace inside of it shadows it.
///
/// A handler that does not ask for the session pays nothing for it: nothing is read, looked up or hashed.
#[derive(Clone)]
pub struct SessionLayer {
    pub(crate) node: Arc<Node>,
    pub(crate) rollback: Rollback,
}

impl core::fmt::Debug for SessionLayer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SessionLayer").field("rollback", &self.rollback).finish_non_exhaustive()
    }
}

impl SessionLayer {
    pub(crate) fn new(node: Arc<Node>) -> SessionLayer {
        SessionLayer { node, rollback: Rollback::default() }
    }

    /// Which answers take the request's changes back. Default [`Rollback::ServerError`].
    #[must_use]
    pub fn rollback_on(mut self, rollback: Rollback) -> SessionLayer {
        self.rollback = rollback;
        self
    }
}

impl<S> Layer<S> for SessionLayer {
    type Service = SessionService<S>;

    fn layer(&self, inner: S) -> SessionService<S> {
        SessionService { inner, layer: self.clone() }
    }
}
