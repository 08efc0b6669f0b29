//! The version token: a commit's name that travels with the client, authenticated.

use crate::id::{IdKeys, SessionKey};
use crate::stamp::{Claim, Life, Stamp};
use crate::time::WallSeconds;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// What a client brings back: the highest durable commit that its last response included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The commit; never version 0.
    pub stamp: Stamp,
    /// When the session may have expired. It decides only whether a session that nobody has is called expired or lost.
    pub deadline: WallSeconds,
}

const KEY_ID: u8 = 1;
const TAG: usize = 16;
/// Bytes before the tag: the key's number, two varints of up to 5, the life, the deadline.
const BODY_MAX: usize = 1 + 5 + 8 + 5 + 4;

impl Token {
    /// Characters of the longest token.
    pub const TEXT_MAX: usize = ((BODY_MAX + TAG) * 4).div_ceil(3);

    /// The token as text for the session `key`, in `text`: 42 to 52 characters of base64url.
    pub fn seal<'a>(&self, keys: &IdKeys, key: &SessionKey, text: &'a mut [u8; Token::TEXT_MAX]) -> &'a str {
        let fields = (KEY_ID, self.stamp.claim.epoch, self.stamp.claim.life, self.stamp.version, self.deadline.0.to_be_bytes());
        let mut bytes = [0; BODY_MAX + TAG];
        #[expect(clippy::expect_used, reason = "the longest token fits")]
        let length = postcard::to_slice(&fields, &mut bytes[..BODY_MAX]).expect("a token always encodes").len();
        let (body, rest) = bytes.split_at_mut(length);
        let tag = tag(keys, key, body);
        rest.iter_mut().zip(tag).for_each(|(to, from)| *to = from);
        let sealed = bytes.get(..length + TAG).unwrap_or_default();
        #[expect(clippy::expect_used, reason = "the longest token fits")]
        let length = URL_SAFE_NO_PAD.encode_slice(sealed, &mut text[..]).expect("the text of a token fits");
        text.get(..length).and_then(|text| core::str::from_utf8(text).ok()).unwrap_or_default()
    }

    /// The token that `text` is for the session `key`. Whatever else it is, it counts as absent.
    pub fn open(keys: &IdKeys, key: &SessionKey, text: &[u8]) -> Option<Token> {
        // A little more than the longest token: the decoder rounds up.
        let mut buffer = [0; BODY_MAX + TAG + 3];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut buffer).ok()?;
        let bytes = buffer.get(..length)?;
        let (body, got) = bytes.split_at_checked(bytes.len().checked_sub(TAG)?)?;
        if body.len() > BODY_MAX {
            return None;
        }
        let want = tag(keys, key, body);
        if want.iter().zip(got).fold(0, |acc, (a, b)| acc | (a ^ b)) != 0 || body.first() != Some(&KEY_ID) {
            return None;
        }
        let ((epoch, life, version, deadline), rest) = postcard::take_from_bytes::<(u32, Life, u32, [u8; 4])>(body.get(1..)?).ok()?;
        let stamp = Claim { epoch, life }.at(version);
        (rest.is_empty() && version > 0).then_some(Token { stamp, deadline: WallSeconds(u32::from_be_bytes(deadline)) })
    }
}

/// One keyed hash over one small buffer: every answer that commits pays it, and setting up an incremental hasher costs more than the hash.
fn tag(keys: &IdKeys, key: &SessionKey, body: &[u8]) -> [u8; TAG] {
    let mut input = [0; 16 + BODY_MAX];
    let length = 16 + body.len().min(BODY_MAX);
    if let Some((head, rest)) = input.split_first_chunk_mut() {
        *head = *key.bytes();
        rest.iter_mut().zip(body).for_each(|(to, from)| *to = *from);
    }
    let hash = blake3::keyed_hash(&keys.token, input.get(..length).unwrap_or(&input));
    *hash.as_bytes().first_chunk().unwrap_or(&[0; TAG])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Secret;

    #[test]
    fn a_token_is_good_for_its_session_alone_and_for_no_other_bytes() {
        let keys = Secret::new([3; 32]).keys("default");
        let key = SessionKey::from_bytes([1; 16]);
        let token = Token { stamp: Claim { epoch: 300, life: Life::new(u64::MAX) }.at(70_000), deadline: WallSeconds(u32::MAX) };
        let mut text = [0; Token::TEXT_MAX];
        let text = token.seal(&keys, &key, &mut text);
        assert!(text.len() <= Token::TEXT_MAX, "{}", text.len());
        assert_eq!(Token::open(&keys, &key, text.as_bytes()), Some(token));
        assert_eq!(Token::open(&keys, &SessionKey::from_bytes([2; 16]), text.as_bytes()), None);
        for at in 0..text.len() {
            for bit in 0..6 {
                let mut bytes = text.as_bytes().to_vec();
                bytes[at] ^= 1 << bit;
                let Ok(other) = String::from_utf8(bytes) else { continue };
                assert_eq!(Token::open(&keys, &key, other.as_bytes()), None, "character {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn the_longest_token_fits() {
        let keys = Secret::new([3; 32]).keys("default");
        let key = SessionKey::from_bytes([1; 16]);
        let stamp = Claim { epoch: u32::MAX, life: Life::new(u64::MAX) }.at(u32::MAX);
        let token = Token { stamp, deadline: WallSeconds(u32::MAX) };
        let mut text = [0; Token::TEXT_MAX];
        let text = token.seal(&keys, &key, &mut text);
        assert_eq!(text.len(), Token::TEXT_MAX);
        assert_eq!(Token::open(&keys, &key, text.as_bytes()), Some(token));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_opening_panic(text in ".{0,120}") {
            let keys = Secret::new([3; 32]).keys("default");
            assert_eq!(Token::open(&keys, &SessionKey::from_bytes([1; 16]), text.as_bytes()), None);
        }
    }
}
