//! What membership packets look like: SWIM's own messages and lists of member records.
//!
//! A packet is a kind byte and then either one SWIM message (`SWIM`) or a sender's record followed by others' (`TELL`, and `ASK`
//! with the sum of what the sender knows). Numbers are big endian; a text is a length byte and UTF-8.

use bytes::{Buf, BufMut};
use core::fmt;
use foca::{Codec, Header, Message, State as Swim};
use std::sync::Arc;
use thiserror::Error;

use super::Node;
use crate::limits::BACKUPS_MAX;
use crate::name::{NameError, check_node};
use crate::placement::name_hash;
use crate::stamp::Life;

/// Bytes of one packet.
pub(super) const PACKET_MAX: usize = 16 << 10;
/// Bytes of a text: of either of a node's addresses; its name is shorter.
pub(super) const TEXT_MAX: usize = 255;

pub(super) const SWIM: u8 = 0;
pub(super) const TELL: u8 = 1;
pub(super) const ASK: u8 = 2;

/// Why a packet was not taken. All of them are the peer's fault, and none changed anything: close the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PacketError {
    /// It is not a membership packet of this version.
    #[error("malformed membership packet of {len} bytes")]
    Malformed {
        /// Bytes of the packet.
        len: usize,
    },
    /// It is longer than a packet may be.
    #[error("membership packet of {len} bytes, at most {PACKET_MAX}")]
    TooLong {
        /// Bytes of the packet.
        len: usize,
    },
    /// It speaks for another life than the one at the other end of the link.
    #[error("membership packet in the name of another life")]
    ForeignSender,
    /// It would make the node know more names than it keeps.
    #[error("more than {0} names known")]
    TooManyMembers(usize),
}

/// Why a [`Node`] cannot be a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NodeError {
    /// It cannot be called that. Nothing changed; the caller's (or the peer's) fault.
    #[error("its name {0}")]
    Name(#[from] NameError),
    /// The address is empty. Nothing changed; the caller's (or the peer's) fault.
    #[error("it is empty")]
    Empty,
    /// An address is too long. Nothing changed; the caller's (or the peer's) fault.
    #[error("it has {len} bytes, and may have {TEXT_MAX}")]
    TooLong {
        /// Its bytes.
        len: usize,
    },
    /// It wants more copies than there may be. Nothing changed; the peer's fault.
    #[error("{0} backups, at most {BACKUPS_MAX}")]
    Backups(u8),
}

impl Node {
    pub(super) fn check(&self) -> Result<(), NodeError> {
        check_node(&self.name)?;
        if self.addr.is_empty() {
            return Err(NodeError::Empty);
        }
        if self.backups > BACKUPS_MAX {
            return Err(NodeError::Backups(self.backups));
        }
        match [&self.addr, &self.http].iter().map(|text| text.len()).find(|&len| len > TEXT_MAX) {
            Some(len) => Err(NodeError::TooLong { len }),
            None => Ok(()),
        }
    }
}

/// Whom SWIM speaks of. A node that was declared dead and lives, or begins to leave, goes on under the next renewal; one that
/// restarted has a greater boot. Of one name the greatest (boot, renewals, life) counts.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) node: Arc<Node>,
    pub(super) name_hash: u64,
    pub(super) renewals: u32,
    pub(super) leaving: bool,
    pub(super) handed_over: bool,
}

impl Identity {
    pub(super) fn new(node: Node) -> Identity {
        Identity { name_hash: name_hash(&node.name), node: Arc::new(node), renewals: 0, leaving: false, handed_over: false }
    }

    pub(super) fn life(&self) -> Life {
        self.node.life
    }

    pub(super) fn order(&self) -> (u64, u32, Life) {
        (self.node.boot, self.renewals, self.node.life)
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Identity) -> bool {
        self.name_hash == other.name_hash && self.order() == other.order()
    }
}

impl Eq for Identity {}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}.{}", self.node.name, self.node.boot, self.renewals)
    }
}

impl foca::Identity for Identity {
    // SWIM's "address" is what stays the same over restarts: the name.
    type Addr = u64;

    fn renew(&self) -> Option<Identity> {
        let renewals = self.renewals.checked_add(1)?;
        Some(Identity { renewals, ..self.clone() })
    }

    fn addr(&self) -> u64 {
        self.name_hash
    }

    fn win_addr_conflict(&self, adversary: &Identity) -> bool {
        self.order() > adversary.order()
    }
}

pub(super) type Record = foca::Member<Identity>;

/// A whole packet, checked before anything of it is used.
pub(super) enum Packet<'a> {
    /// A SWIM message; the bytes go to foca, the rest is what is to be looked at before.
    Swim { bytes: &'a [u8], src: Identity, records: Vec<Record> },
    /// Records, the sender's own first; `ask` wants an answer and tells what the sender knows.
    Records { ask: Option<u64>, records: Vec<Record> },
}

impl<'a> Packet<'a> {
    pub(super) fn parse(packet: &'a [u8]) -> Result<Packet<'a>, PacketError> {
        let malformed = PacketError::Malformed { len: packet.len() };
        if packet.len() > PACKET_MAX {
            return Err(PacketError::TooLong { len: packet.len() });
        }
        Packet::read(packet).ok_or(malformed)
    }

    fn read(packet: &'a [u8]) -> Option<Packet<'a>> {
        let mut rest = packet;
        match u8::take(&mut rest)? {
            SWIM => {
                let bytes = rest;
                let src = read_header(&mut rest)?.src;
                // A message that carries no updates has no count either.
                let records = if rest.is_empty() { Vec::new() } else { read_records(&mut rest)? };
                rest.is_empty().then_some(Packet::Swim { bytes, src, records })
            }
            kind @ (TELL | ASK) => {
                let ask = if kind == ASK { Some(u64::take(&mut rest)?) } else { None };
                let records = read_records(&mut rest)?;
                (rest.is_empty() && !records.is_empty()).then_some(Packet::Records { ask, records })
            }
            _ => None,
        }
    }
}

/// Splits `records` into packets; each starts with the sender's own record, the first one asks if `ask` is given.
pub(super) fn write_records(me: &Record, records: &[Record], ask: Option<u64>) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut rest = records;
    let mut ask = ask;
    loop {
        let mut packet = Vec::with_capacity(256);
        match ask.take() {
            Some(sum) => {
                packet.put_u8(ASK);
                packet.put_u64(sum);
            }
            None => packet.put_u8(TELL),
        }
        let count_at = packet.len();
        packet.put_u16(0);
        write_record(me, &mut packet);
        let mut count: u16 = 1;
        while let Some((record, others)) = rest.split_first() {
            if packet.len() + record_len(record) > PACKET_MAX {
                break;
            }
            write_record(record, &mut packet);
            count += 1;
            rest = others;
        }
        if let Some(place) = packet.get_mut(count_at..count_at + 2) {
            place.copy_from_slice(&count.to_be_bytes());
        }
        packets.push(packet);
        if rest.is_empty() {
            return packets;
        }
    }
}

fn read_records(from: &mut &[u8]) -> Option<Vec<Record>> {
    let count = u16::take(from)?;
    // No allocation by announced length: a record is at least 40 bytes.
    let mut records = Vec::with_capacity(usize::from(count).min(from.len() / 40 + 1));
    for _ in 0..count {
        records.push(read_record(from)?);
    }
    Some(records)
}

/// A number at the front of a slice.
trait Take: Sized {
    fn take(from: &mut &[u8]) -> Option<Self>;
}

macro_rules! take {
    ($($number:ty),*) => {$(
        impl Take for $number {
            fn take(from: &mut &[u8]) -> Option<Self> {
                let (bytes, rest) = from.split_first_chunk()?;
                *from = rest;
                Some(Self::from_be_bytes(*bytes))
            }
        }
    )*};
}

take!(u8, u16, u32, u64);

fn read_text(from: &mut &[u8]) -> Option<Box<str>> {
    let len = usize::from(u8::take(from)?);
    let (text, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(core::str::from_utf8(text).ok()?.into())
}

fn write_text(text: &str, to: &mut impl BufMut) {
    // `Node::check` keeps every text under 256 bytes.
    to.put_u8(text.len() as u8);
    to.put_slice(text.as_bytes());
}

const OBSERVER: u8 = 1;
const LEAVING: u8 = 2;
const STORES: u8 = 4;
const HANDED_OVER: u8 = 8;

fn read_identity(from: &mut &[u8]) -> Option<Identity> {
    let (name, addr, http) = (read_text(from)?, read_text(from)?, read_text(from)?);
    let (boot, life, zone) = (u64::take(from)?, Life::new(u64::take(from)?), u64::take(from)?);
    let (renewals, backups, flags) = (u32::take(from)?, u8::take(from)?, u8::take(from)?);
    let node = Node { name, addr, boot, life, zone, observer: flags & OBSERVER != 0, http, backups, stores: flags & STORES != 0 };
    if node.check().is_err() || flags > OBSERVER | LEAVING | STORES | HANDED_OVER {
        return None;
    }
    let (leaving, handed_over) = (flags & LEAVING != 0, flags & HANDED_OVER != 0);
    Some(Identity { renewals, leaving, handed_over, ..Identity::new(node) })
}

fn write_identity(id: &Identity, to: &mut impl BufMut) {
    let node = &id.node;
    write_text(&node.name, to);
    write_text(&node.addr, to);
    write_text(&node.http, to);
    to.put_u64(node.boot);
    to.put_u64(node.life.bits());
    to.put_u64(node.zone);
    to.put_u32(id.renewals);
    to.put_u8(node.backups);
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let (observer, stores) = (flag(node.observer, OBSERVER), flag(node.stores, STORES));
    to.put_u8(observer | stores | flag(id.leaving, LEAVING) | flag(id.handed_over, HANDED_OVER));
}

fn identity_len(id: &Identity) -> usize {
    3 + id.node.name.len() + id.node.addr.len() + id.node.http.len() + 8 + 8 + 8 + 4 + 1 + 1
}

fn read_record(from: &mut &[u8]) -> Option<Record> {
    let state = match u8::take(from)? {
        0 => Swim::Alive,
        1 => Swim::Suspect,
        2 => Swim::Down,
        _ => return None,
    };
    let incarnation = u16::take(from)?;
    Some(Record::new(read_identity(from)?, incarnation, state))
}

fn write_record(record: &Record, to: &mut impl BufMut) {
    to.put_u8(match record.state() {
        Swim::Alive => 0,
        Swim::Suspect => 1,
        Swim::Down => 2,
    });
    to.put_u16(record.incarnation());
    write_identity(record.id(), to);
}

fn record_len(record: &Record) -> usize {
    3 + identity_len(record.id())
}

// The incarnation comes first, so that `Membership` can read its own from what foca sends.
fn read_header(from: &mut &[u8]) -> Option<Header<Identity>> {
    let src_incarnation = u16::take(from)?;
    let (src, dst) = (read_identity(from)?, read_identity(from)?);
    let (tag, probe_number) = (u8::take(from)?, u8::take(from)?);
    let message = match tag {
        0 => Message::Ping(probe_number),
        1 => Message::Ack(probe_number),
        2 => Message::PingReq { target: read_identity(from)?, probe_number },
        3 => Message::IndirectPing { origin: read_identity(from)?, probe_number },
        4 => Message::IndirectAck { target: read_identity(from)?, probe_number },
        5 => Message::ForwardedAck { origin: read_identity(from)?, probe_number },
        6 => Message::Gossip,
        7 => Message::TurnUndead,
        _ => return None,
    };
    Some(Header { src, src_incarnation, dst, message })
}

/// Tag, probe number and third party of a message; nothing for those that are never sent, because record lists do their work.
fn parts(message: &Message<Identity>) -> Option<(u8, u8, Option<&Identity>)> {
    Some(match message {
        Message::Ping(number) => (0, *number, None),
        Message::Ack(number) => (1, *number, None),
        Message::PingReq { target, probe_number } => (2, *probe_number, Some(target)),
        Message::IndirectPing { origin, probe_number } => (3, *probe_number, Some(origin)),
        Message::IndirectAck { target, probe_number } => (4, *probe_number, Some(target)),
        Message::ForwardedAck { origin, probe_number } => (5, *probe_number, Some(origin)),
        Message::Gossip => (6, 0, None),
        Message::TurnUndead => (7, 0, None),
        Message::Announce | Message::Feed | Message::Broadcast => return None,
    })
}

fn header_len(header: &Header<Identity>) -> usize {
    let third = parts(&header.message).and_then(|(_, _, third)| third).map_or(0, identity_len);
    2 + identity_len(&header.src) + identity_len(&header.dst) + 2 + third
}

/// foca's view of the format above.
pub(super) struct Wire;

/// A message that does not fit or is never used; foca keeps its state.
#[derive(Debug, Error)]
#[error("membership message cannot be coded")]
pub(super) struct WireError;

impl Codec<Identity> for Wire {
    type Error = WireError;

    fn encode_header(&mut self, header: &Header<Identity>, mut buf: impl BufMut) -> Result<(), WireError> {
        let (tag, number, third) = parts(&header.message).ok_or(WireError)?;
        if buf.remaining_mut() < header_len(header) {
            return Err(WireError);
        }
        buf.put_u16(header.src_incarnation);
        write_identity(&header.src, &mut buf);
        write_identity(&header.dst, &mut buf);
        buf.put_u8(tag);
        buf.put_u8(number);
        if let Some(third) = third {
            write_identity(third, &mut buf);
        }
        Ok(())
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Identity>, WireError> {
        decode(buf, read_header)
    }

    fn encode_member(&mut self, member: &Record, mut buf: impl BufMut) -> Result<(), WireError> {
        if buf.remaining_mut() < record_len(member) {
            return Err(WireError);
        }
        write_record(member, &mut buf);
        Ok(())
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Record, WireError> {
        decode(buf, read_record)
    }
}

fn decode<T>(mut buf: impl Buf, read: impl FnOnce(&mut &[u8]) -> Option<T>) -> Result<T, WireError> {
    // foca hands out contiguous data, so the chunk is all there is.
    let mut rest = buf.chunk();
    let before = rest.len();
    let value = read(&mut rest).ok_or(WireError)?;
    let used = before - rest.len();
    buf.advance(used);
    Ok(value)
}
