//! An engine: a network built for one GPU.

use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::ptr::{self, NonNull};

use super::error::TensorRtError;
use super::ffi::{self, reason};
use super::layers::{self, Layer};
use super::runtime::{Runtime, Version};

/// What a tensor is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 16-bit floating point.
    Half,
    /// 32-bit floating point.
    Float,
    /// Anything else, by TensorRT's number of it.
    Other(i32),
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Half => f.write_str("halves"),
            Self::Float => f.write_str("floats"),
            Self::Other(number) => write!(f, "TensorRT's type {number}"),
        }
    }
}

/// An input or output of a network: a row-major array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// An input, or else an output.
    pub is_input: bool,
    /// What it is made of.
    pub element: Element,
    /// Sizes of its dimensions, outermost first; −1 where it is open.
    pub shape: Vec<i64>,
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.is_input { "input" } else { "output" };
        write!(f, "{way} {} of {} {:?}", self.name, self.element, self.shape)
    }
}

/// A network built for one GPU, with its weights in device memory.
#[derive(Debug)]
pub struct Engine {
    handle: NonNull<ffi::Engine>,
    tensors: Vec<Tensor>,
    plan_bytes: usize,
    /// Lives at least as long as the engine.
    runtime: Runtime,
}

// SAFETY: TensorRT's engines may move between threads.
unsafe impl Send for Engine {}

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: contexts own the engine that they come from, so none is left.
        unsafe { (self.runtime.api().free_engine)(self.handle.as_ptr()) }
    }
}

impl Engine {
    /// # Safety
    /// The shim gave `handle` of this runtime, and nobody else has it.
    pub(super) unsafe fn from_handle(
        handle: NonNull<ffi::Engine>,
        runtime: Runtime,
        plan_bytes: usize,
    ) -> Result<Self, TensorRtError> {
        let mut engine = Self { handle, tensors: Vec::new(), plan_bytes, runtime };
        // SAFETY: the engine lives.
        let count = unsafe { (engine.runtime.api().tensor_count)(handle.as_ptr()) };
        engine.tensors = (0..count).map(|index| engine.describe(index)).collect::<Result<_, _>>()?;
        Ok(engine)
    }

    fn describe(&self, index: i32) -> Result<Tensor, TensorRtError> {
        let mut tensor =
            ffi::Tensor { name: ptr::null(), is_input: 0, is_linear: 0, element: 0, rank: 0, size: [0; 8] };
        let unknown = |why| TensorRtError::Plan { why };
        // SAFETY: the engine lives, and there is a place for the description.
        if unsafe { (self.runtime.api().describe)(self.handle.as_ptr(), index, &raw mut tensor) } != ffi::OK {
            return Err(unknown(format!("tensor {index} is unknown: {}", reason(self.runtime.api()))));
        }
        // SAFETY: the shim gives a name that ends with a zero and lives as long as the engine.
        let name = unsafe { CStr::from_ptr(tensor.name) }.to_string_lossy().into_owned();
        if tensor.is_linear == 0 {
            return Err(unknown(format!("tensor {name} is not a row-major array")));
        }
        let element = match tensor.element {
            0 => Element::Float,
            1 => Element::Half,
            other => Element::Other(other),
        };
        let shape = tensor.size[..usize::try_from(tensor.rank).unwrap_or(0)].to_vec();
        Ok(Tensor { name, is_input: tensor.is_input != 0, element, shape })
    }

    /// The TensorRT that runs it.
    #[must_use]
    pub fn version(&self) -> Version {
        self.runtime.version()
    }

    /// Its inputs and outputs.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Refuses an engine whose tensors are not exactly those of `network`.
    ///
    /// # Errors
    /// The first that is missing, superfluous or differs.
    pub fn check(&self, network: &str, expected: &[Tensor]) -> Result<(), TensorRtError> {
        let wrong = |why| Err(TensorRtError::Tensors { network: network.to_owned(), why });
        for tensor in expected {
            match self.tensors.iter().find(|own| own.name == tensor.name) {
                Some(own) if own == tensor => {}
                Some(own) => return wrong(format!("it has {own}, expected is {tensor}")),
                None => return wrong(format!("it lacks {tensor}")),
            }
        }
        match self.tensors.iter().find(|own| !expected.iter().any(|tensor| tensor.name == own.name)) {
            Some(extra) => wrong(format!("it has {extra}, which the network has not")),
            None => Ok(()),
        }
    }

    /// Bytes of device memory that a run works in, beside inputs and outputs.
    #[must_use]
    pub fn working_memory(&self) -> usize {
        // SAFETY: the engine lives.
        usize::try_from(unsafe { (self.runtime.api().working_memory)(self.handle.as_ptr()) }).unwrap_or(0)
    }

    /// Bytes of its plan, nearly all of them weights, which lie in device memory.
    #[must_use]
    pub fn plan_bytes(&self) -> usize {
        self.plan_bytes
    }

    /// The layers that TensorRT made of the network.
    ///
    /// # Errors
    /// If TensorRT does not say.
    pub fn layers(&self) -> Result<Vec<Layer>, TensorRtError> {
        let mut json = Vec::<u8>::new();
        // SAFETY: the engine lives, and `take` gets the pointer to `json`.
        let status = unsafe { (self.runtime.api().inspect)(self.handle.as_ptr(), take, (&raw mut json).cast()) };
        if status != ffi::OK {
            let why = reason(self.runtime.api());
            return Err(TensorRtError::Refused { what: "inspecting a TensorRT engine", why });
        }
        layers::parse(&json).map_err(|error| TensorRtError::Plan { why: format!("its layers cannot be read: {error}") })
    }
}

extern "C" fn take(json: *mut c_void, bytes: *const c_void, size: usize) {
    // SAFETY: `layers` passes its vector, and the shim bytes that live through the call.
    unsafe { (*json.cast::<Vec<u8>>()).extend_from_slice(std::slice::from_raw_parts(bytes.cast(), size)) }
}

/// An engine ready to run in its own working memory.
#[derive(Debug)]
pub(super) struct Context {
    handle: NonNull<ffi::Context>,
    engine: Engine,
}

// SAFETY: a context may move between threads; it is used through `&mut` only.
unsafe impl Send for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it lives, and before its engine goes.
        unsafe { (self.api().free_context)(self.handle.as_ptr()) }
    }
}

impl Context {
    /// # Safety
    /// `memory` is a device address, aligned to 256 bytes, of `size` bytes that nothing else uses while the context lives.
    pub(super) unsafe fn new(engine: Engine, memory: u64, size: usize) -> Result<Self, TensorRtError> {
        let mut handle = ptr::null_mut();
        let bytes = i64::try_from(size).unwrap_or(i64::MAX);
        let api = engine.runtime.api();
        // SAFETY: the engine lives, and the memory is what the caller says.
        let status =
            unsafe { (api.new_context)(engine.handle.as_ptr(), memory as *mut c_void, bytes, &raw mut handle) };
        match (status, NonNull::new(handle)) {
            (ffi::OK, Some(handle)) => Ok(Self { handle, engine }),
            (ffi::MEMORY, _) => Err(TensorRtError::Memory { why: reason(api) }),
            _ => Err(TensorRtError::Refused { what: "making ready a TensorRT engine", why: reason(api) }),
        }
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    fn api(&self) -> &'static ffi::Api {
        self.engine.runtime.api()
    }

    /// Says where a tensor lies.
    ///
    /// # Safety
    /// `address` is a device address of a buffer that is large enough and lives as long as runs use it.
    pub(super) unsafe fn bind(&mut self, tensor: &CStr, address: u64) -> Result<(), String> {
        // SAFETY: the context lives, and the address is what the caller says.
        match unsafe { (self.api().bind)(self.handle.as_ptr(), tensor.as_ptr(), address as *mut c_void) } {
            ffi::OK => Ok(()),
            _ => Err(format!("{}: {}", tensor.to_string_lossy(), reason(self.api()))),
        }
    }

    /// Puts a run on a stream.
    ///
    /// # Safety
    /// All tensors are bound, and `stream` is one of the current CUDA context.
    pub(super) unsafe fn enqueue(&mut self, stream: *mut c_void) -> Result<(), String> {
        // SAFETY: as the caller says.
        match unsafe { (self.api().enqueue)(self.handle.as_ptr(), stream) } {
            ffi::OK => Ok(()),
            _ => Err(reason(self.api())),
        }
    }
}

/// A tensor's name for the shim.
pub(super) fn c_name(name: &str) -> CString {
    CString::new(name).unwrap_or_else(|_| unreachable!("it was read as a C string"))
}
