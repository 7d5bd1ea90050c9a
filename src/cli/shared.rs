//! Options that several verbs share, and how progress looks.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::backbone::ResNet18;
use crate::backbone::cpu::CpuBackbone;
use crate::backbone::weights::Loaded;
use crate::clock;
use crate::embedding::{Mixing, Stages};
use crate::eval::dataset::{Dataset, LABELS_FILE};
use crate::eval::elpv;
use crate::gaussian::{Precision, Shrinkage};
use crate::heatmap::ScoreKind;
use crate::model::Settings;
use crate::pipeline::backend::{self, Backend, Engaged};
use crate::pipeline::fitting::{Cell, Fitter};
use crate::pipeline::{Extractor, Inspector, PipelineError};
use crate::preprocess::{AugmentConfig, PreprocessConfig, Threshold};
use crate::whole_file;
use crate::workers::Workers;

/// Which backbone, on how many threads.
#[derive(Debug, Clone, clap::Args)]
pub struct Engine {
    /// Backbone weights (.safetensors, .pth or .onnx of a ResNet18) instead of the built-in ones.
    #[arg(long, value_name = "FILE")]
    pub backbone: Option<PathBuf>,

    /// Threads to work on [default: one a core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
}

impl Engine {
    /// The weights and their name.
    pub fn weights(&self) -> anyhow::Result<(ResNet18, String)> {
        let loaded = match &self.backbone {
            Some(path) => Loaded::read(path)?,
            None => Loaded::embedded()?,
        };
        let name = Some(loaded.about.name.clone()).filter(|name| !name.is_empty()).or_else(|| {
            self.backbone.as_ref().and_then(|p| p.file_stem()).map(|stem| stem.to_string_lossy().into_owned())
        });
        Ok((loaded.network, name.unwrap_or_else(|| "unnamed".into())))
    }

    /// Threads to work on.
    pub fn threads(&self) -> usize {
        threads(self.threads)
    }

    /// One extractor a thread.
    pub fn fitter(&self, network: &ResNet18, settings: &Settings) -> anyhow::Result<Fitter> {
        let (size, stages) = (settings.size as usize, settings.stages);
        let first = CpuBackbone::for_stages(network, size, stages.0, &Arc::new(Workers::new(1)))?;
        let others: Vec<CpuBackbone> = (1..self.threads()).map(|_| first.another()).collect();
        let extractors = std::iter::once(first)
            .chain(others)
            .map(|backbone| {
                let mut extractor = Extractor::new(settings.preprocess.clone(), Box::new(backbone))?;
                extractor.want(stages);
                Ok(extractor)
            })
            .collect::<Result<Vec<_>, PipelineError>>()?;
        Ok(Fitter::new(extractors))
    }
}

/// What measures cells.
#[derive(Debug, Clone, clap::Args)]
pub struct Measuring {
    /// What measures cells: `auto` (an NVIDIA device if one can be used, else the CPU), `cpu`, or `cuda` (fails without a
    /// device).
    #[arg(long, value_name = "WHICH", default_value_t = Backend::Auto)]
    pub backend: Backend,

    /// The folder of the networks that `cellgate engine build` made for this device.
    #[arg(long, value_name = "DIR", default_value = backend::ENGINES)]
    pub engines: PathBuf,
}

impl Measuring {
    /// Puts it in front of the inspectors, and says on stderr what came of it unless that is plain: the CPU on a machine
    /// without NVIDIA's driver.
    pub fn engage(&self, network: &ResNet18, inspectors: &mut [Inspector]) -> anyhow::Result<()> {
        let engaged = backend::engage(self.backend, network, &self.engines, inspectors)?;
        if engaged.disappoints() || matches!(engaged, Engaged::Device(_)) {
            eprintln!("{engaged}");
        }
        Ok(())
    }
}

/// As many threads as were asked for, or one a core.
pub fn threads(asked: Option<u16>) -> usize {
    asked.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
}

/// Everything that decides what a fit computes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings of the fit")]
pub struct FitSettings {
    /// Side of the rectified image: a multiple of 32.
    #[arg(long, default_value_t = Settings::default().size, value_name = "PIXELS")]
    pub size: u32,

    /// Side of the heatmap's grid.
    #[arg(long, default_value_t = Settings::default().grid, value_name = "N")]
    pub grid: u32,

    /// Values of the embedding at a position.
    #[arg(short, long, default_value_t = Settings::default().k, value_name = "N")]
    pub k: u32,

    /// Stages of the network that take part.
    #[arg(long, default_value_t = Settings::default().stages, value_name = "LIST")]
    pub stages: Stages,

    /// How channels are mixed into the k values: `sparse` (each channel feeds one of them, cheap) or `dense` (each
    /// feeds all, as in the paper).
    #[arg(long, default_value_t = Settings::default().mixing, value_name = "KIND")]
    pub embedding: Mixing,

    /// Seed of the embedding, the augmentation and the choice of held-out cells.
    #[arg(long, default_value_t = Settings::default().seed)]
    pub seed: u64,

    /// Divide channels by their standard deviation over good cells before the embedding.
    #[arg(long)]
    pub standardise: bool,

    /// How the cell is found: `border` (dark background, straightened) or `none` (the image is the cell) [default:
    /// border; none for ELPV].
    #[arg(long, value_name = "HOW", value_parser = ["border", "none"])]
    pub preprocess: Option<String>,

    /// What belongs to the cell: a brightness of 255, or `otsu`; not with --preprocess none [default: 50].
    #[arg(long, value_name = "LEVEL", value_parser = threshold)]
    pub threshold: Option<Threshold>,

    /// Changed copies of each cell that are fitted beside it: flips (each p = 0.5) and a turn about the centre.
    #[arg(long, default_value_t = AugmentConfig::default().copies, value_name = "N")]
    pub copies: u32,

    /// Largest turn of a copy, in degrees.
    #[arg(long, default_value_t = AugmentConfig::default().max_angle_degrees, value_name = "DEGREES")]
    pub max_angle: f32,

    /// Turn copies by quarter turns as well.
    #[arg(long)]
    pub quarter_turns: bool,

    /// How covariances are made invertible: absolute:ε, relative:ε or ledoit-wolf.
    #[arg(long, default_value_t = Settings::default().shrinkage, value_name = "HOW")]
    pub shrinkage: Shrinkage,

    /// Keep the factors in single precision: twice the file and the time.
    #[arg(long)]
    pub f32: bool,

    /// Smoothing of the heatmap, in positions of the grid.
    #[arg(long, default_value_t = Settings::default().sigma, value_name = "SIGMA")]
    pub sigma: f32,

    /// The score of a cell: `top` (mean of the largest 1 %), `max` or `mean` of its heatmap.
    #[arg(long, default_value_t = Settings::default().score, value_name = "KIND")]
    pub score: ScoreKind,
}

/// How the score is calibrated.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings of the fit")]
pub struct HeldOut {
    /// Share of good cells that the threshold may reject.
    #[arg(long, default_value_t = Settings::default().overkill, value_name = "SHARE")]
    pub overkill: f64,

    /// Share of good cells kept out of the statistics to calibrate the score.
    #[arg(long, default_value_t = Settings::default().holdout, value_name = "SHARE")]
    pub holdout: f64,
}

impl HeldOut {
    /// The settings with these shares, checked.
    pub fn apply(&self, settings: Settings) -> anyhow::Result<Settings> {
        let settings = Settings { overkill: self.overkill, holdout: self.holdout, ..settings };
        settings.validate()?;
        Ok(settings)
    }
}

fn threshold(text: &str) -> Result<Threshold, String> {
    if text == "otsu" {
        return Ok(Threshold::Otsu);
    }
    match text.parse::<f32>() {
        Ok(level) if level > 0.0 && level < 255.0 => Ok(Threshold::Fixed(level / 255.0)),
        _ => Err(format!("`{text}` is neither `otsu` nor a brightness between 0 and 255")),
    }
}

impl FitSettings {
    /// The settings, checked; `whole_frame` says what to do where the command line is silent about the border step.
    pub fn settings(&self, whole_frame: bool) -> anyhow::Result<Settings> {
        let whole_frame = self.preprocess.as_ref().map_or(whole_frame, |how| how == "none");
        let preprocess = match (whole_frame, self.threshold) {
            (true, Some(_)) => {
                bail!(
                    "--threshold finds the cell's border, but the whole image is the cell: leave it out, or say --preprocess border"
                )
            }
            (true, None) => PreprocessConfig::whole_frame(),
            (false, level) => PreprocessConfig { threshold: level.unwrap_or_default(), ..PreprocessConfig::default() },
        };
        let settings = Settings {
            size: self.size,
            grid: self.grid,
            k: self.k,
            stages: self.stages,
            mixing: self.embedding,
            seed: self.seed,
            standardise: self.standardise,
            preprocess,
            augment: AugmentConfig {
                copies: self.copies,
                flips: true,
                max_angle_degrees: self.max_angle,
                quarter_turns: self.quarter_turns,
            },
            shrinkage: self.shrinkage,
            precision: if self.f32 { Precision::F32 } else { Precision::F16 },
            sigma: self.sigma,
            score: self.score,
            ..Settings::default()
        };
        settings.validate()?;
        Ok(settings)
    }

    /// Refuses settings of a fit where there is none, since they would do nothing.
    pub fn refuse(&self, why: &str) -> anyhow::Result<()> {
        let usual = Settings { preprocess: PreprocessConfig::default(), ..Settings::default() };
        if self.preprocess.is_some() || self.threshold.is_some() || self.settings(false)? != usual {
            bail!("settings of a fit (--size, --grid, --k, … ) would change nothing here: {why}; leave them out");
        }
        Ok(())
    }
}

/// A data set by folder, list or the word `elpv`; and whether its images are cells without a border.
pub fn open_data(data: &Path, data_dir: Option<&Path>) -> anyhow::Result<(Dataset, bool)> {
    if data.as_os_str() == "elpv" && !data.exists() {
        return Ok((elpv::open(&elpv::data_dir(data_dir)?)?, true));
    }
    let dataset = Dataset::open(data)?;
    let whole = dataset.root.file_name().is_some_and(|name| name == "elpv");
    Ok((dataset, whole))
}

/// The good cells of a data set, all of them if it has no labels; says on stderr which of the two it is.
pub fn good_cells(dataset: &Dataset) -> anyhow::Result<Vec<Cell>> {
    let (cells, all) = (select_good(dataset)?, dataset.items.len());
    match dataset.labels.as_slice() {
        [] => eprintln!("{}: no {LABELS_FILE} names its images: all {all} are taken as good", dataset.name),
        [file] => eprintln!("{}: {} of {all} cells are good by {}", dataset.name, cells.len(), file.display()),
        files => eprintln!("{}: {} of {all} cells are good by {} label files", dataset.name, cells.len(), files.len()),
    }
    Ok(cells)
}

/// The good cells of a data set, all of them if it has no labels.
pub fn select_good(dataset: &Dataset) -> anyhow::Result<Vec<Cell>> {
    let labelled = dataset.items.iter().any(|item| item.label.is_some());
    if let (Some(file), false) = (dataset.labels.first(), labelled) {
        bail!(
            "{} labels none of the {} images of {}: write what they are (file,label), or take it away if all are good",
            file.display(),
            dataset.items.len(),
            dataset.name
        );
    }
    let cells: Vec<Cell> = dataset
        .items
        .iter()
        .filter(|item| !labelled || item.label.is_some_and(|label| label.is_good()))
        .map(|item| Cell::file(&item.id, &item.path))
        .collect();
    if cells.is_empty() {
        bail!("{} has no good cell (label A or 0) among its {}", dataset.name, dataset.items.len());
    }
    Ok(cells)
}

/// A progress bar on stderr, where a person sees it; silent in a pipe.
pub fn bar(total: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar.set_style(bar_style());
    bar.set_message(what);
    bar
}

/// How all bars look.
pub fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg:<12} {wide_bar} {pos}/{len}  {per_sec}  {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A flag that Ctrl-C sets. A second Ctrl-C ends the program at once.
pub fn interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })
    .context("watching for Ctrl-C")?;
    Ok(flag)
}

/// `break` once Ctrl-C was pressed.
pub fn go_on(interrupted: &AtomicBool) -> std::ops::ControlFlow<()> {
    if interrupted.load(Ordering::SeqCst) {
        std::ops::ControlFlow::Break(())
    } else {
        std::ops::ControlFlow::Continue(())
    }
}

/// Fails early if a file cannot be made at `path`: better before the work than after it.
pub fn check_writable(path: &Path) -> anyhow::Result<()> {
    whole_file::check(path).with_context(|| format!("{} cannot be written, choose another place", path.display()))
}

/// Writes a file whole or not at all.
pub fn save(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    whole_file::write(path, &[bytes]).with_context(|| format!("writing {}", path.display()))
}

/// Seconds since 1970.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A time as RFC 3339 in UTC.
pub fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = clock::civil(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(1_795_478_400), "2026-11-24T00:00:00Z");
    }
}
