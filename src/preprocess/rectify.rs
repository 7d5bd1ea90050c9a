//! Resampling: the whole frame, or the quadrilateral in it, onto S×S.

use crate::frame::Frame;

/// One axis of an antialiased bilinear resize, as Pillow's `BILINEAR` and torch's `antialias=True` do it: a triangle as
/// wide as two output pixels (at least two input pixels), normalised.
pub struct Axis {
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
    /// For `size` output pixels, of up to `max` input pixels.
    #[must_use]
    pub fn new(size: usize, max: usize) -> Self {
        let stride = 2 * max.div_ceil(size).max(1) + 2;
        Self { from: 0, first: vec![0; size], count: vec![0; size], weights: vec![0.0; size * stride], stride }
    }

    /// The most taps that an output pixel has.
    #[must_use]
    pub fn most(&self) -> usize {
        self.stride
    }

    /// Makes the weights for `from` input pixels; false if they were there already.
    pub fn prepare(&mut self, from: usize) -> bool {
        if self.from == from {
            return false;
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
        true
    }

    /// The first input pixel of output pixel `at`, and the weights of it and those behind it.
    ///
    /// # Panics
    /// If there is no such output pixel.
    #[must_use]
    pub fn taps(&self, at: usize) -> (usize, &[f32]) {
        (self.first[at] as usize, &self.weights[at * self.stride..][..self.count[at] as usize])
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
                let (first, weights) = self.across.taps(i);
                let taps = &row[first..][..weights.len()];
                *value = taps.iter().zip(weights).map(|(&x, w)| f32::from(x) * w).sum();
            }
        }
        for (i, to) in out.chunks_exact_mut(size).enumerate() {
            to.fill(0.0);
            let (first, weights) = self.down.taps(i);
            for (k, w) in weights.iter().enumerate() {
                let from = &self.rows[(first + k) * size..][..size];
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
///
/// Positions are exact at every eighth output pixel and linear in between, which is within 0.02 frame pixels for any
/// cell a camera sees, in 1/65536 of a frame pixel; the weights are integers of 1/256.
pub(super) fn warp(frame: &Frame, homography: &[f64; 9], scale: f64, size: usize, out: &mut [f32]) {
    let taps = taps(scale);
    let h = homography;
    let (step, half) = (1.0 / taps as f64, (taps - 1) as f64 / 2.0);
    // `as i32` saturates, and turns what is not a number to 0.
    let fixed = |v: f64| (v.clamp(-8192.0, 24576.0) * ONE as f64) as i32;
    let most = (taps - 1) as i32;
    let weight = 1.0 / (65536.0 * (taps * taps) as f32);
    let (pixels, width) = (frame.pixels(), frame.width());
    // Positions at or beyond the last pixel's centre have no right or lower neighbour.
    let (end_x, end_y) = ((width as i32 - 1) * ONE, (frame.height() as i32 - 1) * ONE);
    let exact = |x: f64, y: f64| {
        let w = 1.0 / (h[6] * x + h[7] * y + h[8]);
        ((h[0] * x + h[1] * y + h[2]) * w, (h[3] * x + h[4] * y + h[5]) * w, w)
    };
    for (row, to) in out.chunks_exact_mut(size).enumerate() {
        let y = row as f64 + 0.5;
        for (span, to) in to.chunks_mut(SPAN).enumerate() {
            let n = to.len();
            let x = (span * SPAN) as f64 + 0.5;
            let (px, py, w) = exact(x, y);
            let (qx, qy, _) = exact(x + n as f64, y);
            // The way to the next tap: across by the span's slope, down by the homography's derivative.
            let (xi, yi) = ((qx - px) / n as f64 * step, (qy - py) / n as f64 * step);
            let (xj, yj) = ((h[1] - px * h[7]) * w * step, (h[4] - py * h[7]) * w * step);
            // Pixel centres lie at halves; half a weight's step makes the truncation below a rounding.
            let mut x0 = fixed(px - half * (xi + xj) - 0.5).wrapping_add(ONE / 512);
            let mut y0 = fixed(py - half * (yi + yj) - 0.5).wrapping_add(ONE / 512);
            let (next_x, next_y) = (fixed(xi * taps as f64), fixed(yi * taps as f64));
            let (xi, yi, xj, yj) = (fixed(xi), fixed(yi), fixed(xj), fixed(yj));
            // The four outermost taps of the first and the last pixel tell whether all have their four pixels.
            let last = n as i32 - 1;
            let inside = [0, last].iter().all(|&k| {
                let (x0, y0) = (place(x0, next_x, 0, k, 0), place(y0, next_y, 0, k, 0));
                [(0, 0), (most, 0), (0, most), (most, most)].iter().all(|&(i, j)| {
                    (0..end_x).contains(&place(x0, xi, xj, i, j)) && (0..end_y).contains(&place(y0, yi, yj, i, j))
                })
            });
            for value in to {
                let mut sum = 0;
                let (mut xr, mut yr) = (x0, y0);
                for _ in 0..taps {
                    let (mut x, mut y) = (xr, yr);
                    for _ in 0..taps {
                        sum += if inside {
                            bilinear(pixels, width, x, y)
                        } else {
                            bilinear(pixels, width, x.clamp(0, end_x - 1), y.clamp(0, end_y - 1))
                        };
                        (x, y) = (x.wrapping_add(xi), y.wrapping_add(yi));
                    }
                    (xr, yr) = (xr.wrapping_add(xj), yr.wrapping_add(yj));
                }
                *value = sum as f32 * weight;
                (x0, y0) = (x0.wrapping_add(next_x), y0.wrapping_add(next_y));
            }
        }
    }
}

/// The n of the n×n taps of an output pixel of `scale` frame pixels: see [`warp`].
pub(super) fn taps(scale: f64) -> usize {
    ((scale / 1.5).ceil() as usize).clamp(1, 16)
}

/// Output pixels between two exact positions.
const SPAN: usize = 8;
/// One frame pixel in fixed point.
const ONE: i32 = 1 << 16;

/// The place of tap (i, j), kept from overflowing where a perspective is absurd.
#[inline(always)]
fn place(start: i32, across: i32, down: i32, i: i32, j: i32) -> i32 {
    start.wrapping_add(across.wrapping_mul(i)).wrapping_add(down.wrapping_mul(j))
}

/// The value at a fixed-point place, times 65536; the place must have a right and a lower neighbour.
#[inline(always)]
fn bilinear(pixels: &[u16], width: usize, x: i32, y: i32) -> i64 {
    let first = (y >> 16) as usize * width + (x >> 16) as usize;
    let (tx, ty) = (i64::from((x >> 8) & 255), i64::from((y >> 8) & 255));
    let line = |from: usize| {
        let pair = &pixels[from..from + 2];
        let (a, b) = (i64::from(pair[0]), i64::from(pair[1]));
        a * 256 + tx * (b - a)
    };
    let (top, bottom) = (line(first), line(first + width));
    top * 256 + ty * (bottom - top)
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
        // Positions are rounded to 1/256 of a pixel, and the last pixels have no neighbour to be rounded to.
        assert!(out.iter().zip(frame.pixels()).all(|(a, &b)| (a - f32::from(b)).abs() < 11.0 / 255.0));
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
