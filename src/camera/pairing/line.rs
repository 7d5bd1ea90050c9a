//! A line with faults, for tests: the cells pass, and who hears what of it and when.

use std::time::Duration;

use rand_chacha::rand_core::Rng;

use crate::camera::trigger::{CellId, Trigger};
use crate::clock::Moment;
use crate::sampling;

/// A millisecond in nanoseconds.
pub const MS: u64 = 1_000_000;
/// Time between two cells.
pub const TAKT: u64 = 333 * MS;

/// What goes wrong, each with its chance in a thousand cells.
#[derive(Clone, Copy, Default)]
pub struct Chances {
    pub trigger_lost: u64,
    pub trigger_doubled: u64,
    /// Late by up to three takts, every second time by whole ones.
    pub trigger_late: u64,
    /// So many triggers in a row are late by just one takt.
    pub stall: Option<(u64, u64)>,
    pub triggers_swapped: u64,
    pub frame_lost: u64,
    /// Exposed again, near or between.
    pub frame_doubled: u64,
    pub frames_swapped: u64,
    pub camera_restarts: u64,
    pub sender_restarts: u64,
    /// The sender says its time.
    pub stamped: bool,
}

pub enum Event {
    Trigger(Trigger),
    Frame { sequence: u32, taken: Moment, shows: u64 },
    CameraRestarted,
}

/// The cells pass; who hears what, and when.
pub fn line(cells: u64, chances: &Chances, seed: u64) -> Vec<(Moment, Event)> {
    let mut rng = sampling::generator(seed);
    let mut below = move |n: u64| rng.next_u64() % n;
    let mut events = Vec::new();
    let (mut sequence, mut number, mut stalled) = (7_u32, 0_u32, 0_u64);
    let (mut sender_zero, mut swap_trigger, mut swap_frame) = (0_u64, 0_u64, 0_u64);
    for cell in 0..cells {
        let mut hit = |chance: u64| chance > 0 && below(1000) < chance;
        let lies = Moment::from_nanos(1_000 * MS + cell * TAKT);
        // It takes a minute to boot, and connects anew, which ends a stall.
        if hit(chances.sender_restarts) && lies.as_nanos() / MS > sender_zero + 60_000 {
            (number, sender_zero, stalled) = (0, lies.as_nanos() / MS, 0);
        }
        number += 1;
        let id = CellId::number(cell);
        let (lost, doubled, late) =
            (hit(chances.trigger_lost), hit(chances.trigger_doubled), hit(chances.trigger_late));
        let swapped = hit(chances.triggers_swapped);
        let (frame_lost, frame_doubled) = (hit(chances.frame_lost), hit(chances.frame_doubled));
        let (frame_swapped, camera_restarted) = (hit(chances.frames_swapped), hit(chances.camera_restarts));
        if let Some((chance, length)) = chances.stall
            && stalled == 0
            && hit(chance)
        {
            stalled = length;
        }
        let mut road = below(5 * MS);
        if late {
            road += if below(2) == 0 { (1 + below(3)) * TAKT } else { below(3 * TAKT) };
        }
        if stalled > 0 {
            (stalled, road) = (stalled - 1, road + TAKT);
        }
        // Two that overtake each other: this one comes a little after the next.
        if swap_trigger > 0 {
            swap_trigger = 0;
        } else if swapped {
            (swap_trigger, road) = (1, TAKT + 6 * MS);
        }
        let sent_ms = chances.stamped.then(|| lies.as_nanos() / MS - sender_zero);
        let at = Moment::from_nanos(lies.as_nanos() + road);
        let trigger = Trigger { cell: Some(id), at, number: Some(number), sent_ms };
        if !lost {
            events.push((at, Event::Trigger(trigger)));
            if doubled {
                let again = at + Duration::from_nanos(below(400 * MS));
                events.push((again, Event::Trigger(Trigger { at: again, ..trigger })));
            }
        }
        if camera_restarted {
            sequence = 0;
            events.push((lies, Event::CameraRestarted));
        }
        sequence = sequence.wrapping_add(1);
        let taken = lies + Duration::from_nanos(below(8 * MS));
        let mut comes = taken + Duration::from_nanos(20 * MS + below(20 * MS));
        if swap_frame > 0 {
            swap_frame = 0;
        } else if frame_swapped {
            (swap_frame, comes) = (1, taken + Duration::from_nanos(55 * MS));
        }
        if !frame_lost {
            events.push((comes, Event::Frame { sequence, taken, shows: cell }));
        }
        if frame_doubled {
            sequence = sequence.wrapping_add(1);
            // As long as this cell lies there.
            let taken = taken + Duration::from_nanos(2 * MS + below(2) * below(TAKT - 60 * MS));
            let comes = taken + Duration::from_nanos(30 * MS);
            events.push((comes, Event::Frame { sequence, taken, shows: cell }));
        }
    }
    events.sort_by_key(|(moment, _)| *moment);
    events
}
