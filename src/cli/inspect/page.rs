//! Pictures of judged cells, and the page that shows them.

use std::io::Cursor;
use std::path::Path;

use anyhow::Context;
use image::{ImageFormat, RgbImage};

use super::batch::Batch;
use crate::cli::shared::{now, rfc3339};
use crate::eval::dataset::{Item, Label};
use crate::eval::report::{self, InspectReport, InspectedCell, Picture, Pictures, Region, Threshold};
use crate::eval::result::Setting;
use crate::heatmap::overlay;
use crate::model::Model;
use crate::pipeline::Inspector;
use crate::preprocess::Mode;
use crate::verdict::payload::frame_box;
use crate::verdict::{CLASS_C, Class, DECISION, Outcome, Verdict};
use crate::whole_file;

/// The distance below which a heatmap with this maximum is left clear: midway, in magnitude, between the level that good
/// cells hardly reach and the maximum. A strong defect lifts half the cell above the lower of the two.
fn clear_below(good: f32, max: f32) -> f32 {
    if max > good && good > 0.0 { (good * max).sqrt() } else { good }
}

/// The cell that the inspector judged last with its heatmap, coloured by magnitude: distances of defects span several
/// powers of ten. It is clear below the level of the regions, so that a good cell stays clear.
fn heated(inspector: &Inspector, verdict: &Verdict) -> RgbImage {
    let header = inspector.model().header();
    let (side, grid) = (header.settings.size as usize, header.settings.grid as usize);
    let magnitude = |x: f32| x.max(f32::MIN_POSITIVE).ln();
    let map: Vec<f32> = inspector.heatmap().iter().map(|&x| magnitude(x)).collect();
    let max = verdict.distances.map_or(f32::MAX, |distances| distances.max);
    let range = header.calibration.as_ref().map_or((f32::MAX, f32::MAX), |calibration| {
        let low = clear_below(calibration.region, max);
        (magnitude(low), magnitude(max.max(calibration.class_c).max(low * 1.25)))
    });
    overlay::draw(inspector.image(), side, &map, grid, range, verdict.regions.as_slice())
}

/// Writes the overlay of the cell that the inspector judged last, whole or not at all.
///
/// # Errors
/// If the file cannot be written.
pub fn save_overlay(path: &Path, inspector: &Inspector, verdict: &Verdict) -> anyhow::Result<()> {
    let mut png = Vec::new();
    heated(inspector, verdict).write_to(&mut Cursor::new(&mut png), ImageFormat::Png).context("encoding a picture")?;
    save(path, &png)
}

/// Writes a file whole or not at all.
///
/// # Errors
/// What the system refused.
pub fn save(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    whole_file::write(path, &[bytes]).with_context(|| format!("writing {}", path.display()))
}

fn jpeg(picture: &RgbImage) -> anyhow::Result<Picture> {
    overlay::jpeg(picture).map(Picture).context("encoding a picture")
}

/// A cell as the page shows it, without pictures; `label` is what is known about it.
#[must_use]
pub fn cell(id: &str, verdict: &Verdict, grid: usize, label: Option<String>) -> InspectedCell {
    let outcome = match &verdict.outcome {
        Outcome::Pass(Class::A) => report::Outcome::PassA,
        Outcome::Pass(_) => report::Outcome::PassB,
        Outcome::Reject => report::Outcome::RejectC,
        Outcome::Invalid(reason) => report::Outcome::Invalid(reason.name().into()),
    };
    let regions = verdict.regions.as_slice().iter().enumerate().map(|(index, region)| {
        let [left, top, right, bottom] = frame_box(verdict, index, grid).map(|x| x.max(0) as u32);
        Region { x: left, y: top, width: right - left, height: bottom - top, peak: region.peak }
    });
    InspectedCell {
        id: id.into(),
        outcome,
        score: verdict.score,
        regions: regions.collect(),
        latency_ms: verdict.latency.total_us() as f32 / 1e3,
        label,
        pictures: None,
    }
}

/// What `labels.csv` says of a cell.
#[must_use]
pub fn label(item: &Item, label: Label) -> String {
    match &item.kind {
        Some(kind) => format!("{label} {kind}"),
        None => label.to_string(),
    }
}

/// Writes the page of `cells`, which stand in the order of `items`; the worst are judged once more for their pictures.
///
/// # Errors
/// If the page cannot be written.
pub fn write(
    path: &Path,
    title: &str,
    batch: &mut Batch,
    model: &Model,
    items: &[Item],
    mut cells: Vec<InspectedCell>,
    pictures: usize,
) -> anyhow::Result<()> {
    let inspector = batch.inspector();
    for index in InspectReport::with_pictures(&cells, pictures) {
        let verdict = inspector.inspect_file(&items[index].path);
        if verdict.placement.is_some() {
            let side = model.header().settings.size as usize;
            let image = jpeg(&overlay::grey(inspector.image(), side))?;
            cells[index].pictures = Some(Pictures { image, overlay: jpeg(&heated(inspector, &verdict))? });
        }
    }
    let thresholds = [("A | B", DECISION), ("B | C", CLASS_C)];
    let page = InspectReport {
        title: title.into(),
        created: rfc3339(now()),
        tool: format!("cellgate {}", env!("CARGO_PKG_VERSION")),
        model: about(model),
        thresholds: thresholds.map(|(name, value)| Threshold { name: name.into(), value }).into(),
        cells,
        max_pictures: pictures,
    };
    Ok(report::save(path, &page.html())?)
}

fn about(model: &Model) -> Vec<Setting> {
    let header = model.header();
    let (s, p) = (&header.settings, &header.provenance);
    let border = match s.preprocess.mode {
        Mode::Border => "border found and straightened",
        Mode::None => "whole frame",
    };
    let mut about = vec![
        Setting::new("model", model.id()),
        Setting::new("made", format!("{} by cellgate {}", rfc3339(p.created), p.software)),
        Setting::new("fitted on", format!("{}: {} good cells, {} images", p.data, p.cells, p.images)),
        Setting::new("backbone", format!("{} ({:.16}…)", p.backbone, header.backbone)),
        Setting::new("image", format!("{0}×{0}, {border}", s.size)),
        Setting::new("embedding", format!("{}, k = {}, stages {}, seed {}", s.mixing, s.k, s.stages, s.seed)),
        Setting::new("Gaussian", format!("{0}×{0} positions, {1}", s.grid, s.shrinkage)),
    ];
    if let Some(c) = &header.calibration {
        let share = c.overkill * 100.0;
        about.push(Setting::new(
            "calibration",
            format!(
                "{} distance: class A up to {:.2} (all but {share:.1} % of {} held-out good cells), C from {:.2}",
                c.kind, c.threshold, c.cells, c.class_c
            ),
        ));
        about.push(Setting::new("regions", format!("distance above {:.2}", c.region)));
    }
    about
}
