//! The cells of a data set, and which of them are for what.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::model::Settings;
use crate::model::partial::Origin;
use crate::synth::{DRAWING, Generator, SynthError};

/// Good cells whose channels' spread is measured for the standardisation.
const SCALE_CELLS: usize = 64;
/// Held-out cells that take part in a calibration at most: quantiles do not get better by more.
const CALIBRATION_CELLS: usize = 2000;

/// Where a cell's image comes from.
#[derive(Clone, Debug)]
pub enum Image {
    /// A file, read when it is needed.
    File(PathBuf),
    /// A synthetic cell, drawn when it is needed: no disk is involved.
    Drawn {
        /// The line that makes it.
        line: Arc<Generator>,
        /// Its number.
        index: u64,
    },
}

/// One cell of the data set.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Its name relative to the data set: what the choice of held-out cells and augmentations depend on.
    pub id: String,
    /// Its image.
    pub image: Image,
}

impl Cell {
    /// A cell whose image lies in a file.
    #[must_use]
    pub fn file(id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { id: id.into(), image: Image::File(path.into()) }
    }

    /// The file that its image lies in, if it lies in one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        if let Image::File(path) = &self.image { Some(path) } else { None }
    }

    /// Synthetic cell `index` of a line, named as the file that `cellgate synth` would write it to: a fit to drawn
    /// cells is to the bit that to the files.
    #[must_use]
    pub fn drawn(line: &Arc<Generator>, index: u64) -> Self {
        Self { id: line.file_name(index), image: Image::Drawn { line: Arc::clone(line), index } }
    }
}

/// How the cells of a data set are used.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Cells for the statistics, of all shards, in the data set's order.
    pub fit: Vec<Cell>,
    /// Cells for the calibration.
    pub held_out: Vec<Cell>,
    /// BLAKE3 over all ids in order.
    pub list: [u8; 32],
}

impl Plan {
    /// Holds out the share that the settings ask for, but at most 2,000 cells, by a hash of seed and id: the same cells
    /// whatever the shard, the machine or the order. All others are fitted.
    #[must_use]
    pub fn new(cells: Vec<Cell>, settings: &Settings) -> Self {
        let mut hasher = blake3::Hasher::new();
        for cell in &cells {
            hasher.update(cell.id.as_bytes());
            hasher.update(&[0]);
        }
        let list = *hasher.finalize().as_bytes();
        let limit = (settings.holdout * 2f64.powi(64)) as u64;
        let mut held: Vec<usize> =
            (0..cells.len()).filter(|&i| rank(settings.seed, b"holdout", &cells[i].id) < limit).collect();
        held.sort_by_cached_key(|&i| rank(settings.seed, b"calibrate", &cells[i].id));
        held.truncate(CALIBRATION_CELLS);
        let held_out: Vec<Cell> = held.iter().map(|&i| cells[i].clone()).collect();
        held.sort_unstable();
        let mut fit = cells;
        let mut index = 0;
        fit.retain(|_| {
            index += 1;
            held.binary_search(&(index - 1)).is_err()
        });
        Self { fit, held_out, list }
    }

    /// Where the cells come from, and which are held out. All must be files, or all drawn by one line.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match self.fit.iter().chain(&self.held_out).map(|cell| &cell.image).next() {
            Some(Image::Drawn { line, .. }) => {
                let index = |cell: &Cell| if let Image::Drawn { index, .. } = cell.image { Some(index) } else { None };
                let held_out = self.held_out.iter().filter_map(index).collect();
                Origin::Drawn { drawing: DRAWING, seed: line.seed(), config: line.config().clone(), held_out }
            }
            _ => {
                let path = |cell: &Cell| cell.path().map(|path| path.display().to_string());
                Origin::Files { held_out: self.held_out.iter().filter_map(path).collect() }
            }
        }
    }

    /// The cells that one of several shards takes: every `shards`-th.
    ///
    /// # Panics
    /// If `shards` is 0.
    #[must_use]
    pub fn shard(&self, shard: u32, shards: u32) -> Vec<Cell> {
        assert!(shards > 0, "at least one shard");
        self.fit.iter().skip(shard as usize).step_by(shards as usize).cloned().collect()
    }

    /// The cells whose channels' spread is measured; the same for all shards.
    #[must_use]
    pub fn scale_cells(&self, seed: u64) -> Vec<Cell> {
        let mut cells: Vec<&Cell> = self.fit.iter().collect();
        cells.sort_by_key(|cell| rank(seed, b"scale", &cell.id));
        cells.into_iter().take(SCALE_CELLS).cloned().collect()
    }
}

/// Why the held-out cells of a partial fit cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OriginError {
    /// Their line cannot be made.
    #[error(transparent)]
    Synth(#[from] SynthError),
    /// They were drawn by another version of the generator.
    #[error(
        "the fit drew its synthetic cells with drawing {found}, this cellgate has drawing {DRAWING}: the held-out \
         cells would be others; calibrate on other cells, or fit again"
    )]
    Drawing {
        /// The version in the partial fit.
        found: u32,
    },
}

/// The held-out cells that a partial fit names.
///
/// # Errors
/// If they were drawn and cannot be drawn again.
pub fn held_out(origin: &Origin) -> Result<Vec<Cell>, OriginError> {
    match origin {
        Origin::Files { held_out } => Ok(held_out.iter().map(|path| Cell::file(path, path)).collect()),
        Origin::Drawn { drawing, .. } if *drawing != DRAWING => Err(OriginError::Drawing { found: *drawing }),
        Origin::Drawn { seed, config, held_out, .. } => {
            let line = Arc::new(Generator::new(config.clone(), *seed)?);
            Ok(held_out.iter().map(|&index| Cell::drawn(&line, index)).collect())
        }
    }
}

/// A number that depends on seed, purpose and id alone.
pub(super) fn rank(seed: u64, purpose: &[u8], id: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(purpose);
    hasher.update(id.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(n: usize) -> Vec<Cell> {
        (0..n).map(|i| Cell::file(format!("c{i:05}"), "")).collect()
    }

    #[test]
    fn shards_cover_the_fit_once_and_held_out_cells_do_not_depend_on_order() {
        let settings = Settings::default();
        let plan = Plan::new(cells(2000), &settings);
        let share = plan.held_out.len() as f64 / 2000.0;
        assert!((share - settings.holdout).abs() < 0.03, "{share}");
        let mut ids: Vec<String> = (0..7).flat_map(|s| plan.shard(s, 7)).map(|c| c.id).collect();
        ids.sort();
        let all: Vec<String> = plan.fit.iter().map(|c| c.id.clone()).collect();
        assert_eq!(ids, all);
        let mut reversed = cells(2000);
        reversed.reverse();
        let backward = Plan::new(reversed, &settings);
        let sorted = |cells: &[Cell]| {
            let mut ids: Vec<String> = cells.iter().map(|c| c.id.clone()).collect();
            ids.sort();
            ids
        };
        assert_eq!(sorted(&plan.held_out), sorted(&backward.held_out));
        assert_ne!(plan.list, backward.list);
        assert_eq!(plan.scale_cells(1).len(), SCALE_CELLS);
    }

    #[test]
    fn no_more_are_held_out_than_a_calibration_uses_and_no_cell_is_lost() {
        let plan = Plan::new(cells(30_000), &Settings::default());
        assert_eq!((plan.fit.len(), plan.held_out.len()), (28_000, CALIBRATION_CELLS));
        let mut ids: Vec<&str> = plan.fit.iter().chain(&plan.held_out).map(|c| c.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 30_000);
        assert!(plan.fit.is_sorted_by_key(|c| &c.id));
    }
}
