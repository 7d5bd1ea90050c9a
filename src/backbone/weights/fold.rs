//! From torchvision's tensors to the canonical form: batch norm and the three colour channels folded, in f64.

use super::tensors::{Tensors, check_names};
use super::{Conv, ConvShape, ResNet18, WeightsError, architecture};

/// torchvision's batch norm epsilon.
pub(crate) const BN_EPSILON: f64 = 1e-5;
/// ImageNet's channel means, of full scale: the input normalisation that torchvision's weights expect.
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// ImageNet's channel standard deviations.
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];
/// [`crate::backbone::INPUT_MEAN`] in f64.
const GREY_MEAN: f64 = 0.449;
/// [`crate::backbone::INPUT_STD`] in f64.
const GREY_STD: f64 = 0.226;

/// A convolution as it was trained: perhaps three input channels, perhaps a bias, perhaps a batch norm after it.
pub(crate) struct Trained {
    /// Input channels: the architecture's, or 3 for `conv1`.
    pub(crate) inputs: usize,
    /// `outputs × inputs × kernel × kernel`.
    pub(crate) weight: Vec<f32>,
    /// One an output channel, before the batch norm.
    pub(crate) bias: Option<Vec<f32>>,
    /// The batch norm.
    pub(crate) norm: Option<Norm>,
}

/// A batch norm: `(x − mean)/√(variance + epsilon)·scale + shift`, each one an output channel.
pub(crate) struct Norm {
    pub(crate) scale: Vec<f32>,
    pub(crate) shift: Vec<f32>,
    pub(crate) mean: Vec<f32>,
    pub(crate) variance: Vec<f32>,
    pub(crate) epsilon: f64,
}

/// Folds colour channels (of `conv1`) and batch norm into one convolution.
///
/// The lengths of all slices must fit `shape`, and the variances must not be negative.
pub(crate) fn fold(shape: &ConvShape, trained: &Trained) -> Conv {
    let taps = shape.kernel * shape.kernel;
    let colour = trained.inputs == 3 && shape.inputs == 1;
    let mut weight = Vec::with_capacity(shape.weight_len());
    let mut bias = Vec::with_capacity(shape.outputs);
    for output in 0..shape.outputs {
        let from = &trained.weight[output * trained.inputs * taps..][..trained.inputs * taps];
        let (gain, offset) = match &trained.norm {
            None => (1.0, 0.0),
            Some(norm) => {
                let gain = f64::from(norm.scale[output]) / (f64::from(norm.variance[output]) + norm.epsilon).sqrt();
                (gain, f64::from(norm.shift[output]) - f64::from(norm.mean[output]) * gain)
            }
        };
        let mut before = trained.bias.as_ref().map_or(0.0, |bias| f64::from(bias[output]));
        if colour {
            // A grey x seen as colour c is (x − μ_c)/σ_c = g·0.226/σ_c + (0.449 − μ_c)/σ_c.
            for tap in 0..taps {
                let grey: f64 = (0..3).map(|c| f64::from(from[c * taps + tap]) * GREY_STD / IMAGENET_STD[c]).sum();
                weight.push((grey * gain) as f32);
            }
            before += (0..3)
                .map(|c| {
                    let sum: f64 = from[c * taps..][..taps].iter().map(|&w| f64::from(w)).sum();
                    sum * (GREY_MEAN - IMAGENET_MEAN[c]) / IMAGENET_STD[c]
                })
                .sum::<f64>();
        } else {
            weight.extend(from.iter().map(|&w| (f64::from(w) * gain) as f32));
        }
        bias.push((before * gain + offset) as f32);
    }
    let ConvShape { name, inputs, outputs, kernel, stride, .. } = shape.clone();
    Conv { name, inputs, outputs, kernel, stride, weight, bias }
}

/// Reads and folds the tensors of a state dict with torchvision's names; `fc.*` and `*.num_batches_tracked` are
/// dropped.
///
/// `conv1` may have three input channels or one that already expects our grey input.
///
/// # Errors
/// Tensors are missing, superfluous or of another shape, or hold numbers that are not finite.
pub(crate) fn from_torchvision(tensors: &mut dyn Tensors) -> Result<ResNet18, WeightsError> {
    let shapes = architecture();
    let mut expected = Vec::new();
    for shape in &shapes {
        let (conv, norm) = torchvision_names(&shape.name);
        expected.push(format!("{conv}.weight"));
        expected.extend(NORM_PARTS.map(|part| format!("{norm}.{part}")));
    }
    check_names(tensors, &expected, |name| {
        name == "fc.weight" || name == "fc.bias" || name.ends_with(".num_batches_tracked")
    })?;
    let mut convs = Vec::with_capacity(shapes.len());
    for shape in &shapes {
        let (conv, norm) = torchvision_names(&shape.name);
        let name = format!("{conv}.weight");
        let mut weight_shape = shape.weight_shape();
        if shape.inputs == 1 && tensors.shape(&name).and_then(|s| s.get(1)) != Some(&1) {
            weight_shape[1] = 3;
        }
        let weight = tensors.take(&name, &weight_shape)?;
        let mut part = |part: &str| tensors.take(&format!("{norm}.{part}"), &[shape.outputs]);
        let [scale, shift, mean, variance] = NORM_PARTS;
        let norm_values = Norm {
            scale: part(scale)?,
            shift: part(shift)?,
            mean: part(mean)?,
            variance: part(variance)?,
            epsilon: BN_EPSILON,
        };
        check_variance(&format!("{norm}.{variance}"), &norm_values.variance)?;
        let trained = Trained { inputs: weight_shape[1], weight, bias: None, norm: Some(norm_values) };
        convs.push(fold(shape, &trained));
    }
    ResNet18::from_convs(convs)
}

/// Refuses a negative variance.
pub(crate) fn check_variance(name: &str, values: &[f32]) -> Result<(), WeightsError> {
    match values.iter().position(|&v| v < 0.0) {
        Some(index) => Err(WeightsError::Variance { name: name.to_owned(), index, value: values[index] }),
        None => Ok(()),
    }
}

/// torchvision's names of a batch norm's scale, shift, mean and variance.
const NORM_PARTS: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];

/// torchvision's names of a convolution and of its batch norm.
pub(crate) fn torchvision_names(name: &str) -> (String, String) {
    match name.strip_suffix(".downsample") {
        Some(prefix) => (format!("{prefix}.downsample.0"), format!("{prefix}.downsample.1")),
        None => (name.to_owned(), name.replace("conv", "bn")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number from -1 to 1 that looks random.
    fn noise(seed: usize) -> f64 {
        ((seed as f64 + 1.0) * 12.9898).sin() * 43758.5453 % 1.0
    }

    fn values(count: usize, seed: usize, low: f64, high: f64) -> Vec<f32> {
        (0..count).map(|i| (low + (high - low) * (noise(seed + i) + 1.0) / 2.0) as f32).collect()
    }

    const SIDE: usize = 20;

    /// A naive convolution with zero padding in f64, channels first.
    fn convolve(weight: &[f32], inputs: usize, outputs: usize, kernel: usize, image: &[f64]) -> Vec<f64> {
        let pad = kernel / 2;
        let mut output = vec![0.0; outputs * SIDE * SIDE];
        for (at, sum) in output.iter_mut().enumerate() {
            let (o, y, x) = (at / (SIDE * SIDE), at / SIDE % SIDE, at % SIDE);
            for (i, ky, kx) in
                (0..inputs * kernel * kernel).map(|t| (t / (kernel * kernel), t / kernel % kernel, t % kernel))
            {
                let (iy, ix) = (y + ky, x + kx);
                if (pad..SIDE + pad).contains(&iy) && (pad..SIDE + pad).contains(&ix) {
                    let w = weight[((o * inputs + i) * kernel + ky) * kernel + kx];
                    *sum += f64::from(w) * image[(i * SIDE + iy - pad) * SIDE + ix - pad];
                }
            }
        }
        output
    }

    #[test]
    fn folded_grey_equals_three_normalised_channels_and_batch_norm() {
        let (outputs, kernel) = (4, 7);
        let shape = ConvShape { name: "conv1".into(), inputs: 1, outputs, kernel, stride: 1, reduction: 1 };
        let trained = Trained {
            inputs: 3,
            weight: values(outputs * 3 * 49, 0, -0.3, 0.3),
            bias: Some(values(outputs, 900, -1.0, 1.0)),
            norm: Some(Norm {
                scale: values(outputs, 1000, -2.0, 2.0),
                shift: values(outputs, 2000, -1.0, 1.0),
                mean: values(outputs, 3000, -1.0, 1.0),
                variance: values(outputs, 4000, 0.01, 2.0),
                epsilon: BN_EPSILON,
            }),
        };
        let pixels: Vec<f64> = (0..SIDE * SIDE).map(|p| (noise(5000 + p) + 1.0) / 2.0).collect();
        let colour: Vec<f64> =
            (0..3).flat_map(|c| pixels.iter().map(move |x| (x - IMAGENET_MEAN[c]) / IMAGENET_STD[c])).collect();
        let mut expected = convolve(&trained.weight, 3, outputs, kernel, &colour);
        let (bias, norm) = (trained.bias.as_ref().unwrap(), trained.norm.as_ref().unwrap());
        for (at, value) in expected.iter_mut().enumerate() {
            let o = at / (SIDE * SIDE);
            let [scale, shift, mean, variance] =
                [norm.scale[o], norm.shift[o], norm.mean[o], norm.variance[o]].map(f64::from);
            *value = (*value + f64::from(bias[o]) - mean) / (variance + 1e-5).sqrt() * scale + shift;
        }

        let folded = fold(&shape, &trained);
        let grey: Vec<f64> = pixels.iter().map(|x| (x - GREY_MEAN) / GREY_STD).collect();
        let got = convolve(&folded.weight, 1, outputs, kernel, &grey);
        let scale = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let (mut inside, mut border) = (0.0f64, 0.0f64);
        for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let (o, y, x) = (at / (SIDE * SIDE), at / SIDE % SIDE, at % SIDE);
            let error = (got + f64::from(folded.bias[o]) - expected).abs() / scale;
            let far = (3..SIDE - 3).contains(&y) && (3..SIDE - 3).contains(&x);
            if far { inside = inside.max(error) } else { border = border.max(error) }
        }
        // Only the rounding of weights and biases to f32 is left away from the border; at it, zero padding means another
        // grey (the mean of each channel), which is why the test would notice if it were looking at nothing.
        assert!(inside < 1e-6, "{inside}");
        assert!(border > 1e-4 && border < 0.5, "{border}");
    }

    #[test]
    fn without_batch_norm_and_colour_nothing_changes() {
        let shape = ConvShape { name: "conv1".into(), inputs: 1, outputs: 2, kernel: 3, stride: 1, reduction: 1 };
        let (weight, bias) = (values(18, 0, -1.0, 1.0), values(2, 50, -1.0, 1.0));
        let folded = fold(&shape, &Trained { inputs: 1, weight: weight.clone(), bias: Some(bias.clone()), norm: None });
        assert_eq!((folded.weight, folded.bias), (weight, bias));
    }

    #[test]
    fn the_grey_constants_are_the_input_contract() {
        assert_eq!((GREY_MEAN as f32, GREY_STD as f32), (crate::backbone::INPUT_MEAN, crate::backbone::INPUT_STD));
    }
}
