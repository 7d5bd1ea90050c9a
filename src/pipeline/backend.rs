//! Who computes: the CPU, or an NVIDIA device in front of it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Inspector;
use crate::backbone::ResNet18;
use crate::backbone::weights::WeightsError;
use crate::cuda::{CudaError, Device, DeviceNetwork, NetworkError, Networks, WorkingMemory};
use crate::model::Model;
use crate::tensorrt::engines::{self, Gpu};
use crate::tensorrt::{Runtime, Source, TensorRtNetwork};

/// The folder of networks that were built for this machine's device, if nobody says otherwise.
pub const ENGINES: &str = "/var/cache/cellgate/engines";

/// What is to compute the way from the image to the heatmap, and the networks that a judge asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// A device if one can be used, else the CPU, which the log then says.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A device; without one nothing starts.
    Cuda,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Cpu, Self::Cuda];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|backend| backend.name() == text);
        known.ok_or_else(|| format!("`{text}`: one of auto, cpu, cuda"))
    }
}

/// The backend that was asked for cannot be had.
#[derive(Debug, Error)]
#[error("the backend cuda was asked for: {0}; the backend auto would go on with the CPU")]
pub struct BackendError(#[from] CudaError);

/// What came of it.
#[derive(Debug)]
pub enum Engaged {
    /// The CPU, as was asked for.
    Cpu,
    /// This device.
    Device(String),
    /// The CPU, since no device can be used.
    Fallback(CudaError),
}

impl Engaged {
    /// Whether there was more to be had: a driver is there, and no device can be used.
    #[must_use]
    pub fn disappoints(&self) -> bool {
        matches!(self, Self::Fallback(error) if !matches!(error, CudaError::NoDriver { .. }))
    }

    /// Says it in the log.
    pub fn log(&self) {
        let level = if self.disappoints() { log::Level::Warn } else { log::Level::Info };
        log::log!(level, "{self}");
    }
}

impl fmt::Display for Engaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cells are measured on the CPU"),
            Self::Device(device) => write!(f, "cells are measured on {device}"),
            Self::Fallback(error) => write!(f, "cells are measured on the CPU: {error}"),
        }
    }
}

/// Puts what `backend` says in front of inspectors of one model, all of them or none, each with a graph of its own.
/// `engines` is the folder of the networks that were built for this device.
///
/// # Errors
/// With [`Backend::Cuda`], why no device can be used.
pub fn engage(
    backend: Backend,
    network: &ResNet18,
    engines: &Path,
    inspectors: &mut [Inspector],
) -> Result<Engaged, BackendError> {
    if backend == Backend::Cpu {
        return Ok(Engaged::Cpu);
    }
    match on_device(network, engines, inspectors) {
        Ok(device) => Ok(Engaged::Device(device)),
        Err(error) => {
            inspectors.iter_mut().for_each(Inspector::leave_device);
            if backend == Backend::Cuda { Err(error.into()) } else { Ok(Engaged::Fallback(error)) }
        }
    }
}

/// The networks that a device runs for a model: backbone and projection, and the classifier if the judge asks one.
///
/// # Errors
/// If a weight does not fit a half.
pub fn sources(model: &Model, network: &ResNet18) -> Result<Vec<Source>, WeightsError> {
    let (judge, size) = (model.judge(), model.header().settings.size as usize);
    let views = judge.map_or(0, |judge| judge.description().pooled_views());
    let mut sources = vec![Source::features(network, model.projection(), size, views)?];
    if let Some((judge, classifier)) = judge.and_then(|judge| Some((judge, judge.network()?))) {
        sources.push(Source::classifier(classifier, judge.description().ways().len())?);
    }
    Ok(sources)
}

fn on_device(network: &ResNet18, engines: &Path, inspectors: &mut [Inspector]) -> Result<String, CudaError> {
    let device = Device::open()?;
    for inspector in inspectors {
        let networks = open_networks(&device, inspector.model(), network, engines)?;
        inspector.use_device(&device, networks)?;
    }
    Ok(device.describe())
}

/// A model's networks on a device, from its folder of engines.
fn open_networks(
    device: &Arc<Device>,
    model: &Model,
    network: &ResNet18,
    engines: &Path,
) -> Result<Networks, CudaError> {
    let failed = |why: String| NetworkError { name: "of a model".into(), why };
    let sources = sources(model, network).map_err(|error| failed(error.to_string()))?;
    let runtime = Runtime::open().map_err(|error| failed(error.to_string()))?;
    let gpu = Gpu { name: device.name().to_owned(), capability: device.capability() };
    let mut opened = sources.iter().map(|source| open_network(device, &runtime, source, &gpu, engines));
    let Some(features) = opened.next() else { unreachable!("every model has a backbone") };
    Ok(Networks { features: features?, classifier: opened.next().transpose()? })
}

fn open_network(
    device: &Arc<Device>,
    runtime: &Runtime,
    source: &Source,
    gpu: &Gpu,
    engines: &Path,
) -> Result<Box<dyn DeviceNetwork>, CudaError> {
    let failed = |why: String| NetworkError { name: source.kind().to_string(), why };
    let engine = engines::open(runtime, source, gpu, engines).map_err(|error| failed(error.to_string()))?;
    let memory = WorkingMemory::new(device, "working memory of the network", engine.working_memory().max(1))?;
    let (address, bytes) = (memory.address(), memory.bytes());
    // SAFETY: the memory is the network's own, and given back after it.
    let network = unsafe { TensorRtNetwork::new(engine, source, address, bytes, memory) };
    Ok(Box::new(network.map_err(|error| failed(error.to_string()))?))
}
