//! From what was seen of a cell to probabilities: the network, the kernel machine, or both.
//!
//! Cells have levels of rising severity, from 0. Between each level and the next lies a border; at each border the judge
//! says the log-odds that a cell lies above it: a weighted sum of what the network and the kernel machine say, with
//! weights from labelled cells that neither has learnt from. That is Platt's calibration; with one part alone it is
//! temperature and bias (Guo et al. 2017).

mod fit;
pub mod logistic;
mod stored;

use std::sync::Arc;

use half::f16;
use serde::{Deserialize, Serialize};

use super::evidence::{MAX_VIEWS, Witness};
use super::infer::Classifier;
use super::kernel::{KernelError, KernelMachine, Scratch};
use super::network::{Folded, NetworkError, check_side};
use super::planes::{Planes, turned};
use crate::simd::Isa;
use crate::workers::Workers;

pub use fit::{Cells, Event, JudgeError, JudgeSettings, Taught, fit};

/// Most levels.
pub const MAX_LEVELS: usize = 8;

/// In which order the eight ways of a square are asked: the first two are mirror images.
const WAYS: [usize; 8] = [0, 4, 2, 6, 1, 5, 3, 7];

/// How the log-odds at a border come about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Border {
    /// Weight of the network's log-odds.
    pub network: f32,
    /// Weight of the kernel machine's score.
    pub kernel: f32,
    /// Added.
    pub shift: f32,
}

/// What a judge is, beside its numbers: for the header of a model file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "stored::Layout", into = "stored::Layout")]
pub struct Description {
    /// Levels of cells.
    pub levels: u32,
    /// What the network sees; none if it is not asked.
    pub planes: Option<Planes>,
    /// Side of these planes, in pixels; [`SIDE`](super::SIDE) if there are none.
    pub side: u32,
    /// Ways of the square that the network is asked about: 1, 2, 4 or 8.
    pub flips: u32,
    /// Views of the image whose features are pooled: 1 to [`MAX_VIEWS`]. Each one more costs a run of the backbone.
    pub views: u32,
    /// The kernel machine; none if it is not asked.
    pub kernel: Option<super::kernel::Description>,
    /// One a border: levels − 1.
    pub borders: Vec<Border>,
}

/// A judge that was taught.
#[derive(Clone, Debug)]
pub struct Judge {
    description: Description,
    network: Option<Folded>,
    kernel: Option<KernelMachine>,
}

/// What a judge says of a cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Opinion {
    levels: usize,
    /// Log-odds at each border.
    logits: [f32; MAX_LEVELS - 1],
}

impl Opinion {
    /// The log-odds that the cell lies above each border, from the lowest.
    #[must_use]
    pub fn logits(&self) -> &[f32] {
        &self.logits[..self.levels - 1]
    }

    /// The probability that the cell is of level `level` or above: 1 at level 0, never rising with the level.
    ///
    /// # Panics
    /// If there is no such level.
    #[must_use]
    pub fn at_least(&self, level: usize) -> f32 {
        assert!(level < self.levels, "level {level} of {}", self.levels);
        self.logits[..level].iter().fold(1.0, |least, &logit| least.min(sigmoid(logit)))
    }

    /// The probability of each level; they sum to 1.
    #[must_use]
    pub fn probabilities(&self) -> [f32; MAX_LEVELS] {
        let mut all = [0.0; MAX_LEVELS];
        for level in 0..self.levels {
            let beyond = if level + 1 < self.levels { self.at_least(level + 1) } else { 0.0 };
            all[level] = self.at_least(level) - beyond;
        }
        all
    }
}

/// The probability that has these log-odds.
#[must_use]
pub fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

impl Judge {
    /// What it is.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The network that it asks, folded for inspection and rounded to half precision, if it asks one.
    #[must_use]
    pub fn network(&self) -> Option<&Folded> {
        self.network.as_ref()
    }

    /// The kernel machine that it asks, if it asks one.
    #[must_use]
    pub fn kernel(&self) -> Option<&KernelMachine> {
        self.kernel.as_ref()
    }
}

impl Description {
    /// Views of the image whose features are pooled: none if no kernel machine looks at them.
    #[must_use]
    pub fn pooled_views(&self) -> usize {
        let looks = self.kernel.as_ref().is_some_and(|kernel| kernel.uses.pooled());
        if looks { self.views as usize } else { 0 }
    }

    /// The ways, as [`turned`] numbers them, in which the planes are laid before the network.
    #[must_use]
    pub fn ways(&self) -> &'static [usize] {
        &WAYS[..self.flips as usize]
    }

    /// Whether the numbers are in range and agree.
    ///
    /// # Errors
    /// What is wrong.
    pub fn validate(&self) -> Result<(), JudgeError> {
        let wrong = |what: &str| Err(JudgeError::Parts(what.into()));
        if !(2..=MAX_LEVELS as u32).contains(&self.levels) || self.borders.len() + 1 != self.levels as usize {
            return wrong("its borders do not fit its levels");
        }
        check_side(self.side as usize)?;
        if !matches!(self.flips, 1 | 2 | 4 | 8) {
            return wrong("it asks about neither 1, 2, 4 nor 8 ways of the square");
        }
        if !(1..=MAX_VIEWS as u32).contains(&self.views) {
            return wrong("it has too few or too many views");
        }
        if self.planes.is_none() && self.kernel.is_none() {
            return wrong("it asks nobody");
        }
        let finite = |b: &Border| [b.network, b.kernel, b.shift].iter().all(|x| x.is_finite());
        if !self.borders.iter().all(finite) {
            return wrong("a weight of a border is not finite");
        }
        if self.borders.iter().any(|b| b.network < 0.0 || b.kernel < 0.0) {
            return wrong("a weight of a border is negative");
        }
        match &self.kernel {
            Some(kernel) if kernel.targets + 1 != self.levels => wrong("its kernel machine has other levels"),
            Some(kernel) => Ok(kernel.validate()?),
            None => Ok(()),
        }
    }
}

/// A judge at work: owns its buffers and allocates nothing once made.
pub struct Bench {
    judge: Arc<Judge>,
    classifier: Option<Classifier>,
    scratch: Option<Scratch>,
    turned: Vec<f32>,
    sum: Vec<f32>,
    one: Vec<f32>,
    scores: Vec<f32>,
}

impl Bench {
    /// Packs the network for a set of threads.
    ///
    /// # Errors
    /// If a tensor has another shape than the network's.
    pub fn new(judge: Arc<Judge>, isa: Isa, workers: Arc<Workers>) -> Result<Self, NetworkError> {
        let classifier = judge.network.as_ref().map(|net| Classifier::new(net, isa, workers)).transpose()?;
        let scratch = judge.kernel.as_ref().map(|kernel| Scratch::with_isa(kernel, isa));
        let levels = judge.description.levels as usize;
        Ok(Self {
            classifier,
            scratch,
            turned: vec![0.0; Planes::HeatmapAndImage.count() * (judge.description.side as usize).pow(2)],
            sum: vec![0.0; levels],
            one: vec![0.0; levels],
            scores: vec![0.0; levels - 1],
            judge,
        })
    }

    /// The judge.
    #[must_use]
    pub fn judge(&self) -> &Arc<Judge> {
        &self.judge
    }

    /// What the judge says of a cell of a kind (0 where there is one kind); `None` if a number on the way is not finite.
    pub fn hear(&mut self, witness: &Witness, kind: usize) -> Option<Opinion> {
        self.weigh(witness.planes(), witness.row(), kind)
    }

    /// As [`hear`](Self::hear), of planes and row.
    pub fn weigh(&mut self, planes: &[f32], row: &[f32], kind: usize) -> Option<Opinion> {
        self.sum.fill(0.0);
        if self.classifier.is_some() {
            self.ask_network(planes);
        }
        self.conclude(row, kind)
    }

    /// As [`weigh`](Self::weigh), where a device has asked the network: `logits` are those of each level, for each of the
    /// [ways](Description::ways) in turn; whatever they are if the judge asks no network.
    pub fn weigh_logits(&mut self, logits: &[f16], row: &[f32], kind: usize) -> Option<Opinion> {
        let (flips, levels) = (self.judge.description.flips as usize, self.sum.len());
        // Fewer or more than these are of something else, and say nothing.
        self.sum.fill(if logits.len() == flips * levels { 0.0 } else { f32::NAN });
        for way in logits.chunks_exact(levels) {
            self.sum.iter_mut().zip(way).for_each(|(sum, x)| *sum += x.to_f32() / flips as f32);
        }
        self.conclude(row, kind)
    }

    /// What the network's logits in `sum` and the kernel machine say together.
    fn conclude(&mut self, row: &[f32], kind: usize) -> Option<Opinion> {
        let judge = Arc::clone(&self.judge);
        let levels = judge.description.levels as usize;
        self.scores.fill(0.0);
        if let (Some(kernel), Some(scratch)) = (&judge.kernel, &mut self.scratch) {
            kernel.scores(row, kind, scratch, &mut self.scores);
        }
        let mut opinion = Opinion { levels, logits: [0.0; MAX_LEVELS - 1] };
        for (border, weights) in judge.description.borders.iter().enumerate() {
            let network = if self.classifier.is_some() { log_odds(&self.sum, border) } else { 0.0 };
            let logit = weights.network * network + weights.kernel * self.scores[border] + weights.shift;
            // Beyond this a probability is 0 or 1 in f32; a part that is not finite is not hidden by a weight of 0.
            if !logit.is_finite() || !network.is_finite() || !self.scores[border].is_finite() {
                return None;
            }
            opinion.logits[border] = logit.clamp(-80.0, 80.0);
        }
        Some(opinion)
    }

    /// The network's logits, averaged over the ways of the square, to `sum`.
    fn ask_network(&mut self, planes: &[f32]) {
        let Some(classifier) = &mut self.classifier else { return };
        let ways = self.judge.description.ways();
        let (count, side) = (classifier.planes(), classifier.side());
        let plane = side * side;
        for &way in ways {
            let mut input: [&[f32]; 2] = [&[]; 2];
            for (input, (from, to)) in
                input.iter_mut().zip(planes.chunks_exact(plane).zip(self.turned.chunks_exact_mut(plane)))
            {
                if way == 0 {
                    *input = from;
                } else {
                    turned(way).apply(from, to, side);
                    *input = to;
                }
            }
            // Planes and places are of the classifier's size by construction; were they not, no number would be said.
            if classifier.logits(&input[..count], &mut self.one).is_err() {
                self.one.fill(f32::NAN);
            }
            self.sum.iter_mut().zip(&self.one).for_each(|(sum, x)| *sum += x / ways.len() as f32);
        }
    }
}

/// The log-odds of the levels above a border, by the logits of all levels.
fn log_odds(logits: &[f32], border: usize) -> f32 {
    let log_sum = |part: &[f32]| {
        let largest = part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        largest + part.iter().map(|x| (x - largest).exp()).sum::<f32>().ln()
    };
    log_sum(&logits[border + 1..]) - log_sum(&logits[..=border])
}

impl From<KernelError> for JudgeError {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error)
    }
}

#[cfg(test)]
mod tests;
