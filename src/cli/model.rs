//! `cellgate model show`: what a model file holds.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::shared::rfc3339;
use crate::model::Model;
use crate::preprocess::Mode;

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
}

/// Shows.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Action::Show { model: path, json } = args.action;
    let model = Model::open(&path)?;
    let header = model.header();
    let (s, p) = (&header.settings, &header.provenance);
    if json {
        let sections: Vec<_> =
            model.section_sizes().map(|(name, bytes)| json!({"name": name, "bytes": bytes})).collect();
        let line = json!({
            "model": model.id().to_string(), "bytes": model.bytes(), "backbone": header.backbone.to_string(),
            "settings": s, "provenance": p, "calibration": header.calibration, "sections": sections,
        });
        println!("{}", serde_json::to_string_pretty(&line)?);
        return Ok(());
    }
    println!("model        {}", model.id());
    println!("backbone     {} ({})", header.backbone, p.backbone);
    println!("made         {} by cellgate {}", rfc3339(p.created), p.software);
    println!("data         {}: {} good cells, {} images, {} skipped", p.data, p.cells, p.images, p.skipped);
    let border = match s.preprocess.mode {
        Mode::Border => "border found and straightened",
        Mode::None => "whole frame",
    };
    println!("image        {0}×{0}, {border}", s.size);
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
    for (name, bytes) in model.section_sizes() {
        println!("section      {name:<10} {:>10.3} MB", bytes as f64 / 1e6);
    }
    println!("file         {:.3} MB, every byte checked", model.bytes() as f64 / 1e6);
    Ok(())
}
