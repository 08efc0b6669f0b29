//! Where values come from, and everything that is wrong with them.

use crate::config::{Kind, SECTIONS, Section, Setting};
use std::collections::BTreeMap;
use std::fmt;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Default,
    File,
    Env,
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Default => "default",
            Source::File => "file",
            Source::Env => "environment",
            Source::Flag => "flag",
        })
    }
}

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

/// The values of all settings of one command, and what was wrong so far.
#[derive(Debug)]
pub(crate) struct Layers {
    section: Section,
    values: BTreeMap<&'static str, (Vec<String>, Source)>,
    errors: Vec<String>,
}

impl Layers {
    /// The defaults.
    pub(crate) fn new(section: Section) -> Layers {
        let defaults = section.settings.iter().filter_map(|s| Some((s.key, (vec![s.default?.to_owned()], Source::Default))));
        Layers { section, values: defaults.collect(), errors: Vec::new() }
    }

    /// A file's text. Its other sections are checked for unknown keys as well.
    #[must_use]
    pub(crate) fn file(mut self, path: &str, text: &str) -> Layers {
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                self.errors.push(format!("{path} is not TOML: {}", error.to_string().trim_end().replace('\n', "\n    ")));
                return self;
            }
        };
        for (name, value) in table {
            let Some(section) = SECTIONS.into_iter().find(|section| section.name == name) else {
                let names = SECTIONS.map(|section| format!("[{}]", section.name)).join(", ");
                self.errors.push(format!("{path}: `{name}` is unknown; there are {names}"));
                continue;
            };
            match value {
                toml::Value::Table(values) => values.into_iter().for_each(|(key, value)| self.file_value(path, section, &key, value)),
                _ => self.errors.push(format!("{path}: `{name}` is a section: write [{name}]")),
            }
        }
        self
    }

    fn file_value(&mut self, path: &str, section: Section, name: &str, value: toml::Value) {
        let key = format!("{}.{name}", section.name);
        let Some(setting) = section.settings.iter().find(|setting| setting.key == key) else {
            self.errors.push(format!("{path}: `{key}` is unknown{}", nearest(section, name)));
            return;
        };
        let values = match (setting.kind, value) {
            (Kind::Many, toml::Value::Array(values)) => values.into_iter().map(scalar).collect(),
            (Kind::Many, _) => None,
            (_, value) => scalar(value).map(|value| vec![value]),
        };
        match values {
            Some(values) if section.name == self.section.name => {
                self.values.insert(setting.key, (values, Source::File));
            }
            Some(_) => {}
            None if setting.kind == Kind::Many => self.errors.push(format!("{path}: `{key}` is a list: write [\"{}\"]", setting.value)),
            None => self.errors.push(format!("{path}: `{key}` is one text, number or truth value")),
        }
    }

    /// The environment. Names that begin like those of a section and are not known are errors.
    #[must_use]
    pub(crate) fn env(mut self, vars: impl IntoIterator<Item = (String, String)>) -> Layers {
        for (name, value) in vars {
            let of_section = |section: &Section| name.starts_with(&format!("OUTLIVE_{}_", section.name.to_ascii_uppercase()));
            let Some(section) = SECTIONS.into_iter().find(of_section) else { continue };
            match section.settings.iter().find(|setting| setting.env() == name) {
                Some(setting) if section.name == self.section.name => {
                    let values = match setting.kind {
                        Kind::Many => value.split(',').map(str::trim).filter(|v| !v.is_empty()).map(str::to_owned).collect(),
                        Kind::One | Kind::Switch => vec![value],
                    };
                    self.values.insert(setting.key, (values, Source::Env));
                }
                Some(_) => {}
                None => self.errors.push(format!("the environment's {name} is unknown")),
            }
        }
        self
    }

    /// Flags that were given.
    #[must_use]
    pub(crate) fn flags(mut self, flags: impl IntoIterator<Item = (&'static str, Vec<String>)>) -> Layers {
        self.values.extend(flags.into_iter().map(|(key, values)| (key, (values, Source::Flag))));
        self
    }

    // ---- taking them out --------------------------------------------------------------------------------------------------------

    fn parsed<T>(&mut self, key: &str, values: &[String], source: Source, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let mut good = Vec::new();
        for value in values {
            match parse(value) {
                Ok(value) => good.push(value),
                Err(why) if is_secret(key) => self.errors.push(format!("{key} ({source}) {why}")),
                Err(why) => self.errors.push(format!("{key} is `{value}` ({source}), and {why}")),
            }
        }
        good
    }

    /// One value, if there is one.
    pub(crate) fn optional<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let (values, source) = self.values.get(key)?.clone();
        self.parsed(key, &values, source, parse).pop()
    }

    /// A value that has a default or has to be given. A stand-in is returned when there is none, since an error is noted.
    pub(crate) fn required<T>(&mut self, key: &'static str, stand_in: T, parse: impl Fn(&str) -> Result<T, String>) -> T {
        if !self.values.contains_key(key) {
            let flag = self.section.settings.iter().find(|s| s.key == key).map(Setting::flag).unwrap_or_default();
            self.errors.push(format!("{key} is not set, and is needed: give --{flag}, or set it in the environment or the file"));
        }
        self.optional(key, parse).unwrap_or(stand_in)
    }

    pub(crate) fn many<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let Some((values, source)) = self.values.get(key).cloned() else { return Vec::new() };
        self.parsed(key, &values, source, parse)
    }

    pub(crate) fn switch(&mut self, key: &'static str) -> bool {
        self.optional(key, |text| text.parse().map_err(|_| "must be true or false".to_owned())).unwrap_or_default()
    }

    /// Whether somebody asked for it, rather than it being the default.
    pub(crate) fn is_given(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|(_, source)| *source != Source::Default)
    }

    /// Notes that values do not go together.
    pub(crate) fn refuse(&mut self, why: impl Into<String>) {
        self.errors.push(why.into());
    }

    /// What was made of it, if nothing was wrong.
    pub(crate) fn finish<T>(self, config: T) -> Result<T, Errors> {
        if self.errors.is_empty() { Ok(config) } else { Err(Errors(self.errors)) }
    }

    /// The settings as a section of a file, each with its source if that is asked for.
    pub(crate) fn show(&self, with_source: bool) -> String {
        let mut text = format!("[{}]\n", self.section.name);
        for setting in self.section.settings {
            let name = setting.key.split_once('.').map_or(setting.key, |(_, name)| name);
            let Some((values, source)) = self.values.get(setting.key) else {
                text += &format!("# {name} is not set\n");
                continue;
            };
            if is_secret(setting.key) {
                text += &format!("# {name} is set ({source})\n");
                continue;
            }
            let quoted: Vec<String> = values.iter().map(|value| toml::Value::String(value.clone()).to_string()).collect();
            let value = match setting.kind {
                Kind::Many => format!("[{}]", quoted.join(", ")),
                Kind::One => quoted.concat(),
                Kind::Switch => values.concat(),
            };
            // A default stands as a comment, so that the file asks for no more than was asked for.
            let mark = if *source == Source::Default { "# " } else { "" };
            text += &format!("{mark}{name} = {value}");
            text += &if with_source { format!("  # {source}\n") } else { "\n".to_owned() };
        }
        text
    }
}

/// Never repeated, wherever it comes from.
fn is_secret(key: &str) -> bool {
    key.ends_with(".secret")
}

fn scalar(value: toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// A known name that begins like the unknown one.
fn nearest(section: Section, name: &str) -> String {
    let start = name.get(..3).unwrap_or(name);
    let known = section.settings.iter().filter_map(|s| s.key.split_once('.')).map(|(_, known)| known);
    let near: Vec<String> = known.filter(|known| known.starts_with(start)).map(|known| format!("`{known}`")).collect();
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(" or ")) }
}
