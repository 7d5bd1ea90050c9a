//! Power cuts and a full disk at every operation in turn: the station always comes up with a whole model.

use proptest::prelude::*;

use super::bundle::Hash;
use super::fake::{Fake, NOW, bundle, keys, model, station};
use super::resume::fetch_in_pieces;
use super::slots::{Limits, Phase, Seen, Slots, UpdateError};

/// A station on which version 1 is good.
fn good() -> Fake {
    let mut slots = Slots::set_up(Fake::default(), keys()).unwrap();
    slots.install(&mut &bundle(1).bytes()[..], &station(), NOW, |_, _| Ok(())).unwrap();
    slots.activate().unwrap();
    slots.confirm().unwrap();
    slots.disk().after_cut(0)
}

/// Power cuts are no crash loop here; one test is about that.
fn patient() -> Limits {
    Limits { starts: 1000, ..Limits::default() }
}

/// How a bundle comes.
#[derive(Clone, Copy)]
enum Way {
    File,
    Pieces,
}

/// Takes in a bundle of this version.
fn take(slots: &mut Slots<Fake>, way: Way, version: u64, bytes: &[u8]) -> Result<(), UpdateError> {
    match way {
        Way::File => slots.install(&mut &bytes[..], &station(), NOW, |_, _| Ok(())).map(drop),
        Way::Pieces => fetch_in_pieces(slots, version, bytes),
    }
}

/// What an engineer or the agent does: updates, and goes back or goes on.
fn update(disk: Fake, way: Way, version: u64, bytes: &[u8], goes_back: bool) -> (Result<(), UpdateError>, Fake) {
    let mut slots = match Slots::open(disk.clone()) {
        Ok(slots) => slots,
        Err(error) => return (Err(error), disk),
    };
    let mut all = || {
        slots.start(&patient())?;
        if matches!(slots.record().phase, Phase::Probation { .. }) {
            slots.confirm()?;
        }
        take(&mut slots, way, version, bytes)?;
        slots.activate()?;
        slots.start(&patient())?;
        slots.watch(&Seen { cells: 10, invalid: 1, rejected: 1, ..Seen::default() }, &Limits::default())?;
        if goes_back { slots.rollback("asked for") } else { slots.confirm() }
    };
    let done = all();
    (done, slots.disk().clone())
}

/// The version that a station comes up with, its file checked byte for byte.
fn comes_up(disk: Fake) -> (u64, Slots<Fake>) {
    comes_up_within(disk, &patient())
}

fn comes_up_within(disk: Fake, limits: &Limits) -> (u64, Slots<Fake>) {
    let mut slots = Slots::open(disk).expect("the record can be read");
    let (slot, fitted) = slots.start(limits).expect("a whole model");
    let file = slots.disk().read(slot.model()).expect("its file");
    assert_eq!(file, model(fitted.version), "the file of version {}", fitted.version);
    assert_eq!((file.len() as u64, Hash::of(&file)), (fitted.bytes, fitted.hash));
    (fitted.version, slots)
}

fn each_operation(way: Way, bytes: &[u8], goes_back: bool, trouble: impl Fn(&mut Fake, usize)) -> usize {
    let start = good();
    let (done, disk) = update(start.clone(), way, 2, bytes, goes_back);
    assert!(done.is_ok(), "{done:?}");
    let operations = disk.operations;
    for at in 0..operations {
        for luck in 0..6 {
            let mut disk = start.clone();
            trouble(&mut disk, at);
            let (_, left) = update(disk, way, 2, bytes, goes_back);
            let (version, mut slots) = comes_up(left.after_cut(luck * 7919 + at as u64));
            assert!(version == 1 || version == 2);
            // And it is not stuck: unless version 2 was in force, it can be installed.
            if slots.record().version == 1 {
                // What a disk kept otherwise than it was written is found at the end, and the next attempt begins anew.
                if take(&mut slots, way, 2, bytes).is_err() {
                    take(&mut slots, way, 2, bytes).expect("taken in again");
                }
                slots.activate().expect("put in force");
                assert_eq!(comes_up(slots.disk().after_cut(luck)).0, 2);
            }
        }
    }
    operations
}

#[test]
fn a_power_cut_after_every_operation_leaves_a_whole_model() {
    let (whole, difference) = (bundle(2).bytes(), bundle(2).against(1).bytes());
    for (way, bytes, goes_back) in [
        (Way::File, &whole, false),
        (Way::File, &difference, true),
        (Way::Pieces, &whole, true),
        (Way::Pieces, &difference, false),
    ] {
        let operations = each_operation(way, bytes, goes_back, |disk, at| disk.cut_at = Some(at));
        assert!(operations > 40, "{operations}");
    }
}

#[test]
fn a_disk_that_fills_at_every_operation_leaves_a_whole_model() {
    for way in [Way::File, Way::Pieces] {
        each_operation(way, &bundle(2).bytes(), false, |disk, at| disk.full = Some((at, usize::MAX)));
        each_operation(way, &bundle(2).against(1).bytes(), true, |disk, at| disk.full = Some((at, at + 3)));
    }
}

#[test]
fn a_full_disk_does_not_stop_the_model_in_force_and_gives_its_room_back() {
    let mut disk = good();
    disk.full = Some((disk.operations + 2, usize::MAX));
    let (done, disk) = update(disk, Way::File, 2, &bundle(2).bytes(), false);
    assert!(matches!(done, Err(UpdateError::Disk { .. } | UpdateError::Bundle(_))), "{done:?}");
    assert!(!disk.names().iter().any(|name| name.starts_with("download")), "{:?}", disk.names());
    assert_eq!(comes_up(disk).0, 1);
}

#[test]
fn a_first_installation_that_is_cut_off_leaves_nothing_that_is_half() {
    let bytes = bundle(1).bytes();
    let run = |mut disk: Fake, cut| {
        disk.cut_at = cut;
        match Slots::set_up(disk.clone(), keys()) {
            Err(_) => disk,
            Ok(mut slots) => {
                let _ = slots.install(&mut &bytes[..], &station(), NOW, |_, _| Ok(())).map(|_| slots.activate());
                slots.disk().clone()
            }
        }
    };
    let operations = run(Fake::default(), None).operations;
    for (at, luck) in (0..operations).flat_map(|at| (0..4).map(move |luck| (at, luck))) {
        match Slots::open(run(Fake::default(), Some(at)).after_cut(luck)) {
            Ok(mut slots) => match slots.start(&Limits::default()) {
                Ok((slot, fitted)) => assert_eq!(slots.disk().read(slot.model()), Some(model(fitted.version))),
                Err(error) => assert!(matches!(error, UpdateError::NoModel), "{error}"),
            },
            Err(error) => assert!(matches!(error, UpdateError::NoKeys), "{error}"),
        }
    }
}

#[test]
fn a_damaged_model_in_force_is_replaced_by_the_one_before_it() {
    let (done, mut disk) = update(good(), Way::File, 2, &bundle(2).bytes(), false);
    done.unwrap();
    assert_eq!(comes_up(disk.clone()).0, 2);
    disk.flip("b.cgm", 5000);
    let (version, slots) = comes_up(disk);
    assert_eq!((version, slots.record().version, slots.record().phase), (1, 2, Phase::Good));
}

#[test]
fn a_model_with_which_the_station_keeps_crashing_is_taken_back() {
    let mut slots = Slots::open(good()).unwrap();
    slots.install(&mut &bundle(2).bytes()[..], &station(), NOW, |_, _| Ok(())).unwrap();
    slots.activate().unwrap();
    let mut disk = slots.disk().clone();
    let mut versions = Vec::new();
    for _ in 0..5 {
        let (version, slots) = comes_up_within(disk.clone(), &Limits::default());
        versions.push(version);
        disk = slots.disk().clone();
    }
    assert_eq!(versions, [2, 2, 2, 1, 1]);
}

#[test]
fn a_station_with_a_full_disk_comes_up_even_where_it_must_go_back() {
    let mut slots = Slots::open(good()).unwrap();
    slots.install(&mut &bundle(2).bytes()[..], &station(), NOW, |_, _| Ok(())).unwrap();
    slots.activate().unwrap();
    let mut crashing = slots.disk().clone();
    for _ in 0..3 {
        crashing = comes_up_within(crashing, &Limits::default()).1.disk().clone();
    }
    let mut damaged = slots.disk().clone();
    damaged.flip("b.cgm", 0);
    for mut disk in [crashing, damaged] {
        disk.full = Some((0, usize::MAX));
        assert_eq!(comes_up_within(disk, &Limits::default()).0, 1);
    }
}

#[test]
fn probation_ends_by_cells_and_is_broken_off_by_bad_shares() {
    let limits = Limits { cells: 200, ..Limits::default() };
    for (judged, invalid, rejected, version, phase) in [
        (199, 10, 30, 2, None),
        (200, 20, 60, 2, Some(Phase::Good)),
        (60, 7, 0, 1, Some(Phase::Good)),
        (60, 0, 19, 1, Some(Phase::Good)),
        (20, 20, 0, 2, None),
    ] {
        let mut slots = Slots::open(good()).unwrap();
        slots.install(&mut &bundle(2).bytes()[..], &station(), NOW, |_, _| Ok(())).unwrap();
        slots.activate().unwrap();
        let changed = slots.watch(&Seen { cells: judged, invalid, rejected, ..Seen::default() }, &limits).unwrap();
        let in_force = slots.record().in_force().unwrap().1.version;
        assert_eq!((changed, in_force), (version == 1, version), "{judged} {invalid} {rejected}");
        assert_eq!(phase.is_some(), slots.record().phase == Phase::Good, "{judged} {invalid} {rejected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any row of updates, each with a power cut or a full disk somewhere, or none.
    #[test]
    fn whatever_happens_the_station_comes_up_with_a_whole_model(
        steps in prop::collection::vec((0usize..90, 0u8..3, any::<u64>(), any::<bool>(), any::<bool>()), 1..6),
    ) {
        let (mut disk, mut version) = (good(), 1);
        for (at, trouble, luck, differs, goes_back) in steps {
            let offer = bundle(version + 1);
            let before = comes_up(disk.clone()).0;
            let offer = if differs { offer.against(before) } else { offer };
            match trouble {
                0 => disk.cut_at = Some(at),
                1 => disk.full = Some((at, at + luck as usize % 9)),
                _ => {}
            }
            let way = if luck % 2 == 0 { Way::File } else { Way::Pieces };
            let left = update(disk, way, version + 1, &offer.bytes(), goes_back).1.after_cut(luck);
            let (up, slots) = comes_up(left);
            prop_assert!(up == before || up == version + 1, "{} after {}", up, before);
            prop_assert!(slots.record().version >= version, "the mark never falls");
            version = slots.record().version.max(version);
            disk = slots.disk().after_cut(luck);
        }
    }
}
