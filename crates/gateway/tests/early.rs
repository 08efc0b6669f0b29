//! A response that has come is delivered, whatever became of the request. It was not: an upload of 8 MiB that a server refused unread was
//! answered 13 times of 25, because writing to a server that has closed fails, and closing towards a client that still sends resets.
#![allow(clippy::unwrap_used)]

mod support;

use outlive_gateway::Limits;
use std::time::Duration;
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const UPLOAD: usize = 8 << 20;

fn post(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n")
}

#[tokio::test]
async fn an_upload_that_a_member_refuses_unread_is_answered_each_time() {
    for (what, closes) in [("and closes", "connection: close\r\n"), ("and closes without having said so", "")] {
        let backend = raw_backend(move |_, mut stream| async move {
            read_head(&mut stream).await;
            let refusal = format!("HTTP/1.1 413 Content Too Large\r\n{closes}content-length: 9\r\n\r\ntoo large");
            stream.write_all(refusal.as_bytes()).await.unwrap();
        })
        .await;
        let gateway = gateway().member("a", backend).start().await.unwrap();
        for round in 0..25 {
            let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
            stream.write_all(post(UPLOAD).as_bytes()).await.unwrap();
            let (mut read, mut write) = stream.into_split();
            let sending = tokio::spawn(async move { write.write_all(&vec![b'u'; UPLOAD]).await.is_ok() });
            let mut answer = Vec::new();
            // It may be reset behind the answer, since it was told to stop and did not.
            let _ = within("the answer", read.read_to_end(&mut answer)).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("\r\n\r\ntoo large"), "{what}, {round}: {answer}");
            sending.abort();
        }
        assert_eq!(member(&gateway, "a").failures, 0);
    }
}

#[tokio::test]
async fn what_the_gateway_itself_refuses_is_answered_while_the_client_still_sends() {
    let gateway = gateway().start().await.unwrap();
    let bad = "POST / HTTP/1.1\r\nHost: x y\r\nContent-Length: 8388608\r\n\r\n";
    let long = format!("POST /{} HTTP/1.1\r\nHost: h\r\nContent-Length: 8388608\r\n\r\n", "x".repeat(80 << 10));
    for (head, status) in [(bad, "400"), (long.as_str(), "431"), (&post(UPLOAD), "503")] {
        for round in 0..10 {
            let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let _ = stream.write_all(&vec![b'u'; UPLOAD]).await;
            let answer = within("the answer", read_head(&mut stream)).await;
            assert_eq!(answer.split(' ').nth(1), Some(status), "{round}: {answer}");
        }
    }
}

#[tokio::test]
async fn an_upload_goes_on_after_a_whole_response_if_the_member_reads_on() {
    let (sender, mut received) = tokio::sync::mpsc::channel(1);
    let backend = raw_backend(move |_, mut stream| {
        let sender = sender.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            let mut bytes = vec![0; UPLOAD];
            let whole = stream.read_exact(&mut bytes).await.is_ok();
            sender.send(whole).await.unwrap();
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnext").await.unwrap();
        }
    })
    .await;
    let gateway = gateway().member("a", backend).start().await.unwrap();
    let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
    stream.write_all(post(UPLOAD).as_bytes()).await.unwrap();
    assert!(within("the response", read_head(&mut stream)).await.starts_with("HTTP/1.1 202"));
    stream.read_exact(&mut [0; 2]).await.unwrap();
    within("the upload", stream.write_all(&vec![b'u'; UPLOAD])).await.unwrap();
    assert_eq!(within("the member's end of it", received.recv()).await, Some(true));
    drop(stream);
    eventually("no connection", || gateway.stats().connections == 0).await;
}

#[tokio::test]
async fn a_client_that_sends_no_more_is_answered_and_one_that_is_gone_is_noticed() {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let held = gate.clone();
    let backend = Backend::start(move |_| {
        let held = held.clone();
        async move {
            held.acquire().await.unwrap().forget();
            http::Response::new(full("late"))
        }
    })
    .await;
    let mut limits = Limits::default();
    limits.leave_timeout = Duration::from_millis(50);
    let patient = gateway().member("a", backend.addr).start().await.unwrap();
    let hasty = gateway().member("a", backend.addr).limits(limits).start().await.unwrap();
    for request in ["GET / HTTP/1.1\r\nHost: h\r\n\r\n", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"] {
        let mut stream = TcpStream::connect(patient.local_addr()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        eventually("the member to be asked", || member(&patient, "a").in_flight == 1).await;
        gate.add_permits(1);
        let mut answer = String::new();
        within("the answer", stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.ends_with("\r\n\r\nlate"), "{answer}");
        eventually("no connection", || patient.stats().connections == 0).await;

        let mut stream = TcpStream::connect(hasty.local_addr()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        eventually("the member to be asked", || member(&hasty, "a").in_flight == 1).await;
        drop(stream);
        eventually("nothing in flight", || member(&hasty, "a").in_flight == 0 && hasty.stats().connections == 0).await;
    }
}

#[tokio::test]
async fn what_came_of_a_response_is_delivered_before_it_is_cut() {
    for (what, head) in
        [("with a length", "content-length: 10\r\n\r\npart"), ("in chunks", "transfer-encoding: chunked\r\n\r\n4\r\npart\r\n")]
    {
        let backend = raw_backend(move |_, mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}").as_bytes()).await.unwrap();
            stream.set_zero_linger().unwrap();
        })
        .await;
        let gateway = gateway().member("a", backend).start().await.unwrap();
        for round in 0..10 {
            let answer = raw(gateway.local_addr(), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("part"), "{what}, {round}: {answer:?}");
            assert!(!answer.ends_with("0\r\n\r\n"), "{what}, {round}: {answer:?}");
        }
        assert_eq!(member(&gateway, "a").failures, 10, "{what}");
    }
}

#[tokio::test]
async fn an_event_stream_may_be_silent_for_longer_than_a_client_may_stall() {
    let next = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let held = next.clone();
    let backend = raw_backend(move |_, mut stream| {
        let held = held.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n").await.unwrap();
            held.acquire().await.unwrap().forget();
            stream.write_all(b"data: 2\n\n").await.unwrap();
        }
    })
    .await;
    let mut limits = Limits::default();
    let short = Duration::from_millis(30);
    (limits.idle_timeout, limits.stall_timeout, limits.head_timeout, limits.response_timeout) = (short, short, short, short);
    let gateway = gateway().workers(1).member("a", backend).limits(limits).start().await.unwrap();
    let mut events = TcpStream::connect(gateway.local_addr()).await.unwrap();
    events.write_all(b"GET / HTTP/1.0\r\nHost: h\r\n\r\n").await.unwrap();
    assert!(within("the head", read_head(&mut events)).await.contains("event-stream"));
    // Five connections that are idle for too long, one after the other: the stream is silent for longer than each of those limits.
    for _ in 0..5 {
        let mut idle = TcpStream::connect(gateway.local_addr()).await.unwrap();
        assert_eq!(within("the idle one to be closed", idle.read(&mut [0; 1])).await.unwrap(), 0);
    }
    next.add_permits(1);
    let mut rest = String::new();
    within("the second event", events.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.ends_with("data: 1\n\ndata: 2\n\n"), "{rest}");
}

#[tokio::test]
async fn a_client_that_stalls_is_told_so_in_its_upload_and_cut_in_its_download() {
    let backend = raw_backend(|_, mut stream| async move {
        if read_head(&mut stream).await.starts_with("POST") {
            let _ = stream.read_to_end(&mut Vec::new()).await;
            return;
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 65_536]).await.is_ok() {}
    })
    .await;
    let mut limits = Limits::default();
    limits.stall_timeout = Duration::from_millis(50);
    let gateway = gateway().member("a", backend).limits(limits).start().await.unwrap();
    let mut upload = TcpStream::connect(gateway.local_addr()).await.unwrap();
    upload.write_all((post(10) + "part").as_bytes()).await.unwrap();
    let answer = within("the answer", read_head(&mut upload)).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("connection: close"), "{answer}");
    assert_eq!(member(&gateway, "a").failures, 0, "it is not the member who is slow");
    drop(upload);
    let mut download = TcpStream::connect(gateway.local_addr()).await.unwrap();
    download.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    eventually("the download to be cut", || gateway.stats().connections == 0 && member(&gateway, "a").requests == 2).await;
}
