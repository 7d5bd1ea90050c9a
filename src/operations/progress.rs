//! Whether every thread that must move still does.
//!
//! Each such thread has a [`Pulse`] and beats it in each turn of its loop; waiting with a time-out is a turn too. A thread
//! that hangs, dies or spins elsewhere stops beating, and is overdue when its own patience has passed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Moment;

/// The last beat of a thread that has ended as it should.
const RETIRED: u64 = u64::MAX;

#[derive(Debug)]
struct Heart {
    name: &'static str,
    patience: Duration,
    /// Nanoseconds of the monotonic clock.
    last: AtomicU64,
}

/// A thread's side: beats. One that is dropped counts as overdue in time, since its thread has ended unasked.
#[derive(Debug)]
pub struct Pulse(Arc<Heart>);

impl Pulse {
    /// The thread has moved.
    pub fn beat(&self) {
        self.beat_at(Moment::now());
    }

    /// The thread had moved at this moment.
    pub fn beat_at(&self, now: Moment) {
        self.0.last.fetch_max(now.as_nanos().min(RETIRED - 1), Ordering::Relaxed);
    }

    /// The thread ends, as it should: it is never overdue again.
    pub fn retire(self) {
        self.0.last.store(RETIRED, Ordering::Relaxed);
    }
}

/// All threads that must move.
#[derive(Debug, Default)]
pub struct Progress {
    hearts: Vec<Arc<Heart>>,
}

impl Progress {
    /// Adds a thread that must beat at least once in each `patience`; its first is now.
    pub fn register(&mut self, name: &'static str, patience: Duration, now: Moment) -> Pulse {
        let heart = Arc::new(Heart { name, patience, last: AtomicU64::new(now.as_nanos()) });
        self.hearts.push(Arc::clone(&heart));
        Pulse(heart)
    }

    /// The threads that are overdue, by name, with the time since their last beat.
    pub fn overdue(&self, now: Moment) -> impl Iterator<Item = (&'static str, Duration)> {
        self.ages(now).filter(|&(_, age, patience)| age > patience).map(|(name, age, _)| (name, age))
    }

    /// Each thread that has not retired: its name, the time since its last beat, and its patience.
    pub fn ages(&self, now: Moment) -> impl Iterator<Item = (&'static str, Duration, Duration)> {
        self.hearts.iter().filter_map(move |heart| {
            let last = heart.last.load(Ordering::Relaxed);
            (last != RETIRED).then(|| (heart.name, now.since(Moment::from_nanos(last)), heart.patience))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(progress: &Progress, now: Moment) -> Vec<&'static str> {
        progress.overdue(now).map(|(name, _)| name).collect()
    }

    #[test]
    fn who_does_not_beat_in_its_own_time_is_named() {
        let second = Duration::from_secs(1);
        let start = Moment::from_nanos(5_000_000_000);
        let mut progress = Progress::default();
        let camera = progress.register("camera", second, start);
        let broker = progress.register("broker", 10 * second, start);
        assert_eq!(names(&progress, start + second), [""; 0]);
        assert_eq!(names(&progress, start + 2 * second), ["camera"]);
        camera.beat_at(start + 2 * second);
        camera.beat_at(start);
        assert_eq!(names(&progress, start + 3 * second), [""; 0], "an older beat takes nothing back");
        assert_eq!(names(&progress, start + 11 * second), ["camera", "broker"]);
        camera.retire();
        assert_eq!(names(&progress, start + 11 * second), ["broker"]);
        drop(broker);
        assert_eq!(names(&progress, start + 60 * second), ["broker"], "a thread that died is missed");
    }
}
