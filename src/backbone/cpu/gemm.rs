//! Matrices packed once, the register-blocked micro-kernel that everything here is built on, and a plain product.
//!
//! A right-hand matrix is cut into *panels* of as many columns as the micro-kernel keeps in registers: 4 vectors where
//! there are 32 registers, 2 where there are 16. A panel's rows lie one after the other, so the kernel reads it from
//! front to back. Up to [`MAX_ROWS`] rows of the left-hand side meet it at a time.
//!
//! Where the instruction set multiplies halves ([`Simd::HALVES`]), a matrix packed in halves has panels twice as wide: as
//! many registers hold its sums.

use std::marker::PhantomData;
use std::ops::Range;

use half::f16;

use crate::simd::{Isa, Kernel, Simd};

use super::memory::{Aligned, LINE};

/// Rows of the largest micro-kernel: 6 × 4 accumulators + 4 + 1 of 32 registers, or 6 × 2 + 2 + 1 of 16.
pub(super) const MAX_ROWS: usize = 6;

/// Columns of a panel of numbers of type `T`.
pub(crate) fn panel_width<T: Number>(isa: Isa) -> usize {
    let vectors = if isa.registers() >= 32 { 4 } else { 2 };
    isa.lanes() * if isa.multiplies_halves() && T::HALF { 2 * vectors } else { vectors }
}

/// How the numbers of a packed matrix are stored; they are widened in registers.
pub(crate) trait Number: bytemuck::Pod + Default {
    /// Whether they are halves, which some instruction sets multiply as such.
    const HALF: bool = false;

    /// Reads a vector.
    ///
    /// # Safety
    /// The CPU must have `S`, and `p` hold a vector of numbers.
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
}

impl Number for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::V {
        // SAFETY: as the caller promised.
        unsafe { S::load(p) }
    }
}

impl Number for f16 {
    const HALF: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f16) -> S::V {
        // SAFETY: as the caller promised.
        unsafe { S::load_f16(p) }
    }
}

impl Number for i16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const i16) -> S::V {
        // SAFETY: as the caller promised.
        unsafe { S::load_i16(p) }
    }
}

/// A matrix of `rows` × `columns`, packed into panels for one instruction set; missing columns of the last panel are
/// zero.
#[derive(Clone, Debug)]
pub(crate) struct PackedMatrix<T = f32> {
    isa: Isa,
    rows: usize,
    columns: usize,
    panel: usize,
    values: Aligned,
    numbers: PhantomData<T>,
}

impl<T: Number> PackedMatrix<T> {
    /// Packs the matrix whose element in row `k` and column `n` is `value(k, n)`.
    pub(crate) fn new(isa: Isa, rows: usize, columns: usize, value: impl Fn(usize, usize) -> T) -> Self {
        let panel = panel_width::<T>(isa);
        let count = rows * columns.next_multiple_of(panel);
        let mut values = Aligned::zeros((count * size_of::<T>()).div_ceil(size_of::<f32>()));
        if rows > 0 {
            let numbers: &mut [T] = &mut bytemuck::cast_slice_mut(values.as_mut_slice())[..count];
            for (p, out) in numbers.chunks_exact_mut(rows * panel).enumerate() {
                for (k, row) in out.chunks_exact_mut(panel).enumerate() {
                    for (n, x) in (p * panel..columns).zip(row) {
                        *x = value(k, n);
                    }
                }
            }
        }
        Self { isa, rows, columns, panel, values, numbers: PhantomData }
    }

    /// Columns rounded up to whole panels: what [`gemm`] writes of each row.
    pub(crate) fn padded_columns(&self) -> usize {
        self.columns.next_multiple_of(self.panel)
    }

    /// Bytes of all panels.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.values.as_slice())
    }

    /// Columns of a panel.
    pub(super) fn panel(&self) -> usize {
        self.panel
    }

    /// How many panels there are.
    pub(super) fn panels(&self) -> usize {
        self.columns.div_ceil(self.panel)
    }

    /// The start of panel `index`.
    #[inline(always)]
    pub(super) fn panel_ptr(&self, index: usize) -> *const T {
        bytemuck::cast_slice::<f32, T>(self.values.as_slice())[index * self.rows * self.panel..].as_ptr()
    }
}

/// `c[i][n] = Σ_k a[i][k] · b[k][n]` for `rows` rows: those of `a` start `lda` floats apart, those of `c` `ldc`.
///
/// Whole panels are written: [`PackedMatrix::padded_columns`] values of each row of `c`, those beyond the matrix's
/// columns zero. `isa` must be the one that `b` was packed for.
///
/// # Panics
/// If `a` or `c` is too short, or `b` was packed for another instruction set.
pub(crate) fn gemm(isa: Isa, a: &[f32], lda: usize, rows: usize, b: &PackedMatrix, c: &mut [f32], ldc: usize) {
    if rows == 0 {
        return;
    }
    assert_eq!(isa, b.isa, "the matrix was packed for another instruction set");
    assert!(b.rows <= lda && (rows - 1) * lda + b.rows <= a.len(), "the left-hand matrix is too short");
    let width = b.padded_columns();
    assert!(width <= ldc && (rows - 1) * ldc + width <= c.len(), "the result is too short");
    isa.run(Gemm { a: a.as_ptr(), lda, rows, b, c: c.as_mut_ptr(), ldc });
}

struct Gemm<'a> {
    a: *const f32,
    lda: usize,
    rows: usize,
    b: &'a PackedMatrix,
    c: *mut f32,
    ldc: usize,
}

/// Rows whose strip of `a` stays in the first cache levels while all panels pass over it.
const STRIP: usize = 96;

impl Kernel for Gemm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { a, lda, rows, b, c, ldc } = self;
        for start in (0..rows).step_by(STRIP) {
            for panel in 0..b.panels() {
                // SAFETY: `gemm` has checked the lengths of `a` and `c`, and every panel is `rows` × `panel` floats.
                unsafe {
                    let (c, scale) = (c.add(panel * b.panel), None);
                    let (depth, b) = (b.rows, b.panel_ptr(panel));
                    let strip = GemmRows { a, lda, depth, b, scale, c, ldc, fetch_next: None };
                    in_row_groups::<S, _>(&strip, start..rows.min(start + STRIP));
                }
            }
        }
    }
}

/// One panel's product, the simplest [`RowKernel`].
pub(super) struct GemmRows<T> {
    /// Row `i` of the left-hand side starts at `a + i·lda`.
    pub(super) a: *const f32,
    pub(super) lda: usize,
    /// Length of the inner products.
    pub(super) depth: usize,
    /// The panel.
    pub(super) b: *const T,
    /// What each of the panel's columns is multiplied by in the end.
    pub(super) scale: Option<*const f32>,
    /// Row `i` of the result starts at `c + i·ldc`.
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    /// How many rows there are in all, if the panel behind this one is to be fetched meanwhile: each row its share.
    pub(super) fetch_next: Option<usize>,
}

/// Bytes of a cache line.
const LINE_BYTES: usize = LINE * size_of::<f32>();
/// Steps of an inner product between two fetches for the next panel: few enough that these don't come in bursts.
const FETCH_EVERY: usize = 4;

impl<T: Number> GemmRows<T> {
    /// [`accumulate`] for M of `count` rows from `first` on, fetching their share of the next panel.
    ///
    /// # Safety
    /// As for [`accumulate`].
    #[inline(always)]
    unsafe fn accumulate_and_fetch<S: Simd, const M: usize, const N: usize>(
        &self,
        sums: &mut [[S::V; N]; M],
        a: &[*const f32; M],
        first: usize,
        count: usize,
    ) {
        let row = N * S::LANES;
        let lines = self.depth * row * size_of::<T>() / LINE_BYTES;
        let next = self.b.wrapping_add(self.depth * row).cast::<u8>();
        let (mut line, end) = (lines * first / count, lines * (first + M) / count);
        let each = (end - line).div_ceil(self.depth.div_ceil(FETCH_EVERY));
        for k in (0..self.depth).step_by(FETCH_EVERY) {
            let length = FETCH_EVERY.min(self.depth - k);
            // SAFETY: as the caller promised; a prefetch may name any address.
            unsafe {
                for _ in 0..each {
                    S::prefetch_far(next.wrapping_add(line * LINE_BYTES));
                    line += 1;
                }
                let from: [*const f32; M] = std::array::from_fn(|m| a[m].wrapping_add(k));
                accumulate_steps::<S, T, M, N>(sums, &from, 1, length, self.b.wrapping_add(k * row), row);
            }
        }
    }
}

impl<T: Number> RowKernel for GemmRows<T> {
    type Number = T;

    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize, const N: usize>(&self, first: usize) {
        // SAFETY: whoever made this vouches for the matrices.
        unsafe {
            let a: [*const f32; M] = std::array::from_fn(|m| self.a.wrapping_add((first + m) * self.lda));
            let mut sums = [[S::splat(0.0); N]; M];
            match self.fetch_next {
                Some(count) if !(S::HALVES && T::HALF) => {
                    self.accumulate_and_fetch::<S, M, N>(&mut sums, &a, first, count);
                }
                _ => accumulate::<S, T, M, N>(&mut sums, &a, &[0], self.depth, self.b),
            }
            if let Some(scale) = self.scale {
                let scale: [S::V; N] = std::array::from_fn(|n| S::load(scale.add(n * S::LANES)));
                for row in &mut sums {
                    *row = std::array::from_fn(|n| S::mul(row[n], scale[n]));
                }
            }
            for (m, row) in sums.iter().enumerate() {
                let c = self.c.add((first + m) * self.ldc);
                for (n, &sum) in row.iter().enumerate() {
                    S::store(c.add(n * S::LANES), sum);
                }
            }
        }
    }
}

/// What is done with a group of M rows and a panel of N vectors.
pub(crate) trait RowKernel {
    /// The numbers of its panel.
    type Number: Number;

    /// Does rows `first` to `first + M − 1`.
    ///
    /// # Safety
    /// The CPU must have `S`, N be its panel's vectors, and the rows exist.
    unsafe fn rows<S: Simd, const M: usize, const N: usize>(&self, first: usize);
}

/// Runs `kernel` over `rows` in groups of at most [`MAX_ROWS`], of sizes as even as can be.
///
/// # Safety
/// The CPU must have `S`, and `rows` be rows of the kernel.
#[inline(always)]
pub(crate) unsafe fn in_row_groups<S: Simd, K: RowKernel>(kernel: &K, rows: Range<usize>) {
    // SAFETY: as the caller promised; the number of vectors is the one that `panel_width` has packed.
    unsafe {
        if S::HALVES && K::Number::HALF {
            in_groups::<S, K, 8>(kernel, rows);
        } else if S::REGISTERS >= 32 {
            in_groups::<S, K, 4>(kernel, rows);
        } else {
            in_groups::<S, K, 2>(kernel, rows);
        }
    }
}

#[inline(always)]
unsafe fn in_groups<S: Simd, K: RowKernel, const N: usize>(kernel: &K, rows: Range<usize>) {
    let mut first = rows.start;
    for groups_left in (1..=rows.len().div_ceil(MAX_ROWS)).rev() {
        let size = (rows.end - first).div_ceil(groups_left);
        // SAFETY: as the caller of `in_row_groups` promised.
        unsafe {
            match size {
                1 => kernel.rows::<S, 1, N>(first),
                2 => kernel.rows::<S, 2, N>(first),
                3 => kernel.rows::<S, 3, N>(first),
                4 => kernel.rows::<S, 4, N>(first),
                5 => kernel.rows::<S, 5, N>(first),
                _ => kernel.rows::<S, MAX_ROWS, N>(first),
            }
        }
        first += size;
    }
}

/// The micro-kernel: `sums[m][n] += Σ_segments Σ_k a[m][segment + k] · b[…][n]`, all M × N sums in registers; `b` moves
/// on by one panel row with each k.
///
/// # Safety
/// The CPU must have `S`; `a[m] + segment` must be readable for `length` floats, and `b` hold
/// `segments · length` rows of N vectors.
#[inline(always)]
pub(super) unsafe fn accumulate<S: Simd, T: Number, const M: usize, const N: usize>(
    sums: &mut [[S::V; N]; M],
    a: &[*const f32; M],
    segments: &[usize],
    length: usize,
    mut b: *const T,
) {
    // SAFETY: as the caller promised; with `length` a multiple of 8, a type that says it is `HALF` is f16.
    unsafe {
        if S::HALVES && T::HALF && length.is_multiple_of(8) {
            return S::multiply_halves::<M, N>(sums, a, segments, length, b.cast());
        }
        for &segment in segments {
            let from: [*const f32; M] = std::array::from_fn(|m| a[m].wrapping_add(segment));
            accumulate_steps::<S, T, M, N>(sums, &from, 1, length, b, N * S::LANES);
            b = b.wrapping_add(length * N * S::LANES);
        }
    }
}

/// The micro-kernel's inner loop: `sums[m][n] += Σ_k a[m][k · a_step] · b[k · b_step + …][n]` over `length` k.
///
/// # Safety
/// The CPU must have `S`; `a` and `b` must be readable where they are read.
#[inline(always)]
pub(crate) unsafe fn accumulate_steps<S: Simd, T: Number, const M: usize, const N: usize>(
    sums: &mut [[S::V; N]; M],
    a: &[*const f32; M],
    a_step: usize,
    length: usize,
    mut b: *const T,
    b_step: usize,
) {
    for k in 0..length {
        // SAFETY: as the caller promised.
        unsafe {
            let row: [S::V; N] = std::array::from_fn(|n| T::load::<S>(b.wrapping_add(n * S::LANES)));
            for m in 0..M {
                let x = S::splat(*a[m].wrapping_add(k * a_step));
                for n in 0..N {
                    sums[m][n] = S::fma(x, row[n], sums[m][n]);
                }
            }
            b = b.wrapping_add(b_step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_f64_for_every_shape_of_remainder() {
        for isa in Isa::available() {
            for (rows, depth, columns) in [(1, 1, 1), (5, 7, 3), (6, 64, 64), (13, 9, 100), (199, 33, 17), (3, 0, 5)] {
                let (lda, a_at) = (depth + 2, |i: usize, k: usize| ((i * 31 + k * 17) % 23) as f32 / 7.0 - 1.4);
                let b_at = |k: usize, n: usize| ((k * 13 + n * 7) % 19) as f32 / 5.0 - 1.7;
                let a: Vec<f32> = (0..rows * lda).map(|i| a_at(i / lda, i % lda)).collect();
                let packed = PackedMatrix::new(isa, depth, columns, b_at);
                let (width, ldc) = (packed.padded_columns(), packed.padded_columns() + 3);
                let mut c = vec![f32::NAN; rows * ldc];
                gemm(isa, &a, lda, rows, &packed, &mut c, ldc);
                for (i, row) in c.chunks_exact(ldc).enumerate() {
                    for (n, &got) in row[..width].iter().enumerate() {
                        let term = |k| f64::from(a_at(i, k)) * f64::from(b_at(k, n));
                        let want: f64 = if n < columns { (0..depth).map(term).sum() } else { 0.0 };
                        assert!((f64::from(got) - want).abs() < 1e-4, "{isa} {rows}×{depth}×{columns} [{i}][{n}]");
                    }
                    assert!(row[width..].iter().all(|x| x.is_nan()), "only whole panels are written");
                }
            }
        }
    }

    struct HalfProduct<'a> {
        a: &'a [f32],
        depth: usize,
        rows: usize,
        b: &'a PackedMatrix<f16>,
        c: &'a mut [f32],
    }

    impl Kernel for HalfProduct<'_> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Self { a, depth, rows, b, c } = self;
            for panel in 0..b.panels() {
                // SAFETY: `a` is rows × depth, `c` rows × the padded columns.
                unsafe {
                    let c = c.as_mut_ptr().add(panel * b.panel());
                    let (lda, ldc) = (depth, b.padded_columns());
                    let kernel = GemmRows {
                        a: a.as_ptr(),
                        lda,
                        depth,
                        b: b.panel_ptr(panel),
                        scale: None,
                        c,
                        ldc,
                        fetch_next: None,
                    };
                    in_row_groups::<S, _>(&kernel, 0..rows);
                }
            }
        }
    }

    fn half_product(isa: Isa, a: &[f32], depth: usize, b: &PackedMatrix<f16>) -> Vec<f32> {
        let rows = a.len() / depth;
        let mut c = vec![f32::NAN; rows * b.padded_columns()];
        isa.run(HalfProduct { a, depth, rows, b, c: &mut c });
        c
    }

    /// Where halves are multiplied as such, a term is off by 2⁻¹¹ when its left side is rounded, and each partial sum of
    /// a run by as much again.
    #[test]
    fn products_with_halves_are_those_of_f64_for_every_shape_of_remainder() {
        for isa in Isa::available() {
            for (rows, depth, columns) in [(1, 8, 1), (5, 56, 3), (6, 64, 64), (13, 72, 100), (7, 33, 17), (2, 512, 32)]
            {
                let a: Vec<f32> = (0..rows * depth).map(|i| ((i * 31) % 23) as f32 / 7.0 - 1.4).collect();
                let b_at = |k: usize, n: usize| f16::from_f32(((k * 13 + n * 7) % 19) as f32 / 5.0 - 1.7);
                let packed = PackedMatrix::new(isa, depth, columns, b_at);
                let c = half_product(isa, &a, depth, &packed);
                for (i, row) in c.chunks_exact(packed.padded_columns()).enumerate() {
                    for (n, &got) in row.iter().enumerate() {
                        let term = |k: usize| f64::from(a[i * depth + k]) * b_at(k, n).to_f64();
                        let want: f64 = if n < columns { (0..depth).map(term).sum() } else { 0.0 };
                        let all: f64 = if n < columns { (0..depth).map(|k| term(k).abs()).sum() } else { 0.0 };
                        let tolerance = if isa.multiplies_halves() { 2e-3 * all } else { 1e-6 * all };
                        let error = (f64::from(got) - want).abs();
                        assert!(error <= tolerance, "{isa} {rows}×{depth}×{columns} [{i}][{n}]: {got} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_sum_of_halves_that_overflows_is_not_a_number() {
        for isa in Isa::available() {
            // 32 · 60 · 60 is beyond 65504 and, the other way round, would be a clean zero after a ReLU.
            let packed =
                PackedMatrix::new(isa, 64, 3, |k, n| f16::from_f32(if n == 1 && k < 32 { -60.0 } else { 1.0 }));
            let c = half_product(isa, &[60.0; 64], 64, &packed);
            assert_eq!((c[0], c[2]), (64.0 * 60.0, 64.0 * 60.0), "{isa}");
            if isa.multiplies_halves() {
                assert!(c[1].is_nan(), "{isa}: {}", c[1]);
            } else {
                assert_eq!(c[1], 32.0 * 60.0 - 32.0 * 3600.0, "{isa}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "the result is too short")]
    fn a_short_result_is_refused() {
        let packed = PackedMatrix::new(Isa::Scalar, 2, 2, |_, _| 1.0);
        gemm(Isa::Scalar, &[1.0; 4], 2, 2, &packed, &mut [0.0; 3], 2);
    }
}
