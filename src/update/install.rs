//! A bundle's way into a slot: download, verify, stage, prove.

use std::cell::RefCell;
use std::io::{self, Read};

use super::bundle::{self, BundleError, Hash, Manifest, Station, unpack};
use super::disk::{Disk, Reading};
use super::slots::{Fitted, Phase, Record, Slot, Slots, UpdateError, disk_error};

/// Which bundle `download.part` is a part of.
const WANTED: &str = "download.wanted";
const PART: &str = "download.part";
const DOWNLOAD: &str = "download.cgb";

/// What is to be proven: files of the state folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    /// The model's file.
    pub model: &'static str,
    /// The golden frames' file.
    pub golden: &'static str,
    /// The bundle's version.
    pub version: u64,
}

/// Why a staged model is not put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotProven {
    /// It must never be.
    Refused(String),
    /// Not now: it can be tried again.
    Stopped(String),
}

impl From<String> for NotProven {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

impl From<&str> for NotProven {
    fn from(why: &str) -> Self {
        Self::Refused(why.into())
    }
}

/// A bundle that comes from elsewhere and may break off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// BLAKE3 of the whole file.
    pub bundle: Hash,
    /// Its version.
    pub version: u64,
    /// Its bytes.
    pub bytes: u64,
}

impl<D: Disk> Slots<D> {
    /// Takes a bundle from its first byte to the proof. [`activate`](Slots::activate) then puts it in force. `now` is the
    /// machine's clock in milliseconds since 1970; `prove` says why the staged model must not be used.
    ///
    /// # Errors
    /// Why not. Nothing has changed then for the model in force, and what was written is dropped; a bundle that was
    /// refused by its proof is never taken again, any other may be.
    pub fn install(
        &mut self,
        from: &mut impl Read,
        station: &Station,
        now: u64,
        prove: impl FnOnce(&D, &Staged) -> Result<(), NotProven>,
    ) -> Result<Manifest, UpdateError> {
        self.make_way()?;
        let manifest = self.download(from, station, now)?;
        self.settle(&manifest, now, prove)?;
        Ok(manifest)
    }

    /// Only one update at a time.
    fn make_way(&mut self) -> Result<(), UpdateError> {
        match self.record().phase {
            Phase::Good => {}
            Phase::Probation { .. } => {
                return Err(UpdateError::NotNow(
                    "the model in force is on probation: wait for its end, confirm it or go back first",
                ));
            }
            Phase::Staging { to } | Phase::Staged { to } | Phase::Proved { to } => {
                self.empty(to, "dropped for another")?
            }
        }
        Ok(())
    }

    /// Takes a bundle that was [fetched](Self::fetch) through staging and proof.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    pub fn settle(
        &mut self,
        manifest: &Manifest,
        now: u64,
        prove: impl FnOnce(&D, &Staged) -> Result<(), NotProven>,
    ) -> Result<(), UpdateError> {
        let to = self.record().active.map_or(Slot::A, Slot::other);
        let done = self.stage(manifest, to, now).and_then(|()| self.prove(manifest, to, prove));
        // Whatever went wrong: the room is given back, which is needed most if it was the room that was missing.
        let cleaned = self.disk.remove(DOWNLOAD).map_err(disk_error("removing the download"));
        if let Err(error) = done {
            if !matches!(self.record().phase, Phase::Good) {
                self.discard(to);
            }
            return Err(error);
        }
        cleaned
    }

    /// Download and verify of a bundle that may come in several attempts: goes on where the last one for the same bundle
    /// broke off, also through a restart. `open` gives what follows the first so many bytes; it must end in an error other
    /// than [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the connection breaks.
    ///
    /// What lies there from before is hashed again. If the whole is not what was signed it is dropped.
    ///
    /// # Errors
    /// [`UpdateError::Interrupted`] if it can go on later; otherwise why the bundle is refused.
    pub fn fetch<R: Read>(
        &mut self,
        wanted: &Wanted,
        open: impl FnOnce(u64) -> io::Result<R>,
        station: &Station,
        now: u64,
    ) -> Result<Manifest, UpdateError> {
        self.make_way()?;
        let failed = disk_error("keeping the download");
        let have = self.part_of(wanted).map_err(&failed)?;
        let (keys, marks) = (self.record().keys.clone(), self.record().marks());
        let base = self.record().in_force().map(|(_, fitted)| fitted.hash);
        let (broke, hash) = (RefCell::new(None), RefCell::new(blake3::Hasher::new()));
        let shared = RefCell::new(&mut self.disk);
        let rest = open(have).map_err(|source| UpdateError::Interrupted { have, source })?;
        let mut source = Resumed { disk: &shared, at: 0, have, rest, hash: &hash, broke: &broke };
        let admit = |manifest: &Manifest| {
            if manifest.version != wanted.version {
                let (found, offered) = (manifest.version, wanted.version);
                return Err(BundleError::Manifest(format!("it is of version {found}, version {offered} was offered")));
            }
            manifest.admit(station, marks, now, base)
        };
        // The source keeps each byte as it comes, so that even a line that breaks again and again gets on.
        let received = bundle::receive(&mut source, &keys, admit, &mut |_| Ok(())).and_then(|manifest| {
            let whole = Hash(*hash.borrow().finalize().as_bytes());
            let other = || BundleError::Damaged("it is another bundle than the one that was offered".into());
            (whole == wanted.bundle).then_some(manifest).ok_or_else(other)
        });
        let have = source.at;
        if let Some(source) = broke.into_inner() {
            // Best effort: what the disk loses is fetched again.
            let _ = self.disk.sync(PART);
            return Err(UpdateError::Interrupted { have, source });
        }
        self.keep_if_good(received)
    }

    /// Bytes of this bundle that lie there from before.
    fn part_of(&mut self, wanted: &Wanted) -> io::Result<u64> {
        let disk = &mut self.disk;
        disk.remove(DOWNLOAD)?;
        let mut name = [0; 32];
        let same = disk.len(WANTED)? == Some(32) && disk.read_at(WANTED, 0, &mut name).is_ok();
        if same
            && name == wanted.bundle.0
            && let Some(have) = disk.len(PART)?.filter(|&have| have <= wanted.bytes)
        {
            return Ok(have);
        }
        disk.create(PART)?;
        disk.create(WANTED)?;
        disk.append(WANTED, &wanted.bundle.0)?;
        Ok(0)
    }

    /// Download and verify: what lies there under its final name afterwards is what was signed.
    fn download(&mut self, from: &mut impl Read, station: &Station, now: u64) -> Result<Manifest, UpdateError> {
        let failed = disk_error("keeping the download");
        let (keys, marks) = (self.record().keys.clone(), self.record().marks());
        let base = self.record().in_force().map(|(_, fitted)| fitted.hash);
        let disk = &mut self.disk;
        disk.remove(DOWNLOAD).map_err(&failed)?;
        disk.remove(WANTED).map_err(&failed)?;
        disk.create(PART).map_err(&failed)?;
        let mut keep = |bytes: &[u8]| disk.append(PART, bytes);
        let received = bundle::receive(from, &keys, |manifest| manifest.admit(station, marks, now, base), &mut keep);
        self.keep_if_good(received)
    }

    /// Makes a download durable under its final name, or drops it.
    fn keep_if_good(&mut self, received: Result<Manifest, BundleError>) -> Result<Manifest, UpdateError> {
        let failed = disk_error("keeping the download");
        let manifest = match received {
            Ok(manifest) => manifest,
            Err(error) => {
                if let Err(left) = self.disk.remove(PART) {
                    log::warn!("removing a refused download: {left}");
                }
                return Err(error.into());
            }
        };
        self.disk.sync(PART).map_err(&failed)?;
        self.disk.rename(PART, DOWNLOAD).map_err(&failed)?;
        self.disk.sync_folder().map_err(&failed)?;
        Ok(manifest)
    }

    /// Unpacks the download into a slot that the record calls empty.
    fn stage(&mut self, manifest: &Manifest, to: Slot, now: u64) -> Result<(), UpdateError> {
        // A signed manifest tells the time: it is later than its creation. The machine's clock counts as far as the
        // manifest reaches, which it does here.
        let clock = self.record().clock.max(manifest.created).max(now.min(manifest.expires));
        let mut record = Record { phase: Phase::Staging { to }, clock, ..self.record().clone() };
        record.slots[to as usize] = None;
        record.last = format!("writing version {} to slot {to}", manifest.version);
        self.commit(record)?;
        let active = self.record().active;
        let (_, after) = open(&self.disk, self.record(), manifest)?;
        let mut at = after;
        for section in &manifest.sections {
            let name = match section.name.as_str() {
                "model" => Some(to.model()),
                "golden" => Some(to.golden()),
                _ => None,
            };
            if let Some(name) = name {
                self.unpack_to(name, section, at, active)?;
            }
            at += section.stored;
        }
        self.disk.sync_folder().map_err(disk_error("making the slot durable"))?;
        let model = manifest.section("model").ok_or(UpdateError::NoModel)?;
        let mut record = Record { phase: Phase::Staged { to }, ..self.record().clone() };
        record.slots[to as usize] =
            Some(Fitted { version: manifest.version, bytes: model.bytes, hash: model.hash, since: now });
        record.last = format!("version {} is in slot {to}, not yet proven", manifest.version);
        self.commit(record)
    }

    fn unpack_to(
        &mut self,
        name: &str,
        section: &bundle::Section,
        at: u64,
        active: Option<Slot>,
    ) -> Result<(), UpdateError> {
        let failed = disk_error("writing to the slot");
        self.disk.create(name).map_err(&failed)?;
        // One disk, read and written in turn: a chunk is read, then written.
        let shared = RefCell::new(&mut self.disk);
        let mut reading = SharedReading { disk: &shared, at, end: at + section.stored };
        let mut base = |offset: u64, buffer: &mut [u8]| match active {
            Some(active) => shared.borrow().read_at(active.model(), offset, buffer),
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        let mut out = |bytes: &[u8]| shared.borrow_mut().append(name, bytes);
        unpack(&mut reading, section, &mut base, &mut out)?;
        self.disk.sync(name).map_err(&failed)
    }

    fn prove(
        &mut self,
        manifest: &Manifest,
        to: Slot,
        prove: impl FnOnce(&D, &Staged) -> Result<(), NotProven>,
    ) -> Result<(), UpdateError> {
        let version = manifest.version;
        let staged = Staged { model: to.model(), golden: to.golden(), version };
        match prove(&self.disk, &staged) {
            Ok(()) => {}
            Err(NotProven::Stopped(why)) => return Err(UpdateError::Stopped { version, why }),
            Err(NotProven::Refused(why)) => {
                let mut record = Record { phase: Phase::Good, version, ..self.record().clone() };
                record.slots[to as usize] = None;
                record.last = format!("version {version} failed its proof: {why}");
                record.refuse(version, false, &why);
                self.commit(record)?;
                return Err(UpdateError::Proof { version, why });
            }
        }
        let last = format!("version {version} is proven, in slot {to}");
        self.commit(Record { phase: Phase::Proved { to }, last, ..self.record().clone() })
    }

    fn discard(&mut self, to: Slot) {
        // Best effort: the record already calls the slot empty or not in force, and the next opening drops it.
        for name in [to.model(), to.golden()] {
            if matches!(self.record().phase, Phase::Staging { .. })
                && let Err(error) = self.disk.remove(name)
            {
                log::warn!("removing {name}: {error}");
            }
        }
        if let Err(error) = self.empty(to, "an update failed; the model in force stays") {
            log::warn!("dropping a failed update: {error}");
        }
    }
}

/// Opens the download again and holds its manifest to the one that was verified. Says where its sections begin.
fn open<D: Disk>(disk: &D, record: &Record, manifest: &Manifest) -> Result<(Manifest, u64), UpdateError> {
    let mut reading = Reading::new(disk, DOWNLOAD).map_err(disk_error("reading the download"))?;
    let (envelope, again) = bundle::open(&mut reading, &record.keys)?;
    if again != *manifest {
        return Err(UpdateError::NotNow("the download was changed while it was installed: install it again"));
    }
    Ok((again, envelope.to_bytes()?.len() as u64))
}

/// A part of the download, read while a slot on the same disk is written.
struct SharedReading<'a, 'd, D> {
    disk: &'a RefCell<&'d mut D>,
    at: u64,
    end: u64,
}

impl<D: Disk> Read for SharedReading<'_, '_, D> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let part = (self.end - self.at).min(buffer.len() as u64) as usize;
        if part > 0 {
            self.disk.borrow().read_at(DOWNLOAD, self.at, &mut buffer[..part])?;
            self.at += part as u64;
        }
        Ok(part)
    }
}

/// What lies there of a download, and then what follows, which is kept there as it comes.
struct Resumed<'a, 'd, D, R> {
    disk: &'a RefCell<&'d mut D>,
    at: u64,
    have: u64,
    rest: R,
    hash: &'a RefCell<blake3::Hasher>,
    /// Why what follows broke off.
    broke: &'a RefCell<Option<io::Error>>,
}

impl<D: Disk, R: Read> Read for Resumed<'_, '_, D, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let part = if self.at < self.have {
            let part = (self.have - self.at).min(buffer.len() as u64) as usize;
            self.disk.borrow().read_at(PART, self.at, &mut buffer[..part])?;
            part
        } else {
            let part = self.rest.read(buffer).map_err(|error| {
                let kind = error.kind();
                if kind != io::ErrorKind::Interrupted {
                    *self.broke.borrow_mut() = Some(error);
                }
                io::Error::from(kind)
            })?;
            self.disk.borrow_mut().append(PART, &buffer[..part])?;
            part
        };
        self.hash.borrow_mut().update(&buffer[..part]);
        self.at += part as u64;
        Ok(part)
    }
}
