//! A bundle that is to be offered, checked as a station would, and whom the offer reaches.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::view::{Name, Station};
use crate::clock::Date;
use crate::update::bundle::{self, BundleError, Hash, KeySet, Manifest};
use crate::update::message::{Offer, in_wave};

/// Why a bundle cannot be offered.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReachError {
    /// A file cannot be read.
    #[error("reading {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key set is none, or not signed.
    #[error("checking the key set {}: {source}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: BundleError,
    },
    /// No station would take the bundle.
    #[error("checking the bundle {}: {source}", path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: BundleError,
    },
    /// No station takes it any more.
    #[error("the bundle {} is signed and whole, but expired at {expires}: make a new one", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// When.
        expires: Date,
    },
}

/// A bundle of which every byte was checked.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The file.
    pub path: PathBuf,
    /// What it says.
    pub manifest: Manifest,
    /// BLAKE3 of the file.
    pub hash: Hash,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Counts and hashes what is read.
struct Hashing<R> {
    from: R,
    hash: blake3::Hasher,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let part = self.from.read(buffer)?;
        self.hash.update(&buffer[..part]);
        self.bytes += part as u64;
        Ok(part)
    }
}

/// Checks a bundle to the last bit against the keys that stations trust, in bounded memory.
///
/// # Errors
/// If a file cannot be read, or no station would take the bundle.
pub fn check(path: &Path, keys: &Path) -> Result<Checked, ReachError> {
    let opened = |path: &Path| File::open(path).map_err(|source| ReachError::Io { path: path.into(), source });
    let (keys, _) =
        KeySet::trust(&mut opened(keys)?).map_err(|source| ReachError::Keys { path: keys.into(), source })?;
    let mut reading = Hashing { from: BufReader::new(opened(path)?), hash: blake3::Hasher::new(), bytes: 0 };
    let manifest = bundle::receive(&mut reading, &keys, |_| Ok(()), &mut |_| Ok(()))
        .map_err(|source| ReachError::Bundle { path: path.into(), source })?;
    if Date::now().as_millis() >= manifest.expires {
        return Err(ReachError::Expired { path: path.into(), expires: Date::from_millis(manifest.expires) });
    }
    let hash = Hash(*reading.hash.finalize().as_bytes());
    Ok(Checked { path: path.into(), manifest, hash, bytes: reading.bytes })
}

impl Checked {
    /// Opens the file again, at a byte. Whoever sends it on sends what was checked or is found out by its hash.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open_at(&self, at: u64) -> Result<File, ReachError> {
        let opened = || {
            let mut file = File::open(&self.path)?;
            file.seek(io::SeekFrom::Start(at))?;
            Ok(file)
        };
        opened().map_err(|source| ReachError::Io { path: self.path.clone(), source })
    }

    /// Whether the manifest names this station's line, name and group, or leaves them open.
    #[must_use]
    pub fn is_for(&self, name: &Name, group: &str) -> bool {
        let targets = &self.manifest.targets;
        let named = |names: &[String], own: &str| names.is_empty() || names.iter().any(|name| name == own);
        named(&targets.lines, &name.line) && named(&targets.stations, &name.station) && named(&targets.groups, group)
    }
}

/// How a station stands to a bundle, as far as its report tells. It may still refuse for what only it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It takes it now.
    Takes,
    /// It takes it when it is back.
    Away,
    /// It is in a later wave.
    Later,
    /// It has it.
    Has,
    /// It has a newer one.
    Newer,
    /// It refused it, or took it back: never again.
    Refused,
    /// Its line or name is not among those that the bundle is for.
    NotFor,
    /// The bundle is the difference to another model than its own.
    OtherBase,
    /// Its cellgate is too old.
    Software,
}

impl Standing {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 9] = [
        Self::Takes,
        Self::Away,
        Self::Later,
        Self::Has,
        Self::Newer,
        Self::Refused,
        Self::NotFor,
        Self::OtherBase,
        Self::Software,
    ];

    /// What it means, for people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Takes => "take it now",
            Self::Away => "are offline and take it when they are back",
            Self::Later => "are in a later wave",
            Self::Has => "have it",
            Self::Newer => "have a newer one",
            Self::Refused => "refused it or went back before, and never take this version again",
            Self::NotFor => "are not among the lines, stations or groups that it is for, and refuse it",
            Self::OtherBase => "have another model than the one that it is the difference to, and refuse it",
            Self::Software => "run a cellgate that is too old for it, and refuse it",
        }
    }
}

/// How a station of the group stands to the bundle under this offer; none if it is not of the group.
#[must_use]
pub fn standing(bundle: &Checked, name: &Name, station: &Station, group: &str, offer: &Offer) -> Option<Standing> {
    let report = station.report.as_ref().filter(|_| station.is_in(group))?;
    let (manifest, number) = (&bundle.manifest, bundle.manifest.version);
    let was_here = |refused: &crate::update::message::Refused| refused.number == number;
    Some(if !bundle.is_for(name, group) {
        Standing::NotFor
    } else if report.number == number {
        Standing::Has
    } else if report.number > number {
        Standing::Newer
    } else if report.refused.iter().any(was_here) || report.rolled_back.as_ref().is_some_and(|r| r.number >= number) {
        Standing::Refused
    } else if report.software.parse().is_ok_and(|own: bundle::Software| own < manifest.targets.minimum_software) {
        Standing::Software
    } else if manifest.base.is_some() && manifest.base != report.file {
        Standing::OtherBase
    } else if !in_wave(&name.line, &name.station, offer) {
        Standing::Later
    } else if station.is_online() == Some(true) {
        Standing::Takes
    } else {
        Standing::Away
    })
}
