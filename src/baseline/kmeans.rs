//! Reconstruction of an image patch by patch from the nearest of the typical patches of good cells (Lloyd 1982).

use super::Reconstruction;
use super::gemm::{Matrix, MatrixMut, multiply};
use super::graph::Cost;
use crate::sampling;

/// Side of a patch, in pixels.
pub const PATCH: usize = 8;

/// Typical patches.
pub const CENTRES: usize = 64;

/// Numbers of a patch.
const SIZE: usize = PATCH * PATCH;

/// Rounds of assignment and mean.
const ROUNDS: usize = 20;

/// Patches whose distances are worked out at a time.
const AT_ONCE: usize = 1024;

/// The cost of one image of `side`: the centres; each patch times each of them.
#[must_use]
pub fn cost(side: usize) -> Cost {
    let patches = (side / PATCH) * (side / PATCH);
    Cost { parameters: (CENTRES * SIZE) as u64, multiply_adds: (patches * CENTRES * SIZE) as u64 }
}

/// The typical patches.
#[derive(Clone, Debug)]
pub struct KMeans {
    side: usize,
    /// One a row of [`SIZE`] numbers.
    centres: Vec<f32>,
}

impl KMeans {
    /// The means of clusters of all patches, from patches drawn by `seed`. A cluster that loses all its patches keeps
    /// its centre.
    ///
    /// # Panics
    /// If an image has not `side`² numbers, or there are none.
    #[must_use]
    pub fn fit(images: &[&[f32]], side: usize, seed: u64) -> Self {
        assert!(!images.is_empty() && images.iter().all(|image| image.len() == side * side), "images of {side}×{side}");
        let patches: Vec<f32> = images.iter().flat_map(|image| patches(image, side)).collect();
        let count = patches.len() / SIZE;
        let mut order: Vec<usize> = (0..count).collect();
        sampling::shuffle(&mut sampling::generator(seed), &mut order);
        let start = order.iter().take(CENTRES);
        let mut means = Self { side, centres: start.flat_map(|&i| patches[i * SIZE..][..SIZE].to_vec()).collect() };
        for _ in 0..ROUNDS {
            let nearest = means.nearest(&patches);
            let mut sums = vec![0.0f64; means.centres.len()];
            let mut members = vec![0usize; means.centres.len() / SIZE];
            for (patch, &centre) in patches.chunks_exact(SIZE).zip(&nearest) {
                members[centre] += 1;
                sums[centre * SIZE..][..SIZE].iter_mut().zip(patch).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            for (centre, &members) in members.iter().enumerate().filter(|(_, members)| **members > 0) {
                let mean = means.centres[centre * SIZE..][..SIZE].iter_mut().zip(&sums[centre * SIZE..]);
                mean.for_each(|(mean, sum)| *mean = (sum / members as f64) as f32);
            }
        }
        means
    }

    /// The nearest centre of each patch: |c|² − 2 p·c is least.
    fn nearest(&self, patches: &[f32]) -> Vec<usize> {
        let centres = self.centres.len() / SIZE;
        let squares: Vec<f32> = self.centres.chunks_exact(SIZE).map(|c| c.iter().map(|x| x * x).sum()).collect();
        let mut products = vec![0.0; AT_ONCE * centres];
        let mut nearest = Vec::with_capacity(patches.len() / SIZE);
        for some in patches.chunks(AT_ONCE * SIZE) {
            let count = some.len() / SIZE;
            let matrix = Matrix::new(&self.centres, centres, SIZE);
            multiply(
                Matrix::new(some, count, SIZE),
                matrix.t(),
                &mut MatrixMut::new(&mut products, count, centres),
                false,
            );
            for products in products.chunks_exact(centres).take(count) {
                let far = |centre: usize| squares[centre] - 2.0 * products[centre];
                let best = (1..centres).fold(0, |best, centre| if far(centre) < far(best) { centre } else { best });
                nearest.push(best);
            }
        }
        nearest
    }
}

impl Reconstruction for KMeans {
    fn residuals(&mut self, images: &[&[f32]]) -> Vec<Vec<f32>> {
        let side = self.side;
        let one = |image: &&[f32]| {
            let patches = patches(image, side);
            let mut left = vec![0.0; side * side];
            for (place, (patch, centre)) in patches.chunks_exact(SIZE).zip(self.nearest(&patches)).enumerate() {
                let corner = place / (side / PATCH) * PATCH * side + place % (side / PATCH) * PATCH;
                for (i, (x, c)) in patch.iter().zip(&self.centres[centre * SIZE..][..SIZE]).enumerate() {
                    left[corner + i / PATCH * side + i % PATCH] = (x - c).abs();
                }
            }
            left
        };
        images.iter().map(one).collect()
    }
}

/// The patches of an image side by side, one after another.
fn patches(image: &[f32], side: usize) -> Vec<f32> {
    let across = side / PATCH;
    let rows = (0..across * across).flat_map(|place| {
        let corner = place / across * PATCH * side + place % across * PATCH;
        (0..PATCH).map(move |row| corner + row * side)
    });
    rows.flat_map(|start| image[start..start + PATCH].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_seen_before_leave_little_and_a_spot_stays() {
        let side = 16;
        // Each patch is one of three.
        let image = |seed: usize| -> Vec<f32> {
            (0..256)
                .map(|i| {
                    let (place, x) = ((i / 16) / 8 * 2 + i % 16 / 8, i % 8);
                    match (place * 7 + seed) % 3 {
                        0 => x as f32,
                        1 => 5.0,
                        _ => -(x as f32),
                    }
                })
                .collect()
        };
        let images: Vec<Vec<f32>> = (0..40).map(image).collect();
        let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
        let mut means = KMeans::fit(&images, side, 1);
        let left = means.residuals(&images[..3]);
        assert!(left.iter().flatten().all(|x| *x < 1e-4));
        let mut spot = images[0].to_vec();
        spot[37] += 20.0;
        let left = &means.residuals(&[&spot])[0];
        let worst = (0..256).max_by(|&a, &b| left[a].total_cmp(&left[b])).unwrap();
        assert!(worst == 37 && left[37] > 10.0, "{worst} {}", left[37]);
    }
}
