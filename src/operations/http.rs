//! `/metrics` and `/healthz`: a responder of our own on the standard library, for one scraper on this machine.
//!
//! One connection at a time, one request a connection, `GET` and `HEAD` only, a request of at most 4 KiB within two
//! seconds, an answer within five: whoever connects can be slow for that long and no longer, and takes no memory.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use super::progress::Pulse;

/// Bytes of a request at most.
const REQUEST: usize = 4096;
/// Time for the whole request.
const TO_ASK: Duration = Duration::from_secs(2);
/// Time for the whole answer.
const TO_ANSWER: Duration = Duration::from_secs(5);
/// Time between looks at whether to stop.
const TURN: Duration = Duration::from_millis(250);

/// The longest time between two beats of the responder's thread, see [`Server::start`].
pub const PATIENCE: Duration = Duration::from_secs(15);

/// What is served.
pub trait Pages: Send {
    /// Appends the metrics in Prometheus' text format.
    fn metrics(&mut self, out: &mut String);
    /// Appends a JSON object that says how the station does; false if it cannot judge cells.
    fn health(&mut self, out: &mut String) -> bool;
}

/// Why nothing is served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The address cannot be had.
    #[error(
        "serving metrics on {address}: {error}; another program may use it: set `operations.metrics` to another port or off"
    )]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
}

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `pages` on this address (port 0: any) in a thread of its own, which beats `pulse` (register it with
    /// [`PATIENCE`]).
    ///
    /// # Errors
    /// If the address cannot be had.
    pub fn start(address: SocketAddr, pages: Box<dyn Pages>, pulse: Option<Pulse>) -> Result<Self, HttpError> {
        let failed = |error| HttpError::Bind { address, error };
        let listen = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let bound = listener.local_addr()?;
            Ok((listener, bound))
        };
        let (listener, bound) = match listen() {
            Ok(listening) => listening,
            Err(error) => {
                // There will be no thread to wait for.
                if let Some(pulse) = pulse {
                    pulse.retire();
                }
                return Err(failed(error));
            }
        };
        if !bound.ip().is_loopback() {
            log::warn!("metrics can be read from other machines: address={bound}");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || serve(&listener, pages, &stopped, pulse))
            .map_err(failed)?;
        Ok(Self { address: bound, stop, thread: Some(thread) })
    }

    /// Where it serves.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, mut pages: Box<dyn Pages>, stop: &AtomicBool, pulse: Option<Pulse>) {
    let (mut head, mut body) = (String::new(), String::new());
    let turn = Timespec { tv_sec: 0, tv_nsec: TURN.subsec_nanos().into() };
    while !stop.load(Ordering::Relaxed) {
        if let Some(pulse) = &pulse {
            pulse.beat();
        }
        let waiting = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&turn));
        if !matches!(waiting, Ok(1..)) {
            continue;
        }
        match listener.accept() {
            Ok((mut stream, _)) => {
                if let Err(error) = answer(&mut stream, &mut *pages, &mut head, &mut body) {
                    log::debug!("a request for metrics came to nothing: {error}");
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {}
            Err(error) => {
                // Out of file descriptors, perhaps: not to be tried a million times a second.
                log::warn!("taking a request for metrics: {error}");
                std::thread::sleep(TURN);
            }
        }
    }
    if let Some(pulse) = pulse {
        pulse.retire();
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Metrics,
    Health,
    /// Nothing that there is: the status and its phrase.
    Refused(&'static str),
}

fn answer(stream: &mut TcpStream, pages: &mut dyn Pages, head: &mut String, body: &mut String) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut buffer = [0; REQUEST];
    let (asked, without_body) = match read(stream, &mut buffer)? {
        Ok(request) => parse(request),
        Err(refused) => (Asked::Refused(refused), false),
    };
    body.clear();
    let (status, kind) = match asked {
        Asked::Metrics => {
            pages.metrics(body);
            ("200 OK", "text/plain; version=0.0.4; charset=utf-8")
        }
        Asked::Health => {
            let healthy = pages.health(body);
            (if healthy { "200 OK" } else { "503 Service Unavailable" }, "application/json")
        }
        Asked::Refused(status) => {
            body.push_str(status);
            body.push('\n');
            (status, "text/plain; charset=utf-8")
        }
    };
    use std::fmt::Write as _;
    head.clear();
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let _ = write!(
        head,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Cache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let end = Instant::now() + TO_ANSWER;
    write_by(stream, head.as_bytes(), end)?;
    if !without_body {
        write_by(stream, body.as_bytes(), end)?;
    }
    // What was sent beyond the request is read away for a moment: a close with unread bytes would take the answer back.
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(TURN))?;
    let end = Instant::now() + TURN;
    while Instant::now() < end && stream.read(&mut buffer)? > 0 {}
    Ok(())
}

/// The head of a request, or with what to refuse it. An error: there is no one to answer.
fn read<'a>(stream: &mut TcpStream, buffer: &'a mut [u8; REQUEST]) -> io::Result<Result<&'a [u8], &'static str>> {
    let end = Instant::now() + TO_ASK;
    let mut length = 0;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err("408 Request Timeout"));
        }
        stream.set_read_timeout(Some(left))?;
        let read = match stream.read(&mut buffer[length..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => continue,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        length += read;
        if let Some(head) = head_end(&buffer[..length]) {
            return Ok(Ok(&buffer[..head]));
        }
        if length == REQUEST {
            return Ok(Err("431 Request Header Fields Too Large"));
        }
    }
}

/// Where the empty line is that ends a request's head.
fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|end| end == b"\r\n\r\n")
}

/// What the head of a request asks for, and whether without a body.
fn parse(head: &[u8]) -> (Asked, bool) {
    const BAD: (Asked, bool) = (Asked::Refused("400 Bad Request"), false);
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let Ok(line) = str::from_utf8(line) else { return BAD };
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return BAD;
    };
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") || !target.starts_with('/') || line.chars().any(char::is_control) {
        return BAD;
    }
    if !matches!(method, "GET" | "HEAD") {
        return (Asked::Refused("405 Method Not Allowed"), false);
    }
    let path = target.split('?').next().unwrap_or_default();
    let asked = match path {
        "/metrics" => Asked::Metrics,
        "/healthz" => Asked::Health,
        _ => Asked::Refused("404 Not Found"),
    };
    (asked, method == "HEAD")
}

/// Writes all of it before `end`.
fn write_by(stream: &mut TcpStream, mut bytes: &[u8], end: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(bool);

    impl Pages for Fixed {
        fn metrics(&mut self, out: &mut String) {
            out.push_str("cellgate_up 1\n");
        }

        fn health(&mut self, out: &mut String) -> bool {
            out.push_str("{}");
            self.0
        }
    }

    fn server(healthy: bool) -> Server {
        Server::start(SocketAddr::from(([127, 0, 0, 1], 0)), Box::new(Fixed(healthy)), None).unwrap()
    }

    fn ask(server: &Server, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // A server that has heard enough may close while we still write.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn pages_are_served_and_nothing_else() {
        let server = server(true);
        let metrics = ask(&server, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = metrics.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("version=0.0.4"), "{head}");
        assert!(head.contains("Content-Length: 14\r\n"), "{head}");
        assert_eq!(body, "cellgate_up 1\n");
        let head = ask(&server, b"HEAD /metrics?x=1 HTTP/1.0\r\n\r\n");
        assert!(head.contains("Content-Length: 14") && head.ends_with("\r\n\r\n"), "{head}");
        for (request, status) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "404"),
            (b"GET /metrics/../../etc/passwd HTTP/1.1\r\n\r\n", "404"),
            (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405"),
            (b"GET /metrics\r\n\r\n", "400"),
            (b"GET /metrics HTTP/2.0\r\n\r\n", "400"),
            (b"GET  /metrics HTTP/1.1\r\n\r\n", "400"),
            (b"GET http://x/metrics HTTP/1.1\r\n\r\n", "400"),
            (b"\r\n\r\n", "400"),
            (b"\xff\xfe\xfd\r\n\r\n", "400"),
            (b"GET /\x1b[2J HTTP/1.1\r\n\r\n", "400"),
        ] {
            let answer = ask(&server, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        }
        assert!(ask(&server, b"GET /healthz HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
        assert!(ask(&self::server(false), b"GET /healthz HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 503"));
    }

    #[test]
    fn hostile_requests_end_and_others_are_served_after_them() {
        let server = server(true);
        // Without an end.
        let endless = [&b"GET /metrics HTTP/1.1\r\nX: "[..], &[b'x'; 100_000]].concat();
        assert!(ask(&server, &endless).starts_with("HTTP/1.1 431"));
        // Silent; in part; gone at once.
        let silent = TcpStream::connect(server.address()).unwrap();
        let mut slow = TcpStream::connect(server.address()).unwrap();
        slow.write_all(b"GET /met").unwrap();
        drop(TcpStream::connect(server.address()).unwrap());
        assert!(ask(&server, b"GET /metrics HTTP/1.1\r\n\r\n").ends_with("cellgate_up 1\n"));
        let mut answer = String::new();
        (&silent).read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        // Random bytes.
        let mut state = 1_u64;
        for _ in 0..200 {
            let bytes: Vec<u8> = (0..64)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            parse(&bytes);
            head_end(&bytes);
        }
    }

    #[test]
    fn a_taken_address_is_named() {
        let server = server(true);
        let error = Server::start(server.address(), Box::new(Fixed(true)), None).unwrap_err().to_string();
        assert!(error.contains(&server.address().to_string()) && error.contains("operations.metrics"), "{error}");
    }
}
