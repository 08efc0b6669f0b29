//! I12: some time after the last fault all nodes agree on who they are, on every session's owner, and on what its copies are.

use super::Session;
use super::excuse::Excuse;
use crate::options::S;
use crate::world::World;

impl World {
    /// What is not as it should be yet.
    pub(crate) fn disagreement(&mut self) -> Option<String> {
        let running = self.running();
        let late = self.now - self.healed > 75 * S;
        let apart = self.nodes_apart(&running);
        if apart.is_some() {
            return apart;
        }
        for at in 0..self.sessions.len() {
            let outlived = self.sessions[at].outlived;
            if outlived && !late {
                continue;
            }
            let Some(what) = self.session_apart(&self.sessions[at], &running) else { continue };
            if !outlived || !self.excuses.any(&[(Excuse::Outlived, true)]) {
                return Some(what);
            }
        }
        None
    }

    fn nodes_apart(&self, running: &[usize]) -> Option<String> {
        let procs = || running.iter().filter_map(|n| Some((*n, self.nodes[*n].proc.as_ref()?)));
        if procs().any(|(_, p)| p.draining.is_some()) {
            return Some("a drain goes on".into());
        }
        procs().find_map(|(node, p)| {
            let stats = p.engine.stats(self.clock(node));
            if stats.members != running.len() as u64 {
                Some(format!("n{node} sees {} members of {}", stats.members, running.len()))
            } else if stats.rounds > 0 || stats.under_replicated > 0 {
                Some(format!("n{node} has {} rounds and {} under-replicated sessions", stats.rounds, stats.under_replicated))
            } else if self.opts.store && stats.dirty > 0 {
                Some(format!("n{node} has {} sessions to write", stats.dirty))
            } else {
                None
            }
        })
    }

    fn session_apart(&self, s: &Session, running: &[usize]) -> Option<String> {
        let key = s.key;
        let (mut tips, mut owner, mut holders) = (Vec::new(), None, Vec::new());
        for node in running {
            let Some(p) = self.nodes[*node].proc.as_ref() else { continue };
            let Some((tip, branch)) = p.engine.peek(key, |r, b| (r.tip, b.map(|b| b.tip))) else { continue };
            if let Some(branch) = branch {
                return Some(format!("{key:?} n{node} keeps a branch {branch:?}"));
            }
            if p.engine.info(key).is_some_and(|i| i.owned)
                && let Some(other) = owner.replace(*node)
            {
                return Some(format!("{key:?} is owned by n{other} and n{node}"));
            }
            holders.push(*node);
            tips.push(tip);
        }
        if s.end_asked > 0 && self.marked(s) {
            return self.end_apart(s, running, &holders);
        }
        // What was never committed is nobody's.
        if holders.is_empty() || tips.len() == 1 && tips[0].version == 0 {
            return None;
        }
        if owner.is_none() {
            return Some(format!("{key:?} is held by {holders:?} and owned by nobody"));
        }
        if tips.windows(2).any(|w| w[0] != w[1]) {
            return Some(format!("{key:?} is held by {holders:?} as {tips:?}"));
        }
        let backups = running.iter().filter_map(|n| self.nodes[*n].proc.as_ref()).map(|p| p.engine.config().backups).max();
        let want = (usize::from(backups.unwrap_or(0)) + 1).min(running.len());
        (holders.len() != want).then(|| format!("{key:?} is held by {holders:?}, and should be by {want}"))
    }

    fn end_apart(&self, s: &Session, running: &[usize], holders: &[usize]) -> Option<String> {
        let key = s.key;
        if let Some(node) = holders.first() {
            return Some(format!("{key:?} has ended, and n{node} holds it"));
        }
        let node = running.iter().find(|n| self.lacks_marker(s, **n))?;
        Some(format!("{key:?} has ended, and n{node}, which is to know, does not"))
    }
}
