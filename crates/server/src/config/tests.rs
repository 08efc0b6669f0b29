use super::*;
use outlive::settings::Kind;

fn layers<C: Command>(file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Layers<C> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let settings = C::settings();
    let of = |path: &str| settings.iter().find(|setting| setting.path == path).unwrap().clone();
    let flags = flags.iter().map(|(path, value)| (of(path), vec![(*value).to_owned()]));
    Layers::default().file("outlive.toml", file).env(env).flags(flags)
}

fn gateway(file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<GatewayConfig, Vec<String>> {
    layers(file, env, flags).finish().map_err(|errors| errors.0)
}

fn demo(file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<DemoConfig, Vec<String>> {
    layers(file, env, flags).finish().map_err(|errors| errors.0)
}

const GOOD: &str = "[gateway]\nlisten = '127.0.0.1:1'\nbackend = ['a=127.0.0.1:2', 'b=127.0.0.1:3']\n";

#[test]
fn flags_win_over_the_environment_over_the_file_over_the_default() {
    let file = format!("{GOOD}idle_timeout = '1s'\nmax_head = '8KiB'\nretry = false\n");
    assert_eq!(gateway(GOOD, &[], &[]).unwrap().idle_timeout().as_secs(), 75);
    assert_eq!(gateway(&file, &[], &[]).unwrap().idle_timeout().as_secs(), 1);
    let env = [("OUTLIVE_GATEWAY_IDLE_TIMEOUT", "2s"), ("OUTLIVE_GATEWAY_COOKIE", "a, b"), ("PATH", "x"), ("OUTLIVE_COOKIE_SECURE", "x")];
    assert_eq!(gateway(&file, &env, &[]).unwrap().cookie(), ["a", "b"]);
    assert_eq!(gateway(&file, &env, &[]).unwrap().idle_timeout().as_secs(), 2);
    let config = gateway(&file, &env, &[("gateway.idle_timeout", "3s")]).unwrap();
    assert_eq!((config.idle_timeout().as_secs(), config.limits().max_head, config.retry()), (3, 8192, false));
    assert!(!config.is_learnt() && config.backend.map(|all| all.len()) == Some(2));
}

#[test]
fn each_mistake_is_told_with_its_value_and_what_it_may_be() {
    let table = [
        ("[gatway]", "outlive.toml:1: there is no section `gatway`; did you mean `gateway`?"),
        ("[gateway]\nlistne = 'x'", "outlive.toml:2: there is no setting `gateway.listne`; did you mean `gateway.listen`?"),
        ("[demo]\nnods = 3", "there is no setting `demo.nods`; did you mean `demo.nodes`?"),
        ("gateway = 3", "`gateway` is a section: write [gateway]"),
        ("[gateway", "outlive.toml:1: it is no TOML"),
        ("listen = 'localhost:1'", "there is no setting outside of a section `listen`"),
        ("[gateway]\nlisten = ['a:1']", "outlive.toml:2: gateway.listen is a list, and takes one value"),
        ("[gateway]\nlisten = 'here'", "outlive.toml:2: gateway.listen is \"here\", and an address is HOST:PORT"),
        ("[gateway]\nlisten = 8080", "outlive.toml:2: gateway.listen is \"8080\""),
        ("[gateway]\nbackend = ['a.b=127.0.0.1:1']", "gateway.backend is \"a.b=127.0.0.1:1\", and must be NAME=ADDR"),
        ("[gateway]\nbackend = ['a=0.0.0.0:1']", "every address of this machine is where to listen, not where others connect"),
        ("[gateway]\nstream_timeout = '0s'", "gateway.stream_timeout is \"0s\", and must be at least 1ms"),
        ("[gateway]\nbackend = ['a=127.0.0.1:1', 'a=127.0.0.1:2']", "names `a` twice"),
        (
            "[gateway]\nidle_timeout = 75",
            "gateway.idle_timeout is \"75\", and must be a duration like `30s`, a whole number with ms, s, m, h or d",
        ),
        ("[gateway]\nmax_head = '1KiB'", "gateway.max_head is \"1KiB\", and must be 8KiB to 1MiB"),
        ("[gateway]\nworkers = 0", "gateway.workers is \"0\", and must be 1 to 1024"),
        ("[gateway]\nretry = 'maybe'", "gateway.retry is \"maybe\", and must be `true` or `false`"),
        ("[gateway]\ntrust = ['10.0.0.0/99']", "gateway.trust is \"10.0.0.0/99\", and must be an address or a range"),
        ("", "gateway.listen is not set, and is needed: give --listen"),
        ("", "none of gateway.join, gateway.store and gateway.backend is set"),
        ("[gateway]\njoin = ['a:1']\nbackend = ['a=127.0.0.1:1']", "members are either learnt or fixed"),
        ("[gateway]\njoin = ['nowhere']", "gateway.join is \"nowhere\", and an address is HOST:PORT, such as app1:7400"),
        ("[gateway]\ncluster = 'x'\nbackend = ['a=127.0.0.1:1']", "gateway.cluster is set, and neither gateway.join nor gateway.store is"),
        ("[gateway]\nsecret = 'hunter2'\njoin = ['a:1']", "outlive.toml:2: gateway.secret must be 64 hex digits"),
    ];
    for (file, wanted) in table {
        let errors = gateway(file, &[], &[]).expect_err(file);
        assert!(errors.iter().any(|error| error.contains(wanted)), "{file:?} said {errors:#?}");
    }
    let errors = gateway(GOOD, &[("OUTLIVE_GATEWAY_LISTNE", "x")], &[]).unwrap_err();
    assert_eq!(errors, ["there is no setting `OUTLIVE_GATEWAY_LISTNE`; did you mean `OUTLIVE_GATEWAY_LISTEN`?"]);
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
        (&[("demo.durability", "raid")], "must be `owner`, `backup(1)`"),
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
        (&[("node.durability", "store"), ("node.join", "a:1")], "needs a store"),
        (&[("node.peer", "0.0.0.0:1"), ("node.join", "a:1")], "node.advertise does not say"),
        (&[("node.peer", "10.0.0.1:1"), ("node.join", "a:1")], "node.danger_plain_peers is not set"),
        (&[("node.name", "a.b"), ("node.join", "a:1")], "must be 1 to 63 letters"),
    ];
    for (flags, wanted) in table {
        let errors = layers::<NodeConfig>("", &[], flags).finish().expect_err(wanted).0;
        assert!(errors.iter().any(|error| error.contains(wanted)), "{flags:?} said {errors:#?}");
    }
    assert!(layers::<NodeConfig>("[node]\njoin = ['a:1']", &[], &[]).finish().is_ok());
}

const SECRET: &str = "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e";

/// Each of these from a file, the environment and a flag, and what is shown of it read again.
fn is_the_same_from_everywhere<C: Command + std::fmt::Debug>(values: &[(&'static str, &str)]) {
    assert_eq!(
        C::settings().iter().map(|setting| setting.path).collect::<Vec<_>>(),
        values.iter().map(|(path, _)| *path).collect::<Vec<_>>()
    );
    for ((path, text), setting) in values.iter().zip(C::settings()) {
        let mut wanted = C::default();
        wanted.put(path, text).unwrap().unwrap();
        assert_eq!(wanted.text(path).as_deref(), Some(*text));
        assert_ne!(format!("{wanted:?}"), format!("{:?}", C::default()), "{path}");
        let quoted = if setting.kind == Kind::Many { format!("['{}']", text.replace(',', "', '")) } else { format!("'{text}'") };
        let file = format!("[{}]\n{} = {quoted}", C::NAME, setting.name());
        let from = [
            layers::<C>(&file, &[], &[]),
            layers("", &[(&setting.env(), text)], &[]),
            layers("", &[], &[(path, text)]),
            layers(&layers::<C>(&file, &[], &[]).show(false), &[], &[]),
        ];
        for (from, layers) in from.iter().enumerate().filter(|(from, _)| !setting.private || *from < 3) {
            assert_eq!(layers.config.text(path).as_deref(), Some(*text), "{path} {from}");
            assert_eq!(format!("{:?}", layers.config), format!("{wanted:?}"), "{path} {from}");
        }
        if let Some(default) = setting.default {
            assert!(C::default().put(path, &default).unwrap().is_ok(), "{path} {default}");
        }
    }
}

#[test]
fn every_setting_of_every_program_is_the_same_from_a_file_the_environment_and_a_flag() {
    is_the_same_from_everywhere::<DemoConfig>(&[
        ("demo.listen", "127.0.0.1:1"),
        ("demo.nodes", "4"),
        ("demo.store", "sqlite:s.db"),
        ("demo.durability", "owner"),
        ("demo.state", "state.json"),
        ("demo.visitors", "0"),
        ("demo.script", "true"),
        ("demo.seconds", "5"),
        ("demo.json", "table.json"),
        ("demo.danger_public", "true"),
    ]);
    is_the_same_from_everywhere::<NodeConfig>(&[
        ("node.name", "a"),
        ("node.zone", "z1"),
        ("node.cluster", "blue"),
        ("node.peer", "app1:7400"),
        ("node.advertise", "app1:7401"),
        ("node.join", "a:1,b:2"),
        ("node.store", "sqlite:s.db"),
        ("node.secret", SECRET),
        ("node.durability", "store"),
        ("node.on_lost", "serve"),
        ("node.idle_timeout", "90s"),
        ("node.lifetime", "7d"),
        ("node.drain_timeout", "1500ms"),
        ("node.danger_plain_peers", "true"),
        ("node.ready", "localhost:1"),
    ]);
    is_the_same_from_everywhere::<GatewayConfig>(&[
        ("gateway.listen", "localhost:1"),
        ("gateway.ready", "localhost:2"),
        ("gateway.join", "a:1,b:2"),
        ("gateway.store", "sqlite:s.db"),
        ("gateway.secret", SECRET),
        ("gateway.cluster", "blue"),
        ("gateway.namespace", "shop"),
        ("gateway.danger_plain_peers", "true"),
        ("gateway.backend", "a=app1:1,b=127.0.0.1:2"),
        ("gateway.cookie", "A,B"),
        ("gateway.trust", "10.0.0.0/8,::1/128"),
        ("gateway.retry", "false"),
        ("gateway.workers", "2"),
        ("gateway.connect_timeout", "1ms"),
        ("gateway.response_timeout", "2s"),
        ("gateway.stream_timeout", "3m"),
        ("gateway.head_timeout", "4h"),
        ("gateway.idle_timeout", "5d"),
        ("gateway.stall_timeout", "6s"),
        ("gateway.leave_timeout", "7s"),
        ("gateway.linger_timeout", "8s"),
        ("gateway.tunnel_timeout", "9s"),
        ("gateway.member_idle", "10s"),
        ("gateway.max_head", "8KiB"),
        ("gateway.max_connections", "11"),
        ("gateway.shutdown_grace", "0s"),
    ]);
    is_the_same_from_everywhere::<StatusConfig>(&[
        ("status.join", "a:1"),
        ("status.store", "sqlite:s.db"),
        ("status.secret", SECRET),
        ("status.json", "true"),
        ("status.danger_plain_peers", "true"),
    ]);
}

#[test]
fn every_limit_of_the_gateway_is_a_setting_whose_default_is_the_gateways_own() {
    let limits = |config: &GatewayConfig| format!("{:?}", config.limits());
    let usual = outlive_gateway::Limits::default();
    assert_eq!(limits(&GatewayConfig::default()), format!("{usual:?}"));
    // Each field of it stands there once.
    let fields = format!("{usual:?}").matches(": ").count();
    let changed = GatewayConfig::settings().into_iter().filter(|setting| {
        let mut config = GatewayConfig::default();
        let other = match setting.unit {
            "TIME" => "123s",
            "SIZE" => "9KiB",
            _ => "17",
        };
        config.put(setting.path, other).is_some_and(|put| put.is_ok()) && limits(&config) != format!("{usual:?}")
    });
    assert_eq!(changed.count(), fields);
}

#[test]
fn a_secret_is_never_repeated() {
    let file = format!("{GOOD}secret = 'hunter2'\n");
    let shown = layers::<GatewayConfig>(&file, &[], &[]).show(true);
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
    let shown = layers::<GatewayConfig>(GOOD, &[("OUTLIVE_GATEWAY_RETRY", "false")], &[("gateway.cookie", "it's")]).show(true);
    assert!(shown.contains("retry = false  # environment") && shown.contains("listen = \"127.0.0.1:1\"  # file"), "{shown}");
    let again = gateway(&shown, &[], &[]).unwrap();
    assert_eq!((again.retry(), again.cookie()), (false, vec!["it's".to_owned()]));
}

#[test]
fn every_setting_belongs_to_its_section_and_has_a_good_default() {
    for section in SECTIONS {
        assert!((section.settings)().iter().all(|setting| setting.path.starts_with(&format!("{}.", section.name))), "{}", section.name);
    }
    assert!(demo("", &[], &[]).is_ok());
    assert!(gateway(GOOD, &[], &[]).is_ok());
}
