//! From an image to its verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, anyhow};

use super::{Args, quantile, rounded};
use crate::backbone::ResNet18;
use crate::camera::Format;
use crate::cli::fit::{self, Calibrate};
use crate::cli::inspect::batch::Batch;
use crate::cuda::STEPS;
use crate::frame::Frame;
use crate::gaussian::Accumulator;
use crate::model::partial::PartialHeader;
use crate::model::{Model, Settings};
use crate::pipeline::Inspector;
use crate::pipeline::fitting::{Cell, Plan};
use crate::preprocess::AugmentConfig;
use crate::preprocess::sensor::{Calibration, Correction, Recorder};
use crate::simd::Isa;
use crate::synth::{Generator, Selection, SynthConfig};
use crate::verdict::{Class, Outcome, Verdict};

/// Good cells that are drawn for the model; enough to calibrate it, not to judge by it.
const GOOD: u64 = 48;
/// Changed copies of each: as many images as the statistics of k = 100 need.
const COPIES: u32 = 4;
/// Frames that are judged, again and again.
const FRAMES: u64 = 12;
/// Frames before the clock starts.
const WARM: usize = 10;
/// Dark frames of a sensor that needs no correction.
const DARK_FRAMES: usize = 4;
/// Line and choices.
const SEED: u64 = 5;

const PARTS: [&str; 6] = ["preprocess", "backbone", "projection", "distance", "heatmap", "all"];

/// Times verdicts.
///
/// # Errors
/// If the model cannot be read or fitted.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (network, name) = args.engine.weights()?;
    let generator =
        Generator::new(SynthConfig { selection: Selection::Only(Class::A), ..SynthConfig::default() }, SEED)?;
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let model = Arc::new(match &args.model {
        Some(path) => Model::open(path)?,
        None => drawn_model(args, &network, &name, &generator, folder.path())?,
    });
    let frames: Vec<Frame> = (0..FRAMES).map(|index| generator.cell(GOOD + index).frame).collect();
    let sensor = if args.correct { Some(nothing_to_correct(Format::of(&frames[0]))?) } else { None };
    let mut batch = Batch::new(&model, &network, args.engine.threads(), args.streams)?;
    args.measuring.engage(&network, batch.inspectors())?;
    if let Some(sensor) = &sensor {
        batch.inspectors().iter_mut().try_for_each(|inspector| inspector.use_sensor(sensor))?;
    }

    let total = args.runs + WARM * args.streams;
    let (next, clock) = (AtomicUsize::new(0), std::sync::OnceLock::new());
    let collected: Vec<Vec<[f64; 6]>> = std::thread::scope(|scope| {
        let threads: Vec<_> = batch
            .inspectors()
            .iter_mut()
            .map(|inspector| {
                let (next, clock, sensor) = (&next, &clock, &sensor);
                // As a station has them: where the device sees them.
                let mut frames: Vec<Frame> = frames.iter().map(|frame| lent(inspector, frame)).collect();
                scope.spawn(move || {
                    let mut times = Vec::with_capacity(total);
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= total {
                            return Ok(times);
                        }
                        if index == WARM * args.streams {
                            let _ = clock.set(Instant::now());
                        }
                        let turn = index % frames.len();
                        let start = Instant::now();
                        let verdict = match sensor {
                            Some(sensor) => inspector.inspect_raw(&mut frames[turn], sensor)?,
                            None => inspector.inspect(&frames[turn]),
                        };
                        let all = start.elapsed().as_secs_f64() * 1e3;
                        if let Outcome::Invalid(reason) = &verdict.outcome {
                            return Err(anyhow!("a drawn frame cannot be judged by this model: {reason}"));
                        }
                        if index >= WARM * args.streams {
                            times.push(parts(&verdict, all));
                        }
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<anyhow::Result<_>>()
    })?;
    let seconds = clock.get().map_or(f64::NAN, |since: &Instant| since.elapsed().as_secs_f64());
    let rate = args.runs as f64 / seconds;
    let columns: Vec<Vec<f64>> = (0..PARTS.len())
        .map(|part| {
            let mut times: Vec<f64> = collected.iter().flatten().map(|row| row[part]).collect();
            times.sort_by(f64::total_cmp);
            times
        })
        .collect();
    let steps = steps(batch.inspector(), args.runs)?;
    print(args, &model, rate, &columns, &steps);
    Ok(())
}

/// A frame of a drawn cell where this inspector's device sees it.
fn lent(inspector: &Inspector, drawn: &Frame) -> Frame {
    let mut frame = inspector.frame(Format::of(drawn));
    frame.pixels_mut().copy_from_slice(drawn.pixels());
    frame
}

/// The correction of a sensor that has neither a dark signal nor a pattern: frames can be corrected again and again.
fn nothing_to_correct(format: Format) -> anyhow::Result<Arc<Correction>> {
    let mut dark = Recorder::new(format);
    for _ in 0..DARK_FRAMES {
        dark.add(&Frame::new(format.width, format.height, format.white))?;
    }
    Ok(Arc::new(Correction::new(&Calibration::from_dark(&dark, "", "")?, format)?))
}

/// The device's name, and its milliseconds for each of its steps, sorted; nothing on the CPU.
fn steps(inspector: &mut Inspector, runs: usize) -> anyhow::Result<Option<(String, Vec<Vec<f64>>)>> {
    let Some(device) = inspector.device() else { return Ok(None) };
    let timed = device.time(runs)?;
    let columns = (0..STEPS.len()).map(|step| {
        let mut times: Vec<f64> = timed.iter().map(|times| f64::from(times[step])).collect();
        times.sort_by(f64::total_cmp);
        times
    });
    Ok(Some((device.describe(), columns.collect())))
}

/// Milliseconds of each part.
fn parts(verdict: &Verdict, all: f64) -> [f64; 6] {
    let l = verdict.latency;
    let [a, b, c, d, e] =
        [l.preprocess_us, l.backbone_us, l.projection_us, l.distance_us, l.heatmap_us].map(|us| f64::from(us) / 1e3);
    [a, b, c, d, e, all]
}

fn print(args: &Args, model: &Model, rate: f64, columns: &[Vec<f64>], device: &Option<(String, Vec<Vec<f64>>)>) {
    let settings = &model.header().settings;
    let (threads, isa) = (args.engine.threads(), Isa::detect());
    if args.json {
        let table = |names: &[&str], columns: &[Vec<f64>]| -> serde_json::Map<String, serde_json::Value> {
            let row = |(name, times): (&&str, &Vec<f64>)| {
                let at = |q| rounded(quantile(times, q));
                let row = serde_json::json!({ "median": at(0.5), "p90": at(0.9), "p99": at(0.99), "best": at(0.0) });
                ((*name).into(), row)
            };
            names.iter().zip(columns).map(row).collect()
        };
        let ms = table(&PARTS, columns);
        let steps =
            device.as_ref().map(|(name, steps)| serde_json::json!({ "device": name, "ms": table(&STEPS, steps) }));
        let value = serde_json::json!({
            "isa": isa.to_string(), "size": settings.size, "grid": settings.grid, "k": settings.k,
            "stages": settings.stages.to_string(), "threads": threads, "streams": args.streams, "cells": args.runs,
            "cells_per_second": rounded(rate), "ms": ms, "device": steps,
        });
        println!("{value}");
        return;
    }
    println!(
        "{isa}, frames of 720×720, image {0}×{0}, grid {1}×{1}, k = {2}, stages {3}; {4} thread(s), {5} in flight; {6} cells",
        settings.size, settings.grid, settings.k, settings.stages, threads, args.streams, args.runs
    );
    let table = |names: &[&str], columns: &[Vec<f64>]| {
        println!("\n{:<12} {:>9} {:>9} {:>9} {:>9}", "ms", "median", "p90", "p99", "best");
        for (name, times) in names.iter().zip(columns) {
            let at = |q| quantile(times, q);
            println!("{name:<12} {:>9.3} {:>9.3} {:>9.3} {:>9.3}", at(0.5), at(0.9), at(0.99), at(0.0));
        }
    };
    table(&PARTS, columns);
    if let Some((name, steps)) = device {
        println!("\nsteps on {name}, one by one:");
        table(&STEPS, steps);
    }
    println!("\n{rate:.1} cells/s, {:.0} an hour", rate * 3600.0);
}

/// A model fitted to a few drawn cells.
fn drawn_model(
    args: &Args,
    network: &ResNet18,
    name: &str,
    generator: &Generator,
    folder: &std::path::Path,
) -> anyhow::Result<Model> {
    let augment = AugmentConfig { copies: COPIES, ..AugmentConfig::default() };
    let settings =
        Settings { size: args.size, stages: args.stages, seed: SEED, holdout: 0.5, augment, ..Settings::default() };
    settings.validate()?;
    let cells = (0..GOOD).map(|index| {
        let id = format!("cell{index:02}.png");
        let path = folder.join(&id);
        generator.cell(index).frame.save_png(&path).with_context(|| format!("writing {}", path.display()))?;
        Ok(Cell::file(&id, &path))
    });
    let plan = Plan::new(cells.collect::<anyhow::Result<_>>()?, &settings);
    let mut fitter = args.engine.fitter(network, &settings)?;
    let scale = fitter.channel_scale(&plan.scale_cells(settings.seed), &settings)?;
    let projection = settings.projection(&scale)?;
    let mut header = PartialHeader {
        backbone: network.identity(),
        backbone_name: name.into(),
        settings: settings.clone(),
        data: "drawn cells".into(),
        list: plan.list,
        shard: 0,
        shards: 1,
        done: 0,
        total: plan.fit.len() as u64 * u64::from(settings.augment.images_per_cell()),
        skipped: 0,
        scale,
        origin: plan.origin(),
    };
    let mut moments = Accumulator::new(settings.grid as usize, settings.k as usize);
    let interrupted = AtomicBool::new(false);
    fit::gather(&mut fitter, &plan.fit, &mut header, &projection, &mut moments, None, &interrupted)?;
    let out = folder.join("bench.cgm");
    fit::finish(&mut fitter, &plan.held_out, &header, &projection, &moments, &out, &interrupted, Calibrate::Now)
}
