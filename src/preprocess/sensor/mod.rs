//! Sensor correction: what the sensor adds, where it answers unevenly, and which of its pixels are not to be believed.
//!
//! ```text
//!  corrected = (raw − dark) · gain          bad pixels: median of the nearest good ones
//! ```
//!
//! [`Recorder`]s gather dark and flat frames, [`Calibration`] is what is learnt from them and lies in a file, and
//! [`Correction`] applies it in place. Pixels at full scale stay there, so that correction never hides an overexposure
//! from the gates.

mod calibration;
mod file;
mod record;
#[cfg(test)]
mod tests;

pub use calibration::{Calibration, Found, Level};
pub use record::Recorder;

use std::path::PathBuf;

use thiserror::Error;

use crate::camera::Format;
use crate::frame::Frame;
use crate::model::container::FileError;
use crate::simd::{Isa, Kernel, Simd};

/// Binary places of a gain: 1 is `1 << 13`, and the largest is just under 8.
const GAIN_BITS: u32 = 13;
/// A gain of 1.
const ONE: u16 = 1 << GAIN_BITS;
/// Good neighbours that stand for a bad pixel.
pub const NEIGHBOURS: usize = 8;
/// Fewer than these, and a bad pixel cannot be replaced.
const FEWEST: usize = 3;
/// How far away they may lie.
const REACH: isize = 4;

/// Why a sensor cannot be calibrated or corrected.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SensorError {
    /// A frame or camera of another kind than the calibration's.
    #[error("the calibration is for {wanted}, the camera gives {found}; record one for this camera")]
    Format {
        /// What the calibration was made for.
        wanted: Format,
        /// What came.
        found: Format,
    },
    /// A calibration that was recorded at other settings of the camera.
    #[error(
        "the calibration {} was made with the camera's controls `{made}`, it is configured with `{now}`; record one with \
         these",
        path.display()
    )]
    Exposure {
        /// The file.
        path: PathBuf,
        /// What it was made with.
        made: String,
        /// What the camera has now.
        now: String,
    },
    /// Frames that calibrate nothing.
    #[error("{0}")]
    Frames(String),
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What a device needs in order to correct frames alike: see [`Correction::tables`].
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    /// Binary places that raw values are given before the dark signal is taken off.
    pub places: u32,
    /// Dark signal of each pixel, with these places.
    pub dark: &'a [u16],
    /// Gain of each pixel in 1/8192.
    pub gain: &'a [u16],
    /// Indices of bad pixels, rising.
    pub bad: &'a [u32],
    /// For each of them, how many of the following are good neighbours, and their indices.
    pub neighbours: &'a [(u8, [u32; NEIGHBOURS])],
}

/// A calibration made ready for frames of one format.
#[derive(Clone, Debug)]
pub struct Correction {
    format: Format,
    /// Binary places that raw values are given, so that a dark frame's fractions count.
    places: u32,
    /// Dark signal with these places.
    dark: Vec<u16>,
    gain: Vec<u16>,
    /// Bad pixels.
    bad: Vec<u32>,
    /// For each of them, how many of the following are good neighbours, and those.
    neighbours: Vec<(u8, [u32; NEIGHBOURS])>,
    isa: Isa,
}

impl Correction {
    /// For a camera of this format.
    ///
    /// # Errors
    /// [`SensorError::Format`] if the calibration is for another; [`SensorError::Frames`] if bad pixels lie so close that
    /// nothing good is near.
    pub fn new(calibration: &Calibration, camera: Format) -> Result<Self, SensorError> {
        let format = calibration.format();
        if format != camera {
            return Err(SensorError::Format { wanted: format, found: camera });
        }
        let bad: Vec<u32> = calibration.bad().to_vec();
        let neighbours = bad.iter().map(|&at| near(at, &bad, format)).collect::<Option<Vec<_>>>().ok_or_else(|| {
            let reach = REACH;
            SensorError::Frames(format!(
                "some of the calibration's {} bad pixels have fewer than {FEWEST} good ones within {reach} pixels: such \
                 a sensor cannot be used; clean it, record again, or replace it",
                bad.len()
            ))
        })?;
        let places = places(format.white);
        let (dark, gain) = (calibration.dark().to_vec(), calibration.gain().to_vec());
        Ok(Self { format, places, dark, gain, bad, neighbours, isa: Isa::detect() })
    }

    /// The format that it is for.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Its numbers, for another backend.
    #[must_use]
    pub fn tables(&self) -> Tables<'_> {
        let Self { places, dark, gain, bad, neighbours, .. } = self;
        Tables { places: *places, dark, gain, bad, neighbours }
    }

    /// Corrects a frame in place. Allocates nothing.
    ///
    /// # Errors
    /// [`SensorError::Format`] if the frame has another format; it is left as it is.
    pub fn apply(&self, frame: &mut Frame) -> Result<(), SensorError> {
        let found = Format::of(frame);
        if found != self.format {
            return Err(SensorError::Format { wanted: self.format, found });
        }
        let white = self.format.white;
        self.isa.run(Rows {
            places: self.places,
            white,
            dark: &self.dark,
            gain: &self.gain,
            pixels: frame.pixels_mut(),
        });
        let pixels = frame.pixels_mut();
        for (&at, (count, near)) in self.bad.iter().zip(&self.neighbours) {
            let mut values = [0_u16; NEIGHBOURS];
            let values = &mut values[..usize::from(*count)];
            values.iter_mut().zip(near).for_each(|(value, &from)| *value = pixels[from as usize]);
            values.sort_unstable();
            let middle = values.len() / 2;
            let median = if values.len() % 2 == 1 {
                values[middle]
            } else {
                (u32::from(values[middle - 1]) + u32::from(values[middle])).div_ceil(2) as u16
            };
            pixels[at as usize] = median;
        }
        Ok(())
    }
}

/// Binary places that values up to `white` leave in 16 bits, at most 8.
fn places(white: u16) -> u32 {
    white.leading_zeros().min(8)
}

/// The nearest good pixels around a bad one; none if there are too few. `bad` is sorted.
fn near(at: u32, bad: &[u32], format: Format) -> Option<(u8, [u32; NEIGHBOURS])> {
    let (x, y) = ((at as usize % format.width) as isize, (at as usize / format.width) as isize);
    let (mut count, mut near) = (0, [0; NEIGHBOURS]);
    for ring in 1..=REACH {
        let around = (-ring..=ring).flat_map(|dy| (-ring..=ring).map(move |dx| (dx, dy)));
        let good: Vec<u32> = around
            .filter(|(dx, dy)| dx.abs().max(dy.abs()) == ring)
            .map(|(dx, dy)| (x + dx, y + dy))
            .filter(|&(x, y)| x >= 0 && y >= 0 && x < format.width as isize && y < format.height as isize)
            .map(|(x, y)| (y as usize * format.width + x as usize) as u32)
            .filter(|index| bad.binary_search(index).is_err())
            .collect();
        // Where a ring has more than there is room for: evenly from all sides.
        let room = (NEIGHBOURS - count).min(good.len());
        for k in 0..room {
            near[count + k] = good[k * good.len() / room];
        }
        count += room;
        if count >= FEWEST {
            return Some((count as u8, near));
        }
    }
    None
}

/// Pixels of a piece, whose known length turns its loop into vector instructions.
const PIECE: usize = 64;

/// Dark and gain of all pixels, in integers: the same on every machine, in half the memory that floats would be read from.
struct Rows<'a> {
    places: u32,
    white: u16,
    dark: &'a [u16],
    gain: &'a [u16],
    pixels: &'a mut [u16],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { places, white, dark, gain, pixels } = self;
        let one = |pixel: &mut u16, dark: u16, gain: u16| {
            let raw = *pixel;
            // Raw values above white are taken for it, and white leaves room for the places.
            let light = (raw.min(white) << places).saturating_sub(dark);
            // 16 bits by 16 fit in 32; rounded half up, without a carry out of them.
            let value = (((u32::from(light) * u32::from(gain)) >> (GAIN_BITS + places - 1)) + 1) >> 1;
            let least = if raw >= white { white } else { 0 };
            *pixel = (value.min(u32::from(white)) as u16).max(least);
        };
        let (pieces, rest) = pixels.as_chunks_mut::<PIECE>();
        let ((dark, dark_rest), (gain, gain_rest)) = (dark.as_chunks::<PIECE>(), gain.as_chunks::<PIECE>());
        for ((piece, dark), gain) in pieces.iter_mut().zip(dark).zip(gain) {
            for i in 0..PIECE {
                one(&mut piece[i], dark[i], gain[i]);
            }
        }
        for ((pixel, &dark), &gain) in rest.iter_mut().zip(dark_rest).zip(gain_rest) {
            one(pixel, dark, gain);
        }
    }
}
