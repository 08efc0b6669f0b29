//! Tables of settings: each row says a setting's path, its type, its default, what it may be and what it is. From that row come the field
//! of the struct, what a file, the environment and a flag may say, help, and the page of settings. Nothing of it is said again elsewhere.
//!
//! It is here for the programs of this workspace; an application has [`Config`](crate::Config).
#![doc(hidden)]

#[cfg(feature = "toml")]
mod file;
mod spelling;

#[cfg(feature = "toml")]
pub use file::read_toml;
pub(crate) use spelling::words;
pub use spelling::{Secret, Size, Spelling, StoreUrl};

use core::fmt::Display;
use core::ops::RangeInclusive;

/// How many values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One.
    One,
    /// A list: an array in a file, commas in the environment, a flag that is repeated or followed by several.
    Many,
    /// `true` or `false`; a flag without a value.
    Switch,
}

/// One row of a table, for people.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Setting {
    /// `session.idle_timeout`: its name in a file, in a section where it has two parts, and in errors.
    pub path: &'static str,
    /// How many values.
    pub kind: Kind,
    /// What stands for a value in help.
    pub unit: &'static str,
    /// As it is written in a file.
    pub default: Option<String>,
    /// What it is.
    pub what: &'static str,
    /// It is never repeated.
    pub private: bool,
}

impl Setting {
    /// The row of a setting of this type.
    pub fn of<T: Spelling>(path: &'static str, default: Option<T>, what: &'static str) -> Setting {
        Setting { path, kind: T::KIND, unit: T::UNIT, default: default.map(|value| value.write()), what, private: T::PRIVATE }
    }

    /// The last part of the path: its name in its section.
    pub fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }

    /// `OUTLIVE_SESSION_IDLE_TIMEOUT`.
    pub fn env(&self) -> String {
        format!("OUTLIVE_{}", self.path.replace('.', "_").to_ascii_uppercase())
    }
}

/// What is wrong with a value, `must be ...`.
pub type Check<T> = fn(&T) -> Result<(), String>;

/// A struct that [`table!`](crate::__settings) made.
pub trait Settings: Default {
    /// Its rows, in the order of the table.
    fn settings() -> Vec<Setting>;
    /// Sets what is at `path`. What is wrong with the text, `must be ...`; `None` if nothing is there.
    fn put(&mut self, path: &str, text: &str) -> Option<Result<(), String>>;
    /// What is set at `path`, as it is written in a file.
    fn text(&self, path: &str) -> Option<String>;
}

/// Makes a struct of a table of settings, in which each field is an option: what is not set gives way to the default. For a row that has
/// one, a method of the field's name answers what is in force. Other such structs may be parts of it.
#[doc(hidden)]
#[macro_export]
macro_rules! __settings {
    (
        $(#[$about:meta])* $vis:vis struct $name:ident $(with $part:ident: $part_type:ty)? {
            $($path:literal $field:ident: $type:ty $(= $default:expr)? $(, if $check:expr)? => $what:expr;)*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq)]
        $vis struct $name {
            $(pub(crate) $field: Option<$type>,)*
            $(pub(crate) $part: $part_type,)?
        }

        #[allow(dead_code, reason = "a table need not use all of them")]
        impl $name {
            $($(
                pub(crate) fn $field(&self) -> $type {
                    self.$field.clone().unwrap_or_else(|| $default)
                }
            )?)*

            /// Takes over what `later` sets.
            pub(crate) fn merge(&mut self, later: $name) {
                $(if later.$field.is_some() { self.$field = later.$field; })*
                $(self.$part.merge(later.$part);)?
            }

            /// What is wrong with single values, which code may have set past [`put`]($crate::settings::Settings::put).
            pub(crate) fn wrong(&self) -> Vec<String> {
                let mut wrong = Vec::new();
                $(
                    let check: Option<$crate::settings::Check<$type>> = None $(.or(Some($check)))?;
                    if let (Some(value), Some(check)) = (&self.$field, check)
                        && let Err(why) = check(value)
                    {
                        wrong.push($crate::settings::refusal($path, &$crate::settings::Spelling::write(value), false, &why));
                    }
                )*
                $(wrong.extend(self.$part.wrong());)?
                wrong
            }
        }

        impl $crate::settings::Settings for $name {
            fn settings() -> Vec<$crate::settings::Setting> {
                #[allow(unused_mut, reason = "it may have no parts")]
                let mut rows = vec![$({
                    let default: Option<$type> = None $(.or(Some($default)))?;
                    $crate::settings::Setting::of::<$type>($path, default, $what)
                }),*];
                $(rows.extend(<$part_type as $crate::settings::Settings>::settings());)?
                rows
            }

            fn put(&mut self, path: &str, text: &str) -> Option<Result<(), String>> {
                $(if path == $path {
                    let check: Option<$crate::settings::Check<$type>> = None $(.or(Some($check)))?;
                    let value = $crate::settings::read_checked(text, check);
                    return Some(value.map(|value| self.$field = Some(value)));
                })*
                $(if let Some(done) = $crate::settings::Settings::put(&mut self.$part, path, text) {
                    return Some(done);
                })?
                None
            }

            fn text(&self, path: &str) -> Option<String> {
                $(if path == $path {
                    return self.$field.as_ref().map($crate::settings::Spelling::write);
                })*
                $(if let Some(text) = $crate::settings::Settings::text(&self.$part, path) {
                    return Some(text);
                })?
                None
            }
        }
    };
}
#[doc(inline)]
pub use __settings as table;

/// Reads a value and checks it.
#[doc(hidden)]
pub fn read_checked<T: Spelling>(text: &str, check: Option<Check<T>>) -> Result<T, String> {
    let value = T::read(text)?;
    check.map_or(Ok(()), |check| check(&value))?;
    Ok(value)
}

/// Sets one setting by its path.
///
/// # Errors
/// A sentence with the path, what was given, and what it may be. What is private is not repeated.
pub fn set<C: Settings>(config: &mut C, path: &str, text: &str) -> Result<(), String> {
    match config.put(path, text.trim()) {
        Some(done) => done.map_err(|why| refusal(path, text, C::settings().iter().any(|s| s.path == path && s.private), &why)),
        None => Err(unknown("setting", path, C::settings().iter().map(|setting| setting.path))),
    }
}

/// What a source says.
#[derive(Clone, Copy, Debug)]
pub enum Given<'a> {
    /// One text.
    One(&'a str),
    /// Several.
    List(&'a [String]),
}

/// Sets what a source says; several texts where it is a list.
///
/// # Errors
/// As for [`set`].
pub fn give<C: Settings>(config: &mut C, path: &str, given: Given<'_>) -> Result<(), String> {
    match (given, C::settings().iter().find(|setting| setting.path == path)) {
        (Given::One(text), _) => set(config, path, text),
        (Given::List(_), Some(setting)) if setting.kind != Kind::Many => Err(format!("{path} is a list, and takes one value")),
        (Given::List(texts), _) => set(config, path, &texts.join(",")),
    }
}

/// Why a value is not taken.
#[doc(hidden)]
pub fn refusal(path: &str, text: &str, private: bool, why: &str) -> String {
    if private { format!("{path} {why}") } else { format!("{path} is {text:?}, and {why}") }
}

/// That there is no such thing, and which one may be meant.
pub fn unknown<S: AsRef<str>>(what: &str, name: &str, known: impl Iterator<Item = S>) -> String {
    let near = known.map(|known| (distance(name, known.as_ref()), known)).min_by_key(|(distance, _)| *distance);
    match near.filter(|(distance, known)| *distance <= 1 + known.as_ref().len() / 4) {
        Some((_, near)) => format!("there is no {what} `{name}`; did you mean `{}`?", near.as_ref()),
        None => format!("there is no {what} `{name}`"),
    }
}

/// How many letters one has to change, to put in or to leave out.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut before = core::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let changed = before + usize::from(!x.eq_ignore_ascii_case(&y));
            before = row[j + 1];
            row[j + 1] = changed.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Checks that a value lies within its limits.
///
/// # Errors
/// What it must be.
pub fn within<T: Spelling + PartialOrd>(value: &T, limits: RangeInclusive<T>) -> Result<(), String> {
    match limits.contains(value) {
        true => Ok(()),
        false => Err(format!("must be {} to {}", limits.start().write(), limits.end().write())),
    }
}

/// Checks that a value is no less than this.
///
/// # Errors
/// What it must be.
pub fn at_least<T: Spelling + PartialOrd>(value: &T, least: T) -> Result<(), String> {
    if *value < least { Err(format!("must be at least {}", least.write())) } else { Ok(()) }
}

/// The error as the reason why a value is not taken.
///
/// # Errors
/// That.
pub fn or_why<T>(result: Result<T, impl Display>) -> Result<(), String> {
    result.map(drop).map_err(|error| error.to_string())
}

/// Checks that it is not empty.
///
/// # Errors
/// That it is.
pub fn not_empty(text: impl AsRef<str>) -> Result<(), String> {
    if text.as_ref().is_empty() { Err("must not be empty".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_named_and_a_far_one_is_not() {
        let known = ["session.idle_timeout", "session.lifetime", "node", "zone"];
        let said = |name: &str| unknown("setting", name, known.iter());
        assert_eq!(said("session.lifetme"), "there is no setting `session.lifetme`; did you mean `session.lifetime`?");
        assert_eq!(said("session.idletimeout"), "there is no setting `session.idletimeout`; did you mean `session.idle_timeout`?");
        assert_eq!(said("ndoe"), "there is no setting `ndoe`; did you mean `node`?");
        for far in ["shop", "", "ttl", &"n".repeat(1000)] {
            assert_eq!(said(far), format!("there is no setting `{far}`"));
        }
    }
}
