//! Two places for a model, and the one record of which is in force and what is known for sure.
//!
//! The record is replaced whole: written beside, made durable, renamed. Three rules keep a whole model in force at every
//! instant: the files of a slot are touched only while the durable record calls it empty; a slot is put in force only
//! after its files are durable and their hash was checked; the slot in force is never the one that is written.

use std::io::{self, Read};

use thiserror::Error;

use super::bundle::{BundleError, Hash, KeySet};
use super::disk::{Disk, Reading};
pub use super::record::{Fitted, Phase, Record, Refusal, Slot};

const RECORD: &str = "record";
const RECORD_NEW: &str = "record.new";
const MAGIC: [u8; 8] = *b"CGRECORD";
const MAX_RECORD: u64 = 1 << 18;
const BUFFER: usize = 1 << 16;

/// How a model on probation is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Cells after which it is good. Default 500.
    pub cells: u64,
    /// Seconds after which it is good too, once 50 cells were judged. Default 8 hours.
    pub seconds: u64,
    /// Starts of the station with it, above which it counts as a crash loop. Default 3.
    pub starts: u32,
    /// The largest share of INVALID cells, once 50 were judged. Default 0.1.
    pub invalid: f64,
    /// The largest share of rejected cells, once 50 were judged. Default 0.3.
    pub rejected: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { cells: 500, seconds: 8 * 3600, starts: 3, invalid: 0.1, rejected: 0.3 }
    }
}

/// What was seen of a model on probation since it was asked for last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Cells that it has judged.
    pub cells: u64,
    /// Those that were INVALID by its judgement.
    pub invalid: u64,
    /// Those that it rejected.
    pub rejected: u64,
    /// Seconds that have passed.
    pub seconds: u64,
    /// The line's good cells lie elsewhere than its fit.
    pub drift: bool,
}

impl Seen {
    /// Counts what was seen after this too.
    pub fn add(&mut self, later: &Self) {
        self.cells = self.cells.saturating_add(later.cells);
        self.invalid = self.invalid.saturating_add(later.invalid);
        self.rejected = self.rejected.saturating_add(later.rejected);
        self.seconds = self.seconds.saturating_add(later.seconds);
        self.drift = later.drift;
    }
}

/// Cells after which shares say something.
const FEW: u64 = 50;

/// Why an update did not go on. The model that was in force still is.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The disk.
    #[error("{what} in the state folder: {source}")]
    Disk {
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The record cannot be used.
    #[error(
        "reading the record of the state folder: {0}; set the station up anew with `cellgate update install` and a key set"
    )]
    Record(String),
    /// No keys are trusted yet.
    #[error("the state folder trusts no keys yet: install a key set (.cgk) first")]
    NoKeys,
    /// The bundle is refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The connection broke; what has come is kept, and it can go on from there.
    #[error("fetching the bundle: {source}; {have} bytes have come and are kept")]
    Interrupted {
        /// Bytes that have come.
        have: u64,
        /// What happened.
        source: io::Error,
    },
    /// The update was called off before the model was in force.
    #[error("version {version} was not put in force: {why}")]
    Stopped {
        /// The bundle's version.
        version: u64,
        /// Why.
        why: String,
    },
    /// The golden frames were not judged as they should.
    #[error("proving the model of version {version}: {why}; the model in force stays")]
    Proof {
        /// The bundle's version.
        version: u64,
        /// What was wrong.
        why: String,
    },
    /// Something else must come first.
    #[error("{0}")]
    NotNow(&'static str),
    /// No slot holds a whole model.
    #[error("no slot holds a whole model: install a bundle that is not a difference")]
    NoModel,
}

pub(super) fn disk_error(what: &'static str) -> impl Fn(io::Error) -> UpdateError {
    move |source| UpdateError::Disk { what, source }
}

/// The state folder, its record read.
#[derive(Debug)]
pub struct Slots<D> {
    pub(super) disk: D,
    record: Record,
    /// There is a model beside the slots to go back to.
    factory: bool,
}

impl<D: Disk> Slots<D> {
    /// Sets a state folder up: from now on these keys are trusted. An existing folder keeps its marks and models only by
    /// [`KeySet::rotate`]; this is for a new one.
    ///
    /// # Errors
    /// If there is a record already, or the disk fails.
    pub fn set_up(disk: D, keys: KeySet) -> Result<Self, UpdateError> {
        if disk.len(RECORD).map_err(disk_error("looking for the record"))?.is_some() {
            return Err(UpdateError::NotNow(
                "the state folder trusts keys already: they are changed by a key set that they signed",
            ));
        }
        let phase = Phase::Good;
        let (slots, refused, last) = ([None, None], Vec::new(), "set up".into());
        let record = Record { keys, version: 0, clock: 0, active: None, slots, phase, refused, last };
        let mut slots = Self { disk, record: record.clone(), factory: false };
        slots.commit(record)?;
        Ok(slots)
    }

    /// Opens a state folder. An update that a power cut stopped before it was in force is dropped; it can be installed
    /// again.
    ///
    /// # Errors
    /// If there is no record, or it cannot be used, or the disk fails.
    pub fn open(disk: D) -> Result<Self, UpdateError> {
        let record = read_record(&disk)?;
        let mut slots = Self { disk, record, factory: false };
        if let Phase::Staging { to } | Phase::Staged { to } | Phase::Proved { to } = slots.record.phase {
            slots.empty(to, "an update was interrupted; install it again")?;
        }
        Ok(slots)
    }

    /// Opens a state folder to look at it: nothing is changed.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn look(disk: &D) -> Result<Record, UpdateError> {
        read_record(disk)
    }

    /// Says that the station has a model beside the slots, to which it can go back while the other slot is empty.
    #[must_use]
    pub fn with_factory(self) -> Self {
        Self { factory: true, ..self }
    }

    /// All that lasts.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The model to start with, its file checked to the last bit. Each call counts as a start of the station: a model on
    /// probation that starts too often is taken back; one that is damaged, too.
    ///
    /// # Errors
    /// If no slot holds a whole model: then only the one beside them is left, if there is one. A disk that is full is no
    /// error.
    pub fn start(&mut self, limits: &Limits) -> Result<(Slot, Fitted), UpdateError> {
        if let Phase::Probation { starts, cells, invalid, rejected, seconds } = self.record.phase {
            let starts = starts.saturating_add(1);
            if starts > limits.starts && self.can_go_back() {
                let back = self.way_back().map(|(slot, fitted)| (slot, fitted.clone()));
                self.rollback_if_it_can_be_written("the station started too often with it");
                return back.ok_or(UpdateError::NoModel);
            }
            let phase = Phase::Probation { starts, cells, invalid, rejected, seconds };
            // The station starts even if its disk is full: a count that is lost is no reason to stop the line.
            if let Err(error) = self.commit(Record { phase, ..self.record.clone() }) {
                log::error!("counting a start with a model on probation: {error}");
            }
        }
        if let Some((slot, fitted)) = self.record.in_force() {
            if self.is_whole(slot, fitted) {
                return Ok((slot, fitted.clone()));
            }
            log::error!("the model in slot {slot} is damaged");
        }
        let back = self.way_back().map(|(slot, fitted)| (slot, fitted.clone()));
        if self.record.active.is_some() && self.can_go_back() {
            self.rollback_if_it_can_be_written("the model in force was damaged");
        }
        back.ok_or(UpdateError::NoModel)
    }

    /// Whether there is a model to go back to.
    #[must_use]
    pub fn can_go_back(&self) -> bool {
        self.factory || self.way_back().is_some()
    }

    /// The other slot's model, if it is whole.
    fn way_back(&self) -> Option<(Slot, &Fitted)> {
        let other = self.record.active?.other();
        let fitted = self.record.slot(other)?;
        self.is_whole(other, fitted).then_some((other, fitted))
    }

    /// A station whose disk is full starts with the model before all the same, and tries again at the next start.
    fn rollback_if_it_can_be_written(&mut self, why: &str) {
        if let Err(error) = self.rollback(why) {
            log::error!("recording that the model before is in force, since {why}: {error}");
        }
    }

    /// Puts the model before this one in force again; where no slot holds one, that beside the slots. It can be undone only
    /// by a bundle of a larger version.
    ///
    /// # Errors
    /// If there is none, or the disk fails.
    pub fn rollback(&mut self, why: &str) -> Result<(), UpdateError> {
        const NONE: UpdateError = UpdateError::NotNow("there is no whole model to go back to");
        let from = self.record.active.ok_or(NONE)?;
        let back = self.way_back().map(|(slot, fitted)| (slot, fitted.version));
        let mut record = Record { phase: Phase::Good, ..self.record.clone() };
        match back {
            Some((slot, version)) => {
                record.active = Some(slot);
                record.last = format!("went back to version {version}: {why}");
            }
            None if self.factory => {
                record.active = None;
                record.last = format!("went back to the model of the configuration: {why}");
            }
            None => return Err(NONE),
        }
        if let Some(gone) = record.slots[from as usize].take() {
            record.refuse(gone.version, true, why);
        }
        self.commit(record)
    }

    /// Counts what was seen of the model on probation, and takes it back or calls it good by the limits. Says whether the
    /// model in force has changed. It writes to the disk once a call: call it once for many cells.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn watch(&mut self, seen: &Seen, limits: &Limits) -> Result<bool, UpdateError> {
        let Phase::Probation { cells, invalid, rejected, starts, seconds } = self.record.phase else {
            return Ok(false);
        };
        let cells = cells.saturating_add(seen.cells);
        let (invalid, rejected) = (invalid.saturating_add(seen.invalid), rejected.saturating_add(seen.rejected));
        let seconds = seconds.saturating_add(seen.seconds);
        let share = |part: u64| if cells < FEW { 0.0 } else { part as f64 / cells as f64 };
        let why = if share(invalid) > limits.invalid {
            Some(format!("too many cells were INVALID, {invalid} of {cells}"))
        } else if share(rejected) > limits.rejected {
            Some(format!("too many cells were rejected, {rejected} of {cells}"))
        } else {
            seen.drift.then(|| format!("after {cells} cells the good ones lie elsewhere than its fit"))
        };
        match why {
            Some(why) if self.can_go_back() => self.rollback(&why).map(|()| true),
            None if cells >= limits.cells || cells >= FEW && seconds >= limits.seconds => {
                self.confirm().map(|()| false)
            }
            _ => {
                let phase = Phase::Probation { cells, invalid, rejected, starts, seconds };
                self.commit(Record { phase, ..self.record.clone() }).map(|()| false)
            }
        }
    }

    /// Ends the probation: the model is good.
    ///
    /// # Errors
    /// If there is no probation, or the disk fails.
    pub fn confirm(&mut self) -> Result<(), UpdateError> {
        if !matches!(self.record.phase, Phase::Probation { .. }) {
            return Err(UpdateError::NotNow("no model is on probation"));
        }
        let last = format!("version {} is good", self.record.version);
        self.commit(Record { phase: Phase::Good, last, ..self.record.clone() })
    }

    /// Puts the proven model in force, on probation. Call it between two cells.
    ///
    /// # Errors
    /// If none is proven, or the disk fails.
    pub fn activate(&mut self) -> Result<(), UpdateError> {
        let Phase::Proved { to } = self.record.phase else {
            return Err(UpdateError::NotNow("no proven model waits to be put in force"));
        };
        let version = self.record.slot(to).ok_or(UpdateError::NoModel)?.version;
        let phase = Phase::Probation { cells: 0, invalid: 0, rejected: 0, starts: 0, seconds: 0 };
        let last = format!("version {version} is in force, on probation");
        let version = version.max(self.record.version);
        self.commit(Record { active: Some(to), version, phase, last, ..self.record.clone() })
    }

    /// Trusts the next keys.
    ///
    /// # Errors
    /// If the keys in force have not signed it, it does not follow, or the disk fails.
    pub fn rotate(&mut self, file: &mut impl Read) -> Result<(), UpdateError> {
        let (keys, _) = self.record.keys.rotate(file)?;
        let last = format!("the key set of version {} is in force", keys.version);
        self.commit(Record { keys, last, ..self.record.clone() })
    }

    /// Drops what a slot that is not in force holds.
    pub(super) fn empty(&mut self, slot: Slot, last: &str) -> Result<(), UpdateError> {
        let mut record = Record { phase: Phase::Good, last: last.into(), ..self.record.clone() };
        record.slots[slot as usize] = None;
        self.commit(record)
    }

    /// Whether a slot's file is what the record says.
    fn is_whole(&self, slot: Slot, fitted: &Fitted) -> bool {
        hash_of(&self.disk, slot.model()).is_ok_and(|found| found == (fitted.bytes, fitted.hash))
    }

    /// Replaces the record. What is in memory follows what is on the disk, never the other way.
    pub(super) fn commit(&mut self, record: Record) -> Result<(), UpdateError> {
        let failed = disk_error("writing the record");
        let body = postcard::to_stdvec(&record).map_err(|error| UpdateError::Record(error.to_string()))?;
        let whole = [&MAGIC[..], blake3::hash(&body).as_bytes(), &body].concat();
        self.disk.create(RECORD_NEW).map_err(&failed)?;
        self.disk.append(RECORD_NEW, &whole).map_err(&failed)?;
        self.disk.sync(RECORD_NEW).map_err(&failed)?;
        self.disk.rename(RECORD_NEW, RECORD).map_err(&failed)?;
        self.disk.sync_folder().map_err(&failed)?;
        self.record = record;
        Ok(())
    }
}

/// Length and BLAKE3 of a file.
pub(super) fn hash_of(disk: &impl Disk, name: &str) -> io::Result<(u64, Hash)> {
    let mut reading = Reading::new(disk, name)?;
    let (mut hash, mut length, mut buffer) = (blake3::Hasher::new(), 0, vec![0; BUFFER]);
    loop {
        let part = reading.read(&mut buffer)?;
        if part == 0 {
            return Ok((length, Hash(*hash.finalize().as_bytes())));
        }
        hash.update(&buffer[..part]);
        length += part as u64;
    }
}

fn read_record(disk: &impl Disk) -> Result<Record, UpdateError> {
    let failed = disk_error("reading the record");
    let length = disk.len(RECORD).map_err(&failed)?.ok_or(UpdateError::NoKeys)?;
    if !(40..=MAX_RECORD).contains(&length) {
        return Err(UpdateError::Record(format!("it is {length} bytes long")));
    }
    let mut bytes = vec![0; length as usize];
    disk.read_at(RECORD, 0, &mut bytes).map_err(&failed)?;
    if bytes[..8] != MAGIC || bytes[8..40] != *blake3::hash(&bytes[40..]).as_bytes() {
        return Err(UpdateError::Record("it is damaged".into()));
    }
    postcard::from_bytes(&bytes[40..]).map_err(|error| UpdateError::Record(error.to_string()))
}
