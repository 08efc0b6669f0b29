//! I2: a record has every commit that its lineage includes, and nobody is served one that lacks what the client's token names.

use super::excuse::{Excuse, Excuses};
use super::{Seen, Session};
use crate::client::own_of;
use crate::world::World;
use outlive_core::record::Record;
use outlive_core::stamp::Stamp;

pub(super) fn wrong(seen: &Seen<'_>, s: &Session, excuses: &mut Excuses) -> Option<String> {
    let lineage = &seen.record.lineage;
    for (n, v) in &s.values {
        let Some(stamp) = v.stamp else { continue };
        if !seen.own.contains(n) && lineage.includes(stamp) && !is_removed(v.removed, excuses) {
            return Some(format!("I1 the lineage {lineage:?} includes {stamp:?}, and e{n} is missing"));
        }
    }
    None
}

/// Whether it was taken out, as was reported.
pub(super) fn is_removed(why: Option<Excuse>, excuses: &mut Excuses) -> bool {
    why.is_some_and(|excuse| excuses.any(&[(excuse, true)]))
}

impl World {
    /// A client with this token is served this record.
    pub(super) fn served_older(&mut self, id: u64, record: &Record, token: Stamp) {
        let World { reqs, sessions, excuses, .. } = self;
        let Some(r) = reqs.get(&id) else { return };
        let (node, client, s) = (r.node, r.client, &sessions[r.session]);
        let (key, tip) = (s.key, record.tip);
        if !record.satisfies(token) {
            return self.violate(format!("I2 n{node} serves {key:?} at {tip:?} to client {client} who holds a token for {token:?}"));
        }
        if !record.lineage.includes(token) {
            return;
        }
        let there = own_of(record);
        let lacks = |n: &&u32| !there.contains(n) && s.values.get(n).is_some_and(|v| !is_removed(v.removed, excuses));
        if let Some(n) = r.must.iter().find(lacks).copied() {
            self.violate(format!("I2 n{node} serves {key:?} at {tip:?} without e{n}, which client {client} has seen"));
        }
    }
}
