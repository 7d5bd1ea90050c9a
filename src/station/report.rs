//! What a station tells of itself in JSON, for the topics `status` and `metrics`.

use std::fmt::Write;

use super::status::{Counts, Health, Status};
use crate::operations::drift::DriftReport;
use crate::operations::latency::Latencies;

fn word(health: Health) -> &'static str {
    match health {
        Health::Off => "off",
        Health::Starting => "starting",
        Health::Up => "up",
        Health::Down => "down",
    }
}

fn model(status: &Status) -> &str {
    str::from_utf8(&status.model).ok().filter(|_| status.model[0] != 0).unwrap_or_default()
}

/// Appends the states, as they change now and then: `state` (`online`), `boot`, `model` (8 hexadecimal digits), `camera`,
/// `outbox` (`off`, `starting`, `up`, `down`), `drift`, `dropped`, `software`.
pub fn write_state(status: &Status, out: &mut String) {
    // Writing into a string does not fail.
    let _ = write!(
        out,
        "{{\"state\":\"online\",\"boot\":{},\"model\":\"{}\",\"camera\":\"{}\",\"outbox\":\"{}\",\"drift\":{},\"dropped\":{},\
         \"software\":\"{}\"}}",
        status.boot,
        model(status),
        word(status.camera),
        word(status.outbox),
        status.drift,
        status.dropped,
        env!("CARGO_PKG_VERSION"),
    );
}

/// Appends the numbers: cells since the start and since the shift began, by class, INVALID ones, yield; faults by name;
/// latency in ms; pending and dropped verdicts; temperature in °C; shares of rejected and INVALID cells lately.
pub fn write_numbers(status: &Status, latency: &Latencies, drift: &DriftReport, out: &mut String) {
    let _ = numbers(status, latency, drift, out);
}

fn numbers(status: &Status, latency: &Latencies, drift: &DriftReport, out: &mut String) -> std::fmt::Result {
    write!(out, "{{\"boot\":{}", status.boot)?;
    for (name, Counts { a, b, c, invalid }) in [("total", status.total), ("shift", status.shift)] {
        write!(out, ",\"{name}_a\":{a},\"{name}_b\":{b},\"{name}_c\":{c},\"{name}_invalid\":{invalid}")?;
    }
    out.push_str(",\"shift_yield\":");
    number(status.shift.yield_share(), 4, out)?;
    for (name, q) in [("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999)] {
        write!(out, ",\"latency_{name}\":")?;
        number(latency.quantile_us(q).map(|us| us as f64 / 1000.0), 3, out)?;
    }
    for (name, count) in status.faults.by_name() {
        write!(out, ",\"{}\":{count}", name.replace('-', "_"))?;
    }
    write!(out, ",\"pending\":{},\"dropped\":{},\"temperature_c\":", status.pending, status.dropped)?;
    number(status.temperature.map(f64::from), 1, out)?;
    for (name, value) in [("recent_reject", drift.rejects), ("recent_invalid", drift.invalid)] {
        write!(out, ",\"{name}\":")?;
        number(value, 4, out)?;
    }
    out.push('}');
    Ok(())
}

fn number(value: Option<f64>, digits: usize, out: &mut String) -> std::fmt::Result {
    match value {
        Some(value) if value.is_finite() => write!(out, "{value:.digits$}"),
        _ => out.write_str("null"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::latency::LatencyHistogram;

    #[test]
    fn both_texts_are_flat_json() {
        let status = Status { boot: 3, model: *b"0123abcd", camera: Health::Up, ..Status::default() };
        let (mut state, mut numbers) = (String::new(), String::new());
        write_state(&status, &mut state);
        let latencies = LatencyHistogram::default();
        latencies.record(12_000);
        write_numbers(&status, &latencies.read(), &DriftReport::default(), &mut numbers);
        let state: serde_json::Value = serde_json::from_str(&state).unwrap();
        assert_eq!(
            (&state["state"], &state["model"], &state["camera"]),
            (&"online".into(), &"0123abcd".into(), &"up".into())
        );
        let numbers: serde_json::Value = serde_json::from_str(&numbers).unwrap();
        let fields = numbers.as_object().unwrap();
        assert!(fields.values().all(|value| !value.is_object() && !value.is_array()));
        assert!(
            numbers["shift_yield"].is_null() && numbers["missed_frame"] == 0 && numbers["latency_p50_ms"].is_number()
        );
    }
}
