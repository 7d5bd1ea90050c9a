//! The items of work that a convolution's threads share: transforms, products, and transforms back.

use crate::backbone::cpu::memory::Memory;
use crate::classifier::network::GROUP;
use crate::simd::Simd;

use super::super::share::{Context, Map, Product, Segment, Work};
use super::filter::Filter;
use super::{INPUTS, POINT, Winograd};

/// U or Uᵀ of every kernel: a weight of `outputs/64 × 9 × inputs × 64` becomes, for each group of columns, `points` matrices
/// of `rows × 64`. The columns of U are outputs, those of Uᵀ inputs.
pub(super) struct Weights<F, const P: usize, const Q: usize, const O: usize> {
    pub(super) from: *const f32,
    pub(super) to: *mut f32,
    pub(super) inputs: usize,
    pub(super) rows: usize,
    pub(super) transposed: bool,
    pub(super) _filter: F,
}

/// Rows of an item.
const ROWS: usize = 16;
/// Lanes of the widest vector.
const MAX_LANES: usize = 16;

// SAFETY: bare addresses; items write different rows.
unsafe impl<F: Sync, const P: usize, const Q: usize, const O: usize> Sync for Weights<F, P, Q, O> {}

impl<F: Filter<P, Q, O>, const P: usize, const Q: usize, const O: usize> Weights<F, P, Q, O> {
    pub(super) fn items(&self, columns: usize) -> usize {
        columns / GROUP * (self.rows / ROWS)
    }

    /// G w Gᵀ of a vector of kernels, whose taps lie `step` floats apart, to points `matrix` floats apart.
    ///
    /// # Safety
    /// The CPU must have `S`, and the vectors be there.
    #[inline(always)]
    unsafe fn transform<S: Simd>(from: *const f32, step: usize, to: *mut f32, matrix: usize) {
        // SAFETY: as the caller promised.
        unsafe {
            let mut columns = [[S::splat(0.0); Q]; 3];
            for (x, column) in columns.iter_mut().enumerate() {
                *column = F::weight::<S>(std::array::from_fn(|y| S::load(from.add((y * 3 + x) * step))));
            }
            for i in 0..Q {
                let u = F::weight::<S>(std::array::from_fn(|x| columns[x][i]));
                for (j, &u) in u.iter().enumerate() {
                    S::store(to.add((i * Q + j) * matrix), u);
                }
            }
        }
    }
}

impl<F: Filter<P, Q, O>, const P: usize, const Q: usize, const O: usize> Work for Weights<F, P, Q, O> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, item: usize, _: usize) {
        let parts = self.rows / ROWS;
        let (group, first) = (item / parts, item % parts * ROWS);
        let (tap, matrix) = (self.inputs * GROUP, Winograd::matrix(self.rows));
        // SAFETY: both sides are as large as the struct says.
        unsafe {
            let to = self.to.add(group * Q * Q * matrix);
            if !self.transposed {
                let from = self.from.add(group * 9 * tap);
                for at in (first * GROUP..(first + ROWS) * GROUP).step_by(S::LANES) {
                    Self::transform::<S>(from.add(at), tap, to.add(at), matrix);
                }
                return;
            }
            // A block of LANES outputs and as many inputs is turned around before it is transformed.
            let mut block = [0.0; 9 * MAX_LANES * MAX_LANES];
            let square = S::LANES * S::LANES;
            for output in (first..first + ROWS).step_by(S::LANES) {
                for input in (0..GROUP).step_by(S::LANES) {
                    let at = (output / GROUP * 9 * self.inputs + group * GROUP + input) * GROUP + output % GROUP;
                    for t in 0..9 {
                        let turned = block.as_mut_ptr().add(t * square);
                        S::transpose(self.from.add(at + t * tap), GROUP, turned, S::LANES);
                    }
                    for row in 0..S::LANES {
                        let to = to.add((output + row) * GROUP + input);
                        Self::transform::<S>(block.as_ptr().add(row * S::LANES), square, to, matrix);
                    }
                }
            }
        }
    }
}

/// V of a map, all blocks and groups of inputs.
pub(super) struct Input<'a, F, const P: usize, const Q: usize, const O: usize> {
    pub(super) conv: &'a Winograd,
    pub(super) arena: Memory,
    pub(super) map: Map,
    pub(super) _filter: F,
}

impl<F: Filter<P, Q, O>, const P: usize, const Q: usize, const O: usize> Work for Input<'_, F, P, Q, O> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, item: usize, _: usize) {
        let (conv, map) = (self.conv, self.map);
        let groups = conv.inputs / GROUP;
        let (first, count) = conv.block(item / groups);
        let (row, channels) = (map.row(), map.channels);
        for tile in 0..count {
            let (b, y, x) = conv.place(first + tile);
            let corner = map.pad - F::BEFORE;
            // SAFETY: the patch lies inside the bordered map, and V has room for every block.
            unsafe {
                let from = self.arena.at(map.bordered(b, y * O + corner, x * O + corner) + item % groups * GROUP);
                let to = self.arena.at(conv.v + item * Q * Q * POINT + tile * GROUP);
                for c in (0..GROUP).step_by(S::LANES) {
                    let mut columns = [[S::splat(0.0); Q]; P];
                    for (j, column) in columns.iter_mut().enumerate() {
                        let d = std::array::from_fn(|i| S::load(from.wrapping_add(i * row + j * channels + c)));
                        *column = F::input::<S>(d);
                    }
                    for i in 0..Q {
                        let v = F::input::<S>(std::array::from_fn(|j| columns[j][i]));
                        for (j, &v) in v.iter().enumerate() {
                            S::store(to.add((i * Q + j) * POINT + c), v);
                        }
                    }
                }
            }
        }
    }
}

/// The product of V with U, or of Y with Uᵀ.
#[derive(Clone, Copy)]
pub(super) struct Points<'a> {
    /// V or Y in the arena.
    pub(super) a: usize,
    /// U or Uᵀ in the arena.
    pub(super) b: usize,
    /// Rows of the matrices of U.
    pub(super) rows: usize,
    /// The groups of channels of the left side.
    pub(super) segments: &'a [Segment],
}

impl Points<'_> {
    /// One block and group of the result, to `to`, point after point.
    ///
    /// # Safety
    /// The CPU must have `S`, both sides lie in the arena, and `to` hold `points` × [`POINT`] floats.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(
        &self,
        arena: Memory,
        points: usize,
        block: usize,
        group: usize,
        tiles: usize,
        to: *mut f32,
    ) {
        let matrix = Winograd::matrix(self.rows);
        for point in 0..points {
            // SAFETY: as the caller promised.
            unsafe {
                let from = arena.at(self.a + (block * self.segments.len() * points + point) * POINT).cast_const();
                let to = to.add(point * POINT);
                let product = Product {
                    a: |tile| from.wrapping_add(tile * GROUP),
                    a_step: 1,
                    segments: self.segments,
                    b: arena.at(self.b + (group * points + point) * matrix),
                    b_step: GROUP,
                    c: |tile| to.wrapping_add(tile * GROUP),
                    add: false,
                };
                product.run::<S>(tiles);
            }
        }
    }
}

/// Forward: products and Aᵀ m A.
pub(super) struct Output<'a, F, const P: usize, const Q: usize, const O: usize> {
    pub(super) conv: &'a Winograd,
    pub(super) context: &'a Context<'a>,
    pub(super) product: Points<'a>,
    pub(super) map: Map,
    pub(super) _filter: F,
}

impl<F: Filter<P, Q, O>, const P: usize, const Q: usize, const O: usize> Work for Output<'_, F, P, Q, O> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, item: usize, thread: usize) {
        let Self { conv, context, map, .. } = *self;
        let groups = conv.outputs / GROUP;
        let (block, group) = (item / groups, item % groups);
        let (first, count) = conv.block(block);
        // SAFETY: the scratch holds a block's product; the item's tiles and channels are nobody else's.
        unsafe {
            let scratch = context.scratch(thread);
            self.product.multiply::<S>(context.arena, Q * Q, block, group, count, scratch);
            for tile in 0..count {
                let (b, y, x) = conv.place(first + tile);
                let from = scratch.add(tile * GROUP).cast_const();
                let to = context.arena.at(map.pixel(b, y * O, x * O) + group * GROUP);
                for c in (0..GROUP).step_by(S::LANES) {
                    let mut columns = [[S::splat(0.0); O]; Q];
                    for (j, column) in columns.iter_mut().enumerate() {
                        let m = std::array::from_fn(|i| S::load(from.wrapping_add((i * Q + j) * POINT + c)));
                        *column = F::output::<S>(m);
                    }
                    for i in 0..O {
                        let z = F::output::<S>(std::array::from_fn(|j| columns[j][i]));
                        for (j, &z) in z.iter().enumerate() {
                            S::store(to.add(i * map.row() + j * map.channels + c), z);
                        }
                    }
                }
            }
        }
    }
}

/// Y of a map, all blocks and groups of outputs.
pub(super) struct OutputGradient<'a, F, const P: usize, const Q: usize, const O: usize> {
    pub(super) conv: &'a Winograd,
    pub(super) arena: Memory,
    pub(super) y: usize,
    pub(super) map: Map,
    pub(super) _filter: F,
}

impl<F: Filter<P, Q, O>, const P: usize, const Q: usize, const O: usize> Work for OutputGradient<'_, F, P, Q, O> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, item: usize, _: usize) {
        let (conv, map) = (self.conv, self.map);
        let groups = conv.outputs / GROUP;
        let (first, count) = conv.block(item / groups);
        for tile in 0..count {
            let (b, y, x) = conv.place(first + tile);
            // SAFETY: the tile lies inside the map, and Y has room for every block.
            unsafe {
                let from = self.arena.at(map.pixel(b, y * O, x * O) + item % groups * GROUP).cast_const();
                let to = self.arena.at(self.y + item * Q * Q * POINT + tile * GROUP);
                for c in (0..GROUP).step_by(S::LANES) {
                    let mut columns = [[S::splat(0.0); Q]; O];
                    for (j, column) in columns.iter_mut().enumerate() {
                        let z = |i| S::load(from.wrapping_add(i * map.row() + j * map.channels + c));
                        *column = F::output_adjoint::<S>(std::array::from_fn(z));
                    }
                    for i in 0..Q {
                        let v = F::output_adjoint::<S>(std::array::from_fn(|j| columns[j][i]));
                        for (j, &v) in v.iter().enumerate() {
                            S::store(to.add((i * Q + j) * POINT + c), v);
                        }
                    }
                }
            }
        }
    }
}

/// Backward: products with Uᵀ, and B v Bᵀ added up where patches overlap.
pub(super) struct InputGradient<'a, F, const P: usize, const Q: usize, const O: usize> {
    pub(super) conv: &'a Winograd,
    pub(super) context: &'a Context<'a>,
    pub(super) product: Points<'a>,
    pub(super) map: Map,
    pub(super) add: bool,
    pub(super) _filter: F,
}

impl<F: Filter<P, Q, O>, const P: usize, const Q: usize, const O: usize> Work for InputGradient<'_, F, P, Q, O> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, item: usize, thread: usize) {
        let (groups, blocks) = (self.conv.inputs / GROUP, self.conv.blocks_of_image());
        let (image, group) = (item / groups, item % groups);
        for block in image * blocks..(image + 1) * blocks {
            // SAFETY: an item is all blocks of its images, and its channels are nobody else's; the rest as the caller
            // promised.
            unsafe { self.block::<S>(block, group, thread) };
        }
    }
}

impl<F: Filter<P, Q, O>, const P: usize, const Q: usize, const O: usize> InputGradient<'_, F, P, Q, O> {
    /// What the tiles of a block add to a group of channels. An image's first tile clears it, unless it is to be added to.
    ///
    /// # Safety
    /// As [`Work::item`]; tiles of one image overlap, so that nobody else may do one of its blocks meanwhile.
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, block: usize, group: usize, thread: usize) {
        let Self { conv, context, map, .. } = *self;
        let (first, count) = conv.block(block);
        // SAFETY: the scratch holds a block's product; the rest as the caller promised.
        unsafe {
            let scratch = context.scratch(thread);
            self.product.multiply::<S>(context.arena, Q * Q, block, group, count, scratch);
            for tile in 0..count {
                let (b, tile_y, tile_x) = conv.place(first + tile);
                let image = context.arena.at(map.pixel(b, 0, 0) + group * GROUP);
                if !self.add && (tile_y, tile_x) == (0, 0) {
                    for (y, x) in (0..map.side * map.side).map(|p| (p / map.side, p % map.side)) {
                        std::slice::from_raw_parts_mut(image.add(y * map.row() + x * map.channels), GROUP).fill(0.0);
                    }
                }
                let from = scratch.add(tile * GROUP).cast_const();
                for c in (0..GROUP).step_by(S::LANES) {
                    let mut columns = [[S::splat(0.0); P]; Q];
                    for (j, column) in columns.iter_mut().enumerate() {
                        let v = std::array::from_fn(|i| S::load(from.wrapping_add((i * Q + j) * POINT + c)));
                        *column = F::input_adjoint::<S>(v);
                    }
                    for i in 0..P {
                        let d = F::input_adjoint::<S>(std::array::from_fn(|j| columns[j][i]));
                        // Before the first pixel this wraps, and is beyond the last one.
                        let y = (tile_y * O + i).wrapping_sub(F::BEFORE);
                        if y >= map.side {
                            continue;
                        }
                        for (j, &d) in d.iter().enumerate() {
                            let x = (tile_x * O + j).wrapping_sub(F::BEFORE);
                            if x < map.side {
                                let at = image.add(y * map.row() + x * map.channels + c);
                                S::store(at, S::add(S::load(at), d));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Backward: Vᵀ Y of [`INPUTS`] input channels and a group of outputs, and Gᵀ u G.
pub(super) struct WeightGradient<'a, F, const P: usize, const Q: usize, const O: usize> {
    pub(super) conv: &'a Winograd,
    pub(super) context: &'a Context<'a>,
    pub(super) y: usize,
    pub(super) _filter: F,
}

impl<F: Filter<P, Q, O>, const P: usize, const Q: usize, const O: usize> Work for WeightGradient<'_, F, P, Q, O> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, item: usize, thread: usize) {
        let Self { conv, context, .. } = *self;
        let parts = conv.inputs / INPUTS;
        let (group, first) = (item / parts, item % parts * INPUTS);
        let (points, matrix) = (Q * Q, Winograd::matrix(INPUTS));
        // SAFETY: V and Y lie in the arena, the scratch holds the product, and the item's gradients are nobody else's.
        unsafe {
            let (arena, scratch) = (context.arena, context.scratch(thread));
            let (v, y) = (conv.v + first / GROUP * points * POINT + first % GROUP, self.y + group * points * POINT);
            for point in 0..points {
                let (v, to) = (arena.at(v + point * POINT).cast_const(), scratch.add(point * matrix));
                let product = Product {
                    a: |input| v.wrapping_add(input),
                    a_step: GROUP,
                    segments: &conv.over_blocks,
                    b: arena.at(y + point * POINT),
                    b_step: GROUP,
                    c: |input| to.wrapping_add(input * GROUP),
                    add: false,
                };
                product.run::<S>(INPUTS);
            }
            let tap = conv.inputs * GROUP;
            let to = context.gradients.at(conv.weight + group * 9 * tap + first * GROUP);
            for at in (0..INPUTS * GROUP).step_by(S::LANES) {
                let mut columns = [[S::splat(0.0); 3]; Q];
                for (j, column) in columns.iter_mut().enumerate() {
                    let u = std::array::from_fn(|i| S::load(scratch.add((i * Q + j) * matrix + at)));
                    *column = F::weight_adjoint::<S>(u);
                }
                for i in 0..3 {
                    let w = F::weight_adjoint::<S>(std::array::from_fn(|j| columns[j][i]));
                    for (j, &w) in w.iter().enumerate() {
                        S::store(to.add((i * 3 + j) * tap + at), w);
                    }
                }
            }
        }
    }
}
