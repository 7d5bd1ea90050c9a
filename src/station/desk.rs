//! The station's memory: what has come, what is being judged, and what is to be said. A state machine under one lock.
//!
//! Every frame and every trigger that comes here leaves as exactly one [`Saying`]: as soon as it is certain which cell the
//! frame shows and what the judge says of it, or as INVALID when its time is over, whatever the judge is doing. Sayings wait
//! in a queue for the [scribe](super::scribe), who makes them durable without holding the desk.
//!
//! A frame waits in a *slot*: one of the shots that were made at the start. Further slots have no pixels; they hold frames
//! whose verdict is known without looking, such as damaged ones. The desk allocates nothing.

use std::collections::VecDeque;
use std::time::Duration;

use super::judge::Tag;
use super::status::{Counts, Health, Last, Said, Status, THUMBNAIL, Thumbnail};
use crate::camera::pairing::{Decision, Doubt, Pairer};
use crate::camera::trigger::{CellId, Trigger};
use crate::clock::{Date, Moment};
use crate::outbox::Key;
use crate::verdict::{Invalid, Outcome, Verdict};

/// What a heatmap is where there is none.
const NO_HEAT: Thumbnail = [[0; THUMBNAIL]; THUMBNAIL];
/// Slots without pixels.
const BLIND: usize = 16;
/// Verdicts that can wait for the disk. More is a disk that hangs; those beyond are counted and told to nobody.
const SAYINGS: usize = 256;
/// More frames than these are not lost between two that came: the camera's count has started again.
const MOST_LOST: u32 = 100;

/// What the desk must know of the line and of the model.
#[derive(Clone, Debug)]
pub struct DeskSettings {
    /// Slots with pixels.
    pub slots: usize,
    /// From exposure, or from a trigger, to the last moment for its verdict.
    pub takt: Duration,
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
    /// A trigger asked for it, or none is needed.
    asked: bool,
    at: Moment,
    cell: Option<CellId>,
    verdict: Option<Verdict>,
    /// Who judged it.
    tag: Option<Tag>,
}

impl Slot {
    /// Whether a frame lies in it, it is certain which cell it shows, and nothing has been said of it.
    fn waits(&self) -> bool {
        self.taken && self.filled && !self.unpaired && !self.told
    }
}

/// What is to be said of a cell, or was.
#[derive(Debug)]
pub struct Saying {
    /// Its name, if one is known.
    pub cell: Option<CellId>,
    /// When it was exposed, or triggered if it has no frame.
    pub at: Moment,
    /// Whether a trigger asked for it, or none is needed.
    pub asked: bool,
    /// What is said.
    pub verdict: Verdict,
    /// The model that judged it, or would have; none: always the same one.
    pub tag: Option<Tag>,
    /// Its heatmap; all zero where there is none.
    pub heat: Thumbnail,
}

impl Saying {
    /// The same without details.
    #[must_use]
    pub fn said(&self) -> Said {
        match &self.verdict.outcome {
            Outcome::Invalid(reason) => Said::Invalid(reason.name()),
            outcome => outcome.class().map_or(Said::Invalid("internal"), Said::Class),
        }
    }
}

/// Who hears at once what happens at the desk. It is called under the desk's lock: it must not block, nor allocate.
pub trait Watcher: Send {
    /// A trigger was taken.
    fn triggered(&mut self) {}
    /// A frame has come; `expected`: that of a trigger, or none is needed.
    fn exposed(&mut self, expected: bool) {
        let _ = expected;
    }
    /// A trigger will have no frame.
    fn missed(&mut self) {}
    /// The camera is lost: whatever lies under it is not seen.
    fn blinded(&mut self) {}
}

/// See the [module](self).
pub struct Desk {
    settings: DeskSettings,
    pairer: Option<Pairer>,
    slots: Vec<Slot>,
    heats: Vec<Thumbnail>,
    /// Slots that wait for the judge, in order.
    jobs: Vec<usize>,
    sayings: VecDeque<Saying>,
    /// The scribe has a saying in hand.
    writing: bool,
    watcher: Option<Box<dyn Watcher>>,
    last_sequence: Option<u32>,
    frames: u64,
    newest: Moment,
    /// The model that judges.
    tag: Option<Tag>,
    status: Status,
}

impl Desk {
    /// `pairer`: none where every frame is a cell.
    #[must_use]
    pub fn new(settings: DeskSettings, pairer: Option<Pairer>, watcher: Option<Box<dyn Watcher>>) -> Self {
        let all = settings.slots + BLIND;
        let status = Status {
            started: Moment::now(),
            shift_began: Date::now(),
            camera: Health::Starting,
            outbox: Health::Up,
            ..Status::default()
        };
        Self {
            slots: (0..all).map(|_| Slot::default()).collect(),
            heats: vec![NO_HEAT; settings.slots],
            jobs: Vec::with_capacity(all),
            settings,
            pairer,
            sayings: VecDeque::with_capacity(SAYINGS),
            writing: false,
            watcher,
            last_sequence: None,
            frames: 0,
            newest: Moment::default(),
            tag: None,
            status,
        }
    }

    /// From now on this model judges. Allocates nothing.
    pub fn judged_by(&mut self, tag: Option<Tag>) {
        self.tag = tag;
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        if let Some(Tag { model, .. }) = tag {
            for (pair, byte) in self.status.model.chunks_exact_mut(2).zip(model.0) {
                pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
            }
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
        self.newest = self.newest.max(taken);
        let first = self.settings.slots;
        let Some(slot) = self.slots[first..].iter().position(|slot| !slot.taken).map(|index| first + index) else {
            let (verdict, asked) = (Verdict::invalid(why), self.pairer.is_none());
            self.tell(Saying { cell: None, at: taken, asked, verdict, tag: self.tag, heat: NO_HEAT });
            return;
        };
        self.slots[slot] = Slot { taken: true, verdict: Some(Verdict::invalid(why)), ..Slot::default() };
        self.came(slot, sequence, taken, now);
    }

    fn came(&mut self, slot: usize, sequence: u32, taken: Moment, now: Moment) {
        self.status.camera = Health::Up;
        self.lost_before(sequence, taken);
        self.frames += 1;
        let expected = self.pairer.as_ref().is_none_or(|pairer| pairer.expects(taken));
        if let Some(watcher) = &mut self.watcher {
            watcher.exposed(expected);
        }
        (self.slots[slot].filled, self.slots[slot].at) = (true, taken);
        self.newest = self.newest.max(taken);
        match &mut self.pairer {
            Some(pairer) => {
                self.slots[slot].unpaired = true;
                pairer.frame(slot, sequence, taken);
            }
            None => (self.slots[slot].cell, self.slots[slot].asked) = (Some(CellId::number(self.frames)), true),
        }
        self.tick(now);
    }

    /// Frames that were exposed before this one and did not come.
    fn lost_before(&mut self, sequence: u32, taken: Moment) {
        let lost = self.last_sequence.map_or(0, |last| sequence.wrapping_sub(last).wrapping_sub(1));
        self.last_sequence = Some(sequence);
        if lost > MOST_LOST {
            // Their numbers are passed over, so that no later cell goes by one of theirs.
            self.frames += u64::from(lost);
            self.restarted();
            return;
        }
        self.status.faults.lost_frames += u64::from(lost);
        if self.pairer.is_none() {
            for _ in 0..lost {
                self.frames += 1;
                let (cell, verdict) = (Some(CellId::number(self.frames)), Verdict::invalid(Invalid::LostFrame));
                self.tell(Saying { cell, at: taken, asked: true, verdict, tag: self.tag, heat: NO_HEAT });
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
        if let (Health::Down, Some(watcher)) = (health, &mut self.watcher) {
            watcher.blinded();
        }
    }

    /// The camera is there, and nothing is exposed.
    pub fn camera_waits(&mut self) {
        self.status.camera = Health::Up;
    }

    /// A trigger has come. Passed over where every frame is a cell.
    pub fn trigger(&mut self, trigger: Trigger, now: Moment) {
        if let Some(pairer) = &mut self.pairer {
            if pairer.trigger(trigger) {
                self.newest = self.newest.max(pairer.earliest(&trigger));
                if let Some(watcher) = &mut self.watcher {
                    watcher.triggered();
                }
            }
            self.tick(now);
        }
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
            (self.slots[slot].verdict, self.slots[slot].tag) = (Some(verdict), self.tag);
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
            let late = now >= self.slots[slot].at + self.settings.takt;
            let known = &self.slots[slot].verdict;
            // A verdict that comes too late is none, whoever held it up.
            if late && known.as_ref().is_none_or(|known| !matches!(known.outcome, Outcome::Invalid(_))) {
                self.status.faults.deadlines += 1;
                let takt_ms = u32::try_from(self.settings.takt.as_millis()).unwrap_or(u32::MAX);
                self.slots[slot].verdict = Some(Verdict::invalid(Invalid::Deadline { takt_ms }));
            }
            self.tell_slot(slot);
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
        self.pairer.as_ref().is_none_or(|pairer| pairer.wake().is_none())
            && !self.slots.iter().any(Slot::waits)
            && self.sayings.is_empty()
            && !self.writing
    }

    fn decided(&mut self, decision: Decision, now: Moment) {
        match decision {
            Decision::Pair(trigger, slot) => {
                self.slots[slot].unpaired = false;
                (self.slots[slot].cell, self.slots[slot].asked) = (name(&trigger), true);
            }
            Decision::Refused(trigger, slot, doubt) => {
                let faults = &mut self.status.faults;
                match doubt {
                    Doubt::NoFrame => faults.missed_frames += 1,
                    Doubt::NoTrigger => faults.extra_frames += 1,
                    _ => faults.ambiguous += 1,
                }
                let cell = trigger.as_ref().and_then(name);
                let invalid = Verdict::invalid(Invalid::Pairing(doubt));
                if let (Doubt::NoFrame, Some(watcher)) = (doubt, &mut self.watcher) {
                    watcher.missed();
                }
                match slot {
                    Some(slot) => {
                        let heard = &mut self.slots[slot];
                        (heard.unpaired, heard.cell, heard.verdict) = (false, cell, Some(invalid));
                        heard.asked = trigger.is_some();
                        self.tell_slot(slot);
                    }
                    None => self.tell(Saying {
                        cell,
                        at: trigger.map_or(now, |trigger| trigger.at),
                        asked: trigger.is_some(),
                        verdict: invalid,
                        tag: self.tag,
                        heat: NO_HEAT,
                    }),
                }
            }
        }
    }

    fn tell_slot(&mut self, slot: usize) {
        let Some(verdict) = self.slots[slot].verdict.take() else { return };
        let Slot { cell, at, asked, .. } = self.slots[slot];
        let heat = verdict.distances.and(self.heats.get(slot)).copied().unwrap_or(NO_HEAT);
        let tag = self.slots[slot].tag.or(self.tag);
        self.tell(Saying { cell, at, asked, verdict, tag, heat });
        self.slots[slot].told = true;
        self.free(slot);
    }

    /// Frees a slot that nobody holds any more.
    fn free(&mut self, slot: usize) {
        if self.slots[slot].told && !self.slots[slot].judging {
            self.slots[slot].taken = false;
        }
    }

    fn tell(&mut self, saying: Saying) {
        if self.sayings.len() == SAYINGS {
            self.status.faults.unwritten += 1;
            return;
        }
        self.sayings.push_back(saying);
    }

    /// The next that is to be made durable. Say [`written`](Self::written) or [`unwritten`](Self::unwritten) of it.
    pub fn next_saying(&mut self) -> Option<Saying> {
        let saying = self.sayings.pop_front();
        self.writing = saying.is_some();
        saying
    }

    /// A saying was made durable under this key, at this moment.
    pub fn written(&mut self, saying: &Saying, key: Key, latency_us: u32, now: Moment) {
        self.writing = false;
        self.outbox_is(Health::Up, key.boot);
        let said = saying.said();
        self.status.count(said);
        let Saying { cell, at, ref verdict, heat, .. } = *saying;
        let date = Date::of(at);
        let last = Last { cell, seq: key.seq, said, score: verdict.score, date, at: now, latency_us, heat };
        self.status.last = Some(last);
    }

    /// A saying could not be made durable, and is told to nobody.
    pub fn unwritten(&mut self) {
        self.writing = false;
        self.status.faults.unwritten += 1;
        self.status.outbox = Health::Down;
    }

    /// Whether the outbox can be written, and the number of its start.
    pub fn outbox_is(&mut self, health: Health, boot: u32) {
        (self.status.outbox, self.status.boot) = (health, boot);
    }

    /// The exposure of the newest cell: its frame came, or its trigger did and the exposure is not earlier.
    #[must_use]
    pub fn newest(&self) -> Moment {
        self.newest
    }

    /// Everything at this moment.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// A new shift: its counts start at nothing.
    pub fn reset_shift(&mut self) {
        (self.status.shift, self.status.shift_began) = (Counts::default(), Date::now());
    }
}

/// What a trigger calls its cell.
fn name(trigger: &Trigger) -> Option<CellId> {
    trigger.cell.or(trigger.number.map(|number| CellId::number(number.into())))
}
