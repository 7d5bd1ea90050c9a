//! The update bundle (`.cgb`): a signed manifest and packed sections, whole or against the model at the station.
//!
//! The head, the manifest and its signatures are an [`Envelope`]; the sections that the manifest lists follow without
//! gaps to the end of the file. [`receive`] checks a bundle while it streams past, in bounded memory: nothing is kept of
//! one that is not signed, and no byte more than its manifest says.

mod chunks;
mod envelope;
mod keys;
mod manifest;
mod packing;
mod range;

use std::io::{self, Read};

use thiserror::Error;

use crate::clock::Date;

pub use chunks::{CHUNK, unpack};
pub use envelope::{Envelope, Signature};
pub use keys::{KEY_SET_MAGIC, KeySet, NoKey, PublicKey, SecretKey};
pub use manifest::{
    Hash, MAX_GOLDEN, MAX_MODEL, MAX_NOTE, Manifest, Marks, NoHash, PRODUCT, Section, Software, Station, Targets,
};
pub use packing::{Layout, Part, assemble, pack_model, pack_whole};

/// The first eight bytes of a bundle.
pub const MAGIC: [u8; 8] = *b"CGBUNDLE";
const BUFFER: usize = 1 << 16;

/// Why a bundle or a key set is refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BundleError {
    /// Reading or keeping it failed.
    #[error("reading or writing the bundle: {0}")]
    Io(#[source] io::Error),
    /// It is another kind of file.
    #[error("reading the bundle: it is no cellgate bundle or key set of the kind that is needed here")]
    Kind,
    /// Its format is unknown.
    #[error("reading the bundle: it is of format {0}, this cellgate reads format 1; update cellgate first")]
    Format(u32),
    /// It ends too early.
    #[error("reading the bundle: it is cut off; fetch it again")]
    Truncated,
    /// It goes on where it should end.
    #[error("reading the bundle: {0} is longer than it may be; it is not what was signed")]
    Endless(&'static str),
    /// Something in it was changed.
    #[error("reading the bundle: it is damaged ({0}); fetch it again")]
    Damaged(String),
    /// A section is not the one that was signed.
    #[error("reading the bundle: its section `{0}` is not the one that was signed; fetch it again")]
    Hash(String),
    /// A section unpacks to more than was signed.
    #[error("unpacking the bundle: its section `{0}` unpacks to more than its manifest says")]
    Bomb(String),
    /// The manifest makes no sense.
    #[error("reading the bundle's manifest: {0}")]
    Manifest(String),
    /// A key set makes no sense or does not follow.
    #[error("reading the key set: {0}")]
    KeySet(String),
    /// A signature by a known key is wrong.
    #[error("checking the signatures: that by the key {0} does not belong to this content")]
    Forged(PublicKey),
    /// Too few known keys have signed.
    #[error(
        "checking the signatures: {found} by keys of the key set of version {keys}, {needed} are needed; \
         a key that is unknown or was revoked does not count"
    )]
    TooFew {
        /// Valid signatures by different keys.
        found: usize,
        /// The threshold.
        needed: u8,
        /// The version of the key set.
        keys: u64,
    },
    /// It is for other stations.
    #[error("the bundle is for the {what} {wanted}, this is {own}")]
    Target {
        /// Line, station or group.
        what: &'static str,
        /// For whom it is.
        wanted: String,
        /// Who this is.
        own: String,
    },
    /// The station's program is too old.
    #[error("the bundle needs cellgate {needed}, this is {own}; update cellgate first")]
    Software {
        /// The oldest that will do.
        needed: Software,
        /// This one.
        own: Software,
    },
    /// It was fitted with another backbone.
    #[error("the bundle's model was fitted with the backbone {needed:.12}, this station runs {own:.12}")]
    Backbone {
        /// The fit's.
        needed: Hash,
        /// The station's.
        own: Hash,
    },
    /// It is not newer than what was there.
    #[error("the bundle is of version {version}, version {seen} has been here; make one with a larger number")]
    Rollback {
        /// Its version.
        version: u64,
        /// The largest seen.
        seen: u64,
    },
    /// Its time is over.
    #[error("the bundle expired at {expires}, it is {now} or later; make a new one")]
    Expired {
        /// When.
        expires: Date,
        /// What the station knows of the time.
        now: Date,
    },
    /// It is the difference to another model.
    #[error(
        "the bundle is the difference to the model file {needed}, which is not in force here; send the whole model"
    )]
    Base {
        /// BLAKE3 of the file that it needs.
        needed: Hash,
        /// BLAKE3 of the file in force.
        own: Option<Hash>,
    },
}

/// A bundle's envelope and manifest, its signatures checked.
///
/// # Errors
/// If it is no bundle, or is not signed by enough of the keys.
pub fn open(from: &mut impl Read, keys: &KeySet) -> Result<(Envelope, Manifest), BundleError> {
    let envelope = Envelope::read(MAGIC, from)?;
    // Nothing of the manifest is looked at before it is known who wrote it.
    keys.verify(&envelope)?;
    let manifest = Manifest::read(&envelope)?;
    Ok((envelope, manifest))
}

/// Takes in a bundle: `admit` decides by the signed manifest before the first section is read; each byte is handed to
/// `keep` as it comes, and the last error says whether what was kept is good.
///
/// # Errors
/// If it is not signed, not admitted, not what was signed, too long or too short, or if `keep` fails.
pub fn receive(
    from: &mut impl Read,
    keys: &KeySet,
    admit: impl FnOnce(&Manifest) -> Result<(), BundleError>,
    keep: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<Manifest, BundleError> {
    let (envelope, manifest) = open(from, keys)?;
    admit(&manifest)?;
    keep(&envelope.to_bytes()?).map_err(BundleError::Io)?;
    sections(from, &manifest, keep)?;
    Ok(manifest)
}

/// Reads what follows the envelope, to the end of the file, and holds it to the manifest.
///
/// # Errors
/// As [`receive`].
pub fn sections(
    from: &mut impl Read,
    manifest: &Manifest,
    keep: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), BundleError> {
    let mut buffer = vec![0; BUFFER];
    for section in &manifest.sections {
        let (mut left, mut hash) = (section.stored, blake3::Hasher::new());
        while left > 0 {
            let part = left.min(BUFFER as u64) as usize;
            envelope::exact(from, &mut buffer[..part])?;
            hash.update(&buffer[..part]);
            keep(&buffer[..part]).map_err(BundleError::Io)?;
            left -= part as u64;
        }
        if Hash(*hash.finalize().as_bytes()) != section.stored_hash {
            return Err(BundleError::Hash(section.name.clone()));
        }
    }
    match from.read(&mut buffer[..1]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(BundleError::Endless("what follows its last section")),
        Err(error) => Err(BundleError::Io(error)),
    }
}
