//! The batches that a course learns from: which cells, and what is done to them before the network sees them.

use rand_chacha::ChaCha8Rng;

use super::{LearnSettings, Samples};
use crate::classifier::planes::turned;
use crate::classifier::train::Labels;
use crate::sampling::{below, generator};

/// Draws batches, each from seed and step alone; owns its buffers and allocates nothing once made.
pub(super) struct Batches<'a> {
    samples: Samples<'a>,
    seed: u64,
    mixing: bool,
    jitter: bool,
    /// Cells to learn from, level by level.
    of_level: Vec<Vec<usize>>,
    /// How likely each level is drawn.
    shares: Vec<f64>,
    inputs: Vec<f32>,
    levels: Vec<usize>,
    /// The level that each is blended with, and how much of that.
    beside: Vec<usize>,
    blended: f32,
    /// The planes of the batch's first cell, which the last one is blended with.
    first: Vec<f32>,
}

impl<'a> Batches<'a> {
    /// Of the `training` cells among the samples.
    pub(super) fn new(samples: Samples<'a>, training: &[usize], settings: &LearnSettings) -> Self {
        let mut of_level = vec![Vec::new(); samples.levels];
        training.iter().for_each(|&cell| of_level[samples.of[cell]].push(cell));
        let weight = |cells: &Vec<usize>| match cells.len() {
            0 => 0.0,
            n => (n as f64).powf(1.0 - f64::from(settings.balance)),
        };
        let total: f64 = of_level.iter().map(weight).sum();
        let shares = of_level.iter().map(|cells| weight(cells) / total).collect();
        let LearnSettings { seed, mixing, jitter, .. } = *settings;
        let batch = settings.batch as usize;
        Self {
            samples,
            seed,
            mixing,
            jitter,
            of_level,
            shares,
            inputs: vec![0.0; batch * samples.size()],
            levels: vec![0; batch],
            beside: vec![0; batch],
            blended: 0.0,
            first: vec![0.0; samples.size()],
        }
    }

    /// The planes of the batch, one cell after another.
    pub(super) fn inputs(&self) -> &[f32] {
        &self.inputs
    }

    /// Its levels.
    pub(super) fn labels(&self) -> Labels<'_> {
        Labels { of: &self.levels, beside: &self.beside, share: self.blended }
    }

    /// How likely each level is drawn.
    pub(super) fn shares(&self) -> &[f64] {
        &self.shares
    }

    /// Lays cells as they are, without their levels, in the place of the batch.
    pub(super) fn lay(&mut self, cell: impl Fn(usize) -> usize) {
        for (slot, to) in self.inputs.chunks_exact_mut(self.samples.size()).enumerate() {
            to.copy_from_slice(self.samples.input(cell(slot)));
        }
    }

    /// The batch of a step: levels by their share, cells of a level alike, each laid in one of the eight ways; then moved,
    /// lit and blended if the settings say so.
    pub(super) fn draw(&mut self, step: u64) {
        let mut rng = generator(self.seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let (size, plane) = (self.samples.size(), self.samples.plane());
        for (level, to) in self.levels.iter_mut().zip(self.inputs.chunks_exact_mut(size)) {
            let mut at = uniform(&mut rng);
            let chosen = self.shares.iter().position(|&share| {
                at -= share;
                at < 0.0
            });
            // Rounding may leave nothing: then the last level that has cells.
            let chosen = chosen.filter(|&l| !self.of_level[l].is_empty());
            *level = chosen.or_else(|| self.of_level.iter().rposition(|l| !l.is_empty())).unwrap_or(0);
            let cells = &self.of_level[*level];
            let cell = cells[below(&mut rng, cells.len())];
            let way = turned(below(&mut rng, 8));
            for (from, to) in self.samples.input(cell).chunks_exact(plane).zip(to.chunks_exact_mut(plane)) {
                way.apply(from, to, self.samples.side);
            }
            if self.jitter {
                jitter(&mut rng, to, self.samples.side);
            }
        }
        self.beside.copy_from_slice(&self.levels);
        if self.mixing {
            self.blended = blend(&mut rng);
            self.mix();
        }
    }

    /// Blends each cell of the batch with the next, and notes the next one's level.
    fn mix(&mut self) {
        let share = self.blended;
        let (size, batch) = (self.samples.size(), self.levels.len());
        self.first.copy_from_slice(&self.inputs[..size]);
        for slot in 0..batch {
            let (done, next) = self.inputs.split_at_mut((slot + 1) * size);
            let next = if slot + 1 < batch { &next[..size] } else { &self.first };
            done[slot * size..].iter_mut().zip(next).for_each(|(x, y)| *x += share * (y - *x));
        }
        self.beside.rotate_left(1);
    }
}

/// From 0 to less than 1.
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    below(rng, 1 << 30) as f64 / f64::from(1 << 30)
}

/// How much of a cell's neighbour is blended in: by the beta distribution of 1/5 and 1/5, so mostly hardly any or nearly all
/// (Jöhnk 1964, for which the fifth power of a uniform number is all that is needed).
fn blend(rng: &mut ChaCha8Rng) -> f32 {
    loop {
        let [x, y] = [(); 2].map(|()| uniform(rng).powi(5));
        if x + y <= 1.0 && x + y > 0.0 {
            return (x / (x + y)) as f32;
        }
    }
}

/// Moves a cell's planes together by up to a twentieth of their side (what leaves at an edge comes in at the other), every
/// second time; and stretches the last one's contrast by up to a fifth, and shifts it by up to 0.15.
fn jitter(rng: &mut ChaCha8Rng, planes: &mut [f32], side: usize) {
    let plane = side * side;
    if below(rng, 2) == 1 {
        let most = side / 20;
        let [down, right] = [(); 2].map(|()| (side + below(rng, 2 * most + 1) - most) % side);
        for plane in planes.chunks_exact_mut(plane) {
            plane.rotate_right(down * side);
            plane.chunks_exact_mut(side).for_each(|row| row.rotate_right(right));
        }
    }
    let (stretch, shift) = (0.8 + 0.4 * uniform(rng) as f32, 0.3 * uniform(rng) as f32 - 0.15);
    // One plane alone is the heatmap, whose numbers mean what they are.
    if planes.len() > plane {
        let image = &mut planes[plane..];
        let mean = image.iter().sum::<f32>() / plane as f32;
        image.iter_mut().for_each(|x| *x = mean + (*x - mean) * stretch + shift);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classifier::SIDE;

    const PLANE: usize = SIDE * SIDE;

    #[test]
    fn cells_are_blended_mostly_hardly_or_nearly_wholly() {
        let mut rng = generator(3);
        let shares: Vec<f32> = (0..10_000).map(|_| blend(&mut rng)).collect();
        let part = |from: f32, to: f32| shares.iter().filter(|s| (from..to).contains(*s)).count();
        assert!(shares.iter().all(|s| (0.0..=1.0).contains(s)));
        // The beta distribution's: 0.337 below 0.1, as much above 0.9, 0.110 in the middle third.
        for (from, to, expected) in [(0.0, 0.1, 3367), (0.9, 1.1, 3367), (1.0 / 3.0, 2.0 / 3.0, 1097)] {
            let got = part(from, to);
            assert!(got.abs_diff(expected) < 250, "{got} of 10,000 from {from} to {to}");
        }
    }

    #[test]
    fn jitter_moves_both_planes_alike_and_lights_the_image_alone() {
        let planes: Vec<f32> = (0..2 * PLANE).map(|i| (i % PLANE) as f32 / PLANE as f32).collect();
        let mut rng = generator(8);
        let (mut moved, mut lit) = (0, 0);
        for _ in 0..20 {
            let mut changed = planes.clone();
            jitter(&mut rng, &mut changed, SIDE);
            let (heatmap, image) = changed.split_at(PLANE);
            let mut sorted = heatmap.to_vec();
            sorted.sort_unstable_by(f32::total_cmp);
            assert_eq!(sorted, planes[..PLANE]);
            moved += usize::from(heatmap != &planes[..PLANE]);
            // The image is the heatmap's, stretched about its mean and shifted.
            let (first, second) = (image[0] - image[1], heatmap[0] - heatmap[1]);
            let stretch = first / second;
            assert!((0.79..1.21).contains(&stretch), "{stretch}");
            let shift =
                image.iter().zip(heatmap).map(|(i, h)| i - 0.5 - (h - 0.5) * stretch).sum::<f32>() / PLANE as f32;
            assert!(shift.abs() < 0.16, "{shift}");
            lit += usize::from(shift.abs() > 0.01);
        }
        assert!((4..17).contains(&moved) && lit > 12, "{moved} moved, {lit} lit");
        let mut alone = planes[..PLANE].to_vec();
        (0..5).for_each(|_| jitter(&mut rng, &mut alone, SIDE));
        alone.sort_unstable_by(f32::total_cmp);
        assert_eq!(alone, planes[..PLANE]);
    }
}
