//! Who came and who went, for the log.

use core::fmt::Write as _;
use core::time::Duration;
use outlive_core::member::{End, Member, State};
use outlive_core::stamp::Life;
use outlive_core::time::Mono;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// How long a member has been in doubt before it is called silent. That others know of its death proves nothing about how it died: their
/// word may come before this node's own connection to it has closed. A closed connection and a refused one are seen in moments.
const UNSEEN: Duration = Duration::from_secs(2);

/// How a member was when the log last said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Was {
    Here,
    Leaving,
    /// This node cannot reach it, and others can.
    Cut,
}

/// A member that the log has told of.
#[derive(Debug)]
struct Told {
    name: Box<str>,
    was: Was,
    /// Since when it does not answer.
    doubted: Option<Mono>,
    /// It is dead, and it is not known yet how it died.
    unseen: bool,
}

/// The members that the log has told of.
#[derive(Debug, Default)]
pub(crate) struct Changes(Mutex<BTreeMap<Life, Told>>);

impl Changes {
    /// Whether there is a death of which it is not known yet what it was: look again soon.
    pub(crate) fn waits(&self) -> bool {
        self.0.lock().values().any(|told| told.unseen)
    }

    /// What the log is to say: all that changed, on one line. `None`: nothing.
    pub(crate) fn line(&self, now: Mono, me: Life, members: &[Member]) -> Option<String> {
        let mut told = self.0.lock();
        let mut line = String::new();
        let mut say = |what: &str, name: &str, why: &str| {
            let and = if line.is_empty() { "" } else { "; " };
            let _ = write!(line, "{and}{what} {name}{why}");
        };
        for m in members.iter().filter(|m| m.node.life != me) {
            let (life, name) = (m.node.life, &*m.node.name);
            let before = told.get(&life).map(|told| told.was);
            let doubted = (m.state != State::Alive).then(|| told.get(&life).and_then(|told| told.doubted).unwrap_or(m.since));
            let is = match m.state {
                State::Alive | State::Suspect if m.leaving => Was::Leaving,
                State::Alive | State::Suspect => Was::Here,
                State::Gone => Was::Cut,
                State::Dead => {
                    // A younger life of its name says it, in its turn.
                    if members.iter().any(|o| *o.node.name == *name && o.node.life != life && o.state != State::Dead) {
                        continue;
                    }
                    let Some(known) = told.get_mut(&life) else { continue };
                    match m.end {
                        // A short drain is over before anybody was told that it began.
                        End::Goodbye if m.handed_over => say("left:", name, " (drained)"),
                        End::Goodbye => say("left:", name, " (not all that it held is elsewhere)"),
                        End::Refused => say("dead:", name, " (its connection closed, and nobody listens there)"),
                        End::Unseen if doubted.is_some_and(|since| now.since(since) >= UNSEEN) => say("dead:", name, " (silent)"),
                        End::Unseen => {
                            (known.doubted, known.unseen) = (doubted, true);
                            continue;
                        }
                    }
                    told.remove(&life);
                    continue;
                }
            };
            match (before, is) {
                (Some(before), is) if before == is => {}
                (None, Was::Cut) => continue,
                (None, Was::Leaving) => {}
                (None, Was::Here) if told.values().any(|other| *other.name == *name) => {
                    told.retain(|_, other| *other.name != *name);
                    say("restarted:", name, "");
                }
                (None | Some(Was::Cut), Was::Here) => say("joined:", name, if m.node.observer { " (an observer)" } else { "" }),
                (Some(_), Was::Here) => {}
                (Some(_), Was::Leaving) => say("leaving:", name, ""),
                (Some(_), Was::Cut) => say("not reached from here:", name, ""),
            }
            told.insert(life, Told { name: name.into(), was: is, doubted, unseen: false });
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

    const ME: Life = Life::new(1);

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
        let linked = state != State::Dead;
        let (name_hash, node, since, end) = (name_hash(name), node.into(), Mono::ZERO, End::Unseen);
        Member { name_hash, node, state, leaving, handed_over: false, since, linked, end }
    }

    fn dead(life: u64, name: &str, end: End) -> Member {
        let left = end == End::Goodbye;
        Member { end, handed_over: left, ..member(life, name, State::Dead, left) }
    }

    #[test]
    fn each_change_is_said_once_and_names_who_and_how() {
        use State::{Alive, Gone, Suspect};
        let changes = Changes::default();
        let look = |others: &[Member]| {
            let all = [others, &[member(1, "me", Alive, false)]].concat();
            changes.line(Mono::ZERO, ME, &all).unwrap_or_default()
        };
        let (b, gateway) = (|state| member(2, "b", state, false), member(3, "gateway", Alive, false));
        assert_eq!(look(&[]), "");
        assert_eq!(look(&[b(Alive), gateway.clone()]), "joined: b; joined: gateway (an observer)");
        assert_eq!(look(&[b(Suspect), gateway]), "");
        assert_eq!(look(&[b(Gone)]), "not reached from here: b");
        assert_eq!(look(&[b(Alive)]), "joined: b");
        assert_eq!(look(&[member(2, "b", Alive, true)]), "leaving: b");
        let c = member(5, "c", Alive, false);
        assert_eq!(look(&[dead(2, "b", End::Goodbye), c]), "left: b (drained); joined: c");
        assert_eq!(look(&[dead(5, "c", End::Refused), member(6, "c", Alive, false)]), "restarted: c");
        assert_eq!(look(&[dead(6, "c", End::Refused)]), "dead: c (its connection closed, and nobody listens there)");
        // Who was never told of is not mourned.
        assert_eq!(look(&[dead(9, "x", End::Refused)]), "");
    }

    #[test]
    fn how_a_member_died_is_said_when_it_is_known() {
        let second = Duration::from_secs(1);
        for leaving in [false, true] {
            for (end, handed_over, said) in [
                (End::Refused, false, "dead: b (its connection closed, and nobody listens there)"),
                (End::Goodbye, true, "left: b (drained)"),
                (End::Goodbye, false, "left: b (not all that it held is elsewhere)"),
                (End::Unseen, false, "dead: b (silent)"),
            ] {
                let changes = Changes::default();
                let look = |now, b: Member| changes.line(now, ME, &[b]);
                assert_eq!(look(Mono::ZERO, member(2, "b", State::Alive, leaving)).is_none(), leaving);
                // Others say that it is dead while the connection to it is still open here.
                let since = Mono::ZERO + 10 * second;
                let heard = Member { since, linked: true, ..member(2, "b", State::Dead, leaving) };
                assert_eq!(look(since, heard.clone()), None);
                assert!(changes.waits());
                let known = Member { end, handed_over, ..heard };
                assert_eq!(look(since + 2 * second, known.clone()).as_deref(), Some(said), "leaving: {leaving}");
                assert!(!changes.waits());
                assert_eq!(look(since + 3 * second, known), None);
            }
        }
    }

    #[test]
    fn a_member_that_was_silent_for_long_is_called_so_when_it_is_dead() {
        let changes = Changes::default();
        let look = |seconds, state, since| {
            let at = |seconds| Mono::ZERO + Duration::from_secs(seconds);
            changes.line(at(seconds), ME, &[Member { since: at(since), ..member(2, "b", state, false) }])
        };
        assert_eq!(look(0, State::Alive, 0).as_deref(), Some("joined: b"));
        assert_eq!(look(10, State::Suspect, 10), None);
        assert_eq!(look(12, State::Dead, 12).as_deref(), Some("dead: b (silent)"));
    }
}
