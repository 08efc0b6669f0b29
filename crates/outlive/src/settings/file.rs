//! Settings in TOML, each error with its line.

use super::Given;
use std::collections::BTreeSet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Gives every value of a file to `set`, with its path: as one text what is one value, as several what is a list. Paths of two parts stand
/// in one of the `sections`. Returns all that is wrong, each with the file's name and the line.
pub fn read_toml(
    name: &str,
    text: &str,
    sections: &BTreeSet<&str>,
    set: &mut dyn FnMut(&str, Given<'_>) -> Result<(), String>,
) -> Vec<String> {
    let line = |at: usize| text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
    let mut reader = Reader { sections, set, errors: Vec::new() };
    match DeTable::parse(text) {
        Ok(table) => reader.section("", table.get_ref()),
        // Its own text would repeat the line, and with it a secret.
        Err(error) => reader.errors.push((error.span().map_or(0, |span| span.start), format!("it is no TOML: {}", error.message()))),
    }
    reader.errors.sort();
    reader.errors.into_iter().map(|(at, error)| format!("{name}:{}: {error}", line(at))).collect()
}

struct Reader<'a> {
    sections: &'a BTreeSet<&'a str>,
    set: &'a mut dyn FnMut(&str, Given<'_>) -> Result<(), String>,
    /// With the place in the text.
    errors: Vec<(usize, String)>,
}

impl Reader<'_> {
    fn section(&mut self, section: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let (at, name) = (key.span().start, key.get_ref());
            let path = if section.is_empty() { name.to_string() } else { format!("{section}.{name}") };
            let done = match value.get_ref() {
                DeValue::Table(inner) if self.sections.contains(path.as_str()) => {
                    self.section(&path, inner);
                    continue;
                }
                DeValue::Table(_) => Err(super::unknown("section", &path, self.sections.iter())),
                _ if self.sections.contains(path.as_str()) => Err(format!("`{path}` is a section: write [{path}]")),
                DeValue::Array(values) => (self.set)(&path, Given::List(&values.iter().map(scalar).collect::<Vec<_>>())),
                _ => (self.set)(&path, Given::One(&scalar(value))),
            };
            self.errors.extend(done.err().map(|error| (at, error)));
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
