//! `outlive config`: what the settings are, and whether they are good.

use crate::config::{DemoConfig, Errors, GatewayConfig, Layers, NodeConfig, SECTIONS};
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::process::ExitCode;

pub(super) fn command() -> Command {
    let section = Arg::new("section").value_name("COMMAND").value_parser(SECTIONS.map(|section| section.name)).help("Only this command's");
    let check = Command::new("check").about("Refuse what cannot be, all of it at once").arg(super::file()).arg(section.clone());
    let source = Arg::new("source").long("source").action(ArgAction::SetTrue).help("Say where each value comes from");
    let show = Command::new("show").about("Print the settings in force, as a file").args([super::file(), section, source]);
    Command::new("config").about("Look at settings").subcommand_required(true).subcommand(check).subcommand(show)
}

pub(super) fn run(given: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((action, given)) = given.subcommand() else { anyhow::bail!("no such command") };
    let wanted = given.get_one::<String>("section");
    let mut errors = Vec::new();
    for section in SECTIONS.iter().filter(|section| wanted.is_none_or(|wanted| wanted == section.name)) {
        let layers = super::layers(section.name, given)?;
        if action == "show" {
            print!("{}", layers.show(given.get_flag("source")));
        } else if let Err(Errors(found)) = check(section.name, layers) {
            errors.extend(found);
        }
    }
    // A mistake outside of the sections is found once for each of them.
    let mut seen = std::collections::BTreeSet::new();
    errors.retain(|error| seen.insert(error.clone()));
    if errors.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(Errors(errors).into()) }
}

fn check(section: &str, layers: Layers) -> Result<(), Errors> {
    match section {
        "gateway" => GatewayConfig::new(layers).map(drop),
        "node" => NodeConfig::new(layers).map(drop),
        _ => DemoConfig::new(layers).map(drop),
    }
}
