//! What a client knows of its session, and what an answer may therefore show.

use super::tally::Violation;
use std::collections::BTreeSet;

/// A broken promise, and what was seen.
pub(crate) type Found = (Violation, String);

/// One session's appends and attributes, as its client had them acknowledged.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// What all its values begin with.
    tag: String,
    drawn: u32,
    /// In the order of their acknowledgement, which is that of the requests.
    acked: Vec<String>,
    /// Nobody knows whether they were kept.
    unknown: BTreeSet<String>,
    /// Nothing of them was kept, it was said.
    refused: BTreeSet<String>,
    /// The list as it was seen last.
    seen: Vec<String>,
    attributes: [Attribute; 2],
}

#[derive(Debug, Default)]
struct Attribute {
    acked: Option<String>,
    unknown: BTreeSet<String>,
}

impl Ledger {
    pub(crate) fn new(tag: String) -> Ledger {
        Ledger {
            tag,
            drawn: 0,
            acked: Vec::new(),
            unknown: BTreeSet::new(),
            refused: BTreeSet::new(),
            seen: Vec::new(),
            attributes: Default::default(),
        }
    }

    /// A value that nobody else has.
    pub(crate) fn draw(&mut self) -> String {
        self.drawn += 1;
        format!("{}.{}", self.tag, self.drawn)
    }

    pub(crate) fn appends(&self) -> usize {
        self.acked.len()
    }

    /// An append was acknowledged, with the length of the list.
    pub(crate) fn acknowledged(&mut self, value: String, length: usize) -> Option<Found> {
        self.acked.push(value);
        let least = self.acked.len().max(self.seen.len() + 1);
        (length < least).then(|| (Violation::Missing, format!("{}: a list of {length}, and there were {least} at least", self.tag)))
    }

    pub(crate) fn unknown(&mut self, value: String) {
        self.unknown.insert(value);
    }

    pub(crate) fn refused(&mut self, value: String) {
        self.refused.insert(value);
    }

    /// The list was read.
    pub(crate) fn read(&mut self, list: &str) -> Vec<Found> {
        let list: Vec<String> = list.split(',').filter(|v| !v.is_empty()).map(str::to_owned).collect();
        let there: BTreeSet<&String> = list.iter().collect();
        let mut found = Vec::new();
        let mut report = |kind, what: String| found.push((kind, format!("{}: {what}; list {}", self.tag, list.join(","))));
        let foreign = |v: &&String| v.rsplit_once('.').is_none_or(|(tag, _)| tag != self.tag);
        if let Some(v) = list.iter().find(foreign) {
            report(Violation::Foreign, format!("{v} is another session's"));
        }
        if there.len() < list.len() {
            report(Violation::Doubled, "a value is there twice".into());
        }
        let missing: Vec<&str> = self.acked.iter().filter(|v| !there.contains(v)).map(String::as_str).collect();
        if !missing.is_empty() {
            report(Violation::Missing, format!("{} of {} are missing", missing.join(","), self.acked.len()));
        }
        if let Some(v) = self.refused.iter().find(|v| there.contains(v)) {
            report(Violation::Kept, format!("{v} was refused and is there"));
        }
        let order = list.iter().filter(|v| self.acked.contains(v));
        if missing.is_empty() && there.len() == list.len() && !order.eq(&self.acked) {
            report(Violation::Disordered, format!("acknowledged as {}", self.acked.join(",")));
        }
        if missing.is_empty() && !list.starts_with(&self.seen) {
            report(Violation::WentBack, format!("{} was seen before", self.seen.join(",")));
        }
        if !found.is_empty() {
            // One violation is told once.
            self.acked = list.iter().filter(|v| !self.unknown.contains(*v)).cloned().collect();
            self.refused.clear();
        }
        self.seen = list;
        found
    }

    /// An attribute was set, or nobody knows; nothing is noted of what was refused.
    pub(crate) fn set(&mut self, attribute: usize, value: String, acknowledged: bool) {
        let Some(attribute) = self.attributes.get_mut(attribute) else { return };
        if acknowledged {
            attribute.acked = Some(value);
        } else {
            attribute.unknown.insert(value);
        }
    }

    /// The attributes were read.
    pub(crate) fn read_attributes(&mut self, values: [Option<&str>; 2]) -> Vec<Found> {
        let mut found = Vec::new();
        for ((attribute, value), name) in self.attributes.iter_mut().zip(values).zip(["a", "b"]) {
            let value = value.filter(|v| *v != "null").map(str::to_owned);
            if value != attribute.acked && !value.as_ref().is_some_and(|v| attribute.unknown.contains(v)) {
                let what = format!("{}: attribute {name} is {value:?}, acknowledged was {:?}", self.tag, attribute.acked);
                found.push((Violation::Attribute, what));
            }
            attribute.acked = value;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new("s".into());
        for length in 1..=3 {
            let value = ledger.draw();
            assert_eq!(ledger.acknowledged(value, length), None);
        }
        ledger.unknown("s.4".into());
        ledger.refused("s.5".into());
        ledger
    }

    fn kinds(list: &str) -> Vec<Violation> {
        ledger().read(list).into_iter().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn what_was_acknowledged_is_there_once_and_in_order() {
        assert_eq!(kinds("s.1,s.2,s.3"), []);
        assert_eq!(kinds("s.1,s.4,s.2,s.3"), []);
        assert_eq!(kinds("s.1,s.3"), [Violation::Missing]);
        assert_eq!(kinds(""), [Violation::Missing]);
        assert_eq!(kinds("s.1,s.2,s.2,s.3"), [Violation::Doubled]);
        assert_eq!(kinds("s.1,s.3,s.2"), [Violation::Disordered]);
        assert_eq!(kinds("s.1,s.2,s.3,t.1"), [Violation::Foreign]);
        assert_eq!(kinds("s.1,s.2,s.3,s.5"), [Violation::Kept]);
    }

    #[test]
    fn what_was_seen_stays_and_a_violation_is_told_once() {
        let mut ledger = ledger();
        assert_eq!(ledger.read("s.1,s.2,s.3,s.4"), []);
        assert_eq!(ledger.read("s.1,s.2,s.3").len(), 1);
        assert_eq!(ledger.read("s.1,s.2,s.3"), []);
        assert!(ledger.acknowledged("s.6".into(), 3).is_some());
    }

    #[test]
    fn attributes_are_what_was_acknowledged_last_or_what_nobody_knows() {
        let mut ledger = ledger();
        assert_eq!(ledger.read_attributes([None, Some("null")]), []);
        ledger.set(0, "x".into(), true);
        ledger.set(1, "y".into(), false);
        assert_eq!(ledger.read_attributes([Some("x"), None]), []);
        assert_eq!(ledger.read_attributes([Some("x"), Some("y")]), []);
        assert_eq!(ledger.read_attributes([Some("x"), None]).len(), 1);
        assert_eq!(ledger.read_attributes([None, None]).len(), 1);
    }
}
