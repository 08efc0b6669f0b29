//! Tests that the documentation names.

use crate::repo::File;
use std::collections::BTreeSet;

/// Rows of the tables under a heading whose last cell names no test, or one that is not there.
#[must_use]
pub fn tests(page: &File, heading: &str, files: &[File]) -> Vec<String> {
    let there = there(files);
    let rows = rows(&page.text, heading);
    if rows.is_empty() {
        return vec![format!("{}: no table under `{heading}`", page.path)];
    }
    let violations = rows.into_iter().flat_map(|(line, cell)| {
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        let missing = names.iter().filter(|name| !there.contains(**name)).map(|name| format!("no test is called {name}"));
        let none = names.is_empty().then(|| "a row without a test".to_owned());
        missing.chain(none).map(|what| format!("{}:{line}: {what}", page.path)).collect::<Vec<_>>()
    });
    violations.collect()
}

/// The last cell of each row of the tables under a heading, with its line.
fn rows<'a>(text: &'a str, heading: &str) -> Vec<(usize, &'a str)> {
    let lines = text.lines().enumerate().skip_while(|(_, line)| *line != heading).skip(1);
    let rows = lines.take_while(|(_, line)| !line.starts_with("## ")).filter(|(_, line)| line.starts_with('|'));
    // The first two are the table's head.
    let cells = rows.skip(2).map(|(n, line)| (n + 1, line.trim_end_matches('|').rsplit('|').next().unwrap_or_default()));
    cells.collect()
}

/// The names of all tests, the simulator's scenarios among them: each is one by a macro.
fn there(files: &[File]) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for file in files.iter().filter(|f| f.path.ends_with(".rs")) {
        let mut is_test = false;
        let scenarios = file.text.split_once("\nscenarios! {\n").and_then(|(_, rest)| rest.split_once("\n}")).map(|(list, _)| list);
        names.extend(scenarios.into_iter().flat_map(str::lines).map(|line| line.trim().trim_end_matches(',')));
        for line in file.text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if is_test && let Some((_, name)) = line.split_once("fn ") {
                names.insert(name.split('(').next().unwrap_or_default());
                is_test = false;
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rows: &str) -> Vec<String> {
        let page =
            File { path: "A.md".into(), text: format!("# A\n\n## Promises\n\n| a | b |\n|---|---|\n{rows}\n## Next\n\n| x | y |\n") };
        let source = "#[test]\nfn it_is_so() {}\n#[tokio::test(flavor = \"x\")]\nasync fn and_so() {}\nfn no_test() {}\nscenarios! {\n    played,\n}\n";
        tests(&page, "## Promises", &[File { path: "a.rs".into(), text: source.into() }])
    }

    #[test]
    fn a_row_whose_tests_are_there_is_fine() {
        assert!(found("| one | `it_is_so`, `and_so` |\n| `two` | `and_so` |\n").is_empty());
    }

    #[test]
    fn a_row_without_a_test_and_one_whose_test_is_not_there_are_found() {
        assert_eq!(found("| one | soon |\n"), ["A.md:7: a row without a test"]);
        assert!(found("| one | `played` |\n").is_empty());
        assert_eq!(found("| one | `it_was_so` |\n"), ["A.md:7: no test is called it_was_so"]);
        assert_eq!(found("| one | `no_test` |\n"), ["A.md:7: no test is called no_test"]);
        assert_eq!(found(""), ["A.md: no table under `## Promises`"]);
    }
}
