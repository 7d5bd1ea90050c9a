//! The configuration of a station, `/etc/cellgate/config.toml`: typed, and checked as a whole before anything is opened.
//!
//! Every room brings its own section; what they must agree on is checked here.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::camera::config::CameraConfig;
use crate::camera::pairing::PairingConfig;
use crate::camera::trigger::Source;
use crate::display::DisplayConfig;
use crate::gpio::GpioConfig;
use crate::operations::OperationsConfig;
use crate::outbox::OutboxConfig;
use crate::outbox::handshake::HandshakeConfig;
use crate::outbox::mqtt::MqttConfig;
use crate::pipeline::backend::{Backend, ENGINES};
use crate::update::agent::UpdateConfig;

/// Where the file lies if nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/cellgate/config.toml";

/// All of it. An empty file is valid but for the model, which has no default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Time and buffers.
    pub station: StationConfig,
    /// What judges.
    pub model: ModelConfig,
    /// Where frames come from.
    pub camera: CameraConfig,
    /// Who says that a cell lies there.
    pub trigger: TriggerConfig,
    /// Lines in and out.
    pub gpio: GpioConfig,
    /// Where verdicts are kept.
    pub outbox: OutboxConfig,
    /// Where they go.
    pub mqtt: MqttConfig,
    /// What is said to the PLC.
    pub handshake: HandshakeConfig,
    /// The screen.
    pub display: DisplayConfig,
    /// Logs, metrics, priorities, drift.
    pub operations: OperationsConfig,
    /// New models.
    pub update: UpdateConfig,
}

/// Time and buffers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct StationConfig {
    /// Milliseconds from a cell's exposure to the last moment at which its verdict is of use, 20 to 60,000. Default 1000.
    pub takt_ms: u32,
    /// So many milliseconds before that INVALID(deadline) is written, so that it arrives in time, 1 to `takt-ms`/2.
    /// Default 30.
    pub margin_ms: u32,
    /// Frames that can wait, be judged or be filled at the same time, 2 to 32; each takes two bytes a pixel. Default 4.
    pub slots: usize,
    /// Side of a cell in mm, if regions are to carry their area. Default: unknown.
    pub cell_mm: Option<f64>,
    /// Refuse frames with the very pixels of one of the last eight, as a frozen camera gives. Default true.
    pub refuse_duplicates: bool,
}

impl Default for StationConfig {
    fn default() -> Self {
        Self { takt_ms: 1000, margin_ms: 30, slots: 4, cell_mm: None, refuse_duplicates: true }
    }
}

/// What judges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ModelConfig {
    /// The fitted model, a `.cgm`. With `update.state` it judges as long as no bundle has brought another, and may be left
    /// out once one has.
    pub path: PathBuf,
    /// Weights of its backbone; empty: those that are built in. Default: empty.
    pub backbone: PathBuf,
    /// Threads that judge one cell, 0 for one a core. Default 0.
    pub threads: usize,
    /// Days after which a model judges no more; 0: never. Default 0.
    pub max_age_days: u32,
    /// `auto` (an NVIDIA device if one can be used, else the CPU), `cpu`, or `cuda` (without a device nothing starts).
    /// Default `auto`.
    pub backend: Backend,
    /// The folder of the networks that `cellgate engine build` made for this device. Default
    /// `/var/cache/cellgate/engines`.
    pub engines: PathBuf,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            backbone: PathBuf::new(),
            threads: 0,
            max_age_days: 0,
            backend: Backend::default(),
            engines: ENGINES.into(),
        }
    }
}

/// Who says that a cell lies there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct TriggerConfig {
    /// `frame` (each frame of a camera that hardware triggers), `mqtt`, `gpio`, or `pulse` (the lit frames of a camera that
    /// runs freely). Default: `frame`.
    pub source: Source,
    /// How triggers and frames find each other, with `mqtt` and `gpio`.
    pub pairing: PairingConfig,
}

/// The configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading the configuration {}: {source}; `cellgate run --print-config` prints one to begin with", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML, or says what is not known.
    #[error("the configuration {}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong.
        message: String,
    },
    /// A value is not allowed.
    #[error("the configuration {}: [{section}] {message}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Its section.
        section: &'static str,
        /// The key, its value and what is allowed.
        message: String,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// What is wrong with it and where.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// Reads and checks a text; `path` is what errors call it.
    ///
    /// # Errors
    /// What is wrong with it and where.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|error| ConfigError::Parse { path: path.into(), message: error.to_string() })?;
        config.validate().map_err(|(section, message)| ConfigError::Value { path: path.into(), section, message })?;
        Ok(config)
    }

    /// As a file says it, defaults and all.
    #[must_use]
    pub fn to_toml(&self) -> String {
        // Every value of it came from TOML, or could have.
        toml::to_string(self).unwrap_or_else(|error| format!("# {error}\n"))
    }

    /// Checks every section, and what they must agree on.
    ///
    /// # Errors
    /// The section, and what is wrong in it.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        fn of<E: fmt::Display>(section: &'static str) -> impl Fn(E) -> (&'static str, String) {
            move |error| (section, error.to_string())
        }
        self.station.validate().map_err(of("station"))?;
        self.camera.validate().map_err(of("camera"))?;
        self.gpio.validate().map_err(of("gpio"))?;
        self.outbox.validate().map_err(of("outbox"))?;
        self.mqtt.validate().map_err(of("mqtt"))?;
        self.handshake.validate().map_err(of("handshake"))?;
        self.display.validate().map_err(of("display"))?;
        self.operations.validate().map_err(of("operations"))?;
        self.update.validate().map_err(of("update"))?;
        if self.model.path.as_os_str().is_empty() && !self.update.is_on() {
            return Err(("model", "path is missing: the model that judges, as `cellgate fit` writes it".into()));
        }
        self.trigger.validate(&self.station, &self.mqtt, &self.gpio).map_err(of("trigger"))
    }
}

impl StationConfig {
    fn validate(&self) -> Result<(), String> {
        let Self { takt_ms, margin_ms, slots, cell_mm, .. } = *self;
        if !(20..=60_000).contains(&takt_ms) {
            return Err(format!("takt-ms = {takt_ms}: 20 to 60000 are allowed"));
        }
        if !(1..=takt_ms / 2).contains(&margin_ms) {
            return Err(format!("margin-ms = {margin_ms}: 1 to {} are allowed, half of takt-ms", takt_ms / 2));
        }
        if !(2..=32).contains(&slots) {
            return Err(format!("slots = {slots}: 2 to 32 are allowed"));
        }
        match cell_mm {
            Some(mm) if !(1.0..=1000.0).contains(&mm) => Err(format!("cell-mm = {mm}: 1 to 1000 are allowed")),
            _ => Ok(()),
        }
    }
}

impl TriggerConfig {
    fn validate(&self, station: &StationConfig, mqtt: &MqttConfig, gpio: &GpioConfig) -> Result<(), String> {
        let PairingConfig { delay_ms, window_ms, grace_ms, confirm, late_ms, .. } = self.pairing;
        if !(2..=1000).contains(&confirm) || late_ms > 10_000 {
            return Err(format!(
                "pairing: confirm = {confirm}: 2 to 1000 are allowed; late-ms = {late_ms}: 0 to 10000 are allowed"
            ));
        }
        match self.source {
            Source::Mqtt if mqtt.host.is_empty() => {
                return Err("source = \"mqtt\" needs a broker: set host in [mqtt]".into());
            }
            Source::Gpio if gpio.trigger.is_none() => {
                return Err("source = \"gpio\" needs a line: set trigger in [gpio]".into());
            }
            Source::Frame | Source::Pulse => return Ok(()),
            _ => {}
        }
        let decided = u64::from(delay_ms) + 2 * u64::from(window_ms) + u64::from(grace_ms);
        let time = u64::from(station.takt_ms - station.margin_ms);
        if window_ms == 0 || decided >= time {
            return Err(format!(
                "pairing: delay-ms {delay_ms} + 2 × window-ms {window_ms} + grace-ms {grace_ms} must stay below takt-ms − \
                 margin-ms = {time}, and window-ms be at least 1: a pair is certain only then"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "[model]\npath = \"m.cgm\"\n";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("c.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_model_is_all_that_must_be_named() {
        let config = parse(LEAST).unwrap();
        let model = ModelConfig { path: "m.cgm".into(), ..ModelConfig::default() };
        assert_eq!(config, Config { model, ..Config::default() });
        assert!(parse("").unwrap_err().contains("[model] path is missing"));
    }

    #[test]
    fn the_commented_example_says_the_defaults() {
        let example = include_str!("../deploy/cellgate.toml");
        let config = parse(example).unwrap();
        let model = ModelConfig { path: "/var/lib/cellgate/model.cgm".into(), ..ModelConfig::default() };
        assert_eq!(config, Config { model, ..Config::default() });
        // What is commented out is right too, section by section.
        let uncommented: String =
            example.lines().map(|line| format!("{}\n", line.strip_prefix("#: ").unwrap_or(line))).collect();
        let full: toml::Table = toml::from_str(&uncommented).unwrap_or_else(|error| panic!("{error}\n{uncommented}"));
        let _: Config = full.try_into().unwrap_or_else(|error| panic!("{error}\n{uncommented}"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_section_and_remedy() {
        for (text, said) in [
            ("[station]\ntakt = 5\n", "unknown field `takt`"),
            ("[station]\ntakt-ms = 5\n", "[station] takt-ms = 5: 20 to 60000"),
            ("[station]\nslots = 1\n", "[station] slots = 1: 2 to 32"),
            ("[station]\nmargin-ms = 900\n", "[station] margin-ms = 900: 1 to 500"),
            ("[station]\ncell-mm = nan\n", "cell-mm = NaN"),
            ("[trigger]\nsource = \"mqtt\"\n", "[trigger] source = \"mqtt\" needs a broker"),
            ("[trigger]\nsource = \"gpio\"\n", "[trigger] source = \"gpio\" needs a line"),
            ("[trigger]\nsource = \"mqtt\"\npairing = { window-ms = 500 }\n[mqtt]\nhost = \"b\"\n", "must stay below"),
            ("[trigger]\npairing = { confirm = 0 }\n", "confirm = 0: 2 to 1000"),
            (
                "[model]\npath = \"m\"\nbackend = \"gpu\"\n",
                "unknown variant `gpu`, expected one of `auto`, `cpu`, `cuda`",
            ),
            ("[mqtt\n", "c.toml"),
            ("model = 3\n", "c.toml"),
        ] {
            let error = parse(&format!("{text}{}", if text.contains("model") { "" } else { LEAST })).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        let error = Config::load(Path::new("none.toml")).unwrap_err().to_string();
        assert!(error.contains("none.toml") && error.contains("--print-config"), "{error}");
    }
}
