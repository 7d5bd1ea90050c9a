//! The method `semacnn`: heatmaps as for `threshold`, and the classifier on them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use anyhow::bail;

use super::super::shared;
use super::pictures::{self, Drawn};
use super::threshold::{self, Measured};
use super::{Args, Outcome, Task};
use crate::classifier::evidence::{Evidence, Witness};
use crate::classifier::judge::{self, Bench, Cells, Event, JudgeSettings, Opinion, Taught, logistic};
use crate::classifier::kernel::Uses;
use crate::classifier::planes::Planes;
use crate::eval::dataset::Label;
use crate::eval::folds::Binarisation;
use crate::eval::metrics::{Goal, Ranking};
use crate::eval::report::CourseCurve;
use crate::eval::result::{BinarisationResult, Method, Scored, Setting, Variant};
use crate::pipeline::crossval::FoldCell;
use crate::pipeline::{Outcomes, Scorer};
use crate::simd::Isa;
use crate::verdict::Class;
use crate::workers::Workers;

/// What was seen of the cells: of each once its image and features, by each number of views; in each fold its heatmap.
pub(super) struct Seen {
    /// For each number of views, for each cell.
    views: Vec<(usize, Vec<Option<Evidence>>)>,
    /// For each fold, for each cell: the heatmap's plane, and its statistics.
    pub(super) heat: Vec<Vec<Option<Evidence>>>,
}

impl Seen {
    /// What a judge of a fold sees of a cell; `None` if the cell could not be measured.
    fn evidence(&self, fold: usize, index: usize, views: usize) -> Option<Evidence> {
        let (_, looks) = self.views.iter().find(|(count, _)| *count == views)?;
        let (look, heat) = (looks[index].as_ref()?, self.heat[fold][index].as_ref()?);
        let planes: Vec<f32> = heat.planes.iter().chain(&look.planes[..]).copied().collect();
        let row: Vec<f32> = look.row.iter().chain(&heat.row[..]).copied().collect();
        Some(Evidence { planes: planes.into(), row: row.into() })
    }
}

/// Evaluates it.
pub fn evaluate(args: &Args, task: &Task<'_>) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let Task { dataset, folds, questions, settings, interrupted, .. } = *task;
    let wanted = args.judging.settings()?;
    let labels: Vec<usize> = dataset.items.iter().filter_map(|item| item.label.as_ref()).map(Label::severity).collect();
    let mut levels = labels.clone();
    levels.sort_unstable();
    levels.dedup();
    if labels.len() != dataset.items.len() {
        bail!("--method semacnn: {} of {} cells have no label", dataset.items.len() - labels.len(), labels.len());
    }
    let variants = if args.ablate { ablations(&wanted) } else { Vec::new() };
    let mut counts: Vec<usize> =
        variants.iter().map(|(_, s)| s.views as usize).chain([wanted.views as usize]).collect();
    counts.sort_unstable();
    counts.dedup();

    let (cells, k) = (dataset.items.len(), folds.k());
    let courses = (1 + variants.len()) * k;
    let bar =
        shared::bar(threshold::images(args, task)? + (courses as u64) * u64::from(wanted.learn.steps), "evaluating");
    let looks: Vec<Outcomes<Evidence>> = counts.iter().map(|_| Outcomes::new(cells)).collect();
    let heat: Vec<Outcomes<Evidence>> = (0..k).map(|_| Outcomes::new(cells)).collect();
    let size = (settings.size as usize, settings.grid as usize, settings.k as usize);
    let mut measured = threshold::measure(args, task, &bar, |fold, index, scorer| {
        let mut witness = Witness::new(size.0, size.1, size.2, wanted.side, Isa::detect());
        if fold > 0 {
            witness.see_heatmap(scorer.heatmap());
        }
        for (&views, looks) in counts.iter().zip(&looks).filter(|_| fold == 0) {
            if look(scorer, &mut witness, views).is_some() {
                looks.set(index, witness.of_image());
            }
        }
        heat[fold].set(index, witness.of_heatmap());
    })?;
    let seen = Seen {
        views: counts.iter().copied().zip(looks.into_iter().map(|o| o.into_all().collect())).collect(),
        heat: heat.into_iter().map(|o| o.into_all().collect()).collect(),
    };

    let level: Vec<usize> = labels.iter().filter_map(|label| levels.binary_search(label).ok()).collect();
    let workers = Arc::new(Workers::new(args.engine.threads()));
    let judged = Judged { args, task, measured: &measured, seen: &seen, level: &level, levels: &levels };
    let mut tick = |steps| {
        bar.inc(steps);
        shared::go_on(interrupted)
    };
    let mut rows = Vec::new();
    for (name, settings) in &variants {
        let binarisations = judged.run(settings, &workers, &mut tick)?.binarisations;
        rows.push(Variant { name: name.clone(), binarisations });
    }
    let found = judged.run(&wanted, &workers, &mut tick)?;
    if !rows.is_empty() {
        rows.push(Variant { name: "as evaluated".into(), binarisations: found.binarisations.clone() });
    }
    let chosen = args.report.is_some().then(|| pictures::choose(&judged, &found));
    let drawn = match chosen {
        Some(chosen) => chosen.draw(&mut measured, &seen, task)?,
        None => Drawn::default(),
    };
    bar.finish_and_clear();

    let mut shown =
        threshold::shown_settings(settings, &measured.backbone, measured.identity, args.per_type, started.elapsed());
    shown.extend(shown_judge(&wanted));
    let kept: Vec<String> = found.taught.iter().filter_map(|t| t.best_step).map(|step| step.to_string()).collect();
    if !kept.is_empty() {
        shown.push(Setting::new("kept steps, fold by fold", kept.join(", ")));
    }
    Ok(Outcome {
        settings: shown,
        invalid: threshold::invalid(&measured.cells, &measured.results),
        notes: questions.iter().map(|_| String::new()).collect(),
        binarisations: found.binarisations,
        variants: rows,
        pixel: measured.pixel,
        courses: found.taught.iter().enumerate().filter(|(_, t)| !t.history.is_empty()).map(course).collect(),
        examples: drawn.examples,
        panel: drawn.panel,
        ..Outcome::default()
    })
}

/// How the training of a fold went.
fn course((fold, taught): (usize, &Taught)) -> CourseCurve {
    CourseCurve {
        name: format!("fold {}", fold + 1),
        batch: taught.history.iter().map(|record| (record.step, record.accuracy)).collect(),
        validation: taught
            .history
            .iter()
            .filter_map(|record| record.validation.map(|v| (record.step, v.accuracy, v.f1)))
            .collect(),
        kept: taught.best_step,
    }
}

fn look(scorer: &mut Scorer, witness: &mut Witness, views: usize) -> Option<()> {
    // The views counted before this have left another view's features in the pyramid.
    if views > 1 {
        scorer.project().ok()?;
    }
    scorer.show(witness, views).ok()
}

/// The variants of the ablation: each part alone, and what it sees. Both parts together are what is evaluated beside them.
fn ablations(full: &JudgeSettings) -> Vec<(String, JudgeSettings)> {
    let with =
        |name: &str, planes, kernel, views| (name.to_string(), JudgeSettings { planes, kernel, views, ..full.clone() });
    vec![
        with("network, heatmap", Some(Planes::Heatmap), None, 1),
        with("network, heatmap and image", Some(Planes::HeatmapAndImage), None, 1),
        with("kernel, heatmap statistics", None, Some(Uses::Heat), 1),
        with("kernel, pooled features", None, Some(Uses::Pooled), 1),
        with("kernel, both", None, Some(Uses::Both), 1),
        with("kernel, both, 2 views", None, Some(Uses::Both), 2),
        with("kernel, both, 4 views", None, Some(Uses::Both), 4),
    ]
}

fn shown_judge(settings: &JudgeSettings) -> Vec<Setting> {
    let mut shown = vec![
        Setting::new("network sees", settings.planes.map_or("not asked".into(), |p| format!("{p:?}"))),
        Setting::new("kernel machine sees", settings.kernel.map_or("not asked".into(), |u| format!("{u:?}"))),
        Setting::new("views", settings.views),
        Setting::new("validation share", settings.validation),
        Setting::new("training seed", settings.learn.seed),
    ];
    if settings.planes.is_some() {
        let learn = &settings.learn;
        shown.push(Setting::new("side of its planes", settings.side));
        shown.push(Setting::new("flips", settings.flips));
        shown.push(Setting::new("steps", format!("{} of {} cells, rate {}", learn.steps, learn.batch, learn.lr)));
        shown.push(Setting::new("balance", learn.balance));
    }
    shown
}

/// All that judging needs.
pub(super) struct Judged<'a> {
    args: &'a Args,
    pub(super) task: &'a Task<'a>,
    pub(super) measured: &'a Measured,
    seen: &'a Seen,
    pub(super) level: &'a [usize],
    /// The severities there are, rising.
    levels: &'a [usize],
}

/// What a way of judging gives.
pub(super) struct Found {
    taught: Vec<Taught>,
    folds: Vec<Fold>,
    binarisations: Vec<BinarisationResult>,
}

/// A fold: what the judge says of its test cells, and of the cells that it was calibrated on.
struct Fold {
    /// For every cell of the data set, none if it is no test cell or cannot be judged.
    test: Vec<Option<Opinion>>,
    /// Cells and opinions.
    calibration: Vec<(usize, Opinion)>,
}

impl Judged<'_> {
    fn run(
        &self,
        settings: &JudgeSettings,
        workers: &Arc<Workers>,
        tick: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> anyhow::Result<Found> {
        let mut taught = Vec::new();
        let mut folds = Vec::new();
        for fold in 0..self.task.folds.k() {
            let (judge, answers) = self.fold(fold, settings, workers, tick)?;
            taught.push(judge);
            folds.push(answers);
        }
        let questions = self.task.questions.iter();
        let binarisations = questions.map(|&question| self.answers(question, &folds)).collect();
        Ok(Found { taught, folds, binarisations })
    }

    fn fold(
        &self,
        fold: usize,
        settings: &JudgeSettings,
        workers: &Arc<Workers>,
        tick: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> anyhow::Result<(Taught, Fold)> {
        let cells = &self.measured.cells;
        let views = settings.views as usize;
        let evidence = |index: usize| self.seen.evidence(fold, index, views);
        let training: Vec<(usize, Evidence)> = (0..cells.len())
            .filter(|&index| cells[index].fold != fold)
            .filter_map(|index| Some((index, evidence(index)?)))
            .collect();
        let pick = |of: &dyn Fn(usize) -> usize| training.iter().map(|(index, _)| of(*index)).collect::<Vec<_>>();
        let (level, kind, group) =
            (pick(&|i| self.level[i]), pick(&|i| self.measured.kinds[i]), pick(&|i| cells[i].fold));
        let seen: Vec<&Evidence> = training.iter().map(|(_, seen)| seen).collect();
        let given = Cells { evidence: &seen, level: &level, kind: &kind, group: &group, levels: self.levels.len() };
        let mut done = 0;
        let taught = judge::fit(&given, settings, &self.measured.network, None, workers, |event| match event {
            Event::Step(record, _) => {
                done = record.step;
                tick(1)
            }
            Event::Kernel => tick(0),
        })?;
        let _ = tick(u64::from(self.args.judging.settings()?.learn.steps).saturating_sub(done));
        let mut bench = Bench::new(Arc::new(taught.judge.clone()), Isa::detect(), Arc::clone(workers))?;
        let test = (0..cells.len())
            .map(|index| {
                let seen = evidence(index).filter(|_| cells[index].fold == fold)?;
                bench.weigh(&seen.planes, &seen.row, self.measured.kinds[index])
            })
            .collect();
        let calibration = taught.calibration.iter().map(|&(at, opinion)| (training[at].0, opinion)).collect();
        Ok((taught, Fold { test, calibration }))
    }

    /// The log-odds of a question, averaged over its borders.
    fn score(&self, question: Binarisation, opinion: &Opinion) -> f32 {
        let asked = &opinion.logits()[borders(question, self.levels)];
        asked.iter().sum::<f32>() / asked.len() as f32
    }

    /// Each fold's threshold for a question.
    fn thresholds(&self, question: Binarisation, folds: &[Fold]) -> Vec<f32> {
        let threshold = |fold: &Fold| {
            let asked = fold
                .calibration
                .iter()
                .filter_map(|(index, opinion)| Some((self.score(question, opinion), self.target(question, *index)?)));
            let (scores, targets): (Vec<f32>, Vec<bool>) = asked.unzip();
            match self.task.goal {
                Goal::Accuracy => even_odds(&scores, &targets),
                Goal::F1 => Ranking::new(&scores, &targets).best_threshold(Goal::F1).unwrap_or(f32::INFINITY),
            }
        };
        folds.iter().map(threshold).collect()
    }

    fn target(&self, question: Binarisation, index: usize) -> Option<bool> {
        self.task.dataset.items[index].label.as_ref().and_then(|label| question.target(label))
    }

    /// The log-odds of every test cell for a question, and how far they are above its fold's threshold; NaN if it cannot
    /// be judged.
    pub(super) fn decisions(&self, question: Binarisation, found: &Found) -> Vec<(f32, f32)> {
        let thresholds = self.thresholds(question, &found.folds);
        let cells = self.measured.cells.iter().enumerate();
        let decide = |(index, cell): (usize, &FoldCell)| {
            let opinion = found.folds[cell.fold].test[index].as_ref();
            let odds = opinion.map_or(f32::NAN, |opinion| self.score(question, opinion));
            (odds, odds - thresholds[cell.fold])
        };
        cells.map(decide).collect()
    }

    /// The answers to a question.
    fn answers(&self, question: Binarisation, folds: &[Fold]) -> BinarisationResult {
        let items = &self.task.dataset.items;
        let thresholds = self.thresholds(question, folds);
        // Defect kinds are no groups to compare: a good cell has none.
        let grouped = items.iter().all(|item| item.kind.is_some());
        let scored = items.iter().zip(&self.measured.cells).enumerate().filter_map(|(index, (item, cell))| {
            let opinion = folds[cell.fold].test[index].as_ref();
            Some(Scored {
                fold: cell.fold,
                score: opinion.map_or(f32::NAN, |opinion| self.score(question, opinion)),
                target: self.target(question, index)?,
                kind: item.kind.as_deref().filter(|_| grouped),
            })
        });
        BinarisationResult::new(question, &scored.collect::<Vec<_>>(), &thresholds, Method::default())
    }
}

/// The borders between the mildest defective level and the gravest good one of a question.
fn borders(question: Binarisation, levels: &[usize]) -> std::ops::Range<usize> {
    let answer = |severity: usize| match question {
        Binarisation::AnyDoubt | Binarisation::Likely | Binarisation::Certain => {
            question.target(&Label::Probability([0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0][severity]))
        }
        Binarisation::AnyDefect | Binarisation::Usable | Binarisation::Clear => {
            question.target(&Label::Class([Class::A, Class::B, Class::C][severity.min(2)]))
        }
    };
    let answers: Vec<Option<bool>> = levels.iter().map(|&severity| answer(severity)).collect();
    let good = answers.iter().rposition(|a| *a == Some(false)).unwrap_or(0);
    let defective = answers.iter().position(|a| *a == Some(true)).unwrap_or(levels.len() - 1);
    good.min(defective - 1)..defective
}

/// The score at which a cell is as likely defective as not.
fn even_odds(scores: &[f32], targets: &[bool]) -> f32 {
    let (weights, shift) = logistic::fit(&[scores.iter().map(|&s| f64::from(s)).collect()], targets);
    if weights[0] > 0.0 { (-shift / weights[0]) as f32 } else { f32::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_lies_at_its_borders() {
        let elpv = [0, 1, 2, 3];
        assert_eq!(borders(Binarisation::AnyDoubt, &elpv), 0..1);
        assert_eq!(borders(Binarisation::Likely, &elpv), 1..2);
        assert_eq!(borders(Binarisation::Certain, &elpv), 0..3);
        assert_eq!(borders(Binarisation::Likely, &[0, 3]), 0..1);
        assert_eq!(borders(Binarisation::AnyDefect, &[0, 1, 2]), 0..1);
        assert_eq!(borders(Binarisation::Usable, &[0, 1, 2]), 1..2);
        assert_eq!(borders(Binarisation::Usable, &[0, 2]), 0..1);
        assert_eq!(borders(Binarisation::Clear, &[0, 1, 2]), 0..2);
    }

    #[test]
    fn even_odds_lie_between_the_classes() {
        let scores: Vec<f32> = (0..100).map(|i| i as f32 / 10.0).collect();
        let targets: Vec<bool> = (0..100).map(|i| i >= 60).collect();
        assert!((even_odds(&scores, &targets) - 6.0).abs() < 0.3);
    }
}
