//! The networks of a model, as TensorRT takes them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::engine::{Element, Tensor};
use crate::backbone::onnx::{export_classifier, export_features, map_stride};
use crate::backbone::weights::{Precision, WeightsError};
use crate::backbone::{Identity, ResNet18, STAGE_CHANNELS, STAGE_STRIDES};
use crate::classifier::Folded;
use crate::embedding::Projection;

/// Which of a model's networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Backbone and projection.
    Features,
    /// The classifier.
    Classifier,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Features => "features",
            Self::Classifier => "classifier",
        })
    }
}

/// A network as ONNX, every number of it a half, and what goes in and comes out.
#[derive(Clone, Debug)]
pub struct Source {
    kind: Kind,
    onnx: Vec<u8>,
    tensors: Vec<Tensor>,
}

impl Source {
    /// The backbone for images of side `size`, with the projection folded in, and with its stages for `views` views whose
    /// features are pooled (0: none): see [`export_features`] for its input and outputs.
    ///
    /// # Errors
    /// If the side is none, or a weight does not fit a half.
    pub fn features(
        network: &ResNet18,
        projection: &Projection,
        size: usize,
        views: usize,
    ) -> Result<Self, WeightsError> {
        let onnx = export_features(network, projection, size, views, Precision::F16)?;
        let images = views.max(1);
        let maps = (0..4).filter(|&stage| projection.uses(stage)).map(|stage| {
            let side = size / STAGE_STRIDES[stage];
            halves(&format!("map{}", stage + 1), false, &[images, side, side, map_stride(projection.k())])
        });
        let stages = (0..4).filter(|_| views > 0).map(|stage| {
            let side = size / STAGE_STRIDES[stage];
            halves(&format!("stage{}_nhwc", stage + 1), false, &[images, side, side, STAGE_CHANNELS[stage]])
        });
        let tensors =
            std::iter::once(halves("image", true, &[images, 1, size, size])).chain(maps).chain(stages).collect();
        Ok(Self { kind: Kind::Features, onnx, tensors })
    }

    /// A classifier of `samples` samples at once: planes of its side in, logits and probabilities out.
    ///
    /// # Errors
    /// If a weight does not fit a half.
    pub fn classifier(network: &Folded, samples: usize) -> Result<Self, WeightsError> {
        let onnx = export_classifier(network, samples, Precision::F16)?;
        let image = halves("image", true, &[samples, network.inputs, network.side, network.side]);
        let output = |name| halves(name, false, &[samples, network.classes]);
        Ok(Self { kind: Kind::Classifier, onnx, tensors: vec![image, output("logits"), output("probabilities")] })
    }

    /// Which network it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The ONNX model.
    #[must_use]
    pub fn onnx(&self) -> &[u8] {
        &self.onnx
    }

    /// BLAKE3 of the ONNX model: another backbone, projection, side, classifier or number of
    /// images has another.
    #[must_use]
    pub fn hash(&self) -> Identity {
        Identity(*blake3::hash(&self.onnx).as_bytes())
    }

    /// The input, then the outputs in the order in which a run takes them.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }
}

fn halves(name: &str, is_input: bool, shape: &[usize]) -> Tensor {
    let shape = shape.iter().map(|&size| size as i64).collect();
    Tensor { name: name.to_owned(), is_input, element: Element::Half, shape }
}
