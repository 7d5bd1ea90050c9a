//! `cellgate demo`: the whole way in under a minute, on cells drawn for the purpose or on the real ones of ELPV.

mod live;
mod planted;
mod table;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, bail};

use super::fit::{self, Calibrate};
use super::inspect::batch::{Batch, Tally, picture_names};
use super::inspect::line::{self, Lines};
use super::inspect::{overlay_folder, page};
use super::shared::{self, Engine};
use super::synth::data_set;
use crate::backbone::ResNet18;
use crate::eval::dataset::Item;
use crate::eval::{elpv, folds};
use crate::gaussian::Accumulator;
use crate::model::partial::PartialHeader;
use crate::model::{Model, Settings};
use crate::pipeline::fitting::{Cell, Plan};
use crate::preprocess::{AugmentConfig, PreprocessConfig};
use crate::sampling;
use crate::synth::{Generator, Selection, SynthConfig};
use crate::verdict::{Class, Outcome};
use planted::{Known, Planted};
use table::{Mark, Table, mark};

/// Which line the synthetic cells come from, and the seed of every choice.
const SEED: u64 = 7;
/// Good synthetic cells that are drawn; a fifth of them is held out to calibrate.
const GOOD: u64 = 300;
/// Columns before the truth.
const WIDTH: usize = 96;
/// Good cells of ELPV that are fitted at most, to stay within a minute.
const ELPV_GOOD: usize = 500;
/// Cells of ELPV that are judged, by label.
const ELPV_SAMPLE: [(f32, usize); 4] = [(0.0, 24), (1.0 / 3.0, 8), (2.0 / 3.0, 8), (1.0, 20)];

/// See it work: draw cells, fit on good ones, judge a batch with planted defects, run the station. Offline, in about a minute.
///
/// Draws 300 good synthetic cells and fits a model on four in five of them (the rest sets the threshold); then judges 55
/// others, 29 of them with defects of every kind or in broken frames, and prints each verdict beside the truth. Model,
/// report, pictures and images stay in a folder. Last, the station itself runs for ten seconds: a synthetic camera exposes three
/// cells a second, and each gets its verdict as on a line, with the display's picture beside. What it gets wrong is shown, not hidden. The same command always draws
/// the same cells.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cellgate demo
  cellgate data elpv && cellgate demo --elpv     the same on real cells")]
pub struct Args {
    /// On real cells: fit on good ones of three quarters of ELPV, judge a sample of the fourth.
    #[arg(long)]
    elpv: bool,

    /// Folder to write to [default: cellgate-demo, or cellgate-demo-elpv].
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Where ELPV lies [default: the user's cache folder].
    #[arg(long, value_name = "DIR", env = "CELLGATE_DATA")]
    data_dir: Option<PathBuf>,

    /// Publish the station's verdicts to this MQTT broker, on cellgate/demo/el1/verdict.
    #[arg(long, value_name = "HOST[:PORT]", conflicts_with = "elpv")]
    broker: Option<String>,

    /// Good synthetic cells to draw; more make a better model.
    #[arg(long, value_name = "N", default_value_t = GOOD, value_parser = clap::value_parser!(u64).range(60..=100_000))]
    cells: u64,

    /// Side of the rectified image, for quick tests.
    #[arg(long, hide = true, default_value_t = 256)]
    size: u32,

    /// Side of the heatmap's grid, for quick tests.
    #[arg(long, hide = true, default_value_t = 64)]
    grid: u32,

    /// Values of the embedding, for quick tests.
    #[arg(short, hide = true, default_value_t = 100)]
    k: u32,

    #[command(flatten)]
    engine: Engine,
}

impl Args {
    fn settings(&self) -> anyhow::Result<Settings> {
        let (size, grid, k) = (self.size, self.grid, self.k);
        let settings = Settings { size, grid, k, seed: SEED, holdout: 0.2, ..Settings::default() };
        settings.validate()?;
        Ok(settings)
    }
}

/// What the two demos differ in.
struct Case {
    data: String,
    settings: Settings,
    good: Vec<Cell>,
    batch: Vec<Planted>,
    title: &'static str,
}

/// Shows.
///
/// # Errors
/// If the folder cannot be written, or the real cells are not there.
pub fn run(args: Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let default = if args.elpv { "cellgate-demo-elpv" } else { "cellgate-demo" };
    let out = args.out.clone().unwrap_or_else(|| default.into());
    args.settings()?;
    if args.elpv {
        elpv::open(&elpv::data_dir(args.data_dir.as_deref())?)?;
    }
    take_folder(&out)?;
    let interrupted = shared::interrupt()?;
    let case = if args.elpv { real(&args)? } else { synthetic(&args, &out, &interrupted)? };
    let (network, name) = args.engine.weights()?;
    let path = out.join("model.cgm");
    let model = Arc::new(fit(&args.engine, &network, &name, &case, &path, &interrupted)?);
    check(&interrupted)?;
    inspect(&args.engine, &network, &model, &case, &out, &interrupted)?;
    if !args.elpv {
        println!();
        live::run(&out, SEED, args.broker.as_deref(), &interrupted)?;
        check(&interrupted)?;
    }

    let shown = |name: &str| out.join(name).display().to_string();
    println!("\nAll of it took {:.0} s. In {}:", started.elapsed().as_secs_f64(), out.display());
    println!("  report.html   the page of this batch, worst first: open it in a browser");
    println!("  overlays/     cells that were not class A, with their heatmaps");
    println!("  model.cgm     the fitted model");
    if !args.elpv {
        println!("  screen-last-cell.png   what the station's display showed last");
    }
    println!("\nTry next:");
    println!("  cellgate model show {}", shown("model.cgm"));
    if args.elpv {
        println!("  cellgate fit elpv -o elpv.cgm --copies 2        all good cells, more carefully");
    } else {
        println!("  cellgate inspect {} {} --json", shown("model.cgm"), shown("batch"));
        println!("  cellgate synth -o cells --count 2000            a larger batch as a line makes it");
        println!(
            "  cellgate demo --elpv                            the same on real cells (after `cellgate data elpv`)"
        );
    }
    println!("  cellgate fit YOUR-CELLS -o line1.cgm            your own images of good cells");
    Ok(())
}

fn check(interrupted: &AtomicBool) -> anyhow::Result<()> {
    if shared::go_on(interrupted).is_break() {
        bail!("interrupted; run the same command again to start over");
    }
    Ok(())
}

/// Makes the folder, or takes that of an earlier demo; never one that holds something else.
fn take_folder(out: &Path) -> anyhow::Result<()> {
    let mark = out.join("demo.txt");
    let occupied = out.exists() && std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if occupied && !mark.is_file() {
        bail!("{} holds something else than an earlier demo: give another folder with --out", out.display());
    }
    std::fs::create_dir_all(out).with_context(|| format!("making the folder {}", out.display()))?;
    shared::save(&mark, b"Written by `cellgate demo`, and overwritten by the next one.\n")
}

fn synthetic(args: &Args, out: &Path, interrupted: &AtomicBool) -> anyhow::Result<Case> {
    println!("1. Drawing {} good cells, and a batch with planted defects.", args.cells);
    let config = SynthConfig { selection: Selection::Only(Class::A), ..SynthConfig::default() };
    let generator = Generator::new(config, SEED)?;
    let folder = out.join("good");
    data_set(&generator, 0..args.cells, false, args.engine.threads(), &folder, interrupted)?;
    check(interrupted)?;
    let good = crate::eval::dataset::Dataset::open(&folder)?;
    let bar = shared::bar(0, "drawing");
    let batch = planted::batch(&generator, &out.join("batch"), || {
        bar.inc(1);
        check(interrupted)
    })?;
    bar.finish_and_clear();
    println!("   {} cells in {}", batch.len(), out.join("batch").display());
    let augment = AugmentConfig { copies: 1, ..AugmentConfig::default() };
    let settings = Settings { augment, ..args.settings()? };
    let good = shared::select_good(&good)?;
    Ok(Case { data: "synthetic cells".into(), settings, good, batch, title: "Demo: synthetic cells" })
}

fn real(args: &Args) -> anyhow::Result<Case> {
    let data_dir = elpv::data_dir(args.data_dir.as_deref())?;
    let set = elpv::open(&data_dir)?;
    let split = folds::stratified(&set.items, 4, SEED)?;
    let mut rng = sampling::generator(SEED);
    let good = |item: &&Item| item.label.is_some_and(|label| label.is_good());
    let mut train: Vec<&Item> = split.train(0).into_iter().map(|index| &set.items[index]).filter(good).collect();
    let there = train.len();
    sampling::shuffle(&mut rng, &mut train);
    train.truncate(ELPV_GOOD);
    let good = train.into_iter().map(|item| Cell::file(&item.id, &item.path)).collect();
    let mut test = split.test[0].clone();
    sampling::shuffle(&mut rng, &mut test);
    let mut batch = Vec::new();
    for (probability, count) in ELPV_SAMPLE {
        let label = crate::eval::dataset::Label::Probability(probability).to_string();
        let such = test.iter().map(|&index| &set.items[index]);
        let such = such.filter(|item| item.label.is_some_and(|found| found.to_string() == label));
        batch.extend(such.take(count).map(|item| Planted {
            id: item.id.clone(),
            path: item.path.clone(),
            known: Known {
                group: label.clone(),
                text: format!("{label} {}", item.kind.as_deref().unwrap_or_default()).trim_end().into(),
            },
        }));
    }
    sampling::shuffle(&mut rng, &mut batch);
    println!(
        "1. ELPV: {ELPV_GOOD} of the {there} good cells in three quarters of the set, and {} others.",
        batch.len()
    );
    println!("   Truth is the probability of a defect that experts gave: 0, 1/3, 2/3, 1.");
    let settings = Settings { overkill: 0.1, preprocess: PreprocessConfig::whole_frame(), ..args.settings()? };
    Ok(Case { data: "ELPV".into(), settings, good, batch, title: "Demo: real cells (ELPV)" })
}

fn fit(
    engine: &Engine,
    network: &ResNet18,
    name: &str,
    case: &Case,
    out: &Path,
    interrupted: &AtomicBool,
) -> anyhow::Result<Model> {
    let started = Instant::now();
    let settings = &case.settings;
    let plan = Plan::new(case.good.clone(), settings);
    let total = plan.fit.len() as u64 * u64::from(settings.augment.images_per_cell());
    println!(
        "2. Fitting: {} good cells as {total} images, {} more set the threshold, which shall take out\n   {overkill} % of good cells; k = {}, {grid}×{grid} positions.",
        plan.fit.len(),
        plan.held_out.len(),
        settings.k,
        grid = settings.grid,
        overkill = settings.overkill * 100.0,
    );
    let mut fitter = engine.fitter(network, settings)?;
    let scale = fitter.channel_scale(&plan.scale_cells(settings.seed), settings)?;
    let projection = settings.projection(&scale)?;
    let mut header = PartialHeader {
        backbone: network.identity(),
        backbone_name: name.into(),
        settings: settings.clone(),
        data: case.data.clone(),
        list: plan.list,
        shard: 0,
        shards: 1,
        done: 0,
        total,
        skipped: 0,
        scale,
        origin: plan.origin(),
    };
    let mut moments = Accumulator::new(settings.grid as usize, settings.k as usize);
    fit::gather(&mut fitter, &plan.fit, &mut header, &projection, &mut moments, None, interrupted)?;
    let model =
        fit::finish(&mut fitter, &plan.held_out, &header, &projection, &moments, out, interrupted, Calibrate::Now)?;
    let seconds = started.elapsed().as_secs_f64();
    println!("   {seconds:.1} s, {:.1} images/s, {:.1} MB", total as f64 / seconds, model.bytes() as f64 / 1e6);
    Ok(model)
}

fn inspect(
    engine: &Engine,
    network: &ResNet18,
    model: &Arc<Model>,
    case: &Case,
    out: &Path,
    interrupted: &AtomicBool,
) -> anyhow::Result<()> {
    println!("3. Judging {} cells; the truth stands in the last column.\n", case.batch.len());
    let overlays = out.join("overlays");
    overlay_folder(&overlays)?;
    clear_pictures(&overlays)?;
    let items: Vec<Item> = case.batch.iter().map(|cell| Item::new(cell.path.clone(), cell.id.clone())).collect();
    let names = picture_names(&items);
    let grid = model.header().settings.grid as usize;
    let colours = line::colours();
    let lines = Lines::new(items.iter().map(|item| item.id.as_str()), grid, None, colours);
    let mut batch = Batch::new(model, network, engine.threads(), engine.threads().min(items.len()))?;
    let (mut tally, mut table, mut cells, mut text) = (Tally::default(), Table::default(), Vec::new(), String::new());
    let started = Instant::now();
    let judge = |inspector: &mut crate::pipeline::Inspector, index: usize| {
        page::judge(inspector, &items[index].path, |verdict| {
            (verdict.outcome != Outcome::Pass(Class::A)).then(|| overlays.join(&names[index]))
        })
    };
    let mut stdout = std::io::stdout().lock();
    batch.run(items.len(), interrupted, judge, |index, (verdict, drawn)| {
        drawn?;
        let cell = &case.batch[index];
        text.clear();
        lines.write(&cell.id, &verdict, &mut text);
        let remark = match mark(&cell.known, &verdict.outcome) {
            Mark::Fine => "",
            Mark::Escape => "  ← escape",
            Mark::Overkill => "  ← overkill",
        };
        let width = WIDTH + if colours { 9 } else { 0 };
        let length = text.chars().count();
        if length > width {
            text = text.chars().take(width - 1).chain(['…']).collect();
        }
        let _ = write!(text, "{:blank$}  {}{remark}", "", cell.known.text, blank = width.saturating_sub(length));
        tally.add(&verdict);
        table.add(cell, &verdict);
        cells.push(page::cell(&cell.id, &verdict, grid, Some(cell.known.text.clone())));
        writeln!(stdout, "{text}").context("writing the verdicts")
    })?;
    check(interrupted)?;
    write!(stdout, "\n{}\n\n{}", tally.summary(started.elapsed().as_secs_f64()), table.text())?;
    let pictures = cells.len();
    page::write(&out.join("report.html"), case.title, &mut batch, model, &items, cells, pictures)
}

/// Takes an earlier demo's pictures away.
fn clear_pictures(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(".overlay.png") {
            std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}
