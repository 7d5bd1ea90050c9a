//! What the network sees of a cell: its heatmap and, beside it, its rectified image, both of the network's side.

use crate::preprocess::Augmentation;

/// The smallest distance that a logarithm is taken of; a position that close to the mean is as good as any.
const CLOSEST: f32 = 1e-3;

/// What the input planes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Planes {
    /// The heatmap alone, as in the paper.
    Heatmap,
    /// The heatmap and the rectified image.
    HeatmapAndImage,
}

impl Planes {
    /// How many.
    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::Heatmap => 1,
            Self::HeatmapAndImage => 2,
        }
    }
}

/// The heatmap's plane: `2 ln(M/√k)` on side×side. The distances of good cells lie around √k, so that 0 is a good position
/// whatever k is, and distances of defects, which span powers of ten, stay in the range that a network learns well.
/// Numbers that are not finite stay so. Allocates nothing.
///
/// # Panics
/// If the heatmap is not grid² long, or the plane not side².
pub fn heatmap_plane(heatmap: &[f32], grid: usize, k: usize, side: usize, plane: &mut [f32]) {
    resample(heatmap, grid, side, plane);
    let unit = 1.0 / (k as f32).sqrt();
    // `max` would hide a NaN.
    plane
        .iter_mut()
        .for_each(|m| *m = if *m * unit > CLOSEST { 2.0 * (*m * unit).ln() } else { *m * 0.0 + 2.0 * CLOSEST.ln() });
}

/// The image's plane: the rectified, normalised image on side×side. Allocates nothing.
///
/// # Panics
/// If the image is not size² long, or the plane not side².
pub fn image_plane(image: &[f32], size: usize, side: usize, plane: &mut [f32]) {
    resample(image, size, side, plane);
}

/// A square map on side×side: each pixel is the mean of what it covers; a map of fewer positions is repeated.
fn resample(from: &[f32], size: usize, side: usize, to: &mut [f32]) {
    assert!(size > 0 && from.len() == size * size && to.len() == side * side, "a square map and a plane of side²");
    if size == side {
        to.copy_from_slice(from);
        return;
    }
    // In units of 1/side of a source pixel, all whole numbers: pixel i covers i·size to (i + 1)·size.
    let covered = |i: usize| {
        let (start, end) = (i * size, (i + 1) * size);
        (start / side..end.div_ceil(side)).map(move |p| (p, (end.min((p + 1) * side) - start.max(p * side)) as f32))
    };
    let share = 1.0 / (size * size) as f32;
    for (y, row) in to.chunks_exact_mut(side).enumerate() {
        for (x, value) in row.iter_mut().enumerate() {
            let mut sum = 0.0;
            for (sy, high) in covered(y) {
                let row = &from[sy * size..][..size];
                sum += high * covered(x).map(|(sx, wide)| wide * row[sx]).sum::<f32>();
            }
            *value = sum * share;
        }
    }
}

/// One of the eight ways to lay a square on itself, from 0 (as it is) to 7.
#[must_use]
pub fn turned(way: usize) -> Augmentation {
    Augmentation { flip_h: way & 4 != 0, flip_v: false, quarters: (way & 3) as u8, angle_degrees: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::SIDE;
    use super::*;

    const PLANE: usize = SIDE * SIDE;

    #[test]
    fn a_map_keeps_its_mean_at_every_size() {
        for (size, side) in [16, 48, 64, 100, 224, 256].into_iter().flat_map(|size| [(size, 64), (size, 256)]) {
            let map: Vec<f32> = (0..size * size).map(|i| (i % 17) as f32 + (i / size) as f32).collect();
            let mut plane = vec![0.0; side * side];
            image_plane(&map, size, side, &mut plane);
            let mean = |v: &[f32]| v.iter().map(|x| f64::from(*x)).sum::<f64>() / v.len() as f64;
            assert!((mean(&map) / mean(&plane) - 1.0).abs() < 1e-5, "{size} on {side}");
        }
        let map: Vec<f32> = (0..256 * 256).map(|i| (i / 4 % 64) as f32).collect();
        let mut plane = vec![0.0; PLANE];
        image_plane(&map, 256, SIDE, &mut plane);
        assert!(plane.iter().enumerate().all(|(i, &v)| v == (i % 64) as f32));
    }

    #[test]
    fn a_usual_distance_is_zero_and_a_broken_one_stays_broken() {
        let mut map = vec![10.0; PLANE];
        (map[1], map[2], map[3], map[4]) = (0.0, f32::NAN, 10.0 * std::f32::consts::E, f32::INFINITY);
        let mut plane = vec![0.0; PLANE];
        heatmap_plane(&map, 64, 100, SIDE, &mut plane);
        assert!(plane[0].abs() < 1e-6 && (plane[3] - 2.0).abs() < 1e-5, "{:?}", &plane[..5]);
        assert!(plane[1].is_finite() && plane[1] < -13.0);
        assert!(plane[2].is_nan() && plane[4] == f32::INFINITY);
    }

    #[test]
    fn the_eight_ways_differ() {
        let map: Vec<f32> = (0..PLANE).map(|i| i as f32).collect();
        let mut all: Vec<Vec<u32>> = (0..8)
            .map(|way| {
                let mut out = vec![0.0; PLANE];
                turned(way).apply(&map, &mut out, SIDE);
                out.iter().map(|x| *x as u32).collect()
            })
            .collect();
        assert!(all[0].iter().enumerate().all(|(i, &v)| v == i as u32));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 8);
    }
}
