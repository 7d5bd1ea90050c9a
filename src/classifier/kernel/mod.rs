//! A Gaussian kernel machine on what [`features`](super::features) says of a cell: kernel ridge regression.
//!
//! The kernel of two cells a and b is
//!
//! K(a, b) = exp(−γ·(|Δx|²/[`POOLED`] + \[their kinds differ\]/30 + w·|Δh|²/[`HEAT`]))
//!
//! with x the pooled features and h the description of the heatmap, both standardised column by column, h apart for
//! each kind of cell. The weights α of a target t solve (K + λ·diag(1/weight))·α = t − bias, where the bias is the
//! weighted mean of t. [`fit()`] chooses γ, w and λ by predictions for groups of rows that were left out;
//! [`KernelMachine`] is what a station runs.

mod cholesky;
mod distances;
mod fit;
mod machine;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::features::{HEAT, POOLED};

pub use fit::{Choice, Fitted, Grid, Rows, fit};
pub use machine::{Description, KernelMachine, Scratch};

/// Numbers of a row: the pooled features, then the description of the heatmap.
pub const WIDTH: usize = POOLED + HEAT;

/// Kinds of cells that are told apart at most.
pub const MAX_KINDS: usize = 8;

/// Rows that a machine holds at most. A fit of n rows needs some 8·n² bytes for their distances and as many for each
/// thread: 0.4 GB for 4,000 rows on two threads.
pub const MAX_ROWS: usize = 20_000;

/// Targets at most.
pub const MAX_TARGETS: usize = 16;

/// What γ and w may be. Beyond it, scaled support rows would leave the range of half precision.
const KERNEL_RANGE: std::ops::RangeInclusive<f32> = 1e-3..=1e3;

/// Two cells of different kinds are this much further apart.
const KIND_DISTANCE: f32 = 1.0 / 30.0;

/// Which columns count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Uses {
    /// The pooled features alone; w says nothing.
    Pooled,
    /// The description of the heatmap alone; w counts as 1.
    Heat,
    /// All.
    #[default]
    Both,
}

impl Uses {
    /// Whether the pooled features count.
    pub(super) fn pooled(self) -> bool {
        self != Self::Heat
    }

    fn heat(self) -> bool {
        self != Self::Pooled
    }
}

/// Why a kernel machine was not fitted, or not read.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum KernelError {
    /// There is nothing to learn from, or too much.
    #[error("fitting the kernel machine: {0} rows, but 2 to {MAX_ROWS} can be fitted")]
    RowCount(usize),
    /// Sizes that do not belong together.
    #[error("fitting the kernel machine: {what} holds {got} numbers, expected {want}")]
    Length {
        /// Which argument.
        what: &'static str,
        /// What it holds.
        got: usize,
        /// What it should hold.
        want: String,
    },
    /// A number that is not finite.
    #[error("fitting the kernel machine: {what} {row} has a number that is not finite; leave this row out")]
    NotFinite {
        /// `row` or `target`.
        what: &'static str,
        /// Which, from 0.
        row: usize,
    },
    /// A kind that is not one.
    #[error("fitting the kernel machine: row {row} is of kind {kind}; kinds are numbered 0 to {}", MAX_KINDS - 1)]
    Kind {
        /// Which row.
        row: usize,
        /// Its kind.
        kind: usize,
    },
    /// Weights that are negative or not finite, or leave nothing to learn a target from.
    #[error("fitting the kernel machine: {0}; weights are finite, not negative, and positive in two groups a target")]
    Weights(String),
    /// Nothing can be left out.
    #[error("fitting the kernel machine: all rows are in one group; choosing its settings needs two or more")]
    OneGroup,
    /// A grid that is empty or holds a setting out of range.
    #[error(
        "fitting the kernel machine: the candidates for {0}; give one or more for each setting, from 0.001 to 1000 for \
         gamma and the heatmap's weight, from 1e-6 to 1e6 for lambda"
    )]
    Grid(&'static str),
    /// No setting gave equations that can be solved.
    #[error("fitting the kernel machine: its equations cannot be solved; give a larger lambda")]
    Singular,
    /// Parts of a model file that make no machine.
    #[error("reading the kernel machine: {0}; take a fresh copy of the model or fit again")]
    Parts(&'static str),
}

/// e^−d for d ≥ 0, within 3·10⁻⁷ of it in relation, and no smaller than e^−87; NaN for what is not finite.
#[inline(always)]
fn exp_negative(d: f32) -> f32 {
    // Adding it rounds to a whole number, which stands in the low bits then.
    const ROUND: f32 = 12_582_912.0;
    let x = if d > 87.0 { -87.0 } else { -d };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = (x - whole * 0.693_359_4) + whole * 2.121_944_4e-4;
    let p = 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    // What is not finite stays so: an overflown distance is no distance.
    p * power + d * 0.0
}
