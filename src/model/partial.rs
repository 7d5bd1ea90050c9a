//! A fit that is not finished: the co-moments of some of the cells, to be resumed or merged (`.cgp`).

use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::backbone::Identity;
use crate::embedding::projection::CHANNELS;
use crate::gaussian::Accumulator;
use crate::gaussian::fit::RawMoments;

use super::container::{self, Container, FileError, Kind};
use super::settings::{Settings, SettingsError};
use crate::synth::{SynthConfig, SynthError};

const KIND: Kind = Kind { magic: *b"CELLPART", version: 2, name: "partial cellgate fit (.cgp)" };

/// Shards that a fit can be cut into.
pub const MAX_SHARDS: u32 = 10_000;

/// What the header of a partial fit says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartialHeader {
    /// The backbone of the fit.
    pub backbone: Identity,
    /// Name of the backbone's weights.
    pub backbone_name: String,
    /// The settings of the fit.
    pub settings: Settings,
    /// Name of the data set.
    pub data: String,
    /// BLAKE3 over the ids of all its cells, those of other shards included.
    pub list: [u8; 32],
    /// This shard, from 0.
    pub shard: u32,
    /// Shards in all.
    pub shards: u32,
    /// Images of this shard taken in so far: the place to go on from.
    pub done: u64,
    /// Images of this shard in all.
    pub total: u64,
    /// Cells of this shard that were skipped so far.
    pub skipped: u64,
    /// What each channel is multiplied by before W: the same in all shards.
    pub scale: Vec<f32>,
    /// Where the cells come from, and which of the whole data set are held out.
    pub origin: Origin,
}

/// Where a fit's cells come from, and which of them are kept for the calibration after a merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Origin {
    /// Image files.
    Files {
        /// Paths of the held-out cells, as the machine of the fit sees them.
        held_out: Vec<String>,
    },
    /// Synthetic cells, drawn when they are needed.
    Drawn {
        /// The version of the drawing, [`crate::synth::DRAWING`].
        drawing: u32,
        /// The seed of their line.
        seed: u64,
        /// What they are like.
        config: SynthConfig,
        /// Numbers of the held-out cells.
        held_out: Vec<u64>,
    },
}

impl Origin {
    /// Whether both are of one source, wherever the files of each lie: which cells are held out follows from the list
    /// of cells and the settings.
    #[must_use]
    pub fn agrees(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Files { .. }, Self::Files { .. })) || self == other
    }
}

impl PartialHeader {
    /// Whether `other` is of this very fit and shard, however far each has come and wherever its files lie.
    #[must_use]
    pub fn is_of_one_fit_with(&self, other: &Self) -> bool {
        self.differs_from(other).is_none()
            && (self.shard, self.total, &self.data, &self.backbone_name)
                == (other.shard, other.total, &other.data, &other.backbone_name)
    }

    /// What two shards of one fit must have in common and these have not.
    fn differs_from(&self, other: &Self) -> Option<&'static str> {
        let checks = [
            ("backbone", self.backbone == other.backbone),
            ("settings", self.settings == other.settings),
            ("source of cells", self.origin.agrees(&other.origin)),
            ("list of cells", self.list == other.list),
            ("number of shards", self.shards == other.shards),
        ];
        checks.into_iter().find(|(_, same)| !same).map(|(what, _)| what)
    }
}

/// Why a partial fit could not be read or joined.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PartialError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is whole but its settings make no sense.
    #[error("reading the partial fit {path}: {why}")]
    Settings {
        /// The file.
        path: String,
        /// What is wrong.
        why: SettingsError,
    },
    /// The file is whole but no such cells can be drawn.
    #[error("reading the partial fit {path}: its synthetic cells")]
    Synth {
        /// The file.
        path: String,
        /// What is wrong.
        source: SynthError,
    },
    /// Two partial fits do not belong together.
    #[error("merging {path}: its {what} differs from that of the first partial fit")]
    Mismatch {
        /// The file.
        path: String,
        /// What differs.
        what: &'static str,
    },
    /// A shard is there twice.
    #[error("merging {path}: shard {shard}/{shards} is there twice")]
    Twice {
        /// The file.
        path: String,
        /// The shard.
        shard: u32,
        /// Of how many.
        shards: u32,
    },
    /// A shard has not seen all of its cells.
    #[error("merging {path}: shard {shard}/{shards} has done {done} of {total} images; run its fit again to finish it")]
    Unfinished {
        /// The file.
        path: String,
        /// The shard.
        shard: u32,
        /// Of how many.
        shards: u32,
        /// Images done.
        done: u64,
        /// Images in all.
        total: u64,
    },
    /// Shards are missing.
    #[error("merging: shards {missing} of {shards} are missing; fit them with --shard i/{shards}")]
    Missing {
        /// Which.
        missing: String,
        /// Of how many.
        shards: u32,
    },
}

/// Writes a partial fit, whole or not at all.
///
/// # Errors
/// What the system refused.
pub fn write(path: &Path, header: &PartialHeader, moments: &Accumulator) -> Result<(), FileError> {
    let RawMoments { count, mean, m2, cubes, fourths } = moments.raw();
    let count = [count];
    let sections: [(&str, &[u8]); 5] = [
        ("count", bytemuck::cast_slice(&count)),
        ("mean", bytemuck::cast_slice(mean)),
        ("m2", bytemuck::cast_slice(m2)),
        ("cubes", bytemuck::cast_slice(cubes)),
        ("fourths", bytemuck::cast_slice(fourths)),
    ];
    container::write(path, KIND, header, &sections)
}

/// A partial fit's header, checked.
fn check(header: PartialHeader, path: &Path) -> Result<PartialHeader, PartialError> {
    let name = || path.display().to_string();
    if let Origin::Drawn { config, .. } = &header.origin {
        config.validate().map_err(|source| PartialError::Synth { path: name(), source })?;
    }
    header.settings.validate().map_err(|why| PartialError::Settings { path: name(), why })?;
    let PartialHeader { shard, shards, done, total, .. } = header;
    if header.scale.len() != CHANNELS || shard >= shards || shards > MAX_SHARDS || done > total {
        return Err(FileError::Damaged { path: path.into(), what: "the header contradicts itself".into() }.into());
    }
    Ok(header)
}

/// Reads a partial fit.
///
/// # Errors
/// If the file cannot be read, is damaged, or its settings make no sense.
pub fn read(path: &Path) -> Result<(PartialHeader, Accumulator), PartialError> {
    let container = Container::open(path, KIND)?;
    let header = check(container.header()?, path)?;
    let (grid, k) = (header.settings.grid as usize, header.settings.k as usize);
    let moments = Accumulator::from_raw(grid, k, moments(&container, &header)?);
    Ok((header, moments))
}

/// The moments of an open partial fit, where they lie in its map.
fn moments<'a>(container: &'a Container, header: &PartialHeader) -> Result<RawMoments<'a>, FileError> {
    let [mean, m2, cubes, fourths] = Accumulator::lengths(header.settings.grid as usize, header.settings.k as usize);
    Ok(RawMoments {
        count: container.section::<u64>("count", 1)?[0],
        mean: container.section("mean", mean)?,
        m2: container.section("m2", m2)?,
        cubes: container.section("cubes", cubes)?,
        fourths: container.section("fourths", fourths)?,
    })
}

/// Joins finished shards, one file each, in the order of their numbers whatever the order of `paths`: the sum is the
/// same to the bit.
///
/// Every file is read and hashed once, and never are more than the sum and one file in memory.
///
/// # Errors
/// If a file cannot be read, shards do not belong together, are unfinished, doubled or missing.
pub fn merge(paths: &[impl AsRef<Path>]) -> Result<(PartialHeader, Accumulator), PartialError> {
    // Headers first: a wrong set is refused before 165 MB a shard are read.
    let mut shards: Vec<(u32, [u8; 32], &Path)> = Vec::with_capacity(paths.len());
    let mut first: Option<PartialHeader> = None;
    let mut seen = Vec::new();
    for path in paths {
        let path = path.as_ref();
        let (header, id) = Container::peek(path, KIND)?;
        let header = check(header, path)?;
        let name = || path.display().to_string();
        let PartialHeader { shard, shards: of, done, total, .. } = header;
        let first = first.get_or_insert_with(|| {
            seen = vec![false; of as usize];
            header.clone()
        });
        let scale = Some("scale of the channels").filter(|_| header.scale != first.scale);
        if let Some(what) = header.differs_from(first).or(scale) {
            return Err(PartialError::Mismatch { path: name(), what });
        }
        if done < total {
            return Err(PartialError::Unfinished { path: name(), shard, shards: of, done, total });
        }
        if std::mem::replace(&mut seen[shard as usize], true) {
            return Err(PartialError::Twice { path: name(), shard, shards: of });
        }
        shards.push((shard, id, path));
    }
    let missing: Vec<String> = (0..seen.len()).filter(|&i| !seen[i]).map(|i| i.to_string()).collect();
    if !missing.is_empty() || shards.is_empty() {
        let missing = if shards.is_empty() { "all".into() } else { missing.join(", ") };
        return Err(PartialError::Missing { missing, shards: seen.len() as u32 });
    }
    shards.sort_unstable_by_key(|&(shard, ..)| shard);
    let mut joined: Option<(PartialHeader, Accumulator)> = None;
    for (_, id, path) in shards {
        let container = Container::open(path, KIND)?;
        if container.id() != id {
            return Err(container.damaged("it was replaced while it was being merged".into()).into());
        }
        let header = check(container.header()?, path)?;
        let moments = moments(&container, &header)?;
        match &mut joined {
            None => {
                let (grid, k) = (header.settings.grid as usize, header.settings.k as usize);
                joined = Some((header, Accumulator::from_raw(grid, k, moments)));
            }
            Some((all, sum)) => {
                sum.merge_raw(moments);
                all.done += header.done;
                all.total += header.total;
                all.skipped += header.skipped;
            }
        }
    }
    let (mut header, moments) = joined.expect("there is at least one shard");
    (header.shard, header.shards) = (0, 1);
    Ok((header, moments))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn header(shard: u32, shards: u32) -> PartialHeader {
        PartialHeader {
            backbone: Identity([3; 32]),
            backbone_name: "some".into(),
            settings: Settings { size: 64, grid: 4, k: 3, ..Settings::default() },
            data: "cells".into(),
            list: [1; 32],
            shard,
            shards,
            done: 7,
            total: 7,
            skipped: 1,
            scale: vec![1.0; CHANNELS],
            origin: Origin::Files { held_out: vec!["cells/a.png".into()] },
        }
    }

    fn place(header: &PartialHeader) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.cgp");
        write(&path, header, &Accumulator::new(4, 3)).unwrap();
        (folder, path)
    }

    #[test]
    fn what_was_written_is_read_and_a_flipped_bit_is_refused() {
        let (_folder, path) = place(&header(1, 3));
        assert_eq!(read(&path).unwrap(), (header(1, 3), Accumulator::new(4, 3)));
        let bytes = std::fs::read(&path).unwrap();
        for at in (0..bytes.len()).step_by(11) {
            let mut broken = bytes.clone();
            broken[at] ^= 1 << (at % 8);
            std::fs::write(&path, &broken).unwrap();
            assert!(read(&path).is_err() && merge(&[&path]).is_err(), "byte {at} may be changed unseen");
        }
    }

    /// The hashes fit, the numbers do not: nothing may be allocated by them.
    #[test]
    fn a_header_that_lies_is_refused_by_reading_and_by_merging() {
        type Lie = (&'static str, fn(&mut PartialHeader));
        let lies: [Lie; 7] = [
            ("contradicts itself", |h| h.shards = u32::MAX),
            ("contradicts itself", |h| h.shards = 0),
            ("contradicts itself", |h| h.shard = 3),
            ("contradicts itself", |h| h.done = 8),
            ("contradicts itself", |h| h.scale.truncate(900)),
            ("`grid` is 4294967295", |h| h.settings.grid = u32::MAX),
            ("are needed", |h| (h.shard, h.shards, h.settings.k) = (0, 1, 256)),
        ];
        for (says, lie) in lies {
            let mut header = header(1, 3);
            lie(&mut header);
            let (_folder, path) = place(&header);
            for text in [read(&path).unwrap_err().to_string(), merge(&[&path]).unwrap_err().to_string()] {
                assert!(text.contains(says) && text.contains("s.cgp"), "{text:?} does not say {says:?}");
            }
        }
        assert!(merge(&[] as &[PathBuf]).unwrap_err().to_string().contains("missing"));
    }
}
