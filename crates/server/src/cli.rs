//! The command line. Flags are made of the tables of settings, so that they cannot differ from the file and the environment.

mod config;
mod gateway;
mod node;
mod status;

use crate::config::{self as settings, DemoConfig, GatewayConfig, Layers, NodeConfig, SECTIONS, Section, StatusConfig};
use crate::demo;
use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command};
use outlive::settings::{Kind, Setting};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Parses, runs, and says what went wrong in one place.
pub(crate) fn main() -> ExitCode {
    let matches = command().get_matches();
    log(matches.subcommand_name());
    match dispatch(&matches) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("outlive: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The log goes to standard error, in colours if that is a terminal. Around the demo it would be in the way.
fn log(command: Option<&str>) {
    let level =
        if command.is_some_and(|name| name.starts_with("demo") || name == "status") { tracing::Level::WARN } else { tracing::Level::INFO };
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(colours).with_max_level(level).init();
}

fn dispatch(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    match matches.subcommand() {
        Some(("demo", given)) => run(demo::run(layers::<DemoConfig>(given)?.finish()?)),
        Some(("gateway", given)) => run(gateway::run(layers::<GatewayConfig>(given)?.finish()?)),
        Some(("node", given)) => run(node::run(layers::<NodeConfig>(given)?.finish()?)),
        Some(("status", given)) => run(status::run(layers::<StatusConfig>(given)?.finish()?)),
        Some(("config", given)) => config::run(given),
        Some(("demo-node", given)) => run(demo::run_node(options(given)?)),
        _ => anyhow::bail!("no such command"),
    }
}

/// Runs a command to its end.
fn run(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    let result = runtime.block_on(command);
    // A blocked read of standard input does not end by itself.
    runtime.shutdown_background();
    result
}

/// Resolves at SIGTERM, and at the interrupt that a terminal sends, once they come after this call: made before it is said that the process
/// is ready, none comes too early.
pub(crate) fn interrupted() -> impl Future<Output = ()> {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async {
        let (Ok(mut term), Ok(mut int)) = signals else {
            // Without handlers the signals end the process themselves.
            return std::future::pending().await;
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    }
}

// ---- flags ----------------------------------------------------------------------------------------------------------------------

fn command() -> Command {
    let sections = SECTIONS.map(|section| flags(Command::new(section.name).about(section.about).arg(file()), &section));
    let name = |name: &'static str| Arg::new(name).long(name).required(true);
    let demo_node = Command::new("demo-node").hide(true).about("One application process of the demo").args([
        name("http"),
        name("peer"),
        name("name"),
        name("cluster"),
        name("store"),
        name("durability"),
        Arg::new("join").long("join").action(ArgAction::Append),
    ]);
    Command::new("outlive")
        .version(env!("CARGO_PKG_VERSION"))
        .about("HTTP sessions that outlive the server they live on")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(sections)
        .subcommand(config::command())
        .subcommand(demo_node)
}

fn flags(command: Command, section: &Section) -> Command {
    command.args((section.settings)().iter().map(flag))
}

fn flag(setting: &Setting) -> Arg {
    let default = setting.default.iter().filter(|_| setting.kind == Kind::One).map(|d| format!(" [default: {d}]")).collect::<String>();
    let help = format!("{}{default} [{}]", setting.what, setting.env());
    let arg = Arg::new(setting.path).long(settings::flag(setting)).help(help).value_name(setting.unit);
    match setting.kind {
        Kind::One => arg,
        Kind::Many => arg.action(ArgAction::Append).num_args(1..),
        // `--retry` and `--retry false`.
        Kind::Switch => arg.num_args(0..=1).default_missing_value("true").hide_possible_values(true),
    }
}

fn file() -> Arg {
    Arg::new("config").long("config").value_name("FILE").help("Settings in TOML [OUTLIVE_CONFIG]")
}

/// All that is known of a command's settings.
fn layers<C: settings::Command>(given: &ArgMatches) -> anyhow::Result<Layers<C>> {
    let path = given.get_one::<String>("config").cloned().or_else(|| std::env::var("OUTLIVE_CONFIG").ok());
    let mut layers = Layers::default();
    if let Some(path) = path {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        layers = layers.file(&path, &text);
    }
    let values = |setting: Setting| {
        let values = given.try_get_many::<String>(setting.path).ok()??.cloned().collect();
        Some((setting, values))
    };
    Ok(layers.env(std::env::vars()).flags(C::settings().into_iter().filter_map(values)))
}

fn options(given: &ArgMatches) -> anyhow::Result<demo::Options> {
    let text = |name: &str| given.get_one::<String>(name).cloned().unwrap_or_default();
    Ok(demo::Options {
        http: text("http").parse().context("--http")?,
        peer: text("peer").parse().context("--peer")?,
        name: text("name"),
        cluster: text("cluster"),
        store: text("store"),
        durability: text("durability"),
        join: given.get_many::<String>("join").into_iter().flatten().cloned().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_fit_together() {
        command().debug_assert();
    }

    #[test]
    fn flags_reach_the_settings() {
        let line = ["outlive", "gateway", "--listen", "localhost:1", "--backend", "a=app1:2", "b=127.0.0.1:3", "--retry", "false"];
        let matches = command().try_get_matches_from(line).unwrap();
        let config = layers::<GatewayConfig>(matches.subcommand().unwrap().1).unwrap().finish().unwrap();
        assert!(!config.is_learnt() && config.backend.as_ref().map(Vec::len) == Some(2) && !config.retry());
    }
}
