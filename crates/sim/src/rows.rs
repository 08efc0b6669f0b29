//! A store in memory: compare-and-set on equality, with latency, outages and answers that got lost.

use crate::marks::Mark;
use crate::options::MS;
use crate::world::{Ev, World};
use bytes::Bytes;
use core::time::Duration;
use outlive_core::id::SessionKey;
use outlive_core::stamp::Stamp;
use outlive_core::wire::EndKind;
use outlive_core::{Loaded, Write, Written};

/// A row.
#[derive(Clone, Debug)]
pub(crate) enum Row {
    Record { stamp: Stamp, record: Bytes, at: i64 },
    Ended(EndKind),
}

/// A call on its way.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Load(SessionKey),
    Write(Write),
}

/// What comes back.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Loaded(SessionKey, Loaded),
    Written(SessionKey, Written),
}

impl World {
    pub(crate) fn store_call(&mut self, node: usize, call: Call) {
        let Some(generation) = self.nodes[node].proc.as_ref().map(|p| p.generation) else { return };
        let half = (self.rng.around(MS) / 2 + 50) * self.store_slow;
        self.at(half, Ev::StoreApply { node, generation, call, half });
    }

    pub(crate) fn store_take(&mut self, node: usize) {
        loop {
            let Some(writes) = self.call(node, |e, now, out| e.take_writes(now, 16, out)) else { return };
            let done = writes.len() < 16;
            for write in writes {
                self.store_call(node, Call::Write(write));
            }
            if done {
                return;
            }
        }
    }

    /// The store does it; the answer is on its way, or lost.
    pub(crate) fn store_apply(&mut self, node: usize, generation: u32, call: Call, half: i64) {
        let down = self.now < self.store_down;
        let unknown = self.store_unknown > 0 && self.rng.chance(self.store_unknown);
        let reply = match call {
            Call::Load(key) if down => Reply::Loaded(key, Loaded::Failed),
            Call::Load(key) => Reply::Loaded(key, self.load(key)),
            Call::Write(write) => {
                let key = write.key();
                // A lost answer says nothing about whether it was done.
                let applied = if down || unknown && self.rng.chance(500) { Written::Failed } else { self.write(write) };
                Reply::Written(key, if unknown { Written::Unknown } else { applied })
            }
        };
        self.at(half, Ev::StoreReply { node, generation, reply });
    }

    fn load(&self, key: SessionKey) -> Loaded {
        match self.rows.get(&key) {
            None => Loaded::Missing,
            Some(Row::Ended(kind)) => Loaded::Ended(*kind),
            Some(Row::Record { record, at, .. }) => {
                let age = Duration::from_micros((self.now - at).max(0) as u64);
                Loaded::Here { record: record.clone(), age, touched: age }
            }
        }
    }

    fn write(&mut self, write: Write) -> Written {
        match write {
            Write::Put { key, expect, stamp, record, .. } => match self.rows.get(&key) {
                Some(Row::Ended(kind)) => Written::Ended(*kind),
                row => {
                    let there = match row {
                        Some(Row::Record { stamp, .. }) => Some(*stamp),
                        _ => None,
                    };
                    let greater = self.opts.plant == Some(outlive_core::plant::Bug::CasGreaterWins) && Some(stamp) > there;
                    if there != expect && !greater {
                        return Written::Mismatch;
                    }
                    self.rows.insert(key, Row::Record { stamp, record, at: self.now });
                    Written::Applied
                }
            },
            Write::End { key, kind, .. } => {
                self.rows.insert(key, Row::Ended(kind));
                Written::Applied
            }
            _ => Written::Failed,
        }
    }

    pub(crate) fn store_reply(&mut self, node: usize, reply: &Reply) {
        match reply {
            Reply::Loaded(key, loaded) => {
                let key = *key;
                self.log(node, || format!("{key:?} loaded {}", loaded_name(loaded)));
                self.call(node, |e, now, out| e.handle_loaded(now, key, loaded, out));
            }
            Reply::Written(key, written) => {
                let (key, written) = (*key, *written);
                match written {
                    Written::Mismatch => self.mark(Mark::StoreMismatch),
                    Written::Unknown => self.mark(Mark::StoreUnknownRead),
                    Written::Ended(_) => self.mark(Mark::StoreEnded),
                    _ => {}
                }
                self.log(node, || format!("{key:?} written: {written:?}"));
                self.call(node, |e, now, out| e.handle_written(now, key, written, out));
            }
        }
    }
}

fn loaded_name(loaded: &Loaded) -> &'static str {
    match loaded {
        Loaded::Missing => "missing",
        Loaded::Ended(_) => "ended",
        Loaded::Here { .. } => "a record",
        _ => "failed",
    }
}
