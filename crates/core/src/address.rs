//! Addresses that are listened on, dialled, or told to others: one type for all of them.
//!
//! A name stays a name: it is resolved where it is used, each time anew, because what it stands for changes while a node lives.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::str::FromStr;

/// Bytes of a host's name: with a port it fits into 255.
const HOST_MAX: usize = 249;

/// A host and a port.
///
/// Written `app1:7400`, `10.0.0.7:7400`, `[2001:db8::7]:7400`; also `http://app1:8080/`, whose port is 80 if it names none, and
/// `:8080`, which is every address of this machine as `0.0.0.0:8080` and `[::]:8080` are. A name has letters, digits, `-`, `_` and
/// dots, and at most 249 bytes; its case does not matter.
///
/// Displayed as `HOST:PORT`, which [`parse`](str::parse)s to the same address and has at most 255 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// In lower case; of IPv6 without its brackets.
    host: Box<str>,
    port: u16,
}

impl Address {
    /// What to resolve: a name, or an IP address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// 0 takes a free one, where it is listened on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The IP address, unless a name stands for it.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// The same host with another port.
    #[must_use]
    pub fn with_port(&self, port: u16) -> Address {
        Address { host: self.host.clone(), port }
    }

    /// Whether it is every address of this machine: good for listening, and nowhere to connect to.
    pub fn is_any(&self) -> bool {
        self.ip().is_some_and(|ip| ip.to_canonical().is_unspecified())
    }

    /// Whether it means the machine that uses it, whichever that is.
    pub fn is_loopback(&self) -> bool {
        &*self.host == "localhost" || self.host.ends_with(".localhost") || self.ip().is_some_and(|ip| ip.to_canonical().is_loopback())
    }

    /// This address if others can connect to it.
    ///
    /// # Errors
    /// [`AddressError::Any`] and [`AddressError::NoPort`]: it says where to listen and not where others connect.
    pub fn reachable(self) -> Result<Address, AddressError> {
        if self.is_any() {
            return Err(AddressError::Any { port: self.port });
        }
        if self.port == 0 { Err(AddressError::NoPort) } else { Ok(self) }
    }

    /// The address of what listens on this one, as others are told it: every address of this machine is known by the host of `peer`,
    /// where others connect to the same machine.
    ///
    /// # Errors
    /// [`AddressError::NoPort`], and [`AddressError::Local`] if others would look for it on machines of their own.
    pub fn told_beside(self, peer: &Address) -> Result<Address, AddressError> {
        let told = if self.is_any() { peer.with_port(self.port) } else { self };
        if told.port == 0 {
            return Err(AddressError::NoPort);
        }
        if told.is_loopback() && !peer.is_loopback() {
            return Err(AddressError::Local { told, instead: peer.clone() });
        }
        Ok(told)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        use AddressError::Malformed;
        let text = text.trim();
        let (rest, default_port) = match text.split_once("://") {
            None => (text, None),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (rest, Some(80)),
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => return Err(AddressError::Https),
            Some(_) => return Err(Malformed),
        };
        let rest = match rest.split_once('/') {
            Some((rest, "")) if default_port.is_some() => rest,
            Some(_) => return Err(Malformed),
            None => rest,
        };
        let (host, port) = split(rest).ok_or(Malformed)?;
        let port = match (port, default_port) {
            // `parse` would take a sign.
            (Some(port), _) if port.bytes().all(|b| b.is_ascii_digit()) => port.parse().map_err(|_| Malformed)?,
            (None, Some(port)) => port,
            _ => return Err(Malformed),
        };
        // Whatever has the look of an address is one: `10.0.0` is no name.
        let numeric = |host: &str| host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let host = match host {
            Host::Any => Ipv6Addr::UNSPECIFIED.to_string(),
            Host::V6(ip) => ip.to_string(),
            Host::Other(host) if numeric(host) => host.parse::<Ipv4Addr>().map_err(|_| Malformed)?.to_string(),
            Host::Other(host) if is_name(host) => host.trim_end_matches('.').to_ascii_lowercase(),
            Host::Other(_) => return Err(Malformed),
        };
        Ok(Address { host: host.into(), port })
    }
}

enum Host<'a> {
    Any,
    V6(Ipv6Addr),
    Other(&'a str),
}

fn split(text: &str) -> Option<(Host<'_>, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
        return Some((Host::V6(host.parse().ok()?), port));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    Some((if host.is_empty() || host == "*" { Host::Any } else { Host::Other(host) }, port))
}

fn is_name(host: &str) -> bool {
    let label = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    host.len() <= HOST_MAX && host.strip_suffix('.').unwrap_or(host).split('.').all(label)
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Address {
        Address { host: addr.ip().to_string().into(), port: addr.port() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why an address cannot be used. The fault of whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It is not an address.
    #[error("an address is HOST:PORT, such as app1:7400, 10.0.0.7:7400 or [2001:db8::7]:7400")]
    Malformed,
    /// It is a URL with TLS.
    #[error("nodes are reached by plain HTTP, not https: write http://HOST:PORT or HOST:PORT")]
    Https,
    /// Every address of this machine, where one is wanted that others can connect to.
    #[error(
        "every address of this machine is where to listen, not where others connect: name the host by which they reach it, such as \
         app1:{port} or 10.0.0.7:{port}"
    )]
    Any {
        /// Its port.
        port: u16,
    },
    /// A free port, where others must know which.
    #[error("port 0 is a free port, and others must be told which one: name it, as in app1:8080")]
    NoPort,
    /// Others would look for it on machines of their own.
    #[error(
        "{told} is this machine for itself alone, and other nodes reach it as {instead}: name the host by which they do, such as {}",
        .instead.with_port(.told.port())
    )]
    Local {
        /// The address.
        told: Address,
        /// Where they reach this machine.
        instead: Address,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<String, AddressError> {
        text.parse::<Address>().map(|addr| addr.to_string())
    }

    #[test]
    fn every_way_to_write_an_address_means_what_it_says() {
        for (text, means) in [
            ("localhost:8080", "localhost:8080"),
            ("App1:9001", "app1:9001"),
            ("web_1.shop.svc.cluster.local.:9001", "web_1.shop.svc.cluster.local:9001"),
            ("10.0.0.7:7400", "10.0.0.7:7400"),
            ("[2001:DB8::0:7]:7400", "[2001:db8::7]:7400"),
            (" 127.0.0.1:0 ", "127.0.0.1:0"),
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("HTTP://app1:8080/", "app1:8080"),
            ("http://app1", "app1:80"),
            ("http://[::1]", "[::1]:80"),
            (":8080", "[::]:8080"),
            ("*:8080", "[::]:8080"),
            ("0.0.0.0:8080", "0.0.0.0:8080"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(means), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_an_error_that_says_what_is() {
        let long = format!("{}:1", "a".repeat(HOST_MAX + 1));
        for bad in [
            "",
            "here",
            "8080",
            "a:",
            "a:b",
            "a:+1",
            "a:65536",
            "a:1:2",
            "::1:8080",
            "::1",
            "[::1]",
            "[::1]8080",
            "[app1]:1",
            "10.0.0:1",
            "256.0.0.1:1",
            "a b:1",
            "a..b:1",
            ".a:1",
            "a/b:1",
            "a:1/path",
            "a:1/",
            "http://a:1/path",
            "ftp://a:1",
            "user@a:1",
            "ä:1",
            "[fe80::1%eth0]:1",
            &long,
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("is HOST:PORT"), "{bad}: {error}");
        }
        assert_eq!(parse("https://a:1"), Err(AddressError::Https));
    }

    #[test]
    fn where_to_listen_is_not_where_others_connect() {
        let reachable = |text: &str| text.parse::<Address>().unwrap().reachable().map(|a| a.to_string()).map_err(|e| e.to_string());
        assert_eq!(reachable("app1:7400").as_deref(), Ok("app1:7400"));
        for any in [":7400", "0.0.0.0:7400", "[::]:7400", "[::ffff:0.0.0.0]:7400"] {
            assert!(reachable(any).unwrap_err().contains("such as app1:7400 or 10.0.0.7:7400"), "{any}");
        }
        assert!(reachable("app1:0").unwrap_err().contains("port 0"));
    }

    #[test]
    fn others_are_told_the_host_by_which_they_reach_the_machine() {
        let told = |text: &str, peer: &str| {
            let told = text.parse::<Address>().unwrap().told_beside(&peer.parse().unwrap());
            told.map(|a| a.to_string()).map_err(|e| e.to_string())
        };
        assert_eq!(told(":8080", "app1:7400").as_deref(), Ok("app1:8080"));
        assert_eq!(told("0.0.0.0:8080", "10.0.0.7:7400").as_deref(), Ok("10.0.0.7:8080"));
        assert_eq!(told("[::]:8080", "127.0.0.1:7400").as_deref(), Ok("127.0.0.1:8080"));
        assert_eq!(told("localhost:8080", "127.0.0.1:7400").as_deref(), Ok("localhost:8080"));
        assert_eq!(told("http://10.0.0.8:8080", "10.0.0.7:7400").as_deref(), Ok("10.0.0.8:8080"));
        assert!(told("localhost:8080", "10.0.0.7:7400").unwrap_err().ends_with("such as 10.0.0.7:8080"));
        assert!(told(":0", "10.0.0.7:7400").unwrap_err().contains("port 0"));
    }

    proptest! {
        #[test]
        fn a_displayed_address_is_the_same_address_and_short_enough(host in "[a-zA-Z0-9._-]{1,249}", port: u16) {
            if let Ok(addr) = format!("{host}:{port}").parse::<Address>() {
                let shown = addr.to_string();
                prop_assert!(shown.len() <= 255);
                prop_assert_eq!(shown.parse::<Address>(), Ok(addr));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", some in "[a:\\[\\]/.0-9]{0,12}") {
            let _ = (text.parse::<Address>(), some.parse::<Address>());
        }

        #[test]
        fn socket_addresses_come_back(ip: IpAddr, port: u16) {
            let addr = Address::from(SocketAddr::new(ip, port));
            prop_assert_eq!(addr.to_string().parse::<Address>(), Ok(addr));
        }
    }
}
