//! Mean and co-moments of good cells, streaming: constant memory whatever the number of cells.

use crate::embedding::Embedding;
use crate::embedding::cpu::SLACK;
use crate::simd::{Isa, Kernel, Simd};
use crate::workers::Workers;

use super::factors::{column_start, packed_len};

/// Embeddings that enter the co-moments in one pass over them. One pass reads and writes grid²·k(k+1)/2 doubles
/// (165 MB at k = 100): shared among 32 cells it is a few milliseconds a cell.
pub const BATCH: usize = 32;

/// n, mean μ and co-moments M2 of every position (Chan, Golub and LeVeque's update), and the two sums of fourth order
/// that Ledoit and Wolf's shrinkage asks for.
///
/// M2 and the means are kept in f64: a million cells lose nothing, and merged shards equal a single run within
/// rounding.
#[derive(Clone, Debug, PartialEq)]
pub struct Accumulator {
    grid: usize,
    k: usize,
    pub(super) count: u64,
    pub(super) mean: Vec<f64>,
    /// Σ (y − μ)(y − μ)ᵀ, the lower triangle column after column, [`packed_len`] a position.
    pub(super) m2: Vec<f64>,
    /// Σ ‖y‖²·y, k a position.
    pub(super) cubes: Vec<f64>,
    /// Σ ‖y‖⁴, one a position.
    pub(super) fourths: Vec<f64>,
}

impl Accumulator {
    /// An empty one.
    #[must_use]
    pub fn new(grid: usize, k: usize) -> Self {
        let [mean, m2, cubes, fourths] = Self::lengths(grid, k).map(|length| vec![0.0; length]);
        Self { grid, k, count: 0, mean, m2, cubes, fourths }
    }

    /// Side of the field.
    #[must_use]
    pub fn grid(&self) -> usize {
        self.grid
    }

    /// Values of a position.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Embeddings taken in, n.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Lengths of mean, M2, cubes and fourths for a field.
    #[must_use]
    pub fn lengths(grid: usize, k: usize) -> [usize; 4] {
        let positions = grid * grid;
        [positions * k, positions * packed_len(k), positions * k, positions]
    }

    /// What a file stores of it.
    #[must_use]
    pub fn raw(&self) -> RawMoments<'_> {
        let Self { count, mean, m2, cubes, fourths, .. } = self;
        RawMoments { count: *count, mean, m2, cubes, fourths }
    }

    /// From what a file stores.
    ///
    /// # Panics
    /// If the lengths are not those of [`Accumulator::lengths`].
    #[must_use]
    pub fn from_raw(grid: usize, k: usize, raw: RawMoments<'_>) -> Self {
        let RawMoments { count, mean, m2, cubes, fourths } = raw;
        assert_eq!([mean.len(), m2.len(), cubes.len(), fourths.len()], Self::lengths(grid, k));
        let [mean, m2, cubes, fourths] = [mean, m2, cubes, fourths].map(<[f64]>::to_vec);
        Self { grid, k, count, mean, m2, cubes, fourths }
    }

    /// Takes in a batch of at most [`BATCH`] embeddings: one rank-B update per position.
    ///
    /// # Panics
    /// If an embedding has another grid or k, or there are more than [`BATCH`].
    pub fn update(&mut self, batch: &[&Embedding], isa: Isa, workers: &Workers) {
        assert!(batch.len() <= BATCH, "a batch is at most {BATCH} embeddings");
        assert!(
            batch.iter().all(|e| e.values().len() == self.mean.len() && e.at(0).len() == self.k),
            "embeddings of another grid or k"
        );
        if batch.is_empty() {
            return;
        }
        let (positions, k, before) = (self.grid * self.grid, self.k, self.count);
        let threads = workers.count();
        let buffers = Buffers {
            mean: self.mean.as_mut_ptr(),
            m2: self.m2.as_mut_ptr(),
            cubes: self.cubes.as_mut_ptr(),
            fourths: self.fourths.as_mut_ptr(),
        };
        workers.run(&|thread| {
            let range = positions * thread / threads..positions * (thread + 1) / threads;
            let mut panel = Panel::new(k);
            for position in range {
                // SAFETY: no two threads share a position, and the buffers hold all positions.
                let state = unsafe { buffers.position(position, k) };
                isa.run(Update { batch, position, before, k, state, panel: &mut panel });
            }
        });
        self.count += batch.len() as u64;
    }

    /// Joins another accumulator's cells to this one's.
    ///
    /// # Panics
    /// If it has another grid or k.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!((self.grid, self.k), (other.grid, other.k), "accumulators of another grid or k");
        self.merge_raw(other.raw());
    }

    /// [`merge`](Self::merge) with an accumulator that lies in a file.
    ///
    /// # Panics
    /// If the lengths are not those of [`Accumulator::lengths`].
    pub fn merge_raw(&mut self, other: RawMoments<'_>) {
        let lengths = [other.mean.len(), other.m2.len(), other.cubes.len(), other.fourths.len()];
        assert_eq!(lengths, Self::lengths(self.grid, self.k));
        if other.count == 0 {
            return;
        }
        let (n, m) = (self.count as f64, other.count as f64);
        let (k, packed) = (self.k, packed_len(self.k));
        let mut delta = vec![0.0; k];
        for position in 0..self.grid * self.grid {
            let mean = &mut self.mean[position * k..][..k];
            for ((d, a), b) in delta.iter_mut().zip(mean.iter_mut()).zip(&other.mean[position * k..]) {
                *d = b - *a;
                *a += *d * m / (n + m);
            }
            let m2 = &mut self.m2[position * packed..][..packed];
            let theirs = &other.m2[position * packed..][..packed];
            for j in 0..k {
                let start = column_start(k, j);
                let along = delta[j] * n * m / (n + m);
                for (i, &d) in delta.iter().enumerate().skip(j) {
                    m2[start + i - j] += theirs[start + i - j] + along * d;
                }
            }
        }
        self.cubes.iter_mut().zip(other.cubes).for_each(|(a, b)| *a += b);
        self.fourths.iter_mut().zip(other.fourths).for_each(|(a, b)| *a += b);
        self.count += other.count;
    }
}

/// The numbers of an [`Accumulator`], borrowed.
#[derive(Clone, Copy, Debug)]
pub struct RawMoments<'a> {
    /// Embeddings taken in.
    pub count: u64,
    /// Means, k a position.
    pub mean: &'a [f64],
    /// Co-moments, the packed lower triangle of each position.
    pub m2: &'a [f64],
    /// Σ ‖y‖²·y, k a position.
    pub cubes: &'a [f64],
    /// Σ ‖y‖⁴, one a position.
    pub fourths: &'a [f64],
}

/// Where the four buffers start, to be cut into positions.
struct Buffers {
    mean: *mut f64,
    m2: *mut f64,
    cubes: *mut f64,
    fourths: *mut f64,
}

// SAFETY: `update` hands each thread positions of its own.
unsafe impl Sync for Buffers {}

struct Position<'a> {
    mean: &'a mut [f64],
    m2: &'a mut [f64],
    cubes: &'a mut [f64],
    fourth: &'a mut f64,
}

impl Buffers {
    /// # Safety
    /// `position` must lie in the buffers and be in no other thread's hands.
    unsafe fn position(&self, position: usize, k: usize) -> Position<'_> {
        let packed = packed_len(k);
        // SAFETY: as the caller promised.
        unsafe {
            Position {
                mean: std::slice::from_raw_parts_mut(self.mean.add(position * k), k),
                m2: std::slice::from_raw_parts_mut(self.m2.add(position * packed), packed),
                cubes: std::slice::from_raw_parts_mut(self.cubes.add(position * k), k),
                fourth: &mut *self.fourths.add(position),
            }
        }
    }
}

/// The centred batch of one position, rows of `width` floats, and the update that it makes.
struct Panel {
    width: usize,
    rows: Vec<f32>,
    batch_mean: Vec<f64>,
    update: Vec<f32>,
}

impl Panel {
    fn new(k: usize) -> Self {
        let width = k.next_multiple_of(SLACK);
        Self {
            width,
            rows: vec![0.0; (BATCH + 1) * width],
            batch_mean: vec![0.0; k],
            update: vec![0.0; COLUMNS * width],
        }
    }
}

/// Columns of the update made at once.
const COLUMNS: usize = 4;

struct Update<'a> {
    batch: &'a [&'a Embedding],
    position: usize,
    before: u64,
    k: usize,
    state: Position<'a>,
    panel: &'a mut Panel,
}

impl Kernel for Update<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Update { batch, position, before, k, state, panel } = self;
        let Panel { width, rows, batch_mean, update } = panel;
        let (width, n, m) = (*width, before as f64, batch.len() as f64);

        batch_mean.fill(0.0);
        for embedding in batch {
            let y = embedding.at(position);
            let square = sum_of_squares(y);
            *state.fourth += square * square;
            for ((sum, cube), &y) in batch_mean.iter_mut().zip(state.cubes.iter_mut()).zip(y) {
                *sum += f64::from(y);
                *cube += square * f64::from(y);
            }
        }
        batch_mean.iter_mut().for_each(|sum| *sum /= m);
        for (row, embedding) in rows.chunks_exact_mut(width).zip(batch) {
            for ((z, &y), mean) in row.iter_mut().zip(embedding.at(position)).zip(batch_mean.iter()) {
                *z = (f64::from(y) - mean) as f32;
            }
        }
        // The step between the two means is one more row: δδᵀ·nm/(n + m).
        let step = &mut rows[batch.len() * width..][..width];
        let weight = (n * m / (n + m)).sqrt();
        for ((z, mean), batch_mean) in step.iter_mut().zip(state.mean.iter_mut()).zip(batch_mean.iter()) {
            let delta = batch_mean - *mean;
            *z = (delta * weight) as f32;
            *mean += delta * m / (n + m);
        }

        let rows = &rows[..(batch.len() + 1) * width];
        for first in (0..k).step_by(COLUMNS) {
            let columns = COLUMNS.min(k - first);
            // SAFETY: `rows` are `width` long, a multiple of LANES; columns past k are zero or stale, and not used.
            unsafe { outer_products::<S>(rows, width, first, columns, update) };
            for (column, update) in update.chunks_exact(width).take(columns).enumerate() {
                let j = first + column;
                let m2 = &mut state.m2[column_start(k, j)..][..k - j];
                m2.iter_mut().zip(&update[j..]).for_each(|(a, &b)| *a += f64::from(b));
            }
        }
    }
}

/// ‖y‖², summed in the same order with every instruction set.
#[inline(always)]
fn sum_of_squares(y: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let chunks = y.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|&y| f64::from(y) * f64::from(y)).sum();
    for chunk in chunks {
        for (sum, &y) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(y) * f64::from(y);
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// `update[c][i] = Σ_rows row[first + c]·row[i]` for `columns` columns c and every i from `first` (rounded down) on.
///
/// # Safety
/// The CPU must have `S`; rows and updates are `width` floats long, `width` a multiple of LANES and above
/// `first + columns`.
#[inline(always)]
unsafe fn outer_products<S: Simd>(rows: &[f32], width: usize, first: usize, columns: usize, update: &mut [f32]) {
    let mut at = first / S::LANES * S::LANES;
    // SAFETY: `at + vectors·LANES` ≤ width.
    unsafe {
        while at + 2 * S::LANES <= width {
            outer_product::<S, 2>(rows, width, first, columns, at, update);
            at += 2 * S::LANES;
        }
        if at < width {
            outer_product::<S, 1>(rows, width, first, columns, at, update);
        }
    }
}

/// The part of [`outer_products`] in the `N` vectors from `at` on.
///
/// # Safety
/// As there, and `at + N·LANES` ≤ width.
#[inline(always)]
unsafe fn outer_product<S: Simd, const N: usize>(
    rows: &[f32],
    width: usize,
    first: usize,
    columns: usize,
    at: usize,
    update: &mut [f32],
) {
    // SAFETY: as the caller promised; the last columns of an incomplete group are clamped to the last one.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; COLUMNS];
        for row in rows.chunks_exact(width) {
            let p = row.as_ptr();
            let mut v = [S::splat(0.0); N];
            for (n, v) in v.iter_mut().enumerate() {
                *v = S::load(p.add(at + n * S::LANES));
            }
            for (c, sums) in sums.iter_mut().enumerate() {
                let along = S::splat(*p.add(first + c.min(columns - 1)));
                for (sum, v) in sums.iter_mut().zip(v) {
                    *sum = S::fma(along, v, *sum);
                }
            }
        }
        for (c, sums) in sums.into_iter().enumerate() {
            for (n, sum) in sums.into_iter().enumerate() {
                S::store(update.as_mut_ptr().add(c * width + at + n * S::LANES), sum);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    /// Correlated, shifted noise: what good cells look like to the fit.
    pub(crate) fn embeddings(grid: usize, k: usize, count: usize, seed: u64) -> Vec<Embedding> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count)
            .map(|_| {
                let mut e = Embedding::new(grid, k);
                let mut last = 0.0;
                for (i, y) in e.values_mut().iter_mut().enumerate() {
                    let noise = (rng.next_u32() >> 8) as f32 / (1 << 24) as f32 - 0.5;
                    last = 0.6 * last + noise;
                    *y = last + (i % 7) as f32;
                }
                e
            })
            .collect()
    }

    fn accumulate(all: &[Embedding], isa: Isa, threads: usize) -> Accumulator {
        let workers = Workers::new(threads);
        let k = all[0].at(0).len();
        let grid = ((all[0].values().len() / k) as f64).sqrt() as usize;
        let mut accumulator = Accumulator::new(grid, k);
        all.iter().collect::<Vec<_>>().chunks(BATCH).for_each(|batch| accumulator.update(batch, isa, &workers));
        accumulator
    }

    #[test]
    fn the_stream_equals_two_passes_in_f64() {
        let (grid, k) = (2, 19);
        let all = embeddings(grid, k, 75, 1);
        for isa in Isa::available() {
            let got = accumulate(&all, isa, 2);
            for position in 0..grid * grid {
                let mean: Vec<f64> = (0..k)
                    .map(|j| all.iter().map(|e| f64::from(e.at(position)[j])).sum::<f64>() / all.len() as f64)
                    .collect();
                for j in 0..k {
                    assert!((got.mean[position * k + j] - mean[j]).abs() < 1e-12);
                    for i in j..k {
                        let want: f64 = all
                            .iter()
                            .map(|e| {
                                let y = e.at(position);
                                (f64::from(y[i]) - mean[i]) * (f64::from(y[j]) - mean[j])
                            })
                            .sum();
                        let have = got.m2[position * packed_len(k) + column_start(k, j) + i - j];
                        assert!((have - want).abs() < 1e-5, "{isa} ({i}, {j}): {have} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let all = embeddings(3, 10, 40, 2);
        let isa = Isa::detect();
        assert_eq!(accumulate(&all, isa, 1), accumulate(&all, isa, 3));
    }

    #[test]
    fn an_empty_accumulator_is_neutral_in_a_merge() {
        let all = embeddings(2, 5, 9, 3);
        let one = accumulate(&all, Isa::Scalar, 1);
        let mut left = Accumulator::new(2, 5);
        left.merge(&one);
        let mut right = one.clone();
        right.merge(&Accumulator::new(2, 5));
        assert_eq!(right, one);
        assert_eq!(left.count, one.count);
        assert!(left.m2.iter().zip(&one.m2).all(|(a, b)| (a - b).abs() < 1e-12));
    }
}
