//! Triggers from the edges of a wire.

use std::io;
use std::time::Duration;

use super::{EdgeConfig, GpioError, chip};
use crate::camera::trigger::Trigger;
use crate::clock::Moment;

/// An edge as the kernel saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The kernel's stamp.
    pub at: Moment,
    /// The kernel's count of edges on this line; a gap is an edge that was lost. Wraps.
    pub count: u32,
}

/// A line that tells of its edges.
pub trait EdgeLine: Send {
    /// Waits for the next edge.
    ///
    /// # Errors
    /// What the system said.
    fn wait(&mut self, patience: Duration) -> io::Result<Option<Edge>>;
}

/// Turns edges into triggers without a cell's name. Their number counts on over edges that the kernel lost, so that a lost
/// one shows, and not over those that are too close to be cells.
pub struct Edges {
    line: Box<dyn EdgeLine>,
    /// The kernel stamps an edge after the line held its level for so long.
    debounce: Duration,
    dead: Duration,
    last: Option<Moment>,
    ignored: u32,
}

impl Edges {
    /// Opens the line.
    ///
    /// # Errors
    /// [`GpioError::Open`].
    pub fn open(config: &EdgeConfig) -> Result<Self, GpioError> {
        Ok(Self::new(chip::input(config)?, config))
    }

    /// The same on an open line.
    #[must_use]
    pub fn new(line: Box<dyn EdgeLine>, config: &EdgeConfig) -> Self {
        let (debounce, dead) = (Duration::from_micros(config.debounce_us), Duration::from_millis(config.dead_ms));
        Self { line, debounce, dead, last: None, ignored: 0 }
    }

    /// Waits for the next trigger, at most for `patience`; none if none came. Allocates nothing.
    ///
    /// # Errors
    /// [`GpioError::Lost`] if the line is gone; it must be opened again.
    pub fn next(&mut self, patience: Duration) -> Result<Option<Trigger>, GpioError> {
        let until = Moment::now() + patience;
        loop {
            let rest = until.since(Moment::now());
            match self.line.wait(rest) {
                Ok(None) => return Ok(None),
                Ok(Some(edge)) => {
                    // One that is stamped before the last one is no new cell either.
                    if self.last.is_some_and(|last| edge.at.since(last) < self.dead || edge.at <= last) {
                        self.ignored = self.ignored.wrapping_add(1);
                        continue;
                    }
                    self.last = Some(edge.at);
                    return Ok(Some(Trigger {
                        cell: None,
                        at: edge.at - self.debounce,
                        number: Some(edge.count.wrapping_sub(self.ignored)),
                        sent_ms: None,
                    }));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted && !rest.is_zero() => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
                Err(error) => return Err(GpioError::Lost(error)),
            }
        }
    }

    /// Edges that came too soon after another one to be cells; wraps.
    #[must_use]
    pub fn ignored(&self) -> u32 {
        self.ignored
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    struct Script(VecDeque<io::Result<Option<Edge>>>);

    impl EdgeLine for Script {
        fn wait(&mut self, _: Duration) -> io::Result<Option<Edge>> {
            self.0.pop_front().unwrap_or(Ok(None))
        }
    }

    fn edges(script: Vec<io::Result<Option<Edge>>>) -> Edges {
        let config = EdgeConfig { debounce_us: 1000, dead_ms: 20, ..EdgeConfig::default() };
        Edges::new(Box::new(Script(script.into())), &config)
    }

    fn at(ms: u64, count: u32) -> io::Result<Option<Edge>> {
        Ok(Some(Edge { at: Moment::from_nanos(ms * 1_000_000), count }))
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn bounces_are_no_cells_and_lost_edges_leave_a_gap() {
        let mut edges = edges(vec![at(1000, 1), at(1003, 2), at(1019, 3), at(2000, 4), at(3000, 6), at(2900, 7)]);
        let mut seen = Vec::new();
        while let Some(trigger) = edges.next(LONG).unwrap() {
            assert_eq!((trigger.cell, trigger.sent_ms), (None, None));
            seen.push((trigger.at.as_nanos() / 1_000_000, trigger.number.unwrap()));
        }
        // Stamps go back by the time that the kernel waited for the line to settle.
        assert_eq!(seen, [(999, 1), (1999, 2), (2999, 4)]);
        assert_eq!(edges.ignored(), 3);
    }

    #[test]
    fn a_signal_is_waited_over_and_a_lost_line_told() {
        let mut edges =
            edges(vec![Err(io::ErrorKind::Interrupted.into()), at(5, u32::MAX), Err(io::Error::other("gone"))]);
        assert_eq!(edges.next(LONG).unwrap().unwrap().number, Some(u32::MAX));
        assert!(edges.next(LONG).unwrap_err().to_string().contains("gone"));
        assert_eq!(edges.next(LONG).unwrap(), None);
    }
}
