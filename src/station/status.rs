//! What the station knows about itself, as display, metrics and the broker are told: one value of fixed size.

use crate::camera::trigger::CellId;
use crate::clock::{Date, Moment};
use crate::verdict::Class;

/// Side of the last cell's picture in a [`Status`].
pub const THUMBNAIL: usize = 64;

/// The last cell's heatmap, row by row: 0 at distance 0, 128 at the level of a region, 255 at twice that or more.
pub type Thumbnail = [[u8; THUMBNAIL]; THUMBNAIL];

/// The outcomes of so many cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed as class A.
    pub a: u64,
    /// Passed as class B.
    pub b: u64,
    /// Rejected: class C.
    pub c: u64,
    /// Could not be judged, and taken out.
    pub invalid: u64,
}

impl Counts {
    /// All cells.
    #[must_use]
    pub fn cells(&self) -> u64 {
        self.a + self.b + self.c + self.invalid
    }

    /// Share of cells that passed, 0 to 1; none before the first.
    #[must_use]
    pub fn yield_share(&self) -> Option<f64> {
        (self.cells() > 0).then(|| (self.a + self.b) as f64 / self.cells() as f64)
    }
}

/// How a part of the station does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Not in use: nothing is configured.
    #[default]
    Off,
    /// Being opened for the first time.
    Starting,
    /// Works.
    Up,
    /// Does not.
    Down,
}

/// What was said of a cell, without the details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Passed or rejected, by class.
    Class(Class),
    /// INVALID, by the reason's name.
    Invalid(&'static str),
}

/// The last cell.
#[derive(Clone, Copy, Debug)]
pub struct Last {
    /// Its name, if one was known.
    pub cell: Option<CellId>,
    /// Its number in the order of verdicts.
    pub seq: u64,
    /// What was said.
    pub said: Said,
    /// Calibrated score, 0 to 1.
    pub score: Option<f32>,
    /// When the cell was exposed, for people.
    pub date: Date,
    /// When the verdict was given, on the clock that never jumps: by it a verdict ages.
    pub at: Moment,
    /// From exposure to verdict, in microseconds.
    pub latency_us: u32,
    /// The heatmap; all zero where there is none.
    pub heat: Thumbnail,
}

/// What went wrong so often since the start, each a counter that never falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Triggers without a frame.
    pub missed_frames: u64,
    /// Frames without a trigger.
    pub extra_frames: u64,
    /// Pairs that were not certain.
    pub ambiguous: u64,
    /// Frames that the camera's count shows were exposed and never came.
    pub lost_frames: u64,
    /// Frames that came damaged.
    pub damaged_frames: u64,
    /// Verdicts that were not ready in time.
    pub deadlines: u64,
    /// Cells that found every buffer in use.
    pub overruns: u64,
    /// Times that the camera had to be opened again.
    pub camera_restarts: u64,
    /// Verdicts that could not be made durable, and were not told.
    pub unwritten: u64,
    /// Messages on our topics that were no trigger, ack or command.
    pub bad_messages: u64,
}

impl Faults {
    /// Each counter with the name that machines know it by.
    pub fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("missed-frame", self.missed_frames),
            ("extra-frame", self.extra_frames),
            ("ambiguous", self.ambiguous),
            ("lost-frame", self.lost_frames),
            ("damaged-frame", self.damaged_frames),
            ("deadline", self.deadlines),
            ("overrun", self.overruns),
            ("camera-restart", self.camera_restarts),
            ("unwritten", self.unwritten),
            ("bad-message", self.bad_messages),
        ]
        .into_iter()
    }
}

/// Everything at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Status {
    /// When the station started.
    pub started: Moment,
    /// Number of this start, see [`outbox`](crate::outbox).
    pub boot: u32,
    /// Since the start.
    pub total: Counts,
    /// Since the shift began.
    pub shift: Counts,
    /// When the shift began.
    pub shift_began: Date,
    /// What went wrong.
    pub faults: Faults,
    /// The last cell.
    pub last: Option<Last>,
    /// The camera.
    pub camera: Health,
    /// The connection to the broker.
    pub broker: Health,
    /// The store of verdicts.
    pub outbox: Health,
    /// Verdicts that wait to be delivered.
    pub pending: u64,
    /// Verdicts that retention dropped before they were delivered.
    pub dropped: u64,
    /// First 8 hexadecimal digits of the model in force.
    pub model: [u8; 8],
    /// The hottest part of the machine, in °C, where it says.
    pub temperature: Option<f32>,
    /// The line's good cells have moved away from the fit.
    pub drift: bool,
}

impl Status {
    /// One more cell.
    pub(super) fn count(&mut self, said: Said) {
        for counts in [&mut self.total, &mut self.shift] {
            match said {
                Said::Class(Class::A) => counts.a += 1,
                Said::Class(Class::B) => counts.b += 1,
                Said::Class(Class::C) => counts.c += 1,
                Said::Invalid(_) => counts.invalid += 1,
            }
        }
    }
}
