//! Compiles the C++ of `src/tensorrt/shim.cpp`, with `--features tensorrt` alone; nothing without it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(tensorrt_10, tensorrt_11)");
    #[cfg(feature = "tensorrt")]
    shims();
}

/// A shim for each major version of TensorRT whose headers there are: in the folders that `TENSORRT_INCLUDE` lists, or in the
/// compiler's own, where JetPack puts them.
#[cfg(feature = "tensorrt")]
fn shims() {
    use std::path::{Path, PathBuf};

    let folder = Path::new("src/tensorrt");
    for file in ["shim.cpp", "shim.h", "cuda/cuda_runtime_api.h"] {
        println!("cargo::rerun-if-changed={}", folder.join(file).display());
    }
    println!("cargo::rerun-if-env-changed=TENSORRT_INCLUDE");
    let named = std::env::var_os("TENSORRT_INCLUDE");
    let includes: Vec<PathBuf> = if let Some(list) = &named {
        std::env::split_paths(list).collect()
    } else {
        let target = std::env::var("TARGET").unwrap_or_default();
        let multiarch = format!("/usr/include/{}", target.replace("-unknown", ""));
        [multiarch.into(), PathBuf::from("/usr/include")]
            .into_iter()
            .filter(|folder| folder.join("NvInfer.h").exists())
            .take(1)
            .collect()
    };
    if includes.is_empty() {
        println!(
            "cargo::error=--features tensorrt needs TensorRT's headers, and there is no NvInfer.h in the compiler's folders: set \
             TENSORRT_INCLUDE to the folder that holds it (docs/tensorrt.md says where to get it)"
        );
    }
    let mut majors = Vec::new();
    for include in includes {
        let major = match major(&include.join("NvInferVersion.h")) {
            Ok(major) if majors.contains(&major) => Err(format!("is of TensorRT {major}, as a folder before it")),
            other => other,
        };
        let major = match major {
            Ok(major) => major,
            Err(why) => {
                println!("cargo::error=TENSORRT_INCLUDE: {} {why} (docs/tensorrt.md)", include.display());
                continue;
            }
        };
        println!("cargo::rustc-cfg=tensorrt_{major}");
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").file(folder.join("shim.cpp")).warnings(true);
        if named.is_some() {
            // Its headers use what they have themselves marked as deprecated.
            build.flag("-isystem").flag(include);
        }
        // After all others, so that a CUDA toolkit's is found first.
        build.flag("-idirafter").flag(folder.join("cuda"));
        build.compile(&format!("cellgate_tensorrt_{major}"));
        majors.push(major);
    }
}

/// Which major version a folder's headers are of, if it is one that the shim can be compiled for.
#[cfg(feature = "tensorrt")]
fn major(header: &std::path::Path) -> Result<u32, String> {
    let text = std::fs::read_to_string(header).map_err(|error| format!("has no NvInferVersion.h: {error}"))?;
    // Since 10.11 the first name stands for the second's number.
    let major = ["TRT_MAJOR_ENTERPRISE", "NV_TENSORRT_MAJOR"].iter().find_map(|name| {
        let line = text.lines().find_map(|line| line.strip_prefix("#define ")?.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    });
    match major {
        Some(10 | 11) => Ok(major.unwrap_or_default()),
        Some(other) => Err(format!("is of TensorRT {other}, and the shim knows 10 and 11")),
        None => Err("says no version in NvInferVersion.h".into()),
    }
}
