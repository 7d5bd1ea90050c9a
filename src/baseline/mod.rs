//! The systems that the paper compares with its own (sections 2.3 and 3, Table S4), on the same folds.
//!
//! Each is fitted from nothing on the training cells of a fold; no test cell has a say in anything. A fifth of the
//! training cells of each label and type is held out: it chooses thresholds, and the epoch at which a network was best.
//! So the scores that a threshold is chosen on are of cells that the system was not fitted to, as test cells are.
//!
//! - Reconstructions are fitted to the good cells that are not held out: a fully convolutional autoencoder
//!   ([`autoencoder`]), the largest singular vectors of whole images ([`svd`]), or the nearest of the typical patches
//!   ([`kmeans`]). What they leave over becomes a score ([`residual`]).
//! - Networks of torchvision's shape ([`networks`]) learn the labels of all cells that are not held out
//!   ([`supervised`]).
//!
//! [`graph`] describes networks, counts their parameters and multiply-adds, and [`engine`] trains them;
//! [`systems`] puts the counts of all systems side by side.

pub mod autoencoder;
pub mod engine;
pub mod graph;
pub mod images;
pub mod kmeans;
pub mod networks;
pub mod residual;
pub mod supervised;
pub mod svd;
pub mod systems;

mod gemm;
mod held_out;
mod schedule;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use thiserror::Error;

use crate::eval::dataset::{Item, Label};
use crate::eval::folds::{Binarisation, Folds};
use crate::preprocess::ConfigError;
use crate::verdict::Invalid;
use crate::workers::Workers;

pub use images::Images;
use residual::Cut;

/// How far an evaluation is: images done since the last word.
pub type Tick<'a> = dyn Fn(u64) -> ControlFlow<()> + Sync + 'a;

/// A system that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// Fully convolutional autoencoder of good cells; amplitude threshold of the residual.
    AutoencoderAmplitude,
    /// The same; Otsu threshold of the residual.
    AutoencoderOtsu,
    /// Largest singular vectors of whole images of good cells; amplitude threshold of the residual.
    Svd,
    /// Typical patches of good cells; amplitude threshold of the residual.
    KMeans,
    /// ResNet-50 on images.
    ResNet50,
    /// VGG-11 on images.
    Vgg11,
    /// ResNeXt-101 32×8d on images.
    ResNext101,
}

impl System {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::AutoencoderAmplitude,
        Self::AutoencoderOtsu,
        Self::Svd,
        Self::KMeans,
        Self::ResNet50,
        Self::Vgg11,
        Self::ResNext101,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AutoencoderAmplitude => "autoencoder-amplitude",
            Self::AutoencoderOtsu => "autoencoder-otsu",
            Self::Svd => "svd",
            Self::KMeans => "k-means",
            Self::ResNet50 => "resnet50",
            Self::Vgg11 => "vgg11",
            Self::ResNext101 => "resnext101",
        }
    }

    /// Side of the images that it is fitted to, and how often it sees each, unless something else is asked for: far
    /// less than the paper's, so that two cores are enough.
    #[must_use]
    pub fn usual(self) -> (usize, u32) {
        match self {
            Self::AutoencoderAmplitude | Self::AutoencoderOtsu => (64, 15),
            Self::Svd | Self::KMeans => (64, 1),
            Self::ResNet50 => (64, 10),
            Self::Vgg11 => (32, 8),
            Self::ResNext101 => (32, 6),
        }
    }

    /// Whether it learns from labels of defects.
    #[must_use]
    pub fn is_supervised(self) -> bool {
        matches!(self, Self::ResNet50 | Self::Vgg11 | Self::ResNext101)
    }

    /// Whether it is trained epoch by epoch.
    #[must_use]
    pub fn has_epochs(self) -> bool {
        !matches!(self, Self::Svd | Self::KMeans)
    }

    fn cut(self) -> Cut {
        if self == Self::AutoencoderOtsu { Cut::Otsu } else { Cut::Amplitude }
    }
}

/// How a system is fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Times that each training image is seen.
    pub epochs: u32,
    /// Images of a step of training.
    pub batch: usize,
    /// Seed of the held-out cells, the start and the order.
    pub seed: u64,
}

/// Why a system could not be evaluated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BaselineError {
    /// An image side that cannot be had.
    #[error("making the images small: a side of {side} pixels is no divisor of 256 from 16 on; choose 32, 64 or 128")]
    Side {
        /// The side asked for.
        side: usize,
    },
    /// Preprocessing refuses its settings.
    #[error(transparent)]
    Preprocess(#[from] ConfigError),
    /// Too few cells to fit to.
    #[error("fitting {system} for fold {fold}: {cells} {what} can be fitted to, {need} are needed; use more cells or fewer folds", fold = fold + 1)]
    TooFew {
        /// The system.
        system: &'static str,
        /// The fold, from 0.
        fold: usize,
        /// What there is too little of.
        what: &'static str,
        /// How many there are.
        cells: usize,
        /// How many there must be.
        need: usize,
    },
    /// Too many kinds of labels to be classes.
    #[error(
        "training on labels: {levels} different labels are too many classes, at most {most} are told apart; round them",
        most = supervised::MAX_LEVELS
    )]
    Levels {
        /// Kinds of labels.
        levels: usize,
    },
    /// A network could not be trained.
    #[error(transparent)]
    Train(#[from] engine::TrainError),
    /// The caller asked for it.
    #[error("evaluating: interrupted")]
    Interrupted,
}

/// What a system says about a cell.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// How anomalous it is, whatever the question.
    Score(f32),
    /// A probability for each of [`Evaluation::levels`].
    Levels(Vec<f32>),
}

/// What a system says about cells of one fold.
#[derive(Clone, Debug)]
pub struct FoldAnswers {
    /// From 0.
    pub fold: usize,
    /// Cells that it was fitted to.
    pub fitted: usize,
    /// The epoch, from 1, after which the network was best on the held-out cells, and which is judged here.
    pub best_epoch: Option<u32>,
    /// Held-out training cells, by index: thresholds are chosen on them.
    pub held_out: Vec<(usize, Result<Answer, Invalid>)>,
    /// Test cells, by index.
    pub test: Vec<(usize, Result<Answer, Invalid>)>,
}

/// A system's answers about a whole data set.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// What the probabilities of [`Answer::Levels`] are for, rising.
    pub levels: Vec<Label>,
    /// One for each fold.
    pub folds: Vec<FoldAnswers>,
}

impl Evaluation {
    /// The score of an answer to `question`: the share of the probability that falls on defective levels, among those
    /// that the question asks about. Not a number where the cell could not be judged.
    #[must_use]
    pub fn score(&self, answer: &Result<Answer, Invalid>, question: Binarisation) -> f32 {
        match answer {
            Err(_) => f32::NAN,
            Ok(Answer::Score(score)) => *score,
            Ok(Answer::Levels(probabilities)) => {
                let (mut defective, mut asked) = (0.0, 0.0);
                for (level, probability) in self.levels.iter().zip(probabilities) {
                    let Some(target) = question.target(level) else { continue };
                    asked += probability;
                    defective += if target { *probability } else { 0.0 };
                }
                if asked > 0.0 { defective / asked } else { 0.0 }
            }
        }
    }
}

/// A data set as a system sees it.
#[derive(Clone, Copy, Debug)]
pub struct Cells<'a> {
    /// The images.
    pub images: &'a Images,
    /// What is known of each.
    pub items: &'a [Item],
    /// Who tests what.
    pub folds: &'a Folds,
}

impl Cells<'_> {
    /// Whether a cell may be fitted to.
    fn is_usable(&self, index: usize) -> bool {
        self.images.get(index).is_ok()
    }

    fn is_good(&self, index: usize) -> bool {
        self.items[index].label.as_ref().is_some_and(Label::is_good)
    }
}

/// Images that [`evaluate`] goes through, about: for a progress bar.
#[must_use]
pub fn work(system: System, items: &[Item], folds: usize, settings: &Settings) -> u64 {
    let good = items.iter().filter(|item| item.label.as_ref().is_some_and(Label::is_good)).count();
    let learned = if system.is_supervised() { items.len() } else { good };
    let fitted = learned as f64 * (1.0 - 1.0 / folds.max(1) as f64) * (1.0 - held_out::SHARE);
    (folds as f64 * fitted * f64::from(settings.epochs)) as u64
}

/// Fits the system for each fold, and lets it judge the fold's held-out and test cells.
///
/// # Errors
/// If there are too few cells, training fails, or `tick` says to stop.
///
/// # Panics
/// If there is not one image an item.
pub fn evaluate(
    system: System,
    cells: Cells<'_>,
    settings: &Settings,
    workers: &Arc<Workers>,
    tick: &Tick<'_>,
) -> Result<Evaluation, BaselineError> {
    assert_eq!(cells.images.len(), cells.items.len(), "one image an item");
    let levels = if system.is_supervised() { supervised::levels(cells.items)? } else { Vec::new() };
    let mut folds = Vec::with_capacity(cells.folds.k());
    for fold in 0..cells.folds.k() {
        folds.push(match supervised::network(system, levels.len()) {
            Some((network, rate)) => {
                supervised::evaluate((system, network, rate), &levels, cells, fold, settings, workers, tick)?
            }
            None => reconstruct(system, cells, fold, settings, workers, tick)?,
        });
    }
    Ok(Evaluation { levels, folds })
}

/// What is left of images when their reconstruction is taken away: absolute values, row by row.
trait Reconstruction {
    fn residuals(&mut self, images: &[&[f32]]) -> Vec<Vec<f32>>;
}

/// Residual images made at a time.
const AT_ONCE: usize = 64;

fn reconstruct(
    system: System,
    cells: Cells<'_>,
    fold: usize,
    settings: &Settings,
    workers: &Arc<Workers>,
    tick: &Tick<'_>,
) -> Result<FoldAnswers, BaselineError> {
    let split = held_out::split(cells, fold, settings.seed);
    let fit: Vec<usize> = split.fit.iter().copied().filter(|&i| cells.is_good(i) && cells.is_usable(i)).collect();
    let good: Vec<&[f32]> = fit.iter().filter_map(|&index| cells.images.get(index).ok()).collect();
    let too_few = |what, cells, need| BaselineError::TooFew { system: system.name(), fold, what, cells, need };
    if good.len() < 4 {
        return Err(too_few("good cells", good.len(), 4));
    }
    let side = cells.images.side();
    let mut model: Box<dyn Reconstruction> = match system {
        System::Svd => Box::new(svd::Svd::fit(&good, side, settings.seed)),
        System::KMeans => Box::new(kmeans::KMeans::fit(&good, side, settings.seed)),
        _ => Box::new(autoencoder::Autoencoder::fit(&good, side, settings, workers, tick)?),
    };
    if !system.has_epochs() && tick(good.len() as u64).is_break() {
        return Err(BaselineError::Interrupted);
    }
    let cut = system.cut();
    let mut residuals = |indices: &[usize]| -> Vec<Vec<f32>> {
        let images: Vec<&[f32]> = indices.iter().filter_map(|&index| cells.images.get(index).ok()).collect();
        images.chunks(AT_ONCE).flat_map(|images| model.residuals(images)).collect()
    };
    let held: Vec<usize> = split.held_out.iter().copied().filter(|&index| cells.is_usable(index)).collect();
    let left = residuals(&held);
    let level =
        cut.level(held.iter().zip(&left).filter(|(index, _)| cells.is_good(**index)).map(|(_, left)| &left[..]));
    let scores = |left: Vec<Vec<f32>>| -> Vec<f32> { left.iter().map(|left| cut.score(left, level)).collect() };
    let answers = |all: &[usize], scores: Vec<f32>| {
        let mut scores = scores.into_iter();
        let one = |&index: &usize| match cells.images.get(index) {
            Err(reason) => (index, Err(reason.clone())),
            // One score for each image that there is, in the same order.
            Ok(_) => (index, scores.next().filter(|s| s.is_finite()).map(Answer::Score).ok_or(Invalid::NotFinite)),
        };
        all.iter().map(one).collect::<Vec<_>>()
    };
    let held_out = answers(&split.held_out, scores(left));
    let tested = residuals(&split.test);
    let test = answers(&split.test, scores(tested));
    Ok(FoldAnswers { fold, fitted: good.len(), best_epoch: None, held_out, test })
}
