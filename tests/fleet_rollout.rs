//! A new model for many stations of one broker, in waves, while stations fail and the broker is started again.
//!
//! `CELLGATE_STATIONS=200 cargo test --test fleet_rollout -- --nocapture` does it with 200 and says what it took.
#![allow(missing_docs)]

#[path = "common/broker.rs"]
mod broker;
mod common;
#[path = "common/fleet.rs"]
mod fleet;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use broker::{Broker, Plc, wait_for};
use cellgate::update::bundle::Targets;
use cellgate::update::message::{Offer, Report, State, in_wave};
use fleet::{Manner, Station, cellgate, command, write_bundle, write_keys};

fn count() -> usize {
    std::env::var("CELLGATE_STATIONS").map_or(60, |text| text.parse().expect("CELLGATE_STATIONS must be a number"))
}

/// Stations that live on a thread until they are dropped.
struct Fleet {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fleet {
    fn live(port: u16, stations: Vec<Station>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let lives: Vec<_> =
                    stations.into_iter().map(|station| tokio::spawn(station.live(port, theirs.clone()))).collect();
                for life in lives {
                    life.await.unwrap();
                }
            });
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || ended.is_ok(), "a station failed");
    }
}

/// Sees every offer and report, and writes down what must never be.
#[derive(Default)]
struct Seen {
    offers: Vec<Offer>,
    reports: BTreeMap<String, Report>,
    /// Stations that were ever seen with each version in force.
    had: BTreeMap<u64, BTreeSet<String>>,
    wrong: Vec<String>,
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
                        let report = Report::decode(&message.payload).unwrap();
                        seen.take(words[1], words[2], report);
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
}

impl Seen {
    fn take(&mut self, line: &str, station: &str, report: Report) {
        let name = format!("{line}/{station}");
        if report.number == 0 || report.model.is_empty() {
            self.wrong.push(format!("{name} has no model"));
        }
        // Whoever works on an offer must have been reached by one of its waves. The report may be here before the offer that
        // led to it, so it is held to the offer at the end.
        if !matches!(report.state, State::Waiting) {
            for number in [Some(report.number), report.offered].into_iter().flatten() {
                self.had.entry(number).or_default().insert(name.clone());
            }
        }
        self.reports.insert(name, report);
    }
}

fn names(stations: &[Station], manners: &[Manner]) -> BTreeSet<String> {
    let of = |station: &&Station| manners.contains(&station.manner);
    stations.iter().filter(of).map(|station| format!("{}/{}", station.line, station.name)).collect()
}

/// So many stations, one in twenty of which misbehaves in each way.
fn stations(count: usize) -> Vec<Station> {
    (0..count)
        .map(|i| {
            let manner = match i % 20 {
                3 => Manner::Refuses,
                7 => Manner::GoesBack,
                11 | 13 => Manner::Slow,
                _ => Manner::Healthy,
            };
            Station::new(&format!("l{}", i % 4), &format!("el-{i:03}"), "all", manner)
        })
        .collect()
}

/// A rollout that runs, and what it says.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

fn rollout(port: u16, bundle: &Path, keys: &Path, more: &str) -> Running {
    let words = format!("fleet rollout {} --keys {} --group all --chunks {more}", bundle.display(), keys.display());
    let mut child = command(port, &words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (sender, lines) = channel();
    let out = BufReader::new(child.stdout.take().unwrap()).lines();
    std::thread::spawn(move || out.map_while(Result::ok).for_each(|line| _ = sender.send(line)));
    Running { child, lines }
}

impl Running {
    /// Until a line holds it; gives the line.
    fn until(&self, part: &str) -> String {
        let mut said = String::new();
        let end = Instant::now() + Duration::from_secs(120);
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            println!("{line}");
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
    let Some(mut broker) = Broker::start() else { return common::skip("fleet rollout", "apt: mosquitto") };
    let (port, start, count) = (broker.port, Instant::now(), count());
    let folder = tempfile::tempdir().unwrap();
    let (keys, bundle) = (write_keys(folder.path()), write_bundle(folder.path(), 2, 200_000, Targets::default()));
    let mut fleet = stations(count);
    let (healthy, refuse, back) = (
        names(&fleet, &[Manner::Healthy, Manner::Slow]),
        names(&fleet, &[Manner::Refuses]),
        names(&fleet, &[Manner::GoesBack]),
    );
    // Two are switched off and come when all is over.
    let absent = fleet.split_off(count - 2);
    let absent_names = names(&absent, &[Manner::Healthy, Manner::Slow, Manner::Refuses, Manner::GoesBack]);
    let observer = Observer::watch(port);
    let lives = Fleet::live(port, fleet);
    wait_for("all stations", || observer.all(|_| true).len() == count - 2);

    let more = "--waves 10,50,100 --soak 0.02 --patience 5 --max-failures 20%";
    let mut first = rollout(port, &bundle, &keys, more);
    first.until("50 %:");
    // Whoever rolls out is killed, and the broker is started again, in the midst of a wave.
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    broker.halt();
    std::thread::sleep(Duration::from_millis(300));
    broker.resume();
    let mut second = rollout(port, &bundle, &keys, more);
    let line = second.until("100 %:");
    assert!(line.contains("stations:"), "{line}");
    // And once more while it runs.
    broker.halt();
    second.until("trying again");
    broker.resume();
    let done = second.until("done:");
    let memory = peak_kb(second.child.id());
    assert!(second.child.wait().unwrap().success());
    assert!(done.contains("stations have version 2"), "{done}");
    let took = start.elapsed();

    let there = |set: &BTreeSet<String>| set.difference(&absent_names).cloned().collect::<BTreeSet<_>>();
    wait_for("the last reports", || {
        observer.all(|report| report.number == 2 && report.state == State::Good) == there(&healthy)
    });
    assert_eq!(observer.all(|report| !report.refused.is_empty()), there(&refuse));
    assert_eq!(observer.all(|report| report.rolled_back.is_some()), there(&back));
    let one = &there(&refuse) | &there(&back);
    assert_eq!(observer.all(|report| report.number == 1), one, "whoever failed has the old model");
    // Late, and without anybody rolling out: the offer is still there.
    let late = Fleet::live(port, absent);
    wait_for("the late ones", || observer.all(|report| report.number == 2) == healthy);

    let seen = observer.seen.lock().unwrap();
    assert_eq!(seen.wrong, Vec::<String>::new());
    let percents: Vec<u8> = seen.offers.iter().map(|offer| offer.percent).collect();
    assert!(percents.is_sorted() && percents.starts_with(&[10]) && percents.ends_with(&[100]), "{percents:?}");
    drop(seen);
    println!(
        "{count} stations: {:.1} s from the first connection to done, {} messages of offers and reports, {memory} kB for the \
         rollout, {} kB for stations, broker's client and test, {} kB for the broker",
        took.as_secs_f64(),
        observer.messages.load(Ordering::Relaxed),
        peak_kb(std::process::id()),
        broker.id().map_or(0, peak_kb),
    );
    drop((lives, late));
}

#[test]
fn a_bad_bundle_halts_in_the_first_wave_and_all_stations_are_back_on_the_old_model() {
    let Some(broker) = Broker::start() else { return common::skip("fleet bad bundle", "apt: mosquitto") };
    let (port, count) = (broker.port, count());
    let folder = tempfile::tempdir().unwrap();
    let (keys, bundle) = (write_keys(folder.path()), write_bundle(folder.path(), 2, 100_000, Targets::default()));
    let fleet: Vec<Station> =
        (0..count).map(|i| Station::new("l1", &format!("el-{i:03}"), "all", Manner::GoesBack)).collect();
    let observer = Observer::watch(port);
    let lives = Fleet::live(port, fleet);
    wait_for("all stations", || observer.all(|_| true).len() == count);
    let mut running = rollout(port, &bundle, &keys, "--waves 20,50,100 --soak 0.02 --patience 5");
    running.until("failed");
    assert!(!running.child.wait().unwrap().success());
    wait_for("all to be back", || {
        observer.all(|report| report.number == 1 && report.state == State::Good).len() == count
    });
    let seen = observer.seen.lock().unwrap();
    let last = seen.offers.last().unwrap();
    assert!(last.halted && last.percent == 20, "{last:?}");
    let wave: BTreeSet<String> =
        (0..count).filter(|i| in_wave("l1", &format!("el-{i:03}"), last)).map(|i| format!("l1/el-{i:03}")).collect();
    let had = &seen.had[&2];
    assert!(had.is_subset(&wave) && !had.is_empty(), "{had:?} of {wave:?}");
    assert_eq!(seen.wrong, Vec::<String>::new());
    drop(seen);
    // It does not go on by itself, nor by the same command.
    let words =
        format!("fleet rollout {} --keys {} --group all --chunks --waves 20,50,100", bundle.display(), keys.display());
    let again = cellgate(port, &words);
    assert!(!again.status.success());
    let error = String::from_utf8_lossy(&again.stderr);
    assert!(error.contains("was halted at 20 %") && error.contains("--resume"), "{error}");
    drop(lives);
}
