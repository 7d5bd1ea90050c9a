//! How well heatmaps find the defects, pixel by pixel and region by region, in memory that does not grow with the
//! number of images.
//!
//! Scores are counted in 2²⁰ bins of the float's own order (sign, exponent, 11 bits of mantissa): no range has to be
//! known, a map of any scale is resolved to 0.05 %, and what the bins give is what the sorted scores would give, ties
//! within a bin counting half.

use serde::{Deserialize, Serialize};

use super::metrics::Point;

const BIN_BITS: u32 = 20;
const BINS: usize = 1 << BIN_BITS;

/// The false-positive rate up to which per-region overlap is integrated (Bergmann et al. 2021).
pub const PRO_LIMIT: f64 = 0.3;

/// The share that is all of a region. A pixel's share of any region of an image is rounded by less than 1e-24 of it.
const WHOLE: u128 = 1 << 80;

/// Gathers heatmaps and masks, one image after another; about 32 MiB whatever their number.
#[derive(Clone, Debug)]
pub struct PixelMetrics {
    /// Good pixels a bin.
    good: Vec<u64>,
    /// Defective pixels a bin.
    bad: Vec<u64>,
    /// For each bin, Σ over regions of the share of the region that scores there, in units of 1/[`WHOLE`]: whole
    /// numbers, so that the order in which images come changes nothing.
    overlap: Vec<u128>,
    regions: usize,
    images: usize,
}

/// Why an image cannot be counted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a heatmap of {scores} and a mask of {mask} pixels cannot both be {width}×{height}")]
pub struct SizeError {
    /// Scores given.
    pub scores: usize,
    /// Mask pixels given.
    pub mask: usize,
    /// The width they should have.
    pub width: usize,
    /// The height they should have.
    pub height: usize,
}

/// What [`PixelMetrics`] found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PixelResult {
    /// Images counted.
    pub images: usize,
    /// Defect regions (8-connected) counted.
    pub regions: usize,
    /// Pixels counted.
    pub pixels: u64,
    /// Defective pixels among them.
    pub defective_pixels: u64,
    /// Area under the pixels' ROC curve.
    pub auroc: Option<f64>,
    /// Area under per-region overlap against false-positive rate up to `pro_limit`, divided by it.
    pub aupro: Option<f64>,
    /// See [`PRO_LIMIT`].
    pub pro_limit: f64,
    /// The curve behind `aupro`, x up to `pro_limit`, thinned.
    pub pro: Vec<Point>,
}

impl Default for PixelMetrics {
    fn default() -> Self {
        Self { good: vec![0; BINS], bad: vec![0; BINS], overlap: vec![0; BINS], regions: 0, images: 0 }
    }
}

/// The bin of a score: monotone; not-a-number is the highest, as everywhere.
fn bin(score: f32) -> usize {
    let score = if score.is_nan() { f32::INFINITY } else { score + 0.0 };
    let bits = score.to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    (ordered >> (32 - BIN_BITS)) as usize
}

impl PixelMetrics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one image: `scores` and `mask` (true: defective) of `width` × `height`, row by row. A good cell has an
    /// empty mask. [`resize_scores`] brings a heatmap to the mask's size.
    ///
    /// # Errors
    /// If either has another number of pixels.
    pub fn add(&mut self, scores: &[f32], mask: &[bool], width: usize, height: usize) -> Result<(), SizeError> {
        let pixels = width.checked_mul(height);
        if pixels != Some(scores.len()) || pixels != Some(mask.len()) {
            return Err(SizeError { scores: scores.len(), mask: mask.len(), width, height });
        }
        self.images += 1;
        for (&score, &defective) in scores.iter().zip(mask) {
            let counts = if defective { &mut self.bad } else { &mut self.good };
            counts[bin(score)] += 1;
        }
        let regions = regions(mask, width, height);
        self.regions += regions.len();
        for region in regions {
            let share = WHOLE / region.len() as u128;
            for pixel in region {
                self.overlap[bin(scores[pixel])] += share;
            }
        }
        Ok(())
    }

    /// What was found up to now.
    #[must_use]
    pub fn result(&self) -> PixelResult {
        let (good, bad): (u64, u64) = (self.good.iter().sum(), self.bad.iter().sum());
        let both = good > 0 && bad > 0;
        let (mut tp, mut fp, mut twice) = (0u64, 0u64, 0u128);
        let (mut overlap, mut area) = (0u128, 0.0);
        let mut curve = vec![Point { x: 0.0, y: 0.0 }];
        for index in (0..BINS).rev() {
            let (more_bad, more_good) = (self.bad[index], self.good[index]);
            if more_bad == 0 && more_good == 0 {
                continue;
            }
            twice += u128::from(more_good) * u128::from(2 * tp + more_bad);
            (tp, fp) = (tp + more_bad, fp + more_good);
            overlap += self.overlap[index];
            if !both {
                continue;
            }
            let before = curve[curve.len() - 1];
            if before.x >= PRO_LIMIT {
                continue;
            }
            let mut point =
                Point { x: fp as f64 / good as f64, y: overlap as f64 / (WHOLE as f64 * self.regions as f64) };
            if point.x > PRO_LIMIT {
                let part = (PRO_LIMIT - before.x) / (point.x - before.x);
                point = Point { x: PRO_LIMIT, y: before.y + part * (point.y - before.y) };
            }
            area += (point.x - before.x) * (point.y + before.y) / 2.0;
            curve.push(point);
        }
        PixelResult {
            images: self.images,
            regions: self.regions,
            pixels: good + bad,
            defective_pixels: bad,
            auroc: both.then(|| twice as f64 / (2.0 * good as f64 * bad as f64)),
            aupro: both.then_some(area / PRO_LIMIT),
            pro_limit: PRO_LIMIT,
            pro: if both { super::metrics::thin(curve, 300) } else { Vec::new() },
        }
    }
}

/// The 8-connected regions of a mask, each as its pixels' indices.
///
/// # Panics
/// If `mask.len() != width * height`.
#[must_use]
pub fn regions(mask: &[bool], width: usize, height: usize) -> Vec<Vec<usize>> {
    assert_eq!(mask.len(), width * height, "a mask of {width}×{height} needs as many pixels");
    let mut open = mask.to_vec();
    let mut regions = Vec::new();
    for start in 0..open.len() {
        if !std::mem::take(&mut open[start]) {
            continue;
        }
        // The region is its own queue: pixels before `next` have been looked around.
        let mut region = vec![start];
        let mut next = 0;
        while let Some(&pixel) = region.get(next) {
            next += 1;
            let (x, y) = (pixel % width, pixel / width);
            for near_y in y.saturating_sub(1)..=(y + 1).min(height - 1) {
                for near_x in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                    if std::mem::take(&mut open[near_y * width + near_x]) {
                        region.push(near_y * width + near_x);
                    }
                }
            }
        }
        regions.push(region);
    }
    regions
}

/// A score map at another size: bilinear, half-pixel centres, edge clamped, as the heatmap is drawn on the image.
///
/// # Panics
/// If `scores.len()` is not `from.0 * from.1`, or a size is 0.
#[must_use]
pub fn resize_scores(scores: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    assert!(from.0 > 0 && from.1 > 0 && scores.len() == from.0 * from.1, "a map of {from:?} needs as many scores");
    let axis = |from: usize, to: usize| -> Vec<(usize, usize, f32)> {
        let place = |i: usize| {
            let at = ((i as f32 + 0.5) * from as f32 / to as f32 - 0.5).clamp(0.0, (from - 1) as f32);
            let low = at as usize;
            (low, (low + 1).min(from - 1), at - low as f32)
        };
        (0..to).map(place).collect()
    };
    let (columns, rows) = (axis(from.0, to.0), axis(from.1, to.1));
    let mut out = Vec::with_capacity(to.0 * to.1);
    for &(top, bottom, down) in &rows {
        let (upper, lower) = (&scores[top * from.0..][..from.0], &scores[bottom * from.0..][..from.0]);
        out.extend(columns.iter().map(|&(left, right, along)| {
            let mix = |row: &[f32]| row[left] + (row[right] - row[left]) * along;
            mix(upper) + (mix(lower) - mix(upper)) * down
        }));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::metrics::auroc;
    use proptest::prelude::*;

    #[test]
    fn regions_join_at_corners_and_do_not_wrap_around() {
        #[rustfmt::skip]
        let mask = [
            1, 0, 0, 1,
            0, 1, 0, 0,
            0, 0, 0, 1,
            1, 0, 0, 1,
        ].map(|v| v == 1);
        let mut found: Vec<Vec<usize>> = regions(&mask, 4, 4);
        found.iter_mut().for_each(|region| region.sort_unstable());
        assert_eq!(found, [vec![0, 5], vec![3], vec![11, 15], vec![12]]);
        assert!(regions(&[], 0, 0).is_empty());
    }

    #[test]
    fn a_perfect_map_scores_one_and_a_blind_one_a_half() {
        let mask: Vec<bool> = (0..100).map(|i| i % 10 < 2).collect();
        let perfect: Vec<f32> = mask.iter().map(|&m| if m { 7.0 } else { -3.0 }).collect();
        let mut metrics = PixelMetrics::new();
        metrics.add(&perfect, &mask, 10, 10).unwrap();
        let result = metrics.result();
        assert_eq!((result.auroc, result.regions, result.defective_pixels), (Some(1.0), 1, 20));
        assert!((result.aupro.unwrap() - 1.0).abs() < 1e-12);
        let mut metrics = PixelMetrics::new();
        metrics.add(&[0.25; 100], &mask, 10, 10).unwrap();
        let result = metrics.result();
        assert_eq!(result.auroc, Some(0.5));
        // The straight line from (0, 0) to (1, 1), up to 0.3: 0.045 of 0.3.
        assert!((result.aupro.unwrap() - 0.15).abs() < 1e-12);
    }

    #[test]
    fn small_regions_weigh_as_much_as_large_ones() {
        // A region of 4 pixels found whole, one of 1 pixel missed, 5 good pixels: overlap is 1/2 until all is called.
        let scores = [9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0];
        let mask = [true, true, true, true, false, false, false, false, false, true];
        let mut metrics = PixelMetrics::new();
        metrics.add(&scores, &mask, 10, 1).unwrap();
        let result = metrics.result();
        assert_eq!(result.regions, 2);
        assert!((result.aupro.unwrap() - 0.5).abs() < 1e-12, "{result:?}");
        assert!((result.auroc.unwrap() - 0.8).abs() < 1e-12);
    }

    #[test]
    fn the_order_of_the_images_changes_nothing() {
        // Regions of 1 to 9 pixels, whose shares are no binary fractions.
        let images: Vec<(Vec<f32>, Vec<bool>)> = (1..10usize)
            .map(|n| (0..12).map(|i| ((i * 7 + n * 5) % 11) as f32).zip((0..12).map(|i| i < n)).unzip())
            .collect();
        let counted = |order: &mut dyn Iterator<Item = &(Vec<f32>, Vec<bool>)>| {
            let mut metrics = PixelMetrics::new();
            order.for_each(|(scores, mask)| metrics.add(scores, mask, 12, 1).unwrap());
            metrics.result()
        };
        assert_eq!(counted(&mut images.iter()), counted(&mut images.iter().rev()));
    }

    #[test]
    fn nothing_to_find_gives_no_figure_and_wrong_sizes_are_refused() {
        let mut metrics = PixelMetrics::new();
        metrics.add(&[1.0, 2.0], &[false, false], 2, 1).unwrap();
        let result = metrics.result();
        assert_eq!((result.auroc, result.aupro, result.pro.len()), (None, None, 0));
        assert!(metrics.add(&[1.0], &[false, false], 2, 1).is_err());
        assert!(metrics.add(&[], &[], usize::MAX, 2).is_err());
    }

    #[test]
    fn sizes_change_without_changing_levels() {
        assert_eq!(resize_scores(&[2.0; 12], (4, 3), (7, 9)), vec![2.0; 63]);
        assert_eq!(resize_scores(&[0.0, 1.0], (2, 1), (4, 1)), [0.0, 0.25, 0.75, 1.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn bins_keep_the_order(a: f32, b: f32) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            let kept = if a <= b { bin(a) <= bin(b) } else { bin(a) >= bin(b) };
            prop_assert!(kept);
            prop_assert_eq!(bin(0.0), bin(-0.0));
        }

        #[test]
        fn overlap_is_that_of_every_threshold_tried(
            pixels in proptest::collection::vec((0u8..12, 0u8..4), 30), width in prop_oneof![Just(5usize), Just(6), Just(10)]
        ) {
            let (scores, mask): (Vec<f32>, Vec<bool>) = pixels.iter().map(|&(s, m)| (f32::from(s), m == 0)).unzip();
            let height = 30 / width;
            let mut metrics = PixelMetrics::new();
            metrics.add(&scores, &mask, width, height).unwrap();
            let good = mask.iter().filter(|m| !**m).count();
            prop_assume!(good > 0 && good < 30);
            let regions = regions(&mask, width, height);
            let at = |level: u8| {
                let called = |pixel: &usize| scores[*pixel] >= f32::from(level);
                let fp = (0..30).filter(|pixel| !mask[*pixel] && called(pixel)).count() as f64 / good as f64;
                let share = |r: &Vec<usize>| r.iter().filter(|pixel| called(pixel)).count() as f64 / r.len() as f64;
                (fp, regions.iter().map(share).sum::<f64>() / regions.len() as f64)
            };
            // Along the piecewise linear curve through every threshold.
            let curve: Vec<(f64, f64)> = (0..=12).rev().map(at).collect();
            let mut area = 0.0;
            for pair in curve.windows(2) {
                let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
                if x0 < PRO_LIMIT && x1 > x0 {
                    let end = x1.min(PRO_LIMIT);
                    let y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0);
                    area += (end - x0) * (y0 + y_end) / 2.0;
                }
            }
            let found = metrics.result().aupro.unwrap();
            prop_assert!((found - area / PRO_LIMIT).abs() < 1e-9, "{} {}", found, area / PRO_LIMIT);
        }

        #[test]
        fn binned_area_is_the_sorted_one(pixels in proptest::collection::vec((-100i16..100, any::<bool>()), 1..200)) {
            let (scores, mask): (Vec<f32>, Vec<bool>) = pixels.iter().map(|&(s, m)| (f32::from(s) / 8.0, m)).unzip();
            let mut metrics = PixelMetrics::new();
            metrics.add(&scores, &mask, scores.len(), 1).unwrap();
            match (metrics.result().auroc, auroc(&scores, &mask)) {
                (Some(a), Some(b)) => prop_assert!((a - b).abs() < 1e-12),
                (a, b) => prop_assert_eq!(a, b),
            }
        }
    }
}
