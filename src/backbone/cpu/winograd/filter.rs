//! The minimal filters themselves: their three matrices, for each kernel and tile.

use std::ops::Range;

use crate::backbone::weights::Conv;
use crate::simd::Simd;

/// The three matrices of a minimal filter that makes OUT values of IN with a kernel of 3, each applied to one row or
/// column.
pub(crate) trait Filter<const IN: usize, const OUT: usize> {
    /// Pixels by which the kernel moves.
    const STRIDE: usize = 1;
    /// G, for the weights, without rows that are the same as another.
    const WEIGHTS: &'static [[f64; 3]];

    /// The values that are multiplied with row `weight` of G.
    #[inline(always)]
    fn points_of(weight: usize) -> Range<usize> {
        weight..weight + 1
    }

    /// Bᵀ.
    unsafe fn input<S: Simd>(d: [S::V; IN]) -> [S::V; IN];
    /// Aᵀ.
    unsafe fn output<S: Simd>(m: [S::V; IN]) -> [S::V; OUT];
}

pub(super) struct F2;

// SAFETY (whole impl): vector arithmetic only; the CPU has `S`.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Filter<4, 2> for F2 {
    const WEIGHTS: &'static [[f64; 3]] = &[[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

    #[inline(always)]
    unsafe fn input<S: Simd>(d: [S::V; 4]) -> [S::V; 4] {
        unsafe { [S::sub(d[0], d[2]), S::add(d[1], d[2]), S::sub(d[2], d[1]), S::sub(d[1], d[3])] }
    }

    #[inline(always)]
    unsafe fn output<S: Simd>(m: [S::V; 4]) -> [S::V; 2] {
        unsafe { [S::add(S::add(m[0], m[1]), m[2]), S::sub(S::sub(m[1], m[2]), m[3])] }
    }
}

pub(crate) struct F4;

// SAFETY (whole impl): vector arithmetic only; the CPU has `S`.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Filter<6, 4> for F4 {
    const WEIGHTS: &'static [[f64; 3]] = &[
        [1.0 / 4.0, 0.0, 0.0],
        [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
        [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
        [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
        [0.0, 0.0, 1.0],
    ];

    #[inline(always)]
    unsafe fn input<S: Simd>(d: [S::V; 6]) -> [S::V; 6] {
        unsafe {
            let (two, four, five) = (S::splat(2.0), S::splat(4.0), S::splat(-5.0));
            let (minus_two, minus_four) = (S::splat(-2.0), S::splat(-4.0));
            let (even, odd) = (S::fma(minus_four, d[2], d[4]), S::fma(minus_four, d[1], d[3]));
            let (outer, inner) = (S::sub(d[4], d[2]), S::sub(d[3], d[1]));
            [
                S::fma(four, d[0], S::fma(five, d[2], d[4])),
                S::add(even, odd),
                S::sub(even, odd),
                S::fma(two, inner, outer),
                S::fma(minus_two, inner, outer),
                S::fma(four, d[1], S::fma(five, d[3], d[5])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn output<S: Simd>(m: [S::V; 6]) -> [S::V; 4] {
        unsafe {
            let (near, near_odd) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            let (far, far_odd) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
            [
                S::add(S::add(m[0], near), far),
                S::fma(S::splat(2.0), far_odd, near_odd),
                S::fma(S::splat(4.0), far, near),
                S::add(S::fma(S::splat(8.0), far_odd, near_odd), m[5]),
            ]
        }
    }
}

/// A kernel of 3 that moves by 2 is, for 4 outputs from 9 inputs, a kernel of 2 (its outer weights) over the 5 inputs with
/// even numbers, for which F(4, 2) takes 5 products instead of 8, and one weight over the 4 with odd numbers: 9 products
/// instead of 12, or 81 instead of 144 in two dimensions.
pub(super) struct Apart;

// SAFETY (whole impl): vector arithmetic only; the CPU has `S`.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Filter<9, 4> for Apart {
    const STRIDE: usize = 2;
    const WEIGHTS: &'static [[f64; 3]] = &[
        [1.0 / 2.0, 0.0, 0.0],
        [-1.0 / 2.0, 0.0, -1.0 / 2.0],
        [-1.0 / 6.0, 0.0, 1.0 / 6.0],
        [1.0 / 6.0, 0.0, 1.0 / 3.0],
        [0.0, 0.0, 1.0],
        [0.0, 1.0, 0.0],
    ];

    #[inline(always)]
    fn points_of(weight: usize) -> Range<usize> {
        if weight < 5 { weight..weight + 1 } else { 5..9 }
    }

    #[inline(always)]
    unsafe fn input<S: Simd>(d: [S::V; 9]) -> [S::V; 9] {
        unsafe {
            let (two, minus_two) = (S::splat(2.0), S::splat(-2.0));
            let (e, near, far) = ([d[0], d[2], d[4], d[6], d[8]], S::sub(d[6], d[4]), S::sub(d[6], d[2]));
            [
                S::fma(two, S::sub(e[0], e[2]), far),
                S::fma(minus_two, e[1], near),
                S::fma(two, S::sub(e[1], e[2]), near),
                far,
                S::fma(minus_two, far, S::sub(e[4], e[2])),
                d[1],
                d[3],
                d[5],
                d[7],
            ]
        }
    }

    #[inline(always)]
    unsafe fn output<S: Simd>(m: [S::V; 9]) -> [S::V; 4] {
        unsafe {
            let (sum, difference) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            [
                S::add(S::add(m[0], sum), S::add(m[3], m[5])),
                S::add(S::fma(S::splat(2.0), m[3], difference), m[6]),
                S::add(S::fma(S::splat(4.0), m[3], sum), m[7]),
                S::add(S::fma(S::splat(8.0), m[3], difference), S::add(m[4], m[8])),
            ]
        }
    }
}

/// The same for 2 outputs from 5 inputs: F(2, 2) takes 3 products instead of 4, which makes 5 instead of 6, or 25 instead
/// of 36 in two dimensions, with 16 weights instead of [`Apart`]'s 36.
pub(super) struct ApartTwo;

// SAFETY (whole impl): vector arithmetic only; the CPU has `S`.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Filter<5, 2> for ApartTwo {
    const STRIDE: usize = 2;
    const WEIGHTS: &'static [[f64; 3]] = &[[1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]];

    #[inline(always)]
    fn points_of(weight: usize) -> Range<usize> {
        if weight < 3 { weight..weight + 1 } else { 3..5 }
    }

    #[inline(always)]
    unsafe fn input<S: Simd>(d: [S::V; 5]) -> [S::V; 5] {
        unsafe { [S::sub(d[0], d[2]), d[2], S::sub(d[2], d[4]), d[1], d[3]] }
    }

    #[inline(always)]
    unsafe fn output<S: Simd>(m: [S::V; 5]) -> [S::V; 2] {
        unsafe { [S::add(S::add(m[0], m[1]), m[3]), S::add(S::sub(m[1], m[2]), m[4])] }
    }
}

/// G w Gᵀ of every kernel, in f64: `inputs × weights × outputs`.
pub(super) fn transform_weights(g: &[[f64; 3]], conv: &Conv) -> Vec<f32> {
    let Conv { inputs, outputs, .. } = *conv;
    let across = g.len();
    let mut transformed = vec![0.0; inputs * across * across * outputs];
    for i in 0..inputs {
        for o in 0..outputs {
            let w = &conv.weight[(o * inputs + i) * 9..][..9];
            for (row, down) in g.iter().enumerate() {
                let half: [f64; 3] = std::array::from_fn(|x| (0..3).map(|y| down[y] * f64::from(w[y * 3 + x])).sum());
                for (column, right) in g.iter().enumerate() {
                    let value: f64 = (0..3).map(|x| half[x] * right[x]).sum();
                    transformed[(i * across * across + row * across + column) * outputs + o] = value as f32;
                }
            }
        }
    }
    transformed
}
