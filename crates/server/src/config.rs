//! Settings: one table for each command, from which its flags, its environment, its section of the file and its page are made.
//!
//! The path is the same everywhere: `gateway.listen` is `listen` under `[gateway]` in the file, `OUTLIVE_GATEWAY_LISTEN`, and
//! `outlive gateway --listen`. Precedence: default < file < environment < flag. Unknown settings are errors, and
//! all errors are reported at once.

mod demo;
mod gateway;
mod layers;
mod node;
mod status;

pub(crate) use demo::DemoConfig;
pub(crate) use gateway::GatewayConfig;
pub(crate) use layers::{Errors, Layers, flag};
pub(crate) use node::NodeConfig;
pub(crate) use status::StatusConfig;

use outlive::settings::{Setting, Settings};

/// The settings of a command.
pub(crate) trait Command: Settings {
    /// Its name, and that of its section.
    const NAME: &'static str;
    const ABOUT: &'static str;

    /// What in it does not go together; `given` tells what somebody asked for, though it may be wrong.
    fn clashes(&self, given: &dyn Fn(&str) -> bool) -> Vec<String>;
}

/// A command with settings.
#[derive(Clone, Copy)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) settings: fn() -> Vec<Setting>,
}

impl Section {
    const fn of<C: Command>() -> Section {
        Section { name: C::NAME, about: C::ABOUT, settings: C::settings }
    }
}

pub(crate) const SECTIONS: [Section; 4] =
    [Section::of::<DemoConfig>(), Section::of::<NodeConfig>(), Section::of::<GatewayConfig>(), Section::of::<StatusConfig>()];

#[cfg(test)]
mod tests;
