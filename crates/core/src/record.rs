//! A session's content: metadata and attributes.

use crate::config::Limits;
use crate::limits::{ATTRIBUTES_MAX, GAPS_MAX, LINEAGE_MAX, NAME_MAX, RECORD_MAX};
use crate::lineage::Lineage;
use crate::stamp::{Claim, Life, Stamp};
use crate::time::Mono;
use bytes::Bytes;
use core::fmt;
use core::time::Duration;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The reserved attribute with a session's own idle timeout and lifetime, where they differ from the configured ones.
pub const LIMITS: &str = "outlive.limits";
/// The reserved attribute with the user that a login bound the session to.
pub const USER: &str = "outlive.user";

/// One named value. The engine never looks inside.
#[derive(Clone, PartialEq, Eq)]
pub struct Attribute {
    /// 1 to 128 bytes.
    pub name: Arc<str>,
    /// The commit that set it.
    pub dot: Stamp,
    /// Opaque.
    pub value: Bytes,
}

impl fmt::Debug for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:?}:{}B", self.name, self.dot, self.value.len())
    }
}

/// One change of one attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The attribute's name.
    pub name: Arc<str>,
    /// The commit that had set the value from which the request started; `None` if there was none.
    pub base: Option<Stamp>,
    /// The new value; `None` removes the attribute.
    pub value: Option<Bytes>,
}

/// What one copy of a session holds.
#[derive(Clone, Debug)]
pub struct Record {
    /// The last commit in it. INVARIANT: `lineage` lists exactly this version for its claim.
    pub tip: Stamp,
    /// Which commits it includes.
    pub lineage: Lineage,
    /// Commits that were given up as lost. They satisfy tokens; between copies they do not count as included.
    pub gaps: Vec<Stamp>,
    /// When the session was created.
    pub created: Mono,
    /// When it was last used.
    pub used: Mono,
    /// Sorted by name.
    attributes: Vec<Attribute>,
}

impl Record {
    /// An empty record, without a commit.
    pub fn new(now: Mono) -> Record {
        Record { tip: Stamp::default(), lineage: Lineage::default(), gaps: Vec::new(), created: now, used: now, attributes: Vec::new() }
    }

    /// The attributes in the order of their names.
    pub fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// The attribute of that name.
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.attributes.binary_search_by(|a| (*a.name).cmp(name)).ok().and_then(|at| self.attributes.get(at))
    }

    /// Whether a token that names this commit is satisfied.
    pub fn satisfies(&self, stamp: Stamp) -> bool {
        self.lineage.includes(stamp) || self.gaps.contains(&stamp)
    }

    /// Whether each change starts from the value that is here.
    pub fn bases_hold(&self, changes: &[Change]) -> bool {
        changes.iter().all(|c| self.get(&c.name).map(|a| a.dot) == c.base)
    }

    /// Makes `stamp` the record's last commit, with these changes.
    pub fn commit(&mut self, stamp: Stamp, changes: &[Change]) {
        for change in changes {
            let at = self.attributes.binary_search_by(|a| a.name.cmp(&change.name));
            match (at, &change.value) {
                (Ok(at), Some(value)) => {
                    if let Some(old) = self.attributes.get_mut(at) {
                        (old.dot, old.value) = (stamp, value.clone());
                    }
                }
                (Err(at), Some(value)) => {
                    self.attributes.insert(at, Attribute { name: change.name.clone(), dot: stamp, value: value.clone() });
                }
                (Ok(at), None) => drop(self.attributes.remove(at)),
                (Err(_), None) => {}
            }
        }
        self.tip = stamp;
        self.lineage.include(stamp);
        self.lineage.fold(LINEAGE_MAX, stamp.claim);
    }

    /// Replaces all attributes; for merges and copies.
    pub(crate) fn replace(&mut self, mut attributes: Vec<Attribute>) {
        attributes.sort_by(|a, b| a.name.cmp(&b.name));
        self.attributes = attributes;
    }

    /// Notes a commit as lost.
    pub fn note_gap(&mut self, stamp: Stamp) {
        if !self.satisfies(stamp) {
            self.gaps.push(stamp);
            if self.gaps.len() > GAPS_MAX {
                self.gaps.remove(0);
            }
        }
    }

    /// The session's limits: its own, else the configured ones.
    pub fn limits(&self, configured: Limits) -> Limits {
        self.get(LIMITS).and_then(|a| Limits::decode(&a.value)).unwrap_or(configured)
    }

    /// When the session expires if it is not used again.
    pub fn expires(&self, configured: Limits) -> Mono {
        let limits = self.limits(configured);
        (self.used + limits.idle_of(self.used == self.created)).min(self.created + limits.lifetime)
    }

    /// A rough count of the bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        self.attributes.iter().map(|a| 64 + a.name.len() + a.value.len()).sum()
    }

    /// The record under another claim, as the first commit of another id: same attributes, no history.
    pub fn fork(&self, stamp: Stamp, now: Mono) -> Record {
        let mut fresh = Record::new(now);
        (fresh.created, fresh.used) = (self.created, now);
        fresh.attributes = self.attributes.iter().map(|a| Attribute { dot: stamp, ..a.clone() }).collect();
        fresh.tip = stamp;
        fresh.lineage.include(stamp);
        fresh
    }

    /// The form that goes to peers and stores: ages for times, dots by their place in the lineage.
    pub fn to_wire(&self, now: Mono) -> WireRecord<'_> {
        let listed = self.lineage.listed();
        let place = |claim: Claim| listed.binary_search_by_key(&claim, |s| s.claim).map_or(0, |at| at as u32 + 1);
        WireRecord {
            floor: self.lineage.floor(),
            lineage: listed.iter().map(|s| (s.claim.epoch, s.claim.life, s.version)).collect(),
            tip: place(self.tip.claim),
            gaps: self.gaps.iter().map(|s| (s.claim.epoch, s.claim.life, s.version)).collect(),
            age_ms: millis(now.since(self.created)),
            idle_ms: millis(now.since(self.used)),
            attributes: self
                .attributes
                .iter()
                .map(|a| WireAttribute { name: &a.name, place: place(a.dot.claim), version: a.dot.version, value: &a.value })
                .collect(),
        }
    }

    /// The record of [`to_wire`](Record::to_wire), or why it cannot be one.
    pub fn from_wire(wire: &WireRecord<'_>, now: Mono) -> Result<Record, RecordError> {
        if wire.lineage.len() > LINEAGE_MAX || wire.gaps.len() > GAPS_MAX || wire.attributes.len() > ATTRIBUTES_MAX {
            return Err(RecordError::TooMany);
        }
        let stamp = |(epoch, life, version): (u32, Life, u32)| Claim { epoch, life }.at(version);
        let listed: Vec<Stamp> = wire.lineage.iter().copied().map(stamp).collect();
        if !listed.windows(2).all(|w| matches!(w, [a, b] if a.claim < b.claim)) || listed.iter().any(|s| s.version == 0) {
            return Err(RecordError::Lineage);
        }
        let at = |place: u32| (place as usize).checked_sub(1).and_then(|at| listed.get(at));
        let tip = *at(wire.tip).ok_or(RecordError::Lineage)?;
        let mut attributes = Vec::with_capacity(wire.attributes.len());
        let mut bytes = 0;
        for a in &wire.attributes {
            bytes += a.name.len() + a.value.len();
            if a.name.is_empty() || a.name.len() > NAME_MAX || bytes > RECORD_MAX {
                return Err(RecordError::Attribute);
            }
            let dot = match a.place {
                0 => Claim::NONE.at(a.version),
                place => at(place).ok_or(RecordError::Attribute)?.claim.at(a.version),
            };
            attributes.push(Attribute { name: a.name.into(), dot, value: Bytes::copy_from_slice(a.value) });
        }
        if !attributes.windows(2).all(|w| matches!(w, [a, b] if a.name < b.name)) {
            return Err(RecordError::Attribute);
        }
        Ok(Record {
            tip,
            lineage: Lineage::new(wire.floor, listed),
            gaps: wire.gaps.iter().copied().map(stamp).collect(),
            created: now - Duration::from_millis(wire.age_ms.max(wire.idle_ms)),
            used: now - Duration::from_millis(wire.idle_ms),
            attributes,
        })
    }

    /// The bytes that a store keeps.
    pub fn to_bytes(&self, now: Mono) -> Bytes {
        let bytes = postcard::to_extend(&self.to_wire(now), vec![FORMAT]);
        #[expect(clippy::expect_used, reason = "a vector that grows takes every record")]
        bytes.expect("a record always encodes").into()
    }

    /// The record of [`to_bytes`](Record::to_bytes), written `age` ago by the store's clock.
    pub fn from_bytes(bytes: &[u8], now: Mono, age: Duration) -> Result<Record, RecordError> {
        let [FORMAT, rest @ ..] = bytes else { return Err(RecordError::Format) };
        let (wire, rest) = postcard::take_from_bytes::<WireRecord<'_>>(rest).map_err(|_| RecordError::Format)?;
        if !rest.is_empty() {
            return Err(RecordError::Format);
        }
        Record::from_wire(&wire, now - age).map(|mut record| {
            record.used = record.used.min(now);
            record
        })
    }
}

/// The first byte of a stored record.
const FORMAT: u8 = 1;

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The bytes are cut, longer than they say, or of a format this version does not know.
    #[error("not a record of format {FORMAT}")]
    Format,
    /// More parts than the limits allow.
    #[error("a record with too many claims, gaps or attributes")]
    TooMany,
    /// The lineage is not sorted or does not name the last commit.
    #[error("a record whose lineage is not in order")]
    Lineage,
    /// An attribute has a bad name, a dot that the lineage does not know, or is too large.
    #[error("a record with an attribute out of bounds")]
    Attribute,
}

/// A record as it travels. Append-only, like every wire type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireRecord<'a> {
    floor: u32,
    lineage: Vec<(u32, Life, u32)>,
    tip: u32,
    gaps: Vec<(u32, Life, u32)>,
    age_ms: u64,
    idle_ms: u64,
    #[serde(borrow)]
    attributes: Vec<WireAttribute<'a>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct WireAttribute<'a> {
    name: &'a str,
    /// 0: under the lineage's floor; otherwise one more than the claim's place in the lineage.
    place: u32,
    version: u32,
    #[serde(with = "serde_bytes")]
    value: &'a [u8],
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(epoch: u32) -> Claim {
        Claim { epoch, life: Life::new(77) }
    }

    fn set(name: &str, value: &'static [u8]) -> Change {
        Change { name: name.into(), base: None, value: Some(Bytes::from_static(value)) }
    }

    #[test]
    fn stored_bytes_come_back_with_ages() {
        let now = Mono::from_micros(5_000_000);
        let mut r = Record::new(now - Duration::from_secs(9));
        r.commit(claim(1).at(1), &[set("b", b"1"), set("a", b"2")]);
        r.commit(claim(2).at(1), &[set("c", b"3"), Change { name: "b".into(), base: None, value: None }]);
        r.note_gap(claim(3).at(4));
        let later = Mono::from_micros(70_000_000);
        let back = Record::from_bytes(&r.to_bytes(now), later, Duration::from_secs(2)).unwrap();
        assert_eq!((back.tip, &back.lineage, &back.gaps), (r.tip, &r.lineage, &r.gaps));
        assert_eq!(back.attributes(), r.attributes());
        assert_eq!(back.created, later - Duration::from_secs(11));
    }

    #[test]
    fn bytes_that_are_not_a_record_are_refused() {
        let mut r = Record::new(Mono::ZERO);
        r.commit(claim(1).at(1), &[set("a", b"xyz")]);
        let bytes = r.to_bytes(Mono::ZERO);
        for cut in 0..bytes.len() {
            assert!(Record::from_bytes(&bytes[..cut], Mono::ZERO, Duration::ZERO).is_err(), "cut at {cut}");
        }
        let mut long = bytes.to_vec();
        long.push(0);
        assert_eq!(Record::from_bytes(&long, Mono::ZERO, Duration::ZERO).unwrap_err(), RecordError::Format);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut framed = vec![FORMAT];
            framed.extend(bytes);
            let _ = Record::from_bytes(&framed, Mono::ZERO, Duration::ZERO);
        }
    }
}
