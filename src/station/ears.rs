//! Who watches the desk and hears the scribe: reject line, handshake, counters, drift, and what is seen of a model.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::desk::Watcher;
use super::scribe::{Listener, Told};
use super::status::Said;
use crate::backbone::Identity;
use crate::gpio::Reject;
use crate::model::Model;
use crate::operations::drift::{Drift, DriftConfig};
use crate::operations::metrics::Recorder;
use crate::outbox::handshake::{Handshake, HandshakeConfig, Happening};
use crate::update::slots::Seen;
use crate::verdict::{Class, Invalid, Outcome};

/// INVALID for reasons that no model is to blame for.
const NOT_THE_MODEL: [&str; 5] = ["pairing", "lost-frame", "damaged", "duplicate", "unwritten"];

/// What those who watch the desk and hear the scribe share with the threads that publish.
pub(super) struct Ears {
    pub(super) recorder: Recorder,
    lately: Mutex<Lately>,
    handshake: Mutex<Talk>,
    /// Something was told, or the handshake changed.
    pub(super) news: Condvar,
}

pub(super) struct Talk {
    pub(super) handshake: Handshake,
    pub(super) changed: bool,
}

/// What the model in force has said lately.
pub(super) struct Lately {
    model: Identity,
    pub(super) drift: Drift,
    seen: Seen,
}

impl Lately {
    fn of(config: &DriftConfig, model: &Model) -> Self {
        let drift = Drift::new(config, model.header().calibration.as_ref());
        Self { model: model.id(), drift, seen: Seen::default() }
    }

    fn told(&mut self, told: &Told<'_>) {
        // What a model before has judged may be written down only now.
        if told.tag.is_some_and(|tag| tag.model != self.model) {
            return;
        }
        self.drift.record(told.said, told.score);
        if let Said::Invalid(name) = told.said
            && NOT_THE_MODEL.contains(&name)
        {
            return;
        }
        self.seen.cells += 1;
        self.seen.invalid += u64::from(matches!(told.said, Said::Invalid(_)));
        self.seen.rejected += u64::from(told.said == Said::Class(Class::C));
    }
}

impl Ears {
    pub(super) fn new(handshake: HandshakeConfig, drift: &DriftConfig, model: &Model) -> Self {
        Self {
            recorder: Recorder::new(&Invalid::NAMES),
            lately: Mutex::new(Lately::of(drift, model)),
            handshake: Mutex::new(Talk { handshake: Handshake::new(handshake), changed: true }),
            news: Condvar::new(),
        }
    }

    pub(super) fn lately(&self) -> MutexGuard<'_, Lately> {
        self.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another model judges: counts and drift begin anew.
    pub(super) fn judged_by(&self, config: &DriftConfig, model: &Model) {
        // Made before anybody has to wait for it.
        let lately = Lately::of(config, model);
        let before = std::mem::replace(&mut *self.lately(), lately);
        drop(before);
    }

    /// What was seen of the model in force since the last call.
    pub(super) fn take_seen(&self) -> Seen {
        let mut lately = self.lately();
        let drift = lately.drift.alarm();
        Seen { drift, ..std::mem::take(&mut lately.seen) }
    }

    pub(super) fn talk(&self) -> MutexGuard<'_, Talk> {
        self.handshake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self, happening: Happening) {
        let mut talk = self.talk();
        if talk.handshake.take(happening) {
            talk.changed = true;
            self.news.notify_all();
        }
    }
}

/// Sees what happens at the desk, for handshake and reject line.
pub(super) struct Watching {
    pub(super) ears: Arc<Ears>,
    pub(super) reject: Option<Arc<Reject>>,
}

impl Watching {
    /// A PASS was for the cell before.
    fn reject(&self) {
        if let Some(line) = &self.reject {
            line.reject();
        }
    }
}

impl Watcher for Watching {
    fn triggered(&mut self) {
        self.reject();
        self.ears.take(Happening::Trigger);
    }

    fn exposed(&mut self, expected: bool) {
        self.reject();
        if expected {
            self.ears.take(Happening::Exposed);
        }
    }

    fn missed(&mut self) {
        self.reject();
        self.ears.take(Happening::NoFrame);
    }

    fn blinded(&mut self) {
        self.reject();
    }
}

/// Hears each verdict once it is durable: the reject line, counters, drift and the handshake.
pub(super) struct Hearing {
    pub(super) ears: Arc<Ears>,
    pub(super) reject: Option<Arc<Reject>>,
}

impl Listener for Hearing {
    fn told(&mut self, told: &Told<'_>) {
        if let Some(line) = &self.reject {
            match told.outcome {
                // With a newer cell under the camera an edge would be taken for that one's.
                Outcome::Pass(_) if told.newest => line.pass(),
                _ => line.reject(),
            }
        }
        self.ears.recorder.record(told.said, told.latency_us);
        self.ears.lately().told(told);
        match (told.key, told.asked) {
            (Some(key), true) => self.ears.take(Happening::Verdict(key)),
            (Some(key), false) => self.ears.take(Happening::Stray(key)),
            (None, true) => self.ears.take(Happening::Unwritten),
            (None, false) => {}
        }
    }
}
