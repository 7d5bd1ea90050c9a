//! `cellgate fit`: good cells in, a model out. `cellgate merge` and `cellgate calibrate` share its last steps.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};

use super::shared::{self, Engine, FitSettings};
use crate::backbone::Identity;
use crate::embedding::Projection;
use crate::gaussian::Accumulator;
use crate::model::partial::{self, PartialHeader};
use crate::model::{Header, Model, Provenance};
use crate::pipeline::fitting::{Cell, FitError, Fitter, Plan, Skipped, check_skipped};

/// Fit a model to good cells: the Gaussian of their features at every position, and the score's threshold.
///
/// DATA is a folder of images, a text file with one path a line, or `elpv`. Where there is a labels.csv only good cells
/// (A, or probability 0) are used. A share of them is held out to set the threshold. Ctrl-C writes what is done so far
/// to OUT.partial; the same command goes on from there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cellgate fit cells -o line1.cgm
  cellgate fit elpv -o elpv.cgm --copies 2 --quarter-turns
  cellgate fit cells --shard 0/8 -o s0.cgp      one of eight machines; join with `cellgate merge s*.cgp -o line1.cgm`")]
pub struct Args {
    /// Folder, list or `elpv`.
    #[arg(value_name = "DATA")]
    data: PathBuf,

    /// The model to write (.cgm), or with --shard the partial fit (.cgp).
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,

    /// Fit every n-th cell only, from the i-th on, and write a partial fit.
    #[arg(long, value_name = "I/N", value_parser = parse_shard)]
    shard: Option<Shard>,

    /// Where ELPV lies [default: the user's cache folder].
    #[arg(long, value_name = "DIR", env = "CELLGATE_DATA")]
    data_dir: Option<PathBuf>,

    /// Print one JSON object at the end instead of a sentence.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    engine: Engine,

    #[command(flatten)]
    settings: FitSettings,
}

/// One shard of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shard {
    index: u32,
    of: u32,
}

fn parse_shard(text: &str) -> Result<Shard, String> {
    let parsed = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parsed {
        Some((index, of)) if of > 0 && of <= partial::MAX_SHARDS && index < of => Ok(Shard { index, of }),
        _ => Err(format!("`{text}` is no shard: give I/N with I from 0 to N − 1, as in 0/8")),
    }
}

/// Fits.
pub fn run(args: Args) -> anyhow::Result<()> {
    shared::check_writable(&args.out)?;
    let (dataset, whole_frame) = shared::open_data(&args.data, args.data_dir.as_deref())?;
    let settings = args.settings.settings(whole_frame)?;
    let (network, backbone_name) = args.engine.weights()?;
    let interrupted = shared::interrupt()?;
    let started = Instant::now();

    let plan = Plan::new(shared::good_cells(&dataset)?, &settings);
    let shard = args.shard.unwrap_or(Shard { index: 0, of: 1 });
    let cells = plan.shard(shard.index, shard.of);
    if cells.is_empty() {
        bail!("shard {}/{} has no cell: {} has {} good cells", shard.index, shard.of, dataset.name, plan.fit.len());
    }
    let mut fitter = args.engine.fitter(&network, &settings)?;
    let total = cells.len() as u64 * u64::from(settings.augment.images_per_cell());
    let unfinished = match args.shard {
        Some(_) => args.out.clone(),
        None => PathBuf::from(format!("{}.partial", args.out.display())),
    };
    let fresh = |scale| PartialHeader {
        backbone: network.identity(),
        backbone_name: backbone_name.clone(),
        settings: settings.clone(),
        data: dataset.name.clone(),
        list: plan.list,
        shard: shard.index,
        shards: shard.of,
        done: 0,
        total,
        skipped: 0,
        scale,
        held_out: plan.held_out.iter().map(|c| c.path.display().to_string()).collect(),
    };
    let (mut header, mut moments) = match resume(&unfinished, &fresh(Vec::new()))? {
        Some(found) => {
            eprintln!("going on from image {} of {total} in {}", found.0.done, unfinished.display());
            found
        }
        None => {
            let scale = fitter.channel_scale(&plan.scale_cells(settings.seed), &settings)?;
            (fresh(scale), Accumulator::new(settings.grid as usize, settings.k as usize))
        }
    };
    let projection = settings.projection(&header.scale)?;

    let outcome = gather(&mut fitter, &cells, &mut header, &projection, &mut moments, &interrupted);
    if let Err(FitError::Interrupted) = outcome {
        partial::write(&unfinished, &header, &moments)?;
        bail!(
            "interrupted after {} of {total} images; {} keeps them, run the same command to go on",
            header.done,
            unfinished.display()
        );
    }
    outcome?;
    let images = moments.count();
    if args.shard.is_some() {
        partial::write(&args.out, &header, &moments)?;
        let seconds = started.elapsed().as_secs_f64();
        report(args.json, &args.out, images, seconds, None)?;
        return Ok(());
    }
    let model =
        finish(&mut fitter, &plan.held_out, &header, &projection, &moments, &args.out, &interrupted, Calibrate::Now)?;
    if unfinished.exists() {
        std::fs::remove_file(&unfinished).with_context(|| format!("removing {}", unfinished.display()))?;
    }
    report(args.json, &args.out, images, started.elapsed().as_secs_f64(), Some(&model))
}

/// The partial fit to go on with, if there is one of this very fit.
fn resume(path: &Path, fresh: &PartialHeader) -> anyhow::Result<Option<(PartialHeader, Accumulator)>> {
    if !path.exists() {
        return Ok(None);
    }
    let (header, moments) = partial::read(path)?;
    let same = PartialHeader { done: 0, skipped: 0, scale: Vec::new(), ..header.clone() } == *fresh;
    if !same {
        bail!(
            "{} holds a fit with other settings, cells or backbone; remove it to start afresh, or give another --out",
            path.display()
        );
    }
    Ok(Some((header, moments)))
}

/// Takes `cells` into `moments`, from image `header.done` on.
pub fn gather(
    fitter: &mut Fitter,
    cells: &[Cell],
    header: &mut PartialHeader,
    projection: &Projection,
    moments: &mut Accumulator,
    interrupted: &AtomicBool,
) -> Result<(), FitError> {
    let bar = shared::bar(header.total, "fitting");
    bar.set_position(header.done);
    bar.reset_eta();
    let settings = header.settings.clone();
    let mut skipped: Vec<Skipped> = Vec::new();
    let already = header.skipped;
    let mut done = header.done;
    let outcome = fitter.accumulate(cells, &settings, projection, moments, &mut done, |done, lost| {
        bar.set_position(done);
        for cell in &lost {
            bar.suspend(|| eprintln!("skipping {}: {}", cell.id, cell.reason));
        }
        skipped.extend(lost);
        shared::go_on(interrupted)
    });
    header.done = done;
    header.skipped = already + skipped.len() as u64;
    bar.finish_and_clear();
    outcome?;
    check_skipped(&skipped, cells.len() as u64, 0.1)?;
    // Those lost before an interruption count as well.
    if header.skipped as f64 > 0.1 * cells.len() as f64 {
        let [first, why] = ["one of those before the interruption", "it was named then"].map(String::from);
        return Err(FitError::Skipped { skipped: header.skipped, of: cells.len() as u64, first, why });
    }
    Ok(())
}

/// What to do about the calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calibrate {
    /// Now, or fail.
    Now,
    /// Not at all.
    Later,
}

/// Factors, calibrates and writes the model.
#[allow(clippy::too_many_arguments)]
pub fn finish(
    fitter: &mut Fitter,
    held_out: &[Cell],
    header: &PartialHeader,
    projection: &Projection,
    moments: &Accumulator,
    out: &Path,
    interrupted: &AtomicBool,
    calibrate: Calibrate,
) -> anyhow::Result<Model> {
    let settings = &header.settings;
    if moments.count() < u64::from(settings.k) {
        eprintln!(
            "warning: {} images for k = {}: the covariances rest on their shrinkage; take more cells, or --copies",
            moments.count(),
            settings.k
        );
    }
    let statistics = moments.finish(settings.shrinkage, settings.precision, fitter.workers())?;
    let calibration = if calibrate == Calibrate::Now {
        let bar = shared::bar(held_out.len() as u64, "calibrating");
        let outcome = fitter.calibrate(held_out, settings, projection, &statistics.view(), |done| {
            bar.set_position(done);
            shared::go_on(interrupted)
        });
        bar.finish_and_clear();
        let (calibration, skipped) = outcome?;
        for cell in &skipped {
            eprintln!("skipping {}: {}", cell.id, cell.reason);
        }
        Some(calibration)
    } else {
        None
    };
    let copies = u64::from(settings.augment.images_per_cell());
    let model_header = Header {
        backbone: header.backbone,
        settings: settings.clone(),
        provenance: Provenance {
            software: env!("CARGO_PKG_VERSION").into(),
            created: shared::now(),
            data: header.data.clone(),
            list: header.list,
            backbone: header.backbone_name.clone(),
            cells: moments.count() / copies,
            images: moments.count(),
            skipped: header.skipped,
        },
        calibration,
    };
    Model::write(out, &model_header, projection, &statistics.view())?;
    Ok(Model::open(out)?)
}

/// Says what was made.
pub fn report(json: bool, out: &Path, images: u64, seconds: f64, model: Option<&Model>) -> anyhow::Result<()> {
    let rate = images as f64 / seconds.max(1e-9);
    if json {
        let threshold = model.and_then(|m| m.header().calibration.as_ref()).map(|c| c.threshold);
        let line = serde_json::json!({
            "out": out.display().to_string(), "images": images, "seconds": seconds, "images_per_second": rate,
            "model": model.map(|m| m.id().to_string()), "bytes": model.map(Model::bytes), "threshold": threshold,
        });
        println!("{line}");
        return Ok(());
    }
    match model {
        Some(model) => {
            println!(
                "{}: {images} images in {seconds:.1} s ({rate:.1} images/s), {:.1} MB, model {:.12}",
                out.display(),
                model.bytes() as f64 / 1e6,
                model.id()
            );
            match &model.header().calibration {
                Some(c) => println!(
                    "threshold: {} distance {:.3}, at which {:.2} % of {} held-out good cells would be rejected",
                    c.kind,
                    c.threshold,
                    c.overkill * 100.0,
                    c.cells
                ),
                None => println!("not calibrated yet: run `cellgate calibrate {} DIR`", out.display()),
            }
        }
        None => println!("{}: partial fit of {images} images in {seconds:.1} s ({rate:.1} images/s)", out.display()),
    }
    Ok(())
}

/// The backbone of the command line, if it is the one that was fitted with.
pub fn fitted_backbone(engine: &Engine, identity: Identity) -> anyhow::Result<crate::backbone::ResNet18> {
    let (network, name) = engine.weights()?;
    if network.identity() != identity {
        return Err(anyhow!(
            "the fit was made with the backbone {identity}, but `{name}` is {}; give the fitted one with --backbone",
            network.identity()
        ));
    }
    Ok(network)
}
