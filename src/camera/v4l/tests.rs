//! Each fault of a driver, played by the fake.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fake::{HEIGHT, MENU, Machine, NUMBER, Odd, Step, WIDTH, control};
use super::{Settings, V4l};
use crate::camera::pixels::{Layout, PixelFormat};
use crate::camera::{Camera, CameraError, Shot};
use crate::clock::Moment;

const LONG: Duration = Duration::from_secs(20);
const IMAGE: Step = Step::Image { fill: 0x42 };

fn settings() -> Settings {
    Settings {
        path: "/dev/video-test".into(),
        width: WIDTH as usize,
        height: HEIGHT as usize,
        format: PixelFormat::Grey,
        layout: Layout::of(PixelFormat::Grey),
        buffers: 4,
        rate: None,
        controls: BTreeMap::new(),
    }
}

fn try_camera(machine: &Machine, settings: Settings) -> Result<V4l, CameraError> {
    let machine = machine.clone();
    Ok(V4l::with_opener(settings, Box::new(move || machine.open()))?.retry_after(Duration::ZERO))
}

fn camera(machine: &Machine) -> V4l {
    try_camera(machine, settings()).unwrap()
}

fn shot() -> Shot {
    Shot::new(WIDTH as usize, HEIGHT as usize, 255)
}

/// After use: nothing of the kernel's rules was broken, and all was closed.
fn no_sins(machine: &Machine, camera: V4l) {
    drop(camera);
    let world = machine.world();
    assert!(world.sins.is_empty(), "{:?}", world.sins);
    assert_eq!(world.opened, world.closed);
}

fn refusal(machine: &Machine, settings: Settings) -> String {
    match try_camera(machine, settings) {
        Err(CameraError::Refused(why)) => {
            let world = machine.world();
            assert_eq!(world.opened, world.closed);
            why
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was accepted"),
    }
}

#[test]
fn images_come_with_their_count_and_stamp_and_every_buffer_goes_back() {
    let machine = Machine::new([IMAGE; 50]);
    let mut camera = camera(&machine);
    let mut shot = shot();
    let start = Moment::now();
    let mut last = start;
    for sequence in 0..50 {
        camera.next(&mut shot, LONG).unwrap();
        assert_eq!(shot.sequence, sequence);
        assert!(shot.taken > last && shot.taken <= Moment::now());
        assert!(shot.frame.pixels().iter().all(|&p| p == 0x42), "the padding of rows is no pixel");
        last = shot.taken;
    }
    assert!(camera.describe().contains("Fake") && camera.restarts() == 0);
    no_sins(&machine, camera);
}

#[test]
fn a_wait_in_vain_queues_nothing_again() {
    let machine = Machine::new([Step::Nothing, Step::Nothing, IMAGE]);
    let mut camera = camera(&machine);
    for _ in 0..2 {
        assert!(matches!(camera.next(&mut shot(), Duration::ZERO), Err(CameraError::Nothing(_))));
    }
    camera.next(&mut shot(), LONG).unwrap();
    assert_eq!(machine.world().opened, 1);
    no_sins(&machine, camera);
}

#[test]
fn interrupted_calls_and_false_alarms_are_repeated() {
    let machine = Machine::new([Step::Interrupt, Step::Spurious, Step::Interrupt, IMAGE, IMAGE]);
    machine.world().interrupts = true;
    let mut camera = camera(&machine);
    let mut shot = shot();
    camera.next(&mut shot, LONG).unwrap();
    camera.next(&mut shot, LONG).unwrap();
    assert_eq!((shot.sequence, camera.restarts()), (1, 0));
    no_sins(&machine, camera);
}

#[test]
fn a_gap_in_the_count_is_seen_by_the_caller() {
    let machine = Machine::new([IMAGE, Step::Skip(3), IMAGE]);
    let mut camera = camera(&machine);
    let mut shot = shot();
    let counts: Vec<u32> = (0..3).map(|_| camera.next(&mut shot, LONG).map(|()| shot.sequence).unwrap()).collect();
    assert_eq!(counts, [0, 4, 5]);
    no_sins(&machine, camera);
}

#[test]
fn what_a_driver_says_wrongly_of_an_image_makes_it_damaged_and_the_stream_goes_on() {
    for (odd, word) in [
        (Odd::Flagged, "marked"),
        (Odd::Short, "cut off"),
        (Odd::Huge, "larger"),
        (Odd::SameSequence, "stale"),
        (Odd::Backwards, "stale"),
        (Odd::SameStamp, "stale"),
        (Odd::Future, "future"),
    ] {
        let machine = Machine::new([IMAGE, Step::Spoilt(odd), IMAGE, IMAGE]);
        let mut camera = camera(&machine);
        let mut shot = shot();
        camera.next(&mut shot, LONG).unwrap();
        match camera.next(&mut shot, LONG) {
            Err(CameraError::Damaged { why, .. }) => assert!(why.contains(word), "{odd:?}: {why}"),
            other => panic!("{odd:?}: {other:?}"),
        }
        // A count or a stamp that goes on is believed again, after one from the future when time has come so far.
        if odd != Odd::Future {
            camera.next(&mut shot, LONG).unwrap();
            camera.next(&mut shot, LONG).unwrap();
        }
        assert_eq!(camera.restarts(), 0);
        no_sins(&machine, camera);
    }
}

#[test]
fn another_clock_is_replaced_by_the_moment_of_arrival() {
    let machine = Machine::new([IMAGE, Step::Spoilt(Odd::NoStamp), IMAGE]);
    let mut camera = camera(&machine);
    let mut shot = shot();
    for _ in 0..3 {
        let before = Moment::now();
        camera.next(&mut shot, LONG).unwrap();
        assert!(shot.taken >= before && shot.taken <= Moment::now());
    }
    no_sins(&machine, camera);
}

#[test]
fn a_stamp_just_ahead_counts_as_now() {
    let machine = Machine::new([IMAGE, Step::Spoilt(Odd::Early)]);
    let mut camera = camera(&machine);
    let mut shot = shot();
    camera.next(&mut shot, LONG).unwrap();
    let before = Moment::now();
    camera.next(&mut shot, LONG).unwrap();
    assert!(shot.taken >= before && shot.taken <= Moment::now());
    no_sins(&machine, camera);
}

#[test]
fn a_device_that_breaks_is_closed_and_opened_again_and_the_restart_shows() {
    for fault in [
        Step::DequeueFails(libc::EIO),
        Step::DequeueFails(libc::ENODEV),
        Step::DequeueFails(libc::EINVAL),
        Step::PollError,
        Step::WaitFails(libc::ENODEV),
        Step::Spoilt(Odd::NoSuchBuffer),
    ] {
        let machine = Machine::new([IMAGE, IMAGE, fault, IMAGE]);
        let mut camera = camera(&machine);
        let mut shot = shot();
        camera.next(&mut shot, LONG).unwrap();
        camera.next(&mut shot, LONG).unwrap();
        match camera.next(&mut shot, LONG) {
            Err(CameraError::Lost(why)) => assert!(why.contains("/dev/video-test") && why.contains("cable"), "{why}"),
            other => panic!("{fault:?}: {other:?}"),
        }
        assert_eq!(machine.world().closed, 1, "{fault:?}: closed at once");
        // Unplugged: not there twice, then it is.
        machine.world().absent.extend([libc::ENOENT, libc::ENODEV]);
        for _ in 0..2 {
            match camera.next(&mut shot, LONG) {
                Err(CameraError::Lost(why)) => assert!(why.contains("plug it in"), "{why}"),
                other => panic!("{fault:?}: {other:?}"),
            }
            assert_eq!(camera.restarts(), 0);
        }
        camera.next(&mut shot, LONG).unwrap();
        assert_eq!((shot.sequence, camera.restarts(), machine.world().started), (0, 1, 2), "{fault:?}");
        no_sins(&machine, camera);
    }
}

#[test]
fn an_image_whose_buffer_cannot_go_back_is_still_given() {
    let machine = Machine::new([Step::QueueFails, IMAGE]);
    let mut camera = camera(&machine);
    let mut shot = shot();
    camera.next(&mut shot, LONG).unwrap();
    assert!(matches!(camera.next(&mut shot, LONG), Err(CameraError::Lost(_))));
    camera.next(&mut shot, LONG).unwrap();
    assert_eq!(camera.restarts(), 1);
    no_sins(&machine, camera);
}

#[test]
fn a_camera_that_is_not_there_yet_is_waited_for_but_not_longer_than_asked() {
    let machine = Machine::new([IMAGE]);
    machine.world().absent.extend([libc::ENOENT; 2]);
    let opener = machine.clone();
    let mut camera = V4l::with_opener(settings(), Box::new(move || opener.open())).unwrap();
    assert!(camera.describe().contains("not there yet"));
    // Its time has not come: it is not even looked for.
    assert!(matches!(camera.next(&mut shot(), Duration::ZERO), Err(CameraError::Lost(_))));
    assert_eq!(machine.world().absent.len(), 1);
    let mut camera = camera.retry_after(Duration::ZERO);
    assert!(matches!(camera.next(&mut shot(), Duration::ZERO), Err(CameraError::Lost(_))));
    camera.next(&mut shot(), LONG).unwrap();
    assert_eq!(camera.restarts(), 0, "the first opening is no restart");
    no_sins(&machine, camera);
}

#[test]
fn every_reason_why_it_cannot_be_opened_has_its_remedy() {
    for (errno, word) in [
        (libc::ENOENT, "plug it in"),
        (libc::EACCES, "group `video`"),
        (libc::EBUSY, "another program"),
        (libc::EMFILE, "opening"),
    ] {
        let machine = Machine::new([]);
        machine.world().absent.extend([errno; 2]);
        match camera(&machine).next(&mut shot(), Duration::ZERO) {
            Err(CameraError::Lost(why)) => assert!(why.contains(word), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_format_that_is_not_granted_to_the_letter_is_refused_and_both_are_named() {
    let exact =
        super::Granted { width: WIDTH, height: HEIGHT, fourcc: PixelFormat::Grey.fourcc(), ..Default::default() };
    let exact = super::Granted { stride: 12, size: 48, progressive: true, ..exact };
    for (granted, word) in [
        (super::Granted { width: 640, height: 360, ..exact }, "640×360 GREY"),
        (super::Granted { fourcc: PixelFormat::Y16.fourcc(), ..exact }, "8×4 Y16"),
        (super::Granted { fourcc: 0, ..exact }, "????"),
        (super::Granted { progressive: false, ..exact }, "interlaced"),
        (super::Granted { stride: 7, ..exact }, "too few"),
        (super::Granted { size: 43, ..exact }, "too few"),
        (super::Granted { stride: u32::MAX, size: u32::MAX, ..exact }, "too few"),
    ] {
        let machine = Machine::new([]);
        machine.world().granted = Some(granted);
        let why = refusal(&machine, settings());
        assert!(why.contains("8×4 GREY") && why.contains(word), "{why}");
    }
    // A driver that does not say how long its rows are packs them.
    let machine = Machine::new([IMAGE]);
    machine.world().granted = Some(super::Granted { stride: 0, size: 32, ..exact });
    camera(&machine).next(&mut shot(), LONG).unwrap();
}

#[test]
fn fewer_buffers_are_taken_and_too_few_refused() {
    for buffers in [0, 1, 33, u32::MAX] {
        let machine = Machine::new([]);
        machine.world().buffers = Some(buffers);
        assert!(refusal(&machine, settings()).contains(&format!("driver gives {buffers}")));
    }
    let machine = Machine::new([IMAGE; 9]);
    machine.world().buffers = Some(2);
    let mut camera = camera(&machine);
    for _ in 0..9 {
        camera.next(&mut shot(), LONG).unwrap();
    }
    no_sins(&machine, camera);
}

#[test]
fn what_captures_no_video_is_refused() {
    let machine = Machine::new([]);
    machine.world().identity.streams = false;
    assert!(refusal(&machine, settings()).contains("single-planar"));
}

#[test]
fn a_rate_that_is_not_kept_is_refused() {
    let machine = Machine::new([IMAGE]);
    let asks = Settings { rate: Some(30.0), ..settings() };
    machine.world().rate = Some(29.97);
    try_camera(&machine, asks.clone()).unwrap();
    machine.world().rate = Some(25.0);
    let why = refusal(&machine, asks);
    assert!(why.contains("asks for 30 ") && why.contains("gives 25.000"), "{why}");
}

#[test]
fn controls_are_set_switches_first_and_what_the_driver_changes_is_refused() {
    let asks = |name: &str, value| Settings {
        controls: [("a_exposure".to_owned(), 300), (name.to_owned(), value)].into(),
        ..settings()
    };
    let machine = Machine::new([]);
    machine.world().controls = vec![control(1, "a_exposure", NUMBER, 1000), control(2, "mode", MENU, 3)];
    try_camera(&machine, asks("mode", 1)).unwrap();
    assert_eq!(machine.world().set, [("mode".to_owned(), 1), ("a_exposure".to_owned(), 300)]);
    let why = refusal(&machine, asks("gain", 1));
    assert!(why.contains("no control `gain`") && why.contains("a_exposure, mode"), "{why}");
    assert!(refusal(&machine, asks("mode", 4)).contains("0 to 3"));
    machine.world().rounding = 7;
    let why = refusal(&machine, asks("mode", 0));
    assert!(why.contains("a_exposure = 300") && why.contains("makes it 294"), "{why}");
}
