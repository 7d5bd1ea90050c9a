//! How the threads share a step of the training, maps in the arena, and the one matrix product that all convolutions use.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::backbone::cpu::gemm::{RowKernel, accumulate_steps, in_row_groups};
use crate::backbone::cpu::memory::{Layout, Memory};
use crate::simd::{Isa, Kernel, Simd};
use crate::workers::Workers;

use crate::classifier::network::GROUP;

/// What every step of the training needs.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) isa: Isa,
    pub(super) workers: &'a Workers,
    /// Maps and scratch.
    pub(super) arena: Memory,
    pub(super) parameters: Memory,
    pub(super) gradients: Memory,
    /// Where the threads' scratch begins in the arena, and how much each has.
    pub(super) scratch: (usize, usize),
}

impl Context<'_> {
    /// The scratch of a thread.
    ///
    /// # Safety
    /// There must be such a thread.
    pub(super) unsafe fn scratch(&self, thread: usize) -> *mut f32 {
        // SAFETY: the arena was laid out with scratch for every thread.
        unsafe { self.arena.at(self.scratch.0 + thread * self.scratch.1) }
    }

    /// Does the items from 0 to `items − 1`, each once, on all threads, which take them in turn: with ranges of their own,
    /// as in the engine, each thread would pass by all weights instead of every second group of them, and a step on two
    /// threads takes some 5 % longer.
    ///
    /// # Safety
    /// No two items may write the same memory, nor one read what another writes.
    pub(super) unsafe fn share<W: Work>(&self, items: usize, work: &W) {
        let next = AtomicUsize::new(0);
        let (next, isa) = (&next, self.isa);
        self.workers.run(&|thread| isa.run(Items { work, next, items, thread }));
    }
}

/// Work in items that do not touch one another. Implementations must mark `item` `#[inline(always)]`.
pub(super) trait Work: Sync {
    /// Does one item; nobody else is `thread` meanwhile.
    ///
    /// # Safety
    /// The CPU must have `S`, and nobody may touch what the item reads and writes.
    unsafe fn item<S: Simd>(&self, item: usize, thread: usize);
}

struct Items<'a, W> {
    work: &'a W,
    next: &'a AtomicUsize,
    items: usize,
    thread: usize,
}

impl<W: Work> Kernel for Items<'_, W> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        loop {
            let item = self.next.fetch_add(1, Ordering::Relaxed);
            if item >= self.items {
                return;
            }
            // SAFETY: each item is taken once; the rest is the promise of `Context::share`'s caller.
            unsafe { self.work.item::<S>(item, self.thread) };
        }
    }
}

/// A batch of square maps in the arena, each HWC with a border of `pad` zeros that is never written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Map {
    offset: usize,
    pub(super) batch: usize,
    pub(super) side: usize,
    pub(super) channels: usize,
    pub(super) pad: usize,
}

impl Map {
    pub(super) fn new(layout: &mut Layout, batch: usize, side: usize, channels: usize, pad: usize) -> Self {
        let map = Self { offset: 0, batch, side, channels, pad };
        Self { offset: layout.reserve(batch * map.image()), ..map }
    }

    /// Floats from a pixel to the one below.
    #[inline(always)]
    pub(super) fn row(&self) -> usize {
        (self.side + 2 * self.pad) * self.channels
    }

    /// Floats from an image to the next.
    #[inline(always)]
    pub(super) fn image(&self) -> usize {
        (self.side + 2 * self.pad) * self.row()
    }

    /// The arena offset of pixel (`y`, `x`) of image `b`, counted from the corner of the border.
    #[inline(always)]
    pub(super) fn bordered(&self, b: usize, y: usize, x: usize) -> usize {
        debug_assert!(b < self.batch && y < self.side + 2 * self.pad && x < self.side + 2 * self.pad);
        self.offset + b * self.image() + y * self.row() + x * self.channels
    }

    /// The arena offset of pixel (`y`, `x`) of image `b`.
    #[inline(always)]
    pub(super) fn pixel(&self, b: usize, y: usize, x: usize) -> usize {
        self.bordered(b, y + self.pad, x + self.pad)
    }

    /// Pixels of the whole batch.
    pub(super) fn pixels(&self) -> usize {
        self.batch * self.side * self.side
    }

    /// Row `y` of image `b`.
    ///
    /// # Safety
    /// The map must lie in `arena`, and nobody write to the row meanwhile.
    #[inline(always)]
    pub(super) unsafe fn line<'a>(&self, arena: Memory, b: usize, y: usize) -> &'a [f32] {
        // SAFETY: as the caller promised.
        unsafe { std::slice::from_raw_parts(arena.at(self.pixel(b, y, 0)), self.side * self.channels) }
    }

    /// Row `y` of image `b`, to be written.
    ///
    /// # Safety
    /// The map must lie in `arena`, and nobody else use the row meanwhile.
    #[inline(always)]
    pub(super) unsafe fn line_mut<'a>(&self, arena: Memory, b: usize, y: usize) -> &'a mut [f32] {
        // SAFETY: as the caller promised.
        unsafe { std::slice::from_raw_parts_mut(arena.at(self.pixel(b, y, 0)), self.side * self.channels) }
    }
}

/// A stretch of an inner product: from where its left side and its right side are read, beyond where they start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) a: usize,
    pub(super) b: usize,
    pub(super) length: usize,
}

/// A product with [`GROUP`] columns: `c[m][n] = Σ_segments Σ_k a[m][segment.a + k · a_step] · b[segment.b + k · b_step + n]`.
#[derive(Clone, Copy)]
pub(super) struct Product<'a, A, C> {
    /// Where row `m` of the left-hand side starts.
    pub(super) a: A,
    pub(super) a_step: usize,
    pub(super) segments: &'a [Segment],
    pub(super) b: *const f32,
    pub(super) b_step: usize,
    /// Where row `m` of the result starts.
    pub(super) c: C,
    /// Add to what the result holds.
    pub(super) add: bool,
}

impl<A: Fn(usize) -> *const f32 + Copy, C: Fn(usize) -> *mut f32 + Copy> Product<'_, A, C> {
    /// Computes `rows` rows.
    ///
    /// # Safety
    /// The CPU must have `S`, both sides must be readable and the result writable where the fields say.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(self, rows: usize) {
        let width = S::LANES * if S::REGISTERS >= 32 { 4 } else { 2 };
        for column in (0..GROUP).step_by(width) {
            let Self { a, a_step, segments, b, b_step, c, add } = self;
            let c = move |m| c(m).wrapping_add(column);
            let panel = Panel(Product { a, a_step, segments, b: b.wrapping_add(column), b_step, c, add });
            // SAFETY: as the caller promised.
            unsafe { in_row_groups::<S, _>(&panel, 0..rows) };
        }
    }
}

/// As many columns of a [`Product`] as the micro-kernel keeps in registers.
struct Panel<'a, A, C>(Product<'a, A, C>);

impl<A: Fn(usize) -> *const f32, C: Fn(usize) -> *mut f32> RowKernel for Panel<'_, A, C> {
    type Number = f32;

    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize, const N: usize>(&self, first: usize) {
        let Product { a_step, segments, b, b_step, add, .. } = self.0;
        // SAFETY: as the caller of `Product::run` promised.
        unsafe {
            let a: [*const f32; M] = std::array::from_fn(|m| (self.0.a)(first + m));
            let mut sums = [[S::splat(0.0); N]; M];
            for segment in segments {
                let a: [*const f32; M] = std::array::from_fn(|m| a[m].wrapping_add(segment.a));
                let b = b.wrapping_add(segment.b);
                accumulate_steps::<S, f32, M, N>(&mut sums, &a, a_step, segment.length, b, b_step);
            }
            for (m, row) in sums.iter().enumerate() {
                let c = (self.0.c)(first + m);
                for (n, &sum) in row.iter().enumerate() {
                    let at = c.add(n * S::LANES);
                    S::store(at, if add { S::add(S::load(at), sum) } else { sum });
                }
            }
        }
    }
}
