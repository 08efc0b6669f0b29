//! Session ids and what peers, stores and logs see instead of them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use core::fmt;
use serde::{Deserialize, Serialize};

/// What a cluster's nodes share and nobody else knows: 32 bytes. The id tag, the session key and the token keys derive from it.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// The secret with these bytes; they should come from the operating system's random source, once per cluster.
    pub const fn new(bytes: [u8; 32]) -> Secret {
        Secret(bytes)
    }

    /// A secret that everyone who knows the cluster's name can compute: for a cluster on loopback without a store only.
    pub fn from_cluster_name(cluster: &str) -> Secret {
        Secret(blake3::derive_key("outlive 2026 loopback cluster secret", cluster.as_bytes()))
    }

    /// The key with which nodes prove to each other that they know the secret.
    pub fn peer_key(&self) -> [u8; 32] {
        blake3::derive_key("outlive 2026 peer proof", &self.0)
    }

    /// The keys for `namespace`. Ids of one namespace are unknown in every other.
    pub fn keys(&self, namespace: &str) -> IdKeys {
        let mut material = self.0.to_vec();
        material.extend_from_slice(namespace.as_bytes());
        IdKeys {
            id: blake3::derive_key("outlive 2026 session id", &material),
            name: blake3::derive_key("outlive 2026 session name", &material),
            token: blake3::derive_key("outlive 2026 version token", &material),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The keys of one namespace of one cluster.
#[derive(Clone)]
pub struct IdKeys {
    id: [u8; 32],
    name: [u8; 32],
    pub(crate) token: [u8; 32],
}

impl IdKeys {
    /// The key of the session that clients know under this name, which they chose themselves. No issued id has that key. A name is no
    /// secret: whoever may ask for it must be known otherwise.
    pub fn named(&self, name: &[u8]) -> SessionKey {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::keyed_hash(&self.name, name).as_bytes()[..16]);
        SessionKey(key)
    }
}

impl fmt::Debug for IdKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdKeys(..)")
    }
}

/// The secret name of a session, known to its client alone: 24 random bytes and an 8-byte keyed tag, so that a made-up id
/// costs no look-up. 43 characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionId([u8; 32]);

impl SessionId {
    /// Characters of an id as text.
    pub const LEN: usize = 43;

    /// The id with these random bits, which must come from the operating system.
    pub fn issue(keys: &IdKeys, random: [u8; 24]) -> SessionId {
        let mut id = [0; 32];
        id[..24].copy_from_slice(&random);
        id[24..].copy_from_slice(&keyed(keys, &random).1);
        SessionId(id)
    }

    /// The id that a client sent, if this cluster issued it; the tag is compared in constant time.
    pub fn parse(keys: &IdKeys, text: &[u8]) -> Option<(SessionId, SessionKey)> {
        if text.len() != SessionId::LEN {
            return None;
        }
        let mut id = [0; 32];
        // 43 characters are 32 bytes and two bits that must be zero, which the decoder checks.
        if URL_SAFE_NO_PAD.decode_slice(text, &mut id) != Ok(32) {
            return None;
        }
        let mut random = [0; 24];
        random.copy_from_slice(&id[..24]);
        let (key, tag) = keyed(keys, &random);
        let differs = tag.iter().zip(&id[24..]).fold(0, |acc, (a, b)| acc | (a ^ b));
        (differs == 0).then_some((SessionId(id), key))
    }

    /// The name under which peers and stores know this session.
    pub fn key(&self, keys: &IdKeys) -> SessionKey {
        let mut random = [0; 24];
        random.copy_from_slice(&self.0[..24]);
        keyed(keys, &random).0
    }

    /// The text that goes into the client's cookie, and nowhere else.
    pub fn reveal(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId(..)")
    }
}

/// One keyed hash gives both the key and the tag, so that checking an id and naming its session is one computation.
fn keyed(keys: &IdKeys, random: &[u8; 24]) -> (SessionKey, [u8; 8]) {
    let hash = blake3::keyed_hash(&keys.id, random);
    let (mut key, mut tag) = ([0; 16], [0; 8]);
    key.copy_from_slice(&hash.as_bytes()[..16]);
    tag.copy_from_slice(&hash.as_bytes()[16..24]);
    (SessionKey(key), tag)
}

/// The name of a session everywhere but at its client: a 128-bit keyed hash of the id. Peers, stores and logs see only this.
/// `Debug` prints its first 8 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionKey([u8; 16]);

impl SessionKey {
    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> SessionKey {
        SessionKey(bytes)
    }

    /// The 16 bytes.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// 64 of its bits, evenly distributed: for shards and placement.
    pub const fn bits(&self) -> u64 {
        let b = &self.0;
        u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.bits() >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issued_id_is_recognised_and_no_other() {
        let keys = Secret::new([7; 32]).keys("default");
        let id = SessionId::issue(&keys, [9; 24]);
        let text = id.reveal();
        assert_eq!(text.len(), SessionId::LEN);
        let (parsed, key) = SessionId::parse(&keys, text.as_bytes()).unwrap();
        assert_eq!((parsed, key), (id, id.key(&keys)));
        for i in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[i] = if forged[i] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            if forged != text {
                assert!(SessionId::parse(&keys, forged.as_bytes()).is_none(), "character {i}");
            }
        }
        assert!(SessionId::parse(&Secret::new([7; 32]).keys("other"), text.as_bytes()).is_none());
        assert!(SessionId::parse(&keys, b"").is_none());
    }

    #[test]
    fn a_name_has_one_key_in_each_namespace_of_each_cluster() {
        let key = |secret, namespace: &str, name: &[u8]| Secret::new([secret; 32]).keys(namespace).named(name);
        let cart = key(7, "shop", b"cart:1");
        assert_eq!(cart, key(7, "shop", b"cart:1"));
        for other in [key(7, "shop", b"cart:2"), key(7, "admin", b"cart:1"), key(8, "shop", b"cart:1"), key(7, "shop", b"")] {
            assert_ne!(cart, other);
        }
        // What is hashed for an id is no name's.
        let keys = Secret::new([7; 32]).keys("shop");
        assert_ne!(SessionId::issue(&keys, [9; 24]).key(&keys), keys.named(&[9; 24]));
    }

    #[test]
    fn neither_secret_nor_id_is_printed() {
        let keys = Secret::new([7; 32]).keys("default");
        let id = SessionId::issue(&keys, [9; 24]);
        assert_eq!(format!("{id:?} {keys:?} {:?}", Secret::new([1; 32])), "SessionId(..) IdKeys(..) Secret(..)");
    }
}
