//! The cell before the camera: a square grid over the cell and a rim around it, in the cell's own axes.

use super::chance::{bell, smooth};

/// Shares of the frame's side: the cell, and the rim drawn around it for the glow.
const CELL_SHARE: f64 = 0.82;
const RIM_SHARE: f64 = 0.03;
/// Share of the cell's side that each cut corner takes.
const CHAMFER: f64 = 0.085;

/// Where things lie on the canvas, in canvas pixels (one canvas pixel is about one frame pixel).
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Canvas pixels in a row.
    pub side: usize,
    /// Columns before the cell begins.
    pub rim: f64,
    /// The cell's side.
    pub cell: f64,
    /// Length unit: one pixel of a 720-pixel frame.
    pub unit: f64,
}

impl Layout {
    pub fn new(frame_size: usize) -> Self {
        let cell = (frame_size as f64 * CELL_SHARE).round();
        let rim = (frame_size as f64 * RIM_SHARE).ceil();
        Self { side: (cell + 2.0 * rim) as usize, rim, cell, unit: frame_size as f64 / 720.0 }
    }

    /// The cell's middle, on both axes.
    pub fn middle(&self) -> f64 {
        self.rim + self.cell / 2.0
    }

    /// Signed distance to the outline with its cut corners, negative inside.
    pub fn outside(&self, x: f64, y: f64) -> f64 {
        let half = self.cell / 2.0;
        let (dx, dy) = ((x - self.middle()).abs(), (y - self.middle()).abs());
        let cut = (dx + dy - (2.0 - 2.0 * CHAMFER) * half) * std::f64::consts::FRAC_1_SQRT_2;
        (dx - half).max(dy - half).max(cut)
    }

    /// Brightness of a bare cell by the distance to its outline: dull at the edge, a faint glow around it.
    pub fn edge(&self, outside: f64) -> f64 {
        let alpha = smooth(0.5 - outside / (4.5 * self.unit));
        let depth = -outside.min(0.0) / self.unit;
        let inner = 1.0 - 0.16 * bell(depth / 4.0) - 0.05 * bell(depth / 30.0);
        let glow = 0.06 * bell(outside.max(0.0) / (6.0 * self.unit));
        alpha * inner + (1.0 - alpha) * glow
    }
}

/// The canvas of one cell: its brightness, the shade of the defect being drawn, and the mask by defect number.
#[derive(Clone, Debug, Default)]
pub(super) struct Canvas {
    pub side: usize,
    /// Relative brightness, about 1 on a good cell.
    pub gain: Vec<f32>,
    /// Share of light that the defect being drawn takes away, 0 to 1; all 0 between defects.
    shade: Vec<f32>,
    /// Number of the defect, from 1; 0 for none.
    pub owner: Vec<u8>,
    /// Part of the canvas where `shade` may differ from 0: first and last column and row.
    dirty: Option<[usize; 4]>,
}

/// The shade from which on a pixel belongs to its defect.
const VISIBLE: f32 = 0.10;

impl Canvas {
    /// Makes the canvas fit, without a shade or a mask; `gain` is left for the texture to fill.
    pub fn clear(&mut self, side: usize) {
        if self.side != side || self.gain.len() != side * side {
            self.side = side;
            self.gain.resize(side * side, 0.0);
            self.shade.clear();
            self.shade.resize(side * side, 0.0);
            self.owner.resize(side * side, 0);
        }
        self.owner.fill(0);
        self.dirty = None;
    }

    /// Darkens by `shade(x, y)` (where it is more than what is there) in the given box of canvas coordinates.
    pub fn shade(&mut self, [x0, y0, x1, y1]: [f64; 4], shade: impl Fn(f64, f64) -> f64) {
        let last = self.side as f64 - 1.0;
        if x1 < 0.0 || y1 < 0.0 || x0 > last || y0 > last {
            return;
        }
        let (x0, x1) = (x0.clamp(0.0, last) as usize, x1.clamp(0.0, last).ceil() as usize);
        let (y0, y1) = (y0.clamp(0.0, last) as usize, y1.clamp(0.0, last).ceil() as usize);
        for y in y0..=y1 {
            let row = &mut self.shade[y * self.side..][..self.side];
            for (x, old) in row.iter_mut().enumerate().take(x1 + 1).skip(x0) {
                let new = shade(x as f64 + 0.5, y as f64 + 0.5) as f32;
                *old = old.max(new);
            }
        }
        let d = self.dirty.get_or_insert([x0, y0, x1, y1]);
        *d = [d[0].min(x0), d[1].min(y0), d[2].max(x1), d[3].max(y1)];
    }

    /// Takes the light away where it was shaded and, for a defect's `number`, marks the pixels inside the cell.
    pub fn settle(&mut self, number: Option<u8>, inside: &[u8]) {
        let Some([x0, y0, x1, y1]) = self.dirty.take() else { return };
        for y in y0..=y1 {
            let row = y * self.side + x0..y * self.side + x1 + 1;
            let pixels = self.shade[row.clone()].iter_mut().zip(&mut self.gain[row.clone()]);
            for ((shade, gain), (owner, &inside)) in pixels.zip(self.owner[row.clone()].iter_mut().zip(&inside[row])) {
                let shade = std::mem::take(shade);
                *gain *= 1.0 - shade.min(1.0);
                if let Some(number) = number
                    && shade > VISIBLE
                    && inside != 0
                {
                    *owner = number;
                }
            }
        }
    }

    /// Darkens a round dot with soft edges.
    pub fn dot(&mut self, x: f64, y: f64, radius: f64, depth: f64) {
        let radius = radius.max(0.6);
        let reach = radius * 1.5 + 1.0;
        self.shade([x - reach, y - reach, x + reach, y + reach], |px, py| {
            let r = ((px - x) * (px - x) + (py - y) * (py - y)).sqrt();
            depth * smooth(1.25 - 0.75 * r / radius)
        });
    }

    /// Darkens a line from `a` to `b`: a core of the given half width, and a faint wide shoulder.
    pub fn line(&mut self, a: (f64, f64), b: (f64, f64), half: f64, depth: f64, shoulder: f64) {
        // Thinner than a pixel, a line would come and go.
        let half = half.max(0.6);
        let reach = 5.0 * half + 1.0;
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        let length2 = (dx * dx + dy * dy).max(1e-9);
        let (x0, x1) = (a.0.min(b.0) - reach, a.0.max(b.0) + reach);
        let (y0, y1) = (a.1.min(b.1) - reach, a.1.max(b.1) + reach);
        self.shade([x0, y0, x1, y1], |x, y| {
            let t = (((x - a.0) * dx + (y - a.1) * dy) / length2).clamp(0.0, 1.0);
            let (ex, ey) = (x - a.0 - t * dx, y - a.1 - t * dy);
            let d = (ex * ex + ey * ey).sqrt();
            (depth * smooth(1.35 - 0.7 * d / half)).max(shoulder * smooth(1.0 - d / (5.0 * half)))
        });
    }
}
