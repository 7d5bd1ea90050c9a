//! A camera over a line that is drawn: [`synth`](crate::synth)'s cells at a period.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pace::Pace;
use super::pattern::{Pattern, hash, normal};
use super::{Camera, CameraError, Format, Shot};
use crate::frame::Frame;
use crate::synth::{Generator, SynthCell, SynthConfig, SynthError, draw_id};
use crate::verdict::Class;

/// What lies before the camera.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scene {
    /// A cell a frame.
    #[default]
    Cell,
    /// Nothing: the lens is covered.
    Dark,
    /// An evenly lit plate.
    Flat,
}

/// What a [`Synthetic`] camera shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The cells and the optics. [`SynthConfig::with_id`] writes the shot's sequence number into the frame.
    pub synth: SynthConfig,
    /// Seed of the line.
    pub seed: u64,
    /// Index of the first cell.
    pub first: u64,
    /// Cells that are drawn beforehand and shown in turn; 0 draws each one when it is due.
    pub prepared: usize,
    /// Time from frame to frame; zero is as fast as asked.
    pub period: Duration,
    /// Frames until the end; none is for ever.
    pub count: Option<u64>,
    /// What lies before the camera.
    pub scene: Scene,
    /// Scale of the faults of an uncorrected sensor, 0 (none) to 4.
    pub pattern: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            synth: SynthConfig::default(),
            seed: 1,
            first: 0,
            prepared: 0,
            period: Duration::from_secs(1),
            count: None,
            scene: Scene::Cell,
            pattern: 0.0,
        }
    }
}

/// Shows synthetic cells. It allocates nothing after the first shot, and with a prepared set draws nothing but the
/// id strip.
pub struct Synthetic {
    settings: Settings,
    generator: Generator,
    /// Without strips: those are drawn into the copies.
    prepared: Vec<Frame>,
    cell: SynthCell,
    pattern: Option<Pattern>,
    pace: Pace,
    shown: u64,
}

impl Synthetic {
    /// The camera; draws the prepared set.
    ///
    /// # Errors
    /// What is wrong with the cells' configuration.
    pub fn new(settings: Settings) -> Result<Self, SynthError> {
        let generator = Generator::new(SynthConfig { with_id: false, ..settings.synth.clone() }, settings.seed)?;
        let SynthConfig { size, white, .. } = settings.synth;
        let format = Format { width: size, height: size, white };
        let scale = settings.pattern;
        let mut camera = Self {
            pattern: (scale > 0.0).then(|| Pattern::new(format, settings.seed, scale)),
            pace: Pace::new(settings.period),
            settings,
            generator,
            prepared: Vec::new(),
            cell: SynthCell::default(),
            shown: 0,
        };
        let prepared = camera.settings.prepared as u64;
        camera.prepared = (0..prepared)
            .map(|number| {
                let mut frame = Frame::new(size, size, white);
                camera.draw(number, &mut frame);
                frame
            })
            .collect();
        Ok(camera)
    }

    /// The true class of the cell in the shot with this sequence number.
    #[must_use]
    pub fn truth(&self, sequence: u32) -> Class {
        self.generator.class(self.index(sequence.into()))
    }

    fn index(&self, number: u64) -> u64 {
        let number = if self.prepared.is_empty() { number } else { number % self.prepared.len() as u64 };
        self.settings.first.wrapping_add(number)
    }

    fn draw(&mut self, number: u64, frame: &mut Frame) {
        let SynthConfig { brightness, dark, vignette, noise, .. } = self.settings.synth;
        match self.settings.scene {
            Scene::Cell => {
                self.generator.cell_into(self.index(number), &mut self.cell);
                std::mem::swap(frame, &mut self.cell.frame);
            }
            Scene::Dark => plate(frame, 0.0, dark as f32, 0.0, noise as f32, self.settings.seed ^ hash(2, number)),
            Scene::Flat => {
                let (light, dark, vignette) = (brightness as f32, dark as f32, vignette as f32);
                plate(frame, light, dark, vignette, noise as f32, self.settings.seed ^ hash(3, number));
            }
        }
        if let Some(pattern) = &self.pattern {
            pattern.apply(frame, number);
        }
    }
}

/// An even brightness, dimmer to the corners, with the noise of a camera.
fn plate(frame: &mut Frame, light: f32, dark: f32, vignette: f32, noise: f32, seed: u64) {
    let (width, height, white) = (frame.width(), frame.height(), f32::from(frame.white()));
    let (cx, cy) = (width as f32 / 2.0, height as f32 / 2.0);
    let fall = vignette / (cx * cx + cy * cy).max(1.0);
    for (y, row) in frame.pixels_mut().chunks_exact_mut(width.max(1)).enumerate() {
        for (x, pixel) in row.iter_mut().enumerate() {
            let (dx, dy) = (x as f32 + 0.5 - cx, y as f32 + 0.5 - cy);
            let signal = dark + light * (1.0 - fall * (dx * dx + dy * dy));
            let spread = noise * (0.0022 * 0.0022 + signal / 18_000.0).sqrt();
            let value = signal + spread * normal(hash(seed, (y * width + x) as u64));
            *pixel = (value * white + 0.5).clamp(0.0, white) as u16;
        }
    }
}

impl Camera for Synthetic {
    fn format(&self) -> Format {
        let SynthConfig { size, white, .. } = self.settings.synth;
        Format { width: size, height: size, white }
    }

    fn next(&mut self, shot: &mut Shot, patience: Duration) -> Result<(), CameraError> {
        if self.settings.count.is_some_and(|count| self.shown >= count) {
            return Err(CameraError::End);
        }
        shot.fit(self.format());
        let Some(due) = self.pace.wait(patience) else { return Err(CameraError::Nothing(patience)) };
        let sequence = self.shown as u32;
        if self.prepared.is_empty() {
            self.draw(self.shown, &mut shot.frame);
        } else {
            let cell = &self.prepared[(self.shown % self.prepared.len() as u64) as usize];
            shot.frame.pixels_mut().copy_from_slice(cell.pixels());
        }
        if self.settings.synth.with_id && self.settings.scene == Scene::Cell {
            draw_id(&mut shot.frame, sequence);
        }
        self.shown += 1;
        // At the end of the exposure, which is when the drawing is done.
        (shot.sequence, shot.taken) =
            (sequence, if self.prepared.is_empty() { crate::clock::Moment::now() } else { due });
        Ok(())
    }

    fn furnish(&mut self, make: &dyn Fn() -> Frame) {
        self.cell.frame = make();
    }

    fn on_demand(&self) -> bool {
        self.pace.on_demand()
    }

    fn describe(&self) -> String {
        let SynthConfig { size, white, .. } = self.settings.synth;
        format!("synthetic cells of seed {}, {size}×{size}, white {white}", self.settings.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::read_id;

    fn settings(prepared: usize) -> Settings {
        let synth = SynthConfig { size: 128, with_id: true, ..SynthConfig::default() };
        Settings { synth, seed: 5, first: 100, prepared, period: Duration::ZERO, count: Some(7), ..Settings::default() }
    }

    #[test]
    fn each_shot_bears_its_number_whether_prepared_or_not() {
        for prepared in [0, 3] {
            let mut camera = Synthetic::new(settings(prepared)).unwrap();
            let mut shot = Shot::new(128, 128, 255);
            let mut without = Vec::new();
            for sequence in 0..7 {
                camera.next(&mut shot, Duration::ZERO).unwrap();
                assert_eq!((shot.sequence, read_id(&shot.frame)), (sequence, Some(sequence)));
                without.push(shot.frame.pixels()[128 * 10..].to_vec());
            }
            assert!(matches!(camera.next(&mut shot, Duration::ZERO), Err(CameraError::End)));
            assert_eq!(without[0] == without[3], prepared == 3);
            assert_ne!(without[0], without[1]);
            let plain = SynthConfig { size: 128, ..SynthConfig::default() };
            let alone = Generator::new(plain, 5).unwrap().cell(102);
            assert_eq!(without[2], alone.frame.pixels()[128 * 10..]);
            assert_eq!(camera.truth(2), alone.class);
        }
    }

    #[test]
    fn covered_and_evenly_lit_scenes_are_what_they_say() {
        let mean = |scene| {
            let mut camera = Synthetic::new(Settings { scene, pattern: 1.0, ..settings(0) }).unwrap();
            let mut shot = Shot::new(128, 128, 255);
            camera.next(&mut shot, Duration::ZERO).unwrap();
            let sum: u64 = shot.frame.pixels().iter().map(|&p| u64::from(p)).sum();
            sum as f32 / 128.0 / 128.0 / 255.0
        };
        let (dark, flat) = (mean(Scene::Dark), mean(Scene::Flat));
        assert!((0.03..0.06).contains(&dark) && (0.55..0.68).contains(&flat), "{dark} {flat}");
    }
}
