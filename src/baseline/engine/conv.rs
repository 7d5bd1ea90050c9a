//! Convolutions as products of matrices, forward and backward.
//!
//! Maps lie channel by channel, in each all images of the batch: a 1×1 convolution is one product, and any other one
//! after its windows have been laid out as columns. Work is cut into tasks by sizes alone, never by the number of
//! threads, and no sum is shared between tasks: the result is the same to the bit on any number of threads.

use std::cell::RefCell;
use std::ops::Range;

use super::super::gemm::{Matrix, Shared, each, multiply};
use crate::workers::Workers;

/// Numbers of a task's columns, about.
const COLUMNS: usize = 1 << 19;

/// A product with fewer columns than this is slow.
const NARROW: usize = 64;

/// Nor is a product of fewer rows worth a task of its own: its columns are packed anew for each.
const BROAD: usize = 128;

/// Fewer tasks than this are cut further.
const TASKS: usize = 4;

thread_local! {
    /// The columns of the task at hand.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn with_scratch<R>(len: usize, run: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        run(&mut scratch[..len])
    })
}

/// A convolution of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conv {
    pub(super) batch: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) padding: usize,
    pub(super) groups: usize,
    /// Side of the maps that come in.
    pub(super) from: usize,
    /// Side of the maps that go out.
    pub(super) to: usize,
}

impl Conv {
    fn inputs_each(&self) -> usize {
        self.inputs / self.groups
    }

    fn outputs_each(&self) -> usize {
        self.outputs / self.groups
    }

    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Numbers of a map in the whole batch, coming in and going out.
    fn rows(&self) -> (usize, usize) {
        (self.batch * self.from * self.from, self.batch * self.to * self.to)
    }

    /// Whether the maps are the columns already.
    fn is_plain(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.padding == 0
    }

    /// Images of a task.
    fn images(&self) -> usize {
        let pixels = self.to * self.to;
        let fitting = COLUMNS / (self.inputs_each() * self.taps() * pixels).max(1);
        fitting.max(NARROW.div_ceil(pixels)).clamp(1, self.batch)
    }

    /// How many parts to cut `channels` into, if there are `tasks` without.
    fn cut(channels: usize, tasks: usize, least: usize) -> usize {
        TASKS.div_ceil(tasks).min(channels / least).max(1)
    }

    /// `y = w·x + bias`.
    pub(super) fn forward(&self, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32], workers: &Workers) {
        let (ins, outs, depth) = (self.inputs_each(), self.outputs_each(), self.inputs_each() * self.taps());
        let (row_in, row_out) = self.rows();
        let (images, pixels) = (self.images(), self.to * self.to);
        let chunks = self.batch.div_ceil(images);
        let parts = Self::cut(outs, self.groups * chunks, BROAD);
        let shared = Shared::new(y);
        each(workers, self.groups * chunks * parts, |task| {
            let (group, chunk, part) = (task / parts / chunks, task / parts % chunks, task % parts);
            let rows = outs * part / parts..outs * (part + 1) / parts;
            let first = group * outs + rows.start;
            let (start, end) = (chunk * images, self.batch.min((chunk + 1) * images));
            let cols = (end - start) * pixels;
            let weights = Matrix::new(&w[first * depth..][..rows.len() * depth], rows.len(), depth);
            // SAFETY: a task has its own rows of its own group, and its own images.
            let mut out = unsafe { shared.matrix(first * row_out + start * pixels, rows.len(), cols, row_out) };
            if self.is_plain() {
                let columns = Matrix::strided(&x[group * ins * row_in + start * pixels..], depth, cols, row_in);
                multiply(weights, columns, &mut out, false);
            } else {
                with_scratch(depth * cols, |scratch| {
                    self.lay_out(x, group * ins..(group + 1) * ins, start..end, scratch);
                    multiply(weights, Matrix::new(scratch, depth, cols), &mut out, false);
                });
            }
            if let Some(bias) = bias {
                for row in 0..rows.len() {
                    let at = (first + row) * row_out + start * pixels;
                    // SAFETY: as above; the product is done.
                    unsafe { shared.slice(at..at + cols) }.iter_mut().for_each(|value| *value += bias[first + row]);
                }
            }
        });
    }

    /// The gradient of the weights, and of the bias.
    pub(super) fn weights(&self, x: &[f32], dy: &[f32], dw: &mut [f32], db: Option<&mut [f32]>, workers: &Workers) {
        let (ins, outs, taps) = (self.inputs_each(), self.outputs_each(), self.taps());
        let (row_in, row_out) = self.rows();
        let (images, pixels) = (self.images(), self.to * self.to);
        let chunks = self.batch.div_ceil(images);
        let parts = Self::cut(ins, self.groups, BROAD.div_ceil(taps));
        let depth = ins * taps;
        let shared = Shared::new(dw);
        each(workers, self.groups * parts, |task| {
            let (group, part) = (task / parts, task % parts);
            let channels = ins * part / parts..ins * (part + 1) / parts;
            let deep = channels.len() * taps;
            // SAFETY: a task has its own rows and columns.
            let mut out = unsafe { shared.matrix(group * outs * depth + channels.start * taps, outs, deep, depth) };
            for chunk in 0..chunks {
                let (start, end) = (chunk * images, self.batch.min((chunk + 1) * images));
                let cols = (end - start) * pixels;
                let dy = Matrix::strided(&dy[group * outs * row_out + start * pixels..], outs, cols, row_out);
                let first = group * ins + channels.start;
                if self.is_plain() {
                    let columns = Matrix::strided(&x[first * row_in + start * pixels..], deep, cols, row_in);
                    multiply(dy, columns.t(), &mut out, chunk > 0);
                } else {
                    with_scratch(deep * cols, |scratch| {
                        self.lay_out(x, first..first + channels.len(), start..end, scratch);
                        multiply(dy, Matrix::new(scratch, deep, cols).t(), &mut out, chunk > 0);
                    });
                }
            }
        });
        if let Some(db) = db {
            for (db, dy) in db.iter_mut().zip(dy.chunks_exact(row_out)) {
                *db = dy.iter().map(|&value| f64::from(value)).sum::<f64>() as f32;
            }
        }
    }

    /// The gradient of what comes in, added to `dx` if `add`.
    pub(super) fn inputs(&self, w: &[f32], dy: &[f32], dx: &mut [f32], add: bool, workers: &Workers) {
        let (ins, outs, taps) = (self.inputs_each(), self.outputs_each(), self.taps());
        let (row_in, row_out) = self.rows();
        let (images, pixels) = (self.images(), self.to * self.to);
        let chunks = self.batch.div_ceil(images);
        let parts = Self::cut(ins, self.groups * chunks, BROAD.div_ceil(taps));
        let depth = ins * taps;
        let shared = Shared::new(dx);
        each(workers, self.groups * chunks * parts, |task| {
            let (group, chunk, part) = (task / parts / chunks, task / parts % chunks, task % parts);
            let channels = ins * part / parts..ins * (part + 1) / parts;
            let deep = channels.len() * taps;
            let (start, end) = (chunk * images, self.batch.min((chunk + 1) * images));
            let cols = (end - start) * pixels;
            let weights = Matrix::strided(&w[group * outs * depth + channels.start * taps..], outs, deep, depth);
            let dy = Matrix::strided(&dy[group * outs * row_out + start * pixels..], outs, cols, row_out);
            let first = group * ins + channels.start;
            if self.is_plain() {
                // SAFETY: a task has its own channels, and its own images.
                let mut out = unsafe { shared.matrix(first * row_in + start * pixels, deep, cols, row_in) };
                multiply(weights.t(), dy, &mut out, add);
                return;
            }
            with_scratch(deep * cols, |scratch| {
                // SAFETY: the scratch is this thread's own.
                let mut out = super::super::gemm::MatrixMut::new(scratch, deep, cols);
                multiply(weights.t(), dy, &mut out, false);
                let plane = self.from * self.from;
                for (channel, columns) in scratch.chunks_exact(taps * cols).enumerate() {
                    let at = (first + channel) * row_in + start * plane;
                    // SAFETY: a task has its own channels, and its own images.
                    let planes = unsafe { shared.slice(at..at + (end - start) * plane) };
                    if !add {
                        planes.fill(0.0);
                    }
                    self.gather(columns, planes);
                }
            });
        });
    }

    /// The columns on which a tap of the kernel lies within the map, and where on the map the first of them is.
    fn reach(&self, tap: usize) -> (Range<usize>, usize) {
        let first = self.padding.saturating_sub(tap).div_ceil(self.stride).min(self.to);
        let end =
            if self.from + self.padding > tap { (self.from + self.padding - tap - 1) / self.stride + 1 } else { 0 };
        let end = end.min(self.to).max(first);
        (first..end, (first * self.stride + tap).saturating_sub(self.padding))
    }

    /// Windows as columns: a row for each channel and tap, a column for each image and place.
    fn lay_out(&self, x: &[f32], channels: Range<usize>, images: Range<usize>, columns: &mut [f32]) {
        let (plane, pixels) = (self.from * self.from, self.to * self.to);
        let mut rows = columns.chunks_exact_mut(images.len() * pixels);
        for channel in channels {
            for tap in 0..self.taps() {
                let Some(row) = rows.next() else { return };
                let (ys, y0) = self.reach(tap / self.kernel);
                let (xs, x0) = self.reach(tap % self.kernel);
                for (image, out) in images.clone().zip(row.chunks_exact_mut(pixels)) {
                    let map = &x[(channel * self.batch + image) * plane..][..plane];
                    out[..ys.start * self.to].fill(0.0);
                    out[ys.end * self.to..].fill(0.0);
                    for (step, line) in out[ys.start * self.to..ys.end * self.to].chunks_exact_mut(self.to).enumerate()
                    {
                        let from = &map[(y0 + step * self.stride) * self.from..][..self.from];
                        line[..xs.start].fill(0.0);
                        line[xs.end..].fill(0.0);
                        let line = &mut line[xs.clone()];
                        if self.stride == 1 {
                            line.copy_from_slice(&from[x0..][..line.len()]);
                        } else {
                            let from = from[x0.min(self.from)..].iter().step_by(self.stride);
                            line.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                        }
                    }
                }
            }
        }
    }

    /// Adds columns of one channel back to where they came from.
    fn gather(&self, columns: &[f32], planes: &mut [f32]) {
        let (plane, pixels) = (self.from * self.from, self.to * self.to);
        let cols = columns.len() / self.taps();
        for (tap, row) in columns.chunks_exact(cols).enumerate() {
            let (ys, y0) = self.reach(tap / self.kernel);
            let (xs, x0) = self.reach(tap % self.kernel);
            for (map, row) in planes.chunks_exact_mut(plane).zip(row.chunks_exact(pixels)) {
                for (step, line) in row[ys.start * self.to..ys.end * self.to].chunks_exact(self.to).enumerate() {
                    let to = &mut map[(y0 + step * self.stride) * self.from..][..self.from];
                    let line = &line[xs.clone()];
                    if self.stride == 1 {
                        to[x0..][..line.len()].iter_mut().zip(line).for_each(|(to, value)| *to += value);
                    } else {
                        let to = to[x0.min(self.from)..].iter_mut().step_by(self.stride);
                        to.zip(line).for_each(|(to, value)| *to += value);
                    }
                }
            }
        }
    }
}
