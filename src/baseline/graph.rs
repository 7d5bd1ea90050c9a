//! Networks as lists of layers: what they are made of, how large their maps are, what they cost.

use thiserror::Error;

/// A layer's input: the number of the layer that makes it. [`INPUT`] is the image.
pub type From = usize;

/// The image itself as a layer.
pub const INPUT: From = 0;

/// What a layer does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// The image, of so many planes.
    Input {
        /// Planes.
        planes: usize,
    },
    /// A convolution with a square kernel.
    Conv {
        /// Channels that it makes.
        outputs: usize,
        /// Side of the kernel.
        kernel: usize,
        /// Pixels from one place to the next.
        stride: usize,
        /// Zeros around the map.
        padding: usize,
        /// Groups of channels that do not see each other.
        groups: usize,
        /// Whether a bias is added.
        bias: bool,
    },
    /// All values to all outputs, with a bias.
    Linear {
        /// Values that it makes.
        outputs: usize,
    },
    /// Batch norm (Ioffe and Szegedy 2015).
    Norm,
    /// The largest value of a window.
    MaxPool {
        /// Side of the window.
        kernel: usize,
        /// Pixels from one place to the next.
        stride: usize,
        /// Pixels around the map that count for nothing.
        padding: usize,
    },
    /// Means of windows that cut the map into `side`×`side`, overlapping or repeated where they must.
    MeanPool {
        /// Side of the map that it makes.
        side: usize,
    },
    /// Each pixel twice in both directions.
    Upsample,
    /// The sum with another layer.
    Add {
        /// The other layer.
        other: From,
    },
    /// In training, half of the values become zero and the others double.
    Dropout,
}

/// A layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layer {
    /// What it does.
    pub op: Op,
    /// To which layer's values.
    pub from: From,
    /// Whether negative values become zero at its end.
    pub relu: bool,
}

/// The size of a layer's maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Maps.
    pub channels: usize,
    /// Pixels along a side of each.
    pub side: usize,
}

impl Shape {
    /// Numbers of one image.
    #[must_use]
    pub fn len(self) -> usize {
        self.channels * self.pixels()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Pixels of one map.
    #[must_use]
    pub fn pixels(self) -> usize {
        self.side * self.side
    }
}

/// Why a network does not work on images of some side.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GraphError {
    /// A window is larger than the map.
    #[error("layer {layer}: a window of {kernel} does not fit a map of {side} pixels; use larger images")]
    Small {
        /// The layer.
        layer: usize,
        /// Side of the window.
        kernel: usize,
        /// Side of the map, with what is around it.
        side: usize,
    },
    /// Two maps that are added differ.
    #[error("layer {layer}: {left:?} and {right:?} cannot be added")]
    Unequal {
        /// The layer.
        layer: usize,
        /// One.
        left: Shape,
        /// The other.
        right: Shape,
    },
    /// Groups that do not divide the channels.
    #[error("layer {layer}: {channels} channels are no {groups} groups")]
    Groups {
        /// The layer.
        layer: usize,
        /// Channels.
        channels: usize,
        /// Groups.
        groups: usize,
    },
}

/// A network: each layer uses layers before it; the last one's values are the outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    layers: Vec<Layer>,
}

impl Graph {
    /// A network that only has its image yet.
    #[must_use]
    pub fn new(planes: usize) -> Self {
        Self { layers: vec![Layer { op: Op::Input { planes }, from: INPUT, relu: false }] }
    }

    /// The layers.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The last layer so far.
    #[must_use]
    pub fn last(&self) -> From {
        self.layers.len() - 1
    }

    /// Appends a layer after `from`; gives its number.
    pub fn after(&mut self, from: From, op: Op) -> From {
        assert!(from < self.layers.len(), "layers use layers before them");
        self.layers.push(Layer { op, from, relu: false });
        self.last()
    }

    /// Appends a layer after the last.
    pub fn then(&mut self, op: Op) -> From {
        self.after(self.last(), op)
    }

    /// Lets the last layer end with a rectifier.
    pub fn relu(&mut self) -> From {
        let last = self.last();
        self.layers[last].relu = true;
        last
    }

    /// The size of every layer's maps for images of `side`.
    ///
    /// # Errors
    /// If the images are too small, or the layers do not fit together.
    pub fn shapes(&self, side: usize) -> Result<Vec<Shape>, GraphError> {
        let mut shapes: Vec<Shape> = Vec::with_capacity(self.layers.len());
        for (layer, &Layer { op, from, .. }) in self.layers.iter().enumerate() {
            let window = |kernel: usize, stride: usize, padding: usize| {
                let side = shapes[from].side + 2 * padding;
                let room = side.checked_sub(kernel).ok_or(GraphError::Small { layer, kernel, side })?;
                Ok(room / stride + 1)
            };
            let shape = match op {
                Op::Input { planes } => Shape { channels: planes, side },
                Op::Conv { outputs, kernel, stride, padding, groups, .. } => {
                    let channels = shapes[from].channels;
                    if groups == 0 || !channels.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
                        return Err(GraphError::Groups { layer, channels, groups });
                    }
                    Shape { channels: outputs, side: window(kernel, stride, padding)? }
                }
                Op::Linear { outputs } => Shape { channels: outputs, side: 1 },
                Op::Norm | Op::Dropout => shapes[from],
                Op::MaxPool { kernel, stride, padding } => {
                    Shape { side: window(kernel, stride, padding)?, ..shapes[from] }
                }
                Op::MeanPool { side } => Shape { side, ..shapes[from] },
                Op::Upsample => Shape { side: 2 * shapes[from].side, ..shapes[from] },
                Op::Add { other } if shapes[other] == shapes[from] => shapes[from],
                Op::Add { other } => {
                    return Err(GraphError::Unequal { layer, left: shapes[from], right: shapes[other] });
                }
            };
            if shape.is_empty() {
                return Err(GraphError::Small { layer, kernel: 1, side: 0 });
            }
            shapes.push(shape);
        }
        Ok(shapes)
    }

    /// Parameters and multiply-adds of one image of `side`; a batch norm's running statistics are no parameters.
    ///
    /// # Errors
    /// As [`Graph::shapes`].
    pub fn cost(&self, side: usize) -> Result<Cost, GraphError> {
        let shapes = self.shapes(side)?;
        let mut cost = Cost::default();
        for (layer, shape) in self.layers.iter().zip(&shapes) {
            let input = shapes[layer.from];
            let (weights, others) = parameters(layer.op, input);
            cost.parameters += (weights + others) as u64;
            if matches!(layer.op, Op::Conv { .. } | Op::Linear { .. }) {
                cost.multiply_adds += (weights * shape.pixels()) as u64;
            }
        }
        Ok(cost)
    }
}

/// What a network costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    /// Numbers that are learned.
    pub parameters: u64,
    /// Multiplications with addition for one image, in convolutions and linear layers.
    pub multiply_adds: u64,
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { parameters: self.parameters + other.parameters, multiply_adds: self.multiply_adds + other.multiply_adds }
    }
}

/// Weights, and gains, shifts and biases, of a layer.
pub(super) fn parameters(op: Op, input: Shape) -> (usize, usize) {
    match op {
        Op::Conv { outputs, kernel, groups, bias, .. } => {
            (outputs * input.channels / groups * kernel * kernel, if bias { outputs } else { 0 })
        }
        Op::Linear { outputs } => (outputs * input.len(), outputs),
        Op::Norm => (0, 2 * input.channels),
        _ => (0, 0),
    }
}
