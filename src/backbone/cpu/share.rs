//! How the threads of a step share its items.
//!
//! What a thread has written lies in its own core's cache. So each thread has a range of a step's items for its own: in
//! every step the same part of the map, which the step before left near it. Only when its range is done does it take
//! items of others, from a thread that has lost its core or is slower.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Ranges that there can be; more threads than this share them.
const MOST: usize = 8;

/// The next item of a range, on a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Next(AtomicUsize);

/// The items of one step, none of them taken yet.
pub(super) struct Share {
    ranges: [Next; MOST],
    threads: usize,
}

impl Share {
    /// For a step that `threads` share.
    pub(super) fn new(threads: usize) -> Self {
        Self { ranges: Default::default(), threads }
    }

    /// How many threads take items.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// An item of `items` for thread `thread`, or nothing if all are taken. All threads must say the same `items`.
    #[inline]
    pub(super) fn take(&self, thread: usize, items: usize) -> Option<usize> {
        let ranges = self.threads.min(MOST);
        (0..ranges).map(|turn| (thread + turn) % ranges).find_map(|range| {
            let (first, end) = (items * range / ranges, items * (range + 1) / ranges);
            let next = &self.ranges[range].0;
            // Looked at first, or the counter would be written each time that a thread passes by an empty range.
            if first + next.load(Ordering::Relaxed) >= end {
                return None;
            }
            let item = first + next.fetch_add(1, Ordering::Relaxed);
            (item < end).then_some(item)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_taken_once_and_the_own_ones_first() {
        for (threads, items) in [(1, 5), (2, 0), (2, 1), (2, 7), (3, 12), (20, 3), (20, 100)] {
            let share = Share::new(threads);
            let mut taken: Vec<usize> = Vec::new();
            for thread in (0..threads).rev().cycle().take(threads * (items + 1)) {
                taken.extend(share.take(thread, items));
            }
            taken.sort_unstable();
            assert!(taken.into_iter().eq(0..items), "{items} items of {threads} threads");
        }
        let share = Share::new(2);
        let second: Vec<_> = std::iter::from_fn(|| share.take(1, 5)).collect();
        assert_eq!(second, [2, 3, 4, 0, 1]);
        assert_eq!(share.take(0, 5), None);
    }
}
