//! A fixed set of threads that share the work of one call.
//!
//! Calls follow each other within microseconds while a frame is worked on, and within milliseconds otherwise. So each
//! side looks for the other for a moment (`SPINS`) before it goes to sleep: short enough to cost nothing to speak of
//! where a core has been taken away, long enough to spare most of the wake-ups within a frame.
//!
//! A core can be taken away at any moment by another program. So nobody waits for a thread that has not come: the parts
//! of a call are claimed, and the caller does what nobody else has claimed. It waits only for parts that another thread
//! is in the middle of. Where that costs more than the threads gain (a thread that is put aside in the middle of a part
//! is back after milliseconds), the caller works alone for a while before it calls on them again (`Balance`).

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// `n` threads, the caller's among them. [`Workers::run`] does the `n` parts of a task and returns when all are done;
/// it allocates nothing.
pub struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Held while a call is under way.
    turn: Mutex<Balance>,
}

/// Looks at an atomic before going to sleep: some 10 to 50 µs.
const SPINS: usize = 2000;

/// Part numbers take the low bits of `Shared::claim`, the number of the call the rest.
const PARTS: u64 = 1 << 16;

struct Shared {
    /// Parts of a call.
    parts: usize,
    /// The number of the call, and the first part of it that nobody has claimed (`parts` if there is none).
    claim: AtomicU64,
    /// The task of the call: written by the caller before it opens the call, read by those who have claimed a part.
    task: UnsafeCell<Option<*const Task<'static>>>,
    /// Parts of the call that other threads than the caller's have finished.
    done: AtomicUsize,
    /// Nanoseconds of processor time that they have worked on it.
    spared: AtomicU64,
    panicked: AtomicUsize,
    stop: AtomicBool,
    /// Threads that sleep until a call comes.
    sleepers: AtomicUsize,
    /// Whether the caller sleeps until the others are done.
    caller_sleeps: AtomicBool,
    /// Held to go to sleep and to wake others, so that nobody is missed in between.
    bed: Mutex<()>,
    wake: Condvar,
    finished: Condvar,
}

// SAFETY: `task` is written by the one caller whose turn it is, while no part is claimed and none is open, and read only
// by threads that have claimed a part of the call (with acquire ordering after the caller's release), for which the
// caller waits before it leaves. The task itself is `Sync`, and everything else in here is, too.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is only an address outside of a call.
unsafe impl Send for Shared {}

/// Waits a moment for `done`.
fn spin_until(done: impl Fn() -> bool) -> bool {
    for _ in 0..SPINS {
        if done() {
            return true;
        }
        std::hint::spin_loop();
    }
    done()
}

/// Nanoseconds that this thread has run; a thread that has lost its core does not.
#[cfg(unix)]
fn processor_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds since this was asked first: the next best where nobody tells how long a thread has run.
#[cfg(not(unix))]
fn processor_time() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Whether it pays to share.
#[derive(Debug)]
struct Balance {
    /// What sharing has gained lately, less what it has cost, in seconds: from 0 to [`Balance::MOST`].
    gain: f64,
    /// Alone until then.
    until: Option<Instant>,
    /// How long alone the next time.
    pause: Duration,
    /// Since when the threads share, or since the pause became shorter.
    since: Instant,
}

impl Balance {
    /// What the caller would have needed for what took another thread 1: less, since that finds its caches cold after
    /// each time that it had to stand aside.
    const WORTH: f64 = 0.75;
    /// No more than this is kept of good times, so that bad ones are noticed soon.
    const MOST: f64 = 4e-3;
    const SHORTEST: Duration = Duration::from_millis(20);
    const LONGEST: Duration = Duration::from_millis(640);

    fn new() -> Self {
        Self { gain: Self::MOST, until: None, pause: Self::SHORTEST, since: Instant::now() }
    }

    /// Whether the caller should share a call that starts now.
    fn share(&mut self, now: Instant) -> bool {
        match self.until {
            Some(until) if now < until => false,
            Some(_) => {
                (self.until, self.gain, self.since) = (None, Self::MOST / 2.0, now);
                true
            }
            None => true,
        }
    }

    /// After a call on which others have worked for `spared` of processor time. The caller has `lost` what it waited for
    /// them, and what it stood aside itself: a thread that is called may be given the caller's own core.
    fn learn(&mut self, spared: Duration, lost: Duration, now: Instant) {
        let spared = Self::WORTH * spared.as_secs_f64();
        self.gain = (self.gain + spared - lost.as_secs_f64()).min(Self::MOST);
        if self.gain < 0.0 {
            self.until = Some(now + self.pause);
            self.pause = (self.pause * 2).min(Self::LONGEST);
        } else if now.saturating_duration_since(self.since) >= self.pause {
            // A thread that has half a core gains for some milliseconds and loses it all in the next few: only times as
            // long as the pause say that its core is free again.
            (self.pause, self.since) = ((self.pause / 2).max(Self::SHORTEST), now);
        }
    }
}

impl Workers {
    /// Starts `n − 1` threads beside the caller's own (`n` at least 1, at most 65,535).
    #[must_use]
    pub fn new(n: usize) -> Self {
        let n = n.clamp(1, PARTS as usize - 1);
        Self::start(n, n - 1)
    }

    /// For calls of `parts` parts, on `threads` threads beside the caller's.
    fn start(parts: usize, threads: usize) -> Self {
        let shared = Arc::new(Shared {
            parts,
            claim: AtomicU64::new(parts as u64),
            task: UnsafeCell::new(None),
            done: AtomicUsize::new(0),
            spared: AtomicU64::new(0),
            panicked: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            caller_sleeps: AtomicBool::new(false),
            bed: Mutex::new(()),
            wake: Condvar::new(),
            finished: Condvar::new(),
        });
        let threads = (1..=threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("worker-{index}"))
                    .spawn(move || shared.work())
                    .expect("starting a worker thread")
            })
            .collect();
        Self { shared, threads, turn: Mutex::new(Balance::new()) }
    }

    /// How many threads share a call, the caller's included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shared.parts
    }

    /// Calls `task(index)` once for each index from 0 to `count() − 1` and returns when all are done; index 0 on this
    /// thread, the others on whichever thread has claimed it first, which may be this one. No two threads have the same
    /// index.
    ///
    /// Calls from several threads, or from within a task, do no harm: while the workers are busy the caller does all
    /// indices itself, one after another. So a task must not wait for another index.
    ///
    /// # Panics
    /// If the task panicked on another thread; a panic on this thread is passed on once the others are done.
    pub fn run(&self, task: &Task<'_>) {
        let parts = self.shared.parts;
        if parts == 1 {
            return task(0);
        }
        let mut balance = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..parts).for_each(task),
        };
        let start = Instant::now();
        if !balance.share(start) {
            return (0..parts).for_each(task);
        }
        let ran = processor_time();
        // SAFETY: only the lifetime is changed; `Call` waits for every claimed part before this frame is left, even by
        // a panic.
        let task: *const Task<'static> = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        let mut call = Call::open(&self.shared, task);
        // SAFETY: the pointer was made from a live reference just above.
        let task = unsafe { &*task };
        let mut index = 0;
        while index < parts {
            call.own += 1;
            task(index);
            index = self.shared.claim_own();
        }
        let worked = Duration::from_nanos(processor_time().saturating_sub(ran));
        drop(call);
        let now = Instant::now();
        let spared = Duration::from_nanos(self.shared.spared.load(Ordering::Relaxed));
        balance.learn(spared, (now - start).saturating_sub(worked), now);
        drop(balance);
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

/// The items of [`Workers::split`], of which each index takes a part of its own.
struct Parts<T>(*mut T);

// SAFETY: a bare address; `split` makes slices of it that do not overlap, and `T` may be sent.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    fn start(&self) -> *mut T {
        self.0
    }
}

/// A call that others may take part in; when it is dropped nobody can any more, and those who have are done.
struct Call<'a> {
    shared: &'a Shared,
    /// Parts that the caller has claimed.
    own: usize,
}

impl<'a> Call<'a> {
    fn open(shared: &'a Shared, task: *const Task<'static>) -> Self {
        // SAFETY: all parts of the last call are claimed and done, so nobody reads the task now.
        unsafe { *shared.task.get() = Some(task) };
        shared.done.store(0, Ordering::Relaxed);
        shared.spared.store(0, Ordering::Relaxed);
        shared.panicked.store(0, Ordering::Relaxed);
        let call = shared.claim.load(Ordering::Relaxed) / PARTS + 1;
        // Part 0 is the caller's. Sequentially consistent, like the look at `sleepers`: either a thread that goes to
        // sleep sees the call, or the caller sees the sleeper.
        shared.claim.store(call * PARTS + 1, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _bed = shared.bed();
            shared.wake.notify_all();
        }
        Self { shared, own: 0 }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let shared = self.shared;
        // Where the caller panicked there may be parts left: nobody shall begin one now.
        let mut others = shared.parts - self.own;
        while shared.claim_own() < shared.parts {
            others -= 1;
        }
        let all = || shared.done.load(Ordering::SeqCst) == others;
        if spin_until(all) {
            return;
        }
        let mut bed = shared.bed();
        shared.caller_sleeps.store(true, Ordering::SeqCst);
        while !all() {
            bed = shared.finished.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        shared.caller_sleeps.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn bed(&self) -> std::sync::MutexGuard<'_, ()> {
        self.bed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next part of the call that is under way, for the caller, who knows that it is; `parts` if there is none.
    fn claim_own(&self) -> usize {
        self.claim_of(self.claim.load(Ordering::Relaxed) / PARTS).unwrap_or(self.parts)
    }

    /// The next part of call `call`, if that is still open.
    fn claim_of(&self, call: u64) -> Option<usize> {
        let next = |claim: u64| {
            let open = claim / PARTS == call && claim % PARTS < self.parts as u64;
            open.then_some(claim + 1)
        };
        let claimed = self.claim.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).ok()?;
        Some((claimed % PARTS) as usize)
    }

    /// The number of the call under way if it has a part left.
    fn open_call(&self) -> Option<u64> {
        let claim = self.claim.load(Ordering::SeqCst);
        (claim % PARTS < self.parts as u64).then_some(claim / PARTS)
    }

    /// A worker's life.
    fn work(&self) {
        loop {
            let awake = || self.open_call().is_some() || self.stop.load(Ordering::SeqCst);
            if !spin_until(awake) {
                let mut bed = self.bed();
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while !awake() {
                    bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // One part a call: the rest is for those who come, and the caller.
            let Some(index) = self.open_call().and_then(|call| self.claim_of(call)) else { continue };
            let start = processor_time();
            // SAFETY: a part is claimed, so the caller has set the task and keeps it alive until `done` says otherwise.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unsafe {
                let task = (*self.task.get()).expect("an open call has a task");
                (*task)(index);
            }));
            if outcome.is_err() {
                self.panicked.fetch_add(1, Ordering::Relaxed);
            }
            self.spared.fetch_add(processor_time().saturating_sub(start), Ordering::Relaxed);
            // Sequentially consistent, like the look at `caller_sleeps`: either the caller sees that this part is done
            // before it sleeps, or it is woken.
            self.done.fetch_add(1, Ordering::SeqCst);
            if self.caller_sleeps.load(Ordering::SeqCst) {
                let _bed = self.bed();
                self.finished.notify_one();
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _bed = self.shared.bed();
            self.shared.wake.notify_all();
        }
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

    #[test]
    fn threads_that_never_come_cost_nothing_but_their_help() {
        let workers = Workers::start(4, 0);
        let hits: [AtomicUsize; 4] = Default::default();
        for _ in 0..100 {
            workers.run(&|i| {
                hits[i].fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 100));
    }

    #[test]
    fn a_call_ends_only_when_parts_that_others_have_begun_are_done() {
        let workers = Workers::new(3);
        for round in 0..300 {
            let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
            workers.run(&|index| {
                begun.fetch_add(1, Ordering::SeqCst);
                if index > 0 && round % 30 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
                ended.fetch_add(1, Ordering::SeqCst);
            });
            assert_eq!((begun.load(Ordering::SeqCst), ended.load(Ordering::SeqCst)), (3, 3));
        }
    }

    #[test]
    fn a_panic_of_the_caller_waits_for_the_others() {
        let workers = Workers::new(3);
        for _ in 0..50 {
            let inside = AtomicUsize::new(0);
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                workers.run(&|index| {
                    assert_ne!(index, 0, "as planned");
                    inside.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_micros(200));
                    inside.fetch_sub(1, Ordering::SeqCst);
                });
            }));
            assert!(caught.is_err());
            assert_eq!(inside.load(Ordering::SeqCst), 0);
        }
    }

    #[test]
    fn sharing_is_given_up_where_it_costs_more_than_it_gains_and_tried_again() {
        let (mut balance, mut now) = (Balance::new(), Instant::now());
        let (ms, none) = (Duration::from_millis(1), Duration::ZERO);
        for _ in 0..10 {
            assert!(balance.share(now));
            balance.learn(ms, none, now);
        }
        // Two waits of 3 ms for a spared millisecond each: not worth it.
        balance.learn(ms, 3 * ms, now);
        assert!(balance.share(now));
        balance.learn(ms, 4 * ms, now);
        assert!(!balance.share(now + 19 * ms) && balance.share(now + 20 * ms));
        // Again at once: twice as long.
        now += 20 * ms;
        balance.learn(ms, 10 * ms, now);
        assert!(!balance.share(now + 39 * ms) && balance.share(now + 40 * ms));
        // A thread that holds a part and does not run spares nothing.
        let mut alone = Balance::new();
        (0..5).for_each(|_| alone.learn(none, ms, now));
        assert!(!alone.share(now));
        // Good times as long as the pause make it shorter, and a good moment does not.
        now += 40 * ms;
        (0..10).for_each(|_| balance.learn(ms, none, now + 79 * ms));
        assert_eq!(balance.pause, 80 * ms);
        balance.learn(ms, none, now + 80 * ms);
        assert_eq!(balance.pause, 40 * ms);
        balance.learn(ms, none, now + 119 * ms);
        assert_eq!(balance.pause, 40 * ms);
        (1..10).for_each(|n| balance.learn(ms, none, now + (80 + 40 * n) * ms));
        assert_eq!(balance.pause, Balance::SHORTEST);
    }
}
