//! The log of a day, as docs/log.md has it, from real processes.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{Browser, Machines, Running, free_ports, outlive, page, snippet, until};

/// A file system of its own, so small that it can be filled.
struct Disk(PathBuf);

impl Disk {
    fn mounted(at: PathBuf) -> Disk {
        std::fs::create_dir_all(&at).unwrap();
        let owner = std::fs::metadata(&at).map(|at| std::os::unix::fs::MetadataExt::uid(&at)).unwrap();
        let options = format!("size=2m,uid={owner}");
        let mounted = root("mount").args(["-t", "tmpfs", "-o", &options, "outlive-log"]).arg(&at).status().unwrap();
        assert!(mounted.success(), "A FILE SYSTEM CANNOT BE MOUNTED HERE: that needs root");
        Disk(at)
    }

    /// Until nothing fits any more.
    fn fill(&self) {
        use std::io::Write as _;
        let mut ballast = std::fs::File::options().create(true).append(true).open(self.ballast()).unwrap();
        for size in [1 << 12, 1] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nodes may still have it open: it goes when they have.
        let _ = root("umount").arg("-l").arg(&self.0).status();
    }
}

/// A command that root alone may give.
fn root(program: &str) -> Command {
    let is_root = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0;
    if is_root {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", program]);
    sudo
}

fn gateway(machines: &Machines) -> Running {
    let unit = snippet("/etc/systemd/system/outlive-gateway.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/outlive ")).unwrap();
    let line = machines.here(line).replace("0.0.0.0:80", &format!("127.0.0.1:{}", free_ports(1)[0]));
    let environment = snippet("/etc/shop/gateway.env");
    let environment = environment.lines().filter_map(|line| line.split_once('='));
    let log = std::fs::File::create(machines.folder.0.join("gateway.log")).unwrap();
    Running::start(Command::new(outlive()).args(line.split(' ')).envs(environment).stdout(Stdio::null()).stderr(log))
}

/// A line without what differs from run to run: when, where in the program, numbers.
fn plain(line: &str) -> String {
    let levels = ["INFO ", "WARN ", "ERROR "];
    let (level, text) = levels.iter().find_map(|level| Some((level.trim(), line.split_once(level)?.1))).unwrap_or(("", line));
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

/// A gateway makes its name up.
fn gateway_unnamed(log: &str) -> String {
    let name = log.lines().find_map(|line| line.split_once(" (an observer)")?.0.rsplit_once("joined: ")).map(|(_, name)| name);
    name.map_or(log.to_owned(), |name| log.replace(name, "gateway"))
}

/// What the page says in blocks of this kind, this log has, and the other way round.
fn compare(fence: &str, log: &Path) {
    let page = page("log.md");
    let fence = format!("```{fence}\n");
    let said: String = page.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let said: Vec<String> = gateway_unnamed(&said).lines().map(plain).collect();
    let log = gateway_unnamed(&std::fs::read_to_string(log).unwrap());
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
    // What the store said differs with what was asked of it.
    let told = |lines: Vec<String>| -> Vec<String> { lines.iter().map(|line| line.split(" why=").next().unwrap().to_owned()).collect() };
    let (said, read) = (told(said), told(read));
    // Once is enough.
    let count = |lines: &[String]| lines.iter().filter(|line| line.contains("a member ")).count();
    assert_eq!(count(&read), count(&said), "{log}");
    for line in &said {
        assert!(read.contains(line), "not in the log: {line}\n{log}");
    }
    for line in &read {
        assert!(said.contains(line), "not on the page: {line}\n{log}");
    }
}

/// Until each node has met the others and has all that it should have.
fn all_met(machines: &Machines) {
    let is_ready = |node: &support::Node| Browser::default().get(node.http, "/ready").is_some_and(|response| response.text == "ready");
    until("all nodes are ready", || machines.nodes.iter().all(is_ready).then_some(()));
}

/// Until node a says it.
fn says(machines: &Machines, what: &str) {
    until(what, || machines.log(0).contains(what).then_some(()));
}

#[test]
fn the_log_of_a_day_says_what_happened_and_nothing_else() {
    let mut machines = Machines::started("log", &[]);
    says(&machines, "joined: c");
    all_met(&machines);
    let _gateway = gateway(&machines);
    let log = machines.folder.0.join("gateway.log");
    let gateway_says = |what: &str, member: &str| {
        let line = |line: &str| line.contains(what) && line.contains(&format!("member=\"{member}\""));
        until(what, || std::fs::read_to_string(&log).unwrap().lines().any(line).then_some(()));
    };
    let gateway_too = |what: &str| {
        until("the gateway says so, too", || std::fs::read_to_string(&log).unwrap().contains(what).then_some(()));
    };
    ["a", "b", "c"].iter().for_each(|member| gateway_says("a member is there", member));
    says(&machines, "(an observer)");
    for _ in 0..5 {
        Browser::default().get(machines.nodes[0].http, "/").unwrap();
    }
    // A deployment of b.
    machines.nodes[1].running.signal("-TERM");
    gateway_says("a member drains", "b");
    assert!(machines.nodes[1].running.ended().success());
    says(&machines, "left: b");
    gateway_says("a member is gone", "b");
    gateway_too("left: b");
    machines.start(1);
    all_met(&machines);
    // c is killed.
    machines.nodes[2].running.kill();
    says(&machines, "dead: c");
    gateway_says("a member is gone", "c");
    gateway_too("dead: c");
    machines.start(2);
    all_met(&machines);
    // b stands still for longer than a member may.
    machines.nodes[1].running.signal("-STOP");
    says(&machines, "dead: b");
    gateway_too("dead: b");
    machines.nodes[1].running.signal("-CONT");
    all_met(&machines);
    // Another secret.
    let stranger = machines.stranger();
    says(&machines, "its secret is another one");
    drop(stranger);
    // The deployment comes to a.
    machines.nodes[0].running.signal("-TERM");
    assert!(machines.nodes[0].running.ended().success());
    gateway_says("a member is gone", "a");

    compare("log", &machines.folder.0.join("a.log"));
    compare("log gateway", &log);
}

#[test]
fn a_full_disk_is_one_line_when_it_begins_and_one_when_it_is_over() {
    // Before the machines, so that it goes after them.
    let disk = Disk::mounted(std::env::temp_dir().join(format!("outlive-log-disk-{}", std::process::id())));
    let store = format!("sqlite:{}", disk.0.join("sessions.db").display());
    let machines = Machines::started("full-disk", &[("OUTLIVE_STORE", &store)]);
    ["joined: b", "joined: c"].iter().for_each(|line| says(&machines, line));
    all_met(&machines);
    until("a node says that its store cannot be written", || {
        disk.fill();
        (0..10).for_each(|_| drop(Browser::default().get(machines.nodes[0].http, "/").unwrap()));
        machines.log(0).contains("the store cannot be written").then_some(())
    });
    std::fs::remove_file(disk.ballast()).unwrap();
    says(&machines, "the store can be read and written again");
    all_met(&machines);
    let log = machines.log(0);
    assert!(log.lines().any(|line| line.contains("cannot be written") && line.contains("disk is full")), "{log}");
    compare("log store", &machines.folder.0.join("a.log"));
}
