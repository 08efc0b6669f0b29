//! `outlive status`, `outlive node` and their mistakes, with real processes.

#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod support;

use serde_json::Value;
use std::process::Command;
use support::{Node, StoreFile, ask, eventually, json, node, status};

fn signal(node: &Node, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(node.process.child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn a_cluster_says_from_any_node_who_is_there_and_how_each_is() {
    let file = StoreFile::new("who");
    let store = file.url();
    let a = node(&["--name", "a", "--store", &store, "--durability", "backup(2)"]);
    let b = node(&["--name", "b", "--store", &store, "--idle-timeout", "90s"]);
    let healthy = eventually("both say that they are well", || {
        let (code, said) = status(&["--store", &store, "--json"]);
        (code == 0).then(|| json(&said))
    });
    assert_eq!((&healthy["cluster"], &healthy["health"]), (&Value::from("default"), &Value::from("healthy")));
    let nodes = healthy["nodes"].as_array().unwrap();
    let told = |i: usize, key: &str| nodes[i][key].clone();
    assert_eq!((told(0, "name"), told(1, "name")), (Value::from("a"), Value::from("b")));
    assert_eq!((told(0, "durability"), told(0, "backups"), told(1, "backups")), (Value::from("backup(2)"), Value::from(2), Value::from(1)));
    assert_eq!((told(0, "idle_timeout_ms"), told(1, "idle_timeout_ms")), (Value::from(1_800_000), Value::from(90_000)));
    assert_eq!((told(0, "store"), told(1, "peer")), (told(1, "store"), Value::from(b.peer.clone())));
    assert!(told(0, "store").is_string() && told(0, "settled") == true && told(0, "owned") == 0);
    // For people, and from a node by its address.
    let (code, said) = status(&["--join", &b.peer, "--store", &store]);
    assert!(code == 0 && said.starts_with("cluster default: healthy, 2 nodes") && said.contains("backup(2)"), "{said}");
    // One that is silent is a matter of a few seconds, and not of the others.
    signal(&b, rustix::process::Signal::STOP);
    let (code, said) = status(&["--join", &a.peer, "--store", &store]);
    signal(&b, rustix::process::Signal::CONT);
    assert!(code == 1 && said.contains("degraded") && said.contains("b  "), "{said}");
}

#[test]
fn whoever_tells_nothing_is_named_with_the_reason() {
    let a = node(&["--name", "a", "--join", "127.0.0.1:1", "--cluster", "status-alone"]);
    eventually("it is the first of its cluster", || (ask(&a.ready, "GET", "/ready", "", "").status == 200).then_some(()));
    // It was to join somebody, and is alone.
    let (code, said) = status(&["--join", &a.peer]);
    assert!(code == 1 && said.contains("a: none of the nodes to join is reached"), "{code} {said}");
    let (code, said) = status(&["--join", &a.peer, "--secret", &"ab".repeat(32)]);
    assert!(code == 2 && said.contains("secret"), "{said}");
    let (code, said) = status(&["--join", "127.0.0.1:1", "no-such-host.invalid:7400", "--json"]);
    assert!(
        code == 2 && said.contains("unreachable") && said.contains("127.0.0.1:1") && said.contains("no-such-host.invalid:7400"),
        "{said}"
    );
}

#[test]
fn a_typo_in_join_is_in_the_log_with_its_reason_and_so_is_whoever_comes() {
    let mut a = node(&["--name", "a", "--join", "no-such-host.invalid:7400", "127.0.0.1:1", "--cluster", "status-typo"]);
    let said = a.process.complaint_with("this node is ");
    assert!(
        said.contains("WARN") && said.contains("127.0.0.1:1: nobody listens there") && said.contains("no-such-host.invalid:7400: "),
        "{said}"
    );
    let b = node(&["--name", "b", "--join", &a.peer, "--cluster", "status-typo"]);
    let joined = a.process.complaint_with("joined: b");
    assert!(joined.contains("INFO"), "{joined}");
    b.process.terminate();
    assert_eq!(b.process.end().0, Some(0));
    a.process.complaint_with("left: b (drained)");
}

#[test]
fn a_second_process_of_one_name_does_not_start_and_the_first_goes_on() {
    let mut a = node(&["--name", "same", "--join", "127.0.0.1:1", "--cluster", "status-name"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_outlive"));
    command.args(["node", "--name", "same", "--join", &a.peer, "--cluster", "status-name"]);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("`same` is taken") && said.contains(&a.peer), "{said}");
    a.process.complaint_with("was not let in");
    assert_eq!(ask(&a.ready, "GET", "/ready", "", "").status, 200);
}
