//! An engine on the frame's stream.

use std::any::Any;
use std::ffi::{CString, c_void};

use super::engine::{Context, Engine, c_name};
use super::error::TensorRtError;
use super::source::Source;
use crate::cuda::{DeviceNetwork, NetworkError};

/// A [`Source`]'s engine, ready to run. Nothing is allocated by a run.
///
/// TensorRT sets some things up at the first run: put one on the stream before a capture.
#[derive(Debug)]
pub struct TensorRtNetwork {
    name: String,
    context: Context,
    /// The input, then the outputs.
    tensors: Vec<CString>,
    /// Where each was bound last; 0 before that.
    bound: Vec<u64>,
    working_memory: usize,
    /// Whoever frees the working memory; after the context, since fields are dropped in this order.
    _owner: Box<dyn Any + Send>,
}

impl TensorRtNetwork {
    /// Makes an engine ready in `size` bytes of working memory at `memory`; [`Engine::working_memory`] says how many it needs.
    /// `owner` is dropped when the network is gone.
    ///
    /// # Safety
    /// `memory` is a device address of the current CUDA context, aligned to 256 bytes, of `size` bytes that live at least
    /// until `owner` is dropped and that nothing else uses. The network outlives every graph that it was captured into.
    ///
    /// # Errors
    /// If the engine's tensors are not the source's, the memory is too small, or TensorRT refuses.
    pub unsafe fn new(
        engine: Engine,
        source: &Source,
        memory: u64,
        size: usize,
        owner: impl Send + 'static,
    ) -> Result<Self, TensorRtError> {
        engine.check(&source.kind().to_string(), source.tensors())?;
        let name = format!("{} ({:.12}, halves, TensorRT {})", source.kind(), source.hash(), engine.version());
        let tensors: Vec<CString> = source.tensors().iter().map(|tensor| c_name(&tensor.name)).collect();
        // SAFETY: as the caller says.
        let context = unsafe { Context::new(engine, memory, size) }?;
        Ok(Self {
            name,
            context,
            bound: vec![0; tensors.len()],
            tensors,
            working_memory: size,
            _owner: Box::new(owner),
        })
    }

    /// # Safety
    /// As [`DeviceNetwork::enqueue`].
    unsafe fn try_enqueue(&mut self, input: u64, outputs: &[u64], stream: *mut c_void) -> Result<(), String> {
        if outputs.len() + 1 != self.tensors.len() {
            return Err(format!("{} outputs were given, it has {}", outputs.len(), self.tensors.len() - 1));
        }
        for (at, &address) in std::iter::once(&input).chain(outputs).enumerate() {
            if address == 0 {
                return Err(format!("{}: its address is null", self.tensors[at].to_string_lossy()));
            }
            if self.bound[at] == address {
                continue;
            }
            // SAFETY: as the caller says.
            unsafe { self.context.bind(&self.tensors[at], address) }?;
            self.bound[at] = address;
        }
        // SAFETY: all tensors are bound, and the stream is what the caller says.
        unsafe { self.context.enqueue(stream) }
    }
}

impl DeviceNetwork for TensorRtNetwork {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn device_memory(&self) -> usize {
        self.context.engine().plan_bytes() + self.working_memory
    }

    unsafe fn enqueue(&mut self, input: u64, outputs: &[u64], stream: *mut c_void) -> Result<(), NetworkError> {
        // SAFETY: as the caller says.
        unsafe { self.try_enqueue(input, outputs, stream) }.map_err(|why| NetworkError { name: self.name.clone(), why })
    }
}
