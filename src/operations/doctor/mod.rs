//! `cellgate doctor`: looks at everything that a station needs, and says what to do about what is missing.
//!
//! Each [`Check`] says what was looked at and what was seen; one that is not good says what to do. Nothing is changed: files
//! that are written to try a folder are gone afterwards.

mod machine;
mod parts;

use std::path::Path;

use serde::Serialize;

use super::OperationsConfig;
use super::machine::Machine;
use crate::camera::Camera;
use crate::clock::Date;
use crate::display::DisplayConfig;
use crate::pipeline::Backend;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Finding {
    /// As it should be.
    Ok,
    /// The station would run, worse than it could.
    Warn,
    /// The station would not run, would judge nothing, or nobody would hear of it.
    Fail,
}

impl Finding {
    /// `OK`, `WARN` or `FAIL`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, in a word or two.
    pub name: &'static str,
    /// How it came out.
    pub finding: Finding,
    /// What was seen.
    pub seen: String,
    /// What to do, where it is not as it should be.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, seen: impl Into<String>) -> Self {
        Self { name, finding: Finding::Ok, seen: seen.into(), remedy: None }
    }

    fn warn(name: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, finding: Finding::Warn, seen: seen.into(), remedy: Some(remedy.into()) }
    }

    fn fail(name: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, finding: Finding::Fail, seen: seen.into(), remedy: Some(remedy.into()) }
    }
}

/// Opens a camera; the text says why not.
pub type OpenCamera<'a> = Box<dyn FnOnce() -> Result<Box<dyn Camera>, String> + 'a>;
/// Opens a session with the broker over TLS and with the password, if so configured, and closes it: what the broker is
/// like, or why not.
pub type OpenSession<'a> = Box<dyn FnOnce() -> Result<String, String> + 'a>;

/// A broker to be looked at.
pub struct Broker<'a> {
    /// Its name or address.
    pub host: &'a str,
    /// Its port.
    pub port: u16,
    /// Opens a session; without it only the connection is tried.
    pub session: Option<OpenSession<'a>>,
}

/// What is looked at. What is none is not in use.
pub struct Subject<'a> {
    /// The model's file.
    pub model: Option<&'a Path>,
    /// The backbone's file; none for the built-in one.
    pub backbone: Option<&'a Path>,
    /// What is to measure cells.
    pub backend: Backend,
    /// The camera.
    pub camera: Option<OpenCamera<'a>>,
    /// The broker.
    pub broker: Option<Broker<'a>>,
    /// The folder of the outbox.
    pub outbox: Option<&'a Path>,
    /// Bytes that the outbox may grow to.
    pub outbox_bytes: u64,
    /// The state folder of updates.
    pub updates: Option<&'a Path>,
    /// The display.
    pub display: Option<&'a DisplayConfig>,
    /// Operations.
    pub operations: &'a OperationsConfig,
    /// Where the machine's files lie: `/`.
    pub root: &'a Path,
}

/// Looks at everything.
#[must_use]
pub fn examine(subject: Subject<'_>) -> Vec<Check> {
    let machine = Machine::new(subject.root);
    let (mut checks, model) = parts::model(subject.model, subject.backbone);
    checks.extend(subject.camera.map(parts::camera));
    if let Some(broker) = subject.broker {
        checks.extend(parts::broker(broker));
    }
    checks.push(machine::clock(&machine, Date::now(), model.made, machine::kernel_synchronised()));
    if let Some(folder) = subject.outbox {
        checks.extend(machine::disk(folder, subject.outbox_bytes));
    }
    checks.extend(subject.updates.map(parts::updates));
    checks.extend(machine::memory(&machine, model.bytes));
    checks.push(machine::open_files());
    checks.extend(machine::limits(subject.operations));
    checks.extend(machine::heat(&machine));
    checks.push(machine::gpu(&machine));
    let cuda = machine::cuda(subject.backend);
    let device = cuda.as_ref().is_some_and(|check| check.finding == Finding::Ok);
    checks.extend(cuda);
    checks.extend(machine::tensorrt(subject.backend, device));
    checks.extend(subject.display.and_then(parts::display));
    checks.push(machine::service(&machine));
    checks
}

/// The worst finding.
#[must_use]
pub fn worst(checks: &[Check]) -> Finding {
    checks.iter().map(|check| check.finding).max().unwrap_or(Finding::Ok)
}

#[cfg(test)]
mod tests;
