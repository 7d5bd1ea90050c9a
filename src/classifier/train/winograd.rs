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

mod filter;
mod items;

use crate::backbone::cpu::memory::{LINE, Layout};
use crate::classifier::network::GROUP;

use super::share::{Context, Map, Segment};
use filter::{Filter, Four, Two};
use items::{Input, InputGradient, Output, OutputGradient, Points, WeightGradient, Weights};

/// Tiles of a block: of whole images, or of a part of one.
const TILES: usize = 32;
/// Floats from one point of a block and group to the next: a line more than there are, lest all points fall on the same
/// cache sets.
const POINT: usize = TILES * GROUP + LINE;
/// Input channels of an item of the weight's gradient.
const INPUTS: usize = 16;

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
        let each = across * across;
        assert!(TILES.is_multiple_of(each) || each.is_multiple_of(TILES), "no image begins within a block");
        let tiles = batch * each;
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

    /// Blocks of an image; 1 where a block is several.
    fn blocks_of_image(&self) -> usize {
        (self.across * self.across).div_ceil(TILES)
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
            context.share(self.blocks() / self.blocks_of_image() * (inputs / GROUP), &input);
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
