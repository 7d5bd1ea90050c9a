//! Projection and interpolation on the CPU.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backbone::{Pyramid, STAGE_CHANNELS, STAGE_STRIDES};
use crate::simd::{Isa, Kernel, Simd};
use crate::workers::Workers;

use super::Projection;
use super::matrix::{Matrix, cyclic};

/// Floats past the end of a buffer that a vector of the widest instruction set may touch.
pub(crate) const SLACK: usize = 16;

/// One k-vector for each of the grid's positions, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    grid: usize,
    k: usize,
    values: Vec<f32>,
}

impl Embedding {
    /// A zero embedding on a `grid` × `grid` field.
    #[must_use]
    pub fn new(grid: usize, k: usize) -> Self {
        Self { grid, k, values: vec![0.0; grid * grid * k + SLACK] }
    }

    /// All values: grid² × k.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values[..self.grid * self.grid * self.k]
    }

    /// All values, to be written.
    pub fn values_mut(&mut self) -> &mut [f32] {
        let len = self.grid * self.grid * self.k;
        &mut self.values[..len]
    }

    /// The vector of one position.
    #[must_use]
    pub fn at(&self, position: usize) -> &[f32] {
        &self.values[position * self.k..][..self.k]
    }
}

/// Projects a pyramid and reads it out on the grid. All buffers are its own and made once.
pub struct Embedder {
    isa: Isa,
    size: usize,
    grid: usize,
    k: usize,
    plain: Option<Plain>,
    stages: Vec<StageMap>,
    workers: Arc<Workers>,
    /// For each worker, the blended rows of a grid row: see [`Projected::row`].
    rows: Vec<Mutex<Vec<f32>>>,
}

/// A stage that is read from the pyramid itself: its map has the grid's size, and its channels feed as many values in the
/// same order from the first on (a sparse W's first stage). Value c is channel c times its weight, so a projected map
/// would only be a larger copy.
#[derive(Debug)]
struct Plain {
    stage: usize,
    /// One for each channel; a multiple of [`SLACK`].
    weights: Vec<f32>,
}

impl Plain {
    fn new(stage: usize, side: usize, grid: usize, k: usize, w: &[f32]) -> Option<Self> {
        let channels = STAGE_CHANNELS[stage];
        let (first, weights) = cyclic(k, w)?;
        (side == grid && first == 0 && channels <= k && channels.is_multiple_of(SLACK))
            .then_some(Self { stage, weights })
    }
}

/// One stage: its part of W, and its projected map of `side²` pixels, `stride` floats apart (k rounded up to whole
/// panels of the packed matrix).
#[derive(Debug)]
struct StageMap {
    stage: usize,
    side: usize,
    stride: usize,
    matrix: Matrix,
    map: Vec<f32>,
    taps: Vec<Tap>,
    /// Where its blended row starts in a worker's rows.
    row: usize,
}

/// One axis of a bilinear interpolation: `(1 − weight)·x[low] + weight·x[high]`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tap {
    low: usize,
    high: usize,
    weight: f32,
}

impl Embedder {
    /// For images of side `size`, a `grid` × `grid` field and the given projection; `workers` share the work.
    #[must_use]
    pub fn new(projection: &Projection, size: usize, grid: usize, isa: Isa, workers: Arc<Workers>) -> Self {
        let k = projection.k();
        let mut row = 0;
        let plain = (0..4)
            .filter(|&stage| projection.uses(stage))
            .find_map(|stage| Plain::new(stage, size / STAGE_STRIDES[stage], grid, k, projection.stage(stage)));
        let stages = (0..4)
            .filter(|&stage| projection.uses(stage) && plain.as_ref().is_none_or(|plain| plain.stage != stage))
            .map(|stage| {
                let side = size / STAGE_STRIDES[stage];
                let matrix = Matrix::new(isa, STAGE_CHANNELS[stage], k, projection.stage(stage));
                let stride = matrix.stride();
                let taps = (0..grid).map(|i| Tap::new(i, side, grid)).collect();
                let map = StageMap { stage, side, stride, matrix, map: vec![0.0; side * side * stride], taps, row };
                row += side * stride;
                map
            })
            .collect();
        let rows = (0..workers.count()).map(|_| Mutex::new(vec![0.0; row])).collect();
        Self { isa, size, grid, k, plain, stages, workers, rows }
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

    /// The instruction set that it was made for.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Those who share its work.
    #[must_use]
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Projects every stage at its own resolution; what comes is read with the pyramid at hand, which may not change
    /// meanwhile.
    ///
    /// # Panics
    /// If the pyramid was made for another image size, or lacks a stage.
    pub fn project<'a>(&'a mut self, pyramid: &'a Pyramid) -> Projected<'a> {
        assert_eq!(pyramid.size(), self.size, "the embedder was made for another image size");
        for StageMap { stage, side, matrix, map, .. } in &mut self.stages {
            matrix.project(*side, |y| pyramid.row(*stage, y), map, &self.workers);
        }
        self.projected(pyramid)
    }

    /// What [`project`](Self::project) gave last, of the same pyramid.
    ///
    /// # Panics
    /// As [`project`](Self::project).
    pub(crate) fn projected<'a>(&'a self, pyramid: &'a Pyramid) -> Projected<'a> {
        assert_eq!(pyramid.size(), self.size, "the embedder was made for another image size");
        Projected { embedder: self, pyramid }
    }
}

/// A projected cell, which can be read on the grid.
#[derive(Clone, Copy)]
pub struct Projected<'a> {
    embedder: &'a Embedder,
    pyramid: &'a Pyramid,
}

impl<'a> Projected<'a> {
    /// Who projected it.
    #[must_use]
    pub fn embedder(&self) -> &'a Embedder {
        self.embedder
    }

    /// Reads it out on the whole grid.
    ///
    /// # Panics
    /// If `out` was made for another grid or k.
    pub fn read_into(&self, out: &mut Embedding) {
        let Embedder { isa, grid, k, .. } = *self.embedder;
        assert_eq!((out.grid, out.k), (grid, k), "the embedding was made for another grid or k");
        isa.run(ReadAll { projected: *self, out: &mut out.values });
    }

    /// Makes ready to read grid row `row` on worker `thread`: the two rows of each map that it lies between are blended
    /// once for all its positions, which leaves two corners to mix at each instead of four.
    ///
    /// # Safety
    /// The CPU must have `S`.
    #[inline(always)]
    pub(crate) unsafe fn row<S: Simd>(&self, thread: usize, row: usize) -> RowReader<'a> {
        let embedder = self.embedder;
        let mut blended = embedder.rows[thread].lock().unwrap_or_else(PoisonError::into_inner);
        for stage in embedder.stages.iter().filter(|stage| stage.side != embedder.grid) {
            let (tap, width) = (stage.taps[row], stage.side * stage.stride);
            let (low, high) = (&stage.map[tap.low * width..][..width], &stage.map[tap.high * width..][..width]);
            let out = &mut blended[stage.row..][..width];
            // SAFETY: the caller vouches for `S`, and the three are equally long, a multiple of LANES.
            unsafe {
                let weight = S::splat(tap.weight);
                for at in (0..width).step_by(S::LANES) {
                    let (low, high) = (S::load(low.as_ptr().add(at)), S::load(high.as_ptr().add(at)));
                    S::store(out.as_mut_ptr().add(at), S::fma(weight, S::sub(high, low), low));
                }
            }
        }
        let plain = embedder.plain.as_ref().map(|plain| (plain, self.pyramid.row(plain.stage, row)));
        RowReader { embedder, plain, row, blended }
    }
}

/// A row of the grid, ready to be read: see [`Projected::row`].
pub(crate) struct RowReader<'a> {
    embedder: &'a Embedder,
    /// The stage that is read as it is, and its row.
    plain: Option<(&'a Plain, &'a [f32])>,
    row: usize,
    blended: MutexGuard<'a, Vec<f32>>,
}

impl RowReader<'_> {
    /// Values `first` to `first + N·LANES` of the vector at `column` minus those at `minus`, written to `out`; only
    /// those before the first k mean anything.
    ///
    /// # Safety
    /// The CPU must have `S`; `out` and `minus` must hold `N·LANES` floats, and `first + N·LANES` be at most k rounded
    /// up to a multiple of 16.
    #[inline(always)]
    pub(crate) unsafe fn read<S: Simd, const N: usize>(
        &self,
        column: usize,
        first: usize,
        minus: *const f32,
        out: *mut f32,
    ) {
        debug_assert!(first + N * S::LANES <= self.embedder.k.next_multiple_of(SLACK));
        // SAFETY: taps stay inside the map (see `Tap::new`), each pixel of which is `stride` ≥ first + N·LANES floats. The
        // plain stage's row has a pixel for each column, whose channels are a multiple of SLACK and so of LANES.
        unsafe {
            // (`array::from_fn` would not always be inlined, and lose the instruction set.)
            let mut sum = [S::splat(0.0); N];
            for v in 0..N {
                sum[v] = S::sub(sum[v], S::load(minus.add(v * S::LANES)));
            }
            if let Some((plain, row)) = self.plain {
                let channels = plain.weights.len();
                let (pixel, weights) = (row.as_ptr().add(column * channels), plain.weights.as_ptr());
                for v in 0..N {
                    let at = first + v * S::LANES;
                    if at < channels {
                        sum[v] = S::fma(S::load(pixel.add(at)), S::load(weights.add(at)), sum[v]);
                    }
                }
            }
            for stage in &self.embedder.stages {
                if stage.side == self.embedder.grid {
                    let pixel = stage.map.as_ptr().add((self.row * stage.side + column) * stage.stride + first);
                    for v in 0..N {
                        sum[v] = S::add(sum[v], S::load(pixel.add(v * S::LANES)));
                    }
                } else {
                    let tap = *stage.taps.get_unchecked(column);
                    let row = self.blended.as_ptr().add(stage.row + first);
                    let (low, high) = (row.add(tap.low * stage.stride), row.add(tap.high * stage.stride));
                    let (below, above) = (S::splat(1.0 - tap.weight), S::splat(tap.weight));
                    for v in 0..N {
                        sum[v] = S::fma(below, S::load(low.add(v * S::LANES)), sum[v]);
                        sum[v] = S::fma(above, S::load(high.add(v * S::LANES)), sum[v]);
                    }
                }
            }
            for v in 0..N {
                S::store(out.add(v * S::LANES), sum[v]);
            }
        }
    }
}

impl Tap {
    /// Where position `i` of a grid of `grid` falls on an axis of `side` pixels: half-pixel centres, edge clamped, as
    /// `interpolate(mode="bilinear", align_corners=False)` does.
    fn new(i: usize, side: usize, grid: usize) -> Self {
        let at = ((i as f64 + 0.5) * side as f64 / grid as f64 - 0.5).clamp(0.0, (side - 1) as f64);
        let low = (at as usize).min(side - 1);
        Self { low, high: (low + 1).min(side - 1), weight: (at - low as f64) as f32 }
    }
}

struct ReadAll<'a> {
    projected: Projected<'a>,
    out: &'a mut [f32],
}

impl Kernel for ReadAll<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Embedder { grid, k, .. } = *self.projected.embedder;
        let zero = [0.0f32; 4 * SLACK];
        for row in 0..grid {
            // SAFETY: the caller has checked the CPU.
            let reader = unsafe { self.projected.row::<S>(0, row) };
            for column in 0..grid {
                let at = (row * grid + column) * k;
                // SAFETY: a vector may run past the position's k values by less than LANES ≤ SLACK, into the next
                // position (written after it) or the slack at the end.
                unsafe {
                    debug_assert!(at + k.next_multiple_of(S::LANES) <= self.out.len());
                    let out = self.out.as_mut_ptr().add(at);
                    let mut first = 0;
                    while first + 4 * S::LANES <= k {
                        reader.read::<S, 4>(column, first, zero.as_ptr(), out.add(first));
                        first += 4 * S::LANES;
                    }
                    while first < k {
                        reader.read::<S, 1>(column, first, zero.as_ptr(), out.add(first));
                        first += S::LANES;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedding::projection::CHANNELS;
    use crate::embedding::{Mixing, Stages};

    fn pyramid(size: usize) -> Pyramid {
        let mut pyramid = Pyramid::new(size);
        let mut state = 1u32;
        for stage in 0..4 {
            pyramid.fill_with(stage, |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.3
            });
        }
        pyramid
    }

    /// Upsample all 960 channels first, project then, in f64: what the paper describes.
    fn upsample_then_project(projection: &Projection, pyramid: &Pyramid, grid: usize) -> Vec<f64> {
        let k = projection.k();
        let mut out = vec![0.0; grid * grid * k];
        for stage in 0..4 {
            let (side, channels) = (pyramid.side(stage), STAGE_CHANNELS[stage]);
            let w = projection.stage(stage);
            let at = |i: usize| ((i as f64 + 0.5) * side as f64 / grid as f64 - 0.5).clamp(0.0, (side - 1) as f64);
            for row in 0..grid {
                for column in 0..grid {
                    let (y, x) = (at(row), at(column));
                    let (y0, x0) = (y.floor() as usize, x.floor() as usize);
                    let (y1, x1) = ((y0 + 1).min(side - 1), (x0 + 1).min(side - 1));
                    let (fy, fx) = (y - y0 as f64, x - x0 as f64);
                    for c in 0..channels {
                        let v = |y: usize, x: usize| f64::from(pyramid.row(stage, y)[x * channels + c]);
                        let value = (1.0 - fy) * ((1.0 - fx) * v(y0, x0) + fx * v(y0, x1))
                            + fy * ((1.0 - fx) * v(y1, x0) + fx * v(y1, x1));
                        for j in 0..k {
                            out[(row * grid + column) * k + j] += value * f64::from(w[c * k + j]);
                        }
                    }
                }
            }
        }
        out
    }

    #[test]
    fn project_then_upsample_equals_upsample_then_project() {
        let cases = [(64, 16, 10, "1,2,3,4"), (128, 24, 33, "1,2,3,4"), (96, 8, 7, "2,3")];
        // Where stage 1 is read as it is.
        let plain = [(64, 16, 100, "1,2,3,4"), (96, 24, 64, "1,3")];
        for (size, grid, k, text) in cases.into_iter().chain(plain) {
            let stages: Stages = text.parse().unwrap();
            let pyramid = pyramid(size);
            for mixing in [Mixing::Sparse, Mixing::Dense] {
                let projection = Projection::semi_orthogonal(mixing, k, 3, stages, &[1.0; CHANNELS]).unwrap();
                let expected = upsample_then_project(&projection, &pyramid, grid);
                let is_plain = mixing == Mixing::Sparse && plain.contains(&(size, grid, k, text));
                for isa in Isa::available() {
                    let mut embedder = Embedder::new(&projection, size, grid, isa, Arc::new(Workers::new(2)));
                    assert_eq!(embedder.plain.is_some(), is_plain, "{mixing} S={size} k={k}");
                    let mut embedding = Embedding::new(grid, k);
                    embedder.project(&pyramid).read_into(&mut embedding);
                    for (i, (&got, &want)) in embedding.values().iter().zip(&expected).enumerate() {
                        let error = (f64::from(got) - want).abs();
                        assert!(error < 2e-5, "{isa} {mixing} S={size} value {i}: {got} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn taps_are_pytorchs() {
        let taps: Vec<Tap> = (0..4).map(|i| Tap::new(i, 2, 4)).collect();
        let expected =
            [(0, 1, 0.0), (0, 1, 0.25), (0, 1, 0.75), (1, 1, 0.0)].map(|(low, high, weight)| Tap { low, high, weight });
        assert_eq!(taps, expected);
    }
}
