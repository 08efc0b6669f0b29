//! What may be other than an invariant says, and by which rule. Each excuse is counted in the seeds in which it fires: in which without
//! it a violation would have been reported. One that fires in every third seed is a hole in the judge.

macro_rules! excuses {
    ($($excuse:ident = $name:literal, $rests_on:literal, $says:literal;)*) => {
        /// See the [module](self).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Excuse { $(#[doc = $says] $excuse,)* }
        impl Excuse {
            pub(crate) const ALL: &'static [Excuse] = &[$(Excuse::$excuse,)*];
            pub(crate) fn name(self) -> &'static str {
                match self { $(Excuse::$excuse => $name,)* }
            }
            /// The rule of `docs/protocol.md`, or another page.
            pub(crate) fn rests_on(self) -> &'static str {
                match self { $(Excuse::$excuse => $rests_on,)* }
            }
            pub(crate) fn says(self) -> &'static str {
                match self { $(Excuse::$excuse => $says,)* }
            }
        }
    };
}

excuses! {
    HolderCrashed = "holder_crashed", "rule 12",
        "A holder crashed since enough copies were seen: the level that was answered says how many such crashes a change survives.";
    CrashUnnoticed = "crash_unnoticed", "rule 12",
        "A holder crashed within the 4 s before the answer: its acknowledgement was there, and nobody awake had noticed the crash yet.";
    LeftUnnoticed = "left_unnoticed", "rule 17",
        "A holder left in order within the 4 s before the answer, since the owner has it, which had not noticed yet.";
    HandedOver = "handed_over", "rule 17",
        "Who left in order had handed on what it held to those who stay, and they are fewer than the level says.";
    Leaving = "leaving", "rules 9 and 17",
        "Nodes are leaving, and so few stay that nobody keeps as many copies as the level says.";
    LeftSince = "left_since", "rule 17",
        "A holder left in order after enough copies were seen, and so few stay that nobody keeps as many.";
    DrainGivenUp = "drain_given_up", "rule 17",
        "A drain was given up, and said that it abandons sessions.";
    WantsFewer = "wants_fewer", "Where nodes differ",
        "An owner since then makes fewer copies: as many as the greatest of the members that it holds to be living wants.";
    StoreJumped = "store_jumped", "rule 29",
        "The store's clock has jumped: by it whatever only the store has may have expired.";
    Ended = "ended", "rule 18",
        "The session has ended, as some process has learnt.";
    MarkerOver = "marker_over", "rule 18",
        "The marker of its end was kept as long as the session could have lived; what has begun under its id since has nothing of it.";
    EndAsked = "end_asked", "rule 18",
        "Somebody has asked for its end: that may be done, or not be known anywhere yet.";
    NobodyHasIt = "nobody_has_it", "rule 19",
        "No client has its id: its creation or the rotation that made it was not answered.";
    Outlived = "outlived", "rules 27 to 29",
        "Its last use that was answered is longer ago than its idle timeout: it may have expired.";
    SaidExpired = "said_expired", "rule 31",
        "Its owner has said in time that it expired, and whoever has brought it back since has not changed it.";
    TokenRanOut = "token_ran_out", "rule 30",
        "The client's token has run out by the clock of the node that was asked.";
    BroughtBack = "brought_back", "rule 30",
        "Another client's request, whose token said that it lives, has brought it back meanwhile.";
    VouchedFor = "vouched_for", "rule 30",
        "Another client's request waits at the same node, in the same round, and its token said in time that the session lives.";
    BegunAnew = "begun_anew", "rule 26",
        "What a loss left has begun anew since the request came, with other limits.";
    JustSought = "just_sought", "rule 5",
        "The node looked for it within the last 6 s, while it may have been expired, and remembers that it found nothing.";
    OutOfReach = "out_of_reach", "rule 5",
        "Who holds it stands still, or something has come between it and the node within the last 12 s.";
    StoredOnly = "stored_only", "rule 4",
        "The store alone has it, and the answer was not of level `store`: a reader without its token is answered from memory.";
    ReadAgain = "read_again", "rule 4",
        "The store alone may have had it when the read began: the client reads once more.";
    LossReported = "loss_reported", "docs/config.md, `on_lost`",
        "A loss was reported, and with `on_lost = new` the session is empty since then.";
    LeftOut = "left_out", "rule 20",
        "A merge had no room for it, and a conflict event has named it.";
    ConflictReported = "conflict_reported", "rule 20",
        "Two branches had changed the list, and a conflict event has named it.";
    LateCommit = "late_commit", "rules 4 and 8",
        "It was sent to an owner, which handed the session on: each owner that commits it gives it a stamp of its own.";
    MarkerDied = "marker_died", "rule 18",
        "Nobody who lives knew of the end when the request came.";
    SameInstant = "same_instant", "rule 18",
        "The node learnt of the end in the instant in which it served the session.";
    WhoKnewIsGone = "who_knew_is_gone", "rule 18",
        "A process ended between the rotation and the logout's arrival: it may have been the one that knew that one id follows the other.";
    EndPending = "end_pending", "rule 18",
        "The logout was answered as pending, or by a node that did not see all others.";
    StandsStill = "stands_still", "ARCHITECTURE.md, When things break",
        "The node that was asked stands still.";
    Troubled = "troubled", "ARCHITECTURE.md, When things break",
        "Something has come between the node that was asked and another within the last 15 s.";
}

/// An excuse that covers whatever is missing.
pub(crate) const ALL_OF_IT: u32 = u32::MAX;

/// Which excuses this seed needed.
#[derive(Debug)]
pub(crate) struct Excuses {
    fired: Vec<bool>,
}

impl Excuses {
    pub(crate) fn new() -> Excuses {
        Excuses { fired: vec![false; Excuse::ALL.len()] }
    }

    pub(crate) fn fired(self) -> Vec<bool> {
        self.fired
    }

    /// Whether so much that is missing is excused, each excuse covering so much of it: by the first that does alone, or else by the first
    /// ones together. It counts those that were needed, and says which was the first.
    pub(crate) fn cover(&mut self, missing: u32, by: &[(Excuse, u32)]) -> Option<Excuse> {
        if let Some((alone, _)) = by.iter().find(|(_, much)| *much >= missing && *much > 0) {
            self.fired[*alone as usize] = true;
            return Some(*alone);
        }
        let (mut left, mut needed) = (missing, Vec::new());
        for (excuse, much) in by.iter().filter(|(_, much)| *much > 0) {
            if left > 0 {
                needed.push(*excuse);
                left = left.saturating_sub(*much);
            }
        }
        if left > 0 {
            return None;
        }
        for excuse in &needed {
            self.fired[*excuse as usize] = true;
        }
        needed.first().copied()
    }

    /// Whether something that is wrong is excused by the first of these that applies.
    pub(crate) fn any(&mut self, by: &[(Excuse, bool)]) -> bool {
        let by: Vec<(Excuse, u32)> = by.iter().map(|(excuse, applies)| (*excuse, u32::from(*applies))).collect();
        self.cover(1, &by).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::{ALL_OF_IT, Excuse, Excuses};

    #[test]
    fn only_what_was_needed_is_counted() {
        let mut excuses = Excuses::new();
        let two = [(Excuse::HolderCrashed, 1), (Excuse::Leaving, 1), (Excuse::LeftSince, 1)];
        assert_eq!(excuses.cover(2, &two), Some(Excuse::HolderCrashed));
        assert_eq!(excuses.cover(4, &two), None);
        assert_eq!(excuses.cover(3, &[(Excuse::WantsFewer, 1), (Excuse::Ended, ALL_OF_IT)]), Some(Excuse::Ended));
        assert!(!excuses.any(&[(Excuse::MarkerDied, false)]));
        let fired: Vec<Excuse> = Excuse::ALL.iter().copied().filter(|e| excuses.fired[*e as usize]).collect();
        assert_eq!(fired, [Excuse::HolderCrashed, Excuse::Leaving, Excuse::Ended]);
    }
}
