//! What passes: bodies, headers, framing, upgrades, limits, shutdown.

#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use http_body_util::channel::Channel;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use outlive_gateway::Limits;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

const MIB: usize = 1 << 20;

/// Whoever closes is taken to be gone at once.
fn hasty() -> Limits {
    let mut limits = Limits::default();
    limits.leave_timeout = Duration::from_millis(20);
    limits
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len as u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[5] ^ seed).collect()
}

/// A body whose length is not announced, in pieces of changing size.
fn chunked(bytes: Vec<u8>) -> Body {
    let (mut sender, body) = Channel::new(1);
    tokio::spawn(async move {
        let mut rest = Bytes::from(bytes);
        let mut size = 1;
        while !rest.is_empty() {
            let piece = rest.split_to(size.min(rest.len()));
            if sender.send_data(piece).await.is_err() {
                return;
            }
            size = size * 3 % 70_001;
        }
    });
    body.boxed()
}

async fn echo(req: Request<Incoming>) -> Response<Body> {
    let bytes = req.into_body().collect().await.unwrap().to_bytes();
    Response::new(full(bytes))
}

async fn echo_chunked(req: Request<Incoming>) -> Response<Body> {
    let bytes = req.into_body().collect().await.unwrap().to_bytes();
    Response::new(chunked(bytes.to_vec()))
}

/// Answers before it has read anything: both directions at once.
async fn echo_at_once(req: Request<Incoming>) -> Response<Body> {
    Response::new(req.into_body().boxed())
}

async fn post(client: &mut Client, body: Body) -> (StatusCode, Bytes) {
    let response = client.send(request("POST", "/", "", body)).await.unwrap();
    let status = response.status();
    (status, within("the body", response.into_body().collect()).await.unwrap().to_bytes())
}

#[tokio::test]
async fn a_megabyte_passes_unchanged_both_ways_with_and_without_a_length() {
    for backend in [Backend::start(echo).await, Backend::start(echo_chunked).await, Backend::start(echo_at_once).await] {
        let gateway = gateway().member("a", backend.addr).start().await.unwrap();
        let mut clients = tokio::task::JoinSet::new();
        for seed in 0..8 {
            let addr = gateway.local_addr();
            clients.spawn(async move {
                let mut client = Client::connect(addr).await;
                for round in 0..3 {
                    let sent = pattern(MIB + usize::from(seed), seed ^ (round << 5));
                    let body = if (seed + round) % 2 == 0 { full(sent.clone()) } else { chunked(sent.clone()) };
                    let (status, came) = post(&mut client, body).await;
                    assert_eq!(status, 200);
                    assert!(came == sent, "{} bytes came, {} were sent", came.len(), sent.len());
                }
            });
        }
        while let Some(done) = clients.join_next().await {
            done.unwrap();
        }
        assert_eq!(backend.requests(), 24, "none was sent twice");
        eventually("nothing in flight", || member(&gateway, "a").in_flight == 0).await;
    }
}

#[tokio::test]
async fn an_upload_goes_on_while_the_answer_waits_for_its_reader() {
    // The whole of the answer comes before the request is read; the client sends all before it reads.
    let backend = Backend::start(|req: Request<Incoming>| async {
        let (mut sender, body) = Channel::new(1);
        tokio::spawn(async move {
            for _ in 0..64 {
                if sender.send_data(Bytes::from(vec![b'x'; 64 * 1024])).await.is_err() {
                    return;
                }
            }
            let len = req.into_body().collect().await.unwrap().to_bytes().len();
            let _ = sender.send_data(Bytes::from(format!("{len}"))).await;
        });
        Response::new(body.boxed())
    })
    .await;
    let gateway = gateway().member("a", backend.addr).start().await.unwrap();
    let mut client = Client::connect(gateway.local_addr()).await;
    let (status, came) = post(&mut client, full(pattern(8 * MIB, 1))).await;
    assert_eq!((status.as_u16(), came.len()), (200, 4 * MIB + 7));
    assert!(came.ends_with(b"8388608"));
}

#[tokio::test]
async fn header_values_pass_byte_by_byte_and_repeated_ones_in_their_order() {
    let (heads, mut seen) = mpsc::channel(1);
    let backend = raw_backend(move |_, mut stream| {
        let heads = heads.clone();
        async move {
            heads.send(read_head(&mut stream).await).await.unwrap();
            stream
                .write_all(
                    b"HTTP/1.1 200 Fine\r\nSet-Cookie: a=1; Path=/\r\nX-Odd: caf\xe9\r\nSet-Cookie: b=\"2\"\r\nContent-Length: 0\r\n\r\n",
                )
                .await
                .unwrap();
        }
    })
    .await;
    let gateway = gateway().member("a", backend).start().await.unwrap();
    let odd = HeaderValue::from_bytes(b"caf\xe9 \t x").unwrap();
    let req = Request::builder()
        .uri("/p%20a;x=1/../b?q=a+b&q=%C3%A9")
        .header("host", "shop.example:8443")
        .header("x-odd", &odd)
        .header("x-many", "1")
        .header("cookie", "SESS=x.a; other=\"q,;\"")
        .header("x-many", "2")
        .body(full(""))
        .unwrap();
    let response = Client::connect(gateway.local_addr()).await.send(req).await.unwrap();
    let cookies: Vec<_> = response.headers().get_all("set-cookie").iter().map(HeaderValue::as_bytes).collect();
    assert_eq!(cookies, [b"a=1; Path=/".as_slice(), b"b=\"2\""]);
    assert_eq!(response.headers()["x-odd"].as_bytes(), b"caf\xe9");
    let head = seen.recv().await.unwrap();
    let lines: Vec<_> = head.lines().collect();
    assert_eq!(lines[0], "GET /p%20a;x=1/../b?q=a+b&q=%C3%A9 HTTP/1.1");
    for line in [
        "host: shop.example:8443",
        "x-odd: caf\u{fffd} \t x",
        "cookie: SESS=x.a; other=\"q,;\"",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: shop.example:8443",
    ] {
        assert!(lines.contains(&line), "{line} in {head}");
    }
    let many: Vec<_> = lines.iter().filter(|line| line.starts_with("x-many")).collect();
    assert_eq!(many, [&"x-many: 1", &"x-many: 2"]);
}

#[tokio::test]
async fn answers_without_a_body_end_where_they_end() {
    let backend = Backend::start(|req: Request<Incoming>| async move {
        let mut response = Response::new(full(""));
        match req.uri().path() {
            "/204" => *response.status_mut() = StatusCode::NO_CONTENT,
            "/304" => *response.status_mut() = StatusCode::NOT_MODIFIED,
            _ if req.method() == "HEAD" => {
                response.headers_mut().insert("content-length", HeaderValue::from_static("12345"));
            }
            _ => *response.body_mut() = full("body"),
        }
        response
    })
    .await;
    let gateway = gateway().workers(1).member("a", backend.addr).start().await.unwrap();
    let mut client = Client::connect(gateway.local_addr()).await;
    for _ in 0..3 {
        assert_eq!(client.text(request("GET", "/204", "", full(""))).await, (StatusCode::NO_CONTENT, String::new()));
        assert_eq!(client.text(request("GET", "/304", "", full(""))).await, (StatusCode::NOT_MODIFIED, String::new()));
        let head = client.send(request("HEAD", "/", "", full(""))).await.unwrap();
        assert_eq!(head.headers()["content-length"], "12345");
        drop(head);
        assert_eq!(client.text(request("GET", "/", "", full(""))).await, (StatusCode::OK, "body".into()));
    }
    assert_eq!((backend.requests(), backend.accepted()), (12, 1), "each left its connection fit for the next");
}

#[tokio::test]
async fn http_1_0_is_answered_in_kind() {
    let backend = Backend::start(echo_chunked).await;
    let gateway = gateway().member("a", backend.addr).start().await.unwrap();
    let answer = raw(gateway.local_addr(), b"POST / HTTP/1.0\r\nContent-Length: 4\r\n\r\nping").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nping") && !answer.contains("chunked"), "{answer}");
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it_before_it_sends() {
    let backend = Backend::start(echo).await;
    let gateway = gateway().member("a", backend.addr).start().await.unwrap();
    let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 4\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(within("100", read_head(&mut stream)).await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"ping").await.unwrap();
    let mut rest = String::new();
    within("the answer", stream.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with("\r\n\r\nping"), "{rest}");
}

#[tokio::test]
async fn a_silent_member_is_given_up_with_504_and_loses_the_request() {
    let (gone, mut was_gone) = mpsc::channel(1);
    let backend = raw_backend(move |_, mut stream| {
        let gone = gone.clone();
        async move {
            read_head(&mut stream).await;
            assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
            gone.send(()).await.unwrap();
        }
    })
    .await;
    let mut limits = Limits::default();
    limits.response_timeout = Duration::from_millis(100);
    let gateway = gateway().member("a", backend).limits(limits).start().await.unwrap();
    let (status, text) = once(gateway.local_addr(), "GET", "").await;
    assert_eq!((status.as_u16(), text.as_str()), (504, "outlive gateway: a server took too long (a: no answer in time)\n"));
    within("the member to see it", was_gone.recv()).await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along() {
    let (gone, mut was_gone) = mpsc::channel(1);
    let backend = raw_backend(move |number, mut stream| {
        let gone = gone.clone();
        async move {
            read_head(&mut stream).await;
            if number > 0 {
                // In the middle of an answer, where the former has not even begun one.
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nsome").await.unwrap();
            }
            assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
            gone.send(number).await.unwrap();
        }
    })
    .await;
    let gateway = gateway().member("a", backend).limits(hasty()).start().await.unwrap();
    for number in 0..2 {
        let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        eventually("the member to be asked", || member(&gateway, "a").requests == number + 1).await;
        if number > 0 {
            assert!(within("a head", read_head(&mut stream)).await.starts_with("HTTP/1.1 200 OK"));
        }
        drop(stream);
        assert_eq!(within("the member to see it", was_gone.recv()).await.unwrap() as u64, number);
        eventually("nothing in flight", || member(&gateway, "a").in_flight == 0).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_its_body_takes_its_request_along() {
    let (gone, mut was_gone) = mpsc::channel(1);
    let backend = raw_backend(move |_, mut stream| {
        let gone = gone.clone();
        async move {
            read_head(&mut stream).await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            gone.send(rest).await.unwrap();
        }
    })
    .await;
    let gateway = gateway().member("a", backend).start().await.unwrap();
    let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\npart").await.unwrap();
    eventually("the member to be asked", || member(&gateway, "a").in_flight == 1).await;
    drop(stream);
    let rest = within("the member to see it", was_gone.recv()).await.unwrap();
    assert!(rest.len() <= 4, "nothing was made up: {rest:?}");
    eventually("nothing in flight", || member(&gateway, "a").in_flight == 0).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_made_whole() {
    for broken in
        ["HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\npart", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n"]
    {
        let begun = Arc::new(Semaphore::new(0));
        let seen = begun.clone();
        let backend = raw_backend(move |_, mut stream| {
            let seen = seen.clone();
            async move {
                read_head(&mut stream).await;
                stream.write_all(broken.as_bytes()).await.unwrap();
                let _ = seen.acquire().await;
            }
        })
        .await;
        let gateway = gateway().member("a", backend).start().await.unwrap();
        let response = Client::connect(gateway.local_addr()).await.send(request("GET", "/", "", full(""))).await.unwrap();
        assert_eq!(response.status(), 200);
        begun.add_permits(1);
        assert!(within("the end", response.into_body().collect()).await.is_err(), "{broken}");
    }
}

#[tokio::test]
async fn what_a_member_says_unasked_reaches_nobody() {
    let backend = raw_backend(move |_, mut stream| async move {
        while read_head(&mut stream).await.starts_with("GET") {
            let twice = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nmine";
            stream.write_all(&[twice.as_slice(), b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother"].concat()).await.unwrap();
        }
    })
    .await;
    let gateway = gateway().workers(1).member("a", backend).start().await.unwrap();
    for _ in 0..10 {
        assert_eq!(once(gateway.local_addr(), "GET", "").await, (StatusCode::OK, "mine".into()));
    }
}

#[tokio::test]
async fn after_a_body_that_a_member_may_overlook_its_connection_is_not_used_again() {
    let backend = Backend::named("a").await;
    let gateway = gateway().workers(1).member("a", backend.addr).start().await.unwrap();
    let mut client = Client::connect(gateway.local_addr()).await;
    for _ in 0..3 {
        assert_eq!(client.text(request("GET", "/", "", full("GET /admin HTTP/1.1\r\n\r\n"))).await.1, "a");
    }
    assert_eq!((backend.requests(), backend.accepted()), (3, 3));
}

#[tokio::test]
async fn a_websocket_passes_with_whatever_is_said_first() {
    let (asked, mut heads) = mpsc::channel(1);
    let backend = raw_backend(move |_, mut stream| {
        let asked = asked.clone();
        async move {
            asked.send(read_head(&mut stream).await).await.unwrap();
            let hello =
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: k\r\n\r\nhello ";
            stream.write_all(hello).await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        }
    })
    .await;
    let gateway = gateway().member("a", backend).start().await.unwrap();
    let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
    let ask =
        b"GET /chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: k\r\n\r\nearly ";
    stream.write_all(ask).await.unwrap();
    let head = within("the switch", read_head(&mut stream)).await;
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"),
        "{head}"
    );
    let asked = heads.recv().await.unwrap();
    assert!(asked.contains("upgrade: websocket\r\n") && asked.contains("connection: upgrade\r\n"), "{asked}");
    let (mut read, mut write) = stream.into_split();
    let sent = pattern(MIB, 9);
    let sending = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
        sent
    });
    let mut came = Vec::new();
    within("the echo", read.read_to_end(&mut came)).await.unwrap();
    let expected = [b"hello early ".as_slice(), &sending.await.unwrap()].concat();
    assert!(came == expected, "{} bytes came, {} expected", came.len(), expected.len());
    eventually("no connection", || gateway.stats().connections == 0 && member(&gateway, "a").in_flight == 0).await;
}

#[tokio::test]
async fn a_refused_websocket_is_an_answer_like_any_other() {
    let backend = Backend::start(|_| async { Response::builder().status(403).body(full("no")).unwrap() }).await;
    let gateway = gateway().member("a", backend.addr).start().await.unwrap();
    let ask = "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
    for _ in 0..2 {
        stream.write_all(ask.as_bytes()).await.unwrap();
        assert!(within("an answer", read_head(&mut stream)).await.starts_with("HTTP/1.1 403"));
        stream.read_exact(&mut [0; 2]).await.unwrap();
    }
}

#[tokio::test]
async fn no_other_protocol_is_switched_to() {
    let backend = Backend::start(|req: Request<Incoming>| async move {
        Response::new(full(format!("{:?} {:?}", req.headers().get("upgrade"), req.headers().get("http2-settings"))))
    })
    .await;
    let gateway = gateway().member("a", backend.addr).start().await.unwrap();
    let ask = b"GET / HTTP/1.0\r\nHost: h\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n";
    assert!(raw(gateway.local_addr(), ask).await.ends_with("None None"));
}

#[tokio::test]
async fn requests_that_two_readers_could_take_for_two_different_things_are_refused() {
    let backend = Backend::named("a").await;
    let gateway = gateway().member("a", backend.addr).start().await.unwrap();
    let refused = [
        ("a length, then a coding", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"),
        (
            "a coding, then a length",
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n8\r\nSMUGGLED\r\n0\r\n\r\n",
        ),
        ("the same in lower case", "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n"),
        ("two codings", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n0\r\n\r\n"),
        ("one coding twice", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("a list of codings", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n"),
        ("an unknown coding", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("a coding with a parameter", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n"),
        ("a coding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("a space before the colon", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        ("a folded line", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
        ("two lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"),
        ("a list of lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4, 4\r\n\r\nabcd"),
        ("a signed length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +4\r\n\r\nabcd"),
        ("a negative length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n"),
        ("an empty length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: \r\n\r\n"),
        ("a length in hex", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x4\r\n\r\nabcd"),
        ("a length beyond all bounds", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("a byte 0 in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n"),
        ("a bare return in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: a\rContent-Length: 3\r\n\r\n"),
        ("a space in the target", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("no version", "GET /\r\n\r\n"),
        ("a name that is none", "GET / HTTP/1.1\r\nHost: h\r\nX{}: 1\r\n\r\n"),
    ];
    for (what, bytes) in refused {
        let answer = raw(gateway.local_addr(), bytes.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n") || answer.starts_with("HTTP/1.0 400 Bad Request\r\n"),
            "{what}: {answer}"
        );
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{what}: and no second answer on that connection: {answer}");
    }
    assert_eq!(backend.requests(), 0);
}

#[tokio::test]
async fn a_length_beside_a_coding_is_found_wherever_the_bytes_were_cut_and_after_other_requests() {
    let backend = Backend::named("a").await;
    let gateway = gateway().member("a", backend.addr).start().await.unwrap();
    let bad = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n";
    for cut in [1, 30, 50, 60, 75] {
        let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        assert!(within("an answer", read_head(&mut stream)).await.starts_with("HTTP/1.1 200"));
        stream.read_exact(&mut [0; 1]).await.unwrap();
        stream.write_all(&bad[..cut]).await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(&bad[cut..]).await.unwrap();
        assert!(within("an answer", read_head(&mut stream)).await.starts_with("HTTP/1.1 400"), "cut at {cut}");
    }
    assert_eq!(backend.requests(), 5);
}

#[tokio::test]
async fn a_body_that_is_no_chunks_is_the_clients_fault() {
    let backend = Backend::start(|req: Request<Incoming>| async move {
        let _ = req.into_body().collect().await;
        Response::new(full("a"))
    })
    .await;
    let gateway = gateway().member("a", backend.addr).start().await.unwrap();
    let bad = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n";
    let answer = raw(gateway.local_addr(), bad).await;
    assert!(answer.starts_with("HTTP/1.1 400") || answer.is_empty(), "{answer}");
    assert_eq!(member(&gateway, "a").failures, 0);
}

#[tokio::test]
async fn forwarding_headers_from_outside_are_replaced_unless_the_proxy_is_trusted() {
    for (trusted, expected) in [(false, "127.0.0.1 http"), (true, "203.0.113.9, 127.0.0.1 https")] {
        let backend = Backend::start(|req: Request<Incoming>| async move {
            let value = |name: &str| req.headers()[name].to_str().unwrap().to_owned();
            Response::new(full(format!("{} {}", value("x-forwarded-for"), value("x-forwarded-proto"))))
        })
        .await;
        let mut builder = gateway().member("a", backend.addr);
        if trusted {
            builder = builder.trust("127.0.0.0/8".parse().unwrap());
        }
        let gateway = builder.start().await.unwrap();
        let mut req = request("GET", "/", "", full(""));
        req.headers_mut().insert("x-forwarded-for", HeaderValue::from_static("203.0.113.9"));
        req.headers_mut().insert("x-forwarded-proto", HeaderValue::from_static("https"));
        assert_eq!(Client::connect(gateway.local_addr()).await.text(req).await.1, expected);
    }
}

#[tokio::test]
async fn a_head_passes_up_to_its_limit_and_not_a_byte_beyond() {
    let backend = Backend::named("a").await;
    for limit in [8 << 10, 16 << 10, 64 << 10] {
        let mut limits = Limits::default();
        limits.max_head = limit;
        let gateway = gateway().member("a", backend.addr).limits(limits).start().await.unwrap();
        for (len, expected) in [(limit, "HTTP/1.1 200"), (limit + 1, "HTTP/1.1 431"), (limit + (6 << 10), "HTTP/1.1 431")] {
            let head = |filling: usize| format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\nX: {}\r\n\r\n", "x".repeat(filling));
            let head = head(len - head(0).len());
            // Its body comes in the same breath, and is not part of it.
            let answer = raw_first(gateway.local_addr(), &[head.as_bytes(), &[b'b'; 5000]].concat()).await;
            assert!(answer.starts_with(expected), "{len} of {limit}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_response_head_passes_up_to_the_limit_and_not_a_byte_beyond() {
    let limit = 16 << 10;
    let mut limits = Limits::default();
    limits.max_head = limit;
    let backend = raw_backend(move |_, mut stream| async move {
        let asked = read_head(&mut stream).await;
        let len: usize = asked.split(' ').nth(1).and_then(|path| path[1..].parse().ok()).unwrap();
        let head = |filling: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: 9000\r\nX: {}\r\n\r\n", "x".repeat(filling));
        let head = head(len - head(0).len());
        stream.write_all(&[head.as_bytes(), &[b'b'; 9000]].concat()).await.unwrap();
    })
    .await;
    let gateway = gateway().member("a", backend).limits(limits).start().await.unwrap();
    for (len, status) in [(limit, 200), (limit + 1, 502), (limit + 5000, 502)] {
        let mut client = Client::connect(gateway.local_addr()).await;
        let (came, text) = client.text(request("GET", &format!("/{len}"), "", full(""))).await;
        assert_eq!(came, status, "{len} of {limit}: {text}");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_turned_away_with_503() {
    let backend = Backend::named("a").await;
    let mut limits = Limits::default();
    limits.max_connections = 2;
    let gateway = gateway().member("a", backend.addr).limits(limits).start().await.unwrap();
    let addr = gateway.local_addr();
    let (first, _second) = (TcpStream::connect(addr).await.unwrap(), TcpStream::connect(addr).await.unwrap());
    eventually("two connections", || gateway.stats().connections == 2).await;
    let mut third = TcpStream::connect(addr).await.unwrap();
    let mut answer = String::new();
    within("to be turned away", third.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains(&format!("content-length: {}", body.len())), "{answer}");
    drop(first);
    eventually("one connection", || gateway.stats().connections == 1).await;
    assert_eq!(once(addr, "GET", "").await.1, "a");
    assert_eq!(gateway.stats().turned_away, 1);
}

#[tokio::test]
async fn connections_that_dawdle_are_closed() {
    let backend = Backend::start(|_| async {
        let (mut sender, body) = Channel::new(1);
        tokio::spawn(async move {
            let _ = sender.send_data(Bytes::from_static(b"some")).await;
            std::future::pending::<()>().await;
        });
        Response::new(body.boxed())
    })
    .await;
    let mut limits = Limits::default();
    let short = Duration::from_millis(50);
    (limits.idle_timeout, limits.head_timeout, limits.stream_timeout) = (short, short, short);
    let gateway = gateway().member("a", backend.addr).limits(limits).start().await.unwrap();
    for (what, bytes) in [("idle", ""), ("in a head", "GET / HT"), ("in an answer", "GET / HTTP/1.1\r\nHost: h\r\n\r\n")] {
        let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = within(what, stream.read_to_end(&mut answer)).await;
        assert!(!answer.ends_with(b"0\r\n\r\n"), "{what}: closed, not ended");
    }
    eventually("no connection", || gateway.stats().connections == 0).await;
}

/// A gateway in front of a member that answers when it is let.
async fn held_up() -> (outlive_gateway::Running, Arc<Semaphore>, Backend) {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let backend = Backend::start(move |_| {
        let held = held.clone();
        async move {
            held.acquire().await.unwrap().forget();
            Response::new(full("late"))
        }
    })
    .await;
    let gateway = gateway().member("a", backend.addr).start().await.unwrap();
    (gateway, gate, backend)
}

#[tokio::test]
async fn a_shutdown_lets_requests_finish_and_closes_what_is_idle() {
    let (gateway, gate, _backend) = held_up().await;
    let addr = gateway.local_addr();
    let mut busy = Client::connect(addr).await;
    let mut idle = TcpStream::connect(addr).await.unwrap();
    let answering = tokio::spawn(async move { busy.send(request("GET", "/", "", full(""))).await.unwrap() });
    eventually("a request in flight", || member(&gateway, "a").in_flight == 1 && gateway.stats().connections == 2).await;
    let stopping = tokio::spawn(gateway.shutdown(PATIENCE));
    assert_eq!(within("the idle one to be closed", idle.read(&mut [0; 1])).await.unwrap(), 0);
    assert!(TcpStream::connect(addr).await.is_err(), "it listens no more");
    gate.add_permits(1);
    let response = answering.await.unwrap();
    assert_eq!(response.headers()["connection"], "close");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "late");
    assert_eq!(within("the end", stopping).await.unwrap().cut, 0);
}

#[tokio::test]
async fn a_shutdown_cuts_what_does_not_end_in_time_and_says_so() {
    let (gateway, _gate, _backend) = held_up().await;
    let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    eventually("a request in flight", || member(&gateway, "a").in_flight == 1).await;
    assert_eq!(within("the end", gateway.shutdown(Duration::ZERO)).await.cut, 1);
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_gateway_that_is_dropped_serves_no_more() {
    let (gateway, _gate, _backend) = held_up().await;
    let addr = gateway.local_addr();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    eventually("a request in flight", || member(&gateway, "a").in_flight == 1).await;
    drop(gateway);
    assert_eq!(within("the connection to end", stream.read(&mut [0; 1])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let backend = Backend::start(|req: Request<Incoming>| async move { Response::new(full(req.uri().path().to_owned())) }).await;
    let gateway = gateway().member("a", backend.addr).start().await.unwrap();
    let asked: String =
        (0..50).map(|n| format!("GET /{n}; HTTP/1.1\r\nHost: h\r\n{}\r\n", if n == 49 { "Connection: close\r\n" } else { "" })).collect();
    let answer = raw(gateway.local_addr(), asked.as_bytes()).await;
    let came: Vec<_> = answer.split("\r\n\r\n").skip(1).map(|part| part.split(';').next().unwrap().to_owned()).collect();
    assert_eq!(came, (0..50).map(|n| format!("/{n}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn members_of_any_name_and_gone_directories_never_stop_a_worker() {
    // A worker that panicked would leave its half of all connections without an answer.
    let panics = Arc::new(AtomicUsize::new(0));
    let counted = panics.clone();
    let backend = Backend::named("a").await;
    let gateway = gateway().member("", backend.addr).member("ü.x", backend.addr).member("a", backend.addr).start().await.unwrap();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name().is_some_and(|name| name.starts_with("gateway-")) {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        before(info);
    }));
    for cookie in ["x=.", "x=", "=", ";;;=.a", "\"", "x=\"", "x=\".\"", "x=y.\u{fc}.x", ".a"] {
        assert_eq!(once(gateway.local_addr(), "GET", cookie).await.1, "a", "{cookie}");
    }
    assert_eq!(panics.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_raw_upgrade_is_refused_by_members_that_do_not_know_it_without_harm() {
    // The backend switches although nobody asked: that is a fault of the backend, and no byte of it passes.
    let backend = raw_backend(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nsecret").await.unwrap();
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let gateway = gateway().member("a", backend).start().await.unwrap();
    let (status, text) = once(gateway.local_addr(), "POST", "").await;
    assert_eq!(status, 502);
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn trailers_pass() {
    let backend = Backend::start(|_| async {
        let (mut sender, body) = Channel::new(2);
        tokio::spawn(async move {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static("42"));
            let _ = sender.send_data(Bytes::from_static(b"body")).await;
            let _ = sender.send_trailers(trailers).await;
        });
        Response::builder().header("trailer", "x-sum").body(body.boxed()).unwrap()
    })
    .await;
    let gateway = gateway().member("a", backend.addr).start().await.unwrap();
    let mut req = request("GET", "/", "", full(""));
    req.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    let stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
    let (mut sender, conn) = hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(conn);
    let collected = sender.send_request(req).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().map(|trailers| trailers["x-sum"].clone()), Some(HeaderValue::from_static("42")));
    assert_eq!(collected.to_bytes(), "body");
}
