//! The commands as their users start them: processes, signals, sockets.

#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod support;

use std::process::Command;
use support::{Process, StoreFile, ask, eventually, json};

/// A file beside others of this test.
fn file(name: &str) -> String {
    std::env::temp_dir().join(format!("outlive-{}-{name}", std::process::id())).display().to_string()
}

#[test]
fn the_script_loses_nothing_while_nodes_are_killed_drained_and_restarted() {
    let path = file("script.json");
    let (status, said) = Process::outlive(&["demo", "--script", "--visitors", "20", "--seconds", "15", "--json", &path]).end();
    assert_eq!(status, Some(0), "{said}");
    let table = json(&std::fs::read_to_string(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    let keys = "dirty_age_ms drains failed first_answer_ms kills lost moves p50_ms p99_ms refused requests restarts resurrected stale";
    let mut found: Vec<&str> = table.as_object().unwrap().keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found.join(" "), keys);
    for key in ["lost", "stale", "resurrected"] {
        assert_eq!(table[key], 0, "{said}");
    }
    assert_eq!((table["kills"].as_u64(), table["drains"].as_u64(), table["restarts"].as_u64()), (Some(1), Some(4), Some(5)));
    assert!(table["requests"].as_u64().unwrap() > 100 && table["moves"].as_u64().unwrap() > 0, "{said}");
    assert!(table["first_answer_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn the_demo_keeps_its_state_file_true() {
    let path = file("state.json");
    let mut demo = Process::outlive(&["demo", "--listen", "127.0.0.1:0", "--visitors", "0", "--state", &path]);
    let page = demo.line_with("ready http://");
    let state = || json(&std::fs::read_to_string(&path).unwrap());
    let first = state();
    assert_eq!(first["nodes"].as_array().unwrap().len(), 3);
    let gateway = first["gateway"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    let shop = ask(&gateway, "GET", "/shop", "", "");
    assert_eq!(shop.status, 200, "{shop:?}");
    let pid = first["nodes"][1]["pid"].as_i64().unwrap();
    assert_eq!(ask(&page, "POST", "/act/nodes/B/kill", "Origin: http://elsewhere.example\r\n", "").status, 403);
    assert_eq!(ask(&page, "POST", "/act/nodes/B/kill", "", "").status, 202);
    eventually("B is seen to be killed", || (state()["nodes"][1]["state"] == "killed").then_some(()));
    assert_eq!(ask(&page, "POST", "/act/nodes/B/kill", "", "").status, 409);
    assert_eq!(ask(&page, "POST", "/act/nodes/B/start", "", "").status, 202);
    let again = eventually("B is up again", || Some(state()["nodes"][1].clone()).filter(|node| node["state"] == "up"));
    assert_ne!(again["pid"].as_i64().unwrap(), pid);
    demo.terminate();
    assert_eq!(demo.end().0, Some(0));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_gateway_learns_its_members_and_a_node_keeps_their_copies() {
    let stored = StoreFile::new("members");
    let store = stored.url();
    let args =
        ["demo-node", "--http", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--name", "A", "--cluster", "default", "--durability", "backup(1)"];
    let mut app = Process::outlive(&[&args[..], &["--store", &store]].concat());
    let ready = json(&format!("{{{}", app.line_with(r#"{"e":"ready","#)));
    let peer = ready["peer"].as_str().unwrap();
    let mut node = Process::outlive(&["node", "--name", "keeper", "--join", peer, "--store", &store, "--on-lost", "serve"]);
    let readiness = node.line_with("ready http://");
    eventually("the node is ready", || (ask(&readiness, "GET", "/ready", "", "").status == 200).then_some(()));
    let mut gateway = Process::outlive(&["gateway", "--listen", "127.0.0.1:0", "--join", peer, "--store", &store]);
    let addr = gateway.line_with("ready http://");
    eventually("the gateway knows the application", || (ask(&addr, "GET", "/shop/api/cart", "", "").status == 200).then_some(()));
    let added = eventually("there is a copy", || {
        let answer = ask(&addr, "PUT", "/shop/api/add?sku=bell", "", "");
        (answer.header("x-demo-copies") == Some("keeper")).then_some(answer)
    });
    assert_eq!((added.header("x-demo-node"), added.header("x-demo-level")), (Some("A"), Some("backup(1)")));
    for process in [gateway, node] {
        process.terminate();
        assert_eq!(process.end().0, Some(0));
    }
}

/// A node of the demo's application, and its peer address.
fn application(cluster: &str, store: &str, peer: &str) -> (Process, String) {
    let args = ["demo-node", "--http", "127.0.0.1:0", "--peer", peer, "--name", "A", "--cluster", cluster, "--durability", "owner"];
    let mut app = Process::outlive(&[&args[..], &["--store", store]].concat());
    let ready = json(&format!("{{{}", app.line_with(r#"{"e":"ready","#)));
    (app, ready["peer"].as_str().unwrap().to_owned())
}

#[test]
fn a_gateway_finds_nodes_by_the_store_alone_and_takes_the_clusters_name_from_one_that_knows_the_secret() {
    let stored = StoreFile::new("found");
    let store = stored.url();
    let (_stored, _) = application("shop by the store", &store, "127.0.0.1:0");
    let (_joined, peer) = application("shop by the address", "none", "127.0.0.1:0");
    for found in [["--store", &store], ["--join", &peer]] {
        let mut gateway = Process::outlive(&[&["gateway", "--listen", "localhost:0", "--ready", "127.0.0.1:0"], found.as_slice()].concat());
        let addr = gateway.line_with("ready http://");
        let readiness = gateway.line_with("readiness http://").replace("/ready", "");
        eventually("the gateway has met the cluster", || (ask(&readiness, "GET", "/ready", "", "").status == 200).then_some(()));
        assert_eq!(ask(&addr, "GET", "/shop/api/cart", "", "").header("x-demo-node"), Some("A"), "{found:?}");
        gateway.terminate();
        assert_eq!(gateway.end().0, Some(0));
    }
}

#[test]
fn a_gateway_that_reaches_nobody_is_not_ready_and_says_so_until_somebody_is_there() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = free.local_addr().unwrap().to_string();
    drop(free);
    let mut command = Command::new(env!("CARGO_BIN_EXE_outlive"));
    command.args(["gateway", "--listen", "127.0.0.1:0", "--ready", "127.0.0.1:0", "--join", &nobody]);
    let mut gateway = Process::start_loud(command);
    let addr = gateway.line_with("ready http://");
    let readiness = gateway.line_with("readiness http://").replace("/ready", "");
    let answer = ask(&readiness, "GET", "/ready", "", "");
    assert_eq!((answer.status, answer.body.starts_with("starting")), (503, true), "{answer:?}");
    assert_eq!(ask(&addr, "GET", "/shop/api/cart", "", "").status, 503);
    let said = gateway.complaint_with("no node of the cluster was reached");
    assert!(said.contains(&nobody) && said.contains("refused"), "{said}");
    let (_app, _) = application("late", "none", &nobody);
    eventually("the gateway has met it", || (ask(&readiness, "GET", "/ready", "", "").status == 200).then_some(()));
    assert_eq!(ask(&addr, "GET", "/shop/api/cart", "", "").status, 200);
}

#[test]
fn a_gateway_with_another_secret_is_not_let_in_and_says_why() {
    let (_app, peer) = application("private", "none", "127.0.0.1:0");
    let mut command = Command::new(env!("CARGO_BIN_EXE_outlive"));
    command.args(["gateway", "--listen", "127.0.0.1:0", "--join", &peer, "--secret", &"7".repeat(64)]);
    let mut gateway = Process::start_loud(command);
    assert!(gateway.complaint_with("no node of the cluster was reached").contains("secret"));
}

#[test]
fn a_gateway_names_the_member_that_tells_no_http_address() {
    let stored = StoreFile::new("silent");
    let store = stored.url();
    let mut keeper = Process::outlive(&["node", "--name", "keeper", "--store", &store]);
    keeper.line_with("ready http://");
    let mut command = Command::new(env!("CARGO_BIN_EXE_outlive"));
    command.args(["gateway", "--listen", "127.0.0.1:0", "--store", &store]);
    let mut gateway = Process::start_loud(command);
    assert!(gateway.complaint_with("nobody to send requests to").contains("`keeper` tells no HTTP address"));
}

#[test]
fn a_node_of_the_demo_ends_with_its_parent() {
    let args =
        ["demo-node", "--http", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--name", "A", "--cluster", "orphan", "--durability", "owner"];
    let mut node = Process::outlive(&[&args[..], &["--store", "none"]].concat());
    node.line_with("ready");
    node.orphan();
    assert_eq!(node.end().0, Some(0));
}

#[test]
fn mistakes_in_the_settings_are_told_at_once_and_nothing_starts() {
    let output = Command::new(env!("CARGO_BIN_EXE_outlive"))
        .args(["gateway", "--listen", "here", "--idle-timeout", "75", "--backend", "a:1"])
        .env("OUTLIVE_GATEWAY_LISTNE", "x")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    for wanted in
        ["4 errors", "--listen: gateway.listen is \"here\"", "--idle-timeout: ", "NAME=ADDR", "did you mean `OUTLIVE_GATEWAY_LISTEN`?"]
    {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}

/// A terminal interrupts all processes of its foreground; a second signal would cut off how the nodes leave.
#[test]
fn a_demo_that_is_interrupted_in_a_terminal_ends_in_order() {
    use std::os::unix::process::CommandExt as _;
    use std::process::Stdio;
    let mut command = Command::new(env!("CARGO_BIN_EXE_outlive"));
    command.args(["demo", "--listen", "127.0.0.1:0", "--visitors", "50"]).process_group(0).stderr(Stdio::piped());
    let mut demo = Process::start(command);
    let mut errors = demo.child.stderr.take().unwrap();
    let addr = demo.line_with("ready http://");
    eventually("the shoppers have sessions", || ask(&addr, "GET", "/said", "", "").body.contains("\"backed\"").then_some(()));
    let group = rustix::process::Pid::from_raw(demo.child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process_group(group, rustix::process::Signal::INT).unwrap();
    assert_eq!(demo.end().0, Some(0));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut errors, &mut said).unwrap();
    assert!(!said.contains("ERROR") && !said.contains("abandoned"), "{said}");
}
