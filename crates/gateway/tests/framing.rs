//! Where a member's response ends, and whom a request is for: forms that two readers could take for two different things.
#![allow(clippy::unwrap_used)]

mod support;

use http_body_util::BodyExt as _;
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What a client gets of a response that a member sends as `bytes` and then closes: the status, and the body if it came whole.
async fn passed(method: &str, bytes: &'static [u8]) -> (u16, Option<String>) {
    let backend = raw_backend(move |_, mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let gateway = gateway().member("a", backend).start().await.unwrap();
    let response = Client::connect(gateway.local_addr()).await.send(request(method, "/", "", full(""))).await.unwrap();
    let status = response.status().as_u16();
    let body = within("the end of the body", response.into_body().collect()).await;
    (status, body.ok().map(|body| String::from_utf8(body.to_bytes().to_vec()).unwrap()))
}

#[tokio::test]
async fn a_response_that_two_readers_could_take_for_two_different_things_is_a_502() {
    let hostile: [(&str, &'static [u8]); 24] = [
        ("a length and chunks", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ("chunks and a length", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nhello"),
        ("a list of lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello"),
        ("a signed length", b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello"),
        ("a negative length", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello"),
        ("an empty length", b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nhello"),
        ("a length in hex", b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello"),
        ("a length beyond all bounds", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello"),
        ("an unknown coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello"),
        ("a list of codings", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ("one coding twice", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ("a coding that is none", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ("a coding in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ("a space before the colon", b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello"),
        ("a folded line", b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 5\r\n\r\nhello"),
        ("a folded coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ("a byte 0 in a value", b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 5\r\n\r\nhello"),
        ("a bare return in a value", b"HTTP/1.1 200 OK\r\nX: a\rContent-Length: 3\r\nContent-Length: 5\r\n\r\nhello"),
        ("a name that is none", b"HTTP/1.1 200 OK\r\nX{}: a\r\nContent-Length: 5\r\n\r\nhello"),
        ("a line without a colon", b"HTTP/1.1 200 OK\r\nSmuggled\r\nContent-Length: 5\r\n\r\nhello"),
        ("a status that is none", b"HTTP/1.1 20 OK\r\nContent-Length: 5\r\n\r\nhello"),
        ("another version", b"HTTP/3.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        ("no HTTP", b"220 mail.example ESMTP\r\n"),
    ];
    for (what, bytes) in hostile {
        for method in ["GET", "POST", "HEAD"] {
            let (status, body) = passed(method, bytes).await;
            assert_eq!(status, 502, "{what}, {method}: {body:?}");
            assert!(!body.unwrap_or_default().contains("hel"), "{what}, {method}: no part of it passes");
        }
    }
}

#[tokio::test]
async fn chunks_that_are_none_are_cut_and_never_made_whole() {
    let hostile: [(&str, &'static [u8]); 9] = [
        ("a size that is none", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n0\r\n\r\n"),
        ("an empty size", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n"),
        ("a signed size", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n"),
        ("a size with 0x", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n"),
        ("a size beyond all bounds", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("a chunk that is longer", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n"),
        ("a size that ends in a bare line feed", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"),
        ("a chunk that ends in a bare line feed", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n"),
        ("no last chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
    ];
    for (what, bytes) in hostile {
        let (status, body) = passed("GET", bytes).await;
        assert!(status == 502 || body.is_none(), "{what}: {status} {body:?}");
    }
}

#[tokio::test]
async fn odd_forms_that_mean_one_thing_pass_as_that() {
    type Passed = (u16, &'static str);
    let odd: [(&str, &str, &'static [u8], Passed); 9] = [
        ("one length twice", "GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", (200, "hello")),
        ("bare line feeds", "GET", b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", (200, "hello")),
        ("no reason", "GET", b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", (200, "hello")),
        ("a coding in capitals", "GET", b"HTTP/1.1 200 OK\r\nTRANSFER-ENCODING: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n", (200, "hello")),
        (
            "an extension of a chunk",
            "GET",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n",
            (200, "hello"),
        ),
        ("a body behind 204", "GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", (204, "")),
        ("a body behind 304", "GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello", (304, "")),
        ("a body for HEAD", "HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, "")),
        ("more than its length", "GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more", (200, "hello")),
    ];
    for (what, method, bytes, (status, body)) in odd {
        assert_eq!(passed(method, bytes).await, (status, Some(body.to_owned())), "{what}");
    }
}

#[tokio::test]
async fn what_is_left_of_a_response_is_nobodys_and_lengths_are_written_once() {
    for bytes in [
        b"HTTP/1.1 204 No Content\r\nContent-Length: 40\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad".as_slice(),
        b"HTTP/1.1 304 Not Modified\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",
    ] {
        let backend = raw_backend(move |_, mut stream| async move {
            while read_head(&mut stream).await.starts_with("GET") {
                let _ = stream.write_all(bytes).await;
            }
        })
        .await;
        let gateway = gateway().workers(1).member("a", backend).start().await.unwrap();
        let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
        for _ in 0..5 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            let head = within("a response", read_head(&mut stream)).await;
            assert!(!head.contains("bad"), "{head}");
            let lengths = head.matches("content-length").count();
            assert_eq!(lengths, usize::from(head.starts_with("HTTP/1.1 200")), "{head}");
        }
    }
}

#[tokio::test]
async fn a_host_that_is_none_is_refused_and_every_form_of_one_passes() {
    let backend = Backend::named("a").await;
    let gateway = gateway().member("a", backend.addr).start().await.unwrap();
    let refused = [
        "x y", "x\ty", "a/b", "a@b", "a?b", "a#b", "a\\b", "a:b", "a:80:80", "a:123456", "a:-1", ":80", "[::1", "::1", "[::1]x", "[x y]",
        "<a>", "a\"b", "a{b", "a|b", "a^b", "a`b", "h\u{e9}",
    ];
    for host in refused {
        for version in ["1.1", "1.0"] {
            let asked = format!("GET / HTTP/{version}\r\nHost: {host}\r\n\r\n");
            let answer = raw(gateway.local_addr(), asked.as_bytes()).await;
            assert!(answer.split(' ').nth(1) == Some("400"), "{host:?}: {answer}");
        }
    }
    assert_eq!(backend.requests(), 0);
    for host in [
        "",
        "h",
        "shop.example",
        "shop.example:8080",
        "shop.example:",
        "127.0.0.1:1",
        "[::1]",
        "[2001:db8::1]:8080",
        "a_b-c.~%20",
        "xn--caf-dma.example",
    ] {
        let asked = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert!(raw(gateway.local_addr(), asked.as_bytes()).await.starts_with("HTTP/1.1 200"), "{host:?}");
    }
}
