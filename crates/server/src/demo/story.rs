//! What happened to one visitor of the page, as one value. What the page says is made of it, and of nothing else: see
//! [`sentence`](super::sentence).

use crate::demo::book::{Model, Step, differences};
use crate::demo::shop::View;
use crate::demo::world::{Doing, From, Happening, Node, State};
use std::time::Duration;
use tokio::time::Instant;

/// How long an incident is told.
pub(crate) const TOLD_MS: u64 = 45_000;

/// What became of a node, or of the session without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Killed,
    /// Its process ended by itself, and not in order.
    Failed,
    /// It leaves, or has left, in order.
    Left,
    /// All nodes are ended in order, and start again with another setting.
    AllLeft,
    /// The node goes on, and the session does not live there any more.
    Moved,
    /// The session was not used for too long.
    Expired,
    /// Nothing is known but that something is lost.
    Lost,
}

/// What the node was to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Owner,
    Copy,
}

/// Who owns the session since, as that node said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) to: String,
    pub(crate) from: From,
    pub(crate) at: u64,
    /// A request of the visitor waited for it. Otherwise the nodes did it by themselves.
    pub(crate) asked: bool,
}

/// The first answer since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) by: String,
    /// From the arrival of the request, or of its first try, to the answer: what the visitor waited before is no part of it.
    pub(crate) took: Duration,
    pub(crate) version: u64,
    pub(crate) things: u32,
    pub(crate) at: u64,
    /// The shop asked to wait meanwhile.
    pub(crate) refused: bool,
}

/// Something that happened to the visitor's session, from its cause to its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incident {
    pub(crate) what: What,
    pub(crate) role: Role,
    pub(crate) node: String,
    /// Which start of the node it was.
    pub(crate) life: u64,
    pub(crate) at: u64,
    /// Who had a copy then.
    pub(crate) copies: Vec<String>,
    pub(crate) moved: Option<Moved>,
    /// The new owner said that changes are lost.
    pub(crate) lost_said: bool,
    pub(crate) answer: Option<Answered>,
    /// What the visitor had seen, and the answer did not have.
    pub(crate) lost: Option<String>,
}

impl Incident {
    fn new(what: What, role: Role, node: &str, life: u64, at: u64, copies: Vec<String>) -> Incident {
        let node = node.to_owned();
        Incident { what, role, node, life, at, copies, moved: None, lost_said: false, answer: None, lost: None }
    }

    pub(crate) fn is_crash(&self) -> bool {
        matches!(self.what, What::Killed | What::Failed)
    }

    /// Whether this is the first answer since.
    fn is_answered_by(&self, answer: &Answer) -> bool {
        let here = answer.node == self.node && answer.life == self.life && self.what != What::Moved;
        self.role == Role::Owner && self.what != What::Expired && self.answer.is_none() && !here
    }

    /// Whether the visitor does not know yet what became of their session.
    fn is_open(&self) -> bool {
        self.role == Role::Owner && self.answer.is_none() && !matches!(self.what, What::Moved | What::Expired)
    }

    /// Whether it is news still. What was not answered yet is.
    pub(crate) fn is_news(&self, now: u64) -> bool {
        let since = self.answer.as_ref().map_or(self.at, |answer| answer.at);
        self.is_open() || now.saturating_sub(since) < TOLD_MS
    }
}

/// A request that was not answered with 200 yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Click {
    /// Tries of one request have one path, with a name of their own.
    path: String,
    since: u64,
    start: Instant,
    pub(crate) refused: Option<Refused>,
}

/// The shop asked to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The node that did, if one did.
    pub(crate) by: Option<String>,
    /// Its words.
    pub(crate) why: String,
}

/// What was known when a request arrived.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    path: String,
    step: Option<Step>,
    /// When its first try arrived.
    pub(crate) start: Instant,
    before: Model,
    generation: u64,
    number: u64,
    losses: u64,
}

/// An answer that misses something without saying so. One that was under way beside it may have been the one that says it.
#[derive(Clone, Debug)]
pub(crate) struct Doubt {
    what: String,
    /// The last request that was asked before it.
    until: u64,
}

/// What an answer of the shop says.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) node: String,
    pub(crate) life: u64,
    /// Empty without a session.
    pub(crate) key: String,
    pub(crate) owner: String,
    pub(crate) owner_life: u64,
    pub(crate) copies: Vec<String>,
    pub(crate) view: View,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    pub(crate) key: String,
    pub(crate) owner: Option<String>,
    /// Which start of the owner it was: a node that runs again has nothing of before.
    pub(crate) owner_life: u64,
    /// Who has a copy, as was heard last.
    pub(crate) copies: Vec<String>,
    /// What the visitor has seen acknowledged.
    pub(crate) book: Model,
    pub(crate) click: Option<Click>,
    pub(crate) incident: Option<Incident>,
    /// What must never happen.
    pub(crate) wrong: Option<String>,
    /// Grows when a session ends: what was asked before is not judged by what is there after.
    pub(crate) generation: u64,
    /// How many requests were asked, and those of them that have no answer yet: a second window's, or those of a page that was left.
    pub(crate) asked: u64,
    pub(crate) open: Vec<u64>,
    /// Grows when a loss is told, for the same reason.
    pub(crate) losses: u64,
    pub(crate) doubt: Option<Doubt>,
}

impl Story {
    // ---- what the visitor does ------------------------------------------------------------------------------------------------------

    /// A request arrived, or another try of it.
    pub(crate) fn asked(&mut self, path: &str, step: Option<Step>, now: u64) -> Ticket {
        let again = self.click.as_ref().is_some_and(|click| click.path == path);
        if !again {
            self.click = Some(Click { path: path.to_owned(), since: now, start: Instant::now(), refused: None });
        }
        let start = self.click.as_ref().map_or_else(Instant::now, |click| click.start);
        self.asked += 1;
        self.open.push(self.asked);
        let (before, number) = (self.book.clone(), self.asked);
        Ticket { path: path.to_owned(), step, start, before, generation: self.generation, number, losses: self.losses }
    }

    /// A request is under way no more.
    fn over(&mut self, ticket: &Ticket) {
        self.open.retain(|number| *number != ticket.number);
        let open = &self.open;
        if let Some(doubt) = self.doubt.take_if(|doubt| open.iter().all(|number| *number > doubt.until)) {
            self.wrong = Some(doubt.what);
        }
    }

    /// The story of the session after this one.
    pub(crate) fn anew(&self) -> Story {
        Story { generation: self.generation + 1, asked: self.asked, ..Story::default() }
    }

    /// The shop asked to wait, or did not answer.
    pub(crate) fn refused(&mut self, ticket: &Ticket, by: Option<String>, why: &str) {
        if let Some(click) = self.click.as_mut().filter(|click| click.path == ticket.path) {
            let why = why.lines().next().unwrap_or_default().to_owned();
            click.refused = Some(Refused { by, why });
        }
        self.over(ticket);
    }

    /// The shop answered, and this is no view of the session: it refused the change for good.
    pub(crate) fn settled(&mut self, ticket: &Ticket) {
        self.click.take_if(|click| click.path == ticket.path);
        self.over(ticket);
    }

    /// The shop answered, so long after the first try.
    pub(crate) fn answered(&mut self, ticket: &Ticket, answer: Answer, took: Duration, now: u64) {
        let refused = self.click.take_if(|click| click.path == ticket.path).is_some_and(|click| click.refused.is_some());
        if ticket.step == Some(Step::Logout) {
            let click = self.click.take();
            *self = Story { click, ..self.anew() };
            return;
        }
        if ticket.generation != self.generation {
            return;
        }
        let got = Model::of(&answer.view);
        let owner = Some(answer.owner.clone()).filter(|_| !answer.key.is_empty());
        if let (Some(before), Some(owner)) = (&self.owner, &owner)
            && before != owner
            && self.incident.as_ref().is_none_or(|incident| incident.role == Role::Copy || incident.answer.is_some())
        {
            self.incident = Some(Incident::new(What::Moved, Role::Owner, before, 0, now, self.copies.clone()));
        }
        // What was asked before a loss was told misses what that named.
        let judged = if ticket.losses == self.losses { judge(ticket, &answer.view, &got) } else { Judged::Right };
        let first = Answered { by: answer.node.clone(), took, version: got.version, things: got.things(), at: now, refused };
        let answers = self.incident.as_mut().filter(|i| i.is_answered_by(&answer) && !matches!(judged, Judged::Wrong(_)));
        let answers = answers.map(|incident| incident.answer = Some(first.clone())).is_some();
        match judged {
            Judged::Right => {}
            Judged::Lost(what) => {
                if !answers {
                    let owner = owner.clone().unwrap_or_default();
                    self.incident = Some(Incident::new(What::Lost, Role::Owner, &owner, 0, now, Vec::new()));
                }
                if let Some(incident) = &mut self.incident {
                    (incident.answer, incident.lost) = (Some(first), Some(what));
                }
                self.losses += 1;
                self.doubt = None;
            }
            Judged::Wrong(what) => self.doubt = Some(Doubt { what, until: self.asked }),
        }
        if answer.view.lost || got.version >= self.book.version {
            self.book = got;
        }
        (self.key, self.owner, self.owner_life, self.copies) = (answer.key, owner, answer.owner_life, answer.copies);
        self.over(ticket);
    }

    // ---- what happens to nodes ------------------------------------------------------------------------------------------------------

    /// A node is in another state than before.
    pub(crate) fn node(&mut self, node: &Node, doing: Doing, now: u64) {
        let what = match node.state {
            State::Killed => What::Killed,
            State::Failed => What::Failed,
            State::Draining | State::Stopped if doing == Doing::Changing => What::AllLeft,
            State::Draining | State::Stopped => What::Left,
            State::Starting => {
                // It has nothing of before, whatever was heard of it late.
                return self.copies.retain(|name| *name != node.name);
            }
            State::Up => return,
        };
        let at = node.struck.unwrap_or(now);
        let open = self.incident.as_ref().is_some_and(Incident::is_open);
        // The session may have been heard to move before its node was seen to go.
        let known = self.incident.as_mut().filter(|i| i.node == node.name && (i.life == node.life || i.what == What::Moved && i.at >= at));
        match known {
            // The same end, further on; or the reason for a move that was heard of first.
            Some(incident) if incident.what == What::Moved || incident.answer.is_none() && what != What::Left && what != What::AllLeft => {
                (incident.what, incident.life, incident.at) = (what, node.life, at);
            }
            Some(_) => {}
            None if self.owner.as_ref() == Some(&node.name) && self.owner_life == node.life => {
                let mut incident = Incident::new(what, Role::Owner, &node.name, node.life, at, self.copies.clone());
                incident.copies.retain(|name| *name != node.name);
                // Of all nodes that are ended the session's may be any: it moves among them meanwhile.
                if !self.incident.as_ref().is_some_and(|i| i.what == What::AllLeft && what == What::AllLeft && i.answer.is_none()) {
                    self.incident = Some(incident);
                }
            }
            // What is not answered yet is more important.
            None if open => {}
            None if self.copies.contains(&node.name) && node.state.is_gone() && what != What::AllLeft => {
                self.incident = Some(Incident::new(what, Role::Copy, &node.name, node.life, at, Vec::new()));
            }
            None => {}
        }
        if node.state.is_gone() {
            self.copies.retain(|name| *name != node.name);
        }
    }

    /// A node, in this life of it, said something of the session.
    pub(crate) fn happened(&mut self, node: &str, life: u64, t: u64, what: Happening, with: &[String], from: Option<&From>) {
        match what {
            Happening::Moved => self.moved(node, life, t, with.first(), from.cloned().unwrap_or(From::Several)),
            Happening::Replicated if self.owner.as_deref() == Some(node) => {
                self.copies = with.iter().filter(|name| *name != node).cloned().collect();
            }
            Happening::Backed if self.owner.as_ref() == with.first() && self.owner.as_deref() != Some(node) => {
                if !self.copies.iter().any(|name| name == node) {
                    self.copies.push(node.to_owned());
                }
            }
            Happening::Lost => {
                if let Some(incident) = self.incident.as_mut().filter(|incident| incident.role == Role::Owner) {
                    incident.lost_said = true;
                }
            }
            Happening::Expired if self.owner.as_deref() == Some(node) => {
                let incident = Incident::new(What::Expired, Role::Owner, node, 0, t, Vec::new());
                *self = Story { incident: Some(incident), click: self.click.take(), ..self.anew() };
            }
            Happening::Replicated | Happening::Backed | Happening::Expired | Happening::Left | Happening::Ended => {}
        }
    }

    fn moved(&mut self, node: &str, life: u64, t: u64, before: Option<&String>, from: From) {
        let asked = self.click.as_ref().is_some_and(|click| click.since <= t);
        let moved = Moved { to: node.to_owned(), from, at: t, asked };
        let first = self.owner.clone().filter(|owner| owner != node).or_else(|| before.cloned());
        // An answer told of it first: a node may say it, and note the time, when its answer is there already.
        let known = self.owner.as_deref() == Some(node) && self.owner_life == life;
        match self.incident.as_mut().filter(|incident| incident.role == Role::Owner && incident.what != What::Expired) {
            Some(incident) if incident.answer.is_none() => incident.moved = Some(moved),
            Some(incident) if known && incident.moved.as_ref().is_none_or(|before| before.to != node) => incident.moved = Some(moved),
            _ if known => {}
            _ => {
                if let Some(first) = first {
                    let mut incident = Incident::new(What::Moved, Role::Owner, &first, 0, t, self.copies.clone());
                    incident.moved = Some(moved);
                    self.incident = Some(incident);
                }
            }
        }
        (self.owner, self.owner_life) = (Some(node.to_owned()), life);
        self.copies.retain(|name| name != node);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Judged {
    Right,
    /// It is gone, and the shop says so.
    Lost(String),
    Wrong(String),
}

/// What was seen acknowledged before a request was sent must be in its answer. More may be, from another window of the same browser.
fn judge(ticket: &Ticket, view: &View, got: &Model) -> Judged {
    let mut expected = ticket.step.map_or_else(|| ticket.before.clone(), |step| ticket.before.after(step, ""));
    if ticket.step == Some(Step::Login) {
        expected.user.clone_from(&got.user);
    }
    // The page writes no note.
    expected.note.clone_from(&got.note);
    if view.lost {
        let words = differences(&expected, got);
        return Judged::Lost(if words.is_empty() { "what it was is not known".into() } else { words });
    }
    if *got == expected || got.version > expected.version { Judged::Right } else { Judged::Wrong(differences(&expected, got)) }
}

#[cfg(test)]
mod tests;
