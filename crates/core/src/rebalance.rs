//! What a node that has just (re)joined gets: a share of the sessions that others own, of those that nobody uses, few at a time.
//!
//! Owners move with requests and with failures, never back by themselves: after a deployment the node that was restarted last owns
//! nothing, and whoever was restarted first most. Clients stay with the owner, so the imbalance stays too. A node that owns far more than
//! another offers it resting sessions for which that one is the placement's first. The next request of such a session still comes to the
//! node that it knows. There it is a guest once, and the response says who serves the session now.

use crate::copy::Copy;
use crate::cx::Call;
use crate::id::SessionKey;
use crate::output::Live;
use crate::owner::Owner;
use crate::session::{Seen, Slot};
use crate::shard::Shard;
use crate::stamp::Life;
use crate::time::Mono;
use crate::wire::Message;
use core::time::Duration;
use smallvec::SmallVec;

/// A session that was not used for so long is not in use.
const RESTS: Duration = Duration::from_secs(10);
/// Sessions of one shard that are offered each time that it is swept, some 20 shards a second.
const OFFERS: usize = 8;

/// How many sessions each of some nodes owns.
type Owners = SmallVec<[(Life, u64); 8]>;

impl<L: Live> Shard<L> {
    /// Offers resting sessions to nodes that own far fewer than this one.
    pub(crate) fn rebalance(&mut self, call: &mut Call<'_>) {
        if self.view.leaving || !self.view.is_settled() || self.view.backups == 0 || !self.is_settled() {
            return;
        }
        let (mine, poor) = self.poor(call);
        if poor.is_empty() {
            return;
        }
        let mut resting: Vec<(Mono, SessionKey)> = Vec::new();
        for (key, slot) in &self.table {
            if let Slot::Here(session) = slot
                && let Some((own, copy)) = session.owner()
                && rests(own, copy, call.now)
                && session.round().is_none()
            {
                resting.push((copy.record.used, *key));
            }
        }
        // Those that have rested longest are the least likely to be wanted in this moment.
        resting.sort_unstable();
        let mut left: SmallVec<[(Life, usize); 8]> =
            poor.iter().map(|(life, owns)| (*life, OFFERS.min((mine - owns) as usize / 4))).collect();
        for (_, key) in resting {
            let Some(first) = self.view.list(key).first().copied() else { continue };
            let Some((_, left)) = left.iter_mut().find(|(life, left)| *life == first && *left > 0) else { continue };
            let has_it = |(own, copy): (&Owner<L>, &Copy)| copy.peers.acked(first) == Some(own.version);
            if let Some(link) = self.view.link(first)
                && self.owner(key).is_some_and(has_it)
            {
                *left -= 1;
                link.send(&Message::Invite { key }, None, call.out);
            }
        }
    }

    /// How many sessions this node owns here, and the nodes that own far fewer. Nobody says how many they own; of each one's sessions
    /// every other node holds the same share of the copies.
    fn poor(&self, call: &Call<'_>) -> (u64, Owners) {
        let stays = |life: Life| life != self.view.me && self.view.peer(life).is_some_and(|p| !p.leaving && !p.observer);
        let mut owners: Owners = self.view.others().filter(|p| stays(p.life) && p.link.is_some()).map(|p| (p.life, 0)).collect();
        let mut mine = 0;
        for slot in self.table.values() {
            match slot.seen() {
                Seen::Owned(..) => mine += 1,
                Seen::Held(copy) => {
                    if let Some((_, held)) = owners.iter_mut().find(|(life, _)| *life == copy.accepted.life) {
                        *held += 1;
                    }
                }
                Seen::Nothing | Seen::Facade(_) | Seen::Ended(_) => {}
            }
        }
        let (others, backups) = (owners.len() as u64, (self.view.backups as u64).min(owners.len() as u64));
        let slack = u64::from(call.config.uneven / u32::from(call.config.shards));
        for (_, owns) in &mut owners {
            *owns = *owns * others / backups.max(1);
        }
        owners.retain(|(_, owns)| *owns + mine / 4 + slack < mine);
        (mine, owners)
    }
}

/// Whether nobody uses a session that is owned here, and it can change hands without anybody's notice.
fn rests<L>(own: &Owner<L>, copy: &Copy, now: Mono) -> bool {
    let quiet = own.running == 0 && own.closing.is_none() && own.waiting.is_empty() && own.all_durable();
    // One that came back after a move is where its requests are.
    let plain = copy.moves == 0 && copy.told.is_empty() && copy.branch.is_none() && copy.record.tip.version > 0;
    // Whose cookie never came back is most likely nobody's, and over soon.
    quiet && plain && !copy.record.is_first() && now.since(copy.record.used) >= RESTS
}
