//! Reconstruction of whole images from the largest singular vectors of good cells' images.

use super::Reconstruction;
use super::gemm::{Matrix, MatrixMut, multiply};
use super::graph::Cost;
use crate::sampling;

/// Singular vectors kept at most.
pub const RANK: usize = 32;

/// Subspace iterations: singular values of images fall fast.
const ITERATIONS: usize = 8;

/// The cost of one image of `side`: the mean and the directions; a product to the shares and one back.
#[must_use]
pub fn cost(side: usize) -> Cost {
    let (d, rank) = ((side * side) as u64, RANK as u64);
    Cost { parameters: d * (rank + 1), multiply_adds: 2 * d * rank }
}

/// The mean of good images and the directions in which they vary most.
#[derive(Clone, Debug)]
pub struct Svd {
    mean: Vec<f32>,
    /// Orthonormal directions, one a row.
    directions: Vec<f32>,
    rank: usize,
}

impl Svd {
    /// The largest [`RANK`] right singular vectors of the centred images, by subspace iteration from a seeded start.
    ///
    /// # Panics
    /// If an image has not `side`² numbers, or there are none.
    #[must_use]
    pub fn fit(images: &[&[f32]], side: usize, seed: u64) -> Self {
        let (n, d) = (images.len(), side * side);
        assert!(n > 0 && images.iter().all(|image| image.len() == d), "images of {side}×{side}");
        let rank = RANK.min(n - 1).min(d);
        let mut mean = vec![0.0f32; d];
        images.iter().for_each(|image| mean.iter_mut().zip(*image).for_each(|(m, x)| *m += x / n as f32));
        let centred: Vec<f32> = images.iter().flat_map(|image| image.iter().zip(&mean).map(|(x, m)| x - m)).collect();
        let centred = Matrix::new(&centred, n, d);
        let mut rng = sampling::generator(seed);
        let mut directions: Vec<f32> = (0..rank * d).map(|_| sampling::below(&mut rng, 2001) as f32 - 1000.0).collect();
        orthonormalise(&mut directions, d);
        let mut shares = vec![0.0; n * rank];
        for _ in 0..ITERATIONS {
            multiply(centred, Matrix::new(&directions, rank, d).t(), &mut MatrixMut::new(&mut shares, n, rank), false);
            multiply(Matrix::new(&shares, n, rank).t(), centred, &mut MatrixMut::new(&mut directions, rank, d), false);
            orthonormalise(&mut directions, d);
        }
        Self { mean, directions, rank }
    }

    /// The directions, one a row of side² numbers.
    #[must_use]
    pub fn directions(&self) -> &[f32] {
        &self.directions
    }
}

impl Reconstruction for Svd {
    fn residuals(&mut self, images: &[&[f32]]) -> Vec<Vec<f32>> {
        let (n, d, rank) = (images.len(), self.mean.len(), self.rank);
        let mut left: Vec<f32> =
            images.iter().flat_map(|image| image.iter().zip(&self.mean).map(|(x, m)| x - m)).collect();
        let directions = Matrix::new(&self.directions, rank, d);
        let mut shares = vec![0.0; n * rank];
        multiply(Matrix::new(&left, n, d), directions.t(), &mut MatrixMut::new(&mut shares, n, rank), false);
        shares.iter_mut().for_each(|share| *share = -*share);
        multiply(Matrix::new(&shares, n, rank), directions, &mut MatrixMut::new(&mut left, n, d), true);
        left.chunks_exact(d).map(|left| left.iter().map(|x| x.abs()).collect()).collect()
    }
}

/// Gram–Schmidt, twice over, of the rows of `d` numbers; a row that depends on those before it becomes zero.
fn orthonormalise(rows: &mut [f32], d: usize) {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    for index in 0..rows.len() / d {
        let (before, rest) = rows.split_at_mut(index * d);
        let row = &mut rest[..d];
        let length = dot(row, row).sqrt();
        for _ in 0..2 {
            for other in before.chunks_exact(d) {
                let share = dot(row, other) as f32;
                row.iter_mut().zip(other).for_each(|(x, o)| *x -= share * o);
            }
        }
        let left = dot(row, row).sqrt();
        let scale = if left > 1e-6 * length && left > 0.0 { (1.0 / left) as f32 } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_the_subspace_leave_nothing_and_others_do() {
        let side = 16;
        let basis = |k: usize| -> Vec<f32> { (0..256).map(|i| ((i * (k + 1)) as f32 * 0.07).sin()).collect() };
        let (a, b) = (basis(1), basis(4));
        let images: Vec<Vec<f32>> = (0..20)
            .map(|i| {
                let (p, q) = ((i as f32 * 0.9).cos(), (i as f32 * 1.7).sin());
                a.iter().zip(&b).map(|(a, b)| 0.5 + p * a + q * b).collect()
            })
            .collect();
        let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
        let mut svd = Svd::fit(&images[..18], side, 3);
        let left = svd.residuals(&images[18..]);
        assert!(left.iter().flatten().all(|x| *x < 1e-3), "{:?}", left.iter().flatten().fold(0.0f32, |m, x| m.max(*x)));
        let mut spot = images[18].to_vec();
        spot[100] += 3.0;
        assert!(svd.residuals(&[&spot])[0][100] > 2.0);
        let (first, second) = (&svd.directions()[..256], &svd.directions()[256..512]);
        let dot: f32 = first.iter().zip(second).map(|(a, b)| a * b).sum();
        assert!(dot.abs() < 1e-5, "{dot}");
    }
}
