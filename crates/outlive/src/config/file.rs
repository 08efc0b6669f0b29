//! Settings from a TOML file, each error with its line.

use super::{Config, SETTINGS};
use crate::error::{Errors, StartError};
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

impl Config {
    /// Reads a TOML file. A file that is not there is an error, too.
    ///
    /// # Errors
    /// [`StartError::Config`], with all that is wrong, one a line: the file, the line in it, and what may stand there.
    /// [`Builder::file`](crate::Builder::file) says these together with what is wrong elsewhere.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Config, StartError> {
        read(path.as_ref()).map_err(StartError::Config)
    }
}

/// The settings of a file, or all that is wrong with it.
pub(crate) fn read(path: &Path) -> Result<Config, Errors> {
    let name = path.display();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&name.to_string(), &text),
        Err(error) => Err(Errors(vec![format!("the settings {name} cannot be read: {error}")])),
    }
}

fn parse(name: &str, text: &str) -> Result<Config, Errors> {
    let line = |at: usize| text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
    let mut reader = Reader { config: Config::default(), errors: Vec::new() };
    match DeTable::parse(text) {
        Ok(table) => reader.section("", table.get_ref()),
        // Its own text would repeat the line, and with it a secret.
        Err(error) => reader.errors.push((error.span().map_or(0, |span| span.start), format!("it is no TOML: {}", error.message()))),
    }
    reader.errors.sort();
    match reader.errors.is_empty() {
        true => Ok(reader.config),
        false => Err(Errors(reader.errors.into_iter().map(|(at, error)| format!("{name}:{}: {error}", line(at))).collect())),
    }
}

struct Reader {
    config: Config,
    /// With the place in the text.
    errors: Vec<(usize, String)>,
}

impl Reader {
    fn section(&mut self, section: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let (at, name) = (key.span().start, key.get_ref());
            let path = if section.is_empty() { name.to_string() } else { format!("{section}.{name}") };
            match value.get_ref() {
                DeValue::Table(inner) if is_section(&path) => self.section(&path, inner),
                DeValue::Table(_) => self.errors.push((at, format!("there is no section `{path}`"))),
                DeValue::Array(values) => {
                    let texts: Vec<String> = values.iter().map(scalar).collect();
                    self.set(at, &path, &texts.join(","));
                }
                _ => self.set(at, &path, &scalar(value)),
            }
        }
    }

    fn set(&mut self, at: usize, path: &str, text: &str) {
        if let Err(error) = self.config.set(path, text) {
            self.errors.push((at, error));
        }
    }
}

/// What the environment would say. What is no scalar is nothing that any setting takes.
fn scalar(value: &Spanned<DeValue<'_>>) -> String {
    match value.get_ref() {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or_else(|_| number.as_str().to_owned(), |n| n.to_string())
        }
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list in a list".to_owned(),
        DeValue::Table(_) => "a section in a list".to_owned(),
    }
}

fn is_section(path: &str) -> bool {
    SETTINGS.iter().any(|(setting, _)| setting.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    #[test]
    fn a_file_sets_all_that_the_environment_sets() {
        let text = "node = 'a'\nbackups = 0x2\ndanger_plain_peers = true\njoin = ['a:1', 'b:2']\n[session]\nidle_timeout = '90s'\n\
                    max_size = 65_536\n[cookie]\nname = 'SHOP'";
        let config = parse("shop.toml", text).unwrap();
        assert_eq!((config.node.as_deref(), config.backups, config.danger_plain_peers), (Some("a"), Some(2), Some(true)));
        assert_eq!(config.join.as_deref().map(<[_]>::len), Some(2));
        assert_eq!((config.idle_timeout, config.max_size), (Some(Duration::from_secs(90)), Some(65_536)));
        assert!(config.cookie.is_some());
        assert_eq!(parse("shop.toml", "session.lifetime = '7d'").unwrap().lifetime, Some(Duration::from_secs(7 * 86_400)));
    }

    #[test]
    fn every_error_of_a_file_is_said_at_once_with_its_line_and_no_secret() {
        let text = "ndoe = 'a'\nsecret = 'hunter2'\n\n[session]\nidle_timeout = 30\nlifetme = '1d'\n[shop]\nname = 'x'\n\n[cookie]\nname = ['a', 'b']";
        let error = parse("shop.toml", text).unwrap_err().to_string();
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines.len(), 5, "{error}");
        assert_eq!(lines[0], "shop.toml:1: there is no setting `ndoe`");
        assert_eq!(lines[1], "shop.toml:2: secret must be 64 hex digits");
        assert!(lines[2].starts_with("shop.toml:5: session.idle_timeout is \"30\", and must be a duration like `30m`"), "{error}");
        assert_eq!(lines[3], "shop.toml:6: there is no setting `session.lifetme`");
        assert_eq!(lines[4], "shop.toml:7: there is no section `shop`");
    }

    #[test]
    fn what_is_no_toml_is_said_with_its_line_and_without_the_text() {
        for text in ["node = 'a'\nsecret = 'hunter2", "node = 'a'\nsecret = hunter2\n", "node = 'a'\nnode = 'hunter2'"] {
            let error = parse("shop.toml", text).unwrap_err().to_string();
            assert!(error.starts_with("shop.toml:2: it is no TOML: ") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error_that_names_it() {
        let error = Config::from_file("no/such/shop.toml").unwrap_err().to_string();
        assert!(error.starts_with("the settings no/such/shop.toml cannot be read: "), "{error}");
    }
}
