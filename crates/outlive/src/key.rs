//! Names with a type: [`Key`].

use core::any::{TypeId, type_name};
use core::cell::Cell;
use core::marker::PhantomData;
use core::panic::Location;
use parking_lot::RwLock;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::borrow::Cow;

/// Bytes of a key's name, and of its scope.
pub(crate) const NAME_MAX: usize = 63;

/// What can be kept in a session: every `Serialize + DeserializeOwned + Clone + Send + Sync + 'static` type.
///
/// `Clone` is asked for and rarely run: `update` changes the value in place unless a handler still holds it. What has neither `Clone` nor
/// `Serialize`, a connection or a file, does not belong in a session: put an id there.
///
/// In a rolling deployment both releases run at once: additive changes with `#[serde(default)]` are read by both, anything else gets
/// a new key. What does not decode is said in the log, see `on_undecodable`; `testing::holds` finds it before a
/// deploy. A field with `#[serde(skip)]` is there until the session moves, is loaded, or is changed elsewhere, and then has its default.
///
/// ```compile_fail,E0277
/// # use outlive::Key;
/// struct Connection;                                  // neither Clone nor Serialize
/// const CONNECTION: Key<Connection> = Key::new("connection");
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be kept in a session",
    label = "not a session value",
    note = "try `#[derive(Clone, serde::Serialize, serde::Deserialize)]` on `{Self}`; it must be `Send + Sync + 'static` as well",
    note = "what cannot be cloned or serialized (a connection, a file) does not belong in a session: put an id there"
)]
pub trait Value: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {}

#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> Value for T {}

/// A name with a type: `const VISITS: Key<u64> = Key::new("visits");`.
///
/// A name is 1 to 63 visible ASCII characters without `:`, and does not begin with `outlive`; a bad one does not compile. One name
/// has one type in a process: using it with two panics, and says where both were declared.
///
/// ```compile_fail,E0080
/// # use outlive::Key;
/// const EMPTY: Key<u64> = Key::new("");
/// # fn main() { let _ = EMPTY; }
/// ```
/// ```compile_fail,E0080
/// # use outlive::Key;
/// const SPACE: Key<u64> = Key::new("my cart");
/// # fn main() { let _ = SPACE; }
/// ```
/// ```compile_fail,E0080
/// # use outlive::Key;
/// const FAMILY: Key<u64> = Key::new("draft:1");       // `Key::new("draft")` and `.of("1")`
/// # fn main() { let _ = FAMILY; }
/// ```
/// ```compile_fail,E0080
/// # use outlive::Key;
/// const RESERVED: Key<u64> = Key::new("outlive.user");
/// # fn main() { let _ = RESERVED; }
/// ```
pub struct Key<T> {
    scope: &'static str,
    name: &'static str,
    declared: &'static Location<'static>,
    value: PhantomData<fn() -> T>,
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T> core::fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Key<{}>({:?})", type_name::<T>(), full(self.scope, self.name))
    }
}

impl<T: Value> Key<T> {
    /// The key with this name.
    ///
    /// # Panics
    /// On a bad name; in a `const` that is an error of the compiler.
    #[track_caller]
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        check(name);
        Key { scope: "", name, declared: Location::caller(), value: PhantomData }
    }

    /// A library's key, `scope/name`: `Key::scoped(env!("CARGO_PKG_NAME"), "user")`. Applications use plain names, so that
    /// other languages can share them.
    ///
    /// # Panics
    /// As [`new`](Key::new).
    #[track_caller]
    #[must_use]
    pub const fn scoped(scope: &'static str, name: &'static str) -> Self {
        check(scope);
        check(name);
        Key { scope, name, declared: Location::caller(), value: PhantomData }
    }

    /// One of a family: `DRAFT.of(&form_id)` is the attribute `draft:<form id>`. Any text will do; with more than 128 bytes in all the
    /// request fails at its commit.
    #[must_use]
    pub fn of(self, item: &str) -> KeyOf<'_, T> {
        KeyOf { key: self, item }
    }
}

/// The compile-time check of a name.
const fn check(name: &str) {
    let bytes = name.as_bytes();
    assert!(!bytes.is_empty(), "the name of a session key is empty");
    assert!(bytes.len() <= NAME_MAX, "the name of a session key has more than 63 bytes");
    let reserved = b"outlive";
    let (mut at, mut same) = (0, bytes.len() >= reserved.len());
    while at < bytes.len() {
        assert!(bytes[at].is_ascii_graphic(), "the name of a session key has a space, a control character or one that is not ASCII");
        assert!(bytes[at] != b':', "the name of a session key has a `:`; for one of a family write `KEY.of(item)`");
        if at < reserved.len() && bytes[at] != reserved[at] {
            same = false;
        }
        at += 1;
    }
    assert!(!same, "names of session keys that begin with `outlive` are reserved");
}

/// One attribute of a family, made by [`Key::of`].
pub struct KeyOf<'a, T> {
    key: Key<T>,
    item: &'a str,
}

impl<T> Clone for KeyOf<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for KeyOf<'_, T> {}

impl<T> core::fmt::Debug for KeyOf<'_, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}.of({:?})", self.key, self.item)
    }
}

/// What names an attribute: a [`Key`], or one of a family. Nothing else implements it.
pub trait AsKey: sealed::Sealed {
    /// The type of the attribute.
    type Value: Value;
}

pub(crate) mod sealed {
    use std::borrow::Cow;

    /// What the session needs of a key.
    #[expect(unnameable_types, reason = "this is what seals the trait `AsKey`")]
    pub trait Sealed {
        /// The attribute's name; the first use checks that the name has one type.
        fn name(&self) -> Cow<'_, str>;
    }
}

impl<T: Value> AsKey for Key<T> {
    type Value = T;
}

impl<T: Value> AsKey for KeyOf<'_, T> {
    type Value = T;
}

impl<T: Value> sealed::Sealed for Key<T> {
    fn name(&self) -> Cow<'_, str> {
        one_type(self);
        full(self.scope, self.name)
    }
}

impl<T: Value> sealed::Sealed for KeyOf<'_, T> {
    fn name(&self) -> Cow<'_, str> {
        one_type(&self.key);
        Cow::Owned(format!("{}:{}", full(self.key.scope, self.key.name), self.item))
    }
}

fn full(scope: &'static str, name: &'static str) -> Cow<'static, str> {
    if scope.is_empty() { Cow::Borrowed(name) } else { Cow::Owned(format!("{scope}/{name}")) }
}

/// The first declaration of a name that was used in this process.
struct Declared {
    type_id: TypeId,
    type_name: &'static str,
    at: &'static Location<'static>,
}

/// By full name. It grows with the keys in the program's text, not with sessions.
static DECLARED: RwLock<Vec<(Cow<'static, str>, Declared)>> = RwLock::new(Vec::new());

/// A key as this thread has checked it: where its texts lie, and its type.
type Seen = (usize, usize, usize, TypeId);

/// Places of [`SEEN`], and how many of them a key may have.
const PLACES: usize = 64;
const NEAR: usize = 4;

thread_local! {
    /// What this thread has checked, by address, so that the check costs a comparison.
    static SEEN: [Cell<Option<Seen>>; PLACES] = const { [const { Cell::new(None) }; PLACES] };
}

/// Panics if the key's name was used with another type before.
fn one_type<T: Value>(key: &Key<T>) {
    let address = key.name.as_ptr() as usize;
    let seen: Seen = (address, key.name.len(), key.scope.as_ptr() as usize, TypeId::of::<T>());
    // Two keys of one handler that had but one place between them would take turns in it, and declare themselves at every use.
    let home = (address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    SEEN.with(|known| {
        let mut places = (0..NEAR).map(|near| &known[(home as usize + near) % PLACES]);
        if places.clone().any(|place| place.get() == Some(seen)) {
            return;
        }
        declare(key);
        let free = places.find(|place| place.get().is_none()).unwrap_or(&known[home as usize % PLACES]);
        free.set(Some(seen));
    });
}

#[cold]
fn declare<T: Value>(key: &Key<T>) {
    let name = full(key.scope, key.name);
    let mut all = DECLARED.write();
    let Some((_, first)) = all.iter().find(|(n, _)| *n == name) else {
        all.push((name, Declared { type_id: TypeId::of::<T>(), type_name: type_name::<T>(), at: key.declared }));
        return;
    };
    let (first_type, first_at, same) = (first.type_name, first.at, first.type_id == TypeId::of::<T>());
    drop(all);
    assert!(
        same,
        "the session attribute `{name}` has two types: `{first_type}` ({first_at}) and `{}` ({}); give one of them another name",
        type_name::<T>(),
        key.declared,
    );
}

#[cfg(test)]
mod tests {
    use super::sealed::Sealed as _;
    use super::*;

    const USER: Key<String> = Key::scoped("login", "user");
    const DRAFT: Key<String> = Key::new("draft");

    #[test]
    fn families_and_crates_have_names_of_their_own() {
        assert_eq!(USER.name(), "login/user");
        assert_eq!(DRAFT.of("7:ü").name(), "draft:7:ü");
        assert_eq!(USER.of("x").name(), "login/user:x");
    }

    #[test]
    fn one_name_with_two_types_panics_naming_both_types_and_both_places() {
        const COUNT: Key<u64> = Key::new("key-tests-two-types");
        const TEXT: Key<String> = Key::new("key-tests-two-types");
        COUNT.name();
        COUNT.name();
        let panic = std::panic::catch_unwind(|| TEXT.name().into_owned()).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        for part in ["`key-tests-two-types`", "`u64`", "String`", "key.rs:"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert_eq!(text.matches("key.rs:").count(), 2);
        COUNT.name();
    }

    #[test]
    fn a_bad_name_that_is_made_at_run_time_panics() {
        for bad in ["", "a b", "a:b", "é", "outlive", "outlive.x", "tab\t"] {
            assert!(std::panic::catch_unwind(|| Key::<u64>::new(bad)).is_err(), "{bad:?}");
        }
        let long: &'static str = "x".repeat(64).leak();
        assert!(std::panic::catch_unwind(|| Key::<u64>::new(long)).is_err());
        assert_eq!(Key::<u64>::new(&long[1..]).name().len(), 63);
        assert_eq!(Key::<u64>::new("outliv").name(), "outliv");
    }
}
