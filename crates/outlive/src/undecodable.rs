//! Values that do not decode: what the log says of them.
//!
//! Another release wrote them, with another type. Whoever reads such a value sees none, and carts are empty all of a sudden: that must not
//! happen in silence.

use crate::codec::DecodeError;
use core::any::type_name;
use parking_lot::Mutex;
use rmp_serde::decode::Error;
use std::collections::BTreeMap;

/// How often a key's values did not decode in this process, by its name without the item of a family. It grows with the keys in the
/// program's text.
static SEEN: Mutex<BTreeMap<Box<str>, u64>> = Mutex::new(BTreeMap::new());

/// Says it the first time, and then each time that there are ten times as many.
#[cold]
pub(crate) fn say<T>(name: &str, error: &DecodeError) {
    let key = name.split(':').next().unwrap_or(name);
    let seen = {
        let mut all = SEEN.lock();
        let seen = all.entry(key.into()).or_default();
        *seen += 1;
        *seen
    };
    if seen.checked_ilog10().is_some_and(|zeros| seen == 10_u64.pow(zeros)) {
        tracing::warn!(
            attribute = key,
            seen,
            "the bytes of a session attribute are no `{}`: {}. It reads as absent, and its bytes are kept. Give new fields \
             `#[serde(default)]`, and what changes otherwise a new key; `on_undecodable = fail` fails such requests instead",
            type_name::<T>(),
            reason(error),
        );
    }
}

/// What was wrong, in the words of serde, without the values that it likes to repeat.
pub(crate) fn reason(error: &DecodeError) -> String {
    let DecodeError::Value(error) = error else { return error.to_string() };
    let text = match error {
        // Words of the type's `Deserialize`; all others speak of the encoding.
        Error::Syntax(text) | Error::Uncategorized(text) => text.clone(),
        error => return error.to_string(),
    };
    if ["missing field `", "duplicate field `"].iter().any(|about| text.starts_with(about)) {
        return text;
    }
    // "invalid type: string \"a visitor's\", expected u64"
    match (text.rsplit_once(", expected "), text.find(['`', '"'])) {
        (Some((before, expected)), value) => {
            let kind = before.get(..value.unwrap_or(before.len()).min(before.len())).unwrap_or("another value");
            format!("{}, expected {expected}", kind.trim_end())
        }
        (None, _) => "its bytes are cut, or its `Deserialize` refused them".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Scratch, decode, encode};
    use crate::key::Value;
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Serialize, Deserialize)]
    struct Old {
        sku: String,
    }

    #[derive(Clone, Serialize, Deserialize)]
    struct Gift {
        sku: String,
        gift: bool,
    }

    #[derive(Clone, Serialize, Deserialize)]
    struct Number {
        sku: u8,
    }

    #[derive(Clone, Serialize, Deserialize)]
    enum Kind {
        Bell,
        Saddle,
    }

    fn why<T: Value, U: Value>(value: &T) -> String {
        let mut bytes = Scratch::new();
        encode::<T>(value, &mut bytes).unwrap();
        let Err(error) = decode::<U>(&bytes) else { panic!("it decodes") };
        reason(&error)
    }

    #[test]
    fn the_reason_names_the_field_or_the_types_and_no_value() {
        let old = Old { sku: "secret, expected `x`".into() };
        assert_eq!(why::<_, Gift>(&old), "missing field `gift`");
        assert_eq!(why::<_, u8>(&300_u64), "invalid value: integer, expected u8");
        let wrong = [why::<_, Number>(&old), why::<_, u64>(&"secret".to_owned()), why::<_, Vec<u8>>(&old)];
        assert!(wrong.iter().all(|why| !why.is_empty() && !why.contains("secret")), "{wrong:?}");
        assert_eq!(why::<_, Kind>(&"secret".to_owned()), "unknown variant, expected `Bell` or `Saddle`");
        assert_eq!(why::<_, core::num::NonZeroU8>(&0_u8), "invalid value: integer, expected a nonzero u8");
        assert!(matches!(decode::<u8>(&[9]), Err(error) if reason(&error) == "an unknown codec"));
    }
}
