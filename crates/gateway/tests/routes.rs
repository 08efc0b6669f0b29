//! Who answers: stickiness, balance, dead members, retries, drain.
#![allow(clippy::unwrap_used)]

mod support;

use outlive_gateway::{MemberInfo, State};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn a_visitor_stays_with_the_member_that_the_cookie_names() {
    let (a, b, c) = (Backend::named("a").await, Backend::named("b").await, Backend::named("c").await);
    let gateway = gateway().member("a", a.addr).member("b", b.addr).member("c", c.addr).start().await.unwrap();
    let mut client = Client::connect(gateway.local_addr()).await;
    for name in ["b", "a", "c", "c", "b"].repeat(10) {
        let (status, body) = client.text(request("GET", "/", &format!("lang=en; OUTLIVESID=xyz.{name}"), full(""))).await;
        assert_eq!((status.as_u16(), body.as_str()), (200, name));
    }
    assert_eq!(member(&gateway, "b").requests, 20);
    assert_eq!(gateway.stats().members.iter().map(|member| member.moved + member.failures).sum::<u64>(), 0);
}

#[tokio::test]
async fn visitors_without_a_route_are_spread_over_all_that_are_up() {
    let (a, b, c) = (Backend::named("a").await, Backend::named("b").await, Backend::named("c").await);
    let gateway = gateway().member("a", a.addr).member("b", b.addr).member("c", c.addr).start().await.unwrap();
    let mut client = Client::connect(gateway.local_addr()).await;
    let mut seen = HashMap::new();
    for _ in 0..300 {
        *seen.entry(client.text(request("GET", "/", "", full(""))).await.1).or_insert(0) += 1;
    }
    // Evenly random would give each 100 with a deviation of 8.
    assert!(["a", "b", "c"].iter().all(|name| seen[*name] > 50), "{seen:?}");
}

#[tokio::test]
async fn requests_that_are_held_up_steer_new_ones_elsewhere() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = gate.clone();
    let slow = Backend::start(move |_| {
        let held = held.clone();
        async move {
            let _ = held.acquire().await.unwrap();
            http::Response::new(full("slow"))
        }
    })
    .await;
    let fast = Backend::named("fast").await;
    let gateway = gateway().member("fast", fast.addr).member("slow", slow.addr).start().await.unwrap();
    let addr = gateway.local_addr();
    let stuck = tokio::spawn(once(addr, "GET", "SESS=x.slow"));
    eventually("the slow one to be asked", || member(&gateway, "slow").in_flight == 1).await;
    for _ in 0..50 {
        assert_eq!(once(addr, "GET", "").await.1, "fast");
    }
    gate.add_permits(1);
    assert_eq!(stuck.await.unwrap().1, "slow");
    eventually("nothing in flight", || gateway.stats().members.iter().all(|member| member.in_flight == 0)).await;
}

#[tokio::test]
async fn a_visitor_of_a_dead_member_is_answered_by_another_whatever_the_method() {
    let gone = nobody();
    let b = Backend::named("b").await;
    let gateway = gateway().member("a", gone.addr).member("b", b.addr).start().await.unwrap();
    for method in ["GET", "POST", "DELETE"] {
        assert_eq!(once(gateway.local_addr(), method, "SESS=x.a").await, (http::StatusCode::OK, "b".into()));
    }
    let (a, b) = (member(&gateway, "a"), member(&gateway, "b"));
    assert_eq!((a.state, a.failures, a.requests), (State::Down, 1, 1), "refused once, then known to be down");
    assert_eq!((b.requests, b.retries, b.moved), (3, 1, 3));
}

#[tokio::test]
async fn a_member_that_comes_back_is_found_and_gets_its_visitors_back() {
    let b = Backend::named("b").await;
    let home = nobody();
    let gateway = gateway().member("a", home.addr).member("b", b.addr).start().await.unwrap();
    assert_eq!(once(gateway.local_addr(), "GET", "SESS=x.a").await.1, "b");
    assert_eq!(member(&gateway, "a").state, State::Down);
    let _a = Backend::start_on(home.socket.listen(16).unwrap(), |_| async { http::Response::new(full("a")) });
    eventually("a probe to find it", || member(&gateway, "a").state == State::Up).await;
    assert_eq!(once(gateway.local_addr(), "GET", "SESS=x.a").await.1, "a");
}

/// Reads each request and hangs up without a word.
async fn reads_and_hangs_up(heads: Arc<AtomicUsize>) -> std::net::SocketAddr {
    raw_backend(move |_, mut stream| {
        let heads = heads.clone();
        async move {
            read_head(&mut stream).await;
            heads.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await
}

#[tokio::test]
async fn a_get_whose_connection_breaks_before_the_answer_is_sent_to_another() {
    let heads = Arc::new(AtomicUsize::new(0));
    let b = Backend::named("b").await;
    let gateway = gateway().member("a", reads_and_hangs_up(heads.clone()).await).member("b", b.addr).start().await.unwrap();
    assert_eq!(once(gateway.local_addr(), "GET", "SESS=x.a").await, (http::StatusCode::OK, "b".into()));
    assert_eq!(heads.load(Ordering::SeqCst), 1);
    assert_eq!(member(&gateway, "a").state, State::Up, "it accepted the connection");
}

#[tokio::test]
async fn a_post_that_was_sent_is_not_sent_again() {
    let heads = Arc::new(AtomicUsize::new(0));
    let b = Backend::named("b").await;
    let gateway = gateway().member("a", reads_and_hangs_up(heads.clone()).await).member("b", b.addr).start().await.unwrap();
    let (status, text) = once(gateway.local_addr(), "POST", "SESS=x.a").await;
    assert_eq!(
        (status.as_u16(), text.as_str()),
        (502, "outlive gateway: a server failed while it worked on this request (a: connection broke)\n")
    );
    assert_eq!((heads.load(Ordering::SeqCst), b.requests()), (1, 0));
}

#[tokio::test]
async fn with_retry_off_a_get_that_was_sent_is_not_sent_again_but_one_that_was_not_is() {
    let gone = nobody();
    let gone_too = nobody();
    let heads = Arc::new(AtomicUsize::new(0));
    let b = Backend::named("b").await;
    let gateway = gateway()
        .member("a", reads_and_hangs_up(heads.clone()).await)
        .member("b", b.addr)
        .member("c", gone.addr)
        .retry(false)
        .start()
        .await
        .unwrap();
    assert_eq!(once(gateway.local_addr(), "GET", "SESS=x.a").await.0, 502);
    assert_eq!((heads.load(Ordering::SeqCst), b.requests()), (1, 0));
    gateway.directory().update(vec![MemberInfo::fixed("b", b.addr), MemberInfo::fixed("c", gone_too.addr)]);
    assert_eq!(once(gateway.local_addr(), "POST", "SESS=x.c").await.0, 200);
}

#[tokio::test]
async fn a_put_is_sent_again_without_a_body_and_not_with_one() {
    for (body, expected) in [("", 200), ("data", 502)] {
        let heads = Arc::new(AtomicUsize::new(0));
        let b = Backend::named("b").await;
        let gateway = gateway().member("a", reads_and_hangs_up(heads.clone()).await).member("b", b.addr).start().await.unwrap();
        let (status, _) = Client::connect(gateway.local_addr()).await.text(request("PUT", "/", "SESS=x.a", full(body))).await;
        assert_eq!(status, expected, "{body:?}");
    }
}

#[tokio::test]
async fn a_request_is_sent_twice_at_most() {
    let heads = Arc::new(AtomicUsize::new(0));
    let mut builder = gateway();
    for name in ["a", "b", "c", "d"] {
        builder = builder.member(name, reads_and_hangs_up(heads.clone()).await);
    }
    let gateway = builder.start().await.unwrap();
    assert_eq!(once(gateway.local_addr(), "GET", "").await.0, 502);
    assert_eq!(heads.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn when_all_refuse_the_answer_says_so_and_when_to_come_back() {
    let gone = nobody();
    let gone_too = nobody();
    let gateway = gateway().member("a", gone.addr).member("b", gone_too.addr).start().await.unwrap();
    let response = Client::connect(gateway.local_addr()).await.send(request("POST", "/", "SESS=x.b", full("body"))).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].as_bytes()), (503, b"1".as_slice()));
    let text = once(gateway.local_addr(), "GET", "").await;
    assert_eq!(text, (http::StatusCode::SERVICE_UNAVAILABLE, "outlive gateway: no server can answer now (none is up)\n".into()));
}

/// Answers one request a connection as if it kept it open, and hangs up when the next one comes in: what a client sees whose
/// request crosses with the server's closing of an idle connection.
async fn closes_when_used_again(heads: Arc<AtomicUsize>) -> std::net::SocketAddr {
    raw_backend(move |_, mut stream| {
        let heads = heads.clone();
        async move {
            read_head(&mut stream).await;
            heads.fetch_add(1, Ordering::SeqCst);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            let _ = stream.read_u8().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_get_that_crosses_with_the_closing_of_an_idle_connection_is_answered_by_the_same_member() {
    let heads = Arc::new(AtomicUsize::new(0));
    let b = Backend::named("b").await;
    let gateway = gateway().workers(1).member("a", closes_when_used_again(heads.clone()).await).member("b", b.addr).start().await.unwrap();
    let mut client = Client::connect(gateway.local_addr()).await;
    for n in 1..=20 {
        assert_eq!(client.text(request("GET", "/", "SESS=x.a", full(""))).await, (http::StatusCode::OK, "ok".into()));
        assert_eq!(heads.load(Ordering::SeqCst), n);
    }
    assert_eq!(b.requests(), 0);
    // Every second connection was an old one.
    assert_eq!(client.text(request("POST", "/", "SESS=x.a", full(""))).await.0, 502, "which a POST cannot be told to survive");
}

#[tokio::test]
async fn a_connection_that_the_member_has_closed_is_not_used_even_for_a_post() {
    let closed = Arc::new(tokio::sync::Semaphore::new(0));
    let signal = closed.clone();
    let a = raw_backend(move |_, mut stream| {
        let signal = signal.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            drop(stream);
            signal.add_permits(1);
        }
    })
    .await;
    let gateway = gateway().workers(1).member("a", a).start().await.unwrap();
    let mut client = Client::connect(gateway.local_addr()).await;
    for _ in 0..20 {
        assert_eq!(client.text(request("POST", "/", "", full(""))).await.0, 200);
        closed.acquire().await.unwrap().forget();
    }
}

#[tokio::test]
async fn connections_to_members_are_used_again() {
    let a = Backend::named("a").await;
    let gateway = gateway().workers(1).member("a", a.addr).start().await.unwrap();
    for _ in 0..5 {
        let mut client = Client::connect(gateway.local_addr()).await;
        for _ in 0..20 {
            assert_eq!(client.text(request("GET", "/", "", full(""))).await.1, "a");
        }
    }
    assert_eq!((a.requests(), a.accepted()), (100, 1));
}

#[tokio::test]
async fn a_draining_member_keeps_its_visitors_and_gets_no_new_one() {
    let (a, b) = (Backend::named("a").await, Backend::named("b").await);
    let gateway = gateway().start().await.unwrap();
    let addr = gateway.local_addr();
    assert_eq!(once(addr, "GET", "").await.0, 503, "nobody told of any member yet");
    let told = |name: &str, backend: &Backend, state| MemberInfo { name: name.into(), addr: backend.addr.into(), life: 1, state };
    gateway.directory().update(vec![told("a", &a, State::Draining), told("b", &b, State::Up)]);
    for _ in 0..30 {
        assert_eq!(once(addr, "POST", "SESS=x.a").await.1, "a");
        assert_eq!(once(addr, "GET", "").await.1, "b");
    }
    gateway.directory().update(vec![told("b", &b, State::Up)]);
    assert_eq!(once(addr, "POST", "SESS=x.a").await.1, "b");
    assert_eq!(a.requests(), 30);
}

#[tokio::test]
async fn what_the_directory_tells_wins_over_a_socket_that_accepts() {
    let (a, b) = (Backend::named("a").await, Backend::named("b").await);
    let gateway = gateway().start().await.unwrap();
    let told = |name: &str, backend: &Backend, life, state| MemberInfo { name: name.into(), addr: backend.addr.into(), life, state };
    gateway.directory().update(vec![told("a", &a, 1, State::Down), told("b", &b, 1, State::Up)]);
    assert_eq!(once(gateway.local_addr(), "GET", "SESS=x.a").await.1, "b");
    gateway.directory().update(vec![told("a", &a, 2, State::Up), told("b", &b, 1, State::Up)]);
    assert_eq!(once(gateway.local_addr(), "GET", "SESS=x.a").await.1, "a");
    assert_eq!(member(&gateway, "a").life, 2);
}

#[tokio::test]
async fn the_visitor_of_a_dead_member_goes_to_a_holder_of_the_session() {
    let gone = nobody();
    let (b, c, d) = (Backend::named("b").await, Backend::named("c").await, Backend::named("d").await);
    let gateway = gateway()
        .cookie("SESS")
        .placement(|value: &[u8]| if value.starts_with(b"mine.") { vec!["d".into()] } else { Vec::new() })
        .member("a", gone.addr)
        .member("b", b.addr)
        .member("c", c.addr)
        .member("d", d.addr)
        .start()
        .await
        .unwrap();
    for _ in 0..30 {
        assert_eq!(once(gateway.local_addr(), "GET", "SESS=mine.a").await.1, "d");
        assert_eq!(once(gateway.local_addr(), "GET", "SESS=mine.long-gone").await.1, "d");
    }
}

#[tokio::test]
async fn pipelined_gets_are_sent_again_as_well() {
    let heads = Arc::new(AtomicUsize::new(0));
    let b = Backend::start(|req| async move { http::Response::new(full(req.uri().path().to_owned())) }).await;
    let gateway = gateway().member("a", reads_and_hangs_up(heads.clone()).await).member("b", b.addr).start().await.unwrap();
    let one = |path: &str, end: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\ncookie: OUTLIVESID=x.a\r\n{end}\r\n");
    let asked = one("/one", "") + &one("/two", "") + &one("/three", "Connection: close\r\n");
    let answer = raw(gateway.local_addr(), asked.as_bytes()).await;
    let bodies: Vec<_> = answer.split("\r\n\r\n").skip(1).map(|part| part.split("HTTP").next().unwrap()).collect();
    assert_eq!((bodies, heads.load(Ordering::SeqCst)), (vec!["/one", "/two", "/three"], 3));
}

#[tokio::test]
async fn a_member_may_be_a_name_and_each_of_its_addresses_is_tried() {
    // `localhost` is `127.0.0.1` and, on most machines, `::1`, where nobody listens.
    let a = Backend::named("a").await;
    let name: outlive_gateway::Address = format!("localhost:{}", a.addr.port()).parse().unwrap();
    let nowhere: outlive_gateway::Address = "no-such-host.invalid:80".parse().unwrap();
    let gateway = gateway().member("a", name).member("b", nowhere).start().await.unwrap();
    for cookie in ["SESS=x.a", "SESS=x.b", "SESS=x.b", ""] {
        assert_eq!(once(gateway.local_addr(), "POST", cookie).await, (http::StatusCode::OK, "a".into()), "{cookie}");
    }
    assert_eq!((member(&gateway, "a").state, member(&gateway, "b").state), (State::Up, State::Down));
}

#[tokio::test]
async fn a_name_to_listen_at_is_each_of_its_addresses() {
    let a = Backend::named("a").await;
    let name: outlive_gateway::Address = "localhost:0".parse().unwrap();
    let gateway = outlive_gateway::Gateway::builder().listen(name).workers(1).member("a", a.addr).start().await.unwrap();
    let port = gateway.local_addr().port();
    let addresses: Vec<_> = tokio::net::lookup_host(("localhost", port)).await.unwrap().collect();
    assert!(!addresses.is_empty());
    for addr in addresses {
        // Those that this machine has.
        if tokio::net::TcpListener::bind((addr.ip(), 0)).await.is_ok() {
            assert_eq!(once(addr, "GET", "").await.1, "a", "{addr}");
        }
    }
}
