//! Mean and spread of each pixel over some frames.

use super::SensorError;
use crate::camera::Format;
use crate::frame::Frame;

/// Sums over frames of one scene that does not change.
#[derive(Clone, Debug)]
pub struct Recorder {
    format: Format,
    count: u32,
    sum: Vec<u32>,
    squares: Vec<u64>,
    /// Frames in which a pixel was at full scale.
    full: u64,
    /// Mean of the dimmest and of the brightest frame, of full scale.
    range: (f64, f64),
}

impl Recorder {
    /// Frames that can be summed up: 65535 × 65536 fits in 32 bits.
    pub const MOST: u32 = 4096;

    /// For frames of this format.
    #[must_use]
    pub fn new(format: Format) -> Self {
        let pixels = format.width * format.height;
        let range = (f64::INFINITY, 0.0);
        Self { format, count: 0, sum: vec![0; pixels], squares: vec![0; pixels], full: 0, range }
    }

    /// Adds a frame.
    ///
    /// # Errors
    /// If it has another format, or there are [`Recorder::MOST`] already.
    pub fn add(&mut self, frame: &Frame) -> Result<(), SensorError> {
        let found = Format::of(frame);
        if found != self.format {
            return Err(SensorError::Format { wanted: self.format, found });
        }
        if self.count == Self::MOST {
            return Err(SensorError::Frames(format!("calibrating: up to {} frames are taken", Self::MOST)));
        }
        let (mut all, white) = (0_u64, self.format.white);
        for ((sum, squares), &pixel) in self.sum.iter_mut().zip(&mut self.squares).zip(frame.pixels()) {
            *sum += u32::from(pixel);
            *squares += u64::from(pixel) * u64::from(pixel);
            all += u64::from(pixel);
            self.full += u64::from(pixel >= white);
        }
        let mean = all as f64 / self.sum.len().max(1) as f64 / f64::from(white);
        self.range = (self.range.0.min(mean), self.range.1.max(mean));
        self.count += 1;
        Ok(())
    }

    /// Frames so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Their format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Share of all pixels of all frames that were at full scale.
    pub(super) fn saturated(&self) -> f64 {
        self.full as f64 / (u64::from(self.count) * self.sum.len() as u64).max(1) as f64
    }

    /// Mean of the dimmest and of the brightest frame, of full scale.
    pub(super) fn range(&self) -> (f64, f64) {
        self.range
    }

    /// Each pixel's mean.
    pub(super) fn means(&self) -> Vec<f32> {
        let count = f64::from(self.count.max(1));
        self.sum.iter().map(|&sum| (f64::from(sum) / count) as f32).collect()
    }

    /// Each pixel's standard deviation from frame to frame.
    pub(super) fn spreads(&self) -> Vec<f32> {
        let count = f64::from(self.count);
        let spread = |(&sum, &squares): (&u32, &u64)| {
            let sum = f64::from(sum);
            ((squares as f64 - sum * sum / count.max(1.0)) / (count - 1.0).max(1.0)).max(0.0).sqrt() as f32
        };
        self.sum.iter().zip(&self.squares).map(spread).collect()
    }
}
