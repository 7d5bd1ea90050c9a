//! Fitting: the settings by predictions for what was left out, then the machine from all rows.

use std::sync::Mutex;

use super::cholesky::{Matrix, Solver};
use super::distances::{PAD, for_each, squared};
use super::machine::Standard;
use super::{
    Description, HEAT, KERNEL_RANGE, KIND_DISTANCE, KernelError, KernelMachine, MAX_KINDS, MAX_ROWS, MAX_TARGETS,
    POOLED, Uses, WIDTH, exp_negative,
};
use crate::simd::{Isa, Kernel, Simd};
use crate::workers::Workers;

/// The cells to learn from.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The numbers of each cell, n × [`WIDTH`]: the pooled features, then the description of the heatmap.
    pub values: &'a [f32],
    /// The kind of each cell, below [`MAX_KINDS`]. A kind with less than two rows is standardised as all rows together
    /// are.
    pub kinds: &'a [usize],
}

/// The settings to choose from.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Which columns count.
    pub uses: Uses,
    /// Candidates for γ.
    pub gammas: Vec<f32>,
    /// Candidates for the heatmap's weight w; they say nothing unless all columns count.
    pub heat_weights: Vec<f32>,
    /// Candidates for λ.
    pub lambdas: Vec<f32>,
}

impl Default for Grid {
    fn default() -> Self {
        Self {
            uses: Uses::Both,
            gammas: vec![0.4, 0.7, 1.0],
            heat_weights: vec![0.1, 0.2],
            lambdas: vec![0.05, 0.1, 0.2, 0.4, 0.8],
        }
    }
}

impl Grid {
    fn check(&self) -> Result<(), KernelError> {
        let check = |what, list: &[f32], range: std::ops::RangeInclusive<f32>| {
            let good = !list.is_empty() && list.iter().all(|x| range.contains(x));
            if good { Ok(()) } else { Err(KernelError::Grid(what)) }
        };
        check("gamma", &self.gammas, KERNEL_RANGE)?;
        check("the heatmap's weight", &self.heat_weights, KERNEL_RANGE)?;
        check("lambda", &self.lambdas, 1e-6..=1e6)
    }

    /// The pairs of γ and w.
    fn kernels(&self) -> Vec<[f32; 2]> {
        let weights = if self.uses == Uses::Both { &self.heat_weights[..] } else { &[1.0] };
        self.gammas.iter().flat_map(|&gamma| weights.iter().map(move |&w| [gamma, w])).collect()
    }
}

/// The settings of one target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The kernel's γ, common to all targets.
    pub gamma: f32,
    /// The heatmap's weight w, common to all targets.
    pub heat_weight: f32,
    /// The target's λ.
    pub lambda: f32,
    /// The weighted mean squared error of its out-of-fold predictions.
    pub error: f64,
}

/// What a fit gives.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The machine, from all rows.
    pub machine: KernelMachine,
    /// For each row and target (n × m) the prediction of a machine with the chosen settings that was fitted, with all
    /// that it standardises, without the row's group.
    pub out_of_fold: Vec<f32>,
    /// The settings of each target.
    pub chosen: Vec<Choice>,
}

/// Fits a kernel machine to `targets` (n × m, row by row, m up to [`MAX_TARGETS`]).
///
/// `weights` holds one number a row, or one a row and target (n × m); a row of weight 0 says nothing about the target.
/// `groups` holds the inner fold of each row, any numbers. Every setting of `grid` is tried on each group by a machine
/// of the other groups. γ and w are those with the least sum over all targets of the weighted mean squared error, each
/// target with its best λ. The result is the same for any number of threads; ties go to the setting named first.
///
/// # Errors
/// [`KernelError`]: too few or too many rows, sizes that differ, numbers that are not finite, one group only, weights that
/// leave nothing to learn from, a grid that is empty or out of range.
pub fn fit(
    rows: &Rows<'_>,
    targets: &[f32],
    weights: &[f32],
    groups: &[usize],
    grid: &Grid,
    workers: &Workers,
) -> Result<Fitted, KernelError> {
    fit_with(Isa::detect(), rows, targets, weights, groups, grid, workers)
}

pub(super) fn fit_with(
    isa: Isa,
    rows: &Rows<'_>,
    targets: &[f32],
    weights: &[f32],
    groups: &[usize],
    grid: &Grid,
    workers: &Workers,
) -> Result<Fitted, KernelError> {
    grid.check()?;
    let problem = Problem::new(rows, targets, weights, groups, grid.uses, isa)?;
    let (n, m, kernels) = (problem.n, problem.m, grid.kernels());
    // The prediction of each row and target by each kernel and λ; NaN where the equations could not be solved.
    let mut predicted = vec![f32::NAN; kernels.len() * grid.lambdas.len() * n * m];
    for group in problem.groups() {
        let (train, test): (Vec<usize>, Vec<usize>) = (0..n).partition(|&i| groups[i] != group);
        let fold = Fold::new(&problem, &train, &test, workers);
        let results: Vec<Mutex<Vec<f32>>> = (0..kernels.len() * problem.sets.len()).map(|_| Mutex::default()).collect();
        for_each(workers, results.len(), &|task| {
            let (kernel, set) = (kernels[task / problem.sets.len()], &problem.sets[task % problem.sets.len()]);
            *results[task].lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                fold.predict(kernel, set, &grid.lambdas);
        });
        for (task, result) in results.into_iter().enumerate() {
            let (kernel, set) = (task / problem.sets.len(), &problem.sets[task % problem.sets.len()]);
            let mut result = result.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).into_iter();
            for lambda in 0..grid.lambdas.len() {
                let candidate = &mut predicted[(kernel * grid.lambdas.len() + lambda) * n * m..][..n * m];
                for &target in &set.targets {
                    for (&row, y) in test.iter().zip(&mut result) {
                        candidate[row * m + target] = y;
                    }
                }
            }
        }
    }
    let candidate =
        |kernel: usize, lambda: usize| &predicted[(kernel * grid.lambdas.len() + lambda) * n * m..][..n * m];
    // The best λ of a target with a kernel, and its error.
    let best = |kernel: usize, target: usize| {
        let errors = (0..grid.lambdas.len()).map(|l| (problem.error(candidate(kernel, l), target), l));
        errors.reduce(|best, next| if next.0 < best.0 { next } else { best }).unwrap_or((f64::INFINITY, 0))
    };
    let sums = (0..kernels.len()).map(|kernel| ((0..m).map(|target| best(kernel, target).0).sum::<f64>(), kernel));
    let (sum, kernel) =
        sums.reduce(|best, next| if next.0 < best.0 { next } else { best }).ok_or(KernelError::Singular)?;
    if !sum.is_finite() {
        return Err(KernelError::Singular);
    }
    let lambdas: Vec<usize> = (0..m).map(|target| best(kernel, target).1).collect();
    let [gamma, heat_weight] = kernels[kernel];
    let mut out_of_fold = vec![0.0; n * m];
    let mut chosen = vec![];
    for (target, &lambda) in lambdas.iter().enumerate() {
        let error = problem.error(candidate(kernel, lambda), target);
        chosen.push(Choice { gamma, heat_weight, lambda: grid.lambdas[lambda], error });
        let from = candidate(kernel, lambda).iter().skip(target).step_by(m);
        out_of_fold.iter_mut().skip(target).step_by(m).zip(from).for_each(|(to, from)| *to = *from);
    }
    drop(predicted);
    let machine = problem.machine(&chosen, workers)?;
    Ok(Fitted { machine, out_of_fold, chosen })
}

/// Targets whose rows weigh the same: their equations have the same left-hand side.
struct Set {
    weights: Vec<f32>,
    targets: Vec<usize>,
}

struct Problem<'a> {
    n: usize,
    m: usize,
    rows: Rows<'a>,
    targets: &'a [f32],
    groups: &'a [usize],
    sets: Vec<Set>,
    uses: Uses,
    isa: Isa,
}

impl<'a> Problem<'a> {
    fn new(
        rows: &Rows<'a>,
        targets: &'a [f32],
        weights: &[f32],
        groups: &'a [usize],
        uses: Uses,
        isa: Isa,
    ) -> Result<Self, KernelError> {
        let n = rows.kinds.len();
        if !(2..=MAX_ROWS).contains(&n) {
            return Err(KernelError::RowCount(n));
        }
        let length = |what, got: usize, good: bool, want: &dyn Fn() -> String| {
            if good { Ok(()) } else { Err(KernelError::Length { what, got, want: want() }) }
        };
        let (values, m) = (rows.values, targets.len() / n);
        length("the rows", values.len(), values.len() == n * WIDTH, &|| format!("{n} × {WIDTH}"))?;
        length("the groups", groups.len(), groups.len() == n, &|| n.to_string())?;
        let good = targets.len() == n * m && (1..=MAX_TARGETS).contains(&m);
        length("the targets", targets.len(), good, &|| format!("{n} × 1 to {MAX_TARGETS}"))?;
        let good = weights.len() == n || weights.len() == n * m;
        length("the weights", weights.len(), good, &|| format!("{n} or {n} × {m}"))?;
        if let Some(row) = values.chunks_exact(WIDTH).position(|row| !row.iter().all(|x| x.is_finite())) {
            return Err(KernelError::NotFinite { what: "row", row });
        }
        if let Some(at) = targets.iter().position(|x| !x.is_finite()) {
            return Err(KernelError::NotFinite { what: "the target of row", row: at / m });
        }
        if let Some(row) = rows.kinds.iter().position(|&kind| kind >= MAX_KINDS) {
            return Err(KernelError::Kind { row, kind: rows.kinds[row] });
        }
        if let Some(at) = weights.iter().position(|w| !w.is_finite() || *w < 0.0) {
            return Err(KernelError::Weights(format!("number {at} is {}", weights[at])));
        }
        let step = weights.len() / n;
        let mut sets: Vec<Set> = vec![];
        for target in 0..m {
            let weights: Vec<f32> = weights.iter().skip(target % step).step_by(step).copied().collect();
            match sets.iter_mut().find(|set| set.weights == weights) {
                Some(set) => set.targets.push(target),
                None => sets.push(Set { weights, targets: vec![target] }),
            }
        }
        let problem = Self { n, m, rows: *rows, targets, groups, sets, uses, isa };
        let groups_of = problem.groups();
        if groups_of.len() < 2 {
            return Err(KernelError::OneGroup);
        }
        for set in &problem.sets {
            let heavy = |group: usize| (0..n).any(|i| groups[i] == group && set.weights[i] > 0.0);
            if groups_of.iter().filter(|&&group| heavy(group)).count() < 2 {
                let target = set.targets[0];
                return Err(KernelError::Weights(format!(
                    "target {target} has rows that count in less than two groups"
                )));
            }
        }
        Ok(problem)
    }

    /// The groups there are, in order.
    fn groups(&self) -> Vec<usize> {
        let mut groups = self.groups.to_vec();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// The weighted mean squared error of predictions (n × m) for a target; infinite if one is not finite.
    fn error(&self, predicted: &[f32], target: usize) -> f64 {
        let weights =
            &self.sets.iter().find(|set| set.targets.contains(&target)).expect("every target has a set").weights;
        let (mut sum, mut total) = (0.0, 0.0);
        for (i, &w) in weights.iter().enumerate() {
            let at = i * self.m + target;
            if !predicted[at].is_finite() {
                return f64::INFINITY;
            }
            sum += f64::from(w) * (f64::from(predicted[at]) - f64::from(self.targets[at])).powi(2);
            total += f64::from(w);
        }
        sum / total
    }

    /// The machine of all rows.
    fn machine(&self, chosen: &[Choice], workers: &Workers) -> Result<KernelMachine, KernelError> {
        let all: Vec<usize> = (0..self.n).collect();
        let fold = Fold::new(self, &all, &[], workers);
        let Choice { gamma, heat_weight, .. } = chosen[0];
        // Each set's targets, parted by their λ.
        let mut systems: Vec<(&Set, f32, Vec<usize>)> = vec![];
        for set in &self.sets {
            for &target in &set.targets {
                let lambda = chosen[target].lambda;
                match systems.iter_mut().find(|(s, l, _)| std::ptr::eq(*s, set) && *l == lambda) {
                    Some((_, _, targets)) => targets.push(target),
                    None => systems.push((set, lambda, vec![target])),
                }
            }
        }
        let (mut bias, mut alphas) = (vec![0.0; self.m], vec![0.0; self.n * self.m]);
        for (set, lambda, targets) in systems {
            let matrix = fold.matrix([gamma, heat_weight], set);
            let (biases, sides) = fold.right_hand_sides(set, &targets);
            let mut solver = Solver::new(&matrix, self.isa);
            let solved = solver.solve(&fold.ridge(set, lambda), &sides).ok_or(KernelError::Singular)?;
            for ((&target, b), solution) in targets.iter().zip(biases).zip(solved) {
                bias[target] = b as f32;
                for (alpha, x) in alphas.iter_mut().skip(target).step_by(self.m).zip(solution) {
                    *alpha = x as f32;
                }
            }
        }
        let description = Description {
            uses: self.uses,
            gamma,
            heat_weight,
            rows: self.n as u32,
            kinds: fold.standard.heat.len() as u32,
            targets: self.m as u32,
        };
        KernelMachine::build(description, &fold.standard, (self.rows.values, self.rows.kinds), &bias, &alphas)
    }
}

/// Some rows to learn from and some to predict, standardised by the former, and the distances of all.
struct Fold<'a> {
    problem: &'a Problem<'a>,
    standard: Standard,
    /// The rows: first those to learn from, then those to predict.
    order: Vec<usize>,
    train: usize,
    /// (n × n, lower triangle) |Δx|²/POOLED and what the kinds add.
    base: Vec<f32>,
    /// (n × n, lower triangle) |Δh|²/HEAT; empty if the heatmap does not count.
    heat: Vec<f32>,
}

impl<'a> Fold<'a> {
    fn new(problem: &'a Problem<'a>, train: &[usize], test: &[usize], workers: &Workers) -> Self {
        let standard = Standard::of(&problem.rows, train);
        let order: Vec<usize> = train.iter().chain(test).copied().collect();
        let n = order.len();
        let distances = |from: usize, columns: usize, scales: &[&[Vec<f32>; 2]]| {
            let stride = columns.next_multiple_of(PAD);
            let mut z = vec![0.0f32; n * stride];
            for (z, &row) in z.chunks_exact_mut(stride).zip(&order) {
                let [mean, scale] = scales[problem.rows.kinds[row]];
                let values = &problem.rows.values[row * WIDTH + from..][..columns];
                for (z, ((x, mean), scale)) in z.iter_mut().zip(values.iter().zip(mean).zip(scale)) {
                    *z = (x - mean) * scale;
                }
            }
            squared(&z, stride, columns as f32, problem.isa, workers)
        };
        let mut base = if problem.uses.pooled() {
            distances(0, POOLED, &vec![&standard.pooled; standard.heat.len()])
        } else {
            vec![0.0; n * n]
        };
        let kinds: Vec<usize> = order.iter().map(|&row| problem.rows.kinds[row]).collect();
        for (i, row) in base.chunks_exact_mut(n).enumerate() {
            for (x, &kind) in row[..i].iter_mut().zip(&kinds) {
                *x += if kind == kinds[i] { 0.0 } else { KIND_DISTANCE };
            }
        }
        let heat = if problem.uses.heat() {
            distances(POOLED, HEAT, &standard.heat.iter().collect::<Vec<_>>())
        } else {
            vec![]
        };
        Self { problem, standard, order, train: train.len(), base, heat }
    }

    /// The kernel of row `i` of the order with the first `out.len()` rows.
    fn kernel_row(&self, i: usize, [gamma, weight]: [f32; 2], out: &mut [f32]) {
        let at = i * self.order.len();
        let heat = self.heat.get(at..at + out.len()).unwrap_or(&[]);
        self.problem.isa.run(Gaussian { base: &self.base[at..at + out.len()], heat, gamma, weight, out });
    }

    /// Whether the row `i` of the order counts for a set.
    fn counts(&self, i: usize, set: &Set) -> bool {
        set.weights[self.order[i]] > 0.0
    }

    /// The kernel of the rows to learn from. A row of weight 0 is alone with a 1: its α becomes that of its right-hand
    /// side, 0.
    fn matrix(&self, kernel: [f32; 2], set: &Set) -> Matrix {
        let mut matrix = Matrix::new(self.train);
        let idle: Vec<usize> = (0..self.train).filter(|&i| !self.counts(i, set)).collect();
        for i in 0..self.train {
            let row = matrix.row_mut(i);
            self.kernel_row(i, kernel, row);
            if self.counts(i, set) {
                idle.iter().take_while(|&&j| j < i).for_each(|&j| row[j] = 0.0);
            } else {
                row[..i].fill(0.0);
            }
        }
        matrix
    }

    /// What is added to the diagonal: λ/weight.
    fn ridge(&self, set: &Set, lambda: f32) -> Vec<f64> {
        let ridge = |&row: &usize| match set.weights[row] {
            w if w > 0.0 => f64::from(lambda) / f64::from(w),
            _ => 0.0,
        };
        self.order[..self.train].iter().map(ridge).collect()
    }

    /// The bias of each target and what is left of it, by row.
    fn right_hand_sides(&self, set: &Set, targets: &[usize]) -> (Vec<f64>, Vec<Vec<f64>>) {
        let rows = &self.order[..self.train];
        let total: f64 = rows.iter().map(|&row| f64::from(set.weights[row])).sum();
        let sides = targets.iter().map(|&target| {
            let t = |row: usize| f64::from(self.problem.targets[row * self.problem.m + target]);
            let bias = rows.iter().map(|&row| f64::from(set.weights[row]) * t(row)).sum::<f64>() / total;
            let side = rows.iter().map(|&row| if set.weights[row] > 0.0 { t(row) - bias } else { 0.0 }).collect();
            (bias, side)
        });
        sides.unzip()
    }

    /// The predictions for the rows to predict: by λ, by target of the set, by row. NaN where the equations have no
    /// solution.
    fn predict(&self, kernel: [f32; 2], set: &Set, lambdas: &[f32]) -> Vec<f32> {
        let tests = self.train..self.order.len();
        let mut rows = vec![0.0f32; tests.len() * self.train];
        for (i, row) in tests.zip(rows.chunks_exact_mut(self.train)) {
            self.kernel_row(i, kernel, row);
        }
        let matrix = self.matrix(kernel, set);
        let (biases, sides) = self.right_hand_sides(set, &set.targets);
        let mut solver = Solver::new(&matrix, self.problem.isa);
        let mut out = vec![];
        for &lambda in lambdas {
            let solved = solver.solve(&self.ridge(set, lambda), &sides);
            for (target, bias) in biases.iter().enumerate() {
                out.extend(rows.chunks_exact(self.train).map(|row| match &solved {
                    Some(alphas) => {
                        let sum: f64 = row.iter().zip(&alphas[target]).map(|(&k, a)| f64::from(k) * a).sum();
                        (bias + sum) as f32
                    }
                    None => f32::NAN,
                }));
            }
        }
        out
    }
}

impl Standard {
    /// Of the rows `chosen`.
    fn of(rows: &Rows<'_>, chosen: &[usize]) -> Self {
        let kinds = rows.kinds.iter().max().map_or(1, |last| last + 1);
        let heat = (0..kinds).map(|kind| {
            let of_kind: Vec<usize> = chosen.iter().copied().filter(|&row| rows.kinds[row] == kind).collect();
            standard(rows, if of_kind.len() < 2 { chosen } else { &of_kind }, POOLED, HEAT)
        });
        Self { heat: heat.collect(), pooled: standard(rows, chosen, 0, POOLED) }
    }
}

/// Mean and 1/deviation of some columns over the rows `chosen`. A column that does not vary gets the scale 0: nobody
/// knows what a difference in it means.
fn standard(rows: &Rows<'_>, chosen: &[usize], from: usize, columns: usize) -> [Vec<f32>; 2] {
    let part = |row: usize| &rows.values[row * WIDTH + from..][..columns];
    let mut mean = vec![0.0f64; columns];
    chosen.iter().for_each(|&row| mean.iter_mut().zip(part(row)).for_each(|(m, &x)| *m += f64::from(x)));
    mean.iter_mut().for_each(|m| *m /= chosen.len() as f64);
    let mut square = vec![0.0f64; columns];
    for &row in chosen {
        for ((square, mean), &x) in square.iter_mut().zip(&mean).zip(part(row)) {
            let d = f64::from(x) - mean;
            *square += d * d;
        }
    }
    let scales = square.iter().zip(&mean).map(|(square, mean)| {
        let deviation = (square / chosen.len() as f64).sqrt();
        if deviation > 1e-6 * (1.0 + mean.abs()) { (1.0 / deviation) as f32 } else { 0.0 }
    });
    let scales = scales.collect();
    [mean.into_iter().map(|m| m as f32).collect(), scales]
}

/// exp(−γ·(base + w·heat)).
struct Gaussian<'a> {
    base: &'a [f32],
    heat: &'a [f32],
    gamma: f32,
    weight: f32,
    out: &'a mut [f32],
}

impl Kernel for Gaussian<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        if self.heat.is_empty() {
            for (out, base) in self.out.iter_mut().zip(self.base) {
                *out = exp_negative(self.gamma * base);
            }
        } else {
            for ((out, base), heat) in self.out.iter_mut().zip(self.base).zip(self.heat) {
                *out = exp_negative(self.gamma * (base + self.weight * heat));
            }
        }
    }
}
