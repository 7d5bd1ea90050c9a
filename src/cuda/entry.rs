//! How a cell comes in: its frame is taken from mapped memory, corrected on the way where the sensor needs it, and made an
//! image of.

use std::sync::Arc;

use super::device::{Kernel, arguments};
use super::memory::{Buffer, Mapped, address_of};
use super::sensor::Sensor;
use super::stream::{Graph, Stream};
use super::{CudaError, Device};
use crate::frame::Frame;
use crate::preprocess::sensor::Correction;
use crate::preprocess::{self, Axis, Placement};

/// Threads of a block of a kernel with one thread a value, and of one that reduces with a single block.
pub(super) const THREADS: usize = 256;
pub(super) const ONE_BLOCK: u32 = 1024;
/// What results hold until the device has written them: no number, and no count that there could be.
pub(super) const UNWRITTEN: u32 = u32::MAX;
/// Blocks that take a frame of any size: enough for the largest of today's devices, each for as long as there is some.
const TAKERS: usize = 128;

/// How a frame becomes an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The CPU finds the cell in it, and the device straightens that.
    Straighten,
    /// The frame is the cell, and is resampled.
    Resample,
}

/// What a graph begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// How a frame becomes an image.
    pub way: Way,
    /// Longest side of a frame.
    pub side: usize,
}

/// A frame whose cell is to be measured.
#[derive(Clone, Copy, Debug)]
pub enum CellInput<'a> {
    /// As it is. It is copied once, unless it lies [where the device sees it](Device::frame).
    Frame(&'a Frame),
    /// The one that [`CellGraph::correct`](super::CellGraph::correct) has corrected last, of which the device has a copy.
    Corrected(&'a Frame),
}

impl<'a> CellInput<'a> {
    /// The frame.
    #[must_use]
    pub fn frame(self) -> &'a Frame {
        let (Self::Frame(frame) | Self::Corrected(frame)) = self;
        frame
    }
}

/// `Taken` of kernels/frame.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Taken {
    frame: u64,
    count: i32,
    done: i32,
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
pub(super) struct Entry {
    start: Start,
    kernels: Kernels,
    /// There from `capture` on.
    graphs: Option<Graphs>,
    sensor: Option<Arc<Sensor>>,
    taken: Mapped<Taken>,
    /// For frames that lie where the device does not see them.
    own: Mapped<u16>,
    /// The frame on the device.
    pixels: Buffer<u16>,
    /// The address of the frame that was corrected last.
    corrected: Option<usize>,
    axes: Option<[DeviceAxis; 2]>,
    placed: Mapped<Placed>,
    /// In the frame's units, on the device and for the host.
    image: Buffer<f32>,
    shown: Mapped<f32>,
    /// Mean in the frame's units, and sharpness.
    measures: Mapped<u32>,
    white: f32,
}

struct Kernels {
    take: Kernel,
    image: Kernel,
    measure: Kernel,
}

struct Graphs {
    take: Graph,
    correct: Option<Graph>,
}

impl Entry {
    pub(super) fn new(
        device: &Arc<Device>,
        start: Start,
        size: usize,
        sensor: Option<Arc<Sensor>>,
    ) -> Result<Self, CudaError> {
        let (room, resamples) = (start.side * start.side, start.way == Way::Resample);
        let axis = |what| DeviceAxis::new(device, what, size, start.side);
        Ok(Self {
            start,
            kernels: Kernels {
                take: device.kernel(c"take_frame", 0)?,
                image: device.kernel(if resamples { c"resample_image" } else { c"rectify_image" }, 0)?,
                measure: device.kernel(c"measure_image", 0)?,
            },
            graphs: None,
            sensor,
            taken: Mapped::new(device, "the frame's place", 1)?,
            own: Mapped::new(device, "the frame", room)?,
            pixels: Buffer::new(device, "the frame", room)?,
            corrected: None,
            axes: if resamples { Some([axis("the columns' weights")?, axis("the rows' weights")?]) } else { None },
            placed: Mapped::new(device, "the cell's place", 1)?,
            image: Buffer::new(device, "the image", size * size)?,
            shown: Mapped::new(device, "the image", size * size)?,
            measures: Mapped::new(device, "the image's measures", 2)?,
            white: 1.0,
        })
    }

    /// What it was made for.
    pub(super) fn start(&self) -> Start {
        self.start
    }

    /// The sensor that is corrected, if there is one.
    pub(super) fn sensor(&self) -> Option<&Arc<Sensor>> {
        self.sensor.as_ref()
    }

    /// Bytes of device memory.
    pub(super) fn bytes(&self) -> usize {
        let axes: usize = self.axes.iter().flatten().map(|axis| axis.words.bytes()).sum();
        let sensor = self.sensor.as_ref().map_or(0, |sensor| sensor.bytes());
        self.image.bytes() + self.pixels.bytes() + axes + sensor
    }

    /// Captures the ways in. After an error those that were there stay.
    pub(super) fn capture(&mut self, stream: &Stream) -> Result<(), CudaError> {
        stream.begin_capture()?;
        // SAFETY: whoever holds this waits for the stream before he drops it.
        let take = stream.end_capture(unsafe { self.put_take(stream) })?;
        let correct = match &self.sensor {
            None => None,
            Some(sensor) => {
                stream.begin_capture()?;
                // SAFETY: as above.
                let put = unsafe { sensor.put(stream, self.taken.address(), self.pixels.address()) };
                Some(stream.end_capture(put)?)
            }
        };
        self.graphs = Some(Graphs { take, correct });
        Ok(())
    }

    /// Corrects a frame where it lies, and keeps a copy of it on the device; false if it is not for this sensor, or lies
    /// where the device does not see it.
    pub(super) fn correct(
        &mut self,
        stream: &Stream,
        frame: &mut Frame,
        sensor: &Arc<Correction>,
    ) -> Result<bool, CudaError> {
        self.corrected = None;
        let graph = self.graphs.as_ref().and_then(|graphs| graphs.correct.as_ref());
        let (Some(tables), Some(graph)) = (&self.sensor, graph) else { return Ok(false) };
        let Some(address) = address_of(frame, stream.device()).filter(|_| tables.corrects(frame, sensor)) else {
            return Ok(false);
        };
        let at = frame.pixels_mut();
        let count = at.len() as i32;
        self.taken.values_mut()[0] = Taken { frame: address, count, done: 0 };
        let done = stream.launch(graph).and_then(|()| stream.wait("correcting a frame"));
        let corrected = self.let_go() == count;
        done?;
        if !corrected {
            return Err(CudaError::Unwritten);
        }
        self.corrected = Some(at.as_ptr().addr());
        Ok(true)
    }

    /// Puts the way of a frame to the device on the stream, unless it has it, and makes the results of the cell before
    /// unreadable. [`let_go`](Self::let_go) when the stream is done.
    ///
    /// # Panics
    /// If the frame is larger than there is room for, or is not the one that was corrected.
    pub(super) fn take(
        &mut self,
        stream: &Stream,
        input: CellInput<'_>,
        placement: &Placement,
    ) -> Result<(), CudaError> {
        let frame = input.frame();
        let [factor, shift] = preprocess::normalisation(frame);
        self.placed.values_mut()[0] = Placed {
            homography: placement.homography,
            width: frame.width() as i32,
            height: frame.height() as i32,
            taps: preprocess::taps(placement) as i32,
            factor,
            shift,
            padding: 0,
        };
        self.measures.values_mut().fill(UNWRITTEN);
        self.shown.values_mut().fill(f32::from_bits(UNWRITTEN));
        self.white = f32::from(frame.white());
        if let Some([across, down]) = &mut self.axes {
            across.prepare(frame.width())?;
            down.prepare(frame.height())?;
        }
        let (pixels, count) = (frame.pixels(), frame.pixels().len() as i32);
        let corrected = self.corrected.take();
        if let CellInput::Corrected(_) = input {
            assert_eq!(corrected, Some(pixels.as_ptr().addr()), "the frame that was corrected last");
            self.taken.values_mut()[0] = Taken { frame: self.own.address(), count, done: count };
            return Ok(());
        }
        assert!(pixels.len() <= self.own.values().len(), "a frame that there is room for");
        let address = address_of(frame, stream.device()).unwrap_or_else(|| {
            self.own.values_mut()[..pixels.len()].copy_from_slice(pixels);
            self.own.address()
        });
        self.taken.values_mut()[0] = Taken { frame: address, count, done: 0 };
        let Some(graphs) = &self.graphs else { unreachable!("captured by `CellGraph::new`") };
        stream.launch(&graphs.take)
    }

    /// Forgets where the frame lies, which its owner has back now; how many pixels of it the device has taken.
    pub(super) fn let_go(&mut self) -> i32 {
        let own = self.own.address();
        let [taken] = self.taken.values_mut() else { unreachable!("one frame") };
        taken.frame = own;
        taken.done
    }

    /// Puts the way of the last frame to the device on the stream, as the graphs do it.
    ///
    /// # Safety
    /// This lives until the stream is done.
    pub(super) unsafe fn put_frame(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: as the caller promised.
        unsafe {
            match &self.sensor {
                Some(sensor) => sensor.put(stream, self.taken.address(), self.pixels.address()),
                None => self.put_take(stream),
            }
        }
    }

    /// # Safety
    /// As above.
    unsafe fn put_take(&self, stream: &Stream) -> Result<(), CudaError> {
        let (taken, pixels) = (self.taken.address(), self.pixels.address());
        let (grid, block) = ([TAKERS, 1], [THREADS as u32, 1]);
        // SAFETY: the kernel's arguments; the frame at `taken` is no larger than `pixels`.
        unsafe { self.kernels.take.launch(stream.device(), stream.handle(), grid, block, arguments![taken, pixels]) }
    }

    /// Puts the way from the frame on the device to the network's input on the stream.
    ///
    /// # Safety
    /// `input` is device memory of that size; it and this live until the stream is done.
    pub(super) unsafe fn put(&self, stream: &Stream, size: usize, input: u64) -> Result<(), CudaError> {
        let (device, handle, side) = (stream.device(), stream.handle(), size as i32);
        let (frame, placed, image) = (self.pixels.address(), self.placed.address(), self.image.address());
        let (grid, measures) = ([size.div_ceil(THREADS), size], self.measures.address());
        // SAFETY: the kernels' own arguments, and buffers of the sizes that they name.
        unsafe {
            let make = &self.kernels.image;
            match &self.axes {
                Some(axes) => {
                    let [across, down] = [axes[0].words.address(), axes[1].words.address()];
                    let arguments = arguments![frame, placed, across, down, image, input, side];
                    make.launch(device, handle, grid, [THREADS as u32, 1], arguments)?;
                }
                None => make.launch(device, handle, grid, [32, 8], arguments![frame, placed, image, input, side])?,
            }
            self.kernels.measure.launch(device, handle, [1, 1], [ONE_BLOCK, 1], arguments![image, side, measures])
        }
    }

    /// Puts what goes back to the host on the stream.
    ///
    /// # Safety
    /// This lives until the stream is done.
    pub(super) unsafe fn put_back(&mut self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: as the caller promised.
        unsafe { self.image.download(stream, &mut self.shown) }
    }

    /// The image in the frame's units, and its brightness (of full scale) and sharpness.
    pub(super) fn made(&self) -> Result<Made<'_>, CudaError> {
        let (image, measures) = (self.shown.values(), self.measures.values());
        let [mean, sharpness] = [measures[0], measures[1]].map(f32::from_bits);
        let [taken] = self.taken.values() else { unreachable!("one frame") };
        // All of it comes from integers, so that no number can be lost on the way.
        let numbers = mean.is_finite() && sharpness.is_finite() && image.iter().all(|value| value.is_finite());
        if taken.done != taken.count || !numbers {
            return Err(CudaError::Unwritten);
        }
        Ok(Made { image, brightness: mean / self.white, sharpness })
    }
}

/// What the device made of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// S² values in the frame's own units.
    pub image: &'a [f32],
    /// Their mean, of full scale.
    pub brightness: f32,
    /// Root mean square of their Laplacian, divided by their mean.
    pub sharpness: f32,
}

/// The weights of an axis of whole frames, as the kernel reads them; they go to the device when another size comes.
struct DeviceAxis {
    what: &'static str,
    axis: Axis,
    size: usize,
    host: Vec<u32>,
    words: Buffer<u32>,
}

impl DeviceAxis {
    fn new(device: &Arc<Device>, what: &'static str, size: usize, side: usize) -> Result<Self, CudaError> {
        let axis = Axis::new(size, side);
        let host = vec![0; (2 + axis.most()) * size];
        // No taps at first, when the kernel runs to be captured.
        let words = Buffer::of(device, what, &host)?;
        Ok(Self { what, axis, size, host, words })
    }

    fn prepare(&mut self, from: usize) -> Result<(), CudaError> {
        if !self.axis.prepare(from) {
            return Ok(());
        }
        let (head, tail) = self.host.split_at_mut(2 * self.size);
        for at in 0..self.size {
            let (first, weights) = self.axis.taps(at);
            (head[at], head[self.size + at]) = (first as u32, weights.len() as u32);
            for (row, weight) in tail.chunks_exact_mut(self.size).zip(weights) {
                row[at] = weight.to_bits();
            }
        }
        self.words.write(self.what, &self.host)
    }
}
