//! The feature extractor: a ResNet18 whose four stage outputs are the [`Pyramid`] of a cell.
//!
//! Weights come in through [`weights`] as one canonical form, [`ResNet18`] (batch norm folded, one grey input
//! channel); [`cpu`] runs them on this machine.

pub mod cpu;
pub mod onnx;
mod pyramid;
pub mod reference;
pub mod weights;

use std::fmt;

use thiserror::Error;

pub use pyramid::{Pyramid, depth};
pub use weights::ResNet18;

/// Output channels of the four stages of a ResNet18.
pub const STAGE_CHANNELS: [usize; 4] = [64, 128, 256, 512];
/// Input pixels per output pixel of the four stages.
pub const STAGE_STRIDES: [usize; 4] = [4, 8, 16, 32];
/// Which sides S of the rectified image there are, in words.
pub const SIDES: &str = "a multiple of 32 from 64 to 1024";

/// Whether S is one of [`SIDES`]: the last stage's stride divides it.
#[must_use]
pub fn is_side(size: usize) -> bool {
    (64..=1024).contains(&size) && size.is_multiple_of(STAGE_STRIDES[3])
}

/// Mean of the grey input, of full scale: the mean of ImageNet's three channel means.
pub const INPUT_MEAN: f32 = 0.449;
/// Standard deviation of the grey input, of full scale.
pub const INPUT_STD: f32 = 0.226;

/// Which network a model was fitted with: BLAKE3 over architecture, input contract and folded weights.
#[derive(Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Identity(pub [u8; 32]);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digits: [u8; 64] = std::array::from_fn(|i| {
            let byte = self.0[i / 2];
            DIGITS[usize::from(if i % 2 == 0 { byte >> 4 } else { byte & 15 })]
        });
        // `{:.12}` gives the first twelve digits.
        f.pad(str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({self})")
    }
}

/// Why a backbone could not be built or run.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum BackboneError {
    /// The rectified image has another size than the backbone was built for.
    #[error("running the backbone: the image has {got} values, but this backbone was built for {size}×{size}")]
    ImageSize {
        /// Values given.
        got: usize,
        /// The side that the backbone was built for.
        size: usize,
    },
    /// The side is not a multiple of 32 in the supported range.
    #[error("building the backbone: the image side {0} is not {SIDES}")]
    Side(usize),
    /// The caller's pyramid was made for another image side.
    #[error("running the backbone: the pyramid was made for another image side than {size}")]
    PyramidSize {
        /// The side that the backbone was built for.
        size: usize,
    },
    /// The caller's pyramid holds a stage that this backbone was not built to compute.
    #[error("running the backbone: stage {wanted} is wanted, but this backbone was built to stop after stage {built}")]
    Stage {
        /// The last stage that the pyramid holds, from 1.
        wanted: usize,
        /// The last stage that can be computed, from 1.
        built: usize,
    },
}

/// A feature extractor that writes into the caller's buffers and says who it is.
pub trait Backbone: Send {
    /// The side S of the images that it was built for.
    fn size(&self) -> usize;

    /// Which network this is; a fitted model is bound to it.
    fn identity(&self) -> Identity;

    /// Runs one rectified, normalised image `g = (x/white − INPUT_MEAN)/INPUT_STD`, `S·S` values row by row, as far as
    /// the last stage that the pyramid holds.
    ///
    /// Allocates nothing. Numbers that are not finite are not checked here: they spread into the score, which the
    /// verdict refuses.
    ///
    /// # Errors
    /// If the image or the pyramid has another size than the backbone was built for, or the pyramid holds a stage that
    /// it was not built to compute.
    fn run(&mut self, image: &[f32], pyramid: &mut Pyramid) -> Result<(), BackboneError>;
}
