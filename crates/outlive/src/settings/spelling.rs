//! How values are written, in a file, the environment and a flag alike, and why one is refused.

use crate::settings::Kind;
use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;
use outlive_core::address::{Address, AddressError};
use outlive_core::config::OnLost;
use std::borrow::Cow;
use std::path::PathBuf;

/// A type of settings.
pub trait Spelling: Clone + Sized {
    /// How many values it is.
    const KIND: Kind = Kind::One;
    /// What stands for a value in help.
    const UNIT: &'static str;
    /// It is never repeated.
    const PRIVATE: bool = false;

    /// Reads one.
    ///
    /// # Errors
    /// What it must be.
    fn read(text: &str) -> Result<Self, String>;

    /// Writes it, so that [`read`](Spelling::read) makes the same of it.
    fn write(&self) -> String;
}

/// A number and its unit, `90 s`.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

/// The greatest unit of which it is a whole number.
fn in_units(n: u64, units: &[(&'static str, u64)]) -> Option<String> {
    units.iter().find(|(_, each)| n > 0 && n.is_multiple_of(*each)).map(|(unit, each)| format!("{}{unit}", n / each))
}

const SECONDS: [(&str, u64); 5] = [("d", 86_400), ("h", 3600), ("m", 60), ("min", 60), ("s", 1)];

/// To the millisecond.
impl Spelling for Duration {
    const UNIT: &'static str = "TIME";

    fn read(text: &str) -> Result<Duration, String> {
        let (n, unit) = number(text).unwrap_or((0, ""));
        let seconds = || Some(Duration::from_secs(n.checked_mul(SECONDS.iter().find(|(known, _)| *known == unit)?.1)?));
        let time = if unit == "ms" { Some(Duration::from_millis(n)) } else { seconds() };
        time.ok_or_else(|| "must be a duration like `30s`, a whole number with ms, s, m, h or d".to_owned())
    }

    fn write(&self) -> String {
        match self.subsec_millis() {
            0 => in_units(self.as_secs(), &SECONDS).unwrap_or_else(|| "0s".to_owned()),
            _ => format!("{}ms", self.as_millis()),
        }
    }
}

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub struct Size(pub usize);

const BYTES: [(&str, u64); 7] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1), ("B", 1), ("kB", 1000), ("MB", 1_000_000)];

impl Spelling for Size {
    const UNIT: &'static str = "SIZE";

    fn read(text: &str) -> Result<Size, String> {
        let bytes = number(text).and_then(|(n, unit)| n.checked_mul(BYTES.iter().find(|(known, _)| *known == unit)?.1));
        let size = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        size.map(Size).ok_or_else(|| "must be a size like `64KiB`, a whole number of bytes, or one with KiB, MiB or GiB".to_owned())
    }

    fn write(&self) -> String {
        in_units(self.0 as u64, &BYTES).unwrap_or_else(|| "0".to_owned())
    }
}

macro_rules! numbers {
    ($($type:ty)*) => {$(
        impl Spelling for $type {
            const UNIT: &'static str = "N";

            fn read(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| "must be a whole number".to_owned())
            }

            fn write(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
numbers!(u8 u64 usize);

impl Spelling for bool {
    const KIND: Kind = Kind::Switch;
    const UNIT: &'static str = "BOOL";

    fn read(text: &str) -> Result<bool, String> {
        text.parse().map_err(|_| "must be `true` or `false`".to_owned())
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

/// Names.
impl Spelling for String {
    const UNIT: &'static str = "NAME";

    fn read(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }

    fn write(&self) -> String {
        self.clone()
    }
}

impl Spelling for Cow<'static, str> {
    const UNIT: &'static str = "TEXT";

    fn read(text: &str) -> Result<Self, String> {
        Ok(text.to_owned().into())
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Spelling for PathBuf {
    const UNIT: &'static str = "FILE";

    fn read(text: &str) -> Result<PathBuf, String> {
        if text.is_empty() { Err("must name a file".to_owned()) } else { Ok(text.into()) }
    }

    fn write(&self) -> String {
        self.display().to_string()
    }
}

impl Spelling for Address {
    const UNIT: &'static str = "HOST:PORT";

    fn read(text: &str) -> Result<Address, String> {
        text.parse().map_err(|error: AddressError| error.to_string())
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Spelling for SocketAddr {
    const UNIT: &'static str = "ADDR";

    fn read(text: &str) -> Result<SocketAddr, String> {
        text.parse().map_err(|_| "must be an address with a port, such as 127.0.0.1:8080".to_owned())
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl<T: Spelling> Spelling for Vec<T> {
    const KIND: Kind = Kind::Many;
    const UNIT: &'static str = T::UNIT;

    fn read(text: &str) -> Result<Vec<T>, String> {
        text.split(',').map(str::trim).filter(|one| !one.is_empty()).map(T::read).collect()
    }

    fn write(&self) -> String {
        let texts: Vec<String> = self.iter().map(T::write).collect();
        texts.join(",")
    }
}

/// A store's URL, which may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl(pub String);

impl StoreUrl {
    /// The URL, unless it says that there is none.
    pub fn some(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|url| *url != "none")
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreUrl(..)")
    }
}

impl Spelling for StoreUrl {
    const UNIT: &'static str = "URL";

    fn read(text: &str) -> Result<StoreUrl, String> {
        crate::settings::not_empty(text)?;
        Ok(StoreUrl(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// What the nodes of a cluster share and nobody else knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Spelling for Secret {
    const UNIT: &'static str = "HEX";
    const PRIVATE: bool = true;

    fn read(text: &str) -> Result<Secret, String> {
        let digit = |b: &u8| char::from(*b).to_digit(16).map(|digit| digit as u8);
        let digits: Option<Vec<u8>> = text.bytes().take(65).map(|b| digit(&b)).collect();
        let bytes: Option<[u8; 32]> = digits.filter(|digits| digits.len() == 64).and_then(|digits| {
            let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] * 16 + pair[1]).collect();
            bytes.try_into().ok()
        });
        bytes.map(Secret).ok_or_else(|| "must be 64 hex digits".to_owned())
    }

    fn write(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Values that are words.
macro_rules! words {
    ($($type:ty: $($word:literal $value:path),+;)*) => {$(
        impl $crate::settings::Spelling for $type {
            const UNIT: &'static str = "WHAT";

            fn read(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok($value),)+
                    _ => Err(format!("must be {}", [$(concat!("`", $word, "`")),+].join(" or "))),
                }
            }

            fn write(&self) -> String {
                match self {
                    $($value => $word.to_owned(),)+
                }
            }
        }
    )*};
}
pub(crate) use words;

words! {
    OnLost: "new" OnLost::New, "serve" OnLost::Serve;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_of_time_and_size_is_read_and_a_number_without_one_is_no_time() {
        let seconds = |text| Duration::read(text).map(|time| time.as_secs());
        for (text, want) in [("90s", 90), ("90 s", 90), ("2m", 120), ("2min", 120), ("2h", 7200), ("1d", 86_400), ("0s", 0)] {
            assert_eq!(seconds(text), Ok(want), "{text}");
        }
        assert_eq!(Duration::read("250ms"), Ok(Duration::from_millis(250)));
        for (text, want) in
            [("512", 512), ("512B", 512), ("64KiB", 65_536), ("1MiB", 1 << 20), ("2GiB", 2 << 30), ("4 kB", 4000), ("1MB", 1_000_000)]
        {
            assert_eq!(Size::read(text), Ok(Size(want)), "{text}");
        }
        for bad in ["30", "", "s", "1.5s", "-1s", "1 week", "1S", "99999999999999999999s", "18446744073709551615d"] {
            assert!(Duration::read(bad).unwrap_err().contains("a duration like `30s`"), "{bad}");
        }
        for bad in ["", "KiB", "64KB", "-1", "1 TiB", "99999999999999GiB", "18446744073709551615MiB"] {
            assert!(Size::read(bad).unwrap_err().contains("a size like `64KiB`"), "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_short_and_is_read_as_the_same() {
        for (ms, want) in
            [(0, "0s"), (1, "1ms"), (1500, "1500ms"), (90_000, "90s"), (1_800_000, "30m"), (7_200_000, "2h"), (604_800_000, "7d")]
        {
            let time = Duration::from_millis(ms);
            assert_eq!((time.write().as_str(), Duration::read(want)), (want, Ok(time)));
        }
        for (bytes, want) in [(0, "0"), (1000, "1000"), (4096, "4KiB"), (1 << 20, "1MiB"), (3 << 30, "3GiB"), ((1 << 20) + 1, "1048577")] {
            assert_eq!((Size(bytes).write().as_str(), Size::read(want)), (want, Ok(Size(bytes))));
        }
    }

    #[test]
    fn a_secret_is_64_hex_digits_and_is_not_shown() {
        let text = "0123456789abcdefABCDEF".repeat(3)[..64].to_owned();
        let secret = Secret::read(&text).unwrap();
        assert_eq!((secret.write(), format!("{secret:?}").as_str()), (text.to_ascii_lowercase(), "Secret(..)"));
        for bad in ["", "0", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"ä".repeat(32), &format!("+{}", "0".repeat(63))] {
            assert!(Secret::read(bad).is_err(), "{bad}");
        }
    }
}
