//! A login. The id changes whenever rights do, so that an id which an attacker has seen or planted before stops working.

use anyhow::Context;
use axum::extract::{Form, Request};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Router, http::header::RETRY_AFTER};
use outlive::{CommitError, Ended, Key, LoginError, Outlive, Session};
use serde::Deserialize;
use std::io::IsTerminal;
use tokio::net::TcpListener;

const THEME: Key<String> = Key::new("theme");
const ADMIN: Key<bool> = Key::new("admin");

#[derive(Deserialize)]
struct Login {
    user: String,
    password: String,
}

async fn login(session: Session, Form(form): Form<Login>) -> Result<Response, LoginError> {
    // `login` refuses a user without a name: 500, because asking for one is this handler's business.
    if form.user.is_empty() || form.password != "open sesame" {
        return Ok(StatusCode::UNAUTHORIZED.into_response());
    }
    // A new id, bound to the user; the one before the login is dead. What the visitor had stays.
    session.login(&form.user).await?;
    Ok(Redirect::to("/").into_response())
}

/// More rights: a new id as well. It is made when the response leaves, and does not touch what is set before or after.
async fn become_admin(session: Session) -> Redirect {
    session.rotate();
    session.set(ADMIN, true);
    Redirect::to("/account")
}

/// `invalidate` acts at once, even if this response should become a 500. What is set after it goes to a new, anonymous session.
async fn logout(session: Session) -> Result<Response, CommitError> {
    let theme = session.get(THEME);
    let ended = session.invalidate().await?;
    if let Some(theme) = theme {
        session.set(THEME, theme.to_string());
    }
    Ok(match ended {
        Ended::Everywhere => Redirect::to("/").into_response(),
        // It is in force here, and the others are told again and again. One that is cut off may still answer the old cookie.
        Ended::Pending => (StatusCode::ACCEPTED, [(RETRY_AFTER, "5")], "signed out; one server has not confirmed it yet\n").into_response(),
    })
}

async fn home(session: Option<Session>) -> String {
    match session.as_ref().and_then(Session::user) {
        Some(user) => format!("hello {user}\n"),
        None => "hello stranger\n".to_owned(),
    }
}

async fn account(session: Session) -> String {
    format!("user={} admin={}\n", session.user().unwrap_or_default(), session.get(ADMIN).is_some())
}

/// Middleware takes the session like a handler.
async fn require_user(session: Session, request: Request, next: Next) -> Response {
    match session.user() {
        Some(_) => next.run(request).await,
        None => StatusCode::UNAUTHORIZED.into_response(),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    let outlive = Outlive::builder().store("sqlite:sessions.db").start().await?;
    let inside = Router::new().route("/account", get(account)).route("/admin", post(become_admin));
    // `route_layer`, not `layer`: that one would answer 401 for paths that do not exist, too.
    let inside = inside.route_layer(middleware::from_fn(require_user));
    let app = inside.route("/", get(home)).route("/login", post(login)).route("/logout", post(logout));
    // After the last route: a layer wraps only what is there already.
    let app = app.layer(outlive.layer());
    let listener = TcpListener::bind(("127.0.0.1", std::env::var("PORT").map_or(Ok(3000), |p| p.parse()).context("a bad PORT")?)).await?;
    println!("http://{}", listener.local_addr()?);
    Ok(outlive.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained)).await?)
}
