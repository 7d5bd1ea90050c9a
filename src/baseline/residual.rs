//! From what a reconstruction leaves over to a score.

use crate::verdict::quantile;

/// How a residual image becomes a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The share of pixels whose residual is above an amplitude that one pixel of a hundred of held-out good cells
    /// exceeds.
    Amplitude,
    /// The mean residual of the pixels above the image's own Otsu threshold (Otsu 1979).
    Otsu,
}

/// Share of the pixels of held-out good cells that lie below the amplitude.
const BELOW: f64 = 0.99;

impl Cut {
    /// The amplitude that `good` residual images call for; Otsu's cut needs none.
    #[must_use]
    pub fn level<'a>(self, good: impl Iterator<Item = &'a [f32]>) -> f32 {
        if self == Self::Otsu {
            return 0.0;
        }
        let mut all: Vec<f32> = good.flatten().copied().collect();
        all.sort_unstable_by(f32::total_cmp);
        quantile(&all, BELOW).map_or(0.0, |level| level as f32)
    }

    /// The score of a residual image.
    #[must_use]
    pub fn score(self, residual: &[f32], level: f32) -> f32 {
        let above = |level: f32| residual.iter().copied().filter(move |&value| value > level);
        match self {
            Self::Amplitude => above(level).count() as f32 / residual.len().max(1) as f32,
            Self::Otsu => {
                let level = otsu(residual);
                let (count, sum) =
                    above(level).fold((0usize, 0.0f64), |(n, sum), value| (n + 1, sum + f64::from(value)));
                if count == 0 { 0.0 } else { (sum / count as f64) as f32 }
            }
        }
    }
}

/// The level that separates the values best into two groups: the largest variance between them, over 256 bins.
#[must_use]
pub fn otsu(values: &[f32]) -> f32 {
    let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    if high.partial_cmp(&low) != Some(std::cmp::Ordering::Greater) {
        return high;
    }
    let mut bins = [0usize; 256];
    let width = (high - low) / 256.0;
    values.iter().for_each(|&v| bins[(((v - low) / width) as usize).min(255)] += 1);
    let total: f64 = bins.iter().enumerate().map(|(bin, &count)| bin as f64 * count as f64).sum();
    let all = values.len() as f64;
    let (mut below, mut sum, mut best) = (0.0, 0.0, (-1.0, 0));
    for (bin, &count) in bins.iter().enumerate().take(255) {
        below += count as f64;
        sum += bin as f64 * count as f64;
        if below == 0.0 || below == all {
            continue;
        }
        let apart = sum / below - (total - sum) / (all - below);
        let between = below * (all - below) * apart * apart;
        if between > best.0 {
            best = (between, bin);
        }
    }
    low + width * (best.1 + 1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn otsu_lies_between_two_groups() {
        let mut values = vec![0.1; 90];
        values.extend([0.9; 10]);
        let level = otsu(&values);
        assert!(level > 0.1 && level < 0.9, "{level}");
        assert!((Cut::Otsu.score(&values, 0.0) - 0.9).abs() < 1e-6);
        assert_eq!(otsu(&[0.5; 4]), 0.5);
        assert_eq!(Cut::Otsu.score(&[0.5; 4], 0.0), 0.0);
    }

    #[test]
    fn the_amplitude_is_exceeded_by_one_pixel_of_a_hundred() {
        let good: Vec<f32> = (0..1000).map(|i| i as f32 / 1000.0).collect();
        let level = Cut::Amplitude.level(std::iter::once(&good[..]));
        assert!((level - 0.99).abs() < 0.002, "{level}");
        assert!((Cut::Amplitude.score(&good, level) - 0.01).abs() < 0.002);
    }
}
