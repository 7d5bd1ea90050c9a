//! A fit's statistics on the device, and the kernel that measures by them.

use std::ffi::CStr;
use std::sync::Arc;

use super::CudaError;
use super::device::{Device, Kernel, arguments};
use super::memory::Buffer;
use super::stream::Stream;
use crate::gaussian::factors::position_stride;
use crate::gaussian::{Factors, Statistics};

/// Warps of a block, most first: as many as there is shared memory for.
const WARPS: [usize; 3] = [4, 2, 1];
const WARP: usize = 32;

/// The four maps of a cell, as the kernels take them: null where a stage is not used.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Maps {
    pub(super) data: [u64; 4],
    pub(super) side: [i32; 4],
}

/// Means and factors in device memory.
pub(super) struct DeviceStatistics {
    kernel: Kernel,
    warps: usize,
    grid: usize,
    k: usize,
    mean: Buffer<f32>,
    /// Halves or floats, as the kernel takes them.
    factors: Buffer<u8>,
    row_scale: Buffer<f32>,
}

impl DeviceStatistics {
    /// Copies a fit's statistics to the device.
    pub(super) fn new(device: &Arc<Device>, statistics: &Statistics<'_>) -> Result<Self, CudaError> {
        let (grid, k) = (statistics.grid(), statistics.k());
        let numbers = grid * grid * position_stride(k);
        let (number, factors): (usize, &[u8]) = match statistics.factors() {
            Factors::F16(u) => (2, bytemuck::cast_slice(&u[..numbers])),
            Factors::F32(u) => (4, bytemuck::cast_slice(&u[..numbers])),
        };
        let name: &'static CStr = match (k <= 128, number) {
            (true, 2) => c"embed_distance_half_128",
            (false, 2) => c"embed_distance_half_256",
            (true, _) => c"embed_distance_half_128_single",
            (false, _) => c"embed_distance_half_256_single",
        };
        let centred = k.next_multiple_of(WARP).max(WARP * number);
        let shared = |warps: usize| warps * (number * position_stride(k) + 4 * centred);
        let Some(warps) = WARPS.into_iter().find(|&warps| shared(warps) <= device.max_shared()) else {
            let what = format!(
                "k = {k}: a warp needs {} bytes of shared memory, a block has {}",
                shared(1),
                device.max_shared()
            );
            return Err(CudaError::Unsupported { what });
        };
        Ok(Self {
            kernel: device.kernel(name, shared(warps))?,
            warps,
            grid,
            k,
            mean: Buffer::of(device, "the means", &statistics.mean()[..grid * grid * k])?,
            factors: Buffer::of(device, "the factors", factors)?,
            row_scale: Buffer::of(device, "the scales of the factors' rows", statistics.row_scale())?,
        })
    }

    /// Grid and k.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.grid, self.k)
    }

    /// Bytes that a cell moves: all of the factors and means.
    pub(super) fn bytes(&self) -> usize {
        self.mean.bytes() + self.factors.bytes() + self.row_scale.bytes()
    }

    /// Puts the distance of the cell with these maps on the stream: grid² floats to `out`.
    ///
    /// # Safety
    /// The maps have the sides that they say and pixels of [`map_stride`] halves; `out` holds grid² floats; all of it lives
    /// until the stream is done.
    pub(super) unsafe fn measure(&self, stream: &Stream, maps: &Maps, out: u64) -> Result<(), CudaError> {
        let (grid, k, stride) = (self.grid as i32, self.k as i32, map_stride(self.k) as i32);
        let (mean, factors, scale) = (self.mean.address(), self.factors.address(), self.row_scale.address());
        let blocks = [(self.grid * self.grid).div_ceil(self.warps), 1];
        let arguments = arguments![*maps, mean, factors, scale, out, grid, k, stride];
        // SAFETY: the kernel's arguments; the statistics' lengths were checked when they were joined.
        unsafe {
            self.kernel.launch(stream.device(), stream.handle(), blocks, [(WARP * self.warps) as u32, 1], arguments)
        }
    }
}

/// Halves from one pixel of a map to the next.
pub(super) fn map_stride(k: usize) -> usize {
    k.next_multiple_of(8)
}
