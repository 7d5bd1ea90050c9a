//! `cellgate eval`: how good is it, by cross-validation on labelled cells.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, bail};

use super::shared::{self, Engine, FitSettings};
use crate::eval::dataset::{Dataset, Item, Label};
use crate::eval::folds::{self, Binarisation, Folds};
use crate::eval::metrics::{Goal, Ranking, is_rejected};
use crate::eval::pixel::{PixelMetrics, resize_scores};
use crate::eval::report::{self, EvalReport, Mistake, MistakeKind, Picture, Pictures};
use crate::eval::result::{BinarisationResult, ELPV_CAVEATS, EvalResult, Figures, Method, Scored, Setting};
use crate::frame::Frame;
use crate::heatmap::{ScoreKind, Scores, overlay};
use crate::model::Settings;
use crate::pipeline::Scorer;
use crate::pipeline::crossval::{self, FoldCell, FoldModel, FoldScores, cross_validate};
use crate::pipeline::fitting::{Cell, FitError};
use crate::preprocess::Placement;
use crate::verdict::Invalid;

/// Evaluate the method on labelled cells by stratified cross-validation.
///
/// For each fold the statistics come from the good cells of the other folds, and the threshold from training cells that
/// were measured by statistics without their own fold. Cells that cannot be judged count as rejected.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cellgate eval --data elpv --report elpv.html
  cellgate eval --data cells --json > cells.json
  cellgate eval --data elpv --stages 2,3 --shrinkage ledoit-wolf")]
pub struct Args {
    /// Labelled data: a folder with a labels.csv, or `elpv`.
    #[arg(long, value_name = "DIR|elpv")]
    data: PathBuf,

    /// Folds.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=20))]
    folds: u16,

    /// Seed of the split into folds.
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    split_seed: u64,

    /// What the threshold is chosen for on the training folds.
    #[arg(long, default_value = "accuracy", value_name = "GOAL", value_parser = ["accuracy", "f1"])]
    goal: String,

    /// Write a page with figures, curves and the worst mistakes.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,

    /// Mistakes shown for each fold, of each kind.
    #[arg(long, default_value_t = 4, value_name = "N")]
    mistakes: usize,

    /// Print all figures as one JSON object.
    #[arg(long)]
    json: bool,

    /// Where ELPV lies [default: the user's cache folder].
    #[arg(long, value_name = "DIR", env = "CELLGATE_DATA")]
    data_dir: Option<PathBuf>,

    #[command(flatten)]
    engine: Engine,

    #[command(flatten)]
    settings: FitSettings,
}

/// Side of the picture on which pixels are compared with masks.
const MASK_SIDE: usize = 256;

/// Evaluates.
pub fn run(args: Args) -> anyhow::Result<()> {
    if let Some(path) = &args.report {
        shared::check_writable(path)?;
    }
    let started = Instant::now();
    let (dataset, whole_frame) = shared::open_data(&args.data, args.data_dir.as_deref())?;
    dataset.require_labels()?;
    let settings = args.settings.settings(whole_frame)?;
    let goal = if args.goal == "f1" { Goal::F1 } else { Goal::Accuracy };
    let (network, backbone) = args.engine.weights()?;
    let questions = Binarisation::applicable(dataset.items.iter().filter_map(|item| item.label.as_ref()));
    let Some(&main) = questions.get(1).or(questions.first()) else {
        bail!("{} has no two kinds of label to tell apart", dataset.name);
    };
    let folds = folds::stratified(&dataset.items, args.folds.into(), args.split_seed)?;
    folds.notes.iter().for_each(|note| eprintln!("note: {note}"));
    let interrupted = shared::interrupt()?;
    let mut fitter = args.engine.fitter(&network, &settings)?;
    let cells = fold_cells(&dataset, &folds);

    let bar = shared::bar(crossval::images(&cells, folds.k(), &settings), "evaluating");
    let tick = |step| {
        bar.inc(step);
        shared::go_on(&interrupted)
    };
    let has_masks = dataset.items.iter().any(|item| item.mask.is_some());
    let pixels = Mutex::new(Pixels { metrics: PixelMetrics::new(), error: None });
    let see = |index: usize, scorer: &mut Scorer, placement: &Placement| {
        if has_masks {
            pixels.lock().unwrap_or_else(PoisonError::into_inner).add(
                &dataset.items[index],
                scorer,
                placement,
                &settings,
            );
        }
    };
    let limit = if args.report.is_some() { args.mistakes } else { 0 };
    let mut gallery = Gallery { main, goal, limit, mistakes: Vec::new(), left_out: (0, 0) };
    let results = cross_validate(&mut fitter, &cells, folds.k(), &settings, &tick, see, |scores, model| {
        gallery.add(&dataset, &cells, scores, model, &settings)
    });
    bar.finish_and_clear();
    let results = results?;
    let pixels = pixels.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = pixels.error {
        bail!(error);
    }

    let judge = |question, kind| answers(question, kind, &dataset, &cells, &results, goal);
    let result = EvalResult {
        tool: format!("cellgate {}", env!("CARGO_PKG_VERSION")),
        created: shared::rfc3339(shared::now()),
        data: dataset.name.clone(),
        images: dataset.items.len(),
        counts: dataset.counts(),
        settings: shown_settings(
            &settings,
            &backbone,
            &network.identity().to_string(),
            started.elapsed().as_secs_f64(),
        ),
        folds: folds.k(),
        seed: folds.seed,
        threshold_goal: goal,
        invalid: invalid(&cells, &results),
        binarisations: questions.iter().map(|&question| judge(question, settings.score)).collect(),
        pixel: has_masks.then(|| pixels.metrics.result()),
        caveats: if whole_frame { ELPV_CAVEATS.map(String::from).to_vec() } else { Vec::new() },
    };
    if let Some(path) = &args.report {
        let page = EvalReport {
            result: result.clone(),
            mistakes_of: main.title().into(),
            mistakes_left_out: gallery.left_out,
            mistakes: gallery.mistakes,
        };
        report::save(path, &page.html())?;
        eprintln!("{} written", path.display());
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else {
        print(&result, |question, kind| judge(question, kind));
    }
    Ok(())
}

fn fold_cells(dataset: &Dataset, folds: &Folds) -> Vec<FoldCell> {
    let mut of = vec![0; dataset.items.len()];
    for (fold, members) in folds.test.iter().enumerate() {
        members.iter().for_each(|&index| of[index] = fold);
    }
    dataset
        .items
        .iter()
        .zip(of)
        .map(|(item, fold)| FoldCell {
            cell: Cell { id: item.id.clone(), path: item.path.clone() },
            good: item.label.as_ref().is_some_and(Label::is_good),
            fold,
        })
        .collect()
}

/// A score in which a cell that cannot be judged is above everything.
fn number(scores: &Result<Scores, Invalid>, kind: ScoreKind) -> f32 {
    scores.as_ref().map_or(f32::NAN, |s| s.get(kind))
}

/// The threshold of a fold for a question, from its training cells.
fn threshold(
    question: Binarisation,
    kind: ScoreKind,
    dataset: &Dataset,
    cells: &[FoldCell],
    fold: &FoldScores,
    goal: Goal,
) -> f32 {
    let (scores, targets): (Vec<f32>, Vec<bool>) = dataset
        .items
        .iter()
        .zip(cells)
        .zip(&fold.scores)
        .filter(|((_, cell), _)| cell.fold != fold.fold)
        .filter_map(|((item, _), scores)| {
            Some((number(scores, kind), item.label.as_ref().and_then(|label| question.target(label))?))
        })
        .unzip();
    Ranking::new(&scores, &targets).best_threshold(goal).unwrap_or(f32::INFINITY)
}

fn answers(
    question: Binarisation,
    kind: ScoreKind,
    dataset: &Dataset,
    cells: &[FoldCell],
    results: &[FoldScores],
    goal: Goal,
) -> BinarisationResult {
    let thresholds: Vec<f32> = results.iter().map(|f| threshold(question, kind, dataset, cells, f, goal)).collect();
    // Defect kinds are no groups to compare: a good cell has none.
    let grouped = dataset.items.iter().all(|item| item.kind.is_some());
    let scored: Vec<Scored<'_>> = dataset
        .items
        .iter()
        .zip(cells)
        .enumerate()
        .filter_map(|(index, (item, cell))| {
            Some(Scored {
                fold: cell.fold,
                score: number(&results[cell.fold].scores[index], kind),
                target: item.label.as_ref().and_then(|label| question.target(label))?,
                kind: item.kind.as_deref().filter(|_| grouped),
            })
        })
        .collect();
    BinarisationResult::new(question, &scored, &thresholds, Method::default())
}

fn invalid(cells: &[FoldCell], results: &[FoldScores]) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for (index, cell) in cells.iter().enumerate() {
        if let Err(reason) = &results[cell.fold].scores[index] {
            *reasons.entry(reason.name().to_string()).or_insert(0) += 1;
        }
    }
    reasons
}

fn shown_settings(settings: &Settings, backbone: &str, identity: &str, seconds: f64) -> Vec<Setting> {
    vec![
        Setting::new("backbone", format!("{backbone} ({identity:.16})")),
        Setting::new("image", format!("{0}×{0}", settings.size)),
        Setting::new("grid", format!("{0}×{0}", settings.grid)),
        Setting::new("k", settings.k),
        Setting::new("stages", settings.stages),
        Setting::new("standardised", settings.standardise),
        Setting::new("shrinkage", settings.shrinkage),
        Setting::new("smoothing", settings.sigma),
        Setting::new("score", settings.score),
        Setting::new("copies", settings.augment.copies),
        Setting::new("quarter turns", settings.augment.quarter_turns),
        Setting::new("seed", settings.seed),
        Setting::new("seconds", format!("{seconds:.0}")),
    ]
}

/// Heatmaps against masks.
struct Pixels {
    metrics: PixelMetrics,
    error: Option<String>,
}

impl Pixels {
    fn add(&mut self, item: &Item, scorer: &Scorer, placement: &Placement, settings: &Settings) {
        if let Err(error) = self.try_add(item, scorer, placement, settings) {
            self.error.get_or_insert(format!("{error:#}"));
        }
    }

    fn try_add(
        &mut self,
        item: &Item,
        scorer: &Scorer,
        placement: &Placement,
        settings: &Settings,
    ) -> anyhow::Result<()> {
        let grid = settings.grid as usize;
        let scores = resize_scores(scorer.heatmap(), (grid, grid), (MASK_SIDE, MASK_SIDE));
        let mut mask = vec![false; MASK_SIDE * MASK_SIDE];
        if let Some(path) = &item.mask {
            let frame = Frame::decode_file(path, &crate::frame::DecodeLimits::default())
                .with_context(|| format!("reading the mask of {}", item.id))?;
            let marks: Vec<u8> = frame.pixels().iter().map(|&p| u8::from(p > 0)).collect();
            let mut rectified = vec![0; MASK_SIDE * MASK_SIDE];
            placement.rectify_mask(&marks, frame.width(), frame.height(), &mut rectified, MASK_SIDE);
            mask.iter_mut().zip(rectified).for_each(|(m, r)| *m = r > 0);
        }
        Ok(self.metrics.add(&scores, &mask, MASK_SIDE, MASK_SIDE)?)
    }
}

/// The worst mistakes of every fold.
struct Gallery {
    main: Binarisation,
    goal: Goal,
    limit: usize,
    mistakes: Vec<Mistake>,
    left_out: (usize, usize),
}

impl Gallery {
    fn add(
        &mut self,
        dataset: &Dataset,
        cells: &[FoldCell],
        fold: &FoldScores,
        mut model: FoldModel<'_>,
        settings: &Settings,
    ) -> Result<(), FitError> {
        if self.limit == 0 {
            return Ok(());
        }
        let kind = settings.score;
        let threshold = threshold(self.main, kind, dataset, cells, fold, self.goal);
        let mut wrong: Vec<(usize, MistakeKind, f32)> = Vec::new();
        for (index, (item, cell)) in dataset.items.iter().zip(cells).enumerate() {
            let Ok(scores) = &fold.scores[index] else { continue };
            let target = item.label.as_ref().and_then(|label| self.main.target(label));
            let score = scores.get(kind);
            match (cell.fold == fold.fold, target, is_rejected(score, threshold)) {
                (true, Some(true), false) => wrong.push((index, MistakeKind::FalsePass, score)),
                (true, Some(false), true) => wrong.push((index, MistakeKind::FalseReject, score)),
                _ => {}
            }
        }
        wrong.sort_by(|a, b| (b.2 - threshold).abs().total_cmp(&(a.2 - threshold).abs()));
        let mut chosen = Vec::new();
        for kind in [MistakeKind::FalsePass, MistakeKind::FalseReject] {
            let all = wrong.iter().filter(|w| w.1 == kind).count();
            chosen.extend(wrong.iter().filter(|w| w.1 == kind).take(self.limit).copied());
            let left_out = if kind == MistakeKind::FalsePass { &mut self.left_out.0 } else { &mut self.left_out.1 };
            *left_out += all.saturating_sub(self.limit);
        }
        let again: Vec<Cell> = chosen.iter().map(|&(index, ..)| cells[index].cell.clone()).collect();
        let drawn: Vec<Mutex<Option<Pictures>>> = again.iter().map(|_| Mutex::new(None)).collect();
        model.look_again(&again, |index, scorer, _| {
            let pictures = draw(scorer, settings, threshold);
            *drawn[index].lock().unwrap_or_else(PoisonError::into_inner) = pictures;
        })?;
        for ((index, kind, score), pictures) in chosen.into_iter().zip(drawn) {
            let item = &dataset.items[index];
            let Some(pictures) = pictures.into_inner().unwrap_or_else(PoisonError::into_inner) else { continue };
            let label = item.label.as_ref().map(ToString::to_string).unwrap_or_default();
            let label = format!("{label} {}", item.kind.as_deref().unwrap_or_default());
            self.mistakes.push(Mistake { kind, id: item.id.clone(), label, score, threshold, pictures });
        }
        Ok(())
    }
}

/// The cell and its heatmap, red where it is far above what the threshold asks for.
fn draw(scorer: &Scorer, settings: &Settings, threshold: f32) -> Option<Pictures> {
    let (side, grid) = (scorer.size(), settings.grid as usize);
    let image = overlay::grey(scorer.image(), side);
    let range = (0.7 * threshold, 1.6 * threshold);
    let heat = overlay::draw(scorer.image(), side, scorer.heatmap(), grid, range, &[]);
    Some(Pictures { image: Picture(overlay::jpeg(&image)?), overlay: Picture(overlay::jpeg(&heat)?) })
}

fn print(result: &EvalResult, judge: impl Fn(Binarisation, ScoreKind) -> BinarisationResult) {
    let show = |x: Option<f64>| x.map_or("    –".into(), |x| format!("{:5.1}", 100.0 * x));
    println!("{}: {} images, {} folds", result.data, result.images, result.folds);
    for binarisation in &result.binarisations {
        println!("\n{}", binarisation.title);
        println!("  {:<18}{:>7}{:>7}{:>7}{:>7}{:>7}{:>7}", "", "acc", "prec", "recall", "F1", "AUROC", "AUPR");
        for group in &binarisation.groups {
            let row = |name: &str, f: &Figures| {
                let figures: String = f.values().map(|v| format!("{:>7}", show(v))).concat();
                println!("  {name:<18}{figures}");
            };
            row(&format!("{} ({})", group.group, group.cells), &group.mean);
            if group.group == "all" {
                row("  worst fold", &group.worst);
                let ends: String = group
                    .ci95
                    .values()
                    .map(|i| i.map_or(String::new(), |i| format!(" {:.1}–{:.1}", 100.0 * i.low, 100.0 * i.high)))
                    .concat();
                println!("    95 %           {ends}");
                let c = &group.confusion;
                println!(
                    "    confusion       defective: {} rejected, {} passed; good: {} rejected, {} passed",
                    c.tp, c.fn_, c.fp, c.tn
                );
            }
        }
        let areas: Vec<String> = [ScoreKind::Top, ScoreKind::Max, ScoreKind::Mean]
            .into_iter()
            .map(|kind| format!("{kind} {}", show(judge(binarisation.binarisation, kind).groups[0].mean.auroc)))
            .collect();
        println!("    AUROC by score  {}", areas.join(", "));
    }
    if let Some(pixel) = &result.pixel {
        println!("\npixels: AUROC {}, AUPRO {} over {} regions", show(pixel.auroc), show(pixel.aupro), pixel.regions);
    }
    if !result.invalid.is_empty() {
        println!("\nnot judged: {:?}", result.invalid);
    }
    println!();
    result.caveats.iter().for_each(|caveat| println!("note: {caveat}"));
}
