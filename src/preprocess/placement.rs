//! Where the cell lies in the frame, and the way from a rectified pixel back to it.

use serde::{Deserialize, Serialize};

use super::homography::{apply, unit_square_to_quad};
use super::polygon::distance;

/// Where a cell was found, and what was measured on the way.
///
/// Coordinates are continuous: pixel (i, j) covers [i, i+1) × [j, j+1), and its centre is (i + ½, j + ½). That holds
/// for frame pixels, for rectified pixels and for cells of the heatmap's grid.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// The cell's corners in frame pixels, clockwise from top left: [x, y] of top left, top right, bottom right,
    /// bottom left. Where the cell's corners are chamfered they are the points in which its long sides would meet.
    ///
    /// "Top" is the side that faces up the most, so a cell is turned by at most 45°; which of four quarter turns it
    /// was really in, a square does not tell.
    pub quad: [[f64; 2]; 4],
    /// The side S of the rectified image.
    pub size: usize,
    /// Row-major 3×3 matrix from a rectified point (x, y, 1) to a frame point, up to scale.
    pub homography: [f64; 9],
    /// Mean brightness of the rectified cell, of full scale.
    pub brightness: f32,
    /// Share of the cell's pixels that are at full scale.
    pub saturated: f32,
    /// Root mean square of the rectified image's Laplacian, divided by its mean.
    pub sharpness: f32,
    /// Width of the cell's edge as a share of its side; `None` without a border step.
    pub edge_width: Option<f32>,
    /// Share of the quadrilateral that is brighter than the threshold; 1 without a border step.
    pub fill: f32,
    /// The threshold used, of full scale; `None` without a border step.
    pub threshold: Option<f32>,
}

impl Placement {
    /// The frame point of a rectified point, both in pixels.
    #[must_use]
    pub fn to_frame(&self, x: f64, y: f64) -> [f64; 2] {
        apply(&self.homography, x, y)
    }

    /// The frame point of a point on a heatmap of `grid` × `grid` cells.
    #[must_use]
    pub fn grid_to_frame(&self, grid: usize, x: f64, y: f64) -> [f64; 2] {
        let scale = self.size as f64 / grid as f64;
        self.to_frame(x * scale, y * scale)
    }

    /// The frame's box `[x0, y0, x1, y1]` around a box given on a heatmap of `grid` × `grid` cells; with
    /// `grid = self.size` the box is one of rectified pixels.
    #[must_use]
    pub fn box_to_frame(&self, grid: usize, [x0, y0, x1, y1]: [f64; 4]) -> [f64; 4] {
        let corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]].map(|[x, y]| self.grid_to_frame(grid, x, y));
        corners.iter().fold([f64::INFINITY, f64::INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY], |b, p| {
            [b[0].min(p[0]), b[1].min(p[1]), b[2].max(p[0]), b[3].max(p[1])]
        })
    }

    /// Carries a picture that lies on the frame (a ground-truth mask) into the rectified view, or onto a heatmap's
    /// grid: `out` is `side` × `side`, each value the largest of the frame pixels that it covers, so that a thin crack
    /// stays whole; 0 outside the frame.
    ///
    /// # Panics
    /// If `mask` is not `width·height` or `out` not `side²` long.
    pub fn rectify_mask(&self, mask: &[u8], width: usize, height: usize, out: &mut [u8], side: usize) {
        assert_eq!(mask.len(), width * height, "a mask of {width}×{height} needs as many values");
        assert_eq!(out.len(), side * side, "a rectified mask of {side}×{side} needs as many values");
        // Points as close as two thirds of a frame pixel miss none, however the cell is turned.
        let longest = (0..4).map(|i| distance(self.quad[i], self.quad[(i + 1) % 4])).fold(0.0, f64::max);
        let points = ((1.5 * longest / side as f64).ceil() as usize).clamp(1, 64);
        for (i, value) in out.iter_mut().enumerate() {
            *value = 0;
            for j in 0..points * points {
                let at = |cell: usize, point: usize| cell as f64 + (point as f64 + 0.5) / points as f64;
                let [x, y] = self.grid_to_frame(side, at(i % side, j % points), at(i / side, j / points));
                if x >= 0.0 && y >= 0.0 && x < width as f64 && y < height as f64 {
                    *value = mask[y as usize * width + x as usize].max(*value);
                }
            }
        }
    }
}

/// The homography that carries the square [0, size]², less `inset` of its side on each edge, onto `quad` less as much:
/// a rectified image of side `size` shows the quadrilateral's inner part.
///
/// `None` if the quadrilateral has no area.
pub(super) fn square_to_quad(quad: &[[f64; 2]; 4], size: usize, inset: f64) -> Option<[f64; 9]> {
    let unit = unit_square_to_quad(quad)?;
    // Unit coordinate u = inset + x·(1 − 2·inset)/size.
    let scale = (1.0 - 2.0 * inset) / size as f64;
    let mut out = [0.0; 9];
    for row in 0..3 {
        let [p, q, r] = [unit[3 * row], unit[3 * row + 1], unit[3 * row + 2]];
        out[3 * row] = p * scale;
        out[3 * row + 1] = q * scale;
        out[3 * row + 2] = r + (p + q) * inset;
    }
    out.iter().all(|v| v.is_finite()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn placement(quad: [[f64; 2]; 4], size: usize, inset: f64) -> Placement {
        Placement {
            quad,
            size,
            homography: square_to_quad(&quad, size, inset).unwrap(),
            brightness: 0.5,
            saturated: 0.0,
            sharpness: 0.1,
            edge_width: None,
            fill: 1.0,
            threshold: None,
        }
    }

    fn close(a: [f64; 2], b: [f64; 2]) {
        assert!((a[0] - b[0]).abs() < 1e-9 && (a[1] - b[1]).abs() < 1e-9, "{a:?} is not {b:?}");
    }

    #[test]
    fn corners_map_to_corners_and_back() {
        let quad = [[10.0, 12.0], [110.5, 9.0], [121.0, 130.0], [3.0, 118.0]];
        let p = placement(quad, 256, 0.0);
        let back = crate::preprocess::homography::adjugate(&p.homography);
        for (corner, at) in quad.iter().zip([[0.0, 0.0], [256.0, 0.0], [256.0, 256.0], [0.0, 256.0]]) {
            close(p.to_frame(at[0], at[1]), *corner);
            close(apply(&back, corner[0], corner[1]), at);
        }
        close(p.grid_to_frame(64, 16.0, 32.0), p.to_frame(64.0, 128.0));
        let [x, y] = p.to_frame(100.0, 37.0);
        close(apply(&back, x, y), [100.0, 37.0]);
    }

    #[test]
    fn an_inset_leaves_the_edge_out() {
        let p = placement([[0.0, 0.0], [100.0, 0.0], [100.0, 100.0], [0.0, 100.0]], 256, 0.02);
        close(p.to_frame(0.0, 0.0), [2.0, 2.0]);
        close(p.to_frame(256.0, 128.0), [98.0, 50.0]);
        assert_eq!(p.box_to_frame(64, [0.0, 0.0, 64.0, 32.0]).map(|v| v.round()), [2.0, 2.0, 98.0, 50.0]);
    }

    #[test]
    fn a_mask_follows_the_cell() {
        let p = placement([[2.0, 2.0], [6.0, 2.0], [6.0, 6.0], [2.0, 6.0]], 4, 0.0);
        let mut mask = vec![0; 64];
        mask[3 * 8 + 4] = 7;
        let mut out = vec![0; 16];
        p.rectify_mask(&mask, 8, 8, &mut out, 4);
        assert_eq!(out.iter().position(|&v| v == 7), Some(4 + 2));
        assert_eq!(out.iter().filter(|&&v| v != 0).count(), 1);
    }

    #[test]
    fn a_thin_crack_stays_whole_in_a_smaller_mask() {
        let (frame, side) = (720, 256);
        let p = placement([[40.0, 60.0], [660.0, 40.0], [680.0, 660.0], [60.0, 680.0]], side, 0.0);
        // One pixel wide, from the top of the cell to its foot, a little askew.
        let mut mask = vec![0; frame * frame];
        (20..700).for_each(|y| mask[y * frame + 300 + y / 9] = 1);
        let mut out = vec![0; side * side];
        p.rectify_mask(&mask, frame, frame, &mut out, side);
        assert!(out.chunks_exact(side).all(|row| row.contains(&1)), "the crack has gaps");
        assert!(out.iter().filter(|&&v| v != 0).count() < 3 * side, "the crack has grown");
    }

    #[test]
    fn a_line_has_no_homography() {
        assert_eq!(square_to_quad(&[[0.0, 0.0], [5.0, 5.0], [9.0, 9.0], [2.0, 2.0]], 256, 0.0), None);
    }
}
