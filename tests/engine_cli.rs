//! `cellgate engine` from the outside, on doubles of TensorRT and of the CUDA driver.
#![cfg(all(feature = "tensorrt", target_os = "linux"))]

mod common;
#[path = "tensorrt/double.rs"]
mod double;
#[allow(dead_code)]
mod kernels;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The JSON objects that a command printed.
fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn engines_are_built_once_shown_and_refused_elsewhere() {
    let name = "engines_are_built_once_shown_and_refused_elsewhere";
    let Some(test) = double::take(name) else { return };
    let folder = tempfile::tempdir().unwrap();
    let driver = folder.path().join("libcuda.so.1");
    if kernels::build("fake_cuda.cpp", &driver).is_none() {
        return common::skip(name, "g++");
    }
    let model = common::judged_model(folder.path(), 64, 16, 8, 1, 64);
    let engines = folder.path().join("engines");
    let double = test.double.path();
    let run = |words: &[&Path], variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellgate"));
        command
            .env("CELLGATE_LIBNVINFER", double)
            .env("CELLGATE_LIBNVONNXPARSER", double)
            .env("CELLGATE_LIBCUDA", &driver);
        command
            .arg("engine")
            .args(words)
            .arg("--engines")
            .arg(&engines)
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    };
    let build = ["build".as_ref(), model.as_path(), "--json".as_ref()];
    let built = lines(&run(&build, &[]));
    assert_eq!(built.len(), 2, "backbone and classifier: {built:?}");
    assert!(built.iter().all(|line| line["built"] == true && line["engine"]["onnx"].as_str().unwrap().len() == 64));
    assert!(lines(&run(&build, &[])).iter().all(|line| line["built"] == false));

    let shown = lines(&run(&["show".as_ref(), "--json".as_ref(), "--layers".as_ref()], &[]));
    let kinds: Vec<_> = shown.iter().map(|line| line["engine"]["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["classifier", "features"]);
    for line in &shown {
        let layers = line["layers"].as_array().unwrap();
        assert!(layers.iter().any(|layer| layer["kind"] == "Conv" && layer["outputs"][0] == "Half"), "{line}");
    }
    let words = text(&run(&["show".as_ref(), "--layers".as_ref()], &[]).stdout);
    assert!(words.contains("network      features") && words.contains("| Half |"), "{words}");

    // Another TensorRT of the same major version builds anew; another major version is refused.
    let major = built[0]["engine"]["tensorrt"]["major"].as_u64().unwrap();
    let newer = (major * 10_000 + 9_901).to_string();
    assert!(lines(&run(&build, &[("CELLGATE_FAKE_TRT_VERSION", &newer)])).iter().all(|line| line["built"] == true));
    let output = run(&build, &[("CELLGATE_FAKE_TRT_VERSION", "9300")]);
    assert!(!output.status.success() && text(&output.stderr).contains("TENSORRT_INCLUDE"), "{}", text(&output.stderr));

    // Damage is told, and mended by a build.
    let damaged = shown[0]["file"].as_str().unwrap();
    std::fs::write(damaged, b"nonsense").unwrap();
    let output = run(&["show".as_ref()], &[]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains(damaged) && said.contains("cellgate engine build"), "{said}");
    assert!(lines(&run(&build, &[])).iter().all(|line| line["built"] == true));

    // Each call that fails ends the build with its name, and leaves whole engines or none.
    for n in 1..24 {
        std::fs::remove_dir_all(&engines).unwrap_or_default();
        let output = run(&build, &[("CELLGATE_FAKE_TRT_FAIL", &n.to_string())]);
        if !output.status.success() {
            assert!(text(&output.stderr).contains("injected failure of"), "call {n}: {}", text(&output.stderr));
        }
        if engines.exists() {
            lines(&run(&["show".as_ref(), "--json".as_ref()], &[]));
        }
    }

    // Nothing to run on.
    let output = run(&build, &[("CELLGATE_LIBCUDA", "/nowhere/libcuda.so.1")]);
    assert!(!output.status.success() && text(&output.stderr).contains("/nowhere/libcuda.so.1"));
    let output = run(&build, &[("CELLGATE_LIBNVINFER", "/nowhere/libnvinfer.so")]);
    assert!(!output.status.success() && text(&output.stderr).contains("/nowhere/libnvinfer.so"));
}
