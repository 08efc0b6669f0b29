//! What may be called inside of a closure that changes an attribute: everything that is sync, and nothing ever freezes. Each call has a
//! thread of its own and somebody who looks at the clock.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use core::task::{Context, Poll, Waker};
use core::time::Duration;
use outlive::{Key, Outlive, Session, testing};
use std::pin::pin;
use std::sync::mpsc;

const CART: Key<u64> = Key::new("cart");
const OTHER: Key<u64> = Key::new("other");
/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

type Call = fn(&Session);
type Closure = fn(&Session, Call);

/// Runs it in another thread; its panic's text, if it panics.
fn watched(what: &str, f: impl FnOnce() + Send + 'static) -> Option<String> {
    let (done, told) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        // The test may have given up.
        let _ = done.send(result.err().map(|panic| match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(_) => "another panic".to_owned(),
        }));
    });
    told.recv_timeout(LONG).unwrap_or_else(|_| panic!("{what} froze"))
}

/// Polls once, as somebody might who has an executor of his own.
fn polled<T>(future: impl Future<Output = T>) {
    assert!(matches!(pin!(future).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(_) | Poll::Pending));
}

const CLOSURES: &[(&str, Closure)] = &[
    ("update", |session, call| session.update(CART, |_| call(session))),
    ("modify", |session, call| {
        session.set(CART, 1);
        assert!(session.modify(CART, |_| call(session)).is_some());
    }),
    ("try_update", |session, call| {
        session
            .try_update(CART, |_| {
                call(session);
                Ok::<_, ()>(())
            })
            .unwrap();
    }),
    ("an update inside of another", |session, call| {
        session.update(OTHER, |_| session.update(CART, |_| call(session)));
    }),
];

const WORK: &[(&str, Call)] = &[
    ("get", |s| drop(s.get(Key::<u64>::new("third")))),
    ("set", |s| s.set(Key::<u64>::new("third"), 3)),
    ("remove", |s| drop(s.remove(Key::<u64>::new("third")))),
    ("update", |s| s.update(Key::<u64>::new("third"), |n| *n += 1)),
    ("try_update", |s| s.try_update(Key::<u64>::new("third"), |_| Err::<(), _>(())).unwrap_or_default()),
    ("modify", |s| s.modify(Key::<u64>::new("third"), |n| *n += 1).unwrap_or_default()),
    ("id", |s| assert_eq!(s.id(), s.id())),
    ("is_new", |s| drop(s.is_new().to_string())),
    ("user", |s| drop(s.user())),
    ("loss", |s| assert!(s.loss().is_none())),
    ("info", |s| drop(s.info())),
    ("rotate", Session::rotate),
    ("touch", Session::touch),
    ("set_idle_timeout", |s| s.set_idle_timeout(Duration::from_secs(60))),
    ("remember", |s| s.remember(Duration::from_secs(60))),
    ("ended", |s| drop(s.ended())),
    ("clone and drop", |s| drop(s.clone())),
];

const PANIC: &[(&str, Call)] = &[
    ("rollback", Session::rollback),
    ("login", |s| polled(s.login("ada"))),
    ("invalidate", |s| polled(s.invalidate())),
    ("flush", |s| polled(s.flush())),
    ("refresh", |s| polled(s.refresh())),
];

/// A session that is new, and one that exists.
async fn both() -> [Session; 2] {
    let there = testing::session();
    there.set(OTHER, 7);
    there.flush().await.unwrap();
    [testing::session(), there]
}

#[tokio::test]
async fn everything_that_is_sync_works_inside_of_every_closure() {
    for (closure, run) in CLOSURES {
        for (name, call) in WORK {
            for session in both().await {
                let inside = session.clone();
                assert_eq!(
                    watched(&format!("{name} inside of {closure}"), move || run(&inside, *call)),
                    None,
                    "{name} inside of {closure}"
                );
                assert!(session.get(CART).is_some(), "{name} inside of {closure}");
                session.flush().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn what_would_wait_for_its_own_closure_panics_and_names_both() {
    for (closure, run) in CLOSURES {
        for (name, call) in PANIC {
            for session in both().await {
                let inside = session.clone();
                let text = watched(&format!("{name} inside of {closure}"), move || run(&inside, *call));
                let text = text.unwrap_or_else(|| panic!("{name} inside of {closure} was let through"));
                assert!(
                    text.starts_with(&format!("`{name}` is called inside of the closure that changes the session attribute `")),
                    "{text}"
                );
                // The session goes on, and so do its other requests.
                session.update(CART, |n| *n = 5);
                session.flush().await.unwrap();
                assert_eq!(session.get(CART).as_deref(), Some(&5));
            }
        }
    }
}

#[tokio::test]
async fn another_thread_waits_for_the_closure_and_gets_the_session_then() {
    let session = testing::session();
    let (entered, inside) = mpsc::sync_channel(1);
    let (go, wait) = mpsc::sync_channel::<()>(1);
    let first = session.clone();
    let holder = std::thread::spawn(move || {
        first.update(CART, |n| {
            entered.send(()).unwrap();
            wait.recv().unwrap();
            first.rotate();
            *n = 1;
        });
    });
    inside.recv().unwrap();
    let second = session.clone();
    let waits = std::thread::spawn(move || second.update(CART, |n| *n += 1));
    go.send(()).unwrap();
    holder.join().unwrap();
    waits.join().unwrap();
    assert_eq!(session.get(CART).as_deref(), Some(&2));
}

#[tokio::test]
async fn a_session_of_another_namespace_may_be_used_inside_of_a_closure() {
    let (shop, admin) = (testing::session(), Outlive::in_memory());
    let app = axum::Router::new().route(
        "/",
        axum::routing::get(move |session: Session| async move {
            session.update(CART, |n| {
                shop.update(CART, |other| *other += 1);
                *n = *shop.get(CART).unwrap_or_default();
            });
            session.get(CART).unwrap_or_default().to_string()
        }),
    );
    assert_eq!(testing::client(app.layer(admin.layer())).get("/").await.text, "1");
}
