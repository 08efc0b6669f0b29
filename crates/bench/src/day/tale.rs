//! What the logs must tell of an event, and what they may. Whatever else stands there should not.

/// The gateway, among those who tell.
pub(super) const GATEWAY: &str = "gateway";

/// A line of somebody's log, by how it begins and what else is in it. Of those who came and went on one line each is one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    who: String,
    begins: String,
    has: String,
}

impl Line {
    fn is(&self, who: &str, said: &str) -> bool {
        self.who == who && said.starts_with(&self.begins) && said.contains(&self.has)
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Tale {
    /// Who runs when it begins, the gateway included.
    running: Vec<String>,
    must: Vec<Line>,
    may: Vec<Line>,
}

impl Tale {
    /// Nothing, told by those who run.
    pub(super) fn of(running: &[String]) -> Tale {
        Tale { running: running.to_vec(), ..Tale::default() }
    }

    /// This one must say so.
    pub(super) fn says(mut self, who: &str, begins: &str, has: &str) -> Tale {
        self.must.push(Line { who: who.to_owned(), begins: begins.to_owned(), has: has.to_owned() });
        self
    }

    /// This one may say so.
    pub(super) fn may_say(mut self, who: &str, begins: &str) -> Tale {
        self.may.push(Line { who: who.to_owned(), begins: begins.to_owned(), has: String::new() });
        self
    }

    /// It is asked to leave and ends.
    pub(super) fn leaves(self, name: &str) -> Tale {
        let tale = self.says(name, "this node leaves: ", "").says(name, "this node has left: all that it held is elsewhere", "");
        let tale = tale.ends(name, "left: ", " (drained)");
        // Where no other node lives nobody waits for it, and nobody need have heard of it before it is over.
        let alone = !tale.running.iter().any(|other| other != GATEWAY);
        let begins = [("leaving: ", None), ("a member drains: it keeps its visitors and gets no new ones", Some(GATEWAY))];
        begins.into_iter().fold(tale, |tale, (what, who)| {
            let told_by: Vec<String> = tale.running.iter().filter(|other| who.is_none_or(|who| who == **other)).cloned().collect();
            told_by.iter().fold(tale, |tale, other| match (alone, who) {
                (true, _) => tale.may_say(other, what),
                (false, None) => tale.says(other, &format!("{what}{name}"), ""),
                (false, Some(_)) => tale.says(other, what, &member(name)),
            })
        })
    }

    /// It is killed.
    pub(super) fn dies(self, name: &str) -> Tale {
        self.ends(name, "dead: ", " (its connection closed, and nobody listens there)")
    }

    fn ends(mut self, name: &str, begins: &str, how: &str) -> Tale {
        self.running.retain(|other| other != name);
        let others = self.running.clone();
        let tale = others.iter().fold(self, |tale, other| tale.says(other, &format!("{begins}{name}{how}"), ""));
        if !others.iter().any(|other| other == GATEWAY) {
            return tale;
        }
        let tale = tale.says(GATEWAY, "a member is gone", &member(name));
        // A request may find out before the news has come, and find nobody else.
        let tale = tale.may_say(GATEWAY, "a member accepts no connections").may_say(GATEWAY, "a member accepts connections again");
        tale.may_say(GATEWAY, "the gateway has nobody to send requests to: ")
    }

    /// It starts.
    pub(super) fn comes(mut self, name: &str) -> Tale {
        let others = core::mem::take(&mut self.running);
        self.running.clone_from(&others);
        self.running.push(name.to_owned());
        let mut tale = self.says(name, &format!("this node is {name} of the cluster outlive-bench, "), "");
        for other in &others {
            tale = tale.says(other, &format!("joined: {name}"), "");
            tale = match other == GATEWAY {
                true => tale.says(GATEWAY, "a member is there", &member(name)).says(name, "joined: ", " (an observer)"),
                false => tale.says(name, &format!("joined: {other}"), ""),
            };
        }
        tale
    }

    /// The same, and all of it may be said.
    pub(super) fn perhaps(mut self) -> Tale {
        self.may.append(&mut self.must);
        self
    }

    /// What of it is not in these logs.
    pub(super) fn missing(&self, log: &[Said]) -> Vec<String> {
        let untold = self.must.iter().filter(|line| !log.iter().any(|said| line.is(&said.who, &said.text)));
        untold.map(|line| format!("{} has not said: {}…{}", line.who, line.begins, line.has)).collect()
    }

    /// Whether it is part of it. That a busy machine let a process wait is nobody's fault.
    pub(super) fn has(&self, said: &Said) -> bool {
        said.text.starts_with("this node stood still") || self.must.iter().chain(&self.may).any(|line| line.is(&said.who, &said.text))
    }

    /// The line that tells it best: the first that must be there.
    pub(super) fn told(&self, log: &[Said]) -> Option<String> {
        let line = self.must.first()?;
        log.iter().find(|said| line.is(&said.who, &said.text)).map(|said| format!("{}: {}", said.who, said.text))
    }
}

pub(super) fn member(name: &str) -> String {
    format!("member=\"{name}\"")
}

/// What somebody said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) who: String,
    pub(super) text: String,
}

impl Said {
    /// A line of a log, without when and where in the program it was said. Members that came and went are one each.
    pub(super) fn parse(who: &str, line: &str) -> Vec<Said> {
        let levels = [" INFO ", " WARN ", " ERROR "];
        let text = levels.iter().find_map(|level| line.split_once(level)).map_or(line, |(_, text)| text);
        let text = text.split_once(": ").filter(|(target, _)| target.starts_with("outlive")).map_or(text, |(_, text)| text).trim();
        let members = ["joined:", "leaving:", "left:", "dead:", "restarted:", "not reached from here:"];
        let said = |text: &str| Said { who: who.to_owned(), text: text.to_owned() };
        match members.iter().any(|word| text.starts_with(word)) {
            true => text.rsplit_once(" members=").map_or(text, |(text, _)| text).split("; ").map(said).collect(),
            false => vec![said(text)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[(&str, &str)]) -> Vec<Said> {
        lines.iter().flat_map(|(who, line)| Said::parse(who, &format!("2026-01-01T00:00:00Z  {line}"))).collect()
    }

    #[test]
    fn each_must_say_its_part_and_nobody_anything_else() {
        let all = ["a", "b", "gateway"].map(str::to_owned);
        let tale = Tale::of(&all).dies("b").comes("b");
        let whole = log(&[
            ("a", "WARN outlive_runtime::node: dead: b (its connection closed, and nobody listens there) members=1"),
            ("gateway", "WARN outlive_runtime::node: dead: b (its connection closed, and nobody listens there) members=1"),
            ("gateway", "INFO outlive_gateway::table: a member is gone member=\"b\" addr=127.0.0.1:1"),
            ("b", "INFO outlive::builder: this node is b of the cluster outlive-bench, and other nodes connect to 127.0.0.1:2"),
            ("b", "INFO outlive_runtime::node: joined: a; joined: vm-0a (an observer) members=2"),
            ("a", "INFO outlive_runtime::node: joined: b members=2"),
            ("gateway", "INFO outlive_runtime::node: joined: b members=2"),
            ("gateway", "INFO outlive_gateway::table: a member is there member=\"b\" addr=127.0.0.1:1"),
        ]);
        assert_eq!(tale.missing(&whole), [""; 0]);
        assert!(whole.iter().all(|said| tale.has(said)));
        for left_out in 0..whole.len() {
            let mut rest = whole.clone();
            rest.remove(left_out);
            assert!(!tale.missing(&rest).is_empty(), "{:?}", whole[left_out]);
        }
        for wrong in
            [("a", "WARN outlive_runtime::node: dead: b (silent) members=1"), ("a", "WARN outlive_runtime::node: joined: c members=3")]
        {
            let wrong = log(&[wrong]);
            assert!(!tale.has(&wrong[0]) && !tale.missing(&wrong).is_empty());
        }
        assert!(!tale.has(&Said { who: "a".into(), text: "thread 'main' panicked".into() }));
    }
}
