//! The thread that tells everybody how the station does, and feeds the watchdog.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::appliance::{Shared, TURN};
use super::report;
use super::status::{Health, Status};
use crate::clock::Moment;
use crate::config::Config;
use crate::display::Display;
use crate::operations::machine::Machine;
use crate::operations::notify::{Notifier, Watchdog};
use crate::outbox::handshake::Happening;

/// How often the machine is asked for its temperature.
const MEASURE: Duration = Duration::from_secs(5);
/// How often numbers are published.
const PUBLISH: Duration = Duration::from_secs(10);

/// Publishes the numbers of this moment.
pub(super) fn publish_numbers(shared: &Shared, status: &Status) {
    let (mut text, drift) = (String::new(), shared.ears.lately().drift.report());
    report::write_numbers(status, &shared.ears.recorder.latency.read(), &drift, &mut text);
    shared.delivery.set_metrics(&text);
}

/// See the [module](self).
pub(super) struct Keeper {
    display: Option<Display>,
    show_every: Duration,
    watchdog: Watchdog,
    outbox: PathBuf,
}

impl Keeper {
    pub(super) fn new(config: &Config) -> Self {
        let (line, station) = (&config.mqtt.line, &config.mqtt.station);
        let display = Display::open(&config.display, line, station).unwrap_or_else(|error| {
            log::error!("{error}; going on without a display");
            None
        });
        let notifier = Notifier::from_environment().unwrap_or_else(|error| {
            log::error!("{error}; systemd is not told");
            None
        });
        Self {
            display,
            show_every: Duration::from_millis(config.display.period_ms.into()),
            watchdog: Watchdog::new(notifier),
            outbox: config.outbox.path.parent().map(Path::to_owned).unwrap_or_default(),
        }
    }

    pub(super) fn run(mut self, shared: &Shared) {
        if let Some(notifier) = self.watchdog.notifier()
            && let Err(error) = notifier.ready()
        {
            log::warn!("{error}");
        }
        let machine = Machine::new(Path::new("/"));
        let [mut measured, mut published, mut shown] = [Moment::default(); 3];
        let (mut state, mut said) = (String::new(), String::new());
        let mut complained = false;
        while !shared.stopped() {
            let now = Moment::now();
            // First: it must not wait for anybody.
            self.watchdog.turn(&shared.progress, now);
            if now.since(measured) >= MEASURE {
                measured = now;
                let readings = machine.read(Some(&self.outbox));
                *shared.readings.lock().unwrap_or_else(PoisonError::into_inner) = readings;
            }
            let status = shared.status();
            let up = |health| health == Health::Up;
            let ready = up(status.camera) && up(status.outbox);
            shared.ears.take(Happening::Ready(ready && !shared.closing.load(Ordering::Acquire)));
            state.clear();
            report::write_state(&status, &mut state);
            if state != said {
                shared.delivery.set_status(&state);
                said.clone_from(&state);
                self.tell_systemd(&status);
            }
            if now.since(published) >= PUBLISH {
                published = now;
                publish_numbers(shared, &status);
                // For a PLC that has come since.
                shared.ears.talk().changed = true;
            }
            if now.since(shown) >= self.show_every
                && let Some(display) = &mut self.display
            {
                shown = now;
                match display.show(&status, now) {
                    Ok(()) => complained = false,
                    Err(error) if !complained => {
                        log::error!("{error}");
                        complained = true;
                    }
                    Err(_) => {}
                }
            }
            self.talk(shared);
        }
        if let Some(notifier) = self.watchdog.notifier() {
            // Nothing hangs on it any more.
            let _ = notifier.stopping();
        }
    }

    /// Publishes the handshake as soon as it changes, until it is time for another turn.
    fn talk(&self, shared: &Shared) {
        let until = Moment::now() + TURN.min(self.show_every);
        let mut text = String::new();
        while !shared.stopped() {
            let wait = until.since(Moment::now());
            if wait.is_zero() {
                return;
            }
            let mut talk = shared.ears.talk();
            if !talk.changed {
                talk = shared.ears.news.wait_timeout(talk, wait).unwrap_or_else(PoisonError::into_inner).0;
            }
            if std::mem::take(&mut talk.changed) {
                text.clear();
                talk.handshake.write_json(&mut text);
                drop(talk);
                shared.delivery.set_handshake(&text);
            }
        }
    }

    fn tell_systemd(&self, status: &Status) {
        if let Some(notifier) = self.watchdog.notifier() {
            let text = format!("camera {:?}, broker {:?}, outbox {:?}", status.camera, status.broker, status.outbox);
            if let Err(error) = notifier.status(&text) {
                log::warn!("{error}");
            }
        }
    }
}
