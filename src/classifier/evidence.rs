//! What is seen of a cell before it is judged: the network's planes and the row of the kernel machine.

use crate::backbone::Pyramid;
use crate::preprocess::Augmentation;
use crate::simd::Isa;

use super::features::{HeatDescriber, POOLED, log_scale, pool};
use super::kernel::WIDTH;
use super::planes::{Planes, heatmap_plane, image_plane, turned};

/// The ways in which the image is laid for the pooled features, most useful first: as it is, mirrored, by a quarter turn,
/// by half a turn.
const VIEWS: [usize; 4] = [0, 4, 1, 2];

/// The most views whose pooled features are averaged.
pub const MAX_VIEWS: usize = VIEWS.len();

/// The change of the image that makes view `index`, below [`MAX_VIEWS`].
///
/// # Panics
/// If there is no such view.
#[must_use]
pub fn view(index: usize) -> Augmentation {
    turned(VIEWS[index])
}

/// The ways, as [`turned`] numbers them, in which the first `views` views lay the image.
///
/// # Panics
/// If there are more than [`MAX_VIEWS`].
#[must_use]
pub fn ways(views: usize) -> &'static [usize] {
    &VIEWS[..views]
}

/// Looks at cells of one size of image and heatmap, for a network of one side; owns its buffers and allocates nothing once
/// made.
pub struct Witness {
    size: usize,
    grid: usize,
    k: usize,
    side: usize,
    isa: Isa,
    describer: HeatDescriber,
    planes: Vec<f32>,
    row: Vec<f32>,
    one_view: Vec<f32>,
    views: usize,
}

impl Witness {
    /// For rectified images of side `size` and heatmaps of side `grid` of distances of k values, and planes of side `side`.
    #[must_use]
    pub fn new(size: usize, grid: usize, k: usize, side: usize, isa: Isa) -> Self {
        Self {
            size,
            grid,
            k,
            side,
            isa,
            describer: HeatDescriber::new(grid),
            planes: vec![0.0; Planes::HeatmapAndImage.count() * side * side],
            row: vec![0.0; WIDTH],
            one_view: vec![0.0; POOLED],
            views: 0,
        }
    }

    /// Looks at a heatmap of grid² distances.
    pub fn see_heatmap(&mut self, heatmap: &[f32]) {
        let (side, plane) = (self.side, self.plane());
        heatmap_plane(heatmap, self.grid, self.k, side, &mut self.planes[..plane]);
        self.describer.describe(heatmap, &mut self.row[POOLED..]);
    }

    /// Looks at a rectified image of size² values, and forgets the features of the one before.
    pub fn see_image(&mut self, image: &[f32]) {
        let (side, plane) = (self.side, self.plane());
        image_plane(image, self.size, side, &mut self.planes[plane..]);
        self.views = 0;
        self.row[..POOLED].fill(0.0);
    }

    /// Adds the features of a view of the image. All four stages must be in the pyramid.
    pub fn see_features(&mut self, pyramid: &Pyramid) {
        pool(pyramid, self.isa, &mut self.one_view);
        self.row.iter_mut().zip(&self.one_view).for_each(|(sum, x)| *sum += x);
        self.views += 1;
    }

    /// Takes what a device has seen of a cell, and ends it: a heatmap of grid² distances, and [`pool`]ed features, [`POOLED`]
    /// numbers of each view. The planes are not made: the device has shown its own to the network.
    pub fn take_over(&mut self, heatmap: &[f32], pooled: &[f32]) {
        self.describer.describe(heatmap, &mut self.row[POOLED..]);
        let row = &mut self.row[..POOLED];
        row.fill(0.0);
        self.views = pooled.len() / POOLED;
        for view in pooled.chunks_exact(POOLED) {
            row.iter_mut().zip(view).for_each(|(sum, x)| *sum += x);
        }
        self.conclude();
    }

    /// Ends a cell: averages the views and takes logarithms.
    pub fn conclude(&mut self) {
        let share = 1.0 / self.views.max(1) as f32;
        let pooled = &mut self.row[..POOLED];
        pooled.iter_mut().for_each(|x| *x *= share);
        log_scale(pooled);
    }

    /// Numbers of a plane.
    fn plane(&self) -> usize {
        self.side * self.side
    }

    /// What depends on the heatmap: its plane, and its statistics.
    #[must_use]
    pub fn of_heatmap(&self) -> Evidence {
        Evidence { planes: self.planes[..self.plane()].into(), row: self.row[POOLED..].into() }
    }

    /// What does not depend on the heatmap: the image's plane, and the pooled features.
    #[must_use]
    pub fn of_image(&self) -> Evidence {
        Evidence { planes: self.planes[self.plane()..].into(), row: self.row[..POOLED].into() }
    }

    /// The planes: the heatmap's, then the image's, side² numbers each.
    #[must_use]
    pub fn planes(&self) -> &[f32] {
        &self.planes
    }

    /// The row: [`WIDTH`] numbers.
    #[must_use]
    pub fn row(&self) -> &[f32] {
        &self.row
    }
}

/// What is kept of a cell to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// [`Witness::planes`].
    pub planes: Box<[f32]>,
    /// [`Witness::row`].
    pub row: Box<[f32]>,
}

impl Evidence {
    /// What a witness has seen.
    #[must_use]
    pub fn of(witness: &Witness) -> Self {
        Self { planes: witness.planes().into(), row: witness.row().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_has_pooled_makes_the_same_row() {
        const SIZE: usize = 64;
        let heatmap: Vec<f32> = (0..256).map(|i| 3.0 + (i * 37 % 101) as f32).collect();
        let isa = Isa::detect();
        let mut own = Witness::new(SIZE, 16, 24, SIZE, isa);
        own.see_heatmap(&heatmap);
        own.see_image(&[0.5; SIZE * SIZE]);
        let mut pooled = vec![0.0; 2 * POOLED];
        for (view, pooled) in pooled.chunks_exact_mut(POOLED).enumerate() {
            let mut pyramid = Pyramid::new(SIZE);
            (0..4).for_each(|stage| pyramid.fill_with(stage, |i| (i * 31 % (97 + view)) as f32));
            own.see_features(&pyramid);
            pool(&pyramid, isa, pooled);
        }
        own.conclude();
        // Of a witness that has seen another cell before.
        let mut other = Witness::new(SIZE, 16, 24, SIZE, isa);
        other.take_over(&[1.0; 256], &vec![9.0; POOLED]);
        other.take_over(&heatmap, &pooled);
        assert_eq!(other.row(), own.row());
    }
}
