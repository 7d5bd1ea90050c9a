//! `cellgate backbone` as a person runs it.

use std::path::Path;
use std::process::{Command, Output};

fn backbone(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cellgate")).arg("backbone").args(arguments).output().unwrap()
}

fn show(arguments: &[&str]) -> serde_json::Value {
    let output = backbone(&[&["show", "--json"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn assert_fails(arguments: &[&str], says: &[&str]) {
    let output = backbone(arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    says.iter().for_each(|part| assert!(text.contains(part), "{text:?} does not say {part:?}"));
}

#[test]
fn the_embedded_backbone_is_exported_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let embedded = show(&[]);
    assert_eq!(embedded["multiply_adds"], 2_265_972_736u64);
    assert_eq!(embedded["convolutions"].as_array().unwrap().len(), 20);

    let (onnx, own) = (path("b.onnx"), path("own.safetensors"));
    assert!(backbone(&["export-onnx", "--size", "64", "-o", &onnx]).status.success());
    let import = ["import", &onnx, "-o", &own, "--name", "mine", "--provenance", "a test"];
    assert!(backbone(&import).status.success());
    let shown = show(&[&own]);
    assert_eq!(shown["identity"], embedded["identity"]);
    assert_eq!((&shown["name"], &shown["provenance"]), (&"mine".into(), &"a test".into()));
    assert_eq!((&shown["origin"], &shown["precision"]), (&"cellgate".into(), &"f16".into()));
    // Whole files only: nothing else is left in the folder.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn errors_name_the_file_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (missing, text, out) = (path("missing.pth"), path("text.pth"), path("out.safetensors"));
    assert_fails(&["import", &missing, "-o", &out], &["missing.pth", "No such file"]);
    std::fs::write(&text, "these are no weights").unwrap();
    assert_fails(&["import", &text, "-o", &out], &["text.pth", "neither safetensors"]);
    assert_fails(&["show", folder.path().to_str().unwrap()], &["reading backbone weights"]);
    assert!(!Path::new(&out).exists());
    assert_fails(&["export-onnx", "-o", &path("none/b.onnx")], &["writing", "none/b.onnx"]);
    assert_fails(&["export-onnx", "--size", "100", "-o", &path("b.onnx")], &["100", "multiple of 32"]);
    assert_fails(&["import", &text, "-o", &out, "--fp16"], &["--fp16"]);
}

#[test]
fn a_misspelt_instruction_set_is_said() {
    let run = |isa: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellgate"));
        command.args(["backbone", "show", "--json"]).env("CELLGATE_ISA", isa).output().unwrap()
    };
    let output = run("avx-2");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("CELLGATE_ISA") && said.contains("avx-2"), "{said}");
    assert!(run("scalar").status.success() && run("").status.success());
}
