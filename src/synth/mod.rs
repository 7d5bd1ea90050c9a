//! Synthetic electroluminescence images of heterojunction cells, with the truth about each pixel.
//!
//! A cell is drawn in its own axes (grid, process texture, defects), then photographed: projected into the frame,
//! vignetted, given shot and read noise, quantised. What a cell looks like depends on the seed and its index only, so
//! cells can be made in any order, on any thread, and come out the same to the bit on every machine: decisions are
//! ChaCha8 streams and pixel values come from `+ − × ÷ √` alone, which IEEE 754 fixes.
//!
//! The mix follows the HEPV set (paper section 2.1.1): class A 96.3 %, B 2.9 %, C 0.8 %, dark areas to cracks as 499
//! to 76 within C; fewer than one good cell in ten is free of any dot.
//!
//! ```
//! use cellgate::synth::{Generator, SynthCell, SynthConfig};
//!
//! let generator = Generator::new(SynthConfig { size: 180, ..SynthConfig::default() }, 7)?;
//! let mut cell = SynthCell::default();
//! generator.cell_into(41, &mut cell); // the next call reuses the buffers
//! assert_eq!(cell.frame.width(), 180);
//! # Ok::<(), cellgate::synth::SynthError>(())
//! ```

mod canvas;
mod chance;
mod defects;
mod id_strip;
mod kind;
mod pose;
mod sensor;
#[cfg(test)]
mod tests;
mod texture;

use serde::{Deserialize, Serialize};

pub use id_strip::{draw_id, read_id};
pub use kind::{Defect, DefectKind, PixelBox};

use crate::frame::Frame;
use crate::verdict::Class;
use canvas::Canvas;
use chance::{Chance, Purpose};
use defects::Plan;
use pose::Pose;
use sensor::Sensor;
use texture::{Line, Scratch};

/// Version of the drawing: it changes whenever the same seed and index would give another image.
pub const DRAWING: u32 = 1;

/// What a generator can refuse.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SynthError {
    /// The frame's side is out of range.
    #[error("cannot draw a synthetic cell in a frame of {size}×{size} pixels: give a size from 64 to 2048")]
    Size {
        /// What was asked for.
        size: usize,
    },
    /// The full scale is too small to show a cell.
    #[error("cannot draw a synthetic cell with a full scale of {white}: give 255 (8 bits) to 65535 (16 bits)")]
    White {
        /// What was asked for.
        white: u16,
    },
    /// A share of a class is negative, not finite, or all are 0.
    #[error("class proportions {a}, {b}, {c} are no mix: give three shares of at least 0, not all 0")]
    Proportions {
        /// Share of class A.
        a: f64,
        /// Share of class B.
        b: f64,
        /// Share of class C.
        c: f64,
    },
    /// A number is outside its range.
    #[error("synthetic cells with {name} = {value}: it must be from {low} to {high}")]
    Range {
        /// The field of [`SynthConfig`].
        name: &'static str,
        /// What was asked for.
        value: f64,
        /// The least allowed.
        low: f64,
        /// The most allowed.
        high: f64,
    },
    /// A name that is no defect.
    #[error(
        "unknown defect '{name}': dark-spot, grey-dots, black-dots, crack-straight, crack-cross, crack-branching, scratch, finger-interruption, dark-edge or dimmed"
    )]
    UnknownDefect {
        /// What was read.
        name: String,
    },
}

/// Which classes and defects are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// By [`SynthConfig::proportions`].
    #[default]
    Natural,
    /// A, B, C in turn; of the Cs every second one has a crack.
    Balanced,
    /// Only this class.
    Only(Class),
    /// Only cells with this defect, in whichever class it can make (see [`DefectKind::classes`]).
    Defect(DefectKind),
}

/// What the cells and the camera are like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SynthConfig {
    /// Pixels on each side of the frame, 64 to 2048.
    pub size: usize,
    /// Pixel value of full scale, 255 to 65535 (4095 for a 12-bit camera).
    pub white: u16,
    /// Scale of the random shift, rotation, scale and skew: 0 (none) to 2; at 1, ±1.2 % of the frame, ±1.3°, ±1.2 %
    /// and ±0.5 % of the cell.
    pub pose_jitter: f64,
    /// Busbars, 0 to 12.
    pub busbars: usize,
    /// Brightness of a typical cell as a share of full scale, 0.3 to 0.85.
    pub brightness: f64,
    /// Scale of the camera's noise, 0 to 10.
    pub noise: f64,
    /// Signal without light as a share of full scale, 0 to 0.1.
    pub dark: f64,
    /// Share of light lost in the frame's corners, 0 to 0.5.
    pub vignette: f64,
    /// Shares of the classes A, B and C; they need not sum to 1.
    pub proportions: [f64; 3],
    /// Which classes and defects are drawn.
    pub selection: Selection,
    /// Whether the index is written into the frame as a bar code that [`read_id`] reads.
    pub with_id: bool,
}

impl Default for SynthConfig {
    fn default() -> Self {
        Self {
            size: 720,
            white: 255,
            pose_jitter: 1.0,
            busbars: 5,
            brightness: 0.62,
            noise: 1.0,
            dark: 0.03,
            vignette: 0.12,
            proportions: [0.963, 0.029, 0.008],
            selection: Selection::Natural,
            with_id: false,
        }
    }
}

impl SynthConfig {
    /// Checks every field's range.
    ///
    /// # Errors
    /// The first field that is out of range, with what it may be.
    pub fn validate(&self) -> Result<(), SynthError> {
        if !(64..=2048).contains(&self.size) {
            return Err(SynthError::Size { size: self.size });
        }
        if self.white < 255 {
            return Err(SynthError::White { white: self.white });
        }
        let [a, b, c] = self.proportions;
        if self.proportions.iter().any(|p| !p.is_finite() || *p < 0.0) || !(a + b + c > 0.0 && (a + b + c).is_finite())
        {
            return Err(SynthError::Proportions { a, b, c });
        }
        for (name, value, low, high) in [
            ("pose_jitter", self.pose_jitter, 0.0, 2.0),
            ("busbars", self.busbars as f64, 0.0, 12.0),
            ("brightness", self.brightness, 0.3, 0.85),
            ("noise", self.noise, 0.0, 10.0),
            ("dark", self.dark, 0.0, 0.1),
            ("vignette", self.vignette, 0.0, 0.5),
        ] {
            if !(low..=high).contains(&value) {
                return Err(SynthError::Range { name, value, low, high });
            }
        }
        Ok(())
    }
}

/// A synthetic cell: its image and the truth about it. Its buffers are reused when it is filled again.
#[derive(Clone, Debug)]
pub struct SynthCell {
    /// What the camera saw, `size` × `size`.
    pub frame: Frame,
    /// The frame's pixels that belong to a defect, as [`DefectKind::code`]; 0 elsewhere. Harmless dots and texture are
    /// not in it: it is empty for class A.
    pub mask: Vec<u8>,
    /// The production class.
    pub class: Class,
    /// The defects that made it a B or a C, those drawn over others last.
    pub defects: Vec<Defect>,
    /// Corners of the cell's square (before its corners are cut) in frame pixels, clockwise from top-left. Pixel
    /// (0, 0) covers 0 to 1 on both axes.
    pub quad: [(f64, f64); 4],
    /// The index that it was made from.
    pub cell_id: u64,
    canvas: Canvas,
    scratch: Scratch,
}

impl Default for SynthCell {
    fn default() -> Self {
        Self {
            frame: Frame::new(0, 0, 255),
            mask: Vec::new(),
            class: Class::A,
            defects: Vec::new(),
            quad: [(0.0, 0.0); 4],
            cell_id: 0,
            canvas: Canvas::default(),
            scratch: Scratch::default(),
        }
    }
}

impl SynthCell {
    /// The kinds of its defects, each once, in the order of their codes.
    pub fn kinds(&self) -> impl Iterator<Item = DefectKind> {
        DefectKind::ALL.into_iter().filter(|kind| self.defects.iter().any(|defect| defect.kind == *kind))
    }
}

/// Makes cells of one line. It is cheap to share between threads and holds about 10 MB at 720 pixels.
#[derive(Clone, Debug)]
pub struct Generator {
    config: SynthConfig,
    seed: u64,
    line: Line,
    sensor: Sensor,
}

impl Generator {
    /// A line with its own signature (belts, broad shading) and camera, both from `seed`.
    ///
    /// # Errors
    /// What is wrong with `config`, see [`SynthConfig::validate`].
    pub fn new(config: SynthConfig, seed: u64) -> Result<Self, SynthError> {
        config.validate()?;
        let line = Line::new(config.size, config.busbars, seed);
        let sensor = Sensor::new(seed, config.noise as f32, config.dark as f32, config.vignette as f32);
        Ok(Self { config, seed, line, sensor })
    }

    /// What it was made with.
    #[must_use]
    pub fn config(&self) -> &SynthConfig {
        &self.config
    }

    /// The seed that it was made with.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Class of cell `index`, without drawing it.
    #[must_use]
    pub fn class(&self, index: u64) -> Class {
        self.plan(index, self.config.selection).class
    }

    /// The name of cell `index`'s image in a data set: its class and its number, such as `A000041.png`.
    #[must_use]
    pub fn file_name(&self, index: u64) -> String {
        format!("{:?}{index:06}.png", self.class(index))
    }

    /// Cell `index`.
    #[must_use]
    pub fn cell(&self, index: u64) -> SynthCell {
        let mut cell = SynthCell::default();
        self.cell_into(index, &mut cell);
        cell
    }

    /// Cell `index` into a cell whose buffers are reused: after the first call it allocates nothing.
    pub fn cell_into(&self, index: u64, cell: &mut SynthCell) {
        self.draw(index, &self.plan(index, self.config.selection), cell);
    }

    /// Cell `index` with this kind of defect, whatever the configuration selects.
    #[must_use]
    pub fn with_defect(&self, index: u64, kind: DefectKind) -> SynthCell {
        let mut cell = SynthCell::default();
        self.with_defect_into(index, kind, &mut cell);
        cell
    }

    /// [`Generator::with_defect`] into a cell whose buffers are reused.
    pub fn with_defect_into(&self, index: u64, kind: DefectKind, cell: &mut SynthCell) {
        self.draw(index, &self.plan(index, Selection::Defect(kind)), cell);
    }

    /// Cell `index` in this class, whatever the configuration selects.
    pub fn with_class_into(&self, index: u64, class: Class, cell: &mut SynthCell) {
        self.draw(index, &self.plan(index, Selection::Only(class)), cell);
    }

    fn plan(&self, index: u64, selection: Selection) -> Plan {
        let mut chance = Chance::new(self.seed, index, Purpose::Class);
        Plan::draw(selection, self.config.proportions, index, &mut chance)
    }

    fn draw(&self, index: u64, plan: &Plan, cell: &mut SynthCell) {
        let size = self.config.size;
        let mut chance = Chance::new(self.seed, index, Purpose::Pose);
        let pose = Pose::draw(size, &self.line.layout, self.config.pose_jitter, &mut chance);
        let noise_seed = chance.bits();

        let mut chance = Chance::new(self.seed, index, Purpose::Texture);
        let light = (self.config.brightness * (1.0 + (0.025 * chance.normal()).clamp(-0.07, 0.07))) as f32;
        cell.canvas.clear(self.line.layout.side);
        let grid = self.line.weave(&mut cell.canvas, &mut cell.scratch, &mut chance);

        cell.defects.clear();
        cell.defects.reserve(defects::MOST);
        let mut chance = Chance::new(self.seed, index, Purpose::Defects);
        plan.paint(&self.line, &grid, &mut cell.canvas, &mut cell.defects, &mut chance);

        if (cell.frame.width(), cell.frame.height(), cell.frame.white()) != (size, size, self.config.white) {
            cell.frame.reset(size, size, self.config.white);
        }
        self.sensor.expose(&cell.canvas, &pose, light, noise_seed, &mut cell.frame);
        cell.mask.clear();
        cell.mask.resize(size * size, 0);
        if !cell.defects.is_empty() {
            let defects = &mut cell.defects;
            self.sensor.project(&cell.canvas, &pose, size, &mut cell.mask, |owner, x, y| {
                let defect = &mut defects[usize::from(owner) - 1];
                sensor::grow(&mut defect.bbox, x, y);
                defect.kind.code()
            });
            // One drawn over entirely by a later one has no pixels left.
            defects.retain(|defect| defect.bbox.width > 0);
        }
        if self.config.with_id {
            draw_id(&mut cell.frame, index as u32);
        }
        (cell.class, cell.quad, cell.cell_id) = (plan.class, pose.quad, index);
    }
}
