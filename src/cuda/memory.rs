//! Memory of the device, and memory of the host that the device reads and writes.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use super::driver::OUT_OF_MEMORY;
use super::stream::Stream;
use super::{CudaError, Device};
use crate::frame::{Frame, PixelMemory};

/// CU_MEMHOSTALLOC_DEVICEMAP; not write-combined, since the CPU reads it too.
const DEVICE_MAP: u32 = 2;

/// `len` values in device memory.
pub(super) struct Buffer<T> {
    device: Arc<Device>,
    address: u64,
    len: usize,
    values: PhantomData<T>,
}

impl<T: bytemuck::NoUninit> Buffer<T> {
    /// Room for `len` values (at least one); `what` is what an error calls them.
    pub(super) fn new(device: &Arc<Device>, what: &str, len: usize) -> Result<Self, CudaError> {
        device.enter()?;
        let (mut address, bytes) = (0, len.max(1) * size_of::<T>());
        // SAFETY: a place to write to.
        let status = unsafe { (device.driver.calls.allocate)(&raw mut address, bytes) };
        if status == OUT_OF_MEMORY {
            let free = device.memory().map_or(0, |(free, _)| free);
            return Err(CudaError::Memory { what: what.into(), bytes, free });
        }
        device.check("cuMemAlloc", &format!("allocating {what}"), status)?;
        Ok(Self { device: Arc::clone(device), address, len, values: PhantomData })
    }

    /// These values.
    pub(super) fn of(device: &Arc<Device>, what: &str, values: &[T]) -> Result<Self, CudaError> {
        let mut buffer = Self::new(device, what, values.len())?;
        buffer.write(what, values)?;
        Ok(buffer)
    }

    /// Puts these values there, as many as it has. Nothing may be on its way on the device that reads or writes them.
    pub(super) fn write(&mut self, what: &str, values: &[T]) -> Result<(), CudaError> {
        assert_eq!(self.len, values.len(), "as many values");
        // SAFETY: as many bytes as were allocated; the call returns when they are there.
        let status = unsafe {
            let upload = self.device.driver.calls.upload;
            upload(self.address, values.as_ptr().cast(), size_of_val(values))
        };
        match status {
            0 => Ok(()),
            _ => self.device.check("cuMemcpyHtoD", &format!("copying {what} to the device"), status),
        }
    }

    /// Puts a copy of it to host memory of the same length on the stream.
    ///
    /// # Safety
    /// Both live until the stream is done with them.
    pub(super) unsafe fn download(&self, stream: &Stream, to: &mut Mapped<T>) -> Result<(), CudaError> {
        assert_eq!(self.len, to.len, "a copy of as many values");
        // SAFETY: as many bytes as either has.
        let status = unsafe {
            let download = self.device.driver.calls.download_async;
            download(to.host.cast(), self.address, self.bytes(), stream.handle())
        };
        self.device.check("cuMemcpyDtoHAsync", "copying results from the device", status)
    }

    /// Where it lies on the device.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Bytes of it.
    pub(super) fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // SAFETY: allocated by `new`; graphs that used it are gone or done.
        let _ = unsafe { (self.device.driver.calls.free)(self.address) };
    }
}

/// Memory of the device for whoever runs on it beside the kernels, such as a network's working memory. Aligned to 256
/// bytes; given back when dropped.
pub struct WorkingMemory(Buffer<u8>);

impl WorkingMemory {
    /// `bytes` of memory, whose content is anything; `what` is what an error calls it.
    ///
    /// # Errors
    /// If there is not enough, or the device fails.
    pub fn new(device: &Arc<Device>, what: &str, bytes: usize) -> Result<Self, CudaError> {
        Buffer::new(device, what, bytes).map(Self)
    }

    /// Where it lies on the device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.address()
    }

    /// Bytes of it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

/// `len` values in host memory that the device sees.
pub(super) struct Mapped<T> {
    device: Arc<Device>,
    host: *mut T,
    address: u64,
    len: usize,
}

// SAFETY: it owns its memory, which is plain numbers.
unsafe impl<T: Send> Send for Mapped<T> {}
// SAFETY: as above; a shared one is only read.
unsafe impl<T: Sync> Sync for Mapped<T> {}

impl<T: bytemuck::Pod> Mapped<T> {
    /// `len` zeros (at least one).
    pub(super) fn new(device: &Arc<Device>, what: &str, len: usize) -> Result<Self, CudaError> {
        device.enter()?;
        let (mut host, bytes) = (null_mut::<c_void>(), len.max(1) * size_of::<T>());
        // SAFETY: a place to write to.
        let status = unsafe { (device.driver.calls.allocate_host)(&raw mut host, bytes, DEVICE_MAP) };
        if status == OUT_OF_MEMORY {
            let free = device.memory().map_or(0, |(free, _)| free);
            return Err(CudaError::Memory { what: what.into(), bytes, free });
        }
        device.check("cuMemHostAlloc", &format!("allocating {what}"), status)?;
        let mut mapped = Self { device: Arc::clone(device), host: host.cast(), address: 0, len };
        // SAFETY: as many bytes as were allocated, and numbers that may be all zeros; pages are aligned for all of them.
        let status = unsafe {
            mapped.host.cast::<u8>().write_bytes(0, bytes);
            (device.driver.calls.host_address)(&raw mut mapped.address, host, 0)
        };
        device.check("cuMemHostGetDevicePointer", &format!("mapping {what}"), status)?;
        Ok(mapped)
    }

    /// Where the device sees it.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// The values. Nothing may be on its way on the device that writes them.
    pub(super) fn values(&self) -> &[T] {
        // SAFETY: zeros or numbers since `new`, and the stream has been waited for.
        unsafe { std::slice::from_raw_parts(self.host, self.len) }
    }

    /// The values, to be written. Nothing may be on its way on the device that reads or writes them.
    pub(super) fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.host, self.len) }
    }
}

// SAFETY: pages that the driver has locked stay where they are, and were zeros at first. The device writes them only while
// `CellGraph::correct` holds the frame to be written, and reads them only while it is held to be read.
unsafe impl PixelMemory for Mapped<u16> {
    fn start(&self) -> NonNull<u16> {
        NonNull::new(self.host).unwrap_or(NonNull::dangling())
    }

    fn len(&self) -> usize {
        if self.host.is_null() { 0 } else { self.len }
    }
}

/// Where `device` sees the pixels of a frame that lies in memory which it sees.
pub(super) fn address_of(frame: &Frame, device: &Device) -> Option<u64> {
    let memory = frame.memory::<Mapped<u16>>()?;
    memory.device.is_same(device).then_some(memory.address)
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // SAFETY: allocated by `new`; graphs that used it are gone or done.
        let _ = unsafe { (self.device.driver.calls.free_host)(self.host.cast()) };
    }
}
