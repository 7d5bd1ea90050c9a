//! Chance and the little mathematics around it, the same to the last bit on every machine.
//!
//! Only `+ − × ÷ √` and comparisons are used: IEEE 754 rounds each of them in one way, while the platform's `sin` and
//! `exp` differ between C libraries.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream of chance is for. Each purpose draws from its own stream, so that the same cell with and without its
/// defects has the same pose, texture and noise.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Line = 1,
    Class = 2,
    Pose = 3,
    Texture = 4,
    Defects = 5,
    Sensor = 6,
}

/// A stream of random numbers that depends on the seed, the cell and the purpose only.
pub(super) struct Chance(ChaCha8Rng);

impl Chance {
    pub fn new(seed: u64, index: u64, purpose: Purpose) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&index.to_le_bytes());
        key[16] = purpose as u8;
        Self(ChaCha8Rng::from_seed(key))
    }

    pub fn bits(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        f64::from(self.0.next_u32()) / 4_294_967_296.0
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// True with probability `p`.
    pub fn with(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// A whole number from `low` to `high`, both included.
    pub fn count(&mut self, low: usize, high: usize) -> usize {
        low + (self.unit() * (high - low + 1) as f64) as usize
    }

    /// −1 or 1.
    pub fn sign(&mut self) -> f64 {
        if self.with(0.5) { 1.0 } else { -1.0 }
    }

    /// Close to normal, mean 0, deviation 1, within ±6: the sum of twelve uniform numbers.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    /// The position of the weight that was drawn; the weights need not sum to 1.
    pub fn pick(&mut self, weights: &[f64]) -> usize {
        let mut left = self.unit() * weights.iter().sum::<f64>();
        for (i, w) in weights.iter().enumerate() {
            left -= w;
            if left < 0.0 {
                return i;
            }
        }
        weights.iter().rposition(|&w| w > 0.0).unwrap_or(0)
    }
}

/// Sine and cosine of an angle in degrees.
pub(super) fn sin_cos(degrees: f64) -> (f64, f64) {
    let quarter = (degrees / 90.0 + 0.5).floor();
    let x = (degrees - 90.0 * quarter) * (std::f64::consts::PI / 180.0);
    let q = x * x;
    let s = x * (1.0 - q / 6.0 * (1.0 - q / 20.0 * (1.0 - q / 42.0 * (1.0 - q / 72.0 * (1.0 - q / 110.0)))));
    let c = 1.0 - q / 2.0 * (1.0 - q / 12.0 * (1.0 - q / 30.0 * (1.0 - q / 56.0 * (1.0 - q / 90.0))));
    match (quarter as i64).rem_euclid(4) {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

/// From 0 at `t` ≤ 0 to 1 at `t` ≥ 1, smooth at both ends.
pub(super) fn smooth(t: f64) -> f64 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// A bell: 1 at 0, ½ at 1, slowly to 0.
pub(super) fn bell(t: f64) -> f64 {
    1.0 / (1.0 + t * t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sine_and_cosine_are_right_all_around() {
        for d in -720..=720 {
            let (s, c) = sin_cos(f64::from(d));
            let r = f64::from(d).to_radians();
            assert!((s - r.sin()).abs() < 1e-7 && (c - r.cos()).abs() < 1e-7, "{d}°: {s} {c}");
        }
    }

    #[test]
    fn normal_numbers_have_their_moments() {
        let mut chance = Chance::new(1, 2, Purpose::Line);
        let x: Vec<f64> = (0..20_000).map(|_| chance.normal()).collect();
        let mean = x.iter().sum::<f64>() / 20_000.0;
        let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.05, "{mean} {var}");
    }

    #[test]
    fn pick_follows_the_weights() {
        let mut chance = Chance::new(1, 3, Purpose::Line);
        let hits = (0..10_000).filter(|_| chance.pick(&[1.0, 0.0, 3.0]) == 2).count();
        assert!((7200..7800).contains(&hits), "{hits}");
    }
}
