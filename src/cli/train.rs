//! `cellgate train`: labelled cells in, a classifier in the model.

use std::fs::File;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use serde_json::json;

use super::fit::fitted_backbone;
use super::judging::Judging;
use super::shared::{self, Engine};
use crate::classifier::evidence::Evidence;
use crate::classifier::judge::{self, Cells, Event, JudgeError, Taught};
use crate::classifier::learning::{Course, Saved, StepRecord};
use crate::eval::dataset::{Dataset, Label};
use crate::eval::folds;
use crate::heatmap::Scores;
use crate::model::{Model, Training};
use crate::pipeline::crossval::{FoldCell, images_held_out};
use crate::pipeline::fitting::Cell;
use crate::pipeline::teaching::{By, gather};
use crate::verdict::{Cost, Grading, OperatingPoint};
use crate::workers::Workers;

/// Train the classifier of a model on labelled cells: it tells classes apart by the heatmap, where the score alone only
/// says how far a cell is from good ones.
///
/// Each labelled cell is measured by statistics that have not seen it: those of the other folds' good cells, since the
/// model may have been fitted to the very same cells; or with --unseen by the model's own. The network (a ResNet18 that
/// starts from the backbone) learns from four fifths of the cells (--validation); the last fifth ends its training,
/// calibrates the probabilities and sets the operating point: without an option a cell is rejected if it is likelier C than
/// not.
///
/// Labels are A, B, C, or probabilities of a defect: 0 is A, up to 1/2 is B, from there on C.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cellgate train line1.cgm labelled -o line1-judged.cgm
  cellgate train line1.cgm labelled -o line1-judged.cgm --max-escape-rate 0.01
  cellgate train line1.cgm labelled -o line1-judged.cgm --checkpoint line1.ckpt --metrics line1.jsonl
  cellgate train line1.cgm labelled -o line1-judged.cgm --plane-side 256   finer planes: a little more accurate, half an hour on two cores
  cellgate train elpv.cgm elpv -o elpv-judged.cgm --classes a-bc --judge network --planes heatmap   as in the paper")]
pub struct Args {
    /// The model whose statistics make the heatmaps.
    #[arg(value_name = "MODEL.cgm")]
    model: PathBuf,

    /// Labelled cells: a folder with a labels.csv, or `elpv`.
    #[arg(value_name = "DATA")]
    data: PathBuf,

    /// The model to write: the same with the classifier.
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,

    /// What is told apart: `a-b-c`, `a-bc` (any defect rejects) or `ab-c` (what is usable passes).
    #[arg(long, default_value_t = Grading::Abc, value_name = "CLASSES")]
    classes: Grading,

    /// Reject from where at most this share of the cells of the rejected class passes.
    #[arg(long, value_name = "SHARE", conflicts_with = "max_overkill")]
    max_escape_rate: Option<f64>,

    /// Reject from where at most this share of the cells that should pass is rejected.
    #[arg(long, value_name = "SHARE")]
    max_overkill: Option<f64>,

    /// Measure the labelled cells by the model's own statistics: right if the model was fitted to other cells, or to so many
    /// that one of them hardly moves its statistics.
    #[arg(long)]
    unseen: bool,

    /// Keep the network's training here at every look at the validation cells and at Ctrl-C; the same command goes on
    /// from there.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,

    /// Write one JSON object a step: step, lr, loss, accuracy, and now and then validation loss, accuracy and F1. Of a step
    /// that was made again after a hard stop the later line counts.
    #[arg(long, value_name = "FILE.jsonl")]
    metrics: Option<PathBuf>,

    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,

    /// Where ELPV lies [default: the user's cache folder].
    #[arg(long, value_name = "DIR", env = "CELLGATE_DATA")]
    data_dir: Option<PathBuf>,

    #[command(flatten)]
    judging: Judging,

    #[command(flatten)]
    engine: Engine,
}

/// Folds whose good cells measure one another.
const FOLDS: usize = 4;

/// Fewest cells of each class.
const FEWEST: usize = 8;

/// A checkpoint's first bytes.
const MAGIC: &[u8; 8] = b"CELLGCK1";

/// Trains.
pub fn run(args: Args) -> anyhow::Result<()> {
    for path in [Some(&args.out), args.checkpoint.as_ref(), args.metrics.as_ref()].into_iter().flatten() {
        shared::check_writable(path)?;
    }
    let wanted = args.judging.settings()?;
    if wanted.planes.is_none() && (args.checkpoint.is_some() || args.metrics.is_some()) {
        bail!("--checkpoint and --metrics are of the network's training, and --judge kernel has none: leave them out");
    }
    let interrupted = shared::interrupt()?;
    let model = Model::open(&args.model)?;
    let header = model.header();
    let settings = &header.settings;
    if settings.stages.0 != [true; 4] {
        bail!(
            "{} was fitted with stages {} of the backbone, the classifier looks at all four: fit again without --stages",
            args.model.display(),
            settings.stages
        );
    }
    let network = fitted_backbone(&args.engine, header.backbone)?;
    let (dataset, _) = shared::open_data(&args.data, args.data_dir.as_deref())?;
    let labelled = Labelled::of(&dataset, args.classes)?;

    let (others, fitted) = (labelled.good_of_others(), header.provenance.cells);
    if !args.unseen && others < fitted / 2 {
        bail!(
            "the model was fitted to {fitted} good cells, a labelled cell would be measured by {others} others: its heatmap \
             would be unlike those at the station; give --unseen, since one cell among {fitted} hardly moves their statistics"
        );
    }
    let mut fitter = args.engine.fitter(&network, settings)?;
    let total = if args.unseen { labelled.cells.len() as u64 } else { images_held_out(&labelled.cells, settings) };
    let bar = shared::bar(total, "measuring");
    let tick = |step| {
        bar.inc(step);
        shared::go_on(&interrupted)
    };
    let statistics = model.statistics();
    let by = if args.unseen { By::Model(&statistics) } else { By::OtherFolds(FOLDS) };
    let seen = gather(&mut fitter, &labelled.cells, settings, model.projection(), by, &wanted, &tick)?;
    drop(fitter);
    bar.finish_and_clear();
    let mut skipped = 0;
    let mut kept: Vec<(usize, Scores, Evidence)> = Vec::new();
    for (index, seen) in seen.into_iter().enumerate() {
        match seen {
            Ok((scores, evidence)) => kept.push((index, scores, evidence)),
            Err(reason) => {
                skipped += 1;
                eprintln!("skipping {}: {reason}", labelled.cells[index].cell.id);
            }
        }
    }
    if skipped * 10 > labelled.cells.len() {
        bail!(
            "{skipped} of {} labelled cells cannot be judged: look at the reasons above, and at whether the model is of this product",
            labelled.cells.len()
        );
    }

    let level: Vec<usize> = kept.iter().map(|(index, ..)| labelled.level[*index]).collect();
    let group: Vec<usize> = kept.iter().map(|(index, ..)| labelled.cells[*index].fold).collect();
    let evidence: Vec<&Evidence> = kept.iter().map(|(.., evidence)| evidence).collect();
    let cells = Cells {
        evidence: &evidence,
        level: &level,
        kind: &vec![0; kept.len()],
        group: &group,
        levels: args.classes.levels(),
    };
    let resume = args.checkpoint.as_deref().filter(|path| path.exists()).map(read_checkpoint).transpose()?;
    let mut log = Log::open(args.metrics.as_deref(), resume.is_some())?;
    let bar = shared::bar(wanted.learn.steps.into(), "training");
    let workers = Arc::new(Workers::new(args.engine.threads()));
    let mut trouble: Option<anyhow::Error> = None;
    let taught = judge::fit(&cells, &wanted, &network, resume, &workers, |event| {
        let stop = shared::go_on(&interrupted).is_break();
        let outcome = match event {
            Event::Kernel => {
                bar.set_message("kernel");
                Ok(())
            }
            Event::Step(record, course) => {
                bar.set_position(record.step);
                log.write(record).and_then(|()| match &args.checkpoint {
                    Some(path) if record.validation.is_some() || stop => write_checkpoint(path, course),
                    _ => Ok(()),
                })
            }
        };
        if let Err(error) = outcome {
            trouble = Some(error);
        }
        if stop || trouble.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    if let Some(error) = trouble {
        return Err(error);
    }
    let taught = taught.map_err(|error| explain(error, args.checkpoint.as_deref()))?;

    let cost = match (args.max_escape_rate, args.max_overkill) {
        (Some(share), _) => Cost::Escape(share),
        (None, Some(share)) => Cost::Overkill(share),
        (None, None) => Cost::Even,
    };
    let highest = args.classes.levels() - 1;
    let passing = kept.iter().zip(&level).filter(|(_, level)| **level < highest);
    let kind = header.calibration.as_ref().map_or(settings.score, |c| c.kind);
    let farthest = passing.map(|((_, scores, _), _)| scores.get(kind)).fold(0.0f32, f32::max);
    let (probability, defective): (Vec<f32>, Vec<bool>) =
        taught.calibration.iter().map(|(cell, opinion)| (opinion.at_least(highest), level[*cell] == highest)).unzip();
    let point = OperatingPoint::choose(args.classes, cost, farthest.next_up(), &probability, &defective)?;
    let training = Training {
        software: env!("CARGO_PKG_VERSION").into(),
        created: shared::now(),
        data: dataset.name.clone(),
        list: labelled.list,
        cells: (0..=highest).map(|l| level.iter().filter(|&&x| x == l).count() as u32).collect(),
        skipped: skipped as u32,
        step: taught.best_step,
    };
    model.write_judged(&args.out, Some((&taught.judge, point.clone(), training.clone())))?;
    if let Some(path) = args.checkpoint.as_deref().filter(|path| path.exists()) {
        std::fs::remove_file(path)
            .with_context(|| format!("removing the checkpoint {} of this finished training", path.display()))?;
    }
    tell(&args, &taught, &point, &training, &level)
}

/// The labelled cells of a data set.
struct Labelled {
    cells: Vec<FoldCell>,
    level: Vec<usize>,
    list: [u8; 32],
}

impl Labelled {
    /// Good cells outside a fold, at the least.
    fn good_of_others(&self) -> u64 {
        let good = |fold: usize| self.cells.iter().filter(|cell| cell.good && cell.fold != fold).count() as u64;
        (0..FOLDS).map(good).min().unwrap_or(0)
    }

    fn of(dataset: &Dataset, grading: Grading) -> anyhow::Result<Self> {
        let items: Vec<_> = dataset.items.iter().filter(|item| item.label.is_some()).cloned().collect();
        let left_out = dataset.items.len() - items.len();
        if left_out > 0 {
            eprintln!("{}: {left_out} of {} images have no label and are left out", dataset.name, dataset.items.len());
        }
        let level: Vec<usize> =
            items.iter().filter_map(|item| item.label.as_ref()).map(|label| grading.level(label.class())).collect();
        for (at, name) in grading.names().iter().enumerate() {
            let count = level.iter().filter(|&&l| l == at).count();
            if count < FEWEST {
                bail!(
                    "{} has {count} labelled cells of class {name}, at least {FEWEST} are needed of each: label more, or \
                     merge classes with --classes a-bc or ab-c",
                    dataset.name
                );
            }
        }
        let folds = folds::stratified(&items, FOLDS, 1)?;
        let mut of = vec![0; items.len()];
        for (fold, members) in folds.test.iter().enumerate() {
            members.iter().for_each(|&index| of[index] = fold);
        }
        let mut hasher = blake3::Hasher::new();
        let cells = items.iter().zip(of).map(|(item, fold)| {
            hasher.update(item.id.as_bytes());
            hasher.update(&[0]);
            let good = item.label.as_ref().is_some_and(Label::is_good);
            FoldCell { cell: Cell::file(&item.id, &item.path), good, fold }
        });
        let cells = cells.collect();
        Ok(Self { cells, level, list: *hasher.finalize().as_bytes() })
    }
}

/// The error with what is left and how to go on.
fn explain(error: JudgeError, checkpoint: Option<&Path>) -> anyhow::Error {
    let kept = checkpoint.filter(|path| path.exists());
    match (&error, kept) {
        (JudgeError::Interrupted, Some(path)) => {
            anyhow!(
                "interrupted; {} holds the training so far, and the same command goes on from there",
                path.display()
            )
        }
        (JudgeError::Learn(_), Some(path)) => {
            anyhow::Error::new(error).context(format!("the last good checkpoint is {}", path.display()))
        }
        _ => error.into(),
    }
}

fn write_checkpoint(path: &Path, course: &Course<'_>) -> anyhow::Result<()> {
    let body = postcard::to_stdvec(&course.saved()).context("encoding the checkpoint")?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(blake3::hash(&body).as_bytes());
    bytes.extend_from_slice(&body);
    shared::save(path, &bytes)
}

fn read_checkpoint(path: &Path) -> anyhow::Result<Saved> {
    let remedy = "take it away to begin anew, or name another file";
    let bytes = std::fs::read(path).with_context(|| format!("reading the checkpoint {}", path.display()))?;
    let body = bytes.strip_prefix(MAGIC).and_then(|rest| rest.split_at_checked(32));
    let Some((hash, body)) = body else {
        bail!("{} is not a checkpoint of cellgate train: {remedy}", path.display());
    };
    if blake3::hash(body).as_bytes() != hash {
        bail!("the checkpoint {} is damaged: {remedy}", path.display());
    }
    postcard::from_bytes(body)
        .with_context(|| format!("the checkpoint {} is of another version: {remedy}", path.display()))
}

/// The metrics of each step, as they come.
struct Log(Option<(PathBuf, File)>);

impl Log {
    fn open(path: Option<&Path>, go_on: bool) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        let mut options = File::options();
        options.create(true).write(true).append(go_on).truncate(!go_on);
        let file = options.open(path).with_context(|| format!("writing the metrics {}", path.display()))?;
        Ok(Self(Some((path.into(), file))))
    }

    fn write(&mut self, record: &StepRecord) -> anyhow::Result<()> {
        let Some((path, file)) = &mut self.0 else { return Ok(()) };
        let mut line = serde_json::to_string(record)?;
        line.push('\n');
        file.write_all(line.as_bytes()).with_context(|| format!("writing the metrics {}", path.display()))
    }
}

/// Says what came of it.
fn tell(
    args: &Args,
    taught: &Taught,
    point: &OperatingPoint,
    training: &Training,
    level: &[usize],
) -> anyhow::Result<()> {
    let levels = args.classes.levels();
    let mut confusion = vec![vec![0usize; levels]; levels];
    for (cell, opinion) in &taught.calibration {
        let p = opinion.probabilities();
        let likeliest = (0..levels).max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap_or(0);
        confusion[level[*cell]][likeliest] += 1;
    }
    let best = taught.history.iter().find(|record| Some(record.step) == taught.best_step).and_then(|r| r.validation);
    if args.json {
        let line = json!({
            "model": args.out.display().to_string(), "classes": args.classes.names(), "cells": training.cells,
            "skipped": training.skipped, "steps": taught.history.len(), "kept_step": taught.best_step,
            "validation": best, "calibration_cells": taught.calibration.len(), "confusion": confusion,
            "operating_point": point,
        });
        println!("{}", serde_json::to_string_pretty(&line)?);
        return Ok(());
    }
    let names = args.classes.names();
    let counts: Vec<String> =
        names.iter().zip(&training.cells).map(|(name, count)| format!("{count} {name}")).collect();
    println!("{}: trained on {} cells", args.out.display(), counts.join(", "));
    if let (Some(step), Some(check)) = (taught.best_step, best) {
        println!(
            "network      step {step} of {} kept: validation accuracy {:.1} %, F1 of {} {:.1} %",
            taught.history.len(),
            100.0 * check.accuracy,
            names[levels - 1],
            100.0 * check.f1
        );
    }
    println!(
        "calibration  {} cells that neither part has learnt from; rows are labels, columns the likeliest class",
        taught.calibration.len()
    );
    println!("             {}", names.iter().map(|name| format!("{name:>6}")).collect::<String>());
    for (name, row) in names.iter().zip(&confusion) {
        println!("      {name:>6} {}", row.iter().map(|count| format!("{count:>6}")).collect::<String>());
    }
    println!(
        "rejects      from a probability of {:.3}: {} of {} {} pass, {} of {} others are rejected; and from distance {:.2}",
        point.reject_from,
        point.escapes,
        point.defective,
        names[levels - 1],
        point.overkills,
        point.good,
        point.novel_from
    );
    Ok(())
}
