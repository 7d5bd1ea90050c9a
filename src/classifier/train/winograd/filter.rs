//! The filters' matrices and their adjoints, each applied to one row or column.

use crate::backbone::cpu::winograd::{F4, Filter as Forward};
use crate::simd::Simd;

/// A minimal filter that makes OUT × OUT pixels of a PATCH × PATCH patch with POINTS × POINTS products.
pub(super) trait Filter<const PATCH: usize, const POINTS: usize, const OUT: usize>: Copy + Sync {
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
pub(super) struct Four;

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
pub(super) struct Two;

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
