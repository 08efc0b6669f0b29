//! Which commits a copy includes: the test behind every "newer".

use crate::limits::LINEAGE_MAX;
use crate::stamp::{Claim, Stamp};
use smallvec::SmallVec;

/// Per claim, the highest commit that a record includes, and a floor under which every claim that is not listed counts as
/// included. Copy X is newer than Y if it covers Y; if neither covers the other, they are branches of a conflict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    floor: u32,
    /// Sorted by claim; versions are at least 1.
    listed: SmallVec<[Stamp; 2]>,
}

impl Lineage {
    /// The lineage with these parts; `listed` in any order, version 0 ignored.
    pub fn new(floor: u32, listed: impl IntoIterator<Item = Stamp>) -> Lineage {
        let mut lineage = Lineage { floor, listed: SmallVec::new() };
        for stamp in listed {
            lineage.include(stamp);
        }
        lineage
    }

    /// Claims of this epoch or less that are not listed count as included.
    pub fn floor(&self) -> u32 {
        self.floor
    }

    /// The highest commit of each listed claim, in the order of claims.
    pub fn listed(&self) -> &[Stamp] {
        &self.listed
    }

    /// The listed commit of `claim`.
    pub fn of(&self, claim: Claim) -> Option<Stamp> {
        self.listed.binary_search_by_key(&claim, |s| s.claim).ok().and_then(|at| self.listed.get(at).copied())
    }

    /// Whether a record with this lineage has seen that commit. Version 0 is no commit: it is included everywhere.
    pub fn includes(&self, stamp: Stamp) -> bool {
        match self.of(stamp.claim) {
            Some(mine) => mine.version >= stamp.version,
            None => stamp.version == 0 || stamp.claim.epoch <= self.floor,
        }
    }

    /// Whether a record with this lineage has seen all that one with `other` has.
    ///
    /// The floor of `other` needs no test: a commit includes all that its record included when it was made, and the last
    /// commit of a record is always listed ([`fold`](Lineage::fold)).
    pub fn covers(&self, other: &Lineage) -> bool {
        other.listed.iter().all(|s| self.includes(*s))
    }

    /// Adds a commit.
    pub fn include(&mut self, stamp: Stamp) {
        if stamp.version == 0 {
            return;
        }
        match self.listed.binary_search_by_key(&stamp.claim, |s| s.claim) {
            Ok(at) => {
                if let Some(mine) = self.listed.get_mut(at) {
                    mine.version = mine.version.max(stamp.version);
                }
            }
            Err(at) => self.listed.insert(at, stamp),
        }
    }

    /// Adds all that `other` includes; the greater floor stays.
    pub fn union(&mut self, other: &Lineage) {
        for stamp in &other.listed {
            self.include(*stamp);
        }
        self.floor = self.floor.max(other.floor);
    }

    /// Whether a value whose commit is `dot`, present in a record with lineage `theirs` and absent here, was removed here.
    ///
    /// A claim that `theirs` lists is judged by what is listed here alone: the floor must not delete values of a branch
    /// that it never saw.
    pub fn removed(&self, dot: Stamp, theirs: &Lineage) -> bool {
        match self.of(dot.claim) {
            Some(mine) => mine.version >= dot.version,
            None => dot.claim.epoch <= self.floor && theirs.of(dot.claim).is_none(),
        }
    }

    /// Takes the oldest claims that are not `tip` out of the list until at most `most` are left.
    pub fn fold(&mut self, most: usize, tip: Claim) {
        let most = most.clamp(1, LINEAGE_MAX);
        while self.listed.len() > most {
            let Some(at) = self.listed.iter().position(|s| s.claim != tip) else { return };
            self.floor = self.floor.max(self.listed.remove(at).claim.epoch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp::Life;

    fn s(epoch: u32, life: u64, version: u32) -> Stamp {
        Claim { epoch, life: Life::new(life) }.at(version)
    }

    #[test]
    fn a_greater_epoch_does_not_make_a_copy_newer() {
        let a = Lineage::new(0, [s(1, 1, 5)]);
        let b = Lineage::new(0, [s(1, 1, 4), s(2, 2, 1)]);
        assert!(!a.covers(&b) && !b.covers(&a));
        let mut both = a.clone();
        both.union(&b);
        assert!(both.covers(&a) && both.covers(&b));
    }

    #[test]
    fn a_folded_claim_still_counts_as_included() {
        let mut a = Lineage::new(0, [s(1, 1, 5), s(2, 2, 1), s(3, 1, 2)]);
        let older = a.clone();
        a.fold(1, s(3, 1, 2).claim);
        assert_eq!((a.floor(), a.listed()), (2, &[s(3, 1, 2)][..]));
        assert!(a.includes(s(1, 1, 5)) && a.covers(&older) && older.covers(&a));
    }

    #[test]
    fn the_floor_deletes_nothing_of_a_branch_it_never_saw() {
        let mut a = Lineage::new(0, [s(1, 1, 5), s(3, 1, 2)]);
        a.fold(1, s(3, 1, 2).claim);
        let branch = Lineage::new(0, [s(1, 1, 7)]);
        assert!(!a.removed(s(1, 1, 7), &branch));
        assert!(Lineage::new(0, [s(1, 1, 8)]).removed(s(1, 1, 7), &branch));
    }
}
