//! Modules of a crate that use each other in a circle.

use crate::repo::File;
use std::collections::{BTreeMap, BTreeSet};

/// Circles among the files of one folder, by what each names as `crate::other` outside of its comments and unit tests. A file that opens
/// a folder of the same name stands for it.
#[must_use]
pub fn circles(folder: &str, files: &[File]) -> Vec<String> {
    let name = |f: &File| f.path.strip_prefix(folder)?.strip_suffix(".rs").filter(|n| !n.contains('/')).map(str::to_owned);
    let there: BTreeMap<String, &File> = files.iter().filter_map(|f| Some((name(f)?, f))).collect();
    let uses: BTreeMap<&str, BTreeSet<&str>> = there.iter().map(|(name, file)| (name.as_str(), named(&file.text, name, &there))).collect();
    let circles = uses.keys().filter(|from| reached(&uses, from).contains(**from));
    let members: Vec<&str> = circles.copied().filter(|m| *m != "lib").collect();
    if members.is_empty() { Vec::new() } else { vec![format!("{folder}: in a circle: {}", members.join(", "))] }
}

/// What a file names of its crate.
fn named<'a>(text: &str, own: &str, there: &'a BTreeMap<String, &File>) -> BTreeSet<&'a str> {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().filter(|l| !l.trim_start().starts_with("//"));
    let parts = lines.flat_map(|l| l.split("crate::").skip(1)).map(|rest| rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next());
    parts.filter_map(|m| there.get_key_value(m?)).map(|(m, _)| m.as_str()).filter(|m| *m != own).collect()
}

/// All that a module uses, and what that uses, and so on.
fn reached<'a>(uses: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let mut all = BTreeSet::new();
    let mut next: Vec<&str> = uses[from].iter().copied().collect();
    while let Some(module) = next.pop() {
        if all.insert(module) {
            next.extend(&uses[module]);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(a: &str) -> Vec<String> {
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        circles("src/", &[file("src/a.rs", a), file("src/b.rs", "use crate::c::X;\n"), file("src/c.rs", "use crate::a::Y;\n")])
    }

    #[test]
    fn a_circle_is_found_and_a_comment_or_a_test_makes_none() {
        assert_eq!(found("use crate::b::Z;\n"), ["src/: in a circle: a, b, c"]);
        assert!(found("//! crate::b\n").is_empty());
        assert!(found("fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use crate::b::Z;\n}\n").is_empty());
    }
}
