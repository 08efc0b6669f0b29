//! What the checks look at: the package graph as cargo tells it, and the files of the checkout.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// The package graph: the part of `cargo metadata` that the checks need.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    /// Every package of the lock file that some platform and feature needs.
    pub packages: Vec<Package>,
    /// The ids of our own packages.
    pub workspace_members: Vec<String>,
}

/// One package.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Package {
    /// Unique in the graph.
    pub id: String,
    /// As published.
    pub name: String,
    /// As published.
    pub version: String,
    /// An SPDX expression, or what the author took for one.
    pub license: Option<String>,
    /// The oldest compiler that the package promises to work with.
    pub rust_version: Option<String>,
    /// Its `Cargo.toml`.
    pub manifest_path: PathBuf,
    /// What it declares, whether a feature needs it or not.
    pub dependencies: Vec<Dependency>,
    /// The features it offers.
    pub features: BTreeMap<String, Vec<String>>,
    /// Libraries, binaries, tests, examples.
    pub targets: Vec<Target>,
}

/// One declared dependency.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Dependency {
    /// The package's name.
    pub name: String,
    /// The name it goes by in the sources, if it was given one.
    pub rename: Option<String>,
    /// Absent for a normal one, else `dev` or `build`.
    pub kind: Option<String>,
}

/// One thing that cargo builds of a package.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Target {
    /// Its name, with dashes as underscores for a library.
    pub name: String,
    /// `lib`, `bin`, `proc-macro` and so on.
    pub kind: Vec<String>,
    /// Its first file.
    pub src_path: PathBuf,
}

impl Metadata {
    /// Our own packages.
    pub fn ours(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|p| self.workspace_members.contains(&p.id))
    }

    /// Our package of this name, if it is ours.
    #[must_use]
    pub fn our(&self, name: &str) -> Option<&Package> {
        self.ours().find(|p| p.name == name)
    }
}

impl Package {
    /// The folder of its manifest.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }

    /// The library it offers, procedural macros included.
    #[must_use]
    pub fn library(&self) -> Option<&Target> {
        self.targets.iter().find(|t| t.kind.iter().any(|k| k.ends_with("lib") || k == "proc-macro"))
    }
}

/// A file of the checkout.
#[derive(Clone, Debug)]
pub struct File {
    /// Relative to the root, with forward slashes.
    pub path: String,
    /// Its text; empty if it is not UTF-8.
    pub text: String,
}

/// The root of the checkout.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Runs cargo in the checkout and returns what it printed.
///
/// Not `--offline`: the graph covers all platforms, and on a fresh machine the manifests for others may not be there yet.
///
/// # Errors
/// When cargo cannot be run or fails; its words are in the error.
pub fn cargo(args: &[&str]) -> io::Result<String> {
    run(Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args(args))
}

/// The package graph with all features, for all platforms.
///
/// # Errors
/// When cargo fails or prints something else.
pub fn metadata() -> io::Result<Metadata> {
    let text = cargo(&["metadata", "--format-version", "1", "--locked", "--all-features"])?;
    serde_json::from_str(&text).map_err(io::Error::other)
}

/// What is committed or about to be: all files that git does not ignore, or, where there is no git, all that are not hidden or built.
///
/// # Errors
/// When a file or folder cannot be read.
pub fn files() -> io::Result<Vec<File>> {
    let root = root();
    // The owner of a checkout in a container is often somebody else.
    let git = ["-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "-z"];
    let mut paths: Vec<String> = match run(Command::new("git").args(git)) {
        Ok(list) => list.split('\0').filter(|p| !p.is_empty()).map(str::to_owned).collect(),
        Err(_) => {
            let mut found = Vec::new();
            walk(&root, &root, &mut found)?;
            found
        }
    };
    paths.sort();
    let present = paths.into_iter().filter(|p| root.join(p).is_file());
    present.map(|path| fs::read(root.join(&path)).map(|b| File { path, text: String::from_utf8(b).unwrap_or_default() })).collect()
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hidden = name.starts_with('.') && name != ".ci" && name != ".gitignore";
        if hidden || name == "target" {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, found)?;
        } else if let Ok(relative) = path.strip_prefix(root) {
            found.push(relative.to_string_lossy().replace('\\', "/"));
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> io::Result<String> {
    let output = command.current_dir(root()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))));
    }
    String::from_utf8(output.stdout).map_err(io::Error::other)
}
