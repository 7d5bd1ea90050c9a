//! From a distance to a score between 0 and 1, by good cells that the fit has not seen.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::heatmap::{ScoreKind, Scores};

use super::{Class, Invalid, Outcome};

/// The score at which a cell is no longer class A.
pub const DECISION: f32 = 0.5;
/// The score from which a cell is class C.
pub const CLASS_C: f32 = 0.75;

/// Share of the dimmest good cell's brightness below which a cell is not judged.
const DIMMEST: f32 = 0.85;

/// Fewest held-out cells for a calibration.
pub const MIN_CELLS: usize = 10;

/// Why a calibration could not be made or read.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum CalibrationError {
    /// Not enough good cells were held out.
    #[error(
        "calibrating: {0} good cells are too few, at least {MIN_CELLS} are needed (more cells, or a larger --holdout)"
    )]
    TooFew(usize),
    /// A score of a good cell was not finite.
    #[error("calibrating: a score of a good cell is not finite; the model or the backbone is broken")]
    NotFinite,
    /// The share of good cells that may be rejected is not between 0 and 0.5.
    #[error("calibrating: {0} is not a share of good cells between 0 and 0.5")]
    Overkill(f64),
    /// Stored numbers contradict one another.
    #[error("reading the calibration: {0}")]
    Broken(&'static str),
}

/// What held-out good cells say about scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Which number of the heatmap is the score.
    pub kind: ScoreKind,
    /// Good cells behind it.
    pub cells: u32,
    /// Share of good cells that the threshold was set to reject.
    pub overkill: f64,
    /// Distance at which the score is [`DECISION`].
    pub threshold: f32,
    /// Distance at which the score is [`CLASS_C`].
    pub class_c: f32,
    /// Distance from which a position belongs to a region.
    pub region: f32,
    /// Mean brightness of a cell, of full scale, below which it is not judged: well below every good cell seen. The
    /// features barely notice a cell that is dimmed as a whole (nor did the paper's, section 3.1).
    pub dim_below: f32,
    /// Distances at the quantiles 0, 1/100, … 1 of the held-out cells.
    pub quantiles: Vec<f32>,
}

impl Calibration {
    /// From the scores of held-out good cells and the share of them that may be rejected.
    ///
    /// The threshold is the (1 − overkill) quantile, corrected for the number of cells as in split conformal
    /// prediction: ⌈(n + 1)(1 − overkill)⌉-th smallest. With too few cells for that it is the largest score seen.
    /// `region` is the distance above which a position of the heatmap is shown as a defect; `brightness` are the cells'
    /// means, of full scale.
    ///
    /// # Errors
    /// If there are fewer than 10 cells, a score is not finite, or `overkill` is out of range.
    pub fn new(
        kind: ScoreKind,
        good: &[Scores],
        region: f32,
        brightness: &[f32],
        overkill: f64,
    ) -> Result<Self, CalibrationError> {
        if !(0.0..=0.5).contains(&overkill) {
            return Err(CalibrationError::Overkill(overkill));
        }
        if good.len() < MIN_CELLS {
            return Err(CalibrationError::TooFew(good.len()));
        }
        let mut sorted: Vec<f32> = good.iter().map(|s| s.get(kind)).collect();
        if !region.is_finite() || sorted.iter().any(|s| !s.is_finite()) {
            return Err(CalibrationError::NotFinite);
        }
        sorted.sort_by(f32::total_cmp);
        let n = sorted.len();
        let threshold = sorted[rank(n, overkill) - 1];
        let dimmest = brightness.iter().copied().fold(f32::INFINITY, f32::min);
        let dim_below = if dimmest.is_finite() { DIMMEST * dimmest } else { 0.0 };
        let quantiles: Vec<f32> =
            (0..=100).filter_map(|q| quantile(&sorted, f64::from(q) / 100.0)).map(|x| x as f32).collect();
        let made = Self { kind, cells: n as u32, overkill, threshold, class_c: 0.0, region, dim_below, quantiles };
        Ok(made.moved_to(threshold))
    }

    /// The same cells with another threshold (above 0), for instance one chosen on labelled cells. Class C begins as far
    /// above it as ln 2 times its distance from the median good cell: until a classifier knows better, whatever is
    /// clearly beyond the good cells is a reject.
    #[must_use]
    pub fn moved_to(&self, threshold: f32) -> Self {
        let threshold = threshold.max(f32::MIN_POSITIVE);
        let unit = (threshold - self.quantiles[50]).max(threshold * 1e-3).max(f32::MIN_POSITIVE);
        Self { threshold, class_c: threshold + unit * std::f32::consts::LN_2, ..self.clone() }
    }

    /// How many of the held-out cells lie above the threshold that [`Calibration::new`] set: none where they are too few
    /// for the share asked for. Where several cells share the threshold's distance it is fewer than that.
    #[must_use]
    pub fn above(&self) -> usize {
        self.cells as usize - rank(self.cells as usize, self.overkill)
    }

    /// Whether the stored numbers make sense, as [`Calibration::new`] makes them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn validate(&self) -> Result<(), CalibrationError> {
        let finite = [self.threshold, self.class_c, self.region, self.dim_below]
            .iter()
            .chain(&self.quantiles)
            .all(|x| x.is_finite());
        if !finite || !self.overkill.is_finite() {
            return Err(CalibrationError::Broken("a number is not finite"));
        }
        if self.quantiles.len() != 101 || self.quantiles.windows(2).any(|w| w[0] > w[1]) {
            return Err(CalibrationError::Broken("there are not 101 rising quantiles"));
        }
        if self.threshold <= 0.0 || self.class_c <= self.threshold {
            return Err(CalibrationError::Broken("the thresholds of class A and C are not above zero, in this order"));
        }
        Ok(())
    }

    /// The score of a distance: 0.5·F(x)/F(threshold) up to the threshold, F being the share of held-out good cells
    /// below x; beyond it 1 − 0.5·(threshold/x)^p, with the p that gives [`CLASS_C`] at `class_c`: distances of defects
    /// span powers of ten, and the gravest ones keep their order. Rises with x; NaN stays NaN.
    #[must_use]
    pub fn score(&self, distance: f32) -> f32 {
        if distance > self.threshold {
            let power = std::f32::consts::LN_2 / (self.class_c / self.threshold).ln();
            return 1.0 - 0.5 * (self.threshold / distance).powf(power);
        }
        if distance.is_nan() {
            return distance;
        }
        let limit = self.share_below(self.threshold);
        if limit > 0.0 { DECISION * (self.share_below(distance) / limit).min(1.0) } else { 0.0 }
    }

    /// The class of a score, or that there is none.
    #[must_use]
    pub fn decide(&self, score: f32) -> Outcome {
        if !score.is_finite() {
            return Outcome::Invalid(Invalid::NotFinite);
        }
        if score <= DECISION {
            Class::A.into()
        } else if score < CLASS_C {
            Class::B.into()
        } else {
            Class::C.into()
        }
    }

    fn share_below(&self, x: f32) -> f32 {
        let above = self.quantiles.partition_point(|q| *q <= x);
        if above == 0 {
            // Below every held-out cell: still rising from 0, so that order is kept.
            return 0.005 * (x / self.quantiles[0].max(f32::MIN_POSITIVE)).clamp(0.0, 1.0);
        }
        if above > 100 {
            return 1.0;
        }
        let (low, high) = (self.quantiles[above - 1], self.quantiles[above]);
        let within = (x - low) / (high - low);
        (0.005 + (above as f32 - 1.0 + within) / 100.0).min(1.0)
    }
}

/// Which of `n` cells, from 1 and the smallest, sets the threshold.
fn rank(n: usize, overkill: f64) -> usize {
    (((n + 1) as f64 * (1.0 - overkill)).ceil() as usize).clamp(1, n.max(1)).min(n)
}

/// The `q` quantile (0 to 1) of rising values, linear between neighbours as numpy's default; `None` without values.
#[must_use]
pub fn quantile<T: Copy + Into<f64>>(sorted: &[T], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = q.clamp(0.0, 1.0) * last as f64;
    let [low, high] = [at.floor(), at.ceil()].map(|at| sorted[at as usize].into());
    Some(low + (high - low) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(values: impl IntoIterator<Item = f32>) -> Vec<Scores> {
        values.into_iter().map(|x| Scores { top: x, max: x + 1.0, mean: x / 2.0 }).collect()
    }

    #[test]
    fn half_is_the_threshold_and_scores_rise() {
        let good = scores((0..200).map(|i| 10.0 + i as f32 * 0.01));
        let c = Calibration::new(ScoreKind::Top, &good, 12.0, &[0.5, 0.4, 0.6], 0.05).unwrap();
        c.validate().unwrap();
        assert_eq!(c.threshold, 10.0 + 190.0 * 0.01);
        assert!((c.dim_below - 0.34).abs() < 1e-6);
        assert!((c.score(c.threshold) - DECISION).abs() < 1e-6);
        assert!((c.score(c.class_c) - CLASS_C).abs() < 1e-6);
        let mut last = -1.0;
        for i in 0..4000 {
            let score = c.score(i as f32 * 0.01);
            assert!((0.0..=1.0).contains(&score) && score >= last, "{i}: {score} after {last}");
            last = score;
        }
        assert_eq!(c.decide(c.score(10.5)), Outcome::Pass(Class::A));
        assert_eq!(c.decide(c.score(c.threshold + 0.01)), Outcome::Pass(Class::B));
        assert_eq!(c.decide(c.score(1e6)), Outcome::Reject);
        assert_eq!(c.decide(c.score(f32::NAN)), Outcome::Invalid(Invalid::NotFinite));
    }

    #[test]
    fn as_many_cells_lie_above_the_threshold_as_it_says() {
        for (cells, overkill) in [(17, 0.01), (90, 0.25), (99, 0.01), (250, 0.01), (1000, 0.001), (10, 0.5), (40, 0.0)]
        {
            let good = scores((0..cells).map(|i| (i * 7919 % cells) as f32));
            let c = Calibration::new(ScoreKind::Top, &good, 1.0, &[], overkill).unwrap();
            let above = good.iter().filter(|s| s.top > c.threshold).count();
            assert_eq!(c.above(), above, "{cells} cells, {overkill}");
        }
        let few = Calibration::new(ScoreKind::Top, &scores((0..17).map(|i| i as f32)), 1.0, &[], 0.01).unwrap();
        assert_eq!(few.above(), 0, "1 % of 17 is no cell");
    }

    #[test]
    fn too_few_equal_or_broken_cells() {
        let few = scores((0..9).map(|i| i as f32));
        assert_eq!(Calibration::new(ScoreKind::Top, &few, 1.0, &[], 0.01), Err(CalibrationError::TooFew(9)));
        let equal = Calibration::new(ScoreKind::Max, &scores([3.0; 20]), 1.0, &[], 0.01).unwrap();
        equal.validate().unwrap();
        assert_eq!(equal.decide(equal.score(4.0)), Outcome::Pass(Class::A));
        assert_eq!(equal.decide(equal.score(5.0)), Outcome::Reject);
        let mut broken = scores([3.0; 20]);
        broken[4].top = f32::INFINITY;
        assert_eq!(Calibration::new(ScoreKind::Top, &broken, 1.0, &[], 0.01), Err(CalibrationError::NotFinite));
        assert!(Calibration::new(ScoreKind::Top, &scores([3.0; 20]), 1.0, &[], 0.7).is_err());
    }
}
