//! What the kernel machine sees of a cell: the backbone's maps pooled over the image, and statistics of the heatmap.
//!
//! A row is [`POOLED`] numbers of [`pool`] and [`log_scale`], then [`HEAT`] numbers of [`HeatDescriber`].

use crate::backbone::{Pyramid, STAGE_CHANNELS};
use crate::simd::{Isa, Kernel, Simd};

/// Channels of the four stages together.
const CHANNELS: usize = 960;

/// Numbers of a cell from the backbone: mean, maximum and standard deviation of each channel of the four stages.
pub const POOLED: usize = 3 * CHANNELS;

/// Numbers of a cell from its heatmap: [`RANKS`] order statistics, the standard deviation, [`MAXIMA`] block maxima.
pub const HEAT: usize = RANKS.len() + 1 + MAXIMA;

/// Ranks of the order statistics of a heatmap, counted from its largest value, as parts of 1,024 positions.
pub const RANKS: [usize; 14] = [0, 2, 5, 10, 20, 30, 50, 80, 120, 200, 350, 500, 700, 900];

/// Maxima of blocks that describe a heatmap: every fourth of the sorted maxima of 8×8 blocks.
pub const MAXIMA: usize = 16;

/// Blocks along a side of the heatmap.
const BLOCKS: usize = 8;

/// Distances below this are taken for this: its logarithm must be a number, and no outlier either.
const TINY: f32 = 1e-6;

/// Pools the maps of a cell over its pixels: writes the means of the 960 channels (stage by stage), then their maxima,
/// then their standard deviations (over all pixels, not of a sample). Where several views of a cell are pooled, average
/// these numbers before [`log_scale`]. Allocates nothing; a value that is not finite gives a mean that is not.
///
/// # Panics
/// If the pyramid lacks one of the four stages, `out` is not [`POOLED`] long, or this CPU does not have `isa`.
pub fn pool(pyramid: &Pyramid, isa: Isa, out: &mut [f32]) {
    assert_eq!(pyramid.stages(), [true; 4], "pooling needs all four stages of the backbone");
    assert_eq!(out.len(), POOLED, "room for the pooled numbers");
    isa.run(Pool { pyramid, out });
}

/// ln(1 + max(x, 0)) of each value: activations have a long tail. What is not a number stays so.
pub fn log_scale(values: &mut [f32]) {
    for x in values {
        // Not `max`, which would make 0 of a NaN.
        *x = if *x < 0.0 { 0.0 } else { *x }.ln_1p();
    }
}

/// [`pool`] of one view, [log-scaled](log_scale).
///
/// # Panics
/// As [`pool`].
pub fn pooled(pyramid: &Pyramid, isa: Isa, out: &mut [f32]) {
    pool(pyramid, isa, out);
    log_scale(out);
}

struct Pool<'a> {
    pyramid: &'a Pyramid,
    out: &'a mut [f32],
}

impl Kernel for Pool<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut first = 0;
        for stage in 0..4 {
            for channel in (0..STAGE_CHANNELS[stage]).step_by(Pooling::<S>::CHANNELS) {
                // SAFETY: the caller has checked the CPU, and every stage's channels are a multiple of `CHANNELS`.
                unsafe { Pooling::<S>::run(self.pyramid, stage, channel, &mut self.out[first + channel..]) };
            }
            first += STAGE_CHANNELS[stage];
        }
    }
}

/// A few vectors of channels, pooled over all pixels in registers.
struct Pooling<S>(std::marker::PhantomData<S>);

impl<S: Simd> Pooling<S> {
    const VECTORS: usize = 2;
    const CHANNELS: usize = 2 * S::LANES;

    /// # Safety
    /// The CPU must have `S`; `channel` and the `CHANNELS − 1` after it are channels of the stage.
    #[inline(always)]
    unsafe fn run(pyramid: &Pyramid, stage: usize, channel: usize, out: &mut [f32]) {
        let channels = STAGE_CHANNELS[stage];
        let pixels = (pyramid.side(stage) * pyramid.side(stage)) as f32;
        // SAFETY: a row holds whole pixels of `channels` floats, and `out` reaches at least CHANNELS floats beyond each
        // of the three places that are written.
        unsafe {
            // Deviations are taken from the first pixel: a channel that hardly varies loses no digits.
            let origin = pyramid.row(stage, 0).as_ptr().add(channel);
            let origin: [S::V; 2] = [S::load(origin), S::load(origin.add(S::LANES))];
            let (mut sums, mut squares, mut largest) = ([S::splat(0.0); 2], [S::splat(0.0); 2], origin);
            for row in pyramid.rows(stage) {
                for pixel in row.chunks_exact(channels) {
                    for v in 0..Self::VECTORS {
                        let x = S::load(pixel.as_ptr().add(channel + v * S::LANES));
                        let d = S::sub(x, origin[v]);
                        sums[v] = S::add(sums[v], d);
                        squares[v] = S::fma(d, d, squares[v]);
                        largest[v] = S::max(largest[v], x);
                    }
                }
            }
            let (mean, rest) = out.split_at_mut(CHANNELS);
            let (max, deviation) = rest.split_at_mut(CHANNELS);
            for v in 0..Self::VECTORS {
                let shift = S::mul(sums[v], S::splat(1.0 / pixels));
                let at = v * S::LANES;
                S::store(mean[at..][..S::LANES].as_mut_ptr(), S::add(origin[v], shift));
                S::store(max[at..][..S::LANES].as_mut_ptr(), largest[v]);
                let square = S::mul(squares[v], S::splat(1.0 / pixels));
                let variance = S::sub(square, S::mul(shift, shift));
                let deviation = &mut deviation[at..][..S::LANES];
                S::store(deviation.as_mut_ptr(), variance);
                deviation.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }.sqrt());
            }
        }
    }
}

/// Describes heatmaps of one size by [`HEAT`] numbers, in buffers of its own.
#[derive(Clone, Debug)]
pub struct HeatDescriber {
    grid: usize,
    sorted: Vec<f32>,
}

impl HeatDescriber {
    /// For heatmaps of grid × grid positions.
    ///
    /// # Panics
    /// If `grid` is 0.
    #[must_use]
    pub fn new(grid: usize) -> Self {
        assert!(grid > 0, "a heatmap has positions");
        Self { grid, sorted: vec![0.0; grid * grid] }
    }

    /// Writes the logarithms of: the values of 14 [`RANKS`] from the largest on (scaled to grid² positions, rounded
    /// down); the standard deviation of all positions; and of the maxima of 8×8 blocks, sorted from the largest, every
    /// fourth. Block b of a side covers the positions from ⌊b·grid/8⌋ to before ⌊(b+1)·grid/8⌋, and at least one.
    ///
    /// Values below 10⁻⁶ count as that. Finite values give finite numbers; others give at least one that is not.
    /// Allocates nothing.
    ///
    /// # Panics
    /// If `heatmap` is not grid² or `out` not [`HEAT`] long.
    pub fn describe(&mut self, heatmap: &[f32], out: &mut [f32]) {
        let grid = self.grid;
        assert_eq!(heatmap.len(), grid * grid, "one value a position");
        assert_eq!(out.len(), HEAT, "room for the heatmap's numbers");
        self.sorted.copy_from_slice(heatmap);
        self.sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        let (ranked, rest) = out.split_at_mut(RANKS.len());
        for (out, rank) in ranked.iter_mut().zip(RANKS) {
            *out = self.sorted[rank * grid * grid / 1024];
        }
        let count = heatmap.len() as f64;
        let mean = heatmap.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let variance = heatmap.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
        rest[0] = variance.sqrt() as f32;
        let mut maxima = [0.0f32; BLOCKS * BLOCKS];
        let range = |block: usize| {
            let start = block * grid / BLOCKS;
            start..((block + 1) * grid / BLOCKS).max(start + 1)
        };
        for (block, max) in maxima.iter_mut().enumerate() {
            let columns = range(block % BLOCKS);
            let rows = range(block / BLOCKS).map(|y| &heatmap[y * grid..][columns.clone()]);
            *max = rows.flatten().copied().fold(f32::NEG_INFINITY, f32::max);
        }
        maxima.sort_unstable_by(|a, b| b.total_cmp(a));
        for (out, max) in rest[1..].iter_mut().zip(maxima.iter().step_by(BLOCKS * BLOCKS / MAXIMA)) {
            *out = *max;
        }
        out.iter_mut().for_each(|x| *x = if *x < TINY { TINY } else { *x }.ln());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(size: usize) -> Pyramid {
        let mut pyramid = Pyramid::new(size);
        let mut seed = 1u32;
        for stage in 0..4 {
            pyramid.fill_with(stage, |i| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // A channel's own level far above its spread, and a third of zeros in others.
                let noise = (seed >> 8) as f32 / (1 << 24) as f32;
                if i % 2 == 0 { 100.0 + noise } else { (noise - 0.3).max(0.0) }
            });
        }
        pyramid
    }

    #[test]
    fn pooling_is_mean_maximum_and_deviation_of_each_channel() {
        for size in [64, 96] {
            let pyramid = filled(size);
            let mut want = vec![];
            for (stage, channels) in STAGE_CHANNELS.into_iter().enumerate() {
                let values: Vec<f64> = pyramid.values(stage).map(f64::from).collect();
                want.extend((0..channels).map(|c| {
                    let x: Vec<f64> = values[c..].iter().step_by(channels).copied().collect();
                    let mean = x.iter().sum::<f64>() / x.len() as f64;
                    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
                    [mean, x.iter().copied().fold(f64::MIN, f64::max), variance.sqrt()]
                }));
            }
            for isa in Isa::available() {
                let mut got = vec![0.0; POOLED];
                pool(&pyramid, isa, &mut got);
                for (i, got) in got.iter().enumerate() {
                    let want = want[i % CHANNELS][i / CHANNELS];
                    assert!((f64::from(*got) - want).abs() < 2e-5 * want.max(1.0), "{isa} {i}: {got} for {want}");
                }
                let mut scaled = vec![0.0; POOLED];
                pooled(&pyramid, isa, &mut scaled);
                assert!(scaled.iter().zip(&got).all(|(s, x)| (s - (1.0 + x).ln()).abs() < 1e-5));
            }
        }
    }

    #[test]
    fn broken_activations_stay_broken() {
        for broken in [f32::NAN, f32::INFINITY] {
            for isa in Isa::available() {
                let mut pyramid = filled(64);
                pyramid.row_mut(2, 1)[300] = broken;
                let mut out = vec![0.0; POOLED];
                pooled(&pyramid, isa, &mut out);
                // Value 300 of the row is channel 44 of the second pixel.
                assert!(!out[64 + 128 + 44].is_finite(), "{isa}");
                assert!(out[..64 + 128 + 44].iter().all(|x| x.is_finite()));
            }
        }
        let mut values = [-3.0, f32::NAN, 1.0];
        log_scale(&mut values);
        assert!(values[0] == 0.0 && values[1].is_nan() && values[2] == 2.0f32.ln());
    }

    #[test]
    #[should_panic(expected = "all four stages")]
    fn pooling_without_a_stage_is_refused() {
        pool(&Pyramid::with_stages(64, [true, true, true, false]), Isa::Scalar, &mut [0.0; POOLED]);
    }

    fn describe(grid: usize, heatmap: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; HEAT];
        HeatDescriber::new(grid).describe(heatmap, &mut out);
        out
    }

    #[test]
    fn a_heatmap_of_known_numbers() {
        // 1 to 1,024: rank r is 1024 − r, and the largest of block (y, x) is 32·(4y + 3) + 4x + 4.
        let heatmap: Vec<f32> = (1..=1024).map(|i| i as f32).collect();
        let out = describe(32, &heatmap);
        for (out, rank) in out.iter().zip(RANKS) {
            assert_eq!(*out, ((1024 - rank) as f32).ln());
        }
        let deviation = ((1024.0f64.powi(2) - 1.0) / 12.0).sqrt();
        assert!((f64::from(out[14]) - deviation.ln()).abs() < 1e-6);
        let maxima: Vec<f32> = (0..8).flat_map(|row| [1024.0, 1008.0].map(|m| (m - 128.0 * row as f32).ln())).collect();
        assert_eq!(out[15..], maxima);
        // Each position four times as fine: the same description.
        let fine: Vec<f32> = (0..4096).map(|i| heatmap[i / 64 / 2 * 32 + i % 64 / 2]).collect();
        let same = describe(64, &fine).iter().zip(&out).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(same);
    }

    #[test]
    fn a_heatmap_that_is_not_finite_is_not_described_as_if_it_were() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            let mut heatmap = vec![1.0; 256];
            heatmap[77] = broken;
            assert!(describe(16, &heatmap).iter().any(|x| !x.is_finite()), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn any_finite_heatmap_is_described(grid in 1usize..70, seed in any::<u64>(), exponent in -40i32..38) {
            let mut state = seed | 1;
            let heatmap: Vec<f32> = (0..grid * grid)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    ((state >> 40) as f64 / f64::from(1 << 24) * 10f64.powi(exponent)) as f32
                })
                .collect();
            let out = describe(grid, &heatmap);
            prop_assert!(out.iter().all(|x| x.is_finite()));
            prop_assert!(out[..14].is_sorted_by(|a, b| a >= b));
            prop_assert!(out[15..].is_sorted_by(|a, b| a >= b));
            prop_assert_eq!(out[0], out[15]);
            // Where a value lies within its block, and which block is where, must not matter.
            if grid % 8 == 0 {
                let side = grid / 8;
                let turned: Vec<f32> = (0..grid * grid)
                    .map(|i| {
                        let (y, x) = (i / grid, i % grid);
                        let inside = |c: usize| c / side * side + (side - 1 - c % side);
                        heatmap[inside(grid - 1 - y) * grid + inside(x)]
                    })
                    .collect();
                for (a, b) in describe(grid, &turned).iter().zip(&out) {
                    prop_assert!((a - b).abs() < 1e-5);
                }
            }
            // A louder map is described by larger numbers.
            let louder: Vec<f32> = heatmap.iter().map(|x| 2.0 * x).collect();
            prop_assert!(describe(grid, &louder).iter().zip(&out).all(|(a, b)| a >= b));
        }
    }
}
