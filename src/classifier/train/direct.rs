//! The other convolutions as products read in place: the stem (7×7), and 3×3 and 1×1 with stride 2.

use crate::backbone::cpu::memory::{Layout, Memory};
use crate::classifier::network::GROUP;
use crate::simd::Simd;

use super::share::{Context, Map, Product, Segment, Work};
use super::winograd::{Needs, Shared};

/// Output pixels of an item.
const BLOCK: usize = 96;
/// Input channels of an item of the weight's gradient.
const INPUTS: usize = 64;

/// A convolution with stride 2 and padding `kernel / 2`.
#[derive(Debug)]
pub(super) struct Direct {
    kernel: usize,
    inputs: usize,
    outputs: usize,
    /// The weight among parameters and gradients.
    weight: usize,
    /// Forward: the kernel's rows.
    forward: Vec<Segment>,
    /// Gradient of the input: for each parity of row and column the taps that reach such pixels.
    parities: [Vec<Segment>; 4],
    /// Gradient of the weight: all rows of the output; for the stem, those of one image.
    rows: Vec<Segment>,
    /// The stem's gradient, image by image, in the arena.
    partial: Option<usize>,
}

impl Direct {
    /// For maps like `x` and `z`; a convolution without gradient of its input (the stem) makes that of its weight image by
    /// image.
    pub(super) fn new(layout: &mut Layout, x: Map, z: Map, kernel: usize, weight: usize, stem: bool) -> Self {
        let (inputs, outputs) = (x.channels, z.channels);
        assert!(x.side == 2 * z.side && x.pad >= kernel / 2 && outputs.is_multiple_of(GROUP));
        assert!(!stem || outputs == GROUP, "a stem has one group of channels");
        let length = kernel * inputs;
        let forward = (0..kernel).map(|y| Segment { a: y * x.row(), b: y * length * GROUP, length }).collect();
        let parities = std::array::from_fn(|parity| {
            // Output pixels that input pixel 2i + parity feeds: the tap, and how far beyond i.
            let taps = |odd: bool| match (kernel, odd) {
                (3, true) => vec![(0, 1), (2, 0)],
                (3, false) => vec![(1, 0)],
                (1, false) => vec![(0, 0)],
                _ => vec![],
            };
            let across = taps(parity % 2 == 1);
            let segments = taps(parity / 2 == 1).into_iter().flat_map(|(ky, dy)| {
                let segment = move |&(kx, dx): &(usize, usize)| Segment {
                    a: dy * z.row() + dx * outputs,
                    b: (ky * kernel + kx) * outputs * GROUP,
                    length: outputs,
                };
                across.iter().map(segment).collect::<Vec<_>>()
            });
            segments.collect()
        });
        let rows = (0..if stem { 1 } else { x.batch }).flat_map(|b| {
            (0..z.side).map(move |y| Segment {
                a: b * x.image() + 2 * y * x.row(),
                b: b * z.image() + y * z.row(),
                length: z.side,
            })
        });
        let partial = stem.then(|| layout.reserve(x.batch * kernel * length * GROUP));
        Self { kernel, inputs, outputs, weight, forward, parities, rows: rows.collect(), partial }
    }

    pub(super) fn needs(&self) -> Needs {
        let transposed = if self.partial.is_some() { 0 } else { self.kernel.pow(2) * self.inputs * self.outputs };
        Needs { transposed, ..Needs::default() }
    }

    /// z = w ∗ x.
    ///
    /// # Safety
    /// The maps must lie in the arena and be this convolution's; nobody else may use the arena meanwhile.
    pub(super) unsafe fn forward(&self, context: &Context<'_>, x: Map, z: Map) {
        let groups = self.outputs / GROUP;
        // SAFETY: items write different pixels or channels; the rest as the caller promised.
        unsafe { context.share(z.pixels().div_ceil(BLOCK) * groups, &Forward { conv: self, context, x, z }) };
    }

    /// The gradient of the weight.
    ///
    /// # Safety
    /// As [`Direct::forward`].
    pub(super) unsafe fn weight_gradient(&self, context: &Context<'_>, x: Map, dz: Map) {
        // SAFETY: items write different weights, or different images' partial sums; the rest as the caller promised.
        unsafe {
            if let Some(partial) = self.partial {
                let stem = StemGradient { conv: self, context, x, dz, partial };
                context.share(x.batch, &stem);
                let sum = StemSum { conv: self, context, partial, batch: x.batch };
                context.share(self.kernel, &sum);
            } else {
                let items = self.kernel.pow(2) * self.inputs.div_ceil(INPUTS) * (self.outputs / GROUP);
                context.share(items, &WeightGradient { conv: self, context, x, dz });
            }
        }
    }

    /// The gradient of the input, added to `dx` or written there; a 1×1 kernel, which does not reach three quarters of
    /// the pixels, can only add.
    ///
    /// # Safety
    /// As [`Direct::forward`]; `dz` must have a border.
    pub(super) unsafe fn input_gradient(&self, context: &Context<'_>, shared: Shared, dz: Map, dx: Map, add: bool) {
        assert!(dz.pad > 0 || self.kernel == 1);
        assert!(add || self.kernel == 3);
        let Self { inputs, outputs, kernel, weight, .. } = *self;
        // SAFETY: items write different pixels or channels; the rest as the caller promised.
        unsafe {
            let to = context.arena.at(shared.transposed());
            let from = context.parameters.at(weight);
            let transpose = Transpose { from, to, inputs, outputs, taps: kernel * kernel };
            context.share(transpose.items(), &transpose);
            let weight = shared.transposed();
            let gradient = InputGradient { conv: self, arena: context.arena, weight, dz, dx, add };
            context.share(4 * dz.pixels().div_ceil(BLOCK) * (inputs / GROUP), &gradient);
        }
    }
}

/// The image, row and column of a pixel.
#[inline(always)]
fn place(map: &Map, pixel: usize) -> (usize, usize, usize) {
    let each = map.side * map.side;
    (pixel / each, pixel % each / map.side, pixel % map.side)
}

struct Forward<'a> {
    conv: &'a Direct,
    context: &'a Context<'a>,
    x: Map,
    z: Map,
}

impl Work for Forward<'_> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, item: usize, _: usize) {
        let Self { conv, context, x, z } = *self;
        let groups = conv.outputs / GROUP;
        let (first, group) = (item / groups * BLOCK, item % groups);
        let skip = x.pad - conv.kernel / 2;
        let arena = context.arena;
        // SAFETY: windows lie inside the bordered input; the item's pixels and channels are nobody else's.
        unsafe {
            let weight = conv.weight + group * conv.kernel.pow(2) * conv.inputs * GROUP;
            let product = Product {
                a: |pixel| {
                    let (b, row, column) = place(&z, first + pixel);
                    arena.at(x.bordered(b, 2 * row + skip, 2 * column + skip)).cast_const()
                },
                a_step: 1,
                segments: &conv.forward,
                b: context.parameters.at(weight),
                b_step: GROUP,
                c: |pixel| {
                    let (b, row, column) = place(&z, first + pixel);
                    arena.at(z.pixel(b, row, column) + group * GROUP)
                },
                add: false,
            };
            product.run::<S>(BLOCK.min(z.pixels() - first));
        }
    }
}

struct InputGradient<'a> {
    conv: &'a Direct,
    arena: Memory,
    /// The transposed weight in the arena.
    weight: usize,
    dz: Map,
    dx: Map,
    add: bool,
}

impl Work for InputGradient<'_> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, item: usize, _: usize) {
        let Self { conv, arena, weight, dz, dx, add } = *self;
        let groups = conv.inputs / GROUP;
        let (parity, rest) = (item % 4, item / 4);
        let (first, group) = (rest / groups * BLOCK, rest % groups);
        let segments = &conv.parities[parity];
        if segments.is_empty() {
            return;
        }
        // SAFETY: pixels beyond the output lie in its border; the item's pixels and channels are nobody else's.
        unsafe {
            let product = Product {
                a: |pixel| {
                    let (b, y, x) = place(&dz, first + pixel);
                    arena.at(dz.pixel(b, y, x)).cast_const()
                },
                a_step: 1,
                segments,
                b: arena.at(weight + group * conv.kernel.pow(2) * conv.outputs * GROUP),
                b_step: GROUP,
                c: |pixel| {
                    let (b, y, x) = place(&dz, first + pixel);
                    arena.at(dx.pixel(b, 2 * y + parity / 2, 2 * x + parity % 2) + group * GROUP)
                },
                add,
            };
            product.run::<S>(BLOCK.min(dz.pixels() - first));
        }
    }
}

struct WeightGradient<'a> {
    conv: &'a Direct,
    context: &'a Context<'a>,
    x: Map,
    dz: Map,
}

impl Work for WeightGradient<'_> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, item: usize, _: usize) {
        let Self { conv, context, x, dz } = *self;
        let (taps, parts) = (conv.kernel.pow(2), conv.inputs.div_ceil(INPUTS));
        let (group, tap, part) = (item / (taps * parts), item / parts % taps, item % parts);
        let skip = x.pad - conv.kernel / 2;
        let first = part * INPUTS;
        // SAFETY: windows lie inside the bordered input; the item's weights are nobody else's.
        unsafe {
            let corner = x.bordered(0, tap / conv.kernel + skip, tap % conv.kernel + skip) + first;
            let from = context.arena.at(corner).cast_const();
            let to = context.gradients.at(conv.weight + ((group * taps + tap) * conv.inputs + first) * GROUP);
            let product = Product {
                a: |input| from.wrapping_add(input),
                a_step: 2 * conv.inputs,
                segments: &conv.rows,
                b: context.arena.at(dz.pixel(0, 0, 0) + group * GROUP),
                b_step: conv.outputs,
                c: |input| to.wrapping_add(input * GROUP),
                add: false,
            };
            product.run::<S>(INPUTS.min(conv.inputs - first));
        }
    }
}

/// The gradient of the stem's weight from one image: its output is the largest map of all, and stays in cache so.
struct StemGradient<'a> {
    conv: &'a Direct,
    context: &'a Context<'a>,
    x: Map,
    dz: Map,
    partial: usize,
}

impl Work for StemGradient<'_> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, image: usize, _: usize) {
        let Self { conv, context, x, dz, partial } = *self;
        let length = conv.kernel * conv.inputs;
        // SAFETY: windows lie inside the bordered input; the image's partial sum is nobody else's.
        unsafe {
            let from = context.arena.at(x.bordered(image, 0, 0)).cast_const();
            let to = context.arena.at(partial + image * conv.kernel * length * GROUP);
            let product = Product {
                a: |at| from.wrapping_add(at / length * x.row() + at % length),
                a_step: 2 * conv.inputs,
                segments: &conv.rows,
                b: context.arena.at(dz.pixel(image, 0, 0)),
                b_step: GROUP,
                c: |at| to.wrapping_add(at * GROUP),
                add: false,
            };
            product.run::<S>(conv.kernel * length);
        }
    }
}

/// All images' partial sums, in order; an item is a row of the kernel.
struct StemSum<'a> {
    conv: &'a Direct,
    context: &'a Context<'a>,
    partial: usize,
    batch: usize,
}

impl Work for StemSum<'_> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, row: usize, _: usize) {
        let Self { conv, context, partial, batch } = *self;
        let count = conv.kernel * conv.inputs * GROUP;
        // SAFETY: the partial sums are complete; the item's weights are nobody else's.
        unsafe {
            let from = context.arena.at(partial + row * count).cast_const();
            let to = context.gradients.at(conv.weight + row * count);
            for at in (0..count).step_by(S::LANES) {
                let mut sum = S::splat(0.0);
                for image in 0..batch {
                    sum = S::add(sum, S::load(from.add(image * conv.kernel * count + at)));
                }
                S::store(to.add(at), sum);
            }
        }
    }
}

/// A weight of `outputs/64 × taps × inputs × 64` becomes one of `inputs/64 × taps × outputs × 64`.
struct Transpose {
    from: *const f32,
    to: *mut f32,
    inputs: usize,
    outputs: usize,
    taps: usize,
}

// SAFETY: bare addresses; items write different blocks.
unsafe impl Sync for Transpose {}

impl Transpose {
    fn items(&self) -> usize {
        self.inputs / GROUP * self.taps * (self.outputs / GROUP)
    }
}

impl Work for Transpose {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, item: usize, _: usize) {
        let Self { inputs, outputs, taps, .. } = *self;
        let (in_groups, out_groups) = (inputs / GROUP, outputs / GROUP);
        let (output, tap, input) = (item / (taps * in_groups), item / in_groups % taps, item % in_groups);
        debug_assert!(output < out_groups);
        // SAFETY: both sides are as large as the struct says.
        unsafe {
            let from = self.from.add(((output * taps + tap) * inputs + input * GROUP) * GROUP);
            let to = self.to.add(((input * taps + tap) * outputs + output * GROUP) * GROUP);
            for i in (0..GROUP).step_by(S::LANES) {
                for o in (0..GROUP).step_by(S::LANES) {
                    S::transpose(from.add(i * GROUP + o), GROUP, to.add(o * GROUP + i), GROUP);
                }
            }
        }
    }
}
