//! A disk that loses power and fills up, and bundles to try it with.

use std::collections::BTreeMap;
use std::io;

use super::bundle::{
    BundleError, Envelope, Hash, KeySet, Layout, Manifest, Part, SecretKey, Software, Station, Targets, assemble,
    pack_model, pack_whole,
};
use super::disk::Disk;

pub(super) const DAY: u64 = 86_400_000;
pub(crate) const NOW: u64 = 20_000 * DAY;

/// A file's content: what was written, and what would be there after a power cut.
#[derive(Clone, Debug, Default)]
struct Content {
    written: Vec<u8>,
    durable: Vec<u8>,
}

/// A name in the folder that is not yet durable.
#[derive(Clone, Debug)]
enum Change {
    Link(String, usize),
    Rename(String, String),
    Remove(String),
}

/// A folder in memory that behaves as a file system may: content is durable when synced, names when the folder is.
#[derive(Clone, Debug, Default)]
pub(super) struct Fake {
    contents: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    changes: Vec<Change>,
    /// Operations so far that change something.
    pub(super) operations: usize,
    /// The operation at which the power goes; it and all after it fail.
    pub(super) cut_at: Option<usize>,
    /// The operation from which on the disk is full, and the one at which there is room again.
    pub(super) full: Option<(usize, usize)>,
}

impl Fake {
    /// What is found after a power cut. `luck` decides how much of what was not durable is there all the same.
    pub(super) fn after_cut(&self, mut luck: u64) -> Self {
        let mut dice = |sides: usize| {
            luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (luck >> 33) as usize % sides
        };
        let mut names = self.durable.clone();
        // Names change in the order in which they were changed, up to some point.
        for change in &self.changes[..dice(self.changes.len() + 1)] {
            apply(&mut names, change);
        }
        let contents: Vec<Content> = self
            .contents
            .iter()
            .map(|content| {
                let mut kept = content.durable.clone();
                if content.written.starts_with(&content.durable) {
                    let more = content.written.len() - content.durable.len();
                    kept.extend_from_slice(&content.written[content.durable.len()..][..dice(more + 1)]);
                    // A file system may have made room before it wrote.
                    if dice(3) == 0 {
                        kept.extend(std::iter::repeat_n(0, content.written.len() - kept.len()));
                    }
                } else if dice(2) == 0 {
                    kept = content.written.clone();
                }
                Content { written: kept.clone(), durable: kept }
            })
            .collect();
        Self { contents, names: names.clone(), durable: names, ..Self::default() }
    }

    fn operate(&mut self, grows: bool) -> io::Result<()> {
        let operation = self.operations;
        self.operations += 1;
        if self.cut_at.is_some_and(|cut| operation >= cut) {
            return Err(io::Error::other("the power is gone"));
        }
        if grows && self.full.is_some_and(|(from, to)| (from..to).contains(&operation)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn content(&mut self, name: &str) -> io::Result<&mut Content> {
        let index = *self.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(&mut self.contents[index])
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.changes.push(change);
    }

    /// Whole content of a file.
    pub(super) fn read(&self, name: &str) -> Option<Vec<u8>> {
        self.names.get(name).map(|&index| self.contents[index].written.clone())
    }

    /// Changes a bit of a file behind everybody's back.
    pub(super) fn flip(&mut self, name: &str, at: usize) {
        self.content(name).unwrap().written[at] ^= 1;
    }

    /// The names of all files.
    pub(super) fn names(&self) -> Vec<&str> {
        self.names.keys().map(String::as_str).collect()
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: &Change) {
    match change {
        Change::Link(name, index) => drop(names.insert(name.clone(), *index)),
        Change::Remove(name) => drop(names.remove(name)),
        Change::Rename(from, to) => {
            if let Some(index) = names.remove(from) {
                names.insert(to.clone(), index);
            }
        }
    }
}

impl Disk for Fake {
    fn create(&mut self, name: &str) -> io::Result<()> {
        self.operate(true)?;
        if let Ok(content) = self.content(name) {
            content.written.clear();
            return Ok(());
        }
        self.contents.push(Content::default());
        self.change(Change::Link(name.into(), self.contents.len() - 1));
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let room = self.operate(true);
        // A full disk takes a part, a power cut leaves one.
        let part = if room.is_ok() { bytes.len() } else { bytes.len() / 2 };
        self.content(name)?.written.extend_from_slice(&bytes[..part]);
        room
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.operate(false)?;
        let content = self.content(name)?;
        content.durable = content.written.clone();
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.operate(false)?;
        self.content(from)?;
        self.change(Change::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.operate(false)?;
        if self.names.contains_key(name) {
            self.change(Change::Remove(name.into()));
        }
        Ok(())
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        self.operate(false)?;
        self.durable = self.names.clone();
        self.changes.clear();
        Ok(())
    }

    fn len(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(self.read(name).map(|bytes| bytes.len() as u64))
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = self.read(name).ok_or(io::ErrorKind::NotFound)?;
        let from = bytes.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

pub(super) fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

/// A key set of these keys, signed by all of `signers`.
pub(super) fn key_set(version: u64, threshold: u8, keys: &[u8], signers: &[u8]) -> (KeySet, Vec<u8>) {
    let keys = keys.iter().map(|&number| key(number).public()).collect();
    let set = KeySet { version, threshold, keys };
    let mut envelope = set.to_envelope().unwrap();
    signers.iter().for_each(|&number| envelope.sign(&key(number)));
    (set, envelope.to_bytes().unwrap())
}

/// The keys of all tests: 1, 2 and 3, of which two must sign.
pub(crate) fn keys() -> KeySet {
    key_set(1, 2, &[1, 2, 3], &[1, 2]).0
}

pub(crate) fn station() -> Station {
    Station {
        line: "line1".into(),
        station: "el-07".into(),
        groups: vec!["pilot".into()],
        software: Software([0, 1, 0]),
        backbone: [5; 32],
    }
}

/// Something like a model file of a few chunks: the same for each version but for some of it.
pub(super) fn model(version: u64) -> Vec<u8> {
    (0..30_000u32).flat_map(|i| (i as f32 * 0.37 + version as f32 * 1e-3).to_le_bytes()).collect()
}

/// A bundle in the making.
pub(crate) struct Made {
    pub(super) manifest: Manifest,
    pub(super) parts: Vec<Part>,
    pub(super) signers: Vec<u8>,
}

pub(crate) fn bundle(version: u64) -> Made {
    let targets = Targets { lines: vec!["line1".into()], minimum_software: Software([0, 1, 0]), ..Targets::default() };
    let manifest = Manifest {
        product: "cellgate".into(),
        version,
        backbone: [5; 32],
        targets,
        created: NOW - DAY,
        expires: NOW + 30 * DAY,
        base: None,
        sections: vec![],
    };
    let golden = [b"golden", &version.to_le_bytes()[..]].concat();
    let parts = vec![
        pack_model(Layout { bytes: &model(version), sections: &[] }, None),
        pack_whole("golden", &golden),
        pack_whole("note", b"more cells of the night shift"),
    ];
    Made { manifest, parts, signers: vec![1, 2] }
}

impl Made {
    /// The difference to another version's model.
    pub(super) fn against(mut self, base: u64) -> Self {
        let (old, new) = (model(base), model(self.manifest.version));
        let layout = [("all".to_owned(), 0, old.len())];
        self.parts[0] =
            pack_model(Layout { bytes: &new, sections: &layout }, Some(Layout { bytes: &old, sections: &layout }));
        self.manifest.base = Some(Hash::of(&old));
        self
    }

    pub(super) fn envelope(&self) -> Result<(Envelope, Vec<u8>), BundleError> {
        let (mut envelope, body) = assemble(self.manifest.clone(), self.parts.clone())?;
        self.signers.iter().for_each(|&number| envelope.sign(&key(number)));
        Ok((envelope, body))
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (envelope, body) = self.envelope().unwrap();
        [envelope.to_bytes().unwrap(), body].concat()
    }
}
