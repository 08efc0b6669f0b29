//! Where values come from, and everything that is wrong with them.

use crate::config::{Command, SECTIONS, Section};
use outlive::settings::{Given, Kind, Setting, give, read_toml, unknown};
use std::collections::BTreeMap;
use std::fmt;

/// Everything that is wrong, one sentence each.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Errors(pub(crate) Vec<String>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.0.len() == 1 { "error" } else { "errors" };
        write!(f, "{} {noun} in the settings", self.0.len())?;
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for Errors {}

/// The settings of one command, where each comes from, and what was wrong so far.
#[derive(Debug, Default)]
pub(crate) struct Layers<C> {
    pub(super) config: C,
    sources: BTreeMap<&'static str, &'static str>,
    errors: Vec<String>,
}

impl<C: Command> Layers<C> {
    /// A file's text. Its other sections are checked for unknown names as well.
    #[must_use]
    pub(crate) fn file(mut self, path: &str, text: &str) -> Layers<C> {
        let sections = SECTIONS.iter().map(|section| section.name).collect();
        self.errors.extend(read_toml(path, text, &sections, &mut |path, given| {
            let section = path.split_once('.').and_then(|(name, _)| SECTIONS.iter().find(|section| section.name == name));
            match section {
                Some(section) if section.name != C::NAME => find(section, path).map(drop),
                Some(section) => take(&mut self.config, &mut self.sources, find(section, path)?, given, "file"),
                None => Err(unknown("setting outside of a section", path, all().map(|setting| setting.path))),
            }
        }));
        self
    }

    /// The environment. Names that begin like those of a section and are not known are errors.
    #[must_use]
    pub(crate) fn env(mut self, vars: impl IntoIterator<Item = (String, String)>) -> Layers<C> {
        for (name, value) in vars {
            let of_section = |section: &&Section| name.starts_with(&format!("OUTLIVE_{}_", section.name.to_ascii_uppercase()));
            let Some(section) = SECTIONS.iter().find(of_section) else { continue };
            let done = match (section.settings)().into_iter().find(|setting| setting.env() == name) {
                Some(_) if section.name != C::NAME => Ok(()),
                Some(setting) => take(&mut self.config, &mut self.sources, setting, Given::One(&value), "environment")
                    .map_err(|error| format!("{name}: {error}")),
                None => Err(unknown("setting", &name, all().map(|setting| setting.env()))),
            };
            self.errors.extend(done.err());
        }
        self
    }

    /// Flags that were given.
    #[must_use]
    pub(crate) fn flags(mut self, flags: impl IntoIterator<Item = (Setting, Vec<String>)>) -> Layers<C> {
        for (setting, values) in flags {
            let (flag, many) = (flag(&setting), setting.kind == Kind::Many);
            let given = if many { Given::List(&values) } else { Given::One(values.last().map_or("", String::as_str)) };
            let done = take(&mut self.config, &mut self.sources, setting, given, "flag");
            self.errors.extend(done.err().map(|error| format!("--{flag}: {error}")));
        }
        self
    }

    /// What was made of it, if nothing is wrong.
    pub(crate) fn finish(mut self) -> Result<C, Errors> {
        self.errors.extend(self.config.clashes(&|path| self.sources.contains_key(path)));
        if self.errors.is_empty() { Ok(self.config) } else { Err(Errors(self.errors)) }
    }

    /// The settings as a section of a file, each with its source if that is asked for.
    pub(crate) fn show(&self, with_source: bool) -> String {
        let mut text = format!("[{}]\n", C::NAME);
        for setting in C::settings() {
            let (name, source) = (setting.name(), self.sources.get(setting.path));
            let Some(value) = self.config.text(setting.path).or(setting.default) else {
                text += &format!("# {name} is not set\n");
                continue;
            };
            if setting.private {
                text += &format!("# {name} is set ({})\n", source.unwrap_or(&"default"));
                continue;
            }
            let quoted = |value: &str| toml::Value::String(value.to_owned()).to_string();
            let value = match setting.kind {
                Kind::Many => format!("[{}]", value.split(',').map(quoted).collect::<Vec<_>>().join(", ")),
                Kind::One => quoted(&value),
                Kind::Switch => value,
            };
            // A default stands as a comment, so that the file asks for no more than was asked for.
            let mark = if source.is_none() { "# " } else { "" };
            text += &format!("{mark}{name} = {value}");
            text += &if with_source { format!("  # {}\n", source.unwrap_or(&"default")) } else { "\n".to_owned() };
        }
        text
    }
}

/// A flag as it is written, without its dashes.
pub(crate) fn flag(setting: &Setting) -> String {
    setting.name().replace('_', "-")
}

fn all() -> impl Iterator<Item = Setting> {
    SECTIONS.iter().flat_map(|section| (section.settings)())
}

fn find(section: &Section, path: &str) -> Result<Setting, String> {
    let settings = (section.settings)();
    let found = settings.iter().find(|setting| setting.path == path).cloned();
    found.ok_or_else(|| unknown("setting", path, settings.iter().map(|setting| setting.path)))
}

fn take<C: Command>(
    config: &mut C,
    sources: &mut BTreeMap<&'static str, &'static str>,
    setting: Setting,
    given: Given<'_>,
    source: &'static str,
) -> Result<(), String> {
    sources.insert(setting.path, source);
    give(config, setting.path, given)
}
