//! Attacks, as The Update Framework lists them: each is tried on a station on which version 5 is good.

use super::bundle::{BundleError, CHUNK, Envelope, Hash, KeySet, MAGIC, Software, pack_whole};
use super::fake::{DAY, Fake, Made, NOW, bundle, key, key_set, keys, model, station};
use super::slots::{Limits, Slots, UpdateError};

fn good() -> Slots<Fake> {
    let mut slots = Slots::set_up(Fake::default(), keys()).unwrap();
    install(&mut slots, &bundle(5).bytes()).unwrap();
    slots.activate().unwrap();
    slots.confirm().unwrap();
    slots
}

fn install(slots: &mut Slots<Fake>, bytes: &[u8]) -> Result<(), UpdateError> {
    install_at(slots, bytes, NOW)
}

fn install_at(slots: &mut Slots<Fake>, mut bytes: &[u8], now: u64) -> Result<(), UpdateError> {
    slots.install(&mut bytes, &station(), now, |_, _| Ok(())).map(drop)
}

/// The bundle is refused, nothing of it stays on the disk, and version 5 goes on.
fn refused(slots: &mut Slots<Fake>, bytes: &[u8]) -> BundleError {
    refused_at(slots, bytes, NOW)
}

fn refused_at(slots: &mut Slots<Fake>, bytes: &[u8], now: u64) -> BundleError {
    let error = match install_at(slots, bytes, now).expect_err("it must be refused") {
        UpdateError::Bundle(error) => error,
        other => panic!("{other}"),
    };
    let (slot, fitted) = slots.start(&Limits::default()).unwrap();
    assert_eq!((fitted.version, slots.disk().read(slot.model()).unwrap()), (5, model(5)));
    assert!(slots.disk().names().iter().all(|name| !name.starts_with("download")), "{:?}", slots.disk().names());
    error
}

#[test]
fn a_good_bundle_is_taken_whole_and_as_a_difference() {
    for made in [bundle(6), bundle(6).against(5)] {
        let mut slots = good();
        install(&mut slots, &made.bytes()).unwrap();
        slots.activate().unwrap();
        assert_eq!(slots.disk().read("b.cgm").unwrap(), model(6));
        assert_eq!(slots.disk().read("b.golden").unwrap(), [b"golden", &6u64.to_le_bytes()[..]].concat());
        slots.rollback("asked for").unwrap();
        assert_eq!(slots.start(&Limits::default()).unwrap().1.version, 5);
    }
}

#[test]
fn rollback_to_an_older_version() {
    let mut slots = good();
    assert!(matches!(refused(&mut slots, &bundle(4).bytes()), BundleError::Rollback { version: 4, seen: 5 }));
}

#[test]
fn rollback_of_the_mark_by_going_back() {
    let mut slots = good();
    install(&mut slots, &bundle(6).bytes()).unwrap();
    slots.activate().unwrap();
    slots.rollback("asked for").unwrap();
    assert!(matches!(refused(&mut slots, &bundle(6).bytes()), BundleError::Rollback { version: 6, seen: 6 }));
}

#[test]
fn replayed_offers() {
    let mut slots = good();
    assert!(matches!(refused(&mut slots, &bundle(5).bytes()), BundleError::Rollback { version: 5, seen: 5 }));
    // One that failed its proof is not proven again and again.
    let bytes = bundle(6).bytes();
    let failed = slots.install(&mut &bytes[..], &station(), NOW, |_, _| Err("it says B".into())).unwrap_err();
    assert!(matches!(failed, UpdateError::Proof { version: 6, .. }));
    // And is no model to go back to.
    assert!(matches!(slots.rollback("asked for"), Err(UpdateError::NotNow(_))));
    assert!(matches!(refused(&mut slots, &bytes), BundleError::Rollback { version: 6, seen: 6 }));
}

#[test]
fn freeze_by_an_expired_manifest() {
    let mut slots = good();
    let mut made = bundle(6);
    made.manifest.expires = NOW;
    assert!(matches!(refused(&mut slots, &made.bytes()), BundleError::Expired { .. }));
}

#[test]
fn clock_set_back() {
    let mut slots = good();
    let mut made = bundle(6);
    (made.manifest.created, made.manifest.expires) = (NOW - 9 * DAY, NOW - DAY / 2);
    // The clock says that it is still fresh, but a bundle of yesterday has been here, at NOW.
    for now in [NOW - 8 * DAY, 0] {
        assert!(matches!(refused_at(&mut slots, &made.bytes(), now), BundleError::Expired { .. }));
    }
    // And a station whose clock starts at 1970 after each power cut still takes what is fresh.
    install_at(&mut slots, &bundle(6).bytes(), 0).unwrap();
    assert_eq!(slots.record().clock, NOW);
}

#[test]
fn clock_set_far_ahead_does_not_lock_the_station_out() {
    let mut slots = good();
    assert!(matches!(refused_at(&mut slots, &bundle(6).bytes(), NOW + 9999 * DAY), BundleError::Expired { .. }));
    install(&mut slots, &bundle(6).bytes()).unwrap();
}

#[test]
fn mix_and_match_of_sections() {
    let mut slots = good();
    let (envelope, _) = bundle(6).envelope().unwrap();
    let (_, other) = bundle(7).envelope().unwrap();
    let mixed = [envelope.to_bytes().unwrap(), other].concat();
    assert!(matches!(
        refused(&mut slots, &mixed),
        BundleError::Hash(_) | BundleError::Truncated | BundleError::Endless(_)
    ));
    // Golden frames of one release with the model of another.
    let (six, seven) = (bundle(6), bundle(7));
    let packed: Vec<&[u8]> = vec![&six.parts[0].packed, &seven.parts[1].packed, &six.parts[2].packed];
    let mixed = [envelope.to_bytes().unwrap(), packed.concat()].concat();
    assert!(matches!(refused(&mut slots, &mixed), BundleError::Hash(name) if name == "golden"));
}

#[test]
fn mix_and_match_of_a_difference_and_its_base() {
    let mut slots = good();
    let error = refused(&mut slots, &bundle(6).against(4).bytes());
    assert!(matches!(error, BundleError::Base { needed, .. } if needed == Hash::of(&model(4))));
    // A base that was damaged since it was checked: the result is not what was signed.
    install(&mut slots, &bundle(6).bytes()).unwrap();
    slots.activate().unwrap();
    slots.confirm().unwrap();
    let mut disk = slots.disk().clone();
    disk.flip("b.cgm", 1000);
    let mut slots = Slots::open(disk).unwrap();
    let error = install(&mut slots, &bundle(7).against(6).bytes()).unwrap_err();
    assert!(matches!(error, UpdateError::Bundle(BundleError::Hash(name)) if name == "model"));
}

#[test]
fn wrong_target() {
    let changes: [fn(&mut Made); 5] = [
        |made| made.manifest.targets.lines = vec!["line2".into()],
        |made| made.manifest.targets.stations = vec!["el-08".into()],
        |made| made.manifest.targets.groups = vec!["all-but-pilot".into()],
        |made| made.manifest.targets.minimum_software = Software([0, 2, 0]),
        |made| made.manifest.backbone = [6; 32],
    ];
    let mut slots = good();
    for (index, change) in changes.into_iter().enumerate() {
        let mut made = bundle(6);
        change(&mut made);
        let error = refused(&mut slots, &made.bytes());
        let named = match error {
            BundleError::Target { .. } => index < 3,
            BundleError::Software { .. } => index == 3,
            BundleError::Backbone { .. } => index == 4,
            _ => false,
        };
        assert!(named, "{index}: {error}");
    }
    let mut made = bundle(6);
    made.manifest.product = "other".into();
    assert!(made.envelope().is_err());
}

#[test]
fn unknown_key() {
    let mut slots = good();
    let made = Made { signers: vec![8, 9], ..bundle(6) };
    assert!(matches!(refused(&mut slots, &made.bytes()), BundleError::TooFew { found: 0, needed: 2, .. }));
}

#[test]
fn revoked_key() {
    let mut slots = good();
    // Key 1 is lost: key 4 takes its place, by the word of the old keys.
    let (_, next) = key_set(2, 2, &[2, 3, 4], &[2, 3, 4]);
    slots.rotate(&mut &next[..]).unwrap();
    assert!(matches!(refused(&mut slots, &bundle(6).bytes()), BundleError::TooFew { found: 1, needed: 2, keys: 2 }));
    let made = Made { signers: vec![2, 4], ..bundle(6) };
    install(&mut slots, &made.bytes()).unwrap();
}

#[test]
fn key_set_without_the_old_keys_word() {
    let mut slots = good();
    for (version, threshold, keys, signers) in [
        (2, 1, &[9][..], &[9][..]),     // a set that only trusts itself
        (2, 1, &[9], &[1, 9]),          // one old key is too few
        (3, 2, &[1, 2, 4], &[1, 2, 4]), // a version left out
        (1, 2, &[1, 2, 4], &[1, 2, 4]), // no new version
        (2, 2, &[2, 4, 5], &[1, 2, 3]), // the new keys have not shown that anybody holds them
    ] {
        let (_, bytes) = key_set(version, threshold, keys, signers);
        assert!(slots.rotate(&mut &bytes[..]).is_err(), "{version} {keys:?} {signers:?}");
    }
    assert_eq!(slots.record().keys, self::keys());
    let (_, unsigned) = key_set(1, 1, &[1], &[]);
    assert!(KeySet::trust(&mut &unsigned[..]).is_err());
}

#[test]
fn fewer_signatures_than_the_threshold() {
    let mut slots = good();
    for signers in [vec![], vec![1], vec![1, 1]] {
        let found = signers.len().min(1);
        let made = Made { signers, ..bundle(6) };
        let error = refused(&mut slots, &made.bytes());
        assert!(matches!(error, BundleError::TooFew { found: n, needed: 2, .. } if n == found), "{error}");
    }
    // The same signature twice is one.
    let (mut envelope, body) = Made { signers: vec![1], ..bundle(6) }.envelope().unwrap();
    envelope.signatures.push(envelope.signatures[0].clone());
    let twice = [envelope.to_bytes().unwrap(), body].concat();
    assert!(matches!(refused(&mut slots, &twice), BundleError::TooFew { found: 1, .. }));
}

#[test]
fn signature_of_another_kind_of_file() {
    let mut slots = good();
    // A body that was signed as a key set says nothing about bundles.
    let (envelope, body) = bundle(6).envelope().unwrap();
    let mut other = Envelope::new(*b"CGKEYSET", envelope.body.clone()).unwrap();
    [1, 2].iter().for_each(|&number| other.sign(&key(number)));
    let mut forged = Envelope::new(MAGIC, envelope.body).unwrap();
    forged.signatures = other.signatures;
    let bytes = [forged.to_bytes().unwrap(), body].concat();
    assert!(matches!(refused(&mut slots, &bytes), BundleError::Forged(_)));
}

#[test]
fn endless_data() {
    struct Endless(Vec<u8>, usize);
    impl std::io::Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let from = self.0.get(self.1..).filter(|rest| !rest.is_empty()).unwrap_or(&[7; 4096]);
            let part = from.len().min(buffer.len());
            buffer[..part].copy_from_slice(&from[..part]);
            self.1 += part;
            Ok(part)
        }
    }
    let mut slots = good();
    // Behind a good bundle; in place of the sections; and a head that promises gigabytes.
    let whole = bundle(6).bytes();
    let envelope = bundle(6).envelope().unwrap().0.to_bytes().unwrap();
    let head = [&MAGIC[..], &1u32.to_le_bytes(), &u32::MAX.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
    for begin in [whole.clone(), envelope, head, vec![]] {
        let mut source = Endless(begin, 0);
        slots.install(&mut source, &station(), NOW, |_, _| Ok(())).unwrap_err();
        assert!(source.1 < whole.len() + CHUNK, "{} bytes were read", source.1);
        assert!(slots.disk().names().iter().all(|name| !name.starts_with("download")));
    }
    assert_eq!(slots.start(&Limits::default()).unwrap().1.version, 5);
}

#[test]
fn truncated() {
    let mut slots = good();
    let bytes = bundle(6).bytes();
    for end in (0..bytes.len()).step_by(bytes.len() / 60).chain(0..40).chain([bytes.len() - 1]) {
        let error = refused(&mut slots, &bytes[..end]);
        assert!(matches!(error, BundleError::Truncated), "{end}: {error}");
    }
}

#[test]
fn bit_flipped() {
    let bytes = bundle(6).bytes();
    let mut slots = good();
    let head = bundle(6).envelope().unwrap().0.to_bytes().unwrap().len();
    for at in (0..head).chain((head..bytes.len()).step_by(bytes.len() / 60)) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        refused(&mut slots, &flipped);
    }
}

#[test]
fn zip_bomb() {
    let mut slots = good();
    // Signed by keys that were stolen, it unpacks to a hundred megabytes where the manifest says a thousand bytes.
    let mut made = bundle(6);
    let mut bomb = pack_whole("golden", &vec![0; 100_000_000]);
    assert!(bomb.packed.len() < 20_000);
    bomb.section.bytes = 1000 * bomb.packed.len() as u64 / 1000;
    made.parts[1] = bomb;
    assert!(matches!(refused(&mut slots, &made.bytes()), BundleError::Bomb(name) if name == "golden"));
    // A frame that asks the decoder for a window of gigabytes, or unpacks to more than its chunk says.
    for (frame, says) in [(vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 1, 0, 0], 1000u32), (frame_of(1 << 19), 1000)] {
        let mut made = bundle(6);
        let mut packed = vec![0];
        packed.extend([0; 8]);
        packed.extend(says.to_le_bytes());
        packed.extend((frame.len() as u32).to_le_bytes());
        packed.extend(frame);
        let section = &mut made.parts[1].section;
        (section.stored, section.stored_hash) = (packed.len() as u64, Hash::of(&packed));
        (section.bytes, section.hash) = (u64::from(says), Hash::of(&vec![0; says as usize]));
        made.parts[1].packed = packed;
        let error = refused(&mut slots, &made.bytes());
        assert!(matches!(error, BundleError::Damaged(_)), "{error}");
    }
}

/// A zstd frame of that many zeros.
fn frame_of(zeros: usize) -> Vec<u8> {
    pack_whole("golden", &vec![0; zeros]).packed[17..].to_vec()
}

#[test]
fn path_tricks_in_names() {
    let names = ["../../etc/passwd", "/etc/passwd", "model/../record", "record", "a.cgm", "", "model\0", "..", "MODEL"];
    for name in names {
        let mut made = bundle(6);
        made.parts[2].section.name = name.into();
        assert!(matches!(made.envelope(), Err(BundleError::Manifest(_))), "{name}");
    }
    for name in ["../x", "a/b", ".hidden", "", "a\u{202e}b", "line 1"] {
        let mut made = bundle(6);
        made.manifest.targets.groups = vec![name.into()];
        assert!(matches!(made.envelope(), Err(BundleError::Manifest(_))), "{name}");
    }
    // A manifest that was signed without these checks is refused by the station's own.
    let mut slots = good();
    let mut made = bundle(6);
    let (plain, body) = made.envelope().unwrap();
    made.parts[2].section.name = "../x".into();
    let text = plain.body.windows(5).position(|window| window == b"\x04note").unwrap();
    let mut tricked = plain.body.clone();
    tricked[text..text + 5].copy_from_slice(b"\x04../x");
    let mut envelope = Envelope::new(MAGIC, tricked).unwrap();
    [1, 2].iter().for_each(|&number| envelope.sign(&key(number)));
    let bytes = [envelope.to_bytes().unwrap(), body].concat();
    assert!(matches!(refused(&mut slots, &bytes), BundleError::Manifest(_)));
    assert_eq!(slots.disk().names(), ["a.cgm", "a.golden", "record"]);
}
