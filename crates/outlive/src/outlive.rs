//! One node of a cluster, in this process: [`Outlive`].

use crate::cookie::Cookie;
use crate::node::Node;
use crate::tower::SessionLayer;
use std::sync::Arc;

/// Sessions for the application in this process. A cheap clone: put it into the application's state.
#[derive(Clone)]
pub struct Outlive {
    node: Arc<Node>,
}

impl core::fmt::Debug for Outlive {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Outlive(..)")
    }
}

impl Outlive {
    /// One process, no port, no store: for tests and documentation.
    pub fn in_memory() -> Outlive {
        #[expect(clippy::expect_used, reason = "the default cookie has good names")]
        let carrier = Cookie::new().resolve("session").expect("the default cookie is good");
        Outlive { node: Arc::new(Node::in_memory(carrier)) }
    }

    /// A session outside of any request.
    #[cfg(feature = "testing")]
    pub(crate) fn session(&self) -> crate::Session {
        use crate::cookie::Mode;
        let brought = crate::session::Brought { mode: Mode::Usual, id: None, here: false, token: None, mute: false };
        crate::Session::fresh(self.node.clone(), brought)
    }

    /// The layer that gives requests their session.
    pub fn layer(&self) -> SessionLayer {
        SessionLayer::new(self.node.clone())
    }
}
