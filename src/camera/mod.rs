//! Where frames come from, and which cell each of them shows.
//!
//! A [`Camera`] fills [`Shot`]s that the caller owns: a frame with the moment of its exposure and the camera's own count.
//! [`trigger`] says that a cell lies there and what it is called; [`pairing`] brings both together, or refuses to.

pub mod config;
mod pace;
pub mod pairing;
pub(crate) mod pattern;
pub mod pixels;
pub mod pulse;
pub mod replay;
pub mod synthetic;
pub mod trigger;
#[cfg(target_os = "linux")]
pub mod v4l;

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use crate::clock::Moment;
use crate::frame::Frame;

/// One exposure. Its buffer is made once and filled again and again.
#[derive(Clone, Debug)]
pub struct Shot {
    /// What the sensor saw, uncorrected.
    pub frame: Frame,
    /// The camera's count of exposures; a gap is a frame that was exposed and never came here. Wraps.
    pub sequence: u32,
    /// When it was exposed (the start of exposure where the driver says so, else the end of its transfer).
    pub taken: Moment,
}

impl Shot {
    /// A black one of this size.
    ///
    /// # Panics
    /// If `white` is 0.
    #[must_use]
    pub fn new(width: usize, height: usize, white: u16) -> Self {
        Self::over(Frame::new(width, height, white))
    }

    /// One whose pixels lie where this frame's do.
    #[must_use]
    pub fn over(frame: Frame) -> Self {
        Self { frame, sequence: 0, taken: Moment::default() }
    }

    /// Gives the frame this format, if it has another.
    pub(crate) fn fit(&mut self, format: Format) {
        if Format::of(&self.frame) != format {
            self.frame.reset(format.width, format.height, format.white);
        }
    }
}

/// What a camera delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The pixel value that is full scale.
    pub white: u16,
}

impl Format {
    /// The format that a frame has.
    #[must_use]
    pub fn of(frame: &Frame) -> Self {
        Self { width: frame.width(), height: frame.height(), white: frame.white() }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{} with full scale {}", self.width, self.height, self.white)
    }
}

/// Where frames come from.
pub trait Camera: Send {
    /// What every shot looks like, from the first to the last.
    fn format(&self) -> Format;

    /// Waits for the next exposure, at most for `patience`, and writes it into `shot`. Allocates nothing once the first
    /// shot has come. After [`CameraError::Lost`] the next call tries to open the device again.
    ///
    /// # Errors
    /// Why there is none. Only [`CameraError::End`] is final.
    fn next(&mut self, shot: &mut Shot, patience: Duration) -> Result<(), CameraError>;

    /// Has those cameras that exchange a shot's frame for one of their own make those by `make`. At start.
    fn furnish(&mut self, make: &dyn Fn() -> Frame) {
        let _ = make;
    }

    /// One line that tells people which camera this is.
    fn describe(&self) -> String;

    /// Whether frames are made when they are asked for: a caller who does not ask loses none. A real camera's are exposed
    /// when the line says.
    fn on_demand(&self) -> bool {
        false
    }

    /// How often the device was opened again. When it rises, the count in [`Shot::sequence`] has started anew and
    /// nothing is known of what was exposed meanwhile.
    fn restarts(&self) -> u64 {
        0
    }
}

/// Why a camera gave no shot.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CameraError {
    /// Nothing was exposed in the time that the caller would wait: nothing is wrong, the line may stand still.
    #[error("no frame came within {} ms", .0.as_millis())]
    Nothing(Duration),
    /// A frame came, and its pixels are not to be trusted.
    #[error("frame {sequence} of the camera is damaged: {why}")]
    Damaged {
        /// The camera's count.
        sequence: u32,
        /// When it was exposed.
        taken: Moment,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The device is not there, or went away. The camera tries to open it again at each call.
    #[error("{0}")]
    Lost(String),
    /// The device is there and will not do what is configured: one of them must be changed. The camera tries again at
    /// each call.
    #[error("{0}")]
    Refused(String),
    /// There will be no more frames: a replay has come to its end.
    #[error("the replay has come to its end")]
    End,
}
