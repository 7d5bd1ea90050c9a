//! The takt of cameras that are none.

use std::time::Duration;

use crate::clock::Moment;

/// Says when the next frame is due.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    period: Duration,
    due: Option<Moment>,
}

impl Pace {
    /// One frame a `period`; zero is as fast as asked.
    pub fn new(period: Duration) -> Self {
        Self { period, due: None }
    }

    /// Whether frames come when they are asked for.
    pub fn on_demand(&self) -> bool {
        self.period.is_zero()
    }

    /// Waits until the next frame is due and gives the moment, or none if that is not within `patience`. A caller who
    /// comes late misses no frame: the takt begins anew with it.
    pub fn wait(&mut self, patience: Duration) -> Option<Moment> {
        let asked = Moment::now();
        if self.period.is_zero() {
            return Some(asked);
        }
        let due = self.due.unwrap_or(asked);
        let rest = due.since(asked);
        std::thread::sleep(rest.min(patience));
        if rest > patience {
            self.due = Some(due);
            return None;
        }
        let now = Moment::now();
        self.due = Some(if now > due + self.period { now } else { due } + self.period);
        Some(now)
    }
}
