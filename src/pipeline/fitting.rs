//! The fit: good cells in, a model out; on all cores, in constant memory, resumable and in shards.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use crate::backbone::{Pyramid, STAGE_CHANNELS};
use crate::embedding::projection::CHANNELS;
use crate::embedding::{Embedder, Embedding, EmbeddingError, Projection};
use crate::gaussian::fit::BATCH;
use crate::gaussian::shrinkage::FinishError;
use crate::gaussian::{Accumulator, Statistics};
use crate::model::Settings;
use crate::preprocess::{Augmentation, Placement};
use crate::simd::Isa;
use crate::verdict::{Calibration, CalibrationError, Invalid};
use crate::workers::Workers;

use super::outcomes::Outcomes;
use super::{Extractor, PipelineError, Scorer};

/// Good cells whose channels' spread is measured for the standardisation.
const SCALE_CELLS: usize = 64;
/// Held-out cells that take part in a calibration at most: quantiles do not get better by more.
const CALIBRATION_CELLS: usize = 2000;

/// One cell of the data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its name relative to the data set: what the choice of held-out cells and augmentations depend on.
    pub id: String,
    /// Its image.
    pub path: PathBuf,
}

/// Why a fit stopped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FitError {
    /// The pipeline could not be built or run.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The embedding refuses its settings.
    #[error(transparent)]
    Embedding(#[from] EmbeddingError),
    /// The statistics are not sufficient.
    #[error(transparent)]
    Finish(#[from] FinishError),
    /// The calibration is not possible.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// Too many cells could not be used.
    #[error("fitting: {skipped} of {of} cells could not be used, the first is {first}: {why}")]
    Skipped {
        /// Cells that could not be used.
        skipped: u64,
        /// Cells tried.
        of: u64,
        /// The first of them.
        first: String,
        /// Why it could not be used.
        why: String,
    },
    /// The caller asked for it.
    #[error("fitting: interrupted")]
    Interrupted,
}

/// A cell that could not be used, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Skipped {
    /// The cell.
    pub id: String,
    /// Why.
    pub reason: Invalid,
}

/// How the cells of a data set are used.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Cells for the statistics, of all shards, in the data set's order.
    pub fit: Vec<Cell>,
    /// Cells for the calibration.
    pub held_out: Vec<Cell>,
    /// BLAKE3 over all ids in order.
    pub list: [u8; 32],
}

impl Plan {
    /// Holds out the share that the settings ask for, cell by cell by a hash of seed and id: the same cells whatever
    /// the shard, the machine or the order.
    #[must_use]
    pub fn new(cells: Vec<Cell>, settings: &Settings) -> Self {
        let mut hasher = blake3::Hasher::new();
        for cell in &cells {
            hasher.update(cell.id.as_bytes());
            hasher.update(&[0]);
        }
        let list = *hasher.finalize().as_bytes();
        let limit = (settings.holdout * 2f64.powi(64)) as u64;
        let (mut held_out, fit): (Vec<Cell>, Vec<Cell>) =
            cells.into_iter().partition(|cell| rank(settings.seed, b"holdout", &cell.id) < limit);
        held_out.sort_by_key(|cell| rank(settings.seed, b"calibrate", &cell.id));
        held_out.truncate(CALIBRATION_CELLS);
        Self { fit, held_out, list }
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

/// A number that depends on seed, purpose and id alone.
fn rank(seed: u64, purpose: &[u8], id: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(purpose);
    hasher.update(id.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

/// Extractors for all cores.
pub struct Fitter {
    extractors: Vec<Extractor>,
    workers: Arc<Workers>,
    isa: Isa,
}

impl Fitter {
    /// One thread for each extractor.
    ///
    /// # Panics
    /// If there is no extractor.
    #[must_use]
    pub fn new(extractors: Vec<Extractor>) -> Self {
        assert!(!extractors.is_empty(), "a fit needs an extractor");
        let workers = Arc::new(Workers::new(extractors.len()));
        Self { extractors, workers, isa: Isa::detect() }
    }

    /// Threads at work.
    #[must_use]
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Calls `each(extractor, index)` for the indices from 0 to `count − 1`, each on some thread; `chunk` neighbours go
    /// to one thread one after another.
    fn each<T: Send>(
        &mut self,
        count: usize,
        chunk: usize,
        states: &mut [T],
        each: impl Fn(&mut Extractor, &mut T, usize) + Sync,
    ) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for (extractor, state) in self.extractors.iter_mut().zip(states) {
                let (next, each) = (&next, &each);
                scope.spawn(move || {
                    loop {
                        let first = next.fetch_add(chunk, Ordering::Relaxed);
                        if first >= count {
                            return;
                        }
                        (first..count.min(first + chunk)).for_each(|index| each(extractor, state, index));
                    }
                });
            }
        });
    }

    /// What each channel is multiplied by before W: 1/σ over all pixels of `cells`, or 1 if `settings` ask for no
    /// standardisation.
    ///
    /// Rounded to 8 bits of mantissa, so that shards on different CPUs come to the same numbers.
    ///
    /// # Errors
    /// If no cell can be used, or the backbone refuses.
    pub fn channel_scale(&mut self, cells: &[Cell], settings: &Settings) -> Result<Vec<f32>, FitError> {
        if !settings.standardise {
            return Ok(vec![1.0; CHANNELS]);
        }
        let moments = Outcomes::new(cells.len());
        let mut states = vec![(); self.extractors.len()];
        self.each(cells.len(), 1, &mut states, |extractor, (), index| {
            let outcome = extractor.load(&cells[index].path).and_then(|_| {
                extractor
                    .features(Augmentation::default())
                    .map(ChannelMoments::of)
                    .map_err(|e| Invalid::Unreadable(e.to_string()))
            });
            moments.set(index, outcome);
        });
        let mut sum = ChannelMoments::default();
        let mut skipped = Vec::new();
        for (moments, cell) in moments.into_all().zip(cells) {
            match moments {
                Some(Ok(moments)) => sum.add(&moments),
                Some(Err(reason)) => skipped.push(Skipped { id: cell.id.clone(), reason }),
                None => {}
            }
        }
        check_skipped(&skipped, cells.len() as u64, 0.5)?;
        Ok(sum.scale())
    }

    /// Takes the images of `cells` into `moments`, from image number `done` on, in batches of [`BATCH`]; after each
    /// batch `progress` hears how far it is and may stop the fit, which then ends with [`FitError::Interrupted`] and
    /// `moments` and `done` as after that batch.
    ///
    /// The result does not depend on the number of threads, nor on where it was interrupted.
    ///
    /// # Errors
    /// If the backbone refuses or `progress` says so.
    pub fn accumulate(
        &mut self,
        cells: &[Cell],
        settings: &Settings,
        projection: &Projection,
        moments: &mut Accumulator,
        done: &mut u64,
        mut progress: impl FnMut(u64, Vec<Skipped>) -> ControlFlow<()>,
    ) -> Result<(), FitError> {
        let (grid, k) = (settings.grid as usize, settings.k as usize);
        let copies = u64::from(settings.augment.images_per_cell());
        let total = cells.len() as u64 * copies;
        // One image a thread: nobody shares one's work.
        let alone = Arc::new(Workers::new(1));
        let mut embedders: Vec<(Embedder, Option<usize>)> = self
            .extractors
            .iter()
            .map(|e| (Embedder::new(projection, e.size(), grid, self.isa, Arc::clone(&alone)), None))
            .collect();
        let slots: Vec<Mutex<Slot>> =
            (0..BATCH).map(|_| Mutex::new(Slot { embedding: Embedding::new(grid, k), outcome: Ok(()) })).collect();
        let mut slots = slots;
        let chunk = (copies as usize).min(BATCH / self.extractors.len()).max(1);
        while *done < total {
            let first = *done;
            let count = ((total - first) as usize).min(BATCH);
            self.each(count, chunk, &mut embedders, |extractor, (embedder, loaded), index| {
                let image = first + index as u64;
                let (cell, copy) = ((image / copies) as usize, (image % copies) as u32);
                let mut slot = slots[index].lock().unwrap_or_else(PoisonError::into_inner);
                let Slot { embedding, outcome } = &mut *slot;
                let change = settings.augment.draw(settings.seed, rank(0, b"cell", &cells[cell].id), copy);
                *outcome = (|| {
                    if *loaded != Some(cell) {
                        *loaded = None;
                        extractor.load(&cells[cell].path)?;
                        *loaded = Some(cell);
                    }
                    let pyramid = extractor.features(change).map_err(|e| Invalid::Unreadable(e.to_string()))?;
                    embedder.project(pyramid);
                    embedder.read_into(embedding);
                    if embedding.values().iter().all(|y| y.is_finite()) { Ok(()) } else { Err(Invalid::NotFinite) }
                })();
            });
            let mut batch = Vec::with_capacity(count);
            let mut skipped = Vec::new();
            for (index, slot) in slots.iter_mut().take(count).enumerate() {
                let Slot { embedding, outcome } = slot.get_mut().unwrap_or_else(PoisonError::into_inner);
                let image = first + index as u64;
                match std::mem::replace(outcome, Ok(())) {
                    Ok(()) => batch.push(&*embedding),
                    // A cell and all its copies fail alike: it is named once.
                    Err(reason) if image.is_multiple_of(copies) => {
                        skipped.push(Skipped { id: cells[(image / copies) as usize].id.clone(), reason });
                    }
                    Err(_) => {}
                }
            }
            moments.update(&batch, self.isa, &self.workers);
            *done += count as u64;
            if progress(*done, skipped).is_break() && *done < total {
                return Err(FitError::Interrupted);
            }
        }
        Ok(())
    }

    /// Measures cells: `tell(index, scores)` hears of each as it is done, on whichever thread did it.
    ///
    /// # Errors
    /// If `tell` says so.
    pub fn score(
        &mut self,
        cells: &[Cell],
        settings: &Settings,
        projection: &Projection,
        tell: impl Fn(usize, &mut Scorer, Result<Placement, Invalid>) -> ControlFlow<()> + Sync,
    ) -> Result<(), FitError> {
        let alone = Arc::new(Workers::new(1));
        let scorers: Vec<Scorer> = std::mem::take(&mut self.extractors)
            .into_iter()
            .map(|extractor| Scorer::new(settings, projection, extractor, Arc::clone(&alone)))
            .collect();
        let next = AtomicUsize::new(0);
        let stopped = AtomicUsize::new(0);
        let threads: Vec<_> = std::thread::scope(|scope| {
            let handles: Vec<_> = scorers
                .into_iter()
                .map(|mut scorer| {
                    let (next, stopped, tell) = (&next, &stopped, &tell);
                    scope.spawn(move || {
                        loop {
                            let index = next.fetch_add(1, Ordering::Relaxed);
                            if index >= cells.len() || stopped.load(Ordering::Relaxed) > 0 {
                                return scorer.into_extractor();
                            }
                            let loaded = scorer
                                .load(&cells[index].path)
                                .and_then(|placement| scorer.project().map(|()| placement));
                            if tell(index, &mut scorer, loaded).is_break() {
                                stopped.store(1, Ordering::Relaxed);
                            }
                        }
                    })
                })
                .collect();
            handles.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        for extractor in threads {
            match extractor {
                Ok(extractor) => self.extractors.push(extractor),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        if stopped.load(Ordering::Relaxed) > 0 { Err(FitError::Interrupted) } else { Ok(()) }
    }

    /// Calibrates statistics on held-out good cells.
    ///
    /// # Errors
    /// If too many cells cannot be used, too few are left, or `progress` says so.
    pub fn calibrate(
        &mut self,
        held_out: &[Cell],
        settings: &Settings,
        projection: &Projection,
        statistics: &Statistics<'_>,
        progress: impl Fn(u64) -> ControlFlow<()> + Sync,
    ) -> Result<(Calibration, Vec<Skipped>), FitError> {
        let measured = Outcomes::new(held_out.len());
        let count = AtomicUsize::new(0);
        self.score(held_out, settings, projection, |index, scorer, loaded| {
            let outcome = loaded.and_then(|placement| {
                let scores = scorer.measure(statistics)?;
                let mut sorted = scorer.heatmap().to_vec();
                sorted.sort_by(f32::total_cmp);
                Ok((scores, sorted[sorted.len() - 1 - sorted.len() / 500], placement.brightness))
            });
            measured.set(index, outcome);
            progress(count.fetch_add(1, Ordering::Relaxed) as u64 + 1)
        })?;
        let (mut scores, mut tops, mut brightness, mut skipped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (measured, cell) in measured.into_all().zip(held_out) {
            match measured {
                Some(Ok((score, top, mean))) => {
                    scores.push(score);
                    tops.push(top);
                    brightness.push(mean);
                }
                Some(Err(reason)) => skipped.push(Skipped { id: cell.id.clone(), reason }),
                None => {}
            }
        }
        check_skipped(&skipped, held_out.len() as u64, 0.5)?;
        tops.sort_by(f32::total_cmp);
        // A position is a defect if fewer than two in a thousand lie above it in all but one good cell of a hundred.
        let region = if tops.is_empty() { 0.0 } else { crate::verdict::quantile(&tops, 0.99) };
        let calibration = Calibration::new(settings.score, &scores, region, &brightness, settings.overkill)?;
        Ok((calibration, skipped))
    }
}

/// Refuses to go on if more than `share` of the cells could not be used.
///
/// # Errors
/// Names how many and the first of them.
pub fn check_skipped(skipped: &[Skipped], of: u64, share: f64) -> Result<(), FitError> {
    match skipped.first() {
        Some(first) if skipped.len() as f64 > share * of as f64 => Err(FitError::Skipped {
            skipped: skipped.len() as u64,
            of,
            first: first.id.clone(),
            why: first.reason.to_string(),
        }),
        _ => Ok(()),
    }
}

struct Slot {
    embedding: Embedding,
    outcome: Result<(), Invalid>,
}

/// Sums over the pixels of pyramids, for each of the 960 channels.
#[derive(Clone, Debug)]
struct ChannelMoments {
    count: [f64; 4],
    sum: Vec<f64>,
    squares: Vec<f64>,
}

impl Default for ChannelMoments {
    fn default() -> Self {
        Self { count: [0.0; 4], sum: vec![0.0; CHANNELS], squares: vec![0.0; CHANNELS] }
    }
}

impl ChannelMoments {
    fn of(pyramid: &Pyramid) -> Self {
        let mut moments = Self::default();
        let mut first = 0;
        for (stage, &channels) in STAGE_CHANNELS.iter().enumerate() {
            let sums = &mut moments.sum[first..first + channels];
            let squares = &mut moments.squares[first..first + channels];
            for pixel in pyramid.map(stage).chunks_exact(channels) {
                for ((sum, square), &x) in sums.iter_mut().zip(squares.iter_mut()).zip(pixel) {
                    *sum += f64::from(x);
                    *square += f64::from(x) * f64::from(x);
                }
            }
            moments.count[stage] = pyramid.side(stage).pow(2) as f64;
            first += channels;
        }
        moments
    }

    fn add(&mut self, other: &Self) {
        self.count.iter_mut().zip(other.count).for_each(|(a, b)| *a += b);
        self.sum.iter_mut().zip(&other.sum).for_each(|(a, b)| *a += b);
        self.squares.iter_mut().zip(&other.squares).for_each(|(a, b)| *a += b);
    }

    /// 1/σ of each channel; 0 for a channel that never changes, which tells nothing.
    fn scale(&self) -> Vec<f32> {
        let mut scale = Vec::with_capacity(CHANNELS);
        for (stage, &channels) in STAGE_CHANNELS.iter().enumerate() {
            let n = self.count[stage].max(1.0);
            for _ in 0..channels {
                let channel = scale.len();
                let mean = self.sum[channel] / n;
                let variance = self.squares[channel] / n - mean * mean;
                let deviation = variance.max(0.0).sqrt() as f32;
                let usable = deviation.is_finite() && f64::from(deviation) > 1e-6 * (1.0 + mean.abs());
                scale.push(if usable { rounded(1.0 / deviation) } else { 0.0 });
            }
        }
        scale
    }
}

/// A positive float rounded to 8 bits of mantissa.
fn rounded(x: f32) -> f32 {
    f32::from_bits((x.to_bits() + (1 << 14)) & !((1 << 15) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(n: usize) -> Vec<Cell> {
        (0..n).map(|i| Cell { id: format!("c{i:05}"), path: PathBuf::new() }).collect()
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
    fn the_scale_is_one_over_the_deviation_and_zero_for_dead_channels() {
        let mut pyramid = Pyramid::new(64);
        for (stage, channels) in STAGE_CHANNELS.into_iter().enumerate() {
            for (i, x) in pyramid.map_mut(stage).iter_mut().enumerate() {
                let (pixel, channel) = (i / channels, i % channels);
                *x = if channel == 0 { 3.0 } else { 5.0 + if pixel % 2 == 0 { 0.25 } else { -0.25 } };
            }
        }
        let scale = ChannelMoments::of(&pyramid).scale();
        assert_eq!(scale.len(), CHANNELS);
        assert_eq!(scale[0], 0.0);
        assert!((scale[1] - 4.0).abs() < 0.02);
        assert_eq!(scale[64], 0.0);
        assert_eq!(rounded(1.0), 1.0);
        assert!((rounded(1.2345) / 1.2345 - 1.0).abs() < 1.0 / 256.0);
    }
}
