//! The paper's other systems as methods.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::bail;

use super::super::shared;
use super::{Args, Outcome, Task};
use crate::baseline::systems::{self, At};
use crate::baseline::{self, Cells, Evaluation, FoldAnswers, Images, System};
use crate::eval::folds::Binarisation;
use crate::eval::metrics::Ranking;
use crate::eval::result::{BinarisationResult, Method, Scored, Setting};
use crate::model::Settings;
use crate::workers::Workers;

/// How the other systems are trained.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Training of the other systems")]
pub struct Training {
    /// Side of the images that the system is fitted to: the cell is rectified to 256×256 and averaged down [default: 64;
    /// 32 for vgg11 and resnext101].
    #[arg(long, value_name = "PIXELS", value_parser = ["32", "64", "128", "256"])]
    side: Option<String>,

    /// Times that each training image is seen [default: 15 for the autoencoder, 10 for resnet50, 8 for vgg11, 6 for
    /// resnext101].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    epochs: Option<u32>,
}

impl Training {
    /// Refuses options that would do nothing.
    pub fn refuse(&self) -> anyhow::Result<()> {
        if self.side.is_some() || self.epochs.is_some() {
            bail!("--side and --epochs are for the other systems: give a --method, or set --size for this one");
        }
        Ok(())
    }
}

/// Evaluates one of them.
pub fn evaluate(system: System, args: &Args, task: &Task<'_>) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let Task { dataset, folds, questions, settings, interrupted, .. } = *task;
    let plain = Settings { preprocess: settings.preprocess.clone(), seed: settings.seed, ..Settings::default() };
    if *settings != plain || args.per_type || args.engine.backbone.is_some() {
        bail!(
            "the method {} takes --side, --epochs, --seed and --preprocess; the other settings of a fit, --backbone and \
             --per-type are for the method threshold: leave them out",
            system.name()
        );
    }
    if args.training.epochs.is_some() && !system.has_epochs() {
        bail!("--epochs: {} is not trained epoch by epoch; leave it out", system.name());
    }
    let (side, epochs) = system.usual();
    let side = args.training.side.as_ref().map_or(Ok(side), |side| side.parse())?;
    let training =
        baseline::Settings { epochs: args.training.epochs.unwrap_or(epochs), batch: 32, seed: settings.seed };
    let paths: Vec<&Path> = dataset.items.iter().map(|item| item.path.as_path()).collect();
    let bar =
        shared::bar(paths.len() as u64 + baseline::work(system, &dataset.items, folds.k(), &training), "evaluating");
    let tick = |step| {
        bar.inc(step);
        shared::go_on(interrupted)
    };
    let workers = Arc::new(Workers::new(args.engine.threads()));
    let images = Images::read(&paths, side, &settings.preprocess, &workers, &tick)?;
    let cells = Cells { images: &images, items: &dataset.items, folds };
    let evaluation = baseline::evaluate(system, cells, &training, &workers, &tick)?;
    bar.finish_and_clear();
    let mut invalid = BTreeMap::new();
    for (_, answer) in evaluation.folds.iter().flat_map(|fold| &fold.test) {
        if let Err(reason) = answer {
            *invalid.entry(reason.name().to_string()).or_insert(0) += 1;
        }
    }
    let mut shown = vec![Setting::new("image", format!("{side}×{side}"))];
    let each =
        |value: &dyn Fn(&FoldAnswers) -> String| evaluation.folds.iter().map(value).collect::<Vec<_>>().join(", ");
    if system.has_epochs() {
        shown.push(Setting::new("epochs", training.epochs));
        shown.push(Setting::new("batch", training.batch));
    }
    if system.is_supervised() {
        let best = each(&|fold| fold.best_epoch.map_or_else(|| "none".into(), |epoch| epoch.to_string()));
        shown.push(Setting::new("best epoch, fold by fold", best));
    }
    shown.push(Setting::new("fitted to, fold by fold", each(&|fold| fold.fitted.to_string())));
    shown.push(Setting::new("seed", settings.seed));
    shown.push(Setting::new("seconds", started.elapsed().as_secs()));
    let caveat = format!(
        "{} was trained from nothing on images of {side}×{side} pixels for {} epochs: far less than the paper's systems, \
         so that two cores are enough. Its figures say what this much training gives, not what the network can do.",
        system.name(),
        training.epochs
    );
    Ok(Outcome {
        settings: shown,
        invalid,
        binarisations: questions.iter().map(|&question| judge(question, &evaluation, task)).collect(),
        caveats: if system.has_epochs() { vec![caveat] } else { Vec::new() },
        ..Outcome::default()
    })
}

/// Prints what each system costs.
pub fn table(json: bool) -> anyhow::Result<()> {
    let rows = systems::table()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let cost = |at: &At| {
        let millions = |count: u64| format!("{:.3}", count as f64 / 1e6);
        let side = format!("{0}×{0}", at.side);
        format!("{side:>9}{:>12}{:>12}", millions(at.cost.parameters), millions(at.cost.multiply_adds))
    };
    println!("Millions of parameters and of multiply-adds an image, at full size and as eval fits it by default\n");
    let head = format!("{:>9}{:>12}{:>12}", "image", "parameters", "mult-adds");
    println!("{:<22}{head}{head}", "");
    for row in &rows {
        let here = row.here.as_ref().map_or_else(|| format!("{:>33}", "the same"), cost);
        println!("{:<22}{}{here}", row.system, cost(&row.full));
    }
    println!("\nsemacnn and threshold: ResNet18 with folded norms, projection (dense as published, sparse here) and");
    println!("Mahalanobis distance; semacnn also the classifier of heatmaps.");
    println!("Networks for photographs have 3 planes and 1000 classes as published, 1 plane and 4 classes here.");
    Ok(())
}

/// The figures of one question.
fn judge(question: Binarisation, evaluation: &Evaluation, task: &Task<'_>) -> BinarisationResult {
    let items = &task.dataset.items;
    let target = |index: usize| items[index].label.as_ref().and_then(|label| question.target(label));
    let threshold = |fold: &FoldAnswers| {
        let asked = fold
            .held_out
            .iter()
            .filter_map(|(index, answer)| Some((evaluation.score(answer, question), target(*index)?)));
        let (scores, targets): (Vec<f32>, Vec<bool>) = asked.unzip();
        Ranking::new(&scores, &targets).best_threshold(task.goal).unwrap_or(f32::INFINITY)
    };
    let thresholds: Vec<f32> = evaluation.folds.iter().map(threshold).collect();
    // Defect kinds are no groups to compare: a good cell has none.
    let grouped = items.iter().all(|item| item.kind.is_some());
    let scored = evaluation.folds.iter().flat_map(|fold| {
        fold.test.iter().filter_map(move |(index, answer)| {
            Some(Scored {
                fold: fold.fold,
                score: evaluation.score(answer, question),
                target: target(*index)?,
                kind: items[*index].kind.as_deref().filter(|_| grouped),
            })
        })
    });
    BinarisationResult::new(question, &scored.collect::<Vec<_>>(), &thresholds, Method::default())
}
