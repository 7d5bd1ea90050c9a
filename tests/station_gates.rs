//! What the station's judge refuses before it looks: a frozen camera, a model that is too old, a sensor that was not calibrated
//! for this camera.

use std::sync::Arc;
use std::time::Duration;

use cellgate::backbone::ResNet18;
use cellgate::backbone::cpu::CpuBackbone;
use cellgate::camera::Format;
use cellgate::frame::Frame;
use cellgate::model::Model;
use cellgate::pipeline::Inspector;
use cellgate::preprocess::sensor::{Calibration, Correction, Recorder};
use cellgate::simd::Isa;
use cellgate::station::judge::{Inspection, Judge};
use cellgate::station::status::THUMBNAIL;
use cellgate::synth::{Generator, SynthConfig};
use cellgate::workers::Workers;

mod common;

fn inspector(model: &Arc<Model>) -> Inspector {
    let (network, workers) = (ResNet18::embedded().unwrap(), Arc::new(Workers::new(1)));
    let backbone = CpuBackbone::new(&network, 64, Isa::detect(), Arc::clone(&workers)).unwrap();
    Inspector::new(Arc::clone(model), Box::new(backbone), workers).unwrap()
}

fn words(judge: &mut Inspection, frames: &[&Frame]) -> Vec<String> {
    let mut heat = [[0; THUMBNAIL]; THUMBNAIL];
    let mut word = |frame: &Frame| {
        let outcome = judge.judge(&mut frame.clone(), &mut heat).outcome;
        match outcome {
            cellgate::verdict::Outcome::Invalid(reason) => reason.name().to_owned(),
            judged => judged.word().to_owned(),
        }
    };
    frames.iter().map(|frame| word(frame)).collect()
}

#[test]
fn frozen_frames_and_old_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = Arc::new(Model::open(&common::small_model(folder.path(), 64, 16, 24)).unwrap());
    let generator = Generator::new(SynthConfig { size: 180, ..SynthConfig::default() }, 3).unwrap();
    let [one, two] = [1000, 1001].map(|index| generator.cell(index).frame);

    let mut judge = Inspection::new(inspector(&model), None, true, None);
    let seen = words(&mut judge, &[&one, &two, &one, &one, &two]);
    assert!(seen[..2].iter().all(|word| word != "duplicate"), "{seen:?}");
    assert_eq!(seen[2..], ["duplicate", "duplicate", "duplicate"]);
    let mut tolerant = Inspection::new(inspector(&model), None, false, None);
    assert!(words(&mut tolerant, &[&one, &one]).iter().all(|word| word != "duplicate"));

    // The model of the tests says that it was made in 1970.
    let mut strict = Inspection::new(inspector(&model), None, true, Some(Duration::from_secs(86_400)));
    assert_eq!(words(&mut strict, &[&one]), ["stale-model"]);
}

#[test]
fn a_calibration_for_another_camera_judges_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = Arc::new(Model::open(&common::small_model(folder.path(), 64, 16, 24)).unwrap());
    let other = Format { width: 64, height: 64, white: 255 };
    let mut dark = Recorder::new(other);
    for index in 0..16 {
        let pixels = (0..64 * 64).map(|i| 5 + ((i * 7 + index * 3) % 3) as u16).collect();
        dark.add(&Frame::from_pixels(64, 64, 255, pixels)).unwrap();
    }
    let correction = Correction::new(&Calibration::from_dark(&dark, "test", "").unwrap(), other).unwrap();
    let mut judge = Inspection::new(inspector(&model), Some(Arc::new(correction)), true, None);
    let cell = Generator::new(SynthConfig { size: 180, ..SynthConfig::default() }, 3).unwrap().cell(7).frame;
    assert_eq!(words(&mut judge, &[&cell]), ["internal"]);
}
