//! A small shop, written as any application would be: a catalogue, a cart, a list of what was looked at, signing in and out.
//!
//! Everything that a visitor has is in their [`Session`]. Nothing in this file knows how many nodes there are.

use axum::extract::Query;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post, put};
use axum::{Form, Json, Router};
use http::StatusCode;
use outlive::{CommitError, Key, LoginError, Session};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What is for sale: a short name for the address line, and one for people.
pub(crate) const CATALOGUE: [(&str, &str); 6] =
    [("bell", "Bell"), ("saddle", "Saddle"), ("lamp", "Lamp"), ("basket", "Basket"), ("pump", "Pump"), ("lock", "Lock")];

const CART: Key<Cart> = Key::new("cart");
const LOOKED_AT: Key<Vec<String>> = Key::new("looked_at");
const NOTE: Key<String> = Key::new("note");

/// The cart, as a session keeps it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Cart {
    lines: BTreeMap<String, u32>,
    /// How often it was changed.
    version: u64,
    /// The last few changes by the name that the form gave them, so that one which is sent twice counts once.
    done: Vec<String>,
}

impl Cart {
    fn change(&mut self, ask: &Change, by: i32) -> Result<(), Refused> {
        if !ask.once.is_empty() && self.done.contains(&ask.once) {
            return Ok(());
        }
        if !CATALOGUE.iter().any(|(sku, _)| *sku == ask.sku) {
            return Err(Refused::NotForSale);
        }
        let count = self.lines.entry(ask.sku.clone()).or_default();
        *count = count.saturating_add_signed(by);
        if *count > 99 {
            return Err(Refused::TooMany);
        }
        self.lines.retain(|_, count| *count > 0);
        self.version += 1;
        self.done.push(ask.once.chars().take(40).collect());
        let old = self.done.len().saturating_sub(8);
        self.done.drain(..old);
        Ok(())
    }
}

/// What a form, or a program, asks for.
#[derive(Debug, Deserialize)]
struct Change {
    sku: String,
    #[serde(default)]
    once: String,
}

// ---- the handlers ---------------------------------------------------------------------------------------------------------------

fn change(session: &Session, ask: &Change, by: i32) -> Result<(), Refused> {
    session.try_update(CART, |cart| cart.change(ask, by))?; // a refusal keeps nothing of it
    session.update(LOOKED_AT, |seen| {
        seen.retain(|sku| *sku != ask.sku); // changed in place: there is no `set` that could be forgotten
        seen.insert(0, ask.sku.clone());
        seen.truncate(4);
    });
    Ok(())
}

async fn add(session: Session, Form(ask): Form<Change>) -> Result<Redirect, Refused> {
    change(&session, &ask, 1)?;
    Ok(Redirect::to("/shop"))
}

async fn remove(session: Session, Form(ask): Form<Change>) -> Result<Redirect, Refused> {
    change(&session, &ask, -1)?;
    Ok(Redirect::to("/shop"))
}

#[derive(Deserialize)]
struct Login {
    user: String,
}

async fn login(session: Session, Form(form): Form<Login>) -> Result<Redirect, LoginError> {
    let user: String = form.user.trim().chars().take(40).collect();
    if !user.is_empty() {
        session.login(&user).await?; // a new id; the old one is dead at once, on every node
    }
    Ok(Redirect::to("/shop"))
}

async fn logout(session: Session) -> Result<Redirect, CommitError> {
    let _everywhere_or_pending = session.invalidate().await?;
    Ok(Redirect::to("/shop"))
}

async fn page(session: Option<Session>) -> Html<String> {
    Html(render(&View::of(session.as_ref())))
}

// ---- the same for programs ------------------------------------------------------------------------------------------------------

/// All that the shop knows of a visitor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct View {
    pub(crate) cart: BTreeMap<String, u32>,
    pub(crate) version: u64,
    pub(crate) looked_at: Vec<String>,
    pub(crate) user: Option<String>,
    pub(crate) note: Option<String>,
    /// Changes that this visitor had seen acknowledged are gone; said once.
    pub(crate) lost: bool,
}

impl View {
    fn of(session: Option<&Session>) -> View {
        let Some(session) = session else { return View::default() };
        let cart = session.get(CART).unwrap_or_default();
        View {
            cart: cart.lines.clone(),
            version: cart.version,
            looked_at: session.get(LOOKED_AT).unwrap_or_default().to_vec(),
            user: session.user().map(|user| user.to_string()),
            note: session.get(NOTE).map(|note| note.to_string()),
            lost: session.loss().is_some(),
        }
    }
}

async fn api_cart(session: Option<Session>) -> Json<View> {
    Json(View::of(session.as_ref()))
}

async fn api_add(session: Session, Query(ask): Query<Change>) -> Result<Json<View>, Refused> {
    change(&session, &ask, 1)?;
    Ok(Json(View::of(Some(&session))))
}

async fn api_remove(session: Session, Query(ask): Query<Change>) -> Result<Json<View>, Refused> {
    change(&session, &ask, -1)?;
    Ok(Json(View::of(Some(&session))))
}

#[derive(Deserialize)]
struct Note {
    text: String,
}

async fn api_note(session: Session, Query(note): Query<Note>) -> Json<View> {
    session.set(NOTE, note.text.chars().take(80).collect());
    Json(View::of(Some(&session)))
}

async fn api_login(session: Session, Query(form): Query<Login>) -> Result<Json<View>, LoginError> {
    session.login(&form.user).await?;
    Ok(Json(View::of(Some(&session))))
}

async fn api_logout(session: Session) -> Result<Json<View>, CommitError> {
    let _everywhere_or_pending = session.invalidate().await?;
    Ok(Json(View::default()))
}

/// Every route of the shop, without the sessions' layer.
pub(crate) fn routes() -> Router {
    Router::new()
        .route("/shop", get(page))
        .route("/shop/add", post(add))
        .route("/shop/remove", post(remove))
        .route("/shop/login", post(login))
        .route("/shop/logout", post(logout))
        .route("/shop/api/cart", get(api_cart))
        .route("/shop/api/add", put(api_add))
        .route("/shop/api/remove", put(api_remove))
        .route("/shop/api/note", put(api_note))
        .route("/shop/api/login", post(api_login))
        .route("/shop/api/logout", post(api_logout))
}

// ---- what is refused, and the page ----------------------------------------------------------------------------------------------

/// Why a change was refused.
#[derive(Debug)]
enum Refused {
    NotForSale,
    TooMany,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let why = match self {
            Refused::NotForSale => "there is no such thing in this shop",
            Refused::TooMany => "99 of one thing are enough",
        };
        (StatusCode::UNPROCESSABLE_ENTITY, format!("{why}\n")).into_response()
    }
}

/// Text from a visitor, in a page.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '&' => f.write_str("&amp;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            c => write!(f, "{c}"),
        })
    }
}

fn render(view: &View) -> String {
    let row = |(sku, name): &(&str, &str)| {
        let count = view.cart.get(*sku).copied().unwrap_or_default();
        let button = |action: &str, label: &str, off: &str| {
            format!("<form method=post action=/shop/{action}><input type=hidden name=sku value={sku}><button{off}>{label}</button></form>")
        };
        let fewer = button("remove", "Remove", if count == 0 { " disabled" } else { "" });
        format!("<tr><th scope=row>{name}<td>{count}<td>{}<td>{fewer}", button("add", "Add", ""))
    };
    let rows: String = CATALOGUE.iter().map(row).collect();
    let person = match &view.user {
        Some(user) => {
            format!("<p>Signed in as <b>{}</b>.<form method=post action=/shop/logout><button>Sign out</button></form>", Escaped(user))
        }
        None => "<form method=post action=/shop/login><label>Name <input name=user maxlength=40 required></label> <button>Sign in</button></form>"
            .to_owned(),
    };
    let lost = if view.lost { "<p role=alert>Your last changes could not be recovered after a server was lost. We are sorry." } else { "" };
    let seen: Vec<String> = view.looked_at.iter().map(|sku| Escaped(sku).to_string()).collect();
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>Bicycle parts</title>\
         <style>body{{font:16px/1.5 system-ui;max-width:30rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}}\
         td,th{{padding:.2rem .8rem .2rem 0;text-align:left}}form{{display:inline}}</style>\
         <h1>Bicycle parts</h1>{lost}<table>{rows}</table><p>Last looked at: {}</p>{person}",
        if seen.is_empty() { "nothing yet".to_owned() } else { seen.join(", ") },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(sku: &str, once: &str) -> Change {
        Change { sku: sku.into(), once: once.into() }
    }

    #[test]
    fn a_change_that_is_sent_twice_counts_once() {
        let mut cart = Cart::default();
        cart.change(&ask("bell", "1"), 1).unwrap();
        cart.change(&ask("bell", "1"), 1).unwrap();
        cart.change(&ask("bell", "2"), 1).unwrap();
        assert_eq!((cart.lines["bell"], cart.version), (2, 2));
    }

    #[test]
    fn a_line_that_reaches_zero_is_gone_and_the_unknown_is_refused() {
        let mut cart = Cart::default();
        cart.change(&ask("bell", ""), 1).unwrap();
        cart.change(&ask("bell", ""), -1).unwrap();
        assert!(cart.lines.is_empty() && cart.version == 2);
        assert!(matches!(cart.change(&ask("boat", ""), 1), Err(Refused::NotForSale)));
    }

    #[test]
    fn a_visitor_cannot_write_markup_into_the_page() {
        let view = View { user: Some("<script>".into()), ..View::default() };
        assert!(!render(&view).contains("<script>"));
    }
}
