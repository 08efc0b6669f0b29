//! `outlive config`: what the settings are, and whether they are good.

use crate::config::{Command as Of, DemoConfig, Errors, GatewayConfig, NodeConfig, SECTIONS, StatusConfig, flag};
use clap::{Arg, ArgAction, ArgMatches, Command};
use outlive::settings::{Kind, Setting};
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
        let look = match section.name {
            DemoConfig::NAME => look::<DemoConfig>,
            NodeConfig::NAME => look::<NodeConfig>,
            GatewayConfig::NAME => look::<GatewayConfig>,
            _ => look::<StatusConfig>,
        };
        errors.extend(look(action, given)?);
    }
    // A mistake outside of the sections is found once for each of them.
    let mut seen = std::collections::BTreeSet::new();
    errors.retain(|error| seen.insert(error.clone()));
    if errors.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(Errors(errors).into()) }
}

/// What is wrong with a command's settings, where that is asked for.
fn look<C: Of>(action: &str, given: &ArgMatches) -> anyhow::Result<Vec<String>> {
    let layers = super::layers::<C>(given)?;
    if action == "show" {
        print!("{}", layers.show(given.get_flag("source")));
        return Ok(Vec::new());
    }
    Ok(layers.finish().err().map_or_else(Vec::new, |Errors(found)| found))
}

/// `docs/config.md`.
fn docs() -> String {
    let mut page = "# Settings\n\n\
        Made by `outlive config docs`, from the tables that the programs read; a test fails when this page is another.\n\n\
        Durations are `500ms`, `90s`, `30m`, `24h` or `7d`, sizes `4096`, `64KiB` or `1MiB`, lists arrays in a file and `a, b` in the\n\
        environment. Unknown settings are errors, and all errors are reported at once. A setting that begins with `danger_` gives up some\n\
        of the safety.\n\n\
        ## In an application\n\n\
        Precedence: default < code (`Outlive::builder()`) < file < environment.\n\
        The file is TOML, read by `Builder::file(\"outlive.toml\")` with the feature `toml` of the library; a setting of two parts stands in\n\
        a section (`[session]`, `idle_timeout = \"30m\"`). Only `Builder::env()` and `Outlive::from_env()` read the\n\
        environment. Variables of the programs below are ignored; any other unknown `OUTLIVE_` variable is an error.\n\n\
        | setting | value | in the environment | default | |\n|---|---|---|---|---|\n"
        .to_owned();
    let default = |setting: &Setting| setting.default.iter().filter(|d| !d.is_empty()).map(|d| format!("`{d}`")).collect::<String>();
    for setting in outlive::Config::settings() {
        page += &format!("| `{}` | {} | `{}` | {} | {} |\n", setting.path, setting.unit, setting.env(), default(&setting), setting.what);
    }
    for section in SECTIONS {
        page += &format!("\n## `outlive {}`\n\n{}.\n\n", section.name, section.about);
        page += "Precedence: default < file (`--config` or `OUTLIVE_CONFIG`) < environment < flag.\n\n";
        page += "| in the file | flag | in the environment | default | |\n|---|---|---|---|---|\n";
        for setting in (section.settings)() {
            let value = if setting.kind == Kind::Switch { String::new() } else { format!(" {}", setting.unit) };
            let (name, flag, env, default) = (setting.name(), flag(&setting), setting.env(), default(&setting));
            page += &format!("| `{name}` | `--{flag}{value}` | `{env}` | {default} | {} |\n", setting.what);
        }
    }
    page
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
            assert!((section.settings)().iter().all(|setting| setting.env().starts_with(&start)));
            let theirs = outlive::Config::settings();
            assert!(theirs.iter().all(|setting| !setting.env().starts_with(&start)), "{start} could be either");
        }
    }
}
