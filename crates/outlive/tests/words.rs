//! The library speaks the application's language: six words are enough for a shop, and the engine's own stay inside.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::path::Path;

/// Words of the protocol. An application has users and versions.
const INSIDE: [&str; 7] = ["principal", "stamp", "claim", "lineage", "facade", "dot", "shard"];

/// What the documentation shows of a file: its public lines and what is said of them.
fn public(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let tests = text.find("#[cfg(test)]").unwrap_or(text.len());
    let lines = text[..tests].lines().enumerate().map(|(n, line)| (n + 1, line.trim()));
    let mut doc: Vec<(usize, &str)> = Vec::new();
    lines.flat_map(move |(n, line)| {
        if line.starts_with("///") {
            doc.push((n, line));
            return Vec::new();
        }
        let is_public = line.starts_with("pub ") || line.starts_with("#[error(");
        let shown = if line.starts_with("//!") || is_public { vec![(n, line)] } else { Vec::new() };
        if line.starts_with("#[") && !line.starts_with("#[error(") {
            return shown;
        }
        let said = std::mem::take(&mut doc);
        if is_public { said.into_iter().chain(shown).collect() } else { shown }
    })
}

#[test]
fn the_words_of_the_engine_stay_out_of_the_library() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    // Files whose items an application can name; the others are not part of the documentation.
    for file in
        ["lib", "outlive", "builder", "config", "cookie", "error", "events", "key", "run", "session", "testing", "tower", "tower/layer"]
    {
        let text = std::fs::read_to_string(folder.join(file).with_extension("rs")).unwrap();
        for (n, line) in public(&text) {
            seen += 1;
            let words = line.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
            let inside: Vec<_> = words.filter(|word| INSIDE.contains(&word.trim_end_matches('s'))).collect();
            assert!(inside.is_empty(), "src/{file}.rs:{n}: {inside:?} in {line:?}");
        }
    }
    assert!(seen > 300, "{seen} lines");
}
