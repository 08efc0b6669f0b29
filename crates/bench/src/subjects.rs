//! What is measured in this process: the same small handlers with and without sessions, and the node below them alone.

use crate::measure::thread_cpu;
use crate::visitors::Visitor;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use axum::routing::get;
use bytes::Bytes;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use outlive::{Key, Outlive, Session};
use outlive_core::id::SessionKey;
use outlive_core::record::Change;
use outlive_runtime::{Node, NodeConfig, Open, Step};
use std::sync::Arc;
use tower_service::Service;

/// What each session holds beside its number.
pub(crate) const NAME: &str = "a visitor's name";

const NAME_KEY: Key<String> = Key::new("name");
const N: Key<u64> = Key::new("n");
const BLOB: Key<String> = Key::new("blob");

/// Bytes that `/heavy` adds to a session.
pub(crate) const HEAVY: usize = 100_000;

/// A handler that knows nothing of sessions, and writes what the others write.
pub(crate) fn plain() -> Router {
    Router::new().route("/plain", get(|| async { line() }))
}

fn line() -> String {
    let (name, n) = core::hint::black_box((NAME, 1));
    format!("{name} {n}\n")
}

async fn read(session: Session) -> String {
    let name = session.get(NAME_KEY).unwrap_or_default();
    format!("{name} {}\n", session.get(N).unwrap_or_default())
}

async fn update(session: Session) -> String {
    let name = session.get(NAME_KEY).unwrap_or_default();
    let n = session.update(N, |n| {
        *n += 1;
        *n
    });
    format!("{name} {n}\n")
}

async fn begin(session: Session) {
    session.set(NAME_KEY, NAME.to_owned());
    session.set(N, 0);
}

async fn heavy(session: Session) {
    session.set(BLOB, "x".repeat(HEAVY));
}

/// The handlers on this node.
pub(crate) fn app(outlive: &Outlive) -> Router {
    plain()
        .route("/read", get(read))
        .route("/update", get(update))
        .route("/begin", get(begin))
        .route("/heavy", get(heavy))
        .layer(outlive.layer())
}

/// A tower service with one of the handlers and nothing else: no routes, no extractors, no bodies.
#[derive(Clone, Copy)]
pub(crate) enum Bare {
    Plain,
    Session,
}

impl Service<Request<Body>> for Bare {
    type Response = Response<String>;
    type Error = outlive::OpenError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<String>, outlive::OpenError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), outlive::OpenError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self {
            Bare::Plain => Box::pin(async move {
                drop(request);
                Ok(Response::new(line()))
            }),
            Bare::Session => Box::pin(async move {
                let session = outlive::tower::session(&request).await?;
                let text = match request.uri().path() {
                    "/begin" => {
                        begin(session).await;
                        String::new()
                    }
                    "/read" => read(session).await,
                    _ => update(session).await,
                };
                Ok(Response::new(text))
            }),
        }
    }
}

/// Something that answers requests of many visitors, one after another on this thread.
pub(crate) trait Subject {
    /// Gives this many visitors a session.
    fn fill(&mut self, visitors: usize);

    /// Answers one request of each of these visitors; what that took, without making requests and keeping cookies.
    fn answer(&mut self, visitors: &[usize]) -> Duration;
}

/// A tower service.
pub(crate) struct Web<S> {
    service: S,
    path: &'static str,
    visitors: Vec<Visitor>,
    runtime: Arc<tokio::runtime::Runtime>,
}

impl<S> Web<S> {
    pub(crate) fn new(runtime: &Arc<tokio::runtime::Runtime>, path: &'static str, service: S) -> Web<S> {
        Web { service, path, visitors: Vec::new(), runtime: runtime.clone() }
    }

    fn run<B>(&mut self, visitors: &[usize], path: &'static str) -> Duration
    where
        S: Service<Request<Body>, Response = Response<B>>,
        S::Error: core::fmt::Debug,
    {
        let requests: Vec<_> = visitors.iter().map(|v| self.visitors[*v].request(path)).collect();
        let mut answers = Vec::with_capacity(requests.len());
        let start = thread_cpu();
        measured(&self.runtime, &mut self.service, requests, &mut answers);
        let took = thread_cpu() - start;
        for (visitor, answer) in visitors.iter().zip(answers) {
            #[expect(clippy::expect_used, reason = "a measurement that fails says so")]
            self.visitors[*visitor].take(&answer.expect("a measured request was refused"));
        }
        took
    }
}

/// A function of its own, so that a profiler can count here and nowhere else.
#[inline(never)]
fn measured<S: Service<Request<Body>>>(
    runtime: &tokio::runtime::Runtime,
    service: &mut S,
    requests: Vec<Request<Body>>,
    answers: &mut Vec<Result<S::Response, S::Error>>,
) {
    runtime.block_on(tokio::task::unconstrained(async {
        for request in requests {
            answers.push(service.call(request).await);
        }
    }));
}

impl<S, B> Subject for Web<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: core::fmt::Debug,
{
    fn fill(&mut self, visitors: usize) {
        self.visitors.resize_with(visitors, Visitor::default);
        if self.path != "/plain" {
            let all: Vec<usize> = (0..visitors).collect();
            for some in all.chunks(1000) {
                self.run(some, "/begin");
            }
        }
    }

    fn answer(&mut self, visitors: &[usize]) -> Duration {
        self.run(visitors, self.path)
    }
}

/// The node alone, as the library calls it: open, read, commit, close.
pub(crate) struct Engine {
    node: Node<()>,
    name: Arc<str>,
    keys: Vec<SessionKey>,
    write: bool,
    value: u64,
}

impl Engine {
    pub(crate) fn new(write: bool) -> anyhow::Result<Engine> {
        Ok(Engine { node: Node::alone(NodeConfig::default())?, name: "n".into(), keys: Vec::new(), write, value: 0 })
    }

    fn change(&self, base: Option<outlive_core::stamp::Stamp>) -> Change {
        Change { name: self.name.clone(), base: base.into(), value: Some(Bytes::copy_from_slice(&self.value.to_be_bytes())) }
    }

    fn request(&mut self, key: SessionKey) {
        let Step::Ready(Ok(Open::Here(at))) = self.node.open(key, None) else { panic!("a session that is here is not here") };
        let base = self.node.read(&at, |record, _| record.get(&self.name).map(|a| a.dot)).flatten();
        let done = if self.write {
            self.value += 1;
            self.node.commit(&at, &[self.change(base)])
        } else {
            self.node.finish_read(&at)
        };
        assert!(matches!(done, outlive_runtime::Commit::Applied(_, Step::Ready(Ok(_)))), "a measured commit was refused");
        self.node.close(&at);
    }
}

impl Subject for Engine {
    fn fill(&mut self, visitors: usize) {
        // As scattered as the hashes that keys are.
        let scattered = |n: u128| SessionKey::from_bytes((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes());
        self.keys = (0..visitors as u128).map(scattered).collect();
        for key in &self.keys {
            #[expect(clippy::expect_used, reason = "a measurement that fails says so")]
            let at = self.node.create(*key).expect("a session begins");
            drop(self.node.commit(&at, &[self.change(None)]));
            self.node.close(&at);
        }
    }

    fn answer(&mut self, visitors: &[usize]) -> Duration {
        let start = thread_cpu();
        visitors.iter().for_each(|v| self.request(self.keys[*v]));
        thread_cpu() - start
    }
}
