//! I5: no process that has learnt that a session ended holds or serves it, nobody serves it after all has healed, and nobody says of a
//! session that it has ended whose end nobody asked for.

use super::Session;
use super::excuse::Excuse;
use crate::client::Req;
use crate::world::World;

impl World {
    pub(super) fn holds_ended(&mut self, node: usize, generation: u32, session: usize) {
        let s = &self.sessions[session];
        let Some(at) = s.ended_at.get(&(node, generation)) else { return };
        let (key, over) = (s.key, s.span.outlasts_marker(*at));
        if !self.excuses.any(&[(Excuse::MarkerOver, over)]) {
            self.violate(format!("I5 n{node} holds {key:?} after it learnt its end"));
        }
    }

    /// Whether a session is served where its end is known.
    pub(super) fn served_ended(&mut self, node: usize, generation: u32, session: usize) -> bool {
        let s = &self.sessions[session];
        let Some(at) = s.ended_at.get(&(node, generation)) else { return false };
        let (key, over) = (s.key, s.span.outlasts_marker(*at));
        // What was decided in the same instant was decided before.
        if self.excuses.any(&[(Excuse::SameInstant, *at == self.now), (Excuse::MarkerOver, over)]) {
            return false;
        }
        self.violate(format!("I5 n{node} serves {key:?} after it learnt its end"));
        true
    }

    /// Whether a session whose end somebody asked for is wrongly served to a request that came then.
    pub(super) fn served_after_all(&mut self, session: usize, came: i64) -> bool {
        let s = &self.sessions[session];
        let (key, outlived, known) = (s.key, s.outlived, self.knew_end(session, came));
        if s.end_asked == 0 || self.excuses.any(&[(Excuse::MarkerDied, !known), (Excuse::Outlived, outlived)]) {
            return false;
        }
        self.violate(format!("I5 {key:?} has ended, and is served after all has healed"));
        true
    }

    pub(crate) fn end_seen(&mut self, r: &Req) {
        let s = &self.sessions[r.session];
        if s.end_asked == 0 && !self.was_logged_out_before(r.session) {
            let key = s.key;
            self.violate(format!("I5 n{} says that {key:?} has ended, and nobody ended it", r.node));
        }
    }

    /// Whether some process that lives has the marker; with all of them dead the end is forgotten, as a record would be.
    pub(super) fn marked(&self, s: &Session) -> bool {
        s.ended_at.keys().any(|(n, g)| self.lives(*n, *g))
    }

    /// Whether a node is on the session's list and has not heard of its end.
    pub(super) fn lacks_marker(&self, s: &Session, node: usize) -> bool {
        let Some(p) = self.nodes[node].proc.as_ref() else { return false };
        p.engine.placed(s.key).contains(&p.engine.life()) && !s.ended_at.contains_key(&(node, p.generation))
    }

    /// Whether some process that lives knew of the end by then. The store may have kept a marker that only a later touch or write finds.
    pub(crate) fn knew_end(&self, session: usize, by: i64) -> bool {
        self.sessions[session].ended_at.iter().any(|((n, g), at)| *at < by && self.lives(*n, *g))
    }

    fn lives(&self, node: usize, generation: u32) -> bool {
        self.nodes[node].proc.as_ref().is_some_and(|p| p.generation == generation)
    }
}
