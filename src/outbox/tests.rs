//! The outbox on a disk that fails, and on files.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::medium::faulty::Faulty;
use super::slot::{SLOT, SLOTS_AT};
use super::store::fresh;
use super::*;

fn disk(slots: u32) -> Faulty {
    let mut bytes = fresh(slots, 6);
    bytes.resize(bytes.len() + slots as usize * SLOT, 0);
    Faulty::new(bytes)
}

fn open(disk: &Faulty) -> Outbox<Faulty> {
    Outbox::on(disk.clone(), Path::new("test")).unwrap()
}

fn text(key: Key) -> String {
    format!("{}/{}/{}", key.boot, key.seq, "x".repeat((key.seq as usize * 37 + key.boot as usize) % 900))
}

fn append<M: Medium>(outbox: &mut Outbox<M>) -> Result<Key, OutboxError> {
    outbox.append(|key, out| out.push_str(&text(key)))
}

/// Takes out all that wait, checks each against what was put in, and gives their keys.
fn drain<M: Medium>(outbox: &mut Outbox<M>) -> Vec<Key> {
    let (mut keys, mut payload) = (vec![], vec![]);
    while let Some(key) = outbox.peek(&mut payload).unwrap() {
        assert_eq!(payload, text(key).as_bytes());
        outbox.delivered(key.seq);
        keys.push(key);
    }
    keys
}

#[test]
fn verdicts_come_out_in_order_with_the_start_that_wrote_them() {
    let disk = disk(16);
    let mut outbox = open(&disk);
    assert_eq!((outbox.boot(), outbox.pending(), outbox.next_seq()), (7, 0, 1));
    for seq in 1..=3 {
        assert_eq!(append(&mut outbox).unwrap(), Key { boot: 7, seq });
    }
    drop(outbox);
    let mut outbox = open(&disk);
    assert_eq!(append(&mut outbox).unwrap(), Key { boot: 8, seq: 4 });
    let expected = [(7, 1), (7, 2), (7, 3), (8, 4)].map(|(boot, seq)| Key { boot, seq });
    assert_eq!(drain(&mut outbox), expected);
    drop(outbox);
    let mut outbox = open(&disk);
    assert_eq!((outbox.pending(), outbox.next_seq(), outbox.dropped()), (0, 5, 0));
    assert_eq!(outbox.peek(&mut vec![]).unwrap(), None);
}

#[test]
fn the_oldest_gives_way_when_all_wait_and_is_counted_for_good() {
    let disk = disk(16);
    let mut outbox = open(&disk);
    (0..20).for_each(|_| {
        append(&mut outbox).unwrap();
    });
    assert_eq!((outbox.pending(), outbox.dropped()), (16, 4));
    disk.power_cut(|| 0);
    std::mem::forget(outbox);
    let mut outbox = open(&disk);
    assert_eq!((outbox.pending(), outbox.dropped()), (16, 4));
    assert_eq!(drain(&mut outbox).iter().map(|key| key.seq).collect::<Vec<_>>(), (5..=20).collect::<Vec<_>>());
    assert_eq!(outbox.dropped(), 4);
}

#[test]
fn an_acknowledgement_of_what_retention_dropped_forgets_nothing_else() {
    let mut outbox = open(&disk(16));
    (0..16).for_each(|_| {
        append(&mut outbox).unwrap();
    });
    let key = outbox.peek(&mut vec![]).unwrap().unwrap();
    append(&mut outbox).unwrap();
    outbox.delivered(key.seq);
    outbox.delivered(99);
    assert_eq!((outbox.pending(), outbox.dropped()), (16, 1));
}

#[test]
fn payloads_that_do_not_fit_are_refused_and_change_nothing() {
    let mut outbox = open(&disk(16));
    for bad in [0, MAX_PAYLOAD + 1] {
        let result = outbox.append(|_, out| out.push_str(&"x".repeat(bad)));
        assert!(matches!(result, Err(OutboxError::Payload(length)) if length == bad));
    }
    outbox.append(|_, out| out.push_str(&"x".repeat(MAX_PAYLOAD))).unwrap();
    let mut payload = vec![];
    assert_eq!(outbox.peek(&mut payload).unwrap().unwrap().seq, 1);
    assert_eq!(payload.len(), MAX_PAYLOAD);
}

#[test]
fn after_a_failed_sync_nothing_more_is_taken_until_it_is_opened_again() {
    for fail_in in [0, 1] {
        let disk = disk(16);
        let mut outbox = open(&disk);
        append(&mut outbox).unwrap();
        disk.0.lock().unwrap().fail_in = Some(fail_in);
        assert!(matches!(append(&mut outbox), Err(OutboxError::Io { .. })));
        disk.0.lock().unwrap().fail_in = None;
        assert!(matches!(append(&mut outbox), Err(OutboxError::Failed(_))));
        drop(outbox);
        let mut outbox = open(&disk);
        let seq = append(&mut outbox).unwrap().seq;
        // A sync that failed may yet have been a verdict: it is then delivered as any other, and lasts.
        assert_eq!(seq, if fail_in == 0 { 2 } else { 3 });
        std::mem::forget(outbox);
        disk.power_cut(|| 0);
        let seqs: Vec<u64> = drain(&mut open(&disk)).iter().map(|key| key.seq).collect();
        assert_eq!(seqs, (1..=seq).collect::<Vec<_>>());
    }
}

#[test]
fn any_damage_to_the_newest_slot_costs_that_verdict_alone() {
    let whole = disk(16);
    let mut outbox = open(&whole);
    (0..4).for_each(|_| {
        append(&mut outbox).unwrap();
    });
    std::mem::forget(outbox);
    let bytes = whole.0.lock().unwrap().durable.clone();
    let at = SLOTS_AT as usize + 4 * SLOT;
    let end = 48 + text(Key { boot: 7, seq: 4 }).len();
    for byte in 0..end {
        for cut in [false, true] {
            let mut bytes = bytes.clone();
            // Torn: what lay there before, from this byte on. Flipped: one byte of it.
            if cut {
                bytes[at + byte..at + SLOT].fill(0)
            } else {
                bytes[at + byte] ^= 0x55
            }
            let disk = Faulty::new(bytes);
            let mut outbox = open(&disk);
            assert_eq!(append(&mut outbox).unwrap(), Key { boot: 8, seq: 4 }, "{byte}");
            assert_eq!(drain(&mut outbox).iter().map(|key| key.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
        }
    }
}

#[test]
fn a_damaged_verdict_among_others_is_dropped_and_the_others_are_delivered() {
    let disk = disk(16);
    let mut outbox = open(&disk);
    (0..5).for_each(|_| {
        append(&mut outbox).unwrap();
    });
    drop(outbox);
    disk.0.lock().unwrap().cached[SLOTS_AT as usize + 3 * SLOT + 50] ^= 1;
    let mut outbox = open(&disk);
    let mut seen = vec![];
    loop {
        match outbox.peek(&mut vec![]) {
            Ok(Some(key)) => {
                outbox.delivered(key.seq);
                seen.push(key.seq);
            }
            Ok(None) => break,
            Err(OutboxError::Unreadable { seq, .. }) => outbox.give_up(seq),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((seen, outbox.dropped()), (vec![1, 2, 4, 5], 1));
}

#[test]
fn a_disk_that_cannot_be_read_for_a_while_costs_no_verdict() {
    let disk = disk(16);
    let mut outbox = open(&disk);
    (0..3).for_each(|_| _ = append(&mut outbox).unwrap());
    disk.0.lock().unwrap().unreadable = true;
    assert!(matches!(outbox.peek(&mut vec![]), Err(OutboxError::Io { .. })) && outbox.failed());
    assert!(Outbox::on(disk.clone(), Path::new("test")).is_err());
    disk.0.lock().unwrap().unreadable = false;
    drop(outbox);
    assert_eq!(drain(&mut open(&disk)).len(), 3);
}

#[test]
fn a_number_that_was_delivered_is_not_given_again_although_its_slot_is_gone() {
    let disk = disk(16);
    let mut outbox = open(&disk);
    (0..3).for_each(|_| {
        append(&mut outbox).unwrap();
    });
    drain(&mut outbox);
    drop(outbox);
    disk.0.lock().unwrap().cached[SLOTS_AT as usize + 3 * SLOT + 9] ^= 1;
    assert_eq!(append(&mut open(&disk)).unwrap().seq, 4);
}

#[test]
fn either_position_record_may_be_torn_and_not_both() {
    let disk = disk(16);
    let mut outbox = open(&disk);
    (0..3).for_each(|_| {
        append(&mut outbox).unwrap();
    });
    drain(&mut outbox);
    drop(outbox);
    let bytes = disk.0.lock().unwrap().durable.clone();
    for (record, byte) in [4096, 8192].into_iter().flat_map(|record| (0..48).map(move |byte| (record, byte))) {
        let mut bytes = bytes.clone();
        bytes[record + byte] ^= 0xff;
        let mut outbox = open(&Faulty::new(bytes));
        assert!(outbox.boot() >= 8 && append(&mut outbox).unwrap().seq == 4);
    }
    let mut bytes = bytes;
    (bytes[4096], bytes[8192]) = (bytes[4096] ^ 1, bytes[8192] ^ 1);
    let error = Outbox::on(Faulty::new(bytes), Path::new("test")).err().unwrap();
    assert!(matches!(error, OutboxError::Damaged { .. }), "{error}");
}

#[test]
fn files_that_are_no_outbox_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config = OutboxConfig { path: dir.path().join("outbox"), verdicts: 16 };
    let whole = {
        drop(Outbox::open(&config).unwrap());
        std::fs::read(&config.path).unwrap()
    };
    let mut foreign = whole.clone();
    foreign[3] ^= 1;
    let mut version = whole.clone();
    version[24] = 9;
    for bytes in [&[][..], b"SQLite format 3\0", &whole[..whole.len() - 1], &whole[..5000], &foreign, &version] {
        std::fs::write(&config.path, bytes).unwrap();
        let error = Outbox::open(&config).err().unwrap();
        assert!(error.to_string().contains("move it aside"), "{error}");
        assert_eq!(std::fs::read(&config.path).unwrap(), bytes);
    }
}

#[test]
fn two_stations_cannot_share_a_file_and_what_a_power_cut_left_of_making_it_is_used_up() {
    let dir = tempfile::tempdir().unwrap();
    let config = OutboxConfig { path: dir.path().join("outbox"), verdicts: 16 };
    std::fs::write(dir.path().join("outbox.new"), vec![7; 100_000]).unwrap();
    let mut outbox = Outbox::open(&config).unwrap();
    assert!(matches!(Outbox::open(&config), Err(OutboxError::InUse(_))));
    let boot = append(&mut outbox).unwrap().boot;
    assert!(boot > 3_000_000, "minutes since 2020: {boot}");
    drop(outbox);
    // The size of a file that is there holds.
    let mut outbox = Outbox::open(&OutboxConfig { verdicts: 32, ..config }).unwrap();
    assert_eq!((outbox.boot(), outbox.slots(), drain(&mut outbox).len()), (boot + 1, 16, 1));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_that_is_not_there_is_named_with_what_to_do() {
    let path = PathBuf::from("nowhere/at/all/outbox");
    let error = Outbox::open(&OutboxConfig { path, verdicts: 16 }).err().unwrap().to_string();
    assert!(error.contains("nowhere/at/all/outbox") && error.contains("check that its folder"), "{error}");
}

#[test]
fn values_out_of_range_are_named_with_what_is_allowed() {
    OutboxConfig::default().validate().unwrap();
    let error = OutboxConfig { verdicts: 15, ..OutboxConfig::default() }.validate().unwrap_err();
    assert!(error.contains("verdicts = 15") && error.contains("16 to"), "{error}");
    assert!(OutboxConfig { path: "/".into(), ..OutboxConfig::default() }.validate().is_err());
    assert!(toml::from_str::<OutboxConfig>("verdict = 3").is_err());
}

/// What happens to an outbox between two starts.
#[derive(Clone, Debug)]
enum Step {
    Append,
    Deliver,
    /// The next call but so many fails.
    Fail(u32),
    /// The process is killed: what was written stays.
    Kill,
    /// The power goes; two bits each say how much of the sectors that were not synced came to the disk.
    PowerCut(u64),
    Stop,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => Just(Step::Append),
        8 => Just(Step::Deliver),
        1 => (0_u32..4).prop_map(Step::Fail),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(Step::PowerCut),
        1 => Just(Step::Stop),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever fails and whenever: a verdict whose append returned is delivered, with its content, in order and without a
    /// gap, unless retention dropped and counted it; and nothing is delivered that was not appended.
    #[test]
    fn nothing_that_was_appended_is_lost(steps in steps()) {
        const SLOTS: u64 = 16;
        let disk = disk(SLOTS as u32);
        let mut held = Some(open(&disk));
        let (mut returned, mut seen) = (BTreeMap::new(), BTreeMap::new());
        let (mut payload, mut last_boot) = (Vec::new(), 7);
        for step in steps.into_iter().chain([Step::Stop]) {
            let end = !matches!(step, Step::Append | Step::Deliver | Step::Fail(_));
            match (step, &mut held) {
                (Step::Append, Some(outbox)) => {
                    let before = outbox.next_seq();
                    if let Ok(key) = append(outbox) {
                        prop_assert_eq!(key.seq, before);
                        prop_assert!(returned.insert(key.seq, key.boot).is_none(), "{} came twice", key.seq);
                    }
                }
                (Step::Deliver, Some(outbox)) => {
                    if let Some(key) = outbox.peek(&mut payload).unwrap() {
                        prop_assert_eq!(str::from_utf8(&payload), Ok(&text(key)[..]));
                        outbox.delivered(key.seq);
                        prop_assert_eq!(*seen.entry(key.seq).or_insert(key.boot), key.boot, "two verdicts {}", key.seq);
                    }
                }
                (Step::Fail(calls), _) => disk.0.lock().unwrap().fail_in = Some(calls),
                (Step::Stop, _) => held = None,
                (Step::Kill, _) => std::mem::forget(held.take()),
                (Step::PowerCut(bits), _) => {
                    std::mem::forget(held.take());
                    let mut turn = 0;
                    disk.power_cut(|| { turn += 2; (bits >> (turn % 64)) as u8 % 4 });
                }
                _ => {}
            }
            let failed = held.as_ref().is_none_or(Outbox::failed);
            if end || failed {
                disk.0.lock().unwrap().fail_in = None;
                drop(held.take());
                let outbox = open(&disk);
                prop_assert!(outbox.boot() > last_boot);
                last_boot = outbox.boot();
                held = Some(outbox);
            }
        }
        let mut outbox = held.unwrap();
        for key in drain(&mut outbox) {
            prop_assert_eq!(*seen.entry(key.seq).or_insert(key.boot), key.boot);
        }
        let end = outbox.next_seq();
        let missing: Vec<u64> = (1..end).filter(|seq| !seen.contains_key(seq)).collect();
        prop_assert!(missing.len() as u64 <= outbox.dropped(), "{missing:?} of {} dropped", outbox.dropped());
        for (seq, boot) in returned {
            prop_assert!(seq < end);
            prop_assert!(seen.get(&seq).is_none_or(|found| *found == boot), "{seq} was taken for another");
        }
        prop_assert!(seen.keys().all(|seq| *seq < end));
    }
}
