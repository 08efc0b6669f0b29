//! A session's content: metadata and attributes.

use crate::config::{IDLE_MIN, Limits};
use crate::limits::{ATTRIBUTES_MAX, GAPS_MAX, LINEAGE_MAX, NAME_MAX, RECORD_MAX};
use crate::lineage::Lineage;
use crate::stamp::{Claim, Life, Stamp};
use crate::time::Mono;
use bytes::Bytes;
use core::fmt;
use core::time::Duration;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The reserved attribute with a session's own idle timeout and lifetime, where they differ from those it was born with.
pub const LIMITS: &str = "outlive.limits";
/// The reserved attribute with the user that a login bound the session to.
pub const USER: &str = "outlive.user";
/// The reserved attribute that stands for a loss of which the client has not been told yet: how many commits at least (4 bytes, big
/// endian). The commit that notes the loss sets it, so that it goes wherever the session goes; whoever has told removes it.
pub const LOST: &str = "outlive.lost";

/// The reserved attribute of a session that is about to get a new id, so that no second one is made from it meanwhile. Every commit of it
/// goes by the owner, so one of two comes first. It does not go along to the new id.
pub const ROTATING: &str = "outlive.rotating";

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

/// Up to so many attributes a session has no room in reserve: most sessions have one or two, and there are a million of them.
const FEW: usize = 8;

/// One change of one attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The attribute's name.
    pub name: Arc<str>,
    /// What it starts from.
    pub base: Base,
    /// The new value; `None` removes the attribute.
    pub value: Option<Bytes>,
}

/// The value that a change starts from. If there is another one by now, the commit is a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Base {
    /// Whatever there is: the change looks at nothing. One that was on its way to another node over a connection that broke is not sent
    /// again, since it could come after what others have made of it; its outcome is unknown.
    Any,
    /// There is no such attribute.
    Absent,
    /// The one that this commit has set.
    At(Stamp),
}

impl From<Option<Stamp>> for Base {
    fn from(dot: Option<Stamp>) -> Base {
        dot.map_or(Base::Absent, Base::At)
    }
}

/// What a session's time is counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// How long it lives without use.
    pub idle: Duration,
    /// When it ends however much it is used.
    pub end: Mono,
}

impl Clock {
    /// When a session expires that was last used then.
    pub fn expires(&self, used: Mono) -> Mono {
        (used + self.idle).min(self.end)
    }

    /// What a client is told of a session that was last used then: a step more, so that it need not be told of every use.
    pub fn deadline(&self, used: Mono) -> Mono {
        (used + self.idle + self.step()).min(self.end)
    }

    /// How often a use is told to others: to the store, to the client in its token, and to holders where that is less than half a minute.
    pub fn step(&self) -> Duration {
        self.idle / 10
    }
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
    /// When it was last used; equal to `created` until its cookie has come back once ([`is_first`](Record::is_first)).
    pub used: Mono,
    /// How long it lives: the settings of the node where it began, whatever those of the node are that holds it.
    pub born: Limits,
    /// Sorted by name.
    attributes: Vec<Attribute>,
}

impl Record {
    /// An empty record, without a commit.
    pub fn new(now: Mono, born: Limits) -> Record {
        Record {
            tip: Stamp::default(),
            lineage: Lineage::default(),
            gaps: Vec::new(),
            created: now,
            used: now,
            born,
            attributes: Vec::new(),
        }
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
        changes.iter().all(|c| c.base == Base::Any || Base::from(self.get(&c.name).map(|a| a.dot)) == c.base)
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
                    if self.attributes.len() < FEW {
                        self.attributes.reserve_exact(1);
                    }
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

    /// The session's limits: those that were set for it, else those it was born with. An idle timeout below 1 s counts as 1 s.
    pub fn limits(&self) -> Limits {
        let limits = self.get(LIMITS).and_then(|a| Limits::decode(&a.value)).unwrap_or(self.born);
        Limits { idle: limits.idle.max(IDLE_MIN), ..limits }
    }

    /// Whether its cookie has not come back yet: nobody has used it but the request that created it.
    pub fn is_first(&self) -> bool {
        self.used == self.created
    }

    /// Notes a use. From then on it is not the first any more, however short ago it was created.
    pub fn note_use(&mut self, at: Mono) {
        self.used = self.used.max(at.max(self.created + TICK));
    }

    /// Notes a commit. Soon after the creation it is one of the request that created the session, and no use.
    pub(crate) fn note_commit(&mut self, at: Mono) {
        if !self.is_first() || at > self.created + self.clock().step() {
            self.note_use(at);
        }
    }

    /// Notes the use that another copy of the session tells of.
    pub(crate) fn note_use_of(&mut self, other: &Record) {
        if !other.is_first() {
            self.note_use(other.used);
        }
    }

    /// What its time is counted by.
    pub fn clock(&self) -> Clock {
        let limits = self.limits();
        Clock { idle: limits.idle_of(self.is_first()), end: self.created + limits.lifetime }
    }

    /// Until when a token made now says that it lives, and by how much that has to move to be worth another token.
    pub fn deadline(&self) -> (Mono, Duration) {
        let clock = self.clock();
        (clock.deadline(self.used), clock.step())
    }

    /// When the session expires if it is not used again.
    pub fn expires(&self) -> Mono {
        self.clock().expires(self.used)
    }

    /// When it is over for those who may hear of its last use late, as everybody may who does not own it: two steps after it expires,
    /// but not beyond its lifetime.
    pub fn over(&self) -> Mono {
        let clock = self.clock();
        (self.used + clock.idle + clock.step() * 2).min(clock.end)
    }

    /// A rough count of the bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        self.size().bytes
    }

    /// What counts towards the limits: all but what the engine notes itself.
    pub fn size(&self) -> Size {
        let counted = self.attributes.iter().filter(|a| &*a.name != LOST);
        counted.fold(Size::default(), |size, a| size.with(&a.name, &a.value))
    }

    /// Whether these changes may be made. What makes a record smaller that is too large may.
    pub fn fits_with(&self, changes: &[Change], bytes_max: usize) -> Result<(), Excess> {
        let (mut gone, mut come) = (Size::default(), Size::default());
        for change in changes.iter().filter(|c| &*c.name != LOST) {
            if let Some(old) = self.get(&change.name) {
                gone = gone.with(&old.name, &old.value);
            }
            if let Some(value) = &change.value {
                come = come.with(&change.name, value);
            }
        }
        let grows = come.bytes > gone.bytes || come.attributes > gone.attributes;
        if grows { self.size().without(gone).and(come).fits(bytes_max) } else { Ok(()) }
    }

    /// Leaves out the eldest values until the rest fits, and names them. The engine's own attributes stay.
    pub(crate) fn shed(&mut self, bytes_max: usize) -> Vec<Arc<str>> {
        if self.size().fits(bytes_max).is_ok() {
            return Vec::new();
        }
        let mut newest: Vec<&Attribute> = self.attributes.iter().collect();
        newest.sort_by_key(|a| (core::cmp::Reverse((is_reserved(&a.name), a.dot)), a.name.clone()));
        let mut size = Size::default();
        let mut out = Vec::new();
        for a in newest {
            let with = size.with(&a.name, &a.value);
            match with.fits(bytes_max) {
                Err(_) if !is_reserved(&a.name) => out.push(a.name.clone()),
                _ => size = with,
            }
        }
        self.attributes.retain(|a| !out.contains(&a.name));
        out
    }

    /// The record under another claim, as the first commit of another id: same attributes, no history.
    pub fn fork(&self, stamp: Stamp, now: Mono) -> Record {
        let mut fresh = Record::new(now, self.born);
        fresh.created = self.created;
        fresh.used = if self.is_first() { fresh.created } else { now.max(self.used) };
        let goes_along = self.attributes.iter().filter(|a| &*a.name != ROTATING);
        fresh.attributes = goes_along.map(|a| Attribute { dot: stamp, ..a.clone() }).collect();
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
            born: (millis(self.born.idle), millis(self.born.lifetime)),
            attributes: self
                .attributes
                .iter()
                .map(|a| WireAttribute { name: &a.name, place: place(a.dot.claim), version: a.dot.version, value: &a.value })
                .collect(),
        }
    }

    /// The record of [`to_wire`](Record::to_wire), or why it cannot be one.
    pub fn from_wire(wire: &WireRecord<'_>, now: Mono) -> Result<Record, RecordError> {
        if wire.lineage.len() > LINEAGE_MAX || wire.gaps.len() > GAPS_MAX || wire.attributes.len() > ATTRIBUTES_MAX + 1 {
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
        for a in &wire.attributes {
            if a.name.is_empty() || a.name.len() > NAME_MAX {
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
        let record = Record {
            tip,
            lineage: Lineage::new(wire.floor, listed),
            gaps: wire.gaps.iter().copied().map(stamp).collect(),
            created: now - Duration::from_millis(wire.age_ms.max(wire.idle_ms)),
            used: now - Duration::from_millis(wire.idle_ms),
            born: Limits { idle: Duration::from_millis(wire.born.0), lifetime: Duration::from_millis(wire.born.1) },
            attributes,
        };
        record.size().fits(RECORD_MAX)?;
        Ok(record)
    }

    /// The bytes that a store keeps.
    pub fn to_bytes(&self, now: Mono) -> Bytes {
        let bytes = postcard::to_extend(&self.to_wire(now), vec![FORMAT]);
        #[expect(clippy::expect_used, reason = "a vector that grows takes every record")]
        bytes.expect("a record always encodes").into()
    }

    /// The record of [`to_bytes`](Record::to_bytes), written `age` ago and last used `touched` ago by the store's clock.
    pub fn from_bytes(bytes: &[u8], now: Mono, age: Duration, touched: Duration) -> Result<Record, RecordError> {
        let [FORMAT, rest @ ..] = bytes else { return Err(RecordError::Format) };
        let (wire, rest) = postcard::take_from_bytes::<WireRecord<'_>>(rest).map_err(|_| RecordError::Format)?;
        if !rest.is_empty() {
            return Err(RecordError::Format);
        }
        let mut record = Record::from_wire(&wire, now - age)?;
        if touched < age {
            // Who writes a row says in the record how long ago the session was used; a touch says it beside the row.
            record.note_use(now - touched);
        }
        Ok(record)
    }
}

/// The first byte of a stored record.
const FORMAT: u8 = 2;
/// What travels of times: a use so long after the creation is later than it on every node.
const TICK: Duration = Duration::from_millis(1);

/// Whether an attribute is the engine's or the library's own.
fn is_reserved(name: &str) -> bool {
    name.starts_with("outlive.")
}

/// How much a record holds: 64 bytes, name and value for each attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Of all attributes.
    pub bytes: usize,
    /// How many there are.
    pub attributes: usize,
}

impl Size {
    fn of(name: &str, value: &[u8]) -> usize {
        64 + name.len() + value.len()
    }

    fn with(self, name: &str, value: &[u8]) -> Size {
        Size { bytes: self.bytes + Size::of(name, value), attributes: self.attributes + 1 }
    }

    fn and(self, more: Size) -> Size {
        Size { bytes: self.bytes + more.bytes, attributes: self.attributes + more.attributes }
    }

    fn without(self, less: Size) -> Size {
        Size { bytes: self.bytes.saturating_sub(less.bytes), attributes: self.attributes.saturating_sub(less.attributes) }
    }

    /// The one rule of fit: for commits, wherever they come from, for merges, and for records that come from peers and stores.
    pub fn fits(self, bytes_max: usize) -> Result<(), Excess> {
        if self.attributes > ATTRIBUTES_MAX {
            Err(Excess::Attributes { got: self.attributes, most: ATTRIBUTES_MAX })
        } else if self.bytes > bytes_max {
            Err(Excess::Bytes { got: self.bytes, most: bytes_max })
        } else {
            Ok(())
        }
    }
}

/// How a session would be too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Excess {
    /// Names and values, and 64 bytes for each attribute.
    #[error("{got} bytes in the session, {most} at most")]
    Bytes {
        /// What it would have.
        got: usize,
        /// What it may have.
        most: usize,
    },
    /// Attributes.
    #[error("{got} attributes in the session, {most} at most")]
    Attributes {
        /// What it would have.
        got: usize,
        /// What it may have.
        most: usize,
    },
}

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
    /// An attribute has a bad name, or a dot that the lineage does not know.
    #[error("a record with an attribute out of bounds")]
    Attribute,
    /// More than a session may hold.
    #[error("a record that is too large: {0}")]
    TooLarge(#[from] Excess),
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
    /// Idle timeout and lifetime in milliseconds.
    born: (u64, u64),
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
        Change { name: name.into(), base: Base::Absent, value: Some(Bytes::from_static(value)) }
    }

    #[test]
    fn stored_bytes_come_back_with_ages() {
        let now = Mono::from_micros(5_000_000);
        let mut r = Record::new(now - Duration::from_secs(9), Limits::default());
        r.commit(claim(1).at(1), &[set("b", b"1"), set("a", b"2")]);
        r.commit(claim(2).at(1), &[set("c", b"3"), Change { name: "b".into(), base: Base::Absent, value: None }]);
        r.note_gap(claim(3).at(4));
        let later = Mono::from_micros(70_000_000);
        let back = Record::from_bytes(&r.to_bytes(now), later, Duration::from_secs(2), Duration::from_secs(2)).unwrap();
        assert_eq!((back.tip, &back.lineage, &back.gaps), (r.tip, &r.lineage, &r.gaps));
        assert_eq!(back.attributes(), r.attributes());
        assert_eq!(back.created, later - Duration::from_secs(11));
    }

    #[test]
    fn bytes_that_are_not_a_record_are_refused() {
        let mut r = Record::new(Mono::ZERO, Limits::default());
        r.commit(claim(1).at(1), &[set("a", b"xyz")]);
        let bytes = r.to_bytes(Mono::ZERO);
        for cut in 0..bytes.len() {
            assert!(Record::from_bytes(&bytes[..cut], Mono::ZERO, Duration::ZERO, Duration::ZERO).is_err(), "cut at {cut}");
        }
        let mut long = bytes.to_vec();
        long.push(0);
        assert_eq!(Record::from_bytes(&long, Mono::ZERO, Duration::ZERO, Duration::ZERO).unwrap_err(), RecordError::Format);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut framed = vec![FORMAT];
            framed.extend(bytes);
            let _ = Record::from_bytes(&framed, Mono::ZERO, Duration::ZERO, Duration::ZERO);
        }
    }
}
