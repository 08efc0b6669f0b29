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
    Diverged = "diverged", Kept = "kept", Gap = "gap", Facade = "facade", Have = "have", Drop = "drop", Dropped = "dropped",
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
    ReadWaited = "read_waited", TokenServed = "token_served", LateResponse = "late_response", StoredOnly = "stored_only",
    LimitsDiffer = "limits_differ", OwnLimits = "own_limits", Outlived = "outlived", ServedInAllowance = "served_in_allowance",
    WallJump = "wall_jump", StoreJump = "store_jump", RestartAll = "restart_all", RowTouched = "row_touched", RowSwept = "row_swept",
    TouchMismatch = "touch_mismatch", StoreRefused = "store_refused", StoreLocked = "store_locked", Reader = "reader",
    TokenRanOut = "token_ran_out", ExpiredEvent = "expired_event", ReadFromRow = "read_from_row", ToldAtTheEnd = "told_at_the_end",
    LateCommitNowhere = "late_commit_nowhere", ExpiredBesideIt = "expired_beside_it",
    TooLarge = "too_large", LeftOut = "left_out",
}
