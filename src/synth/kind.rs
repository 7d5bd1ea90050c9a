//! The kinds of defect and what is told of each.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::SynthError;
use crate::verdict::Class;

/// What kind of defect (paper section 2.1.1 and figure 2).
///
/// The discriminant is the value of its pixels in [`SynthCell::mask`](super::SynthCell::mask).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum DefectKind {
    /// A large dark area with soft, ragged edges.
    DarkSpot = 1,
    /// A swarm of soft grey dots.
    GreyDots = 2,
    /// Several small black dots.
    BlackDots = 3,
    /// One crack, with a darker side where it cuts the fingers off.
    CrackStraight = 4,
    /// Two cracks that cross.
    CrackCross = 5,
    /// A crack with branches.
    CrackBranching = 6,
    /// One or a few thin, faint, slightly bent parallel lines.
    Scratch = 7,
    /// Fingers broken between two busbars: dark dashes along a finger.
    FingerInterruption = 8,
    /// A dark band along one side of the cell.
    DarkEdge = 9,
    /// The whole cell is darker than its fellows.
    Dimmed = 10,
}

impl DefectKind {
    /// Every kind, in the order of their codes.
    pub const ALL: [Self; 10] = [
        Self::DarkSpot,
        Self::GreyDots,
        Self::BlackDots,
        Self::CrackStraight,
        Self::CrackCross,
        Self::CrackBranching,
        Self::Scratch,
        Self::FingerInterruption,
        Self::DarkEdge,
        Self::Dimmed,
    ];

    /// The value of its pixels in a mask, 1 to 10.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The kind with that code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }

    /// Its name in label files and on the command line, such as `crack-cross`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::DarkSpot => "dark-spot",
            Self::GreyDots => "grey-dots",
            Self::BlackDots => "black-dots",
            Self::CrackStraight => "crack-straight",
            Self::CrackCross => "crack-cross",
            Self::CrackBranching => "crack-branching",
            Self::Scratch => "scratch",
            Self::FingerInterruption => "finger-interruption",
            Self::DarkEdge => "dark-edge",
            Self::Dimmed => "dimmed",
        }
    }

    /// The classes that a cell with this as its worst defect can have: any crack, scratch or dark spot makes a C, dots
    /// alone a B, and the others either by how pronounced they are.
    #[must_use]
    pub fn classes(self) -> &'static [Class] {
        match self {
            Self::DarkSpot | Self::CrackStraight | Self::CrackCross | Self::CrackBranching | Self::Scratch => {
                &[Class::C]
            }
            Self::GreyDots | Self::BlackDots => &[Class::B],
            Self::FingerInterruption | Self::DarkEdge | Self::Dimmed => &[Class::B, Class::C],
        }
    }
}

impl std::fmt::Display for DefectKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DefectKind {
    type Err = SynthError;

    fn from_str(text: &str) -> Result<Self, SynthError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| SynthError::UnknownDefect { name: text.to_owned() })
    }
}

/// A rectangle of frame pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PixelBox {
    /// First column.
    pub x: usize,
    /// First row.
    pub y: usize,
    /// Columns, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
}

/// One defect of a synthetic cell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Defect {
    /// What it is.
    pub kind: DefectKind,
    /// How bad: 0 to 0.5 for what class B tolerates, 0.5 to 1 for what makes a C.
    pub severity: f32,
    /// The smallest box around its pixels in the mask.
    pub bbox: PixelBox,
}
