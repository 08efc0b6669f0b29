//! The list: at which stage of an exchange which end does what, and which outcome is a good one.

use super::play::{End, Got, Outcome, Seen, Step};

/// One way in which an exchange may go.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// The good outcome, in words.
    pub(super) good: &'static str,
    pub(super) server: Vec<Step>,
    pub(super) client: Vec<Step>,
    /// Whether the outcome is what the server sees at last.
    pub(super) awaits: bool,
    pub(super) judge: fn(&Outcome) -> bool,
}

const UPLOAD: usize = 8 << 20;
const BIG: usize = 1 << 20;

fn say(text: &str) -> Step {
    Step::Say(text.as_bytes().to_vec())
}

fn get(path: &str) -> Step {
    say(&format!("GET /{path} HTTP/1.1\r\nhost: h\r\n\r\n"))
}

fn post(length: usize) -> Step {
    say(&format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n"))
}

/// A whole response whose connection is not kept.
fn last(status: &str, body: &str) -> Step {
    say(&format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()))
}

/// A whole response whose connection is kept.
fn ok(body: &str) -> Step {
    say(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

fn first(outcome: &Outcome) -> Got {
    outcome.got.first().cloned().unwrap_or_default()
}

fn is(got: &Got, status: u16, body: &[u8]) -> bool {
    got.whole && got.status == status && got.body == body
}

fn refused(outcome: &Outcome) -> bool {
    is(&first(outcome), 413, b"too large")
}

fn answered(outcome: &Outcome) -> bool {
    is(&first(outcome), 200, b"hello")
}

/// A response of the one in between that says what happened.
fn told(outcome: &Outcome) -> bool {
    first(outcome).whole && matches!(first(outcome).status, 502..=504)
}

/// All that came, and nobody takes it for more.
fn part(outcome: &Outcome) -> bool {
    let got = first(outcome);
    !got.whole && got.status == 200 && got.body == b"part"
}

fn server_hears(outcome: &Outcome) -> bool {
    outcome.seen.iter().any(|seen| matches!(seen, Seen::End(End::Closed | End::Reset)))
}

fn heads(outcome: &Outcome) -> usize {
    outcome.seen.iter().filter(|seen| matches!(seen, Seen::Head(_))).count()
}

fn case(name: &'static str, good: &'static str, server: &[Step], client: &[Step], judge: fn(&Outcome) -> bool) -> Case {
    Case { name, good, server: server.to_vec(), client: client.to_vec(), awaits: false, judge }
}

pub(super) fn all() -> Vec<Case> {
    [before_the_response(), in_the_response(), around_the_request(), kept_connections()].into_iter().flatten().collect()
}

/// The server answers, or does not, before it has read all.
fn before_the_response() -> Vec<Case> {
    use Step::{Await, Bytes, Head, Pour, Reset, Response, Rest, Tell};
    let too_large = || last("413 Content Too Large", "too large");
    let chunk = || say("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n800000\r\n");
    vec![
        case(
            "an upload of 8 MiB is refused unread and the server closes",
            "the refusal arrives",
            &[Head, too_large()],
            &[post(UPLOAD), Pour(UPLOAD), Response],
            refused,
        ),
        case(
            "the same, and the client reads when it has sent what it could",
            "the refusal arrives",
            &[Head, too_large()],
            &[post(UPLOAD), Step::Say(vec![b'u'; UPLOAD]), Response],
            refused,
        ),
        case(
            "the same without a length, in chunks",
            "the refusal arrives",
            &[Head, too_large()],
            &[chunk(), Pour(UPLOAD), Response],
            refused,
        ),
        case(
            "an upload is refused half read and the server closes",
            "the refusal arrives",
            &[Head, Bytes(UPLOAD / 2), too_large()],
            &[post(UPLOAD), Pour(UPLOAD), Response],
            refused,
        ),
        case(
            "an upload is refused unread and the server resets",
            "the refusal arrives",
            &[Head, too_large(), Reset],
            &[post(UPLOAD), Pour(UPLOAD), Response],
            refused,
        ),
        case(
            "an upload is refused, and the server reads the rest of it",
            "the refusal arrives",
            &[Head, too_large(), Rest],
            &[post(UPLOAD), Pour(UPLOAD), Response],
            refused,
        ),
        case(
            "a client that waits for 100 is refused",
            "the refusal arrives",
            &[Head, too_large()],
            &[say("POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 8388608\r\n\r\n"), Response],
            refused,
        ),
        case(
            "the server answers first and reads all of the upload afterwards",
            "the response arrives, and so does the upload",
            &[Head, ok("hello"), Bytes(UPLOAD), Tell],
            &[post(UPLOAD), Pour(UPLOAD), Response, Await],
            |outcome| answered(outcome) && outcome.seen.contains(&Seen::Bytes(UPLOAD)),
        ),
        case("the server closes before it answers", "502 to 504", &[Head, Step::Fin], &[post(0), Response], told),
        case("the server resets before it answers", "502 to 504", &[Head, Reset], &[post(0), Response], told),
        case("the server resets in an upload", "502 to 504", &[Head, Bytes(BIG), Reset], &[post(UPLOAD), Pour(UPLOAD), Response], told),
        case(
            "the server closes within the head of its response",
            "502 to 504",
            &[Head, say("HTTP/1.1 200 OK\r\ncontent-le"), Step::Fin],
            &[post(0), Response],
            told,
        ),
        case(
            "the server resets within the head of its response",
            "502 to 504",
            &[Head, say("HTTP/1.1 200 OK\r\ncontent-le"), Reset],
            &[post(0), Response],
            told,
        ),
    ]
}

/// The response has begun.
fn in_the_response() -> Vec<Case> {
    use Step::{Fin, Head, Reset, Response};
    let sized = || say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\npart");
    let chunked = || say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n");
    let endless = |body: &str| say(&format!("HTTP/1.1 200 OK\r\n\r\n{body}"));
    let broken = "what came arrives, and not as a whole";
    vec![
        case("the server closes within a body with a length", broken, &[Head, sized(), Fin], &[get(""), Response], part),
        case("the server resets within a body with a length", broken, &[Head, sized(), Reset], &[get(""), Response], part),
        case("the server closes within chunks", broken, &[Head, chunked(), Fin], &[get(""), Response], part),
        case("the server resets within chunks", broken, &[Head, chunked(), Reset], &[get(""), Response], part),
        case(
            "a chunk's size is none",
            "the same, or 502",
            &[Head, say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\nxyz\r\n"), Fin],
            &[get(""), Response],
            |outcome| part(outcome) || told(outcome),
        ),
        case("a body ends as the server closes", "the whole arrives", &[Head, endless("hello"), Fin], &[get(""), Response], answered),
        case("a body that would end as the server closes is reset", broken, &[Head, endless("part"), Reset], &[get(""), Response], part),
        case(
            "the same, to a client of HTTP/1.0",
            broken,
            &[Head, endless("part"), Reset],
            &[say("GET / HTTP/1.0\r\nhost: h\r\n\r\n"), Response],
            part,
        ),
        case("the server resets after its response", "the whole arrives", &[Head, ok("hello"), Reset], &[get(""), Response], answered),
        case(
            "the server resets after a response of 1 MiB",
            "the whole arrives",
            &[
                Head,
                Step::Say([format!("HTTP/1.1 200 OK\r\ncontent-length: {BIG}\r\n\r\n").into_bytes(), vec![b'x'; BIG]].concat()),
                Step::Await,
                Reset,
            ],
            &[get(""), Response, Step::Tell],
            |outcome| first(outcome).whole && first(outcome).body.len() == BIG,
        ),
        case(
            "100 and then a response",
            "the response arrives",
            &[Head, say("HTTP/1.1 100 Continue\r\n\r\n"), ok("hello")],
            &[get(""), Response],
            answered,
        ),
        case(
            "103 and then a response",
            "the response arrives",
            &[Head, say("HTTP/1.1 103 Early Hints\r\nlink: </s.css>; rel=preload\r\n\r\n"), ok("hello")],
            &[get(""), Response],
            answered,
        ),
        case(
            "103, and after a while a response",
            "both arrive, in that order",
            &[Head, say("HTTP/1.1 103 Early Hints\r\nlink: </s.css>; rel=preload\r\n\r\n"), ok("hello")],
            &[get(""), Response],
            |outcome| answered(outcome) && first(outcome).interim == [103],
        ),
        case(
            "100 and then the server closes",
            "502 to 504",
            &[Head, say("HTTP/1.1 100 Continue\r\n\r\n"), Fin],
            &[post(0), Response],
            told,
        ),
    ]
}

/// The client ends something.
fn around_the_request() -> Vec<Case> {
    use Step::{Await, Bytes, Fin, Head, Reset, Response, Rest, Tell};
    let awaits = |case: Case| Case { awaits: true, ..case };
    let big = || Step::Say([format!("HTTP/1.1 200 OK\r\ncontent-length: {BIG}\r\n\r\n").into_bytes(), vec![b'x'; BIG]].concat());
    let stream = || say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n");
    vec![
        case(
            "the client closes its side after its request",
            "the response arrives",
            &[Head, ok("hello")],
            &[get(""), Fin, Response],
            answered,
        ),
        case(
            "the client closes its side after its body",
            "the response arrives",
            &[Head, Bytes(4), ok("hello")],
            &[post(4), say("body"), Fin, Response],
            answered,
        ),
        case(
            "the client closes its side and the server answers later",
            "the response arrives",
            &[Head, Await, ok("hello")],
            &[get(""), Fin, Tell, Response],
            answered,
        ),
        case(
            "the client closes its side before a response of 1 MiB",
            "the response arrives",
            &[Head, big()],
            &[get(""), Fin, Response],
            |outcome| first(outcome).whole && first(outcome).body.len() == BIG,
        ),
        case("the client closes within the head", "no request arrives", &[Head], &[say("GET / HTTP/1.1\r\nhos"), Fin, Rest], |outcome| {
            heads(outcome) == 0
        }),
        awaits(case(
            "the client closes within its body",
            "the server does not get a whole request",
            &[Head, Rest],
            &[post(10), say("body"), Fin, Rest],
            |outcome| outcome.seen.iter().all(|seen| !matches!(seen, Seen::Bytes(10..))) && (heads(outcome) == 0 || server_hears(outcome)),
        )),
        awaits(case(
            "the client resets within its body",
            "the server does not get a whole request",
            &[Head, Tell, Rest],
            &[post(10), say("body"), Reset],
            |outcome| outcome.seen.iter().all(|seen| !matches!(seen, Seen::Bytes(10..))) && (heads(outcome) == 0 || server_hears(outcome)),
        )),
        awaits(case(
            "the client resets while the server works",
            "the server hears of it",
            &[Head, Tell, Rest],
            &[get(""), Await, Reset],
            server_hears,
        )),
        awaits(case(
            "the client resets within an event stream that is silent",
            "the server hears of it",
            &[Head, stream(), Tell, Rest],
            &[get(""), Await, Step::Bytes(20), Reset],
            server_hears,
        )),
    ]
}

/// What comes after a response.
fn kept_connections() -> Vec<Case> {
    use Step::{Bytes, Fin, Head, Reset, Response};
    let both: fn(&Outcome) -> bool = |outcome| outcome.got.len() == 2 && outcome.got.iter().all(|got| is(got, 200, b"hello"));
    vec![
        case(
            "two requests, one after the other, and the server closes after each",
            "both are answered",
            &[Head, last("200 OK", "hello"), Fin],
            &[get("1"), Response, get("2"), Response],
            both,
        ),
        case(
            "the same, and the server has not said that it would close",
            "both are answered",
            &[Head, ok("hello"), Fin],
            &[get("1"), Response, get("2"), Response],
            both,
        ),
        case(
            "a POST after a response whose connection the server closed at once",
            "both are answered",
            &[Head, ok("hello"), Fin],
            &[get("1"), Response, post(0), Response],
            both,
        ),
        case(
            "the server resets as the second request comes, a GET",
            "it is answered",
            &[Head, ok("hello"), Bytes(1), Reset],
            &[get("1"), Response, get("2"), Response],
            both,
        ),
        case(
            "two requests at once",
            "both are answered, in their order",
            &[Head, last("200 OK", "hello"), Fin],
            &[say("GET /1 HTTP/1.1\r\nhost: h\r\n\r\nGET /2 HTTP/1.1\r\nhost: h\r\n\r\n"), Response, Response],
            both,
        ),
        case(
            "two requests at once, and the client closes its side",
            "both are answered, in their order",
            &[Head, last("200 OK", "hello"), Fin],
            &[say("GET /1 HTTP/1.1\r\nhost: h\r\n\r\nGET /2 HTTP/1.1\r\nhost: h\r\n\r\n"), Fin, Response, Response],
            both,
        ),
        case(
            "two requests at once, and the first one's response is broken off",
            "the second is not answered in its place",
            &[Head, say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\npart"), Fin],
            &[say("GET /1 HTTP/1.1\r\nhost: h\r\n\r\nGET /2 HTTP/1.1\r\nhost: h\r\n\r\n"), Response, Response],
            part,
        ),
        case(
            "a refused upload, and a request behind it",
            "the refusal arrives",
            &[Head, last("413 Content Too Large", "too large"), Fin],
            &[post(4), say("bodyGET /2 HTTP/1.1\r\nhost: h\r\n\r\n"), Response],
            refused,
        ),
    ]
}
