//! After start, the way from a frame to a verdict allocates nothing, with the classifier or without. A test program of
//! its own, since it counts every allocation of the process.

use std::path::Path;
use std::sync::Arc;

use cellgate::backbone::ResNet18;
use cellgate::backbone::cpu::CpuBackbone;
use cellgate::classifier::infer::Classifier;
use cellgate::classifier::optimiser::Settings;
use cellgate::classifier::train::Trainer;
use cellgate::classifier::{Network, SIDE};
use cellgate::frame::Frame;
use cellgate::model::Model;
use cellgate::pipeline::Inspector;
use cellgate::simd::Isa;
use cellgate::synth::{DefectKind, Generator, SynthConfig};
use cellgate::verdict::Outcome;
use cellgate::workers::Workers;

mod common;

#[path = "common/counting.rs"]
mod counting;

use counting::allocations;

/// Good and defective cells, and frames that no cell can be judged in.
fn frames() -> Vec<Frame> {
    let generator = Generator::new(SynthConfig { size: 180, ..SynthConfig::default() }, 3).unwrap();
    let mut frames: Vec<Frame> = (0..10).map(|index| generator.cell(1000 + index).frame).collect();
    frames.extend(DefectKind::ALL.into_iter().map(|kind| generator.with_defect(7, kind).frame));
    frames.push(Frame::new(180, 180, 255));
    frames.push(Frame::from_pixels(180, 180, 255, vec![255; 180 * 180]));
    frames.push(Frame::from_pixels(180, 180, 4095, (0..180 * 180).map(|i| (i * 37 % 4096) as u16).collect()));
    frames.push(Frame::from_pixels(4, 4, 255, vec![90; 16]));
    // The left half of the cell lies outside.
    let cell = &frames[0];
    let rows = (0..180).flat_map(|y| cell.row(y)[90..].to_vec()).collect();
    let cropped = Frame::from_pixels(90, 180, 255, rows);
    // A sixth of its light.
    let dim = Frame::from_pixels(180, 180, 255, cell.pixels().iter().map(|p| p / 6).collect());
    frames.extend([cropped, dim]);
    frames
}

fn a_thousand_frames_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    inspecting_allocates_nothing(&common::small_model(folder.path(), 64, 16, 24), 1000);
}

/// With network, kernel machine and a second view.
fn a_classifier_in_the_model_allocates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    inspecting_allocates_nothing(&common::judged_model(folder.path(), 64, 16, 24, 2, 128), 300);
}

fn inspecting_allocates_nothing(path: &Path, count: usize) {
    let model = Arc::new(Model::open(path).unwrap());
    let network = ResNet18::embedded().unwrap();
    let frames = frames();
    for threads in [1, 2] {
        let workers = Arc::new(Workers::new(threads));
        let backbone = CpuBackbone::new(&network, 64, Isa::detect(), Arc::clone(&workers)).unwrap();
        let mut inspector = Inspector::new(Arc::clone(&model), Box::new(backbone), workers).unwrap();
        // The first frames may set up what the standard library makes on first use, such as a thread's parker.
        for frame in frames.iter().take(3) {
            inspector.inspect(frame);
        }
        let (mut passed, mut rejected, mut invalid) = (0, 0, 0);
        let mut guilty = Vec::with_capacity(frames.len());
        for index in 0..count {
            let frame = &frames[index % frames.len()];
            let before = allocations();
            let verdict = inspector.inspect(frame);
            let made = allocations() - before;
            if made > 0 && guilty.len() < frames.len() {
                guilty.push((index, made));
            }
            let judged = !matches!(verdict.outcome, Outcome::Invalid(_)) && model.judge().is_some();
            assert_eq!(verdict.probabilities.is_some(), judged);
            match verdict.outcome {
                Outcome::Pass(_) => passed += 1,
                Outcome::Reject => rejected += 1,
                Outcome::Invalid(_) => invalid += 1,
            }
        }
        assert!(guilty.is_empty(), "{threads} threads: (frame, allocations) {guilty:?}");
        assert!(
            passed > count / 10 && rejected > count / 50 && invalid > count / 10,
            "{passed} passed, {rejected} rejected, {invalid} not"
        );
    }
}

fn classifying_and_training_allocate_nothing() {
    const BATCH: usize = 4;
    for threads in [1, 2] {
        let workers = Arc::new(Workers::new(threads));
        let network = Network::new(2, 3, 1).unwrap();
        let mut classifier = Classifier::new(&network.fold(SIDE), Isa::detect(), Arc::clone(&workers)).unwrap();
        let mut trainer = Trainer::new(network, SIDE, BATCH, Isa::detect(), workers).unwrap();
        let batch: Vec<f32> = (0..BATCH * 2 * SIDE * SIDE).map(|i| (i as f32 * 0.37).sin()).collect();
        let (planes, settings) = (batch.as_chunks::<{ SIDE * SIDE }>().0, Settings::default());
        let mut probabilities = [0.0; 3];
        for round in 0..5 {
            let before = allocations();
            classifier.run(&[&planes[0], &planes[1]], &mut probabilities).unwrap();
            trainer.step(&batch, &[0, 1, 2, 0], &settings).unwrap();
            trainer.logits(&batch).unwrap();
            // The first may set up what the standard library makes on first use.
            assert!(round == 0 || allocations() == before, "{threads} threads, round {round}");
        }
    }
}

/// One test, since the count is of the whole process.
#[test]
fn after_start_nothing_is_allocated() {
    a_thousand_frames_allocate_nothing();
    a_classifier_in_the_model_allocates_nothing();
    classifying_and_training_allocate_nothing();
}
