//! `cellgate fit`: good cells in, a model out. `cellgate merge` and `cellgate calibrate` share its last steps.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

use super::shared::{self, Engine, FitSettings, HeldOut};
use crate::backbone::Identity;
use crate::embedding::Projection;
use crate::gaussian::Accumulator;
use crate::model::partial::{self, PartialHeader};
use crate::model::{Header, Model, Provenance};
use crate::pipeline::Spent;
use crate::pipeline::fitting::{Cell, FitError, Fitter, Plan, Skipped, check_skipped};
use crate::synth::{Generator, SynthConfig};
use crate::verdict::{Class, MIN_CELLS};

/// Fit a model to good cells: the Gaussian of their features at every position, and the score's threshold.
///
/// DATA is a folder of images, a text file with one path a line, or `elpv`; or with --synth cells are drawn as they are
/// needed. Where a labels.csv names its images only good cells (A, or probability 0) are used. A share of them is held
/// out to set the threshold.
///
/// What is done is kept in OUT.partial (with --shard in OUT itself) every minute, and at Ctrl-C or a termination signal.
/// The same command goes on from there, to the model that a run without a break would have made.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cellgate fit cells -o line1.cgm
  cellgate fit elpv -o elpv.cgm --copies 2 --quarter-turns
  cellgate fit --synth 68748 -o big.cgm         no files: as many cells as HEPV has, drawn one by one
  cellgate fit cells --shard 0/8 -o s0.cgp      one of eight machines; join with `cellgate merge s*.cgp -o line1.cgm`")]
pub struct Args {
    /// Folder, list or `elpv`.
    #[arg(value_name = "DATA", required_unless_present = "synth")]
    data: Option<PathBuf>,

    /// Draw N synthetic cells, as `cellgate synth` does, and fit to the good ones among them; nothing is written but
    /// the model.
    #[arg(long, value_name = "N", conflicts_with = "data", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    synth: Option<u64>,

    /// With --synth: the seed of their line.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    synth_seed: u64,

    /// With --synth: pixels on each side of an image, 64 to 2048.
    #[arg(long, value_name = "PIXELS", default_value_t = 720)]
    synth_size: usize,

    /// The model to write (.cgm), or with --shard the partial fit (.cgp).
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,

    /// Fit every n-th cell only, from the i-th on, and write a partial fit.
    #[arg(long, value_name = "I/N", value_parser = parse_shard)]
    shard: Option<Shard>,

    /// Seconds from one keeping of what is done to the next: so much work can be lost to a power cut.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    keep_every: u64,

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

    #[command(flatten)]
    held_out: HeldOut,
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

/// What is to be fitted.
struct Cells {
    name: String,
    good: Vec<Cell>,
    /// The images are cells without a border.
    whole_frame: bool,
}

impl Args {
    fn cells(&self) -> anyhow::Result<Cells> {
        match (&self.data, self.synth) {
            (_, Some(count)) => {
                let config = SynthConfig { size: self.synth_size, ..SynthConfig::default() };
                let line = Arc::new(Generator::new(config, self.synth_seed).context("setting up the generator")?);
                let indices = (0..count).filter(|&index| line.class(index) == Class::A);
                let good: Vec<Cell> = indices.map(|index| Cell::drawn(&line, index)).collect();
                if good.is_empty() {
                    bail!("none of {count} synthetic cells is a good one; draw more with --synth");
                }
                Ok(Cells { name: format!("{count} synthetic cells"), good, whole_frame: false })
            }
            (Some(data), None) => {
                let (dataset, whole_frame) = shared::open_data(data, self.data_dir.as_deref())?;
                let good = shared::good_cells(&dataset)?;
                Ok(Cells { name: dataset.name, good, whole_frame })
            }
            (None, None) => bail!("fit what? give a folder, a list or `elpv`, or --synth N"),
        }
    }
}

/// Fits.
pub fn run(args: Args) -> anyhow::Result<()> {
    shared::check_writable(&args.out)?;
    let Cells { name: data, good, whole_frame } = args.cells()?;
    let settings = args.held_out.apply(args.settings.settings(whole_frame)?)?;
    let (network, backbone_name) = args.engine.weights()?;
    let interrupted = shared::interrupt()?;
    let started = Instant::now();

    let plan = Plan::new(good, &settings);
    let shard = args.shard.unwrap_or(Shard { index: 0, of: 1 });
    let cells = plan.shard(shard.index, shard.of);
    if cells.is_empty() {
        bail!("shard {}/{} has no cell: {} has {} good cells", shard.index, shard.of, data, plan.fit.len());
    }
    if args.shard.is_none() && plan.held_out.len() < MIN_CELLS {
        bail!(
            "{} of the {} good cells of {data} would be held out for the threshold, which needs {MIN_CELLS}; fit more \
             cells, or raise --holdout",
            plan.held_out.len(),
            plan.held_out.len() + plan.fit.len()
        );
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
        data: data.clone(),
        list: plan.list,
        shard: shard.index,
        shards: shard.of,
        done: 0,
        total,
        skipped: 0,
        scale,
        origin: plan.origin(),
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

    let before = moments.count();
    let keep = Keep::new(&unfinished, Duration::from_secs(args.keep_every));
    gather(&mut fitter, &cells, &mut header, &projection, &mut moments, Some(keep), &interrupted)?;
    let images = moments.count();
    if args.shard.is_some() {
        partial::write(&args.out, &header, &moments)?;
        let seconds = started.elapsed().as_secs_f64();
        report(args.json, &args.out, images, before, seconds, None, fitter.spent())?;
        return Ok(());
    }
    let finished =
        finish(&mut fitter, &plan.held_out, &header, &projection, &moments, &args.out, &interrupted, Calibrate::Now);
    let model = match finished {
        Ok(model) => model,
        Err(error) => {
            partial::write(&unfinished, &header, &moments)?;
            let kept = format!("{} keeps the fit; the same command goes on from there", unfinished.display());
            return Err(error.context(kept));
        }
    };
    if unfinished.exists() {
        std::fs::remove_file(&unfinished).with_context(|| format!("removing {}", unfinished.display()))?;
    }
    report(args.json, &args.out, images, before, started.elapsed().as_secs_f64(), Some(&model), fitter.spent())
}

/// The partial fit to go on with, if there is one of this very fit.
fn resume(path: &Path, fresh: &PartialHeader) -> anyhow::Result<Option<(PartialHeader, Accumulator)>> {
    if !path.exists() {
        return Ok(None);
    }
    let (header, moments) = partial::read(path)?;
    if !header.is_of_one_fit_with(fresh) {
        bail!(
            "{} holds a fit with other settings, cells or backbone; remove it to start afresh, or give another --out",
            path.display()
        );
    }
    // The files may lie elsewhere by now.
    Ok(Some((PartialHeader { origin: fresh.origin.clone(), ..header }, moments)))
}

/// Keeps what a fit has gathered, so that little is lost when it ends before its time.
pub struct Keep {
    path: PathBuf,
    every: Duration,
    /// When it was kept last, and how long that took.
    last: Instant,
    took: Duration,
}

impl Keep {
    fn new(path: &Path, every: Duration) -> Self {
        Self { path: path.to_owned(), every, last: Instant::now(), took: Duration::ZERO }
    }

    /// Whether it is time: on a slow disk less often, so that at most a twentieth of the time is spent on it.
    fn due(&self) -> bool {
        self.last.elapsed() >= self.every.max(20 * self.took)
    }

    fn keep(&mut self, header: &PartialHeader, moments: &Accumulator) -> anyhow::Result<()> {
        let started = Instant::now();
        partial::write(&self.path, header, moments)?;
        (self.last, self.took) = (Instant::now(), started.elapsed());
        Ok(())
    }
}

/// Takes `cells` into `moments`, from image `header.done` on, and keeps them from time to time and when interrupted.
pub fn gather(
    fitter: &mut Fitter,
    cells: &[Cell],
    header: &mut PartialHeader,
    projection: &Projection,
    moments: &mut Accumulator,
    mut keep: Option<Keep>,
    interrupted: &AtomicBool,
) -> anyhow::Result<()> {
    let bar = shared::bar(header.total, "fitting");
    bar.set_position(header.done);
    bar.reset_eta();
    let settings = header.settings.clone();
    let mut skipped: Vec<Skipped> = Vec::new();
    let already = header.skipped;
    let (started, from) = (Instant::now(), header.done);
    loop {
        let outcome = fitter.accumulate(cells, &settings, projection, moments, &mut header.done, |done, lost| {
            bar.set_position(done);
            for cell in &lost {
                bar.suspend(|| eprintln!("skipping {}: {}", cell.id, cell.reason));
            }
            skipped.extend(lost);
            if keep.as_ref().is_some_and(Keep::due) { ControlFlow::Break(()) } else { shared::go_on(interrupted) }
        });
        header.skipped = already + skipped.len() as u64;
        match outcome {
            Ok(()) => break,
            Err(FitError::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
        let (done, total) = (header.done, header.total);
        if let Some(keep) = &mut keep {
            keep.keep(header, moments)?;
            if bar.is_hidden() {
                let rate = (done - from) as f64 / started.elapsed().as_secs_f64();
                eprintln!("{done} of {total} images, {rate:.1} images/s, kept in {}", keep.path.display());
            }
        }
        if shared::go_on(interrupted).is_break() {
            bar.finish_and_clear();
            match keep {
                Some(keep) => bail!(
                    "interrupted after {done} of {total} images; {} keeps them, run the same command to go on",
                    keep.path.display()
                ),
                None => return Err(FitError::Interrupted.into()),
            }
        }
    }
    bar.finish_and_clear();
    check_skipped(&skipped, cells.len() as u64, 0.1)?;
    // Those lost before an interruption count as well.
    if header.skipped as f64 > 0.1 * cells.len() as f64 {
        let [first, why] = ["one of those before the interruption", "it was named then"].map(String::from);
        return Err(FitError::Skipped { skipped: header.skipped, of: cells.len() as u64, first, why }.into());
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
        classifier: None,
    };
    Model::write(out, &model_header, projection, &statistics.view(), None)?;
    Ok(Model::open(out)?)
}

/// Says what was made of `images`, of which `before` were there before the `seconds` began.
#[allow(clippy::too_many_arguments)]
pub fn report(
    json: bool,
    out: &Path,
    images: u64,
    before: u64,
    seconds: f64,
    model: Option<&Model>,
    spent: Spent,
) -> anyhow::Result<()> {
    let rate = (images - before) as f64 / seconds.max(1e-9);
    if json {
        let threshold = model.and_then(|m| m.header().calibration.as_ref()).map(|c| c.threshold);
        let line = serde_json::json!({
            "out": out.display().to_string(), "images": images, "seconds": seconds, "images_per_second": rate,
            "thread_seconds": spent.parts().map(|(part, time)| (part, time.as_secs_f64())).into_iter().collect::<BTreeMap<_, _>>(),
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
                    "threshold: {} distance {:.3}; above it lie {} of {} held-out good cells",
                    c.kind,
                    c.threshold,
                    c.above(),
                    c.cells
                ),
                None => println!("not calibrated yet: run `cellgate calibrate {} DIR`", out.display()),
            }
        }
        None => println!("{}: partial fit of {images} images in {seconds:.1} s ({rate:.1} images/s)", out.display()),
    }
    let all = spent.total().as_secs_f64();
    if all > 0.0 {
        let share = |(part, time): (_, Duration)| format!("{part} {:.0} %", time.as_secs_f64() / all * 100.0);
        println!("time of the threads: {}", spent.parts().map(share).join(", "));
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
