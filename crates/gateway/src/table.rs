//! The members as the running gateway knows them: the table, its health and its counters.

use crate::routing::{Member, MemberInfo, Members, State};
use crate::upstream::{self, Pool};
use outlive_core::address::Address;
use parking_lot::RwLock;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

pub(crate) type Row = Member<Kept>;

/// What the proxy keeps beside a row: idle connections (a pool for each worker, so that none is shared between threads) and counters.
#[derive(Debug)]
pub(crate) struct Kept {
    pools: Box<[Pool]>,
    /// When its responses were last complained of, in milliseconds, or 0.
    complained: AtomicU64,
    pub(crate) counters: Arc<Counters>,
}

impl Kept {
    /// Whether this call, of all that do it now, is the one that changed it.
    fn swap_complained(&self, before: u64, now: u64) -> bool {
        self.complained.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn pool(&self, worker: usize) -> &Pool {
        &self.pools[worker]
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) moved: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The table as one worker saw it last.
#[derive(Default)]
pub(crate) struct Copy {
    version: u64,
    pub(crate) members: Arc<Members<Kept>>,
}

/// One member, as counted since the gateway started. Counters outlive the member's restarts, not its removal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberStats {
    /// The route name.
    pub name: String,
    /// Where it answers.
    pub addr: Address,
    /// Which start of the node it is.
    pub life: u64,
    /// What it may be given now.
    pub state: State,
    /// Requests given to it, retries among them.
    pub requests: u64,
    /// Requests that it failed: connection refused or broken before the answer, or no answer in time.
    pub failures: u64,
    /// Requests given to it after another connection failed them.
    pub retries: u64,
    /// Requests given to it although their route names another member.
    pub moved: u64,
    /// Requests that it is answering now.
    pub in_flight: u32,
}

/// The way to tell a running gateway who the members are. Cheap to clone; works from any thread.
#[derive(Clone, Debug)]
pub struct Directory {
    table: Arc<RwLock<Arc<Members<Kept>>>>,
    version: Arc<AtomicU64>,
    workers: usize,
}

impl Directory {
    pub(crate) fn new(workers: usize) -> Directory {
        Directory { table: Arc::default(), version: Arc::default(), workers }
    }

    /// Replaces the list, at once and for every request that is routed from now on; requests in flight finish where they are.
    ///
    /// A member with the same name, address and life stays the one it was: its connections, and what passive health knows. What
    /// is told here wins over passive health, except that `Up` repeated does not overrule a refused connection (a probe does).
    pub fn update(&self, members: Vec<MemberInfo>) {
        let mut table = self.table.write();
        report(&table, &members);
        let rows = members.iter().map(|info| self.row(info, &table)).collect();
        *table = Arc::new(Members::new(rows));
        self.version.fetch_add(1, Ordering::Release);
    }

    fn row(&self, info: &MemberInfo, before: &Members<Kept>) -> Arc<Row> {
        let known = before.find(info.name.as_bytes());
        if let Some(row) = known
            && *row.addr() == info.addr
            && row.life() == info.life
        {
            row.tell(info.state);
            return row.clone();
        }
        let counters = known.map(|row| row.kept().counters.clone()).unwrap_or_default();
        let pools = (0..self.workers).map(|_| Pool::default()).collect();
        Arc::new(Member::new(info, Kept { pools, complained: AtomicU64::new(0), counters }))
    }

    pub(crate) fn members(&self) -> Arc<Members<Kept>> {
        self.table.read().clone()
    }

    /// Brings a worker's copy of the table up to date. Processors that all count references to one table would spend more on
    /// handing that counter around than on routing.
    pub(crate) fn refresh(&self, copy: &mut Copy) {
        let version = self.version.load(Ordering::Acquire);
        if copy.version != version {
            *copy = Copy { version, members: self.members() };
        }
    }

    /// What is known and counted of each member, ordered by name.
    pub fn stats(&self) -> Vec<MemberStats> {
        self.members().rows().iter().map(|row| stats(row)).collect()
    }
}

/// Logs who comes, drains and goes, each once.
fn report(before: &Members<Kept>, now: &[MemberInfo]) {
    for info in now {
        let row = before.find(info.name.as_bytes());
        let known = row.filter(|row| row.life() == info.life && *row.addr() == info.addr).map(|row| row.told());
        let (member, addr) = (&info.name, &info.addr);
        match (known, info.state) {
            (Some(state), now) if state == now => {}
            (None, State::Down) if row.is_none() => {}
            (_, State::Up) if row.is_some_and(|row| row.told() != State::Down) => {
                tracing::info!(member, %addr, "a member has started anew")
            }
            (_, State::Up) => tracing::info!(member, %addr, "a member is there"),
            (_, State::Draining) => tracing::info!(member, %addr, "a member drains: it keeps its visitors and gets no new ones"),
            (_, State::Down) if row.is_some_and(|row| row.told() != State::Down) => tracing::info!(member, %addr, "a member is gone"),
            (_, State::Down) => {}
        }
    }
    for row in before.rows() {
        if row.told() != State::Down && !now.iter().any(|info| info.name == row.name()) {
            tracing::info!(member = row.name(), addr = %row.addr(), "a member is gone");
        }
    }
}

fn stats(row: &Row) -> MemberStats {
    let counters = &row.kept().counters;
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    MemberStats {
        name: row.name().to_owned(),
        addr: row.addr().clone(),
        life: row.life(),
        state: row.state(),
        requests: read(&counters.requests),
        failures: read(&counters.failures),
        retries: read(&counters.retries),
        moved: read(&counters.moved),
        in_flight: row.in_flight(),
    }
}

/// How often one member's responses are complained of at most.
const COMPLAINTS_MS: u64 = 60_000;

/// Logs that a response of `row` could not be passed on, unless it did so a short while ago. `now` is a worker's clock.
pub(crate) fn complain(row: &Row, now: u64, what: &str, why: &str) {
    let last = row.kept().complained.load(Ordering::Relaxed);
    if (last == 0 || now.saturating_sub(last) >= COMPLAINTS_MS) && row.kept().swap_complained(last, now.max(1)) {
        tracing::warn!(member = row.name(), why, "{what}");
    }
}

/// The first pause before a member that refused a connection is tried again, and the longest.
const PROBE_PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// Notes that `row` accepts no connections and asks it again, less and less often, until it does.
pub(crate) fn refused(row: &Arc<Row>, error: &io::Error, connect_timeout: Duration, random: u64) {
    if row.refuse() {
        tracing::warn!(member = row.name(), addr = %row.addr(), %error, "a member accepts no connections: its visitors go to others until it does");
        tokio::spawn(probe(Arc::downgrade(row), connect_timeout, random));
    }
}

/// Holds the row weakly: a member that was removed, or that came back as a new life, is nobody's concern any more.
async fn probe(row: Weak<Row>, connect_timeout: Duration, random: u64) {
    let (mut pause, longest) = PROBE_PAUSES;
    // Up to a quarter longer, so that the gateways of one site do not all ask at the same time.
    let jitter = 1.0 + (random % 256) as f64 / 1024.0;
    loop {
        tokio::time::sleep(pause.mul_f64(jitter)).await;
        let Some(row) = row.upgrade().filter(|row| row.refuses()) else { return };
        if upstream::dial(row.addr(), connect_timeout).await.is_ok() {
            tracing::info!(member = row.name(), "a member accepts connections again");
            return row.accept();
        }
        pause = (pause * 2).min(longest);
    }
}
