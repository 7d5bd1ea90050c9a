//! systemd's notifications: that the service runs, what it does, and that it lives.
//!
//! Datagrams to the socket that `NOTIFY_SOCKET` names, as `sd_notify(3)` sends them. [`Watchdog`] sends `WATCHDOG=1` at
//! half of `WatchdogSec=`, and only while every thread of [`Progress`] moves: with one that does not, systemd restarts the
//! service.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use thiserror::Error;

use super::progress::Progress;
use crate::clock::Moment;
use crate::hidden::shown;

/// Why systemd cannot be told.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NotifyError {
    /// `NOTIFY_SOCKET` names no socket.
    #[error("telling systemd: NOTIFY_SOCKET is {0:?}, which is no path of a socket: {1}")]
    Address(String, io::Error),
    /// The message was not taken.
    #[error("telling systemd {message:?}: {error}; is `NotifyAccess=main` set in the unit?")]
    Send {
        /// What was to be said.
        message: String,
        /// What the system said.
        error: io::Error,
    },
}

/// Tells systemd.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As systemd has set the environment; none if it has not started us, or wants no word.
    ///
    /// # Errors
    /// If `NOTIFY_SOCKET` makes no sense.
    pub fn from_environment() -> Result<Option<Self>, NotifyError> {
        let get = |name| std::env::var_os(name);
        let Some(socket) = get("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Ok(None) };
        let number = |name| get(name).and_then(|text| text.to_str()?.parse::<u64>().ok());
        // The interval is meant for one process, and children inherit it.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let interval = number("WATCHDOG_USEC").filter(|&interval| ours && interval > 0);
        Self::to(&socket, interval.map(Duration::from_micros)).map(Some)
    }

    /// To a socket (`@` first: an abstract one), with the interval of the watchdog.
    ///
    /// # Errors
    /// If it is no name of a socket.
    pub fn to(socket: &OsStr, watchdog: Option<Duration>) -> Result<Self, NotifyError> {
        let failed = |error| NotifyError::Address(socket.to_string_lossy().into_owned(), error);
        let address = address(socket.as_bytes()).map_err(failed)?;
        let socket = UnixDatagram::unbound().map_err(failed)?;
        // The frame path never waits for systemd.
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self { socket, address, watchdog })
    }

    /// The time in which systemd wants a sign of life; none if it does not watch.
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The station judges cells.
    ///
    /// # Errors
    /// If the message was not taken; so for all of these.
    pub fn ready(&self) -> Result<(), NotifyError> {
        self.send("READY=1")
    }

    /// What `systemctl status` shows: one line.
    ///
    /// # Errors
    /// If the message was not taken.
    pub fn status(&self, text: &str) -> Result<(), NotifyError> {
        let line: String = text.chars().map(shown).collect();
        self.send(&format!("STATUS={line}"))
    }

    /// The station was asked to stop and finishes the cell in hand.
    ///
    /// # Errors
    /// If the message was not taken.
    pub fn stopping(&self) -> Result<(), NotifyError> {
        self.send("STOPPING=1")
    }

    fn send(&self, message: &str) -> Result<(), NotifyError> {
        let failed = |error| NotifyError::Send { message: message.into(), error };
        self.socket.send_to_addr(message.as_bytes(), &self.address).map(drop).map_err(failed)
    }
}

#[cfg(target_os = "linux")]
fn address(name: &[u8]) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    match name {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(OsStr::from_bytes(name)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it begins neither with / nor with @")),
    }
}

#[cfg(not(target_os = "linux"))]
fn address(name: &[u8]) -> io::Result<SocketAddr> {
    SocketAddr::from_pathname(OsStr::from_bytes(name))
}

/// What a turn of the watchdog came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// It is not time yet, or nobody watches.
    Waited,
    /// systemd was told that we live.
    Told,
    /// It was not told: a thread does not move.
    Withheld,
}

/// Feeds systemd's watchdog, while everything moves.
#[derive(Debug)]
pub struct Watchdog {
    notifier: Option<Notifier>,
    told: Option<Moment>,
    /// Threads that were overdue at the last turn.
    stuck: usize,
}

impl Watchdog {
    /// Of this notifier; without one, only logs who does not move.
    #[must_use]
    pub fn new(notifier: Option<Notifier>) -> Self {
        Self { notifier, told: None, stuck: 0 }
    }

    /// Whom to tell other things.
    #[must_use]
    pub fn notifier(&self) -> Option<&Notifier> {
        self.notifier.as_ref()
    }

    /// To be called at least four times in the interval, from a thread that waits for none of the others.
    pub fn turn(&mut self, progress: &Progress, now: Moment) -> Fed {
        let stuck = progress.overdue(now).count();
        let before = std::mem::replace(&mut self.stuck, stuck);
        if stuck > before {
            for (thread, age) in progress.overdue(now) {
                let silent = age.as_millis();
                log::error!("a thread does not move, the watchdog is not fed: thread={thread} silent_ms={silent}");
            }
        }
        if stuck > 0 {
            return Fed::Withheld;
        }
        if before > 0 {
            log::warn!("every thread moves again");
        }
        let Some(notifier) = &self.notifier else { return Fed::Waited };
        let Some(interval) = notifier.interval() else { return Fed::Waited };
        if self.told.is_some_and(|told| now.since(told) < interval / 2) {
            return Fed::Waited;
        }
        match notifier.send("WATCHDOG=1") {
            Ok(()) => {
                self.told = Some(now);
                Fed::Told
            }
            Err(error) => {
                log::warn!("{error}");
                Fed::Waited
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> Vec<String> {
        socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 256];
        std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|n| String::from_utf8(buffer[..n].to_vec()).unwrap()))
            .collect()
    }

    #[test]
    fn messages_arrive_as_systemd_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str(), None).unwrap();
        notifier.ready().unwrap();
        notifier.status("12 cells\nREADY=0\u{1b}").unwrap();
        notifier.stopping().unwrap();
        assert_eq!(received(&socket), ["READY=1", "STATUS=12 cells\u{fffd}READY=0\u{fffd}", "STOPPING=1"]);
        drop(socket);
        std::fs::remove_file(&path).unwrap();
        let error = notifier.ready().unwrap_err().to_string();
        assert!(error.contains("READY=1") && error.contains("NotifyAccess"), "{error}");
        assert!(Notifier::to(OsStr::new("relative"), None).is_err());
        assert!(Notifier::to(OsStr::new(&format!("/{}", "x".repeat(200))), None).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn abstract_sockets_are_reached() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("cellgate-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
        Notifier::to(OsStr::new(&format!("@{name}")), None).unwrap().ready().unwrap();
        assert_eq!(received(&socket), ["READY=1"]);
    }

    #[test]
    fn the_watchdog_is_fed_by_progress_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let second = Duration::from_secs(1);
        let start = Moment::from_nanos(1_000_000_000);
        let mut progress = Progress::default();
        let camera = progress.register("camera", 2 * second, start);
        let mut watchdog = Watchdog::new(Some(Notifier::to(path.as_os_str(), Some(4 * second)).unwrap()));
        assert_eq!(watchdog.turn(&progress, start), Fed::Told);
        assert_eq!(watchdog.turn(&progress, start + second), Fed::Waited);
        assert_eq!(watchdog.turn(&progress, start + 2 * second), Fed::Told);
        for seconds in 3..20 {
            assert_eq!(watchdog.turn(&progress, start + seconds * second), Fed::Withheld, "{seconds}");
        }
        assert_eq!(received(&socket), ["WATCHDOG=1"; 2]);
        camera.beat_at(start + 20 * second);
        assert_eq!(watchdog.turn(&progress, start + 20 * second), Fed::Told);
        assert_eq!(received(&socket), ["WATCHDOG=1"]);
    }

    #[test]
    fn a_full_socket_does_not_hold_us_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let _socket = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str(), None).unwrap();
        let refused = (0..100_000).find_map(|_| notifier.ready().err());
        assert!(refused.is_some(), "a queue without end");
    }
}
