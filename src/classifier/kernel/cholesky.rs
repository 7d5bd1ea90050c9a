//! Symmetric positive definite equations: (K + diag(ridge))·x = b.

use crate::simd::Isa;

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
}

impl<'a> Solver<'a> {
    pub(super) fn new(matrix: &'a Matrix, _isa: Isa) -> Self {
        Self { matrix }
    }

    /// The solution for each right-hand side; none if the matrix with the ridge is not positive definite.
    pub(super) fn solve(&mut self, ridge: &[f64], sides: &[Vec<f64>]) -> Option<Vec<Vec<f64>>> {
        exactly(self.matrix, ridge, sides)
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

/// In eight chains, which a compiler can put into vectors.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0.0f64; 8];
    for (a, b) in a.zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + rest
}
