//! The outcome of an evaluation: what `eval --json` prints and what the HTML page shows.
//!
//! Every struct serialises its fields in the order in which they stand here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::dataset::Count;
use super::folds::Binarisation;
use super::metrics::{self, Confusion, Goal, Interval, Point, Ranking};
use super::pixel::PixelResult;

/// Said on every evaluation of ELPV.
pub const ELPV_CAVEATS: [&str; 2] = [
    "ELPV does not say which cell belongs to which of its 44 modules: cells of one module can lie on both sides of a \
     split, so the figures are likely better than they would be on a module never seen.",
    "The default backbone was distilled on EL images that include ELPV's, without their labels; imported ImageNet \
     weights have not seen them.",
];

/// A whole evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalResult {
    /// Program and version.
    pub tool: String,
    /// When, RFC 3339, UTC.
    pub created: String,
    /// The data set's name.
    pub data: String,
    /// Its images.
    pub images: usize,
    /// Images for each label and type.
    pub counts: Vec<Count>,
    /// Backbone, its hash, grid, k, S and the like, in the order in which to show them.
    pub settings: Vec<Setting>,
    /// Folds.
    pub folds: usize,
    /// The seed of the split.
    pub seed: u64,
    /// What thresholds were chosen for, on the training folds.
    pub threshold_goal: Goal,
    /// Images that could not be judged, and how many for each reason; they count as rejected.
    pub invalid: BTreeMap<String, usize>,
    /// One for each question.
    pub binarisations: Vec<BinarisationResult>,
    /// With masks only.
    pub pixel: Option<PixelResult>,
    /// Other ways of judging the same cells, for an ablation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<Variant>,
    /// The same with other splits into folds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repeats: Vec<Repeat>,
    /// What a reader must know before believing the figures.
    pub caveats: Vec<String>,
}

/// A way of judging among several on the same cells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// In a few words.
    pub name: String,
    /// One for each question.
    pub binarisations: Vec<BinarisationResult>,
}

/// An evaluation with another split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Repeat {
    /// The seed of the split.
    pub seed: u64,
    /// One for each question.
    pub binarisations: Vec<BinarisationResult>,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl Setting {
    /// A setting.
    #[must_use]
    pub fn new(name: impl Into<String>, value: impl ToString) -> Self {
        Self { name: name.into(), value: value.to_string() }
    }
}

/// The answers to one question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BinarisationResult {
    /// The question.
    pub binarisation: Binarisation,
    /// In words.
    pub title: String,
    /// All cells first, then each type apart.
    pub groups: Vec<GroupResult>,
}

/// The figures of one group of cells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupResult {
    /// `all`, or the type.
    pub group: String,
    /// Cells that the question asks about.
    pub cells: usize,
    /// Defective ones among them.
    pub defective: usize,
    /// Mean over the folds.
    pub mean: Figures,
    /// The worst fold, figure by figure.
    pub worst: Figures,
    /// 95 % bootstrap interval of the mean: cells drawn again within each fold and target.
    pub ci95: Intervals,
    /// Decisions of all folds together, each by its own threshold.
    pub confusion: Confusion,
    /// Fold by fold.
    pub folds: Vec<FoldResult>,
    /// Pooled over folds, thinned.
    pub roc: Vec<Point>,
    /// Pooled over folds, thinned.
    pub pr: Vec<Point>,
}

/// One fold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoldResult {
    /// From 0.
    pub fold: usize,
    /// Cells.
    pub cells: usize,
    /// Defective ones among them.
    pub defective: usize,
    /// Chosen on the training folds.
    pub threshold: f32,
    /// The fold's figures.
    pub figures: Figures,
    /// The fold's decisions.
    pub confusion: Confusion,
}

/// The six figures, each a share of 1. A figure that cannot be worked out (one class only) is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Share of right decisions.
    pub accuracy: Option<f64>,
    /// Share of the rejected that are defective.
    pub precision: Option<f64>,
    /// Share of the defective that are rejected.
    pub recall: Option<f64>,
    /// Harmonic mean of the two.
    pub f1: Option<f64>,
    /// Area under the ROC curve.
    pub auroc: Option<f64>,
    /// Average precision.
    pub aupr: Option<f64>,
}

/// The figures' intervals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Intervals {
    /// Of accuracy.
    pub accuracy: Option<Interval>,
    /// Of precision.
    pub precision: Option<Interval>,
    /// Of recall.
    pub recall: Option<Interval>,
    /// Of F1.
    pub f1: Option<Interval>,
    /// Of AUROC.
    pub auroc: Option<Interval>,
    /// Of AUPR.
    pub aupr: Option<Interval>,
}

/// The names of the figures, in order.
pub const FIGURE_NAMES: [&str; 6] = ["Accuracy", "Precision", "Recall", "F1", "AUROC", "AUPR"];

impl Figures {
    /// In the order of [`FIGURE_NAMES`].
    #[must_use]
    pub fn values(&self) -> [Option<f64>; 6] {
        [self.accuracy, self.precision, self.recall, self.f1, self.auroc, self.aupr]
    }

    fn from_values([accuracy, precision, recall, f1, auroc, aupr]: [Option<f64>; 6]) -> Self {
        Self { accuracy, precision, recall, f1, auroc, aupr }
    }

    /// Of one fold's decisions and ranking. AUPR, like AUROC, needs both classes; F1 and recall a defective cell.
    fn new(confusion: &Confusion, ranking: &Ranking) -> Self {
        let cells = confusion.total() > 0;
        let positives = confusion.tp + confusion.fn_ > 0;
        Self {
            accuracy: cells.then(|| confusion.accuracy()),
            precision: positives.then(|| confusion.precision()),
            recall: positives.then(|| confusion.recall()),
            f1: positives.then(|| confusion.f1()),
            auroc: ranking.auroc(),
            aupr: ranking.aupr().filter(|_| ranking.negatives() > 0),
        }
    }
}

impl Intervals {
    /// In the order of [`FIGURE_NAMES`].
    #[must_use]
    pub fn values(&self) -> [Option<Interval>; 6] {
        [self.accuracy, self.precision, self.recall, self.f1, self.auroc, self.aupr]
    }

    fn from_values([accuracy, precision, recall, f1, auroc, aupr]: [Option<Interval>; 6]) -> Self {
        Self { accuracy, precision, recall, f1, auroc, aupr }
    }
}

/// A judged cell, as far as one question asks about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored<'a> {
    /// The fold that tested it.
    pub fold: usize,
    /// Its score by that fold's statistics; not a number (INVALID) counts as rejected.
    pub score: f32,
    /// Whether it is defective ([`Binarisation::target`]; leave out cells without answer).
    pub target: bool,
    /// Its type, if known.
    pub kind: Option<&'a str>,
}

/// How [`BinarisationResult::new`] works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Bootstrap draws; 1,000 give the interval's ends to about a tenth of its width.
    pub resamples: usize,
    /// The seed of the draws.
    pub seed: u64,
    /// Points kept of each curve.
    pub curve_points: usize,
}

impl Default for Method {
    fn default() -> Self {
        Self { resamples: 1000, seed: 0, curve_points: 250 }
    }
}

impl BinarisationResult {
    /// Works out all figures of one question from the test scores of all folds; `thresholds[fold]` was chosen on that
    /// fold's training cells. Each type gets its own group if there is more than one.
    ///
    /// # Panics
    /// If a cell's fold has no threshold.
    #[must_use]
    pub fn new(binarisation: Binarisation, cells: &[Scored<'_>], thresholds: &[f32], method: Method) -> Self {
        let mut kinds: Vec<&str> = cells.iter().filter_map(|cell| cell.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let mut groups = vec![group("all", cells, thresholds, method)];
        if kinds.len() > 1 {
            for kind in kinds {
                let cells: Vec<Scored<'_>> = cells.iter().filter(|cell| cell.kind == Some(kind)).copied().collect();
                groups.push(group(kind, &cells, thresholds, method));
            }
        }
        Self { binarisation, title: binarisation.title().to_string(), groups }
    }
}

fn group(name: &str, cells: &[Scored<'_>], thresholds: &[f32], method: Method) -> GroupResult {
    let split = |chosen: &mut dyn Iterator<Item = &Scored<'_>>| {
        let mut folds = vec![(Vec::new(), Vec::new()); thresholds.len()];
        for cell in chosen {
            let (scores, targets): &mut (Vec<f32>, Vec<bool>) = &mut folds[cell.fold];
            scores.push(cell.score);
            targets.push(cell.target);
        }
        folds
    };
    let figures = |fold: usize, (scores, targets): &(Vec<f32>, Vec<bool>)| {
        let confusion = Confusion::at(thresholds[fold], scores, targets);
        (Figures::new(&confusion, &Ranking::new(scores, targets)), confusion)
    };
    let folds: Vec<FoldResult> = split(&mut cells.iter())
        .iter()
        .enumerate()
        .map(|(fold, cells)| {
            let (figures, confusion) = figures(fold, cells);
            let defective = confusion.tp + confusion.fn_;
            FoldResult { fold, cells: confusion.total(), defective, threshold: thresholds[fold], figures, confusion }
        })
        .collect();
    let mut confusion = Confusion::default();
    folds.iter().for_each(|fold| confusion += fold.confusion);
    let all: Vec<Figures> = folds.iter().map(|fold| fold.figures).collect();
    let strata: Vec<u32> = cells.iter().map(|cell| 2 * cell.fold as u32 + u32::from(cell.target)).collect();
    let ci95 = metrics::bootstrap_many(&strata, method.resamples, method.seed, |drawn| {
        let folds = split(&mut drawn.iter().map(|&index| &cells[index]));
        let figures: Vec<Figures> = folds.iter().enumerate().map(|(fold, cells)| figures(fold, cells).0).collect();
        over_folds(&figures, mean).values()
    });
    let (scores, targets): (Vec<f32>, Vec<bool>) = cells.iter().map(|cell| (cell.score, cell.target)).unzip();
    let pooled = Ranking::new(&scores, &targets);
    GroupResult {
        group: name.to_string(),
        cells: cells.len(),
        defective: pooled.positives(),
        mean: over_folds(&all, mean),
        worst: over_folds(&all, |values| values.iter().copied().reduce(f64::min)),
        ci95: Intervals::from_values(ci95),
        confusion,
        folds,
        roc: pooled.roc(method.curve_points),
        pr: pooled.pr(method.curve_points),
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() { None } else { Some(values.iter().sum::<f64>() / values.len() as f64) }
}

/// Each figure over the folds that have it.
fn over_folds(figures: &[Figures], join: impl Fn(&[f64]) -> Option<f64>) -> Figures {
    let column = |index: usize| -> Vec<f64> { figures.iter().filter_map(|f| f.values()[index]).collect() };
    Figures::from_values(std::array::from_fn(|index| join(&column(index))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells() -> Vec<Scored<'static>> {
        let cell = |fold, score, target, kind| Scored { fold, score, target, kind: Some(kind) };
        vec![
            cell(0, 1.0, false, "mono"),
            cell(0, 2.0, false, "poly"),
            cell(0, 3.0, true, "mono"),
            cell(0, 4.0, true, "poly"),
            cell(1, 1.0, false, "mono"),
            cell(1, 3.5, false, "poly"),
            cell(1, 3.0, true, "mono"),
            cell(1, f32::NAN, true, "poly"),
        ]
    }

    #[test]
    fn figures_are_averaged_and_the_worst_fold_named() {
        let result = BinarisationResult::new(Binarisation::Likely, &cells(), &[2.5, 2.5], Method::default());
        let groups: Vec<(&str, usize, usize)> =
            result.groups.iter().map(|g| (g.group.as_str(), g.cells, g.defective)).collect();
        assert_eq!(groups, [("all", 8, 4), ("mono", 4, 2), ("poly", 4, 2)]);
        let all = &result.groups[0];
        assert_eq!(all.confusion, Confusion { tp: 4, fp: 1, fn_: 0, tn: 3 });
        assert_eq!(all.folds[0].figures.auroc, Some(1.0));
        assert_eq!(all.folds[1].figures.auroc, Some(0.75));
        assert_eq!((all.mean.auroc, all.worst.auroc), (Some(0.875), Some(0.75)));
        assert_eq!((all.mean.accuracy, all.worst.accuracy), (Some(0.875), Some(0.75)));
        let interval = all.ci95.auroc.unwrap();
        assert!(interval.low <= 0.875 && interval.high >= 0.875 && interval.low < interval.high, "{interval:?}");
        assert_eq!(result.groups[1].mean.auroc, Some(1.0));
    }

    #[test]
    fn a_group_without_defects_has_no_areas_but_an_accuracy() {
        let cells: Vec<Scored<'_>> = cells().into_iter().filter(|cell| !cell.target).collect();
        let result = BinarisationResult::new(Binarisation::Certain, &cells, &[2.5, 2.5], Method::default());
        let all = &result.groups[0];
        assert_eq!((all.mean.auroc, all.mean.f1, all.ci95.auroc), (None, None, None));
        assert_eq!(all.mean.accuracy, Some(0.75));
        assert!(all.roc.is_empty() && all.pr.is_empty());
        let empty = BinarisationResult::new(Binarisation::Certain, &[], &[2.5], Method::default());
        assert_eq!(empty.groups[0].mean, Figures::default());
    }

    #[test]
    fn json_keeps_its_order_and_comes_back() {
        let result = BinarisationResult::new(Binarisation::Likely, &cells(), &[2.5, 2.5], Method::default());
        let json = serde_json::to_string(&result).unwrap();
        assert!(json.starts_with(r#"{"binarisation":"likely","title":"Likely"#), "{json}");
        let order =
            ["\"group\"", "\"mean\"", "\"accuracy\"", "\"f1\"", "\"worst\"", "\"ci95\"", "\"confusion\"", "\"fn\""];
        let places: Vec<usize> = order.iter().map(|key| json.find(key).unwrap()).collect();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(serde_json::from_str::<BinarisationResult>(&json).unwrap(), result);
    }
}
