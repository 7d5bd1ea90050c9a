//! The reference: one lane of plain Rust.

use half::f16;

use super::Simd;

/// One lane.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

// The pointer arguments carry the trait's contract.
#[allow(clippy::missing_safety_doc)]
impl Simd for Scalar {
    const LANES: usize = 1;
    const REGISTERS: usize = 16;
    type V = f32;

    #[inline(always)]
    unsafe fn splat(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> f32 {
        // SAFETY: the caller gives a pointer to LANES values.
        unsafe { p.read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> f32 {
        // SAFETY: the caller gives a pointer to LANES values.
        unsafe { p.read_unaligned() }.to_f32()
    }
    #[inline(always)]
    unsafe fn load_i16(p: *const i16) -> f32 {
        // SAFETY: the caller gives a pointer to LANES values.
        f32::from(unsafe { p.read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: f32) {
        // SAFETY: the caller gives a pointer to LANES values.
        unsafe { p.write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    unsafe fn sub(a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    unsafe fn mul(a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    unsafe fn fma(a: f32, b: f32, c: f32) -> f32 {
        // A fused multiply-add without the instruction is a slow library call; the product of two f32 is exact in f64,
        // so this rounds once more at most in cases of one in 2²⁹.
        (f64::from(a) * f64::from(b) + f64::from(c)) as f32
    }
    #[inline(always)]
    unsafe fn max(a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    unsafe fn keep_from(v: f32, lane: usize) -> f32 {
        if lane > 0 { 0.0 } else { v }
    }
    #[inline(always)]
    unsafe fn sum(v: f32) -> f32 {
        v
    }
}
