//! Logistic regression on one or two inputs: how much weight each part of a judge has.

/// Spread of what is expected of a weight before any cell is seen, for inputs of spread 1: keeps weights finite where all
/// cells are told apart.
const PRIOR: f64 = 4.0;

/// Weights and shift that make `σ(Σ weight·input + shift)` the likeliest probabilities of `above`, weights not negative:
/// a part that says the opposite of the truth on these cells has no weight.
///
/// `inputs` holds a list of numbers for each part, all as long as `above`, all finite. Without cells of both answers the
/// weights are 1 divided by their number, and the shift 0.
pub fn fit(inputs: &[Vec<f64>], above: &[bool]) -> (Vec<f64>, f64) {
    let n = above.len() as f64;
    let positive = above.iter().filter(|&&a| a).count();
    if inputs.is_empty() || positive == 0 || positive == above.len() {
        return (vec![1.0 / inputs.len().max(1) as f64; inputs.len()], 0.0);
    }
    // Inputs of mean 0 and spread 1; a constant one says nothing.
    let mut scaled = Vec::new();
    for input in inputs {
        let mean = input.iter().sum::<f64>() / n;
        let spread = (input.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        let unit = if spread > 1e-12 { 1.0 / spread } else { 0.0 };
        scaled.push((mean, unit, input.iter().map(|x| (x - mean) * unit).collect::<Vec<f64>>()));
    }
    let mut used: Vec<usize> = (0..inputs.len()).collect();
    loop {
        let columns: Vec<&[f64]> = used.iter().map(|&i| scaled[i].2.as_slice()).collect();
        let solution = newton(&columns, above);
        match (0..used.len()).filter(|&i| solution[i] < 0.0).min_by(|&a, &b| solution[a].total_cmp(&solution[b])) {
            Some(negative) => drop(used.remove(negative)),
            None => {
                let mut weights = vec![0.0; inputs.len()];
                let mut shift = solution[used.len()];
                for (&index, weight) in used.iter().zip(&solution) {
                    let (mean, unit, _) = &scaled[index];
                    weights[index] = weight * unit;
                    shift -= weight * unit * mean;
                }
                return (weights, shift);
            }
        }
    }
}

/// The likeliest weights of `columns` and, last, the shift.
fn newton(columns: &[&[f64]], above: &[bool]) -> Vec<f64> {
    let m = columns.len() + 1;
    let row = |i: usize, j: usize| if j < columns.len() { columns[j][i] } else { 1.0 };
    let mut weights = vec![0.0; m];
    let loss = |weights: &[f64]| -> f64 {
        let prior: f64 = weights[..m - 1].iter().map(|w| 0.5 * (w / PRIOR).powi(2)).sum();
        let cell = |i: usize| {
            let z: f64 = (0..m).map(|j| weights[j] * row(i, j)).sum();
            let z = if above[i] { -z } else { z };
            // ln(1 + e^z) without overflow.
            z.max(0.0) + (-z.abs()).exp().ln_1p()
        };
        prior + (0..above.len()).map(cell).sum::<f64>()
    };
    let mut now = loss(&weights);
    for _ in 0..100 {
        let mut gradient = vec![0.0; m];
        let mut curvature = vec![0.0; m * m];
        for j in 0..m - 1 {
            gradient[j] = weights[j] / (PRIOR * PRIOR);
            curvature[j * m + j] = 1.0 / (PRIOR * PRIOR);
        }
        for i in 0..above.len() {
            let z: f64 = (0..m).map(|j| weights[j] * row(i, j)).sum();
            let p = 1.0 / (1.0 + (-z).exp());
            for j in 0..m {
                gradient[j] += (p - f64::from(u8::from(above[i]))) * row(i, j);
                for k in 0..m {
                    curvature[j * m + k] += (p * (1.0 - p)).max(1e-9) * row(i, j) * row(i, k);
                }
            }
        }
        let step = solve(curvature, gradient, m);
        let mut length = 1.0;
        let next = loop {
            let next: Vec<f64> = weights.iter().zip(&step).map(|(w, s)| w - length * s).collect();
            if loss(&next) <= now || length < 1e-6 {
                break next;
            }
            length *= 0.5;
        };
        let moved = weights.iter().zip(&next).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        (now, weights) = (loss(&next), next);
        if moved < 1e-10 {
            break;
        }
    }
    weights
}

/// Solves a small symmetric positive system by elimination.
fn solve(mut a: Vec<f64>, mut b: Vec<f64>, m: usize) -> Vec<f64> {
    for i in 0..m {
        for r in i + 1..m {
            let factor = a[r * m + i] / a[i * m + i];
            for c in i..m {
                a[r * m + c] -= factor * a[i * m + c];
            }
            b[r] -= factor * b[i];
        }
    }
    for i in (0..m).rev() {
        let rest: f64 = (i + 1..m).map(|c| a[i * m + c] * b[c]).sum();
        b[i] = (b[i] - rest) / a[i * m + i];
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{below, generator};

    #[test]
    fn probabilities_are_recovered() {
        let mut rng = generator(3);
        let mut unit = || below(&mut rng, 1 << 24) as f64 / f64::from(1 << 24);
        let x: Vec<f64> = (0..20_000).map(|_| 10.0 * unit() - 5.0).collect();
        let noise: Vec<f64> = (0..20_000).map(|_| unit()).collect();
        let above: Vec<bool> = x.iter().map(|x| unit() < 1.0 / (1.0 + (-(0.7 * x - 0.4)).exp())).collect();
        let (weights, shift) = fit(&[x.clone(), noise], &above);
        assert!(
            (weights[0] - 0.7).abs() < 0.03 && weights[1] < 0.15 && (shift + 0.4).abs() < 0.1,
            "{weights:?} {shift}"
        );
        let against: Vec<f64> = x.iter().map(|x| -x).collect();
        let (weights, _) = fit(&[against, x], &above);
        assert_eq!(weights[0], 0.0);
    }

    #[test]
    fn cells_that_are_all_told_apart_or_all_alike_give_finite_weights() {
        let x = vec![-2.0, -1.0, 1.0, 2.0];
        let (weights, shift) = fit(std::slice::from_ref(&x), &[false, false, true, true]);
        assert!(weights[0] > 1.0 && weights[0] < 20.0 && shift.abs() < 1e-6, "{weights:?} {shift}");
        assert_eq!(fit(&[x.clone(), x], &[true; 4]), (vec![0.5; 2], 0.0));
        let (weights, shift) = fit(&[vec![1.0; 4]], &[false, false, false, true]);
        assert!(weights[0] == 0.0 && (shift + 3f64.ln()).abs() < 1e-6, "{shift}");
    }
}
