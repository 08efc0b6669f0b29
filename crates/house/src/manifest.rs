//! What each crate of ours must declare, or share with the workspace.

use std::collections::BTreeSet;
use toml::{Table, Value};

/// Whether a manifest takes its lints, licence, edition and compiler from the workspace; `name` is only said in the answer.
#[must_use]
pub fn inherits(name: &str, manifest: &str) -> Vec<String> {
    let Ok(manifest) = manifest.parse::<Table>() else { return vec![format!("{name}: its Cargo.toml cannot be read")] };
    let shared = |value: Option<&Value>| value.and_then(|v| v.get("workspace")) == Some(&Value::Boolean(true));
    let package = manifest.get("package");
    let wanted = [
        ("lints", manifest.get("lints")),
        ("package.license", package.and_then(|p| p.get("license"))),
        ("package.edition", package.and_then(|p| p.get("edition"))),
        ("package.rust-version", package.and_then(|p| p.get("rust-version"))),
    ];
    wanted.iter().filter(|(_, value)| !shared(*value)).map(|(key, _)| format!("{name}: `{key}` does not come from the workspace")).collect()
}

/// Features of a crate that are on by default though its callers are to choose.
#[must_use]
pub fn defaults(name: &str, manifest: &str) -> Vec<String> {
    let manifest = manifest.parse::<Table>().unwrap_or_default();
    let on = manifest.get("features").and_then(|f| f.get("default")).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if on { vec![format!("{name}: `default` features stay empty in this crate")] } else { Vec::new() }
}

/// Lines of a crate's first file that are too many for a map.
#[must_use]
pub fn map(name: &str, lib: &str) -> Vec<String> {
    const LINES_MAX: usize = 120;
    let lines = lib.lines().count();
    if lines > LINES_MAX {
        vec![format!("{name}: lib.rs has {lines} lines; it is a map of at most {LINES_MAX}, the rest has a noun")]
    } else {
        Vec::new()
    }
}

/// Bans of the workspace's `clippy.toml` that a crate's own, which replaces it, forgot.
#[must_use]
pub fn bans(name: &str, workspace: &str, own: &str) -> Vec<String> {
    let (Ok(workspace), Ok(own)) = (workspace.parse::<Table>(), own.parse::<Table>()) else {
        return vec![format!("{name}: a clippy.toml cannot be read")];
    };
    let mut found = Vec::new();
    for (key, value) in &workspace {
        let has = own.get(key);
        if let Some(list) = value.as_array() {
            let own_paths = has.map(paths).unwrap_or_default();
            let lost = list.iter().filter_map(path).filter(|p| !own_paths.contains(p));
            found.extend(lost.map(|p| format!("{name}: its clippy.toml replaces the workspace's and forgets to ban {p}")));
        } else if has != Some(value) {
            found.push(format!("{name}: its clippy.toml replaces the workspace's and differs in `{key}`"));
        }
    }
    found
}

fn paths(list: &Value) -> BTreeSet<&str> {
    list.as_array().into_iter().flatten().filter_map(path).collect()
}

fn path(entry: &Value) -> Option<&str> {
    entry.as_str().or_else(|| entry.get("path")?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_with_lints_of_its_own_is_found() {
        let good =
            "[package]\nlicense.workspace = true\nedition.workspace = true\nrust-version.workspace = true\n[lints]\nworkspace = true\n";
        assert_eq!(inherits("x", good), [""; 0]);
        assert_eq!(inherits("x", &good.replace("[lints]\nworkspace = true", "[lints.rust]\nunsafe_code = \"allow\"")).len(), 1);
        assert_eq!(inherits("x", &good.replace("license.workspace = true", "license = \"MIT\"")).len(), 1);
        assert_eq!(inherits("x", "[package").len(), 1);
    }

    #[test]
    fn a_default_feature_is_found() {
        assert_eq!(defaults("x", "[features]\ndefault = [\"sqlite\"]\n").len(), 1);
        assert!(defaults("x", "[features]\ndefault = []\nsqlite = []\n").is_empty());
    }

    #[test]
    fn a_first_file_that_is_no_map_is_found() {
        assert!(map("x", &"//\n".repeat(120)).is_empty());
        assert_eq!(map("x", &"//\n".repeat(121)).len(), 1);
    }

    #[test]
    fn a_forgotten_ban_is_found() {
        let workspace = "allow-unwrap-in-tests = true\ndisallowed-methods = [{ path = \"a::b\", reason = \"x\" }, \"c::d\"]\n";
        assert_eq!(bans("x", workspace, workspace), [""; 0]);
        assert_eq!(bans("x", workspace, "allow-unwrap-in-tests = true\ndisallowed-methods = [\"a::b\"]\n").len(), 1);
        assert_eq!(bans("x", workspace, "").len(), 3);
    }
}
