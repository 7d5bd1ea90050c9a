//! The fit: good cells in, a model out; on all cores, in constant memory, resumable and in shards.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

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

use super::channel_scale::ChannelMoments;
use super::outcomes::Outcomes;
use super::plan::rank;
pub use super::plan::{Cell, Image, OriginError, Plan, held_out};
use super::spent::{Spent, since};
use super::{Extractor, PipelineError, Scorer};

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

/// Extractors for all cores.
pub struct Fitter {
    extractors: Vec<Extractor>,
    workers: Arc<Workers>,
    isa: Isa,
    spent: Spent,
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
        Self { extractors, workers, isa: Isa::detect(), spent: Spent::default() }
    }

    /// Threads at work.
    #[must_use]
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Where the time of [`accumulate`](Self::accumulate) went so far.
    #[must_use]
    pub fn spent(&self) -> Spent {
        self.spent
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
    /// Rounded to 8 bits of mantissa: shards on different CPUs likely come to the same numbers, and a merge refuses those
    /// that do not.
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
            let outcome = extractor.load(&cells[index].image).and_then(|_| {
                extractor
                    .features(Augmentation::default())
                    .map(ChannelMoments::of)
                    .map_err(|e| Invalid::Backbone(e.to_string()))
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
        let state = |e: &Extractor| Hand {
            embedder: Embedder::new(projection, e.size(), grid, self.isa, Arc::clone(&alone)),
            loaded: None,
            spent: Duration::ZERO,
        };
        let mut threads: Vec<Hand> = self.extractors.iter().map(state).collect();
        for extractor in &mut self.extractors {
            extractor.want(settings.stages);
            let _ = extractor.take_spent();
        }
        // Enough images in a round for the threads to end it at about the same time.
        let round = (4 * threads.len()).next_multiple_of(BATCH);
        let mut slots: Vec<Mutex<Slot>> =
            (0..round).map(|_| Mutex::new(Slot { embedding: Embedding::new(grid, k), outcome: Ok(()) })).collect();
        let chunk = (copies as usize).min(round / threads.len()).max(1);
        while *done < total {
            let first = *done;
            let count = ((total - first) as usize).min(round);
            let mut clock = Instant::now();
            self.each(count, chunk, &mut threads, |extractor, Hand { embedder, loaded, spent }, index| {
                let image = first + index as u64;
                let (cell, copy) = ((image / copies) as usize, (image % copies) as u32);
                let mut slot = slots[index].lock().unwrap_or_else(PoisonError::into_inner);
                let Slot { embedding, outcome } = &mut *slot;
                let change = settings.augment.draw(settings.seed, rank(0, b"cell", &cells[cell].id), copy);
                *outcome = (|| {
                    if *loaded != Some(cell) {
                        *loaded = None;
                        extractor.load(&cells[cell].image)?;
                        *loaded = Some(cell);
                    }
                    let pyramid = extractor.features(change).map_err(|e| Invalid::Unreadable(e.to_string()))?;
                    let mut clock = Instant::now();
                    embedder.project(pyramid).read_into(embedding);
                    let finite = embedding.values().iter().all(|y| y.is_finite());
                    *spent += since(&mut clock);
                    if finite { Ok(()) } else { Err(Invalid::NotFinite) }
                })();
            });
            let wall = since(&mut clock);
            for (extractor, hand) in self.extractors.iter_mut().zip(&mut threads) {
                let busy = Spent { embed: std::mem::take(&mut hand.spent), ..extractor.take_spent() };
                self.spent.add(&busy);
                self.spent.wait += wall.saturating_sub(busy.total());
            }
            let mut skipped = Vec::new();
            let mut image = first;
            // Batches are cut by image numbers alone, so that the sums do not depend on the round.
            for batch in slots[..count].chunks_mut(BATCH) {
                let mut good = Vec::with_capacity(BATCH);
                for slot in batch {
                    let Slot { embedding, outcome } = slot.get_mut().unwrap_or_else(PoisonError::into_inner);
                    match std::mem::replace(outcome, Ok(())) {
                        Ok(()) => good.push(&*embedding),
                        // A cell and all its copies fail alike: it is named once.
                        Err(reason) if image.is_multiple_of(copies) => {
                            skipped.push(Skipped { id: cells[(image / copies) as usize].id.clone(), reason });
                        }
                        Err(_) => {}
                    }
                    image += 1;
                }
                moments.update(&good, self.isa, &self.workers);
            }
            self.spent.update += since(&mut clock) * self.workers.count() as u32;
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
                                .load(&cells[index].image)
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
        let region = crate::verdict::quantile(&tops, 0.99).map_or(0.0, |x| x as f32);
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

/// What a thread has beside its extractor.
struct Hand {
    embedder: Embedder,
    /// The cell in the extractor.
    loaded: Option<usize>,
    /// Time of the embedding since the last round.
    spent: Duration,
}

struct Slot {
    embedding: Embedding,
    outcome: Result<(), Invalid>,
}
