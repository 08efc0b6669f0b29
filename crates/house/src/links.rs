//! Where the links of the documentation lead.

use crate::repo::File;
use std::collections::BTreeSet;

/// Relative links in Markdown whose file, folder or heading is not there.
#[must_use]
pub fn links(files: &[File]) -> Vec<String> {
    let pages = files.iter().filter(|f| f.path.ends_with(".md"));
    pages
        .flat_map(|page| {
            let prose = prose(&page.text);
            let relative = targets(&prose).into_iter().filter(|t| !t.contains("://") && !t.starts_with("mailto:"));
            relative.filter_map(|t| broken(page, &t, files)).collect::<Vec<_>>()
        })
        .collect()
}

fn broken(page: &File, target: &str, files: &[File]) -> Option<String> {
    let (path, heading) = target.split_once('#').unwrap_or((target, ""));
    let full = if path.is_empty() { page.path.clone() } else { join(&page.path, path) };
    let folder = format!("{}/", full.trim_end_matches('/'));
    let found = files.iter().find(|f| f.path == full);
    if found.is_none() && !files.iter().any(|f| f.path.starts_with(&folder)) && full != "." {
        return Some(format!("{}: {target}: no such file", page.path));
    }
    let there = found.is_none_or(|f| heading.is_empty() || !f.path.ends_with(".md") || headings(&f.text).contains(heading));
    (!there).then(|| format!("{}: {target}: no such heading", page.path))
}

/// The path that a link in a page means, without its dots.
fn join(page: &str, path: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|p| *p != "..") => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    if parts.is_empty() { ".".into() } else { parts.join("/") }
}

/// A page without its code, where brackets mean something else.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut out = String::new();
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        if fenced || fence || line.starts_with("    ") {
            continue;
        }
        out.extend(line.split('`').step_by(2));
        out.push('\n');
    }
    out
}

/// What `](…)`, `[…]: …`, `src="…"` and `href="…"` point at.
fn targets(prose: &str) -> Vec<String> {
    let inline = ["](", "src=\"", "href=\""].iter().flat_map(|open| prose.split(open).skip(1));
    let inline = inline.filter_map(|rest| rest.split([')', ' ', '"', '\n']).next());
    let defined = prose.lines().filter(|l| l.starts_with('[')).filter_map(|l| l.split_once("]: ")).map(|(_, t)| t.trim());
    inline.chain(defined).filter(|t| !t.is_empty()).map(str::to_owned).collect()
}

/// The anchors that a forge makes of a page's headings: lower case, punctuation dropped, blanks as dashes.
fn headings(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter(|l| l.starts_with('#')).map(|l| l.trim_start_matches('#').trim().to_lowercase());
    let kept = titles.map(|t| t.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-"));
    let named = text.split("id=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned);
    kept.chain(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Vec<String> {
        let files = [("docs/a.md", text), ("docs/b.md", "# What it is: not\n<a id=\"x\"></a>\n"), ("LICENSE", ""), ("crates/x/lib.rs", "")];
        links(&files.map(|(path, text)| File { path: path.into(), text: text.into() }))
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        for bad in [
            "[b](c.md)",
            "[l](LICENSE)",
            "[x]: ../crates/y",
            "![p](p.gif)",
            "<img src=\"p.svg\">",
            "[h](b.md#nothing)",
            "[h](#nothing)",
            "[o](../../LICENSE)",
        ] {
            assert_eq!(check(bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn links_that_lead_somewhere_pass() {
        for good in [
            "[b](b.md)",
            "[l](../LICENSE)",
            "[x](../crates/)",
            "[r](..)",
            "[h](b.md#what-it-is-not)",
            "[i](b.md#x)",
            "[w](https://example.com/z)",
        ] {
            assert_eq!(check(good), [""; 0], "{good}");
        }
    }

    #[test]
    fn code_is_not_prose() {
        assert!(check("`a[0](c)`\n\n    a[0](c)\n\n```rust\na[0](c)\n```\n").is_empty());
    }
}
