//! The Mahalanobis distance of a cell at every position, fused with reading the embedding out.

use std::marker::PhantomData;

use half::f16;

use crate::embedding::Projected;
use crate::embedding::cpu::SLACK;
use crate::embedding::projection::MAX_K;
use crate::simd::{Kernel, Simd};

use super::factors::{Factors, Statistics, position_stride};

/// Writes M = ‖U(y − μ)‖ of each position to `out` (grid², row by row).
///
/// One pass over the factors, which is the cost of it: the embedding is interpolated, centred and whitened in
/// registers, position by position. Rows of the field are shared out to the embedder's workers. Allocates nothing.
///
/// # Panics
/// If the grid or k of the two does not fit, or `out` is not grid² long.
pub fn mahalanobis(statistics: &Statistics<'_>, cell: Projected<'_>, out: &mut [f32]) {
    let embedder = cell.embedder();
    let grid = statistics.grid();
    assert_eq!((grid, statistics.k()), (embedder.grid(), embedder.k()), "statistics and embedder must agree");
    assert_eq!(out.len(), grid * grid, "one distance a position");
    let isa = embedder.isa();
    embedder.workers().split(out, grid, &|thread, first, out| {
        isa.run(Field { statistics, cell, thread, first, out });
    });
}

struct Field<'a> {
    statistics: &'a Statistics<'a>,
    cell: Projected<'a>,
    thread: usize,
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
    /// Chooses the kernel: the number of vectors must be known when this is compiled, or the sums do not stay in
    /// registers.
    #[inline(always)]
    unsafe fn of_elements<S: Simd, E: Element>(self, factors: *const E::Stored) {
        // SAFETY: the caller has checked the CPU.
        unsafe {
            match self.statistics.k().div_ceil(S::LANES) {
                4 if S::LANES > 1 => self.in_registers::<S, E, 4>(factors),
                7 if S::LANES > 1 => self.in_registers::<S, E, 7>(factors),
                8 if S::LANES > 1 => self.in_registers::<S, E, 8>(factors),
                13 if S::LANES > 1 => self.in_registers::<S, E, 13>(factors),
                16 if S::LANES > 1 && S::REGISTERS > 16 => self.in_registers::<S, E, 16>(factors),
                25 if S::LANES > 1 && S::REGISTERS > 16 => self.in_registers::<S, E, 25>(factors),
                _ => self.in_memory::<S, E>(factors),
            }
        }
    }

    #[inline(always)]
    unsafe fn in_registers<S: Simd, E: Element, const N: usize>(self, factors: *const E::Stored) {
        let (k, grid) = (self.statistics.k(), self.statistics.grid());
        let head = k - (N - 1) * S::LANES;
        // Vector 0 holds the first `head` rows, and garbage behind them that weighs nothing; the others are full.
        let mut weights = [0.0; MAX_K + SLACK];
        for (i, scale) in self.statistics.row_scale().iter().enumerate() {
            weights[if i < head { i } else { i - head + S::LANES }] = scale * scale;
        }
        let mut centred = [0.0f32; MAX_K];
        for (row, out) in self.out.chunks_exact_mut(grid).enumerate() {
            let row = self.first + row;
            // SAFETY: the caller has checked the CPU.
            let reader = unsafe { self.cell.row::<S>(self.thread, row) };
            for (column, out) in out.iter_mut().enumerate() {
                let position = row * grid + column;
                // SAFETY: the statistics' lengths were checked when they were joined: `position` lies inside, and the
                // slack at the end of mean and factors covers what a vector reads past the last position.
                unsafe {
                    let mean = self.statistics.mean().as_ptr().add(position * k);
                    reader.read::<S, N>(column, 0, mean, centred.as_mut_ptr());
                    let u = factors.add(position * position_stride(k));
                    *out = Whiten::<S, E, N>::norm(u, centred.as_ptr(), weights.as_ptr(), k, head);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn in_memory<S: Simd, E: Element>(self, factors: *const E::Stored) {
        let (k, grid) = (self.statistics.k(), self.statistics.grid());
        let mut weights = [0.0; MAX_K];
        self.statistics.row_scale().iter().zip(&mut weights).for_each(|(s, w)| *w = s * s);
        let mut centred = [0.0f32; MAX_K];
        for (row, out) in self.out.chunks_exact_mut(grid).enumerate() {
            let row = self.first + row;
            // SAFETY: the caller has checked the CPU.
            let reader = unsafe { self.cell.row::<S>(self.thread, row) };
            for (column, out) in out.iter_mut().enumerate() {
                let position = row * grid + column;
                // SAFETY: as in `in_registers`.
                unsafe {
                    let mean = self.statistics.mean().as_ptr().add(position * k);
                    for vector in 0..k.div_ceil(S::LANES) {
                        let offset = vector * S::LANES;
                        reader.read::<S, 1>(column, offset, mean.add(offset), centred.as_mut_ptr().add(offset));
                    }
                    let u = factors.add(position * position_stride(k));
                    *out = norm_in_memory::<S, E>(u, centred.as_ptr(), weights.as_ptr(), k);
                }
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

/// Asks for as many bytes as `vectors` vectors are read from, a KiB further on, and 4 KiB further on for the second cache
/// level: reading the embedding out between two positions makes the processor's own prefetcher lose the thread
/// (docs/performance.md).
///
/// # Safety
/// The CPU must have `S`.
#[inline(always)]
unsafe fn ask_ahead<S: Simd, T>(column: *const T, vectors: usize) {
    const AHEAD: usize = 1024;
    const FAR: usize = 4096;
    const LINE: usize = 64;
    for line in 0..(vectors * S::LANES * size_of::<T>()).div_ceil(LINE) {
        let at = column.cast::<u8>().wrapping_add(line * LINE);
        // SAFETY: the caller vouches for `S`, and any address will do.
        unsafe {
            S::prefetch(at.wrapping_add(AHEAD));
            S::prefetch_far(at.wrapping_add(FAR));
        }
    }
}

/// z = U·d in `N` registers: vector 0 holds the rows 0 to `head` − 1, vector v ≥ 1 the LANES rows from
/// `head + (v − 1)·LANES` on. So a column's loads end exactly where the column does, and only the one that meets the
/// diagonal has lanes to clear.
struct Whiten<S, E, const N: usize>(PhantomData<(S, E)>);

impl<S: Simd, E: Element, const N: usize> Whiten<S, E, N> {
    /// ‖diag(scale)·U·d‖, where `weights` are the squares of the scale, laid out as z is, and 0 where no row is.
    ///
    /// # Safety
    /// `u` holds a packed position and LANES numbers more, `d` k floats, `weights` N·LANES; `head` is
    /// k − (N − 1)·LANES, from 1 to LANES.
    #[inline(always)]
    unsafe fn norm(u: *const E::Stored, d: *const f32, weights: *const f32, k: usize, head: usize) -> f32 {
        // SAFETY: as the caller promised.
        unsafe {
            let mut z = [S::splat(0.0); N];
            let mut column = u;
            for j in 0..head {
                let x = S::splat(*d.add(j));
                // Reads on into rows behind the head, which the weights drop.
                z[0] = S::fma(S::keep_from(E::load::<S>(column.sub(j)), j), x, z[0]);
                let full = column.add(head - j);
                for v in 1..N {
                    z[v] = S::fma(E::load::<S>(full.add((v - 1) * S::LANES)), x, z[v]);
                }
                ask_ahead::<S, _>(column, N);
                column = column.add(k - j);
            }
            macro_rules! blocks {
                ($($block:literal)*) => {
                    $( if $block < N { column = Self::block::<$block>(column, d, k, head, &mut z); } )*
                };
            }
            blocks!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24);
            let _ = column;
            let mut sum = S::splat(0.0);
            for (v, &z) in z.iter().enumerate() {
                sum = S::fma(S::mul(z, z), S::load(weights.add(v * S::LANES)), sum);
            }
            S::sum(sum).sqrt()
        }
    }

    /// The LANES columns that meet the diagonal in vector `BLOCK`; gives the column behind them.
    #[inline(always)]
    unsafe fn block<const BLOCK: usize>(
        mut column: *const E::Stored,
        d: *const f32,
        k: usize,
        head: usize,
        z: &mut [S::V; N],
    ) -> *const E::Stored {
        let first = head + (BLOCK - 1) * S::LANES;
        // SAFETY: as the caller of `norm` promised: the first load starts `above` numbers before the column, which is
        // inside the position, and the last one ends with the column.
        unsafe {
            for above in 0..S::LANES {
                let j = first + above;
                let x = S::splat(*d.add(j));
                let aligned = column.sub(above);
                z[BLOCK] = S::fma(S::keep_from(E::load::<S>(aligned), above), x, z[BLOCK]);
                for v in BLOCK + 1..N {
                    z[v] = S::fma(E::load::<S>(aligned.add((v - BLOCK) * S::LANES)), x, z[v]);
                }
                ask_ahead::<S, _>(column, N - BLOCK);
                column = column.add(k - j);
            }
            column
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
    use std::sync::Arc;

    use super::*;
    use crate::backbone::Pyramid;
    use crate::embedding::Embedder;
    use crate::embedding::projection::CHANNELS;
    use crate::embedding::{Embedding, Mixing, Projection, Stages};
    use crate::gaussian::factors::{Precision, section_len};
    use crate::gaussian::fit::tests::embeddings;
    use crate::gaussian::fit::{Accumulator, BATCH};
    use crate::gaussian::shrinkage::Shrinkage;
    use crate::simd::Isa;
    use crate::workers::Workers;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    fn fill(pyramid: &mut Pyramid, rng: &mut ChaCha8Rng) {
        for stage in 0..4 {
            pyramid.fill_with(stage, |_| (rng.next_u32() >> 8) as f32 / (1 << 24) as f32);
        }
    }

    /// Fits some noise and measures other noise, with every instruction set, precision and several k, whose vectors take
    /// each of the ways through the kernel.
    #[test]
    fn the_packed_distance_equals_the_dense_one() {
        let (size, grid) = (64, 8);
        for k in [1, 9, 31, 50, 64, 100, 101, 128] {
            let projection = Projection::semi_orthogonal(Mixing::Dense, k, 1, Stages::ALL, &[1.0; CHANNELS]).unwrap();
            let mut rng = ChaCha8Rng::seed_from_u64(k as u64);
            let mut pyramid = Pyramid::new(size);
            let mut scalar = Embedder::new(&projection, size, grid, Isa::Scalar, Arc::new(Workers::new(1)));
            let mut accumulator = Accumulator::new(grid, k);
            for batch in embeddings(grid, k, 6 * BATCH, k as u64).chunks(BATCH) {
                accumulator.update(&batch.iter().collect::<Vec<_>>(), Isa::detect(), &Workers::new(1));
            }
            fill(&mut pyramid, &mut rng);
            let mut measured = Embedding::new(grid, k);
            scalar.project(&pyramid).read_into(&mut measured);
            let workers = Workers::new(1);
            let exact = accumulator.finish(Shrinkage::default(), Precision::F32, &workers).unwrap();
            let expected = mahalanobis_dense(&exact.view(), &measured);
            for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::F16, 1e-2)] {
                let fit = accumulator.finish(Shrinkage::default(), precision, &workers).unwrap();
                assert_eq!(fit.view().factors().len(), section_len(grid * grid, k));
                for isa in Isa::available() {
                    for threads in [1, 3] {
                        let workers = Arc::new(Workers::new(threads));
                        let mut embedder = Embedder::new(&projection, size, grid, isa, workers);
                        let mut got = vec![0.0; grid * grid];
                        mahalanobis(&fit.view(), embedder.project(&pyramid), &mut got);
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
        let projection = Projection::semi_orthogonal(Mixing::Dense, k, 1, Stages::ALL, &[1.0; CHANNELS]).unwrap();
        let mean = vec![0.0; grid * grid * k + 16];
        let fit = crate::gaussian::factors::OwnedStatistics::pack(
            grid,
            k,
            mean,
            vec![1.0; section_len(grid * grid, k)],
            Precision::F16,
        );
        let mut pyramid = Pyramid::new(size);
        pyramid.row_mut(0, 0)[0] = f32::NAN;
        for isa in Isa::available() {
            let mut embedder = Embedder::new(&projection, size, grid, isa, Arc::new(Workers::new(1)));
            let mut out = vec![0.0; grid * grid];
            mahalanobis(&fit.view(), embedder.project(&pyramid), &mut out);
            assert!(out[0].is_nan(), "{isa}");
        }
    }
}
