//! `cellgate doctor`: what a station needs and lacks.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::json;

use crate::config::{Config, DEFAULT_PATH};
use crate::operations::OperationsConfig;
use crate::operations::doctor::{Broker, Check, Finding, Subject, examine, worst};
use crate::outbox::mqtt;
use crate::pipeline::Backend;
use crate::station::start;
use crate::update::disk::Folder;
use crate::update::slots::Slots;

/// Look at everything that a station needs, and say what to do about what is missing.
///
/// Opens the camera and takes a frame, opens a session with the broker over TLS and with the password, loads the model with
/// its backbone, and looks at disk, clock, memory, heat, display and systemd's unit. Stop the station first: a camera has
/// one user.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cellgate doctor --config cellgate.toml
  cellgate doctor --model line1.cgm --outbox /var/lib/cellgate --broker plc-broker:8883     without a configuration

Exits with 1 if the station could not run.")]
pub struct Args {
    /// The station's configuration [default: /etc/cellgate/config.toml, unless parts are named].
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "backbone", "outbox", "broker"])]
    config: Option<PathBuf>,

    /// The model.
    #[arg(long, value_name = "MODEL.cgm")]
    model: Option<PathBuf>,

    /// The backbone that the model was fitted with, if it is not the built-in one.
    #[arg(long, value_name = "FILE")]
    backbone: Option<PathBuf>,

    /// What measures cells [default: as configured, or auto].
    #[arg(long, value_name = "WHICH")]
    backend: Option<Backend>,

    /// The folder of the outbox.
    #[arg(long, value_name = "FOLDER")]
    outbox: Option<PathBuf>,

    /// The broker.
    #[arg(long, value_name = "HOST:PORT")]
    broker: Option<String>,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Looks.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let parts = args.model.is_some() || args.backbone.is_some() || args.outbox.is_some() || args.broker.is_some();
    let checks = match &args.config {
        None if parts => of_parts(&args)?,
        None => of_config(&Config::load(Path::new(DEFAULT_PATH))?, args.backend),
        Some(path) => of_config(&Config::load(path)?, args.backend),
    };
    print(&checks, args.json)?;
    Ok(if worst(&checks) == Finding::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What a configuration names.
fn of_config(config: &Config, backend: Option<Backend>) -> Vec<Check> {
    let broker = (!config.mqtt.host.is_empty()).then(|| Broker {
        host: &config.mqtt.host,
        port: config.mqtt.port,
        session: Some(Box::new(|| match mqtt::try_session(&config.mqtt) {
            Ok(()) => Ok(format!("takes {:?}", config.mqtt.client())),
            Err(error) => Err(error.to_string()),
        })),
    });
    let backbone = Some(config.model.backbone.as_path()).filter(|path| !path.as_os_str().is_empty());
    let updates = config.update.is_on().then_some(config.update.state.as_path());
    let in_force = updates.and_then(|state| {
        let folder = Folder::look(state);
        let slot = Slots::look(&folder).ok()?.in_force()?.0;
        Some(folder.path(slot.model()))
    });
    examine(Subject {
        model: Some(in_force.as_ref().unwrap_or(&config.model.path)),
        backbone,
        backend: backend.unwrap_or(config.model.backend),
        camera: Some(Box::new(|| start::open_camera(config).map_err(|error| error.to_string()))),
        broker,
        outbox: config.outbox.path.parent(),
        outbox_bytes: config.outbox.bytes(),
        updates,
        display: Some(&config.display),
        operations: &config.operations,
        root: Path::new("/"),
    })
}

/// What the command line names.
fn of_parts(args: &Args) -> anyhow::Result<Vec<Check>> {
    let broker = match &args.broker {
        Some(text) => {
            let (host, port) = host_and_port(text)?;
            Some(Broker { host, port, session: None })
        }
        None => None,
    };
    Ok(examine(Subject {
        model: args.model.as_deref(),
        backbone: args.backbone.as_deref(),
        backend: args.backend.unwrap_or_default(),
        camera: None,
        broker,
        outbox: args.outbox.as_deref(),
        outbox_bytes: 0,
        updates: None,
        display: None,
        operations: &OperationsConfig::default(),
        root: Path::new("/"),
    }))
}

/// Prints the checks for people, or as JSON.
fn print(checks: &[Check], json: bool) -> anyhow::Result<()> {
    let worst = worst(checks).word();
    if json {
        println!("{}", serde_json::to_string_pretty(&json!({ "worst": worst, "checks": checks }))?);
        return Ok(());
    }
    for check in checks {
        println!("{:<5} {:<14} {}", check.finding.word(), check.name, check.seen);
        if let Some(remedy) = &check.remedy {
            println!("{:21}→ {remedy}", "");
        }
    }
    let count = |finding| checks.iter().filter(|check| check.finding == finding).count();
    println!(
        "\n{} checks: {} good, {} could be better, {} keep the station from running",
        checks.len(),
        count(Finding::Ok),
        count(Finding::Warn),
        count(Finding::Fail)
    );
    Ok(())
}

/// `host:port`, also `[::1]:1883`.
fn host_and_port(text: &str) -> anyhow::Result<(&str, u16)> {
    let Some((host, port)) = text.rsplit_once(':') else {
        bail!("--broker {text:?} has no port: HOST:PORT is needed, for instance broker:1883");
    };
    let port = port.parse().with_context(|| format!("--broker {text:?}: {port:?} is no port"))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        bail!("--broker {text:?} has no host: HOST:PORT is needed, for instance broker:1883");
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_named_with_their_port() {
        assert_eq!(host_and_port("plc.local:8883").unwrap(), ("plc.local", 8883));
        assert_eq!(host_and_port("[::1]:1883").unwrap(), ("::1", 1883));
        for bad in ["plc", "plc:", "plc:99999", ":1883", "[]:1"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }
}
