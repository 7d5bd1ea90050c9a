//! One stage's rows of W, and the product with its map.

use std::ops::Range;

use crate::backbone::cpu::gemm::{PackedMatrix, gemm};
use crate::simd::{Isa, Kernel, Simd};
use crate::workers::Workers;

use super::cpu::SLACK;
use super::projection::MAX_K;

/// Channels × k, in the form that is cheapest to multiply by.
#[derive(Debug)]
pub(super) struct Matrix {
    isa: Isa,
    channels: usize,
    k: usize,
    stride: usize,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// Any matrix: a product of matrices.
    Dense(PackedMatrix),
    /// Channel c feeds value (c + offset) mod k and no other ([`Mixing::Sparse`](super::projection::Mixing::Sparse)):
    /// one multiplication a channel instead of k, in runs that wrap around nowhere.
    Cyclic { weights: Vec<f32>, runs: Vec<Run> },
}

/// Channels that feed as many values in the same order.
#[derive(Debug)]
struct Run {
    channels: Range<usize>,
    values: Range<usize>,
}

impl Matrix {
    /// Packs `w`, `channels` rows of `k` values.
    pub(super) fn new(isa: Isa, channels: usize, k: usize, w: &[f32]) -> Self {
        if let Some((offset, weights)) = cyclic(k, w) {
            let mut runs = Vec::new();
            let mut at = 0;
            while at < channels {
                let value = (at + offset) % k;
                let length = (k - value).min(channels - at);
                runs.push(Run { channels: at..at + length, values: value..value + length });
                at += length;
            }
            let (stride, form) = (k.next_multiple_of(SLACK), Form::Cyclic { weights, runs });
            return Self { isa, channels, k, stride, form };
        }
        let packed =
            PackedMatrix::new(isa, channels, k.next_multiple_of(SLACK), |c, j| if j < k { w[c * k + j] } else { 0.0 });
        Self { isa, channels, k, stride: packed.padded_columns(), form: Form::Dense(packed) }
    }

    /// Floats from one pixel of the product to the next: k rounded up to a multiple of at least [`SLACK`].
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// Multiplies each pixel of a map of `side` rows, of which `row(y)` is one (HWC), and writes the product's k values to
    /// `out`, [`stride`](Self::stride) floats apart. `out` must be zero at first, and be used for nothing else.
    pub(super) fn project<'a>(
        &self,
        side: usize,
        row: impl Fn(usize) -> &'a [f32] + Sync,
        out: &mut [f32],
        workers: &Workers,
    ) {
        let Self { isa, channels, k, stride, .. } = *self;
        workers.split(out, side * stride, &|_, first, out| {
            for (y, out) in out.chunks_exact_mut(side * stride).enumerate() {
                let row = row(first + y);
                match &self.form {
                    Form::Dense(packed) => gemm(isa, row, channels, side, packed, out, stride),
                    Form::Cyclic { weights, runs } => isa.run(Cyclic { row, channels, weights, runs, out, k, stride }),
                }
            }
        });
    }
}

/// If every row of `w` has its only number other than zero one place to the right of the row above, around the end:
/// where the first row has it, and all of them.
pub(super) fn cyclic(k: usize, w: &[f32]) -> Option<(usize, Vec<f32>)> {
    let offset = w.get(..k)?.iter().position(|&x| x != 0.0)?;
    let mut weights = Vec::with_capacity(w.len() / k);
    for (c, row) in w.chunks_exact(k).enumerate() {
        let at = (c + offset) % k;
        if row.iter().enumerate().any(|(j, &x)| j != at && x != 0.0) {
            return None;
        }
        weights.push(row[at]);
    }
    Some((offset, weights))
}

struct Cyclic<'a> {
    row: &'a [f32],
    channels: usize,
    weights: &'a [f32],
    runs: &'a [Run],
    out: &'a mut [f32],
    k: usize,
    stride: usize,
}

impl Kernel for Cyclic<'_> {
    type Output = ();

    /// Plain loops over slices, which the compiler turns into the vectors of `S`.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut sums = [0.0f32; MAX_K];
        let sums = &mut sums[..self.stride];
        // No value is fed twice: the others are zero from the start and stay so.
        let once = self.channels <= self.k;
        for (pixel, out) in self.row.chunks_exact(self.channels).zip(self.out.chunks_exact_mut(self.stride)) {
            if once {
                for Run { channels, values } in self.runs {
                    let (x, w) = (&pixel[channels.clone()], &self.weights[channels.clone()]);
                    for ((out, x), w) in out[values.clone()].iter_mut().zip(x).zip(w) {
                        *out = w * x;
                    }
                }
                continue;
            }
            sums.fill(0.0);
            for Run { channels, values } in self.runs {
                let (x, w) = (&pixel[channels.clone()], &self.weights[channels.clone()]);
                for ((sum, x), w) in sums[values.clone()].iter_mut().zip(x).zip(w) {
                    *sum += w * x;
                }
            }
            out.copy_from_slice(sums);
        }
    }
}
