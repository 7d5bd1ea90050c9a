//! The one stream, and the graphs that are captured from it.

use std::ptr::null_mut;
use std::sync::Arc;

use super::driver::Handle;
use super::{CudaError, Device};

/// CU_STREAM_NON_BLOCKING: it waits for no other stream.
const NON_BLOCKING: u32 = 1;
/// CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do does not break a capture.
const THREAD_LOCAL: i32 = 1;
const CAPTURING: &str = "capturing the way of a cell";

/// Work in order.
pub(super) struct Stream {
    device: Arc<Device>,
    handle: Handle,
}

// SAFETY: a stream may be used from any thread, by one at a time.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        device.enter()?;
        let mut handle = null_mut();
        // SAFETY: a place to write to.
        let status = unsafe { (device.driver.calls.new_stream)(&raw mut handle, NON_BLOCKING) };
        device.check("cuStreamCreate", "making a stream", status)?;
        Ok(Self { device: Arc::clone(device), handle })
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    /// Waits until all is done that was put on it.
    pub(super) fn wait(&self, doing: &str) -> Result<(), CudaError> {
        // SAFETY: the stream lives.
        let status = unsafe { (self.device.driver.calls.synchronise)(self.handle) };
        self.device.check("cuStreamSynchronize", doing, status)
    }

    /// From here on the stream records what is put on it instead of doing it.
    pub(super) fn begin_capture(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives.
        let status = unsafe { (self.device.driver.calls.begin_capture)(self.handle, THREAD_LOCAL) };
        self.device.check("cuStreamBeginCapture", CAPTURING, status)
    }

    /// Ends the recording, and makes a graph of it if all that was `put` went well.
    pub(super) fn end_capture(&self, put: Result<(), CudaError>) -> Result<Graph, CudaError> {
        let (device, calls) = (&self.device, &self.device.driver.calls);
        let (mut graph, mut executable) = (null_mut(), null_mut());
        // SAFETY: a place to write to.
        let status = unsafe { (calls.end_capture)(self.handle, &raw mut graph) };
        let ended = put.and_then(|()| device.check("cuStreamEndCapture", CAPTURING, status));
        let made = ended.and_then(|()| {
            // SAFETY: a place to write to, and the graph that was just captured.
            let status = unsafe { (calls.instantiate)(&raw mut executable, graph, 0) };
            device.check("cuGraphInstantiate", "preparing the way of a cell", status)
        });
        if !graph.is_null() {
            // SAFETY: nobody else has it; what was instantiated is a copy.
            let _ = unsafe { (calls.destroy_graph)(graph) };
        }
        made.map(|()| Graph { device: Arc::clone(device), executable })
    }

    /// Puts a graph on the stream.
    pub(super) fn launch(&self, graph: &Graph) -> Result<(), CudaError> {
        // SAFETY: both live; what the graph works on is held by whoever holds it.
        let status = unsafe { (self.device.driver.calls.launch_graph)(graph.executable, self.handle) };
        self.device.check("cuGraphLaunch", "starting the way of a cell", status)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // SAFETY: made by `new`.
        let _ = unsafe { (self.device.driver.calls.destroy_stream)(self.handle) };
    }
}

/// Work that was captured, ready to be started as a whole.
pub(super) struct Graph {
    device: Arc<Device>,
    executable: Handle,
}

// SAFETY: as a stream's.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // SAFETY: made by `capture`.
        let _ = unsafe { (self.device.driver.calls.destroy_executable)(self.executable) };
    }
}

/// A moment on a stream.
pub(super) struct Event {
    device: Arc<Device>,
    handle: Handle,
}

impl Event {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        device.enter()?;
        let mut handle = null_mut();
        // SAFETY: a place to write to.
        let status = unsafe { (device.driver.calls.new_event)(&raw mut handle, 0) };
        device.check("cuEventCreate", "making an event", status)?;
        Ok(Self { device: Arc::clone(device), handle })
    }

    /// Marks where the stream is now.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both live.
        let status = unsafe { (self.device.driver.calls.record)(self.handle, stream.handle) };
        self.device.check("cuEventRecord", "timing a step", status)
    }

    /// Milliseconds from `earlier` to this; both have happened.
    pub(super) fn since(&self, earlier: &Self) -> Result<f32, CudaError> {
        let mut milliseconds = 0.0;
        // SAFETY: a place to write to, and events that live.
        let status = unsafe { (self.device.driver.calls.elapsed)(&raw mut milliseconds, earlier.handle, self.handle) };
        self.device.check("cuEventElapsedTime", "timing a step", status).map(|()| milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // SAFETY: made by `new`.
        let _ = unsafe { (self.device.driver.calls.destroy_event)(self.handle) };
    }
}
