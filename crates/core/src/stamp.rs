//! Names of ownerships and commits: [`Life`], [`Claim`], [`Stamp`].

use core::fmt;
use serde::{Deserialize, Serialize};

/// One start of one node: 64 random bits drawn when the process begins, never used again.
///
/// The life names the node as well, because no two nodes draw the same one; the member table keeps life → name.
/// Eight bytes on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Life([u8; 8]);

impl Life {
    /// The life with these bits.
    pub const fn new(bits: u64) -> Life {
        Life(bits.to_be_bytes())
    }

    /// The bits as a number.
    pub const fn bits(self) -> u64 {
        u64::from_be_bytes(self.0)
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.bits() >> 48)
    }
}

/// One ownership of one session: peers promise it before it holds. Ordered by epoch, then life; the order breaks ties
/// and decides refusals, it never decides which copy is newer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Claim {
    /// Greater than every epoch the claimant had heard of for this session. The first is 1; 0 is no claim.
    pub epoch: u32,
    /// The claimant.
    pub life: Life,
}

impl Claim {
    /// No claim: less than every real one.
    pub const NONE: Claim = Claim { epoch: 0, life: Life::new(0) };

    /// The stamp of this claim's commit `version`.
    pub const fn at(self, version: u32) -> Stamp {
        Stamp { claim: self, version }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.epoch, self.life)
    }
}

/// One commit: the claim it was made under and its number there. Version 0 names the state that the claim adopted, its
/// first commit is version 1.
///
/// INVARIANT: one stamp has one content, for ever. Tested by the simulator's oracle.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Stamp {
    /// The ownership.
    pub claim: Claim,
    /// The commit within it.
    pub version: u32,
}

impl Stamp {
    /// 16 bytes, big endian: epoch 4, life 8, version 4. A database compares them for equality and order as they are.
    pub fn to_bytes(self) -> [u8; 16] {
        let bits = (u128::from(self.claim.epoch) << 96) | (u128::from(self.claim.life.bits()) << 32) | u128::from(self.version);
        bits.to_be_bytes()
    }

    /// The stamp of [`to_bytes`](Stamp::to_bytes).
    pub fn from_bytes(bytes: [u8; 16]) -> Stamp {
        let bits = u128::from_be_bytes(bytes);
        Stamp { claim: Claim { epoch: (bits >> 96) as u32, life: Life::new((bits >> 32) as u64) }, version: bits as u32 }
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}.{}", self.claim, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_the_order_and_come_back() {
        let a = Claim { epoch: 1, life: Life::new(u64::MAX) }.at(7);
        let b = Claim { epoch: 2, life: Life::new(3) }.at(1);
        assert_eq!(Stamp::from_bytes(a.to_bytes()), a);
        assert_eq!(Stamp::from_bytes(b.to_bytes()), b);
        assert!(a < b && a.to_bytes() < b.to_bytes());
    }
}
