//! Words, tags and places that committed text does not contain.
//!
//! The lists are written in halves, so that this file passes its own checks.

use crate::repo::File;

/// Words with a better one in the glossary: session id, owner, backup, rotate.
const BANNED: [&str; 4] = [concat!("s", "id"), concat!("mas", "ter"), concat!("sla", "ve"), concat!("regene", "rate")];

/// Where a banned word is the name of something foreign: (path, word, why).
const FOREIGN: [(&str, &str, &str); 0] = [];

/// Tags of work left for later.
const TAGS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Folders of a machine that a file was written on.
const MACHINE: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/tmp/bash", "_jobs")];

/// First labels of the hosts that package managers talk to.
const HOSTS: [&str; 6] = ["static", "index", "registry", "proxy", "deb", "files"];

/// Lines with a banned word. A word ends where letters and digits end, so `_` separates words too.
#[must_use]
pub fn banned_words(files: &[File]) -> Vec<String> {
    lines(files, |file, line| {
        let lower = line.to_lowercase();
        let hit = lower.split(|c: char| !c.is_alphanumeric()).find(|w| BANNED.contains(w))?;
        let foreign = FOREIGN.iter().any(|(path, word, _)| *path == file.path && *word == hit);
        (!foreign).then(|| format!("the word `{hit}`; say session id, owner, backup or rotate"))
    })
}

/// Comments that put work off.
#[must_use]
pub fn tags(files: &[File]) -> Vec<String> {
    lines(files, |_, line| {
        let at = ["//", "#", "/*", "* ", "<!--", "-- "].iter().filter_map(|mark| line.find(mark)).min()?;
        let hit = line.get(at..)?.split(|c: char| !c.is_alphanumeric()).find(|w| TAGS.contains(w))?;
        Some(format!("a comment tagged {hit}; do it, or leave it out and say so in the docs"))
    })
}

/// Text that names a machine's folders, or the host of a package registry.
#[must_use]
pub fn places(files: &[File]) -> Vec<String> {
    lines(files, |_, line| {
        let folder = MACHINE.iter().find(|place| line.contains(**place)).map(|place| format!("the path {place}, which is one machine's"));
        folder.or_else(|| {
            let host = line.split("://").skip(1).find(|rest| registry(rest))?;
            Some(format!("the registry host {}", host.split(['/', ' ', '"']).next()?))
        })
    })
}

fn registry(address: &str) -> bool {
    let mut labels = address.split('.');
    let first = labels.next().unwrap_or_default();
    let numbered = first.strip_prefix("repo").is_some_and(|n| n.chars().all(|c| c.is_ascii_digit()));
    labels.next().is_some() && (HOSTS.contains(&first) || numbered)
}

/// Runs a check over each line of each file that people write; lock files are written by tools.
fn lines(files: &[File], check: impl Fn(&File, &str) -> Option<String>) -> Vec<String> {
    let written = files.iter().filter(|f| !f.path.ends_with(".lock") && !f.path.ends_with("package-lock.json"));
    let numbered = written.flat_map(|f| f.text.lines().enumerate().map(move |(n, line)| (f, n + 1, line)));
    numbered.filter_map(|(f, n, line)| check(f, line).map(|what| format!("{}:{n}: {what}", f.path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> [File; 1] {
        [File { path: "a.rs".into(), text: text.into() }]
    }

    #[test]
    fn a_banned_word_is_found_as_a_whole_word_alone() {
        for word in BANNED {
            assert_eq!(banned_words(&file(&format!("let the_{word} = 1;"))).len(), 1, "{word}");
            assert_eq!(banned_words(&file(&word.to_uppercase())).len(), 1, "{word}");
            assert!(banned_words(&file(&format!("{word}ing"))).is_empty(), "{word}");
        }
        assert!(banned_words(&file("inside, session id")).is_empty());
    }

    #[test]
    fn a_tagged_comment_is_found_and_code_is_not() {
        for tag in TAGS {
            assert_eq!(tags(&file(&format!("x = 1; // {tag}: later"))).len(), 1, "{tag}");
            assert_eq!(tags(&file(&format!("# {tag}"))).len(), 1, "{tag}");
            assert!(tags(&file(&format!("let {tag} = 1;"))).is_empty(), "{tag}");
        }
    }

    #[test]
    fn a_machine_path_and_a_registry_host_are_found() {
        for place in MACHINE {
            assert_eq!(places(&file(&format!("see {place}x"))).len(), 1, "{place}");
        }
        for host in ["index.example.com", "repo1.example.org/maven2", "registry.example.org"] {
            assert_eq!(
                places(&file(&format!("get https://{host}"))),
                [format!("a.rs:1: the registry host {}", host.split('/').next().unwrap())]
            );
        }
        assert!(places(&file("http://127.0.0.1:80/index.html and https://docs.rs/x and https://static/")).is_empty());
    }

    #[test]
    fn lock_files_are_not_ours_to_word() {
        assert!(banned_words(&[File { path: "Cargo.lock".into(), text: BANNED[1].into() }]).is_empty());
    }
}
