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
    /// Held-out cells of the whole data set as paths, for the calibration after a merge.
    pub held_out: Vec<String>,
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
fn open(path: &Path) -> Result<(Container, PartialHeader), PartialError> {
    let container = Container::open(path, KIND)?;
    let header: PartialHeader = container.header()?;
    header.settings.validate().map_err(|why| PartialError::Settings { path: path.display().to_string(), why })?;
    let PartialHeader { shard, shards, done, total, .. } = header;
    if header.scale.len() != CHANNELS || shard >= shards || shards > MAX_SHARDS || done > total {
        return Err(container.damaged("the header contradicts itself".into()).into());
    }
    Ok((container, header))
}

/// Reads a partial fit.
///
/// # Errors
/// If the file cannot be read, is damaged, or its settings make no sense.
pub fn read(path: &Path) -> Result<(PartialHeader, Accumulator), PartialError> {
    let (container, header) = open(path)?;
    let (grid, k) = (header.settings.grid as usize, header.settings.k as usize);
    let [mean, m2, cubes, fourths] = Accumulator::lengths(grid, k);
    let moments = Accumulator::from_raw(
        grid,
        k,
        RawMoments {
            count: container.section::<u64>("count", 1)?[0],
            mean: container.section("mean", mean)?,
            m2: container.section("m2", m2)?,
            cubes: container.section("cubes", cubes)?,
            fourths: container.section("fourths", fourths)?,
        },
    );
    Ok((header, moments))
}

/// Joins finished shards, one file each, in the order of their numbers.
///
/// # Errors
/// If a file cannot be read, shards do not belong together, are unfinished, doubled or missing.
pub fn merge(paths: &[impl AsRef<Path>]) -> Result<(PartialHeader, Accumulator), PartialError> {
    // Headers first: a wrong set is refused before 165 MB a shard are read.
    let mut shards: Vec<(PartialHeader, &Path)> = Vec::with_capacity(paths.len());
    for path in paths {
        let path = path.as_ref();
        shards.push((open(path)?.1, path));
    }
    shards.sort_by_key(|(header, _)| header.shard);
    let Some((first, _)) = shards.first().cloned() else {
        return Err(PartialError::Missing { missing: "all".into(), shards: 0 });
    };
    let mut seen = vec![false; first.shards as usize];
    for (header, path) in &shards {
        let path = path.display().to_string();
        let PartialHeader { shard, shards, done, total, .. } = *header;
        let checks = [
            ("backbone", header.backbone == first.backbone),
            ("settings", header.settings == first.settings),
            ("list of cells", header.list == first.list),
            ("number of shards", shards == first.shards),
            ("scale of the channels", header.scale == first.scale),
        ];
        if let Some((what, _)) = checks.into_iter().find(|(_, same)| !same) {
            return Err(PartialError::Mismatch { path, what });
        }
        if done < total {
            return Err(PartialError::Unfinished { path, shard, shards, done, total });
        }
        match seen.get_mut(shard as usize) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(PartialError::Twice { path, shard, shards }),
        }
    }
    let missing: Vec<String> = (0..seen.len()).filter(|&i| !seen[i]).map(|i| i.to_string()).collect();
    if !missing.is_empty() {
        return Err(PartialError::Missing { missing: missing.join(", "), shards: first.shards });
    }
    let mut joined: Option<(PartialHeader, Accumulator)> = None;
    for (_, path) in &shards {
        let (header, moments) = read(path)?;
        match &mut joined {
            None => joined = Some((header, moments)),
            Some((all, sum)) => {
                sum.merge(&moments);
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
            held_out: vec!["cells/a.png".into()],
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
