//! The way of a cell on a device, whole, on a test double of the driver that runs the same kernels: the CPU's verdicts, no
//! PASS and no leak whatever fails, and no allocation for a cell.

#![cfg(target_os = "linux")]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use cellgate::backbone::cpu::CpuBackbone;
use cellgate::backbone::{Backbone, BackboneError, Identity, Pyramid, ResNet18};
use cellgate::cuda::{CudaError, Device, Networks};
use cellgate::frame::Frame;
use cellgate::gaussian::{Factors, Precision, Statistics};
use cellgate::model::Model;
use cellgate::pipeline::Inspector;
use cellgate::preprocess::{Placement, PreprocessConfig, Refusal};
use cellgate::synth::{DefectKind, Generator, SynthConfig};
use cellgate::verdict::{Invalid, Outcome, Verdict};
use cellgate::workers::Workers;

mod common;
#[path = "cuda/elpv.rs"]
mod elpv;
#[path = "cuda/fake.rs"]
mod fake;
#[path = "cuda/network.rs"]
mod network;
#[path = "cuda/sensor.rs"]
mod sensor;

use fake::Turn;
use network::Packed;

/// Of M: the network's input and output are halves (the kernels' own share is 2e-4, see kernels/README.md).
const TOLERANCE: f32 = 1e-2;

struct Bed {
    _folder: tempfile::TempDir,
    model: Arc<Model>,
    packed: Packed,
}

impl Bed {
    /// Of the small model or of a judged one, each of which is fitted once.
    fn new(judged: bool) -> Self {
        static FITTED: [OnceLock<Vec<u8>>; 2] = [OnceLock::new(), OnceLock::new()];
        let folder = tempfile::tempdir().unwrap();
        let fit = |to: &Path| match judged {
            true => common::judged_model(to, 64, 16, 24, 2, 128),
            false => common::small_model(to, 64, 16, 24),
        };
        let path = folder.path().join("fitted.cgm");
        let fitted = FITTED[usize::from(judged)].get_or_init(|| std::fs::read(fit(folder.path())).unwrap());
        std::fs::write(&path, fitted).unwrap();
        let model = Arc::new(Model::open(&path).unwrap());
        Self::of(folder, model)
    }

    fn of(folder: tempfile::TempDir, model: Arc<Model>) -> Self {
        let packed = Packed::new(&model, &ResNet18::embedded().unwrap());
        Self { _folder: folder, model, packed }
    }

    /// The same statistics for images that are cells without a border: nothing that they fit, but all that they need.
    fn of_whole_frames() -> Self {
        let Self { _folder: folder, model, .. } = Self::new(false);
        let mut header = model.header().clone();
        header.settings.preprocess = PreprocessConfig::whole_frame();
        // Frames with a dark border are dimmer than cells.
        header.calibration.as_mut().unwrap().dim_below = 0.0;
        let path = folder.path().join("whole.cgm");
        Model::write(&path, &header, model.projection(), &model.statistics(), None).unwrap();
        let model = Arc::new(Model::open(&path).unwrap());
        Self::of(folder, model)
    }

    /// The same factors, kept in single precision.
    fn in_single_precision(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut header, halves) = (self.model.header().clone(), self.model.statistics());
        header.settings.precision = Precision::F32;
        let factors: Vec<f32> = (0..halves.factors().len()).map(|i| halves.factors().get(i)).collect();
        let singles =
            Statistics::new(halves.grid(), halves.k(), halves.mean(), Factors::F32(&factors), halves.row_scale())
                .unwrap();
        let path = folder.path().join("single.cgm");
        Model::write(&path, &header, self.model.projection(), &singles, None).unwrap();
        let model = Arc::new(Model::open(&path).unwrap());
        Self::of(folder, model)
    }

    fn inspector(&self) -> Inspector {
        let workers = Arc::new(Workers::new(1));
        let backbone = Box::new(self.packed.backbone.another_on(Arc::clone(&workers)));
        Inspector::new(Arc::clone(&self.model), backbone, workers).unwrap()
    }

    fn host_networks(&self, turn: &Turn) -> Networks {
        self.packed.networks(turn.fake, &self.model)
    }

    /// An inspector whose cells are measured on the device.
    fn on_device(&self, turn: &Turn) -> Result<Inspector, CudaError> {
        let mut inspector = self.inspector();
        inspector.use_device(&Device::open()?, self.host_networks(turn))?;
        Ok(inspector)
    }
}

/// The CPU's backbone, which tells how often it was run.
struct Counted(CpuBackbone, Arc<AtomicUsize>);

impl Backbone for Counted {
    fn size(&self) -> usize {
        self.0.size()
    }
    fn identity(&self) -> Identity {
        self.0.identity()
    }
    fn run(&mut self, image: &[f32], pyramid: &mut Pyramid) -> Result<(), BackboneError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.run(image, pyramid)
    }
}

fn frames() -> Vec<Frame> {
    let generator = Generator::new(SynthConfig { size: 180, ..SynthConfig::default() }, 3).unwrap();
    let mut frames: Vec<Frame> = (0..4).map(|index| generator.cell(1000 + index).frame).collect();
    frames.extend(DefectKind::ALL.into_iter().map(|kind| generator.with_defect(7, kind).frame));
    frames.push(Frame::new(180, 180, 255));
    frames.push(Frame::from_pixels(180, 180, 255, vec![255; 180 * 180]));
    frames
}

/// The same but for what halves may change.
fn assert_like(got: &Verdict, want: &Verdict, what: &str) {
    assert_eq!(std::mem::discriminant(&got.outcome), std::mem::discriminant(&want.outcome), "{what}: {got:?}");
    if let (Outcome::Invalid(got), Outcome::Invalid(want)) = (&got.outcome, &want.outcome) {
        match (got, want) {
            // As below, the sum is taken in another order.
            (Invalid::Frame(Refusal::Dim { mean: a, .. }), Invalid::Frame(Refusal::Dim { mean: b, .. })) => {
                assert!((a - b).abs() <= 1e-5 * b, "{what}: {a} for {b}");
            }
            _ => assert_eq!(got, want, "{what}"),
        }
    }
    let (Some(a), Some(b)) = (got.distances, want.distances) else {
        return assert!(got.distances.is_none() && want.distances.is_none(), "{what}");
    };
    for (a, b) in [(a.top, b.top), (a.max, b.max), (a.mean, b.mean)] {
        assert!((a - b).abs() <= TOLERANCE * b, "{what}: {a} for {b}");
    }
    // The sums of brightness and sharpness are taken in another order; all else is the CPU's.
    let (a, b) = (got.placement.unwrap(), want.placement.unwrap());
    for (a, b) in [(a.brightness, b.brightness), (a.sharpness, b.sharpness)] {
        assert!((a - b).abs() <= 1e-5 * b, "{what}: {a} for {b}");
    }
    assert_eq!(Placement { brightness: b.brightness, sharpness: b.sharpness, ..a }, b, "{what}");
    match (got.probabilities, want.probabilities) {
        (None, None) => {}
        (Some(a), Some(b)) => {
            let close = |a: Option<f32>, b: Option<f32>| match (a, b) {
                (Some(a), Some(b)) => (a - b).abs() <= 0.02,
                (a, b) => a == b,
            };
            assert!(close(a.not_a, b.not_a) && close(a.c, b.c), "{what}: {a:?} for {b:?}");
        }
        (a, b) => panic!("{what}: {a:?} for {b:?}"),
    }
}

fn same_verdicts(turn: &Turn, judged: bool) {
    let bed = Bed::new(judged);
    let (mut cpu, mut device) = (bed.inspector(), bed.on_device(turn).unwrap());
    let mut kinds = [0; 3];
    for (index, frame) in frames().iter().enumerate() {
        let (want, got) = (cpu.inspect(frame), device.inspect(frame));
        assert!(device.device().is_some(), "frame {index} went to the CPU");
        assert_like(&got, &want, &format!("frame {index}"));
        if want.distances.is_some() {
            let worst = cpu.heatmap().iter().zip(device.heatmap()).map(|(b, a)| (a - b).abs() / b).fold(0.0, f32::max);
            assert!(worst <= TOLERANCE, "frame {index}: the heatmap is off by {worst}");
            // Regions are those of the device's own heatmap, found by its own kernel, to the last bit.
            let region = bed.model.header().calibration.as_ref().unwrap().region;
            let mut analyser = cellgate::heatmap::Analyser::new(16, 0.0);
            assert_eq!(got.regions, analyser.regions(device.heatmap(), region), "frame {index}");
        }
        kinds[match want.outcome {
            Outcome::Pass(_) => 0,
            Outcome::Reject => 1,
            Outcome::Invalid(_) => 2,
        }] += 1;
    }
    assert!(kinds.iter().all(|&n| n > 0), "{kinds:?}: each outcome should be among the frames");
    drop(device);
    assert_eq!(turn.alive(), 0, "leaked");
}

#[test]
fn verdicts_are_the_cpus() {
    let Some(turn) = fake::turn("verdicts_are_the_cpus") else { return };
    same_verdicts(&turn, false);
}

#[test]
fn verdicts_of_a_model_with_a_classifier_are_the_cpus() {
    let Some(turn) = fake::turn("verdicts_of_a_model_with_a_classifier_are_the_cpus") else { return };
    same_verdicts(&turn, true);
}

#[test]
fn with_a_device_the_backbone_does_not_run_on_the_cpu() {
    let Some(turn) = fake::turn("with_a_device_the_backbone_does_not_run_on_the_cpu") else { return };
    let bed = Bed::new(true);
    let (workers, runs) = (Arc::new(Workers::new(1)), Arc::new(AtomicUsize::new(0)));
    let backbone = Counted(bed.packed.backbone.another_on(Arc::clone(&workers)), Arc::clone(&runs));
    let mut inspector = Inspector::new(Arc::clone(&bed.model), Box::new(backbone), workers).unwrap();
    inspector.inspect(&frames()[0]);
    assert_eq!(runs.swap(0, Ordering::Relaxed), 2, "a run a view");
    inspector.use_device(&Device::open().unwrap(), bed.host_networks(&turn)).unwrap();
    let verdict = inspector.inspect(&frames()[0]);
    assert!(verdict.probabilities.is_some() && inspector.device().is_some(), "{verdict:?}");
    assert_eq!(runs.load(Ordering::Relaxed), 0);
}

#[test]
fn what_a_classifier_leaves_unsaid_or_a_feature_that_is_no_number_passes_nothing() {
    let name = "what_a_classifier_leaves_unsaid_or_a_feature_that_is_no_number_passes_nothing";
    let Some(turn) = fake::turn(name) else { return };
    let bed = Bed::new(true);
    let frame = &frames()[0];
    let mut inspector = bed.inspector();

    let mut lazy = bed.packed.classifier(turn.fake, &bed.model).unwrap();
    lazy.lazy = true;
    let networks = Networks { classifier: Some(lazy), ..bed.host_networks(&turn) };
    inspector.use_device(&Device::open().unwrap(), networks).unwrap();
    assert_eq!(inspector.inspect(frame).outcome, Outcome::Invalid(Invalid::Internal));
    assert!(inspector.device().is_none(), "who leaves results unwritten is given up");

    let mut broken = bed.packed.features(turn.fake, &bed.model);
    broken.broken = true;
    let networks = Networks { features: broken, ..bed.host_networks(&turn) };
    inspector.use_device(&Device::open().unwrap(), networks).unwrap();
    assert_eq!(inspector.inspect(frame).outcome, Outcome::Invalid(Invalid::NotFinite));

    let networks = Networks { classifier: None, ..bed.host_networks(&turn) };
    let refused = inspector.use_device(&Device::open().unwrap(), networks).unwrap_err().to_string();
    assert!(refused.contains("a judge without the classifier's network"), "{refused}");
    drop(inspector);
    assert_eq!(turn.alive(), 0, "leaked");
}

#[test]
fn cells_of_a_model_of_whole_frames_are_measured_as_the_cpus() {
    let Some(turn) = fake::turn("cells_of_a_model_of_whole_frames_are_measured_as_the_cpus") else { return };
    let bed = Bed::of_whole_frames();
    let (mut cpu, mut device) = (bed.inspector(), bed.on_device(&turn).unwrap());
    let mut frames = frames();
    // Of other sizes and depths.
    let generator = Generator::new(SynthConfig { size: 300, white: 4095, ..SynthConfig::default() }, 3).unwrap();
    let large = generator.cell(1).frame;
    let narrow = (0..300).flat_map(|y| large.row(y)[40..117].to_vec()).collect();
    frames.extend([Frame::from_pixels(77, 300, 4095, narrow), large, frames[0].clone()]);
    let mut measured = 0;
    for (index, frame) in frames.iter().enumerate() {
        let want = cpu.inspect(frame);
        assert_like(&device.inspect(frame), &want, &format!("frame {index}"));
        if want.distances.is_some() {
            assert!(cpu.image() == device.image(), "frame {index}: the image is another");
            measured += 1;
        }
    }
    assert!(device.device().is_some(), "went to the CPU");
    assert!(measured > 10, "{measured} of {} frames measured", frames.len());
}

#[test]
fn factors_in_single_precision_give_the_same_numbers() {
    let Some(turn) = fake::turn("factors_in_single_precision_give_the_same_numbers") else { return };
    let bed = Bed::new(false);
    let single = bed.in_single_precision();
    let (mut halves, mut singles) = (bed.on_device(&turn).unwrap(), single.on_device(&turn).unwrap());
    for frame in &frames()[..4] {
        assert_eq!(singles.inspect(frame).distances.unwrap(), halves.inspect(frame).distances.unwrap());
        assert_eq!(singles.heatmap(), halves.heatmap());
    }
    assert!(singles.device().is_some() && halves.device().is_some(), "went to the CPU");
}

#[test]
fn room_for_larger_frames_changes_no_verdict() {
    let Some(turn) = fake::turn("room_for_larger_frames_changes_no_verdict") else { return };
    let bed = Bed::new(false);
    let mut device = bed.on_device(&turn).unwrap();
    let frame = &frames()[1];
    let before = device.inspect(frame).distances.unwrap();
    device.make_room(2200, 2100).unwrap();
    assert_eq!(device.inspect(frame).distances.unwrap(), before);
    // Without room on the device the larger frames are refused at start, not on the way.
    turn.device((8, 7), 12060, 1, 30 << 20);
    let refused = device.make_room(4000, 4000).unwrap_err().to_string();
    assert!(refused.contains("the frame on the device"), "{refused}");
    drop(device);
    assert_eq!(turn.alive(), 0, "leaked");
}

#[test]
fn whatever_call_fails_at_start_is_a_clear_error_and_leaks_nothing() {
    let Some(turn) = fake::turn("whatever_call_fails_at_start_is_a_clear_error_and_leaks_nothing") else { return };
    let bed = Bed::new(true);
    let frame = &frames()[0];
    let want = bed.inspector().inspect(frame);
    turn.fail(0, 0);
    drop(bed.on_device(&turn).unwrap());
    let (all, mut refused, mut inspector) = (turn.calls(), 0usize, bed.inspector());
    assert!(all > 60, "{all} calls");
    for status in [2, 719] {
        for at in 1..=all {
            turn.fail(at, status);
            let tried = Device::open().and_then(|device| inspector.use_device(&device, bed.host_networks(&turn)));
            if let Err(error) = &tried {
                let text = error.to_string();
                assert!(
                    text.contains("CUDA_ERROR")
                        || text.contains("bytes are needed")
                        || text.contains("cuLaunchHostFunc"),
                    "{at}: {text}"
                );
                refused += 1;
                // The inspector goes on with the CPU; a look at every eighth is enough.
                assert!(inspector.device().is_none());
                if refused.is_multiple_of(8) {
                    assert_eq!(inspector.inspect(frame).distances, want.distances, "call {at}");
                }
            }
            inspector.leave_device();
            assert_eq!(turn.alive(), 0, "call {at} of {all} failed with {status}: leaked; {tried:?}");
        }
    }
    assert!(refused > all, "{refused} of {} refused", 2 * all);
}

#[test]
fn whatever_call_fails_for_a_cell_makes_it_invalid_and_the_next_is_the_cpus() {
    let Some(turn) = fake::turn("whatever_call_fails_for_a_cell_makes_it_invalid_and_the_next_is_the_cpus") else {
        return;
    };
    let bed = Bed::new(true);
    let frame = &frames()[0];
    let want = bed.inspector().inspect(frame);
    let mut device = bed.on_device(&turn).unwrap();
    turn.fail(0, 0);
    device.inspect(frame);
    let all = turn.calls();
    assert_eq!(all, 4, "calls for a cell");
    drop(device);
    for at in 1..=all {
        let mut device = bed.on_device(&turn).unwrap();
        turn.fail(at, 719);
        assert_eq!(device.inspect(frame).outcome, Outcome::Invalid(Invalid::Internal), "call {at}");
        assert!(device.device().is_none());
        assert_eq!(turn.alive(), 0, "call {at}: leaked");
        let next = device.inspect(frame);
        assert_eq!((next.outcome, next.distances), (want.outcome.clone(), want.distances), "call {at}");
    }
}

#[test]
fn a_device_that_leaves_its_results_unwritten_passes_nothing() {
    let Some(turn) = fake::turn("a_device_that_leaves_its_results_unwritten_passes_nothing") else { return };
    let bed = Bed::new(false);
    let mut lazy = bed.packed.features(turn.fake, &bed.model);
    lazy.lazy = true;
    let lazy = Networks { features: lazy, classifier: None };
    let mut inspector = bed.inspector();
    // What it leaves in the maps are no numbers, which the test double's memory begins with.
    inspector.use_device(&Device::open().unwrap(), lazy).unwrap();
    assert_eq!(inspector.inspect(&frames()[0]).outcome, Outcome::Invalid(Invalid::NotFinite));
}

#[test]
fn devices_and_drivers_that_cannot_be_used_are_refused_by_name() {
    let Some(turn) = fake::turn("devices_and_drivers_that_cannot_be_used_are_refused_by_name") else { return };
    let bed = Bed::new(false);
    let refused = |said: &str| {
        let error = bed.on_device(&turn).err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
        assert_eq!(turn.alive(), 0, "leaked after: {error}");
    };
    turn.device((7, 2), 12060, 1, 8 << 30);
    refused("fake CUDA device has compute capability 7.2: the kernels need 8.0");
    turn.device((8, 7), 11040, 1, 8 << 30);
    refused("made for CUDA 11.4: the kernels need 12.6");
    turn.device((8, 7), 12060, 0, 8 << 30);
    refused("no NVIDIA device");
    turn.device((8, 7), 12060, 1, 100_000);
    refused("the factors on the device: ");
}

#[test]
fn other_statistics_take_effect_between_two_cells_and_wrong_ones_change_nothing() {
    let Some(turn) = fake::turn("other_statistics_take_effect_between_two_cells_and_wrong_ones_change_nothing") else {
        return;
    };
    let bed = Bed::new(false);
    let frame = &frames()[1];
    let mut inspector = bed.on_device(&turn).unwrap();
    let before = inspector.inspect(frame).distances.unwrap();
    let statistics = bed.model.statistics();
    // Rows twice as long: distances twice as large.
    let doubled: Vec<f32> = statistics.row_scale().iter().map(|scale| 2.0 * scale).collect();
    let other = Statistics::new(16, 24, statistics.mean(), statistics.factors(), &doubled).unwrap();
    inspector.device().unwrap().replace_statistics(&other).unwrap();
    assert_eq!(inspector.inspect(frame).distances.unwrap().max, 2.0 * before.max);
    // Whatever fails on the way back leaves what is in force. (A graph that cannot be destroyed is no failure.)
    let mut at = 0;
    loop {
        at += 1;
        turn.fail(at, 2);
        let replaced = inspector.device().unwrap().replace_statistics(&statistics);
        let failed = turn.calls() >= at;
        turn.fail(0, 0);
        let want = if replaced.is_ok() { before.max } else { 2.0 * before.max };
        assert_eq!(inspector.inspect(frame).distances.unwrap().max, want, "call {at}");
        if !failed {
            break;
        }
        inspector.device().unwrap().replace_statistics(&other).unwrap();
    }
    assert!(at > 20, "replaced after {at} calls");
    inspector.device().unwrap().replace_statistics(&statistics).unwrap();
    assert_eq!(inspector.inspect(frame).distances.unwrap(), before);
    drop(inspector);
    assert_eq!(turn.alive(), 0, "leaked");
}
