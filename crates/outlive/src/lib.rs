//! Sessions that outlive the server they live on. Add one layer to an axum application, or to any tower service, and each of its
//! processes becomes a node of a cluster. Kill one: carts and logins are still there on the next click.
//!
//! **Sync methods of [`Session`] only touch memory. Async methods may have to wait for other nodes.**
//!
//! ```no_run
//! # #[cfg(feature = "axum")] mod counter {
//! use axum::{Router, routing::get};
//! use outlive::{Key, Outlive, Session};
//!
//! const VISITS: Key<u64> = Key::new("visits");                        // a name with a type
//!
//! async fn visits(session: Session) -> String {                       // a handler without it pays nothing
//!     format!("visit {}\n", session.update(VISITS, |n| { *n += 1; *n }))
//! }
//!
//! pub async fn serve(listener: tokio::net::TcpListener) -> Result<(), Box<dyn std::error::Error>> {
//!     // With the feature `sqlite` and `.store("sqlite:sessions.db")`, nodes that share the file find each other.
//!     let outlive = Outlive::builder().start().await?;
//!     let app = Router::new().route("/", get(visits)).layer(outlive.layer());
//!     Ok(outlive.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained)).await?)
//! }
//! # }
//! ```
//!
//! # A cart
//! ```
//! # use outlive::{Key, Level, Session};
//! #[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
//! struct Cart { items: Vec<String> }
//!
//! const CART: Key<Cart> = Key::new("cart");
//! const DRAFT: Key<String> = Key::new("draft");
//!
//! async fn add(session: Session, sku: String, form: String) -> Result<usize, Box<dyn std::error::Error>> {
//!     let n = session.try_update(CART, |cart| {
//!         cart.items.push(sku);
//!         if cart.items.len() > 99 { Err("the cart is full") } else { Ok(cart.items.len()) }
//!     })?;                                                            // Err: nothing of it is kept
//!     let cart = session.get_or_default(CART);                        // Arc<Cart>, fine across .await
//!     session.set(DRAFT.of(&form), cart.items.join(","));             // one of a family
//!     if session.flush().await?.level == Level::Owner {}              // no other node has it: before money moves, one may want to know
//!     Ok(n)
//! }
//! # #[cfg(feature = "testing")] #[tokio::main(flavor = "current_thread")] async fn main() {
//! #     assert_eq!(add(outlive::testing::session(), "bell".into(), "7".into()).await.unwrap(), 1);
//! # } #[cfg(not(feature = "testing"))] fn main() {}
//! ```
//!
//! # A login
//! ```
//! # #[cfg(feature = "axum")] mod login {
//! use axum::{extract::{Form, Request}, http::StatusCode, middleware::Next, response::{IntoResponse, Redirect, Response}};
//! use outlive::{Ended, LoginError, Session};
//!
//! #[derive(serde::Deserialize)]
//! pub struct Login { user: String }
//!
//! pub async fn login(session: Session, Form(form): Form<Login>) -> Result<Redirect, LoginError> {
//!     session.login(&form.user).await?;                               // new id, the old one stops working
//!     Ok(Redirect::to("/"))
//! }
//!
//! pub async fn logout(session: Session) -> Response {
//!     match session.invalidate().await {
//!         Ok(Ended::Everywhere) => "bye".into_response(),
//!         Ok(Ended::Pending) => "bye; a node that is cut off has not heard yet".into_response(),
//!         Err(error) => error.into_response(),
//!     }
//! }
//!
//! pub async fn require_user(session: Session, request: Request, next: Next) -> Response {    // middleware::from_fn
//!     match session.user() {
//!         Some(_) => next.run(request).await,
//!         None => StatusCode::UNAUTHORIZED.into_response(),
//!     }
//! }
//! # }
//! ```
//!
//! # Features
//! `axum` (default): extractors, error responses. `sqlite`: the store `sqlite:` (needs a C compiler). `toml`: settings from a file. `testing`: for an application's tests.

#[cfg(feature = "axum")]
mod axum;
mod builder;
mod caching;
mod codec;
mod config;
mod cookie;
mod error;
mod events;
mod key;
mod live;
mod message;
mod node;
mod outlive;
mod request;
mod run;
mod session;
pub mod settings;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tower;
mod turn;
mod undecodable;

pub use crate::tower::SessionLayer;
pub use builder::Builder;
pub use config::{Config, Consistency, Durability, Setting};
pub use cookie::Cookie;
pub use error::{CommitError, Errors, Fault, LoginError, NotNow, OpenError, Retry, RunError, StartError};
pub use events::{Event, EventKind, Events, MissedEvents, Source};
pub use key::{AsKey, Key, KeyOf, Value};
pub use outlive::{Liveness, Outlive, Readiness};
pub use outlive_core::{config::Level, id::SessionId};
pub use outlive_runtime::Stats;
pub use request::Rollback;
pub use run::{Drain, Drained};
pub use session::{Committed, EndReason, Ended, Loss, Session, SessionInfo};
