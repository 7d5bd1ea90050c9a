//! How long things take, counted without allocation: by fixed bounds for Prometheus, and finely for quantiles.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the histogram, in microseconds.
pub const BOUNDS: [u32; 13] =
    [2000, 5000, 10_000, 20_000, 35_000, 50_000, 75_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000];

/// Fine buckets in each power of two: a quantile is at most 1/32 too large.
const FINE: usize = 32;
/// Powers of two above the first, exact one.
const OCTAVES: usize = 32 - FINE.ilog2() as usize;

/// Latencies since the start, in microseconds. Recorded by one thread or several, read by others.
#[derive(Debug)]
pub struct LatencyHistogram {
    /// By [`BOUNDS`], and one beyond.
    coarse: [AtomicU64; BOUNDS.len() + 1],
    fine: [AtomicU64; FINE * (OCTAVES + 1)],
    sum: AtomicU64,
    largest: AtomicU64,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self {
            coarse: std::array::from_fn(|_| AtomicU64::new(0)),
            fine: std::array::from_fn(|_| AtomicU64::new(0)),
            sum: AtomicU64::new(0),
            largest: AtomicU64::new(0),
        }
    }
}

impl LatencyHistogram {
    /// Counts one.
    pub fn record(&self, microseconds: u32) {
        self.coarse[BOUNDS.partition_point(|&bound| bound < microseconds)].fetch_add(1, Ordering::Relaxed);
        self.fine[bucket(microseconds)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(microseconds.into(), Ordering::Relaxed);
        self.largest.fetch_max(microseconds.into(), Ordering::Relaxed);
    }

    /// What was counted up to now.
    #[must_use]
    pub fn read(&self) -> Latencies {
        let coarse = self.coarse.each_ref().map(|count| count.load(Ordering::Relaxed));
        let fine = self.fine.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let (sum, largest) = (self.sum.load(Ordering::Relaxed), self.largest.load(Ordering::Relaxed));
        Latencies { coarse, fine, count: coarse.iter().sum(), sum_us: sum, largest_us: largest }
    }
}

/// Latencies at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies {
    coarse: [u64; BOUNDS.len() + 1],
    fine: Vec<u64>,
    /// All of them.
    pub count: u64,
    /// Their sum in microseconds.
    pub sum_us: u64,
    /// The largest in microseconds.
    pub largest_us: u64,
}

impl Latencies {
    /// The latency in microseconds that a share `q` (0 to 1) does not exceed, at most 1/32 too large; none before the
    /// first.
    #[must_use]
    pub fn quantile_us(&self, q: f64) -> Option<u64> {
        // Of the fine counts, which may be ahead of the others by what was recorded while they were read.
        let count: u64 = self.fine.iter().sum();
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).max(1);
        let mut below = 0;
        let index = self.fine.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(upper(index).min(self.largest_us))
    }

    /// How many lie at or below each of [`BOUNDS`].
    pub fn cumulative(&self) -> impl Iterator<Item = (u32, u64)> {
        BOUNDS.into_iter().zip(self.coarse).scan(0, |below, (bound, count)| {
            *below += count;
            Some((bound, *below))
        })
    }
}

fn bucket(value: u32) -> usize {
    let value = value as usize;
    if value < FINE {
        return value;
    }
    let octave = value.ilog2() as usize - FINE.ilog2() as usize;
    FINE * (octave + 1) + (value >> octave) - FINE
}

/// The largest value of a bucket.
fn upper(index: usize) -> u64 {
    if index < FINE {
        return index as u64;
    }
    let octave = index / FINE - 1;
    (((index % FINE + FINE + 1) as u64) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_one_bucket_and_is_little_below_its_upper_end() {
        let edges = (0..32).flat_map(|bit| [1_u64 << bit, (1 << bit) + 1, (1 << (bit + 1)) - 1]);
        for value in (0..5000).chain(edges).chain((0..1000).map(|i| i * 4_294_967)) {
            let end = upper(bucket(value as u32));
            assert!(end >= value && end as f64 <= value as f64 * (1.0 + 1.0 / 32.0) + 0.01, "{value}: {end}");
        }
        assert_eq!(bucket(u32::MAX), FINE * (OCTAVES + 1) - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let histogram = LatencyHistogram::default();
        assert_eq!(histogram.read().quantile_us(0.5), None);
        let mut values: Vec<u32> = (0..10_000_u32).map(|i| 20_000 + i * 7919 % 90_001).collect();
        values.iter().for_each(|&value| histogram.record(value));
        values.sort_unstable();
        let read = histogram.read();
        assert_eq!((read.count, read.sum_us), (10_000, values.iter().map(|&v| u64::from(v)).sum()));
        for q in [0.5, 0.99, 0.999, 1.0] {
            let exact = f64::from(values[(q * 10_000.0) as usize - 1]);
            let found = read.quantile_us(q).unwrap() as f64;
            assert!(found >= exact && found <= exact * 1.032, "{q}: {found} for {exact}");
        }
        assert_eq!(read.quantile_us(1.0), Some(u64::from(values[9999])));
    }

    #[test]
    fn cumulative_counts_are_exact() {
        let histogram = LatencyHistogram::default();
        let values: Vec<u32> = (0..20_000).map(|i| i * 500).collect();
        values.iter().for_each(|&value| histogram.record(value));
        for (bound, below) in histogram.read().cumulative() {
            assert_eq!(below, values.iter().filter(|&&value| value <= bound).count() as u64, "{bound}");
        }
    }
}
