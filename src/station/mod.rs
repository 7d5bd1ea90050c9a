//! The appliance: from camera and trigger to a durable verdict, in fixed memory and in time.
//!
//! ```text
//!  camera thread ──► slots ──► judge thread ──┐
//!  triggers (MQTT, GPIO) ─────► desk ◄────────┘
//!  clock thread (deadlines) ──►  │
//!                                └──► scribe thread ──► ledger (durable) ──► reject line, delivery, display, metrics
//! ```
//!
//! Four threads share one [`Desk`] under a lock that nobody holds while he waits for camera or disk, or computes:
//! the next frame is captured while this one is judged, and the clock gives `INVALID(deadline)` on time even if the judge
//! hangs. A panic of the judge is one `INVALID(internal)`.

pub mod appliance;
pub mod desk;
mod ears;
pub mod exchange;
mod host;
pub mod judge;
mod keeper;
pub mod ledger;
pub mod report;
pub mod scribe;
pub mod start;
pub mod status;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::camera::trigger::Trigger;
use crate::camera::{Camera, CameraError, Shot};
use crate::clock::Moment;
use crate::verdict::{Invalid, Verdict};

use desk::Desk;
use judge::Judge;
use scribe::Scribe;
use status::{Health, Status, THUMBNAIL};

/// How long the camera is waited for before anything else is looked at.
const PATIENCE: Duration = Duration::from_millis(200);
/// Threads without work look up so often.
const IDLE: Duration = Duration::from_millis(100);
/// A camera that is lost is asked for again so often.
const RETRY: Duration = Duration::from_millis(500);

/// Called by each thread of the station whenever it has got anywhere, waiting in vain included: the watchdog's food.
pub type Beat = Box<dyn Fn(Part) + Send + Sync>;

/// The station's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Takes frames.
    Camera,
    /// Judges them.
    Judge,
    /// Keeps time.
    Clock,
    /// Makes verdicts durable.
    Scribe,
}

/// What a station is made of.
pub struct Parts {
    /// Where frames come from.
    pub camera: Box<dyn Camera>,
    /// Who judges them.
    pub judge: Box<dyn Judge>,
    /// What remembers.
    pub desk: Desk,
    /// Who writes.
    pub scribe: Scribe,
    /// Slots with pixels, as many as the desk was told.
    pub slots: usize,
    /// What a thread does when it starts: priorities and the like.
    pub on_start: Box<dyn Fn(Part) + Send + Sync>,
    /// The watchdog's food.
    pub beat: Beat,
}

struct Shared {
    desk: Mutex<Desk>,
    /// There is something to judge, or the end has come.
    work: Condvar,
    /// Something has changed that the clock should look at.
    changed: Condvar,
    /// A slot may have become free.
    free: Condvar,
    /// There is something to be made durable.
    ink: Condvar,
    shots: Vec<Mutex<Shot>>,
    stop: AtomicBool,
    /// The camera has come to its end.
    ended: AtomicBool,
    /// Which threads have ended, by their part.
    done: [AtomicBool; 4],
    on_start: Box<dyn Fn(Part) + Send + Sync>,
    beat: Beat,
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn wake(&self) {
        self.work.notify_all();
        self.changed.notify_all();
        self.free.notify_all();
        self.ink.notify_all();
    }

    /// Whether this thread has ended.
    fn is_done(&self, part: Part) -> bool {
        self.done[part as usize].load(Ordering::Acquire)
    }
}

/// Says that a thread has ended, however it did.
struct Done<'a>(&'a Shared, Part);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.done[self.1 as usize].store(true, Ordering::Release);
        self.0.wake();
    }
}

/// A station at work. Dropping it stops it.
pub struct Station {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// A handle for those who bring triggers and ask how it does. Cheap to clone.
#[derive(Clone)]
pub struct Line(Arc<Shared>);

impl Station {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(parts: Parts) -> std::io::Result<Self> {
        let Parts { mut camera, mut judge, mut desk, mut scribe, slots, on_start, beat } = parts;
        desk.outbox_is(Health::Up, scribe.boot());
        desk.judged_by(judge.tag());
        let format = camera.format();
        let shot = || Shot::over(judge.frame(format));
        camera.furnish(&|| judge.frame(format));
        let mut spare = shot();
        let shared = Arc::new(Shared {
            desk: Mutex::new(desk),
            work: Condvar::new(),
            changed: Condvar::new(),
            free: Condvar::new(),
            ink: Condvar::new(),
            shots: (0..slots).map(|_| Mutex::new(shot())).collect(),
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            done: std::array::from_fn(|_| AtomicBool::new(false)),
            on_start,
            beat,
        });
        let mut station = Self { shared: Arc::clone(&shared), threads: Vec::with_capacity(4) };
        station.spawn("scribe", Part::Scribe, move |shared| write_down(shared, &mut scribe))?;
        station.spawn("clock", Part::Clock, keep_time)?;
        station.spawn("judge", Part::Judge, move |shared| judge_frames(shared, judge.as_mut()))?;
        station.spawn("camera", Part::Camera, move |shared| take_frames(shared, camera.as_mut(), &mut spare))?;
        Ok(station)
    }

    fn spawn(&mut self, name: &str, part: Part, run: impl FnOnce(&Shared) + Send + 'static) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let _done = Done(&shared, part);
            (shared.on_start)(part);
            run(&shared);
        });
        if thread.is_err() {
            // Those that run already must not wait for those that never will.
            self.shared.done.iter().for_each(|done| done.store(true, Ordering::Release));
        }
        self.threads.push(thread?);
        Ok(())
    }

    /// A handle to bring triggers by.
    #[must_use]
    pub fn line(&self) -> Line {
        Line(Arc::clone(&self.shared))
    }

    /// Whether the camera has come to its end and every cell has its verdict.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire) && self.shared.desk().is_idle()
    }

    /// Whether a thread of the station has died: nothing is to be hoped for but a restart.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        !self.shared.stopped()
            && !self.shared.ended.load(Ordering::Acquire)
            && self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Takes no more frames, waits until each cell that has come has its verdict, and stops.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so, and its cells have been told by the clock.
            let _ = thread.join();
        }
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Line {
    /// A cell lies there.
    pub fn trigger(&self, trigger: Trigger) {
        self.0.desk().trigger(trigger, Moment::now());
        self.0.changed.notify_all();
    }

    /// Everything at this moment.
    #[must_use]
    pub fn status(&self) -> Status {
        self.0.desk().status()
    }

    /// Does something at the desk.
    pub fn with_desk<T>(&self, act: impl FnOnce(&mut Desk) -> T) -> T {
        act(&mut self.0.desk())
    }
}

/// Captures into free slots; what finds none is counted and told.
fn take_frames(shared: &Shared, camera: &mut dyn Camera, spare: &mut Shot) {
    let (mut restarts, mut complained) = (camera.restarts(), false);
    let mut slot = None;
    while !shared.stopped() {
        (shared.beat)(Part::Camera);
        if slot.is_none() {
            let mut desk = shared.desk();
            slot = desk.take();
            if slot.is_none() && camera.on_demand() {
                // Nothing is lost by not asking.
                drop(shared.free.wait_timeout(desk, IDLE));
                continue;
            }
        }
        let outcome = match slot {
            Some(slot) => {
                let mut shot = shared.shots[slot].lock().unwrap_or_else(PoisonError::into_inner);
                camera.next(&mut shot, PATIENCE).map(|()| (shot.sequence, shot.taken))
            }
            None => camera.next(spare, PATIENCE).map(|()| (spare.sequence, spare.taken)),
        };
        let mut desk = shared.desk();
        if camera.restarts() != restarts {
            restarts = camera.restarts();
            desk.camera_restarted();
        }
        let now = Moment::now();
        match outcome {
            Ok((sequence, taken)) => {
                match slot.take() {
                    Some(slot) => desk.frame(slot, sequence, taken, now),
                    None => desk.blind_frame(sequence, taken, Invalid::Overrun, now),
                }
                complained = false;
            }
            Err(CameraError::Nothing(_)) => desk.camera_waits(),
            Err(CameraError::Damaged { sequence, taken, why }) => {
                desk.blind_frame(sequence, taken, Invalid::Damaged(why), now);
            }
            Err(CameraError::End) => {
                drop(desk);
                shared.ended.store(true, Ordering::Release);
                break;
            }
            Err(error) => {
                desk.camera_is(Health::Down);
                drop(desk);
                if !complained {
                    log::error!("the camera is lost: {error}; trying again");
                    complained = true;
                }
                std::thread::sleep(RETRY);
                continue;
            }
        }
        drop(desk);
        shared.wake();
    }
    if let Some(slot) = slot {
        shared.desk().give_back(slot);
    }
}

fn judge_frames(shared: &Shared, judge: &mut dyn Judge) {
    let mut heat = [[0; THUMBNAIL]; THUMBNAIL];
    loop {
        (shared.beat)(Part::Judge);
        let changed = judge.between();
        let mut desk = shared.desk();
        if changed {
            desk.judged_by(judge.tag());
        }
        let Some(slot) = desk.job() else {
            if shared.stopped() && shared.is_done(Part::Camera) {
                return;
            }
            drop(shared.work.wait_timeout(desk, IDLE));
            continue;
        };
        drop(desk);
        let verdict = {
            let mut shot = shared.shots[slot].lock().unwrap_or_else(PoisonError::into_inner);
            catch_unwind(AssertUnwindSafe(|| judge.judge(&mut shot.frame, &mut heat))).unwrap_or_else(|_| {
                log::error!("the judge failed on frame {}: the cell is INVALID(internal)", shot.sequence);
                Verdict::invalid(Invalid::Internal)
            })
        };
        shared.desk().judged(slot, verdict, &heat, Moment::now());
        shared.ink.notify_all();
        shared.changed.notify_all();
        shared.free.notify_all();
    }
}

/// Tells what is due, whatever the others do; ends when all that came has been told.
fn keep_time(shared: &Shared) {
    let mut desk = shared.desk();
    loop {
        (shared.beat)(Part::Clock);
        let now = Moment::now();
        desk.tick(now);
        shared.ink.notify_all();
        if shared.stopped() && shared.is_done(Part::Camera) && desk.is_idle() {
            return;
        }
        let wait = desk.wake().map_or(IDLE, |wake| wake.since(now).min(IDLE));
        desk = shared.changed.wait_timeout(desk, wait).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Makes durable what is said, one after the other; ends after the clock.
fn write_down(shared: &Shared, scribe: &mut Scribe) {
    loop {
        (shared.beat)(Part::Scribe);
        if scribe.mend() {
            log::warn!("the outbox can be written again");
            shared.desk().outbox_is(Health::Up, scribe.boot());
        }
        let mut desk = shared.desk();
        let Some(saying) = desk.next_saying() else {
            if shared.is_done(Part::Clock) {
                return;
            }
            drop(shared.ink.wait_timeout(desk, IDLE));
            continue;
        };
        drop(desk);
        let written = scribe.write(&saying, || shared.desk().newest());
        let mut desk = shared.desk();
        match written {
            Some((key, latency_us, now)) => desk.written(&saying, key, latency_us, now),
            None => desk.unwritten(),
        }
        drop(desk);
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
