//! From a configuration to the parts of a station: everything is opened and checked here, before the first frame.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::judge::Inspection;
use crate::backbone::BackboneError;
use crate::backbone::cpu::CpuBackbone;
use crate::backbone::weights::{Loaded, WeightsError};
use crate::camera::config as camera;
use crate::camera::pulse::Pulsed;
use crate::camera::trigger::Source;
use crate::camera::{Camera, CameraError};
use crate::config::{Config, ModelConfig};
use crate::gpio::GpioError;
use crate::model::{Model, ModelError};
use crate::outbox::OutboxError;
use crate::pipeline::{BackendError, Inspector, PipelineError, backend};
use crate::preprocess::sensor::{Correction, SensorError};
use crate::workers::Workers;

/// Why a station does not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The model cannot be used.
    #[error("[model] path: {0}")]
    Model(#[from] ModelError),
    /// The model is there, and nothing has been calibrated with it.
    #[error("[model] path: {} has no calibration, so that no score means anything: run `cellgate calibrate` on good cells", .0.display())]
    Uncalibrated(PathBuf),
    /// The backbone's weights cannot be read.
    #[error("[model] backbone: {0}")]
    Weights(#[from] WeightsError),
    /// The backbone cannot be run.
    #[error("[model] backbone: {0}")]
    Backbone(#[from] BackboneError),
    /// The device that is configured cannot be used.
    #[error("[model] backend: {0}")]
    Backend(#[from] BackendError),
    /// Model and backbone do not go together.
    #[error("[model] {0}")]
    Pipeline(#[from] PipelineError),
    /// The camera cannot do what is configured.
    #[error("[camera] {0}")]
    Camera(#[from] CameraError),
    /// The sensor's calibration cannot be used.
    #[error("[camera] calibration: {0}")]
    Sensor(#[from] SensorError),
    /// The outbox cannot be used.
    #[error("[outbox] {0}")]
    Outbox(#[from] OutboxError),
    /// A GPIO line cannot be had.
    #[error("[gpio] {0}")]
    Gpio(#[from] GpioError),
    /// The system gives no thread.
    #[error("starting the station's threads: {0}")]
    Threads(#[from] std::io::Error),
}

/// Opens the model and binds it to its backbone.
///
/// # Errors
/// If one of them cannot be read, or they do not go together.
pub fn inspector(config: &Config) -> Result<(Arc<Model>, Inspector), StartError> {
    let model = Arc::new(Model::open(&config.model.path)?);
    if model.header().calibration.is_none() {
        return Err(StartError::Uncalibrated(config.model.path.clone()));
    }
    let inspector = inspector_for(config, &model)?;
    Ok((model, inspector))
}

/// Binds a model to its backbone and to what computes, as configured. Another inspector may be at work meanwhile: they
/// share nothing.
///
/// # Errors
/// If model and backbone do not go together, or the device that is configured cannot be used.
pub fn inspector_for(config: &Config, model: &Arc<Model>) -> Result<Inspector, StartError> {
    let weights = &config.model.backbone;
    let loaded = if weights.as_os_str().is_empty() { Loaded::embedded()? } else { Loaded::read(weights)? };
    let threads = match config.model.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let (workers, settings) = (Arc::new(Workers::new(threads)), &model.header().settings);
    let backbone = CpuBackbone::for_stages(&loaded.network, settings.size as usize, settings.stages.0, &workers)?;
    let mut inspector = Inspector::new(Arc::clone(model), Box::new(backbone), workers)?;
    let ModelConfig { backend, engines, .. } = &config.model;
    backend::engage(*backend, &loaded.network, engines, std::slice::from_mut(&mut inspector))?.log();
    Ok(inspector)
}

/// Opens the camera, and picks the lit frames if it runs freely.
///
/// # Errors
/// If it cannot do what is configured. One that is not there is no error: it is looked for again and again.
pub fn open_camera(config: &Config) -> Result<Box<dyn Camera>, StartError> {
    let camera = camera::open(&config.camera)?;
    Ok(match config.trigger.source {
        Source::Pulse => Box::new(Pulsed::new(camera, config.camera.pulse.clone())),
        _ => camera,
    })
}

/// The judge for this camera's frames.
///
/// # Errors
/// If the sensor's calibration is not for this camera.
pub fn judge(config: &Config, mut inspector: Inspector, camera: &dyn Camera) -> Result<Inspection, StartError> {
    let format = camera.format();
    inspector.make_room(format.width, format.height)?;
    let sensor = match &config.camera.calibration {
        Some(path) => Some(Correction::load(path, format, &config.camera.exposure())?),
        None => None,
    };
    let days = u64::from(config.model.max_age_days);
    let max_age = (days > 0).then(|| Duration::from_secs(days * 86_400));
    Ok(Inspection::new(inspector, sensor, config.station.refuse_duplicates, max_age))
}
