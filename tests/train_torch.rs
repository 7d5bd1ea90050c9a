//! Training steps of the classifier against PyTorch in double precision.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cellgate::backbone::ResNet18;
use cellgate::classifier::optimiser::Settings;
use cellgate::classifier::train::Trainer;
use cellgate::classifier::{Network, SIDE, Tensors};
use cellgate::simd::Isa;
use cellgate::workers::Workers;
use serde::{Deserialize, Serialize};

const BATCH: usize = 8;
const STEPS: usize = 2;

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

/// What is kept of a tensor: its norm, and its part along four fixed directions, in units of √(its length).
type Sketch = [f32; 5];

fn sketch(values: &[f32]) -> Sketch {
    let mut sketch = [0.0f64; 5];
    for (at, &value) in values.iter().enumerate() {
        let (value, hash) = (f64::from(value), (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40);
        sketch[0] += value * value;
        for (bit, along) in sketch[1..].iter_mut().enumerate() {
            *along += if hash >> bit & 1 == 1 { value } else { -value };
        }
    }
    sketch[0] = sketch[0].sqrt();
    sketch[1..].iter_mut().for_each(|along| *along /= (values.len() as f64).sqrt());
    sketch.map(|x| x as f32)
}

/// The sketch of each tensor, whose values lie one after the other in the order of the names.
fn sketches(tensors: &Tensors, mut values: &[f32]) -> BTreeMap<String, Sketch> {
    let each = tensors.iter().map(|(name, tensor)| {
        let (own, rest) = values.split_at(tensor.values.len());
        values = rest;
        (name.clone(), sketch(own))
    });
    each.collect()
}

/// Training steps as PyTorch does them.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    losses: Vec<f64>,
    correct: Vec<usize>,
    /// Of the first step.
    gradients: BTreeMap<String, Sketch>,
    /// All tensors after the last step.
    after: BTreeMap<String, Sketch>,
}

fn record_path(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/train_torch_{case}.json"))
}

/// The start and the settings of each case.
fn cases() -> [(&'static str, Network, Settings); 2] {
    let weighed = Settings {
        label_smoothing: 0.1,
        class_weights: Some(vec![1.0, 0.5, 2.0]),
        weight_decay: 0.1,
        ..Settings::default()
    };
    let network = Network::from_backbone(&ResNet18::embedded().unwrap(), 2, 0.5, 3, 4).unwrap();
    let mut started = Trainer::new(network, SIDE, BATCH, Isa::Scalar, Arc::new(Workers::new(2))).unwrap();
    started.match_norms(&batch(2).0).unwrap();
    [("random", Network::new(1, 3, 4).unwrap(), Settings::default()), ("backbone", started.network(), weighed)]
}

/// Our steps from `network` on must be those of `torch`.
fn follows(torch: &Record, network: &Network, settings: &Settings) {
    let (inputs, labels) = batch(network.inputs());
    let near = |what: &str, got: &[f32], expected: &Sketch, limit: f32| {
        let far = sketch(got).iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let far = far / expected[0].max(1e-10);
        println!("{what}: {far:.1e}");
        assert!(far < limit, "{what}: {far:.1e}");
    };
    let mut trainer = Trainer::new(network.clone(), SIDE, BATCH, Isa::detect(), Arc::new(Workers::new(2))).unwrap();
    for (step, (&loss, &correct)) in torch.losses.iter().zip(&torch.correct).enumerate() {
        let got = trainer.step(&inputs, &labels, settings).unwrap();
        println!("step {step}: loss {} for {loss}, {} correct for {correct}", got.loss, got.correct);
        assert!((got.loss - loss).abs() < 1e-4 * loss.max(1.0) * 10f64.powi(step as i32), "step {step}");
        assert!(step > 0 || got.correct == correct);
        if step == 0 {
            let gradients = trainer.gradients();
            assert_eq!(gradients.len(), torch.gradients.len());
            for (name, tensor) in &gradients {
                near(&format!("gradient of {name}"), &tensor.values, &torch.gradients[name], 1e-2);
            }
        }
    }
    assert_eq!(trainer.steps(), STEPS as u64);
    let after = trainer.network().named_tensors();
    assert_eq!(after.len(), torch.after.len());
    for (name, tensor) in &after {
        // Adam's first steps are the gradient's sign: where that is near zero, rounding decides.
        near(&format!("{name} after {STEPS} steps"), &tensor.values, &torch.after[name], 5e-2);
    }
}

/// With `RECORD=1` PyTorch is asked anew, and its answer kept (CONTRIBUTING.md); else its last answer counts.
#[test]
fn steps_are_those_of_pytorch() {
    let record = std::env::var_os("RECORD").is_some();
    for (case, network, settings) in cases() {
        let torch = if record {
            let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
            let torch = ask_torch(&python, &network, &settings);
            std::fs::write(record_path(case), format!("{}\n", serde_json::to_string(&torch).unwrap())).unwrap();
            torch
        } else {
            serde_json::from_slice(&std::fs::read(record_path(case)).unwrap()).unwrap()
        };
        follows(&torch, &network, &settings);
    }
}

fn ask_torch(python: &str, network: &Network, settings: &Settings) -> Record {
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
    let output = Command::new(python).arg(script).arg(folder.path()).arg(STEPS.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();

    let mut record = Record::default();
    for line in printed.lines() {
        let (loss, correct) = line.split_once(' ').unwrap();
        record.losses.push(loss.parse().unwrap());
        record.correct.push(correct.parse().unwrap());
    }
    let parameters =
        Trainer::new(network.clone(), SIDE, BATCH, Isa::Scalar, Arc::new(Workers::new(1))).unwrap().gradients();
    record.gradients = sketches(&parameters, &read(&at("gradients.f32")));
    record.after = sketches(&tensors, &read(&at("after.f32")));
    record
}
