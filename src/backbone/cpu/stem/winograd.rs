//! conv1 of one plane by Winograd's filtering along the rows.
//!
//! A kernel of 7 that moves by 2 is a kernel of 4 over the even columns and one of 3 over the odd ones. For 4 outputs
//! F(4, 4) and F(4, 3) take 7 and 6 products instead of 16 and 12, and as the points 0, ±1, ±2 and ∞ are common to both
//! (F(4, 4) has ½ besides), they share one transform of the output: 91 products for 4 pixels instead of 196. Down the
//! columns the kernel is direct: another transform there would spare fewer products than it costs loads and stores.
//!
//! F(4, 4) is had from F(4, 3): where d are the values, p one of the five points in common, e(i) = d(i) − 2·d(i + 1) is
//! what the filter of 3 needs for the filter of 4, whose polynomial has the factor x − ½ more.

use crate::backbone::cpu::gemm::{MAX_ROWS, PackedMatrix, RowKernel, accumulate_steps, in_row_groups};
use crate::backbone::cpu::winograd::{F4, Filter};
use crate::backbone::weights::Conv;
use crate::simd::{Isa, Simd};

use super::{KERNEL, LOWEST, Pool, ROWS, Rows};

/// Pixels of conv1's map that a tile makes.
const TILE: usize = 4;
/// Points that both parities have.
const COMMON: usize = 6;
/// Products of a tile and a row of the kernel.
const PRODUCTS: usize = 2 * COMMON + 1;
/// Rows of the input that a band needs.
const INPUTS: usize = 2 * (ROWS - 1) + KERNEL;
/// Columns of the input that a tile needs, with three more for whole vectors.
const COLUMNS: usize = 16;
/// At most so many floats has a panel.
const PANEL: usize = 64;

/// G of the even columns at the points that [`F4`] has, and at ½.
const EVEN: [[f64; 4]; COMMON + 1] = [
    [1.0 / 4.0, 0.0, 0.0, 0.0],
    [1.0 / 6.0, 1.0 / 6.0, 1.0 / 6.0, 1.0 / 6.0],
    [-1.0 / 18.0, 1.0 / 18.0, -1.0 / 18.0, 1.0 / 18.0],
    [-1.0 / 72.0, -1.0 / 36.0, -1.0 / 18.0, -1.0 / 9.0],
    [1.0 / 120.0, -1.0 / 60.0, 1.0 / 30.0, -1.0 / 15.0],
    [0.0, 0.0, 0.0, -1.0 / 2.0],
    [32.0 / 45.0, 16.0 / 45.0, 8.0 / 45.0, 4.0 / 45.0],
];

/// Rows of weights in the order (point, kernel row, parity), at the last point without the parity.
#[derive(Debug)]
pub(super) struct Columns {
    weights: PackedMatrix,
    /// Always [`KERNEL`], but not to the compiler: see [`super::Direct`].
    kernel: usize,
}

impl Columns {
    pub(super) fn new(conv: &Conv, isa: Isa) -> Self {
        assert_eq!(conv.inputs, 1, "one plane");
        let weights = PackedMatrix::new(isa, PRODUCTS * KERNEL, conv.outputs, |k, o| {
            let (point, rest) = (k / (2 * KERNEL), k % (2 * KERNEL));
            let (row, odd) = if point < COMMON { (rest / 2, rest % 2 == 1) } else { (rest, false) };
            let taps = conv.weight[(o * KERNEL + row) * KERNEL..][usize::from(odd)..KERNEL].iter().step_by(2);
            let g: &[f64] = if odd { &F4::WEIGHTS[point] } else { &EVEN[point] };
            g.iter().zip(taps).map(|(g, &tap)| g * f64::from(tap)).sum::<f64>() as f32
        });
        assert!(weights.panel() <= PANEL, "a panel's products have room");
        Self { weights, kernel: conv.kernel }
    }

    pub(super) fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Multiply-adds instead of `defined` ones.
    pub(super) fn multiply_adds(defined: u64) -> u64 {
        defined * PRODUCTS as u64 / (TILE * KERNEL) as u64
    }

    /// The products of a group of tiles in a panel, the last column of the group before, and a band's transformed input.
    pub(super) fn scratch(&self, side: usize) -> usize {
        // As many tiles as the widest vectors ask for.
        GROUP + PANEL + Transformed::new(side, 16).floats()
    }
}

/// Floats of the products of a group of tiles in a panel.
const GROUP: usize = (COMMON + 1) * MAX_ROWS * PANEL;

/// How the transformed input of a band is laid out: point by point its rows, of each the two parities, of each the tiles.
#[derive(Clone, Copy)]
struct Transformed {
    /// Tiles of a row, rounded up to whole vectors.
    tiles: usize,
}

impl Transformed {
    /// For an output of `side` pixels and vectors of `lanes`.
    fn new(side: usize, lanes: usize) -> Self {
        Self { tiles: (2 * side / TILE).next_multiple_of(lanes) }
    }

    /// Where `row` of `point` starts.
    #[inline(always)]
    fn at(self, point: usize, row: usize) -> usize {
        let rows = 2 * INPUTS * point + if point < COMMON { 2 * row } else { row };
        rows * self.tiles
    }

    fn floats(self) -> usize {
        self.at(COMMON, INPUTS)
    }
}

impl Rows for Columns {
    /// Transforms the input's rows: both parities at the points in common, the even columns at ½.
    #[inline(always)]
    unsafe fn prepare<S: Simd>(&self, image: *const f32, step: usize, count: usize, side: usize, scratch: *mut f32) {
        let (to, layout) = (scratch.wrapping_add(GROUP + PANEL), Transformed::new(side, S::LANES));
        let mut turned = [0.0; COLUMNS * 16];
        let turned = turned.as_mut_ptr();
        for row in 0..2 * (count - 1) + KERNEL {
            for tile in (0..layout.tiles).step_by(S::LANES) {
                // SAFETY: tiles that are not there read on into the row below, which is there: the border has one more than
                // the last window needs. The scratch has room for a band's rows.
                unsafe {
                    let from = image.add(row * step + 2 * TILE * tile);
                    for column in (0..COLUMNS).step_by(S::LANES) {
                        S::transpose(from.add(column), 2 * TILE, turned.add(column * S::LANES), S::LANES);
                    }
                    let even: [S::V; 7] = std::array::from_fn(|i| S::load(turned.add(2 * i * S::LANES)));
                    let odd: [S::V; 6] = std::array::from_fn(|i| S::load(turned.add((2 * i + 1) * S::LANES)));
                    let half = S::fma(S::splat(4.0), even[1], S::fma(S::splat(-5.0), even[3], even[5]));
                    S::store(to.add(layout.at(COMMON, row) + tile), half);
                    let minus_two = S::splat(-2.0);
                    let even = F4::input::<S>(std::array::from_fn(|i| S::fma(minus_two, even[i + 1], even[i])));
                    let odd = F4::input::<S>(odd);
                    for point in 0..COMMON {
                        let to = to.add(layout.at(point, row) + tile);
                        S::store(to, even[point]);
                        S::store(to.add(layout.tiles), odd[point]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn convolve<S: Simd>(&self, _: *const f32, _: usize, index: usize, pool: &Pool, scratch: *mut f32) {
        let layout = Transformed::new(pool.side, S::LANES);
        for panel in 0..self.weights.panels() {
            let tiles = Tiles {
                transformed: scratch.wrapping_add(GROUP + PANEL),
                layout,
                row: 2 * index,
                kernel: self.kernel,
                weights: self.weights.panel_ptr(panel),
                products: scratch,
                left: scratch.wrapping_add(GROUP),
                pool,
                channel: panel * self.weights.panel(),
            };
            // SAFETY: `prepare` has seen the rows; the tiles are those of a row, since a side is a multiple of 16.
            unsafe { in_row_groups::<S, _>(&tiles, 0..2 * pool.side / TILE) };
        }
    }
}

/// The tiles of a row of conv1, in the channels of a panel. They must be done from left to right.
struct Tiles<'a> {
    transformed: *const f32,
    layout: Transformed,
    /// The first of its rows that the kernel sees.
    row: usize,
    kernel: usize,
    weights: *const f32,
    /// For each point and tile of a group a row of the panel.
    products: *mut f32,
    /// The column before a group.
    left: *mut f32,
    pool: &'a Pool,
    channel: usize,
}

impl RowKernel for Tiles<'_> {
    type Number = f32;

    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize, const N: usize>(&self, first: usize) {
        let width = N * S::LANES;
        // SAFETY: whoever made this vouches for the row; a group's products have room.
        unsafe {
            for point in 0..=COMMON {
                let from = self.transformed.add(self.layout.at(point, self.row) + first);
                let a: [*const f32; M] = std::array::from_fn(|m| from.wrapping_add(m));
                let mut sums = [[S::splat(0.0); N]; M];
                let length = if point < COMMON { 2 * self.kernel } else { self.kernel };
                let weights = self.weights.add(2 * self.kernel * point * width);
                accumulate_steps::<S, f32, M, N>(&mut sums, &a, self.layout.tiles, length, weights, width);
                for (m, row) in sums.iter().enumerate() {
                    for (n, &sum) in row.iter().enumerate() {
                        S::store(self.products.add((point * M + m) * width + n * S::LANES), sum);
                    }
                }
            }
            for n in 0..N {
                let before = self.left.add(n * S::LANES);
                let mut left = if first == 0 { S::splat(LOWEST) } else { S::load(before) };
                for m in 0..M {
                    let from = self.products.add(m * width + n * S::LANES).cast_const();
                    let product = |point: usize| S::load(from.add(point * M * width));
                    let (y, half) = (F4::output::<S>(std::array::from_fn(product)), product(COMMON));
                    // ½ to the power of the column.
                    let columns = [
                        S::add(y[0], half),
                        S::fma(S::splat(0.5), half, y[1]),
                        S::fma(S::splat(0.25), half, y[2]),
                        S::fma(S::splat(0.125), half, y[3]),
                    ];
                    let (x, c) = (2 * (first + m), self.channel + n * S::LANES);
                    self.pool.take::<S>(x, c, left, columns[0], columns[1]);
                    self.pool.take::<S>(x + 1, c, columns[1], columns[2], columns[3]);
                    left = columns[3];
                }
                S::store(before, left);
            }
        }
    }
}
