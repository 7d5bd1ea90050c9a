//! From a frame to the verdict.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::backbone::Backbone;
use crate::camera::Format;
use crate::classifier::evidence::Witness;
use crate::classifier::judge::Bench;
use crate::cuda::{CellGraph, CellInput, CellSettings, CudaError, Device, Networks, Start, Way};
use crate::frame::Frame;
use crate::heatmap::{Regions, Scores};
use crate::model::Model;
use crate::preprocess::sensor::{Correction, SensorError};
use crate::preprocess::{self, Placement, Refusal};
use crate::simd::Isa;
use crate::verdict::{Grading, Invalid, Latency, Probabilities, Verdict};
use crate::workers::Workers;

use super::extractor::lap;
use super::{Extractor, PipelineError, Scorer};

/// Judges cells with one model. [`Inspector::inspect`] allocates nothing; [`Inspector::inspect_file`] does, to read the
/// file.
///
/// A [device](Self::use_device) may take the way from the frame to the heatmap over, and the networks that a judge asks. The
/// cell during which it fails is [`Invalid::Internal`]; from the next one on the CPU does it all again.
pub struct Inspector {
    model: Arc<Model>,
    scorer: Scorer,
    device: Option<CellGraph>,
    classifier: Option<Classifier>,
}

/// What was measured of a cell; regions only if a device has found them already.
struct Measured {
    placement: Placement,
    scores: Scores,
    regions: Option<Regions>,
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
                let (side, isa) = (judge.description().side as usize, Isa::detect());
                let bench = Bench::new(Arc::clone(judge), isa, Arc::clone(&workers))?;
                Some(Classifier { bench, witness: Witness::new(size, grid, k, side, isa) })
            }
            None => None,
        };
        let scorer = Scorer::new(settings, model.projection(), extractor, workers);
        if classifier.is_some() && !scorer.sees_all_stages() {
            return Err(PipelineError::Stages);
        }
        Ok(Self { model, scorer, device: None, classifier })
    }

    /// Lets `device` measure, with this model's networks. Everything is allocated and captured here.
    ///
    /// # Errors
    /// If the device cannot do what the model asks for, or fails; the CPU goes on then.
    pub fn use_device(&mut self, device: &Arc<Device>, networks: Networks) -> Result<(), CudaError> {
        let header = self.model.header();
        let projection = self.model.projection();
        let way = if self.scorer.straightens() { Way::Straighten } else { Way::Resample };
        let settings = CellSettings {
            start: Start { way, side: self.scorer.side() },
            size: header.settings.size as usize,
            stages: std::array::from_fn(|stage| projection.uses(stage)),
            window: self.scorer.window(),
            // Without a calibration nothing is judged, and no region is asked for.
            level: header.calibration.as_ref().map_or(f32::INFINITY, |calibration| calibration.region),
            statistics: self.model.statistics(),
            judge: self.model.judge().map(|judge| judge.description()),
        };
        self.device = Some(CellGraph::new(device, networks, &settings)?);
        Ok(())
    }

    /// From the next cell on the CPU measures; what was allocated on the device is given back.
    pub fn leave_device(&mut self) {
        self.device = None;
    }

    /// The device that measures, if one does.
    pub fn device(&mut self) -> Option<&mut CellGraph> {
        self.device.as_mut()
    }

    /// Makes the buffers large enough for a camera's frames of this size; those larger than 2048 pixels a side are
    /// refused otherwise.
    ///
    /// # Errors
    /// If they are too large.
    pub fn make_room(&mut self, width: usize, height: usize) -> Result<(), PipelineError> {
        self.scorer.make_room(width.max(height))?;
        if let Some(device) = &mut self.device {
            device.make_room(self.scorer.side())?;
        }
        Ok(())
    }

    /// A black frame of a camera's format. Where a device measures it lies in memory that the device sees, so that nobody
    /// copies it there, and the device can [correct](Self::inspect_raw) it.
    #[must_use]
    pub fn frame(&self, format: Format) -> Frame {
        let Format { width, height, white } = format;
        let Some(device) = &self.device else { return Frame::new(width, height, white) };
        device.device().frame(width, height, white).unwrap_or_else(|error| {
            log::warn!("{error}; this frame's pixels are copied to the device, and corrected on the CPU");
            Frame::new(width, height, white)
        })
    }

    /// Lets the device, if one measures, correct this sensor's frames, too.
    ///
    /// # Errors
    /// If it cannot; the CPU corrects them then.
    pub fn use_sensor(&mut self, sensor: &Arc<Correction>) -> Result<(), CudaError> {
        self.device.as_mut().map_or(Ok(()), |device| device.use_sensor(sensor))
    }

    /// Corrects a frame of this sensor in place, and judges the cell in it.
    ///
    /// # Errors
    /// If the sensor gives other frames. Nothing has happened then.
    pub fn inspect_raw(&mut self, frame: &mut Frame, sensor: &Arc<Correction>) -> Result<Verdict, SensorError> {
        let started = Instant::now();
        let corrected = self.device.as_mut().map_or(Ok(false), |device| device.correct(frame, sensor));
        match corrected {
            Ok(true) => Ok(self.judge(CellInput::Corrected(frame), started)),
            Ok(false) => {
                sensor.apply(frame)?;
                Ok(self.judge(CellInput::Frame(frame), started))
            }
            Err(error) => {
                self.give_up_device(&error);
                Ok(Verdict::invalid(Invalid::Internal))
            }
        }
    }

    /// Judges the cell in a frame.
    pub fn inspect(&mut self, frame: &Frame) -> Verdict {
        self.judge(CellInput::Frame(frame), Instant::now())
    }

    fn judge(&mut self, input: CellInput<'_>, started: Instant) -> Verdict {
        let placed = match self.device {
            Some(_) => self.scorer.locate(input.frame()),
            None => self.scorer.rectify(input.frame()),
        };
        let measured = placed.and_then(|placement| self.measure(placement, Some(input)));
        self.decide(measured, started)
    }

    /// Judges the cell in an image file.
    pub fn inspect_file(&mut self, path: &Path) -> Verdict {
        let started = Instant::now();
        let placed = match self.device {
            Some(_) => self.scorer.locate_file(path),
            None => self.scorer.rectify_file(path),
        };
        let measured = placed.and_then(|placement| self.measure(placement, None));
        self.decide(measured, started)
    }

    /// Measures the cell that was placed last, in this frame or in the file that was read, on the device or on the CPU.
    fn measure(&mut self, placement: Placement, frame: Option<CellInput<'_>>) -> Result<Measured, Invalid> {
        let Some(device) = &mut self.device else {
            let scores = self.scorer.score_rectified(&self.model.statistics())?;
            return Ok(Measured { placement, scores, regions: None });
        };
        measure_on_device(device, &mut self.scorer, placement, frame).unwrap_or_else(|error| {
            self.give_up_device(&error);
            Err(Invalid::Internal)
        })
    }

    fn give_up_device(&mut self, error: &CudaError) {
        log::error!("{error}; this cell is INVALID(internal), and the next ones are measured on the CPU");
        self.leave_device();
    }

    fn decide(&mut self, measured: Result<Measured, Invalid>, mut started: Instant) -> Verdict {
        let Measured { placement, scores: distances, regions } = match measured {
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
        let regions = regions.unwrap_or_else(|| self.scorer.regions(calibration.region));
        let mut latency = self.scorer.latency();
        latency.heatmap_us += lap(&mut clock);
        let mut probabilities = None;
        if let (Some(Classifier { bench, witness }), Some(header)) =
            (&mut self.classifier, &self.model.header().classifier)
        {
            let opinion = if let Some(device) = &self.device {
                witness.take_over(self.scorer.heatmap(), device.pooled());
                bench.weigh_logits(device.logits(), witness.row(), 0)
            } else {
                let views = header.judge.pooled_views();
                self.scorer.show_planes(witness);
                if views > 0
                    && let Err(reason) = self.scorer.show_features(witness, views)
                {
                    return Verdict { latency, ..Verdict::invalid(reason) };
                }
                bench.hear(witness, 0)
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

/// The scorer is left as if it had measured the cell itself. The outer error is the device's, after which nothing is known
/// of the cell.
fn measure_on_device(
    device: &mut CellGraph,
    scorer: &mut Scorer,
    mut placement: Placement,
    frame: Option<CellInput<'_>>,
) -> Result<Result<Measured, Invalid>, CudaError> {
    let mut clock = Instant::now();
    device.make_room(scorer.side())?;
    let input = frame.unwrap_or_else(|| CellInput::Frame(scorer.frame()));
    let normalisation = preprocess::normalisation(input.frame());
    let findings = device.run(input, &placement)?;
    let made = device.made()?;
    let measures = [made.brightness, made.sharpness];
    if let Err(reason) = scorer.adopt_image(made.image, normalisation, &mut placement, measures) {
        return Ok(Err(reason));
    }
    scorer.adopt(device.heatmap(), lap(&mut clock));
    let measured = |scores| Measured { placement, scores, regions: Some(findings.regions) };
    Ok(findings.scores.map(measured).ok_or(Invalid::NotFinite))
}

/// One thread makes an inspector, another judges with it, a third may drop it.
const _: fn() = || {
    fn sends<T: Send>() {}
    sends::<Inspector>();
};
