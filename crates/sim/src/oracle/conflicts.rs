//! I8: a list has every number that its lineage includes, once, and a client's own numbers in their order; a conflict is reported.

use super::excuse::{Excuse, Excuses};
use super::{Fate, Seen, Session};
use crate::client::list_of;
use crate::marks::Mark;
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) fn wrong(seen: &Seen<'_>, s: &Session, excuses: &mut Excuses) -> Option<String> {
    let list = &seen.list;
    let listed: BTreeSet<u32> = list.iter().copied().collect();
    if listed.len() != list.len() {
        return Some(format!("I8 a number is in the list twice: {list:?}"));
    }
    for (n, v) in s.values.iter().filter(|(n, v)| v.in_list && !listed.contains(n)) {
        let Some(stamp) = v.stamp.filter(|stamp| seen.record.lineage.includes(*stamp)) else { continue };
        let removed = v.removed.map_or((Excuse::LeftOut, 0), |excuse| (excuse, 1));
        if excuses.cover(1, &[removed, (Excuse::ConflictReported, u32::from(v.overruled))]).is_none() {
            return Some(format!("I8 the lineage includes {stamp:?}, e{n} is missing in the list {list:?}, and no conflict was reported"));
        }
    }
    let mut last: BTreeMap<usize, u32> = BTreeMap::new();
    for n in list {
        if let Some(v) = s.values.get(n)
            && v.fate == Fate::Ok
            && last.insert(v.client, *n).is_some_and(|before| before > *n)
        {
            return Some(format!("I8 a client's numbers are out of order: {list:?}"));
        }
    }
    None
}

impl World {
    pub(super) fn note_conflict(&mut self, node: usize, session: usize, discarded: &[Arc<str>]) {
        let World { sessions, nodes, .. } = self;
        let s = &mut sessions[session];
        if discarded.iter().any(|n| &**n == "log")
            && let Some(list) = nodes[node].proc.as_ref().and_then(|p| p.engine.peek(s.key, |r, _| list_of(r).1))
        {
            s.values.iter_mut().filter(|(n, _)| !list.contains(n)).for_each(|(_, v)| v.overruled = true);
        }
        let left_out: Vec<u32> = discarded.iter().filter_map(|n| n.strip_prefix('e')?.parse().ok()).collect();
        for n in &left_out {
            s.values.entry(*n).and_modify(|v| {
                v.removed.get_or_insert(Excuse::LeftOut);
            });
        }
        if !left_out.is_empty() {
            self.mark(Mark::LeftOut);
        }
    }
}
