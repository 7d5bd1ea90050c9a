//! Products of matrices, and how tasks share what they write.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::workers::Workers;

/// A matrix that is read: a window of a slice, with any strides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A whole matrix, row by row.
    pub(super) fn new(values: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(values, rows, cols, cols)
    }

    /// `rows` rows of `cols` numbers, `stride` numbers apart.
    pub(super) fn strided(values: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(fits(values.len(), rows, cols, stride), "{rows}×{cols} by {stride} in {} numbers", values.len());
        Self { values, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// Rows for columns.
    pub(super) fn t(self) -> Self {
        let Self { values, rows, cols, row_stride, col_stride } = self;
        Self { values, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

fn fits(len: usize, rows: usize, cols: usize, stride: usize) -> bool {
    rows == 0 || cols == 0 || (stride >= cols && (rows - 1) * stride + cols <= len)
}

/// A matrix that is written, row by row with a stride.
#[derive(Debug)]
pub(super) struct MatrixMut<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

impl<'a> MatrixMut<'a> {
    /// A whole matrix, row by row.
    pub(super) fn new(values: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert!(fits(values.len(), rows, cols, cols), "{rows}×{cols} in {} numbers", values.len());
        Self { start: values.as_mut_ptr(), rows, cols, stride: cols, borrowed: PhantomData }
    }
}

/// `c = a·b`, or `c += a·b` if `add`.
pub(super) fn multiply(a: Matrix<'_>, b: Matrix<'_>, c: &mut MatrixMut<'_>, add: bool) {
    assert!(a.cols == b.rows && c.rows == a.rows && c.cols == b.cols, "the shapes of a product do not fit");
    let signed = |stride: usize| stride as isize;
    // SAFETY: the windows were checked to lie in their slices; `c` is borrowed uniquely, so it overlaps neither.
    unsafe {
        matrixmultiply::sgemm(
            a.rows,
            a.cols,
            b.cols,
            1.0,
            a.values.as_ptr(),
            signed(a.row_stride),
            signed(a.col_stride),
            b.values.as_ptr(),
            signed(b.row_stride),
            signed(b.col_stride),
            f32::from(u8::from(add)),
            c.start,
            signed(c.stride),
            1,
        );
    }
}

/// Numbers of which several tasks write parts of their own at a time.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: a bare address; whoever takes a part of it promises that nobody else has it.
unsafe impl Send for Shared<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(values: &'a mut [f32]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), borrowed: PhantomData }
    }

    /// A range of the numbers.
    ///
    /// # Safety
    /// No other part that is in use may overlap it.
    pub(super) unsafe fn slice(&self, range: Range<usize>) -> &'a mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} numbers", self.len);
        // SAFETY: in bounds; unique as the caller promised.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// One number.
    ///
    /// # Safety
    /// As for [`Shared::slice`].
    pub(super) unsafe fn number(&self, at: usize) -> &'a mut f32 {
        // SAFETY: as the caller promised.
        unsafe { &mut self.slice(at..at + 1)[0] }
    }

    /// `rows` rows of `cols` numbers, `stride` apart, from `offset` on.
    ///
    /// # Safety
    /// No other part that is in use may overlap its rows.
    pub(super) unsafe fn matrix(&self, offset: usize, rows: usize, cols: usize, stride: usize) -> MatrixMut<'a> {
        let room = offset <= self.len && fits(self.len - offset, rows, cols, stride);
        assert!(room, "{rows}×{cols} by {stride} at {offset} of {} numbers", self.len);
        // SAFETY: `offset` lies within the numbers.
        MatrixMut { start: unsafe { self.start.add(offset) }, rows, cols, stride, borrowed: PhantomData }
    }
}

/// Calls `task(index)` once for each index below `count`, on all threads.
pub(super) fn each(workers: &Workers, count: usize, task: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    workers.run(&|_| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            task(index);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_transposed_windows() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut c = [1.0; 4];
        // The first two columns of a 2×3 matrix, transposed, times themselves.
        let window = Matrix::strided(&a, 2, 2, 3);
        multiply(window.t(), window, &mut MatrixMut::new(&mut c, 2, 2), false);
        assert_eq!(c, [17.0, 22.0, 22.0, 29.0]);
        multiply(window.t(), window, &mut MatrixMut::new(&mut c, 2, 2), true);
        assert_eq!(c, [34.0, 44.0, 44.0, 58.0]);
    }

    #[test]
    fn every_task_is_done_once() {
        let workers = Workers::new(3);
        let mut counts = vec![0.0; 50];
        let shared = Shared::new(&mut counts);
        each(&workers, 50, |index| {
            // SAFETY: each index has a number of its own.
            *unsafe { shared.number(index) } += 1.0;
        });
        assert!(counts.iter().all(|&count| count == 1.0), "{counts:?}");
    }
}
