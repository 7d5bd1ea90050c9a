//! conv1 as a product of its windows, read in place, with the weights.

use half::f16;

use crate::backbone::cpu::gemm::{Number, PackedMatrix, RowKernel, accumulate, in_row_groups};
use crate::backbone::weights::Conv;
use crate::simd::{Isa, Simd};

use super::{KERNEL, LOWEST, Pool, Rows};

/// Weights in the order (kernel row, kernel column, input).
#[derive(Debug)]
pub(super) struct Direct<T> {
    weights: PackedMatrix<T>,
    /// Always [`KERNEL`], but not to the compiler: loops that it unrolls seven times run out of registers.
    kernel: usize,
    /// Numbers of a row of a window.
    length: usize,
    /// Floats of a pixel of the input.
    inputs: usize,
    channels: usize,
}

impl Direct<f32> {
    pub(super) fn new(conv: &Conv, isa: Isa) -> Self {
        Self::pack(conv, isa, KERNEL, |weight| weight)
    }
}

impl Direct<f16> {
    /// Where halves are multiplied as such, eight columns of the image at a time: an eighth kernel column of zeros. It still
    /// lies inside the border, for the last pixel too.
    pub(super) fn new(conv: &Conv, isa: Isa) -> Self {
        Self::pack(conv, isa, 8, f16::from_f32)
    }
}

impl<T: Number> Direct<T> {
    fn pack(conv: &Conv, isa: Isa, columns: usize, number: impl Fn(f32) -> T) -> Self {
        let inputs = conv.inputs;
        let weights = PackedMatrix::new(isa, KERNEL * columns * inputs, conv.outputs, |k, o| {
            let (row, column, input) = (k / inputs / columns, k / inputs % columns, k % inputs);
            let there = column < KERNEL;
            if there {
                number(conv.weight[((o * inputs + input) * KERNEL + row) * KERNEL + column])
            } else {
                T::default()
            }
        });
        Self { weights, kernel: conv.kernel, length: columns * inputs, inputs, channels: conv.outputs }
    }

    pub(super) fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// A row of conv1's map.
    pub(super) fn scratch(&self, side: usize) -> usize {
        2 * side * self.channels
    }
}

impl<T: Number> Rows for Direct<T> {
    #[inline(always)]
    unsafe fn prepare<S: Simd>(&self, _: *const f32, _: usize, _: usize, _: usize, _: *mut f32) {}

    #[inline(always)]
    unsafe fn convolve<S: Simd>(&self, image: *const f32, step: usize, _: usize, pool: &Pool, scratch: *mut f32) {
        let segments: [usize; KERNEL] = std::array::from_fn(|row| row * step);
        for panel in 0..self.weights.panels() {
            let windows = Windows {
                image,
                segments: &segments[..self.kernel],
                length: self.length,
                step: 2 * self.inputs,
                panel: self.weights.panel_ptr(panel),
                out: scratch.wrapping_add(panel * self.weights.panel()),
                channels: self.channels,
            };
            // SAFETY: the windows lie inside the bordered input; the row has room for all panels.
            unsafe { in_row_groups::<S, _>(&windows, 0..2 * pool.side) };
        }
        // SAFETY: the row has just been written, with twice the output's pixels.
        unsafe {
            // A cache line of channels at a time, however many vectors that is.
            match S::LANES {
                4 => self.maximum::<S, 4>(scratch, pool),
                8 => self.maximum::<S, 2>(scratch, pool),
                _ => self.maximum::<S, 1>(scratch, pool),
            }
        }
    }
}

impl<T: Number> Direct<T> {
    #[inline(always)]
    unsafe fn maximum<S: Simd, const N: usize>(&self, row: *const f32, pool: &Pool) {
        for c in (0..self.channels).step_by(N * S::LANES) {
            // SAFETY: as the caller promised.
            unsafe {
                let mut left = [S::splat(LOWEST); N];
                for x in 0..pool.side {
                    for (n, left) in left.iter_mut().enumerate() {
                        let c = c + n * S::LANES;
                        let from = row.add(2 * x * self.channels + c);
                        let (middle, right) = (S::load(from), S::load(from.add(self.channels)));
                        pool.take::<S>(x, c, *left, middle, right);
                        *left = right;
                    }
                }
            }
        }
    }
}

struct Windows<'a, T> {
    /// The corner of the first pixel's window.
    image: *const f32,
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

impl<T: Number> RowKernel for Windows<'_, T> {
    type Number = T;

    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize, const N: usize>(&self, first: usize) {
        // SAFETY: whoever made this vouches for the row.
        unsafe {
            let a: [*const f32; M] = std::array::from_fn(|m| self.image.add(self.step * (first + m)));
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
