//! I16: a node that an owner names as one of its backups holds all that this owner has said to be durable.

use super::holders::Holders;
use crate::world::World;
use outlive_core::id::SessionKey;
use outlive_core::stamp::{Claim, Stamp};

impl World {
    /// An owner says that its commits up to this one are durable.
    pub(crate) fn note_durable(&mut self, key: SessionKey, claim: Claim, version: u32) {
        if let Some(session) = self.by_key.get(&key) {
            let told = self.sessions[*session].durable.entry(claim).or_default();
            *told = (*told).max(version);
        }
    }

    pub(super) fn check_info(&mut self, session: usize, holders: &Holders) {
        let Some((owner, info)) = self.last_owner(session) else { return };
        let s = &self.sessions[session];
        // Who has heard of its end before the owner has dropped it, and by the clock of another it may have expired.
        if s.has_ended() || s.outlived {
            return;
        }
        let upto = s.durable.get(&info.claim).copied().unwrap_or(0);
        let durable = |stamp: &Stamp| stamp.claim == info.claim && stamp.version <= upto;
        let there = |node: usize, n: u32, stamp: Stamp| holders.of(n, stamp).any(|at| at == node);
        let lacks = |node: usize| s.values.iter().find(|(n, v)| v.stamp.filter(durable).is_some_and(|stamp| !there(node, **n, stamp)));
        let backups = || info.backups.iter().filter_map(|life| self.node_of(*life));
        if let Some((backup, n)) = backups().find_map(|node| Some((node, *lacks(node)?.0))) {
            let key = s.key;
            self.violate(format!(
                "I16 n{owner} names n{backup} as a backup of {key:?}, and e{n}, which it said to be durable, is not there"
            ));
        }
    }
}
