//! Training steps of the classifier against PyTorch in double precision.

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cellgate::backbone::ResNet18;
use cellgate::classifier::optimiser::Settings;
use cellgate::classifier::train::Trainer;
use cellgate::classifier::{Network, SIDE, Tensors};
use cellgate::simd::Isa;
use cellgate::workers::Workers;

const BATCH: usize = 8;

fn write(path: &Path, values: impl Iterator<Item = f32>) {
    std::fs::write(path, values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
}

fn read(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// A batch whose classes differ, so that something can be learned.
fn batch(planes: usize) -> (Vec<f32>, Vec<usize>) {
    let labels: Vec<usize> = (0..BATCH).map(|b| b % 3).collect();
    let mut state = 1u32;
    let mut inputs = Vec::new();
    for (at, label) in (0..BATCH * planes).map(|at| (at, labels[at / planes])) {
        for p in 0..SIDE * SIDE {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (y, x) = ((p / SIDE) as f32, (p % SIDE) as f32);
            let wave = ((x * (0.1 + 0.2 * label as f32) + at as f32).sin() + (y * 0.17).cos()) / 2.0;
            inputs.push(wave + (state >> 8) as f32 / (1 << 24) as f32);
        }
    }
    (inputs, labels)
}

/// ‖a − b‖ / ‖b‖ of each tensor, in the order of the names; those whose expected norm is tiny against its size count
/// against that instead.
fn differences<'a>(got: &'a Tensors, expected: &'a [f32]) -> Vec<(&'a str, f64)> {
    let mut at = 0;
    let compare = |(name, tensor): (&'a String, &'a cellgate::classifier::Tensor)| {
        let expected = &expected[at..at + tensor.values.len()];
        at += tensor.values.len();
        let (mut off, mut all) = (0.0, 0.0);
        for (&a, &b) in tensor.values.iter().zip(expected) {
            off += (f64::from(a) - f64::from(b)).powi(2);
            all += f64::from(b).powi(2);
        }
        (name.as_str(), (off / all.max(1e-20)).sqrt())
    };
    let differences: Vec<_> = got.iter().map(compare).collect();
    assert_eq!(at, expected.len(), "as many numbers as PyTorch has");
    differences
}

fn against_torch(python: &str, network: &Network, settings: &Settings, steps: usize) {
    let planes = network.inputs();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (inputs, labels) = batch(planes);
    let tensors = network.named_tensors();
    write(&at("tensors.f32"), tensors.values().flat_map(|t| t.values.iter().copied()));
    write(&at("inputs.f32"), inputs.iter().copied());
    let shapes: Vec<_> = tensors.iter().map(|(name, tensor)| (name, &tensor.shape)).collect();
    std::fs::write(at("tensors.json"), serde_json::to_vec(&shapes).unwrap()).unwrap();
    std::fs::write(at("labels.json"), serde_json::to_vec(&labels).unwrap()).unwrap();
    let described = serde_json::json!({
        "planes": planes, "classes": network.classes(), "batch": BATCH, "lr": settings.lr,
        "weight_decay": settings.weight_decay, "smoothing": settings.label_smoothing,
        "class_weights": settings.class_weights,
    });
    std::fs::write(at("settings.json"), described.to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/train_step.py");
    let output = Command::new(python).arg(script).arg(folder.path()).arg(steps.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();

    let mut trainer = Trainer::new(network.clone(), BATCH, Isa::detect(), Arc::new(Workers::new(2))).unwrap();
    for (step, line) in printed.lines().enumerate() {
        let (loss, correct) = line.split_once(' ').unwrap();
        let (loss, correct): (f64, usize) = (loss.parse().unwrap(), correct.parse().unwrap());
        let got = trainer.step(&inputs, &labels, settings).unwrap();
        println!("step {step}: loss {} for {loss}, {} correct for {correct}", got.loss, got.correct);
        assert!((got.loss - loss).abs() < 1e-4 * loss.max(1.0) * 10f64.powi(step as i32), "step {step}");
        assert!(step > 0 || got.correct == correct);
        if step == 0 {
            let expected = read(&at("gradients.f32"));
            for (name, difference) in differences(&trainer.gradients(), &expected) {
                println!("gradient of {name}: {difference:.1e}");
                assert!(difference < 1e-2, "gradient of {name}: {difference:.1e}");
            }
        }
    }
    assert_eq!(trainer.steps(), steps as u64);
    for (name, difference) in differences(&trainer.network().named_tensors(), &read(&at("after.f32"))) {
        println!("{name} after {steps} steps: {difference:.1e}");
        // Adam's first steps are the gradient's sign: where that is near zero, rounding decides.
        assert!(difference < 5e-2, "{name} after {steps} steps: {difference:.1e}");
    }
}

#[test]
fn steps_are_those_of_pytorch() {
    let name = "steps_are_those_of_pytorch";
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let usable = Command::new(&python).args(["-c", "import numpy, torch"]).output();
    if !usable.is_ok_and(|output| output.status.success()) {
        return common::skip(
            name,
            "python3 -m pip install --no-deps -r tests/python/torch.txt (or name an interpreter in PYTHON)",
        );
    }
    against_torch(&python, &Network::new(1, 3, 4).unwrap(), &Settings::default(), 2);
    let weighed = Settings {
        label_smoothing: 0.1,
        class_weights: Some(vec![1.0, 0.5, 2.0]),
        weight_decay: 0.1,
        ..Settings::default()
    };
    let backbone = ResNet18::embedded().unwrap();
    let mut started = Trainer::new(
        Network::from_backbone(&backbone, 2, 3, 4).unwrap(),
        BATCH,
        Isa::detect(),
        Arc::new(Workers::new(1)),
    )
    .unwrap();
    started.match_norms(&batch(2).0).unwrap();
    against_torch(&python, &started.network(), &weighed, 2);
}
