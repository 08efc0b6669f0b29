//! `[status]`.

use crate::config::Command;
use outlive::settings::{Secret, StoreUrl, table};
use outlive_core::address::Address;

table! {
    /// The settings of `outlive status`.
    pub(crate) struct StatusConfig {
        "status.join" join: Vec<Address> = Vec::new(), if |nodes| super::node::reachable(nodes)
            => "Any node of the cluster, by its peer address; otherwise those in the store";
        "status.store" store: StoreUrl => "The cluster's store, where its nodes and its secret are found: sqlite:PATH";
        "status.secret" secret: Secret => "The cluster's secret: 64 hex digits; otherwise the store's";
        "status.json" json: bool = false => "Print JSON";
        "status.danger_plain_peers" danger_plain_peers: bool = false => "Speak plain TCP with nodes on other than loopback addresses";
    }
}

impl Command for StatusConfig {
    const NAME: &'static str = "status";
    const ABOUT: &'static str =
        "How a cluster is, asked of each of its nodes; ends with 0 if it is well, 1 if it is not, 2 if nobody tells";

    fn clashes(&self, given: &dyn Fn(&str) -> bool) -> Vec<String> {
        match given("status.join") || self.store.as_ref().is_some_and(|store| store.some().is_some()) {
            true => Vec::new(),
            false => vec![
                "neither status.join nor status.store is set: name a node (--join 10.0.0.1:7400) or the store (--store sqlite:s.db)".into(),
            ],
        }
    }
}
