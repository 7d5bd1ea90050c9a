//! The classifier's parameters: where each lies, how they start, and their names in torchvision's ResNet18.

use std::collections::BTreeMap;
use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::backbone::weights::fold::{BN_EPSILON, Norm, Trained, fold, torchvision_names};
use crate::backbone::weights::{Conv, ConvShape, convolutions};
use crate::backbone::{ResNet18, STAGE_CHANNELS};

use super::SIDES;

/// Output channels that lie next to one another; every layer has a multiple of them.
pub(super) const GROUP: usize = 64;

/// A tensor with its shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// Sizes of the dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The numbers in row-major order.
    pub values: Vec<f32>,
}

/// Tensors by torchvision's names: `layer1.0.conv1.weight`, `layer1.0.bn1.running_mean`, `fc.bias`, …
pub type Tensors = BTreeMap<String, Tensor>;

/// Why a classifier cannot be made.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum NetworkError {
    /// Neither one input plane nor two.
    #[error("building a classifier: it takes 1 or 2 input planes, not {0}")]
    Inputs(usize),
    /// No side for the planes.
    #[error("building a classifier: its planes have one of {SIDES:?} pixels a side, not {0}")]
    Side(usize),
    /// Too few classes, or absurdly many.
    #[error("building a classifier: it tells 2 to {most} classes apart, not {0}", most = MAX_CLASSES)]
    Classes(usize),
    /// A tensor is missing.
    #[error("reading a classifier: there is no tensor {name}; was it written by another version?")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor that the network has not.
    #[error("reading a classifier: its network has no tensor {name}; was it written by another version?")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// A tensor has another shape, or not as many numbers as its shape says.
    #[error("reading a classifier: {name} has shape {got:?} and {values} numbers, expected {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// The network's shape.
        expected: Vec<usize>,
        /// The shape given.
        got: Vec<usize>,
        /// The numbers given.
        values: usize,
    },
    /// A number is NaN or infinite, or a variance negative.
    #[error("reading a classifier: {name} holds {value} at index {index}; did its training diverge?")]
    Value {
        /// The tensor.
        name: String,
        /// Which of its numbers.
        index: usize,
        /// The number.
        value: f32,
    },
}

/// The most classes that a classifier tells apart.
pub const MAX_CLASSES: usize = 64;

/// Planes and classes, and the channels of each stage: torchvision's but in tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) inputs: usize,
    pub(super) classes: usize,
    pub(super) widths: [usize; 4],
}

/// A convolution and the batch norm after it: their places among the parameters and running statistics.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) shape: ConvShape,
    pub(super) weight: usize,
    pub(super) gamma: usize,
    pub(super) beta: usize,
    pub(super) mean: usize,
    pub(super) variance: usize,
}

/// Where everything lies. First come the weights, on which weight decay acts, then gains, shifts and biases, on which
/// it does not. Convolution weights lie as `outputs/64 × kernel × kernel × inputs × 64`, ready to be multiplied by.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) convs: Vec<Place>,
    pub(super) fc_weight: usize,
    pub(super) fc_bias: usize,
    /// End of what weight decay acts on.
    pub(super) decayed: usize,
    /// Numbers in all parameters.
    pub(super) parameters: usize,
    /// Numbers in all running statistics.
    pub(super) running: usize,
}

impl Shape {
    pub(super) fn places(&self) -> Places {
        let mut at = 0;
        let mut take = |count: usize| {
            // Whole cache lines: what lies between is zero and stays so.
            let start = at;
            at += count.next_multiple_of(16);
            start
        };
        let shapes = convolutions(self.inputs, self.widths);
        let weights: Vec<usize> = shapes.iter().map(|s| take(s.weight_len())).collect();
        let features = self.widths[3];
        let fc_weight = take(self.classes * features);
        let decayed = take(0);
        let mut running = 0;
        let convs = (shapes.into_iter().zip(weights)).map(|(shape, weight)| {
            let (gamma, beta) = (take(shape.outputs), take(shape.outputs));
            running += 2 * shape.outputs;
            let (mean, variance) = (running - 2 * shape.outputs, running - shape.outputs);
            Place { shape, weight, gamma, beta, mean, variance }
        });
        let convs = convs.collect();
        let fc_bias = take(self.classes);
        Places { convs, fc_weight, fc_bias, decayed, parameters: take(0), running }
    }
}

impl Places {
    /// Every tensor: name, shape and where it lies.
    fn tensors(&self, shape: &Shape) -> Vec<(String, Vec<usize>, At)> {
        let mut all = Vec::new();
        for (index, place) in self.convs.iter().enumerate() {
            let (conv, norm) = torchvision_names(&place.shape.name);
            let channels = place.shape.outputs;
            all.push((format!("{conv}.weight"), place.shape.weight_shape().to_vec(), At::Weight(index)));
            let vector = |start: usize| start..start + channels;
            let parts = [
                ("weight", At::Parameters(vector(place.gamma))),
                ("bias", At::Parameters(vector(place.beta))),
                ("running_mean", At::Running(vector(place.mean))),
                ("running_var", At::Running(vector(place.variance))),
            ];
            all.extend(parts.map(|(part, at)| (format!("{norm}.{part}"), vec![channels], at)));
        }
        let (classes, features) = (shape.classes, shape.widths[3]);
        let weight = At::Parameters(self.fc_weight..self.fc_weight + classes * features);
        all.push(("fc.weight".into(), vec![classes, features], weight));
        all.push(("fc.bias".into(), vec![classes], At::Parameters(self.fc_bias..self.fc_bias + classes)));
        all
    }
}

/// Where a tensor lies.
enum At {
    /// The weight of a convolution.
    Weight(usize),
    Parameters(Range<usize>),
    Running(Range<usize>),
}

/// Where weight `(output, input, tap)` lies in the order that the training computes in.
fn packed(shape: &ConvShape, output: usize, input: usize, tap: usize) -> usize {
    let taps = shape.kernel * shape.kernel;
    ((output / GROUP * taps + tap) * shape.inputs + input) * GROUP + output % GROUP
}

/// Numbers of a convolution's weight from our order to torchvision's: `outputs × inputs × kernel × kernel`.
fn unpack(shape: &ConvShape, from: &[f32]) -> Vec<f32> {
    let taps = shape.kernel * shape.kernel;
    let place = |at: usize| packed(shape, at / (shape.inputs * taps), at / taps % shape.inputs, at % taps);
    (0..shape.weight_len()).map(|at| from[place(at)]).collect()
}

fn pack(shape: &ConvShape, from: &[f32], to: &mut [f32]) {
    let taps = shape.kernel * shape.kernel;
    for (at, &value) in from.iter().enumerate() {
        to[packed(shape, at / (shape.inputs * taps), at / taps % shape.inputs, at % taps)] = value;
    }
}

/// A classifier's parameters and running statistics, all f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    pub(super) shape: Shape,
    pub(super) parameters: Vec<f32>,
    pub(super) running: Vec<f32>,
}

/// A classifier as inspection runs it: batch norm folded into the convolutions.
#[derive(Clone, Debug, PartialEq)]
pub struct Folded {
    /// Input planes: 1 or 2.
    pub inputs: usize,
    /// Side of the planes that it was trained on, in pixels.
    pub side: usize,
    /// Classes.
    pub classes: usize,
    /// The twenty convolutions, in the order of [`ResNet18::convs`]; `conv1` has as many inputs as there are planes.
    pub convs: Vec<Conv>,
    /// `classes × 512`.
    pub fc_weight: Vec<f32>,
    /// One for each class.
    pub fc_bias: Vec<f32>,
}

impl Network {
    /// A network of `inputs` planes (1 or 2) and `classes` (2 to [`MAX_CLASSES`]), started as torchvision does (He et al.
    /// 2015, by fan-out), the same on every machine for a seed.
    ///
    /// # Errors
    /// If there are no such networks.
    pub fn new(inputs: usize, classes: usize, seed: u64) -> Result<Self, NetworkError> {
        Self::with_widths(inputs, classes, STAGE_CHANNELS, seed)
    }

    pub(super) fn with_widths(
        inputs: usize,
        classes: usize,
        widths: [usize; 4],
        seed: u64,
    ) -> Result<Self, NetworkError> {
        let shape = Self::shape_of(inputs, classes, widths)?;
        let places = shape.places();
        let mut parameters = vec![0.0; places.parameters];
        let mut running = vec![0.0; places.running];
        let mut chance = ChaCha8Rng::seed_from_u64(seed);
        for place in &places.convs {
            let conv = &place.shape;
            let deviation = (2.0 / (conv.outputs * conv.kernel * conv.kernel) as f32).sqrt();
            let weight = &mut parameters[place.weight..][..conv.weight_len()];
            weight.iter_mut().for_each(|w| *w = deviation * normal(&mut chance));
            parameters[place.gamma..][..conv.outputs].fill(1.0);
            running[place.variance..][..conv.outputs].fill(1.0);
        }
        let bound = 1.0 / (widths[3] as f32).sqrt();
        let mut uniform = || bound * (chance.next_u32() as f32 / (1u64 << 31) as f32 - 1.0);
        parameters[places.fc_weight..][..classes * widths[3]].fill_with(&mut uniform);
        parameters[places.fc_bias..][..classes].fill_with(&mut uniform);
        Ok(Self { shape, parameters, running })
    }

    fn shape_of(inputs: usize, classes: usize, widths: [usize; 4]) -> Result<Shape, NetworkError> {
        if !(1..=2).contains(&inputs) {
            return Err(NetworkError::Inputs(inputs));
        }
        if !(2..=MAX_CLASSES).contains(&classes) {
            return Err(NetworkError::Classes(classes));
        }
        Ok(Shape { inputs, classes, widths })
    }

    /// A network that starts with the convolutions of a backbone; its grey input is the one plane of `conv1`, or
    /// both: the heatmap's weights are `heatmap_share` of it, those of the image the rest.
    ///
    /// The backbone's batch norm is folded, so no layer's statistics are known: every gain is 1 and every shift the
    /// folded bias until [`Trainer::match_norms`](super::train::Trainer::match_norms) has seen a batch, which makes each
    /// layer give what the folded one gives. The last layer starts as in [`Network::new`].
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn from_backbone(
        backbone: &ResNet18,
        inputs: usize,
        heatmap_share: f32,
        classes: usize,
        seed: u64,
    ) -> Result<Self, NetworkError> {
        let mut network = Self::new(inputs, classes, seed)?;
        for (place, conv) in network.shape.places().convs.iter().zip(backbone.convs()) {
            let shape = &place.shape;
            let to = &mut network.parameters[place.weight..][..shape.weight_len()];
            if shape.inputs == conv.inputs {
                pack(shape, &conv.weight, to);
            } else {
                // Two planes share the grey weights, so that the sum keeps its size.
                let taps = shape.kernel * shape.kernel;
                let shares = [heatmap_share, 1.0 - heatmap_share];
                let both = conv.weight.chunks(taps).flat_map(|w| shares.map(|s| w.iter().map(move |w| w * s)));
                pack(shape, &both.flatten().collect::<Vec<_>>(), to);
            }
            network.parameters[place.beta..][..shape.outputs].copy_from_slice(&conv.bias);
        }
        Ok(network)
    }

    /// Input planes.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.shape.inputs
    }

    /// Classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.shape.classes
    }

    /// Whether every parameter and running statistic is a number.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.parameters.iter().chain(&self.running).all(|x| x.is_finite())
    }

    /// Numbers that are trained.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        let all = self.shape.places().tensors(&self.shape).into_iter();
        all.filter(|(_, _, at)| !matches!(at, At::Running(_)))
            .map(|(_, shape, _)| shape.iter().product::<usize>())
            .sum()
    }

    /// Parameters and running statistics under torchvision's names and in its shapes.
    #[must_use]
    pub fn named_tensors(&self) -> Tensors {
        let mut tensors = self.named(&self.parameters);
        for (name, shape, at) in self.shape.places().tensors(&self.shape) {
            if let At::Running(range) = at {
                tensors.insert(name, Tensor { shape, values: self.running[range].to_vec() });
            }
        }
        tensors
    }

    /// Numbers that lie as the parameters do (gradients, moments) under the parameters' names.
    pub(super) fn named(&self, numbers: &[f32]) -> Tensors {
        let places = self.shape.places();
        let tensors = places.tensors(&self.shape).into_iter().filter_map(|(name, shape, at)| {
            let values = match at {
                At::Weight(index) => unpack(&places.convs[index].shape, &numbers[places.convs[index].weight..]),
                At::Parameters(range) => numbers[range].to_vec(),
                At::Running(_) => return None,
            };
            Some((name, Tensor { shape, values }))
        });
        tensors.collect()
    }

    /// The network that [`Network::named_tensors`] has named; `num_batches_tracked`, which torchvision's files have, is
    /// ignored. Planes and classes are read off the shapes of `conv1.weight` and `fc.bias`.
    ///
    /// # Errors
    /// Tensors are missing, superfluous or of another shape, or hold numbers that cannot be.
    pub fn from_named(tensors: &Tensors) -> Result<Self, NetworkError> {
        let size = |name: &str, dimension: usize| {
            let tensor = tensors.get(name).ok_or_else(|| NetworkError::Missing { name: name.into() })?;
            Ok(tensor.shape.get(dimension).copied().unwrap_or(0))
        };
        let mut network = Self::new(size("conv1.weight", 1)?, size("fc.bias", 0)?, 0)?;
        let mut parameters = std::mem::take(&mut network.parameters);
        network.take_named(tensors, &mut parameters, true)?;
        network.parameters = parameters;
        for (name, at) in network.shape.places().tensors(&network.shape).into_iter().map(|(name, _, at)| (name, at)) {
            if let At::Running(range) = at {
                let values = &tensors[&name].values;
                if let Some(index) = values.iter().position(|&v| v < 0.0).filter(|_| name.ends_with("running_var")) {
                    return Err(NetworkError::Value { name, index, value: values[index] });
                }
                network.running[range].copy_from_slice(values);
            }
        }
        Ok(network)
    }

    /// Checks all tensors and copies the parameters to `numbers`, which lie as the parameters do.
    pub(super) fn take_named(&self, tensors: &Tensors, numbers: &mut [f32], running: bool) -> Result<(), NetworkError> {
        let places = self.shape.places();
        let mut known = Vec::new();
        for (name, shape, at) in places.tensors(&self.shape) {
            if !running && matches!(at, At::Running(_)) {
                continue;
            }
            let tensor = tensors.get(&name).ok_or_else(|| NetworkError::Missing { name: name.clone() })?;
            if tensor.shape != shape || tensor.values.len() != shape.iter().product::<usize>() {
                let (got, values) = (tensor.shape.clone(), tensor.values.len());
                return Err(NetworkError::Shape { name, expected: shape, got, values });
            }
            if let Some(index) = tensor.values.iter().position(|v| !v.is_finite()) {
                return Err(NetworkError::Value { name, index, value: tensor.values[index] });
            }
            match at {
                At::Weight(index) => {
                    let conv = &places.convs[index];
                    pack(&conv.shape, &tensor.values, &mut numbers[conv.weight..][..tensor.values.len()]);
                }
                At::Parameters(range) => numbers[range].copy_from_slice(&tensor.values),
                At::Running(_) => {}
            }
            known.push(name);
        }
        let unknown = tensors.keys().find(|name| !known.contains(name) && !name.ends_with(".num_batches_tracked"));
        unknown.map_or(Ok(()), |name| Err(NetworkError::Unknown { name: name.clone() }))
    }

    /// The form that inspection runs, on planes of `side`: every batch norm, with its running statistics, folded into the
    /// convolution before it.
    #[must_use]
    pub fn fold(&self, side: usize) -> Folded {
        let places = self.shape.places();
        let convs = places.convs.iter().map(|place| {
            let channels = place.shape.outputs;
            let norm = Norm {
                scale: self.parameters[place.gamma..][..channels].to_vec(),
                shift: self.parameters[place.beta..][..channels].to_vec(),
                mean: self.running[place.mean..][..channels].to_vec(),
                variance: self.running[place.variance..][..channels].to_vec(),
                epsilon: BN_EPSILON,
            };
            let weight = unpack(&place.shape, &self.parameters[place.weight..]);
            fold(&place.shape, &Trained { inputs: place.shape.inputs, weight, bias: None, norm: Some(norm) })
        });
        let Shape { inputs, classes, widths } = self.shape;
        Folded {
            inputs,
            side,
            classes,
            convs: convs.collect(),
            fc_weight: self.parameters[places.fc_weight..][..classes * widths[3]].to_vec(),
            fc_bias: self.parameters[places.fc_bias..][..classes].to_vec(),
        }
    }
}

impl Folded {
    /// Checks that all numbers are there.
    pub(super) fn check(&self) -> Result<(), NetworkError> {
        let Self { inputs, side, classes, .. } = *self;
        check_side(side)?;
        let network = Network::shape_of(inputs, classes, STAGE_CHANNELS)?;
        let shapes = convolutions(network.inputs, network.widths);
        let wrong = |name: &str, expected: Vec<usize>, got: Vec<usize>, values: usize| {
            Err(NetworkError::Shape { name: name.into(), expected, got, values })
        };
        for (index, shape) in shapes.iter().enumerate() {
            let Some(conv) = self.convs.get(index).filter(|conv| conv.name == shape.name) else {
                return Err(NetworkError::Missing { name: shape.name.clone() });
            };
            let got = vec![conv.outputs, conv.inputs, conv.kernel, conv.kernel];
            if got != shape.weight_shape() || conv.weight.len() != shape.weight_len() || conv.stride != shape.stride {
                return wrong(&shape.name, shape.weight_shape().to_vec(), got, conv.weight.len());
            }
            if conv.bias.len() != shape.outputs {
                return wrong(&shape.name, vec![shape.outputs], vec![conv.bias.len()], conv.bias.len());
            }
        }
        if let Some(extra) = self.convs.get(shapes.len()) {
            return Err(NetworkError::Unknown { name: extra.name.clone() });
        }
        for (name, len, values) in
            [("fc.weight", classes * STAGE_CHANNELS[3], &self.fc_weight), ("fc.bias", classes, &self.fc_bias)]
        {
            if values.len() != len {
                return wrong(name, vec![len], vec![values.len()], values.len());
            }
        }
        Ok(())
    }
}

/// Whether a network can look at planes of this side.
pub(crate) fn check_side(side: usize) -> Result<(), NetworkError> {
    if SIDES.contains(&side) { Ok(()) } else { Err(NetworkError::Side(side)) }
}

/// Close to normal, mean 0, deviation 1: the sum of twelve uniform numbers of 16 bits, with additions only, so that it is
/// the same on every machine.
fn normal(chance: &mut ChaCha8Rng) -> f32 {
    let sum: u32 = (0..6).map(|_| chance.next_u32()).map(|bits| (bits >> 16) + (bits & 0xffff)).sum();
    // Twelve times the mean of 0 to 65535.
    (sum as f32 - 6.0 * 65535.0) / 65536.0
}
