//! Bright regions of a frame: threshold, specks removed, pieces of one cell joined.

use crate::frame::Frame;

/// Longest side of the mask. A larger frame is reduced by whole pixels first: the mask only says where to look, and
/// the sides are then fitted on the frame itself.
const MAX_MASK: usize = 512;
/// Two regions are one cell if the gap between them is at most twice this share of the frame's longer side: busbars
/// and cracks cut a cell by less, neighbouring cells are further apart.
const BRIDGE: f64 = 0.012;
/// Regions smaller than this share of the frame are specks.
const SPECK: f64 = 0.0005;
const BINS: usize = 1024;

#[derive(Clone, Copy)]
struct Run {
    row: u16,
    start: u16,
    end: u16,
    label: u32,
}

/// What was found in the mask.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Region {
    /// Pixels of the mask.
    pub area: usize,
    /// Pixels of the second largest region.
    pub second: usize,
    /// Pixels of it that lie on the mask's edge.
    pub on_edge: usize,
}

/// The buffers of the search.
pub(super) struct Segmenter {
    /// Mask width, height, and frame pixels to a mask pixel.
    pub width: usize,
    pub height: usize,
    pub scale: usize,
    means: Vec<u16>,
    mask: Vec<u8>,
    grown: Vec<u8>,
    runs: Vec<Run>,
    parent: Vec<u32>,
    areas: Vec<u32>,
    histogram: Vec<u32>,
    sums: Vec<u32>,
    /// First pixel of the largest region in each row, and one behind its last.
    pub left: Vec<u16>,
    pub right: Vec<u16>,
}

impl Segmenter {
    pub(super) fn new(max_width: usize, max_height: usize) -> Self {
        // A smaller frame is reduced less, so each side can be as long as the frame's or the longest mask.
        let (w, h) = (max_width.min(MAX_MASK), max_height.min(MAX_MASK));
        let runs = h * w.div_ceil(2);
        Self {
            width: 0,
            height: 0,
            scale: 1,
            means: vec![0; w * h],
            mask: vec![0; w * h],
            grown: vec![0; w * h],
            runs: Vec::with_capacity(runs),
            parent: Vec::with_capacity(runs),
            areas: vec![0; runs],
            histogram: vec![0; BINS],
            sums: vec![0; w],
            left: vec![0; h],
            right: vec![0; h],
        }
    }

    /// Reduces the frame to its block means; false if one side is so long that nothing is left of the other.
    pub(super) fn load(&mut self, frame: &Frame) -> bool {
        let scale = frame.width().max(frame.height()).div_ceil(MAX_MASK);
        if frame.width().min(frame.height()) < 3 * scale {
            return false;
        }
        (self.width, self.height, self.scale) = (frame.width() / scale, frame.height() / scale, scale);
        let used = self.width * scale;
        // A block has at most 32×32 pixels (frames end at 16,384) of 16 bits: its sum fits 32 bits.
        // Their mean by one multiplication; it may come out one too small.
        let share = (1u64 << 32) / (scale * scale) as u64;
        for (y, to) in self.means.chunks_exact_mut(self.width).take(self.height).enumerate() {
            if scale == 1 {
                to.copy_from_slice(frame.row(y));
                continue;
            }
            let sums = &mut self.sums[..self.width];
            sums.fill(0);
            for k in 0..scale {
                let row = &frame.row(y * scale + k)[..used];
                if scale == 2 {
                    // The usual case, a 720-pixel camera's, with a length that the compiler knows.
                    sums.iter_mut()
                        .zip(row.as_chunks::<2>().0)
                        .for_each(|(s, [a, b])| *s += u32::from(*a) + u32::from(*b));
                    continue;
                }
                for (s, block) in sums.iter_mut().zip(row.chunks_exact(scale)) {
                    *s += block.iter().map(|&x| u32::from(x)).sum::<u32>();
                }
            }
            to.iter_mut().zip(&*sums).for_each(|(t, s)| *t = ((u64::from(*s) * share) >> 32) as u16);
        }
        true
    }

    /// The threshold (of full scale) that separates dark and bright block means best, and the bright ones' mean.
    pub(super) fn otsu(&mut self, white: u16) -> (f32, f32) {
        let n = self.width * self.height;
        self.histogram.fill(0);
        let per_bin = (u32::from(white) + 1).div_ceil(BINS as u32);
        for &x in &self.means[..n] {
            self.histogram[((u32::from(x) / per_bin) as usize).min(BINS - 1)] += 1;
        }
        let total: f64 = self.histogram.iter().enumerate().map(|(i, &c)| i as f64 * f64::from(c)).sum();
        let (mut count, mut sum) = (0.0, 0.0);
        let mut best = (-1.0, 0.0, 0.0);
        for (i, &c) in self.histogram.iter().enumerate() {
            count += f64::from(c);
            sum += i as f64 * f64::from(c);
            let rest = n as f64 - count;
            if count == 0.0 || rest == 0.0 {
                continue;
            }
            let (dark, bright) = (sum / count, (total - sum) / rest);
            let between = count * rest * (bright - dark).powi(2);
            if between > best.0 {
                best = (between, i as f64 + 1.0, bright);
            }
        }
        let unit = f64::from(per_bin) / f64::from(white);
        ((best.1 * unit).min(1.0) as f32, (best.2 * unit) as f32)
    }

    /// Searches the largest region brighter than `threshold` (of full scale).
    pub(super) fn find(&mut self, threshold: f32, white: u16) -> Region {
        let (w, h) = (self.width, self.height);
        let level = (threshold * f32::from(white)).clamp(0.0, 65535.0) as u16;
        // Majority of 3×3: noise and hot pixels vanish, straight borders stay.
        let means = &self.means[..w * h];
        let grown = &mut self.grown[..w * h];
        grown.iter_mut().zip(means).for_each(|(g, &m)| *g = u8::from(m > level));
        for y in 0..h {
            let [above, row, below] = [y.saturating_sub(1), y, (y + 1).min(h - 1)].map(|r| &self.grown[r * w..][..w]);
            let to = &mut self.mask[y * w..][..w];
            for x in 0..w {
                let (l, r) = (x.saturating_sub(1), (x + 1).min(w - 1));
                let sum = |line: &[u8]| line[l] + line[x] + line[r];
                to[x] = u8::from(sum(above) + sum(row) + sum(below) >= 5);
            }
        }
        self.remove_specks(((w * h) as f64 * SPECK).max(2.0) as u32);
        self.grow(((w.max(h) as f64 * BRIDGE).round() as usize).max(1));
        label(&self.grown[..w * h], w, &mut self.runs, &mut self.parent);
        self.largest()
    }

    fn remove_specks(&mut self, least: u32) {
        let w = self.width;
        label(&self.mask[..w * self.height], w, &mut self.runs, &mut self.parent);
        self.areas[..self.runs.len()].fill(0);
        for run in &self.runs {
            self.areas[run.label as usize] += u32::from(run.end - run.start);
        }
        for run in self.runs.iter().filter(|run| self.areas[run.label as usize] < least) {
            self.mask[usize::from(run.row) * w..][usize::from(run.start)..usize::from(run.end)].fill(0);
        }
    }

    /// Writes the mask, grown by a square of half side `radius`, to `grown`.
    fn grow(&mut self, radius: usize) {
        let (w, h) = (self.width, self.height);
        // Down from the mask, which is needed later, then across in place; 2 marks what came by growing across.
        for y in 0..h {
            let (from, to) = (y.saturating_sub(radius), (y + radius + 1).min(h));
            let out = &mut self.grown[y * w..][..w];
            out.fill(0);
            for row in self.mask[from * w..to * w].chunks_exact(w) {
                out.iter_mut().zip(row).for_each(|(o, m)| *o |= m);
            }
        }
        for row in self.grown[..w * h].chunks_exact_mut(w) {
            grow_along(row.iter_mut(), radius);
            grow_along(row.iter_mut().rev(), radius);
        }
    }

    /// Of the grown regions the one with the most mask pixels.
    fn largest(&mut self) -> Region {
        let (w, h) = (self.width, self.height);
        let pixels = |run: &Run| &self.mask[usize::from(run.row) * w..][usize::from(run.start)..usize::from(run.end)];
        self.areas[..self.runs.len()].fill(0);
        for run in &self.runs {
            self.areas[run.label as usize] += pixels(run).iter().map(|&m| u32::from(m)).sum::<u32>();
        }
        let (mut best, mut second) = ((0, u32::MAX), 0);
        for (label, &area) in self.areas[..self.runs.len()].iter().enumerate() {
            if area > best.0 {
                second = best.0;
                best = (area, label as u32);
            } else {
                second = second.max(area);
            }
        }
        self.left[..h].fill(u16::MAX);
        self.right[..h].fill(0);
        let mut on_edge = 0;
        for run in self.runs.iter().filter(|run| run.label == best.1) {
            let line = pixels(run);
            let Some(first) = line.iter().position(|&m| m == 1) else { continue };
            let last = line.iter().rposition(|&m| m == 1).unwrap_or(first);
            let (row, start) = (usize::from(run.row), usize::from(run.start));
            let (first, end) = (start + first, start + last + 1);
            self.left[row] = self.left[row].min(first as u16);
            self.right[row] = self.right[row].max(end as u16);
            if row == 0 || row == h - 1 {
                on_edge += line.iter().filter(|&&m| m == 1).count();
            } else {
                on_edge += usize::from(first == 0) + usize::from(end == w);
            }
        }
        Region { area: best.0 as usize, second: second as usize, on_edge }
    }
}

/// Marks up to `radius` pixels behind each 1 with 2.
fn grow_along<'a>(pixels: impl Iterator<Item = &'a mut u8>, radius: usize) {
    let mut left = 0;
    for m in pixels {
        if *m == 1 {
            left = radius;
        } else if left > 0 {
            left -= 1;
            *m = 2;
        }
    }
}

/// Lists the runs of pixels that are not 0, and gives those that touch (by a side or a corner) one label: the index of
/// one of them.
fn label(mask: &[u8], width: usize, runs: &mut Vec<Run>, parent: &mut Vec<u32>) {
    runs.clear();
    parent.clear();
    let mut above = 0..0;
    for (y, row) in mask.chunks_exact(width).enumerate() {
        let begin = runs.len();
        let mut x = 0;
        let mut candidate = above.start;
        while let Some(skip) = row[x..].iter().position(|&m| m != 0) {
            let start = x + skip;
            let end = row[start..].iter().position(|&m| m == 0).map_or(width, |k| start + k);
            let index = runs.len() as u32;
            runs.push(Run { row: y as u16, start: start as u16, end: end as u16, label: index });
            parent.push(index);
            while candidate < above.end && usize::from(runs[candidate].end) < start {
                candidate += 1;
            }
            let mut k = candidate;
            while k < above.end && usize::from(runs[k].start) <= end {
                let (a, b) = (root(parent, k as u32), root(parent, index));
                parent[a.max(b) as usize] = a.min(b);
                k += 1;
            }
            x = end;
        }
        above = begin..runs.len();
    }
    for (i, run) in runs.iter_mut().enumerate() {
        run.label = root(parent, i as u32);
    }
}

fn root(parent: &mut [u32], mut i: u32) -> u32 {
    while parent[i as usize] != i {
        parent[i as usize] = parent[parent[i as usize] as usize];
        i = parent[i as usize];
    }
    i
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(rows: &[&str], threshold: f32) -> (Region, Segmenter) {
        let (w, h) = (rows[0].len(), rows.len());
        let pixels = rows.iter().flat_map(|r| r.bytes().map(|b| if b == b'#' { 200 } else { 10 })).collect();
        let mut s = Segmenter::new(w, h);
        assert!(s.load(&Frame::from_pixels(w, h, 255, pixels)));
        (s.find(threshold, 255), s)
    }

    #[test]
    fn pieces_across_a_narrow_gap_are_one_region_and_specks_are_none() {
        let (region, s) = find(
            &[
                "....................",
                "..#######..#######..",
                "..#######..#######..",
                "..#######..#######..",
                "..#######..#######..",
                "..#######..#######..",
                "....................",
                ".................#..",
                "....................",
            ],
            0.2,
        );
        // The majority takes the corners.
        assert_eq!((region.area, region.second, region.on_edge), (70 - 8, 0, 0));
        assert_eq!((s.left[3], s.right[3]), (2, 18));
        assert!(s.left[7] >= s.right[7]);
    }

    #[test]
    fn pieces_far_apart_are_two_regions() {
        let row = "####......##";
        let (region, s) = find(&[row; 6], 0.2);
        assert_eq!((region.area, region.second), (24, 12));
        assert_eq!((s.left[2], s.right[2]), (0, 4));
        assert_eq!(region.on_edge, 4 + 4 + 4);
    }

    #[test]
    fn a_spiral_is_one_region() {
        let mut mask = vec![0u8; 15 * 15];
        let (mut x, mut y, mut d, mut left) = (0usize, 0usize, 0, 14);
        mask[0] = 1;
        while left > 1 {
            for _ in 0..2 {
                for _ in 0..left {
                    match d {
                        0 => x += 1,
                        1 => y += 1,
                        2 => x -= 1,
                        _ => y -= 1,
                    }
                    mask[y * 15 + x] = 1;
                }
                d = (d + 1) % 4;
            }
            left -= 2;
        }
        let (mut runs, mut parent) = (Vec::new(), Vec::new());
        label(&mask, 15, &mut runs, &mut parent);
        assert!(runs.len() > 15 && runs.iter().all(|r| r.label == runs[0].label));
    }

    #[test]
    fn otsu_lies_between_two_levels() {
        for white in [255u16, 4095, 65535] {
            let pixels = (0..64 * 64).map(|i| if i % 64 < 20 { white / 10 } else { white / 2 }).collect();
            let mut s = Segmenter::new(64, 64);
            assert!(s.load(&Frame::from_pixels(64, 64, white, pixels)));
            let (threshold, bright) = s.otsu(white);
            assert!((0.1..0.5).contains(&threshold), "{threshold}");
            assert!((bright - 0.5).abs() < 0.01);
        }
    }

    #[test]
    fn large_frames_are_reduced_and_masks_never_outgrow_their_buffers() {
        let mut s = Segmenter::new(2000, 700);
        for (w, h) in [(2000, 700), (513, 512), (512, 512), (16, 700), (2000, 16), (700, 700)] {
            let checker = (0..w * h).map(|i| if (i % w + i / w) % 2 == 0 { 255 } else { 0 }).collect();
            if s.load(&Frame::from_pixels(w, h, 255, checker)) {
                assert!(s.width <= 512 && s.height <= 512);
                s.find(0.2, 255);
            }
        }
    }
}
