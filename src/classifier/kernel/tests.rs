use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;
use crate::simd::Isa;
use crate::workers::Workers;

/// Rows with some structure: two hidden numbers move the columns, a third is noise.
struct Data {
    values: Vec<f32>,
    kinds: Vec<usize>,
    targets: Vec<f32>,
    weights: Vec<f32>,
    groups: Vec<usize>,
}

const TARGETS: usize = 3;

impl Data {
    fn new(n: usize, kinds: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut uniform = move || (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let directions: Vec<[f32; 2]> = (0..WIDTH).map(|_| [uniform(), uniform()]).collect();
        let mut data = Self { values: vec![], kinds: vec![], targets: vec![], weights: vec![], groups: vec![] };
        for i in 0..n {
            let (a, b) = (uniform(), uniform());
            let kind = i % kinds;
            for (column, [da, db]) in directions.iter().enumerate() {
                let offset = if column < POOLED { 0.0 } else { 5.0 * kind as f32 };
                data.values.push(3.0 + offset + da * a + db * b + 0.5 * uniform());
            }
            // One column does not vary at all.
            data.values[i * WIDTH + 7] = 0.25;
            data.kinds.push(kind);
            data.targets.extend([(a * b).signum(), a.signum(), (a + b).signum()]);
            data.weights.extend([1.0, 1.0, [1.0, 0.5, 0.0][i / 5 % 3]]);
            data.groups.push([7, 3, 11][i % 7 % 3]);
        }
        data
    }

    fn rows(&self) -> Rows<'_> {
        Rows { values: &self.values, kinds: &self.kinds }
    }

    fn fit(&self, grid: &Grid) -> Result<Fitted, KernelError> {
        fit(&self.rows(), &self.targets, &self.weights, &self.groups, grid, &Workers::new(2))
    }

    /// The rows for which `keep` holds.
    fn only(&self, keep: impl Fn(usize) -> bool) -> Self {
        let kept: Vec<usize> = (0..self.kinds.len()).filter(|&i| keep(i)).collect();
        let part = |x: &[f32], width: usize| kept.iter().flat_map(|&i| x[i * width..][..width].to_vec()).collect();
        Self {
            values: part(&self.values, WIDTH),
            kinds: kept.iter().map(|&i| self.kinds[i]).collect(),
            targets: part(&self.targets, TARGETS),
            weights: part(&self.weights, TARGETS),
            groups: kept.iter().map(|&i| self.groups[i]).collect(),
        }
    }
}

/// One setting and one λ.
fn single(gamma: f32, w: f32, lambda: f32) -> Grid {
    Grid { uses: Uses::Both, gammas: vec![gamma], heat_weights: vec![w], lambdas: vec![lambda] }
}

/// The textbook in f64: standardise by `train`, Gaussian elimination, predict `test`. Every step from the definition.
fn textbook(train: &Data, test: &Data, grid: &Grid, target: usize) -> Vec<f64> {
    let (gamma, w, lambda) = (f64::from(grid.gammas[0]), f64::from(grid.heat_weights[0]), f64::from(grid.lambdas[0]));
    let statistics = |column: usize, kind: usize| {
        let of = |i: &usize| column < POOLED || train.kinds[*i] == kind;
        let x: Vec<f64> =
            (0..train.kinds.len()).filter(of).map(|i| f64::from(train.values[i * WIDTH + column])).collect();
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        (mean, (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64).sqrt())
    };
    let kinds = train.kinds.iter().max().unwrap() + 1;
    let table: Vec<Vec<(f64, f64)>> =
        (0..kinds).map(|kind| (0..WIDTH).map(|column| statistics(column, kind)).collect()).collect();
    let scaled = |data: &Data| -> Vec<Vec<f64>> {
        let row = |i: usize| {
            let column = |c: usize| {
                let (mean, deviation) = table[data.kinds[i]][c];
                if deviation > 1e-9 { (f64::from(data.values[i * WIDTH + c]) - mean) / deviation } else { 0.0 }
            };
            (0..WIDTH).map(column).collect()
        };
        (0..data.kinds.len()).map(row).collect()
    };
    let (a, b) = (scaled(train), scaled(test));
    let kernel = |x: &[f64], kx: usize, y: &[f64], ky: usize| {
        let square = |from: usize, to: usize| {
            x[from..to].iter().zip(&y[from..to]).map(|(x, y)| (x - y).powi(2)).sum::<f64>() / (to - from) as f64
        };
        let kind = if kx == ky { 0.0 } else { 1.0 / 30.0 };
        (-gamma * (square(0, POOLED) + kind + w * square(POOLED, WIDTH))).exp()
    };
    let weight = |i: usize| f64::from(train.weights[i * TARGETS + target]);
    let t = |i: usize| f64::from(train.targets[i * TARGETS + target]);
    let used: Vec<usize> = (0..train.kinds.len()).filter(|&i| weight(i) > 0.0).collect();
    let bias = used.iter().map(|&i| weight(i) * t(i)).sum::<f64>() / used.iter().map(|&i| weight(i)).sum::<f64>();
    let mut system: Vec<Vec<f64>> = used
        .iter()
        .map(|&i| {
            let mut row: Vec<f64> =
                used.iter().map(|&j| kernel(&a[i], train.kinds[i], &a[j], train.kinds[j])).collect();
            row[used.iter().position(|&u| u == i).unwrap()] += lambda / weight(i);
            row.push(t(i) - bias);
            row
        })
        .collect();
    let n = used.len();
    for p in 0..n {
        for i in 0..n {
            if i != p {
                let factor = system[i][p] / system[p][p];
                for c in p..=n {
                    system[i][c] -= factor * system[p][c];
                }
            }
        }
    }
    let alphas: Vec<f64> = (0..n).map(|i| system[i][n] / system[i][i]).collect();
    let score = |(row, &kind): (&Vec<f64>, &usize)| {
        let terms = used.iter().zip(&alphas).map(|(&j, alpha)| alpha * kernel(row, kind, &a[j], train.kinds[j]));
        bias + terms.sum::<f64>()
    };
    b.iter().zip(&test.kinds).map(score).collect()
}

fn scores(machine: &KernelMachine, data: &Data, isa: Isa) -> Vec<f32> {
    let mut scratch = Scratch::with_isa(machine, isa);
    let mut out = vec![0.0; data.kinds.len() * machine.targets()];
    let places = out.chunks_exact_mut(machine.targets());
    for ((row, &kind), out) in data.values.chunks_exact(WIDTH).zip(&data.kinds).zip(places) {
        machine.scores(row, kind, &mut scratch, out);
    }
    out
}

#[test]
fn the_machine_is_that_of_the_textbook() {
    let data = Data::new(90, 2, 1);
    let (train, test) = (data.only(|i| i < 71), data.only(|i| i >= 71));
    for grid in [single(0.7, 0.2, 0.1), single(1.5, 0.5, 0.02)] {
        let fitted = train.fit(&grid).unwrap();
        for isa in Isa::available() {
            let got = scores(&fitted.machine, &test, isa);
            for target in 0..TARGETS {
                let want = textbook(&train, &test, &grid, target);
                for (got, want) in got.iter().skip(target).step_by(TARGETS).zip(want) {
                    assert!((f64::from(*got) - want).abs() < 2e-3, "{isa}, target {target}: {got} for {want}");
                }
            }
        }
    }
}

#[test]
fn out_of_fold_is_a_machine_without_the_group() {
    let data = Data::new(120, 2, 2);
    let grid = single(0.7, 0.2, 0.1);
    let fitted = data.fit(&grid).unwrap();
    for group in [3, 7, 11] {
        let (train, test) = (data.only(|i| data.groups[i] != group), data.only(|i| data.groups[i] == group));
        let out_of_fold = fitted.out_of_fold.chunks_exact(TARGETS).zip(&data.groups);
        let got: Vec<&[f32]> = out_of_fold.filter(|(_, g)| **g == group).map(|(row, _)| row).collect();
        for target in 0..TARGETS {
            for (got, want) in got.iter().zip(textbook(&train, &test, &grid, target)) {
                assert!((f64::from(got[target]) - want).abs() < 1e-4, "group {group}: {} for {want}", got[target]);
            }
        }
        // And what a fit of the others gives, but for its support rows in half precision.
        let other = train.fit(&grid).unwrap().machine;
        for (got, want) in got.iter().zip(scores(&other, &test, Isa::detect()).chunks_exact(TARGETS)) {
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 2e-3), "group {group}: {got:?} for {want:?}");
        }
    }
}
