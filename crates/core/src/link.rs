//! The sending and receiving side of one connection.

use crate::id::SessionKey;
use crate::limits::{LOOKUP_BOUND_SLOW, OUTBOX_MAX, SLOW_KEEP, UNACKED_MAX};
use crate::output::{LinkId, Output, Outputs};
use crate::stamp::{Claim, Life};
use crate::time::Mono;
use crate::wire::{FrameError, Message};
use core::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use core::time::Duration;
use parking_lot::Mutex;
use std::collections::VecDeque;

/// A peer is behind when so great a part of what would close its link waits for it: 1,024 frames or 256 KiB.
const BEHIND: usize = 256;

/// How long a frame counts as one that came of late.
const CALLED: Duration = Duration::from_secs(1);

/// A frame that waits for its acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) key: SessionKey,
    pub(crate) claim: Claim,
    pub(crate) version: u32,
    /// The holder's attempt: what was sent before a gap is not acknowledged by what comes after it.
    pub(crate) attempt: u32,
    pub(crate) what: What,
}

impl Sent {
    /// A frame whose acknowledgement only says that the peer has come so far.
    pub(crate) fn note(key: SessionKey) -> Sent {
        Sent { key, claim: Claim::NONE, version: 0, attempt: 0, what: What::Note }
    }
}

/// What an acknowledgement means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The peer holds this version.
    Copy,
    /// The peer knows the owner.
    Inform,
    /// Nothing that anybody waits for.
    Note,
}

/// One connection. Frames are written into it under the lock of the shard they concern, so that two commits of a session
/// cannot overtake each other; the driver takes the bytes in batches.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) life: Life,
    /// The peer let a look-up bound pass and has said nothing since.
    pub(crate) silent: AtomicBool,
    /// When the last frame came, and the last one that acknowledged something; microseconds of [`Mono`].
    heard: AtomicI64,
    answered: AtomicI64,
    out: Mutex<Outbox>,
    inward: Mutex<Inward>,
    pace: Mutex<Pace>,
}

/// How long answers take over a slow network. A claim that needs the answers of all would else never have them in time, however
/// often it is tried.
#[derive(Debug, Default)]
struct Pace {
    /// The question whose full bound passed last, and when it was asked.
    missed: Option<(SessionKey, Claim, Mono)>,
    /// How long the slowest answer of late took, and when it came.
    slowest: Option<(Duration, Mono)>,
}

#[derive(Debug, Default)]
struct Outbox {
    bytes: Vec<u8>,
    number: u8,
    acked: u32,
    unacked: VecDeque<Sent>,
    /// How many of `unacked` are in `bytes` still.
    fresh: usize,
    broken: bool,
}

#[derive(Debug, Default)]
struct Inward {
    number: u8,
    seen: u32,
    told: u32,
}

impl Link {
    pub(crate) fn new(id: LinkId, life: Life) -> Link {
        let never = || AtomicI64::new(Mono::NONE.micros());
        Link {
            id,
            life,
            silent: AtomicBool::new(false),
            heard: never(),
            answered: never(),
            out: Mutex::default(),
            inward: Mutex::default(),
            pace: Mutex::default(),
        }
    }

    /// Queues a message; `sent` is what its acknowledgement will mean.
    pub(crate) fn send(&self, message: &Message<'_>, sent: Option<Sent>, out: &mut Outputs) {
        let mut o = self.out.lock();
        if o.broken {
            return;
        }
        if o.unacked.len() >= UNACKED_MAX || o.bytes.len() >= OUTBOX_MAX {
            o.broken = true;
            out.push(Output::Close(self.id));
            return;
        }
        debug_assert_eq!(sent.is_some(), message.wants_ack(), "{message:?}");
        let number = o.number;
        message.encode(number, &mut o.bytes);
        o.number = number.wrapping_add(1);
        o.fresh += usize::from(sent.is_some());
        o.unacked.extend(sent);
        out.flush(self.id);
    }

    /// The bytes to write.
    pub(crate) fn take(&self, into: &mut Vec<u8>) {
        let mut o = self.out.lock();
        o.fresh = 0;
        if into.is_empty() {
            core::mem::swap(into, &mut o.bytes);
        } else {
            into.append(&mut o.bytes);
        }
    }

    /// Whether frames that were taken have not been acknowledged yet.
    pub(crate) fn is_busy(&self) -> bool {
        let o = self.out.lock();
        o.unacked.len() > o.fresh
    }

    /// Whether the peer has so much to do already that what can wait should: answers and gossip wait behind what is sent to it.
    pub(crate) fn is_behind(&self) -> bool {
        let o = self.out.lock();
        o.unacked.len() >= UNACKED_MAX / BEHIND || o.bytes.len() >= OUTBOX_MAX / BEHIND
    }

    /// Frames came.
    pub(crate) fn note_heard(&self, now: Mono) {
        self.heard.store(now.micros(), Ordering::Relaxed);
    }

    /// Whether frames came of late.
    pub(crate) fn has_called(&self, now: Mono) -> bool {
        now.since(self.heard().0) < CALLED
    }

    /// When the last frame came, and the last one that acknowledged something.
    pub(crate) fn heard(&self) -> (Mono, Mono) {
        let at = |time: &AtomicI64| Mono::from_micros(time.load(Ordering::Relaxed));
        (at(&self.heard), at(&self.answered))
    }

    /// The frames that an acknowledgement covers.
    pub(crate) fn acked(&self, now: Mono, upto: u32) -> Result<Vec<Sent>, FrameError> {
        let mut o = self.out.lock();
        let count = upto.wrapping_sub(o.acked) as usize;
        if count > o.unacked.len() {
            return Err(FrameError::Ack);
        }
        o.acked = upto;
        self.answered.store(now.micros(), Ordering::Relaxed);
        let acked = o.unacked.drain(..count).collect();
        o.fresh = o.fresh.min(o.unacked.len());
        Ok(acked)
    }

    /// Checks the number of a frame that came in, and counts it if it wants an acknowledgement.
    pub(crate) fn arrived(&self, got: u8, message: &Message<'_>) -> Result<(), FrameError> {
        self.silent.store(false, Ordering::Relaxed);
        let mut i = self.inward.lock();
        if got != i.number {
            return Err(FrameError::Number { got, want: i.number });
        }
        i.number = got.wrapping_add(1);
        if message.wants_ack() {
            i.seen = i.seen.wrapping_add(1);
        }
        Ok(())
    }

    /// A look-up bound passed without the answer to this question.
    pub(crate) fn missed(&self, key: SessionKey, claim: Claim, asked: Mono, waited: Duration, full: Duration) {
        if waited >= full {
            // Who was waited for in vain before is not slow but silent.
            self.pace.lock().missed = Some((key, claim, asked));
        }
        self.silent.store(true, Ordering::Relaxed);
    }

    /// An answer came that was not waited for any more.
    pub(crate) fn answered_late(&self, key: SessionKey, claim: Claim, now: Mono) {
        let mut pace = self.pace.lock();
        if let Some((.., asked)) = pace.missed.take_if(|(k, c, _)| (*k, *c) == (key, claim)) {
            pace.slow(now.since(asked), now);
        }
    }

    /// An answer came in time.
    pub(crate) fn answered(&self, asked: Mono, now: Mono, full: Duration) {
        let took = now.since(asked);
        if took > full {
            self.pace.lock().slow(took, now);
        }
    }

    /// How long to wait for an answer: `full`, or more if answers take longer.
    pub(crate) fn bound(&self, now: Mono, full: Duration) -> Duration {
        let slowest = self.pace.lock().slowest.filter(|(_, at)| now.since(*at) < SLOW_KEEP);
        slowest.map_or(full, |(took, _)| full.max((took * 2).min(LOOKUP_BOUND_SLOW)))
    }

    /// Acknowledges what came in since the last time.
    pub(crate) fn acknowledge(&self, out: &mut Outputs) {
        let upto = {
            let mut i = self.inward.lock();
            if i.told == i.seen {
                return;
            }
            i.told = i.seen;
            i.seen
        };
        self.send(&Message::Ack(upto), None, out);
    }
}

impl Pace {
    /// An answer took longer than the full bound.
    fn slow(&mut self, took: Duration, now: Mono) {
        // A node that stood still says nothing about the network.
        if took <= LOOKUP_BOUND_SLOW {
            let before = self.slowest.filter(|(_, at)| now.since(*at) < SLOW_KEEP).map_or(took, |(slowest, _)| slowest);
            self.slowest = Some((took.max(before), now));
        }
    }
}
