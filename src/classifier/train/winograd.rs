//! 3×3 convolutions with stride 1 by minimal filtering, forward and backward.
//!
//! With A, B and G the matrices of the filter, a tile's output is `Aᵀ[(G w Gᵀ) ⊙ (Bᵀ d B)]A` (Lavin and Gray 2016). What
//! is in the brackets is, for each *point*, a product of matrices over the channels:
//!
//! | | left | right |
//! |---|---|---|
//! | forward | V = Bᵀ d B, tiles × inputs | U = G w Gᵀ, inputs × outputs |
//! | gradient of the input | Y = A y Aᵀ, tiles × outputs | Uᵀ |
//! | gradient of the weight | Vᵀ | Y |
//!
//! The backward pass is the exact adjoint of the forward one: the gradient of the input goes out through B instead of Aᵀ,
//! that of the weight through Gᵀ. V is kept from the forward pass and Y is made once for both gradients. A point of
//! V and Y is cut into blocks of [`TILES`] tiles and groups of [`GROUP`] channels, so that a block and its product stay in
//! the second cache level.

use crate::backbone::cpu::memory::{LINE, Layout, Memory};
use crate::backbone::cpu::winograd::{F4, Filter as Forward};
use crate::classifier::network::GROUP;
use crate::simd::Simd;

use super::share::{Context, Map, Product, Segment, Work};

/// Tiles of a block: whole images.
const TILES: usize = 32;
/// Floats from one point of a block and group to the next: a line more than there are, lest all points fall on the same
/// cache sets.
const POINT: usize = TILES * GROUP + LINE;
/// Input channels of an item of the weight's gradient.
const INPUTS: usize = 16;

/// A minimal filter that makes OUT × OUT pixels of a PATCH × PATCH patch with POINTS × POINTS products.
trait Filter<const PATCH: usize, const POINTS: usize, const OUT: usize>: Copy + Sync {
    /// Pixels of the patch before the tile.
    const BEFORE: usize;

    /// Bᵀ.
    unsafe fn input<S: Simd>(d: [S::V; PATCH]) -> [S::V; POINTS];
    /// B.
    unsafe fn input_adjoint<S: Simd>(v: [S::V; POINTS]) -> [S::V; PATCH];
    /// G.
    unsafe fn weight<S: Simd>(w: [S::V; 3]) -> [S::V; POINTS];
    /// Gᵀ.
    unsafe fn weight_adjoint<S: Simd>(u: [S::V; POINTS]) -> [S::V; 3];
    /// Aᵀ.
    unsafe fn output<S: Simd>(m: [S::V; POINTS]) -> [S::V; OUT];
    /// A.
    unsafe fn output_adjoint<S: Simd>(y: [S::V; OUT]) -> [S::V; POINTS];
}

/// F(4×4, 3×3): a quarter of the products.
#[derive(Clone, Copy)]
struct Four;

// SAFETY (whole impl): vector arithmetic only; the CPU has `S`.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Filter<6, 6, 4> for Four {
    const BEFORE: usize = 1;

    #[inline(always)]
    unsafe fn input<S: Simd>(d: [S::V; 6]) -> [S::V; 6] {
        unsafe { F4::input::<S>(d) }
    }

    #[inline(always)]
    unsafe fn input_adjoint<S: Simd>(v: [S::V; 6]) -> [S::V; 6] {
        unsafe {
            let (near, near_odd) = (S::add(v[1], v[2]), S::sub(v[1], v[2]));
            let (far, far_odd) = (S::add(v[3], v[4]), S::sub(v[3], v[4]));
            let (two, four, five) = (S::splat(2.0), S::splat(4.0), S::splat(-5.0));
            let (minus_two, minus_four) = (S::splat(-2.0), S::splat(-4.0));
            [
                S::mul(four, v[0]),
                S::fma(minus_four, near_odd, S::fma(minus_two, far_odd, S::mul(four, v[5]))),
                S::fma(five, v[0], S::fma(minus_four, near, S::sub(S::splat(0.0), far))),
                S::fma(two, far_odd, S::fma(five, v[5], near_odd)),
                S::add(v[0], S::add(near, far)),
                v[5],
            ]
        }
    }

    #[inline(always)]
    unsafe fn weight<S: Simd>(w: [S::V; 3]) -> [S::V; 6] {
        unsafe {
            let (quarter, sixth) = (S::splat(1.0 / 4.0), S::splat(1.0 / 6.0));
            let (minus_sixth, twelfth, small) = (S::splat(-1.0 / 6.0), S::splat(1.0 / 12.0), S::splat(1.0 / 24.0));
            let (even, odd) = (S::mul(minus_sixth, S::add(w[0], w[2])), S::mul(minus_sixth, w[1]));
            let (far, far_odd) = (S::fma(small, w[0], S::mul(sixth, w[2])), S::mul(twelfth, w[1]));
            [
                S::mul(quarter, w[0]),
                S::add(even, odd),
                S::sub(even, odd),
                S::add(far, far_odd),
                S::sub(far, far_odd),
                w[2],
            ]
        }
    }

    #[inline(always)]
    unsafe fn weight_adjoint<S: Simd>(u: [S::V; 6]) -> [S::V; 3] {
        unsafe {
            let (near, near_odd) = (S::add(u[1], u[2]), S::sub(u[1], u[2]));
            let (far, far_odd) = (S::add(u[3], u[4]), S::sub(u[3], u[4]));
            let (quarter, minus_sixth) = (S::splat(1.0 / 4.0), S::splat(-1.0 / 6.0));
            let near = S::mul(minus_sixth, near);
            [
                S::fma(quarter, u[0], S::fma(S::splat(1.0 / 24.0), far, near)),
                S::fma(minus_sixth, near_odd, S::mul(S::splat(1.0 / 12.0), far_odd)),
                S::fma(S::splat(1.0 / 6.0), far, S::add(near, u[5])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn output<S: Simd>(m: [S::V; 6]) -> [S::V; 4] {
        unsafe { F4::output::<S>(m) }
    }

    #[inline(always)]
    unsafe fn output_adjoint<S: Simd>(y: [S::V; 4]) -> [S::V; 6] {
        unsafe {
            let (even, odd) = (S::add(y[0], y[2]), S::add(y[1], y[3]));
            let far = S::fma(S::splat(4.0), y[2], y[0]);
            let far_odd = S::fma(S::splat(8.0), y[3], S::mul(S::splat(2.0), y[1]));
            [y[0], S::add(even, odd), S::sub(even, odd), S::add(far, far_odd), S::sub(far, far_odd), y[3]]
        }
    }
}

/// A whole map of 2×2 pixels with zeros around it. In one dimension that is `y₀ = w₁x₀ + w₂x₁`, `y₁ = w₀x₀ + w₁x₁`, which
/// three products make: `w₁(x₀ + x₁)`, `(w₂ − w₁)x₁` and `(w₀ − w₁)x₀`. Nine in two dimensions, of the sixteen that do not
/// meet the zeros.
#[derive(Clone, Copy)]
struct Two;

// SAFETY (whole impl): vector arithmetic only; the CPU has `S`.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Filter<2, 3, 2> for Two {
    const BEFORE: usize = 0;

    #[inline(always)]
    unsafe fn input<S: Simd>(d: [S::V; 2]) -> [S::V; 3] {
        unsafe { [S::add(d[0], d[1]), d[1], d[0]] }
    }

    #[inline(always)]
    unsafe fn input_adjoint<S: Simd>(v: [S::V; 3]) -> [S::V; 2] {
        unsafe { [S::add(v[0], v[2]), S::add(v[0], v[1])] }
    }

    #[inline(always)]
    unsafe fn weight<S: Simd>(w: [S::V; 3]) -> [S::V; 3] {
        unsafe { [w[1], S::sub(w[2], w[1]), S::sub(w[0], w[1])] }
    }

    #[inline(always)]
    unsafe fn weight_adjoint<S: Simd>(u: [S::V; 3]) -> [S::V; 3] {
        unsafe { [u[2], S::sub(u[0], S::add(u[1], u[2])), u[1]] }
    }

    #[inline(always)]
    unsafe fn output<S: Simd>(m: [S::V; 3]) -> [S::V; 2] {
        unsafe { [S::add(m[0], m[1]), S::add(m[0], m[2])] }
    }

    #[inline(always)]
    unsafe fn output_adjoint<S: Simd>(y: [S::V; 2]) -> [S::V; 3] {
        unsafe { [S::add(y[0], y[1]), y[0], y[1]] }
    }
}

/// Where the parts of a convolution's products lie in the arena. All but `v` are shared by all convolutions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shared {
    /// U or Uᵀ.
    u: usize,
    /// The transposed weight.
    transposed: usize,
    /// Y.
    y: usize,
}

/// Floats that [`Shared`] must have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    pub(super) u: usize,
    pub(super) transposed: usize,
    pub(super) y: usize,
    pub(super) scratch: usize,
}

impl Needs {
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            u: self.u.max(other.u),
            transposed: self.transposed.max(other.transposed),
            y: self.y.max(other.y),
            scratch: self.scratch.max(other.scratch),
        }
    }

    pub(super) fn reserve(&self, layout: &mut Layout) -> Shared {
        let [u, transposed, y] = [self.u, self.transposed, self.y].map(|len| layout.reserve(len));
        Shared { u, transposed, y }
    }
}

impl Shared {
    /// Where the transposed weight lies.
    pub(super) fn transposed(&self) -> usize {
        self.transposed
    }
}

/// A 3×3 convolution of maps of 2 pixels' side, or a multiple of 4.
#[derive(Debug)]
pub(super) struct Winograd {
    /// Whether the maps are 2×2.
    two: bool,
    inputs: usize,
    outputs: usize,
    /// The weight among parameters and gradients.
    weight: usize,
    /// Tiles of the batch, and of an image in each direction.
    tiles: usize,
    across: usize,
    /// V in the arena.
    v: usize,
    /// A block's V over all groups of inputs, Y over all groups of outputs, and all blocks.
    over_inputs: Vec<Segment>,
    over_outputs: Vec<Segment>,
    over_blocks: Vec<Segment>,
}

impl Winograd {
    pub(super) fn new(
        layout: &mut Layout,
        batch: usize,
        side: usize,
        inputs: usize,
        outputs: usize,
        weight: usize,
    ) -> Self {
        assert!(side == 2 || side.is_multiple_of(4), "maps of {side} pixels are not whole tiles");
        assert!(inputs.is_multiple_of(GROUP) && outputs.is_multiple_of(GROUP), "{inputs} to {outputs} channels");
        let two = side == 2;
        let across = if two { 1 } else { side / 4 };
        assert!(TILES.is_multiple_of(across * across), "a block is whole images");
        let tiles = batch * across * across;
        let points = if two { 9 } else { 36 };
        let blocks = tiles.div_ceil(TILES);
        let groups = |channels: usize| {
            let segment = |group| Segment { a: group * points * POINT, b: group * GROUP * GROUP, length: GROUP };
            (0..channels / GROUP).map(segment).collect()
        };
        let over_blocks = (0..blocks).map(|block| Segment {
            a: block * (inputs / GROUP) * points * POINT,
            b: block * (outputs / GROUP) * points * POINT,
            length: TILES.min(tiles - block * TILES),
        });
        let v = layout.reserve(blocks * (inputs / GROUP) * points * POINT);
        let (over_inputs, over_outputs, over_blocks) = (groups(inputs), groups(outputs), over_blocks.collect());
        Self { two, inputs, outputs, weight, tiles, across, v, over_inputs, over_outputs, over_blocks }
    }

    fn points(&self) -> usize {
        if self.two { 9 } else { 36 }
    }

    fn blocks(&self) -> usize {
        self.over_blocks.len()
    }

    /// Floats from a point of U to the next, with so many rows.
    fn matrix(rows: usize) -> usize {
        rows * GROUP + LINE
    }

    pub(super) fn needs(&self) -> Needs {
        let points = self.points();
        let u = self.outputs / GROUP * points * Self::matrix(self.inputs);
        let ut = self.inputs / GROUP * points * Self::matrix(self.outputs);
        Needs {
            u: u.max(ut),
            transposed: 0,
            y: self.blocks() * (self.outputs / GROUP) * points * POINT,
            scratch: points * POINT,
        }
    }

    /// z = w ∗ x.
    ///
    /// # Safety
    /// The maps must lie in the arena and be this convolution's; nobody else may use the arena meanwhile.
    pub(super) unsafe fn forward(&self, context: &Context<'_>, shared: Shared, x: Map, z: Map) {
        // SAFETY: as the caller promised.
        unsafe {
            if self.two {
                self.forward_by::<_, 2, 3, 2>(Two, context, shared, x, z);
            } else {
                self.forward_by::<_, 6, 6, 4>(Four, context, shared, x, z);
            }
        }
    }

    unsafe fn forward_by<F: Filter<P, Q, O>, const P: usize, const Q: usize, const O: usize>(
        &self,
        filter: F,
        context: &Context<'_>,
        shared: Shared,
        x: Map,
        z: Map,
    ) {
        let Self { inputs, outputs, weight, .. } = *self;
        // SAFETY: items write different channels of different tiles; the rest as the caller promised.
        unsafe {
            let from = context.parameters.at(weight);
            let to = context.arena.at(shared.u);
            let weights = Weights::<F, P, Q, O> { from, to, inputs, rows: inputs, transposed: false, _filter: filter };
            context.share(weights.items(outputs), &weights);
            let input = Input::<F, P, Q, O> { conv: self, arena: context.arena, map: x, _filter: filter };
            context.share(self.blocks() * (inputs / GROUP), &input);
            let product = Points { a: self.v, b: shared.u, rows: inputs, segments: &self.over_inputs };
            let output = Output::<F, P, Q, O> { conv: self, context, product, map: z, _filter: filter };
            context.share(self.blocks() * (outputs / GROUP), &output);
        }
    }

    /// The gradient of the weight, from that of the output, `dz`; and that of the input if it is wanted: added to `dx`, or
    /// written there.
    ///
    /// # Safety
    /// As [`Winograd::forward`], which must have gone before with the same weight.
    pub(super) unsafe fn backward(&self, context: &Context<'_>, shared: Shared, dz: Map, dx: Map, add: bool) {
        // SAFETY: as the caller promised.
        unsafe {
            if self.two {
                self.backward_by::<_, 2, 3, 2>(Two, context, shared, dz, dx, add);
            } else {
                self.backward_by::<_, 6, 6, 4>(Four, context, shared, dz, dx, add);
            }
        }
    }

    unsafe fn backward_by<F: Filter<P, Q, O>, const P: usize, const Q: usize, const O: usize>(
        &self,
        filter: F,
        context: &Context<'_>,
        shared: Shared,
        dz: Map,
        dx: Map,
        add: bool,
    ) {
        let Self { inputs, outputs, weight, .. } = *self;
        // SAFETY: items write different channels of different tiles or images, or different weights; the rest as the
        // caller promised.
        unsafe {
            let arena = context.arena;
            let gradient = OutputGradient::<F, P, Q, O> { conv: self, arena, y: shared.y, map: dz, _filter: filter };
            context.share(self.blocks() * (outputs / GROUP), &gradient);
            let (from, to) = (context.parameters.at(weight), arena.at(shared.u));
            let weights = Weights::<F, P, Q, O> { from, to, inputs, rows: outputs, transposed: true, _filter: filter };
            context.share(weights.items(inputs), &weights);
            let product = Points { a: shared.y, b: shared.u, rows: outputs, segments: &self.over_outputs };
            let input = InputGradient::<F, P, Q, O> { conv: self, context, product, map: dx, add, _filter: filter };
            context.share(self.blocks() * (inputs / GROUP), &input);
            let weights = WeightGradient::<F, P, Q, O> { conv: self, context, y: shared.y, _filter: filter };
            context.share(inputs / INPUTS * (outputs / GROUP), &weights);
        }
    }

    /// The image, row and column of a tile.
    #[inline(always)]
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let each = self.across * self.across;
        (tile / each, tile % each / self.across, tile % self.across)
    }

    /// The tiles of a block: the first and how many.
    #[inline(always)]
    fn block(&self, block: usize) -> (usize, usize) {
        (block * TILES, TILES.min(self.tiles - block * TILES))
    }
}

/// U or Uᵀ of every kernel: a weight of `outputs/64 × 9 × inputs × 64` becomes, for each group of columns, `points` matrices
/// of `rows × 64`. The columns of U are outputs, those of Uᵀ inputs.
struct Weights<F, const P: usize, const Q: usize, const O: usize> {
    from: *const f32,
    to: *mut f32,
    inputs: usize,
    rows: usize,
    transposed: bool,
    _filter: F,
}

/// Rows of an item.
const ROWS: usize = 16;
/// Lanes of the widest vector.
const MAX_LANES: usize = 16;

// SAFETY: bare addresses; items write different rows.
unsafe impl<F: Sync, const P: usize, const Q: usize, const O: usize> Sync for Weights<F, P, Q, O> {}

impl<F: Filter<P, Q, O>, const P: usize, const Q: usize, const O: usize> Weights<F, P, Q, O> {
    fn items(&self, columns: usize) -> usize {
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
struct Input<'a, F, const P: usize, const Q: usize, const O: usize> {
    conv: &'a Winograd,
    arena: Memory,
    map: Map,
    _filter: F,
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
struct Points<'a> {
    /// V or Y in the arena.
    a: usize,
    /// U or Uᵀ in the arena.
    b: usize,
    /// Rows of the matrices of U.
    rows: usize,
    /// The groups of channels of the left side.
    segments: &'a [Segment],
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
struct Output<'a, F, const P: usize, const Q: usize, const O: usize> {
    conv: &'a Winograd,
    context: &'a Context<'a>,
    product: Points<'a>,
    map: Map,
    _filter: F,
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
struct OutputGradient<'a, F, const P: usize, const Q: usize, const O: usize> {
    conv: &'a Winograd,
    arena: Memory,
    y: usize,
    map: Map,
    _filter: F,
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
struct InputGradient<'a, F, const P: usize, const Q: usize, const O: usize> {
    conv: &'a Winograd,
    context: &'a Context<'a>,
    product: Points<'a>,
    map: Map,
    add: bool,
    _filter: F,
}

impl<F: Filter<P, Q, O>, const P: usize, const Q: usize, const O: usize> Work for InputGradient<'_, F, P, Q, O> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, item: usize, thread: usize) {
        let Self { conv, context, map, .. } = *self;
        let groups = conv.inputs / GROUP;
        let (block, group) = (item / groups, item % groups);
        let (first, count) = conv.block(block);
        // SAFETY: the scratch holds a block's product; a block is whole images, and its channels are nobody else's.
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
struct WeightGradient<'a, F, const P: usize, const Q: usize, const O: usize> {
    conv: &'a Winograd,
    context: &'a Context<'a>,
    y: usize,
    _filter: F,
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

/// A weight of `outputs/64 × taps × inputs × 64` becomes one of `inputs/64 × taps × outputs × 64`.
pub(super) struct Transpose {
    pub(super) from: *const f32,
    pub(super) to: *mut f32,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) taps: usize,
}

// SAFETY: bare addresses; items write different blocks.
unsafe impl Sync for Transpose {}

impl Transpose {
    pub(super) fn items(&self) -> usize {
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
