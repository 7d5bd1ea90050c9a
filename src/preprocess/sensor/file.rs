//! The calibration's file: the [`container`](crate::model::container) of model files, with a magic of its own.

use std::path::Path;

use super::calibration::{Calibration, DEAD, HOT, Header};
use super::{Correction, SensorError};
use crate::camera::Format;
use crate::model::container::{self, Container, FileError, Kind};

const KIND: Kind = Kind { magic: *b"CELLGATS", version: 1, name: "sensor calibration" };
/// Sides that a sensor can have; more would only ask for memory.
const SIDES: std::ops::RangeInclusive<u32> = 1..=16384;
const MOST_PIXELS: u64 = 64_000_000;

impl Calibration {
    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// What the system refused.
    pub fn write(&self, path: &Path) -> Result<(), SensorError> {
        let sections: [(&str, &[u8]); 4] = [
            ("dark", bytemuck::cast_slice(&self.dark)),
            ("gain", bytemuck::cast_slice(&self.gain)),
            ("bad", bytemuck::cast_slice(&self.bad)),
            ("kinds", &self.kinds),
        ];
        Ok(container::write(path, KIND, &self.header, &sections)?)
    }

    /// Reads a file. Its size is checked against its header before memory is taken.
    ///
    /// # Errors
    /// If it cannot be read or is no calibration, or its parts contradict each other.
    pub fn read(path: &Path) -> Result<Self, SensorError> {
        let (header, _): (Header, _) = Container::peek(path, KIND)?;
        let damaged = |what: String| FileError::Damaged { path: path.into(), what };
        let pixels = u64::from(header.width) * u64::from(header.height);
        if !SIDES.contains(&header.width)
            || !SIDES.contains(&header.height)
            || pixels > MOST_PIXELS
            || header.white == 0
            || u64::from(header.bad) > pixels
        {
            let Header { width, height, white, bad, .. } = header;
            let what = format!("a sensor of {width}×{height} pixels, white {white}, {bad} of them bad");
            return Err(damaged(what).into());
        }
        let length = std::fs::metadata(path)
            .map_err(|source| FileError::Io { what: "reading", path: path.into(), source })?
            .len();
        // Two bytes twice for a pixel, five for a bad one, and the header.
        if length > pixels * 9 + (1 << 20) {
            return Err(damaged(format!("{length} bytes are too many for {pixels} pixels")).into());
        }
        let file = Container::open(path, KIND)?;
        if file.header::<Header>()? != header {
            return Err(file.damaged("it changes while it is read".into()).into());
        }
        let bad: Vec<u32> = file.section("bad", header.bad as usize)?.to_vec();
        if !bad.is_sorted_by(|a, b| a < b) || bad.last().is_some_and(|&last| u64::from(last) >= pixels) {
            return Err(file.damaged("its bad pixels are not in order, or not on the sensor".into()).into());
        }
        let kinds = file.section::<u8>("kinds", bad.len())?.to_vec();
        if !kinds.iter().all(|kind| (HOT..=DEAD).contains(kind)) {
            return Err(file.damaged("it has bad pixels of unknown kinds".into()).into());
        }
        Ok(Self {
            dark: file.section("dark", pixels as usize)?.to_vec(),
            gain: file.section("gain", pixels as usize)?.to_vec(),
            bad,
            kinds,
            header,
        })
    }
}

impl Correction {
    /// Reads a calibration for a camera of this format and with these controls
    /// ([`CameraConfig::exposure`](crate::camera::config::CameraConfig::exposure)).
    ///
    /// # Errors
    /// If the file cannot be read, or is for another format or other controls.
    pub fn load(path: &Path, camera: Format, exposure: &str) -> Result<Self, SensorError> {
        let calibration = Calibration::read(path)?;
        if calibration.exposure() != exposure {
            let (made, now) = (calibration.exposure().into(), exposure.into());
            return Err(SensorError::Exposure { path: path.into(), made, now });
        }
        Self::new(&calibration, camera)
    }
}
