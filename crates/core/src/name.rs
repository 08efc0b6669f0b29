//! What nodes and namespaces may be called: the one rule, for settings, cookies and what peers tell.

/// Characters of a node's name, which is the longest that a host may have.
pub const NODE_MAX: usize = 63;
/// Characters of a namespace's name.
pub const NAMESPACE_MAX: usize = 32;

/// The namespace of an application that names none.
pub const NAMESPACE: &str = "session";

/// A name that cannot be. The fault of whoever wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to {most} letters, digits, `-` or `_`")]
pub struct NameError {
    /// Characters that it may have.
    pub most: usize,
}

/// Checks a node's name: 1 to [`NODE_MAX`] ASCII letters, digits, `-` and `_`. It stands in cookies, addresses' routes, logs and labels.
pub fn check_node(text: &str) -> Result<(), NameError> {
    check(text, NODE_MAX)
}

/// Checks a namespace's name: 1 to [`NAMESPACE_MAX`] of the same characters.
pub fn check_namespace(text: &str) -> Result<(), NameError> {
    check(text, NAMESPACE_MAX)
}

fn check(text: &str, most: usize) -> Result<(), NameError> {
    let fits = (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fits { Ok(()) } else { Err(NameError { most }) }
}

/// A node's name made of its host's and of random digits, which no other has. Of a long one the end is kept: pods differ there.
pub fn derive_node(host: &str, random: u32) -> String {
    let digits = format!("-{random:08x}");
    let good: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').map(|c| c.to_ascii_lowercase()).collect();
    let from = good.len().saturating_sub(NODE_MAX - digits.len());
    let host = good.get(from..).unwrap_or_default().trim_matches('-');
    format!("{}{digits}", if host.is_empty() { "node" } else { host })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_made_of_any_host_is_a_name_and_differs_by_its_digits() {
        let long = "shop-frontend-production-eu-central-1-7d4b9c9d5f-x2x7p-abc";
        assert_eq!(long.len(), 58);
        for host in ["", "web1", "WEB_1.example.com", "ä", "-", long, &"h".repeat(63), &"h".repeat(300), &"-".repeat(300)] {
            let (a, b) = (derive_node(host, 1), derive_node(host, 0xffff_ffff));
            assert!(check_node(&a).is_ok() && check_node(&b).is_ok() && a != b, "{host}: {a} {b}");
        }
        assert_eq!(derive_node("Web1.example.com", 0xab), "web1examplecom-000000ab");
        assert_eq!(derive_node(long, 1), "-frontend-production-eu-central-1-7d4b9c9d5f-x2x7p-abc-00000001".trim_start_matches('-'));
        assert_eq!(derive_node("", 1), "node-00000001");
    }

    #[test]
    fn what_is_no_name_is_refused_with_what_is() {
        for bad in ["", "a.b", "a b", "a/b", "ä", "a\n", &"n".repeat(NODE_MAX + 1)] {
            assert_eq!(check_node(bad).unwrap_err().to_string(), "must be 1 to 63 letters, digits, `-` or `_`");
        }
        assert!(check_node(&"n".repeat(NODE_MAX)).is_ok() && check_namespace(&"n".repeat(NODE_MAX)).is_err());
    }
}
