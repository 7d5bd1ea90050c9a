//! What stations and those who send updates tell each other over the broker.
//!
//! ```text
//!  cellgate/fleet/<group>/offer                     retained: an Offer; an empty message takes it back
//!  cellgate/fleet/<group>/bundle/<hash>/<index>     retained: the bundle's chunks, if it travels through the broker
//!  cellgate/<line>/<station>/update                 retained: the station's Report
//! ```
//!
//! An offer is a hint: whoever may write to the broker may send one, and all trust lies in the signatures of the bundle
//! that it points to. All texts are JSON; what is too long, out of range or not of this form is refused whole. Fields that
//! are not known are passed over, so that later versions may add some.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::bundle::{Hash, MAX_GOLDEN, MAX_MODEL, MAX_NOTE};
use crate::clock::Date;
use crate::hidden::shown;

/// Bytes of an offer at most.
pub const MAX_OFFER: usize = 4096;
/// Bytes of a report at most.
pub const MAX_REPORT: usize = 4096;
/// Bytes of a chunk, but for the last one, unless the offer says otherwise.
pub const CHUNK_BYTES: u32 = 64 << 10;
/// The smallest chunk that an offer may name. The largest is [`CHUNK_BYTES`].
pub const MIN_CHUNK: u32 = 1 << 10;
/// Refusals that a report lists: the last so many.
pub const MAX_REFUSED: usize = 8;
/// Groups that a station belongs to at most, each of at most 64 bytes.
pub const MAX_GROUPS: usize = 8;
/// Characters of a report's texts at most.
pub const MAX_TEXT: usize = 200;

const MAX_URL: usize = 1024;
const MAX_SALT: usize = 64;
/// A bundle may be a little longer than what it holds.
const MAX_BUNDLE: u64 = (MAX_MODEL + MAX_GOLDEN + MAX_NOTE) / 8 * 9 + (1 << 20);

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// It is too long.
    #[error("reading {what}: {bytes} bytes, at most {most} are allowed")]
    TooLong {
        /// An offer or a report.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// What is allowed.
        most: usize,
    },
    /// It is no JSON of this form.
    #[error("reading {what}: {why}")]
    Form {
        /// An offer or a report.
        what: &'static str,
        /// What is wrong, and where.
        why: String,
    },
    /// A value is out of range.
    #[error("reading {what}: {key} {why}")]
    Value {
        /// An offer or a report.
        what: &'static str,
        /// The field.
        key: &'static str,
        /// What is allowed.
        why: &'static str,
    },
}

/// A bundle is offered to a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The bundle's version, from 1.
    pub number: u64,
    /// BLAKE3 of the whole `.cgb`.
    #[serde(with = "as_text")]
    pub bundle: Hash,
    /// Bytes of the whole `.cgb`.
    pub bytes: u64,
    /// Where it can be fetched: `https://…`; `http://…` only where the station's configuration allows it.
    #[serde(default)]
    pub url: Option<String>,
    /// Whether it also lies in chunks at the broker.
    #[serde(default)]
    pub chunks: bool,
    /// Bytes of each chunk but the last, [`MIN_CHUNK`] to [`CHUNK_BYTES`].
    #[serde(default = "chunk_bytes")]
    pub chunk_bytes: u32,
    /// Stations of the group that are to take it, 0 to 100; see [`in_wave`].
    pub percent: u8,
    /// Deals the stations into other waves; empty: by the bundle alone.
    #[serde(default)]
    pub salt: String,
    /// Nobody is to begin; who has not put it in force yet stops.
    #[serde(default)]
    pub halted: bool,
    /// When it was sent, by the sender's clock: for people.
    #[serde(with = "as_text")]
    pub issued: Date,
}

fn chunk_bytes() -> u32 {
    CHUNK_BYTES
}

impl Offer {
    /// Reads what came on the topic; an empty message takes an offer back and is none.
    ///
    /// # Errors
    /// If it is too long, of another form, or a value is out of range.
    pub fn decode(payload: &[u8]) -> Result<Self, MessageError> {
        let offer: Self = decode("an offer", payload, MAX_OFFER)?;
        offer.check()?;
        Ok(offer)
    }

    /// The text for the topic.
    ///
    /// # Errors
    /// If a value is out of range.
    pub fn encode(&self) -> Result<String, MessageError> {
        self.check()?;
        encode("an offer", self, MAX_OFFER)
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunk_count(&self) -> u64 {
        self.bytes.div_ceil(self.chunk_bytes.max(1).into())
    }

    fn check(&self) -> Result<(), MessageError> {
        let wrong = |key, why| Err(MessageError::Value { what: "an offer", key, why });
        if self.number == 0 {
            return wrong("number", "must be at least 1");
        }
        if self.bytes == 0 || self.bytes > MAX_BUNDLE {
            return wrong("bytes", "is 0 or more than a bundle can have");
        }
        if self.percent > 100 {
            return wrong("percent", "must be 0 to 100");
        }
        if !(MIN_CHUNK..=CHUNK_BYTES).contains(&self.chunk_bytes) {
            return wrong("chunk_bytes", "must be 1024 to 65536");
        }
        if self.salt.len() > MAX_SALT {
            return wrong("salt", "has more than 64 bytes");
        }
        if let Some(url) = &self.url {
            let plain = url.len() <= MAX_URL && url.bytes().all(|byte| byte.is_ascii_graphic());
            if !plain || !(url.starts_with("https://") || url.starts_with("http://")) {
                return wrong("url", "must begin with https:// and have at most 1024 plain characters");
            }
        }
        Ok(())
    }
}

/// Where a station's update is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing is under way, and the model in force is good.
    #[default]
    Good,
    /// An offer is for this station, but not yet: another wave, halted, its share of the time, or the next attempt.
    Waiting,
    /// The bundle comes in, and each byte is checked.
    Download,
    /// It has come, and is checked as a whole.
    Verify,
    /// It is unpacked into the slot that is not in use.
    Stage,
    /// It judges its golden frames.
    Prove,
    /// It judges live frames beside the model in force.
    Shadow,
    /// It is in force and watched.
    Probation,
    /// The offered one is not taken; the model in force stays. `refused` says why.
    Refused,
    /// The offered one could not be had so far, and is tried again. `last` says why.
    Failed,
    /// What a later cellgate says and this one does not know.
    #[serde(other)]
    Unknown,
}

/// A version that this station does not take any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The bundle's version.
    pub number: u64,
    /// Why.
    pub why: String,
}

/// What live frames said of the new model beside the old one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shadow {
    /// Frames that both have judged.
    pub frames: u32,
    /// Those on which they differ in class, or in whether there is one.
    pub flips: u32,
    /// The mean difference of the scores, 0 to 1.
    pub mean: f32,
    /// The largest difference of the scores, 0 to 1.
    pub largest: f32,
}

/// How a station does with its updates. At first nothing is under way, and nothing is known of the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where it is.
    pub state: State,
    /// Version of the bundle in force; 0: the model that the configuration names.
    pub number: u64,
    /// The model in force, as verdicts name it: 64 hexadecimal digits.
    pub model: String,
    /// BLAKE3 of the model file in force, to which a difference can be sent; none if no bundle brought it.
    #[serde(default, with = "as_optional_text")]
    pub file: Option<Hash>,
    /// The groups whose offers the station listens to; at most [`MAX_GROUPS`].
    #[serde(default)]
    pub groups: Vec<String>,
    /// Version that is offered, or under way.
    #[serde(default)]
    pub offered: Option<u64>,
    /// BLAKE3 of that bundle.
    #[serde(default, with = "as_optional_text")]
    pub bundle: Option<Hash>,
    /// How far the state has come, 0 to 1.
    #[serde(default)]
    pub progress: Option<f32>,
    /// What the shadow said last.
    #[serde(default)]
    pub shadow: Option<Shadow>,
    /// The last versions that are never taken again without having been in force (proof, shadow) or as long as the offer
    /// stays as it is (not for this station, expired, not signed as it must), the newest last; at most [`MAX_REFUSED`].
    #[serde(default)]
    pub refused: Vec<Refused>,
    /// The last version that was in force and was taken back.
    #[serde(default)]
    pub rolled_back: Option<Refused>,
    /// The last thing that happened, for people.
    pub last: String,
    /// The station's cellgate.
    pub software: String,
    /// When this was written, by the station's clock.
    #[serde(with = "as_text")]
    pub time: Date,
}

impl Report {
    /// Reads what came on the topic. Its texts can be shown: they are cut to [`MAX_TEXT`] characters, and what a screen
    /// would obey is marked.
    ///
    /// # Errors
    /// If it is too long, of another form, or a value is out of range.
    pub fn decode(payload: &[u8]) -> Result<Self, MessageError> {
        let mut report: Self = decode("a report", payload, MAX_REPORT)?;
        if report.refused.len() > MAX_REFUSED {
            return Err(MessageError::Value { what: "a report", key: "refused", why: "lists more than 8" });
        }
        if report.groups.len() > MAX_GROUPS {
            return Err(MessageError::Value { what: "a report", key: "groups", why: "lists more than 8" });
        }
        report.progress = report.progress.map(|share| share.clamp(0.0, 1.0));
        report.tidy();
        Ok(report)
    }

    /// The text for the topic, never longer than [`MAX_REPORT`]: the oldest refusals are left out, and texts are cut.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut report = self.clone();
        let surplus = report.refused.len().saturating_sub(MAX_REFUSED);
        report.refused.drain(..surplus);
        report.tidy();
        loop {
            match encode("a report", &report, MAX_REPORT) {
                Ok(text) => return text,
                Err(_) if !report.refused.is_empty() => drop(report.refused.remove(0)),
                // Characters of many bytes: three texts of 50 always fit.
                Err(_) => {
                    report.rolled_back = None;
                    report.last = cut(&report.last, 50);
                }
            }
        }
    }

    fn tidy(&mut self) {
        let whys = self.refused.iter_mut().chain(&mut self.rolled_back).map(|refused| &mut refused.why);
        for text in whys.chain([&mut self.last]) {
            *text = cut(text, MAX_TEXT);
        }
        for text in self.groups.iter_mut().chain([&mut self.software, &mut self.model]) {
            *text = cut(text, 64);
        }
    }
}

/// So many characters of a text, as they may be shown.
fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).map(shown).collect()
}

/// Whether a station belongs to the first `percent` of a hundred parts into which all stations fall by a hash of line,
/// station, bundle and salt. It stays in as `percent` grows.
#[must_use]
pub fn in_wave(line: &str, station: &str, offer: &Offer) -> bool {
    let mut hash = blake3::Hasher::new();
    // No name has a slash: what is told apart here is told apart there.
    for part in ["cellgate wave 1", line, station, offer.salt.as_str()] {
        hash.update(part.as_bytes()).update(b"/");
    }
    hash.update(&offer.bundle.0);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first) % 100 < offer.percent.into()
}

/// The topic of a group's offer.
#[must_use]
pub fn offer_topic(group: &str) -> String {
    format!("cellgate/fleet/{group}/offer")
}

/// The topic of a chunk of a bundle, counted from 0.
#[must_use]
pub fn chunk_topic(group: &str, bundle: &Hash, index: u64) -> String {
    format!("cellgate/fleet/{group}/bundle/{bundle}/{index}")
}

/// The topic of a station's report.
#[must_use]
pub fn report_topic(line: &str, station: &str) -> String {
    format!("cellgate/{line}/{station}/update")
}

fn decode<T: for<'a> Deserialize<'a>>(what: &'static str, payload: &[u8], most: usize) -> Result<T, MessageError> {
    if payload.len() > most {
        return Err(MessageError::TooLong { what, bytes: payload.len(), most });
    }
    // What was sent may stand in the reason, up to any length.
    serde_json::from_slice(payload).map_err(|error| MessageError::Form { what, why: cut(&error.to_string(), MAX_TEXT) })
}

fn encode(what: &'static str, value: &impl Serialize, most: usize) -> Result<String, MessageError> {
    let text = serde_json::to_string(value).map_err(|error| MessageError::Form { what, why: error.to_string() })?;
    let bytes = text.len();
    if bytes > most { Err(MessageError::TooLong { what, bytes, most }) } else { Ok(text) }
}

/// A value in JSON as people write it.
mod as_text {
    use super::*;

    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The same of a value that may be missing.
mod as_optional_text {
    use super::*;

    pub fn serialize<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(ToString::to_string).serialize(serializer)
    }

    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        Offer {
            number: 8,
            bundle: Hash::of(b"bundle"),
            bytes: 200_000,
            url: Some("https://updates.example/line1-8.cgb".into()),
            chunks: true,
            chunk_bytes: CHUNK_BYTES,
            percent: 10,
            salt: String::new(),
            halted: false,
            issued: Date::from_millis(1_800_000_000_123),
        }
    }

    fn report() -> Report {
        Report {
            state: State::Probation,
            number: 8,
            model: Hash::of(b"model").to_string(),
            file: Some(Hash::of(b"file")),
            groups: vec!["pilot".into()],
            offered: Some(8),
            bundle: Some(Hash::of(b"bundle")),
            progress: Some(0.5),
            shadow: Some(Shadow { frames: 20, flips: 1, mean: 0.01, largest: 0.25 }),
            refused: vec![Refused { number: 7, why: "failed its proof".into() }],
            rolled_back: Some(Refused { number: 6, why: "too many cells were rejected".into() }),
            last: "version 8 is in force".into(),
            software: "0.1.0".into(),
            time: Date::from_millis(1_800_000_000_123),
        }
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let text = offer().encode().unwrap();
        assert_eq!(Offer::decode(text.as_bytes()), Ok(offer()), "{text}");
        assert!(text.contains("\"issued\":\"2027-01-15T08:00:00.123Z\""), "{text}");
        assert_eq!(offer().chunk_count(), 4);
        let text = report().encode();
        assert_eq!(Report::decode(text.as_bytes()), Ok(report()), "{text}");
        let later = text.replace("probation", "meditation");
        assert_eq!(Report::decode(later.as_bytes()).unwrap().state, State::Unknown);
    }

    #[test]
    fn an_offer_needs_only_what_has_no_default_and_later_fields_are_passed_over() {
        let text = format!(
            "{{\"number\":1,\"bundle\":\"{}\",\"bytes\":5,\"percent\":100,\"issued\":\"2027-01-15T08:00:00.000Z\",\"new\":[1]}}",
            Hash::of(b"")
        );
        let read = Offer::decode(text.as_bytes()).unwrap();
        assert_eq!((read.url, read.chunks, read.chunk_bytes, read.halted), (None, false, CHUNK_BYTES, false));
    }

    #[test]
    fn what_is_out_of_range_is_refused_with_its_name() {
        type Change = fn(&mut Offer);
        let changes: [(Change, &str); 9] = [
            (|offer| offer.number = 0, "number must"),
            (|offer| offer.bytes = 0, "bytes is 0"),
            (|offer| offer.bytes = u64::MAX, "bytes is 0 or more"),
            (|offer| offer.percent = 101, "percent must"),
            (|offer| offer.chunk_bytes = 0, "chunk_bytes must"),
            (|offer| offer.chunk_bytes = u32::MAX, "chunk_bytes must"),
            (|offer| offer.salt = "x".repeat(65), "salt has"),
            (|offer| offer.url = Some("file:///etc/passwd".into()), "url must"),
            (|offer| offer.url = Some("https://a/\r\nHost: b".into()), "url must"),
        ];
        for (change, said) in changes {
            let mut bad = offer();
            change(&mut bad);
            let error = bad.encode().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
            let text = serde_json::to_string(&bad).unwrap();
            assert_eq!(Offer::decode(text.as_bytes()).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn what_is_no_offer_or_report_is_refused() {
        let good = offer().encode().unwrap();
        let hash = Hash::of(b"bundle").to_string();
        for bad in [
            "",
            "null",
            "[]",
            "{}",
            &good[1..],
            &good[..good.len() - 1],
            &format!("{good}x"),
            &good.replace("\"number\":8", "\"number\":-8"),
            &good.replace("\"percent\":10", "\"percent\":300"),
            &good.replace(&hash, &hash[1..]),
            &good.replace(&hash, &hash.to_uppercase()),
            &good.replace("2027-01-15", "2027-13-15"),
            &"[".repeat(4000),
        ] {
            assert!(Offer::decode(bad.as_bytes()).is_err(), "{bad}");
            assert!(Report::decode(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Offer::decode(&[0xff; 40]).is_err());
        let long = format!("{good}{}", " ".repeat(MAX_OFFER));
        assert!(matches!(Offer::decode(long.as_bytes()), Err(MessageError::TooLong { .. })));
    }

    #[test]
    fn a_report_always_fits_and_says_nothing_that_a_screen_would_obey() {
        let long = Refused { number: 1, why: "\u{1f600}\u{1b}\"".repeat(500) };
        let report =
            Report { refused: vec![long.clone(); 20], rolled_back: Some(long.clone()), last: long.why, ..report() };
        let text = report.encode();
        let read = Report::decode(text.as_bytes()).unwrap();
        assert!(text.len() <= MAX_REPORT && read.refused.len() <= MAX_REFUSED && !read.last.contains('\u{1b}'));
        assert!(read.last.chars().count() <= MAX_TEXT);
        let many = Report { refused: vec![Refused { number: 1, why: String::new() }; 9], ..report };
        let text = serde_json::to_string(&Report { rolled_back: None, last: String::new(), ..many }).unwrap();
        assert!(Report::decode(text.as_bytes()).is_err());
    }

    #[test]
    fn a_wave_holds_its_share_of_the_stations_and_only_grows() {
        let count = |percent, salt: &str| {
            let offer = Offer { percent, salt: salt.into(), ..offer() };
            (0..1000).filter(|i| in_wave("line1", &format!("el-{i}"), &offer)).collect::<Vec<_>>()
        };
        assert!(count(0, "").is_empty());
        assert_eq!(count(100, "").len(), 1000);
        let (small, large) = (count(10, ""), count(50, ""));
        assert!((60..140).contains(&small.len()), "{}", small.len());
        assert!(small.iter().all(|station| large.contains(station)));
        assert_ne!(small, count(10, "b"), "the salt deals them anew");
    }
}
