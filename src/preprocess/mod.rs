//! From a frame to the normalised S×S image of a cell (paper section 2.2.1).
//!
//! ```text
//!  frame ─► threshold ─► bright regions ─► hull ─► Douglas–Peucker ─► four sides ─► homography ─► S×S ─► gates ─► g
//!           50 of 255    joined over       of the  to a polygon       fitted to     corners to    area    named
//!           or Otsu      busbars, cracks   largest                    sub-pixel     corners       aware   reasons
//! ```
//!
//! [`Preprocessor`] owns every buffer and allocates none after its making. A frame comes out as
//! `g = (x/white − 0.449)/0.226` with a [`Placement`] that leads back to the frame, or with a [`Refusal`].

mod augment;
mod border;
mod gates;
pub(crate) mod homography;
mod placement;
pub mod polygon;
mod rectify;
mod segment;
pub mod sensor;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use augment::{AugmentConfig, Augmentation};
pub use gates::{Gates, Refusal};
pub use placement::Placement;
pub use rectify::Axis;

use crate::backbone::{INPUT_MEAN, INPUT_STD};
use crate::frame::Frame;

/// Smallest side of a frame that can show a cell.
pub const MIN_SIDE: usize = 16;

/// An edge of so many pixels is sharp whatever its share of the side.
const SHARPEST: f32 = 4.0;

/// How the cell is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The cell's border is searched on a dark background and straightened to S×S.
    #[default]
    Border,
    /// The frame is the cell (ELPV): the whole of it is resized to S×S, antialiased.
    None,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Border => "border found and straightened",
            Self::None => "whole frame",
        })
    }
}

/// The brightness from which a pixel belongs to a cell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Threshold {
    /// This share of full scale; the paper's is 50/255.
    Fixed(f32),
    /// The share that separates the frame's dark and bright pixels best (Otsu 1979).
    Otsu,
}

impl Default for Threshold {
    fn default() -> Self {
        Self::Fixed(50.0 / 255.0)
    }
}

/// Everything that decides what a frame's S×S image is; it lies in the model file, so that the station does what the
/// fit did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PreprocessConfig {
    /// How the cell is found.
    pub mode: Mode,
    /// What is bright (border mode).
    pub threshold: Threshold,
    /// Share of the cell's side that is left out along each edge (border mode), 0 to 0.2. Default 0.
    pub inset: f32,
    /// What is refused.
    pub gates: Gates,
}

impl PreprocessConfig {
    /// For images that are already cut to the cell, as ELPV's: no border step.
    #[must_use]
    pub fn whole_frame() -> Self {
        Self { mode: Mode::None, ..Self::default() }
    }

    /// Checks every number's range.
    ///
    /// # Errors
    /// The first number that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let range = |name, value: f32, low: f32, high: f32| {
            if value >= low && value <= high { Ok(()) } else { Err(ConfigError::Range { name, value, low, high }) }
        };
        if let Threshold::Fixed(share) = self.threshold {
            range("threshold", share, 0.001, 0.999)?;
        }
        range("inset", self.inset, 0.0, 0.2)?;
        self.gates.validate()
    }
}

/// Why a [`Preprocessor`] cannot be made.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number is out of its range.
    #[error("preprocessing: `{name}` is {value}, it must lie from {low} to {high}")]
    Range {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f32,
        /// Smallest allowed.
        low: f32,
        /// Largest allowed.
        high: f32,
    },
    /// The smallest aspect is above the largest.
    #[error("preprocessing: gates.min_aspect {low} is above gates.max_aspect {high}; swap them")]
    Aspect {
        /// Smallest aspect.
        low: f32,
        /// Largest aspect.
        high: f32,
    },
    /// The image side or the largest frame is out of range.
    #[error("preprocessing: `{name}` is {value}, it must lie from {low} to {high}")]
    Size {
        /// Which size.
        name: &'static str,
        /// Its value.
        value: usize,
        /// Smallest allowed.
        low: usize,
        /// Largest allowed.
        high: usize,
    },
}

/// Makes the S×S images; owns its buffers.
pub struct Preprocessor {
    config: PreprocessConfig,
    size: usize,
    max_width: usize,
    max_height: usize,
    /// Mode none only.
    resizer: Option<rectify::Resizer>,
    /// Border mode only.
    finder: Option<border::Finder>,
}

impl Preprocessor {
    /// Makes the buffers for images of side `size` (16 to 2048) and frames up to `max_width` × `max_height` (16 to
    /// 16384 each).
    ///
    /// # Errors
    /// If the configuration or a size is out of range.
    pub fn new(
        config: PreprocessConfig,
        size: usize,
        max_width: usize,
        max_height: usize,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        for (name, value, high) in
            [("size", size, 2048), ("max_width", max_width, 16384), ("max_height", max_height, 16384)]
        {
            if value < MIN_SIDE || value > high {
                return Err(ConfigError::Size { name, value, low: MIN_SIDE, high });
            }
        }
        let resizer = (config.mode == Mode::None).then(|| rectify::Resizer::new(size, max_width, max_height));
        let finder = (config.mode == Mode::Border).then(|| border::Finder::new(max_width, max_height));
        Ok(Self { config, size, max_width, max_height, resizer, finder })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &PreprocessConfig {
        &self.config
    }

    /// The side S of the images that it makes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Finds the cell in `frame`, and writes its straightened and normalised image to `out` (S·S values row by row).
    ///
    /// Allocates nothing. On a rejection `out` holds nothing of use.
    ///
    /// # Errors
    /// Why the frame cannot be judged.
    ///
    /// # Panics
    /// If `out` is not S·S long.
    pub fn run(&mut self, frame: &Frame, out: &mut [f32]) -> Result<Placement, Refusal> {
        let size = self.size;
        assert_eq!(out.len(), size * size, "the output must hold {size}×{size} values");
        let mut placement = self.locate(frame)?;
        match &mut self.resizer {
            Some(resizer) => resizer.run(frame, out),
            None => rectify::warp(frame, &placement.homography, scale(&placement), size, out),
        }
        let (mean, sharpness) = rectify::measure(out, size);
        self.accept(&mut placement, mean / f32::from(frame.white()), sharpness)?;
        let [factor, shift] = normalisation(frame);
        out.iter_mut().for_each(|v| *v = *v * factor - shift);
        Ok(placement)
    }

    /// Finds the cell in `frame`, and leaves its image to another backend. Brightness and sharpness are still 0: the
    /// placement counts only once [`accept`](Self::accept) has seen them. Allocates nothing.
    ///
    /// # Errors
    /// Why the frame cannot be judged.
    pub fn locate(&mut self, frame: &Frame) -> Result<Placement, Refusal> {
        let (width, height) = (frame.width(), frame.height());
        if width < MIN_SIDE || height < MIN_SIDE {
            let [width, height, min] = [width, height, MIN_SIDE].map(|v| v as u32);
            return Err(Refusal::FrameTooSmall { width, height, min });
        }
        if width > self.max_width || height > self.max_height {
            let [width, height, max_width, max_height] =
                [width, height, self.max_width, self.max_height].map(|v| v as u32);
            return Err(Refusal::FrameTooLarge { width, height, max_width, max_height });
        }
        match self.config.mode {
            Mode::None => self.whole(frame),
            Mode::Border => self.straighten(frame),
        }
    }

    /// Completes a placement by what was measured of the straightened image, its mean of full scale and its sharpness, and
    /// passes it through the gates.
    ///
    /// # Errors
    /// Why the frame cannot be judged.
    pub fn accept(&self, placement: &mut Placement, brightness: f32, sharpness: f32) -> Result<(), Refusal> {
        (placement.brightness, placement.sharpness) = (brightness, sharpness);
        self.judge(placement)
    }

    /// The frame is the cell.
    fn whole(&mut self, frame: &Frame) -> Result<Placement, Refusal> {
        let (low, high, full) = scan(frame);
        let white = f32::from(frame.white());
        let area = frame.pixels().len() as f32;
        self.saturated(full as f32 / area)?;
        let spread = f32::from(high - low) / white;
        if let (true, Some(limit)) = (spread < 2.0 / 255.0, self.config.gates.dim_below) {
            let mean = f32::from(high) / white;
            return Err(if mean < limit { Refusal::Dim { mean, limit } } else { Refusal::Uniform { spread } });
        }
        let (w, h) = (frame.width() as f64, frame.height() as f64);
        let quad = [[0.0, 0.0], [w, 0.0], [w, h], [0.0, h]];
        let (sx, sy) = (w / self.size as f64, h / self.size as f64);
        Ok(Placement {
            quad,
            size: self.size,
            homography: [sx, 0.0, 0.0, 0.0, sy, 0.0, 0.0, 0.0, 1.0],
            brightness: 0.0,
            saturated: full as f32 / area,
            sharpness: 0.0,
            edge_width: None,
            fill: 1.0,
            threshold: None,
        })
    }

    /// The cell is searched in the frame.
    fn straighten(&mut self, frame: &Frame) -> Result<Placement, Refusal> {
        let (low, high, full) = scan(frame);
        self.saturated(full as f32 / frame.pixels().len() as f32)?;
        let Some(finder) = &mut self.finder else { unreachable!("border mode has a finder") };
        let outline = finder.run(frame, low, high, &self.config)?;
        let quad = outline.quad;
        let homography = placement::square_to_quad(&quad, self.size, f64::from(self.config.inset))
            .ok_or(Refusal::NotQuadrilateral { vertices: 4 })?;
        let area = polygon::area2(&quad) / 2.0;
        Ok(Placement {
            quad,
            size: self.size,
            homography,
            brightness: 0.0,
            saturated: (full as f64 / area).min(1.0) as f32,
            sharpness: 0.0,
            edge_width: Some(outline.edge_width),
            fill: (outline.bright / area).min(1.0) as f32,
            threshold: Some(outline.threshold),
        })
    }

    fn saturated(&self, share: f32) -> Result<(), Refusal> {
        match self.config.gates.saturated_above {
            Some(limit) if share > limit => Err(Refusal::Saturated { share, limit }),
            _ => Ok(()),
        }
    }

    /// The gates that look at the finished image.
    fn judge(&self, placement: &Placement) -> Result<(), Refusal> {
        let gates = &self.config.gates;
        self.saturated(placement.saturated)?;
        let aspect = aspect(&placement.quad);
        if gates.min_aspect.is_some_and(|low| aspect < low)
            || gates.max_aspect.is_some_and(|high| aspect > high)
            || gates.min_fill.is_some_and(|low| placement.fill < low)
        {
            return Err(Refusal::OddShape { aspect, fill: placement.fill });
        }
        if let Some(limit) = gates.dim_below.filter(|&limit| placement.brightness < limit) {
            return Err(Refusal::Dim { mean: placement.brightness, limit });
        }
        if let (Some(limit), Some(value)) = (gates.max_edge_width, placement.edge_width) {
            let side = (polygon::area2(&placement.quad) / 2.0).sqrt() as f32;
            let limit = limit.max(SHARPEST / side);
            if value > limit {
                return Err(Refusal::Blurred { edge: true, value, limit });
            }
        }
        if let Some(limit) = gates.min_sharpness.filter(|&limit| placement.sharpness < limit) {
            return Err(Refusal::Blurred { edge: false, value: placement.sharpness, limit });
        }
        Ok(())
    }
}

/// Frame pixels an image pixel, along the cell's sides.
fn scale(placement: &Placement) -> f64 {
    let quad = &placement.quad;
    let sides = (0..4).map(|i| polygon::distance(quad[i], quad[(i + 1) % 4])).sum::<f64>();
    sides / 4.0 / placement.size as f64
}

/// The n of the n×n taps whose mean an image pixel of a straightened cell is, for a backend that straightens itself.
#[must_use]
pub fn taps(placement: &Placement) -> usize {
    rectify::taps(scale(placement))
}

/// What a value of a frame is multiplied by, and what is taken off then, to give the network's input.
#[must_use]
pub fn normalisation(frame: &Frame) -> [f32; 2] {
    [1.0 / (f32::from(frame.white()) * INPUT_STD), INPUT_MEAN / INPUT_STD]
}

/// Smallest and largest pixel, and how many are at full scale: within 1/256 of it, since 12 bits that were shifted
/// into 16 end at 65520.
fn scan(frame: &Frame) -> (u16, u16, usize) {
    let full = frame.white() - frame.white() / 256;
    let (mut low, mut high, mut count) = (u16::MAX, 0, 0);
    for &x in frame.pixels() {
        low = low.min(x);
        high = high.max(x);
        count += usize::from(x >= full);
    }
    (low, high, count)
}

/// Mean of top and bottom over mean of left and right.
fn aspect(quad: &[[f64; 2]; 4]) -> f32 {
    let side = |a: usize, b: usize| (quad[a][0] - quad[b][0]).hypot(quad[a][1] - quad[b][1]);
    ((side(0, 1) + side(2, 3)) / (side(1, 2) + side(3, 0))) as f32
}
