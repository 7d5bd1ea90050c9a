//! The bytes of a bundle as they come: from an HTTP server or in chunks from the broker, at a bounded pace.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use super::http::{Body, Http};
use super::post::{Post, WINDOW};
use crate::update::message::{Offer, State, chunk_topic};

/// A chunk that has not come after this is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// A download that gains less than [`LEAST`] bytes in this time is broken off, to be tried again.
const PATIENCE: Duration = Duration::from_secs(60);
const LEAST: u64 = 4096;
/// Longest pause between two looks at what else has come.
const TURN: Duration = Duration::from_millis(200);

enum Origin {
    /// All has come before.
    Nowhere,
    Http(Body),
    Chunks {
        /// Topics' group.
        group: String,
        /// The chunk in hand, and how much of it was read.
        chunk: Vec<u8>,
        used: usize,
        next: u64,
        /// Bytes of the next one that have come before.
        skip: usize,
    },
}

/// See the [module](self). An error is never the end of the file.
pub(super) struct Inflow<'a> {
    post: &'a mut Post,
    offer: Offer,
    from: Origin,
    at: u64,
    pace: Pace,
    /// Where the download was, and when, for the sake of [`PATIENCE`].
    mark: (u64, Instant),
}

/// Bytes a second, over the time since the begin.
struct Pace {
    bytes_per_s: u64,
    began: Instant,
    bytes: u64,
}

impl Pace {
    /// How long to wait after so many more bytes.
    fn took(&mut self, bytes: usize) -> Duration {
        self.bytes += bytes as u64;
        if self.bytes_per_s == 0 {
            return Duration::ZERO;
        }
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_s as f64);
        due.saturating_sub(self.began.elapsed())
    }
}

impl<'a> Inflow<'a> {
    /// Begins at byte `have`: over HTTP where the offer names an address, otherwise with the chunks.
    pub(super) fn open(post: &'a mut Post, offer: &Offer, http: &Http, kb_per_s: u32, have: u64) -> io::Result<Self> {
        post.gained = 0;
        let pace = Pace { bytes_per_s: u64::from(kb_per_s) * 1000, began: Instant::now(), bytes: 0 };
        let from = match (&offer.url, offer.chunks) {
            _ if have >= offer.bytes => Origin::Nowhere,
            (Some(url), chunks) => match http.get(url, have, offer.bytes) {
                Ok(body) => Origin::Http(body),
                Err(error) if chunks => {
                    log::warn!("updates: {error}; taking the chunks at the broker");
                    Self::chunks(post, offer, have)
                }
                Err(error) => return Err(io::Error::other(error)),
            },
            (None, _) => Self::chunks(post, offer, have),
        };
        let mark = (have, Instant::now());
        Ok(Self { post, offer: offer.clone(), from, at: have, pace, mark })
    }

    fn chunks(post: &mut Post, offer: &Offer, have: u64) -> Origin {
        post.chunks.clear();
        let chunk_bytes = u64::from(offer.chunk_bytes);
        // The first byte that is missing lies somewhere in a chunk.
        let (next, skip) = (have / chunk_bytes, (have % chunk_bytes) as usize);
        let group = post.plan.group_of(offer).and_then(|group| post.groups.get(group).cloned()).unwrap_or_default();
        Origin::Chunks { group, chunk: Vec::new(), used: 0, next, skip }
    }

    /// A turn for everything else, and the reasons to break off.
    fn look_around(&mut self, wait: Duration) -> io::Result<()> {
        self.post.turn(wait);
        if let Some(why) = self.post.called_off(Some(&self.offer)) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
        }
        if self.at - self.mark.0 >= LEAST {
            self.mark = (self.at, Instant::now());
        } else if self.mark.1.elapsed() >= PATIENCE {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "next to nothing came for a minute"));
        }
        Ok(())
    }

    /// Waits for the next chunk.
    fn next_chunk(&mut self) -> io::Result<()> {
        let mut asked = Instant::now();
        self.ask();
        loop {
            let Origin::Chunks { group, next, .. } = &self.from else { return Ok(()) };
            let topic = chunk_topic(group, &self.offer.bundle, *next);
            let Some(place) = self.post.chunks.iter().position(|(known, _)| *known == topic) else {
                self.look_around(TURN)?;
                if asked.elapsed() >= ASK_AGAIN {
                    asked = Instant::now();
                    // The broker sends what it kept once more to who subscribes anew.
                    self.want(Vec::new());
                    self.look_around(TURN)?;
                    self.ask();
                }
                continue;
            };
            let (_, bytes) = self.post.chunks.swap_remove(place);
            let (chunk_bytes, index) = (u64::from(self.offer.chunk_bytes), *next);
            let length = (self.offer.bytes.saturating_sub(index * chunk_bytes)).min(chunk_bytes);
            if bytes.len() as u64 != length {
                log::warn!("updates: a chunk of {} bytes came, {length} were offered; it is passed over", bytes.len());
                self.look_around(TURN)?;
                continue;
            }
            if let Origin::Chunks { chunk, used, next, skip, .. } = &mut self.from {
                (*chunk, *used) = (bytes, std::mem::take(skip));
                *next += 1;
            }
            return Ok(());
        }
    }

    /// Subscribes to the next few chunks.
    fn ask(&self) {
        let Origin::Chunks { group, next, .. } = &self.from else { return };
        let end = (next + WINDOW as u64).min(self.offer.chunk_count());
        self.want((*next..end).map(|index| chunk_topic(group, &self.offer.bundle, index)).collect());
    }

    fn want(&self, topics: Vec<String>) {
        if let Some(link) = &self.post.link {
            link.want(topics);
        }
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.offer.bytes {
            return Ok(0);
        }
        loop {
            match &mut self.from {
                Origin::Nowhere => return Ok(0),
                Origin::Http(body) => match body.read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                },
                Origin::Chunks { chunk, used, .. } => {
                    let rest = chunk.get(*used..).unwrap_or_default();
                    if !rest.is_empty() {
                        let part = rest.len().min(buffer.len());
                        buffer[..part].copy_from_slice(&rest[..part]);
                        *used += part;
                        return Ok(part);
                    }
                    self.next_chunk()?;
                    continue;
                }
            }
            self.look_around(Duration::ZERO)?;
        }
    }
}

impl Read for Inflow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let part = self.read_some(buffer)?;
        self.at += part as u64;
        self.post.gained += part as u64;
        let progress = self.at as f32 / self.offer.bytes.max(1) as f32;
        self.post.say(State::Download, Some(progress), None);
        let mut wait = self.pace.took(part);
        self.look_around(Duration::ZERO)?;
        while !wait.is_zero() {
            let step = wait.min(TURN);
            self.look_around(step)?;
            wait -= step;
        }
        Ok(part)
    }
}

impl Drop for Inflow<'_> {
    fn drop(&mut self) {
        self.want(Vec::new());
        self.post.chunks.clear();
    }
}
