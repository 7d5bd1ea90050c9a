//! The station as the agent of updates sees it: a new model is proven and tried beside the line, and changes places with
//! the old one between two cells.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::ears::Ears;
use super::exchange::{Exchange, Opinion};
use super::start;
use crate::camera::Format;
use crate::config::Config;
use crate::model::Model;
use crate::pipeline::Inspector;
use crate::preprocess::sensor::Correction;
use crate::update::agent::{Host, ShadowConfig};
use crate::update::install::NotProven;
use crate::update::message::Shadow;
use crate::update::prove;
use crate::update::slots::Seen;
use crate::workers::Workers;

/// The judge changes within a frame's time; one that does not come hangs.
const CHANGE: Duration = Duration::from_secs(20);
/// Without a frame, others are asked so often whether to go on.
const TURN: Duration = Duration::from_millis(250);

/// A model on trial.
struct Candidate {
    model: Arc<Model>,
    /// With a thread of its own, so that it takes nothing from the line's.
    inspector: Inspector,
}

/// See the [module](self).
pub(super) struct StationHost {
    config: Config,
    exchange: Arc<Exchange>,
    ears: Arc<Ears>,
    /// The threads that share the work of the line's judge.
    workers: Arc<Workers>,
    /// The camera's frames, and what corrects them.
    format: Format,
    sensor: Option<Arc<Correction>>,
    model: String,
    candidate: Option<Candidate>,
}

impl StationHost {
    pub(super) fn new(
        config: &Config,
        exchange: Arc<Exchange>,
        ears: Arc<Ears>,
        workers: Arc<Workers>,
        format: Format,
        sensor: Option<Arc<Correction>>,
        model: &Model,
    ) -> Self {
        let (config, model) = (config.clone(), model.id().to_string());
        Self { config, exchange, ears, workers, format, sensor, model, candidate: None }
    }

    /// Has the line's judge go on with this model.
    fn change_to(&mut self, model: &Arc<Model>) -> Result<(), String> {
        let inspector = start::inspector_for(&self.config, model, &self.workers).and_then(|mut inspector| {
            start::prepare(&self.config, &mut inspector, self.format, self.sensor.as_ref())?;
            Ok(inspector)
        });
        let next = Box::new(inspector.map_err(|error| error.to_string())?);
        let before = self.exchange.swap(next, CHANGE).map_err(|_| "the judge is busy for too long".to_owned())?;
        // Counted from here: what was judged before does not count any more, whoever writes it down.
        self.ears.judged_by(&self.config.operations.drift, model);
        self.model = model.id().to_string();
        drop(before);
        Ok(())
    }
}

impl Host for StationHost {
    fn model(&self) -> String {
        self.model.clone()
    }

    fn prove(&mut self, model: &Path, golden: &Path) -> Result<(), NotProven> {
        let model = start::open(model).map_err(|error| error.to_string())?;
        let own = Arc::new(Workers::new(1));
        let mut inspector = start::inspector_for(&self.config, &model, &own).map_err(|error| error.to_string())?;
        let golden = File::open(golden).map_err(|error| format!("opening the golden frames: {error}"))?;
        prove::prove(&mut BufReader::new(golden), &mut inspector).map_err(|error| error.to_string())?;
        inspector.make_room(self.format.width, self.format.height).map_err(|error| error.to_string())?;
        self.candidate = Some(Candidate { model, inspector });
        Ok(())
    }

    fn shadow(&mut self, heard: &mut dyn FnMut(Shadow) -> Option<&'static str>) -> Result<(), NotProven> {
        let Some(candidate) = &mut self.candidate else {
            return Err(NotProven::Stopped("no model was proven".into()));
        };
        let limits = self.config.update.shadow;
        let mut compared = Compared::default();
        while compared.shadow.frames < limits.frames {
            self.exchange.next_frame(TURN, |frame, before| {
                compared.add(before, Opinion::of(&candidate.inspector.inspect(frame)));
            });
            if let Some(why) = heard(compared.shadow) {
                return Err(NotProven::Stopped(why.into()));
            }
        }
        compared.within(&limits).map_err(NotProven::Refused)
    }

    fn activate(&mut self) -> Result<(), String> {
        let candidate = self.candidate.take().ok_or("no model was proven")?;
        let Candidate { model, inspector } = candidate;
        drop(inspector);
        self.change_to(&model)
    }

    fn go_back(&mut self, model: Option<&Path>) -> Result<(), String> {
        self.candidate = None;
        let path = model.unwrap_or(&self.config.model.path).to_owned();
        let model = start::open(&path).map_err(|error| error.to_string())?;
        self.change_to(&model)
    }

    fn seen(&mut self) -> Seen {
        self.ears.take_seen()
    }
}

/// Two models side by side.
#[derive(Debug, Default)]
struct Compared {
    shadow: Shadow,
    sum: f64,
    scored: u32,
}

impl Compared {
    fn add(&mut self, before: Opinion, after: Opinion) {
        let shadow = &mut self.shadow;
        shadow.frames += 1;
        shadow.flips += u32::from(before.class != after.class);
        if let (Some(before), Some(after)) = (before.score, after.score) {
            let difference = (before - after).abs();
            self.scored += 1;
            self.sum += f64::from(difference);
            shadow.mean = (self.sum / f64::from(self.scored)) as f32;
            shadow.largest = shadow.largest.max(difference);
        }
    }

    fn within(&self, limits: &ShadowConfig) -> Result<(), String> {
        let Shadow { frames, flips, mean, .. } = self.shadow;
        if f64::from(flips) > limits.flips * f64::from(frames) {
            return Err(format!("{flips} of {frames} live frames came to another class than with the model in force"));
        }
        // A mean that is not a number is within no limit.
        if f64::from(mean) <= limits.difference {
            return Ok(());
        }
        Err(format!(
            "the scores of {frames} live frames differ by {mean:.3} in the mean from those of the model in force"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Class;

    #[test]
    fn too_many_other_classes_or_too_far_scores_are_refused_and_few_pass() {
        let opinion = |class, score| Opinion { class, score };
        let compare = |pairs: &[(Opinion, Opinion)]| {
            let mut compared = Compared::default();
            pairs.iter().for_each(|&(before, after)| compared.add(before, after));
            (compared.shadow, compared.within(&ShadowConfig { frames: 10, flips: 0.2, difference: 0.05 }))
        };
        let same = (opinion(Some(Class::A), Some(0.2)), opinion(Some(Class::A), Some(0.22)));
        let flip = (opinion(Some(Class::A), Some(0.4)), opinion(Some(Class::C), Some(0.6)));
        let lost = (opinion(Some(Class::A), Some(0.2)), opinion(None, None));
        let both_lost = (opinion(None, None), opinion(None, None));
        let (shadow, passed) = compare(&[[same; 8].as_slice(), &[flip, both_lost]].concat());
        assert!(passed.is_ok() && (shadow.frames, shadow.flips) == (10, 1) && (shadow.largest - 0.2).abs() < 1e-6);
        assert!(compare(&[[same; 7].as_slice(), &[flip, lost, lost]].concat()).1.unwrap_err().contains("3 of 10"));
        let far = (opinion(Some(Class::A), Some(0.1)), opinion(Some(Class::A), Some(0.3)));
        assert!(compare(&[far; 10]).1.unwrap_err().contains("0.200 in the mean"));
        let none = (opinion(Some(Class::A), Some(0.1)), opinion(Some(Class::A), Some(f32::NAN)));
        assert!(compare(&[none; 10]).1.is_err());
    }
}
