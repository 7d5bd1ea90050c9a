//! Downloads that break off: by the line, by a power cut, by somebody else's bytes.

use std::io::{self, Read};

use proptest::prelude::*;

use super::bundle::Hash;
use super::disk::Disk;
use super::fake::{Fake, NOW, bundle, keys, model, station};
use super::install::Wanted;
use super::slots::{Slots, UpdateError};

/// A bundle's bytes from some point on, which break off after so many.
struct Line<'a> {
    bytes: &'a [u8],
    breaks_after: usize,
}

impl Read for Line<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // The end of the file comes only at its end.
        if self.breaks_after == 0 && !self.bytes.is_empty() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let part = self.bytes.len().min(buffer.len()).min(self.breaks_after.max(1)).min(1000);
        buffer[..part].copy_from_slice(&self.bytes[..part]);
        self.bytes = &self.bytes[part..];
        self.breaks_after = self.breaks_after.saturating_sub(part);
        Ok(part)
    }
}

fn wanted(version: u64, bytes: &[u8]) -> Wanted {
    Wanted { bundle: Hash::of(bytes), version, bytes: bytes.len() as u64 }
}

/// An attempt at a download that breaks after so many bytes. Gives where it began.
fn attempt(slots: &mut Slots<Fake>, version: u64, sent: &[u8], breaks_after: usize) -> (u64, Result<(), UpdateError>) {
    let mut from = 0;
    let open = |have: u64| {
        from = have;
        Ok(Line { bytes: &sent[have as usize..], breaks_after })
    };
    let wanted = wanted(version, &bundle(version).bytes());
    let fetched = slots.fetch(&wanted, open, &station(), NOW);
    let done = fetched.and_then(|manifest| slots.settle(&manifest, NOW, |_, _| Ok(())));
    (from, done)
}

/// A download that breaks off twice or more on its way, up to the proof.
pub(super) fn fetch_in_pieces(slots: &mut Slots<Fake>, version: u64, sent: &[u8]) -> Result<(), UpdateError> {
    let piece = sent.len() / 3 + 1;
    let mut done = Ok(());
    for _ in 0..4 {
        let open = |have: u64| Ok(Line { bytes: &sent[have as usize..], breaks_after: piece });
        let fetched = slots.fetch(&wanted(version, sent), open, &station(), NOW);
        done = fetched.and_then(|manifest| slots.settle(&manifest, NOW, |_, _| Ok(())));
        if !matches!(done, Err(UpdateError::Interrupted { .. })) {
            break;
        }
    }
    done
}

#[test]
fn a_line_that_breaks_every_few_bytes_gets_there_all_the_same() {
    let bytes = bundle(1).bytes();
    let mut slots = Slots::set_up(Fake::default(), keys()).unwrap();
    let (mut have, mut attempts) = (0, 0);
    loop {
        let (from, done) = attempt(&mut slots, 1, &bytes, 777);
        assert_eq!(from, have, "it goes on where it broke off");
        attempts += 1;
        match done {
            Ok(()) => break,
            Err(UpdateError::Interrupted { have: there, .. }) => have = there,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(attempts, bytes.len().div_ceil(777));
    slots.activate().unwrap();
    assert_eq!(slots.disk().read("a.cgm"), Some(model(1)));
}

#[test]
fn what_another_bundle_left_is_not_used_and_wrong_bytes_are_dropped() {
    let (one, two) = (bundle(1).bytes(), bundle(2).bytes());
    let mut slots = Slots::set_up(Fake::default(), keys()).unwrap();
    assert!(matches!(attempt(&mut slots, 1, &one, 5000).1, Err(UpdateError::Interrupted { have: 5000, .. })));
    let (from, broke) = attempt(&mut slots, 2, &two, 5000);
    assert!(from == 0 && matches!(broke, Err(UpdateError::Interrupted { have: 5000, .. })), "{broke:?}");
    // Bytes that changed on the disk behind everybody's back.
    let mut disk = slots.disk().clone();
    disk.flip("download.part", 4000);
    let mut slots = Slots::open(disk).unwrap();
    let (from, refused) = attempt(&mut slots, 2, &two, usize::MAX);
    assert!(from == 5000 && matches!(refused, Err(UpdateError::Bundle(_))), "{refused:?}");
    let (from, done) = attempt(&mut slots, 2, &two, usize::MAX);
    assert!(from == 0 && done.is_ok(), "{done:?}");
}

#[test]
fn a_bundle_that_is_not_the_one_that_was_offered_is_refused_though_it_is_signed() {
    let mut slots = Slots::set_up(Fake::default(), keys()).unwrap();
    let (mut offered, other) = (wanted(2, &bundle(2).bytes()), bundle(1).bytes());
    let refused = slots.fetch(&offered, |_| Ok(&other[..]), &station(), NOW).unwrap_err().to_string();
    assert!(refused.contains("it is of version 1, version 2 was offered"), "{refused}");
    offered.version = 1;
    let refused = slots.fetch(&offered, |_| Ok(&other[..]), &station(), NOW).unwrap_err().to_string();
    assert!(refused.contains("another bundle than the one that was offered"), "{refused}");
    assert_eq!(slots.disk().len("download.part").unwrap(), None, "nothing is kept of it");
    let refused = slots.fetch(&offered, |_| Err::<&[u8], _>(io::ErrorKind::NotFound.into()), &station(), NOW);
    assert!(matches!(refused, Err(UpdateError::Interrupted { have: 0, .. })));
}

#[test]
fn a_full_disk_ends_a_download_and_gives_its_room_back() {
    let bytes = bundle(1).bytes();
    let mut disk = Slots::set_up(Fake::default(), keys()).unwrap().disk().clone();
    disk.full = Some((disk.operations + 9, usize::MAX));
    let mut slots = Slots::open(disk).unwrap();
    let (_, refused) = attempt(&mut slots, 1, &bytes, usize::MAX);
    assert!(matches!(refused, Err(UpdateError::Bundle(_))), "{refused:?}");
    assert_eq!(slots.disk().len("download.part").unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Lines that break and power cuts, in any order.
    #[test]
    fn through_broken_lines_and_power_cuts_the_model_comes_whole(
        steps in prop::collection::vec((1usize..40_000, any::<bool>(), 0usize..60, any::<u64>()), 1..8),
    ) {
        let bytes = bundle(1).bytes();
        let mut disk = Slots::set_up(Fake::default(), keys()).unwrap().disk().after_cut(0);
        for (breaks_after, power, at, luck) in steps {
            let mut slots = Slots::open(disk).unwrap();
            if power {
                let mut cut = slots.disk().clone();
                cut.cut_at = Some(cut.operations + at);
                slots = Slots::open(cut).unwrap();
            }
            let done = attempt(&mut slots, 1, &bytes, breaks_after).1;
            disk = slots.disk().after_cut(luck);
            if done.is_ok() {
                break;
            }
        }
        // Left alone it comes whole: at once, or once more where the disk kept something else than was written.
        let mut slots = Slots::open(disk).unwrap();
        let mut done = attempt(&mut slots, 1, &bytes, usize::MAX).1;
        if matches!(done, Err(UpdateError::Bundle(_))) {
            done = attempt(&mut slots, 1, &bytes, usize::MAX).1;
        }
        prop_assert!(done.is_ok(), "{done:?}");
        slots.activate().unwrap();
        prop_assert_eq!(slots.disk().read("a.cgm"), Some(model(1)));
    }
}
