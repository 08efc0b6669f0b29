//! Messages between peers, and their frames.
//!
//! A frame is its length (3 bytes, little endian), a number that counts the frames of this direction modulo 256, and one
//! [`Message`]. A frame that is lost, doubled or out of order breaks the count and thereby the link: what an acknowledgement
//! counts is never in doubt. Variants are only ever appended.

use crate::limits::{BACKUPS_MAX, FRAME_MAX, GAPS_MAX, LINEAGE_MAX, MEMBERS_MAX, VIEWS_MAX};
use crate::lineage::Lineage;
use crate::record::{Base, Excess, WireRecord};
use crate::stamp::{Claim, Life, Stamp};
use serde::{Deserialize, Serialize};

use crate::id::SessionKey;

/// The version of the messages; peers of another version are refused in the handshake.
pub const PROTOCOL: u16 = 5;

/// Bytes before a frame's message.
pub const HEADER: usize = 4;

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EndKind {
    /// The application ended it.
    Invalidated,
    /// It goes on under another id.
    Rotated,
}

impl EndKind {
    /// Whether a session that has ended as `other` has ended as this from now on: a logout ends it under every id.
    pub(crate) fn overrides(self, other: EndKind) -> bool {
        (self, other) == (EndKind::Invalidated, EndKind::Rotated)
    }
}

/// Which of two ids a marker names under which its session may go on: the same, whichever was heard first.
pub(crate) fn one_next(a: Option<SessionKey>, b: Option<SessionKey>) -> Option<SessionKey> {
    a.into_iter().chain(b).min()
}

/// Why a node asks for a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Why {
    /// A request came here.
    Open,
    /// The owner is dead and this node holds a copy.
    Heir,
    /// The owner invited this node.
    Invited,
    /// It owns the session and doubts it.
    Doubt,
}

/// What a peer has for a claimant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "it lives from a frame's decoding to its handling")]
pub enum Held<'a> {
    /// No copy.
    Nothing,
    /// A copy with the last commit that the claimant said it has.
    Same,
    /// A copy, and a branch of it where there is one.
    Copy {
        /// The copy.
        #[serde(borrow)]
        record: WireRecord<'a>,
        /// A branch that neither covers nor is covered.
        branch: Option<WireRecord<'a>>,
        /// The last commit that the store is known to have.
        stored: Option<Stamp>,
    },
    /// The session has ended, and goes on under this id, if that is known.
    Ended(EndKind, Option<SessionKey>),
    /// No copy, but this commit is known to have been made.
    Told(Stamp),
    /// No copy: the session was owned here and has expired, with all these commits.
    Expired(WireLineage),
}

/// One change in a delta.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set<'a> {
    /// The attribute.
    pub name: &'a str,
    /// Its new value; `None` removes it.
    #[serde(borrow)]
    pub value: Option<&'a serde_bytes::Bytes>,
}

/// One change of a late commit: with the commit it starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateSet<'a> {
    /// The attribute.
    pub name: &'a str,
    /// What it starts from.
    pub base: Base,
    /// Its new value; `None` removes it.
    #[serde(borrow)]
    pub value: Option<&'a serde_bytes::Bytes>,
}

/// How a late commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LateResult {
    /// It is this commit and has reached the level: so many copies, or 255 for the store.
    Done(Stamp, u8),
    /// An attribute had changed since the request started.
    Conflict,
    /// This node does not own the session.
    NotOwner,
    /// It went out and nobody knows.
    Unknown,
    /// Fewer copies could be made than the owner's `min_backups`.
    UnderReplicated,
    /// The session would be larger than the owner's limit.
    TooLarge(Excess),
}

impl LateResult {
    /// What that means of a commit that was sent before: whatever stands in its way now, its first try may have done it.
    pub(crate) fn of_second_try(self) -> LateResult {
        match self {
            LateResult::Conflict | LateResult::UnderReplicated | LateResult::TooLarge(_) => LateResult::Unknown,
            LateResult::Done(..) | LateResult::NotOwner | LateResult::Unknown => self,
        }
    }
}

/// A lineage as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireLineage {
    floor: u32,
    listed: Vec<(u32, Life, u32)>,
}

impl From<&Lineage> for WireLineage {
    fn from(l: &Lineage) -> WireLineage {
        WireLineage { floor: l.floor(), listed: l.listed().iter().map(|s| (s.claim.epoch, s.claim.life, s.version)).collect() }
    }
}

impl From<&WireLineage> for Lineage {
    fn from(w: &WireLineage) -> Lineage {
        Lineage::new(w.floor, w.listed.iter().map(|&(epoch, life, version)| Claim { epoch, life }.at(version)))
    }
}

/// One member of a past membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WireMember {
    /// Hash of its name.
    pub name: u64,
    /// Hash of its zone, or 0.
    pub zone: u64,
}

/// A past membership.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WireView {
    /// How many copies on other nodes the greatest of its members wanted.
    pub backups: u8,
    /// Whether one of them may have called a commit done that nobody had but the store.
    pub stores: bool,
    /// Who could hold a session.
    pub members: Vec<WireMember>,
}

/// What peers say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "fields carry the names of the rules that define them")]
pub enum Message<'a> {
    /// Membership gossip.
    Gossip(&'a serde_bytes::Bytes),
    /// The sender's walk under this membership is finished.
    Settled(u64),
    /// Memberships since the last settled one, for a joiner.
    Views(Vec<WireView>),
    /// So many frames that want it have been applied on this link.
    Ack(u32),
    /// Promise this claim, and say what you have.
    Ask { key: SessionKey, claim: Claim, why: Why, have: Option<Stamp> },
    /// The owner answers within so many milliseconds.
    Busy { key: SessionKey, claim: Claim, ms: u32 },
    /// A greater claim was promised.
    Refused { key: SessionKey, claim: Claim, promised: Claim },
    /// The owner stays; serve this as a guest and send commits here.
    Stay {
        key: SessionKey,
        claim: Claim,
        owner: Claim,
        #[serde(borrow)]
        record: WireRecord<'a>,
    },
    /// The claim is promised. `accepted`: the last ownership known here; `moves`: how often the session moved of late, from its owner.
    Answer {
        key: SessionKey,
        claim: Claim,
        accepted: Claim,
        moves: u8,
        #[serde(borrow)]
        held: Held<'a>,
    },
    /// One commit.
    Delta {
        key: SessionKey,
        claim: Claim,
        /// The last commit of the copy it applies to; `None`: version − 1 of the same claim.
        base: Option<Stamp>,
        version: u32,
        #[serde(borrow)]
        sets: Vec<Set<'a>>,
    },
    /// A whole record.
    Full {
        key: SessionKey,
        claim: Claim,
        stored: Option<Stamp>,
        #[serde(borrow)]
        record: WireRecord<'a>,
    },
    /// The copy here is not included in what the owner sent.
    Diverged {
        key: SessionKey,
        claim: Claim,
        #[serde(borrow)]
        record: WireRecord<'a>,
    },
    /// A copy for whoever owns the session to merge.
    Kept {
        key: SessionKey,
        #[serde(borrow)]
        record: WireRecord<'a>,
    },
    /// The copy here is not the delta's base: send the record.
    Gap { key: SessionKey, claim: Claim },
    /// From its owner, to a node without a copy: the newest durable commit. The first of a claim carries the lineage.
    Facade { key: SessionKey, claim: Claim, tip: Stamp, expires_ms: u32, lineage: Option<WireLineage> },
    /// From another node that knows: who owns it, by this claim, and a commit of it.
    Owned { key: SessionKey, claim: Claim, tip: Stamp },
    /// Whoever takes the sender for the owner is wrong, and it knows of no other.
    Unowned { key: SessionKey },
    /// From its owner: your copy should be this.
    Have { key: SessionKey, claim: Claim, tip: Stamp, idle_ms: u32, lineage: WireLineage },
    /// From a holder: this is my copy, last used so long ago, and this is the last owner that I know.
    Report { key: SessionKey, claim: Claim, idle_ms: u32 },
    /// Drop your copy if it is included in this.
    Drop { key: SessionKey, claim: Claim, tip: Stamp, lineage: WireLineage },
    /// Done. `unheard`: who owned the session before, and has not heard of a later owner as far as this node knows.
    Dropped { key: SessionKey, unheard: Vec<Life> },
    /// The session has ended.
    End {
        key: SessionKey,
        kind: EndKind,
        /// The id that it went on under, if that is known.
        next: Option<SessionKey>,
    },
    /// Known there, as one of this kind. `unheard`: who is not on the session's list and, as far as this node knows, has not heard of it.
    EndSeen { key: SessionKey, kind: EndKind, unheard: Vec<Life> },
    /// The session was used so long ago.
    Touch { key: SessionKey, claim: Claim, idle_ms: u32 },
    /// Claim this session, please.
    Invite { key: SessionKey },
    /// A commit for the owner.
    Late {
        key: SessionKey,
        id: u64,
        /// The last commit of what its request had read.
        read: Option<Stamp>,
        #[serde(borrow)]
        sets: Vec<LateSet<'a>>,
        /// The session ends instead, and goes on under this id, if that commit is still its last.
        next: Option<SessionKey>,
    },
    /// Its outcome.
    LateDone { key: SessionKey, id: u64, result: LateResult },
}

impl Message<'_> {
    /// Whether the receiver counts this message for its acknowledgement.
    pub fn wants_ack(&self) -> bool {
        let holds = matches!(self, Message::Delta { .. } | Message::Full { .. } | Message::Have { .. });
        holds || matches!(self, Message::Report { .. } | Message::End { .. } | Message::Touch { .. } | Message::Facade { .. })
    }

    /// The session that the message is about.
    pub fn key(&self) -> Option<SessionKey> {
        match self {
            Message::Gossip(_) | Message::Settled(_) | Message::Views(_) | Message::Ack(_) => None,
            Message::Ask { key, .. }
            | Message::Busy { key, .. }
            | Message::Refused { key, .. }
            | Message::Stay { key, .. }
            | Message::Answer { key, .. }
            | Message::Delta { key, .. }
            | Message::Full { key, .. }
            | Message::Diverged { key, .. }
            | Message::Kept { key, .. }
            | Message::Gap { key, .. }
            | Message::Facade { key, .. }
            | Message::Owned { key, .. }
            | Message::Unowned { key }
            | Message::Have { key, .. }
            | Message::Report { key, .. }
            | Message::Drop { key, .. }
            | Message::Dropped { key, .. }
            | Message::End { key, .. }
            | Message::EndSeen { key, .. }
            | Message::Touch { key, .. }
            | Message::Invite { key }
            | Message::Late { key, .. }
            | Message::LateDone { key, .. } => Some(*key),
        }
    }

    /// Appends the frame with this message to `out`.
    pub fn encode(&self, number: u8, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0, 0, 0, number]);
        #[expect(clippy::expect_used, reason = "a vector that grows takes every message")]
        let mut bytes = postcard::to_extend(self, core::mem::take(out)).expect("a message always encodes");
        let length = bytes.len() - start - 3;
        if let Some(prefix) = bytes.get_mut(start..start + 3) {
            prefix.copy_from_slice(&(length as u32).to_le_bytes()[..3]);
        }
        *out = bytes;
    }
}

/// Why bytes from a peer are not a frame. The link is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The announced length is beyond the limit.
    #[error("a frame of {got} bytes; the limit is {FRAME_MAX}")]
    TooLong {
        /// The announced length.
        got: usize,
    },
    /// The count of frames does not go on.
    #[error("frame number {got} where {want} was due")]
    Number {
        /// The number received.
        got: u8,
        /// The number that was due.
        want: u8,
    },
    /// The bytes are not a message of this version, or have parts beyond the limits.
    #[error("a frame that is not a message of protocol {PROTOCOL}")]
    Malformed,
    /// An acknowledgement of more than was sent.
    #[error("an acknowledgement of frames that were not sent")]
    Ack,
    /// The link is not open.
    #[error("a frame on a link that is not open")]
    NoLink,
}

/// The length of the frame at the head of `bytes`, header included, once enough of it is there to tell.
pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let [a, b, c, ..] = *bytes else { return Ok(None) };
    let got = u32::from_le_bytes([a, b, c, 0]) as usize;
    if got == 0 || got > FRAME_MAX { Err(FrameError::TooLong { got }) } else { Ok(Some(got + 3)) }
}

/// The number and message of one whole frame.
pub fn decode(frame: &[u8]) -> Result<(u8, Message<'_>), FrameError> {
    let Some((&[_, _, _, number], body)) = frame.split_first_chunk::<HEADER>() else { return Err(FrameError::Malformed) };
    let (message, rest) = postcard::take_from_bytes::<Message<'_>>(body).map_err(|_| FrameError::Malformed)?;
    if !rest.is_empty() || !message.is_bounded() {
        return Err(FrameError::Malformed);
    }
    Ok((number, message))
}

impl Message<'_> {
    /// Parts that the decoder does not bound by itself; records are checked when they become a [`Record`](crate::record::Record).
    fn is_bounded(&self) -> bool {
        match self {
            Message::Views(views) => {
                views.len() <= VIEWS_MAX + 1 && views.iter().all(|v| v.members.len() <= MEMBERS_MAX && v.backups <= BACKUPS_MAX)
            }
            Message::Have { lineage, .. } | Message::Drop { lineage, .. } | Message::Facade { lineage: Some(lineage), .. } => {
                lineage.listed.len() <= LINEAGE_MAX + GAPS_MAX
            }
            Message::Dropped { unheard, .. } | Message::EndSeen { unheard, .. } => unheard.len() <= MEMBERS_MAX,
            Message::Gossip(_)
            | Message::Settled(_)
            | Message::Ack(_)
            | Message::Ask { .. }
            | Message::Busy { .. }
            | Message::Refused { .. }
            | Message::Stay { .. }
            | Message::Answer { .. }
            | Message::Delta { .. }
            | Message::Full { .. }
            | Message::Diverged { .. }
            | Message::Kept { .. }
            | Message::Gap { .. }
            | Message::Facade { .. }
            | Message::Owned { .. }
            | Message::Unowned { .. }
            | Message::Report { .. }
            | Message::End { .. }
            | Message::Touch { .. }
            | Message::Invite { .. }
            | Message::Late { .. }
            | Message::LateDone { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim() -> Claim {
        Claim { epoch: 3, life: Life::new(0xfeed_face_cafe_beef) }
    }

    fn key() -> SessionKey {
        SessionKey::from_bytes([9; 16])
    }

    fn length(message: &Message<'_>) -> usize {
        let mut out = Vec::new();
        message.encode(0, &mut out);
        assert_eq!(frame_len(&out), Ok(Some(out.len())));
        assert_eq!(decode(&out).unwrap().1, *message);
        out.len()
    }

    #[test]
    fn a_delta_costs_at_most_64_bytes_beyond_its_names_and_values() {
        let set = Set { name: "cart", value: Some(serde_bytes::Bytes::new(b"12345678")) };
        let typical = Message::Delta { key: key(), claim: claim(), base: None, version: 70_000, sets: vec![set.clone()] };
        assert_eq!(length(&typical), 38 + 4 + 8);
        let worst = Claim { epoch: u32::MAX, ..claim() };
        let base = Some(worst.at(u32::MAX));
        let message = Message::Delta { key: key(), claim: worst, base, version: u32::MAX, sets: vec![set] };
        assert!(length(&message) - 12 <= 63, "{}", length(&message));
    }

    #[test]
    fn a_facade_costs_at_most_64_bytes() {
        let first = Message::Facade {
            key: key(),
            claim: claim(),
            tip: claim().at(9),
            expires_ms: 1_800_000,
            lineage: Some((&Lineage::new(0, [claim().at(9)])).into()),
        };
        assert!(length(&first) <= 64, "{}", length(&first));
    }

    #[test]
    fn frames_keep_their_bytes() {
        let mut out = Vec::new();
        Message::Gap { key: key(), claim: claim() }.encode(5, &mut out);
        let mut golden = vec![27, 0, 0, 5, 13];
        golden.extend([9; 16]);
        golden.extend([3, 0xfe, 0xed, 0xfa, 0xce, 0xca, 0xfe, 0xbe, 0xef]);
        assert_eq!(out, golden);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = frame_len(&bytes);
            let _ = decode(&bytes);
        }
    }
}
