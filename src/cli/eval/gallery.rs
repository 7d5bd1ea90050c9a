//! The worst mistakes of an evaluation, with their pictures.

use crate::eval::dataset::Item;
use crate::eval::folds::Binarisation;
use crate::eval::metrics::is_rejected;
use crate::eval::report::{Mistake, MistakeKind, Picture, Pictures};
use crate::heatmap::overlay;
use crate::model::Settings;
use crate::pipeline::Outcomes;
use crate::pipeline::crossval::{FoldCell, FoldModel, FoldScores};
use crate::pipeline::fitting::{Cell, FitError};

/// A cell that may turn out to be one of the worst mistakes, as the statistics of its fold saw it.
struct Seen {
    index: usize,
    fold: usize,
    /// What a score was divided by.
    unit: f32,
    image: Vec<f32>,
    heatmap: Vec<f32>,
}

/// Gathers pictures while each fold's statistics are there; which cells are mistakes is known at the end only.
pub struct Gallery {
    question: Binarisation,
    settings: Settings,
    limit: usize,
    seen: Vec<Seen>,
}

impl Gallery {
    /// For `limit` mistakes of each kind in each fold.
    pub fn new(question: Binarisation, settings: &Settings, limit: usize) -> Self {
        Self { question, settings: settings.clone(), limit, seen: Vec::new() }
    }

    /// Keeps the pictures of a fold's test cells of which the worst mistakes will be, whatever the threshold: the
    /// defective ones with the lowest scores and the good ones with the highest. `part` are the indices, among all, of
    /// the cells in `items`, `cells` and `fold`.
    pub fn see(
        &mut self,
        part: &[usize],
        items: &[Item],
        cells: &[FoldCell],
        fold: &FoldScores,
        mut model: FoldModel<'_>,
    ) -> Result<(), FitError> {
        if self.limit == 0 {
            return Ok(());
        }
        let mut defective: Vec<(usize, f32)> = Vec::new();
        let mut good = Vec::new();
        for (index, item) in items.iter().enumerate().filter(|&(index, _)| cells[index].fold == fold.fold) {
            let Ok(scores) = &fold.scores[index] else { continue };
            match item.label.as_ref().and_then(|label| self.question.target(label)) {
                Some(true) => defective.push((index, scores.get(self.settings.score))),
                Some(false) => good.push((index, scores.get(self.settings.score))),
                None => {}
            }
        }
        defective.sort_by(|a, b| a.1.total_cmp(&b.1));
        good.sort_by(|a, b| b.1.total_cmp(&a.1));
        let chosen: Vec<usize> =
            [defective, good].iter().flat_map(|all| all.iter().take(self.limit)).map(|&(index, _)| index).collect();
        let again: Vec<Cell> = chosen.iter().map(|&index| cells[index].cell.clone()).collect();
        let drawn = Outcomes::new(again.len());
        model.look_again(&again, |index, scorer, measured| {
            if measured.is_ok() {
                drawn.set(index, (scorer.image().to_vec(), scorer.heatmap().to_vec()));
            }
        })?;
        for (index, drawn) in chosen.into_iter().zip(drawn.into_all()) {
            let Some((image, heatmap)) = drawn else { continue };
            self.seen.push(Seen { index: part[index], fold: fold.fold, unit: 1.0, image, heatmap });
        }
        Ok(())
    }

    /// Says that the scores of these cells were divided by `unit` in this fold.
    pub fn divided(&mut self, part: &[usize], fold: usize, unit: f32) {
        let seen = self.seen.iter_mut().filter(|seen| seen.fold == fold && part.binary_search(&seen.index).is_ok());
        seen.for_each(|seen| seen.unit = unit);
    }

    /// The mistakes to show, the worst first, and how many false passes and false rejects are left out: together those
    /// of the confusion matrix, by the same scores and thresholds.
    pub fn mistakes(
        self,
        items: &[Item],
        cells: &[FoldCell],
        results: &[FoldScores],
        thresholds: &[f32],
    ) -> (Vec<Mistake>, (usize, usize)) {
        let mut shown = Vec::new();
        let mut left_out = (0, 0);
        let mut taken = vec![(0, 0); results.len()];
        for wrong in mistakes(self.question, &self.settings, items, cells, results, thresholds) {
            let (taken, left_out) = match wrong.kind {
                MistakeKind::FalsePass => (&mut taken[wrong.fold].0, &mut left_out.0),
                MistakeKind::FalseReject => (&mut taken[wrong.fold].1, &mut left_out.1),
            };
            let seen = self.seen.iter().find(|seen| (seen.index, seen.fold) == (wrong.index, wrong.fold));
            let threshold = thresholds[wrong.fold];
            let pictures = seen.filter(|_| *taken < self.limit).and_then(|seen| self.draw(seen, threshold));
            let Some(pictures) = pictures else {
                *left_out += 1;
                continue;
            };
            *taken += 1;
            let item = &items[wrong.index];
            let label = item.label.as_ref().map(ToString::to_string).unwrap_or_default();
            let label = format!("{label} {}", item.kind.as_deref().unwrap_or_default());
            let (kind, id, score) = (wrong.kind, item.id.clone(), wrong.score);
            shown.push(Mistake { kind, id, label, score, threshold, pictures });
        }
        (shown, left_out)
    }

    /// The cell and its heatmap, red where it is far above what the threshold asks for.
    fn draw(&self, seen: &Seen, threshold: f32) -> Option<Pictures> {
        let (side, grid) = (self.settings.size as usize, self.settings.grid as usize);
        let image = overlay::grey(&seen.image, side);
        let threshold = threshold * seen.unit;
        let heat = overlay::draw(&seen.image, side, &seen.heatmap, grid, (0.7 * threshold, 1.6 * threshold), &[]);
        Some(Pictures { image: Picture(overlay::jpeg(&image)?), overlay: Picture(overlay::jpeg(&heat)?) })
    }
}

/// A wrong decision.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Wrong {
    index: usize,
    fold: usize,
    kind: MistakeKind,
    score: f32,
}

/// All wrong decisions on test cells, the worst first; those on cells that could not be judged last.
fn mistakes(
    question: Binarisation,
    settings: &Settings,
    items: &[Item],
    cells: &[FoldCell],
    results: &[FoldScores],
    thresholds: &[f32],
) -> Vec<Wrong> {
    let mut wrong: Vec<Wrong> = Vec::new();
    for (index, (item, cell)) in items.iter().zip(cells).enumerate() {
        let fold = cell.fold;
        let score = super::threshold::number(&results[fold].scores[index], settings.score);
        let target = item.label.as_ref().and_then(|label| question.target(label));
        let kind = match (target, is_rejected(score, thresholds[fold])) {
            (Some(true), false) => MistakeKind::FalsePass,
            (Some(false), true) => MistakeKind::FalseReject,
            _ => continue,
        };
        wrong.push(Wrong { index, fold, kind, score });
    }
    let far = |w: &Wrong| (w.score - thresholds[w.fold]).abs();
    wrong.sort_by(|a, b| far(a).is_nan().cmp(&far(b).is_nan()).then(far(b).total_cmp(&far(a))));
    wrong
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::eval::dataset::Label;
    use crate::heatmap::Scores;
    use crate::verdict::{Class, Invalid};

    #[test]
    fn mistakes_are_those_of_the_thresholds_and_come_worst_first() {
        // Two folds; (fold, class, score as a test cell).
        let cases = [
            (0, Class::C, Some(0.9)),
            (0, Class::A, Some(3.0)),
            (1, Class::C, Some(0.1)),
            (1, Class::A, Some(1.9)),
            (1, Class::A, None),
            (0, Class::C, Some(5.0)),
            (1, Class::A, Some(2.5)),
        ];
        let items: Vec<Item> = (0..cases.len())
            .map(|i| Item { label: Some(Label::Class(cases[i].1)), ..Item::new(PathBuf::new(), i.to_string()) })
            .collect();
        let cell = |i: usize| Cell::file(i.to_string(), PathBuf::new());
        let cells: Vec<FoldCell> =
            (0..cases.len()).map(|i| FoldCell { cell: cell(i), good: false, fold: cases[i].0 }).collect();
        let scores = |fold| {
            let scores = |&(own, _, score): &(usize, Class, Option<f32>)| match score {
                // As a training cell it has another score, which is no decision.
                Some(_) if own != fold => Ok(Scores { top: 99.0, max: 99.0, mean: 99.0 }),
                Some(x) => Ok(Scores { top: x, max: x, mean: x }),
                None => Err(Invalid::NotMeasured),
            };
            FoldScores { fold, scores: cases.iter().map(scores).collect(), fitted: 0 }
        };
        let results = [scores(0), scores(1)];
        let settings = Settings::default();
        let wrong = mistakes(Binarisation::Usable, &settings, &items, &cells, &results, &[1.0, 2.0]);
        let (pass, reject) = (MistakeKind::FalsePass, MistakeKind::FalseReject);
        let found: Vec<_> = wrong.iter().map(|w| (w.index, w.kind)).collect();
        assert_eq!(found, [(1, reject), (2, pass), (6, reject), (0, pass), (4, reject)]);

        // Pictures of two: the others are counted.
        let mut gallery = Gallery::new(Binarisation::Usable, &Settings { size: 64, grid: 4, ..settings }, 1);
        for (index, fold) in [(1, 0), (2, 1), (3, 1), (6, 1)] {
            gallery.seen.push(Seen { index, fold, unit: 1.0, image: vec![0.0; 4096], heatmap: vec![0.0; 16] });
        }
        gallery.divided(&[2, 3], 1, 4.0);
        assert_eq!(gallery.seen.iter().map(|seen| seen.unit).collect::<Vec<_>>(), [1.0, 4.0, 4.0, 1.0]);
        let (shown, left_out) = gallery.mistakes(&items, &cells, &results, &[1.0, 2.0]);
        let shown: Vec<_> = shown.iter().map(|m| (m.id.as_str(), m.threshold)).collect();
        assert_eq!((shown, left_out), (vec![("1", 1.0), ("2", 2.0), ("6", 2.0)], (1, 1)));
    }
}
