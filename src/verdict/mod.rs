//! What cellgate says about a cell: a pass, a reject, or that it cannot say.

mod calibration;
mod grading;
pub mod payload;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::camera::pairing::Doubt;
use crate::heatmap::{Regions, Scores};
use crate::preprocess::{Placement, Refusal};
pub use calibration::{CLASS_C, Calibration, CalibrationError, DECISION, MIN_CELLS, quantile};
pub use grading::{Cost, Grading, GradingError, OperatingPoint};

/// The production class of a cell (paper section 2.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Fully operational.
    A,
    /// Subprime: slight deterioration, still usable in a panel.
    B,
    /// Defective: to be rejected.
    C,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
        })
    }
}

/// Why a cell cannot be judged. The line treats it as a reject.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Invalid {
    /// The frame did not pass preprocessing's gates.
    Frame(Refusal),
    /// The image could not be read; the text says why.
    Unreadable(String),
    /// A number on the way was not finite.
    NotFinite,
    /// The backbone refused the image; the text says why.
    Backbone(String),
    /// Nothing looked at the cell: the work ended before its turn.
    NotMeasured,
    /// The model carries no calibration, so that no score means anything yet.
    Uncalibrated,
    /// It is not certain which cell the frame shows, or there is no frame for the cell.
    Pairing(Doubt),
    /// No verdict was ready in time.
    Deadline {
        /// The time that a cell has, in ms.
        takt_ms: u32,
    },
    /// The camera's count shows that the cell's frame was exposed and never came.
    LostFrame,
    /// The camera says that the frame is damaged, and how.
    Damaged(&'static str),
    /// The frame found every buffer in use.
    Overrun,
    /// The camera gave the same pixels again.
    Duplicate,
    /// The model is older than it may be.
    StaleModel,
    /// The program failed on this cell. The text is in the log.
    Internal,
}

impl Invalid {
    /// Every name that [`name`](Self::name) can give, in the order in which a frame could meet them.
    pub const NAMES: [&str; 25] = [
        "pairing",
        "lost-frame",
        "damaged",
        "overrun",
        "duplicate",
        "stale-model",
        "unreadable",
        "no-cell",
        "uniform",
        "cropped",
        "several-cells",
        "not-quadrilateral",
        "odd-shape",
        "dim",
        "saturated",
        "blurred",
        "frame-too-large",
        "frame-too-small",
        "not-finite",
        "backbone",
        "not-measured",
        "uncalibrated",
        "deadline",
        "internal",
        "unwritten",
    ];

    /// A short stable name for machines.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Frame(refusal) => refusal.name(),
            Self::Unreadable(_) => "unreadable",
            Self::NotFinite => "not-finite",
            Self::Backbone(_) => "backbone",
            Self::NotMeasured => "not-measured",
            Self::Uncalibrated => "uncalibrated",
            Self::Pairing(_) => "pairing",
            Self::Deadline { .. } => "deadline",
            Self::LostFrame => "lost-frame",
            Self::Damaged(_) => "damaged",
            Self::Overrun => "overrun",
            Self::Duplicate => "duplicate",
            Self::StaleModel => "stale-model",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(refusal) => write!(f, "{refusal}"),
            Self::Unreadable(why) | Self::Backbone(why) => f.write_str(why),
            Self::NotFinite => f.write_str("a number on the way to the score was not finite"),
            Self::NotMeasured => f.write_str("the cell was not measured"),
            Self::Uncalibrated => {
                f.write_str("the model has no calibration: run `cellgate calibrate` on good cells first")
            }
            Self::Pairing(doubt) => write!(f, "{doubt}"),
            Self::Deadline { takt_ms } => write!(f, "no verdict was ready within {takt_ms} ms of the exposure"),
            Self::LostFrame => f.write_str("the cell's frame was exposed and never came from the camera"),
            Self::Damaged(why) => write!(f, "the camera's frame is damaged: {why}"),
            Self::Overrun => f.write_str("the frame found every buffer in use: cells come faster than they are judged"),
            Self::Duplicate => f.write_str("the camera gave the same pixels as before: it has frozen"),
            Self::StaleModel => f.write_str("the model is older than `model.max-age-days` allows: install a newer one"),
            Self::Internal => f.write_str("the program failed on this cell; the log says where"),
        }
    }
}

/// What the line is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The cell goes on, as class A or B.
    Pass(Class),
    /// The cell is taken out: class C.
    Reject,
    /// The cell cannot be judged, and is taken out.
    Invalid(Invalid),
}

impl Outcome {
    /// `PASS`, `REJECT` or `INVALID`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pass(_) => "PASS",
            Self::Reject => "REJECT",
            Self::Invalid(_) => "INVALID",
        }
    }

    /// The class, where there is one.
    #[must_use]
    pub fn class(&self) -> Option<Class> {
        match self {
            Self::Pass(class) => Some(*class),
            Self::Reject => Some(Class::C),
            Self::Invalid(_) => None,
        }
    }
}

impl From<Class> for Outcome {
    fn from(class: Class) -> Self {
        match class {
            Class::C => Self::Reject,
            pass => Self::Pass(pass),
        }
    }
}

/// Where the time of one cell went, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Border, rectification and gates.
    pub preprocess_us: u32,
    /// The stages of the network.
    pub backbone_us: u32,
    /// Projection of the stages' maps to k channels.
    pub projection_us: u32,
    /// Interpolation and Mahalanobis distance.
    pub distance_us: u32,
    /// Smoothing, scores and regions.
    pub heatmap_us: u32,
    /// The classifier, with the runs of the backbone for further views; on a device, which runs these networks in one go with the
    /// backbone, the weighing alone.
    pub classifier_us: u32,
}

impl Latency {
    /// All of it.
    #[must_use]
    pub fn total_us(&self) -> u32 {
        self.preprocess_us
            + self.backbone_us
            + self.projection_us
            + self.distance_us
            + self.heatmap_us
            + self.classifier_us
    }
}

/// The classifier's calibrated probabilities, each 0 to 1; none where it does not tell these classes apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Probabilities {
    /// That the cell is of class B or C.
    pub not_a: Option<f32>,
    /// That it is of class C.
    pub c: Option<f32>,
}

/// The verdict on one cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What the line is told.
    pub outcome: Outcome,
    /// Calibrated score, 0 to 1; 0.5 is the border of class A. None if the cell could not be judged.
    pub score: Option<f32>,
    /// What the classifier says, if the model has one that could judge the cell.
    pub probabilities: Option<Probabilities>,
    /// The heatmap's numbers in Mahalanobis distance.
    pub distances: Option<Scores>,
    /// Where the defects are, on the heatmap's grid.
    pub regions: Regions,
    /// Where the cell lies in the frame. None if the cell could not be judged.
    pub placement: Option<Placement>,
    /// Where the time went.
    pub latency: Latency,
}

impl Verdict {
    /// The verdict on a cell that cannot be judged.
    #[must_use]
    pub fn invalid(reason: Invalid) -> Self {
        Self {
            outcome: Outcome::Invalid(reason),
            score: None,
            probabilities: None,
            distances: None,
            regions: Regions::default(),
            placement: None,
            latency: Latency::default(),
        }
    }
}
