//! Pictures of judged cells for the page: examples of each level, and the confusion matrix in tiles.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::Task;
use super::semacnn::{Found, Judged, Seen};
use super::threshold::Measured;
use crate::classifier::judge::sigmoid;
use crate::embedding::projection::CHANNELS;
use crate::eval::report::{Example, Panel, Picture, Pictures, Quadrant, Tile};
use crate::heatmap::overlay;
use crate::pipeline::Outcomes;
use crate::pipeline::fitting::Cell;
use crate::preprocess::Placement;

/// Tiles of a quadrant at most.
const TILES: usize = 10;
/// Examples of a level.
const EXAMPLES: usize = 3;

/// Which cells are shown, and where.
pub struct Chosen {
    /// Indices, and the heading of their level.
    examples: Vec<(usize, String)>,
    quadrants: Vec<Members>,
}

/// A quadrant of the confusion matrix.
struct Members {
    defective: bool,
    rejected: bool,
    cells: usize,
    of: usize,
    /// Indices and log-odds.
    shown: Vec<(usize, f32)>,
}

/// What the page shows.
#[derive(Default)]
pub struct Drawn {
    pub examples: Vec<Example>,
    pub panel: Option<Panel>,
}

/// Chooses examples and tiles: of what was judged right an even sample from doubtful to sure, of the mistakes the surest.
pub fn choose(judged: &Judged<'_>, found: &Found) -> Chosen {
    let question = judged.task.main;
    let items = &judged.task.dataset.items;
    let (odds, decisions): (Vec<f32>, Vec<f32>) = judged.decisions(question, found).into_iter().unzip();
    let mut quadrants = Vec::new();
    for (defective, rejected) in [(false, false), (true, true), (false, true), (true, false)] {
        let asked = (0..items.len())
            .filter(|&i| items[i].label.as_ref().and_then(|label| question.target(label)) == Some(defective));
        let asked: Vec<usize> = asked.collect();
        // What cannot be judged is rejected, as at the station, but there is nothing to show of it.
        let mut members: Vec<usize> = asked.iter().copied().filter(|&i| (decisions[i] < 0.0) != rejected).collect();
        let count = members.len();
        members.retain(|&i| decisions[i].is_finite());
        members.sort_by(|&a, &b| decisions[b].abs().total_cmp(&decisions[a].abs()).then(a.cmp(&b)));
        let step = if defective == rejected { (members.len() / TILES).max(1) } else { 1 };
        let shown = members.iter().step_by(step).take(TILES).map(|&i| (i, odds[i])).collect();
        quadrants.push(Members { defective, rejected, cells: count, of: asked.len(), shown });
    }
    let mut of_level: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    (0..items.len()).filter(|&i| decisions[i].is_finite()).for_each(|i| {
        of_level.entry(judged.level[i]).or_default().push(i);
    });
    let examples = of_level.into_values().flat_map(|mut members| {
        members.sort_by(|&a, &b| decisions[a].total_cmp(&decisions[b]));
        let at = |share: usize| members[members.len() * share / (2 * EXAMPLES)];
        (0..EXAMPLES).map(|e| at(2 * e + 1)).collect::<Vec<_>>()
    });
    let heading = |i: usize| items[i].label.as_ref().map(ToString::to_string).unwrap_or_default();
    Chosen { examples: examples.map(|i| (i, heading(i))).collect(), quadrants }
}

impl Chosen {
    /// Reads the images again and draws the heatmaps of their own folds on them.
    pub fn draw(self, measured: &mut Measured, seen: &Seen, task: &Task<'_>) -> anyhow::Result<Drawn> {
        let tiles = self.quadrants.iter().flat_map(|quadrant| quadrant.shown.iter().map(|&(index, _)| index));
        let mut wanted: Vec<usize> = self.examples.iter().map(|&(index, _)| index).chain(tiles).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let cells: Vec<Cell> = wanted.iter().map(|&index| measured.cells[index].cell.clone()).collect();
        let images = Outcomes::new(wanted.len());
        let projection = task.settings.projection(&[1.0; CHANNELS])?;
        measured.fitter.score(&cells, task.settings, &projection, |at, scorer, loaded: Result<Placement, _>| {
            if loaded.is_ok() {
                images.set(at, scorer.image().to_vec());
            }
            ControlFlow::Continue(())
        })?;
        let side = task.settings.size as usize;
        let pictures: BTreeMap<usize, Pictures> = wanted
            .iter()
            .zip(images.into_all())
            .filter_map(|(&index, image)| {
                let fold = measured.cells[index].fold;
                let plane = &seen.heat[fold][index].as_ref()?.planes;
                // The plane is 2 ln(M/√k): from a bit above a usual distance to five times that.
                let heat = overlay::draw(&image.as_ref()?[..], side, plane, plane.len().isqrt(), (0.8, 3.2), &[]);
                let image = overlay::grey(&image?, side);
                let overlay = Picture(overlay::jpeg(&heat)?);
                Some((index, Pictures { image: Picture(overlay::jpeg(&image)?), overlay }))
            })
            .collect();
        let label = |index: usize| {
            let item = &task.dataset.items[index];
            let label = item.label.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("{label} {}", item.kind.as_deref().unwrap_or_default())
        };
        let id = |index: usize| task.dataset.items[index].id.clone();
        let examples = self.examples.into_iter().filter_map(|(index, level)| {
            Some(Example { level, label: label(index), id: id(index), pictures: pictures.get(&index)?.clone() })
        });
        let examples = examples.collect();
        let quadrants = self.quadrants.into_iter().map(|Members { defective, rejected, cells, of, shown }| {
            let tile = |(index, odds): (usize, f32)| {
                let overlay = pictures.get(&index)?.overlay.clone();
                Some(Tile { id: id(index), label: label(index), probability: sigmoid(odds), overlay })
            };
            Quadrant { defective, rejected, cells, of, tiles: shown.into_iter().filter_map(tile).collect() }
        });
        let quadrants: Vec<Quadrant> = quadrants.collect();
        let panel = quadrants.try_into().ok().map(|quadrants| Panel { question: task.main.title().into(), quadrants });
        Ok(Drawn { examples, panel })
    }
}
