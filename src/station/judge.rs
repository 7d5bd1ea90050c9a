//! Who looks at the frames.

use std::sync::Arc;
use std::time::Duration;

use super::exchange::Exchange;
use super::status::{THUMBNAIL, Thumbnail};
use crate::backbone::Identity;
use crate::camera::Format;
use crate::clock::Date;
use crate::frame::Frame;
use crate::pipeline::Inspector;
use crate::preprocess::sensor::Correction;
use crate::verdict::{Invalid, Outcome, Verdict};

/// Which model judges, as far as a verdict says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Its name.
    pub model: Identity,
    /// Side of its heatmap.
    pub grid: usize,
}

/// Looks at a frame and says what it shows. One thread of the station has it to itself.
pub trait Judge: Send {
    /// Judges the cell in `frame`, which it may change, and draws the heatmap. Allocates nothing.
    fn judge(&mut self, frame: &mut Frame, heat: &mut Thumbnail) -> Verdict;

    /// The model that judges; none: it is always the one that the scribe was told.
    fn tag(&self) -> Option<Tag> {
        None
    }

    /// A black frame that is to be filled by the camera and judged, where this judge reads it best.
    fn frame(&self, format: Format) -> Frame {
        Frame::new(format.width, format.height, format.white)
    }

    /// Called between two frames and while there are none: the time to take over another model. Allocates nothing, and
    /// says whether there is another one now.
    fn between(&mut self) -> bool {
        false
    }
}

/// Frames that a frozen camera may give in turn.
const REMEMBERED: usize = 8;

/// The real one: sensor correction and the inspection by a model.
pub struct Inspection {
    inspector: Box<Inspector>,
    /// Where another one may come from.
    exchange: Option<Arc<Exchange>>,
    sensor: Option<Arc<Correction>>,
    seen: [u64; REMEMBERED],
    next: usize,
    /// Refuse frames whose pixels were there before.
    duplicates: bool,
    /// The model may be so old.
    max_age: Option<Duration>,
}

impl Inspection {
    /// `sensor` corrects the camera's frames; `duplicates` refuses frames with the very pixels of one of the last eight,
    /// which no sensor gives twice; a model made longer than `max_age` ago judges nothing.
    #[must_use]
    pub fn new(
        inspector: Inspector,
        sensor: Option<Arc<Correction>>,
        duplicates: bool,
        max_age: Option<Duration>,
    ) -> Self {
        let inspector = Box::new(inspector);
        Self { inspector, exchange: None, sensor, seen: [0; REMEMBERED], next: 0, duplicates, max_age }
    }

    /// Takes over other models from there, and lends it frames.
    #[must_use]
    pub fn with_exchange(self, exchange: Arc<Exchange>) -> Self {
        exchange.furnish(|format| self.inspector.frame(format));
        Self { exchange: Some(exchange), ..self }
    }

    /// What corrects the camera's frames.
    #[must_use]
    pub fn sensor(&self) -> Option<Arc<Correction>> {
        self.sensor.clone()
    }

    fn seen_before(&mut self, frame: &Frame) -> bool {
        let mark = fingerprint(frame.pixels());
        let known = self.seen.contains(&mark);
        self.seen[self.next] = mark;
        self.next = (self.next + 1) % REMEMBERED;
        known
    }
}

impl Judge for Inspection {
    fn judge(&mut self, frame: &mut Frame, heat: &mut Thumbnail) -> Verdict {
        if self.duplicates && self.seen_before(frame) {
            return Verdict::invalid(Invalid::Duplicate);
        }
        if let Some(max_age) = self.max_age {
            let made = self.inspector.model().header().provenance.created;
            // A clock that was set back makes no model young: one from the future is as doubtful as an old one.
            let age = (Date::now().as_millis() / 1000).checked_sub(made);
            if age.is_none_or(|age| age > max_age.as_secs()) {
                return Verdict::invalid(Invalid::StaleModel);
            }
        }
        let verdict = match &self.sensor {
            None => self.inspector.inspect(frame),
            Some(sensor) => self.inspector.inspect_raw(frame, sensor).unwrap_or_else(|error| {
                log::error!("{error}");
                Verdict::invalid(Invalid::Internal)
            }),
        };
        let header = self.inspector.model().header();
        if let (Some(_), Some(calibration)) = (verdict.distances, &header.calibration) {
            thumbnail(self.inspector.heatmap(), header.settings.grid as usize, calibration.region, heat);
        }
        // Where something has failed, nobody knows how far the frame was corrected.
        if let (Some(exchange), false) = (&self.exchange, verdict.outcome == Outcome::Invalid(Invalid::Internal)) {
            exchange.lend(frame, &verdict);
        }
        verdict
    }

    fn frame(&self, format: Format) -> Frame {
        self.inspector.frame(format)
    }

    fn tag(&self) -> Option<Tag> {
        let model = self.inspector.model();
        Some(Tag { model: model.id(), grid: model.header().settings.grid as usize })
    }

    fn between(&mut self) -> bool {
        self.exchange.as_ref().is_some_and(|exchange| exchange.take(&mut self.inspector))
    }
}

/// A number that two frames of a real sensor do not have in common: its noise differs.
fn fingerprint(pixels: &[u16]) -> u64 {
    const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
    let (groups, rest) = pixels.as_chunks::<8>();
    let mut lanes = [PRIME, PRIME ^ 1];
    for group in groups {
        let word = |at: usize| (0..4).fold(0, |word, i| word << 16 | u64::from(group[at + i]));
        for (lane, at) in lanes.iter_mut().zip([0, 4]) {
            *lane = (*lane ^ word(at)).wrapping_mul(PRIME).rotate_left(29);
        }
    }
    let end = rest.iter().fold(pixels.len() as u64, |end, &pixel| (end ^ u64::from(pixel)).wrapping_mul(PRIME));
    (lanes[0] ^ lanes[1].rotate_left(32) ^ end).wrapping_mul(PRIME) | 1
}

/// The heatmap in 64×64 bytes: 0 at distance 0, 128 at `level`, 255 at twice that. The largest of the positions below
/// each: a small defect stays to be seen.
fn thumbnail(heatmap: &[f32], grid: usize, level: f32, heat: &mut Thumbnail) {
    for (y, row) in heat.iter_mut().enumerate() {
        let rows = y * grid / THUMBNAIL..((y + 1) * grid).div_ceil(THUMBNAIL);
        for (x, byte) in row.iter_mut().enumerate() {
            let columns = x * grid / THUMBNAIL..((x + 1) * grid).div_ceil(THUMBNAIL);
            let cells = rows.clone().flat_map(|row| heatmap[row * grid..][columns.clone()].iter());
            let most = cells.fold(0.0_f32, |most, &value| most.max(value));
            // The cast saturates, and makes nothing of what is no number.
            *byte = (most / level * 128.0) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_changes_with_any_pixel() {
        let frame: Vec<u16> = (0..1003_u32).map(|i| (i * 37 % 256) as u16).collect();
        let whole = fingerprint(&frame);
        for index in [0, 1, 4, 500, 999, 1000, 1002] {
            let mut other = frame.clone();
            other[index] ^= 1;
            assert_ne!(fingerprint(&other), whole, "{index}");
        }
        let mut swapped = frame.clone();
        swapped.swap(8, 16);
        assert_ne!(fingerprint(&swapped), whole);
        assert_ne!(fingerprint(&frame[..1002]), whole);
    }

    #[test]
    fn a_thumbnail_keeps_the_peak_of_a_map_of_any_size() {
        for grid in [16, 64, 80, 128] {
            let mut map = vec![0.5; grid * grid];
            map[(grid / 2) * grid + grid / 4] = 30.0;
            map[0] = f32::NAN;
            let mut heat = [[9; THUMBNAIL]; THUMBNAIL];
            thumbnail(&map, grid, 2.0, &mut heat);
            assert_eq!(heat[32][16], 255, "{grid}");
            assert_eq!(heat[63][63], 32, "{grid}");
        }
    }
}
