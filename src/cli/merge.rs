//! `cellgate merge`: joins the shards of a fit.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;

use super::fit::{self, Calibrate};
use super::shared::{self, Engine};
use crate::model::partial;
use crate::pipeline::fitting::Cell;

/// Join the partial fits of all shards into a model: the same as a single fit would give, within rounding.
///
/// The held-out cells are read again to set the threshold, from where the shards found them, or from --calibrate DIR.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  for i in 0 1 2 3; do cellgate fit cells --shard $i/4 -o s$i.cgp; done
  cellgate merge s0.cgp s1.cgp s2.cgp s3.cgp -o line1.cgm")]
pub struct Args {
    /// The partial fits, one of each shard, in any order.
    #[arg(required = true, value_name = "PARTIAL.cgp")]
    partials: Vec<PathBuf>,

    /// The model to write.
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,

    /// Good cells to calibrate on instead of the held-out ones.
    #[arg(long, value_name = "DIR|LIST")]
    calibrate: Option<PathBuf>,

    /// Write the model without a calibration; it then judges nothing until `cellgate calibrate`.
    #[arg(long, conflicts_with = "calibrate")]
    no_calibration: bool,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    engine: Engine,
}

/// Merges.
pub fn run(args: Args) -> anyhow::Result<()> {
    shared::check_writable(&args.out)?;
    let started = Instant::now();
    let interrupted = shared::interrupt()?;
    let (header, moments) = partial::merge(&args.partials)?;
    let settings = &header.settings;
    let network = fit::fitted_backbone(&args.engine, header.backbone)?;
    let projection = settings.projection(&header.scale)?;
    let held_out: Vec<Cell> = match &args.calibrate {
        Some(path) => shared::good_cells(&shared::open_data(path, None)?.0)?,
        None => header.held_out.iter().map(|path| Cell { id: path.clone(), path: path.into() }).collect(),
    };
    let how = if args.no_calibration { Calibrate::Later } else { Calibrate::Now };
    let mut fitter = args.engine.fitter(&network, settings)?;
    let model = fit::finish(&mut fitter, &held_out, &header, &projection, &moments, &args.out, &interrupted, how)
        .context("merging (if the held-out cells are not on this machine: --calibrate DIR or --no-calibration)")?;
    fit::report(args.json, &args.out, moments.count(), started.elapsed().as_secs_f64(), Some(&model))
}
