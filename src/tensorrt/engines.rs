//! Engines in files: built once on a device, used there alone.
//!
//! An engine is bound to the network, to TensorRT's version and to the GPU. Its file says of all three what they were, and with
//! which options it was built, and has a hash over every byte. Beside the engines lies what TensorRT measured, to build the next one
//! faster. The hashes find damage, not malice: an engine is code, and whoever may write into the folder may run any.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::engine::Engine;
use super::error::TensorRtError;
use super::layers::Layer;
use super::runtime::{BuildOptions, Built, Runtime, Version};
use super::source::{Kind, Source};
use crate::backbone::Identity;
use crate::model::container::{self, Container, FileError};

const ENGINE: container::Kind =
    container::Kind { magic: *b"CELLENGN", version: 1, name: "TensorRT engine of cellgate" };
const TIMING: container::Kind =
    container::Kind { magic: *b"CELLTIME", version: 1, name: "TensorRT timing cache of cellgate" };
const PLAN: &str = "plan";
const LAYERS: &str = "layers";
const MEASURED: &str = "measured";
const TIMING_FILE: &str = "timing.cache";

/// A GPU, as far as an engine is bound to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// The driver's name of it.
    pub name: String,
    /// Its compute capability, major and minor.
    pub capability: (i32, i32),
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (sm_{}{})", self.name, self.capability.0, self.capability.1)
    }
}

/// What an engine's file says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Which network it is.
    pub kind: Kind,
    /// [`Source::hash`] of the network.
    pub onnx: Identity,
    /// The TensorRT that built it, and alone runs it.
    pub tensorrt: Version,
    /// The GPU that it was built on, and alone runs on.
    pub gpu: Gpu,
    /// How it was built.
    pub options: BuildOptions,
    /// The version of cellgate that built it.
    pub software: String,
    /// When, in seconds since 1970.
    pub created: u64,
    /// Bytes of device memory that a run works in.
    pub working_memory: u64,
}

/// Why there is no engine.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// There is no file.
    #[error("opening the TensorRT engine {}: there is none; build it with `cellgate engine build`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged, or none of ours.
    #[error("{source}; build it anew with `cellgate engine build`")]
    Damaged {
        /// What is wrong with which file.
        source: FileError,
    },
    /// The engine is of something else.
    #[error(
        "opening the TensorRT engine {}: it is of {what} {found}, here is {here}; build it anew with `cellgate engine build`",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What is at hand.
        here: String,
    },
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder could not be made.
    #[error("making the folder of engines {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// TensorRT.
    #[error(transparent)]
    TensorRt(#[from] TensorRtError),
}

/// The file of a network's engine in a folder of engines.
#[must_use]
pub fn path(folder: &Path, source: &Source) -> PathBuf {
    folder.join(format!("{}-{:.16}.engine", source.kind(), source.hash()))
}

/// Opens the engine of a network.
///
/// # Errors
/// If there is none, its file is damaged, or it was built of another network, by another TensorRT or on another GPU.
pub fn open(runtime: &Runtime, source: &Source, gpu: &Gpu, folder: &Path) -> Result<Engine, EngineError> {
    let path = path(folder, source);
    let (about, container) = read(&path)?;
    check(&path, &about, runtime, source, gpu)?;
    // SAFETY: the plan is whole, since its hash is right, and of this TensorRT.
    let engine = unsafe { runtime.deserialise(container.section(PLAN, length(&container, PLAN)).map_err(damaged)?) }?;
    engine.check(&source.kind().to_string(), source.tensors())?;
    Ok(engine)
}

/// Builds the engine of a network, unless there is one already that was built of the same network, by the same TensorRT, on the
/// same GPU and with the same options. Gives what its file says and whether it was built now.
///
/// # Errors
/// If TensorRT refuses the network, or the file cannot be written.
pub fn build(
    runtime: &Runtime,
    source: &Source,
    gpu: &Gpu,
    folder: &Path,
    options: BuildOptions,
    now: u64,
) -> Result<(About, bool), EngineError> {
    let path = path(folder, source);
    match read(&path) {
        Ok((about, _)) if about.options == options && check(&path, &about, runtime, source, gpu).is_ok() => {
            return Ok((about, false));
        }
        Ok(_) | Err(EngineError::Missing { .. }) => {}
        Err(error) => log::warn!("{error}"),
    }
    std::fs::create_dir_all(folder).map_err(|source| EngineError::Folder { path: folder.to_owned(), source })?;
    let timing = folder.join(TIMING_FILE);
    let measured = read_timing(&timing, runtime.version(), gpu);
    let Built { plan, timing_cache } = runtime.build(source.onnx(), options, &measured)?;
    // SAFETY: TensorRT has just made it.
    let engine = unsafe { runtime.deserialise(&plan) }?;
    engine.check(&source.kind().to_string(), source.tensors())?;
    let layers = serde_json::to_vec(&engine.layers()?).unwrap_or_else(|_| unreachable!("layers are texts"));
    let about = About {
        kind: source.kind(),
        onnx: source.hash(),
        tensorrt: runtime.version(),
        gpu: gpu.clone(),
        options,
        software: env!("CARGO_PKG_VERSION").to_owned(),
        created: now,
        working_memory: engine.working_memory() as u64,
    };
    container::write(&path, ENGINE, &about, &[(PLAN, &plan), (LAYERS, &layers)])?;
    if !timing_cache.is_empty() {
        container::write(&timing, TIMING, &(runtime.version(), gpu), &[(MEASURED, &timing_cache)])?;
    }
    Ok((about, true))
}

/// What an engine's file says, its layers, and the plan's bytes. Needs neither TensorRT nor a GPU.
///
/// # Errors
/// If the file is missing, damaged or none of ours.
pub fn show(path: &Path) -> Result<(About, Vec<Layer>, u64), EngineError> {
    let (about, container) = read(path)?;
    let layers = container.section::<u8>(LAYERS, length(&container, LAYERS)).map_err(damaged)?;
    let layers = serde_json::from_slice(layers)
        .map_err(|error| damaged(container.damaged(format!("its layers cannot be read: {error}"))))?;
    Ok((about, layers, length(&container, PLAN) as u64))
}

fn damaged(source: FileError) -> EngineError {
    EngineError::Damaged { source }
}

fn length(container: &Container, section: &str) -> usize {
    container.sections().find(|(name, _)| *name == section).map_or(0, |(_, length)| length as usize)
}

fn read(path: &Path) -> Result<(About, Container), EngineError> {
    if !path.exists() {
        return Err(EngineError::Missing { path: path.to_owned() });
    }
    let container = Container::open(path, ENGINE).map_err(damaged)?;
    Ok((container.header().map_err(damaged)?, container))
}

fn check(path: &Path, about: &About, runtime: &Runtime, source: &Source, gpu: &Gpu) -> Result<(), EngineError> {
    let pairs = [
        ("the network", format!("{} {}", about.kind, about.onnx), format!("{} {}", source.kind(), source.hash())),
        ("TensorRT", about.tensorrt.to_string(), runtime.version().to_string()),
        ("the GPU", about.gpu.to_string(), gpu.to_string()),
    ];
    match pairs.into_iter().find(|(_, found, here)| found != here) {
        Some((what, found, here)) => Err(EngineError::Foreign { path: path.to_owned(), what, found, here }),
        None => Ok(()),
    }
}

/// What an earlier build on this GPU measured; empty if there was none.
fn read_timing(path: &Path, version: Version, gpu: &Gpu) -> Vec<u8> {
    if !path.exists() {
        return Vec::new();
    }
    let read = || {
        let container = Container::open(path, TIMING)?;
        let (of, on): (Version, Gpu) = container.header()?;
        let same = of == version && on == *gpu;
        let bytes = container.section::<u8>(MEASURED, length(&container, MEASURED))?;
        Ok(if same { bytes.to_vec() } else { Vec::new() })
    };
    read().unwrap_or_else(|error: FileError| {
        log::warn!("{error}; TensorRT measures anew");
        Vec::new()
    })
}
