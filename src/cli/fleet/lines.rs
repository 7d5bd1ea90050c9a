//! Stations and offers as lines for people and as JSON for machines.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::broker::Filter;
use crate::clock::Date;
use crate::fleet::reach::{Checked, Standing, standing};
use crate::fleet::view::{Name, Station, View};
use crate::update::message::{Offer, Report, State};

/// A state as reports write it.
pub fn word(state: State) -> &'static str {
    match state {
        State::Good => "good",
        State::Waiting => "waiting",
        State::Download => "download",
        State::Verify => "verify",
        State::Stage => "stage",
        State::Prove => "prove",
        State::Shadow => "shadow",
        State::Probation => "probation",
        State::Refused => "refused",
        State::Failed => "failed",
        State::Unknown => "unknown",
    }
}

/// What a station is doing, with how far it is.
pub fn doing(report: &Report) -> String {
    match report.progress {
        Some(share) => format!("{} {:.0} %", word(report.state), 100.0 * share),
        None => word(report.state).to_owned(),
    }
}

fn online(station: &Station) -> &'static str {
    match station.is_online() {
        Some(true) => "yes",
        Some(false) => "no",
        None => "?",
    }
}

fn age(station: &Station, now: Date) -> String {
    match station.age_s(now) {
        None => "?".into(),
        Some(s @ 0..60) => format!("{s} s"),
        Some(s @ 60..3600) => format!("{} min", s / 60),
        Some(s @ 3600..172_800) => format!("{} h", s / 3600),
        Some(s) => format!("{} d", s / 86_400),
    }
}

const HEADS: [&str; 10] =
    ["line", "station", "online", "camera", "version", "model", "update", "offered", "age", "last"];

/// A station as a row of the table.
fn row(name: &Name, station: &Station, now: Date) -> [String; 10] {
    let report = station.report.as_ref();
    let text = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "–".into());
    let status = station.status.as_ref();
    let model = report.map_or_else(|| status.map(|s| s.model.clone()), |r| Some(r.model.chars().take(8).collect()));
    [
        name.line.clone(),
        name.station.clone(),
        online(station).into(),
        text(status.map(|s| s.camera.clone())),
        text(report.map(|r| r.number.to_string())),
        text(model),
        text(report.map(doing)),
        text(report.and_then(|r| r.offered).map(|number| number.to_string())),
        if report.is_some() { age(station, now) } else { "–".into() },
        text(report.map(|r| r.last.chars().take(60).collect())),
    ]
}

/// The table of all stations that the filter takes, at most so many lines of it.
pub fn table(view: &View, filter: &Filter, most: usize) -> String {
    let now = Date::now();
    let all: Vec<_> = view.stations().filter(|(name, station)| filter.takes(name, station)).collect();
    let rows: Vec<_> = all.iter().take(most).map(|(name, station)| row(name, station, now)).collect();
    let heads = HEADS.map(str::to_owned);
    let lines = || std::iter::once(&heads).chain(&rows);
    let widths: [usize; 10] =
        std::array::from_fn(|i| lines().map(|row| row[i].chars().count()).max().unwrap_or_default());
    let mut text = String::new();
    for row in lines() {
        let mut line = String::new();
        row.iter().zip(widths).for_each(|(cell, width)| line += &format!("{cell:<width$}  "));
        text += line.trim_end();
        text.push('\n');
    }
    if all.len() > rows.len() {
        text += &format!("… and {} more\n", all.len() - rows.len());
    }
    text
}

/// Counts by version and state, and what is offered.
pub fn summary(view: &View, filter: &Filter) -> String {
    let mut versions: BTreeMap<(u64, String), BTreeMap<&str, usize>> = BTreeMap::new();
    let (mut all, mut online, mut silent) = (0, 0, 0);
    for (_, station) in view.stations().filter(|(name, station)| filter.takes(name, station)) {
        all += 1;
        online += usize::from(station.is_online() == Some(true));
        match &station.report {
            Some(report) => {
                let model = (report.number, report.model.chars().take(8).collect());
                *versions.entry(model).or_default().entry(word(report.state)).or_default() += 1;
            }
            None => silent += 1,
        }
    }
    let mut text = format!("{all} stations, {online} online\n");
    for ((number, model), states) in versions {
        let states: Vec<String> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        text += &format!("version {number} ({model}): {}\n", states.join(", "));
    }
    if silent > 0 {
        text += &format!("{silent} say nothing of updates\n");
    }
    for (group, offer) in view.offers().filter(|(group, _)| filter.takes_group(group)) {
        text += &format!("offered to {group}: {}\n", offered(offer));
    }
    if view.passed_over > 0 {
        text += &format!("{} messages could not be read, or were too many\n", view.passed_over);
    }
    text
}

/// An offer in a few words.
pub fn offered(offer: &Offer) -> String {
    let halted = if offer.halted { ", HALTED" } else { "" };
    let way = match (&offer.url, offer.chunks) {
        (Some(url), false) => url.as_str(),
        (Some(_), true) => "URL and chunks",
        (None, true) => "chunks",
        (None, false) => "no way to fetch it",
    };
    format!(
        "version {} ({:.8}), {:.3} MB, {} %{halted}, {way}, since {}",
        offer.number,
        offer.bundle,
        offer.bytes as f64 / 1e6,
        offer.percent,
        offer.issued
    )
}

/// A bundle that was checked.
pub fn bundle(bundle: &Checked) -> String {
    let (version, megabytes) = (bundle.manifest.version, bundle.bytes as f64 / 1e6);
    format!("{}: version {version}, {megabytes:.3} MB, signed, every byte checked", bundle.path.display())
}

/// Says whom an offer reaches.
pub fn reach(view: &View, bundle: &Checked, group: &str, offer: &Offer) -> String {
    let mut counts: BTreeMap<Standing, Vec<String>> = BTreeMap::new();
    for (name, station) in view.stations() {
        if let Some(standing) = standing(bundle, name, station, group, offer) {
            counts.entry(standing).or_default().push(name.to_string());
        }
    }
    let all: usize = counts.values().map(Vec::len).sum();
    let mut text = format!("group {group}: {all} stations");
    for standing in Standing::ALL {
        if let Some(names) = counts.get(&standing) {
            let some = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let more = if names.len() > 5 { ", …" } else { "" };
            text += &format!("\n  {:>5} {} ({some}{more})", names.len(), standing.text());
        }
    }
    text
}

/// A station for machines.
pub fn station_json(name: &Name, station: &Station, now: Date) -> Value {
    let status = station.status.as_ref();
    let mut value = json!({
        "line": name.line, "station": name.station, "online": station.is_online(),
        "camera": status.map(|s| &s.camera), "outbox": status.map(|s| &s.outbox), "drift": status.map(|s| s.drift),
        "age_s": station.age_s(now),
    });
    // Every field of the report, under its own name.
    if let (Value::Object(all), Some(Ok(Value::Object(own)))) =
        (&mut value, station.report.as_ref().map(serde_json::to_value))
    {
        all.extend(own);
    }
    value
}

/// An offer for machines.
pub fn offer_json(group: &str, offer: Option<&Offer>) -> Value {
    json!({"group": group, "offer": offer})
}

/// The fleet for machines.
pub fn json(view: &View, filter: &Filter) -> Value {
    let now = Date::now();
    let stations: Vec<Value> = view
        .stations()
        .filter(|(name, station)| filter.takes(name, station))
        .map(|(name, station)| station_json(name, station, now))
        .collect();
    let offers: Vec<Value> = view
        .offers()
        .filter(|(group, _)| filter.takes_group(group))
        .map(|(group, offer)| offer_json(group, Some(offer)))
        .collect();
    json!({"stations": stations, "offers": offers, "passed_over": view.passed_over})
}
