//! The order of training images, how they are turned, and the learning rate.

use rand_chacha::ChaCha8Rng;

use crate::classifier::optimiser;
use crate::sampling;

/// The steps of a training, and what they follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// Learning rate at the start.
    pub(super) rate: f32,
    pub(super) epochs: u32,
    /// Steps of an epoch.
    pub(super) steps: usize,
}

/// Share of the steps in which the rate rises from nothing.
const WARM: f64 = 0.05;

impl Schedule {
    /// What a step follows: the rate rises for a twentieth of all steps and then falls along half a cosine to zero.
    pub(super) fn at(&self, epoch: u32, step: usize) -> optimiser::Settings {
        let all = f64::from(self.epochs) * self.steps as f64;
        let done = (f64::from(epoch) * self.steps as f64 + step as f64 + 0.5) / all.max(1.0);
        let share = if done < WARM {
            done / WARM
        } else {
            0.5 * (1.0 + (std::f64::consts::PI * (done - WARM) / (1.0 - WARM)).cos())
        };
        optimiser::Settings { lr: self.rate * share as f32, ..optimiser::Settings::default() }
    }
}

/// The images of one epoch in a random order, each flipped and turned by quarters at random.
#[derive(Debug)]
pub(super) struct Plan {
    order: Vec<usize>,
    next: usize,
    rng: ChaCha8Rng,
}

impl Plan {
    pub(super) fn new(images: usize, seed: u64, epoch: u32) -> Self {
        let mut rng = sampling::generator(seed ^ u64::from(epoch + 1) << 48);
        let mut order: Vec<usize> = (0..images).collect();
        sampling::shuffle(&mut rng, &mut order);
        Self { order, next: 0, rng }
    }

    /// Fills a batch with the next images, which `image` gives by number; gives the numbers.
    pub(super) fn fill<'a>(
        &mut self,
        batch: &mut [f32],
        side: usize,
        image: impl Fn(usize) -> &'a [f32],
    ) -> Vec<usize> {
        let mut chosen = Vec::with_capacity(batch.len() / (side * side));
        for place in batch.chunks_exact_mut(side * side) {
            let Some(&index) = self.order.get(self.next) else { break };
            self.next += 1;
            turn(image(index), place, side, sampling::below(&mut self.rng, 8));
            chosen.push(index);
        }
        chosen
    }
}

/// One of the eight ways in which a square falls on itself.
fn turn(from: &[f32], to: &mut [f32], side: usize, way: usize) {
    let last = side - 1;
    for (y, row) in to.chunks_exact_mut(side).enumerate() {
        for (x, value) in row.iter_mut().enumerate() {
            let (x, y) = if way & 4 > 0 { (y, x) } else { (x, y) };
            let x = if way & 1 > 0 { last - x } else { x };
            let y = if way & 2 > 0 { last - y } else { y };
            *value = from[y * side + x];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eight_ways_are_all_different_and_keep_every_pixel() {
        let from: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let mut ways: Vec<Vec<f32>> = (0..8)
            .map(|way| {
                let mut to = vec![0.0; 16];
                turn(&from, &mut to, 4, way);
                to
            })
            .collect();
        assert_eq!(ways[0], from);
        for way in &ways {
            let mut sorted = way.clone();
            sorted.sort_by(f32::total_cmp);
            assert_eq!(sorted, from);
        }
        ways.sort_by(|a, b| a.partial_cmp(b).unwrap());
        ways.dedup();
        assert_eq!(ways.len(), 8);
    }

    #[test]
    fn an_epoch_shows_each_image_once() {
        let images: Vec<[f32; 4]> = (0..10).map(|i| [i as f32; 4]).collect();
        let mut plan = Plan::new(10, 1, 0);
        let mut batch = vec![0.0; 5 * 4];
        let mut seen: Vec<usize> = (0..2).flat_map(|_| plan.fill(&mut batch, 2, |i| &images[i])).collect();
        assert_eq!(batch[4] as usize, seen[6]);
        seen.sort_unstable();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        assert!(plan.fill(&mut batch, 2, |i| &images[i]).is_empty());
    }

    #[test]
    fn the_rate_rises_and_falls() {
        let schedule = Schedule { rate: 1.0, epochs: 10, steps: 10 };
        let rates: Vec<f32> = (0..100).map(|i| schedule.at(i / 10, i as usize % 10).lr).collect();
        assert!(rates[0] < 0.2 && rates[5] > 0.98 && rates[99] < 0.001, "{rates:?}");
    }
}
