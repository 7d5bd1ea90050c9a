//! A network for the test double of the driver: the CPU's backbone and projection, run by a host function on the stream, as
//! a device would run its own: later, and also from within a graph.

#![allow(dead_code)] // each test program uses a part of it

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use cellgate::backbone::cpu::CpuBackbone;
use cellgate::backbone::{Backbone, Pyramid, ResNet18, STAGE_CHANNELS};
use cellgate::cuda::{DeviceNetwork, NetworkError};
use cellgate::embedding::Projection;
use cellgate::model::Model;
use cellgate::simd::Isa;
use cellgate::workers::Workers;
use half::f16;

use super::fake::Fake;

/// What the host function works with. It stays where it is as long as the network lives.
struct Run {
    backbone: CpuBackbone,
    projection: Projection,
    pyramid: Pyramid,
    image: Vec<f32>,
    sums: Vec<f32>,
    input: u64,
    outputs: [u64; 4],
}

pub struct HostNetwork {
    fake: &'static Fake,
    run: Box<Run>,
    /// Say that all went well, and leave the outputs as they are.
    pub lazy: bool,
}

impl HostNetwork {
    pub fn new(fake: &'static Fake, model: &Model, network: &ResNet18) -> Self {
        let (size, alone) = (model.header().settings.size as usize, Arc::new(Workers::new(1)));
        Self::of(fake, model, &CpuBackbone::new(network, size, Isa::detect(), alone).unwrap())
    }

    /// With the weights of this backbone, which has one thread.
    pub fn of(fake: &'static Fake, model: &Model, backbone: &CpuBackbone) -> Self {
        let size = model.header().settings.size as usize;
        let projection = model.projection().clone();
        let stages = std::array::from_fn(|stage| projection.uses(stage));
        let run = Run {
            backbone: backbone.another_on(Arc::new(Workers::new(1))),
            pyramid: Pyramid::with_stages(size, stages),
            image: vec![0.0; size * size],
            sums: vec![0.0; projection.k()],
            projection,
            input: 0,
            outputs: [0; 4],
        };
        Self { fake, run: Box::new(run), lazy: false }
    }
}

impl DeviceNetwork for HostNetwork {
    fn name(&self) -> String {
        "the CPU's network in a host function".into()
    }

    fn device_memory(&self) -> usize {
        0
    }

    unsafe fn enqueue(&mut self, input: u64, outputs: &[u64], stream: *mut c_void) -> Result<(), NetworkError> {
        if self.lazy {
            return Ok(());
        }
        self.run.input = input;
        self.run.outputs[..outputs.len()].copy_from_slice(outputs);
        let run = (&raw mut *self.run).cast();
        // SAFETY: the network is dropped after the stream and the graphs.
        match unsafe { (self.fake.launch_host)(stream, compute, run) } {
            0 => Ok(()),
            status => Err(NetworkError { name: self.name(), why: format!("cuLaunchHostFunc gave {status}") }),
        }
    }
}

/// # Safety
/// `run` is a network's, and its addresses those of the test double's device memory, which is the host's.
unsafe extern "C" fn compute(run: *mut c_void) {
    // SAFETY: as promised.
    let run = unsafe { &mut *run.cast::<Run>() };
    // SAFETY: the input has as many halves as the image has values.
    let input = unsafe { std::slice::from_raw_parts(run.input as *const f16, run.image.len()) };
    run.image.iter_mut().zip(input).for_each(|(to, from)| *to = from.to_f32());
    run.backbone.run(&run.image, &mut run.pyramid).unwrap();
    let k = run.projection.k();
    let stride = k.next_multiple_of(8);
    let used = (0..4).filter(|&stage| run.projection.uses(stage));
    for (stage, address) in used.zip(run.outputs) {
        let (w, channels, side) = (run.projection.stage(stage), STAGE_CHANNELS[stage], run.pyramid.side(stage));
        // SAFETY: each map has side² pixels, `stride` halves apart.
        let map = unsafe { std::slice::from_raw_parts_mut(address as *mut f16, side * side * stride) };
        let pixels = run.pyramid.rows(stage).flat_map(|row| row.chunks_exact(channels));
        for (pixel, out) in pixels.zip(map.chunks_exact_mut(stride)) {
            run.sums.fill(0.0);
            for (x, w) in pixel.iter().zip(w.chunks_exact(k)) {
                run.sums.iter_mut().zip(w).for_each(|(sum, w)| *sum += x * w);
            }
            out.iter_mut().zip(&run.sums).for_each(|(to, sum)| *to = f16::from_f32(*sum));
            out[k..].fill(f16::NAN);
        }
    }
}

/// `cuLaunchHostFunc`.
pub type LaunchHost = unsafe extern "C" fn(*mut c_void, unsafe extern "C" fn(*mut c_void), *mut c_void) -> c_int;
