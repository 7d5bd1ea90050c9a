//! `cellgate eval`: how good is it, by cross-validation on labelled cells.
//!
//! What all methods share is here: the data, the folds, the questions, and what is said at the end. Each method has a
//! room that gives an [`Outcome`].

mod gallery;
mod pictures;
mod semacnn;
mod systems;
mod threshold;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::bail;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::judging::Judging;
use super::shared::{self, Engine, FitSettings};
use crate::baseline::System;
use crate::eval::dataset::Dataset;
use crate::eval::folds::{self, Binarisation, Folds};
use crate::eval::metrics::Goal;
use crate::eval::pixel::PixelResult;
use crate::eval::report::{self, CourseCurve, EvalReport, Example, Mistake, Panel, VariantRow};
use crate::eval::result::{
    BinarisationResult, ELPV_CAVEATS, EvalResult, FIGURE_NAMES, Figures, Repeat, Setting, Variant,
};
use crate::model::{Model, Settings};

/// Evaluate a method on labelled cells by stratified cross-validation.
///
/// Method `threshold`: for each fold the statistics come from the good cells of the other folds, and the threshold from
/// training cells that were measured by statistics without their own fold.
///
/// Method `semacnn`: the classifier is trained on cells measured by statistics without their own fold. The network learns
/// from four fifths of them; the last fifth ends its training and calibrates the probabilities.
///
/// The paper's other systems are fitted from nothing on four fifths of a fold's training cells; the other fifth (of each
/// label and type) chooses thresholds and epochs. `autoencoder-amplitude`, `autoencoder-otsu`, `svd` and `k-means`
/// reconstruct good cells, and what is left over decides; `resnet50`, `vgg11` and `resnext101` learn the labels of images.
/// They have their full channels and depth, but train from scratch on small images for a few epochs, so that two cores
/// are enough: --side and --epochs.
///
/// No test cell has a say in anything. Cells that cannot be judged count as rejected.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cellgate eval --data elpv --report elpv.html
  cellgate eval --data elpv --method semacnn --per-type --seeds 5
  cellgate eval --data elpv --method semacnn --per-type --ablate
  cellgate eval --data cells --json > cells.json
  cellgate eval --data elpv --stages 2,3 --shrinkage ledoit-wolf
  cellgate eval --data labelled --method semacnn --model line1.cgm      line1.cgm was fitted to other cells
  cellgate eval --data elpv --method resnet50 --side 64 --epochs 10
  cellgate eval --systems")]
pub struct Args {
    /// Labelled data: a folder with a labels.csv, or `elpv`.
    #[arg(long, value_name = "DIR|elpv", required_unless_present = "systems")]
    data: Option<PathBuf>,

    /// Print what each method costs, parameters and multiply-adds, and evaluate nothing.
    #[arg(long, conflicts_with_all = ["data", "report"])]
    systems: bool,

    /// How cells are judged.
    #[arg(long, default_value = "threshold", value_name = "NAME", value_parser = method_parser())]
    method: Method,

    /// Methods threshold and semacnn: measure all cells by this model's statistics, which must not have seen them, instead
    /// of fitting to the good cells of the other folds; the settings of the fit are the model's. Thresholds and classifier
    /// still come from the other folds.
    #[arg(long, value_name = "MODEL.cgm")]
    model: Option<PathBuf>,

    /// Folds.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=20))]
    folds: u16,

    /// Seed of the split into folds.
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    split_seed: u64,

    /// Evaluate with this many splits, of one seed after another: the first is shown in full, of all the mean and spread.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    seeds: u16,

    /// Method semacnn: judge the same cells by each part of the classifier alone as well, and show what it gives.
    #[arg(long)]
    ablate: bool,

    /// What the threshold is chosen for on the training folds.
    #[arg(long, default_value = "accuracy", value_name = "GOAL", value_parser = ["accuracy", "f1"])]
    goal: String,

    /// Fit each type of cell apart (mono and poly), as a line does that has one model a product. Scores are divided by
    /// the median of the type's good training cells.
    #[arg(long)]
    per_type: bool,

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

    #[command(flatten)]
    training: systems::Training,

    #[command(flatten)]
    judging: Judging,
}

/// Takes the names of methods, and lists them in the help.
fn method_parser() -> impl TypedValueParser<Value = Method> {
    PossibleValuesParser::new(Method::all().map(Method::name)).try_map(|name| name.parse::<Method>())
}

/// What every method starts from.
#[derive(Clone, Copy)]
struct Task<'a> {
    /// The fitted model to measure by, if there is one.
    model: Option<&'a Model>,
    dataset: &'a Dataset,
    folds: &'a Folds,
    questions: &'a [Binarisation],
    /// The question whose mistakes are shown.
    main: Binarisation,
    goal: Goal,
    settings: &'a Settings,
    interrupted: &'a AtomicBool,
}

/// What a method gives.
#[derive(Default)]
struct Outcome {
    settings: Vec<Setting>,
    invalid: BTreeMap<String, usize>,
    binarisations: Vec<BinarisationResult>,
    /// A line for a person to each question, or none.
    notes: Vec<String>,
    pixel: Option<PixelResult>,
    mistakes: Vec<Mistake>,
    mistakes_left_out: (usize, usize),
    variants: Vec<Variant>,
    examples: Vec<Example>,
    courses: Vec<CourseCurve>,
    panel: Option<Panel>,
    caveats: Vec<String>,
}

/// How cells are judged.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Method {
    /// Semi-orthogonal embedding, Mahalanobis distance, score, threshold.
    Threshold,
    /// As above up to the heatmap, and the classifier on it.
    Semacnn,
    /// One of the paper's other systems.
    System(System),
}

impl Method {
    fn all() -> impl Iterator<Item = Self> {
        [Self::Threshold, Self::Semacnn].into_iter().chain(System::ALL.into_iter().map(Self::System))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Threshold => "threshold",
            Self::Semacnn => "semacnn",
            Self::System(system) => system.name(),
        }
    }
}

impl std::str::FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::all().find(|method| method.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::all().map(Self::name).collect();
            format!("no such method; there are {}", names.join(", "))
        })
    }
}

/// Evaluates.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Some(data) = args.data.as_ref().filter(|_| !args.systems) else {
        return systems::table(args.json);
    };
    if let Some(path) = &args.report {
        shared::check_writable(path)?;
    }
    let (dataset, whole_frame) = shared::open_data(data, args.data_dir.as_deref())?;
    dataset.require_labels()?;
    let model = args.model.as_deref().map(Model::open).transpose()?;
    let settings = match &model {
        Some(model) if args.per_type => {
            bail!(
                "--per-type fits each type apart, but the model (of {}) is fitted: leave one of them out",
                &model.header().provenance.data
            )
        }
        Some(model) => {
            args.settings.refuse("the model's were fixed when it was fitted")?;
            model.header().settings.clone()
        }
        None => args.settings.settings(whole_frame)?,
    };
    let goal = if args.goal == "f1" { Goal::F1 } else { Goal::Accuracy };
    let questions = Binarisation::applicable(dataset.items.iter().filter_map(|item| item.label.as_ref()));
    let Some(&main) = questions.get(1).or(questions.first()) else {
        bail!("{} has no two kinds of label to tell apart", dataset.name);
    };
    if args.method != Method::Semacnn && (args.ablate || args.judging != Judging::default()) {
        bail!("--ablate and the training of the classifier are for --method semacnn");
    }
    let interrupted = shared::interrupt()?;
    let evaluate = |seed: u64| -> anyhow::Result<Outcome> {
        let folds = folds::stratified(&dataset.items, args.folds.into(), seed)?;
        if seed == args.split_seed {
            folds.notes.iter().take(3).for_each(|note| eprintln!("note: {note}"));
            if folds.notes.len() > 3 {
                eprintln!("note: and {} more such groups", folds.notes.len() - 3);
            }
        }
        let task = Task {
            model: model.as_ref(),
            dataset: &dataset,
            folds: &folds,
            questions: &questions,
            main,
            goal,
            settings: &settings,
            interrupted: &interrupted,
        };
        match args.method {
            Method::System(system) => systems::evaluate(system, &args, &task),
            Method::Threshold | Method::Semacnn => {
                args.training.refuse()?;
                let method = if args.method == Method::Semacnn { semacnn::evaluate } else { threshold::evaluate };
                method(&args, &task)
            }
        }
    };
    let outcome = evaluate(args.split_seed)?;
    let mut repeats = Vec::new();
    for seed in (args.split_seed..).take(args.seeds.into()).skip(1) {
        repeats.push(Repeat { seed, binarisations: evaluate(seed)?.binarisations });
    }
    let caveats = if whole_frame { ELPV_CAVEATS.map(String::from).to_vec() } else { Vec::new() };
    let mut shown = vec![Setting::new("method", args.method.name())];
    shown.extend(outcome.settings);
    let result = EvalResult {
        tool: format!("cellgate {}", env!("CARGO_PKG_VERSION")),
        created: shared::rfc3339(shared::now()),
        data: dataset.name.clone(),
        images: dataset.items.len(),
        counts: dataset.counts(),
        settings: shown,
        folds: args.folds.into(),
        seed: args.split_seed,
        threshold_goal: goal,
        invalid: outcome.invalid,
        binarisations: outcome.binarisations,
        pixel: outcome.pixel,
        variants: outcome.variants,
        repeats,
        caveats: caveats.into_iter().chain(outcome.caveats).collect(),
    };
    if let Some(path) = &args.report {
        let (mistakes, mistakes_left_out) = (outcome.mistakes, outcome.mistakes_left_out);
        let page = EvalReport {
            result: result.clone(),
            mistakes_of: main.title().into(),
            mistakes,
            mistakes_left_out,
            variants: result.variants.iter().map(row).collect(),
            examples: outcome.examples,
            courses: outcome.courses,
            panel: outcome.panel,
        };
        report::save(path, &page.html())?;
        eprintln!("{} written", path.display());
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else {
        print(&result, &outcome.notes);
    }
    Ok(())
}

/// A variant as the page shows it.
fn row(variant: &Variant) -> VariantRow {
    let figures = variant.binarisations.iter().map(|b| (b.title.clone(), b.groups[0].mean));
    VariantRow { name: variant.name.clone(), figures: figures.collect() }
}

/// A share as percent.
fn share(x: Option<f64>) -> String {
    x.map_or("    –".into(), |x| format!("{:5.1}", 100.0 * x))
}

/// What a person reads; `notes` has a line for each question, or none.
fn print(result: &EvalResult, notes: &[String]) {
    let mut notes = notes.iter();
    println!("{}: {} images, {} folds", result.data, result.images, result.folds);
    for binarisation in &result.binarisations {
        println!("\n{}", binarisation.title);
        println!("  {:<18}{:>7}{:>7}{:>7}{:>7}{:>7}{:>7}", "", "acc", "prec", "recall", "F1", "AUROC", "AUPR");
        for group in &binarisation.groups {
            let row = |name: &str, f: &Figures| {
                let figures: String = f.values().map(|v| format!("{:>7}", share(v))).concat();
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
        if let Some(note) = notes.next() {
            println!("    {note}");
        }
    }
    print_repeats(result);
    print_variants(result);
    if let Some(pixel) = &result.pixel {
        println!("\npixels: AUROC {}, AUPRO {} over {} regions", share(pixel.auroc), share(pixel.aupro), pixel.regions);
    }
    if !result.invalid.is_empty() {
        println!("\nnot judged: {:?}", result.invalid);
    }
    println!();
    result.caveats.iter().for_each(|caveat| println!("note: {caveat}"));
}

/// Mean and spread of the figures over all splits.
fn print_repeats(result: &EvalResult) {
    if result.repeats.is_empty() {
        return;
    }
    let seeds = 1 + result.repeats.len();
    println!("\nover {seeds} splits: mean ± standard deviation, and the worst fold of all");
    for (at, binarisation) in result.binarisations.iter().enumerate() {
        let all = || std::iter::once(binarisation).chain(result.repeats.iter().map(|r| &r.binarisations[at]));
        println!("  {}", binarisation.title);
        for (column, name) in FIGURE_NAMES.iter().enumerate() {
            let means: Vec<f64> = all().filter_map(|b| b.groups[0].mean.values()[column]).collect();
            let worst = all().filter_map(|b| b.groups[0].worst.values()[column]).reduce(f64::min);
            let mean = means.iter().sum::<f64>() / means.len() as f64;
            let spread = (means.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (means.len() as f64 - 1.0)).sqrt();
            println!("    {name:<10} {:5.1} ± {:.1}, worst {}", 100.0 * mean, 100.0 * spread, share(worst));
        }
    }
}

/// A table of the ablation.
fn print_variants(result: &EvalResult) {
    if result.variants.is_empty() {
        return;
    }
    println!("\nablation: accuracy, F1, AUROC of each question");
    let titles: Vec<&str> = result.binarisations.iter().map(|b| b.binarisation.name()).collect();
    println!("  {:<34}{}", "", titles.iter().map(|title| format!("{title:>19}")).collect::<String>());
    for variant in &result.variants {
        let figures: String = variant
            .binarisations
            .iter()
            .map(|b| {
                let all = &b.groups[0].mean;
                format!("  {} {} {}", share(all.accuracy), share(all.f1), share(all.auroc))
            })
            .collect();
        println!("  {:<34}{figures}", variant.name);
    }
}
