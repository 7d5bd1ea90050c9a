//! A bundle that is to be offered, checked as a station would, and whom the offer reaches.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::rollout::Fate;
use super::view::{Name, Station, View};
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

    /// What it means, for people, of one station or many.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Takes => "takes it now",
            Self::Away => "offline: takes it when it is back",
            Self::Later => "in a later wave",
            Self::Has => "has it",
            Self::Newer => "has a newer one",
            Self::Refused => "refused it or went back: never takes this version again",
            Self::NotFor => "not among the lines, stations or groups that it is for: refuses it",
            Self::OtherBase => "has another model than the one that it is the difference to: refuses it",
            Self::Software => "its cellgate is too old: refuses it",
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
    } else if station.is_online() == Some(false) {
        Standing::Away
    } else {
        Standing::Takes
    })
}

/// The stations that an offer of the bundle has reached so far, and what became of it there.
pub fn fates<'a>(
    view: &'a View,
    bundle: &'a Checked,
    group: &'a str,
    offer: &'a Offer,
) -> impl Iterator<Item = (&'a Name, &'a Station, Fate)> {
    let mine = view.stations().filter(move |(name, _)| bundle.is_for(name, group));
    mine.filter_map(move |(name, station)| Some((name, station, station.fate(name, group, offer)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;
    use crate::fleet::view::Status;
    use crate::update::bundle::{Software, Targets};
    use crate::update::message::{CHUNK_BYTES, Refused, Report};

    fn checked(targets: Targets, base: Option<Hash>) -> Checked {
        let manifest = Manifest {
            product: "cellgate".into(),
            version: 8,
            backbone: [0; 32],
            targets,
            created: 0,
            expires: u64::MAX,
            base,
            sections: vec![],
        };
        Checked { path: "v8.cgb".into(), manifest, hash: Hash::of(b"8"), bytes: 9 }
    }

    #[test]
    fn every_reason_not_to_take_a_bundle_that_a_report_shows_is_told() {
        let name = Name { line: "l1".into(), station: "el-1".into() };
        let report = Report {
            number: 7,
            file: Some(Hash::of(b"7")),
            groups: vec!["pilot".into()],
            software: "0.1.0".into(),
            ..Report::default()
        };
        let online = Status { state: "online".into(), ..Status::default() };
        let station = Station { status: Some(online), report: Some(report), heard: Moment::default() };
        let offer = Offer {
            number: 8,
            bundle: Hash::of(b"8"),
            bytes: 9,
            url: None,
            chunks: true,
            chunk_bytes: CHUNK_BYTES,
            percent: 100,
            salt: String::new(),
            halted: false,
            issued: Date::default(),
        };
        let any = checked(Targets::default(), None);
        let of = |bundle: &Checked, change: &dyn Fn(&mut Report)| {
            let mut station = station.clone();
            change(station.report.as_mut().unwrap());
            standing(bundle, &name, &station, "pilot", &offer)
        };
        let same = |_: &mut Report| {};
        assert_eq!(of(&any, &same), Some(Standing::Takes));
        assert_eq!(of(&any, &|report| report.number = 8), Some(Standing::Has));
        assert_eq!(of(&any, &|report| report.number = 9), Some(Standing::Newer));
        let refused = |number| Refused { number, why: String::new() };
        assert_eq!(of(&any, &|report| report.refused = vec![refused(8)]), Some(Standing::Refused));
        assert_eq!(of(&any, &|report| report.rolled_back = Some(refused(9))), Some(Standing::Refused));
        assert_eq!(of(&any, &|report| report.rolled_back = Some(refused(6))), Some(Standing::Takes));
        assert_eq!(of(&any, &|report| report.groups.clear()), None);
        let targets = |lines: &[&str], minimum_software| Targets {
            lines: lines.iter().map(|&line| line.to_owned()).collect(),
            minimum_software,
            ..Targets::default()
        };
        let own = Software([0, 1, 0]);
        assert_eq!(of(&checked(targets(&["l1", "l2"], own), None), &same), Some(Standing::Takes));
        assert_eq!(of(&checked(targets(&["l2"], own), None), &same), Some(Standing::NotFor));
        assert_eq!(of(&checked(targets(&[], Software([0, 2, 0])), None), &same), Some(Standing::Software));
        assert_eq!(of(&checked(Targets::default(), Some(Hash::of(b"7"))), &same), Some(Standing::Takes));
        assert_eq!(of(&checked(Targets::default(), Some(Hash::of(b"6"))), &same), Some(Standing::OtherBase));
        let none = Offer { percent: 0, ..offer.clone() };
        assert_eq!(standing(&any, &name, &station, "pilot", &none), Some(Standing::Later));
        let offline = Status { state: "offline".into(), ..Status::default() };
        let gone = Station { status: Some(offline), ..station.clone() };
        assert_eq!(standing(&any, &name, &gone, "pilot", &offer), Some(Standing::Away));
    }
}
