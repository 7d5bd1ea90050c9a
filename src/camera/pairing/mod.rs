//! Which frame shows which cell.
//!
//! The classic failure in the field is a frame that is judged under its neighbour's name, after one missed trigger or one
//! dropped frame. Here a frame gets a cell's name only if three witnesses agree:
//!
//! 1. **Time.** The exposure lies within ± `window` of the trigger's moment plus `delay`, no other frame does, and no
//!    other trigger lies so near to the frame. Nothing is decided before all that could lie there has had time to come.
//! 2. **Count.** Where triggers are numbered by their sender, the sender's number minus the camera's count is the same as
//!    it was before: a trigger that is late by a whole takt looks right by time, and not by count. A difference that
//!    changes for good (somebody exposed a frame by hand) is believed after `confirm` pairs in a row.
//! 3. **Lateness.** Where triggers carry their sender's clock, none counts that was on its way for longer than the quickest
//!    by more than `late`.
//!
//! Whatever does not fit is refused, each cell with its reason, and the next one starts afresh.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::trigger::Trigger;
use crate::clock::Moment;

/// Triggers that can wait at the same time. More is a storm, and the oldest are refused.
const TRIGGERS: usize = 16;
/// Frames that can wait at the same time.
const FRAMES: usize = 16;

/// How triggers and frames find each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PairingConfig {
    /// From trigger to exposure, in ms. Default 0.
    pub delay_ms: u32,
    /// How far an exposure may lie from there, to either side, in ms. Less than half the shortest time between two cells.
    /// Default 20.
    pub window_ms: u32,
    /// How long after its exposure a frame, or after its sending a trigger, can come here, in ms. Default 60.
    pub grace_ms: u32,
    /// Pairs in a row that must agree on a new difference of counts, and as many at the start, before cells are judged: more
    /// than triggers in a row can be late by just one takt. Default 8.
    pub confirm: u32,
    /// How much longer than the quickest a trigger with its sender's clock may be on its way, in ms. Default 20.
    pub late_ms: u32,
    /// Refuse triggers without a number where they come as messages, which can be late. Default true.
    pub require_number: bool,
}

impl Default for PairingConfig {
    fn default() -> Self {
        Self { delay_ms: 0, window_ms: 20, grace_ms: 60, confirm: 8, late_ms: 20, require_number: true }
    }
}

/// Why a cell got no frame, or a frame no cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Doubt {
    /// No frame came for the trigger.
    #[error("no frame was exposed for this trigger")]
    NoFrame,
    /// No trigger came for the frame.
    #[error("no trigger came for this frame")]
    NoTrigger,
    /// Several could belong together.
    #[error("several triggers or frames lie within one window")]
    Ambiguous,
    /// The counts of triggers and frames moved against each other.
    #[error("trigger and frame agree in time but not in count: one of them is its neighbour's")]
    Shifted,
    /// The counts agree again, but not yet often enough.
    #[error("triggers and frames are being brought into step")]
    Resync,
    /// The trigger was too long on its way.
    #[error("the trigger came too late to be trusted")]
    Late,
    /// The trigger says no number.
    #[error("the trigger has no number `n`; without it a late one cannot be told")]
    Unnumbered,
    /// More came than can wait.
    #[error("more triggers or frames came at once than can wait")]
    Storm,
}

/// What has been decided of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The frame in this slot shows the trigger's cell.
    Pair(Trigger, usize),
    /// Something passed the camera, and it is not certain what: its trigger and the slot of its frame, as far as there are.
    Refused(Option<Trigger>, Option<usize>, Doubt),
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    slot: usize,
    sequence: u32,
    taken: Moment,
}

/// A list in fixed room, in the order of arrival.
#[derive(Debug)]
struct Few<T, const N: usize> {
    items: [Option<T>; N],
    length: usize,
}

impl<T: Copy, const N: usize> Few<T, N> {
    fn new() -> Self {
        Self { items: [None; N], length: 0 }
    }

    fn is_full(&self) -> bool {
        self.length == N
    }

    fn push(&mut self, item: T) {
        debug_assert!(!self.is_full());
        self.items[self.length] = Some(item);
        self.length += 1;
    }

    fn remove(&mut self, index: usize) -> Option<T> {
        let item = self.items.get_mut(index)?.take()?;
        self.items[index..self.length].rotate_left(1);
        self.length -= 1;
        Some(item)
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.items[..self.length].iter().flatten()
    }

    /// Those whose bit is set.
    fn marked(&self, bits: u32) -> impl Iterator<Item = &T> {
        self.iter().enumerate().filter(move |(index, _)| bits >> index & 1 == 1).map(|(_, item)| item)
    }

    /// Removes the first whose bit is set; the bits move along.
    fn take_first(&mut self, bits: &mut u32) -> Option<T> {
        if *bits == 0 {
            return None;
        }
        let index = bits.trailing_zeros();
        let below = (1 << index) - 1;
        *bits = (*bits & below) | (*bits >> 1 & !below);
        self.remove(index as usize)
    }
}

/// Brings triggers and frames together. It holds no pixels: frames are known by the slot that they wait in. Allocates
/// nothing, and takes no time but from its caller.
#[derive(Debug)]
pub struct Pairer {
    delay: Duration,
    window: Duration,
    grace: Duration,
    confirm: u32,
    late: Duration,
    require_number: bool,
    triggers: Few<Trigger, TRIGGERS>,
    frames: Few<Waiting, FRAMES>,
    /// What can be said at once, since it needs no waiting. As much as can be refused by one call.
    refused: Few<(Option<Trigger>, Option<usize>, Doubt), { TRIGGERS + FRAMES }>,
    step: Step,
    road: Road,
    last: Option<Trigger>,
}

/// The difference of counts that is believed, and one that wants to be.
#[derive(Debug)]
struct Step {
    trusted: Option<u32>,
    candidate: Option<(u32, u32)>,
    /// Pairs that must agree before a candidate is believed.
    needed: u32,
    /// No candidate is believed: the road has moved, and with it the counts may only seem to.
    frozen: bool,
}

impl Step {
    fn new(needed: u32) -> Self {
        Self { trusted: None, candidate: None, needed, frozen: false }
    }

    /// Whether a pair with this difference is to be believed.
    fn believes(&mut self, difference: u32, confirm: u32) -> Result<(), Doubt> {
        if self.trusted == Some(difference) {
            self.candidate = None;
            return Ok(());
        }
        let agreeing = match self.candidate {
            Some((candidate, agreeing)) if candidate == difference => agreeing + 1,
            _ => 1,
        };
        if agreeing > self.needed && !self.frozen {
            *self = Self { trusted: Some(difference), ..Self::new(confirm) };
            return Ok(());
        }
        self.candidate = Some((difference, agreeing));
        Err(if agreeing == 1 && self.trusted.is_some() { Doubt::Shifted } else { Doubt::Resync })
    }

    /// A frame or trigger without a partner: whoever wants to be believed starts again.
    fn disturbed(&mut self) {
        self.candidate = None;
    }
}

/// How long messages are on their way, by the sender's clock.
#[derive(Debug, Default)]
struct Road {
    /// Arrival minus sending of the quickest, in ns of two clocks with different zeros; and when that was.
    quickest: Option<(i128, Moment)>,
    /// The sender's latest time so far, in ms.
    latest: u64,
    /// Since when all that came was late.
    late_since: Option<Moment>,
}

/// Two clocks may drift apart by so much of the time: 200 parts in a million.
const DRIFT: i128 = 5000;
/// A sender's clock that goes back by so many ms has started again; one that goes back by less was overtaken.
const RESTART_MS: u64 = 10_000;
/// So many times as many pairs must agree once the sender's clock has started again.
const RESTARTED: u32 = 4;
/// After so long all that is late is taken for timely again (somebody may have set the sender's clock), but only where the
/// counts agree as they did before.
const FOREVER: Duration = Duration::from_secs(60);

/// What a trigger's stamp tells.
enum Stamp {
    Timely,
    Late,
    /// The sender's clock has started again, and so has its count.
    Restarted,
    /// Everything has been late for so long that late is what it is now.
    Moved,
}

impl Road {
    fn judge(&mut self, at: Moment, sent_ms: u64, late: Duration) -> Stamp {
        let span = i128::from(at.as_nanos()) - i128::from(sent_ms) * 1_000_000;
        let over = self.late_since.is_some_and(|since| at.since(since) > FOREVER);
        let restarted = sent_ms.saturating_add(RESTART_MS) < self.latest;
        if over || restarted {
            *self = Self { quickest: Some((span, at)), latest: sent_ms, late_since: None };
            return if restarted { Stamp::Restarted } else { Stamp::Moved };
        }
        self.latest = self.latest.max(sent_ms);
        let (quickest, then) = *self.quickest.get_or_insert((span, at));
        let allowed = quickest + i128::from(at.since(then).as_nanos() as u64) / DRIFT;
        if span <= allowed {
            self.quickest = Some((span, at));
        }
        if span - allowed > late.as_nanos() as i128 {
            self.late_since.get_or_insert(at);
            return Stamp::Late;
        }
        self.late_since = None;
        Stamp::Timely
    }
}

impl Pairer {
    /// `messages`: the triggers come as messages, which can be late, and so must have a number where the configuration asks
    /// for it. Stamps of the kernel cannot be late, and have one always.
    #[must_use]
    pub fn new(config: &PairingConfig, messages: bool) -> Self {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        Self {
            delay: ms(config.delay_ms),
            window: ms(config.window_ms),
            grace: ms(config.grace_ms),
            confirm: config.confirm,
            late: ms(config.late_ms),
            require_number: messages && config.require_number,
            triggers: Few::new(),
            frames: Few::new(),
            refused: Few::new(),
            step: Step::new(config.confirm),
            road: Road::default(),
            last: None,
        }
    }

    /// The longest time from a cell's exposure to what is decided of it.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.window + self.grace
    }

    /// A trigger has come. An exact repetition of the last one is passed over; tells whether it was taken.
    pub fn trigger(&mut self, trigger: Trigger) -> bool {
        if let (Some(last), Some(number)) = (self.last, trigger.number)
            && (last.number, last.cell) == (Some(number), trigger.cell)
        {
            return false;
        }
        self.last = Some(trigger);
        if self.require_number && trigger.number.is_none() {
            self.refuse(Some(trigger), None, Doubt::Unnumbered);
            return true;
        }
        if let Some(sent) = trigger.sent_ms {
            match self.road.judge(trigger.at, sent, self.late) {
                Stamp::Timely => {}
                Stamp::Late => {
                    self.refuse(Some(trigger), None, Doubt::Late);
                    return true;
                }
                Stamp::Moved => self.step.frozen = true,
                // What is quickest on the new clock shows only after some more.
                Stamp::Restarted => self.step = Step::new(self.confirm.saturating_mul(RESTARTED)),
            }
        }
        if self.triggers.is_full() {
            let oldest = self.triggers.remove(0);
            self.step.disturbed();
            self.refuse(oldest, None, Doubt::Storm);
        }
        self.triggers.push(trigger);
        true
    }

    /// The earliest exposure that can be this trigger's.
    #[must_use]
    pub fn earliest(&self, trigger: &Trigger) -> Moment {
        self.expected(trigger) - self.window
    }

    /// Whether a trigger waits that a frame exposed at this moment would belong to.
    #[must_use]
    pub fn expects(&self, taken: Moment) -> bool {
        self.triggers.iter().any(|trigger| self.near(self.expected(trigger), taken))
    }

    /// A frame has come, and waits in `slot`.
    pub fn frame(&mut self, slot: usize, sequence: u32, taken: Moment) {
        if self.frames.is_full() {
            let oldest = self.frames.remove(0).map(|frame| frame.slot);
            self.step.disturbed();
            self.refuse(None, oldest, Doubt::Storm);
        }
        self.frames.push(Waiting { slot, sequence, taken });
    }

    /// The camera was opened again: its count has started afresh.
    pub fn camera_restarted(&mut self) {
        self.step = Step::new(self.confirm);
    }

    fn refuse(&mut self, trigger: Option<Trigger>, slot: Option<usize>, doubt: Doubt) {
        if !self.refused.is_full() {
            self.refused.push((trigger, slot, doubt));
        }
    }

    /// The next thing that is certain at `now`; call until there is none.
    pub fn next(&mut self, now: Moment) -> Option<Decision> {
        if let Some((trigger, slot, doubt)) = self.refused.remove(0) {
            return Some(Decision::Refused(trigger, slot, doubt));
        }
        let (triggers, frames, due) = self.oldest()?;
        if now < due {
            return None;
        }
        match (triggers.count_ones(), frames.count_ones()) {
            (1, 1) => {
                let (trigger, frame) = (triggers.trailing_zeros() as usize, frames.trailing_zeros() as usize);
                let (trigger, frame) = (self.triggers.remove(trigger)?, self.frames.remove(frame)?);
                Some(self.pair(trigger, &frame))
            }
            (1, 0) => {
                self.step.disturbed();
                Some(Decision::Refused(self.triggers.remove(triggers.trailing_zeros() as usize), None, Doubt::NoFrame))
            }
            (0, 1) => {
                self.step.disturbed();
                let frame = self.frames.remove(frames.trailing_zeros() as usize);
                Some(Decision::Refused(None, frame.map(|frame| frame.slot), Doubt::NoTrigger))
            }
            _ => {
                self.ambiguous(triggers, frames);
                self.next(now)
            }
        }
    }

    /// When to call [`next`](Self::next) again if nothing comes before.
    #[must_use]
    pub fn wake(&self) -> Option<Moment> {
        if self.refused.length > 0 {
            return Some(Moment::default());
        }
        self.oldest().map(|(_, _, due)| due)
    }

    fn expected(&self, trigger: &Trigger) -> Moment {
        trigger.at + self.delay
    }

    /// Of all that wait, what was or was to be exposed first, with all that hangs together with it: triggers and frames, a
    /// bit each; and when nothing more can join them.
    fn oldest(&self) -> Option<(u32, u32, Moment)> {
        let first = self.triggers.iter().map(|trigger| self.expected(trigger));
        let first = first.chain(self.frames.iter().map(|frame| frame.taken)).min()?;
        let mut triggers = mask(self.triggers.iter().map(|trigger| self.expected(trigger) == first));
        let mut frames = mask(self.frames.iter().map(|frame| frame.taken == first));
        let mut last = first;
        loop {
            let before = (triggers, frames);
            for trigger in self.triggers.marked(triggers) {
                last = last.max(self.expected(trigger));
                frames |= mask(self.frames.iter().map(|frame| self.near(frame.taken, self.expected(trigger))));
            }
            for frame in self.frames.marked(frames) {
                last = last.max(frame.taken);
                triggers |= mask(self.triggers.iter().map(|trigger| self.near(frame.taken, self.expected(trigger))));
            }
            if before == (triggers, frames) {
                // A chain that never ends must not keep its first cell waiting.
                let last = last.min(first + self.window * 2);
                return Some((triggers, frames, last + self.patience()));
            }
        }
    }

    fn near(&self, a: Moment, b: Moment) -> bool {
        a.since(b) <= self.window && b.since(a) <= self.window
    }

    /// One trigger and one frame that have only each other.
    fn pair(&mut self, trigger: Trigger, frame: &Waiting) -> Decision {
        let agreed = match trigger.number {
            Some(number) => self.step.believes(number.wrapping_sub(frame.sequence), self.confirm),
            None => Ok(()),
        };
        match agreed {
            Ok(()) => Decision::Pair(trigger, frame.slot),
            Err(doubt) => Decision::Refused(Some(trigger), Some(frame.slot), doubt),
        }
    }

    /// Refuses these triggers and frames, each trigger with one of the frames as long as there are any.
    fn ambiguous(&mut self, mut triggers: u32, mut frames: u32) {
        self.step.disturbed();
        while triggers != 0 || frames != 0 {
            let trigger = self.triggers.take_first(&mut triggers);
            let slot = self.frames.take_first(&mut frames).map(|frame| frame.slot);
            self.refuse(trigger, slot, Doubt::Ambiguous);
        }
    }
}

fn mask(bits: impl Iterator<Item = bool>) -> u32 {
    bits.enumerate().fold(0, |mask, (index, bit)| mask | u32::from(bit) << index)
}

#[cfg(test)]
pub(crate) mod line;
#[cfg(test)]
mod tests;
