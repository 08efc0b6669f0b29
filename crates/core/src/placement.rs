//! Where a session's copies belong: rendezvous hashing by node name.
//!
//! Every node ranks every member for a session by the same pure function, so that nobody has to be asked and nothing is
//! stored. A member that comes or goes moves only the sessions whose list it enters or leaves. The rank depends on the
//! node's *name*, so that a restarted node keeps its place.

use smallvec::SmallVec;

use crate::id::SessionKey;
use crate::stamp::Life;

/// A member as placement sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// [`name_hash`] of the node's name: decides the rank.
    pub name_hash: u64,
    /// The node's present life: who is meant, and the last resort in ties.
    pub life: Life,
    /// A hash of the zone's name; 0 = none, and each such member is a zone of its own.
    pub zone: u64,
}

/// A session's list, highest rank first. Inline up to 4 members.
pub type List = SmallVec<[Place; 4]>;

/// 64 bits of a node's name, the same on every node: the first 8 bytes of its BLAKE3 hash, big endian.
pub fn name_hash(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_be_bytes(first)
}

/// The rank of a node for a session: higher is nearer to the front of its list.
///
/// All 128 bits of the key and all 64 of the name take part; two rounds of a 64-bit finaliser keep the ranks of one name for
/// different keys, and of different names for one key, independent.
pub fn rank(name_hash: u64, key: SessionKey) -> u64 {
    let bits = u128::from_be_bytes(*key.bytes());
    let once = mix(name_hash ^ (bits >> 64) as u64);
    mix(once.rotate_left(32).wrapping_add(bits as u64))
}

/// The finaliser of SplitMix64 (Stafford's variant 13): every input bit flips every output bit with probability near 1/2.
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The `k` members that a session belongs to, in the order in which they are filled.
///
/// The first is the one of highest rank. Each following one is the highest of a zone that is not in the list yet; when the
/// zones run out, the highest of the rest. Fewer than `k` members give a shorter list. Ties go by name hash, then life, so
/// the order in which `members` come does not matter. One pass over `members`, O(N × k), for small `k`; it allocates nothing
/// up to `k` = 4.
pub fn list(key: SessionKey, k: usize, members: impl IntoIterator<Item = Place>) -> List {
    // The k best of all, and the best of each of the k best zones, both sorted: the second is the answer, the first fills it up.
    let mut all: SmallVec<[(u64, Place); 4]> = SmallVec::new();
    let mut spread: SmallVec<[(u64, Place); 4]> = SmallVec::new();
    for place in members {
        let ranked = (rank(place.name_hash, key), place);
        insert(&mut all, k, ranked);
        let of_zone = spread.iter().enumerate().find(|(_, (_, other))| place.zone != 0 && other.zone == place.zone);
        match of_zone.map(|(i, other)| (i, order(other) >= order(&ranked))) {
            Some((_, true)) => {}
            Some((i, false)) => {
                spread.remove(i);
                insert(&mut spread, k, ranked);
            }
            None => insert(&mut spread, k, ranked),
        }
    }
    let mut list: List = spread.iter().map(|(_, place)| *place).collect();
    for (_, place) in all {
        if list.len() >= k {
            break;
        }
        if !list.contains(&place) {
            list.push(place);
        }
    }
    list
}

fn order((rank, place): &(u64, Place)) -> (u64, u64, Life) {
    (*rank, place.name_hash, place.life)
}

/// Keeps `best` sorted, greatest first, and at most `k` long.
fn insert(best: &mut SmallVec<[(u64, Place); 4]>, k: usize, ranked: (u64, Place)) {
    let at = best.iter().position(|other| order(other) < order(&ranked)).unwrap_or(best.len());
    if at < k {
        best.truncate(k.saturating_sub(1));
        best.insert(at, ranked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(i: u64) -> SessionKey {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&blake3::hash(&i.to_be_bytes()).as_bytes()[..16]);
        SessionKey::from_bytes(bytes)
    }

    fn members(n: u64, zones: u64) -> Vec<Place> {
        (0..n)
            .map(|i| Place {
                name_hash: name_hash(&format!("node-{i}")),
                life: Life::new(i),
                zone: if zones == 0 { 0 } else { 1 + i % zones },
            })
            .collect()
    }

    #[test]
    fn a_rank_is_the_same_in_every_build_and_release() {
        assert_eq!(name_hash("node-1"), 16338322105548409057);
        let key = SessionKey::from_bytes(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes());
        // Computed by other means: the mixer's first output for seed 0 is that of SplitMix64.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(rank(0x0123_4567_89ab_cdef, key), 0x1983_27ce_3879_3f8a);
    }

    #[test]
    fn every_member_gets_its_share_of_the_sessions() {
        for n in [2, 3, 5, 9] {
            let members = members(n, 0);
            let mut counts = vec![[0_u64; 3]; n as usize];
            for i in 0..100_000 {
                for (at, place) in list(key(i), 2, members.iter().copied()).iter().enumerate() {
                    counts[place.life.bits() as usize][at] += 1;
                }
            }
            let share = 100_000.0 / n as f64;
            for at in 0..2 {
                for count in &counts {
                    let off = (count[at] as f64 - share).abs() / share;
                    assert!(off < 0.03, "{n} members, place {at}: {} of {share}", count[at]);
                }
            }
        }
    }

    #[test]
    fn consecutive_keys_and_names_that_differ_in_one_bit_are_spread_as_well() {
        let places: Vec<Place> = (0..4).map(|i| Place { name_hash: i, life: Life::new(i), zone: 0 }).collect();
        let mut counts = [0_u32; 4];
        for i in 0..100_000_u128 {
            counts[list(SessionKey::from_bytes(i.to_be_bytes()), 1, places.iter().copied())[0].life.bits() as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (24_000..26_000).contains(&count)), "{counts:?}");
    }

    #[test]
    fn without_zones_the_list_is_the_sorted_ranking() {
        let members = members(7, 0);
        for i in 0..1000 {
            let mut sorted = members.clone();
            sorted.sort_by_key(|place| std::cmp::Reverse(rank(place.name_hash, key(i))));
            assert_eq!(list(key(i), 3, members.iter().copied()).to_vec(), sorted[..3]);
        }
    }

    /// The definition, word by word, by repeated search.
    fn slow(key: SessionKey, k: usize, members: &[Place]) -> Vec<Place> {
        let mut list: Vec<Place> = Vec::new();
        while list.len() < k {
            let free = members.iter().filter(|place| !list.contains(place));
            let fresh = free.clone().filter(|place| place.zone == 0 || list.iter().all(|other| other.zone != place.zone));
            let best = |place: &&Place| (rank(place.name_hash, key), place.name_hash, place.life);
            match fresh.max_by_key(best).or_else(|| free.max_by_key(best)) {
                Some(place) => list.push(*place),
                None => break,
            }
        }
        list
    }

    proptest! {
        #[test]
        fn the_list_is_what_its_definition_says(seed: u64, n in 0_u64..20, zones in 0_u64..5, k in 0_usize..7) {
            let members = members(n, zones);
            prop_assert_eq!(list(key(seed), k, members.iter().copied()).to_vec(), slow(key(seed), k, &members));
        }

        #[test]
        fn the_order_of_members_does_not_matter(seed: u64, n in 0_u64..20, zones in 0_u64..5, k in 0_usize..7, turn: prop::sample::Index) {
            let mut members = members(n, zones);
            let before = list(key(seed), k, members.iter().copied());
            if !members.is_empty() {
                let at = turn.index(members.len());
                members.rotate_left(at);
                members[at..].reverse();
            }
            prop_assert_eq!(list(key(seed), k, members), before);
        }

        #[test]
        fn a_member_that_goes_changes_only_lists_that_held_it(seed: u64, n in 1_u64..12, zones in 0_u64..4, k in 1_usize..5, gone: prop::sample::Index) {
            let members = members(n, zones);
            let gone = members[gone.index(members.len())];
            for i in 0..50 {
                let key = key(seed.wrapping_add(i));
                let before = list(key, k, members.iter().copied());
                let after = list(key, k, members.iter().copied().filter(|place| *place != gone));
                if !before.contains(&gone) {
                    prop_assert_eq!(before, after);
                }
            }
        }

        #[test]
        fn a_restarted_node_keeps_its_place(seed: u64, n in 1_u64..12, zones in 0_u64..4, reborn: prop::sample::Index) {
            let members = members(n, zones);
            let mut later = members.clone();
            later[reborn.index(members.len())].life = Life::new(u64::MAX);
            let names = |list: List| list.iter().map(|place| place.name_hash).collect::<Vec<_>>();
            prop_assert_eq!(names(list(key(seed), 3, members)), names(list(key(seed), 3, later)));
        }

        #[test]
        fn a_list_has_as_many_zones_as_it_can(seed: u64, n in 1_u64..20, zones in 1_u64..6, k in 1_usize..5) {
            let members = members(n, zones);
            let mut picked: Vec<u64> = list(key(seed), k, members).iter().map(|place| place.zone).collect();
            let len = picked.len();
            picked.sort_unstable();
            picked.dedup();
            prop_assert_eq!(picked.len(), len.min(zones as usize));
        }
    }
}
