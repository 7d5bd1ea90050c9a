//! What the configuration says of the screen.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::SMALLEST;

/// Where pictures go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// Nowhere.
    #[default]
    None,
    /// To a framebuffer device.
    Framebuffer,
    /// To a PNG file, which is replaced each time.
    Png,
}

/// How a screen hangs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub enum Rotate {
    /// Upright.
    #[default]
    No,
    /// The picture is turned clockwise by 90°.
    Quarter,
    /// By 180°.
    Half,
    /// By 270°.
    ThreeQuarters,
}

impl TryFrom<u16> for Rotate {
    type Error = String;

    fn try_from(degrees: u16) -> Result<Self, String> {
        match degrees {
            0 => Ok(Self::No),
            90 => Ok(Self::Quarter),
            180 => Ok(Self::Half),
            270 => Ok(Self::ThreeQuarters),
            other => Err(format!("`rotate` is {other}, it must be 0, 90, 180 or 270")),
        }
    }
}

impl From<Rotate> for u16 {
    fn from(rotate: Rotate) -> Self {
        match rotate {
            Rotate::No => 0,
            Rotate::Quarter => 90,
            Rotate::Half => 180,
            Rotate::ThreeQuarters => 270,
        }
    }
}

impl Rotate {
    /// Sides of the picture for a device of these sides.
    #[must_use]
    pub fn of(self, width: u32, height: u32) -> (u32, u32) {
        match self {
            Self::No | Self::Half => (width, height),
            Self::Quarter | Self::ThreeQuarters => (height, width),
        }
    }

    /// Which pixel of the picture a pixel of the device shows, for a device of these sides.
    pub(super) fn source(self, x: usize, y: usize, width: usize, height: usize) -> (usize, usize) {
        match self {
            Self::No => (x, y),
            Self::Quarter => (y, width - 1 - x),
            Self::Half => (width - 1 - x, height - 1 - y),
            Self::ThreeQuarters => (height - 1 - y, x),
        }
    }
}

/// The section `[display]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct DisplayConfig {
    /// Where pictures go: `none` (default), `framebuffer` or `png`.
    pub output: Output,
    /// The device or the file; by default `/dev/fb0` or `/run/cellgate/display.png`. A file should lie in memory (`/run`):
    /// it is written each period.
    pub path: Option<PathBuf>,
    /// Width and height of a PNG in pixels, from 128 × 64 to 4096 × 4096; 320 × 240 by default. A framebuffer says its
    /// own.
    pub size: [u32; 2],
    /// How a framebuffer's screen hangs: the picture is turned clockwise by 0 (default), 90, 180 or 270 degrees.
    pub rotate: Rotate,
    /// Time between pictures in milliseconds, 100 to 60000; 500 by default.
    pub period_ms: u32,
    /// Age in milliseconds from which a verdict is no longer shown, 500 to 600000; 5000 by default.
    pub stale_after_ms: u32,
    /// What the times shown are ahead of UTC, in minutes, -840 to 840; 0 by default.
    pub utc_offset_min: i32,
}

impl Default for DisplayConfig {
    fn default() -> Self {
        Self {
            output: Output::None,
            path: None,
            size: [320, 240],
            rotate: Rotate::No,
            period_ms: 500,
            stale_after_ms: 5000,
            utc_offset_min: 0,
        }
    }
}

/// What is wrong with the section `[display]`.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the configuration's `display.{key}` is {value}, it must {allowed}")]
pub struct DisplayConfigError {
    key: &'static str,
    value: String,
    allowed: String,
}

impl DisplayConfig {
    /// Whether every value is in its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn validate(&self) -> Result<(), DisplayConfigError> {
        let check = |key, value: i64, low: i64, high: i64| {
            let allowed = || format!("lie from {low} to {high}");
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(DisplayConfigError { key, value: value.to_string(), allowed: allowed() })
            }
        };
        check("size (width)", self.size[0].into(), SMALLEST.0.into(), 4096)?;
        check("size (height)", self.size[1].into(), SMALLEST.1.into(), 4096)?;
        check("period-ms", self.period_ms.into(), 100, 60_000)?;
        check("stale-after-ms", self.stale_after_ms.into(), 500, 600_000)?;
        check("utc-offset-min", self.utc_offset_min.into(), -840, 840)?;
        match &self.path {
            Some(path) if path.as_os_str().is_empty() => Err(DisplayConfigError {
                key: "path",
                value: "empty".into(),
                allowed: "name a file or be left out".into(),
            }),
            _ => Ok(()),
        }
    }

    /// The device or the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        let default = match self.output {
            Output::Framebuffer => "/dev/fb0",
            Output::Png | Output::None => "/run/cellgate/display.png",
        };
        self.path.as_deref().unwrap_or(Path::new(default))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_named_with_what_is_allowed() {
        DisplayConfig::default().validate().unwrap();
        let bad = DisplayConfig { period_ms: 99, ..DisplayConfig::default() }.validate().unwrap_err().to_string();
        assert_eq!(bad, "the configuration's `display.period-ms` is 99, it must lie from 100 to 60000");
        let small = DisplayConfig { size: [128, 63], ..DisplayConfig::default() };
        assert!(small.validate().unwrap_err().to_string().contains("size (height)"));
        assert!(DisplayConfig { path: Some("".into()), ..DisplayConfig::default() }.validate().is_err());
    }

    #[test]
    fn the_section_reads_as_documented() {
        let text = "output = \"framebuffer\"\nrotate = 90\nsize = [480, 320]\nstale-after-ms = 3000\n";
        let config: DisplayConfig = toml::from_str(text).unwrap();
        assert_eq!((config.output, config.rotate), (Output::Framebuffer, Rotate::Quarter));
        assert_eq!(config.path(), Path::new("/dev/fb0"));
        assert!(toml::from_str::<DisplayConfig>("rotate = 45").unwrap_err().to_string().contains("0, 90, 180 or 270"));
        assert!(toml::from_str::<DisplayConfig>("colour = 1").is_err());
    }
}
