//! What the broker keeps about stations and offers, in bounded memory whatever is sent.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::connection::Heard;
use super::rollout::Fate;
use crate::clock::{Date, Moment};
use crate::hidden::shown;
use crate::update::message::{Offer, Report, State, in_wave};

/// Stations that are held; those beyond are counted and passed over.
pub const MAX_STATIONS: usize = 10_000;
/// Offers that are held.
pub const MAX_OFFERS: usize = 1_000;
/// Bytes of a status.
const MAX_STATUS: usize = 4096;
/// Characters of a text in a status.
const MAX_WORD: usize = 64;

/// Line and name of a station.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Second word of its topics.
    pub line: String,
    /// Third word.
    pub station: String,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.line, self.station)
    }
}

/// What a station says of itself on `status`. What is not there is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// `online` or `offline`.
    pub state: String,
    /// The first 8 digits of the model in force.
    pub model: String,
    /// `up`, `down`, `starting` or `off`.
    pub camera: String,
    /// The store of verdicts, as `camera`.
    pub outbox: String,
    /// Good cells have moved away from the fit.
    pub drift: bool,
    /// Its cellgate.
    pub software: String,
}

/// All that is known of a station.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Station {
    /// Its word on `status`; none if it never said one that can be read.
    pub status: Option<Status>,
    /// Its word on `update`.
    pub report: Option<Report>,
    /// When it said something new, by our clock.
    pub heard: Moment,
}

impl Station {
    /// Whether it is there; none if it never said.
    #[must_use]
    pub fn is_online(&self) -> Option<bool> {
        self.status.as_ref().map(|status| status.state == "online")
    }

    /// Whether it belongs to a group.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.report.as_ref().is_some_and(|report| report.groups.iter().any(|own| own == group))
    }

    /// Seconds since it wrote its report, by both clocks; none if there is no report or the clocks contradict each other.
    #[must_use]
    pub fn age_s(&self, now: Date) -> Option<u64> {
        let written = self.report.as_ref()?.time.as_millis();
        now.as_millis().checked_sub(written).map(|age| age / 1000)
    }

    /// What became of an offer here, if it has reached this station: it is not for another group, wave, or a station that
    /// has a newer model already.
    #[must_use]
    pub fn fate(&self, name: &Name, group: &str, offer: &Offer) -> Option<Fate> {
        let report = self.report.as_ref()?;
        if !self.is_in(group) || report.number > offer.number || !in_wave(&name.line, &name.station, offer) {
            return None;
        }
        let failed = report.refused.iter().chain(&report.rolled_back).any(|refused| refused.number == offer.number);
        if report.number == offer.number {
            return Some(if report.state == State::Probation { Fate::Working } else { Fate::Good });
        }
        let began = report.bundle == Some(offer.bundle) && !matches!(report.state, State::Good | State::Waiting);
        Some(match failed {
            true => Fate::Failed,
            // One that went away in the midst of it may have been killed by it. One that speaks Sparkplug has no status.
            false if self.is_online() == Some(false) && !began => Fate::Away,
            false => Fate::Working,
        })
    }
}

/// What a message changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A station.
    Station(Name),
    /// A group's offer.
    Offer(String),
}

/// The fleet.
#[derive(Clone, Debug, Default)]
pub struct View {
    stations: BTreeMap<Name, Station>,
    offers: BTreeMap<String, Offer>,
    /// Messages that could not be read, or were too many.
    pub passed_over: u64,
}

/// The topics of which a view is made.
#[must_use]
pub fn topics() -> Vec<String> {
    ["cellgate/+/+/status", "cellgate/+/+/update", "cellgate/fleet/+/offer"].map(str::to_owned).to_vec()
}

/// A word of a topic that can be shown and filtered by.
fn is_word(word: &str) -> bool {
    !word.is_empty() && word.len() <= 64 && word.chars().all(|c| shown(c) == c)
}

impl View {
    /// Takes in a message, and says what changed.
    pub fn take(&mut self, heard: &Heard) -> Option<Change> {
        let words: Vec<&str> = heard.topic.splitn(5, '/').collect();
        let taken = match words[..] {
            ["cellgate", "fleet", group, "offer"] if is_word(group) => self.take_offer(group, &heard.payload),
            ["cellgate", line, station, last @ ("status" | "update")] if is_word(line) && is_word(station) => {
                let name = Name { line: line.into(), station: station.into() };
                self.take_word(name, last == "status", &heard.payload)
            }
            _ => Err(PassedOver),
        };
        taken.unwrap_or_else(|PassedOver| {
            self.passed_over += 1;
            None
        })
    }

    /// A group's offer is known to be this one, before the broker has said so.
    pub fn set_offer(&mut self, group: &str, offer: &Offer) {
        if let Some(known) = self.offers.get_mut(group) {
            offer.clone_into(known);
        }
    }

    fn take_offer(&mut self, group: &str, payload: &[u8]) -> Result<Option<Change>, PassedOver> {
        let is_known = self.offers.contains_key(group);
        if payload.is_empty() {
            self.offers.remove(group);
            return Ok(is_known.then(|| Change::Offer(group.into())));
        }
        if !is_known && self.offers.len() >= MAX_OFFERS {
            return Err(PassedOver);
        }
        let offer = Offer::decode(payload).map_err(|_| PassedOver)?;
        let before = self.offers.insert(group.into(), offer.clone());
        Ok((before != Some(offer)).then(|| Change::Offer(group.into())))
    }

    fn take_word(&mut self, name: Name, is_status: bool, payload: &[u8]) -> Result<Option<Change>, PassedOver> {
        let is_known = self.stations.contains_key(&name);
        // An empty message takes back what was said.
        if payload.is_empty() && !is_known {
            return Ok(None);
        }
        if !is_known && self.stations.len() >= MAX_STATIONS {
            return Err(PassedOver);
        }
        let read = |is_wanted: bool| (is_wanted && !payload.is_empty()).then_some(payload);
        let status = read(is_status).map(status).transpose()?;
        let report = read(!is_status).map(Report::decode).transpose().map_err(|_| PassedOver)?;
        let station = self.stations.entry(name.clone()).or_default();
        let changed = if is_status {
            std::mem::replace(&mut station.status, status.clone()) != status
        } else {
            std::mem::replace(&mut station.report, report.clone()) != report
        };
        station.heard = Moment::now();
        if station.status.is_none() && station.report.is_none() {
            self.stations.remove(&name);
        }
        Ok(changed.then_some(Change::Station(name)))
    }

    /// The stations, by line and name.
    pub fn stations(&self) -> impl Iterator<Item = (&Name, &Station)> {
        self.stations.iter()
    }

    /// One of them.
    #[must_use]
    pub fn station(&self, name: &Name) -> Option<&Station> {
        self.stations.get(name)
    }

    /// What is offered, by group.
    pub fn offers(&self) -> impl Iterator<Item = (&str, &Offer)> {
        self.offers.iter().map(|(group, offer)| (group.as_str(), offer))
    }

    /// What is offered to a group.
    #[must_use]
    pub fn offer(&self, group: &str) -> Option<&Offer> {
        self.offers.get(group)
    }
}

/// A message that cannot be read, or is one too many.
struct PassedOver;

fn status(payload: &[u8]) -> Result<Status, PassedOver> {
    if payload.len() > MAX_STATUS {
        return Err(PassedOver);
    }
    let mut status: Status = serde_json::from_slice(payload).map_err(|_| PassedOver)?;
    let Status { state, model, camera, outbox, software, .. } = &mut status;
    for text in [state, model, camera, outbox, software] {
        *text = text.chars().take(MAX_WORD).map(shown).collect();
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::bundle::Hash;
    use crate::update::message::{CHUNK_BYTES, Refused};

    fn heard(topic: &str, payload: &str) -> Heard {
        Heard { topic: topic.into(), payload: payload.into() }
    }

    fn offer() -> Offer {
        Offer {
            number: 8,
            bundle: Hash::of(b"8"),
            bytes: 9,
            url: None,
            chunks: true,
            chunk_bytes: CHUNK_BYTES,
            percent: 100,
            salt: String::new(),
            halted: false,
            issued: Date::from_millis(0),
        }
    }

    fn report() -> Report {
        Report {
            number: 7,
            model: "ab".repeat(32),
            groups: vec!["pilot".into()],
            software: "0.1.0".into(),
            time: Date::from_millis(5_000),
            ..Report::default()
        }
    }

    #[test]
    fn stations_and_offers_come_change_and_go_with_what_the_broker_keeps() {
        let mut view = View::default();
        let name = Name { line: "l1".into(), station: "el-1".into() };
        let is_station = Some(Change::Station(name.clone()));
        assert_eq!(view.take(&heard("cellgate/l1/el-1/status", "{\"state\":\"online\",\"boot\":3}")), is_station);
        assert_eq!(view.take(&heard("cellgate/l1/el-1/status", "{\"state\":\"online\",\"boot\":4}")), None);
        assert_eq!(view.take(&heard("cellgate/l1/el-1/update", &report().encode())), is_station);
        let station = view.station(&name).unwrap();
        assert_eq!((station.is_online(), station.is_in("pilot"), station.is_in("p")), (Some(true), true, false));
        assert_eq!(station.age_s(Date::from_millis(7_999)), Some(2));
        assert_eq!(station.age_s(Date::from_millis(4_999)), None, "its clock runs ahead of ours");
        let is_offer = Some(Change::Offer("pilot".into()));
        assert_eq!(view.take(&heard("cellgate/fleet/pilot/offer", &offer().encode().unwrap())), is_offer);
        assert_eq!(view.take(&heard("cellgate/fleet/pilot/offer", &offer().encode().unwrap())), None);
        assert_eq!(view.take(&heard("cellgate/fleet/pilot/offer", "")), is_offer);
        assert_eq!(view.take(&heard("cellgate/l1/el-1/status", "")), is_station);
        assert_eq!(view.take(&heard("cellgate/l1/el-1/update", "")), is_station);
        assert_eq!((view.stations().count(), view.offers().count(), view.passed_over), (0, 0, 0));
    }

    #[test]
    fn hostile_topics_and_payloads_are_counted_and_leave_what_was_known() {
        let mut view = View::default();
        view.take(&heard("cellgate/l1/el-1/update", &report().encode()));
        let long = format!("{{\"state\":\"{}\"}}", "x".repeat(5000));
        for (topic, payload) in [
            ("", "{}"),
            ("cellgate/l1/el-1/update/more", "{}"),
            ("cellgate//el-1/status", "{}"),
            ("cellgate/l1/\u{1b}[2J/status", "{}"),
            ("cellgate/l1/\u{202e}x/status", "{}"),
            (&format!("cellgate/l1/{}/status", "x".repeat(65)), "{}"),
            ("cellgate/fleet/\n/offer", "{}"),
            ("cellgate/l1/el-1/update", "{}"),
            ("cellgate/l1/el-1/update", &long),
            ("cellgate/l1/el-1/status", &long),
            ("cellgate/l1/el-1/status", "[]]"),
            ("cellgate/fleet/pilot/offer", "{\"number\":0}"),
        ] {
            let before = view.passed_over;
            assert_eq!(view.take(&heard(topic, payload)), None, "{topic}");
            assert_eq!(view.passed_over, before + 1, "{topic}");
        }
        view.take(&heard("cellgate/l1/el-1/status", "{\"state\":\"on\\u001bline\"}"));
        let (_, station) = view.stations().next().unwrap();
        assert_eq!(station.report, Some(report()));
        assert_eq!(station.status.as_ref().unwrap().state, "on\u{fffd}line");
        assert_eq!(view.stations().count(), 1);
    }

    #[test]
    fn no_more_stations_and_offers_are_held_than_there_is_room_for() {
        let mut view = View::default();
        for i in 0..MAX_STATIONS + 7 {
            view.take(&heard(&format!("cellgate/l/s{i}/status"), "{}"));
        }
        for i in 0..MAX_OFFERS + 3 {
            view.take(&heard(&format!("cellgate/fleet/g{i}/offer"), &offer().encode().unwrap()));
        }
        assert_eq!((view.stations().count(), view.offers().count()), (MAX_STATIONS, MAX_OFFERS));
        assert_eq!(view.passed_over, 10);
    }

    #[test]
    fn the_fate_of_an_offer_follows_from_the_report_and_from_whether_the_station_is_there() {
        let name = Name { line: "l1".into(), station: "el-1".into() };
        let online = Status { state: "online".into(), ..Status::default() };
        let mut station = Station { status: Some(online), report: Some(report()), heard: Moment::default() };
        let fate = |station: &Station| station.fate(&name, "pilot", &offer());
        assert_eq!(fate(&station), Some(Fate::Working));
        station.status = None;
        assert_eq!(fate(&station), Some(Fate::Working), "it speaks Sparkplug");
        station.status = Some(Status { state: "offline".into(), ..Status::default() });
        assert_eq!(fate(&station), Some(Fate::Away));
        let with = |change: &dyn Fn(&mut Report)| {
            let mut station = station.clone();
            change(station.report.as_mut().unwrap());
            fate(&station)
        };
        let began = |report: &mut Report, state| (report.state, report.bundle) = (state, Some(offer().bundle));
        assert_eq!(with(&|report| began(report, State::Waiting)), Some(Fate::Away));
        assert_eq!(with(&|report| began(report, State::Download)), Some(Fate::Working), "it went away in its midst");
        assert_eq!(with(&|report| (report.state, report.number) = (State::Probation, 8)), Some(Fate::Working));
        assert_eq!(with(&|report| report.number = 8), Some(Fate::Good));
        assert_eq!(with(&|report| report.number = 9), None, "it has a newer one");
        let refused = || Refused { number: 8, why: "x".into() };
        assert_eq!(with(&|report| report.refused = vec![refused()]), Some(Fate::Failed));
        assert_eq!(with(&|report| report.rolled_back = Some(refused())), Some(Fate::Failed));
        assert_eq!(with(&|report| report.rolled_back = Some(Refused { number: 5, ..refused() })), Some(Fate::Away));
        assert_eq!(station.fate(&name, "others", &offer()), None);
        assert_eq!(station.fate(&name, "pilot", &Offer { percent: 0, ..offer() }), None);
        assert_eq!(fate(&Station { report: None, ..station.clone() }), None, "it has no agent");
    }
}
