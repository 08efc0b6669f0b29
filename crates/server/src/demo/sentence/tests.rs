use super::*;
use crate::demo::book::Model;
use std::time::Duration;

const NOW: u64 = 1_000_000;
/// One of so many scenes is looked at.
const EVERY: usize = 11;

fn node(name: &str, state: State) -> Node {
    let stats = crate::demo::world::NodeStats::default();
    Node { name: name.into(), http: None, peer: None, pid: None, state, life: 1, struck: None, stats, stats_at: 0 }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn incident(what: What, role: Role, copies: &[&str]) -> Incident {
    let name = if role == Role::Owner { "A" } else { "B" };
    let (node, copies) = (name.to_owned(), names(copies));
    Incident { what, role, node, life: 1, at: NOW - 5000, copies, moved: None, lost_said: false, answer: None, lost: None }
}

fn moved(to: &str, from: From, asked: bool) -> Moved {
    Moved { to: to.into(), from, at: NOW - 4700, asked }
}

fn answer(by: &str) -> Answered {
    Answered { by: by.into(), took: Duration::from_micros(1100), version: 4, things: 4, at: NOW - 1000, refused: false }
}

/// Every incident that can be: what happened, to whom, who took over and from what, whether it was answered and whether something is lost.
fn incidents() -> Vec<Option<Incident>> {
    let mut all = vec![None];
    for what in [What::Killed, What::Failed, What::Left] {
        all.push(Some(incident(what, Role::Copy, &[])));
    }
    let froms = [From::Copy, From::Node("A".into()), From::Node("C".into()), From::Store, From::Several, From::Nothing];
    for what in [What::Killed, What::Failed, What::Left, What::AllLeft, What::Moved, What::Expired, What::Lost] {
        for copies in [&[][..], &["B"], &["B", "C"]] {
            let mut moves = vec![None];
            for from in &froms {
                for (to, asked) in [("B", false), ("B", true), ("A", true)] {
                    moves.push(Some(moved(to, from.clone(), asked)));
                }
            }
            for moved in moves {
                for (answered, lost) in [(false, false), (true, false), (true, true)] {
                    // A loss that nothing explains is heard of with an answer.
                    if what == What::Lost && !lost {
                        continue;
                    }
                    let mut incident = incident(what, Role::Owner, copies);
                    incident.lost_said = lost;
                    incident.lost = lost.then(|| "Bell \u{d7}1 instead of \u{d7}2".to_owned());
                    incident.answer = answered.then(|| answer("B"));
                    incident.moved.clone_from(&moved);
                    all.push(Some(incident));
                }
            }
        }
    }
    all
}

/// The names that follow `claim` in a sentence.
fn named(text: &str, before: &str, after: &str) -> Vec<String> {
    if !text.contains(before) || !text.contains(after) {
        return Vec::new();
    }
    let words: Vec<&str> = text.split([' ', ',', '.', ':']).filter(|word| !word.is_empty()).collect();
    let (before, after): (Vec<&str>, Vec<&str>) = (before.split_whitespace().collect(), after.split_whitespace().collect());
    let fits = |at: usize, wanted: &[&str]| words.get(at..at + wanted.len()) == Some(wanted);
    let name = |at: usize| words.get(at).filter(|name| name.len() == 1 && fits(at + 1, &after));
    (before.len()..words.len()).filter(|at| fits(at - before.len(), &before)).filter_map(name).map(|name| (*name).to_owned()).collect()
}

fn check(scene: &Scene<'_>, said: &Said) {
    let Said { sentence, hint } = said;
    let text = format!("{sentence} {hint}");
    let incident = scene.story.incident.as_ref().filter(|incident| incident.is_news(scene.now));
    let told = || format!("{text:?} of {scene:#?}");
    let has = |claim: &str| text.contains(claim);
    assert!(sentence.ends_with('.') && !text.contains("  ") && !text.contains(",,") && !text.contains(" ."), "{}", told());
    let runs = |name: &String| scene.nodes.iter().any(|node| node.name == *name && !node.state.is_gone());
    let present = [
        ("You are on node", ""),
        ("Node", "keeps"),
        ("node", "keeps"),
        ("Node", "is making sure"),
        ("Node", "has a copy again"),
        ("Node", "took over"),
        ("Node", "has your session"),
        ("Node", "is leaving"),
        ("Node", "is the only one"),
        ("memory of node", ""),
    ];
    for (before, after) in present {
        for name in named(&text, before, after) {
            assert!(runs(&name), "{before} {name} {after}: {}", told());
        }
    }
    let lost = incident.is_some_and(|incident| incident.lost.is_some());
    assert!(!has("Nothing was lost") || !lost && incident.is_some_and(|incident| incident.answer.is_some()), "{}", told());
    assert!(!has("Something is lost") || lost, "{}", told());
    assert!(!has("being deployed") || scene.doing == Doing::Deploying, "{}", told());
    assert!(!has("being restarted") || scene.doing == Doing::Changing, "{}", told());
    let from = incident.and_then(|incident| Some(&incident.moved.as_ref()?.from));
    assert!(!has("from its copy") || from == Some(&From::Copy), "{}", told());
    assert!(!has("from the store") || from == Some(&From::Store), "{}", told());
    for claim in ["the store has", "into the store", "the store first"] {
        assert!(!text.to_lowercase().contains(claim) || scene.store, "{}", told());
    }
    assert!(!has("There is no store") && !has("there is no store") || !scene.store, "{}", told());
    assert!(!has("ms later") || incident.is_some_and(|i| i.moved.as_ref().is_some_and(|moved| !moved.asked)), "{}", told());
    assert!(!has("No node runs") && !has("no other node runs.") || !scene.nodes.iter().any(|node| !node.state.is_gone()), "{}", told());
    let up = scene.nodes.iter().filter(|node| node.state == State::Up).count();
    assert!(!has("is being made") || up > 0 && scene.durability != "owner", "{}", told());
    assert!(!has("gets a copy") && !has("keep the copy") || scene.durability != "owner", "{}", told());
}

#[test]
fn each_claim_of_each_sentence_holds_in_every_state() {
    let incidents = incidents();
    let (mut seen, mut turn) = (std::collections::BTreeSet::new(), 0usize);
    let refused = Story::default().click;
    assert!(refused.is_none());
    for a in [State::Up, State::Starting, State::Draining, State::Stopped, State::Killed, State::Failed] {
        for b in [State::Up, State::Draining, State::Killed, State::Starting] {
            for c in [State::Up, State::Stopped] {
                let nodes = [node("A", a), node("B", b), node("C", c)];
                for (durability, store) in [("backup(1)", true), ("backup(1)", false), ("owner", true), ("owner", false)] {
                    for doing in [Doing::Nothing, Doing::Deploying, Doing::Changing, Doing::Starting] {
                        // Every incident meets every state of the nodes in some scene; all products would take minutes.
                        for incident in incidents.iter().skip(turn % EVERY).step_by(EVERY) {
                            let from = incident.as_ref().and_then(|incident| Some(&incident.moved.as_ref()?.from));
                            if from == Some(&From::Store) && !store {
                                continue;
                            }
                            turn += 1;
                            let mut story = Story { incident: incident.clone(), owner_life: 1, ..Story::default() };
                            story.owner = [Some("A"), Some("B"), None, Some("C")][turn % 4].map(str::to_owned);
                            story.copies = names([&[][..], &["B"], &["B", "C"]][turn / 4 % 3]);
                            story.copies.retain(|copy| Some(copy) != story.owner.as_ref());
                            story.book = Model { cart: [("bell".to_owned(), 4)].into(), version: 4, ..Model::default() };
                            if turn / 12 % 3 > 0 {
                                let ticket = story.asked("/shop/api/cart", None, NOW - 4900);
                                if turn / 12 % 3 == 2 {
                                    story.refused(&ticket, (turn % 2 == 0).then(|| "B".to_owned()), "the holder may still answer\n");
                                }
                            }
                            let armed = turn % 7 == 0;
                            let scene = Scene { now: NOW, nodes: &nodes, durability, store, doing, armed, story: &story };
                            let said = tell(&scene);
                            check(&scene, &said);
                            seen.insert(said.sentence);
                        }
                    }
                }
            }
        }
    }
    assert!(seen.len() > 100, "only {} sentences were seen", seen.len());
}

/// One scene of three nodes with a store, with copies, in which nothing is being done.
fn said_of(states: [State; 3], story: &Story, change: impl FnOnce(&mut Scene<'_>)) -> Said {
    let nodes = [node("A", states[0]), node("B", states[1]), node("C", states[2])];
    let mut scene = Scene { now: NOW, nodes: &nodes, durability: "backup(1)", store: true, doing: Doing::Nothing, armed: false, story };
    change(&mut scene);
    tell(&scene)
}

fn of(incident: Incident, owner: &str, copies: &[&str]) -> Story {
    let book = Model { cart: [("bell".to_owned(), 4)].into(), version: 4, ..Model::default() };
    Story { incident: Some(incident), owner: Some(owner.into()), owner_life: 1, copies: names(copies), book, ..Story::default() }
}

#[test]
fn a_kill_is_told_from_its_beginning_to_its_end() {
    use State::{Killed, Up};
    let states = [Killed, Up, Up];
    let mut incident = incident(What::Killed, Role::Owner, &["B"]);
    let said = |incident: &Incident, owner, copies: &[&str], states| said_of(states, &of(incident.clone(), owner, copies), |_| {}).sentence;
    let head = "Node A was killed 5 seconds ago.";
    assert_eq!(said(&incident, "A", &["B"], states), format!("{head} Node B is making sure that it has your latest version."));
    let alone = said(&incident, "A", &["B"], [Killed, Killed, Up]);
    assert_eq!(alone, format!("{head} Node B, which kept the copy, does not run either; the store has what was saved."));
    incident.moved = Some(moved("B", From::Copy, false));
    assert_eq!(said(&incident, "B", &[], states), format!("{head} Node B took over 300\u{a0}ms later, from its copy."));
    let copied = said(&incident, "B", &["C"], states);
    assert_eq!(copied, format!("{head} Node B took over 300\u{a0}ms later, from its copy. Node C has a copy again."));
    assert!(!said(&incident, "B", &["C"], [Killed, Up, Killed]).contains('C'));
    incident.answer = Some(answer("B"));
    let done = format!("{head} Your next click was answered by node B after 1.1\u{a0}ms, from its copy: version 4, 4 things in your cart.");
    assert_eq!(said(&incident, "B", &["C"], states), format!("{done} Nothing was lost."));
    incident.lost = Some("Bell \u{d7}1 instead of \u{d7}2".into());
    let lost = said(&incident, "B", &["C"], states);
    assert_eq!(lost, format!("{done} Something is lost that you had seen: Bell \u{d7}1 instead of \u{d7}2."));
}

#[test]
fn what_came_from_the_store_is_not_said_to_come_from_a_copy_and_the_visitors_own_time_is_nobodys_delay() {
    let mut incident = incident(What::Killed, Role::Owner, &[]);
    incident.moved = Some(moved("B", From::Store, true));
    let states = [State::Killed, State::Up, State::Up];
    let said = said_of(states, &of(incident.clone(), "B", &[]), |_| {});
    assert_eq!(said.sentence, "Node A was killed 5 seconds ago. Node B has your session, from the store.");
    incident.answer = Some(Answered { refused: true, took: Duration::from_millis(5214), ..answer("B") });
    let said = said_of(states, &of(incident, "B", &[]), |_| {});
    let wanted = "Your next click was answered by node B after 5214\u{a0}ms, in which you were asked to wait, from the store: version 4";
    assert!(said.sentence.contains(wanted), "{}", said.sentence);
}

#[test]
fn what_is_being_done_to_all_nodes_is_told_as_what_it_is() {
    let story = Story { owner: Some("A".into()), owner_life: 1, copies: names(&["B"]), ..Story::default() };
    let hint = |doing| said_of([State::Up; 3], &story, |scene| scene.doing = doing).hint;
    assert_eq!(hint(Doing::Deploying), "A new version is being deployed, node by node. Go on shopping.");
    assert_eq!(hint(Doing::Changing), "All nodes are being restarted in order, with the other setting.");
    assert_eq!(hint(Doing::Starting), "The nodes that do not run are being started.");
}

#[test]
fn as_many_servers_are_told_of_as_run() {
    let said = |count: usize| {
        let nodes: Vec<Node> = (0..count).map(|n| node(&n.to_string(), State::Up)).collect();
        let story = &Story::default();
        let scene = Scene { now: NOW, nodes: &nodes, durability: "owner", store: true, doing: Doing::Nothing, armed: false, story };
        tell(&scene).sentence
    };
    assert!(said(5).starts_with("Five servers run this shop."), "{}", said(5));
    assert!(said(16).starts_with("Sixteen servers") && said(1).starts_with("One server runs"));
}

#[test]
fn the_end_of_a_copy_is_told_with_where_the_session_is() {
    let story = of(incident(What::Killed, Role::Copy, &[]), "A", &["C"]);
    let said = said_of([State::Up, State::Killed, State::Up], &story, |_| {});
    let wanted = "Node B, which kept a copy of your session, was killed 5 seconds ago. Your session is in the memory of node A, where it was, \
                  and node C keeps a copy.";
    assert_eq!(said.sentence, wanted);
}
