//! A sensor's correction on the device.

use std::sync::Arc;

use super::device::{Kernel, arguments};
use super::entry::THREADS;
use super::memory::Buffer;
use super::stream::Stream;
use super::{CudaError, Device};
use crate::camera::Format;
use crate::frame::Frame;
use crate::preprocess::sensor::{Correction, NEIGHBOURS};

/// Pixels that a thread corrects.
const PIXELS: usize = 4;

/// The tables of a correction in device memory, and the kernels that go by them.
pub(super) struct Sensor {
    source: Arc<Correction>,
    correct: Kernel,
    mend: Kernel,
    count: usize,
    white: i32,
    places: i32,
    dark: Buffer<u16>,
    gain: Buffer<u16>,
    bad: Buffer<u32>,
    bads: usize,
    neighbours: Buffer<u32>,
}

impl Sensor {
    pub(super) fn new(device: &Arc<Device>, source: &Arc<Correction>) -> Result<Self, CudaError> {
        let (tables, format) = (source.tables(), source.format());
        let neighbours = tables.neighbours.iter().flat_map(|(count, at)| std::iter::once(u32::from(*count)).chain(*at));
        let neighbours: Vec<u32> = neighbours.collect();
        debug_assert_eq!(neighbours.len(), tables.bad.len() * (1 + NEIGHBOURS));
        Ok(Self {
            source: Arc::clone(source),
            correct: device.kernel(c"correct_frame", 0)?,
            mend: device.kernel(c"correct_bad", 0)?,
            count: format.width * format.height,
            white: i32::from(format.white),
            places: tables.places as i32,
            dark: Buffer::of(device, "the sensor's dark signal", tables.dark)?,
            gain: Buffer::of(device, "the sensor's gains", tables.gain)?,
            bad: Buffer::of(device, "the sensor's bad pixels", tables.bad)?,
            bads: tables.bad.len(),
            neighbours: Buffer::of(device, "the bad pixels' neighbours", &neighbours)?,
        })
    }

    /// Longest side of its frames.
    pub(super) fn side(&self) -> usize {
        self.source.format().width.max(self.source.format().height)
    }

    /// Whether a frame that is to be corrected by `sensor` is this one's.
    pub(super) fn corrects(&self, frame: &Frame, sensor: &Arc<Correction>) -> bool {
        Arc::ptr_eq(&self.source, sensor) && Format::of(frame) == self.source.format()
    }

    /// Bytes of device memory.
    pub(super) fn bytes(&self) -> usize {
        self.dark.bytes() + self.gain.bytes() + self.bad.bytes() + self.neighbours.bytes()
    }

    /// Puts the correction of the frame that `taken` leads to on the stream, with a copy of it to `pixels`.
    ///
    /// # Safety
    /// `taken` is the kernels' own, and names either no frame or one of as many pixels as this is for; `pixels` holds as many;
    /// all of it lives until the stream is done.
    pub(super) unsafe fn put(&self, stream: &Stream, taken: u64, pixels: u64) -> Result<(), CudaError> {
        let (device, handle, threads) = (stream.device(), stream.handle(), [THREADS as u32, 1]);
        let (dark, gain, count) = (self.dark.address(), self.gain.address(), self.count as i32);
        let (white, places) = (self.white, self.places);
        let (bad, neighbours, bads) = (self.bad.address(), self.neighbours.address(), self.bads as i32);
        // SAFETY: the kernels' arguments, and tables of the sizes that they name.
        unsafe {
            let blocks = [self.count.div_ceil(PIXELS * THREADS), 1];
            let arguments = arguments![taken, dark, gain, pixels, count, white, places];
            self.correct.launch(device, handle, blocks, threads, arguments)?;
            if self.bads == 0 {
                return Ok(());
            }
            let blocks = [self.bads.div_ceil(THREADS), 1];
            self.mend.launch(device, handle, blocks, threads, arguments![taken, pixels, bad, neighbours, bads])
        }
    }
}
