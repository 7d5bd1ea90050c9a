//! As much of HTTP/1.1 as a download needs: one GET a connection, from any byte on.
//!
//! The body must have a known length, so that it can be told whether it has come whole: the server says
//! `Content-Length`, as all do that serve files.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use thiserror::Error;

/// Time for a connection, and for a head.
const PATIENCE: Duration = Duration::from_secs(15);
/// A read that takes longer gives the caller a turn.
const TURN: Duration = Duration::from_millis(200);
const MAX_HEAD: usize = 16 << 10;
const MAX_REDIRECTS: usize = 3;
/// Bytes that are read and dropped where a server cannot begin in the midst of a file.
const BUFFER: usize = 16 << 10;

/// Why a download could not begin.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The address cannot be used.
    #[error("fetching {url}: {why}")]
    Url {
        /// The address.
        url: String,
        /// Why not.
        why: &'static str,
    },
    /// The authorities' file cannot be used.
    #[error("reading the certificates in {}: {why}; check update.ca", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It cannot be reached, or the connection broke.
    #[error("fetching {url}: {source}; check that the server runs, its certificate, update.ca and the network")]
    Lost {
        /// The address.
        url: String,
        /// What happened.
        source: io::Error,
    },
    /// The answer is of no use.
    #[error("fetching {url}: the server said {answer}; {why}")]
    Answer {
        /// The address.
        url: String,
        /// The first line of the answer.
        answer: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It leads elsewhere again and again.
    #[error("fetching {0}: it leads elsewhere more than 3 times")]
    Redirects(String),
}

/// What downloads need to know.
#[derive(Clone, Debug)]
pub struct Http {
    ca: PathBuf,
    allow_http: bool,
}

trait Connection: Read + Write + Send {}
impl<T: Read + Write + Send> Connection for T {}

/// A body on its way: ends after as many bytes as were announced. A connection that breaks before is an error, one that is
/// slow for a moment is [`WouldBlock`](io::ErrorKind::WouldBlock).
pub struct Body {
    from: Box<dyn Connection>,
    /// What came with the head.
    early: Vec<u8>,
    used: usize,
    skip: u64,
    left: u64,
}

impl Http {
    /// `ca`: a PEM file of authorities; it is read at each download. `allow_http`: without TLS too.
    #[must_use]
    pub fn new(ca: &Path, allow_http: bool) -> Self {
        Self { ca: ca.into(), allow_http }
    }

    /// The file at `url`, which must have `total` bytes, from byte `from` on.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub fn get(&self, url: &str, from: u64, total: u64) -> Result<Body, HttpError> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            match self.ask(&url, from, total)? {
                Ok(body) => return Ok(body),
                Err(elsewhere) => url = elsewhere,
            }
        }
        Err(HttpError::Redirects(url))
    }

    /// One request: a body, or where it leads.
    fn ask(&self, url: &str, from: u64, total: u64) -> Result<Result<Body, String>, HttpError> {
        let place = self.place(url)?;
        let lost = |source| HttpError::Lost { url: url.into(), source };
        let mut connection = self.connect(&place, url)?;
        let Place { path, authority, .. } = &place;
        // A range always: who cannot do it sends all, and what is not needed is passed over.
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: cellgate/{}\r\nAccept-Encoding: identity\r\n\
             Range: bytes={from}-\r\nConnection: close\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        );
        let by = Instant::now() + PATIENCE;
        write_all(connection.as_mut(), request.as_bytes(), by).map_err(lost)?;
        let (head, early) = read_head(connection.as_mut(), by).map_err(lost)?;
        let wrong = |why| {
            let answer = head.lines().next().unwrap_or_default();
            let answer = answer.chars().take(80).map(crate::hidden::shown).collect();
            Err(HttpError::Answer { url: url.into(), answer, why })
        };
        let field = |name: &str| {
            let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
        };
        let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).unwrap_or_default();
        let length = field("content-length").and_then(|text| text.parse::<u64>().ok());
        let (skip, left) = match status {
            "301" | "302" | "303" | "307" | "308" => {
                let Some(to) = field("location") else { return wrong("it leads nowhere") };
                let elsewhere = if to.starts_with('/') && !to.starts_with("//") {
                    format!("{}://{authority}{to}", if place.tls { "https" } else { "http" })
                } else {
                    to.to_owned()
                };
                return Ok(Err(elsewhere));
            }
            "206" => {
                let range = field("content-range").and_then(|text| text.strip_prefix("bytes "));
                let range = range.and_then(|text| text.split_once('-')).and_then(|(begin, rest)| {
                    let (_, whole) = rest.split_once('/')?;
                    Some((begin.parse::<u64>().ok()?, whole.parse::<u64>().ok()?))
                });
                if range != Some((from, total)) {
                    return wrong("that is another part, or the file has another length than was offered");
                }
                (0, total - from)
            }
            "200" => (from, total),
            "404" => return wrong("there is no such file"),
            _ => return wrong("a file was expected"),
        };
        if field("transfer-encoding").is_some() || field("content-encoding").is_some_and(|coding| coding != "identity")
        {
            return wrong("it must send the file as it is, with its length");
        }
        if length != Some(left) {
            return wrong("the file has another length than was offered");
        }
        let left = left - skip;
        Ok(Ok(Body { from: connection, early, used: 0, skip, left }))
    }

    fn place(&self, url: &str) -> Result<Place, HttpError> {
        let wrong = |why| Err(HttpError::Url { url: url.chars().take(200).map(crate::hidden::shown).collect(), why });
        if !url.bytes().all(|byte| byte.is_ascii_graphic()) || url.len() > 2048 {
            return wrong("it must be of at most 2048 plain characters");
        }
        let (tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) if self.allow_http => (false, rest),
            (_, Some(_)) => return wrong("it is without TLS, which update.allow-http does not allow"),
            _ => return wrong("it must begin with https://"),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let cut = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(cut);
        if authority.contains('@') {
            return wrong("a name and password in it are not used; put them nowhere");
        }
        let (host, port) = match authority.rsplit_once(':') {
            // Colons of an address in brackets are its own.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().unwrap_or(0)),
            _ => (authority, if tls { 443 } else { 80 }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || port == 0 {
            return wrong("it names no server");
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Place { tls, host: host.into(), port, authority: authority.into(), path })
    }

    fn connect(&self, place: &Place, url: &str) -> Result<Box<dyn Connection>, HttpError> {
        let lost = |source| HttpError::Lost { url: url.into(), source };
        let addresses = (place.host.as_str(), place.port).to_socket_addrs().map_err(lost)?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name of the server has no address");
        let stream = addresses
            .into_iter()
            .find_map(|address| TcpStream::connect_timeout(&address, PATIENCE).map_err(|error| last = error).ok());
        let Some(stream) = stream else { return Err(lost(last)) };
        stream.set_read_timeout(Some(TURN)).and_then(|()| stream.set_write_timeout(Some(PATIENCE))).map_err(lost)?;
        if !place.tls {
            return Ok(Box::new(stream));
        }
        let tls = |error: rustls::Error| lost(io::Error::new(io::ErrorKind::InvalidData, error));
        let name = ServerName::try_from(place.host.clone())
            .map_err(|_| HttpError::Url { url: url.into(), why: "no certificate can be for this server's name" })?;
        // Named here, so that no other part of the process decides which one it is.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(tls)?.with_root_certificates(self.authorities()?).with_no_client_auth();
        let connection = ClientConnection::new(Arc::new(config), name).map_err(tls)?;
        Ok(Box::new(StreamOwned::new(connection, stream)))
    }

    fn authorities(&self) -> Result<RootCertStore, HttpError> {
        let failed = |why: String| HttpError::Authorities { path: self.ca.clone(), why };
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(&self.ca).map_err(|error| failed(error.to_string()))?;
        for certificate in certificates {
            // A bundle of many holds some that nobody can use.
            roots.add(certificate.map_err(|error| failed(error.to_string()))?).unwrap_or_else(|error| {
                log::debug!("a certificate in {} is passed over: {error}", self.ca.display());
            });
        }
        if roots.is_empty() { Err(failed("it holds no certificate in PEM".into())) } else { Ok(roots) }
    }
}

/// Where an address leads.
struct Place {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
    path: String,
}

fn is_slow(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

fn write_all(to: &mut dyn Connection, mut bytes: &[u8], by: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        // A TLS stream reads while it shakes hands: it may be slow here too.
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(part) => bytes = &bytes[part..],
            Err(error) if is_slow(&error) && Instant::now() < by => {}
            Err(error) => return Err(error),
        }
    }
    loop {
        match to.flush() {
            Err(error) if is_slow(&error) && Instant::now() < by => {}
            done => return done,
        }
    }
}

/// The head of an answer, and what came after it.
fn read_head(from: &mut dyn Connection, by: Instant) -> io::Result<(String, Vec<u8>)> {
    let (mut all, mut buffer) = (Vec::new(), [0; 2048]);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "it ended the connection")),
            Ok(part) => all.extend_from_slice(&buffer[..part]),
            Err(error) if is_slow(&error) && Instant::now() < by => continue,
            Err(error) => return Err(error),
        }
        if let Some(end) = all.windows(4).position(|window| window == b"\r\n\r\n") {
            let early = all.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&all).into_owned(), early));
        }
        if all.len() > MAX_HEAD || Instant::now() >= by {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the head of its answer has no end"));
        }
    }
}

impl Body {
    fn next(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let early = &self.early[self.used..];
        if !early.is_empty() {
            let part = early.len().min(buffer.len());
            buffer[..part].copy_from_slice(&early[..part]);
            self.used += part;
            return Ok(part);
        }
        match self.from.read(buffer) {
            Ok(0) if !buffer.is_empty() => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server ended the connection early"))
            }
            Err(error) if is_slow(&error) => Err(io::ErrorKind::WouldBlock.into()),
            // The end of the file is what it would be taken for.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, error))
            }
            read => read,
        }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut waste = [0; BUFFER];
        while self.skip > 0 {
            let most = self.skip.min(BUFFER as u64) as usize;
            self.skip -= self.next(&mut waste[..most])? as u64;
        }
        let most = self.left.min(buffer.len() as u64) as usize;
        if most == 0 {
            return Ok(0);
        }
        let part = self.next(&mut buffer[..most])?;
        self.left -= part as u64;
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const FILE: &[u8] = b"0123456789";

    /// Answers as many connections with these texts; gives the port and what was asked.
    fn serve(answers: Vec<String>) -> (u16, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let (mut text, mut buffer) = (String::new(), [0; 1024]);
                while !text.contains("\r\n\r\n") {
                    let part = stream.read(&mut buffer).unwrap();
                    assert!(part > 0);
                    text.push_str(str::from_utf8(&buffer[..part]).unwrap());
                }
                asked.push(text);
                // Who has enough hangs up.
                let _ = stream.write_all(answer.replace("PORT", &port.to_string()).as_bytes());
            }
            asked
        });
        (port, served)
    }

    fn get(port: u16, from: u64) -> Result<Vec<u8>, String> {
        let http = Http::new(Path::new("/nowhere"), true);
        let mut body = http
            .get(&format!("http://127.0.0.1:{port}/a/b.cgb?x=1"), from, FILE.len() as u64)
            .map_err(|error| error.to_string())?;
        let (mut all, mut buffer) = (Vec::new(), [0; 7]);
        loop {
            match body.read(&mut buffer) {
                Ok(0) => return Ok(all),
                Ok(part) => all.extend_from_slice(&buffer[..part]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(format!("{} after {}", error, all.len())),
            }
        }
    }

    #[test]
    fn a_file_comes_whole_or_from_the_middle_from_servers_that_can_and_that_cannot() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789and more".to_owned();
        let part = "HTTP/1.1 206 Partial\r\ncontent-range: bytes 4-9/10\r\ncontent-length:6\r\n\r\n456789".to_owned();
        let (port, served) = serve(vec![whole.clone(), part, whole]);
        assert_eq!(get(port, 0).unwrap(), FILE);
        assert_eq!(get(port, 4).unwrap(), &FILE[4..]);
        assert_eq!(get(port, 4).unwrap(), &FILE[4..]);
        let asked = served.join().unwrap();
        assert!(asked[0].starts_with(&format!("GET /a/b.cgb?x=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n")), "{asked:?}");
        assert!(asked[1].contains("Range: bytes=4-\r\n"), "{asked:?}");
    }

    #[test]
    fn answers_that_are_of_no_use_are_named() {
        for (answer, said) in [
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404 Not Found; there is no such file"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n", "another length"),
            ("HTTP/1.1 200 OK\r\n\r\n0123456789", "another length"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 10\r\n\r\n", "as it is"),
            ("HTTP/1.1 206 P\r\nContent-Range: bytes 3-9/10\r\nContent-Length: 7\r\n\r\n", "another part"),
            ("HTTP/1.1 206 P\r\nContent-Range: bytes 4-9/11\r\nContent-Length: 6\r\n\r\n", "another part"),
            ("HTTP/1.1 206 P\r\nContent-Length: 6\r\n\r\n", "another part"),
            ("HTTP/1.1 302 Found\r\n\r\n", "leads nowhere"),
            ("HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "must begin with https://"),
            ("nonsense\r\n\r\n", "a file was expected"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234", "ended the connection early after 1"),
            ("", "ended the connection"),
        ] {
            let (port, served) = serve(vec![answer.into()]);
            let error = get(port, 4).unwrap_err();
            assert!(error.contains(said), "{answer}: {error}");
            served.join().unwrap();
        }
        let long = format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(10_000));
        assert!(get(serve(vec![long]).0, 0).unwrap_err().contains("no end"));
    }

    #[test]
    fn redirects_are_followed_and_end() {
        let there = "HTTP/1.1 302 Found\r\nLocation: /c\r\n\r\n".to_owned();
        let far = "HTTP/1.1 307 Found\r\nLocation: http://127.0.0.1:PORT/d\r\n\r\n".to_owned();
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789".to_owned();
        let (port, served) = serve(vec![there.clone(), far, whole]);
        assert_eq!(get(port, 0).unwrap(), FILE);
        assert!(served.join().unwrap()[2].starts_with("GET /d "));
        let (port, _) = serve(vec![there; 4]);
        assert!(get(port, 0).unwrap_err().contains("more than 3 times"));
    }

    #[test]
    fn addresses_that_are_not_allowed_are_refused_before_anything_is_sent() {
        let http = Http::new(Path::new("/nowhere"), false);
        for (url, said) in [
            ("http://a/b", "update.allow-http"),
            ("ftp://a/b", "https://"),
            ("https:///b", "names no server"),
            ("https://a:0/b", "names no server"),
            ("https://a:x/b", "names no server"),
            ("https://me:secret@a/b", "not used"),
            ("https://a/\u{e9}", "plain"),
        ] {
            let error = http.get(url, 0, 1).err().unwrap().to_string();
            assert!(error.contains(said), "{url}: {error}");
        }
        let place = http.place("https://[::1]:8443?q").unwrap();
        assert_eq!((place.host.as_str(), place.port, place.path.as_str()), ("::1", 8443, "/?q"));
    }
}
