//! How a cell comes in: as a frame that the device straightens, or as an image that the CPU has made.

use std::sync::Arc;

use super::device::{Kernel, arguments};
use super::memory::{Buffer, Mapped};
use super::stream::Stream;
use super::{CudaError, Device};
use crate::frame::Frame;
use crate::preprocess::{self, Placement};

/// Threads of a block of a kernel with one thread a value, and of one that reduces with a single block.
pub(super) const THREADS: usize = 256;
pub(super) const ONE_BLOCK: u32 = 1024;
/// What results hold until the device has written them: no number, and no count that there could be.
pub(super) const UNWRITTEN: u32 = u32::MAX;

/// What a graph begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Images that the CPU has made (models of whole frames, whose resampling has no kernel).
    Image,
    /// Frames in which the CPU has found the cell, of up to so many pixels.
    Frame {
        /// Most pixels of a frame.
        pixels: usize,
    },
}

/// A cell to be measured.
#[derive(Clone, Copy, Debug)]
pub enum CellInput<'a> {
    /// S² values, rectified and normalised, for a graph that starts with [`Start::Image`].
    Image(&'a [f32]),
    /// A frame and where the cell lies in it, for one that starts with [`Start::Frame`].
    Frame(&'a Frame, &'a Placement),
}

/// `Placed` of kernels/frame.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Placed {
    homography: [f64; 9],
    width: i32,
    height: i32,
    taps: i32,
    factor: f32,
    shift: f32,
    padding: u32,
}

/// The memory that a cell comes in by, and the kernels that read it.
pub(super) enum Entry {
    Image { image: Mapped<f32>, normalise: Kernel },
    Frame(Box<FrameEntry>),
}

pub(super) struct FrameEntry {
    rectify: Kernel,
    measure: Kernel,
    pixels: Mapped<u16>,
    placed: Mapped<Placed>,
    /// In the frame's units, on the device and for the host.
    image: Buffer<f32>,
    shown: Mapped<f32>,
    /// Mean in the frame's units, and sharpness.
    measures: Mapped<u32>,
    white: f32,
}

impl Entry {
    pub(super) fn new(device: &Arc<Device>, start: Start, size: usize) -> Result<Self, CudaError> {
        Ok(match start {
            Start::Image => Self::Image {
                image: Mapped::new(device, "the image", size * size)?,
                normalise: device.kernel(c"normalise_half", 0)?,
            },
            Start::Frame { pixels } => Self::Frame(Box::new(FrameEntry {
                rectify: device.kernel(c"rectify_image", 0)?,
                measure: device.kernel(c"measure_image", 0)?,
                pixels: Mapped::new(device, "the frame", pixels)?,
                placed: Mapped::new(device, "the cell's place", 1)?,
                image: Buffer::new(device, "the image", size * size)?,
                shown: Mapped::new(device, "the image", size * size)?,
                measures: Mapped::new(device, "the image's measures", 2)?,
                white: 1.0,
            })),
        })
    }

    /// What it was made for.
    pub(super) fn start(&self) -> Start {
        match self {
            Self::Image { .. } => Start::Image,
            Self::Frame(entry) => Start::Frame { pixels: entry.pixels.values().len() },
        }
    }

    /// Bytes of device memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Image { .. } => 0,
            Self::Frame(entry) => entry.image.bytes(),
        }
    }

    /// Takes a cell, and makes the results of the one before unreadable.
    ///
    /// # Panics
    /// If the input is of another kind or size than this was made for.
    pub(super) fn take(&mut self, input: CellInput<'_>) {
        match (self, input) {
            (Self::Image { image, .. }, CellInput::Image(values)) => image.values_mut().copy_from_slice(values),
            (Self::Frame(entry), CellInput::Frame(frame, placement)) => {
                entry.pixels.values_mut()[..frame.pixels().len()].copy_from_slice(frame.pixels());
                let [factor, shift] = preprocess::normalisation(frame);
                entry.placed.values_mut()[0] = Placed {
                    homography: placement.homography,
                    width: frame.width() as i32,
                    height: frame.height() as i32,
                    taps: preprocess::taps(placement) as i32,
                    factor,
                    shift,
                    padding: 0,
                };
                entry.measures.values_mut().fill(UNWRITTEN);
                entry.shown.values_mut().fill(f32::from_bits(UNWRITTEN));
                entry.white = f32::from(frame.white());
            }
            _ => panic!("a cell that comes in otherwise than the graph was made for"),
        }
    }

    /// Puts the way to the network's input on the stream: size² halves at `input`.
    ///
    /// # Safety
    /// `input` is device memory of that size; it and this live until the stream is done.
    pub(super) unsafe fn put(&self, stream: &Stream, size: usize, input: u64) -> Result<(), CudaError> {
        let (device, handle, side, count) = (stream.device(), stream.handle(), size as i32, (size * size) as i32);
        // SAFETY: the kernels' own arguments, and buffers of the sizes that they name.
        unsafe {
            match self {
                Self::Image { image, normalise } => {
                    let (image, factor, shift) = (image.address(), 1.0f32, 0.0f32);
                    let grid = [(size * size).div_ceil(THREADS), 1];
                    let arguments = arguments![image, factor, shift, input, count];
                    normalise.launch(device, handle, grid, [THREADS as u32, 1], arguments)
                }
                Self::Frame(entry) => {
                    let (frame, placed, image) =
                        (entry.pixels.address(), entry.placed.address(), entry.image.address());
                    let grid = [size.div_ceil(THREADS), size];
                    entry.rectify.launch(
                        device,
                        handle,
                        grid,
                        [32, 8],
                        arguments![frame, placed, image, input, side],
                    )?;
                    let measures = entry.measures.address();
                    entry.measure.launch(device, handle, [1, 1], [ONE_BLOCK, 1], arguments![image, side, measures])
                }
            }
        }
    }

    /// Puts what goes back to the host on the stream.
    ///
    /// # Safety
    /// This lives until the stream is done.
    pub(super) unsafe fn put_back(&mut self, stream: &Stream) -> Result<(), CudaError> {
        match self {
            Self::Image { .. } => Ok(()),
            // SAFETY: as the caller promised.
            Self::Frame(entry) => unsafe { entry.image.download(stream, &mut entry.shown) },
        }
    }

    /// The straightened image in the frame's units, and its brightness (of full scale) and sharpness, where the device made
    /// it.
    pub(super) fn straightened(&self) -> Result<Option<Straightened<'_>>, CudaError> {
        let Self::Frame(entry) = self else { return Ok(None) };
        let (image, measures) = (entry.shown.values(), entry.measures.values());
        let [mean, sharpness] = [measures[0], measures[1]].map(f32::from_bits);
        // Both come from integers, so that no number can be lost on the way.
        if !mean.is_finite() || !sharpness.is_finite() || !image.iter().all(|value| value.is_finite()) {
            return Err(CudaError::Unwritten);
        }
        Ok(Some(Straightened { image, brightness: mean / entry.white, sharpness }))
    }
}

/// What the device made of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Straightened<'a> {
    /// S² values in the frame's own units.
    pub image: &'a [f32],
    /// Their mean, of full scale.
    pub brightness: f32,
    /// Root mean square of their Laplacian, divided by their mean.
    pub sharpness: f32,
}
