use super::*;
use proptest::prelude::*;

fn somewhere() -> Address {
    std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into()
}

fn table(states: &[(&str, State)]) -> Members {
    let rows = states.iter().map(|(name, state)| {
        let info = MemberInfo { name: (*name).into(), addr: somewhere(), life: 1, state: *state };
        Arc::new(Member::new(&info, ()))
    });
    Members::new(rows.collect())
}

fn router(cookies: &[&str]) -> Router {
    Router::new(cookies.iter().map(|name| (*name).to_owned()).collect(), None)
}

fn pick(router: &Router, cookie: &str, members: &Members, tried: &[usize], random: u64) -> Option<(String, Reason, bool)> {
    let choice = router.route([cookie.as_bytes()].into_iter(), members, tried, random)?;
    Some((members.rows()[choice.index].name().to_owned(), choice.reason, choice.moved))
}

const UP3: &[(&str, State)] = &[("a", State::Up), ("b", State::Up), ("c", State::Up)];

#[test]
fn a_known_route_wins_whatever_the_load() {
    let members = table(UP3);
    let _load: Vec<_> = (0..50).map(|_| members.find(b"b").unwrap().begin()).collect();
    for random in 0..20 {
        let picked = pick(&router(&["OUTLIVESID"]), "x=1; OUTLIVESID=abc.def.b; y=2", &members, &[], random);
        assert_eq!(picked, Some(("b".into(), Reason::Route, false)));
    }
}

#[test]
fn the_route_is_what_follows_the_last_dot_of_a_configured_cookie() {
    let members = table(UP3);
    let named = router(&["__Host-session", "JSESSIONID"]);
    for (cookie, expected) in [
        ("__Host-session=id.c", Some("c")),
        ("other=1;JSESSIONID=id.x.y.c", Some("c")),
        ("JSESSIONID=\"id.c\"", Some("c")),
        ("JSESSIONID = id.c ", Some("c")),
        ("other=id.c", None),
        ("__host-session=id.c", None),
        ("JSESSIONID=id.C", None),
        ("JSESSIONID=c", None),
        ("JSESSIONID=id.c.", None),
        ("JSESSIONID", None),
        ("JSESSIONID=id.zzz; __Host-session=id.c", Some("c")),
    ] {
        let by_route = pick(&named, cookie, &members, &[], 0).filter(|picked| picked.1 == Reason::Route).map(|picked| picked.0);
        assert_eq!(by_route.as_deref(), expected, "{cookie}");
    }
}

#[test]
fn without_a_configured_name_any_cookie_that_ends_in_a_member_is_followed() {
    let members = table(UP3);
    assert_eq!(pick(&router(&[]), "_ga=GA1.1.5; SESS=id.b", &members, &[], 0), Some(("b".into(), Reason::Route, false)));
}

#[test]
fn the_cookie_of_where_a_session_is_now_wins_over_where_its_id_was_born() {
    let members = table(UP3);
    for (names, cookie, expected) in [
        (&["SESS"][..], "SESS=id.a; SESS-R=.b", Some("b")),
        (&["SESS"], "SESS-R=.b; SESS=id.a", Some("b")),
        (&["__Host-session"], "__Host-session=id.a; __Host-session-r=.c; __Host-session-v=token.b", Some("c")),
        (&[], "SESS=id.a; SESS-R=\".b\"", Some("b")),
        // Unknown there is as good as not there; so is what is no route.
        (&["SESS"], "SESS=id.a; SESS-R=.zzz", Some("a")),
        (&["SESS"], "SESS=id.a; SESS-R=b", Some("a")),
        (&["SESS"], "SESS=id.a; SESS-R=x.b", Some("a")),
        (&["SESS"], "SESS=id.a; OTHER-R=.b", Some("a")),
        (&["SESS"], "SESS=id.a; -R=.b; SESS-R", Some("a")),
        // A visitor whose session has ended stays where they were.
        (&["SESS"], "SESS-R=.b", Some("b")),
        (&["SESS"], "SESS-R=.zzz; SESS-R=.c", Some("c")),
        (&["SESS"], "SESS=id.zzz; SESS-R=.zzz", None),
    ] {
        let by_route = pick(&router(names), cookie, &members, &[], 0).filter(|picked| picked.1 == Reason::Route).map(|picked| picked.0);
        assert_eq!(by_route.as_deref(), expected, "{names:?} {cookie}");
    }
}

#[test]
fn if_the_member_where_a_session_is_now_is_dead_the_holders_are_asked_by_its_id() {
    let members = table(&[("a", State::Up), ("b", State::Down), ("c", State::Up)]);
    let placement = |value: &[u8]| {
        assert_eq!(value, b"id.a");
        vec!["c".to_owned()]
    };
    let router = Router::new(vec!["SESS".into()], Some(Box::new(placement)));
    for cookie in ["SESS=id.a; SESS-R=.b", "SESS-R=.b; SESS=id.a"] {
        assert_eq!(pick(&router, cookie, &members, &[], 7), Some(("c".into(), Reason::Holder, true)));
    }
}

#[test]
fn several_cookie_headers_are_one() {
    let members = table(UP3);
    let headers = [b"one=1".as_slice(), b"SESS=id.c"];
    assert_eq!(router(&["SESS"]).route(headers.into_iter(), &members, &[], 0).map(|choice| choice.index), Some(2));
}

#[test]
fn a_draining_member_keeps_its_visitors_and_gets_no_new_one() {
    let members = table(&[("a", State::Draining), ("b", State::Up), ("c", State::Up)]);
    assert_eq!(pick(&router(&["SESS"]), "SESS=id.a", &members, &[], 0), Some(("a".into(), Reason::Route, false)));
    for random in (0..1000).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
        assert_ne!(pick(&router(&["SESS"]), "", &members, &[], random).unwrap().0, "a");
    }
}

#[test]
fn a_draining_member_that_refuses_gets_nothing() {
    let members = table(&[("a", State::Draining), ("b", State::Up)]);
    members.find(b"a").unwrap().refuse();
    assert_eq!(pick(&router(&["SESS"]), "SESS=id.a", &members, &[], 0), Some(("b".into(), Reason::Load, true)));
}

#[test]
fn a_dead_route_goes_to_a_holder_of_the_session_before_the_rest() {
    let members = table(&[("a", State::Down), ("b", State::Up), ("c", State::Up), ("d", State::Draining)]);
    let placement = |value: &[u8]| {
        assert_eq!(value, b"id.a");
        ["nobody", "a", "d", "c", "b"].map(str::to_owned).to_vec()
    };
    let router = Router::new(vec!["SESS".into()], Some(Box::new(placement)));
    for random in 0..20 {
        assert_eq!(pick(&router, "SESS=id.a", &members, &[], random), Some(("c".into(), Reason::Holder, true)));
        assert_eq!(
            pick(&router, "SESS=id.a", &members, &[2], random),
            Some(("b".into(), Reason::Load, true)).map(|mut p: (String, Reason, bool)| {
                p.1 = Reason::Holder;
                p
            })
        );
    }
}

#[test]
fn an_unknown_route_is_no_move() {
    let members = table(UP3);
    assert!(!pick(&router(&["SESS"]), "SESS=id.elsewhere", &members, &[], 7).unwrap().2);
}

#[test]
fn of_two_random_members_the_less_loaded_gets_a_visitor_without_route() {
    let members = table(&[("a", State::Up), ("b", State::Up)]);
    let _load = members.find(b"a").unwrap().begin();
    for random in [0, 1, u64::MAX, 1 << 32, 0xdead_beef_0000_0001] {
        assert_eq!(pick(&router(&[]), "", &members, &[], random), Some(("b".into(), Reason::Load, false)));
    }
}

#[test]
fn two_choices_keep_the_load_even() {
    let members = table(&[("a", State::Up), ("b", State::Up), ("c", State::Up), ("d", State::Up)]);
    let mut state = 1_u64;
    let mut guards = Vec::new();
    for _ in 0..4000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let choice = router(&[]).route(std::iter::empty(), &members, &[], state ^ (state >> 29)).unwrap();
        guards.push(members.rows()[choice.index].begin());
    }
    for row in members.rows() {
        assert!((990..=1010).contains(&row.in_flight()), "{} has {}", row.name(), row.in_flight());
    }
}

#[test]
fn what_was_tried_is_left_out_and_when_all_were_there_is_nobody() {
    let members = table(UP3);
    assert_eq!(pick(&router(&["SESS"]), "SESS=id.a", &members, &[0, 2], 3), Some(("b".into(), Reason::Load, true)));
    assert_eq!(pick(&router(&["SESS"]), "SESS=id.a", &members, &[0, 1, 2], 3), None);
    assert_eq!(pick(&router(&["SESS"]), "SESS=id.a", &table(&[]), &[], 3), None);
}

#[test]
fn being_told_up_again_forgets_refusals_and_repeating_it_does_not() {
    let member = Member::new(&MemberInfo::fixed("a", somewhere()), ());
    assert!(member.refuse());
    assert!(!member.refuse());
    member.tell(State::Up);
    assert_eq!(member.state(), State::Down);
    member.tell(State::Down);
    member.accept();
    assert_eq!(member.state(), State::Down, "what is told wins over a probe");
    member.refuse();
    member.tell(State::Up);
    assert_eq!(member.state(), State::Up);
}

#[test]
fn of_two_lives_the_later_is_the_member() {
    let row = |life| Arc::new(Member::new(&MemberInfo { name: "a".into(), addr: somewhere(), life, state: State::Up }, ()));
    let members = Members::new(vec![row(3), row(7), row(5)]);
    assert_eq!(members.rows().iter().map(|row| row.life()).collect::<Vec<_>>(), [7]);
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![Just(State::Up), Just(State::Draining), Just(State::Down)]
}

proptest! {
    /// Whatever the bytes: no panic, and never a member that is down, was tried, or drains without being named.
    #[test]
    fn no_bytes_and_no_table_break_the_rules(
        header in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..80).boxed(),
            "(SESS|x|)[= ]?[a-d.;\" =]{0,12}".prop_map(String::into_bytes).boxed(),
        ],
        states in proptest::collection::vec(state(), 0..5),
        tried in proptest::collection::vec(0_usize..6, 0..4),
        random: u64,
        named: bool,
    ) {
        let names = ["a", "b", "c", "d", "e"];
        let members = table(&names.iter().copied().zip(states.iter().copied()).collect::<Vec<_>>());
        let router = router(if named { &["SESS"] } else { &[] });
        match router.route([header.as_slice()].into_iter(), &members, &tried, random) {
            Some(choice) => {
                prop_assert!(!tried.contains(&choice.index));
                match choice.reason {
                    Reason::Route => prop_assert_ne!(states[choice.index], State::Down),
                    _ => prop_assert_eq!(states[choice.index], State::Up),
                }
            }
            None => prop_assert!(states.iter().enumerate().all(|(index, state)| *state != State::Up || tried.contains(&index))),
        }
    }
}
