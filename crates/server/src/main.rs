//! The binary `outlive`.

mod cli;
mod clock;
mod config;
mod demo;
mod members;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
