//! I1: when a process ends, nothing that was answered ends with it, unless more holders have ended than its level survives.

use super::excuse::{ALL_OF_IT, Excuse, Excuses};
use super::holders::Holders;
use super::survival::copies_of;
use super::{Session, Value};
use crate::marks::Mark;
use crate::world::World;
use outlive_core::config::Level;
use outlive_core::member::State;
use std::collections::BTreeSet;

/// How many nodes drain, and how many places for copies those that stay are. Before a drain is over its copies may be gone already, and
/// nobody keeps more of them than there are nodes that stay (rules 9 and 17).
pub(super) struct Stay {
    pub(super) leaving: u32,
    pub(super) places: u32,
}

/// A process that ends.
struct Exit {
    node: usize,
    crash: bool,
    drains: bool,
    /// Its drain was given up, which says how many sessions it abandons: that is no surprise.
    abandons: bool,
    at: i64,
    store_jumped: bool,
}

/// What it takes along of a value.
enum Taken {
    Nothing,
    BeyondSaving,
    Wrongly(String),
}

impl World {
    pub(super) fn stay(&self, session: usize, holders: &Holders) -> Stay {
        let key = self.sessions[session].key;
        let procs = || self.nodes.iter().filter_map(|s| s.proc.as_ref());
        let places = holders.nodes.iter().filter_map(|(n, ..)| Some(self.nodes[*n].proc.as_ref()?.engine.placed(key).len())).min();
        let leaving = procs().filter(|p| p.draining.is_some()).count() as u32;
        // A copy that went when there were fewer does not come back with them at once.
        Stay { leaving, places: (places.unwrap_or(0) as u32).min(self.fewest) }
    }

    /// A node owns this session, or sees other members than before: so many copies are made from now on.
    pub(crate) fn note_wanted(&mut self, node: usize, session: usize) {
        let Some(p) = self.nodes[node].proc.as_ref() else { return };
        if !p.engine.info(self.sessions[session].key).is_some_and(|i| i.owned) {
            return;
        }
        let living = p.engine.members().into_iter().filter(|m| m.state != State::Dead && !m.node.observer);
        let wanted = living.map(|m| u32::from(m.node.backups)).max().unwrap_or(0);
        for v in self.sessions[session].values.values_mut() {
            v.wanted = v.wanted.min(wanted);
        }
    }

    /// A process is about to end: which acknowledged commits end with it, and may they?
    pub(crate) fn account_for_loss(&mut self, node: usize, crash: bool) {
        if crash {
            self.forget_uses();
        }
        let draining = self.nodes[node].proc.as_ref().and_then(|p| p.draining);
        let (drains, abandons) = (draining.is_some(), draining == Some(i64::MIN));
        let exit = Exit { node, crash, drains, abandons, at: self.now, store_jumped: self.store_jumped };
        for session in 0..self.sessions.len() {
            if !self.sessions[session].has_ended() {
                self.account_for(session, &exit);
            }
        }
    }

    fn account_for(&mut self, session: usize, exit: &Exit) {
        let (node, key) = (exit.node, self.sessions[session].key);
        // Commits that no answer has named yet are counted as well.
        if let Some(record) = self.nodes[node].proc.as_ref().and_then(|p| p.engine.peek(key, |r, _| r.clone())) {
            self.see(node, session, &record, "held");
        }
        let holders = self.holders(session);
        self.check_info(session, &holders);
        let needed: BTreeSet<u32> = self.sessions[session].owed().map(|(n, _)| n).collect();
        let stay = self.stay(session, &holders);
        let copies = self.copies(session, &holders, &needed);
        let World { sessions, excuses, .. } = self;
        let Session { values, outlived, .. } = &mut sessions[session];
        let (mut wrong, mut losses) = (None, 0);
        for (n, v) in values.iter_mut().filter(|(_, v)| v.lost.is_none() && v.removed.is_none()) {
            v.count_exit(*n, exit, &holders, copies);
            match v.taken(*n, exit, &holders, &stay, *outlived, excuses) {
                Taken::Nothing => {}
                Taken::BeyondSaving => losses += 1,
                Taken::Wrongly(what) => wrong = Some(what),
            }
        }
        if losses > 0 {
            self.mark(Mark::LegitLoss);
            self.log(node, || format!("{key:?} {losses} commits are beyond saving"));
        }
        if let Some(wrong) = wrong {
            self.violate(format!("I1 {key:?} {wrong} and an exit of n{node}"));
        }
    }

    /// The store's clock has jumped: what it alone has may have expired by that.
    pub(crate) fn forget_stored(&mut self, session: usize) {
        let holders = self.holders(session);
        let s = &mut self.sessions[session];
        for (n, v) in &mut s.values {
            if v.stamp.is_some_and(|stamp| holders.of(*n, stamp).next().is_none()) {
                v.lost.get_or_insert(Excuse::StoreJumped);
            }
        }
        s.learnt += 1;
    }
}

impl Value {
    fn count_exit(&mut self, n: u32, exit: &Exit, holders: &Holders, copies: u32) {
        let Some(stamp) = self.stamp else { return };
        let here = holders.of(n, stamp).any(|at| at == exit.node);
        let wanted = match self.acked.unwrap_or(Level::Owner) {
            Level::Backup(k) => u32::from(k).min(self.wanted) + 1,
            level => copies_of(level),
        };
        // Copies that are behind are caches: whoever has them may be told to drop them.
        if self.acked.is_some() && copies >= wanted {
            (self.exits.crashed, self.exits.given_up, self.exits.handed_over) = (0, 0, 0);
        }
        if here && exit.crash {
            self.exits.crashed += u32::from(!exit.abandons);
            self.exits.given_up |= if exit.abandons { 100 } else { 0 };
            self.exits.crashed_at.push(exit.at);
        }
        if !exit.crash {
            self.exits.left += u32::from(here);
            // A commit that has no answer yet may have had a copy there: another owner has told who leaves that it can go.
            if here || self.acked.is_none() {
                self.exits.left_at.push(exit.at);
            }
        }
        // A drain is done when those who stay have it, and they may be fewer than the level says. The same for one that a crash cut short
        // after this copy had gone.
        self.exits.handed_over += u32::from((!exit.crash || exit.drains && !here) && copies < wanted);
    }

    fn taken(&mut self, n: u32, exit: &Exit, holders: &Holders, stay: &Stay, outlived: bool, excuses: &mut Excuses) -> Taken {
        let Some(stamp) = self.stamp else { return Taken::Nothing };
        if holders.of(n, stamp).any(|at| at != exit.node) {
            return Taken::Nothing;
        }
        let gone = self.acked.filter(|_| !holders.stored(n, stamp));
        let all = |excuse, applies: bool| (excuse, if applies { ALL_OF_IT } else { 0 });
        let mut by = vec![all(Excuse::StoreJumped, exit.store_jumped), all(Excuse::Outlived, outlived)];
        let Some(level) = gone else {
            // By a clock that jumped the store may believe whatever it has to be over.
            self.lost = self.lost.or(exit.store_jumped.then_some(Excuse::StoreJumped));
            return Taken::Nothing;
        };
        // Who leaves in order takes nothing with it; but its copy may have gone before, on the word of an owner that died.
        let here = holders.of(n, stamp).next().is_some();
        if exit.crash || !here {
            by.extend(self.fewer(level, stay));
        }
        match excuses.cover(copies_of(level), &by) {
            Some(Excuse::Outlived) => Taken::Nothing,
            Some(excuse) => {
                self.lost = Some(excuse);
                if excuse == Excuse::StoreJumped { Taken::Nothing } else { Taken::BeyondSaving }
            }
            None => Taken::Wrongly(format!("e{n} ({stamp:?}), answered at {level}, is nowhere after {:?}", self.exits)),
        }
    }
}
