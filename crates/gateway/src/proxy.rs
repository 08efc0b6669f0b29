//! One request, from its head to the last byte of its answer.

use crate::client::{Client, Cut, Phase};
use crate::headers::{self, ambiguous, length_and_coding, wants_websocket};
use crate::resend::Resend;
use crate::routing::InFlight;
use crate::table::{Kept, Row, complain, count, refused};
use crate::upstream::{Broken, Outbound, Upload, Upstream};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, COOKIE, HeaderMap, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::AsyncWriteExt as _;
use tokio::task::AbortHandle;

/// Members that one request is offered to before it is answered 503.
const MAX_MEMBERS: usize = 3;

/// Answers `req`. Never fails: what goes wrong has a status.
pub(crate) async fn answer(client: Arc<Client>, mut req: Request<Incoming>) -> Result<Response<Relay>, Infallible> {
    client.begins(!req.body().is_end_stream());
    let old = req.version() == Version::HTTP_10;
    let tape = client.take_tape();
    let doubtful = req.headers().contains_key(TRANSFER_ENCODING) && length_and_coding(&tape);
    let refusal = if doubtful { Some(headers::LENGTH_AND_CODING) } else { ambiguous(&req) };
    let response = if let Some(why) = refusal {
        refuse(StatusCode::BAD_REQUEST, &format!("bad request: {why}"))
    } else if req.method() == Method::CONNECT {
        text(StatusCode::NOT_IMPLEMENTED, "outlive gateway: CONNECT is not for this kind of proxy\n".into())
    } else {
        let upgrade = wants_websocket(&req).then(|| hyper::upgrade::on(&mut req));
        match pass(&client, req, tape, upgrade.is_some()).await {
            Ok(answered) => relay(&client, answered, upgrade, old),
            Err(failure) => failure.response(),
        }
    };
    if !matches!(response.body().0, Kind::Stream(_)) {
        client.enter(Phase::Idle);
    }
    Ok(response)
}

/// A member's answer, with all that has to live until its last byte has left.
struct Answered {
    response: Response<Incoming>,
    upstream: Box<Upstream>,
    member: InFlight<Kept>,
    /// The connection may carry another request after this one.
    reusable: bool,
    /// The client was still sending when the answer began.
    uploading: bool,
}

/// What was tried, and what is to be said of it.
struct Failure {
    status: StatusCode,
    tried: String,
}

impl Failure {
    fn response(self) -> Response<Relay> {
        match self.status {
            StatusCode::BAD_REQUEST => return refuse(self.status, "bad request: the body is not what the head announced"),
            StatusCode::REQUEST_TIMEOUT => return refuse(self.status, "the rest of the request did not come in time"),
            _ => {}
        }
        let what = match self.status {
            StatusCode::GATEWAY_TIMEOUT => "a server took too long",
            StatusCode::BAD_GATEWAY => "a server failed while it worked on this request",
            _ => "no server can answer now",
        };
        let tried = if self.tried.is_empty() { "none is up" } else { &self.tried };
        let mut response = text(self.status, format!("outlive gateway: {what} ({tried})\n"));
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        response
    }
}

/// Where a request may still go.
struct Journey<'a> {
    client: &'a Client,
    tried: Vec<Arc<Row>>,
    failure: Failure,
    /// This one again, over a fresh connection: the former was one that it had kept idle for too long.
    again: Option<Arc<Row>>,
    retrying: bool,
}

impl Journey<'_> {
    fn new(client: &Client) -> Journey<'_> {
        let failure = Failure { status: StatusCode::SERVICE_UNAVAILABLE, tried: String::new() };
        Journey { client, tried: Vec::new(), failure, again: None, retrying: false }
    }

    /// The next member to ask and whether over a fresh connection, or `None`.
    fn next(&mut self, headers: &HeaderMap) -> Option<(InFlight<Kept>, bool)> {
        if let Some(row) = self.again.take() {
            return Some((row.begin(), true));
        }
        if self.tried.len() >= MAX_MEMBERS {
            return None;
        }
        let worker = &self.client.worker;
        let mut table = worker.table.lock();
        worker.shared.directory.refresh(&mut table);
        let rows = table.members.rows();
        let tried: Vec<usize> = self.tried.iter().filter_map(|tried| rows.iter().position(|row| Arc::ptr_eq(row, tried))).collect();
        let cookies = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
        let choice = worker.shared.router.route(cookies, &table.members, &tried, worker.random())?;
        let row = &rows[choice.index];
        if choice.moved {
            count(&row.kept().counters.moved);
        }
        Some((row.begin(), false))
    }

    /// Notes that `row` failed this request.
    fn failed(&mut self, row: &Arc<Row>, status: StatusCode, why: &str) {
        count(&row.kept().counters.failures);
        let separator = if self.failure.tried.is_empty() { "" } else { ", " };
        // Names only: an address of the inner network is nobody's business.
        let _ = write!(self.failure.tried, "{separator}{}: {why}", row.name());
        // Once something was sent, a server may have acted upon it, and no later failure changes that.
        if self.failure.status != StatusCode::BAD_GATEWAY {
            self.failure.status = status;
        }
        self.retrying = true;
        self.tried.push(row.clone());
    }
}

impl Journey<'_> {
    /// `row` answered something that is no response: it may have done what was asked, so that nobody else is.
    fn strange(mut self, row: &Arc<Row>, why: &str) -> Failure {
        complain(row, self.client.worker.now(), "a response is no HTTP/1.1 and was answered 502", why);
        self.failed(row, StatusCode::BAD_GATEWAY, "no HTTP/1.1");
        self.failure
    }
}

/// Finds a member that answers.
///
/// A request that was not sent goes to the next member, whatever its method. One that was sent, and whose answer did not begin,
/// is sent once more if doing it twice is the same as doing it once and it has no body.
async fn pass(client: &Arc<Client>, req: Request<Incoming>, tape: Vec<u8>, websocket: bool) -> Result<Answered, Failure> {
    let shared = &client.worker.shared;
    let limits = &shared.limits;
    let repeatable = shared.retry && !websocket && idempotent(req.method()) && req.body().is_end_stream();
    // A member that overlooks such a body would take it for the next request on this connection; so there is no next.
    let reusable = req.body().is_end_stream() || !bodiless(req.method());
    let mut resend = (repeatable && !tape.is_empty()).then(|| Resend::bytes(&req, tape));
    let modern = req.version() == Version::HTTP_11;
    let (mut req, upload) = outbound(client, req, websocket);
    if let Some(upload) = &upload {
        client.uploads(upload);
    }
    if repeatable && resend.is_none() {
        resend = Some(Resend::whole(&req));
    }
    let mut journey = Journey::new(client);
    loop {
        let Some((member, fresh)) = journey.next(req.headers()) else { return Err(journey.failure) };
        let counters = &member.kept().counters;
        count(&counters.requests);
        if journey.retrying {
            count(&counters.retries);
        }
        let idle = if fresh { None } else { member.kept().pool(client.worker.index).take() };
        let reused = idle.is_some();
        let mut upstream = match idle {
            Some(upstream) => upstream,
            None => match Upstream::connect(member.addr(), limits.connect_timeout, limits.max_head).await {
                Ok(upstream) => upstream,
                Err(error) => {
                    if is_down(&error) {
                        refused(&member, &error, limits.connect_timeout, client.worker.random());
                    }
                    journey.failed(&member, StatusCode::SERVICE_UNAVAILABLE, describe(&error));
                    continue;
                }
            },
        };
        if modern {
            let told = client.clone();
            hyper::ext::on_informational(&mut req, move |interim| {
                // The server has said 100 itself, to whoever waits for it.
                if interim.status() != StatusCode::CONTINUE {
                    told.inform(interim.status(), interim.headers());
                }
            });
        }
        match upstream.exchange(req, client).await {
            Ok(response) => {
                if let Some(why) = headers::unframed(&response) {
                    return Err(journey.strange(&member, why));
                }
                if let Some(Resend::Bytes { head, .. }) = resend {
                    client.recycle(head);
                }
                let uploading = upload.is_some_and(|upload| !upload.ended());
                return Ok(Answered { response, upstream, member, reusable, uploading });
            }
            Err(Broken::Strange(why)) => return Err(journey.strange(&member, &why)),
            Err(Broken::TimedOut) if upload.as_ref().is_some_and(|upload| upload.awaited()) => {
                return Err(Failure { status: StatusCode::REQUEST_TIMEOUT, tried: String::new() });
            }
            Err(Broken::TimedOut) => {
                journey.failed(&member, StatusCode::GATEWAY_TIMEOUT, "no answer in time");
                return Err(journey.failure);
            }
            Err(Broken::Unsent(unsent)) => {
                req = *unsent;
                if reused {
                    journey.again = Some(member.clone());
                } else {
                    journey.failed(&member, StatusCode::SERVICE_UNAVAILABLE, "connection broke");
                }
            }
            Err(Broken::Sent) if upload.as_ref().is_some_and(|upload| upload.broken()) => {
                return Err(Failure { status: StatusCode::BAD_REQUEST, tried: String::new() });
            }
            Err(Broken::Sent) => {
                let Some(again) = resend.take().and_then(|resend| resend.request(client)) else {
                    journey.failed(&member, StatusCode::BAD_GATEWAY, "connection broke");
                    return Err(journey.failure);
                };
                req = again;
                if reused {
                    journey.again = Some(member.clone());
                    journey.retrying = true;
                } else {
                    journey.failed(&member, StatusCode::BAD_GATEWAY, "connection broke");
                }
            }
        }
    }
}

fn outbound(client: &Client, mut req: Request<Incoming>, websocket: bool) -> (Request<Outbound>, Option<Arc<Upload>>) {
    headers::to_backend(&mut req, &client.forwarded, websocket);
    let (mut head, incoming) = req.into_parts();
    head.extensions.clear();
    let (body, upload) = Outbound::new(incoming);
    (Request::from_parts(head, body), upload)
}

/// Safe to do twice (RFC 9110, 9.2.2).
fn idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE].contains(method)
}

/// Methods whose body has no meaning, so that servers differ in whether they read it.
fn bodiless(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::DELETE, Method::TRACE].contains(method)
}

/// Whether a failed connect says something about the member; running out of descriptors or ports says it about us.
fn is_down(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, NotFound, TimedOut};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable | NotFound | TimedOut)
}

fn describe(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::TimedOut => "connection timed out",
        io::ErrorKind::NotFound => "name not found",
        _ => "no connection",
    }
}

/// Turns a member's answer into ours.
fn relay(client: &Arc<Client>, answered: Answered, upgrade: Option<OnUpgrade>, old: bool) -> Response<Relay> {
    let Answered { response, upstream, member, reusable, uploading } = answered;
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let (mut head, body) = response.into_parts();
    let closing = uploading && headers::closes(head.version, &head.headers);
    head.version = Version::HTTP_11;
    head.extensions.clear();
    headers::to_client(&mut head.headers, head.status);
    if switching {
        let Some(upgrade) = upgrade else {
            return Failure { status: StatusCode::BAD_GATEWAY, tried: format!("{}: switched protocols unasked", member.name()) }.response();
        };
        client.becomes(Tunnel { upstream, upgrade, _member: member });
        return Response::from_parts(head, Relay(Kind::Empty));
    }
    let source = if uploading {
        if closing {
            // It will not read the rest, and the client need not send it.
            head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        // Two directions at once: each must go on although the other waits, so the connection gets a task of its own.
        Source::Detached { task: upstream.detach(), closing }
    } else if body.is_end_stream() {
        if reusable {
            member.kept().pool(client.worker.index).give(client.worker.now(), upstream);
        }
        return Response::from_parts(head, Relay(Kind::Empty));
    } else {
        Source::Driven(Some(upstream))
    };
    client.enter(Phase::Body);
    let cut = if old && body.size_hint().exact().is_none() { Cut::Reset } else { Cut::Close };
    let stream = Stream { body, source, client: client.clone(), member, reusable, cut, ended: false, broken: false };
    Response::from_parts(head, Relay(Kind::Stream(Box::new(stream))))
}

/// What a connection goes on as after both sides have switched protocols.
pub(crate) struct Tunnel {
    upstream: Box<Upstream>,
    upgrade: OnUpgrade,
    _member: InFlight<Kept>,
}

impl Tunnel {
    /// Carries bytes both ways until one side ends both, or nothing has passed for too long.
    pub(crate) async fn run(self, client: &Client) {
        let Some((mut member, said)) = self.upstream.into_raw().await else { return };
        let Ok(upgraded) = self.upgrade.await else { return };
        client.enter(Phase::Tunnel);
        let mut visitor = TokioIo::new(upgraded);
        let mut copy = pin!(async {
            visitor.write_all(&said).await?;
            tokio::io::copy_bidirectional(&mut visitor, &mut member).await
        });
        std::future::poll_fn(|cx| {
            client.register(cx);
            if client.expired() {
                return Poll::Ready(());
            }
            copy.as_mut().poll(cx).map(drop)
        })
        .await;
    }
}

fn refuse(status: StatusCode, why: &str) -> Response<Relay> {
    let mut response = text(status, format!("outlive gateway: {why}\n"));
    // Whatever follows on this connection cannot be told from the rest of this request.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn text(status: StatusCode, line: String) -> Response<Relay> {
    let mut response = Response::new(Relay(Kind::Text(Some(line.into()))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The body of an answer to a client.
pub(crate) struct Relay(Kind);

enum Kind {
    Empty,
    Text(Option<Bytes>),
    Stream(Box<Stream>),
}

/// A body on its way from a member. Dropped before its end, it takes the member's connection with it.
struct Stream {
    body: Incoming,
    source: Source,
    client: Arc<Client>,
    member: InFlight<Kept>,
    reusable: bool,
    /// How the client is told that the body broke off.
    cut: Cut,
    ended: bool,
    broken: bool,
}

enum Source {
    Driven(Option<Box<Upstream>>),
    Detached {
        task: AbortHandle,
        /// The member reads no more of the request once it has answered.
        closing: bool,
    },
}

impl Drop for Stream {
    fn drop(&mut self) {
        let ended = !self.broken && (self.ended || self.body.is_end_stream());
        let mut next = Phase::Idle;
        match &mut self.source {
            Source::Driven(upstream) => {
                if let Some(upstream) = upstream.take().filter(|_| self.reusable && ended) {
                    self.member.kept().pool(self.client.worker.index).give(self.client.worker.now(), upstream);
                }
            }
            // Answered, and still being sent: that goes on as long as both sides want it to.
            Source::Detached { closing: false, .. } if ended => next = Phase::Upload,
            Source::Detached { task, .. } => task.abort(),
        }
        self.client.enter(next);
    }
}

impl Stream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.broken {
            return Poll::Pending;
        }
        let polled = match &mut self.source {
            Source::Detached { .. } => Pin::new(&mut self.body).poll_frame(cx),
            Source::Driven(None) => Poll::Ready(None),
            Source::Driven(Some(upstream)) => upstream.poll_body(&mut self.body, cx),
        };
        match &polled {
            Poll::Ready(Some(Err(error))) => {
                // The server would close at this error, and drop what it has not written yet. What came of the answer is delivered,
                // and then the connection is cut, so that nobody takes the part for the whole.
                self.fail(error);
                return Poll::Pending;
            }
            Poll::Ready(None) => self.ended = true,
            Poll::Ready(Some(Ok(frame))) => self.ended = frame.is_trailers(),
            Poll::Pending => {}
        }
        polled
    }

    fn fail(&mut self, error: &hyper::Error) {
        self.broken = true;
        self.client.cut(self.cut);
        count(&self.member.kept().counters.failures);
        let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
        if let Some(cause) = cause.filter(|cause| matches!(cause.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)) {
            complain(&self.member, self.client.worker.now(), "a response's body is no HTTP/1.1 and was cut", &cause.to_string());
        }
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Kind::Stream(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty | Kind::Text(None) => true,
            Kind::Text(Some(_)) => false,
            Kind::Stream(stream) => stream.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty | Kind::Text(None) => SizeHint::with_exact(0),
            Kind::Text(Some(text)) => SizeHint::with_exact(text.len() as u64),
            Kind::Stream(stream) => stream.body.size_hint(),
        }
    }
}
