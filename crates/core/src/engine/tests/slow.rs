//! Machines that have too much to do: each node gets through so many frames in a while and no more, and what comes meanwhile waits.

use super::*;

/// Frames that a node handles in ten milliseconds.
const PACE: usize = 8;

fn key(n: u64) -> SessionKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes[8..].copy_from_slice(&n.to_be_bytes());
    SessionKey::from_bytes(bytes)
}

/// What has come to each node and was not handled yet.
#[derive(Default)]
struct Slow(BTreeMap<usize, VecDeque<(LinkId, Vec<u8>)>>);

impl Slow {
    /// Ten milliseconds, in which the node that `stands` still does nothing.
    fn step(&mut self, net: &mut Net, n: u64, stands: Option<usize>) {
        net.now = net.now + Duration::from_millis(10);
        let running = || (0..2).filter(|at| Some(*at) != stands);
        for at in running() {
            net.call(at, |e, now, out| e.handle_timer(now, out));
            if n.is_multiple_of(5) {
                net.call(at, |e, now, out| e.handle_tick(now, 2000, out));
            }
        }
        for (_, to, link, bytes) in core::mem::take(&mut net.wires) {
            self.0.entry(to).or_default().push_back((link, bytes));
        }
        running().for_each(|at| self.handle(net, at));
    }

    fn handle(&mut self, net: &mut Net, at: usize) {
        let mut left = PACE;
        while left > 0
            && let Some((link, bytes)) = self.0.entry(at).or_default().pop_front()
        {
            let mut done = 0;
            while left > 0
                && let Ok(Some(length)) = crate::wire::frame_len(&bytes[done..])
            {
                (done, left) = (done + length, left - 1);
            }
            // Of a link that has closed nobody reads the rest.
            if net.links.contains_key(&link) && net.call(at, |e, now, out| e.handle_bytes(now, link, &bytes[..done], out)).is_ok() {
                let rest = bytes[done..].to_vec();
                self.0.entry(at).or_default().extend((!rest.is_empty()).then_some((link, rest)));
                self.0.entry(at).or_default().rotate_right(usize::from(done < bytes.len()));
            }
        }
    }
}

/// A walk sends a frame for each session, and gossip waits behind them. Sent all at once to a node that takes ten seconds for them, they
/// made it count as dead, and after its return there was the next walk; heirs on both sides took the sessions from each other meanwhile.
#[test]
fn a_walk_goes_no_faster_than_others_get_through_what_it_sends() {
    let mut net = Net::new(2, Config::default());
    for n in 0..8_000 {
        net.put((n % 2) as usize, key(n));
    }
    net.run(Duration::from_secs(2));
    let mut slow = Slow::default();
    (0..450).for_each(|n| slow.step(&mut net, n, Some(1)));
    net.call(1, |e, now, out| e.handle_stall(now, Duration::from_millis(4500), out));
    let members = |net: &Net| [0, 1].map(|at| net.nodes[at].engine.stats(net.now).members);
    let mut apart = 0;
    for n in 0..6000 {
        slow.step(&mut net, n, None);
        apart += u32::from(n > 300 && members(&net) != [2, 2]);
    }
    let stats = [0, 1].map(|at| net.nodes[at].engine.stats(net.now));
    assert_eq!(apart, 0, "they count each other dead again and again: {stats:?}");
    assert!(stats.iter().all(|s| s.settled && s.under_replicated == 0), "{stats:?}");
}
