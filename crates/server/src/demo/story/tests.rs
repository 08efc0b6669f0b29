use super::*;

fn node(name: &str, state: State, life: u64) -> Node {
    let stats = crate::demo::world::NodeStats::default();
    Node { name: name.into(), http: None, peer: None, pid: None, state, life, struck: Some(100), stats, stats_at: 0 }
}

fn view(bells: u32, version: u64) -> View {
    View { cart: [("bell".to_owned(), bells)].into_iter().filter(|(_, n)| *n > 0).collect(), version, ..View::default() }
}

/// An answer of this node, which owns the session.
fn by(name: &str, life: u64, copies: &[&str], view: View) -> Answer {
    let copies = copies.iter().map(|copy| (*copy).to_owned()).collect();
    Answer { node: name.into(), life, key: "k".into(), owner: name.into(), owner_life: life, copies, view }
}

fn click(story: &mut Story, step: Step, answer: Answer, now: u64) {
    let ticket = story.asked(&format!("/{step:?}{now}"), Some(step), now);
    story.answered(&ticket, answer, Duration::from_millis(1), now);
}

/// Two bells on node A, with a copy on B.
fn shopping() -> Story {
    let mut story = Story::default();
    click(&mut story, Step::Add("bell"), by("A", 1, &["B"], view(1, 1)), 10);
    click(&mut story, Step::Add("bell"), by("A", 1, &["B"], view(2, 2)), 20);
    assert_eq!((story.owner.as_deref(), story.incident.is_none(), story.wrong.is_none()), (Some("A"), true, true));
    story
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_kill_becomes_one_incident_with_its_heir_and_its_answer() {
    let mut story = shopping();
    story.node(&node("A", State::Killed, 1), Doing::Nothing, 103);
    story.happened("B", 1, 350, Happening::Moved, &names(&["A"]), Some(&From::Copy));
    story.happened("B", 1, 360, Happening::Replicated, &names(&["C"]), None);
    click(&mut story, Step::Look, by("B", 1, &["C"], view(2, 2)), 5000);
    let incident = story.incident.clone().unwrap();
    assert_eq!((incident.what, incident.node.as_str(), incident.at, incident.copies), (What::Killed, "A", 100, names(&["B"])));
    let moved = incident.moved.unwrap();
    assert_eq!((moved.to.as_str(), moved.from, moved.at, moved.asked), ("B", From::Copy, 350, false));
    assert_eq!((incident.answer.unwrap().took, incident.lost), (Duration::from_millis(1), None));
    assert_eq!(story.copies, names(&["C"]));
}

#[test]
fn a_move_that_is_heard_of_before_the_kill_is_the_kills() {
    let mut story = shopping();
    story.happened("B", 1, 101, Happening::Moved, &names(&["A"]), Some(&From::Copy));
    assert_eq!(story.incident.as_ref().unwrap().what, What::Moved);
    story.node(&node("A", State::Killed, 1), Doing::Nothing, 103);
    assert_eq!(story.incident.as_ref().unwrap().what, What::Killed);
    // A node that is killed long after the session moved away is nobody's incident.
    let mut story = shopping();
    story.happened("B", 1, 50, Happening::Moved, &names(&["A"]), Some(&From::Copy));
    story.node(&node("A", State::Killed, 1), Doing::Nothing, 103);
    assert_eq!(story.incident.as_ref().unwrap().what, What::Moved);
}

#[test]
fn an_honest_loss_stays_one_whatever_is_clicked_afterwards() {
    let mut story = shopping();
    story.node(&node("A", State::Killed, 1), Doing::Nothing, 103);
    story.happened("B", 1, 200, Happening::Moved, &names(&["A"]), Some(&From::Store));
    story.happened("B", 1, 200, Happening::Lost, &[], None);
    click(&mut story, Step::Look, by("B", 1, &[], View { lost: true, ..view(1, 1) }), 210);
    click(&mut story, Step::Add("bell"), by("B", 1, &[], view(2, 2)), 300);
    let incident = story.incident.unwrap();
    assert_eq!(incident.lost.as_deref(), Some("Bell \u{d7}1 instead of \u{d7}2, change 1 instead of 2"));
    assert!(story.wrong.is_none() && incident.lost_said);
}

/// On a busy machine a node's words come later than its answer, and carry a later time.
#[test]
fn what_a_node_says_after_its_answer_hides_nothing_of_what_that_told() {
    for lost in [true, false] {
        let mut story = shopping();
        story.node(&node("A", State::Killed, 1), Doing::Nothing, 103);
        let answer = View { lost, ..if lost { view(1, 1) } else { view(2, 2) } };
        click(&mut story, Step::Look, by("B", 1, &[], answer), 210);
        story.happened("B", 1, 225, Happening::Moved, &names(&["A"]), Some(&From::Store));
        story.happened("B", 1, 225, Happening::Lost, &[], None);
        let incident = story.incident.clone().unwrap();
        assert_eq!((incident.what, incident.node.as_str(), incident.lost.is_some()), (What::Killed, "A", lost));
        assert_eq!((incident.answer.unwrap().by.as_str(), incident.moved.unwrap().from), ("B", From::Store));
        // What it says of a later move is news.
        story.happened("C", 1, 400, Happening::Moved, &names(&["B"]), Some(&From::Copy));
        story.happened("B", 1, 500, Happening::Moved, &names(&["C"]), Some(&From::Copy));
        let incident = story.incident.unwrap();
        assert_eq!((incident.what, incident.moved.unwrap().to.as_str()), (What::Moved, "B"));
    }
}

/// Two windows, or a page that was loaded anew while it waited: one answer tells the loss, and the other may come before it or after it.
#[test]
fn of_requests_beside_each_other_one_tells_the_loss_for_all() {
    for told_first in [true, false] {
        let mut story = shopping();
        story.node(&node("A", State::Killed, 1), Doing::Nothing, 103);
        let (telling, other) = (story.asked("/1", Some(Step::Look), 200), story.asked("/2", Some(Step::Add("bell")), 200));
        let tell = |story: &mut Story| {
            story.answered(&telling, by("B", 1, &[], View { lost: true, ..View::default() }), Duration::ZERO, 210);
        };
        if told_first {
            tell(&mut story);
        }
        story.answered(&other, by("B", 1, &[], view(1, 1)), Duration::ZERO, 211);
        if !told_first {
            assert!(story.wrong.is_none() && story.incident.as_ref().unwrap().answer.is_none());
            tell(&mut story);
        }
        let incident = story.incident.clone().unwrap();
        assert_eq!((incident.what, incident.node.as_str(), incident.lost.is_some()), (What::Killed, "A", true));
        click(&mut story, Step::Add("bell"), by("B", 1, &[], view(2, 2)), 300);
        assert!(story.wrong.is_none() && story.book.version == 2);
        // What is missing afterwards is missed.
        click(&mut story, Step::Look, by("B", 1, &[], view(1, 1)), 310);
        assert!(story.wrong.is_some());
    }
}

#[test]
fn what_none_of_the_requests_beside_each_other_tells_is_wrong_when_the_last_of_them_is_over() {
    let mut story = shopping();
    let tickets = ["/1", "/2", "/3"].map(|path| story.asked(path, Some(Step::Look), 200));
    story.answered(&tickets[0], by("A", 1, &[], view(1, 1)), Duration::ZERO, 210);
    let later = story.asked("/later", Some(Step::Look), 211);
    story.refused(&tickets[1], None, "the answer broke off");
    assert!(story.wrong.is_none());
    story.settled(&tickets[2]);
    assert_eq!(story.wrong.as_deref(), Some("Bell \u{d7}1 instead of \u{d7}2, change 1 instead of 2"));
    story.settled(&later);
}

#[test]
fn what_was_seen_and_is_gone_without_a_word_is_wrong_and_what_another_window_added_is_not() {
    let mut story = shopping();
    click(&mut story, Step::Look, by("A", 1, &[], view(5, 5)), 30);
    assert!(story.wrong.is_none() && story.book.version == 5);
    // An answer may be overtaken by a later one of another window.
    let (first, second) = (story.asked("/1", Some(Step::Add("bell")), 40), story.asked("/2", Some(Step::Add("bell")), 40));
    story.answered(&second, by("A", 1, &[], view(7, 7)), Duration::ZERO, 41);
    story.answered(&first, by("A", 1, &[], view(6, 6)), Duration::ZERO, 42);
    assert!(story.wrong.is_none() && story.book.version == 7);
    click(&mut story, Step::Look, by("A", 1, &[], view(4, 4)), 50);
    assert_eq!(story.wrong.as_deref(), Some("Bell \u{d7}4 instead of \u{d7}7, change 4 instead of 7"));
}

#[test]
fn an_answer_of_the_dying_node_is_not_the_answer_after_its_end_and_one_of_its_next_life_is() {
    let mut story = shopping();
    story.node(&node("A", State::Killed, 1), Doing::Nothing, 103);
    click(&mut story, Step::Look, by("A", 1, &["B"], view(2, 2)), 104);
    assert_eq!(story.incident.as_ref().unwrap().answer, None);
    click(&mut story, Step::Look, by("A", 2, &["B"], view(2, 2)), 900);
    assert!(story.incident.unwrap().answer.is_some());
}

#[test]
fn the_end_of_a_copy_is_an_incident_of_its_own_and_hides_none_of_the_owner() {
    let mut story = shopping();
    story.node(&node("B", State::Killed, 1), Doing::Nothing, 103);
    let incident = story.incident.as_ref().unwrap();
    assert_eq!((incident.role, incident.node.as_str(), story.copies.len()), (Role::Copy, "B", 0));
    story.node(&node("A", State::Killed, 1), Doing::Nothing, 110);
    let incident = story.incident.as_ref().unwrap();
    assert_eq!((incident.role, incident.node.as_str(), incident.copies.len()), (Role::Owner, "A", 0));
    story.copies = names(&["C"]);
    story.node(&node("C", State::Stopped, 1), Doing::Nothing, 120);
    assert_eq!(story.incident.unwrap().node, "A");
}

#[test]
fn a_switch_of_all_nodes_is_no_drain_of_one() {
    let mut story = shopping();
    story.node(&node("A", State::Draining, 1), Doing::Changing, 101);
    story.happened("B", 1, 120, Happening::Moved, &names(&["A"]), Some(&From::Copy));
    story.node(&node("B", State::Draining, 1), Doing::Changing, 125);
    story.node(&node("A", State::Stopped, 1), Doing::Changing, 130);
    story.node(&node("B", State::Stopped, 1), Doing::Changing, 140);
    click(&mut story, Step::Look, by("C", 2, &[], view(2, 2)), 900);
    story.happened("C", 2, 899, Happening::Moved, &[], Some(&From::Store));
    let incident = story.incident.unwrap();
    assert_eq!((incident.what, incident.node.as_str()), (What::AllLeft, "A"));
    assert_eq!(incident.moved.unwrap().from, From::Store);
}

#[test]
fn a_session_that_expired_is_not_missed() {
    let mut story = shopping();
    story.happened("A", 1, 50, Happening::Expired, &[], None);
    click(&mut story, Step::Look, Answer { key: String::new(), ..by("A", 1, &[], View::default()) }, 60);
    assert!(story.wrong.is_none() && story.owner.is_none());
    assert_eq!(story.incident.unwrap().what, What::Expired);
}

#[test]
fn a_sign_out_ends_the_story() {
    let mut story = shopping();
    let late = story.asked("/late", Some(Step::Look), 30);
    click(&mut story, Step::Logout, Answer { key: String::new(), ..by("A", 1, &[], View::default()) }, 40);
    story.answered(&late, by("A", 1, &[], view(2, 2)), Duration::ZERO, 50);
    assert!(story.owner.is_none() && story.book == Model::default() && story.wrong.is_none());
}

#[test]
fn tries_of_one_request_are_one_click_that_began_with_the_first() {
    let mut story = shopping();
    story.node(&node("A", State::Killed, 1), Doing::Nothing, 103);
    let first = story.asked("/x", Some(Step::Look), 200);
    story.refused(&first, Some("B".into()), "the holder may still answer\nmore");
    assert_eq!(story.click.as_ref().unwrap().refused.as_ref().unwrap().why, "the holder may still answer");
    let second = story.asked("/x", Some(Step::Look), 1200);
    assert_eq!(second.start, first.start);
    story.happened("B", 1, 1300, Happening::Moved, &[], Some(&From::Store));
    story.answered(&second, by("B", 1, &[], view(2, 2)), second.start.elapsed(), 1301);
    let incident = story.incident.unwrap();
    assert!(incident.moved.unwrap().asked && incident.answer.unwrap().refused && story.click.is_none());
}
