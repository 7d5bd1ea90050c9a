//! `cellgate run`: the appliance.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use super::shared;
use crate::config::{Config, DEFAULT_PATH};
use crate::operations::log;
use crate::pipeline::Backend;
use crate::station::appliance::Appliance;
use crate::station::status::{Health, Status};

/// The configuration to begin with.
const EXAMPLE: &str = include_str!("../../deploy/cellgate.toml");
/// Time to deliver what waits when the station is stopped.
const GRACE: Duration = Duration::from_secs(5);

/// Inspect cells as they come, until it is told to stop: camera to PLC.
///
/// Frames come from the camera of the configuration, triggers from where it says; every cell gets one verdict, in time, which
/// is durable before it is told, and delivered to the broker at least once and in order. Ctrl-C or SIGTERM ends it: the
/// cell in hand gets its verdict, and what waits is delivered for up to five seconds; the rest is kept for the next start.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cellgate run --print-config > cellgate.toml      the configuration to begin with, every key explained
  cellgate run --config cellgate.toml --check      is it right? opens nothing
  cellgate doctor --config cellgate.toml           and is everything there that it needs?
  cellgate run --config cellgate.toml

Exits with 0 when told to stop or at the end of a replay, and with 1 if the station cannot start or breaks.")]
pub struct Args {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,

    /// What measures cells, whatever the configuration says: `auto`, `cpu` or `cuda`.
    #[arg(long, value_name = "WHICH")]
    backend: Option<Backend>,

    /// Only check the configuration, and print it with all defaults.
    #[arg(long)]
    check: bool,

    /// Print a configuration with every key explained, to begin with.
    #[arg(long, conflicts_with = "check")]
    print_config: bool,

    /// Print the counts at the end as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs.
///
/// # Errors
/// If the configuration is wrong, or what cannot be done without is not there.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.print_config {
        print!("{EXAMPLE}");
        return Ok(ExitCode::SUCCESS);
    }
    let mut config = Config::load(&args.config)?;
    config.model.backend = args.backend.unwrap_or(config.model.backend);
    if args.check {
        print!("{}", config.to_toml());
        return Ok(ExitCode::SUCCESS);
    }
    log::start(config.operations.log_level)?;
    let interrupted = shared::interrupt()?;
    let appliance = Appliance::start(&config)?;
    ::log::info!(
        "station started: line={} station={} camera={:?} model={} boot={}",
        config.mqtt.line,
        config.mqtt.station,
        appliance.camera(),
        appliance.model(),
        appliance.status().boot,
    );
    if let Some(address) = appliance.metrics_address() {
        ::log::info!("metrics and health: http://{address}/metrics http://{address}/healthz");
    }
    let mut code = ExitCode::SUCCESS;
    while !interrupted.load(Ordering::Relaxed) && !appliance.is_done() {
        if appliance.is_broken() {
            ::log::error!("a thread of the station has died; ending, so that it is started again");
            code = ExitCode::FAILURE;
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let latencies = appliance.latencies();
    let (status, link) = appliance.stop(GRACE);
    let ms = |q| latencies.quantile_us(q).map(|us| us as f64 / 1000.0);
    if args.json {
        println!("{}", summary(&status, [ms(0.5), ms(0.99), ms(0.999)], link.delivered));
    } else {
        let total = status.total;
        println!(
            "{} cells: {} A, {} B, {} C, {} INVALID; {} delivered, {} wait in the outbox",
            total.cells(),
            total.a,
            total.b,
            total.c,
            total.invalid,
            link.delivered,
            status.pending
        );
        if let (Some(middle), Some(most)) = (ms(0.5), ms(0.99)) {
            println!("from exposure to verdict: {middle:.1} ms in the middle, {most:.1} ms for 99 of 100");
        }
        for (name, count) in status.faults.by_name().filter(|(_, count)| *count > 0) {
            println!("{name}: {count}");
        }
        if status.broker == Health::Down {
            println!("the broker: {}", link.fault.unwrap_or_default());
        }
    }
    Ok(code)
}

fn summary(status: &Status, [p50, p99, p999]: [Option<f64>; 3], delivered: u64) -> serde_json::Value {
    let total = status.total;
    let faults: serde_json::Map<String, serde_json::Value> =
        status.faults.by_name().map(|(name, count)| (name.replace('-', "_"), count.into())).collect();
    json!({
        "boot": status.boot, "cells": total.cells(), "a": total.a, "b": total.b, "c": total.c,
        "invalid": total.invalid, "latency_p50_ms": p50, "latency_p99_ms": p99, "latency_p999_ms": p999,
        "delivered": delivered, "pending": status.pending, "dropped": status.dropped, "faults": faults,
    })
}
