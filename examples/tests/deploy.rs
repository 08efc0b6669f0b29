//! The snippets of docs/deploy.md, run by the programs that they are for.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use support::{Browser, Folder, Machines, Running, free_ports, outlive, snippet, snippet_below, until};

/// A visitor who counts along.
struct Visitor {
    browser: Browser,
    visits: u32,
    node: String,
}

impl Visitor {
    /// Asks once: it must succeed, and nothing may be missing. A node says itself when it is to be asked again.
    fn visit(&mut self, door: SocketAddr) {
        let text = until("a visit succeeds", || {
            let response = self.browser.get(door, "/").expect("a response");
            assert!(response.status == 200 || response.status == 503 && response.text.contains("session"), "{}", response.text);
            (response.status == 200).then_some(response.text)
        });
        let (visits, node) = text.trim().strip_prefix("visit ").and_then(|rest| rest.split_once(", served by ")).unwrap();
        self.visits += 1;
        assert_eq!(visits.parse(), Ok(self.visits), "a visit is missing");
        node.clone_into(&mut self.node);
    }
}

/// Three nodes behind a balancer: visitors stay where they are; one node is asked to leave, and one is killed; nobody notices.
fn serves(mut machines: Machines, door: SocketAddr, sees_a_drain: bool) {
    until("the balancer has a server", || (Browser::default().get(door, "/ready")?.status == 200).then_some(()));
    let nodes = |visitors: &[Visitor]| visitors.iter().map(|v| v.node.clone()).collect::<std::collections::BTreeSet<_>>();
    // A balancer may find its servers one after the other.
    let mut visitors = Vec::new();
    until("every node has visitors", || {
        let mut visitor = Visitor { browser: Browser::default(), visits: 0, node: String::new() };
        visitor.visit(door);
        visitors.push(visitor);
        (visitors.len() >= 9 && nodes(&visitors).len() == 3).then_some(())
    });
    let route = |v: &Visitor| v.browser.0.get("__Host-session-r").cloned();
    for visitor in &mut visitors {
        let first = visitor.node.clone();
        assert_eq!(route(visitor).as_deref(), Some(format!(".{first}").as_str()), "{:?}", visitor.browser.0.keys());
        for _ in 0..5 {
            visitor.visit(door);
            assert_eq!(visitor.node, first, "a visitor was sent elsewhere");
        }
    }

    // One is asked to leave, and stays until the balancer has seen it, which takes as long as it takes.
    machines.nodes[1].running.signal("-TERM");
    let leaving = machines.nodes[1].http;
    until("it says so", || (Browser::default().get(leaving, "/ready")?.text == "draining").then_some(()));
    until("nobody is sent there", || {
        visitors.iter_mut().for_each(|visitor| visitor.visit(door));
        (!sees_a_drain || !nodes(&visitors).contains("b")).then_some(())
    });
    if sees_a_drain {
        // That ends the notice. All that it had was handed over long ago.
        machines.nodes[1].running.signal("-TERM");
    }
    assert!(machines.nodes[1].running.ended().success());
    visitors.iter_mut().for_each(|visitor| visitor.visit(door));
    assert!(!nodes(&visitors).contains("b"));

    // One is killed.
    machines.nodes[2].running.kill();
    visitors.iter_mut().for_each(|visitor| visitor.visit(door));
    visitors.iter_mut().for_each(|visitor| visitor.visit(door));
    assert_eq!(nodes(&visitors), ["a".to_owned()].into());
}

/// The test ends the notice itself where a balancer sees it; elsewhere it is short.
fn machines(test: &str) -> (Machines, SocketAddr) {
    let notice = if test == "nginx" { "2s" } else { "1h" };
    (Machines::started(test, &[("OUTLIVE_DRAIN_NOTICE", notice)]), SocketAddr::from(([127, 0, 0, 1], free_ports(1)[0])))
}

#[test]
fn haproxy_keeps_visitors_with_their_node_and_sees_one_that_leaves() {
    let (machines, door) = machines("haproxy");
    let text = machines.here(&snippet("/etc/haproxy/haproxy.cfg")).replace("bind :80\n", &format!("bind {door}\n"));
    let file = machines.folder.write("haproxy.cfg", &text);
    let _haproxy = Running::start(Command::new("haproxy").args(["-db", "-f"]).arg(file));
    serves(machines, door, true);
}

#[test]
fn nginx_keeps_visitors_with_their_node_and_goes_on_without_one_that_ended() {
    let (machines, door) = machines("nginx");
    let shop = machines.here(&snippet("/etc/nginx/conf.d/shop.conf")).replace("listen 80;", &format!("listen {door};"));
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {name};")).join(" ");
    let text = format!("daemon off; pid nginx.pid; events {{}}\nhttp {{ access_log off; {temporary}\n{shop}}}\n");
    machines.folder.write("nginx.conf", &text);
    let mut nginx = Command::new("nginx");
    nginx.arg("-p").arg(&machines.folder.0).args(["-e", "stderr", "-c", "nginx.conf"]);
    let _nginx = Running::start(&mut nginx);
    serves(machines, door, false);
}

#[test]
fn apache_keeps_visitors_with_their_node_and_sees_one_that_leaves() {
    let (machines, door) = machines("apache");
    let folder = machines.folder.0.display().to_string();
    let modules =
        ["mpm_event", "authz_core", "slotmem_shm", "proxy", "proxy_http", "proxy_balancer", "proxy_hcheck", "lbmethod_byrequests"];
    let modules = modules.map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n")).concat();
    let shop = machines.here(&snippet("/etc/apache2/sites-available/shop.conf")).replace("*:80", &door.to_string());
    let text = format!(
        "ServerName shop.example\nListen {door}\nPidFile {folder}/apache.pid\nErrorLog /dev/stderr\nLogLevel warn\n{modules}\
         User www-data\nGroup www-data\nDefaultRuntimeDir {folder}\nMutex file:{folder} default\n{shop}"
    );
    let file = machines.folder.write("apache.conf", &text);
    let _apache = Running::start(Command::new("apache2").args(["-DFOREGROUND", "-f"]).arg(file));
    serves(machines, door, true);
}

#[test]
fn the_gateway_keeps_visitors_with_their_node_and_sees_one_that_leaves() {
    let (machines, door) = machines("gateway");
    let unit = snippet("/etc/systemd/system/outlive-gateway.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/outlive ")).unwrap();
    let line = machines.here(line).replace("0.0.0.0:80", &door.to_string());
    let environment = snippet("/etc/shop/gateway.env");
    let environment = environment.lines().filter_map(|line| line.split_once('='));
    let _gateway = Running::start(Command::new(outlive()).args(line.split(' ')).envs(environment).stdout(Stdio::null()));
    serves(machines, door, true);
}

/// The program that the page calls `shop`, in a folder of its own, started by a line of the page; and where it answers.
fn shop(folder: &Folder, line: &str) -> (Running, SocketAddr) {
    let program = folder.0.join("bin/shop");
    if !program.exists() {
        std::fs::create_dir_all(folder.0.join("bin")).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_deployed"), &program).unwrap();
    }
    let (before, port) = line.split_once("LISTEN=127.0.0.1:").unwrap();
    let line = format!("exec env {before}LISTEN=127.0.0.1:{} {}", free_ports(1)[0], port.split_once(' ').unwrap().1);
    let path = format!("{}:{}", folder.0.join("bin").display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", &line]).current_dir(&folder.0).env("PATH", path).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut running = Running::start(&mut command);
    let mut said = String::new();
    BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let http = said.trim().strip_prefix("http://").unwrap_or_else(|| panic!("`{line}` said {said:?}")).parse().unwrap();
    until("a node is ready", || (Browser::default().get(http, "/ready")?.text == "ready").then_some(()));
    (running, http)
}

/// Asks `outlive status` for the nodes of the store in this folder until it says that.
fn until_status(folder: &Folder, what: &str, says: impl Fn(&str) -> bool) {
    until(what, || {
        let mut command = Command::new(outlive());
        let output = command.args(["status", "--store", "sqlite:sessions.db", "--json"]).current_dir(&folder.0).output().unwrap();
        says(&String::from_utf8(output.stdout).unwrap().replace([' ', '\n'], "")).then_some(())
    });
}

#[test]
fn three_processes_of_one_machine_share_a_store_and_its_backup_brings_back_what_it_had() {
    let folder = Folder::new("one-machine");
    let lines: Vec<String> = snippet_below("One machine").lines().map(str::to_owned).collect();
    let mut nodes: Vec<(Running, SocketAddr)> = lines.iter().map(|line| shop(&folder, line)).collect();
    assert_eq!(nodes.len(), 3);
    let names = ["a", "b", "c"].map(|name| format!("\"name\":\"{name}\""));
    until_status(&folder, "they are one cluster", |said| said.contains("\"health\":\"healthy\"") && names.iter().all(|n| said.contains(n)));
    let visitor = || Visitor { browser: Browser::default(), visits: 0, node: String::new() };
    let (mut early, mut late) = (visitor(), visitor());
    for (_, http) in &nodes {
        early.visit(*http);
    }
    until_status(&folder, "the store has all", |said| said.matches("\"dirty\":0,").count() == 3);

    // Others write meanwhile, as they do in life.
    let backup = snippet_below("Backup of a store");
    let mut backup = Command::new("sh").args(["-ec", &backup]).current_dir(&folder.0).spawn().unwrap();
    let ended = until("the backup is made", || {
        late.visit(nodes[0].1);
        backup.try_wait().unwrap()
    });
    assert!(ended.success(), "SQLITE3 IS MISSING, or does not do it: {ended}");
    late.visit(nodes[1].1);

    // One is killed, and the store is there for the others; then all end.
    nodes[2].0.kill();
    late.visit(nodes[1].1);
    for (node, _) in &mut nodes[..2] {
        // The second one ends the notice to balancers.
        node.signal("-TERM");
        node.signal("-TERM");
    }
    for (node, _) in &mut nodes[..2] {
        node.ended();
    }
    for journal in ["sessions.db-wal", "sessions.db-shm"] {
        let _ = std::fs::remove_file(folder.0.join(journal));
    }
    std::fs::rename(folder.0.join("backup.db"), folder.0.join("sessions.db")).unwrap();
    let (_node, http) = shop(&folder, &lines[0]);
    early.visit(http);
    assert_eq!((early.visits, early.node.as_str()), (4, "a"));
}

#[test]
fn systemd_takes_the_units() {
    let machines = Machines::new("systemd");
    let programs = [("shop", env!("CARGO_BIN_EXE_deployed").to_owned()), ("outlive-gateway", outlive().display().to_string())];
    for (unit, program) in programs {
        // It looks whether the program is there.
        let text = snippet(&format!("/etc/systemd/system/{unit}.service"));
        let text = text.replace("/usr/local/bin/shop", &program).replace("/usr/local/bin/outlive", &program);
        let file = machines.folder.write(&format!("{unit}.service"), &text);
        let checked = Command::new("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no"]).arg(file).output();
        let checked = checked.unwrap_or_else(|error| panic!("SYSTEMD-ANALYZE IS MISSING: {error}"));
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success() && said.is_empty(), "{unit}: {said}");
    }
}

#[test]
fn kubernetes_schema_takes_the_manifests() {
    let machines = Machines::new("kubernetes");
    let file = machines.folder.write("shop.yaml", &snippet("shop.yaml"));
    let check = |file: &std::path::Path| {
        let checked = Command::new("kubernetes-validate").args(["-k", "1.36", "--strict"]).arg(file).output();
        checked.unwrap_or_else(|error| panic!("KUBERNETES-VALIDATE IS MISSING (pip install kubernetes-validate): {error}"))
    };
    let checked = check(&file);
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "{said}{}", String::from_utf8_lossy(&checked.stderr));
    // It looks at every one of them.
    for wrong in [
        ("stringData", "stringDatum"),
        ("publishNotReadyAddresses", "publishNotReady"),
        ("startupProbe", "bootProbe"),
        ("maxUnavailable: 1", "unavailable: 1"),
        ("policyTypes", "policyKinds"),
    ] {
        let file = machines.folder.write("wrong.yaml", &snippet("shop.yaml").replace(wrong.0, wrong.1));
        assert!(!check(&file).status.success(), "{} passes", wrong.1);
    }
}

/// What has to be longer than the end of a node takes, is; and the page does its sum.
#[test]
fn whatever_kills_waits_longer_than_an_end_takes() {
    let page = support::page("deploy.md");
    let default = |path: &str| {
        let setting = outlive::Config::settings().into_iter().find(|setting| setting.path == path).unwrap();
        setting.default.unwrap().strip_suffix('s').unwrap().parse::<f64>().unwrap()
    };
    let sum = default("drain_notice") + default("drain_timeout") + default("shutdown_grace") + 0.5;
    assert!(page.contains(&format!("the sum, {sum} s,")), "{sum}");
    let number = |text: &str, name: &str| {
        let rest = text.split_once(name).unwrap().1.trim_start_matches([':', '=', ' ']);
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<f64>().unwrap()
    };
    assert!(number(&snippet("shop.yaml"), "terminationGracePeriodSeconds") > sum);
    assert!(number(&snippet("/etc/systemd/system/shop.service"), "TimeoutStopSec") > sum);
}
