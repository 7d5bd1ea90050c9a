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

#[test]
fn the_settings_are_those_with_the_least_error() {
    let data = Data::new(80, 2, 3);
    let grid = Grid {
        uses: Uses::Both,
        gammas: vec![0.3, 1.0, 3.0],
        heat_weights: vec![0.1, 1.0],
        lambdas: vec![0.05, 0.3, 10.0],
    };
    let fitted = data.fit(&grid).unwrap();
    let mean_squared = |predicted: &[f32], target: usize| {
        let column = |x: &[f32]| x.iter().skip(target).step_by(TARGETS).map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (p, t, w) = (column(predicted), column(&data.targets), column(&data.weights));
        let sum: f64 = p.iter().zip(&t).zip(&w).map(|((p, t), w)| w * (p - t).powi(2)).sum();
        sum / w.iter().sum::<f64>()
    };
    // Every setting alone, and the same choice by hand.
    let mut best = (f64::INFINITY, vec![]);
    for &gamma in &grid.gammas {
        for &w in &grid.heat_weights {
            let errors = |lambda: f32| {
                let alone = data.fit(&single(gamma, w, lambda)).unwrap();
                (0..TARGETS).map(|target| mean_squared(&alone.out_of_fold, target)).collect::<Vec<_>>()
            };
            let errors: Vec<Vec<f64>> = grid.lambdas.iter().map(|&lambda| errors(lambda)).collect();
            let chosen: Vec<Choice> = (0..TARGETS)
                .map(|target| {
                    let least = (0..errors.len()).min_by(|&a, &b| errors[a][target].total_cmp(&errors[b][target]));
                    let (lambda, error) = least.map(|l| (grid.lambdas[l], errors[l][target])).unwrap();
                    Choice { gamma, heat_weight: w, lambda, error }
                })
                .collect();
            let sum = chosen.iter().map(|choice| choice.error).sum();
            if sum < best.0 {
                best = (sum, chosen);
            }
        }
    }
    assert_eq!(fitted.chosen, best.1);
    for (target, choice) in fitted.chosen.iter().enumerate() {
        assert_eq!(choice.error, mean_squared(&fitted.out_of_fold, target));
        assert!(choice.error < 0.9, "target {target} is learnt: {}", choice.error);
    }
    // The targets are settled one by one but for γ and w: alone, with its own weights, the first gives the same.
    let column = |x: &[f32]| x.iter().step_by(TARGETS).copied().collect::<Vec<_>>();
    let Choice { gamma, heat_weight, .. } = fitted.chosen[0];
    let grid = Grid { gammas: vec![gamma], heat_weights: vec![heat_weight], ..grid };
    let workers = Workers::new(1);
    let weights = column(&data.weights);
    let alone = fit(&data.rows(), &column(&data.targets), &weights, &data.groups, &grid, &workers).unwrap();
    assert_eq!(alone.chosen[0], fitted.chosen[0]);
    assert_eq!(alone.out_of_fold, column(&fitted.out_of_fold));
}

#[test]
fn any_number_of_threads_fits_the_same() {
    let data = Data::new(70, 3, 4);
    let grid = Grid { gammas: vec![0.5, 1.0], lambdas: vec![0.1, 0.4], ..Grid::default() };
    let of = |threads| {
        let workers = Workers::new(threads);
        fit(&data.rows(), &data.targets, &data.weights, &data.groups, &grid, &workers).unwrap()
    };
    let one = of(1);
    for threads in [2, 3, 5] {
        let other = of(threads);
        assert!(other.machine == one.machine && other.chosen == one.chosen && other.out_of_fold == one.out_of_fold);
    }
}

#[test]
fn only_the_columns_that_are_used_count() {
    let data = Data::new(60, 2, 5);
    let machine = |uses| {
        let grid = Grid { uses, heat_weights: vec![0.2, 0.4], ..single(0.7, 0.2, 0.1) };
        data.fit(&grid).unwrap().machine
    };
    let mut disturbed = data.only(|i| i < 9);
    let clean = data.only(|i| i < 9);
    for row in disturbed.values.chunks_exact_mut(WIDTH) {
        row[POOLED..].fill(f32::NAN);
    }
    let pooled = machine(Uses::Pooled);
    assert_eq!(scores(&pooled, &disturbed, Isa::detect()), scores(&pooled, &clean, Isa::detect()));
    assert!(scores(&machine(Uses::Both), &disturbed, Isa::detect()).iter().all(|x| x.is_nan()));
    for (row, clean) in disturbed.values.chunks_exact_mut(WIDTH).zip(clean.values.chunks_exact(WIDTH)) {
        row[..POOLED].fill(f32::NAN);
        row[POOLED..].copy_from_slice(&clean[POOLED..]);
    }
    let heat = machine(Uses::Heat);
    assert!(heat.support().len() < pooled.support().len() / 20, "unused columns are not stored");
    assert_eq!(scores(&heat, &disturbed, Isa::detect()), scores(&heat, &clean, Isa::detect()));
    assert!(scores(&pooled, &disturbed, Isa::detect()).iter().all(|x| x.is_nan()));
}

#[test]
fn what_is_not_finite_or_unknown_has_no_score() {
    let data = Data::new(41, 2, 6);
    let machine = data.fit(&single(0.7, 0.2, 0.1)).unwrap().machine;
    for isa in Isa::available() {
        let mut scratch = Scratch::with_isa(&machine, isa);
        let mut out = [0.0; TARGETS];
        for column in [0, 7, POOLED - 1, POOLED, WIDTH - 1] {
            for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut row = data.values[..WIDTH].to_vec();
                row[column] = broken;
                machine.scores(&row, 0, &mut scratch, &mut out);
                assert!(out.iter().all(|x| x.is_nan()), "{isa}, column {column}, {broken}: {out:?}");
            }
        }
        machine.scores(&data.values[..WIDTH], 2, &mut scratch, &mut out);
        assert!(out.iter().all(|x| x.is_nan()), "{isa}: a kind that nobody knows");
        machine.scores(&data.values[..WIDTH], 1, &mut scratch, &mut out);
        assert!(out.iter().all(|x| x.is_finite()));
        // Far from all that is known, only the bias is left.
        let far: Vec<f32> = data.values[..WIDTH].iter().map(|x| x * 1e6).collect();
        machine.scores(&far, 0, &mut scratch, &mut out);
        let bias = &machine.floats()[machine.description().float_count() - (41 + 1) * TARGETS..][..TARGETS];
        assert_eq!(out, bias);
    }
}

#[test]
fn parts_make_the_machine_again_and_nothing_else_does() {
    let data = Data::new(40, 2, 7);
    let machine = data.fit(&single(0.7, 0.2, 0.1)).unwrap().machine;
    let parts = || (machine.description().clone(), machine.floats().to_vec(), machine.support().to_vec());
    let (description, floats, support) = parts();
    assert_eq!((description.float_count(), description.half_count()), (floats.len(), support.len()));
    let written = postcard::to_stdvec(&description).unwrap();
    assert_eq!(postcard::from_bytes::<Description>(&written).unwrap(), description);
    assert!(KernelMachine::from_parts(description, floats, support).unwrap() == machine);
    type Change = fn(&mut Description, &mut Vec<f32>, &mut Vec<half::f16>);
    let changes: [(&str, Change); 15] = [
        ("no rows", |d, _, _| d.rows = 0),
        ("another row", |d, _, _| d.rows += 1),
        ("rows beyond all memory", |d, _, _| d.rows = u32::MAX),
        ("no kinds", |d, _, _| d.kinds = 0),
        ("many kinds", |d, _, _| d.kinds = u32::MAX),
        ("no targets", |d, _, _| d.targets = 0),
        ("many targets", |d, _, _| d.targets = u32::MAX),
        ("gamma", |d, _, _| d.gamma = f32::NAN),
        ("a negative gamma", |d, _, _| d.gamma = -1.0),
        ("weight", |d, _, _| d.heat_weight = f32::INFINITY),
        ("a float less", |_, f, _| f.truncate(f.len() - 1)),
        ("a half more", |_, _, s| s.push(half::f16::ONE)),
        ("a scale", |_, f, _| f[POOLED + 3] = -0.1),
        ("a mean", |_, f, _| f[3] = f32::NAN),
        ("a support row", |_, _, s| s[99] = half::f16::INFINITY),
    ];
    for (name, change) in changes {
        let (mut description, mut floats, mut support) = parts();
        change(&mut description, &mut floats, &mut support);
        let error = KernelMachine::from_parts(description, floats, support).expect_err(name);
        assert!(matches!(error, KernelError::Parts(_)), "{name}: {error}");
    }
}

#[test]
fn what_cannot_be_fitted_is_refused() {
    let grid = single(0.7, 0.2, 0.1);
    let refused = |change: &dyn Fn(&mut Data)| {
        let mut data = Data::new(20, 2, 8);
        change(&mut data);
        data.fit(&grid).expect_err("refused")
    };
    assert_eq!(refused(&|d| *d = d.only(|_| false)), KernelError::RowCount(0));
    assert_eq!(refused(&|d| *d = d.only(|i| i == 0)), KernelError::RowCount(1));
    assert_eq!(refused(&|d| d.groups.fill(4)), KernelError::OneGroup);
    assert_eq!(refused(&|d| d.values[3 * WIDTH + 5] = f32::NAN), KernelError::NotFinite { what: "row", row: 3 });
    let error = refused(&|d| d.targets[4] = f32::INFINITY);
    assert_eq!(error, KernelError::NotFinite { what: "the target of row", row: 1 });
    assert_eq!(refused(&|d| d.kinds[2] = 8), KernelError::Kind { row: 2, kind: 8 });
    type Change = fn(&mut Data);
    let lengths: [(&str, Change); 4] = [
        ("the rows", |d| d.values.truncate(20 * WIDTH - 1)),
        ("the groups", |d| d.groups.push(0)),
        ("the targets", |d| d.targets.truncate(20 * TARGETS - 1)),
        ("the weights", |d| d.weights.truncate(20 * TARGETS - 1)),
    ];
    for (name, change) in lengths {
        assert!(matches!(refused(&change), KernelError::Length { what, .. } if what == name), "{name}");
    }
    assert!(matches!(refused(&|d| d.targets.clear()), KernelError::Length { what: "the targets", .. }));
    let weights: [Change; 3] = [
        |d| d.weights[5] = -1.0,
        |d| d.weights[5] = f32::NAN,
        // Only rows of one group count for the last target.
        |d| (0..20).filter(|&i| d.groups[i] != 7).for_each(|i| d.weights[i * TARGETS + 2] = 0.0),
    ];
    for change in weights {
        assert!(matches!(refused(&change), KernelError::Weights(_)));
    }
    let data = Data::new(20, 2, 8);
    for grid in [
        Grid { gammas: vec![], ..grid.clone() },
        Grid { gammas: vec![1e4], ..grid.clone() },
        Grid { lambdas: vec![0.1, 0.0], ..grid.clone() },
        Grid { heat_weights: vec![f32::NAN], ..grid.clone() },
    ] {
        assert!(matches!(data.fit(&grid), Err(KernelError::Grid(_))));
    }
}

#[test]
fn weights_of_rows_and_weights_of_rows_and_targets_are_the_same_if_equal() {
    let mut data = Data::new(50, 1, 9);
    let by_row: Vec<f32> = (0..50).map(|i| [1.0, 0.25, 2.0][i % 3]).collect();
    data.weights = by_row.iter().flat_map(|&w| [w; TARGETS]).collect();
    let grid = single(1.0, 0.1, 0.2);
    let fitted = data.fit(&grid).unwrap();
    let other = fit(&data.rows(), &data.targets, &by_row, &data.groups, &grid, &Workers::new(1)).unwrap();
    assert!(fitted.machine == other.machine && fitted.out_of_fold == other.out_of_fold);
    // A kind that only one cell has, and one that none has, are no obstacle.
    data.kinds[3] = 2;
    let machine = data.fit(&grid).unwrap().machine;
    assert_eq!(machine.description().kinds, 3);
    assert!(scores(&machine, &data, Isa::detect()).iter().all(|x| x.is_finite()));
}

#[test]
fn the_exponential_is_one() {
    for step in 0..=8700 {
        let d = step as f32 / 100.0;
        let want = (-f64::from(d)).exp();
        assert!((f64::from(exp_negative(d)) / want - 1.0).abs() < 3e-7, "{d}");
    }
    assert_eq!(exp_negative(0.0), 1.0);
    assert!(exp_negative(1e30) < 1e-37);
    assert!(exp_negative(f32::INFINITY).is_nan() && exp_negative(f32::NAN).is_nan());
}
