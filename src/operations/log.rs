//! Messages to stderr: `LEVEL target: message`, one line each, with `key=value` where there are numbers.
//!
//! When stderr is the journal, the level goes before the line as `<N>` of `sd-daemon(3)`, so that `journalctl -p warning`
//! works. A place in the code that repeats itself is held back after ten messages and then heard every ten seconds, with the
//! count of what was left out: a dead camera does not fill a disk. What a screen obeys rather than shows is marked, so that
//! text from outside cannot forge a line. Writing allocates nothing; it may wait for whoever reads stderr, so that the
//! frame path logs rarely.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use thiserror::Error;

use super::config::Level as Configured;
use crate::clock::Moment;
use crate::hidden::shown;

/// Longest line in bytes.
const LINE: usize = 2048;
/// Messages of one place in the code before it is held back.
const BURST: u32 = 10;
/// Time in which a place that is held back may speak once.
const EVERY: Duration = Duration::from_secs(10);
/// Places that are remembered.
const PLACES: usize = 128;

static SUPPRESSED: AtomicU64 = AtomicU64::new(0);

/// Messages that were held back since the start.
#[must_use]
pub fn suppressed() -> u64 {
    SUPPRESSED.load(Ordering::Relaxed)
}

/// Why nothing is logged.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LogError {
    /// `CELLGATE_LOG` makes no sense.
    #[error("reading the environment variable CELLGATE_LOG: {0}")]
    Level(String),
    /// Another logger is at work.
    #[error("starting to log: another logger is at work in this process")]
    Twice,
}

/// Logs what is at least as important as `level`, or as `CELLGATE_LOG` says; libraries from warnings on, unless it is
/// `trace`. Panics are logged too.
///
/// # Errors
/// If `CELLGATE_LOG` is no level, or this was called before.
pub fn start(level: Configured) -> Result<(), LogError> {
    let asked = std::env::var_os("CELLGATE_LOG").filter(|text| !text.is_empty());
    let level = match asked {
        Some(text) => text.to_string_lossy().parse::<Configured>().map_err(LogError::Level)?,
        None => level,
    };
    let logger = Logger { level: level.0, journal: stderr_is_journal(), limiter: Mutex::new(Limiter::new()) };
    log::set_boxed_logger(Box::new(logger)).map_err(|_| LogError::Twice)?;
    log::set_max_level(level.0);
    std::panic::set_hook(Box::new(panicked));
    Ok(())
}

/// Logs a panic: the thread, the place and the words.
fn panicked(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let payload = panic.payload();
    let words =
        payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let words = words.unwrap_or("without words");
    match panic.location() {
        Some(place) => log::error!("a thread panicked: {words} thread={name} at={}:{}", place.file(), place.line()),
        None => log::error!("a thread panicked: {words} thread={name}"),
    }
}

struct Logger {
    level: LevelFilter,
    journal: bool,
    limiter: Mutex<Limiter>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().split("::").next() == Some("cellgate");
        let limit =
            if ours || self.level == LevelFilter::Trace { self.level } else { self.level.min(LevelFilter::Warn) };
        metadata.level() <= limit
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Who asks for details gets them all.
        let mut left_out = 0;
        if record.level() <= Level::Info {
            let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
            match limiter.admit(place(record), Moment::now()) {
                Some(count) => left_out = count,
                None => {
                    SUPPRESSED.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
        let line = Line::of(record, self.journal, left_out);
        // There is no one to tell if this fails.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// One line, in place.
struct Line {
    bytes: [u8; LINE],
    length: usize,
}

impl Line {
    fn of(record: &Record<'_>, journal: bool, left_out: u64) -> Self {
        let mut line = Self { bytes: [0; LINE], length: 0 };
        if journal {
            let priority = match record.level() {
                Level::Error => 3,
                Level::Warn => 4,
                Level::Info => 6,
                Level::Debug | Level::Trace => 7,
            };
            let _ = write!(line, "<{priority}>");
        } else {
            let _ = write!(line, "{} ", record.level());
        }
        let _ = write!(line, "{}: {}", record.target(), record.args());
        if left_out > 0 {
            let _ = write!(line, " suppressed={left_out}");
        }
        // Room for it is kept.
        line.bytes[line.length] = b'\n';
        line.length += 1;
        line
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars().map(shown) {
            if self.length + c.len_utf8() > LINE - 1 - '…'.len_utf8() {
                if self.bytes[..self.length].ends_with("…".as_bytes()) {
                    return Ok(());
                }
                self.length += '…'.encode_utf8(&mut self.bytes[self.length..]).len();
                return Ok(());
            }
            self.length += c.encode_utf8(&mut self.bytes[self.length..]).len();
        }
        Ok(())
    }
}

/// Where in the code a message comes from.
fn place(record: &Record<'_>) -> u64 {
    // FNV-1a: small, and nobody outside chooses the names.
    let names = record.target().bytes().chain(record.file().unwrap_or_default().bytes());
    let line = record.line().unwrap_or_default().to_le_bytes();
    names.chain(line).fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Holds back who repeats himself.
struct Limiter {
    places: [Place; PLACES],
}

#[derive(Clone, Copy, Default)]
struct Place {
    key: u64,
    /// Messages that may still be said.
    left: u32,
    /// When one was last added to `left`.
    filled: Moment,
    /// When it last spoke or tried to.
    seen: Moment,
    /// What was left out since it last spoke.
    held: u64,
}

impl Limiter {
    fn new() -> Self {
        Self { places: [Place::default(); PLACES] }
    }

    /// Whether a message may be said, and how many of its like were left out before it.
    fn admit(&mut self, key: u64, now: Moment) -> Option<u64> {
        let index = match self.places.iter().position(|place| place.key == key) {
            Some(index) => index,
            None => {
                let oldest = (0..PLACES).min_by_key(|&i| self.places[i].seen).unwrap_or(0);
                self.places[oldest] = Place { key, left: BURST, filled: now, ..Place::default() };
                oldest
            }
        };
        let place = &mut self.places[index];
        place.seen = now;
        let more = now.since(place.filled).as_nanos() / EVERY.as_nanos();
        if more > 0 {
            place.left = place.left.saturating_add(u32::try_from(more).unwrap_or(BURST)).min(BURST);
            place.filled = now;
        }
        if place.left == 0 {
            place.held += 1;
            return None;
        }
        place.left -= 1;
        Some(std::mem::take(&mut place.held))
    }
}

/// Whether stderr is the journal's, as `JOURNAL_STREAM` says (device and inode).
fn stderr_is_journal() -> bool {
    let Some(named) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    is_stream(&named.to_string_lossy(), stat.st_dev, stat.st_ino)
}

fn is_stream(named: &str, device: u64, inode: u64) -> bool {
    let parts = named.split_once(':').map(|(device, inode)| (device.parse(), inode.parse()));
    parts == Some((Ok(device), Ok(inode)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, journal: bool, left_out: u64, text: fmt::Arguments<'_>) -> String {
        let record = Record::builder().level(level).target("cellgate::camera").args(text).build();
        String::from_utf8(Line::of(&record, journal, left_out).as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn lines_are_for_people_or_for_the_journal() {
        assert_eq!(
            line(Level::Warn, false, 0, format_args!("no frame: waited_ms={}", 500)),
            "WARN cellgate::camera: no frame: waited_ms=500\n"
        );
        assert_eq!(line(Level::Error, true, 7, format_args!("lost")), "<3>cellgate::camera: lost suppressed=7\n");
        assert!(line(Level::Info, true, 0, format_args!("x")).starts_with("<6>"));
    }

    #[test]
    fn text_from_outside_forges_no_line() {
        let text = line(Level::Info, true, 0, format_args!("id {}", "W\n<0>kernel: panic\u{1b}[2J"));
        assert_eq!(text, "<6>cellgate::camera: id W\u{fffd}<0>kernel: panic\u{fffd}[2J\n");
        let long = line(Level::Info, false, 0, format_args!("{}", "é".repeat(5000)));
        assert!(long.len() <= LINE && long.ends_with("…\n") && long.matches('…').count() == 1);
    }

    #[test]
    fn who_repeats_himself_is_held_back_and_others_are_not() {
        let mut limiter = Limiter::new();
        let start = Moment::from_nanos(1_000_000_000_000);
        let ms = |ms| start + Duration::from_millis(ms);
        // A camera that fails ten times a second for an hour.
        let said = (0..36_000).filter_map(|i| limiter.admit(1, ms(100 * i))).collect::<Vec<u64>>();
        assert!((360..=372).contains(&said.len()), "{} lines", said.len());
        assert_eq!(
            said.iter().sum::<u64>() + said.len() as u64 + limiter.places[0].held,
            36_000,
            "nothing is forgotten"
        );
        assert_eq!(limiter.admit(2, ms(3_600_000)), Some(0));
        // After a rest it may speak freely again.
        let rested = (0..20).filter(|_| limiter.admit(1, ms(4_000_000)).is_some()).count();
        assert_eq!(rested, 10);
        // More places than are remembered: none is held back for another's sake.
        assert!((10..1000).all(|key| limiter.admit(key, ms(5_000_000 + key)).is_some()));
    }

    #[test]
    fn libraries_speak_from_warnings_on() {
        let logger = |level| Logger { level, journal: false, limiter: Mutex::new(Limiter::new()) };
        let asks = |logger: &Logger, target: &str, level: Level| {
            logger.enabled(&Metadata::builder().target(target).level(level).build())
        };
        let debug = logger(LevelFilter::Debug);
        assert!(asks(&debug, "cellgate::outbox", Level::Debug) && !asks(&debug, "rumqttc::state", Level::Info));
        assert!(asks(&debug, "rumqttc", Level::Warn) && !asks(&debug, "cellgate_x", Level::Info));
        assert!(!asks(&logger(LevelFilter::Error), "rumqttc", Level::Warn));
        assert!(asks(&logger(LevelFilter::Trace), "rustls", Level::Trace));
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        assert!(is_stream("8:42", 8, 42));
        for other in ["", "8", "8:", "8:43", "9:42", "8:42:1", "a:b"] {
            assert!(!is_stream(other, 8, 42), "{other}");
        }
    }
}
