//! What must hold for any data: however a set of embeddings is split, batched and joined, the model is one; packed
//! distances are dense ones; and projecting commutes with interpolating.

use std::sync::Arc;

use cellgate::backbone::{Pyramid, STAGE_CHANNELS};
use cellgate::embedding::projection::CHANNELS;
use cellgate::embedding::{Embedder, Embedding, Mixing, Projection, Stages};
use cellgate::gaussian::distance::{mahalanobis, mahalanobis_dense};
use cellgate::gaussian::factors::{OwnedStatistics, column_start, position_stride, section_len};
use cellgate::gaussian::fit::BATCH;
use cellgate::gaussian::{Accumulator, Precision, Shrinkage};
use cellgate::simd::Isa;
use cellgate::workers::Workers;
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Even between −1 and 1.
fn noise(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// Embeddings with correlated values, a mean that differs from position to position and is `shift` spreads large.
fn embeddings(count: usize, grid: usize, k: usize, shift: f32, seed: u64) -> Vec<Embedding> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let mut embedding = Embedding::new(grid, k);
            let mut last = 0.0;
            for (i, y) in embedding.values_mut().iter_mut().enumerate() {
                last = 0.5 * last + noise(&mut rng);
                *y = last + shift * (i % 11) as f32;
            }
            embedding
        })
        .collect()
}

fn gathered<'a>(all: impl IntoIterator<Item = &'a [Embedding]>, grid: usize, k: usize, isa: Isa) -> Accumulator {
    let workers = Workers::new(1);
    let mut accumulator = Accumulator::new(grid, k);
    for batch in all {
        accumulator.update(&batch.iter().collect::<Vec<_>>(), isa, &workers);
    }
    accumulator
}

fn pyramid(size: usize, rng: &mut ChaCha8Rng) -> Pyramid {
    let mut pyramid = Pyramid::new(size);
    (0..4).for_each(|stage| pyramid.fill_with(stage, |_| noise(rng)));
    pyramid
}

/// All channels of all stages brought to the grid first and projected then, in f64.
fn upsample_then_project(projection: &Projection, pyramid: &Pyramid, grid: usize) -> Vec<f64> {
    let k = projection.k();
    let mut out = vec![0.0; grid * grid * k];
    for (stage, &channels) in STAGE_CHANNELS.iter().enumerate() {
        let (side, w) = (pyramid.side(stage), projection.stage(stage));
        let at = |i: usize| {
            let x = ((i as f64 + 0.5) * side as f64 / grid as f64 - 0.5).clamp(0.0, (side - 1) as f64);
            let low = x.floor() as usize;
            [(low, 1.0 - (x - low as f64)), ((low + 1).min(side - 1), x - low as f64)]
        };
        let mut upsampled = vec![0.0f64; channels];
        for (position, out) in out.chunks_exact_mut(k).enumerate() {
            upsampled.fill(0.0);
            for (y, wy) in at(position / grid) {
                for (x, wx) in at(position % grid) {
                    let pixel = &pyramid.row(stage, y)[x * channels..][..channels];
                    upsampled.iter_mut().zip(pixel).for_each(|(u, &p)| *u += wy * wx * f64::from(p));
                }
            }
            for (u, row) in upsampled.iter().zip(w.chunks_exact(k)) {
                out.iter_mut().zip(row).for_each(|(o, &w)| *o += u * f64::from(w));
            }
        }
    }
    out
}

/// The largest difference, in units of the largest number.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let scale = a.iter().chain(b).fold(1e-30f64, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale
}

fn mixing() -> impl Strategy<Value = Mixing> {
    proptest::sample::select(vec![Mixing::Sparse, Mixing::Dense])
}

fn isa() -> impl Strategy<Value = Isa> {
    proptest::sample::select(Isa::available().collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_model(
        seed in any::<u64>(), grid in 1usize..4, k in 1usize..24, count in 2usize..120, shift in 0.0f32..4.0,
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
        batch in 1usize..=BATCH, order in any::<u64>(), isa in isa(),
    ) {
        let all = embeddings(count, grid, k, shift, seed);
        let single = gathered(all.chunks(BATCH), grid, k, isa);
        // Shards of any length, empty ones too, each in batches of another size than the single run's.
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(count + 1)).chain([count]).collect();
        ends.sort_unstable();
        let mut shards = Vec::new();
        let mut first = 0;
        for end in ends {
            shards.push(gathered(all[first..end].chunks(batch), grid, k, isa));
            first = end;
        }
        // Joined in any order, and as a tree as well as one by one.
        let mut rng = ChaCha8Rng::seed_from_u64(order);
        while shards.len() > 1 {
            let a = shards.swap_remove(rng.next_u32() as usize % shards.len());
            let b = rng.next_u32() as usize % shards.len();
            shards[b].merge(&a);
        }
        let merged = &shards[0];
        prop_assert_eq!(merged.count(), single.count());
        let (m, s) = (merged.raw(), single.raw());
        for (what, m, s, limit) in [
            ("mean", m.mean, s.mean, 1e-12), ("m2", m.m2, s.m2, 1e-5), ("cubes", m.cubes, s.cubes, 1e-12),
            ("fourths", m.fourths, s.fourths, 1e-12),
        ] {
            prop_assert!(apart(m, s) < limit, "{} is {:e} apart", what, apart(m, s));
        }
        // Ledoit and Wolf's λ is a quotient of two small sums: what they differ by shows more in it.
        for (shrinkage, limit) in
            [(Shrinkage::Absolute(0.01), 1e-4), (Shrinkage::Relative(0.05), 1e-4), (Shrinkage::LedoitWolf, 2e-3)]
        {
            // Of two cells, that λ is 0 but for rounding: the factors of a singular matrix are rounding too.
            if shrinkage == Shrinkage::LedoitWolf && count < 4 {
                continue;
            }
            let workers = Workers::new(1);
            let [m, s] = [merged, &single].map(|a| a.finish(shrinkage, Precision::F32, &workers).unwrap());
            for position in 0..grid * grid {
                let far = apart(&m.view().dense(position), &s.view().dense(position));
                prop_assert!(far < limit, "{shrinkage}: factors {far:e} apart");
            }
        }
    }

    #[test]
    fn packed_distance_is_dense_distance(
        seed in any::<u64>(), grid in 1usize..9, k in 1usize..=130, half in any::<bool>(), isa in isa(),
        threads in 1usize..4, mixing in mixing(), stages in proptest::sample::select(vec!["1,2,3,4", "2,3", "4", "1,4"]),
    ) {
        let stages: Stages = stages.parse().unwrap();
        let size = 64;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let projection = Projection::semi_orthogonal(mixing, k, seed, stages, &[1.0; CHANNELS]).unwrap();
        // Any lower triangular U with a diagonal that dominates, over five orders of magnitude from row to row.
        let mut factors = vec![0.0f32; section_len(grid * grid, k)];
        for position in 0..grid * grid {
            for j in 0..k {
                for i in j..k {
                    let size = 10f32.powi(i as i32 % 6 - 3);
                    let value = if i == j { 1.0 + 0.3 * noise(&mut rng) } else { 0.2 * noise(&mut rng) };
                    factors[position * position_stride(k) + column_start(k, j) + i - j] = size * value;
                }
            }
        }
        let mut mean: Vec<f32> = (0..grid * grid * k).map(|_| noise(&mut rng)).collect();
        mean.resize(grid * grid * k + 16, 0.0);
        let exact = OwnedStatistics::pack(grid, k, mean.clone(), factors.clone(), Precision::F32);
        let precision = if half { Precision::F16 } else { Precision::F32 };
        let packed = OwnedStatistics::pack(grid, k, mean, factors, precision);

        let pyramid = pyramid(size, &mut rng);
        let mut embedder = Embedder::new(&projection, size, grid, isa, Arc::new(Workers::new(threads)));
        let mut embedding = Embedding::new(grid, k);
        embedder.project(&pyramid).read_into(&mut embedding);
        let mut got = vec![0.0; grid * grid];
        mahalanobis(&packed.view(), embedder.project(&pyramid), &mut got);
        // Against the very numbers that are stored, and against those before they were rounded to halves.
        // Where large terms nearly cancel, what they lost as halves does not shrink with their sum.
        for (statistics, limit, least) in [(&packed, 1e-4, 0.0), (&exact, if half { 1e-2 } else { 1e-4 }, 0.05)] {
            let want = mahalanobis_dense(&statistics.view(), &embedding);
            let largest = want.iter().copied().fold(0.0, f64::max);
            for (got, want) in got.iter().zip(want) {
                let error = (f64::from(*got) - want).abs() / want.max(least * largest);
                prop_assert!(error < limit, "{isa} {precision:?}: {got} for {want}");
            }
        }
    }
}

proptest! {
    // The reference upsamples 960 channels: fewer cases.
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn projecting_and_interpolating_commute(
        seed in any::<u64>(), size in (2usize..6).prop_map(|n| 32 * n), grid in 1usize..24, k in 1usize..40, isa in isa(),
        threads in 1usize..4, mixing in mixing(),
        stages in proptest::sample::select(vec!["1,2,3,4", "1,2,3", "2", "3,4"]),
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let scale: Vec<f32> = (0..CHANNELS).map(|_| 1.1 + noise(&mut rng)).collect();
        let projection = Projection::semi_orthogonal(mixing, k, seed, stages.parse().unwrap(), &scale).unwrap();
        let pyramid = pyramid(size, &mut rng);
        let want = upsample_then_project(&projection, &pyramid, grid);
        let mut embedder = Embedder::new(&projection, size, grid, isa, Arc::new(Workers::new(threads)));
        let mut got = Embedding::new(grid, k);
        embedder.project(&pyramid).read_into(&mut got);
        for (got, want) in got.values().iter().zip(want) {
            prop_assert!((f64::from(*got) - want).abs() < 1e-5, "{isa}: {got} for {want}");
        }
    }
}
