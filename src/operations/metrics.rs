//! What `/metrics` and `/healthz` say. `docs/operations.md` tells what each means and which alerts are worth having.

use std::fmt::{Display, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::drift::DriftReport;
use super::latency::{Latencies, LatencyHistogram};
use super::machine::Readings;
use super::progress::Progress;
use crate::clock::Moment;
use crate::station::status::{Counts, Faults, Health, Said, Status};

/// Reasons that are counted apart; what comes after so many is counted as `other`.
const REASONS: usize = 48;

/// What the station counts for the metrics beside its status, without allocating.
#[derive(Debug, Default)]
pub struct Recorder {
    /// From exposure to verdict.
    pub latency: LatencyHistogram,
    invalid: Reasons,
}

impl Recorder {
    /// One whose reasons show with 0 from the start, so that the first of them is seen as a rise.
    #[must_use]
    pub fn new(reasons: &[&'static str]) -> Self {
        let recorder = Self::default();
        reasons.iter().for_each(|reason| recorder.invalid.count(reason, 0));
        recorder
    }

    /// Counts a verdict.
    pub fn record(&self, said: Said, latency_us: u32) {
        self.latency.record(latency_us);
        if let Said::Invalid(reason) = said {
            self.invalid.count(reason, 1);
        }
    }
}

#[derive(Debug)]
struct Reasons {
    names: [OnceLock<&'static str>; REASONS],
    counts: [AtomicU64; REASONS + 1],
}

impl Default for Reasons {
    fn default() -> Self {
        Self { names: std::array::from_fn(|_| OnceLock::new()), counts: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Reasons {
    fn count(&self, reason: &'static str, by: u64) {
        let index = self.names.iter().position(|name| *name.get_or_init(|| reason) == reason).unwrap_or(REASONS);
        self.counts[index].fetch_add(by, Ordering::Relaxed);
    }

    fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = self.names.iter().map_while(|name| name.get().copied());
        let named = names.zip(&self.counts).map(|(name, count)| (name, count.load(Ordering::Relaxed)));
        let other = self.counts[REASONS].load(Ordering::Relaxed);
        named.chain((other > 0).then_some(("other", other)))
    }
}

/// Everything at one moment, to be written.
#[derive(Clone, Copy)]
pub struct Snapshot<'a> {
    /// What the station knows.
    pub status: &'a Status,
    /// Now.
    pub now: Moment,
    /// What it counted.
    pub recorder: &'a Recorder,
    /// What the machine says.
    pub machine: &'a Readings,
    /// What the last cells say.
    pub drift: &'a DriftReport,
    /// The threads.
    pub progress: Option<&'a Progress>,
}

/// Appends all metrics in Prometheus' text format 0.0.4.
pub fn write(snapshot: &Snapshot<'_>, out: &mut String) {
    let Snapshot { status, now, recorder, machine, drift, progress } = *snapshot;
    let mut to = Exposition { out };
    let model = str::from_utf8(&status.model).ok().filter(|_| status.model[0] != 0).unwrap_or("none");
    to.family("build_info", "gauge", "Version and model in force; always 1.");
    to.labelled("build_info", &[("version", env!("CARGO_PKG_VERSION")), ("model", model)], 1);
    to.one("uptime_seconds", "gauge", "Time since the station started.", now.since(status.started).as_secs_f64());
    to.one("boot_number", "gauge", "Number of this start; verdicts carry it.", status.boot);
    cells(&mut to, &status.total, recorder);
    faults(&mut to, &status.faults);
    latency(&mut to, &recorder.latency.read());
    to.one("outbox_pending", "gauge", "Verdicts stored and not yet acknowledged by the broker.", status.pending);
    to.one("outbox_dropped_total", "counter", "Verdicts that retention dropped undelivered.", status.dropped);
    to.family("part_up", "gauge", "Whether a part works (1) or not (0); parts not in use are absent.");
    for (part, health) in [("camera", status.camera), ("broker", status.broker), ("outbox", status.outbox)] {
        if health != Health::Off {
            to.labelled("part_up", &[("part", part)], u8::from(health == Health::Up));
        }
    }
    to.labelled("part_up", &[("part", "model")], u8::from(status.model[0] != 0));
    if let Some(last) = &status.last {
        let age = now.since(last.at).as_secs_f64();
        to.one("last_verdict_age_seconds", "gauge", "Time since the last verdict.", age);
    }
    readings(&mut to, machine);
    cells_lately(&mut to, drift);
    if let Some(progress) = progress {
        to.family("thread_silent_seconds", "gauge", "Time since a thread last moved.");
        for (thread, age, _) in progress.ages(now) {
            to.labelled("thread_silent_seconds", &[("thread", thread)], age.as_secs_f64());
        }
        to.family("thread_patience_seconds", "gauge", "Silence from which a thread counts as stuck.");
        for (thread, _, patience) in progress.ages(now) {
            to.labelled("thread_patience_seconds", &[("thread", thread)], patience.as_secs_f64());
        }
    }
    to.one("log_suppressed_total", "counter", "Repeated messages that were not logged.", super::log::suppressed());
}

fn cells(to: &mut Exposition<'_>, total: &Counts, recorder: &Recorder) {
    to.family("cells_total", "counter", "Cells by what was said of them.");
    for (class, count) in [("A", total.a), ("B", total.b), ("C", total.c), ("INVALID", total.invalid)] {
        to.labelled("cells_total", &[("class", class)], count);
    }
    to.family("invalid_total", "counter", "Cells that could not be judged, by reason.");
    for (reason, count) in recorder.invalid.each() {
        to.labelled("invalid_total", &[("reason", reason)], count);
    }
}

fn faults(to: &mut Exposition<'_>, faults: &Faults) {
    to.family("faults_total", "counter", "What went wrong, by kind.");
    for (kind, count) in faults.by_name() {
        to.labelled("faults_total", &[("kind", kind)], count);
    }
}

fn latency(to: &mut Exposition<'_>, latency: &Latencies) {
    let seconds = |microseconds: u64| Duration::from_micros(microseconds).as_secs_f64();
    let name = "verdict_latency_seconds";
    to.family(name, "histogram", "From exposure to verdict.");
    for (bound, below) in latency.cumulative() {
        to.labelled("verdict_latency_seconds_bucket", &[("le", &seconds(bound.into()).to_string())], below);
    }
    to.labelled("verdict_latency_seconds_bucket", &[("le", "+Inf")], latency.count);
    to.labelled("verdict_latency_seconds_sum", &[], seconds(latency.sum_us));
    to.labelled("verdict_latency_seconds_count", &[], latency.count);
    to.family("verdict_latency_quantile_seconds", "gauge", "The same by quantile since the start, at most 1/32 high.");
    for (label, q) in [("0.5", 0.5), ("0.99", 0.99), ("0.999", 0.999), ("1", 1.0)] {
        if let Some(value) = latency.quantile_us(q) {
            to.labelled("verdict_latency_quantile_seconds", &[("quantile", label)], seconds(value));
        }
    }
}

fn readings(to: &mut Exposition<'_>, machine: &Readings) {
    if let Some(degrees) = machine.temperature {
        to.one("temperature_celsius", "gauge", "The hottest sensor of the machine.", degrees);
    }
    if let Some(throttled) = machine.throttled {
        to.one("throttled", "gauge", "Whether heat slows the machine down.", u8::from(throttled));
    }
    if let Some(bytes) = machine.resident {
        to.one("memory_resident_bytes", "gauge", "Memory of the station in RAM.", bytes);
    }
    if let Some(disk) = machine.disk {
        to.one("disk_free_bytes", "gauge", "Space left where the outbox lies.", disk.free);
        to.one("disk_size_bytes", "gauge", "Space in all where the outbox lies.", disk.size);
    }
}

fn cells_lately(to: &mut Exposition<'_>, drift: &DriftReport) {
    to.one("drift_alarm", "gauge", "Whether good cells have moved away from the fit.", u8::from(drift.alarm));
    to.one("drift_cells", "gauge", "Cells of class A that drift and score are about.", drift.cells);
    to.family("drift_deviation", "gauge", "Standard errors from what the fit expects; above 0: cells look worse.");
    for (share, value) in [("above-median", drift.median), ("above-upper", drift.upper)] {
        if let Some(value) = value {
            to.labelled("drift_deviation", &[("share", share)], value);
        }
    }
    if let Some(scores) = drift.scores {
        to.family("score", "gauge", "Score of the last cells of class A, by quantile.");
        for (quantile, value) in ["0.1", "0.5", "0.9"].iter().zip(scores) {
            to.labelled("score", &[("quantile", quantile)], value);
        }
    }
    if let (Some(rejects), Some(invalid)) = (drift.rejects, drift.invalid) {
        to.one("recent_reject_ratio", "gauge", "Share of class C among the last cells.", rejects);
        to.one("recent_invalid_ratio", "gauge", "Share of cells lately that could not be judged.", invalid);
    }
}

/// Appends what `/healthz` says, and gives whether the station can judge cells. A broker that is away is no reason to
/// restart a station: its verdicts are stored.
pub fn write_health(status: &Status, progress: Option<&Progress>, now: Moment, out: &mut String) -> bool {
    let mut failing: Vec<String> = Vec::new();
    for (part, health) in [("camera", status.camera), ("outbox", status.outbox)] {
        match health {
            Health::Down => failing.push(format!("{part} is down")),
            Health::Starting => failing.push(format!("{part} is starting")),
            Health::Up | Health::Off => {}
        }
    }
    if status.model[0] == 0 {
        failing.push("no model is in force".into());
    }
    for (thread, age) in progress.into_iter().flat_map(|progress| progress.overdue(now)) {
        failing.push(format!("thread {thread} has not moved for {} ms", age.as_millis()));
    }
    let mut degraded: Vec<&str> = Vec::new();
    if status.broker == Health::Down {
        degraded.push("broker is down");
    }
    if status.dropped > 0 {
        degraded.push("the outbox has dropped verdicts");
    }
    if status.drift {
        degraded.push("good cells have moved away from the fit");
    }
    let healthy = failing.is_empty();
    let word = match (healthy, degraded.is_empty()) {
        (true, true) => "ok",
        (true, false) => "degraded",
        (false, _) => "failing",
    };
    let _ = writeln!(out, "{}", serde_json::json!({ "status": word, "failing": failing, "degraded": degraded }));
    healthy
}

/// Writes metrics, each name with `cellgate_` before it.
struct Exposition<'a> {
    out: &'a mut String,
}

impl Exposition<'_> {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string never fails; so below.
        let _ = write!(self.out, "# HELP cellgate_{name} {help}\n# TYPE cellgate_{name} {kind}\n");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.labelled(name, &[], value);
    }

    fn labelled(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.out, "cellgate_{name}");
        for (index, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.out, "{}{label}=\"", if index == 0 { '{' } else { ',' });
            for c in text.chars() {
                match c {
                    '\\' => self.out.push_str("\\\\"),
                    '"' => self.out.push_str("\\\""),
                    '\n' => self.out.push_str("\\n"),
                    other => self.out.push(other),
                }
            }
            self.out.push('"');
        }
        let _ = writeln!(self.out, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
