//! Maps: by key, and of what is remembered for a while.

use crate::id::SessionKey;
use crate::time::Mono;
use core::time::Duration;
use hashbrown::{HashMap, HashSet};
use std::collections::VecDeque;

/// Maps with a fixed hasher: keys are hashes already, and one seed must replay to the same bytes.
pub(crate) type Map<K, V> = HashMap<K, V, foldhash::fast::FixedState>;
pub(crate) type Set<K> = HashSet<K, foldhash::fast::FixedState>;

/// What is remembered of sessions, so much for so long: beyond either the oldest goes.
#[derive(Debug)]
pub(crate) struct Recent<V> {
    map: Map<SessionKey, (V, Mono)>,
    /// Oldest first. What was noted again since stands in here twice.
    order: VecDeque<(SessionKey, Mono)>,
}

impl<V> Default for Recent<V> {
    fn default() -> Recent<V> {
        Recent { map: Map::default(), order: VecDeque::new() }
    }
}

impl<V: Default> Recent<V> {
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// With when it was noted.
    pub(crate) fn get(&self, key: SessionKey) -> Option<&(V, Mono)> {
        self.map.get(&key)
    }

    pub(crate) fn get_mut(&mut self, key: SessionKey) -> Option<&mut V> {
        self.map.get_mut(&key).map(|(value, _)| value)
    }

    pub(crate) fn remove(&mut self, key: SessionKey) -> Option<(V, Mono)> {
        self.map.remove(&key)
    }

    /// Notes something now, and makes room for it: how many went before their time.
    pub(crate) fn note(&mut self, key: SessionKey, now: Mono, keep: Duration, most: usize, note: impl FnOnce(&mut V)) -> u64 {
        let (value, at) = self.map.entry(key).or_default();
        note(value);
        *at = now;
        self.order.push_back((key, now));
        let mut forgotten = 0;
        while let Some(&(oldest, at)) = self.order.front() {
            let old = now.since(at) > keep;
            if !old && self.order.len() <= most {
                break;
            }
            self.order.pop_front();
            if self.map.get(&oldest).is_some_and(|(_, noted)| *noted == at) {
                self.map.remove(&oldest);
                forgotten += u64::from(!old);
            }
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_and_what_was_noted_again_stays() {
        let (key, at) = (|i: u8| SessionKey::from_bytes([i; 16]), |s: u64| Mono::ZERO + Duration::from_secs(s));
        let mut recent = Recent::<u32>::default();
        let mut note = |i: u8, s: u64| recent.note(key(i), at(s), Duration::from_secs(10), 3, |n| *n += 1);
        assert_eq!([note(1, 0), note(2, 1), note(1, 2), note(3, 3)], [0, 0, 0, 0], "what is noted again is in here once");
        assert_eq!(note(4, 4), 1, "2 made room");
        assert_eq!(note(4, 13), 0, "1 has had its time");
        assert_eq!((recent.len(), recent.get(key(4)), recent.get(key(1))), (2, Some(&(2, at(13))), None));
    }
}
