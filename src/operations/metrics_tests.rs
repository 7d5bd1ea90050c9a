use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::camera::trigger::CellId;
use crate::clock::Date;
use crate::operations::machine::Disk;
use crate::station::status::{Last, THUMBNAIL};
use crate::verdict::Class;

/// A sample: its name, its labels and its value.
type Sample = (String, BTreeMap<String, String>, f64);

fn is_name(text: &str, colons: bool) -> bool {
    let fits = |c: char, first: bool| {
        c.is_ascii_alphabetic() || c == '_' || colons && c == ':' || !first && c.is_ascii_digit()
    };
    !text.is_empty() && text.chars().enumerate().all(|(i, c)| fits(c, i == 0))
}

/// Reads the text format 0.0.4, and panics at whatever Prometheus would refuse or `promtool check metrics` would
/// complain of.
fn parse(text: &str) -> Vec<Sample> {
    assert!(text.ends_with('\n') && !text.contains("\n\n"));
    let mut families: BTreeMap<String, String> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut current = String::new();
    let mut samples: Vec<Sample> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect(line);
            assert!(is_name(name, true) && !help.is_empty() && helped.insert(name.to_owned()), "{line}");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect(line);
            assert!(["counter", "gauge", "histogram"].contains(&kind) && helped.contains(name), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "two families: {line}");
            current = name.to_owned();
            continue;
        }
        assert!(!line.starts_with('#'), "{line}");
        let sample = sample(line);
        // Every sample right below its family.
        let suffixes = ["", "_bucket", "_sum", "_count"];
        let of_family = suffixes.iter().any(|suffix| sample.0 == format!("{current}{suffix}"));
        assert!(of_family && (sample.0 == current || families[&current] == "histogram"), "{line} below {current}");
        assert!(!samples.iter().any(|other| (&other.0, &other.1) == (&sample.0, &sample.1)), "twice: {line}");
        samples.push(sample);
    }
    samples
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect(line);
    let value = if value == "+Inf" { f64::INFINITY } else { value.parse().expect(line) };
    let Some((name, rest)) = series.split_once('{') else {
        assert!(is_name(series, true), "{line}");
        return (series.to_owned(), BTreeMap::new(), value);
    };
    assert!(is_name(name, true), "{line}");
    let mut labels = BTreeMap::new();
    let mut rest = rest.strip_suffix('}').expect(line);
    while !rest.is_empty() {
        let (label, tail) = rest.split_once("=\"").expect(line);
        assert!(is_name(label, false), "{line}");
        let mut text = String::new();
        let mut chars = tail.char_indices();
        let end = loop {
            match chars.next().expect(line) {
                (_, '\\') => text.push(match chars.next().expect(line).1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    other => panic!("\\{other} in {line}"),
                }),
                (at, '"') => break at,
                (_, c) => text.push(c),
            }
        };
        assert!(labels.insert(label.to_owned(), text).is_none(), "{line}");
        rest = tail[end + 1..].strip_prefix(',').unwrap_or(&tail[end + 1..]);
    }
    (name.to_owned(), labels, value)
}

fn now() -> Moment {
    Moment::from_nanos(90_000_000_000)
}

fn status() -> Status {
    let last = Last {
        cell: CellId::new("W-1").ok(),
        seq: 9,
        said: Said::Class(Class::A),
        score: Some(0.2),
        date: Date::default(),
        at: now() - Duration::from_millis(1500),
        latency_us: 60_000,
        heat: [[0; THUMBNAIL]; THUMBNAIL],
    };
    Status {
        started: now() - Duration::from_secs(60),
        boot: 3,
        total: Counts { a: 10, b: 2, c: 1, invalid: 4 },
        faults: Faults { deadlines: 2, ..Faults::default() },
        last: Some(last),
        camera: Health::Up,
        broker: Health::Down,
        outbox: Health::Up,
        pending: 7,
        dropped: 0,
        model: *b"9f3c01ab",
        ..Status::default()
    }
}

fn text(status: &Status, recorder: &Recorder, machine: &Readings, drift: &DriftReport) -> String {
    let mut progress = Progress::default();
    let _pulse = progress.register("camera", Duration::from_secs(5), now() - Duration::from_secs(2));
    let mut out = String::new();
    write(&Snapshot { status, now: now(), recorder, machine, drift, progress: Some(&progress) }, &mut out);
    out
}

#[test]
fn a_scraper_reads_every_metric() {
    let recorder = Recorder::new(&["dim", "pairing"]);
    for (said, latency) in [
        (Said::Class(Class::A), 40_000),
        (Said::Invalid("pairing"), 10),
        (Said::Invalid("pairing"), 9_000_000),
        (Said::Invalid("a \"b\"\\\n"), 60_000),
    ] {
        recorder.record(said, latency);
    }
    let machine = Readings {
        temperature: Some(51.5),
        throttled: Some(false),
        resident: Some(200 << 20),
        disk: Some(Disk { free: 5, size: 9, files: None }),
    };
    let drift = DriftReport {
        alarm: true,
        cells: 500,
        median: Some(6.5),
        upper: Some(-0.1),
        scores: Some([0.1, 0.3, 0.45]),
        rejects: Some(0.02),
        invalid: Some(0.0),
    };
    let samples = parse(&text(&status(), &recorder, &machine, &drift));
    let value = |name: &str, label: &str| {
        let found: Vec<f64> = samples
            .iter()
            .filter(|(series, labels, _)| {
                series.strip_prefix("cellgate_") == Some(name)
                    && (label.is_empty() || labels.values().any(|v| v == label))
            })
            .map(|sample| sample.2)
            .collect();
        assert_eq!(found.len(), 1, "{name} {label}: {found:?}");
        found[0]
    };
    assert_eq!(value("build_info", "9f3c01ab"), 1.0);
    assert_eq!(value("uptime_seconds", ""), 60.0);
    assert_eq!((value("cells_total", "A"), value("cells_total", "INVALID")), (10.0, 4.0));
    assert_eq!((value("invalid_total", "pairing"), value("invalid_total", "dim")), (2.0, 0.0));
    assert_eq!(value("invalid_total", "a \"b\"\\\n"), 1.0);
    assert_eq!((value("faults_total", "deadline"), value("faults_total", "overrun")), (2.0, 0.0));
    assert_eq!(value("verdict_latency_seconds_bucket", "0.05"), 2.0);
    assert_eq!(value("verdict_latency_seconds_bucket", "5"), 3.0);
    assert_eq!(value("verdict_latency_seconds_bucket", "+Inf"), value("verdict_latency_seconds_count", ""));
    assert!((value("verdict_latency_seconds_sum", "") - 9.10001).abs() < 1e-9);
    assert_eq!(value("verdict_latency_quantile_seconds", "1"), 9.0);
    assert_eq!((value("part_up", "camera"), value("part_up", "broker"), value("part_up", "model")), (1.0, 0.0, 1.0));
    assert_eq!((value("outbox_pending", ""), value("last_verdict_age_seconds", "")), (7.0, 1.5));
    assert_eq!((value("temperature_celsius", ""), value("throttled", "")), (51.5, 0.0));
    assert_eq!((value("drift_alarm", ""), value("drift_deviation", "above-median")), (1.0, 6.5));
    assert_eq!((value("thread_silent_seconds", "camera"), value("thread_patience_seconds", "camera")), (2.0, 5.0));
    assert!(samples.iter().all(|(_, _, value)| value.is_finite()));
}

#[test]
fn a_station_that_has_only_started_is_read_too() {
    let nothing = (Readings::default(), DriftReport::default());
    let samples = parse(&text(&Status::default(), &Recorder::default(), &nothing.0, &nothing.1));
    assert!(!samples.iter().any(|(name, ..)| name == "cellgate_temperature_celsius" || name == "cellgate_score"));
}

#[test]
fn reasons_without_end_are_counted_in_fixed_memory() {
    let recorder = Recorder::default();
    for i in 0..200 {
        let reason: &'static str = Box::leak(format!("reason-{}", i % 100).into_boxed_str());
        recorder.record(Said::Invalid(reason), 1);
    }
    let nothing = (Readings::default(), DriftReport::default());
    let samples = parse(&text(&Status::default(), &recorder, &nothing.0, &nothing.1));
    let reasons: Vec<&Sample> = samples.iter().filter(|sample| sample.0 == "cellgate_invalid_total").collect();
    assert_eq!(reasons.len(), REASONS + 1);
    assert_eq!(reasons.iter().map(|sample| sample.2).sum::<f64>(), 200.0);
}

#[test]
fn health_says_what_keeps_the_station_from_judging() {
    let health = |status: &Status, progress: Option<&Progress>| {
        let mut out = String::new();
        let healthy = write_health(status, progress, now(), &mut out);
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        (healthy, json["status"].as_str().unwrap().to_owned(), out)
    };
    let good = Status { broker: Health::Up, ..status() };
    assert_eq!(health(&good, None).1, "ok");
    let (healthy, word, text) = health(&status(), None);
    assert!(healthy && word == "degraded" && text.contains("broker is down"), "{text}");
    for (bad, part) in [
        (Status { camera: Health::Down, ..good }, "camera is down"),
        (Status { outbox: Health::Down, ..good }, "outbox is down"),
        (Status { camera: Health::Starting, ..good }, "camera is starting"),
        (Status { model: [0; 8], ..good }, "no model"),
    ] {
        let (healthy, word, text) = health(&bad, None);
        assert!(!healthy && word == "failing" && text.contains(part), "{text}");
    }
    let mut progress = Progress::default();
    let _pulse = progress.register("inference", Duration::from_secs(1), now() - Duration::from_secs(9));
    let (healthy, _, text) = health(&good, Some(&progress));
    assert!(!healthy && text.contains("thread inference has not moved for 9000 ms"), "{text}");
}
