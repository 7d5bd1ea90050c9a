//! How the cell lies in the frame: shifted, turned, scaled and skewed.

use super::canvas::Layout;
use super::chance::{Chance, sin_cos};

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
        let square = square_to_quad(&quad);
        let to_square = adjugate(&square);
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

/// The map that takes the unit square's corners (clockwise from the origin) to `quad` (Heckbert 1989, section 2.2.3).
fn square_to_quad(quad: &[(f64, f64); 4]) -> [f64; 9] {
    let [(x0, y0), (x1, y1), (x2, y2), (x3, y3)] = *quad;
    let (dx1, dx2, sx) = (x1 - x2, x3 - x2, x0 - x1 + x2 - x3);
    let (dy1, dy2, sy) = (y1 - y2, y3 - y2, y0 - y1 + y2 - y3);
    let det = dx1 * dy2 - dx2 * dy1;
    let (g, h) = ((sx * dy2 - dx2 * sy) / det, (dx1 * sy - sx * dy1) / det);
    [x1 - x0 + g * x1, x3 - x0 + h * x3, x0, y1 - y0 + g * y1, y3 - y0 + h * y3, y0, g, h, 1.0]
}

/// The inverse up to a factor, which a projective map does not see.
fn adjugate(m: &[f64; 9]) -> [f64; 9] {
    let minor = |a: usize, b: usize, c: usize, d: usize| m[a] * m[d] - m[b] * m[c];
    [
        minor(4, 5, 7, 8),
        -minor(1, 2, 7, 8),
        minor(1, 2, 4, 5),
        -minor(3, 5, 6, 8),
        minor(0, 2, 6, 8),
        -minor(0, 2, 3, 5),
        minor(3, 4, 6, 7),
        -minor(0, 1, 6, 7),
        minor(0, 1, 3, 4),
    ]
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
