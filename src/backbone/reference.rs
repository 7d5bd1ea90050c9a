//! The backbone in the plainest way there is, in f64: what every other implementation is held to.

use super::weights::Conv;
use super::{ResNet18, STAGE_CHANNELS, STAGE_STRIDES};

/// A square map, HWC, in f64.
#[derive(Clone)]
struct Map {
    side: usize,
    channels: usize,
    values: Vec<f64>,
}

/// The four stage outputs of `net` for one normalised image of side `size`, each `(size/stride)² × channels` values,
/// HWC as in [`Pyramid`](super::Pyramid).
///
/// # Panics
/// If `size` is not a multiple of 32 or `image` is not `size²` values.
#[must_use]
pub fn forward(net: &ResNet18, image: &[f32], size: usize) -> [Vec<f64>; 4] {
    assert!(size.is_multiple_of(32) && image.len() == size * size, "an image of {size}×{size}");
    let conv = |name: &str| net.convs().iter().find(|c| c.name == name).expect("ResNet18 has all convolutions");
    let mut x = stem(conv("conv1"), image, size);
    std::array::from_fn(|stage| {
        for block in 0..2 {
            let prefix = format!("layer{}.{block}", stage + 1);
            let inner = relu(convolve(conv(&format!("{prefix}.conv1")), &x));
            let mut sum = convolve(conv(&format!("{prefix}.conv2")), &inner);
            let shortcut =
                if stage > 0 && block == 0 { convolve(conv(&format!("{prefix}.downsample")), &x) } else { x.clone() };
            sum.values.iter_mut().zip(&shortcut.values).for_each(|(a, b)| *a += b);
            x = relu(sum);
        }
        debug_assert_eq!((x.side, x.channels), (size / STAGE_STRIDES[stage], STAGE_CHANNELS[stage]));
        x.values.clone()
    })
}

/// conv1, ReLU and maximum.
fn stem(conv1: &Conv, image: &[f32], size: usize) -> Map {
    let image = Map { side: size, channels: 1, values: image.iter().map(|&x| f64::from(x)).collect() };
    max_pool(&relu(convolve(conv1, &image)))
}

/// What conv1, ReLU and maximum make of an image of one plane.
#[cfg(test)]
pub(super) fn stem_values(conv1: &Conv, image: &[f32], size: usize) -> Vec<f64> {
    stem(conv1, image, size).values
}

fn convolve(conv: &Conv, x: &Map) -> Map {
    let Conv { inputs, outputs, kernel, stride, .. } = *conv;
    let (side, pad) = (x.side / stride, kernel / 2);
    // With the output channel last, the innermost loop runs over neighbouring values.
    let mut weight = vec![0.0; conv.weight.len()];
    for (at, &w) in conv.weight.iter().enumerate() {
        weight[at % (inputs * kernel * kernel) * outputs + at / (inputs * kernel * kernel)] = f64::from(w);
    }
    let mut values = Vec::with_capacity(side * side * outputs);
    for y in 0..side {
        for column in 0..side {
            let mut sums: Vec<f64> = conv.bias.iter().map(|&b| f64::from(b)).collect();
            for ky in 0..kernel {
                for kx in 0..kernel {
                    let (sy, sx) = (y * stride + ky, column * stride + kx);
                    if !(pad..x.side + pad).contains(&sy) || !(pad..x.side + pad).contains(&sx) {
                        continue;
                    }
                    let pixel = &x.values[((sy - pad) * x.side + sx - pad) * inputs..][..inputs];
                    for (i, &v) in pixel.iter().enumerate() {
                        let row = &weight[((i * kernel + ky) * kernel + kx) * outputs..][..outputs];
                        sums.iter_mut().zip(row).for_each(|(s, w)| *s += v * w);
                    }
                }
            }
            values.extend(sums);
        }
    }
    Map { side, channels: outputs, values }
}

fn relu(mut x: Map) -> Map {
    x.values.iter_mut().filter(|v| **v < 0.0).for_each(|v| *v = 0.0);
    x
}

fn max_pool(x: &Map) -> Map {
    let (side, channels) = (x.side / 2, x.channels);
    let mut values = Vec::with_capacity(side * side * channels);
    for y in 0..side {
        for column in 0..side {
            for c in 0..channels {
                let rows = (2 * y).saturating_sub(1)..=2 * y + 1;
                let taps = rows.flat_map(|sy| {
                    ((2 * column).saturating_sub(1)..=2 * column + 1).map(move |sx| (sy * x.side + sx) * channels + c)
                });
                values.push(taps.map(|at| x.values[at]).fold(f64::NEG_INFINITY, f64::max));
            }
        }
    }
    Map { side, channels, values }
}
