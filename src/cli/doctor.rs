//! `cellgate doctor`: what a station needs and lacks.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::json;

use crate::operations::OperationsConfig;
use crate::operations::doctor::{Broker, Check, Finding, Subject, examine, worst};

/// Look at everything that a station needs, and say what to do about what is missing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  cellgate doctor --model line1.cgm --outbox /var/lib/cellgate --broker plc-broker:8883

Exits with 1 if the station could not run.")]
pub struct Args {
    /// The model.
    #[arg(long, value_name = "MODEL.cgm")]
    model: Option<PathBuf>,

    /// The backbone that the model was fitted with, if it is not the built-in one.
    #[arg(long, value_name = "FILE")]
    backbone: Option<PathBuf>,

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
    let broker = match &args.broker {
        Some(text) => {
            let (host, port) = host_and_port(text)?;
            Some(Broker { host, port, session: None })
        }
        None => None,
    };
    let operations = OperationsConfig::default();
    let checks = examine(Subject {
        model: args.model.as_deref(),
        backbone: args.backbone.as_deref(),
        camera: None,
        broker,
        outbox: args.outbox.as_deref(),
        outbox_bytes: 0,
        display: None,
        operations: &operations,
        root: Path::new("/"),
    });
    print(&checks, args.json)?;
    Ok(if worst(&checks) == Finding::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS })
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
