//! The log of a day, as docs/log.md has it, from real processes.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use support::{Browser, Machines, page, until};

/// A line without what differs from run to run: when, where in the program, numbers.
fn plain(line: &str) -> String {
    let text =
        line.split_once("INFO ").map(|(_, rest)| ("INFO", rest)).or_else(|| line.split_once("WARN ").map(|(_, rest)| ("WARN", rest)));
    let (level, text) = text.unwrap_or(("", line));
    let text = text.trim_start();
    let text = text.split_once(": ").filter(|(target, _)| target.starts_with("outlive")).map_or(text, |(_, rest)| rest);
    let mut plain = format!("{level} ");
    let mut number = false;
    for c in text.trim().chars() {
        let part = c.is_ascii_digit() || number && c == '.';
        if part && !number {
            plain.push('#');
        }
        if !part {
            plain.push(c);
        }
        number = part;
    }
    plain.replace("#ms", "#s")
}

#[test]
fn the_log_of_a_day_says_what_happened_and_nothing_else() {
    let mut machines = Machines::started("log", &[]);
    let all_met = |machines: &Machines| {
        until("all nodes are ready", || {
            machines.nodes.iter().all(|node| Browser::default().get(node.http, "/ready").is_some_and(|r| r.text == "ready")).then_some(())
        });
    };
    let says = |machines: &Machines, what: &str| until(what, || machines.log(0).contains(what).then_some(()));
    says(&machines, "joined: c");
    for _ in 0..5 {
        Browser::default().get(machines.nodes[0].http, "/").unwrap();
    }
    // A deployment of b.
    machines.nodes[1].running.signal("-TERM");
    assert!(machines.nodes[1].running.ended().success());
    says(&machines, "left: b");
    machines.start(1);
    all_met(&machines);
    // c is killed.
    machines.nodes[2].running.kill();
    says(&machines, "dead: c");
    machines.start(2);
    all_met(&machines);
    // Another secret.
    let stranger = machines.stranger();
    says(&machines, "its secret is another one");
    drop(stranger);
    // The deployment comes to a.
    machines.nodes[0].running.signal("-TERM");
    assert!(machines.nodes[0].running.ended().success());

    let page = page("log.md");
    let said: Vec<String> = page.split("```log\n").skip(1).flat_map(|rest| rest.split("```").next().unwrap().lines()).map(plain).collect();
    let log = machines.log(0);
    assert!(!log.contains('\u{1b}'), "colours in a file");
    let mut read = Vec::new();
    for line in log.lines() {
        let line = plain(line);
        // Whoever comes or goes at the same time stands on one line.
        let (level, text) = line.split_once(' ').unwrap();
        let members = ["joined:", "leaving:", "left:", "dead:", "restarted:"].iter().any(|word| text.starts_with(word));
        let parts: Vec<&str> = if members { text.split("; ").collect() } else { vec![text] };
        read.extend(parts.iter().map(|part| format!("{level} {}", part.split(" members=").next().unwrap())));
    }
    for line in &said {
        assert!(read.contains(line), "not in the log: {line}\n{log}");
    }
    for line in &read {
        assert!(said.contains(line), "not on the page: {line}\n{log}");
    }
}
