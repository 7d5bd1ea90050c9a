//! Projection and interpolation on the CPU.

use crate::backbone::cpu::gemm::{PackedMatrix, gemm};
use crate::backbone::{Pyramid, STAGE_CHANNELS, STAGE_STRIDES};
use crate::simd::{Isa, Kernel, Simd};

use super::Projection;

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
#[derive(Clone, Debug)]
pub struct Embedder {
    isa: Isa,
    size: usize,
    grid: usize,
    k: usize,
    stages: Vec<StageMap>,
}

/// One stage: its part of W, and its projected map of `side²` pixels, `stride` floats apart (k rounded up to whole
/// panels of the packed matrix).
#[derive(Clone, Debug)]
struct StageMap {
    stage: usize,
    side: usize,
    stride: usize,
    matrix: PackedMatrix,
    map: Vec<f32>,
    taps: Vec<Tap>,
}

/// One axis of a bilinear interpolation: `(1 − weight)·x[low] + weight·x[high]`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tap {
    low: usize,
    high: usize,
    weight: f32,
}

impl Embedder {
    /// For images of side `size`, a `grid` × `grid` field and the given projection.
    #[must_use]
    pub fn new(projection: &Projection, size: usize, grid: usize, isa: Isa) -> Self {
        let k = projection.k();
        let stages = (0..4)
            .filter(|&stage| projection.uses(stage))
            .map(|stage| {
                let side = size / STAGE_STRIDES[stage];
                let w = projection.stage(stage);
                let matrix = PackedMatrix::new(isa, STAGE_CHANNELS[stage], k.next_multiple_of(SLACK), |c, j| {
                    if j < k { w[c * k + j] } else { 0.0 }
                });
                let stride = matrix.padded_columns();
                let taps = (0..grid).map(|i| Tap::new(i, side, grid)).collect();
                StageMap { stage, side, stride, matrix, map: vec![0.0; side * side * stride], taps }
            })
            .collect();
        Self { isa, size, grid, k, stages }
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

    /// Projects every stage at its own resolution.
    ///
    /// # Panics
    /// If the pyramid was made for another image size.
    pub fn project(&mut self, pyramid: &Pyramid) {
        assert_eq!(pyramid.size(), self.size, "the embedder was made for another image size");
        for StageMap { stage, side, stride, matrix, map, .. } in &mut self.stages {
            let channels = STAGE_CHANNELS[*stage];
            gemm(self.isa, pyramid.map(*stage), channels, *side * *side, matrix, map, *stride);
        }
    }

    /// Reads the projected maps out on the whole grid.
    ///
    /// # Panics
    /// If `out` was made for another grid or k.
    pub fn read_into(&self, out: &mut Embedding) {
        assert_eq!((out.grid, out.k), (self.grid, self.k), "the embedding was made for another grid or k");
        self.isa.run(ReadAll { embedder: self, out: &mut out.values });
    }

    /// The vector of position (`row`, `column`) minus `minus`, written to `out`; both are `vectors` vectors of `S`
    /// long, of which only the first k values mean anything.
    ///
    /// # Safety
    /// The CPU must have `S`; `out` and `minus` must hold `vectors · LANES` floats and `vectors · LANES` be at most
    /// k rounded up to a multiple of 16.
    #[inline(always)]
    pub(crate) unsafe fn read<S: Simd>(
        &self,
        row: usize,
        column: usize,
        vectors: usize,
        minus: *const f32,
        out: *mut f32,
    ) {
        debug_assert!(vectors * S::LANES <= self.k.next_multiple_of(SLACK));
        // SAFETY: taps stay inside the map (see `Tap::new`), each pixel of which is `stride` ≥ vectors·LANES floats.
        unsafe {
            for v in 0..vectors {
                let offset = v * S::LANES;
                S::store(out.add(offset), S::sub(S::splat(0.0), S::load(minus.add(offset))));
            }
            for stage in &self.stages {
                let (ty, tx) = (*stage.taps.get_unchecked(row), *stage.taps.get_unchecked(column));
                let map = stage.map.as_ptr();
                let pixel = |y: usize, x: usize| map.add((y * stage.side + x) * stage.stride);
                if stage.side == self.grid {
                    let p = pixel(row, column);
                    for v in 0..vectors {
                        let o = out.add(v * S::LANES);
                        S::store(o, S::add(S::load(o), S::load(p.add(v * S::LANES))));
                    }
                    continue;
                }
                let corners =
                    [pixel(ty.low, tx.low), pixel(ty.low, tx.high), pixel(ty.high, tx.low), pixel(ty.high, tx.high)];
                let weights = [
                    S::splat((1.0 - ty.weight) * (1.0 - tx.weight)),
                    S::splat((1.0 - ty.weight) * tx.weight),
                    S::splat(ty.weight * (1.0 - tx.weight)),
                    S::splat(ty.weight * tx.weight),
                ];
                for v in 0..vectors {
                    let offset = v * S::LANES;
                    let mut sum = S::load(out.add(offset));
                    for c in 0..4 {
                        sum = S::fma(weights[c], S::load(corners[c].add(offset)), sum);
                    }
                    S::store(out.add(offset), sum);
                }
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
    embedder: &'a Embedder,
    out: &'a mut [f32],
}

impl Kernel for ReadAll<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Embedder { grid, k, .. } = *self.embedder;
        let zero = [0.0f32; super::projection::MAX_K + SLACK];
        let vectors = k.div_ceil(S::LANES);
        for row in 0..grid {
            for column in 0..grid {
                let at = (row * grid + column) * k;
                // SAFETY: a vector may run past the position's k values by less than LANES ≤ SLACK, into the next
                // position (written after it) or the slack at the end.
                unsafe {
                    debug_assert!(at + vectors * S::LANES <= self.out.len());
                    self.embedder.read::<S>(row, column, vectors, zero.as_ptr(), self.out.as_mut_ptr().add(at));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedding::Stages;
    use crate::embedding::projection::CHANNELS;

    fn pyramid(size: usize) -> Pyramid {
        let mut pyramid = Pyramid::new(size);
        let mut state = 1u32;
        for stage in 0..4 {
            for x in pyramid.map_mut(stage) {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *x = (state >> 8) as f32 / (1 << 24) as f32 - 0.3;
            }
        }
        pyramid
    }

    /// Upsample all 960 channels first, project then, in f64: what the paper describes.
    fn upsample_then_project(projection: &Projection, pyramid: &Pyramid, grid: usize) -> Vec<f64> {
        let k = projection.k();
        let mut out = vec![0.0; grid * grid * k];
        for stage in 0..4 {
            let (side, channels) = (pyramid.side(stage), STAGE_CHANNELS[stage]);
            let (map, w) = (pyramid.map(stage), projection.stage(stage));
            let at = |i: usize| ((i as f64 + 0.5) * side as f64 / grid as f64 - 0.5).clamp(0.0, (side - 1) as f64);
            for row in 0..grid {
                for column in 0..grid {
                    let (y, x) = (at(row), at(column));
                    let (y0, x0) = (y.floor() as usize, x.floor() as usize);
                    let (y1, x1) = ((y0 + 1).min(side - 1), (x0 + 1).min(side - 1));
                    let (fy, fx) = (y - y0 as f64, x - x0 as f64);
                    for c in 0..channels {
                        let v = |y: usize, x: usize| f64::from(map[(y * side + x) * channels + c]);
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
        for (size, grid, k, stages) in [(64, 16, 10, "1,2,3,4"), (128, 24, 33, "1,2,3,4"), (96, 8, 7, "2,3")] {
            let stages: Stages = stages.parse().unwrap();
            let projection = Projection::semi_orthogonal(k, 3, stages, &[1.0; CHANNELS]).unwrap();
            let pyramid = pyramid(size);
            let expected = upsample_then_project(&projection, &pyramid, grid);
            for isa in Isa::available() {
                let mut embedder = Embedder::new(&projection, size, grid, isa);
                let mut embedding = Embedding::new(grid, k);
                embedder.project(&pyramid);
                embedder.read_into(&mut embedding);
                for (i, (&got, &want)) in embedding.values().iter().zip(&expected).enumerate() {
                    assert!((f64::from(got) - want).abs() < 2e-5, "{isa} S={size} value {i}: {got} for {want}");
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
