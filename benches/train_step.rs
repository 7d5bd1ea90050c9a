//! A step of the classifier's training under a clock.
//!
//! `cargo bench --bench train_step -- --threads 1` prints the medians; with `--serve` it takes turns with another program
//! (`common/served.rs`): `benches/train_step.py` sets it against PyTorch.

use std::sync::Arc;

use cellgate::classifier::optimiser::Settings;
use cellgate::classifier::train::Trainer;
use cellgate::classifier::{Network, SIDE};
use cellgate::simd::Isa;
use cellgate::workers::Workers;
use clap::Parser;

#[path = "common/served.rs"]
mod served;

#[derive(Parser)]
struct Args {
    /// Threads that share a step.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Input planes: 1 or 2.
    #[arg(long, default_value_t = 1)]
    planes: usize,
    /// Side of the planes, in pixels.
    #[arg(long, default_value_t = SIDE)]
    side: usize,
    /// Samples of a batch.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Instruction set: avx512, avx2, neon-fp16, neon or scalar.
    #[arg(long)]
    isa: Option<Isa>,
    /// Steps to take the median of.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Answer counts from stdin.
    #[arg(long)]
    serve: bool,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let Args { threads, planes, side, batch, isa, runs, serve, .. } = Args::parse();
    let isa = isa.unwrap_or_else(Isa::detect);
    let mut trainer = Trainer::new(Network::new(planes, 3, 1)?, side, batch, isa, Arc::new(Workers::new(threads)))?;
    let inputs: Vec<f32> =
        (0..batch * planes * side * side).map(|i| ((i * 7919 % 1009) as f32 / 300.0).sin()).collect();
    let labels: Vec<usize> = (0..batch).map(|b| b % 3).collect();
    let settings = Settings::default();
    let mut step = || Ok(trainer.step(&inputs, &labels, &settings).map(|_| ())?);
    if serve {
        return served::serve(format_args!("{isa}"), step);
    }
    served::measure(3, &mut step)?;
    let (mut wall, mut cpu): (Vec<f64>, Vec<f64>) = served::measure(runs, step)?.into_iter().unzip();
    let (wall, cpu) = (served::median(&mut wall), served::median(&mut cpu));
    println!(
        "train step, batch {batch}, {planes} planes of {side}, {threads} threads, {isa}: {wall:.2} ms, {cpu:.2} ms cpu"
    );
    Ok(())
}
