//! From a frame to the verdict.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::backbone::Backbone;
use crate::frame::Frame;
use crate::heatmap::Scores;
use crate::model::Model;
use crate::preprocess::{Placement, Refusal};
use crate::verdict::{Invalid, Latency, Verdict};
use crate::workers::Workers;

use super::extractor::lap;
use super::{Extractor, PipelineError, Scorer};

/// Judges cells with one model. [`Inspector::inspect`] allocates nothing; [`Inspector::inspect_file`] does, to read the
/// file.
pub struct Inspector {
    model: Arc<Model>,
    scorer: Scorer,
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
        let scorer = Scorer::new(settings, model.projection(), extractor, workers);
        Ok(Self { model, scorer })
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
        let score = calibration.score(distances.get(calibration.kind));
        let outcome = calibration.decide(score);
        let regions = self.scorer.regions(calibration.region);
        let mut latency = self.scorer.latency();
        latency.heatmap_us += lap(&mut clock);
        let score = Some(score).filter(|s| s.is_finite());
        Verdict { outcome, score, distances: Some(distances), regions, placement: Some(placement), latency }
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
