//! Aligned memory, and tensors as places in it.

use std::fmt;

/// One cache line. Vectors that start on one never straddle two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Floats in a cache line.
pub(super) const LINE: usize = 16;

/// A fixed number of floats, zero at first, on a cache-line boundary.
#[derive(Clone)]
pub(super) struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

impl Aligned {
    pub(super) fn zeros(len: usize) -> Self {
        Self { lines: vec![Line([0.0; LINE]); len.div_ceil(LINE)], len }
    }

    pub(super) fn as_slice(&self) -> &[f32] {
        // SAFETY: a `Line` is LINE floats without padding, and `len` is at most the floats of all lines.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as in `as_slice`; the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl fmt::Debug for Aligned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Aligned({} floats)", self.len)
    }
}

/// Hands out places in an arena that does not exist yet; once all are known, [`Layout::allocate`] makes it.
#[derive(Debug, Default)]
pub(super) struct Layout {
    len: usize,
}

impl Layout {
    /// A place for `len` floats, on a cache-line boundary; gives its offset.
    pub(super) fn reserve(&mut self, len: usize) -> usize {
        let offset = self.len;
        self.len += len.next_multiple_of(LINE);
        offset
    }

    /// The arena: zeros.
    pub(super) fn allocate(self) -> Aligned {
        Aligned::zeros(self.len)
    }
}

/// The start of the arena while the threads of one layer share it.
#[derive(Clone, Copy)]
pub(super) struct Memory(*mut f32);

// SAFETY: a bare address. Each use says which part it touches, and that no two threads write the same.
unsafe impl Send for Memory {}
// SAFETY: as for `Send`.
unsafe impl Sync for Memory {}

impl Memory {
    pub(super) fn new(arena: &mut Aligned) -> Self {
        Self(arena.as_mut_slice().as_mut_ptr())
    }

    /// The address of the float at `offset`.
    ///
    /// # Safety
    /// `offset` must lie inside the arena.
    #[inline(always)]
    pub(super) unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: as the caller promised.
        unsafe { self.0.add(offset) }
    }
}

/// A square map in the arena, HWC, with a border of zeros: `pad` pixels before, and behind at least `pad` more than
/// the side rounded up to whole tiles of [`TILE`] pixels, so that nobody has to treat the edge apart. The border is
/// never written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor {
    offset: usize,
    /// Pixels in each direction.
    pub(super) side: usize,
    /// Floats of a pixel.
    pub(super) channels: usize,
    /// Pixels of border before the first.
    pub(super) pad: usize,
    /// Pixels of a row, border and all.
    row: usize,
}

/// Tensors are readable in whole tiles of this side (that of the larger Winograd output tile).
pub(super) const TILE: usize = 4;

impl Tensor {
    pub(super) fn new(layout: &mut Layout, side: usize, channels: usize, pad: usize) -> Self {
        let row = side.next_multiple_of(TILE) + 2 * pad;
        Self { offset: layout.reserve(row * row * channels), side, channels, pad, row }
    }

    /// Pixels in all.
    pub(super) fn pixels(&self) -> usize {
        self.side * self.side
    }

    /// Floats from a pixel to the one below.
    #[inline(always)]
    pub(super) fn row_stride(&self) -> usize {
        self.row * self.channels
    }

    /// The arena offset of pixel (`y`, `x`), counted from the corner of the border.
    #[inline(always)]
    pub(super) fn bordered(&self, y: usize, x: usize) -> usize {
        debug_assert!(y < self.row && x < self.row);
        self.offset + (y * self.row + x) * self.channels
    }

    /// The arena offset of pixel (`y`, `x`) of the map itself.
    #[inline(always)]
    pub(super) fn pixel(&self, y: usize, x: usize) -> usize {
        self.bordered(y + self.pad, x + self.pad)
    }
}
