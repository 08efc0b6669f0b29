//! Who holds what: looked up in the memory of every process and in the store's row, whatever the engines say of it.

use crate::client::own_of;
use crate::options::S;
use crate::rows::Row;
use crate::world::World;
use core::time::Duration;
use outlive_core::lineage::Lineage;
use outlive_core::output::Info;
use outlive_core::record::Record;
use outlive_core::stamp::{Life, Stamp};
use outlive_core::time::Mono;
use std::collections::BTreeSet;

pub(super) struct Holders {
    /// Node, what it includes, which values have their attribute there.
    pub(super) nodes: Vec<(usize, Lineage, BTreeSet<u32>)>,
    stored: Option<(Lineage, BTreeSet<u32>)>,
}

impl Holders {
    /// The nodes that have this value. A late commit may be there as another commit than its answer names.
    pub(super) fn of(&self, value: u32, stamp: Stamp) -> impl Iterator<Item = usize> + '_ {
        self.nodes.iter().filter(move |(_, l, own)| l.includes(stamp) || own.contains(&value)).map(|(n, ..)| *n)
    }

    pub(super) fn stored(&self, value: u32, stamp: Stamp) -> bool {
        self.stored.as_ref().is_some_and(|(l, own)| l.includes(stamp) || own.contains(&value))
    }

    pub(super) fn store_includes(&self, stamp: Stamp) -> bool {
        self.stored.as_ref().is_some_and(|(l, _)| l.includes(stamp))
    }

    /// Nobody has it, and the store has not.
    pub(super) fn nowhere(&self, value: u32, stamp: Stamp) -> bool {
        self.of(value, stamp).next().is_none() && !self.stored(value, stamp)
    }

    /// Whether a node has all of these values.
    fn has(&self, node: usize, values: &BTreeSet<u32>) -> bool {
        self.nodes.iter().any(|(n, _, own)| *n == node && values.is_subset(own))
    }
}

impl World {
    pub(super) fn holders(&self, session: usize) -> Holders {
        let key = self.sessions[session].key;
        let mut nodes = Vec::new();
        for (n, slot) in self.nodes.iter().enumerate() {
            let Some(p) = slot.proc.as_ref() else { continue };
            // A branch beside the record is held as well.
            nodes.extend(p.engine.peek(key, |r, branch| {
                let (mut lineage, mut own) = (r.lineage.clone(), own_of(r));
                if let Some(b) = branch {
                    lineage.union(&b.lineage);
                    own.extend(own_of(b));
                }
                (n, lineage, own)
            }));
        }
        let stored = match self.rows.get(&key) {
            Some(Row::Record { record, .. }) => Record::from_bytes(record, Mono::from_micros(self.now), Duration::ZERO, Duration::ZERO)
                .ok()
                .map(|r| (r.lineage.clone(), own_of(&r))),
            _ => None,
        };
        Holders { nodes, stored }
    }

    pub(super) fn node_of(&self, life: Life) -> Option<usize> {
        self.nodes.iter().position(|s| s.proc.as_ref().is_some_and(|p| p.engine.life() == life))
    }

    /// The last owner, unless it is gone.
    pub(super) fn last_owner(&mut self, session: usize) -> Option<(usize, Info)> {
        let key = self.sessions[session].key;
        let info = |n: usize| self.nodes[n].proc.as_ref()?.engine.info(key).filter(|i| i.owned);
        let owners = (0..self.nodes.len()).filter_map(|n| Some((n, info(n)?)));
        let last = owners.max_by_key(|(_, i)| i.claim).filter(|(_, i)| i.claim >= self.sessions[session].owned)?;
        self.sessions[session].owned = last.1.claim;
        Some(last)
    }

    /// How many copies with all of these values are at the last owner and where it sees to them. Others are on their way out: they may be
    /// told to go at any time, and an owner before it that was paused by what its successor sent before that died.
    pub(super) fn copies(&mut self, session: usize, holders: &Holders, values: &BTreeSet<u32>) -> u32 {
        let Some((owner, _)) = self.last_owner(session).filter(|(owner, _)| holders.has(*owner, values)) else { return 0 };
        let Some(p) = self.nodes[owner].proc.as_ref() else { return 0 };
        let mut places = p.engine.placed(self.sessions[session].key);
        let backups = places.len().saturating_sub(1);
        places.retain(|life| *life != p.engine.life());
        let there = places.iter().take(backups).filter_map(|life| self.node_of(*life)).filter(|n| holders.has(*n, values));
        1 + there.count() as u32
    }

    /// A node that holds it and has long been in reach of this one, or else whether any does.
    pub(super) fn holder_in_reach(&self, node: usize, session: usize, holds: impl Fn(&Lineage) -> bool) -> (Option<usize>, bool) {
        let holders = self.holders(session);
        let others = || holders.nodes.iter().filter(|(n, l, _)| *n != node && holds(l)).map(|(n, ..)| *n);
        let in_reach = |n: &usize| self.calm(node, *n) > 12 * S && self.nodes[*n].proc.as_ref().is_some_and(|p| p.paused.is_none());
        (others().find(in_reach), others().next().is_some())
    }
}
