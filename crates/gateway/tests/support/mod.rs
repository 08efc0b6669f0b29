//! Backends, clients and waiting, for tests over real sockets.
#![allow(dead_code, missing_docs, unreachable_pub)]

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outlive_gateway::{Builder, Gateway, MemberStats, Running};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

pub type Body = BoxBody<Bytes, hyper::Error>;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

pub fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// Long enough for a busy machine; reached only by a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("no end of waiting for: {what}"))
}

pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
}

/// An HTTP server as tasks of this process.
pub struct Backend {
    pub addr: SocketAddr,
    /// Connections accepted.
    pub accepted: Arc<AtomicUsize>,
    /// Requests whose head came.
    pub requests: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Backend {
    pub async fn start<F, R>(handler: F) -> Backend
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Backend::start_on(TcpListener::bind(anywhere()).await.unwrap(), handler)
    }

    pub fn start_on<F, R>(listener: TcpListener, handler: F) -> Backend
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(AtomicUsize::new(0));
        let (connections, heads) = (accepted.clone(), requests.clone());
        let accepting = tokio::spawn(async move {
            // Dropped with the task, so that a stopped backend closes its connections.
            let mut serving = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let (handler, heads) = (handler.clone(), heads.clone());
                serving.spawn(async move {
                    let service = service_fn(move |req| {
                        heads.fetch_add(1, Ordering::SeqCst);
                        let response = handler(req);
                        async { Ok::<_, Infallible>(response.await) }
                    });
                    let conn = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    let _ = conn.with_upgrades().await;
                });
            }
        });
        Backend { addr, accepted, requests, accepting }
    }

    /// Answers every request with its own name.
    pub async fn named(name: &'static str) -> Backend {
        Backend::start(move |_| async move { Response::new(full(name)) }).await
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Closes its port and all its connections.
    pub async fn stop(self) {
        self.accepting.abort();
        let _ = self.accepting.await;
    }
}

/// A server that is a script over raw connections: `each` gets them one by one, numbered from 0.
pub async fn raw_backend<F, R>(each: F) -> SocketAddr
where
    F: Fn(usize, TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(anywhere()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(each(number, stream));
        }
    });
    addr
}

/// An address where nobody listens, and nobody can until it is dropped or listened on.
pub struct Nobody {
    pub addr: SocketAddr,
    pub socket: TcpSocket,
}

pub fn nobody() -> Nobody {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(anywhere()).unwrap();
    Nobody { addr: socket.local_addr().unwrap(), socket }
}

/// Reads up to and including the empty line that ends a head.
pub async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

pub fn gateway() -> Builder {
    Gateway::builder().listen(anywhere()).workers(2)
}

pub fn member(gateway: &Running, name: &str) -> MemberStats {
    gateway.stats().members.into_iter().find(|member| member.name == name).unwrap()
}

/// One client connection.
pub struct Client(SendRequest<Body>);

impl Client {
    pub async fn connect(addr: SocketAddr) -> Client {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, conn) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(conn.with_upgrades());
        Client(sender)
    }

    pub async fn send(&mut self, req: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
        within("the connection", self.0.ready()).await?;
        within("an answer", self.0.send_request(req)).await
    }

    pub async fn text(&mut self, req: Request<Body>) -> (StatusCode, String) {
        let response = self.send(req).await.unwrap();
        let status = response.status();
        let body = within("a body", response.into_body().collect()).await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

pub fn request(method: &str, path: &str, cookie: &str, body: Body) -> Request<Body> {
    let mut builder = Request::builder().method(method).uri(path).header("host", "shop.example");
    if !cookie.is_empty() {
        builder = builder.header("cookie", cookie);
    }
    builder.body(body).unwrap()
}

/// One request over a connection of its own.
pub async fn once(addr: SocketAddr, method: &str, cookie: &str) -> (StatusCode, String) {
    Client::connect(addr).await.text(request(method, "/", cookie, full(""))).await
}

/// Sends bytes as they are and reads until the other side closes.
pub async fn raw(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = within("the other side to close", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends bytes as they are and reads the head of what is answered.
pub async fn raw_first(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // Whoever is refused may be so before all of it is sent.
    let _ = stream.write_all(bytes).await;
    within("an answer", read_head(&mut stream)).await
}
