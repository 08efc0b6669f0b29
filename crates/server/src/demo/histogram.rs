//! How long answers took, in a few kilobytes whatever their number.

use std::time::Duration;

/// Buckets per doubling: a value is known to 3 %.
const STEPS: u32 = 32;
/// Doublings above that: up to 2^32 µs, over an hour.
const DOUBLINGS: u32 = 28;

/// Counts of durations, by microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; ((DOUBLINGS + 1) * STEPS) as usize], total: 0 }
    }
}

fn bucket(us: u32) -> usize {
    let doubling = us.checked_ilog2().unwrap_or(0).saturating_sub(STEPS.ilog2());
    let step = us >> doubling;
    // The first row holds 0..STEPS exactly, each further one the upper half of a doubling.
    (doubling * STEPS + step) as usize
}

/// The lowest value of a bucket.
fn floor(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let steps = u64::from(STEPS);
    if bucket < 2 * steps {
        return bucket;
    }
    let doubling = bucket / steps - 1;
    (bucket - doubling * steps) << doubling
}

impl Histogram {
    pub(crate) fn add(&mut self, took: Duration) {
        let index = bucket(u32::try_from(took.as_micros()).unwrap_or(u32::MAX)).min(self.counts.len() - 1);
        self.counts[index] += 1;
        self.total += 1;
    }

    /// The value, in milliseconds, that this share of all does not exceed. `None` when there is nothing.
    pub(crate) fn quantile_ms(&self, share: f64) -> Option<f64> {
        let wanted = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && self.total > 0 {
                return Some(floor(index) as f64 / 1000.0);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_begins_with_a_value_that_falls_into_it() {
        for us in [0, 1, 31, 32, 63, 64, 65, 1000, 12_345, 1_000_000, u32::MAX] {
            let floor = floor(bucket(us));
            assert!(floor <= u64::from(us) && u64::from(us) - floor <= u64::from(us) / 32, "{us}: {floor}");
        }
        assert!(bucket(u32::MAX) < Histogram::default().counts.len());
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_ms(0.5), None);
        (1..=100).for_each(|ms| histogram.add(Duration::from_millis(ms)));
        let p50 = histogram.quantile_ms(0.5).unwrap();
        let p99 = histogram.quantile_ms(0.99).unwrap();
        assert!((48.0..=50.0).contains(&p50) && (96.0..=99.0).contains(&p99), "{p50} {p99}");
    }
}
