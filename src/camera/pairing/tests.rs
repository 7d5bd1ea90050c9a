//! The truth about which frame shows which cell, against what the pairer says.

use super::line::{Chances, Event, MS, line};
use super::*;
use crate::camera::trigger::CellId;

#[derive(Debug, Default)]
struct Report {
    paired: u64,
    wrong: Vec<(Trigger, u64)>,
    triggers: u64,
    triggers_told: u64,
    frames: u64,
    frames_told: u64,
    slowest: Duration,
}

/// Plays events to a pairer, and checks that each trigger and each frame is decided once.
fn play(events: &[(Moment, Event)], mut pairer: Pairer) -> Report {
    let mut report = Report::default();
    let mut shows = [None; 64];
    let mut taken_at = [Moment::default(); 64];
    let mut next_slot = 0;
    let end = events.last().unwrap().0 + Duration::from_secs(10);
    let told =
        |decision: Decision, now: Moment, shows: &mut [Option<u64>; 64], taken: &[Moment; 64], report: &mut Report| {
            let (trigger, slot, pair) = match decision {
                Decision::Pair(trigger, slot) => (Some(trigger), Some(slot), true),
                Decision::Refused(trigger, slot, _) => (trigger, slot, false),
            };
            report.triggers_told += u64::from(trigger.is_some());
            if let Some(slot) = slot {
                let cell = shows[slot].take().expect("a slot is told once");
                report.frames_told += 1;
                report.slowest = report.slowest.max(now.since(taken[slot]));
                if let (true, Some(trigger)) = (pair, trigger) {
                    report.paired += 1;
                    if trigger.cell != Some(CellId::number(cell)) {
                        report.wrong.push((trigger, cell));
                    }
                }
            }
        };
    for (now, event) in events.iter().map(|(now, event)| (*now, Some(event))).chain([(end, None)]) {
        while let Some(wake) = pairer.wake().filter(|wake| *wake <= now) {
            let mut any = false;
            while let Some(decision) = pairer.next(wake) {
                any = true;
                told(decision, wake, &mut shows, &taken_at, &mut report);
            }
            if !any {
                break;
            }
        }
        match event {
            Some(Event::Trigger(trigger)) => report.triggers += u64::from(pairer.trigger(*trigger)),
            Some(Event::Frame { sequence, taken, shows: cell }) => {
                assert_eq!(shows[next_slot], None, "64 frames wait");
                (shows[next_slot], taken_at[next_slot]) = (Some(*cell), *taken);
                pairer.frame(next_slot, *sequence, *taken);
                report.frames += 1;
                next_slot = (next_slot + 1) % 64;
            }
            Some(Event::CameraRestarted) => pairer.camera_restarted(),
            None => {}
        }
        while let Some(decision) = pairer.next(now) {
            told(decision, now, &mut shows, &taken_at, &mut report);
        }
    }
    assert_eq!((report.triggers, report.frames), (report.triggers_told, report.frames_told), "all are told, and once");
    assert!(pairer.wake().is_none());
    report
}

fn pairer() -> Pairer {
    Pairer::new(&PairingConfig::default(), true)
}

#[test]
fn a_line_without_faults_is_paired_from_the_ninth_cell_on() {
    let report = play(&line(10_000, &Chances::default(), 1), pairer());
    assert_eq!((report.paired, report.wrong), (10_000 - 8, vec![]));
    assert!(report.slowest <= pairer().patience() + Duration::from_millis(8), "{:?}", report.slowest);
}

/// Each fault alone, and what it costs at most.
#[test]
fn no_single_kind_of_fault_gives_a_frame_its_neighbours_name() {
    let base = Chances::default();
    for (name, chances, least) in [
        ("trigger lost", Chances { trigger_lost: 20, ..base }, 0.97),
        ("trigger doubled", Chances { trigger_doubled: 20, ..base }, 0.99),
        ("trigger late", Chances { trigger_late: 20, ..base }, 0.85),
        ("trigger late, stamped", Chances { trigger_late: 20, stamped: true, ..base }, 0.97),
        ("stall of three", Chances { stall: Some((5, 3)), ..base }, 0.96),
        ("long stall, stamped", Chances { stall: Some((2, 50)), stamped: true, ..base }, 0.85),
        ("triggers swapped", Chances { triggers_swapped: 20, ..base }, 0.9),
        ("frame lost", Chances { frame_lost: 20, ..base }, 0.97),
        ("frame doubled", Chances { frame_doubled: 10, ..base }, 0.9),
        ("frames swapped", Chances { frames_swapped: 50, ..base }, 0.99),
        ("camera restarts", Chances { camera_restarts: 5, ..base }, 0.95),
        ("sender restarts", Chances { sender_restarts: 5, stamped: true, ..base }, 0.85),
    ] {
        let cells = 20_000;
        let report = play(&line(cells, &chances, 2), pairer());
        assert_eq!(report.wrong, [], "{name}");
        let share = report.paired as f64 / cells as f64;
        assert!(share > least, "{name}: {share}");
    }
}

#[test]
fn a_hundred_thousand_cells_with_every_fault_and_not_one_under_a_wrong_name() {
    // `CELLGATE_LINES=200` for the long form: 20 million cells.
    let lines = std::env::var("CELLGATE_LINES").ok().and_then(|lines| lines.parse().ok()).unwrap_or(3);
    for seed in 0..lines {
        let stamped = seed % 2 == 1;
        let chances = Chances {
            trigger_lost: 10,
            trigger_doubled: 10,
            trigger_late: 10,
            stall: Some((2, if stamped { 30 } else { 3 })),
            triggers_swapped: 5,
            frame_lost: 10,
            frame_doubled: 10,
            frames_swapped: 10,
            camera_restarts: 1,
            sender_restarts: 1,
            stamped,
        };
        let cells = 100_000;
        let report = play(&line(cells, &chances, seed), pairer());
        assert_eq!(report.wrong, [], "seed {seed}");
        let share = report.paired as f64 / cells as f64;
        assert!(share > 0.7, "seed {seed}: it recovers by itself: {share}");
    }
}

/// The guard is what the last test says it is: without it the test fails.
#[test]
fn without_counts_a_late_trigger_does_name_the_neighbour() {
    let config = PairingConfig { require_number: false, ..PairingConfig::default() };
    let mut events = line(20_000, &Chances { trigger_late: 50, ..Chances::default() }, 6);
    for (_, event) in &mut events {
        if let Event::Trigger(trigger) = event {
            trigger.number = None;
        }
    }
    assert!(!play(&events, Pairer::new(&config, true)).wrong.is_empty());
    let strict = play(&events, pairer());
    assert_eq!((strict.paired, strict.wrong), (0, vec![]), "by default nothing is believed without a number");
}

#[test]
fn a_road_that_is_late_for_good_by_one_takt_moves_no_name() {
    let chances = Chances { stall: Some((3, 600)), stamped: true, ..Chances::default() };
    let report = play(&line(20_000, &chances, 8), pairer());
    assert_eq!(report.wrong, []);
    assert!(report.paired > 1000, "{}", report.paired);
}

#[test]
fn a_storm_of_triggers_or_frames_is_refused_cell_by_cell() {
    let mut events = Vec::new();
    for index in 0..500_u32 {
        let at = Moment::from_nanos(1000 * MS + u64::from(index) * 10_000);
        let trigger = Trigger { cell: Some(CellId::number(index.into())), at, number: Some(index), sent_ms: None };
        events.push((at, Event::Trigger(trigger)));
    }
    let report = play(&events, pairer());
    assert_eq!((report.triggers, report.paired), (500, 0));
    let mut pairer = pairer();
    for index in 0..200 {
        let mut told = 0;
        pairer.frame(index, index as u32, Moment::from_nanos(1000 * MS));
        while let Some(decision) = pairer.next(Moment::from_nanos(1000 * MS)) {
            assert!(matches!(decision, Decision::Refused(None, Some(_), Doubt::Storm)));
            told += 1;
        }
        assert_eq!(told, u32::from(index >= FRAMES));
    }
}

#[test]
fn stamps_of_the_kernel_are_paired_by_time_and_count() {
    let events = line(5000, &Chances { trigger_lost: 20, frame_lost: 20, ..Chances::default() }, 7);
    let report = play(&events, Pairer::new(&PairingConfig::default(), false));
    assert_eq!(report.wrong, []);
    assert!(report.paired > 4600, "{}", report.paired);
}
