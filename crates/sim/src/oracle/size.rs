//! I15: no record is larger than a session may be.

use super::Seen;

pub(super) fn wrong(seen: &Seen<'_>, record_max: usize) -> Option<String> {
    seen.record.size().fits(record_max).err().map(|excess| format!("I15 {excess}"))
}
