//! What one seed plays: a cluster, its faults, its clients. Drawn from the seed, and shrunk to minimise a failure.

use crate::clocks::Clocks;
use crate::rng::Rng;
use outlive_core::config::{Durability, OnLost, Reach};
use outlive_core::limits::RECORD_MAX;
use outlive_core::plant::Bug;

/// A microsecond of simulated time.
pub(crate) const MS: i64 = 1000;
/// A second of simulated time.
pub(crate) const S: i64 = 1_000_000;

/// About how many requests a seed plays at most.
const REQUESTS: i64 = 4000;

macro_rules! faults {
    ($($fault:ident = $name:literal,)* ; $($later:ident = $later_name:literal,)*) => {
        /// A kind of fault that a seed may play.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Fault { $($fault,)* $($later,)* }
        impl Fault {
            /// Those that a seed's first source of chance decides on.
            pub(crate) const ALL: &'static [Fault] = &[$(Fault::$fault,)*];
            pub(crate) fn name(self) -> &'static str {
                match self { $(Fault::$fault => $name,)* $(Fault::$later => $later_name,)* }
            }
        }
    };
}

faults! {
    Crash = "crash",
    CrashForGood = "crash_for_good",
    CrashPair = "crash_pair",
    LowerBoot = "lower_boot",
    QuickRestart = "quick_restart",
    Pause = "pause",
    LongPause = "long_pause",
    Partition = "partition",
    Isolate = "isolate",
    OneWay = "one_way",
    Pair = "pair",
    Reset = "reset",
    Loss = "loss",
    Duplicate = "duplicate",
    Reorder = "reorder",
    Corrupt = "corrupt",
    Slow = "slow",
    SlowHandlers = "slow_handlers",
    Drain = "drain",
    Join = "join",
    StoreDown = "store_down",
    StoreSlow = "store_slow",
    StoreUnknown = "store_unknown",
    Drift = "drift",
    Wander = "wander",
    Logout = "logout",
    Rotate = "rotate",
    ;
    RestartAll = "restart_all",
    StoreRefuses = "store_refuses",
    StoreLocked = "store_locked",
    WallJump = "wall_jump",
    StoreJump = "store_jump",
}

/// Everything that a run depends on besides the code.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) durability: Durability,
    pub(crate) backups: u8,
    pub(crate) store: bool,
    pub(crate) reach: Reach,
    pub(crate) on_lost: OnLost,
    pub(crate) sessions: usize,
    pub(crate) both_tokens: bool,
    /// Mean pause of a client between two requests.
    pub(crate) think: i64,
    /// How long faults are played.
    pub(crate) chaos: i64,
    /// Mean pause between two faults.
    pub(crate) gap: i64,
    /// One-way delay of a link: least, and what jitter adds.
    pub(crate) delay: (i64, i64),
    /// After so long without progress a connection breaks.
    pub(crate) tcp_timeout: i64,
    /// Each start of a node draws durability and backups of its own.
    pub(crate) differ: bool,
    /// What a session may hold.
    pub(crate) record_max: usize,
    pub(crate) faults: Vec<Fault>,
    pub(crate) plant: Option<Bug>,
    /// How time is played, if it is.
    pub(crate) clocks: Option<Clocks>,
}

impl Options {
    /// The options of a seed.
    pub(crate) fn of(seed: u64) -> Options {
        let mut r = Rng::new(seed);
        let nodes = *r.pick(&[3, 3, 4, 5, 5, 5, 6, 7]).unwrap_or(&5);
        let store = r.chance(400);
        let durability = match r.below(10) {
            0 => Durability::Owner,
            1..3 if store => Durability::Store,
            _ => Durability::Backup,
        };
        let backups = match (durability, r.below(10)) {
            (Durability::Owner, 0..4) => 0,
            (_, 0..7) => 1,
            _ => 2,
        };
        let reach = *r.pick(&[Reach::Auto, Reach::Everyone, Reach::Placement]).unwrap_or(&Reach::Auto);
        let on_lost = if r.chance(500) { OnLost::New } else { OnLost::Serve };
        let mut faults: Vec<Fault> = Vec::new();
        let share = *r.pick(&[80, 150, 300, 500]).unwrap_or(&300);
        for f in Fault::ALL {
            if r.chance(share) && (store || !matches!(f, Fault::StoreDown | Fault::StoreSlow | Fault::StoreUnknown)) {
                faults.push(*f);
            }
        }
        let mut opts = Options {
            seed,
            nodes,
            durability,
            backups,
            store,
            reach,
            on_lost,
            sessions: *r.pick(&[1, 3, 6, 10, 16]).unwrap_or(&6),
            both_tokens: r.chance(500),
            think: *r.pick(&[50 * MS, 200 * MS, 500 * MS, 1500 * MS]).unwrap_or(&S),
            chaos: r.range(10, 40) * S,
            gap: *r.pick(&[500 * MS, 2 * S, 5 * S, 10 * S]).unwrap_or(&S),
            delay: *r.pick(&[(100, 200), (300, 2 * MS), (2 * MS, 20 * MS), (200, 150 * MS)]).unwrap_or(&(100, 200)),
            tcp_timeout: *r.pick(&[2 * S, 8 * S, 20 * S]).unwrap_or(&S),
            // Drawn apart, so that the seeds of before play what they always did.
            differ: Rng::new(seed ^ 0xd1ff_e500).chance(200),
            record_max: match Rng::new(seed ^ 0x517e_0000).below(40) {
                0..3 => 1024,
                3..6 => 4096,
                _ => RECORD_MAX,
            },
            faults,
            plant: None,
            clocks: None,
        };
        Clocks::draw(&mut opts);
        // Many sessions of busy clients find no more than fewer requests of more seeds do.
        opts.think = opts.think.max(opts.chaos * 2 * opts.sessions as i64 / REQUESTS);
        opts
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// One line that says it all.
    pub(crate) fn line(&self) -> String {
        let faults: Vec<&str> = self.faults.iter().map(|f| f.name()).collect();
        format!(
            "seed={} nodes={} durability={:?} backups={} store={} reach={:?} on_lost={:?} sessions={} both_tokens={} think_ms={} chaos_s={} gap_ms={} delay_us={}+{} tcp_timeout_s={} differ={} record_max={} plant={} clocks={} faults={}",
            self.seed,
            self.nodes,
            self.durability,
            self.backups,
            self.store,
            self.reach,
            self.on_lost,
            self.sessions,
            self.both_tokens,
            self.think / MS,
            self.chaos as f64 / S as f64,
            self.gap / MS,
            self.delay.0,
            self.delay.1,
            self.tcp_timeout / S,
            self.differ,
            self.record_max,
            self.plant.map_or("none", Bug::name),
            self.clocks.as_ref().map_or("none".to_owned(), Clocks::line),
            faults.join(",")
        )
    }
}
