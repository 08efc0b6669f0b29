//! `outlive config`: what the settings are, and whether they are good.

use crate::config::{DemoConfig, Errors, GatewayConfig, Layers, NodeConfig, SECTIONS, StatusConfig};
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::process::ExitCode;

pub(super) fn command() -> Command {
    let section = Arg::new("section").value_name("COMMAND").value_parser(SECTIONS.map(|section| section.name)).help("Only this command's");
    let check = Command::new("check").about("Refuse what cannot be, all of it at once").arg(super::file()).arg(section.clone());
    let source = Arg::new("source").long("source").action(ArgAction::SetTrue).help("Say where each value comes from");
    let show = Command::new("show").about("Print the settings in force, as a file").args([super::file(), section, source]);
    let docs = Command::new("docs").about("Print the page that lists every setting, in Markdown");
    Command::new("config").about("Look at settings").subcommand_required(true).subcommands([check, show, docs])
}

pub(super) fn run(given: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((action, given)) = given.subcommand() else { anyhow::bail!("no such command") };
    if action == "docs" {
        print!("{}", docs());
        return Ok(ExitCode::SUCCESS);
    }
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

/// `docs/config.md`.
fn docs() -> String {
    let mut page = "# Settings\n\n\
        Made by `outlive config docs`, from the tables that the programs read; a test fails when this page is another.\n\n\
        Durations are `500ms`, `90s`, `30m`, `24h` or `7d`, sizes `4096`, `64KiB` or `1MiB`. Unknown settings are errors, and all errors\n\
        are reported at once. A setting that begins with `danger_` gives up some of the safety.\n\n\
        ## In an application\n\n\
        Precedence: default < code (`Outlive::builder()`) < file < environment.\n\
        The file is TOML, read by `Builder::file(\"outlive.toml\")` with the feature `toml` of the library; a setting of two parts stands in\n\
        a section (`[session]`, `idle_timeout = \"30m\"`). Only `Builder::env()` and `Outlive::from_env()` read the\n\
        environment. Variables of the programs below are ignored; any other unknown `OUTLIVE_` variable is an error.\n\n\
        | setting | in the environment | |\n|---|---|---|\n"
        .to_owned();
    for (path, what) in outlive::Config::PATHS {
        page += &format!("| `{path}` | `OUTLIVE_{}` | {what} |\n", path.replace('.', "_").to_ascii_uppercase());
    }
    for section in SECTIONS {
        page += &format!("\n## `outlive {}`\n\n{}.\n\n", section.name, section.about);
        page += "Precedence: default < file (`--config` or `OUTLIVE_CONFIG`) < environment < flag.\n\n";
        page += "| in the file | flag | in the environment | default | |\n|---|---|---|---|---|\n";
        for setting in section.settings {
            let name = setting.key.split_once('.').map_or(setting.key, |(_, name)| name);
            let value = if setting.value.is_empty() { String::new() } else { format!(" {}", setting.value) };
            let default = setting.default.map_or_else(String::new, |default| format!("`{default}`"));
            page += &format!("| `{name}` | `--{}{value}` | `{}` | {default} | {} |\n", setting.flag(), setting.env(), setting.help);
        }
    }
    page
}

fn check(section: &str, layers: Layers) -> Result<(), Errors> {
    match section {
        "gateway" => GatewayConfig::new(layers).map(drop),
        "node" => NodeConfig::new(layers).map(drop),
        "status" => StatusConfig::new(layers).map(drop),
        _ => DemoConfig::new(layers).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_settings_is_what_the_programs_read() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.md");
        let stands = std::fs::read_to_string(page).unwrap();
        assert!(stands == docs(), "it is stale: cargo run -p outlive-server -- config docs > docs/config.md");
    }

    #[test]
    fn a_node_in_an_application_leaves_the_settings_of_the_programs_alone() {
        for section in SECTIONS {
            let start = format!("OUTLIVE_{}_", section.name.to_ascii_uppercase());
            assert!(outlive::Config::ENV_ELSEWHERE.contains(&start.as_str()), "{start}");
            assert!(section.settings.iter().all(|setting| setting.env().starts_with(&start)));
            let theirs = outlive::Config::PATHS.iter().map(|(path, _)| format!("OUTLIVE_{}", path.replace('.', "_").to_ascii_uppercase()));
            assert!(theirs.into_iter().all(|name| !name.starts_with(&start)), "{start} could be either");
        }
    }
}
