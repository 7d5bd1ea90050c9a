//! Options that several verbs share, and how progress looks.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::backbone::ResNet18;
use crate::backbone::cpu::CpuBackbone;
use crate::backbone::weights::Loaded;
use crate::embedding::{Mixing, Stages};
use crate::eval::dataset::Dataset;
use crate::eval::elpv;
use crate::gaussian::{Precision, Shrinkage};
use crate::heatmap::ScoreKind;
use crate::model::Settings;
use crate::pipeline::Extractor;
use crate::pipeline::fitting::{Cell, Fitter};
use crate::preprocess::{AugmentConfig, PreprocessConfig, Threshold};
use crate::simd::Isa;
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
        self.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
    }

    /// One extractor a thread.
    pub fn fitter(&self, network: &ResNet18, settings: &Settings) -> anyhow::Result<Fitter> {
        let size = settings.size as usize;
        let backbones = backbones(network, size, self.threads(), &Arc::new(Workers::new(1)))?;
        let extractors = backbones
            .into_iter()
            .map(|backbone| Extractor::new(settings.preprocess.clone(), Box::new(backbone)))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Fitter::new(extractors))
    }
}

/// `count` engines on one copy of the packed weights, each on `workers`.
pub fn backbones(
    network: &ResNet18,
    size: usize,
    count: usize,
    workers: &Arc<Workers>,
) -> anyhow::Result<Vec<CpuBackbone>> {
    let first = CpuBackbone::new(network, size, Isa::detect(), Arc::clone(workers))?;
    let mut all: Vec<CpuBackbone> = (1..count).map(|_| first.another()).collect();
    all.push(first);
    Ok(all)
}

/// Everything that decides what a fit computes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings of the fit")]
pub struct FitSettings {
    /// Side of the rectified image: a multiple of 32.
    #[arg(long, default_value_t = 256, value_name = "PIXELS")]
    pub size: u32,

    /// Side of the heatmap's grid.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub grid: u32,

    /// Values of the embedding at a position.
    #[arg(short, long, default_value_t = 100, value_name = "N")]
    pub k: u32,

    /// Stages of the network that take part.
    #[arg(long, default_value = "1,2,3,4", value_name = "LIST")]
    pub stages: Stages,

    /// How channels are mixed into the k values: `sparse` (each channel feeds one of them, cheap) or `dense` (each
    /// feeds all, as in the paper).
    #[arg(long, default_value_t, value_name = "KIND")]
    pub embedding: Mixing,

    /// Seed of the embedding, the augmentation and the choice of held-out cells.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Divide channels by their standard deviation over good cells before the embedding.
    #[arg(long)]
    pub standardise: bool,

    /// How the cell is found: `border` (dark background, straightened) or `none` (the image is the cell) [default:
    /// border; none for ELPV].
    #[arg(long, value_name = "HOW", value_parser = ["border", "none"])]
    pub preprocess: Option<String>,

    /// What belongs to the cell: a brightness of 255, or `otsu`.
    #[arg(long, default_value = "50", value_name = "LEVEL", value_parser = threshold)]
    pub threshold: Threshold,

    /// Changed copies of each cell that are fitted beside it: flips (each p = 0.5) and a turn about the centre.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub copies: u32,

    /// Largest turn of a copy, in degrees.
    #[arg(long, default_value_t = 2.0, value_name = "DEGREES")]
    pub max_angle: f32,

    /// Turn copies by quarter turns as well.
    #[arg(long)]
    pub quarter_turns: bool,

    /// How covariances are made invertible: absolute:ε, relative:ε or ledoit-wolf.
    #[arg(long, default_value = "absolute:0.01", value_name = "HOW")]
    pub shrinkage: Shrinkage,

    /// Keep the factors in single precision: twice the file and the time.
    #[arg(long)]
    pub f32: bool,

    /// Smoothing of the heatmap, in positions of the grid.
    #[arg(long, default_value_t = 1.0, value_name = "SIGMA")]
    pub sigma: f32,

    /// The score of a cell: `top` (mean of the largest 1 %), `max` or `mean` of its heatmap.
    #[arg(long, default_value = "top", value_name = "KIND")]
    pub score: ScoreKind,

    /// Share of good cells that the threshold may reject.
    #[arg(long, default_value_t = 0.01, value_name = "SHARE")]
    pub overkill: f64,

    /// Share of good cells kept out of the statistics to calibrate the score.
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    pub holdout: f64,
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
        let preprocess = if whole_frame {
            PreprocessConfig::whole_frame()
        } else {
            PreprocessConfig { threshold: self.threshold, ..PreprocessConfig::default() }
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
            overkill: self.overkill,
            holdout: self.holdout,
        };
        settings.validate()?;
        Ok(settings)
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

/// The good cells of a data set; all of them if it has no labels.
pub fn good_cells(dataset: &Dataset) -> anyhow::Result<Vec<Cell>> {
    let labelled = dataset.items.iter().any(|item| item.label.is_some());
    let cells: Vec<Cell> = dataset
        .items
        .iter()
        .filter(|item| !labelled || item.label.as_ref().is_some_and(crate::eval::dataset::Label::is_good))
        .map(|item| Cell { id: item.id.clone(), path: item.path.clone() })
        .collect();
    if cells.is_empty() {
        return Err(anyhow!("{} has no good cell (label A or 0) among its {}", dataset.name, dataset.items.len()));
    }
    Ok(cells)
}

/// A progress bar on stderr, where a person sees it; silent in a pipe.
pub fn bar(total: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{msg:<12} {wide_bar} {pos}/{len}  {per_sec}  {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.set_message(what);
    bar
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

/// Seconds since 1970.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A time as RFC 3339 in UTC.
pub fn rfc3339(seconds: u64) -> String {
    let (days, rest) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Civil date from days since 1970 (Hinnant's algorithm).
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * m + 2) / 5 + 1, if m < 10 { m + 3 } else { m - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
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
