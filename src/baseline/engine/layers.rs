//! Batch norm, pools and doubling, forward and backward; a task is a channel.

use super::super::gemm::{Shared, each};
use crate::workers::Workers;

const EPSILON: f32 = 1e-5;

/// Share of the running statistics that a step replaces.
const MOMENTUM: f32 = 0.1;

/// Mean and variance of a row.
fn moments(row: &[f32]) -> (f32, f32) {
    let count = row.len() as f64;
    let sum = |value: &dyn Fn(f32) -> f32| {
        // Sums of parts of a fixed length: quick, and precise enough.
        row.chunks(256).map(|part| f64::from(part.iter().map(|&x| value(x)).sum::<f32>())).sum::<f64>()
    };
    let mean = (sum(&|x| x) / count) as f32;
    (mean, (sum(&|x| (x - mean) * (x - mean)) / count) as f32)
}

/// Gains, shifts and running statistics of a batch norm.
pub(super) struct Norm<'a> {
    pub(super) gain: &'a [f32],
    pub(super) shift: &'a [f32],
    /// Means, then variances.
    pub(super) running: &'a mut [f32],
    /// Means, then inverse deviations, of the batch.
    pub(super) saved: &'a mut [f32],
}

impl Norm<'_> {
    pub(super) fn forward(self, x: &[f32], y: &mut [f32], training: bool, workers: &Workers) {
        let channels = self.gain.len();
        let row = x.len() / channels;
        let (y, running, saved) = (Shared::new(y), Shared::new(self.running), Shared::new(self.saved));
        each(workers, channels, |c| {
            let x = &x[c * row..][..row];
            // SAFETY: a task has its own channel.
            let [running_mean, running_variance] = [c, channels + c].map(|at| unsafe { running.number(at) });
            let (mean, variance) = if training { moments(x) } else { (*running_mean, *running_variance) };
            if training {
                let unbiased = variance * row as f32 / (row.max(2) - 1) as f32;
                *running_mean += MOMENTUM * (mean - *running_mean);
                *running_variance += MOMENTUM * (unbiased - *running_variance);
            }
            let inverse = 1.0 / (variance + EPSILON).sqrt();
            // SAFETY: as above.
            unsafe { (*saved.number(c), *saved.number(channels + c)) = (mean, inverse) };
            let (scale, shift) = (self.gain[c] * inverse, self.shift[c] - self.gain[c] * inverse * mean);
            // SAFETY: as above.
            let y = unsafe { y.slice(c * row..(c + 1) * row) };
            y.iter_mut().zip(x).for_each(|(y, x)| *y = scale * x + shift);
        });
    }
}

/// The gradients of gains, shifts and of what came in.
pub(super) struct NormGradients<'a> {
    pub(super) gain: &'a mut [f32],
    pub(super) shift: &'a mut [f32],
    pub(super) dx: &'a mut [f32],
    pub(super) add: bool,
}

impl NormGradients<'_> {
    pub(super) fn backward(self, x: &[f32], dy: &[f32], gain: &[f32], saved: &[f32], workers: &Workers) {
        let channels = gain.len();
        let row = x.len() / channels;
        let (gains, shifts, dx) = (Shared::new(self.gain), Shared::new(self.shift), Shared::new(self.dx));
        each(workers, channels, |c| {
            let (x, dy) = (&x[c * row..][..row], &dy[c * row..][..row]);
            let (mean, inverse) = (saved[c], saved[channels + c]);
            let (mut sum, mut along) = (0.0f64, 0.0f64);
            for (x, dy) in x.chunks(256).zip(dy.chunks(256)) {
                sum += f64::from(dy.iter().sum::<f32>());
                along += f64::from(x.iter().zip(dy).map(|(x, dy)| (x - mean) * dy).sum::<f32>());
            }
            let along = along * f64::from(inverse);
            // SAFETY: a task has its own channel.
            unsafe {
                *gains.number(c) = along as f32;
                *shifts.number(c) = sum as f32;
            }
            let n = row as f64;
            let (level, tilt) = ((sum / n) as f32, (along / n) as f32 * inverse);
            let scale = gain[c] * inverse;
            // SAFETY: as above.
            let dx = unsafe { dx.slice(c * row..(c + 1) * row) };
            let values = x.iter().zip(dy).map(|(x, dy)| scale * (dy - level - (x - mean) * tilt));
            put(dx, values, self.add);
        });
    }
}

/// Writes or adds.
fn put(to: &mut [f32], values: impl Iterator<Item = f32>, add: bool) {
    if add {
        to.iter_mut().zip(values).for_each(|(to, value)| *to += value);
    } else {
        to.iter_mut().zip(values).for_each(|(to, value)| *to = value);
    }
}

/// What happens to each map by itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Map {
    Max { kernel: usize, stride: usize, padding: usize },
    Mean,
    Double,
}

impl Map {
    /// The window of place `index`: from and to.
    fn window(self, index: usize, from: usize, to: usize) -> (usize, usize) {
        match self {
            Self::Max { kernel, stride, padding } => {
                let start = index * stride;
                (start.saturating_sub(padding), (start + kernel).saturating_sub(padding).min(from))
            }
            Self::Mean => (index * from / to, ((index + 1) * from).div_ceil(to)),
            Self::Double => (index / 2, index / 2 + 1),
        }
    }

    /// From maps of side `from` to maps of side `to`; `maps` of them.
    pub(super) fn forward(self, x: &[f32], y: &mut [f32], maps: usize, [from, to]: [usize; 2], workers: &Workers) {
        let shared = Shared::new(y);
        each(workers, maps, |map| {
            let x = &x[map * from * from..][..from * from];
            // SAFETY: a task has its own map.
            let y = unsafe { shared.slice(map * to * to..(map + 1) * to * to) };
            for (place, y) in y.iter_mut().enumerate() {
                let (rows, cols) = (self.window(place / to, from, to), self.window(place % to, from, to));
                let lines = (rows.0..rows.1).map(|line| &x[line * from + cols.0..line * from + cols.1]);
                *y = match self {
                    Self::Max { .. } => lines.flatten().copied().fold(f32::NEG_INFINITY, f32::max),
                    _ => lines.flatten().sum::<f32>() / ((rows.1 - rows.0) * (cols.1 - cols.0)) as f32,
                };
            }
        });
    }

    /// The gradient of `x`, added to `dx` if `add`; `y` is what forward gave, with negative values cut away if the layer
    /// has a rectifier.
    pub(super) fn backward(
        self,
        [x, y, dy]: [&[f32]; 3],
        dx: &mut [f32],
        add: bool,
        maps: usize,
        [from, to]: [usize; 2],
        workers: &Workers,
    ) {
        let shared = Shared::new(dx);
        each(workers, maps, |map| {
            let x = &x[map * from * from..][..from * from];
            let (y, dy) = (&y[map * to * to..][..to * to], &dy[map * to * to..][..to * to]);
            // SAFETY: a task has its own map.
            let dx = unsafe { shared.slice(map * from * from..(map + 1) * from * from) };
            if !add {
                dx.fill(0.0);
            }
            for (place, (y, dy)) in y.iter().zip(dy).enumerate() {
                let (rows, cols) = (self.window(place / to, from, to), self.window(place % to, from, to));
                let mut places = (rows.0..rows.1).flat_map(|line| (cols.0..cols.1).map(move |col| line * from + col));
                if let Self::Max { .. } = self {
                    // The first of equals, as it is found again in the same order.
                    if let Some(at) = places.find(|&at| x[at] == *y) {
                        dx[at] += dy;
                    }
                } else {
                    let share = dy / ((rows.1 - rows.0) * (cols.1 - cols.0)) as f32;
                    places.for_each(|at| dx[at] += share);
                }
            }
        });
    }
}
