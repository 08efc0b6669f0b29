//! The way to the store: the queue of sessions whose newest commit it lacks, one write in flight per session, and what its
//! answers mean.

use crate::config::Durability;
use crate::id::SessionKey;
use crate::output::{Live, Output};
use crate::plant::Bug;
use crate::record::Record;
use crate::shard::{Cx, Shard, Timer};
use crate::stamp::Stamp;
use crate::wire::EndKind;
use bytes::Bytes;
use core::time::Duration;

/// How long after a failed write it is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// A write for the store. Its comparison is equality with `expect`, never "greater".
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Write {
    /// Put this record if the row's stamp is exactly `expect` (`None`: if there is no row).
    Put {
        /// The session.
        key: SessionKey,
        /// The stamp that the row is thought to have.
        expect: Option<Stamp>,
        /// The record's stamp.
        stamp: Stamp,
        /// The record.
        record: Bytes,
        /// After this time the store may sweep the row.
        expires_in: Duration,
    },
    /// Leave an absorbing marker.
    End {
        /// The session.
        key: SessionKey,
        /// Why it ended.
        kind: EndKind,
        /// How long the marker stays.
        keep: Duration,
    },
}

impl Write {
    /// The session it is for.
    pub fn key(&self) -> SessionKey {
        match self {
            Write::Put { key, .. } | Write::End { key, .. } => *key,
        }
    }
}

/// What became of a [`Write`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Written {
    /// It is there.
    Applied,
    /// The row had another stamp, or there was none or one.
    Mismatch,
    /// The session has ended there.
    Ended(EndKind),
    /// Nothing happened.
    Failed,
    /// Nobody knows: the row must be read before it is written again.
    Unknown,
}

/// What the store has of a session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Loaded {
    /// No row.
    Missing,
    /// An ended marker.
    Ended(EndKind),
    /// A record.
    Here {
        /// Its bytes.
        record: Bytes,
        /// How long ago it was written, by the store's clock.
        age: Duration,
    },
    /// The store could not be asked.
    Failed,
}

/// A put whose outcome is not known yet. It outlives the ownership that sent it: its answer names the session alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writing {
    stamp: Stamp,
    /// It was answered, and the row is read to see what is there.
    reading: bool,
}

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
        own.dirty_since = now;
        if urgent {
            self.dirty.push_front(key);
        } else {
            self.dirty.push_back(key);
        }
        cx.out.store();
    }

    /// Takes up to `most` writes. Each record is cut now: what was committed while it waited is in it.
    pub(crate) fn take_writes(&mut self, cx: &mut Cx<'_>, most: usize, into: &mut Vec<Write>) {
        let limits = cx.config.limits;
        while into.len() < most {
            let Some(key) = self.dirty.pop_front() else { return };
            if self.writing.contains_key(&key) {
                // Of one session one write at a time: its answer brings the next.
                continue;
            }
            if let Some(e) = self.ends.get_mut(&key) {
                if e.store && !e.writing {
                    e.writing = true;
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
            // The row is a backstop: reads and touches do not reach it, so it must not go before the session's own end.
            let expires_in = (copy.record.created + copy.record.limits(limits).lifetime).since(cx.now);
            into.push(Write::Put { key, expect, stamp: tip, record: copy.record.to_bytes(cx.now), expires_in });
            self.writing.insert(key, Writing { stamp: tip, reading: false });
        }
    }

    pub(crate) fn handle_written(&mut self, cx: &mut Cx<'_>, key: SessionKey, written: Written) {
        let Some(Writing { stamp, reading: false }) = self.writing.get(&key).copied() else {
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
                if stamp.claim == own.claim {
                    own.in_store = own.in_store.max(Some(stamp.version));
                } else if stamp == own.adopted {
                    own.in_store = own.in_store.max(Some(0));
                }
                self.mark_dirty(cx, key);
                self.advance(cx, key);
            }
            // The comparison is made again with what is really there; until that is known nothing is written.
            Written::Mismatch | Written::Unknown => {
                if cx.planted(Bug::CasGreaterWins) {
                    return self.mark_dirty(cx, key);
                }
                self.writing.insert(key, Writing { stamp, reading: true });
                self.load(cx, key);
            }
            Written::Ended(kind) => self.learn_end(cx, key, kind, None),
            Written::Failed => self.set_timer(now + AGAIN, key, Timer::Store),
        }
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
        if self.writing.get(&key).is_none_or(|w| !w.reading) {
            return;
        }
        self.writing.remove(&key);
        let now = cx.now;
        let Some((copy, _)) = self.own(key) else { return };
        let Some(own) = copy.own.as_mut() else { return };
        match loaded {
            Loaded::Missing => copy.stored = None,
            Loaded::Ended(kind) => return self.learn_end(cx, key, *kind, None),
            Loaded::Failed => return self.set_timer(now + AGAIN, key, Timer::Store),
            Loaded::Here { record, age } => {
                let Ok(row) = Record::from_bytes(record, now, *age) else {
                    return self.set_timer(now + AGAIN, key, Timer::Store);
                };
                copy.stored = Some(row.tip);
                if row.tip.claim == own.claim {
                    own.in_store = own.in_store.max(Some(row.tip.version));
                } else if row.tip == own.adopted {
                    own.in_store = own.in_store.max(Some(0));
                }
                if !copy.record.lineage.covers(&row.lineage) {
                    self.merge_in(cx, key, &row);
                }
            }
        }
        self.mark_dirty(cx, key);
        self.advance(cx, key);
    }
}
