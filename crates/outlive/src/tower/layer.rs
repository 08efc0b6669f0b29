use crate::node::Node;
use crate::outlive::Outlive;
use crate::request::Rollback;
use crate::tower::SessionService;
use std::sync::Arc;
use tower_layer::Layer;

/// Gives requests a session. Made by [`Outlive::layer`](crate::Outlive::layer).
///
/// In axum it goes **after** the last `.route(...)`: a layer wraps only the routes that are there already. Twice the same layer is one:
/// the inner one joins the outer. A layer of another namespace inside of it shadows it.
///
/// # Who drops a handler
/// A timeout outside of this layer drops the request with it, and what the handler had changed is taken back. One *inside* of it (in axum:
/// added before it) drops the handler unseen, and responds in its place. This layer then sees nothing but the status: 5xx and 408 are
/// taken back, and a timeout's 408 is the usual one. If something inside drops handlers and responds otherwise, with a page with 200 or a 429,
/// put the layer there as well, before it: `.layer(outlive.layer()).layer(timeout).layer(outlive.layer())` is still one session and one
/// commit, and the inner one takes back what its handler changed when that is dropped, whatever the status. What a handler drops itself
/// (a branch of `select!`, a task that it aborts) is its own: [`Session::rollback`](crate::Session::rollback).
///
/// A handler that does not ask for the session pays nothing for it: nothing is read, looked up or hashed.
#[derive(Clone)]
pub struct SessionLayer {
    pub(crate) node: Arc<Node>,
    pub(crate) options: Options,
}

/// What a layer does differently from the default.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    pub(crate) rollback: Rollback,
    pub(crate) exclusive: bool,
    pub(crate) no_touch: bool,
    pub(crate) debug_header: bool,
}

impl core::fmt::Debug for SessionLayer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SessionLayer").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Outlive {
    /// The layer that gives requests their session.
    pub fn layer(&self) -> SessionLayer {
        SessionLayer { node: self.node.clone(), options: Options::default() }
    }
}

impl SessionLayer {
    /// Which responses take the request's changes back. Default [`Rollback::ServerError`].
    #[must_use]
    pub fn rollback_on(mut self, rollback: Rollback) -> SessionLayer {
        self.options.rollback = rollback;
        self
    }

    /// One request of a session at a time, in the order in which they open it: from there to its end a request has the session to itself,
    /// and what a failed one did is taken back entirely. Inside of another layer of the same node it makes its own routes exclusive.
    ///
    /// Requests wait in the memory of the session's owner, up to 64 of them and for 10 s; any other gets
    /// [`OpenError::Busy`](crate::OpenError::Busy), 429. A visitor without a session does not wait. The limits:
    ///
    /// - Requests through a layer that is not exclusive neither wait nor block others.
    /// - A session that is wanted at another node moves there after a second, whatever runs here. What the handler here has changed and
    ///   not committed by then is refused as [`CommitError::Conflict`](crate::CommitError::Conflict), 503.
    /// - Behind a balancer without stickiness a node that may not have the session for now waits, and then responds with `Busy`.
    #[must_use]
    pub fn exclusive(mut self) -> SessionLayer {
        self.options.exclusive = true;
        self
    }

    /// Opening the session is no use of it: for routes that a page asks by itself all the time, so that a forgotten tab is signed out like
    /// everybody else. What changes the session counts all the same, and so does [`touch`](crate::Session::touch). Inside of another layer
    /// of the same node it holds for its own routes, unless the session was opened before.
    #[must_use]
    pub fn no_touch(mut self) -> SessionLayer {
        self.options.no_touch = true;
        self
    }

    /// Adds `outlive-committed: level=backup(1) version=7` to responses that used the session: for looking, not for clients to rely on.
    /// The same is in the response's extensions as [`Committed`](crate::Committed).
    #[must_use]
    pub fn debug_header(mut self) -> SessionLayer {
        self.options.debug_header = true;
        self
    }
}

impl<S> Layer<S> for SessionLayer {
    type Service = SessionService<S>;

    fn layer(&self, inner: S) -> SessionService<S> {
        SessionService { inner, layer: self.clone() }
    }
}
