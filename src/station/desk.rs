//! The station's memory: what has come, what is being judged, and what has been said. A state machine under one lock.
//!
//! Every frame and every trigger that comes here leaves as exactly one verdict: as soon as it is certain which cell the
//! frame shows and what the judge says of it, or as INVALID when its time is over, whatever the judge is doing. A verdict
//! counts as given when the [`Ledger`] has made it durable; one that cannot be made durable is never told.
//!
//! A frame waits in a *slot*: one of the shots that were made at the start. Further slots have no pixels; they hold frames
//! whose verdict is known without looking, such as damaged ones. The desk allocates nothing.

use std::time::Duration;

use super::ledger::Ledger;
use super::status::{Counts, Health, Last, Said, Status, THUMBNAIL, Thumbnail};
use crate::camera::pairing::{Decision, Doubt, Pairer};
use crate::camera::trigger::{CellId, Trigger};
use crate::clock::{Date, Moment};
use crate::outbox::{Key, OutboxError};
use crate::verdict::payload::{self, About, Stamp};
use crate::verdict::{Invalid, Outcome, Verdict};

/// Slots without pixels.
const BLIND: usize = 16;
/// More frames than these are not lost between two that came: the camera's count has started again.
const MOST_LOST: u32 = 100;

/// What the desk must know of the line and of the model.
#[derive(Clone, Debug)]
pub struct DeskSettings {
    /// Slots with pixels.
    pub slots: usize,
    /// From exposure, or from a trigger, to the last moment for its verdict.
    pub takt: Duration,
    /// What a payload says of the model, and the side of a cell.
    pub about: About<'static>,
}

#[derive(Default)]
struct Slot {
    /// The camera has it, or a frame lies in it.
    taken: bool,
    /// A frame lies in it.
    filled: bool,
    /// The judge has it, or is to have it.
    judging: bool,
    /// Nobody has said yet what cell it shows.
    unpaired: bool,
    /// Something has been said of it already.
    told: bool,
    at: Moment,
    cell: Option<CellId>,
    verdict: Option<Verdict>,
}

impl Slot {
    /// Whether a frame lies in it, it is certain which cell it shows, and nothing has been said of it.
    fn waits(&self) -> bool {
        self.taken && self.filled && !self.unpaired && !self.told
    }
}

/// What was said of a cell.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Its key in the ledger; none if the verdict could not be made durable and is told to nobody else.
    pub key: Option<Key>,
    /// What the line is told: INVALID if there is no key.
    pub outcome: &'a Outcome,
    /// The same without details.
    pub said: Said,
    /// Calibrated score, 0 to 1.
    pub score: Option<f32>,
    /// From exposure to verdict, in microseconds.
    pub latency_us: u32,
}

/// Who hears at once what happens at the desk. It is called under the desk's lock: it must not block, nor allocate.
pub trait Listener: Send {
    /// A trigger was taken.
    fn triggered(&mut self) {}
    /// The frame of a cell has come, or of what may be one.
    fn exposed(&mut self) {}
    /// A trigger will have no frame.
    fn missed(&mut self) {}
    /// A verdict was given.
    fn told(&mut self, told: &Told<'_>);
}

/// See the [module](self).
pub struct Desk {
    settings: DeskSettings,
    pairer: Option<Pairer>,
    slots: Vec<Slot>,
    heats: Vec<Thumbnail>,
    /// Slots that wait for the judge, in order.
    jobs: Vec<usize>,
    ledger: Box<dyn Ledger>,
    listener: Option<Box<dyn Listener>>,
    last_sequence: Option<u32>,
    frames: u64,
    status: Status,
}

impl Desk {
    /// `pairer`: none where every frame is a cell.
    #[must_use]
    pub fn new(
        settings: DeskSettings,
        pairer: Option<Pairer>,
        ledger: Box<dyn Ledger>,
        listener: Option<Box<dyn Listener>>,
    ) -> Self {
        let all = settings.slots + BLIND;
        let status = Status {
            started: Moment::now(),
            shift_began: Date::now(),
            boot: ledger.boot(),
            camera: Health::Starting,
            outbox: Health::Up,
            ..Status::default()
        };
        Self {
            slots: (0..all).map(|_| Slot::default()).collect(),
            heats: vec![[[0; THUMBNAIL]; THUMBNAIL]; settings.slots],
            jobs: Vec::with_capacity(all),
            settings,
            pairer,
            ledger,
            listener,
            last_sequence: None,
            frames: 0,
            status,
        }
    }

    /// A slot for the camera to fill.
    pub fn take(&mut self) -> Option<usize> {
        let free = self.slots[..self.settings.slots].iter().position(|slot| !slot.taken)?;
        self.slots[free] = Slot { taken: true, ..Slot::default() };
        Some(free)
    }

    /// The camera did not fill it.
    pub fn give_back(&mut self, slot: usize) {
        self.slots[slot].taken = false;
    }

    /// A frame has come into `slot`, and is to be judged.
    pub fn frame(&mut self, slot: usize, sequence: u32, taken: Moment, now: Moment) {
        self.slots[slot].judging = true;
        self.jobs.push(slot);
        self.came(slot, sequence, taken, now);
    }

    /// A frame has come that nobody can look at.
    pub fn blind_frame(&mut self, sequence: u32, taken: Moment, why: Invalid, now: Moment) {
        match why {
            Invalid::Overrun => self.status.faults.overruns += 1,
            _ => self.status.faults.damaged_frames += 1,
        }
        let first = self.settings.slots;
        let Some(slot) = self.slots[first..].iter().position(|slot| !slot.taken).map(|index| first + index) else {
            self.tell(None, taken, Verdict::invalid(why), None, now);
            return;
        };
        self.slots[slot] = Slot { taken: true, verdict: Some(Verdict::invalid(why)), ..Slot::default() };
        self.came(slot, sequence, taken, now);
    }

    fn came(&mut self, slot: usize, sequence: u32, taken: Moment, now: Moment) {
        self.status.camera = Health::Up;
        self.lost_before(sequence, taken, now);
        self.frames += 1;
        if let Some(listener) = &mut self.listener {
            listener.exposed();
        }
        (self.slots[slot].filled, self.slots[slot].at) = (true, taken);
        match &mut self.pairer {
            Some(pairer) => {
                self.slots[slot].unpaired = true;
                pairer.frame(slot, sequence, taken);
            }
            None => self.slots[slot].cell = Some(CellId::number(self.frames)),
        }
        self.tick(now);
    }

    /// Frames that were exposed before this one and did not come.
    fn lost_before(&mut self, sequence: u32, taken: Moment, now: Moment) {
        let lost = self.last_sequence.map_or(0, |last| sequence.wrapping_sub(last).wrapping_sub(1));
        self.last_sequence = Some(sequence);
        if lost > MOST_LOST {
            self.restarted();
            return;
        }
        self.status.faults.lost_frames += u64::from(lost);
        if self.pairer.is_none() {
            for _ in 0..lost {
                self.frames += 1;
                let lost = Verdict::invalid(Invalid::LostFrame);
                self.tell(Some(CellId::number(self.frames)), taken, lost, None, now);
            }
        }
    }

    fn restarted(&mut self) {
        self.status.faults.camera_restarts += 1;
        if let Some(pairer) = &mut self.pairer {
            pairer.camera_restarted();
        }
    }

    /// The camera was opened again: its count starts afresh.
    pub fn camera_restarted(&mut self) {
        self.last_sequence = None;
        self.restarted();
    }

    /// How the camera does.
    pub fn camera_is(&mut self, health: Health) {
        self.status.camera = health;
    }

    /// The camera is there, and nothing is exposed.
    pub fn camera_waits(&mut self) {
        self.status.camera = Health::Up;
    }

    /// How the broker does.
    pub fn broker_is(&mut self, health: Health) {
        self.status.broker = health;
    }

    /// A trigger has come. Passed over where every frame is a cell.
    pub fn trigger(&mut self, trigger: Trigger, now: Moment) {
        if let Some(pairer) = &mut self.pairer {
            if pairer.trigger(trigger)
                && let Some(listener) = &mut self.listener
            {
                listener.triggered();
            }
            self.tick(now);
        }
    }

    /// A message has come that is none.
    pub fn bad_message(&mut self) {
        self.status.faults.bad_messages += 1;
    }

    /// The next frame to be judged, by its slot.
    pub fn job(&mut self) -> Option<usize> {
        // A frame whose time is over is not worth the work.
        while let Some(&slot) = self.jobs.first() {
            self.jobs.remove(0);
            if !self.slots[slot].told {
                return Some(slot);
            }
            self.slots[slot].judging = false;
            self.free(slot);
        }
        None
    }

    /// The judge has spoken.
    pub fn judged(&mut self, slot: usize, verdict: Verdict, heat: &Thumbnail, now: Moment) {
        self.slots[slot].judging = false;
        if self.slots[slot].told {
            self.free(slot);
        } else {
            self.slots[slot].verdict = Some(verdict);
            self.heats[slot] = *heat;
        }
        self.tick(now);
    }

    /// Says all that can be said at `now`, the oldest first.
    pub fn tick(&mut self, now: Moment) {
        while let Some(decision) = self.pairer.as_mut().and_then(|pairer| pairer.next(now)) {
            self.decided(decision, now);
        }
        while let Some(slot) = self.first_to_tell(now) {
            if self.slots[slot].verdict.is_none() {
                self.status.faults.deadlines += 1;
                let takt_ms = u32::try_from(self.settings.takt.as_millis()).unwrap_or(u32::MAX);
                self.slots[slot].verdict = Some(Verdict::invalid(Invalid::Deadline { takt_ms }));
            }
            self.tell_slot(slot, now);
        }
    }

    /// The oldest frame that has its verdict, or has none though its time is over.
    fn first_to_tell(&self, now: Moment) -> Option<usize> {
        let due = |slot: &Slot| slot.waits() && (slot.verdict.is_some() || now >= slot.at + self.settings.takt);
        (0..self.slots.len()).filter(|&index| due(&self.slots[index])).min_by_key(|&index| self.slots[index].at)
    }

    /// When to [`tick`](Self::tick) again if nothing comes before.
    #[must_use]
    pub fn wake(&self) -> Option<Moment> {
        let late = self.slots.iter().filter(|slot| slot.waits());
        let late = late.map(|slot| slot.at + self.settings.takt).min();
        [late, self.pairer.as_ref().and_then(Pairer::wake)].into_iter().flatten().min()
    }

    /// Whether everything that came has been told.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pairer.as_ref().is_none_or(|pairer| pairer.wake().is_none()) && !self.slots.iter().any(Slot::waits)
    }

    fn decided(&mut self, decision: Decision, now: Moment) {
        match decision {
            Decision::Pair(trigger, slot) => {
                self.slots[slot].unpaired = false;
                self.slots[slot].cell = trigger.cell.or(trigger.number.map(|number| CellId::number(number.into())));
            }
            Decision::Refused(trigger, slot, doubt) => {
                let faults = &mut self.status.faults;
                match doubt {
                    Doubt::NoFrame => faults.missed_frames += 1,
                    Doubt::NoTrigger => faults.extra_frames += 1,
                    _ => faults.ambiguous += 1,
                }
                let cell = trigger.and_then(|trigger| trigger.cell);
                let invalid = Verdict::invalid(Invalid::Pairing(doubt));
                if let (Doubt::NoFrame, Some(listener)) = (doubt, &mut self.listener) {
                    listener.missed();
                }
                match slot {
                    Some(slot) => {
                        let heard = &mut self.slots[slot];
                        (heard.unpaired, heard.cell, heard.verdict) = (false, cell, Some(invalid));
                        self.tell_slot(slot, now);
                    }
                    None => self.tell(cell, trigger.map_or(now, |trigger| trigger.at), invalid, None, now),
                }
            }
        }
    }

    fn tell_slot(&mut self, slot: usize, now: Moment) {
        let Some(verdict) = self.slots[slot].verdict.take() else { return };
        let (cell, at) = (self.slots[slot].cell, self.slots[slot].at);
        let heat = verdict.distances.and(self.heats.get(slot)).copied();
        self.tell(cell, at, verdict, heat.as_ref(), now);
        self.slots[slot].told = true;
        self.free(slot);
    }

    /// Frees a slot that nobody holds any more.
    fn free(&mut self, slot: usize) {
        if self.slots[slot].told && !self.slots[slot].judging {
            self.slots[slot].taken = false;
        }
    }

    fn tell(&mut self, cell: Option<CellId>, at: Moment, verdict: Verdict, heat: Option<&Thumbnail>, now: Moment) {
        let time = Date::of(at);
        let latency_us = u32::try_from(now.since(at).as_micros()).unwrap_or(u32::MAX);
        let key = match self.keep(cell, &verdict, time, latency_us) {
            Ok(key) => key,
            Err(error) => {
                self.status.outbox = Health::Down;
                self.status.faults.unwritten += 1;
                log::error!("the verdict on {cell:?} ({}) is not told: {error}", verdict.outcome.word());
                let outcome = &Outcome::Invalid(Invalid::Internal);
                self.listen(&Told { key: None, outcome, said: Said::Invalid("unwritten"), score: None, latency_us });
                return;
            }
        };
        self.status.outbox = Health::Up;
        let said = match &verdict.outcome {
            Outcome::Invalid(reason) => Said::Invalid(reason.name()),
            outcome => outcome.class().map_or(Said::Invalid("internal"), Said::Class),
        };
        self.status.count(said);
        let score = verdict.score;
        self.listen(&Told { key: Some(key), outcome: &verdict.outcome, said, score, latency_us });
        let heat = heat.copied().unwrap_or([[0; THUMBNAIL]; THUMBNAIL]);
        let last = Last { cell, seq: key.seq, said, score: verdict.score, date: time, at: now, latency_us, heat };
        self.status.last = Some(last);
    }

    fn listen(&mut self, told: &Told<'_>) {
        if let Some(listener) = &mut self.listener {
            listener.told(told);
        }
    }

    /// Makes a verdict durable.
    fn keep(
        &mut self,
        cell: Option<CellId>,
        verdict: &Verdict,
        time: Date,
        latency_us: u32,
    ) -> Result<Key, OutboxError> {
        if self.status.outbox == Health::Down {
            self.ledger.reopen()?;
            self.status.boot = self.ledger.boot();
        }
        let about = self.settings.about;
        self.ledger.append(&mut |Key { boot, seq }, text| {
            let (id, stamp) = (cell.as_ref().map(CellId::as_str), Some(Stamp { boot, seq, time, latency_us }));
            payload::write_json(verdict, &About { id, stamp, ..about }, text);
        })
    }

    /// Everything at this moment.
    #[must_use]
    pub fn status(&self) -> Status {
        Status { pending: self.ledger.pending(), dropped: self.ledger.dropped(), ..self.status }
    }

    /// A new shift: its counts start at nothing.
    pub fn reset_shift(&mut self) {
        (self.status.shift, self.status.shift_began) = (Counts::default(), Date::now());
    }
}
