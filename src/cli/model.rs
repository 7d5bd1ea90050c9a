//! `cellgate model`: what a model file holds, and its classifier for other engines.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Subcommand;
use serde_json::json;

use super::shared::{self, rfc3339};
use crate::backbone::onnx::export_classifier as export_classifier_onnx;
use crate::backbone::weights::safetensors::Precision;
use crate::model::Model;

/// Look into model files.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Check a model file to the last bit and say what it holds.
    Show {
        /// The model.
        #[arg(value_name = "MODEL.cgm")]
        model: PathBuf,

        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Write the classifier's network as ONNX, for TensorRT: input `image` of `[1, planes, side, side]`, outputs `logits` and
    /// `probabilities` of `[1, levels]`, before calibration.
    ExportClassifier {
        /// The model.
        #[arg(value_name = "MODEL.cgm")]
        model: PathBuf,

        /// Where to write; the folder must exist.
        #[arg(short, long, value_name = "FILE.onnx")]
        out: PathBuf,

        /// Write FLOAT16 tensors instead of FLOAT.
        #[arg(long)]
        fp16: bool,
    },
}

/// Shows.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (path, json) = match args.action {
        Action::Show { model, json } => (model, json),
        Action::ExportClassifier { model, out, fp16 } => return export_classifier(&model, &out, fp16),
    };
    let model = Model::open(&path)?;
    let header = model.header();
    let (s, p) = (&header.settings, &header.provenance);
    if json {
        let sections: Vec<_> =
            model.section_sizes().map(|(name, bytes)| json!({"name": name, "bytes": bytes})).collect();
        let line = json!({
            "model": model.id().to_string(), "bytes": model.bytes(), "backbone": header.backbone.to_string(),
            "settings": s, "provenance": p, "calibration": header.calibration, "classifier": header.classifier, "sections": sections,
        });
        println!("{}", serde_json::to_string_pretty(&line)?);
        return Ok(());
    }
    println!("model        {}", model.id());
    println!("backbone     {} ({})", header.backbone, p.backbone);
    println!("made         {} by cellgate {}", rfc3339(p.created), p.software);
    println!("data         {}: {} good cells, {} images, {} skipped", p.data, p.cells, p.images, p.skipped);
    println!("image        {0}×{0}, {1}", s.size, s.preprocess.mode);
    println!(
        "embedding    {}, k = {}, stages {}, seed {}{}",
        s.mixing,
        s.k,
        s.stages,
        s.seed,
        if s.standardise { ", channels standardised" } else { "" }
    );
    println!("Gaussian     {0}×{0} positions, {1}, factors {2:?}", s.grid, s.shrinkage, s.precision);
    println!("heatmap      smoothed by {} positions, score: {}", s.sigma, s.score);
    match &header.calibration {
        Some(c) => println!(
            "calibration  {} good cells; class A up to distance {:.3}, class C from {:.3}; regions above {:.3}",
            c.cells, c.threshold, c.class_c, c.region
        ),
        None => println!("calibration  none: it judges nothing until `cellgate calibrate`"),
    }
    match &header.classifier {
        Some(c) => {
            let parts = [
                c.judge.planes.map(|p| format!("a network on {0} planes of {1}×{1}", p.count(), c.judge.side)),
                c.judge.kernel.as_ref().map(|k| format!("a kernel machine of {} cells", k.rows)),
            ];
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            println!("classifier   {} by {}; {} view(s)", c.point.grading, parts.join(" and "), c.judge.views);
            println!(
                "trained      {} by cellgate {} on {}: {:?} cells of {:?}, {} skipped",
                rfc3339(c.training.created),
                c.training.software,
                c.training.data,
                c.training.cells,
                c.point.grading.names(),
                c.training.skipped
            );
            println!(
                "rejects      from a probability of {:.3}: {} of {} defective cells pass, {} of {} others are rejected; and from distance {:.3}",
                c.point.reject_from,
                c.point.escapes,
                c.point.defective,
                c.point.overkills,
                c.point.good,
                c.point.novel_from
            );
        }
        None => println!("classifier   none: the score alone decides"),
    }
    for (name, bytes) in model.section_sizes() {
        println!("section      {name:<10} {:>10.3} MB", bytes as f64 / 1e6);
    }
    println!("file         {:.3} MB, every byte checked", model.bytes() as f64 / 1e6);
    Ok(())
}

fn export_classifier(path: &Path, out: &Path, fp16: bool) -> anyhow::Result<()> {
    shared::check_writable(out)?;
    let model = Model::open(path)?;
    let Some(network) = model.judge().and_then(|judge| judge.network()) else {
        bail!("{} has no network: train one with `cellgate train`, and not with --judge kernel", path.display());
    };
    let bytes = export_classifier_onnx(network, 1, if fp16 { Precision::F16 } else { Precision::F32 })?;
    shared::save(out, &bytes)?;
    println!(
        "{}: {} bytes, {} planes of {4}×{4}, {} levels",
        out.display(),
        bytes.len(),
        network.inputs,
        network.classes,
        network.side
    );
    Ok(())
}
