//! The only place here that asks the system for the time of day; everything else uses tokio's clock.

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the demo prints the nodes' own times beside each other")]
pub(crate) fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
