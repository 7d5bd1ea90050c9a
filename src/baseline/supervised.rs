//! Networks that learn the labels of cells from their images.
//!
//! The levels of the labels (ELPV: four probabilities; A, B, C) are classes; a question is answered by the sum of the
//! probabilities of the levels that count as defective, so that one training serves all questions.

use std::sync::Arc;

use super::engine::Trainer;
use super::graph::Graph;
use super::schedule::{Plan, Schedule};
use super::{Answer, BaselineError, Cells, FoldAnswers, Settings, System, Tick, held_out, networks};
use crate::classifier::infer::softmax;
use crate::eval::dataset::{Item, Label};
use crate::verdict::Invalid;
use crate::workers::Workers;

/// More kinds of labels than this are not classes.
pub const MAX_LEVELS: usize = 16;

/// The kinds of labels there are, rising.
///
/// # Errors
/// If there are more than [`MAX_LEVELS`].
pub fn levels(items: &[Item]) -> Result<Vec<Label>, BaselineError> {
    let mut levels: Vec<Label> = items.iter().filter_map(|item| item.label).collect();
    levels.sort_by_key(Label::sort_key);
    levels.dedup();
    if levels.len() > MAX_LEVELS {
        return Err(BaselineError::Levels { levels: levels.len() });
    }
    Ok(levels)
}

/// The network of a supervised system for grey images, and the learning rate at its start.
pub(super) fn network(system: System, classes: usize) -> Option<(Graph, f32)> {
    match system {
        System::ResNet50 => Some((networks::resnet50(1, classes), 1e-3)),
        // No norm keeps its values in bounds.
        System::Vgg11 => Some((networks::vgg11(1, classes), 1e-4)),
        System::ResNext101 => Some((networks::resnext101(1, classes), 5e-4)),
        _ => None,
    }
}

/// Trains on the cells of a fold that are not held out, keeps the epoch after which the held-out cells had the least
/// cross-entropy, and judges the held-out and the test cells.
///
/// # Errors
/// If there are too few cells, the loss is no number, or `tick` says to stop.
pub(super) fn evaluate(
    (system, network, rate): (System, Graph, f32),
    levels: &[Label],
    cells: Cells<'_>,
    fold: usize,
    settings: &Settings,
    workers: &Arc<Workers>,
    tick: &Tick<'_>,
) -> Result<FoldAnswers, BaselineError> {
    let split = held_out::split(cells, fold, settings.seed);
    let class = |index: usize| levels.iter().position(|level| cells.items[index].label.as_ref() == Some(level));
    let known = |all: &[usize]| -> Vec<(usize, &[f32], usize)> {
        all.iter().filter_map(|&index| Some((index, cells.images.get(index).ok()?, class(index)?))).collect()
    };
    let (fit, held) = (known(&split.fit), known(&split.held_out));
    if fit.len() < 4 || held.is_empty() {
        let (what, cells, need) = ("cells", fit.len(), 4);
        return Err(BaselineError::TooFew { system: system.name(), fold, what, cells, need });
    }
    let side = cells.images.side();
    let batch = settings.batch.min(fit.len());
    let mut trainer = Trainer::new(network, side, batch, settings.seed, Arc::clone(workers))?;
    let mut values = vec![0.0; batch * side * side];
    let schedule = Schedule { rate, epochs: settings.epochs, steps: fit.len() / batch };
    let mut best = None;
    for epoch in 0..settings.epochs {
        let mut plan = Plan::new(fit.len(), settings.seed, epoch);
        for step in 0..schedule.steps {
            let chosen = plan.fill(&mut values, side, |index| fit[index].1);
            let labels: Vec<usize> = chosen.iter().map(|&index| fit[index].2).collect();
            trainer.learn_classes(&values, &labels, &schedule.at(epoch, step))?;
            if tick(batch as u64).is_break() {
                return Err(BaselineError::Interrupted);
            }
        }
        let images: Vec<&[f32]> = held.iter().map(|cell| cell.1).collect();
        let told = probabilities(&mut trainer, &images, levels.len());
        let losses = told.iter().zip(&held).map(|(told, cell)| -f64::from(told[cell.2].max(1e-12)).ln());
        let loss = losses.sum::<f64>() / held.len() as f64;
        // The last epoch's copy is the network itself.
        if loss.is_finite() && best.as_ref().is_none_or(|(least, _, _)| loss < *least) {
            best = Some((loss, epoch, (epoch + 1 < settings.epochs).then(|| trainer.snapshot())));
        }
    }
    if let Some((_, _, Some(snapshot))) = &best {
        trainer.restore(snapshot);
    }
    let mut judge = |all: &[usize]| {
        let images: Vec<&[f32]> = all.iter().filter_map(|&index| cells.images.get(index).ok()).collect();
        let mut told = probabilities(&mut trainer, &images, levels.len()).into_iter();
        let one = |&index: &usize| match cells.images.get(index) {
            Err(reason) => (index, Err(reason.clone())),
            Ok(_) => {
                let told = told.next().filter(|told| told.iter().all(|p| p.is_finite()));
                (index, told.map(Answer::Levels).ok_or(Invalid::NotFinite))
            }
        };
        all.iter().map(one).collect::<Vec<_>>()
    };
    let (held_out, test) = (judge(&split.held_out), judge(&split.test));
    Ok(FoldAnswers { fold, fitted: fit.len(), best_epoch: best.map(|(_, epoch, _)| epoch + 1), held_out, test })
}

/// The probabilities of all classes for each image.
fn probabilities(trainer: &mut Trainer, images: &[&[f32]], classes: usize) -> Vec<Vec<f32>> {
    let batch = trainer.batch();
    let Some(pixels) = images.first().map(|image| image.len()) else { return Vec::new() };
    let mut values = vec![0.0; batch * pixels];
    let mut all = Vec::with_capacity(images.len());
    for some in images.chunks(batch) {
        values.chunks_exact_mut(pixels).zip(some).for_each(|(place, image)| place.copy_from_slice(image));
        let logits = trainer.run(&values);
        all.extend((0..some.len()).map(|image| {
            let mut told: Vec<f32> = (0..classes).map(|class| logits[class * batch + image]).collect();
            softmax(&mut told, 1.0);
            told
        }));
    }
    all
}
