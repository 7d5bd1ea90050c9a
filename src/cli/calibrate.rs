//! `cellgate calibrate`: sets the threshold of a model on other good cells.

use std::path::PathBuf;

use super::fit::fitted_backbone;
use super::shared::{self, Engine};
use crate::model::{Model, Settings};

/// Set a model's threshold on good cells that its fit has not seen, for instance of today's shift.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  cellgate calibrate line1.cgm good-cells --overkill 0.005 -o line1-today.cgm")]
pub struct Args {
    /// The model.
    #[arg(value_name = "MODEL.cgm")]
    model: PathBuf,

    /// Good cells: folder, list or `elpv`.
    #[arg(value_name = "DATA")]
    data: PathBuf,

    /// The model to write.
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,

    /// Share of good cells that the threshold may reject [default: the model's].
    #[arg(long, value_name = "SHARE")]
    overkill: Option<f64>,

    #[command(flatten)]
    engine: Engine,
}

/// Calibrates.
pub fn run(args: Args) -> anyhow::Result<()> {
    shared::check_writable(&args.out)?;
    let interrupted = shared::interrupt()?;
    let model = Model::open(&args.model)?;
    let network = fitted_backbone(&args.engine, model.header().backbone)?;
    let fitted = &model.header().settings;
    let settings = Settings { overkill: args.overkill.unwrap_or(fitted.overkill), ..fitted.clone() };
    settings.validate()?;
    let cells = shared::good_cells(&shared::open_data(&args.data, None)?.0)?;
    let mut fitter = args.engine.fitter(&network, &settings)?;
    let bar = shared::bar(cells.len() as u64, "calibrating");
    let outcome = fitter.calibrate(&cells, &settings, model.projection(), &model.statistics(), |done| {
        bar.set_position(done);
        shared::go_on(&interrupted)
    });
    bar.finish_and_clear();
    let (calibration, skipped) = outcome?;
    for cell in &skipped {
        eprintln!("skipping {}: {}", cell.id, cell.reason);
    }
    let before = model.header().calibration.as_ref().map_or("none".into(), |c| format!("{:.3}", c.threshold));
    println!(
        "{}: threshold {before} → {:.3} on {} good cells",
        args.out.display(),
        calibration.threshold,
        calibration.cells
    );
    Ok(model.write_calibrated(&args.out, calibration)?)
}
