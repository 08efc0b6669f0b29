//! What a client has: its cookies, its connections, and its way to choose a node.

use super::Client;
use bytes::Bytes;
use core::time::Duration;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rand::RngExt as _;
use rand_pcg::Pcg32;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(15);
const BODY_MAX: usize = 1 << 20;

/// Cookies by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Jar(BTreeMap<String, String>);

impl Jar {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn header(&self) -> Option<String> {
        let pairs: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        (!pairs.is_empty()).then(|| pairs.join("; "))
    }

    /// Takes what an answer sets.
    pub(crate) fn take(&mut self, headers: &HeaderMap) {
        for value in headers.get_all(SET_COOKIE).iter().filter_map(|v| v.to_str().ok()) {
            let Some((name, value)) = value.split(';').next().and_then(|pair| pair.split_once('=')) else { continue };
            if value.is_empty() {
                self.0.remove(name);
            } else {
                self.0.insert(name.to_owned(), value.to_owned());
            }
        }
    }
}

/// An answer of the application, or of who stands before it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn is_ok(&self) -> bool {
        self.status == StatusCode::OK
    }

    /// The value of `key` in the line.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.body.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether nothing of the request was kept: refused, and not after its changes had gone out.
    pub(crate) fn is_refused(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE && self.header("outcome") != Some("unknown")
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Nobody listens there: nothing was sent.
    NoConnection,
    /// It was sent, and nobody knows what became of it.
    Broken,
}

pub(crate) type Asked = Result<Answer, NoAnswer>;

/// See the [module](self).
pub(crate) struct Browser {
    doors: Vec<SocketAddr>,
    client: Client,
    door: usize,
    connections: Connections,
}

pub(crate) type Connections = Pool<HttpConnector, Full<Bytes>>;

/// Connections that are kept for the next request.
pub(crate) fn connections() -> Connections {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Pool::builder(TokioExecutor::new()).build(connector)
}

impl Browser {
    pub(crate) fn new(doors: Vec<SocketAddr>, client: Client) -> Browser {
        Browser { door: 0, doors, client, connections: connections() }
    }

    /// Which node the next request goes to.
    fn next(&mut self, rng: &mut Pcg32) -> SocketAddr {
        if self.client == Client::Random {
            self.move_on(rng);
        }
        self.doors[self.door]
    }

    /// The node has failed, or another one is to be asked.
    fn move_on(&mut self, rng: &mut Pcg32) {
        self.door = rng.random_range(0..self.doors.len());
    }

    /// One request.
    pub(crate) async fn ask(&mut self, path: &str, jar: &mut Jar, rng: &mut Pcg32) -> Asked {
        let to = self.next(rng);
        let asked = exchange(&self.connections, to, path, jar).await;
        self.learn([&asked], jar, rng);
        asked
    }

    /// Sends bytes.
    pub(crate) async fn upload(&mut self, path: &str, bytes: Bytes, jar: &mut Jar, rng: &mut Pcg32) -> Asked {
        let to = self.next(rng);
        let asked = send(&self.connections, to, path, jar, Some(bytes)).await;
        self.learn([&asked], jar, rng);
        asked
    }

    /// Reads a stream of events for so long, or until it ends: its lines of data.
    pub(crate) async fn listen(&mut self, path: &str, length: Duration, jar: &mut Jar, rng: &mut Pcg32) -> Result<Vec<String>, NoAnswer> {
        let request = request(self.next(rng), path, jar, None)?;
        let answer = tokio::time::timeout(PATIENCE, self.connections.request(request)).await.map_err(|_| NoAnswer::Broken)?;
        let answer = answer.map_err(|error| no_answer(&error))?;
        if answer.status() != StatusCode::OK {
            return Err(NoAnswer::Broken);
        }
        jar.take(answer.headers());
        let (mut body, mut text) = (answer.into_body(), Vec::new());
        let read = async {
            while let Some(Ok(frame)) = body.frame().await {
                text.extend(frame.data_ref().into_iter().flatten());
            }
        };
        // It ends with its node, and then the browser asks anew.
        let _ = tokio::time::timeout(length, read).await;
        let text = String::from_utf8_lossy(&text).into_owned();
        let whole = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
        Ok(whole.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect())
    }

    /// Where the next connection of another kind goes.
    pub(crate) fn door(&mut self, rng: &mut Pcg32) -> SocketAddr {
        self.next(rng)
    }

    /// Two requests at once.
    pub(crate) async fn ask_both(&mut self, paths: [&str; 2], jar: &mut Jar, rng: &mut Pcg32) -> [Asked; 2] {
        let (one, other, connections) = (self.next(rng), self.next(rng), &self.connections);
        let (a, b) = tokio::join!(exchange(connections, one, paths[0], jar), exchange(connections, other, paths[1], jar));
        self.learn([&a, &b], jar, rng);
        [a, b]
    }

    /// A request, and others of the same session while it runs, as long as `wanted` gives them a number; `heard` gets it back with the
    /// answer.
    pub(crate) async fn ask_meanwhile(
        &mut self,
        path: &str,
        jar: &mut Jar,
        rng: &mut Pcg32,
        other_path: &str,
        wanted: impl Fn() -> Option<u64>,
        heard: impl Fn(u64, &Answer),
    ) -> Asked {
        let (to, beside) = (self.next(rng), self.next(rng));
        let (connections, cookies, mut other_jar) = (&self.connections, &*jar, jar.clone());
        let others = async {
            loop {
                if let Some(number) = wanted()
                    && let Ok(answer) = exchange(connections, beside, other_path, &other_jar).await
                {
                    other_jar.take(&answer.headers);
                    heard(number, &answer);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let asked = tokio::select! {
            asked = exchange(connections, to, path, cookies) => asked,
            () = others => Err(NoAnswer::Broken),
        };
        // The later answer wins in a browser; here the one that was waited for.
        *jar = other_jar;
        self.learn([&asked], jar, rng);
        asked
    }

    /// Takes cookies, and leaves a node that has failed.
    fn learn<const N: usize>(&mut self, asked: [&Asked; N], jar: &mut Jar, rng: &mut Pcg32) {
        for answer in asked.into_iter().flatten() {
            jar.take(&answer.headers);
        }
        if asked.iter().any(|asked| asked.as_ref().map_or(true, |answer| answer.status.is_server_error())) {
            self.move_on(rng);
        }
    }
}

/// One request of nobody's, for what a node says of itself.
pub(crate) async fn look(connections: &Connections, to: SocketAddr, path: &str) -> Option<Answer> {
    ask(connections, to, path).await.filter(Answer::is_ok)
}

/// The same, whether or not the node is fit to serve.
pub(crate) async fn ask(connections: &Connections, to: SocketAddr, path: &str) -> Option<Answer> {
    exchange(connections, to, path, &Jar::default()).await.ok()
}

fn request(to: SocketAddr, path: &str, jar: &Jar, upload: Option<Bytes>) -> Result<Request<Full<Bytes>>, NoAnswer> {
    let method = if upload.is_some() { http::Method::POST } else { http::Method::GET };
    let mut request = Request::builder().method(method).uri(format!("http://{to}{path}")).header("tell", "outcome");
    if let Some(cookies) = jar.header() {
        request = request.header(COOKIE, cookies);
    }
    request.body(upload.map(Full::new).unwrap_or_default()).map_err(|_| NoAnswer::NoConnection)
}

fn no_answer(error: &hyper_util::client::legacy::Error) -> NoAnswer {
    if error.is_connect() { NoAnswer::NoConnection } else { NoAnswer::Broken }
}

pub(crate) async fn exchange(connections: &Connections, to: SocketAddr, path: &str, jar: &Jar) -> Asked {
    send(connections, to, path, jar, None).await
}

async fn send(connections: &Connections, to: SocketAddr, path: &str, jar: &Jar, upload: Option<Bytes>) -> Asked {
    let request = request(to, path, jar, upload)?;
    let exchange = async {
        let (parts, body) = connections.request(request).await.map_err(|error| no_answer(&error))?.into_parts();
        let body = Limited::new(body, BODY_MAX).collect().await.map_err(|_| NoAnswer::Broken)?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body: String::from_utf8_lossy(&body).into_owned() })
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or(Err(NoAnswer::Broken))
}
