//! What each system costs: parameters and multiply-adds, as in the paper's Table S4, counted from the layers.

use super::graph::{Cost, GraphError};
use super::{System, kmeans, networks, svd};
use crate::classifier;
use crate::model::Settings;

/// A system's cost on images of some side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct At {
    /// Side of the image.
    pub side: usize,
    /// The cost of one image.
    #[serde(flatten)]
    pub cost: Cost,
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Row {
    /// The system's name, a method of `cellgate eval` where there is one.
    pub system: String,
    /// As published: full images, three planes and 1000 classes in networks for photographs.
    pub full: At,
    /// As it is fitted here, if that differs.
    pub here: Option<At>,
}

/// The paper's images: 256×256 for its own system and the autoencoder, 224×224 for networks for photographs.
const PAPER: usize = 256;

/// Side of photographs in the networks' own papers.
const PHOTOGRAPH: usize = 224;

/// Classes here: as many as ELPV has probabilities.
const CLASSES: usize = 4;

/// The parts of SeMaCNN with these settings of the fit: the backbone with folded norms, the projection to k channels, the
/// Mahalanobis distance at each position of the grid, and the classifier of heatmaps.
///
/// # Errors
/// If the image is too small for the backbone.
pub fn semacnn(settings: &Settings) -> Result<[(&'static str, Cost); 4], GraphError> {
    let graph = networks::resnet18(1, None, true);
    let backbone = graph.cost(settings.size as usize)?;
    let shapes = graph.shapes(settings.size as usize)?;
    let (grid, k) = (u64::from(settings.grid), u64::from(settings.k));
    // The maps after each stage: the last of each number of channels. Each stage is projected at its own resolution.
    let stages = [64, 128, 256, 512].map(|channels| {
        let last = shapes.iter().rev().find(|shape| shape.channels == channels);
        last.map_or((channels as u64, 0), |shape| (channels as u64, shape.pixels() as u64))
    });
    let wanted = stages.iter().zip(settings.stages.0).filter(|(_, wanted)| *wanted).map(|(stage, _)| stage);
    let dense = settings.mixing == crate::embedding::Mixing::Dense;
    // A sparse projection sends each channel to one of the k.
    let each = if dense { k } else { 1 };
    let (weights, projection) = wanted
        .fold((0, 0), |(weights, sum), (channels, pixels)| (weights + channels * each, sum + channels * each * pixels));
    let triangle = k * (k + 1) / 2;
    let positions = grid * grid;
    Ok([
        ("backbone", backbone),
        ("projection", Cost { parameters: weights, multiply_adds: projection }),
        // Mean and factor of each position; the factor times a vector, and its squares.
        ("distance", Cost { parameters: positions * (k + triangle), multiply_adds: positions * (triangle + k) }),
        ("classifier", networks::resnet18(1, Some(2), true).cost(classifier::SIDE)?),
    ])
}

/// All rows: SeMaCNN and its threshold variant first, then the systems it is compared with.
///
/// # Errors
/// If a network does not work on its images.
pub fn table() -> Result<Vec<Row>, GraphError> {
    let settings = Settings { mixing: crate::embedding::Mixing::Dense, ..Settings::default() };
    let sum = |parts: &[(&str, Cost)]| parts.iter().fold(Cost::default(), |sum, (_, cost)| sum + *cost);
    let parts = semacnn(&settings)?;
    let here = semacnn(&Settings::default())?;
    let side = settings.size as usize;
    let own = |name: &str, count: usize| Row {
        system: name.to_string(),
        full: At { side, cost: sum(&parts[..count]) },
        here: (parts[..count] != here[..count]).then(|| At { side, cost: sum(&here[..count]) }),
    };
    let mut rows = vec![own("semacnn", 4), own("threshold", 3)];
    for system in System::ALL {
        let (side, _) = system.usual();
        let (full, here) = match system {
            System::AutoencoderAmplitude | System::AutoencoderOtsu => {
                ((PAPER, networks::autoencoder().cost(PAPER)?), networks::autoencoder().cost(side)?)
            }
            System::Svd => ((PAPER, svd::cost(PAPER)), svd::cost(side)),
            System::KMeans => ((PAPER, kmeans::cost(PAPER)), kmeans::cost(side)),
            System::ResNet50 => pair(networks::resnet50, side)?,
            System::Vgg11 => pair(networks::vgg11, side)?,
            System::ResNext101 => pair(networks::resnext101, side)?,
        };
        rows.push(Row {
            system: system.name().to_string(),
            full: At { side: full.0, cost: full.1 },
            here: Some(At { side, cost: here }),
        });
    }
    Ok(rows)
}

/// A network for photographs, and the same as it is trained here.
fn pair(network: fn(usize, usize) -> super::graph::Graph, side: usize) -> Result<((usize, Cost), Cost), GraphError> {
    Ok(((PHOTOGRAPH, network(3, 1000).cost(PHOTOGRAPH)?), network(1, CLASSES).cost(side)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_system_once_and_the_known_counts() {
        let rows = table().unwrap();
        assert_eq!(rows.len(), 2 + System::ALL.len());
        let find = |name: &str| rows.iter().find(|row| row.system == name).unwrap();
        assert_eq!(find("resnet50").full.cost.parameters, 25_557_032);
        assert_eq!(find("vgg11").full.cost.parameters, 132_863_336);
        assert_eq!(find("resnext101").full.cost.parameters, 88_791_336);
        assert!(System::ALL.iter().all(|system| find(system.name()).here.is_some()));
    }

    #[test]
    fn our_own_parts_add_up() {
        let settings = Settings { mixing: crate::embedding::Mixing::Dense, ..Settings::default() };
        let [backbone, projection, distance, classifier] = semacnn(&settings).unwrap().map(|(_, cost)| cost);
        // F = 960 channels to k = 100; 49 million multiply-adds at each stage's own resolution.
        assert_eq!(projection.parameters, 96_000);
        assert_eq!(projection.multiply_adds, 100 * (64 * 4096 + 128 * 1024 + 256 * 256 + 512 * 64));
        assert_eq!(distance.multiply_adds, 4096 * (5050 + 100));
        // torchvision's 11.7 million without a head of 1000 classes.
        assert!((11_160_000..11_180_000).contains(&backbone.parameters), "{}", backbone.parameters);
        assert!((11_160_000..11_180_000).contains(&classifier.parameters), "{}", classifier.parameters);
        assert!(backbone.multiply_adds > 15 * classifier.multiply_adds);
    }
}
