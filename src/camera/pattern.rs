//! The faults of an uncorrected sensor, drawn from a seed: what sensor correction is tried on.

use super::Format;
use crate::frame::Frame;

/// Offsets, gains and bad pixels of one sensor.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    format: Format,
    /// Added to each pixel.
    offset: Vec<f32>,
    /// Each pixel's response.
    gain: Vec<f32>,
    /// Pixels that answer to nothing, that glow, and that flicker.
    pub dead: Vec<usize>,
    pub hot: Vec<usize>,
    pub unstable: Vec<usize>,
}

/// 64 bits that look random, the same for the same numbers.
pub(crate) fn hash(seed: u64, index: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_mul(0xd1b5_4a32_d192_ed03);
    for _ in 0..2 {
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    }
    x ^ x >> 31
}

/// About normal, mean 0, standard deviation 1, never beyond ±3.5.
pub(crate) fn normal(bits: u64) -> f32 {
    let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
    (sum as f32 / 65536.0 - 2.0) * 1.732
}

impl Pattern {
    /// The sensor that `seed` names; `scale` 1 is an InGaAs sensor of middling quality.
    pub fn new(format: Format, seed: u64, scale: f32) -> Self {
        let (pixels, white) = (format.width * format.height, f32::from(format.white));
        let at = |purpose: u64, index: usize| normal(hash(seed ^ purpose << 56, index as u64));
        let offset =
            (0..pixels).map(|i| scale * white * (0.012 + 0.003 * at(1, i) + 0.002 * at(2, i % format.width))).collect();
        let gain = (0..pixels).map(|i| (1.0 + scale * 0.05 * at(3, i)).max(0.3)).collect();
        let mut pattern = Self { format, offset, gain, dead: vec![], hot: vec![], unstable: vec![] };
        let share = |per_million: f32| ((pixels as f32 * scale * per_million * 1e-6).ceil() as usize).min(pixels / 50);
        let mut spot = 0..;
        let mut draw = |count: usize| -> Vec<usize> {
            let index = |n: u64| (hash(seed ^ 9 << 56, n) % pixels.max(1) as u64) as usize;
            spot.by_ref().take(count).map(index).collect()
        };
        (pattern.dead, pattern.hot, pattern.unstable) = (draw(share(300.0)), draw(share(300.0)), draw(share(150.0)));
        // A cluster: a dead pixel takes two neighbours with it.
        if let Some(&first) = pattern.dead.first() {
            pattern.dead.extend([first + 1, first + format.width].into_iter().filter(|&i| i < pixels));
        }
        pattern
    }

    /// What the sensor makes of a frame, the `number`th that it sees. Overexposed pixels stay so.
    pub fn apply(&self, frame: &mut Frame, number: u64) {
        if Format::of(frame) != self.format {
            return;
        }
        let white = self.format.white;
        let full = f32::from(white);
        let pixels = frame.pixels_mut();
        for ((pixel, offset), gain) in pixels.iter_mut().zip(&self.offset).zip(&self.gain) {
            if *pixel < white {
                *pixel = (f32::from(*pixel) * gain + offset + 0.5).clamp(0.0, full) as u16;
            }
        }
        self.dead.iter().for_each(|&i| pixels[i] = self.offset[i] as u16);
        self.hot.iter().for_each(|&i| pixels[i] = (f32::from(pixels[i]) + 0.35 * full).min(full) as u16);
        for &i in &self.unstable {
            let flicker = 0.08 * normal(hash(number, i as u64));
            pixels[i] = (f32::from(pixels[i]) + flicker * full).clamp(0.0, full) as u16;
        }
    }
}
