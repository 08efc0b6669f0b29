use super::*;

fn layers(section: &str, file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Layers {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let flags = flags.iter().map(|(key, value)| (*key, vec![(*value).to_owned()]));
    Layers::new(super::section(section).unwrap()).file("outlive.toml", file).env(env).flags(flags)
}

fn gateway(file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<GatewayConfig, Vec<String>> {
    GatewayConfig::new(layers("gateway", file, env, flags)).map_err(|errors| errors.0)
}

fn demo(file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<DemoConfig, Vec<String>> {
    DemoConfig::new(layers("demo", file, env, flags)).map_err(|errors| errors.0)
}

const GOOD: &str = "[gateway]\nlisten = '127.0.0.1:1'\nbackend = ['a=127.0.0.1:2', 'b=127.0.0.1:3']\n";

#[test]
fn flags_win_over_the_environment_over_the_file_over_the_default() {
    let file = format!("{GOOD}idle_timeout = '1s'\nmax_head = '8KiB'\nretry = false\n");
    assert_eq!(gateway(GOOD, &[], &[]).unwrap().limits.idle_timeout.as_secs(), 75);
    assert_eq!(gateway(&file, &[], &[]).unwrap().limits.idle_timeout.as_secs(), 1);
    let env = [("OUTLIVE_GATEWAY_IDLE_TIMEOUT", "2s"), ("OUTLIVE_GATEWAY_COOKIE", "a, b"), ("PATH", "x"), ("OUTLIVE_COOKIE_SECURE", "x")];
    assert_eq!(gateway(&file, &env, &[]).unwrap().cookies, ["a", "b"]);
    assert_eq!(gateway(&file, &env, &[]).unwrap().limits.idle_timeout.as_secs(), 2);
    let config = gateway(&file, &env, &[("gateway.idle_timeout", "3s")]).unwrap();
    assert_eq!((config.limits.idle_timeout.as_secs(), config.limits.max_head, config.retry), (3, 8192, false));
    assert!(matches!(config.members, Members::Fixed(members) if members.len() == 2));
}

#[test]
fn each_mistake_is_told_with_its_value_and_what_it_may_be() {
    let table = [
        ("[gatway]", "`gatway` is unknown; there are [demo]"),
        ("[gateway]\nlistne = 'x'", "`gateway.listne` is unknown; did you mean `listen`?"),
        ("[demo]\nnods = 3", "`demo.nods` is unknown; did you mean `nodes`?"),
        ("gateway = 3", "`gateway` is a section: write [gateway]"),
        ("[gateway", "outlive.toml is not TOML"),
        ("[gateway]\nbackend = 'a=127.0.0.1:1'", "`gateway.backend` is a list"),
        ("[gateway]\nlisten = 1.5", "`gateway.listen` is one text"),
        ("[gateway]\nlisten = 'here'", "gateway.listen is `here` (file), and an address is HOST:PORT"),
        ("[gateway]\nlisten = 8080", "gateway.listen is `8080` (file)"),
        ("[gateway]\nbackend = ['a.b=127.0.0.1:1']", "gateway.backend is `a.b=127.0.0.1:1` (file), and must be NAME=ADDR"),
        ("[gateway]\nbackend = ['a=0.0.0.0:1']", "every address of this machine is where to listen, not where others connect"),
        ("[gateway]\nstream_timeout = '0s'", "gateway.stream_timeout is `0s` (file), and must be more than 0"),
        ("[gateway]\nbackend = ['a=127.0.0.1:1', 'a=127.0.0.1:2']", "names `a` twice"),
        ("[gateway]\nidle_timeout = 75", "gateway.idle_timeout is `75` (file), and must be a whole number with ms, s, m, h or d"),
        ("[gateway]\nmax_head = '1KiB'", "gateway.max_head is `1KiB` (file), and must be from 8KiB to 1MiB"),
        ("[gateway]\nworkers = 0", "gateway.workers is `0` (file), and must be a whole number from 1 to 1024"),
        ("[gateway]\nretry = 'maybe'", "gateway.retry is `maybe` (file), and must be true or false"),
        ("[gateway]\ntrust = ['10.0.0.0/99']", "gateway.trust is `10.0.0.0/99` (file)"),
        ("", "gateway.listen is not set, and is needed: give --listen"),
        ("", "none of gateway.join, gateway.store and gateway.backend is set"),
        ("[gateway]\njoin = ['a:1']\nbackend = ['a=127.0.0.1:1']", "members are either learnt or fixed"),
        ("[gateway]\njoin = ['nowhere']", "gateway.join is `nowhere` (file), and an address is HOST:PORT, such as app1:7400"),
        ("[gateway]\ncluster = 'x'\nbackend = ['a=127.0.0.1:1']", "gateway.cluster is set, and neither gateway.join nor gateway.store is"),
        ("[gateway]\nsecret = 'hunter2'\njoin = ['a:1']", "gateway.secret (file) must be 64 hex digits"),
    ];
    for (file, wanted) in table {
        let errors = gateway(file, &[], &[]).expect_err(file);
        assert!(errors.iter().any(|error| error.contains(wanted)), "{file:?} said {errors:#?}");
    }
    let errors = gateway(GOOD, &[("OUTLIVE_GATEWAY_LISTNE", "x")], &[]).unwrap_err();
    assert_eq!(errors, ["the environment's OUTLIVE_GATEWAY_LISTNE is unknown"]);
}

#[test]
fn impossible_combinations_of_the_demo_are_refused() {
    let table: [(&[(&'static str, &str)], &str); 8] = [
        (&[("demo.listen", "0.0.0.0:80")], "demo.danger_public is not set"),
        (&[("demo.nodes", "2"), ("demo.durability", "backup(2)")], "a copy needs another node"),
        (&[("demo.store", "none"), ("demo.durability", "store")], "demo.store is none"),
        (&[("demo.store", "memory")], "must be none or sqlite:PATH"),
        (&[("demo.json", "x")], "demo.json is set, and demo.script is not"),
        (&[("demo.script", "true"), ("demo.visitors", "0")], "needs somebody who shops"),
        (&[("demo.script", "true"), ("demo.nodes", "1"), ("demo.durability", "owner")], "needs another"),
        (&[("demo.durability", "raid")], "must be owner, backup(N)"),
    ];
    for (flags, wanted) in table {
        let errors = demo("", &[], flags).expect_err(wanted);
        assert!(errors.iter().any(|error| error.contains(wanted)), "{flags:?} said {errors:#?}");
    }
    assert!(demo("", &[], &[]).is_ok());
}

#[test]
fn impossible_combinations_of_a_node_are_refused() {
    let table: [(&[(&'static str, &str)], &str); 5] = [
        (&[], "neither node.join nor node.store is set"),
        (&[("node.durability", "store"), ("node.join", "a:1")], "node.store is none"),
        (&[("node.peer", "0.0.0.0:1"), ("node.join", "a:1")], "node.advertise does not say"),
        (&[("node.peer", "10.0.0.1:1"), ("node.join", "a:1")], "node.danger_plain_peers is not set"),
        (&[("node.name", "a.b"), ("node.join", "a:1")], "must be 1 to 63 letters"),
    ];
    for (flags, wanted) in table {
        let errors = NodeConfig::new(layers("node", "", &[], flags)).expect_err(wanted).0;
        assert!(errors.iter().any(|error| error.contains(wanted)), "{flags:?} said {errors:#?}");
    }
    assert!(NodeConfig::new(layers("node", "[node]\njoin = ['a:1']", &[], &[])).is_ok());
}

#[test]
fn a_secret_is_never_repeated() {
    let file = format!("{GOOD}secret = 'hunter2'\n");
    let shown = layers("gateway", &file, &[], &[]).show(true);
    let errors = gateway(&file, &[], &[]).unwrap_err().concat();
    assert!(!shown.contains("hunter2") && !errors.contains("hunter2"), "{shown}{errors}");
}

#[test]
fn all_mistakes_are_told_at_once() {
    let file = "[demo]\nnodes = 99\nnods = 3\nstore = 'x'\ndurability = 'y'\n[other]\n";
    let errors = demo(file, &[("OUTLIVE_DEMO_NODES_X", "1")], &[("demo.listen", "z")]).unwrap_err();
    assert_eq!(errors.len(), 7, "{errors:#?}");
}

#[test]
fn what_is_shown_is_a_file_that_means_the_same() {
    let shown = layers("gateway", GOOD, &[("OUTLIVE_GATEWAY_RETRY", "false")], &[("gateway.cookie", "it's")]).show(true);
    assert!(shown.contains("retry = false  # environment") && shown.contains("listen = \"127.0.0.1:1\"  # file"), "{shown}");
    let again = gateway(&shown, &[], &[]).unwrap();
    assert_eq!((again.retry, again.cookies.as_slice()), (false, ["it's".to_owned()].as_slice()));
}

#[test]
fn every_setting_belongs_to_its_section_and_has_a_good_default() {
    for section in SECTIONS {
        assert!(section.settings.iter().all(|setting| setting.key.starts_with(&format!("{}.", section.name))), "{}", section.name);
    }
    assert!(demo("", &[], &[]).is_ok());
    assert!(gateway(GOOD, &[], &[]).is_ok());
}
