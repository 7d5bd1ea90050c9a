//! What the configuration says of operations.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use log::LevelFilter;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::drift::DriftConfig;

/// Largest core number that is believed.
const MOST_CORES: usize = 1024;

/// Where `/metrics` and `/healthz` are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MetricsAddress {
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

impl TryFrom<String> for MetricsAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let wrong = |_| format!("`metrics` is {text:?}, it must be an address and port such as 127.0.0.1:9464, or off");
        text.parse().map(Self::At).map_err(wrong)
    }
}

impl From<MetricsAddress> for String {
    fn from(address: MetricsAddress) -> Self {
        match address {
            MetricsAddress::Off => "off".into(),
            MetricsAddress::At(address) => address.to_string(),
        }
    }
}

/// The least important messages that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Level(pub LevelFilter);

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |_| format!("{text:?} is no level of logging, it must be off, error, warn, info, debug or trace");
        text.parse().map(Self).map_err(wrong)
    }
}

impl TryFrom<String> for Level {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Level> for String {
    fn from(level: Level) -> Self {
        level.to_string()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.as_str().to_ascii_lowercase())
    }
}

/// The section `[operations]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct OperationsConfig {
    /// Address and port of `/metrics` and `/healthz`, or `off`; `127.0.0.1:9464` by default. Whoever reaches it may read.
    pub metrics: MetricsAddress,
    /// What is logged: `off`, `error`, `warn`, `info` (default), `debug` or `trace`. `CELLGATE_LOG` overrides it.
    pub log_level: Level,
    /// Whether all memory is kept in RAM (`mlockall`); no by default. Needs `LimitMEMLOCK=infinity`.
    pub lock_memory: bool,
    /// Cores that the frame path may run on, 0 to 1023; empty by default: all of them.
    pub affinity: Vec<usize>,
    /// Priority of the frame path under `SCHED_FIFO`, 1 (lowest) to 99, or 0 (default) for the usual scheduler. Needs
    /// `LimitRTPRIO=`. Above 49 it comes before the kernel's interrupt threads.
    pub fifo_priority: u8,
    /// The alarm when the line's good cells move away from the fit.
    pub drift: DriftConfig,
}

impl Default for OperationsConfig {
    fn default() -> Self {
        Self {
            metrics: MetricsAddress::At(SocketAddr::from(([127, 0, 0, 1], 9464))),
            log_level: Level(LevelFilter::Info),
            lock_memory: false,
            affinity: Vec::new(),
            fifo_priority: 0,
            drift: DriftConfig::default(),
        }
    }
}

/// What is wrong with the section `[operations]`.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the configuration's `operations.{key}` is {value}, it must {allowed}")]
pub struct OperationsConfigError {
    pub(super) key: &'static str,
    pub(super) value: String,
    pub(super) allowed: &'static str,
}

impl OperationsConfig {
    /// Whether every value is in its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn validate(&self) -> Result<(), OperationsConfigError> {
        if let Some(core) = self.affinity.iter().find(|&&core| core >= MOST_CORES) {
            let allowed = "name cores from 0 to 1023";
            return Err(OperationsConfigError { key: "affinity", value: core.to_string(), allowed });
        }
        if self.fifo_priority > 99 {
            let value = self.fifo_priority.to_string();
            return Err(OperationsConfigError { key: "fifo-priority", value, allowed: "lie from 0 to 99" });
        }
        self.drift.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_reads_as_documented() {
        let config: OperationsConfig = toml::from_str("").unwrap();
        assert_eq!(config, OperationsConfig::default());
        let text = "metrics = \"off\"\nlog-level = \"debug\"\naffinity = [2, 3]\n[drift]\nwindow = 300\n";
        let config: OperationsConfig = toml::from_str(text).unwrap();
        config.validate().unwrap();
        assert_eq!((config.metrics, config.log_level.0), (MetricsAddress::Off, LevelFilter::Debug));
        assert_eq!((config.drift.window, &config.affinity[..]), (300, &[2, 3][..]));
        for (text, part) in [
            ("metrics = \"9464\"", "127.0.0.1:9464, or off"),
            ("log-level = \"loud\"", "no level of logging"),
            ("lock = true", "lock-memory"),
        ] {
            let error = toml::from_str::<OperationsConfig>(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_documented_sections_are_the_defaults() {
        #[derive(Deserialize)]
        struct Both {
            display: crate::display::DisplayConfig,
            operations: OperationsConfig,
        }
        let page = include_str!("../../docs/operations.md");
        let text = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let both: Both = toml::from_str(text).unwrap();
        assert_eq!(both.display, crate::display::DisplayConfig::default());
        assert_eq!(both.operations, OperationsConfig::default());
    }

    #[test]
    fn a_wrong_value_is_named_with_what_is_allowed() {
        let wrong = OperationsConfig { fifo_priority: 100, ..OperationsConfig::default() };
        let error = wrong.validate().unwrap_err().to_string();
        assert_eq!(error, "the configuration's `operations.fifo-priority` is 100, it must lie from 0 to 99");
        assert!(OperationsConfig { affinity: vec![0, 1024], ..OperationsConfig::default() }.validate().is_err());
        let drift = DriftConfig { window: 10, ..DriftConfig::default() };
        let error = OperationsConfig { drift, ..OperationsConfig::default() }.validate().unwrap_err().to_string();
        assert!(error.contains("operations.drift.window"), "{error}");
    }
}
