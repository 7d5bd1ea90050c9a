//! `cellgate inspect`: images in, verdicts out.

pub mod batch;
pub mod line;
pub mod page;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::builder::TypedValueParser as _;

use super::shared::{self, Engine, Measuring};
use crate::model::Model;
use crate::pipeline::Inspector;
use crate::verdict::payload::{self, About};
use batch::{Batch, Tally};
use line::Lines;

/// The exit status of --fail-on-reject where a cell was not passed.
const REJECTED: u8 = 3;

/// Judge cells with a fitted model: PASS (class A or B), REJECT (class C) or INVALID with its reason.
///
/// One line a cell, in the order given, as they come: outcome, class, score (0 to 1; up to 0.5 is A, from 0.75 C),
/// regions of the heatmap that stand out and the strongest one's place in the image, milliseconds. An image that cannot
/// be read or does not show a whole, sharp, well exposed cell is INVALID, never a PASS, and does not stop the rest.
///
/// The exit status is 0 once every cell has its verdict, whatever it is; 1 if the work could not be done (an unreadable
/// model, an empty folder, an output that cannot be written, Ctrl-C); with --fail-on-reject 3 if any cell was REJECT or
/// INVALID. Where whoever reads the verdicts stops early, as `head` does, it ends with 0; with --fail-on-reject with 1,
/// since cells were left unjudged.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cellgate inspect line1.cgm cell.png
  cellgate inspect line1.cgm today/ --report today.html --overlay today-heat/
  cellgate inspect line1.cgm today/ --json --cell-mm 210 > today.jsonl
  cellgate inspect line1.cgm today/ --streams 1      all threads on one cell after another

JSON: one object a line, under 1 kB, keys always in this order: id, outcome, class, score, reason, detail, top, max,
mean, regions, regions_total, model, preprocess_us, backbone_us, distance_us, heatmap_us, total_us. A region is
[left, top, right, bottom, peak] in image pixels and distance, with --cell-mm its area in mm² as a sixth number.")]
pub struct Args {
    /// The model, as `cellgate fit` wrote it.
    #[arg(value_name = "MODEL.cgm")]
    model: PathBuf,

    /// Images, folders of images, or text files with one path a line.
    #[arg(value_name = "IMAGE|DIR|LIST", required = true)]
    data: Vec<PathBuf>,

    /// Print one JSON object a cell.
    #[arg(long)]
    json: bool,

    /// Write a picture of each judged cell to this folder: the straightened cell, its heatmap from yellow to red where
    /// it stands out, a box around each region. INVALID cells have none.
    #[arg(long, value_name = "DIR")]
    overlay: Option<PathBuf>,

    /// Write a page of all cells, the worst first, with pictures: one file, to be opened in any browser.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,

    /// Cells with pictures in the report.
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u16).range(0..=2000).map(usize::from))]
    pictures: usize,

    /// Side of a cell in millimetres (M6 166, G12 210): regions then carry their area in mm².
    #[arg(long, value_name = "MM", value_parser = millimetres)]
    cell_mm: Option<f64>,

    /// Cells in flight at the same time, which share the threads: 1 for the shortest time to a verdict, as many as
    /// threads for the most cells an hour [default: one a thread].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256).map(usize::from))]
    streams: Option<usize>,

    /// Exit with status 3 if any cell was REJECT or INVALID.
    #[arg(long)]
    fail_on_reject: bool,

    #[command(flatten)]
    measuring: Measuring,

    #[command(flatten)]
    engine: Engine,
}

fn millimetres(text: &str) -> Result<f64, String> {
    let side = text.parse().ok().filter(|side: &f64| *side >= 1.0 && *side <= 10_000.0);
    side.ok_or_else(|| format!("`{text}` is no side of a cell in millimetres: give 1 to 10000, such as 210"))
}

/// Inspects.
///
/// # Errors
/// Whatever keeps it from giving every cell a verdict.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let model = Arc::new(Model::open(&args.model)?);
    let items = batch::gather(&args.data)?;
    if let Some(folder) = &args.overlay {
        overlay_folder(folder)?;
    }
    if let Some(page) = &args.report {
        shared::check_writable(page)?;
    }
    let (network, _) = args.engine.weights()?;
    let threads = args.engine.threads();
    let streams = args.streams.unwrap_or(threads).min(items.len());
    let mut batch = Batch::new(&model, &network, threads, streams)?;
    args.measuring.engage(&network, batch.inspectors())?;
    let interrupted = shared::interrupt()?;

    let terminal = std::io::stdout().is_terminal();
    let bar = shared::bar(items.len() as u64, "inspecting");
    if terminal {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let grid = model.header().settings.grid as usize;
    let lines = Lines::new(items.iter().map(|item| item.id.as_str()), grid, args.cell_mm, line::colours());
    let names = batch::picture_names(&items);
    let (mut text, mut tally, mut cells) = (String::with_capacity(2048), Tally::default(), Vec::new());
    let mut out = std::io::stdout().lock();
    let started = Instant::now();
    let judge = |inspector: &mut Inspector, index: usize| {
        let picture = args.overlay.as_ref().map(|folder| folder.join(&names[index]));
        page::judge(inspector, &items[index].path, |_| picture)
    };
    let done = batch.run(items.len(), &interrupted, judge, |index, (verdict, drawn)| {
        drawn?;
        let id = &items[index].id;
        text.clear();
        if args.json {
            payload::write_json(
                &verdict,
                &About { id: Some(id), stamp: None, model: model.id(), grid, cell_mm: args.cell_mm },
                &mut text,
            );
        } else {
            lines.write(id, &verdict, &mut text);
        }
        text.push('\n');
        tally.add(&verdict);
        if args.report.is_some() {
            cells.push(page::cell(
                id,
                &verdict,
                grid,
                items[index].label.map(|label| page::label(&items[index], label)),
            ));
        }
        bar.inc(1);
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing the verdicts")
    });
    bar.finish_and_clear();
    let done = match done {
        Err(error) if is_broken_pipe(&error) => {
            if args.fail_on_reject {
                let told = tally.count().saturating_sub(1);
                bail!("whoever reads the verdicts stopped after {told} of {}; the rest were not judged", items.len());
            }
            // They have seen enough, as `head` does.
            return Ok(ExitCode::SUCCESS);
        }
        other => other?,
    };
    eprintln!("{}", tally.summary(started.elapsed().as_secs_f64()));
    if done < items.len() {
        let report = if args.report.is_some() { "; no report was written" } else { "" };
        bail!("interrupted after {done} of {} cells{report}", items.len());
    }
    if let Some(path) = &args.report {
        let title = format!("Inspection of {}", batch::name_of_all(&args.data));
        page::write(path, &title, &mut batch, &model, &items, cells, args.pictures)?;
        eprintln!("report: {}", path.display());
    }
    Ok(if args.fail_on_reject && tally.not_passed() > 0 { ExitCode::from(REJECTED) } else { ExitCode::SUCCESS })
}

/// Makes the folder if it isn't there, and fails if nothing can be written to it.
pub fn overlay_folder(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making the folder {} for pictures", folder.display()))?;
    shared::check_writable(&folder.join("overlay.png"))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    kinds.into_iter().any(|kind| kind == std::io::ErrorKind::BrokenPipe)
}
