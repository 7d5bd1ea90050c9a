//! How the cell lies in the frame: shifted, turned, scaled and skewed.

use super::canvas::Layout;
use super::chance::{Chance, sin_cos};
use crate::preprocess::homography::{adjugate, unit_square_to_quad};

/// A projective map from frame pixels to canvas pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pose {
    /// Corners of the cell's square in frame pixels, clockwise from top-left.
    pub quad: [(f64, f64); 4],
    /// Row-major 3×3 matrix, frame to canvas.
    pub to_canvas: [f64; 9],
}

impl Pose {
    pub fn draw(frame_size: usize, layout: &Layout, jitter: f64, chance: &mut Chance) -> Self {
        let size = frame_size as f64;
        let scale = 1.0 + jitter * chance.between(-0.012, 0.012);
        let (sin, cos) = sin_cos(jitter * chance.between(-1.3, 1.3));
        let shift = 0.012 * size * jitter;
        let (cx, cy) = (size / 2.0 + shift * chance.between(-1.0, 1.0), size / 2.0 + shift * chance.between(-1.0, 1.0));
        let half = layout.cell / 2.0 * scale;
        let skew = 0.005 * layout.cell * jitter;
        let quad = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)].map(|(sx, sy): (f64, f64)| {
            let (x, y) = (sx * half + skew * chance.between(-1.0, 1.0), sy * half + skew * chance.between(-1.0, 1.0));
            (cx + cos * x - sin * y, cy + sin * x + cos * y)
        });
        let square = unit_square_to_quad(&quad.map(|(x, y)| [x, y]));
        let to_square = adjugate(&square.unwrap_or_else(|| unreachable!("a cell's outline has an area")));
        // The unit square lies on the canvas from `rim` to `rim + cell`.
        let (c, r) = (layout.cell, layout.rim);
        let m = to_square;
        let to_canvas = [
            c * m[0] + r * m[6],
            c * m[1] + r * m[7],
            c * m[2] + r * m[8],
            c * m[3] + r * m[6],
            c * m[4] + r * m[7],
            c * m[5] + r * m[8],
            m[6],
            m[7],
            m[8],
        ];
        Self { quad, to_canvas }
    }
}

#[cfg(test)]
mod tests {
    use super::super::chance::Purpose;
    use super::*;

    #[test]
    fn corners_map_to_the_canvas_square() {
        let layout = Layout::new(720);
        for index in 0..50 {
            let pose = Pose::draw(720, &layout, 2.0, &mut Chance::new(1, index, Purpose::Pose));
            let m = pose.to_canvas;
            let (near, far) = (layout.rim, layout.rim + layout.cell);
            let want = [(near, near), (far, near), (far, far), (near, far)];
            for ((x, y), (u, v)) in pose.quad.into_iter().zip(want) {
                let w = m[6] * x + m[7] * y + m[8];
                let (gu, gv) = ((m[0] * x + m[1] * y + m[2]) / w, (m[3] * x + m[4] * y + m[5]) / w);
                assert!((gu - u).abs() < 1e-6 && (gv - v).abs() < 1e-6, "{gu} {gv} for {u} {v}");
                assert!((0.0..720.0).contains(&x) && (30.0..720.0).contains(&y));
            }
        }
    }
}
