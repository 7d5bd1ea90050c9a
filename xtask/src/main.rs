//! What is done around the sources: `cargo xtask --help`.

mod command;
mod dist;
mod headers;
mod kernels;
mod sbom;

use clap::Parser;

/// Work around cellgate's sources.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Make a release: programs, archives, Debian packages, bill of materials, checksums.
    Dist(dist::Args),
    /// Check the CUDA kernels: the committed PTX against the sources, the assembler, or the results on a card.
    Kernels(kernels::Args),
    /// Fetch TensorRT's headers and print their folders, for TENSORRT_INCLUDE on a machine without TensorRT.
    TensorrtHeaders,
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Dist(args) => dist::run(&args),
        Task::Kernels(args) => kernels::run(&args),
        Task::TensorrtHeaders => headers::run(),
    }
}
