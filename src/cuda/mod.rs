//! The way of a cell on an NVIDIA device: the kernels of `kernels/` and networks, as one CUDA graph.
//!
//! ```text
//!  frame ─► correct, ─► straighten ─► network ─┬► up to four maps ─► sum, −μ, ‖U·‖ ─► smooth ─┬► scores, regions, heatmap
//! (mapped)  take    ▲   or resample   a Device- │  of k values                                 └► planes ─► classifier
//!                   │   to S×S, turn  Network   └► four stages ─► pool                            logits, features, image
//!      CPU: border ─┘                                                                             (mapped)
//! ```
//!
//! [`Device`] opens the driver at run time: a binary runs where there is none, and every way in which a device can be
//! missing or fail is a [`CudaError`]. [`CellGraph`] allocates and captures at start; a cell is two launches and one wait, with a
//! sensor to be corrected two of each, and allocates nothing. In between the CPU finds the cell's border, in the frame that the
//! device has corrected where it lies ([`Device::frame`]), and weighs afterwards what the judge goes by. Dropping it gives
//! everything back, whatever went wrong before.

mod cell;
mod device;
mod driver;
mod entry;
mod evidence;
mod memory;
mod network;
mod room;
mod sensor;
mod statistics;
mod stream;

use std::path::PathBuf;

use thiserror::Error;

pub use cell::{CellGraph, CellSettings, Findings, STEPS};
pub use device::Device;
pub use driver::LIBRARY;
pub use entry::{CellInput, Made, Start, Way};
pub use memory::WorkingMemory;
pub use network::{DeviceNetwork, NetworkError, Networks};

/// Why a device cannot be used, or failed.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no driver.
    #[error(
        "loading the CUDA driver {}: {why}; install NVIDIA's driver (on a Jetson, JetPack brings it), or choose the backend \
         cpu",
        library.display()
    )]
    NoDriver {
        /// What was looked for.
        library: PathBuf,
        /// What the loader said.
        why: String,
    },
    /// The driver sees no device.
    #[error(
        "the CUDA driver sees no NVIDIA device: is the user allowed to open it (group video), and the module loaded?"
    )]
    NoDevice,
    /// The device is older than the kernels.
    #[error(
        "the device {name} has compute capability {}.{}: the kernels need 8.0 (Ampere, such as an Orin) or newer; choose the \
         backend cpu", capability.0, capability.1
    )]
    OldDevice {
        /// Its name.
        name: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
    /// The driver is older than the kernels.
    #[error(
        "the CUDA driver is made for CUDA {}.{}: the kernels need 12.6 (JetPack 6.1) or newer; update it, or choose the \
         backend cpu", version / 1000, version % 1000 / 10
    )]
    OldDriver {
        /// The CUDA that it is made for: 12060 is 12.6.
        version: i32,
    },
    /// There is not enough memory.
    #[error(
        "allocating {what} on the device: {bytes} bytes are needed, {free} are free; end what else uses the device"
    )]
    Memory {
        /// What for.
        what: String,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes free.
        free: usize,
    },
    /// The kernels cannot do what the model asks for.
    #[error("the device path does not do {what}; choose the backend cpu")]
    Unsupported {
        /// What.
        what: String,
    },
    /// A call of the driver failed.
    #[error("{doing}: {call} gave {name} ({text})")]
    Call {
        /// What was attempted.
        doing: String,
        /// The driver's function.
        call: &'static str,
        /// The error's name.
        name: String,
        /// What the driver says of it.
        text: String,
    },
    /// The device said that it was done, and was not.
    #[error("measuring a cell: the device left results unwritten that it reported as done")]
    Unwritten,
    /// The network cannot be run.
    #[error(transparent)]
    Network(#[from] NetworkError),
}
