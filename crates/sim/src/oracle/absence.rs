//! I1, I2 and I7: what is said not to exist, or to be lost, is nowhere where the node that says so could have looked.

use super::excuse::Excuse;
use super::{Session, Value};
use crate::client::Req;
use crate::options::S;
use crate::world::{Phase, World};
use outlive_core::stamp::Stamp;

impl World {
    /// A node says that a commit is lost: is it, for all that it could know?
    pub(super) fn check_loss(&mut self, node: usize, session: usize, stamp: Stamp) {
        let (key, outlived) = (self.sessions[session].key, self.sessions[session].outlived);
        let (near, somewhere) = self.holder_in_reach(node, session, |l| l.includes(stamp));
        if somewhere && !self.excuses.any(&[(Excuse::Outlived, outlived), (Excuse::OutOfReach, near.is_none())]) {
            let other = near.unwrap_or(node);
            self.violate(format!("I2 n{node} says that {stamp:?} of {key:?} is lost, and n{other} has it, in reach for long"));
        }
        let over = self.sessions[session].over();
        if self.is_quiet() && self.holders(session).store_includes(stamp) && self.excuses.cover(1, &over).is_none() {
            self.violate(format!("I7 n{node} says that {stamp:?} of {key:?} is lost, and the store has it, in time"));
        }
    }

    /// A client is told that its session does not exist.
    pub(crate) fn not_found(&mut self, r: &Req) {
        let s = &self.sessions[r.session];
        let (over, is_over) = (s.over(), s.is_over(self.now));
        let what = || self.denies_token(r, &over).or_else(|| self.denies_what_is_near(r, &over)).or_else(|| self.gone_for_ever(r, &over));
        if let Some(what) = (!is_over).then(what).flatten() {
            self.violate(what);
        } else if self.phase == Phase::Reading {
            self.clients[r.client].done = true;
        }
    }

    fn denies_token(&mut self, r: &Req, over: &[(Excuse, u32)]) -> Option<String> {
        let ran_out = (Excuse::TokenRanOut, u32::from(r.expired));
        let by: Vec<_> = over.iter().copied().chain([ran_out]).collect();
        let wrong = r.token.is_some() && self.excuses.cover(1, &by).is_none();
        wrong.then(|| format!("I2 n{} answers `not found` for {:?} to a client with a token", r.node, self.sessions[r.session].key))
    }

    fn denies_what_is_near(&mut self, r: &Req, over: &[(Excuse, u32)]) -> Option<String> {
        let s = &self.sessions[r.session];
        let (key, sought) = (s.key, self.now - s.outlived_at < 6 * S);
        let (n, stamp) = s.owed().next().and_then(|(n, v)| Some((n, v.stamp?)))?;
        let with = |excuse, applies: bool| over.iter().copied().chain([(excuse, if applies { 1 } else { 0 })]).collect::<Vec<_>>();
        // A node remembers for 5 s that it found nothing; a client's token may bring it back meanwhile.
        let stored = self.is_quiet() && self.holders(r.session).stored(n, stamp);
        if stored && self.excuses.cover(1, &with(Excuse::JustSought, sought)).is_none() {
            return Some(format!("I7 n{} answers `not found` for {key:?}, and the store has e{n}, in time", r.node));
        }
        let (near, somewhere) = self.holder_in_reach(r.node, r.session, |l| l.includes(stamp));
        if somewhere && self.excuses.cover(1, &with(Excuse::OutOfReach, near.is_none())).is_none() {
            let other = near.unwrap_or(r.node);
            return Some(format!("I1 n{} answers `not found` for {key:?}, and n{other} holds it, in reach for long", r.node));
        }
        None
    }

    /// After all has healed nothing comes back that is not found.
    fn gone_for_ever(&mut self, r: &Req, over: &[(Excuse, u32)]) -> Option<String> {
        if self.phase != Phase::Reading {
            return None;
        }
        let World { sessions, excuses, .. } = self;
        let s: &Session = &sessions[r.session];
        let owes = |v: &Value| over.iter().copied().chain(v.released()).collect::<Vec<_>>();
        let n = s.answered().find(|(_, v)| excuses.cover(1, &owes(v)).is_none()).map(|(n, _)| n)?;
        Some(format!("I1 {:?} is not found after all has healed, and e{n} was answered", s.key))
    }
}
