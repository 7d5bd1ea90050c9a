//! Teaching a judge: the network's course, the kernel machine's fit, and the weights of both.

use std::ops::ControlFlow;
use std::sync::Arc;

use thiserror::Error;

use super::{Bench, Border, Description, Judge, MAX_LEVELS, Opinion, log_odds, logistic};
use crate::backbone::ResNet18;
use crate::classifier::SIDE;
use crate::classifier::evidence::Evidence;
use crate::classifier::kernel::{self, Choice, Grid, KernelError, Rows, Uses};
use crate::classifier::learning::{Course, LearnError, LearnSettings, Samples, Saved, Split, StepRecord};
use crate::classifier::network::{Network, NetworkError};
use crate::classifier::planes::Planes;
use crate::simd::Isa;
use crate::workers::Workers;

/// Labelled cells to learn from.
#[derive(Clone, Copy, Debug)]
pub struct Cells<'a> {
    /// What was seen of each, by statistics that have not seen it.
    pub evidence: &'a [&'a Evidence],
    /// The level of each, from 0.
    pub level: &'a [usize],
    /// The kind of each: all 0 where there is one.
    pub kind: &'a [usize],
    /// The inner fold of each: the kernel machine is calibrated on cells of folds that it was not fitted with.
    pub group: &'a [usize],
    /// How many levels there are.
    pub levels: usize,
}

/// How a judge is taught.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgeSettings {
    /// What the network sees; none to do without it.
    pub planes: Option<Planes>,
    /// Side of the planes that the cells were seen on, in pixels.
    pub side: usize,
    /// What the kernel machine sees; none to do without it.
    pub kernel: Option<Uses>,
    /// Ways of the square that the network is asked about: 1, 2, 4 or 8.
    pub flips: u32,
    /// Views that the rows were pooled from.
    pub views: u32,
    /// Share of the cells that the network does not learn from: its course is watched by them, and both parts are
    /// calibrated on them.
    pub validation: f64,
    /// The network's course.
    pub learn: LearnSettings,
}

impl Default for JudgeSettings {
    fn default() -> Self {
        Self {
            planes: Some(Planes::HeatmapAndImage),
            side: SIDE,
            kernel: Some(Uses::Both),
            flips: 4,
            views: 1,
            validation: 0.2,
            learn: LearnSettings::default(),
        }
    }
}

impl JudgeSettings {
    /// For a network on planes of `side` pixels: on larger ones than [`SIDE`] it is fine-tuned
    /// ([`LearnSettings::for_side`]), and has more cells to learn from.
    #[must_use]
    pub fn for_side(side: usize) -> Self {
        let usual = Self { side, learn: LearnSettings::for_side(side), ..Self::default() };
        if side > SIDE { Self { validation: 0.1, ..usual } } else { usual }
    }
}

/// Why a judge was not taught, or not read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// The network's course.
    #[error(transparent)]
    Learn(#[from] LearnError),
    /// The kernel machine.
    #[error(transparent)]
    Kernel(KernelError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Nobody to ask.
    #[error("training: neither the network nor the kernel machine is to be asked; choose one or both")]
    Nobody,
    /// Labels of only one level.
    #[error(
        "training: all {0} cells that can be judged are of one class; label cells of at least two (good and defective)"
    )]
    OneLevel(usize),
    /// A number on the way to a probability was not finite.
    #[error("training: what the judge says of cell {0} is not finite; the backbone or the statistics are broken")]
    NotFinite(usize),
    /// Parts that make no judge.
    #[error("reading the classifier: {0}; take a fresh copy of the model or train again")]
    Parts(String),
    /// The caller asked for it.
    #[error("training: interrupted")]
    Interrupted,
}

/// What the caller hears while a judge is taught.
pub enum Event<'a, 'b> {
    /// The network made a step; the course can be saved where the record has a look at the validation cells.
    Step(&'b StepRecord, &'b Course<'a>),
    /// The kernel machine is being fitted, the longest part without a word.
    Kernel,
}

/// What teaching gives.
#[derive(Clone, Debug)]
pub struct Taught {
    /// The judge.
    pub judge: Judge,
    /// Every step of the network's course; empty without a network.
    pub history: Vec<StepRecord>,
    /// The step whose network was kept.
    pub best_step: Option<u64>,
    /// The kernel machine's settings, one a border; empty without one.
    pub kernel: Vec<Choice>,
    /// The cells that the borders were calibrated on, with what the judge says of them though it has not learnt from
    /// them: what an operating point is chosen by.
    pub calibration: Vec<(usize, Opinion)>,
}

/// Teaches a judge. `backbone` is what the network starts from. `resume` goes on with a course of the same cells and
/// settings. The result does not depend on the number of threads.
///
/// # Errors
/// If there is nothing to learn, a number is not finite, or `tell` breaks off.
pub fn fit<'a>(
    cells: &Cells<'a>,
    settings: &JudgeSettings,
    backbone: &ResNet18,
    resume: Option<Saved>,
    workers: &Arc<Workers>,
    mut tell: impl FnMut(Event<'_, '_>) -> ControlFlow<()>,
) -> Result<Taught, JudgeError> {
    let n = cells.level.len();
    let levels = cells.levels;
    assert!((2..=MAX_LEVELS).contains(&levels), "2 to {MAX_LEVELS} levels");
    assert!([cells.evidence.len(), cells.kind.len(), cells.group.len()].iter().all(|&len| len == n));
    if settings.planes.is_none() && settings.kernel.is_none() {
        return Err(JudgeError::Nobody);
    }
    if cells.level.iter().all(|level| Some(level) == cells.level.first()) {
        return Err(JudgeError::OneLevel(n));
    }
    let strata: Vec<usize> = (0..n).map(|i| cells.level[i] + levels * cells.kind[i]).collect();
    let split = Split::stratified(&strata, settings.validation, settings.learn.seed);

    let network = match settings.planes {
        Some(planes) => Some(learn(cells, planes, &split, settings, backbone, resume, workers, &mut tell)?),
        None => None,
    };
    let machine = match settings.kernel {
        Some(uses) => {
            if tell(Event::Kernel).is_break() {
                return Err(JudgeError::Interrupted);
            }
            Some(fit_kernel(cells, uses, workers)?)
        }
        None => None,
    };

    // The network has learnt from all but the validation cells; the kernel machine has an answer for every cell by a
    // machine without its fold.
    let calibrated: Vec<usize> = if network.is_some() { split.validation.clone() } else { (0..n).collect() };
    let description = Description {
        levels: levels as u32,
        planes: settings.planes,
        side: settings.side as u32,
        flips: settings.flips,
        views: settings.views,
        kernel: machine.as_ref().map(|m| m.machine.description().clone()),
        borders: vec![Border { network: 1.0, kernel: 1.0, shift: 0.0 }; levels - 1],
    };
    let folded = network.as_ref().map(|(_, network, _)| network.fold(settings.side));
    let kernel = machine.as_ref().map(|m| m.machine.clone());
    let mut judge = Judge::new(description, folded.as_ref(), kernel)?;
    let odds = network_odds(&judge, cells, &calibrated, workers)?;
    let score = |at: usize, border: usize| {
        machine.as_ref().map(|m| f64::from(m.out_of_fold[calibrated[at] * (levels - 1) + border]))
    };
    for border in 0..levels - 1 {
        let mut inputs = Vec::new();
        if network.is_some() {
            inputs.push((0..calibrated.len()).map(|at| f64::from(odds[at * (levels - 1) + border])).collect());
        }
        if machine.is_some() {
            inputs.push((0..calibrated.len()).filter_map(|at| score(at, border)).collect());
        }
        let above: Vec<bool> = calibrated.iter().map(|&cell| cells.level[cell] > border).collect();
        let (weights, shift) = logistic::fit(&inputs, &above);
        let mut weights = weights.into_iter().map(|w| w as f32);
        judge.description.borders[border] = Border {
            network: if network.is_some() { weights.next().unwrap_or(0.0) } else { 0.0 },
            kernel: if machine.is_some() { weights.next().unwrap_or(0.0) } else { 0.0 },
            shift: shift as f32,
        };
    }
    judge.description.validate()?;
    let opinion = |at: usize| {
        let mut opinion = Opinion { levels, logits: [0.0; MAX_LEVELS - 1] };
        for (border, weights) in judge.description.borders.iter().enumerate() {
            let network = odds.get(at * (levels - 1) + border).copied().unwrap_or(0.0);
            let kernel = score(at, border).unwrap_or(0.0) as f32;
            opinion.logits[border] =
                (weights.network * network + weights.kernel * kernel + weights.shift).clamp(-80.0, 80.0);
        }
        opinion
    };
    let calibration = calibrated.iter().enumerate().map(|(at, &cell)| (cell, opinion(at))).collect();
    let (best_step, history) = match network {
        Some((step, _, history)) => (Some(step), history),
        None => (None, Vec::new()),
    };
    Ok(Taught { judge, history, best_step, kernel: machine.map(|m| m.chosen).unwrap_or_default(), calibration })
}

/// The network's course to its end: the best step, its network and all steps.
#[allow(clippy::too_many_arguments)]
fn learn(
    cells: &Cells<'_>,
    planes: Planes,
    split: &Split,
    settings: &JudgeSettings,
    backbone: &ResNet18,
    resume: Option<Saved>,
    workers: &Arc<Workers>,
    tell: &mut impl FnMut(Event<'_, '_>) -> ControlFlow<()>,
) -> Result<(u64, Network, Vec<StepRecord>), JudgeError> {
    let side = settings.side;
    let wanted = planes.count() * side * side;
    let inputs: Vec<f32> = cells.evidence.iter().flat_map(|seen| &seen.planes[..wanted]).copied().collect();
    let samples = Samples { planes: planes.count(), side, levels: cells.levels, inputs: &inputs, of: cells.level };
    let learn = settings.learn.clone();
    let mut course = match resume {
        Some(saved) => Course::resume(saved, samples, split, learn, Arc::clone(workers))?,
        None => {
            let start =
                Network::from_backbone(backbone, planes.count(), learn.heatmap_share, cells.levels, learn.seed)?;
            Course::begin(start, true, samples, split, learn, Arc::clone(workers))?
        }
    };
    while let Some(record) = course.step()? {
        if tell(Event::Step(&record, &course)).is_break() {
            return Err(JudgeError::Interrupted);
        }
    }
    Ok(course.finish())
}

fn fit_kernel(cells: &Cells<'_>, uses: Uses, workers: &Workers) -> Result<kernel::Fitted, JudgeError> {
    let values: Vec<f32> = cells.evidence.iter().flat_map(|seen| seen.row.iter()).copied().collect();
    let rows = Rows { values: &values, kinds: cells.kind };
    let borders = cells.levels - 1;
    let targets: Vec<f32> = cells
        .level
        .iter()
        .flat_map(|&level| (0..borders).map(move |border| if level > border { 1.0 } else { -1.0 }))
        .collect();
    let grid = Grid { uses, ..Grid::default() };
    Ok(kernel::fit(&rows, &targets, &vec![1.0; cells.level.len()], cells.group, &grid, workers)?)
}

/// The network's log-odds of some cells at each border; empty without a network.
fn network_odds(
    judge: &Judge,
    cells: &Cells<'_>,
    of: &[usize],
    workers: &Arc<Workers>,
) -> Result<Vec<f32>, JudgeError> {
    if judge.network.is_none() {
        return Ok(Vec::new());
    }
    // The kernel machine was fitted to these cells: only the network is asked.
    let description = Description { kernel: None, ..judge.description.clone() };
    let alone = Judge { description, network: judge.network.clone(), kernel: None };
    let mut bench = Bench::new(Arc::new(alone), Isa::detect(), Arc::clone(workers))?;
    let mut all = Vec::with_capacity(of.len() * (cells.levels - 1));
    for &cell in of {
        bench.sum.fill(0.0);
        bench.ask_network(&cells.evidence[cell].planes);
        all.extend((0..cells.levels - 1).map(|border| log_odds(&bench.sum, border)));
        if !bench.sum.iter().all(|x| x.is_finite()) {
            return Err(JudgeError::NotFinite(cell));
        }
    }
    Ok(all)
}
