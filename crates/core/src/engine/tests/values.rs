//! What the application keeps beside a session is its own: dropping it may run its code, and no lock of the engine is held then.

use super::*;
use crate::output::{Live, Outputs};
use crate::record::Record;
use std::cell::Cell;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static DROPPED: Cell<u32> = const { Cell::new(0) };
}

struct Value;

impl Live for Value {
    fn of(_: &Record) -> Value {
        Value
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        assert!(!INSIDE.get(), "a value was dropped inside of the engine");
        DROPPED.set(DROPPED.get() + 1);
    }
}

fn engine(now: Mono) -> Engine<Value> {
    let node = Node {
        name: "a".into(),
        addr: "a".into(),
        boot: 1,
        life: Life::new(1),
        zone: 0,
        observer: false,
        http: "".into(),
        backups: 0,
        stores: false,
    };
    let config = Config { durability: Durability::Owner, backups: 0, shards: 1, ..Config::default() };
    let engine = Engine::new(config.check().unwrap(), node, 1, now).unwrap();
    engine.handle_nobody(now, &mut Outputs::new());
    engine
}

/// Calls the engine as a runtime does: what it puts out is dropped when the call is over.
fn call<R>(f: impl FnOnce(&mut Outputs) -> R) -> R {
    let mut out = Outputs::new();
    INSIDE.set(true);
    let result = f(&mut out);
    INSIDE.set(false);
    out.drain().for_each(drop);
    result
}

fn begin(engine: &Engine<Value>, now: Mono, commit: bool) {
    let opened = call(|out| engine.create(now, KEY, out)).unwrap();
    if commit {
        let change = Change { name: "n".into(), base: Base::Absent, value: Some(Bytes::from_static(b"1")) };
        call(|out| engine.commit(now, &opened, &[change], out));
    }
    call(|out| engine.close(now, &opened, out));
}

#[test]
fn values_are_dropped_when_no_lock_is_held() {
    let now = Mono::from_micros(1_000_000);
    let engine = engine(now);
    begin(&engine, now, false);
    assert_eq!(DROPPED.get(), 1, "nothing was put in");
    begin(&engine, now, true);
    call(|out| engine.end(now, KEY, None, out));
    assert_eq!(DROPPED.get(), 2, "it was ended");
}

#[test]
fn values_of_an_expired_session_are_dropped_when_no_lock_is_held() {
    let now = Mono::from_micros(1_000_000);
    let engine = engine(now);
    begin(&engine, now, true);
    let later = now + Duration::from_secs(3600);
    assert!(matches!(call(|out| engine.open(later, KEY, None, out)), Open::NotFound));
    assert_eq!(DROPPED.get(), 1);
}
