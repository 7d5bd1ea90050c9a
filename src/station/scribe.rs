//! Who makes verdicts durable, and only then tells of them.
//!
//! A thread of its own, since a disk may take its time: nobody who takes frames, judges or keeps time waits for it. A
//! verdict that the disk does not take is told to nobody; the reject line rejects, and the ledger is opened again, now and
//! then, until it can be written.

use std::time::Duration;

use super::desk::Saying;
use super::judge::Tag;
use super::ledger::Ledger;
use super::status::Said;
use crate::camera::trigger::CellId;
use crate::clock::{Date, Moment};
use crate::outbox::{Key, OutboxError};
use crate::verdict::payload::{self, About, Stamp};
use crate::verdict::{Invalid, Outcome};

/// A ledger that fails is opened again so often.
const REOPEN: Duration = Duration::from_secs(1);

/// What was said of a cell.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Its key in the ledger; none if the verdict could not be made durable and is told to nobody else.
    pub key: Option<Key>,
    /// What a wire may say: INVALID too where the verdict has become durable only after the cell's time.
    pub outcome: &'a Outcome,
    /// What was written.
    pub said: Said,
    /// The model that judged it, or would have; none: always the same one.
    pub tag: Option<Tag>,
    /// Calibrated score, 0 to 1.
    pub score: Option<f32>,
    /// From exposure to the moment at which it was durable, in microseconds.
    pub latency_us: u32,
    /// Whether a trigger asked for it, or none is needed.
    pub asked: bool,
    /// Whether no newer cell has been exposed since.
    pub newest: bool,
}

/// Who hears each verdict once it is durable. Must not allocate.
pub trait Listener: Send {
    /// A verdict was given.
    fn told(&mut self, told: &Told<'_>);
}

/// See the [module](self).
pub struct Scribe {
    ledger: Box<dyn Ledger>,
    listener: Option<Box<dyn Listener>>,
    about: About<'static>,
    takt: Duration,
    /// When the ledger failed last, until it is open again.
    failing: Option<Moment>,
}

impl Scribe {
    /// `about` is what payloads say of the model, unless a saying knows better; a PASS is of no use to a wire later than
    /// `takt` after the exposure.
    #[must_use]
    pub fn new(
        ledger: Box<dyn Ledger>,
        listener: Option<Box<dyn Listener>>,
        about: About<'static>,
        takt: Duration,
    ) -> Self {
        Self { ledger, listener, about, takt, failing: None }
    }

    /// Number of this start.
    #[must_use]
    pub fn boot(&self) -> u32 {
        self.ledger.boot()
    }

    /// Makes a verdict durable and tells of it; gives its key, its latency in microseconds, and when it was durable.
    /// `newest` tells the newest exposure so far.
    pub fn write(&mut self, saying: &Saying, newest: impl FnOnce() -> Moment) -> Option<(Key, u32, Moment)> {
        let key = self.keep(saying);
        let now = Moment::now();
        let latency_us = micros(now.since(saying.at));
        let of_no_use = Outcome::Invalid(Invalid::Internal);
        let told = Told {
            key,
            outcome: if key.is_none() || now > saying.at + self.takt { &of_no_use } else { &saying.verdict.outcome },
            said: if key.is_none() { Said::Invalid("unwritten") } else { saying.said() },
            tag: saying.tag,
            score: saying.verdict.score,
            latency_us,
            asked: saying.asked,
            newest: saying.at >= newest(),
        };
        if let Some(listener) = &mut self.listener {
            listener.told(&told);
        }
        Some((key?, latency_us, now))
    }

    fn keep(&mut self, saying: &Saying) -> Option<Key> {
        let first = match self.failing {
            None => self.append(saying),
            Some(_) => return None,
        };
        let error = match first {
            Ok(key) => return Some(key),
            Err(error) => error,
        };
        log::error!("the verdict on {:?} ({}): {error}", saying.cell, saying.verdict.outcome.word());
        // Who reads from it may have found it broken: perhaps it can be written all the same.
        let again = self.ledger.reopen().and_then(|()| self.append(saying));
        if let Err(error) = &again {
            log::error!("it is told to nobody: {error}");
            self.failing = Some(Moment::now());
        }
        again.ok()
    }

    fn append(&mut self, saying: &Saying) -> Result<Key, OutboxError> {
        let Saying { cell, at, ref verdict, .. } = *saying;
        let (mut about, time) = (self.about, Date::of(at));
        if let Some(Tag { model, grid }) = saying.tag {
            (about.model, about.grid) = (model, grid);
        }
        self.ledger.append(&mut |key, text| {
            let latency_us = micros(Moment::now().since(at));
            let stamp = Some(Stamp { boot: key.boot, seq: key.seq, time, latency_us });
            payload::write_json(verdict, &About { id: cell.as_ref().map(CellId::as_str), stamp, ..about }, text);
        })
    }

    /// Tries now and then to open a ledger that fails; true when it can be written again.
    pub fn mend(&mut self) -> bool {
        if self.failing.is_none_or(|since| Moment::now().since(since) < REOPEN) {
            return false;
        }
        self.failing = self.ledger.reopen().is_err().then(Moment::now);
        self.failing.is_none()
    }
}

fn micros(span: Duration) -> u32 {
    u32::try_from(span.as_micros()).unwrap_or(u32::MAX)
}
