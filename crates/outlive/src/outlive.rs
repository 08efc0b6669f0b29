//! One node of a cluster, in this process: [`Outlive`].

use crate::builder::Builder;
use crate::error::StartError;
use crate::node::Node;
use core::future::Future;
use outlive_runtime::{Readiness as State, Stats};
use std::sync::Arc;

/// Sessions for the application in this process, one node of a cluster. A cheap clone: put it into the application's state.
#[derive(Clone)]
pub struct Outlive {
    pub(crate) node: Arc<Node>,
}

impl core::fmt::Debug for Outlive {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Outlive").field("node", &self.node.route).finish_non_exhaustive()
    }
}

impl Outlive {
    /// One process, no port, no store, gone with the process: for tests and documentation.
    ///
    /// # Panics
    /// If the operating system gives no randomness.
    pub fn in_memory() -> Outlive {
        #[expect(clippy::expect_used, reason = "the defaults are good, and a process without randomness cannot name a session")]
        Outlive::builder().alone().expect("a node in memory starts")
    }

    /// A node of a cluster: [`start`](Builder::start) it. The environment is not read unless [`env`](Builder::env) says so.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Starts a node with what the environment says: `OUTLIVE_STORE=sqlite:sessions.db` and so on.
    ///
    /// # Errors
    /// [`StartError`], with all settings that are wrong.
    pub async fn from_env() -> Result<Outlive, StartError> {
        Outlive::builder().env().start().await
    }

    /// A session outside of any request.
    #[cfg(feature = "testing")]
    pub(crate) fn session(&self) -> crate::Session {
        crate::Session::fresh(self.node.clone(), crate::session::Brought::new(crate::cookie::Mode::Usual))
    }

    /// Whether requests should be sent here, as a value that is a handler: `.route("/ready", get(outlive.readiness()))`.
    pub fn readiness(&self) -> Readiness {
        Readiness(self.clone())
    }

    /// Whether only a new start of the process helps, as a value that is a handler: `.route("/live", get(outlive.liveness()))`.
    pub fn liveness(&self) -> Liveness {
        Liveness(self.clone())
    }

    /// How many live nodes this one knows, itself included.
    pub fn members(&self) -> usize {
        self.stats().engine.members as usize
    }

    /// Where other nodes connect to this one: an address for their `join`.
    pub fn peer_addr(&self) -> String {
        self.node.runtime.me().addr.into_string()
    }

    /// Stops this node at once and says no goodbye, as a crash would: for tests of what follows.
    #[cfg(feature = "testing")]
    pub fn shutdown_now(&self) {
        self.node.runtime.shutdown_now();
    }

    /// Numbers of this node.
    pub fn stats(&self) -> Stats {
        self.node.runtime.stats()
    }

    /// Resolves when this node begins to leave, so that a stream can end and its browser connect elsewhere.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut draining = self.node.runtime.draining();
        async move {
            // It cannot fail before the node has ended.
            let _ = draining.wait_for(|draining| *draining).await;
        }
    }
}

/// Whether requests should be sent to this node, asked at the time of the response. 200: `ready`, or `degraded` and why (copies are being
/// made again, or the store does not answer: sessions are served all the same). 503: `starting`, `draining` (it still serves what comes),
/// `dead`, and `unavailable` (durability is `store`, and the store does not answer). For readiness and startup probes, and for balancers.
#[derive(Clone, Debug)]
pub struct Readiness(Outlive);

impl Readiness {
    /// The status and the text.
    pub(crate) fn said(&self) -> (u16, String) {
        let readiness = self.0.node.runtime.readiness();
        (status(readiness.is_fit()), readiness.to_string())
    }
}

/// Whether this process is of any use, asked at the time of the response: 200 `alive`, and 503 `dead` once only a new start of the process
/// helps. For liveness probes. What passes by itself is no reason to restart a node, so that all else is alive: a node that starts or
/// leaves, one that has no other node to hold its copies, one whose store does not answer.
#[derive(Clone, Debug)]
pub struct Liveness(Outlive);

impl Liveness {
    /// The status and the word.
    pub(crate) fn said(&self) -> (u16, &'static str) {
        match self.0.node.runtime.readiness() {
            State::Dead => (status(false), "dead"),
            _ => (status(true), "alive"),
        }
    }
}

fn status(fit: bool) -> u16 {
    if fit { 200 } else { 503 }
}
