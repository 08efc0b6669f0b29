//! I1 and I11: what was answered is held as its level says, and is somewhere as long as no more holders crash than the level survives.

use super::excuse::{ALL_OF_IT, Excuse};
use super::exits::Stay;
use super::holders::Holders;
use super::{Session, Value};
use crate::marks::Mark;
use crate::options::S;
use crate::world::World;
use outlive_core::config::Level;
use std::collections::BTreeSet;

/// How many copies must end for a change of this level to end.
pub(super) fn copies_of(level: Level) -> u32 {
    match level {
        Level::Owner => 1,
        Level::Backup(k) => u32::from(k) + 1,
        Level::Store => u32::MAX,
    }
}

/// How many of these came later than that.
fn after(times: &[i64], noticed: i64) -> u32 {
    times.iter().filter(|at| **at > noticed).count() as u32
}

impl Value {
    /// How many of the copies of its level none need be any more, where so many stay.
    pub(super) fn fewer(&self, level: Level, stay: &Stay) -> Vec<(Excuse, u32)> {
        let wants_fewer = match level {
            Level::Backup(k) => u32::from(k).saturating_sub(self.wanted),
            Level::Owner | Level::Store => 0,
        };
        let leaving = if stay.places < copies_of(level) - wants_fewer { stay.leaving } else { 0 };
        vec![
            (Excuse::HolderCrashed, self.exits.crashed),
            (Excuse::DrainGivenUp, self.exits.given_up),
            (Excuse::HandedOver, self.exits.handed_over),
            (Excuse::Leaving, leaving),
            (Excuse::WantsFewer, wants_fewer),
        ]
    }
}

impl World {
    /// A response that includes these values has left at that level.
    pub(crate) fn acknowledge(&mut self, node: usize, session: usize, values: &BTreeSet<u32>, level: Option<Level>) {
        let Some(level) = level else { return };
        self.mark(match level {
            Level::Owner => Mark::LevelOwner,
            Level::Backup(1) => Mark::LevelBackup1,
            Level::Backup(_) => Mark::LevelBackup2,
            Level::Store => Mark::LevelStore,
        });
        let noticed = self.noticed(node);
        let holders = self.holders(session);
        let stay = self.stay(session, &holders);
        let mut missing = None;
        for n in values {
            let World { sessions, excuses, .. } = self;
            let over = sessions[session].over();
            let Some(v) = sessions[session].values.get_mut(n) else { continue };
            v.acked = v.acked.max(Some(level));
            let Some(stamp) = v.stamp else { continue };
            let nodes = holders.of(*n, stamp).count() as u32;
            let lack = v.lack(level, nodes, holders.stored(*n, stamp));
            if lack > 0 && excuses.cover(lack, &v.unseen(level, noticed, &stay, &over)).is_none() {
                missing = Some((*n, nodes));
            }
            // Holders whose crash nobody had noticed when this was said count among those that it survives.
            v.exits.crashed = v.exits.crashed.max(after(&v.exits.crashed_at, noticed).min(lack));
        }
        self.all_under_new_id(session);
        if let Some((n, nodes)) = missing {
            let key = self.sessions[session].key;
            self.violate(format!("I1 {key:?} e{n} was answered at {level}, and {nodes} nodes hold it"));
        }
    }

    /// A crash is noticed within 3 s, by who is awake. Who slept may say what it had heard before that.
    fn noticed(&self, node: usize) -> i64 {
        let now = self.now;
        let stood = self.nodes[node].proc.as_ref().and_then(|p| p.stood).filter(|s| now - s.until < 4 * S);
        stood.map_or(now, |s| s.from) - 4 * S
    }

    /// All that was answered is somewhere. All nodes are looked at at once: a copy may have been dropped on the word of an owner that died.
    pub(super) fn find_everything(&mut self, session: usize, holders: &Holders) {
        let nowhere = |s: &Session| -> Vec<u32> {
            let gone = |v: &Value, n| v.stamp.is_some_and(|stamp| holders.nowhere(n, stamp));
            s.answered().filter(|(n, v)| gone(v, *n)).map(|(n, _)| n).collect()
        };
        // Of a session that has ended or expired everything goes.
        let nowhere = nowhere(&self.sessions[session]);
        if nowhere.is_empty() || self.sessions[session].is_over(self.now) {
            return;
        }
        let stay = self.stay(session, holders);
        for n in nowhere {
            let World { sessions, excuses, .. } = self;
            let s = &mut sessions[session];
            let (key, over) = (s.key, s.over());
            let Some(v) = s.values.get_mut(&n) else { continue };
            let Some(level) = v.acked else { continue };
            let by: Vec<_> = over.into_iter().chain(v.released()).chain(v.fewer(level, &stay)).collect();
            match excuses.cover(copies_of(level), &by) {
                Some(_) if !v.is_owed() || over.iter().any(|(_, much)| *much > 0) => {}
                Some(excuse) => {
                    v.lost = Some(excuse);
                    self.mark(Mark::LegitLoss);
                }
                None => {
                    let (stamp, exits) = (v.stamp, v.exits.clone());
                    self.violate(format!("I11 {key:?} e{n} ({stamp:?}), answered at {level:?}, is nowhere after {exits:?}"));
                }
            }
        }
    }

    /// The last read of a client: all that was acknowledged must be there.
    pub(crate) fn read_at_the_end(&mut self, client: usize, session: usize, came: i64, seen: &BTreeSet<u32>) {
        if self.served_after_all(session, came) {
            return;
        }
        let holders = self.holders(session);
        let looked = self.clients[client].looked;
        let World { sessions, excuses, clients, .. } = self;
        let s = &sessions[session];
        let (key, over) = (s.key, s.over());
        let all = |excuse, applies: bool| (excuse, if applies { ALL_OF_IT } else { 0 });
        let missing = s.answered().filter(|(n, _)| !seen.contains(n)).find_map(|(n, v)| {
            let stored = v.stamp.is_some_and(|stamp| holders.stored(n, stamp));
            let held = v.stamp.is_some_and(|stamp| holders.of(n, stamp).next().is_some());
            let alone = stored && !held && v.acked < Some(Level::Store);
            let by: Vec<_> = over.into_iter().chain(v.released()).chain([all(Excuse::StoredOnly, alone)]).collect();
            excuses.cover(1, &by).is_none().then_some((n, stored, v.stamp, v.acked))
        });
        match missing {
            None => clients[client].done = true,
            Some((_, stored, ..)) if excuses.any(&[(Excuse::ReadAgain, stored && !looked)]) => clients[client].looked = true,
            Some((n, _, stamp, level)) => {
                self.violate(format!("I1 {key:?} lacks e{n} ({stamp:?}, answered at {level:?}) after all has healed"));
            }
        }
    }
}

impl Value {
    /// How many copies too few there are for this level.
    fn lack(&mut self, level: Level, nodes: u32, stored: bool) -> u32 {
        match level {
            Level::Store => u32::from(!stored),
            _ => {
                let lack = copies_of(level).saturating_sub(nodes);
                if lack == 0 {
                    self.exits.left = 0;
                }
                lack
            }
        }
    }

    /// Why fewer copies may be seen than the level says in the moment of the answer.
    fn unseen(&self, level: Level, noticed: i64, stay: &Stay, over: &[(Excuse, u32)]) -> Vec<(Excuse, u32)> {
        let mut by: Vec<_> = over.iter().copied().chain(self.released()).collect();
        if level == Level::Store {
            return by;
        }
        by.extend(self.fewer(level, stay));
        by.push((Excuse::CrashUnnoticed, after(&self.exits.crashed_at, noticed).saturating_sub(self.exits.crashed)));
        by.push((Excuse::LeftUnnoticed, after(&self.exits.left_at, noticed)));
        by.push((Excuse::LeftSince, if stay.places < copies_of(level) { self.exits.left } else { 0 }));
        by
    }
}
