//! The spread of each channel over good cells.

use crate::backbone::{Pyramid, STAGE_CHANNELS};
use crate::embedding::projection::CHANNELS;

/// Sums over the pixels of pyramids, for each of the 960 channels.
#[derive(Clone, Debug)]
pub(super) struct ChannelMoments {
    count: [f64; 4],
    sum: Vec<f64>,
    squares: Vec<f64>,
}

impl Default for ChannelMoments {
    fn default() -> Self {
        Self { count: [0.0; 4], sum: vec![0.0; CHANNELS], squares: vec![0.0; CHANNELS] }
    }
}

impl ChannelMoments {
    pub(super) fn of(pyramid: &Pyramid) -> Self {
        let mut moments = Self::default();
        let mut first = 0;
        for (stage, &channels) in STAGE_CHANNELS.iter().enumerate() {
            let sums = &mut moments.sum[first..first + channels];
            let squares = &mut moments.squares[first..first + channels];
            for pixel in pyramid.rows(stage).flat_map(|row| row.chunks_exact(channels)) {
                for ((sum, square), &x) in sums.iter_mut().zip(squares.iter_mut()).zip(pixel) {
                    *sum += f64::from(x);
                    *square += f64::from(x) * f64::from(x);
                }
            }
            moments.count[stage] = pyramid.side(stage).pow(2) as f64;
            first += channels;
        }
        moments
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.count.iter_mut().zip(other.count).for_each(|(a, b)| *a += b);
        self.sum.iter_mut().zip(&other.sum).for_each(|(a, b)| *a += b);
        self.squares.iter_mut().zip(&other.squares).for_each(|(a, b)| *a += b);
    }

    /// 1/σ of each channel; 0 for a channel that never changes, which tells nothing.
    pub(super) fn scale(&self) -> Vec<f32> {
        let mut scale = Vec::with_capacity(CHANNELS);
        for (stage, &channels) in STAGE_CHANNELS.iter().enumerate() {
            let n = self.count[stage].max(1.0);
            for _ in 0..channels {
                let channel = scale.len();
                let mean = self.sum[channel] / n;
                let variance = self.squares[channel] / n - mean * mean;
                let deviation = variance.max(0.0).sqrt() as f32;
                let usable = deviation.is_finite() && f64::from(deviation) > 1e-6 * (1.0 + mean.abs());
                scale.push(if usable { rounded(1.0 / deviation) } else { 0.0 });
            }
        }
        scale
    }
}

/// A positive float rounded to 8 bits of mantissa.
fn rounded(x: f32) -> f32 {
    f32::from_bits((x.to_bits() + (1 << 14)) & !((1 << 15) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_one_over_the_deviation_and_zero_for_dead_channels() {
        let mut pyramid = Pyramid::new(64);
        for (stage, channels) in STAGE_CHANNELS.into_iter().enumerate() {
            pyramid.fill_with(stage, |i| {
                let (pixel, channel) = (i / channels, i % channels);
                if channel == 0 { 3.0 } else { 5.0 + if pixel % 2 == 0 { 0.25 } else { -0.25 } }
            });
        }
        let scale = ChannelMoments::of(&pyramid).scale();
        assert_eq!(scale.len(), CHANNELS);
        assert_eq!(scale[0], 0.0);
        assert!((scale[1] - 4.0).abs() < 0.02);
        assert_eq!(scale[64], 0.0);
        assert_eq!(rounded(1.0), 1.0);
        assert!((rounded(1.2345) / 1.2345 - 1.0).abs() < 1.0 / 256.0);
    }
}
