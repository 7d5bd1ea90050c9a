//! Aligned memory, and tensors as places in it.

use std::fmt;

use crate::backbone::Pyramid;

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
    /// Of which the floats start at a huge page.
    #[cfg(target_os = "linux")]
    Pages {
        pages: memmap2::MmapMut,
        start: usize,
    },
}

impl Aligned {
    pub(crate) fn zeros(len: usize) -> Self {
        #[cfg(target_os = "linux")]
        if len * size_of::<f32>() >= HUGE
            && let Ok(pages) = memmap2::MmapMut::map_anon(len * size_of::<f32>() + HUGE)
        {
            // Only a hint: a kernel without huge pages refuses it, and nothing is lost. What is never touched, before the
            // start too, takes no memory.
            let _ = pages.advise(memmap2::Advice::HugePage);
            let start = pages.as_ptr().align_offset(HUGE);
            return Self { store: Store::Pages { pages, start }, len };
        }
        Self { store: Store::Lines(vec![Line([0.0; LINE]); len.div_ceil(LINE)]), len }
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        let start = match &self.store {
            Store::Lines(lines) => lines.as_ptr().cast(),
            #[cfg(target_os = "linux")]
            Store::Pages { pages, start } => pages[*start..].as_ptr().cast(),
        };
        // SAFETY: a `Line` is LINE floats without padding and a page is aligned to more than a line; both stores were
        // made for at least `len` floats, zeros at first.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        let start = match &mut self.store {
            Store::Lines(lines) => lines.as_mut_ptr().cast(),
            #[cfg(target_os = "linux")]
            Store::Pages { pages, start } => pages[*start..].as_mut_ptr().cast(),
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

/// Hands out places in an area that does not exist yet; once all are known, [`Layout::allocate`] makes it.
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

    /// The area: zeros.
    pub(crate) fn allocate(self) -> Aligned {
        Aligned::zeros(self.len)
    }
}

/// What memory a float lies in.
#[derive(Clone, Copy, Debug)]
pub(in crate::backbone) enum Area {
    /// The engine's own.
    Arena,
    /// The caller's pyramid.
    Pyramid,
}

/// The place of a float in [`Areas`].
#[derive(Clone, Copy, Debug)]
pub(in crate::backbone) struct Place {
    area: Area,
    /// Floats from the start of the area.
    pub(in crate::backbone) offset: usize,
}

impl Place {
    /// At `offset` in the arena.
    pub(super) fn arena(offset: usize) -> Self {
        Self { area: Area::Arena, offset }
    }
}

impl std::ops::Add<usize> for Place {
    type Output = Self;

    #[inline(always)]
    fn add(self, floats: usize) -> Self {
        Self { offset: self.offset + floats, ..self }
    }
}

/// The start of memory that several threads share.
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

/// All memory that the threads of one step share.
#[derive(Clone, Copy)]
pub(super) struct Areas {
    arena: Memory,
    pyramid: Memory,
}

impl Areas {
    pub(super) fn new(arena: &mut [f32], pyramid: &mut Pyramid) -> Self {
        Self { arena: Memory::new(arena), pyramid: Memory::new(pyramid.memory()) }
    }

    /// The address of the float at `place`.
    ///
    /// # Safety
    /// `place` must lie inside its area.
    #[inline(always)]
    pub(super) unsafe fn at(self, place: Place) -> *mut f32 {
        let area = match place.area {
            Area::Arena => self.arena,
            Area::Pyramid => self.pyramid,
        };
        // SAFETY: as the caller promised.
        unsafe { area.at(place.offset) }
    }
}

/// A square map in one of the areas, HWC, with a border of zeros: `pad` pixels before, and behind at least `pad` more than
/// the side rounded up to whole tiles of [`TILE`] pixels, so that nobody has to treat the edge apart. The border is
/// never written.
#[derive(Clone, Copy, Debug)]
pub(in crate::backbone) struct Tensor {
    start: Place,
    /// Pixels in each direction.
    pub(in crate::backbone) side: usize,
    /// Floats of a pixel.
    pub(in crate::backbone) channels: usize,
    /// Pixels of border before the first.
    pub(super) pad: usize,
    /// Pixels of a row, border and all.
    row: usize,
}

/// Tensors are readable in whole tiles of this side: the input of the largest Winograd tile, less what tiles share.
pub(super) const TILE: usize = 8;

impl Tensor {
    pub(in crate::backbone) fn new(layout: &mut Layout, area: Area, side: usize, channels: usize, pad: usize) -> Self {
        let row = side.next_multiple_of(TILE) + 2 * pad;
        Self { start: Place { area, offset: layout.reserve(row * row * channels) }, side, channels, pad, row }
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

    /// The place of pixel (`y`, `x`), counted from the corner of the border.
    #[inline(always)]
    pub(super) fn bordered(&self, y: usize, x: usize) -> Place {
        debug_assert!(y < self.row && x < self.row);
        self.start + (y * self.row + x) * self.channels
    }

    /// The place of pixel (`y`, `x`) of the map itself.
    #[inline(always)]
    pub(in crate::backbone) fn pixel(&self, y: usize, x: usize) -> Place {
        self.bordered(y + self.pad, x + self.pad)
    }
}
