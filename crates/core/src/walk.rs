//! The one walk that repairs: after every change of the membership it visits each copy, places it anew, finds heirs, and lets
//! every fork meet. The sweep that expires sessions lives here too.

use crate::copy::{Copy, jitter};
use crate::cx::{Call, Cx, Timer};
use crate::id::SessionKey;
use crate::limits::HEIR_STEP;
use crate::link::{Link, Sent};
use crate::output::Live;
use crate::peers::{Learns, Peers};
use crate::plant::Bug;
use crate::session::{Seen, Session, Slot, State};
use crate::shard::Shard;
use crate::stamp::Life;
use crate::time::ms;
use crate::view::{Lives, View};
use crate::wire::{Message, Why};
use core::time::Duration;
use std::sync::Arc;

/// Visits after which the walk looks whether the others get through what it sends.
const STRIDE: usize = 8;
/// Reports of a copy without an answer before its holder claims the session.
const REPORTS: u8 = 3;
/// How long a hint at who owned a session stays after the session may have expired.
const FACADE_KEEP: Duration = Duration::from_secs(360);

impl<L: Live> Shard<L> {
    /// Takes a new view, and plans a visit to every copy: first those that a response waits for.
    pub(crate) fn set_view(&mut self, call: &mut Call<'_>, view: Arc<View>) {
        if view.order < self.view.order {
            return;
        }
        // A link that is gone may have taken along what was sent on it.
        let gone = |(life, link): &(Life, Arc<Link>)| view.link(*life).is_none_or(|new| new.id != link.id).then_some(*life);
        let gone: Lives = self.view.links.iter().filter_map(gone).collect();
        if !gone.is_empty() {
            for (own, copy) in self.table.values_mut().filter_map(|slot| slot.owned()) {
                for peer in copy.peers.iter_mut().filter(|p| gone.contains(&p.life)) {
                    if !call.config.planted(Bug::RowNotPutBack) {
                        peer.forget_sent();
                    }
                    if peer.holds && call.config.planted(Bug::ReuseVersion) && !own.all_durable() {
                        own.version = own.durable.unwrap_or(0);
                    }
                }
            }
        }
        let same = self.view.places_like(&view);
        let before = core::mem::replace(&mut self.view, view);
        self.tell_newcomers(call, &before);
        if same {
            return self.rounds_after_change(call);
        }
        let mut waiting: Vec<SessionKey> = Vec::new();
        let mut others: Vec<SessionKey> = Vec::new();
        for (key, slot) in &self.table {
            match slot.seen() {
                Seen::Owned(_, own) if !own.all_durable() => waiting.push(*key),
                Seen::Owned(..) | Seen::Held(_) | Seen::Ended(_) => others.push(*key),
                Seen::Nothing | Seen::Facade(_) => {}
            }
        }
        // The order of a hash map is nobody's business; one seed must replay to the same bytes.
        waiting.sort_unstable();
        others.sort_unstable();
        self.walk = others.into();
        // What is owned here is visited, and comes again.
        self.queues.inviting.clear();
        self.queues.invited.clear();
        for key in waiting {
            self.with(call, key, |session, cx| session.visit(cx));
        }
        self.rounds_after_change(call);
    }

    fn rounds_after_change(&mut self, call: &mut Call<'_>) {
        for key in self.queues.rounds.iter().copied().collect::<Vec<_>>() {
            self.with(call, key, |session, cx| session.round_after_change(cx));
        }
    }

    /// Visits up to `budget` copies of the walk; what is left of the budget.
    ///
    /// It goes no faster than the others get through what it sends them, but for a few visits. Whoever has more to do than it can is heard
    /// late, for gossip waits in the same queue; heard too late it is declared dead, and when it comes back there is a walk again.
    pub(crate) fn walk(&mut self, call: &mut Call<'_>, budget: usize) -> usize {
        for visited in 0..budget {
            if visited > 0 && visited.is_multiple_of(STRIDE) && self.view.is_behind() {
                return 0;
            }
            let Some(key) = self.walk.pop_front() else {
                self.walked = self.view.clone();
                return budget - visited;
            };
            self.with(call, key, |session, cx| session.visit(cx));
        }
        0
    }

    /// Whether everything has been visited and every owned session is where it should be.
    pub(crate) fn is_settled(&self) -> bool {
        self.walk.is_empty() && self.queues.repairing.is_empty()
    }

    /// Expires what has outlived its limits: owned sessions by their own clock, facades and markers when they are due.
    pub(crate) fn sweep(&mut self, call: &mut Call<'_>) {
        let now = call.now;
        let (mut due, mut marked) = (Vec::new(), 0);
        let mut stays = |key: &SessionKey, seen: Seen<'_, L>| match seen {
            Seen::Nothing => false,
            Seen::Facade(f) => now <= f.expires + FACADE_KEEP,
            Seen::Ended(e) => {
                // What not everybody has confirmed stays.
                let stays = now <= e.until || e.telling.is_some();
                marked += usize::from(stays);
                stays
            }
            Seen::Owned(copy, own) => {
                if own.running == 0 && now > own.ends(&copy.record) {
                    due.push(*key);
                }
                true
            }
            Seen::Held(copy) => {
                // An owner tells its holders when a session expires; this is for a copy that everybody forgot.
                if now > copy.record.over() + copy.record.limits().idle + Duration::from_secs(60) {
                    due.push(*key);
                }
                true
            }
        };
        self.table.retain(|key, slot| match slot {
            slot if stays(key, slot.seen()) => true,
            Slot::Facade(_) | Slot::Ended(_) => false,
            // What is under way for it goes on.
            Slot::Here(session) => {
                session.state = State::Nothing;
                session.stays_here()
            }
        });
        self.queues.marked = marked;
        due.sort_unstable();
        for key in due {
            self.with(call, key, |session, cx| session.expire(cx));
        }
        self.rebalance(call);
    }

    /// Wakes whatever is due.
    pub(crate) fn wake(&mut self, call: &mut Call<'_>) {
        while let Some(&(due, key, timer)) = self.queues.timers.first() {
            if due > call.now {
                return;
            }
            self.queues.timers.pop_first();
            self.with(call, key, |session, cx| session.wake(cx, timer));
        }
    }
}

impl<L: Live> Session<L> {
    pub(crate) fn visit(&mut self, cx: &mut Cx<'_>) {
        let view = cx.view;
        if self.ended().is_some() {
            return self.spread_end(cx);
        }
        if self.owns() {
            return self.visit_owned(cx);
        }
        let Some(copy) = self.backed() else { return };
        if cx.planted(Bug::NoRepair) {
            return;
        }
        let owner = copy.accepted;
        if owner.life != view.me {
            self.pass_on(cx, owner);
        }
        let Some(copy) = self.copy_mut() else { return };
        if owner.life == view.me || view.is_away(owner.life) {
            // Whoever was promised the session a moment ago gets the time to own it.
            let promised = copy.promised_at + cx.config.lookup_bound * 2;
            let wait = if copy.promised > owner { promised.since(cx.now) } else { Duration::ZERO };
            cx.set_timer(cx.now + wait + HEIR_STEP * view.my_rank(cx.key), Timer::Heir);
        } else if view.link(owner.life).is_some_and(|link| copy.reported != Some(link.id)) {
            // The owner may not know of this copy, may want it dropped, or may have ended the session meanwhile.
            self.report(cx);
        }
    }

    fn visit_owned(&mut self, cx: &mut Cx<'_>) {
        if cx.planted(Bug::NoRepair) {
            return self.advance(cx);
        }
        let view = cx.view;
        let Some((own, Copy { record, peers, .. })) = self.owned() else { return };
        own.replace_list(view, cx.key, peers);
        if cx.config.planted(Bug::DropBeforeAck) {
            peers.iter_mut().for_each(|p| p.holds &= own.list.contains(&p.life));
            for link in view.others().filter(|p| !own.list.contains(&p.life)).filter_map(|p| p.link.as_ref()) {
                let (claim, tip, lineage) = (own.claim, record.tip, (&record.lineage).into());
                link.send(&Message::Drop { key: cx.key, claim, tip, lineage }, None, cx.out);
            }
        }
        let lacks = own.by_list(peers) != Some(own.version) || peers.holders().count() > own.list.len();
        if record.tip.version > 0 && lacks {
            cx.queues.repairing.insert(cx.key);
        }
        // The first n + 1 of the list know the owner, copy or not: there two owners are found out who have no holder in common.
        let knows = |peers: &Peers, life: Life| life == view.me || peers.get(life).is_some_and(|p| p.holds);
        for life in view.list(cx.key) {
            if !knows(peers, life) {
                peers.row(life).learns = Learns::Owner;
            }
        }
        self.advance(cx);
        self.invite(cx);
    }

    /// Tells the owner which copy this node has.
    pub(crate) fn report(&mut self, cx: &mut Cx<'_>) {
        let view = cx.view;
        let Some(copy) = self.copy_mut() else { return };
        // If the last that was heard of is away, the one whose state this is may know who came after.
        let unheard = copy.heard.life == view.me || view.is_away(copy.heard.life);
        let owner = if unheard { copy.accepted } else { copy.heard };
        let Some(link) = view.link(owner.life) else { return };
        copy.reported = Some(link.id);
        let idle_ms = ms(cx.now.since(copy.record.used));
        link.send(&Message::Report { key: cx.key, claim: owner, idle_ms }, Some(Sent::note(cx.key)), cx.out);
        self.offer_branch(cx, owner.life);
    }

    /// A holder whose owner is dead inherits, after a pause by rank.
    pub(crate) fn heir_due(&mut self, cx: &mut Cx<'_>) {
        let view = cx.view;
        if let Some((own, _)) = self.owner() {
            // A round that was to end a refusal came to nothing.
            if own.refused && self.round().is_none() {
                let _ = self.request_round(cx, Why::Doubt, None, None);
            }
            return;
        }
        let Some(copy) = self.backed() else { return };
        let owner = copy.accepted;
        let astray = copy.disowned || copy.heard > owner && copy.heard.life != view.me;
        if !(owner.life == view.me || view.is_away(owner.life) || astray) {
            // It is back, and may not know of this copy.
            return self.report(cx);
        }
        if cx.now > copy.record.over() {
            return self.expire(cx);
        }
        let calls = view.link(owner.life).is_some_and(|link| link.has_called(cx.now));
        if calls && view.is_away(owner.life) && view.may_return(owner.life) && !astray {
            // Thought dead, and it speaks: it has too much to do, and will be back. Heirs who each think so of the other would take the
            // session from each other without end, and what would bring them together waits behind that.
            let again = HEIR_STEP * 20 + jitter(cx.random(), HEIR_STEP * 20);
            return cx.set_timer(cx.now + again, Timer::Heir);
        }
        let heard = copy.heard;
        if heard > owner && heard.life != view.me && !view.is_away(heard.life) && copy.reports < REPORTS {
            // Somebody was about to own it: they hear that there is a copy here.
            copy.reports += 1;
            self.report(cx);
            return cx.set_timer(cx.now + HEIR_STEP * 5, Timer::Heir);
        }
        if self.round().is_none() {
            let _ = self.request_round(cx, Why::Heir, None, None);
        }
        // If the round is refused, somebody else has it by then; if it fails, this tries again. Heirs that refuse each other must not
        // go on in step.
        let pause = HEIR_STEP * 10;
        let again = pause * (1 + view.my_rank(cx.key)) + jitter(cx.random(), pause);
        cx.set_timer(cx.now + again, Timer::Heir);
    }
}
