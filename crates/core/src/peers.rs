//! [`Peers`]: what a node keeps in mind about other nodes for one session, a row each, and [`Peer::next`]: what such a node gets next.
//!
//! Whatever happens to a session changes rows, and nothing else is remembered about who was told what. What is due is sent afterwards, in
//! one place (`Session::sync`), and goes into the row. A link that breaks puts back what was on it.

use crate::limits::FORMER_MAX;
use crate::stamp::Life;
use crate::view::Lives;

/// One row for each peer.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    rows: Vec<Peer>,
    /// How many rows there have been.
    born: u32,
}

/// What is kept in mind about one peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) life: Life,
    /// It may hold a copy.
    pub(crate) holds: bool,
    /// What it was sent of this ownership's copy.
    pub(crate) given: Given,
    /// The version that it acknowledged.
    pub(crate) acked: Option<u32>,
    /// What was sent before a fresh start is not acknowledged by what comes after it.
    pub(crate) attempt: u32,
    /// Whether it must learn who owns the session.
    pub(crate) learns: Learns,
    /// It offered a branch: it learns who owns the session when all is durable, as proof that the branch is included.
    pub(crate) proof: bool,
    /// It is to be a guest, and gets a durable copy: the epoch of its claim.
    pub(crate) guest: Option<u32>,
}

/// How far a peer's copy is, as far as the owner has sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// Nothing that counts; it may have a copy. It is told what there is, and says what it lacks.
    Unknown,
    /// It lacks what there is.
    Nothing,
    /// This version, if nothing was lost.
    Version(u32),
    /// That its copy can go.
    Drop,
}

/// Whether a peer knows who owns the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learns {
    /// It does, or need not.
    Nothing,
    /// It must learn it.
    Owner,
    /// It was told, and has not confirmed it.
    Told,
    /// It had the session, and is no member now: it learns it if it comes back.
    Stranger,
}

/// What an owner sends to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The copy for a guest whose claim has this epoch.
    Stay(u32),
    /// Who owns the session.
    Owner,
    /// What there is: it acknowledges, or says what it needs.
    Have,
    /// The last commit.
    Delta,
    /// The whole record.
    Full,
    /// That its copy can go.
    Drop,
}

/// What an owner's side of that decision is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// There is something to have a copy of.
    pub(crate) content: bool,
    /// The newest version.
    pub(crate) version: u32,
    /// It is being committed just now, on top of the one before.
    pub(crate) commits: bool,
    /// It is durable.
    pub(crate) durable: bool,
    /// The peer is to hold a copy.
    pub(crate) listed: bool,
    /// It is not, and all that are have it.
    pub(crate) superfluous: bool,
}

impl Peer {
    /// What this peer gets next from the session's owner: the one place that decides it. A commit goes first.
    pub(crate) fn next(&self, now: Standing) -> Option<Next> {
        if self.holds && now.content {
            match self.given {
                Given::Drop => {}
                _ if now.superfluous => return Some(Next::Drop),
                Given::Version(version) if version < now.version => {
                    return Some(if now.commits && version + 1 == now.version { Next::Delta } else { Next::Full });
                }
                Given::Nothing if now.listed => return Some(Next::Full),
                // It would ask for the commit in any case.
                Given::Unknown if now.listed && now.commits => return Some(Next::Full),
                Given::Unknown => return Some(Next::Have),
                Given::Version(_) | Given::Nothing => {}
            }
        }
        match self.guest {
            Some(epoch) if now.durable => Some(Next::Stay(epoch)),
            _ => (self.learns == Learns::Owner || self.proof && now.durable).then_some(Next::Owner),
        }
    }

    /// Notes that this was sent, of the newest version.
    pub(crate) fn note_sent(&mut self, next: Next, now: Standing) {
        match next {
            Next::Stay(_) => self.guest = None,
            Next::Owner => (self.learns, self.proof) = (Learns::Told, self.proof && !now.durable),
            // If the peer has this state, the next delta fits; if not, its gap comes before anything else.
            Next::Have | Next::Delta | Next::Full => self.given = Given::Version(now.version),
            // What it acknowledges from here on it had before it dropped it.
            Next::Drop => self.start_afresh(Given::Drop),
        }
    }

    /// What was sent no longer counts, whatever is acknowledged of it.
    pub(crate) fn start_afresh(&mut self, given: Given) {
        (self.given, self.acked, self.attempt) = (given, None, self.attempt.wrapping_add(1));
    }

    /// Its link closed: what was sent on it may not have arrived.
    pub(crate) fn forget_sent(&mut self) {
        (self.given, self.attempt) = (Given::Unknown, self.attempt.wrapping_add(1));
        if self.learns == Learns::Told {
            self.learns = Learns::Owner;
        }
    }

    /// It must yet learn who owns the session, and may take itself for the owner.
    pub(crate) fn is_unheard(&self) -> bool {
        matches!(self.learns, Learns::Owner | Learns::Told)
    }

    /// Whether there is anything to keep in mind.
    pub(crate) fn matters(&self) -> bool {
        self.holds || self.learns != Learns::Nothing || self.proof || self.guest.is_some()
    }
}

impl Peers {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.rows.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.rows.iter_mut()
    }

    pub(crate) fn get(&self, life: Life) -> Option<&Peer> {
        self.rows.iter().find(|p| p.life == life)
    }

    pub(crate) fn get_mut(&mut self, life: Life) -> Option<&mut Peer> {
        self.rows.iter_mut().find(|p| p.life == life)
    }

    /// Those that may hold a copy.
    pub(crate) fn holders(&self) -> impl Iterator<Item = &Peer> {
        self.rows.iter().filter(|p| p.holds)
    }

    /// Who may hold a copy.
    pub(crate) fn holder_mut(&mut self, life: Life) -> Option<&mut Peer> {
        self.get_mut(life).filter(|p| p.holds)
    }

    /// Those who must yet learn who owns the session, and may take themselves for the owner.
    pub(crate) fn unheard(&self) -> impl Iterator<Item = Life> {
        self.rows.iter().filter(|p| p.is_unheard()).map(|p| p.life)
    }

    /// The row of a peer, a new one if there is none.
    #[expect(clippy::indexing_slicing, reason = "it is where it was found, or the last one")]
    pub(crate) fn row(&mut self, life: Life) -> &mut Peer {
        let at = self.rows.iter().position(|p| p.life == life).unwrap_or_else(|| {
            // One that was given up and comes back starts where no frame to its former row has been.
            self.born += 1;
            let attempt = self.born << 16;
            let (given, learns) = (Given::Unknown, Learns::Nothing);
            // Most sessions have one, and a million of them is no place for a vector's reserve.
            self.rows.reserve_exact(1);
            self.rows.push(Peer { life, holds: false, given, acked: None, attempt, learns, proof: false, guest: None });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// A peer may hold a copy; if that was not known, this is what it has been sent of it.
    pub(crate) fn holder(&mut self, life: Life, given: Given) -> &mut Peer {
        let peer = self.row(life);
        if !peer.holds {
            (peer.holds, peer.given, peer.acked) = (true, given, None);
        }
        peer
    }

    /// The version that a peer has acknowledged.
    pub(crate) fn acked(&self, life: Life) -> Option<u32> {
        self.get(life).filter(|p| p.holds).and_then(|p| p.acked)
    }

    /// Forgets the peers of which there is nothing to keep in mind.
    pub(crate) fn tidy(&mut self) {
        self.rows.retain(|p| p.matters());
    }

    /// The membership changed. The memory of a life that was replaced is gone; one that is only thought dead may come back with its copy.
    pub(crate) fn note_members(&mut self, may_return: impl Fn(Life) -> bool) {
        self.rows.retain(|p| p.matters() && (p.learns == Learns::Stranger || may_return(p.life)));
        for p in self.rows.iter_mut().filter(|p| p.learns == Learns::Stranger && may_return(p.life)) {
            p.learns = Learns::Owner;
        }
    }

    /// The record is not what anybody was sent: a merge has made it.
    pub(crate) fn holders_lack(&mut self) {
        for p in self.rows.iter_mut().filter(|p| p.holds && p.given != Given::Drop) {
            p.given = Given::Nothing;
        }
    }

    /// An ownership of this node, `me`, begins: what was sent of another one does not count.
    pub(crate) fn begin_ownership(&mut self, me: Life) {
        self.rows.retain(|p| p.life != me);
        self.rows.iter_mut().for_each(Peer::forget_sent);
        self.rows.iter_mut().for_each(|p| p.acked = None);
    }

    /// This node owns the session no longer. Who may hold a copy of that time learns who owns it now, when this node does.
    pub(crate) fn end_ownership(&mut self) {
        for p in &mut self.rows {
            (p.guest, p.proof) = (None, false);
            if p.learns == Learns::Stranger {
                p.learns = Learns::Nothing;
            }
        }
        self.tidy();
    }

    /// Remembers a peer that may have a copy from before. Beyond the limit the oldest is forgotten: such a copy looks for its owner itself.
    pub(crate) fn note_former(&mut self, life: Life) {
        self.holder(life, Given::Unknown);
        if self.holders().count() > FORMER_MAX
            && let Some(oldest) = self.rows.iter_mut().find(|p| p.holds)
        {
            oldest.holds = false;
        }
        self.tidy();
    }

    /// Takes those out that may have copies from a former ownership.
    pub(crate) fn take_former(&mut self) -> Lives {
        let former = self.holders().map(|p| p.life).collect();
        self.rows.iter_mut().for_each(|p| p.holds = false);
        self.tidy();
        former
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: Life = Life::new(2);

    /// The owner's newest version is 3, all is durable, and the peer is to hold a copy.
    const NOW: Standing = Standing { content: true, version: 3, commits: false, durable: true, listed: true, superfluous: false };

    fn holder(given: Given) -> Peer {
        let mut peers = Peers::default();
        *peers.holder(OTHER, given)
    }

    #[test]
    fn a_commit_goes_as_a_delta_where_the_one_before_it_went_and_else_as_the_record() {
        let commits = Standing { commits: true, durable: false, ..NOW };
        assert_eq!(holder(Given::Version(2)).next(commits), Some(Next::Delta));
        assert_eq!(holder(Given::Version(1)).next(commits), Some(Next::Full));
        assert_eq!(holder(Given::Nothing).next(commits), Some(Next::Full));
        assert_eq!(holder(Given::Unknown).next(commits), Some(Next::Full));
        assert_eq!(holder(Given::Version(3)).next(commits), None, "sent");
        assert_eq!(holder(Given::Drop).next(commits), None, "it drops its copy");
    }

    #[test]
    fn who_may_have_a_copy_is_told_what_there_is_before_it_is_sent() {
        assert_eq!(holder(Given::Unknown).next(NOW), Some(Next::Have));
        assert_eq!(holder(Given::Unknown).next(Standing { listed: false, ..NOW }), Some(Next::Have));
        assert_eq!(holder(Given::Nothing).next(NOW), Some(Next::Full));
        assert_eq!(holder(Given::Unknown).next(Standing { content: false, ..NOW }), None, "there is nothing");
    }

    #[test]
    fn a_copy_that_nobody_asked_for_goes_when_all_that_are_to_hold_one_have_it_and_not_before() {
        let extra = Standing { listed: false, ..NOW };
        for given in [Given::Nothing, Given::Version(3)] {
            assert_eq!(holder(given).next(extra), None);
        }
        for given in [Given::Unknown, Given::Nothing, Given::Version(2), Given::Version(3)] {
            let mut peer = holder(given);
            let superfluous = Standing { superfluous: true, ..extra };
            assert_eq!(peer.next(superfluous), Some(Next::Drop), "{given:?}");
            peer.note_sent(Next::Drop, superfluous);
            assert_eq!(peer.next(superfluous), None, "once");
        }
    }

    #[test]
    fn who_is_to_learn_who_owns_it_is_told_until_it_confirms_it_however_often_the_link_breaks() {
        let mut peer = *Peers::default().row(OTHER);
        peer.learns = Learns::Owner;
        for _ in 0..2 {
            assert_eq!(peer.next(NOW), Some(Next::Owner));
            peer.note_sent(Next::Owner, NOW);
            assert_eq!((peer.next(NOW), peer.is_unheard()), (None, true));
            peer.forget_sent();
        }
    }

    #[test]
    fn a_guest_gets_a_durable_copy_and_who_offered_a_branch_the_proof_when_it_is_durable() {
        let mut peer = *Peers::default().row(OTHER);
        (peer.guest, peer.proof) = (Some(7), true);
        assert_eq!(peer.next(Standing { durable: false, ..NOW }), None);
        assert_eq!(peer.next(NOW), Some(Next::Stay(7)));
        peer.note_sent(Next::Stay(7), NOW);
        assert_eq!(peer.next(NOW), Some(Next::Owner));
        peer.note_sent(Next::Owner, NOW);
        assert_eq!(peer.next(NOW), None);
    }

    #[test]
    fn who_was_told_before_the_branch_was_durable_gets_the_proof_all_the_same() {
        let mut peer = *Peers::default().row(OTHER);
        (peer.learns, peer.proof) = (Learns::Owner, true);
        peer.note_sent(Next::Owner, Standing { durable: false, ..NOW });
        assert_eq!(peer.next(NOW), Some(Next::Owner));
    }

    #[test]
    fn an_acknowledgement_of_what_was_sent_before_a_fresh_start_does_not_count() {
        let mut peer = holder(Given::Version(3));
        (peer.acked, peer.attempt) = (Some(2), 5);
        peer.start_afresh(Given::Nothing);
        assert_eq!((peer.acked, peer.attempt), (None, 6));
        let mut peers = Peers::default();
        let first = peers.holder(OTHER, Given::Nothing).attempt;
        peers.row(OTHER).holds = false;
        peers.tidy();
        assert_ne!(peers.holder(OTHER, Given::Nothing).attempt >> 16, first >> 16, "a row that comes back begins beyond the former one");
    }

    #[test]
    fn what_a_former_ownership_left_to_tell_is_told_by_the_next_one_and_the_oldest_copies_are_forgotten_first() {
        let mut peers = Peers::default();
        peers.row(OTHER).learns = Learns::Told;
        peers.holder(Life::new(3), Given::Version(9)).guest = Some(1);
        peers.end_ownership();
        assert_eq!(peers.unheard().collect::<Vec<_>>(), [OTHER]);
        assert_eq!(peers.get(Life::new(3)).and_then(|p| p.guest), None, "whoever asked this ownership asks again");
        peers.begin_ownership(Life::new(1));
        assert_eq!(peers.get(OTHER).and_then(|p| p.next(NOW)), Some(Next::Owner));
        assert_eq!(peers.get(Life::new(3)).map(|p| p.given), Some(Given::Unknown));
        (10..10 + FORMER_MAX as u64).for_each(|n| peers.note_former(Life::new(n)));
        assert_eq!((peers.holders().count(), peers.get(Life::new(3)).is_some()), (FORMER_MAX, false));
    }

    #[test]
    fn a_life_that_cannot_come_back_is_forgotten_and_a_stranger_is_told_when_it_does() {
        let mut peers = Peers::default();
        peers.holder(OTHER, Given::Version(3));
        peers.row(Life::new(3)).learns = Learns::Stranger;
        peers.note_members(|_| false);
        assert_eq!(peers.iter().map(|p| p.life).collect::<Vec<_>>(), [Life::new(3)]);
        peers.note_members(|_| true);
        assert_eq!(peers.get(Life::new(3)).and_then(|p| p.next(NOW)), Some(Next::Owner));
    }
}
