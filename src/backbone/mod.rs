//! The feature extractor: a ResNet18 whose four stage outputs are the [`Pyramid`] of a cell.
//!
//! Weights come in through [`weights`] as one canonical form, [`ResNet18`] (batch norm folded, one grey input
//! channel); [`cpu`] runs them on this machine.

pub mod cpu;
pub mod onnx;
pub mod reference;
pub mod weights;

use std::fmt;

use thiserror::Error;

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
        // `{:.12}` gives the first twelve digits.
        let digits: String = self.0.iter().map(|b| format!("{b:02x}")).collect();
        f.pad(&digits)
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

/// The outputs of the four stages for one image of side S: map `s` is `(S/stride)²` pixels, row by row, each with its
/// channels next to one another (HWC), without padding. Stages that nobody wants have no map, and what comes after the
/// last one wanted is not computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Pyramid {
    size: usize,
    maps: [Vec<f32>; 4],
}

impl Pyramid {
    /// Buffers of all four stages for an image of side `size` (a multiple of 32).
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self::with_stages(size, [true; 4])
    }

    /// Buffers of the stages that are wanted; the map of another stays empty.
    #[must_use]
    pub fn with_stages(size: usize, wanted: [bool; 4]) -> Self {
        let len = |s: usize| (size / STAGE_STRIDES[s]).pow(2) * STAGE_CHANNELS[s];
        Self { size, maps: std::array::from_fn(|s| if wanted[s] { vec![0.0; len(s)] } else { Vec::new() }) }
    }

    /// Which stages it holds.
    #[must_use]
    pub fn stages(&self) -> [bool; 4] {
        std::array::from_fn(|s| !self.maps[s].is_empty())
    }

    /// How many stages must be computed: up to the last one that it holds.
    #[must_use]
    pub fn depth(&self) -> usize {
        depth(self.stages())
    }

    /// The image side S.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The side of map `stage` in pixels.
    #[must_use]
    pub fn side(&self, stage: usize) -> usize {
        self.size / STAGE_STRIDES[stage]
    }

    /// Map `stage` (0 to 3): side² × channels, or nothing if the stage is not wanted.
    #[must_use]
    pub fn map(&self, stage: usize) -> &[f32] {
        &self.maps[stage]
    }

    /// Map `stage` to be written.
    pub fn map_mut(&mut self, stage: usize) -> &mut [f32] {
        &mut self.maps[stage]
    }
}

/// How many stages must be computed for those that are wanted: the number of the last, from 1; 0 for none.
#[must_use]
pub fn depth(wanted: [bool; 4]) -> usize {
    wanted.iter().rposition(|&w| w).map_or(0, |last| last + 1)
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
