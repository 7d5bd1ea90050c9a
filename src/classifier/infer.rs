//! A trained classifier on the CPU engine.

use std::sync::Arc;

use thiserror::Error;

use crate::backbone::Pyramid;
use crate::backbone::cpu::Options;
use crate::backbone::cpu::network::Network;
use crate::simd::Isa;
use crate::workers::Workers;

use super::network::{Folded, NetworkError};

/// Why a classifier was not run.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClassifyError {
    /// Not the planes that it was made for.
    #[error("classifying: {got} planes of {numbers:?} numbers, expected {planes} of {side}×{side}")]
    Planes {
        /// Planes given.
        got: usize,
        /// Numbers of the first plane that is of another side, if it is that.
        numbers: Option<usize>,
        /// Planes expected.
        planes: usize,
        /// Their side.
        side: usize,
    },
    /// The output has not one place for each class.
    #[error("classifying: room for {got} classes, but there are {classes}")]
    Classes {
        /// Room given.
        got: usize,
        /// Classes of the network.
        classes: usize,
    },
}

/// A classifier packed for one instruction set and a set of threads.
pub struct Classifier {
    planes: usize,
    side: usize,
    classes: usize,
    network: Network,
    workers: Arc<Workers>,
    pyramid: Pyramid,
    fc_weight: Vec<f32>,
    fc_bias: Vec<f32>,
}

impl Classifier {
    /// Packs the weights and allocates all that a run needs.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] if a tensor has another shape than the network's.
    ///
    /// # Panics
    /// If this CPU does not have `isa`.
    pub fn new(net: &Folded, isa: Isa, workers: Arc<Workers>) -> Result<Self, NetworkError> {
        net.check()?;
        assert!(isa.is_available(), "this CPU has no {isa}");
        let Folded { inputs: planes, side, classes, ref fc_weight, ref fc_bias, .. } = *net;
        let network = Network::new(&net.convs, side, Options::default(), isa, workers.count());
        let pyramid = Pyramid::with_stages(side, [false, false, false, true]);
        Ok(Self {
            planes,
            side,
            classes,
            network,
            workers,
            pyramid,
            fc_weight: fc_weight.clone(),
            fc_bias: fc_bias.clone(),
        })
    }

    /// Input planes: 1 or 2.
    #[must_use]
    pub fn planes(&self) -> usize {
        self.planes
    }

    /// Classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Side of the input planes, in pixels.
    #[must_use]
    pub fn side(&self) -> usize {
        self.side
    }

    /// The logit of each class for one sample, whose planes are side² numbers row by row. Allocates nothing. Numbers that
    /// are not finite spread into the logits.
    ///
    /// # Errors
    /// If planes or logits have another size than the classifier's.
    pub fn logits(&mut self, planes: &[&[f32]], logits: &mut [f32]) -> Result<(), ClassifyError> {
        let wrong = planes.iter().map(|plane| plane.len()).find(|&len| len != self.side * self.side);
        if planes.len() != self.planes || wrong.is_some() {
            return Err(ClassifyError::Planes {
                got: planes.len(),
                numbers: wrong,
                planes: self.planes,
                side: self.side,
            });
        }
        if logits.len() != self.classes {
            return Err(ClassifyError::Classes { got: logits.len(), classes: self.classes });
        }
        self.network.run(planes, &mut self.pyramid, &self.workers, |_| ());
        let features = self.fc_weight.len() / self.classes;
        let share = 1.0 / (self.pyramid.side(3) as f32).powi(2);
        for ((logit, weight), &bias) in logits.iter_mut().zip(self.fc_weight.chunks_exact(features)).zip(&self.fc_bias)
        {
            // Eight partial sums, so that the compiler may add eight at a time.
            let mut sums = [0.0; 8];
            for pixel in self.pyramid.rows(3).flat_map(|row| row.chunks_exact(features)) {
                for (x, w) in pixel.chunks_exact(8).zip(weight.chunks_exact(8)) {
                    (0..8).for_each(|i| sums[i] += x[i] * w[i]);
                }
            }
            *logit = share * sums.iter().sum::<f32>() + bias;
        }
        Ok(())
    }

    /// [`Classifier::logits`], then the probability of each class: they sum to 1.
    ///
    /// # Errors
    /// As [`Classifier::logits`].
    pub fn run(&mut self, planes: &[&[f32]], probabilities: &mut [f32]) -> Result<(), ClassifyError> {
        self.logits(planes, probabilities)?;
        softmax(probabilities, 1.0);
        Ok(())
    }
}

/// Logits to probabilities, in place, after a division by `temperature` (above 0), which a calibration finds (Guo et al.
/// 2017). A logit that is not finite makes them all NaN.
pub fn softmax(logits: &mut [f32], temperature: f32) {
    let finite = logits.iter().all(|l| l.is_finite());
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for logit in logits.iter_mut() {
        *logit = if finite { ((*logit - largest) / temperature).exp() } else { f32::NAN };
        sum += *logit;
    }
    logits.iter_mut().for_each(|p| *p /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classifier::train::Trainer;
    use crate::classifier::{Network as Parameters, SIDE};

    /// A network whose running statistics are not those of the start.
    fn trained(planes: usize) -> (Parameters, Trainer, Vec<f32>) {
        const BATCH: usize = 4;
        let network = Parameters::new(planes, 3, 9).unwrap();
        let inputs: Vec<f32> =
            (0..BATCH * planes * SIDE * SIDE).map(|i| ((i * 7919 % 1009) as f32 / 300.0 - 1.6).sin()).collect();
        let mut trainer = Trainer::new(network, SIDE, BATCH, Isa::detect(), Arc::new(Workers::new(2))).unwrap();
        for _ in 0..3 {
            trainer.step(&inputs, &[0, 1, 2, 1], &crate::classifier::optimiser::Settings::default()).unwrap();
        }
        (trainer.network(), trainer, inputs)
    }

    #[test]
    fn inspection_computes_what_the_training_left() {
        for planes in [1, 2] {
            let (network, mut trainer, inputs) = trained(planes);
            let expected = trainer.logits(&inputs).unwrap().to_vec();
            let folded = network.fold(SIDE);
            for isa in Isa::available().filter(|isa| !isa.multiplies_halves()) {
                let mut classifier = Classifier::new(&folded, isa, Arc::new(Workers::new(2))).unwrap();
                assert_eq!((classifier.planes(), classifier.classes()), (planes, 3));
                for (sample, expected) in inputs.chunks_exact(planes * SIDE * SIDE).zip(expected.chunks_exact(3)) {
                    let sample: Vec<&[f32]> = sample.chunks_exact(SIDE * SIDE).collect();
                    let (mut logits, mut probabilities) = ([0.0; 3], [0.0; 3]);
                    classifier.logits(&sample, &mut logits).unwrap();
                    classifier.run(&sample, &mut probabilities).unwrap();
                    let largest = expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
                    for (got, want) in logits.iter().zip(expected) {
                        assert!((got - want).abs() < 2e-3 * largest, "{isa}: {logits:?} for {expected:?}");
                    }
                    assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
                    softmax(&mut logits, 1.0);
                    assert_eq!(logits, probabilities);
                }
            }
        }
    }

    #[test]
    fn wrong_sizes_are_refused_and_a_nan_reaches_every_probability() {
        let folded = Parameters::new(2, 2, 1).unwrap().fold(SIDE);
        let mut classifier = Classifier::new(&folded, Isa::detect(), Arc::new(Workers::new(1))).unwrap();
        let mut plane = vec![0.0; SIDE * SIDE];
        let mut out = [0.0; 2];
        let refused = Err(ClassifyError::Planes { got: 1, numbers: None, planes: 2, side: SIDE });
        assert_eq!(classifier.run(&[&plane], &mut out), refused);
        let refused = Err(ClassifyError::Planes { got: 2, numbers: Some(5), planes: 2, side: SIDE });
        assert_eq!(classifier.run(&[&plane, &plane[..5]], &mut out), refused);
        let refused = Err(ClassifyError::Classes { got: 1, classes: 2 });
        assert_eq!(classifier.run(&[&plane, &plane], &mut out[..1]), refused);
        classifier.run(&[&plane, &plane], &mut out).unwrap();
        assert!(out.iter().all(|p| p.is_finite()));
        plane[777] = f32::NAN;
        classifier.run(&[&vec![0.0; SIDE * SIDE], &plane], &mut out).unwrap();
        assert!(out.iter().all(|p| p.is_nan()), "{out:?}");
        let mut short = folded;
        short.convs[3].bias.pop();
        assert!(matches!(
            Classifier::new(&short, Isa::detect(), Arc::new(Workers::new(1))),
            Err(NetworkError::Shape { .. })
        ));
    }

    #[test]
    fn temperature_flattens_and_keeps_the_order() {
        let (mut sharp, mut flat) = ([2.0, -1.0, 0.5], [2.0, -1.0, 0.5]);
        softmax(&mut sharp, 1.0);
        softmax(&mut flat, 3.0);
        assert!(sharp[0] > flat[0] && flat[0] > flat[2] && flat[2] > flat[1] && flat[1] > sharp[1]);
        assert!((sharp[0] / sharp[1] - 3f32.exp()).abs() < 1e-3);
    }
}
