//! From a configuration to the parts of a station: everything is opened and checked here, before the first frame.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::judge::Inspection;
use crate::backbone::cpu::CpuBackbone;
use crate::backbone::weights::{Loaded, WeightsError};
use crate::backbone::{BackboneError, Identity};
use crate::camera::config as camera;
use crate::camera::pulse::Pulsed;
use crate::camera::trigger::Source;
use crate::camera::{Camera, CameraError, Format};
use crate::clock::Moment;
use crate::config::{Config, ModelConfig};
use crate::gpio::GpioError;
use crate::model::{Model, ModelError};
use crate::outbox::OutboxError;
use crate::pipeline::{Backend, BackendError, Inspector, PipelineError, backend};
use crate::preprocess::sensor::{Correction, SensorError};
use crate::update::disk::Folder;
use crate::update::slots::{Slots, UpdateError};
use crate::workers::Workers;

/// How long the state folder is waited for.
const LOCK: Duration = Duration::from_secs(30);

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
    /// The state folder of updates cannot be used.
    #[error("[update] state: {0}")]
    Update(#[from] UpdateError),
    /// The state folder cannot be had.
    #[error("[update] state: opening {}: {source}; end the other cellgate, and let this one write there", path.display())]
    State {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system gives no thread.
    #[error("starting the station's threads: {0}")]
    Threads(#[from] std::io::Error),
}

/// The model that is in force, and the state folder that says so; no folder where the station takes no updates. A model that
/// this cellgate cannot read gives way to the one before it.
///
/// # Errors
/// If there is no model that can be read, or the folder cannot be used.
pub fn in_force(config: &Config) -> Result<(Arc<Model>, Option<Slots<Folder>>), StartError> {
    let (mut path, mut slots) = file_in_force(config)?;
    loop {
        let error = match open(&path) {
            Ok(model) => return Ok((model, slots)),
            Err(error) => error,
        };
        let Some(slots) = slots.as_mut().filter(|slots| slots.record().active.is_some() && slots.can_go_back()) else {
            return Err(error);
        };
        log::error!("updates: the model in force cannot be used: {error}");
        slots.rollback(&format!("it cannot be used: {error}"))?;
        let before = slots.record().in_force().map(|(slot, _)| slots.disk().path(slot.model()));
        path = before.unwrap_or_else(|| config.model.path.clone());
    }
}

/// The file of the model in force, whole.
fn file_in_force(config: &Config) -> Result<(PathBuf, Option<Slots<Folder>>), StartError> {
    let (update, factory) = (&config.update, &config.model.path);
    if !update.is_on() {
        return Ok((factory.clone(), None));
    }
    let unless_there = |error| if factory.as_os_str().is_empty() { Err(error) } else { Ok(factory.clone()) };
    let folder = lock(&update.state)?;
    let slots = match Slots::open(folder) {
        Ok(slots) => slots,
        Err(UpdateError::NoKeys) => {
            log::warn!("updates: {}: {}", update.state.display(), UpdateError::NoKeys);
            return Ok((unless_there(UpdateError::NoKeys)?, None));
        }
        Err(error) => return Err(error.into()),
    };
    let mut slots = if factory.as_os_str().is_empty() { slots } else { slots.with_factory() };
    let path = match slots.start(&update.probation.limits()) {
        Ok((slot, fitted)) => {
            log::info!("updates: version {} is in force, from slot {slot}", fitted.version);
            slots.disk().path(slot.model())
        }
        Err(error @ UpdateError::NoModel) => unless_there(error)?,
        Err(error) => return Err(error.into()),
    };
    Ok((path, Some(slots)))
}

/// The state folder for this process alone. Who installs beside it is waited for.
fn lock(state: &Path) -> Result<Folder, StartError> {
    let until = Moment::now() + LOCK;
    loop {
        match Folder::new(state) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Moment::now() < until => {
                std::thread::sleep(Duration::from_millis(100));
            }
            folder => return folder.map_err(|source| StartError::State { path: state.into(), source }),
        }
    }
}

/// Opens a calibrated model.
///
/// # Errors
/// If it cannot be read, or has no calibration.
pub fn open(path: &Path) -> Result<Arc<Model>, StartError> {
    let model = Arc::new(Model::open(path)?);
    if model.header().calibration.is_none() {
        return Err(StartError::Uncalibrated(path.into()));
    }
    Ok(model)
}

/// The threads that share the work on a cell.
#[must_use]
pub fn workers(config: &Config) -> Arc<Workers> {
    let threads = match config.model.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    Arc::new(Workers::new(threads))
}

/// The identity of the backbone that the station runs.
///
/// # Errors
/// If its weights cannot be read.
pub fn backbone_identity(config: &Config) -> Result<Identity, StartError> {
    Ok(weights(config)?.network.identity())
}

fn weights(config: &Config) -> Result<Loaded, StartError> {
    let weights = &config.model.backbone;
    Ok(if weights.as_os_str().is_empty() { Loaded::embedded()? } else { Loaded::read(weights)? })
}

/// Binds a model to the station's backbone and to what computes, as configured. Another inspector may be at work meanwhile:
/// they share the workers alone.
///
/// # Errors
/// If the weights cannot be read, they do not go together, or the device that is configured cannot be used.
pub fn inspector_for(config: &Config, model: &Arc<Model>, workers: &Arc<Workers>) -> Result<Inspector, StartError> {
    let (loaded, settings) = (weights(config)?, &model.header().settings);
    let backbone = CpuBackbone::for_stages(&loaded.network, settings.size as usize, settings.stages.0, workers)?;
    let mut inspector = Inspector::new(Arc::clone(model), Box::new(backbone), Arc::clone(workers))?;
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

/// Makes an inspector ready for a camera's frames, and for its sensor's correction.
///
/// # Errors
/// If the frames are too large, or a device cannot correct them that was asked for by name; otherwise the CPU corrects them.
pub fn prepare(
    config: &Config,
    inspector: &mut Inspector,
    format: Format,
    sensor: Option<&Arc<Correction>>,
) -> Result<(), StartError> {
    inspector.make_room(format.width, format.height)?;
    match sensor.map_or(Ok(()), |sensor| inspector.use_sensor(sensor)) {
        Err(error) if config.model.backend == Backend::Cuda => Err(BackendError::from(error).into()),
        Err(error) => {
            log::warn!("{error}; the CPU corrects the sensor");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// The judge for this camera's frames.
///
/// # Errors
/// If the sensor's calibration is not for this camera.
pub fn judge(config: &Config, mut inspector: Inspector, camera: &dyn Camera) -> Result<Inspection, StartError> {
    let format = camera.format();
    let sensor = match &config.camera.calibration {
        Some(path) => Some(Arc::new(Correction::load(path, format, &config.camera.exposure())?)),
        None => None,
    };
    prepare(config, &mut inspector, format, sensor.as_ref())?;
    let days = u64::from(config.model.max_age_days);
    let max_age = (days > 0).then(|| Duration::from_secs(days * 86_400));
    Ok(Inspection::new(inspector, sensor, config.station.refuse_duplicates, max_age))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::agent::UpdateConfig;
    use crate::update::fake;
    use crate::update::slots::Phase;

    #[test]
    fn a_model_that_this_cellgate_cannot_read_gives_way_to_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let (state, factory) = (folder.path().join("state"), folder.path().join("factory.cgm"));
        let mut slots = Slots::set_up(Folder::new(&state).unwrap(), fake::keys()).unwrap();
        // Whole and signed, and no model.
        let bytes = fake::bundle(1).bytes();
        slots.install(&mut &bytes[..], &fake::station(), fake::NOW, |_, _| Ok(())).unwrap();
        slots.activate().unwrap();
        slots.confirm().unwrap();
        drop(slots);
        let update = UpdateConfig { state: state.clone(), ..UpdateConfig::default() };
        let mut config = Config { update, ..Config::default() };
        let left = |config: &Config| {
            let said = in_force(config).unwrap_err().to_string();
            (said, Slots::look(&Folder::new(&state).unwrap()).unwrap())
        };
        let (said, record) = left(&config);
        assert!(said.contains("a.cgm") && record.active.is_some(), "there is nothing to go back to: {said}");
        config.model.path = factory;
        let (said, record) = left(&config);
        assert!(said.contains("factory.cgm"), "the model of the configuration is tried: {said}");
        assert!(record.active.is_none() && record.phase == Phase::Good, "{record:?}");
        assert!(record.last.contains("it cannot be used"), "{}", record.last);
    }
}
