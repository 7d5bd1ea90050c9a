//! The fitted model: what a station needs beside the backbone, in one file (`.cgm`).

pub mod container;
pub mod partial;
pub mod settings;

use std::path::Path;
use std::sync::Arc;

use half::f16;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::backbone::Identity;
use crate::classifier::judge::{self, Judge, JudgeError};
use crate::embedding::cpu::SLACK;
use crate::embedding::projection::CHANNELS;
use crate::embedding::{EmbeddingError, Projection};
use crate::gaussian::factors::section_len;
use crate::gaussian::{Factors, Precision, Statistics};
use crate::verdict::{Calibration, CalibrationError, GradingError, OperatingPoint};

pub use container::FileError;
pub use settings::{Settings, SettingsError};

use container::{Container, Kind};

const KIND: Kind = Kind { magic: *b"CELLGATE", version: 3, name: "cellgate model (.cgm)" };

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The version of cellgate that made it.
    pub software: String,
    /// When, in seconds since 1970.
    pub created: u64,
    /// Name of the data set.
    pub data: String,
    /// BLAKE3 over the ids of its cells.
    pub list: [u8; 32],
    /// Name of the backbone's weights.
    pub backbone: String,
    /// Good cells in the statistics.
    pub cells: u64,
    /// Images in the statistics: cells and their augmented copies.
    pub images: u64,
    /// Cells that could not be read or were refused by a gate.
    pub skipped: u64,
}

/// What the header of a model file says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The backbone that the statistics belong to.
    pub backbone: Identity,
    /// The settings of the fit.
    pub settings: Settings,
    /// Where it comes from.
    pub provenance: Provenance,
    /// What held-out good cells say about scores; a model without one judges nothing.
    pub calibration: Option<Calibration>,
    /// The classifier, if one was trained; without one the score alone decides.
    pub classifier: Option<ClassifierHeader>,
}

/// What the header says of the classifier, whose numbers are sections of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassifierHeader {
    /// What it is made of.
    pub judge: judge::Description,
    /// Where the line is drawn.
    pub point: OperatingPoint,
    /// Where it comes from.
    pub training: Training,
}

/// Where a classifier comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// The version of cellgate that trained it.
    pub software: String,
    /// When, in seconds since 1970.
    pub created: u64,
    /// Name of the data set.
    pub data: String,
    /// BLAKE3 over the ids of its cells.
    pub list: [u8; 32],
    /// Cells of each level.
    pub cells: Vec<u32>,
    /// Cells that could not be judged, and took no part.
    pub skipped: u32,
    /// The step of the network's training that was kept; none without a network.
    pub step: Option<u64>,
}

/// Why a model could not be read, written or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is whole but its content makes no sense.
    #[error("reading the model {path}: {why}")]
    Settings {
        /// The file.
        path: String,
        /// What is wrong.
        why: SettingsError,
    },
    /// As above, the calibration.
    #[error("reading the model {path}: {why}")]
    Calibration {
        /// The file.
        path: String,
        /// What is wrong.
        why: CalibrationError,
    },
    /// As above, the projection.
    #[error("reading the model {path}: {why}")]
    Projection {
        /// The file.
        path: String,
        /// What is wrong.
        why: EmbeddingError,
    },
    /// As above, the classifier.
    #[error("reading the model {path}: {why}")]
    Classifier {
        /// The file.
        path: String,
        /// What is wrong.
        why: JudgeError,
    },
    /// As above, the operating point.
    #[error("reading the model {path}: {why}")]
    Point {
        /// The file.
        path: String,
        /// What is wrong.
        why: GradingError,
    },
    /// The model was fitted with another backbone.
    #[error(
        "the model was fitted with the backbone {model} (`{name}`), but the backbone at hand is {given}; \
         give the fitted one with --backbone, or fit again"
    )]
    OtherBackbone {
        /// What the model was fitted with.
        model: Identity,
        /// Its name.
        name: String,
        /// What was given.
        given: Identity,
    },
}

/// A model, read from its file and checked.
#[derive(Debug)]
pub struct Model {
    container: Container,
    header: Header,
    projection: Projection,
    judge: Option<Arc<Judge>>,
}

const PROJECTION: &str = "projection";
const MEAN: &str = "mean";
const ROW_SCALE: &str = "row-scale";
const FACTORS: &str = "factors";
const NETWORK: &str = "network";
const KERNEL: &str = "kernel";
const SUPPORT: &str = "support";

impl Model {
    /// Opens a model file and checks all of it.
    ///
    /// # Errors
    /// If it cannot be read, is damaged in any bit, or holds numbers that make no sense.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let container = Container::open(path, KIND)?;
        let header: Header = container.header()?;
        let shown = || path.display().to_string();
        header.settings.validate().map_err(|why| ModelError::Settings { path: shown(), why })?;
        if let Some(calibration) = &header.calibration {
            calibration.validate().map_err(|why| ModelError::Calibration { path: shown(), why })?;
        }
        let k = header.settings.k as usize;
        let matrix = container.section::<f32>(PROJECTION, CHANNELS * k)?.to_vec();
        let projection =
            Projection::from_matrix(k, matrix).map_err(|why| ModelError::Projection { path: shown(), why })?;
        let judge = match &header.classifier {
            Some(classifier) => Some(Arc::new(read_judge(&container, classifier, &shown)?)),
            None => None,
        };
        let model = Self { container, header, projection, judge };
        model.sections()?;
        Ok(model)
    }

    /// Writes a model, whole or not at all; `judge` is what [`Header::classifier`] speaks of.
    ///
    /// # Errors
    /// What the system refused.
    ///
    /// # Panics
    /// If one of header and `judge` has a classifier and the other has not.
    pub fn write(
        path: &Path,
        header: &Header,
        projection: &Projection,
        statistics: &Statistics<'_>,
        judge: Option<&Judge>,
    ) -> Result<(), ModelError> {
        let described = header.classifier.as_ref().map(|classifier| &classifier.judge);
        assert_eq!(described, judge.map(Judge::description), "the classifier that the header speaks of");
        let factors: &[u8] = match statistics.factors() {
            Factors::F16(u) => bytemuck::cast_slice(u),
            Factors::F32(u) => bytemuck::cast_slice(u),
        };
        let mut sections = vec![
            (PROJECTION, bytemuck::cast_slice(projection.matrix())),
            (MEAN, bytemuck::cast_slice(statistics.mean())),
            (ROW_SCALE, bytemuck::cast_slice(statistics.row_scale())),
            (FACTORS, factors),
        ];
        let network = judge.map(Judge::network_halves).unwrap_or_default();
        if !network.is_empty() {
            sections.push((NETWORK, bytemuck::cast_slice(&network)));
        }
        if let Some(kernel) = judge.and_then(Judge::kernel) {
            sections.push((KERNEL, bytemuck::cast_slice(kernel.floats())));
            sections.push((SUPPORT, bytemuck::cast_slice(kernel.support())));
        }
        Ok(container::write(path, KIND, header, &sections)?)
    }

    /// Writes this model with another calibration.
    ///
    /// # Errors
    /// What the system refused.
    pub fn write_calibrated(&self, path: &Path, calibration: Calibration) -> Result<(), ModelError> {
        let header = Header { calibration: Some(calibration), ..self.header.clone() };
        Self::write(path, &header, &self.projection, &self.statistics(), self.judge.as_deref())
    }

    /// Writes this model with another classifier, or with none.
    ///
    /// # Errors
    /// What the system refused.
    pub fn write_judged(
        &self,
        path: &Path,
        classifier: Option<(&Judge, OperatingPoint, Training)>,
    ) -> Result<(), ModelError> {
        let judge = classifier.as_ref().map(|(judge, ..)| *judge);
        let classifier = classifier.map(|(judge, point, training)| ClassifierHeader {
            judge: judge.description().clone(),
            point,
            training,
        });
        let header = Header { classifier, ..self.header.clone() };
        Self::write(path, &header, &self.projection, &self.statistics(), judge)
    }

    /// What the header says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The classifier, if the model has one.
    #[must_use]
    pub fn judge(&self) -> Option<&Arc<Judge>> {
        self.judge.as_ref()
    }

    /// `diag(scale)·W`.
    #[must_use]
    pub fn projection(&self) -> &Projection {
        &self.projection
    }

    /// Bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.container.len()
    }

    /// Names and lengths of the file's sections.
    pub fn section_sizes(&self) -> impl Iterator<Item = (&str, u64)> {
        self.container.sections()
    }

    /// The whole file, as it was checked.
    #[must_use]
    pub fn file(&self) -> &[u8] {
        self.container.bytes()
    }

    /// Names of the file's sections, and where they begin and how long they are in [`file`](Self::file).
    pub fn places(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        self.container.places()
    }

    /// A name of the whole content, as 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> Identity {
        Identity(self.container.id())
    }

    /// Mean and factors.
    #[must_use]
    pub fn statistics(&self) -> Statistics<'_> {
        self.sections().unwrap_or_else(|_| unreachable!("checked when the model was opened"))
    }

    fn sections(&self) -> Result<Statistics<'_>, FileError> {
        let (grid, k) = (self.header.settings.grid as usize, self.header.settings.k as usize);
        let positions = grid * grid;
        let factors = match self.header.settings.precision {
            Precision::F16 => Factors::F16(self.container.section::<f16>(FACTORS, section_len(positions, k))?),
            Precision::F32 => Factors::F32(self.container.section::<f32>(FACTORS, section_len(positions, k))?),
        };
        let mean = self.container.section(MEAN, positions * k + SLACK)?;
        let row_scale: &[f32] = self.container.section(ROW_SCALE, k)?;
        // A scale of zero would make every distance small, and every cell good.
        if !row_scale.iter().all(|s| s.is_normal() && *s > 0.0) {
            return Err(self.container.damaged("a row's scale is not a positive number".into()));
        }
        Statistics::new(grid, k, mean, factors, row_scale).map_err(|e| self.container.damaged(e.to_string()))
    }

    /// Refuses another backbone than the one that the model was fitted with.
    ///
    /// # Errors
    /// If the identities differ; both are named.
    pub fn check_backbone(&self, given: Identity) -> Result<(), ModelError> {
        if self.header.backbone == given {
            return Ok(());
        }
        let name = self.header.provenance.backbone.clone();
        Err(ModelError::OtherBackbone { model: self.header.backbone, name, given })
    }
}

fn read_judge(
    container: &Container,
    classifier: &ClassifierHeader,
    shown: &impl Fn() -> String,
) -> Result<Judge, ModelError> {
    let wrong = |why| ModelError::Classifier { path: shown(), why };
    classifier.point.validate().map_err(|why| ModelError::Point { path: shown(), why })?;
    classifier.judge.validate().map_err(wrong)?;
    if classifier.point.grading.levels() != classifier.judge.levels as usize {
        return Err(container
            .damaged("its classifier tells other classes apart than its operating point".into())
            .into());
    }
    // Sizes are known to be sane before anything of them is asked for.
    let [network, floats, support] = classifier.judge.section_lens();
    let network = if network > 0 { container.section::<f16>(NETWORK, network)? } else { &[] };
    let floats = if floats > 0 { container.section::<f32>(KERNEL, floats)? } else { &[] };
    let support = if support > 0 { container.section::<f16>(SUPPORT, support)? } else { &[] };
    Judge::from_parts(classifier.judge.clone(), network, floats, support).map_err(wrong)
}

#[cfg(test)]
pub(crate) mod tests;
