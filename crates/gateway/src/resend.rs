//! The same request once more, for the rare case that its first connection broke.
//!
//! A copy of the headers would cost each request more than routing does. The bytes that they were read from are at hand anyway, so
//! that is what is kept, and read again by the same parser when it comes to that.

use crate::client::Client;
use crate::headers::{self, ambiguous};
use crate::upstream::Outbound;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Uri, Version};

/// As many as the server takes.
const MAX_HEADERS: usize = 100;

/// What it takes to send a request without a body again.
pub(crate) enum Resend {
    /// The bytes of its head, and what they have to say.
    Bytes { head: Vec<u8>, method: Method, uri: Uri },
    /// It was sent ahead of an earlier answer, so its bytes were not kept apart.
    Whole(Box<Request<Outbound>>),
}

impl Resend {
    /// Of `req` as it came in, with `head` as it was kept.
    pub(crate) fn bytes<B>(req: &Request<B>, head: Vec<u8>) -> Resend {
        Resend::Bytes { head, method: req.method().clone(), uri: req.uri().clone() }
    }

    /// Of `req` as it goes out.
    pub(crate) fn whole(req: &Request<Outbound>) -> Resend {
        let mut copy = Request::new(Outbound::Empty);
        *copy.method_mut() = req.method().clone();
        *copy.uri_mut() = req.uri().clone();
        *copy.headers_mut() = req.headers().clone();
        Resend::Whole(Box::new(copy))
    }

    /// The request as it went out; `None` if the bytes turn out to be something else.
    pub(crate) fn request(self, client: &Client) -> Option<Request<Outbound>> {
        match self {
            Resend::Whole(req) => Some(*req),
            Resend::Bytes { head, method, uri } => {
                let mut req = parse(&head)?;
                let same = *req.method() == method && *req.uri() == uri;
                let has_body = req.headers().contains_key(TRANSFER_ENCODING)
                    || req.headers().get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
                if !same || has_body || ambiguous(&req).is_some() {
                    return None;
                }
                headers::to_backend(&mut req, &client.forwarded, false);
                Some(req)
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Request<Outbound>> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut lines);
    if !head.parse(bytes).ok()?.is_complete() {
        return None;
    }
    let mut req = Request::new(Outbound::Empty);
    *req.method_mut() = Method::from_bytes(head.method?.as_bytes()).ok()?;
    *req.uri_mut() = Uri::try_from(head.path?).ok()?;
    *req.version_mut() = if head.version? == 1 { Version::HTTP_11 } else { Version::HTTP_10 };
    for line in head.headers.iter() {
        req.headers_mut().append(HeaderName::from_bytes(line.name.as_bytes()).ok()?, HeaderValue::from_bytes(line.value).ok()?);
    }
    Some(req)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_as_it_was_sent() {
        let req = parse(b"GET /a?b HTTP/1.1\r\nHost: h\r\nCookie: x=1\r\nX-Odd: \xe9\r\nCookie: y=2\r\n\r\nGET /next").unwrap();
        assert_eq!((req.method().as_str(), req.uri().to_string().as_str()), ("GET", "/a?b"));
        assert_eq!(req.headers().get_all("cookie").iter().map(HeaderValue::as_bytes).collect::<Vec<_>>(), [b"x=1", b"y=2"]);
        assert_eq!(req.headers()["x-odd"].as_bytes(), b"\xe9");
    }

    #[test]
    fn what_is_no_whole_head_is_none() {
        for bytes in [b"".as_slice(), b"GET / HTTP/1.1\r\nHost: h\r\n", b"tail of a body", b"\0\0"] {
            assert!(parse(bytes).is_none());
        }
    }
}
