//! From a frame to the verdict.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::backbone::Backbone;
use crate::classifier::evidence::Witness;
use crate::classifier::judge::Bench;
use crate::frame::Frame;
use crate::heatmap::Scores;
use crate::model::Model;
use crate::preprocess::{Placement, Refusal};
use crate::simd::Isa;
use crate::verdict::{Grading, Invalid, Latency, Probabilities, Verdict};
use crate::workers::Workers;

use super::extractor::lap;
use super::{Extractor, PipelineError, Scorer};

/// Judges cells with one model. [`Inspector::inspect`] allocates nothing; [`Inspector::inspect_file`] does, to read the
/// file.
pub struct Inspector {
    model: Arc<Model>,
    scorer: Scorer,
    classifier: Option<Classifier>,
}

/// The model's classifier at work, and what it looks with.
struct Classifier {
    bench: Bench,
    witness: Witness,
}

impl Inspector {
    /// Binds a model to the backbone that it was fitted with.
    ///
    /// # Errors
    /// If the backbone is another one, or its size is not the model's.
    pub fn new(model: Arc<Model>, backbone: Box<dyn Backbone>, workers: Arc<Workers>) -> Result<Self, PipelineError> {
        model.check_backbone(backbone.identity())?;
        let settings = &model.header().settings;
        let extractor = Extractor::new(settings.preprocess.clone(), backbone)?;
        let classifier = match model.judge() {
            Some(judge) => {
                let (size, grid, k) = (settings.size as usize, settings.grid as usize, settings.k as usize);
                let isa = Isa::detect();
                let bench = Bench::new(Arc::clone(judge), isa, Arc::clone(&workers))?;
                Some(Classifier { bench, witness: Witness::new(size, grid, k, isa) })
            }
            None => None,
        };
        let scorer = Scorer::new(settings, model.projection(), extractor, workers);
        if classifier.is_some() && !scorer.sees_all_stages() {
            return Err(PipelineError::Stages);
        }
        Ok(Self { model, scorer, classifier })
    }

    /// Makes the buffers large enough for a camera's frames of this size; those larger than 2048 pixels a side are
    /// refused otherwise.
    ///
    /// # Errors
    /// If they are too large.
    pub fn make_room(&mut self, width: usize, height: usize) -> Result<(), PipelineError> {
        Ok(self.scorer.make_room(width.max(height))?)
    }

    /// Judges the cell in a frame.
    pub fn inspect(&mut self, frame: &Frame) -> Verdict {
        let started = Instant::now();
        let measured = self.scorer.score_frame(frame, &self.model.statistics());
        self.decide(measured, started)
    }

    /// Judges the cell in an image file.
    pub fn inspect_file(&mut self, path: &Path) -> Verdict {
        let started = Instant::now();
        let measured = self.scorer.score_file(path, &self.model.statistics());
        self.decide(measured, started)
    }

    fn decide(&mut self, measured: Result<(Scores, Placement), Invalid>, mut started: Instant) -> Verdict {
        let (distances, placement) = match measured {
            Ok(measured) => measured,
            Err(reason) => {
                // Nearly always a gate, and what little came after it counts as its time.
                let latency = Latency { preprocess_us: lap(&mut started), ..Latency::default() };
                return Verdict { latency, ..Verdict::invalid(reason) };
            }
        };
        let Some(calibration) = &self.model.header().calibration else {
            return Verdict::invalid(Invalid::Uncalibrated);
        };
        if placement.brightness < calibration.dim_below {
            let (mean, limit) = (placement.brightness, calibration.dim_below);
            let refused = Verdict::invalid(Invalid::Frame(Refusal::Dim { mean, limit }));
            return Verdict { latency: self.scorer.latency(), ..refused };
        }
        let mut clock = Instant::now();
        let distance = distances.get(calibration.kind);
        let score = calibration.score(distance);
        let mut outcome = calibration.decide(score);
        let regions = self.scorer.regions(calibration.region);
        let mut latency = self.scorer.latency();
        latency.heatmap_us += lap(&mut clock);
        let mut probabilities = None;
        if let (Some(Classifier { bench, witness }), Some(header)) =
            (&mut self.classifier, &self.model.header().classifier)
        {
            let views = header.judge.views as usize;
            let opinion = match self.scorer.show(witness, views) {
                Ok(()) => bench.hear(witness, 0),
                Err(reason) => return Verdict { latency, ..Verdict::invalid(reason) },
            };
            latency.classifier_us = lap(&mut clock);
            let Some(opinion) = opinion else {
                return Verdict { latency, ..Verdict::invalid(Invalid::NotFinite) };
            };
            let point = &header.point;
            let of_highest = opinion.at_least(point.grading.levels() - 1);
            outcome = point.decide(of_highest, opinion.at_least(1), distance, &outcome);
            probabilities = Some(match point.grading {
                Grading::Abc => Probabilities { not_a: Some(opinion.at_least(1)), c: Some(of_highest) },
                Grading::AnyDefect => Probabilities { not_a: Some(of_highest), c: None },
                Grading::Usable => Probabilities { not_a: None, c: Some(of_highest) },
            });
        }
        let score = Some(score).filter(|s| s.is_finite());
        let (distances, placement) = (Some(distances), Some(placement));
        Verdict { outcome, score, probabilities, distances, regions, placement, latency }
    }

    /// The model in force.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The last heatmap, smoothed: grid² distances.
    #[must_use]
    pub fn heatmap(&self) -> &[f32] {
        self.scorer.heatmap()
    }

    /// The last rectified image: S² values.
    #[must_use]
    pub fn image(&self) -> &[f32] {
        self.scorer.image()
    }
}
