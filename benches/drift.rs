//! The drift alarm, measured: how often it is wrong, and how long it takes. `cargo bench --bench drift`; the numbers stand in
//! `docs/operations.md`. Cells are drawn from a fixed seed, their distances log-normal.
#![allow(missing_docs)]

use cellgate::heatmap::{ScoreKind, Scores};
use cellgate::operations::drift::{Drift, DriftConfig};
use cellgate::station::status::Said;
use cellgate::verdict::{Calibration, Class};

/// Calibrations for each number of held-out cells, and cells of an unmoved line after each.
const RUNS: (u64, usize) = (300, 100_000);
/// Calibrations for each delay.
const SHIFTED: u64 = 200;
/// Cells after which a delay is called endless.
const ENDLESS: usize = 20_000;

/// Normally distributed numbers (Box and Muller over SplitMix64).
struct Normal(u64);

impl Normal {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The distance of a good cell of a line that has moved by `shift` standard deviations.
    fn distance(&mut self, shift: f64) -> f32 {
        let (u, v) = (self.uniform().max(1e-300), self.uniform());
        let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        (10.0 * (0.15 * (normal + shift)).exp()) as f32
    }
}

/// A line, its calibration on so many held-out cells, and the watch over it.
struct Line {
    normal: Normal,
    calibration: Calibration,
    drift: Drift,
}

impl Line {
    fn new(seed: u64, held_out: usize) -> Self {
        let mut normal = Normal(seed);
        let scores: Vec<Scores> =
            (0..held_out).map(|_| normal.distance(0.0)).map(|top| Scores { top, max: top, mean: top }).collect();
        let calibration = Calibration::new(ScoreKind::Top, &scores, 20.0, &[], 0.01).unwrap();
        let drift = Drift::new(&DriftConfig::default(), Some(&calibration));
        Self { normal, calibration, drift }
    }

    fn cell(&mut self, shift: f64) -> bool {
        let score = self.calibration.score(self.normal.distance(shift));
        let class = self.calibration.decide(score).class().unwrap_or(Class::C);
        self.drift.record(Said::Class(class), Some(score))
    }
}

fn main() {
    for held_out in [50, 100, 200, 500, 2000] {
        let mut alarms = 0;
        for run in 0..RUNS.0 {
            let mut line = Line::new(run * 7919 + held_out as u64, held_out);
            let mut before = false;
            for _ in 0..RUNS.1 {
                let now = line.cell(0.0);
                alarms += u32::from(now && !before);
                before = now;
            }
        }
        print!(
            "{held_out:>5} held out: {alarms} alarms in {:e} unmoved cells; median and 95 % delay",
            (RUNS.0 as usize * RUNS.1) as f64
        );
        for shift in [0.5, 1.0, 2.0, -1.0] {
            let mut delays: Vec<Option<usize>> = (0..SHIFTED)
                .map(|run| {
                    let mut line = Line::new(run * 104_729 + held_out as u64 + 5, held_out);
                    for _ in 0..1000 {
                        line.cell(0.0);
                    }
                    (1..ENDLESS).find(|_| line.cell(shift))
                })
                .collect();
            // The endless ones last.
            delays.sort_by_key(|delay| delay.unwrap_or(usize::MAX));
            let shown = |index: usize| delays[index].map_or("-".into(), |delay| delay.to_string());
            print!("; {shift:+}: {}, {}", shown(delays.len() / 2), shown(delays.len() * 95 / 100));
        }
        println!();
    }
}
