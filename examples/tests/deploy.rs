//! The snippets of docs/deploy.md, run by the programs that they are for.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use std::process::Command;
use support::{Machines, outlive, snippet};

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
    let settings = support::page("config.md");
    let default = |name: &str| {
        let row = settings.lines().find(|line| line.starts_with(&format!("| `{name}` | `OUTLIVE_"))).unwrap();
        let text = row.rsplit_once("default `").unwrap().1;
        text.split_once("s`").unwrap().0.parse::<f64>().unwrap()
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
