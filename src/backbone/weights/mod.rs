//! The canonical form of a ResNet18's weights, and the files that it is read from and written to.
//!
//! Whatever the file, the way in is the same: tensors with names and shapes ([`safetensors`], torchvision's `.pth`,
//! the initialisers of an ONNX graph) → batch norm and the three colour channels folded (`fold`) → twenty [`Conv`]s,
//! checked by [`ResNet18::from_convs`], which also computes the [`Identity`].

mod error;
mod file;
pub(crate) mod fold;
mod pickle;
mod pth;
pub mod safetensors;
pub(super) mod tensors;

use super::{INPUT_MEAN, INPUT_STD, Identity};

pub use error::WeightsError;
pub use file::{Loaded, Origin, write_file};
pub use safetensors::Precision;

/// The default backbone, in our own format; `engines/README.md` tells where it comes from.
static EMBEDDED: &[u8] = include_bytes!("../../../engines/resnet18-el.safetensors");

/// One convolution with its batch norm folded in.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// torchvision's name of it: `conv1`, `layer2.0.conv1`, `layer2.0.downsample`, …
    pub name: String,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Kernel side: 7, 3 or 1.
    pub kernel: usize,
    /// Stride: 1 or 2. The padding is `kernel / 2`.
    pub stride: usize,
    /// Weights, `outputs × inputs × kernel × kernel`.
    pub weight: Vec<f32>,
    /// Biases, one an output channel.
    pub bias: Vec<f32>,
}

/// What the architecture says about one convolution: a [`Conv`] without its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// torchvision's name of it.
    pub name: String,
    /// Input channels (1 for `conv1`: grey).
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Kernel side: 7, 3 or 1.
    pub kernel: usize,
    /// Stride: 1 or 2. The padding is `kernel / 2`.
    pub stride: usize,
    /// Input pixels of the network per output pixel of this convolution.
    pub reduction: usize,
}

impl ConvShape {
    /// The weight's shape: outputs, inputs, kernel, kernel.
    #[must_use]
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.outputs, self.inputs, self.kernel, self.kernel]
    }

    /// Numbers in the weight.
    #[must_use]
    pub fn weight_len(&self) -> usize {
        self.outputs * self.inputs * self.kernel * self.kernel
    }

    /// Multiply-adds for an image of side `size`.
    #[must_use]
    pub fn multiply_adds(&self, size: usize) -> u64 {
        ((size / self.reduction).pow(2) * self.weight_len()) as u64
    }
}

/// The twenty convolutions of a grey ResNet18, in the order in which [`ResNet18`] keeps them.
#[must_use]
pub fn architecture() -> Vec<ConvShape> {
    convolutions(1, super::STAGE_CHANNELS)
}

/// The same with another number of input planes, and `widths` channels in the four stages.
pub(crate) fn convolutions(planes: usize, widths: [usize; 4]) -> Vec<ConvShape> {
    let conv = |name: String, inputs, outputs, kernel, stride, reduction| ConvShape {
        name,
        inputs,
        outputs,
        kernel,
        stride,
        reduction,
    };
    let mut convs = vec![conv("conv1".into(), planes, widths[0], 7, 2, 2)];
    let mut inputs = widths[0];
    for (layer, (outputs, reduction)) in widths.into_iter().zip(super::STAGE_STRIDES).enumerate() {
        for block in 0..2 {
            let prefix = format!("layer{}.{block}", layer + 1);
            let stride = if block == 0 && layer > 0 { 2 } else { 1 };
            convs.push(conv(format!("{prefix}.conv1"), inputs, outputs, 3, stride, reduction));
            convs.push(conv(format!("{prefix}.conv2"), outputs, outputs, 3, 1, reduction));
            if stride == 2 {
                convs.push(conv(format!("{prefix}.downsample"), inputs, outputs, 1, 2, reduction));
            }
            inputs = outputs;
        }
    }
    convs
}

/// A ResNet18 without its head: 20 convolutions, batch norm folded, one grey input channel.
///
/// Order: `conv1`; then for each of the four layers and its two blocks `conv1`, `conv2`, and in the first block of
/// layers 2 to 4 `downsample`.
#[derive(Clone, Debug, PartialEq)]
pub struct ResNet18 {
    convs: Vec<Conv>,
    identity: Identity,
}

impl ResNet18 {
    /// A network over folded convolutions, which must be those of [`architecture`], in its order.
    ///
    /// # Errors
    /// A convolution is missing, superfluous, out of order or of another shape, or holds a number that is not finite;
    /// the error names it.
    pub fn from_convs(convs: Vec<Conv>) -> Result<Self, WeightsError> {
        let expected = architecture();
        for (index, shape) in expected.iter().enumerate() {
            let conv = convs.get(index).ok_or_else(|| WeightsError::Missing { names: shape.name.clone() })?;
            check_conv(index, conv, shape)?;
        }
        if let Some(extra) = convs.get(expected.len()) {
            return Err(WeightsError::Unknown { names: extra.name.clone() });
        }
        let identity = identity_of(&convs);
        Ok(Self { convs, identity })
    }

    /// The default backbone that is compiled into the program: `engines/resnet18-el.safetensors`.
    ///
    /// # Errors
    /// Only if the program was built with a broken file.
    pub fn embedded() -> Result<Self, WeightsError> {
        Loaded::embedded().map(|loaded| loaded.network)
    }

    /// Reads a weights file of any format that [`Loaded::read`] knows.
    ///
    /// # Errors
    /// As [`Loaded::read`].
    pub fn load(path: &std::path::Path) -> Result<Self, WeightsError> {
        Loaded::read(path).map(|loaded| loaded.network)
    }

    /// The convolutions, in the order given above.
    #[must_use]
    pub fn convs(&self) -> &[Conv] {
        &self.convs
    }

    /// BLAKE3 over the architecture, the input contract and every weight.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Numbers in all weights and biases.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.convs.iter().map(|c| c.weight.len() + c.bias.len()).sum()
    }

    /// Multiply-adds of all convolutions for an image of side `size` (a multiple of 32).
    #[must_use]
    pub fn multiply_adds(size: usize) -> u64 {
        architecture().iter().map(|shape| shape.multiply_adds(size)).sum()
    }

    /// The same network with every weight rounded to FP16 (biases keep their 32 bits), as a half-size file holds it.
    ///
    /// # Errors
    /// A weight is beyond FP16's largest number, 65504.
    pub fn to_f16(&self) -> Result<Self, WeightsError> {
        let mut convs = self.convs.clone();
        for conv in &mut convs {
            for weight in &mut conv.weight {
                let half = half::f16::from_f32(*weight);
                if !half.is_finite() {
                    return Err(WeightsError::Fp16Range { name: format!("{}.weight", conv.name), value: *weight });
                }
                *weight = half.to_f32();
            }
        }
        Self::from_convs(convs)
    }
}

fn check_conv(index: usize, conv: &Conv, shape: &ConvShape) -> Result<(), WeightsError> {
    if conv.name != shape.name {
        return Err(WeightsError::Order { index, expected: shape.name.clone(), got: conv.name.clone() });
    }
    let got = [conv.outputs, conv.inputs, conv.kernel, conv.kernel];
    if got != shape.weight_shape() {
        return Err(WeightsError::Shape {
            name: conv.name.clone(),
            expected: shape.weight_shape().to_vec(),
            got: got.to_vec(),
        });
    }
    if conv.stride != shape.stride {
        return Err(WeightsError::Stride { name: conv.name.clone(), expected: shape.stride, got: conv.stride });
    }
    let lengths = [("weight", &conv.weight, shape.weight_len()), ("bias", &conv.bias, shape.outputs)];
    for (part, values, expected) in lengths {
        let name = format!("{}.{part}", conv.name);
        if values.len() != expected {
            return Err(WeightsError::Shape { name, expected: vec![expected], got: vec![values.len()] });
        }
        check_finite(&name, values)?;
    }
    Ok(())
}

/// Refuses NaN and infinity, naming the tensor and the place.
pub(super) fn check_finite(name: &str, values: &[f32]) -> Result<(), WeightsError> {
    // Whole blocks first: an exponent of all ones is what NaN and infinity share, and this vectorises.
    for (block, chunk) in values.chunks(4096).enumerate() {
        if chunk.iter().map(|v| v.to_bits() & 0x7f80_0000).max() != Some(0x7f80_0000) {
            continue;
        }
        if let Some(at) = chunk.iter().position(|v| !v.is_finite()) {
            return Err(WeightsError::NotFinite { name: name.to_owned(), index: block * 4096 + at, value: chunk[at] });
        }
    }
    Ok(())
}

fn identity_of(convs: &[Conv]) -> Identity {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"cellgate backbone 1: ResNet18, batch norm folded, stages 1 to 4 after their last ReLU\n");
    hasher.update(format!("input: 1 channel, (x/white - {INPUT_MEAN})/{INPUT_STD}\n").as_bytes());
    let mut bytes = Vec::with_capacity(1 << 18);
    for conv in convs {
        let Conv { name, inputs, outputs, kernel, stride, .. } = conv;
        hasher.update(format!("{name}: {outputs}x{inputs}x{kernel}x{kernel}, stride {stride}\n").as_bytes());
        for values in [&conv.weight, &conv.bias] {
            for chunk in values.chunks(1 << 16) {
                bytes.clear();
                bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
                hasher.update(&bytes);
            }
        }
    }
    Identity(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_backbone_is_the_one_that_its_readme_names() {
        let loaded = Loaded::embedded().unwrap();
        let readme = include_str!("../../../engines/README.md");
        assert!(readme.contains(&loaded.network.identity().to_string()));
        assert_eq!(loaded.precision, Some(Precision::F16));
        assert_eq!(loaded.network.parameters(), 11_165_440);
    }
}
