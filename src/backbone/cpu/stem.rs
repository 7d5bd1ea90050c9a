//! conv1 and the maximum after it in one step.
//!
//! conv1's map is the largest of all, 4.2 MB at 256×256; written and read again it would pass through memory twice. So a
//! thread makes a band of its rows, a few hundred kB that stay in the second cache level, and takes the maximum from
//! there. The row that two bands share is kept if the same thread goes on, else made again.

use half::f16;

use crate::backbone::weights::Conv;
use crate::simd::{Isa, Kernel, Simd};

use super::gemm::{Number, PackedMatrix, RowKernel, accumulate, in_row_groups};
use super::memory::{Areas, Place, Tensor};
use super::share::Share;

/// conv1's kernel side.
const KERNEL: usize = 7;
/// Output rows of an item; their maximum needs twice as many rows of conv1 and one more.
const BAND: usize = 4;
/// Rows of conv1 that a band needs.
const ROWS: usize = 2 * BAND + 1;
/// Never the maximum of anything, and times zero it is zero.
const LOWEST: f32 = f32::MIN;

/// Rows in the order (kernel row, kernel column, input).
#[derive(Debug)]
enum Weights {
    Single(PackedMatrix),
    /// Where halves are multiplied as such, eight columns of the image at a time: an eighth kernel column of zeros.
    Half(PackedMatrix<f16>),
}

/// conv1 packed for [`Stem::run`].
#[derive(Debug)]
pub(super) struct Stem {
    weights: Weights,
    /// Always [`KERNEL`], but not to the compiler: loops that it unrolls seven times run out of registers.
    kernel: usize,
    /// Floats of a pixel of the input.
    inputs: usize,
    channels: usize,
}

impl Stem {
    pub(super) fn new(conv: &Conv, isa: Isa) -> Self {
        assert!(conv.kernel == KERNEL && conv.stride == 2, "conv1 of a ResNet");
        let inputs = conv.inputs;
        let weight = |row: usize, column: usize, input: usize, o: usize| {
            conv.weight[((o * inputs + input) * KERNEL + row) * KERNEL + column]
        };
        let weights = if isa.multiplies_halves() {
            Weights::Half(PackedMatrix::new(isa, KERNEL * 8 * inputs, conv.outputs, |k, o| {
                let (row, column, input) = (k / inputs / 8, k / inputs % 8, k % inputs);
                if column < KERNEL { f16::from_f32(weight(row, column, input, o)) } else { f16::ZERO }
            }))
        } else {
            let single = |k: usize, o: usize| weight(k / inputs / KERNEL, k / inputs % KERNEL, k % inputs, o);
            Weights::Single(PackedMatrix::new(isa, KERNEL * KERNEL * inputs, conv.outputs, single))
        };
        Self { weights, kernel: conv.kernel, inputs, channels: conv.outputs }
    }

    pub(super) fn name(&self) -> &'static str {
        match self.weights {
            Weights::Single(_) => "direct, maximum",
            Weights::Half(_) => "direct fp16, maximum",
        }
    }

    /// Bytes of packed weights.
    pub(super) fn weight_bytes(&self) -> usize {
        match &self.weights {
            Weights::Single(weights) => weights.bytes(),
            Weights::Half(weights) => weights.bytes(),
        }
    }

    /// Floats of a row of conv1's map of `side` pixels, with one pixel of border before it.
    fn row(&self, side: usize) -> usize {
        (side + 1) * self.channels
    }

    /// Floats of scratch that each thread needs for an output of `side` pixels.
    pub(super) fn scratch(&self, side: usize) -> usize {
        ROWS * self.row(2 * side)
    }

    /// Makes the bands that `thread` gets of `share`. `scratch` is the offset of this thread's own scratch.
    ///
    /// # Safety
    /// `memory` must be the arena in which both tensors and the scratch lie, the output of half the stride's side and
    /// with this convolution's channels; nobody but callers of this with the same `share` may use the output meanwhile,
    /// and nobody else the scratch.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn run(
        &self,
        isa: Isa,
        memory: Areas,
        input: &Tensor,
        output: &Tensor,
        bias: &[f32],
        share: &Share,
        thread: usize,
        scratch: usize,
    ) {
        // SAFETY: the scratch lies in the arena.
        let rows = unsafe { memory.at(Place::arena(scratch)) };
        isa.run(StemKernel { conv: self, memory, input, output, bias, share, thread, rows });
    }
}

struct StemKernel<'a> {
    conv: &'a Stem,
    memory: Areas,
    input: &'a Tensor,
    output: &'a Tensor,
    bias: &'a [f32],
    share: &'a Share,
    thread: usize,
    /// Sums of conv1, without bias: `ROWS` rows with their border.
    rows: *mut f32,
}

impl Kernel for StemKernel<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (channels, row) = (self.conv.channels, self.conv.row(2 * self.output.side));
        let mut last = None;
        // SAFETY: the scratch holds ROWS rows; bands are taken once, so their outputs are written by this thread alone.
        unsafe {
            for slot in 0..ROWS {
                std::slice::from_raw_parts_mut(self.rows.add(slot * row), channels).fill(LOWEST);
            }
            while let Some(band) = self.share.take(self.thread, self.output.side.div_ceil(BAND)) {
                // Slot 0 is the row above the band's own.
                if band == 0 {
                    std::slice::from_raw_parts_mut(self.rows, row).fill(LOWEST);
                } else if last == Some(band - 1) {
                    std::ptr::copy_nonoverlapping(self.rows.add((ROWS - 1) * row), self.rows, row);
                } else {
                    self.convolve::<S>(2 * band * BAND - 1, self.rows);
                }
                let count = BAND.min(self.output.side - band * BAND);
                for slot in 1..=2 * count {
                    self.convolve::<S>(2 * band * BAND + slot - 1, self.rows.add(slot * row));
                }
                for y in 0..count {
                    let rows = self.rows.add(2 * y * row).cast_const();
                    // A cache line of channels at a time, however many vectors that is.
                    match S::LANES {
                        4 => self.maximum::<S, 4>(rows, row, band * BAND + y),
                        8 => self.maximum::<S, 2>(rows, row, band * BAND + y),
                        _ => self.maximum::<S, 1>(rows, row, band * BAND + y),
                    }
                }
                last = Some(band);
            }
        }
    }
}

impl StemKernel<'_> {
    /// Row `y` of conv1, to `out` behind its border.
    #[inline(always)]
    unsafe fn convolve<S: Simd>(&self, y: usize, out: *mut f32) {
        // SAFETY: as the caller promised. An eighth column still lies inside the border, for the last pixel too.
        unsafe {
            match &self.conv.weights {
                Weights::Single(weights) => {
                    self.convolve_by::<S, _>(weights, self.conv.kernel * self.conv.inputs, y, out);
                }
                Weights::Half(weights) => self.convolve_by::<S, _>(weights, 8 * self.conv.inputs, y, out),
            }
        }
    }

    #[inline(always)]
    unsafe fn convolve_by<S: Simd, T: Number>(
        &self,
        weights: &PackedMatrix<T>,
        length: usize,
        y: usize,
        out: *mut f32,
    ) {
        let segments: [usize; KERNEL] = std::array::from_fn(|row| row * self.input.row_stride());
        for panel in 0..weights.panels() {
            // SAFETY: the kernel's window lies inside the bordered input; the row has room for all panels.
            unsafe {
                let rows = StemRows {
                    input: self.memory.at(self.input.bordered(2 * y, 0)).cast_const(),
                    segments: &segments[..self.conv.kernel],
                    length,
                    step: 2 * self.conv.inputs,
                    panel: weights.panel_ptr(panel),
                    out: out.add(self.conv.channels + panel * weights.panel()),
                    channels: self.conv.channels,
                };
                in_row_groups::<S, _>(&rows, 0..2 * self.output.side);
            }
        }
    }

    /// Row `y` of the output: bias, ReLU and 3×3 maximum with stride 2 of the three rows from `rows` on. Bias and ReLU
    /// come last, once for nine values: both rise with their argument.
    #[inline(always)]
    unsafe fn maximum<S: Simd, const N: usize>(&self, rows: *const f32, row: usize, y: usize) {
        let channels = self.conv.channels;
        for c in (0..channels).step_by(N * S::LANES) {
            // SAFETY: the rows hold their border and twice the output's pixels; row `y` of the output is this thread's.
            unsafe {
                let zero = S::splat(0.0);
                let bias: [S::V; N] = std::array::from_fn(|n| S::load(self.bias.as_ptr().add(c + n * S::LANES)));
                // The largest of a column's three values; and zero, unless one of them is not finite: a maximum alone
                // would let a NaN drop out.
                let column = |x: usize, n: usize| {
                    let from = rows.add(x * channels + c + n * S::LANES);
                    let v = [S::load(from), S::load(from.add(row)), S::load(from.add(2 * row))];
                    let broken = S::fma(v[0], zero, S::fma(v[1], zero, S::mul(v[2], zero)));
                    (S::max(S::max(v[0], v[1]), v[2]), broken)
                };
                let mut left: [_; N] = std::array::from_fn(|n| column(0, n));
                let first = self.memory.at(self.output.pixel(y, 0) + c);
                for x in 0..self.output.side {
                    let out = first.add(x * channels);
                    for n in 0..N {
                        let (middle, right) = (column(2 * x + 1, n), column(2 * x + 2, n));
                        let all = S::max(S::max(left[n].0, middle.0), right.0);
                        let check = S::add(S::add(left[n].1, middle.1), right.1);
                        S::store(out.add(n * S::LANES), S::relu(S::add(S::add(all, bias[n]), check)));
                        left[n] = right;
                    }
                }
            }
        }
    }
}

struct StemRows<'a, T> {
    /// The corner of the first pixel's window.
    input: *const f32,
    /// The offsets of the rows of a window.
    segments: &'a [usize],
    /// Numbers of a row of a window.
    length: usize,
    /// From a window to the next.
    step: usize,
    panel: *const T,
    out: *mut f32,
    channels: usize,
}

impl<T: Number> RowKernel for StemRows<'_, T> {
    type Number = T;

    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize, const N: usize>(&self, first: usize) {
        // SAFETY: whoever made this vouches for the row.
        unsafe {
            let a: [*const f32; M] = std::array::from_fn(|m| self.input.add(self.step * (first + m)));
            let mut sums = [[S::splat(0.0); N]; M];
            accumulate::<S, T, M, N>(&mut sums, &a, self.segments, self.length, self.panel);
            for (m, row) in sums.iter().enumerate() {
                let out = self.out.add((first + m) * self.channels);
                for (n, &sum) in row.iter().enumerate() {
                    S::store(out.add(n * S::LANES), sum);
                }
            }
        }
    }
}
