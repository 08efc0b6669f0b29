//! What is asked of the file. Each runs inside a transaction, `now` is the store's clock in milliseconds.

use crate::store::{End, Expect, Loaded, Marker, Node, Put, Row, RowResult, Swept, Touch};
use bytes::Bytes;
use core::time::Duration;
use outlive_core::id::SessionKey;
use outlive_core::stamp::{Life, Stamp};
use rusqlite::{Connection, OptionalExtension, Result, params};

const DAY: i64 = 86_400_000;

/// `duration` from now, rounded up so that nothing ends early.
fn after(now: i64, duration: Duration) -> i64 {
    now.saturating_add(i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX))
}

fn since(now: i64, then: i64) -> Duration {
    Duration::from_millis(u64::try_from(now.saturating_sub(then)).unwrap_or(0))
}

pub(super) fn load(db: &Connection, now: i64, keys: &[SessionKey]) -> Result<Vec<Loaded>> {
    let mut find = db.prepare_cached("SELECT ended, next, stamp, record, written, touched FROM session WHERE key = ?1")?;
    let found = |row: &rusqlite::Row<'_>| {
        if let Some(marker) = marker(row)? {
            return Ok(Loaded::Ended(marker));
        }
        Ok(Loaded::Here(Row {
            stamp: Stamp::from_bytes(row.get(2)?),
            record: Bytes::copy_from_slice(row.get_ref(3)?.as_blob()?),
            age: since(now, row.get(4)?),
            touched: since(now, row.get(5)?),
        }))
    };
    keys.iter().map(|key| Ok(find.query_row([key.bytes()], found).optional()?.unwrap_or(Loaded::Missing))).collect()
}

/// The marker in a row that begins with `ended` and `next`, if it is one.
fn marker(row: &rusqlite::Row<'_>) -> Result<Option<Marker>> {
    let Some(kind) = row.get(0)? else { return Ok(None) };
    Ok(Some(Marker { kind, next: row.get::<_, Option<[u8; 16]>>(1)?.map(SessionKey::from_bytes) }))
}

pub(super) fn put(db: &Connection, now: i64, rows: &[Put]) -> Result<Vec<RowResult>> {
    let mut insert = db.prepare_cached(
        "INSERT INTO session (key, stamp, expires, due, written, touched, user, record) VALUES (?1, ?2, ?3, ?3, ?4, ?4, ?5, ?6)
         ON CONFLICT DO NOTHING",
    )?;
    // Columns that are not set cost no index, so the usual update changes a single page.
    let mut usual = db.prepare_cached(
        "UPDATE session SET stamp = ?2, expires = ?3, written = ?4, touched = ?4, record = ?6
         WHERE key = ?1 AND stamp = ?7 AND due <= ?3 AND user IS ?5",
    )?;
    let mut update = db.prepare_cached(
        "UPDATE session SET stamp = ?2, expires = ?3, due = ?3, written = ?4, touched = ?4, user = ?5, record = ?6
         WHERE key = ?1 AND stamp = ?7",
    )?;
    let mut write = |row: &Put| {
        let (key, stamp, expires) = (row.key.bytes(), row.stamp.to_bytes(), after(now, row.expires_in));
        let record = &row.record[..];
        let written = match row.expect {
            Expect::Absent => insert.execute(params![key, stamp, expires, now, row.user, record])?,
            Expect::Exactly(old) => {
                let values = params![key, stamp, expires, now, row.user, record, old.to_bytes()];
                if usual.execute(values)? == 1 { 1 } else { update.execute(values)? }
            }
        };
        if written == 1 { Ok(RowResult::Applied) } else { why_not(db, &row.key) }
    };
    rows.iter().map(&mut write).collect()
}

/// Why a conditional write found nothing to write to; in the same transaction, so nothing has changed since.
fn why_not(db: &Connection, key: &SessionKey) -> Result<RowResult> {
    let mut find = db.prepare_cached("SELECT ended, next, stamp FROM session WHERE key = ?1")?;
    let found = find.query_row([key.bytes()], |row| {
        Ok(match marker(row)? {
            Some(marker) => RowResult::Ended(marker),
            None => RowResult::Mismatch(Some(Stamp::from_bytes(row.get(2)?))),
        })
    });
    Ok(found.optional()?.unwrap_or(RowResult::Mismatch(None)))
}

pub(super) fn end(db: &Connection, now: i64, ends: &[End]) -> Result<Vec<Marker>> {
    // In an upsert the bare columns are those of the row that is there. The lesser of two is none if one of them is.
    let mut mark = db.prepare_cached(
        "INSERT INTO session (key, ended, next, expires, due, written, touched) VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?5)
         ON CONFLICT DO UPDATE SET
             ended = min(coalesce(ended, excluded.ended), excluded.ended),
             next = min(coalesce(next, excluded.next), coalesce(excluded.next, next)),
             expires = iif(ended IS NULL, excluded.expires, max(expires, excluded.expires)),
             due = min(due, excluded.due), stamp = NULL, user = NULL, record = NULL
         RETURNING ended, next",
    )?;
    let mut leave = |end: &End| {
        let next = end.marker.next.as_ref().map(SessionKey::bytes);
        let values = params![end.key.bytes(), end.marker.kind, next, after(now, end.keep), now];
        Ok(mark.query_row(values, marker)?.unwrap_or(end.marker))
    };
    ends.iter().map(&mut leave).collect()
}

pub(super) fn touch(db: &Connection, now: i64, touches: &[Touch]) -> Result<Vec<RowResult>> {
    let mut usual =
        db.prepare_cached("UPDATE session SET expires = ?3, touched = max(touched, ?4) WHERE key = ?1 AND stamp = ?2 AND due <= ?3")?;
    let mut update =
        db.prepare_cached("UPDATE session SET expires = ?3, due = ?3, touched = max(touched, ?4) WHERE key = ?1 AND stamp = ?2")?;
    let mut note = |touch: &Touch| {
        let (key, stamp, expires) = (touch.key.bytes(), touch.stamp.to_bytes(), after(now, touch.expires_in));
        let ago = i64::try_from(touch.ago.as_millis()).unwrap_or(i64::MAX);
        let values = params![key, stamp, expires, now.saturating_sub(ago)];
        let written = usual.execute(values)? == 1 || update.execute(values)? == 1;
        if written { Ok(RowResult::Applied) } else { why_not(db, &touch.key) }
    };
    touches.iter().map(&mut note).collect()
}

pub(super) fn sweep(db: &Connection, now: i64, limit: usize) -> Result<Swept> {
    // Found and removed under one lock, so nobody writes or touches in between.
    let mut find = db.prepare_cached("SELECT rowid, expires, key, stamp FROM session WHERE due <= ?1 ORDER BY due LIMIT ?2")?;
    let mut delete = db.prepare_cached("DELETE FROM session WHERE rowid = ?1")?;
    let mut later = db.prepare_cached("UPDATE session SET due = expires WHERE rowid = ?1")?;
    let due = find.query_map(params![now, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, Option<[u8; 16]>>(3)?))
    })?;
    let due = due.collect::<Result<Vec<(i64, i64, [u8; 16], _)>>>()?;
    let mut swept = Swept { more: due.len() == limit && limit > 0, ..Swept::default() };
    for (rowid, expires, key, stamp) in due {
        if expires > now {
            later.execute([rowid])?;
            continue;
        }
        delete.execute([rowid])?;
        match stamp {
            Some(stamp) => swept.sessions.push((SessionKey::from_bytes(key), Stamp::from_bytes(stamp))),
            None => swept.markers += 1,
        }
    }
    Ok(swept)
}

pub(super) fn lease(db: &Connection, now: i64, name: &str, holder: Life, ttl: Duration) -> Result<Option<u64>> {
    let holder = holder.bits().to_be_bytes();
    let mut find = db.prepare_cached("SELECT holder, fence, until FROM lease WHERE name = ?1")?;
    let held = find.query_row([name], |row| Ok((row.get::<_, [u8; 8]>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))).optional()?;
    let fence = match held {
        Some((other, _, until)) if until > now && other != holder => return Ok(None),
        Some((_, fence, until)) if until > now => fence,
        Some((_, fence, _)) => fence.saturating_add(1),
        None => 1,
    };
    let mut take = db.prepare_cached("INSERT OR REPLACE INTO lease (name, holder, fence, until) VALUES (?1, ?2, ?3, ?4)")?;
    take.execute(params![name, holder, fence, after(now, ttl)])?;
    Ok(Some(fence.unsigned_abs()))
}

pub(super) fn announce(db: &Connection, now: i64, node: &Node, lease: Duration) -> Result<Option<u64>> {
    db.prepare_cached("DELETE FROM node WHERE until <= ?1")?.execute([now.saturating_sub(DAY)])?;
    let life = node.life.bits().to_be_bytes();
    let before = db.prepare_cached("SELECT beat FROM node WHERE life = ?1")?.query_row([life], |row| row.get::<_, i64>(0)).optional()?;
    let mut write =
        db.prepare_cached("INSERT OR REPLACE INTO node (life, name, peer, http, beat, until) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    write.execute(params![life, node.name, node.peer, node.http, node.beat.cast_signed(), after(now, lease)])?;
    Ok(before.map(i64::cast_unsigned))
}

pub(super) fn nodes(db: &Connection, now: i64, lapsed: Duration) -> Result<Vec<Node>> {
    let lapsed = i64::try_from(lapsed.as_millis()).unwrap_or(DAY).min(DAY);
    let mut find = db.prepare_cached("SELECT life, name, peer, http, beat FROM node WHERE until > ?1 ORDER BY life")?;
    let found = find.query_map([now.saturating_sub(lapsed)], |row| {
        let (life, beat) = (Life::new(u64::from_be_bytes(row.get(0)?)), row.get::<_, i64>(4)?.cast_unsigned());
        Ok(Node { life, name: row.get(1)?, peer: row.get(2)?, http: row.get(3)?, beat })
    })?;
    found.collect()
}

pub(super) fn withdraw(db: &Connection, life: Life) -> Result<()> {
    db.prepare_cached("DELETE FROM node WHERE life = ?1")?.execute([life.bits().to_be_bytes()])?;
    Ok(())
}

pub(super) fn known_secret(db: &Connection) -> Result<Option<[u8; 32]>> {
    db.prepare_cached("SELECT secret FROM cluster")?.query_row([], |row| row.get(0)).optional()
}

pub(super) fn secret(db: &Connection, proposal: &[u8; 32]) -> Result<[u8; 32]> {
    db.prepare_cached("INSERT INTO cluster (one, secret) VALUES (1, ?1) ON CONFLICT DO NOTHING")?.execute([proposal])?;
    db.prepare_cached("SELECT secret FROM cluster")?.query_row([], |row| row.get(0))
}

pub(super) fn probe(db: &Connection) -> Result<()> {
    db.prepare_cached("SELECT 1 FROM session LIMIT 1")?.query_row([], |_| Ok(())).optional().map(drop)
}
