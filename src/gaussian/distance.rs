//! The Mahalanobis distance of a cell at every position, fused with reading the embedding out.

use std::marker::PhantomData;

use half::f16;

use crate::embedding::Embedder;
use crate::embedding::projection::MAX_K;
use crate::simd::{Kernel, Simd};
use crate::workers::Workers;

use super::factors::{Factors, Statistics, column_start, position_stride};

/// Writes M = ‖U(y − μ)‖ of each position to `out` (grid², row by row); `embedder` holds the projected cell.
///
/// One pass over the factors, which is the cost of it: the embedding is interpolated, centred and whitened in
/// registers, position by position. Rows of the field are shared out to `workers`. Allocates nothing.
///
/// # Panics
/// If the grid or k of the three does not fit, or `out` is not grid² long.
pub fn mahalanobis(statistics: &Statistics<'_>, embedder: &Embedder, workers: &Workers, out: &mut [f32]) {
    let grid = statistics.grid();
    assert_eq!((grid, statistics.k()), (embedder.grid(), embedder.k()), "statistics and embedder must agree");
    assert_eq!(out.len(), grid * grid, "one distance a position");
    let (isa, threads) = (embedder.isa(), workers.count());
    let rows = Rows(out.as_mut_ptr());
    workers.run(&|thread| {
        let (first, last) = (grid * thread / threads, grid * (thread + 1) / threads);
        // SAFETY: each thread has its own rows of `out`.
        let out = unsafe { rows.slice(first * grid, (last - first) * grid) };
        isa.run(Field { statistics, embedder, first, out });
    });
}

/// The output, to be cut into rows that no two threads share.
struct Rows(*mut f32);

// SAFETY: `mahalanobis` hands each thread rows of its own.
unsafe impl Sync for Rows {}

impl Rows {
    /// # Safety
    /// The range must lie in the buffer and overlap no other in use.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        // SAFETY: as the caller promised.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

struct Field<'a> {
    statistics: &'a Statistics<'a>,
    embedder: &'a Embedder,
    first: usize,
    out: &'a mut [f32],
}

impl Kernel for Field<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller has checked the CPU.
        unsafe {
            match self.statistics.factors() {
                Factors::F16(u) => self.of_elements::<S, Half>(u.as_ptr()),
                Factors::F32(u) => self.of_elements::<S, Single>(u.as_ptr()),
            }
        }
    }
}

impl Field<'_> {
    #[inline(always)]
    unsafe fn of_elements<S: Simd, E: Element>(self, factors: *const E::Stored) {
        let (k, grid) = (self.statistics.k(), self.statistics.grid());
        let vectors = k.div_ceil(S::LANES);
        let mut weights = [0.0; MAX_K];
        self.statistics.row_scale().iter().zip(&mut weights).for_each(|(s, w)| *w = s * s);
        let mut centred = [0.0f32; MAX_K];
        for (index, out) in self.out.iter_mut().enumerate() {
            let (row, column) = (self.first + index / grid, index % grid);
            let position = row * grid + column;
            // SAFETY: the statistics' lengths were checked when they were joined: `position` lies inside, and the
            // slack at the end of mean and factors covers what a vector reads past the last position.
            unsafe {
                let mean = self.statistics.mean().as_ptr().add(position * k);
                self.embedder.read::<S>(row, column, vectors, mean, centred.as_mut_ptr());
                let u = factors.add(position * position_stride(k));
                let (d, w) = (centred.as_ptr(), weights.as_ptr());
                // The number of vectors must be known when this is compiled, or the sums do not stay in registers.
                *out = match vectors {
                    4 if S::LANES > 1 => Whiten::<S, E, 4>::norm(u, d, w, k),
                    7 if S::LANES > 1 => Whiten::<S, E, 7>::norm(u, d, w, k),
                    8 if S::LANES > 1 => Whiten::<S, E, 8>::norm(u, d, w, k),
                    13 if S::LANES > 1 => Whiten::<S, E, 13>::norm(u, d, w, k),
                    16 if S::LANES > 1 && S::REGISTERS > 16 => Whiten::<S, E, 16>::norm(u, d, w, k),
                    25 if S::LANES > 1 && S::REGISTERS > 16 => Whiten::<S, E, 25>::norm(u, d, w, k),
                    _ => norm_in_memory::<S, E>(u, d, w, k),
                };
            }
        }
    }
}

/// How the factors are stored and widened.
trait Element {
    type Stored;
    unsafe fn load<S: Simd>(p: *const Self::Stored) -> S::V;
}

struct Half;

impl Element for Half {
    type Stored = f16;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f16) -> S::V {
        // SAFETY: the caller gives LANES halves.
        unsafe { S::load_f16(p) }
    }
}

struct Single;

impl Element for Single {
    type Stored = f32;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::V {
        // SAFETY: the caller gives LANES floats.
        unsafe { S::load(p) }
    }
}

/// z = U·d in `N` registers.
struct Whiten<S, E, const N: usize>(PhantomData<(S, E)>);

impl<S: Simd, E: Element, const N: usize> Whiten<S, E, N> {
    /// ‖diag(scale)·U·d‖, where `weights` are the squares of the scale and 0 past k.
    ///
    /// # Safety
    /// `u` holds a packed position and LANES numbers more, `d` k floats, `weights` N·LANES.
    #[inline(always)]
    unsafe fn norm(u: *const E::Stored, d: *const f32, weights: *const f32, k: usize) -> f32 {
        // SAFETY: as the caller promised.
        unsafe {
            let mut z = [S::splat(0.0); N];
            macro_rules! blocks {
                ($($block:literal)*) => { $( if $block < N { Self::block::<$block>(u, d, k, &mut z); } )* };
            }
            blocks!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24);
            let mut sum = S::splat(0.0);
            for (v, &z) in z.iter().enumerate() {
                sum = S::fma(S::mul(z, z), S::load(weights.add(v * S::LANES)), sum);
            }
            S::sum(sum).sqrt()
        }
    }

    /// Columns `BLOCK·LANES` and up to LANES more: rows from the column's own on.
    #[inline(always)]
    unsafe fn block<const BLOCK: usize>(u: *const E::Stored, d: *const f32, k: usize, z: &mut [S::V; N]) {
        let first = BLOCK * S::LANES;
        // SAFETY: as the caller of `norm` promised: the first load starts `j − first` numbers before the column, which
        // is inside the position, and the last one ends less than LANES past it.
        unsafe {
            let mut column = u.add(column_start(k, first));
            for j in first..k.min(first + S::LANES) {
                let x = S::splat(*d.add(j));
                let above = j - first;
                let aligned = column.sub(above);
                z[BLOCK] = S::fma(S::keep_from(E::load::<S>(aligned), above), x, z[BLOCK]);
                for v in BLOCK + 1..N {
                    z[v] = S::fma(E::load::<S>(aligned.add((v - BLOCK) * S::LANES)), x, z[v]);
                }
                column = column.add(k - j);
            }
        }
    }
}

/// The same for any k, with z in memory.
///
/// # Safety
/// As [`Whiten::norm`].
#[inline(always)]
unsafe fn norm_in_memory<S: Simd, E: Element>(
    u: *const E::Stored,
    d: *const f32,
    weights: *const f32,
    k: usize,
) -> f32 {
    let mut z = [0.0f32; MAX_K];
    let mut column = u;
    // SAFETY: as the caller promised; `z` holds k rounded up to LANES.
    unsafe {
        for j in 0..k {
            let x = S::splat(*d.add(j));
            let first = j / S::LANES * S::LANES;
            let mut at = first;
            while at < k {
                let load = if at == first {
                    S::keep_from(E::load::<S>(column.sub(j - first)), j - first)
                } else {
                    E::load::<S>(column.add(at - j))
                };
                let p = z.as_mut_ptr().add(at);
                S::store(p, S::fma(load, x, S::load(p)));
                at += S::LANES;
            }
            column = column.add(k - j);
        }
        let mut sum = S::splat(0.0);
        let mut at = 0;
        while at < k {
            let v = S::load(z.as_ptr().add(at));
            sum = S::fma(S::mul(v, v), S::load(weights.add(at)), sum);
            at += S::LANES;
        }
        S::sum(sum).sqrt()
    }
}

/// The instruction set's plain loop over dense factors in f64: what [`mahalanobis`] is held to.
///
/// # Panics
/// If `embedding` has another grid or k.
#[must_use]
pub fn mahalanobis_dense(statistics: &Statistics<'_>, embedding: &crate::embedding::Embedding) -> Vec<f64> {
    let k = statistics.k();
    (0..statistics.grid().pow(2))
        .map(|position| {
            let u = statistics.dense(position);
            let mean = &statistics.mean()[position * k..][..k];
            let d: Vec<f64> =
                embedding.at(position).iter().zip(mean).map(|(y, m)| f64::from(*y) - f64::from(*m)).collect();
            u.chunks_exact(k).map(|row| row.iter().zip(&d).map(|(u, d)| u * d).sum::<f64>().powi(2)).sum::<f64>().sqrt()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::Pyramid;
    use crate::embedding::projection::CHANNELS;
    use crate::embedding::{Embedding, Projection, Stages};
    use crate::gaussian::factors::{Precision, section_len};
    use crate::gaussian::fit::tests::embeddings;
    use crate::gaussian::fit::{Accumulator, BATCH};
    use crate::gaussian::shrinkage::Shrinkage;
    use crate::simd::Isa;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    fn fill(pyramid: &mut Pyramid, rng: &mut ChaCha8Rng) {
        for stage in 0..4 {
            pyramid.map_mut(stage).iter_mut().for_each(|x| *x = (rng.next_u32() >> 8) as f32 / (1 << 24) as f32);
        }
    }

    /// Fits some noise and measures other noise, with every instruction set, precision and several k, whose vectors take
    /// each of the ways through the kernel.
    #[test]
    fn the_packed_distance_equals_the_dense_one() {
        let (size, grid) = (64, 8);
        for k in [1, 9, 31, 50, 64, 100, 101, 128] {
            let projection = Projection::semi_orthogonal(k, 1, Stages::ALL, &[1.0; CHANNELS]).unwrap();
            let mut rng = ChaCha8Rng::seed_from_u64(k as u64);
            let mut pyramid = Pyramid::new(size);
            let mut scalar = Embedder::new(&projection, size, grid, Isa::Scalar);
            let mut accumulator = Accumulator::new(grid, k);
            for batch in embeddings(grid, k, 6 * BATCH, k as u64).chunks(BATCH) {
                accumulator.update(&batch.iter().collect::<Vec<_>>(), Isa::detect(), &Workers::new(1));
            }
            fill(&mut pyramid, &mut rng);
            scalar.project(&pyramid);
            let mut measured = Embedding::new(grid, k);
            scalar.read_into(&mut measured);
            let workers = Workers::new(1);
            let exact = accumulator.finish(Shrinkage::default(), Precision::F32, &workers).unwrap();
            let expected = mahalanobis_dense(&exact.view(), &measured);
            for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::F16, 1e-2)] {
                let fit = accumulator.finish(Shrinkage::default(), precision, &workers).unwrap();
                assert_eq!(fit.view().factors().len(), section_len(grid * grid, k));
                for isa in Isa::available() {
                    let mut embedder = Embedder::new(&projection, size, grid, isa);
                    embedder.project(&pyramid);
                    for threads in [1, 3] {
                        let mut got = vec![0.0; grid * grid];
                        mahalanobis(&fit.view(), &embedder, &Workers::new(threads), &mut got);
                        for (got, want) in got.iter().zip(&expected) {
                            let error = (f64::from(*got) - want).abs() / want;
                            assert!(error < tolerance, "{isa} {precision:?} k = {k}: {got} for {want}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_number_that_is_not_finite_reaches_the_distance() {
        let (size, grid, k) = (64, 8, 20);
        let projection = Projection::semi_orthogonal(k, 1, Stages::ALL, &[1.0; CHANNELS]).unwrap();
        let mean = vec![0.0; grid * grid * k + 16];
        let fit = crate::gaussian::factors::OwnedStatistics::pack(
            grid,
            k,
            mean,
            vec![1.0; section_len(grid * grid, k)],
            Precision::F16,
        );
        let mut pyramid = Pyramid::new(size);
        pyramid.map_mut(0)[0] = f32::NAN;
        for isa in Isa::available() {
            let mut embedder = Embedder::new(&projection, size, grid, isa);
            embedder.project(&pyramid);
            let mut out = vec![0.0; grid * grid];
            mahalanobis(&fit.view(), &embedder, &Workers::new(1), &mut out);
            assert!(out[0].is_nan(), "{isa}");
        }
    }
}
