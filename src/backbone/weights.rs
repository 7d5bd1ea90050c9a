//! The canonical form of a ResNet18's weights.

use super::Identity;

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
}
