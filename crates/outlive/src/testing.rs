//! For an application's own tests: a session for calling a handler directly, and a client with a cookie jar.

use crate::codec::{self, Scratch};
use crate::key::{Key, Value};
use crate::outlive::Outlive;
use crate::session::Session;
pub use crate::tower::client::{Answer, Client, client};

/// A new session of a node of its own, in memory: `assert_eq!(visits(testing::session()).await, "visit 1")`.
pub fn session() -> Session {
    Outlive::in_memory().session()
}

/// The bytes that a session keeps of a value, MessagePack with names: for a file beside the tests of a release, which
/// [`holds`] checks in all that follow.
///
/// # Panics
/// If the value cannot be encoded.
pub fn bytes<T: Value>(value: &T) -> Vec<u8> {
    let mut out = Scratch::new();
    codec::encode::<T>(value, &mut out).unwrap_or_else(|e| panic!("it cannot be kept in a session: {e}"));
    // The first byte names the codec.
    out.get(1..).unwrap_or_default().to_vec()
}

/// The value that today's type reads in the bytes that an earlier release wrote: a deploy in which it does not empties carts.
///
/// ```
/// use outlive::{Key, testing};
///
/// #[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
/// struct Cart {
///     items: Vec<String>,
///     #[serde(default)]                                    // came later: without this line the test fails
///     gift: bool,
/// }
/// const CART: Key<Cart> = Key::new("cart");
///
/// // A test of this release: the file was written once, by the release before, with
/// // `std::fs::write("tests/cart.v1", testing::bytes(&cart))`.
/// # let cart_v1 = b"\x81\xa5items\x91\xa4bell";
/// let cart = testing::holds(CART, cart_v1);                // include_bytes!("cart.v1")
/// assert_eq!(cart.items, ["bell"]);
/// ```
///
/// # Panics
/// If the type does not read them, with serde's reason.
pub fn holds<T: Value>(key: Key<T>, bytes: &[u8]) -> T {
    let framed = [&[codec::MESSAGE_PACK], bytes].concat();
    match codec::decode::<T>(&framed) {
        Ok(Some(value)) => value,
        Ok(None) => panic!("{key:?}: there are no bytes"),
        Err(error) => panic!("{key:?} does not read what an earlier release wrote: {error}; give new fields `#[serde(default)]`"),
    }
}
