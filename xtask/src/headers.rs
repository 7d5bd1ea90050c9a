//! TensorRT's headers, for machines without TensorRT.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::command::root;

/// Fetches the source of a crate that carries the headers, and says where they are.
///
/// # Errors
/// If cargo cannot fetch it, or there are none in it.
pub fn run() -> anyhow::Result<()> {
    println!("{}", folder()?.display());
    Ok(())
}

fn folder() -> anyhow::Result<PathBuf> {
    let manifest = root().join("tests/tensorrt/headers/Cargo.toml");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--manifest-path"]).arg(&manifest);
    let output = cargo.output().with_context(|| format!("starting {cargo:?}"))?;
    if !output.status.success() {
        bail!("{cargo:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let package = packages.iter().find(|package| package["name"] == "trtx-sys").context("it has no trtx-sys")?;
    let manifest = package["manifest_path"].as_str().context("cargo metadata names no path of trtx-sys")?;
    let folder = Path::new(manifest).with_file_name("TensorRT-Headers").join("TRT-Enterprise-11.4");
    if !folder.join("NvInfer.h").exists() {
        bail!("{} holds no NvInfer.h: was trtx-sys built otherwise in this version?", folder.display());
    }
    Ok(folder)
}
