//! The outbox's file: a ring of verdicts that survives whatever the process and the power do.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::medium::Medium;
use super::slot::{self, BLOCK, Header, MAX_PAYLOAD, Position, SLOT, SLOTS_AT};
use super::{Key, OutboxConfig, OutboxError};
use crate::clock::Date;

/// Deliveries after which the position is written although no verdict came that would carry it.
const NOTE_EVERY: u64 = 64;
/// 2020-01-01 in milliseconds since 1970.
const Y2020: u64 = 1_577_836_800_000;

/// Verdicts in a file of fixed size, each durable before [`Outbox::append`] returns.
///
/// A file belongs to one process at a time. Nothing is allocated after it was opened, and no clock matters: order is the
/// order of appends.
///
/// What is delivered is noted beside the next verdict, or every 64 deliveries, and at the end. So after a crash some
/// verdicts are delivered again; none is forgotten.
pub struct Outbox<M: Medium = File> {
    medium: M,
    path: PathBuf,
    slots: u64,
    position: Position,
    generation: u64,
    /// The record of this generation may not be on the disk: only that one may be written, or a power cut takes both.
    note_unsynced: bool,
    /// `position.tail` as the disk has it, or will have it with what is written.
    noted: u64,
    failed: bool,
    text: String,
    slot: Box<[u8; SLOT]>,
}

impl Outbox {
    /// Opens the file, or makes it: then the whole of its disk space is written, so that the disk cannot be full later.
    /// Counts a start: [`Outbox::boot`] is new.
    ///
    /// # Errors
    /// If another process has it, if the file is something else or damaged beyond single verdicts (it is left as it is),
    /// and what the system said.
    pub fn open(config: &OutboxConfig) -> Result<Self, OutboxError> {
        let path = &config.path;
        let io = |doing, remedy| move |source| OutboxError::Io { doing, path: path.clone(), source, remedy };
        if !path.try_exists().map_err(io("look for", "check that its folder can be read"))? {
            create(path, config.verdicts)?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(io("open", "check that the file can be read and written by the station's user"))?;
        // Between making and opening, another process may have come: the lock decides whose it is.
        lock(&file, path)?;
        let outbox = Self::on(file, path)?;
        if outbox.slots != u64::from(config.verdicts) {
            log::warn!(
                "the outbox {} holds {} verdicts and keeps that size; for outbox.verdicts = {} stop the station when all are delivered and move the file aside",
                path.display(),
                outbox.slots,
                config.verdicts
            );
        }
        Ok(outbox)
    }
}

impl<M: Medium> Outbox<M> {
    /// The outbox on a medium that holds one. `path` is for messages.
    ///
    /// # Errors
    /// As [`Outbox::open`].
    pub fn on(medium: M, path: &Path) -> Result<Self, OutboxError> {
        let damaged = |why: String| OutboxError::Damaged { path: path.into(), why };
        let reading = |source| OutboxError::Io {
            doing: "read",
            path: path.into(),
            source,
            remedy: "check the disk (`dmesg`), then move the file aside",
        };
        let size = medium.size().map_err(reading)?;
        if size < SLOTS_AT {
            return Err(damaged(format!("it has only {size} bytes")));
        }
        let mut block = [0; BLOCK];
        medium.read_at(&mut block, 0).map_err(reading)?;
        let slots = u64::from(slot::read_first(&block, size).map_err(damaged)?);
        let mut records = [None; 2];
        for (generation, record) in (1..).zip(&mut records) {
            medium.read_at(&mut block, slot::position_at(generation)).map_err(reading)?;
            *record = slot::read_position(&block);
        }
        let newest = records.into_iter().flatten().max_by_key(|(_, generation)| *generation);
        let (position, generation) =
            newest.ok_or_else(|| damaged("both records of its position are damaged".into()))?;
        let mut outbox = Self {
            medium,
            path: path.into(),
            slots,
            position,
            generation,
            note_unsynced: false,
            noted: 0,
            failed: false,
            text: String::with_capacity(MAX_PAYLOAD + 1),
            slot: Box::new([0; SLOT]),
        };
        outbox.recover().map_err(reading)?;
        outbox.position.boot = outbox.position.boot.saturating_add(1);
        outbox.begin().map_err(|source| OutboxError::Io {
            doing: "write",
            path: path.into(),
            source,
            remedy: "check the disk (`dmesg`, `df`)",
        })?;
        Ok(outbox)
    }

    /// Finds out from the slots how far the last start came.
    fn recover(&mut self) -> io::Result<()> {
        let mut chunk = vec![0; SLOT * 512];
        let mut valid = vec![0_u64; self.slots as usize];
        for (first, seqs) in (0_u64..).step_by(512).zip(valid.chunks_mut(512)) {
            let bytes = &mut chunk[..seqs.len() * SLOT];
            if self.medium.read_at(bytes, SLOTS_AT + first * SLOT as u64).is_err() {
                // One bad sector must not cost the others, nor the next start.
                for (index, bytes) in (first..).zip(bytes.chunks_mut(SLOT)) {
                    if self.medium.read_at(bytes, SLOTS_AT + index * SLOT as u64).is_err() {
                        bytes.fill(0);
                    }
                }
            }
            for ((index, seq), bytes) in (first..).zip(seqs).zip(bytes.chunks(SLOT)) {
                // A slot that lies in the wrong place is as good as damaged.
                let Some((header, _)) = slot::read_slot(bytes).filter(|(h, _)| h.key.seq % self.slots == index) else {
                    continue;
                };
                *seq = header.key.seq;
                self.position.next = self.position.next.max(header.key.seq + 1);
                self.position.boot = self.position.boot.max(header.key.boot);
                self.position.tail = self.position.tail.max(header.tail);
                self.position.dropped = self.position.dropped.max(header.dropped);
            }
        }
        self.position.tail = self.position.tail.min(self.position.next);
        // What lay where there are newer ones went without a note of it.
        let oldest = self.position.next.saturating_sub(self.slots);
        self.give_up_below(oldest);
        let lost = |seq: u64| valid[(seq % self.slots) as usize] != seq;
        let Position { tail, next, .. } = self.position;
        for seq in (tail..next).filter(|seq| lost(*seq)) {
            log::error!("verdict {seq} in the outbox {} is damaged and will not be delivered", self.path.display());
        }
        // The oldest may lie under one that was torn while it took its place.
        let readable = (tail..next).find(|seq| !lost(*seq)).unwrap_or(next);
        self.give_up_below(readable);
        Ok(())
    }

    fn give_up_below(&mut self, seq: u64) {
        let lost = seq.saturating_sub(self.position.tail);
        self.position.dropped += lost;
        self.position.tail += lost;
    }

    /// Makes what was found last: after a failed sync the newest slot may be in memory alone, looking written.
    fn begin(&mut self) -> io::Result<()> {
        if self.position.next > 1 {
            let at = self.slot_at(self.position.next - 1);
            self.medium.read_at(&mut self.slot[..], at)?;
            self.medium.write_at(&self.slot[..], at)?;
        }
        self.note()?;
        self.sync()
    }

    fn sync(&mut self) -> io::Result<()> {
        self.medium.sync()?;
        self.note_unsynced = false;
        Ok(())
    }

    /// Writes the position; the next sync makes it durable.
    fn note(&mut self) -> io::Result<()> {
        self.generation += u64::from(!self.note_unsynced);
        self.note_unsynced = true;
        let record = slot::write_position(&self.position, self.generation);
        self.medium.write_at(&record, slot::position_at(self.generation))?;
        self.noted = self.position.tail;
        Ok(())
    }

    fn slot_at(&self, seq: u64) -> u64 {
        SLOTS_AT + seq % self.slots * SLOT as u64
    }

    /// Keeps the verdict that `write` writes, knowing its key, and returns when the disk has it. Where every slot waits
    /// for the broker, the oldest is dropped.
    ///
    /// # Errors
    /// If the payload does not fit (nothing was done then), and if the disk failed: then nothing is known of this
    /// verdict, nothing may be announced, and every further append fails until the file is opened again.
    pub fn append(&mut self, write: impl FnOnce(Key, &mut String)) -> Result<Key, OutboxError> {
        if self.failed {
            return Err(OutboxError::Failed(self.path.clone()));
        }
        let Position { boot, next, .. } = self.position;
        let key = Key { boot, seq: next };
        self.text.clear();
        write(key, &mut self.text);
        if self.text.is_empty() || self.text.len() > MAX_PAYLOAD {
            return Err(OutboxError::Payload(self.text.len()));
        }
        let mut position = Position { next: next + 1, ..self.position };
        if next - position.tail >= self.slots {
            position.tail += 1;
            position.dropped += 1;
        }
        let header = Header { key, tail: position.tail, dropped: position.dropped, length: self.text.len() };
        let end = slot::write_slot(&header, self.text.as_bytes(), &mut self.slot);
        let at = self.slot_at(next);
        // Until it is known to have gone well, it has gone wrong.
        self.failed = true;
        let written = self.medium.write_at(&self.slot[..end], at).and_then(|()| self.sync());
        written.map_err(|source| OutboxError::Io {
            doing: "write a verdict to",
            path: self.path.clone(),
            source,
            remedy: "check the disk (`dmesg`, `df`); nothing is announced until it is opened again",
        })?;
        self.failed = false;
        self.position = position;
        self.noted = position.tail;
        Ok(key)
    }

    /// Copies the oldest verdict that is not delivered into `payload` and gives its key; none if all are. Allocates
    /// nothing if `payload` has room for [`MAX_PAYLOAD`] bytes.
    ///
    /// # Errors
    /// If it is damaged: [`Outbox::give_up`] goes on to the next. If the disk cannot be read: then the file must be opened
    /// again, and nothing is given up.
    pub fn peek(&mut self, payload: &mut Vec<u8>) -> Result<Option<Key>, OutboxError> {
        payload.clear();
        let seq = self.position.tail;
        if seq >= self.position.next {
            return Ok(None);
        }
        let at = self.slot_at(seq);
        self.medium.read_at(&mut self.slot[..], at).map_err(|source| {
            self.failed = true;
            OutboxError::Io { doing: "read", path: self.path.clone(), source, remedy: "check the disk (`dmesg`)" }
        })?;
        let found = slot::read_slot(&self.slot[..]).filter(|(header, _)| header.key.seq == seq);
        let Some((header, bytes)) = found else {
            return Err(OutboxError::Unreadable { path: self.path.clone(), seq });
        };
        payload.extend_from_slice(bytes);
        Ok(Some(header.key))
    }

    /// Forgets the verdict that [`Outbox::peek`] gave, since the broker has it. One that retention dropped meanwhile is
    /// already forgotten. The note of it may be lost in a crash: then it is delivered again.
    pub fn delivered(&mut self, seq: u64) {
        if seq == self.position.tail && seq < self.position.next {
            self.position.tail += 1;
            // A failure to note costs a second delivery, no more; the next append will show what the disk has.
            if self.position.tail - self.noted >= NOTE_EVERY && !self.failed {
                let _ = self.note();
            }
        }
    }

    /// Goes past the verdict that [`Outbox::peek`] could not read, and counts it as dropped.
    pub fn give_up(&mut self, seq: u64) {
        if seq == self.position.tail && seq < self.position.next {
            self.position.dropped += 1;
            self.delivered(seq);
        }
    }

    /// Verdicts that wait to be delivered.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.position.next - self.position.tail
    }

    /// Verdicts, in the life of the file, that retention dropped or that could not be read back before they were delivered.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.position.dropped
    }

    /// Number of this start; see [`Key`].
    #[must_use]
    pub fn boot(&self) -> u32 {
        self.position.boot
    }

    /// Number of the next verdict.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.position.next
    }

    /// Verdicts that the file holds.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.slots
    }

    /// Whether the disk failed, so that the file must be opened again.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// What [`Outbox::open`] was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl<M: Medium> Drop for Outbox<M> {
    fn drop(&mut self) {
        if !self.failed && self.noted != self.position.tail {
            let _ = self.note().and_then(|()| self.sync());
        }
    }
}

/// An empty outbox as bytes, up to the slots.
pub(super) fn fresh(slots: u32, boot: u32) -> Vec<u8> {
    let mut bytes = vec![0; SLOTS_AT as usize];
    let mut block = [0; BLOCK];
    slot::write_first(slots, &mut block);
    bytes[..BLOCK].copy_from_slice(&block);
    let start = Position { boot, tail: 1, dropped: 0, next: 1 };
    for generation in [1, 2] {
        let at = slot::position_at(generation) as usize;
        let record = slot::write_position(&start, generation);
        bytes[at..at + record.len()].copy_from_slice(&record);
    }
    bytes
}

/// Makes the file, whole or not at all. Zeros are written, not only reserved: later writes then change no metadata of the
/// file system, which costs half the time, and no disk is full.
fn create(path: &Path, slots: u32) -> Result<(), OutboxError> {
    let io = |source| OutboxError::Io {
        doing: "make",
        path: path.into(),
        source,
        remedy: "check that its folder is there and writable, and that the disk has room",
    };
    // Always the same name, so that what a power cut leaves is used up by the next start.
    let mut passing = path.as_os_str().to_owned();
    passing.push(".new");
    let mut file = File::options().write(true).create(true).truncate(false).open(&passing).map_err(io)?;
    lock(&file, path)?;
    if path.try_exists().map_err(io)? {
        // Another process was faster; this is empty.
        let _ = std::fs::remove_file(&passing);
        return Ok(());
    }
    fill(&mut file, slots).and_then(|()| std::fs::rename(&passing, path)).map_err(io)?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

fn fill(file: &mut File, slots: u32) -> io::Result<()> {
    file.set_len(0)?;
    let boot = Date::now().as_millis().saturating_sub(Y2020) / 60_000;
    file.write_all(&fresh(slots, u32::try_from(boot).unwrap_or(0)))?;
    let zeros = vec![0; SLOT * 512];
    let mut left = slots as usize * SLOT;
    while left > 0 {
        let now = left.min(zeros.len());
        file.write_all(&zeros[..now])?;
        left -= now;
    }
    file.sync_all()
}

/// Takes the file for this process alone. A process that is just being started by another thread holds the files of this
/// one for an instant, even closed ones; so it is tried for a while.
fn lock(file: &File, path: &Path) -> Result<(), OutboxError> {
    for attempt in 0.. {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) if attempt < 20 => std::thread::sleep(Duration::from_millis(25)),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OutboxError::InUse(path.into())),
            Err(other) => {
                return Err(OutboxError::Io {
                    doing: "lock",
                    path: path.into(),
                    source: other.into(),
                    remedy: "use a file system that knows flock",
                });
            }
        }
    }
    Ok(())
}
