//! `[status]`.

use crate::config::units::{self, Secret};
use crate::config::{Errors, Layers, Section, Setting};
use outlive_core::address::Address;

pub(crate) const SECTION: Section = Section {
    name: "status",
    about: "How a cluster is, asked of each of its nodes; ends with 0 if it is well, 1 if it is not, 2 if nobody tells",
    settings: &[
        Setting::many("status.join", "HOST:PORT", "Any node of the cluster, by its peer address; otherwise those in the store"),
        Setting::one("status.store", "URL", None, "The cluster's store, where its nodes and its secret are found: sqlite:PATH"),
        Setting::one("status.secret", "HEX", None, "The cluster's secret: 64 hex digits; otherwise the store's"),
        Setting::switch("status.json", "false", "Print JSON"),
        Setting::switch("status.danger_plain_peers", "false", "Speak plain TCP with nodes on other than loopback addresses"),
    ],
};

/// The settings of `outlive status`.
#[derive(Debug)]
pub(crate) struct StatusConfig {
    pub(crate) join: Vec<Address>,
    pub(crate) store: Option<String>,
    pub(crate) secret: Option<Secret>,
    pub(crate) json: bool,
    pub(crate) danger_plain_peers: bool,
}

impl StatusConfig {
    pub(crate) fn new(mut layers: Layers) -> Result<StatusConfig, Errors> {
        let config = StatusConfig {
            join: layers.many("status.join", units::reachable),
            store: layers.optional("status.store", units::some).filter(|store| store != "none"),
            secret: layers.optional("status.secret", units::secret),
            json: layers.switch("status.json"),
            danger_plain_peers: layers.switch("status.danger_plain_peers"),
        };
        if config.join.is_empty() && config.store.is_none() {
            layers.refuse(
                "neither status.join nor status.store is set: name a node (--join 10.0.0.1:7400) or the store (--store sqlite:s.db)",
            );
        }
        layers.finish(config)
    }
}
