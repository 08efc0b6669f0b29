//! `[demo]`.

use crate::config::Command;
use outlive::Durability;
use outlive::settings::{Spelling as _, StoreUrl, table, within};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

table! {
    /// The settings of `outlive demo`.
    pub(crate) struct DemoConfig {
        "demo.listen" listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)) => "Where the page is";
        "demo.nodes" nodes: usize = 3, if |n| within(n, 1..=16) => "How many nodes";
        "demo.store" store: StoreUrl, if shared => "sqlite:PATH or none; otherwise SQLite in a temporary folder";
        "demo.durability" durability: Durability = Durability::Backup(1) => "owner, backup(N) or store";
        "demo.state" state: PathBuf => "A file that says what is where, kept true while it runs";
        "demo.visitors" visitors: usize = 200, if |n| within(n, 0..=10_000) => "How many other shoppers";
        "demo.script" script: bool = false => "Play it without a person, and judge it";
        "demo.seconds" seconds: u64 = 30, if |n| within(n, 5..=86_400) => "How long the script takes, at least";
        "demo.json" json: PathBuf => "Where the script writes its table";
        "demo.danger_public" danger_public: bool = false => "Listen where others can press the buttons, too";
    }
}

impl Command for DemoConfig {
    const NAME: &'static str = "demo";
    const ABOUT: &'static str = "A shop on several nodes, on this machine, with buttons that kill them";

    fn clashes(&self, given: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut clashes = Vec::new();
        let (listen, nodes) = (self.listen(), self.nodes());
        if !listen.ip().is_loopback() && !self.danger_public() {
            clashes.push(format!("demo.listen is {listen}, where others can press the buttons, and demo.danger_public is not set"));
        }
        if let Durability::Backup(copies) = self.durability()
            && usize::from(copies) >= nodes
        {
            clashes.push(format!("demo.durability is {}, and demo.nodes is {nodes}: a copy needs another node", self.durability().write()));
        }
        if self.durability() == Durability::Store && self.store.as_ref().is_some_and(|store| store.some().is_none()) {
            clashes.push("demo.durability is store, and demo.store is none".to_owned());
        }
        if self.script() && self.visitors() == 0 {
            clashes.push("demo.visitors is 0, and a script needs somebody who shops".to_owned());
        }
        if self.script() && nodes < 2 {
            clashes.push(format!("demo.nodes is {nodes}, and a script that kills one needs another"));
        }
        for key in ["demo.json", "demo.seconds"] {
            if given(key) && !self.script() {
                clashes.push(format!("{key} is set, and demo.script is not: only the script writes a table and ends by itself"));
            }
        }
        clashes
    }
}

fn shared(store: &StoreUrl) -> Result<(), String> {
    match store.some().map(|url| url.split_once(':')) {
        None => Ok(()),
        Some(Some(("sqlite", path))) if !path.is_empty() => Ok(()),
        _ => Err("must be none or sqlite:PATH: the nodes are processes of their own".to_owned()),
    }
}
