use std::path::PathBuf;

use thiserror::Error;

use super::super::Identity;

/// Why weights could not be read, checked or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// Something is wrong with the file of that name; the source says what.
    #[error("reading backbone weights from {}", path.display())]
    Reading {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<WeightsError>,
    },
    /// The file could not be written.
    #[error("writing {} (its folder must exist and be writable)", path.display())]
    Writing {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The network cannot be built for that image side.
    #[error(transparent)]
    Backbone(#[from] super::super::BackboneError),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The file is larger than any ResNet18.
    #[error("the file has {bytes} bytes; a ResNet18 has at most {limit}: is this the right file?")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The largest that is read.
        limit: u64,
    },
    /// No known format.
    #[error("this is neither safetensors, nor torchvision's .pth, nor ONNX ({0})")]
    UnknownFormat(String),
    /// The container is damaged or hostile.
    #[error("broken {format} file: {reason}")]
    Broken {
        /// `safetensors`, `.pth` or `ONNX`.
        format: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is well formed, but asks for something that is not supported.
    #[error("unsupported {format} file: {reason}")]
    Unsupported {
        /// `safetensors`, `.pth` or `ONNX`.
        format: &'static str,
        /// What it asks for, and the remedy.
        reason: String,
    },
    /// Tensors of a ResNet18 are missing.
    #[error("not a ResNet18: missing {names}")]
    Missing {
        /// Their names.
        names: String,
    },
    /// Tensors that a ResNet18 has not.
    #[error("not a ResNet18: it has no {names} (a ResNet34 or ResNet50 will not do)")]
    Unknown {
        /// Their names.
        names: String,
    },
    /// A tensor has another shape.
    #[error("not a ResNet18: {name} has shape {got:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// The ResNet18's shape.
        expected: Vec<usize>,
        /// The shape given.
        got: Vec<usize>,
    },
    /// A convolution stands where another belongs.
    #[error("not a ResNet18: convolution {index} is {got}, expected {expected}")]
    Order {
        /// Its place, from 0.
        index: usize,
        /// The name that belongs there.
        expected: String,
        /// The name given.
        got: String,
    },
    /// A convolution has another stride.
    #[error("not a ResNet18: {name} has stride {got}, expected {expected}")]
    Stride {
        /// The convolution.
        name: String,
        /// The ResNet18's stride.
        expected: usize,
        /// The stride given.
        got: usize,
    },
    /// A weight is NaN or infinite.
    #[error("{name} holds {value} at index {index}: weights must be finite numbers (did its training diverge?)")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Which of its numbers.
        index: usize,
        /// The number.
        value: f32,
    },
    /// A running variance is negative.
    #[error("{name} holds {value} at index {index}: a variance cannot be negative")]
    Variance {
        /// The tensor.
        name: String,
        /// Which of its numbers.
        index: usize,
        /// The number.
        value: f32,
    },
    /// A weight does not fit FP16.
    #[error("{name} holds {value}, beyond FP16's 65504: write FP32 instead (--fp32)")]
    Fp16Range {
        /// The tensor.
        name: String,
        /// The number.
        value: f32,
    },
    /// The weights are not those that the file says they are.
    #[error(
        "the file says that its identity is {stated}, but its weights have {computed}: it is damaged; import again"
    )]
    IdentityMismatch {
        /// What the file says.
        stated: String,
        /// What the weights have.
        computed: Identity,
    },
}

impl WeightsError {
    pub(crate) fn broken(format: &'static str, reason: impl Into<String>) -> Self {
        Self::Broken { format, reason: reason.into() }
    }

    pub(crate) fn unsupported(format: &'static str, reason: impl Into<String>) -> Self {
        Self::Unsupported { format, reason: reason.into() }
    }
}
