//! Which camera, from the configuration's section `[camera]`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::pixels::{Layout, NoLayout, PixelFormat};
use super::pulse::PulseConfig;
use super::replay::Replay;
use super::synthetic::{self, Scene, Synthetic};
use super::{Camera, CameraError};
use crate::synth::{SynthConfig, SynthError};

/// The kinds of camera.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A camera of the Linux kernel.
    #[default]
    V4l,
    /// A folder of images.
    Replay,
    /// Cells that are drawn.
    Synthetic,
}

/// A value that is not allowed.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number or text outside what is allowed.
    #[error("the configuration's camera.{key} is {value}: {allowed} is allowed")]
    Value {
        /// Which.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// Shift and mask that fit no pixel.
    #[error("the configuration's camera.shift and camera.mask: {0}")]
    Layout(#[from] NoLayout),
    /// Cells that cannot be drawn.
    #[error("the configuration's camera: {0}")]
    Synth(#[from] SynthError),
}

pub(super) fn check(
    key: &'static str,
    value: impl Display,
    good: bool,
    allowed: &'static str,
) -> Result<(), ConfigError> {
    if good { Ok(()) } else { Err(ConfigError::Value { key, value: value.to_string(), allowed }) }
}

/// The camera. Keys that another kind of camera uses are checked too, but mean nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct CameraConfig {
    /// `v4l`, `replay` or `synthetic`. Default `v4l`.
    pub kind: Kind,
    /// v4l: the device file. Default `/dev/video0`; a name under `/dev/v4l/by-path` or `by-id` stays the same whatever
    /// else is plugged in.
    pub device: PathBuf,
    /// v4l: pixels in a row, 16 to 16384. Default 1280.
    pub width: usize,
    /// v4l: rows, 16 to 16384. Default 1024.
    pub height: usize,
    /// v4l: `grey`, `y10`, `y12`, `y14` or `y16`. Default `grey`.
    pub format: PixelFormat,
    /// v4l: how far the pixel's bits lie above the lowest bit of its word, where the driver does not align right (Tegra).
    /// Default: as the format says.
    pub shift: Option<u32>,
    /// v4l: the pixel's bits after the shift, which is full scale: 255, 511, … 65535. Default: as the format says, with a
    /// shift as many of its bits as are left.
    pub mask: Option<u16>,
    /// v4l: buffers that driver and program share, 2 to 32. Default 4.
    pub buffers: u32,
    /// v4l: frames a second to ask of the driver, 0.01 to 10000. Default: not asked.
    pub rate: Option<f64>,
    /// v4l: the camera's controls and their values, such as `exposure_time_absolute = 500`, by the names that `v4l2-ctl
    /// -l` writes. Default: none is touched.
    pub controls: BTreeMap<String, i64>,
    /// replay: the folder of images. Default `frames`.
    pub folder: PathBuf,
    /// replay: begin again after the last image. Default true.
    pub repeat: bool,
    /// replay and synthetic: milliseconds from frame to frame, 0 (as fast as they are taken) to 3600000. Default 1000.
    pub period_ms: u64,
    /// synthetic: pixels a side, 64 to 2048. Default 720.
    pub size: usize,
    /// synthetic: full scale, 255 to 65535. Default 255.
    pub white: u16,
    /// synthetic: seed of the line. Default 1.
    pub seed: u64,
    /// synthetic: number of the first cell. Default 0.
    pub first: u64,
    /// synthetic: cells that are drawn at start and shown in turn, 0 (each is drawn when it is due) to 4096. Default 0.
    pub prepared: usize,
    /// synthetic: frames until the end. Default: for ever.
    pub count: Option<u64>,
    /// synthetic: whether the frame's number is written into it as a bar code. Default true.
    pub with_id: bool,
    /// synthetic: shares of the classes A, B and C. Default 0.963, 0.029, 0.008.
    pub proportions: [f64; 3],
    /// synthetic: scale of the faults of an uncorrected sensor, 0 to 4. Default 0.
    pub pattern: f32,
    /// synthetic: `cell`, `dark` (the lens is covered) or `flat` (an evenly lit plate). Default `cell`.
    pub scene: Scene,
    /// The sensor's calibration, as `cellgate camera calibrate` writes it. Default: none, frames stay as they are.
    pub calibration: Option<PathBuf>,
    /// How pulses are found by the trigger source `pulse`.
    pub pulse: PulseConfig,
}

impl Default for CameraConfig {
    fn default() -> Self {
        let synth = SynthConfig::default();
        Self {
            kind: Kind::V4l,
            device: "/dev/video0".into(),
            width: 1280,
            height: 1024,
            format: PixelFormat::Grey,
            shift: None,
            mask: None,
            buffers: 4,
            rate: None,
            controls: BTreeMap::new(),
            folder: "frames".into(),
            repeat: true,
            period_ms: 1000,
            size: synth.size,
            white: synth.white,
            seed: 1,
            first: 0,
            prepared: 0,
            count: None,
            with_id: true,
            proportions: synth.proportions,
            pattern: 0.0,
            scene: Scene::Cell,
            calibration: None,
            pulse: PulseConfig::default(),
        }
    }
}

impl CameraConfig {
    /// Checks every field's range.
    ///
    /// # Errors
    /// The first that is not allowed, with what is.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let side = 16..=16384;
        check("width", self.width, side.contains(&self.width), "16 to 16384")?;
        check("height", self.height, side.contains(&self.height), "16 to 16384")?;
        check("buffers", self.buffers, (2..=32).contains(&self.buffers), "2 to 32")?;
        let rate = self.rate.unwrap_or(1.0);
        check("rate", rate, (0.01..=10_000.0).contains(&rate), "0.01 to 10000 frames a second")?;
        check("period-ms", self.period_ms, self.period_ms <= 3_600_000, "0 to 3600000")?;
        check("prepared", self.prepared, self.prepared <= 4096, "0 to 4096")?;
        check("pattern", self.pattern, (0.0..=4.0).contains(&self.pattern), "0 to 4")?;
        self.layout()?;
        self.cells().validate()?;
        self.pulse.validate()
    }

    /// Where the pixels' bits are.
    ///
    /// # Errors
    /// If shift and mask fit no pixel of the format.
    pub fn layout(&self) -> Result<Layout, NoLayout> {
        if self.shift.is_none() && self.mask.is_none() {
            return Ok(Layout::of(self.format));
        }
        let shift = self.shift.unwrap_or(0);
        let left = (8 * self.format.bytes() as u32).saturating_sub(shift).min(self.format.bits());
        let all = u16::MAX.checked_shr(16 - left).unwrap_or(0);
        Layout::explicit(self.format, shift, self.mask.unwrap_or(all))
    }

    /// synthetic: what the cells and the optics are like.
    #[must_use]
    pub fn cells(&self) -> SynthConfig {
        SynthConfig {
            size: self.size,
            white: self.white,
            proportions: self.proportions,
            with_id: self.with_id,
            ..SynthConfig::default()
        }
    }

    /// What decides how bright a frame is, in one line: a calibration holds for the settings that it was made with.
    #[must_use]
    pub fn exposure(&self) -> String {
        if self.kind != Kind::V4l {
            return String::new();
        }
        let controls: Vec<String> = self.controls.iter().map(|(name, value)| format!("{name}={value}")).collect();
        controls.join(" ")
    }
}

/// Opens the camera that is configured. A V4L2 device that is not there is no error: it is looked for at each call to
/// [`Camera::next`].
///
/// # Errors
/// [`CameraError::Refused`] if the configuration is wrong, or the device or folder is there and cannot do it.
pub fn open(config: &CameraConfig) -> Result<Box<dyn Camera>, CameraError> {
    let refused = |error: &dyn Display| CameraError::Refused(error.to_string());
    config.validate().map_err(|e| refused(&e))?;
    let period = Duration::from_millis(config.period_ms);
    match config.kind {
        Kind::Replay => Ok(Box::new(Replay::new(&config.folder, period, config.repeat)?)),
        Kind::Synthetic => {
            let settings = synthetic::Settings {
                synth: config.cells(),
                seed: config.seed,
                first: config.first,
                prepared: config.prepared,
                period,
                count: config.count,
                scene: config.scene,
                pattern: config.pattern,
            };
            Ok(Box::new(Synthetic::new(settings).map_err(|e| refused(&e))?))
        }
        Kind::V4l => open_v4l(config),
    }
}

#[cfg(target_os = "linux")]
fn open_v4l(config: &CameraConfig) -> Result<Box<dyn Camera>, CameraError> {
    let layout = config.layout().map_err(|e| CameraError::Refused(e.to_string()))?;
    Ok(Box::new(super::v4l::V4l::new(super::v4l::Settings {
        path: config.device.clone(),
        width: config.width,
        height: config.height,
        format: config.format,
        layout,
        buffers: config.buffers,
        rate: config.rate,
        controls: config.controls.clone(),
    })?))
}

#[cfg(not(target_os = "linux"))]
fn open_v4l(_: &CameraConfig) -> Result<Box<dyn Camera>, CameraError> {
    Err(CameraError::Refused("cameras of kind `v4l` are the Linux kernel's; use `replay` or `synthetic` here".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::Shot;

    fn parse(text: &str) -> Result<CameraConfig, String> {
        let config: CameraConfig = toml::from_str(text).map_err(|e| e.to_string())?;
        config.validate().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn what_is_not_said_has_its_default_and_what_is_unknown_is_refused() {
        assert_eq!(parse("").unwrap(), CameraConfig::default());
        let config = parse(
            "kind = 'v4l'\ndevice = '/dev/video2'\nformat = 'y12'\nshift = 4\n[controls]\ngain = 3\nauto_exposure = 1",
        )
        .unwrap();
        assert_eq!(config.layout().unwrap(), Layout::explicit(PixelFormat::Y12, 4, 0xfff).unwrap());
        assert_eq!(config.exposure(), "auto_exposure=1 gain=3");
        assert!(parse("hight = 3").unwrap_err().contains("hight"));
        assert!(parse("format = 'yuyv'").unwrap_err().contains("y12"));
    }

    #[test]
    fn each_value_out_of_range_is_named_with_what_is_allowed() {
        for (text, words) in [
            ("width = 0", ["camera.width is 0", "16 to 16384"]),
            ("height = 99999", ["camera.height", "16384"]),
            ("buffers = 1", ["camera.buffers is 1", "2 to 32"]),
            ("rate = 0.0", ["camera.rate", "0.01"]),
            ("rate = nan", ["camera.rate", "0.01"]),
            ("period-ms = 99999999", ["camera.period-ms", "3600000"]),
            ("prepared = 5000", ["camera.prepared", "4096"]),
            ("pattern = -1.0", ["camera.pattern", "0 to 4"]),
            ("size = 3", ["3×3", "64 to 2048"]),
            ("mask = 3", ["camera.shift", "mask"]),
            ("format = 'y16'\nshift = 99", ["camera.shift", "shift 99"]),
            ("pulse.on = 2.0", ["camera.pulse.on", "0.9"]),
            ("pulse.off = 0.5", ["camera.pulse.off", "pulse.on"]),
            ("pulse.longest = 2", ["camera.pulse.longest", "settle"]),
            ("pulse.settle = 4000000000", ["camera.pulse.settle", "100"]),
        ] {
            let error = parse(text).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
        }
    }

    #[test]
    fn a_synthetic_camera_opens_and_a_missing_folder_does_not() {
        let config = CameraConfig { kind: Kind::Synthetic, size: 100, period_ms: 0, ..CameraConfig::default() };
        let mut camera = open(&config).unwrap();
        let mut shot = Shot::new(100, 100, 255);
        camera.next(&mut shot, Duration::ZERO).unwrap();
        assert_eq!(crate::synth::read_id(&shot.frame), Some(0));
        let config = CameraConfig { kind: Kind::Replay, folder: "no/such/folder".into(), ..CameraConfig::default() };
        assert!(matches!(open(&config), Err(CameraError::Refused(why)) if why.contains("no/such/folder")));
    }
}
