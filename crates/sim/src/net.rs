//! Connections like TCP: bytes in order, per direction; refused by a dead process, silent across a cut. What is lost, doubled,
//! swapped or garbled inside of one is whole frames or their headers: the engine's count of frames must notice each.

use crate::options::{Fault, MS, S};
use crate::world::{Ev, World};
use outlive_core::engine::LinkEvent;
use outlive_core::output::LinkId;
use outlive_core::stamp::Life;
use outlive_core::wire::frame_len;
use std::collections::VecDeque;

/// One connection between two processes.
#[derive(Debug)]
pub(crate) struct Conn {
    /// Node and generation; the first one connected.
    pub(crate) ends: [(usize, u32); 2],
    pub(crate) up: [bool; 2],
    pub(crate) closed: [bool; 2],
    queue: [VecDeque<(i64, Vec<u8>)>; 2],
    buffer: [Vec<u8>; 2],
    last: [i64; 2],
    blocked: Option<i64>,
    /// Whether something was done to what this side has sent.
    garbled: [bool; 2],
}

/// The link of one end.
pub(crate) fn link(conn: usize, side: usize) -> LinkId {
    LinkId((conn * 2 + side) as u64)
}

impl World {
    pub(crate) fn delay(&mut self, from: usize, to: usize) -> i64 {
        let (base, jitter) = self.opts.delay;
        let one = base + self.rng.below(jitter as u64 + 1) as i64;
        one * self.slow_pair[from][to]
    }

    /// Tries to connect; the result comes as an event.
    pub(crate) fn connect(&mut self, from: usize, to: usize, want: Option<Life>) {
        let Some(p) = self.nodes[from].proc.as_mut() else { return };
        if from == to || p.connecting.contains(&to) {
            return;
        }
        p.connecting.insert(to);
        let generation = p.generation;
        let rtt = 2 * self.delay(from, to) + MS / 5;
        self.at(rtt, Ev::Connect { from, generation, to, want });
    }

    pub(crate) fn connected(&mut self, from: usize, generation: u32, to: usize, want: Option<Life>) {
        if self.cut[from][to] || self.cut[to][from] || self.nodes[to].proc.as_ref().is_some_and(|p| p.paused.is_some()) {
            self.at(3 * S, Ev::ConnectTimeout { from, generation, to });
            return;
        }
        p_forget(self.proc_mut(from, generation), to);
        let Some(other) = self.nodes[to].proc.as_ref() else {
            match want {
                Some(life) => {
                    self.log(from, || format!("connect to n{to} refused"));
                    self.call(from, |e, now, out| e.handle_refused(now, life, out));
                }
                None => {
                    let p = self.proc_mut(from, generation);
                    let nobody = p.is_some_and(|p| {
                        p.refused += 1;
                        p.refused >= p.asking && p.links.is_empty()
                    });
                    if nobody {
                        self.log(from, || "all addresses refuse: nobody is there".into());
                        self.call(from, |e, now, out| e.handle_nobody(now, out));
                    }
                }
            }
            return;
        };
        let ends = [(from, generation), (to, other.generation)];
        let conn = self.conns.len();
        self.conns.push(Conn {
            ends,
            up: [false; 2],
            closed: [false; 2],
            queue: Default::default(),
            buffer: Default::default(),
            last: [self.now; 2],
            blocked: None,
            garbled: [false; 2],
        });
        let (d0, d1) = (self.delay(from, to), self.delay(from, to));
        self.at(d0, Ev::Up { conn, side: 1 });
        self.at(d0 + d1, Ev::Up { conn, side: 0 });
    }

    /// A handshake is done at one end.
    pub(crate) fn up(&mut self, conn: usize, side: usize) {
        let c = &self.conns[conn];
        let ((me, generation), (other, theirs)) = (c.ends[side], c.ends[1 - side]);
        if c.closed[side] || self.proc_mut(me, generation).is_none() {
            return;
        }
        let Some(node) = self.proc_mut(other, theirs).map(|p| p.engine.me()) else {
            self.conns[conn].closed[side] = true;
            return;
        };
        self.conns[conn].up[side] = true;
        if let Some(p) = self.proc_mut(me, generation) {
            p.links.insert(link(conn, side), other);
        }
        self.log(me, || format!("link {} up to n{other}", conn));
        let initiated = side == 0;
        self.call(me, |e, now, out| e.handle_link(now, link(conn, side), LinkEvent::Up { node, initiated }, out));
        self.at(0, Ev::Deliver { conn, side });
    }

    /// A process writes what its engine has for a link.
    pub(crate) fn flush(&mut self, at: usize, id: LinkId) {
        let Some(p) = self.nodes[at].proc.as_ref() else { return };
        let mut bytes = Vec::new();
        p.engine.take_bytes(id, &mut bytes);
        let (conn, side) = (id.0 as usize / 2, id.0 as usize % 2);
        if bytes.is_empty() || self.conns[conn].closed[side] {
            return;
        }
        let to = self.conns[conn].ends[1 - side].0;
        let bytes = self.garble(conn, side, bytes);
        // Now and then a write arrives in two pieces.
        if bytes.len() > 8 && self.rng.chance(30) {
            let cut = 1 + self.rng.below(bytes.len() as u64 - 1) as usize;
            let (a, b) = bytes.split_at(cut);
            self.send(conn, 1 - side, at, to, a.to_vec());
            self.send(conn, 1 - side, at, to, b.to_vec());
        } else {
            self.send(conn, 1 - side, at, to, bytes);
        }
    }

    fn send(&mut self, conn: usize, side: usize, from: usize, to: usize, bytes: Vec<u8>) {
        let when = (self.now + self.delay(from, to)).max(self.conns[conn].last[side]);
        let c = &mut self.conns[conn];
        c.last[side] = when;
        c.queue[side].push_back((when, bytes));
        self.at(when - self.now, Ev::Deliver { conn, side });
    }

    /// Loses, doubles, swaps frames or garbles a header, if that is being played.
    fn garble(&mut self, conn: usize, side: usize, bytes: Vec<u8>) -> Vec<u8> {
        if self.now >= self.garbling.1 {
            return bytes;
        }
        let (per_mille, _) = self.garbling;
        let mut frames: Vec<Vec<u8>> = Vec::new();
        let mut rest = &bytes[..];
        while let Ok(Some(n)) = frame_len(rest) {
            frames.push(rest[..n.min(rest.len())].to_vec());
            rest = &rest[n.min(rest.len())..];
        }
        let mut out: Vec<Vec<u8>> = Vec::new();
        let mut swap: Option<Vec<u8>> = None;
        for mut frame in frames {
            let kind = if self.rng.chance(per_mille) { self.rng.pick(&self.garble_kinds).copied() } else { None };
            match kind {
                Some(Fault::Loss) => {}
                Some(Fault::Duplicate) => out.extend([frame.clone(), frame]),
                Some(Fault::Reorder) => swap = Some(frame),
                Some(Fault::Corrupt) => {
                    // The number or the low byte of the length: what would make the receiver wait for megabytes is TLS's to find.
                    let (byte, bit) = (3 * self.rng.below(2) as usize, self.rng.below(8));
                    // So is a number that comes to be the one that is due because a frame before it was lost.
                    if byte == 0 || !self.conns[conn].garbled[side] {
                        frame[byte] ^= 1 << bit;
                    }
                    out.push(frame);
                }
                _ => out.push(frame),
            }
            self.conns[conn].garbled[side] |= kind.is_some();
            if kind != Some(Fault::Reorder) {
                out.extend(swap.take());
            }
        }
        // Alone in its batch: lost.
        out.concat()
    }

    pub(crate) fn deliver(&mut self, conn: usize, side: usize) {
        let c = &mut self.conns[conn];
        let ((me, generation), (other, _)) = (c.ends[side], c.ends[1 - side]);
        if c.closed[side] || !c.up[side] || c.queue[side].is_empty() {
            return;
        }
        if self.nodes[me].proc.as_ref().is_none_or(|p| p.generation != generation || p.paused.is_some()) {
            return;
        }
        if self.cut[other][me] {
            return self.blocked(conn, Ev::Deliver { conn, side });
        }
        let c = &mut self.conns[conn];
        c.blocked = None;
        let mut got = false;
        while let Some((when, _)) = c.queue[side].front()
            && *when <= self.now
            && let Some((_, bytes)) = c.queue[side].pop_front()
        {
            got = true;
            c.buffer[side].extend_from_slice(&bytes);
        }
        if !got {
            return;
        }
        let bytes = core::mem::take(&mut c.buffer[side]);
        self.trace_frames(me, other, conn, &bytes);
        let id = link(conn, side);
        match self.call(me, |e, now, out| e.handle_bytes(now, id, &bytes, out)) {
            Some(Ok(done)) => self.conns[conn].buffer[side] = bytes[done..].to_vec(),
            Some(Err(error)) => {
                self.mark(crate::marks::Mark::FrameRefused);
                self.log(me, || format!("link {conn} from n{other}: {error}"));
                self.trouble(me, other);
                self.close(conn, side);
            }
            None => {}
        }
    }

    /// A cut lets nothing pass: try later, until the connection breaks.
    fn blocked(&mut self, conn: usize, again: Ev) {
        let since = *self.conns[conn].blocked.get_or_insert(self.now);
        if self.now - since > self.opts.tcp_timeout {
            self.break_conn(conn);
        } else {
            self.at(200 * MS, again);
        }
    }

    /// Both ends notice a break, each in its own time.
    pub(crate) fn break_conn(&mut self, conn: usize) {
        let [(a, _), (b, _)] = self.conns[conn].ends;
        self.trouble(a, b);
        for side in 0..2 {
            let later = self.rng.below(20 * MS as u64) as i64;
            self.at(later, Ev::Broken { conn, side });
        }
    }

    /// One end closes: its engine hears it at once, the other end after a while.
    pub(crate) fn close(&mut self, conn: usize, side: usize) {
        if self.conns[conn].closed[side] {
            return;
        }
        self.conns[conn].closed[side] = true;
        let ((me, generation), (other, _)) = (self.conns[conn].ends[side], self.conns[conn].ends[1 - side]);
        let id = link(conn, side);
        self.conns[conn].queue[side].clear();
        if let Some(p) = self.proc_mut(me, generation) {
            let known = p.links.remove(&id).is_some();
            if known {
                self.log(me, || format!("link {conn} to n{other} closed"));
                self.call(me, |e, now, out| e.handle_link(now, id, LinkEvent::Closed, out));
            }
        }
        if !self.conns[conn].closed[1 - side] {
            // In order after what was written, or at once, with what was on its way lost.
            let delay = self.delay(me, other);
            let when = if self.rng.chance(500) { delay } else { (self.conns[conn].last[1 - side] - self.now).max(delay) };
            self.at(when, Ev::Closed { conn, side: 1 - side });
        }
    }

    /// One end hears that the other has closed, unless a cut is between them.
    pub(crate) fn closed(&mut self, conn: usize, side: usize) {
        let ((me, _), (other, _)) = (self.conns[conn].ends[side], self.conns[conn].ends[1 - side]);
        if self.conns[conn].closed[side] {
            return;
        }
        if self.cut[other][me] {
            return self.blocked(conn, Ev::Closed { conn, side });
        }
        self.close(conn, side);
    }

    /// A process is gone: the kernel closes its connections.
    pub(crate) fn drop_conns(&mut self, node: usize, generation: u32) {
        for conn in 0..self.conns.len() {
            for side in 0..2 {
                if self.conns[conn].ends[side] == (node, generation) && !self.conns[conn].closed[side] {
                    self.close(conn, side);
                }
            }
        }
    }

    pub(crate) fn open_conns(&self) -> Vec<usize> {
        (0..self.conns.len()).filter(|c| self.conns[*c].closed == [false; 2]).collect()
    }
}

fn p_forget(p: Option<&mut crate::world::Proc>, to: usize) {
    if let Some(p) = p {
        p.connecting.remove(&to);
    }
}
