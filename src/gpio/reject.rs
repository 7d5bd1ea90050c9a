//! The output that lets a cell pass.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{GpioError, RejectConfig, chip};
use crate::clock::Moment;

/// A line that could not be set is tried again after this time.
const AGAIN: Duration = Duration::from_millis(50);

/// An output line whose two states are PASS and reject.
pub trait OutputLine: Send {
    /// Drives the line.
    ///
    /// # Errors
    /// What the system said.
    fn set(&mut self, pass: bool) -> io::Result<()>;
}

/// Drives the line, by a thread of its own that ends a PASS in time.
///
/// The line says PASS only while a PASS is in force: it rejects from the moment it is opened, after the configured time,
/// at [`Reject::reject`], when this value is dropped, and when the thread panics. How far that is fail-safe:
///
/// - A cut wire, a machine without power and one that has not started are a reject, if the pull of wire and input is to
///   the reject level.
/// - A process that is killed cannot set its line any more. The kernel gives the line back; most drivers leave it at the
///   last level, some make it an input, which the pull then decides. So a PASS that was in force at that moment may
///   stay. The controller must take an *edge* to PASS within a cell's cycle for that cell's, and never a level: then a line
///   that hangs is a reject too. `hold_ms` shorter than the takt makes that possible.
/// - A hardware watchdog that restarts the machine puts the pins to their reset state; choose a pin that is an input then.
pub struct Reject {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    failures: AtomicU64,
    healthy: AtomicBool,
}

#[derive(Clone, Copy)]
struct Wanted {
    pass: bool,
    /// How often something was said.
    said: u64,
    stop: bool,
}

impl Shared {
    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, change: impl FnOnce(&mut Wanted)) {
        let mut wanted = self.wanted();
        change(&mut wanted);
        wanted.said += 1;
        self.changed.notify_all();
    }
}

impl Reject {
    /// Opens the line, which rejects from then on.
    ///
    /// # Errors
    /// [`GpioError::Open`].
    pub fn open(config: &RejectConfig) -> Result<Self, GpioError> {
        Self::new(chip::output(config)?, config)
    }

    /// The same on an open line.
    ///
    /// # Errors
    /// [`GpioError::Open`] if the line cannot be set, or there can be no thread.
    pub fn new(mut line: Box<dyn OutputLine>, config: &RejectConfig) -> Result<Self, GpioError> {
        let failed = |error: io::Error| GpioError::Open {
            chip: config.chip.clone(),
            line: config.line,
            what: "output",
            why: error.to_string(),
        };
        line.set(false).map_err(failed)?;
        let shared = Arc::new(Shared {
            wanted: Mutex::new(Wanted { pass: false, said: 0, stop: false }),
            changed: Condvar::new(),
            failures: AtomicU64::new(0),
            healthy: AtomicBool::new(true),
        });
        let hold = (config.hold_ms > 0).then(|| Duration::from_millis(config.hold_ms));
        let gate = Gate { line: Guarded(line), hold, until: None, set: Some(false) };
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("reject line".into())
            .spawn(move || drive(gate, &theirs))
            .map_err(failed)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Lets the cell pass that lies there, for the configured time. Does not wait.
    pub fn pass(&self) {
        self.shared.say(|wanted| wanted.pass = true);
    }

    /// Rejects: at a verdict other than PASS, and when the next cell comes. Does not wait.
    pub fn reject(&self) {
        self.shared.say(|wanted| wanted.pass = false);
    }

    /// How often the line could not be set.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.shared.failures.load(Ordering::Relaxed)
    }

    /// Whether the line is as it should be, as far as the kernel says.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Relaxed)
    }
}

impl Drop for Reject {
    fn drop(&mut self) {
        self.shared.say(|wanted| wanted.stop = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A line that rejects when it is let go, even by a panic.
struct Guarded(Box<dyn OutputLine>);

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Err(error) = self.0.set(false) {
            log::error!("the reject line could not be set to reject at the end: {error}");
        }
    }
}

/// What the line should be at a moment, without the thread.
struct Gate {
    line: Guarded,
    hold: Option<Duration>,
    /// When the PASS in force ends.
    until: Option<Moment>,
    /// What the line was set to; none if that is not known.
    set: Option<bool>,
}

impl Gate {
    /// Something was said.
    fn say(&mut self, pass: bool, now: Moment) -> io::Result<()> {
        self.until = self.hold.filter(|_| pass).map(|hold| now + hold);
        self.drive(pass)
    }

    /// Time has passed: ends a PASS that is over, and rejects while the line is not what it should be.
    fn tick(&mut self, now: Moment) -> io::Result<()> {
        let over = self.until.is_some_and(|until| until <= now);
        if over || self.set.is_none() {
            self.until = None;
            return self.drive(false);
        }
        Ok(())
    }

    fn drive(&mut self, pass: bool) -> io::Result<()> {
        self.set = None;
        self.line.0.set(pass)?;
        self.set = Some(pass);
        Ok(())
    }

    /// How long nothing needs to be done if nothing is said.
    fn rest(&self, now: Moment) -> Option<Duration> {
        if self.set.is_none() { Some(AGAIN) } else { self.until.map(|until| until.since(now)) }
    }
}

fn drive(mut gate: Gate, shared: &Shared) {
    let mut heard = 0;
    loop {
        let mut wanted = shared.wanted();
        if wanted.said == heard {
            wanted = match gate.rest(Moment::now()) {
                Some(rest) => shared.changed.wait_timeout(wanted, rest).unwrap_or_else(PoisonError::into_inner).0,
                None => shared.changed.wait(wanted).unwrap_or_else(PoisonError::into_inner),
            };
        }
        let now = *wanted;
        drop(wanted);
        if now.stop {
            return;
        }
        let done = if now.said == heard { gate.tick(Moment::now()) } else { gate.say(now.pass, Moment::now()) };
        heard = now.said;
        let healthy = done.is_ok();
        if let Err(error) = done {
            shared.failures.fetch_add(1, Ordering::Relaxed);
            if shared.healthy.load(Ordering::Relaxed) {
                log::error!("the reject line could not be set: {error}; trying to set it to reject");
            }
        }
        shared.healthy.store(healthy, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers what it was set to; fails as often as told.
    #[derive(Clone, Default)]
    struct Wire(Arc<Mutex<(Vec<bool>, u32)>>);

    impl OutputLine for Wire {
        fn set(&mut self, pass: bool) -> io::Result<()> {
            let mut inner = self.0.lock().unwrap();
            if inner.1 > 0 {
                inner.1 -= 1;
                return Err(io::Error::other("no power"));
            }
            inner.0.push(pass);
            Ok(())
        }
    }

    impl Wire {
        fn seen(&self) -> Vec<bool> {
            self.0.lock().unwrap().0.clone()
        }

        /// Waits until it was set `count` times.
        fn after(&self, count: usize) -> Vec<bool> {
            for _ in 0..20_000 {
                if self.seen().len() >= count {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            self.seen()
        }
    }

    fn gate(hold: u64) -> (Wire, Gate) {
        let wire = Wire::default();
        let hold = (hold > 0).then(|| Duration::from_millis(hold));
        (wire.clone(), Gate { line: Guarded(Box::new(wire)), hold, until: None, set: Some(false) })
    }

    fn ms(ms: u64) -> Moment {
        Moment::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn a_pass_ends_in_time_and_not_before() {
        let (wire, mut gate) = gate(100);
        gate.say(true, ms(1000)).unwrap();
        gate.tick(ms(1099)).unwrap();
        assert_eq!((wire.seen(), gate.rest(ms(1099))), (vec![true], Some(Duration::from_millis(1))));
        gate.tick(ms(1100)).unwrap();
        assert_eq!((wire.seen(), gate.rest(ms(1100))), (vec![true, false], None));
    }

    #[test]
    fn without_a_time_a_pass_lasts_until_the_next_word() {
        let (wire, mut gate) = gate(0);
        gate.say(true, ms(1)).unwrap();
        gate.tick(ms(1_000_000)).unwrap();
        gate.say(false, ms(1_000_001)).unwrap();
        assert_eq!(wire.seen(), [true, false]);
    }

    #[test]
    fn a_line_that_cannot_be_set_is_rejected_as_soon_as_it_can() {
        let (wire, mut gate) = gate(100);
        wire.0.lock().unwrap().1 = 2;
        assert!(gate.say(true, ms(0)).is_err());
        assert_eq!(gate.rest(ms(0)), Some(AGAIN));
        assert!(gate.tick(ms(50)).is_err());
        gate.tick(ms(100)).unwrap();
        assert_eq!(wire.seen(), [false], "the PASS that failed is not made up for: its time is over");
    }

    #[test]
    fn it_rejects_at_the_start_after_the_time_and_at_the_end() {
        let wire = Wire::default();
        let config = RejectConfig { hold_ms: 5, ..RejectConfig::default() };
        let reject = Reject::new(Box::new(wire.clone()), &config).unwrap();
        assert_eq!(wire.seen(), [false]);
        reject.pass();
        assert_eq!(wire.after(3), [false, true, false]);
        assert!(reject.is_healthy() && reject.failures() == 0);
        drop(reject);
        assert_eq!(wire.seen(), [false, true, false, false]);
    }

    #[test]
    fn a_pass_that_is_in_force_ends_when_the_station_stops() {
        let wire = Wire::default();
        let reject =
            Reject::new(Box::new(wire.clone()), &RejectConfig { hold_ms: 0, ..RejectConfig::default() }).unwrap();
        reject.pass();
        assert_eq!(wire.after(2), [false, true]);
        drop(reject);
        assert_eq!(wire.seen(), [false, true, false]);
    }

    #[test]
    fn a_line_that_fails_is_told_and_tried_again() {
        let wire = Wire::default();
        let reject = Reject::new(Box::new(wire.clone()), &RejectConfig::default()).unwrap();
        wire.0.lock().unwrap().1 = 1;
        reject.pass();
        assert_eq!(wire.after(2), [false, false]);
        assert_eq!(reject.failures(), 1);
        wire.0.lock().unwrap().1 = u32::MAX;
        assert!(Reject::new(Box::new(wire.clone()), &RejectConfig::default()).is_err());
        wire.0.lock().unwrap().1 = 0;
    }
}
