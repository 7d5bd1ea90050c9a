//! `cellgate bench`: how fast this machine is, and what it is bound by.

mod latency;
mod layers;

use std::path::PathBuf;

use clap::builder::TypedValueParser as _;

use super::shared::{Engine, Measuring};
use crate::embedding::Stages;

/// Time the way from an image to its verdict on this machine, or with --layers the network step by step.
///
/// Without --layers: latency of each part over drawn 720×720 frames with their border to be found, and cells an hour.
/// The model is fitted for the purpose to some drawn cells, unless --model names one.
///
/// --streams 1 (the default) is latency mode: all threads work on one cell. --streams N is throughput mode: N cells in
/// flight, the threads shared among them; each takes longer, more are done in an hour.
///
/// On a device (--backend) the whole way from the frame to the heatmap, with the networks that a classifier asks, is one launch,
/// whose time stands under `backbone`; its steps are then timed one by one, by the device's own clock. With --correct the
/// frame is corrected there before, which is part of `all`.
///
/// With --layers: for each step of the network the algorithm, multiply-adds, bytes, median time, and how near it comes to
/// the two roofs of this machine, both measured in the same run: multiply-adds in registers, and reading from memory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cellgate bench --threads 2
  cellgate bench --threads 2 --streams 2        two cells in flight, a thread each
  cellgate bench --backend cuda                 on an NVIDIA device, with the time of each of its steps
  cellgate bench --layers --threads 1
  cellgate bench --layers --size 64 --json
  CELLGATE_ISA=avx2 cellgate bench --layers     held to AVX2")]
pub struct Args {
    /// Print the network step by step.
    #[arg(long)]
    layers: bool,

    /// Side of the rectified image: a multiple of 32.
    #[arg(long, default_value_t = 256, value_name = "PIXELS", conflicts_with = "model")]
    size: u32,

    /// Stages of the network that take part.
    #[arg(long, default_value = "1,2,3,4", value_name = "LIST", conflicts_with = "model")]
    stages: Stages,

    /// Take this model.
    #[arg(long, value_name = "FILE.cgm", conflicts_with = "layers")]
    model: Option<PathBuf>,

    /// Cells in flight at the same time, which share the threads.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=256).map(usize::from), conflicts_with = "layers")]
    streams: usize,

    /// Cells to time, or runs of the network.
    #[arg(long, value_name = "N", default_value = "200", value_parser = clap::value_parser!(u32).range(1..=1_000_000).map(|n| n as usize))]
    runs: usize,

    /// Correct the sensor of each frame too, by a calibration that changes nothing but is computed as any other.
    #[arg(long, conflicts_with = "layers")]
    correct: bool,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    measuring: Measuring,

    #[command(flatten)]
    engine: Engine,
}

/// Times.
///
/// # Errors
/// If the sizes are refused, or the model or the backbone cannot be read.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.layers { layers::run(&args) } else { latency::run(&args) }
}

/// The value below which a share `q` of the sorted `times` lies.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    crate::verdict::quantile(sorted, q).unwrap_or(f64::NAN)
}

/// Milliseconds to a thousandth: the clock gives no more.
fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}
