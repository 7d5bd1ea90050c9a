//! Where the judge at work takes over another model between two frames, and lends frames to a model on trial.
//!
//! The judge never waits here: it tries the locks, and comes again at the next frame where it does not get one. It
//! allocates nothing: the inspectors change places by their boxes, and frames by their buffers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::camera::Format;
use crate::frame::Frame;
use crate::pipeline::Inspector;
use crate::verdict::{Class, Verdict};

/// What the model in force said of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Opinion {
    /// The class; none: INVALID.
    pub class: Option<Class>,
    /// Calibrated score, 0 to 1.
    pub score: Option<f32>,
}

impl Opinion {
    /// Of a verdict.
    #[must_use]
    pub fn of(verdict: &Verdict) -> Self {
        Self { class: verdict.outcome.class(), score: verdict.score }
    }
}

#[derive(Default)]
struct Seat {
    next: Option<Box<Inspector>>,
    before: Option<Box<Inspector>>,
}

/// A frame that is lent.
struct Loan {
    frame: Frame,
    opinion: Option<Opinion>,
}

/// See the [module](self).
pub struct Exchange {
    /// There is a next inspector.
    news: AtomicBool,
    seat: Mutex<Seat>,
    taken: Condvar,
    /// A frame is wanted.
    wanted: AtomicBool,
    loan: Mutex<Loan>,
    lent: Condvar,
}

impl Exchange {
    /// For frames of this format.
    #[must_use]
    pub fn new(format: Format) -> Self {
        let loan = Loan { frame: Frame::new(format.width, format.height, format.white), opinion: None };
        Self {
            news: AtomicBool::new(false),
            seat: Mutex::default(),
            taken: Condvar::new(),
            wanted: AtomicBool::new(false),
            loan: Mutex::new(loan),
            lent: Condvar::new(),
        }
    }

    /// Lends frames that `make` has made from now on.
    pub(super) fn furnish(&self, make: impl FnOnce(Format) -> Frame) {
        let mut loan = self.loan.lock().unwrap_or_else(PoisonError::into_inner);
        loan.frame = make(Format::of(&loan.frame));
    }

    /// Has the judge go on with `next`; gives the one before it as soon as the judge has changed.
    ///
    /// # Errors
    /// Gives `next` back if the judge does not come within `wait`.
    pub fn swap(&self, next: Box<Inspector>, wait: Duration) -> Result<Box<Inspector>, Box<Inspector>> {
        let until = Instant::now() + wait;
        let mut seat = self.seat.lock().unwrap_or_else(PoisonError::into_inner);
        (seat.next, seat.before) = (Some(next), None);
        self.news.store(true, Ordering::Release);
        loop {
            if let Some(before) = seat.before.take() {
                return Ok(before);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero()
                && let Some(next) = seat.next.take()
            {
                self.news.store(false, Ordering::Release);
                return Err(next);
            }
            // Short enough that a wake-up that was missed costs nothing to speak of.
            let turn = left.min(Duration::from_millis(50));
            seat = self.taken.wait_timeout(seat, turn).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The judge's look, between two frames: whether `inspector` is another one now.
    pub(super) fn take(&self, inspector: &mut Box<Inspector>) -> bool {
        if !self.news.load(Ordering::Acquire) {
            return false;
        }
        let mut seat = match self.seat.try_lock() {
            Ok(seat) => seat,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let Some(next) = seat.next.take() else { return false };
        seat.before = Some(std::mem::replace(inspector, next));
        self.news.store(false, Ordering::Release);
        self.taken.notify_all();
        true
    }

    /// The next frame that the judge has judged, handed to `look` with what it said; none within `wait`.
    pub fn next_frame<T>(&self, wait: Duration, look: impl FnOnce(&Frame, Opinion) -> T) -> Option<T> {
        let mut loan = self.loan.lock().unwrap_or_else(PoisonError::into_inner);
        loan.opinion = None;
        self.wanted.store(true, Ordering::Release);
        let until = Instant::now() + wait;
        while loan.opinion.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.wanted.store(false, Ordering::Release);
                return None;
            }
            loan = self.lent.wait_timeout(loan, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let opinion = loan.opinion.take()?;
        Some(look(&loan.frame, opinion))
    }

    /// The judge is done with a frame: it changes places with the one that was lent before, if one is wanted.
    pub(super) fn lend(&self, frame: &mut Frame, verdict: &Verdict) {
        if !self.wanted.load(Ordering::Acquire) {
            return;
        }
        let mut loan = match self.loan.try_lock() {
            Ok(loan) => loan,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // A buffer of another format would have to be changed at the camera.
        if Format::of(&loan.frame) != Format::of(frame) {
            return;
        }
        std::mem::swap(&mut loan.frame, frame);
        loan.opinion = Some(Opinion::of(verdict));
        self.wanted.store(false, Ordering::Release);
        self.lent.notify_all();
    }
}
