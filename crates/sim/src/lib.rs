//! The simulator: real engines on a simulated network, with faults, clients and an oracle. One seed decides everything.

#![allow(clippy::collapsible_if, clippy::collapsible_match, reason = "one condition a line reads better in checks")]

mod cli;
mod client;
mod clocks;
mod marks;
mod net;
mod options;
mod oracle;
mod rng;
mod rows;
mod scenario;
#[cfg(test)]
mod tests;
mod world;

pub use cli::main;
