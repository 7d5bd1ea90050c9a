//! Cameras of the Linux kernel: V4L2, streaming through buffers that driver and program share.
//!
//! The calls are made here, on the kernel's own structures ([`abi`]), and not through a crate: the `v4l` crate needs
//! libclang to build, queues a buffer again that the kernel still owns when a dequeue times out, and queues one buffer
//! only when a stream is started by hand. [`Device`] is the layer of calls, [`V4l`] the camera on top of it, which is
//! tested against a scripted device.
//!
//! Devices with the multi-planar interface and interlaced ones are refused by name.

pub mod abi;
mod device;
#[cfg(test)]
mod fake;
mod kernel;
mod stream;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use device::{ControlInfo, Dequeued, Device, Granted, Identity, Wake, control_name};
pub use kernel::KernelDevice;
pub use stream::{Settings, V4l};

use super::pixels::fourcc_name;

/// A video device of this machine.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its file, such as `/dev/video0`.
    pub path: PathBuf,
    /// What it is and what it can do, or why it does not say.
    pub about: Result<(Identity, Vec<String>), String>,
}

/// All video devices of this machine, in order of their numbers; those that capture nothing too.
#[must_use]
pub fn list() -> Vec<Found> {
    let number = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("video")?.parse::<u32>().ok();
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<(u32, PathBuf)> = entries.filter_map(|path| Some((number(&path)?, path))).collect();
    paths.sort();
    let ask = |path: &PathBuf| {
        let mut device = KernelDevice::open(path)?;
        let identity = device.identity()?;
        let formats = if identity.captures { device.formats()? } else { Vec::new() };
        Ok((identity, formats.into_iter().map(fourcc_name).collect()))
    };
    paths
        .into_iter()
        .map(|(_, path)| Found { about: ask(&path).map_err(|e: std::io::Error| e.to_string()), path })
        .collect()
}
