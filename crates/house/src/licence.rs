//! What the licences of dependencies say.

use crate::repo::Package;

/// Licences that any package may have.
const ALLOWED: [&str; 9] = ["MIT", "Apache-2.0", "BSD-3-Clause", "ISC", "Zlib", "Unicode-3.0", "BSL-1.0", "CC0-1.0", "CDLA-Permissive-2.0"];

/// Licences that one package alone may have. MPL-2.0 asks for the changed files of that package only; we change none.
const ALLOWED_FOR: [(&str, &str); 1] = [("foca", "MPL-2.0")];

/// Packages that none of the allowed licences covers.
#[must_use]
pub fn licences(packages: &[Package]) -> Vec<String> {
    let refused = packages.iter().filter(|p| !p.license.as_deref().is_some_and(|l| allows(&p.name, l)));
    refused
        .map(|p| {
            let licence = p.license.as_deref().unwrap_or("no licence in its manifest");
            format!(
                "{} {}: {licence}. Look for another crate; a new licence is a decision for crates/house/src/licence.rs and deny.toml",
                p.name, p.version
            )
        })
        .collect()
}

/// Whether an SPDX expression can be met for this package. `OR` binds weaker than `AND`; the old `/` means `OR`; an exception after
/// `WITH` only adds permissions. What cannot be parsed is refused.
fn allows(package: &str, expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { package, tokens: &tokens };
    parser.any() == Some(true) && parser.tokens.is_empty()
}

struct Parser<'a> {
    package: &'a str,
    tokens: &'a [&'a str],
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.tokens.first() == Some(&word);
        if found {
            self.next();
        }
        found
    }

    fn any(&mut self) -> Option<bool> {
        let mut met = self.all()?;
        while self.take("OR") {
            met |= self.all()?;
        }
        Some(met)
    }

    fn all(&mut self) -> Option<bool> {
        let mut met = self.one()?;
        while self.take("AND") {
            met &= self.one()?;
        }
        Some(met)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let met = self.any()?;
            return self.take(")").then_some(met);
        }
        let name = self.next()?;
        if self.take("WITH") {
            self.next()?;
        }
        Some(ALLOWED.contains(&name) || ALLOWED_FOR.contains(&(self.package, name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, license: Option<&str>) -> usize {
        licences(&[Package { name: name.into(), license: license.map(str::to_owned), ..Package::default() }]).len()
    }

    #[test]
    fn a_licence_outside_the_list_is_found() {
        for bad in [
            "GPL-3.0",
            "AGPL-3.0 OR SSPL-1.0",
            "MIT AND GPL-2.0",
            "(MIT OR Apache-2.0) AND OpenSSL",
            "MIT OR",
            "(MIT",
            "MIT Apache-2.0",
            "",
        ] {
            assert_eq!(found("x", Some(bad)), 1, "{bad:?}");
        }
        assert_eq!(found("x", None), 1);
    }

    #[test]
    fn expressions_that_can_be_met_pass() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-2.0 OR MIT",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
            "Apache-2.0 AND ISC",
        ] {
            assert_eq!(found("x", Some(good)), 0, "{good:?}");
        }
    }

    #[test]
    fn the_file_level_copyleft_is_for_one_package_alone() {
        assert_eq!(found("foca", Some("MPL-2.0")), 0);
        assert_eq!(found("x", Some("MPL-2.0")), 1);
    }
}
