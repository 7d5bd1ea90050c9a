//! Where a frame's pixels lie: on the heap, or in memory that somebody lends.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Memory for a frame's pixels that is not the heap's, such as pages that a device reads too.
///
/// # Safety
/// `start` leads to `len` pixels, all of them numbers, which stay where they are until this is dropped. While a frame has
/// them nobody else writes them, and nobody else reads them while it is borrowed to be written.
pub unsafe trait PixelMemory: Any + Send + Sync {
    /// The first pixel.
    fn start(&self) -> NonNull<u16>;

    /// Pixels that there is room for.
    fn len(&self) -> usize;

    /// Whether there is room for none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

pub(super) enum Pixels {
    Heap(Vec<u16>),
    Lent {
        start: NonNull<u16>,
        /// Pixels of the frame; there may be room for more.
        len: usize,
        memory: Box<dyn PixelMemory>,
    },
}

// SAFETY: the memory is its own, and may go to other threads by its contract.
unsafe impl Send for Pixels {}
// SAFETY: as above; a shared one is only read.
unsafe impl Sync for Pixels {}

impl Pixels {
    /// `len` black ones in lent memory; on the heap if it has no room for them.
    pub(super) fn lent(memory: Box<dyn PixelMemory>, len: usize) -> Self {
        if memory.len() < len {
            return Self::Heap(vec![0; len]);
        }
        let mut pixels = Self::Lent { start: memory.start(), len, memory };
        pixels.fill(0);
        pixels
    }

    /// Makes them `len` black ones, where they lie if there is room.
    pub(super) fn reset(&mut self, len: usize) {
        match self {
            Self::Heap(pixels) => {
                pixels.clear();
                pixels.resize(len, 0);
            }
            Self::Lent { memory, len: now, .. } if memory.len() >= len => {
                *now = len;
                self.fill(0);
            }
            Self::Lent { .. } => *self = Self::Heap(vec![0; len]),
        }
    }

    /// The memory that was lent, if it is a `T`.
    pub(super) fn memory<T: PixelMemory>(&self) -> Option<&T> {
        match self {
            Self::Heap(_) => None,
            Self::Lent { memory, .. } => (&**memory as &dyn Any).downcast_ref(),
        }
    }
}

impl Deref for Pixels {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        match self {
            Self::Heap(pixels) => pixels,
            // SAFETY: as many numbers, and nobody writes them meanwhile, as whoever lent them has promised.
            Self::Lent { start, len, .. } => unsafe { std::slice::from_raw_parts(start.as_ptr(), *len) },
        }
    }
}

impl DerefMut for Pixels {
    fn deref_mut(&mut self) -> &mut [u16] {
        match self {
            Self::Heap(pixels) => pixels,
            // SAFETY: as above, and nobody else has them.
            Self::Lent { start, len, .. } => unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), *len) },
        }
    }
}

impl Clone for Pixels {
    /// The copy lies on the heap.
    fn clone(&self) -> Self {
        Self::Heap(self.to_vec())
    }
}

impl PartialEq for Pixels {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Pixels {}

impl fmt::Debug for Pixels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::frame::Frame;

    /// Memory whose second part tells by its count whether it was given back.
    struct Page(Box<[u16]>, #[expect(dead_code, reason = "it is only dropped")] Arc<()>);

    // SAFETY: a box's pixels stay where they are, and nobody looks at this one's.
    unsafe impl PixelMemory for Page {
        fn start(&self) -> NonNull<u16> {
            NonNull::from(&self.0[0])
        }

        fn len(&self) -> usize {
            self.0.len()
        }
    }

    #[test]
    fn a_frame_in_lent_memory_is_like_any_other_and_gives_it_back() {
        let count = Arc::new(());
        let page = Page(vec![7; 12].into(), Arc::clone(&count));
        let at = page.start().as_ptr().cast_const();
        let mut frame = Frame::lent(Box::new(page), 4, 3, 255);
        assert_eq!(frame, Frame::new(4, 3, 255));
        frame.pixels_mut()[5] = 9;
        assert_eq!((frame.row(1)[1], frame.pixels().as_ptr()), (9, at));
        assert!(frame.memory::<Page>().is_some());
        let copy = frame.clone();
        assert!(copy == frame && copy.memory::<Page>().is_none(), "a copy lies on the heap");
        frame.reset(2, 2, 4095);
        assert_eq!((frame.pixels(), frame.pixels().as_ptr()), (&[0; 4][..], at));
        // Larger than what was lent.
        frame.reset(5, 5, 255);
        assert!(frame.pixels() == [0; 25] && frame.memory::<Page>().is_none());
        assert_eq!(Arc::strong_count(&count), 1, "given back");
        let small = Page(vec![7; 3].into(), Arc::clone(&count));
        assert_eq!(Frame::lent(Box::new(small), 2, 2, 255).pixels(), [0; 4]);
    }
}
