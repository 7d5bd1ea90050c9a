//! How the network learns from labelled cells: which batches, at which rate, until when.
//!
//! A [`Course`] is stepped by its caller, who prints, saves checkpoints and may stop at any step: batches depend on seed
//! and step alone, so that a resumed course makes the steps that an undisturbed one would have made.

mod batches;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::network::{Network, NetworkError, Tensors};
use super::optimiser::Settings as StepSettings;
use super::train::{State, TrainError, Trainer};
use super::{SIDE, softmax};
use crate::sampling::{generator, shuffle};
use crate::simd::Isa;
use crate::workers::Workers;
use batches::Batches;

/// What decides how a network learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearnSettings {
    /// Steps at most.
    pub steps: u32,
    /// Samples of a step.
    pub batch: u32,
    /// Largest learning rate; it rises to that over the first [`warmup`](Self::warmup) steps and falls along a cosine.
    pub lr: f32,
    /// Steps until the largest rate.
    pub warmup: u32,
    /// As [`StepSettings::weight_decay`].
    pub weight_decay: f32,
    /// As [`StepSettings::label_smoothing`].
    pub label_smoothing: f32,
    /// How far rare levels are drawn as often as frequent ones: 0 draws cells alike, 1 draws levels alike.
    pub balance: f32,
    /// Whether each cell of a batch is blended with the next, and so is its label (mixup, Zhang et al. 2018).
    pub mixing: bool,
    /// Whether planes are also moved by up to a twentieth of their side, and the image made a little darker or brighter.
    pub jitter: bool,
    /// The part of the backbone's first weights that looks at the heatmap at the start, where there is an image beside it.
    pub heatmap_share: f32,
    /// Steps between two looks at the validation cells.
    pub check_every: u32,
    /// Looks without a smaller validation loss after which the course ends.
    pub patience: u32,
    /// Seed of batches, flips and the last layer's start.
    pub seed: u64,
}

impl Default for LearnSettings {
    fn default() -> Self {
        Self {
            steps: 400,
            batch: 32,
            lr: 1e-3,
            warmup: 20,
            weight_decay: 5e-2,
            label_smoothing: 0.05,
            balance: 1.0,
            mixing: false,
            jitter: false,
            heatmap_share: 0.5,
            check_every: 20,
            patience: 6,
            seed: 1,
        }
    }
}

/// Labelled cells: what the network sees of them, and their levels.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    /// Input planes of a cell: 1 or 2.
    pub planes: usize,
    /// Their side, in pixels.
    pub side: usize,
    /// Levels that are told apart, in rising severity.
    pub levels: usize,
    /// One cell after another, each `planes × side × side` numbers.
    pub inputs: &'a [f32],
    /// The level of each cell, from 0.
    pub of: &'a [usize],
}

impl<'a> Samples<'a> {
    /// The planes of a cell.
    fn input(&self, index: usize) -> &'a [f32] {
        &self.inputs[index * self.size()..][..self.size()]
    }

    /// Numbers of a plane.
    fn plane(&self) -> usize {
        self.side * self.side
    }

    /// Numbers of a cell.
    fn size(&self) -> usize {
        self.planes * self.plane()
    }
}

/// Why a course was not begun or ended early.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum LearnError {
    /// Nothing to tell apart.
    #[error(
        "training: all {cells} cells that can be judged are of one class; label cells of at least two (good and defective)"
    )]
    OneLevel {
        /// Cells that can be judged.
        cells: usize,
    },
    /// No cell to watch the course by.
    #[error("training: {0} cells are too few, at least {MIN_CELLS} labelled cells that can be judged are needed")]
    TooFew(usize),
    /// A setting is out of range.
    #[error("training: {name} is {value}, expected {expected}")]
    Setting {
        /// Which.
        name: &'static str,
        /// What was given.
        value: f64,
        /// What there is.
        expected: &'static str,
    },
    /// An input is NaN or infinite.
    #[error("training: the planes of cell {0} hold numbers that are not finite")]
    Input(usize),
    /// Parameters or validation loss are not numbers any more.
    #[error(
        "training: after step {step} the network's numbers are not finite; lower the learning rate ({lr:e} now); \
         the last checkpoint is from before"
    )]
    Diverged {
        /// The step.
        step: u64,
        /// Its learning rate.
        lr: f32,
    },
    /// The checkpoint belongs to another course.
    #[error(
        "resuming a training: the checkpoint is of {0}; begin with another checkpoint file, or with the same settings and cells"
    )]
    OtherCourse(&'static str),
    /// A step failed.
    #[error(transparent)]
    Step(#[from] TrainError),
    /// The network cannot be made.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Fewest labelled cells of a course, training and validation together.
pub const MIN_CELLS: usize = 16;

/// What a step gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// From 1.
    pub step: u64,
    /// Learning rate.
    pub lr: f32,
    /// Loss of the batch before the step.
    pub loss: f64,
    /// Share of the batch that was classified correctly before the step.
    pub accuracy: f64,
    /// The look at the validation cells after the step, if there was one.
    pub validation: Option<Check>,
}

/// A look at the validation cells.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Cross entropy, levels weighed as they are drawn for the batches.
    pub loss: f64,
    /// Share of cells whose likeliest level is theirs.
    pub accuracy: f64,
    /// F1 of the highest level against all others.
    pub f1: f64,
}

/// Which cells a course learns from, and which it is watched by.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// Learnt from.
    pub training: Vec<usize>,
    /// Watched.
    pub validation: Vec<usize>,
}

impl Split {
    /// Takes `share` of every stratum (for instance level and type) for validation, at least one of those with two cells
    /// or more; the same for a seed.
    #[must_use]
    pub fn stratified(strata: &[usize], share: f64, seed: u64) -> Self {
        let mut rng = generator(seed ^ 0x5eed_5711);
        let (mut training, mut validation) = (Vec::new(), Vec::new());
        for stratum in 0..strata.iter().max().map_or(0, |most| most + 1) {
            let mut members: Vec<usize> = (0..strata.len()).filter(|&i| strata[i] == stratum).collect();
            shuffle(&mut rng, &mut members);
            let kept = ((members.len() as f64 * share).round() as usize).max(1).min(members.len().saturating_sub(1));
            validation.extend_from_slice(&members[..kept]);
            training.extend_from_slice(&members[kept..]);
        }
        training.sort_unstable();
        validation.sort_unstable();
        Self { training, validation }
    }
}

/// The network with the smallest validation loss so far.
#[derive(Clone, Debug)]
struct Best {
    step: u64,
    loss: f64,
    network: Network,
}

/// What [`Course::resume`] goes on from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    settings: LearnSettings,
    /// BLAKE3 over the samples and the split.
    samples: [u8; 32],
    state: State,
    best: Option<(u64, f64, Tensors)>,
    history: Vec<StepRecord>,
}

/// A network that learns.
pub struct Course<'a> {
    settings: LearnSettings,
    samples: Samples<'a>,
    split: &'a Split,
    id: [u8; 32],
    trainer: Trainer,
    batches: Batches<'a>,
    best: Option<Best>,
    history: Vec<StepRecord>,
}

impl LearnSettings {
    /// For planes of `side` pixels. On larger ones than [`SIDE`] the network looks at the image as the backbone does, and is
    /// fine-tuned from there: slowly, to the last step, on cells that never look the same twice.
    #[must_use]
    pub fn for_side(side: usize) -> Self {
        let usual = Self::default();
        if side <= SIDE {
            return usual;
        }
        let (mixing, jitter, heatmap_share) = (true, true, 0.0);
        let (steps, lr, warmup, balance, check_every, patience) = (1200, 3e-4, 60, 0.0, 60, 0);
        Self { steps, lr, warmup, balance, check_every, patience, mixing, jitter, heatmap_share, ..usual }
    }

    /// Checks every number's range.
    ///
    /// # Errors
    /// The first that is out of range.
    pub fn validate(&self) -> Result<(), LearnError> {
        let share = self.heatmap_share;
        let checks: [(&'static str, f64, bool, &'static str); 8] = [
            ("the number of steps", self.steps.into(), self.steps > 0, "at least 1"),
            ("the batch", self.batch.into(), (2..=1024).contains(&self.batch), "2 to 1024"),
            ("the learning rate", self.lr.into(), self.lr > 0.0 && self.lr <= 1.0, "above 0, up to 1"),
            ("the weight decay", self.weight_decay.into(), (0.0..=1.0).contains(&self.weight_decay), "0 to 1"),
            (
                "the label smoothing",
                self.label_smoothing.into(),
                (0.0..0.5).contains(&self.label_smoothing),
                "0 to 0.5",
            ),
            ("the balance", self.balance.into(), (0.0..=1.0).contains(&self.balance), "0 to 1"),
            ("the heatmap's share", share.into(), (0.0..=1.0).contains(&share), "0 to 1"),
            ("the number of steps between checks", self.check_every.into(), self.check_every > 0, "at least 1"),
        ];
        match checks.into_iter().find(|check| !check.2) {
            Some((name, value, _, expected)) => Err(LearnError::Setting { name, value, expected }),
            None => Ok(()),
        }
    }

    /// The learning rate of a step, from 1.
    fn rate(&self, step: u64) -> f32 {
        let (step, warmup, steps) = (step as f64, f64::from(self.warmup), f64::from(self.steps));
        let rise = if step <= warmup { step / (warmup + 1.0) } else { 1.0 };
        let fall = 0.5 * (1.0 + (std::f64::consts::PI * ((step - 1.0) / steps).min(1.0)).cos());
        (f64::from(self.lr) * rise * fall) as f32
    }
}

impl<'a> Course<'a> {
    /// Begins with `start`; with `match_norms` it is a network of [`Network::from_backbone`], whose norms the first batch
    /// sets.
    ///
    /// # Errors
    /// If the cells are too few or of one level, a number is not finite, or a setting is out of range.
    pub fn begin(
        start: Network,
        match_norms: bool,
        samples: Samples<'a>,
        split: &'a Split,
        settings: LearnSettings,
        workers: Arc<Workers>,
    ) -> Result<Self, LearnError> {
        Self::check(&samples, split, &settings)?;
        let trainer = Trainer::new(start, samples.side, settings.batch as usize, Isa::detect(), workers)?;
        let mut course = Self::with(trainer, samples, split, settings);
        if match_norms {
            course.batches.draw(0);
            course.trainer.match_norms(course.batches.inputs())?;
        }
        Ok(course)
    }

    /// Goes on from a checkpoint of the same settings and cells.
    ///
    /// # Errors
    /// As [`Course::begin`], and if the checkpoint is of another course or damaged.
    pub fn resume(
        saved: Saved,
        samples: Samples<'a>,
        split: &'a Split,
        settings: LearnSettings,
        workers: Arc<Workers>,
    ) -> Result<Self, LearnError> {
        Self::check(&samples, split, &settings)?;
        if saved.settings != settings {
            return Err(LearnError::OtherCourse("other settings"));
        }
        if saved.samples != identity(&samples, split) {
            return Err(LearnError::OtherCourse("other cells, or of cells measured otherwise"));
        }
        let trainer = Trainer::resume(&saved.state, samples.side, settings.batch as usize, Isa::detect(), workers)?;
        let kept = trainer.network();
        if (kept.inputs(), kept.classes()) != (samples.planes, samples.levels) {
            return Err(LearnError::OtherCourse("another network"));
        }
        let best = match saved.best {
            Some((step, loss, tensors)) => Some(Best { step, loss, network: Network::from_named(&tensors)? }),
            None => None,
        };
        Ok(Self { best, history: saved.history, ..Self::with(trainer, samples, split, settings) })
    }

    fn with(trainer: Trainer, samples: Samples<'a>, split: &'a Split, settings: LearnSettings) -> Self {
        let batches = Batches::new(samples, &split.training, &settings);
        let (id, best, history) = (identity(&samples, split), None, Vec::new());
        Self { settings, samples, split, id, trainer, batches, best, history }
    }

    fn check(samples: &Samples<'_>, split: &Split, settings: &LearnSettings) -> Result<(), LearnError> {
        settings.validate()?;
        let cells = samples.of.len();
        if cells < MIN_CELLS || split.validation.is_empty() || split.training.is_empty() {
            return Err(LearnError::TooFew(cells));
        }
        let first = samples.of[split.training[0]];
        if split.training.iter().all(|&cell| samples.of[cell] == first) {
            return Err(LearnError::OneLevel { cells });
        }
        match (0..cells).find(|&cell| samples.input(cell).iter().any(|x| !x.is_finite())) {
            Some(cell) => Err(LearnError::Input(cell)),
            None => Ok(()),
        }
    }

    /// Makes the next step; `None` if the course is over: all steps are made, or the validation loss has not fallen for
    /// [`LearnSettings::patience`] looks.
    ///
    /// # Errors
    /// [`LearnError::Diverged`] or [`TrainError::NotFinite`] name the step; [`Course::saved`] would no longer be good, the
    /// checkpoint before is.
    pub fn step(&mut self) -> Result<Option<StepRecord>, LearnError> {
        let step = self.trainer.steps() + 1;
        if step > u64::from(self.settings.steps) || self.is_stale() {
            return Ok(None);
        }
        self.batches.draw(step);
        let lr = self.settings.rate(step);
        let settings = StepSettings {
            lr,
            weight_decay: self.settings.weight_decay,
            label_smoothing: self.settings.label_smoothing,
            ..StepSettings::default()
        };
        let result = self.trainer.step_blended(self.batches.inputs(), self.batches.labels(), &settings)?;
        let accuracy = result.correct as f64 / f64::from(self.settings.batch);
        let looks = step.is_multiple_of(self.settings.check_every.into()) || step == u64::from(self.settings.steps);
        let validation = if looks { Some(self.look(step, lr)?) } else { None };
        let record = StepRecord { step, lr, loss: result.loss, accuracy, validation };
        self.history.push(record);
        Ok(Some(record))
    }

    fn is_stale(&self) -> bool {
        let Some(best) = &self.best else { return false };
        let since = self.history.iter().filter(|r| r.validation.is_some() && r.step > best.step).count();
        self.settings.patience > 0 && since >= self.settings.patience as usize
    }

    fn look(&mut self, step: u64, lr: f32) -> Result<Check, LearnError> {
        let logits = self.logits(&self.split.validation)?;
        let levels = self.samples.levels;
        let mut count = vec![0usize; levels];
        self.split.validation.iter().for_each(|&cell| count[self.samples.of[cell]] += 1);
        let weight: Vec<f64> = (0..levels).map(|l| self.batches.shares()[l] / count[l].max(1) as f64).collect();
        let (mut loss, mut total, mut correct) = (0.0, 0.0, 0);
        let (mut hit, mut called, mut there) = (0usize, 0usize, 0usize);
        for (&cell, logits) in self.split.validation.iter().zip(logits.chunks_exact(levels)) {
            let level = self.samples.of[cell];
            let mut p = logits.to_vec();
            softmax(&mut p, 1.0);
            loss -= weight[level] * f64::from(p[level].max(f32::MIN_POSITIVE)).ln();
            if p.iter().any(|p| p.is_nan()) {
                loss = f64::NAN;
            }
            total += weight[level];
            let likeliest = (0..levels).max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap_or(0);
            correct += usize::from(likeliest == level);
            let top = levels - 1;
            hit += usize::from(likeliest == top && level == top);
            called += usize::from(likeliest == top);
            there += usize::from(level == top);
        }
        let loss = loss / total;
        let network = self.trainer.network();
        if !loss.is_finite() || !network.is_finite() {
            return Err(LearnError::Diverged { step, lr });
        }
        if self.best.as_ref().is_none_or(|best| loss < best.loss) {
            self.best = Some(Best { step, loss, network });
        }
        let f1 = if called + there == 0 { 0.0 } else { 2.0 * hit as f64 / (called + there) as f64 };
        Ok(Check { loss, accuracy: correct as f64 / self.split.validation.len() as f64, f1 })
    }

    /// Logits of cells by the network as it is now, unturned.
    fn logits(&mut self, cells: &[usize]) -> Result<Vec<f32>, LearnError> {
        let batch = self.settings.batch as usize;
        let mut all = Vec::with_capacity(cells.len() * self.samples.levels);
        for part in cells.chunks(batch) {
            // What is missing to a whole batch is filled with its last cell.
            self.batches.lay(|slot| part[slot.min(part.len() - 1)]);
            let logits = self.trainer.logits(self.batches.inputs())?;
            all.extend_from_slice(&logits[..part.len() * self.samples.levels]);
        }
        Ok(all)
    }

    /// What [`Course::resume`] goes on from: to be written after a look at the validation cells.
    #[must_use]
    pub fn saved(&self) -> Saved {
        Saved {
            settings: self.settings.clone(),
            samples: self.id,
            state: self.trainer.state(),
            best: self.best.as_ref().map(|best| (best.step, best.loss, best.network.named_tensors())),
            history: self.history.clone(),
        }
    }

    /// Steps made.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.trainer.steps()
    }

    /// Every step so far.
    #[must_use]
    pub fn history(&self) -> &[StepRecord] {
        &self.history
    }

    /// The step with the smallest validation loss, its network (the present one if none was looked at), and all steps.
    #[must_use]
    pub fn finish(self) -> (u64, Network, Vec<StepRecord>) {
        match self.best {
            Some(best) => (best.step, best.network, self.history),
            None => (self.trainer.steps(), self.trainer.network(), self.history),
        }
    }
}

/// A name of the cells, what was seen of them, and the split.
fn identity(samples: &Samples<'_>, split: &Split) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut number = |n: usize| {
        hasher.update(&(n as u64).to_le_bytes());
    };
    number(samples.planes);
    number(samples.levels);
    samples.of.iter().for_each(|&level| number(level));
    number(split.training.len());
    split.training.iter().chain(&split.validation).for_each(|&cell| number(cell));
    hasher.update(bytemuck::cast_slice(samples.inputs));
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::below;

    const PLANE: usize = SIDE * SIDE;

    /// Cells of two levels: a bright spot somewhere in those of level 1.
    fn cells(count: usize) -> (Vec<f32>, Vec<usize>) {
        let mut rng = generator(5);
        let mut inputs = vec![0.0; count * PLANE];
        let of: Vec<usize> = (0..count).map(|i| usize::from(i % 3 == 0)).collect();
        for (plane, &level) in inputs.chunks_exact_mut(PLANE).zip(&of) {
            plane.iter_mut().for_each(|x| *x = below(&mut rng, 1000) as f32 / 1000.0 - 0.5);
            let (x, y) = (below(&mut rng, 50), below(&mut rng, 50));
            for row in (y..y + 12).filter(|_| level == 1) {
                plane[row * SIDE + x..][..12].iter_mut().for_each(|v| *v += 3.0);
            }
        }
        (inputs, of)
    }

    fn quick() -> LearnSettings {
        LearnSettings { steps: 48, batch: 8, check_every: 12, warmup: 3, ..LearnSettings::default() }
    }

    #[test]
    fn a_bright_spot_is_learnt_and_a_resumed_course_is_the_same() {
        let (inputs, of) = cells(48);
        let samples = Samples { planes: 1, side: SIDE, levels: 2, inputs: &inputs, of: &of };
        let split = Split::stratified(&of, 0.25, 1);
        let workers = Arc::new(Workers::new(2));
        let begin = |settings: &LearnSettings| {
            let start = Network::new(1, 2, 3).unwrap();
            Course::begin(start, false, samples, &split, settings.clone(), Arc::clone(&workers)).unwrap()
        };
        for settings in [quick(), LearnSettings { mixing: true, jitter: true, ..quick() }] {
            let (mut whole, mut first) = (begin(&settings), begin(&settings));
            while whole.step().unwrap().is_some() {}
            (0..24).for_each(|_| assert!(first.step().unwrap().is_some()));
            let bytes = postcard::to_allocvec(&first.saved()).unwrap();
            let saved = postcard::from_bytes(&bytes).unwrap();
            let mut second = Course::resume(saved, samples, &split, settings.clone(), Arc::clone(&workers)).unwrap();
            while second.step().unwrap().is_some() {}
            let best = whole.history().iter().filter_map(|r| r.validation).map(|v| v.f1).fold(0.0, f64::max);
            assert!(best > 0.8, "{best}, {settings:?}");
            assert_eq!(whole.finish(), second.finish());
        }
        let mut first = begin(&quick());
        first.step().unwrap();
        let other = LearnSettings { lr: 2e-3, ..quick() };
        assert!(matches!(
            Course::resume(first.saved(), samples, &split, other, Arc::clone(&workers)),
            Err(LearnError::OtherCourse(_))
        ));
        let mut changed = inputs.clone();
        changed[7] += 1.0;
        let changed = Samples { inputs: &changed, ..samples };
        assert!(matches!(
            Course::resume(first.saved(), changed, &split, quick(), workers),
            Err(LearnError::OtherCourse(_))
        ));
    }

    #[test]
    fn what_cannot_be_learnt_is_refused() {
        let (mut inputs, of) = cells(20);
        let begin = |inputs: &[f32], of: &[usize], settings: LearnSettings| {
            let samples = Samples { planes: 1, side: SIDE, levels: 2, inputs, of };
            let split = Split::stratified(of, 0.25, 1);
            let start = Network::new(1, 2, 3).unwrap();
            Course::begin(start, false, samples, &split, settings, Arc::new(Workers::new(1))).err()
        };
        assert_eq!(begin(&inputs, &[0; 20], quick()), Some(LearnError::OneLevel { cells: 20 }));
        assert_eq!(begin(&inputs, &of[..9], quick()), Some(LearnError::TooFew(9)));
        let nan = LearnSettings { lr: f32::NAN, ..quick() };
        assert!(matches!(begin(&inputs, &of, nan), Some(LearnError::Setting { .. })));
        inputs[3 * PLANE + 5] = f32::NAN;
        assert_eq!(begin(&inputs, &of, quick()), Some(LearnError::Input(3)));
    }

    #[test]
    fn a_course_that_diverges_names_its_step() {
        let (inputs, of) = cells(24);
        let inputs: Vec<f32> = inputs.iter().map(|x| x * 1e25).collect();
        let samples = Samples { planes: 1, side: SIDE, levels: 2, inputs: &inputs, of: &of };
        let split = Split::stratified(&of, 0.25, 1);
        let settings = LearnSettings { lr: 1.0, warmup: 0, check_every: 1, ..quick() };
        let start = Network::new(1, 2, 3).unwrap();
        let mut course = Course::begin(start, false, samples, &split, settings, Arc::new(Workers::new(2))).unwrap();
        let error = loop {
            match course.step() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it should diverge"),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("step"), "{error}");
    }

    #[test]
    fn every_stratum_is_in_both_parts_and_the_rate_rises_and_falls() {
        let strata: Vec<usize> = (0..100).map(|i| usize::from(i >= 97)).collect();
        let split = Split::stratified(&strata, 0.2, 4);
        assert_eq!((split.training.len(), split.validation.len()), (80, 20));
        assert!(split.validation.iter().any(|&c| c >= 97) && split.training.iter().any(|&c| c >= 97));
        assert_eq!(Split::stratified(&[0], 0.2, 4), Split { training: vec![0], validation: vec![] });
        let settings = LearnSettings::default();
        assert!(settings.rate(1) < settings.rate(10) && settings.rate(10) < settings.rate(21));
        assert!(settings.rate(400) < 1e-6 && settings.rate(200) < settings.rate(100));
    }
}
