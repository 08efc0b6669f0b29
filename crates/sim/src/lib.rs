//! The simulator: real engines on a simulated network, with faults, clients and an oracle. One seed decides everything.

mod cli;
mod client;
mod marks;
mod net;
mod options;
mod oracle;
mod rng;
mod rows;
mod world;

pub use cli::main;
