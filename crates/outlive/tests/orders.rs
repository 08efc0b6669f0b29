//! Every order in which a browser's requests can be sent, answered and received: none undoes a login, a rotation or a logout.
//!
//! A response that came late used to set the id with which its request had left, only to name another node, and logged the user out.
//! Now nothing but the birth of an id sets the id's cookie, and a birth that a login or a rotation asked for is kept in a second place.
//!
//! A run is a jar (empty, anonymous or signed in), two or three requests, each a read, a write, a login, a rotation or a logout at one
//! of the nodes, and an order of three events each: it is *sent* with the cookies that the jar has then, and its handler has the session
//! open; it is *answered*: the handler goes on, and what it did is committed; its response is *received*, and the jar takes its cookies.
//! A read or a write without a session is a first one. Afterwards:
//!
//! 1. If an id that an answered login or rotation brought into the world is alive, the jar's next request is served such a session.
//! 2. If any id that the jar was ever given is alive, the jar's next request is served one that is.
//! 3. Neither holds where an answered logout ended the very session that the jar would have; then it is nobody's.
//! 4. What an answered logout saw is nowhere: not under the id that it had, nor under one that a login or a rotation gave it.
//!
//! What is answered 503 has not happened.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use core::fmt::Write as _;
use outlive::{Key, Outlive, Session};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use support::{LONG, cluster, in_time};
use tokio::sync::{Semaphore, oneshot};
use tower_service::Service as _;

/// Where what is in a session came from: the jar's first one.
const MARK: Key<String> = Key::new("mark");
const LAST: Key<String> = Key::new("last");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Login,
    Rotate,
    Logout,
}

const KINDS: [Kind; 5] = [Kind::Read, Kind::Write, Kind::Login, Kind::Rotate, Kind::Logout];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Empty,
    Anonymous,
    SignedIn,
    /// Signed in, and after some moves its owner stays where it is: another node serves a copy, and asks for each change.
    Settled,
}

/// One run: what is asked of which node, and the order: each number is the next event of that request.
#[derive(Clone, Debug)]
struct Run {
    start: Start,
    asked: Vec<(Kind, usize)>,
    order: Vec<usize>,
}

/// What a handler waits for, by its number.
#[derive(Clone, Default)]
struct Gates(Arc<Mutex<BTreeMap<u64, Gate>>>);

struct Gate {
    opened: oneshot::Sender<()>,
    go: oneshot::Receiver<()>,
}

async fn act(State(gates): State<Gates>, Path((kind, n)): Path<(String, u64)>, session: Session) -> Response {
    let key = session.info().key;
    let mark = session.get(MARK).map_or_else(String::new, |mark| mark.to_string());
    let gate = gates.0.lock().unwrap().remove(&n);
    if let Some(gate) = gate {
        let _ = gate.opened.send(());
        let _ = gate.go.await;
    }
    match kind.as_str() {
        "Write" => session.set(LAST, n.to_string()),
        "Login" => session.login(&format!("user-{n}")).await.unwrap(),
        "Rotate" => session.rotate(),
        "Logout" => {
            if let Err(error) = session.invalidate().await {
                return error.into_response();
            }
        }
        "Mark" => session.set(MARK, n.to_string()),
        _ => {}
    }
    let user = session.user().map_or_else(|| "nobody".to_owned(), |u| u.to_string());
    format!("{mark}|{user}|{key}").into_response()
}

fn app(outlive: &Outlive, gates: &Gates) -> Router {
    Router::new().route("/{kind}/{n}", get(act)).layer(outlive.layer()).with_state(gates.clone())
}

/// A browser's cookies.
#[derive(Clone, Debug, Default)]
struct Jar(BTreeMap<String, String>);

impl Jar {
    fn of(id: &str) -> Jar {
        Jar([("OUTLIVESID".to_owned(), id.to_owned())].into())
    }

    fn ids(&self) -> impl Iterator<Item = String> {
        ["OUTLIVESID", "OUTLIVESID-S"].into_iter().filter_map(|name| self.0.get(name).cloned())
    }

    fn receive(&mut self, headers: &HeaderMap) {
        for line in headers.get_all(header::SET_COOKIE) {
            let (pair, attributes) = line.to_str().unwrap().split_once(';').unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            if attributes.contains("Max-Age=0") {
                self.0.remove(name);
            } else {
                self.0.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    fn request(&self, kind: &str, n: u64) -> Request<Body> {
        let cookies = self.0.iter().fold(String::new(), |mut all, (name, value)| {
            write!(all, "{name}={value}; ").unwrap();
            all
        });
        Request::builder().uri(format!("/{kind}/{n}")).header("host", "shop.example").header("cookie", cookies).body(Body::empty()).unwrap()
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    mark: String,
    user: String,
    /// The name that the session had among operators when it was opened; empty without one.
    key: String,
}

/// The id that a response brings into the world.
fn born(headers: &HeaderMap) -> Option<String> {
    let mut jar = Jar::default();
    jar.receive(headers);
    jar.0.remove("OUTLIVESID")
}

async fn ask(mut app: Router, request: Request<Body>) -> Answer {
    let response = in_time(app.call(request)).await.unwrap();
    let (parts, body) = response.into_parts();
    let text = String::from_utf8(axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec()).unwrap();
    let mut words = text.split('|').map(str::to_owned);
    let mut word = || words.next().unwrap_or_default();
    Answer { status: parts.status, headers: parts.headers, mark: word(), user: word(), key: word() }
}

/// Asks until it is answered.
async fn insist(app: &Router, jar: &Jar, kind: &str, n: u64) -> Answer {
    let began = tokio::time::Instant::now();
    let mut pause = core::time::Duration::from_millis(5);
    loop {
        let answer = ask(app.clone(), jar.request(kind, n)).await;
        if answer.status == StatusCode::OK {
            return answer;
        }
        assert!(began.elapsed() < LONG, "{kind} is answered {} for {LONG:?}: {}", answer.status, answer.mark);
        // Who asks again at once keeps a machine that is too slow for it from ever answering.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(core::time::Duration::from_secs(1));
    }
}

struct World {
    apps: Vec<Router>,
    gates: Gates,
}

impl World {
    async fn start(name: &str, nodes: usize) -> (World, Vec<Outlive>) {
        let nodes = cluster(name, nodes, &[]).await;
        let gates = Gates::default();
        (World { apps: nodes.iter().map(|node| app(node, &gates)).collect(), gates }, nodes)
    }

    /// Plays a run whose number is `n`; what was wrong, if anything.
    async fn play(&self, run: &Run, n: u64) -> Result<(), String> {
        let mut jar = Jar::default();
        if run.start != Start::Empty {
            jar.receive(&insist(&self.apps[0], &jar, "Mark", n * 10 + 9).await.headers);
        }
        if matches!(run.start, Start::SignedIn | Start::Settled) {
            jar.receive(&insist(&self.apps[0], &jar, "Login", n * 10 + 9).await.headers);
            // As if it had been long ago.
            jar.0.remove("OUTLIVESID-S");
        }
        if run.start == Start::Settled {
            for app in [1, 0].map(|node| &self.apps[node]) {
                insist(app, &jar, "Read", n * 10 + 9).await;
            }
        }
        let mut given: Vec<String> = jar.0.get("OUTLIVESID").cloned().into_iter().collect();
        let mut renewed: Vec<String> = Vec::new();
        let mut flights: Vec<Flight> = run.asked.iter().map(|_| Flight::NotSent).collect();
        let (mut answers, mut logged_out) = (Vec::new(), Vec::new());
        // The newest id that the jar has been given; those of logins and rotations before others.
        let mut newest = (false, given.first().cloned());
        let mut brought = vec![Jar::default(); run.asked.len()];
        for at in &run.order {
            let (kind, node) = run.asked[*at];
            flights[*at] = match core::mem::replace(&mut flights[*at], Flight::Received) {
                Flight::NotSent => {
                    brought[*at] = jar.clone();
                    self.send(&jar, kind, node, n * 10 + *at as u64).await
                }
                Flight::Sent(go, task) => {
                    let _ = go.send(());
                    let answer = task.await.unwrap();
                    let born = born(&answer.headers);
                    renewed.extend(born.clone().filter(|_| matches!(kind, Kind::Login | Kind::Rotate)));
                    given.extend(born);
                    if kind == Kind::Logout && answer.status == StatusCode::OK && !answer.key.is_empty() {
                        logged_out.extend(brought[*at].ids());
                    }
                    let headers = answer.headers.clone();
                    answers.push((kind, answer));
                    Flight::Answered(headers)
                }
                Flight::Answered(headers) => {
                    jar.receive(&headers);
                    let (mine, renewal) = (born(&headers), matches!(kind, Kind::Login | Kind::Rotate));
                    if mine.is_some() && (renewal || !newest.0) {
                        newest = (renewal, mine);
                    }
                    Flight::Received
                }
                Flight::Received => panic!("too many events of {at}"),
            };
        }
        let excused = newest.1.is_some_and(|id| logged_out.contains(&id));
        self.judge(&jar, &given, &renewed, &answers, excused).await.map_err(|wrong| format!("{wrong}: {run:?}"))
    }

    /// Sends a request; its handler waits with the session open.
    async fn send(&self, jar: &Jar, kind: Kind, node: usize, number: u64) -> Flight {
        let ((opened, is_open), (go, gone)) = (oneshot::channel(), oneshot::channel());
        self.gates.0.lock().unwrap().insert(number, Gate { opened, go: gone });
        let mut task = tokio::spawn(ask(self.apps[node].clone(), jar.request(&format!("{kind:?}"), number)));
        tokio::select! {
            _ = is_open => Flight::Sent(go, task),
            // The session cannot be had.
            answer = &mut task => {
                self.gates.0.lock().unwrap().remove(&number);
                let answer = answer.unwrap();
                Flight::Sent(go, tokio::spawn(async { answer }))
            }
        }
    }

    async fn judge(
        &self,
        jar: &Jar,
        given: &[String],
        renewed: &[String],
        answers: &[(Kind, Answer)],
        logged_out: bool,
    ) -> Result<(), String> {
        let served = insist(&self.apps[0], jar, "Read", 0).await;
        let (mut alive, mut alive_renewed) = (Vec::new(), Vec::new());
        for id in given {
            let answer = insist(&self.apps[0], &Jar::of(id), "Read", 0).await;
            if !answer.key.is_empty() {
                alive_renewed.extend(renewed.contains(id).then(|| answer.key.clone()));
                alive.push(answer);
            }
        }
        if !logged_out && !alive_renewed.is_empty() && !alive_renewed.contains(&served.key) {
            return Err(format!("a login or a rotation was undone: {:?} is served", served.user));
        }
        if !logged_out && !alive.is_empty() && !alive.iter().any(|a| a.key == served.key) {
            return Err("there is a session, and none is served".to_owned());
        }
        for (kind, answer) in answers {
            let seen = *kind == Kind::Logout && answer.status == StatusCode::OK && !answer.mark.is_empty();
            if seen && alive.iter().any(|a| a.mark == answer.mark) {
                return Err("what was logged out goes on".to_owned());
            }
        }
        Ok(())
    }
}

/// Where a request is on its way.
enum Flight {
    NotSent,
    Sent(oneshot::Sender<()>, tokio::task::JoinHandle<Answer>),
    Answered(HeaderMap),
    Received,
}

/// Every order of three events each of so many requests. The requests have no names, so the first is sent first.
fn orders(requests: usize) -> Vec<Vec<usize>> {
    fn more(left: &mut [usize], sent: usize, order: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
        if left.iter().all(|left| *left == 0) {
            all.push(order.clone());
        }
        for at in 0..left.len().min(sent + 1) {
            if left[at] > 0 {
                left[at] -= 1;
                order.push(at);
                more(left, sent.max(at + 1), order, all);
                order.pop();
                left[at] += 1;
            }
        }
    }
    let mut all = Vec::new();
    more(&mut vec![3; requests], 0, &mut Vec::new(), &mut all);
    all
}

/// Every run of so many requests at so many nodes; `nodes` must each get one.
fn runs(requests: usize, nodes: usize) -> Vec<Run> {
    let choices = |n: usize| {
        (0..n.pow(requests as u32)).map(move |mut code| {
            (0..requests)
                .map(|_| {
                    let one = code % n;
                    code /= n;
                    one
                })
                .collect::<Vec<_>>()
        })
    };
    let orders = orders(requests);
    let mut all = Vec::new();
    for kinds in choices(KINDS.len()) {
        let kinds: Vec<Kind> = kinds.into_iter().map(|kind| KINDS[kind]).collect();
        for places in choices(nodes).filter(|places| (0..nodes).all(|node| places.contains(&node))) {
            let asked: Vec<_> = kinds.iter().copied().zip(places).collect();
            for start in [Start::Empty, Start::Anonymous, Start::SignedIn, Start::Settled] {
                if start == Start::Settled && nodes == 1 {
                    continue;
                }
                all.extend(orders.iter().map(|order| Run { start, asked: asked.clone(), order: order.clone() }));
            }
        }
    }
    all
}

/// Plays them, so many at once.
async fn play_all(name: &str, nodes: usize, runs: Vec<Run>, at_once: usize) {
    let (world, _nodes) = World::start(name, nodes).await;
    let (world, permits, mut playing) = (Arc::new(world), Arc::new(Semaphore::new(at_once)), tokio::task::JoinSet::new());
    let (count, mut wrong) = (runs.len(), Vec::new());
    for (n, run) in runs.into_iter().enumerate() {
        if n > 0 && n % 20_000 == 0 {
            println!("{name}: {n} of {count}, {} wrong", wrong.len());
        }
        let (world, permit) = (world.clone(), permits.clone().acquire_owned().await.unwrap());
        playing.spawn(async move {
            let played = world.play(&run, n as u64 + 1).await;
            drop(permit);
            played
        });
        while let Some(played) = playing.try_join_next() {
            wrong.extend(played.unwrap().err());
        }
    }
    while let Some(played) = playing.join_next().await {
        wrong.extend(played.unwrap().err());
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
}

#[test]
fn all_orders_are_played() {
    // 6! / 3!3! and 9! / 3!3!3!, by the ways to name the requests.
    assert_eq!((orders(1).len(), orders(2).len(), orders(3).len()), (1, 20 / 2, 1680 / 6));
    assert_eq!((runs(2, 1).len(), runs(2, 2).len()), (25 * 3 * 10, 25 * 2 * 4 * 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_of_two_requests_undoes_a_login_a_rotation_or_a_logout() {
    play_all("orders-2", 1, runs(2, 1), 32).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_of_two_requests_at_two_nodes_undoes_a_login_a_rotation_or_a_logout() {
    // On a starved machine each of so many waits for all others, and nodes that answer each other later than after a second answer 503.
    play_all("orders-2-2", 2, runs(2, 2), 64).await;
}

/// One of so many; the number is prime to those of kinds, nodes, jars and orders, so that every pair of them is played.
fn every(nth: usize, runs: Vec<Run>) -> Vec<Run> {
    runs.into_iter().step_by(nth).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_of_three_requests_undoes_a_login_a_rotation_or_a_logout() {
    play_all("orders-3", 1, every(17, runs(3, 1)), 32).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_of_three_requests_at_two_nodes_undoes_a_login_a_rotation_or_a_logout() {
    play_all("orders-3-2", 2, every(349, runs(3, 2)), 64).await;
}

/// 945,000 runs, which take a quarter of an hour: `cargo test --release --all-features --test orders -- --ignored --nocapture`. They wait
/// more than they compute, so many are played at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a quarter of an hour"]
async fn no_order_of_three_requests_undoes_anything_in_full() {
    play_all("orders-3-all", 1, runs(3, 1), 512).await;
    play_all("orders-3-2-all", 2, runs(3, 2), 512).await;
}
