//! I3: no two nodes own a session under one claim.

use crate::world::World;
use outlive_core::stamp::Claim;
use std::collections::BTreeMap;

impl World {
    pub(super) fn owns(&mut self, node: usize, session: usize, claim: Claim, owners: &mut BTreeMap<Claim, usize>) {
        if let Some(other) = owners.insert(claim, node) {
            let key = self.sessions[session].key;
            self.violate(format!("I3 n{node} and n{other} own {key:?} under one claim {claim:?}"));
        }
    }
}
