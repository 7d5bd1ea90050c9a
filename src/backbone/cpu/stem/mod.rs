//! conv1 and the maximum after it in one step.
//!
//! conv1's map is the largest of all, 4.2 MB at 256×256; written and read again it would pass through memory twice. So a
//! thread makes a band of its rows, one after the other, and each goes straight into the maximum ([`Pool`]). The row that
//! two bands share is kept if the same thread goes on, else made again.

mod direct;
mod winograd;

use half::f16;

use crate::backbone::weights::Conv;
use crate::simd::{Isa, Kernel, Simd};

use super::memory::{Areas, Place, Tensor};
use super::network::Method;
use super::share::Share;
use direct::Direct;
use winograd::Columns;

/// conv1's kernel side.
const KERNEL: usize = 7;
/// Output rows of an item; their maximum needs twice as many rows of conv1 and one more.
const BAND: usize = 4;
/// Rows of conv1 that a band needs.
const ROWS: usize = 2 * BAND + 1;
/// Never the maximum of anything, and times zero it is zero.
const LOWEST: f32 = f32::MIN;

#[derive(Debug)]
enum Algorithm {
    Direct(Direct<f32>),
    /// Where halves are multiplied as such.
    Half(Direct<f16>),
    Winograd(Columns),
}

/// conv1 packed for [`Stem::run`].
#[derive(Debug)]
pub(super) struct Stem {
    algorithm: Algorithm,
    channels: usize,
}

impl Stem {
    pub(super) fn new(conv: &Conv, method: Method, isa: Isa) -> Self {
        assert!(conv.kernel == KERNEL && conv.stride == 2, "conv1 of a ResNet");
        let algorithm = if isa.multiplies_halves() {
            Algorithm::Half(Direct::<f16>::new(conv, isa))
        } else if method == Method::Winograd && conv.inputs == 1 {
            Algorithm::Winograd(Columns::new(conv, isa))
        } else {
            Algorithm::Direct(Direct::<f32>::new(conv, isa))
        };
        Self { algorithm, channels: conv.outputs }
    }

    pub(super) fn name(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Direct(_) => "direct, maximum",
            Algorithm::Half(_) => "direct fp16, maximum",
            Algorithm::Winograd(_) => "winograd 1×4/2, maximum",
        }
    }

    /// Bytes of packed weights.
    pub(super) fn weight_bytes(&self) -> usize {
        match &self.algorithm {
            Algorithm::Direct(conv) => conv.weight_bytes(),
            Algorithm::Half(conv) => conv.weight_bytes(),
            Algorithm::Winograd(conv) => conv.weight_bytes(),
        }
    }

    /// Multiply-adds of all products, of the `defined` ones of the convolution.
    pub(super) fn multiply_adds(&self, defined: u64) -> u64 {
        match &self.algorithm {
            Algorithm::Direct(_) | Algorithm::Half(_) => defined,
            Algorithm::Winograd(_) => Columns::multiply_adds(defined),
        }
    }

    /// Floats of scratch that each thread needs for an output of `side` pixels.
    pub(super) fn scratch(&self, side: usize) -> usize {
        let own = match &self.algorithm {
            Algorithm::Direct(conv) => conv.scratch(side),
            Algorithm::Half(conv) => conv.scratch(side),
            Algorithm::Winograd(conv) => conv.scratch(side),
        };
        side * self.channels + own
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
        let scratch = unsafe { memory.at(Place::arena(scratch)) };
        isa.run(StemKernel { conv: self, memory, input, output, bias, share, thread, scratch });
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
    /// The maxima of a row of the output, then what the algorithm needs.
    scratch: *mut f32,
}

impl Kernel for StemKernel<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as the caller of `Stem::run` promised.
        unsafe {
            match &self.conv.algorithm {
                Algorithm::Direct(conv) => self.bands::<S, _>(conv),
                Algorithm::Half(conv) => self.bands::<S, _>(conv),
                Algorithm::Winograd(conv) => self.bands::<S, _>(conv),
            }
        }
    }
}

impl StemKernel<'_> {
    #[inline(always)]
    unsafe fn bands<S: Simd, R: Rows>(&self, conv: &R) {
        let (side, channels) = (self.output.side, self.conv.channels);
        let own = self.scratch.wrapping_add(side * channels);
        let mut last = None;
        while let Some(band) = self.share.take(self.thread, side.div_ceil(BAND)) {
            let rows = 2 * band * BAND..2 * side.min((band + 1) * BAND);
            // SAFETY: bands are taken once, so their outputs are written by this thread alone, and the scratch is its own.
            unsafe {
                // The row above, unless there is none or its maxima are still there.
                let first = if band == 0 {
                    std::slice::from_raw_parts_mut(self.scratch, side * channels).fill(LOWEST);
                    rows.start
                } else {
                    rows.start - usize::from(last != Some(band - 1))
                };
                let image = |y: usize| self.memory.at(self.input.bordered(2 * y, 0)).cast_const();
                conv.prepare::<S>(image(first), self.input.row_stride(), rows.end - first, side, own);
                for y in first..rows.end {
                    let kind = if y < rows.start { Row::Above } else { [Row::Middle, Row::Below][y % 2] };
                    let pool = Pool {
                        largest: self.scratch,
                        out: self.memory.at(self.output.pixel(y / 2, 0)),
                        bias: self.bias.as_ptr(),
                        side,
                        channels,
                        kind,
                    };
                    conv.convolve::<S>(image(y), self.input.row_stride(), y - first, &pool, own);
                }
            }
            last = Some(band);
        }
    }
}

/// A way to make rows of conv1, sums without bias.
trait Rows {
    /// Readies what `count` rows of conv1 have in common, for an output of `side` pixels. `image` is the corner of the
    /// first row's first window in the bordered input, whose rows are `step` floats apart.
    ///
    /// # Safety
    /// The CPU must have `S`, the windows of all these rows lie in the input, `scratch` be as long as asked for.
    unsafe fn prepare<S: Simd>(&self, image: *const f32, step: usize, count: usize, side: usize, scratch: *mut f32);

    /// Makes row `index` of those, whose first window has its corner at `image`.
    ///
    /// # Safety
    /// As for [`Rows::prepare`], which must have seen the row and the same scratch; and the pool's memory be there.
    unsafe fn convolve<S: Simd>(&self, image: *const f32, step: usize, index: usize, pool: &Pool, scratch: *mut f32);
}

/// What a row of conv1 is to a row of the output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Row {
    /// The first of its three, and of no other's.
    Above,
    Middle,
    /// The last of its three, and the first of the next row's.
    Below,
}

/// 3×3 maximum with stride 2, bias and ReLU of rows of conv1 as they are made. Bias and ReLU come last, once for nine
/// values: both rise with their argument.
struct Pool {
    /// For each value of a row of the output, the largest so far.
    largest: *mut f32,
    /// The row of the output.
    out: *mut f32,
    bias: *const f32,
    /// Pixels of the output's row.
    side: usize,
    channels: usize,
    kind: Row,
}

impl Pool {
    /// Takes the three columns of this row that pixel `x` of the output sees, in channels from `c` on.
    ///
    /// # Safety
    /// The CPU must have `S`, pixel and channels exist, and the pool's memory be this thread's.
    #[inline(always)]
    unsafe fn take<S: Simd>(&self, x: usize, c: usize, left: S::V, middle: S::V, right: S::V) {
        // SAFETY: as the caller promised.
        unsafe {
            let at = x * self.channels + c;
            let (largest, row) = (self.largest.add(at), larger::<S>(left, larger::<S>(middle, right)));
            match self.kind {
                Row::Above => S::store(largest, row),
                Row::Middle => S::store(largest, larger::<S>(S::load(largest), row)),
                Row::Below => {
                    let all = larger::<S>(S::load(largest), row);
                    S::store(self.out.add(at), S::relu(S::add(all, S::load(self.bias.add(c)))));
                    S::store(largest, row);
                }
            }
        }
    }
}

/// The larger of each pair; NaN if `a` is not finite or `b` is NaN: a maximum alone would let a NaN drop out.
#[inline(always)]
unsafe fn larger<S: Simd>(a: S::V, b: S::V) -> S::V {
    // SAFETY: as the caller promised.
    unsafe { S::fma(a, S::splat(0.0), S::max(a, b)) }
}

#[cfg(test)]
mod tests;
