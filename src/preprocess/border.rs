//! The cell's four corners in a frame.
//!
//! The mask says which bright region is the cell and roughly where its sides lie; each side is then measured on the
//! frame itself: along its normal, in many places, the point half way between the dark outside and the bright inside.
//! A straight line through those points, chosen so that chamfers, broken corners and dark stretches of the edge have
//! no say, is the side. Pieces cut apart by dark busbars or cracks are one cell (see `segment`), and the convex hull
//! bridges what is dark between them.

use super::polygon::{Line, Point, Simplifier, area2, corners, distance, four_sides, hull_of_rows};
use super::segment::Segmenter;
use super::{PreprocessConfig, Refusal, Threshold};
use crate::frame::Frame;

/// Places along a side in which its edge is measured.
const PLACES: usize = 80;
/// Longest profile across an edge, in half pixels.
const MAX_PROFILE: usize = 128;
/// A quadrilateral much larger than the region's hull is not the cell's: a square with corners cut at 12 % keeps 0.97,
/// a circle 0.79.
const MIN_HULL: f64 = 0.85;
/// The region is allowed to run along the frame's edge for this share of the longer side.
const EDGE_SHARE: f64 = 0.01;

/// The cell's outline.
pub(super) struct Outline {
    pub quad: [Point; 4],
    /// Pixels brighter than the threshold.
    pub bright: f64,
    pub threshold: f32,
    /// Share of the mean side.
    pub edge_width: f32,
}

/// The buffers of the search.
pub(super) struct Finder {
    segmenter: Segmenter,
    hull: Vec<Point>,
    polygon: Vec<Point>,
    simplifier: Simplifier,
}

impl Finder {
    pub(super) fn new(max_width: usize, max_height: usize) -> Self {
        let segmenter = Segmenter::new(max_width, max_height);
        // Two points for each row boundary of the mask.
        let points = 2 * segmenter.left.len() + 4;
        Self {
            segmenter,
            hull: Vec::with_capacity(points),
            polygon: Vec::with_capacity(points),
            simplifier: Simplifier::new(points),
        }
    }

    /// Finds the cell; `low` and `high` are the frame's smallest and largest pixel.
    pub(super) fn run(
        &mut self,
        frame: &Frame,
        low: u16,
        high: u16,
        config: &PreprocessConfig,
    ) -> Result<Outline, Refusal> {
        let white = f32::from(frame.white());
        let limit = config.gates.min_area.unwrap_or(0.0).max(0.001);
        if !self.segmenter.load(frame) {
            return Err(Refusal::NoCell { area: 0.0, limit });
        }
        let spread = f32::from(high - low) / white;
        let threshold = match config.threshold {
            Threshold::Fixed(share) => share,
            // A frame of one brightness has no two classes.
            Threshold::Otsu if spread < 2.0 / 255.0 => return Err(Refusal::NoCell { area: 0.0, limit }),
            Threshold::Otsu => self.segmenter.otsu(frame.white()).0,
        };
        let region = self.segmenter.find(threshold, frame.white());
        let total = (self.segmenter.width * self.segmenter.height) as f32;
        let share = region.area as f32 / total;
        if share < limit {
            return Err(self.dim(frame, threshold, limit).unwrap_or(Refusal::NoCell { area: share, limit }));
        }
        let second = region.second as f32 / region.area as f32;
        if let Some(limit) = config.gates.second_cell.filter(|&limit| second >= limit) {
            return Err(Refusal::SeveralCells { share: second, limit });
        }
        let scale = self.segmenter.scale as f64;
        self.outline();
        let area = area2(&self.hull) / 2.0;
        let bright = region.area as f64 * scale * scale;
        if config.gates.min_fill.is_some_and(|low| bright < f64::from(low) * area) {
            // Scattered brightness, as noise makes it.
            return Err(Refusal::NoCell { area: share, limit });
        }
        let longer = frame.width().max(frame.height()) as f64;
        let on_edge = region.on_edge as f64 * scale;
        if config.gates.reject_cropped && on_edge > (EDGE_SHARE * longer).max(2.0 * scale) {
            return Err(Refusal::Cropped { length: on_edge as u32 });
        }
        let epsilon = scale.max(0.005 * area.sqrt());
        let sides = four_sides(&self.hull, epsilon, &mut self.simplifier, &mut self.polygon)
            .map_err(|vertices| Refusal::NotQuadrilateral { vertices })?;
        let odd = Refusal::NotQuadrilateral { vertices: self.polygon.len() as u32 };
        let coarse = corners(&sides).filter(|quad| sound(quad, frame)).ok_or(odd)?;
        if area < MIN_HULL * area2(&coarse) / 2.0 {
            return Err(odd);
        }
        let side = (area2(&coarse) / 2.0).sqrt();
        let reach = (8.0 + 2.0 * scale).max(0.02 * side);
        let (quad, width) = refine(frame, &coarse, reach, threshold).filter(|(q, _)| sound(q, frame)).ok_or(odd)?;
        let near = (0.008 * side).max(5.0).max(1.5 * width);
        let quad = refine(frame, &quad, near, threshold).map(|(q, _)| q).filter(|q| sound(q, frame)).unwrap_or(quad);
        Ok(Outline { quad, bright, threshold, edge_width: (width / side) as f32 })
    }

    fn outline(&mut self) {
        let s = &self.segmenter;
        hull_of_rows(&s.left[..s.height], &s.right[..s.height], s.scale as f64, &mut self.hull);
    }

    /// Below the threshold there may still be a cell: then the frame is dim, which says more than that it is empty.
    fn dim(&mut self, frame: &Frame, threshold: f32, limit: f32) -> Option<Refusal> {
        let (otsu, mean) = self.segmenter.otsu(frame.white());
        if otsu >= threshold {
            return None;
        }
        let region = self.segmenter.find(otsu, frame.white());
        self.outline();
        let scale = self.segmenter.scale as f64;
        let total = (self.segmenter.width * self.segmenter.height) as f32;
        // Noise is scattered over the whole frame; a cell is solid and ends before the frame does.
        let solid = region.area as f64 * scale * scale > 0.7 * area2(&self.hull) / 2.0;
        let apart = region.on_edge * 20 < self.segmenter.width + self.segmenter.height;
        let large = region.area as f32 > limit * total;
        (solid && apart && large).then_some(Refusal::Dim { mean, limit: threshold })
    }
}

/// Whether four corners are those of a convex clockwise quadrilateral that lies on the frame. A chamfered cell's
/// corners may lie outside of it by a little.
fn sound(quad: &[Point; 4], frame: &Frame) -> bool {
    let (w, h) = (frame.width() as f64, frame.height() as f64);
    let inside = |p: &Point| p[0] > -0.15 * w && p[0] < 1.15 * w && p[1] > -0.15 * h && p[1] < 1.15 * h;
    let convex = (0..4).all(|i| area2(&[quad[i], quad[(i + 1) % 4], quad[(i + 2) % 4]]) > 16.0);
    convex && quad.iter().all(inside)
}

/// Measures each side within `reach` pixels of `quad`'s; returns the new corners and the edge's width in pixels.
fn refine(frame: &Frame, quad: &[Point; 4], reach: f64, threshold: f32) -> Option<([Point; 4], f64)> {
    let mut widths = [0.0; 4 * PLACES];
    let mut count = 0;
    let mut sides = [Line { at: [0.0; 2], along: [0.0; 2] }; 4];
    for (i, side) in sides.iter_mut().enumerate() {
        let (a, b) = (quad[i], quad[(i + 1) % 4]);
        let line = Line::through(a, b);
        let outward = [line.along[1], -line.along[0]];
        let length = distance(a, b);
        let mut points = [[0.0; 2]; PLACES];
        let mut n = 0;
        for place in 0..PLACES {
            let t = length * (0.04 + 0.92 * (place as f64 + 0.5) / PLACES as f64);
            let at = [a[0] + t * line.along[0], a[1] + t * line.along[1]];
            if let Some(edge) = measure_edge(frame, at, line.along, outward, reach, threshold) {
                points[n] = [t, edge.offset];
                widths[count] = edge.width;
                n += 1;
                count += 1;
            }
        }
        *side = match fit_line(&points[..n]) {
            Some((offset, slope)) => {
                let point = |t: f64| {
                    let s = offset + slope * t;
                    [a[0] + t * line.along[0] + s * outward[0], a[1] + t * line.along[1] + s * outward[1]]
                };
                Line::through(point(0.0), point(length))
            }
            // Too little of this side can be seen: it stays where the outline had it.
            None => line,
        };
    }
    // Where no edge could be measured there is none to be called sharp.
    let width = if count == 0 {
        2.0 * reach
    } else {
        widths[..count].sort_unstable_by(f64::total_cmp);
        widths[count / 2]
    };
    Some((corners(&sides)?, width))
}

struct Edge {
    /// Pixels outward.
    offset: f64,
    /// Pixels from dark to bright.
    width: f64,
}

/// The edge near `at`: where brightness passes half way between outside and inside, coming from outside.
fn measure_edge(frame: &Frame, at: Point, along: Point, outward: Point, reach: f64, threshold: f32) -> Option<Edge> {
    let n = ((4.0 * reach) as usize + 1).min(MAX_PROFILE);
    let first = (n - 1) as f64 / 4.0;
    let mut profile = [0.0f32; MAX_PROFILE];
    let profile = &mut profile[..n];
    for (k, value) in profile.iter_mut().enumerate() {
        let s = first - 0.5 * k as f64;
        let p = [at[0] + s * outward[0], at[1] + s * outward[1]];
        // Three samples along the edge calm the noise.
        *value = [-1.0, 0.0, 1.0].iter().map(|t| sample(frame, p[0] + t * along[0], p[1] + t * along[1])).sum::<f32>();
        *value *= 1.0 / 3.0;
    }
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
    let outside = mean(&profile[..n / 5]);
    let inside = mean(&profile[n - n / 3..]);
    let contrast = inside - outside;
    if contrast < 0.3 * threshold * f32::from(frame.white()) {
        return None;
    }
    let level = |share: f32| outside + share * contrast;
    let pass = |k: usize, level: f32| {
        let (a, b) = (profile[k], profile[k + 1]);
        k as f64 + f64::from((level - a) / (b - a).max(f32::MIN_POSITIVE)).clamp(0.0, 1.0)
    };
    // Two samples in a row must be bright, so that one noisy pixel is not the edge.
    let half = level(0.5);
    let k = (0..n - 2).find(|&k| profile[k] < half && profile[k + 1] >= half && profile[k + 2] >= half)?;
    let middle = pass(k, half);
    let low = (0..=k).rev().find(|&k| profile[k] <= level(0.2)).map(|k| pass(k, level(0.2)));
    let high = (k..n - 1).find(|&k| profile[k + 1] >= level(0.8)).map(|k| pass(k, level(0.8)));
    // Samples are half a pixel apart, and 0.6 of the contrast lies between the two.
    let width = match (low, high) {
        (Some(low), Some(high)) => (high - low) * 0.5 / 0.6,
        _ => 2.0 * reach,
    };
    Some(Edge { offset: first - 0.5 * middle, width })
}

/// Bilinear, in continuous coordinates; outside the frame its nearest pixel.
fn sample(frame: &Frame, x: f64, y: f64) -> f32 {
    let (w, h) = (frame.width(), frame.height());
    let x = ((x - 0.5) as f32).max(0.0).min((w - 1) as f32);
    let y = ((y - 0.5) as f32).max(0.0).min((h - 1) as f32);
    let (ix, iy) = ((x as usize).min(w - 2), (y as usize).min(h - 2));
    let (tx, ty) = (x - ix as f32, y - iy as f32);
    let line = |row: &[u16]| f32::from(row[ix]) + tx * (f32::from(row[ix + 1]) - f32::from(row[ix]));
    let (top, bottom) = (line(frame.row(iy)), line(frame.row(iy + 1)));
    top + ty * (bottom - top)
}

/// The line `offset + slope·t` through most of the points [t, s]: of all lines through two points far apart the one
/// with the smallest sum of squared distances, each cut off at one pixel (MSAC), then least squares over the points
/// within two pixels, twice, the second time within one. `None` if fewer than a quarter of the places or a third of
/// the points agree.
fn fit_line(points: &[Point]) -> Option<(f64, f64)> {
    let n = points.len();
    if n < PLACES / 4 {
        return None;
    }
    let mut best = (f64::INFINITY, (0.0, 0.0));
    for i in (0..n).step_by(2) {
        for j in (i + n / 3..n).step_by(3) {
            let ([t0, s0], [t1, s1]) = (points[i], points[j]);
            let slope = (s1 - s0) / (t1 - t0);
            let offset = s0 - slope * t0;
            let mut cost = 0.0;
            for [t, s] in points {
                cost += (s - offset - slope * t).powi(2).min(1.0);
                if cost >= best.0 {
                    break;
                }
            }
            if cost < best.0 {
                best = (cost, (offset, slope));
            }
        }
    }
    let mut line = best.1;
    for within in [2.0, 1.0] {
        let (mut m, mut st, mut ss, mut stt, mut sts) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for [t, s] in points.iter().filter(|[t, s]| (s - line.0 - line.1 * t).abs() < within) {
            m += 1.0;
            st += t;
            ss += s;
            stt += t * t;
            sts += t * s;
        }
        let det = m * stt - st * st;
        if m < n as f64 / 3.0 || det < 1e-9 {
            return None;
        }
        let slope = (m * sts - st * ss) / det;
        line = ((ss - slope * st) / m, slope);
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_to_the_many() {
        let mut points: Vec<Point> = (0..80).map(|i| [f64::from(i) * 8.0, 3.0 - 0.01 * f64::from(i)]).collect();
        // A broken corner, a dark stretch and a spike.
        for (i, p) in points.iter_mut().enumerate() {
            match i {
                0..12 => p[1] -= 20.0 - i as f64,
                40..55 => p[1] -= 6.0,
                70 => p[1] += 9.0,
                _ => {}
            }
        }
        let (offset, slope) = fit_line(&points).unwrap();
        assert!((offset - 3.0).abs() < 1e-9 && (slope + 0.01 / 8.0).abs() < 1e-9, "{offset} {slope}");
        assert_eq!(fit_line(&points[..10]), None);
        let scattered: Vec<Point> = (0..80).map(|i| [f64::from(i) * 8.0, f64::from(i * 37 % 80)]).collect();
        assert_eq!(fit_line(&scattered), None);
    }

    #[test]
    fn an_edge_is_found_to_a_fraction_of_a_pixel_and_its_width_told() {
        for (position, width) in [(30.3, 1.0), (30.7, 1.0), (32.0, 4.0), (29.5, 8.0)] {
            let pixels = (0..64 * 64)
                .map(|i| {
                    let x = f64::from(i % 64) + 0.5 - position;
                    (20.0 + 160.0 * (0.5 - x / width).clamp(0.0, 1.0)).round() as u16
                })
                .collect();
            let frame = Frame::from_pixels(64, 64, 255, pixels);
            let edge = measure_edge(&frame, [31.0, 32.0], [0.0, 1.0], [1.0, 0.0], 12.0, 0.2).unwrap();
            assert!((31.0 + edge.offset - position).abs() < 0.1, "{position}: {}", 31.0 + edge.offset);
            assert!((edge.width - width).abs() < 1.0, "{width}: {}", edge.width);
        }
    }
}
