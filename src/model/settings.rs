//! Everything that decides what a fit computes.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::backbone::STAGE_STRIDES;
use crate::embedding::projection::MAX_K;
use crate::embedding::{EmbeddingError, Mixing, Projection, Stages};
use crate::gaussian::{Precision, Shrinkage};
use crate::heatmap::ScoreKind;
use crate::preprocess::{AugmentConfig, ConfigError, PreprocessConfig};

/// The settings of a fit. They travel in the model, so that the station does what the fit did, and in partial fits, so
/// that only those of one kind are joined.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Side S of the rectified image.
    pub size: u32,
    /// Side of the heatmap's grid.
    pub grid: u32,
    /// Values of a position.
    pub k: u32,
    /// Stages of the network that take part.
    pub stages: Stages,
    /// How W mixes the channels.
    pub mixing: Mixing,
    /// Seed of W, of the augmentation and of the choice of held-out cells.
    pub seed: u64,
    /// Whether each channel is divided by its standard deviation over good cells before W.
    pub standardise: bool,
    /// How a frame becomes an image.
    pub preprocess: PreprocessConfig,
    /// How the images of the fit are multiplied.
    pub augment: AugmentConfig,
    /// How covariances are made invertible.
    pub shrinkage: Shrinkage,
    /// How factors are stored.
    pub precision: Precision,
    /// Gaussian smoothing of the heatmap, in positions.
    pub sigma: f32,
    /// Which number of the heatmap is the score.
    pub score: ScoreKind,
    /// Share of good cells that the threshold may reject.
    pub overkill: f64,
    /// Share of good cells that are kept out of the statistics to calibrate the score.
    pub holdout: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            size: 256,
            grid: 64,
            k: 100,
            stages: Stages::ALL,
            mixing: Mixing::default(),
            seed: 1,
            standardise: false,
            preprocess: PreprocessConfig::default(),
            augment: AugmentConfig::default(),
            shrinkage: Shrinkage::default(),
            precision: Precision::F16,
            sigma: 1.0,
            score: ScoreKind::Top,
            overkill: 0.01,
            holdout: 0.1,
        }
    }
}

/// A setting is out of range.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum SettingsError {
    /// A number is out of its range.
    #[error("settings of the fit: `{name}` is {value}, it must be {allowed}")]
    Range {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Preprocessing refuses its part.
    #[error(transparent)]
    Preprocess(#[from] ConfigError),
}

impl Settings {
    /// W for channels of the given scale ([`CHANNELS`](crate::embedding::projection::CHANNELS) long).
    ///
    /// # Errors
    /// If k does not fit the stages, or a scale is negative or not finite.
    pub fn projection(&self, scale: &[f32]) -> Result<Projection, EmbeddingError> {
        Projection::semi_orthogonal(self.mixing, self.k as usize, self.seed, self.stages, scale)
    }

    /// Checks every number's range.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let range = |name, value: f64, good: bool, allowed| {
            if good { Ok(()) } else { Err(SettingsError::Range { name, value, allowed }) }
        };
        let size = self.size as usize;
        range(
            "size",
            size.try_into().map_or(f64::NAN, |s: u32| f64::from(s)),
            (64..=1024).contains(&size) && size.is_multiple_of(STAGE_STRIDES[3]),
            "a multiple of 32 from 64 to 1024",
        )?;
        range("grid", self.grid.into(), (4..=256).contains(&self.grid), "from 4 to 256")?;
        range("k", self.k.into(), (1..=MAX_K as u32).contains(&self.k), "from 1 to 256")?;
        range(
            "stages",
            self.stages.channels() as f64,
            self.stages.channels() >= self.k as usize,
            "as many channels as k, or more",
        )?;
        range("sigma", self.sigma.into(), (0.0..=8.0).contains(&self.sigma), "from 0 to 8")?;
        range("overkill", self.overkill, (0.0..=0.5).contains(&self.overkill), "from 0 to 0.5")?;
        range("holdout", self.holdout, (0.0..=0.5).contains(&self.holdout), "from 0 to 0.5")?;
        let epsilon = match self.shrinkage {
            Shrinkage::Absolute(e) | Shrinkage::Relative(e) => e,
            Shrinkage::LedoitWolf => 1.0,
        };
        range("shrinkage", epsilon, epsilon > 0.0 && epsilon.is_finite(), "a positive number")?;
        self.preprocess.validate()?;
        Ok(self.augment.validate()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_each_number_is_checked() {
        Settings::default().validate().unwrap();
        for (name, broken) in [
            ("size", Settings { size: 250, ..Settings::default() }),
            ("grid", Settings { grid: 0, ..Settings::default() }),
            ("k", Settings { k: 300, ..Settings::default() }),
            ("stages", Settings { stages: Stages([true, false, false, false]), ..Settings::default() }),
            ("sigma", Settings { sigma: f32::NAN, ..Settings::default() }),
            ("overkill", Settings { overkill: -0.1, ..Settings::default() }),
            ("holdout", Settings { holdout: 0.9, ..Settings::default() }),
            ("shrinkage", Settings { shrinkage: Shrinkage::Absolute(0.0), ..Settings::default() }),
        ] {
            let error = broken.validate().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
