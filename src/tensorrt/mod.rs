//! TensorRT, NVIDIA's engine for networks, on Jetsons and other NVIDIA cards: `docs/tensorrt.md` tells how to set it up.
//!
//! ```text
//!  model, backbone ──► Source ──► engines ──► Engine ──► TensorRtNetwork
//!                      ONNX of    built once  read from  runs on the
//!                      halves     on a device its file   frame's stream
//! ```
//!
//! [`Source`] writes the two networks of a model as ONNX: the backbone with the projection folded in, and the classifier.
//! [`engines`] builds an engine of one on the device and keeps it in a file, which names what it was built of and for and is
//! refused elsewhere. [`TensorRtNetwork`] runs it in working memory that the caller gives, and allocates nothing then. Kernel
//! machine, judge and verdict stay on the CPU.
//!
//! TensorRT itself is loaded when a [`Runtime`] is opened, through the C++ of `shim.cpp`, which `--features tensorrt` compiles.
//! Without the feature all of this is there, and [`Runtime::open`] says what is missing.

mod engine;
pub mod engines;
mod error;
mod ffi;
mod layers;
mod network;
mod runtime;
mod source;

pub use engine::{Element, Engine, Tensor};
pub use error::TensorRtError;
pub use layers::Layer;
pub use network::TensorRtNetwork;
pub use runtime::{BuildOptions, Built, Runtime, Version};
pub use source::{Kind, Source};
