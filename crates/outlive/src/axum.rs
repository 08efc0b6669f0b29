//! Extractors and error responses for axum 0.8.

use crate::error::{CommitError, LoginError, OpenError, Retry};
use crate::outlive::{Liveness, Readiness};
use crate::request::error_headers;
use crate::session::Session;
use crate::tower::messages;
use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

async fn open(parts: &Parts) -> Result<Session, OpenError> {
    messages::open(&parts.extensions, &parts.method, &parts.uri, &parts.headers).answer().await
}

/// Opens the session; 503 with `Retry-After` if it cannot be had. For a response of your own take `Result<Session, OpenError>`.
impl<S: Sync> FromRequestParts<S> for Session {
    type Rejection = OpenError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Session, OpenError> {
        open(parts).await
    }
}

/// `None` if this visitor has no session. An error stays an error: a session that cannot be had is not one that does not exist.
impl<S: Sync> OptionalFromRequestParts<S> for Session {
    type Rejection = OpenError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Session>, OpenError> {
        open(parts).await.map(|session| (!session.is_new()).then_some(session))
    }
}

fn respond(status: StatusCode, retry: Retry, text: String) -> Response {
    let mut response = (status, text + "\n").into_response();
    error_headers(retry, response.headers_mut());
    response
}

impl IntoResponse for OpenError {
    fn into_response(self) -> Response {
        respond(self.status(), self.retry(), self.to_string())
    }
}

impl IntoResponse for LoginError {
    fn into_response(self) -> Response {
        respond(self.status(), self.retry(), self.to_string())
    }
}

impl IntoResponse for CommitError {
    fn into_response(self) -> Response {
        let mut response = respond(self.status(), self.retry(), self.to_string());
        response.extensions_mut().insert(self);
        response
    }
}

impl IntoResponse for Readiness {
    fn into_response(self) -> Response {
        self.answer().into_response()
    }
}

impl IntoResponse for Liveness {
    fn into_response(self) -> Response {
        self.answer().into_response()
    }
}
