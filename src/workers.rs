//! A fixed set of threads that share the work of one call.
//!
//! Calls follow each other within microseconds while a frame is worked on, and within milliseconds otherwise. So each
//! side looks for the other for a moment (`SPINS`) before it goes to sleep: short enough to cost nothing to speak of
//! where a core has been taken away, long enough to spare most of the wake-ups within a frame.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError};
use std::thread::JoinHandle;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// `n` threads, the caller's among them. [`Workers::run`] calls a task once on each and returns when all are done;
/// it allocates nothing.
pub struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Held while a call is under way.
    turn: Mutex<()>,
}

/// Looks at an atomic before going to sleep: some 10 to 50 µs.
const SPINS: usize = 2000;

struct Shared {
    /// `State::generation` and `State::running`, for looking without the lock. The lock decides.
    generation: AtomicU64,
    running: AtomicUsize,
    state: Mutex<State>,
    wake: Condvar,
    done: Condvar,
    panicked: AtomicUsize,
}

struct State {
    generation: u64,
    task: Option<*const Task<'static>>,
    running: usize,
    stop: bool,
}

/// Waits a moment for `done`.
fn spin_until(done: impl Fn() -> bool) {
    for _ in 0..SPINS {
        if done() {
            return;
        }
        std::hint::spin_loop();
    }
}

// SAFETY: the raw task pointer is only followed between the moment `run` sets it and the moment `run` has seen every
// thread finish, while the borrow behind it lives; the task itself is `Sync`.
unsafe impl Send for State {}

impl Workers {
    /// Starts `n − 1` threads beside the caller's own (`n` at least 1).
    #[must_use]
    pub fn new(n: usize) -> Self {
        let shared = Arc::new(Shared {
            generation: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            state: Mutex::new(State { generation: 0, task: None, running: 0, stop: false }),
            wake: Condvar::new(),
            done: Condvar::new(),
            panicked: AtomicUsize::new(0),
        });
        let threads = (1..n.max(1))
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("worker-{index}"))
                    .spawn(move || shared.work(index))
                    .expect("starting a worker thread")
            })
            .collect();
        Self { shared, threads, turn: Mutex::new(()) }
    }

    /// How many threads share a call, the caller's included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `task(index)` once for each index from 0 to `count() − 1`, index 0 on this thread, and waits for all.
    ///
    /// Calls from several threads, or from within a task, do no harm: while the workers are busy the caller does all
    /// indices itself, one after another. So a task must not wait for another index.
    ///
    /// # Panics
    /// If the task panicked on another thread; a panic on this thread is passed on once the others are done.
    pub fn run(&self, task: &Task<'_>) {
        if self.threads.is_empty() {
            return task(0);
        }
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..self.count()).for_each(task),
        };
        // SAFETY: only the lifetime is changed; `Finish` waits for every thread before this frame is left, even by a panic.
        let task: *const Task<'static> = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        {
            let mut state = self.shared.lock();
            // A panic of the last call that its own caller overtook with one.
            self.shared.panicked.store(0, Ordering::Relaxed);
            state.task = Some(task);
            state.running = self.threads.len();
            state.generation += 1;
            self.shared.running.store(state.running, Ordering::Release);
            self.shared.generation.store(state.generation, Ordering::Release);
        }
        self.shared.wake.notify_all();
        let finish = Finish(&self.shared);
        // SAFETY: the pointer was made from a live reference just above.
        unsafe { (*task)(0) };
        drop(finish);
        assert_eq!(self.shared.panicked.swap(0, Ordering::Relaxed), 0, "a worker thread panicked");
    }

    /// Shares `items`, cut into units of `unit`, out to all: `task(index, first, part)` gets the part that starts with
    /// unit number `first`. Allocates nothing.
    ///
    /// # Panics
    /// As [`Workers::run`], and if `items` is not a whole number of units.
    pub fn split<T: Send>(&self, items: &mut [T], unit: usize, task: &(dyn Fn(usize, usize, &mut [T]) + Sync)) {
        assert!(unit > 0 && items.len().is_multiple_of(unit), "{} items are not units of {unit}", items.len());
        let (units, count) = (items.len() / unit, self.count());
        let parts = Parts(items.as_mut_ptr());
        self.run(&|index| {
            let (first, last) = (units * index / count, units * (index + 1) / count);
            // SAFETY: the range lies in `items`, which is borrowed for the whole call, and `run` calls each index once:
            // no two parts overlap.
            let part =
                unsafe { std::slice::from_raw_parts_mut(parts.start().add(first * unit), (last - first) * unit) };
            task(index, first, part);
        });
    }
}

struct Finish<'a>(&'a Shared);

/// The items of [`Workers::split`], of which each index takes a part of its own.
struct Parts<T>(*mut T);

// SAFETY: a bare address; `split` makes slices of it that do not overlap, and `T` may be sent.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    fn start(&self) -> *mut T {
        self.0
    }
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        spin_until(|| self.0.running.load(Ordering::Acquire) == 0);
        let mut state = self.0.lock();
        while state.running > 0 {
            state = self.0.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.task = None;
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            spin_until(|| self.generation.load(Ordering::Acquire) != seen);
            let task = {
                let mut state = self.lock();
                while state.generation == seen && !state.stop {
                    state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                if state.stop {
                    return;
                }
                seen = state.generation;
                state.task.expect("a new generation carries a task")
            };
            // SAFETY: `run` keeps the task alive until `running` has fallen to 0, which happens below.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unsafe { (*task)(index) }));
            if outcome.is_err() {
                self.panicked.fetch_add(1, Ordering::Relaxed);
            }
            let mut state = self.lock();
            state.running -= 1;
            self.running.store(state.running, Ordering::Release);
            if state.running == 0 {
                self.done.notify_one();
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_runs_once_a_call() {
        let workers = Workers::new(3);
        let hits: [AtomicUsize; 3] = Default::default();
        for _ in 0..100 {
            workers.run(&|i| {
                hits[i].fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 100));
    }

    #[test]
    fn calls_from_several_threads_and_from_within_a_task_are_all_done() {
        let workers = Workers::new(3);
        let hits = AtomicUsize::new(0);
        let count = |_| {
            hits.fetch_add(1, Ordering::Relaxed);
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|_| workers.run(&count)));
            }
        });
        assert_eq!(hits.swap(0, Ordering::Relaxed), 4 * 200 * 3);
        workers.run(&|_| workers.run(&count));
        assert_eq!(hits.load(Ordering::Relaxed), 9);
    }

    #[test]
    fn a_split_gives_every_unit_to_one_index() {
        for (threads, units) in [(1, 5), (3, 7), (3, 2), (2, 0)] {
            let mut items = vec![(usize::MAX, 0); units * 4];
            Workers::new(threads).split(&mut items, 4, &|index, first, part| {
                for (i, unit) in part.chunks_exact_mut(4).enumerate() {
                    unit.iter_mut().for_each(|item| *item = (first + i, item.1 + index + 1));
                }
            });
            assert!(items.iter().enumerate().all(|(i, item)| item.0 == i / 4 && (1..=threads).contains(&item.1)));
        }
    }

    #[test]
    fn a_panic_on_a_worker_reaches_the_caller_and_the_workers_live_on() {
        let workers = Workers::new(2);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            workers.run(&|i| assert_eq!(i, 0, "as planned"));
        }));
        assert!(caught.is_err());
        workers.run(&|_| ());
        let both = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| workers.run(&|_| panic!("as planned"))));
        assert!(both.is_err());
        workers.run(&|_| ());
    }
}
