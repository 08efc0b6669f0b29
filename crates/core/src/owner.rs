//! The owner's side of a commit: the delta that goes out, and when it is durable.

use crate::config::{Checked, Durability, Level};
use crate::copy::{Copy, Orphan, Own};
use crate::cx::Cx;
use crate::late::{answer_late, late_done};
use crate::limits::ORPHANS_MAX;
use crate::link::{Sent, What};
use crate::output::{Failure, Live, Output};
use crate::record::{Change, Record};
use crate::stamp::{Life, Stamp};
use crate::wire::{LateResult, Message, Set};

/// Cuts the delta of the commit just made, for every holder whose copy it fits; the others get the record.
pub(crate) fn send_delta<L>(cx: &mut Cx<'_>, copy: &mut Copy<L>, changes: &[Change]) {
    let Some(own) = copy.own.as_mut() else { return };
    let (claim, version) = (own.claim, own.version);
    // The first commit of a claim builds on the state that the claim adopted.
    let base = if version == 1 { Some(own.adopted) } else { None };
    for h in &mut own.holders {
        let Some(link) = cx.view.link(h.life).filter(|_| !h.dropping) else { continue };
        let sent = Sent { key: cx.key, claim, version, attempt: h.attempt, what: What::Copy };
        if h.sent == Some(version - 1) && (version > 1 || own.adopted.version > 0) {
            let sets = changes.iter().map(|c| Set { name: &c.name, value: c.value.as_deref().map(serde_bytes::Bytes::new) }).collect();
            link.send(&Message::Delta { key: cx.key, claim, base, version, sets }, Some(sent), cx.out);
        } else {
            let record = copy.record.to_wire(cx.now);
            link.send(&Message::Full { key: cx.key, claim, stored: copy.stored, record }, Some(sent), cx.out);
        }
        h.sent = Some(version);
    }
    own.touched = cx.now;
}

/// Raises what is durable to what the level asks for, and answers those who waited for it; whether it rose.
pub(crate) fn settle_durable<L>(cx: &mut Cx<'_>, copy: &mut Copy<L>) -> bool {
    let Copy { own: Some(own), record, orphans, stored, .. } = copy else { return false };
    // Whoever makes more copies than this node asks for does not make its commits wait for them.
    let n = usize::from(cx.config.backups);
    let reached = match cx.config.durability {
        Durability::Owner => Some(own.version),
        Durability::Backup => own.by_first(n).or_else(|| own.adopted_by_first(n).then_some(0)),
        Durability::Store => own.in_store(*stored),
    };
    if reached <= own.durable {
        return false;
    }
    own.durable = reached;
    let level = level_of(cx.config, own);
    let durable = reached.unwrap_or(0);
    let tip = own.durable_tip();
    // The list got shorter while commits waited for it. They stay, and more copies may come: but nobody may call them acknowledged.
    let short = cx.config.durability == Durability::Backup && own.list.len() < usize::from(cx.config.min_backups);
    if own.awaited {
        own.awaited = durable < own.version;
        cx.out.push(match short {
            false => Output::Durable { key: cx.key, claim: own.claim, version: durable, tip, level },
            true => Output::Failed { key: cx.key, claim: own.claim, version: durable, failure: Failure::Unknown },
        });
    }
    if durable == own.version {
        orphans.retain(|o| {
            let included = record.lineage.includes(o.stamp);
            if included {
                settle(cx, o, o.is_kept(record).then_some((tip, level)));
            }
            !included
        });
    }
    let claim = own.claim;
    own.late.retain(|late| {
        if late.version <= durable {
            let result = if short { LateResult::Unknown } else { late_done(claim.at(late.version), level) };
            answer_late(cx, late, result);
        }
        late.version > durable
    });
    true
}

/// Answers the commits of a former ownership: with the newest commit and the level at which they are in it, or that nobody can tell.
pub(crate) fn settle(cx: &mut Cx<'_>, o: &Orphan, kept: Option<(Stamp, Level)>) {
    let (claim, version) = (o.claim, o.version);
    cx.out.push(match kept {
        Some((tip, level)) => Output::Durable { key: cx.key, claim, version, tip, level },
        // Either a merge preferred other values or a later commit built on these and replaced them: dots do not tell which.
        None => Output::Failed { key: cx.key, claim, version, failure: Failure::Unknown },
    });
    for late in &o.late {
        let result = kept.map_or(LateResult::Unknown, |(_, level)| late_done(claim.at(late.version), level));
        answer_late(cx, late, result);
    }
}

/// Remembers the commits of an ownership that ends until it is known what becomes of them.
pub(crate) fn orphan(cx: &mut Cx<'_>, orphans: &mut Vec<Orphan>, own: &mut Own<impl Live>, record: &Record) {
    orphans.extend(Orphan::of(own, record));
    if orphans.len() > ORPHANS_MAX {
        settle(cx, &orphans.remove(0), None);
    }
}

/// The level of what is durable.
pub(crate) fn level_of<L>(config: &Checked, own: &Own<L>) -> Level {
    match config.durability {
        Durability::Store => Level::Store,
        Durability::Owner => Level::Owner,
        Durability::Backup => {
            // The list may have grown since: only those who have it count.
            let has = |l: &&Life| own.holders.iter().any(|h| h.life == **l && h.acked >= own.durable);
            match own.list.iter().take(usize::from(config.backups)).filter(has).count() {
                0 => Level::Owner,
                n => Level::Backup(n as u8),
            }
        }
    }
}
