//! The outbox in fixed memory.
#![allow(missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use cellgate::outbox::{MAX_PAYLOAD, OutboxConfig, Store};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's layout, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The only test in this file: another thread would be counted, too.
#[test]
fn appending_and_taking_out_allocates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&OutboxConfig { path: folder.path().join("outbox"), verdicts: 64 }).unwrap();
    let mut payload = Vec::with_capacity(MAX_PAYLOAD);
    let mut before = 0;
    for turn in 0..600_u64 {
        if turn == 10 {
            before = ALLOCATIONS.load(Ordering::Relaxed);
        }
        let key = store.append(|_, out| (0..turn % 1000 + 1).for_each(|_| out.push('x'))).unwrap();
        // Every third is delivered, so that retention drops others.
        if key.seq.is_multiple_of(3) {
            let oldest = store.peek(&mut payload).unwrap().unwrap();
            store.delivered(oldest.seq);
        }
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), before);
    assert_eq!((store.pending(), store.dropped()), (63, 600 - 200 - 63));
}
