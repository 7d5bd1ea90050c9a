//! The heatmap of a cell: distances smoothed, scored and cut into regions.

pub mod overlay;

use std::fmt;

use serde::{Deserialize, Serialize};

/// Regions that a verdict can carry.
pub const MAX_REGIONS: usize = 8;

/// Share of a region's peak from which positions count for its box and area.
const CORE: f32 = 0.25;

/// Which number of the heatmap is the score of the cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScoreKind {
    /// Mean of the largest 1 % of positions: a lone noisy position does not reject a cell.
    Top,
    /// The largest position.
    Max,
    /// Mean of all positions.
    Mean,
}

impl fmt::Display for ScoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Top => "top",
            Self::Max => "max",
            Self::Mean => "mean",
        })
    }
}

impl std::str::FromStr for ScoreKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Top, Self::Max, Self::Mean]
            .into_iter()
            .find(|kind| kind.to_string() == name)
            .ok_or_else(|| format!("`{name}`: one of top, max, mean"))
    }
}

/// The numbers of one heatmap, in Mahalanobis distance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Mean of the largest 1 % of positions.
    pub top: f32,
    /// The largest position.
    pub max: f32,
    /// Mean of all positions.
    pub mean: f32,
}

impl Scores {
    /// The one that `kind` names.
    #[must_use]
    pub fn get(&self, kind: ScoreKind) -> f32 {
        match kind {
            ScoreKind::Top => self.top,
            ScoreKind::Max => self.max,
            ScoreKind::Mean => self.mean,
        }
    }
}

/// A connected part of the heatmap above a level, in positions of the grid; see [`Analyser::regions`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// First column.
    pub left: u16,
    /// First row.
    pub top: u16,
    /// Column after the last.
    pub right: u16,
    /// Row after the last.
    pub bottom: u16,
    /// Positions that reach a quarter of the peak.
    pub area: u32,
    /// Largest distance in it.
    pub peak: f32,
}

/// Up to [`MAX_REGIONS`] regions, highest peak first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Regions {
    found: [Region; MAX_REGIONS],
    len: usize,
    /// How many there were in all, kept or not.
    pub total: usize,
}

impl Regions {
    /// Those that were kept.
    #[must_use]
    pub fn as_slice(&self) -> &[Region] {
        &self.found[..self.len]
    }

    /// Regions that another backend found, highest peak first, of which there were `total`; those past [`MAX_REGIONS`] are
    /// dropped.
    #[must_use]
    pub fn from_found(found: impl IntoIterator<Item = Region>, total: usize) -> Self {
        let mut regions = Self { total, ..Self::default() };
        for (to, region) in regions.found.iter_mut().zip(found) {
            *to = region;
            regions.len += 1;
        }
        regions
    }

    fn insert(&mut self, region: Region) {
        self.total += 1;
        let at = self.as_slice().partition_point(|r| r.peak >= region.peak);
        if at < MAX_REGIONS {
            self.len = (self.len + 1).min(MAX_REGIONS);
            self.found[at..self.len].rotate_right(1);
            self.found[at] = region;
        }
    }
}

/// Smooths, scores and cuts heatmaps of one size in buffers of its own, allocating nothing after it was made.
#[derive(Clone, Debug)]
pub struct Analyser {
    grid: usize,
    kernel: Vec<f32>,
    scratch: Vec<f32>,
    visited: Vec<bool>,
    members: Vec<u32>,
}

impl Analyser {
    /// For `grid` × `grid` heatmaps, smoothed by a Gaussian of `sigma` positions (0 for none) cut at 3σ.
    #[must_use]
    pub fn new(grid: usize, sigma: f32) -> Self {
        let radius = (3.0 * sigma).ceil() as usize;
        let mut kernel: Vec<f32> =
            (0..=radius).map(|i| if i == 0 { 1.0 } else { (-0.5 * (i as f32 / sigma).powi(2)).exp() }).collect();
        let sum = 2.0 * kernel.iter().sum::<f32>() - kernel[0];
        kernel.iter_mut().for_each(|w| *w /= sum);
        Self {
            grid,
            kernel,
            scratch: vec![0.0; grid * grid],
            visited: vec![false; grid * grid],
            members: Vec::with_capacity(grid * grid),
        }
    }

    /// One half of the smoothing's window, from its middle on: all of what another backend must know to smooth alike.
    #[must_use]
    pub fn window(&self) -> &[f32] {
        &self.kernel
    }

    /// Smooths in place; past the border the map continues with its border values.
    ///
    /// # Panics
    /// If the map is not grid² long.
    pub fn smooth(&mut self, map: &mut [f32]) {
        let grid = self.grid;
        assert_eq!(map.len(), grid * grid, "a heatmap of another size");
        if self.kernel.len() == 1 {
            return;
        }
        for (row, out) in map.chunks_exact(grid).zip(self.scratch.chunks_exact_mut(grid)) {
            out.iter_mut().zip(row).for_each(|(o, x)| *o = self.kernel[0] * x);
            for (i, w) in self.kernel.iter().enumerate().skip(1) {
                // What lies `i` columns inside the border needs no look at it, and is done in vectors.
                let inside = i.min(grid)..grid.saturating_sub(i).max(i.min(grid));
                for x in (0..inside.start).chain(inside.end..grid) {
                    out[x] += w * (row[x.saturating_sub(i)] + row[(x + i).min(grid - 1)]);
                }
                let neighbours = row.iter().zip(row.get(2 * i..).unwrap_or_default());
                out[inside].iter_mut().zip(neighbours).for_each(|(o, (left, right))| *o += w * (left + right));
            }
        }
        for (y, out) in map.chunks_exact_mut(grid).enumerate() {
            let row = |y: usize| &self.scratch[y * grid..][..grid];
            out.iter_mut().zip(row(y)).for_each(|(o, x)| *o = self.kernel[0] * x);
            for (i, w) in self.kernel.iter().enumerate().skip(1) {
                let (above, below) = (row(y.saturating_sub(i)), row((y + i).min(grid - 1)));
                out.iter_mut().zip(above).zip(below).for_each(|((o, a), b)| *o += w * (a + b));
            }
        }
    }

    /// The scores of a map, or nothing if any number of it is not finite.
    ///
    /// # Panics
    /// If the map is not grid² long.
    pub fn scores(&mut self, map: &[f32]) -> Option<Scores> {
        assert_eq!(map.len(), self.scratch.len(), "a heatmap of another size");
        if !map.iter().all(|m| m.is_finite()) {
            return None;
        }
        self.scratch.copy_from_slice(map);
        let count = map.len().div_ceil(100);
        let (top, _, _) = self.scratch.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
        let max = top.iter().copied().fold(f32::MIN, f32::max);
        let top = &self.scratch[..count];
        Some(Scores {
            top: top.iter().sum::<f32>() / count as f32,
            max: max.max(top[count - 1]),
            mean: map.iter().sum::<f32>() / map.len() as f32,
        })
    }

    /// The connected parts (8 neighbours) of the map that lie above `level`. A strong defect lifts the distance far
    /// around it, by the width of what the network sees: box and area are those of the positions that reach a quarter
    /// of the part's own peak.
    ///
    /// # Panics
    /// If the map is not grid² long.
    pub fn regions(&mut self, map: &[f32], level: f32) -> Regions {
        let grid = self.grid;
        assert_eq!(map.len(), grid * grid, "a heatmap of another size");
        self.visited.fill(false);
        let mut regions = Regions::default();
        for start in 0..map.len() {
            if self.visited[start] || map[start].partial_cmp(&level) != Some(std::cmp::Ordering::Greater) {
                continue;
            }
            self.members.clear();
            self.members.push(start as u32);
            self.visited[start] = true;
            let (mut read, mut peak) = (0, map[start]);
            while let Some(&at) = self.members.get(read) {
                read += 1;
                peak = peak.max(map[at as usize]);
                let (y, x) = (at as usize / grid, at as usize % grid);
                for ny in y.saturating_sub(1)..(y + 2).min(grid) {
                    for nx in x.saturating_sub(1)..(x + 2).min(grid) {
                        let next = ny * grid + nx;
                        if map[next] > level && !std::mem::replace(&mut self.visited[next], true) {
                            self.members.push(next as u32);
                        }
                    }
                }
            }
            let mut region = Region { left: u16::MAX, top: u16::MAX, right: 0, bottom: 0, area: 0, peak };
            for &at in self.members.iter().filter(|&&at| map[at as usize] >= CORE * peak) {
                let (y, x) = ((at as usize / grid) as u16, (at as usize % grid) as u16);
                (region.left, region.top) = (region.left.min(x), region.top.min(y));
                (region.right, region.bottom) = (region.right.max(x + 1), region.bottom.max(y + 1));
                region.area += 1;
            }
            regions.insert(region);
        }
        regions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_a_flat_map_and_spreads_a_peak_evenly() {
        let mut analyser = Analyser::new(16, 1.5);
        let mut flat = vec![2.0; 256];
        analyser.smooth(&mut flat);
        assert!(flat.iter().all(|x| (x - 2.0).abs() < 1e-5));
        let mut peak = vec![0.0; 256];
        peak[8 * 16 + 8] = 1.0;
        analyser.smooth(&mut peak);
        assert!((peak.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert_eq!(peak[8 * 16 + 6], peak[8 * 16 + 10]);
        assert!((peak[6 * 16 + 8] - peak[8 * 16 + 6]).abs() < 1e-7);
    }

    #[test]
    fn smoothing_is_the_sum_over_a_map_that_goes_on_past_its_border() {
        for (grid, sigma) in [(16, 1.0), (16, 2.0), (4, 2.0), (3, 1.0), (1, 1.0)] {
            let mut analyser = Analyser::new(grid, sigma);
            let map: Vec<f32> = (0..grid * grid).map(|i| (i * 7 % 23) as f32).collect();
            let mut smooth = map.clone();
            analyser.smooth(&mut smooth);
            let radius = analyser.kernel.len() as isize - 1;
            let inside = |at: usize, by: isize| (at as isize + by).clamp(0, grid as isize - 1) as usize;
            for (at, got) in smooth.iter().enumerate() {
                let terms = (-radius..=radius).flat_map(|dy| (-radius..=radius).map(move |dx| (dy, dx)));
                let want: f32 = terms
                    .map(|(dy, dx)| {
                        let weight = analyser.kernel[dy.unsigned_abs()] * analyser.kernel[dx.unsigned_abs()];
                        weight * map[inside(at / grid, dy) * grid + inside(at % grid, dx)]
                    })
                    .sum();
                assert!((got - want).abs() < 1e-4, "{grid}, σ = {sigma}, {at}: {got} for {want}");
            }
        }
    }

    #[test]
    fn scores_are_top_max_and_mean_and_refuse_what_is_not_finite() {
        let mut analyser = Analyser::new(20, 0.0);
        let mut map: Vec<f32> = (0..400).map(|i| (i * 7 % 400) as f32).collect();
        let scores = analyser.scores(&map).unwrap();
        assert_eq!(scores, Scores { top: (399.0 + 398.0 + 397.0 + 396.0) / 4.0, max: 399.0, mean: 199.5 });
        map[17] = f32::NAN;
        assert_eq!(analyser.scores(&map), None);
        map[17] = f32::INFINITY;
        assert_eq!(analyser.scores(&map), None);
    }

    #[test]
    fn regions_are_boxes_by_peak_and_the_rest_is_counted() {
        let mut analyser = Analyser::new(32, 0.0);
        let mut map = vec![0.0; 1024];
        for (i, at) in (0..12).map(|i| (i, (i / 4) * 8 * 32 + (i % 4) * 8)) {
            map[at] = 5.0 + i as f32;
            map[at + 33] = 4.0; // touches by a corner
        }
        let regions = analyser.regions(&map, 3.0);
        assert_eq!((regions.total, regions.as_slice().len()), (12, MAX_REGIONS));
        let first = regions.as_slice()[0];
        assert_eq!(first, Region { left: 24, top: 16, right: 26, bottom: 18, area: 2, peak: 16.0 });
        assert!(regions.as_slice().windows(2).all(|w| w[0].peak >= w[1].peak));
        assert_eq!(analyser.regions(&map, 100.0).total, 0);
    }

    #[test]
    fn a_strong_defect_is_boxed_by_its_core_and_a_weak_one_beside_it_is_kept() {
        let mut analyser = Analyser::new(16, 0.0);
        let mut map = vec![0.0; 256];
        (0..6).for_each(|y| (0..6).for_each(|x| map[y * 16 + x] = 10.0));
        map[2 * 16 + 3] = 1000.0;
        map[12 * 16 + 12] = 8.0;
        let regions = analyser.regions(&map, 5.0);
        assert_eq!(regions.as_slice()[0], Region { left: 3, top: 2, right: 4, bottom: 3, area: 1, peak: 1000.0 });
        assert_eq!(regions.as_slice()[1], Region { left: 12, top: 12, right: 13, bottom: 13, area: 1, peak: 8.0 });
    }
}
