//! A new model for many stations of one broker, in waves, while stations fail and the broker is started again.
//!
//! `CELLGATE_STATIONS=200 cargo test --test fleet_rollout -- --nocapture` does it with 200 and says what it took.
#![allow(missing_docs)]

#[path = "common/broker.rs"]
mod broker;
#[path = "common/fleet.rs"]
mod fleet;
#[path = "common/skip.rs"]
mod skip;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use broker::{Broker, Plc, wait_for};
use cellgate::clock::Date;
use cellgate::update::message::{Offer, Report, State, in_wave};
use fleet::{Manner, Station, command, refused, template, write_bundle, write_keys};
use rumqttc::QoS;

fn count() -> usize {
    std::env::var("CELLGATE_STATIONS").map_or(60, |text| text.parse().expect("CELLGATE_STATIONS must be a number"))
}

/// Sees every offer and report.
#[derive(Default)]
struct Seen {
    offers: Vec<Offer>,
    reports: BTreeMap<String, Report>,
    /// When a station was first seen to work on version 2, by its clock, which is ours.
    began: BTreeMap<String, Date>,
    /// Stations that ever judged with version 2.
    had: BTreeSet<String>,
}

struct Observer {
    seen: Arc<Mutex<Seen>>,
    messages: Arc<AtomicU64>,
}

impl Observer {
    fn watch(port: u16) -> Self {
        let (seen, messages) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicU64::new(0)));
        for topic in ["cellgate/fleet/+/offer", "cellgate/+/+/update"] {
            let plc = Plc::listen(port, topic);
            let (seen, messages) = (seen.clone(), messages.clone());
            std::thread::spawn(move || {
                while let Ok(message) = plc.heard.recv() {
                    messages.fetch_add(1, Ordering::Relaxed);
                    let words: Vec<&str> = message.topic.split('/').collect();
                    let mut seen = seen.lock().unwrap();
                    if words[1] == "fleet" {
                        seen.offers.extend(Offer::decode(&message.payload).ok());
                    } else {
                        let report = Report::decode(&message.payload).expect("reports are what they should be");
                        seen.take(format!("{}/{}", words[1], words[2]), report);
                    }
                }
            });
        }
        Self { seen, messages }
    }

    fn all(&self, mut holds: impl FnMut(&Report) -> bool) -> BTreeSet<String> {
        let seen = self.seen.lock().unwrap();
        seen.reports.iter().filter(|(_, report)| holds(report)).map(|(name, _)| name.clone()).collect()
    }

    /// Asserts that no station worked on version 2 before an offer had reached it.
    fn assert_waves(&self) {
        let seen = self.seen.lock().unwrap();
        for (name, began) in &seen.began {
            let (line, station) = name.split_once('/').unwrap();
            let reaches = |offer: &Offer| offer.issued <= *began && !offer.halted && in_wave(line, station, offer);
            assert!(seen.offers.iter().any(reaches), "{name} began at {began}, before {:?}", seen.offers);
        }
    }
}

impl Seen {
    fn take(&mut self, name: String, report: Report) {
        let works = !matches!(report.state, State::Good | State::Waiting | State::Refused);
        if report.number == 2 || report.offered == Some(2) && works {
            self.began.entry(name.clone()).or_insert(report.time);
        }
        if report.number == 2 {
            self.had.insert(name.clone());
        }
        self.reports.insert(name, report);
    }
}

fn names<'a>(stations: impl IntoIterator<Item = &'a Station>, manners: &[Manner]) -> BTreeSet<String> {
    stations.into_iter().filter(|station| manners.contains(&station.manner)).map(Station::id).collect()
}

/// So many stations of four lines with version 1 in force.
fn stations(folder: &Path, count: usize, manner: impl Fn(usize) -> Manner) -> Vec<Station> {
    let template = template(folder);
    (0..count)
        .map(|i| Station::new(folder, &template, &format!("l{}", i % 4), &format!("el-{i:03}"), manner(i)))
        .collect()
}

/// Switches them on; their delivery of verdicts would say so.
fn switch_on(port: u16, stations: &mut [Station]) {
    let plc = Plc::listen(port, &format!("none/{}", stations[0].id()));
    for station in stations {
        let topic = format!("cellgate/{}/status", station.id());
        plc.client.publish(topic, QoS::AtLeastOnce, true, "{\"state\":\"online\",\"camera\":\"up\"}").unwrap();
        station.start(port, "all");
    }
}

/// A rollout that runs, and what it says.
struct Running {
    child: Child,
    lines: Receiver<String>,
    /// Its largest memory in kB, as of the last line.
    memory: u64,
}

fn rollout(port: u16, bundle: &Path, keys: &Path, more: &str) -> Running {
    let words = format!("fleet rollout {} --keys {} --group all --chunks {more}", bundle.display(), keys.display());
    let mut child = command(port, &words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (sender, lines) = channel();
    let out = BufReader::new(child.stdout.take().unwrap()).lines();
    std::thread::spawn(move || out.map_while(Result::ok).for_each(|line| _ = sender.send(line)));
    Running { child, lines, memory: 0 }
}

impl Running {
    /// Until a line holds it; gives the line.
    fn until(&mut self, part: &str) -> String {
        let mut said = String::new();
        let end = Instant::now() + Duration::from_secs(240);
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            println!("{line}");
            self.memory = self.memory.max(peak_kb(self.child.id()));
            if line.contains(part) {
                return line;
            }
            said += &format!("{line}\n");
        }
        panic!("waited in vain for {part:?} after:\n{said}");
    }
}

/// The largest resident memory of a process so far, in kB.
fn peak_kb(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[test]
fn every_healthy_station_ends_on_the_new_model_and_none_takes_it_outside_its_wave() {
    let Some(mut broker) = Broker::start() else { return skip::skip("fleet rollout", "apt: mosquitto") };
    let (port, count) = (broker.port, count());
    let folder = tempfile::tempdir().unwrap();
    let keys = write_keys(folder.path());
    // One of twenty misbehaves in each way.
    let mut fleet = stations(folder.path(), count, |i| match i % 20 {
        3 => Manner::Refuses,
        7 => Manner::GoesBack,
        11 | 13 => Manner::Slow,
        _ => Manner::Healthy,
    });
    let bundle = write_bundle(folder.path(), 2, 200_000);
    // Two are switched off and come when all is over.
    let mut absent = fleet.split_off(count - 2);
    let healthy = names(&fleet, &[Manner::Healthy, Manner::Slow]);
    let (refuse, back) = (names(&fleet, &[Manner::Refuses]), names(&fleet, &[Manner::GoesBack]));
    let observer = Observer::watch(port);
    switch_on(port, &mut fleet);
    wait_for("all stations", || observer.all(|report| report.number == 1).len() == count - 2);

    let start = Instant::now();
    let may_fail = refuse.len() + back.len();
    let more = format!("--waves 20,60,100 --soak 0.02 --patience 10 --max-failures {may_fail}");
    let mut first = rollout(port, &bundle, &keys, &more);
    first.until("60 %:");
    // In the midst of a wave: whoever rolls out is killed, the broker is started again, stations too.
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    broker.halt();
    fleet[..5].iter_mut().for_each(|station| station.start(port, "all"));
    broker.resume();
    let mut second = rollout(port, &bundle, &keys, &more);
    second.until("100 %:");
    // And once more while it runs.
    broker.halt();
    second.until("trying again");
    broker.resume();
    let done = second.until("done:");
    let memory = second.memory;
    assert!(second.child.wait().unwrap().success());
    assert!(done.contains(&format!("{} stations have version 2", healthy.len())), "{done}");
    let took = start.elapsed();

    wait_for("the last reports", || {
        observer.all(|report| report.number == 2 && report.state == State::Good) == healthy
    });
    assert_eq!(observer.all(|report| report.refused.iter().any(|refused| refused.number == 2)), refuse);
    assert_eq!(observer.all(|report| report.rolled_back.is_some()), back);
    assert_eq!(observer.all(|report| report.number == 1), &refuse | &back, "whoever failed has the old model");
    // Late, and without anybody rolling out: the offer is still there.
    switch_on(port, &mut absent);
    let late = names(&absent, &[Manner::Healthy, Manner::Slow]);
    wait_for("the late ones", || observer.all(|report| report.number == 2) == &healthy | &late);
    observer.assert_waves();
    let percents: Vec<u8> = observer.seen.lock().unwrap().offers.iter().map(|offer| offer.percent).collect();
    assert!(percents.is_sorted() && percents.starts_with(&[20]) && percents.ends_with(&[100]), "{percents:?}");
    println!(
        "{count} stations: {:.1} s from the offer to done, {} offers and reports; peak memory: {memory} kB for the \
         rollout, {} kB for all agents and this test, {} kB for the broker since its last start",
        took.as_secs_f64(),
        observer.messages.load(Ordering::Relaxed),
        peak_kb(std::process::id()),
        broker.id().map_or(0, peak_kb),
    );
    for station in fleet.iter_mut().chain(&mut absent) {
        station.stop();
        let version = if healthy.contains(&station.id()) || late.contains(&station.id()) { 2 } else { 1 };
        assert_eq!(station.in_force(), (version, true), "{}", station.id());
    }
}

#[test]
fn a_bad_bundle_halts_in_the_first_wave_and_all_stations_are_back_on_the_old_model() {
    let Some(broker) = Broker::start() else { return skip::skip("fleet bad bundle", "apt: mosquitto") };
    let (port, count) = (broker.port, count());
    let folder = tempfile::tempdir().unwrap();
    let keys = write_keys(folder.path());
    let mut fleet = stations(folder.path(), count, |_| Manner::GoesBack);
    let bundle = write_bundle(folder.path(), 2, 100_000);
    let observer = Observer::watch(port);
    switch_on(port, &mut fleet);
    wait_for("all stations", || observer.all(|report| report.number == 1).len() == count);
    let mut running = rollout(port, &bundle, &keys, "--waves 20,50,100 --soak 0.02 --patience 10");
    running.until("failed: ");
    assert!(!running.child.wait().unwrap().success());
    // Who was on probation when it halted is watched to the end.
    let wave: BTreeSet<String> = {
        let seen = observer.seen.lock().unwrap();
        let last = seen.offers.last().unwrap();
        assert!(last.percent == 20, "{last:?}");
        let is_in = |station: &&Station| in_wave(&station.line, &station.name, last);
        fleet.iter().filter(is_in).map(Station::id).collect()
    };
    wait_for("all to be back", || {
        let had = observer.seen.lock().unwrap().had.clone();
        !had.is_empty() && observer.all(|report| report.number == 1 && report.rolled_back.is_some()) == had
    });
    let had = observer.seen.lock().unwrap().had.clone();
    assert!(had.is_subset(&wave), "{had:?} of {wave:?}");
    assert_eq!(observer.all(|report| report.number == 1).len(), count);
    observer.assert_waves();
    // It does not go on by itself, nor by the same command.
    let words =
        format!("fleet rollout {} --keys {} --group all --chunks --waves 20,50,100", bundle.display(), keys.display());
    refused(port, &words, "was halted at 20 %");
    for station in &mut fleet {
        station.stop();
        assert_eq!(station.in_force(), (1, true), "{}", station.id());
    }
}
