//! Squared distances between all rows of a fit.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::simd::{Isa, Kernel, Simd};
use crate::workers::Workers;

/// Rows are this many columns, or a multiple of it: two vectors of the widest instruction set.
pub(super) const PAD: usize = 32;

/// Rows of a block that one thread works on at a time.
const BLOCK: usize = 32;

/// Columns that are summed in single precision: what a block of rows and its partners take of these stays in the cache.
const PANEL: usize = 512;

/// Calls `task` for each number below `count`, on all threads, each taking the next number when it is free.
pub(super) fn for_each(workers: &Workers, count: usize, task: &(dyn Fn(usize) + Sync)) {
    let next = AtomicUsize::new(0);
    workers.run(&|_| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            task(number);
        }
    });
}

/// |zᵢ − zⱼ|²/`divisor` for all j ≤ i, of n rows of `stride` floats, a multiple of [`PAD`]: n × n numbers row by row, of
/// which the upper triangle is 0. From the differences themselves: equal rows are exactly 0 apart.
pub(super) fn squared(z: &[f32], stride: usize, divisor: f32, isa: Isa, workers: &Workers) -> Vec<f32> {
    let n = z.len() / stride;
    let mut out = vec![0.0f32; n * n];
    let blocks: Vec<Mutex<&mut [f32]>> = out.chunks_mut(BLOCK * n).map(Mutex::new).collect();
    // The last blocks are the longest: they come first.
    for_each(workers, blocks.len(), &|number| {
        let block = blocks.len() - 1 - number;
        let mut out = blocks[block].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        isa.run(Block { z, stride, first: block * BLOCK, n, scale: 1.0 / divisor, out: &mut out });
    });
    drop(blocks);
    out
}

struct Block<'a> {
    z: &'a [f32],
    stride: usize,
    first: usize,
    n: usize,
    scale: f32,
    out: &'a mut [f32],
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let rows = self.out.len() / self.n;
        for others in (0..self.first + rows).step_by(BLOCK) {
            let count = BLOCK.min(self.n - others);
            let mut sums = [[0.0f32; BLOCK]; BLOCK];
            for panel in (0..self.stride).step_by(PANEL) {
                let columns = panel..(panel + PANEL).min(self.stride);
                for i in (0..rows).step_by(4) {
                    for j in (0..count).step_by(4) {
                        // Beyond the last row, the last row again: its sums are not read.
                        let a = [0, 1, 2, 3].map(|r| self.part(self.first + (i + r).min(rows - 1), &columns));
                        let b = [0, 1, 2, 3].map(|r| self.part(others + (j + r).min(count - 1), &columns));
                        // SAFETY: the caller has checked the CPU; all parts are equally long.
                        let tile = unsafe { tile::<S>(&a, &b) };
                        for (r, tile) in tile.iter().enumerate() {
                            for (c, x) in tile.iter().enumerate() {
                                sums[i + r][j + c] += x;
                            }
                        }
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate().take(rows) {
                let end = count.min((self.first + i + 1).saturating_sub(others));
                for (out, sum) in self.out[i * self.n + others..][..end].iter_mut().zip(sums) {
                    *out = sum * self.scale;
                }
            }
        }
    }
}

impl<'a> Block<'a> {
    #[inline(always)]
    fn part(&self, row: usize, columns: &std::ops::Range<usize>) -> &'a [f32] {
        &self.z[row * self.stride..][columns.clone()]
    }
}

/// # Safety
/// The CPU must have `S`; all slices hold the same number of floats, a multiple of [`PAD`].
#[inline(always)]
unsafe fn tile<S: Simd>(a: &[&[f32]; 4], b: &[&[f32]; 4]) -> [[f32; 4]; 4] {
    debug_assert!(a.iter().chain(b).all(|x| x.len() == a[0].len()) && a[0].len().is_multiple_of(S::LANES));
    // SAFETY: as the caller promised.
    unsafe {
        let mut sums = [[S::splat(0.0); 4]; 4];
        for at in (0..a[0].len()).step_by(S::LANES) {
            let b = b.map(|b| S::load(b.as_ptr().add(at)));
            for i in 0..4 {
                let a = S::load(a[i].as_ptr().add(at));
                for j in 0..4 {
                    let d = S::sub(a, b[j]);
                    sums[i][j] = S::fma(d, d, sums[i][j]);
                }
            }
        }
        sums.map(|row| row.map(|x| S::sum(x)))
    }
}
