//! From the rectified image to heatmap and scores, under a clock, with a model from disk.
//!
//! `cargo bench --bench inspection -- --model line1.cgm --image cell.png` prints one line of medians and the heap
//! allocations of a run; with `--serve` it takes turns with other programs (`common/served.rs`). The image is read once;
//! `--from-file` reads, decodes and rectifies it in every run.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use cellgate::backbone::ResNet18;
use cellgate::backbone::cpu::CpuBackbone;
use cellgate::model::Model;
use cellgate::pipeline::fitting::Image;
use cellgate::pipeline::{Extractor, Scorer};
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
    /// The model, fitted with the embedded backbone.
    #[arg(long)]
    model: PathBuf,
    /// An image of a cell that the model accepts.
    #[arg(long)]
    image: PathBuf,
    /// Threads that share a cell.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Read the image file in every run.
    #[arg(long)]
    from_file: bool,
    /// Runs to take the median of.
    #[arg(long, default_value_t = 100)]
    runs: usize,
    /// Answer counts from stdin.
    #[arg(long)]
    serve: bool,
    /// Run once to warm up and once inside `counted_inspection`, which `instructions.sh` has callgrind look at.
    #[arg(long)]
    count: bool,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One run and no more, under a name that callgrind finds.
#[unsafe(no_mangle)]
#[inline(never)]
fn counted_inspection(run: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    run()
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let model = Model::open(&args.model)?;
    let settings = &model.header().settings;
    let workers = Arc::new(Workers::new(args.threads));
    let size = settings.size as usize;
    let backbone = CpuBackbone::new(&ResNet18::embedded()?, size, Isa::detect(), Arc::clone(&workers))?;
    let extractor = Extractor::new(settings.preprocess.clone(), Box::new(backbone))?;
    let mut scorer = Scorer::new(settings, model.projection(), extractor, workers);
    let statistics = model.statistics();
    scorer
        .load(&Image::File(args.image.clone()))
        .map_err(|why| anyhow!("{why}"))
        .with_context(|| args.image.display().to_string())?;

    let mut run = || {
        let scores = if args.from_file {
            scorer.rectify_file(&args.image).and_then(|_| scorer.score_rectified(&statistics))
        } else {
            scorer.score_rectified(&statistics)
        };
        scores.map(drop).map_err(|why| anyhow!("{why}"))
    };
    if args.count {
        run()?;
        return counted_inspection(&mut run);
    }
    for _ in 0..5 {
        run()?;
    }
    let before = allocations();
    for _ in 0..10 {
        run()?;
    }
    let allocations = (allocations() - before) as f64 / 10.0;

    if args.serve {
        return served::serve(allocations, run);
    }
    let (mut wall, mut cpu): (Vec<f64>, Vec<f64>) = served::measure(args.runs.max(1), &mut run)?.into_iter().unzip();
    println!(
        "{}, {size}×{size}, k = {}, {} thread(s): {:.2} ms, {:.2} ms of processor time, {allocations} allocations a run",
        Isa::detect(),
        settings.k,
        args.threads,
        median(&mut wall),
        median(&mut cpu)
    );
    Ok(())
}
