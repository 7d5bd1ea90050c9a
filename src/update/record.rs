//! All that lasts of a station's updates, and what it is made of.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::bundle::{Hash, KeySet, Marks};
use super::slots::Limits;

/// One of the two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The model's file in the state folder.
    #[must_use]
    pub fn model(self) -> &'static str {
        match self {
            Self::A => "a.cgm",
            Self::B => "b.cgm",
        }
    }

    /// The golden frames' file in the state folder.
    #[must_use]
    pub fn golden(self) -> &'static str {
        match self {
            Self::A => "a.golden",
            Self::B => "b.golden",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

/// The model in a slot: whole and durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fitted {
    /// The bundle's version.
    pub version: u64,
    /// Bytes of the model file.
    pub bytes: u64,
    /// BLAKE3 of the model file.
    pub hash: Hash,
    /// When it was put there, in milliseconds since 1970, by the machine's clock.
    pub since: u64,
}

/// How far an update is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// None is under way; the model in force is good, or there is none yet.
    Good,
    /// Its files are being written; the slot counts as empty.
    Staging {
        /// Where to.
        to: Slot,
    },
    /// Its files are whole.
    Staged {
        /// Where.
        to: Slot,
    },
    /// It judged its golden frames as it should.
    Proved {
        /// Where.
        to: Slot,
    },
    /// It is in force and watched.
    Probation {
        /// Cells that it has judged.
        cells: u64,
        /// Those that were INVALID.
        invalid: u64,
        /// Those that were rejected.
        rejected: u64,
        /// Times that the station started with it.
        starts: u32,
        /// Seconds that it has been in force while the station ran.
        seconds: u64,
    },
}

/// A version that is not taken again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The bundle's version.
    pub version: u64,
    /// It was in force, and was taken back; otherwise it failed its proof.
    pub was_in_force: bool,
    /// Why.
    pub why: String,
}

/// Refusals that are remembered: the last so many.
const REMEMBERED: usize = 8;
const MAX_WHY: usize = 400;

/// All that lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Who may sign.
    pub keys: KeySet,
    /// The largest version that was in force or was refused by its proof.
    pub version: u64,
    /// The latest time known for sure, in milliseconds since 1970. It is never later than a signed manifest allows: a
    /// clock that runs ahead cannot lock the station out.
    pub clock: u64,
    /// The slot in force.
    pub active: Option<Slot>,
    /// What the slots A and B hold.
    pub slots: [Option<Fitted>; 2],
    /// How far an update is.
    pub phase: Phase,
    /// The last versions that failed their proof or were taken back, the newest last.
    pub refused: Vec<Refusal>,
    /// The last thing that happened, for people.
    pub last: String,
}

impl Record {
    pub(super) fn refuse(&mut self, version: u64, was_in_force: bool, why: &str) {
        let surplus = (self.refused.len() + 1).saturating_sub(REMEMBERED);
        self.refused.drain(..surplus);
        let why = why.chars().take(MAX_WHY).collect();
        self.refused.push(Refusal { version, was_in_force, why });
    }

    /// What a slot holds.
    #[must_use]
    pub fn slot(&self, slot: Slot) -> Option<&Fitted> {
        self.slots[slot as usize].as_ref()
    }

    /// The model in force.
    #[must_use]
    pub fn in_force(&self) -> Option<(Slot, &Fitted)> {
        let active = self.active?;
        Some((active, self.slot(active)?))
    }

    /// How far a probation is, 0 to 1; none if there is none.
    #[must_use]
    pub fn progress(&self, limits: &Limits) -> Option<f32> {
        let Phase::Probation { cells, .. } = self.phase else { return None };
        Some((cells as f64 / limits.cells.max(1) as f64).min(1.0) as f32)
    }

    /// What the station never goes behind.
    #[must_use]
    pub fn marks(&self) -> Marks {
        Marks { version: self.version, clock: self.clock }
    }
}
