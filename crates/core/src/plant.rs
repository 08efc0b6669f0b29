//! Rules that can be switched off, one at a time, to see whether the simulator notices.
//!
//! Without the feature `__plant` every test below is a constant `false`.

macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident = $name:literal,)*) => {
        /// A rule switched off.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Bug { $($(#[$doc])* $bug,)* }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Bug] = &[$(Bug::$bug,)*];

            /// The name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Bug::$bug => $name,)* }
            }
        }
    };
}

bugs! {
    /// Of two branches the one with the greater stamp is taken, the other dropped (rule 2).
    CompareEpochFirst = "compare_epoch_first",
    /// A claimant adopts its own copy as it was when the round began (rule 3).
    SnapshotAtLookupStart = "snapshot_at_lookup_start",
    /// A peer forgets what it promised (rule 3).
    NoPromise = "no_promise",
    /// The last owner is not asked (rule 4).
    OwnerNotAsked = "owner_not_asked",
    /// The list of the present membership alone is asked (rule 5).
    PresentListOnly = "present_list_only",
    /// A silent member counts as "nothing here" (rule 5).
    FreshOnTimeout = "fresh_on_timeout",
    /// A delta is applied to whatever copy is here (rule 7).
    ApplyWithoutBase = "apply_without_base",
    /// A refusal is taken for a bad backup, and another one sought (rule 7).
    RetryRefusedElsewhere = "retry_refused_elsewhere",
    /// The old backup drops its copy before the new one has it (rule 8).
    DropBeforeAck = "drop_before_ack",
    /// A response leaves before what it read is durable (rule 9).
    ServeUncommitted = "serve_uncommitted",
    /// A commit that was not acknowledged in time is rolled back, and its version used again (rule 10).
    ReuseVersion = "reuse_version_after_timeout",
    /// A commit is acknowledged before any backup has it (rule 11).
    AckBeforeBackup = "ack_before_backup",
    /// A missing commit is not missed: the best copy is served (rule 13).
    IgnoreToken = "ignore_token",
    /// The store's write is "greater wins" (rule 14).
    CasGreaterWins = "cas_greater_wins",
    /// An ended marker yields to a copy (rule 16).
    TombstoneYields = "tombstone_yields",
    /// An end stays what it was first heard to be (rule 18).
    FirstEndStays = "first_end_stays",
    /// The store's marker does not say under which id the session goes on (rule 18).
    NextNotStored = "next_not_stored",
    /// A session takes changes on while a rotation copies it, and ends whatever they were (rule 19).
    ChangedWhileRotating = "changed_while_rotating",
    /// A marker is sent once, and not again (rule 16).
    EndSentOnce = "end_sent_once",
    /// An owner that does not know that it is none any more is not told of an end (rules 4 and 16).
    FormerOwnerNotTold = "former_owner_not_told",
    /// Who comes to be on the list of an ended session does not hear of the end (rules 15 and 16).
    EndNotSpread = "end_not_spread",
    /// An attribute that is absent on one side always comes back in a merge (rule 17).
    MergeKeepsRemoved = "merge_keeps_removed",
    /// A merge keeps whatever both branches hold, too much of it too (rule 17).
    MergeOfAnySize = "merge_of_any_size",
    /// An owner trusts itself after a pause or a broken link (rule 20).
    NoSelfDoubt = "no_self_doubt",
    /// A drained node leaves when it owns nothing, whatever it holds (rule 21).
    DrainOwnedOnly = "drain_owned_only",
    /// The store never hears of a use (rule 28).
    TouchNeverStored = "touch_never_stored",
    /// What was sent on a link that closed stays in its peer's row as sent (rules 4 and 7).
    RowNotPutBack = "row_not_put_back",
    /// An acknowledgement counts whatever it is of: what was sent before a gap, or before a refusal (rule 7).
    FormerAckCounts = "former_ack_counts",
    /// An owner names all of its list as backups, whatever they have.
    ListIsBackups = "list_is_backups",
    /// Nobody inherits a dead owner's sessions, and copies are not made again (rule 8, heirs).
    NoRepair = "no_repair",
}
