//! Values as people write them, and why one is refused.

use outlive_core::address::{Address, AddressError};
use outlive_core::name::{check_namespace, check_node};
use std::net::SocketAddr;
use std::time::Duration;

/// `250ms`, `5s`, `30m`, `2h`, `1d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let seconds = match unit {
        "ms" => return number.map(Duration::from_millis).ok_or_else(|| DURATION.to_owned()),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(DURATION.to_owned()),
    };
    number.and_then(|n| n.checked_mul(seconds)).map(Duration::from_secs).ok_or_else(|| DURATION.to_owned())
}

const DURATION: &str = "must be a whole number with ms, s, m, h or d, such as 30s";

/// `512`, `64KiB`, `1MiB`, `2GiB`.
pub(super) fn size(text: &str) -> Result<usize, String> {
    let (number, unit) = split(text);
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(SIZE.to_owned()),
    };
    number.and_then(|n| n.checked_mul(factor)).and_then(|n| usize::try_from(n).ok()).ok_or_else(|| SIZE.to_owned())
}

const SIZE: &str = "must be a whole number of bytes, or one with KiB, MiB or GiB, such as 64KiB";

fn split(text: &str) -> (Option<u64>, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (text[..end].parse().ok(), text[end..].trim_start())
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be an address with a port, such as 127.0.0.1:8080".to_owned())
}

/// Where to listen.
pub(super) fn listen(text: &str) -> Result<Address, String> {
    text.parse().map_err(|error: AddressError| error.to_string())
}

/// Where others connect.
pub(super) fn reachable(text: &str) -> Result<Address, String> {
    listen(text)?.reachable().map_err(|error| error.to_string())
}

/// A whole number within bounds.
pub(super) fn number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    text.parse().ok().filter(|n| (least..=most).contains(n)).ok_or_else(|| format!("must be a whole number from {least} to {most}"))
}

/// `NAME=ADDR`.
pub(super) fn backend(text: &str) -> Result<(String, Address), String> {
    match text.split_once('=') {
        Some((name, addr)) if check_node(name).is_ok() => Ok((name.to_owned(), reachable(addr)?)),
        _ => Err("must be NAME=ADDR, such as a=127.0.0.1:9001 or a=app1:9001, its name of letters, digits, `-` and `_`".to_owned()),
    }
}

/// A node's name: it stands behind a dot in cookies.
pub(super) fn name(text: &str) -> Result<String, String> {
    check_node(text).map(|()| text.to_owned()).map_err(|why| why.to_string())
}

/// A namespace's name.
pub(super) fn namespace(text: &str) -> Result<String, String> {
    check_namespace(text).map(|()| text.to_owned()).map_err(|why| why.to_string())
}

/// Any text but none.
pub(super) fn some(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// What a cluster's nodes share and nobody else knows; never printed.
#[derive(Clone, Copy)]
pub(crate) struct Secret(pub(crate) [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// 64 hex digits.
pub(super) fn secret(text: &str) -> Result<Secret, String> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return Err(SECRET.to_owned());
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| SECRET.to_owned())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| SECRET.to_owned())?;
    }
    Ok(Secret(bytes))
}

const SECRET: &str = "must be 64 hex digits";

/// `owner`, `backup(N)` or `store`, as an application's builder takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    Owner,
    Backup(u8),
    Store,
}

pub(super) fn durability(text: &str) -> Result<Durability, String> {
    let copies = text.strip_prefix("backup(").and_then(|rest| rest.strip_suffix(')')).and_then(|n| n.parse().ok());
    match (text, copies) {
        ("owner", _) => Ok(Durability::Owner),
        ("store", _) => Ok(Durability::Store),
        (_, Some(copies @ 1..=5)) => Ok(Durability::Backup(copies)),
        _ => Err("must be owner, backup(N) with N from 1 to 5, or store".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_need_their_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("512"), Ok(512));
        for bad in ["30", "", "s", "1.5s", "-1s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for bad in ["", "KiB", "64KB", "-1", "99999999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_durability_is_one_of_three() {
        assert_eq!(durability("backup(2)"), Ok(Durability::Backup(2)));
        for bad in ["", "backup", "backup(0)", "backup(9)", "backup()", "disk"] {
            assert!(durability(bad).is_err(), "{bad}");
        }
    }
}
