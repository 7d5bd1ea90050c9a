//! The classifier: a ResNet18 on heatmaps, trained here and run by the CPU engine, and a kernel machine beside it.
//!
//! The network is torchvision's ResNet18 on maps of [`SIDE`]×[`SIDE`] or more with one or two input [`planes`]: the heatmap,
//! and the rectified image beside it. [`Network`] holds its parameters, [`train`] makes steps, [`learning`] a whole course of
//! them; [`Network::fold`] gives the form that inspection runs, [`infer`].
//!
//! Beside it stands a kernel machine, [`kernel`], on numbers that describe what the backbone and the heatmap saw of a
//! cell, [`features`]. A [`judge`] asks one of them or both, on what a [witness](evidence) saw, and gives calibrated
//! probabilities.

pub mod evidence;
pub mod features;
pub mod infer;
pub mod judge;
pub mod kernel;
pub mod learning;
pub mod network;
pub mod optimiser;
pub mod planes;
pub mod train;

pub use infer::softmax;
pub use network::{Folded, Network, NetworkError, Tensor, Tensors};

/// Side of the network's input planes, in pixels, if nothing else is asked for.
pub const SIDE: usize = 64;

/// The sides that there are: five halvings leave whole pixels, and the training's blocks are whole images or parts of one.
pub const SIDES: [usize; 4] = [SIDE, 128, 256, 512];
