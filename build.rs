//! Compiles the C++ of `src/tensorrt/shim.cpp`, with `--features tensorrt` alone; nothing without it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "tensorrt")]
    shim();
}

/// TensorRT's headers are looked for where `TENSORRT_INCLUDE` says, and in the compiler's own folders, where JetPack puts them.
#[cfg(feature = "tensorrt")]
fn shim() {
    use std::path::{Path, PathBuf};

    let folder = Path::new("src/tensorrt");
    for file in ["shim.cpp", "shim.h", "cuda/cuda_runtime_api.h"] {
        println!("cargo::rerun-if-changed={}", folder.join(file).display());
    }
    println!("cargo::rerun-if-env-changed=TENSORRT_INCLUDE");
    let include = std::env::var_os("TENSORRT_INCLUDE").map(PathBuf::from);
    let target = std::env::var("TARGET").unwrap_or_default();
    let multiarch = format!("/usr/include/{}", target.replace("-unknown", ""));
    let usual = [PathBuf::from("/usr/include"), multiarch.into()];
    let found = match &include {
        Some(folder) => folder.join("NvInfer.h").exists(),
        None => usual.iter().any(|folder| folder.join("NvInfer.h").exists()),
    };
    if !found {
        let place = include
            .map_or("the compiler's folders".to_owned(), |folder| format!("TENSORRT_INCLUDE={}", folder.display()));
        println!(
            "cargo::error=--features tensorrt needs TensorRT's headers, and there is no NvInfer.h in {place}: set TENSORRT_INCLUDE \
             to the folder that holds it (docs/tensorrt.md says where to get it)"
        );
        return;
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").file(folder.join("shim.cpp")).warnings(true);
    if let Some(include) = include {
        // Its headers use what they have themselves marked as deprecated.
        build.flag("-isystem").flag(include);
    }
    // After all others, so that a CUDA toolkit's is found first.
    build.flag("-idirafter").flag(folder.join("cuda"));
    build.compile("cellgate_tensorrt");
}
