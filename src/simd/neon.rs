//! aarch64's baseline vectors.

use std::arch::aarch64::*;

use half::f16;

use super::Simd;

/// Four lanes.
#[derive(Clone, Copy, Debug)]
pub struct Neon;

/// Four zeros and four times all bits: read from index `4 − lane`, a mask that keeps the lanes from `lane` on.
static KEEP: [u32; 8] = [0, 0, 0, 0, !0, !0, !0, !0];

// SAFETY (whole impl): NEON is part of every aarch64; the trait's contract says that pointers hold LANES values.
#[allow(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]
impl Simd for Neon {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    type V = float32x4_t;

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> float32x4_t {
        unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i16(p: *const i16) -> float32x4_t {
        unsafe { vcvtq_f32_s32(vmovl_s16(vld1_s16(p))) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: float32x4_t) {
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // `fmax` gives NaN when either is NaN: at least as careful as the contract.
        unsafe { vmaxq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        unsafe { std::arch::asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly)) }
    }
    #[inline(always)]
    unsafe fn prefetch_far<T>(p: *const T) {
        unsafe { std::arch::asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly)) }
    }
    #[inline(always)]
    unsafe fn keep_from(v: float32x4_t, lane: usize) -> float32x4_t {
        debug_assert!(lane <= 4);
        unsafe { vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vld1q_u32(KEEP.as_ptr().add(4 - lane)))) }
    }
    #[inline(always)]
    unsafe fn sum(v: float32x4_t) -> f32 {
        unsafe { vaddvq_f32(v) }
    }
}
