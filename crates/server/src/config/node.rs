//! `[node]`.

use crate::config::units::{self, Durability, Secret};
use crate::config::{Errors, Layers, Section, Setting};
use outlive_core::address::Address;
use outlive_core::config::{Limits, OnLost};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

pub(crate) const SECTION: Section = Section {
    name: "node",
    about: "A node of a cluster that keeps copies and runs no application",
    settings: &[
        Setting::one("node.name", "NAME", None, "Its name, unique in the cluster; otherwise the host's and random digits"),
        Setting::one("node.zone", "NAME", None, "Where it stands, so that copies are kept in different places"),
        Setting::one("node.cluster", "NAME", Some("default"), "The cluster's name"),
        Setting::one("node.peer", "ADDR", Some("127.0.0.1:0"), "Where other nodes connect"),
        Setting::one("node.advertise", "HOST:PORT", None, "The address that other nodes are told; otherwise that of peer"),
        Setting::many("node.join", "HOST:PORT", "Another node, by its peer address; otherwise those in the store"),
        Setting::one("node.store", "URL", Some("none"), "none or sqlite:PATH, as the applications have it"),
        Setting::one("node.secret", "HEX", None, "The cluster's secret: 64 hex digits; otherwise from the store"),
        Setting::one(
            "node.durability",
            "D",
            Some("backup(1)"),
            "owner, backup(N) or store: what commits on it wait for, and how many copies it wants",
        ),
        Setting::one("node.on_lost", "WHAT", Some("new"), "After a loss that it reports: new or serve"),
        Setting::one("node.idle_timeout", "TIME", Some("30m"), "For sessions that begin on it, as none do without an application"),
        Setting::one("node.lifetime", "TIME", Some("24h"), "The same"),
        Setting::one("node.ready", "ADDR", Some("127.0.0.1:0"), "Where it answers whether it is ready"),
        Setting::one("node.drain_timeout", "TIME", Some("20s"), "How long to wait after SIGTERM for its copies to be safe on other nodes"),
        Setting::switch("node.danger_plain_peers", "false", "Speak unencrypted over a network"),
    ],
};

/// The settings of `outlive node`.
#[derive(Debug)]
pub(crate) struct NodeConfig {
    pub(crate) name: Option<String>,
    pub(crate) zone: Option<String>,
    pub(crate) cluster: String,
    pub(crate) peer: Address,
    pub(crate) advertise: Option<Address>,
    pub(crate) join: Vec<Address>,
    pub(crate) store: Option<String>,
    pub(crate) secret: Option<Secret>,
    pub(crate) durability: Durability,
    pub(crate) on_lost: OnLost,
    pub(crate) limits: Limits,
    pub(crate) ready: Address,
    pub(crate) drain_timeout: Duration,
    pub(crate) danger_plain_peers: bool,
}

impl NodeConfig {
    pub(crate) fn new(mut layers: Layers) -> Result<NodeConfig, Errors> {
        let loopback = || Address::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let config = NodeConfig {
            name: layers.optional("node.name", units::name),
            zone: layers.optional("node.zone", units::some),
            cluster: layers.required("node.cluster", String::new(), units::some),
            peer: layers.required("node.peer", loopback(), units::listen),
            advertise: layers.optional("node.advertise", units::reachable),
            join: layers.many("node.join", units::reachable),
            store: layers.optional("node.store", units::some).filter(|store| store != "none"),
            secret: layers.optional("node.secret", units::secret),
            durability: layers.required("node.durability", Durability::Backup(1), units::durability),
            on_lost: layers.required("node.on_lost", OnLost::New, on_lost),
            limits: Limits {
                idle: layers.required("node.idle_timeout", Duration::from_secs(1800), units::duration),
                lifetime: layers.required("node.lifetime", Duration::from_secs(24 * 3600), units::duration),
            },
            ready: layers.required("node.ready", loopback(), units::listen),
            drain_timeout: layers.required("node.drain_timeout", Duration::from_secs(20), units::duration),
            danger_plain_peers: layers.switch("node.danger_plain_peers"),
        };
        if config.durability == Durability::Store && config.store.is_none() {
            layers.refuse("node.durability is store, and node.store is none");
        }
        if config.join.is_empty() && config.store.is_none() {
            layers.refuse("neither node.join nor node.store is set: a node without an application needs others to keep copies for");
        }
        if config.peer.is_any() && config.advertise.is_none() {
            layers.refuse(format!("node.peer is {}, and node.advertise does not say which address others reach", config.peer));
        }
        if !config.peer.is_loopback() && !config.danger_plain_peers {
            layers.refuse(format!("node.peer is {}, peers are not encrypted yet, and node.danger_plain_peers is not set", config.peer));
        }
        layers.finish(config)
    }
}

fn on_lost(text: &str) -> Result<OnLost, String> {
    match text {
        "new" => Ok(OnLost::New),
        "serve" => Ok(OnLost::Serve),
        _ => Err("must be new or serve".to_owned()),
    }
}
