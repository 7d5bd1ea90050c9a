//! The quality gates: what makes a frame unfit to be judged, each with a name that the verdict carries.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ConfigError;

/// The limits that a frame must keep; `None` switches a gate off. Shares are of 1.
///
/// They lie in the model file beside the rest of [`PreprocessConfig`](super::PreprocessConfig), so that a station
/// refuses what the fit refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gates {
    /// Smallest area of the cell as a share of the frame (border mode). Default 0.2.
    pub min_area: Option<f32>,
    /// Smallest width/height of the cell. Default 0.8; the cells of this line are square.
    pub min_aspect: Option<f32>,
    /// Largest width/height of the cell. Default 1.25.
    pub max_aspect: Option<f32>,
    /// Smallest share of the quadrilateral that is brighter than the threshold (border mode). Default 0.5: a cell with
    /// one dead half is found by its frame of bright regions or not at all.
    pub min_fill: Option<f32>,
    /// The outline must not touch the frame's edge (border mode). Default true.
    pub reject_cropped: bool,
    /// A second cell of at least this share of the first one's area is refused (border mode). Default 0.25.
    pub second_cell: Option<f32>,
    /// Smallest mean brightness of the cell, of full scale. Default 0.03 (8 of 255); the dimmest of ELPV's 2,624
    /// cells has 0.054, their 1st percentile is 0.28.
    pub dim_below: Option<f32>,
    /// Largest share of the cell at full scale. Default 0.25.
    pub saturated_above: Option<f32>,
    /// Widest allowed edge of the cell as a share of its side (border mode): the contrast across the outline divided
    /// by its steepest slope, median over the outline. Default 0.012 (8 pixels of a 660-pixel cell); a focused camera
    /// gives 0.002 to 0.005. It depends on the optics alone and not on what the cell shows. Edges narrower than 4 pixels
    /// always pass, since a coarse camera cannot show them sharper.
    pub max_edge_width: Option<f32>,
    /// Smallest [`sharpness`](super::Placement::sharpness) of the rectified image. Default off: it depends on the
    /// cell's texture. ELPV's 2,624 cells at S = 256 have 0.012 at least, 0.018 (5 %), 0.027 (median), 0.065 (99 %).
    pub min_sharpness: Option<f32>,
}

impl Default for Gates {
    fn default() -> Self {
        Self {
            min_area: Some(0.2),
            min_aspect: Some(0.8),
            max_aspect: Some(1.25),
            min_fill: Some(0.5),
            reject_cropped: true,
            second_cell: Some(0.25),
            dim_below: Some(0.03),
            saturated_above: Some(0.25),
            max_edge_width: Some(0.012),
            min_sharpness: None,
        }
    }
}

impl Gates {
    /// Every gate off: whatever has four sides is let through.
    #[must_use]
    pub fn off() -> Self {
        Self {
            min_area: None,
            min_aspect: None,
            max_aspect: None,
            min_fill: None,
            reject_cropped: false,
            second_cell: None,
            dim_below: None,
            saturated_above: None,
            max_edge_width: None,
            min_sharpness: None,
        }
    }

    /// Checks that every limit is a finite number in its range.
    ///
    /// # Errors
    /// The first limit that is not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let within = |name, value: Option<f32>, low: f32, high: f32| match value {
            Some(v) if !(v >= low && v <= high) => Err(ConfigError::Range { name, value: v, low, high }),
            _ => Ok(()),
        };
        within("gates.min_area", self.min_area, 0.0, 1.0)?;
        within("gates.min_aspect", self.min_aspect, 0.01, 100.0)?;
        within("gates.max_aspect", self.max_aspect, 0.01, 100.0)?;
        within("gates.min_fill", self.min_fill, 0.0, 1.0)?;
        within("gates.second_cell", self.second_cell, 0.0, 1.0)?;
        within("gates.dim_below", self.dim_below, 0.0, 1.0)?;
        within("gates.saturated_above", self.saturated_above, 0.0, 1.0)?;
        within("gates.max_edge_width", self.max_edge_width, 0.0, 1.0)?;
        within("gates.min_sharpness", self.min_sharpness, 0.0, 1000.0)?;
        match (self.min_aspect, self.max_aspect) {
            (Some(low), Some(high)) if low > high => Err(ConfigError::Aspect { low, high }),
            _ => Ok(()),
        }
    }
}

/// Why a frame cannot be judged. The cell in it gets the verdict `INVALID` with this reason's [`name`](Self::name).
#[derive(Clone, Copy, Debug, PartialEq, Error, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Refusal {
    /// Nothing bright and large enough to be a cell.
    #[error("no cell: the largest bright region covers {area:.3} of the frame, at least {limit:.3} is needed")]
    NoCell {
        /// The largest region's share of the frame.
        area: f32,
        /// The smallest share that counts as a cell.
        limit: f32,
    },
    /// All pixels have one value, or nearly so.
    #[error("uniform frame: all pixels lie within {spread:.5} of full scale; is the camera's lens covered?")]
    Uniform {
        /// Largest minus smallest pixel, of full scale.
        spread: f32,
    },
    /// The cell reaches the frame's edge.
    #[error("cropped: the cell's outline runs along the frame's edge for {length} pixels; centre the cell")]
    Cropped {
        /// Pixels of the outline on the frame's edge.
        length: u32,
    },
    /// More than one cell.
    #[error(
        "several cells: a second bright region has {share:.2} of the first one's area, below {limit:.2} is allowed"
    )]
    SeveralCells {
        /// The second region's area as a share of the first one's.
        share: f32,
        /// The share from which it counts as a cell.
        limit: f32,
    },
    /// The outline has no four sides.
    #[error("not a quadrilateral: the outline has no four straight sides ({vertices} vertices)")]
    NotQuadrilateral {
        /// Vertices of the simplified outline.
        vertices: u32,
    },
    /// Four sides, but not of a cell.
    #[error("odd shape: width/height is {aspect:.3} and {fill:.3} of the area is bright")]
    OddShape {
        /// Width over height.
        aspect: f32,
        /// Share of the quadrilateral that is brighter than the threshold; 1 without a border step.
        fill: f32,
    },
    /// Too dark to be judged.
    #[error("dim: mean brightness {mean:.4} of full scale, at least {limit:.4} is needed; check current and exposure")]
    Dim {
        /// Mean of the cell, of full scale.
        mean: f32,
        /// The limit.
        limit: f32,
    },
    /// Overexposed.
    #[error("saturated: {share:.3} of the cell is at full scale, up to {limit:.3} is allowed; shorten the exposure")]
    Saturated {
        /// Share of the cell's pixels at full scale.
        share: f32,
        /// The limit.
        limit: f32,
    },
    /// Out of focus or moved: the measure lies on the wrong side of its limit.
    #[error("blurred: {measure} is {value:.4}, the limit is {limit:.4}; check focus and motion", measure = self.measure())]
    Blurred {
        /// Whether the edge width was measured (else the texture's sharpness).
        edge: bool,
        /// What was measured.
        value: f32,
        /// The limit.
        limit: f32,
    },
    /// Larger than the buffers made at start.
    #[error(
        "frame too large: {width}×{height}, buffers were made for {max_width}×{max_height}; raise the configured size"
    )]
    FrameTooLarge {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
        /// Largest width.
        max_width: u32,
        /// Largest height.
        max_height: u32,
    },
    /// Too small to show a cell.
    #[error("frame too small: {width}×{height}, at least {min}×{min} is needed")]
    FrameTooSmall {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
        /// Smallest side.
        min: u32,
    },
}

impl Refusal {
    /// The reason's stable name, as it stands in verdicts and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoCell { .. } => "no-cell",
            Self::Uniform { .. } => "uniform",
            Self::Cropped { .. } => "cropped",
            Self::SeveralCells { .. } => "several-cells",
            Self::NotQuadrilateral { .. } => "not-quadrilateral",
            Self::OddShape { .. } => "odd-shape",
            Self::Dim { .. } => "dim",
            Self::Saturated { .. } => "saturated",
            Self::Blurred { .. } => "blurred",
            Self::FrameTooLarge { .. } => "frame-too-large",
            Self::FrameTooSmall { .. } => "frame-too-small",
        }
    }

    fn measure(&self) -> &'static str {
        match self {
            Self::Blurred { edge: true, .. } => "the width of the cell's edge as a share of its side",
            _ => "the sharpness of the cell",
        }
    }
}
