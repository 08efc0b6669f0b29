//! The one sentence of the page and the hint below it: a pure function of what is known. Each claim in it is one that holds at this
//! moment: a node that is named as having something runs, and where a state came from is what its owner said.

use crate::demo::story::{Answered, Incident, Moved, Role, Story, What};
use crate::demo::world::{Doing, From, Node, State};

/// Everything that the sentence depends on.
#[derive(Clone, Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) now: u64,
    pub(crate) nodes: &'a [Node],
    pub(crate) durability: &'a str,
    /// Whether there is a store.
    pub(crate) store: bool,
    pub(crate) doing: Doing,
    pub(crate) armed: bool,
    pub(crate) story: &'a Story,
}

/// What the page says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) sentence: String,
    pub(crate) hint: String,
}

const NUMBERS: [&str; 17] = [
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
    "fifteen", "sixteen",
];
const NEVER_OLD: &str = "An older cart is never shown as if it were current.";

/// See the module.
pub(crate) fn tell(scene: &Scene<'_>) -> Said {
    let story = scene.story;
    let said = |sentence: String, hint: String| Said { sentence, hint };
    if let Some(wrong) = &story.wrong {
        return said(format!("This should never happen: {wrong}, and nobody said so."), "Please report it, with the log below.".into());
    }
    let told = story.incident.as_ref().filter(|incident| incident.is_news(scene.now));
    if !scene.nodes.iter().any(|node| !node.state.is_gone()) {
        return scene.nobody(told);
    }
    if let Some(incident) = told {
        return match incident.role {
            Role::Owner => scene.incident(incident),
            Role::Copy => scene.copy_gone(incident),
        };
    }
    if let Some(refused) = story.click.as_ref().and_then(|click| click.refused.as_ref()) {
        let who = refused.by.as_ref().map_or_else(|| "The shop asks".to_owned(), |node| format!("Node {node} asks"));
        return said(format!("{who} you to wait a moment: {}.", refused.why), NEVER_OLD.into());
    }
    match &story.owner {
        None => scene.welcome(),
        Some(owner) if !scene.has(owner) => said(format!("Node {owner}, which had your session, has ended."), scene.click("")),
        Some(owner) => said(format!("You are on node {owner}. {}", scene.kept(owner)), scene.next(owner)),
    }
}

impl Scene<'_> {
    fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    fn runs(&self, name: &str) -> bool {
        self.node(name).is_some_and(|node| !node.state.is_gone())
    }

    /// Whether this owner runs, and did not end in between.
    fn has(&self, owner: &str) -> bool {
        self.runs(owner) && self.node(owner).is_some_and(|node| node.life == self.story.owner_life)
    }

    /// Those of these nodes that run.
    fn running(&self, names: &[String]) -> Vec<String> {
        names.iter().filter(|name| self.runs(name)).cloned().collect()
    }

    /// Nodes that take sessions and copies, without this one.
    fn others(&self, name: &str) -> usize {
        self.nodes.iter().filter(|node| node.name != name && node.state == State::Up).count()
    }

    fn keeps_copies(&self) -> bool {
        self.durability != "owner"
    }

    fn nobody(&self, told: Option<&Incident>) -> Said {
        let starting = "All nodes have ended in order, and start with the other setting.";
        let sentence = match (self.doing, told) {
            (Doing::Changing, _) => starting.to_owned(),
            (_, Some(incident)) if incident.role == Role::Owner && incident.what == What::Killed && incident.answer.is_none() => {
                format!("Node {} was killed {}, and no other node runs.", incident.node, ago(self.now, incident.at))
            }
            _ => "No node runs.".to_owned(),
        };
        let hint = match (self.doing, self.store) {
            (Doing::Changing | Doing::Deploying | Doing::Starting, _) => String::new(),
            (Doing::Nothing, true) => "Start one. What the store has will be there.".into(),
            (Doing::Nothing, false) => "Start one. There is no store: the sessions ended with the last node.".into(),
        };
        Said { sentence, hint }
    }

    fn welcome(&self) -> Said {
        let up = self.nodes.iter().filter(|node| node.state == State::Up).count();
        let sentence = match up {
            0 => "One moment: the servers are starting.".to_owned(),
            1 => "One server runs this shop. Put something in your cart, then kill the server.".to_owned(),
            n => {
                let number = NUMBERS.get(n).map_or_else(|| n.to_string(), |word| (*word).to_owned());
                format!("{} servers run this shop. Put something in your cart, then kill the one that has it.", capital(&number))
            }
        };
        let hint = self.doing().unwrap_or_else(|| "No server has your session yet: one that nobody needs costs nothing.".into());
        Said { sentence, hint }
    }

    /// What is being done to all nodes, if something is.
    fn doing(&self) -> Option<String> {
        match self.doing {
            Doing::Nothing => None,
            Doing::Deploying => Some("A new version is being deployed, node by node. Go on shopping.".into()),
            Doing::Starting => Some("The nodes that do not run are being started.".into()),
            Doing::Changing => Some("All nodes are being restarted in order, with the other setting.".into()),
        }
    }

    /// Who else has the session of this owner.
    fn kept(&self, owner: &str) -> String {
        if self.node(owner).is_some_and(|node| node.state == State::Draining) {
            return self.leaving(owner);
        }
        match self.running(&self.story.copies).as_slice() {
            [] if !self.keeps_copies() => "No other node has a copy of your session.".into(),
            [] if self.others(owner) == 0 => "No other node runs that could keep a copy of your session.".into(),
            [] => "The copy of your session is being made.".into(),
            [one] => format!("Node {one} keeps a copy of your session."),
            many => format!("Nodes {} keep copies of your session.", many.join(" and ")),
        }
    }

    fn leaving(&self, owner: &str) -> String {
        match (self.others(owner), self.store) {
            (0, true) => "It is leaving, and is the last: your session goes into the store.".into(),
            (0, false) => "It is leaving, and is the last: there is no store, so your session ends with it.".into(),
            _ => "It is leaving, and hands your session over first.".into(),
        }
    }

    /// What one may do next, or what to expect.
    fn next(&self, owner: &str) -> String {
        if self.armed {
            return "The next change of your cart is answered, and the node that answers is killed in the same moment.".into();
        }
        if let Some(doing) = self.doing() {
            return doing;
        }
        let node = self.node(owner);
        if node.is_none_or(|node| node.state != State::Up) {
            return String::new();
        }
        if self.others(owner) == 0 {
            let what = if self.keeps_copies() { ", and it gets a copy" } else { "" };
            return format!("Node {owner} is the only one that serves. Start another{what}.");
        }
        match (self.keeps_copies(), self.store) {
            (false, true) => return "A kill may lose what was not saved yet. If it does, you will be told.".into(),
            (false, false) => return "There is no store either: a kill loses your session, and you will be told.".into(),
            _ => {}
        }
        if self.running(&self.story.copies).is_empty() {
            return format!("Node {owner} is the only one with your cart: wait for the copy, or see what happens.");
        }
        if self.story.book.things() > 0 { "Go on: kill the node that has your cart.".into() } else { String::new() }
    }

    // ---- an incident of the owner -----------------------------------------------------------------------------------------------

    fn incident(&self, incident: &Incident) -> Said {
        let head = self.head(incident);
        let sentence = |rest: String| format!("{head} {rest}").trim().to_owned();
        match (&incident.answer, &incident.moved) {
            (Some(answer), _) => Said { sentence: sentence(answered(incident, answer)), hint: self.after(incident) },
            (None, Some(moved)) if self.runs(&moved.to) => {
                let loss = if incident.lost_said { " Changes of yours are lost: the next answer names them." } else { "" };
                let rest = format!("{}.{}{loss}", took_over(incident, moved), self.copied(&moved.to));
                Said { sentence: sentence(rest), hint: self.click("Click anything in the shop.") }
            }
            (None, _) => self.unanswered(incident, &sentence),
        }
    }

    fn head(&self, incident: &Incident) -> String {
        let (node, when) = (&incident.node, ago(self.now, incident.at));
        match incident.what {
            What::Killed => format!("Node {node} was killed {when}."),
            What::Failed => format!("Node {node} failed {when}: its process ended, and nobody had asked it to."),
            What::Left if self.node(node).is_some_and(|n| n.life == incident.life && n.state == State::Draining) => {
                format!("Node {node} is leaving.")
            }
            What::Left => format!("Node {node} left in order {when}."),
            What::AllLeft if self.doing == Doing::Changing => "All nodes are being restarted in order, with the other setting.".into(),
            What::AllLeft => format!("All nodes were restarted in order {when}."),
            What::Moved => format!("Your session moved away from node {node} {when}."),
            What::Expired => format!("Your session expired {when}: it was not used for too long."),
            What::Lost => String::new(),
        }
    }

    /// Nobody is known to have taken the session over.
    fn unanswered(&self, incident: &Incident, sentence: &dyn Fn(String) -> String) -> Said {
        let said = |rest: &str, hint: String| Said { sentence: sentence(rest.to_owned()), hint };
        let see = || self.click("Click anything in the shop, and see.");
        let saved = if self.store { "the store has what was saved" } else { "there is no store" };
        match incident.what {
            What::Killed | What::Failed => {
                let holders = self.running(&incident.copies);
                match (holders.first(), incident.copies.as_slice()) {
                    (Some(heir), _) => {
                        let rest = format!("Node {heir} is making sure that it has your latest version.");
                        said(&rest, self.click("Click anything in the shop."))
                    }
                    (None, []) => said(&format!("No other node had a copy of your session; {saved}."), see()),
                    (None, [one]) => said(&format!("Node {one}, which kept the copy, does not run either; {saved}."), see()),
                    (None, many) => said(&format!("Nodes {}, which kept copies, do not run either; {saved}.", many.join(" and ")), see()),
                }
            }
            What::Left if self.node(&incident.node).is_some_and(|n| n.life == incident.life && n.state == State::Draining) => {
                let rest = match (self.others(&incident.node), self.store) {
                    (0, true) => "It is the last: your session goes into the store first.",
                    (0, false) => "It is the last, and there is no store: your session ends with it.",
                    _ => "It hands your session over first.",
                };
                said(rest, self.click(""))
            }
            // The head says it all.
            What::AllLeft if self.doing == Doing::Changing => said("", self.waits().unwrap_or_default()),
            What::Left | What::AllLeft => said("", see()),
            What::Expired => said("The next click begins a new one.", self.doing().unwrap_or_default()),
            What::Moved | What::Lost => said("", self.click("")),
        }
    }

    /// A click that is asked to wait, or what to do.
    fn click(&self, otherwise: &str) -> String {
        self.waits().or_else(|| self.doing()).unwrap_or_else(|| otherwise.to_owned())
    }

    fn waits(&self) -> Option<String> {
        let click = self.story.click.as_ref()?;
        Some(match &click.refused {
            Some(refused) => format!("Your click is asked to wait: {}. {NEVER_OLD}", refused.why),
            None => "Your click waits for an answer.".into(),
        })
    }

    /// Who has a new copy, now.
    fn copied(&self, owner: &str) -> String {
        let copies = self.running(&self.story.copies);
        copies.iter().find(|name| *name != owner).map_or_else(String::new, |name| format!(" Node {name} has a copy again."))
    }

    fn after(&self, incident: &Incident) -> String {
        if incident.lost.is_some() {
            let advice = if self.keeps_copies() { "" } else { " Keep a copy, and a kill loses nothing." };
            return format!("You are told so, once, instead of being shown an old cart as if it were current.{advice}");
        }
        self.story.owner.as_ref().map_or_else(String::new, |owner| self.next(owner))
    }

    // ---- an incident of a copy --------------------------------------------------------------------------------------------------

    fn copy_gone(&self, incident: &Incident) -> Said {
        let (node, when) = (&incident.node, ago(self.now, incident.at));
        let how = match incident.what {
            What::Killed => "was killed",
            What::Failed => "failed",
            _ => "left in order",
        };
        let Some(owner) = self.story.owner.as_ref().filter(|owner| self.has(owner)) else { return self.welcome() };
        let copy = match self.running(&self.story.copies).as_slice() {
            [] if !self.keeps_copies() => String::new(),
            [] if self.others(owner) == 0 => ", and no other node runs that could keep a copy".into(),
            [] => ", and a new copy is being made".into(),
            [one] => format!(", and node {one} keeps a copy"),
            many => format!(", and nodes {} keep copies", many.join(" and ")),
        };
        let sentence = format!(
            "Node {node}, which kept a copy of your session, {how} {when}. Your session is in the memory of node {owner}, where it was{copy}."
        );
        Said { sentence, hint: self.next(owner) }
    }
}

fn took_over(incident: &Incident, moved: &Moved) -> String {
    let source = source(incident, moved);
    let ms = moved.at.saturating_sub(incident.at);
    match incident.what {
        What::Killed | What::Failed if moved.to == incident.node => format!("It runs again and has your session{source}"),
        // How long a visitor waits before they click says nothing of the nodes.
        What::Killed | What::Failed if !moved.asked => format!("Node {} took over {ms}\u{a0}ms later{source}", moved.to),
        _ => format!("Node {} has your session{source}", moved.to),
    }
}

fn source(incident: &Incident, moved: &Moved) -> String {
    match &moved.from {
        From::Copy => ", from its copy".into(),
        From::Node(node) if *node == incident.node => format!(", handed over by node {node}"),
        From::Node(node) => format!(", from the copy of node {node}"),
        From::Store => ", from the store".into(),
        From::Several => ", merged of several copies".into(),
        From::Nothing => ", without anything of it".into(),
    }
}

fn answered(incident: &Incident, answer: &Answered) -> String {
    let Answered { by, took, version, things, refused, .. } = answer;
    // An answer of a node that does not own the session says nothing of where its owner has it from.
    let source = incident.moved.as_ref().filter(|moved| moved.to == *by).map(|moved| source(incident, moved)).unwrap_or_default();
    let things = if *things == 1 { "1 thing".to_owned() } else { format!("{things} things") };
    let waited = if *refused { ", in which you were asked to wait," } else { "" };
    let ms = took.as_secs_f64() * 1000.0;
    let ms = if ms < 100.0 { format!("{ms:.1}") } else { format!("{ms:.0}") };
    let loss = match &incident.lost {
        None => "Nothing was lost.".to_owned(),
        Some(what) => format!("Something is lost that you had seen: {what}."),
    };
    format!(
        "Your next click was answered by node {by} after {ms}\u{a0}ms{waited}{source}: version {version}, {things} in your cart. {loss}"
    )
    .replace(",,", ",")
}

fn ago(now: u64, then: u64) -> String {
    match now.saturating_sub(then) / 1000 {
        0 => "just now".into(),
        1 => "a second ago".into(),
        s @ 2..60 => format!("{s} seconds ago"),
        60..120 => "a minute ago".into(),
        s => format!("{} minutes ago", s / 60),
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests;
