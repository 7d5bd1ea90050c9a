//! How well scores separate defective cells from good ones.
//!
//! A higher score means more anomalous; a target of `true` means defective. A score that is not a number counts as
//! +∞: such a cell is rejected, never passed. A cell is called defective if its score is at or above the threshold.

use serde::{Deserialize, Serialize};

use crate::verdict::quantile;

use crate::sampling;

/// A point of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// False-positive rate (ROC) or recall (precision–recall).
    pub x: f64,
    /// True-positive rate (ROC) or precision (precision–recall).
    pub y: f64,
}

/// Scores sorted from the most anomalous, equal ones joined, with the counts at or above each.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    /// (score, true positives, false positives) when everything at or above that score is called defective.
    steps: Vec<(f32, usize, usize)>,
}

impl Ranking {
    /// Sorts the scores.
    ///
    /// # Panics
    /// If the two slices differ in length.
    #[must_use]
    pub fn new(scores: &[f32], targets: &[bool]) -> Self {
        assert_eq!(scores.len(), targets.len(), "one target a score");
        let worst_if_nan = |score: f32| if score.is_nan() { f32::INFINITY } else { score };
        let mut pairs: Vec<(f32, bool)> =
            scores.iter().map(|&s| worst_if_nan(s)).zip(targets.iter().copied()).collect();
        pairs.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let mut steps: Vec<(f32, usize, usize)> = Vec::with_capacity(pairs.len());
        let (mut tp, mut fp) = (0, 0);
        for (score, target) in pairs {
            (tp, fp) = (tp + usize::from(target), fp + usize::from(!target));
            match steps.last_mut() {
                Some(last) if last.0 == score => (last.1, last.2) = (tp, fp),
                _ => steps.push((score, tp, fp)),
            }
        }
        Self { steps }
    }

    /// Defective items.
    #[must_use]
    pub fn positives(&self) -> usize {
        self.steps.last().map_or(0, |step| step.1)
    }

    /// Good items.
    #[must_use]
    pub fn negatives(&self) -> usize {
        self.steps.last().map_or(0, |step| step.2)
    }

    /// Area under the ROC curve: the probability that a defective cell scores above a good one, ties counting half.
    /// `None` unless there are both.
    #[must_use]
    pub fn auroc(&self) -> Option<f64> {
        let (positives, negatives) = (self.positives(), self.negatives());
        if positives == 0 || negatives == 0 {
            return None;
        }
        let mut twice = 0u128;
        let (mut tp_before, mut fp_before) = (0, 0);
        for &(_, tp, fp) in &self.steps {
            twice += (fp - fp_before) as u128 * (tp + tp_before) as u128;
            (tp_before, fp_before) = (tp, fp);
        }
        Some(twice as f64 / (2.0 * positives as f64 * negatives as f64))
    }

    /// Area under the precision–recall curve as average precision, Σ (R_n − R_n−1) P_n, without interpolation, as
    /// scikit-learn defines it. `None` without a defective item.
    #[must_use]
    pub fn aupr(&self) -> Option<f64> {
        let positives = self.positives();
        if positives == 0 {
            return None;
        }
        let (mut sum, mut tp_before) = (0.0, 0);
        for &(_, tp, fp) in &self.steps {
            sum += (tp - tp_before) as f64 * tp as f64 / (tp + fp) as f64;
            tp_before = tp;
        }
        Some(sum / positives as f64)
    }

    /// The ROC curve from (0, 0) to (1, 1), thinned to at most `max_points` (at least 2). Empty unless there are both
    /// good and defective items.
    #[must_use]
    pub fn roc(&self, max_points: usize) -> Vec<Point> {
        let (positives, negatives) = (self.positives() as f64, self.negatives() as f64);
        if positives == 0.0 || negatives == 0.0 {
            return Vec::new();
        }
        let steps = self.steps.iter().map(|&(_, tp, fp)| Point { x: fp as f64 / negatives, y: tp as f64 / positives });
        thin(std::iter::once(Point { x: 0.0, y: 0.0 }).chain(steps).collect(), max_points)
    }

    /// The precision–recall curve with rising recall, thinned to at most `max_points` (at least 2). Empty without a
    /// defective item.
    #[must_use]
    pub fn pr(&self, max_points: usize) -> Vec<Point> {
        let positives = self.positives() as f64;
        if positives == 0.0 {
            return Vec::new();
        }
        let point =
            |&(_, tp, fp): &(f32, usize, usize)| Point { x: tp as f64 / positives, y: tp as f64 / (tp + fp) as f64 };
        thin(self.steps.iter().map(point).collect(), max_points)
    }

    /// The threshold that is best by `goal` on these scores, half-way between two scores; of equally good ones the
    /// lowest, which rejects most. `None` without items.
    #[must_use]
    pub fn best_threshold(&self, goal: Goal) -> Option<f32> {
        let (positives, negatives) = (self.positives(), self.negatives());
        if self.steps.is_empty() {
            return None;
        }
        let value = |tp: usize, fp: usize| {
            let confusion = Confusion { tp, fp, fn_: positives - tp, tn: negatives - fp };
            match goal {
                Goal::Accuracy => confusion.accuracy(),
                Goal::F1 => confusion.f1(),
            }
        };
        // Calling nothing defective: just above the highest score.
        let mut best = (value(0, 0), next_up(self.steps[0].0));
        for (index, &(score, tp, fp)) in self.steps.iter().enumerate() {
            let value = value(tp, fp);
            if value >= best.0 {
                let below = self.steps.get(index + 1).map_or(score, |step| step.0);
                let middle = below + (score - below) / 2.0;
                best = (value, if middle.is_finite() && middle > below { middle } else { score });
            }
        }
        Some(best.1)
    }
}

/// The next float above a finite one.
fn next_up(score: f32) -> f32 {
    if score.is_finite() { score.next_up() } else { score }
}

/// Keeps at most `max` points, the ends among them, evenly by distance along the curve.
pub(super) fn thin(points: Vec<Point>, max: usize) -> Vec<Point> {
    let max = max.max(2);
    if points.len() <= max {
        return points;
    }
    let length: f64 = points.windows(2).map(|w| (w[1].x - w[0].x).hypot(w[1].y - w[0].y)).sum();
    let pitch = length / (max - 1) as f64;
    let mut kept = vec![points[0]];
    let (mut along, mut next) = (0.0, pitch);
    for pair in points.windows(2) {
        along += (pair[1].x - pair[0].x).hypot(pair[1].y - pair[0].y);
        if along >= next && kept.len() + 1 < max {
            kept.push(pair[1]);
            next = (along / pitch).floor() * pitch + pitch;
        }
    }
    let last = points[points.len() - 1];
    if kept.last() != Some(&last) {
        kept.push(last);
    }
    kept
}

/// What a threshold is chosen for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The most cells right.
    #[default]
    Accuracy,
    /// The best F1.
    F1,
}

/// Area under the ROC curve; see [`Ranking::auroc`].
///
/// # Panics
/// If the slices differ in length.
#[must_use]
pub fn auroc(scores: &[f32], targets: &[bool]) -> Option<f64> {
    Ranking::new(scores, targets).auroc()
}

/// Average precision; see [`Ranking::aupr`].
///
/// # Panics
/// If the slices differ in length.
#[must_use]
pub fn aupr(scores: &[f32], targets: &[bool]) -> Option<f64> {
    Ranking::new(scores, targets).aupr()
}

/// Decisions against the truth; "positive" is "defective".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// Defective and rejected.
    pub tp: usize,
    /// Good and rejected: a false reject.
    pub fp: usize,
    /// Defective and passed: a false pass.
    #[serde(rename = "fn")]
    pub fn_: usize,
    /// Good and passed.
    pub tn: usize,
}

impl Confusion {
    /// Counts one decision.
    pub fn add(&mut self, rejected: bool, defective: bool) {
        match (rejected, defective) {
            (true, true) => self.tp += 1,
            (true, false) => self.fp += 1,
            (false, true) => self.fn_ += 1,
            (false, false) => self.tn += 1,
        }
    }

    /// The decisions of a threshold: defective at or above it, or if the score is not a number.
    ///
    /// # Panics
    /// If the slices differ in length.
    #[must_use]
    pub fn at(threshold: f32, scores: &[f32], targets: &[bool]) -> Self {
        assert_eq!(scores.len(), targets.len(), "one target a score");
        let mut confusion = Self::default();
        for (&score, &target) in scores.iter().zip(targets) {
            confusion.add(is_rejected(score, threshold), target);
        }
        confusion
    }

    /// Decisions counted.
    #[must_use]
    pub fn total(&self) -> usize {
        self.tp + self.fp + self.fn_ + self.tn
    }

    /// The share of right decisions; 0 without any.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        ratio(self.tp + self.tn, self.total())
    }

    /// The share of the rejected that are defective; 0 if none is rejected, as in scikit-learn.
    #[must_use]
    pub fn precision(&self) -> f64 {
        ratio(self.tp, self.tp + self.fp)
    }

    /// The share of the defective that are rejected; 0 if there is none.
    #[must_use]
    pub fn recall(&self) -> f64 {
        ratio(self.tp, self.tp + self.fn_)
    }

    /// The harmonic mean of precision and recall; 0 if both are.
    #[must_use]
    pub fn f1(&self) -> f64 {
        ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn_)
    }
}

impl std::ops::AddAssign for Confusion {
    fn add_assign(&mut self, other: Self) {
        self.tp += other.tp;
        self.fp += other.fp;
        self.fn_ += other.fn_;
        self.tn += other.tn;
    }
}

/// Whether a score is called defective at this threshold; one that is not a number always is.
#[must_use]
pub fn is_rejected(score: f32, threshold: f32) -> bool {
    score >= threshold || score.is_nan()
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// An interval that holds the middle 95 % of the bootstrap's values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// 2.5th percentile.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
}

/// The 95 % percentile interval of `metric` when items are drawn again with replacement, `resamples` times, within
/// each stratum (`strata[i]` is the stratum of item i, such as fold × target). `metric` gets the drawn indices.
/// `None` if it gives no finite value for any draw. Seeded.
#[must_use]
pub fn bootstrap(
    strata: &[u32],
    resamples: usize,
    seed: u64,
    mut metric: impl FnMut(&[usize]) -> Option<f64>,
) -> Option<Interval> {
    let intervals = bootstrap_many(strata, resamples, seed, |drawn| [metric(drawn)]);
    intervals[0]
}

/// [`bootstrap`] of several metrics on the same draws.
#[must_use]
pub fn bootstrap_many<const N: usize>(
    strata: &[u32],
    resamples: usize,
    seed: u64,
    mut metrics: impl FnMut(&[usize]) -> [Option<f64>; N],
) -> [Option<Interval>; N] {
    let mut groups: std::collections::BTreeMap<u32, Vec<usize>> = std::collections::BTreeMap::new();
    for (index, &stratum) in strata.iter().enumerate() {
        groups.entry(stratum).or_default().push(index);
    }
    let mut rng = sampling::generator(seed);
    let mut drawn = Vec::with_capacity(strata.len());
    let mut values: [Vec<f64>; N] = std::array::from_fn(|_| Vec::with_capacity(resamples));
    for _ in 0..resamples {
        drawn.clear();
        for group in groups.values() {
            drawn.extend((0..group.len()).map(|_| group[sampling::below(&mut rng, group.len())]));
        }
        for (values, value) in values.iter_mut().zip(metrics(&drawn)) {
            values.extend(value.filter(|value| value.is_finite()));
        }
    }
    values.map(|mut values| {
        values.sort_unstable_by(f64::total_cmp);
        Some(Interval { low: quantile(&values, 0.025)?, high: quantile(&values, 0.975)? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The example of scikit-learn's documentation.
    const SCORES: [f32; 4] = [0.1, 0.4, 0.35, 0.8];
    const TARGETS: [bool; 4] = [false, false, true, true];

    #[test]
    fn areas_are_those_worked_out_by_hand() {
        assert_eq!(auroc(&SCORES, &TARGETS), Some(0.75));
        assert!((aupr(&SCORES, &TARGETS).unwrap() - 0.833_333_333).abs() < 1e-9);
        // All equal: a coin.
        assert_eq!(auroc(&[1.0; 4], &TARGETS), Some(0.5));
        assert_eq!(aupr(&[1.0; 4], &TARGETS), Some(0.5));
        // One tie of two pairs: (1 + 1/2 + 1 + 1) / 4.
        assert_eq!(auroc(&[0.1, 0.4, 0.4, 0.8], &TARGETS), Some(0.875));
        assert_eq!(auroc(&[1.0, 2.0], &[true, true]), None);
        assert_eq!(aupr(&[1.0, 2.0], &[false, false]), None);
        assert_eq!(auroc(&[], &[]), None);
        // −0 and +0 are one score.
        assert_eq!(auroc(&[0.0, -0.0], &[true, false]), Some(0.5));
        // Not a number: the most anomalous of all.
        assert_eq!(auroc(&[f32::NAN, 5.0], &[true, false]), Some(1.0));
    }

    #[test]
    fn curves_start_and_end_where_they_must() {
        let ranking = Ranking::new(&SCORES, &TARGETS);
        let roc: Vec<(f64, f64)> = ranking.roc(100).iter().map(|p| (p.x, p.y)).collect();
        assert_eq!(roc, [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0)]);
        let pr: Vec<(f64, f64)> = ranking.pr(100).iter().map(|p| (p.x, p.y)).collect();
        assert_eq!(pr, [(0.5, 1.0), (0.5, 0.5), (1.0, 2.0 / 3.0), (1.0, 0.5)]);
        let scores: Vec<f32> = (0..5000).map(|i| (i * 7919 % 5003) as f32).collect();
        let targets: Vec<bool> = (0..5000).map(|i| i % 3 == 0).collect();
        let roc = Ranking::new(&scores, &targets).roc(200);
        assert!(roc.len() <= 200 && roc.len() > 150, "{}", roc.len());
        assert_eq!((roc[0], roc[roc.len() - 1]), (Point { x: 0.0, y: 0.0 }, Point { x: 1.0, y: 1.0 }));
        assert!(roc.windows(2).all(|w| w[0].x <= w[1].x && w[0].y <= w[1].y));
    }

    #[test]
    fn a_confusion_matrix_gives_the_textbook_figures() {
        let confusion = Confusion::at(0.4, &SCORES, &TARGETS);
        assert_eq!(confusion, Confusion { tp: 1, fp: 1, fn_: 1, tn: 1 });
        let confusion = Confusion { tp: 6, fp: 2, fn_: 3, tn: 9 };
        assert_eq!((confusion.accuracy(), confusion.precision(), confusion.recall()), (0.75, 0.75, 6.0 / 9.0));
        assert!((confusion.f1() - 12.0 / 17.0).abs() < 1e-12);
        let none = Confusion::default();
        assert_eq!((none.accuracy(), none.precision(), none.recall(), none.f1()), (0.0, 0.0, 0.0, 0.0));
        assert_eq!(Confusion::at(9.0, &[f32::NAN], &[false]).fp, 1);
    }

    #[test]
    fn the_best_threshold_separates_and_prefers_to_reject() {
        let ranking = Ranking::new(&[1.0, 2.0, 3.0, 4.0], &[false, false, true, true]);
        assert_eq!(ranking.best_threshold(Goal::Accuracy), Some(2.5));
        assert_eq!(ranking.best_threshold(Goal::F1), Some(2.5));
        // 0.8 alone, {0.8, 0.4, 0.35}: three of four right either way; the lower one rejects more.
        let low = Ranking::new(&SCORES, &TARGETS).best_threshold(Goal::Accuracy).unwrap();
        assert!(low > 0.1 && low <= 0.35, "{low}");
        // Only good cells: nothing is rejected.
        let above = Ranking::new(&[1.0, 2.0], &[false, false]).best_threshold(Goal::Accuracy).unwrap();
        assert_eq!(Confusion::at(above, &[1.0, 2.0], &[false, false]).fp, 0);
        assert_eq!(Ranking::new(&[], &[]).best_threshold(Goal::F1), None);
        // Two neighbouring floats: the threshold still separates them.
        let (a, b) = (1.0f32, 1.0f32.next_up());
        let threshold = Ranking::new(&[a, b], &[false, true]).best_threshold(Goal::Accuracy).unwrap();
        assert_eq!(Confusion::at(threshold, &[a, b], &[false, true]).accuracy(), 1.0);
    }

    #[test]
    fn the_bootstrap_covers_a_known_mean_and_repeats() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 10)).collect();
        let mean = |drawn: &[usize]| Some(drawn.iter().map(|&i| values[i]).sum::<f64>() / drawn.len() as f64);
        let interval = bootstrap(&vec![0; 400], 2000, 1, mean).unwrap();
        // σ/√n = 2.872/20: ±1.96 of it about 4.5.
        assert!((interval.low - 4.2185).abs() < 0.04 && (interval.high - 4.7815).abs() < 0.04, "{interval:?}");
        assert_eq!(Some(interval), bootstrap(&vec![0; 400], 2000, 1, mean));
        // Strata of equal values leave nothing to chance.
        let strata: Vec<u32> = (0..400).map(|i| i % 10).collect();
        let fixed = bootstrap(&strata, 50, 1, mean).unwrap();
        assert!((fixed.low - 4.5).abs() < 1e-9 && (fixed.high - 4.5).abs() < 1e-9);
        assert_eq!(bootstrap(&[0, 0], 10, 1, |_| None), None);
    }

    #[test]
    fn quantiles_are_numpys() {
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.25), Some(1.75));
        assert_eq!(quantile(&[5.0], 0.9), Some(5.0));
        assert_eq!(quantile::<f64>(&[], 0.5), None);
    }

    fn scored() -> impl Strategy<Value = Vec<(f32, bool)>> {
        proptest::collection::vec(((-20i8..20).prop_map(|s| f32::from(s) / 4.0), any::<bool>()), 0..80)
    }

    proptest! {
        #[test]
        fn auroc_is_the_count_of_ordered_pairs(pairs in scored()) {
            let (scores, targets): (Vec<f32>, Vec<bool>) = pairs.iter().copied().unzip();
            let (mut won, mut all) = (0.0, 0.0);
            for &(bad, _) in pairs.iter().filter(|p| p.1) {
                for &(good, _) in pairs.iter().filter(|p| !p.1) {
                    all += 1.0;
                    won += if bad > good { 1.0 } else if bad == good { 0.5 } else { 0.0 };
                }
            }
            match auroc(&scores, &targets) {
                None => prop_assert_eq!(all, 0.0),
                Some(area) => prop_assert!((area - won / all).abs() < 1e-12),
            }
        }

        #[test]
        fn areas_do_not_change_under_monotone_maps(pairs in scored()) {
            let (scores, targets): (Vec<f32>, Vec<bool>) = pairs.into_iter().unzip();
            let mapped: Vec<f32> = scores.iter().map(|s| s.exp() * 3.0 + 1.0).collect();
            prop_assert_eq!(auroc(&scores, &targets), auroc(&mapped, &targets));
            prop_assert_eq!(aupr(&scores, &targets), aupr(&mapped, &targets));
        }

        #[test]
        fn no_threshold_beats_the_best(pairs in scored()) {
            let (scores, targets): (Vec<f32>, Vec<bool>) = pairs.into_iter().unzip();
            prop_assume!(!scores.is_empty());
            let ranking = Ranking::new(&scores, &targets);
            for (goal, value) in [(Goal::Accuracy, Confusion::accuracy as fn(&Confusion) -> f64), (Goal::F1, Confusion::f1)] {
                let best = value(&Confusion::at(ranking.best_threshold(goal).unwrap(), &scores, &targets));
                for threshold in scores.iter().copied().chain([f32::INFINITY]) {
                    prop_assert!(value(&Confusion::at(threshold, &scores, &targets)) <= best);
                }
            }
        }
    }
}
