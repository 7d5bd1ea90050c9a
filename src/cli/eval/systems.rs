//! The paper's other systems as methods.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::bail;

use super::super::shared;
use super::{Args, Outcome, Task};
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
    /// Side of the images that the system is fitted to; the cell is rectified to 256×256 and averaged down [default: 64].
    #[arg(long, value_name = "PIXELS", value_parser = ["32", "64", "128", "256"])]
    side: Option<String>,

    /// Times that each training image is seen.
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
    let workers = Workers::new(args.engine.threads());
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
    let fitted: Vec<String> = evaluation.folds.iter().map(|fold| fold.fitted.to_string()).collect();
    Ok(Outcome {
        settings: vec![
            Setting::new("image", format!("{side}×{side}")),
            Setting::new("epochs", training.epochs),
            Setting::new("fitted to, fold by fold", fitted.join(", ")),
            Setting::new("seed", settings.seed),
            Setting::new("seconds", started.elapsed().as_secs()),
        ],
        invalid,
        binarisations: questions.iter().map(|&question| judge(question, &evaluation, task)).collect(),
        ..Outcome::default()
    })
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
