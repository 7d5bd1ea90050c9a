//! Resampling: the whole frame, or the quadrilateral in it, onto S×S.

use crate::frame::Frame;

/// One axis of an antialiased bilinear resize, as Pillow's `BILINEAR` and torch's `antialias=True` do it: a triangle as
/// wide as two output pixels (at least two input pixels), normalised.
struct Axis {
    /// Input pixels of the last frame; the weights are kept while it stays.
    from: usize,
    /// First tap of each output pixel.
    first: Vec<u32>,
    /// Taps of each output pixel.
    count: Vec<u32>,
    /// `stride` weights an output pixel.
    weights: Vec<f32>,
    stride: usize,
}

impl Axis {
    fn new(size: usize, max: usize) -> Self {
        let stride = 2 * max.div_ceil(size).max(1) + 2;
        Self { from: 0, first: vec![0; size], count: vec![0; size], weights: vec![0.0; size * stride], stride }
    }

    fn prepare(&mut self, from: usize) {
        if self.from == from {
            return;
        }
        self.from = from;
        let scale = from as f64 / self.first.len() as f64;
        let support = scale.max(1.0);
        for i in 0..self.first.len() {
            let centre = (i as f64 + 0.5) * scale;
            let low = (centre - support + 0.5).floor().max(0.0) as usize;
            let high = ((centre + support + 0.5).floor() as usize).min(from).min(low + self.stride);
            let weights = &mut self.weights[i * self.stride..][..high - low];
            let mut sum = 0.0;
            for (k, w) in weights.iter_mut().enumerate() {
                let t = 1.0 - (((low + k) as f64 + 0.5 - centre) / support).abs();
                *w = t.max(0.0) as f32;
                sum += t.max(0.0);
            }
            weights.iter_mut().for_each(|w| *w = (f64::from(*w) / sum) as f32);
            (self.first[i], self.count[i]) = (low as u32, (high - low) as u32);
        }
    }
}

/// The buffers of the resize.
pub(super) struct Resizer {
    size: usize,
    across: Axis,
    down: Axis,
    /// The frame's rows, each already `size` wide.
    rows: Vec<f32>,
}

impl Resizer {
    pub(super) fn new(size: usize, max_width: usize, max_height: usize) -> Self {
        Self {
            size,
            across: Axis::new(size, max_width),
            down: Axis::new(size, max_height),
            rows: vec![0.0; size * max_height],
        }
    }

    /// Writes the frame, in the frame's own units, to the `size²` values of `out`.
    pub(super) fn run(&mut self, frame: &Frame, out: &mut [f32]) {
        let size = self.size;
        self.across.prepare(frame.width());
        self.down.prepare(frame.height());
        for (y, to) in self.rows.chunks_exact_mut(size).take(frame.height()).enumerate() {
            let row = frame.row(y);
            for (i, value) in to.iter_mut().enumerate() {
                let count = self.across.count[i] as usize;
                let taps = &row[self.across.first[i] as usize..][..count];
                let weights = &self.across.weights[i * self.across.stride..][..count];
                *value = taps.iter().zip(weights).map(|(&x, w)| f32::from(x) * w).sum();
            }
        }
        for (i, to) in out.chunks_exact_mut(size).enumerate() {
            to.fill(0.0);
            let count = self.down.count[i] as usize;
            for (k, w) in self.down.weights[i * self.down.stride..][..count].iter().enumerate() {
                let from = &self.rows[(self.down.first[i] as usize + k) * size..][..size];
                to.iter_mut().zip(from).for_each(|(t, f)| *t += w * f);
            }
        }
    }
}

/// Writes the quadrilateral behind `homography` (rectified point → frame point), in the frame's own units, to the
/// `size²` values of `out`. Points outside the frame take its nearest pixel.
///
/// Each output pixel is the mean of n×n bilinear taps, n = ⌈scale/1.5⌉ for `scale` frame pixels an output pixel. Taps
/// 1 to 1.5 pixels apart under a bilinear kernel act as a box as wide as the output pixel (at scale 2.6, where n = 2:
/// 0.25 against the box's 0.26 at 0.3 cycles a frame pixel, 0.18 against 0.20 at 0.5), so fingers do not alias.
pub(super) fn warp(frame: &Frame, homography: &[f64; 9], scale: f64, size: usize, out: &mut [f32]) {
    let taps = ((scale / 1.5).ceil() as usize).clamp(1, 16);
    let step = 1.0 / taps as f64;
    let weight = 1.0 / (taps * taps) as f32;
    let h = homography;
    let (width, height) = (frame.width(), frame.height());
    let pixels = frame.pixels();
    let (max_x, max_y) = ((width - 1) as f32, (height - 1) as f32);
    // The last tap's cell starts one pixel before the frame's end, so that its four pixels exist.
    let (last_x, last_y) = (width.saturating_sub(2), height.saturating_sub(2));
    for (row, to) in out.chunks_exact_mut(size).enumerate() {
        to.fill(0.0);
        for j in 0..taps {
            let y = row as f64 + (j as f64 + 0.5) * step;
            let (bx, by, bw) = (h[1] * y + h[2], h[4] * y + h[5], h[7] * y + h[8]);
            for i in 0..taps {
                let x0 = (i as f64 + 0.5) * step;
                for (column, value) in to.iter_mut().enumerate() {
                    let x = column as f64 + x0;
                    let w = 1.0 / (h[6] * x + bw);
                    // Pixel centres lie at halves. `max` and `min` also take care of what is not a number.
                    let fx = (((h[0] * x + bx) * w - 0.5) as f32).max(0.0).min(max_x);
                    let fy = (((h[3] * x + by) * w - 0.5) as f32).max(0.0).min(max_y);
                    let (ix, iy) = ((fx as usize).min(last_x), (fy as usize).min(last_y));
                    let (tx, ty) = (fx - ix as f32, fy - iy as f32);
                    let at = iy * width + ix;
                    let top = &pixels[at..at + 2];
                    let bottom = &pixels[at + width..at + width + 2];
                    let a = f32::from(top[0]) + tx * (f32::from(top[1]) - f32::from(top[0]));
                    let b = f32::from(bottom[0]) + tx * (f32::from(bottom[1]) - f32::from(bottom[0]));
                    *value += a + ty * (b - a);
                }
            }
        }
        to.iter_mut().for_each(|v| *v *= weight);
    }
}

/// Mean of the values, and root mean square of their four-neighbour Laplacian divided by that mean (0 for black).
pub(super) fn measure(image: &[f32], size: usize) -> (f32, f32) {
    let mean = image.iter().map(|&v| f64::from(v)).sum::<f64>() / image.len() as f64;
    let mut energy = 0.0f64;
    for y in 1..size - 1 {
        let [above, row, below] = [y - 1, y, y + 1].map(|r| &image[r * size..][..size]);
        let sum: f32 = (1..size - 1)
            .map(|x| {
                let l = above[x] + below[x] + row[x - 1] + row[x + 1] - 4.0 * row[x];
                l * l
            })
            .sum();
        energy += f64::from(sum);
    }
    let rms = (energy / ((size - 2) * (size - 2)) as f64).sqrt();
    (mean as f32, if mean > 0.0 { (rms / mean) as f32 } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::placement::square_to_quad;

    fn ramp(width: usize, height: usize) -> Frame {
        let pixels = (0..width * height).map(|i| (7 * (i % width) + 3 * (i / width)) as u16).collect();
        Frame::from_pixels(width, height, 65535, pixels)
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let frame = ramp(64, 64);
        let mut out = vec![0.0; 64 * 64];
        Resizer::new(64, 64, 64).run(&frame, &mut out);
        assert!(out.iter().zip(frame.pixels()).all(|(a, &b)| (a - f32::from(b)).abs() < 1e-3));
        let quad = [[0.0, 0.0], [64.0, 0.0], [64.0, 64.0], [0.0, 64.0]];
        warp(&frame, &square_to_quad(&quad, 64, 0.0).unwrap(), 1.0, 64, &mut out);
        assert!(out.iter().zip(frame.pixels()).all(|(a, &b)| (a - f32::from(b)).abs() < 1e-3));
    }

    #[test]
    fn a_resizer_serves_frames_of_several_sizes() {
        let mut resizer = Resizer::new(64, 300, 200);
        let mut out = vec![0.0; 64 * 64];
        for (w, h) in [(300, 200), (16, 16), (33, 150), (300, 200)] {
            resizer.run(&Frame::from_pixels(w, h, 255, vec![200; w * h]), &mut out);
            assert!(out.iter().all(|v| (v - 200.0).abs() < 1e-3), "{w}×{h}");
            resizer.run(&ramp(w, h), &mut out);
            // A ramp's middle stays where it is.
            let middle = (out[31 * 64 + 31] + out[32 * 64 + 32]) / 2.0;
            let expected = 7.0 * (w as f32 - 1.0) / 2.0 + 3.0 * (h as f32 - 1.0) / 2.0;
            assert!((middle - expected).abs() < 0.05, "{w}×{h}: {middle} against {expected}");
        }
    }

    #[test]
    fn shrinking_does_not_alias_a_fine_grating() {
        // Period 2 in the frame is far above what 2.6-fold shrinking can show: it must turn grey.
        let pixels = (0..680 * 680).map(|i| if i % 2 == 0 { 200 } else { 0 }).collect();
        let frame = Frame::from_pixels(680, 680, 255, pixels);
        let quad = [[3.0, 3.0], [676.0, 2.0], [677.0, 676.5], [2.5, 677.0]];
        let mut out = vec![0.0; 256 * 256];
        warp(&frame, &square_to_quad(&quad, 256, 0.0).unwrap(), 2.63, 256, &mut out);
        let worst = out.iter().map(|v| (v - 100.0).abs()).fold(0.0, f32::max);
        assert!(worst < 40.0, "{worst}");
    }

    #[test]
    fn sharpness_is_zero_for_a_ramp_and_grows_with_texture() {
        let flat: Vec<f32> = (0..64 * 64).map(|i| 10.0 + (i % 64) as f32).collect();
        assert!(measure(&flat, 64).1 < 1e-5);
        let rough: Vec<f32> = (0..64 * 64).map(|i| if (i % 64 + i / 64) % 2 == 0 { 10.0 } else { 20.0 }).collect();
        let (mean, sharpness) = measure(&rough, 64);
        assert!((mean - 15.0).abs() < 1e-5 && sharpness > 2.0);
        assert_eq!(measure(&vec![0.0; 64 * 64], 64), (0.0, 0.0));
    }
}
