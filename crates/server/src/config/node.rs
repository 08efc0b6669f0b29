//! `[node]`: settings of an application's node, under names of their own.

use crate::config::Command;
use outlive::Config;
use outlive::settings::{Setting, Settings, or_why, table};
use outlive_core::address::Address;
use std::net::{Ipv4Addr, SocketAddr};

/// The setting of an application that each is.
const SAME: [(&str, &str); 14] = [
    ("node.name", "node"),
    ("node.zone", "zone"),
    ("node.cluster", "cluster"),
    ("node.peer", "peer"),
    ("node.advertise", "advertise"),
    ("node.join", "join"),
    ("node.store", "store"),
    ("node.secret", "secret"),
    ("node.durability", "durability"),
    ("node.on_lost", "on_lost"),
    ("node.idle_timeout", "session.idle_timeout"),
    ("node.lifetime", "session.lifetime"),
    ("node.drain_timeout", "drain_timeout"),
    ("node.danger_plain_peers", "danger_plain_peers"),
];

/// Where others connect.
pub(super) fn reachable(nodes: &[Address]) -> Result<(), String> {
    nodes.iter().try_for_each(|node| or_why(node.clone().reachable()))
}

fn same(path: &str) -> Option<&'static str> {
    SAME.iter().find(|(name, _)| *name == path).map(|(_, of)| *of)
}

table! {
    /// What is its own.
    pub(crate) struct Own {
        "node.ready" ready: Address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into() => "Where it answers whether it is ready";
    }
}

/// The settings of `outlive node`.
#[derive(Debug)]
pub(crate) struct NodeConfig {
    pub(crate) config: Config,
    own: Own,
}

/// Without an address of its own it takes a free port on loopback, whomever it joins; the page and the help say so.
impl Default for NodeConfig {
    fn default() -> NodeConfig {
        let mut config = Config::default();
        if let Some(peer) = config.node_without_store().listen {
            let _ = config.set("peer", &peer.to_string());
        }
        NodeConfig { config, own: Own::default() }
    }
}

impl NodeConfig {
    pub(crate) fn ready(&self) -> Address {
        self.own.ready()
    }
}

impl Settings for NodeConfig {
    fn settings() -> Vec<Setting> {
        let theirs = Config::settings();
        let like = |(path, of): &(&'static str, &str)| {
            let mut setting = theirs.iter().find(|setting| setting.path == *of)?.clone();
            setting.path = path;
            setting.default = NodeConfig::default().text(path).or(setting.default);
            Some(setting)
        };
        SAME.iter().filter_map(like).chain(Own::settings()).collect()
    }

    fn put(&mut self, path: &str, text: &str) -> Option<Result<(), String>> {
        match same(path) {
            Some(of) => self.config.put(of, text),
            None => self.own.put(path, text),
        }
    }

    fn text(&self, path: &str) -> Option<String> {
        match same(path) {
            Some(of) => self.config.text(of),
            None => self.own.text(path),
        }
    }
}

impl Command for NodeConfig {
    const NAME: &'static str = "node";
    const ABOUT: &'static str = "A node of a cluster that keeps copies and runs no application";

    fn clashes(&self, given: &dyn Fn(&str) -> bool) -> Vec<String> {
        let (mut clashes, node) = (self.config.check(), self.config.node_without_store());
        if !given("node.join") && !node.engine.store {
            clashes.push("neither node.join nor node.store is set: a node without an application needs others to keep copies for".into());
        }
        if let Some(peer) = node.listen {
            if peer.is_any() && !given("node.advertise") {
                clashes.push(format!("node.peer is {peer}, and node.advertise does not say which address others reach"));
            }
            if !peer.is_loopback() && !node.danger_plain_peers {
                clashes.push(format!("node.peer is {peer}, peers are not encrypted yet, and node.danger_plain_peers is not set"));
            }
        }
        clashes
    }
}
