//! One part of the session table. It finds a session, and does what takes a look at all of them.

use crate::config::Checked;
use crate::copy::Copy;
use crate::cx::{Call, Cx, Queues};
use crate::id::SessionKey;
use crate::limits::ENDED_MAX;
use crate::maps::Map;
use crate::output::{Info, Live, Over};
use crate::owner::Owner;
use crate::plant::Bug;
use crate::session::{Seen, Session, Slot, State};
use crate::time::Mono;
use crate::view::View;
use core::sync::atomic::Ordering;
use hashbrown::hash_map::Entry;
use rand::SeedableRng;
use rand_pcg::Pcg32;
use std::collections::VecDeque;
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct Shard<L> {
    pub(crate) view: Arc<View>,
    pub(crate) table: Map<SessionKey, Slot<L>>,
    pub(crate) queues: Queues,
    /// Since when there may be copies that no end of a session reaches, because members are missing.
    pub(crate) cut_since: Option<Mono>,
    /// Sessions that are to be visited since the membership changed.
    pub(crate) walk: VecDeque<SessionKey>,
    /// The view under which the last walk was finished.
    pub(crate) walked: Arc<View>,
}

impl<L: Live> Shard<L> {
    pub(crate) fn new(view: Arc<View>, seed: u64) -> Shard<L> {
        Shard {
            walked: view.clone(),
            view,
            table: Map::default(),
            queues: Queues::new(Pcg32::seed_from_u64(seed)),
            cut_since: None,
            walk: VecDeque::new(),
        }
    }

    /// Finds a session, whatever this node has of it, for all that is done to it in one go: this is the one look-up.
    #[inline]
    pub(crate) fn with<R>(&mut self, call: &mut Call<'_>, key: SessionKey, f: impl FnOnce(&mut Session<L>, &mut Cx<'_>) -> R) -> R {
        let mut cx = Cx {
            now: call.now,
            config: call.config,
            out: call.out,
            shared: call.shared,
            key,
            view: &self.view,
            walked: &self.walked,
            queues: &mut self.queues,
        };
        match self.table.entry(key) {
            Entry::Occupied(mut entry) => {
                let (result, session) = match entry.get_mut() {
                    Slot::Here(session) => {
                        let result = f(session, &mut cx);
                        if session.stays_here() {
                            return result;
                        }
                        (result, entry.get_mut().take())
                    }
                    slot @ (Slot::Facade(_) | Slot::Ended(_)) => {
                        let mut session = slot.take();
                        (f(&mut session, &mut cx), session)
                    }
                };
                match session.into_slot() {
                    Some(slot) => *entry.get_mut() = slot,
                    None => _ = entry.remove(),
                }
                result
            }
            Entry::Vacant(entry) => {
                let mut session = Session::new(State::Nothing);
                let result = f(&mut session, &mut cx);
                if let Some(slot) = session.into_slot() {
                    entry.insert(slot);
                }
                result
            }
        }
    }

    /// Does what sessions have left to do that takes more than one of them. Nearly always there is nothing.
    #[inline]
    pub(crate) fn settle(&mut self, call: &mut Call<'_>) {
        if self.queues.crowded || !self.queues.inviting.is_empty() {
            self.settle_now(call);
        }
    }

    #[cold]
    fn settle_now(&mut self, call: &mut Call<'_>) {
        self.invite_more(call);
        if self.queues.crowded {
            self.make_room(call);
        }
    }

    /// Makes room for more markers. Of those that all have confirmed the eldest go, some at a time, for it takes a look at all.
    fn make_room(&mut self, call: &mut Call<'_>) {
        let confirmed = |(key, slot): (&SessionKey, &Slot<L>)| match slot {
            Slot::Ended(e) if e.telling.is_none() => Some((e.since, *key)),
            Slot::Ended(_) | Slot::Facade(_) | Slot::Here(_) => None,
        };
        let mut eldest: Vec<(Mono, SessionKey)> = self.table.iter().filter_map(confirmed).collect();
        eldest.sort_unstable();
        eldest.truncate((call.config.of_shard(ENDED_MAX) / 16).max(1));
        for (_, key) in &eldest {
            self.table.remove(key);
        }
        self.queues.marked = self.queues.marked.saturating_sub(eldest.len());
        self.queues.crowded = false;
        call.shared.forgotten.fetch_add(eldest.len() as u64, Ordering::Relaxed);
    }

    // ---- looking --------------------------------------------------------------------------------------------------------

    pub(crate) fn copy(&self, key: SessionKey) -> Option<&Copy> {
        self.table.get(&key)?.copy()
    }

    pub(crate) fn owner(&self, key: SessionKey) -> Option<(&Owner<L>, &Copy)> {
        self.table.get(&key)?.owner()
    }

    pub(crate) fn info(&self, key: SessionKey, config: &Checked) -> Option<Info> {
        match self.table.get(&key)?.seen() {
            Seen::Nothing | Seen::Ended(_) => None,
            Seen::Facade(f) => Some(f.info()),
            Seen::Held(copy) => Some(copy.info::<L>(None, config)),
            Seen::Owned(copy, own) => Some(copy.info(Some(own), config)),
        }
    }

    /// How the session is over, if it is known here to be. It asks nobody.
    pub(crate) fn over(&self, key: SessionKey) -> Option<Over> {
        match self.table.get(&key)?.seen() {
            Seen::Ended(ended) => Some(Over::Ended(ended.kind, ended.next)),
            Seen::Facade(facade) if facade.over.is_some() => Some(Over::Expired),
            Seen::Nothing | Seen::Facade(_) | Seen::Held(_) | Seen::Owned(..) => None,
        }
    }

    /// What is not known to be safe elsewhere: copies, and markers of ends of which nobody who is to know and stays has heard, as far as
    /// this node can say. The second number counts those that came when this node was leaving already.
    pub(crate) fn left(&self, config: &Checked) -> (u64, u64) {
        let unsafe_copy = |c: &Copy, owned: bool| match config.planted(Bug::DrainOwnedOnly) {
            true => owned,
            false => c.record.tip.version > 0 && !(config.store && c.stored == Some(c.record.tip)),
        };
        let (mut left, mut newcomers) = (0, 0);
        for (key, slot) in &self.table {
            let seen = slot.seen();
            let owned = matches!(seen, Seen::Owned(..));
            match seen {
                Seen::Held(copy) | Seen::Owned(copy, _) if unsafe_copy(copy, owned) => {
                    (left, newcomers) = (left + 1, newcomers + u64::from(copy.newcomer));
                }
                Seen::Ended(ended) => {
                    let list = ended.telling.as_ref().map(|e| (e, self.view.list(*key)));
                    left += u64::from(list.is_some_and(|(e, list)| !list.is_empty() && list.iter().all(|life| e.waiting.contains(life))));
                }
                Seen::Nothing | Seen::Facade(_) | Seen::Held(_) | Seen::Owned(..) => {}
            }
        }
        let unvisited = self.walk.iter().filter(|key| self.table.get(*key).is_some_and(|slot| matches!(slot.seen(), Seen::Ended(_))));
        (left + unvisited.count() as u64, newcomers)
    }

    /// Sessions that wait to be written, and since when the first of them does.
    pub(crate) fn unwritten(&self) -> (u64, Mono) {
        let since = |key: &SessionKey| Some(self.owner(*key)?.0.dirty_since);
        let Queues { dirty, writing, .. } = &self.queues;
        let first = dirty.front().into_iter().chain(writing).filter_map(since).min().unwrap_or(Mono::NEVER);
        ((dirty.len() + writing.len()) as u64, first)
    }

    /// Owned sessions whose row is as it should be and does not tell their last use.
    pub(crate) fn untold(&self) -> impl Iterator<Item = SessionKey> + '_ {
        self.table.iter().filter_map(|(key, slot)| {
            let (own, copy) = slot.owner()?;
            (copy.stored == Some(copy.record.tip) && copy.record.used > own.told_store).then_some(*key)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::copy::{Ended, Facade};
    use crate::cx::Shared;
    use crate::output::{Outputs, Ticket};
    use crate::pending::Ending;
    use crate::stamp::{Claim, Life, Stamp};
    use crate::view::Lives;
    use crate::wire::{EndKind, Why};
    use core::time::Duration;

    const KEY: SessionKey = SessionKey::from_bytes([7; 16]);

    /// A shard of a node that is alone.
    fn shard() -> Shard<()> {
        Shard::new(Arc::new(View::alone(Life::new(1))), 1)
    }

    fn call<R>(shard: &mut Shard<()>, now: u64, f: impl FnOnce(&mut Shard<()>, &mut Call<'_>) -> R) -> R {
        let config = Config { store: true, ..Config::default() }.check().unwrap();
        let (mut out, shared) = (Outputs::new(), Shared::default());
        f(shard, &mut Call { now: Mono::ZERO + Duration::from_secs(now), config: &config, out: &mut out, shared: &shared })
    }

    fn facade() -> State<()> {
        let claim = Claim { epoch: 1, life: Life::new(2) };
        State::Facade(Facade { claim, tip: Stamp { claim, version: 1 }, expires: Mono::ZERO, over: None })
    }

    #[test]
    fn what_nobody_knows_has_no_place_and_a_facade_has_a_box_only_while_something_is_under_way() {
        let mut shard = shard();
        call(&mut shard, 0, |s, call| s.with(call, KEY, |session, cx| session.promise(cx, Claim { epoch: 1, life: Life::new(2) })));
        assert!(shard.table.is_empty(), "a promise alone is remembered elsewhere");
        call(&mut shard, 0, |s, call| s.with(call, KEY, |session, _| session.state = facade()));
        assert!(matches!(shard.table.get(&KEY), Some(Slot::Facade(_))));
        let ask = |session: &mut Session<()>, cx: &mut Cx<'_>| session.request_round(cx, Why::Open, None, Some(Ticket(1)));
        call(&mut shard, 0, |s, call| s.with(call, KEY, ask)).unwrap();
        assert!(matches!(shard.table.get(&KEY), Some(Slot::Here(_))), "its round waits for the row");
        call(&mut shard, 3600, |s, call| s.sweep(call));
        assert!(matches!(shard.table.get(&KEY).map(Slot::seen), Some(Seen::Nothing)), "the round goes on without the facade");
        let loaded = crate::output::Loaded::Missing;
        call(&mut shard, 3600, |s, call| s.with(call, KEY, |session, cx| session.handle_loaded(cx, &loaded)));
        assert!(shard.table.is_empty() && shard.queues.rounds.is_empty());
    }

    #[test]
    fn a_marker_that_not_all_have_confirmed_stays_when_its_time_is_over() {
        let mut shard = shard();
        let marker = |store| {
            let keep = Duration::ZERO;
            let telling =
                Ending { keep, waiting: Lives::new(), confirmed: Lives::new(), store, writing: false, follows: false, ticket: None };
            let (since, kind) = (Mono::ZERO, EndKind::Invalidated);
            State::Ended(Ended { kind, next: None, since, until: since, telling: store.then(|| Box::new(telling)) })
        };
        for (store, stays) in [(true, true), (false, false)] {
            call(&mut shard, 0, |s, call| s.with(call, KEY, |session, _| session.state = marker(store)));
            call(&mut shard, 3600, |s, call| s.sweep(call));
            assert_eq!(shard.table.contains_key(&KEY), stays);
        }
    }
}
