//! U = L⁻¹ of each position's covariance Σ = LLᵀ, packed, so that M = ‖U(y − μ)‖.
//!
//! U is lower triangular and kept column after column: column j holds its rows j to k−1. A vector of columns is then
//! applied by broadcasting one component of y − μ at a time, without a horizontal sum until the very end, and the
//! k(k+1)/2 numbers are read once, in order. Each position starts on a 128-byte line.

use half::f16;
use thiserror::Error;

use crate::embedding::cpu::SLACK;

/// How the factors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Precision {
    /// Half precision, each row scaled by a power of two: half the traffic, M within 1e-2.
    F16,
    /// Single precision: M within 1e-4.
    F32,
}

/// Numbers of a packed lower triangle.
#[must_use]
pub const fn packed_len(k: usize) -> usize {
    k * (k + 1) / 2
}

/// Numbers from one position to the next, for either precision: [`packed_len`] rounded up to 128 bytes of halves.
#[must_use]
pub const fn position_stride(k: usize) -> usize {
    packed_len(k).next_multiple_of(64)
}

/// Where column `j` starts within a position.
#[must_use]
pub const fn column_start(k: usize, j: usize) -> usize {
    j * k - j * j.saturating_sub(1) / 2
}

/// Numbers that a section of factors holds: all positions and the slack that a vector may read past the last.
#[must_use]
pub const fn section_len(positions: usize, k: usize) -> usize {
    positions * position_stride(k) + 64
}

/// Packed factors of all positions.
#[derive(Clone, Copy, Debug)]
pub enum Factors<'a> {
    /// Half precision.
    F16(&'a [f16]),
    /// Single precision.
    F32(&'a [f32]),
}

impl Factors<'_> {
    /// Numbers in the section, slack included.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F16(x) => x.len(),
            Self::F32(x) => x.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number `index` as f32.
    #[must_use]
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::F16(x) => x[index].to_f32(),
            Self::F32(x) => x[index],
        }
    }

    /// How they are stored.
    #[must_use]
    pub fn precision(&self) -> Precision {
        match self {
            Self::F16(_) => Precision::F16,
            Self::F32(_) => Precision::F32,
        }
    }
}

/// The buffers do not belong together.
#[derive(Debug, Error, PartialEq)]
#[error("joining the statistics of a {grid}×{grid} field with k = {k}: {what} has {got} numbers, {want} are needed")]
pub struct StatisticsError {
    what: &'static str,
    grid: usize,
    k: usize,
    got: usize,
    want: usize,
}

/// What the distance needs of a fit: borrowed, so that it can be a model file or a fresh result.
#[derive(Clone, Copy, Debug)]
pub struct Statistics<'a> {
    grid: usize,
    k: usize,
    mean: &'a [f32],
    factors: Factors<'a>,
    row_scale: &'a [f32],
}

impl<'a> Statistics<'a> {
    /// Joins mean (grid² × k + slack), factors ([`section_len`]) and the k scales of U's rows.
    ///
    /// # Errors
    /// If a length does not fit.
    pub fn new(
        grid: usize,
        k: usize,
        mean: &'a [f32],
        factors: Factors<'a>,
        row_scale: &'a [f32],
    ) -> Result<Self, StatisticsError> {
        let check = |what, got, want| {
            if got == want { Ok(()) } else { Err(StatisticsError { what, grid, k, got, want }) }
        };
        check("the mean", mean.len(), grid * grid * k + SLACK)?;
        check("the factors", factors.len(), section_len(grid * grid, k))?;
        check("the row scale", row_scale.len(), k)?;
        Ok(Self { grid, k, mean, factors, row_scale })
    }

    /// Side of the field.
    #[must_use]
    pub fn grid(&self) -> usize {
        self.grid
    }

    /// Values of a position.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Means of all positions, grid² × k, and slack.
    #[must_use]
    pub fn mean(&self) -> &'a [f32] {
        self.mean
    }

    /// The packed factors.
    #[must_use]
    pub fn factors(&self) -> Factors<'a> {
        self.factors
    }

    /// What row i of the stored factors must be multiplied by.
    #[must_use]
    pub fn row_scale(&self) -> &'a [f32] {
        self.row_scale
    }

    /// U of one position as a dense k × k matrix, row by row: for checks, not for speed.
    #[must_use]
    pub fn dense(&self, position: usize) -> Vec<f64> {
        let k = self.k;
        let mut u = vec![0.0; k * k];
        for j in 0..k {
            for i in j..k {
                let packed = self.factors.get(position * position_stride(k) + column_start(k, j) + i - j);
                u[i * k + j] = f64::from(packed) * f64::from(self.row_scale[i]);
            }
        }
        u
    }
}

/// Statistics that own their buffers: the result of a fit.
#[derive(Clone, Debug)]
pub struct OwnedStatistics {
    /// Side of the field.
    pub grid: usize,
    /// Values of a position.
    pub k: usize,
    /// Means, grid² × k and slack.
    pub mean: Vec<f32>,
    /// Packed factors.
    pub factors: OwnedFactors,
    /// Scale of U's rows.
    pub row_scale: Vec<f32>,
}

/// Factors that own their buffer.
#[derive(Clone, Debug)]
pub enum OwnedFactors {
    /// Half precision.
    F16(Vec<f16>),
    /// Single precision.
    F32(Vec<f32>),
}

impl OwnedStatistics {
    /// Packs single-precision factors (unscaled, [`section_len`]) in the given precision.
    ///
    /// Halves have a sign, 10 bits and 5 of exponent: each row of U is multiplied by one power of two, the same at all
    /// positions, that brings its largest number near 2¹⁴, so that numbers down to 2⁻²⁸ of it stay normal.
    #[must_use]
    pub fn pack(grid: usize, k: usize, mean: Vec<f32>, factors: Vec<f32>, precision: Precision) -> Self {
        let (stride, positions) = (position_stride(k), grid * grid);
        if precision == Precision::F32 {
            return Self { grid, k, mean, factors: OwnedFactors::F32(factors), row_scale: vec![1.0; k] };
        }
        let mut largest = vec![0.0f32; k];
        for position in factors.chunks_exact(stride).take(positions) {
            for j in 0..k {
                for (big, &u) in largest[j..].iter_mut().zip(&position[column_start(k, j)..]) {
                    *big = big.max(u.abs());
                }
            }
        }
        let up: Vec<f32> =
            largest.iter().map(|&x| if x > 0.0 { 2f32.powi(14 - x.log2().ceil() as i32) } else { 1.0 }).collect();
        let mut halves = vec![f16::ZERO; factors.len()];
        for (to, from) in halves.chunks_exact_mut(stride).zip(factors.chunks_exact(stride)).take(positions) {
            for j in 0..k {
                let start = column_start(k, j);
                for (i, &scale) in up.iter().enumerate().skip(j) {
                    to[start + i - j] = f16::from_f32(from[start + i - j] * scale);
                }
            }
        }
        let row_scale = up.iter().map(|s| 1.0 / s).collect();
        Self { grid, k, mean, factors: OwnedFactors::F16(halves), row_scale }
    }

    /// A view of it.
    ///
    /// # Panics
    /// If the public fields were given lengths that do not fit one another.
    #[must_use]
    pub fn view(&self) -> Statistics<'_> {
        let factors = match &self.factors {
            OwnedFactors::F16(x) => Factors::F16(x),
            OwnedFactors::F32(x) => Factors::F32(x),
        };
        Statistics::new(self.grid, self.k, &self.mean, factors, &self.row_scale).expect("lengths that fit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_position_is_79_lines_of_128_bytes() {
        assert_eq!(packed_len(100), 5050);
        assert_eq!(position_stride(100) * 2, 79 * 128);
        assert_eq!(column_start(100, 0), 0);
        assert_eq!(column_start(100, 99), 5049);
    }

    #[test]
    fn packing_keeps_eleven_bits_over_many_orders_of_magnitude() {
        let (grid, k) = (1, 5);
        let mut factors = vec![0.0; section_len(1, k)];
        for j in 0..k {
            for i in j..k {
                factors[column_start(k, j) + i - j] =
                    3.7f32.powi(i as i32 - 2 * j as i32) * if j % 2 == 0 { 1.0 } else { -1.0 };
            }
        }
        let mean = vec![0.0; k + SLACK];
        let exact = OwnedStatistics::pack(grid, k, mean.clone(), factors.clone(), Precision::F32);
        let halves = OwnedStatistics::pack(grid, k, mean, factors, Precision::F16);
        for (a, b) in exact.view().dense(0).iter().zip(halves.view().dense(0)) {
            assert!((a - b).abs() <= a.abs() / 2048.0, "{a} became {b}");
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let error = Statistics::new(2, 3, &[0.0; 4], Factors::F32(&[]), &[]).unwrap_err();
        assert!(error.to_string().contains("the mean has 4 numbers"), "{error}");
    }
}
