//! aarch64 with arithmetic in half precision.

use std::arch::aarch64::*;

use half::f16;

use super::{Kernel, Neon, Simd};

/// Runs a kernel compiled for NEON with half precision.
///
/// # Safety
/// The CPU must have it.
#[target_feature(enable = "neon,fp16")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has checked the CPU.
    unsafe { kernel.run::<NeonFp16>() }
}

/// Four lanes, as [`Neon`]'s; eight in [`Simd::multiply_halves`].
#[derive(Clone, Copy, Debug)]
pub struct NeonFp16;

/// Terms that are added up in halves before they are widened. The error grows with the square root of it, the cost of
/// widening falls with it: at 32, a seventh of all instructions.
const RUN: usize = 32;
/// Terms of a row of `a` that share a register: with twice as many the sums no longer fit beside them.
const STEP: usize = 4;

/// Reads eight halves.
#[inline(always)]
unsafe fn load(p: *const f16) -> float16x8_t {
    // SAFETY: the caller gives eight halves.
    unsafe { vreinterpretq_f16_u16(vld1q_u16(p.cast())) }
}

// SAFETY (whole impl): the trait's contract says that the CPU has the instructions and that pointers hold LANES values.
#[allow(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]
impl Simd for NeonFp16 {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    const HALVES: bool = true;
    type V = float32x4_t;

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        unsafe { Neon::splat(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        unsafe { Neon::load(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> float32x4_t {
        unsafe { Neon::load_f16(p) }
    }
    #[inline(always)]
    unsafe fn load_i16(p: *const i16) -> float32x4_t {
        unsafe { Neon::load_i16(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: float32x4_t) {
        unsafe { Neon::store(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { Neon::add(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { Neon::sub(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { Neon::mul(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { Neon::fma(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { Neon::max(a, b) }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        unsafe { Neon::prefetch(p) }
    }
    #[inline(always)]
    unsafe fn prefetch_far<T>(p: *const T) {
        unsafe { Neon::prefetch_far(p) }
    }
    #[inline(always)]
    unsafe fn keep_from(v: float32x4_t, lane: usize) -> float32x4_t {
        unsafe { Neon::keep_from(v, lane) }
    }
    #[inline(always)]
    unsafe fn sum(v: float32x4_t) -> f32 {
        unsafe { Neon::sum(v) }
    }

    #[inline(always)]
    unsafe fn multiply_halves<const M: usize, const N: usize>(
        sums: &mut [[float32x4_t; N]; M],
        a: &[*const f32; M],
        segments: &[usize],
        length: usize,
        b: *const f16,
    ) {
        unsafe { multiply(sums, a, segments, length, b) }
    }
}

/// [`Simd::multiply_halves`]: a function of its own, because the intrinsics are inlined only into one that has `fp16`.
#[inline]
#[target_feature(enable = "neon,fp16")]
unsafe fn multiply<const M: usize, const N: usize>(
    sums: &mut [[float32x4_t; N]; M],
    a: &[*const f32; M],
    segments: &[usize],
    length: usize,
    mut b: *const f16,
) {
    debug_assert!(length.is_multiple_of(STEP) && N.is_multiple_of(2));
    let zero = vreinterpretq_f16_u16(vdupq_n_u16(0));
    let mut segments = segments.iter();
    let (mut k, mut end) = (0, 0);
    // SAFETY: as the caller promised.
    unsafe {
        'runs: loop {
            // Of N vectors the first half is used: two of floats are one of halves.
            let mut run = [[zero; N]; M];
            for _ in 0..RUN / STEP {
                if k == end {
                    let Some(&segment) = segments.next() else {
                        widen(sums, &run);
                        break 'runs;
                    };
                    (k, end) = (segment, segment + length);
                }
                let mut x = [vget_low_f16(zero); M];
                for m in 0..M {
                    x[m] = vcvt_f16_f32(vld1q_f32(a[m].add(k)));
                }
                macro_rules! lanes {
                    ($($lane:literal)*) => {
                        $(
                            for n in 0..N / 2 {
                                let row = load(b.add(8 * n));
                                for m in 0..M {
                                    run[m][n] = vfmaq_lane_f16::<$lane>(run[m][n], row, x[m]);
                                }
                            }
                            b = b.add(4 * N);
                        )*
                    };
                }
                lanes!(0 1 2 3);
                k += STEP;
            }
            widen(sums, &run);
            // The floats stay in memory: as variables of the loop they would drive the halves out of the registers.
            std::arch::asm!("/* {0} */", in(reg) sums.as_mut_ptr(), options(nostack, preserves_flags));
        }
        // An infinity is no longer a number: a ReLU must not turn a run that overflowed into a clean zero.
        for sum in sums.as_flattened_mut() {
            *sum = vfmaq_f32(*sum, *sum, vdupq_n_f32(0.0));
        }
    }
}

/// Adds the sums of a run, in halves, to those in floats.
#[inline(always)]
unsafe fn widen<const M: usize, const N: usize>(sums: &mut [[float32x4_t; N]; M], run: &[[float16x8_t; N]; M]) {
    // SAFETY: the CPU has the instructions; only registers are used.
    unsafe {
        for m in 0..M {
            for n in 0..N / 2 {
                sums[m][2 * n] = vaddq_f32(sums[m][2 * n], vcvt_f32_f16(vget_low_f16(run[m][n])));
                sums[m][2 * n + 1] = vaddq_f32(sums[m][2 * n + 1], vcvt_high_f32_f16(run[m][n]));
            }
        }
    }
}
