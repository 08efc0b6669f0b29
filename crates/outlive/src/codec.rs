//! An attribute's value as bytes: one byte that names the codec, then the value.

use crate::key::Value;
use bytes::Bytes;
use core::any::Any;
use smallvec::SmallVec;
use std::sync::Arc;

/// MessagePack with names. 2 and 3 are kept for JSON and for bytes that only the application understands.
pub(crate) const MESSAGE_PACK: u8 = 1;
/// A value of which an older form was put aside: the length of the older bytes (4, big endian), they, then the value or nothing.
const WITH_ASIDE: u8 = 0x7f;

/// A decoded value, shared.
pub(crate) type Shared = Arc<dyn Any + Send + Sync>;
/// Where values are encoded, before it is known whether they changed.
pub(crate) type Scratch = SmallVec<[u8; 256]>;
/// How a decoded value becomes bytes; which type it is, is forgotten by then.
pub(crate) type Encode = fn(&(dyn Any + Send + Sync), &mut Scratch) -> Result<(), rmp_serde::encode::Error>;

/// Why bytes are not a value of the wanted type.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("an unknown codec")]
    Codec,
    #[error(transparent)]
    Value(#[from] rmp_serde::decode::Error),
}

/// The [`Encode`] of one type.
pub(crate) fn encode<T: Value>(value: &(dyn Any + Send + Sync), out: &mut Scratch) -> Result<(), rmp_serde::encode::Error> {
    let Some(value) = value.downcast_ref::<T>() else { return Err(rmp_serde::encode::Error::Syntax("another type".to_owned())) };
    out.push(MESSAGE_PACK);
    rmp_serde::encode::write_named(out, value)
}

/// The [`Encode`] of bytes that are kept as they are: the reserved attributes.
pub(crate) fn encode_raw(value: &(dyn Any + Send + Sync), out: &mut Scratch) -> Result<(), rmp_serde::encode::Error> {
    let Some(value) = value.downcast_ref::<Bytes>() else { return Err(rmp_serde::encode::Error::Syntax("another type".to_owned())) };
    out.extend_from_slice(value);
    Ok(())
}

/// A value's bytes, to be kept. The engine shares them, and `Bytes` of a slice are two allocations as soon as they have two holders: a
/// short value lies beside its count of holders instead.
pub(crate) fn kept(bytes: &[u8]) -> Bytes {
    let mut short = Short { length: 0, bytes: [0; SHORT_MAX] };
    match (short.bytes.get_mut(..bytes.len()), u8::try_from(bytes.len())) {
        (Some(to), Ok(length)) => {
            to.copy_from_slice(bytes);
            short.length = length;
            Bytes::from_owner(short)
        }
        _ => Bytes::copy_from_slice(bytes),
    }
}

const SHORT_MAX: usize = 31;

struct Short {
    length: u8,
    bytes: [u8; SHORT_MAX],
}

impl AsRef<[u8]> for Short {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.length.into()).unwrap_or_default()
    }
}

/// The value in these bytes; `None` if there is only an older form that was put aside.
pub(crate) fn decode<T: Value>(bytes: &[u8]) -> Result<Option<T>, DecodeError> {
    match split(bytes).1 {
        [] => Ok(None),
        [MESSAGE_PACK, rest @ ..] => Ok(Some(rmp_serde::from_slice(rest)?)),
        _ => Err(DecodeError::Codec),
    }
}

/// The older form that was put aside, and the value.
pub(crate) fn split(bytes: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let [WITH_ASIDE, a, b, c, d, rest @ ..] = bytes else { return (None, bytes) };
    let len = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    match rest.split_at_checked(len) {
        Some((aside, value)) => (Some(aside), value),
        None => (None, bytes),
    }
}

/// Begins a value that keeps `aside`.
pub(crate) fn begin_with_aside(aside: &[u8], out: &mut Scratch) {
    out.push(WITH_ASIDE);
    out.extend_from_slice(&u32::try_from(aside.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(aside);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Serialize, Deserialize)]
    struct Old {
        sku: String,
    }

    #[derive(Clone, Serialize, Deserialize)]
    struct New {
        sku: String,
        #[serde(default)]
        gift: bool,
    }

    fn bytes<T: Value>(value: T) -> Vec<u8> {
        let mut out = Scratch::new();
        encode::<T>(&value, &mut out).unwrap();
        out.into_vec()
    }

    #[test]
    fn bytes_are_kept_as_they_are_whatever_their_length() {
        for length in [0, 1, SHORT_MAX - 1, SHORT_MAX, SHORT_MAX + 1, 255, 256, 257, 1000] {
            let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let kept = kept(&bytes);
            assert_eq!((&*kept, &*kept.clone()), (&*bytes, &*bytes));
        }
    }

    #[test]
    fn a_value_is_message_pack_with_names_after_a_codec_byte() {
        assert_eq!(bytes(Old { sku: "b".into() }), *b"\x01\x81\xa3sku\xa1b");
        assert_eq!(bytes(7u64), [1, 7]);
    }

    #[test]
    fn a_new_field_with_a_default_reads_old_data_and_old_code_reads_new_data() {
        let new: New = decode(&bytes(Old { sku: "bell".into() })).unwrap().unwrap();
        assert!(!new.gift && new.sku == "bell");
        let old: Old = decode(&bytes(New { sku: "bell".into(), gift: true })).unwrap().unwrap();
        assert_eq!(old.sku, "bell");
    }

    #[test]
    fn what_was_put_aside_does_not_disturb_the_value() {
        let mut out = Scratch::new();
        begin_with_aside(b"older", &mut out);
        assert!(decode::<u64>(&out).unwrap().is_none());
        out.extend_from_slice(&bytes(9u64));
        assert_eq!(decode::<u64>(&out).unwrap(), Some(9));
        assert_eq!(split(&out).0, Some(&b"older"[..]));
    }

    #[test]
    fn bytes_that_are_no_value_are_refused_without_a_panic() {
        for bad in [&[0u8][..], &[2, 1], &[1], &[1, 0xc1], &[WITH_ASIDE, 0, 0, 0, 9, 1], &[WITH_ASIDE]] {
            assert!(decode::<u64>(bad).is_err(), "{bad:?}");
        }
    }
}
