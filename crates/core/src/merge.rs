//! Two branches of a session become one: attribute by attribute, by dots and lineage.

use crate::config::Checked;
use crate::plant::Bug;
use crate::record::{Attribute, Record};
use std::sync::Arc;

/// The result of [`merge`].
#[derive(Clone, Debug)]
pub struct Merged {
    /// All that both include. Its last commit is that of the greater stamp until the owner commits the merge.
    pub record: Record,
    /// Attributes that both branches had changed, and whose value of the lesser stamp is gone.
    pub discarded: Vec<Attribute>,
}

/// Merges two copies. The same result on every node and in either order.
///
/// A value that is absent on one side stays away if that side had seen it (it was removed there), and stays otherwise.
/// Where both sides hold different values, the one that had not seen the other loses; if neither had, the greater stamp wins.
/// No dot is made: merging again changes nothing.
///
/// Commutative and idempotent always; associative for branches that had not heard of each other. Where one branch had taken over
/// another's value that the other removed since, the order of three merges can matter; the owner merges once and commits the result.
pub fn merge(a: &Record, b: &Record) -> Merged {
    let mut out = if a.tip >= b.tip { a.clone() } else { b.clone() };
    let (mut kept, mut discarded) = (Vec::with_capacity(a.attributes().len()), Vec::new());
    for (mine, other, theirs) in names(a, b) {
        match (mine, other) {
            (Some(x), Some(y)) if x.dot == y.dot => kept.push(x.clone()),
            (Some(x), Some(y)) => {
                let (x_old, y_old) = (b.lineage.includes(x.dot), a.lineage.includes(y.dot));
                let (win, lose, silent) = match (x_old, y_old) {
                    (true, false) => (y, x, true),
                    (false, true) => (x, y, true),
                    _ if x.dot > y.dot => (x, y, false),
                    _ => (y, x, false),
                };
                kept.push(win.clone());
                if !silent {
                    discarded.push(lose.clone());
                }
            }
            (Some(x), None) => {
                let (has, lacks) = if theirs { (b, a) } else { (a, b) };
                if !lacks.lineage.removed(x.dot, &has.lineage) {
                    kept.push(x.clone());
                }
            }
            (None, _) => {}
        }
    }
    out.lineage.union(if a.tip >= b.tip { &b.lineage } else { &a.lineage });
    let first = a.is_first() && b.is_first();
    out.created = a.created.min(b.created);
    out.used = if first { out.created } else { a.used.max(b.used) };
    let mut gaps: Vec<_> = a.gaps.iter().chain(&b.gaps).copied().filter(|s| !out.lineage.includes(*s)).collect();
    gaps.sort_unstable();
    gaps.dedup();
    let excess = gaps.len().saturating_sub(crate::limits::GAPS_MAX);
    out.gaps = gaps.split_off(excess);
    out.replace(kept);
    Merged { record: out, discarded }
}

/// Each name once: (the value of `a`, that of `b`, false), or for a name that only `b` has (its value, none, true).
fn names<'a>(a: &'a Record, b: &'a Record) -> impl Iterator<Item = (Option<&'a Attribute>, Option<&'a Attribute>, bool)> {
    let only_b = b.attributes().iter().filter(move |x| a.get(&x.name).is_none()).map(|x| (Some(x), None, true));
    a.attributes().iter().map(move |x| (Some(x), b.get(&x.name), false)).chain(only_b)
}

/// The candidates that no other covers.
pub(crate) fn maximal<'a>(candidates: &[&'a Record], epoch_first: bool) -> Vec<&'a Record> {
    let mut out: Vec<&Record> = Vec::new();
    if epoch_first {
        return candidates.iter().max_by_key(|r| r.tip).into_iter().copied().collect();
    }
    for (i, r) in candidates.iter().enumerate() {
        let covered = candidates.iter().enumerate().any(|(j, other)| {
            // Of two equal ones the first stays.
            i != j && other.lineage.covers(&r.lineage) && (!r.lineage.covers(&other.lineage) || j < i)
        });
        if !covered {
            out.push(r);
        }
    }
    out.sort_by_key(|r| r.tip);
    out
}

/// Merges branches into one record, and names what was discarded: values that both sides had changed, and those for which there is no
/// room.
pub(crate) fn combine(maximal: &[&Record], config: &Checked) -> Option<(Record, Vec<Arc<str>>)> {
    let keep_removed = config.planted(Bug::MergeKeepsRemoved);
    let (first, rest) = maximal.split_first()?;
    let (mut record, mut discarded) = ((*first).clone(), Vec::new());
    for other in rest {
        let merged = merge(&record, other);
        let mut all = merged.record.attributes().to_vec();
        if keep_removed {
            let lost = |a: &&crate::record::Attribute| merged.record.get(&a.name).is_none();
            all.extend(record.attributes().iter().filter(lost).cloned());
            all.extend(other.attributes().iter().filter(lost).filter(|a| record.get(&a.name).is_none()).cloned());
        }
        discarded.extend(merged.discarded.iter().map(|a| a.name.clone()));
        record = merged.record;
        if keep_removed {
            record.replace(all);
        }
    }
    if !rest.is_empty() && !config.planted(Bug::MergeOfAnySize) {
        // What a branch held before under another node's limit it may go on to hold.
        let most = maximal.iter().map(|r| r.bytes()).fold(config.record_max, usize::max);
        discarded.extend(record.shed(most));
    }
    Some((record, discarded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::record::{Base, Change};
    use crate::stamp::{Claim, Life, Stamp};
    use crate::time::Mono;
    use proptest::prelude::*;

    fn set(name: &str, value: u32) -> Change {
        Change { name: name.into(), base: Base::Absent, value: Some(value.to_be_bytes().to_vec().into()) }
    }

    fn unset(name: &str) -> Change {
        Change { name: name.into(), base: Base::Absent, value: None }
    }

    fn at(epoch: u32, life: u64, version: u32) -> Stamp {
        Claim { epoch, life: Life::new(life) }.at(version)
    }

    fn content(r: &Record) -> Vec<Attribute> {
        r.attributes().to_vec()
    }

    #[test]
    fn a_removed_attribute_stays_removed_and_an_untouched_one_stays() {
        let mut base = Record::new(Mono::ZERO, Limits::default());
        base.commit(at(1, 1, 1), &[set("cart", 1), set("lang", 2)]);
        let (mut a, mut b) = (base.clone(), base);
        a.commit(at(1, 1, 2), &[unset("cart")]);
        b.commit(at(2, 2, 1), &[set("n", 3)]);
        let merged = merge(&a, &b);
        assert!(merged.record.get("cart").is_none() && merged.record.get("lang").is_some() && merged.record.get("n").is_some());
        assert!(merged.discarded.is_empty());
    }

    #[test]
    fn of_two_concurrent_values_the_greater_stamp_wins_and_the_other_is_named() {
        let mut base = Record::new(Mono::ZERO, Limits::default());
        base.commit(at(1, 1, 1), &[set("n", 0)]);
        let (mut a, mut b) = (base.clone(), base);
        a.commit(at(1, 1, 2), &[set("n", 1)]);
        b.commit(at(2, 2, 1), &[set("n", 2)]);
        let merged = merge(&a, &b);
        assert_eq!(merged.record.get("n").unwrap().dot, at(2, 2, 1));
        assert_eq!(merged.discarded[0].dot, at(1, 1, 2));
    }

    /// Three replicas that commit alone and hear of each other in any order.
    #[derive(Clone, Debug)]
    enum Step {
        Set(usize, u8),
        Unset(usize, u8),
        Hear(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3usize, 0..3u8).prop_map(|(r, n)| Step::Set(r, n)),
            (0..3usize, 0..3u8).prop_map(|(r, n)| Step::Unset(r, n)),
            (0..3usize, 0..3usize).prop_map(|(r, o)| Step::Hear(r, o)),
        ]
    }

    fn play(steps: &[Step]) -> [Record; 3] {
        let mut base = Record::new(Mono::ZERO, Limits::default());
        base.commit(at(1, 9, 1), &[set("0", 0), set("1", 0)]);
        let mut replicas = [base.clone(), base.clone(), base];
        let mut versions = [0; 3];
        let mut stamp = |r: usize| {
            versions[r] += 1;
            at(2, r as u64, versions[r])
        };
        for (i, s) in steps.iter().enumerate() {
            match s {
                Step::Set(r, n) => replicas[*r].commit(stamp(*r), &[set(&n.to_string(), i as u32)]),
                Step::Unset(r, n) => replicas[*r].commit(stamp(*r), &[unset(&n.to_string())]),
                Step::Hear(r, o) => {
                    if !replicas[*r].lineage.covers(&replicas[*o].lineage) {
                        let merged = merge(&replicas[*r], &replicas[*o]).record;
                        replicas[*r] = merged;
                        let own = stamp(*r);
                        replicas[*r].commit(own, &[]);
                    }
                }
            }
        }
        replicas
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn merging_is_commutative_and_idempotent(steps in proptest::collection::vec(step(), 0..24)) {
            let [a, b, _] = play(&steps);
            let ab = merge(&a, &b).record;
            prop_assert_eq!(content(&ab), content(&merge(&b, &a).record));
            prop_assert_eq!(&ab.lineage, &merge(&b, &a).record.lineage);
            prop_assert_eq!(content(&merge(&ab, &a).record), content(&ab));
            prop_assert_eq!(content(&merge(&a, &a).record), content(&a));
        }

        #[test]
        fn merging_separate_branches_is_associative(steps in proptest::collection::vec(step(), 0..24)) {
            let alone: Vec<_> = steps.into_iter().filter(|s| !matches!(s, Step::Hear(..))).collect();
            let [a, b, c] = play(&alone);
            let left = merge(&merge(&a, &b).record, &c).record;
            prop_assert_eq!(content(&left), content(&merge(&a, &merge(&b, &c).record).record));
        }
    }
}
