//! Situations that a run should have seen. A rule whose situation never occurs was not tested.

macro_rules! marks {
    ($($mark:ident = $name:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Mark { $($mark,)* }
        impl Mark {
            pub(crate) const ALL: &'static [Mark] = &[$(Mark::$mark,)*];
            pub(crate) fn name(self) -> &'static str {
                match self { $(Mark::$mark => $name,)* }
            }
        }
    };
}

marks! {
    Ask = "ask", Busy = "busy", Refused = "refused", Stay = "stay", Answer = "answer", Delta = "delta", Full = "full",
    Diverged = "diverged", Kept = "kept", Gap = "gap", Facade = "facade", Owned = "owned", Unowned = "unowned",
    Have = "have", Report = "report", Drop = "drop", Dropped = "dropped",
    End = "end", EndSeen = "end_seen", Touch = "touch", Invite = "invite", Late = "late", LateDone = "late_done",
    Created = "created", MovedFromOwner = "moved_from_owner", MovedFromCopy = "moved_from_copy", LoadedForRound = "loaded_for_round",
    Left = "left", EndedEvent = "ended_event", Lost = "lost", FoundAgain = "found_again", Merge = "merge", Discarded = "discarded",
    Backed = "backed", Replicated = "replicated", Guest = "guest", LateCommitDone = "late_commit_done",
    LateCommitConflict = "late_commit_conflict", LateCommitUnknown = "late_commit_unknown", CommitWaited = "commit_waited",
    CommitFailedUnknown = "commit_failed_unknown", CommitConflict = "commit_conflict", DurableAfterMove = "durable_after_move",
    NotFound = "not_found", Unavailable = "unavailable", Contended = "contended", Forming = "forming", EndConfirmed = "end_confirmed",
    EndPending = "end_pending", EndedServed = "ended_served", Rotated = "rotated", RotatedCopy = "rotated_copy", LogoutOfRotated = "logout_of_rotated",
    RotationOfEnded = "rotation_of_ended",
    RotationRefused = "rotation_refused", DrainDone = "drain_done", DrainKilled = "drain_killed",
    DrainAbandoned = "drain_abandoned", DrainAlone = "drain_alone", LegitLoss = "legit_loss", LevelOwner = "level_owner", LevelBackup1 = "level_backup_1",
    LevelBackup2 = "level_backup_2", LevelStore = "level_store", StoreMismatch = "store_mismatch", StoreUnknownRead = "store_unknown",
    StoreEnded = "store_ended", FrameRefused = "frame_refused", Rebooted = "rebooted", Superseded = "superseded", Renewed = "renewed",
    ReadWaited = "read_waited", TokenServed = "token_served", LateResponse = "late_response",
    LimitsDiffer = "limits_differ", OwnLimits = "own_limits", Outlived = "outlived", ServedInAllowance = "served_in_allowance",
    WallJump = "wall_jump", StoreJump = "store_jump", RestartAll = "restart_all", RowTouched = "row_touched", RowSwept = "row_swept",
    TouchMismatch = "touch_mismatch", StoreRefused = "store_refused", StoreLocked = "store_locked", Reader = "reader",
    ExpiredEvent = "expired_event", ReadFromRow = "read_from_row", ToldAtTheEnd = "told_at_the_end",
    LateCommitNowhere = "late_commit_nowhere",
    TooLarge = "too_large", LeftOut = "left_out",
}

/// The kinds of frames that are the protocol's, and not the links' own. The first marks are theirs, in this order.
const KINDS: core::ops::Range<u8> = 4..27;

impl Mark {
    /// A frame of this kind has come.
    pub(crate) fn of_frame(kind: u8) -> Option<Mark> {
        KINDS.contains(&kind).then(|| Mark::ALL[usize::from(kind - KINDS.start)])
    }
}

#[cfg(test)]
mod tests {
    use super::{KINDS, Mark};
    use outlive_core::wire::decode;

    /// The name of the message that frames of this kind carry: one of zeros, as long as it takes.
    fn message(kind: u8) -> Option<String> {
        let frames = (0..256).map(|zeros| [&[0; 4][..], &[kind], &vec![0; zeros]].concat());
        let debug = frames.filter_map(|frame| decode(&frame).ok().map(|(_, message)| format!("{message:?}"))).next()?;
        Some(debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned())
    }

    #[test]
    fn each_kind_of_frame_is_counted_under_its_own_name() {
        for kind in KINDS {
            assert_eq!(message(kind), Mark::of_frame(kind).map(|mark| format!("{mark:?}")), "kind {kind}");
        }
        assert_eq!(message(KINDS.start - 1).as_deref(), Some("Ack"), "the last of the links' own");
        assert_eq!(message(KINDS.end), None, "there are no more");
        assert_eq!((Mark::of_frame(KINDS.start - 1), Mark::of_frame(KINDS.end)), (None, None));
    }
}
