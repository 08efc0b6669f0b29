//! What a shop has beside plain requests: a wizard, an upload, a socket and a stream of events.

use super::{App, LOG, Params};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use core::time::Duration;
use http_body_util::channel::Channel;
use outlive::{CommitError, Key, Session};

const STEP: Key<String> = Key::new("step");
/// Steps of the wizard.
const STEPS: usize = 5;
const UPLOAD_MAX: usize = 16 << 20;
/// How often a stream of events looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The routes, for inside of the session's layer.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/wizard", get(wizard))
        .route("/upload", post(upload))
        .route("/socket", get(socket))
        .route("/events", get(events))
        .layer(DefaultBodyLimit::max(UPLOAD_MAX))
}

/// `n=2&v=x` answers the second step; the answer shows all.
async fn wizard(State(app): State<App>, s: Session, Query(q): Query<Params>) -> String {
    if let (Some(n), Some(v)) = (q.n.filter(|n| *n < STEPS), q.v) {
        if n == 0 {
            // A new form.
            (1..STEPS).for_each(|n| drop(s.remove(STEP.of(&n.to_string()))));
        }
        s.set(STEP.of(&n.to_string()), v);
    }
    let answers: Vec<String> = (0..STEPS).filter_map(|n| Some(format!("{n}:{}", s.get(STEP.of(&n.to_string()))?))).collect();
    app.line(Some(&s), format_args!("steps={}", answers.join(",")))
}

/// Appends a value when all bytes have come.
async fn upload(State(app): State<App>, s: Session, Query(q): Query<Params>, body: Bytes) -> String {
    let v = q.v.unwrap_or_default();
    let len = s.update(LOG, |log| {
        log.push(v);
        log.len()
    });
    app.line(Some(&s), format_args!("len={len} bytes={}", body.len()))
}

/// Each message is a value to append; the answer says what became of it.
async fn socket(State(app): State<App>, s: Session, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(move |socket| talk(app, s, socket))
}

async fn talk(app: App, s: Session, mut socket: WebSocket) {
    let mut draining = core::pin::pin!(app.outlive.draining());
    loop {
        let text = tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => text.to_string(),
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return,
            },
            // The browser connects to another node.
            () = &mut draining => return drop(socket.send(Message::Close(None)).await),
        };
        let answer = match append(&s, text).await {
            Ok((len, level)) => app.line(Some(&s), format_args!("len={len} outcome={level}")),
            Err(Some(CommitError::Unknown)) => "outcome=unknown".to_owned(),
            Err(_) => "outcome=refused".to_owned(),
        };
        if socket.send(Message::text(answer)).await.is_err() {
            return;
        }
    }
}

/// The session may have moved since the last message.
async fn append(s: &Session, value: String) -> Result<(usize, outlive::Level), Option<CommitError>> {
    s.refresh().await.map_err(|_| None)?;
    let len = s.update(LOG, |log| {
        log.push(value);
        log.len()
    });
    Ok((len, s.flush().await.map_err(Some)?.level))
}

/// How long the list is, again and again.
async fn events(State(app): State<App>, s: Session) -> Response {
    let (mut sender, body) = Channel::<Bytes>::new(4);
    // Their answers are bodies that outlive this handler, and therefore own what they look at.
    let (draining, ended) = (app.outlive.draining(), s.ended());
    let tell = async move {
        loop {
            if s.refresh().await.is_ok() {
                let len = s.get(LOG).map_or(0, |log| log.len());
                if sender.send_data(Bytes::from(format!("data: {len}\n\n"))).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = tell => {}
            () = draining => {}
            _ = ended => {}
        }
    });
    ([("content-type", "text/event-stream")], Body::new(body)).into_response()
}
