//! Training on the CPU: forward, backward and [Adam](super::optimiser), in f32.
//!
//! Everything is decided and allocated when a [`Trainer`] is made for a size of batch. The rooms:
//!
//! - `share`: how threads share a step, maps, and the one product of matrices;
//! - `winograd`: 3×3 convolutions with stride 1, by minimal filtering in all three directions;
//! - `direct`: the stem, and convolutions with stride 2;
//! - `norm`: batch norm, ReLU, shortcuts, and the maximum after the stem;
//! - `head`: the last layer and the loss.
//!
//! The threads take items of work in turn; sums over the batch are made in a fixed order, so that a training gives
//! the same to the bit for any number of threads.

mod direct;
mod head;
mod norm;
mod share;
mod winograd;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::backbone::STAGE_STRIDES;
use crate::backbone::cpu::memory::{Aligned, LINE, Layout, Memory};
use crate::simd::Isa;
use crate::workers::Workers;

use super::network::{Network, NetworkError, Place, Places, Tensors, check_side};
use super::optimiser::{Adam, Settings};
use direct::Direct;
use head::{Head, Weighing};
use norm::{Mode, Norm, Pool, Shortcut, partial_sums};
use share::{Context, Map};
use winograd::{Needs, Shared, Winograd};

/// What a step of training says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// The batch's loss before the step.
    pub loss: f64,
    /// How many of the batch were classified correctly before the step.
    pub correct: usize,
}

/// What the samples of a batch are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Labels<'a> {
    /// The class of each.
    pub of: &'a [usize],
    /// The class of the sample that was blended with it.
    pub beside: &'a [usize],
    /// How much of that was blended in, from 0 to 1.
    pub share: f32,
}

impl<'a> From<&'a [usize]> for Labels<'a> {
    /// Samples that are not blended.
    fn from(of: &'a [usize]) -> Self {
        Self { of, beside: of, share: 0.0 }
    }
}

/// Why a step of training was not made, or a training not resumed.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum TrainError {
    /// No trainer for such batches.
    #[error("starting a training: a batch has 1 to {most} samples, not {0}", most = MAX_BATCH)]
    Batch(usize),
    /// The batch has another size than the trainer was made for.
    #[error("training: the batch has {inputs} numbers and {labels} labels, expected {expected} and {batch}")]
    Sizes {
        /// Numbers given.
        inputs: usize,
        /// Labels given.
        labels: usize,
        /// Numbers expected.
        expected: usize,
        /// Labels expected.
        batch: usize,
    },
    /// There is no such class.
    #[error("training: label {label} of sample {index} is none of the {classes} classes")]
    Label {
        /// Which of the batch.
        index: usize,
        /// Its label.
        label: usize,
        /// Classes of the network.
        classes: usize,
    },
    /// Not one weight for each class, or one that is not a positive number.
    #[error("training: class weights are {classes} positive numbers, not {got:?}")]
    ClassWeights {
        /// Classes of the network.
        classes: usize,
        /// The weights given.
        got: Vec<f32>,
    },
    /// A setting is not a number, or out of range.
    #[error("training: {name} is {value}, expected {expected}")]
    Setting {
        /// Which.
        name: &'static str,
        /// What was given.
        value: f32,
        /// What there is.
        expected: &'static str,
    },
    /// The loss is not a number. Parameters are as they were before the step.
    #[error(
        "training: the loss of step {step} is {loss}; lower the learning rate, or look for inputs that are not finite"
    )]
    NotFinite {
        /// The step, from 1.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// The state is of another network, or damaged.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// The largest batch.
pub const MAX_BATCH: usize = 4096;

/// All that a training goes on from: the same steps on the same batches then give the same numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps made.
    pub step: u64,
    /// Parameters and running statistics.
    pub network: Tensors,
    /// The optimiser's mean of each parameter's gradient.
    pub first: Tensors,
    /// Its mean of the squared gradient.
    pub second: Tensors,
}

/// A convolution, its output and the norm of that.
#[derive(Debug)]
struct Layer {
    conv: Conv,
    norm: Norm,
    z: Map,
}

#[derive(Debug)]
enum Conv {
    Winograd(Winograd),
    Direct(Direct),
}

/// A residual block: `y = relu(second(inner) + shortcut(x))`, `inner = relu(first(x))`.
#[derive(Debug)]
struct Block {
    first: Layer,
    second: Layer,
    shortcut: Option<Layer>,
    x: Map,
    inner: Map,
    y: Map,
    /// The gradients of the three; of `x` and `y` the same map where the shortcut is the map itself.
    dx: Map,
    dinner: Map,
    dy: Map,
}

/// Where everything lies in the arena, and the steps.
#[derive(Debug)]
struct Plan {
    places: Places,
    input: Map,
    stem: Layer,
    /// The gradient of the stem's normalised output.
    dstem: Map,
    pool: Pool,
    pooled: Map,
    blocks: Vec<Block>,
    shared: Shared,
    scratch: (usize, usize),
}

/// A ResNet18 in training: parameters, the optimiser's state, and buffers for one size of batch.
pub struct Trainer {
    network: Network,
    batch: usize,
    isa: Isa,
    workers: Arc<Workers>,
    plan: Plan,
    arena: Aligned,
    parameters: Aligned,
    gradients: Aligned,
    first: Aligned,
    second: Aligned,
    head: Head,
    step: u64,
}

impl Plan {
    fn new(layout: &mut Layout, network: &Network, planes_side: usize, batch: usize, threads: usize) -> Self {
        let shape = network.shape;
        let places = shape.places();
        let widest = shape.widths.into_iter().max().unwrap_or(0);
        let partial = layout.reserve(partial_sums(batch, widest));
        let mut next = places.convs.iter();
        let mut next = || next.next().expect("a ResNet18 has twenty convolutions");
        let mut needs = Needs::default();

        let input = Map::new(layout, batch, planes_side, shape.inputs, 3);
        let place = next();
        let z = Map::new(layout, batch, planes_side / 2, shape.widths[0], 0);
        let conv = Direct::new(layout, input, z, 7, place.weight, true);
        let stem = Layer { conv: Conv::Direct(conv), norm: Norm::new(layout, place, partial), z };
        let dstem = Map::new(layout, batch, planes_side / 2, shape.widths[0], 0);
        let pooled = Map::new(layout, batch, planes_side / 4, shape.widths[0], 1);
        let pool = Pool::new(layout, pooled);

        let mut x = pooled;
        let mut dx = Map::new(layout, batch, planes_side / 4, shape.widths[0], 0);
        let mut blocks = Vec::new();
        for (stage, (channels, stride)) in shape.widths.into_iter().zip(STAGE_STRIDES).enumerate() {
            let side = planes_side / stride;
            let dinner = Map::new(layout, batch, side, channels, 0);
            let dstage = if stage == 0 { dx } else { Map::new(layout, batch, side, channels, 0) };
            for block in 0..2 {
                let halves = stage > 0 && block == 0;
                let inner = Map::new(layout, batch, side, channels, 1);
                let y = Map::new(layout, batch, side, channels, 1);
                let mut layer = |x: Map| Layer::new(layout, x, side, next(), partial, &mut needs);
                let (first, second) = (layer(x), layer(inner));
                let shortcut = halves.then(|| layer(x));
                blocks.push(Block { first, second, shortcut, x, inner, y, dx, dinner, dy: dstage });
                (x, dx) = (y, dstage);
            }
        }
        let shared = needs.reserve(layout);
        let scratch = needs.scratch.next_multiple_of(LINE);
        let scratch = (layout.reserve(scratch * threads), scratch);
        Self { places, input, stem, dstem, pool, pooled, blocks, shared, scratch }
    }

    /// All layers, with the map that each reads.
    fn layers(&self) -> impl Iterator<Item = &Layer> {
        let blocks = self.blocks.iter().flat_map(|b| [Some(&b.first), Some(&b.second), b.shortcut.as_ref()]);
        std::iter::once(&self.stem).chain(blocks.flatten())
    }
}

impl Layer {
    fn new(layout: &mut Layout, x: Map, side: usize, place: &Place, partial: usize, needs: &mut Needs) -> Self {
        let shape = &place.shape;
        // The gradient of a stride-2 convolution's input looks one pixel beyond that of its output.
        let pad = usize::from(shape.stride == 2);
        let z = Map::new(layout, x.batch, side, shape.outputs, pad);
        let conv = if shape.stride == 1 {
            let conv = Winograd::new(layout, x.batch, side, shape.inputs, shape.outputs, place.weight);
            *needs = needs.or(conv.needs());
            Conv::Winograd(conv)
        } else {
            let conv = Direct::new(layout, x, z, shape.kernel, place.weight, false);
            *needs = needs.or(conv.needs());
            Conv::Direct(conv)
        };
        Self { conv, norm: Norm::new(layout, place, partial), z }
    }

    /// z, and its norm's scale and shift.
    ///
    /// # Safety
    /// As [`Winograd::forward`] and [`Norm::prepare`].
    unsafe fn forward(&self, context: &Context<'_>, shared: Shared, x: Map, mode: Mode, running: &[f32]) {
        // SAFETY: as the caller promised.
        unsafe {
            match &self.conv {
                Conv::Winograd(conv) => conv.forward(context, shared, x, self.z),
                Conv::Direct(conv) => conv.forward(context, x, self.z),
            }
            self.norm.prepare(context, self.z, mode, running);
        }
    }

    /// The gradient of the weight, and of the input from that of z.
    ///
    /// # Safety
    /// As [`Winograd::backward`].
    unsafe fn backward(&self, context: &Context<'_>, shared: Shared, x: Map, dx: Map, add: bool) {
        // SAFETY: as the caller promised.
        unsafe {
            match &self.conv {
                Conv::Winograd(conv) => conv.backward(context, shared, self.z, dx, add),
                Conv::Direct(conv) => {
                    conv.weight_gradient(context, x, self.z);
                    conv.input_gradient(context, shared, self.z, dx, add);
                }
            }
        }
    }
}

impl Trainer {
    /// Starts a training of `network` on planes of `side` pixels with batches of `batch` samples, on one instruction set and a
    /// set of threads, and allocates all that it needs.
    ///
    /// # Errors
    /// [`TrainError::Batch`] if there are no such batches, and [`TrainError::Network`] if there are no such planes.
    ///
    /// # Panics
    /// If this CPU does not have `isa`.
    pub fn new(
        network: Network,
        side: usize,
        batch: usize,
        isa: Isa,
        workers: Arc<Workers>,
    ) -> Result<Self, TrainError> {
        check_side(side)?;
        if !(1..=MAX_BATCH).contains(&batch) {
            return Err(TrainError::Batch(batch));
        }
        assert!(isa.is_available(), "this CPU has no {isa}");
        let mut layout = Layout::default();
        let plan = Plan::new(&mut layout, &network, side, batch, workers.count());
        let mut parameters = Aligned::zeros(plan.places.parameters);
        parameters.as_mut_slice().copy_from_slice(&network.parameters);
        let zeros = || Aligned::zeros(plan.places.parameters);
        let (gradients, first, second) = (zeros(), zeros(), zeros());
        let (arena, head) = (layout.allocate(), Head::new(&network.shape, batch));
        Ok(Self { network, batch, isa, workers, plan, arena, parameters, gradients, first, second, head, step: 0 })
    }

    /// Goes on from a state, as [`Trainer::new`] otherwise.
    ///
    /// # Errors
    /// As [`Trainer::new`], and [`TrainError::Network`] if the state is damaged.
    ///
    /// # Panics
    /// As [`Trainer::new`].
    pub fn resume(
        state: &State,
        side: usize,
        batch: usize,
        isa: Isa,
        workers: Arc<Workers>,
    ) -> Result<Self, TrainError> {
        let mut trainer = Self::new(Network::from_named(&state.network)?, side, batch, isa, workers)?;
        trainer.network.take_named(&state.first, trainer.first.as_mut_slice(), false)?;
        trainer.network.take_named(&state.second, trainer.second.as_mut_slice(), false)?;
        trainer.step = state.step;
        Ok(trainer)
    }

    /// What [`Trainer::resume`] goes on from.
    #[must_use]
    pub fn state(&self) -> State {
        State {
            step: self.step,
            network: self.network().named_tensors(),
            first: self.network.named(self.first.as_slice()),
            second: self.network.named(self.second.as_slice()),
        }
    }

    /// The network as it is now.
    #[must_use]
    pub fn network(&self) -> Network {
        let parameters = self.parameters.as_slice().to_vec();
        Network { shape: self.network.shape, parameters, running: self.network.running.clone() }
    }

    /// Samples of a batch.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Steps made.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The gradients of the last step, under the parameters' names.
    #[must_use]
    pub fn gradients(&self) -> Tensors {
        self.network.named(self.gradients.as_slice())
    }

    /// One step: forward with the batch's statistics, loss, backward, Adam. `inputs` are batch × planes × side² numbers,
    /// `labels` one class for each sample. Allocates nothing.
    ///
    /// # Errors
    /// If sizes, labels or settings are wrong, or the loss is not finite; nothing is changed then.
    pub fn step(&mut self, inputs: &[f32], labels: &[usize], settings: &Settings) -> Result<StepResult, TrainError> {
        self.step_blended(inputs, Labels::from(labels), settings)
    }

    /// As [`step`](Self::step), of samples that were blended.
    ///
    /// # Errors
    /// As there.
    pub fn step_blended(
        &mut self,
        inputs: &[f32],
        labels: Labels<'_>,
        settings: &Settings,
    ) -> Result<StepResult, TrainError> {
        self.check(inputs, labels, settings)?;
        self.load(inputs);
        self.forward(Mode::Batch);
        let class_weights = settings.class_weights.as_deref();
        let weighing = Weighing { labels, class_weights, label_smoothing: settings.label_smoothing };
        let (loss, correct) = self.head.loss(&weighing);
        if !loss.is_finite() {
            return Err(TrainError::NotFinite { step: self.step + 1, loss });
        }
        self.backward();
        self.update_running(false);
        self.step += 1;
        let Self { parameters, gradients, first, second, plan, .. } = self;
        let [parameters, gradients, first, second] =
            [parameters, gradients, first, second].map(|numbers| Memory::new(numbers.as_mut_slice()));
        let (count, decayed) = (plan.places.parameters, plan.places.decayed);
        let adam = Adam { parameters, gradients, first, second, count, decayed, step: self.step };
        // SAFETY: all four were made with room for all parameters, and this borrows them for itself.
        unsafe { adam.run(self.isa, &self.workers, settings) };
        Ok(StepResult { loss, correct })
    }

    /// After [`Network::from_backbone`]: sets gain and shift of every norm so that on this batch each layer gives what the
    /// folded one gives, and the running statistics to those of the batch. To be called once, before the first step.
    ///
    /// # Errors
    /// If the batch has another size than the trainer was made for.
    pub fn match_norms(&mut self, inputs: &[f32]) -> Result<(), TrainError> {
        self.check_size(inputs, self.batch)?;
        self.load(inputs);
        self.forward(Mode::Match);
        self.update_running(true);
        Ok(())
    }

    /// batch × classes logits with the running statistics, as inspection computes them.
    ///
    /// # Errors
    /// If the batch has another size than the trainer was made for.
    pub fn logits(&mut self, inputs: &[f32]) -> Result<&[f32], TrainError> {
        self.check_size(inputs, self.batch)?;
        self.load(inputs);
        self.forward(Mode::Running);
        Ok(&self.head.logits)
    }

    fn check_size(&self, inputs: &[f32], labels: usize) -> Result<(), TrainError> {
        let expected = self.batch * self.network.shape.inputs * self.plan.input.side.pow(2);
        if inputs.len() != expected || labels != self.batch {
            return Err(TrainError::Sizes { inputs: inputs.len(), labels, expected, batch: self.batch });
        }
        Ok(())
    }

    fn check(&self, inputs: &[f32], labels: Labels<'_>, settings: &Settings) -> Result<(), TrainError> {
        let classes = self.network.shape.classes;
        for labels in [labels.of, labels.beside] {
            self.check_size(inputs, labels.len())?;
            if let Some(index) = labels.iter().position(|&label| label >= classes) {
                return Err(TrainError::Label { index, label: labels[index], classes });
            }
        }
        if !(0.0..=1.0).contains(&labels.share) {
            return Err(TrainError::Setting {
                name: "the blended share",
                value: labels.share,
                expected: "from 0 to 1",
            });
        }
        if let Some((name, value, expected)) = settings.wrong() {
            return Err(TrainError::Setting { name, value, expected });
        }
        match &settings.class_weights {
            Some(weights) if weights.len() != classes || !weights.iter().all(|w| w.is_finite() && *w > 0.0) => {
                Err(TrainError::ClassWeights { classes, got: weights.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Copies a batch into the input map, planes side by side.
    fn load(&mut self, inputs: &[f32]) {
        let (map, memory) = (self.plan.input, Memory::new(self.arena.as_mut_slice()));
        let side = map.side;
        for (row, values) in inputs.chunks_exact(side).enumerate() {
            let (b, plane, y) = (row / side / map.channels, row / side % map.channels, row % side);
            // SAFETY: the map lies in the arena, which this borrows for itself.
            let to = unsafe { map.line_mut(memory, b, y) };
            to.iter_mut().skip(plane).step_by(map.channels).zip(values).for_each(|(to, &x)| *to = x);
        }
    }

    fn context(&mut self) -> (Context<'_>, &Plan, &mut Head, &mut Network) {
        let Self { isa, workers, plan, arena, parameters, gradients, head, network, .. } = self;
        let [arena, parameters, gradients] =
            [arena, parameters, gradients].map(|numbers| Memory::new(numbers.as_mut_slice()));
        let scratch = plan.scratch;
        (Context { isa: *isa, workers, arena, parameters, gradients, scratch }, plan, head, network)
    }

    /// Everything up to the logits.
    fn forward(&mut self, mode: Mode) {
        let (context, plan, head, network) = self.context();
        let (context, shared, running) = (&context, plan.shared, network.running.as_slice());
        // SAFETY: `self` is borrowed for itself, so nobody else uses arena, parameters or gradients; all maps were laid out
        // in this arena for these layers.
        unsafe {
            plan.stem.forward(context, shared, plan.input, mode, running);
            plan.pool.forward(context, &plan.stem.norm, plan.stem.z, plan.pooled);
            for Block { first, second, shortcut, x, inner, y, .. } in &plan.blocks {
                first.forward(context, shared, *x, mode, running);
                first.norm.apply(context, first.z, Shortcut::None, *inner);
                second.forward(context, shared, *inner, mode, running);
                let beside = match shortcut {
                    None => Shortcut::Map(*x),
                    Some(layer) => {
                        layer.forward(context, shared, *x, mode, running);
                        Shortcut::Norm(&layer.norm, layer.z)
                    }
                };
                second.norm.apply(context, second.z, beside, *y);
            }
            let y = plan.blocks[plan.blocks.len() - 1].y;
            let share = 1.0 / (y.side * y.side) as f32;
            for (b, mean) in head.mean.chunks_exact_mut(y.channels).enumerate() {
                mean.fill(0.0);
                for pixel in (0..y.side).flat_map(|row| y.line(context.arena, b, row).chunks_exact(y.channels)) {
                    mean.iter_mut().zip(pixel).for_each(|(mean, y)| *mean += share * y);
                }
            }
            let (weight, bias) = fc(context.parameters, &plan.places, network);
            head.forward(weight, bias);
        }
    }

    /// All gradients, after [`Trainer::forward`] and the loss.
    fn backward(&mut self) {
        let (context, plan, head, network) = self.context();
        let (context, shared) = (&context, plan.shared);
        // SAFETY: as in `forward`.
        unsafe {
            let (weight, _) = fc(context.parameters, &plan.places, network);
            let (dw, db) = fc(context.gradients, &plan.places, network);
            head.backward(weight, dw, db);
            let dy = plan.blocks[plan.blocks.len() - 1].dy;
            let share = 1.0 / (dy.side * dy.side) as f32;
            for (b, gradient) in head.gradient.chunks_exact(dy.channels).enumerate() {
                for row in 0..dy.side {
                    for pixel in dy.line_mut(context.arena, b, row).chunks_exact_mut(dy.channels) {
                        pixel.iter_mut().zip(gradient).for_each(|(to, g)| *to = share * g);
                    }
                }
            }
            for Block { first, second, shortcut, x, inner, y, dx, dinner, dy } in plan.blocks.iter().rev() {
                second.norm.backward(context, *dy, Some(*y), second.z);
                second.backward(context, shared, *inner, *dinner, false);
                first.norm.backward(context, *dinner, Some(*inner), first.z);
                // Where the shortcut is the map itself, its gradient is there already: `dx` is `dy`.
                first.backward(context, shared, *x, *dx, shortcut.is_none());
                if let Some(layer) = shortcut {
                    layer.norm.backward(context, *dy, None, layer.z);
                    layer.backward(context, shared, *x, *dx, true);
                }
            }
            plan.pool.backward(context, plan.blocks[0].dx, plan.dstem);
            plan.stem.norm.backward(context, plan.dstem, None, plan.stem.z);
            if let Conv::Direct(conv) = &plan.stem.conv {
                conv.weight_gradient(context, plan.input, plan.stem.z);
            }
        }
    }

    fn update_running(&mut self, whole: bool) {
        let (context, plan, _, network) = self.context();
        for layer in plan.layers() {
            // SAFETY: nobody else uses the arena.
            unsafe { layer.norm.update(context.arena, layer.z.pixels(), whole, &mut network.running) };
        }
    }
}

/// Weight and bias of the last layer, or their gradients.
///
/// # Safety
/// Nobody else may use them meanwhile.
unsafe fn fc<'a>(memory: Memory, places: &Places, network: &Network) -> (&'a mut [f32], &'a mut [f32]) {
    let (classes, features) = (network.shape.classes, network.shape.widths[3]);
    // SAFETY: as the caller promised; they don't overlap.
    unsafe {
        (
            std::slice::from_raw_parts_mut(memory.at(places.fc_weight), classes * features),
            std::slice::from_raw_parts_mut(memory.at(places.fc_bias), classes),
        )
    }
}

#[cfg(test)]
mod tests;
