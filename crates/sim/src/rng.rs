//! The one source of chance: everything that a seed decides is drawn from here, in one order.

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed ^ 0x6a09_e667_f3bc_c909)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is at least 1.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// From `a` to `b`, both included.
    pub(crate) fn range(&mut self, a: i64, b: i64) -> i64 {
        a + self.below((b - a).max(0) as u64 + 1) as i64
    }

    /// With so many chances in a thousand.
    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < u64::from(per_mille)
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { of.get(self.below(of.len() as u64) as usize) }
    }

    /// A pause around `mean`, with a long tail: between a quarter of it and four times it.
    pub(crate) fn around(&mut self, mean: i64) -> i64 {
        let shift = self.below(4);
        let base = (mean / 4) << shift;
        base + self.below(base.max(1) as u64) as i64
    }
}
