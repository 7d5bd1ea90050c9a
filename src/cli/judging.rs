//! Options of the classifier, which training and evaluation share.

use anyhow::bail;

use crate::classifier::SIDE;
use crate::classifier::evidence::MAX_VIEWS;
use crate::classifier::judge::JudgeSettings;
use crate::classifier::kernel::Uses;
use crate::classifier::learning::LearnSettings;
use crate::classifier::network;
use crate::classifier::planes::Planes;

/// How the classifier is made up and trained.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
#[command(next_help_heading = "Training of the classifier")]
pub struct Judging {
    /// Who judges: `network` (a ResNet18 on heatmaps, as in the paper), `kernel` (a kernel machine on pooled features and
    /// statistics of the heatmap) or `both` [default: both].
    #[arg(long, value_name = "WHO", value_parser = ["network", "kernel", "both"])]
    pub judge: Option<String>,

    /// What the network sees: `heatmap`, or `both` (the rectified image beside it) [default: both].
    #[arg(long, value_name = "PLANES", value_parser = ["heatmap", "both"])]
    pub planes: Option<String>,

    /// Side of the planes that the network sees, in pixels: 64, 128, 256 or 512. On a larger one than 64 it sees finer
    /// defects, and is trained as one fine-tunes a backbone: with blended and jittered cells, slowly and to the end. Time
    /// and memory of the training grow with the square, and so does the network's time for each cell [default: 64].
    #[arg(long, value_name = "PIXELS")]
    pub plane_side: Option<usize>,

    /// What the kernel machine sees: `pooled` features of the backbone, `heatmap` statistics, or `both` [default: both].
    #[arg(long, value_name = "WHAT", value_parser = ["pooled", "heatmap", "both"])]
    pub features: Option<String>,

    /// Views of the image whose features are averaged, 1 to 4; each one more costs a run of the backbone for each cell,
    /// here and at the station [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_VIEWS as i64))]
    pub views: Option<u32>,

    /// Mirrored and turned copies of its planes that the network is asked about: 1, 2, 4 or 8 [default: 4].
    #[arg(long, value_name = "N", value_parser = ["1", "2", "4", "8"])]
    pub flips: Option<String>,

    /// Steps of the network's training at most [default: 400; 1200 with a larger --plane-side].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub steps: Option<u32>,

    /// Largest learning rate [default: 0.001; 0.0003 with a larger --plane-side].
    #[arg(long, value_name = "RATE")]
    pub lr: Option<f32>,

    /// Cells of a step [default: 32].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1024))]
    pub batch: Option<u32>,

    /// Looks at the validation cells, one every 20 steps, without gain after which the training ends; 0 makes all steps
    /// [default: 6; 0 with a larger --plane-side, and a look every 60 steps].
    #[arg(long, value_name = "N")]
    pub patience: Option<u32>,

    /// How far rare classes are drawn as often as frequent ones: 0 draws cells alike, 1 draws classes alike
    /// [default: 1; 0 with a larger --plane-side].
    #[arg(long, value_name = "SHARE")]
    pub balance: Option<f32>,

    /// Share of the labelled cells that the network does not learn from: by them it is watched and calibrated
    /// [default: 0.2; 0.1 with a larger --plane-side].
    #[arg(long, value_name = "SHARE")]
    pub validation: Option<f64>,

    /// Seed of the training's batches and of the choice of validation cells [default: 1].
    #[arg(long, value_name = "SEED")]
    pub training_seed: Option<u64>,
}

impl Judging {
    /// The settings, checked.
    pub fn settings(&self) -> anyhow::Result<JudgeSettings> {
        let side = self.plane_side.unwrap_or(SIDE);
        network::check_side(side)?;
        let usual = JudgeSettings::for_side(side);
        let who = self.judge.as_deref().unwrap_or("both");
        if who == "network" && self.features.is_some()
            || who == "kernel" && (self.planes.is_some() || self.plane_side.is_some())
        {
            bail!(
                "--planes and --plane-side are for the network and --features for the kernel machine: leave out what \
                 --judge {who} makes idle"
            );
        }
        let planes = match self.planes.as_deref() {
            Some("heatmap") => Planes::Heatmap,
            _ => Planes::HeatmapAndImage,
        };
        let uses = match self.features.as_deref() {
            Some("pooled") => Uses::Pooled,
            Some("heatmap") => Uses::Heat,
            _ => Uses::Both,
        };
        let learn = LearnSettings {
            steps: self.steps.unwrap_or(usual.learn.steps),
            batch: self.batch.unwrap_or(usual.learn.batch),
            lr: self.lr.unwrap_or(usual.learn.lr),
            balance: self.balance.unwrap_or(usual.learn.balance),
            patience: self.patience.unwrap_or(usual.learn.patience),
            seed: self.training_seed.unwrap_or(usual.learn.seed),
            ..usual.learn
        };
        learn.validate()?;
        let validation = self.validation.unwrap_or(usual.validation);
        if !(0.05..=0.5).contains(&validation) {
            bail!("--validation {validation}: give a share from 0.05 to 0.5");
        }
        Ok(JudgeSettings {
            side,
            planes: (who != "kernel").then_some(planes),
            kernel: (who != "network").then_some(uses),
            flips: self.flips.as_ref().map_or(Ok(usual.flips), |flips| flips.parse())?,
            views: self.views.unwrap_or(usual.views),
            validation,
            learn,
        })
    }
}
