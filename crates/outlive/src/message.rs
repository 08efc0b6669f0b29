//! What a session reads and writes of HTTP messages, as text and bytes. Only an adapter, such as [`tower`](crate::tower), knows a
//! framework, or whose types the messages are: it gives the session a [`Head`] and [`Headers`].

use std::borrow::Cow;

/// The headers of a request or a response, by their names in lower case.
pub(crate) trait Headers {
    /// The names that are there.
    fn names(&self) -> impl Iterator<Item = &str>;
    /// The values of a name, in their order.
    fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]>;
    /// Adds a value to those that are there; nothing, if it cannot be a header's. Text of this program can be.
    fn add(&mut self, name: &str, value: Cow<'static, str>);
    /// Removes all values.
    fn remove(&mut self, name: &str);

    /// The first value, if it is text.
    fn text(&self, name: &str) -> Option<&str> {
        core::str::from_utf8(self.all(name).next()?).ok()
    }

    /// Puts a value in place of those that are there.
    fn set(&mut self, name: &str, value: Cow<'static, str>) {
        self.remove(name);
        self.add(name, value);
    }
}

/// A request, as far as the session cares.
#[derive(Debug)]
pub(crate) struct Head<'a, H> {
    pub(crate) method: &'a str,
    /// The host in its URI, where that has one; else the header `host` says it.
    pub(crate) authority: Option<&'a str>,
    pub(crate) headers: &'a H,
}
