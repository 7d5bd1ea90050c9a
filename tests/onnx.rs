//! The ONNX export, checked and run by the public tools.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cellgate::backbone::onnx::{export_classifier, export_features, export_onnx};
use cellgate::backbone::weights::{Conv, Precision, ResNet18};
use cellgate::classifier::infer::Classifier;
use cellgate::classifier::{Network, SIDE};
use cellgate::embedding::projection::CHANNELS;
use cellgate::embedding::{Mixing, Projection};
use cellgate::simd::Isa;
use cellgate::workers::Workers;

const SIZE: usize = 64;

/// A naive convolution in f64, channels first.
fn conv(c: &Conv, input: &[f64], side: usize) -> Vec<f64> {
    let out = side / c.stride;
    let pad = c.kernel / 2;
    let mut output = vec![0.0; c.outputs * out * out];
    for o in 0..c.outputs {
        for (y, x) in (0..out * out).map(|p| (p / out, p % out)) {
            let mut sum = f64::from(c.bias[o]);
            for i in 0..c.inputs {
                for (ky, kx) in (0..c.kernel * c.kernel).map(|p| (p / c.kernel, p % c.kernel)) {
                    let (iy, ix) = (y * c.stride + ky, x * c.stride + kx);
                    if (pad..side + pad).contains(&iy) && (pad..side + pad).contains(&ix) {
                        let weight = c.weight[((o * c.inputs + i) * c.kernel + ky) * c.kernel + kx];
                        sum += f64::from(weight) * input[(i * side + iy - pad) * side + ix - pad];
                    }
                }
            }
            output[(o * out + y) * out + x] = sum;
        }
    }
    output
}

fn relu(values: &mut [f64]) {
    values.iter_mut().for_each(|v| *v = v.max(0.0));
}

/// The four stages in f64, channels first.
fn forward(network: &ResNet18, image: &[f64]) -> Vec<(usize, Vec<f64>)> {
    let find = |name: &str| network.convs().iter().find(|c| c.name == name);
    let mut wide = conv(find("conv1").unwrap(), image, SIZE);
    relu(&mut wide);
    let (from, mut side) = (SIZE / 2, SIZE / 4);
    let mut x = vec![0.0f64; 64 * side * side];
    for (at, value) in x.iter_mut().enumerate() {
        let (c, y, x) = (at / (side * side), at / side % side, at % side);
        for (wy, wx) in (0..9).map(|p| (2 * y + p / 3, 2 * x + p % 3)) {
            if (1..=from).contains(&wy) && (1..=from).contains(&wx) {
                *value = value.max(wide[(c * from + wy - 1) * from + wx - 1]);
            }
        }
    }
    let mut stages = Vec::new();
    for layer in 1..=4 {
        for block in 0..2 {
            let name = |part: &str| format!("layer{layer}.{block}.{part}");
            let first = find(&name("conv1")).unwrap();
            let mut y = conv(first, &x, side);
            relu(&mut y);
            let mut y = conv(find(&name("conv2")).unwrap(), &y, side / first.stride);
            if let Some(downsample) = find(&name("downsample")) {
                x = conv(downsample, &x, side);
            }
            side /= first.stride;
            y.iter_mut().zip(&x).for_each(|(y, x)| *y += x);
            relu(&mut y);
            x = y;
        }
        stages.push((side, x.clone()));
    }
    stages
}

/// The Python that has onnxruntime; none: the test of this name is skipped.
fn python(test: &str) -> Option<String> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let usable = Command::new(&python).args(["-c", "import numpy, onnx, onnxruntime"]).output();
    if usable.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    common::skip(test, "python3 -m pip install numpy onnx onnxruntime (or name an interpreter in PYTHON)");
    None
}

fn write(folder: &Path, name: &str, values: &[f32]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    path
}

/// A network passes onnx's checker and gives in onnxruntime what is expected, each output within `tolerance` of its largest
/// number.
fn check(python: &str, onnx: &[u8], input: &Path, tolerance: &str, expected: &[PathBuf]) {
    let model = input.with_extension("onnx");
    std::fs::write(&model, onnx).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/check_onnx.py");
    let output =
        Command::new(python).arg(script).arg(&model).arg(input).arg(tolerance).args(expected).output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "within {tolerance}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_export_passes_the_checker_and_runs_in_onnxruntime() {
    let Some(python) = python("the_export_passes_the_checker_and_runs_in_onnxruntime") else { return };
    let folder = tempfile::tempdir().unwrap();
    let network = ResNet18::embedded().unwrap();
    // A smooth image with an edge, in the range of a normalised one.
    let image: Vec<f32> = (0..SIZE * SIZE)
        .map(|p| {
            let (y, x) = ((p / SIZE) as f32, (p % SIZE) as f32);
            (x * 0.37).sin() + (y * 0.21).cos() + if x > y { 0.5 } else { -0.5 }
        })
        .collect();
    let write = |name: &str, values: &[f32]| write(folder.path(), name, values);
    let input = write("image.f32", &image);
    let stages = forward(&network, &image.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
    let expected: Vec<_> = (stages.iter().enumerate())
        .map(|(s, (side, map))| {
            let (pixels, channels) = (side * side, map.len() / (side * side));
            let last = (0..map.len()).map(|at| map[at % channels * pixels + at / channels] as f32);
            write(&format!("stage{}.f32", s + 1), &last.collect::<Vec<_>>())
        })
        .collect();
    // FP16 keeps 11 bits; twenty convolutions in a row lose some of them.
    for (precision, tolerance) in [(Precision::F32, "1e-5"), (Precision::F16, "1e-2")] {
        let onnx = export_onnx(&network, SIZE, precision).unwrap();
        check(&python, &onnx, &input, tolerance, &expected);
    }
}

#[test]
fn the_exported_features_are_in_onnxruntime_what_the_cpu_engine_projects() {
    let Some(python) = python("the_exported_features_are_in_onnxruntime_what_the_cpu_engine_projects") else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, values: &[f32]| write(folder.path(), name, values);
    let network = ResNet18::embedded().unwrap();
    let image = common::maps::image(SIZE);
    // The default; every stage with a k that is no multiple of 8; stages left out in front, between and behind.
    // And the stages beside the maps, of one view and of two.
    for (mixing, k, stages, views) in [
        (Mixing::Sparse, 100, "1,2,3,4", 0),
        (Mixing::Dense, 13, "1,2,3,4", 1),
        (Mixing::Dense, 8, "2", 0),
        (Mixing::Sparse, 20, "1,3", 2),
    ] {
        let stages = stages.parse().unwrap();
        let projection = Projection::semi_orthogonal(mixing, k, 7, stages, &[1.0; CHANNELS]).unwrap();
        let mut images = image.clone();
        if views == 2 {
            images.extend(image.iter().map(|x| 0.7 - x));
        }
        let input = write("image.f32", &images);
        let maps = common::maps::of(&network, &projection, SIZE, views > 0, &images);
        let expected: Vec<_> = maps.iter().enumerate().map(|(s, map)| write(&format!("map{s}.f32"), map)).collect();
        // The CPU engine's Winograd costs some digits; FP16 keeps 11 bits, in 21 convolutions one after the other.
        for (precision, tolerance) in [(Precision::F32, "1e-3"), (Precision::F16, "2e-3")] {
            let onnx = export_features(&network, &projection, SIZE, views, precision).unwrap();
            check(&python, &onnx, &input, tolerance, &expected);
        }
    }
}

#[test]
fn an_exported_classifier_says_in_onnxruntime_what_ours_says() {
    let Some(python) = python("an_exported_classifier_says_in_onnxruntime_what_ours_says") else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, values: &[f32]| write(folder.path(), name, values);
    for (planes, samples, side) in [(1, 1, SIDE), (2, 3, SIDE), (2, 1, 128)] {
        let net = Network::new(planes, 3, 11).unwrap().fold(side);
        let images: Vec<f32> =
            (0..samples * planes * side * side).map(|p| (p as f32 * 0.37).sin() + (p as f32 * 0.0021).cos()).collect();
        let mut classifier = Classifier::new(&net, Isa::detect(), Arc::new(Workers::new(1))).unwrap();
        let (mut logits, mut probabilities) = (vec![0.0; 3 * samples], vec![0.0; 3 * samples]);
        let said = logits.chunks_exact_mut(3).zip(probabilities.chunks_exact_mut(3));
        for (image, (logits, probabilities)) in images.chunks_exact(planes * side * side).zip(said) {
            let sides: Vec<&[f32]> = image.chunks_exact(side * side).collect();
            classifier.logits(&sides, logits).unwrap();
            classifier.run(&sides, probabilities).unwrap();
        }
        let input = write("image.f32", &images);
        let expected = [write("logits.f32", &logits), write("probabilities.f32", &probabilities)];
        for (precision, tolerance) in [(Precision::F32, "1e-3"), (Precision::F16, "2e-2")] {
            check(&python, &export_classifier(&net, samples, precision).unwrap(), &input, tolerance, &expected);
        }
    }
}
