//! `cellgate eval`: how good is it, by cross-validation on labelled cells.
//!
//! What all methods share is here: the data, the folds, the questions, and what is said at the end. Each method has a
//! room that gives an [`Outcome`].

mod gallery;
mod systems;
mod threshold;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::bail;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::shared::{self, Engine, FitSettings};
use crate::baseline::System;
use crate::eval::dataset::Dataset;
use crate::eval::folds::{self, Binarisation, Folds};
use crate::eval::metrics::Goal;
use crate::eval::pixel::PixelResult;
use crate::eval::report::{self, EvalReport, Mistake};
use crate::eval::result::{BinarisationResult, ELPV_CAVEATS, EvalResult, Figures, Setting};
use crate::model::Settings;

/// Evaluate a method on labelled cells by stratified cross-validation.
///
/// Method `threshold`: for each fold the statistics come from the good cells of the other folds, and the threshold from
/// training cells that were measured by statistics without their own fold.
///
/// The paper's other systems are fitted from nothing on four fifths of a fold's training cells; the other fifth (of each
/// label and type) chooses thresholds and epochs. `svd` and `k-means` reconstruct good cells, and what is left over
/// decides.
///
/// No test cell has a say in anything. Cells that cannot be judged count as rejected.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cellgate eval --data elpv --report elpv.html
  cellgate eval --data cells --json > cells.json
  cellgate eval --data elpv --stages 2,3 --shrinkage ledoit-wolf
  cellgate eval --data elpv --method svd")]
pub struct Args {
    /// Labelled data: a folder with a labels.csv, or `elpv`.
    #[arg(long, value_name = "DIR|elpv")]
    data: PathBuf,

    /// How cells are judged.
    #[arg(long, default_value = "threshold", value_name = "NAME", value_parser = method_parser())]
    method: Method,

    /// Folds.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=20))]
    folds: u16,

    /// Seed of the split into folds.
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    split_seed: u64,

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
}

/// Takes the names of methods, and lists them in the help.
fn method_parser() -> impl TypedValueParser<Value = Method> {
    PossibleValuesParser::new(Method::all().map(Method::name)).try_map(|name| name.parse::<Method>())
}

/// What every method starts from.
#[derive(Clone, Copy)]
struct Task<'a> {
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
    caveats: Vec<String>,
}

/// How cells are judged.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Method {
    /// Semi-orthogonal embedding, Mahalanobis distance, score, threshold.
    Threshold,
    /// One of the paper's other systems.
    System(System),
}

impl Method {
    fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Threshold).chain(System::ALL.into_iter().map(Self::System))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Threshold => "threshold",
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
    if let Some(path) = &args.report {
        shared::check_writable(path)?;
    }
    let (dataset, whole_frame) = shared::open_data(&args.data, args.data_dir.as_deref())?;
    dataset.require_labels()?;
    let settings = args.settings.settings(whole_frame)?;
    let goal = if args.goal == "f1" { Goal::F1 } else { Goal::Accuracy };
    let questions = Binarisation::applicable(dataset.items.iter().filter_map(|item| item.label.as_ref()));
    let Some(&main) = questions.get(1).or(questions.first()) else {
        bail!("{} has no two kinds of label to tell apart", dataset.name);
    };
    let folds = folds::stratified(&dataset.items, args.folds.into(), args.split_seed)?;
    folds.notes.iter().take(3).for_each(|note| eprintln!("note: {note}"));
    if folds.notes.len() > 3 {
        eprintln!("note: and {} more such groups", folds.notes.len() - 3);
    }
    let interrupted = shared::interrupt()?;
    let task = Task {
        dataset: &dataset,
        folds: &folds,
        questions: &questions,
        main,
        goal,
        settings: &settings,
        interrupted: &interrupted,
    };
    let outcome = match args.method {
        Method::Threshold => {
            args.training.refuse()?;
            threshold::evaluate(&args, &task)?
        }
        Method::System(system) => systems::evaluate(system, &args, &task)?,
    };
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
        folds: folds.k(),
        seed: folds.seed,
        threshold_goal: goal,
        invalid: outcome.invalid,
        binarisations: outcome.binarisations,
        pixel: outcome.pixel,
        caveats: caveats.into_iter().chain(outcome.caveats).collect(),
    };
    if let Some(path) = &args.report {
        let (mistakes, mistakes_left_out) = (outcome.mistakes, outcome.mistakes_left_out);
        let page = EvalReport {
            result: result.clone(),
            mistakes_of: main.title().into(),
            mistakes,
            mistakes_left_out,
            ..EvalReport::default()
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
    if let Some(pixel) = &result.pixel {
        println!("\npixels: AUROC {}, AUPRO {} over {} regions", share(pixel.auroc), share(pixel.aupro), pixel.regions);
    }
    if !result.invalid.is_empty() {
        println!("\nnot judged: {:?}", result.invalid);
    }
    println!();
    result.caveats.iter().for_each(|caveat| println!("note: {caveat}"));
}
