//! Symmetric positive definite equations: (K + diag(ridge))·x = b.
//!
//! The factors are made in single precision, where the arithmetic goes; what they leave of the right-hand side, taken in
//! double precision, is solved for again until nothing is left. The ridge keeps the equations so well conditioned that
//! this takes a step or two. Where it does not, the factors are made in double precision.

use crate::simd::{Isa, Kernel, Simd};

/// Columns that are eliminated at a time; matrices are padded to a multiple of it.
const PANEL: usize = 64;

/// Share of the right-hand side that may be left.
const LEFT: f64 = 1e-8;

/// Steps of refinement at most.
const STEPS: usize = 12;

/// A symmetric matrix, of which the lower triangle is kept.
pub(super) struct Matrix {
    n: usize,
    values: Vec<f32>,
}

impl Matrix {
    /// n × n zeros.
    pub(super) fn new(n: usize) -> Self {
        Self { n, values: vec![0.0; n * n] }
    }

    /// Row `i`, up to the diagonal: i + 1 numbers.
    pub(super) fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.values[i * self.n..][..i + 1]
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.n..][..i + 1]
    }
}

/// Solves equations with one matrix and several ridges.
pub(super) struct Solver<'a> {
    matrix: &'a Matrix,
    isa: Isa,
    /// n rounded up to a multiple of [`PANEL`].
    padded: usize,
    /// The factor, padded × padded; its upper triangle says nothing.
    factor: Vec<f32>,
    /// The panel at hand, its rows as columns: see [`Factorise`].
    panel: Vec<f32>,
}

impl<'a> Solver<'a> {
    pub(super) fn new(matrix: &'a Matrix, isa: Isa) -> Self {
        let padded = matrix.n.next_multiple_of(PANEL);
        Self { matrix, isa, padded, factor: vec![0.0; padded * padded], panel: vec![0.0; padded * PANEL] }
    }

    /// The solution for each right-hand side; none if the matrix with the ridge is not positive definite.
    pub(super) fn solve(&mut self, ridge: &[f64], sides: &[Vec<f64>]) -> Option<Vec<Vec<f64>>> {
        self.refined(ridge, sides).or_else(|| exactly(self.matrix, ridge, sides))
    }

    /// With factors in single precision; none if that does not do.
    fn refined(&mut self, ridge: &[f64], sides: &[Vec<f64>]) -> Option<Vec<Vec<f64>>> {
        let n = self.matrix.n;
        for (i, row) in self.factor.chunks_exact_mut(self.padded).enumerate() {
            if i < n {
                row[..=i].copy_from_slice(self.matrix.row(i));
                row[i] += ridge[i] as f32;
            } else {
                // Rows of the identity: they change nothing.
                row[..i].fill(0.0);
                row[i] = 1.0;
            }
        }
        let kernel = Factorise { a: &mut self.factor, n: self.padded, panel: &mut self.panel };
        if !self.isa.run(kernel) {
            return None;
        }
        sides.iter().map(|side| self.refine(ridge, side)).collect()
    }

    fn refine(&self, ridge: &[f64], side: &[f64]) -> Option<Vec<f64>> {
        let largest = |x: &[f64]| x.iter().fold(0.0f64, |most, x| if x.abs() <= most { most } else { x.abs() });
        let goal = LEFT * largest(side);
        let (mut x, mut rest) = (vec![0.0f64; side.len()], side.to_vec());
        let mut step = vec![0.0f32; self.padded];
        for _ in 0..STEPS {
            step.iter_mut().zip(&rest).for_each(|(step, &r)| *step = r as f32);
            step[side.len()..].fill(0.0);
            self.isa.run(Substitute { l: &self.factor, x: &mut step });
            x.iter_mut().zip(&step).for_each(|(x, &step)| *x += f64::from(step));
            self.isa.run(Residual { matrix: self.matrix, ridge, side, x: &x, out: &mut rest });
            let left = largest(&rest);
            if left <= goal {
                return Some(x);
            }
            if !left.is_finite() {
                return None;
            }
        }
        None
    }
}

/// A = L·Lᵀ in place, from left to right, a panel of [`PANEL`] columns at a time; false if A is not positive definite.
struct Factorise<'a> {
    a: &'a mut [f32],
    /// A multiple of [`PANEL`].
    n: usize,
    /// Room for n × [`PANEL`].
    panel: &'a mut [f32],
}

impl Kernel for Factorise<'_> {
    type Output = bool;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> bool {
        // SAFETY: the caller has checked the CPU.
        unsafe {
            // As many sums as the registers hold, with what they are made of.
            match S::LANES {
                1 => self.tiles::<S, 4, 4>(),
                4 => self.tiles::<S, 4, 4>(),
                16 => self.tiles::<S, 8, 2>(),
                _ => self.tiles::<S, 4, 2>(),
            }
        }
    }
}

impl Factorise<'_> {
    /// With tiles of M rows and N vectors of columns.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const M: usize, const N: usize>(self) -> bool {
        let (a, n, panel) = (self.a, self.n, self.panel);
        let width = N * S::LANES;
        debug_assert!(PANEL.is_multiple_of(width) && width.is_multiple_of(M) && n.is_multiple_of(PANEL));
        for first in (0..n).step_by(PANEL) {
            let Some(inverses) = diagonal(&mut a[first * n + first..], n) else { return false };
            // The rows below, as columns: groups of `width` rows, in which the numbers of one column are neighbours.
            let below = first + PANEL;
            for (group, packed) in panel.chunks_exact_mut(PANEL * width).enumerate().take((n - below) / width) {
                let rows = below + group * width;
                for (r, row) in a[rows * n..].chunks(n).enumerate().take(width) {
                    for (p, &x) in row[first..below].iter().enumerate() {
                        packed[p * width + r] = x;
                    }
                }
                // SAFETY: the caller has checked the CPU; the packed group holds PANEL times N vectors.
                unsafe { forward::<S, N>(&a[first * n + first..], n, &inverses, packed) };
                for (r, row) in a[rows * n..].chunks_mut(n).enumerate().take(width) {
                    for (p, x) in row[first..below].iter_mut().enumerate() {
                        *x = packed[p * width + r];
                    }
                }
            }
            for column in (below..n).step_by(width) {
                let b = panel[(column - below) * PANEL..].as_ptr();
                for row in (column..n).step_by(M) {
                    let group = (row - below) / width;
                    let at = group * PANEL * width + (row - below) % width;
                    // SAFETY: the caller has checked the CPU. M divides the width of a group, so that the M rows lie in
                    // one; rows and columns are below n, a multiple of the tile's sides.
                    unsafe {
                        subtract::<S, M, N>(a[row * n + column..].as_mut_ptr(), n, panel[at..].as_ptr(), b);
                    }
                }
            }
        }
        true
    }
}

/// Factorises the block of [`PANEL`] columns at the start of `a`, whose rows are n floats apart; gives the inverses of
/// its diagonal.
#[inline(always)]
fn diagonal(a: &mut [f32], n: usize) -> Option<[f32; PANEL]> {
    let mut inverses = [0.0; PANEL];
    let mut block = [[0.0f32; PANEL]; PANEL];
    for (i, row) in block.iter_mut().enumerate() {
        row[..=i].copy_from_slice(&a[i * n..][..=i]);
    }
    for j in 0..PANEL {
        let pivot = block[j][j];
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        let inverse = 1.0 / pivot.sqrt();
        inverses[j] = inverse;
        let mut column = [0.0f32; PANEL];
        for i in j..PANEL {
            block[i][j] *= inverse;
            column[i] = block[i][j];
        }
        for i in j + 1..PANEL {
            let factor = column[i];
            // To the end of the row: what lies above the diagonal is not read.
            for (x, c) in block[i].iter_mut().zip(&column).skip(j + 1) {
                *x -= factor * c;
            }
        }
    }
    for (i, row) in block.iter().enumerate() {
        a[i * n..][..=i].copy_from_slice(&row[..=i]);
    }
    Some(inverses)
}

/// L·y = b for N vectors of right-hand sides b, in place: [`PANEL`] rows of `packed`.
///
/// # Safety
/// The CPU must have `S`; `l` is a factorised block with rows n floats apart, `packed` holds PANEL · N · LANES floats.
#[inline(always)]
unsafe fn forward<S: Simd, const N: usize>(l: &[f32], n: usize, inverses: &[f32; PANEL], packed: &mut [f32]) {
    let width = N * S::LANES;
    debug_assert!(packed.len() == PANEL * width);
    let p = packed.as_mut_ptr();
    for i in 0..PANEL {
        let row = &l[i * n..][..i];
        // SAFETY: as the caller promised.
        unsafe {
            let mut sums = [S::splat(0.0); N];
            for (j, &factor) in row.iter().enumerate() {
                let factor = S::splat(factor);
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(factor, S::load(p.add(j * width + v * S::LANES)), *sum);
                }
            }
            for (v, &sum) in sums.iter().enumerate() {
                let at = p.add(i * width + v * S::LANES);
                S::store(at, S::mul(S::sub(S::load(at), sum), S::splat(inverses[i])));
            }
        }
    }
}

/// C −= A·B, where C is M rows of N vectors, n floats apart.
///
/// # Safety
/// The CPU must have `S`; `a` and `b` are [`PANEL`] rows, N · LANES floats apart, of M floats and N vectors.
#[inline(always)]
unsafe fn subtract<S: Simd, const M: usize, const N: usize>(c: *mut f32, n: usize, a: *const f32, b: *const f32) {
    let width = N * S::LANES;
    // SAFETY: as the caller promised.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; M];
        for p in 0..PANEL {
            let mut y = [S::splat(0.0); N];
            for (v, y) in y.iter_mut().enumerate() {
                *y = S::load(b.add(p * width + v * S::LANES));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let x = S::splat(*a.add(p * width + m));
                for (sum, &y) in sums.iter_mut().zip(&y) {
                    *sum = S::fma(x, y, *sum);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let at = c.add(m * n + v * S::LANES);
                S::store(at, S::sub(S::load(at), sum));
            }
        }
    }
}

/// L·Lᵀ·x = b, in place.
struct Substitute<'a> {
    l: &'a [f32],
    x: &'a mut [f32],
}

impl Kernel for Substitute<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (l, x) = (self.l, self.x);
        let n = x.len();
        for i in 0..n {
            let row = &l[i * n..][..i + 1];
            let (solved, rest) = x.split_at_mut(i);
            rest[0] = (rest[0] - dot(&row[..i], solved)) / row[i];
        }
        for i in (0..n).rev() {
            let row = &l[i * n..][..i + 1];
            let (left, solved) = x.split_at_mut(i);
            solved[0] /= row[i];
            let factor = solved[0];
            left.iter_mut().zip(row).for_each(|(x, l)| *x -= factor * l);
        }
    }
}

/// out = side − (K + diag(ridge))·x.
struct Residual<'a> {
    matrix: &'a Matrix,
    ridge: &'a [f64],
    side: &'a [f64],
    x: &'a [f64],
    out: &'a mut [f64],
}

impl Kernel for Residual<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        self.out.copy_from_slice(self.side);
        for i in 0..self.matrix.n {
            let (left, diagonal) = self.matrix.row(i).split_at(i);
            let (above, out) = self.out.split_at_mut(i);
            let x = self.x[i];
            out[0] -= dot(left, &self.x[..i]) + (f64::from(diagonal[0]) + self.ridge[i]) * x;
            above.iter_mut().zip(left).for_each(|(out, &k)| *out -= x * f64::from(k));
        }
    }
}

/// In double precision, row by row.
fn exactly(matrix: &Matrix, ridge: &[f64], sides: &[Vec<f64>]) -> Option<Vec<Vec<f64>>> {
    let n = matrix.n;
    let mut l = vec![0.0f64; n * n];
    for i in 0..n {
        let (above, row) = l.split_at_mut(i * n);
        for (j, &k) in matrix.row(i).iter().enumerate() {
            let k = f64::from(k);
            if j == i {
                let pivot = k + ridge[i] - dot(&row[..i], &row[..i]);
                row[i] = if pivot > 0.0 && pivot.is_finite() { pivot.sqrt() } else { return None };
            } else {
                let other = &above[j * n..][..j + 1];
                row[j] = (k - dot(&row[..j], &other[..j])) / other[j];
            }
        }
    }
    let solve = |side: &Vec<f64>| {
        let mut x = side.clone();
        for i in 0..n {
            let row = &l[i * n..][..i + 1];
            x[i] = (x[i] - dot(&row[..i], &x[..i])) / row[i];
        }
        for i in (0..n).rev() {
            let row = &l[i * n..][..i + 1];
            x[i] /= row[i];
            let factor = x[i];
            x[..i].iter_mut().zip(row).for_each(|(x, l)| *x -= factor * l);
        }
        x
    };
    Some(sides.iter().map(solve).collect())
}

/// Σ a·b in the precision of b, in sixteen chains, which a compiler can put into vectors.
#[inline(always)]
fn dot<A, B>(a: &[A], b: &[B]) -> B
where
    A: Copy + Into<B>,
    B: Copy + Default + std::ops::AddAssign + std::ops::Mul<Output = B> + std::iter::Sum,
{
    const CHAINS: usize = 16;
    let (a, b) = (a.chunks_exact(CHAINS), b.chunks_exact(CHAINS));
    let rest: B = a.remainder().iter().zip(b.remainder()).map(|(&a, &b)| a.into() * b).sum();
    let mut sums = [B::default(); CHAINS];
    for (a, b) in a.zip(b) {
        for chain in 0..CHAINS {
            sums[chain] += a[chain].into() * b[chain];
        }
    }
    let mut sum = rest;
    sums.into_iter().for_each(|x| sum += x);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exponentials of distances on a line: positive definite, and close to singular for near points.
    fn equations(n: usize, spread: f64) -> (Matrix, Vec<f64>, Vec<Vec<f64>>) {
        let mut matrix = Matrix::new(n);
        for i in 0..n {
            for (j, x) in matrix.row_mut(i).iter_mut().enumerate() {
                *x = (-((i - j) as f64 * spread).powi(2)).exp() as f32;
            }
        }
        let ridge = (0..n).map(|i| 0.05 * (1.0 + (i % 3) as f64)).collect();
        (matrix, ridge, vec![(0..n).map(|i| (i as f64).sin()).collect(), vec![0.0; n]])
    }

    fn left(matrix: &Matrix, ridge: &[f64], side: &[f64], x: &[f64]) -> f64 {
        let mut rest = vec![0.0; x.len()];
        Isa::Scalar.run(Residual { matrix, ridge, side, x, out: &mut rest });
        rest.iter().fold(0.0, |most, r| most.max(r.abs()))
    }

    #[test]
    fn the_fast_way_solves_what_the_exact_way_solves() {
        for n in [1, 2, 63, 64, 65, 200, 300] {
            let (matrix, ridge, sides) = equations(n, 0.3);
            let exact = exactly(&matrix, &ridge, &sides).unwrap();
            for isa in Isa::available() {
                let mut solver = Solver::new(&matrix, isa);
                let fast = solver.refined(&ridge, &sides).expect("well conditioned");
                assert_eq!(fast[1], vec![0.0; n]);
                for (fast, exact) in fast[0].iter().zip(&exact[0]) {
                    assert!((fast - exact).abs() < 1e-5, "{isa}, n = {n}: {fast} for {exact}");
                }
                assert!(left(&matrix, &ridge, &sides[0], &fast[0]) < 1e-7);
                // The solver's factors are its own: another ridge, then the same again.
                let other: Vec<f64> = ridge.iter().map(|r| 3.0 * r).collect();
                assert!(left(&matrix, &other, &sides[0], &solver.solve(&other, &sides).unwrap()[0]) < 1e-7);
                assert_eq!(solver.solve(&ridge, &sides).unwrap(), fast);
            }
        }
    }

    #[test]
    fn ill_conditioned_equations_take_the_exact_way_and_impossible_ones_none() {
        let (matrix, _, sides) = equations(150, 1e-3);
        let mut solver = Solver::new(&matrix, Isa::detect());
        let tiny = vec![1e-5; 150];
        assert!(solver.refined(&tiny, &sides).is_none());
        let solved = solver.solve(&tiny, &sides).unwrap();
        assert!(left(&matrix, &tiny, &sides[0], &solved[0]) < 1e-6);
        assert!(solver.solve(&vec![-0.5; 150], &sides).is_none());
        assert!(solver.solve(&vec![f64::NAN; 150], &sides).is_none());
    }
}
