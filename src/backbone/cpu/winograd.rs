//! Winograd's minimal filtering for 3×3 convolutions (Lavin and Gray, "Fast algorithms for convolutional neural networks",
//! 2016), with stride 1 and, taken apart by the parity of the pixels, with stride 2.
//!
//! F(m×m, 3×3) makes an m×m tile of output from an (m + 2)×(m + 2) tile of input with (m + 2)² multiplications instead
//! of 9·m²: a quarter for m = 4, 1/2.25 for m = 2. The image is worked through in blocks of tiles that stay in cache:
//! input tiles are transformed, each of the (m + 2)² *points* is one small matrix product over the channels, and the
//! products are transformed back, with bias, shortcut and ReLU on the way out.

mod filter;

use std::mem::MaybeUninit;

use half::f16;

use crate::backbone::weights::Conv;
use crate::simd::{Isa, Kernel, Simd};

use super::gemm::{GemmRows, Number, PackedMatrix, in_row_groups, panel_width};
use super::memory::{Areas, LINE, Place};
use super::network::Ends;
use super::share::Share;
use filter::{Apart, ApartTwo, F2, transform_weights};
pub(crate) use filter::{F4, Filter};

/// Output channels that are taken at a time: the product of a block's tiles stays in cache until it is transformed back.
const GROUP: usize = 64;

/// The side m of the output tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tile {
    /// F(2×2, 3×3).
    Two,
    /// F(4×4, 3×3).
    Four,
    /// 4×4 for a kernel that moves by two pixels: see [`Apart`].
    Apart,
    /// 2×2 for such a kernel: see [`ApartTwo`].
    ApartTwo,
}

impl Tile {
    /// Output pixels.
    pub(super) const fn side(self) -> usize {
        match self {
            Self::Two | Self::ApartTwo => 2,
            Self::Four | Self::Apart => 4,
        }
    }

    /// Products of each input and output channel.
    pub(super) const fn points(self) -> usize {
        match self {
            Self::Two => 4 * 4,
            Self::Four => 6 * 6,
            Self::Apart => 9 * 9,
            Self::ApartTwo => 5 * 5,
        }
    }

    /// Weights of each input and output channel.
    pub(super) const fn weights(self) -> usize {
        match self {
            Self::Two | Self::Four => self.points(),
            Self::Apart => 6 * 6,
            Self::ApartTwo => 4 * 4,
        }
    }
}

/// Rows are input channels; columns run over groups of output channels, the transformed weights, and the channels of a
/// group.
#[derive(Debug)]
enum Weights {
    Single(PackedMatrix),
    /// 16-bit integers and a scale for each column: half the bytes to fetch, where that is what takes the time. An error
    /// of 2⁻¹⁶ of a column's largest weight, an eighth of what halves would leave.
    Scaled(PackedMatrix<i16>, Vec<f32>),
    /// Where halves are multiplied as such. A column's scale makes its largest weight 1/[`LARGEST_HALF`].
    Half(PackedMatrix<f16>, Vec<f32>),
}

/// So much below 1 is the largest of a column of weights in halves: transformed inputs are up to 100 times those of a map,
/// and 32 products of them, added up in halves, must stay below 65504, which they do for maps up to 327. Weights are
/// halves to the last digit down to a thousandth of the largest.
const LARGEST_HALF: f32 = 16.0;

/// A convolution packed for [`Winograd::run`].
#[derive(Debug)]
pub(super) struct Winograd {
    weights: Weights,
    tile: Tile,
    inputs: usize,
    outputs: usize,
    /// Tiles of a block: enough to use each weight often, few enough that transformed input, product and one group's
    /// weights stay about the second cache level. Half or twice as many make little difference.
    block: usize,
}

impl Winograd {
    pub(super) fn new(conv: &Conv, tile: Tile, scaled: bool, isa: Isa) -> Self {
        let transformed = match tile {
            Tile::Two => transform_weights(F2::WEIGHTS, conv),
            Tile::Four => transform_weights(F4::WEIGHTS, conv),
            Tile::Apart => transform_weights(Apart::WEIGHTS, conv),
            Tile::ApartTwo => transform_weights(ApartTwo::WEIGHTS, conv),
        };
        let Conv { inputs, outputs, .. } = *conv;
        let points = tile.weights();
        let columns = points * outputs;
        let weight = |i: usize, column: usize| {
            let (group, rest) = (column / (points * GROUP), column % (points * GROUP));
            let (point, o) = (rest / GROUP, group * GROUP + rest % GROUP);
            transformed[(i * points + point) * outputs + o]
        };
        let largest = |column| (0..inputs).map(|i| weight(i, column).abs()).fold(f32::MIN_POSITIVE, f32::max);
        let weights = if isa.multiplies_halves() {
            let scale: Vec<f32> = (0..columns).map(|column| largest(column) * LARGEST_HALF).collect();
            let half = |i: usize, column: usize| f16::from_f32(weight(i, column) / scale[column]);
            Weights::Half(PackedMatrix::new(isa, inputs, columns, half), scale)
        } else if scaled {
            let scale: Vec<f32> = (0..columns).map(|column| largest(column) / f32::from(i16::MAX)).collect();
            let whole = |i: usize, column: usize| (weight(i, column) / scale[column]).round() as i16;
            Weights::Scaled(PackedMatrix::new(isa, inputs, columns, whole), scale)
        } else {
            Weights::Single(PackedMatrix::new(isa, inputs, columns, weight))
        };
        let many =
            matches!(tile, Tile::Two | Tile::Four) && (inputs <= 64 || inputs <= 128 && panel_width::<f32>(isa) > 16);
        let block = if many { 32 } else { 16 };
        Self { weights, tile, inputs, outputs, block }
    }

    pub(super) fn name(&self) -> &'static str {
        match (self.tile, &self.weights) {
            (Tile::Two, Weights::Single(_)) => "winograd 2×2",
            (Tile::Two, Weights::Scaled(..)) => "winograd 2×2 16-bit",
            (Tile::Four, Weights::Single(_)) => "winograd 4×4",
            (Tile::Four, Weights::Scaled(..)) => "winograd 4×4 16-bit",
            (Tile::Two, Weights::Half(..)) => "winograd 2×2 fp16",
            (Tile::Four, Weights::Half(..)) => "winograd 4×4 fp16",
            (Tile::Apart, Weights::Half(..)) => "winograd 4×4/2 fp16",
            (Tile::Apart, Weights::Single(_)) => "winograd 4×4/2",
            (Tile::Apart, Weights::Scaled(..)) => "winograd 4×4/2 16-bit",
            (Tile::ApartTwo, Weights::Single(_)) => "winograd 2×2/2",
            (Tile::ApartTwo, Weights::Scaled(..)) => "winograd 2×2/2 16-bit",
            (Tile::ApartTwo, Weights::Half(..)) => "winograd 2×2/2 fp16",
        }
    }

    /// Bytes of transformed, packed weights.
    pub(super) fn weight_bytes(&self) -> usize {
        match &self.weights {
            Weights::Single(weights) => weights.bytes(),
            Weights::Scaled(weights, _) => weights.bytes(),
            Weights::Half(weights, _) => weights.bytes(),
        }
    }

    /// Multiply-adds of all products for an output of `side` pixels.
    pub(super) fn multiply_adds(&self, side: usize) -> u64 {
        (side.div_ceil(self.tile.side()).pow(2) * self.tile.points() * self.inputs * self.outputs) as u64
    }

    /// Floats between the points of the transformed input. A line more than needed, lest all points fall on the same
    /// cache sets.
    fn input_point(&self) -> usize {
        self.block * self.inputs + LINE
    }

    /// Floats between the points of the product.
    fn product_point(&self) -> usize {
        self.block * GROUP + LINE
    }

    /// Floats of scratch that each thread needs.
    pub(super) fn scratch(&self) -> usize {
        self.tile.points() * (self.input_point() + self.product_point())
    }

    /// Does the items that `thread` gets of `share`. `scratch` is the offset of this thread's own scratch.
    ///
    /// # Safety
    /// `memory` must be the arena in which the tensors of `ends` lie, of this convolution's shapes, and the scratch;
    /// nobody but callers of this with the same `share` may use the output meanwhile, and nobody else the scratch.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn run(
        &self,
        isa: Isa,
        memory: Areas,
        ends: &Ends,
        bias: &[f32],
        share: &Share,
        thread: usize,
        scratch: usize,
    ) {
        // SAFETY: the scratch lies in the arena.
        let transformed = unsafe { memory.at(Place::arena(scratch)) };
        let product = transformed.wrapping_add(self.tile.points() * self.input_point());
        isa.run(WinogradKernel { conv: self, memory, ends, bias, share, thread, transformed, product });
    }
}

struct WinogradKernel<'a> {
    conv: &'a Winograd,
    memory: Areas,
    ends: &'a Ends,
    bias: &'a [f32],
    share: &'a Share,
    thread: usize,
    transformed: *mut f32,
    product: *mut f32,
}

impl Kernel for WinogradKernel<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as the caller of `Winograd::run` promised.
        unsafe {
            match self.conv.tile {
                Tile::Two => self.blocks::<S, F2, 4, 2>(),
                Tile::Four => self.blocks::<S, F4, 6, 4>(),
                Tile::Apart => self.blocks::<S, Apart, 9, 4>(),
                Tile::ApartTwo => self.blocks::<S, ApartTwo, 5, 2>(),
            }
        }
    }
}

impl WinogradKernel<'_> {
    #[inline(always)]
    unsafe fn blocks<S: Simd, F: Filter<IN, OUT>, const IN: usize, const OUT: usize>(&self) {
        let conv = self.conv;
        let across = self.ends.output.side.div_ceil(OUT);
        let tiles = across * across;
        let blocks = tiles.div_ceil(conv.block);
        let groups = conv.outputs / GROUP;
        // With few blocks an item is one group of channels of a block, and each thread transforms the block's input
        // for itself: in the deep layers that have few tiles, that is little beside the products.
        let groups_per_item = if blocks >= 2 * self.share.threads() { groups } else { 1 };
        let items_per_block = groups / groups_per_item;
        let mut ready = usize::MAX;
        while let Some(item) = self.share.take(self.thread, blocks * items_per_block) {
            let block = item / items_per_block;
            let first = block * conv.block;
            let count = conv.block.min(tiles - first);
            // SAFETY: the block's tiles exist; scratch is this thread's, and no other thread has this item's outputs.
            unsafe {
                if ready != block {
                    self.transform_input::<S, F, IN, OUT>(across, first, count);
                    ready = block;
                }
                let group = item % items_per_block * groups_per_item;
                for group in group..group + groups_per_item {
                    self.multiply::<S, F, IN, OUT>(group, count);
                    self.transform_output::<S, F, IN, OUT>(across, first, count, group * GROUP);
                }
            }
        }
    }

    /// Bᵀ d B of each tile, for all channels.
    #[allow(clippy::needless_range_loop)] // the second pass reads the columns crosswise
    #[inline(always)]
    unsafe fn transform_input<S: Simd, F: Filter<IN, OUT>, const IN: usize, const OUT: usize>(
        &self,
        across: usize,
        first: usize,
        count: usize,
    ) {
        let input = &self.ends.input;
        let (channels, row, point) = (input.channels, input.row_stride(), self.conv.input_point());
        for tile in 0..count {
            let step = OUT * F::STRIDE;
            let (y, x) = ((first + tile) / across * step, (first + tile) % across * step);
            // SAFETY: tensors are readable in whole tiles and their border; the scratch holds `block` tiles a point. All
            // columns are written before they are read.
            unsafe {
                let from = self.memory.at(input.bordered(y + input.pad - 1, x + input.pad - 1)).cast_const();
                let to = self.transformed.add(tile * channels);
                for c in (0..channels).step_by(S::LANES) {
                    // Not zeroed, which would be a call to `memset` for each vector of channels.
                    let mut columns = [const { MaybeUninit::<[S::V; IN]>::uninit() }; IN];
                    for (j, column) in columns.iter_mut().enumerate() {
                        let d = std::array::from_fn(|i| S::load(from.wrapping_add(i * row + j * channels + c)));
                        column.write(F::input::<S>(d));
                    }
                    for i in 0..IN {
                        let v = F::input::<S>(std::array::from_fn(|j| columns[j].assume_init_ref()[i]));
                        for (j, &v) in v.iter().enumerate() {
                            S::store(to.add((i * IN + j) * point + c), v);
                        }
                    }
                }
            }
        }
    }

    /// The products of all points for one group of output channels.
    #[inline(always)]
    unsafe fn multiply<S: Simd, F: Filter<IN, OUT>, const IN: usize, const OUT: usize>(
        &self,
        group: usize,
        count: usize,
    ) {
        // SAFETY: as the caller promised.
        unsafe {
            match &self.conv.weights {
                Weights::Single(weights) => self.multiply_by::<S, _, F, IN, OUT>(weights, None, group, count),
                Weights::Scaled(weights, scale) => {
                    self.multiply_by::<S, _, F, IN, OUT>(weights, Some(scale), group, count);
                }
                Weights::Half(weights, scale) => {
                    self.multiply_by::<S, _, F, IN, OUT>(weights, Some(scale), group, count);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply_by<S: Simd, T: Number, F: Filter<IN, OUT>, const IN: usize, const OUT: usize>(
        &self,
        weights: &PackedMatrix<T>,
        scale: Option<&[f32]>,
        group: usize,
        count: usize,
    ) {
        let (conv, panels) = (self.conv, GROUP / weights.panel());
        let across = F::WEIGHTS.len();
        for weight in 0..across * across {
            for panel in 0..panels {
                let index = (group * across * across + weight) * panels + panel;
                for row in F::points_of(weight / across) {
                    for column in F::points_of(weight % across) {
                        let point = row * IN + column;
                        // SAFETY: both sides of the product lie in the scratch, as laid out by `scratch`.
                        unsafe {
                            let rows = GemmRows {
                                a: self.transformed.add(point * conv.input_point()),
                                lda: conv.inputs,
                                depth: conv.inputs,
                                b: weights.panel_ptr(index),
                                scale: scale.map(|scale| scale[index * weights.panel()..].as_ptr()),
                                c: self.product.add(point * conv.product_point() + panel * weights.panel()),
                                ldc: GROUP,
                                fetch_next: Some(count),
                            };
                            in_row_groups::<S, _>(&rows, 0..count);
                        }
                    }
                }
            }
        }
    }

    /// Aᵀ m A of each tile, for one group of output channels from `channel` on, out through [`Ends::finish`].
    #[allow(clippy::needless_range_loop)] // the second pass reads the columns crosswise
    #[inline(always)]
    unsafe fn transform_output<S: Simd, F: Filter<IN, OUT>, const IN: usize, const OUT: usize>(
        &self,
        across: usize,
        first: usize,
        count: usize,
        channel: usize,
    ) {
        let (output, point) = (&self.ends.output, self.conv.product_point());
        for tile in 0..count {
            let (y, x) = ((first + tile) / across * OUT, (first + tile) % across * OUT);
            let (tall, wide) = (OUT.min(output.side - y), OUT.min(output.side - x));
            for c in (0..GROUP).step_by(S::LANES) {
                // SAFETY: the scratch holds `block` tiles a point; only pixels inside the map are written. All columns are
                // written before they are read.
                unsafe {
                    let from = self.product.add(tile * GROUP + c).cast_const();
                    let bias = S::load(self.bias.as_ptr().add(channel + c));
                    let mut columns = [const { MaybeUninit::<[S::V; OUT]>::uninit() }; IN];
                    for (j, column) in columns.iter_mut().enumerate() {
                        let m = std::array::from_fn(|i| S::load(from.wrapping_add((i * IN + j) * point)));
                        column.write(F::output::<S>(m));
                    }
                    for i in 0..tall {
                        let out = self.memory.at(output.pixel(y + i, x) + channel + c);
                        let v = F::output::<S>(std::array::from_fn(|j| columns[j].assume_init_ref()[i]));
                        for (j, &v) in v[..wide].iter().enumerate() {
                            self.ends.finish::<S>(S::add(v, bias), out.add(j * output.channels));
                        }
                    }
                }
            }
        }
    }
}
