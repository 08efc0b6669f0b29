//! The house rules over this repository.

use outlive_house::repo::{self, File, Metadata, Package};
use outlive_house::{circles, licence, links, manifest, named, text, tree};
use std::sync::LazyLock;

static METADATA: LazyLock<Metadata> = LazyLock::new(|| repo::metadata().expect("cargo knows the packages"));
static FILES: LazyLock<Vec<File>> = LazyLock::new(|| repo::files().expect("the checkout can be read"));

#[track_caller]
fn none(violations: Vec<String>) {
    assert!(violations.is_empty(), "{} violations:\n{}\n", violations.len(), violations.join("\n"));
}

/// The text of a file of the checkout.
fn read(path: &str) -> &'static str {
    &FILES.iter().find(|f| f.path == path).unwrap_or_else(|| panic!("{path} is not in the checkout")).text
}

/// A path of the package graph as a path in the checkout.
fn in_checkout(path: &std::path::Path) -> String {
    path.strip_prefix(repo::root()).expect("our files are in the checkout").to_string_lossy().replace('\\', "/")
}

fn manifest_of(package: &Package) -> &'static str {
    read(&in_checkout(&package.manifest_path))
}

#[test]
fn the_checks_see_the_repository() {
    assert!(METADATA.our("outlive-core").is_some() && METADATA.ours().count() < METADATA.packages.len());
    assert!(FILES.iter().any(|f| f.path == "README.md") && FILES.iter().any(|f| f.path.ends_with(".rs")));
}

#[test]
fn each_crate_uses_what_its_place_allows() {
    none(tree::uses(&METADATA));
    none(tree::families(&METADATA));
}

#[test]
fn the_engine_is_made_of_nothing_that_acts() {
    let args = ["tree", "-p", "outlive-core", "-e", "normal,no-proc-macro", "--target", "all", "--prefix", "none", "--locked"];
    let names = repo::cargo(&args).unwrap();
    assert!(names.starts_with("outlive-core "), "{names}");
    none(tree::core_tree(&names));
}

#[test]
fn what_a_session_reads_and_writes_of_messages_knows_no_framework() {
    let package = METADATA.our("outlive").unwrap();
    none(tree::frameworks(&METADATA, package, "crates/outlive/src/", &sources(package)));
}

#[test]
fn the_engine_imports_one_way() {
    none(circles::circles("crates/core/src/", &FILES));
}

#[test]
fn one_tls_provider() {
    none(tree::second_tls(&METADATA.packages));
}

#[test]
fn every_dependency_works_with_the_compiler_we_promise() {
    none(tree::compilers(&METADATA.packages));
}

#[test]
fn every_licence_is_one_we_can_meet() {
    none(licence::licences(&METADATA.packages));
}

#[test]
fn every_declared_dependency_is_used() {
    none(METADATA.ours().flat_map(|package| tree::unused(&METADATA, package, &sources(package))).collect());
}

/// The Rust files of a package, without those of a package inside its folder.
fn sources(package: &Package) -> Vec<File> {
    let folder = |p: &Package| format!("{}/", in_checkout(p.folder()));
    let mine = folder(package);
    let nested: Vec<String> = METADATA.ours().map(folder).filter(|f| f.len() > mine.len() && f.starts_with(&mine)).collect();
    let rust = FILES.iter().filter(|f| f.path.ends_with(".rs") && f.path.starts_with(&mine));
    rust.filter(|f| !nested.iter().any(|n| f.path.starts_with(n.as_str()))).cloned().collect()
}

#[test]
fn every_crate_shares_the_lints_of_the_workspace() {
    none(METADATA.ours().flat_map(|p| manifest::inherits(&p.name, manifest_of(p))).collect());
}

#[test]
fn the_engine_and_the_stores_have_no_default_features() {
    for name in ["outlive-core", "outlive-store"] {
        none(manifest::defaults(name, manifest_of(METADATA.our(name).unwrap())));
    }
}

#[test]
fn every_first_file_is_a_map() {
    let libraries = METADATA.ours().filter_map(|p| Some((p, p.library()?)));
    none(libraries.flat_map(|(p, library)| manifest::map(&p.name, read(&in_checkout(&library.src_path)))).collect());
}

#[test]
fn a_lint_file_of_a_crate_repeats_the_common_bans() {
    let own = FILES.iter().filter(|f| f.path.ends_with("/clippy.toml"));
    none(own.flat_map(|f| manifest::bans(&f.path, read("clippy.toml"), &f.text)).collect());
}

#[test]
fn every_relative_link_leads_somewhere() {
    none(links::links(&FILES));
}

#[test]
fn each_mistake_that_the_architecture_lists_has_its_test() {
    let page = FILES.iter().find(|f| f.path == "ARCHITECTURE.md").unwrap();
    none(named::tests(page, "## A handler's mistake", &FILES));
}

#[test]
fn each_guarantee_has_its_test() {
    let page = FILES.iter().find(|f| f.path == "docs/guarantees.md").unwrap();
    none(named::tests(page, "## Guaranteed", &FILES));
}

#[test]
fn nobody_compiles_a_database_unasked() {
    let features = &METADATA.our("outlive").unwrap().features;
    assert_eq!(features["default"], ["axum"]);
}

#[test]
fn no_banned_word() {
    none(text::banned_words(&FILES));
}

#[test]
fn no_comment_puts_work_off() {
    none(text::tags(&FILES));
}

#[test]
fn no_text_names_a_machine_or_a_registry() {
    none(text::places(&FILES));
}
