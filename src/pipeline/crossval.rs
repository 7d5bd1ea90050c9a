//! Cross-validation: every cell is measured by statistics that have not seen it.
//!
//! For fold i the scale of the channels, W, the Gaussian and everything after it come from the good cells of the other
//! folds. A threshold for fold i needs scores of training cells that are like test scores: so a cell of training fold l
//! is measured by statistics of the folds other than i *and* l. Co-moments are gathered once per training fold and
//! joined as needed.

use std::ops::ControlFlow;

use crate::embedding::Projection;
use crate::gaussian::Accumulator;
use crate::gaussian::factors::OwnedStatistics;
use crate::heatmap::Scores;
use crate::model::Settings;
use crate::preprocess::Placement;
use crate::verdict::Invalid;

use super::Scorer;
use super::fitting::{Cell, FitError, Fitter, Plan, Skipped, check_skipped};
use super::outcomes::Outcomes;

/// A cell of the data set.
#[derive(Clone, Debug)]
pub struct FoldCell {
    /// The cell.
    pub cell: Cell,
    /// Whether it may take part in statistics.
    pub good: bool,
    /// The fold that tests it, from 0.
    pub fold: usize,
}

/// What one fold gives.
#[derive(Clone, Debug)]
pub struct FoldScores {
    /// From 0.
    pub fold: usize,
    /// For every cell of the data set, in its order: as a test cell if it is of this fold, else as a training cell.
    pub scores: Vec<Result<Scores, Invalid>>,
    /// Good cells in the fold's statistics.
    pub fitted: u64,
}

/// The statistics of a fold, while they are there: to draw its mistakes.
pub struct FoldModel<'a> {
    fitter: &'a mut Fitter,
    settings: &'a Settings,
    projection: Projection,
    statistics: OwnedStatistics,
}

impl FoldModel<'_> {
    /// Measures some cells again, one after another on whichever thread; `look` sees each with its heatmap.
    ///
    /// # Errors
    /// If the pipeline fails.
    pub fn look_again(
        &mut self,
        cells: &[Cell],
        look: impl Fn(usize, &mut Scorer, Result<Scores, Invalid>) + Sync,
    ) -> Result<(), FitError> {
        let view = self.statistics.view();
        self.fitter.score(cells, self.settings, &self.projection, |index, scorer, loaded| {
            let measured = loaded.and_then(|_| scorer.measure(&view));
            look(index, scorer, measured);
            ControlFlow::Continue(())
        })
    }
}

/// How far a cross-validation is: images done since the last word, in all `folds · (cells + good cells elsewhere)`.
pub type Tick<'a> = dyn Fn(u64) -> ControlFlow<()> + Sync + 'a;

/// Images that [`cross_validate`] goes through.
#[must_use]
pub fn images(cells: &[FoldCell], folds: usize, settings: &Settings) -> u64 {
    let good = cells.iter().filter(|c| c.good).count() as u64;
    let copies = u64::from(settings.augment.images_per_cell());
    folds as u64 * cells.len() as u64 + (folds as u64 - 1) * good * copies
}

/// Runs all folds. `see(fold, index, …)` sees every cell with its heatmap, on whichever thread: as a test cell if it is
/// of that fold, else as a training cell; `after` hears each fold's scores while its statistics are still there.
///
/// # Errors
/// If statistics cannot be made, more than a tenth of the good cells cannot be used, or `tick` says so.
pub fn cross_validate(
    fitter: &mut Fitter,
    cells: &[FoldCell],
    folds: usize,
    settings: &Settings,
    tick: &Tick<'_>,
    see: impl Fn(usize, usize, &mut Scorer, &Placement) + Sync,
    mut after: impl FnMut(&FoldScores, FoldModel<'_>) -> Result<(), FitError>,
) -> Result<Vec<FoldScores>, FitError> {
    let mut results = Vec::with_capacity(folds);
    for fold in 0..folds {
        let training: Vec<Cell> = good_cells(cells, |l| l != fold).collect();
        let plan = Plan { fit: training, held_out: Vec::new(), list: [0; 32] };
        let scale = fitter.channel_scale(&plan.scale_cells(settings.seed), settings)?;
        let projection = settings.projection(&scale)?;
        let (statistics, fitted) = without_each(fitter, cells, folds, Some(fold), settings, &projection, tick)?;
        let look = |index: usize, scorer: &mut Scorer, placement: &Placement| see(fold, index, scorer, placement);
        let scores = measure_all(fitter, cells, &statistics, settings, &projection, tick, look)?;
        let result = FoldScores { fold, scores, fitted };
        let own = statistics.into_iter().nth(fold).unwrap_or_else(|| unreachable!("one set of statistics a fold"));
        after(&result, FoldModel { fitter, settings, projection, statistics: own })?;
        results.push(result);
    }
    Ok(results)
}

/// Measures every cell by statistics of all folds but its own, under one projection: what a classifier is trained on,
/// so that what it sees of a training cell is like what it will see of a new one. `see(index, …)` sees each cell with
/// its heatmap, on whichever thread. `tick` hears of [`images_held_out`] images.
///
/// # Errors
/// As [`cross_validate`].
pub fn hold_out_each(
    fitter: &mut Fitter,
    cells: &[FoldCell],
    folds: usize,
    settings: &Settings,
    projection: &Projection,
    tick: &Tick<'_>,
    see: impl Fn(usize, &mut Scorer, &Placement) + Sync,
) -> Result<Vec<Result<Scores, Invalid>>, FitError> {
    let (statistics, _) = without_each(fitter, cells, folds, None, settings, projection, tick)?;
    measure_all(fitter, cells, &statistics, settings, projection, tick, see)
}

/// Images that [`hold_out_each`] goes through.
#[must_use]
pub fn images_held_out(cells: &[FoldCell], settings: &Settings) -> u64 {
    let good = cells.iter().filter(|c| c.good).count() as u64;
    cells.len() as u64 + good * u64::from(settings.augment.images_per_cell())
}

/// Good cells of the folds that `of` names.
fn good_cells(cells: &[FoldCell], of: impl Fn(usize) -> bool) -> impl Iterator<Item = Cell> {
    cells.iter().filter(move |c| c.good && of(c.fold)).map(|c| c.cell.clone())
}

/// For each fold l the statistics of the good cells outside l and outside the fold `test`, and how many cells there are
/// outside `test`.
///
/// With too few folds for that (two, of which one is `test`), a training cell is measured by its own fold's statistics.
fn without_each(
    fitter: &mut Fitter,
    cells: &[FoldCell],
    folds: usize,
    test: Option<usize>,
    settings: &Settings,
    projection: &Projection,
    tick: &Tick<'_>,
) -> Result<(Vec<OwnedStatistics>, u64), FitError> {
    let mut moments: Vec<Accumulator> = Vec::with_capacity(folds);
    let mut skipped: Vec<Skipped> = Vec::new();
    let mut tried = 0;
    for other in 0..folds {
        let mut part = Accumulator::new(settings.grid as usize, settings.k as usize);
        if Some(other) != test {
            let good: Vec<Cell> = good_cells(cells, |l| l == other).collect();
            tried += good.len() as u64;
            let mut done = 0;
            let mut before = 0;
            fitter.accumulate(&good, settings, projection, &mut part, &mut done, |done, lost| {
                skipped.extend(lost);
                let step = done - before;
                before = done;
                tick(step)
            })?;
        }
        moments.push(part);
    }
    check_skipped(&skipped, tried, 0.1)?;
    let join = |without: Option<usize>| -> Result<OwnedStatistics, FitError> {
        let mut sum = Accumulator::new(settings.grid as usize, settings.k as usize);
        (0..folds).filter(|&l| Some(l) != test && Some(l) != without).for_each(|l| sum.merge(&moments[l]));
        Ok(sum.finish(settings.shrinkage, settings.precision, fitter.workers())?)
    };
    let enough = folds > 1 + usize::from(test.is_some());
    let statistics = (0..folds).map(|l| join(enough.then_some(l))).collect::<Result<_, _>>()?;
    Ok((statistics, moments.iter().map(Accumulator::count).sum()))
}

/// Measures every cell by the statistics of its fold's place.
fn measure_all(
    fitter: &mut Fitter,
    cells: &[FoldCell],
    statistics: &[OwnedStatistics],
    settings: &Settings,
    projection: &Projection,
    tick: &Tick<'_>,
    see: impl Fn(usize, &mut Scorer, &Placement) + Sync,
) -> Result<Vec<Result<Scores, Invalid>>, FitError> {
    let everyone: Vec<Cell> = cells.iter().map(|c| c.cell.clone()).collect();
    let views: Vec<_> = statistics.iter().map(OwnedStatistics::view).collect();
    let measured = Outcomes::new(cells.len());
    fitter.score(&everyone, settings, projection, |index, scorer, loaded| {
        let outcome = loaded.and_then(|placement| {
            let scores = scorer.measure(&views[cells[index].fold])?;
            see(index, scorer, &placement);
            Ok(scores)
        });
        measured.set(index, outcome);
        tick(1)
    })?;
    Ok(measured.into_all().map(|measured| measured.unwrap_or(Err(Invalid::NotMeasured))).collect())
}
