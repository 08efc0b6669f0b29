//! The membership as the shards see it: one immutable snapshot per change.

use crate::id::SessionKey;
use crate::limits::LOOKUP_BOUND_SUSPECT;
use crate::link::Link;
use crate::placement::{Place, list};
use crate::stamp::{Life, Stamp};
use crate::time::Mono;
use crate::wire::WireView;
use core::sync::atomic::Ordering;
use core::time::Duration;
use smallvec::SmallVec;
use std::sync::Arc;

/// A few lives.
pub(crate) type Lives = SmallVec<[Life; 4]>;

/// How a member is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Alive,
    Suspect,
    /// Its link closed and a reconnect was refused: it counts as silent at once.
    Gone,
}

/// One member that is not dead.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) life: Life,
    pub(crate) name: u64,
    pub(crate) zone: u64,
    pub(crate) health: Health,
    pub(crate) leaving: bool,
    pub(crate) observer: bool,
    pub(crate) link: Option<Arc<Link>>,
    /// What it and I own together is in doubt if it was confirmed before this.
    pub(crate) doubt: u32,
}

/// One membership, seen from this node.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) me: Life,
    pub(crate) generation: u32,
    /// It is later than every view with a lesser number.
    pub(crate) order: u64,
    /// Sorted by life; me included.
    pub(crate) peers: Vec<Peer>,
    /// All open links: whoever can say something to this node gets its answers, whether the members think that it lives or not.
    pub(crate) links: Vec<(Life, Arc<Link>)>,
    /// Memberships since the last settled one, this one not included.
    pub(crate) past: Vec<WireView>,
    /// More memberships than are kept: ask every member.
    pub(crate) past_lost: bool,
    /// The greatest of all doubt marks.
    pub(crate) doubt: u32,
    /// Members that died: when, and whether their name has been reborn or they had handed over all that they held.
    pub(crate) dead: Vec<(Life, Mono, bool)>,
    /// When this node started.
    pub(crate) started: Mono,
    /// This node has met the cluster, or knows that there is none.
    pub(crate) formed: bool,
    /// Members of its cluster refuse this node, and it is not in: it touches no session.
    pub(crate) refused: bool,
    /// This node leaves.
    pub(crate) leaving: bool,
    /// How many copies on other nodes the greatest of the members wants.
    pub(crate) backups: usize,
    /// A commit that was called done may be in the store alone: one of the members, or of those who died of late, does that.
    pub(crate) stores: bool,
}

impl View {
    /// Whether every session has its copies where it had them in `other`, over the same links: then no visit is due.
    pub(crate) fn places_like(&self, other: &View) -> bool {
        let place = |p: &Peer| (p.life, p.leaving, p.health == Health::Gone, p.link.as_ref().map(|l| l.id));
        let doubt = |v: &View| v.peer(v.me).map(|p| p.doubt);
        doubt(self) == doubt(other) && self.peers.iter().map(place).eq(other.peers.iter().map(place))
    }

    pub(crate) fn peer(&self, life: Life) -> Option<&Peer> {
        self.peers.binary_search_by_key(&life, |p| p.life).ok().and_then(|at| self.peers.get(at))
    }

    pub(crate) fn link(&self, life: Life) -> Option<&Arc<Link>> {
        self.links.binary_search_by_key(&life, |(l, _)| *l).ok().and_then(|at| self.links.get(at)).map(|(_, link)| link)
    }

    /// Whether that life is a member, or is thought dead and was not replaced by another life of its name.
    pub(crate) fn may_return(&self, life: Life) -> bool {
        self.peer(life).is_some() || self.dead.iter().any(|(l, _, replaced)| *l == life && !replaced)
    }

    /// Whether all members have finished their walks under this membership.
    pub(crate) fn is_settled(&self) -> bool {
        self.past.is_empty() && !self.past_lost
    }

    /// Whether waiting for that life is pointless: unknown, dead, or gone.
    pub(crate) fn is_away(&self, life: Life) -> bool {
        life != self.me && self.peer(life).is_none_or(|p| p.health == Health::Gone)
    }

    /// The members that are not me and can be talked to about sessions.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|p| p.life != self.me && !p.observer)
    }

    /// Whether one of them has so much to do already that what can wait should.
    pub(crate) fn is_behind(&self) -> bool {
        self.others().filter_map(|p| p.link.as_ref()).any(|link| link.is_behind())
    }

    /// The placement list: the first n + 1 of the ranking that are neither gone, dead nor leaving.
    pub(crate) fn list(&self, key: SessionKey) -> Lives {
        let stay = self.peers.iter().filter(|p| !p.observer && !p.leaving && p.health != Health::Gone);
        let places = stay.map(|p| Place { name_hash: p.name, life: p.life, zone: p.zone });
        list(key, self.backups + 1, places).iter().map(|p| p.life).collect()
    }

    /// The nodes of the list that hold a copy for this owner.
    pub(crate) fn holders(&self, key: SessionKey, owner: Life) -> Lives {
        let mut list = self.list(key);
        list.retain(|l| *l != owner);
        list.truncate(self.backups);
        list
    }

    /// Who is asked first in a claim round: the list under every membership since the last settled one, me not included.
    pub(crate) fn asked(&self, key: SessionKey) -> Lives {
        if self.past_lost {
            return self.others().map(|p| p.life).collect();
        }
        let mut asked = self.list(key);
        for past in &self.past {
            let places = past.members.iter().map(|m| Place { name_hash: m.name, life: self.me, zone: m.zone });
            for place in list(key, usize::from(past.backups) + 1, places) {
                asked.extend(self.peers.iter().find(|p| p.name == place.name_hash && !p.observer).map(|p| p.life));
            }
        }
        asked.sort_unstable();
        asked.dedup();
        asked.retain(|l| *l != self.me);
        asked
    }

    /// Whether nobody who may come back with the session, or with this commit of it, died less than `lost_after` ago.
    pub(crate) fn nobody_may_return(&self, wanted: &[Stamp], now: Mono, lost_after: Duration) -> bool {
        let past = |since: Mono| now.since(since) >= lost_after;
        let known = |life: Life| self.peer(life).is_some() || self.dead.iter().any(|(l, ..)| *l == life);
        self.dead.iter().all(|(_, at, over)| *over || past(*at)) && (past(self.started) || wanted.iter().all(|s| known(s.claim.life)))
    }

    /// My rank for this session: 0 is first; n + 1 if I am not on the list.
    pub(crate) fn my_rank(&self, key: SessionKey) -> u32 {
        self.list(key).iter().position(|l| *l == self.me).unwrap_or(self.backups + 1) as u32
    }

    /// How long to wait for an answer of that life.
    pub(crate) fn bound(&self, life: Life, now: Mono, full: Duration) -> Duration {
        let Some(peer) = self.peer(life) else { return full };
        match &peer.link {
            _ if peer.health == Health::Suspect => LOOKUP_BOUND_SUSPECT,
            Some(link) if link.silent.load(Ordering::Relaxed) => LOOKUP_BOUND_SUSPECT,
            Some(link) => link.bound(now, full),
            None => full,
        }
    }
}

#[cfg(test)]
impl View {
    /// Of a node that is alone.
    pub(crate) fn alone(me: Life) -> View {
        View {
            me,
            generation: 1,
            order: 1,
            peers: Vec::new(),
            links: Vec::new(),
            past: Vec::new(),
            past_lost: false,
            doubt: 0,
            dead: Vec::new(),
            started: Mono::ZERO,
            formed: true,
            refused: false,
            leaving: false,
            backups: 1,
            stores: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::name_hash;
    use crate::wire::WireMember;

    #[test]
    fn a_claimant_asks_as_far_down_a_past_list_as_its_members_made_copies() {
        let peer = |i: u64| Peer {
            life: Life::new(i),
            name: name_hash(&format!("n{i}")),
            zone: 0,
            health: Health::Alive,
            leaving: false,
            observer: false,
            link: None,
            doubt: 0,
        };
        let peers: Vec<Peer> = (0..9).map(peer).collect();
        let members: Vec<WireMember> = peers.iter().map(|p| WireMember { name: p.name, zone: 0 }).collect();
        let past = |backups| WireView { backups, stores: false, members: members.clone() };
        let view = |past| View { peers: peers.clone(), past, ..View::alone(Life::new(0)) };
        for i in 0..100_u128 {
            let key = SessionKey::from_bytes((i << 64 | i).to_be_bytes());
            let three: Lives =
                list(key, 4, peers.iter().map(|p| Place { name_hash: p.name, life: p.life, zone: 0 })).iter().map(|p| p.life).collect();
            let asked = view(vec![past(3)]).asked(key);
            assert!(three.iter().all(|l| *l == Life::new(0) || asked.contains(l)), "{three:?} {asked:?}");
            assert!(view(vec![past(1)]).asked(key).len() <= 2);
        }
    }
}
