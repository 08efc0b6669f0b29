//! Who came and who went, for the log.

use core::fmt::Write as _;
use outlive_core::member::{Member, State};
use outlive_core::stamp::Life;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// How a member was when the log last said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Was {
    Here,
    Leaving,
    /// This node cannot reach it, and others can.
    Cut,
}

/// The members that the log has told of.
#[derive(Debug, Default)]
pub(crate) struct Changes(Mutex<BTreeMap<Life, (Box<str>, Was)>>);

impl Changes {
    /// What the log is to say: all that changed, on one line. `None`: nothing.
    pub(crate) fn line(&self, me: Life, members: &[Member]) -> Option<String> {
        let mut told = self.0.lock();
        let mut line = String::new();
        let mut say = |what: &str, name: &str, why: &str| {
            let and = if line.is_empty() { "" } else { "; " };
            let _ = write!(line, "{and}{what} {name}{why}");
        };
        for m in members.iter().filter(|m| m.node.life != me) {
            let (life, name, before) = (m.node.life, &*m.node.name, told.get(&m.node.life).map(|(_, was)| *was));
            let now = match m.state {
                State::Alive | State::Suspect if m.leaving => Was::Leaving,
                State::Alive | State::Suspect => Was::Here,
                State::Gone => Was::Cut,
                State::Dead => {
                    // A younger life of its name says it, in its turn.
                    if members.iter().any(|o| *o.node.name == *name && o.node.life != life && o.state != State::Dead) {
                        continue;
                    }
                    match told.remove(&life) {
                        None => {}
                        // A short drain is over before anybody was told that it began.
                        Some((_, was)) if m.leaving || was == Was::Leaving => say("left:", name, " (drained)"),
                        Some(_) if m.linked => say("dead:", name, " (silent)"),
                        Some(_) => say("dead:", name, " (its connection closed, and nobody listens there)"),
                    }
                    continue;
                }
            };
            match (before, now) {
                (Some(before), now) if before == now => continue,
                (None, Was::Cut) => continue,
                (None, Was::Leaving) => {}
                (None, Was::Here) if told.values().any(|(other, _)| **other == *name) => {
                    told.retain(|_, (other, _)| **other != *name);
                    say("restarted:", name, "");
                }
                (None | Some(Was::Cut), Was::Here) => say("joined:", name, if m.node.observer { " (an observer)" } else { "" }),
                (Some(_), Was::Here) => {}
                (Some(_), Was::Leaving) => say("leaving:", name, ""),
                (Some(_), Was::Cut) => say("not reached from here:", name, ""),
            }
            told.insert(life, (name.into(), now));
        }
        // Those whom the table has forgotten.
        told.retain(|life, _| members.iter().any(|m| m.node.life == *life));
        (!line.is_empty()).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outlive_core::member::Node;
    use outlive_core::placement::name_hash;
    use outlive_core::time::Mono;

    fn member(life: u64, name: &str, state: State, leaving: bool) -> Member {
        let node = Node {
            name: name.into(),
            addr: "a:1".into(),
            boot: life,
            life: Life::new(life),
            zone: 0,
            observer: name == "gateway",
            http: "".into(),
            backups: 1,
            stores: false,
        };
        let linked = state != State::Dead || name == "silent";
        Member { name_hash: name_hash(name), node: node.into(), state, leaving, since: Mono::ZERO, linked }
    }

    #[test]
    fn each_change_is_said_once_and_names_who_and_how() {
        use State::{Alive, Dead, Gone, Suspect};
        let changes = Changes::default();
        let me = member(1, "me", Alive, false);
        let look = |others: &[(u64, &str, State, bool)]| {
            let mut all: Vec<Member> = others.iter().map(|(life, name, state, leaving)| member(*life, name, *state, *leaving)).collect();
            all.push(me.clone());
            changes.line(Life::new(1), &all).unwrap_or_default()
        };
        assert_eq!(look(&[]), "");
        assert_eq!(look(&[(2, "b", Alive, false), (3, "gateway", Alive, false)]), "joined: b; joined: gateway (an observer)");
        assert_eq!(look(&[(2, "b", Suspect, false), (3, "gateway", Alive, false)]), "");
        assert_eq!(look(&[(2, "b", Gone, false)]), "not reached from here: b");
        assert_eq!(look(&[(2, "b", Alive, false)]), "joined: b");
        assert_eq!(look(&[(2, "b", Alive, true)]), "leaving: b");
        assert_eq!(
            look(&[(2, "b", Dead, true), (4, "silent", Alive, false), (5, "c", Alive, false)]),
            "left: b (drained); joined: silent; joined: c"
        );
        let dead = look(&[(2, "b", Dead, true), (4, "silent", Dead, false), (5, "c", Dead, false), (6, "c", Alive, false)]);
        assert_eq!(dead, "dead: silent (silent); restarted: c");
        assert_eq!(look(&[(6, "c", Dead, false)]), "dead: c (its connection closed, and nobody listens there)");
        // Who was never told of is not mourned.
        assert_eq!(look(&[(9, "x", Dead, false)]), "");
    }
}
