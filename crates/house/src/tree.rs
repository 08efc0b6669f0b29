//! Who may depend on whom, and on what. The table is the one in ARCHITECTURE.

use crate::repo::{Dependency, File, Metadata, Package};
use std::collections::BTreeSet;

/// Which of our crates each of our crates may use. Adapters (`crates/compat-*`) use `outlive`, whatever their name.
const USES: [(&str, &[&str]); 10] = [
    ("outlive-core", &[]),
    ("outlive-store", &["outlive-core"]),
    ("outlive-runtime", &["outlive-core", "outlive-store"]),
    ("outlive", &["outlive-core", "outlive-runtime", "outlive-store"]),
    ("outlive-gateway", &["outlive-core", "outlive-runtime"]),
    ("outlive-server", &["outlive-core", "outlive-store", "outlive-runtime", "outlive", "outlive-gateway"]),
    ("outlive-sim", &["outlive-core", "outlive-store"]),
    ("outlive-bench", &["outlive-core", "outlive-store", "outlive-runtime", "outlive", "outlive-gateway", "outlive-server"]),
    ("outlive-examples", &["outlive"]),
    ("outlive-house", &[]),
];

/// Families of crates that only some of ours may use. A trailing `*` stands for any rest; tests may use what they like, since nobody
/// who builds on us compiles that.
const FAMILIES: [(&str, &[&str], &[&str]); 3] = [
    (
        "a database driver",
        &[
            "rusqlite",
            "libsqlite3-sys",
            "sqlx*",
            "tokio-postgres*",
            "postgres",
            "mysql*",
            "redis",
            "fred",
            "mongodb",
            "scylla*",
            "redb",
            "sled",
            "heed",
            "fjall",
            "rocksdb",
            "diesel*",
            "sea-orm*",
            "deadpool*",
            "r2d2*",
        ],
        &["outlive-store", "outlive-bench"],
    ),
    ("actix", &["actix*"], &["outlive", "outlive-bench", "outlive-examples", "compat"]),
    (
        "a web framework",
        &["axum*", "tower-http", "rocket", "warp", "poem", "salvo", "tide"],
        &["outlive", "outlive-server", "outlive-bench", "outlive-examples", "compat"],
    ),
];

/// Crates of frameworks, and of the messages that they speak: what reads and writes a session's part of them knows none, so that each
/// framework needs an adapter and nothing else.
const MESSAGES: [&str; 6] = ["http", "http-*", "tower*", "axum*", "hyper*", "actix*"];

/// The modules of `outlive` that are adapters.
const ADAPTERS: [&str; 2] = ["tower", "axum"];

/// TLS libraries besides ring: two providers in one process make rustls panic when it is asked for its default, and most of these
/// need a C toolchain besides.
const SECOND_TLS: [&str; 10] = [
    "aws-lc-rs",
    "aws-lc-sys",
    "aws-lc-fips-sys",
    "openssl",
    "openssl-sys",
    "native-tls",
    "boring",
    "boring-sys",
    "mbedtls",
    "rustls-openssl",
];

/// Everything that the engine is made of, on every platform, procedural macros aside.
const CORE: [&str; 29] = [
    "arrayvec",
    "base64",
    "blake3",
    "bytes",
    "cfg-if",
    "cobs",
    "constant_time_eq",
    "cpufeatures",
    "foca",
    "foldhash",
    "hashbrown",
    // Of parking_lot and cpufeatures, for a futex and a look at the processor; nothing here asks it for the time.
    "libc",
    "lock_api",
    "outlive-core",
    "parking_lot",
    "parking_lot_core",
    "postcard",
    "rand",
    "rand_core",
    "rand_pcg",
    "scopeguard",
    "serde",
    "serde_bytes",
    "serde_core",
    "smallvec",
    "thiserror",
    // Of parking_lot, on other platforms.
    "bitflags",
    "redox_syscall",
    "windows-link",
];

/// The compiler that we promise to work with.
const MSRV: (u32, u32) = (1, 90);

/// Declared dependencies that no source names, and why they stay: (package, dependency, why).
const UNNAMED: [(&str, &str, &str); 0] = [];

/// Our crates that use one of ours which they may not.
#[must_use]
pub fn uses(metadata: &Metadata) -> Vec<String> {
    let ours: Vec<&str> = metadata.ours().map(|p| p.name.as_str()).collect();
    let check = |package: &Package| -> Vec<String> {
        let row: Option<&[&str]> =
            if compat(package) { Some(&["outlive"]) } else { USES.iter().find(|(name, _)| *name == package.name).map(|(_, uses)| *uses) };
        let Some(row) = row else {
            return vec![format!("{} has no row in the table of who uses whom (crates/house/src/tree.rs)", package.name)];
        };
        let used = package.dependencies.iter().filter(|d| ours.contains(&d.name.as_str()) && d.name != package.name);
        let refused = used.filter(|d| !row.contains(&d.name.as_str()));
        refused.map(|d| format!("{} uses {}: the layer above, or a room that is not its business", package.name, d.name)).collect()
    };
    metadata.ours().flat_map(check).collect()
}

/// Crates of ours that use a family of crates which is another's business.
#[must_use]
pub fn families(metadata: &Metadata) -> Vec<String> {
    let mut found = Vec::new();
    for (what, members, allowed) in FAMILIES {
        let may = |p: &Package| allowed.contains(&p.name.as_str()) || (compat(p) && allowed.contains(&"compat"));
        let strangers = metadata.ours().filter(|p| !may(p));
        for package in strangers {
            let used =
                package.dependencies.iter().filter(|d| d.kind.as_deref() != Some("dev") && members.iter().any(|m| matches(m, &d.name)));
            found.extend(used.map(|d| format!("{} uses {}, {what}: that is for {} alone", package.name, d.name, allowed.join(", "))));
        }
    }
    found
}

/// Packages that bring a second TLS library.
#[must_use]
pub fn second_tls(packages: &[Package]) -> Vec<String> {
    let found = packages.iter().filter(|p| SECOND_TLS.contains(&p.name.as_str()));
    found.map(|p| format!("{} {} is in the tree (`cargo tree -i {}`); ring is the one TLS provider", p.name, p.version, p.name)).collect()
}

/// Names in the engine's dependency tree that are not on the list; `tree` is one name a line.
#[must_use]
pub fn core_tree(tree: &str) -> Vec<String> {
    let names: BTreeSet<&str> = tree.lines().filter_map(|l| l.split_whitespace().next()).collect();
    let new = names.into_iter().filter(|name| !CORE.contains(name));
    new.map(|name| {
        format!(
            "{name} is new in the tree of outlive-core (`cargo tree -p outlive-core -e normal -i {name}`). The engine decides and does nothing else: \
             it runs the same under tokio and in the simulator. Before adding {name} to the list, see that it opens no socket or file, reads no clock, \
             draws no randomness from the system, starts no thread or task and allocates no more than it is given; that its default features are off; \
             and that a few lines of our own would not do"
        )
    })
    .collect()
}

/// Packages that ask for a newer compiler than we promise.
#[must_use]
pub fn compilers(packages: &[Package]) -> Vec<String> {
    let newer = packages.iter().filter_map(|p| p.rust_version.as_ref().filter(|v| version(v).is_none_or(|v| v > MSRV)).map(|v| (p, v)));
    newer.map(|(p, v)| format!("{} {} needs Rust {v}; we promise {}.{}", p.name, p.version, MSRV.0, MSRV.1)).collect()
}

/// Dependencies that a package of ours declares and no source file of it names.
///
/// A search for `name::` or `use name` in its files, comments aside, is good enough: it needs no compiler, sees all features and
/// platforms at once, and what it can miss is a dependency that is named in dead code.
#[must_use]
pub fn unused(metadata: &Metadata, package: &Package, files: &[File]) -> Vec<String> {
    let code: Vec<String> = files.iter().map(|f| code(&f.text)).collect();
    let named = |d: &&Dependency| {
        let word = in_source(metadata, d);
        code.iter().any(|text| names(text, &word)) || UNNAMED.iter().any(|(p, n, _)| *p == package.name && *n == d.name)
    };
    let unused = package.dependencies.iter().filter(|d| !named(d));
    unused.map(|d| format!("{} declares {} and uses it nowhere", package.name, d.name)).collect()
}

/// Files in the folder `src` that are no adapter to a framework and name a crate of one, unit tests aside.
#[must_use]
pub fn frameworks(metadata: &Metadata, package: &Package, src: &str, files: &[File]) -> Vec<String> {
    let crates = package.dependencies.iter().filter(|d| MESSAGES.iter().any(|m| matches(m, &d.name)));
    let crates: BTreeSet<String> = crates.map(|d| in_source(metadata, d)).collect();
    let mut found = Vec::new();
    for file in files {
        let Some(path) = file.path.strip_prefix(src) else { continue };
        let adapter = ADAPTERS.iter().any(|a| path.strip_prefix(a).is_some_and(|rest| rest.starts_with(['.', '/'])));
        if adapter || path.ends_with("/tests.rs") {
            continue;
        }
        let code = code(file.text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default());
        let named = crates.iter().filter(|name| names(&code, name));
        found.extend(named.map(|name| format!("{} names {name}: that is for {} alone, below {src}", file.path, ADAPTERS.join(" and "))));
    }
    found
}

/// Without comments.
fn code(text: &str) -> String {
    text.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The name that a dependency goes by in source files.
fn in_source(metadata: &Metadata, dependency: &Dependency) -> String {
    let library = metadata.packages.iter().find(|p| p.name == dependency.name).and_then(Package::library);
    let name = dependency.rename.as_ref().or(library.map(|l| &l.name)).unwrap_or(&dependency.name);
    name.replace('-', "_")
}

fn names(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text.get(..at).unwrap_or_default();
        let after = text.get(at + word.len()..).unwrap_or_default();
        let inside =
            before.ends_with(|c: char| c.is_alphanumeric() || c == '_') || after.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        let part_of_path = before.strip_suffix("::").is_some_and(|b| b.ends_with(|c: char| c.is_alphanumeric() || c == '_'));
        !inside && !part_of_path && (after.starts_with("::") || before.ends_with("use ") || before.ends_with("extern crate "))
    })
}

fn compat(package: &Package) -> bool {
    package.folder().file_name().is_some_and(|f| f.to_string_lossy().starts_with("compat-"))
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next().transpose().ok()?.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::Target;

    fn package(name: &str, uses: &[(&str, Option<&str>)]) -> Package {
        let dependencies = uses.iter().map(|(n, kind)| Dependency { name: (*n).into(), rename: None, kind: kind.map(str::to_owned) });
        Package {
            id: name.into(),
            name: name.into(),
            manifest_path: format!("crates/{name}/Cargo.toml").into(),
            dependencies: dependencies.collect(),
            ..Package::default()
        }
    }

    fn graph(packages: Vec<Package>) -> Metadata {
        Metadata { workspace_members: packages.iter().map(|p| p.id.clone()).collect(), packages }
    }

    #[test]
    fn a_crate_that_uses_the_layer_above_is_found() {
        let all = |uses: &[(&str, Option<&str>)]| {
            graph(vec![package("outlive-core", uses), package("outlive-store", &[]), package("outlive", &[])])
        };
        assert!(uses(&all(&[])).is_empty());
        assert_eq!(uses(&all(&[("outlive-store", None)])).len(), 1);
        assert_eq!(uses(&all(&[("outlive", Some("dev"))])).len(), 1);
        assert_eq!(uses(&graph(vec![package("outlive-surprise", &[])])).len(), 1);
    }

    #[test]
    fn an_adapter_uses_the_public_crate_alone() {
        let all = |name: &str| graph(vec![package("compat-x", &[(name, None)]), package("outlive", &[]), package("outlive-store", &[])]);
        assert!(uses(&all("outlive")).is_empty());
        assert_eq!(uses(&all("outlive-store")).len(), 1);
    }

    #[test]
    fn a_driver_or_a_framework_in_the_wrong_crate_is_found() {
        for (who, what) in [
            ("outlive-runtime", "redis"),
            ("outlive-server", "tokio-postgres-rustls"),
            ("outlive-server", "actix-web"),
            ("outlive-store", "axum-core"),
        ] {
            assert_eq!(families(&graph(vec![package(who, &[(what, None)])])).len(), 1, "{who} {what}");
            assert!(families(&graph(vec![package(who, &[(what, Some("dev"))])])).is_empty(), "{who} {what}");
        }
        assert!(
            families(&graph(vec![package("outlive-store", &[("redis", None)]), package("compat-actix", &[("actix-web", None)])]))
                .is_empty()
        );
    }

    #[test]
    fn a_second_tls_provider_is_found() {
        assert_eq!(second_tls(&[package("ring", &[]), package("aws-lc-rs", &[]), package("openssl", &[])]).len(), 2);
    }

    #[test]
    fn a_new_name_in_the_engines_tree_is_found() {
        assert!(core_tree("outlive-core v0.1.0\nbytes v1.11.0\nbytes v1.11.0 (*)\n").is_empty());
        assert_eq!(core_tree("outlive-core v0.1.0\ntokio v1.48.0\nmio v1.0.0\ntokio v1.48.0 (*)\n").len(), 2);
    }

    #[test]
    fn a_package_for_a_newer_compiler_is_found() {
        let with = |v: &str| vec![Package { rust_version: Some(v.into()), ..package("x", &[]) }];
        for bad in ["1.91", "1.95.0", "2.0", "nonsense"] {
            assert_eq!(compilers(&with(bad)).len(), 1, "{bad}");
        }
        for good in ["1.90", "1.90.0", "1.9", "1"] {
            assert!(compilers(&with(good)).is_empty(), "{good}");
        }
    }

    #[test]
    fn a_file_that_is_no_adapter_and_names_a_framework_is_found() {
        let mut all = graph(vec![package("outlive", &[("http", None), ("tower-layer", None), ("tower", Some("dev")), ("bytes", None)])]);
        all.packages.push(package("http", &[]));
        let check =
            |path: &str, text: &str| frameworks(&all, &all.packages[0], "src/", &[File { path: path.into(), text: text.into() }]).len();
        for bad in ["use http::HeaderMap;", "fn f(h: &::http::HeaderMap) {}", "use tower_layer::Layer;", "use tower::Service;"] {
            assert_eq!(check("src/request.rs", bad), 1, "{bad}");
            assert_eq!(check("src/towers.rs", bad), 1, "{bad}");
            for adapter in ["src/tower.rs", "src/tower/layer.rs", "src/axum.rs", "tests/tower.rs"] {
                assert_eq!(check(adapter, bad), 0, "{adapter} {bad}");
            }
        }
        for good in [
            "use bytes::Bytes;",
            "/// http::HeaderMap",
            "use crate::tower::X;",
            "let a = \"http://x\";",
            "\n#[cfg(test)]\nmod tests {\nuse http::Uri;\n}",
        ] {
            assert_eq!(check("src/request.rs", good), 0, "{good}");
        }
    }

    #[test]
    fn a_dependency_that_no_source_names_is_found() {
        let mut all = graph(vec![package("x", &[("md-5", None), ("bytes", None)])]);
        let library = Target { name: "md5".into(), kind: vec!["lib".into()], src_path: "lib.rs".into() };
        all.packages.push(Package { targets: vec![library], ..package("md-5", &[]) });
        let check = |text: &str| unused(&all, &all.packages[0], &[File { path: "lib.rs".into(), text: text.into() }]);
        assert!(check("use md5::Md5;\nfn f(b: ::bytes::Bytes) {}").is_empty());
        assert_eq!(check("use md5;\nlet bytes = crate::bytes::x(); // bytes::Bytes").len(), 1);
        assert_eq!(check("").len(), 2);
    }
}
