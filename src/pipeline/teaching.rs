//! What labelled cells look like to the classifier: each measured by statistics that have not seen it.

use crate::classifier::evidence::{Evidence, Witness};
use crate::classifier::judge::JudgeSettings;
use crate::embedding::Projection;
use crate::gaussian::Statistics;
use crate::heatmap::Scores;
use crate::model::Settings;
use crate::simd::Isa;
use crate::verdict::Invalid;

use super::crossval::{FoldCell, Tick, hold_out_each};
use super::fitting::{Cell, FitError, Fitter};
use super::outcomes::Outcomes;
use super::scorer::Scorer;

/// By which statistics labelled cells are measured.
#[derive(Clone, Copy)]
pub enum By<'a> {
    /// Those of the other cells of so many folds: where the model has seen the labelled cells.
    OtherFolds(usize),
    /// The model's own: where it has not seen the labelled cells.
    Model(&'a Statistics<'a>),
}

/// A cell's scores and what the classifier sees of it, or why it cannot be judged.
pub type Seen = Result<(Scores, Evidence), Invalid>;

/// Measures cells and gathers what the classifier sees of each, by the views and on the planes of `judge`; a cell that cannot
/// be judged says why.
///
/// # Errors
/// As [`hold_out_each`].
pub fn gather(
    fitter: &mut Fitter,
    cells: &[FoldCell],
    settings: &Settings,
    projection: &Projection,
    by: By<'_>,
    judge: &JudgeSettings,
    tick: &Tick<'_>,
) -> Result<Vec<Seen>, FitError> {
    let seen: Outcomes<Result<Evidence, Invalid>> = Outcomes::new(cells.len());
    let look = |index: usize, scorer: &mut Scorer| {
        let (size, grid, k) = (settings.size as usize, settings.grid as usize, settings.k as usize);
        let mut witness = Witness::new(size, grid, k, judge.side, Isa::detect());
        seen.set(index, scorer.show(&mut witness, judge.views as usize).map(|()| Evidence::of(&witness)));
    };
    let scores = match by {
        By::OtherFolds(folds) => {
            hold_out_each(fitter, cells, folds, settings, projection, tick, |index, scorer, _| look(index, scorer))?
        }
        By::Model(statistics) => {
            let everyone: Vec<Cell> = cells.iter().map(|cell| cell.cell.clone()).collect();
            let measured = Outcomes::new(cells.len());
            fitter.score(&everyone, settings, projection, |index, scorer, loaded| {
                let outcome = loaded.and_then(|_| scorer.measure(statistics));
                if outcome.is_ok() {
                    look(index, scorer);
                }
                measured.set(index, outcome);
                tick(1)
            })?;
            measured.into_all().map(|outcome| outcome.unwrap_or(Err(Invalid::NotMeasured))).collect()
        }
    };
    let both = scores.into_iter().zip(seen.into_all());
    Ok(both.map(|(scores, seen)| Ok((scores?, seen.unwrap_or(Err(Invalid::NotMeasured))?))).collect())
}
