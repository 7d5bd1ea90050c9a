//! After start, the backbone allocates nothing: a counting global allocator sees every thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cellgate::backbone::cpu::CpuBackbone;
use cellgate::backbone::{Backbone, Pyramid, ResNet18};
use cellgate::simd::Isa;
use cellgate::workers::Workers;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system allocator's; counting touches no memory of its.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_run_allocates_nothing() {
    let size = 96;
    let workers = Arc::new(Workers::new(2));
    let mut backbone = CpuBackbone::new(&ResNet18::embedded().unwrap(), size, Isa::detect(), workers).unwrap();
    let (image, mut pyramid) = (vec![0.25; size * size], Pyramid::new(size));
    // The first run may set up thread-local state of the standard library.
    backbone.run(&image, &mut pyramid).unwrap();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(before > 0, "the counter counts");
    for _ in 0..20 {
        backbone.run(&image, &mut pyramid).unwrap();
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
