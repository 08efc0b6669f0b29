//! The page: served by the parent process, so that it survives every kill. `/shop` is passed on to the gateway.

use crate::demo::book::Step;
use crate::demo::nodes::Nodes;
use crate::demo::shop::{CATALOGUE, View};
use crate::demo::stage::Stage;
use crate::demo::story::{Answer, Ticket};
use crate::demo::world::{State as NodeState, World};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt as _, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// What "Show me the code" shows: the file that the nodes run.
const SHOP: &str = include_str!("shop.rs");

/// How often a page that hears nothing hears a comment, so that both ends notice when the other is gone.
const ALIVE_EVERY: Duration = Duration::from_secs(10);
/// The cookie that tells one visitor of the page from another. It guards nothing.
const VISITOR: &str = "outlive-demo";
/// An answer of the shop is never longer.
const ANSWER_MAX: usize = 256 * 1024;

#[derive(Clone)]
struct App {
    stage: Arc<Stage>,
    gateway: SocketAddr,
    client: Client<HttpConnector, Body>,
}

impl App {
    fn world(&self) -> &Arc<World> {
        self.stage.world()
    }

    fn nodes(&self) -> &Arc<Nodes> {
        self.stage.nodes()
    }
}

/// Everything that the parent process serves.
pub(crate) fn routes(stage: Arc<Stage>, gateway: SocketAddr) -> Router {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let text = |kind: &'static str, body: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind)], body) });
    Router::new()
        .route("/", get(page))
        .route("/page.css", text("text/css; charset=utf-8", STYLE))
        .route("/page.js", text("text/javascript; charset=utf-8", SCRIPT))
        .route("/code", text("text/plain; charset=utf-8", SHOP))
        .route("/events", get(events))
        .route("/said", get(said))
        .route("/act/nodes/{name}/{action}", post(act))
        .route("/act/deploy", post(deploy))
        .route("/act/keep/{copies}", post(keep))
        .route("/act/reset", post(reset))
        .route("/act/arm", post(arm))
        .route("/shop", any(shop))
        .route("/shop/{*rest}", any(shop))
        .layer(from_fn(guard))
        .with_state(App { stage, gateway, client })
}

/// Foreign pages may neither press the buttons nor read the events through a name of their own.
fn is_ours(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    let here = name == "localhost" || name.parse::<std::net::IpAddr>().is_ok();
    here && text(header::ORIGIN).is_none_or(|origin| origin.split_once("://").is_some_and(|(_, from)| from == host))
}

/// Refuses foreign pages, and lets this one load nothing from elsewhere.
async fn guard(request: Request, next: Next) -> Response {
    if !is_ours(request.headers()) {
        return (StatusCode::FORBIDDEN, "this is a page of somebody else, or a name that is not this machine's\n").into_response();
    }
    let shop = request.uri().path().starts_with("/shop");
    let mut response = next.run(request).await;
    if !shop {
        let headers = response.headers_mut();
        let policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    response
}

/// Who looks at the page.
fn visitor(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, value)| *name == VISITOR && value.len() == 16).map(|(_, value)| value)
}

async fn page(headers: HeaderMap) -> Response {
    let mut response = ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE).into_response();
    if visitor(&headers).is_none() {
        // A number that differs from one to the next, from the keys that the standard library draws for its maps.
        let drawn = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        if let Ok(cookie) = HeaderValue::from_str(&format!("{VISITOR}={drawn:016x}; Path=/; HttpOnly; SameSite=Lax")) {
            response.headers_mut().insert(header::SET_COOKIE, cookie);
        }
    }
    response
}

/// A snapshot, the visitor's own story, then what happens; of the stories only theirs.
async fn events(State(app): State<App>, headers: HeaderMap) -> Response {
    let Some(visitor) = visitor(&headers).map(str::to_owned) else {
        return (StatusCode::FORBIDDEN, "the page sets a cookie, and none came back\n").into_response();
    };
    let (mut sender, body) = Channel::<Bytes>::new(64);
    let world = app.world().clone();
    tokio::spawn(async move {
        let (snapshot, mut messages) = world.subscribe();
        if sender.send_data(snapshot).await.is_err() || sender.send_data(world.story(&visitor)).await.is_err() {
            return;
        }
        loop {
            let next = match tokio::time::timeout(ALIVE_EVERY, messages.recv()).await {
                Ok(Ok(message)) if message.visitor.as_ref().is_some_and(|other| *other != visitor) => continue,
                Ok(Ok(message)) => message.text,
                // A page that was asleep starts afresh.
                Ok(Err(RecvError::Lagged(_))) => [world.snapshot(), world.story(&visitor)].concat().into(),
                Ok(Err(RecvError::Closed)) => return,
                Err(_) => Bytes::from_static(b": alive\n\n"),
            };
            if sender.send_data(next).await.is_err() {
                return;
            }
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::new(body)).into_response()
}

/// What the nodes said, word for word.
async fn said(State(app): State<App>) -> String {
    app.world().words()
}

/// The buttons under a node.
async fn act(State(app): State<App>, Path((name, action)): Path<(String, String)>) -> Response {
    let Some(node) = app.world().node(&name) else { return (StatusCode::NOT_FOUND, "no such node\n").into_response() };
    match (action.as_str(), node.state) {
        ("kill", state) if !state.is_gone() => app.nodes().kill(&name),
        ("drain", NodeState::Up) => app.nodes().drain(&name),
        ("start", state) if state.is_gone() => app.stage.begin_start(name),
        ("kill" | "drain" | "start", state) => return (StatusCode::CONFLICT, format!("{name} is {state:?}\n")).into_response(),
        _ => return (StatusCode::NOT_FOUND, "no such button\n").into_response(),
    }
    StatusCode::ACCEPTED.into_response()
}

async fn deploy(State(app): State<App>) -> StatusCode {
    if app.stage.begin_deploy() { StatusCode::ACCEPTED } else { StatusCode::CONFLICT }
}

async fn keep(State(app): State<App>, Path(copies): Path<String>) -> StatusCode {
    let copies = match copies.as_str() {
        "copy" => true,
        "nothing" => false,
        _ => return StatusCode::NOT_FOUND,
    };
    if app.stage.begin_keep(copies) { StatusCode::ACCEPTED } else { StatusCode::CONFLICT }
}

async fn reset(State(app): State<App>, headers: HeaderMap) -> StatusCode {
    if let Some(visitor) = visitor(&headers) {
        app.world().forget(visitor);
    }
    if app.stage.begin_reset() { StatusCode::ACCEPTED } else { StatusCode::CONFLICT }
}

/// The next change in the shop is answered, and the node that answered is killed in the same moment.
async fn arm(State(app): State<App>) -> StatusCode {
    let armed = app.world().set_armed(true);
    if armed {
        app.world().set_armed(false);
    }
    StatusCode::ACCEPTED
}

/// A request of the shop is seen to its end even if the page that sent it is gone: its answer may be the one that tells a loss.
async fn shop(State(app): State<App>, request: Request) -> Response {
    tokio::spawn(pass_on(app, request)).await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// Passes a request of the shop on to the gateway. What it asks for and what is answered becomes part of the visitor's story.
async fn pass_on(app: App, mut request: Request) -> Response {
    let path = request.uri().path_and_query().map_or("/shop", |path| path.as_str()).to_owned();
    let Ok(uri) = format!("http://{}{path}", app.gateway).parse::<Uri>() else { return StatusCode::BAD_REQUEST.into_response() };
    *request.uri_mut() = uri;
    let changes = request.method() == Method::PUT;
    let visitor = visitor(request.headers()).filter(|_| path.starts_with("/shop/api/")).map(str::to_owned);
    let ticket = visitor.as_ref().map(|visitor| app.world().asked(visitor, &path, step(&path)));
    one_hop(request.headers_mut());
    let answer = match app.client.request(request).await {
        Ok(answer) => answer.map(Body::new),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "the gateway does not answer\n").into_response(),
    };
    // Before the browser hears of the answer: nothing that happens later may help.
    if let Some(node) = text(answer.headers(), "x-demo-node")
        && changes
        && answer.status() == StatusCode::OK
        && app.world().set_armed(false)
    {
        app.nodes().kill(node);
    }
    let (mut parts, body) = answer.into_parts();
    one_hop(&mut parts.headers);
    let Ok(body) = Limited::new(body, ANSWER_MAX).collect().await.map(http_body_util::Collected::to_bytes) else {
        let broken = "the answer broke off\n";
        if let (Some(visitor), Some(ticket)) = (&visitor, &ticket) {
            app.world().refused(visitor, ticket, None, broken);
        }
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], broken).into_response();
    };
    if let (Some(visitor), Some(ticket)) = (visitor, ticket) {
        tell(app.world(), &visitor, &ticket, parts.status, &parts.headers, &body);
    }
    Response::from_parts(parts, Body::from(body))
}

/// Makes an answer part of the visitor's story.
fn tell(world: &World, visitor: &str, ticket: &Ticket, status: StatusCode, headers: &HeaderMap, body: &[u8]) {
    let fact = |name| text(headers, name).unwrap_or_default().to_owned();
    if status == StatusCode::OK
        && let Ok(view) = serde_json::from_slice::<View>(body)
    {
        let copies = fact("x-demo-copies").split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let (node, owner) = (fact("x-demo-node"), fact("x-demo-owner"));
        world.answered(visitor, ticket, Answer { node, life: 0, key: fact("x-demo-session"), owner, owner_life: 0, copies, view });
    } else if status.is_server_error() {
        let why = String::from_utf8_lossy(body);
        world.refused(visitor, ticket, text(headers, "x-demo-node").map(str::to_owned), &why);
    } else {
        world.settled(visitor, ticket);
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// What a request of the page asks for.
fn step(path: &str) -> Option<Step> {
    let (action, query) = path.strip_prefix("/shop/api/")?.split_once('?').unwrap_or((path.strip_prefix("/shop/api/")?, ""));
    let sku = || {
        let wanted = query.split('&').find_map(|pair| pair.strip_prefix("sku="))?;
        CATALOGUE.iter().map(|(sku, _)| *sku).find(|sku| *sku == wanted)
    };
    match action {
        "cart" => Some(Step::Look),
        "add" => sku().map(Step::Add),
        "remove" => sku().map(Step::Remove),
        "login" => Some(Step::Login),
        "logout" => Some(Step::Logout),
        _ => None,
    }
}

/// Removes what belongs to one connection.
fn one_hop(headers: &mut HeaderMap) {
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::TE, HeaderName::from_static("keep-alive")] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    #[test]
    fn only_this_page_under_this_machines_names_is_served() {
        let ours = |host: &'static str, origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            origin.map(|origin| headers.insert(header::ORIGIN, HeaderValue::from_static(origin)));
            is_ours(&headers)
        };
        assert!(ours("127.0.0.1:8080", None) && ours("[::1]:8080", None) && ours("[::1]", None));
        assert!(ours("localhost:8080", Some("http://localhost:8080")));
        assert!(!ours("rebound.example:8080", None));
        assert!(!ours("localhost:8080", Some("http://rebound.example")));
        assert!(!ours("localhost:8080", Some("null")));
    }

    #[tokio::test]
    async fn a_loss_that_is_told_to_a_page_that_is_gone_is_in_the_visitors_story() {
        let gateway = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let world = Arc::new(World::new(vec!["A".into()], "none".into(), "owner".into(), None));
        world.update("A", |node| node.state = NodeState::Up);
        let nodes = Nodes::new(world.clone(), "a-test".into());
        let stage = Stage::new(world.clone(), nodes, "none".into());
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        let app = App { stage, gateway: gateway.local_addr().unwrap(), client };
        let request = Request::builder().uri("/shop/api/cart").header(header::COOKIE, format!("{VISITOR}={:016}", 1));
        let mut page = Box::pin(shop(State(app), request.body(Body::empty()).unwrap()));
        let mut asked = vec![0; 4096];
        let reached = async {
            let (mut connection, _) = gateway.accept().await.unwrap();
            assert!(connection.read(&mut asked).await.unwrap() > 0);
            connection
        };
        let mut connection = tokio::select! {
            _ = &mut page => panic!("it was not answered yet"),
            connection = reached => connection,
        };
        drop(page);
        let mut messages = world.subscribe().1;
        let body = serde_json::to_string(&View { lost: true, ..View::default() }).unwrap();
        let head =
            format!("HTTP/1.1 200 OK\r\nx-demo-node: A\r\nx-demo-owner: A\r\nx-demo-session: k\r\ncontent-length: {}\r\n\r\n", body.len());
        let _ = connection.write_all(format!("{head}{body}").as_bytes()).await;
        let told = tokio::time::timeout(Duration::from_secs(30), messages.recv()).await.expect("the story goes on").unwrap();
        assert!(std::str::from_utf8(&told.text).unwrap().contains("Something is lost"), "{told:?}");
    }
}
