//! The demo's last part: the station itself, from a synthetic camera to the outbox, for some cells.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::camera::config::{CameraConfig, Kind};
use crate::cli::inspect::line::colours;
use crate::config::{Config, ModelConfig, StationConfig};
use crate::display::{DisplayConfig, Output};
use crate::operations::{MetricsAddress, OperationsConfig};
use crate::outbox::OutboxConfig;
use crate::outbox::mqtt::MqttConfig;
use crate::station::appliance::Appliance;
use crate::station::status::{Health, Last, Said};
use crate::synth::Generator;
use crate::verdict::Class;

/// Cells that pass.
const CELLS: u64 = 30;
/// Milliseconds from cell to cell: three a second.
const PERIOD: u64 = 333;
/// The first of them: none that the model has seen.
const FIRST: u64 = 500_000;
/// Time to deliver what waits.
const GRACE: Duration = Duration::from_secs(3);

/// Runs the station on the demo's line until [`CELLS`] cells have their verdict, and prints each as it comes.
pub fn run(out: &Path, seed: u64, broker: Option<&str>, interrupted: &AtomicBool) -> anyhow::Result<()> {
    let config = config(out, seed, broker)?;
    let generator = Generator::new(config.camera.cells(), seed)?;
    println!(
        "4. The station: {CELLS} more cells from a synthetic camera, one each {PERIOD} ms; each verdict is durable before it\n   \
         is told. The truth stands in the last column.\n"
    );
    println!("   cell    verdict   score  ms from exposure   truth");
    let appliance = Appliance::start(&config)?;
    let (mut told, mut wrong) = (0, 0);
    while told < CELLS && !interrupted.load(Ordering::Relaxed) {
        if appliance.is_broken() {
            bail!("a thread of the station has died; this is a fault of the program");
        }
        let status = appliance.status();
        if let Some(last) = status.last.filter(|_| status.total.cells() > told) {
            told = status.total.cells();
            let truth = generator.class(FIRST + told - 1);
            wrong += u64::from(print(told, &last, truth));
        } else if appliance.is_done() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // The display is drawn a few times a second; at the end it says that the station has stopped.
    std::thread::sleep(Duration::from_millis(500));
    let screen = out.join("screen.png");
    std::fs::copy(&screen, out.join("screen-last-cell.png"))
        .with_context(|| format!("copying {}", screen.display()))?;
    let latencies = appliance.latencies();
    let (status, link) = appliance.stop(GRACE);
    let ms = |q| latencies.quantile_us(q).unwrap_or_default() as f64 / 1000.0;
    println!(
        "\n   {} cells: {} A, {} B, {} C, {} INVALID; {:.0} ms from exposure to verdict in the middle, {:.0} ms at most",
        status.total.cells(),
        status.total.a,
        status.total.b,
        status.total.c,
        status.total.invalid,
        ms(0.5),
        ms(1.0),
    );
    println!(
        "   {wrong} of them on the wrong side of class A; {} verdicts wait in {}",
        status.pending,
        out.join("outbox").display()
    );
    match status.broker {
        Health::Off => {}
        Health::Up => println!("   {} delivered to {}", link.delivered, config.mqtt.host),
        _ => println!("   the broker: {}", link.fault.unwrap_or_default()),
    }
    Ok(())
}

fn config(out: &Path, seed: u64, broker: Option<&str>) -> anyhow::Result<Config> {
    let outbox = out.join("outbox");
    // Of an earlier demo.
    let _ = std::fs::remove_file(&outbox);
    let mut mqtt = MqttConfig { line: "demo".into(), station: "el1".into(), ..MqttConfig::default() };
    if let Some(broker) = broker {
        let (host, port) = broker.rsplit_once(':').unwrap_or((broker, "1883"));
        mqtt.port = port.parse().with_context(|| format!("--broker {broker:?}: {port:?} is no port"))?;
        mqtt.host = host.into();
    }
    let config = Config {
        model: ModelConfig { path: out.join("model.cgm"), ..ModelConfig::default() },
        station: StationConfig { takt_ms: 1000, ..StationConfig::default() },
        camera: CameraConfig {
            kind: Kind::Synthetic,
            seed,
            first: FIRST,
            count: Some(CELLS),
            period_ms: PERIOD,
            proportions: [0.6, 0.2, 0.2],
            ..CameraConfig::default()
        },
        outbox: OutboxConfig { path: outbox, verdicts: 1000 },
        mqtt,
        display: DisplayConfig {
            output: Output::Png,
            path: Some(out.join("screen.png")),
            period_ms: 200,
            ..DisplayConfig::default()
        },
        operations: OperationsConfig { metrics: MetricsAddress::Off, ..OperationsConfig::default() },
        ..Config::default()
    };
    config.validate().map_err(|(section, message)| anyhow::anyhow!("the demo's [{section}] {message}"))?;
    Ok(config)
}

/// Prints a cell; true if it is on the wrong side of class A.
fn print(number: u64, last: &Last, truth: Class) -> bool {
    let (word, colour) = match last.said {
        Said::Class(Class::A) => ("A", 32),
        Said::Class(Class::B) => ("B", 33),
        Said::Class(Class::C) => ("C reject", 31),
        Said::Invalid(reason) => (reason, 35),
    };
    let word = format!("{word:<9}");
    let word = if colours() { format!("\x1b[{colour}m{word}\x1b[0m") } else { word };
    let passed = last.said == Said::Class(Class::A);
    let remark = match (passed, truth == Class::A) {
        (true, false) => "  ← escape",
        (false, true) => "  ← overkill",
        _ => "",
    };
    let score = last.score.map_or_else(|| "  –  ".into(), |score| format!("{score:.3}"));
    println!("   {number:>4}    {word} {score}  {:>16.1}   {truth}{remark}", f64::from(last.latency_us) / 1000.0);
    !remark.is_empty()
}
