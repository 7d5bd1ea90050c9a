//! The file that models, partial fits and sensor calibrations lie in: a header and a few large sections, each with its hash.
//!
//! ```text
//!  0  magic                      8 bytes
//!  8  version                    u32, little-endian, as all numbers
//! 12  length of the prologue     u32
//! 16  BLAKE3 of the prologue     32 bytes
//! 48  prologue                   postcard: the sections' names, offsets, lengths and BLAKE3s, and the header
//!     zeros up to a multiple of 128
//!     section, zeros up to a multiple of 128; the next one; …; end of file
//! ```
//!
//! Every byte is covered by a hash or must be zero: a file that opens is the file that was written.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use memmap2::{Mmap, MmapMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::whole_file;

#[cfg(target_endian = "big")]
compile_error!("model files are little-endian and are used as they are");

/// Sections start at multiples of this: a cache line pair, and what the GPU's wide loads ask for.
pub const ALIGN: usize = 128;
const FIXED: usize = 48;
/// A partial fit names up to 2,000 held-out cells by their paths.
const MAX_PROLOGUE: usize = 1 << 24;
const MAX_SECTIONS: usize = 16;
/// The largest file that is read: a partial fit of the finest grid and the largest k is 17.7 GB.
const MAX_FILE: usize = 20_000_000_000;

/// Why a file could not be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// The system refused.
    #[error("{what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("reading {}: it is not a {kind}", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
        /// What it should have been.
        kind: &'static str,
    },
    /// The file is of another version of the format.
    #[error("reading {}: it is a {kind} of format {found}, this cellgate reads format {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The file is cut off or changed.
    #[error("reading {}: it is damaged ({what}); take a fresh copy or make it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        what: String,
    },
}

/// A kind of file.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its first eight bytes.
    pub magic: [u8; 8],
    /// The version of its format.
    pub version: u32,
    /// What a person calls it.
    pub name: &'static str,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    name: String,
    offset: u64,
    length: u64,
    hash: [u8; 32],
}

/// Writes a file whole or not at all.
///
/// # Errors
/// What the system refused, and where.
pub fn write(path: &Path, kind: Kind, header: &impl Serialize, sections: &[(&str, &[u8])]) -> Result<(), FileError> {
    let header = postcard::to_stdvec(header).map_err(|e| other("encoding the header of", path, e))?;
    // The prologue's length does not depend on the offsets' values only if they are fixed: so the offsets count from
    // the first section.
    let mut offset = 0;
    let entries: Vec<Entry> = sections
        .iter()
        .map(|(name, bytes)| {
            let entry = Entry {
                name: (*name).into(),
                offset,
                length: bytes.len() as u64,
                hash: *blake3::hash(bytes).as_bytes(),
            };
            offset += bytes.len().next_multiple_of(ALIGN) as u64;
            entry
        })
        .collect();
    let prologue = postcard::to_stdvec(&(entries, header)).map_err(|e| other("encoding the header of", path, e))?;
    if prologue.len() > MAX_PROLOGUE {
        return Err(other("encoding the header of", path, format!("{} bytes are too many", prologue.len())));
    }
    let zeros = [0u8; ALIGN];
    let padding = |length: usize| &zeros[..length.next_multiple_of(ALIGN) - length];
    let (version, length) = (kind.version.to_le_bytes(), (prologue.len() as u32).to_le_bytes());
    let hash = blake3::hash(&prologue);
    let first: [&[u8]; 6] =
        [&kind.magic, &version, &length, hash.as_bytes(), &prologue, padding(FIXED + prologue.len())];
    let rest = sections.iter().flat_map(|&(_, bytes)| [bytes, padding(bytes.len())]);
    let parts: Vec<&[u8]> = first.into_iter().chain(rest).collect();
    whole_file::write(path, &parts).map_err(|source| FileError::Io { what: "writing", path: path.into(), source })
}

fn other(what: &'static str, path: &Path, error: impl std::fmt::Display) -> FileError {
    FileError::Io { what, path: path.into(), source: io::Error::other(error.to_string()) }
}

/// Reads a file into memory of its own, which nobody can write any more.
///
/// It is not the file that is mapped: what was checked must be what is used, whatever happens to the file or its disk
/// afterwards. And statistics are read from front to back once a frame, which huge pages make twice as fast as the 4 KiB
/// pages that a mapped file gets (docs/performance.md).
fn read_whole(file: &mut File, length: u64) -> io::Result<Mmap> {
    let length = usize::try_from(length).ok().filter(|&length| length <= MAX_FILE).ok_or_else(|| {
        io::Error::new(io::ErrorKind::FileTooLarge, format!("{length} bytes are more than any model has"))
    })?;
    let mut pages = MmapMut::map_anon(length)?;
    // Only a hint: a kernel without huge pages refuses it, and nothing but speed is lost.
    #[cfg(target_os = "linux")]
    let _ = pages.advise(memmap2::Advice::HugePage);
    file.rewind()?;
    file.read_exact(&mut pages)?;
    pages.make_read_only()
}

fn decode<T: DeserializeOwned>(path: &Path, header: &[u8]) -> Result<T, FileError> {
    postcard::from_bytes(header).map_err(|e| FileError::Damaged { path: path.into(), what: format!("the header: {e}") })
}

/// An open file: in memory, every hash checked.
#[derive(Debug)]
pub struct Container {
    path: PathBuf,
    map: Mmap,
    entries: Vec<Entry>,
    first: usize,
    header: Vec<u8>,
    id: [u8; 32],
}

/// What stands before the sections of a file, checked.
struct Prologue {
    file: File,
    /// Of the whole file, in bytes.
    length: u64,
    /// The file's first bytes, to the prologue's end.
    start: Vec<u8>,
    entries: Vec<Entry>,
    header: Vec<u8>,
    id: [u8; 32],
}

impl Prologue {
    fn read(path: &Path, kind: Kind) -> Result<Self, FileError> {
        let io = |source| FileError::Io { what: "opening", path: path.into(), source };
        let damaged = |what: String| FileError::Damaged { path: path.into(), what };
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?;
        if !length.is_file() {
            return Err(io(io::Error::other("not a file")));
        }
        if length.len() < FIXED as u64 {
            return Err(FileError::Magic { path: path.into(), kind: kind.name });
        }
        let mut fixed = [0; FIXED];
        file.read_exact(&mut fixed).map_err(io)?;
        let word = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        if fixed[..8] != kind.magic {
            return Err(FileError::Magic { path: path.into(), kind: kind.name });
        }
        if word(8) != kind.version {
            let (found, known) = (word(8), kind.version);
            return Err(FileError::Version { path: path.into(), kind: kind.name, found, known });
        }
        let end = FIXED + word(12) as usize;
        if end > FIXED + MAX_PROLOGUE || end as u64 > length.len() {
            return Err(damaged(format!("the header says it is {} bytes long", word(12))));
        }
        let mut prologue = vec![0; end - FIXED];
        file.read_exact(&mut prologue).map_err(io)?;
        let id = *blake3::hash(&prologue).as_bytes();
        if fixed[16..] != id {
            return Err(damaged("the header's hash does not match".into()));
        }
        let (entries, header): (Vec<Entry>, Vec<u8>) =
            postcard::from_bytes(&prologue).map_err(|e| damaged(format!("the header: {e}")))?;
        if entries.len() > MAX_SECTIONS {
            return Err(damaged(format!("{} sections", entries.len())));
        }
        // As much memory as the header accounts for, not as a file that somebody made longer would want.
        let whole = entries.iter().try_fold(end.next_multiple_of(ALIGN) as u64, |at, entry| {
            at.checked_add(entry.length.checked_next_multiple_of(ALIGN as u64)?)
        });
        match whole {
            Some(whole) if whole == length.len() => {}
            Some(whole) if whole < length.len() => {
                return Err(damaged(format!("{} bytes after the last section", length.len() - whole)));
            }
            _ => return Err(damaged("it is cut off".into())),
        }
        Ok(Self { file, length: length.len(), start: [&fixed[..], &prologue].concat(), entries, header, id })
    }
}

impl Container {
    /// A file's header and its [`id`](Self::id) alone. The sections are not looked at: they may be cut off or changed.
    ///
    /// # Errors
    /// If it cannot be read, is of another kind or version, or its header is not what was written, or no `T`.
    pub fn peek<T: DeserializeOwned>(path: &Path, kind: Kind) -> Result<(T, [u8; 32]), FileError> {
        let Prologue { header, id, .. } = Prologue::read(path, kind)?;
        Ok((decode(path, &header)?, id))
    }

    /// Opens and checks a file.
    ///
    /// # Errors
    /// If it cannot be read, is of another kind or version, or is not byte for byte what was written.
    pub fn open(path: &Path, kind: Kind) -> Result<Self, FileError> {
        let Prologue { mut file, length, start, entries, header, id } = Prologue::read(path, kind)?;
        let damaged = |what: String| FileError::Damaged { path: path.into(), what };
        let map = read_whole(&mut file, length).map_err(|source| FileError::Io {
            what: "reading",
            path: path.into(),
            source,
        })?;
        let end = start.len();
        if map[..end] != start {
            return Err(damaged("it changes while it is read".into()));
        }
        let first = end.next_multiple_of(ALIGN);
        let zeros = |from: usize, to: usize| map[from..to].iter().all(|&b| b == 0);
        let mut at = first;
        if at > map.len() || !zeros(end, at) {
            return Err(damaged("between the header and the first section".into()));
        }
        for Entry { name, offset, length, hash } in &entries {
            let length = usize::try_from(*length).unwrap_or(usize::MAX);
            if *offset != (at - first) as u64 || length > map.len() - at {
                return Err(damaged(format!("the section `{name}` does not lie where it should, or is cut off")));
            }
            let end = at + length;
            let next = end.next_multiple_of(ALIGN);
            if next > map.len() || !zeros(end, next) {
                return Err(damaged(format!("after the section `{name}`")));
            }
            if blake3::hash(&map[at..end]) != *hash {
                return Err(damaged(format!("the hash of the section `{name}` does not match")));
            }
            at = next;
        }
        Ok(Self { path: path.into(), entries, first, header, id, map })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// BLAKE3 of the prologue, which holds every section's: it names the whole content.
    #[must_use]
    pub fn id(&self) -> [u8; 32] {
        self.id
    }

    /// Bytes of the file.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Never: an open file has at least a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Names and lengths of the sections.
    pub fn sections(&self) -> impl Iterator<Item = (&str, u64)> {
        self.entries.iter().map(|e| (e.name.as_str(), e.length))
    }

    /// The whole file, as it was checked.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Names of the sections, and where they begin and how long they are in [`bytes`](Self::bytes).
    pub fn places(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        // The table was checked against the map when the file was opened.
        self.entries.iter().map(|e| (e.name.as_str(), self.first + e.offset as usize, e.length as usize))
    }

    /// The header.
    ///
    /// # Errors
    /// If it is not a `T`.
    pub fn header<T: DeserializeOwned>(&self) -> Result<T, FileError> {
        decode(&self.path, &self.header)
    }

    /// A section as numbers, of which there must be `count`.
    ///
    /// # Errors
    /// If there is no such section or it has another length.
    pub fn section<T: bytemuck::AnyBitPattern>(&self, name: &str, count: usize) -> Result<&[T], FileError> {
        let entry = self
            .entries
            .iter()
            .find(|e| e.name == name)
            .ok_or_else(|| self.damaged(format!("it has no section `{name}`")))?;
        // The table was checked against the map when the file was opened.
        let start = self.first + entry.offset as usize;
        let bytes = &self.map[start..start + entry.length as usize];
        bytemuck::try_cast_slice(bytes).ok().filter(|numbers: &&[T]| numbers.len() == count).ok_or_else(|| {
            let want = count.saturating_mul(size_of::<T>());
            self.damaged(format!("the section `{name}` is {} bytes long, {want} are needed", entry.length))
        })
    }

    /// An error that says what is wrong with this file.
    #[must_use]
    pub fn damaged(&self, what: String) -> FileError {
        FileError::Damaged { path: self.path.clone(), what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { magic: *b"TESTFILE", version: 3, name: "test file" };

    fn written() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let numbers: Vec<f32> = (0..100).map(|i| i as f32).collect();
        write(&path, KIND, &("hello", 7u32), &[("one", bytemuck::cast_slice(&numbers)), ("two", &[1, 2, 3])]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        (folder, path, bytes)
    }

    #[test]
    fn what_was_written_is_read() {
        let (_folder, path, bytes) = written();
        let c = Container::open(&path, KIND).unwrap();
        assert_eq!(c.header::<(String, u32)>().unwrap(), ("hello".into(), 7));
        assert_eq!(c.section::<f32>("one", 100).unwrap()[99], 99.0);
        assert_eq!(c.section::<u8>("two", 3).unwrap(), [1, 2, 3]);
        assert_eq!(bytes.len() % ALIGN, 0);
        assert!(c.section::<f32>("one", 99).unwrap_err().to_string().contains("396 are needed"));
        assert!(c.section::<f32>("three", 1).unwrap_err().to_string().contains("no section `three`"));
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let (_folder, path, bytes) = written();
        for at in 0..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] ^= 1 << (at % 8);
            std::fs::write(&path, &broken).unwrap();
            assert!(Container::open(&path, KIND).is_err(), "byte {at} may be changed unseen");
        }
    }

    #[test]
    fn any_missing_or_added_end_is_found() {
        let (_folder, path, bytes) = written();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(Container::open(&path, KIND).is_err(), "{length} bytes may be enough");
        }
        std::fs::write(&path, [bytes, vec![0; ALIGN]].concat()).unwrap();
        let error = Container::open(&path, KIND).unwrap_err().to_string();
        assert!(error.contains("128 bytes after the last section"), "{error}");
    }

    #[test]
    fn other_files_and_versions_are_named() {
        let (_folder, path, _) = written();
        let other = Kind { magic: *b"OTHERONE", ..KIND };
        assert!(Container::open(&path, other).unwrap_err().to_string().contains("it is not a test file"));
        let newer = Kind { version: 4, ..KIND };
        assert!(
            Container::open(&path, newer).unwrap_err().to_string().contains("format 3, this cellgate reads format 4")
        );
        assert!(
            Container::open(Path::new("no/such/file"), KIND).unwrap_err().to_string().starts_with("opening no/such")
        );
        let error = write(Path::new("no/such/folder/x"), KIND, &1u8, &[]).unwrap_err().to_string();
        assert!(error.contains("no/such/folder"), "{error}");
    }
}
