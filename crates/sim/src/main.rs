//! `outlive-sim`: see `outlive-sim help`.

fn main() -> std::process::ExitCode {
    outlive_sim::main(std::env::args().skip(1).collect())
}
