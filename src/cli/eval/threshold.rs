//! The method `threshold`: heatmaps by the semi-orthogonal embedding, a score, a threshold.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::ProgressBar;

use super::super::{shared, told};
use super::gallery::Gallery;
use super::{Args, Outcome, Task};
use crate::backbone::{Identity, ResNet18};
use crate::eval::dataset::{Dataset, Item, Label};
use crate::eval::folds::{Binarisation, Folds};
use crate::eval::metrics::{Goal, Ranking};
use crate::eval::pixel::{PixelMetrics, PixelResult, resize_scores};
use crate::eval::result::{BinarisationResult, Method, Scored, Setting};
use crate::frame::Frame;
use crate::heatmap::{ScoreKind, Scores};
use crate::model::Settings;
use crate::pipeline::crossval::{self, FoldCell, FoldScores, cross_validate};
use crate::pipeline::fitting::{Cell, Fitter};
use crate::pipeline::{Outcomes, Scorer};
use crate::preprocess::Placement;
use crate::verdict::Invalid;

/// Side of the picture on which pixels are compared with masks.
const MASK_SIDE: usize = 256;

/// Evaluates it.
pub fn evaluate(args: &Args, task: &Task<'_>) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let Task { dataset, questions, main, goal, settings, .. } = *task;
    let bar = shared::bar(images(args, task)?, "evaluating");
    let measured = measure(args, task, &bar, |_, _, _| ())?;
    bar.finish_and_clear();
    let Measured { cells, results, gallery, pixel, backbone, identity, .. } = measured;

    let judge = |question, kind| answers(question, kind, &dataset.items, &cells, &results, goal);
    let areas = |question| {
        let area = |kind| format!("{kind} {}", super::share(judge(question, kind).groups[0].mean.auroc));
        format!("AUROC by score  {}", [ScoreKind::Top, ScoreKind::Max, ScoreKind::Mean].map(area).join(", "))
    };
    // What only a person reads is not worked out for a program.
    let notes = if args.json { Vec::new() } else { questions.iter().map(|&question| areas(question)).collect() };
    let mut outcome = Outcome {
        settings: shown_settings(settings, &backbone, identity, args.per_type, started.elapsed()),
        invalid: invalid(&cells, &results),
        binarisations: questions.iter().map(|&question| judge(question, settings.score)).collect(),
        notes,
        pixel,
        ..Outcome::default()
    };
    if args.report.is_some() {
        let thresholds = thresholds(main, settings.score, &dataset.items, &cells, &results, goal);
        (outcome.mistakes, outcome.mistakes_left_out) = gallery.mistakes(&dataset.items, &cells, &results, &thresholds);
    }
    Ok(outcome)
}

/// Every cell measured in every fold.
pub(super) struct Measured {
    pub cells: Vec<FoldCell>,
    /// The type of each cell if each type has statistics of its own, else 0.
    pub kinds: Vec<usize>,
    pub results: Vec<FoldScores>,
    pub gallery: Gallery,
    pub pixel: Option<PixelResult>,
    pub fitter: Fitter,
    pub network: ResNet18,
    pub backbone: String,
    pub identity: Identity,
}

/// Images that [`measure`] goes through.
pub(super) fn images(args: &Args, task: &Task<'_>) -> anyhow::Result<u64> {
    let cells = fold_cells(task.dataset, task.folds);
    if task.model.is_some() {
        return Ok(cells.len() as u64);
    }
    let parts = parts(args, task.dataset)?;
    Ok(parts.iter().map(|part| crossval::images(&pick(&cells, part), task.folds.k(), task.settings)).sum())
}

/// Measures every cell in every fold; `see(fold, index, scorer)` sees each with its heatmap, on whichever thread.
pub(super) fn measure(
    args: &Args,
    task: &Task<'_>,
    bar: &ProgressBar,
    see: impl Fn(usize, usize, &mut Scorer) + Sync,
) -> anyhow::Result<Measured> {
    let Task { dataset, folds, main, settings, interrupted, .. } = *task;
    let (network, backbone) = args.engine.weights()?;
    let mut fitter = args.engine.fitter(&network, settings)?;
    let cells = fold_cells(dataset, folds);
    let parts = parts(args, dataset)?;
    let tick = |step| {
        bar.inc(step);
        shared::go_on(interrupted)
    };
    let has_masks = dataset.items.iter().any(|item| item.mask.is_some());
    let pixels = Mutex::new(Pixels { metrics: PixelMetrics::new(), error: None });
    let limit = if args.report.is_some() { args.mistakes } else { 0 };
    let mut gallery = Gallery::new(main, settings, limit);
    let mut kinds = vec![0; cells.len()];
    let unjudged = || vec![Err(Invalid::NotMeasured); cells.len()];
    let mut results: Vec<FoldScores> =
        (0..folds.k()).map(|fold| FoldScores { fold, scores: unjudged(), fitted: 0 }).collect();
    if let Some(model) = task.model {
        model.check_backbone(network.identity())?;
        let statistics = model.statistics();
        let everyone: Vec<Cell> = cells.iter().map(|cell| cell.cell.clone()).collect();
        let scores = Outcomes::new(cells.len());
        fitter.score(&everyone, settings, model.projection(), |index, scorer, loaded| {
            let outcome = loaded.and_then(|placement| {
                let found = scorer.measure(&statistics)?;
                if has_masks {
                    let mut pixels = pixels.lock().unwrap_or_else(PoisonError::into_inner);
                    pixels.add(&dataset.items[index], scorer, &placement, settings);
                }
                // Each fold sees it alike; the first one looks last, since further views take its features away.
                (0..folds.k()).rev().for_each(|fold| see(fold, index, scorer));
                Ok(found)
            });
            scores.set(index, outcome);
            tick(1)
        })?;
        let scores: Vec<_> = scores.into_all().map(|s| s.unwrap_or(Err(Invalid::NotMeasured))).collect();
        let fitted = model.header().provenance.cells;
        results.iter_mut().for_each(|fold| (fold.scores, fold.fitted) = (scores.clone(), fitted));
    }
    let parts = if task.model.is_some() { Vec::new() } else { parts };
    for (kind, part) in parts.iter().enumerate() {
        let (items, cells) = (pick(&dataset.items, part), pick(&cells, part));
        let look = |fold: usize, index: usize, scorer: &mut Scorer, placement: &Placement| {
            if has_masks && cells[index].fold == fold {
                let mut pixels = pixels.lock().unwrap_or_else(PoisonError::into_inner);
                pixels.add(&items[index], scorer, placement, settings);
            }
            see(fold, part[index], scorer);
        };
        let found = cross_validate(&mut fitter, &cells, folds.k(), settings, &tick, look, |scores, model| {
            gallery.see(part, &items, &cells, scores, model)
        })?;
        for (all, mut fold) in results.iter_mut().zip(found) {
            if args.per_type {
                gallery.divided(part, fold.fold, in_units_of_good(&mut fold, &cells).get(settings.score));
            }
            all.fitted += fold.fitted;
            part.iter().zip(fold.scores).for_each(|(&index, scores)| all.scores[index] = scores);
        }
        part.iter().for_each(|&index| kinds[index] = kind);
    }
    let pixels = pixels.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = pixels.error {
        bail!(error);
    }
    let (pixel, identity) = (has_masks.then(|| pixels.metrics.result()), network.identity());
    Ok(Measured { cells, kinds, results, gallery, pixel, fitter, network, backbone, identity })
}

/// The indices of the cells that have statistics together: each type's, or all.
fn parts(args: &Args, dataset: &Dataset) -> anyhow::Result<Vec<Vec<usize>>> {
    if args.per_type { by_type(dataset) } else { Ok(vec![(0..dataset.items.len()).collect()]) }
}

fn pick<T: Clone>(all: &[T], part: &[usize]) -> Vec<T> {
    part.iter().map(|&index| all[index].clone()).collect()
}

/// The indices of each type's cells.
fn by_type(dataset: &Dataset) -> anyhow::Result<Vec<Vec<usize>>> {
    let mut parts: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, item) in dataset.items.iter().enumerate() {
        let Some(kind) = item.kind.as_deref() else {
            bail!("--per-type: {} has no type in labels.csv", item.id);
        };
        parts.entry(kind).or_default().push(index);
    }
    Ok(parts.into_values().collect())
}

/// Divides scores by the median of the fold's good training cells, and gives these medians: scores of types with
/// statistics of their own can then be compared, and no test cell has a say in it.
fn in_units_of_good(fold: &mut FoldScores, cells: &[FoldCell]) -> Scores {
    let unit = |kind| {
        let mut good: Vec<f32> = cells
            .iter()
            .zip(&fold.scores)
            .filter(|(cell, _)| cell.good && cell.fold != fold.fold)
            .filter_map(|(_, scores)| scores.as_ref().ok().map(|s| s.get(kind)))
            .collect();
        good.sort_by(f32::total_cmp);
        good.get(good.len() / 2).copied().filter(|unit| *unit > 0.0).unwrap_or(1.0)
    };
    let (top, max, mean) = (unit(ScoreKind::Top), unit(ScoreKind::Max), unit(ScoreKind::Mean));
    for scores in fold.scores.iter_mut().flatten() {
        *scores = Scores { top: scores.top / top, max: scores.max / max, mean: scores.mean / mean };
    }
    Scores { top, max, mean }
}

fn fold_cells(dataset: &Dataset, folds: &Folds) -> Vec<FoldCell> {
    let mut of = vec![0; dataset.items.len()];
    for (fold, members) in folds.test.iter().enumerate() {
        members.iter().for_each(|&index| of[index] = fold);
    }
    dataset
        .items
        .iter()
        .zip(of)
        .map(|(item, fold)| FoldCell {
            cell: Cell::file(&item.id, &item.path),
            good: item.label.as_ref().is_some_and(Label::is_good),
            fold,
        })
        .collect()
}

/// A score in which a cell that cannot be judged is above everything.
pub(super) fn number(scores: &Result<Scores, Invalid>, kind: ScoreKind) -> f32 {
    scores.as_ref().map_or(f32::NAN, |s| s.get(kind))
}

/// The threshold of a fold for a question, from its training cells.
fn threshold(
    question: Binarisation,
    kind: ScoreKind,
    items: &[Item],
    cells: &[FoldCell],
    fold: &FoldScores,
    goal: Goal,
) -> f32 {
    let (scores, targets): (Vec<f32>, Vec<bool>) = items
        .iter()
        .zip(cells)
        .zip(&fold.scores)
        .filter(|((_, cell), _)| cell.fold != fold.fold)
        .filter_map(|((item, _), scores)| {
            Some((number(scores, kind), item.label.as_ref().and_then(|label| question.target(label))?))
        })
        .unzip();
    Ranking::new(&scores, &targets).best_threshold(goal).unwrap_or(f32::INFINITY)
}

/// The threshold of each fold.
fn thresholds(
    question: Binarisation,
    kind: ScoreKind,
    items: &[Item],
    cells: &[FoldCell],
    results: &[FoldScores],
    goal: Goal,
) -> Vec<f32> {
    results.iter().map(|fold| threshold(question, kind, items, cells, fold, goal)).collect()
}

fn answers(
    question: Binarisation,
    kind: ScoreKind,
    items: &[Item],
    cells: &[FoldCell],
    results: &[FoldScores],
    goal: Goal,
) -> BinarisationResult {
    let thresholds = thresholds(question, kind, items, cells, results, goal);
    // Defect kinds are no groups to compare: a good cell has none.
    let grouped = items.iter().all(|item| item.kind.is_some());
    let scored: Vec<Scored<'_>> = items
        .iter()
        .zip(cells)
        .enumerate()
        .filter_map(|(index, (item, cell))| {
            Some(Scored {
                fold: cell.fold,
                score: number(&results[cell.fold].scores[index], kind),
                target: item.label.as_ref().and_then(|label| question.target(label))?,
                kind: item.kind.as_deref().filter(|_| grouped),
            })
        })
        .collect();
    BinarisationResult::new(question, &scored, &thresholds, Method::default())
}

pub(super) fn invalid(cells: &[FoldCell], results: &[FoldScores]) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for (index, cell) in cells.iter().enumerate() {
        if let Err(reason) = &results[cell.fold].scores[index] {
            *reasons.entry(reason.name().to_string()).or_insert(0) += 1;
        }
    }
    reasons
}

pub(super) fn shown_settings(
    settings: &Settings,
    backbone: &str,
    identity: Identity,
    per_type: bool,
    spent: Duration,
) -> Vec<Setting> {
    vec![
        Setting::new("backbone", format!("{backbone} ({identity:.16})")),
        Setting::new("image", format!("{0}×{0}", settings.size)),
        Setting::new("grid", format!("{0}×{0}", settings.grid)),
        Setting::new("k", settings.k),
        Setting::new("stages", settings.stages),
        Setting::new("embedding", settings.mixing),
        Setting::new("standardised", settings.standardise),
        Setting::new("shrinkage", settings.shrinkage),
        Setting::new("smoothing", settings.sigma),
        Setting::new("score", settings.score),
        Setting::new("copies", settings.augment.copies),
        Setting::new("quarter turns", settings.augment.quarter_turns),
        Setting::new("seed", settings.seed),
        Setting::new("each type apart", per_type),
        Setting::new("seconds", spent.as_secs()),
    ]
}

/// Heatmaps against masks.
struct Pixels {
    metrics: PixelMetrics,
    error: Option<String>,
}

impl Pixels {
    fn add(&mut self, item: &Item, scorer: &Scorer, placement: &Placement, settings: &Settings) {
        if let Err(error) = self.try_add(item, scorer, placement, settings) {
            self.error.get_or_insert(told(&error));
        }
    }

    fn try_add(
        &mut self,
        item: &Item,
        scorer: &Scorer,
        placement: &Placement,
        settings: &Settings,
    ) -> anyhow::Result<()> {
        let grid = settings.grid as usize;
        let scores = resize_scores(scorer.heatmap(), (grid, grid), (MASK_SIDE, MASK_SIDE));
        let mut mask = vec![false; MASK_SIDE * MASK_SIDE];
        if let Some(path) = &item.mask {
            let frame = Frame::decode_file(path, &crate::frame::DecodeLimits::default())
                .with_context(|| format!("reading the mask of {}", item.id))?;
            let [is, must] = [&frame, scorer.frame()].map(|frame| (frame.width(), frame.height()));
            if is != must {
                let (path, [w, h, width, height]) = (path.display(), [is.0, is.1, must.0, must.1]);
                bail!(
                    "the mask {path} has {w}×{h} pixels, its image {} {width}×{height}: give it one as large",
                    item.id
                );
            }
            let marks: Vec<u8> = frame.pixels().iter().map(|&p| u8::from(p > 0)).collect();
            let mut rectified = vec![0; MASK_SIDE * MASK_SIDE];
            placement.rectify_mask(&marks, frame.width(), frame.height(), &mut rectified, MASK_SIDE);
            mask.iter_mut().zip(rectified).for_each(|(m, r)| *m = r > 0);
        }
        Ok(self.metrics.add(&scores, &mask, MASK_SIDE, MASK_SIDE)?)
    }
}
