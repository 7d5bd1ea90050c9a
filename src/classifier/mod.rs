//! The classifier: a ResNet18 on heatmaps, trained here and run by the CPU engine.
//!
//! The network is torchvision's ResNet18 on maps of [`SIDE`]×[`SIDE`] with one or two input planes: the heatmap, and
//! the rectified image beside it. [`Network`] holds its parameters,
//! [`train`] fits them, [`Network::fold`] gives the form that inspection runs, [`infer`].
//!
//! Beside it stands a second judge that needs no training by gradients: a kernel machine, [`kernel`], on numbers that
//! describe what the backbone and the heatmap saw of a cell, [`features`].

pub mod features;
pub mod infer;
pub mod kernel;
pub mod network;
pub mod optimiser;
pub mod train;

pub use network::{Folded, Network, NetworkError, Tensor, Tensors};

/// Side of the classifier's input planes, in pixels.
pub const SIDE: usize = 64;
