//! I13: a session has what was committed to it, and nothing of another session; a change whose client was told that it failed is nowhere.

use super::{Fate, Seen, Session};
use crate::client::decode;
use outlive_core::record::{Attribute, LIMITS, LOST};

pub(super) fn wrong(seen: &Seen<'_>, s: &Session) -> Option<String> {
    // The engine's own words are nobody's values.
    let theirs = seen.record.attributes().iter().filter(|a| &*a.name != LIMITS && &*a.name != LOST);
    theirs.filter_map(|a| wrong_attribute(a, s)).next()
}

fn wrong_attribute(a: &Attribute, s: &Session) -> Option<String> {
    let (family, values) = decode(&a.value);
    if family != Some(s.family) {
        return Some(format!("I13 {} holds bytes of another session", a.name));
    }
    values.into_iter().find_map(|n| match s.values.get(&n) {
        None => Some(format!("I13 {} holds e{n}, which was never committed here", a.name)),
        Some(v) if v.fate == Fate::Failed => Some(format!("I13 e{n} failed, as its client was told, and is in {}", a.name)),
        Some(_) => None,
    })
}
