//! Adam with decoupled weight decay (Kingma and Ba 2015; Loshchilov and Hutter 2019).

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::backbone::cpu::memory::Memory;
use crate::simd::{Isa, Kernel, Simd};
use crate::workers::Workers;

/// What a step of training follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Learning rate.
    pub lr: f32,
    /// Decoupled weight decay: each step takes `lr · weight_decay` of every weight of a convolution or of the last layer;
    /// gains, shifts and biases are left alone.
    pub weight_decay: f32,
    /// Decay of the gradient's mean.
    pub beta1: f32,
    /// Decay of the squared gradient's mean.
    pub beta2: f32,
    /// Added to the root of the squared gradient's mean.
    pub epsilon: f32,
    /// Share of each label that is spread over all classes, from 0 to less than 1.
    pub label_smoothing: f32,
    /// A weight for each class; `None` weighs all alike.
    pub class_weights: Option<Vec<f32>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            weight_decay: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            label_smoothing: 0.0,
            class_weights: None,
        }
    }
}

impl Settings {
    /// The first number that cannot be: its name, what it is, and what there is.
    pub(super) fn wrong(&self) -> Option<(&'static str, f32, &'static str)> {
        let positive = |x: f32| x.is_finite() && x >= 0.0;
        let share = |x: f32| (0.0..1.0).contains(&x);
        let (a_number, below_one) = ("a number from 0 on", "from 0 to less than 1");
        let all = [
            ("the learning rate", self.lr, a_number, positive(self.lr)),
            ("the weight decay", self.weight_decay, a_number, positive(self.weight_decay)),
            ("beta1", self.beta1, below_one, share(self.beta1)),
            ("beta2", self.beta2, below_one, share(self.beta2)),
            ("epsilon", self.epsilon, "a number above 0", self.epsilon > 0.0 && self.epsilon.is_finite()),
            ("the label smoothing", self.label_smoothing, below_one, share(self.label_smoothing)),
        ];
        all.into_iter().find(|(.., right)| !right).map(|(name, value, expected, _)| (name, value, expected))
    }
}

/// Numbers of a part of the parameters that one thread moves at a time.
const PART: usize = 1 << 14;

/// One step of Adam over numbers of the same order.
pub(crate) struct Adam {
    pub(crate) parameters: Memory,
    pub(crate) gradients: Memory,
    pub(crate) first: Memory,
    pub(crate) second: Memory,
    pub(crate) count: usize,
    /// The numbers before this are subject to weight decay.
    pub(crate) decayed: usize,
    /// The number of the step, from 1.
    pub(crate) step: u64,
}

impl Adam {
    /// # Safety
    /// All four memories must hold `count` floats, and nobody else use them.
    pub(crate) unsafe fn run(&self, isa: Isa, workers: &Workers, settings: &Settings) {
        let correct = |beta: f32| (1.0 - f64::from(beta).powf(self.step as f64)) as f32;
        let (first, second) = (correct(settings.beta1), correct(settings.beta2));
        let constants = Constants {
            step: settings.lr / first,
            beta1: settings.beta1,
            beta2: settings.beta2,
            root: 1.0 / second.sqrt(),
            epsilon: settings.epsilon,
            keep: 1.0 - settings.lr * settings.weight_decay,
        };
        let next = AtomicUsize::new(0);
        workers.run(&|_| {
            loop {
                let start = next.fetch_add(PART, Ordering::Relaxed);
                if start >= self.count {
                    return;
                }
                let end = self.count.min(start + PART);
                let middle = self.decayed.clamp(start, end);
                isa.run(Part { adam: self, constants, range: start..middle });
                isa.run(Part { adam: self, constants: Constants { keep: 1.0, ..constants }, range: middle..end });
            }
        });
    }
}

#[derive(Clone, Copy)]
struct Constants {
    step: f32,
    beta1: f32,
    beta2: f32,
    root: f32,
    epsilon: f32,
    keep: f32,
}

struct Part<'a> {
    adam: &'a Adam,
    constants: Constants,
    range: Range<usize>,
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Constants { step, beta1, beta2, root, epsilon, keep } = self.constants;
        let (start, len) = (self.range.start, self.range.len());
        // SAFETY: the range lies in all four memories, and is nobody else's.
        let part = |memory: Memory| unsafe { std::slice::from_raw_parts_mut(memory.at(start), len) };
        let Adam { parameters, gradients, first, second, .. } = *self.adam;
        let numbers = part(parameters).iter_mut().zip(part(gradients)).zip(part(first)).zip(part(second));
        for (((p, g), m), v) in numbers {
            *m = beta1 * *m + (1.0 - beta1) * *g;
            *v = beta2 * *v + (1.0 - beta2) * (*g * *g);
            *p = keep * *p - step * *m / (v.sqrt() * root + epsilon);
        }
    }
}
