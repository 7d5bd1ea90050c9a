//! Whether the line's good cells move away from the fit, and how many cells were lately taken out.
//!
//! A calibrated score is the rank of a cell among held-out good cells: up to the threshold, twice the score is the share
//! of them (below the threshold) that a cell exceeds. While the line is as it was, the cells of class A below the threshold
//! are such cells, so that twice their score is spread evenly over 0 to 1. [`Drift`] keeps the last N of them and asks how far
//! the share
//! above the calibration's median (expected: one half) and above its 90 % quantile (one tenth) is from that.
//!
//! The measure is the signed root of the deviance, `z = ±√(2·n·KL(share ‖ expected))`, with `1/n = 1/N + 1/held-out`: the
//! calibration's own quantiles are estimates, and few held-out cells make a station slow to cry wolf rather than wrong. The
//! alarm begins at |z| ≥ `alarm` and ends when both are below `clear`. What that means in false alarms and delays is
//! measured by this module's tests, and said in `docs/operations.md`.

use serde::{Deserialize, Serialize};

use super::OperationsConfigError;
use crate::station::status::Said;
use crate::verdict::{Calibration, Class, DECISION, quantile};

/// Expected shares above the median and the 90 % quantile.
const EXPECTED: [f64; 2] = [0.5, 0.1];
/// Where they begin, in twice the score.
const FROM: [f32; 2] = [0.5, 0.9];
/// Fewest cells that are tested.
const FEWEST: usize = 100;

/// The section `[operations.drift]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct DriftConfig {
    /// Cells that are looked at: the last so many of class A, and for rates the last so many of all; 100 to 100000, 500 by
    /// default.
    pub window: usize,
    /// Deviation in standard errors at which the alarm begins, 3 to 20; 5 by default.
    pub alarm: f64,
    /// Deviation below which it ends, 0 to `alarm`; 3 by default.
    pub clear: f64,
}

impl Default for DriftConfig {
    fn default() -> Self {
        Self { window: 500, alarm: 5.0, clear: 3.0 }
    }
}

impl DriftConfig {
    pub(super) fn validate(&self) -> Result<(), OperationsConfigError> {
        let wrong = |key, value: String, allowed| Err(OperationsConfigError { key, value, allowed });
        if !(FEWEST..=100_000).contains(&self.window) {
            return wrong("drift.window", self.window.to_string(), "lie from 100 to 100000");
        }
        if !(3.0..=20.0).contains(&self.alarm) {
            return wrong("drift.alarm", self.alarm.to_string(), "lie from 3 to 20");
        }
        if !(0.0..=self.alarm).contains(&self.clear) {
            return wrong("drift.clear", self.clear.to_string(), "lie from 0 to drift.alarm");
        }
        Ok(())
    }
}

/// What the last cells say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DriftReport {
    /// The line's good cells have moved away from the fit.
    pub alarm: bool,
    /// Cells of class A that this is about.
    pub cells: usize,
    /// How far the share above the calibration's median is from one half, in standard errors; above 0: cells look worse
    /// than those of the fit. None with too few cells or without a calibration.
    pub median: Option<f64>,
    /// The same of the share above the 90 % quantile.
    pub upper: Option<f64>,
    /// The score's 10, 50 and 90 % quantiles over these cells; in the state of the fit 0.05, 0.25 and 0.45.
    pub scores: Option<[f32; 3]>,
    /// Share of class C among the last cells of all kinds.
    pub rejects: Option<f64>,
    /// Share that could not be judged.
    pub invalid: Option<f64>,
}

/// Watches the last cells. Everything is allocated when it is made.
#[derive(Clone, Debug)]
pub struct Drift {
    config: DriftConfig,
    /// Held-out cells below the calibration's threshold; 0 without a calibration.
    held_out: f64,
    good: Ring<f32>,
    /// Scores of `good` above each of [`FROM`].
    above: [usize; 2],
    all: Ring<Kind>,
    rejects: usize,
    invalid: usize,
    alarm: bool,
    sorted: Vec<f32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Passed,
    Rejected,
    Invalid,
}

impl Drift {
    /// For scores by this calibration.
    #[must_use]
    pub fn new(config: &DriftConfig, calibration: Option<&Calibration>) -> Self {
        let held_out = calibration.map_or(0.0, |calibration| {
            let below = calibration.quantiles.partition_point(|&distance| distance <= calibration.threshold);
            f64::from(calibration.cells) * below as f64 / calibration.quantiles.len().max(1) as f64
        });
        let window = config.window.max(1);
        Self {
            config: config.clone(),
            held_out,
            good: Ring::new(window),
            above: [0; 2],
            all: Ring::new(window),
            rejects: 0,
            invalid: 0,
            alarm: false,
            sorted: Vec::with_capacity(window),
        }
    }

    /// Another model's scores follow: what was seen says nothing of them.
    pub fn restart(&mut self, calibration: Option<&Calibration>) {
        *self = Self::new(&self.config, calibration);
    }

    /// Whether there is an alarm.
    #[must_use]
    pub fn alarm(&self) -> bool {
        self.alarm
    }

    /// Counts a cell; `score` is the calibrated one. Allocates nothing. Gives whether there is an alarm now.
    pub fn record(&mut self, said: Said, score: Option<f32>) -> bool {
        let kind = match said {
            Said::Class(Class::C) => Kind::Rejected,
            Said::Class(_) => Kind::Passed,
            Said::Invalid(_) => Kind::Invalid,
        };
        let gone = self.all.push(kind);
        for (count, which) in [(&mut self.rejects, Kind::Rejected), (&mut self.invalid, Kind::Invalid)] {
            *count += usize::from(kind == which);
            *count -= usize::from(gone == Some(which));
        }
        // Below the threshold only: beyond it a classifier may let good cells pass, more or fewer of them than the held-out
        // cells can tell.
        let good = said == Said::Class(Class::A);
        if let Some(score) = score.filter(|score| good && (0.0..=DECISION).contains(score)) {
            let gone = self.good.push(score);
            for (above, from) in self.above.iter_mut().zip(FROM) {
                *above += usize::from(score > from * DECISION);
                *above -= usize::from(gone.is_some_and(|gone| gone > from * DECISION));
            }
            self.decide();
        }
        self.alarm
    }

    /// What the last cells say. Sorts their scores.
    pub fn report(&mut self) -> DriftReport {
        self.sorted.clear();
        self.sorted.extend_from_slice(&self.good.values);
        self.sorted.sort_unstable_by(f32::total_cmp);
        let at = |q| quantile(&self.sorted, q).map(|score| score as f32);
        let scores = at(0.1).zip(at(0.5)).zip(at(0.9)).map(|((low, middle), high)| [low, middle, high]);
        let cells = self.all.values.len();
        let share = |count: usize| (cells > 0).then(|| count as f64 / cells as f64);
        let [median, upper] = self.deviations();
        DriftReport {
            alarm: self.alarm,
            cells: self.good.values.len(),
            median,
            upper,
            scores,
            rejects: share(self.rejects),
            invalid: share(self.invalid),
        }
    }

    fn deviations(&self) -> [Option<f64>; 2] {
        let cells = self.good.values.len();
        if cells < FEWEST || self.held_out < 1.0 {
            return [None; 2];
        }
        let n = 1.0 / (1.0 / cells as f64 + 1.0 / self.held_out);
        std::array::from_fn(|i| Some(deviation(self.above[i] as f64 / cells as f64, EXPECTED[i], n)))
    }

    fn decide(&mut self) {
        let limit = if self.alarm { self.config.clear } else { self.config.alarm };
        self.alarm = self.deviations().iter().flatten().any(|z| z.abs() >= limit);
    }
}

/// The signed root of the deviance of a share among `n` cells from the expected one.
fn deviation(share: f64, expected: f64, n: f64) -> f64 {
    let part = |p: f64, q: f64| if p > 0.0 { p * (p / q).ln() } else { 0.0 };
    let divergence = part(share, expected) + part(1.0 - share, 1.0 - expected);
    (2.0 * n * divergence.max(0.0)).sqrt().copysign(share - expected)
}

/// The last so many values.
#[derive(Clone, Debug)]
struct Ring<T> {
    values: Vec<T>,
    next: usize,
    size: usize,
}

impl<T: Copy> Ring<T> {
    fn new(size: usize) -> Self {
        Self { values: Vec::with_capacity(size), next: 0, size }
    }

    /// Adds one, and gives the one that it takes the place of.
    fn push(&mut self, value: T) -> Option<T> {
        let at = self.next;
        self.next = (at + 1) % self.size;
        match self.values.get_mut(at) {
            Some(place) => Some(std::mem::replace(place, value)),
            None => {
                self.values.push(value);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heatmap::{ScoreKind, Scores};

    /// Normally distributed numbers (Box and Muller over SplitMix64).
    struct Normal(u64);

    impl Normal {
        fn next(&mut self) -> f64 {
            let mut uniform = || {
                self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = self.0;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
            };
            let (u, v) = (uniform().max(1e-300), uniform());
            (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
        }
    }

    /// Distances of good cells: log-normal about 10, so that they are skewed as real ones are.
    fn distance(normal: &mut Normal, shift: f64) -> f32 {
        (10.0 * (0.15 * (normal.next() + shift)).exp()) as f32
    }

    fn calibration(normal: &mut Normal, cells: usize) -> Calibration {
        let scores: Vec<Scores> =
            (0..cells).map(|_| distance(normal, 0.0)).map(|top| Scores { top, max: top, mean: top }).collect();
        Calibration::new(ScoreKind::Top, &scores, 20.0, &[], 0.01).unwrap()
    }

    /// Records a cell as the station would, with what the score alone says.
    fn see(drift: &mut Drift, calibration: &Calibration, distance: f32) -> bool {
        let score = calibration.score(distance);
        let class = calibration.decide(score).class();
        drift.record(Said::Class(class.unwrap()), Some(score))
    }

    #[test]
    fn a_line_that_stays_as_it_was_raises_no_alarm_in_a_hundred_thousand_cells() {
        for (seed, cells) in [(1, 50), (2, 100), (3, 200), (4, 1000), (5, 200), (6, 400)] {
            let mut normal = Normal(seed);
            let calibration = calibration(&mut normal, cells);
            let mut drift = Drift::new(&DriftConfig::default(), Some(&calibration));
            let mut largest: f64 = 0.0;
            for cell in 0..100_000 {
                let distance = distance(&mut normal, 0.0);
                assert!(!see(&mut drift, &calibration, distance), "seed {seed}, {cells} held out, cell {cell}");
                largest = drift.deviations().into_iter().flatten().map(f64::abs).fold(largest, f64::max);
            }
            println!("seed {seed}: {cells} held out, the largest deviation was {largest:.2}");
        }
    }

    #[test]
    fn a_shift_by_one_standard_deviation_is_noticed_within_some_hundreds_of_cells() {
        for (seed, cells, within) in [(11, 100, 600), (12, 200, 400), (13, 500, 300), (14, 1000, 300)] {
            for shift in [1.0, -1.0] {
                let mut normal = Normal(seed);
                let calibration = calibration(&mut normal, cells);
                let mut drift = Drift::new(&DriftConfig::default(), Some(&calibration));
                for _ in 0..2000 {
                    let distance = distance(&mut normal, 0.0);
                    assert!(!see(&mut drift, &calibration, distance));
                }
                let noticed = (1..5000).find(|_| {
                    let distance = distance(&mut normal, shift);
                    see(&mut drift, &calibration, distance)
                });
                println!("{cells} held out, shift {shift}: noticed after {noticed:?} cells");
                assert!(noticed.is_some_and(|after| after <= within), "{cells} held out, {shift}: {noticed:?}");
                let report = drift.report();
                assert!(report.alarm && report.median.unwrap() * shift > 0.0, "{report:?}");
                // And ends when the line is as before, without going on and off.
                let mut changes = 0;
                let mut before = true;
                for _ in 0..3000 {
                    let distance = distance(&mut normal, 0.0);
                    let now = see(&mut drift, &calibration, distance);
                    changes += u32::from(now != before);
                    before = now;
                }
                assert!(!before && changes == 1, "{cells} held out, {shift}: {changes} changes, alarm {before}");
            }
        }
    }

    #[test]
    fn rates_and_quantiles_are_those_of_the_last_cells() {
        let config = DriftConfig { window: 100, ..DriftConfig::default() };
        let mut drift = Drift::new(&config, None);
        assert_eq!(drift.report(), DriftReport::default());
        for _ in 0..500 {
            drift.record(Said::Class(Class::C), Some(0.9));
        }
        for i in 0..100_u32 {
            let said = match i % 10 {
                0 => Said::Class(Class::C),
                1 | 2 => Said::Invalid("dim"),
                3 => Said::Class(Class::B),
                _ => Said::Class(Class::A),
            };
            drift.record(said, Some(if i % 10 < 4 { 0.6 } else { i as f32 / 250.0 }));
        }
        let report = drift.report();
        assert_eq!((report.rejects, report.invalid, report.cells), (Some(0.1), Some(0.2), 60));
        assert!((report.scores.unwrap()[1] - 0.206).abs() < 0.01, "{report:?}");
        assert_eq!(
            (report.alarm, report.median),
            (false, None),
            "without a calibration there is nothing to compare with"
        );
        drift.record(Said::Class(Class::A), Some(f32::NAN));
        drift.record(Said::Class(Class::A), Some(0.51));
        drift.record(Said::Class(Class::A), None);
        assert_eq!(drift.report().cells, 60);
    }

    #[test]
    fn few_held_out_cells_make_it_deaf_and_another_model_begins_anew() {
        let mut normal = Normal(21);
        let calibration = calibration(&mut normal, 10);
        let mut drift = Drift::new(&DriftConfig::default(), Some(&calibration));
        for _ in 0..1000 {
            let distance = distance(&mut normal, 0.5);
            assert!(!see(&mut drift, &calibration, distance));
        }
        drift.restart(Some(&calibration));
        assert_eq!(drift.report().cells, 0);
    }
}
