//! A cart: a value with a type, changed in place. What two requests change at once in different attributes is merged; one attribute is
//! changed by one of them at a time.

use anyhow::Context;
use axum::extract::{Form, Query};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Router, response::Redirect};
use outlive::{Key, Outlive, Session};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use tokio::net::TcpListener;

/// Fields that come later get `#[serde(default)]`; in a rolling deploy both releases run at once.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Cart {
    items: BTreeMap<String, u32>,
}

impl Cart {
    fn add(&mut self, sku: String) -> Result<(), &'static str> {
        let n = self.items.entry(sku).or_default();
        *n += 1;
        if *n > 3 { Err("three of a kind is all we have") } else { Ok(()) }
    }
}

const CART: Key<Cart> = Key::new("cart");
/// A family: `draft:7` is what was typed into form 7.
const DRAFT: Key<String> = Key::new("draft");

#[derive(Deserialize)]
struct Item {
    sku: String,
}

async fn add(session: Session, Form(item): Form<Item>) -> Result<Redirect, (StatusCode, &'static str)> {
    // Of an `Err` nothing is kept, although the closure has counted already.
    session.try_update(CART, |cart| cart.add(item.sku)).map_err(|why| (StatusCode::CONFLICT, why))?;
    Ok(Redirect::to("/"))
}

async fn remove(session: Session, Form(item): Form<Item>) -> Redirect {
    // Nothing begins for a visitor who has no cart.
    session.modify(CART, |cart| cart.items.remove(&item.sku));
    Redirect::to("/")
}

async fn show(session: Session) -> String {
    // A snapshot: no lock, and it may be kept across an `.await`.
    let cart = session.get_or_default(CART);
    cart.items.iter().map(|(sku, n)| format!("{n} x {sku}\n")).collect()
}

#[derive(Deserialize)]
struct Draft {
    form: String,
    text: Option<String>,
}

async fn draft(session: Session, Query(draft): Query<Draft>) -> String {
    if let Some(text) = draft.text {
        session.set(DRAFT.of(&draft.form), text);
    }
    session.get(DRAFT.of(&draft.form)).as_deref().cloned().unwrap_or_default()
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    let outlive = Outlive::builder().store("sqlite:sessions.db").start().await?;
    let app = Router::new().route("/", get(show)).route("/add", post(add)).route("/remove", post(remove)).route("/draft", get(draft));
    let app = app.layer(outlive.layer());
    let listener = TcpListener::bind(("127.0.0.1", std::env::var("PORT").map_or(Ok(3000), |p| p.parse()).context("a bad PORT")?)).await?;
    println!("http://{}", listener.local_addr()?);
    Ok(outlive.run(|drained| axum::serve(listener, app).with_graceful_shutdown(drained)).await?)
}
