//! Making bundles: sections packed, alone or against a base, and joined behind a manifest.

use super::chunks::{CHUNK, Run, pack};
use super::{BundleError, Envelope, Hash, Manifest, Section};

/// A section that is packed.
#[derive(Clone, Debug)]
pub struct Part {
    /// What the manifest says of it.
    pub section: Section,
    /// The bytes in the bundle.
    pub packed: Vec<u8>,
}

/// A model file and its sections: name, offset and length of each, in the order of the file.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// The file.
    pub bytes: &'a [u8],
    /// Its sections.
    pub sections: &'a [(String, usize, usize)],
}

/// Packs bytes of any kind, alone.
#[must_use]
pub fn pack_whole(name: &str, bytes: &[u8]) -> Part {
    part(name, bytes, pack(bytes, &[], &[Run { bytes: bytes.len(), base: None }]))
}

/// Packs a model file. Sections that have the same name and length in the base are coded as differences, all else alone.
///
/// # Panics
/// If a section lies outside of its file.
#[must_use]
pub fn pack_model(new: Layout<'_>, base: Option<Layout<'_>>) -> Part {
    let Layout { bytes, sections } = new;
    let Layout { bytes: base, sections: others } = base.unwrap_or(Layout { bytes: &[], sections: &[] });
    let (mut runs, mut at) = (Vec::new(), 0);
    for (name, start, length) in sections {
        if *start > at {
            runs.push(Run { bytes: start - at, base: None });
        }
        let like = others.iter().find(|(other, _, bytes)| other == name && bytes == length);
        runs.push(Run { bytes: *length, base: like.map(|(_, start, _)| *start) });
        at = start + length;
    }
    runs.push(Run { bytes: bytes.len() - at, base: None });
    part("model", bytes, pack(bytes, base, &runs))
}

fn part(name: &str, bytes: &[u8], packed: Vec<u8>) -> Part {
    debug_assert!(CHUNK.is_multiple_of(4), "planes must not be cut");
    let (stored, stored_hash) = (packed.len() as u64, Hash::of(&packed));
    let section = Section { name: name.into(), stored, stored_hash, bytes: bytes.len() as u64, hash: Hash::of(bytes) };
    Part { section, packed }
}

/// The unsigned envelope of a bundle of these parts, and what follows it in the file. The manifest's sections are set here.
///
/// # Errors
/// If the manifest makes no sense.
pub fn assemble(mut manifest: Manifest, parts: Vec<Part>) -> Result<(Envelope, Vec<u8>), BundleError> {
    let (sections, bodies): (Vec<_>, Vec<_>) = parts.into_iter().map(|part| (part.section, part.packed)).unzip();
    manifest.sections = sections;
    Ok((manifest.to_envelope()?, bodies.concat()))
}
