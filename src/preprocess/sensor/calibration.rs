//! What is learnt of a sensor from dark and flat frames.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{GAIN_BITS, ONE, Recorder, SensorError, places};
use crate::camera::Format;
use crate::clock::Date;

/// A pixel is bad if it lies so many robust standard deviations from its fellows' median …
const SIGMAS: f32 = 8.0;
/// … and by more than this share of full scale in the dark,
const DARK_LEAST: f32 = 0.02;
/// this share of full scale in its spread from frame to frame,
const SPREAD_LEAST: f32 = 0.004;
/// this share of its fellows' response to light.
const GAIN_LEAST: f32 = 0.25;
/// Side of the squares in which pixels are each other's fellows: light falls off slowly.
const BLOCK: usize = 32;
/// Frames that a calibration needs at least.
const FEWEST_FRAMES: u32 = 4;
/// A darkest and a brightest block that differ by more than this share of full scale show that light came in.
const LIT: f32 = 0.06;
/// A covered sensor's mean is below this share of full scale,
const DARK_MOST: f32 = 0.3;
/// and a flat frame's between these.
const FLAT: [f32; 2] = [0.1, 0.9];
/// So much of a flat frame may be at full scale; more is overexposed, not bad pixels.
const SATURATED: f64 = 0.002;
/// Falling off to the corners more than this cannot be made good.
const UNEVEN: f32 = 4.0;
/// Frames of one scene may differ in their means by this share.
const UNSTEADY: f64 = 0.05;
/// Share of bad pixels from which something else is wrong.
const BAD_MOST: f64 = 0.02;

/// How many frames showed one scene, and what they were like; shares are of full scale.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// Frames.
    pub frames: u32,
    /// Mean of all pixels.
    pub mean: f32,
    /// A pixel's typical standard deviation from frame to frame.
    pub noise: f32,
    /// The pixels' standard deviation around their neighbourhood (flat: relative to it), robustly.
    pub pattern: f32,
    /// Brightest over darkest neighbourhood.
    pub falloff: f32,
}

/// Kinds of bad pixels, as the file has them.
pub(super) const HOT: u8 = 1;
const UNSTABLE: u8 = 2;
pub(super) const DEAD: u8 = 3;

/// Bad pixels by kind; one that is bad in two ways counts as the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Far too bright in the dark.
    pub hot: u32,
    /// Different from frame to frame.
    pub unstable: u32,
    /// Answers to light too little or too much.
    pub dead: u32,
}

impl Found {
    /// All.
    #[must_use]
    pub fn all(self) -> u32 {
        self.hot + self.unstable + self.dead
    }
}

/// What makes a calibration, beside the maps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    pub width: u32,
    pub height: u32,
    pub white: u16,
    pub camera: String,
    /// The camera's controls, see [`CameraConfig::exposure`](crate::camera::config::CameraConfig::exposure).
    pub exposure: String,
    /// Milliseconds since 1970.
    pub created: u64,
    pub dark: Level,
    pub flat: Option<Level>,
    /// Number of bad pixels, for the length of their section.
    pub bad: u32,
}

/// Dark frame, gains and bad pixels of one sensor at one exposure.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    pub(super) header: Header,
    /// Dark signal in `1 / 2^places` of a pixel value, row by row.
    pub(super) dark: Vec<u16>,
    /// Gain in 1/8192, row by row.
    pub(super) gain: Vec<u16>,
    /// Indices of bad pixels, rising.
    pub(super) bad: Vec<u32>,
    /// What is wrong with each of them.
    pub(super) kinds: Vec<u8>,
}

impl Calibration {
    /// From frames of the covered sensor. `camera` describes it to people, `exposure` is
    /// [`CameraConfig::exposure`](crate::camera::config::CameraConfig::exposure).
    ///
    /// # Errors
    /// [`SensorError::Frames`] if they are too few, or are not dark, or too many pixels are bad.
    pub fn from_dark(dark: &Recorder, camera: &str, exposure: &str) -> Result<Self, SensorError> {
        let format = dark.format();
        let white = f32::from(format.white);
        enough(dark, "dark")?;
        let (means, spreads) = (dark.means(), dark.spreads());
        let blocks = Blocks::new(&means, format);
        let (low, high) = blocks.range();
        let mean = average(&means) / white;
        if mean > DARK_MOST || (high - low) / white > LIT {
            return Err(SensorError::Frames(format!(
                "the frames are not dark: their mean is {mean:.3} of full scale, and their regions differ by {:.3}; cover \
                 the lens and switch the cell's current off",
                (high - low) / white
            )));
        }
        let (hot, pattern) = outliers(&means, DARK_LEAST * white);
        let (unstable, _) = outliers(&spreads, SPREAD_LEAST * white);
        let noise = median(&spreads) / white;
        // One that is steadier than the others is not bad for it.
        let middle = median(&spreads);
        let unstable = unstable.into_iter().filter(|&i| spreads[i as usize] > middle);
        let mut bad: BTreeMap<u32, u8> = hot.into_iter().map(|at| (at, HOT)).collect();
        unstable.for_each(|at| _ = bad.entry(at).or_insert(UNSTABLE));
        let places = places(format.white);
        let fixed = |&mean: &f32| (mean * (1 << places) as f32 + 0.5).clamp(0.0, 65535.0) as u16;
        let falloff = if low > 0.0 { high / low } else { 1.0 };
        let level = Level { frames: dark.count(), mean, noise, pattern: pattern / white, falloff };
        let calibration = Self {
            header: Header {
                width: format.width as u32,
                height: format.height as u32,
                white: format.white,
                camera: camera.into(),
                exposure: exposure.into(),
                created: Date::now().as_millis(),
                dark: level,
                flat: None,
                bad: bad.len() as u32,
            },
            dark: means.iter().map(fixed).collect(),
            gain: vec![ONE; means.len()],
            kinds: bad.values().copied().collect(),
            bad: bad.into_keys().collect(),
        };
        calibration.few_enough()
    }

    /// The same with gains from frames of an evenly lit scene, which replace those that it had. A corrected flat frame
    /// keeps its mean brightness.
    ///
    /// # Errors
    /// [`SensorError::Frames`] if they are too few, too dim, overexposed, too uneven, or not steady, or too many pixels
    /// are bad.
    pub fn with_flat(&self, flat: &Recorder) -> Result<Self, SensorError> {
        let format = self.format();
        let white = f32::from(format.white);
        if flat.format() != format {
            return Err(SensorError::Format { wanted: format, found: flat.format() });
        }
        enough(flat, "flat")?;
        if flat.saturated() > SATURATED {
            return Err(SensorError::Frames(format!(
                "the flat frames are overexposed: {:.2} % of their pixels are at full scale; take half the light",
                100.0 * flat.saturated()
            )));
        }
        let unit = (1 << places(format.white)) as f32;
        let light: Vec<f32> =
            flat.means().iter().zip(&self.dark).map(|(mean, &dark)| mean - f32::from(dark) / unit).collect();
        let level = average(&light) / white;
        if !(FLAT[0]..=FLAT[1]).contains(&level) {
            return Err(SensorError::Frames(format!(
                "the flat frames are {} : {level:.3} of full scale above the dark, {} to {} is needed; change the light, \
                 not the exposure",
                if level < FLAT[0] { "too dim" } else { "too bright" },
                FLAT[0],
                FLAT[1]
            )));
        }
        let (dimmest, brightest) = flat.range();
        if brightest - dimmest > UNSTEADY * brightest {
            return Err(SensorError::Frames(format!(
                "the light is not steady: the flat frames' means go from {dimmest:.3} to {brightest:.3} of full scale; use \
                 a lamp on direct current"
            )));
        }
        let blocks = Blocks::new(&light, format);
        let (low, high) = blocks.range();
        if low * UNEVEN < high {
            return Err(SensorError::Frames(format!(
                "the flat frames are not even: their brightest region has {:.1} times the light of the darkest, up to \
                 {UNEVEN} can be made good; light the whole field",
                high / low.max(1e-6)
            )));
        }
        let relative: Vec<f32> = (0..light.len()).map(|i| light[i] / blocks.at(i).max(1e-6)).collect();
        let (dead, pattern) = outliers(&relative, GAIN_LEAST);
        let mut next = self.clone();
        // What an earlier flat frame showed is found anew.
        let pairs = self.bad.iter().copied().zip(self.kinds.iter().copied());
        let mut bad: BTreeMap<u32, u8> = pairs.filter(|&(_, kind)| kind != DEAD).collect();
        dead.into_iter().for_each(|at| _ = bad.entry(at).or_insert(DEAD));
        next.kinds = bad.values().copied().collect();
        next.bad = bad.into_keys().collect();
        next.header.bad = next.bad.len() as u32;
        let good = |i: &usize| next.bad.binary_search(&(*i as u32)).is_err();
        let (sum, count) =
            (0..light.len()).filter(good).fold((0.0, 0_u32), |(sum, count), i| (sum + f64::from(light[i]), count + 1));
        let mean = (sum / f64::from(count.max(1))) as f32;
        let fixed = |&light: &f32| {
            let gain = mean / light;
            if light > 0.0 { (gain * (1 << GAIN_BITS) as f32 + 0.5).clamp(1.0, 65535.0) as u16 } else { ONE }
        };
        next.gain = light.iter().map(fixed).collect();
        let noise = median(&flat.spreads()) / white;
        next.header.flat = Some(Level { frames: flat.count(), mean: level, noise, pattern, falloff: high / low });
        next.header.created = Date::now().as_millis();
        next.few_enough()
    }

    fn few_enough(self) -> Result<Self, SensorError> {
        let share = self.bad.len() as f64 / self.dark.len().max(1) as f64;
        if share > BAD_MOST {
            return Err(SensorError::Frames(format!(
                "{:.1} % of all pixels look bad, up to {} % can be; is the scene uneven, or did the light change?",
                100.0 * share,
                100.0 * BAD_MOST
            )));
        }
        Ok(self)
    }

    /// The format of the frames that it is for.
    #[must_use]
    pub fn format(&self) -> Format {
        let Header { width, height, white, .. } = self.header;
        Format { width: width as usize, height: height as usize, white }
    }

    /// Which camera it was made for.
    #[must_use]
    pub fn camera(&self) -> &str {
        &self.header.camera
    }

    /// The camera's controls that it was made with.
    #[must_use]
    pub fn exposure(&self) -> &str {
        &self.header.exposure
    }

    /// When it was made.
    #[must_use]
    pub fn created(&self) -> Date {
        Date::from_millis(self.header.created)
    }

    /// What the dark frames were like.
    #[must_use]
    pub fn dark_level(&self) -> Level {
        self.header.dark
    }

    /// What the flat frames were like, if there were any.
    #[must_use]
    pub fn flat_level(&self) -> Option<Level> {
        self.header.flat
    }

    /// Bad pixels by kind.
    #[must_use]
    pub fn found(&self) -> Found {
        let count = |kind| self.kinds.iter().filter(|&&k| k == kind).count() as u32;
        Found { hot: count(HOT), unstable: count(UNSTABLE), dead: count(DEAD) }
    }

    /// Indices of bad pixels, rising.
    #[must_use]
    pub fn bad(&self) -> &[u32] {
        &self.bad
    }

    pub(super) fn dark(&self) -> &[u16] {
        &self.dark
    }

    pub(super) fn gain(&self) -> &[u16] {
        &self.gain
    }
}

fn enough(frames: &Recorder, kind: &str) -> Result<(), SensorError> {
    if frames.count() < FEWEST_FRAMES {
        let count = frames.count();
        return Err(SensorError::Frames(format!(
            "calibrating by {count} {kind} frames: at least {FEWEST_FRAMES} are needed, 64 are good"
        )));
    }
    Ok(())
}

fn average(values: &[f32]) -> f32 {
    (values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len().max(1) as f64) as f32
}

fn median(values: &[f32]) -> f32 {
    let mut values = values.to_vec();
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f32::total_cmp).1
}

/// Indices of values that lie far from the median, rising; and the robust standard deviation.
fn outliers(values: &[f32], least: f32) -> (Vec<u32>, f32) {
    let middle = median(values);
    let distances: Vec<f32> = values.iter().map(|v| (v - middle).abs()).collect();
    // Of a normal distribution, the median distance from the median is 0.6745 standard deviations.
    let spread = median(&distances) / 0.6745;
    let limit = (SIGMAS * spread).max(least);
    let far = (0..values.len()).filter(|&i| distances[i] > limit).map(|i| i as u32).collect();
    (far, spread)
}

/// Medians of a map's squares, to see what is broad in it.
struct Blocks {
    width: usize,
    columns: usize,
    medians: Vec<f32>,
}

impl Blocks {
    fn new(map: &[f32], format: Format) -> Self {
        let Format { width, height, .. } = format;
        let (columns, rows) = (width.div_ceil(BLOCK), height.div_ceil(BLOCK));
        let mut medians = Vec::with_capacity(columns * rows);
        for (top, left) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r * BLOCK, c * BLOCK))) {
            let rows = (top..(top + BLOCK).min(height)).map(|y| &map[y * width..][left..(left + BLOCK).min(width)]);
            medians.push(median(&rows.flatten().copied().collect::<Vec<f32>>()));
        }
        Self { width, columns, medians }
    }

    /// The median around a pixel, between the squares' middles.
    fn at(&self, index: usize) -> f32 {
        let rows = self.medians.len() / self.columns.max(1);
        let place = |at: usize, count: usize| {
            let at = ((at as f32 + 0.5) / BLOCK as f32 - 0.5).clamp(0.0, (count - 1) as f32);
            (at as usize, (at as usize + 1).min(count - 1), at.fract())
        };
        let (left, right, fx) = place(index % self.width, self.columns);
        let (top, foot, fy) = place(index / self.width, rows);
        let row = |r: usize| {
            let (a, b) = (self.medians[r * self.columns + left], self.medians[r * self.columns + right]);
            a + fx * (b - a)
        };
        row(top) + fy * (row(foot) - row(top))
    }

    fn range(&self) -> (f32, f32) {
        self.medians.iter().fold((f32::INFINITY, 0.0), |(low, high), &m| (m.min(low), m.max(high)))
    }
}
