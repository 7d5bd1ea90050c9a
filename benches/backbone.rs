//! The CPU backbone under a clock.
//!
//! `cargo bench --bench backbone -- --threads 1 --size 256` prints one line of medians, and the heap allocations of a
//! run; `--layers` adds a line for each step. With `--serve` it takes turns with other programs (`common/served.rs`).
//! `--input` and `--output` are raw little-endian f32: the image, and the four maps one after the other.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use cellgate::backbone::cpu::CpuBackbone;
use cellgate::backbone::{Backbone, Pyramid, ResNet18};
use cellgate::simd::Isa;
use cellgate::workers::Workers;
use clap::Parser;

#[path = "../tests/common/counting.rs"]
mod counting;
#[path = "common/served.rs"]
mod served;

use counting::allocations;
use served::median;

#[derive(Parser)]
struct Args {
    /// Threads that share an image.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Side of the image.
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// Instruction set: avx512, avx2, neon-fp16, neon or scalar.
    #[arg(long)]
    isa: Option<Isa>,
    /// Runs to take the median of.
    #[arg(long, default_value_t = 100)]
    runs: usize,
    /// Print the median milliseconds and the rate of each step (Winograd: of the multiply-adds that it replaces).
    #[arg(long)]
    layers: bool,
    /// Answer counts from stdin.
    #[arg(long)]
    serve: bool,
    /// The image to run.
    #[arg(long)]
    input: Option<PathBuf>,
    /// Where to write the four maps.
    #[arg(long)]
    output: Option<PathBuf>,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let isa = args.isa.unwrap_or_else(Isa::detect);
    let workers = Arc::new(Workers::new(args.threads));
    let mut backbone = CpuBackbone::new(&ResNet18::embedded()?, args.size, isa, workers)?;
    let mut pyramid = Pyramid::new(args.size);
    let image: Vec<f32> = match &args.input {
        Some(path) => {
            let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        None => (0..args.size * args.size).map(|i| ((i * 2_654_435_761) >> 8 & 0xffff) as f32 / 2e4 - 1.6).collect(),
    };

    for _ in 0..5 {
        backbone.run(&image, &mut pyramid)?;
    }
    if let Some(path) = &args.output {
        let bytes: Vec<u8> = (0..4).flat_map(|s| pyramid.values(s)).flat_map(|x| x.to_le_bytes()).collect();
        std::fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))?;
    }
    let before = allocations();
    for _ in 0..10 {
        backbone.run(&image, &mut pyramid)?;
    }
    let allocations = (allocations() - before) as f64 / 10.0;

    let mut run = || Ok(backbone.run(&image, &mut pyramid)?);
    if args.serve {
        return served::serve(allocations, run);
    }
    let (mut wall, mut cpu): (Vec<f64>, Vec<f64>) = served::measure(args.runs.max(1), &mut run)?.into_iter().unzip();
    let macs = ResNet18::multiply_adds(args.size);
    let (wall, cpu) = (median(&mut wall), median(&mut cpu));
    println!(
        "{isa}, {0}×{0}, {1} thread(s): {wall:.2} ms, {cpu:.2} ms of processor time, {2:.0} GFLOP/s effective, \
         {allocations} allocations a run",
        args.size,
        args.threads,
        2e-6 * macs as f64 / wall
    );
    if args.layers {
        let mut steps: Vec<(String, u64, Vec<f64>)> = Vec::new();
        for _ in 0..args.runs.max(1) {
            let (mut index, mut since) = (0, Instant::now());
            backbone.run_observed(&image, &mut pyramid, |step| {
                let ms = since.elapsed().as_secs_f64() * 1e3;
                if index == steps.len() {
                    steps.push((step.name.clone(), step.multiply_adds, Vec::new()));
                }
                steps[index].2.push(ms);
                index += 1;
                since = Instant::now();
            })?;
        }
        for (name, macs, times) in &mut steps {
            let ms = median(times);
            println!("{name:20} {ms:7.3} ms {:6.0} GFLOP/s", 2e-6 * *macs as f64 / ms);
        }
    }
    Ok(())
}
