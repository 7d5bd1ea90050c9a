//! The screen, pixel by pixel: pictures in `tests/data/display/` are what it must show. After a wanted change record them
//! anew with `RECORD=1 cargo test --test display`, and look at each.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cellgate::camera::trigger::CellId;
use cellgate::clock::{Date, Moment};
use cellgate::display::framebuffer::{Device, Field, Geometry};
use cellgate::display::png::{Encoder, Rgb8};
use cellgate::display::{Canvas, Display, DisplayConfig, Ink, Output, Screen, Shade, View};
use cellgate::station::status::{Counts, Health, Last, Said, Status, THUMBNAIL};
use cellgate::verdict::Class;
use embedded_graphics::pixelcolor::{BinaryColor, Rgb565};
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::Rectangle;

#[path = "common/counting.rs"]
mod counting;

const SMALL: (usize, usize) = (128, 64);
const SIZES: [(usize, usize); 3] = [SMALL, (320, 240), (480, 320)];

const NOW: u64 = 1_000_000_000_000;

fn now() -> Moment {
    Moment::from_nanos(NOW)
}

/// 2026-03-14 06:35:09 UTC.
fn date() -> Date {
    Date::from_millis(1_773_470_109_000)
}

fn screen() -> Screen {
    Screen { line: "hjt-3".into(), station: "el-tester-1".into(), stale_after: Duration::from_secs(5), utc_offset: 0 }
}

/// A cell's faint structure, and a crack from one corner if it is defective.
fn heat(cracked: bool) -> [[u8; THUMBNAIL]; THUMBNAIL] {
    let mut heat = [[0; THUMBNAIL]; THUMBNAIL];
    for (y, row) in heat.iter_mut().enumerate() {
        for (x, value) in row.iter_mut().enumerate() {
            let bars = if x % 16 == 8 { 30 } else { 0 };
            let base = 20 + (x * 7 + y * 13) % 17 + bars;
            let off = (x as i32 - 20 - y as i32 / 2).abs();
            let crack = if cracked && (8..50).contains(&y) { 250 - 40 * off.min(6) } else { 0 };
            *value = (base as i32).max(crack).clamp(1, 255) as u8;
        }
    }
    heat
}

fn last(said: Said, cell: Option<&str>, score: Option<f32>, heat: [[u8; THUMBNAIL]; THUMBNAIL]) -> Option<Last> {
    let at = now() - Duration::from_millis(1200);
    let cell = cell.map(|name| CellId::new(name).unwrap());
    Some(Last { cell, seq: 48_211, said, score, date: date(), at, latency_us: 61_000, heat })
}

fn healthy() -> Status {
    Status {
        started: Moment::default(),
        boot: 12,
        total: Counts { a: 120_000, b: 9000, c: 400, invalid: 31 },
        shift: Counts { a: 1893, b: 112, c: 27, invalid: 4 },
        shift_began: Date::from_millis(1_773_468_000_000),
        camera: Health::Up,
        broker: Health::Up,
        outbox: Health::Up,
        pending: 1,
        model: *b"9f3c01ab",
        temperature: Some(53.6),
        ..Status::default()
    }
}

/// 64 bytes, as long as an id can be.
const LONG: &str = "LOT-2026-03-14/HJT-M10/WAFER-000000000000000000000000004821/SIDE-A";

fn cases() -> Vec<(&'static str, Status)> {
    let none = [[0; THUMBNAIL]; THUMBNAIL];
    let healthy = healthy();
    let stale = last(Said::Class(Class::A), Some("W-004821"), Some(0.21), heat(false))
        .map(|last| Last { at: now() - Duration::from_secs(312), ..last });
    vec![
        ("a", Status { last: last(Said::Class(Class::A), Some("W-004821"), Some(0.21), heat(false)), ..healthy }),
        ("b", Status { last: last(Said::Class(Class::B), None, Some(0.62), heat(false)), ..healthy }),
        ("c", Status { last: last(Said::Class(Class::C), Some(&LONG[..64]), Some(0.97), heat(true)), ..healthy }),
        ("invalid", Status { last: last(Said::Invalid("pairing"), Some("W-004822"), None, none), ..healthy }),
        (
            "invalid-long",
            Status { last: last(Said::Invalid("not-quadrilateral"), Some(&LONG[..64]), None, none), ..healthy },
        ),
        (
            "empty",
            Status {
                camera: Health::Starting,
                broker: Health::Starting,
                outbox: Health::Off,
                shift: Counts::default(),
                temperature: None,
                pending: 0,
                ..healthy
            },
        ),
        (
            "trouble",
            Status {
                last: last(Said::Class(Class::A), Some("W-004821"), Some(0.44), heat(false)),
                broker: Health::Down,
                pending: 86_412,
                drift: true,
                temperature: Some(101.4),
                shift: Counts { a: 1_234_567, b: 98_765, c: 4321, invalid: 12_345 },
                ..healthy
            },
        ),
        ("stale", Status { last: stale, camera: Health::Down, model: [0; 8], ..healthy }),
    ]
}

fn drawn<C: Ink>(status: &Status, (width, height): (usize, usize)) -> Canvas<C> {
    let mut canvas = Canvas::new(width, height, C::of(Shade::Bad));
    let Ok(()) = screen().draw(&mut canvas, &View { status, now: now(), date: date() });
    canvas
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Whether a picture is the recorded one, which is written first if that is asked for.
fn compare<C: Rgb8>(path: &str, canvas: &Canvas<C>) -> Result<(), String> {
    let path = root().join(path);
    if std::env::var_os("RECORD").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        Encoder::default().write(canvas, &path).unwrap();
    }
    let golden = image::open(&path).map_err(|error| format!("{}: {error}", path.display()))?.to_rgb8();
    if (golden.width() as usize, golden.height() as usize) != (canvas.width(), canvas.height()) {
        return Err(format!("{} has another size", path.display()));
    }
    let different = golden.pixels().zip(canvas.pixels()).filter(|(golden, drawn)| golden.0 != drawn.rgb8()).count();
    if different > 0 { Err(format!("{}: {different} pixels differ", path.display())) } else { Ok(()) }
}

fn the_screen_looks_as_recorded() {
    let mut wrong = Vec::new();
    for (name, status) in cases() {
        let more: &[(usize, usize)] = match name {
            "c" => &[(240, 320), (240, 240), (800, 480)],
            "invalid" | "trouble" => &[(240, 320)],
            _ => &[],
        };
        for &size in SIZES.iter().chain(more) {
            let file = format!("tests/data/display/{name}-{}x{}.png", size.0, size.1);
            // The small screens are of one colour.
            let result = match size {
                SMALL => compare(&file, &drawn::<BinaryColor>(&status, size)),
                _ => compare(&file, &drawn::<Rgb565>(&status, size)),
            };
            wrong.extend(result.err());
        }
    }
    wrong.extend(compare("docs/display.png", &sheet()).err());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The documents' picture: what the sizes look like.
fn sheet() -> Canvas<Rgb565> {
    let mut sheet = Canvas::new(972, 904, Rgb565::new(12, 26, 14));
    let cases = cases();
    let mut place = |name: &str, size: (usize, usize), x: i32, y: i32| {
        let status = &cases.iter().find(|case| case.0 == name).unwrap().1;
        let canvas = match size {
            SMALL => {
                let small = drawn::<BinaryColor>(status, size);
                let mut large = Canvas::new(256, 128, Rgb565::BLACK);
                let colours = (0..128).flat_map(|y| (0..256).map(move |x| (x, y)));
                let colours = colours.map(|(x, y): (usize, usize)| Rgb565::from(small.row(y / 2)[x / 2]));
                let area = large.bounding_box();
                large.fill_contiguous(&area, colours).unwrap();
                large
            }
            _ => drawn::<Rgb565>(status, size),
        };
        let area = Rectangle::new(Point::new(x, y), canvas.size());
        sheet.fill_contiguous(&area, canvas.pixels().iter().copied()).unwrap();
    };
    place("a", (480, 320), 4, 4);
    place("c", (480, 320), 488, 4);
    for (index, name) in ["b", "invalid", "trouble"].into_iter().enumerate() {
        place(name, (320, 240), 4 + 324 * index as i32, 328);
    }
    place("stale", (320, 240), 4, 572);
    place("c", (240, 320), 328, 572);
    for (index, name) in ["c", "invalid"].into_iter().enumerate() {
        place(name, SMALL, 572, 572 + 132 * index as i32);
    }
    sheet
}

/// A target that nothing may be drawn outside of.
struct Strict(Size);

impl OriginDimensions for Strict {
    fn size(&self) -> Size {
        self.0
    }
}

impl DrawTarget for Strict {
    type Color = Rgb565;
    type Error = Point;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb565>>>(&mut self, pixels: I) -> Result<(), Point> {
        let inside = self.bounding_box();
        pixels.into_iter().find(|pixel| !inside.contains(pixel.0)).map_or(Ok(()), |outside| Err(outside.0))
    }
}

fn nothing_is_cut_at_the_edge_of_any_screen() {
    let mut long = cases().into_iter().find(|case| case.0 == "c").unwrap().1;
    long.drift = true;
    long.shift = Counts { a: u64::MAX / 4, b: u64::MAX / 4, c: u64::MAX / 4, invalid: u64::MAX / 4 };
    let names = Screen { line: "L".repeat(64), station: "S".repeat(64), ..screen() };
    let sizes =
        [(128, 64), (160, 80), (240, 135), (240, 240), (320, 170), (320, 200), (200, 320), (480, 128), (480, 272)];
    let more = [(200, 200), (201, 333), (333, 201), (480, 800), (800, 600), (1024, 600), (1920, 1080), (1000, 210)];
    for (width, height) in sizes.into_iter().chain(more) {
        for (name, status) in cases().into_iter().chain([("long", long)]) {
            let view = View { status: &status, now: now(), date: date() };
            let outside = names.draw(&mut Strict(Size::new(width, height)), &view).err();
            assert_eq!(outside, None, "{name} on {width}×{height}");
        }
    }
}

/// Pixels of a colour.
fn count(canvas: &Canvas<Rgb565>, shade: Shade) -> usize {
    canvas.pixels().iter().filter(|&&colour| colour == Ink::of(shade)).count()
}

fn an_old_or_future_pass_is_never_green() {
    // By age in milliseconds. A little ahead: the verdict came while the clock was read.
    for (age, fresh) in [(-400, true), (0, true), (4999, true), (5000, false), (86_400_000, false), (-2000, false)] {
        let at = Moment::from_nanos(NOW.saturating_add_signed(-age * 1_000_000));
        let last = healthy_pass().last.map(|last| Last { at, ..last });
        let canvas = drawn::<Rgb565>(&Status { last, ..healthy() }, (320, 240));
        // The lamps are green all the while.
        assert_eq!(count(&canvas, Shade::Good) > 5000, fresh, "{age} ms");
    }
}

fn healthy_pass() -> Status {
    Status { last: last(Said::Class(Class::A), Some("W-004821"), Some(0.21), heat(false)), ..healthy() }
}

/// Memory of a screen that a test can look into.
struct Memory(Arc<Mutex<Vec<u8>>>, Vec<u8>);

impl Device for Memory {
    fn geometry(&self) -> Geometry {
        let field = |offset, length| Field { offset, length };
        let colours = [field(11, 5), field(5, 6), field(0, 5)];
        Geometry { width: 320, height: 240, stride: 704, start: 0, bits: 16, set_is_dark: false, colours }
    }

    fn memory(&mut self) -> &mut [u8] {
        &mut self.1
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.0.lock().unwrap().clone_from(&self.1);
    }
}

fn showing_allocates_nothing_and_ends_with_stopped() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let memory = Memory(Arc::clone(&seen), vec![0; 704 * 240]);
    let config = DisplayConfig { output: Output::Framebuffer, ..DisplayConfig::default() };
    let mut display = Display::on(&config, "hjt-3", "el-tester-1", Box::new(memory)).unwrap();
    let statuses: Vec<Status> = cases().into_iter().map(|case| case.1).collect();
    display.show(&statuses[0], now()).unwrap();
    let before = counting::allocations();
    for _ in 0..10 {
        for status in &statuses {
            display.show(status, now()).unwrap();
        }
    }
    assert_eq!(counting::allocations() - before, 0, "allocations of {} pictures", 10 * statuses.len());
    drop(display);
    let mut stopped = Canvas::new(320, 240, Rgb565::BLACK);
    let Ok(()) = screen().draw_stopped(&mut stopped);
    let seen = seen.lock().unwrap();
    for y in 0..240 {
        let expected: Vec<u8> = stopped.row(y).iter().flat_map(|c| c.into_storage().to_ne_bytes()).collect();
        assert_eq!(seen[704 * y..][..640], expected, "row {y} after the end");
    }
}

fn pictures_are_written_whole_and_the_last_can_be_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("display.png");
    let config = DisplayConfig { output: Output::Png, path: Some(path.clone()), ..DisplayConfig::default() };
    let open = |config: &DisplayConfig| Display::open(config, "hjt-3", "el-tester-1").map(Option::unwrap);
    let mut display = open(&config).unwrap();
    display.show(&healthy_pass(), now()).unwrap();
    let shown = std::fs::read(&path).unwrap();
    assert_eq!(image::load_from_memory(&shown).unwrap().width(), 320);
    display.leave();
    assert_eq!(std::fs::read(&path).unwrap(), shown);
    drop(open(&config).unwrap());
    assert_ne!(std::fs::read(&path).unwrap(), shown, "a display that ends says so");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let missing = DisplayConfig { path: Some(folder.path().join("none/x.png")), ..config.clone() };
    let error = open(&missing).err().unwrap().to_string();
    assert!(error.contains("none/x.png") && error.contains("folder"), "{error}");
    let tiny = DisplayConfig { size: [100, 50], ..config };
    assert!(open(&tiny).err().unwrap().to_string().contains("128×64"));
    assert!(Display::open(&DisplayConfig::default(), "", "").unwrap().is_none());
}

/// One test, since allocations of the whole process are counted.
#[test]
fn the_screen_shows_what_it_should() {
    the_screen_looks_as_recorded();
    nothing_is_cut_at_the_edge_of_any_screen();
    an_old_or_future_pass_is_never_green();
    pictures_are_written_whole_and_the_last_can_be_left();
    showing_allocates_nothing_and_ends_with_stopped();
}
