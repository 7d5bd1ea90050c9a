//! The four stage outputs of a cell.

use std::ops::Range;

use super::cpu::memory::{Aligned, Area, Layout, Tensor};
use super::{STAGE_CHANNELS, STAGE_STRIDES};

/// The outputs of the four stages for one image of side S: map `s` is `(S/stride)²` pixels, each with its channels next
/// to one another (HWC), read [row](Self::rows) by row. Stages that nobody wants have no map, and what comes after the
/// last one wanted is not computed.
///
/// Around each map lies a border of zeros, as the next convolution wants it: the CPU engine computes in the pyramid
/// itself, so that no map is copied. There is room for all maps up to the last that is wanted.
#[derive(Clone, Debug)]
pub struct Pyramid {
    size: usize,
    wanted: [bool; 4],
    maps: [Tensor; 4],
    memory: Aligned,
}

impl Pyramid {
    /// Buffers of all four stages for an image of side `size` (a multiple of 32).
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self::with_stages(size, [true; 4])
    }

    /// Buffers of the stages that are wanted.
    #[must_use]
    pub fn with_stages(size: usize, wanted: [bool; 4]) -> Self {
        let mut layout = Layout::default();
        let maps = Self::place(&mut layout, size, depth(wanted));
        Self { size, wanted, maps, memory: layout.allocate() }
    }

    /// Where the maps of the first `depth` stages lie, one behind the other; the others are without pixels.
    pub(super) fn place(layout: &mut Layout, size: usize, depth: usize) -> [Tensor; 4] {
        std::array::from_fn(|stage| {
            let side = if stage < depth { size / STAGE_STRIDES[stage] } else { 0 };
            Tensor::new(layout, Area::Pyramid, side, STAGE_CHANNELS[stage], 1)
        })
    }

    /// Which stages it holds.
    #[must_use]
    pub fn stages(&self) -> [bool; 4] {
        self.wanted
    }

    /// How many stages must be computed: up to the last one that it holds.
    #[must_use]
    pub fn depth(&self) -> usize {
        depth(self.wanted)
    }

    /// The image side S.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The side of map `stage` in pixels.
    #[must_use]
    pub fn side(&self, stage: usize) -> usize {
        self.size / STAGE_STRIDES[stage]
    }

    /// Row `y` of map `stage` (0 to 3): side × channels values.
    ///
    /// # Panics
    /// If it does not hold the stage, or the map has no such row.
    #[must_use]
    pub fn row(&self, stage: usize, y: usize) -> &[f32] {
        &self.memory.as_slice()[self.place_of_row(stage, y)]
    }

    fn place_of_row(&self, stage: usize, y: usize) -> Range<usize> {
        let map = &self.maps[stage];
        assert!(self.wanted[stage] && y < map.side, "the pyramid holds no row {y} of stage {}", stage + 1);
        let start = map.pixel(y, 0).offset;
        start..start + map.side * map.channels
    }

    /// The rows of map `stage` from top to bottom; none if the stage is not wanted.
    pub fn rows(&self, stage: usize) -> impl Iterator<Item = &[f32]> {
        self.row_numbers(stage).map(move |y| self.row(stage, y))
    }

    fn row_numbers(&self, stage: usize) -> Range<usize> {
        0..if self.wanted[stage] { self.maps[stage].side } else { 0 }
    }

    /// All values of map `stage`, side² × channels, row by row.
    pub fn values(&self, stage: usize) -> impl Iterator<Item = f32> {
        self.rows(stage).flatten().copied()
    }

    /// Row `y` of map `stage` to be written.
    ///
    /// # Panics
    /// As [`row`](Self::row).
    pub fn row_mut(&mut self, stage: usize, y: usize) -> &mut [f32] {
        let row = self.place_of_row(stage, y);
        &mut self.memory.as_mut_slice()[row]
    }

    /// Sets value `i` of map `stage`, counted row by row, to `value(i)`; nothing if the stage is not wanted.
    pub fn fill_with(&mut self, stage: usize, mut value: impl FnMut(usize) -> f32) {
        let mut i = 0;
        for y in self.row_numbers(stage) {
            for x in self.row_mut(stage, y) {
                *x = value(i);
                i += 1;
            }
        }
    }

    /// The memory in which the maps lie as [`Pyramid::place`] says; for the CPU engine, which leaves the borders zero.
    pub(super) fn memory(&mut self) -> &mut [f32] {
        self.memory.as_mut_slice()
    }
}

/// The borders are zeros in all, so that only the maps count.
impl PartialEq for Pyramid {
    fn eq(&self, other: &Self) -> bool {
        self.size == other.size
            && self.stages() == other.stages()
            && (0..4).all(|stage| self.rows(stage).eq(other.rows(stage)))
    }
}

/// How many stages must be computed for those that are wanted: the number of the last, from 1; 0 for none.
#[must_use]
pub fn depth(wanted: [bool; 4]) -> usize {
    wanted.iter().rposition(|&w| w).map_or(0, |last| last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_map_and_nothing_else() {
        let mut pyramid = Pyramid::with_stages(96, [false, true, false, true]);
        assert_eq!((pyramid.depth(), pyramid.side(1), pyramid.side(3)), (4, 12, 3));
        for stage in 0..4 {
            pyramid.fill_with(stage, |i| i as f32);
        }
        assert_eq!(pyramid.rows(0).count(), 0);
        assert!(pyramid.values(1).eq((0..12 * 12 * 128).map(|i| i as f32)));
        assert_eq!(pyramid.row(3, 2)[0], (2 * 3 * 512) as f32);
        let sum: f64 = pyramid.memory().iter().copied().map(f64::from).sum();
        let counts = [12 * 12 * 128, 3 * 3 * 512].map(f64::from);
        assert_eq!(
            sum,
            counts.map(|n| n * (n - 1.0) / 2.0).iter().sum::<f64>(),
            "something is written beside the maps"
        );
        let mut other = pyramid.clone();
        assert!(other == pyramid);
        other.row_mut(1, 11)[7] = -1.0;
        assert!(other != pyramid);
        assert!(Pyramid::new(96) != Pyramid::new(128));
    }
}
