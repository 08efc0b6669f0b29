//! Fixed numbers: what a deployment has no reason to change. Tunable ones are in [`config`](crate::config).

use core::time::Duration;

/// Bytes of one frame between peers, after its length.
pub const FRAME_MAX: usize = 4 << 20;
/// Bytes of one encoded record.
pub const RECORD_MAX: usize = 1 << 20;
/// Attributes of one session.
pub const ATTRIBUTES_MAX: usize = 1024;
/// Bytes of an attribute's name.
pub const NAME_MAX: usize = 128;
/// Claims that a lineage lists at all; beyond it the oldest folds.
pub const LINEAGE_MAX: usize = 256;
/// Stamps of lost commits that a record remembers; the oldest goes.
pub const GAPS_MAX: usize = 8;
/// Copies of a session on other nodes than its owner.
pub const BACKUPS_MAX: u8 = 5;
/// Members that one frame may name.
pub const MEMBERS_MAX: usize = 4096;
/// Memberships since the last settled one; beyond it every member is asked.
pub const VIEWS_MAX: usize = 16;
/// Claim rounds that a node runs at once, for its requests, for what it inherits and for what it is invited to.
pub const ROUNDS_MAX: usize = 65_536;
/// Requests that wait for one session while its owner changes.
pub const WAITING_MAX: usize = 4096;
/// Promises of a node for sessions that it holds no copy of, and likewise sessions that it knows not to exist.
pub const PROMISES_MAX: usize = 65_536;
/// How long such a promise is remembered.
pub const PROMISE_KEEP: Duration = Duration::from_secs(60);
/// How long "not found" is remembered by the node that asked.
pub const NOT_FOUND_KEEP: Duration = Duration::from_secs(5);
/// Refusals that a round survives before it gives up.
pub const ROUND_TRIES: u8 = 5;
/// First pause after a refusal, times (1 + placement rank), plus jitter.
pub const BACK_OFF: Duration = Duration::from_millis(2);
/// Ownerships that ended with unacknowledged commits, of one session, whose outcome is waited for.
pub const ORPHANS_MAX: usize = 4;
/// Former holders and owners of one session that are still to be told who owns it.
pub const FORMER_MAX: usize = 16;
/// An heir's pause per placement rank.
pub const HEIR_STEP: Duration = Duration::from_millis(100);
/// Look-up bound for a member that is suspect or missed its last bound.
pub const LOOKUP_BOUND_SUSPECT: Duration = Duration::from_millis(20);
/// Longest look-up bound for a member whose answers came later than the bound of the configuration, unless that is longer.
pub const LOOKUP_BOUND_SLOW: Duration = Duration::from_secs(1);
/// How long a slow answer is remembered.
pub const SLOW_KEEP: Duration = Duration::from_secs(60);
/// Moves of one session within [`MOVES_WINDOW`] after which its owner stays and others forward.
pub const MOVES_MAX: u8 = 2;
/// See [`MOVES_MAX`].
pub const MOVES_WINDOW: Duration = Duration::from_secs(10);
/// How long an ended marker is kept if the session's absolute lifetime is longer.
pub const ENDED_KEEP: Duration = Duration::from_secs(24 * 3600);
/// How long other nodes' changes wait for a rotation; one that takes longer fails if there are any.
pub const ROTATION_BOUND: Duration = Duration::from_secs(1);
/// How long an unanswered end waits before the application hears "pending".
pub const END_BOUND: Duration = Duration::from_secs(1);
/// Ended markers of one node. Beyond it those go first that all have confirmed, the eldest first; what is not confirmed stays.
pub const ENDED_MAX: usize = 1 << 20;
/// A session whose cookie has not come back yet lives no longer than this without use.
pub const FIRST_LIFETIME: Duration = Duration::from_secs(300);
/// Frames to one peer that may wait for an acknowledgement; beyond it the link is closed.
pub const UNACKED_MAX: usize = 1 << 18;
/// Bytes that may wait for a slow peer; beyond it the link is closed.
pub const OUTBOX_MAX: usize = 64 << 20;

const _: () = assert!(RECORD_MAX * 2 < FRAME_MAX);
