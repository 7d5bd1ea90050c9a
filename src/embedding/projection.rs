//! The semi-orthogonal matrix W (Kim et al. 2021) with the channels' scale folded in.

use std::fmt;
use std::str::FromStr;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::backbone::STAGE_CHANNELS;

/// Channels of all four stages together, F.
pub const CHANNELS: usize = STAGE_CHANNELS[0] + STAGE_CHANNELS[1] + STAGE_CHANNELS[2] + STAGE_CHANNELS[3];
/// The largest k: a position's factors grow with k², and 256 is already 6.5 times the default's 41 MB.
pub const MAX_K: usize = 256;

/// Why an embedding could not be made.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum EmbeddingError {
    /// k is 0, above [`MAX_K`] or above the number of channels.
    #[error(
        "making the embedding: k = {k} is not between 1 and {limit} (channels of the chosen stages, at most {MAX_K})"
    )]
    Dimension {
        /// The k asked for.
        k: usize,
        /// The largest k possible.
        limit: usize,
    },
    /// A scale is not a positive, finite number or 0.
    #[error("making the embedding: the scale of channel {channel} is {value}, not a finite number of at least 0")]
    Scale {
        /// Its index among the 960.
        channel: usize,
        /// Its value.
        value: f32,
    },
    /// There is not one scale a channel.
    #[error("making the embedding: {got} channel scales were given, {CHANNELS} are needed")]
    Scales {
        /// Scales given.
        got: usize,
    },
    /// The stored matrix has the wrong size.
    #[error("reading the embedding: the matrix has {got} values, k = {k} needs {CHANNELS}×{k}")]
    Matrix {
        /// Values found.
        got: usize,
        /// Columns.
        k: usize,
    },
    /// A value of the stored matrix is not finite.
    #[error("reading the embedding: value {index} of the matrix is not finite")]
    NotFinite {
        /// Where.
        index: usize,
    },
}

/// Which stages of the ResNet take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stages(pub [bool; 4]);

impl Stages {
    /// All four, as the paper says.
    pub const ALL: Self = Self([true; 4]);

    /// Channels of the stages that take part.
    #[must_use]
    pub fn channels(self) -> usize {
        (0..4).filter(|&s| self.0[s]).map(|s| STAGE_CHANNELS[s]).sum()
    }
}

impl FromStr for Stages {
    type Err = String;

    /// `1,2,3`: the numbers of the stages, from 1 to 4.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut stages = [false; 4];
        for part in text.split(',') {
            match part.trim().parse::<usize>() {
                Ok(n @ 1..=4) => stages[n - 1] = true,
                _ => return Err(format!("`{part}` is not a stage: give numbers from 1 to 4, as in 1,2,3")),
            }
        }
        Ok(Self(stages))
    }
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = (0..4).filter(|&s| self.0[s]).map(|s| (s + 1).to_string()).collect();
        f.write_str(&names.join(","))
    }
}

/// How W mixes the channels. Either way WᵀW = I.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mixing {
    /// Each channel feeds one of the k values, in turn around them, with a random sign, and all channels of a value
    /// weigh the same: a product with W is one multiplication a channel instead of k. On real cells the areas
    /// under the ROC curve are within 0.004 of those of [`Mixing::Dense`] (docs/accuracy.md).
    #[default]
    Sparse,
    /// Each channel feeds all values: the Q of a QR decomposition of a Gaussian matrix with the diagonal of R positive
    /// (Kim et al. 2021), as in the paper.
    Dense,
}

impl FromStr for Mixing {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Sparse, Self::Dense]
            .into_iter()
            .find(|mixing| mixing.to_string() == name)
            .ok_or_else(|| format!("`{name}`: one of sparse, dense"))
    }
}

impl fmt::Display for Mixing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sparse => "sparse",
            Self::Dense => "dense",
        })
    }
}

/// `diag(scale)·W`: CHANNELS × k, WᵀW = I over the channels of the chosen stages, zero rows elsewhere.
///
/// It is stored in the model rather than made again from its seed, so that no station depends on how its own
/// mathematics library rounds a logarithm.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    k: usize,
    matrix: Vec<f32>,
}

impl Projection {
    /// W from a seed, each row multiplied by its channel's `scale` (length [`CHANNELS`]; 1 for no standardisation).
    ///
    /// # Errors
    /// If `k` does not fit the channels of `stages`, or a scale is negative or not finite.
    pub fn semi_orthogonal(
        mixing: Mixing,
        k: usize,
        seed: u64,
        stages: Stages,
        scale: &[f32],
    ) -> Result<Self, EmbeddingError> {
        let channels = stages.channels();
        let limit = channels.min(MAX_K);
        if k == 0 || k > limit {
            return Err(EmbeddingError::Dimension { k, limit });
        }
        if scale.len() != CHANNELS {
            return Err(EmbeddingError::Scales { got: scale.len() });
        }
        if let Some((channel, &value)) = scale.iter().enumerate().find(|(_, s)| !s.is_finite() || **s < 0.0) {
            return Err(EmbeddingError::Scale { channel, value });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let q = match mixing {
            Mixing::Sparse => signed_turns(channels, k, &mut rng),
            Mixing::Dense => orthonormal_columns(channels, k, &mut rng),
        };
        let mut matrix = vec![0.0; CHANNELS * k];
        let mut active = 0;
        for (channel, row) in matrix.chunks_exact_mut(k).enumerate() {
            if stages.0[stage_of(channel)] {
                for (j, value) in row.iter_mut().enumerate() {
                    *value = (q[j][active] * f64::from(scale[channel])) as f32;
                }
                active += 1;
            }
        }
        Ok(Self { k, matrix })
    }

    /// A matrix as stored in a model: CHANNELS × k, row by row.
    ///
    /// # Errors
    /// If its size does not fit `k` or a value is not finite.
    pub fn from_matrix(k: usize, matrix: Vec<f32>) -> Result<Self, EmbeddingError> {
        if k == 0 || k > MAX_K {
            return Err(EmbeddingError::Dimension { k, limit: MAX_K });
        }
        if matrix.len() != CHANNELS * k {
            return Err(EmbeddingError::Matrix { got: matrix.len(), k });
        }
        match matrix.iter().position(|x| !x.is_finite()) {
            Some(index) => Err(EmbeddingError::NotFinite { index }),
            None => Ok(Self { k, matrix }),
        }
    }

    /// Columns, k.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// The whole matrix, row by row.
    #[must_use]
    pub fn matrix(&self) -> &[f32] {
        &self.matrix
    }

    /// The rows of one stage: channels × k.
    #[must_use]
    pub fn stage(&self, stage: usize) -> &[f32] {
        let first: usize = STAGE_CHANNELS[..stage].iter().sum();
        &self.matrix[first * self.k..][..STAGE_CHANNELS[stage] * self.k]
    }

    /// Whether a stage takes part at all.
    #[must_use]
    pub fn uses(&self, stage: usize) -> bool {
        self.stage(stage).iter().any(|&x| x != 0.0)
    }
}

fn stage_of(channel: usize) -> usize {
    let mut end = 0;
    STAGE_CHANNELS
        .iter()
        .position(|c| {
            end += c;
            channel < end
        })
        .expect("a channel below CHANNELS lies in a stage")
}

/// k columns of `rows` values: row r has a number, of random sign, in column r mod k only. Columns do not overlap, so
/// they are orthogonal.
fn signed_turns(rows: usize, k: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<f64>> {
    let mut columns = vec![vec![0.0; rows]; k];
    for row in 0..rows {
        let weight = (((rows - 1 - row % k) / k + 1) as f64).sqrt().recip();
        columns[row % k][row] = if rng.next_u32() & 1 == 0 { weight } else { -weight };
    }
    columns
}

/// k orthonormal columns of `rows` values: Gram–Schmidt, twice for full precision, on a Gaussian matrix.
fn orthonormal_columns(rows: usize, k: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<f64>> {
    let mut columns: Vec<Vec<f64>> = Vec::with_capacity(k);
    for _ in 0..k {
        let mut column: Vec<f64> = (0..rows).map(|_| gaussian(rng)).collect();
        for _ in 0..2 {
            for earlier in &columns {
                let along: f64 = earlier.iter().zip(&column).map(|(a, b)| a * b).sum();
                column.iter_mut().zip(earlier).for_each(|(c, e)| *c -= along * e);
            }
        }
        let norm = column.iter().map(|c| c * c).sum::<f64>().sqrt();
        column.iter_mut().for_each(|c| *c /= norm);
        columns.push(column);
    }
    columns
}

/// A standard normal number (Box–Muller, one of the pair).
fn gaussian(rng: &mut ChaCha8Rng) -> f64 {
    let mut uniform = || ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_orthonormal() {
        for (mixing, k) in [(Mixing::Dense, 100), (Mixing::Sparse, 100), (Mixing::Sparse, 1), (Mixing::Sparse, 256)] {
            let p = Projection::semi_orthogonal(mixing, k, 7, Stages::ALL, &[1.0; CHANNELS]).unwrap();
            for a in 0..k {
                for b in 0..=a {
                    let dot: f64 = p.matrix().chunks_exact(k).map(|row| f64::from(row[a]) * f64::from(row[b])).sum();
                    let expected = if a == b { 1.0 } else { 0.0 };
                    assert!((dot - expected).abs() < 1e-6, "{mixing}, columns {a} and {b}: {dot}");
                }
            }
        }
    }

    #[test]
    fn stages_left_out_have_zero_rows_and_the_scale_multiplies_rows() {
        let stages: Stages = "1,3".parse().unwrap();
        let ones = Projection::semi_orthogonal(Mixing::Dense, 20, 7, stages, &[1.0; CHANNELS]).unwrap();
        let twos = Projection::semi_orthogonal(Mixing::Dense, 20, 7, stages, &[2.0; CHANNELS]).unwrap();
        assert!(ones.uses(0) && !ones.uses(1) && ones.uses(2) && !ones.uses(3));
        assert!(ones.matrix().iter().zip(twos.matrix()).all(|(a, b)| 2.0 * a == *b));
    }

    #[test]
    fn wrong_dimensions_and_scales_are_refused() {
        let one: Stages = "1".parse().unwrap();
        assert_eq!(
            Projection::semi_orthogonal(Mixing::Sparse, 65, 1, one, &[1.0; CHANNELS]),
            Err(EmbeddingError::Dimension { k: 65, limit: 64 })
        );
        let mut scale = [1.0; CHANNELS];
        scale[3] = f32::NAN;
        assert!(matches!(
            Projection::semi_orthogonal(Mixing::Sparse, 10, 1, one, &scale),
            Err(EmbeddingError::Scale { channel: 3, .. })
        ));
        assert!(matches!(Projection::from_matrix(10, vec![0.0; 9]), Err(EmbeddingError::Matrix { got: 9, k: 10 })));
        assert!("1,5".parse::<Stages>().is_err());
    }
}
