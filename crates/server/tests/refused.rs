//! Nodes that may not be one cluster, as processes: each says which setting it is and both values, serves nobody meanwhile, and goes in when
//! that is put right.

#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use support::{Node, Process, StoreFile, ask, eventually, json, node, status};

/// A node is to be given somebody to join, or a store.
const NOBODY: &str = "127.0.0.1:1";

/// Waits until it says why it is not in; a reason and nothing else.
#[track_caller]
fn refused(node: &mut Node, by: &str, reason: &str) {
    let whole = format!("not in its cluster, and serves nobody; {by}: it does not take this node: {reason}");
    let answer = eventually("it says that it is kept out", || {
        let answer = ask(&node.ready, "GET", "/ready", "", "");
        answer.body.contains("does not take this node").then_some(answer)
    });
    assert_eq!((answer.status, answer.body), (503, format!("starting: {whole}")));
    let said = node.process.complaint_with("this node is not in");
    assert!(said.contains("WARN") && said.trim_end().ends_with(&format!("this node is {whole}")), "{said}");
}

fn serves(node: &Node) {
    eventually("it is in", || (ask(&node.ready, "GET", "/ready", "", "").status == 200).then_some(()));
}

fn ends(node: Node) {
    node.process.terminate();
    assert_eq!(node.process.end().0, Some(0));
}

#[test]
fn another_clusters_name_keeps_out_until_one_of_both_is_set_right() {
    let mut a = node(&["--name", "a", "--join", NOBODY, "--cluster", "shop"]);
    let peer = a.peer.clone();
    let with = |name, cluster| node(&["--name", name, "--cluster", cluster, "--join", &peer]);
    let mut b = with("b", "default");
    refused(&mut b, &a.peer, "its cluster is `shop`, and this node's `default`");
    assert!(a.process.complaint_with("a connection was refused").contains("its cluster is `default`, and this node's `shop`"));
    ends(b);
    let b = with("b", "shop");
    a.process.complaint_with("joined: b");
    serves(&b);
    // At the other end: whoever is kept out goes in by itself.
    let mut c = with("c", "default");
    refused(&mut c, &a.peer, "its cluster is `shop`, and this node's `default`");
    ends(b);
    ends(a);
    let mut a = node(&["--name", "a", "--join", NOBODY, "--cluster", "default", "--peer", &peer]);
    a.process.complaint_with("joined: c");
    serves(&c);
    serves(&a);
}

#[test]
fn another_store_keeps_out_and_both_are_named() {
    let (one, other) = (StoreFile::new("one"), StoreFile::new("other"));
    let secret = "5e".repeat(32);
    let mut a = node(&["--name", "a", "--store", &one.url(), "--secret", &secret]);
    let with = |name, store: &[&str]| node(&[&["--name", name, "--join", &a.peer, "--secret", &secret], store].concat());
    let mut b = with("b", &["--store", &other.url()]);
    let store_of = |node: &Node| {
        let (_, said) = status(&["--join", &node.peer, "--secret", &secret, "--json"]);
        json(&said)["nodes"][0]["store"].as_str().unwrap()[..8].to_owned()
    };
    let (theirs, its) = (store_of(&a), store_of(&b));
    let rule = "nodes of a cluster share one, or have none";
    refused(&mut b, &a.peer, &format!("its store is {theirs}, and this node's {its}: {rule}"));
    ends(b);
    let mut b = with("b", &[]);
    refused(&mut b, &a.peer, &format!("its store is {theirs}, and this node's none: {rule}"));
    ends(b);
    let b = with("b", &["--store", &one.url()]);
    a.process.complaint_with("joined: b");
    serves(&b);
}

#[test]
fn another_secret_keeps_out_and_is_told_to_nobody() {
    let (one, other) = ("5e".repeat(32), "c7".repeat(32));
    let mut a = node(&["--name", "a", "--join", NOBODY, "--secret", &one]);
    let peer = a.peer.clone();
    let with = |secret: &str| node(&["--name", "b", "--join", &peer, "--secret", secret]);
    let mut b = with(&other);
    refused(&mut b, &a.peer, "its secret is another one than this node's");
    let said = a.process.complaint_with("name=\"b\"");
    assert!(said.contains("WARN") && said.contains("its secret is another one than this node's"), "{said}");
    assert!(!said.contains("5e5e") && !said.contains("c7c7"), "{said}");
    ends(b);
    let b = with(&one);
    a.process.complaint_with("joined: b");
    serves(&b);
    // The store's is the cluster's: another one beside it is an error at the start.
    let file = StoreFile::new("secret");
    let c = node(&["--name", "c", "--store", &file.url(), "--secret", &one]);
    serves(&c);
    let mut command = Command::new(env!("CARGO_BIN_EXE_outlive"));
    let output = command.args(["node", "--name", "d", "--store", &file.url(), "--secret", &other]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("not the one in the store"), "{said}");
    assert!(!said.contains("5e5e") && !said.contains("c7c7"), "{said}");
}

/// Refuses whoever comes to `port`, with this letter of the handshake, as long as it is not told to end.
fn refuses(listener: TcpListener, letter: &'static [u8]) -> impl FnOnce() {
    let addr = listener.local_addr().unwrap();
    let (end, ended) = std::sync::mpsc::sync_channel::<()>(1);
    let thread = std::thread::spawn(move || {
        for stream in listener.incoming() {
            if ended.try_recv().is_ok() {
                return;
            }
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            if stream.read_exact(&mut length).is_ok() {
                let mut hello = vec![0; u16::from_be_bytes(length).into()];
                // Whoever comes may have gone away again.
                let _ = stream.read_exact(&mut hello).and_then(|()| stream.write_all(letter));
            }
        }
    });
    move || {
        end.send(()).unwrap();
        drop(std::net::TcpStream::connect(addr));
        thread.join().unwrap();
    }
}

/// There is one consistency, and one protocol of each release: what others would say is said by the test.
#[test]
fn another_consistency_or_protocol_keeps_out_until_the_other_end_is_of_this_release() {
    let differs: &[u8] = &[0, 7, 3, 2, 2, 1, 2, 1, 1];
    let speaks: &[u8] = &[0, 3, 3, 1, 1];
    for (letter, reason) in [
        (differs, "its consistency is no. 2, and this node's available".to_owned()),
        (speaks, format!("its release speaks protocol 1, and this one {}", outlive_core::wire::PROTOCOL)),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let end = refuses(listener, letter);
        let mut b = node(&["--name", "b", "--join", &addr, "--cluster", "refused"]);
        refused(&mut b, &addr, &reason);
        end();
        let mut a = node(&["--name", "a", "--join", NOBODY, "--peer", &addr, "--cluster", "refused"]);
        a.process.complaint_with("joined: b");
        serves(&b);
    }
}

#[test]
fn a_store_that_was_removed_under_running_nodes_is_made_anew_by_nobody_until_they_have_ended() {
    let file = StoreFile::new("removed");
    let with = |name: &str| node(&["--name", name, "--store", &file.url()]);
    let mut a = with("a");
    let b = with("b");
    a.process.complaint_with("joined: b");
    let parts = || ["", "-wal", "-shm"].map(|end| format!("{}{end}", file.0));
    for part in parts() {
        std::fs::remove_file(part).unwrap();
    }
    let newcomer = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outlive"));
        command.args(["node", "--name", "c", "--store", &file.url()]);
        let mut c = Process::start_loud(command);
        assert_eq!(c.line(), "", "it ends without a word to who would send it requests");
        let said = c.complaint_with(&file.0);
        assert!(said.contains("is not there any more, and who has it open still runs"), "{said}");
        assert_eq!(c.end().0, Some(1));
        assert!(!parts().iter().any(|part| std::fs::exists(part).unwrap()), "nothing is made");
    };
    newcomer();
    eventually("those who run miss it", || ask(&a.ready, "GET", "/ready", "", "").body.contains("not where it was").then_some(()));
    newcomer();
    ends(b);
    newcomer();
    let mut a = a;
    a.process.child.kill().unwrap();
    a.process.child.wait().unwrap();
    // Nobody has it any more: whoever comes begins anew.
    let c = with("c");
    serves(&c);
    let (code, said) = status(&["--store", &file.url()]);
    assert!(code == 0 && said.contains("healthy, 1 node"), "{said}");
}
