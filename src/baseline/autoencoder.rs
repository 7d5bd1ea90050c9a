//! The fully convolutional autoencoder, trained on good cells.

use std::sync::Arc;

use super::engine::Trainer;
use super::schedule::{Plan, Schedule};
use super::{BaselineError, Reconstruction, Settings, Tick, networks};
use crate::workers::Workers;

/// Learning rate at the start.
const RATE: f32 = 2e-3;

/// An autoencoder that has learned good cells.
pub struct Autoencoder {
    trainer: Trainer,
    pixels: usize,
    /// Whole batches of images.
    batch: Vec<f32>,
}

impl Autoencoder {
    /// Trains it on images of side `side`, flipped and turned by quarters at random, towards the least squared error.
    ///
    /// # Errors
    /// If the side is no multiple of 16, the loss is no number, or `tick` says to stop.
    pub fn fit(
        images: &[&[f32]],
        side: usize,
        settings: &Settings,
        workers: &Arc<Workers>,
        tick: &Tick<'_>,
    ) -> Result<Self, BaselineError> {
        let batch = settings.batch.min(images.len()).max(1);
        let mut trainer = Trainer::new(networks::autoencoder(), side, batch, settings.seed, Arc::clone(workers))?;
        let pixels = side * side;
        let mut values = vec![0.0; batch * pixels];
        let schedule = Schedule { rate: RATE, epochs: settings.epochs, steps: images.len() / batch };
        for epoch in 0..settings.epochs {
            let mut plan = Plan::new(images.len(), settings.seed, epoch);
            for step in 0..schedule.steps {
                plan.fill(&mut values, side, |index| images[index]);
                trainer.learn_images(&values, &values, &schedule.at(epoch, step))?;
                if tick(batch as u64).is_break() {
                    return Err(BaselineError::Interrupted);
                }
            }
        }
        Ok(Self { trainer, pixels, batch: values })
    }
}

impl Reconstruction for Autoencoder {
    fn residuals(&mut self, images: &[&[f32]]) -> Vec<Vec<f32>> {
        let mut left = Vec::with_capacity(images.len());
        for some in images.chunks(self.trainer.batch()) {
            let places = self.batch.chunks_exact_mut(self.pixels);
            places.zip(some).for_each(|(place, image)| place.copy_from_slice(image));
            let made = self.trainer.run(&self.batch);
            let pairs = made.chunks_exact(self.pixels).zip(some);
            left.extend(pairs.map(|(made, image)| made.iter().zip(*image).map(|(m, x)| (m - x).abs()).collect()));
        }
        left
    }
}
