//! The way to the store: the queue of sessions whose newest commit it lacks, one write in flight per session, and what its
//! answers mean. Beside it the queue of those whose row is as it should be and lacks the last use alone.

use crate::config::Durability;
use crate::cx::{Cx, Timer};
use crate::id::SessionKey;
use crate::output::{Live, Loaded, Output, Touch, Write, Written};
use crate::pending::{Stage, Writing};
use crate::plant::Bug;
use crate::record::Record;
use crate::shard::Shard;
use crate::slot::Slot;
use crate::time::Mono;
use core::time::Duration;

/// How long after a failed write it is tried again.
const AGAIN: Duration = Duration::from_millis(200);

impl<L: Live> Shard<L> {
    /// The session has something that the store lacks.
    pub(crate) fn mark_dirty(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        if !cx.config.store {
            return;
        }
        let urgent = cx.config.durability == Durability::Store;
        let now = cx.now;
        let busy = self.writing.contains_key(&key);
        let Some((copy, _)) = self.own(key) else { return };
        let tip = copy.record.tip;
        let stored = copy.stored;
        let Some(own) = copy.own.as_mut() else { return };
        if tip.version == 0 || stored == Some(tip) || own.queued || busy {
            return;
        }
        own.queued = true;
        own.dirty_since = own.dirty_since.min(now);
        if urgent {
            self.dirty.push_front(key);
        } else {
            self.dirty.push_back(key);
        }
        cx.out.store();
    }

    /// Takes up to `most` writes. Each record is cut now: what was committed while it waited is in it.
    pub(crate) fn take_writes(&mut self, cx: &mut Cx<'_>, most: usize, into: &mut Vec<Write>) {
        while into.len() < most {
            let Some(key) = self.dirty.pop_front() else { return };
            if self.writing.contains_key(&key) {
                // Of one session one write at a time: its answer brings the next, and may queue it again.
                if let Some(own) = self.own(key).and_then(|(copy, _)| copy.own.as_mut()) {
                    own.queued = false;
                }
                continue;
            }
            if let Some(e) = self.ends.get_mut(&key) {
                if e.store && e.writing.is_none() {
                    e.writing = Some(e.kind);
                    into.push(Write::End { key, kind: e.kind, keep: e.keep });
                }
                continue;
            }
            let Some((copy, _)) = self.own(key) else { continue };
            let tip = copy.record.tip;
            let expect = copy.stored;
            let Some(own) = copy.own.as_mut().filter(|own| own.queued) else { continue };
            own.queued = false;
            if expect == Some(tip) {
                continue;
            }
            let (used, expires_in) = (copy.record.used, copy.record.over().since(cx.now));
            into.push(Write::Put { key, expect, stamp: tip, record: copy.record.to_bytes(cx.now), expires_in });
            self.writing.insert(key, Writing { stamp: tip, used, stage: Stage::Put });
        }
    }

    /// The store hears of the last use once per step, or `now`. What is still to be written tells it by itself.
    pub(crate) fn touch_row(&mut self, cx: &mut Cx<'_>, key: SessionKey, now: bool) {
        if !cx.config.store || cx.planted(Bug::TouchNeverStored) || self.touching.contains_key(&key) {
            return;
        }
        let Some((copy, _)) = self.own(key) else { return };
        let (record, stored) = (&copy.record, copy.stored);
        let Some(own) = copy.own.as_mut() else { return };
        let due = record.used > own.told_store && (now || record.used.since(own.told_store) >= record.clock().step());
        if due && stored == Some(record.tip) && !own.touch_queued {
            own.touch_queued = true;
            self.touches.push_back(key);
            cx.out.store();
        }
    }

    /// The last uses of all that is owned here, for a store that is to outlive all nodes.
    pub(crate) fn touch_rows(&mut self, cx: &mut Cx<'_>) {
        let mut untold: Vec<SessionKey> = self.untold().collect();
        // The order of a hash map is nobody's business.
        untold.sort_unstable();
        for key in untold {
            self.touch_row(cx, key, true);
        }
    }

    /// Owned sessions whose row is as it should be and does not tell their last use.
    pub(crate) fn untold(&self) -> impl Iterator<Item = SessionKey> + '_ {
        self.table.iter().filter_map(|(key, slot)| match slot {
            Slot::Held(copy) => {
                let own = copy.own.as_ref()?;
                (copy.stored == Some(copy.record.tip) && copy.record.used > own.told_store).then_some(*key)
            }
            Slot::Facade(_) | Slot::Ended(_) => None,
        })
    }

    /// Takes up to `most` touches.
    pub(crate) fn take_touches(&mut self, cx: &mut Cx<'_>, most: usize, into: &mut Vec<Touch>) {
        while into.len() < most {
            let Some(key) = self.touches.pop_front() else { return };
            // A use is told though the session has moved on meanwhile: its next owner does not know what was told.
            let Some(copy) = self.copy(key) else { continue };
            if copy.own.as_mut().is_some_and(|own| !core::mem::take(&mut own.touch_queued)) {
                continue;
            }
            let Some(stamp) = copy.stored.filter(|stored| *stored == copy.record.tip) else { continue };
            let used = copy.record.used;
            into.push(Touch { key, stamp, ago: cx.now.since(used), expires_in: copy.record.over().since(cx.now) });
            self.touching.insert(key, used);
        }
    }

    /// What became of a touch.
    pub(crate) fn handle_touched(&mut self, cx: &mut Cx<'_>, key: SessionKey, written: Written) {
        let Some(used) = self.touching.remove(&key) else { return };
        let (now, writing) = (cx.now, self.writing.contains_key(&key));
        let Some((copy, _)) = self.own(key) else { return };
        let (tip, used_now, step) = (copy.record.tip, copy.record.used, copy.record.clock().step());
        let Some(own) = copy.own.as_mut() else { return };
        match written {
            Written::Applied => {
                own.told_store = own.told_store.max(used);
                self.touch_row(cx, key, false);
            }
            // The row is not what it was thought to be, or it is gone. A write that is under way finds that out.
            Written::Mismatch if copy.stored == Some(tip) && !writing => {
                self.writing.insert(key, Writing { stamp: tip, used: used_now, stage: Stage::Read });
                self.load(cx, key);
            }
            Written::Mismatch => {}
            Written::Ended(kind) => self.learn_end(cx, key, kind, None, None),
            Written::Failed | Written::Unknown => self.set_timer(now + AGAIN.max(step / 2), key, Timer::Touch),
        }
    }

    pub(crate) fn handle_written(&mut self, cx: &mut Cx<'_>, key: SessionKey, written: Written) {
        let Some(writing @ Writing { stamp, used, stage: Stage::Put }) = self.writing.get(&key).copied() else {
            return self.end_stored(cx, key, matches!(written, Written::Applied | Written::Ended(_)));
        };
        self.writing.remove(&key);
        if self.ends.get(&key).is_some_and(|e| e.store) {
            // The marker waited for this answer, whatever it is.
            self.dirty.push_front(key);
            return cx.out.store();
        }
        let now = cx.now;
        let Some((copy, _)) = self.own(key) else { return };
        let Some(own) = copy.own.as_mut() else { return };
        match written {
            Written::Applied => {
                copy.stored = Some(stamp);
                own.told_store = own.told_store.max(used);
                own.dirty_since = if stamp == copy.record.tip { Mono::NEVER } else { now };
                self.mark_dirty(cx, key);
                self.touch_row(cx, key, false);
                self.advance(cx, key);
            }
            // The comparison is made again with what is really there; until that is known nothing is written.
            Written::Mismatch | Written::Unknown => {
                if cx.planted(Bug::CasGreaterWins) {
                    return self.mark_dirty(cx, key);
                }
                self.writing.insert(key, Writing { stamp, used, stage: Stage::Read });
                self.load(cx, key);
            }
            Written::Ended(kind) => self.learn_end(cx, key, kind, None, None),
            Written::Failed => self.write_again(cx, key, writing),
        }
    }

    /// After a while it is tried again; until then it counts as being written.
    fn write_again(&mut self, cx: &Cx<'_>, key: SessionKey, writing: Writing) {
        self.writing.insert(key, Writing { stage: Stage::Again, ..writing });
        self.set_timer(cx.now + AGAIN, key, Timer::Store);
    }

    pub(crate) fn store_due(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        if self.writing.get(&key).is_none_or(|w| w.stage != Stage::Again) {
            return;
        }
        self.writing.remove(&key);
        if self.ends.get(&key).is_some_and(|e| e.store) {
            self.dirty.push_front(key);
            return cx.out.store();
        }
        self.mark_dirty(cx, key);
    }

    /// The store may have forgotten what it had acknowledged: all that is owned here is compared with what is there, and markers of ends
    /// are written again.
    pub(crate) fn store_forgot(&mut self, cx: &mut Cx<'_>) {
        let (mut owned, mut ended) = (Vec::new(), Vec::new());
        for (key, slot) in &mut self.table {
            match slot {
                Slot::Held(copy) => {
                    copy.stored = None;
                    // One that is queued, or on its way, finds out by itself.
                    if copy.own.as_ref().is_some_and(|own| !own.queued) && copy.record.tip.version > 0 {
                        owned.push((*key, Writing { stamp: copy.record.tip, used: copy.record.used, stage: Stage::Read }));
                    }
                }
                Slot::Ended(e) if e.until > cx.now => ended.push(*key),
                Slot::Ended(_) | Slot::Facade(_) => {}
            }
        }
        owned.sort_unstable_by_key(|(key, _)| *key);
        ended.sort_unstable();
        for (key, reading) in owned {
            if !self.writing.contains_key(&key) {
                self.writing.insert(key, reading);
                self.load(cx, key);
            }
        }
        for key in ended {
            self.end_again(cx, key);
        }
    }

    /// Sessions that wait to be written, and since when the first of them does.
    pub(crate) fn unwritten(&self) -> (u64, Mono) {
        let since = |key: &SessionKey| match self.table.get(key) {
            Some(Slot::Held(copy)) => copy.own.as_ref().map(|own| own.dirty_since),
            _ => None,
        };
        let first = self.dirty.front().into_iter().chain(self.writing.keys()).filter_map(since).min().unwrap_or(Mono::NEVER);
        let ends = self.ends.values().filter(|e| e.writing.is_some()).count();
        ((self.dirty.len() + self.writing.len() + ends) as u64, first)
    }

    /// Asks for the row as it is from now on: an answer that is on its way may be from before what the asker must see.
    pub(crate) fn load(&mut self, cx: &mut Cx<'_>, key: SessionKey) {
        match self.loading.get_mut(&key) {
            Some(again) => *again = true,
            None => {
                self.loading.insert(key, false);
                cx.out.push(Output::Load(key));
            }
        }
    }

    pub(crate) fn handle_loaded(&mut self, cx: &mut Cx<'_>, key: SessionKey, loaded: &Loaded) {
        if self.loading.remove(&key) == Some(true) {
            return self.load(cx, key);
        }
        self.round_loaded(cx, key, loaded);
        let Some(writing @ Writing { stage: Stage::Read, .. }) = self.writing.get(&key).copied() else { return };
        self.writing.remove(&key);
        let now = cx.now;
        let Some((copy, _)) = self.own(key) else { return };
        let Some(own) = copy.own.as_mut() else { return };
        match loaded {
            Loaded::Missing => copy.stored = None,
            Loaded::Ended(kind) => return self.learn_end(cx, key, *kind, None, None),
            Loaded::Failed => return self.write_again(cx, key, writing),
            Loaded::Here { record, age, touched } => {
                let Ok(mut row) = Record::from_bytes(record, now, *age, *touched) else {
                    return self.write_again(cx, key, writing);
                };
                copy.stored = Some(row.tip);
                copy.record.note_use_of(&row);
                own.told_store = row.used;
                if !copy.record.lineage.covers(&row.lineage) {
                    // The store's clock may be wrong by days; this node has counted by its own.
                    row.created = copy.record.created;
                    self.merge_in(cx, key, &row);
                }
            }
        }
        self.mark_dirty(cx, key);
        self.touch_row(cx, key, false);
        self.advance(cx, key);
    }
}
