//! What a judge goes by, made on the device: the backbone's features pooled, and what the classifier's network says.

use std::sync::Arc;

use half::f16;

use super::device::{Kernel, arguments};
use super::entry::{THREADS, UNWRITTEN};
use super::memory::{Buffer, Mapped};
use super::statistics::Maps;
use super::stream::Stream;
use super::{CudaError, Device, DeviceNetwork};
use crate::backbone::{STAGE_CHANNELS, STAGE_STRIDES};
use crate::classifier::features::POOLED;
use crate::classifier::planes::Planes;

/// Channels of a block of `pool_stages`.
const POOL_CHANNELS: usize = 16;
/// Of a half that the device has not written: no number that arithmetic gives.
const UNWRITTEN_HALF: f16 = f16::from_bits(u16::MAX);

/// `Ways` of kernels/judge.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ways([i32; 8]);

/// Turned copies of images, laid behind them.
struct Copies {
    kernel: Kernel,
    ways: &'static [usize],
}

impl Copies {
    fn new(device: &Device, ways: &'static [usize]) -> Result<Self, CudaError> {
        Ok(Self { kernel: device.kernel(c"turn_halves", 0)?, ways })
    }

    /// Puts the copies of `planes` images of side² halves at `images` on the stream: one for each way but the first, which is
    /// the images themselves.
    ///
    /// # Safety
    /// There is room for all ways at `images`, until the stream is done.
    unsafe fn put(&self, stream: &Stream, images: u64, side: usize, planes: usize) -> Result<(), CudaError> {
        let copies = self.ways.len() - 1;
        if copies == 0 {
            return Ok(());
        }
        let ways = Ways(std::array::from_fn(|copy| self.ways.get(copy).map_or(0, |&way| way as i32)));
        let grid = [(side * side).div_ceil(THREADS), planes * copies];
        let (side, planes) = (side as i32, planes as i32);
        let arguments = arguments![images, side, planes, ways];
        // SAFETY: the kernel's arguments, and the room that the caller promises.
        unsafe { self.kernel.launch(stream.device(), stream.handle(), grid, [THREADS as u32, 1], arguments) }
    }
}

/// The backbone's features of some views of the image, pooled.
pub(super) struct Pooling {
    copies: Copies,
    kernel: Kernel,
    size: usize,
    stages: [Buffer<f16>; 4],
    pooled: Mapped<f32>,
}

impl Pooling {
    /// For images of side `size`, seen in these ways.
    pub(super) fn new(device: &Arc<Device>, size: usize, ways: &'static [usize]) -> Result<Self, CudaError> {
        let stage = |stage: usize| {
            let pixels = (size / STAGE_STRIDES[stage]).pow(2);
            Buffer::new(device, "a stage of the backbone", ways.len() * pixels * STAGE_CHANNELS[stage])
        };
        Ok(Self {
            copies: Copies::new(device, ways)?,
            kernel: device.kernel(c"pool_stages", 0)?,
            size,
            stages: [stage(0)?, stage(1)?, stage(2)?, stage(3)?],
            pooled: Mapped::new(device, "the pooled features", ways.len() * POOLED)?,
        })
    }

    /// Where the network leaves the stages.
    pub(super) fn stages(&self) -> [u64; 4] {
        self.stages.each_ref().map(Buffer::address)
    }

    /// Bytes of device memory.
    pub(super) fn bytes(&self) -> usize {
        self.stages.iter().map(Buffer::bytes).sum()
    }

    /// Puts the other views of the image on the stream, behind it.
    ///
    /// # Safety
    /// There is room for all views at `images`; it and this live until the stream is done.
    pub(super) unsafe fn put_views(&self, stream: &Stream, images: u64) -> Result<(), CudaError> {
        // SAFETY: as the caller promised.
        unsafe { self.copies.put(stream, images, self.size, 1) }
    }

    /// Puts the pooling of what the network has left on the stream.
    ///
    /// # Safety
    /// This lives until the stream is done.
    pub(super) unsafe fn put(&self, stream: &Stream) -> Result<(), CudaError> {
        let side = STAGE_STRIDES.map(|stride| (self.size / stride) as i32);
        let (stages, out) = (Maps { data: self.stages(), side }, self.pooled.address());
        let grid = [STAGE_CHANNELS.iter().sum::<usize>() / POOL_CHANNELS, self.copies.ways.len()];
        // SAFETY: the kernel's arguments, and buffers of the sizes that it names.
        unsafe {
            self.kernel.launch(stream.device(), stream.handle(), grid, [THREADS as u32, 1], arguments![stages, out])
        }
    }

    /// Makes the results of the cell before unreadable.
    pub(super) fn prepare(&mut self) {
        self.pooled.values_mut().fill(f32::from_bits(UNWRITTEN));
    }

    /// [`POOLED`] numbers a view.
    pub(super) fn pooled(&self) -> &[f32] {
        self.pooled.values()
    }

    /// Whether the device has written them all.
    pub(super) fn is_written(&self) -> bool {
        self.pooled().iter().all(|x| x.to_bits() != UNWRITTEN)
    }
}

/// The classifier's network, asked about some ways to lay its planes.
pub(super) struct Asking {
    network: Box<dyn DeviceNetwork>,
    copies: Copies,
    kernel: Kernel,
    planes: usize,
    grid: usize,
    size: usize,
    side: usize,
    /// 1/√k: distances in their usual size.
    unit: f32,
    input: Buffer<f16>,
    /// Logits and probabilities of each way.
    outputs: [Buffer<f16>; 2],
    addresses: [u64; 2],
    logits: Mapped<f16>,
}

impl Asking {
    /// A network that sees `planes` of images of side `size` and heatmaps of side `grid` of distances of k values, on planes of
    /// side `side` laid in these ways, and tells so many levels apart.
    pub(super) fn new(
        device: &Arc<Device>,
        network: Box<dyn DeviceNetwork>,
        [size, grid, k, side]: [usize; 4],
        planes: Planes,
        ways: &'static [usize],
        levels: usize,
    ) -> Result<Self, CudaError> {
        let (planes, said) = (planes.count(), ways.len() * levels);
        let output = || Buffer::new(device, "what the classifier says", said);
        let outputs = [output()?, output()?];
        Ok(Self {
            network,
            copies: Copies::new(device, ways)?,
            kernel: device.kernel(c"judge_planes", 0)?,
            planes,
            grid,
            size,
            side,
            unit: 1.0 / (k as f32).sqrt(),
            input: Buffer::new(device, "the classifier's planes", ways.len() * planes * side * side)?,
            addresses: outputs.each_ref().map(Buffer::address),
            outputs,
            logits: Mapped::new(device, "what the classifier says", said)?,
        })
    }

    /// Bytes of device memory, the network's own included.
    pub(super) fn bytes(&self) -> usize {
        let outputs: usize = self.outputs.iter().map(Buffer::bytes).sum();
        self.network.device_memory() + self.input.bytes() + outputs
    }

    /// Puts the planes of a heatmap and the network's input on the stream.
    ///
    /// # Safety
    /// The heatmap is grid² floats and the image size² halves in device memory; they and this live until the stream is done.
    pub(super) unsafe fn put_planes(&self, stream: &Stream, heatmap: u64, image: u64) -> Result<(), CudaError> {
        let (grid, size, side) = (self.grid as i32, self.size as i32, self.side as i32);
        let (unit, input) = (self.unit, self.input.address());
        let arguments = arguments![heatmap, grid, unit, image, size, input, side];
        let blocks = [(self.side * self.side).div_ceil(THREADS), self.planes];
        // SAFETY: the kernel's arguments, and buffers of the sizes that it names.
        unsafe {
            self.kernel.launch(stream.device(), stream.handle(), blocks, [THREADS as u32, 1], arguments)?;
            self.copies.put(stream, input, self.side, self.planes)
        }
    }

    /// Puts the network on the stream.
    ///
    /// # Safety
    /// This lives until the stream is done.
    pub(super) unsafe fn put(&mut self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: the buffers have the sizes of the network's tensors, and its context is current.
        Ok(unsafe { self.network.enqueue(self.input.address(), &self.addresses, stream.handle()) }?)
    }

    /// Puts what goes back to the host on the stream.
    ///
    /// # Safety
    /// This lives until the stream is done.
    pub(super) unsafe fn put_back(&mut self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: as the caller promised.
        unsafe { self.outputs[0].download(stream, &mut self.logits) }
    }

    /// Makes the results of the cell before unreadable.
    pub(super) fn prepare(&mut self) {
        self.logits.values_mut().fill(UNWRITTEN_HALF);
    }

    /// The logit of each level, way by way.
    pub(super) fn logits(&self) -> &[f16] {
        self.logits.values()
    }

    /// Whether the device has written them all.
    pub(super) fn is_written(&self) -> bool {
        self.logits().iter().all(|x| x.to_bits() != UNWRITTEN_HALF.to_bits())
    }
}
