//! What a commit hears that its session's owner did not make for a request of its own.

use crate::config::Level;
use crate::copy::Late;
use crate::cx::Cx;
use crate::output::{Failure, Outcome, Ticket};
use crate::stamp::Stamp;
use crate::wire::{LateResult, Message};

fn level_byte(level: Level) -> u8 {
    match level {
        Level::Owner => 0,
        Level::Backup(n) => n,
        Level::Store => u8::MAX,
    }
}

fn byte_level(byte: u8) -> Level {
    match byte {
        0 => Level::Owner,
        u8::MAX => Level::Store,
        n => Level::Backup(n),
    }
}

/// What a late commit hears that is durable at this level.
pub(crate) fn late_done(stamp: Stamp, level: Level) -> LateResult {
    LateResult::Done(stamp, level_byte(level))
}

/// Answers a late commit, a peer's or this node's own.
pub(crate) fn answer_late(cx: &mut Cx<'_>, late: &Late, result: LateResult) {
    if late.from == cx.view.me {
        cx.settle(Ticket(late.id), outcome(result));
    } else if let Some(link) = cx.view.link(late.from) {
        link.send(&Message::LateDone { key: cx.key, id: late.id, result }, None, cx.out);
    }
}

/// What the request hears. Only a session that has ended has no owner to whom its commit could go.
pub(crate) fn outcome(result: LateResult) -> Outcome {
    match result {
        LateResult::Done(stamp, level) => Outcome::Late { stamp, level: byte_level(level) },
        LateResult::Conflict => Outcome::LateFailed(Failure::Conflict),
        LateResult::Unknown => Outcome::LateFailed(Failure::Unknown),
        LateResult::NotOwner => Outcome::LateFailed(Failure::Ended),
        LateResult::UnderReplicated => Outcome::LateFailed(Failure::UnderReplicated),
        LateResult::TooLarge(excess) => Outcome::LateFailed(Failure::TooLarge(excess)),
    }
}
