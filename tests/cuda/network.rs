//! Networks for the test double of the driver: the CPU's backbone and projection, and its classifier, run by host functions
//! on the stream, as a device would run its own: later, and also from within a graph.

#![allow(dead_code)] // each test program uses a part of it

use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex};

use cellgate::backbone::cpu::CpuBackbone;
use cellgate::backbone::{Backbone, Pyramid, ResNet18, STAGE_CHANNELS};
use cellgate::classifier::infer::Classifier;
use cellgate::cuda::{DeviceNetwork, NetworkError, Networks};
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
    /// Views whose stages are given, too.
    views: usize,
    broken: bool,
    input: u64,
    outputs: [u64; 8],
}

pub struct HostNetwork {
    fake: &'static Fake,
    run: Box<Run>,
    /// Say that all went well, and leave the outputs as they are.
    pub lazy: bool,
    /// Give a feature that is not a number, though the maps are whole.
    pub broken: bool,
}

impl HostNetwork {
    /// With the weights of this backbone, which has one thread.
    fn of(fake: &'static Fake, model: &Model, backbone: &CpuBackbone) -> Self {
        let size = model.header().settings.size as usize;
        let projection = model.projection().clone();
        let views = model.judge().map_or(0, |judge| judge.description().pooled_views());
        let stages = std::array::from_fn(|stage| views > 0 || projection.uses(stage));
        let run = Run {
            backbone: backbone.another_on(Arc::new(Workers::new(1))),
            pyramid: Pyramid::with_stages(size, stages),
            image: vec![0.0; size * size],
            sums: vec![0.0; projection.k()],
            projection,
            views,
            broken: false,
            input: 0,
            outputs: [0; 8],
        };
        Self { fake, run: Box::new(run), lazy: false, broken: false }
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
        self.run.broken = self.broken;
        self.run.outputs[..outputs.len()].copy_from_slice(outputs);
        // SAFETY: the network is dropped after the stream and the graphs.
        let status = unsafe { (self.fake.launch_host)(stream, compute, (&raw mut *self.run).cast()) };
        launched(status, self.name())
    }
}

/// What the status of a launch of a host function says.
fn launched(status: i32, name: String) -> Result<(), NetworkError> {
    match status {
        0 => Ok(()),
        status => Err(NetworkError { name, why: format!("cuLaunchHostFunc gave {status}") }),
    }
}

/// # Safety
/// `run` is a network's, and its addresses those of the test double's device memory, which is the host's.
unsafe extern "C" fn compute(run: *mut c_void) {
    // SAFETY: as promised.
    let run = unsafe { &mut *run.cast::<Run>() };
    for image in 0..run.views.max(1) {
        let pixels = run.image.len();
        // SAFETY: the input has as many halves as the images have values.
        let input = unsafe { halves(run.input, image, pixels) };
        run.image.iter_mut().zip(input).for_each(|(to, from)| *to = from.to_f32());
        run.backbone.run(&run.image, &mut run.pyramid).unwrap();
        let k = run.projection.k();
        let stride = k.next_multiple_of(8);
        let mut outputs = run.outputs.into_iter();
        let used = (0..4).filter(|&stage| run.projection.uses(stage));
        for (stage, address) in used.zip(&mut outputs) {
            let (w, channels, side) = (run.projection.stage(stage), STAGE_CHANNELS[stage], run.pyramid.side(stage));
            // SAFETY: each map has side² pixels an image, `stride` halves apart.
            let map = unsafe { halves(address, image, side * side * stride) };
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
        for (stage, address) in (0..4).filter(|_| run.views > 0).zip(outputs) {
            let values = run.pyramid.side(stage).pow(2) * STAGE_CHANNELS[stage];
            // SAFETY: each stage has as many halves an image as the pyramid has values.
            let stage_out = unsafe { halves(address, image, values) };
            stage_out.iter_mut().zip(run.pyramid.values(stage)).for_each(|(to, x)| *to = f16::from_f32(x));
            if run.broken {
                stage_out[3] = f16::NAN;
            }
        }
    }
}

/// Part `index` of device memory that is a row of parts of `len` halves.
///
/// # Safety
/// There are as many at the address, and nobody else works on them.
unsafe fn halves<'a>(address: u64, index: usize, len: usize) -> &'a mut [f16] {
    // SAFETY: as promised.
    unsafe { std::slice::from_raw_parts_mut((address as *mut f16).add(index * len), len) }
}

/// The networks of a model, packed once for all the devices of a test.
pub struct Packed {
    pub backbone: CpuBackbone,
    classifier: Option<Arc<Mutex<Classifier>>>,
}

impl Packed {
    pub fn new(model: &Model, network: &ResNet18) -> Self {
        let (size, alone) = (model.header().settings.size as usize, || Arc::new(Workers::new(1)));
        let pack = |net| Arc::new(Mutex::new(Classifier::new(net, Isa::detect(), alone()).unwrap()));
        Self {
            backbone: CpuBackbone::new(network, size, Isa::detect(), alone()).unwrap(),
            classifier: model.judge().and_then(|judge| judge.network()).map(pack),
        }
    }

    /// All that a device runs of the model.
    pub fn networks(&self, fake: &'static Fake, model: &Model) -> Networks {
        let classifier = self.classifier(fake, model).map(|classifier| classifier as Box<dyn DeviceNetwork>);
        Networks { features: self.features(fake, model), classifier }
    }

    pub fn features(&self, fake: &'static Fake, model: &Model) -> Box<HostNetwork> {
        Box::new(HostNetwork::of(fake, model, &self.backbone))
    }

    /// None if the model's judge asks none.
    pub fn classifier(&self, fake: &'static Fake, model: &Model) -> Option<Box<HostClassifier>> {
        let classifier = Arc::clone(self.classifier.as_ref()?);
        let judge = model.judge()?.description();
        let plane = (judge.side as usize).pow(2);
        let (planes, logits) = (vec![0.0; judge.planes?.count() * plane], vec![0.0; judge.levels as usize]);
        let ask = Ask { classifier, ways: judge.ways().len(), planes, logits, input: 0, output: 0 };
        Some(Box::new(HostClassifier { fake, ask: Box::new(ask), lazy: false }))
    }
}

/// What the classifier's host function works with.
struct Ask {
    classifier: Arc<Mutex<Classifier>>,
    ways: usize,
    planes: Vec<f32>,
    logits: Vec<f32>,
    input: u64,
    output: u64,
}

/// The CPU's classifier in a host function.
pub struct HostClassifier {
    fake: &'static Fake,
    ask: Box<Ask>,
    /// Say that all went well, and leave the outputs as they are.
    pub lazy: bool,
}

impl DeviceNetwork for HostClassifier {
    fn name(&self) -> String {
        "the CPU's classifier in a host function".into()
    }

    fn device_memory(&self) -> usize {
        0
    }

    unsafe fn enqueue(&mut self, input: u64, outputs: &[u64], stream: *mut c_void) -> Result<(), NetworkError> {
        if self.lazy {
            return Ok(());
        }
        (self.ask.input, self.ask.output) = (input, outputs[0]);
        // SAFETY: the network is dropped after the stream and the graphs.
        let status = unsafe { (self.fake.launch_host)(stream, answer, (&raw mut *self.ask).cast()) };
        launched(status, self.name())
    }
}

/// # Safety
/// As [`compute`], of a classifier.
unsafe extern "C" fn answer(ask: *mut c_void) {
    // SAFETY: as promised.
    let ask = unsafe { &mut *ask.cast::<Ask>() };
    for way in 0..ask.ways {
        // SAFETY: a way has as many halves as the planes have values, and a logit for each class.
        let (planes, logits) =
            unsafe { (halves(ask.input, way, ask.planes.len()), halves(ask.output, way, ask.logits.len())) };
        ask.planes.iter_mut().zip(planes).for_each(|(to, from)| *to = from.to_f32());
        let mut classifier = ask.classifier.lock().unwrap();
        let (count, plane) = (classifier.planes(), classifier.side().pow(2));
        let (first, second) = ask.planes.split_at(plane);
        let both = [first, second];
        classifier.logits(&both[..count], &mut ask.logits).unwrap();
        logits.iter_mut().zip(&ask.logits).for_each(|(to, x)| *to = f16::from_f32(*x));
    }
}

/// `cuLaunchHostFunc`.
pub type LaunchHost = unsafe extern "C" fn(*mut c_void, unsafe extern "C" fn(*mut c_void), *mut c_void) -> c_int;
