//! The fail-safe rules, each provoked; and a line of cells whose name is readable in their image.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::time::Instant;

use super::desk::DeskSettings;
use super::ledger::Ledger;
use super::scribe::{Listener, Told};
use super::status::Thumbnail;
use super::*;
use crate::backbone::Identity;
use crate::camera::Format;
use crate::camera::pairing::line::{Chances, Event, line};
use crate::camera::pairing::{Pairer, PairingConfig};
use crate::camera::trigger::CellId;
use crate::frame::Frame;
use crate::outbox::{Key, OutboxError};
use crate::synth::{draw_id, read_id};
use crate::verdict::payload::{self, About};
use crate::verdict::{Class, Outcome};

const SIDE: usize = 64;

/// A ledger in memory that can be told to fail.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    written: Vec<serde_json::Value>,
    failing: bool,
    slow: Duration,
    reopened: u32,
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap()
    }

    fn written(&self) -> Vec<serde_json::Value> {
        self.pages().written.clone()
    }

    /// Outcome or reason of each verdict so far.
    fn words(&self) -> Vec<String> {
        let word = |line: &serde_json::Value| {
            let reason = line["reason"].as_str();
            reason.unwrap_or_else(|| line["outcome"].as_str().unwrap()).to_owned()
        };
        self.pages().written.iter().map(word).collect()
    }
}

impl Ledger for Book {
    fn append(&mut self, write: &mut dyn FnMut(Key, &mut String)) -> Result<Key, OutboxError> {
        let slow = self.pages().slow;
        std::thread::sleep(slow);
        let mut pages = self.pages();
        if pages.failing {
            return Err(OutboxError::Failed("book".into()));
        }
        let key = Key { boot: 1, seq: pages.written.len() as u64 + 1 };
        let mut text = String::with_capacity(payload::MAX_BYTES);
        write(key, &mut text);
        assert!(text.len() <= payload::MAX_BYTES);
        pages.written.push(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")));
        Ok(key)
    }

    fn reopen(&mut self) -> Result<(), OutboxError> {
        let mut pages = self.pages();
        pages.reopened += 1;
        if pages.failing { Err(OutboxError::Failed("book".into())) } else { Ok(()) }
    }

    fn boot(&self) -> u32 {
        1
    }

    fn pending(&self) -> u64 {
        0
    }

    fn dropped(&self) -> u64 {
        0
    }
}

/// A camera that a test feeds.
struct Fed {
    shots: mpsc::Receiver<Result<(u32, u32), CameraError>>,
    restarts: Arc<AtomicUsize>,
}

impl Camera for Fed {
    fn format(&self) -> Format {
        Format { width: SIDE, height: SIDE, white: 255 }
    }

    fn next(&mut self, shot: &mut Shot, patience: Duration) -> Result<(), CameraError> {
        match self.shots.recv_timeout(patience.min(Duration::from_millis(20))) {
            Ok(Ok((sequence, id))) => {
                draw(&mut shot.frame, id);
                (shot.sequence, shot.taken) = (sequence, Moment::now());
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(CameraError::Nothing(patience)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(CameraError::End),
        }
    }

    fn describe(&self) -> String {
        "a test's camera".into()
    }

    fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed) as u64
    }
}

fn draw(frame: &mut Frame, id: u32) {
    frame.pixels_mut().fill(0);
    draw_id(frame, id);
}

/// Reads the id in the frame and passes the cell; the id is the verdict's score. Ids of a certain kind make trouble.
struct Reader;

const SLOW: u32 = 1_000_000;
const PANICS: u32 = 2_000_000;

impl Judge for Reader {
    fn judge(&mut self, frame: &mut Frame, _: &mut Thumbnail) -> Verdict {
        let id = read_id(frame).expect("an id strip");
        if id == PANICS {
            panic!("as the test wants");
        }
        if id >= SLOW {
            std::thread::sleep(SLOWLY);
        }
        Verdict { score: Some(id as f32), outcome: Outcome::Pass(Class::A), ..Verdict::invalid(Invalid::NotMeasured) }
    }
}

/// What the reject line was told.
#[derive(Clone, Default)]
struct Lamp(Arc<Mutex<Vec<&'static str>>>);

impl Listener for Lamp {
    fn told(&mut self, told: &Told<'_>) {
        let word = told.outcome.word();
        self.0.lock().unwrap().push(if told.newest { word } else { "overtaken" });
    }
}

struct Bench {
    feed: Option<mpsc::Sender<Result<(u32, u32), CameraError>>>,
    restarts: Arc<AtomicUsize>,
    book: Book,
    lamp: Lamp,
    station: Station,
}

/// Longer than anything takes that is not slow on purpose, on a machine that is busy with other things.
const TAKT: Duration = Duration::from_secs(20);
/// Where the judge shall be late.
const SHORT: Duration = Duration::from_millis(300);
/// How long a slow judge takes.
const SLOWLY: Duration = Duration::from_millis(1500);

fn about() -> About<'static> {
    About { id: None, stamp: None, model: Identity([7; 32]), grid: 64, cell_mm: None }
}

fn bench(slots: usize, takt: Duration) -> Bench {
    let (feed, shots) = mpsc::channel();
    let (restarts, book, lamp) = (Arc::new(AtomicUsize::new(0)), Book::default(), Lamp::default());
    let camera = Box::new(Fed { shots, restarts: Arc::clone(&restarts) });
    let desk = Desk::new(DeskSettings { slots, takt }, None, None);
    let takt = takt + Duration::from_secs(1);
    let scribe = Scribe::new(Box::new(book.clone()), Some(Box::new(lamp.clone())), about(), takt);
    let (on_start, beat): (Box<_>, Beat) = (Box::new(|_| ()), Box::new(|_| ()));
    let parts = Parts { camera, judge: Box::new(Reader), desk, scribe, slots, on_start, beat };
    Bench { feed: Some(feed), restarts, book, lamp, station: Station::start(parts).unwrap() }
}

impl Bench {
    fn frame(&self, sequence: u32, id: u32) {
        self.feed.as_ref().unwrap().send(Ok((sequence, id))).unwrap();
    }

    fn fails(&self, error: CameraError) {
        self.feed.as_ref().unwrap().send(Err(error)).unwrap();
    }

    /// Waits until so many verdicts are there.
    fn wait(&self, count: usize) {
        let started = Instant::now();
        while self.book.pages().written.len() < count {
            assert!(started.elapsed() < Duration::from_secs(30), "{:?}", self.book.words());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// No more frames; all verdicts.
    fn end(mut self) -> (Vec<serde_json::Value>, Status) {
        drop(self.feed.take());
        let started = Instant::now();
        while !self.station.is_done() {
            assert!(started.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = self.station.line().status();
        self.station.stop();
        (self.book.written(), status)
    }
}

#[test]
fn every_frame_is_a_cell_and_has_one_verdict_in_order() {
    let bench = bench(4, TAKT);
    for id in 0..200 {
        bench.frame(id, id);
        bench.wait(id as usize + 1);
    }
    let (written, status) = bench.end();
    assert_eq!(written.len(), 200);
    for (index, line) in written.iter().enumerate() {
        assert_eq!(line["id"], format!("#{}", index + 1));
        assert_eq!((&line["outcome"], &line["score"]), (&"PASS".into(), &(index as f64).into()));
        assert_eq!(line["seq"], index as u64 + 1);
    }
    assert_eq!((status.total.a, status.total.cells()), (200, 200));
}

#[test]
fn a_judge_that_is_late_gives_invalid_deadline_on_time_and_its_word_counts_no_more() {
    let bench = bench(4, SHORT);
    let started = Instant::now();
    bench.frame(0, SLOW + 1);
    bench.wait(1);
    assert!(started.elapsed() < SLOWLY, "the clock does not wait for the judge");
    assert_eq!(bench.book.words(), ["deadline"]);
    std::thread::sleep(SLOWLY);
    bench.frame(1, 5);
    bench.wait(2);
    let lamp = bench.lamp.clone();
    let (written, status) = bench.end();
    assert_eq!(written.len(), 2, "the late word is dropped");
    assert_eq!(written[1]["outcome"], "PASS");
    assert_eq!(status.faults.deadlines, 1);
    assert_eq!(*lamp.0.lock().unwrap(), ["INVALID", "PASS"]);
}

#[test]
fn a_judge_that_panics_costs_one_cell() {
    let bench = bench(4, TAKT);
    for (sequence, id) in [(0, 1), (1, PANICS), (2, 3)] {
        bench.frame(sequence, id);
        bench.wait(sequence as usize + 1);
    }
    assert_eq!(bench.book.words(), ["PASS", "internal", "PASS"]);
}

#[test]
fn frames_without_room_are_told_too() {
    let bench = bench(2, SHORT);
    for sequence in 0..40 {
        bench.frame(sequence, SLOW + sequence);
    }
    let (written, status) = bench.end();
    assert_eq!(written.len(), 40);
    assert!(written.iter().all(|line| line["outcome"] == "INVALID"));
    assert!(status.faults.overruns > 20, "{:?}", status.faults);
    let ids: std::collections::BTreeSet<_> = written.iter().map(|line| line["id"].to_string()).collect();
    assert_eq!(ids.len(), 40, "each under a name of its own");
}

#[test]
fn a_gap_in_the_cameras_count_is_a_cell_each() {
    let bench = bench(4, TAKT);
    for (index, sequence) in [10, 11, 14, 15].into_iter().enumerate() {
        bench.frame(sequence, sequence);
        bench.wait([1, 2, 5, 6][index]);
    }
    assert_eq!(bench.book.words(), ["PASS", "PASS", "lost-frame", "lost-frame", "PASS", "PASS"]);
    assert_eq!(bench.station.line().status().faults.lost_frames, 2);
}

#[test]
fn a_damaged_frame_is_invalid_and_the_next_is_judged() {
    let bench = bench(4, TAKT);
    bench.frame(0, 1);
    bench.wait(1);
    bench.fails(CameraError::Damaged { sequence: 1, taken: Moment::now(), why: "half of it is missing" });
    bench.wait(2);
    bench.frame(2, 3);
    bench.wait(3);
    assert_eq!(bench.book.words(), ["PASS", "damaged", "PASS"]);
}

#[test]
fn a_camera_that_is_pulled_and_put_back_goes_on() {
    let bench = bench(4, TAKT);
    bench.frame(500, 1);
    bench.wait(1);
    bench.fails(CameraError::Lost("pulled".into()));
    bench.restarts.store(1, Ordering::Relaxed);
    bench.frame(0, 2);
    bench.wait(2);
    assert_eq!(bench.book.words(), ["PASS", "PASS"]);
    let status = bench.station.line().status();
    assert_eq!((status.camera, status.faults.camera_restarts, status.faults.lost_frames), (Health::Up, 1, 0));
}

#[test]
fn what_cannot_be_made_durable_is_not_told_and_the_reject_line_says_reject() {
    let bench = bench(4, TAKT);
    bench.frame(0, 1);
    bench.wait(1);
    bench.book.pages().failing = true;
    bench.frame(1, 2);
    let started = Instant::now();
    while bench.lamp.0.lock().unwrap().len() < 2 {
        assert!(started.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(2));
    }
    let up = |health| {
        let started = Instant::now();
        while bench.station.line().status().outbox != health {
            assert!(started.elapsed() < Duration::from_secs(30), "{health:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    up(Health::Down);
    bench.book.pages().failing = false;
    // By itself, before another cell comes: a PLC that is told "not ready" sends none.
    up(Health::Up);
    bench.frame(2, 3);
    bench.wait(2);
    let (lamp, book) = (bench.lamp.clone(), bench.book.clone());
    let (written, status) = bench.end();
    assert_eq!(written.iter().map(|line| line["score"].as_f64().unwrap()).collect::<Vec<_>>(), [1.0, 3.0]);
    assert_eq!((status.outbox, status.faults.unwritten), (Health::Up, 1));
    assert_eq!(*lamp.0.lock().unwrap(), ["PASS", "INVALID", "PASS"]);
    assert!(book.pages().reopened >= 2, "at once, and again until it works");
}

/// A disk that takes its time holds up nobody but the verdicts, and no PASS comes of it that is too late for its cell.
#[test]
fn a_slow_disk_delays_neither_frames_nor_deadlines_and_passes_no_later_cell() {
    let bench = bench(4, 3 * SHORT);
    bench.book.pages().slow = SLOWLY;
    bench.frame(0, 1);
    std::thread::sleep(Duration::from_millis(50));
    bench.frame(1, 2);
    bench.frame(2, SLOW + 3);
    bench.wait(3);
    assert_eq!(bench.book.words(), ["PASS", "PASS", "deadline"], "the judge was late for the third, not the disk");
    let lamp = bench.lamp.clone();
    let (_, status) = bench.end();
    // Durable too late for a wire, and overtaken by a newer cell besides.
    assert_eq!(lamp.0.lock().unwrap()[..2], ["overtaken", "overtaken"]);
    assert_eq!((status.faults.overruns, status.faults.lost_frames), (0, 0));
}

/// A wire must not say PASS while a newer cell lies there, even if only its trigger tells of that one.
#[test]
fn a_trigger_alone_makes_the_cell_before_it_an_older_one() {
    let config = PairingConfig::default();
    let mut desk = Desk::new(DeskSettings { slots: 4, takt: TAKT }, Some(Pairer::new(&config, true)), None);
    let lies = |ms: u64| Moment::from_nanos(1_000_000_000 + ms * 1_000_000);
    let trigger = |number: u32, at| Trigger { cell: None, at, number: Some(number), sent_ms: None };
    desk.trigger(trigger(1, lies(0)), lies(0));
    let slot = desk.take().unwrap();
    // The exposure may begin a little before the message arrives.
    desk.frame(slot, 1, lies(0) - Duration::from_millis(5), lies(40));
    assert_eq!(desk.newest(), lies(0) - Duration::from_millis(5), "its own trigger makes no cell old");
    desk.trigger(trigger(2, lies(333)), lies(333));
    assert!(desk.newest() > lies(300));
}

#[test]
fn a_frame_that_comes_while_the_station_stops_gets_its_verdict() {
    for _ in 0..20 {
        let mut bench = bench(4, TAKT);
        bench.frame(0, 1);
        bench.wait(1);
        let (feed, book) = (bench.feed.take().unwrap(), bench.book.clone());
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(3));
            // Nobody may listen any more.
            let _ = feed.send(Ok((1, 2)));
            std::thread::sleep(Duration::from_millis(30));
        });
        std::thread::sleep(Duration::from_millis(2));
        let line = bench.station.line();
        bench.station.stop();
        late.join().unwrap();
        assert!(line.with_desk(|desk| desk.is_idle()));
        let told = book.words().len() as u64;
        assert_eq!(line.status().total.cells(), told);
    }
}

#[test]
fn stopping_finishes_the_cell_in_hand() {
    let bench = bench(4, TAKT);
    bench.frame(0, SLOW - 1);
    let started = Instant::now();
    while bench.station.line().with_desk(|desk| desk.is_idle()) && bench.book.words().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    let book = bench.book.clone();
    bench.station.stop();
    assert_eq!(book.words(), ["PASS"]);
}

/// Plays a line with every fault, in its own time: frames come, are judged at once, and triggers come by message.
fn play(cells: u64, chances: &Chances, seed: u64) -> (Vec<serde_json::Value>, Status) {
    let book = Book::default();
    let pairer = Pairer::new(&PairingConfig::default(), true);
    let takt = Duration::from_millis(300);
    let mut desk = Desk::new(DeskSettings { slots: 16, takt }, Some(pairer), None);
    let mut scribe = Scribe::new(Box::new(book.clone()), None, about(), takt);
    let (mut frame, mut heat) = (Frame::new(SIDE, SIDE, 255), [[0; THUMBNAIL]; THUMBNAIL]);
    let events = line(cells, chances, seed);
    let end = events.last().unwrap().0 + Duration::from_secs(10);
    for (now, event) in events.into_iter().map(|(now, event)| (now, Some(event))).chain([(end, None)]) {
        while let Some(wake) = desk.wake().filter(|wake| *wake <= now) {
            desk.tick(wake);
        }
        match event {
            Some(Event::Trigger(trigger)) => desk.trigger(trigger, now),
            Some(Event::Frame { sequence, taken, shows }) => match desk.take() {
                Some(slot) => {
                    draw(&mut frame, shows as u32);
                    desk.frame(slot, sequence, taken, now);
                    while let Some(slot) = desk.job() {
                        let verdict = Reader.judge(&mut frame, &mut heat);
                        desk.judged(slot, verdict, &heat, now);
                    }
                }
                None => desk.blind_frame(sequence, taken, Invalid::Overrun, now),
            },
            Some(Event::CameraRestarted) => desk.camera_restarted(),
            None => desk.tick(end),
        }
        while let Some(saying) = desk.next_saying() {
            let (key, latency, _) = scribe.write(&saying, Moment::default).unwrap();
            desk.written(&saying, key, latency, now);
        }
    }
    assert!(desk.is_idle());
    (book.written(), desk.status())
}

#[test]
fn of_a_hundred_thousand_cells_with_every_fault_none_is_judged_under_anothers_name() {
    let chances = Chances {
        trigger_lost: 10,
        trigger_doubled: 10,
        trigger_late: 10,
        stall: Some((2, 3)),
        triggers_swapped: 5,
        frame_lost: 10,
        frame_doubled: 10,
        frames_swapped: 10,
        camera_restarts: 1,
        sender_restarts: 1,
        stamped: false,
    };
    let cells = 100_000;
    let (written, status) = play(cells, &chances, 11);
    let mut passed = 0;
    for line in written.iter().filter(|line| line["outcome"] != "INVALID") {
        assert_eq!(line["id"], CellId::number(line["score"].as_f64().unwrap() as u64).as_str(), "{line}");
        passed += 1;
    }
    assert!(passed > cells * 7 / 10, "{passed} of {cells}; {:?}", status.faults);
    assert!(written.len() as u64 >= cells * 98 / 100, "{}", written.len());
    let faults = status.faults;
    for (name, count) in [
        ("missed", faults.missed_frames),
        ("extra", faults.extra_frames),
        ("ambiguous", faults.ambiguous),
        ("lost", faults.lost_frames),
        ("restarts", faults.camera_restarts),
    ] {
        assert!(count > 10, "{name} {count}");
    }
}
