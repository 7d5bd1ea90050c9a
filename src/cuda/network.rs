//! A network that runs on the device's stream, as the frame's graph needs it.

use std::ffi::c_void;

use thiserror::Error;

/// A network that lies on the device: its input and its outputs are device memory, and it is only put on a stream, never
/// waited for.
///
/// It is put on the stream while the stream is captured into a graph, and so may neither allocate, nor wait, nor touch
/// another stream. Before the capture it is run once outside of one, so that whatever is set up lazily is there.
pub trait DeviceNetwork: Send {
    /// Which network this is, for people: backbone, precision and who computes it.
    fn name(&self) -> String;

    /// Bytes of device memory that it holds beside its inputs and outputs: weights and working memory.
    fn device_memory(&self) -> usize;

    /// Puts one run on `stream`, a `CUstream` of the current context.
    ///
    /// # Safety
    /// `input` and `outputs` are device addresses, aligned to 256 bytes, of buffers of the sizes that the network was made
    /// for, which live until the stream (and every graph that it was captured into) is done with them. The context that
    /// the network was made in is current on this thread.
    ///
    /// # Errors
    /// If the run cannot be put on the stream; nothing of it was then.
    unsafe fn enqueue(&mut self, input: u64, outputs: &[u64], stream: *mut c_void) -> Result<(), NetworkError>;
}

/// The networks of a model, on a device.
pub struct Networks {
    /// Backbone and projection, of as many images as views are pooled, and of one at least: `[images, 1, S, S]`. Its outputs
    /// are the projected maps of the stages that are used, `[images, side, side, stride]`, and where features are pooled all
    /// four stages themselves, `[images, side, side, channels]`.
    pub features: Box<dyn DeviceNetwork>,
    /// The classifier's, where the judge asks one, of each of the judge's ways: planes of `[ways, planes, 64, 64]`; logits and
    /// probabilities of `[ways, levels]`.
    pub classifier: Option<Box<dyn DeviceNetwork>>,
}

/// A network could not be run on the device.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("running the network {name} on the device: {why}")]
pub struct NetworkError {
    /// Which network: [`DeviceNetwork::name`].
    pub name: String,
    /// What went wrong.
    pub why: String,
}
