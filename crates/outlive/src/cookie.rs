//! How a session's id and version token travel: in cookies, or in headers of their own. Here is what an application chooses about them;
//! [`carrier`] reads and sets them, [`origin`] says where a request comes from.
//!
//! The id has a cookie of its own that is set once, when the id is born, and neither set again nor cleared: in one cookie with the token
//! or the route, a response that began before a login would put the old id back and log the user out.

mod carrier;
mod origin;

pub(crate) use carrier::{Carrier, Mode, Place};

use crate::settings::{Spelling, or_why, table, words};
use carrier::Names;
use cookie::SameSite;
use std::borrow::Cow;

/// Characters of a cookie's name.
pub(crate) const NAME_MAX: usize = 48;

table! {
    /// How the session's id travels. The default is `__Host-session; Secure; HttpOnly; SameSite=Lax; Path=/`, and beside it
    /// `__Host-session-v` with the version token and `__Host-session-r` with `.NODE`, the node that serves the session now. The last one is a
    /// hint for balancers; until it comes, the id's own cookie ends in the node where the id was born.
    ///
    /// Two more are there for a while or in special cases. For five minutes after a login or a rotation `__Host-session-s` holds the new id
    /// as well, so that a response to an earlier visit that comes late cannot undo it. `__Host-session-x` holds a session that began in a
    /// request from another site, to which the browser may not have given the visitor's own: see [`strict`](Cookie::strict).
    ///
    /// Chromium (seen with 156) and Firefox keep these cookies on plain `http://localhost`, Safari does not. So in a *debug build*, when the
    /// request's host is loopback and no proxy has forwarded it, the cookie is `session-dev` without `Secure`. A release build never decides
    /// by the host: behind a proxy that sends `Host: 127.0.0.1` a production site would lose `Secure` unseen. Set
    /// [`danger_plain_http`](Cookie::danger_plain_http) there if it has to be.
    #[derive(Eq)]
    pub struct Cookie {
        "cookie.name" name: Cow<'static, str>, if |name| check_name(name)
            => "1 to 48 letters, digits, `-`, `_`, `.`; otherwise `__Host-` and the namespace, `__Secure-` with a domain or a path";
        "cookie.secure" secure: Secure = Secure::Auto => "`auto` or `danger_plain_http`";
        "cookie.same_site" same_site: Site = Site::Lax => "`lax`, `strict`, or `none` for a front end on another site";
        "cookie.domain" domain: Cow<'static, str>, if |domain| check_domain(domain)
            => "A domain like `example.com`, whose hosts then share the cookie; otherwise this host alone has it";
        "cookie.path" below: Cow<'static, str> = "/".into(), if |path| check_path(path)
            => "Requests below this path alone bring the cookie";
        "cookie.header" header: Header, if |header| or_why(HeaderNames::new(&header.name).ok_or("is not a header's name"))
            => "A header that carries the session beside the cookie, for clients that are not browsers; otherwise none";
    }
}

/// With which requests from other sites the browser sends the cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    Lax,
    Strict,
    None,
}

/// Whether it works over plain HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Secure {
    Auto,
    DangerPlainHttp,
}

words! {
    Site: "lax" Site::Lax, "strict" Site::Strict, "none" Site::None;
    Secure: "auto" Secure::Auto, "danger_plain_http" Secure::DangerPlainHttp;
}

/// A header that carries the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    name: Cow<'static, str>,
    /// There are no cookies.
    only: bool,
}

impl Spelling for Header {
    const UNIT: &'static str = "NAME";

    fn read(text: &str) -> Result<Header, String> {
        Ok(Header { name: text.to_owned().into(), only: false })
    }

    fn write(&self) -> String {
        self.name.to_string()
    }
}

impl Cookie {
    /// The default cookie.
    #[must_use]
    pub const fn new() -> Cookie {
        Cookie { name: None, secure: None, same_site: None, domain: None, below: None, header: None }
    }

    fn is_plain_http(&self) -> bool {
        self.secure() == Secure::DangerPlainHttp
    }

    /// Headers instead of cookies, for clients that are not browsers: `name` carries the id in requests and responses, `name-v` the
    /// version token, `name-r` the node. Such a client keeps what it is given and sends the last of each back.
    #[must_use]
    pub fn header(name: impl Into<Cow<'static, str>>) -> Cookie {
        Cookie { header: Some(Header { name: name.into(), only: true }), ..Cookie::new() }
    }

    /// Headers beside the cookies, for a browser and a mobile client that share sessions: a request that brings the header `name`, empty
    /// when it has no session yet, is answered by headers as in [`header`](Cookie::header), and its cookies are not looked at; every
    /// other request has cookies.
    #[must_use]
    pub fn or_header(mut self, name: impl Into<Cow<'static, str>>) -> Cookie {
        self.header = Some(Header { name: name.into(), only: false });
        self
    }

    /// Another name: 1 to 48 characters of a token. What goes with it is called `name-v`, `name-r`, `name-s` and `name-x` (`NAME-V` and so
    /// on where the name is in capitals).
    #[must_use]
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Cookie {
        self.name = Some(name.into());
        self
    }

    /// Gives up `Secure` and the prefix `__Host-`, so that the cookie works over plain HTTP, where everybody on the way can read and
    /// replace it.
    #[must_use]
    pub fn danger_plain_http(mut self) -> Cookie {
        self.secure = Some(Secure::DangerPlainHttp);
        self
    }

    /// `Domain`: the hosts below this one have the session as well. A cookie with a domain cannot have the prefix `__Host-`, so it is
    /// called `__Secure-session`; every host of the domain can then read and replace it.
    #[must_use]
    pub fn domain(mut self, domain: impl Into<Cow<'static, str>>) -> Cookie {
        self.domain = Some(domain.into());
        self
    }

    /// `Path`: requests below this path alone bring the session. As with [`domain`](Cookie::domain) the name becomes `__Secure-session`.
    /// It separates nothing that an attacker could not get around; two applications on one host need two names.
    #[must_use]
    pub fn path(mut self, path: impl Into<Cow<'static, str>>) -> Cookie {
        self.below = Some(path.into());
        self
    }

    /// `SameSite=Strict`: the browser keeps the cookie away from every request that another site began, a followed link among them.
    ///
    /// With `Lax`, the default, that is so for POSTs alone: the return of an OpenID provider (`form_post`) or of 3-D Secure. What such a
    /// request's handler sets must not take the place of the visitor's own session, which it cannot see. So a session that begins in it
    /// is kept in a cookie of its own, `name-x`, which counts when the visitor has no other; a [`login`](crate::Session::login) or a
    /// [`rotate`](crate::Session::rotate) in such a request is taken at its word and does take its place. To go on with the visitor's
    /// own session, respond with 303 to a page of yours, and do there what was to be done.
    #[must_use]
    pub fn strict(mut self) -> Cookie {
        self.same_site = Some(Site::Strict);
        self
    }

    /// `SameSite=None; Partitioned`: for a front end on another site, which asks with credentials.
    ///
    /// With it comes CORS: put the layer that answers it (tower-http's `CorsLayer`, with the front end's origin, not `*`, and
    /// credentials allowed) *outside* of the session's, added after it. A preflight carries no cookie, opens no session and need not
    /// reach the application. Without `SameSite=Lax` the browser sends the cookie with every cross-site request, so check `Origin`
    /// where something is changed. A front end that is no browser, or one that keeps what it is given, can have headers instead:
    /// [`Cookie::header`], which CORS then has to list as exposed and allowed.
    #[must_use]
    pub fn cross_site(mut self) -> Cookie {
        self.same_site = Some(Site::None);
        self
    }

    /// The names for a namespace, or why there are none.
    pub(crate) fn resolve(&self, namespace: &str) -> Result<Carrier, String> {
        if let Some(error) = self.wrong().into_iter().chain(self.clash()).next() {
            return Err(error);
        }
        let bound = self.bound().is_some();
        let usual = match &self.name {
            Some(name) => name.to_string(),
            None if self.is_plain_http() => namespace.to_owned(),
            None if bound => format!("__Secure-{namespace}"),
            None => format!("__Host-{namespace}"),
        };
        let headers = match &self.header {
            Some(header) => Some(HeaderNames::new(&header.name).ok_or("cookie.header is not a header's name")?),
            None => None,
        };
        let same_site = match self.same_site() {
            Site::Lax => SameSite::Lax,
            Site::Strict => SameSite::Strict,
            Site::None => SameSite::None,
        };
        let path = &*self.below();
        let domain = self.domain.as_deref();
        let dev = format!("{}-dev", &usual[prefix(&usual).len()..]);
        // A front end on another site cannot have a cookie without `Secure`, and `localhost` has no domain.
        let dev_site = if self.same_site() == Site::None { SameSite::Lax } else { same_site };
        let loopback = Names::new(dev, path, None, false, dev_site);
        let usual = Names::new(usual, path, domain, !self.is_plain_http(), same_site);
        Ok(Carrier::new(loopback, usual, !self.is_plain_http(), self.same_site())
            .with_headers(headers, self.header.as_ref().is_some_and(|header| header.only)))
    }

    /// What in it does not go together.
    pub(crate) fn clash(&self) -> Option<String> {
        if let Some(name) = &self.name {
            let prefix = prefix(name);
            if self.is_plain_http() && !prefix.is_empty() {
                return Some(format!("cookie.name is {name:?}, and no browser takes that prefix over plain HTTP"));
            }
            if let (true, Some(setting)) = (prefix.eq_ignore_ascii_case("__Host-"), self.bound()) {
                let rest = &name[prefix.len()..];
                return Some(format!(
                    "cookie.name is {name:?}, and no browser takes that prefix with {setting}: name it `__Secure-{rest}`"
                ));
            }
        }
        let cross_site = self.is_plain_http() && self.same_site() == Site::None;
        cross_site.then(|| "cookie.secure is `danger_plain_http`, and browsers send a cross-site cookie over HTTPS only".to_owned())
    }

    /// The setting that binds the cookie to something else than this host.
    fn bound(&self) -> Option<&'static str> {
        match &self.domain {
            Some(_) => Some("cookie.domain"),
            None => (self.below() != "/").then_some("cookie.path"),
        }
    }
}

/// What the names of cookies and headers are made of.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

fn check_name(name: &str) -> Result<(), String> {
    match (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(is_token) {
        true => Ok(()),
        false => Err(format!("must be 1 to {NAME_MAX} letters, digits or `-_.`")),
    }
}

fn check_domain(domain: &str) -> Result<(), String> {
    let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if domain.parse::<core::net::IpAddr>().is_ok() {
        return Err("an address has no hosts below it: leave it out".to_owned());
    }
    if domain.len() > 253 || !domain.contains('.') || !domain.split('.').all(label) {
        return Err("must be a domain like `example.com`".to_owned());
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), String> {
    match path.starts_with('/') && path.len() <= 256 && path.bytes().all(|b| b.is_ascii_graphic() && b != b';') {
        true => Ok(()),
        false => Err("must be a path like `/shop`, of 256 characters at most and without `;`".to_owned()),
    }
}

fn prefix(name: &str) -> &str {
    let known = ["__Host-", "__Secure-"].into_iter();
    known.filter_map(|p| name.get(..p.len()).filter(|start| start.eq_ignore_ascii_case(p))).next().unwrap_or("")
}

/// The headers that carry a session instead of cookies.
#[derive(Debug)]
pub(crate) struct HeaderNames {
    id: String,
    token: String,
    route: String,
}

impl HeaderNames {
    fn new(name: &str) -> Option<HeaderNames> {
        let fits = (1..=256).contains(&name.len()) && name.bytes().all(is_token);
        let header = |end: &str| format!("{}{end}", name.to_ascii_lowercase());
        fits.then(|| HeaderNames { id: header(""), token: header("-v"), route: header("-r") })
    }
}

#[cfg(test)]
mod tests;
