//! Aligned memory, and tensors as places in it.

use std::fmt;

/// One cache line. Vectors that start on one never straddle two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Floats in a cache line.
pub(crate) const LINE: usize = 16;

/// From this many bytes on, memory is asked for in huge pages: packed weights are read once a frame from front to back,
/// and looking up 4 KiB pages costs some percent of the whole network.
#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;

/// A fixed number of floats, zero at first, on a cache-line boundary.
pub(crate) struct Aligned {
    store: Store,
    len: usize,
}

enum Store {
    Lines(Vec<Line>),
    #[cfg(target_os = "linux")]
    Pages(memmap2::MmapMut),
}

impl Aligned {
    pub(crate) fn zeros(len: usize) -> Self {
        #[cfg(target_os = "linux")]
        if len * size_of::<f32>() >= HUGE
            && let Ok(pages) = memmap2::MmapMut::map_anon(len * size_of::<f32>())
        {
            // Only a hint: a kernel without huge pages refuses it, and nothing is lost.
            let _ = pages.advise(memmap2::Advice::HugePage);
            return Self { store: Store::Pages(pages), len };
        }
        Self { store: Store::Lines(vec![Line([0.0; LINE]); len.div_ceil(LINE)]), len }
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        let start = match &self.store {
            Store::Lines(lines) => lines.as_ptr().cast(),
            #[cfg(target_os = "linux")]
            Store::Pages(pages) => pages.as_ptr().cast(),
        };
        // SAFETY: a `Line` is LINE floats without padding and a page is aligned to more than a line; both stores were
        // made for at least `len` floats, zeros at first.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        let start = match &mut self.store {
            Store::Lines(lines) => lines.as_mut_ptr().cast(),
            #[cfg(target_os = "linux")]
            Store::Pages(pages) => pages.as_mut_ptr().cast(),
        };
        // SAFETY: as in `as_slice`; the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

impl Clone for Aligned {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

impl fmt::Debug for Aligned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Aligned({} floats)", self.len)
    }
}

/// Hands out places in an arena that does not exist yet; once all are known, [`Layout::allocate`] makes it.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    len: usize,
}

impl Layout {
    /// A place for `len` floats, on a cache-line boundary; gives its offset.
    pub(crate) fn reserve(&mut self, len: usize) -> usize {
        let offset = self.len;
        self.len += len.next_multiple_of(LINE);
        offset
    }

    /// The arena: zeros.
    pub(crate) fn allocate(self) -> Aligned {
        Aligned::zeros(self.len)
    }
}

/// The start of memory that the threads of one step share: the arena, or a map of the caller's pyramid.
#[derive(Clone, Copy)]
pub(crate) struct Memory(*mut f32);

// SAFETY: a bare address. Each use says which part it touches, and that no two threads write the same.
unsafe impl Send for Memory {}
// SAFETY: as for `Send`.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn new(floats: &mut [f32]) -> Self {
        Self(floats.as_mut_ptr())
    }

    /// The address of the float at `offset`.
    ///
    /// # Safety
    /// `offset` must lie inside the memory.
    #[inline(always)]
    pub(crate) unsafe fn at(self, offset: usize) -> *mut f32 {
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

/// Tensors are readable in whole tiles of this side: the input of the largest Winograd tile, less what tiles share.
pub(super) const TILE: usize = 8;

impl Tensor {
    pub(super) fn new(layout: &mut Layout, side: usize, channels: usize, pad: usize) -> Self {
        let row = side.next_multiple_of(TILE) + 2 * pad;
        Self { offset: layout.reserve(row * row * channels), side, channels, pad, row }
    }

    /// Pixels in all.
    pub(super) fn pixels(&self) -> usize {
        self.side * self.side
    }

    /// Bytes of all pixels, without the border.
    pub(super) fn bytes(&self) -> u64 {
        (self.pixels() * self.channels * size_of::<f32>()) as u64
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
