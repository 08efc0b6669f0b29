//! A store in memory: compare-and-set on equality, with latency, outages and answers that got lost.

use crate::marks::Mark;
use crate::options::{MS, S};
use crate::world::{Ev, World};
use bytes::Bytes;
use core::time::Duration;
use outlive_core::id::SessionKey;
use outlive_core::stamp::Stamp;
use outlive_core::wire::EndKind;
use outlive_core::{Loaded, Touch, Write, Written};

/// A row.
#[derive(Clone, Debug)]
pub(crate) enum Row {
    /// Times are the store's.
    Record {
        stamp: Stamp,
        record: Bytes,
        at: i64,
        touched: i64,
        expires: i64,
    },
    Ended(EndKind, Option<SessionKey>),
}

impl Row {
    pub(crate) fn expires(&self) -> i64 {
        match self {
            Row::Record { expires, .. } => *expires,
            Row::Ended(..) => i64::MAX,
        }
    }
}

/// A call on its way.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Load(SessionKey),
    Write(Write),
    Touch(Touch),
}

/// What comes back.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Loaded(SessionKey, Loaded),
    Written(SessionKey, Written),
    Touched(SessionKey, Written),
}

impl World {
    pub(crate) fn store_call(&mut self, node: usize, call: Call) {
        let Some(generation) = self.nodes[node].proc.as_ref().map(|p| p.generation) else { return };
        // Touches are drawn for by themselves: seeds from before there were any play on.
        let rng = if matches!(call, Call::Touch(_)) { &mut self.clocks } else { &mut self.rng };
        let half = (rng.around(MS) / 2 + 50) * self.store_slow;
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
                break;
            }
        }
        while let Some(touches) = self.call(node, |e, now, out| e.take_touches(now, 16, out)).filter(|touches| !touches.is_empty()) {
            for touch in touches {
                self.store_call(node, Call::Touch(touch));
            }
        }
    }

    /// The store does it; the answer is on its way, or lost.
    pub(crate) fn store_apply(&mut self, node: usize, generation: u32, call: Call, half: i64) {
        let (down, refuses, locked) = (self.now < self.store_down, self.now < self.store_refuses, self.now < self.store_locked);
        let unknown = self.store_unknown > 0 && self.rng.chance(self.store_unknown);
        let reply = match call {
            Call::Load(key) if down => Reply::Loaded(key, Loaded::Failed),
            Call::Load(key) => Reply::Loaded(key, self.load(key)),
            Call::Write(_) if locked => {
                // Nobody waits longer than 2 s, nor knows what comes of it.
                self.mark(Mark::StoreLocked);
                let Call::Write(write) = call else { return };
                let reply = Reply::Written(write.key(), if self.clocks.chance(500) { Written::Unknown } else { Written::Failed });
                return self.at(half.max(2 * S), Ev::StoreReply { node, generation, reply });
            }
            Call::Write(write) if refuses => {
                self.mark(Mark::StoreRefused);
                Reply::Written(write.key(), Written::Failed)
            }
            Call::Touch(touch) if down || refuses || locked => Reply::Touched(touch.key, Written::Failed),
            Call::Touch(touch) => {
                let written = self.touch(&touch);
                self.mark(if written == Written::Applied { Mark::RowTouched } else { Mark::TouchMismatch });
                Reply::Touched(touch.key, written)
            }
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
            Some(Row::Ended(kind, next)) => Loaded::Ended(*kind, *next),
            Some(Row::Record { record, at, touched, .. }) => {
                let since = |then: i64| Duration::from_micros((self.store_now() - then).max(0) as u64);
                Loaded::Here { record: record.clone(), age: since(*at), touched: since(*touched) }
            }
        }
    }

    fn touch(&mut self, touch: &Touch) -> Written {
        let now = self.store_now();
        match self.rows.get_mut(&touch.key) {
            Some(Row::Ended(kind, next)) => Written::Ended(*kind, *next),
            Some(Row::Record { stamp, touched, expires, .. }) if *stamp == touch.stamp => {
                *touched = (*touched).max(now - touch.ago.as_micros() as i64);
                *expires = now.saturating_add(touch.expires_in.as_micros() as i64);
                Written::Applied
            }
            _ => Written::Mismatch,
        }
    }

    fn write(&mut self, write: Write) -> Written {
        match write {
            Write::Put { key, expect, stamp, record, expires_in, .. } => match self.rows.get(&key) {
                Some(&Row::Ended(kind, next)) => {
                    self.mark(Mark::StoreEnded);
                    Written::Ended(kind, next)
                }
                row => {
                    let there = match row {
                        Some(Row::Record { stamp, .. }) => Some(*stamp),
                        _ => None,
                    };
                    let greater = self.opts.plant == Some(outlive_core::plant::Bug::CasGreaterWins) && Some(stamp) > there;
                    if there != expect && !greater {
                        return Written::Mismatch;
                    }
                    let now = self.store_now();
                    let expires = now.saturating_add(expires_in.as_micros() as i64);
                    self.rows.insert(key, Row::Record { stamp, record, at: now, touched: now, expires });
                    Written::Applied
                }
            },
            Write::End { key, mut kind, mut next, .. } => {
                if let Some(Row::Ended(before, named)) = self.rows.get(&key) {
                    // A logout is one whatever came first, and of two ids one is named.
                    kind = if *before == EndKind::Invalidated { *before } else { kind };
                    next = next.into_iter().chain(*named).min();
                }
                self.rows.insert(key, Row::Ended(kind, next));
                Written::Ended(kind, next)
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
            Reply::Touched(key, written) => {
                let (key, written) = (*key, *written);
                self.log(node, || format!("{key:?} touched: {written:?}"));
                self.call(node, |e, now, out| e.handle_touched(now, key, written, out));
            }
            Reply::Written(key, written) => {
                let (key, written) = (*key, *written);
                match written {
                    Written::Mismatch => self.mark(Mark::StoreMismatch),
                    Written::Unknown => self.mark(Mark::StoreUnknownRead),
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
        Loaded::Ended(..) => "ended",
        Loaded::Here { .. } => "a record",
        _ => "failed",
    }
}
