//! AVX2 + FMA + F16C, and AVX-512.

use std::arch::x86_64::*;

use half::f16;

use super::{Kernel, Simd};

/// Runs a kernel compiled for AVX2, FMA and F16C.
///
/// # Safety
/// The CPU must have them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has checked the CPU.
    unsafe { kernel.run::<Avx2>() }
}

/// Runs a kernel compiled for AVX-512.
///
/// # Safety
/// The CPU must have AVX-512 F and VL beside AVX2, FMA and F16C.
#[target_feature(enable = "avx512f,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has checked the CPU.
    unsafe { kernel.run::<Avx512>() }
}

/// Eight lanes.
#[derive(Clone, Copy, Debug)]
pub struct Avx2;

/// Sixteen lanes.
#[derive(Clone, Copy, Debug)]
pub struct Avx512;

/// Eight zeros and eight times all bits: read from index `8 − lane`, a mask that keeps the lanes from `lane` on.
static KEEP: [u32; 16] = [0, 0, 0, 0, 0, 0, 0, 0, !0, !0, !0, !0, !0, !0, !0, !0];

// SAFETY (whole impl): the trait's contract says that the CPU has the instructions and that pointers hold LANES values.
#[allow(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    type V = __m256;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i16(p: *const i16) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_far<T>(p: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn keep_from(v: __m256, lane: usize) -> __m256 {
        debug_assert!(lane <= 8);
        unsafe { _mm256_and_ps(v, _mm256_loadu_ps(KEEP.as_ptr().add(8 - lane).cast())) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_step: usize, to: *mut f32, to_step: usize) {
        unsafe {
            // Within each half: 4 rows' columns side by side; then the halves.
            let mut quads = [_mm256_setzero_ps(); 8];
            for rows in [0, 4] {
                let row = |i: usize| _mm256_loadu_ps(from.add((rows + i) * from_step));
                let (low, low_next) = (_mm256_unpacklo_ps(row(0), row(1)), _mm256_unpacklo_ps(row(2), row(3)));
                let (high, high_next) = (_mm256_unpackhi_ps(row(0), row(1)), _mm256_unpackhi_ps(row(2), row(3)));
                quads[rows] = _mm256_shuffle_ps::<0x44>(low, low_next);
                quads[rows + 1] = _mm256_shuffle_ps::<0xee>(low, low_next);
                quads[rows + 2] = _mm256_shuffle_ps::<0x44>(high, high_next);
                quads[rows + 3] = _mm256_shuffle_ps::<0xee>(high, high_next);
            }
            for j in 0..4 {
                let (top, bottom) = (quads[j], quads[4 + j]);
                _mm256_storeu_ps(to.add(j * to_step), _mm256_permute2f128_ps::<0x20>(top, bottom));
                _mm256_storeu_ps(to.add((4 + j) * to_step), _mm256_permute2f128_ps::<0x31>(top, bottom));
            }
        }
    }
    #[inline(always)]
    unsafe fn sum(v: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

// SAFETY (whole impl): the trait's contract says that the CPU has the instructions and that pointers hold LANES values.
#[allow(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    type V = __m512;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i16(p: *const i16) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_far<T>(p: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn keep_from(v: __m512, lane: usize) -> __m512 {
        debug_assert!(lane <= 16);
        unsafe { _mm512_maskz_mov_ps((0xffff_u32 << lane) as u16, v) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_step: usize, to: *mut f32, to_step: usize) {
        unsafe {
            // Within each quarter: 4 rows' columns side by side; then the quarters.
            let mut quads = [_mm512_setzero_ps(); 16];
            for rows in [0, 4, 8, 12] {
                let row = |i: usize| _mm512_loadu_ps(from.add((rows + i) * from_step));
                let (low, low_next) = (_mm512_unpacklo_ps(row(0), row(1)), _mm512_unpacklo_ps(row(2), row(3)));
                let (high, high_next) = (_mm512_unpackhi_ps(row(0), row(1)), _mm512_unpackhi_ps(row(2), row(3)));
                quads[rows] = _mm512_shuffle_ps::<0x44>(low, low_next);
                quads[rows + 1] = _mm512_shuffle_ps::<0xee>(low, low_next);
                quads[rows + 2] = _mm512_shuffle_ps::<0x44>(high, high_next);
                quads[rows + 3] = _mm512_shuffle_ps::<0xee>(high, high_next);
            }
            for j in 0..4 {
                let even = _mm512_shuffle_f32x4::<0x88>(quads[j], quads[4 + j]);
                let odd = _mm512_shuffle_f32x4::<0xdd>(quads[j], quads[4 + j]);
                let even_next = _mm512_shuffle_f32x4::<0x88>(quads[8 + j], quads[12 + j]);
                let odd_next = _mm512_shuffle_f32x4::<0xdd>(quads[8 + j], quads[12 + j]);
                _mm512_storeu_ps(to.add(j * to_step), _mm512_shuffle_f32x4::<0x88>(even, even_next));
                _mm512_storeu_ps(to.add((4 + j) * to_step), _mm512_shuffle_f32x4::<0x88>(odd, odd_next));
                _mm512_storeu_ps(to.add((8 + j) * to_step), _mm512_shuffle_f32x4::<0xdd>(even, even_next));
                _mm512_storeu_ps(to.add((12 + j) * to_step), _mm512_shuffle_f32x4::<0xdd>(odd, odd_next));
            }
        }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(v) }
    }
}
