//! What a bundle says about itself, and whether a station may take it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::envelope::{encoded, whole};
use super::{BundleError, Envelope, MAGIC};
use crate::clock::Date;

/// The product that bundles are for.
pub const PRODUCT: &str = "cellgate";
/// The largest model, in bytes, that a bundle may hold.
pub const MAX_MODEL: u64 = 8_000_000_000;
/// The largest golden section, in bytes.
pub const MAX_GOLDEN: u64 = 512_000_000;
/// The largest release note, in bytes.
pub const MAX_NOTE: u64 = 65_536;
const MAX_NAMES: usize = 256;

/// The sections, in the order in which they lie in the file.
pub const SECTIONS: [&str; 3] = ["model", "golden", "note"];

/// BLAKE3 of a whole file or section. Displays as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// A text is no hash as [`struct@Hash`] displays it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a hash must have 64 hexadecimal digits, in lower case")]
pub struct NoHash;

impl FromStr for Hash {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<Self, NoHash> {
        let hash = blake3::Hash::from_hex(text).map(|hash| Self(*hash.as_bytes())).map_err(|_| NoHash)?;
        // One text for one hash: it stands in topics.
        if hash.to_string() == text { Ok(hash) } else { Err(NoHash) }
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// A version of cellgate: major, minor, patch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Software(pub [u16; 3]);

impl Software {
    /// This program's.
    #[must_use]
    pub fn own() -> Self {
        env!("CARGO_PKG_VERSION").parse().unwrap_or_default()
    }
}

impl fmt::Display for Software {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

impl FromStr for Software {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<u16>> = text.split('.').map(|n| n.parse().ok()).collect();
        let three = numbers.and_then(|n| <[u16; 3]>::try_from(n).ok());
        three.map(Self).ok_or_else(|| format!("`{text}` is no version: give three numbers such as 0.1.0"))
    }
}

/// Which stations a bundle is for. An empty list leaves the choice open; of a list, one name must be the station's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// Production lines.
    pub lines: Vec<String>,
    /// Stations.
    pub stations: Vec<String>,
    /// Groups of stations.
    pub groups: Vec<String>,
    /// The oldest cellgate that can use it.
    pub minimum_software: Software,
}

/// One part of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// `model`, `golden` or `note`.
    pub name: String,
    /// Bytes in the bundle.
    pub stored: u64,
    /// BLAKE3 of the bytes in the bundle.
    pub stored_hash: Hash,
    /// Bytes once unpacked.
    pub bytes: u64,
    /// BLAKE3 once unpacked.
    pub hash: Hash,
}

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`PRODUCT`].
    pub product: String,
    /// Only ever larger; from 1.
    pub version: u64,
    /// The backbone that the model was fitted with.
    pub backbone: [u8; 32],
    /// Whom it is for.
    pub targets: Targets,
    /// When it was made, in milliseconds since 1970.
    pub created: u64,
    /// From when on no station takes it, in milliseconds since 1970.
    pub expires: u64,
    /// BLAKE3 of the model file that the sections are differences to; none if it needs no other.
    pub base: Option<Hash>,
    /// What follows in the file, in this order and without gaps.
    pub sections: Vec<Section>,
}

/// What the station is, as far as bundles ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    /// Its line.
    pub line: String,
    /// Its name.
    pub station: String,
    /// The groups that it belongs to.
    pub groups: Vec<String>,
    /// Its program.
    pub software: Software,
    /// Its backbone.
    pub backbone: [u8; 32],
}

/// What a station has seen and never goes behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The largest version that was in force or was refused by its proof.
    pub version: u64,
    /// The latest time that is known for sure, in milliseconds since 1970.
    pub clock: u64,
}

impl Manifest {
    /// An unsigned envelope.
    ///
    /// # Errors
    /// If something in it makes no sense.
    pub fn to_envelope(&self) -> Result<Envelope, BundleError> {
        self.check()?;
        Envelope::new(MAGIC, encoded(self)?)
    }

    /// Reads it from an envelope.
    ///
    /// # Errors
    /// If it is damaged or something in it makes no sense.
    pub fn read(envelope: &Envelope) -> Result<Self, BundleError> {
        let manifest: Self = whole(&envelope.body).ok_or_else(|| BundleError::Manifest("it cannot be read".into()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// A section by its name.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    fn check(&self) -> Result<(), BundleError> {
        let wrong = |why: String| Err(BundleError::Manifest(why));
        if self.product != PRODUCT {
            return wrong(format!("it is for another product, not for {PRODUCT}"));
        }
        if self.version == 0 || self.expires <= self.created {
            return wrong("its version must be at least 1, and it must expire after it was created".into());
        }
        let targets = [&self.targets.lines, &self.targets.stations, &self.targets.groups];
        for name in targets.into_iter().flatten() {
            if !is_name(name) {
                return wrong(
                    "a line, station or group has a name of other than 1 to 64 letters, digits, `-`, `_`, `.`".into(),
                );
            }
        }
        if targets.iter().any(|names| names.len() > MAX_NAMES) {
            return wrong(format!("more than {MAX_NAMES} names in a list of targets"));
        }
        // Names are compared with these and never become a path.
        let order = |name: &str| SECTIONS.iter().position(|known| *known == name);
        let mut last = None;
        for section in &self.sections {
            let place = order(&section.name);
            if place.is_none() || place <= last {
                return wrong("a section has a name that is unknown, comes twice or out of order".into());
            }
            last = place;
            let most = match section.name.as_str() {
                "model" => MAX_MODEL,
                "golden" => MAX_GOLDEN,
                _ => MAX_NOTE,
            };
            // Packed data may be a little longer than what went in, never much.
            if section.bytes > most || section.stored > section.bytes + section.bytes / 8 + 4096 {
                return wrong(format!("the section `{}` is too large", section.name));
            }
        }
        if self.section("model").is_none() || self.section("golden").is_none() {
            return wrong("it needs the sections `model` and `golden`".into());
        }
        Ok(())
    }

    /// Whether a station may take it: for it, newer than all it has seen, not expired, and made for what it has.
    ///
    /// `now` is the machine's clock in milliseconds since 1970; a clock that was set back does not count. `base` is the
    /// model file in force.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, station: &Station, marks: Marks, now: u64, base: Option<Hash>) -> Result<(), BundleError> {
        let named = |names: &[String], own: &[String]| names.is_empty() || names.iter().any(|name| own.contains(name));
        let one = std::slice::from_ref;
        for (what, names, own) in [
            ("line", &self.targets.lines, one(&station.line)),
            ("station", &self.targets.stations, one(&station.station)),
            ("group", &self.targets.groups, &station.groups[..]),
        ] {
            if !named(names, own) {
                return Err(BundleError::Target { what, wanted: names.join(", "), own: own.join(", ") });
            }
        }
        if self.targets.minimum_software > station.software {
            let (needed, own) = (self.targets.minimum_software, station.software);
            return Err(BundleError::Software { needed, own });
        }
        if self.backbone != station.backbone {
            return Err(BundleError::Backbone { needed: Hash(self.backbone), own: Hash(station.backbone) });
        }
        if self.version <= marks.version {
            return Err(BundleError::Rollback { version: self.version, seen: marks.version });
        }
        let time = now.max(marks.clock);
        if time >= self.expires {
            let (expires, now) = (Date::from_millis(self.expires), Date::from_millis(time));
            return Err(BundleError::Expired { expires, now });
        }
        match (self.base, base) {
            (Some(needed), own) if own != Some(needed) => Err(BundleError::Base { needed, own }),
            _ => Ok(()),
        }
    }
}

fn is_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    (1..=64).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.')
}
