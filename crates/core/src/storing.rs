//! The way to the store: the queue of sessions whose newest commit it lacks, one write in flight per session, and what its
//! answers mean. Beside it the queue of those whose row is as it should be and lacks the last use alone.

use crate::config::Durability;
use crate::copy::Copy;
use crate::cx::{Call, Cx, Timer};
use crate::id::SessionKey;
use crate::output::{Live, Loaded, Output, Touch, Write, Written};
use crate::pending::{Stage, Writing};
use crate::plant::Bug;
use crate::record::Record;
use crate::session::{Seen, Session, Slot};
use crate::shard::Shard;
use crate::time::Mono;
use core::time::Duration;

/// How long after a failed write it is tried again.
const AGAIN: Duration = Duration::from_millis(200);

impl<L: Live> Session<L> {
    /// The session has something that the store lacks.
    pub(crate) fn mark_dirty(&mut self, cx: &mut Cx<'_>) {
        if !cx.config.store {
            return;
        }
        let urgent = cx.config.durability == Durability::Store;
        let busy = self.writing().is_some();
        let Some((own, Copy { record, stored, .. })) = self.owned() else { return };
        if record.tip.version == 0 || *stored == Some(record.tip) || own.queued || busy {
            return;
        }
        own.queued = true;
        own.dirty_since = own.dirty_since.min(cx.now);
        if urgent {
            cx.queues.dirty.push_front(cx.key);
        } else {
            cx.queues.dirty.push_back(cx.key);
        }
        cx.out.store();
    }

    /// Its turn in the queue of writes. The record is cut now: what was committed while it waited is in it.
    fn take_write(&mut self, cx: &mut Cx<'_>) -> Option<Write> {
        let busy = self.writing().is_some();
        if let Some(ended) = self.ended_mut() {
            let e = ended.telling.as_mut().filter(|e| e.store && !e.writing && !busy)?;
            e.writing = true;
            let next = ended.next.filter(|_| !cx.planted(Bug::NextNotStored));
            let write = Write::End { key: cx.key, kind: ended.kind, next, keep: e.keep };
            self.note_writing(cx);
            return Some(write);
        }
        let (own, Copy { record, stored, .. }) = self.owned()?;
        // Of one session one write at a time: its answer brings the next, and may queue it again.
        if !core::mem::take(&mut own.queued) || busy || *stored == Some(record.tip) {
            return None;
        }
        let (stamp, used, expires_in) = (record.tip, record.used, record.over().since(cx.now));
        let write = Write::Put { key: cx.key, expect: *stored, stamp, record: record.to_bytes(cx.now), expires_in };
        self.set_writing(cx, Some(Writing { stamp, used, stage: Stage::Put }));
        Some(write)
    }

    fn set_writing(&mut self, cx: &mut Cx<'_>, writing: Option<Writing>) {
        self.under_way().writing = writing;
        self.note_writing(cx);
    }

    /// Something has got on its way to the store, or is no longer.
    pub(crate) fn note_writing(&mut self, cx: &mut Cx<'_>) {
        if self.writing().is_some() || self.telling().is_some_and(|e| e.writing) {
            cx.queues.writing.insert(cx.key);
        } else {
            cx.queues.writing.remove(&cx.key);
        }
    }

    /// The store hears of the last use once per step, or `now`. What is still to be written tells it by itself.
    pub(crate) fn touch_row(&mut self, cx: &mut Cx<'_>, now: bool) {
        if !cx.config.store || cx.planted(Bug::TouchNeverStored) || self.under_way.as_ref().is_some_and(|u| u.touching.is_some()) {
            return;
        }
        let Some((own, Copy { record, stored, .. })) = self.owned() else { return };
        let due = record.used > own.told_store && (now || record.used.since(own.told_store) >= record.clock().step());
        if due && *stored == Some(record.tip) && !own.touch_queued {
            own.touch_queued = true;
            cx.queues.touches.push_back(cx.key);
            cx.out.store();
        }
    }

    /// Its turn in the queue of touches.
    fn take_touch(&mut self, cx: &Cx<'_>) -> Option<Touch> {
        // A use is told though the session has moved on meanwhile: its next owner does not know what was told.
        if self.owned().is_some_and(|(own, _)| !core::mem::take(&mut own.touch_queued)) {
            return None;
        }
        let Copy { record, stored, .. } = self.copy()?;
        let stamp = stored.filter(|stored| *stored == record.tip)?;
        let (used, expires_in) = (record.used, record.over().since(cx.now));
        self.under_way().touching = Some(used);
        Some(Touch { key: cx.key, stamp, ago: cx.now.since(used), expires_in })
    }

    /// What became of a touch.
    pub(crate) fn handle_touched(&mut self, cx: &mut Cx<'_>, written: Written) {
        let Some(used) = self.under_way.as_mut().and_then(|u| u.touching.take()) else { return };
        let writing = self.writing().is_some();
        let Some((own, Copy { record, stored, .. })) = self.owned() else { return };
        let (tip, step) = (record.tip, record.clock().step());
        match written {
            Written::Applied => {
                own.told_store = own.told_store.max(used);
                self.touch_row(cx, false);
            }
            // The row is not what it was thought to be, or it is gone. A write that is under way finds that out.
            Written::Mismatch if *stored == Some(tip) && !writing => self.compare_row(cx),
            Written::Mismatch => {}
            Written::Ended(kind, next) => self.learn_end(cx, kind, next, None),
            Written::Failed | Written::Unknown => cx.set_timer(cx.now + AGAIN.max(step / 2), Timer::Touch),
        }
    }

    pub(crate) fn handle_written(&mut self, cx: &mut Cx<'_>, written: Written) {
        let Some(writing @ Writing { stamp, used, stage: Stage::Put }) = self.writing() else {
            return self.end_stored(cx, written);
        };
        self.set_writing(cx, None);
        if self.telling().is_some_and(|e| e.store) {
            // The marker waited for this answer, whatever it is.
            cx.queues.dirty.push_front(cx.key);
            return cx.out.store();
        }
        let Some((own, Copy { record, stored, .. })) = self.owned() else { return };
        match written {
            Written::Applied => {
                *stored = Some(stamp);
                own.told_store = own.told_store.max(used);
                own.dirty_since = if stamp == record.tip { Mono::NEVER } else { cx.now };
                self.mark_dirty(cx);
                self.touch_row(cx, false);
                self.advance(cx);
            }
            // The comparison is made again with what is really there; until that is known nothing is written.
            Written::Mismatch | Written::Unknown => {
                if cx.planted(Bug::CasGreaterWins) {
                    return self.mark_dirty(cx);
                }
                self.set_writing(cx, Some(Writing { stage: Stage::Read, ..writing }));
                self.load(cx);
            }
            Written::Ended(kind, next) => self.learn_end(cx, kind, next, None),
            Written::Failed => self.write_again(cx, writing),
        }
    }

    /// After a while it is tried again; until then it counts as being written.
    fn write_again(&mut self, cx: &mut Cx<'_>, writing: Writing) {
        self.set_writing(cx, Some(Writing { stage: Stage::Again, ..writing }));
        cx.set_timer(cx.now + AGAIN, Timer::Store);
    }

    pub(crate) fn store_due(&mut self, cx: &mut Cx<'_>) {
        if self.writing().is_none_or(|w| w.stage != Stage::Again) {
            return;
        }
        self.set_writing(cx, None);
        if self.telling().is_some_and(|e| e.store) {
            cx.queues.dirty.push_front(cx.key);
            return cx.out.store();
        }
        self.mark_dirty(cx);
    }

    /// The store may have forgotten what it had acknowledged: the row is read. One that is on its way finds out by itself.
    fn compare_row(&mut self, cx: &mut Cx<'_>) {
        if let Some(Copy { record, .. }) = self.copy().filter(|_| self.writing().is_none()) {
            let reading = Writing { stamp: record.tip, used: record.used, stage: Stage::Read };
            self.set_writing(cx, Some(reading));
            self.load(cx);
        }
    }

    /// Asks for the row as it is from now on: an answer that is on its way may be from before what the asker must see.
    pub(crate) fn load(&mut self, cx: &mut Cx<'_>) {
        match &mut self.under_way().loading {
            Some(again) => *again = true,
            loading => {
                *loading = Some(false);
                cx.out.push(Output::Load(cx.key));
            }
        }
    }

    pub(crate) fn handle_loaded(&mut self, cx: &mut Cx<'_>, loaded: &Loaded) {
        if self.under_way.as_mut().and_then(|u| u.loading.take()) == Some(true) {
            return self.load(cx);
        }
        self.round_loaded(cx, loaded);
        let Some(writing @ Writing { stage: Stage::Read, .. }) = self.writing() else { return };
        self.set_writing(cx, None);
        let Some((own, Copy { record: mine, stored, .. })) = self.owned() else { return };
        match loaded {
            Loaded::Missing => *stored = None,
            Loaded::Ended(kind, next) => return self.learn_end(cx, *kind, *next, None),
            Loaded::Failed => return self.write_again(cx, writing),
            Loaded::Here { record, age, touched } => {
                let Ok(mut row) = Record::from_bytes(record, cx.now, *age, *touched) else {
                    return self.write_again(cx, writing);
                };
                *stored = Some(row.tip);
                mine.note_use_of(&row);
                own.told_store = row.used;
                if !mine.lineage.covers(&row.lineage) {
                    // The store's clock may be wrong by days; this node has counted by its own.
                    row.created = mine.created;
                    self.merge_in(cx, &row);
                }
            }
        }
        self.mark_dirty(cx);
        self.touch_row(cx, false);
        self.advance(cx);
    }
}

impl<L: Live> Shard<L> {
    /// Takes up to `most` writes.
    pub(crate) fn take_writes(&mut self, call: &mut Call<'_>, most: usize, into: &mut Vec<Write>) {
        while into.len() < most
            && let Some(key) = self.queues.dirty.pop_front()
        {
            into.extend(self.with(call, key, |session, cx| session.take_write(cx)));
        }
    }

    /// Takes up to `most` touches.
    pub(crate) fn take_touches(&mut self, call: &mut Call<'_>, most: usize, into: &mut Vec<Touch>) {
        while into.len() < most
            && let Some(key) = self.queues.touches.pop_front()
        {
            into.extend(self.with(call, key, |session, cx| session.take_touch(cx)));
        }
    }

    /// The last uses of all that is owned here, for a store that is to outlive all nodes.
    pub(crate) fn touch_rows(&mut self, call: &mut Call<'_>) {
        let mut untold: Vec<SessionKey> = self.untold().collect();
        // The order of a hash map is nobody's business.
        untold.sort_unstable();
        for key in untold {
            self.with(call, key, |session, cx| session.touch_row(cx, true));
        }
    }

    /// The store may have forgotten what it had acknowledged: all that is owned here is compared with what is there, and markers of ends
    /// are written again.
    pub(crate) fn store_forgot(&mut self, call: &mut Call<'_>) {
        let (mut owned, mut ended) = (Vec::new(), Vec::new());
        for (key, slot) in &mut self.table {
            if let Slot::Here(session) = slot
                && let Some(copy) = session.copy_mut()
            {
                copy.stored = None;
                // One that is queued finds out by itself.
                if session.owner().is_some_and(|(own, copy)| !own.queued && copy.record.tip.version > 0) {
                    owned.push(*key);
                }
            } else if matches!(slot.seen(), Seen::Ended(e) if e.until > call.now) {
                ended.push(*key);
            }
        }
        owned.sort_unstable();
        ended.sort_unstable();
        for key in owned {
            self.with(call, key, |session, cx| session.compare_row(cx));
        }
        for key in ended {
            self.with(call, key, |session, cx| session.end_again(cx));
        }
    }
}
