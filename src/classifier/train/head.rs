//! The last layer: mean over the map, one product, cross-entropy. It is so small that one thread does it.

use crate::classifier::network::Shape;

use super::Labels;

/// Buffers of the last layer.
#[derive(Debug)]
pub(super) struct Head {
    classes: usize,
    features: usize,
    /// batch × features: the means of the last map.
    pub(super) mean: Vec<f32>,
    /// batch × features: their gradient.
    pub(super) gradient: Vec<f32>,
    /// batch × classes.
    pub(super) logits: Vec<f32>,
    /// batch × classes: the gradient of the loss.
    error: Vec<f64>,
}

/// What the loss counts.
pub(super) struct Weighing<'a> {
    pub(super) labels: Labels<'a>,
    pub(super) class_weights: Option<&'a [f32]>,
    pub(super) label_smoothing: f32,
}

impl Head {
    pub(super) fn new(shape: &Shape, batch: usize) -> Self {
        let (classes, features) = (shape.classes, shape.widths[3]);
        let wide = vec![0.0; batch * features];
        let logits = vec![0.0; batch * classes];
        Self { classes, features, mean: wide.clone(), gradient: wide, error: vec![0.0; logits.len()], logits }
    }

    pub(super) fn forward(&mut self, weight: &[f32], bias: &[f32]) {
        let rows = self.mean.chunks_exact(self.features).zip(self.logits.chunks_exact_mut(self.classes));
        for (mean, logits) in rows {
            for ((logit, weight), &bias) in logits.iter_mut().zip(weight.chunks_exact(self.features)).zip(bias) {
                *logit = dot(mean, weight) + bias;
            }
        }
    }

    /// Loss and how many are classified correctly, as PyTorch's `cross_entropy` counts: the mean over the batch,
    /// weighted by the weight of each label's class; smoothing moves a share of each label to all classes. A
    /// blended sample counts for both of its labels.
    pub(super) fn loss(&mut self, weighing: &Weighing<'_>) -> (f64, usize) {
        let classes = self.classes;
        let weight = |class: usize| weighing.class_weights.map_or(1.0, |w| f64::from(w[class]));
        let Labels { of, beside, share } = weighing.labels;
        let all = |labels: &[usize]| labels.iter().map(|&label| weight(label)).sum::<f64>();
        // Both labels of a sample are counted as whole batches of their own, and the two losses weighed.
        let parts = [(of, (1.0 - f64::from(share)) / all(of)), (beside, f64::from(share) / all(beside))];
        let smoothing = f64::from(weighing.label_smoothing);
        let (mut loss, mut correct) = (0.0, 0);
        let rows = self.logits.chunks_exact(classes).zip(self.error.chunks_exact_mut(classes));
        for (sample, (logits, error)) in rows.enumerate() {
            let best = (0..classes).fold(0, |best, c| if logits[c] > logits[best] { c } else { best });
            correct += usize::from(best == of[sample]);
            let largest = f64::from(logits[best]);
            let sum: f64 = logits.iter().map(|&l| (f64::from(l) - largest).exp()).sum();
            let target = |c: usize| {
                let said = |label: usize| smoothing / classes as f64 + if c == label { 1.0 - smoothing } else { 0.0 };
                weight(c) * parts.iter().map(|(labels, part)| part * said(labels[sample])).sum::<f64>()
            };
            let total: f64 = (0..classes).map(target).sum();
            for c in 0..classes {
                let off = f64::from(logits[c]) - largest;
                loss -= target(c) * (off - sum.ln());
                error[c] = total * off.exp() / sum - target(c);
            }
        }
        (loss, correct)
    }

    /// The gradients of weight and bias, and of the means.
    pub(super) fn backward(&mut self, weight: &[f32], dw: &mut [f32], db: &mut [f32]) {
        let (classes, features) = (self.classes, self.features);
        dw.fill(0.0);
        for c in 0..classes {
            db[c] = self.error.iter().skip(c).step_by(classes).sum::<f64>() as f32;
        }
        for (b, error) in self.error.chunks_exact(classes).enumerate() {
            let mean = &self.mean[b * features..][..features];
            let gradient = &mut self.gradient[b * features..][..features];
            gradient.fill(0.0);
            for (c, &error) in error.iter().enumerate() {
                let error = error as f32;
                let (weight, dw) = (&weight[c * features..][..features], &mut dw[c * features..][..features]);
                for f in 0..features {
                    gradient[f] += error * weight[f];
                    dw[f] += error * mean[f];
                }
            }
        }
    }
}

/// Eight partial sums, so that the compiler may add eight at a time.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        (0..8).for_each(|i| sums[i] += a[i] * b[i]);
    }
    sums.iter().sum()
}
