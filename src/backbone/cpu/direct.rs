//! Direct convolution: the product of the packed weights with the image's own pixels, without copying them out first.
//!
//! In an HWC map the inputs of one kernel row are contiguous, `kernel · channels` floats; so an output pixel is one
//! row of a matrix product whose left-hand side is read in place, in `kernel` segments a row of the map apart.

use half::f16;

use crate::backbone::weights::Conv;
use crate::simd::{Isa, Kernel, Simd};

use super::gemm::{Number, PackedMatrix, RowKernel, accumulate, in_row_groups};
use super::memory::Areas;
use super::network::Ends;
use super::share::Share;

/// The largest kernel side.
const MAX_KERNEL: usize = 3;
/// Output pixels of one item of work: a few rows of the map, whose input stays in the second cache level while panel
/// after panel passes over it.
const BLOCK: usize = 96;

/// Rows in the order (kernel row, kernel column, input channel), columns are output channels.
#[derive(Debug)]
enum Weights {
    Single(PackedMatrix),
    /// Half the bytes to fetch, where that is what takes the time and nothing is lost by it; and wherever halves are
    /// multiplied as such.
    Half(PackedMatrix<f16>),
}

/// Maps of fewer output pixels than this use each weight so seldom that fetching it takes longer than multiplying.
const FEW_PIXELS: usize = 20;

/// Whether all weights can be stored in halves without loss, as those of files in half precision can.
pub(super) fn fit_in_halves(conv: &Conv) -> bool {
    conv.weight.iter().all(|&w| f16::from_f32(w).to_f32() == w)
}

/// A convolution packed for [`Direct::run`].
#[derive(Debug)]
pub(super) struct Direct {
    weights: Weights,
    kernel: usize,
    stride: usize,
    /// Whether halves are multiplied as such.
    fp16: bool,
}

impl Direct {
    /// For an output of `pixels`.
    pub(super) fn new(conv: &Conv, pixels: usize, isa: Isa) -> Self {
        let Conv { inputs, outputs, kernel, stride, .. } = *conv;
        let weight = |k: usize, o: usize| {
            let (tap, i) = (k / inputs, k % inputs);
            conv.weight[(o * inputs + i) * kernel * kernel + tap]
        };
        let rows = kernel * kernel * inputs;
        let weights = if isa.multiplies_halves() || pixels < FEW_PIXELS && fit_in_halves(conv) {
            Weights::Half(PackedMatrix::new(isa, rows, outputs, |k, o| f16::from_f32(weight(k, o))))
        } else {
            Weights::Single(PackedMatrix::new(isa, rows, outputs, weight))
        };
        Self { weights, kernel, stride, fp16: isa.multiplies_halves() }
    }

    pub(super) fn name(&self) -> &'static str {
        match self.weights {
            Weights::Single(_) => "direct",
            Weights::Half(_) if self.fp16 => "direct fp16",
            Weights::Half(_) => "direct 16-bit",
        }
    }

    /// Bytes of packed weights.
    pub(super) fn weight_bytes(&self) -> usize {
        match &self.weights {
            Weights::Single(weights) => weights.bytes(),
            Weights::Half(weights) => weights.bytes(),
        }
    }

    /// Does the items that `thread` gets of `share`.
    ///
    /// # Safety
    /// `memory` must be the arena in which the tensors of `ends` lie, of this convolution's shapes, and nobody but
    /// callers of this with the same `share` may use the output meanwhile.
    pub(super) unsafe fn run(&self, isa: Isa, memory: Areas, ends: &Ends, bias: &[f32], share: &Share, thread: usize) {
        isa.run(DirectKernel { conv: self, memory, ends, bias, share, thread });
    }
}

struct DirectKernel<'a> {
    conv: &'a Direct,
    memory: Areas,
    ends: &'a Ends,
    bias: &'a [f32],
    share: &'a Share,
    thread: usize,
}

impl Kernel for DirectKernel<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as the caller of `Direct::run` promised.
        unsafe {
            match &self.conv.weights {
                Weights::Single(weights) => self.items::<S, _>(weights),
                Weights::Half(weights) => self.items::<S, _>(weights),
            }
        }
    }
}

impl DirectKernel<'_> {
    #[inline(always)]
    unsafe fn items<S: Simd, T: Number>(&self, weights: &PackedMatrix<T>) {
        let Self { memory, ends, bias, share, thread, conv: Direct { kernel, stride, .. } } = *self;
        let panels = weights.panels();
        // Items are blocks of pixels × panels.
        let items = ends.output.pixels().div_ceil(BLOCK) * panels;
        let segments: [usize; MAX_KERNEL] = std::array::from_fn(|row| row * ends.input.row_stride());
        while let Some(item) = share.take(thread, items) {
            let (block, panel) = (item / panels, item % panels);
            let rows = DirectRows {
                memory,
                ends,
                stride: *stride,
                // From the corner of the border to the first pixel that the kernel covers.
                skip: ends.input.pad - kernel / 2,
                segments: &segments[..*kernel],
                length: kernel * ends.input.channels,
                panel: weights.panel_ptr(panel),
                bias: bias[panel * weights.panel()..].as_ptr(),
                channel: panel * weights.panel(),
            };
            let first = block * BLOCK;
            // SAFETY: the pixels exist; each item is taken once, so its outputs are written by this thread alone.
            unsafe { in_row_groups::<S, _>(&rows, first..ends.output.pixels().min(first + BLOCK)) };
        }
    }
}

struct DirectRows<'a, T> {
    memory: Areas,
    ends: &'a Ends,
    stride: usize,
    skip: usize,
    segments: &'a [usize],
    length: usize,
    panel: *const T,
    bias: *const f32,
    channel: usize,
}

impl<T: Number> RowKernel for DirectRows<'_, T> {
    type Number = T;

    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize, const N: usize>(&self, first: usize) {
        let Ends { input, output, .. } = self.ends;
        let place = |m: usize| ((first + m) / output.side, (first + m) % output.side);
        // SAFETY: the kernel's window lies inside the bordered input, the panel's channels inside the output's.
        unsafe {
            let a: [*const f32; M] = std::array::from_fn(|m| {
                let (y, x) = place(m);
                self.memory.at(input.bordered(y * self.stride + self.skip, x * self.stride + self.skip)).cast_const()
            });
            let mut sums = [[S::splat(0.0); N]; M];
            accumulate::<S, T, M, N>(&mut sums, &a, self.segments, self.length, self.panel);
            for (m, row) in sums.iter().enumerate() {
                let (y, x) = place(m);
                let out = self.memory.at(output.pixel(y, x) + self.channel);
                for (n, &sum) in row.iter().enumerate() {
                    let bias = S::load(self.bias.add(n * S::LANES));
                    self.ends.finish::<S>(S::add(sum, bias), out.add(n * S::LANES));
                }
            }
        }
    }
}
