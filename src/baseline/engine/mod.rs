//! Trains the networks of [`graph`](super::graph): forward and backward passes in single precision, and Adam.
//!
//! It knows few layers and no tricks, but does them on all cores, and gives the same numbers on any number of them.
//! (The trainer of our own classifier, [`classifier::train`](crate::classifier::train), does one network and is faster.)

mod conv;
mod layers;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rand_chacha::rand_core::Rng;
use thiserror::Error;

use super::gemm::{Shared, each};
use super::graph::{Graph, GraphError, INPUT, Op, Shape, parameters};
use crate::backbone::cpu::memory::Memory;
use crate::classifier::optimiser::{self, Adam};
use crate::sampling;
use crate::simd::Isa;
use crate::workers::Workers;
use conv::Conv;
use layers::{Map, Norm, NormGradients};

/// Why training stopped.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The network does not work on such images.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The loss is no number.
    #[error("training: the loss of step {step} is {loss}; use a smaller learning rate")]
    NotFinite {
        /// The step, from 1.
        step: u64,
        /// The loss.
        loss: f32,
    },
}

/// Where a layer's numbers lie: weights, gains and biases among the parameters, running statistics, and maps.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    weights: (usize, usize),
    others: (usize, usize),
    running: (usize, usize),
}

/// A network in training, with all its memory.
pub struct Trainer {
    graph: Graph,
    shapes: Vec<Shape>,
    places: Vec<Place>,
    batch: usize,
    seed: u64,
    step: u64,
    /// Numbers before this are subject to weight decay.
    decayed: usize,
    parameters: Vec<f32>,
    gradients: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    running: Vec<f32>,
    /// Statistics of the batch in norms, factors in dropouts.
    saved: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    deltas: Vec<Vec<f32>>,
    isa: Isa,
    workers: Arc<Workers>,
}

/// A network's parameters and running statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    parameters: Vec<f32>,
    running: Vec<f32>,
}

impl Trainer {
    /// A network that starts from `seed`: convolutions from a normal distribution by He et al. 2015, over what goes out;
    /// linear layers of deviation 0.01, as torchvision's VGG.
    ///
    /// # Errors
    /// If it does not work on images of `side`.
    ///
    /// # Panics
    /// If `batch` is 0.
    pub fn new(graph: Graph, side: usize, batch: usize, seed: u64, workers: Arc<Workers>) -> Result<Self, TrainError> {
        assert!(batch > 0, "a batch has images");
        let shapes = graph.shapes(side)?;
        let mut places = vec![Place::default(); shapes.len()];
        let counts: Vec<(usize, usize)> = graph.layers().iter().map(|l| parameters(l.op, shapes[l.from])).collect();
        let mut at = 0;
        for (place, count) in places.iter_mut().zip(&counts) {
            place.weights = (at, at + count.0);
            at += count.0;
        }
        let decayed = at;
        let mut running = 0;
        for ((place, count), layer) in places.iter_mut().zip(&counts).zip(graph.layers()) {
            place.others = (at, at + count.1);
            at += count.1;
            let norm = if layer.op == Op::Norm { 2 * shapes[layer.from].channels } else { 0 };
            place.running = (running, running + norm);
            running += norm;
        }
        let saved = graph.layers().iter().zip(&shapes).zip(&places).map(|((layer, shape), place)| {
            let count = if layer.op == Op::Dropout { shape.len() * batch } else { place.running.1 - place.running.0 };
            vec![0.0; count]
        });
        let saved = saved.collect();
        let maps = || shapes.iter().map(|shape| vec![0.0; shape.len() * batch]).collect();
        let zeros = || vec![0.0; at];
        let mut trainer = Self {
            parameters: zeros(),
            gradients: zeros(),
            first: zeros(),
            second: zeros(),
            running: vec![0.0; running],
            values: maps(),
            deltas: maps(),
            graph,
            saved,
            shapes,
            places,
            batch,
            seed,
            step: 0,
            decayed,
            isa: Isa::detect(),
            workers,
        };
        trainer.start();
        Ok(trainer)
    }

    fn start(&mut self) {
        for (index, layer) in self.graph.layers().iter().enumerate() {
            let Place { weights, others, running } = self.places[index];
            let deviation = match layer.op {
                Op::Conv { outputs, kernel, .. } => (2.0 / (outputs * kernel * kernel) as f32).sqrt(),
                Op::Linear { .. } => 0.01,
                Op::Norm => {
                    let gains = others.0..others.0 + (others.1 - others.0) / 2;
                    self.parameters[gains].fill(1.0);
                    self.running[running.0 + (running.1 - running.0) / 2..running.1].fill(1.0);
                    continue;
                }
                _ => continue,
            };
            // A stream for each layer, so that they can be drawn side by side.
            let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index as u64);
            const PART: usize = 1 << 16;
            let values = &mut self.parameters[weights.0..weights.1];
            let (len, shared) = (values.len(), Shared::new(values));
            each(&self.workers, len.div_ceil(PART), |part| {
                let mut rng = sampling::generator(seed ^ (part as u64) << 40);
                // SAFETY: parts do not overlap.
                let values = unsafe { shared.slice(part * PART..len.min((part + 1) * PART)) };
                for pair in values.chunks_mut(2) {
                    let normal = normal(&mut || rng.next_u32());
                    pair.iter_mut().zip(normal).for_each(|(value, normal)| *value = deviation * normal);
                }
            });
        }
    }

    /// Images of a batch.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Numbers that are learned.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.parameters.len()
    }

    /// The parameters and running statistics as they are.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { parameters: self.parameters.clone(), running: self.running.clone() }
    }

    /// Goes back to what [`Trainer::snapshot`] gave.
    ///
    /// # Panics
    /// If it is of another network.
    pub fn restore(&mut self, snapshot: &Snapshot) {
        self.parameters.copy_from_slice(&snapshot.parameters);
        self.running.copy_from_slice(&snapshot.running);
    }

    /// The outcome for a batch of images, one after another (for a network with one plane): channel by channel, in each
    /// all images. Norms use their running statistics and nothing drops out.
    ///
    /// # Panics
    /// If it is not a whole batch.
    pub fn run(&mut self, images: &[f32]) -> &[f32] {
        self.forward(images, false);
        self.outcome()
    }

    fn outcome(&self) -> &[f32] {
        &self.values[self.graph.last()]
    }

    /// One step towards the labels, a class for each image; gives the mean cross-entropy before it.
    ///
    /// # Errors
    /// If the loss is no number; nothing has changed then but running statistics.
    ///
    /// # Panics
    /// If it is not a whole batch, or there is no such class.
    pub fn learn_classes(
        &mut self,
        images: &[f32],
        labels: &[usize],
        settings: &optimiser::Settings,
    ) -> Result<f32, TrainError> {
        self.forward(images, true);
        let loss = self.class_deltas(labels);
        self.follow(loss, settings)
    }

    /// One step towards images of the same shape as the outcome; gives the mean squared error before it.
    ///
    /// # Errors
    /// As [`Trainer::learn_classes`].
    ///
    /// # Panics
    /// If it is not a whole batch.
    pub fn learn_images(
        &mut self,
        images: &[f32],
        targets: &[f32],
        settings: &optimiser::Settings,
    ) -> Result<f32, TrainError> {
        self.forward(images, true);
        let loss = self.image_deltas(targets);
        self.follow(loss, settings)
    }

    fn class_deltas(&mut self, labels: &[usize]) -> f32 {
        assert_eq!(labels.len(), self.batch, "a label for each image");
        let last = self.graph.last();
        let (logits, deltas) = (&self.values[last], &mut self.deltas[last]);
        let batch = self.batch;
        let mut loss = 0.0f64;
        for (image, &label) in labels.iter().enumerate() {
            let places = (image..logits.len()).step_by(batch);
            let most = places.clone().map(|at| logits[at]).fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = places.clone().map(|at| (logits[at] - most).exp()).sum();
            loss += f64::from(sum.ln() + most - logits[label * batch + image]);
            for (class, at) in places.enumerate() {
                let wanted = f32::from(u8::from(class == label));
                deltas[at] = ((logits[at] - most).exp() / sum - wanted) / batch as f32;
            }
        }
        (loss / batch as f64) as f32
    }

    fn image_deltas(&mut self, targets: &[f32]) -> f32 {
        let last = self.graph.last();
        let (values, deltas) = (&self.values[last], &mut self.deltas[last]);
        assert_eq!(targets.len(), values.len(), "an image for each image");
        let mut loss = 0.0f64;
        for ((delta, value), target) in deltas.iter_mut().zip(values).zip(targets) {
            let error = value - target;
            loss += f64::from(error * error);
            *delta = 2.0 * error / values.len() as f32;
        }
        (loss / values.len() as f64) as f32
    }

    fn follow(&mut self, loss: f32, settings: &optimiser::Settings) -> Result<f32, TrainError> {
        if !loss.is_finite() {
            return Err(TrainError::NotFinite { step: self.step + 1, loss });
        }
        self.backward();
        self.step += 1;
        let adam = Adam {
            count: self.parameters.len(),
            decayed: self.decayed,
            step: self.step,
            parameters: Memory::new(&mut self.parameters),
            gradients: Memory::new(&mut self.gradients),
            first: Memory::new(&mut self.first),
            second: Memory::new(&mut self.second),
        };
        // SAFETY: the four are as long, and this is the only user.
        unsafe { adam.run(self.isa, &self.workers, settings) };
        Ok(loss)
    }

    /// The convolution that a layer is, if it is one.
    fn conv(&self, index: usize) -> Option<Conv> {
        let layer = self.graph.layers()[index];
        let (from, to) = (self.shapes[layer.from], self.shapes[index]);
        let (kernel, stride, padding, groups) = match layer.op {
            Op::Conv { kernel, stride, padding, groups, .. } => (kernel, stride, padding, groups),
            Op::Linear { .. } => (from.side, 1, 0, 1),
            _ => return None,
        };
        let (inputs, outputs) = (from.channels, to.channels);
        Some(Conv { batch: self.batch, inputs, outputs, kernel, stride, padding, groups, from: from.side, to: to.side })
    }

    fn map(op: Op) -> Option<Map> {
        match op {
            Op::MaxPool { kernel, stride, padding } => Some(Map::Max { kernel, stride, padding }),
            Op::MeanPool { .. } => Some(Map::Mean),
            Op::Upsample => Some(Map::Double),
            _ => None,
        }
    }

    fn forward(&mut self, images: &[f32], training: bool) {
        self.values[INPUT].copy_from_slice(images);
        for index in 1..self.shapes.len() {
            let layer = self.graph.layers()[index];
            let place = self.places[index];
            let conv = self.conv(index);
            let (before, rest) = self.values.split_at_mut(index);
            let (x, y) = (&before[layer.from][..], &mut rest[0][..]);
            let others = &self.parameters[place.others.0..place.others.1];
            let workers = &self.workers;
            match layer.op {
                Op::Input { .. } => {}
                Op::Conv { .. } | Op::Linear { .. } => {
                    let bias = (!others.is_empty()).then_some(others);
                    if let Some(conv) = conv {
                        conv.forward(x, &self.parameters[place.weights.0..place.weights.1], bias, y, workers);
                    }
                }
                Op::Norm => {
                    let (gain, shift) = others.split_at(others.len() / 2);
                    let running = &mut self.running[place.running.0..place.running.1];
                    Norm { gain, shift, running, saved: &mut self.saved[index] }.forward(x, y, training, workers);
                }
                Op::MaxPool { .. } | Op::MeanPool { .. } | Op::Upsample => {
                    let (from, to) = (self.shapes[layer.from], self.shapes[index]);
                    if let Some(map) = Self::map(layer.op) {
                        map.forward(x, y, to.channels * self.batch, [from.side, to.side], workers);
                    }
                }
                Op::Add { other } => {
                    y.iter_mut().zip(x).zip(&before[other]).for_each(|((y, a), b)| *y = a + b);
                }
                Op::Dropout if training => {
                    let mut rng = sampling::generator(self.seed ^ self.step << 20 ^ index as u64);
                    let factors = &mut self.saved[index];
                    for factors in factors.chunks_mut(32) {
                        let bits = rng.next_u32();
                        factors.iter_mut().enumerate().for_each(|(i, f)| *f = 2.0 * (bits >> i & 1) as f32);
                    }
                    y.iter_mut().zip(x).zip(factors).for_each(|((y, x), factor)| *y = x * *factor);
                }
                Op::Dropout => y.copy_from_slice(x),
            }
            if layer.relu {
                workers.split(y, 1, &|_, _, part| part.iter_mut().for_each(|value| *value = value.max(0.0)));
            }
        }
    }

    /// From the deltas of the outcome to all gradients.
    fn backward(&mut self) {
        let mut written = vec![false; self.shapes.len()];
        for index in (1..self.shapes.len()).rev() {
            let layer = self.graph.layers()[index];
            let place = self.places[index];
            let conv = self.conv(index);
            let (before, rest) = self.deltas.split_at_mut(index);
            let dy = &mut rest[0][..];
            let (x, y) = (&self.values[layer.from][..], &self.values[index][..]);
            let workers = &self.workers;
            if layer.relu {
                let y = &y;
                workers.split(dy, 1, &|_, first, part| {
                    part.iter_mut().zip(&y[first..]).for_each(|(delta, &value)| {
                        if value <= 0.0 {
                            *delta = 0.0;
                        }
                    });
                });
            }
            let (dy, dx) = (&*dy, &mut before[layer.from][..]);
            let add = written[layer.from];
            let others = &mut self.gradients[place.others.0..place.others.1];
            match layer.op {
                Op::Input { .. } => {}
                Op::Conv { .. } | Op::Linear { .. } => {
                    let Some(conv) = conv else { continue };
                    let weights = place.weights.0..place.weights.1;
                    let (dw, db) = self.gradients.split_at_mut(self.decayed);
                    let db = &mut db[place.others.0 - self.decayed..place.others.1 - self.decayed];
                    let db = (!db.is_empty()).then_some(db);
                    conv.weights(x, dy, &mut dw[weights.clone()], db, workers);
                    if layer.from != INPUT {
                        conv.inputs(&self.parameters[weights], dy, dx, add, workers);
                    }
                }
                Op::Norm => {
                    let (gain, shift) = others.split_at_mut(self.shapes[index].channels);
                    let gains = &self.parameters[place.others.0..place.others.0 + gain.len()];
                    let gradients = NormGradients { gain, shift, dx, add };
                    gradients.backward(x, dy, gains, &self.saved[index], workers);
                }
                Op::MaxPool { .. } | Op::MeanPool { .. } | Op::Upsample => {
                    let (from, to) = (self.shapes[layer.from], self.shapes[index]);
                    let maps = to.channels * self.batch;
                    if let Some(map) = Self::map(layer.op) {
                        map.backward([x, y, dy], dx, add, maps, [from.side, to.side], workers);
                    }
                }
                Op::Add { other } => {
                    pass(dx, dy, add);
                    // The same layer twice counts twice.
                    let add = written[other] || other == layer.from;
                    pass(&mut before[other], dy, add);
                    written[other] = true;
                }
                Op::Dropout => {
                    let deltas: Vec<f32> = dy.iter().zip(&self.saved[index]).map(|(dy, factor)| dy * factor).collect();
                    pass(dx, &deltas, add);
                }
            }
            written[layer.from] = true;
        }
    }
}

fn pass(to: &mut [f32], from: &[f32], add: bool) {
    if add {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    } else {
        to.copy_from_slice(from);
    }
}

/// Two draws from the standard normal distribution (Box and Muller 1958).
fn normal(bits: &mut impl FnMut() -> u32) -> [f32; 2] {
    let mut unit = || (f64::from(bits()) + 0.5) / (f64::from(u32::MAX) + 1.0);
    let (radius, angle) = ((-2.0 * unit().ln()).sqrt(), std::f64::consts::TAU * unit());
    [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
}
