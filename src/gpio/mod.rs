//! Two wires to the line's controller: an input whose edge says that a cell lies there, and an output that says PASS.
//!
//! Both are lines of a GPIO chip of the kernel (`gpiodetect` and `gpioinfo` list them). The output is fail-safe by its
//! polarity: the line is active only while a PASS is in force, so that a cut wire, a dead machine and a program that was
//! never started all look like a reject. See [`Reject`] for how far that reaches.

#[cfg(target_os = "linux")]
mod chip;
mod edge;
mod reject;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use edge::{Edge, EdgeLine, Edges};
pub use reject::{OutputLine, Reject};

/// Which way a line goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slope {
    /// From low to high.
    #[default]
    Rising,
    /// From high to low.
    Falling,
}

/// A line's level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Voltage {
    /// Low.
    Low,
    /// High.
    #[default]
    High,
}

/// What pulls a line that nobody drives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pull {
    /// As the board has it.
    #[default]
    AsIs,
    /// Nothing.
    None,
    /// To high.
    Up,
    /// To low.
    Down,
}

/// The input that triggers, `[gpio.trigger]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct EdgeConfig {
    /// The chip's file. Default `/dev/gpiochip0`.
    pub chip: PathBuf,
    /// The line's number on the chip. Default 0.
    pub line: u32,
    /// The edge that counts: `rising` or `falling`. Default `rising`.
    pub edge: Slope,
    /// What pulls the line: `as-is`, `none`, `up` or `down`. Default `as-is`.
    pub pull: Pull,
    /// Microseconds for which the line must hold its level before an edge counts, 0 to 1000000. Default 2000.
    pub debounce_us: u64,
    /// Milliseconds after an edge in which another one is not a cell, 0 to 60000. Default 20.
    pub dead_ms: u64,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            chip: "/dev/gpiochip0".into(),
            line: 0,
            edge: Slope::Rising,
            pull: Pull::AsIs,
            debounce_us: 2000,
            dead_ms: 20,
        }
    }
}

/// The output that says PASS, `[gpio.reject]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct RejectConfig {
    /// The chip's file. Default `/dev/gpiochip0`.
    pub chip: PathBuf,
    /// The line's number on the chip. Default 1.
    pub line: u32,
    /// The level that means PASS, `high` or `low`; the other one means reject. Default `high`.
    pub pass_level: Voltage,
    /// What pulls the line while nobody drives it: `as-is`, `none`, `up` or `down`. Choose the reject level, if the chip
    /// can. Default `as-is`.
    pub pull: Pull,
    /// Milliseconds that a PASS is held, 1 to 60000, after which the line rejects; less than the takt, so that the
    /// controller sees an edge for each cell. 0 holds it until the next word. Default 300.
    pub hold_ms: u64,
}

impl Default for RejectConfig {
    fn default() -> Self {
        Self { chip: "/dev/gpiochip0".into(), line: 1, pass_level: Voltage::High, pull: Pull::AsIs, hold_ms: 300 }
    }
}

/// The wires, `[gpio]`. None by default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct GpioConfig {
    /// The input that triggers, for the trigger source `gpio`.
    pub trigger: Option<EdgeConfig>,
    /// The output that says PASS.
    pub reject: Option<RejectConfig>,
}

impl GpioConfig {
    /// Checks every field's range.
    ///
    /// # Errors
    /// The first that is not allowed, with what is.
    pub fn validate(&self) -> Result<(), GpioError> {
        let within = |key, value: u64, most: u64| {
            if value <= most { Ok(()) } else { Err(GpioError::Config { key, value, most }) }
        };
        if let Some(trigger) = &self.trigger {
            within("trigger.debounce-us", trigger.debounce_us, 1_000_000)?;
            within("trigger.dead-ms", trigger.dead_ms, 60_000)?;
        }
        if let Some(reject) = &self.reject {
            within("reject.hold-ms", reject.hold_ms, 60_000)?;
        }
        match (&self.trigger, &self.reject) {
            (Some(input), Some(output)) if (&input.chip, input.line) == (&output.chip, output.line) => {
                Err(GpioError::Same { chip: input.chip.clone(), line: input.line })
            }
            _ => Ok(()),
        }
    }
}

/// Why a wire cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GpioError {
    /// A number out of its range.
    #[error("the configuration's gpio.{key} is {value}: 0 to {most} is allowed")]
    Config {
        /// Which.
        key: &'static str,
        /// What it is.
        value: u64,
        /// The most allowed.
        most: u64,
    },
    /// One line for both.
    #[error("the configuration's gpio.trigger and gpio.reject are both line {line} of {}", chip.display())]
    Same {
        /// The chip.
        chip: PathBuf,
        /// The line.
        line: u32,
    },
    /// The line cannot be had.
    #[error(
        "opening line {line} of {} as {what}: {why}; `gpioinfo` shows who uses it, and this user must be in the group that \
         owns the chip",
        chip.display()
    )]
    Open {
        /// The chip.
        chip: PathBuf,
        /// The line.
        line: u32,
        /// Input or output.
        what: &'static str,
        /// What the system said.
        why: String,
    },
    /// The line was there and is not any more.
    #[error("waiting for an edge of the trigger: {0}")]
    Lost(#[source] std::io::Error),
}

#[cfg(not(target_os = "linux"))]
mod chip {
    //! There are no GPIO chips here.
    use super::{EdgeConfig, EdgeLine, GpioError, OutputLine, RejectConfig};

    fn none(chip: &std::path::Path, line: u32, what: &'static str) -> GpioError {
        GpioError::Open { chip: chip.into(), line, what, why: "only Linux has GPIO chips".into() }
    }

    pub fn input(config: &EdgeConfig) -> Result<Box<dyn EdgeLine>, GpioError> {
        Err(none(&config.chip, config.line, "input"))
    }

    pub fn output(config: &RejectConfig) -> Result<Box<dyn OutputLine>, GpioError> {
        Err(none(&config.chip, config.line, "output"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wires_are_configured_apart_and_checked() {
        let parse = |text: &str| {
            let config: GpioConfig = toml::from_str(text).map_err(|e| e.to_string())?;
            config.validate().map_err(|e| e.to_string()).map(|()| config)
        };
        assert_eq!(parse("").unwrap(), GpioConfig::default());
        let config = parse("[trigger]\nline = 7\nedge = 'falling'\n[reject]\npass-level = 'low'\npull = 'up'").unwrap();
        assert_eq!(config.trigger.unwrap().edge, Slope::Falling);
        assert_eq!(config.reject.unwrap().pass_level, Voltage::Low);
        assert!(parse("[trigger]\nline = 4\n[reject]\nline = 4").unwrap_err().contains("both line 4"));
        assert!(parse("[trigger]\ndebounce-us = 2000000").unwrap_err().contains("0 to 1000000"));
        assert!(parse("[reject]\nhold-ms = 99999").unwrap_err().contains("gpio.reject.hold-ms is 99999"));
        assert!(parse("[reject]\nlevel = 1").unwrap_err().contains("level"));
    }

    #[test]
    fn a_chip_that_is_not_there_is_named_with_the_remedy() {
        let config = EdgeConfig { chip: "/dev/no-such-gpiochip".into(), line: 3, ..EdgeConfig::default() };
        let error = Edges::open(&config).err().unwrap().to_string();
        assert!(error.contains("line 3 of /dev/no-such-gpiochip as input") && error.contains("gpioinfo"), "{error}");
        let config = RejectConfig { chip: "/dev/no-such-gpiochip".into(), ..RejectConfig::default() };
        assert!(Reject::open(&config).err().unwrap().to_string().contains("as output"));
    }
}
