//! TensorRT's headers, for machines without TensorRT.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::command::root;

/// Of each major version the folder of its manifest, and the version that the crate has; the latest first.
pub const VERSIONS: [(&str, &str); 2] = [("11", "11.4"), ("10", "10.16")];

/// Fetches the sources of a crate that carries the headers, and prints where they are.
///
/// # Errors
/// As [`folders`].
pub fn run() -> anyhow::Result<()> {
    println!("{}", folders()?);
    Ok(())
}

/// The folders as `TENSORRT_INCLUDE` wants them, after the crates that carry them were fetched.
///
/// # Errors
/// If cargo cannot fetch them, or there are no headers in them.
pub fn folders() -> anyhow::Result<String> {
    let folders = VERSIONS.iter().map(|(major, version)| folder(major, version)).collect::<anyhow::Result<Vec<_>>>()?;
    let list = std::env::join_paths(folders).context("listing the folders of TensorRT's headers")?;
    Ok(list.to_string_lossy().into_owned())
}

fn folder(major: &str, version: &str) -> anyhow::Result<PathBuf> {
    let manifest = root().join("tests/tensorrt/headers").join(major).join("Cargo.toml");
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
    let folder = Path::new(manifest).with_file_name("TensorRT-Headers").join(format!("TRT-Enterprise-{version}"));
    if !folder.join("NvInfer.h").exists() {
        bail!("{} holds no NvInfer.h: was trtx-sys built otherwise in this version?", folder.display());
    }
    Ok(folder)
}
