//! A camera that runs freely while the tester flashes: which frame shows the cell?
//!
//! ```text
//!  light     ________/‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾\_________
//!  frames    |dark |dark |part |FULL |FULL |part |dark |
//! ```
//!
//! The first and the last lit frame of a pulse are exposed in part, and how much depends on the phase between camera and
//! tester, which drifts. A frame that has a lit one before and a lit one behind it lies inside the pulse: the first such
//! frame is taken, as soon as the one behind it has come. A pulse that lasts for three frames always has one; one without
//! is reported as damaged, and partial frames are never handed on.
//!
//! The camera needs a global shutter. With a rolling one, set `settle` to 2: rows of the second lit frame may have begun
//! before the light. A cell that gives no light gives no pulse, and so no frame: have the line count.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Camera, CameraError, Format, Shot};
use crate::clock::Moment;
use crate::frame::Frame;

/// Of so many rows and columns one is looked at for a frame's level.
const SPARSE: usize = 4;
/// The dark level follows by this share of each dark frame's difference.
const FOLLOW: f32 = 1.0 / 16.0;

/// How pulses are found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PulseConfig {
    /// A frame is lit from so much mean brightness above the dark level on, as a share of full scale, 0.001 to 0.9.
    /// Default 0.05.
    pub on: f32,
    /// A lit pulse ends below so much mean brightness above the dark level, 0.001 up to `on`. Default 0.03.
    pub off: f32,
    /// Lit frames to leave out before the one that is taken, 0 to 100. 0 takes the first lit frame at once, which is
    /// right only if camera and light are synchronised. Default 1.
    pub settle: u32,
    /// A pulse of more frames is taken for a change of the surroundings: its level becomes the dark one. From `settle` + 2
    /// to 100000. Default 100.
    pub longest: u32,
    /// Whether the dark frame before the pulse is subtracted. Needs three dark frames between pulses; not for use together
    /// with a calibration's dark frame. Default false.
    pub subtract_dark: bool,
}

impl Default for PulseConfig {
    fn default() -> Self {
        Self { on: 0.05, off: 0.03, settle: 1, longest: 100, subtract_dark: false }
    }
}

impl PulseConfig {
    /// Checks every field's range.
    ///
    /// # Errors
    /// The first that is out of its range, with what is allowed.
    pub fn validate(&self) -> Result<(), super::config::ConfigError> {
        use super::config::check;
        check("pulse.on", self.on, (0.001..=0.9).contains(&self.on), "0.001 to 0.9")?;
        check("pulse.off", self.off, self.off >= 0.001 && self.off <= self.on, "0.001 up to pulse.on")?;
        check("pulse.settle", self.settle, self.settle <= 100, "0 to 100")?;
        let longest = self.settle + 2..=100_000;
        check("pulse.longest", self.longest, longest.contains(&self.longest), "pulse.settle + 2 to 100000")
    }
}

/// What a frame meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing is complete.
    Nothing,
    /// The shot now holds the lit frame of a pulse.
    Pulse,
    /// There was a pulse, of which no frame can be used.
    Unusable(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Dark, with so many dark frames kept.
    Dark { kept: u32 },
    /// In a pulse, with so many frames seen of it; `done` once something was said of it.
    Lit { frames: u32, done: bool },
}

/// Picks the lit frames out of a stream. Owns the frames that it keeps; allocates nothing after it was made.
#[derive(Clone, Debug)]
pub struct Picker {
    config: PulseConfig,
    state: State,
    /// Mean level of dark frames, of full scale.
    dark_level: Option<f32>,
    /// The last dark frame and the one before it, which even a partial exposure under `on` has not touched.
    dark: [Frame; 2],
    candidate: Shot,
    last: Option<u32>,
    hidden: u32,
}

impl Picker {
    /// For frames of this format.
    #[must_use]
    pub fn new(config: PulseConfig, format: Format) -> Self {
        let candidate = Shot::new(format.width, format.height, format.white);
        let dark = [candidate.frame.clone(), candidate.frame.clone()];
        Self { config, state: State::Dark { kept: 0 }, dark_level: None, dark, candidate, last: None, hidden: 0 }
    }

    /// Keeps frames that `make` has made.
    pub fn furnish(&mut self, make: &dyn Fn() -> Frame) {
        self.dark = [make(), make()];
        self.candidate.frame = make();
        self.reset();
    }

    /// Forgets everything: the stream was interrupted.
    pub fn reset(&mut self) {
        (self.state, self.dark_level, self.last) = (State::Dark { kept: 0 }, None, None);
    }

    /// How often so many frames were lost that a whole pulse may have been among them; counts from 0 after each call.
    pub fn take_hidden(&mut self) -> u32 {
        std::mem::take(&mut self.hidden)
    }

    /// Looks at the next frame of the stream, whose frame may be exchanged for another one of the same format.
    pub fn offer(&mut self, shot: &mut Shot) -> Seen {
        let missing = self.last.map_or(0, |last| shot.sequence.wrapping_sub(last).wrapping_sub(1));
        self.last = Some(shot.sequence);
        let level = level(&shot.frame);
        let PulseConfig { on, off, settle, longest, .. } = self.config;
        let dark_level = *self.dark_level.get_or_insert(level);
        let above = level - dark_level;
        if missing > settle + 1 {
            self.hidden += 1;
        }
        if let (State::Lit { done: false, .. }, 1..) = (self.state, missing) {
            self.state = if above >= off { State::Lit { frames: 1, done: true } } else { State::Dark { kept: 0 } };
            return Seen::Unusable("frames were lost inside its pulse");
        }
        match self.state {
            State::Dark { kept } if above < on => {
                // Darker than the dark: what was kept was lit.
                let kept = if above < -on { 0 } else { kept };
                self.dark_level = Some(if above < 0.0 { level } else { dark_level + FOLLOW * above });
                self.dark.swap(0, 1);
                std::mem::swap(&mut self.dark[0], &mut shot.frame);
                self.state = State::Dark { kept: (kept + 1).min(2) };
                Seen::Nothing
            }
            State::Dark { kept } => {
                self.state = State::Lit { frames: 1, done: false };
                if self.config.subtract_dark && kept < 2 {
                    self.state = State::Lit { frames: 1, done: true };
                    return Seen::Unusable("too few dark frames came before its pulse");
                }
                if settle == 0 { self.pick(shot) } else { Seen::Nothing }
            }
            State::Lit { done: false, .. } if above < off => {
                self.state = State::Dark { kept: 0 };
                Seen::Unusable("its pulse was too short to hold a whole exposure")
            }
            // The frame in which the light goes out is partial too: it is not kept as a dark one.
            State::Lit { .. } if above < off => {
                self.state = State::Dark { kept: 0 };
                Seen::Nothing
            }
            State::Lit { frames, done: false } => {
                self.state = State::Lit { frames: frames + 1, done: false };
                if frames == settle {
                    self.keep(shot);
                    Seen::Nothing
                } else if frames > settle {
                    std::mem::swap(&mut self.candidate, shot);
                    self.pick(shot)
                } else {
                    Seen::Nothing
                }
            }
            State::Lit { frames, done: true } if frames >= longest => {
                log::warn!("the light has been on for {longest} frames: its level counts as dark from now on");
                self.dark_level = Some(level);
                self.state = State::Dark { kept: 0 };
                Seen::Nothing
            }
            State::Lit { frames, done: true } => {
                self.state = State::Lit { frames: frames + 1, done: true };
                Seen::Nothing
            }
        }
    }

    fn keep(&mut self, shot: &mut Shot) {
        std::mem::swap(&mut self.candidate, shot);
    }

    /// The shot is the pulse's frame.
    fn pick(&mut self, shot: &mut Shot) -> Seen {
        if let State::Lit { frames, .. } = self.state {
            self.state = State::Lit { frames, done: true };
        }
        if self.config.subtract_dark {
            let white = shot.frame.white();
            for (pixel, dark) in shot.frame.pixels_mut().iter_mut().zip(self.dark[1].pixels()) {
                // What is overexposed stays so: the gates must see it.
                *pixel = if *pixel >= white { white } else { pixel.saturating_sub(*dark) };
            }
        }
        Seen::Pulse
    }
}

/// A frame's mean brightness as a share of full scale, from one pixel in sixteen.
fn level(frame: &Frame) -> f32 {
    let (mut sum, mut count) = (0_u64, 0_u64);
    for row in frame.pixels().chunks(frame.width().max(1)).step_by(SPARSE) {
        sum += row.iter().step_by(SPARSE).map(|&p| u64::from(p)).sum::<u64>();
        count += row.len().div_ceil(SPARSE) as u64;
    }
    sum as f32 / count.max(1) as f32 / f32::from(frame.white())
}

/// A camera whose frames are those of the pulses: each is one cell.
pub struct Pulsed {
    camera: Box<dyn Camera>,
    picker: Picker,
    restarts: u64,
    /// The number of the next pulse.
    sequence: u32,
}

impl Pulsed {
    /// Picks the pulses from what `camera` sees.
    #[must_use]
    pub fn new(camera: Box<dyn Camera>, config: PulseConfig) -> Self {
        let (picker, restarts) = (Picker::new(config, camera.format()), camera.restarts());
        Self { camera, picker, restarts, sequence: 0 }
    }
}

impl Camera for Pulsed {
    fn format(&self) -> Format {
        self.camera.format()
    }

    fn next(&mut self, shot: &mut Shot, patience: Duration) -> Result<(), CameraError> {
        let until = Moment::now() + patience;
        loop {
            let rest = until.since(Moment::now());
            match self.camera.next(shot, rest) {
                Ok(()) => {}
                // Its number is missing in the count then, as that of a lost one.
                Err(CameraError::Damaged { .. }) if !rest.is_zero() => continue,
                Err(CameraError::Nothing(_) | CameraError::Damaged { .. }) => {
                    return Err(CameraError::Nothing(patience));
                }
                Err(error) => {
                    self.picker.reset();
                    return Err(error);
                }
            }
            let restarts = self.camera.restarts();
            if std::mem::replace(&mut self.restarts, restarts) != restarts {
                self.picker.reset();
            }
            let seen = self.picker.offer(shot);
            self.sequence = self.sequence.wrapping_add(self.picker.take_hidden());
            if seen == Seen::Nothing {
                if rest.is_zero() {
                    return Err(CameraError::Nothing(patience));
                }
                continue;
            }
            let sequence = self.sequence;
            self.sequence = sequence.wrapping_add(1);
            if let Seen::Unusable(why) = seen {
                return Err(CameraError::Damaged { sequence, taken: shot.taken, why });
            }
            shot.sequence = sequence;
            return Ok(());
        }
    }

    fn furnish(&mut self, make: &dyn Fn() -> Frame) {
        self.picker.furnish(make);
        self.camera.furnish(make);
    }

    fn on_demand(&self) -> bool {
        self.camera.on_demand()
    }

    fn describe(&self) -> String {
        format!("{}, the lit frame of each pulse", self.camera.describe())
    }

    fn restarts(&self) -> u64 {
        self.camera.restarts()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DARK: f64 = 20.0;
    const LIGHT: f64 = 180.0;
    const FORMAT: Format = Format { width: 16, height: 8, white: 255 };

    /// The share of frame `n`'s exposure (its first 9 tenths) that lies within pulses of `length` frames that start every
    /// `period` frames.
    fn exposed(n: u32, period: f64, length: f64) -> f64 {
        let (start, end) = (f64::from(n), f64::from(n) + 0.9);
        let pulse = (end / period).floor() * period;
        let overlap = |from: f64| (end.min(from + length) - start.max(from)).max(0.0);
        (overlap(pulse) + overlap(pulse - period)) / 0.9
    }

    fn frame(n: u32, share: f64) -> Shot {
        let level = (DARK + LIGHT * share).round() as u16;
        let mut shot = Shot::new(FORMAT.width, FORMAT.height, FORMAT.white);
        shot.frame.pixels_mut().fill(level);
        (shot.sequence, shot.taken) = (n, Moment::from_nanos(u64::from(n)));
        shot
    }

    /// The levels of the frames picked and how many pulses were unusable, for frames that `lost` doesn't take away.
    fn run(
        config: PulseConfig,
        period: f64,
        length: f64,
        frames: u32,
        lost: impl Fn(u32) -> bool,
    ) -> (Vec<u16>, u32, u32) {
        let mut picker = Picker::new(config, FORMAT);
        let (mut levels, mut unusable, mut hidden) = (Vec::new(), 0, 0);
        for n in (0..frames).filter(|&n| !lost(n)) {
            let mut shot = frame(n, exposed(n + 5, period, length));
            match picker.offer(&mut shot) {
                Seen::Nothing => {}
                Seen::Pulse => levels.push(shot.frame.pixels()[0]),
                Seen::Unusable(_) => unusable += 1,
            }
            hidden += picker.take_hidden();
        }
        (levels, unusable, hidden)
    }

    #[test]
    fn whatever_the_phase_each_pulse_gives_one_whole_frame() {
        // The phase drifts by 0.013 of a frame each pulse: all phases are met.
        for length in [3.0, 3.5, 6.2] {
            let (levels, unusable, _) = run(PulseConfig::default(), 20.013, length, 20_013 * 3, |_| false);
            assert_eq!(unusable, 0);
            assert!((2998..=3001).contains(&levels.len()), "{}", levels.len());
            assert!(levels.iter().all(|&level| level == 200), "a partial frame was picked");
        }
    }

    #[test]
    fn a_pulse_without_a_whole_frame_is_unusable_and_never_a_partial_one() {
        let (levels, unusable, _) = run(PulseConfig::default(), 20.013, 0.9, 20_013, |_| false);
        assert!(levels.is_empty());
        assert!((998..=1001).contains(&unusable), "{unusable}");
        // In between, it depends on the phase; whatever is picked is whole, and each pulse is told of.
        let (levels, unusable, _) = run(PulseConfig::default(), 20.013, 1.6, 20_013, |_| false);
        assert!(levels.iter().all(|&level| level == 200) && !levels.is_empty() && unusable > 0);
        assert!((998..=1001).contains(&(levels.len() as u32 + unusable)));
    }

    #[test]
    fn a_synchronised_camera_gives_the_first_lit_frame() {
        let config = PulseConfig { settle: 0, ..PulseConfig::default() };
        let (levels, unusable, _) = run(config, 10.0, 0.9, 1000, |_| false);
        assert_eq!((levels.len(), unusable), (100, 0));
        assert!(levels.iter().all(|&level| level == 200));
    }

    #[test]
    fn the_dark_frame_is_subtracted_and_no_partial_one_is_taken_for_it() {
        let config = PulseConfig { subtract_dark: true, ..PulseConfig::default() };
        let (levels, unusable, _) = run(config.clone(), 20.013, 3.3, 20_013, |_| false);
        assert_eq!(unusable, 0);
        assert!(levels.iter().all(|&level| level == LIGHT as u16), "{levels:?}");
        // Overexposed stays overexposed.
        let mut picker = Picker::new(config, FORMAT);
        for n in 0..6 {
            let mut shot = frame(n, if n < 3 { 0.0 } else { 10.0 });
            shot.frame.pixels_mut().iter_mut().for_each(|p| *p = (*p).min(255));
            if picker.offer(&mut shot) == Seen::Pulse {
                assert_eq!(shot.frame.pixels()[0], 255);
                return;
            }
        }
        panic!("no pulse");
    }

    #[test]
    fn lost_frames_never_lead_to_a_partial_one_and_hidden_pulses_are_told() {
        let (levels, unusable, hidden) = run(PulseConfig::default(), 20.013, 4.0, 20_013, |n| {
            super::super::pattern::hash(1, n.into()).is_multiple_of(7)
        });
        assert!(levels.iter().all(|&level| level == 200));
        assert!(unusable > 100 && levels.len() > 400, "{unusable} {}", levels.len());
        assert!(levels.len() as u32 + unusable + hidden >= 950);
        // Twelve in a row, a whole pulse among them.
        let (levels, unusable, hidden) = run(PulseConfig::default(), 20.0, 4.0, 200, |n| (90..102).contains(&n));
        assert_eq!((levels.len(), unusable, hidden), (9, 0, 1));
    }

    #[test]
    fn starting_inside_a_pulse_picks_nothing_of_it() {
        let mut picker = Picker::new(PulseConfig::default(), FORMAT);
        let shares = [0.4, 1.0, 1.0, 0.3, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 0.0];
        let seen: Vec<Seen> =
            shares.iter().enumerate().map(|(n, &share)| picker.offer(&mut frame(n as u32, share))).collect();
        let pulses: Vec<usize> = (0..seen.len()).filter(|&i| seen[i] == Seen::Pulse).collect();
        // The rise from 0.4 to 1 looks like a pulse's beginning, of which the whole frame is taken.
        assert_eq!(pulses.last(), Some(&9), "{seen:?}");
    }

    #[test]
    fn brighter_surroundings_become_the_new_dark() {
        let mut picker = Picker::new(PulseConfig { longest: 10, ..PulseConfig::default() }, FORMAT);
        let mut pulses = Vec::new();
        for n in 0..200 {
            let ambient = if n < 50 { 0.0 } else { 0.2 };
            let pulse = if n % 20 < 4 { 0.5 } else { 0.0 };
            if picker.offer(&mut frame(n, ambient + pulse)) == Seen::Pulse {
                pulses.push(n);
            }
        }
        assert!((4..=10).all(|k| pulses.contains(&(20 * (k - 1) + 2)) || k == 4), "{pulses:?}");
    }
}
