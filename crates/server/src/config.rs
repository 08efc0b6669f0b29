//! Settings: one table for each command, from which its flags, its environment and its section of the file are made.
//!
//! The path is the same everywhere: `gateway.listen` is `listen` under `[gateway]` in the file, `OUTLIVE_GATEWAY_LISTEN`, and
//! `outlive gateway --listen`. Precedence: default < file < environment < flag. Unknown settings are errors, and
//! all errors are reported at once.

mod demo;
mod gateway;
mod layers;
mod node;
mod status;
mod units;

pub(crate) use demo::DemoConfig;
pub(crate) use gateway::{Cluster, GatewayConfig, Members};
pub(crate) use layers::{Errors, Layers};
pub(crate) use node::NodeConfig;
pub(crate) use status::StatusConfig;
pub(crate) use units::Durability;

/// How a setting is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    One,
    /// A list: an array in the file, commas in the environment, a flag that is repeated or followed by several.
    Many,
    /// `true` or `false`; a flag without a value.
    Switch,
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// `section.name`.
    pub(crate) key: &'static str,
    pub(crate) kind: Kind,
    /// What stands for the value in the help.
    pub(crate) value: &'static str,
    pub(crate) default: Option<&'static str>,
    pub(crate) help: &'static str,
}

impl Setting {
    pub(crate) const fn one(key: &'static str, value: &'static str, default: Option<&'static str>, help: &'static str) -> Setting {
        Setting { key, kind: Kind::One, value, default, help }
    }

    pub(crate) const fn many(key: &'static str, value: &'static str, help: &'static str) -> Setting {
        Setting { key, kind: Kind::Many, value, default: None, help }
    }

    pub(crate) const fn switch(key: &'static str, default: &'static str, help: &'static str) -> Setting {
        Setting { key, kind: Kind::Switch, value: "", default: Some(default), help }
    }

    /// `listen` of `gateway.listen`, as a flag is written.
    pub(crate) fn flag(&self) -> String {
        self.key.split_once('.').map_or(self.key, |(_, name)| name).replace('_', "-")
    }

    /// `OUTLIVE_GATEWAY_LISTEN`.
    pub(crate) fn env(&self) -> String {
        format!("OUTLIVE_{}", self.key.replace('.', "_").to_ascii_uppercase())
    }
}

/// A command with settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) settings: &'static [Setting],
}

pub(crate) const SECTIONS: [Section; 4] = [demo::SECTION, node::SECTION, gateway::SECTION, status::SECTION];

pub(crate) fn section(name: &str) -> Option<Section> {
    SECTIONS.into_iter().find(|section| section.name == name)
}

#[cfg(test)]
mod tests;
