//! Every request is answered, whatever happens, and after all has healed every client's.

use super::excuse::Excuse;
use crate::options::S;
use crate::world::{Ev, Phase, World};

impl World {
    /// A ticket must be answered, whatever happens.
    pub(crate) fn check_answered(&mut self, id: u64, tries: u32) {
        let Some(r) = self.reqs.get(&id).filter(|r| r.waits(tries)) else { return };
        let (node, kind) = (r.node, r.kind);
        let paused = self.nodes[node].proc.as_ref().is_none_or(|p| p.paused.is_some());
        let calm = (0..self.nodes.len()).filter(|n| *n != node).all(|n| self.calm(node, n) > 15 * S || self.nodes[n].proc.is_none());
        if self.excuses.any(&[(Excuse::StandsStill, paused), (Excuse::Troubled, !calm)]) {
            self.at(20 * S, Ev::Unanswered(id, tries));
        } else {
            self.violate(format!("liveness: n{node} never answered request {id} ({kind:?})"));
        }
    }

    pub(crate) fn check_reading(&mut self) {
        if self.clients.iter().all(|c| c.done) {
            self.phase = Phase::Done;
            return;
        }
        if self.now - self.healed > 90 * S {
            let client = self.clients.iter().position(|c| !c.done).unwrap_or(0);
            let key = self.clients[client].session.map(|s| self.sessions[s].key);
            self.violate(format!("liveness: client {client} gets no answer for {key:?} 90 s after all nodes agreed"));
        }
    }
}
