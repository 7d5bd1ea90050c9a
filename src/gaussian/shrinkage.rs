//! From co-moments to packed factors: Σ, its regularisation, its Cholesky factor and that factor's inverse.

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::embedding::cpu::SLACK;
use crate::simd::{Isa, Kernel, Simd};
use crate::workers::Workers;

use super::factors::{OwnedStatistics, Precision, column_start, packed_len, position_stride, section_len};
use super::fit::Accumulator;

/// How the covariance is made invertible.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Shrinkage {
    /// Σ + εI (PaDiM, ε = 0.01).
    Absolute(f64),
    /// Σ + ε·(tr Σ/k)·I: ε in units of the mean variance, whatever the backbone's scale.
    Relative(f64),
    /// (1 − λ)Σ + λ·(tr Σ/k)·I with the λ that Ledoit and Wolf (2004) estimate for each position.
    LedoitWolf,
}

impl Default for Shrinkage {
    fn default() -> Self {
        Self::Absolute(0.01)
    }
}

impl fmt::Display for Shrinkage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absolute(e) => write!(f, "absolute:{e}"),
            Self::Relative(e) => write!(f, "relative:{e}"),
            Self::LedoitWolf => f.write_str("ledoit-wolf"),
        }
    }
}

impl FromStr for Shrinkage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let epsilon = |e: &str| {
            e.parse().ok().filter(|e: &f64| *e > 0.0 && e.is_finite()).ok_or(format!("`{e}` is not a positive number"))
        };
        match text.split_once(':') {
            Some(("absolute", e)) => Ok(Self::Absolute(epsilon(e)?)),
            Some(("relative", e)) => Ok(Self::Relative(epsilon(e)?)),
            None if text == "ledoit-wolf" => Ok(Self::LedoitWolf),
            _ => Err(format!("`{text}`: one of absolute:0.01, relative:0.01, ledoit-wolf")),
        }
    }
}

/// Why a fit has no factors.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum FinishError {
    /// Fewer than two cells.
    #[error(
        "finishing the fit: {0} good cells are too few, a covariance needs at least 2 (and some hundreds to be of use)"
    )]
    TooFew(u64),
    /// The covariance of a position is not positive definite, or holds a number that is not finite.
    #[error(
        "finishing the fit: the covariance at position {row},{column} cannot be factored with {shrinkage}; \
         a stronger shrinkage, or a look at the backbone's weights, may help"
    )]
    Singular {
        /// Row on the grid.
        row: usize,
        /// Column on the grid.
        column: usize,
        /// The shrinkage in force.
        shrinkage: Shrinkage,
    },
}

impl Accumulator {
    /// Mean and packed factors U = L⁻¹ of Σ = LLᵀ, shrunk as said. Positions are shared out to `workers`.
    ///
    /// # Errors
    /// If there are fewer than two cells or a covariance cannot be factored.
    pub fn finish(
        &self,
        shrinkage: Shrinkage,
        precision: Precision,
        workers: &Workers,
    ) -> Result<OwnedStatistics, FinishError> {
        if self.count() < 2 {
            return Err(FinishError::TooFew(self.count()));
        }
        let (grid, k) = (self.grid(), self.k());
        let (positions, stride) = (grid * grid, position_stride(k));
        let mut factors = vec![0.0f32; section_len(positions, k)];
        let failed = Mutex::new(None);
        let chunk = positions.div_ceil(workers.count());
        let parts: Vec<Mutex<&mut [f32]>> =
            factors[..positions * stride].chunks_mut(chunk * stride).map(Mutex::new).collect();
        let isa = Isa::detect();
        workers.run(&|thread| {
            let Some(part) = parts.get(thread) else { return };
            let mut part = part.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let mut scratch = Scratch { r: vec![0.0; k * k], x: vec![0.0; k * k] };
            for (index, out) in part.chunks_exact_mut(stride).enumerate() {
                let position = thread * chunk + index;
                let factoring = Factoring { moments: self, position, shrinkage, scratch: &mut scratch, out };
                if !isa.run(factoring) {
                    *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(position);
                    return;
                }
            }
        });
        drop(parts);
        if let Some(position) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(FinishError::Singular { row: position / grid, column: position % grid, shrinkage });
        }
        let mut mean: Vec<f32> = self.mean.iter().map(|&m| m as f32).collect();
        mean.resize(positions * k + SLACK, 0.0);
        Ok(OwnedStatistics::pack(grid, k, mean, factors, precision))
    }

    /// Writes the packed U of one position; false if Σ cannot be factored.
    #[inline(always)]
    fn factor(&self, position: usize, shrinkage: Shrinkage, scratch: &mut Scratch, out: &mut [f32]) -> bool {
        let k = self.k();
        let Scratch { r, x } = scratch;
        let m2 = &self.m2[position * packed_len(k)..][..packed_len(k)];
        let n = self.count() as f64;
        let trace = (0..k).map(|j| m2[column_start(k, j)]).sum::<f64>() / (n - 1.0) / k as f64;
        let (keep, ridge) = match shrinkage {
            Shrinkage::Absolute(epsilon) => (1.0, epsilon),
            Shrinkage::Relative(epsilon) => (1.0, epsilon * trace),
            Shrinkage::LedoitWolf => {
                let lambda = self.ledoit_wolf(position);
                // A dead position (all cells equal) has trace 0; the ridge keeps it factorable.
                (1.0 - lambda, (lambda * trace).max(1e-6))
            }
        };
        // Σ symmetric: column j of its lower triangle is row j of the upper, which Σ = RᵀR, R = Lᵀ, is built in.
        for j in 0..k {
            let column = &m2[column_start(k, j)..][..k - j];
            let row = &mut r[j * k + j..][..k - j];
            row.iter_mut().zip(column).for_each(|(r, m)| *r = m / (n - 1.0) * keep);
            row[0] += ridge;
        }
        for j in 0..k {
            let (above, row) = r.split_at_mut(j * k);
            let row = &mut row[j..k];
            // Four rows at a time, so that the row itself is read and written a quarter as often.
            let fours = above.chunks_exact(4 * k);
            let rest = fours.remainder();
            for four in fours {
                let [a, b, c, d] = [0, 1, 2, 3].map(|i| &four[i * k + j..][..k - j]);
                let [fa, fb, fc, fd] = [a[0], b[0], c[0], d[0]];
                for ((((r, a), b), c), d) in row.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                    *r = *r - fa * a - fb * b - fc * c - fd * d;
                }
            }
            for p in rest.chunks_exact(k) {
                let factor = p[j];
                row.iter_mut().zip(&p[j..]).for_each(|(r, p)| *r -= factor * p);
            }
            if !(row[0] > 0.0 && row[0].is_finite()) {
                return false;
            }
            let scale = 1.0 / row[0].sqrt();
            row.iter_mut().for_each(|r| *r *= scale);
        }
        // X = R⁻¹ row by row; U = Xᵀ, so column j of U is row j of X.
        for j in 0..k {
            let row = &mut x[j * k..][..k];
            row[j..].fill(0.0);
            row[j] = 1.0;
            for first in (j..k).step_by(4) {
                let end = k.min(first + 4);
                for i in first..end {
                    row[i] /= r[i * k + i];
                    for after in i + 1..end {
                        row[after] -= row[i] * r[i * k + after];
                    }
                }
                if end == first + 4 {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|i| &r[(first + i) * k + end..][..k - end]);
                    let (head, tail) = row.split_at_mut(end);
                    let [fa, fb, fc, fd] = [0, 1, 2, 3].map(|i| head[first + i]);
                    for ((((x, a), b), c), d) in tail.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                        *x = *x - fa * a - fb * b - fc * c - fd * d;
                    }
                }
            }
            let packed = &mut out[column_start(k, j)..][..k - j];
            packed.iter_mut().zip(&row[j..]).for_each(|(o, &x)| *o = x as f32);
        }
        out[..packed_len(k)].iter().all(|u| u.is_finite())
    }

    /// λ = min(b², d²)/d² of Ledoit and Wolf (2004), from the streamed sums.
    ///
    /// With z = y − μ and S = M2/n: d² = ‖S‖² − k·m², m = tr S/k, and b² = (Σ‖z‖⁴/n − ‖S‖²)/n, where Σ‖z‖⁴ follows
    /// from the sums of ‖y‖⁴, ‖y‖²y, yyᵀ and y.
    pub(super) fn ledoit_wolf(&self, position: usize) -> f64 {
        let (k, n) = (self.k(), self.count() as f64);
        let m2 = &self.m2[position * packed_len(k)..][..packed_len(k)];
        let mean = &self.mean[position * k..][..k];
        let cubes = &self.cubes[position * k..][..k];
        let (mut trace, mut norm, mut along) = (0.0, 0.0, 0.0);
        for j in 0..k {
            let column = &m2[column_start(k, j)..][..k - j];
            trace += column[0];
            norm += column[0] * column[0] + 2.0 * column[1..].iter().map(|m| m * m).sum::<f64>();
            along += mean[j]
                * (column[0] * mean[j]
                    + 2.0 * column[1..].iter().zip(&mean[j + 1..]).map(|(m, mu)| m * mu).sum::<f64>());
        }
        let mu2: f64 = mean.iter().map(|m| m * m).sum();
        let cubed: f64 = mean.iter().zip(cubes).map(|(m, c)| m * c).sum();
        // Σ(‖y‖² − 2μᵀy + ‖μ‖²)² with Σyyᵀ = M2 + nμμᵀ and Σ‖y‖² = tr M2 + n‖μ‖².
        let squares = trace + n * mu2;
        let fourths = self.fourths[position] + 4.0 * (along + n * mu2 * mu2) + n * mu2 * mu2 - 4.0 * cubed
            + 2.0 * mu2 * squares
            - 4.0 * mu2 * n * mu2;
        let (s_norm, m) = (norm / (n * n), trace / n / k as f64);
        let d2 = s_norm - k as f64 * m * m;
        let b2 = (fourths / n - s_norm) / n;
        if d2 <= 0.0 { 1.0 } else { (b2 / d2).clamp(0.0, 1.0) }
    }
}

/// [`Accumulator::factor`] in the widest vectors: element by element, so that the instruction set changes no bit.
struct Factoring<'a> {
    moments: &'a Accumulator,
    position: usize,
    shrinkage: Shrinkage,
    scratch: &'a mut Scratch,
    out: &'a mut [f32],
}

impl Kernel for Factoring<'_> {
    type Output = bool;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> bool {
        self.moments.factor(self.position, self.shrinkage, self.scratch, self.out)
    }
}

struct Scratch {
    r: Vec<f64>,
    x: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use super::super::fit::{BATCH, tests::embeddings};
    use super::*;
    use crate::embedding::Embedding;
    use crate::simd::Isa;

    fn fitted(all: &[Embedding], grid: usize, k: usize) -> Accumulator {
        let workers = Workers::new(1);
        let mut accumulator = Accumulator::new(grid, k);
        all.iter().collect::<Vec<_>>().chunks(BATCH).for_each(|b| accumulator.update(b, Isa::Scalar, &workers));
        accumulator
    }

    /// UᵀU·Σ must be the identity.
    #[test]
    fn the_factor_inverts_the_covariance() {
        let (grid, k) = (2, 12);
        let accumulator = fitted(&embeddings(grid, k, 60, 5), grid, k);
        for shrinkage in [Shrinkage::Absolute(0.01), Shrinkage::Relative(0.02), Shrinkage::LedoitWolf] {
            let statistics = accumulator.finish(shrinkage, Precision::F32, &Workers::new(2)).unwrap();
            for position in 0..grid * grid {
                let u = statistics.view().dense(position);
                let m2 = &accumulator.m2[position * packed_len(k)..];
                let n1 = accumulator.count() as f64 - 1.0;
                let raw = |i: usize, j: usize| m2[column_start(k, i.min(j)) + i.max(j) - i.min(j)] / n1;
                let trace = (0..k).map(|i| raw(i, i)).sum::<f64>() / k as f64;
                let (keep, ridge) = match shrinkage {
                    Shrinkage::Absolute(e) => (1.0, e),
                    Shrinkage::Relative(e) => (1.0, e * trace),
                    Shrinkage::LedoitWolf => {
                        let l = accumulator.ledoit_wolf(position);
                        (1.0 - l, l * trace)
                    }
                };
                for a in 0..k {
                    for b in 0..k {
                        let got: f64 = (0..k)
                            .map(|c| {
                                let precision: f64 = (0..k).map(|i| u[i * k + a] * u[i * k + c]).sum();
                                let sigma = raw(c, b) * keep + if c == b { ridge } else { 0.0 };
                                precision * sigma
                            })
                            .sum();
                        let want = if a == b { 1.0 } else { 0.0 };
                        assert!((got - want).abs() < 1e-4, "{shrinkage} ({a}, {b}): {got}");
                    }
                }
            }
        }
    }

    #[test]
    fn ledoit_wolf_equals_its_definition() {
        let (grid, k, count) = (1, 6, 33);
        let all = embeddings(grid, k, count, 9);
        let accumulator = fitted(&all, grid, k);
        let n = count as f64;
        let mean = &accumulator.mean;
        let z: Vec<Vec<f64>> =
            all.iter().map(|e| e.at(0).iter().zip(mean).map(|(y, m)| f64::from(*y) - m).collect()).collect();
        let s = |i: usize, j: usize| z.iter().map(|z| z[i] * z[j]).sum::<f64>() / n;
        let m = (0..k).map(|i| s(i, i)).sum::<f64>() / k as f64;
        let (mut d2, mut b2) = (0.0, 0.0);
        for i in 0..k {
            for j in 0..k {
                d2 += (s(i, j) - if i == j { m } else { 0.0 }).powi(2);
                b2 += z.iter().map(|z| (z[i] * z[j] - s(i, j)).powi(2)).sum::<f64>() / n / n;
            }
        }
        assert!((accumulator.ledoit_wolf(0) - b2 / d2).abs() < 1e-6);
    }

    #[test]
    fn too_few_cells_and_broken_numbers_are_named() {
        let workers = Workers::new(1);
        let empty = Accumulator::new(2, 3);
        assert_eq!(empty.finish(Shrinkage::default(), Precision::F16, &workers).unwrap_err(), FinishError::TooFew(0));
        let mut all = embeddings(2, 3, 5, 1);
        all[2].values_mut()[2 * 3] = f32::NAN;
        let error = fitted(&all, 2, 3).finish(Shrinkage::default(), Precision::F16, &workers).unwrap_err();
        assert!(matches!(error, FinishError::Singular { row: 1, column: 0, .. }), "{error}");
    }

    #[test]
    fn names_parse_back() {
        for shrinkage in [Shrinkage::Absolute(0.01), Shrinkage::Relative(0.5), Shrinkage::LedoitWolf] {
            assert_eq!(shrinkage.to_string().parse(), Ok(shrinkage));
        }
        assert!("absolute:-1".parse::<Shrinkage>().is_err());
        assert!("none".parse::<Shrinkage>().is_err());
    }
}
