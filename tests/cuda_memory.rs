//! After start, a cell on a device allocates nothing. A test program of its own, since it counts allocations; all that is done
//! for a cell is done by one thread here.

#![cfg(target_os = "linux")]

use std::sync::Arc;

use cellgate::backbone::ResNet18;
use cellgate::camera::Format;
use cellgate::cuda::Device;
use cellgate::frame::Frame;
use cellgate::model::Model;
use cellgate::pipeline::Inspector;
use cellgate::preprocess::sensor::{Calibration, Correction, Recorder};
use cellgate::synth::{Generator, SynthConfig};
use cellgate::verdict::Outcome;
use cellgate::workers::Workers;

mod common;
#[path = "common/counting.rs"]
mod counting;
#[path = "cuda/fake.rs"]
mod fake;
#[path = "cuda/network.rs"]
mod network;

#[test]
fn a_cell_on_a_device_allocates_nothing() {
    let Some(turn) = fake::turn("a_cell_on_a_device_allocates_nothing") else { return };
    let folder = tempfile::tempdir().unwrap();
    // With a second view, a kernel machine and a network that is asked twice: all that a judge can want.
    let model = Arc::new(Model::open(&common::judged_model(folder.path(), 64, 16, 24, 2, 64)).unwrap());
    let (network, workers) = (ResNet18::embedded().unwrap(), Arc::new(Workers::new(1)));
    let packed = network::Packed::new(&model, &network);
    let backbone = Box::new(packed.backbone.another_on(Arc::clone(&workers)));
    let mut inspector = Inspector::new(Arc::clone(&model), backbone, workers).unwrap();
    inspector.use_device(&Device::open().unwrap(), packed.networks(turn.fake, &model)).unwrap();
    let generator = Generator::new(SynthConfig { size: 180, ..SynthConfig::default() }, 3).unwrap();
    let frames: Vec<_> = (0..6).map(|index| generator.cell(1000 + index).frame).collect();
    let format = Format::of(&frames[0]);
    let mut dark = Recorder::new(format);
    (0..4).for_each(|_| dark.add(&Frame::new(format.width, format.height, format.white)).unwrap());
    let calibration = Calibration::from_dark(&dark, "", "").unwrap();
    let sensor = Arc::new(Correction::new(&calibration, format).unwrap());
    inspector.use_sensor(&sensor).unwrap();
    let mut raw = inspector.frame(format);
    inspector.inspect(&frames[0]);
    for (index, frame) in frames.iter().cycle().take(20).enumerate() {
        let before = counting::own_allocations();
        let verdict = inspector.inspect(frame);
        assert_eq!(counting::own_allocations() - before, 0, "cell {index}");
        assert!(!matches!(verdict.outcome, Outcome::Invalid(_)), "{verdict:?}");
        raw.pixels_mut().copy_from_slice(frame.pixels());
        let before = counting::own_allocations();
        let verdict = inspector.inspect_raw(&mut raw, &sensor).unwrap();
        assert_eq!(counting::own_allocations() - before, 0, "cell {index}, corrected");
        assert!(!matches!(verdict.outcome, Outcome::Invalid(_)), "{verdict:?}");
    }
    assert!(inspector.device().is_some(), "went to the CPU");
}
