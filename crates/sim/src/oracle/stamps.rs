//! I4: a stamp names one commit, with one content and one lineage, for ever.

use super::excuse::{Excuse, Excuses};
use super::{Seen, Session};
use crate::client::decode;
use crate::world::World;
use outlive_core::record::{LIMITS, LOST, Record};
use outlive_core::stamp::Stamp;

pub(super) fn wrong(seen: &Seen<'_>, s: &mut Session, excuses: &mut Excuses) -> Option<String> {
    let theirs = seen.record.attributes().iter().filter(|a| !["log", LIMITS, LOST].contains(&&*a.name));
    for a in theirs {
        for n in decode(&a.value).1 {
            let Some(v) = s.values.get_mut(&n) else { continue };
            match v.stamp {
                None => {
                    v.stamp = Some(a.dot);
                    s.learnt += 1;
                }
                Some(known) if known != a.dot && !excuses.any(&[(Excuse::LateCommit, v.late)]) => {
                    return Some(format!("I4 e{n} has the commit {:?} here and {known:?} elsewhere", a.dot));
                }
                Some(_) => {}
            }
        }
    }
    two_contents(seen.record, s)
}

fn two_contents(record: &Record, s: &mut Session) -> Option<String> {
    let (tip, hash) = (record.tip, content(record));
    if tip.version == 0 {
        return None;
    }
    let (known, lineage) = s.contents.entry(tip).or_insert_with(|| (hash, record.lineage.clone()));
    if *known != hash {
        Some(format!("I4 two contents under one stamp {tip:?}"))
    } else if *lineage != record.lineage {
        Some(format!("I4 two lineages under one stamp {tip:?}: {lineage:?} and {:?}", record.lineage))
    } else {
        None
    }
}

fn fold(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn content(record: &Record) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for a in record.attributes() {
        hash = fold(fold(fold(hash, a.name.as_bytes()), &a.dot.to_bytes()), &a.value);
    }
    hash
}

impl World {
    /// An answer says which commit a value is.
    pub(crate) fn stamped(&mut self, session: usize, value: u32, stamp: Stamp) {
        let World { sessions, excuses, .. } = self;
        let s = &mut sessions[session];
        s.learnt += 1;
        let Some(v) = s.values.get_mut(&value) else { return };
        match v.stamp.replace(stamp) {
            Some(known) if known != stamp && !excuses.any(&[(Excuse::LateCommit, v.late)]) => {
                self.violate(format!("I4 e{value} was committed as {known:?} and as {stamp:?}"));
            }
            _ => {}
        }
    }
}
