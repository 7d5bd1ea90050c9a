//! The conversation with a PLC, in the words that smart cameras use: what may be done next, and what went wrong.
//!
//! A state machine without clock and without I/O: the station tells it what happens, and publishes what it says on
//! `cellgate/<line>/<station>/handshake` whenever that changed. The newest state wins, so every state says enough by
//! itself: levels and counts, no edges. `docs/mqtt.md` has the timing diagram.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::Key;

/// How many cells and results may be on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct HandshakeConfig {
    /// Cells between their trigger and their verdict at which no further trigger is taken, 1 to 64. Default: 2.
    pub cells: u32,
    /// Verdicts that may wait for the PLC's acknowledgement on `ack` before `buffer_overrun` is set, 0 to 100,000; 0: the
    /// PLC does not acknowledge. Default: 0.
    pub results: u32,
}

impl Default for HandshakeConfig {
    fn default() -> Self {
        Self { cells: 2, results: 0 }
    }
}

impl HandshakeConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// Which key is wrong, its value, and what is allowed.
    pub fn validate(&self) -> Result<(), String> {
        if !(1..=64).contains(&self.cells) {
            return Err(format!("cells = {}: 1 to 64 are allowed", self.cells));
        }
        if self.results > 100_000 {
            return Err(format!("results = {}: 0 to 100000 are allowed", self.results));
        }
        Ok(())
    }
}

/// What happens at the station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// Camera, model and outbox work, or do not.
    Ready(bool),
    /// A trigger came.
    Trigger,
    /// The frame of the oldest trigger without one has come: the cell may move on.
    Exposed,
    /// The oldest trigger without a frame will have none.
    NoFrame,
    /// A verdict on a cell that was triggered, or that needs no trigger, is durable.
    Verdict(Key),
    /// A verdict on something that nobody triggered is durable.
    Stray(Key),
    /// The verdict on a triggered cell could not be made durable: there will be none.
    Unwritten,
    /// The PLC has taken this verdict and all before it.
    Ack(Key),
}

/// Where the conversation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    config: HandshakeConfig,
    ready: bool,
    /// Triggers that were taken.
    triggers: u64,
    /// Of these: whose frame came or will not come.
    exposed: u64,
    /// Of these: whose verdict was given.
    completed: u64,
    last: Option<Key>,
    /// The verdict up to which the PLC has taken all.
    acked: u64,
    overrun: bool,
    missed: bool,
}

impl Handshake {
    /// At the start nothing is ready.
    #[must_use]
    pub fn new(config: HandshakeConfig) -> Self {
        Self {
            config,
            ready: false,
            triggers: 0,
            exposed: 0,
            completed: 0,
            last: None,
            acked: 0,
            overrun: false,
            missed: false,
        }
    }

    /// Takes what happened; true if the state that is published changed.
    pub fn take(&mut self, happening: Happening) -> bool {
        let before =
            (self.ready, self.triggers, self.exposed, self.completed, self.last, self.acked, self.overrun, self.missed);
        match happening {
            Happening::Ready(ready) => self.ready = ready,
            Happening::Trigger if self.trigger_ready() => self.triggers += 1,
            // The cell went by without a look at it.
            Happening::Trigger => self.missed = true,
            Happening::Exposed if self.exposed < self.triggers => {
                self.exposed += 1;
                self.missed = false;
            }
            Happening::NoFrame if self.exposed < self.triggers => {
                self.exposed += 1;
                self.missed = true;
            }
            // A frame that nobody asked for; its verdict tells of it.
            Happening::Exposed | Happening::NoFrame => {}
            Happening::Verdict(key) => {
                self.completed();
                self.verdict(key);
            }
            Happening::Stray(key) => self.verdict(key),
            Happening::Unwritten => self.completed(),
            Happening::Ack(key) => self.ack(key),
        }
        before
            != (
                self.ready,
                self.triggers,
                self.exposed,
                self.completed,
                self.last,
                self.acked,
                self.overrun,
                self.missed,
            )
    }

    fn completed(&mut self) {
        self.completed = (self.completed + 1).min(self.triggers);
        // Whoever has a verdict needs no frame any more.
        self.exposed = self.exposed.max(self.completed);
    }

    fn verdict(&mut self, key: Key) {
        // What was there before this start is for the broker alone.
        if self.last.is_none_or(|last| last.boot != key.boot) {
            self.acked = key.seq.saturating_sub(1);
        }
        self.last = Some(key);
        if self.config.results > 0 && self.waiting() > u64::from(self.config.results) {
            self.overrun = true;
        }
    }

    fn ack(&mut self, key: Key) {
        let Some(last) = self.last else { return };
        if key.boot == last.boot && key.seq > self.acked && key.seq <= last.seq {
            self.acked = key.seq;
            self.overrun = false;
        }
    }

    /// Verdicts that the PLC has not acknowledged.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.last.map_or(0, |last| last.seq.saturating_sub(self.acked))
    }

    /// The station takes a trigger now.
    #[must_use]
    pub fn trigger_ready(&self) -> bool {
        self.ready && self.triggers - self.completed < u64::from(self.config.cells)
    }

    /// A trigger was taken and its frame has not come: hold the cell.
    #[must_use]
    pub fn trigger_ack(&self) -> bool {
        self.exposed < self.triggers
    }

    /// Every trigger that was taken has its verdict.
    #[must_use]
    pub fn inspection_completed(&self) -> bool {
        self.triggers > 0 && self.completed == self.triggers
    }

    /// There is a verdict that the PLC has not acknowledged.
    #[must_use]
    pub fn results_valid(&self) -> bool {
        self.waiting() > 0
    }

    /// More verdicts wait for the PLC than agreed. They are not lost: `verdict` has them.
    #[must_use]
    pub fn buffer_overrun(&self) -> bool {
        self.overrun
    }

    /// The last trigger came while none was taken, or no frame came for it.
    #[must_use]
    pub fn missed_acquisition(&self) -> bool {
        self.missed
    }

    /// Appends the state as one flat JSON object, keys in a fixed order.
    pub fn write_json(&self, out: &mut String) {
        // Writing into a string does not fail.
        let _ = write!(
            out,
            "{{\"trigger_ready\":{},\"trigger_ack\":{},\"inspection_completed\":{},\"results_valid\":{},\
             \"buffer_overrun\":{},\"missed_acquisition\":{},\"triggers\":{},\"completed\":{},\"waiting\":{}",
            self.trigger_ready(),
            self.trigger_ack(),
            self.inspection_completed(),
            self.results_valid(),
            self.buffer_overrun(),
            self.missed_acquisition(),
            self.triggers,
            self.completed,
            self.waiting()
        );
        let _ = match self.last {
            Some(Key { boot, seq }) => write!(out, ",\"boot\":{boot},\"seq\":{seq}}}"),
            None => write!(out, ",\"boot\":null,\"seq\":null}}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Happening::{Ack, Exposed, NoFrame, Ready, Trigger, Verdict};

    fn key(seq: u64) -> Key {
        Key { boot: 3, seq }
    }

    /// The six levels after these happenings, as letters.
    fn levels(handshake: &Handshake) -> String {
        [
            (handshake.trigger_ready(), 'R'),
            (handshake.trigger_ack(), 'A'),
            (handshake.inspection_completed(), 'C'),
            (handshake.results_valid(), 'V'),
            (handshake.buffer_overrun(), 'O'),
            (handshake.missed_acquisition(), 'M'),
        ]
        .iter()
        .map(|(level, letter)| if *level { *letter } else { '.' })
        .collect()
    }

    fn run(config: HandshakeConfig, steps: &[(Happening, &str)]) -> Handshake {
        let mut handshake = Handshake::new(config);
        for (index, (happening, expected)) in steps.iter().enumerate() {
            handshake.take(*happening);
            assert_eq!(levels(&handshake), *expected, "after step {index}: {happening:?}");
        }
        handshake
    }

    #[test]
    fn one_cell_after_the_other() {
        let config = HandshakeConfig { cells: 1, results: 2 };
        let handshake = run(
            config,
            &[
                (Ready(true), "R....."),
                (Trigger, ".A...."),
                (Exposed, "......"),
                (Verdict(key(8)), "R.CV.."),
                (Ack(key(8)), "R.C..."),
                (Trigger, ".A...."),
                (Exposed, "......"),
                (Verdict(key(9)), "R.CV.."),
            ],
        );
        let mut text = String::new();
        handshake.write_json(&mut text);
        assert_eq!(
            text,
            "{\"trigger_ready\":true,\"trigger_ack\":false,\"inspection_completed\":true,\"results_valid\":true,\
             \"buffer_overrun\":false,\"missed_acquisition\":false,\"triggers\":2,\"completed\":2,\"waiting\":1,\
             \"boot\":3,\"seq\":9}"
        );
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
    }

    #[test]
    fn a_trigger_that_comes_too_early_is_missed_until_the_next_frame() {
        run(
            HandshakeConfig { cells: 2, results: 0 },
            &[
                (Trigger, ".....M"),
                (Ready(true), "R....M"),
                (Trigger, "RA...M"),
                (Trigger, ".A...M"),
                (Trigger, ".A...M"),
                (Exposed, ".A...."),
                (NoFrame, ".....M"),
                (Verdict(key(1)), "R..V.M"),
                (Verdict(key(2)), "R.CV.M"),
                (Trigger, "RA.V.M"),
                (Exposed, "R..V.."),
                (Ready(false), "...V.."),
            ],
        );
    }

    #[test]
    fn verdicts_that_nobody_takes_overrun_the_buffer_until_one_is_taken() {
        let handshake = run(
            HandshakeConfig { cells: 8, results: 2 },
            &[
                (Ready(true), "R....."),
                (Verdict(key(5)), "R..V.."),
                (Verdict(key(6)), "R..V.."),
                (Verdict(key(7)), "R..VO."),
                // Of another start, of the future, and old: none of them takes anything.
                (Ack(Key { boot: 2, seq: 7 }), "R..VO."),
                (Ack(key(8)), "R..VO."),
                (Ack(key(4)), "R..VO."),
                (Ack(key(6)), "R..V.."),
                (Ack(key(7)), "R....."),
            ],
        );
        assert_eq!(handshake.waiting(), 0);
    }

    #[test]
    fn frames_and_verdicts_that_nobody_asked_for_upset_no_count() {
        run(
            HandshakeConfig { cells: 1, results: 0 },
            &[
                (Exposed, "......"),
                (NoFrame, "......"),
                (Verdict(key(1)), "...V.."),
                (Ready(true), "R..V.."),
                (Trigger, ".A.V.."),
                // A deadline passed before the frame came.
                (Verdict(key(2)), "R.CV.."),
                (Exposed, "R.CV.."),
            ],
        );
    }

    #[test]
    fn the_documents_describe_every_key() {
        let mut text = String::new();
        Handshake::new(HandshakeConfig::default()).write_json(&mut text);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        for key in value.as_object().unwrap().keys() {
            assert!(include_str!("../../docs/mqtt.md").contains(&format!("`{key}`")), "docs/mqtt.md: {key}");
            let schema = include_str!("../../docs/asyncapi.yaml");
            assert!(schema.contains(&format!("          {key}: {{ type: ")), "docs/asyncapi.yaml: {key}");
        }
    }

    #[test]
    fn only_what_changes_the_state_is_to_be_published() {
        let mut handshake = Handshake::new(HandshakeConfig::default());
        assert!(handshake.take(Ready(true)) && !handshake.take(Ready(true)));
        assert!(!handshake.take(Exposed) && !handshake.take(Ack(key(1))));
        assert!(handshake.take(Verdict(key(1))) && handshake.take(Ack(key(1))) && !handshake.take(Ack(key(1))));
        assert!(HandshakeConfig { cells: 0, results: 0 }.validate().unwrap_err().contains("cells = 0"));
        HandshakeConfig::default().validate().unwrap();
    }
}
